"""What a gateway notes in its node's log between two appends: the recorder's maintenance thread is its caller.

START goes before the first entry, HEARTBEAT as often as it is asked for. A HEAD that says what the last one of its tape
said is not repeated, so idle sessions cost nothing. What an append could not write is kept and goes with the next; if
the disk refuses for long, HEADs are given up (newer ones follow), OPEN and SEAL never are.
Left out: when to do what (upkeep.py), the log itself (nodelog.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from recorder.checkpoint import Checkpoint
from recorder.logentry import Head, Heartbeat, LogEntry, Open, Sealed, Start
from recorder.nodelog import NodeLog

PENDING_LIMIT: Final = 100_000  # entries, 20 MB; ours: a thousand sessions' heads over a quarter of an hour
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
