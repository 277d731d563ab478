"""Where things are on a tape, for the player: commands by number, records by time, markers, and how far to look back.

Built to open and to seek in tapes of any size. Opening reads each segment's header and seal, nothing else (1 ms a
segment). A list of commands is read for the one segment that is asked about (16 ms for 32 Ki commands) and two are
kept; what lies before it is counted by the seals. A segment without such a list (live, or ended by a crash) is walked
once, and a live one further as it grows; blocks that hold no command are passed over unread.

Markers (holds and their outcomes, denials, errors, remarks of the gate) are in no index but the records': finding the
next one is a walk (player_blocks.py) that looks into a block only if one of the words that a marker must hold is in it,
and that whoever asked can end at any time. The lists of commands know of denials and holds, but of no error, and a
walk that finds the errors finds the others.

Left out: an index on disk of our own (a tape is complete in itself).
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from recorder.errors import FormatError, Unreadable
from recorder.format import (
    BlockType,
    Joiner,
    Kind,
    Record,
    command_entry,
    decode_records,
    fields,
    verdict_word,
)
from recorder.places import decode_entries, last_with_record
from recorder.player_blocks import content_blocks
from recorder.reader import Segment, TapeReader

_LISTS_LIMIT: Final = 2  # lists of commands that are kept: 32 Ki entries, 15 MB each
# Records larger than this are decoded rather than searched for words: 1 us each, against 1 ns a byte.
_DECODE_ABOVE_BYTES: Final = 2048
_BACK_BLOCKS: Final = 4096  # looked through in one go on the way back
_RAW_LEN_OFFSET: Final = 36  # of raw_len in a block header: format.py


class Command(NamedTuple):
    """A command of the tape: its place among all of them (from 0), its record's number and time."""

    ordinal: int
    n: int
    t_ns: int


class Marker(NamedTuple):
    """Something that an auditor looks for."""

    n: int
    t_ns: int
    label: str
    text: str
    command: int = -1  # the number of the COMMAND that it speaks of; -1: of none


@dataclass(slots=True)
class _Part:
    """What is known of a segment without a look at its content."""

    first_record: int
    commands: int | None  # None: it has no list


@dataclass(slots=True)
class _Walked:
    """The commands found in a segment without a list, up to a record."""

    entries: dict[int, list[Any]]
    next_record: int


def marker_of(record: Record) -> Marker | None:
    """Tell whether a record is a marker."""
    if record.kind not in (Kind.VERDICT, Kind.APPROVAL, Kind.RESULT, Kind.MARK):
        return None
    said = fields(record.payload)
    label = text = ""
    match record.kind:
        case Kind.VERDICT if said.get("verdict") != "allow":
            label, text = "DENY", f"rule={said.get('rule', '?')}: {said.get('reason', '')}"
        case Kind.APPROVAL:
            label = "HOLD" if said.get("state") == "pending" else str(said.get("state", "?")).upper()
            text = _approval_text(said)
        case Kind.RESULT if isinstance(error := said.get("error"), dict):
            label = "ERROR"
            text = f"{error.get('code') or error.get('sqlstate') or ''} {error.get('message', '')}"
        case Kind.MARK:
            label, text = str(said.get("label", "?")), str(said.get("text", ""))
    command = said.get("command")
    number = command if isinstance(command, int) else -1
    return Marker(record.n, record.t_ns, label, text.strip(), number) if label else None


def _approval_text(said: Mapping[str, Any]) -> str:
    if said.get("state") == "pending":
        approvers = said.get("approvers")
        needs = ", ".join(map(str, approvers)) if isinstance(approvers, list) else "?"
        return f"rule={said.get('rule', '?')} needs one of: {needs}  approval {said.get('id', '?')}"
    by = f"by {said['by']} " if said.get("by") else ""
    reason = f'"{said["reason"]}"' if said.get("reason") else ""
    return f"{by}{reason}  approval {said.get('id', '?')}".strip()


