"""The rows of an answer as display text, for the people who replay a tape. A view: it never raises, and never masks.

A STRUCT or a REPEATED value is shown as JSON, a TIMESTAMP as a date in UTC, everything else (masked values, too) as it
stands. What is longer than CELL_LIMIT is cut; NULL is None.

Specification: BigQuery REST v2, TableRow, TableCell, TableFieldSchema; RFC 8259.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from protocols.bigquery.schema import DEPTH_LIMIT, Field, Schema

COLUMNS_LIMIT: Final = 50  # as of Kubernetes' tables; ours
CELL_LIMIT: Final = 500  # characters
# Before the point, of a number that is taken for a time: microseconds of the year 9999 have 18.
_DIGITS_LIMIT: Final = 19

_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BARE: Final = frozenset({"INTEGER", "INT64", "FLOAT", "FLOAT64", "NUMERIC", "BIGNUMERIC", "BOOLEAN", "BOOL"})
_WORDS: Final = frozenset({"true", "false"})


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a column: enough to show its values."""

    name: str
    type: str = ""
    repeated: bool = False
    below: tuple[Shape, ...] = ()


def shapes_of(told: Any, known: Schema | None, rows: Sequence[Any]) -> tuple[Shape, ...]:
    """The columns: of the answer's schema, of the known one, or numbered as many as the first row has."""
    fields = as_map(told).get("fields")
    if isinstance(fields, list):
        return tuple(_shape(each, 0) for each in fields[:COLUMNS_LIMIT])
    if known is not None:
        return tuple(_known(each, 0) for each in known[:COLUMNS_LIMIT])
    cells = as_map(rows[0]).get("f") if rows else None
    return tuple(Shape(str(i + 1)) for i in range(min(len(cells), COLUMNS_LIMIT))) if isinstance(cells, list) else ()


def _shape(told: Any, depth: int) -> Shape:
    value = as_map(told)
    fields = value.get("fields")
    below = fields if isinstance(fields, list) and depth < DEPTH_LIMIT else []
    return Shape(
        as_text(value.get("name"), CELL_LIMIT),
        as_text(value.get("type"), CELL_LIMIT).upper(),
        value.get("mode") == "REPEATED",
        tuple(_shape(each, depth + 1) for each in below[:COLUMNS_LIMIT]),
    )


def _known(given: Field, depth: int) -> Shape:
    below = tuple(_known(each, depth + 1) for each in given.fields[:COLUMNS_LIMIT]) if depth < DEPTH_LIMIT else ()
    return Shape(given.name, given.type, given.mode == "REPEATED", below)


def row_of(row: Any, shapes: Sequence[Shape]) -> tuple[str | None, ...]:
    cells = as_map(row).get("f")
    cells = cells if isinstance(cells, list) else []
    return tuple(
        _shown(as_map(cells[place]).get("v"), shape) if place < len(cells) else None
        for place, shape in enumerate(shapes)
    )


def _shown(value: Any, shape: Shape) -> str | None:
    """A cell as text; None is NULL."""
    if value is None:
        return None
    if isinstance(value, str):
        return _scalar(value, shape)[:CELL_LIMIT]
    try:
        return _nested(value, shape, shape.repeated, 0)[:CELL_LIMIT]
    except RecursionError:
        return "..."


def _nested(value: Any, shape: Shape, repeated: bool, depth: int) -> str:
    """A value inside of another, as JSON."""
    if value is None:
        return "null"
    if isinstance(value, str):
        text = _scalar(value, shape)
        return (
            text
            if shape.type in _BARE and (_NUMBER.fullmatch(text) or text in _WORDS)
            else json.dumps(text, ensure_ascii=False)
        )
    if depth > 2 * DEPTH_LIMIT:
        return "..."
    if isinstance(value, list):
        return _joined("[", "]", (_element(each, shape, depth) for each in value))
    cells = as_map(value).get("f")
    if not isinstance(cells, list):
        return json.dumps(value, ensure_ascii=False)
    below = shape.below or tuple(Shape(str(i + 1)) for i in range(min(len(cells), COLUMNS_LIMIT)))
    pairs = zip(below, cells, strict=False)
    return _joined("{", "}", (_member(each, cell, depth) for each, cell in pairs))


def _element(cell: Any, shape: Shape, depth: int) -> str:
    return _nested(as_map(cell).get("v"), shape, False, depth + 1)


def _member(shape: Shape, cell: Any, depth: int) -> str:
    name = json.dumps(shape.name, ensure_ascii=False)
    return f"{name}: {_nested(as_map(cell).get('v'), shape, shape.repeated, depth + 1)}"


def _joined(opening: str, closing: str, parts: Iterator[str]) -> str:
    """The parts with commas; no more of them than are shown."""
    texts: list[str] = []
    size = 0
    for part in parts:
        texts.append(part)
        size += len(part) + 2
        if size > CELL_LIMIT:
            break
    return opening + ", ".join(texts) + closing


def _scalar(value: str, shape: Shape) -> str:
    return _moment(value) if shape.type == "TIMESTAMP" else value


def _moment(value: str) -> str:
    """A TIMESTAMP as a date: of seconds with an exponent or a fraction, or of microseconds. All else as it stands."""
    if len(value) > 40 or not _NUMBER.fullmatch(value):
        return value
    try:
        number = Decimal(value)
        if number.adjusted() > _DIGITS_LIMIT:
            return value
        micros = int(number) if value.lstrip("-").isdigit() else int(number * 1_000_000)
        return f"{_EPOCH + timedelta(microseconds=micros):%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".") + " UTC"
    except (InvalidOperation, OverflowError, ValueError):
        return value


def as_map(value: Any) -> dict[str, Any]:
    """The object that a value of any shape is; {} of what is none."""
    return value if isinstance(value, dict) else {}


def as_text(value: Any, limit: int) -> str:
    """The beginning of the string that a value of any shape is; "" of what is none."""
    return value[:limit] if isinstance(value, str) else ""
