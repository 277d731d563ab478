"""The messages of the SSH connection protocol: payloads to values, values to payloads.

A payload is what is inside a packet: one byte of type, then fields (RFC 4251 5). A frame is how payloads travel inside
the gate, so that several can be joined: u32 length || payload. decode() reads the fields that every message of a type
has; the body of a channel open, a channel request or a global request stays bytes, as its form depends on a name, and
is read by the classes of wire_bodies.py when a decision needs it.

Whatever is malformed raises the error that the caller names, UserPeerError or TargetPeerError: nothing else. Text is
UTF-8 by RFC 4251, bytes in practice: it is decoded with surrogateescape, so that it encodes to the same bytes again.

Left out: the transport and login protocols (numbers below 80), which are asyncssh's.

Specification: RFC 4254; RFC 4250 4.1.2 (numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy.core.errors import PeerError

GLOBAL_REQUEST: Final = 80
REQUEST_SUCCESS: Final = 81
REQUEST_FAILURE: Final = 82
CHANNEL_OPEN: Final = 90
CHANNEL_OPEN_CONFIRMATION: Final = 91
CHANNEL_OPEN_FAILURE: Final = 92
CHANNEL_WINDOW_ADJUST: Final = 93
CHANNEL_DATA: Final = 94
CHANNEL_EXTENDED_DATA: Final = 95
CHANNEL_EOF: Final = 96
CHANNEL_CLOSE: Final = 97
CHANNEL_REQUEST: Final = 98
CHANNEL_SUCCESS: Final = 99
CHANNEL_FAILURE: Final = 100

# Reasons of CHANNEL_OPEN_FAILURE, RFC 4254 5.1.
ADMINISTRATIVELY_PROHIBITED: Final = 1
CONNECT_FAILED: Final = 2
UNKNOWN_CHANNEL_TYPE: Final = 3
RESOURCE_SHORTAGE: Final = 4

STDERR: Final = 1  # the only data type code of CHANNEL_EXTENDED_DATA, RFC 4254 5.2
PROTOCOL_ERROR: Final = 2  # reason of DISCONNECT, RFC 4253 11.1

# A packet of OpenSSH is at most 256 KiB (packet.c, PACKET_MAX_SIZE); RFC 4253 6.1 asks for 35,000 bytes.
PAYLOAD_LIMIT: Final = 256 * 1024
# The largest window; RFC 4254 5.2.
WINDOW_LIMIT: Final = 2**32 - 1
# A payload that every implementation takes: RFC 4253 6.1. Data that the gate frames itself come in such pieces.
PIECE_BYTES: Final = 32_768
DATA_HEAD_BYTES: Final = 9  # type, recipient, length


def u32(value: int) -> bytes:
    """Encode an unsigned number."""
    return value.to_bytes(4, "big")


def string(value: bytes | str) -> bytes:
    """Encode a string with its length; str as UTF-8, surrogates as the bytes that they stand for."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return len(data).to_bytes(4, "big") + data


def boolean(value: bool) -> bytes:
    """Encode a boolean."""
    return b"\x01" if value else b"\x00"


def frame(payload: bytes) -> bytes:
    """Return a payload with its length in front."""
    return len(payload).to_bytes(4, "big") + payload


def unframe(data: bytes, error: type[PeerError]) -> list[bytes]:
    """Return the payloads of whole frames. Raises error for a cut or oversized one."""
    payloads = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if len(data) - at < 4 + size or not 0 < size <= PAYLOAD_LIMIT:
            raise error("a malformed frame of SSH messages")
        payloads.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return payloads


def data_frames(recipient: int, data: bytes, packet_bytes: int, code: int | None = None) -> bytes:
    """Frame data of a channel in pieces of its largest packet; with a code as CHANNEL_EXTENDED_DATA."""
    piece = min(packet_bytes, PIECE_BYTES)
    number = CHANNEL_DATA if code is None else CHANNEL_EXTENDED_DATA
    head = bytes((number,)) + u32(recipient) + (b"" if code is None else u32(code))
    if len(data) <= piece:
        return b"".join((u32(len(head) + 4 + len(data)), head, u32(len(data)), data))
    view = memoryview(data)
    parts: list[bytes | memoryview] = []
    for start in range(0, len(data), piece):
        part = view[start : start + piece]
        parts += (u32(len(head) + 4 + len(part)), head, u32(len(part)), part)
    return b"".join(parts)


