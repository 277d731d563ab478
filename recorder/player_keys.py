"""What the keys of the player do, and what the viewer is told about it: status line, title, help.

A key only says where to be: ``player.jump`` (draw that spot) or ``player.rush`` (play to it without waiting), and the
player goes there. Several keys in one go count one from the other. The sign of a pause is the status line; over a
recorded terminal session, which owns the whole screen, it is the window's title, unless the viewer asks for the line.

Left out: keys of one's own choice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recorder.player_index import Command
from recorder.player_options import SPEED_LIMIT
from recorder.player_screen import (
    GIVE_TITLE,
    KEEP_TITLE,
    Status,
    help_screen,
    release,
    reserve,
    status_line,
    time_of_day,
    title,
)
from recorder.player_terminal import Quit

if TYPE_CHECKING:
    from recorder.replay import Player, Spot

_TELL_AFTER_SECONDS: Final = 0.2  # most searches are over by then
_ARROW_NS: Final = 5_000_000_000  # as asciinema's player
_TICK_SECONDS: Final = 0.25  # how often the clock in the status line is looked at
# Played without waiting rather than drawn, so that the way stays on the screen.
_NEAR_COMMANDS: Final = 16
_NEAR_BYTES: Final = 256 * 1024
_NEAR_BLOCKS: Final = 128
_PASSED_COMMANDS: Final = 256  # of other streams, on the way to the next one of the stream that is played alone
_ROWS_LEAST: Final = 4  # below that there is no room for a status line
_ARROWS: Final = {b"\x1b[C": b"right", b"\x1bOC": b"right", b"\x1b[D": b"left", b"\x1bOD": b"left"}


class Keys:
    """The hands of the viewer."""

    def __init__(self, player: Player) -> None:
        self._player = player
        able = player.timed and os.environ.get("TERM") != "dumb"
        self._status_on = able and player.terminal.has_keys and not player.tty
        self._titled = able and player.terminal.has_keys and player.tty
        self._title_kept = False
        self._reserved = 0  # the rows of the terminal when its last one was reserved
        self._told: tuple[Status, int, int] | None = None
        self._note = ""
        self._count = player.index.count()
        self._end_ns = player.tape.duration_ns

    # -- telling --------------------------------------------------------------------------------------

    def rows(self) -> int:
        """How many rows there are for the session."""
        rows = self._player.terminal.size()[1]
        return rows - 1 if self._shows_status(rows) else rows

    def prepare(self) -> None:
        """Make ready for a drawing on an empty screen, or for the first one."""
        rows = self._player.terminal.size()[1]
        if self._shows_status(rows) and not self._player.tty:
            self._player.terminal.write(reserve(rows))
            self._reserved = rows
        if self._titled and not self._title_kept:
            self._player.terminal.write(KEEP_TITLE)
            self._title_kept = True
        self._told = None

    def leave(self) -> None:
        """Take away what was told."""
        if self._reserved:
            self._player.terminal.write(release(self._player.terminal.size()[1]))
            self._reserved = 0
        if self._title_kept:
            self._player.terminal.write(GIVE_TITLE)
            self._title_kept = False
        self._told = None

    def draw_status(self) -> None:
        """Tell where we are, if that has changed."""
        player = self._player
        if player.rush is not None or player.jump is not None or not (self._status_on or self._titled):
            return
        columns, rows = player.terminal.size()
        telling = (self._status(), columns, rows)
        if telling == self._told:
            return
        self._told = telling
        if self._titled:
            player.terminal.write(title(telling[0]))
        if self._shows_status(rows):
            player.terminal.write(status_line(telling[0], columns, rows, color=True))

    def until_tick(self, seconds: float) -> float:
        """So long may be waited before the status line needs a look."""
        return min(seconds, _TICK_SECONDS) if self._status_on or self._titled else seconds

    def _shows_status(self, rows: int) -> bool:
        return self._status_on and rows >= _ROWS_LEAST

    def _status(self) -> Status:
        player = self._player
        if player.live:  # how many there are would take a walk, and more come
            self._count, self._end_ns = None, player.spot.t_ns
        elif player.options.follow:
            self._count, self._end_ns = player.index.count(), player.tape.duration_ns
        second = 1_000_000_000
        return Status(
            paused=player.paused,
            now_ns=player.now_ns // second * second,  # as it is shown, so that equal ones are not drawn again
            end_ns=self._end_ns // second * second,
            command=player.commands_shown,
            commands=self._count or 0,
            speed=player.speed,
            live=player.live,
            pause_on_markers=player.pause_on_markers,
            note=self._note or ("the end; q quits" if player.at_end else ""),
            wall=time_of_day(player.tape.header.wall0_ns + player.now_ns),
        )

    # -- doing ----------------------------------------------------------------------------------------

    def press(self, key: bytes) -> None:
        """Do what the key says. Raises Quit."""
        player = self._player
        self._note = ""
        match _ARROWS.get(key, key):
            case b"q" | b"Q" | b"\x03" | b"\x04":
                raise Quit
            case b" ":
                player.paused = not player.paused
                player.hold_time()
            case b".":
                player.paused, player.step = True, player.step + 1
            case b"]":
                self._to_command(player.index.after(self._here().n))
            case b"[":
                self._to_command_before()
            case b"}":
                self._to_marker(forward=True)
            case b"{":
                self._to_marker(forward=False)
            case b"right":
                self._to_time(self._here().t_ns + _ARROW_NS)
            case b"left":
                self._to_time(self._here().t_ns - _ARROW_NS)
            case b"g":
                self._go(self._spot(-1, 0))
            case b"G":
                self._to_end()
            case b"+" | b"=" | b">":
                player.speed = min(player.speed * 2, SPEED_LIMIT)
            case b"-" | b"<":
                player.speed = max(player.speed / 2, 1 / SPEED_LIMIT)
            case b"m":
                player.pause_on_markers = not player.pause_on_markers
            case b"s":
                self._toggle_status()
            case b"?" | b"h":
                self._help()
            case digit if len(digit) == 1 and digit.isdigit():
                self._to_time(self._end_ns * int(digit) // 10)
            case _:
                pass

    def _here(self) -> Spot:
        """Where we are, or are about to be."""
        player = self._player
        return player.jump or player.rush or self._spot(player.spot.n, player.now_ns)

    def _spot(self, n: int, t_ns: int) -> Spot:
        return type(self._player.spot)(n, t_ns)

    def _go(self, spot: Spot) -> None:
        player = self._player
        player.step = 0
        here = self._here()
        if player.at_end and spot.n >= here.n:
            return
        if player.jump is None and spot.n >= here.n and spot.t_ns >= here.t_ns and self._near(here, spot):
            player.rush = spot
        else:
            player.rush, player.jump = None, spot

    def _near(self, here: Spot, spot: Spot) -> bool:
        index = self._player.index
        if index.look_back(spot.n, _NEAR_BYTES, _NEAR_BLOCKS) > here.n + 1:
            return False
        before, after = index.at(here.n), index.at(spot.n)
        first = before.ordinal if before is not None else -1
        return after is None or after.ordinal - first <= _NEAR_COMMANDS

    def _to_command(self, command: Command | None) -> None:
        index, streams = self._player.index, self._player.streams
        for _ in range(_PASSED_COMMANDS):  # those of other streams are not to be seen
            if command is None or streams.has_command(command.n):
                break
            command = index.after(command.n)
        if command is not None:
            self._go(self._spot(command.n, command.t_ns))
        else:
            self._go(self._spot(self._player.index.last(), self._end_ns))

    def _to_command_before(self) -> None:
        index = self._player.index
        command = index.at(self._here().n)
        before = index.nth(command.ordinal - 1) if command is not None and command.ordinal else None
        for _ in range(_PASSED_COMMANDS):
            if before is None or self._player.streams.has_command(before.n):
                break
            before = index.nth(before.ordinal - 1) if before.ordinal else None
        self._go(self._spot(before.n, before.t_ns) if before is not None else self._spot(-1, 0))

    def _to_marker(self, forward: bool) -> None:
        player, here = self._player, self._here()
        # What came after the last thing on the screen showed nothing: on a marker, the marker before it is wanted.
        n = here.n if forward or player.jump or player.rush else player.shown_n
        index, stopped, began = player.index, list[bytes](), time.monotonic()

        def stop() -> bool:
            if not stopped:
                if time.monotonic() > began + _TELL_AFTER_SECONDS:
                    self._tell(f"searching at {index.looked_through:.0%}, any key stops")
                stopped.extend(player.terminal.wait(0))
            return bool(stopped)

        index.looked_through = 0.0 if here.n < 0 else here.n / max(1, index.last())
        found = next(index.markers(n, stop), None) if forward else index.marker_before(n, stop)
        player.hold_time()
        self._note = ""
        if found is not None:
            self._go(self._spot(found.n, found.t_ns))
        else:
            self._note = "stopped looking" if stopped else "no marker " + ("after this" if forward else "before this")

    def _to_time(self, t_ns: int) -> None:
        t_ns = min(max(0, t_ns), max(self._end_ns, self._here().t_ns))
        self._go(self._spot(self._player.index.record_at(t_ns), t_ns) if t_ns else self._spot(-1, 0))

    def _to_end(self) -> None:
        player = self._player
        player.paused = not player.live  # or it would be over at once
        self._go(self._spot(player.index.last(), max(self._end_ns, player.tape.duration_ns)))

    def _toggle_status(self) -> None:
        self.leave()
        self._status_on = not self._status_on
        self._player.redraw()

    def _help(self) -> None:
        terminal = self._player.terminal
        terminal.write("\x1b[?1049l" + help_screen(terminal.size()[0]))
        self._wait_for(terminal.wait)
        self._player.redraw()

    def _wait_for(self, wait: Callable[[float | None], list[bytes]]) -> None:
        """Wait for any key. Raises Quit for those that quit."""
        while not (keys := wait(None)):
            pass
        if keys[0] in (b"q", b"Q", b"\x03", b"\x04"):
            raise Quit

    def _tell(self, note: str) -> None:
        self._note = note
        self.draw_status()
