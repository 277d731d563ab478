"""Pure encoders of terminal casts: asciicast v2 and v3. Pieces of a transcript go in, lines of JSON come out.

Times are quantised from the absolute time, so the error of one interval is made good by the next: a long v3 cast
does not drift. Sources: docs.asciinema.org/manual/asciicast/v2 and /v3. Left out: live streams (ALiS).
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, Protocol

Code = Literal["o", "i", "m", "r", "x"]


class Piece(NamedTuple):
    """Text at a time: o shown, i typed, m a marker, r a new size ("COLSxROWS"), x the exit status."""

    t_ns: int
    code: Code
    text: str


class Encoder(Protocol):
    """Encodes one cast, event by event."""

    def header(self, columns: int, rows: int, timestamp: int, title: str, **more: Any) -> str:
        """Return the first line."""

    def event(self, piece: Piece) -> str:
        """Return the line of one event; "" if the format has no such event."""


class CastV2:
    """asciicast v2: [seconds since the start, code, data]."""

    def __init__(self) -> None:
        self._last_us = 0

    def header(self, columns: int, rows: int, timestamp: int, title: str, **more: Any) -> str:
        """Return the first line. more: duration, idle_time_limit, env, ..."""
        return _line({"version": 2, "width": columns, "height": rows, "timestamp": timestamp, "title": title, **more})

    def event(self, piece: Piece) -> str:
        """Return the line of one event. v2 has no exit status."""
        if piece.code == "x":
            return ""
        self._last_us = max(self._last_us, piece.t_ns // 1000)
        return _line([self._last_us / 1e6, piece.code, piece.text])


class CastV3:
    """asciicast v3: [seconds since the event before, code, data]."""

    def __init__(self) -> None:
        self._last_ms = 0

    def header(self, columns: int, rows: int, timestamp: int, title: str, **more: Any) -> str:
        """Return the first line. more: idle_time_limit, command, env, tags."""
        more.pop("duration", None)  # v3 has none: the intervals say it
        term = {"cols": columns, "rows": rows}
        return _line({"version": 3, "term": term, "timestamp": timestamp, "title": title, **more})

    def event(self, piece: Piece) -> str:
        """Return the line of one event."""
        now_ms = max(self._last_ms, (piece.t_ns + 500_000) // 1_000_000)
        interval, self._last_ms = now_ms - self._last_ms, now_ms
        return _line([interval / 1000, piece.code, piece.text])


def _line(value: object) -> str:
    # ASCII only: no decoder on the way can trip over it, and no terminal that it is printed to.
    return json.dumps(value, ensure_ascii=True, separators=(", ", ": ")) + "\n"
