"""Text for an operator's terminal: times, tables, and strangers' text made harmless.

A held command is written by an agent and read by the human who decides on it: an escape sequence in it could
redraw the screen, a bidirectional override could reorder it. So whatever is not printable is shown escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

# Verbs whose text says where or which, and not what is done.
_NAMES_ONLY: Final = frozenset({
    "direct-tcpip", "direct-streamlocal", "tcpip-forward", "streamlocal-forward", "forwarded-tcpip",
    "forwarded-streamlocal", "subsystem", "env", "signal",
})  # fmt: skip
COLUMN_LIMIT: Final = 60  # characters of a cell in a table; the detailed view shows all


def iso(seconds: float | None) -> str | None:
    """Return a time as ISO 8601 in UTC; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def harmless(text: str, *, lines: bool = False) -> str:
    """Escape what is not printable; lines: newlines and tabs stay."""
    return "".join(
        char if char.isprintable() or (lines and char in "\n\t") else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def span(seconds: float) -> str:
    """Return a length of time for people: 45 s, 9 min, 3 h, 12 d."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under their heads, in columns as wide as they need to be, the last one open-ended."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines) + "\n"


def labelled(verb: str, text: str) -> str:
    """A command's text for a person, behind its verb where the text alone is only a name: of a place, a service."""
    return f"{verb} {text}" if verb in _NAMES_ONLY else text


def fields(pairs: Sequence[tuple[str, str]]) -> str:
    """Lay out names and values below each other; empty values are left out."""
    width = max(len(name) for name, _ in pairs)
    return "".join(f"{name.ljust(width)}  {harmless(value)}\n" for name, value in pairs if value)


def _cell(value: str) -> str:
    text = harmless(value)
    return text if len(text) <= COLUMN_LIMIT else text[: COLUMN_LIMIT - 3] + "..."
