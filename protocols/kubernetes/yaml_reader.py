"""YAML as the API server reads it, from the events of libyaml: no tags, few aliases, every key once.

Scalars are those of Go's YAML 1.1 (goyaml.v2, which sigs.k8s.io/yaml has): ``y`` and ``on`` are true, ``0x1f`` and
``017`` are numbers; dates and sexagesimal numbers are text. Keys become text as they do in its conversion to JSON.
What differs between readers is refused: tags, merge keys, several documents, keys that are no plain scalar.

Limits: aliases by number, and by what they unfold to (a "billion laughs").

Source: YAML 1.1 and 1.2, resolve.go of goyaml.v2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from proxy.core.http.heads import BadRequest

ALIAS_LIMIT: Final = 100  # a manifest written by hand has a handful; ours
NODE_LIMIT: Final = 200_000  # of a document with its aliases unfolded: a 3 MiB document has fewer; ours

_BOOLEANS: Final = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
}
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_INTEGER: Final = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]{0,39})")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NO_NUMBER: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class _Reader:
    """One document, from its events."""

    def __init__(self, events: Iterator[Any], depth_limit: int) -> None:
        self._events = events
        self._depth_limit = depth_limit
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._aliases = 0
        self._nodes = 0

    def document(self) -> Any:
        """Read the stream: one document, or none."""
        self._next(yaml.StreamStartEvent)
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._node(next(self._events), 0)
        self._next(yaml.DocumentEndEvent)
        if not isinstance(next(self._events), yaml.StreamEndEvent):
            raise BadRequest(400, "the YAML has several documents")
        return value

    def _next(self, kind: type) -> Any:
        event = next(self._events)
        if not isinstance(event, kind):
            raise BadRequest(400, "the body is no valid YAML")
        return event

    def _node(self, event: Any, depth: int) -> Any:
        if depth > self._depth_limit:
            raise BadRequest(400, "the body is nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        before = self._nodes
        self._count(1)
        if event.tag is not None and event.tag != "!":
            raise BadRequest(400, "tags of YAML are not served")
        if isinstance(event, yaml.ScalarEvent):
            value: Any = scalar(event.value) if event.implicit[0] and event.tag is None else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                value.append(self._node(inner, depth + 1))
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._nodes - before)
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in found:
                raise BadRequest(400, "the body has a key that comes twice in an object")
            found[key] = self._node(next(self._events), depth + 1)
        return found

    def _key(self, event: Any) -> str:
        if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
            raise BadRequest(400, "a key of the YAML is no plain text")
        self._count(1)
        text = str(event.value)
        if text == "<<":
            raise BadRequest(400, "merge keys of YAML are not served")
        value = scalar(text) if event.implicit[0] else text
        match value:
            case bool():
                return "true" if value else "false"
            case int() | str():
                return str(value)
            case _:
                raise BadRequest(400, "a key of the YAML is no plain text")

    def _alias(self, event: Any) -> Any:
        self._aliases += 1
        found = self._anchors.get(event.anchor)
        if found is None:  # or the anchor's own node has not ended: it would hold itself
            raise BadRequest(400, "an alias of the YAML has no anchor")
        if self._aliases > ALIAS_LIMIT:
            raise BadRequest(400, "the YAML has too many aliases")
        self._count(found[1])
        return found[0]

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > NODE_LIMIT:
            raise BadRequest(400, "the YAML unfolds to too much")


def read_yaml(text: str, depth_limit: int) -> Any:
    """Read a document. Raises BadRequest."""
    try:
        # Not a loader of objects: only the events of one are taken, so that no constructor ever runs.
        events = yaml.parse(text, Loader=yaml.CSafeLoader)
        return _Reader(events, depth_limit).document()
    except (yaml.YAMLError, StopIteration, UnicodeError, RecursionError) as error:
        raise BadRequest(400, "the body is no valid YAML") from error


def scalar(text: str) -> str | int | float | bool | None:
    """Return what a plain scalar means."""
    if text in _NULLS:
        return None
    if (truth := _BOOLEANS.get(text)) is not None:
        return truth
    plain = text.replace("_", "") if text[:1] in "-+0123456789" else text
    if _INTEGER.fullmatch(plain):
        return _integer(plain)
    if _FLOAT.fullmatch(plain) and len(plain) < 400:
        return float(plain)
    if _NO_NUMBER.fullmatch(text):
        raise BadRequest(400, f"{text} is no number of JSON")
    return text


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    sign = -1 if text.startswith("-") else 1
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdecimal():
        return sign * int(digits, 8)
    return sign * int(digits, 0)
