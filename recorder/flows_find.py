"""Looks up what a flow of a tape is, without reading the tape: for whoever begins in its middle, or wants a list.

The lists of commands (COMMANDS) have no flows in them, but the commands that open streams stand in nearly the order of
the flows' numbers. So a flow is found by guessing its place in a segment's list from the number of the first one there,
reading that record, and guessing again from what it says. Whether it is a terminal is in the records just before it,
of kubernetes just behind it. What was found is kept.

Left out: how a flow ended and how much passed on it (flows.Flows has that, of a whole tape).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from recorder.flows import BESIDE, Flow, flow_of
from recorder.format import Kind, Record, fields
from recorder.http_messages import HEAD_LIMIT, REQUEST, is_http
from recorder.player_index import TapeIndex
from recorder.reader import TapeReader

SEGMENTS_LIMIT: Final = 64  # looked through for one flow; ours: 4 GiB of tape
_GUESSES: Final = 12  # bisection needs no more for 4,096 streams that are in order
_AROUND: Final = 24  # looked at beside the last guess: channels that were opened at the same time
_BEFORE_BYTES: Final = 256 * 1024  # in which the terminal's size stands before its shell
_BEFORE_BLOCKS: Final = 64
_REQUEST_BYTES: Final = 32 * 1024  # in which most requests stand before their command
REQUEST_LIMIT: Final = 4 * 1024 * 1024  # looked through for the beginning of one: API servers take 3 MiB
# In which the size of a terminal of Kubernetes comes: its user sends it with the first bytes.
_BEHIND_RECORDS: Final = 256
_TERMINAL_VERBS: Final = ("pty", "shell")
_MAYBE_TERMINAL: Final = ("exec", "attach", "debug")
_NO_STREAM: Final = BESIDE | {"CONNECT", "tcpip-forward", "streamlocal-forward", "portforward"}


class Found(NamedTuple):
    """A flow, and the number of the first record that is known to be its."""

    flow: Flow
    first: int


class FlowFinder:
    """Raises OSError and FormatError, from every method."""

    def __init__(self, tape: TapeReader, index: TapeIndex) -> None:
        self._tape = tape
        self._index = index
        self._http = is_http(tape.header.map_)
        self._behind = tape.header.map_.get("protocol") == "kubernetes" and not self._http
        self._listed: dict[int, tuple[int, list[list[Any]]]] = {}  # by segment: what was listed of so many commands
        self._found: dict[int, Found] = {}
        self._numbers: dict[int, int | None] = {}  # by the COMMAND's number: its flow

    def find(self, number: int) -> Flow | None:
        """The flow of that number as it was when its command began; None if no command of it is found."""
        found = self.look_up(number)
        # A new one each time: whoever shows it writes into it.
        return None if found is None else _copy(found.flow)

    def look_up(self, number: int) -> Found | None:
        """The same, and where it begins."""
        if number not in self._found:
            for entries in self._lists():
                place = self._place(entries, number)
                if place is not None:
                    self._found[number] = self._read(entries[place], number)
                    break
        return self._found.get(number)

    def has_terminal(self) -> bool:
        """Whether a terminal was asked for, as far as the first two segments tell."""
        if self._http:
            return False
        if self._behind:
            flows = self.openers(1)[0] if self._index.parts else []
            return any(flow.terminal for flow in flows)
        return any(
            entry[2] in _TERMINAL_VERBS for i in range(min(2, self._index.parts)) for entry in self._index.entries(i)
        )

    def openers(self, limit: int) -> tuple[list[Flow], int]:
        """The first flows of the tape, at most so many, and how many there are more in its first segment."""
        entries = self._openers(0) if self._index.parts else []
        flows: list[Flow] = []
        for entry in entries[:limit]:
            number = self._number(entry[0])
            found = self.look_up(number) if number is not None else None
            if found is not None and found.flow.n == entry[0]:
                flows.append(found.flow)
        return flows, max(0, len(entries) - limit)

    def _lists(self) -> Iterator[list[list[Any]]]:
        """The commands that open streams, segment by segment: the first one's, in which most terminals begin, then
        from the end on.
        """
        parts = self._index.parts
        order = [0, *range(parts - 1, 0, -1)] if parts else []
        for i in islice(order, SEGMENTS_LIMIT):
            entries = self._openers(i)
            if entries:
                yield entries

    def _openers(self, i: int) -> list[list[Any]]:
        """The commands of a segment that open streams; two lists are kept, as of the commands themselves."""
        entries = self._index.entries(i)
        known = self._listed.get(i)
        if known is None or known[0] != len(entries):
            while len(self._listed) >= 2:
                del self._listed[next(iter(self._listed))]
            known = self._listed[i] = len(entries), _openers(entries)
        return known[1]

    def _place(self, entries: list[list[Any]], number: int) -> int | None:
        """Where in the list the flow's command is."""
        last = len(entries) - 1
        at = 0
        for _ in range(_GUESSES):
            found = self._number(entries[at][0])
            if found == number:
                return self._allowed(entries, at, number)
            guess = min(max(0, at + number - (found if found is not None else number)), last)
            if guess == at:
                break
            at = guess
        # The last one first: what is read on the way to it is known of the others.
        for near in range(min(last, at + _AROUND), max(0, at - _AROUND) - 1, -1):
            if self._number(entries[near][0]) == number:
                return self._allowed(entries, near, number)
        return None

    def _allowed(self, entries: list[list[Any]], at: int, number: int) -> int:
        """Of several commands on one stream the one that was allowed: one that is denied leaves room for another."""
        near = range(max(0, at - _AROUND), min(len(entries), at + _AROUND))
        asked = [place for place in near if self._number(entries[place][0]) == number] if _denied(entries[at]) else []
        return next((place for place in asked if not _denied(entries[place])), at)

    def _number(self, n: int) -> int | None:
        """The flow that COMMAND n names. Its block is decoded anyway, so those before it in there are noted, too."""
        if n not in self._numbers:
            self._numbers[n] = None
            for record in self._tape.records(self._index.look_back(n, 0, 1)):
                if record.n > n:
                    break
                if record.kind == Kind.COMMAND:
                    self._numbers[record.n] = flow_of(fields(record.payload))
        return self._numbers[n]

    def _read(self, entry: list[Any], number: int) -> Found:
        n: int = entry[0]
        flow, first = Flow(number), n
        command = Record(n, 0, 0, int(Kind.MARK), b"")
        for record in self._before(n, number):
            if record.n == n:
                command = record
            elif record.flow == number and record.kind == Kind.RESIZE:
                flow.sized(record)
                first = min(first, record.n)
            elif record.flow == number and self._http:  # the request stands before its command
                first = min(first, record.n)
        if self._behind and entry[2] in _MAYBE_TERMINAL:
            for record in islice(self._tape.records(n), _BEHIND_RECORDS):
                if record.flow == number and record.kind == Kind.RESIZE:
                    flow.sized(record)
                    break
        flow.opened_by(command, fields(command.payload))
        flow.verdict = "deny" if _denied(entry) else "allow"
        return Found(flow, first)

    def _before(self, n: int, number: int) -> list[Record]:
        """COMMAND n, and what of the flow stands in front of it; of HTTP from the request's line on."""
        size = _REQUEST_BYTES if self._http else _BEFORE_BYTES
        while True:
            start = self._index.look_back(n, size, _BEFORE_BLOCKS)
            found = []
            for record in self._tape.records(start):
                if record.n > n:
                    break
                if record.n == n or record.flow == number:
                    found.append(record)
            head = found[0].payload[:HEAD_LIMIT].partition(b"\r\n")[0].decode("latin-1") if found else ""
            if not self._http or not start or size >= REQUEST_LIMIT or REQUEST.fullmatch(head):
                return found
            size = min(8 * size, REQUEST_LIMIT)


def _openers(entries: list[list[Any]]) -> list[list[Any]]:
    return [entry for entry in entries if entry[2] not in _NO_STREAM and not str(entry[2]).startswith("file-")]


def _denied(entry: list[Any]) -> bool:
    return str(entry[4]).endswith("deny")


def _copy(flow: Flow) -> Flow:
    return Flow(
        flow.number, flow.n, flow.t_ns, flow.verb, flow.kind, flow.text, flow.objects, flow.verdict, flow.terminal,
        flow.columns, flow.rows,
    )  # fmt: skip
