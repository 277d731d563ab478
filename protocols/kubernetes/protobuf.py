"""Kubernetes' protobuf as the same values that JSON gives: the envelope, and the messages of protobuf_data.py.

``k8s\\0``, then runtime.Unknown{1 TypeMeta{1 apiVersion, 2 kind}, 2 raw, 3 contentEncoding, 4 contentType}. Of a kind
that is not in the tables only the metadata is read; what is not read is told (Decoded.whole). Fields that come again
are read as Go's generated code does: messages merge, lists grow, the last scalar stands.

Left out: watch streams and answers (the gate asks for JSON where it reads them), groups (wire types 3 and 4).

Source: k8s.io/apimachinery/pkg/runtime/serializer/protobuf, generated.proto; protobuf encoding guide.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from protocols.kubernetes.protobuf_data import KINDS, MESSAGES
from proxy.core.http.heads import BadRequest

MAGIC: Final = b"k8s\0"
DEPTH_LIMIT: Final = 50  # of messages within each other; a CronJob's probe is some 12 deep; ours
_U64: Final = (1 << 64) - 1
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of a message. how: "" once, "*" repeated, "%" map, "<" inline."""

    name: str
    number: int
    type: str
    how: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """An object, and whether all of its message was in the tables."""

    value: dict[str, Any]
    whole: bool


class _Malformed(Exception):
    pass


def _parse(text: str) -> tuple[Field, ...]:
    found = []
    for item in text.split():
        name, number, kind = (*item.split(":"), "")[:3]
        how = kind[:1] if kind[:1] in ("*", "%", "<") else ""
        found.append(Field(name, int(number), kind.removeprefix(how) or "string", how))
    return tuple(found)


_SCHEMA: Final[Mapping[str, tuple[Field, ...]]] = {name: _parse(text) for name, text in MESSAGES.items()}
_BY_NUMBER: Final = {name: {field.number: field for field in fields} for name, fields in _SCHEMA.items()}


def message_of(api_version: str, kind: str) -> str | None:
    """Return the message of a kind, None where the tables have none."""
    if kind == "DeleteOptions":
        return kind
    group, _, version = api_version.rpartition("/")
    return KINDS.get((group, kind)) if version == "v1" else None


def decode(body: bytes) -> Decoded:
    """Read an object in its envelope. Raises BadRequest."""
    if not body.startswith(MAGIC):
        raise BadRequest(400, "the body is no protobuf of Kubernetes")
    try:
        return _envelope(body[len(MAGIC) :])
    except _Malformed as error:
        raise BadRequest(400, f"the protobuf is malformed: {error}") from error


def _envelope(data: bytes) -> Decoded:
    api_version, kind, raw = "", "", b""
    for number, value in _fields(data):
        if number == 1:
            for inner, text in _fields(_bytes(value)):
                if inner == 1:
                    api_version = _text(text)
                elif inner == 2:
                    kind = _text(text)
        elif number == 2:
            raw = _bytes(value)
        elif number == 3 and _bytes(value):
            raise _Malformed("an encoding within it")
        elif number == 4 and _bytes(value) not in (b"", b"application/vnd.kubernetes.protobuf"):
            raise _Malformed("another content within it")
    reader = _Reader()
    found: dict[str, Any] = {"apiVersion": api_version, "kind": kind}
    message = message_of(api_version, kind)
    if message is not None:
        reader.message(message, raw, found, 0)
        return Decoded(found, reader.whole)
    # Every object of the API has its metadata in field 1; what has other things there is not understood.
    try:
        for number, value in _fields(raw):
            if number == 1:
                reader.message("ObjectMeta", _bytes(value), found.setdefault("metadata", {}), 1)
    except _Malformed:
        found.pop("metadata", None)
    return Decoded(found, False)


class _Reader:
    """Reads messages into dicts; whole: every field was known."""

    def __init__(self) -> None:
        self.whole = True

    def message(self, name: str, data: bytes, into: dict[str, Any], depth: int) -> dict[str, Any]:
        """Add the fields of a message to an object; returns it."""
        if depth > DEPTH_LIMIT:
            raise _Malformed("it is nested too deeply")
        fields = _BY_NUMBER[name]
        for number, value in _fields(data):
            field = fields.get(number)
            if field is None or field.type == "other":
                self.whole = False
            elif field.type != "skip":
                self._field(field, value, into, depth + 1)
        return into

    def _field(self, field: Field, value: int | bytes, into: dict[str, Any], depth: int) -> None:
        match field.how:
            case "<":
                self.message(field.type, _bytes(value), into, depth)
            case "*":
                held = into.setdefault(field.name, [])
                if field.type == "int" and isinstance(value, bytes):
                    held.extend(map(_signed, _packed(value)))
                else:
                    held.append(self._value(field.type, value, None, depth))
            case "%":
                key, inner = "", b""
                for number, part in _fields(_bytes(value)):
                    if number == 1:
                        key = _text(part)
                    elif number == 2:
                        inner = _bytes(part)
                into.setdefault(field.name, {})[key] = self._value(field.type, inner, None, depth)
            case _:
                found = self._value(field.type, value, into.get(field.name), depth)
                if found is not None and found != "":
                    into[field.name] = found
                else:
                    into.pop(field.name, None)

    def _value(self, kind: str, value: int | bytes, old: Any, depth: int) -> Any:
        match kind:
            case "string":
                return _text(value)
            case "bytes" | "raw":
                data = _bytes(value)
                if kind == "raw":
                    data = b"".join(_bytes(part) for number, part in _fields(data) if number == 1)
                return base64.b64encode(data).decode()
            case "int" | "bool":
                if not isinstance(value, int):
                    raise _Malformed("a number in the wrong form")
                return bool(value) if kind == "bool" else _signed(value)
            case "double":
                if not isinstance(value, bytes) or len(value) != 8:
                    raise _Malformed("a number in the wrong form")
                return struct.unpack("<d", value)[0]
            case "quantity":
                return next((_text(part) for number, part in _fields(_bytes(value)) if number == 1), "")
            case "time":
                return _time(_bytes(value))
            case "int-or-string":
                return _int_or_string(_bytes(value))
            case _:
                return self.message(kind, _bytes(value), old if isinstance(old, dict) else {}, depth)


