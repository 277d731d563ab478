"""A line on a terminal that says how far long work is: label, bar, percent, time left. Piped output gets nothing.

It appears only after a second, is redrawn five times a second at most, and is gone when the work is done, so
that quick work shows nothing and results stand alone. The clock is passed in. Left out: more than one bar at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TextIO

APPEARS_SECONDS: Final = 1.0
REDRAW_SECONDS: Final = 0.2
_CELLS: Final = 24
_ERASE: Final = "\r\x1b[K"


class ProgressLine:
    """Draws how much of a total is done. Use as a context manager, so that the line goes whatever happens."""

    def __init__(self, label: str, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._out = out
        self._clock = clock
        self._shown = out.isatty()
        self._began = clock()
        self._next = self._began + APPEARS_SECONDS
        self._drawn = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, done: int, total: int) -> None:
        """Say that so much of the total is done."""
        if not self._shown:
            return
        now = self._clock()
        if now < self._next or total <= 0:
            return
        self._next = now + REDRAW_SECONDS
        share = min(1.0, done / total)
        left = (now - self._began) * (1 - share) / share if share > 0 else 0.0
        bar = "#" * int(share * _CELLS)
        text = f"{self._label} [{bar.ljust(_CELLS)}] {share * 100:3.0f} %"
        self._out.write(f"{_ERASE}{text}  {_left(left)} left" if share > 0 else _ERASE + text)
        self._out.flush()
        self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            self._out.write(_ERASE)
            self._out.flush()
            self._drawn = False


def _left(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
