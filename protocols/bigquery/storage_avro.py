"""Rows in Avro's binary form, as the Storage API sends them, under masks: walked by their schema, and written anew.

How: the schema of a session is compiled to two functions a type: skip() finds the end of a value, copy() writes a value
with the masks that apply below it. A row is a record without a frame; what no mask speaks of is copied as it stands,
from one masked value to the next. A row that ends elsewhere than the schema says refuses the block.

What a function of a mask is given is the value's text; of BYTES the bytes. Types that are no text (Column.kind "other")
become NULL, or the zero of their type where the field has no null (REQUIRED, an element of an array).

Left out: maps, enums, fixed, unions of more than null and one type, names of types used twice: BigQuery sends none,
they are refused. Pure Python: some microseconds a value; clients in a hurry read Arrow (the Python one always does).
Specification: Apache Avro 1.11, "Binary encoding", "Logical types"; BigQuery docs, "Avro schema details".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from protocols.bigquery.schema import DEPTH_LIMIT, FIELDS_LIMIT, NAME_LIMIT, Field, Schema, Type, Unreadable
from proxy.core.events import NULL_CELL, CellMask

SCHEMA_LIMIT: Final = 4 * 1024 * 1024  # as proxy/core/jobs.SCHEMA_LIMIT

Shape = Literal["boolean", "int", "long", "float", "double", "bytes", "string"]
Skip = Callable[[bytes, int], int]
Copy = Callable[[bytes, int, bytearray], int]

_PLAIN: Final[dict[str, Type]] = {
    "boolean": "BOOLEAN", "int": "INTEGER", "long": "INTEGER", "float": "FLOAT", "double": "FLOAT", "bytes": "BYTES",
    "string": "STRING",
}  # fmt: skip
# By logicalType or sqlType. Source: BigQuery docs, "Avro schema details".
_LOGICAL: Final[dict[str, Type]] = {
    "date": "DATE", "time-micros": "TIME", "time-millis": "TIME", "timestamp-micros": "TIMESTAMP",
    "timestamp-millis": "TIMESTAMP", "local-timestamp-micros": "DATETIME", "datetime": "DATETIME",
    "JSON": "JSON", "GEOGRAPHY": "GEOGRAPHY", "DATETIME": "DATETIME", "INTERVAL": "INTERVAL",
}  # fmt: skip
_TEXT_ZEROS: Final[dict[Type, str]] = {
    "GEOGRAPHY": "GEOMETRYCOLLECTION EMPTY", "JSON": "null", "DATETIME": "1970-01-01T00:00:00",
    "INTERVAL": "0-0 0 0:0:0",
}  # fmt: skip
_NUMERIC_DIGITS: Final = 38  # precision of NUMERIC; more is BIGNUMERIC


@dataclass(frozen=True, slots=True)
class _Node:
    """A field at work. null: the place of null in its union, None where it has none; shape: of a leaf.

    items: whether it is an array (in whose elements null stands for the elements). first and last: its leaves.
    """

    field: Field
    shape: Shape | None
    null: int | None
    items: bool
    scale: int
    first: int
    last: int
    below: tuple[_Node, ...]
    outer: int | None = None  # the place of null in a union around an array


class AvroRows:
    """The rows of one session."""

    def __init__(self, text: str) -> None:
        """Read a schema. Raises Unreadable."""
        if len(text) > SCHEMA_LIMIT:
            raise Unreadable("the schema of these rows is too long")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unreadable("the schema of these rows cannot be read") from error
        if not isinstance(value, dict) or value.get("type") != "record":
            raise Unreadable("the schema of these rows is no record")
        self._nodes, self._width = _fields(value.get("fields"), 0, 1)
        self.schema: Schema = tuple(node.field for node in self._nodes)

    def mask(self, data: bytes, cells: Sequence[CellMask | None]) -> bytes:
        """Return rows with the cells of each masked leaf replaced. Raises Unreadable."""
        if len(cells) != self._width:
            raise Unreadable("the masks are not of these columns")
        copy = _record(self._nodes, cells)
        out, place = bytearray(), 0
        try:
            while place < len(data):
                after = copy(data, place, out)
                if not place < after <= len(data):
                    raise Unreadable("a row ends elsewhere than its schema says")
                place = after
        except (IndexError, ValueError, struct.error, ArithmeticError) as error:
            raise Unreadable("a row cannot be read by its schema") from error
        return bytes(out)


# -- the schema -----------------------------------------------------------------------------------------


def _fields(values: Any, first: int, depth: int) -> tuple[tuple[_Node, ...], int]:  # Any: decoded JSON
    if not isinstance(values, list) or not values or depth > DEPTH_LIMIT + 1:
        raise Unreadable("a record of a schema has no fields, or is nested too deeply")
    found = []
    for value in values:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT or "." in name:
            raise Unreadable("a field of a schema has no usable name")
        node = _node(name, value.get("type"), first, depth)
        first = node.last
        if first > FIELDS_LIMIT:
            raise Unreadable(f"a schema has more than {FIELDS_LIMIT} fields")
        found.append(node)
    if len({node.field.name.lower() for node in found}) != len(found):
        raise Unreadable("a schema has two fields of one name")
    return tuple(found), first


def _node(name: str, value: Any, first: int, depth: int) -> _Node:
    outer, value = _union(value)
    if isinstance(value, dict) and value.get("type") == "array":
        null, element = _union(value.get("items"))
        inner = _single(name, element, null, first, depth)
        field = Field(name, inner.field.type, "REPEATED", inner.field.fields)
        return _Node(field, inner.shape, null, True, inner.scale, first, inner.last, inner.below, outer)
    return _single(name, value, outer, first, depth)


def _single(name: str, value: Any, null: int | None, first: int, depth: int) -> _Node:
    mode: Literal["NULLABLE", "REQUIRED"] = "REQUIRED" if null is None else "NULLABLE"
    kind = value.get("type") if isinstance(value, dict) else value
    if kind == "record":
        below, last = _fields(value.get("fields"), first, depth + 1)
        field = Field(name, "RECORD", mode, tuple(node.field for node in below))
        return _Node(field, None, null, False, 0, first, last, below)
    if not isinstance(kind, str) or kind not in _PLAIN:
        raise Unreadable("a schema has a field of a type that masks do not read")
    shape: Any = kind
    found, scale = _PLAIN[kind], 0
    if isinstance(value, dict):
        logical = value.get("logicalType")
        if logical == "decimal" and kind == "bytes":
            precision, scale = value.get("precision"), value.get("scale", 0)
            if not isinstance(precision, int) or not isinstance(scale, int):
                raise Unreadable("a schema has a decimal of no precision")
            found = "NUMERIC" if precision <= _NUMERIC_DIGITS else "BIGNUMERIC"
        else:
            named = logical if isinstance(logical, str) and logical in _LOGICAL else value.get("sqlType")
            found = _LOGICAL.get(named, found) if isinstance(named, str) else found
    return _Node(Field(name, found, mode), shape, null, False, scale, first, first + 1, ())


def _union(value: Any) -> tuple[int | None, Any]:
    """Return the place of null in a union with one type, and that type; no union: None and the type."""
    if not isinstance(value, list):
        return None, value
    if len(value) != 2 or value.count("null") != 1:
        raise Unreadable("a schema has a union of more than null and one type")
    place = value.index("null")
    return place, value[1 - place]


# -- reading --------------------------------------------------------------------------------------------


def _long(data: bytes, place: int) -> tuple[int, int]:
    """Read a long (zigzag varint): the value and its end."""
    byte = data[place]
    place += 1
    value = byte & 0x7F
    shift = 7
    while byte > 0x7F:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise ValueError("a number does not end")
    return value >> 1 ^ -(value & 1), place


def _written(value: int) -> bytes:
    number = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _skip_long(data: bytes, place: int) -> int:
    while data[place] > 0x7F:
        place += 1
    return place + 1


def _skip_bytes(data: bytes, place: int) -> int:
    size, place = _long(data, place)
    if not 0 <= size <= len(data) - place:
        raise ValueError("a value is longer than its block")
    return place + size


_SKIPS: Final[dict[Shape, Skip]] = {
    "boolean": lambda data, place: place + 1, "int": _skip_long, "long": _skip_long,
    "float": lambda data, place: place + 4, "double": lambda data, place: place + 8,
    "bytes": _skip_bytes, "string": _skip_bytes,
}  # fmt: skip


def _unmasked(node: _Node) -> Skip:
    """Find the end of a field."""
    skip = _SKIPS[node.shape] if node.shape is not None else _skip_record(node.below)
    if node.null is not None:
        skip = _skip_union(node.null, skip)
    if not node.items:
        return skip
    skip = _skip_array(skip)
    return skip if node.outer is None else _skip_union(node.outer, skip)


def _skip_record(nodes: Sequence[_Node]) -> Skip:
    skips = [_unmasked(node) for node in nodes]

    def skip(data: bytes, place: int) -> int:
        for each in skips:
            place = each(data, place)
        return place

    return skip


def _skip_union(null: int, inner: Skip) -> Skip:
    def skip(data: bytes, place: int) -> int:
        choice, place = _choice(data, place)
        return place if choice == null else inner(data, place)

    return skip


def _skip_array(inner: Skip) -> Skip:
    def skip(data: bytes, place: int) -> int:
        while True:
            count, place = _block(data, place)
            if not count:
                return place
            for _ in range(count):
                place = inner(data, place)

    return skip


def _choice(data: bytes, place: int) -> tuple[int, int]:
    choice, place = _long(data, place)
    if choice not in (0, 1):
        raise ValueError("a union has no such type")
    return choice, place


def _block(data: bytes, place: int) -> tuple[int, int]:
    """Read the head of a block of an array; a negative count has the block's size behind it."""
    count, place = _long(data, place)
    if count < 0:
        count = -count
        place = _skip_long(data, place)
    if count > len(data) - place:  # every element takes a byte at least, as records without fields are refused
        raise ValueError("an array is longer than its block")
    return count, place


