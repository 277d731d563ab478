"""What a target's output says about the shell beside the text itself: prompts, runs, the alternate screen.

The cues are the switches of bracketed paste (on: a line editor waits; off: it has handed over), the marks OSC 133 and
OSC 633 (A prompt, B its end, C run, D exit status), the switches of the alternate screen, and a full reset. Bulk output
costs one search for the few bytes that they begin with. A sequence split over reads is kept until it is whole, 256
bytes at most. Every cue can be forged by whoever prints: they move confidence, they do not decide.

Specification: XTerm Control Sequences, "Functions using CSI ?"; FinalTerm's semantic prompts (OSC 133).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

LOOK_BACK_LIMIT: Final = 256  # the longest cue in use (OSC 633 with a command line) is cut by its shells far below

CueKind = Literal["editor-on", "editor-off", "prompt", "run", "exit", "alternate-on", "alternate-off"]

_CUE: Final = re.compile(
    rb"\x1b(?:\[\?((?:[0-9]{1,6};){0,8}(?:2004|104[79]|47)(?:;[0-9]{1,6}){0,8})([hl])"
    rb"|\](?:133|633);([ACD])([^\x07\x1b]{0,240})(?:\x07|\x1b\\)|(c))"
)
_PARTIAL: Final = re.compile(rb"\x1b(?:\[(?:\?[0-9;]{0,32})?|\](?:[136][0-9;A-Z][^\x07\x1b]{0,240}|[136]?)\x1b?)?\Z")
_ALTERNATE: Final = frozenset({b"47", b"1047", b"1049"})
_MARKS: Final[dict[bytes, CueKind]] = {b"A": "prompt", b"C": "run", b"D": "exit"}


@dataclass(frozen=True, slots=True)
class Cue:
    """One of them; status is what OSC 133;D says, "" where it says nothing."""

    kind: CueKind
    status: str = ""


class Cues:
    """Finds them in a stream, wherever it is cut."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def split(self, data: bytes) -> Iterator[tuple[bytes, tuple[Cue, ...]]]:
        """Yield the output in pieces, each with the cues that it ends with."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if b"\x1b" not in data:
            yield data, ()
            return
        start = data.rfind(b"\x1b", -LOOK_BACK_LIMIT)
        if start >= 0:
            if start == len(data) - 1:  # perhaps the first half of the end of an OSC
                earlier = data.rfind(b"\x1b]", -LOOK_BACK_LIMIT, start)
                start = earlier if earlier >= 0 and _PARTIAL.match(data, earlier) else start
            if _PARTIAL.match(data, start):
                data, self._rest = data[:start], data[start:]
        position = 0
        if _may_hold_one(data):
            for found in _CUE.finditer(data):
                cues = _read(found)
                if cues:
                    yield data[position : found.end()], cues
                    position = found.end()
        if position < len(data):
            yield (data[position:] if position else data), ()


def _may_hold_one(data: bytes) -> bool:
    """Rule most output out with searches for single bytes and short strings, which cost far less than the pattern."""
    if b"?" in data and b"\x1b[?" in data and any(number in data for number in (b"2004", b"49", b"47")):
        return True
    return (b"]" in data and b"\x1b]" in data) or b"\x1bc" in data


def _read(found: re.Match[bytes]) -> tuple[Cue, ...]:
    numbers, switch, mark, more, reset = found.groups()
    if reset is not None:
        return (Cue("alternate-off"),)
    if mark is not None:
        kind = _MARKS.get(mark)
        if kind is None:
            return ()
        status = more[1:].split(b";")[0][:8].decode("ascii", "replace") if mark == b"D" else ""
        return (Cue(kind, status if status.isascii() and status.isdigit() else ""),)
    cues: list[Cue] = []
    for number in numbers.split(b";"):
        if number == b"2004":
            cues.append(Cue("editor-on" if switch == b"h" else "editor-off"))
        elif number in _ALTERNATE:
            cues.append(Cue("alternate-on" if switch == b"h" else "alternate-off"))
    return tuple(cues)
