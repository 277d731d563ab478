"""What every export reads: a tape's records within a span of time, and what is known about how the tape ended.

A source goes through the tape once, one record in memory at a time, and says on the way how far it is. It
checks no signature (verify.py does): what it calls sealed has a seal, no more. A tape without one is exported all the
same, and every format says so where a person sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from recorder.disk import is_live
from recorder.escape import visible
from recorder.export_options import ExportError, ExportOptions
from recorder.flows import Flow, FlowFilter
from recorder.flows_find import FlowFinder
from recorder.format import Kind, Record
from recorder.http_messages import is_http
from recorder.player_index import TapeIndex
from recorder.reader import TapeReader
from recorder.transcript_flows import has_flows

IDLE_SECONDS: Final = 3.0  # pauses in what is made for watching, unless told otherwise
TTY_LIMIT: Final = 10_000  # columns or rows of a terminal: no terminal has more, a damaged tape may say so
# Cells of a terminal: the user says how large it is, and a player makes room for all of them. Ours: 2,000 x 500.
CELLS_LIMIT: Final = 1_000_000
FLOWS_LOOKED_AT: Final = 64  # for the size of the first terminal among them

Progress = Callable[[int, int], None]  # (records that are done, all records)


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """How one segment file ended; root and keys are what its seal says, unchecked."""

    file: str
    status: str
    root: str
    keys: tuple[str, ...]


class IdleClock:
    """Time in the cast for time on the tape: pauses are cut to the limit. Asked in the order of the records."""

    def __init__(self, start_ns: int, limit_seconds: float) -> None:
        self._limit = int(limit_seconds * 1e9)
        self._last = start_ns
        self._now = 0

    def __call__(self, t_ns: int) -> int:
        gap = max(0, t_ns - self._last)
        self._last = max(self._last, t_ns)
        self._now += min(gap, self._limit)
        return self._now


class Source:
    """One pass through a tape for one export."""

    def __init__(
        self, tape: TapeReader, options: ExportOptions | None = None, progress: Progress | None = None
    ) -> None:
        self.tape = tape
        self.options = options or ExportOptions()
        self.said: Mapping[str, Any] = tape.header.map_
        self._progress = progress
        if self.options.end_ns is not None and self.options.end_ns < self.options.start_ns:
            raise ExportError("--to is before --from")
        self._finder = FlowFinder(tape, TapeIndex(tape)) if has_flows(self.said) else None
        if self.options.http and not is_http(self.said):
            raise ExportError("--http: the session has no messages of HTTP")
        self._only = None if self.options.flow is None else FlowFilter(self.options.flow)
        self._commands: int | None = None  # that were passed, those of other flows too
        if self._only is not None and self.find_flow(self._only.number) is None:
            raise ExportError(
                f"there is no flow {self._only.number}: replay --flows lists those that there are"
                if self._finder is not None
                else "--flow: the session is one stream"
            )

    # -- what the header says -------------------------------------------------------------------------

    @property
    def protocol(self) -> str:
        return str(self.said.get("protocol", ""))

    @property
    def target(self) -> str:
        return str(self.said.get("target", ""))

    @property
    def subject(self) -> str:
        identity = self.said.get("identity")
        return str(identity.get("subject", "?")) if isinstance(identity, dict) else "?"

    @property
    def agents(self) -> list[str]:
        """The chain of agents, the nearest last; empty where a person came in person."""
        identity = self.said.get("identity")
        agents = identity.get("agents") if isinstance(identity, dict) else None
        return [str(agent) for agent in agents] if isinstance(agents, list | tuple) else []

    @property
    def who(self) -> str:
        return f"{'/'.join(self.agents)} for {self.subject}" if self.agents else self.subject

    @property
    def tty(self) -> tuple[int, int] | None:
        """The size of the terminal, if the session is one's; one that makes no sense is replaced by 80x24."""
        if self._finder is not None:
            return self._first_terminal()
        more = self.said.get("more")
        if not isinstance(more, dict) or "tty" not in more:
            return None
        match more["tty"]:
            case [int(columns), int(rows)] if is_sensible(columns, rows):
                return columns, rows
            case _:
                return 80, 24

    def _first_terminal(self) -> tuple[int, int] | None:
        """The size of the first flow that is a terminal's, or of the one that is asked for."""
        if self._finder is None or is_http(self.said):
            return None
        flows = self._finder.openers(FLOWS_LOOKED_AT)[0]
        if self._only is not None:
            flows = [flow] if (flow := self._finder.find(self._only.number)) is not None else []
        for flow in flows:
            if flow.terminal:
                return (flow.columns, flow.rows) if is_sensible(flow.columns, flow.rows) else (80, 24)
        return None

    def find_flow(self, number: int) -> Flow | None:
        """What a flow is that began before the span, or at any time."""
        return None if self._finder is None else self._finder.find(number)

    def commands_before_record(self, record: Record) -> int:
        """How many commands of the tape come before the record that records() has just given, of all flows."""
        count = self._commands or 0
        return count - 1 if record.kind == Kind.COMMAND else count

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal that the session is shown in."""
        return self.tty or (self.options.columns, self.options.rows)

    @property
    def title(self) -> str:
        """One line: what, on what, by whom, which; and that it is not sealed, if so."""
        remark = f" ({self.remark})" if self.remark else ""
        return visible(f"{self.protocol} {self.target} - {self.who} - {self.tape.header.sid}{remark}").replace(
            "\n", " "
        )

    # -- how it ended ---------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """closed, failed, crashed: what the seal says. live, unsealed: there is none."""
        return self.tape.status or ("live" if is_live(self.tape.segments[-1]) else "unsealed")

    @property
    def remark(self) -> str:
        """What has to be said about the end of the tape; "" of one that is sealed and whole."""
        match self.status:
            case "live":
                return "not sealed: the session is still going on"
            case "unsealed":
                return "not sealed: the end may be missing"
            case "crashed":
                return "sealed after a crash: the end may be missing"
            case _:
                return ""

    def ends(self) -> Iterator[SegmentEnd]:
        """Yield how each segment ended."""
        for i, path in enumerate(self.tape.segments):
            seal = self.tape.segment(i).seal
            if seal is None:
                yield SegmentEnd(path.name, "unsealed", "", ())
                continue
            root = seal.body.get("root")
            keys = tuple(signature.key_id for signature in seal.signatures)
            status = str(seal.body.get("status", ""))
            yield SegmentEnd(path.name, status, root.hex() if isinstance(root, bytes) else "", keys)

    # -- the records ----------------------------------------------------------------------------------

    @property
    def wall_ns(self) -> int:
        """The wall time of the beginning of the span."""
        return self.tape.header.wall0_ns + self.options.start_ns

    @property
    def duration_ns(self) -> int:
        """How long the span is."""
        end = self.tape.duration_ns
        if self.options.end_ns is not None:
            end = min(end, self.options.end_ns)
        return max(0, end - self.options.start_ns)

    @property
    def commands_before(self) -> int:
        """How many commands there are before the span: their numbers go on from there."""
        count = 0
        if self.options.start_ns:
            for entry in self.tape.commands():
                if entry.t_ns >= self.options.start_ns:
                    break
                count += 1
        return count

    def records(self) -> Iterator[Record]:
        """Yield the records of the span in their order, with their times on the tape."""
        start, end = self.options.start_ns, self.options.end_ns
        only, self._commands = self._only, self.commands_before
        total = self.tape.next_record if self._progress is not None else 0
        for record in self.tape.records(self.tape.at_time(start) if start else 0):
            if record.t_ns < start:
                continue
            if end is not None and record.t_ns > end:
                break
            if self._progress is not None:
                self._progress(record.n, total)
            if record.kind == Kind.COMMAND:
                self._commands += 1
            if only is None or only.keeps(record):
                yield record
        if self._progress is not None:
            self._progress(total, total)


def is_sensible(columns: int, rows: int) -> bool:
    """Tell whether a terminal can have this size."""
    return 0 < columns < TTY_LIMIT and 0 < rows < TTY_LIMIT and columns * rows <= CELLS_LIMIT


def wall_time(ns: int) -> str:
    """ISO 8601 in UTC with microseconds."""
    return (
        datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        + f".{ns // 1000 % 1_000_000:06d}Z"
    )
