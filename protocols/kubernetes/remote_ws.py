"""exec and attach over WebSocket: the channel protocols, both ends, sans-IO.

A message is a channel's byte and its payload: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; in the base64 forms a
digit and base64, as text. v5 adds 255: one byte, the channel that is half-closed. Binary forms share a codec: a frame
that is a whole message passes from one end to the other as it came. Pings are answered here.

A message in several frames is put together first. Specification: kubernetes note 3; RFC 6455.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Final

from protocols.kubernetes.sizes import read_size
from protocols.kubernetes.streams import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Data,
    End,
    Event,
    Over,
    Reply,
    Status,
    Stream,
)
from proxy.core.errors import PeerError, TargetPeerError, UserPeerError
from proxy.core.http import websocket as ws

CLOSE_CHANNEL: Final = 255
PIECE_BYTES: Final = 32 * 1024  # what servers send at a time, and what kubectl reads at a time; note 3
V5: Final = "v5.channel.k8s.io"
V4: Final = "v4.channel.k8s.io"
V4_BASE64: Final = "v4.base64.channel.k8s.io"
V1: Final = "channel.k8s.io"
V1_BASE64: Final = "base64.channel.k8s.io"
PROTOCOLS: Final = (V5, V4, V4_BASE64, V1, V1_BASE64)
_OUTPUTS: Final = (STDOUT, STDERR)


class _Channels:
    """What both ends share."""

    def __init__(self, protocol: str, user: bool) -> None:
        self._user = user
        self._base64 = "base64" in protocol
        self._v5 = protocol == V5
        self._fault: type[PeerError] = UserPeerError if user else TargetPeerError
        self._frames = ws.Decoder(masked=user)
        self._messages = ws.Messages(masked=user)
        self._split = False  # in the middle of a message of several frames
        self._closing = False

    @property
    def codec(self) -> str:
        """See streams.Leg."""
        return "" if self._base64 else "channels"

    @property
    def ready(self) -> bool:
        """See streams.Leg."""
        return True

    def receive(self, data: bytes) -> list[Event]:
        """See streams.Leg."""
        events: list[Event] = []
        for frame in self._frames.feed(data):
            if frame.opcode == ws.PING:
                events.append(Reply(self._frame(ws.PONG, frame.payload)))
            elif frame.opcode == ws.CLOSE:
                code, reason = ws.decode_close(frame.payload)
                if not self._closing:
                    self._closing = True
                    events.append(Reply(ws.encode_close(ws.NORMAL, mask=not self._user)))
                events.append(Over("" if code in (1000, 1005) else f"WebSocket close {code} {reason}".strip()))
            elif frame.opcode != ws.PONG:
                self._part(frame, events)
        return events

    def _part(self, frame: ws.Frame, events: list[Event]) -> None:
        if frame.fin and not self._split:
            self._message(frame.opcode, frame.payload, frame.wire, events)
            return
        self._split = not frame.fin
        for message in self._messages.feed([frame]):
            self._message(message.opcode, message.payload, b"", events)

    def _message(self, opcode: int, payload: bytes, wire: bytes, events: list[Event]) -> None:
        if self._base64:
            channel, payload = self._decode(opcode, payload)
            wire = b""
        else:
            if opcode != ws.BINARY:
                raise self._fault("a text message where the streams are binary")
            if not payload:
                raise self._fault("a message without a channel")
            channel, payload = payload[0], payload[1:]
        self._said(channel, payload, wire, events)

    def _decode(self, opcode: int, payload: bytes) -> tuple[int, bytes]:
        if opcode != ws.TEXT or not payload or not 48 <= payload[0] <= 57:
            raise self._fault("a message without a channel's digit")
        try:
            return payload[0] - 48, base64.b64decode(payload[1:], validate=True)
        except binascii.Error as error:
            raise self._fault("a message that is not base64") from error

    def _said(self, channel: int, payload: bytes, wire: bytes, events: list[Event]) -> None:
        raise NotImplementedError

    def data(self, stream: Stream, data: bytes) -> bytes:
        """See streams.Leg."""
        if len(data) <= PIECE_BYTES:
            return self._channel(stream, data) if data else b""
        pieces = range(0, len(data), PIECE_BYTES)
        return b"".join(self._channel(stream, data[start : start + PIECE_BYTES]) for start in pieces)

    def end(self, stream: Stream) -> bytes:
        """See streams.Leg."""
        return self._channel(CLOSE_CHANNEL, bytes((stream,))) if self._v5 and stream == STDIN else b""

    def ping(self) -> bytes:
        """See streams.Leg."""
        return self._frame(ws.PING, b"")

    def _channel(self, channel: int, payload: bytes) -> bytes:
        if self._base64:
            return self._frame(ws.TEXT, b"%d" % channel + base64.b64encode(payload))
        return self._frame(ws.BINARY, bytes((channel,)) + payload)

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        return ws.encode(opcode, payload, mask=not self._user)

    def _close(self) -> bytes:
        if self._closing:
            return b""
        self._closing = True
        return ws.encode_close(ws.NORMAL, mask=not self._user)


class WebSocketUser(_Channels):
    """The server's end, towards the user. See streams.UserLeg."""

    def __init__(self, protocol: str, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> None:
        super().__init__(protocol, user=True)
        self._lowest: Stream = STDOUT if stdout else STDERR if stderr and not tty else ERROR

    def start(self) -> bytes:
        """See streams.UserLeg."""
        return self._channel(self._lowest, b"")

    def finish(self, document: bytes) -> bytes:
        """See streams.UserLeg."""
        return (self._channel(ERROR, document) if document and not self._closing else b"") + self._close()

    def _said(self, channel: int, payload: bytes, wire: bytes, events: list[Event]) -> None:
        if channel == STDIN:
            if payload:
                events.append(Data(STDIN, payload, wire))
        elif channel == RESIZE:
            events.append(read_size(payload))
        elif channel == CLOSE_CHANNEL and self._v5:
            if payload != b"\x00":
                raise UserPeerError("only stdin can be closed")
            events.append(End(STDIN))
        else:
            raise UserPeerError(f"a message on channel {channel}, which is not the user's")


class WebSocketTarget(_Channels):
    """The client's end, towards the target. See streams.TargetLeg."""

    def __init__(self, protocol: str) -> None:
        super().__init__(protocol, user=False)
        self._ended = False

    def start(self) -> bytes:
        """See streams.TargetLeg."""
        return b""

    def resize(self, columns: int, rows: int) -> bytes:
        """See streams.TargetLeg."""
        return self._channel(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    def finish(self) -> bytes:
        """See streams.TargetLeg."""
        return self._close()

    def _said(self, channel: int, payload: bytes, wire: bytes, events: list[Event]) -> None:
        if channel in _OUTPUTS:
            if payload:
                events.append(Data(STDOUT if channel == STDOUT else STDERR, payload, wire))
        elif channel == ERROR:
            if payload:
                if self._ended:
                    raise TargetPeerError("a second Status")
                self._ended = True
                events.append(Status(payload))
        else:
            raise TargetPeerError(f"a message on channel {channel}, which is not the target's")
