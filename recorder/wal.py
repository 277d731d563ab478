"""The write-ahead log of one process: one disk flush makes the commands of every waiting session durable.

On the event loop, add() encodes an entry for each block that a tape has just written (walformat.py) and commit()
returns a future. The committer thread takes whatever was queued meanwhile (group commit, no timer), writes it with one
write-and-sync and wakes all who wait. When a file is full the next generation begins in another one, headed by an OPEN
for every segment that is still open; a full file is used again once nothing needs it (upkeep.py).

Fails closed: a batch whose write or sync fails fails every tape with an entry in it, and in the one that was being
filled meanwhile. Its file is never written or synced again (after a failed fsync Linux may have dropped the dirty
pages); the tapes that were not concerned go on in a new one.

Left out: reading (recover.py); when to reuse files (upkeep.py). add() and commit() belong to event loops; a lock
of some hundred nanoseconds is all they share with the thread.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from recorder.disk import Disk
from recorder.errors import TapeError, tape_error
from recorder.walformat import ENTRY_HEADER_BYTES, WAL_SUFFIX, EntryKind, encode_entry_header

# Recorder note, section 4. A file may end a batch beyond it; recovery reads at most a few of them.
FILE_BYTES: Final = 64 * 1024 * 1024
# A file takes at most this share of what is free at the start, but that many bytes at least. Ours.
FREE_SHARE: Final = 16
FILE_LEAST_BYTES: Final = 1024 * 1024
# How far ahead of the end a new file is filled with zeros: a sync that need not make the file longer takes two thirds
# of the time (recorder note, section 2), and a gateway's start need not wait for 64 MiB.
ZERO_STEP_BYTES: Final = 1024 * 1024
# Entries that nobody waits for (bulk data) are written when they are this many bytes, or a second old. Ours.
IDLE_BATCH_LIMIT: Final = 1024 * 1024
PINS_LIMIT: Final = 2 * 4096  # header and leaf each: 320 KiB, below walformat.BODY_LIMIT

_CLOSED: Final = "the session cannot be recorded: the recorder is closed"

_OPEN: Final = int(EntryKind.OPEN)
_FULL: Final = int(EntryKind.FULL)
_DIGEST: Final = int(EntryKind.DIGEST)
_DONE: Final = int(EntryKind.DONE)


class Logged(Protocol):
    """What the log needs to know of a segment; segment.SegmentWriter is one."""

    sid: bytes
    track: int
    number: int
    opening: bytes  # the body of its OPEN entry

    pins: list[bytes]  # block headers and leaves that are not in a batch yet; guarded by the log's lock

    def fail(self, error: TapeError) -> None:
        """The log could not take its entries: its tape ends. Called from the committer's thread."""


class Batch:
    """What one write takes to the disk."""

    __slots__ = ("buffers", "generation", "number", "segments", "size_bytes", "waiters")

    def __init__(self, number: int, generation: int) -> None:
        self.number = number
        self.generation = generation
        self.buffers: list[bytes] = []
        self.size_bytes = 0
        self.segments: dict[Logged, None] = {}
        self.waiters: list[asyncio.Future[None]] = []


class WalFile:
    """One file of the log. segments: those that have entries in it."""

    __slots__ = ("bad", "descriptor", "offset", "path", "segments", "zeroed")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.offset = 0
        self.zeroed = 0  # up to here it is filled with zeros or entries
        self.bad = False
        self.segments: dict[Logged, None] = {}


