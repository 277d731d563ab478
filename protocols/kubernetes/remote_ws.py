"""exec and attach over WebSocket: the ends of the channel protocols, sans-IO.

A message is a channel byte and a payload: 0 stdin, 1 stdout, 2 stderr, 3 the Status, 4 the terminal's size; only the
first fragment has the byte. In the base64 forms it is text, a digit and base64. v5 has a channel more, 255, whose one
byte names the channel that is half-closed: so stdin gets an end, which in v4 and before cannot be said.

Whole binary messages of stdin, stdout and stderr are given with their frame as it came (all binary protocols frame them
alike: CODEC), so that a relay passes it on unchanged. A fragment is given on when it comes, without its frame, since
what a relay puts in between would break its message; so is a piece of a frame of more than PIECE_BYTES. Text where
binary is due is taken as the API server takes it: the Python client sends str so.

The end, of a server: the Status, then Close, then the peer's Close. Source: k8s.io/apimachinery/pkg/util/remotecommand,
k8s.io/apiserver/pkg/util/wsstream, kubernetes note 3; RFC 6455 5.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Final

from protocols.kubernetes import status
from protocols.kubernetes.sizes import Sizes, encode_size
from protocols.kubernetes.streams import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Asked,
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
from proxy.core.text import harmless

V5: Final = "v5.channel.k8s.io"
V4: Final = "v4.channel.k8s.io"
V1: Final = "channel.k8s.io"
V4_BASE64: Final = "v4.base64.channel.k8s.io"
V1_BASE64: Final = "base64.channel.k8s.io"
USER_PROTOCOLS: Final = frozenset({V5, V4, V1, V4_BASE64, V1_BASE64})
TARGET_PROTOCOLS: Final = frozenset({V5, V4})

CODEC: Final = "channel.k8s.io"
CLOSE_CHANNEL: Final = 255
PIECE_BYTES: Final = 64 * 1024  # servers and kubectl send 32 KiB at a time: note 3
FRAME_BYTES: Final = 32 * 1024  # of what we send, with the channel's byte; as API servers do
LENGTH_LIMIT: Final = (1 << 63) - 1  # of a frame: RFC 6455 5.2. Nothing is held of what is longer than PIECE_BYTES
TEXT_LIMIT: Final = 1024 * 1024  # of a message in base64, which is read when it is whole
STATUS_LIMIT: Final = status.DOCUMENT_LIMIT
STATUS_PIECES_LIMIT: Final = 16  # messages that a Status may come in; servers take one


class _Leg:
    """What both ends share: messages out of frames, frames out of data, pings and the close."""

    ready = True

    def __init__(self, protocol: str, asked: Asked, user: bool) -> None:
        self._asked = asked
        self._v5 = protocol == V5
        self._base64 = "base64" in protocol
        self._mask = not user
        self._error: type[PeerError] = UserPeerError if user else TargetPeerError
        self._decoder = ws.Decoder(user, LENGTH_LIMIT, PIECE_BYTES)
        self._channel = -1  # of the message that has begun, -1 before its first byte
        self._text = bytearray()  # of a message in base64
        self._halfclose = bytearray()  # what came on channel 255
        self._closing = False  # our Close is sent
        self._over = False

    @property
    def codec(self) -> str:
        """See streams.Leg."""
        return "" if self._base64 else CODEC

    def receive(self, data: bytes) -> list[Event]:
        """See streams.Leg."""
        events: list[Event] = []
        if self._over:
            return events
        for frame in self._decoder.feed(data):
            if frame.opcode >= ws.CLOSE:
                self._control(frame, events)
            elif self._closing:
                pass  # was on its way when we ended
            elif self._base64:
                self._take_text(frame, events)
            else:
                self._take_binary(frame, events)
        return events

    def data(self, stream: Stream, data: bytes) -> bytes:
        """See streams.Leg."""
        if self._closing or not data:
            return b""
        size = FRAME_BYTES - 1
        if self._base64:
            size = size // 4 * 3
        if len(data) <= size:
            return self._message(stream, data)
        return b"".join(self._message(stream, data[at : at + size]) for at in range(0, len(data), size))

    def ping(self) -> bytes:
        """See streams.Leg."""
        return b"" if self._closing else ws.encode(ws.PING, b"", self._mask)

    def refuse(self, error: PeerError) -> bytes:
        """See streams.Leg. The error's code is a close code, or 1002 is said."""
        known = (ws.PROTOCOL_ERROR, ws.INVALID_DATA, ws.POLICY, ws.TOO_BIG, ws.INTERNAL_ERROR)
        code = next((each for each in known if str(each) == error.code), ws.PROTOCOL_ERROR)
        return self._close(code, f"gatecast: {error}")

    def _close(self, code: int = ws.NORMAL, reason: str = "") -> bytes:
        if self._closing:
            return b""
        self._closing = True
        return ws.encode_close(code, reason, self._mask)

    def _message(self, channel: int, data: bytes) -> bytes:
        if self._base64:
            return ws.encode(ws.TEXT, b"%d" % channel + base64.b64encode(data), self._mask)
        return ws.encode(ws.BINARY, channel.to_bytes(1, "big") + data, self._mask)

    def _refuse(self, text: str, code: int = ws.PROTOCOL_ERROR) -> PeerError:
        return self._error(text, str(code))

    # -- messages -------------------------------------------------------------------------------------

    def _take_binary(self, frame: ws.Frame, events: list[Event]) -> None:
        payload = frame.payload
        if frame.opcode != ws.CONTINUATION:
            self._channel = -1
        if self._channel >= 0:
            self._take(self._channel, payload, b"", frame.fin, events)
        elif payload:  # an empty message, or first fragment, says nothing
            self._channel = payload[0]
            whole = frame.fin and frame.opcode == ws.BINARY
            self._take(payload[0], payload[1:], frame.wire if whole else b"", frame.fin, events)

    def _take_text(self, frame: ws.Frame, events: list[Event]) -> None:
        self._text += frame.payload
        if len(self._text) > TEXT_LIMIT:
            raise self._refuse(f"a message of more than {TEXT_LIMIT} bytes", ws.TOO_BIG)
        if not frame.fin or not self._text:
            return
        text = bytes(self._text)
        self._text.clear()
        try:
            payload = binascii.a2b_base64(text[1:].replace(b"\r", b"").replace(b"\n", b""), strict_mode=True)
        except binascii.Error:
            raise self._refuse("a message that is not base64", ws.INVALID_DATA) from None
        if not 0x30 <= text[0] <= 0x39:
            raise self._refuse("a message whose channel is no digit")
        self._take(text[0] - 0x30, payload, b"", True, events)

    def _take(self, channel: int, payload: bytes, wire: bytes, fin: bool, events: list[Event]) -> None:
        """Take a piece of a message. fin: its last."""
        raise NotImplementedError

    def _half_closed(self, payload: bytes, fin: bool) -> int:
        """Take a piece of a message on channel 255; returns the channel that it closes, -1 before it is whole."""
        self._halfclose += payload
        if len(self._halfclose) > 1 or (fin and not self._halfclose) or max(self._halfclose, default=0) > RESIZE:
            raise self._refuse("a half-close that names no channel")
        if not fin:
            return -1
        channel = self._halfclose[0]
        self._halfclose.clear()
        return channel

    # -- control frames -------------------------------------------------------------------------------

    def _control(self, frame: ws.Frame, events: list[Event]) -> None:
        match frame.opcode:
            case ws.PING:
                if not self._closing:
                    events.append(Reply(ws.encode(ws.PONG, frame.payload, self._mask)))
            case ws.CLOSE:
                code, reason = ws.decode_close(frame.payload)
                self._before_over(events)
                if not self._closing:  # RFC 6455 5.5.1: the answer names the same code
                    self._closing = True
                    events.append(Reply(ws.encode(ws.CLOSE, frame.payload[:2], self._mask)))
                self._over = True
                fine = code in (ws.NORMAL, ws.GOING_AWAY, 1005)  # 1005: none was named
                events.append(Over("" if fine else f"close {code} {harmless(reason)}".rstrip()))
            case _:
                pass  # a pong

    def _before_over(self, events: list[Event]) -> None:
        """Say what was still to be said when the peer's Close has come."""


