"""Column patterns of masks against the fields of a warehouse: ``project.dataset.table.column[.nested]``.

A pattern has a part for each name on the way; each part is a shell pattern (``*``, ``?``, ``[abc]``), matched on its
own. It covers the field that it names and all that lies below it. One of three parts is ``dataset.table.column`` of any
project, one of two is ``table.column`` of any dataset; to name a nested field takes all parts. A project may be scoped
by a domain (``example.com:project``): what stands before the colon belongs to it, dots included. As a column's name may
hold a colon as well, a name with one is read both ways, and either covers.

An origin (Column.origins) is such a name without wildcards, with two exceptions. Behind it may stand ``.*``: the value
may hold anything of what lies there, so it is covered by a pattern for anything below. A table may end in ``*``, as
wildcard tables do: it is covered if a table of that beginning may be. An origin that ends at a table or before is all
of it. No origins at all (None) is a value of which nobody knows where it comes from: the first mask covers it.

Names are compared without regard to case: columns have none in BigQuery, datasets may have none, and to mask too much
is the safe side. Decorators (``table$20260101``, ``table@0``) are no part of a name. A dataset that is not known ("")
may be any.

Left out: what is not a name but a value (_TABLE_SUFFIX); labels and policy tags. Specification: fnmatch of the standard
library, part by part; BigQuery docs, "Wildcard tables", "Case sensitivity".
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from proxy.core.events import Column
from proxy.core.verdict import Mask

# Source: BigQuery docs: a project 30 characters (and a domain of 253), a dataset and a table 1,024 bytes each, columns
# 300 and 15 levels of them: nobody writes that, a pattern of that length is a mistake.
PATTERN_LIMIT: Final = 2048
# A column, its project, dataset and table, and BigQuery's 15 levels below.
PARTS_LIMIT: Final = 19

_TABLE: Final = 2  # the place of the table among the parts
_NAMED: Final = 4  # parts of a column's full name
_WILD: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class FieldPattern:
    """One compiled pattern, in each way to read it."""

    readings: tuple[_Reading, ...]

    def covers(self, origin: str) -> bool:
        """Tell whether the value of an origin is covered, or may hold what is."""
        return any(reading.covers(names) for names in _readings(origin.lower()) for reading in self.readings)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A test for each part, and the plain beginning of the table's."""

    parts: tuple[re.Pattern[str], ...]
    table_head: str

    def covers(self, names: list[str]) -> bool:
        whole = names[-1] == "*" or len(names) < _NAMED
        names = names[:-1] if names[-1] == "*" else names
        if len(names) < len(self.parts) and not whole:
            return False
        return all(self._matches(place, name) for place, name in enumerate(names[: len(self.parts)]))

    def _matches(self, place: int, name: str) -> bool:
        if place < _TABLE and not name:
            return True
        if place == _TABLE:
            name = re.split(r"[$@]", name, maxsplit=1)[0]
            if "*" in name:
                head = name.partition("*")[0]
                return head.startswith(self.table_head) or self.table_head.startswith(head)
        return self.parts[place].match(name) is not None


class FieldPatterns:
    """The column patterns of some masks, in the order of the rules."""

    def __init__(self, masks: Sequence[Mask]) -> None:
        self._masks = tuple(
            (mask, tuple(compile_path(pattern) for pattern in mask.columns)) for mask in masks if mask.columns
        )

    @property
    def masks(self) -> tuple[Mask, ...]:
        """The masks that name columns."""
        return tuple(mask for mask, _ in self._masks)

    @property
    def speaks(self) -> bool:
        """Whether any mask names columns."""
        return bool(self._masks)

    def covering(self, column: Column) -> Mask | None:
        """Return the first mask that covers a column of a result, None if none does."""
        for mask, patterns in self._masks:
            if column.origins is None:
                return mask
            if any(pattern.covers(origin) for pattern in patterns for origin in column.origins):
                return mask
        return None


def compile_path(pattern: str) -> FieldPattern:
    """Compile a pattern that check_path found nothing wrong with."""
    readings = []
    for parts in _readings(pattern.lower()):
        parts = ["*"] * (_NAMED - len(parts)) + parts
        head = _WILD.split(parts[_TABLE], maxsplit=1)[0]
        readings.append(_Reading(tuple(re.compile(fnmatch.translate(part)) for part in parts), head))
    return FieldPattern(tuple(readings))


def _readings(name: str) -> list[list[str]]:
    """Return the parts of a dotted name; of one with a colon, first as if that made a domain and its project."""
    plain = name.split(".")
    domain, colon, rest = name.partition(":")
    if not colon or "." not in domain:
        return [plain]
    first, *others = rest.split(".")
    return [[f"{domain}:{first}", *others], plain]


def is_path(pattern: str) -> bool:
    """Tell whether a pattern has more parts than a database's columns have: it can only mean a warehouse's."""
    return pattern.count(".") >= _NAMED - 1


def check_path(pattern: str) -> str | None:
    """Return what is wrong with a pattern for a warehouse's fields, None if nothing is."""
    if len(pattern.encode("utf-8", "replace")) > PATTERN_LIMIT:
        return f"the column pattern is longer than {PATTERN_LIMIT} bytes"
    if "`" in pattern or '"' in pattern:
        return f"column pattern {pattern!r}: write names without quotes"
    parts = pattern.split(".")
    if len(parts) == 1:
        return f"column pattern {pattern!r} has no table; write '*.*.*.{pattern}' for a column of any table"
    if len(parts) > PARTS_LIMIT:
        return f"column pattern {pattern!r} has more than {PARTS_LIMIT} parts"
    if not all(part.strip() for part in parts):
        return f"column pattern {pattern!r} is not project.dataset.table.column or a field below one"
    return None
