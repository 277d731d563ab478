"""The writer of tapes: a Recorder opens them, a Tape takes the records of one session.

append queues a record in memory. written packs what is queued into blocks and hands them to the kernel, on the
event loop: for the few hundred bytes of a command that is far cheaper than any thread, and a block of 256 KiB takes
less than a thread hop costs beside a busy loop. Each block also becomes an entry in the process's write-ahead log
(wal.py): with its content if it holds a gating record (COMMAND, VERDICT, APPROVAL, INTENT, CLOSE), else as a hash.
commit waits until the log has the gating records on the disk; one flush serves all sessions that wait.

    mode       commit waits for    written waits for   after a power cut
    durable    the disk            the kernel          all commands; answers, or their hashes
    written    the kernel          the kernel          what the last second's flush had, or its hashes
    strict     the disk            the disk            everything that a user saw

Fails closed: the first OSError ends the tape. Every call from then on raises TapeError; what is on the disk of it is
sealed as crashed as soon as that is possible (upkeep.py). A Tape is used from one event loop only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import msgpack

from recorder.cipher import Recipient, TapeKey
from recorder.disk import Disk
from recorder.errors import FormatError, TapeError, tape_error
from recorder.folders import LogFolder, day_directory, dead_folders, take_folder
from recorder.format import (
    BLOCK_TARGET_BYTES,
    ERR,
    GATE,
    HEADER_LIMIT,
    JOINED_LIMIT,
    KEYS_SUFFIX,
    OUT,
    PAYLOAD_LIMIT,
    SUFFIX,
    USER,
    Kind,
    decode_header,
)
from recorder.packing import OVERHEAD_BYTES, Pending, write_block, write_blocks
from recorder.recover import recover, sweep
from recorder.repair import Recovered
from recorder.seal import SealKey, header_hash
from recorder.segment import SegmentWriter
from recorder.ulid import new_ulid
from recorder.upkeep import TICK_SECONDS, Ledger, OnEvent, Upkeep
from recorder.wal import FILE_BYTES, Wal, log_bytes

__all__ = ["ERR", "GATE", "OUT", "USER", "Kind", "Mode", "Recorder", "Tape", "TapeError"]

Mode = Literal["durable", "written", "strict"]

# What a tape keeps in memory before append itself writes it out: four blocks, so that no caller can forget to.
PENDING_LIMIT: Final = 4 * BLOCK_TARGET_BYTES
# A segment is closed and the next one begun at the first of these. Recorder note, section 3; the other two are ours
# and bound the memory of the indexes, and the pause at the end of a segment to a few milliseconds.
SEGMENT_LIMIT: Final = 64 * 1024 * 1024
SEGMENT_BLOCKS_LIMIT: Final = 64 * 1024
SEGMENT_COMMANDS_LIMIT: Final = 4 * 1024 * 1024
REASON_LIMIT: Final = 1024  # characters of CLOSE's reason: it is in the seal, too

GATING: Final = frozenset({Kind.COMMAND, Kind.VERDICT, Kind.APPROVAL, Kind.INTENT, Kind.CLOSE})
# By number: to hash a member of an enumeration takes longer than all else in append.
_GATES: Final = tuple(kind in GATING for kind in range(max(Kind) + 1))


class Tape:
    """The tape of one session. After a TapeError every further call raises TapeError."""

    def __init__(
        self, recorder: Recorder, directory: Path, header: dict[str, Any], mode: Mode, key: TapeKey | None
    ) -> None:
        """Create the first segment. Made by Recorder.open. Raises OSError, TapeError."""
        self.sid: str = header["sid"]
        self.track: str = header["track"]
        self.directory = directory
        self._recorder = recorder
        self._durable = mode != "written"
        self._strict = mode == "strict"
        self._now = recorder.monotonic_ns
        self._mono0_ns: int = header["mono0_ns"]
        self._header = header
        self._key = key
        self._next = 0
        self._gating = False  # something that is pending gates
        self._pending: list[Pending] = []
        self._pending_bytes = 0
        self._long: dict[int, bytes] = {}  # whole payloads of long COMMANDs and VERDICTs, for the index
        self._error: TapeError | None = None
        self._closed = False
        self._released = False
        self._batch = 0  # the log's batch that has the last gating block
        self._segment = self._begin(0, {})

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._segment.path

    @property
    def header(self) -> Mapping[str, Any]:
        """What the header says."""
        return self._segment.header

    def append(
        self, channel: int, kind: Kind, payload: bytes, entry: Mapping[str, Any] | None = None, flow: int | None = None
    ) -> int:
        """Queue one record; returns its number. entry: the map that payload packs. Raises TapeError."""
        if self._error is not None or self._closed:
            self._refuse()
        size = len(payload)
        if _GATES[kind]:
            self._gating = True
        if size > PAYLOAD_LIMIT:
            return self._append_long(channel, kind, payload, flow)
        n = self._next
        meta = {"flow": flow} if flow is not None else None
        self._pending.append((n, self._now() - self._mono0_ns, channel, kind, bytes(payload), meta, entry))
        self._next = n + 1
        self._pending_bytes += size + OVERHEAD_BYTES
        if self._pending_bytes > PENDING_LIMIT:
            self._flush()
        return n

    async def written(self) -> None:
        """Return when the kernel (mode strict: the disk) has all that was appended so far. Raises TapeError."""
        if self._error is not None:
            self._refuse()
        if self._pending:
            self._flush()
        if self._strict:
            await self._committed()

    async def commit(self) -> None:
        """Return when every gating record so far is durable (mode written: with the kernel). Raises TapeError."""
        if self._error is not None:
            self._refuse()
        if self._pending:
            self._flush()
        if self._durable:
            await self._committed()

    async def close(self, status: Literal["closed", "failed"], reason: str = "") -> None:
        """Append CLOSE, index and seal; commit. Safe to call twice. Raises TapeError."""
        if self._error is not None:
            self._refuse()
        if not self._closed:
            reason = reason[:REASON_LIMIT]
            self.append(GATE, Kind.CLOSE, msgpack.packb({"status": status, "reason": reason}))
            self._flush()
            try:
                self._segment.finish(status, reason, self._recorder.key)
            except Exception as error:  # fails closed
                self._fail(error)
            self._batch = self._segment.batch
            self._closed = True
            self._released = True
            self._recorder.upkeep.finish(self._segment, status)
        if self._durable:
            await self._committed()

    async def _committed(self) -> None:
        """Return once the log has the last gating block. Raises TapeError."""
        try:
            waiting = self._recorder.wal.commit(self._batch)
            if waiting is not None:
                await waiting
        except TapeError as error:
            self._fail(error)
        if self._error is not None:
            self._refuse()

    # -- queue to kernel ------------------------------------------------------------------------------

    def _append_long(self, channel: int, kind: Kind, payload: bytes, flow: int | None) -> int:
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
            meta = {} if flow is None else {"flow": flow}
            if kind is not Kind.WIRE:
                meta |= {"part": i, "more": len(pieces) - 1 - i}
            self._pending.append((self._next, now, channel, kind, bytes(piece), meta or None, None))
            self._next += 1
            self._pending_bytes += len(piece) + OVERHEAD_BYTES
        if self._pending_bytes > PENDING_LIMIT:
            self._flush()
        return first

    def _flush(self) -> None:
        """Write all that is pending. Raises TapeError."""
        pending, size = self._pending, self._pending_bytes
        gating = self._durable and (self._gating or self._strict)
        self._pending, self._pending_bytes, self._gating = [], 0, False
        try:
            segment = self._segment
            if (
                segment.size_bytes >= self._recorder.segment_limit
                or segment.blocks >= SEGMENT_BLOCKS_LIMIT
                or segment.commands.size_bytes >= SEGMENT_COMMANDS_LIMIT
            ):
                self._rotate()
            write = write_block if size < BLOCK_TARGET_BYTES else write_blocks
            batch = write(self._segment, pending, size, gating, self._long)
            if gating:
                self._batch = batch
        except Exception as error:  # fails closed: whatever it was, records are lost now
            self._fail(error)

    # -- segments -------------------------------------------------------------------------------------

    def _rotate(self) -> None:
        """Seal the segment as "continued" and begin the next one. Raises OSError, TapeError."""
        old = self._segment
        old.finish("continued", "", self._recorder.key)
        self._recorder.upkeep.finish(old, "continued")
        self._released = True  # until there is another one to let go of
        self._segment = self._begin(old.number + 1, {"prev": old.data_head, "first_record": old.next_record})
        self._released = False

    def _begin(self, number: int, changes: Mapping[str, Any]) -> SegmentWriter:
        header = {**self._header, "segment": number, **changes}
        recorder = self._recorder
        stem = self.sid if self.track == "main" else f"{self.sid}.{self.track}"
        path = self.directory / f"{stem}.{number:03d}{SUFFIX}"
        keys, keys_path, cipher = None, None, None
        if self._key is not None:
            header["enc"], cipher = self._key.segment(number)
            keys, keys_path = self._key.keys_file, self.directory / f"{stem}{KEYS_SUFFIX}"
            if number == 0:
                recorder.write_keys(keys_path, keys)
        try:
            segment = SegmentWriter(
                recorder.disk,
                path,
                header,
                recorder.wal,
                keys=keys,
                keys_path=keys_path,
                cipher=cipher,
                on_fail=self._on_log_failed,
            )
        except Exception:
            if keys_path is not None and number == 0:  # keys of nothing
                with suppress(OSError):
                    recorder.disk.remove(keys_path)
            raise
        recorder.upkeep.begin(segment)
        return segment

    # -- the end --------------------------------------------------------------------------------------

    def _on_log_failed(self, error: TapeError) -> None:
        """From the log's thread: entries of this tape are lost. Its own next call lets go of the file."""
        self._error = self._error or error

    def _fail(self, error: Exception) -> NoReturn:
        self._error = self._error or tape_error(error)
        self._pending, self._pending_bytes = [], 0
        self._long.clear()
        self._release()
        raise TapeError(str(self._error)) from error

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._recorder.abandon(self._segment, str(self._error))

    def _refuse(self) -> NoReturn:
        if self._error is not None:
            self._release()
            raise TapeError(str(self._error)) from self._error
        raise TapeError("the tape is closed")


