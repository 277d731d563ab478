"""What the player itself writes on a terminal: the status line, the title, the help, and the state after a jump. Pure.

For a session that is rendered (SQL) the last row of the terminal is the status line's: the rows above it are made the
scroll region, so the text never touches it. A recorded terminal session owns the whole screen; there the window's
title says the same, and the status line is drawn over the last row only if the viewer asks for it.

After a jump a rendered session shows its last screenful of lines. A terminal's screen is the sum of all that was
written to it; what is shown is a bounded piece of that (the caller's), from the last point at which the program erased
all of it. Without such a point, the last lines, a few screens full. What went to the alternate screen and was left
again is passed over: the terminal, too, then shows what was there before.

Left out: emulating a terminal to know its screen exactly (pyte takes a second a megabyte).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from recorder.escape import clip, visible, width

_DAY_NS: Final = 86_400 * 1_000_000_000
CLEAR: Final = "\x1b[H\x1b[2J"
_SCREEN: Final = re.compile(r"\x1b\[\?(?:\d+;)*(?:47|1047|1049)(?:;\d+)*([hl])")
# Screens of lines that are shown of a terminal that never began afresh: its cursor may have moved up some.
_SCREENS: Final = 4

HELP: Final = """\
 space      pause, go on                    q  Ctrl-C  quit
 .          step to the next event          ?          this help
 ]  [       next, previous command          }  {       next, previous marker
 right left 5 s on, 5 s back                0 ... 9    to 0 % ... 90 %
 g  G       to the beginning, to the end    +  -       twice, half as fast (also > <)
 m          pause at markers or not         s          status line on, off

 Markers are holds, approvals, denials, errors and the gate's own remarks.

 Any key goes back."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the viewer is told. command and commands count from 1; 0: none yet, not known."""

    paused: bool
    now_ns: int
    end_ns: int
    command: int = 0
    commands: int = 0
    speed: float = 1.0
    live: bool = False
    pause_on_markers: bool = False
    note: str = ""
    wall: str = ""  # the time of day then

    def text(self, columns: int | None = None) -> str:
        """One line; without the time of day if it were wider than that."""
        line = self._text(self.wall)
        return self._text("") if columns is not None and width(line) > columns else line

    def _text(self, wall: str) -> str:
        state = "PAUSED" if self.paused else "LIVE" if self.live else "PLAY"
        parts = [f"{state}  {clock_text(self.now_ns)} / {clock_text(max(self.now_ns, self.end_ns))}"]
        if wall:
            parts.append(wall)
        if self.command or self.commands:
            parts.append(f"Q{self.command}" + (f" of {self.commands}" if self.commands else ""))
        parts.append(f"{self.speed:g}x")
        if self.pause_on_markers:
            parts.append("stops at markers")
        parts.append(self.note or "? help")
        return visible("   ".join(parts)).replace("\n", " ")


def status_line(status: Status, columns: int, rows: int, color: bool) -> str:
    """Draw it in the last row; the cursor stays where it was."""
    text = clip(f" {status.text(columns - 2)}", columns - 1)
    text += " " * (columns - 1 - width(text))
    return f"\x1b7\x1b[{rows};1H\x1b[0{';7' if color else ''}m\x1b(B{text}\x1b[0m\x1b[K\x1b8"


def reserve(rows: int) -> str:
    """Keep the last row out of the scroll region, and the cursor out of the last row."""
    return f"\n\x1b[A\x1b7\x1b[1;{rows - 1}r\x1b8"


def release(rows: int) -> str:
    """Give the last row back, empty."""
    return f"\x1b7\x1b[r\x1b[{rows};1H\x1b[2K\x1b8"


def title(status: Status) -> str:
    """Set the window's title."""
    return f"\x1b]2;gatecast replay: {status.text()}\x07"


KEEP_TITLE: Final = "\x1b[22;2t"  # push it on the terminal's stack, and pop it: xterm ctlseqs, "XTWINOPS"
GIVE_TITLE: Final = "\x1b[23;2t"


def help_screen(columns: int) -> str:
    """The list of keys on an empty screen."""
    return "\x1b[0m" + CLEAR + "\r\n".join(clip(line, columns) for line in HELP.split("\n")) + "\r\n"


def last_lines(text: str, newline: str, rows: int) -> tuple[str, bool]:
    """Return the last rows of finished lines, and whether something is missing before them."""
    lines = text.split(newline)
    if len(lines) - 1 <= rows:
        return text, False
    return newline.join(lines[-1 - rows :]), True


def afresh(text: str, rows: int) -> str:
    """Return the part of a terminal's (filtered) output that makes its screen, as the docstring above says."""
    main: list[str] = []
    at, alternate = 0, None
    for match in _SCREEN.finditer(text):  # in one pass: a hostile tape may switch at every eighth byte
        if match[1] == "h" and alternate is None:
            main.append(text[at : match.start()])
            alternate = match.end()
        elif match[1] == "l":
            if alternate is None:
                main.clear()  # the alternate screen's, from before the text begins
            at, alternate = match.end(), None
    if alternate is None:
        return _erased("".join([*main, text[at:]]), rows)
    return _erased("".join(main), rows) + "\x1b[?1049h" + _erased(text[alternate:], None)


def _erased(text: str, rows: int | None) -> str:
    """What comes after all was erased; without that the last lines, all if rows is None."""
    start = max(text.rfind("\x1b[2J"), text.rfind("\x1b[3J"))
    if start < 0:
        start = 0 if rows is None else _line_start(text, _SCREENS * rows)
    return text[start:]


def _line_start(text: str, lines: int) -> int:
    """Where the last so many lines begin."""
    at = len(text)
    for _ in range(lines + 1):
        at = text.rfind("\n", 0, at)
        if at < 0:
            return 0
    return at + 1


def time_of_day(wall_ns: int) -> str:
    """12:03:59Z, in UTC as all that we print."""
    return f"{clock_text(wall_ns % _DAY_NS, hours=True)}Z"


def clock_text(ns: int, hours: bool = False) -> str:
    """12:03, 1:12:03; with hours always 00:12:03."""
    seconds = max(0, ns) // 1_000_000_000
    hour, rest = divmod(seconds, 3600)
    text = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hour:02d}:{text}" if hours else f"{hour}:{text}" if hour else text
