"""A protocol of lines, for tests of what is around protocols: who it is, a command a line, an answer a line.

The user says ``token TARGET``, then commands; each is decided and taped like any other. ``crash`` raises inside
serve(), ``leave-open`` returns without closing its tape.
"""

from __future__ import annotations

import asyncio

from protocols import Protocol
from proxy.core.errors import LoginRefused, PeerError, Refused
from proxy.core.events import Command, Frame
from proxy.core.gate import Gate, Pending
from proxy.core.session import Session
from proxy.core.stream import Stream
from proxy.core.writers import UserWriter

LINE_LIMIT = 1024


async def read_line(stream: Stream) -> str:
    line = bytearray()
    while not line.endswith(b"\n"):
        data = await stream.read(1)
        if not data:
            return ""
        line += data
        assert len(line) <= LINE_LIMIT
    return line.decode().strip()


async def on_hold(pending: Pending) -> None:
    return None


async def serve(user: Stream, gate: Gate) -> None:
    tls = gate.settings["tls"]
    await user.start(tls)
    if gate.settings.get("refuse"):
        await user.write(f"refused: {gate.settings['refuse']}\n".encode())
        return
    async with asyncio.timeout(gate.settings["login_seconds"]):
        token, _, name = (await read_line(user)).partition(" ")
        try:
            identity = await gate.identities.password("toy", token)
        except LoginRefused as refused:
            await user.write(f"refused: {refused.text}\n".encode())
            return
    target = gate.targets.find(name)
    if target is None:
        await user.write(b"no such target\n")
        return
    tape = gate.recorder.open(
        protocol="toy", identity={"subject": identity.subject}, target=target.name, mode=target.recording
    )
    session = Session(gate, identity, target, tape)
    out = UserWriter(user, session)
    await user.write(f"session {session.id}\n".encode())
    try:
        while line := await read_line(user):
            if line == "crash":
                raise RuntimeError("CANARY-text-of-a-frame")
            if line == "leave-open":
                return
            try:
                verb, _, _ = line.partition(" ")
                await session.decide(Command("toy", verb.upper(), "read", line, (line + "\n").encode()), on_hold)
            except Refused as refused:
                out.send(None, Frame(f"denied {refused.deny.rule}\n".encode()))
            else:
                out.send(None, Frame(f"ok {line}\n".encode()))
            await out.flush()
    except asyncio.CancelledError:
        await user.write(b"goodbye\n")
        raise
    except PeerError:
        pass
    await session.close("closed")


PROTOCOL = Protocol("toy", frozenset({"CONNECT", "LOOK", "TOUCH"}), 7, serve, alpn=("toy",))
