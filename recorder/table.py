"""Lays out the first rows of a result as a table for a terminal: aligned, clipped, masked cells inverse."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from recorder.escape import clip, visible, width

CELL_LIMIT: Final = 44  # cells of one value: an e-mail address with the name of its mask fits
RULE_SGR: Final = "7"  # inverse: masked
_NUMBER: Final = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


def paint(text: str, sgr: str) -> str:
    """Put the text between a colour and its end."""
    return f"\x1b[{sgr}m{text}\x1b[0m"


def table(
    columns: Sequence[object], rows: Sequence[object], masks: Mapping[int, str], columns_limit: int, color: bool
) -> tuple[list[str], int]:
    """Return the lines of the table, and how many of its columns they show.

    rows: sequences of str or None; masks: the rule of each masked column.
    """
    names = [clip(_one_line(str(name)), CELL_LIMIT) for name in columns]
    cells = [[_cell(value, masks.get(i)) for i, value in enumerate(_row(row, len(names)))] for row in rows]
    widths = [max([width(name)] + [width(row[i]) for row in cells]) for i, name in enumerate(names)]
    shown, used = 0, 1
    while shown < len(names) and (shown == 0 or used + widths[shown] + 3 <= columns_limit - 4):
        used += widths[shown] + 3
        shown += 1
    rest = len(names) - shown
    right = [all(_NUMBER.fullmatch(row[i]) or row[i] == "NULL" for row in cells) and bool(cells) for i in range(shown)]
    lines = []
    for number, row in enumerate([names, *cells]):
        parts = []
        for i in range(shown):
            pad = " " * (widths[i] - width(row[i]))
            text = row[i]
            if color and number == 0:
                text = paint(text, "1")
            elif color and i in masks and row[i] != "NULL":
                text = paint(text, RULE_SGR)
            elif color and row[i] == "NULL":
                text = paint(text, "2")
            parts.append(pad + text if right[i] else text + pad)
        tail = f" +{rest}" if rest and number == 0 else ""
        lines.append("| " + " | ".join(parts) + " |" + tail)
    return lines, shown


def wrapped(head: str, items: Sequence[str], columns_limit: int) -> list[str]:
    """Return the items, with commas, on lines that are at most so wide; an item that is wider has a line of its own."""
    lines: list[str] = []
    line, used = head, width(head)
    for i, item in enumerate(items):
        text = item + ("," if i < len(items) - 1 else "")
        cells = width(text)
        if used + cells > columns_limit and line.strip() and line != head:
            lines.append(line.rstrip())
            line, used = " " * len(head), len(head)
        line += text + " "
        used += cells + 1
    return [*lines, line.rstrip()]


def _row(row: object, count: int) -> list[object]:
    """A row as the tape has it; a tape may say anything."""
    values = list(row) if isinstance(row, list | tuple) else []
    return (values + [None] * count)[:count]


def _cell(value: object, rule: str | None) -> str:
    if value is None:
        return "NULL"
    text = _one_line(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
    if rule is None:
        return clip(text, CELL_LIMIT)
    tag = clip(f"masked:{_one_line(rule)}", CELL_LIMIT // 2)
    return f"{clip(text, CELL_LIMIT - width(tag) - 1)} {tag}".strip()


def _one_line(text: str) -> str:
    # Without the selectors of text or emoji: terminals do not agree on how wide they make what is before them.
    text = text.replace("\ufe0f", "").replace("\ufe0e", "")
    return visible(text).replace("\n", "↵").replace("\t", " ")
