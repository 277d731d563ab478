"""Field patterns of masks against the fields of documents: the FieldMask of proxy/core/events.py.

A pattern is ``resource:path``. Each half is a shell pattern (``*``, also across dots, ``?``, ``[abc]``), by case. A
pattern covers the field that it names and all that lies below it. A resource without a group is that of any group, and
what belongs to it (``deployments`` covers ``deployments.apps`` and ``deployments.apps/scale``): what is unclear is
masked. A field of ``*`` is one whose resource nobody knows; the path alone counts. What is written into the
``stringData`` of a Secret is read in its ``data``: a pattern for one is for both.

How: a pattern is compiled twice: to a regular expression for whole names, and to a few states that are moved along a
name's characters, which tell whether anything below that name could be covered. Both answers are kept.

By name comes first: the first mask in the order of the rules that covers a field. Detectors look at all other values,
and at those of keys that tell of a secret (``aws_secret_access_key``) together with the key.

Specification: fnmatch of the standard library, for what a pattern may hold.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.core.verdict import Mask
from proxy.masking.actions import Replace, replacer
from proxy.masking.cells import text_cell
from proxy.masking.texts import TextMask

UNKNOWN: Final = "*"
# Answers that are kept for one set of masks; about 10 MB where documents have many names of their own.
ANSWERS_LIMIT: Final = 32_768

_TOKEN: Final = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
# Keys that a detector wants to see beside a value (patterns.py, cloud keys).
_TELLING: Final = re.compile(r"(?i)secret|aws|token|private_key_id")

_TWINS: Final = {"data": "stringData", "stringData": "data"}

TextReplace = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class FieldPattern:
    """One compiled pattern."""

    resource_text: str
    head: str  # of the path: what stands before the first wildcard
    resource: re.Pattern[str]
    path: re.Pattern[str]
    steps: tuple[re.Pattern[str] | None, ...]  # of the path: a character's test, or None for any text

    def is_of(self, resource: str) -> bool:
        """Tell whether the pattern speaks of a resource."""
        return resource == UNKNOWN or self.resource.fullmatch(resource) is not None

    def covers(self, path: str) -> bool:
        """Tell whether a path, or what it lies in, is named by the pattern."""
        return self.path.fullmatch(path) is not None

    def reaches(self, path: str) -> bool:
        """Tell whether something below a path can be covered; "" is the whole object."""
        states = self._closed({0})
        for character in f"{path}." if path else "":
            moved = set()
            for state in states:
                if state == len(self.steps):
                    continue
                step = self.steps[state]
                if step is None:
                    moved.add(state)
                elif step.match(character):
                    moved.add(state + 1)
            states = self._closed(moved)
            if not states:
                return False
        return True

    def _closed(self, states: set[int]) -> set[int]:
        """Any text may be none at all."""
        found = set(states)
        for state in sorted(states):
            while state < len(self.steps) and self.steps[state] is None:
                state += 1
                found.add(state)
        return found


def compile_field(pattern: str) -> FieldPattern:
    """Compile a pattern that names.check_field found nothing wrong with."""
    resource, _, path = pattern.partition(":")
    named, covered = (re.sub(r"\\[Zz]\Z", "", fnmatch.translate(half)) for half in (resource, path))
    steps = tuple(
        None if token.startswith("*") else re.compile(fnmatch.translate(token)) for token in _TOKEN.findall(path)
    )
    head = re.split(r"[*?\[]", path, maxsplit=1)[0]
    return FieldPattern(
        resource,
        head,
        re.compile(rf"{named}(?:\.[^/]*)?(?:/.*)?"),
        re.compile(rf"{covered}(?:\..*)?", re.DOTALL),
        steps,
    )


def also_known(resource: str, path: str) -> tuple[str, ...]:
    """Return a path with the other one that means the same value."""
    head, dot, rest = path.partition(".")
    other = _TWINS.get(head)
    if other is None or resource not in ("secrets", UNKNOWN):
        return (path,)
    return (path, f"{other}{dot}{rest}")


class Fields:
    """The field patterns and detectors of some masks; see FieldMask in proxy/core/events.py."""

    def __init__(self, masks: Sequence[Mask], key: bytes, texts: TextMask | None, custom: bool) -> None:
        self._masks = tuple(
            (tuple(compile_field(pattern) for pattern in mask.fields), _on_text(mask, replacer(mask, key)))
            for mask in masks
            if mask.fields
        )
        self.resources = tuple(
            dict.fromkeys(pattern.resource_text for patterns, _ in self._masks for pattern in patterns)
        )
        self.texts = None if texts is None else _Texts(texts, custom).masked
        self._answers: dict[str, TextReplace | None] = {}
        self._touched: dict[str, bool] = {}

    def __call__(self, field: str) -> TextReplace | None:
        """Return what replaces a field's values, None where its name is not masked."""
        if field in self._answers:
            return self._answers[field]
        if len(self._answers) >= ANSWERS_LIMIT:
            self._answers.clear()
        resource, _, path = field.partition(":")
        paths = also_known(resource, path)
        found = None
        for patterns, replace in self._masks:
            if any(each.is_of(resource) and each.covers(name) for each in patterns for name in paths):
                found = replace
                break
        self._answers[field] = found
        return found

    def touches(self, field: str) -> bool:
        """Tell whether a field or something below it may be masked by name."""
        known = self._touched.get(field)
        if known is None:
            if len(self._touched) >= ANSWERS_LIMIT:
                self._touched.clear()
            resource, _, path = field.partition(":")
            known = self._touched[field] = any(
                each.is_of(resource) and (each.covers(name) or each.reaches(name))
                for patterns, _ in self._masks
                for each in patterns
                for name in also_known(resource, path)
            )
        return known


def encoded(text: str) -> bytes:
    """A document's text as bytes: what was no UTF-8 as it was, half characters as three bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _on_text(mask: Mask, replace: Replace) -> TextReplace:
    def replaced(value: str) -> str:
        new = replace(encoded(value))
        return "" if new is None else new.decode("utf-8", "surrogateescape")

    return replaced


class _Texts:
    """Detectors on the values of documents."""

    def __init__(self, texts: TextMask, custom: bool) -> None:
        self._cell = text_cell(texts, custom)
        self._texts = texts
        self._custom = custom

    def masked(self, key: str, value: str) -> str:
        """Return the value with each match replaced; the same object if there is none."""
        before = encoded(value)
        after = self._cell(before)
        if after is not before:
            return "" if after is None else after.decode("utf-8", "surrogateescape")
        if not key or not (self._custom or _TELLING.search(key)):
            return value
        return self._beside(encoded(key), before, value)

    def _beside(self, key: bytes, before: bytes, value: str) -> str:
        """The same for what only the key tells: they are looked at together, as they stand in a document."""
        head = key + b'": "'
        whole = head + before + b'"'
        hits = self._texts.scanner.gates(whole)
        if not hits:
            return value
        pieces: list[bytes] = []
        at = 0
        for span in self._texts.scanner.locate(whole, hits):
            start, end = max(span.start - len(head), 0), min(span.end - len(head), len(before))
            if start >= end:
                continue
            new = self._texts.replaces[span.choice](before[start:end])
            if new is None:
                return ""
            pieces += (before[at:start], new)
            at = end
        if not pieces:
            return value
        return b"".join((*pieces, before[at:])).decode("utf-8", "surrogateescape")
