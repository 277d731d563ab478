"""Detectors inside a JSON document: what comes out is a JSON document again.

How: matches are looked for in the raw document, so that what names a secret may stand in another string than the
secret. A match inside one string replaces just that part of it, escaped; a match that is a number (a card), or lies in
one, makes the number a string; a match that crosses strings makes the whole document one string. Strings with escapes
(``\\u0040`` is an @) are decoded and scanned once more by themselves. Keys are masked like values: two keys may become
equal, which JSON allows.

An action null makes the whole document NULL. A document that does not tokenise is masked whole.

Specification: RFC 8259, section 7 (strings).
"""

from __future__ import annotations

import json
import re
from typing import Final

from proxy.masking.scanner import DETECT_LIMIT, Found
from proxy.masking.texts import TextMask

# A string, or a run of what a number or word is made of. Nothing is given back (possessive), and a string without an
# end matches up to the end of the document, so that a broken document costs one pass as well.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\(?:.|\Z)[^"\\]*+)*+(?:"|\Z)|[0-9A-Za-z.+-]++', re.DOTALL)


def json_string(text: bytes) -> bytes:
    """Return a text as a JSON string; bytes that are not UTF-8 become U+FFFD."""
    return json.dumps(text.decode("utf-8", "replace"), ensure_ascii=False).encode()


class JsonMask:
    """A function on JSON documents without their prefix."""

    def __init__(self, texts: TextMask) -> None:
        self._texts = texts

    def __call__(self, document: bytes) -> bytes | None:
        """Return the document with every match replaced; the same object if there is none."""
        if len(document) > DETECT_LIMIT:
            return self._whole(document)
        found = self._texts.scanner.locate(document)
        escapes = b"\\" in document
        if not found and not escapes:
            return document
        return self._rebuild(document, found)

    def _whole(self, text: bytes) -> bytes | None:
        value = self._texts.whole(text)
        return None if value is None else json_string(value)

    def _rebuild(self, document: bytes, found: list[Found]) -> bytes | None:
        pieces: list[bytes] = []
        at = 0
        waiting = iter(found)
        span = next(waiting, None)
        for match in _TOKEN.finditer(document):
            start, end = match.span()
            inside: list[Found] = []
            while span is not None and span.start < end:
                if span.start < start or span.end > end:
                    return self._crossing(document, span)
                inside.append(span)
                span = next(waiting, None)
            token = document[start:end]
            if not inside and b"\\" not in token:
                continue
            new = self._token(token, [Found(each.start - start, each.end - start, each.choice) for each in inside])
            if new is None:
                return None
            if new is not token:
                pieces += (document[at:start], new)
                at = end
        if span is not None:
            return self._crossing(document, span)
        return b"".join((*pieces, document[at:])) if pieces else document

    def _crossing(self, document: bytes, span: Found) -> bytes | None:
        """A match beyond one token: nothing of the document's structure can be kept."""
        value = self._texts.replaces[span.choice](document[span.start : span.end])
        return None if value is None else json_string(value)

    def _token(self, token: bytes, inside: list[Found]) -> bytes | None:
        """Return a token with its matches replaced, None for NULL; the same object if nothing changes."""
        if not token.startswith(b'"'):
            value = self._texts.replaces[inside[0].choice](token) if inside else token
            return value if value is None or value is token else json_string(value)
        if b"\\" not in token:
            return self._plain(token, inside) if len(token) > 1 and token.endswith(b'"') else self._whole(token)
        try:
            text: bytes = json.loads(token, strict=False).encode("utf-8", "surrogatepass")
        except ValueError:
            return self._whole(token)
        masked: bytes | None = self._texts(text)
        if masked is text and not inside:
            return token
        if masked is text:  # the match needs what stands outside of this string: all of the string goes
            masked = self._texts.replaces[inside[0].choice](text)
        return None if masked is None else json_string(masked)

    def _plain(self, token: bytes, inside: list[Found]) -> bytes | None:
        pieces: list[bytes] = []
        at = 0
        for span in inside:
            # A match may include a quote of this string (context): only what lies between the quotes is replaced.
            start, end = max(span.start, 1), min(span.end, len(token) - 1)
            value = self._texts.replaces[span.choice](token[start:end])
            if value is None:
                return None
            pieces += (token[at:start], json_string(value)[1:-1])
            at = end
        return b"".join((*pieces, token[at:]))
