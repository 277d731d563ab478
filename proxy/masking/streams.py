"""Detectors over a stream of text that comes in pieces: terminals, programs' output, logs.

How: text is held back from the last line break on (LF, CR, or ESC, which begins a terminal's control sequence), since
no built-in match but a private key crosses one; so a value that is split over reads is seen whole, and any split of the
text gives the same bytes. A private key is held back until its END, or for PRIVATE_KEY_LIMIT bytes. A line that
outgrows LOOKBACK_LIMIT is let go in part, up to a point that no match crosses: on such a line values up to half of
the limit are found. One that is longer, but can be told by its beginning, is replaced, and what follows of the same
word is dropped.

flush() lets all of it go, masked as if the text ended there: at the end of the stream, and whenever the caller cannot
wait any longer (a prompt has no line break; call it when the stream has been idle). Of a value that is split by a
flush, the part behind the flush is still masked.

Left out: values that are coloured or redrawn (escape sequences inside of a value), any encoding but ASCII-based ones.
The action null removes the value.
"""

from __future__ import annotations

from typing import Final

from proxy.masking.patterns import PRIVATE_KEY_LIMIT
from proxy.masking.scanner import Found
from proxy.masking.texts import TextMask

# Held back at most for one line; four times a private key, and a pty's reads are 4 KiB.
LOOKBACK_LIMIT: Final = 64 * 1024
# Of what is gone already, the last bytes still tell where a word begins and whose value follows.
CONTEXT_LIMIT: Final = 64
_WORD: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_.-"

assert 2 * PRIVATE_KEY_LIMIT <= LOOKBACK_LIMIT


class StreamMask:
    """The detectors of some masks over one stream; feed() every piece, flush() at the end."""

    def __init__(self, texts: TextMask) -> None:
        self._texts = texts
        self._held = b""
        self._context = b""
        self._dropping = False

    @property
    def held_bytes(self) -> int:
        """How much is held back; the caller flushes when it has waited long enough."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Take a piece; return what can be let go by now, masked."""
        if self._dropping:
            data = data.lstrip(_WORD)
            self._dropping = not data
        broken = b"\n" in data or b"\r" in data or b"\x1b" in data
        self._held += data
        if broken:
            cut = 1 + max(self._held.rfind(b"\n"), self._held.rfind(b"\r"), self._held.rfind(b"\x1b"))
            out = self._let_go(cut, forced=False)
        else:
            out = b""
        if len(self._held) > LOOKBACK_LIMIT:
            out += self._let_go(len(self._held) - LOOKBACK_LIMIT // 2, forced=True)
        return out

    def flush(self) -> bytes:
        """Return all that is held back, masked as if the text ended here."""
        if not self._held:
            return b""
        text = self._context + self._held
        return self._release(text, self._texts.scanner.locate(text), len(text))

    def _let_go(self, cut: int, forced: bool) -> bytes:
        """Mask and return the held text up to cut, or to a place near it that is not inside of a match."""
        text = self._context + self._held
        start = len(self._context)
        found = self._texts.scanner.locate(text)
        stop = start + cut
        for span in found:
            if span.start < stop <= span.end and (stop < span.end or span.end == len(text)):
                growing = span.end == len(text)
                if not forced or (growing and span.start > start):
                    stop = span.start
                else:
                    stop = span.end
                    self._dropping = growing
                break
        return self._release(text, found, stop) if stop > start else b""

    def _release(self, text: bytes, found: list[Found], stop: int) -> bytes:
        pieces: list[bytes] = []
        at = len(self._context)
        for span in found:
            if span.end <= at:
                continue
            if span.start >= stop:
                break
            first = max(span.start, at)
            pieces += (text[at:first], self._texts.replaces[span.choice](text[first : span.end]) or b"")
            at = span.end
        pieces.append(text[at:stop])
        self._context = text[max(0, stop - CONTEXT_LIMIT) : stop]
        self._held = text[stop:]
        return b"".join(pieces)
