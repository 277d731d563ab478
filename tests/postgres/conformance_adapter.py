"""PostgreSQL's part in the conformance suite: a server that answers the suite's vocabulary, and a user.

The server speaks the protocol on a port of 127.0.0.1: it asks for a cleartext password, answers simple queries by the
word in their comment, keeps a transaction's state, and rejects any text without one as a syntax error, as a real one
rejects the replacement of a refused statement. Its catalogue is put in place of the one that is read over SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from protocols.postgres import PROTOCOL, startup, wire
from protocols.postgres.meaning import Known
from protocols.postgres.world import World
from proxy.core.gate import Gate
from proxy.core.parties import Credential, Target
from proxy.core.stream import MemoryStream, read_exactly
from proxy.policy.sql import SqlReader
from tests.conformance import CANARY, FLOOD_BYTES, Reply
from tests.fakes import SECRET

QUERY_LIMIT = 4096
COLUMNS = ("id", "email")
RELATION = 16400
TEXT_OID = 25
_WORD = re.compile(r"/\* (.*?) *\*/")


def message(kind: str, body: bytes = b"") -> bytes:
    return wire.message(ord(kind), body)


def rows_head() -> bytes:
    fields = b"".join(
        name.encode() + b"\0" + wire.FIELD.pack(RELATION, i + 1, TEXT_OID, -1, -1, 0) for i, name in enumerate(COLUMNS)
    )
    return message("T", struct.pack(">h", len(COLUMNS)) + fields)


def row(*cells: str) -> bytes:
    body = b"".join(struct.pack(">i", len(cell)) + cell.encode() for cell in cells)
    return message("D", struct.pack(">h", len(cells)) + body)


def failure(code: str, text: str, detail: str = "") -> bytes:
    fields = {"S": "ERROR", "V": "ERROR", "C": code, "M": text, **({"D": detail} if detail else {})}
    return startup.encode_error(fields)


def done(tag: str) -> bytes:
    return message("C", tag.encode() + b"\0")


class Server:
    """See tests/conformance.Backend."""

    def __init__(self) -> None:
        self.target = Target("shop", "postgres")
        self.commands: list[str] = []
        self.connections = 0
        self.received = bytearray()
        self.sent = bytearray()
        self.sent_bytes = 0
        self.secret_seen = False
        self.on_command: Any = None

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._login(reader, writer)
            state = "I"
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(wire.U32.unpack_from(head, 1)[0] - 4)
                self.received += head + body
                match head[:1]:
                    case b"X":
                        break
                    case b"Q":
                        state = await self._answer(writer, body[:-1].decode(), state)
                    case _:
                        break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(wire.U32.unpack(await reader.readexactly(4))[0] - 4)
        writer.write(startup.encode_auth(startup.AUTH_CLEARTEXT))
        head = await reader.readexactly(5)
        password = await reader.readexactly(wire.U32.unpack_from(head, 1)[0] - 4)
        self.secret_seen = password == SECRET.encode() + b"\0"
        writer.write(
            startup.encode_auth(startup.AUTH_OK)
            + startup.encode_parameter_status("client_encoding", "UTF8")
            + startup.encode_parameter_status("standard_conforming_strings", "on")
            + startup.encode_backend_key(4711, b"key!")
            + message("Z", b"I")
        )

    async def _answer(self, writer: asyncio.StreamWriter, text: str, state: str) -> str:
        async def send(data: bytes) -> None:
            self.sent_bytes += len(data)
            if len(self.sent) < 1 << 20:
                self.sent += data
            writer.write(data)
            await writer.drain()

        found = _WORD.search(text)
        word, _, number = found[1].partition(" ") if found and not text.startswith("gatecast_denied") else ("", "", "")
        if word:
            assert found is not None
            self.commands.append(found[1])
            self.on_command(found[1])
        if state == "E" and word not in ("end", ""):
            await send(failure("25P02", "current transaction is aborted") + message("Z", b"E"))
            return state
        match word:
            case "read":
                await send(rows_head() + row(number, CANARY) + done("SELECT 1"))
            case "notice":
                fields = {"S": "NOTICE", "V": "NOTICE", "C": "00000", "M": f"seen {CANARY}"}
                notified = wire.encode_notification(4711, b"ch", CANARY.encode())
                await send(startup.encode_error(fields, b"N") + notified + done("DO"))
            case "bulk":
                lines = b"".join(message("d", f"{i}\t{CANARY}\n".encode()) for i in range(3))
                await send(message("H", b"\0\0\2\0\0\0\0") + lines + message("c") + done("COPY 3"))
            case "flood":
                await send(rows_head())
                while self.sent_bytes < FLOOD_BYTES:
                    await send(row("x" * 400, "y" * 600))
                await send(done("SELECT 1"))
            case "garbage":
                await send(message("?", b"what"))
            case "stall":
                await asyncio.Event().wait()
            case "begin":
                state = "T"
                await send(done("BEGIN"))
            case "end":
                await send(done("COMMIT" if state == "T" else "ROLLBACK"))
                state = "I"
            case "write" | "later":
                await send(done("INSERT 0 1"))
            case "" if not text.startswith("gatecast_denied"):
                await send(done("SELECT 0"))  # whatever parses is carried out: only certain errors may replace
            case _:
                quoted = {
                    "error": failure("23505", "duplicate key", f"Key (email)=({CANARY}) already exists."),
                    "secret": failure("XX000", f"I was given {SECRET}"),
                    "fail": failure("22012", "division by zero"),
                }
                state = "E" if state in "TE" else "I"
                await send(quoted.get(word, failure("42601", "syntax error")))
        await send(message("Z", state.encode()))
        if word == "later":
            fields = {"S": "WARNING", "V": "WARNING", "C": "01000", "M": f"by the way {CANARY}"}
            await send(startup.encode_error(fields, b"N"))
        return state


class User:
    """See tests/conformance.Caller."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.sent = bytearray()
        self.heard = bytearray()
        self.on_heard: Any = None

    async def say(self, *words: str) -> None:
        data = b"".join(wire.encode_query(ADAPTER.text(word).encode()) for word in words)
        self.sent += data
        await self.stream.write(data)

    async def violate(self) -> None:
        await self.stream.write(message("~", b"INSERT /* write 1 */\0"))

    async def _message(self) -> tuple[bytes, bytes]:
        try:
            head = await read_exactly(self.stream, 5)
            body = await read_exactly(self.stream, wire.U32.unpack_from(head, 1)[0] - 4)
        except EOFError:
            return b"", b""
        self.heard += head + body
        return head, body

    async def hear(self) -> Reply:
        reply = Reply()
        while True:
            head, body = await self._message()
            reply.raw += head + body
            match head[:1]:
                case b"":
                    reply.ended = True
                    return reply
                case b"D":
                    pos = 2
                    while pos < len(body):
                        (size,) = struct.unpack_from(">i", body, pos)
                        reply.cells.append(body[pos + 4 : pos + 4 + max(0, size)].decode())
                        pos += 4 + max(0, size)
                case b"d":
                    reply.cells += body.decode().rstrip("\n").split("\t")
                case b"E":
                    fields = startup.error_fields(body)
                    reply.error = " ".join(fields.get(key, "") for key in "CMDH")
                case b"N":
                    reply.notes.append(startup.error_fields(body)["M"])
                case b"A":
                    reply.notes.append(wire.parse_notification(head + body)[2].decode())
                case b"Z":
                    reply.state = body.decode()
                    return reply

    async def note(self) -> str:
        head, body = await self._message()
        assert head[:1] == b"N", head
        return startup.error_fields(body)["M"]


