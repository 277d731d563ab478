"""The masks of a warehouse's columns as SQL of BigQuery, to stand where a query scans a table.

For each column of a table: the first mask whose pattern covers it (as proxy/masking/warehouse.py chooses for a column
of a result), and of its action and type an expression:

=========  =======================  ==================  =====================  ================================
           STRING                   BYTES               JSON                   all others
=========  =======================  ==================  =====================  ================================
redact     a literal                its bytes           a JSON string          NULL of the type
constant   a literal                its bytes           the text if JSON       NULL of the type
partial    stars and the last       as it is            as it is               NULL of the type
null       NULL                     NULL                NULL                   NULL of the type
hash       as it is                 as it is            as it is               NULL of the type
=========  =======================  ==================  =====================  ================================

"As it is" leaves the column to the mask of the result: the key of a hash never leaves the gateway. So it is for RANGE,
whose NULL needs a type that a schema's field does not tell here. partial still has the column for its origin, so that
the result is masked once more, to the same text; what it gains is that filters see no more than the user does.

A text stands for NULL as well: whether there is a value does not show. A RECORD is built anew of its fields, where any
of them is covered; one that is NULL stays NULL. What is REPEATED keeps its number of elements: as BigQuery gives out no
arrays with NULL in them, zeros stand there for NULL; the action null makes it empty. Detectors look at results and are
not here.

Specification: GoogleSQL for BigQuery, "Lexical structure" (literals), "Working with arrays", "Data types".
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Final

from proxy.core.events import Column
from proxy.core.verdict import Mask
from proxy.core.warehouse import SCANNED_ROW, Replacement, TableField
from proxy.masking.actions import PARTIAL_LIMIT, fixed_text
from proxy.masking.warehouse import FieldPatterns

# Columns and fields of a table: each is named where the table is scanned, and a text has at most 256 KB. Ours
FIELDS_LIMIT: Final = 1_000
# Sets of masks that are kept compiled: one a rule or two, for some groups of callers.
COMPILED_LIMIT: Final = 256

# Types of which CAST makes a NULL, by the names that schemas have for them.
_NULLS: Final = {
    "STRING": "STRING", "BYTES": "BYTES", "INTEGER": "INT64", "FLOAT": "FLOAT64", "NUMERIC": "NUMERIC",
    "BIGNUMERIC": "BIGNUMERIC", "BOOLEAN": "BOOL", "TIMESTAMP": "TIMESTAMP", "DATE": "DATE", "TIME": "TIME",
    "DATETIME": "DATETIME", "GEOGRAPHY": "GEOGRAPHY", "JSON": "JSON", "INTERVAL": "INTERVAL",
}  # fmt: skip
# In arrays; the same as protocols/bigquery/schema.py writes.
_ZEROS: Final = {
    "INTEGER": "CAST('0' AS INT64)", "FLOAT": "CAST('0' AS FLOAT64)", "NUMERIC": "CAST('0' AS NUMERIC)",
    "BIGNUMERIC": "CAST('0' AS BIGNUMERIC)", "BOOLEAN": "FALSE", "DATE": "CAST('1970-01-01' AS DATE)",
    "TIMESTAMP": "CAST('1970-01-01 00:00:00+00' AS TIMESTAMP)", "TIME": "CAST('00:00:00' AS TIME)",
    "DATETIME": "CAST('1970-01-01 00:00:00' AS DATETIME)", "INTERVAL": "CAST('0-0 0 0:0:0' AS INTERVAL)",
    "GEOGRAPHY": "ST_GEOGFROMTEXT('GEOMETRYCOLLECTION EMPTY')",
}  # fmt: skip
_TEXTS: Final = frozenset({"STRING", "BYTES", "JSON"})
_ESCAPED: Final = frozenset("\\'")
_ELEMENT: Final = "gatecast_element"
_PLACE: Final = "gatecast_place"


class WarehouseScans:
    """The masks of columns for scans: Gate.scans."""

    def covers(self, masks: tuple[Mask, ...], table: str) -> bool:
        """Tell whether any column pattern may cover something of a table ("project.dataset.table")."""
        patterns = _compiled(masks)
        return patterns.speaks and patterns.covering(Column("", (f"{table}.*",))) is not None

    def replacements(
        self, masks: tuple[Mask, ...], table: str, fields: Sequence[TableField]
    ) -> tuple[Replacement, ...] | None:
        """Return what each column of a table is to be shown as; None where that changes nothing, or cannot be said."""
        return replacements(masks, table, fields)


def replacements(masks: tuple[Mask, ...], table: str, fields: Sequence[TableField]) -> tuple[Replacement, ...] | None:
    """See WarehouseScans.replacements. table: "project.dataset.table", without decorators."""
    if not 0 < _count(fields) <= FIELDS_LIMIT or not all(map(_is_plain, fields)):
        return None
    writer = _Writer(_compiled(masks))
    found = tuple(
        Replacement(each.name, writer.field(each, f"{SCANNED_ROW}.`{each.name}`", f"{table}.{each.name}") or "")
        for each in fields
    )
    return found if any(each.expression for each in found) else None


@functools.lru_cache(maxsize=COMPILED_LIMIT)
def _compiled(masks: tuple[Mask, ...]) -> FieldPatterns:
    return FieldPatterns(masks)


class _Writer:
    """Writes expressions; names of elements are numbered, as they are nested."""

    def __init__(self, patterns: FieldPatterns) -> None:
        self._patterns = patterns
        self._elements = 0

    def field(self, field: TableField, value: str, origin: str) -> str | None:
        """What a field is shown as, None as it is. value: SQL that names it. origin: where its values come from."""
        if field.mode != "REPEATED":
            return self._single(field, value, origin)
        element, place = self._element()
        if field.type == "RECORD":
            shown = self._record(field, element, origin)
        else:
            mask = self._patterns.covering(Column("", (origin,)))
            if mask is not None and mask.action == "null" and field.type in _NULLS:
                return f"ARRAY<{_NULLS[field.type]}>[]"
            shown = None if mask is None else _masked(mask, field.type, element, _ZEROS.get(field.type))
        if shown is None:
            return None
        elements = f"UNNEST({value}) AS {element} WITH OFFSET AS {place} ORDER BY {place}"
        return f"ARRAY(SELECT {shown} FROM {elements})"  # noqa: S608  # of names that _is_plain has seen

    def _single(self, field: TableField, value: str, origin: str) -> str | None:
        if field.type != "RECORD":
            return self._leaf(field, value, origin)
        element, _ = self._element()
        shown = self._record(field, element, origin)
        # A subquery without rows is NULL; and it tells of no more columns than those that it shows.
        if shown is None:
            return None
        return f"(SELECT {shown} FROM UNNEST([{value}]) AS {element} WHERE {element} IS NOT NULL)"  # noqa: S608  # as above

    def _record(self, field: TableField, value: str, origin: str) -> str | None:
        parts = [
            (each.name, f"{value}.`{each.name}`", self.field(each, f"{value}.`{each.name}`", f"{origin}.{each.name}"))
            for each in field.fields
        ]
        if all(shown is None for _, _, shown in parts):
            return None
        return (
            f"STRUCT({', '.join(f'{plain if shown is None else shown} AS `{name}`' for name, plain, shown in parts)})"
        )

    def _leaf(self, field: TableField, value: str, origin: str) -> str | None:
        mask = self._patterns.covering(Column("", (origin,)))
        return None if mask is None else _masked(mask, field.type, value)

    def _element(self) -> tuple[str, str]:
        self._elements += 1
        return f"{_ELEMENT}_{self._elements}", f"{_PLACE}_{self._elements}"


def _masked(mask: Mask, kind: str, value: str, zero: str | None = None) -> str | None:
    """The expression of a masked leaf, None where it is left to the mask of the result. zero: what stands for NULL."""
    null = _NULLS.get(kind)
    if null is None:
        return None
    if mask.action == "null" or kind not in _TEXTS:
        return zero or f"CAST(NULL AS {null})"
    match mask.action, kind:
        case (("redact" | "constant"), "STRING"):
            return literal(fixed_text(mask).decode())
        case (("redact" | "constant"), "BYTES"):
            return f"CAST({literal(fixed_text(mask).decode())} AS BYTES)"
        case (("redact" | "constant"), _):
            return f"PARSE_JSON({literal(_document(mask))})"
        case "partial", "STRING":
            return _partial(value, mask.keep)
        case _:
            return None


def _partial(value: str, keep: int) -> str:
    """As actions.partial: stars, and the last characters where they are at most half of the value."""
    length = f"CHAR_LENGTH({value})"
    stars = f"REPEAT('*', LEAST({length}, {PARTIAL_LIMIT}))"
    if keep <= 0:
        return stars
    shown = f"CONCAT(REPEAT('*', LEAST({length} - {keep}, {PARTIAL_LIMIT})), SUBSTR({value}, -{keep}))"
    return f"IF({length} >= {2 * keep}, {shown}, {stars})"


def _document(mask: Mask) -> str:
    """The JSON that a mask writes: as proxy/masking/cells.py does."""
    text = fixed_text(mask).decode()
    if mask.action == "constant":
        try:
            json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return json.dumps(text)
        return text
    return json.dumps(text)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def literal(text: str) -> str:
    """A string literal on one line; what cannot be seen is written by its number."""
    return "'" + "".join(_character(each) for each in text) + "'"


def _character(each: str) -> str:
    if each in _ESCAPED:
        return "\\" + each
    if each.isprintable():
        return each
    return f"\\u{ord(each):04x}" if ord(each) < 0x10000 else f"\\U{ord(each):08x}"


def _count(fields: Sequence[TableField]) -> int:
    return sum(1 + _count(each.fields) for each in fields)


def _is_plain(field: TableField) -> bool:
    """Whether a field's name, and those below it, can stand between backticks and means what it says."""
    name = field.name
    return bool(name) and name.isprintable() and not set("`\\.") & set(name) and all(map(_is_plain, field.fields))