class TapeIndex:
    """Raises OSError and FormatError, from every method."""

    def __init__(self, tape: TapeReader) -> None:
        self._tape = tape
        self._parts: list[_Part] = []
        self._lists: OrderedDict[int, list[list[Any]]] = OrderedDict()
        self._walked: dict[int, _Walked] = {}
        self.looked_through = 0.0  # the share of the tape up to where a search for markers has come
        self.refresh()

    def refresh(self) -> None:
        """Take note of segments that were begun or sealed since."""
        del self._parts[-1:]  # its seal may have come
        for i in range(len(self._parts), len(self._tape.segments)):
            try:
                segment = self._tape.segment(i)
            except FormatError:  # what lies before the damage can be played
                if not i:
                    raise
                return
            count = segment.seal.body.get("commands") if segment.seal is not None else None
            self._parts.append(_Part(segment.header.first_record, count if isinstance(count, int) else None))

    # -- commands -------------------------------------------------------------------------------------

    def count(self) -> int | None:
        """How many commands there are; None while that would need a walk."""
        counts = [part.commands if part.commands is not None else self._known(i) for i, part in enumerate(self._parts)]
        return None if None in counts else sum(count for count in counts if count is not None)

    def at(self, n: int) -> Command | None:
        """The last command whose number is at most n."""
        for i in range(self._part_with(n), -1, -1):
            if self._parts[i].commands == 0:  # a terminal's tape may have none in any of a hundred segments
                continue
            entries = self._entries(i)
            found = bisect_right(entries, n, key=_number) - 1
            if found >= 0:
                return _command(self._before(i) + found, entries[found])
        return None

    def after(self, n: int) -> Command | None:
        """The first command whose number is above n."""
        for i in range(self._part_with(n), len(self._parts)):
            if self._parts[i].commands == 0:
                continue
            entries = self._entries(i)
            found = bisect_right(entries, n, key=_number)
            if found < len(entries):
                return _command(self._before(i) + found, entries[found])
        return None

    def nth(self, ordinal: int) -> Command | None:
        """The command with that place among all, from 0."""
        before = 0
        for i, part in enumerate(self._parts):
            count = part.commands if part.commands is not None else len(self._entries(i))
            if 0 <= ordinal - before < count:
                entries = self._entries(i)
                if ordinal - before >= len(entries):
                    raise FormatError("COMMANDS: fewer than the seal says")
                return _command(ordinal, entries[ordinal - before])
            before += count
        return None

    @property
    def parts(self) -> int:
        """How many segments there are."""
        return len(self._parts)

    def entries(self, i: int) -> list[list[Any]]:
        """The commands of a segment, in order: [number, time, verb, kind, verdict, short text]."""
        return self._entries(i) if self._parts[i].commands != 0 else []

    def _before(self, i: int) -> int:
        parts = self._parts[:i]
        return sum(len(self._entries(j)) if part.commands is None else part.commands for j, part in enumerate(parts))

    def _known(self, i: int) -> int | None:
        walked = self._walked.get(i)
        return len(walked.entries) if walked is not None else None

    def _entries(self, i: int) -> list[list[Any]]:
        """The list of commands of a segment, in order."""
        if self._parts[i].commands is None:
            return list(self._walk(i, self._tape.segment(i)).entries.values())
        found = self._lists.get(i)
        if found is not None:
            self._lists.move_to_end(i)
            return found
        pieces = self._tape.segment(i).command_pieces()
        found = self._lists[i] = [entry for piece in pieces for entry in decode_entries(piece, "COMMANDS")]
        if len(self._lists) > _LISTS_LIMIT:
            self._lists.popitem(last=False)
        return found

    def _walk(self, i: int, segment: Segment) -> _Walked:
        walked = self._walked.setdefault(i, _Walked({}, segment.header.first_record))
        joiner = Joiner()
        last: Record | None = None

        def wanted(raw: bytes, records: int) -> bool:  # the rest of a long record has none of the words
            if len(raw) > _DECODE_ABOVE_BYTES * records or (last is not None and last.more > 0):
                return True
            return b"verb" in raw or b"verdict" in raw

        for record in _found(segment, walked.next_record, wanted):
            last, whole = record, joiner.feed(record)
            if whole is None:
                continue
            if whole.kind == Kind.COMMAND:
                walked.entries[whole.n] = command_entry(whole.n, whole.t_ns, fields(whole.payload))
            elif whole.kind == Kind.VERDICT:
                said = fields(whole.payload)
                entry = walked.entries.get(said.get("command", -1))
                if entry is not None and not entry[4]:
                    entry[4] = verdict_word(said)
        if last is None or not last.more:
            walked.next_record = segment.next_record
        return walked

    # -- records --------------------------------------------------------------------------------------

    def record_at(self, t_ns: int) -> int:
        """The number of the last record at or before a time, -1 if there is none."""
        start = self._tape.at_time(t_ns)
        found = start - 1
        for record in self._tape.records(start):
            if record.t_ns > t_ns:
                break
            found = record.n
        return found

    def last(self) -> int:
        """The number of the last record, -1 if there is none."""
        return self._tape.next_record - 1

    def time_of(self, n: int) -> int:
        """The time of a record; 0 if there is none such."""
        return next((record.t_ns for record in self._tape.records(n) if record.n >= n), 0) if n >= 0 else 0

    def look_back(self, n: int, raw_limit: int, blocks_limit: int) -> int:
        """The first record of the blocks that end with record n and hold no more than so many raw bytes, or blocks.

        The block with n is always among them.
        """
        start, size, blocks = max(n, 0), 0, 0
        for i in range(self._part_with(n), -1, -1):
            segment = self._tape.segment(i)
            places = segment.data
            with segment.path.open("rb", buffering=0) as file:
                for at in range(last_with_record(places, n), -1, -1):
                    place = places[at]
                    # Unchecked: it is only to know when it is enough, and the block is checked when it is read.
                    size += int.from_bytes(os.pread(file.fileno(), 4, place.offset + _RAW_LEN_OFFSET), "little")
                    blocks += 1
                    if blocks > 1 and (size > raw_limit or blocks > blocks_limit):
                        return start
                    start = place.first_record
        return start

    def _part_with(self, n: int) -> int:
        return max(0, bisect_right(self._parts, n, key=lambda part: part.first_record) - 1)

    # -- markers --------------------------------------------------------------------------------------

    def markers(self, after: int = -1, stop: Callable[[], bool] = lambda: False) -> Iterator[Marker]:
        """Yield the markers behind record number after. stop is asked now and then whether to give up."""
        for i in range(self._part_with(after), len(self._parts)):
            segment = self._tape.segment(i)
            for record in _found(segment, after + 1, _may_mark, self._stops(i, segment, stop)):
                marker = marker_of(record)
                if marker is not None:
                    yield marker
            if stop():
                return

    def _stops(self, i: int, segment: Segment, stop: Callable[[], bool]) -> Callable[[int], bool]:
        size = max(1, segment.path.stat().st_size)

        def stops(place: int) -> bool:
            self.looked_through = (i + min(1.0, place / size)) / len(self._parts)
            return stop()

        return stops

    def marker_before(self, n: int, stop: Callable[[], bool] = lambda: False) -> Marker | None:
        """The last marker before record number n, None if there is none, or if stop said so."""
        for i in range(self._part_with(n), -1, -1):
            segment = self._tape.segment(i)
            places = segment.data
            end = last_with_record(places, n - 1) + 1
            size = 1  # it is near, most often; and where it is not, a long way forward is quicker than many short ones
            while end > 0:
                if stop():
                    return None
                start = max(0, end - size)
                stops = self._stops(i, segment, stop)
                found = _found(segment, places[start].first_record, _may_mark, stops, end - start)
                marks = [mark for record in found if record.n < n and (mark := marker_of(record)) is not None]
                if marks:
                    return marks[-1]
                end, size = start, min(2 * size, _BACK_BLOCKS)
        return None


