"""The writer of tapes: Recorder opens them, a Tape takes the records of one session.

append queues a record in memory. written packs what is queued into blocks and hands them to the kernel, on the
event loop: for the few hundred bytes of a command that is far cheaper than any thread, and a block of 256 KiB takes
less than a thread hop costs beside a busy loop. commit does the same and, in mode "durable", waits for an
fdatasync in a thread; while one runs, all further commits of the tape wait for one that comes after it.

Fails closed: the first OSError ends the tape. Every call from then on raises TapeError, and its descriptor is not
synced again (after a failed fsync Linux may have dropped the dirty pages; a second one would lie).

Left out, the next part of the recorder: the log shared by all tapes of a process, recovery, encryption. A Tape is
used from one event loop only; the packer below is shared on that ground.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import msgpack

from recorder.disk import Disk
from recorder.errors import TapeError
from recorder.format import (
    BLOCK_TARGET_BYTES,
    ERR,
    GATE,
    JOINED_LIMIT,
    OUT,
    PAYLOAD_LIMIT,
    RAW_BELOW_BYTES,
    SUFFIX,
    USER,
    Kind,
)
from recorder.seal import SealKey
from recorder.segment import SegmentWriter
from recorder.ulid import new_ulid

__all__ = ["ERR", "GATE", "OUT", "USER", "Kind", "Recorder", "Tape", "TapeError"]

# What a tape keeps in memory before append itself writes it out: four blocks, so that no caller can forget to.
PENDING_LIMIT: Final = 4 * BLOCK_TARGET_BYTES
# A segment is closed and the next one begun at the first of these. Recorder note, section 3; the other two are ours
# and bound the memory of the indexes, and the pause at the end of a segment to a few milliseconds.
SEGMENT_LIMIT: Final = 64 * 1024 * 1024
SEGMENT_BLOCKS_LIMIT: Final = 64 * 1024
SEGMENT_COMMANDS_LIMIT: Final = 4 * 1024 * 1024
# Threads that only wait for disks: eight reach twice the rate of one (recorder note, section 2).
SYNC_THREADS_LIMIT: Final = 8
REASON_LIMIT: Final = 1024  # characters of CLOSE's reason: it is in the seal, too

# What a record costs on a tape beside its payload, at most: array, number, time, channel, kind, length, meta.
_OVERHEAD_BYTES: Final = 48

_packer = msgpack.Packer(use_bin_type=True, autoreset=False, buf_size=1024 * 1024)

_Pending = tuple[int, int, int, int, bytes, Mapping[str, int] | None]


class Tape:
    """The tape of one session. After a TapeError every further call raises TapeError."""

    def __init__(self, recorder: Recorder, directory: Path, header: dict[str, Any], durable: bool) -> None:
        """Create the first segment. Made by Recorder.open. Raises OSError."""
        self.sid: str = header["sid"]
        self.directory = directory
        self._recorder = recorder
        self._mode_durable = durable
        self._now = recorder.monotonic_ns
        self._mono0_ns: int = header["mono0_ns"]
        self._next = 0
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        self._long: dict[int, bytes] = {}  # whole payloads of long COMMANDs and VERDICTs, for the index
        self._error: TapeError | None = None
        self._closed = False
        self._released = False
        self._retired: list[int] = []  # descriptors of sealed segments that are not yet synced
        self._directories: list[Path] = recorder.disk.make_directories(directory)
        self._directories.append(directory)
        self._segment = SegmentWriter(recorder.disk, self._path(0), header)
        self._position = self._segment.size_bytes  # bytes with the kernel, over all segments
        self._durable = 0  # of these, how many are on the disk
        self._syncing: asyncio.Future[None] | None = None

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._segment.path

    def append(self, channel: int, kind: Kind, payload: bytes) -> int:
        """Queue one record; returns its number. Raises TapeError."""
        if self._error is not None or self._closed:
            self._refuse()
        size = len(payload)
        if size > PAYLOAD_LIMIT:
            return self._append_long(channel, kind, payload)
        n = self._next
        self._pending.append((n, self._now() - self._mono0_ns, channel, kind, bytes(payload), None))
        self._next = n + 1
        self._pending_bytes += size + _OVERHEAD_BYTES
        if self._pending_bytes > PENDING_LIMIT:
            self._flush()
        return n

    async def written(self) -> None:
        """Return when the kernel has all that was appended so far. Raises TapeError."""
        if self._error is not None:
            self._refuse()
        if self._pending:
            self._flush()

    async def commit(self) -> None:
        """Return when all that was appended so far is durable (mode durable) or with the kernel (mode written)."""
        if self._error is not None:
            self._refuse()
        if self._pending:
            self._flush()
        if self._mode_durable:
            await self._synced(self._position)

    async def close(self, status: Literal["closed", "failed"], reason: str = "") -> None:
        """Append CLOSE, index and seal; commit. Safe to call twice. Raises TapeError."""
        if self._error is not None:
            self._refuse()
        if not self._closed:
            reason = reason[:REASON_LIMIT]
            self.append(GATE, Kind.CLOSE, msgpack.packb({"status": status, "reason": reason}))
            self._flush()
            before = self._segment.size_bytes
            try:
                self._segment.finish(status, reason, self._recorder.key)
            except Exception as error:  # fails closed
                self._fail(error)
            self._position += self._segment.size_bytes - before
            self._closed = True
            if not self._mode_durable:
                self._release()
                if self._error is not None:
                    self._refuse()
        if self._mode_durable:
            await self._synced(self._position)

    # -- queue to kernel ------------------------------------------------------------------------------

    def _append_long(self, channel: int, kind: Kind, payload: bytes) -> int:
        """Queue a payload longer than a record may be: WIRE as several records, others as parts of one."""
        if kind is not Kind.WIRE and len(payload) > JOINED_LIMIT:
            self._fail(ValueError("a record above its limit"))
        first = self._next
        whole = memoryview(payload)
        pieces = [whole[i : i + PAYLOAD_LIMIT] for i in range(0, len(payload), PAYLOAD_LIMIT)]
        now = self._now() - self._mono0_ns
        if kind is not Kind.WIRE:
            self._long[first] = bytes(payload)
        for i, piece in enumerate(pieces):
            meta = None if kind is Kind.WIRE else {"part": i, "more": len(pieces) - 1 - i}
            self._pending.append((self._next, now, channel, kind, bytes(piece), meta))
            self._next += 1
            self._pending_bytes += len(piece) + _OVERHEAD_BYTES
        if self._pending_bytes > PENDING_LIMIT:
            self._flush()
        return first

    def _flush(self) -> None:
        """Write all that is pending. Raises TapeError."""
        pending, size = self._pending, self._pending_bytes
        self._pending, self._pending_bytes = [], 0
        try:
            segment = self._segment
            if (
                segment.size_bytes >= self._recorder.segment_limit
                or segment.blocks >= SEGMENT_BLOCKS_LIMIT
                or segment.commands.size_bytes >= SEGMENT_COMMANDS_LIMIT
            ):
                self._rotate()
                segment = self._segment
            before = segment.size_bytes
            if size < BLOCK_TARGET_BYTES:
                self._block(pending, size)
            else:
                self._blocks(pending)
            self._position += segment.size_bytes - before
        except Exception as error:  # fails closed: whatever it was, records are lost now
            self._fail(error)

    def _blocks(self, pending: list[_Pending]) -> None:
        """Write what is too much for one block."""
        start = size = 0
        for i, record in enumerate(pending):
            size += len(record[4]) + _OVERHEAD_BYTES
            if size >= BLOCK_TARGET_BYTES:
                self._block(pending[start : i + 1], size)
                start, size = i + 1, 0
        if start < len(pending):
            self._block(pending[start:], size)

    def _block(self, records: list[_Pending], size: int) -> None:
        """Write one block; size is at least what its records take."""
        t0 = records[0][1]
        pack, segment = _packer.pack, self._segment
        try:
            for n, t, channel, kind, payload, meta in records:
                dt = (t - t0) // 1000
                if meta is None:
                    pack((n, dt, channel, kind, payload))
                else:
                    pack((n, dt, channel, kind, payload, meta))
                if 2 <= kind <= 3 and (meta is None or not meta["part"]):
                    segment.commands.note(n, t0 + dt * 1000, kind, payload if meta is None else self._long.pop(n))
            if size < RAW_BELOW_BYTES:
                # Not worth a view that has to be let go of again.
                segment.data(_packer.bytes(), t0, t0 + dt * 1000, len(records))
            else:
                with _packer.getbuffer() as raw:
                    segment.data(raw, t0, t0 + dt * 1000, len(records))
        finally:
            _packer.reset()

    def _rotate(self) -> None:
        """Seal the segment as "continued" and begin the next one. Raises OSError."""
        old = self._segment
        root = old.finish("continued", "", self._recorder.key)
        number = old.header["segment"] + 1
        header = {**old.header, "segment": number, "prev": root, "first_record": old.next_record}
        new = SegmentWriter(self._recorder.disk, self._path(number), header)
        self._segment = new
        self._position += new.size_bytes  # and the old one's seal: whatever is synced next takes both
        if self._mode_durable:
            self._retired.append(old.descriptor)
            self._directories.append(self.directory)
        else:
            self._recorder.disk.close(old.descriptor)

    def _path(self, number: int) -> Path:
        return self.directory / f"{self.sid}.{number:03d}{SUFFIX}"

    # -- kernel to disk -------------------------------------------------------------------------------

    async def _synced(self, position: int) -> None:
        """Return once the first position bytes are durable. Raises TapeError."""
        while self._durable < position:
            # Shielded: a caller that is cancelled must not take the others' sync with it.
            await asyncio.shield(self._syncing or self._start_sync())
            if self._error is not None:
                self._refuse()

    def _start_sync(self) -> asyncio.Future[None]:
        """Start one sync of all that the kernel has now; the future ends, without an error, when that has ended."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        retired, self._retired = self._retired, []
        directories, self._directories = self._directories, []
        work = partial(_sync, self._recorder.disk, self._segment.descriptor, retired, directories)
        try:
            running = loop.run_in_executor(self._recorder.threads, work)
        except RuntimeError as error:  # the recorder was closed
            self._retired = retired
            self._fail(error)
        self._syncing = done
        running.add_done_callback(partial(self._on_synced, done, self._position))
        return done

    def _on_synced(self, done: asyncio.Future[None], position: int, running: asyncio.Future[None]) -> None:
        self._syncing = None
        error = RuntimeError("the sync was cancelled") if running.cancelled() else running.exception()
        if error is not None:
            self._error = self._error or _tape_error(error)
        self._durable = position
        if not done.done():
            done.set_result(None)
        if self._error is not None:
            self._release()
        elif self._closed:
            # close() may have been cancelled while an older sync ran: what it began is finished here.
            if position < self._position:
                with suppress(TapeError):  # it is in self._error, for whoever calls next
                    self._start_sync()
            else:
                self._release()

    # -- the end --------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> NoReturn:
        self._error = _tape_error(error)
        self._pending, self._pending_bytes = [], 0
        self._long.clear()
        if self._syncing is None:  # else the thread still uses the descriptor; _on_synced closes it
            self._release()
        raise self._error from error

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        for descriptor in (*self._retired, self._segment.descriptor):
            try:
                self._recorder.disk.close(descriptor)
            except OSError as error:  # fails closed: a late write error (NFS, quota) shows here
                self._error = self._error or _tape_error(error)
        self._retired = []

    def _refuse(self) -> NoReturn:
        if self._error is not None:
            raise TapeError(str(self._error)) from self._error
        raise TapeError("the tape is closed")


