"""Rows of JSON: timestamps as the real service writes them, and what insertAll would refuse.

Source: cloud.google.com/bigquery/docs/reference/rest/v2/DataFormatOptions and .../tabledata/insertAll.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Field = Mapping[str, Any]


def with_float_timestamps(fields: Sequence[Field], rows: Sequence[dict[str, Any]]) -> None:
    """Turn integer microseconds to seconds, "1.767323045123456E9", in place."""
    for row in rows:
        for field, cell in zip(fields, row["f"], strict=False):
            cell["v"] = _value(field, cell["v"])


def _value(field: Field, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [{"v": _value(field, each["v"])} for each in value]
    if "fields" in field:
        with_float_timestamps(field["fields"], [value])
        return value
    return _seconds(value) if field["type"] == "TIMESTAMP" else value


def _seconds(micros: str) -> str:
    """As Java writes a double, from the digits, so that none is lost."""
    sign, digits = ("-", micros[1:]) if micros.startswith("-") else ("", micros)
    if not digits.strip("0"):
        return "0.0"
    exponent = len(digits) - 7
    return f"{sign}{digits[0]}.{digits[1:].rstrip('0') or '0'}E{exponent}"


def insert_errors(fields: Sequence[Field], body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the insertErrors for rows with fields that the table has not; [] where all may go on."""
    if body.get("ignoreUnknownValues"):
        return []
    known = {field["name"].lower() for field in fields}
    rows = [row.get("json", {}) for row in body.get("rows", [])]
    wrong = {
        index: next(name for name in row if name.lower() not in known)
        for index, row in enumerate(rows)
        if any(name.lower() not in known for name in row)
    }
    errors = []
    for index in range(len(rows)) if wrong and not body.get("skipInvalidRows") else sorted(wrong):
        error = {"reason": "stopped", "location": "", "debugInfo": "", "message": ""}
        if index in wrong:
            message = f"no such field: {wrong[index]}."
            error = {"reason": "invalid", "location": wrong[index], "debugInfo": "", "message": message}
        errors.append({"index": index, "errors": [error]})
    return errors
