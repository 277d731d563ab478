"""How to play: the options of ``gatecast replay``, as a value (player_arguments.py has them as arguments).

A place on a tape is given as seconds since its beginning (``90``, ``90.5``), as ``5m``, ``90s``, ``2h``, ``mm:ss`` or
``h:mm:ss``, or as a wall-clock time in ISO 8601 (``2026-11-21T10:00:03Z``; without a zone it is UTC, as all that we
print). Source: ISO 8601 as datetime.fromisoformat reads it.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

SPEED_LIMIT: Final = 64.0
_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d|)")
_CLOCK: Final = re.compile(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{2}(?:\.\d{1,9})?)")


class BadOption(ValueError):
    """An option says nothing that can be done; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to play. idle_limit_seconds: longer pauses are cut to it (None: real timing).

    start, stop: where to begin and to end, as the docstring above has it; from_seconds is the same as start. command:
    begin with this one, counted from 1. color: None = if the output is a terminal and NO_COLOR is not set. follow: go
    on as a live tape grows. plain: all at once, without timing and keys. raw: a terminal session's bytes as they were.
    markers: print where the markers are, and no more. flow: play one stream alone. flows: print a list of the streams,
    and no more; json: as JSON. interleave: no terminal gets the screen to itself. http:
    the messages of a session of HTTP as they are.
    """

    speed: float = 1.0
    idle_limit_seconds: float | None = None
    from_seconds: float = 0.0
    start: str | None = None
    stop: str | None = None
    command: int | None = None
    follow: bool = False
    color: bool | None = None
    columns: int | None = None
    plain: bool = False
    raw: bool = False
    markers: bool = False
    pause_on_markers: bool = False
    flow: int | None = None
    flows: bool = False
    json: bool = False
    interleave: bool = False
    http: bool = False

    def start_ns(self, wall0_ns: int) -> int:
        """Where to begin, in nanoseconds since the tape was opened. Raises BadOption."""
        return int(self.from_seconds * 1e9) if self.start is None else place_ns(self.start, wall0_ns)

    def stop_ns(self, wall0_ns: int) -> int | None:
        """Where to end. Raises BadOption."""
        return None if self.stop is None else place_ns(self.stop, wall0_ns)

    def wants_color(self, terminal: bool) -> bool:
        """Whether to use colours on such an output. Source: no-color.org, a value that is not empty."""
        return self.color if self.color is not None else terminal and not os.environ.get("NO_COLOR")


def place_ns(text: str, wall0_ns: int) -> int:
    """Return a place on a tape that was opened at wall0_ns, at least 0. Raises BadOption."""
    text = text.strip()
    if span := _SPAN.fullmatch(text):
        return int(float(span[1]) * _UNITS[span[2]] * 1e9)
    if clock := _CLOCK.fullmatch(text):
        return int((int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])) * 1e9)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise BadOption(f"{text!r} is no time: 90, 90s, 5m, 1:30, or 2026-11-21T10:00:03Z") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    since = when - datetime.fromtimestamp(wall0_ns // 1_000_000_000, UTC)
    return max(0, (since.days * 86400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000 - wall0_ns % 10**9)


def from_arguments(options: Namespace) -> ReplayOptions:
    """Make the value of parsed arguments. Raises BadOption."""
    if not 1 / SPEED_LIMIT <= options.speed <= SPEED_LIMIT:
        raise BadOption(f"--speed is {1 / SPEED_LIMIT:g} to {SPEED_LIMIT:g}")
    if options.nth is not None and options.nth < 1:
        raise BadOption("--command counts from 1")
    if options.flow is not None and options.flow < 0:
        raise BadOption("--flow counts from 0")
    for text in (options.start, options.stop):
        if text is not None:
            place_ns(text, 0)  # a mistake shows before the tape is opened
    return ReplayOptions(
        speed=options.speed,
        idle_limit_seconds=None if options.idle_limit is None else place_ns(options.idle_limit, 0) / 1e9,
        start=options.start,
        stop=options.stop,
        command=options.nth,
        follow=options.follow,
        color=False if options.no_colour else None,
        plain=options.plain,
        raw=options.raw,
        markers=options.markers,
        pause_on_markers=options.pause_on_markers,
        flow=options.flow,
        flows=options.flows,
        json=getattr(options, "json", False),
        interleave=options.interleave,
        http=options.http,
    )