class WebSocketUserLeg(_Leg):
    """The end towards the user: a server's. Specification: streams.UserLeg."""

    def __init__(self, protocol: str, asked: Asked) -> None:
        assert protocol in USER_PROTOCOLS, protocol
        super().__init__(protocol, asked, user=True)
        self._plain_status = protocol in (V1, V1_BASE64)
        self._sizes = Sizes()
        self._ended = False  # stdin is

    def start(self) -> bytes:
        """Send an empty message on the lowest output: clients wait for it."""
        return self._message(STDOUT if self._asked.stdout else STDERR if self._asked.stderr else ERROR, b"")

    def end(self, stream: Stream) -> bytes:
        """Nothing: a server has no half-close."""
        return b""

    def finish(self, document: bytes) -> bytes:
        """See streams.UserLeg. Before v4 the Status is its message alone, and success is silence."""
        if self._plain_status and document:
            code, message = status.exit_of(document)
            text = "" if code == 0 else message or f"the command ended with exit code {code}"
            document = text.encode("utf-8", "replace")
        said = self.data(ERROR, document)
        return said + self._close()

    def _take(self, channel: int, payload: bytes, wire: bytes, fin: bool, events: list[Event]) -> None:
        match channel:
            case 0:
                if payload and self._ended:
                    raise self._refuse("input behind its end")
                # What was not asked for is dropped, as API servers do.
                if payload and self._asked.stdin:
                    events.append(Data(STDIN, payload, wire))
            case 4:
                if self._asked.tty:
                    events += self._sizes.feed(payload)
            case 255 if self._v5:
                if self._half_closed(payload, fin) == STDIN and not self._ended:
                    self._ended = True
                    if self._asked.stdin:
                        events.append(End(STDIN))
            case _:
                raise self._refuse(f"a message on channel {channel}, which is not the user's")


