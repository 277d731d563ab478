"""What a recorder does beside its tapes' way, in one thread, about once a second.

    deleted files       their tapes end
    finished segments   synced; then DONE is logged; once that is durable the file is closed, which unlocks it
    failed segments     what is on the disk of them is sealed as crashed, as soon as the disk allows
    full log files      used again once all that they hold is safe in the segments themselves
    bulk data           entries that nobody waited for are written, so that at most a second of hashes can be lost
    the node's log      openings, seals and heads of tapes are handed to it, once they are durable
    the emergency room  a file that is let go of when the disk is full, so that tapes can be sealed at all

It alone closes the descriptors of segments, so it may sync them without asking whether they are still open. A failed
sync is never repeated on the same descriptor: the segment's tape ends, and what is left is copied to a new file.

Left out: sealing after a crash (recover.py); what is in the node's log (nodelog.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from recorder.disk import Disk
from recorder.errors import FormatError, TapeError, tape_error
from recorder.format import Header
from recorder.recover import seal_broken
from recorder.repair import Recovered
from recorder.seal import SealKey
from recorder.segment import SegmentWriter
from recorder.wal import Wal

TICK_SECONDS: Final = 1.0
HEADS_SECONDS: Final = 10.0  # recorder note, section 7
HEARTBEAT_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 5.0  # for what a full or broken disk refused
# Above this, one call for the whole file system is faster than one for each file (recorder note, section 2).
SYNC_EACH_LIMIT: Final = 16
ROOM_BYTES: Final = 1024 * 1024  # the emergency room: some thousand index and seal blocks

ROOM_SPARE: Final = 4  # it is made only if there is this much more than it takes

OnEvent = Callable[[str, Mapping[str, Any]], None]


class Ledger(Protocol):
    """The node's log, as far as it concerns this thread; nodelog.py has it. Each may raise OSError."""

    @property
    def origin(self) -> str:
        """What the log calls itself; tapes name it in their headers."""

    def opened(self, sid: str, track: str, h0: bytes) -> None: ...
    def head(self, sid: str, track: str, segment: int, blocks: int, chain: bytes) -> None: ...
    def sealed(self, sid: str, track: str, segment: int, root: bytes, status: str) -> None: ...
    def recovered(self, found: Sequence[tuple[Recovered, bytes]]) -> list[tuple[Recovered, str]]:
        """Note segments that recovery ended, with their h0; return those that the log contradicts, and how."""

    def lacking(self, headers: Sequence[Header]) -> Sequence[Header]:
        """Of segments that have their end, return those of this log that it has not seen ended."""

    def heartbeat(self) -> None: ...
    def publish(self) -> None:
        """Write what was noted; what a failure leaves is kept for the next time."""


def tell_ledger(ledger: Ledger, found: Recovered, h0: bytes) -> None:
    """Tell of a segment that was ended by recovery; its opening may have got lost."""
    if found.status != "refused":
        if found.segment == 0:
            ledger.opened(found.sid, found.track, h0)
        ledger.sealed(found.sid, found.track, found.segment, found.root, found.status)


