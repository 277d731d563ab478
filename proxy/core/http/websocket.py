"""WebSocket frames, sans-IO, of either side: Decoder, encode(), Messages, and the questions of the handshake.

Decoder checks what RFC 6455 asks of a peer and gives each frame with its payload, unmasked, and its bytes as they came,
so that a relay can pass those on. Frames are not assembled there: a stream's bytes need no whole messages. Whoever does
puts Messages on top. Lengths are judged before anything is collected. No extension is ever agreed to.

Unmasking is websockets' C function (43 GB/s); where that package is missing, long integers do it, some hundred times
slower. Left out: choosing a subprotocol, and closing in order: the protocol above knows when.
Source: RFC 6455 4, 5, 7.4; kubernetes note 3 and 10.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from proxy.core.errors import PeerError, TargetPeerError, UserPeerError
from proxy.core.http.heads import RequestHead, ResponseHead, get, values, words

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
INVALID_DATA: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011

FRAME_LIMIT: Final = 1024 * 1024  # bytes; kubectl and the API server send 32 KiB at a time: kubernetes note 3
MESSAGE_LIMIT: Final = 1024 * 1024
CONTROL_LIMIT: Final = 125  # RFC 6455 5.5
REASON_LIMIT: Final = CONTROL_LIMIT - 2

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
_KNOWN: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_NO_MASK: Final = bytes(4)


class Frame(NamedTuple):
    """One frame. payload: unmasked; wire: the whole frame as it came. (A tuple: one is made for each 32 KiB.)"""

    opcode: int
    fin: bool
    payload: bytes
    wire: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message (TEXT or BINARY), or a control frame (CLOSE, PING, PONG)."""

    opcode: int
    payload: bytes


def apply_mask_slowly(data: bytes, mask: bytes) -> bytes:
    """XOR data with a mask of four bytes, by long integers."""
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def _mask_function() -> Callable[[bytes, bytes], bytes]:
    try:
        from websockets.speedups import apply_mask
    except ImportError:
        return apply_mask_slowly
    return apply_mask


_apply_mask: Final = _mask_function()


