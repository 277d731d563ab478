"""The PostgreSQL frontend/backend protocol, version 3: bytes to messages and back, once a session runs.

Start-up and login messages are in startup.py; rows under a mask in rows.py. Nothing here keeps more than one
message: what may be long and needs no decision (CopyData, the values of a Bind) is handed on in pieces.

Source: PostgreSQL 18 documentation, 54.7 Message Formats; limits from src/backend/tcop/postgres.c (SocketBackend)
and src/include/libpq/libpq.h: 0x3fffffff-1 for the types that may be long, 10000 for all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Final

from proxy.core.errors import TargetPeerError, UserPeerError

LONG_MESSAGE_LIMIT: Final = 0x3FFFFFFF - 1  # PQ_LARGE_MESSAGE_LIMIT
SHORT_MESSAGE_LIMIT: Final = 10_000  # PQ_SMALL_MESSAGE_LIMIT
QUERY_LIMIT: Final = 16 * 1024 * 1024  # texts are held whole to be decided on: ours, postgres note 8
STREAM_BYTES: Final = 64 * 1024  # a longer Bind, FunctionCall or CopyData goes on in pieces
TARGET_MESSAGE_LIMIT: Final = 16 * 1024 * 1024  # of what is not a row and not COPY data
SMALL_READ_BYTES: Final = 1024  # an object costs up to 50 bytes, which only a larger read may bear
NAMES_LIMIT: Final = 8192  # two names at the start of a Bind; NAMEDATALEN is 64, so this is generous

CACHED_DESCRIPTION_BYTES: Final = 4096
CACHED_DESCRIPTIONS: Final = 1024

U32: Final = Struct(">I")
I32: Final = Struct(">i")
U16: Final = Struct(">H")
HEADER: Final = Struct(">BI")
FIELD: Final = Struct(">IhIhih")  # table oid, attnum, type oid, typlen, typmod, format

# Frontend message types
BIND, CLOSE, COPY_DATA, COPY_DONE, COPY_FAIL = b"BCdcf"
DESCRIBE, EXECUTE, FLUSH, FUNCTION_CALL = b"DEHF"
PARSE, PASSWORD, QUERY, SYNC, TERMINATE = b"PpQSX"
LONG_TYPES: Final = frozenset(b"QPBFd")
STREAMED_TYPES: Final = frozenset((BIND, FUNCTION_CALL, COPY_DATA))
USER_TYPES: Final = frozenset(b"BCdcfDEHFPQSX")

PIECE: Final = 0  # stands in place of a type for the next piece of a streamed body


class UserMessages:
    """Cuts what a user sends into messages, however it arrives.

    feed() yields (type, wire, rest_bytes): wire is the whole message, or its head where rest_bytes more follow
    as (PIECE, bytes, rest_bytes). Raises UserPeerError for an unknown type or a length out of bounds.
    """

    def __init__(self, query_limit: int = QUERY_LIMIT) -> None:
        self._query_limit = query_limit
        self._parts: list[bytes | bytearray] = []
        self._have = 0
        self._need = 0
        self._rest = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes, int]]:
        if self._parts:
            gather(self._parts, data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts = []
        pos, size = 0, len(data)
        while pos < size:
            if self._rest:
                piece = data[pos : pos + self._rest]
                pos += len(piece)
                self._rest -= len(piece)
                yield PIECE, piece, self._rest
                continue
            if size - pos < 5:
                self._keep(data, pos, 5)
                return
            kind, length = HEADER.unpack_from(data, pos)
            self._check(kind, length)
            end = pos + 1 + length
            if end <= size:
                yield kind, data if pos == 0 and end == size else data[pos:end], 0
                pos = end
            elif kind in STREAMED_TYPES and length > STREAM_BYTES and size - pos >= NAMES_LIMIT:
                self._rest = end - size
                yield kind, data[pos:], self._rest
                return
            else:
                need = min(end - pos, STREAM_BYTES) if kind in STREAMED_TYPES else end - pos
                self._keep(data, pos, need)
                return

    @property
    def partial(self) -> bool:
        """Whether the bytes so far end inside a message."""
        return bool(self._parts or self._rest)

    def _keep(self, data: bytes, pos: int, need: int) -> None:
        self._parts = [data[pos:] if pos else data]
        self._have = len(data) - pos
        self._need = need

    def _check(self, kind: int, length: int) -> None:
        if kind not in USER_TYPES:
            raise UserPeerError(f"invalid frontend message type {kind}", "08P01")
        if length < 4:
            raise UserPeerError("invalid message length", "08P01")
        if kind in (QUERY, PARSE):
            if length > self._query_limit:
                raise UserPeerError(f"the statement is longer than {self._query_limit} bytes", "54000")
        elif length > (LONG_MESSAGE_LIMIT if kind in LONG_TYPES else SHORT_MESSAGE_LIMIT):
            raise UserPeerError("invalid message length", "08P01")


def gather(parts: list[bytes | bytearray], data: bytes) -> None:
    """Add a read to what is there of a message; small ones share a buffer, or each byte could cost dozens."""
    if len(data) >= SMALL_READ_BYTES:
        parts.append(data)
    elif parts and isinstance(parts[-1], bytearray):
        parts[-1] += data
    else:
        parts.append(bytearray(data))


# -- frontend messages: decoding ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bind:
    """A Bind message as far as it is here: values are cut at what has come; formats as on the wire."""

    portal: bytes
    statement: bytes
    parameter_formats: tuple[int, ...]
    values: tuple[bytes | None, ...]
    result_formats: tuple[int, ...] | None  # None: not read, the message came in pieces


def parse_query(wire: bytes) -> bytes:
    """Return the text of a Query. Raises UserPeerError where the one NUL is not at its end."""
    if wire.find(0, 5) != len(wire) - 1:
        raise UserPeerError("invalid message format", "08P01")
    return wire[5:-1]


def parse_parse(wire: bytes) -> tuple[bytes, bytes, tuple[int, ...]]:
    """Return (statement name, text, parameter type oids) of a Parse. Raises UserPeerError."""
    name_end = wire.find(0, 5)
    text_end = wire.find(0, name_end + 1)
    if name_end < 0 or text_end < 0 or len(wire) < text_end + 3:
        raise UserPeerError("invalid message format", "08P01")
    (count,) = U16.unpack_from(wire, text_end + 1)
    if len(wire) != text_end + 3 + 4 * count:
        raise UserPeerError("invalid message format", "08P01")
    oids = tuple(U32.unpack_from(wire, text_end + 3 + 4 * i)[0] for i in range(count))
    return wire[5:name_end], wire[name_end + 1 : text_end], oids


def parse_bind(wire: bytes, rest_bytes: int) -> Bind:
    """Decode a Bind; with rest_bytes to come, as many values as are whole. Raises UserPeerError."""
    portal_end = wire.find(0, 5)
    statement_end = wire.find(0, portal_end + 1)
    if portal_end < 0 or statement_end < 0:
        raise UserPeerError("invalid message format", "08P01")
    portal, statement = wire[5:portal_end], wire[portal_end + 1 : statement_end]
    values: list[bytes | None] = []
    formats: tuple[int, ...] = ()
    try:
        pos = statement_end + 1
        formats, pos = _int16s(wire, pos)
        (count,) = U16.unpack_from(wire, pos)
        pos += 2
        for _ in range(count):
            (length,) = I32.unpack_from(wire, pos)
            pos += 4
            if length < 0:
                values.append(None)
                continue
            if pos + length > len(wire):
                raise StructError("the value is not whole")
            values.append(wire[pos : pos + length])
            pos += length
        results, pos = _int16s(wire, pos)
        if pos != len(wire):
            raise UserPeerError("invalid message format", "08P01")
    except StructError as error:
        if rest_bytes:
            return Bind(portal, statement, formats, tuple(values), None)
        raise UserPeerError("invalid message format", "08P01") from error
    if rest_bytes:
        raise UserPeerError("invalid message format", "08P01")
    return Bind(portal, statement, formats, tuple(values), results)


def parse_bound_name(wire: bytes) -> bytes:
    """Return the statement's name of a Bind, whole or its head. Raises UserPeerError."""
    portal_end = wire.find(0, 5)
    statement_end = wire.find(0, portal_end + 1)
    if portal_end < 0 or statement_end < 0:
        raise UserPeerError("invalid message format", "08P01")
    return wire[portal_end + 1 : statement_end]