class Recorder:
    """Opens tapes: ``<directory>/YYYY/MM/DD/<sid>.000.gct``, by the UTC day on which the session begins."""

    def __init__(
        self,
        directory: Path,
        key: SealKey,
        *,
        node: str = "",
        boot: str = "",
        segment_limit: int = SEGMENT_LIMIT,
        disk: Disk | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.directory = directory
        self.key = key
        self.node = node
        self.boot = boot
        self.segment_limit = segment_limit
        self.disk = disk or Disk()
        self.wall_ns = wall_ns
        self.monotonic_ns = monotonic_ns
        self.threads = ThreadPoolExecutor(SYNC_THREADS_LIMIT, thread_name_prefix="tape-sync")

    def open(
        self,
        *,
        protocol: str,
        identity: Mapping[str, Any],
        target: str,
        mode: Literal["durable", "written"],
        run: str = "",
        policy_revision: str = "",
        more: Mapping[str, Any] | None = None,
    ) -> Tape:
        """Create a tape exclusively and write its header. Raises TapeError.

        identity and more go into the header, in the clear: no command text, no intent, no token. more may
        hold "tty": [columns, rows] where out and err are a terminal's bytes.
        """
        wall0_ns = self.wall_ns()
        header = {
            "sid": new_ulid(wall0_ns),
            "segment": 0,
            "prev": None,
            "first_record": 0,
            "track": "main",
            "node": self.node,
            "boot": self.boot,
            "wall0_ns": wall0_ns,
            "mono0_ns": self.monotonic_ns(),
            "protocol": protocol,
            "identity": dict(identity),
            "target": target,
            "run": run,
            "policy_rev": policy_revision,
            "mode": mode,
            "more": dict(more or {}),
        }
        day = datetime.fromtimestamp(wall0_ns / 1e9, UTC)
        directory = self.directory / f"{day:%Y}" / f"{day:%m}" / f"{day:%d}"
        try:
            return Tape(self, directory, header, mode == "durable")
        except (OSError, ValueError, TypeError) as error:
            raise _tape_error(error) from error

    def close(self) -> None:
        """Wait for the syncs that run, and end the threads. Tapes that are still open fail at their next commit."""
        self.threads.shutdown(wait=True)


def _sync(disk: Disk, descriptor: int, retired: list[int], directories: list[Path]) -> None:
    """Runs in a thread: everything that one sync makes durable. Raises OSError."""
    try:
        for old in retired:
            disk.sync(old)
        disk.sync(descriptor)
    finally:
        for old in retired:
            disk.close(old)
    for directory in dict.fromkeys(directories):
        disk.sync_directory(directory)


def _tape_error(error: BaseException) -> TapeError:
    """Our error for theirs: the system's word for what happened, but no path and no content."""
    text = error.strerror if isinstance(error, OSError) else str(error) if isinstance(error, ValueError) else None
    text = text or type(error).__name__
    return TapeError(f"the session cannot be recorded: {text}")