class Decoder:
    """Frames out of bytes. masked: the peer is a user (its frames are masked), else a target (they are not).

    limit: bytes of one frame's payload. Raises UserPeerError or TargetPeerError, whose code is a close code; the
    decoder is of no use after that. Nothing is taken after a close frame.

    piece: if set, a data frame with a longer payload need not be whole: what has come of it is given on as a fragment,
    without its wire, and no more of it is held.
    """

    def __init__(self, masked: bool, limit: int = FRAME_LIMIT, piece: int = 0) -> None:
        self._masked = masked
        self._limit = limit
        self._piece = piece
        self._left = 0  # bytes to come of a frame that is given on in pieces
        self._last = False  # whether that frame is its message's last
        self._mask = _NO_MASK  # of that frame, turned to where its rest begins
        self._pending: list[bytes] = []
        self._size = 0  # bytes pending
        self._needed = 2  # bytes that the next frame, or its head, needs
        self._inside = False  # of a fragmented message
        self._closed = False
        self._broken: PeerError | None = None

    @property
    def closed(self) -> bool:
        """Whether a close frame has come."""
        return self._closed

    @property
    def between(self) -> bool:
        """Whether no part of a frame is waiting for its rest."""
        return not self._size and not self._left

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes, cut anywhere; return the frames that are whole now."""
        if self._broken is not None:
            raise self._broken
        if self._closed or not data:
            return []
        if self._size:
            self._pending.append(data)
            self._size += len(data)
            if self._size < self._needed:
                return []
            data = b"".join(self._pending)
            self._pending.clear()
            self._size = 0
        frames: list[Frame] = []
        at, stop = 0, len(data)
        if self._left:
            at = self._go_on(CONTINUATION, data, 0, stop, frames)
        while at < stop:
            end = self._frame(data, at, stop, frames)
            if not end:
                self._pending.append(data[at:] if at else data)
                self._size = stop - at
                break
            at = end
            if self._closed:
                break
        return frames

    def _frame(self, data: bytes, at: int, stop: int, frames: list[Frame]) -> int:
        """Read the frame at this place; returns where it ends, 0 if it is not whole (and _needed says how much is)."""
        if stop - at < 2:
            self._needed = 2
            return 0
        first, second = data[at], data[at + 1]
        opcode = first & 0x0F
        length = second & 0x7F
        if first & 0x70 or opcode not in _KNOWN:
            self._refuse("a frame of an extension or of a kind that is not known")
        if (second >= 0x80) is not self._masked:
            self._refuse("a frame that is not masked" if self._masked else "a frame that is masked")
        fin = first >= 0x80
        begin = at + 2
        if opcode >= CLOSE:
            if length > CONTROL_LIMIT or not fin:
                self._refuse("a control frame that is too long or in fragments")
        else:
            if (opcode == CONTINUATION) is not self._inside:
                self._refuse("fragments out of order")
            if length > CONTROL_LIMIT:
                size = 2 if length == 126 else 8
                begin += size
                if begin > stop:
                    self._needed = begin - at
                    return 0
                length = int.from_bytes(data[at + 2 : begin], "big")
                if length <= CONTROL_LIMIT or (size == 8 and length <= 0xFFFF):
                    self._refuse("a length that is longer than it has to be")
                if length > self._limit:
                    self._refuse(f"a frame of more than {self._limit} bytes", TOO_BIG)
            elif length > self._limit:
                self._refuse(f"a frame of more than {self._limit} bytes", TOO_BIG)
        payload_at = begin + 4 if self._masked else begin
        end = payload_at + length
        if end > stop:
            if 0 < self._piece < length and payload_at < stop and opcode < CLOSE:
                self._left, self._last, self._inside = length, fin, not fin
                self._mask = data[begin:payload_at] if self._masked else _NO_MASK
                return self._go_on(opcode, data, payload_at, stop, frames)
            self._needed = end - at
            return 0
        payload = data[payload_at:end]
        if self._masked and (mask := data[begin:payload_at]) != _NO_MASK:
            payload = _apply_mask(payload, mask)
        if opcode < CLOSE:
            self._inside = not fin
        elif opcode == CLOSE:
            self._check_close(payload)
            self._closed = True
        frames.append(Frame(opcode, fin, payload, data if at == 0 and end == stop else data[at:end]))
        return end

    def _go_on(self, opcode: int, data: bytes, at: int, stop: int, frames: list[Frame]) -> int:
        """Give on what is there of a frame in pieces; returns where it ends."""
        end = min(stop, at + self._left)
        payload = data[at:end]
        self._left -= end - at
        if self._mask != _NO_MASK:
            payload = _apply_mask(payload, self._mask)
            turn = (end - at) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        frames.append(Frame(opcode, self._last and not self._left, payload, b""))
        return end

    def _check_close(self, payload: bytes) -> None:
        if not payload:
            return
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not _may_be_sent(code):
            self._refuse("a close code that may not be sent")
        try:
            payload[2:].decode("utf-8")
        except UnicodeDecodeError:
            self._refuse("a close reason that is not UTF-8", INVALID_DATA)

    def _refuse(self, text: str, code: int = PROTOCOL_ERROR) -> NoReturn:
        self._pending.clear()
        self._size = 0
        error = UserPeerError if self._masked else TargetPeerError
        self._broken = error(f"WebSocket: {text}", str(code))
        raise self._broken


class Messages:
    """Whole messages out of the frames of a Decoder, which has checked the order of fragments.

    limit: bytes of one message. Text has to be UTF-8. Raises as the Decoder of the same side does.
    """

    def __init__(self, masked: bool, limit: int = MESSAGE_LIMIT) -> None:
        self._error = UserPeerError if masked else TargetPeerError
        self._limit = limit
        self._opcode = BINARY
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, frames: list[Frame]) -> list[Message]:
        """Take frames; return the messages that are whole now, and the control frames between them, in order."""
        messages: list[Message] = []
        for frame in frames:
            if frame.opcode >= CLOSE:
                messages.append(Message(frame.opcode, frame.payload))
                continue
            if frame.opcode != CONTINUATION:
                self._opcode = frame.opcode
            self._size += len(frame.payload)
            if self._size > self._limit:
                raise self._error(f"WebSocket: a message of more than {self._limit} bytes", str(TOO_BIG))
            if frame.payload:  # empty fragments, in any number, take no place
                self._parts.append(frame.payload)
            if frame.fin:
                messages.append(self._whole())
        return messages

    def _whole(self) -> Message:
        payload = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._opcode == TEXT:
            try:
                payload.decode("utf-8")
            except UnicodeDecodeError:
                raise self._error("WebSocket: text that is not UTF-8", str(INVALID_DATA)) from None
        return Message(self._opcode, payload)


def encode(opcode: int, payload: bytes, mask: bool = False, fin: bool = True) -> bytes:
    """Frame a payload. mask: as towards a target, with a key of zeros.

    The key is there against pages in a browser that choose what stands on the wire (RFC 6455 10.3): the gate is no
    browser, TLS is around it, and zeros leave the payload as it is.
    """
    assert opcode < CLOSE or (len(payload) <= CONTROL_LIMIT and fin), "a control frame is short and whole"
    size = len(payload)
    first = opcode | 0x80 if fin else opcode
    flag = 0x80 if mask else 0
    if size <= CONTROL_LIMIT:
        head = bytes((first, flag | size))
    elif size <= 0xFFFF:
        head = struct.pack("!BBH", first, flag | 126, size)
    else:
        head = struct.pack("!BBQ", first, flag | 127, size)
    return b"".join((head, _NO_MASK, payload)) if mask else head + payload


def encode_close(code: int, reason: str = "", mask: bool = False) -> bytes:
    """A close frame; a reason that is too long is cut between two characters."""
    assert _may_be_sent(code), "a close code that may not be sent"
    short = reason.encode("utf-8", "replace")[:REASON_LIMIT].decode("utf-8", "ignore").encode()
    return encode(CLOSE, code.to_bytes(2, "big") + short, mask)


def decode_close(payload: bytes) -> tuple[int, str]:
    """Read the payload of a close frame that a Decoder took: code (1005 where there is none) and reason."""
    if len(payload) < 2:
        return 1005, ""
    return int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace")


def _may_be_sent(code: int) -> bool:
    """Source: RFC 6455 7.4 and its registry: 1012 to 1014 came later; 1004 to 1006 and 1015 never stand in a frame."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