class WebSocketTargetLeg(_Leg):
    """The end towards the API server: a client's. Specification: streams.TargetLeg."""

    def __init__(self, protocol: str, asked: Asked) -> None:
        assert protocol in TARGET_PROTOCOLS, protocol
        super().__init__(protocol, asked, user=False)
        self._document = bytearray()
        self._pieces = 0
        self._said_status = False
        self._ended = False  # stdin is

    def start(self) -> bytes:
        """Nothing: the streams are there with the handshake."""
        return b""

    def end(self, stream: Stream) -> bytes:
        """See streams.Leg; b"" in v4, which cannot end stdin."""
        if not self._v5 or stream != STDIN or self._ended or self._closing:
            return b""
        self._ended = True
        return ws.encode(ws.BINARY, bytes((CLOSE_CHANNEL, STDIN)), self._mask)

    def resize(self, columns: int, rows: int) -> bytes:
        """See streams.TargetLeg."""
        return self.data(RESIZE, encode_size(columns, rows)) if self._asked.tty else b""

    def finish(self) -> bytes:
        """See streams.TargetLeg."""
        return self._close()

    def _take(self, channel: int, payload: bytes, wire: bytes, fin: bool, events: list[Event]) -> None:
        match channel:
            case 1 | 2:
                if payload and not (self._asked.stdout if channel == 1 else self._asked.stderr):
                    raise self._refuse("output that was not asked for")
                if payload:
                    events.append(Data(STDOUT if channel == 1 else STDERR, payload, wire))
            case 3:
                self._take_status(payload, fin, events)
            case 255 if self._v5:
                closed = self._half_closed(payload, fin)
                if closed in (STDOUT, STDERR):
                    events.append(End(STDOUT if closed == STDOUT else STDERR))
            case _:
                raise self._refuse(f"a message on channel {channel}, which is not the target's")

    def _take_status(self, payload: bytes, fin: bool, events: list[Event]) -> None:
        """Collect the Status; say it when a message ends with which it is a document."""
        if not payload and not self._document:
            return
        self._document += payload
        if len(self._document) > STATUS_LIMIT or (self._said_status and payload.strip()):
            raise self._refuse("a Status that is too long, or more than one")
        if not fin or self._said_status:
            return
        self._pieces += 1
        if self._pieces > STATUS_PIECES_LIMIT:
            raise self._refuse("a Status in too many pieces")
        try:
            json.loads(self._document)
        except (ValueError, RecursionError):
            return  # text, or more is to come: at the latest it is over with the connection
        self._say_status(events)

    def _say_status(self, events: list[Event]) -> None:
        self._said_status = True
        events.append(Status(bytes(self._document)))

    def _before_over(self, events: list[Event]) -> None:
        if self._document and not self._said_status:
            self._say_status(events)