class Fields:
    """Reads the fields of one payload or body in order; whatever is cut off or left over raises the given error."""

    __slots__ = ("_at", "_data", "_error", "_what")

    def __init__(self, data: bytes, error: type[PeerError], what: str, at: int = 0) -> None:
        self._data = data
        self._error = error
        self._what = what
        self._at = at

    def u32(self) -> int:
        """A number of four bytes."""
        at = self._at
        if len(self._data) - at < 4:
            raise self._error(f"a malformed {self._what}")
        self._at = at + 4
        return int.from_bytes(self._data[at : at + 4], "big")

    def string(self) -> bytes:
        """Bytes with their length in front."""
        size = self.u32()
        at = self._at
        if len(self._data) - at < size:
            raise self._error(f"a malformed {self._what}")
        self._at = at + size
        return self._data[at : at + size]

    def text(self) -> str:
        """A string as text; bytes that are not UTF-8 become surrogates."""
        return self.string().decode("utf-8", "surrogateescape")

    def boolean(self) -> bool:
        """One byte; anything but 0 is true (RFC 4251 5)."""
        at = self._at
        if len(self._data) <= at:
            raise self._error(f"a malformed {self._what}")
        self._at = at + 1
        return self._data[at] != 0

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def rest(self) -> bytes:
        """All that is left."""
        at, self._at = self._at, len(self._data)
        return self._data[at:]

    def end(self) -> None:
        """Check that nothing is left."""
        if self.more:
            raise self._error(f"a {self._what} with something behind its end")


@dataclass(frozen=True, slots=True)
class GlobalRequest:
    """RFC 4254 4."""

    name: str
    want_reply: bool
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((GLOBAL_REQUEST,)) + string(self.name) + boolean(self.want_reply) + self.body


@dataclass(frozen=True, slots=True)
class RequestSuccess:
    """RFC 4254 4; the body is a port where port 0 was asked for (7.1)."""

    body: bytes = b""

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((REQUEST_SUCCESS,)) + self.body


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """RFC 4254 4."""

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((REQUEST_FAILURE,))


@dataclass(frozen=True, slots=True)
class ChannelOpen:
    """RFC 4254 5.1. sender is the opener's number; window and packet what it takes."""

    kind: str
    sender: int
    window: int
    packet: int
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the payload."""
        numbers = u32(self.sender) + u32(self.window) + u32(self.packet)
        return bytes((CHANNEL_OPEN,)) + string(self.kind) + numbers + self.body


@dataclass(frozen=True, slots=True)
class OpenConfirmation:
    """RFC 4254 5.1."""

    recipient: int
    sender: int
    window: int
    packet: int
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the payload."""
        numbers = u32(self.recipient) + u32(self.sender) + u32(self.window) + u32(self.packet)
        return bytes((CHANNEL_OPEN_CONFIRMATION,)) + numbers + self.body


@dataclass(frozen=True, slots=True)
class OpenFailure:
    """RFC 4254 5.1. Old servers leave out the texts."""

    recipient: int
    code: int
    text: str = ""
    language: str = ""

    def encode(self) -> bytes:
        """Return the payload."""
        head = bytes((CHANNEL_OPEN_FAILURE,)) + u32(self.recipient) + u32(self.code)
        return head + string(self.text) + string(self.language)


@dataclass(frozen=True, slots=True)
class WindowAdjust:
    """RFC 4254 5.2."""

    recipient: int
    size: int

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((CHANNEL_WINDOW_ADJUST,)) + u32(self.recipient) + u32(self.size)


@dataclass(frozen=True, slots=True)
class Data:
    """RFC 4254 5.2."""

    recipient: int
    data: bytes

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((CHANNEL_DATA,)) + u32(self.recipient) + string(self.data)


@dataclass(frozen=True, slots=True)
class ExtendedData:
    """RFC 4254 5.2."""

    recipient: int
    code: int
    data: bytes

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((CHANNEL_EXTENDED_DATA,)) + u32(self.recipient) + u32(self.code) + string(self.data)


@dataclass(frozen=True, slots=True)
class Eof:
    """RFC 4254 5.3."""

    recipient: int

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((CHANNEL_EOF,)) + u32(self.recipient)


@dataclass(frozen=True, slots=True)
class Close:
    """RFC 4254 5.3."""

    recipient: int

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((CHANNEL_CLOSE,)) + u32(self.recipient)


