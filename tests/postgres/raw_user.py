"""A user that speaks the wire itself, for what no driver sends: batches in one write, names reused, odd orders."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from struct import pack, unpack_from
from types import TracebackType
from typing import Self

from protocols.postgres import startup, wire
from tests.fakes import TOKEN

REPLY_SECONDS = 20.0

Message = tuple[str, bytes]

SYNC = wire.message(wire.SYNC, b"")
FLUSH = wire.message(wire.FLUSH, b"")


def query(text: str) -> bytes:
    return wire.encode_query(text.encode())


def parse(name: str, text: str) -> bytes:
    return wire.encode_parse(name.encode(), text.encode())


def bind(portal: str, statement: str, *values: str, result_format: int = 0) -> bytes:
    body = portal.encode() + b"\0" + statement.encode() + b"\0" + pack(">HH", 0, len(values))
    for value in values:
        body += pack(">I", len(value.encode())) + value.encode()
    return wire.message(wire.BIND, body + pack(">HH", 1, result_format))


def describe(which: str, name: str) -> bytes:
    return wire.encode_named(wire.DESCRIBE, ord(which), name.encode())


def close(which: str, name: str) -> bytes:
    return wire.encode_named(wire.CLOSE, ord(which), name.encode())


def execute(portal: str, limit: int = 0) -> bytes:
    return wire.message(wire.EXECUTE, portal.encode() + b"\0" + pack(">I", limit))


class RawUser:
    """One logged-in connection of raw messages."""

    def __init__(self, port: int, **parameters: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), REPLY_SECONDS)
        self._buffer = b""
        self.send(startup.encode_startup({"user": "agent", "database": "shop", **parameters}))
        for kind, body in self._until("R"):
            assert kind == "R" and body[:4] == b"\0\0\0\x03", (kind, body)
        self.send(startup.encode_message(b"p", TOKEN.encode() + b"\0"))
        self.opening = self.until_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.send(wire.message(wire.TERMINATE, b""))
        self._socket.close()

    def send(self, *messages: bytes) -> None:
        """Send in one write."""
        self._socket.sendall(b"".join(messages))

    def ask(self, *messages: bytes, syncs: int = 1) -> list[Message]:
        """Send in one write, then read until that many ReadyForQuery have come."""
        self.send(*messages)
        return [message for _ in range(syncs) for message in self.until_ready()]

    def until_ready(self) -> list[Message]:
        """Read up to and with the next ReadyForQuery."""
        return list(self._until("Z"))

    def _until(self, last: str) -> Iterator[Message]:
        while True:
            message = self.read()
            yield message
            if message[0] == last:
                return

    def read(self) -> Message:
        """Read one message."""
        while len(self._buffer) < 5 or len(self._buffer) < 1 + unpack_from(">I", self._buffer, 1)[0]:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        end = 1 + unpack_from(">I", self._buffer, 1)[0]
        kind, body = chr(self._buffer[0]), self._buffer[5:end]
        self._buffer = self._buffer[end:]
        return kind, body


def kinds(messages: list[Message]) -> str:
    """The types of messages, notices and reports left out."""
    return "".join(kind for kind, _ in messages if kind not in "NS")


def errors(messages: list[Message]) -> list[str]:
    """The SQLSTATEs of the errors among messages."""
    return [startup.error_fields(body)["C"] for kind, body in messages if kind == "E"]


def rows(messages: list[Message]) -> list[list[bytes | None]]:
    """The cells of all rows."""
    found: list[list[bytes | None]] = []
    for kind, body in messages:
        if kind != "D":
            continue
        place, cells = 2, []
        for _ in range(unpack_from(">H", body)[0]):
            (size,) = unpack_from(">i", body, place)
            place += 4
            cells.append(None if size < 0 else body[place : place + size])
            place += max(size, 0)
        found.append(cells)
    return found