def parse_named(wire: bytes) -> tuple[int, bytes]:
    """Return (b'S' or b'P' as int, name) of a Describe or Close. Raises UserPeerError."""
    if len(wire) < 7 or wire[5] not in b"SP" or wire.find(0, 6) != len(wire) - 1:
        raise UserPeerError("invalid message format", "08P01")
    return wire[5], wire[6:-1]


def parse_execute(wire: bytes) -> tuple[bytes, int]:
    """Return (portal name, row limit: 0 = none) of an Execute. Raises UserPeerError."""
    end = wire.find(0, 5)
    if end < 0 or len(wire) != end + 5:
        raise UserPeerError("invalid message format", "08P01")
    return wire[5:end], I32.unpack_from(wire, end + 1)[0]


def parse_function_oid(wire: bytes) -> int:
    """Return the function oid of a FunctionCall. Raises UserPeerError."""
    if len(wire) < 9:
        raise UserPeerError("invalid message format", "08P01")
    oid: int = U32.unpack_from(wire, 5)[0]
    return oid


def format_of(formats: Sequence[int], index: int) -> int:
    """The format code of one item: no codes = all text, one = for all, else one each."""
    if not formats:
        return 0
    if len(formats) == 1:
        return formats[0]
    return formats[index] if index < len(formats) else 0


