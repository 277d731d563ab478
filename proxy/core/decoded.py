"""Looks at values decoded from JSON or YAML that a user sent, before anybody walks them: level by level, no recursion.

Source: RFC 8259 8.2 (unpaired surrogates: readers differ in what they make of them), 9 (limits of depth).
"""

from __future__ import annotations

import re
from typing import Any, Final

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _children(values: list[Any]) -> list[Any]:
    return [child for each in values for child in (each.values() if isinstance(each, dict) else each)]


def nested_beyond(value: Any, limit: int) -> bool:
    """Tell whether objects and lists are nested more than limit levels deep."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        if not level:
            return False
        level = [child for child in _children(level) if isinstance(child, dict | list)]
    return bool(level)


def has_half_pair(value: Any) -> bool:
    """Tell whether a text in it, a key included, has half a surrogate pair: readers make U+FFFD of each, and so one
    key of two."""
    level: list[Any] = [value]
    while level:
        if any(isinstance(each, str) and _SURROGATE.search(each) for each in level):
            return True
        holders = [each for each in level if isinstance(each, dict | list)]
        level = [key for each in holders if isinstance(each, dict) for key in each] + _children(holders)
    return False
