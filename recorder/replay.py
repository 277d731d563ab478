"""The terminal player: shows a session with its real timing, and listens to keys (player_screen.HELP lists them).

A live tape is followed from its end on (--from 0: from its beginning), and what comes is shown when it comes.

A session is played from a *spot*: a record and a time. Whatever comes up to it is put on the screen at once, as it
looked then; what follows is played. So a jump is the drawing of another spot, and costs the same wherever it goes:
of a rendered session the last screenful of commands is rendered, and of a terminal session the last quarter megabyte of
its output is sent through the filter (LOOK_BACK limits; a terminal takes that in 5 ms). Where that misses something
it says so: "... 12 commands before". Short ways forward are not drawn, but played without waiting.

Without a terminal to write to, everything is printed at once, without colours. The terminal is left as it was
found, whatever happens. What a target printed passes the filters of escape.py, so it cannot act on the terminal.

The player owns no thread and no event loop: it waits in select() for the next piece's time or a key.
Left out: scrolling (the terminal's own scrollback does that), playing backwards, an emulation of the terminal: after a
jump into a full-screen program that drew its screen more than LOOK_BACK ago, the picture is complete only once
it draws afresh.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

from recorder.cast import Piece
from recorder.disk import is_live
from recorder.format import Record
from recorder.player_flows import Streams
from recorder.player_index import TapeIndex, marker_of
from recorder.player_keys import Keys
from recorder.player_options import SPEED_LIMIT, BadOption, ReplayOptions
from recorder.player_screen import CLEAR, afresh, last_lines
from recorder.player_terminal import Quit, Terminal
from recorder.reader import TapeReader
from recorder.replay_flows import print_flows
from recorder.replay_markers import print_markers
from recorder.transcript import Transcript
from recorder.transcript_flows import transcript_of

__all__ = ["SPEED_LIMIT", "BadOption", "Player", "Quit", "ReplayOptions", "print_markers", "replay"]

FOLLOW_SECONDS: Final = 0.2  # how often a live tape is looked at for more
COLUMNS_LIMIT: Final = 160  # wider tables are hard to read on any screen
COLUMNS: Final = 110  # where there is no terminal, as in exports
# What is looked at to draw a spot: at most so many raw bytes, or blocks. Measured: the reader takes 30 us a small block
# and 2 us a record; a screen of 200 x 50 with colours is 20 to 40 KB.
LOOK_BACK_BYTES: Final = 256 * 1024
LOOK_BACK_BLOCKS: Final = 256
_COLLECT_OBJECTS: Final = 200_000  # objects between two looks for garbage; Python's own number is 700
_HEAD_RECORDS: Final = 64  # of a command that is further back than that: itself, its verdict, what was masked


class Spot(NamedTuple):
    """A state of the session: after record n (-1: before the first), at a time."""

    n: int
    t_ns: int


@contextmanager
def few_collections() -> Iterator[None]:
    """Let Python look for garbage less often: a jump reads lists of 30,000 entries, of which none is.

    Measured: a third of the time of a jump in a tape of small commands.
    """
    found = gc.get_threshold()
    gc.set_threshold(_COLLECT_OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*found)


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
        """timed: False prints everything at once. Raises BadOption, FormatError."""
        self.options = options
        self.terminal = Terminal(out, keys)
        self.index = TapeIndex(tape)
        self.tape = tape
        self.timed = timed
        self.streams = Streams(tape, self.index, options, timed=timed)
        self.tty = self.streams.terminal
        self._clock = clock
        self._color = options.wants_color(timed)
        self._newline = "\r\n" if timed else "\n"
        self._stop_ns = options.stop_ns(tape.header.wall0_ns)
        self._start = self._first_spot()
        self._transcript = Transcript(tape.header.map_)
        # Of what was shown (the rendering is one record ahead of the screen): what undoes it, how many commands it had.
        self._reset = ""
        self.commands_shown = 0
        self._drawn = False
        # Where we are: all up to here was shown, and the tape's time has come to now_ns at the clock's anchor.
        self.spot = Spot(-1, 0)
        self.now_ns = 0
        self._anchor = 0.0
        self.shown_n = -1  # the last record of which something is on the screen
        # What the keys say.
        self.speed = min(max(options.speed, 1 / SPEED_LIMIT), SPEED_LIMIT)
        self.paused = False
        self.step = 0  # so many things that show are shown, before the pause holds
        self.pause_on_markers = options.pause_on_markers
        self.rush: Spot | None = None  # up to this spot nothing waits
        self.jump: Spot | None = None  # draw this spot
        self.at_end = False
        self.keys = Keys(self)

    def play(self) -> None:
        """Play to the end, or until the viewer quits."""
        self.terminal.on_stop = self._leave
        with few_collections(), self.terminal:
            try:
                self.jump = self._start
                while self.jump is not None:
                    self._run(self.jump)
            except (Quit, KeyboardInterrupt):
                pass
            finally:
                with suppress(OSError):
                    self._leave()

    def _leave(self) -> None:
        self.terminal.write(self._reset)
        self.keys.leave()

    def _first_spot(self) -> Spot:
        """Where the options say to begin. Raises BadOption."""
        if self.options.command is not None:
            command = self.index.nth(self.options.command - 1)
            if command is None:
                count = self.index.count()
                raise BadOption(f"there is no command {self.options.command}; the tape has {count}")
            return Spot(command.n, command.t_ns)
        if self.timed and self.live and self.options.start is None and not self.options.from_seconds:
            return Spot(self.index.last(), self.tape.duration_ns)  # as tail -f does it; --from 0 is the whole story
        start_ns = self.options.start_ns(self.tape.header.wall0_ns)
        alone = self.streams.begin()
        if alone is not None and not start_ns:
            return Spot(alone.first - 1, self.index.time_of(alone.first))
        return Spot(self.index.record_at(start_ns), start_ns) if start_ns else Spot(-1, 0)

    # -- playing --------------------------------------------------------------------------------------

    def _run(self, spot: Spot) -> None:
        """Draw the spot and play from it, to the end or until there is a jump."""
        self.jump = self.rush = None
        self.at_end = False
        for record in self._kept(self._draw(spot)):
            if self._stop_ns is not None and record.t_ns > self._stop_ns:
                break
            self._show(record)
            if self.jump is not None:
                return
            if self.streams.ends(record):
                break
        if self.jump is not None:
            return
        self.rush, self.at_end, self.step = None, True, 0
        while self.paused and self.jump is None:
            self.wait(None)

    def _kept(self, records: Iterable[Record]) -> Iterator[Record]:
        """Those that are to be shown; the commands of other streams are counted."""

        def count() -> None:
            self._transcript.count += 1

        return self.streams.kept(records, count)

    def _show(self, record: Record) -> None:
        """Show a record when its time has come. With a jump it may not be shown whole."""
        shown = stepped = False
        for piece in self._transcript.feed(record):
            if not self._reach(piece, record.n):
                return
            if piece.code == "o":
                stepped = self.step > 0  # a key that comes later is for the next record
                self.terminal.write(piece.text)
                shown = True
        arrived = self.rush is not None and record.n >= self.rush.n
        if self.rush is not None and arrived:
            self._arrive(self.rush)
        self.spot = Spot(record.n, max(self.spot.t_ns, record.t_ns))
        if shown:
            self.shown_n = record.n
        self._note_shown()
        if not self.timed:
            return
        if stepped:
            self.step -= 1
        elif shown and self.pause_on_markers and self.rush is None and marker_of(record) is not None:
            self.paused = True
        if shown or arrived:
            self.keys.draw_status()

    def _note_shown(self) -> None:
        self._reset = self._transcript.reset()
        self.commands_shown = self._transcript.count

    def _arrive(self, spot: Spot) -> None:
        self.rush = None
        self.now_ns = max(self.now_ns, spot.t_ns)
        self._anchor = self._clock()

    def _reach(self, piece: Piece, n: int) -> bool:
        """Let the tape's time come to the piece; False if the viewer wants to be elsewhere."""
        if not self.timed:
            return True
        fresh = True
        while True:
            if self.rush is not None:
                if n <= self.rush.n:
                    self.wait(0)
                    self.now_ns = max(self.now_ns, piece.t_ns)
                    return self.jump is None
                self._arrive(self.rush)
                self.keys.draw_status()
            idle = self.options.idle_limit_seconds
            if fresh and idle is not None and not self.paused:  # what is cut off is the beginning of a pause
                self.now_ns, fresh = max(self.now_ns, piece.t_ns - int(idle * 1e9)), False
            left = piece.t_ns - self.now_ns
            if self.paused and not self.step:
                self.wait(None)
                self._anchor = self._clock()
            elif left <= 0 or self.step:
                self.wait(0)
                if self.jump is None and self.rush is None and (self.step or not self.paused):
                    self.now_ns = max(self.now_ns, piece.t_ns)
                    if self.step:
                        self._anchor = self._clock()
                    return True
            else:
                self._pass(left)
            if self.jump is not None:
                return False

    def _pass(self, left_ns: int) -> None:
        """Wait for so much of the tape's time, or a key; move the time on."""
        # From when the last piece was due, not from when it was written: small delays do not add up.
        speed, began = self.speed, self._anchor
        due = began + left_ns / 1e9 / speed
        self.wait(self.keys.until_tick(max(0.0, due - self._clock())))
        now = self._clock()
        if self.rush is not None or self.jump is not None or self._anchor != began:
            return
        self._anchor = min(now, due)
        self.now_ns += left_ns if now >= due else int((now - began) * speed * 1e9)

    def wait(self, seconds: float | None) -> None:
        """Wait so long (None: for ever) for keys, and do what they say. Raises Quit."""
        for key in self.terminal.wait(seconds):
            self.keys.press(key)
        if self.terminal.fresh_wanted:
            self.redraw()
        self.keys.draw_status()

    def redraw(self) -> None:
        """Draw where we are once more."""
        self.terminal.fresh_wanted = False
        if self.jump is None:
            self.jump = Spot(self.spot.n, self.now_ns)

    # -- drawing --------------------------------------------------------------------------------------

    def _draw(self, spot: Spot) -> Iterator[Record]:
        """Put the state at the spot on the screen; return the records behind it."""
        if self.timed:
            if self._drawn:
                self.terminal.write(self._reset + CLEAR)
            self._drawn = True
            self.keys.prepare()
        start = spot.n + 1
        self.shown_n = -1
        if spot.n < 0:
            self.terminal.write(self._begin(0))
        elif not self.timed:
            start = self._skip_to(spot)
        else:
            self.terminal.write(self._screen_at(spot) if self.tty else self._lines_at(spot))
        self.spot, self.now_ns, self._anchor = spot, spot.t_ns, self._clock()
        self._note_shown()
        self.keys.draw_status()
        return self._records(start)

    def _begin(self, done: int, owner: int | None = None) -> str:
        """Start a new rendering, behind so many commands; return its first lines. owner: the flow on the screen."""
        columns = self.options.columns or (min(COLUMNS_LIMIT, self.terminal.size()[0]) if self.timed else COLUMNS)
        said = self.tape.header.map_
        raw, newline, color = self.options.raw, self._newline, self._color
        self._transcript = transcript_of(
            said,
            **self.streams.transcript_options(owner),
            columns=columns,
            color=color,
            newline=newline,
            done=done,
            terminal=self.timed or color,
            raw=raw,
        )
        text = "".join(piece.text for piece in self._transcript.banner())
        text += "" if done else self.streams.listed(newline, color)
        match self.streams.size():
            case (wide, high) if self.timed and (self.terminal.size() < (wide, 0) or self.terminal.size()[1] < high):
                here = "x".join(map(str, self.terminal.size()))
                text += f"-- recorded at {wide}x{high}; this terminal has {here}{newline}"
        return text + (f"... {done} commands before{newline}" if done else "")

    def _lines_at(self, spot: Spot) -> str:
        """The last screenful of a rendered session."""
        rows = self.keys.rows()
        command = self.index.at(spot.n)
        # A command has two or three blocks, if it is small.
        start = self.index.look_back(spot.n, LOOK_BACK_BYTES, min(LOOK_BACK_BLOCKS, 4 * rows))
        head: list[Record] = []
        done = 0
        if command is not None:
            first = self.index.nth(max(0, command.ordinal - rows))
            if first is not None and first.n < start:
                first = self.index.after(start - 1)
            if first is not None and first.n <= spot.n:
                start, done = first.n if first.ordinal else 0, first.ordinal
            else:
                # It began before all that we look at: its beginning, and then the end of what it did.
                done = command.ordinal
                head = [record for record in islice(self.tape.records(command.n), _HEAD_RECORDS) if record.n < start]
        top = self._begin(done)
        text = self._rendered(head)
        if head:
            text += f"... {start - head[-1].n - 1} records passed over{self._newline}"
        text += self._rendered(self._between(start, spot.n))
        shown, cut = last_lines(text, self._newline, rows - 1)
        if cut:
            return f"... {self._transcript.count} commands so far; these are the last lines{self._newline}{shown}"
        return top + shown

    def _screen_at(self, spot: Spot) -> str:
        """What makes the screen of a terminal session."""
        start = self.index.look_back(spot.n, LOOK_BACK_BYTES, LOOK_BACK_BLOCKS)
        before = self.index.at(start - 1) if start else None
        owner = self.streams.owner(self._between(start, spot.n), start) if start and self.streams.finder else None
        top = self._begin(before.ordinal + 1 if before is not None else 0, owner)
        text = self._rendered(self._between(start, spot.n))
        return afresh(text if start else top + text, self.terminal.size()[1])

    def _skip_to(self, spot: Spot) -> int:
        """Without a screen: print from the command that was under way on. Returns its record."""
        command = None if self.tty else self.index.at(spot.n)
        before = self.index.at(spot.n - 1) if command is None else command
        self.terminal.write(self._begin(0 if before is None else before.ordinal + (command is None)))
        return spot.n if command is None else command.n

    def _between(self, start: int, last: int) -> Iterator[Record]:
        for record in self.tape.records(start):
            if record.n > last:
                return
            yield record

    def _rendered(self, records: Iterable[Record]) -> str:
        shown: list[str] = []
        for record in self._kept(records):
            texts = [piece.text for piece in self._transcript.feed(record) if piece.code == "o"]
            if texts:
                self.shown_n = record.n
                shown += texts
        return "".join(shown)

    def _records(self, start: int) -> Iterator[Record]:
        """All records from there on; of a live tape those that are yet to come, too."""
        live_end = 0
        while True:
            for record in self.tape.records(start):
                start = record.n + 1
                if record.n < live_end:  # whoever has seen all waits for nothing
                    self.now_ns, self._anchor = max(self.now_ns, record.t_ns), self._clock()
                yield record
            if not self.options.follow or self.tape.status:
                return
            known = (self.tape.next_record, len(self.tape.segments))
            alive = is_live(self.tape.segments[-1])
            self.tape.refresh()
            if (self.tape.next_record, len(self.tape.segments)) != known or self.tape.status:
                self.index.refresh()
                live_end = self.tape.next_record
            elif not alive:
                end = "-- no seal, and nobody writes it: the gateway died"
                self.terminal.write(end + self._newline)
                return
            else:
                began = self._clock()
                self.wait(FOLLOW_SECONDS)
                if self.jump is not None:
                    return
                if not self.paused:  # nothing happens there either: the time of day is that of the session
                    passed = int((self._clock() - began) * 1e9)
                    self.now_ns = max(self.now_ns + passed, time.time_ns() - self.tape.header.wall0_ns)

    @property
    def live(self) -> bool:
        """Whether more may come."""
        return self.options.follow and not self.tape.status

    def hold_time(self) -> None:
        """Let the time that passed since count for nothing."""
        self._anchor = self._clock()


def replay(tape: TapeReader, options: ReplayOptions) -> None:
    """Play on this process's terminal: keys from it if there is one, all at once if the output is none.

    Raises BadOption, FormatError, OSError.
    """
    timed = os.isatty(1) and not options.plain
    keys: int | None = None
    opened = False
    if timed and not (options.markers or options.flows):
        if os.isatty(0):
            keys = 0
        else:  # the tape's path came through a pipe, perhaps; the keyboard is still there
            with suppress(OSError):
                keys, opened = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC), True
    sys.stdout.flush()
    try:
        if options.flows:
            print_flows(tape, as_json=options.json)
        elif options.markers:
            print_markers(tape, options)
        else:
            color = options.wants_color(os.isatty(1))
            Player(tape, replace(options, color=color), 1, keys, timed=timed).play()
    except BrokenPipeError:  # "| head" has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    finally:
        if opened and keys is not None:
            os.close(keys)
