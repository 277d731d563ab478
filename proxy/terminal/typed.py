"""What was typed on one line, as far as plain typing tells, and what came back for it.

Plain typing is printable characters, Backspace and Ctrl-U: of these the line is known without a look at any screen.
Everything else (cursor keys, history, completion, a paste, a quoted key) makes the line one that only the screen shows.

Left out: what Backspace means where somebody changed it (stty erase): the echo then disagrees, and the line is a guess.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

from proxy.terminal.keys import KeyKind

TYPED_LIMIT: Final = 64 * 1024  # far more than a line editor takes (the kernel's: 4,096)
ECHO_LIMIT: Final = 4096

_ESCAPES: Final = re.compile(
    r"\x1b(?:\[[0-?]{0,64}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|.)|[\x00-\x1f\x7f]"
)


class Typed:
    """The keys of one line."""

    __slots__ = ("_decoder", "_echo", "_half", "_plain", "edited", "keys", "printed", "text")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self.text = ""
        self.keys = 0
        self.printed = False  # something printable was typed
        self.edited = False  # by Backspace or Ctrl-U: where nothing is echoed, what these did is a guess (stty)
        self._plain = True
        self._half = False  # an escape sequence has begun
        self._echo = bytearray()

    @property
    def plain(self) -> bool:
        """Whether text is all that there is to the line."""
        return self._plain and not self._half and not self._decoder.getstate()[0]

    def unclear(self) -> None:
        """Something else than these keys has a part in the line."""
        self._plain = False

    def take(self, kind: KeyKind, data: bytes) -> None:
        """Take a key."""
        if kind == "report":
            self._half = False
            return
        self.keys += 1
        match kind:
            case "text":
                self._print(data)
            case "control":
                if data in (b"\x7f", b"\x08"):
                    self.text, self.edited = self.text[:-1], True
                elif data == b"\x15":
                    self.text, self.edited = "", True
                else:
                    self._plain = False
            case "part":
                self._half = True
            case _:
                self._half = False
                self._plain = False
                self.printed = self.printed or kind == "paste"

    def _print(self, data: bytes) -> None:
        self.printed = True
        try:
            self.text += self._decoder.decode(data)
        except UnicodeDecodeError:
            self._decoder.reset()
            self._plain = False
        if len(self.text) > TYPED_LIMIT:
            self.text, self._plain = self.text[:TYPED_LIMIT], False

    def answer(self, data: bytes) -> None:
        """Take what the target sent since the first key."""
        if len(self._echo) < ECHO_LIMIT:
            self._echo += data[:ECHO_LIMIT]

    @property
    def echoed(self) -> bool:
        """Whether it shows up in what came back."""
        return self.shows_up(3)

    def shows_up(self, count: int) -> bool:
        """Whether its first characters stand in a row in what came back; if it is not plain, whether anything does."""
        if not self._echo:
            return False
        shown = _ESCAPES.sub("", self._echo.decode("utf-8", "replace"))
        start = self.text.strip()[:count]
        return start in shown if self.plain and start else bool(shown.strip())
