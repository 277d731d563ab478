"""A stage for attacks: serve() behind a real TLS socket, users who write raw bytes, a target that says what it likes.

What the target gets is read by h11, which is strict and not ours: one decided request has to be exactly one request
there. What it answers is a function of the request, and may be any bytes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import h11

from protocols.kubernetes.serve import serve
from proxy.certificates import self_signed
from proxy.core.errors import LoginRefused
from proxy.core.events import Command
from proxy.core.gate import Gate
from proxy.core.parties import Identity, Target
from proxy.core.stream import SocketStream
from proxy.core.verdict import Verdict
from proxy.policy.shell import read_shell
from recorder.tape import Kind
from tests.fakes import SECRET, TOKEN, FakeIdentities, FakeRecorder, FakeTape, allow_all, fake_gate
from tests.kubernetes.conformance_adapter import Kept

PODS: Final = "/api/v1/namespaces/shop/pods"
EXEC: Final = f"{PODS}/api/exec?command=id&stdout=true&stderr=true"
OTHER_TOKEN: Final = "canary-token-of-bob"
PATIENCE_SECONDS: Final = 15.0


@dataclass(slots=True)
class Asked:
    """One request as the target got it, read by h11."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader
    rest: bytes = b""  # of an upgrade: what came behind it

    def get(self, name: str) -> str | None:
        return next((value for found, value in self.headers if found == name), None)

    def say(self, data: bytes) -> None:
        self.writer.write(data)


Answer = Callable[[Asked], Awaitable[None] | None]


