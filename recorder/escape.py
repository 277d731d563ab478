"""Making recorded text safe to show: what a target once printed must not act on the terminal of whoever replays it.

A recording is written by the party that is being watched. Sent to a terminal as it is, it could set the clipboard
(OSC 52), answer queries into the viewer's shell, retitle windows, or hide commands by moving text about. Two
filters: visible() for text that we lay out ourselves (statements, cells, names), in which every control character
becomes something to look at; TerminalFilter for the bytes of a terminal session, which lets pass colours,
cursor movement, erasing and the alternate screen, and drops all else.

Left out: emulating a terminal. Source: ECMA-48 5.3 to 5.6 (control sequences, strings), xterm's ctlseqs (modes).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Longer control sequences than this do not occur; what is not finished by then is dropped.
SEQUENCE_LIMIT: Final = 128
# An unfinished control string hides what follows it, as it did for the user; but not for ever.
STRING_LIMIT: Final = 4096

# Characters that change how their neighbours are shown: bidirectional controls, invisible ones (fillers, and the tags
# and selectors of plane 14, which can hide whole texts), line separators; and halves of surrogate pairs.
_TRICKY: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)

_SPECIAL: Final = re.compile("[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# A run of what passes as it is: text, and the sequences that are most of any terminal's output. Seven times as fast as
# one by one. Longer parameters than these, and everything else, are looked at below.
_RUN: Final = re.compile(
    "(?:[^\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]++"
    "|\x1b\\[(?:[0-9]{0,5}[;:]){0,16}[0-9]{0,5}[mABCDEFGHdef`asuJKX@LMPbSr])++"
)
# No row, column, count or colour has more digits; a repetition of a thousand million characters would stop a terminal.
_PARAMETERS: Final = re.compile("(?:[0-9]{0,5}[;:])*[0-9]{0,5}")
_CSI: Final = re.compile(r"([0-9:;<=>?]*)([ -/]*)([@-~])")
_CSI_OPEN: Final = re.compile(r"[0-9:;<=>?]*[ -/]*")
_ESCAPE: Final = re.compile(r"([ -/]*)([0-~])")
_STRING_END: Final = re.compile("\x1b\\\\|[\x07\x18\x1a\x9c]")
_STRINGS: Final = frozenset("]PX^_k")  # OSC, DCS, SOS, PM, APC, and screen's title
_C1: Final = {"\x9b": "[", "\x9d": "]", "\x90": "P", "\x98": "X", "\x9e": "^", "\x9f": "_"}
# m: colours; A to H, d, e, f, `, a, s, u: cursor; J K X: erase; @ L M P b: insert, delete, repeat; S T r: scroll
_FINALS: Final = frozenset("mABCDEFGHdef`asuJKX@LMPbSTr")
_MODES: Final = frozenset(["7", "25", "47", "1047", "1048", "1049"])  # wrap, cursor, alternate screen
_SIMPLE: Final = frozenset(["7", "8", "D", "E", "M", "(0", "(B"])  # cursor, line movement, line drawing

# Colours, line drawing, scroll region (which moves the cursor: saved and restored), cursor and wrapping as they were.
# What a full reset (RIS) becomes: the same picture, without what else a reset does to a terminal.
_CLEARED: Final = "\x1b[0m\x1b(B\x1b[r\x1b[?25h\x1b[?7h\x1b[H\x1b[2J"
RESET: Final = "\x1b[0m\x1b(B\x1b7\x1b[r\x1b8\x1b[?25h\x1b[?7h"
_ALTERNATE: Final = frozenset(["47", "1047", "1049"])


def visible(text: str) -> str:
    """Return the text with every control and invisible character spelled out; new lines and tabs stay."""
    return _TRICKY.sub(_spell, text.replace("\r\n", "\n"))


def _spell(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return "^" + chr(code + 0x40)
    return "^?" if code == 0x7F else f"<U+{code:04X}>"


def width(text: str) -> int:
    """How many cells the (visible) text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    # Marks of any class, not only those that combine canonically: emoji selectors, vowels of Indic scripts.
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, cells: int) -> str:
    """Cut the text to so many cells, with an ellipsis where something is missing."""
    if width(text) <= cells:
        return text
    kept: list[str] = []
    left = cells - 1
    for character in text:
        left -= width(character)
        if left < 0:
            break
        kept.append(character)
    return "".join(kept) + "…"