# -- writing --------------------------------------------------------------------------------------------


def _copy(node: _Node, cells: Sequence[CellMask | None]) -> Copy:
    """Copy a field of which something is masked."""
    if node.field.type == "RECORD":
        copy = _record(node.below, cells)
        if node.null is not None:
            copy = _copy_union(node.null, copy)
    else:
        cell = cells[node.first]
        assert cell is not None, "a leaf without a mask"
        copy = _leaf(node, cell)
    if not node.items:
        return copy
    copy = _copy_array(copy)
    return copy if node.outer is None else _copy_union(node.outer, copy)


def _record(nodes: Sequence[_Node], cells: Sequence[CellMask | None]) -> Copy:
    parts: list[tuple[Skip | None, Copy | None]] = [
        (_unmasked(node), None)
        if all(cell is None for cell in cells[node.first : node.last])
        else (None, _copy(node, cells))
        for node in nodes
    ]

    def copy(data: bytes, place: int, out: bytearray) -> int:
        start = place
        for skip, masked in parts:
            if skip is not None:
                place = skip(data, place)
            elif masked is not None:
                out += data[start:place]
                start = place = masked(data, place, out)
        out += data[start:place]
        return place

    return copy


def _copy_union(null: int, inner: Copy) -> Copy:
    def copy(data: bytes, place: int, out: bytearray) -> int:
        choice, place = _choice(data, place)
        out += _written(choice)
        return place if choice == null else inner(data, place, out)

    return copy


