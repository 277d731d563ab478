"""The terminal player: shows a session with its real timing, and listens to keys.

    space  pause, go on            .  on to the next command, and pause there        q  quit
    ] or right  next command       [ or left  the command before                     + -  twice, half as fast

Without a terminal to write to, everything is printed at once, without colours. The terminal is left as it was
found, whatever happens. What a target printed passes the filters of escape.py, so it cannot act on the terminal.

The player owns no thread and no event loop: it waits in select() for the next piece's time or a key.
Left out: scrolling backwards (the terminal's own scrollback does that), seeking within one command.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import sys
import termios
import time
import tty
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Final

from recorder.cast import Piece
from recorder.disk import is_live
from recorder.format import CommandEntry, Kind, Record
from recorder.reader import TapeReader
from recorder.transcript import Transcript

SPEED_LIMIT: Final = 64.0
FOLLOW_SECONDS: Final = 0.2  # how often a live tape is looked at for more
COLUMNS_LIMIT: Final = 160  # wider tables are hard to read on any screen
_KEYS_BYTES: Final = 64
_CLEAR: Final = "\x1b[2J\x1b[H"
_ARROWS: Final = {b"\x1b[C": b"]", b"\x1b[D": b"[", b"\x1bOC": b"]", b"\x1bOD": b"["}
_KEY: Final = re.compile(rb"\x1b[\[O][0-9;]*[@-~]|\x1b.?|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to play. idle_limit_seconds: longer pauses are cut to it (None: real timing).

    color: None = if the output is a terminal. follow: go on as a live tape grows.
    """

    speed: float = 1.0
    idle_limit_seconds: float | None = None
    from_seconds: float = 0.0
    follow: bool = False
    color: bool | None = None
    columns: int | None = None


class Quit(Exception):
    """The viewer has seen enough."""


