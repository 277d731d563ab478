"""The rows of answers under masks: ``{"f":[{"v":X}, ...]}`` in the order of the schema, in and out.

How: a schema is compiled to the exact types of its rows, which msgspec decodes at the speed of C and without leave for
anything else: an object with other keys, a row with more or fewer cells, a number or an object where a string belongs
refuses the page. A column without a masked leaf is not taken apart: its cells stay the bytes that they are, in their
place, which the number of cells in each row keeps; of the first FORM_ROWS_LIMIT rows they are taken apart as the others
are. Then the masks walk by columns, not by rows: of one level of records all cells of one field are
collected and replaced, then those of the next level below. A column of a RECORD without masked leaves is not walked.

What a cell mask (proxy/core/events.CellMask) is given is the value's text; of BYTES it is the bytes behind the base64,
so that detectors see them. Where it gives NULL, and NULL does not decode (REQUIRED, an element of a REPEATED field),
the field's zero stands (schema.py); a REPEATED field that is NULL as a whole is an empty list, as BigQuery itself shows
it. A NULL stays NULL, and lists keep their lengths otherwise.

Masks go by places, so rows that do not belong to the schema must not pass: besides the shape of all cells, the values
of the first FORM_ROWS_LIMIT rows are held against the forms of their types. Columns of equal types that changed places
cannot be told here: whoever calls must know that the schema is that of these rows.

Left out: rows in Arrow (pages.py refuses them). Text that is not masked is written anew: escapes may differ, values do
not. Specification: BigQuery REST v2, TableRow and TableCell; RFC 8259.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import msgspec

from protocols.bigquery.schema import Field, Schema, Stamps, Type, Unreadable
from proxy.core.events import NULL_CELL, CellMask

# Rows whose values are held against their types: enough that each column shows some, and 1 ms of a page.
FORM_ROWS_LIMIT: Final = 64
# Compiled schemas that are kept: one of 1,000 columns is about 1 MB. A gateway's busy results are fewer.
COMPILED_LIMIT: Final = 128

_NUMBER: Final = re.compile(r"[-+]?(?:[0-9.]+(?:[eE][-+]?[0-9]+)?|NaN|nan|[iI]nf(?:inity)?)")
_TIME: Final = re.compile(r"[-+0-9:.TZ /]+")
_FORMS: Final[dict[Type, re.Pattern[str]]] = {
    "INTEGER": re.compile(r"-?[0-9]+"), "FLOAT": _NUMBER, "NUMERIC": _NUMBER, "BIGNUMERIC": _NUMBER,
    "BOOLEAN": re.compile(r"(?i:true|false)"), "DATE": _TIME, "TIME": _TIME, "DATETIME": _TIME, "INTERVAL": _TIME,
    "BYTES": re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"),
    "GEOGRAPHY": re.compile(r"[A-Z]+[-+A-Za-z0-9 (),.]*"),
    "RANGE": re.compile(r"\[[-+0-9:.TZ a-zA-Z]+,[-+0-9:.TZ a-zA-Z]+\)"),
}  # fmt: skip
_STAMPS: Final = {"float": _NUMBER, "integer": re.compile(r"-?[0-9]+"), "iso": _TIME}

# What msgspec makes of JSON: classes that are made from a schema, so that no checker can name them.
_Record = Any
_Cell = Any

_STRICT: Final[dict[str, Any]] = {"forbid_unknown_fields": True, "gc": False}
_Scalar: Final[Any] = msgspec.defstruct("Scalar", [("v", str | None)], **_STRICT)
_encode: Final[Callable[[Any], bytes]] = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Node:
    """One field at work; first and last: the numbers of its leaves, last not included."""

    field: Field
    cell: Callable[[_Record], _Cell]
    first: int
    last: int
    below: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """whole: decodes rows with all that is in them; decode: with what is masked alone."""

    whole: Callable[[Any], list[_Record]]
    decode: Callable[[Any], list[_Record]]
    nodes: tuple[_Node, ...]
    width: int


@lru_cache(COMPILED_LIMIT)
def _compile(schema: Schema, masked: frozenset[int]) -> _Compiled:
    """masked: the columns, by their places, of which a leaf is masked."""
    nodes, width = _nodes(schema, 0)
    whole, decode = (
        msgspec.json.Decoder(list[_record(schema, places)]).decode  # type: ignore[misc]
        for places in (None, masked)
    )
    return _Compiled(whole, decode, nodes, width)


def _record(fields: Schema, places: frozenset[int] | None = None) -> Any:  # Any: a type
    """The type of {"f": [...]}. The list is a structure of its own: faster than a tuple, and of an exact length.

    places: the cells that are taken apart; None: all.
    """
    cells = [
        (f"c{place}", _cell(each) if places is None or place in places else msgspec.Raw)
        for place, each in enumerate(fields)
    ]
    values = msgspec.defstruct("Values", cells, array_like=True, **_STRICT)
    return msgspec.defstruct("Record", [("f", values)], **_STRICT)


def _cell(field: Field) -> Any:  # Any: a type
    if field.type == "RECORD":
        single: Any = msgspec.defstruct("Nested", [("v", _record(field.fields) | None)], **_STRICT)
    else:
        single = _Scalar
    if field.mode != "REPEATED":
        return single
    return msgspec.defstruct("Repeated", [("v", list[single] | None)], **_STRICT)


def _nodes(fields: Schema, first: int) -> tuple[tuple[_Node, ...], int]:
    found = []
    for place, field in enumerate(fields):
        below, last = _nodes(field.fields, first) if field.type == "RECORD" else ((), first + 1)
        found.append(_Node(field, attrgetter(f"f.c{place}"), first, last, below))
        first = last
    return tuple(found), first


def mask_rows(
    data: bytes | msgspec.Raw, schema: Schema, cells: Sequence[CellMask | None], stamps: Stamps = "float"
) -> bytes:
    """Return a JSON list of rows with the cells of masked leaves replaced. Raises Unreadable.

    cells: one entry a leaf, in the order of schema.columns().
    """
    compiled = _compile(schema, _masked(schema, cells))
    if len(cells) != compiled.width:
        raise Unreadable("the masks are those of another schema")
    try:
        rows = compiled.decode(data)
        first = compiled.whole(_encode(rows[:FORM_ROWS_LIMIT]))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        # The error's own text names places, never values; but a tool's wording is not ours to show.
        raise Unreadable("the rows of an answer are not those of its schema") from error
    _check(first, compiled.nodes, stamps)
    _walk(rows, compiled.nodes, cells, stamps)
    return _encode(rows)


def _masked(schema: Schema, cells: Sequence[CellMask | None]) -> frozenset[int]:
    nodes, _ = _nodes(schema, 0)
    return frozenset(
        place for place, node in enumerate(nodes) if any(each is not None for each in cells[node.first : node.last])
    )


def _walk(records: list[_Record], nodes: tuple[_Node, ...], cells: Sequence[CellMask | None], stamps: Stamps) -> None:
    for node in nodes:
        if all(cells[leaf] is None for leaf in range(node.first, node.last)):
            continue
        column = list(map(node.cell, records))
        if node.field.mode == "REPEATED":
            if not node.below and cells[node.first] is NULL_CELL:
                for cell in column:
                    cell.v = cell.v and []
                continue
            column = [element for cell in column if cell.v for element in cell.v]
        if node.below:
            _walk([cell.v for cell in column if cell.v is not None], node.below, cells, stamps)
        else:
            mask = cells[node.first]
            assert mask is not None, "a leaf without a mask was passed over above"
            _replace(column, mask, node.field, stamps)


def _replace(column: list[_Cell], mask: CellMask, field: Field, stamps: Stamps) -> None:
    """Put what the mask makes of each value in its place."""
    null = None if field.mode == "NULLABLE" else field.zero(stamps)
    encoded = field.type == "BYTES"
    if isinstance(mask, bytes) or not callable(mask):
        new = _text(mask, encoded) if isinstance(mask, bytes) else null
        for cell in column:
            if cell.v is not None:
                cell.v = new
        return
    for cell in column:
        value = cell.v
        if value is None:
            continue
        before = _bytes_of(value) if encoded else value.encode()
        after = mask(before)
        if after is not before:
            cell.v = null if after is None else _text(after, encoded)


def _text(value: bytes, encoded: bool) -> str:
    return base64.b64encode(value).decode() if encoded else value.decode("utf-8", "replace")


def _bytes_of(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unreadable("a value of BYTES is no base64") from error


def _check(records: list[_Record], nodes: tuple[_Node, ...], stamps: Stamps) -> None:
    """Hold values against the forms of their types."""
    for node in nodes:
        column = list(map(node.cell, records))
        if node.field.mode == "REPEATED":
            column = [element for cell in column if cell.v for element in cell.v]
        values = [cell.v for cell in column if cell.v is not None]
        if node.below:
            _check(values, node.below, stamps)
            continue
        form = _STAMPS[stamps] if node.field.type == "TIMESTAMP" else _FORMS.get(node.field.type)
        if form is not None and not all(map(form.fullmatch, values)):
            raise Unreadable(f"a value of an answer is no {node.field.type}, so its rows are not those of its schema")