def _may_mark(raw: bytes, records: int) -> bool:
    # Four plain searches take a tenth of the time of one regular expression.
    return (
        len(raw) > _DECODE_ABOVE_BYTES * records
        or b"state" in raw
        or b"deny" in raw
        or b"error" in raw
        or b"label" in raw
    )


def _found(
    segment: Segment,
    start: int,
    wanted: Callable[[bytes, int], bool],
    stop: Callable[[int], bool] = lambda place: False,
    blocks: int | None = None,
) -> Iterator[Record]:
    """Yield the records from number start on, in so many blocks, of the blocks whose raw payload is wanted."""
    places = segment.data
    first = max(0, last_with_record(places, start))
    last = len(places) if blocks is None else min(len(places), first + blocks)
    try:
        for found in content_blocks(segment, first, last, wanted):
            if isinstance(found, int):
                if stop(found):
                    return
                continue
            block, raw = found
            if block.type is not BlockType.GAP:
                yield from (record for record in decode_records(block, raw) if record.n >= start)
            elif block.first_record >= start:
                yield next(itertools.islice(segment.records(block.first_record), 1))
    except Unreadable:
        raise
    except FormatError:
        if segment.seal is not None:
            raise
        # Else it is the torn end of one that is still written, or was not finished.


def _number(entry: object) -> int:
    """The record number of an entry of a COMMANDS list. Raises FormatError."""
    match entry:
        case [int(n), int(), *_]:
            return n
    raise FormatError("COMMANDS: an entry of another form")


def _command(ordinal: int, entry: list[Any]) -> Command:
    return Command(ordinal, _number(entry), entry[1])
