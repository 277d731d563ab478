"""Messages of the Storage Read API in protobuf's wire format: those that the gate reads, and nothing else of protobuf.

How: a Shape is a table of a message's fields. A request is read strictly: a field that the table does not have, one
that comes twice, a wrong wire type refuse it, as what two readers could read differently must not be decided on. What
leaves is written anew of what was read (encode). Answers are read leniently: unknown fields are skipped, of a field
that comes twice the last one counts, as in every reader; under masks they are written anew of known fields alone.

Values are str, bytes, int (varints, 64 bits, not zigzag: a negative int64 is a large number here), bytes of a fixed64
(doubles pass unread), a dict for a message, a list for a repeated field.

Left out: groups, packed fields, maps, extensions: no message here has any. Rows are looked into by storage_arrow.py and
storage_avro.py. Specification: protobuf encoding guide; google.cloud.bigquery.storage.v1 storage.proto, stream.proto,
arrow.proto, avro.proto; gRPC over HTTP/2, "Length-Prefixed-Message".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from proxy.core.errors import PeerError

FIELDS_LIMIT: Final = 100_000  # of one message: selected_fields of a table of 10,000 columns, and then some. Ours

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Kind = Literal["text", "bytes", "number", "double"]
_WIRE: Final[dict[str, int]] = {"text": _BYTES, "bytes": _BYTES, "number": _VARINT, "double": _FIXED64}


class Garbage(PeerError):
    """A message that is none of its kind."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message; shape: of a message in it."""

    name: str
    kind: Kind | Shape
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """A message: its fields, by their numbers."""

    fields: Mapping[int, Field]


TIMESTAMP: Final = Shape({1: Field("seconds", "number"), 2: Field("nanos", "number")})
ARROW_OPTIONS: Final = Shape(
    {2: Field("buffer_compression", "number"), 3: Field("picos_timestamp_precision", "number")}
)
AVRO_OPTIONS: Final = Shape({
    1: Field("enable_display_name_attribute", "number"), 2: Field("picos_timestamp_precision", "number"),
})  # fmt: skip
MODIFIERS: Final = Shape({1: Field("snapshot_time", TIMESTAMP)})
READ_OPTIONS: Final = Shape({
    1: Field("selected_fields", "text", repeated=True), 2: Field("row_restriction", "text"),
    3: Field("arrow_serialization_options", ARROW_OPTIONS), 4: Field("avro_serialization_options", AVRO_OPTIONS),
    5: Field("sample_percentage", "double"), 6: Field("response_compression_codec", "number"),
})  # fmt: skip
READ_STREAM: Final = Shape({1: Field("name", "text")})
ARROW_SCHEMA: Final = Shape({1: Field("serialized_schema", "bytes")})
AVRO_SCHEMA: Final = Shape({1: Field("schema", "text")})
READ_SESSION: Final = Shape({
    1: Field("name", "text"), 2: Field("expire_time", TIMESTAMP), 3: Field("data_format", "number"),
    4: Field("avro_schema", AVRO_SCHEMA), 5: Field("arrow_schema", ARROW_SCHEMA), 6: Field("table", "text"),
    7: Field("table_modifiers", MODIFIERS), 8: Field("read_options", READ_OPTIONS),
    10: Field("streams", READ_STREAM, repeated=True), 12: Field("estimated_total_bytes_scanned", "number"),
    13: Field("trace_id", "text"), 14: Field("estimated_row_count", "number"),
    15: Field("estimated_total_physical_file_size", "number"),
})  # fmt: skip
CREATE_READ_SESSION: Final = Shape({
    1: Field("parent", "text"), 2: Field("read_session", READ_SESSION), 3: Field("max_stream_count", "number"),
    4: Field("preferred_min_stream_count", "number"),
})  # fmt: skip
READ_ROWS: Final = Shape({
    1: Field("read_stream", "text"), 2: Field("offset", "number"),
    5: Field("arrow_serialization_options", ARROW_OPTIONS),
})  # fmt: skip
SPLIT_STREAM: Final = Shape({1: Field("name", "text"), 2: Field("fraction", "double")})
SPLIT_ANSWER: Final = Shape({1: Field("primary_stream", READ_STREAM), 2: Field("remainder_stream", READ_STREAM)})
PROGRESS: Final = Shape({1: Field("at_response_start", "double"), 2: Field("at_response_end", "double")})
ROWS: Final = Shape({
    2: Field("stats", Shape({2: Field("progress", PROGRESS)})),
    3: Field("avro_rows", Shape({1: Field("serialized_binary_rows", "bytes"), 2: Field("row_count", "number")})),
    4: Field("arrow_record_batch", Shape({
        1: Field("serialized_record_batch", "bytes"), 2: Field("row_count", "number"),
    })),
    5: Field("throttle_state", Shape({1: Field("throttle_percent", "number")})),
    6: Field("row_count", "number"),
    7: Field("avro_schema", AVRO_SCHEMA),
    8: Field("arrow_schema", ARROW_SCHEMA),
    9: Field("uncompressed_byte_size", "number"),
    10: Field("total_estimated_row_count", "number"),
})  # fmt: skip