def _int_or_string(data: bytes) -> int | str:
    kind, number, text = 0, 0, ""
    for field, value in _fields(data):
        if field == 3:
            text = _text(value)
        elif isinstance(value, int):
            kind, number = (value, number) if field == 1 else (kind, _signed(value))
    return text if kind else number


def _time(data: bytes) -> str | None:
    seconds = next((_signed(value) for number, value in _fields(data) if number == 1 and isinstance(value, int)), None)
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError) as error:
        raise _Malformed("a time out of range") from error


# -- bytes ----------------------------------------------------------------------------------------------


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Cut a message into its fields: (number, an int, or the bytes of what has a length)."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _Malformed("a field without a number")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _LENGTH:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _Malformed("a field of an unknown form")
        if size > end - at:
            raise _Malformed("it is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _U64, at
        shift += 7
        if shift > 63:
            raise _Malformed("a number that is too long")
    raise _Malformed("it is cut off")


def _packed(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise _Malformed("a number in the place of a text")
    return value


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError as error:
        raise _Malformed("a text that is not UTF-8") from error


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# -- writing: what tests and tools need ------------------------------------------------------------------


def encode(value: Mapping[str, Any]) -> bytes:
    """Return an object of a known kind in its envelope. Raises ValueError for what the tables do not have."""
    api_version, kind = value["apiVersion"], value["kind"]
    message = message_of(api_version, kind)
    if message is None:
        raise ValueError(f"{api_version} {kind} is not in the tables")
    meta = _framed(1, api_version.encode()) + _framed(2, kind.encode())
    body = {key: each for key, each in value.items() if key not in ("apiVersion", "kind")}
    return MAGIC + _framed(1, meta) + _framed(2, encode_message(message, body)) + _framed(3, b"") + _framed(4, b"")


def encode_message(name: str, value: Mapping[str, Any]) -> bytes:
    """Return an object as the bytes of a message. Raises ValueError for a key that the message does not have."""
    left = set(value)
    found = _encode_fields(name, value, left)
    if left:
        raise ValueError(f"{name} has no {sorted(left)}")
    return found


def _encode_fields(name: str, value: Mapping[str, Any], left: set[str]) -> bytes:
    out = b""
    for field in _SCHEMA[name]:
        if field.how == "<":
            inner = _encode_fields(field.type, value, left)
            out += _framed(field.number, inner) if inner else b""
        elif field.name in value and field.type not in ("skip", "other"):
            left.discard(field.name)
            held = value[field.name]
            if field.how == "%":
                for key in sorted(held):
                    entry = _framed(1, key.encode()) + _encoded(2, field.type, held[key])
                    out += _framed(field.number, entry)
            else:
                for each in held if field.how == "*" else [held]:
                    out += _encoded(field.number, field.type, each)
    return out


def _encoded(number: int, kind: str, value: Any) -> bytes:
    match kind:
        case "string":
            return _framed(number, value.encode())
        case "bytes":
            return _framed(number, _unbased(value))
        case "raw":
            return _framed(number, _framed(1, _unbased(value)))
        case "int" | "bool":
            return _number(number << 3) + _number(int(value))
        case "double":
            return _number(number << 3 | _FIXED64) + struct.pack("<d", value)
        case "quantity":
            return _framed(number, _framed(1, value.encode()))
        case "time":
            seconds = int(datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
            return _framed(number, _number(8) + _number(seconds))
        case "int-or-string":
            if isinstance(value, str):
                return _framed(number, _number(8) + _number(1) + _framed(3, value.encode()))
            return _framed(number, _number(8) + _number(0) + _number(16) + _number(value))
        case _:
            return _framed(number, encode_message(kind, value))


def _unbased(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("no base64") from error


def _number(value: int) -> bytes:
    value &= _U64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _framed(number: int, data: bytes) -> bytes:
    return _number(number << 3 | _LENGTH) + _number(len(data)) + data
