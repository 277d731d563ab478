"""Detectors at work on one text: find, replace each match by its own mask's action, keep the rest.

A match whose action is null makes the whole text NULL (None): half a text with holes is no value. Left out: what the
text is in (cells.py, jsontext.py, remarks.py, streams.py know).
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.masking.actions import Replace
from proxy.masking.scanner import DETECT_LIMIT, Scanner


class TextMask:
    """The detectors of some masks with their actions; a function on texts."""

    def __init__(self, scanner: Scanner, replaces: Sequence[Replace]) -> None:
        self.scanner = scanner
        self.replaces = tuple(replaces)
        # Masks whole what is too long to be scanned.
        self.whole = self.replaces[0]

    def __call__(self, text: bytes) -> bytes | None:
        """Return the text with every match replaced; the same object if there is none."""
        if len(text) > DETECT_LIMIT:
            return self.whole(text)
        hits = self.scanner.gates(text)
        return self.opened(text, hits) if hits else text

    def opened(self, text: bytes, hits: Sequence[int]) -> bytes | None:
        """The same where the gates were asked already."""
        found = self.scanner.locate(text, hits)
        if not found:
            return text
        pieces: list[bytes] = []
        at = 0
        for span in found:
            value = self.replaces[span.choice](text[span.start : span.end])
            if value is None:
                return None
            pieces += (text[at : span.start], value)
            at = span.end
        pieces.append(text[at:])
        return b"".join(pieces)