@dataclass(frozen=True)
class _Column:
    name: str
    attnum: int
    type_oid: int = TEXT_OID
    type_mod: int = -1
    table_oid: int = RELATION


class _Catalog:
    """public.people (id, email), known without asking."""

    version = 1
    old = False
    search_path = ("public",)

    def resolve(self, name: str, search_path: object) -> tuple[str, ...]:
        return (f"public.{name}",)

    def bases(self, name: str) -> frozenset[str]:
        return frozenset((name,))

    def known(self, name: str) -> Known:
        return Known(None)

    def hides(self, name: str) -> bool:
        return False

    def function_name(self, oid: int) -> None:
        return None

    def origins(self, table_oid: int, attnum: int) -> tuple[str, ...]:
        return (f"public.people.{COLUMNS[attnum - 1]}",)

    def columns(self, relation: str) -> tuple[_Column, ...]:
        return tuple(_Column(name, i + 1) for i, name in enumerate(COLUMNS))

    def user_type(self, oid: int) -> None:
        return None

    def stale(self) -> None:
        pass


class _Worlds:
    async def world(self, target: Target, credential: Credential) -> World:
        return World(_Catalog(), target)  # type: ignore[arg-type]  # what World asks of it is all there


class PostgresAdapter:
    """See tests/conformance.Adapter."""

    protocol = PROTOCOL
    limit = QUERY_LIMIT
    streams = False
    cut = ()
    transactions = True

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"plain_allowed": True, "query_limit": QUERY_LIMIT}

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Server]:
        backend = Server()
        async with asyncio.TaskGroup() as group:
            tasks: set[asyncio.Task[None]] = set()

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                tasks.add(group.create_task(backend.talk(reader, writer)))

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            backend.target = Target(
                "shop", "postgres", host="127.0.0.1", port=port, database="d", settings={"sslmode": "disable"}
            )
            try:
                yield backend
            finally:
                server.close()
                for task in tasks:
                    task.cancel()
                await server.wait_closed()

    def prepare(self, gate: Gate) -> None:
        gate.shared["postgres.worlds"] = _Worlds()
        object.__setattr__(gate, "reader", SqlReader())

    async def login(self, user: MemoryStream, token: str, target: str) -> User | str:
        await user.write(startup.encode_startup({"user": "agent", "database": target}))
        caller = User(user)
        while True:
            head, body = await caller._message()
            match head[:1]:
                case b"R" if body == wire.U32.pack(startup.AUTH_CLEARTEXT):
                    await user.write(startup.encode_password(token.encode()))
                case b"E":
                    fields = startup.error_fields(body)
                    return f"{fields['C']} {fields['M']} {fields.get('H', '')}"
                case b"Z":
                    return User(user)
                case b"":
                    return "closed"

    def text(self, word: str) -> str:
        verb = {
            "read": "SELECT id, email FROM people", "bulk": "COPY people TO STDOUT", "begin": "BEGIN", "end": "COMMIT",
            "flood": "SELECT id, email FROM people", "notice": "SELECT say()",
        }.get(word.split(" ")[0], "INSERT INTO log VALUES (1)")  # fmt: skip
        return f"{verb} /* {word} */"

    def sized(self, size: int) -> str:
        # The limit is on the message's length field: 4 bytes of its own and the text's NUL.
        return "write ".ljust(6 + size - 5 - len(self.text("write ")), "x")

    def own_words(self, data: bytes) -> bool:
        return data[:1] in (b"R", b"v") or b"\0VFATAL\0" in data[:40]


ADAPTER = PostgresAdapter()
