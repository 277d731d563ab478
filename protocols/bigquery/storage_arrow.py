"""Arrow record batches of the Storage API under masks: decoded, masked column by column, encoded in the same schema.

How: pyarrow reads a batch by the schema of its session. Of each masked leaf a new array is made: NULL or a constant
without a look at the values, a function's answers otherwise; lists and structs are put together around it, so that the
batch decodes by the schema that the user has already. A leaf that no mask speaks of keeps its buffers.

What a function of a mask is given is the value's text; of BYTES the bytes. Types that are no text (Column.kind "other")
become NULL, or the zero of their type where the field is REQUIRED or an element of a list.

pyarrow is loaded here alone, when masks meet rows in Arrow for the first time; without it they are refused.

Left out: dictionaries, unions, maps, views and extension types with code of their own: BigQuery sends none, they are
refused. A batch that comes compressed by buffers leaves uncompressed, as any reader takes it.
Specification: Arrow columnar format 1.x, IPC encapsulated messages; BigQuery docs, "Arrow schema details".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from protocols.bigquery.schema import DEPTH_LIMIT, FIELDS_LIMIT, NAME_LIMIT, Field, Mode, Schema, Type, Unreadable
from proxy.core.events import NULL_CELL, CellMask

MISSING: Final = (
    "gatecast: masks apply to these rows, and the gateway lacks pyarrow, without which it cannot read Arrow; ask its "
    "operator for it, or read over REST"
)
# Field metadata by which BigQuery tells types that Arrow has no own for. Source: docs, "Arrow schema details".
_EXTENSION: Final = b"ARROW:extension:name"
_NAMED: Final[dict[bytes, Type]] = {b"google:sqlType:json": "JSON", b"google:sqlType:geography": "GEOGRAPHY"}
_ZEROS: Final[dict[Type, object]] = {
    "STRING": "", "BYTES": b"", "JSON": "null", "GEOGRAPHY": "GEOMETRYCOLLECTION EMPTY", "BOOLEAN": False,
    "FLOAT": 0.0,
}  # fmt: skip

# Any: pyarrow has no types that mypy could use, and it need not be there.
_Array = Any


@dataclass(frozen=True, slots=True)
class _Node:
    """One field at work; first and last: the numbers of its leaves, last not included."""

    field: Field
    first: int
    last: int
    below: tuple[_Node, ...]


class ArrowRows:
    """The rows of one session."""

    def __init__(self, serialized: bytes) -> None:
        """Read a serialized schema. Raises Unreadable."""
        try:
            pyarrow: Any = import_module("pyarrow")
            import_module("pyarrow.compute")
            import_module("pyarrow.ipc")
        except ImportError as error:
            raise Unreadable(MISSING) from error
        self._arrow: Any = pyarrow
        try:
            self._schema: Any = pyarrow.ipc.read_schema(pyarrow.py_buffer(serialized))
        except (pyarrow.ArrowException, ValueError, OSError, EOFError) as error:
            raise Unreadable("the schema of these rows cannot be read") from error
        self.schema: Schema = self._fields(list(self._schema), 1)
        self._nodes, self._width = _nodes(self.schema, 0)
        if self._width > FIELDS_LIMIT:
            raise Unreadable(f"a schema has more than {FIELDS_LIMIT} fields")

    def mask(self, data: bytes, cells: Sequence[CellMask | None]) -> bytes:
        """Return a batch with the cells of each masked leaf replaced. Raises Unreadable."""
        if len(cells) != self._width:
            raise Unreadable("the masks are not of these columns")
        arrow = self._arrow
        try:
            batch = arrow.ipc.read_record_batch(arrow.py_buffer(data), self._schema)
            batch.validate(full=True)
            columns = [
                self._masked(column, node, cells) for column, node in zip(batch.columns, self._nodes, strict=True)
            ]
            made = arrow.RecordBatch.from_arrays(columns, schema=self._schema)
            if made.num_rows != batch.num_rows:
                raise Unreadable("a masked batch has other rows")
            written: bytes = made.serialize().to_pybytes()
        except (arrow.ArrowException, ValueError, OSError, EOFError, TypeError, OverflowError) as error:
            raise Unreadable("a batch of rows cannot be read by its schema") from error
        return written

    # -- the schema -----------------------------------------------------------------------------------

    def _fields(self, fields: list[Any], depth: int) -> Schema:
        if depth > DEPTH_LIMIT + 1:
            raise Unreadable(f"a schema is nested deeper than {DEPTH_LIMIT}")
        found = tuple(self._field(each, depth) for each in fields)
        if len({each.name.lower() for each in found}) != len(found):
            raise Unreadable("a schema has two fields of one name")
        return found

    def _field(self, field: Any, depth: int) -> Field:
        types = self._arrow.types
        mode: Mode = "NULLABLE" if field.nullable else "REQUIRED"
        kind, inner = field.type, field
        if types.is_list(kind):
            mode, inner, kind = "REPEATED", kind.value_field, kind.value_type
        if not 0 < len(field.name) <= NAME_LIMIT or "." in field.name:
            raise Unreadable("a field of a schema has no usable name")
        if types.is_struct(kind):
            below = self._fields([kind.field(place) for place in range(kind.num_fields)], depth + 1)
            if not below:
                raise Unreadable("a schema has a RECORD without fields")
            return Field(field.name, "RECORD", mode, below)
        metadata = {**(field.metadata or {}), **(inner.metadata or {})}
        return Field(field.name, self._type(kind, metadata.get(_EXTENSION, b"")), mode)

    def _type(self, kind: Any, named: bytes) -> Type:
        types = self._arrow.types
        tests: tuple[tuple[Callable[[Any], bool], Type], ...] = (
            (types.is_string, _NAMED.get(named, "STRING")), (types.is_int64, "INTEGER"), (types.is_float64, "FLOAT"),
            (types.is_boolean, "BOOLEAN"), (types.is_binary, "BYTES"), (types.is_decimal128, "NUMERIC"),
            (types.is_decimal256, "BIGNUMERIC"), (types.is_date32, "DATE"), (types.is_time64, "TIME"),
            (types.is_timestamp, "DATETIME" if getattr(kind, "tz", None) is None else "TIMESTAMP"),
            (types.is_interval, "INTERVAL"),
        )  # fmt: skip
        for test, name in tests:
            if test(kind):
                return name
        raise Unreadable(f"a schema has a field of a type that masks do not read ({str(kind)[:60]})")

    # -- values ---------------------------------------------------------------------------------------

    def _masked(self, array: _Array, node: _Node, cells: Sequence[CellMask | None]) -> _Array:
        if all(cell is None for cell in cells[node.first : node.last]):
            return array
        arrow = self._arrow
        if array.offset:
            raise Unreadable("a batch of rows is a slice")  # of which lists and structs are put together otherwise
        gone = array.is_null() if array.null_count else None
        if node.field.mode == "REPEATED":
            values = self._one(array.values, node, cells, nullable=False)
            return arrow.ListArray.from_arrays(array.offsets, values, type=array.type, mask=gone)
        return self._one(array, node, cells, nullable=node.field.mode == "NULLABLE")

    def _one(self, array: _Array, node: _Node, cells: Sequence[CellMask | None], *, nullable: bool) -> _Array:
        """Mask an array of a field, or of its elements."""
        if node.field.type != "RECORD":
            cell = cells[node.first]
            assert cell is not None, "a leaf without a mask"
            return self._leaf(array, node.field, cell, nullable)
        if array.offset:
            raise Unreadable("a batch of rows is a slice")
        gone = array.is_null() if array.null_count else None
        below = [self._masked(array.field(place), each, cells) for place, each in enumerate(node.below)]
        return self._arrow.StructArray.from_arrays(below, fields=list(array.type), mask=gone)

    def _leaf(self, array: _Array, field: Field, cell: CellMask, nullable: bool) -> _Array:
        arrow = self._arrow
        if cell is NULL_CELL and nullable:
            return arrow.nulls(len(array), array.type)
        if cell is NULL_CELL or isinstance(cell, bytes):
            value = self._constant(array, field, cell) if isinstance(cell, bytes) else self._zero(array, field)
            if not array.null_count:
                return arrow.repeat(value, len(array))
            return arrow.compute.if_else(array.is_valid(), value, arrow.scalar(None, array.type))
        assert callable(cell)
        if field.type in ("STRING", "JSON", "BYTES"):
            return self._texts(array, field, cell, nullable)
        return self._others(array, field, cell, nullable)

    def _zero(self, array: _Array, field: Field) -> Any:
        arrow = self._arrow
        if field.type == "INTERVAL":
            return arrow.scalar((0, 0, 0), array.type)
        if field.type in ("NUMERIC", "BIGNUMERIC"):
            return arrow.scalar(0, arrow.int64()).cast(array.type)
        if field.type in ("DATE", "TIME", "DATETIME", "TIMESTAMP"):
            bare = arrow.int32() if field.type == "DATE" else arrow.int64()
            return arrow.scalar(0, bare).cast(array.type)
        return arrow.scalar(_ZEROS.get(field.type, 0), array.type)

    def _constant(self, array: _Array, field: Field, cell: bytes) -> Any:
        """What a mask puts in the place of any value. Of types that are no text its image says zero (schema.py)."""
        if field.type in ("STRING", "JSON"):
            return self._arrow.scalar(cell.decode("utf-8", "replace"), array.type)
        return self._arrow.scalar(cell, array.type) if field.type == "BYTES" else self._zero(array, field)

    def _texts(self, array: _Array, field: Field, cell: Callable[[bytes], bytes | None], nullable: bool) -> _Array:
        arrow = self._arrow
        empty = None if nullable else (b"null" if field.type == "JSON" else b"")
        values = array.cast(arrow.binary()).to_pylist()
        made = [None if value is None else _or(cell(value), empty) for value in values]
        return array if made == values else arrow.array(made, arrow.binary()).cast(array.type)

    def _others(self, array: _Array, field: Field, cell: Callable[[bytes], bytes | None], nullable: bool) -> _Array:
        """Values that only a detector looks at: what it finds goes as a whole."""
        values = array.to_pylist()
        hits = [value is not None and cell(image := _image(value)) != image for value in values]
        if not any(hits):
            return array
        arrow = self._arrow
        value = arrow.scalar(None, array.type) if nullable else self._zero(array, field)
        return arrow.compute.if_else(arrow.array(hits, arrow.bool_()), value, array)


def _or(value: bytes | None, other: bytes | None) -> bytes | None:
    return other if value is None else value


def _image(value: object) -> bytes:
    """A value's text as detectors look at it."""
    return str(value).encode("utf-8", "replace")


def _nodes(fields: Schema, first: int) -> tuple[tuple[_Node, ...], int]:
    found = []
    for field in fields:
        below, last = _nodes(field.fields, first) if field.type == "RECORD" else ((), first + 1)
        found.append(_Node(field, first, last, below))
        first = last
    return tuple(found), first
