"""Globs of rule files: fnmatch's, case-sensitive.

``*`` is any text, slashes too, ``?`` one character, ``[ab]`` one of these.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

_WILD: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True)  # no slots: cached_property keeps the compiled form in __dict__
class Globs:
    """A list of globs, of which any may match."""

    texts: tuple[str, ...]

    @cached_property
    def _literals(self) -> frozenset[str]:
        return frozenset(text for text in self.texts if not _WILD.search(text))

    @cached_property
    def _regex(self) -> re.Pattern[str] | None:
        wild = [fnmatch.translate(text) for text in self.texts if _WILD.search(text)]
        return re.compile("|".join(wild)) if wild else None

    @property
    def everything(self) -> bool:
        """Tell whether one of them is the glob that matches whatever there is."""
        return "*" in self.texts

    def match(self, value: str) -> bool:
        """Tell whether some glob matches the whole value."""
        return value in self._literals or (self._regex is not None and self._regex.match(value) is not None)

    def any(self, values: Iterable[str]) -> bool:
        """Tell whether some glob matches some value."""
        return any(map(self.match, values))

    def covers(self, other: Globs) -> bool:
        """Tell whether all that other matches is matched here too; False where that is not certain."""
        return all(any(_covers(mine, theirs) for mine in self.texts) for theirs in other.texts)

    def __str__(self) -> str:
        return ", ".join(self.texts)


def _covers(wide: str, narrow: str) -> bool:
    if wide == narrow or wide == "*":
        return True
    # A '*' can swallow any character of a glob, wildcards too; '?' and '[' of the wide side prove nothing.
    return not re.search(r"[?\[]", wide) and fnmatch.fnmatchcase(narrow, wide)


def covers(wide: Globs | None, narrow: Globs | None) -> bool:
    """The same for optional lists: None matches everything."""
    return wide is None or (narrow is not None and wide.covers(narrow))
