"""The line that is being edited on a terminal: what was typed beside what the screen shows, and what both say it is.

Only the edited line is modelled, from the start of its row on, and only when somebody has to know: output is kept as
bytes (BACKLOG_LIMIT, of which KEPT_BYTES stay when it runs over) and shown to the model at the first key of a line and
when the line is read. So bulk output costs next to nothing, and the work that a target can cause is bounded.

The start of the line is where the cursor stood before its first key (or the mark OSC 133;B). After redraws it is found
again by the prompt that was seen there, or one seen earlier; in a search (Ctrl-R) by the search's own prompt. Its end
is the end of what is drawn, without grey suggestions from the cursor on, and without a right prompt.

Plain typing (printable characters, Backspace, Ctrl-U) is counted along. Where screen and typing disagree, plain typing
stands: a target that rewrites the line cannot make a line look harmless that was typed in plain sight. For any other
editing only the screen is there to tell, and a target that lies there is believed: this is what exact=False means.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.terminal.keys import KeyKind
from proxy.terminal.reading import UNREADABLE, How, Reading, judge, perhaps
from proxy.terminal.screen import Screen
from proxy.terminal.typed import Typed

BACKLOG_LIMIT: Final = 64 * 1024
SHOWN_LIMIT: Final = 256 * 1024  # of a line of 500 keys that redraw 500 bytes each, as fish does
KEPT_BYTES: Final = 16 * 1024  # a line of 100 rows and its redraws; more than anybody reads before approving
MODEL_ROWS: Final = 120  # a line of 9,600 characters on 80 columns
PROMPTS_LIMIT: Final = 8  # a primary and a continuation prompt in each of some nested shells

_SEARCH: Final = re.compile(
    r"^(?:\((?:failed )?(?:reverse-)?i-search\)`(?P<bash>.*?)': |(?:failing )?(?:bck|fwd)-i-search: )"
)
_FISH_SEARCH: Final = re.compile(r"\nsearch: [^\n]*\Z")
_GENERIC: Final = re.compile(r"^.{0,200}?[$#%>❯»] ")  # noqa: RUF001
_SECRET: Final = re.compile(
    r"(?i)(pass(word|phrase|code|wort)|\bpwd\b|\bpin\b|secret|token|verification|one-time|\botp\b|mot de passe"
    r"|contrase|kennwort|senha|wachtwoord|пароль|密码|パスワード)[^\n]{0,80}[:?\uff1a>]\s*\Z"
)


class Backlog:
    """A screen that is fed only when it is looked at, and no more than SHOWN_LIMIT bytes a line otherwise."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._bytes = bytearray()
        self._screen: Screen | None = None
        self._shown = 0
        self.clipped = False  # something was left out: the model may be wrong

    def add(self, data: bytes, edited: bool = False) -> None:
        """Take output. edited: it may all belong to a line that somebody is typing."""
        if len(data) > KEPT_BYTES and not edited:
            self._bytes = bytearray(data[-KEPT_BYTES:])
            self.clipped = True
            return
        self._bytes += data
        if len(self._bytes) > BACKLOG_LIMIT:
            if edited and self._shown < SHOWN_LIMIT:
                self._shown += len(self._bytes)
                self.look()
            else:
                del self._bytes[:-KEPT_BYTES]
                self.clipped = True

    def restart(self, data: bytes = b"") -> None:
        """Begin at the start of a row, with data."""
        self._screen = None
        self._shown = 0
        self.clipped = len(data) > KEPT_BYTES
        self._bytes = bytearray(data[-KEPT_BYTES:])

    def resize(self, columns: int, rows: int) -> None:
        """Take a new size; what was drawn before was drawn for the old one."""
        if self._screen is not None or self._bytes:
            self.look().resize(columns, rows)
        self.columns, self.rows = columns, rows

    def look(self) -> Screen:
        """The screen with all that has come."""
        if self._screen is None:
            self._screen = Screen(self.columns, self.rows)
        if self._bytes:
            data = bytes(self._bytes)
            self._bytes.clear()
            try:
                self.clipped = not self._screen.feed(data) or self.clipped
            except Exception:  # fails closed: without a model the line is a guess from the keys
                self._screen = Screen(self.columns, self.rows)
                self.clipped = True
        return self._screen


