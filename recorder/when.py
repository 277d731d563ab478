"""Times as people write them for --since and --until: 2026-11-21, 2026-11-21T10, 2h, 3d, yesterday.

A time stands for the whole of what it names, so that ``--since 2026-11-20 --until 2026-11-20`` is that day. Without an
offset it is UTC, as everything on a tape is. Source: ISO 8601 (calendar dates, extended format) and a few words.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGO: Final = re.compile(r"(\d{1,9})\s*(s|m|min|h|d|w)")
_ISO: Final = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?)?)?)?(Z|[+-]\d\d:?\d\d)?"
)
_SECOND_NS: Final = 1_000_000_000


def span_of(text: str, now_ns: int) -> tuple[int, int]:
    """Return the first nanosecond of what the text names, and the one behind its last. Raises ValueError."""
    word = text.strip()
    ago = _AGO.fullmatch(word.lower())
    if ago is not None:
        instant = now_ns - int(ago[1]) * _UNITS[ago[2]] * _SECOND_NS
        return instant, instant + 1
    today = datetime.fromtimestamp(now_ns // _SECOND_NS, UTC).replace(hour=0, minute=0, second=0)
    match word.lower():
        case "now":
            return now_ns, now_ns + 1
        case "today":
            return _ns(today), _ns(today + timedelta(days=1))
        case "yesterday":
            return _ns(today - timedelta(days=1)), _ns(today)
    found = _ISO.fullmatch(word.upper())
    if found is None:
        raise ValueError("a time is 2026-11-21, 2026-11-21T10:30, 2h, 3d, today or yesterday")
    try:
        return _iso_span(found)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"there is no such time: {error}") from error


def _iso_span(found: re.Match[str]) -> tuple[int, int]:
    year, month, day, hour, minute, second, fraction, offset = found.groups()
    if offset and not hour:
        raise ValueError("an offset belongs to an hour")
    begin = datetime(
        int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
    )
    if fraction:
        start = _ns(begin) - _offset_ns(offset) + int(fraction.ljust(9, "0"))
        return start, start + 10 ** (9 - len(fraction))
    if month is None:
        end = begin.replace(year=begin.year + 1)
    elif day is None:
        end = (begin + timedelta(days=31)).replace(day=1)
    elif hour is None:
        end = begin + timedelta(days=1)
    else:
        end = begin + timedelta(seconds=3600 if minute is None else 60 if second is None else 1)
    return _ns(begin) - _offset_ns(offset), _ns(end) - _offset_ns(offset)


def _offset_ns(offset: str | None) -> int:
    if offset is None or offset == "Z":
        return 0
    digits = offset[1:].replace(":", "")
    return (-1 if offset[0] == "-" else 1) * (int(digits[:2]) * 3600 + int(digits[2:]) * 60) * _SECOND_NS


def _ns(time: datetime) -> int:
    return int(time.timestamp()) * _SECOND_NS
