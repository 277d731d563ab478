"""The stand-in's end of a WebSocket (RFC 6455): the tests' own codec, not the gateway's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

from tests.peers.kube.http import Connection, Request

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
MESSAGE_LIMIT: Final = 1 << 22


async def accept(connection: Connection, request: Request, protocol: str) -> WebSocket:
    """Answer a handshake; protocol "" selects none."""
    key = base64.b64encode(hashlib.sha1(request.headers["sec-websocket-key"].encode() + _GUID).digest()).decode()
    chosen = [f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []
    await connection.switch("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {key}", *chosen)
    return WebSocket(connection)


class WebSocket:
    """A server's end. pings counts those that came."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._part = b""
        self._closed = False
        self.pings = 0
        self.unmasked = 0

    async def receive(self) -> bytes | None:
        """Return the next message of data; None at the end."""
        reader = self._connection.reader
        while True:
            try:
                first, second = await reader.readexactly(2)
                size = second & 127
                if size > 125:
                    size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
                if size > MESSAGE_LIMIT:
                    await self.close(1009)
                    return None
                mask = await reader.readexactly(4) if second & 128 else b""
                data = await reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError, OSError):
                return None
            if not mask:  # RFC 6455 5.1: a client must mask
                self.unmasked += 1
                await self.close(1002)
                return None
            if any(mask):
                data = _unmask(data, mask)
            match first & 15:
                case 8:
                    await self.close(int.from_bytes(data[:2], "big") if len(data) > 1 else 1000)
                    return None
                case 9:
                    self.pings += 1
                    await self.send(PONG, data)
                case 0 | 1 | 2:
                    self._part += data
                    if first & 128:
                        whole, self._part = self._part, b""
                        return whole

    async def send(self, opcode: int, *parts: bytes) -> None:
        """Send a frame."""
        size = sum(map(len, parts))
        if size < 126:
            head = bytes([128 | opcode, size])
        elif size < 1 << 16:
            head = bytes([128 | opcode, 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([128 | opcode, 127]) + size.to_bytes(8, "big")
        await self._connection.write(head, *parts)

    async def close(self, code: int = 1000) -> None:
        """Send Close, once."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(ConnectionError, OSError, RuntimeError):
                await self.send(CLOSE, code.to_bytes(2, "big"))


def _unmask(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def tunnel(socket: WebSocket) -> tuple[Callable[[], Awaitable[bytes]], Callable[[bytes], Awaitable[None]]]:
    """Return read() and write() of a byte stream that is cut into messages (port-forward's SPDY in WebSocket)."""

    async def read() -> bytes:
        while (message := await socket.receive()) == b"":
            pass
        return message or b""

    async def write(data: bytes) -> None:
        await socket.send(BINARY, data)

    return read, write
