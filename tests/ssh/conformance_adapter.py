"""SSH's part in the conformance suite: a server that answers the suite's vocabulary as commands, and a user.

Both are asyncssh's; what they say to the gate is SSH to the last byte. A word is the command line of an exec, each on
a channel of its own, one after the other. The bytes that the suite compares are those within the channels: what is on
the wire is encrypted, with other keys on either leg. A remark is text on stderr; it is a failure's if the exit status
is not 0. There are no transactions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

import asyncssh

from protocols.ssh import PROTOCOL
from protocols.ssh.lobby import FIRST_NUMBER
from protocols.ssh.records import PACKET_LIMIT
from proxy.core.doors import SshDoor
from proxy.core.gate import Gate
from proxy.core.parties import Secret, Target
from proxy.core.stream import MemoryStream
from proxy.policy.shell import read_shell
from tests.conformance import CANARY, FLOOD_BYTES, Reply
from tests.fakes import SECRET

# Data of a channel that nobody has opened. A message of an unknown type would be no violation: RFC 4253 11.4.
CHANNEL_DATA = 94
NOWHERE = (4711).to_bytes(4, "big") + (7).to_bytes(4, "big") + b"write 1"
# What fits into the largest packet beside padding (5 bytes) and an exec's own fields (18 bytes).
ARGV_LIMIT = PACKET_LIMIT - 5 - 18
KEEP_BYTES = 1 << 20
PAUSE_BYTES = 64 * 1024  # what a user who does not read takes before its window does the rest

_HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")


class Server:
    """See tests/conformance.Backend."""

    def __init__(self) -> None:
        self.target = Target("shop", "ssh")
        self.commands: list[str] = []
        self.connections = 0
        self.received = bytearray()
        self.sent = bytearray()
        self.sent_bytes = 0
        self.secret_seen = False
        self.on_command: Any = None

    async def answer(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        word = process.command or ""
        self.received += word.encode() + b"\n"
        self.commands.append(word.rstrip())
        self.on_command(word)
        word, _, number = word.partition(" ")
        out, err = process.stdout, process.stderr
        with contextlib.suppress(BrokenPipeError, ConnectionError, asyncssh.Error):
            match word:
                case "read":
                    self._say(out, f"{number}\t{CANARY}\n")
                case "bulk":
                    self._say(out, f"1\t{CANARY}\n" * 3)
                case "notice":
                    self._say(err, f"seen {CANARY}\n")
                case "error":
                    self._say(err, f"duplicate key ({CANARY})\n")
                case "secret":
                    self._say(err, f"I was given {SECRET}\n")
                case "later":
                    self._exit(process, 0)
                    self._say(err, f"by the way {CANARY}\n")
                    process.close()
                    return
                case "flood":
                    while self.sent_bytes < FLOOD_BYTES:
                        self._say(out, "x" * 400 + "\t" + "y" * 622 + "\n")
                        await out.drain()
                case "garbage":
                    process.channel.get_connection().send_packet(CHANNEL_DATA, NOWHERE)
                    return
                case "stall":
                    await asyncio.Event().wait()
                case "write" | "begin" | "end":
                    pass
                case _:
                    self._say(err, "that did not work\n")
            process.exit(1 if word in ("error", "secret", "fail") else 0)

    @staticmethod
    def _exit(process: asyncssh.SSHServerProcess[bytes], status: int) -> None:
        channel: Any = process.channel
        channel._send_request(b"exit-status", asyncssh.packet.UInt32(status))

    def _say(self, writer: asyncssh.SSHWriter[bytes], text: str) -> None:
        data = text.encode()
        self.sent_bytes += len(data)
        if len(self.sent) < KEEP_BYTES:
            self.sent += data
        writer.write(data)


class _Door(asyncssh.SSHServer):
    def __init__(self, backend: Server) -> None:
        self._backend = backend

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._backend.connections += 1

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        self._backend.secret_seen = password == SECRET
        return self._backend.secret_seen


class _Exec(asyncssh.SSHClientSession[bytes]):
    """One word on its channel: what came, in order, until it is heard."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._channel: Any = None
        self.events: deque[tuple[str, bytes]] = deque()
        self.more = asyncio.Event()
        self.closed = asyncio.Event()

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan
        chan.resume_reading()  # else what comes before the exec's reply waits for it

    def _put(self, what: str, data: bytes = b"") -> None:
        self.events.append((what, data))
        self.more.set()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._user.arrived(data)
        self._put("err" if datatype else "out", data)
        if sum(len(each) for _, each in self.events) > PAUSE_BYTES:
            self._channel.pause_reading()

    def exit_status_received(self, status: int) -> None:
        self._put("exit", str(status).encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self._put("lost" if exc is not None else "closed", str(exc or "").encode())
        self.closed.set()

    async def next(self) -> tuple[str, bytes]:
        while not self.events:
            self.more.clear()
            await self.more.wait()
        event = self.events.popleft()
        if not self.events and not self.closed.is_set():
            self._channel.resume_reading()
        return event


class User:
    """See tests/conformance.Caller."""

    def __init__(self, connection: asyncssh.SSHClientConnection, group: asyncio.TaskGroup | None = None) -> None:
        self._connection = connection
        self._words: deque[str] = deque()
        self._execs: deque[_Exec] = deque()
        self._started = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._late = ""
        self.over: str | None = None
        self.sent = bytearray()
        self.heard = bytearray()
        self.on_heard: Any = None

    def arrived(self, data: bytes) -> None:
        if self.on_heard is not None:
            self.on_heard(data)
        if len(self.heard) < KEEP_BYTES:
            self.heard += data

    def lost(self, exc: Exception | None) -> None:
        self.over = str(exc or "closed")
        self._started.set()

    async def say(self, *words: str) -> None:
        self._words.extend(words)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._words and self.over is None:
            word = self._words.popleft()
            self.sent += word.encode() + b"\n"
            running = _Exec(self)
            self._execs.append(running)
            self._started.set()
            try:
                await self._connection.create_session(lambda: running, word, encoding=None)  # noqa: B023
            except (asyncssh.Error, OSError) as error:
                if not running.closed.is_set():
                    running.connection_lost(error)
            await running.closed.wait()

    async def violate(self) -> None:
        self._connection.send_packet(CHANNEL_DATA, NOWHERE)

    async def _current(self) -> _Exec | None:
        while not self._execs:
            if self.over is not None:
                return None
            self._started.clear()
            await self._started.wait()
        return self._execs[0]

    async def hear(self) -> Reply:
        reply = Reply()
        late, self._late = self._late, ""
        running = await self._current()
        status: int | None = None
        texts: list[str] = [late] if late else []
        out = bytearray()
        err = bytearray()
        while running is not None:
            what, data = await running.next()
            match what:
                case "out":
                    out += data
                case "err" if status is None:
                    err += data
                case "err":
                    self._late += data.decode()
                case "exit":
                    status = int(data)
                case "lost":
                    err += data
                    break
                case _:
                    break
        if running is not None:
            self._execs.popleft()
        reply.cells = [cell for line in out.decode().splitlines() for cell in line.split("\t")]
        reply.raw = bytes(out + err)
        if status is None:
            # The channel's end without a status: the connection's, whose last words are the reason.
            while self.over is None:
                self._started.clear()
                await self._started.wait()
            reply.ended = True
        text = err.decode() + (f" {self.over}" if reply.ended else "")
        if status == 0:
            reply.notes = [*texts, *([text] if text else [])]
        else:
            reply.notes = texts
            reply.error = text
        return reply

    async def note(self) -> str:
        running = await self._current()
        assert running is not None
        what, data = await running.next()
        assert what == "err", (what, data)
        return data.decode()


class _Client(asyncssh.SSHClient):
    def __init__(self) -> None:
        self.user: User | None = None
        self.reason: Exception | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.reason = exc
        if self.user is not None:
            self.user.lost(exc)


class SshAdapter:
    """See tests/conformance.Adapter."""

    protocol = PROTOCOL
    limit = ARGV_LIMIT
    streams = True
    cut = ()
    transactions = False

    @property
    def settings(self) -> Mapping[str, Any]:
        key = _HOST_KEY.export_private_key().decode()
        return {"ssh": SshDoor((Secret(key),), lambda name: ()), "login_seconds": 10.0}

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Server]:
        backend = Server()
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _Door(backend),
            server_host_keys=[_HOST_KEY],
            process_factory=backend.answer,
            encoding=None,
            config=None,
            line_editor=False,
        )
        public = _HOST_KEY.export_public_key().decode().strip()
        backend.target = Target(
            "shop", "ssh", host="127.0.0.1", port=server.get_port(), settings={"host_keys": (public,), "login": "gate"}
        )
        try:
            yield backend
        finally:
            server.close()
            await server.wait_closed()

    def prepare(self, gate: Gate) -> None:
        object.__setattr__(gate, "shell", read_shell)

    async def login(self, user: MemoryStream, token: str, target: str) -> User | str:
        client = _Client()
        loop = asyncio.get_running_loop()
        options = await asyncssh.SSHClientConnectionOptions.construct(
            client_factory=lambda: client,
            known_hosts=None,
            username=f"gate:{target}",
            password=token,
            client_keys=None,
            agent_path=None,
            config=None,
            gss_host=None,
            keepalive_interval=0,
            preferred_auth=("password",),
        )
        options.waiter = loop.create_future()
        connection: Any = asyncssh.SSHClientConnection(loop, options, wait="auth")
        connection.set_extra_info(remote_peername=("memory", 22))
        try:
            await user.hand_over(connection)
            await options.waiter
            # asyncssh keeps the reason of a DISCONNECT (11, by application) to itself, but where somebody waits.
            connection._wait, connection._waiter = "auth", None
            made = client.user = User(connection)
            if await self._probe(connection):
                await connection.wait_closed()
                return str(client.reason)
        except (asyncssh.Error, OSError) as error:
            await connection.wait_closed()
            return str(client.reason or error)
        return made

    @staticmethod
    async def _probe(connection: asyncssh.SSHClientConnection) -> bool:
        """Open a session that starts nothing; returns whether the lobby has let it in, for there is no target."""
        loop = asyncio.get_running_loop()
        probe: Any = asyncssh.SSHClientChannel(connection, loop, "strict", None, "strict", 1 << 16, 1 << 15)
        await probe._open(b"session")
        probe._session = asyncssh.SSHClientSession()
        in_lobby = probe._send_chan == FIRST_NUMBER
        probe.close()
        await probe.wait_closed()
        return in_lobby

    def text(self, word: str) -> str:
        return word

    def sized(self, size: int) -> str:
        return "write ".ljust(size, "x")

    def own_words(self, data: bytes) -> bool:
        return True


ADAPTER = SshAdapter()
