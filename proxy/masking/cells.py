"""From a mask and a column to what the codec calls for each cell: a constant where one will do, else a function.

A masked cell always decodes as its column's type (Column.kind):

text    any UTF-8 text behind the prefix.
json    a JSON document behind the prefix. A column mask makes it one JSON string (partial works on documents that are
        a string; all others are redacted). A detector works inside the document (jsontext.py).
other   the column's constant, else NULL. Detectors read the cell's image as text, where it has one, and on a match the
        *whole* cell becomes the constant: digits of numbers in both formats, texts inside of arrays, composites and
        ranges in both formats (binary ones hold them as they are). Types whose images no built-in detector can
        match (dates, booleans, UUIDs, short integers) are not read at all, unless there are custom detectors.

Not seen by detectors: what is encoded (bytea as hex, compressed, base64), binary arrays of numbers, binary dates.
A cell over DETECT_LIMIT is masked whole by the first mask that has detectors: it is never passed unread.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Final

from proxy.core.events import NULL_CELL, CellMask, Column
from proxy.core.verdict import Mask
from proxy.masking.actions import REDACTED, Replace, fixed_text, replacer
from proxy.masking.jsontext import JsonMask, json_string
from proxy.masking.scanner import DETECT_LIMIT, NEEDS_LIMIT, Scanner
from proxy.masking.texts import TextMask

# Types that no built-in detector can match, by PostgreSQL's names and the standard's.
_SILENT_TYPES: Final = frozenset(
    (
        "bool", "boolean", "int2", "smallint", "int4", "integer", "oid", "xid", "cid", "tid", "pg_lsn", "uuid",
        "float4", "real", "bit", "varbit", "box", "circle", "line", "lseg", "path", "point", "polygon",
        "date", "time", "timetz", "timestamp", "timestamptz", "interval", "time without time zone",
        "time with time zone", "timestamp without time zone", "timestamp with time zone",
    )
)  # fmt: skip
_NUMBER_TYPES: Final = frozenset(
    (
        "int2",
        "int4",
        "int8",
        "bigint",
        "smallint",
        "integer",
        "oid",
        "numeric",
        "decimal",
        "float8",
        "double precision",
        "money",
    )
)
# No built-in detector matches letters alone below this length (an AWS access key id may be letters alone).
_ALPHABETIC_BYTES: Final = 20


def column_mask(mask: Mask, column: Column, key: bytes) -> CellMask:
    """Return the cell mask of a column that a column pattern covers."""
    if mask.action == "null":
        return NULL_CELL
    if column.kind == "other":
        return NULL_CELL if column.constant is None else column.constant
    prefix = column.prefix
    if column.kind == "json":
        return _json_column(mask, prefix, key)
    if mask.action in ("redact", "constant"):
        return prefix + fixed_text(mask)
    return _behind_prefix(replacer(mask, key), prefix)


def _behind_prefix(replace: Replace, prefix: bytes) -> CellMask:
    if not prefix:
        return replace
    skip = len(prefix)

    def masked(cell: bytes) -> bytes | None:
        value = replace(cell[skip:])
        return None if value is None else prefix + value

    return masked


def _json_column(mask: Mask, prefix: bytes, key: bytes) -> CellMask:
    if mask.action == "constant" and _is_json(mask.text or ""):
        return prefix + (mask.text or "").encode()
    if mask.action in ("redact", "constant"):
        return prefix + json_string(fixed_text(mask))
    replace = replacer(mask, key)
    redacted = json_string(REDACTED.encode())

    def masked(document: bytes) -> bytes | None:
        if mask.action == "partial":
            if len(document) > DETECT_LIMIT or not document.lstrip().startswith(b'"'):
                return redacted
            try:
                document = json.loads(document).encode("utf-8", "surrogatepass")
            except (ValueError, AttributeError):
                return redacted
        value = replace(document)
        return redacted if value is None else json_string(value)

    return _behind_prefix(masked, prefix)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def detector_mask(texts: TextMask, numbers: Scanner | None, custom: bool, column: Column) -> CellMask | None:
    """Return the cell mask of a column for its detectors, None if they can match nothing in it.

    numbers scans for those detectors alone that match digits; None if there are none. custom: some are custom.
    """
    prefix = column.prefix
    if column.kind == "json":
        return _behind_prefix(JsonMask(texts), prefix)
    if column.kind == "text":
        if prefix:
            return _behind_prefix(texts, prefix)
        return text_cell(texts, custom)
    name = column.type_name.lower()
    if name in _SILENT_TYPES and not custom:
        return None
    constant = column.constant
    if name in _NUMBER_TYPES:
        if numbers is None:
            return None
        return _any_match(numbers, _NUMBER_IMAGES.get(name) if column.binary else None, constant)
    return _any_match(texts.scanner, None, constant)


def text_cell(texts: TextMask, custom: bool) -> Callable[[bytes], bytes | None]:
    """The hot path: a text cell without a match costs one length check and one scan."""
    gates = texts.scanner.gates
    shortest = texts.scanner.shortest
    opened = texts.opened
    alphabetic = 0 if custom else _ALPHABETIC_BYTES

    def masked(cell: bytes) -> bytes | None:
        size = len(cell)
        if size < shortest or (size < alphabetic and cell.isalpha()):
            return cell
        if size > DETECT_LIMIT:
            return texts.whole(cell)
        hits = gates(cell)
        return opened(cell, hits) if hits else cell

    needs = texts.scanner.needs
    if not needs:
        return masked
    one, two, three = (needs * NEEDS_LIMIT)[:NEEDS_LIMIT]  # as numbers: many times faster to look for than bytes

    def needing(cell: bytes) -> bytes | None:
        if one not in cell and two not in cell and three not in cell and len(cell) <= DETECT_LIMIT:
            return cell
        return masked(cell)

    return needing


def _any_match(
    scanner: Scanner, image: Callable[[bytes], bytes] | None, constant: bytes | None
) -> Callable[[bytes], bytes | None]:
    gates = scanner.gates
    shortest = 1 if image is not None else scanner.shortest

    def masked(cell: bytes) -> bytes | None:
        if len(cell) < shortest:
            return cell
        if len(cell) > DETECT_LIMIT:
            return constant
        text = cell if image is None else image(cell)
        hits = gates(text)
        return constant if hits and scanner.locate(text, hits) else cell

    return masked


def _integer(cell: bytes) -> bytes:
    return b"%d" % int.from_bytes(cell, "big", signed=True)


def _float(cell: bytes) -> bytes:
    if len(cell) != 8:
        return cell
    (value,) = struct.unpack(">d", cell)
    return b"%d" % int(value) if value == value and abs(value) < 1e19 and value == int(value) else repr(value).encode()


def _numeric(cell: bytes) -> bytes:
    """The digits of a binary numeric. Source: PostgreSQL src/backend/utils/adt/numeric.c, numeric_send."""
    if len(cell) < 8 or len(cell) % 2:
        return cell
    count, weight, sign, _ = struct.unpack_from(">HhHH", cell)
    groups: Sequence[int] = struct.unpack_from(f">{(len(cell) - 8) // 2}H", cell, 8)
    if count != len(groups) or sign not in (0, 0x4000) or weight > 64:
        return cell
    whole = [groups[place] if place < count else 0 for place in range(weight + 1)]
    fraction = groups[weight + 1 :] if weight >= 0 else groups
    text = b"".join(b"%04d" % group for group in whole).lstrip(b"0") or b"0"
    return text + (b"." + b"".join(b"%04d" % group for group in fraction) if fraction else b"")


_NUMBER_IMAGES: Final[dict[str, Callable[[bytes], bytes]]] = {
    **dict.fromkeys(("int2", "int4", "int8", "bigint", "smallint", "integer", "oid", "money"), _integer),
    **dict.fromkeys(("numeric", "decimal"), _numeric),
    **dict.fromkeys(("float8", "double precision"), _float),
}