class Player:
    """Plays one tape to a file descriptor, keys from another one (None: no keys)."""

    def __init__(
        self,
        tape: TapeReader,
        options: ReplayOptions,
        out: int,
        keys: int | None,
        *,
        timed: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tape = tape
        self._options = options
        self._out = out
        self._keys = keys
        self._timed = timed
        self._clock = clock
        self._color = timed if options.color is None else options.color
        self._columns = options.columns or min(COLUMNS_LIMIT, shutil.get_terminal_size((110, 30)).columns)
        self._transcript = Transcript(tape.header.map_, color=self._color)
        self._commands: list[CommandEntry] = []
        self._current = -1  # index of the command that was shown last
        self._speed = min(max(options.speed, 1 / SPEED_LIMIT), SPEED_LIMIT)
        self._paused = False
        self._rush_ns = int(options.from_seconds * 1e9)  # up to this time nothing waits
        self._rush_record = -1  # nor up to this record
        self._pause_there = False
        self._jump: int | None = None  # the command to go back to
        self._due: float | None = None  # when the piece before was due

    def play(self) -> None:
        """Play to the end, or until the viewer quits."""
        self._commands = list(self._tape.commands())
        try:
            with _terminal(self._keys):
                start: int | None = self._start()
                while start is not None:
                    start = self._run(start)
                    if start is not None:
                        self._write(self._transcript.reset() + _CLEAR)
        except Quit:
            pass
        finally:
            with suppress(OSError):
                self._write(self._transcript.reset())

    def _start(self) -> int:
        """The index of the command to begin with: the last one before --from, 0 where that is the beginning."""
        before = bisect_right(self._commands, self._rush_ns, key=lambda entry: entry.t_ns) - 1
        return max(0, before) if self._rush_ns else 0

    def _run(self, index: int) -> int | None:
        """Play from the command of that index to the end; return the index to play from next, None at the end."""
        first = self._commands[index].n if index and self._commands else 0
        newline = "\r\n" if self._timed else "\n"
        transcript = self._transcript = Transcript(
            self._tape.header.map_, columns=self._columns, color=self._color, newline=newline, done=index
        )
        self._current = index - 1
        self._jump = self._due = None
        previous_ns = self._commands[index].t_ns if index and self._commands else 0
        for piece in transcript.banner():
            self._write(piece.text)
        if index:
            self._write(f"... {index} commands before{newline}")
        for record in self._records(first):
            counted = record.kind != Kind.COMMAND
            for piece in transcript.feed(record):
                if self._wait(piece, record.n, previous_ns):
                    return self._jump
                if not counted:  # not before its time has come: keys count from what was shown last
                    self._count_command(record)
                    counted = True
                previous_ns = max(previous_ns, piece.t_ns)
                if piece.code == "o":
                    self._write(piece.text)
            if 0 <= self._rush_record <= record.n:  # the rush was to here
                self._rush_record, self._due = -1, None
                self._paused, self._pause_there = self._pause_there, False
        while self._paused and self._jump is None:
            self._key(None)
        return self._jump

    def _records(self, first: int) -> Iterator[Record]:
        yield from self._tape.records(first)
        while self._options.follow and not self._tape.status:
            seen = self._tape.next_record
            live = is_live(self._tape.segments[-1])
            self._tape.refresh()
            if self._tape.next_record > seen:
                yield from self._tape.records(seen)
            elif not live:
                return
            else:
                self._key(FOLLOW_SECONDS)
                if self._jump is not None:
                    return

    def _count_command(self, record: Record) -> None:
        self._current += 1
        if self._current >= len(self._commands):  # a live tape grows
            self._commands.append(CommandEntry(record.n, record.t_ns, "", "", "", ""))

    def _wait(self, piece: Piece, n: int, previous_ns: int) -> bool:
        """Wait until the piece is due; True if the viewer wants to be elsewhere."""
        if not self._timed:
            return False
        gap = max(0, piece.t_ns - max(previous_ns, self._rush_ns)) / 1e9
        if self._options.idle_limit_seconds is not None:
            gap = min(gap, self._options.idle_limit_seconds)
        left = gap  # of the tape's time
        while True:
            if self._rush_record >= n or piece.t_ns <= self._rush_ns:
                self._key(0)
                self._due = None
                return self._jump is not None
            if self._paused:
                self._key(None)
            else:
                # From when the last piece was due, not from when it was written: small delays do not add up.
                began = self._due if self._due is not None else self._clock()
                speed = self._speed
                due = began + left / speed
                self._key(max(0.0, due - self._clock()))
                now = self._clock()
                if now >= due:
                    self._due = due
                    return self._jump is not None
                left -= max(0.0, now - began) * speed
                self._due = now
            if self._jump is not None:
                return True
            if self._paused:
                self._due = None

    # -- keys -----------------------------------------------------------------------------------------

    def _key(self, seconds: float | None) -> None:
        """Wait so long (None: for ever) for a key, and do what it says. Raises Quit."""
        if self._keys is None:
            if seconds:
                time.sleep(seconds)
            elif seconds is None:
                raise Quit
            return
        ready, _, _ = select.select([self._keys], [], [], seconds)
        if not ready:
            return
        try:
            data = os.read(self._keys, _KEYS_BYTES)
        except OSError:  # the terminal is gone
            data = b""
        if not data:
            raise Quit
        for key in _KEY.findall(data):
            self._press(_ARROWS.get(key, key))

    def _press(self, key: bytes) -> None:
        match key:
            case b"q" | b"Q" | b"\x03" | b"\x04":
                raise Quit
            case b" ":
                self._paused = not self._paused
            case b".":
                self._rush_to_next(pause=True)
            case b"]":
                self._rush_to_next(pause=False)
            case b"[":
                self._jump = max(0, self._current - 1)
                self._rush_ns = 0
                self._rush_record = -1
            case b"+" | b"=":
                self._speed = min(self._speed * 2, SPEED_LIMIT)
            case b"-":
                self._speed = max(self._speed / 2, 1 / SPEED_LIMIT)
            case _:
                pass

    def _rush_to_next(self, pause: bool) -> None:
        following = self._current + 1
        self._rush_record = self._commands[following].n if following < len(self._commands) else sys.maxsize
        self._pause_there = pause
        self._paused = False

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            data = data[os.write(self._out, data) :]


def replay(tape: TapeReader, options: ReplayOptions) -> None:
    """Play on this process's terminal: keys from it if there is one, all at once if the output is none."""
    timed = os.isatty(1)
    keys: int | None = None
    opened = False
    if timed:
        if os.isatty(0):
            keys = 0
        else:  # the tape's path came through a pipe, perhaps; the keyboard is still there
            with suppress(OSError):
                keys, opened = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC), True
    sys.stdout.flush()
    try:
        Player(tape, options, 1, keys, timed=timed).play()
    except BrokenPipeError:  # "| head" has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    finally:
        if opened and keys is not None:
            os.close(keys)


@contextmanager
def _terminal(keys: int | None) -> Iterator[None]:
    """Keys one by one and unechoed while this lasts; the terminal as it was found afterwards, on signals too."""
    if keys is None or not os.isatty(keys):
        yield
        return
    found = termios.tcgetattr(keys)
    handlers = {}
    try:
        with suppress(ValueError):  # not the main thread: signals are not ours
            handlers = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGHUP)}
        tty.setcbreak(keys, termios.TCSANOW)
        yield
    except KeyboardInterrupt:
        raise Quit from None
    finally:
        termios.tcsetattr(keys, termios.TCSANOW, found)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