class Wal:
    """The log in one directory, which the caller has locked and emptied (recover.py)."""

    def __init__(self, directory: Path, disk: Disk, file_bytes: int = FILE_BYTES) -> None:
        self.directory = directory
        self.durable = 0  # the number of the last batch that is on the disk
        self.settled = 0  # the number of the last batch that is, or that failed
        self.full: list[WalFile] = []  # the oldest first; for upkeep
        self.free: list[WalFile] = []
        self._disk = disk
        self._file_bytes = file_bytes
        self._files = 0  # how many there were, for their names
        self._file: WalFile | None = None
        self._before: WalFile | None = None  # full, but the first batch of the next one is not yet durable
        self._file_generation = 0
        self._lock = threading.Lock()
        self._wake = threading.Lock()  # a binary semaphore: released to wake the committer
        self._wake.acquire()
        self._idle = True
        self._kicking = False  # the committer will be woken before the loop's next turn
        self._stopping = False
        self._live: dict[Logged, None] = {}
        self._pinned: dict[Logged, None] = {}  # those with pins that are not in a batch yet
        self._batch = Batch(1, 1)
        self._writing: Batch | None = None
        self._thread = threading.Thread(target=self._run, name="tape-commit", daemon=True)
        self._thread.start()

    # -- the event loop's side --------------------------------------------------------------------------

    def open(self, segment: Logged) -> int:
        """Log a new segment; returns the number of its batch. Raises TapeError."""
        with self._lock:
            self._live[segment] = None
        return self._add(segment, _OPEN, segment.opening)

    def add(self, segment: Logged, block_header: bytes, stored: bytes) -> int:
        """Log a block with its content; returns the number of its batch. Raises TapeError."""
        return self._add(segment, _FULL, block_header, stored)

    def pin(self, segment: Logged, block_header: bytes, leaf: bytes) -> None:
        """Log a block's hash, with the segment's next entry or the next nudge. Raises TapeError."""
        with self._lock:
            if self._stopping:
                raise TapeError(_CLOSED)
            pins = segment.pins
            if not pins:
                self._pinned[segment] = None
            elif len(pins) >= PINS_LIMIT:
                self._put_pins(self._batch, segment)
                self._pinned[segment] = None
            pins += (block_header, leaf)

    def done(self, segment: Logged) -> int:
        """Log that the segment is complete and on the disk. Raises TapeError."""
        return self._add(segment, _DONE)

    def sealed(self, segment: Logged) -> None:
        """The segment gets no more blocks: later generations need not name it."""
        with self._lock:
            self._live.pop(segment, None)

    def commit(self, number: int) -> asyncio.Future[None] | None:
        """Return None if that batch is durable, else a future that ends when it is. It may raise TapeError."""
        if number <= self.durable:
            return None
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            writing = self._writing
            if writing is not None and writing.number == number:
                writing.waiters.append(future)
                return future
            if number <= self.durable:  # it became so between the two looks
                return None
            self._batch.waiters.append(future)
            if not self._idle or self._kicking:
                return future
            self._kicking = True
        # Not at once: what else this turn of the loop has to commit goes along, for the price of one flush.
        loop.call_soon(self._kick)
        return future

    def _kick(self) -> None:
        """On the loop: wake the committer."""
        with self._lock:
            self._kicking = False
            if self._idle and self._batch.waiters:
                self._idle = False
                self._wake.release()

    def nudge(self) -> int:
        """Write what is queued, though nobody waits for it; returns the number of its batch."""
        with self._lock:
            for segment in list(self._pinned):
                self._put_pins(self._batch, segment)
            self._kicking = False  # should the loop that was to do it be gone
            if self._idle and self._batch.buffers:
                self._idle = False
                self._wake.release()
            return self._batch.number

    def _add(self, segment: Logged, kind: int, *body: bytes) -> int:
        with self._lock:
            if self._stopping:
                raise TapeError(_CLOSED)
            batch = self._batch
            if segment.pins:
                self._put_pins(batch, segment)
            _put(batch, segment, kind, body)
            if batch.size_bytes > IDLE_BATCH_LIMIT and self._idle:
                self._idle = False
                self._wake.release()
            return batch.number

    def _put_pins(self, batch: Batch, segment: Logged) -> None:
        _put(batch, segment, _DIGEST, (b"".join(segment.pins),))
        segment.pins.clear()
        del self._pinned[segment]

    # -- the committer's side ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            while (batch := self._take()) is not None:
                try:
                    self._write(batch)
                except Exception as error:  # fails closed: whatever it was, entries are lost now
                    self._fail(batch, error)
                else:
                    self._settle(batch, None)
            if self._stopping:
                return

    def _take(self) -> Batch | None:
        """Take what is queued; None, and idle, if there is nothing to do."""
        with self._lock:
            batch = self._batch
            if not batch.buffers and not batch.waiters:
                self._idle = not self._stopping
                return None
            generation = batch.generation
            size = self._file.offset if self._file is not None and self._file_generation == generation else 0
            full = size + batch.size_bytes >= self._file_bytes
            self._begin_batch(batch.number + 1, generation + 1 if full else generation, full)
            self._writing = batch
            return batch

    def _begin_batch(self, number: int, generation: int, repeat: bool) -> None:
        """Begin a batch; repeat: it is the first of its generation, and names what is open."""
        self._batch = batch = Batch(number, generation)
        if repeat:
            for segment in self._live:
                _put(batch, segment, _OPEN, (segment.opening,))

    def _write(self, batch: Batch) -> None:
        if not batch.buffers:
            return
        file, before = self._file, None
        if file is None or self._file_generation != batch.generation:
            before, self._before = file, file
            self._file = None
            self._file = file = self._next_file()
            self._file_generation = batch.generation
        file.segments.update(batch.segments)
        if self._disk.removed(file.descriptor):  # somebody deleted the log: a crash now would lose what it holds
            raise OSError(errno.ENOENT, "the write-ahead log was removed")
        end = file.offset + batch.size_bytes
        if end > file.zeroed:
            step = max(end, min(file.zeroed + ZERO_STEP_BYTES, self._file_bytes)) - file.zeroed
            self._disk.write_through(file.descriptor, file.zeroed, bytes(step))
            file.zeroed += step
        self._disk.write_through(file.descriptor, file.offset, b"".join(batch.buffers))
        file.offset = end
        if before is not None:  # only now does the log name all that is open without it
            self._retire(before)
            self._before = None

    def _retire(self, file: WalFile) -> None:
        with self._lock:
            self.full.append(file)

    def _next_file(self) -> WalFile:
        with self._lock:
            if self.free:
                return self.free.pop()
        path = self.directory / f"{self._files}{WAL_SUFFIX}"
        self._files += 1
        descriptor = self._disk.create_log(path)
        try:
            self._disk.sync_directory(self.directory)
        except OSError:
            self._disk.close(descriptor)
            raise
        return WalFile(path, descriptor)

    def _settle(self, batch: Batch, error: TapeError | None) -> None:
        """Wake who waits for the batch."""
        with self._lock:
            if error is None:
                self.durable = batch.number
            self.settled = max(self.settled, batch.number)
            self._writing = None
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for future in batch.waiters:
            loops.setdefault(future.get_loop(), []).append(future)
        for loop, futures in loops.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_wake, futures, error)

    def _fail(self, batch: Batch, cause: Exception) -> None:
        """Fail every tape with entries in the batch or the next one; the rest goes on in a new generation."""
        error = tape_error(cause)
        with self._lock:
            after = self._batch
            failed = {**batch.segments, **after.segments}
            for segment in failed:
                self._live.pop(segment, None)
                self._pinned.pop(segment, None)
                segment.pins.clear()
            self._begin_batch(after.number + 1, after.generation + 1, True)
            for file in (self._before, self._file):
                if file is not None and (file is not self._file or file.offset):
                    self.full.append(file)
            empty = self._file if self._file is not None and not self._file.offset else None
            if self._file is not None:
                self._file.bad = True
            self._before = self._file = None
        if empty is not None:  # nothing in it was acknowledged; on a full disk there would be one for each attempt
            self.discard(empty)
        for segment in failed:
            segment.fail(error)
        self._settle(after, error)
        self._settle(batch, error)

    # -- the end ----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Write what is queued and end the thread. Entries that come later are refused."""
        self.nudge()
        with self._lock:
            self._stopping = True
            if self._idle:
                self._idle = False
                self._wake.release()
        self._thread.join()

    def close(self, clean: bool) -> None:
        """Close the files, after stop(). clean: nothing depends on them, so they are deleted. Raises nothing."""
        files = [*self.free, *self.full, *(file for file in (self._before, self._file) if file is not None)]
        for file in files:  # the oldest first: a DONE is not forgotten before what it ends
            if clean:
                self.discard(file)
            else:
                with suppress(OSError):
                    self._disk.close(file.descriptor)

    def recycle(self, file: WalFile) -> None:
        """Make the file ready for another generation: nothing valid is found in it any more."""
        try:
            self._disk.write_through(file.descriptor, 0, bytes(ENTRY_HEADER_BYTES))
        except OSError:  # never written again; nothing in it is needed
            self.discard(file)
            return
        file.offset = 0
        file.segments.clear()
        with self._lock:
            self.free.append(file)

    def discard(self, file: WalFile) -> None:
        """Close the file and delete it, as far as that goes."""
        with suppress(OSError):
            self._disk.close(file.descriptor)
        with suppress(OSError):
            self._disk.remove(file.path)
            self._disk.sync_directory(self.directory)


def log_bytes(disk: Disk, directory: Path, most: int) -> int:
    """How large a file of the log may become: on a small disk less, as three are in use at a time. Raises OSError."""
    if most <= FILE_LEAST_BYTES:
        return most
    return max(FILE_LEAST_BYTES, min(most, disk.free_bytes(directory) // FREE_SHARE))


def _put(batch: Batch, segment: Logged, kind: int, body: tuple[bytes, ...]) -> None:
    head = encode_entry_header(kind, segment.track, segment.number, batch.generation, segment.sid, *body)
    batch.buffers += (head, *body)
    size = ENTRY_HEADER_BYTES
    for piece in body:
        size += len(piece)
    batch.size_bytes += size
    batch.segments[segment] = None


def _wake(futures: list[asyncio.Future[None]], error: TapeError | None) -> None:
    """On the loop: end the futures, but for those whose waiter was cancelled."""
    for future in futures:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(TapeError(str(error)))
