"""A raw-socket PostgreSQL client that costs next to nothing: it looks for ReadyForQuery and throws the rest away.

A real client spends more CPU on a row than any proxy; beside it, on two cores, a slow proxy would look fast.
Left out: everything that a measurement does not need (TLS, SCRAM, asynchronous messages between answers).
Specification: PostgreSQL docs, chapter "Message Formats".
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from benchmarks.world import Route

# ReadyForQuery. No row of ours holds it, so that the end of a stream can be told by its last bytes.
_READY: Final = (b"Z\0\0\0\5I", b"Z\0\0\0\5T", b"Z\0\0\0\5E")
TIMEOUT_SECONDS: Final = 120.0


class RawClient:
    """One connection. Raises RuntimeError with the server's text for any ErrorResponse."""

    def __init__(self, route: Route, buffer_bytes: int = 256 * 1024) -> None:
        self._buffer = bytearray(buffer_bytes)
        self._view = memoryview(self._buffer)
        self._socket = socket.create_connection((route.host, route.port), timeout=TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = b"".join(
            part.encode() + b"\0"
            for part in ("user", route.user, "database", route.database, "application_name", "raw")
        )
        self._socket.sendall(struct.pack(">ii", len(body) + 9, 196608) + body + b"\0")
        head = self._exactly(9)
        if head[:1] == b"R" and head[5:9] == b"\0\0\0\3":  # AuthenticationCleartextPassword
            secret = route.password.encode() + b"\0"
            self._socket.sendall(b"p" + struct.pack(">i", len(secret) + 4) + secret)
        self.answer()

    def query(self, text: str) -> int:
        """Run a simple query; return how many bytes its answer had."""
        body = text.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack(">i", len(body) + 4) + body)
        return self.answer()

    def fetch(self, text: str) -> bytes:
        """Run a query with a small answer and return all of it. Errors are returned, not raised."""
        body = text.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack(">i", len(body) + 4) + body)
        found = b""
        while found[-6:] not in _READY:
            found += self._some()
        return found

    def answer(self) -> int:
        """Read up to and with ReadyForQuery; return the number of bytes."""
        size = 0
        tail = b""
        receive, view = self._socket.recv_into, self._view
        while tail not in _READY:
            count = receive(view)
            if not count:
                raise RuntimeError("the connection was closed")
            if not size and view[0] == ord("E"):
                raise RuntimeError(bytes(view[5:count]).replace(b"\0", b" ").decode("utf-8", "replace"))
            size += count
            tail = bytes(view[count - 6 : count]) if count >= 6 else (tail + bytes(view[:count]))[-6:]
        return size

    def close(self) -> None:
        """Say goodbye and wait for the other side to close, so that its work is counted."""
        self._socket.sendall(b"X\0\0\0\4")
        while self._socket.recv_into(self._view):
            pass
        self._socket.close()

    def _some(self) -> bytes:
        count = self._socket.recv_into(self._view)
        if not count:
            raise RuntimeError("the connection was closed")
        return bytes(self._view[:count])

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            count = self._socket.recv_into(self._view[: size - len(found)])
            if not count:
                raise RuntimeError("the connection was closed")
            found += bytes(self._view[:count])
        if found[:1] == b"E":
            found += bytes(self._view[: self._socket.recv_into(self._view)])
            raise RuntimeError(found[5:].replace(b"\0", b" ").decode("utf-8", "replace"))
        return found