class Recorder:
    """Opens tapes: ``<directory>/YYYY/MM/DD/<sid>.000.gct``, by the UTC day on which the session begins.

    Its log is a folder of its own below ``<directory>/wal``; several processes may record into one directory.
    """

    def __init__(
        self,
        directory: Path,
        key: SealKey,
        *,
        node: str = "",
        boot: str = "",
        segment_limit: int = SEGMENT_LIMIT,
        reserve_bytes: int = 0,
        wal_bytes: int = FILE_BYTES,
        disk: Disk | None = None,
        ledger: Ledger | None = None,
        on_event: OnEvent = lambda event, words: None,
        tick_seconds: float = TICK_SECONDS,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """reserve_bytes: with less room on the disk no session begins. on_event: what an operator should know."""
        self.directory = directory
        self.key = key
        self.node = node
        self.boot = boot
        self.segment_limit = segment_limit
        self.reserve_bytes = reserve_bytes
        self.disk = disk or Disk()
        self.wall_ns = wall_ns
        self.monotonic_ns = monotonic_ns
        self._ledger = ledger
        self._on_event = on_event
        self._wal_bytes = wal_bytes
        self._tick_seconds = tick_seconds
        self._folder: LogFolder | None = None
        self._wal: Wal | None = None
        self._upkeep: Upkeep | None = None

    @property
    def wal(self) -> Wal:
        """The log, once the recorder has started."""
        if self._wal is None:
            raise TapeError("the session cannot be recorded: the recorder is closed")
        return self._wal

    @property
    def upkeep(self) -> Upkeep:
        """The thread beside it, once the recorder has started."""
        if self._upkeep is None:
            raise TapeError("the session cannot be recorded: the recorder is closed")
        return self._upkeep

    def start(self) -> None:
        """Take a log folder, after recovering what a dead process left in it; open() does it, too. Raises TapeError."""
        if self._wal is not None:
            return
        try:
            folder = take_folder(self.directory, self.disk)
            try:
                if folder.left_over(self.disk):
                    recover(self.directory, folder.path, self.key, disk=self.disk, tell=self._tell)
                self._wal = Wal(folder.path, self.disk, log_bytes(self.disk, self.directory, self._wal_bytes))
            except BaseException:
                folder.release()
                raise
        except (OSError, FormatError) as error:
            raise tape_error(error) from error
        self._folder = folder
        self._upkeep = Upkeep(
            self._wal,
            self.disk,
            self.directory,
            self.key,
            ledger=self._ledger,
            on_event=self._on_event,
            tick_seconds=self._tick_seconds,
        )

    def recover(self) -> list[Recovered]:
        """Recover what dead processes left, in whichever folder; what living ones have open is let be.

        For the start of a gateway, before its workers. Raises TapeError.
        """
        found: list[Recovered] = []
        try:
            for folder in dead_folders(self.directory, self.disk):
                try:
                    found += recover(self.directory, folder.path, self.key, disk=self.disk, tell=self._tell).segments
                finally:
                    folder.release()
            lacking = None if self._ledger is None else self._ledger.lacking
            swept = sweep(self.directory, self.key, self.wall_ns(), disk=self.disk, lacking=lacking)
            self._tell(swept)
            found += swept
        except (OSError, FormatError) as error:
            raise tape_error(error) from error
        return found

    def _tell(self, found: list[Recovered]) -> None:
        """Tell the operator and the node's log of what recovery ended. Raises OSError, FormatError."""
        ended: list[tuple[Recovered, bytes]] = []
        for one in found:
            words = {"session": one.sid, "status": one.status, "gaps": one.gaps, "restored": one.restored}
            self._on_event("tape-recovered", {**words, "cut_bytes": one.cut_bytes, "reason": one.reason})
            if self._ledger is not None and one.status != "refused":
                with one.path.open("rb") as file:
                    h0 = header_hash(decode_header(file.read(HEADER_LIMIT + 32)).raw)
                ended.append((one, h0))
        if self._ledger is None or not ended:
            return
        try:
            for one, reason in self._ledger.recovered(ended):
                self._on_event("tape-contradicts-log", {"session": one.sid, "segment": one.segment, "reason": reason})
            self._ledger.publish()
        except OSError:
            raise
        except Exception as error:  # the log is damaged: that is told, here and ever after, and stops no session
            self._on_event("recorder-upkeep-failed", {"what": "tell", "reason": str(error)})

    def open(
        self,
        *,
        protocol: str,
        identity: Mapping[str, Any],
        target: str,
        mode: Mode,
        run: str = "",
        policy_revision: str = "",
        more: Mapping[str, Any] | None = None,
        recipients: Sequence[Recipient] = (),
    ) -> Tape:
        """Create a tape exclusively and write its header. Raises TapeError.

        identity and more go into the header, in the clear: no command text, no intent, no token. more may
        hold "tty": [columns, rows] where out and err are a terminal's bytes. recipients: to whom it is encrypted.
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
        if self._ledger is not None:
            header["log"] = self._ledger.origin
        return self._open(header, mode, recipients)

    def open_original(self, tape: Tape, recipients: Sequence[Recipient]) -> Tape:
        """Create the tape of the same session's original track, which is always encrypted. Raises TapeError."""
        if not recipients:
            raise TapeError("the session cannot be recorded: nobody may read its original track")
        header = {key: value for key, value in tape.header.items() if key != "enc"}
        header |= {"segment": 0, "prev": None, "first_record": 0, "track": "original"}
        return self._open(header, header["mode"], recipients)

    def _open(self, header: dict[str, Any], mode: Mode, recipients: Sequence[Recipient]) -> Tape:
        self.start()
        try:
            if self.reserve_bytes and self.disk.free_bytes(self.directory) < self.reserve_bytes:
                raise TapeError("the session cannot be recorded: the disk is nearly full")
            directory = day_directory(self.directory, header["wall0_ns"])
            self.upkeep.made([*self.disk.make_directories(directory), directory])
            key = TapeKey.generate(header["sid"], header["track"], recipients) if recipients else None
            return Tape(self, directory, header, mode, key)
        except (OSError, ValueError, TypeError) as error:
            raise tape_error(error) from error

    def abandon(self, segment: SegmentWriter, reason: str) -> None:
        """A tape can no longer be written: what is on the disk of it is sealed, now or at the next start."""
        if self._upkeep is not None:
            self._upkeep.abandon(segment, reason)
        else:
            with suppress(OSError):
                self.disk.close(segment.descriptor)

    def write_keys(self, path: Path, keys: bytes) -> None:
        """Write a .keys file; it is synced with its tape. Raises OSError."""
        descriptor = self.disk.create(path)
        try:
            self.disk.write(descriptor, [keys])
        except OSError:
            with suppress(OSError):
                self.disk.remove(path)
            raise
        finally:
            self.disk.close(descriptor)

    def close(self) -> None:
        """Sync all that is sealed and end the threads. Tapes that are still open fail; the next start recovers them."""
        folder, wal, upkeep = self._folder, self._wal, self._upkeep
        self._folder = self._wal = self._upkeep = None
        if folder is None or wal is None or upkeep is None:
            return
        clean = upkeep.stop()
        wal.stop()
        wal.close(clean)
        folder.release()
