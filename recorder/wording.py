"""How the transcripts say things: colours (of the sixteen), durations, sizes, moments. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

GREEN, RED, YELLOW, CYAN, DIM, BOLD = "32", "31", "33", "36", "2", "1"
ALARM: Final = "97;41"  # white on red
OTHER: Final = "35"  # what a program said on its error channel


def duration(ns: int) -> str:
    """12.7 ms, 3.41 s, 2 min 5 s."""
    if ns < 1_000_000_000:
        return f"{ns / 1e6:.1f} ms"
    if ns < 60_000_000_000:
        return f"{ns / 1e9:.2f} s"
    return f"{ns // 60_000_000_000} min {ns // 1_000_000_000 % 60} s"


def size(value: object) -> str:
    """812 B, 3.4 KiB, 12.0 MiB, 2.0 TiB; of what is no number 0 B."""
    left = float(value) if isinstance(value, int) else 0.0
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if left < 1024 or unit == "TiB":
            return f"{left:.0f} B" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1024
    raise AssertionError


def moment(wall_ns: object) -> str:
    """2026-11-21 10:00:03 UTC; "" of what is no time."""
    if not isinstance(wall_ns, int):
        return ""
    try:
        return f"{datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return ""
