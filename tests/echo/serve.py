"""Echo's user side: greet, open the tape, dial, relay both ways, say why it ends."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from proxy.core.errors import LoginRefused, PeerError, Refused, TapeError, UserPeerError
from proxy.core.events import Command, Frame
from proxy.core.gate import Gate, Pending
from proxy.core.session import Session
from proxy.core.stream import Stream
from proxy.core.writers import TargetWriter, UserWriter
from tests.echo.commands import Bye, Conversation, refusal
from tests.echo.dial import dial
from tests.echo.wire import Lines, line, split

READ_BYTES = 4096
CLOSE_SECONDS = 5.0


async def serve(user: Stream, gate: Gate) -> None:
    """Serve one connection to its end."""
    last = ""
    try:
        last = await _serve(user, gate)
    except (UserPeerError, LoginRefused) as error:
        last = str(error)
    finally:
        if last:
            with contextlib.suppress(PeerError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await user.write(line("bye", last))
        await user.close()


async def _serve(user: Stream, gate: Gate) -> str:
    await user.start(None)
    lines = Lines(UserPeerError)
    hello: list[bytes] = []
    while not hello and (data := await user.read(1)):
        hello += lines.feed(data)
    word, rest = split(hello[0], UserPeerError) if hello else ("", "")
    token, _, name = rest.partition(" ")
    target = gate.targets.find(name)
    identity = await gate.identities.password("echo", token)
    if word != "hello" or target is None:
        return "no such target"
    try:
        tape = gate.recorder.open(
            protocol="echo", identity={"human": identity.subject}, target=target.name, mode=target.recording
        )
    except TapeError:
        return "the session cannot be recorded"
    session = Session(gate, identity, target, tape)
    reason = ""
    try:
        return await _run(user, gate, session)
    except TapeError:
        reason = "recording failed"
        return "the session can no longer be recorded"
    except PeerError as error:
        reason = str(error)
        return reason
    except Exception:  # a bug of ours or a service's: the session ends, and whoever runs serve() logs it
        reason = "internal error"
        await user.write(line("bye", "internal error of the gateway"))
        raise
    finally:
        with contextlib.suppress(TapeError):
            await session.close("failed" if reason else "closed", reason)


async def _run(user: Stream, gate: Gate, session: Session) -> str:
    relay = Relay(user, session)
    if refused := await relay.open():
        return refusal(refused)
    await session.tape.commit()
    stream = await dial(session.target, await gate.credentials.get(session.identity, session.target))
    try:
        return await relay.run(stream)
    finally:
        await stream.close()


class _Over(Exception):
    """The session is over."""


class Relay:
    """One running session."""

    def __init__(self, user: Stream, session: Session) -> None:
        self._user = user
        self._session = session
        self._to_user = UserWriter(user, session)
        self._left = False
        self._conversation = Conversation(lambda: secrets.token_hex(16))

    async def on_hold(self, pending: Pending) -> None:
        """Tell the user that a command waits; nobody waits for one who has left."""
        if self._left:
            pending.withdraw()
            return
        text = f"held by rule {pending.hold.rule}: waiting for approval {pending.id} {pending.url}"
        self._to_user.send(None, Frame(line("note", text.strip()), by_gate=True))
        await self._to_user.flush()

    async def open(self) -> Refused | None:
        """Decide the session itself, and watch whether the user stays for that."""
        failure: Refused | TapeError | None = None
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            try:
                command = Command("echo", "CONNECT", "session", f"connect to {self._session.target.name}")
                await self._session.decide(command, self.on_hold)
            except (Refused, TapeError) as error:  # out of the group as it is, not in an ExceptionGroup
                failure = error
            watching.cancel()
        if isinstance(failure, TapeError):
            raise failure
        return failure

    async def run(self, stream: Stream) -> str:
        """Relay until either side ends; returns the last word for the user."""
        self._to_user.send(None, Frame(line("welcome", self._session.id), by_gate=True))
        await self._to_user.flush()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._up(TargetWriter(stream, self._session)))
                group.create_task(self._down(stream))
                group.create_task(self._watch())
        except BaseExceptionGroup as errors:
            found: BaseException = errors
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]  # one failure makes the others; the first is the cause
            if not isinstance(found, _Over):
                raise found from errors
        return ""

    async def _watch(self) -> None:
        await self._user.gone()
        self._left = True
        self._session.withdraw()

    async def _up(self, writer: TargetWriter) -> None:
        while data := await self._user.read(READ_BYTES):
            for item in self._conversation.from_user(data):
                match item:
                    case Command():
                        await writer.flush()  # what was decided goes up before the next one may have to wait
                        try:
                            permit = await self._session.decide(item, self.on_hold)
                        except Refused as refused:
                            writer.send(self._conversation.refuse(refused))
                        else:
                            writer.send(self._conversation.permitted(permit))
                    case Frame():
                        writer.send(item)
                    case Bye():
                        writer.send(Frame(item.wire))
                        await writer.flush()
                        return  # the target ends the connection
            await writer.flush()
        raise _Over

    async def _down(self, stream: Stream) -> None:
        while data := await stream.read(READ_BYTES):
            for permit, event in self._conversation.from_target(data):
                self._to_user.send(permit, event)
            await self._to_user.flush()
        raise _Over
