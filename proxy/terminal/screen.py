"""A small model of a terminal's screen: enough to read the line that is being edited.

It understands what line editors and kernels send: printing with automatic margins, cursor movement, erasing, inserting
and deleting, scroll regions, wide and combining characters, and which cells are grey (suggestions that nobody typed).
Each row knows whether it was left by the automatic margin, so that a long line can be put together again. The mark
OSC 133;B is kept with its place: there the prompt ends.

feed() never raises and costs a bounded time a byte: a parameter counts to 9,999 at most and no further than the screen,
a sequence that does not end is given up after SEQUENCE_LIMIT bytes, a cell holds COMBINING_LIMIT marks at most.

Left out: colours, tabulator stops other than every eighth, character sets, double height, and every answer that a real
terminal would give. Specification: ECMA-48; XTerm Control Sequences (xterm's ctlseqs).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Final
from unicodedata import category, east_asian_width

COLUMNS_LIMIT: Final = 1000  # the widest terminals seen are around 500
ROWS_LIMIT: Final = 300
SEQUENCE_LIMIT: Final = 4096  # xterm takes longer strings, but none of them says anything about the line
COMBINING_LIMIT: Final = 8  # Unicode's stream-safe format allows 30; no keyboard makes more than a few
WORK_LIMIT: Final = 4_000_000  # cells that one feed() may make, clear or move: some 20 ms
_ROW_WORK: Final = 400  # what a row costs beside its cells
_PARAMETER_LIMIT: Final = 9999

_TOKEN: Final = re.compile(
    r"(?P<text>[^\x00-\x1f\x7f]+)"
    r"|\x1b\[(?P<args>[0-?]{0,64})(?P<mid>[ -/]{0,4})(?P<final>[@-~])"
    r"|\x1b\](?P<osc>[^\x07\x1b\x18\x1a]{0,4096})(?:\x07|\x1b\\)"
    r"|\x1b[PX^_][^\x1b\x18\x1a]{0,4096}\x1b\\"
    r"|\x1b[ -/]{1,4}[0-~]"
    r"|\x1b(?P<escape>[0-OQ-WYZ\\`-~])"
    r"|(?P<control>[\x00-\x1a\x1c-\x1f\x7f])"
)
_BEGUN: Final = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,4}|[\]PX^_][^\x07\x1b\x18\x1a]{0,4096}(?:\x1b\Z)?|[ -/]{0,4})")
_NARROW: Final = re.compile(r"[ -~\xa1-\xac\xae-\u02ff]+\Z")
_GREY_NUMBERS: Final = frozenset({8, *range(238, 247)})  # of the 256 colours: bright black and the middle of the ramp


class Row:
    """One row: a string a cell ("" is the right half of a wide one), and whether it is grey."""

    __slots__ = ("cells", "grey", "short", "wrapped")

    def __init__(self, columns: int) -> None:
        self.cells = [" "] * columns
        self.grey = bytearray(columns)
        self.wrapped = False
        self.short = False  # a wide character did not fit into its last cell

    def clear(self, start: int, end: int) -> None:
        """Erase the cells of a range."""
        width = max(0, min(end, len(self.cells)) - start)
        self.cells[start : start + width] = [" "] * width
        self.grey[start : start + width] = bytes(width)

    def shift(self, at: int, count: int) -> None:
        """Insert count blanks (negative: delete cells); the row keeps its width."""
        columns = len(self.cells)
        count = max(-(columns - at), min(count, columns - at))
        if count >= 0:
            self.cells[at:at] = [" "] * count
            self.grey[at:at] = bytes(count)
            del self.cells[columns:], self.grey[columns:]
        else:
            del self.cells[at : at - count], self.grey[at : at - count]
            self.cells += [" "] * -count
            self.grey += bytes(-count)

    def resize(self, columns: int) -> None:
        """Cut the row, or fill it up."""
        more = columns - len(self.cells)
        del self.cells[columns:], self.grey[columns:]
        if more > 0:
            self.cells += [" "] * more
            self.grey += bytes(more)


class Screen:
    """columns x rows cells; rows come into being as the cursor reaches them. x and y count from 0."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns = _within(columns, 1, COLUMNS_LIMIT)
        self.height = _within(rows, 1, ROWS_LIMIT)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._work = 0
        self._reset()

    def _reset(self) -> None:
        self.rows = [self._blank()]
        self.x = self.y = 0
        self.mark: tuple[int, int] | None = None  # (row, column) of the last OSC 133;B
        self.scrolled = 0  # rows that have left at the top
        self._margin = False  # the cursor waits behind the last column
        self._saved = (0, 0)
        self._insert = False
        self._wrap = True
        self._grey = False
        self._region: tuple[int, int] | None = None
        self._last = " "

    # -- what it shows --------------------------------------------------------------------------------

    def text(self, y: int, start: int = 0, end: int | None = None) -> str:
        """The characters of a row, blanks at its end included."""
        return "".join(self.rows[y].cells[start:end]) if 0 <= y < len(self.rows) else ""

    def goes_on(self, y: int) -> bool:
        """Whether what stands in row y goes on in the next one: the margin broke it, or it fills the row."""
        if not 0 <= y < len(self.rows):
            return False
        row = self.rows[y]
        return row.wrapped or row.cells[-1] != " "

    def column_of(self, y: int, text: str) -> int:
        """The column behind text, which row y starts with."""
        size = x = 0
        while size < len(text) and x < self.columns:
            size += len(self.rows[y].cells[x])
            x += 1
        return x

    @property
    def unfinished(self) -> bool:
        """Whether a sequence has begun that is not whole yet: what follows may be part of it."""
        return bool(self._rest)

    # -- what comes -----------------------------------------------------------------------------------

    def resize(self, columns: int, rows: int) -> None:
        """Take a new size; rows keep what fits, as xterm does."""
        self.columns = _within(columns, 1, COLUMNS_LIMIT)
        self.height = _within(rows, 1, ROWS_LIMIT)
        for row in self.rows:
            row.resize(self.columns)
        while len(self.rows) > self.height:
            self._drop_top()
        self._region = None
        self._place(self.y, self.x)

    def feed(self, data: bytes) -> bool:
        """Show data, in any pieces; returns False if it was more work than WORK_LIMIT, and the rest is left out."""
        self._work = 0
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        position = 0
        while position < len(text):
            if self._work > WORK_LIMIT:
                return False
            found = _TOKEN.match(text, position)
            if found is None:
                # An escape sequence that is not whole (or never was one).
                begun = _BEGUN.match(text, position)
                if begun is not None and begun.end() == len(text):
                    self._rest = text[position:]
                    return True
                position = position + 1 if begun is None else begun.end()  # broken off: no terminal shows it
                continue
            position = found.end()
            match found.lastgroup:
                case "text":
                    self._print(found["text"])
                case "final":
                    self._sequence(found["args"], found["mid"], found["final"])
                case "control":
                    self._control(found["control"])
                case "osc":
                    if found["osc"].startswith(("133;B", "633;B")):
                        self.mark = (self.y, self.x)
                case "escape":
                    self._escape(found["escape"])
        return True

    def _print(self, text: str) -> None:
        if not self._insert and self._wrap and _NARROW.match(text):
            self._print_narrow(text)
        else:
            for char in text:
                self._print_one(char)
        self._last = text[-1]

    def _print_narrow(self, text: str) -> None:
        position = 0
        while position < len(text):
            if self._margin:
                self._break()
            row = self.rows[self.y]
            count = min(len(text) - position, self.columns - self.x)
            row.cells[self.x : self.x + count] = text[position : position + count]
            row.grey[self.x : self.x + count] = (b"\x01" if self._grey else b"\x00") * count
            self._advance(count)
            position += count

    def _print_one(self, char: str) -> None:
        width = width_of(char)
        if width < 0:
            return
        if width == 0:
            self._combine(char)
            return
        width = min(width, self.columns)
        if self._wrap and (self._margin or self.x + width > self.columns):
            self.rows[self.y].short = not self._margin and self.rows[self.y].cells[-1] == " "
            self._break()
        row = self.rows[self.y]
        self.x = min(self.x, self.columns - width)
        if self._insert:
            row.shift(self.x, width)
        row.cells[self.x : self.x + width] = [char, ""][:width]
        row.grey[self.x : self.x + width] = (b"\x01" if self._grey else b"\x00") * width
        self._advance(width)

    def _blank(self) -> Row:
        self._work += self.columns + _ROW_WORK
        return Row(self.columns)

    def _advance(self, width: int) -> None:
        self.x += width
        self._margin = self.x >= self.columns
        if self._margin:
            self.x = self.columns - 1

    def _break(self) -> None:
        self.rows[self.y].wrapped = True
        self._margin = False
        self.x = 0
        self._down()

    def _combine(self, mark: str) -> None:
        cells = self.rows[self.y].cells
        x = self.x if self._margin else self.x - 1
        if x > 0 and cells[x] == "":
            x -= 1
        if x >= 0 and len(cells[x]) <= COMBINING_LIMIT:
            cells[x] += mark

    # -- moving ---------------------------------------------------------------------------------------

    def _place(self, y: int, x: int) -> None:
        self._margin = False
        self.x = _within(x, 0, self.columns - 1)
        self.y = _within(y, 0, self.height - 1)
        while len(self.rows) <= self.y:
            self.rows.append(self._blank())

    def _edges(self) -> tuple[int, int]:
        return self._region or (0, self.height - 1)

    def _down(self) -> None:
        top, bottom = self._edges()
        if self.y == bottom:
            if top:
                self._scroll(top, bottom, 1)
            else:
                self._drop_top()
                if bottom < self.height - 1:
                    self.rows.insert(min(bottom, len(self.rows)), self._blank())
                self.y = bottom
        elif self.y < self.height - 1:
            self.y += 1
        while len(self.rows) <= self.y:
            self.rows.append(self._blank())

    def _drop_top(self) -> None:
        del self.rows[0]
        self.y = max(0, self.y - 1)
        self.scrolled += 1
        if self.mark is not None:
            self.mark = (self.mark[0] - 1, self.mark[1])

    def _scroll(self, top: int, bottom: int, count: int) -> None:
        """Move the rows of a region up (negative: down) and leave blank ones."""
        while len(self.rows) <= bottom:
            self.rows.append(self._blank())
        for _ in range(min(abs(count), bottom - top + 1)):
            gone, new = (top, bottom) if count > 0 else (bottom, top)
            del self.rows[gone]
            self.rows.insert(new, self._blank())

    def _control(self, char: str) -> None:
        match char:
            case "\r":
                self.x, self._margin = 0, False
            case "\n" | "\x0b" | "\x0c":
                self._margin = False
                self._down()
            case "\b":
                self.x, self._margin = max(0, self.x - 1), False
            case "\t":
                self._place(self.y, (self.x // 8 + 1) * 8)

    def _escape(self, char: str) -> None:
        match char:
            case "7":
                self._saved = (self.y, self.x)
            case "8":
                self._place(*self._saved)
            case "D":
                self._down()
            case "E":
                self.x, self._margin = 0, False
                self._down()
            case "M":
                top, bottom = self._edges()
                if self.y == top:
                    self._scroll(top, bottom, -1)
                else:
                    self._place(self.y - 1, self.x)
            case "c":
                self._reset()

    def _sequence(self, args: str, mid: str, final: str) -> None:
        if mid:
            return
        if args[:1] in ("?", ">", "<", "="):
            if args == "?7" and final in "hl":
                self._wrap = final == "h"
            return
        numbers = [min(int(part[:5]), _PARAMETER_LIMIT) if part.isdigit() else 0 for part in args.split(";")]
        if final == "m":
            self._colour(numbers)
            return
        self._work += self.columns
        action = _ACTIONS.get(final)
        if action is not None:
            action(self, numbers[0], numbers[1] if len(numbers) > 1 else 0)

    def _colour(self, numbers: list[int]) -> None:
        position = 0
        while position < len(numbers):
            number = numbers[position]
            if number in (38, 48):
                kind = numbers[position + 1] if position + 1 < len(numbers) else 0
                values = numbers[position + 2 : position + (5 if kind == 2 else 3)]
                if number == 38:
                    self._grey = _is_grey(values)
                position += 5 if kind == 2 else 3
                continue
            if number in (2, 90):
                self._grey = True
            elif number in (0, 22, 39) or 30 <= number <= 37 or 91 <= number <= 97:
                self._grey = False
            position += 1

    def _home(self, first: int, second: int) -> None:
        self._place(max(first, 1) - 1, max(second, 1) - 1)

    def _erase_display(self, first: int, _: int) -> None:
        row = self.rows[self.y]
        if first == 0:
            row.clear(self.x, self.columns)
            row.wrapped = False
            del self.rows[self.y + 1 :]
        elif first == 1:
            row.clear(0, self.x + 1)
            self.rows[: self.y] = [self._blank() for _ in range(self.y)]
        elif first == 2:
            self.rows = [self._blank() for _ in range(self.y + 1)]

    def _erase_line(self, first: int, _: int) -> None:
        row = self.rows[self.y]
        row.clear(0 if first else self.x, self.x + 1 if first == 1 else self.columns)
        if first != 1:
            row.wrapped = False

    def _repeat(self, first: int, _: int) -> None:
        self._print(self._last * min(max(first, 1), self.columns))

    def _lines(self, count: int) -> None:
        top, bottom = self._edges()
        if top <= self.y <= bottom:
            self._scroll(self.y, bottom, count)

    def _set_region(self, first: int, second: int) -> None:
        top, bottom = max(first, 1) - 1, min(second or self.height, self.height) - 1
        if top < bottom:
            self._region = None if (top, bottom) == (0, self.height - 1) else (top, bottom)
            self._place(0, 0)

    def _mode(self, number: int, on: bool) -> None:
        if number == 4:
            self._insert = on

    def _restore(self, _first: int, _second: int) -> None:
        self._place(*self._saved)

    def _save(self, _first: int, _second: int) -> None:
        self._saved = (self.y, self.x)


_ACTIONS: Final[dict[str, Callable[[Screen, int, int], None]]] = {
    "A": lambda screen, first, _: screen._place(screen.y - max(first, 1), screen.x),
    "B": lambda screen, first, _: screen._place(screen.y + max(first, 1), screen.x),
    "C": lambda screen, first, _: screen._place(screen.y, screen.x + max(first, 1)),
    "D": lambda screen, first, _: screen._place(screen.y, screen.x - max(first, 1)),
    "E": lambda screen, first, _: screen._place(screen.y + max(first, 1), 0),
    "F": lambda screen, first, _: screen._place(screen.y - max(first, 1), 0),
    "G": lambda screen, first, _: screen._place(screen.y, max(first, 1) - 1),
    "`": lambda screen, first, _: screen._place(screen.y, max(first, 1) - 1),
    "d": lambda screen, first, _: screen._place(max(first, 1) - 1, screen.x),
    "H": Screen._home,
    "f": Screen._home,
    "J": Screen._erase_display,
    "K": Screen._erase_line,
    "@": lambda screen, first, _: screen.rows[screen.y].shift(screen.x, max(first, 1)),
    "P": lambda screen, first, _: screen.rows[screen.y].shift(screen.x, -max(first, 1)),
    "X": lambda screen, first, _: screen.rows[screen.y].clear(screen.x, screen.x + max(first, 1)),
    "L": lambda screen, first, _: screen._lines(-max(first, 1)),
    "M": lambda screen, first, _: screen._lines(max(first, 1)),
    "b": Screen._repeat,
    "r": Screen._set_region,
    "s": Screen._save,
    "u": Screen._restore,
    "h": lambda screen, first, _: screen._mode(first, True),
    "l": lambda screen, first, _: screen._mode(first, False),
}


def width_of(char: str) -> int:
    """How many columns a character takes: 0, 1 or 2; -1 for a control. Source: Unicode UAX 11, as wcwidth reads it."""
    if " " <= char <= "~":
        return 1
    kind = category(char)
    if kind in ("Mn", "Me", "Cf"):
        return 0
    if kind == "Cc":
        return -1
    return 2 if east_asian_width(char) in "WF" else 1


def _is_grey(values: list[int]) -> bool:
    if len(values) == 1:
        return values[0] in _GREY_NUMBERS
    return len(values) == 3 and max(values) - min(values) <= 16 and 64 <= max(values) <= 144


def _within(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