class Upkeep:
    """The thread. begin, finish and abandon are called by tapes, on their event loops; they only queue."""

    def __init__(
        self,
        wal: Wal,
        disk: Disk,
        directory: Path,
        key: SealKey,
        *,
        ledger: Ledger | None = None,
        on_event: OnEvent = lambda event, words: None,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._wal = wal
        self._disk = disk
        self._directory = directory
        self._key = key
        self._ledger = ledger
        self._on_event = on_event
        self._tick_seconds = tick_seconds
        self._begun: deque[SegmentWriter] = deque()
        self._finished: deque[tuple[SegmentWriter, str]] = deque()
        self._broken: deque[tuple[SegmentWriter, str]] = deque()
        self._made: deque[Path] = deque()  # by the tapes
        self._directories: dict[Path, None] = {}
        self._open: dict[SegmentWriter, None] = {}
        self._heads: list[tuple[SegmentWriter, tuple[int, bytes]]] = []
        self._heads_batch = 0  # of the log, with which they are durable
        self._notes: deque[tuple[int, SegmentWriter, str]] = deque()  # batch, segment, "open" or a status
        self._to_sync: list[tuple[SegmentWriter, str]] = []
        self._to_close: list[tuple[SegmentWriter, int]] = []  # with the batch of their DONE
        self._to_seal: list[tuple[SegmentWriter, str]] = []
        self._unsynced: set[SegmentWriter] = set()  # of these: what could not be synced, so that the pages may lie
        self._unresolved: list[SegmentWriter] = []  # sealed without all that was acknowledged: the next start's work
        self._room = wal.directory / "room"
        self._file_system = disk.open_directory(directory)
        self._retry_at = self._heads_at = self._heartbeat_at = 0.0
        self._failing: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tape-upkeep", daemon=True)
        self._thread.start()

    # -- the tapes' side --------------------------------------------------------------------------------

    def made(self, directories: list[Path]) -> None:
        """These directories have new entries that are not synced."""
        self._made.extend(directories)

    def begin(self, segment: SegmentWriter) -> None:
        """A segment was created."""
        self._begun.append(segment)

    def finish(self, segment: SegmentWriter, status: str) -> None:
        """A segment was sealed; its descriptor is ours now."""
        self._finished.append((segment, status))

    def abandon(self, segment: SegmentWriter, reason: str) -> None:
        """A segment can no longer be written; its descriptor is ours now."""
        self._broken.append((segment, reason))

    def stop(self) -> bool:
        """Do what can be done now and end the thread; True if nothing depends on the log any more."""
        self._stop.set()
        self._thread.join()
        self._disk.close(self._file_system)
        left = (self._open, self._to_sync, self._to_seal, self._broken, self._finished, self._unresolved)
        return not any(left)

    # -- the thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(self._tick_seconds):
            self.tick()
        self.tick()
        self._wait_for_log()
        self.tick(last=True)

    def _wait_for_log(self) -> None:
        """Give the committer the time to write what was queued: at most some seconds, on a disk that hangs."""
        deadline = time.monotonic() + RETRY_SECONDS
        wanted = max((batch for _, batch in self._to_close), default=0)
        self._wal.nudge()
        while self._wal.settled < wanted and time.monotonic() < deadline:
            time.sleep(0.001)

    def tick(self, last: bool = False) -> None:
        """One round. Nothing that goes wrong in it ends the thread."""
        for work in (
            self._take,
            self._look,
            self._sync,
            self._seal,
            self._reuse,
            self._close,
            self._tell,
            self._make_room,
        ):
            try:
                work()
            except Exception as error:  # each will be tried again; none may keep the others from their turn
                self._report(work.__name__.strip("_"), error)
            else:
                self._failing.discard(work.__name__.strip("_"))
        self._wal.nudge()
        if last:
            for segment in (*(one for one, _ in self._to_close), *(one for one, _ in self._to_sync)):
                self._let_go(segment)
            self._to_close.clear()

    def _report(self, what: str, error: Exception) -> None:
        if what not in self._failing:  # once, not every second
            self._failing.add(what)
            self._on_event("recorder-upkeep-failed", {"what": what, "reason": str(tape_error(error))})

    def _let_go(self, segment: SegmentWriter) -> None:
        """Close a descriptor. Whatever close says, it is gone: to close it again could end somebody else's."""
        with suppress(OSError):
            self._disk.close(segment.descriptor)

    def _take(self) -> None:
        """Take over what the event loops queued."""
        while self._begun:
            segment = self._begun.popleft()
            self._open[segment] = None
            if segment.number == 0:
                self._notes.append((segment.batch, segment, "open"))
        while self._finished:
            segment, status = self._finished.popleft()
            self._open.pop(segment, None)
            self._to_sync.append((segment, status))
        while self._broken:
            segment, reason = self._broken.popleft()
            self._open.pop(segment, None)
            self._let_go(segment)
            self._to_seal.append((segment, reason))

    def _look(self) -> None:
        """End tapes whose files somebody deleted: their sessions would go on unrecorded."""
        for segment in self._open:
            if segment.error is None and self._disk.removed(segment.descriptor):
                segment.fail(TapeError("the session cannot be recorded: its tape was removed"))
                self._on_event("tape-removed", {"session": segment.header["sid"]})

    def _sync(self) -> None:
        """Sync what is sealed, and log that it is."""
        if not self._to_sync:
            return
        self._sync_directories({segment.path.parent: None for segment, _ in self._to_sync})
        todo, self._to_sync = self._to_sync, []
        good = self._sync_segments([segment for segment, _ in todo])
        for segment, status in todo:
            if segment not in good:
                self._let_go(segment)
                self._to_seal.append((segment, "it could not be brought to the disk"))
                continue
            segment.synced = True
            if segment.error is not None and segment.number == 0:  # _tell may have passed over it
                self._notes.append((segment.batch, segment, "open"))
            self._notes.append((segment.batch, segment, status))
            self._to_close.append((segment, self._wal.done(segment)))

    def _sync_directories(self, more: Mapping[Path, None]) -> None:
        while self._made:
            self._directories[self._made.popleft()] = None
        made, self._directories = self._directories, {}
        try:
            for directory in {**made, **more}:
                self._disk.sync_directory(directory)
        except OSError:
            self._directories.update(made)
            raise

    def _sync_segments(self, segments: list[SegmentWriter]) -> set[SegmentWriter]:
        """Sync their files; return those for which it worked."""
        good: set[SegmentWriter] = set()
        if len(segments) > SYNC_EACH_LIMIT:
            with suppress(OSError):  # it does not say which file failed: then each is asked
                self._disk.sync_file_system(self._file_system)
                return set(segments)
        for segment in segments:
            try:
                self._disk.sync(segment.descriptor)
                if segment.keys_path is not None:
                    self._disk.sync_path(segment.keys_path)
            except OSError as error:
                self._on_event("tape-sync-failed", {"session": segment.header["sid"], "reason": str(tape_error(error))})
                self._unsynced.add(segment)
            else:
                good.add(segment)
        return good

    def _seal(self) -> None:
        """Seal what its writer had to give up."""
        if not self._to_seal or time.monotonic() < self._retry_at:
            return
        with suppress(OSError):
            self._disk.remove(self._room)
        self._sync_directories({})  # seal_broken syncs a file's own directory, but not the ones above
        left: list[tuple[SegmentWriter, str]] = []
        for segment, reason in self._to_seal:
            try:
                copy = segment in self._unsynced
                found = seal_broken(segment.path, self._key, disk=self._disk, reason=reason, copy=copy)
            except FileNotFoundError:
                pass  # it was never more than a name
            except (OSError, FormatError) as error:
                self._report("seal", error)
                left.append((segment, reason))
                continue
            else:
                self._on_event("tape-sealed-as-crashed", {"session": segment.header["sid"], "reason": reason})
                if self._ledger is not None:
                    tell_ledger(self._ledger, found, segment.h0)
                if found.blocks < segment.data_blocks:  # the log still has what is lost: it is not let go of
                    words = {"session": segment.header["sid"], "blocks": segment.data_blocks - found.blocks}
                    self._on_event("tape-needs-recovery", {**words, "hint": "restart, once the disk is well"})
                    self._unresolved.append(segment)
                    continue
            segment.synced = True
            self._unsynced.discard(segment)
            self._wal.done(segment)
        self._to_seal = left
        self._retry_at = time.monotonic() + RETRY_SECONDS if left and not self._stop.is_set() else 0.0

    def _reuse(self) -> None:
        """Let full log files be used again: in order, so that a DONE never goes before what it ends."""
        while self._wal.full:
            file = self._wal.full[0]
            needed = [one for one in file.segments if isinstance(one, SegmentWriter) and not one.synced]
            # One that failed and does not know it yet, being idle, must not keep the log for ever.
            running = [segment for segment in needed if segment in self._open]
            if len(running) < len(needed):
                return  # something is still to be sealed
            self._sync_directories({segment.path.parent: None for segment in running})
            good = self._sync_segments(running)
            for segment in running:
                if segment not in good:
                    segment.fail(TapeError("the session cannot be recorded: an I/O error"))
            if len(good) < len(running):
                return
            if file.bad:
                self._wal.discard(file)
            else:
                self._wal.recycle(file)
            self._wal.full.pop(0)

    def _close(self) -> None:
        """Close, and so unlock, what the log no longer claims."""
        waiting: list[tuple[SegmentWriter, int]] = []
        for segment, batch in self._to_close:
            if segment.error is not None:  # that batch was lost: say it again
                segment.error = None
                waiting.append((segment, self._wal.done(segment)))
            elif batch > self._wal.durable:
                waiting.append((segment, batch))
            else:
                self._let_go(segment)
        self._to_close = waiting

    def _tell(self) -> None:
        """Hand to the node's log what is durable by now."""
        ledger, notes = self._ledger, self._notes
        if ledger is None:
            notes.clear()
            return
        later: list[tuple[int, SegmentWriter, str]] = []
        while notes:
            batch, segment, word = notes.popleft()
            said = segment.header
            if segment.error is not None and word == "open":
                continue  # sealing it tells of it
            if batch > self._wal.durable and not segment.synced:
                later.append((batch, segment, word))
            elif word == "open":
                ledger.opened(said["sid"], said["track"], segment.h0)
            else:
                ledger.sealed(said["sid"], said["track"], segment.number, segment.root, word)
        notes.extend(later)
        now = time.monotonic()
        if self._heads and self._heads_batch <= self._wal.durable:
            for segment, (blocks, chain) in self._heads:
                if segment.error is None and blocks:
                    ledger.head(segment.header["sid"], segment.header["track"], segment.number, blocks, chain)
            self._heads = []
        if now >= self._heads_at and not self._heads:
            self._heads_at = now + HEADS_SECONDS
            self._heads = [(segment, segment.head) for segment in self._open]
            self._heads_batch = self._wal.nudge()
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + HEARTBEAT_SECONDS
            ledger.heartbeat()
        ledger.publish()

    def _make_room(self) -> None:
        """Keep a file that can be let go of when there is no room for a seal."""
        if self._to_seal or self._room.exists():
            return
        if self._disk.free_bytes(self._directory) < ROOM_SPARE * ROOM_BYTES:
            return  # to try would take what is left from those who write
        descriptor = self._disk.create_log(self._room)
        try:
            self._disk.write_through(descriptor, 0, bytes(ROOM_BYTES))
        except OSError:
            self._disk.remove(self._room)
            raise
        finally:
            self._disk.close(descriptor)
