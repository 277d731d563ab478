"""Echo's part in the conformance suite: an echo server in memory, and a user."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from proxy.core.errors import PeerError, TargetPeerError
from proxy.core.gate import Gate
from proxy.core.parties import Target
from proxy.core.stream import MemoryStream, Stream
from tests.conformance import CANARY, FLOOD_BYTES, Reply
from tests.echo import PROTOCOL
from tests.echo.dial import LISTENING
from tests.echo.wire import LINE_LIMIT, Lines, line, row, split
from tests.fakes import SECRET


class EchoTarget:
    """Answers the suite's vocabulary; see tests/conformance.Backend."""

    def __init__(self) -> None:
        self.target = Target("shop", "echo", host="echo")
        self.commands: list[str] = []
        self.connections = 0
        self.received = bytearray()
        self.sent = bytearray()
        self.sent_bytes = 0
        self.secret_seen = False
        self.on_command: Any = None
        self.streams: list[Stream] = []

    async def talk(self, stream: Stream) -> None:
        self.connections += 1
        lines = Lines(TargetPeerError)
        state = "idle"
        with contextlib.suppress(PeerError):
            while data := await stream.read(4096):
                for each in lines.feed(data):
                    word, text = split(each, TargetPeerError)
                    if word == "login":
                        self.secret_seen = text.endswith(f" {SECRET}")
                        await stream.write(line("in"))
                        continue
                    self.received += each
                    if word == "bye":
                        await stream.close()
                    elif word == "do":
                        state = await self.answer(stream, text, state)
        await stream.close()

    async def answer(self, stream: Stream, text: str, state: str) -> str:
        async def send(data: bytes) -> None:
            self.sent_bytes += len(data)
            if len(self.sent) < 1 << 20:
                self.sent += data
            await stream.write(data)

        if not text.startswith("?"):
            self.commands.append(text)
            self.on_command(text)
        word, _, number = text.partition(" ")
        if state == "broken" and word != "end":
            await send(line("bad", "broken the transaction is broken"))
            return state
        match word:
            case "read":
                await send(line("cols", "id\temail") + row([number, CANARY]))
            case "notice":
                await send(line("note", f"seen {CANARY}"))
            case "bulk":
                await send(line("cols", "id\temail") + row(["1", CANARY]) * 3)
            case "flood":
                await send(line("cols", "id\temail"))
                while self.sent_bytes < FLOOD_BYTES:
                    await send(row(["x" * 400, "y" * 500]))
            case "garbage":
                await send(line("what"))
            case "stall":
                await asyncio.Event().wait()
            case "begin":
                state = "open"
            case "end":
                state = "idle"
            case "write" | "later":
                pass
            case _:
                quoted = {"error": CANARY, "secret": SECRET}.get(word, "unknown text")
                state = "broken" if state == "open" else state
                await send(line("bad", f"{state} {quoted}"))
                return state
        await send(line("ok", state))
        if word == "later":
            await send(line("note", f"by the way {CANARY}"))
        return state


class EchoUser:
    """See tests/conformance.Caller."""

    def __init__(self, stream: MemoryStream, lines: Lines) -> None:
        self.stream = stream
        self.sent = bytearray()
        self.heard = bytearray()
        self.on_heard: Any = None
        self._lines = lines
        self._waiting: list[bytes] = []

    async def say(self, *words: str) -> None:
        data = b"".join(line("do", word) for word in words)
        self.sent += data
        await self.stream.write(data)

    async def violate(self) -> None:
        await self.stream.write(line("jump", "write 1"))

    async def _line(self) -> bytes:
        while not self._waiting:
            data = await self.stream.read(4096)
            if not data:
                return b""
            self.heard += data
            self._waiting += self._lines.feed(data)
        return self._waiting.pop(0)

    async def hear(self) -> Reply:
        reply = Reply()
        while each := await self._line():
            reply.raw += each
            word, text = split(each, TargetPeerError)
            match word:
                case "row":
                    reply.cells += text.split("\t")
                case "note":
                    reply.notes.append(text)
                case "ok":
                    reply.state = text
                    return reply
                case "bad":
                    reply.state, _, reply.error = text.partition(" ")
                    return reply
                case "bye":
                    reply.error = text
        reply.ended = True
        return reply

    async def note(self) -> str:
        _, text = split(await self._line(), TargetPeerError)
        return text


class EchoAdapter:
    """See tests/conformance.Adapter."""

    protocol = PROTOCOL
    limit = LINE_LIMIT
    streams = False
    cut = ()
    transactions = True

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[EchoTarget]:
        backend = EchoTarget()
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            LISTENING["echo"] = lambda stream: tasks.append(group.create_task(backend.talk(stream)))
            try:
                yield backend
            finally:
                del LISTENING["echo"]
                for task in tasks:
                    task.cancel()

    def prepare(self, gate: Gate) -> None:
        pass

    async def login(self, user: MemoryStream, token: str, target: str) -> EchoUser | str:
        lines = Lines(TargetPeerError)
        await user.write(line("hello", f"{token} {target}"))
        while data := await user.read(1):
            for each in lines.feed(data):
                word, text = split(each, TargetPeerError)
                if word == "welcome":
                    return EchoUser(user, lines)
                if word == "bye":
                    return text
        return "closed"

    def text(self, word: str) -> str:
        return word

    def sized(self, size: int) -> str:
        return "write ".ljust(size - len("do \n"), "x")

    def own_words(self, data: bytes) -> bool:
        return data.startswith(b"bye ")


ADAPTER = EchoAdapter()
