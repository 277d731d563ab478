"""What the player knows of a tape's streams: which of them is played, which has the screen, where it begins and ends.

A tape of one stream (SQL, a recorded terminal) has no finder, and all questions have the plain answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from recorder.flows import Find, Flow, FlowFilter, flow_of, whole
from recorder.flows_find import FlowFinder, Found
from recorder.format import ERR, OUT, Kind, Record, fields
from recorder.http_messages import is_http
from recorder.player_index import TapeIndex
from recorder.player_options import BadOption, ReplayOptions
from recorder.reader import TapeReader
from recorder.replay_flows import FLOWS_LISTED, flow_lines
from recorder.transcript_flows import has_flows


class _Options(TypedDict):
    screen: bool
    find: Find
    owner: int | None
    messages: bool


class Streams:
    """Raises BadOption where an option asks for what the tape has not; OSError and FormatError from every method."""

    def __init__(self, tape: TapeReader, index: TapeIndex, options: ReplayOptions, *, timed: bool) -> None:
        self._tape = tape
        self.finder = FlowFinder(tape, index) if has_flows(tape.header.map_) else None
        self._only = None if options.flow is None else FlowFilter(options.flow)
        if self.finder is None and options.flow is not None:
            raise BadOption("--flow: the session is one stream")
        self._http = is_http(tape.header.map_)
        self._messages = options.http
        if options.http and not self._http:
            raise BadOption("--http: the session has no messages of HTTP")
        self.terminal = self._has_terminal(timed and not options.interleave)

    def _has_terminal(self, screen: bool) -> bool:
        """Whether the session is a terminal's, or has one that will have the screen."""
        if self.finder is None:
            more = self._tape.header.map_.get("more")
            return isinstance(more, dict) and "tty" in more
        if not screen or self._only is None:
            return screen and self.finder.has_terminal()
        flow = self.finder.find(self._only.number)
        return flow is not None and flow.terminal

    def size(self) -> tuple[int, int] | None:
        """The terminal's size as it was recorded, by the header or by its first flow that is one."""
        if not self.terminal:
            return None
        if self.finder is None:
            match self._tape.header.map_["more"].get("tty"):
                case [int(columns), int(rows)]:
                    return columns, rows
            return None
        only = self._only
        flows = [self.finder.find(only.number)] if only is not None else self.finder.openers(FLOWS_LISTED)[0]
        return next(((flow.columns, flow.rows) for flow in flows if flow is not None and flow.terminal), None)

    def listed(self, newline: str, color: bool) -> str:
        """The lines above a replay that say which streams there are; "" where that says nothing."""
        # Of HTTP every request is one.
        return (
            ""
            if self.finder is None or self._only is not None or self._http
            else flow_lines(self.finder, newline, color)
        )

    def transcript_options(self, owner: int | None) -> _Options:
        """What a transcript of this tape is given; owner: the flow that has the screen where it begins."""
        found: Callable[[int], Flow | None] = (lambda number: None) if self.finder is None else self.finder.find
        return {"screen": self.terminal, "find": found, "owner": owner, "messages": self._messages}

    # -- one stream alone -----------------------------------------------------------------------------

    def begin(self) -> Found | None:
        """The stream that is to be played alone, None: all are."""
        if self._only is None or self.finder is None:
            return None
        found = self.finder.look_up(self._only.number)
        if found is None:
            raise BadOption(f"there is no flow {self._only.number}; --flows lists those that there are")
        return found

    def kept(self, records: Iterable[Record], pass_command: Callable[[], None]) -> Iterator[Record]:
        """Those that are to be shown; pass_command is called for each command of another stream."""
        only = self._only
        if only is None:
            yield from records
            return
        for record in records:
            if only.keeps(record):
                yield record
            elif record.kind == Kind.COMMAND:
                pass_command()

    def ends(self, record: Record) -> bool:
        """Whether the stream that is played alone is over with this record."""
        if self._only is None or record.kind != Kind.RESULT or self.finder is None:
            return False
        flow, said = self.finder.find(self._only.number), fields(record.payload)
        return flow is not None and flow_of(said) == flow.number and whole(said.get("command")) == flow.n

    def has_command(self, n: int) -> bool:
        """Whether the COMMAND with that number is to be shown."""
        if self._only is None:
            return True
        record = next(self._tape.records(n), None)
        return record is not None and record.n == n and self._only.keeps(record)

    # -- the screen -----------------------------------------------------------------------------------

    def owner(self, records: Iterable[Record], start: int) -> int | None:
        """Of the terminals that print in records, from number start on, and began before: the one that began first.

        It has the screen.
        """
        if self.finder is None or not self.terminal or not start:
            return None
        printing = {
            record.flow
            for record in records
            if record.flow is not None and record.kind == Kind.WIRE and record.channel in (OUT, ERR)
        }
        if self._only is not None:
            printing &= {self._only.number}
        for number in sorted(printing):
            flow = self.finder.find(number)
            if flow is not None and flow.terminal and flow.n < start:
                return number
        return None