def ok(body: bytes = b'{"kind":"Status","status":"Success"}', *fields: str, code: str = "200 OK") -> bytes:
    """An answer of the target."""
    lines = [f"HTTP/1.1 {code}", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1") + body


def fine(asked: Asked) -> None:
    """The target that does its work."""
    asked.say(ok())


class Tokens(FakeIdentities):
    """Two users with a token each."""

    def __init__(self) -> None:
        super().__init__()
        self.users = {
            TOKEN: self.identity,
            OTHER_TOKEN: Identity("bob@acme.com", frozenset({"dev"}), proof="1" * 64),
        }
        self.revoked_tokens: set[str] = set()

    async def password(self, user: str, secret: str) -> Identity:
        if secret not in self.users or secret in self.revoked_tokens:
            raise LoginRefused("the token was not accepted")
        return self.users[secret]

    def valid(self, identity: Identity) -> bool:
        return all(self.users[token].proof != identity.proof for token in self.revoked_tokens)


@dataclass
class Stage:
    """The gateway, its target, and what each has seen."""

    gate: Gate
    target: Target
    port: int = 0
    user_context: ssl.SSLContext | None = None
    answer: Answer = fine
    asked: list[Asked] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what h11 refused
    connections: int = 0
    errors: list[BaseException] = field(default_factory=list)  # what came out of serve()
    commands: list[Command] = field(default_factory=list)
    served: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    users: list[User] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tapes(self) -> list[FakeTape]:
        recorder = self.gate.recorder
        assert isinstance(recorder, FakeRecorder)
        return recorder.tapes

    def taped(self) -> bytes:
        """Every byte that is on a tape."""
        return b"\n".join(payload for tape in self.tapes for _, _, payload in tape.records)

    def of(self, kind: Kind) -> list[Any]:
        return [each for tape in self.tapes for each in tape.of(kind)]

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not true():
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await self.changed.wait()

    async def user(self) -> User:
        """A connection of a user."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.user_context, server_hostname="localhost", limit=1 << 20
        )
        user = User(self, reader, writer)
        self.users.append(user)
        return user

    async def ask(self, data: bytes) -> Got:
        """One connection, these bytes, the first answer."""
        user = await self.user()
        try:
            user.send(data)
            return await user.answer()
        finally:
            user.close()

    # -- the target -----------------------------------------------------------------------------------

    async def serve_target(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        parser = h11.Connection(h11.SERVER)
        try:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await self._requests(parser, reader, writer)
        finally:
            self.open.discard(writer)
            self.changed.set()
            writer.transport.abort()

    async def _requests(
        self, parser: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request: h11.Request | None = None
        body = b""
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                self.faults.append(str(error))
                return
            match event:
                case h11.NEED_DATA:
                    parser.receive_data(await reader.read(1 << 16))
                case h11.Request():
                    request, body = event, b""
                case h11.Data():
                    body += bytes(event.data)
                case h11.EndOfMessage():
                    assert request is not None
                    headers = [(name.decode(), value.decode("latin-1")) for name, value in request.headers]
                    asked = Asked(
                        request.method.decode(), request.target.decode(), headers, body, writer, reader,
                        parser.trailing_data[0],
                    )  # fmt: skip
                    self.asked.append(asked)
                    self.changed.set()
                    done = self.answer(asked)
                    if done is not None:
                        await done
                    await writer.drain()
                    if asked.get("upgrade"):
                        return
                    parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    parser.send(h11.EndOfMessage())
                    parser.start_next_cycle()
                case h11.PAUSED:
                    return
                case h11.ConnectionClosed():
                    return


@dataclass(slots=True)
class Got:
    """An answer that a user got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    raw: bytes

    def get(self, name: str) -> str | None:
        return next((value for found, value in self.headers if found == name), None)

    @property
    def message(self) -> str:
        """What a Status says."""
        found = json.loads(self.body)
        assert found["kind"] == "Status" and found["code"] == self.status, self.body
        return str(found["message"])


@dataclass(slots=True)
class User:
    """A hostile user's connection: raw bytes."""

    stage: Stage
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    buffer: bytearray = field(default_factory=bytearray)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def close(self) -> None:
        self.writer.transport.abort()

    async def _more(self) -> None:
        try:
            data = await self.reader.read(1 << 16)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            raise EOFError(bytes(self.buffer[-500:]))
        self.buffer += data

    async def head(self) -> tuple[int, list[tuple[str, str]], bytes]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (end := self.buffer.find(b"\r\n\r\n")) < 0:
                await self._more()
        raw = bytes(self.buffer[: end + 4])
        del self.buffer[: end + 4]
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return int(first.split(" ")[1]), headers, raw

    async def answer(self, *, head: bool = False) -> Got:
        """The next answer. Raises EOFError where it is cut off."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            status, headers, raw = await self.head()
            named = dict(headers)
            body = b""
            if head or status in (101, 204, 304):
                pass
            elif named.get("transfer-encoding") == "chunked":
                while size := int(await self._line(), 16):
                    body += await self._exactly(size)
                    assert await self._line() == b""
                assert await self._line() == b""
            else:
                body = await self._exactly(int(named.get("content-length", 0)))
        return Got(status, headers, body, raw)

    async def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            await self._more()
        found = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            await self._more()
        found = bytes(self.buffer[:size])
        del self.buffer[:size]
        return found

    async def rest(self) -> bytes:
        """All that comes to the end of the connection."""
        with contextlib.suppress(EOFError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    await self._more()
        found = bytes(self.buffer)
        self.buffer.clear()
        return found


def request(
    method: str = "GET", path: str = PODS, *fields: str, body: bytes = b"", token: str = TOKEN, target: str = "shop"
) -> bytes:
    """A request of a user. A body comes with its length."""
    lines = [f"{method} /k8s/{target}{path} HTTP/1.1", "Host: gate"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "".join(f"{line}\r\n" for line in (*lines, *fields, "")).encode("latin-1") + body


def upgrade(path: str = EXEC, *fields: str, protocol: str = "v5.channel.k8s.io", token: str = TOKEN) -> bytes:
    """The handshake of a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    more = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
    return request("GET", path, *more, f"Sec-WebSocket-Protocol: {protocol}", *fields, token=token)


Rule = Callable[[Command], Verdict]


@contextlib.asynccontextmanager
async def staged(
    rule: Rule = allow_all, answer: Answer = fine, settings: Mapping[str, Any] | None = None, **more: Any
) -> AsyncIterator[Stage]:
    """Run it all. settings: of the target; more: services of the gate."""
    with tempfile.TemporaryDirectory(prefix="gatecast-") as name:
        folder = Path(name)
        self_signed(folder, ["localhost"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        user_context = ssl.create_default_context(cafile=str(folder / "tls.crt"))
        kept = Kept()
        stage: Stage

        def noted(command: Command) -> Verdict:
            stage.commands.append(command)
            stage.changed.set()
            return rule(command)

        async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await stage.serve_target(reader, writer)

        upstream = await asyncio.start_server(target, "127.0.0.1", 0, ssl=context)
        given = {"ca_file": str(folder / "tls.crt"), "server_name": "localhost", **(settings or {})}
        where = Target(
            "shop", "kubernetes", host="127.0.0.1", port=upstream.sockets[0].getsockname()[1], settings=given
        )
        gate = fake_gate(
            noted, where, replace(where, name="other"),
            **{"identities": Tokens(), "shell": read_shell, "residents": kept,
               "settings": {"tls": context, "login_seconds": 10.0}, **more},
        )  # fmt: skip
        stage = Stage(gate, where, answer=answer, user_context=user_context)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        stage.port = listening.getsockname()[1]
        tasks: set[asyncio.Task[None]] = set()

        async def one(sock: socket.socket) -> None:
            try:
                await serve(SocketStream(sock, "user", server_side=True), gate)
            except Exception as error:  # a bug: serve() raises nothing
                stage.errors.append(error)
            finally:
                stage.served += 1
                stage.changed.set()

        async def accept() -> None:
            loop = asyncio.get_running_loop()
            while True:
                sock, _ = await loop.sock_accept(listening)
                task = loop.create_task(one(sock))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        accepting = asyncio.get_running_loop().create_task(accept())
        try:
            yield stage
        finally:
            for user in stage.users:
                user.close()
            accepting.cancel()
            kept.stopping.set()
            for task in [*tasks]:
                task.cancel()
            await asyncio.gather(accepting, *tasks, *kept.tasks, return_exceptions=True)
            listening.close()
            upstream.close()
            for writer in stage.open:
                writer.transport.abort()
            await stage.until(lambda: not stage.open)
        assert not stage.errors, stage.errors
        canaries = (SECRET.encode(), TOKEN.encode(), OTHER_TOKEN.encode())
        assert not [each for each in canaries if each in stage.taped()], "a secret is on a tape"
