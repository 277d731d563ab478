"""Echo's way to a target, which lives in this process: memory streams, and a table of who listens under which name."""

from __future__ import annotations

from collections.abc import Callable

from proxy.core.errors import TargetPeerError
from proxy.core.parties import Credential, Target
from proxy.core.stream import Stream, memory_pair
from tests.echo.wire import Lines, line, split

LISTENING: dict[str, Callable[[Stream], None]] = {}


async def dial(target: Target, credential: Credential) -> Stream:
    """Connect and log in. Raises TargetPeerError, whose text tells nothing of the credential."""
    listener = LISTENING.get(target.host)
    if listener is None:
        raise TargetPeerError("the target cannot be reached")
    ours, theirs = memory_pair()
    listener(theirs)
    assert credential.secret is not None, "echo targets want a password"
    await ours.write(line("login", f"{credential.user} {credential.secret.reveal()}"))
    lines = Lines(TargetPeerError)
    while data := await ours.read(1):
        for each in lines.feed(data):
            word, _ = split(each, TargetPeerError)
            if word == "in":
                return ours
            await ours.close()
            raise TargetPeerError("the gate could not log in to the target")
    raise TargetPeerError("the target closed the connection")