class TerminalFilter:
    """Passes the harmless part of a terminal's output, in pieces as they come."""

    def __init__(self, sequences: bool = True, colors: bool = True) -> None:
        """sequences False drops all control sequences: plain text is left. colors False drops those that colour."""
        self._sequences = sequences
        self._colors = colors
        self._quick = sequences and colors
        self._held = ""
        self._in_string = 0  # characters of a control string that were dropped so far, + 1
        self._alternate = False
        self._drawing = False  # G1 holds the line drawing characters, which SO and SI switch to and from

    def reset(self) -> str:
        """Return what puts the terminal back in order after what was passed."""
        return ("\x1b[?1049l" if self._alternate else "") + RESET if self._sequences else ""

    def feed(self, text: str) -> str:
        """Return what of the text may be shown now; an unfinished sequence waits for the next piece."""
        data, self._held = self._held + text, ""
        out: list[str] = []
        at = 0
        while at < len(data):
            if self._in_string:
                at = self._skip_string(data, at)
                continue
            if self._quick and (run := _RUN.match(data, at)) is not None:
                out.append(run[0])
                at = run.end()
                if at == len(data):
                    break
            special = _SPECIAL.search(data, at)
            if special is None:
                out.append(data[at:])
                break
            out.append(data[at : special.start()])
            at = self._control(data, special.start(), out)
        return "".join(out)

    def _control(self, data: str, start: int, out: list[str]) -> int:
        """Handle the control character at start; return where to go on."""
        if data[start] == "\x1b":
            if start + 1 == len(data):
                return self._hold(data, start)
            at, opener = start + 2, data[start + 1]
        elif data[start] in _C1:
            at, opener = start + 1, _C1[data[start]]
        else:
            out.append(self._character(data[start]))
            return start + 1
        if opener == "[":
            return self._control_sequence(data, start, at, out)
        if opener in _STRINGS:
            self._in_string = 1
            return at
        simple = _ESCAPE.match(data, at - 1)
        if simple is None:
            unfinished = not data[at - 1 :].strip(" !\"#$%&'()*+,-./") and len(data) - start < SEQUENCE_LIMIT
            return self._hold(data, start) if unfinished else at - 1
        if simple[0] in (")0", ")B"):
            self._drawing = simple[0] == ")0"
        if self._sequences and simple[0] in _SIMPLE:
            out.append("\x1b" + simple[0])
        elif self._sequences and simple[0] == "c":
            out.append(("\x1b[?1049l" if self._alternate else "") + _CLEARED)
            self._alternate = self._drawing = False
        return simple.end()

    def _character(self, character: str) -> str:
        """What becomes of a control character that begins nothing: most are dropped (BEL, ENQ, DEL, other C1)."""
        if character in "\x0b\x0c":
            return "\n"  # which is what terminals make of them
        if self._sequences and character == "\x0e" and self._drawing:
            return "\x1b(0"  # as G0, so that RESET knows how to undo it
        return "\x1b(B" if self._sequences and character == "\x0f" and self._drawing else ""

    def _control_sequence(self, data: str, start: int, at: int, out: list[str]) -> int:
        match = _CSI.match(data, at)
        if match is None:
            open_end = _CSI_OPEN.match(data, at)
            if open_end is not None and open_end.end() == len(data) and len(data) - start < SEQUENCE_LIMIT:
                return self._hold(data, start)
            return at  # broken: without its introducer the rest is text
        parameters, intermediate, final = match.groups()
        if not self._sequences or intermediate or (final == "m" and not self._colors):
            return match.end()
        if final in "hl" and parameters[:1] == "?":
            # Of several modes in one sequence those that are harmless.
            modes = [mode for mode in parameters[1:].split(";") if mode in _MODES]
            if modes:
                out.append(f"\x1b[?{';'.join(modes)}{final}")
            if not _ALTERNATE.isdisjoint(modes):
                self._alternate = final == "h"
        elif final == "T" and ";" in parameters:
            pass  # with five numbers it begins mouse tracking
        elif final in _FINALS and _PARAMETERS.fullmatch(parameters) and match.end() - start <= SEQUENCE_LIMIT:
            out.append(f"\x1b[{parameters}{final}")
        return match.end()

    def _skip_string(self, data: str, at: int) -> int:
        end = _STRING_END.search(data, at)
        stop = end.end() if end else len(data)
        if self._in_string + stop - at > STRING_LIMIT:
            stop = at + STRING_LIMIT - self._in_string + 1
            self._in_string = 0
            return stop
        if end is not None:
            self._in_string = 0
        elif data[-1] == "\x1b":  # may be the first half of the end
            self._in_string += stop - 1 - at
            return self._hold(data, stop - 1)
        else:
            self._in_string += stop - at
        return stop

    def _hold(self, data: str, start: int) -> int:
        self._held = data[start:]
        return len(data)