def _int16s(wire: bytes, pos: int) -> tuple[tuple[int, ...], int]:
    (count,) = U16.unpack_from(wire, pos)
    pos += 2
    if count == 0:
        return (), pos
    return Struct(f">{count}h").unpack_from(wire, pos), pos + 2 * count


# -- frontend messages: encoding (replacements, and what the gate asks for itself) ----------------------


def message(kind: int, body: bytes) -> bytes:
    """Frame a body."""
    return HEADER.pack(kind, len(body) + 4) + body


def encode_query(text: bytes) -> bytes:
    """A Query."""
    return message(QUERY, text + b"\0")


def encode_parse(name: bytes, text: bytes) -> bytes:
    """A Parse without parameter types."""
    return message(PARSE, name + b"\0" + text + b"\0\0\0")


def encode_bind(portal: bytes, statement: bytes) -> bytes:
    """A Bind without parameters."""
    return message(BIND, portal + b"\0" + statement + b"\0" + b"\0\0\0\0\0\0")


def encode_named(kind: int, which: int, name: bytes) -> bytes:
    """A Describe or a Close of a statement (b'S') or a portal (b'P')."""
    return message(kind, bytes((which,)) + name + b"\0")


def encode_execute(portal: bytes) -> bytes:
    """An Execute without a row limit."""
    return message(EXECUTE, portal + b"\0\0\0\0\0")


def encode_function_call_zero() -> bytes:
    """A FunctionCall of oid 0, which no database has (42883)."""
    return message(FUNCTION_CALL, b"\0\0\0\0" + b"\0\0" + b"\0\0" + b"\0\0")


# -- backend messages -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a RowDescription."""

    name: str
    table_oid: int
    attnum: int
    type_oid: int
    type_mod: int
    format: int


def parse_row_description(wire: bytes) -> tuple[Field, ...]:
    """Decode a RowDescription ('T'); the same statement gives the same bytes again. Raises TargetPeerError."""
    return _cached_description(wire) if len(wire) <= CACHED_DESCRIPTION_BYTES else _description(wire)


def _description(body: bytes) -> tuple[Field, ...]:
    try:
        (count,) = U16.unpack_from(body, 5)
        pos = 7
        fields = []
        for _ in range(count):
            end = body.index(0, pos)
            table, attnum, type_oid, _, type_mod, code = FIELD.unpack_from(body, end + 1)
            fields.append(Field(body[pos:end].decode("utf-8", "replace"), table, attnum, type_oid, type_mod, code))
            pos = end + 1 + FIELD.size
    except (StructError, ValueError) as error:
        raise TargetPeerError("the target sent a malformed RowDescription", "08P01") from error
    if pos != len(body):
        raise TargetPeerError("the target sent a malformed RowDescription", "08P01")
    return tuple(fields)


_cached_description = lru_cache(CACHED_DESCRIPTIONS)(_description)


def parse_parameter_description(wire: bytes) -> tuple[int, ...]:
    """Return the parameter type oids of a ParameterDescription ('t'). Raises TargetPeerError."""
    try:
        (count,) = U16.unpack_from(wire, 5)
        return Struct(f">{count}I").unpack_from(wire, 7)
    except StructError as error:
        raise TargetPeerError("the target sent a malformed ParameterDescription", "08P01") from error


def parse_copy_response(wire: bytes) -> tuple[int, tuple[int, ...]]:
    """Return (overall format, per-column formats) of a CopyIn/Out/BothResponse. Raises TargetPeerError."""
    try:
        formats, _ = _int16s(wire, 6)
        return wire[5], formats
    except (StructError, IndexError) as error:
        raise TargetPeerError("the target sent a malformed CopyResponse", "08P01") from error


def parse_notification(wire: bytes) -> tuple[int, bytes, bytes]:
    """Return (pid, channel, payload) of a NotificationResponse ('A'). Raises TargetPeerError."""
    channel_end = wire.find(0, 9)
    payload_end = wire.find(0, channel_end + 1)
    if channel_end < 0 or payload_end < 0:
        raise TargetPeerError("the target sent a malformed NotificationResponse", "08P01")
    return U32.unpack_from(wire, 5)[0], wire[9:channel_end], wire[channel_end + 1 : payload_end]


def encode_notification(pid: int, channel: bytes, payload: bytes) -> bytes:
    """A NotificationResponse."""
    return message(ord("A"), U32.pack(pid) + channel + b"\0" + payload + b"\0")


def parse_parameter_status(wire: bytes) -> tuple[str, str]:
    """Return (name, value) of a ParameterStatus ('S'). Raises TargetPeerError."""
    parts = wire[5:].split(b"\0")
    if len(parts) != 3:
        raise TargetPeerError("the target sent a malformed ParameterStatus", "08P01")
    return parts[0].decode("utf-8", "replace"), parts[1].decode("utf-8", "replace")


def command_tag(wire: bytes) -> str:
    """The tag of a CommandComplete ('C')."""
    return wire[5:-1].decode("utf-8", "replace")