def framed(message: bytes) -> bytes:
    """Return a message as a tape has it: behind its length, uncompressed. Source: gRPC, Length-Prefixed-Message."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def decode(shape: Shape, data: bytes, *, strict: bool) -> dict[str, Any]:  # Any: as the module docstring says
    """Read a message. strict: of a user, who may not say anything that is not understood. Raises Garbage."""
    found: dict[str, Any] = {}
    for number, wire, value in _scan(data):
        field = shape.fields.get(number)
        if field is None:
            if strict:
                raise Garbage(f"the request has a field that is not known here (number {number})")
            continue
        if wire != (_BYTES if isinstance(field.kind, Shape) else _WIRE[field.kind]):
            raise Garbage(f"the field {field.name} is of another type")
        read = _value(field, value, strict)
        if field.repeated:
            found.setdefault(field.name, []).append(read)
        elif strict and field.name in found:
            raise Garbage(f"the field {field.name} comes twice")
        elif isinstance(read, dict) and field.name in found:
            found[field.name] = {**found[field.name], **read}  # two of one message are merged
        else:
            found[field.name] = read
    return found


def _value(field: Field, value: int | bytes, strict: bool) -> Any:
    if isinstance(value, int):
        return value
    if isinstance(field.kind, Shape):
        return decode(field.kind, value, strict=strict)
    if field.kind != "text":
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Garbage(f"the field {field.name} is no text") from error


def encode(shape: Shape, values: Mapping[str, Any]) -> bytes:
    """Write a message; of a value that is not in the shape nothing is written."""
    parts: list[bytes] = []
    for number, field in sorted(shape.fields.items()):
        if field.name not in values:
            continue
        value = values[field.name]
        for each in value if field.repeated else (value,):
            if isinstance(field.kind, Shape):
                _put(parts, number, encode(field.kind, each))
            elif field.kind == "number":
                parts.append(_varint(number << 3 | _VARINT) + _varint(each))
            elif field.kind == "double":
                parts.append(_varint(number << 3 | _FIXED64) + each)
            else:
                _put(parts, number, each.encode() if isinstance(each, str) else each)
    return b"".join(parts)


def row_count(message: bytes) -> int:
    """Return how many rows a ReadRowsResponse says that it has, reading no more of it. Raises Garbage."""
    count = 0
    for number, wire, value in _scan(message, bodies=False):
        if number == 6 and wire == _VARINT and isinstance(value, int):
            count = value
    return count if count < 1 << 63 else 0


def _put(parts: list[bytes], number: int, data: bytes) -> None:
    parts += (_varint(number << 3 | _BYTES) + _varint(len(data)), data)


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift < 70:  # ten bytes at most
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, place
        shift += 7
    raise Garbage("a number of the message does not end")


def _scan(data: bytes, bodies: bool = True) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield number, wire type and value of each field. bodies False: of what has a length, nothing."""
    place, count, size = 0, 0, len(data)
    while place < size:
        count += 1
        if count > FIELDS_LIMIT:
            raise Garbage(f"the message has more than {FIELDS_LIMIT} fields")
        tag, place = _read_varint(data, place)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise Garbage("the message has a field without a number")
        if wire == _VARINT:
            value, place = _read_varint(data, place)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, place = _read_varint(data, place)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise Garbage("the message has a field of a kind that is not known here")
        if length > size - place:
            raise Garbage("the message ends in the middle of a field")
        yield number, wire, data[place : place + length] if bodies else b""
        place += length