def _copy_array(inner: Copy) -> Copy:
    def copy(data: bytes, place: int, out: bytearray) -> int:
        while True:
            count, place = _block(data, place)
            out += _written(count)
            if not count:
                return place
            for _ in range(count):
                place = inner(data, place, out)

    return copy


def _leaf(node: _Node, cell: CellMask) -> Copy:
    """Copy a masked value, or an array's element."""
    shape, null = node.shape, node.null
    assert shape is not None, "a leaf without a shape"
    skip, zero, field = _SKIPS[shape], _zero(node), node.field
    text = field.type in ("STRING", "JSON", "BYTES")
    head = b"" if null is None else _written(1 - null)
    # An element may have a null of its own; BigQuery's have none.
    nothing = zero if null is None else _written(null)
    constant: bytes | None = None
    if cell is NULL_CELL:
        constant = nothing
    elif isinstance(cell, bytes):
        constant = head + (_written(len(cell)) + cell if text else zero)

    def copy(data: bytes, place: int, out: bytearray) -> int:
        if null is not None:
            choice, place = _choice(data, place)
            if choice == null:
                out += nothing
                return place
        after = skip(data, place)
        if after > len(data):
            raise ValueError("a value is longer than its block")
        if constant is not None:
            out += constant
            return after
        assert callable(cell)
        image = _image(node, data, place, after)
        made = cell(image)
        if made == image:
            out += head + data[place:after]
        elif made is None or not text:
            out += nothing
        else:
            out += head + _written(len(made)) + made
        return after

    return copy


def _zero(node: _Node) -> bytes:
    """A value without data that decodes as its type."""
    match node.shape:
        case "string":
            text = _TEXT_ZEROS.get(node.field.type, "").encode()
            return _written(len(text)) + text
        case "bytes":
            return _written(1) + b"\0" if node.field.type != "BYTES" else _written(0)
        case "float":
            return bytes(4)
        case "double":
            return bytes(8)
        case _:
            return b"\0"


def _image(node: _Node, data: bytes, place: int, after: int) -> bytes:
    """A value's text, as detectors look at it."""
    match node.shape:
        case "string" | "bytes":
            _, start = _long(data, place)
            value = data[start:after]
            if node.shape == "string" or node.field.type == "BYTES":
                return value
            return str(Decimal(int.from_bytes(value, "big", signed=True)).scaleb(-node.scale)).encode()
        case "float":
            return str(struct.unpack_from("<f", data, place)[0]).encode()
        case "double":
            return str(struct.unpack_from("<d", data, place)[0]).encode()
        case "boolean":
            return b"true" if data[place] else b"false"
        case _:
            return str(_long(data, place)[0]).encode()
