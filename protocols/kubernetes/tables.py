"""Answers as rows, for the people who replay a tape: a Table as it is, a list by what its objects are called.

It is a view: what cannot be read gives no rows, never an error. Source: meta/v1 Table; kubernetes note 2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

SHOWN_LIMIT: Final = 1024 * 1024  # bytes of an answer that is decoded; exchange.py keeps as much
ROWS_LIMIT: Final = 100
COLUMNS_LIMIT: Final = 50
CELL_LIMIT: Final = 500  # characters


@dataclass(frozen=True, slots=True)
class Shown:
    """The first rows of an answer. count: how many it has."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str | None, ...], ...] = ()
    count: int = 0


def read_answer(data: bytes) -> Any:
    """Return an answer's document, None where it is too large or no object of JSON."""
    if len(data) > SHOWN_LIMIT:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def rows_of(value: Any, everywhere: bool = False) -> Shown:
    """Return the rows of a Table or a list; none of anything else. everywhere: they are of all namespaces."""
    if not isinstance(value, dict):
        return Shown()
    kind = value.get("kind")
    if kind == "Table" and isinstance(value.get("columnDefinitions"), list):
        return _table(value, everywhere)
    if isinstance(kind, str) and kind.endswith("List") and isinstance(value.get("items"), list):
        return _list(value["items"])
    return Shown()


def error_of(value: Any) -> dict[str, str] | None:
    """Return what a failed request's Status says, None where the answer is none."""
    if not isinstance(value, dict) or value.get("kind") != "Status" or value.get("status") != "Failure":
        return None
    found = {"code": str(value.get("code", "")), "message": _cell(value.get("message")) or ""}
    if isinstance(value.get("reason"), str):
        found["reason"] = value["reason"][:CELL_LIMIT]
    return found


def _table(value: dict[str, Any], everywhere: bool) -> Shown:
    heads = [head for head in value["columnDefinitions"] if isinstance(head, dict)]
    # Priority 0 is what kubectl shows without -o wide.
    chosen = [place for place, head in enumerate(heads) if not head.get("priority")][:COLUMNS_LIMIT]
    columns = tuple(str(heads[place].get("name", ""))[:CELL_LIMIT] for place in chosen)
    held = value.get("rows")
    lines = held if isinstance(held, list) else []
    rows = []
    for line in lines[:ROWS_LIMIT]:
        cells = line.get("cells") if isinstance(line, dict) else None
        if isinstance(cells, list):
            rows.append((_namespace(line), *(_cell(cells[place]) if place < len(cells) else None for place in chosen)))
    # A Table has no such column: kubectl adds it, from the objects' metadata.
    if everywhere and any(row[0] for row in rows):
        return Shown(("Namespace", *columns), tuple(rows), len(lines))
    return Shown(columns, tuple(row[1:] for row in rows), len(lines))


def _namespace(line: dict[str, Any]) -> str | None:
    object_ = line.get("object")
    meta = object_.get("metadata") if isinstance(object_, dict) else None
    return _cell(meta.get("namespace")) if isinstance(meta, dict) else None


def _list(items: list[Any]) -> Shown:
    rows = []
    for item in items[:ROWS_LIMIT]:
        meta = item.get("metadata") if isinstance(item, dict) else None
        meta = meta if isinstance(meta, dict) else {}
        rows.append(tuple(_cell(meta.get(key)) for key in ("namespace", "name", "creationTimestamp")))
    if not any(row[0] for row in rows):
        return Shown(("NAME", "CREATED"), tuple(row[1:] for row in rows), len(items))
    return Shown(("NAMESPACE", "NAME", "CREATED"), tuple(rows), len(items))


def _cell(value: Any) -> str | None:
    match value:
        case None:
            return None
        case str():
            text = value
        case _:
            text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= CELL_LIMIT else text[:CELL_LIMIT] + "..."
