"""What carries port-forward's SPDY: the connection itself, or binary messages of a WebSocket. Sans-IO, either end.

Each binary message is a slice of the byte stream, cut anywhere (subprotocol SPDY/3.1+portforward.k8s.io). Pings are
answered here; a close ends the stream. Specification: kubernetes note 5; RFC 6455 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from proxy.core.http import websocket as ws

SUBPROTOCOL: Final = "SPDY/3.1+portforward.k8s.io"


@dataclass(slots=True)
class Slice:
    """What came: bytes of the stream, what is to be sent back, and whether the other side has ended."""

    data: bytes = b""
    reply: bytes = b""
    over: bool = False


@dataclass(slots=True)
class Tunnel:
    """One end of what carries the stream. user: it is the user's end, so we are its server."""

    websocket: bool
    user: bool
    _frames: ws.Decoder = field(init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._frames = ws.Decoder(masked=self.user)

    def receive(self, data: bytes) -> Slice:
        """Take bytes that came. Raises UserPeerError or TargetPeerError."""
        if not self.websocket:
            return Slice(data)
        found = Slice()
        parts = []
        for frame in self._frames.feed(data):
            match frame.opcode:
                case ws.PING:
                    found.reply += self._encode(ws.PONG, frame.payload)
                case ws.CLOSE:
                    found.over = True
                case ws.PONG:
                    pass
                case _:  # where messages begin and end says nothing here
                    parts.append(frame.payload)
        found.data = b"".join(parts)
        return found

    def send(self, data: bytes) -> bytes:
        """Carry bytes of the stream."""
        return self._encode(ws.BINARY, data) if self.websocket and data else data

    def ping(self) -> bytes:
        """Return a ping of the carrier; b"" where it has none."""
        return self._encode(ws.PING, b"") if self.websocket else b""

    def close(self) -> bytes:
        """End the carrier in order."""
        if not self.websocket or self._closed:
            return b""
        self._closed = True
        return ws.encode_close(ws.NORMAL, mask=not self.user)

    def _encode(self, opcode: int, payload: bytes) -> bytes:
        return ws.encode(opcode, payload, mask=not self.user)
