"""What a gateway notes in its node's log between two appends: the recorder's maintenance thread is its caller.

START goes before the first entry, HEARTBEAT as often as it is asked for. A HEAD that says what the last one of its tape
said is not repeated, so idle sessions cost nothing. What an append could not write is kept and goes with the next; if
the disk refuses for long, HEADs are given up (newer ones follow), OPEN and SEAL never are.
Left out: when to do what (upkeep.py), the log itself (nodelog.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from recorder.checkpoint import Checkpoint
from recorder.errors import FormatError
from recorder.format import Header
from recorder.logentry import Head, Heartbeat, LogEntry, Open, Sealed, Start, decode_entry
from recorder.merkle import TILE_WIDTH
from recorder.nodelog import NodeLog, NodeLogError
from recorder.repair import Recovered
from recorder.ulid import ulid_bytes

PENDING_LIMIT: Final = 100_000  # entries, 20 MB; ours: a thousand sessions' heads over a quarter of an hour
PAST_LIMIT: Final = 4_000_000  # entries to look back; ours: half a day of a thousand sessions, some seconds
CLOCK_NS: Final = 600 * 1_000_000_000  # how far clocks may have been off when a session began. Ours
_HEARTBEAT: Final = 6  # logentry.py

Tape = tuple[str, str]  # sid, track
Segment = tuple[str, str, int]

BATCH_LIMIT: Final = 10_000  # entries in one append: 170 ms


class NodeLedger:
    """Collects entries and appends them. One for each process; not for several threads."""

    def __init__(
        self, log: NodeLog, boot: str, version: str, *, wall_ns: Callable[[], int] = time.time_ns, start: bool = True
    ) -> None:
        """start: this process is the first of its gateway, not one of more workers."""
        self.log = log
        self.latest: Checkpoint | None = None  # for anchors: the head after the last publish
        self._boot, self._wall_ns = boot, wall_ns
        self._pending: list[LogEntry] = [Start(boot, version)] if start else []
        self._heads: dict[tuple[str, str], tuple[int, int]] = {}

    @property
    def origin(self) -> str:
        """What the log calls itself."""
        return self.log.origin

    def opened(self, sid: str, track: str, h0: bytes) -> None:
        """A tape was begun, and its header is durable; h0 is that of segment 0."""
        self._pending.append(Open(sid, track, h0))

    def head(self, sid: str, track: str, segment: int, blocks: int, chain: bytes) -> None:
        """The first blocks of a segment are durable; chain is the value behind the last of them."""
        if blocks and self._heads.get((sid, track)) != (segment, blocks):
            self._heads[sid, track] = (segment, blocks)
            self._pending.append(Head(sid, track, segment, blocks - 1, chain))

    def sealed(self, sid: str, track: str, segment: int, root: bytes, status: str) -> None:
        """A segment was sealed, and is durable."""
        if status != "continued":
            self._heads.pop((sid, track), None)
        self._pending.append(Sealed(sid, track, segment, root, status))

    def recovered(self, found: Sequence[tuple[Recovered, bytes]]) -> list[tuple[Recovered, str]]:
        """Note segments that recovery ended, with their h0; return those that the log contradicts, and how.

        What contradicts the log is not noted: the tape would no more be judged by the log, but the log by the tape, and
        an append-only log that contradicts itself does so for ever. Raises OSError, NodeLogError.
        """
        opens, seals = self._past({one.sid for one, _ in found})
        wrong: list[tuple[Recovered, str]] = []
        for one, h0 in found:
            began = opens.get((one.sid, one.track))
            before = seals.get((one.sid, one.track, one.segment))
            if one.segment == 0 and began is not None and began != h0:
                wrong.append((one, "it is not the tape that the log saw begin"))
            elif before is not None and before != (one.root, one.status):
                wrong.append((one, "the log saw it sealed, as something else"))
            else:
                if one.segment == 0:
                    self.opened(one.sid, one.track, h0)
                self.sealed(one.sid, one.track, one.segment, one.root, one.status)
        return wrong

    def lacking(self, headers: Sequence[Header]) -> list[Header]:
        """Of segments that have their end, return those that name this log, and that it has not seen ended.

        None if the log is damaged, which the next append tells. Raises OSError.
        """
        ours = [header for header in headers if header.map_.get("log") == self.origin]
        if not ours:
            return []
        try:
            _, seals = self._past({header.sid for header in ours})
        except (FormatError, NodeLogError):
            return []
        return [one for one in ours if (one.sid, str(one.map_.get("track")), one.segment) not in seals]

    def _past(self, sids: set[str]) -> tuple[dict[Tape, bytes], dict[Segment, tuple[bytes, str]]]:
        """The h0 and the seals that the log has of these sessions, looking back to before the first of them began."""
        opens: dict[Tape, bytes] = {}
        seals: dict[Segment, tuple[bytes, str]] = {}
        size = self.log.checkpoint().size
        oldest_ns = min(int.from_bytes(ulid_bytes(sid)[:6], "big") for sid in sids) * 1_000_000 - CLOCK_NS
        wanted = {sid.encode() for sid in sids}
        for index in range((size - 1) // TILE_WIDTH, max(-1, (size - PAST_LIMIT) // TILE_WIDTH), -1):
            for raw in reversed(self.log.files.bundle(index, min(TILE_WIDTH, size - index * TILE_WIDTH))):
                if raw[1] != _HEARTBEAT and raw[3:29] not in wanted:  # as we encode them: decoding all takes ten times
                    continue
                match decode_entry(raw):
                    case Open(sid, track, h0):
                        opens[sid, track] = h0
                    case Sealed(sid, track, segment, root, status):
                        seals[sid, track, segment] = (root, status)
                    case Heartbeat(_, wall_ns) if wall_ns < oldest_ns:
                        return opens, seals
                    case _:
                        pass
        return opens, seals

    def heartbeat(self) -> None:
        """The gateway lives."""
        self._pending.append(Heartbeat(self._boot, self._wall_ns()))

    def note(self, entry: LogEntry) -> None:
        """Anything else: a TOMBSTONE."""
        self._pending.append(entry)

    def publish(self) -> None:
        """Append what was noted. Raises NodeLogError, OSError; what was not written is kept for the next time."""
        while self._pending:
            if len(self._pending) > PENDING_LIMIT:
                self._pending = [entry for entry in self._pending if not isinstance(entry, Head)]
                self._heads.clear()
            batch = self._pending[:BATCH_LIMIT]
            self.latest = self.log.append(batch)
            del self._pending[: len(batch)]