@dataclass(frozen=True, slots=True)
class ChannelRequest:
    """RFC 4254 5.4."""

    recipient: int
    name: str
    want_reply: bool
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the payload."""
        head = bytes((CHANNEL_REQUEST,)) + u32(self.recipient)
        return head + string(self.name) + boolean(self.want_reply) + self.body


@dataclass(frozen=True, slots=True)
class ChannelSuccess:
    """RFC 4254 5.4."""

    recipient: int

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((CHANNEL_SUCCESS,)) + u32(self.recipient)


@dataclass(frozen=True, slots=True)
class ChannelFailure:
    """RFC 4254 5.4."""

    recipient: int

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((CHANNEL_FAILURE,)) + u32(self.recipient)


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A message of a number that RFC 4254 does not give; it is to be ignored (RFC 4253 11.4)."""

    number: int

    def encode(self) -> bytes:
        """Return its type byte."""
        return bytes((self.number,))


# What is sent on a channel that is open; each has a recipient.
ChannelMessage = (
    WindowAdjust | Data | ExtendedData | Eof | Close | ChannelRequest | ChannelSuccess | ChannelFailure
)  # fmt: skip
Message = (
    GlobalRequest
    | RequestSuccess
    | RequestFailure
    | ChannelOpen
    | OpenConfirmation
    | OpenFailure
    | ChannelMessage
    | UnknownMessage
)


def decode(payload: bytes, error: type[PeerError]) -> Message:
    """Return the message of a payload. Raises error where it is malformed or larger than any may be."""
    if not payload:
        raise error("an empty SSH message")
    if len(payload) > PAYLOAD_LIMIT:
        raise error(f"an SSH message of {len(payload)} bytes; {PAYLOAD_LIMIT} are allowed")
    number = payload[0]
    fields = Fields(payload, error, _NAMES.get(number, "message"), 1)
    message = _opening(number, fields) if number < CHANNEL_WINDOW_ADJUST else _on_channel(number, fields)
    fields.end()
    return message


def _opening(number: int, fields: Fields) -> Message:
    match number:
        case 80:
            return GlobalRequest(fields.text(), fields.boolean(), fields.rest())
        case 81:
            return RequestSuccess(fields.rest())
        case 82:
            return RequestFailure()
        case 90:
            return ChannelOpen(fields.text(), fields.u32(), fields.u32(), fields.u32(), fields.rest())
        case 91:
            return OpenConfirmation(fields.u32(), fields.u32(), fields.u32(), fields.u32(), fields.rest())
        case 92:
            recipient, code = fields.u32(), fields.u32()
            text = fields.text() if fields.more else ""
            return OpenFailure(recipient, code, text, fields.text() if fields.more else "")
    fields.rest()
    return UnknownMessage(number)


def _on_channel(number: int, fields: Fields) -> Message:
    match number:
        case 93:
            return WindowAdjust(fields.u32(), fields.u32())
        case 94:
            return Data(fields.u32(), fields.string())
        case 95:
            return ExtendedData(fields.u32(), fields.u32(), fields.string())
        case 96:
            return Eof(fields.u32())
        case 97:
            return Close(fields.u32())
        case 98:
            return ChannelRequest(fields.u32(), fields.text(), fields.boolean(), fields.rest())
        case 99:
            return ChannelSuccess(fields.u32())
        case 100:
            return ChannelFailure(fields.u32())
    fields.rest()
    return UnknownMessage(number)


_NAMES: Final = {
    GLOBAL_REQUEST: "GLOBAL_REQUEST",
    REQUEST_SUCCESS: "REQUEST_SUCCESS",
    REQUEST_FAILURE: "REQUEST_FAILURE",
    CHANNEL_OPEN: "CHANNEL_OPEN",
    CHANNEL_OPEN_CONFIRMATION: "CHANNEL_OPEN_CONFIRMATION",
    CHANNEL_OPEN_FAILURE: "CHANNEL_OPEN_FAILURE",
    CHANNEL_WINDOW_ADJUST: "CHANNEL_WINDOW_ADJUST",
    CHANNEL_DATA: "CHANNEL_DATA",
    CHANNEL_EXTENDED_DATA: "CHANNEL_EXTENDED_DATA",
    CHANNEL_EOF: "CHANNEL_EOF",
    CHANNEL_CLOSE: "CHANNEL_CLOSE",
    CHANNEL_REQUEST: "CHANNEL_REQUEST",
    CHANNEL_SUCCESS: "CHANNEL_SUCCESS",
    CHANNEL_FAILURE: "CHANNEL_FAILURE",
}