# -- the handshake ------------------------------------------------------------------------------------


def accept_key(key: str) -> str:
    """Return the Sec-WebSocket-Accept for a Sec-WebSocket-Key."""
    # SHA-1 is what the protocol asks for; nothing is protected by it.
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def handshake_problem(head: RequestHead) -> str | None:
    """Tell what is wrong with a user's handshake, None if nothing is. Source: RFC 6455 4.2.1."""
    if head.method != "GET" or head.version != "1.1":
        return "a WebSocket begins with a GET of HTTP/1.1"
    if head.upgrade != "websocket":
        return "Upgrade does not name websocket alone"
    if head.length != 0:
        return "a handshake has no body"
    if values(head.fields, "sec-websocket-version") != ["13"]:
        return "only version 13 of WebSocket is spoken here"
    keys = values(head.fields, "sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]) or not _is_key(keys[0]):
        return "Sec-WebSocket-Key is not 16 bytes in base64"
    return None


def answer_problem(head: ResponseHead, key: str) -> str | None:
    """Tell what is wrong with a target's answer to a handshake, None if nothing is. Source: RFC 6455 4.1."""
    if head.status != 101:
        return f"the target answered {head.status}"
    if words(head.fields, "upgrade") != ["websocket"] or "upgrade" not in words(head.fields, "connection"):
        return "the target did not switch to WebSocket"
    if values(head.fields, "sec-websocket-accept") != [accept_key(key)]:
        return "the target's Sec-WebSocket-Accept is wrong"
    if get(head.fields, "sec-websocket-extensions"):
        return "the target uses an extension that was not offered"
    return None


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False
