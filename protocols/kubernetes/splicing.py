"""Replaces single values in a JSON text and leaves every other byte as it is.

How: the standard library's decoder (in C) says where a value ends, so that a small cursor can step through the members
of those containers alone in which something changes; all else is skipped at its speed. So nothing is encoded anew that
no mask asked for: numbers keep their digits, strings their escapes, keys their order, and a document without a masked
value comes out as it went in.

The text is read strictly: RFC 8259, no NaN, no key twice in one object (readers differ in which value counts, and a
mask might see the other), nothing behind the document, no half of a character.

Left out: anything about Kubernetes. Specification: RFC 8259.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_SPACE: Final = re.compile(r"[ \t\n\r]*")

Json = Any  # a decoded document: of any shape


class Unreadable(ValueError):
    """The text is no JSON, or says one thing twice."""


@dataclass(frozen=True, slots=True)
class Renamed:
    """A member gets another key (JSON text), and its value perhaps an edit."""

    key: str
    edit: Edit | None


# JSON text in the place of a value; or edits of some of an object's members, of some of a list's elements.
Edit = str | Renamed | Mapping[str, "Edit"] | Mapping[int, "Edit"]
Span = tuple[int, int, str]


def _refuse(word: str) -> None:
    raise Unreadable(f"{word} is not JSON")


def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Make an object of its members; refuse a key that comes twice. The object_pairs_hook of strict decoders."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unreadable("a key comes twice in one object")
    return found


def strict_decoder(pairs: Callable[[list[tuple[str, Json]]], Json] = unique) -> json.JSONDecoder:
    """Return a decoder that refuses what is not JSON; pairs makes objects of their members."""
    return json.JSONDecoder(object_pairs_hook=pairs, parse_constant=_refuse)


_SKIPPER: Final = json.JSONDecoder(parse_constant=_refuse)


def json_text(text: str) -> str:
    """Write a string as JSON; half characters (lone surrogates) are escaped, as they cannot be sent otherwise."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False)


class Cursor:
    """A place in a JSON text that was decoded before, or is being decoded piece by piece."""

    __slots__ = ("at", "key_span", "text")

    def __init__(self, text: str, at: int = 0) -> None:
        self.text = text
        self.at = _end_of_space(text, at)
        self.key_span = (0, 0)

    def opens(self) -> str:
        """The first character of the value here."""
        return self.text[self.at : self.at + 1]

    def decode(self, decoder: json.JSONDecoder = _SKIPPER) -> Json:
        """Decode the value here and step behind it. Raises Unreadable."""
        try:
            value, self.at = decoder.raw_decode(self.text, self.at)
        except Unreadable:
            raise
        except (ValueError, RecursionError) as error:
            raise Unreadable("the document is no JSON, or nested too deeply") from error
        return value

    def members(self) -> Iterator[str]:
        """Yield the keys of the object here, the cursor before each value; the caller steps behind the value."""
        if not self._begin("{", "}"):
            return
        while True:
            start = self.at
            if self.opens() != '"':
                raise Unreadable("a key is no string")
            key = self.decode()
            self.key_span = (start, self.at)
            self._take(":")
            yield key
            if not self._next("}"):
                return

    def elements(self) -> Iterator[int]:
        """The same for the elements of the list here, by their index."""
        if not self._begin("[", "]"):
            return
        index = 0
        while True:
            yield index
            index += 1
            if not self._next("]"):
                return

    def end(self) -> None:
        """Check that nothing follows. Raises Unreadable."""
        self._space()
        if self.at != len(self.text):
            raise Unreadable("something follows the document")

    def _space(self) -> None:
        self.at = _end_of_space(self.text, self.at)

    def _begin(self, opening: str, closing: str) -> bool:
        self._take(opening)
        if self.opens() != closing:
            return True
        self.at += 1
        return False

    def _next(self, closing: str) -> bool:
        self._space()
        if self.opens() == closing:
            self.at += 1
            return False
        self._take(",")
        return True

    def _take(self, mark: str) -> None:
        self._space()
        if self.opens() != mark:
            raise Unreadable(f"{mark!r} is missing")
        self.at += 1
        self._space()


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def locate(cursor: Cursor, edit: Edit, spans: list[Span]) -> None:
    """Find where an edit of the value at the cursor changes the text; steps behind the value."""
    if isinstance(edit, str):
        start = cursor.at
        cursor.decode()
        spans.append((start, cursor.at, edit))
        return
    changes: Any = edit  # keyed by what the value here has, str or int
    for place in cursor.members() if cursor.opens() == "{" else cursor.elements():
        change = changes.get(place)
        if isinstance(change, Renamed):
            spans.append((*cursor.key_span, change.key))
            change = change.edit
        if change is None:
            cursor.decode()
        else:
            locate(cursor, change, spans)


def splice(text: str, spans: list[Span]) -> str:
    """Return the text with other text in the place of each span; they lie in order."""
    pieces: list[str] = []
    at = 0
    for start, end, new in spans:
        pieces += (text[at:start], new)
        at = end
    pieces.append(text[at:])
    return "".join(pieces)