class Line:
    """The line under the cursor. editing: a line editor says that it waits for it (the cues; they can be forged)."""

    def __init__(self, columns: int, strict: bool = False) -> None:
        self._strict = strict
        self._backlog = Backlog(columns, MODEL_ROWS)
        self._prompts: list[str] = []
        self._right = ""  # the right prompt, as last seen
        self._end: tuple[int, int] | None = (
            None  # where the prompt ends: row (counted with those scrolled away), column
        )
        self._prompt: str | None = None
        self._ahead = False  # typed while a command ran
        self._left: Typed | None = None  # typed into a program that has gone since: the shell may have got some of it
        self._before: Typed | None = None  # submitted or cancelled, but the target has not shown yet that it took it
        self._handed_over = False  # the line before was for the shell's line editor, which says when it has taken it
        self._prefill = self._prefilled = False  # the shell itself may put a text into the next line, has put (Ctrl-O)
        self.keys = Typed()
        self.cues = False  # this shell gives cues
        self.editing = False
        self.secret = False

    # -- output ---------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a program reads the line, not the shell, as far as cues tell."""
        return self.cues and not self.editing

    def show(self, data: bytes) -> None:
        """Take output of the main screen."""
        if self._before is not None:
            start = -1 if self._handed_over else data.find(b"\n")
            if start < 0:
                if self.keys.keys:
                    self.keys.answer(data)
                self._backlog.add(data)
                return
            self._taken()
            data = data[start + 1 :]
        if self.keys.keys:
            self.keys.answer(data)
        elif not self.editing:
            start = data.rfind(b"\n")
            if start >= 0:
                self._backlog.restart(data[start + 1 :])
                return
        self._backlog.add(data, edited=bool(self.keys.keys))

    def _taken(self) -> None:
        """What was submitted is gone from the line: a line break or a cue has shown it."""
        if self._before is not None:
            self._before = None
            self._prefilled = self._prefill
            if self._handed_over:
                self.editing = False
            self._start_over()

    def _start_over(self) -> None:
        self._backlog.restart()
        self._end = self._prompt = None
        self._ahead = bool(self.keys.keys)
        self.secret = False

    def prompt_begins(self) -> None:
        """A line editor waits now."""
        self._taken()
        if self.editing and self.keys.keys:
            return  # it draws its prompt once more; nothing that comes from there takes back what was typed
        self.cues = self.editing = True
        self._end = self._prompt = None
        self._ahead = bool(self.keys.keys)
        self.secret = False

    def run_begins(self) -> None:
        """The line editor has handed over to a program."""
        self._taken()
        self.editing = False
        self._start_over()

    def resize(self, columns: int) -> None:
        """The terminal has another width."""
        self._backlog.resize(columns, MODEL_ROWS)

    # -- keys -----------------------------------------------------------------------------------------

    def key(self, kind: KeyKind, data: bytes) -> None:
        """Take a key that goes out (no submit key)."""
        if kind == "control" and data == b"\x03":
            self.cancelled()
            return
        if kind != "report":
            self._begin()
        self.keys.take(kind, data)

    def _begin(self) -> None:
        """Before the first key of a line goes out: the prompt ends at the cursor."""
        if self._end is not None or self._ahead or self._prefilled or self.keys.keys or self._before is not None:
            return
        if self.left_over:
            self._ahead = True  # the cursor may stand behind a part of the line already
            return
        self._left = None
        try:
            screen = self._backlog.look()
            y, x = (screen.y, screen.x) if screen.mark is None or not self.editing else screen.mark
            self._end = (y + screen.scrolled, x)
            self._learn(screen, y, x)
            self.secret = not self.editing and bool(_SECRET.search(screen.text(y, 0, x).rstrip() or screen.text(y - 1)))
        except Exception:  # fails closed: nothing is known of the prompt, and the keys are taped
            self._end = self._prompt = None

    def submitted(self, key: bytes, to_shell: bool, hidden: bool = False) -> None:
        """The line has been submitted. hidden: what was typed is forgotten at once, as no echo will show its end."""
        if hidden:
            self.keys = Typed()
        self._leave(handed_over=to_shell and self.editing, prefill=key == b"\x0f")

    def cancelled(self) -> None:
        """The line was thrown away with Ctrl-C."""
        self._leave(handed_over=False, prefill=False)

    def _leave(self, handed_over: bool, prefill: bool) -> None:
        self._prefill = prefill
        self._left = None
        self._handed_over = handed_over
        if self._before is None and not _weighs(self.keys):
            self._prefilled = prefill
            self._end = self._prompt = None
            self._ahead = self.secret = False
        elif self._before is None or not _weighs(self._before):
            self._before = self.keys
        self.keys = Typed()

    def inherit(self, keys: Typed) -> None:
        """What was typed on the alternate screen, which is gone, may be a line after all."""
        if self._strict:
            keys.unclear()
            self.keys = keys
        elif _weighs(keys):
            self._left = keys

    def taken_back(self) -> None:
        """A program was told to take its line back; the prompt stays where it is."""
        self.keys = Typed()
        self._left = None

    def _learn(self, screen: Screen, y: int, x: int) -> None:
        self._prompt = screen.text(y, 0, x)
        if self.running:
            return
        self._right = screen.text(y, x).strip()
        if self._prompt.strip():
            self._prompts = [*(each for each in self._prompts if each != self._prompt), self._prompt][-PROMPTS_LIMIT:]

    # -- reading --------------------------------------------------------------------------------------

    @property
    def untouched(self) -> bool:
        """Whether nobody has typed on this line."""
        return not self.keys.keys

    @property
    def is_plain(self) -> bool:
        """Whether typing alone tells what the line is."""
        return self.keys.plain and not self._prefilled and not self._goes_on

    @property
    def _goes_on(self) -> bool:
        """Whether the line before may still be there: its submit key may have been quoted, its Ctrl-C switched off."""
        return self._before is not None and _weighs(self._before)

    @property
    def left_over(self) -> bool:
        """Whether the line may begin with keys that were typed on the alternate screen.

        It does not where the cursor stands behind a prompt that does not end as those keys do.
        """
        if self._left is None:
            return False
        end = self._left.text.rstrip()[-1:]
        if self.keys.keys or not self._left.plain or not end:
            return True
        try:
            screen = self._backlog.look()
            row = screen.text(screen.y, 0, screen.x)
        except Exception:  # fails closed: nothing is known of the prompt
            return True
        generic = _GENERIC.match(row)
        prompt = row in self._prompts or (generic is not None and generic.end() == len(row))
        return not prompt or row.rstrip().endswith(end)

    @property
    def veiled(self) -> bool:
        """Whether it is typed at a prompt for a password, and nothing of it was echoed."""
        return self.secret and not self.keys.shows_up(1)

    def drawn(self) -> list[str]:
        """The rows from the prompt on as they are drawn, so that they can be drawn once more."""
        try:
            screen = self._backlog.look()
            top = screen.y if self._end is None else self._end[0] - screen.scrolled
            rows = [screen.text(y).rstrip(" ") for y in range(max(0, top), screen.y)]
            return [*rows, screen.text(screen.y, 0, screen.x)]
        except Exception:  # it is only for the eye
            return [""]

    def behind_prompt(self, row: str) -> str | None:
        """What stands in a row behind a shell's prompt that was seen before; None: it shows none."""
        for prompt in self._prompts[::-1]:
            if row.startswith(prompt):
                return row[len(prompt) :]
        return None

    def read(self) -> Reading:
        """Tell what the line is, by all that is known at this moment."""
        try:
            return self._judge(*self._from_screen())
        except Exception:  # fails closed: the keys alone tell, and an empty text is no empty line
            return Reading(self.keys.text.strip() or UNREADABLE, "guess", opaque=True)

    def _judge(self, shown: str, how: How) -> Reading:
        if self.running:
            how = "app"
        if self._before is not None and self._goes_on:
            return perhaps((self._before.text + self.keys.text).strip(), shown)
        if self.untouched:
            return self._judge_untouched(shown, how)
        if (self._ahead or not self._prompt) and self.is_plain and self._left is None and self._drawn_anew():
            shown = self.keys.text.strip()
        sure = how != "guess" and not self._backlog.clipped and not self._backlog.look().unfinished
        if not self.is_plain and self._strict and not shown:
            sure = False
        more = self._left is not None
        return judge(self.keys, shown, how, sure, plain=self.is_plain, ahead=self._ahead, secret=self.secret, more=more)

    def _drawn_anew(self) -> bool:
        """Whether a known prompt and all that was typed stand at the end, though the kernel's echo stands before."""
        typed = self.keys.text.strip()
        screen = self._backlog.look()
        size = len(typed) + max((len(prompt) for prompt in self._prompts), default=0)
        top = max(0, screen.y - size // screen.columns - 1)
        drawn = "".join(screen.text(y) for y in range(top, screen.y + 1)).rstrip()
        return bool(typed) and any(prompt.strip() and drawn.endswith(prompt + typed) for prompt in self._prompts)

    def _judge_untouched(self, shown: str, how: How) -> Reading:
        """Enter alone: it runs something only if the shell put a text there."""
        if self.left_over and shown:
            return Reading(shown, how)
        if self.running or how == "guess" or (not self.cues and not self._prefilled):
            return Reading("", how, empty=True)
        return Reading(shown, how, empty=not shown)

    def _from_screen(self) -> tuple[str, How]:
        screen = self._backlog.look()
        here = screen.y
        for y in (here, here - 1):
            search = _SEARCH.match(screen.text(y)) if y == here or screen.goes_on(y) else None
            if search is not None and search["bash"] is not None:
                return self._text(screen, y, search.end()), "search"
        start = self._start(screen)
        if start is not None:
            text = self._text(screen, *start)
            found = _FISH_SEARCH.search(text)
            return (text, "screen") if found is None else (text[: found.start()], "search")
        generic = _GENERIC.match(screen.text(here))
        return self._text(screen, here, generic.end() if generic else 0), "guess"

    def _start(self, screen: Screen) -> tuple[int, int] | None:
        """Where the line begins: behind a prompt that the screen shows, or where it began when it was begun."""
        end = None if self._end is None else (self._end[0] - screen.scrolled, self._end[1])
        prompts = [self._prompt] if self._prompt else []
        if self._prompt is None or self._ahead:
            prompts += self._prompts[::-1]
        for prompt in prompts:
            if not prompt.strip():
                continue
            for y in range(screen.y, -1, -1):
                # A redraw starts on a fresh row; a row of a wrapped line that looks like the prompt does not count.
                fresh = y == 0 or not screen.goes_on(y - 1) or (end is not None and end[0] == y)
                if fresh and screen.text(y).startswith(prompt):
                    return y, screen.column_of(y, prompt)
        return end if end is not None and end[0] >= 0 else None

    def _text(self, screen: Screen, y: int, x: int) -> str:
        parts: list[str] = []
        row = y
        while True:
            end = _suggestion(screen, row) if row >= screen.y else screen.columns
            text = screen.text(row, x if row == y else 0, end)
            if row == y and self._right and text.rstrip().endswith(self._right):
                text = text.rstrip()[: -len(self._right)]
            goes_on = end == screen.columns and screen.goes_on(row)
            if goes_on and screen.rows[row].short:
                text = text[:-1]
            row += 1
            last = row >= len(screen.rows) or (row > screen.y and not goes_on)
            parts.append(text if goes_on else text.rstrip() + ("" if last else "\n"))
            if last:
                return "".join(parts).strip()


def _weighs(typed: Typed) -> bool:
    return typed.printed or not typed.plain


def _suggestion(screen: Screen, y: int) -> int:
    """The column from which on a row holds a suggestion: grey text from the cursor on."""
    row = screen.rows[y]
    start = screen.x if y == screen.y else 0
    for x in range(start, screen.columns):
        if row.cells[x].strip():
            return start if row.grey[x] else screen.columns
    return screen.columns
