"""Verification of nodes' logs: that each is whole, only grew, and what it says of the tapes beside it.

A log is recomputed from its entries: every tile has to be what the entries give, the root that of the signed
checkpoint, and every checkpoint that others kept (anchors, cosigned ones) has to be a beginning of it. In its entries,
OPEN and SEAL may be repeated, but not contradicted, and nothing is said of a session before its OPEN.

    altered      the tiles, the root or a signature does not hold; the entries contradict each other; an anchored or
                 cosigned checkpoint is no beginning of it; the log of another node; a session of it is missing
    incomplete   an anchor was given and has nothing of this log; witnesses were given and too few of them cosigned
    unknown      signed by a key that was not given

Heartbeats that are missing are a note, not a fault: a gateway may be stopped on purpose. Strict makes notes incomplete.
The key that signs is checked by position: what a KEYROTATE retired cannot sign what comes later.
Left out: the tapes themselves (verify_tape.py). Source: recorder note, section 8, "Node log".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from recorder.anchor import read_anchored
from recorder.checkpoint import Checkpoint, NoteKey, decode_checkpoint
from recorder.errors import FormatError
from recorder.format import Header
from recorder.logentry import Heartbeat, KeyRotate, LogEntry, decode_entry
from recorder.logindex import LogIndex, Saw
from recorder.merkle import TILE_WIDTH, Edge, entry_hash, tile_path, widths
from recorder.nodelog import CHECKPOINT, COSIGNED, LOGS, LogFiles
from recorder.seal import PublicKeys, key_id
from recorder.verify_report import ALTERED, INCOMPLETE, UNKNOWN, VERIFIED, WEIGHTS, Fault

# Heartbeats come every 60 s (recorder note, section 7); two may be late before it is worth a word.
GAP_SECONDS: Final = 180.0
NOTES_LIMIT: Final = 20  # of gaps, in a report; the rest is counted
# A cosignature this much older than the last heartbeat is noted: recorder note, section 7, alarm after 10 min.
STALE_SECONDS: Final = 600.0
MISSING_LIMIT: Final = 1000  # of missing sessions, in a report; the rest is counted


@dataclass(frozen=True, slots=True)
class Anchored:
    """The newest checkpoint of a log that others kept: how many entries, since when, where or by whom."""

    size: int
    time: str
    place: str


@dataclass(slots=True)
class LogReport:
    """What was found about one node's log."""

    node: str
    path: str
    status: str = VERIFIED
    fault: Fault | None = None
    origin: str = ""
    size: int = 0
    root: str = ""
    key: str = ""
    sessions: int = 0  # tapes that it saw begin
    begins: str = ""  # the time of the first and last heartbeat
    ends: str = ""
    removed: int = 0  # by policy, with a tombstone
    elsewhere: int = 0
    missing: list[str] = field(default_factory=list)  # the first of them
    missing_count: int = 0
    anchored: Anchored | None = None
    cosigned: list[Anchored] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fail(self, status: str, file: Path | str, entry: int | None, reason: str) -> None:
        """Take note of a fault, if it is the first or a heavier one."""
        if WEIGHTS.index(status) > WEIGHTS.index(self.status):
            self.status = status
            self.fault = Fault(status, str(file), 0, entry, reason)

    def statement(self) -> str:
        """What was proved about the log, in a sentence."""
        said = [f"log of node {self.node}: {self.size:,} entries"] if self.node else []
        if self.fault is not None:
            said.append(f"{self.status}: {self.fault.reason}")
        elif self.begins:
            said.append(f"every session from {self.begins} to {self.ends} is here")
        else:
            said.append("every session that it saw begin is here")
        if self.missing_count:
            said.append(f"{self.missing_count:,} missing")
        if self.removed:
            said.append(f"{self.removed:,} removed by policy")
        if self.elsewhere:
            said.append(f"{self.elsewhere:,} elsewhere, not looked at")
        if self.anchored is not None:
            when = f" at {self.anchored.time}" if self.anchored.time else ""
            said.append(f"anchored up to entry {self.anchored.size:,}{when}")
        said += [f"cosigned by {one.place} up to entry {one.size:,} at {one.time}" for one in self.cosigned]
        if self.notes:
            said.append(f"{len(self.notes)} {'note' if len(self.notes) == 1 else 'notes'}")
        return ", ".join(said)


class _Bad(Exception):
    """Ends the check of a log."""

    def __init__(self, status: str, file: str, entry: int | None, reason: str) -> None:
        super().__init__(reason)
        self.status, self.file, self.entry, self.reason = status, file, entry, reason


@dataclass(frozen=True, slots=True)
class Said:
    """What the log says of one tape. Entries are told by their numbers."""

    index: LogIndex
    log: CheckedLog
    sid: str
    track: str
    h0: bytes
    opened: int

    def heads(self, segment: int) -> Iterator[tuple[int, bytes, int]]:
        """(block seq, chain value, entry) of the segment's HEADs, by seq."""
        return self.index.heads(self.sid, self.track, segment)

    def seal(self, segment: int) -> Saw | None:
        return self.index.seal(self.sid, self.track, segment)

    def last(self) -> tuple[int, int]:
        """(segment, entry) of the highest segment that the log knows, (-1, -1) if it saw the tape begin only."""
        return self.index.last(self.sid, self.track)

    def retired(self, signer: str, sealed: int) -> bool:
        """Tell whether the key could not sign between the OPEN and the SEAL, which is entry number sealed."""
        return not self.log.valid(signer, self.opened, sealed)


class CheckedLog:
    """One log, read and checked; its entries are in the index."""

    def __init__(self, directory: Path, number: int) -> None:
        self.directory, self.number = directory, number
        self.report = LogReport(directory.name, str(directory))
        self._files = LogFiles(directory)
        self._edge = Edge()
        self._pending: list[bytes] = []  # leaves of the tile that is being filled
        self._epochs: list[tuple[int, str]] = []  # (first entry, key id), after the first KEYROTATE
        self._beat: int | None = None
        self._gaps = 0
        self._unknown = 0
        self.whole = False  # all entries were read
        self._kept: Iterator[tuple[int, bytes, str, str, bool]] = iter(())
        self._next: tuple[int, bytes, str, str, bool] | None = None

    def check(self, keys: PublicKeys, index: LogIndex, kept: Kept) -> None:
        """Check the log and take its entries into the index."""
        report = self.report
        try:
            head = self._head(keys)
            for name in (COSIGNED, "cosigned"):
                if (self.directory / name).exists():
                    kept.read(self.directory / name, outside=False)
            self._kept = index.kept(head.origin)
            self._next = next(self._kept, None)
            self._compare_kept()
            for raw in self._files.entries(head.size):
                self._take(raw, index)
            self._finish(head, index)
            self.whole = True
        except _Bad as bad:
            report.fail(bad.status, self.directory / bad.file, bad.entry, bad.reason)
        except FormatError as error:
            report.fail(ALTERED, self.directory, self._edge.size, error.reason)
        except OSError as error:
            report.fail(UNKNOWN, error.filename or self.directory, None, f"cannot be read: {error.strerror}")
        report.sessions = index.count("tapes", self.number)
        if self._gaps > NOTES_LIMIT:
            report.notes.append(f"{self._gaps - NOTES_LIMIT} more gaps between heartbeats")
        if self._unknown:
            report.notes.append(f"{self._unknown} entries of kinds that are not known here")

    def valid(self, signer: str, first: int, last: int) -> bool:
        """Tell whether the key was valid at any entry from first to last."""
        for at, (start, name) in enumerate(self._epochs):
            end = self._epochs[at + 1][0] if at + 1 < len(self._epochs) else last
            if name == signer and start <= last and end >= first:
                return True
        return not self._epochs  # it was never rotated: the key is one that was given

    def _head(self, keys: PublicKeys) -> Checkpoint:
        report = self.report
        try:
            head = decode_checkpoint(self._files.checkpoint())
        except FileNotFoundError as error:
            raise _Bad(ALTERED, CHECKPOINT, None, "the log has no checkpoint") from error
        except FormatError as error:
            raise _Bad(ALTERED, CHECKPOINT, None, error.reason) from error
        report.origin, report.size, report.root = head.origin, head.size, head.root.hex()
        if head.origin.rsplit("/", 1)[-1] != self.directory.name:
            raise _Bad(ALTERED, CHECKPOINT, None, f"this is the log of another node: {head.origin}")
        try:
            signers = head.signers(keys)
        except FormatError as error:
            raise _Bad(ALTERED, CHECKPOINT, None, error.reason) from error
        if not signers:
            raise _Bad(UNKNOWN, CHECKPOINT, None, "the checkpoint is signed by a key that was not given")
        report.key = signers[-1]
        return head

    def _take(self, raw: bytes, index: LogIndex) -> None:
        number = self._edge.size
        leaf = entry_hash(raw)
        self._pending.append(leaf)
        for level, at, tile in self._edge.add(leaf):
            self._compare(level, at, TILE_WIDTH, tile)
        self._compare_kept()
        try:
            entry = decode_entry(raw)
        except FormatError as error:
            raise _Bad(ALTERED, tile_path(None, number // TILE_WIDTH), number, f"an entry {error.reason}") from error
        if entry is None:
            self._unknown += 1
            return
        reason = index.add(entry, self.number, number) or self._note(entry, number)
        if reason:
            raise _Bad(ALTERED, tile_path(None, number // TILE_WIDTH), number, reason)

    def _note(self, entry: LogEntry, number: int) -> str:
        """Follow keys and heartbeats; return what is wrong."""
        match entry:
            case KeyRotate():
                old, new = (_id_of(raw) for raw in (entry.old, entry.new))
                if not self._epochs:
                    self._epochs.append((0, old))
                if self._epochs[-1][1] != old:
                    return "a KEYROTATE of another key than the one that signs"
                self._epochs.append((number, new))
            case Heartbeat():
                report, before = self.report, self._beat
                report.ends = _moment(entry.wall_ns)
                report.begins = report.begins or report.ends
                if before is not None and not -1 <= (entry.wall_ns - before) / 1e9 <= GAP_SECONDS:
                    self._gaps += 1
                    if self._gaps <= NOTES_LIMIT:
                        report.notes.append(f"no heartbeat from {_moment(before)} to {report.ends}")
                self._beat = entry.wall_ns
            case _:
                pass
        return ""

    def _compare(self, level: int, at: int, width: int, computed: bytes) -> None:
        """Compare a tile on the disk with the one that the entries give."""
        stored = self._files.tile(level, at, width)
        pending, self._pending = (self._pending, []) if not level else ([], self._pending)
        if stored == computed:
            return
        for i in range(len(pending)):
            if stored[32 * i : 32 * i + 32] != pending[i]:
                number = at * TILE_WIDTH + i
                raise _Bad(ALTERED, tile_path(None, at, width), number, f"entry {number} is not what its tile has")
        raise _Bad(ALTERED, tile_path(level, at, width), None, "a tile that is not what the entries give")

    def _finish(self, head: Checkpoint, index: LogIndex) -> None:
        for level, at, width in widths(head.size):
            self._compare(level, at, width, b"".join(self._edge.levels[level]))
        if self._edge.root() != head.root:
            raise _Bad(ALTERED, CHECKPOINT, None, "the checkpoint's root is not that of the entries")
        if self._next is not None:
            reason = (
                f"the log is cut: {self._next[0]} entries were there, as {self._next[3]} shows, {head.size} are here"
            )
            raise _Bad(ALTERED, CHECKPOINT, head.size, reason)
        if self._epochs and self.report.key != self._epochs[-1][1]:
            raise _Bad(ALTERED, CHECKPOINT, None, "the checkpoint is signed by a key that was retired")
        early = index.finish(self.number)
        if early is not None:
            raise _Bad(ALTERED, tile_path(None, early[0] // TILE_WIDTH), early[0], early[1])

    # -- what others kept -----------------------------------------------------------------------------

    def _compare_kept(self) -> None:
        """Compare the root so far with those that others kept of a log of this size."""
        root: bytes | None = None
        while self._next is not None and self._next[0] == self._edge.size:
            size, kept, moment, place, outside = self._next
            root = root or self._edge.root()
            if root != kept:
                reason = f"the log was rewritten: its first {size} entries are not those of the checkpoint in {place}"
                raise _Bad(ALTERED, CHECKPOINT, None, reason)
            if outside:
                self.report.anchored = Anchored(size, moment, place)
            self._next = next(self._kept, None)


class Kept:
    """Checkpoints that others kept: read, their signatures checked, and put into the index to be compared."""

    def __init__(self, keys: PublicKeys, witnesses: Sequence[NoteKey], index: LogIndex) -> None:
        self._keys, self._witnesses, self._index = keys, witnesses, index
        self._cosigned: dict[tuple[str, str], Anchored] = {}  # by origin and witness
        self.notes: list[str] = []

    def read(self, path: Path, outside: bool) -> None:
        """Take in all checkpoints of a directory or a file. Raises FormatError, OSError."""
        torn = strange = 0
        for place, moment, checkpoint in read_anchored(path):
            if checkpoint is None:
                torn += 1
            elif self._take(checkpoint, place):
                row = (checkpoint.origin, checkpoint.size, checkpoint.root, moment, place, outside)
                self._index.keep(row)
            else:
                strange += 1
        if torn:
            self.notes.append(f"{path}: {torn} lines that a crash tore")
        if strange:
            self.notes.append(f"{path}: {strange} checkpoints that are signed by keys that were not given")

    def _take(self, checkpoint: Checkpoint, place: str) -> bool:
        try:
            if not checkpoint.signers(self._keys):
                return False
            for witness in self._witnesses:
                seconds = checkpoint.cosigned(witness)
                before = self._cosigned.get((checkpoint.origin, witness.name))
                if seconds is not None and (before is None or checkpoint.size >= before.size):
                    found = Anchored(checkpoint.size, _moment(seconds * 10**9), witness.name)
                    self._cosigned[checkpoint.origin, witness.name] = found
        except FormatError as error:
            raise FormatError(f"{place}: {error.reason}") from error
        return True

    def cosigned(self, origin: str) -> list[Anchored]:
        """What each witness cosigned last."""
        return [found for (of, _), found in sorted(self._cosigned.items()) if of == origin]


class CheckedLogs:
    """All logs below a directory of tapes, checked; and what they say of each tape."""

    def __init__(self, path: Path, index: LogIndex) -> None:
        self._index = index
        self._path = path
        self.logs: dict[str, CheckedLog] = {}  # by node
        self.origins: dict[str, CheckedLog] = {}
        self.reports: list[LogReport] = []  # those, and of logs that are not here
        self.notes: list[str] = []

    def check(
        self, keys: PublicKeys, anchor: Path | None, witnesses: Sequence[NoteKey], threshold: int, strict: bool
    ) -> None:
        """Check the logs. Raises OSError."""
        kept = Kept(keys, witnesses, self._index)
        if anchor is not None:
            try:
                kept.read(anchor, outside=True)
            except FormatError as error:
                missing = LogReport("", str(anchor))
                missing.fail(ALTERED, anchor, None, error.reason)
                self.reports.append(missing)
        found = sorted((self._path / LOGS).glob("*/")) if (self._path / LOGS).is_dir() else []
        for number, directory in enumerate(found):
            log = CheckedLog(directory, number)
            log.check(keys, self._index, kept)
            self.logs[directory.name] = log
            self.reports.append(log.report)
            report = log.report
            self.origins[report.origin] = log
            report.cosigned = kept.cosigned(report.origin)
            if anchor is not None and report.anchored is None:
                report.fail(INCOMPLETE, anchor, None, "the anchor has no checkpoint of this log")
            for one in report.cosigned:
                _note_stale(report, one)
            if len(report.cosigned) < (threshold if witnesses else 0):
                reason = f"cosigned by {len(report.cosigned)} of the witnesses; {threshold} are asked for"
                report.fail(INCOMPLETE, directory / COSIGNED, None, reason)
            if strict and report.notes:
                report.fail(INCOMPLETE, directory, None, report.notes[0])
        for origin in self._index.origins():
            if origin not in self.origins:
                gone = LogReport(origin.rsplit("/", 1)[-1], str(self._path / LOGS), origin=origin)
                gone.fail(ALTERED, self._path / LOGS, None, f"the log {origin} was anchored, but is not here")
                self.reports.append(gone)
        if not found and (witnesses or strict) and not self.reports:
            absent = LogReport("", str(self._path / LOGS))
            absent.fail(INCOMPLETE, self._path / LOGS, None, "there is no node's log here")
            self.reports.append(absent)
        self.notes = kept.notes
        self._index.sort()

    def of(self, header: Header) -> Said | None:
        """What the logs say of the tape that begins so; None if none of them knows it."""
        track = str(header.map_.get("track"))
        row = self._index.opened(header.sid, track)
        if row is None:
            return None
        log = next(log for log in self.logs.values() if log.number == row[0])
        return Said(self._index, log, header.sid, track, row[1], row[2])

    def removed(self, sid: str) -> str:
        """By which policy the session was removed, "" if it was not."""
        tomb = self._index.tombstone(sid)
        return "" if tomb is None else f"{tomb[0]} by {tomb[1]}, entry {tomb[2]}"

    def erased(self, sid: str) -> bool:
        """Whether a log has the erasure of the session's keys, or its removal."""
        return self._index.erased(sid) or self._index.tombstone(sid) is not None

    def finish(self, elsewhere: Callable[[str], bool]) -> None:
        """Name the sessions that are not here. Call after the last tape."""
        for log in self.logs.values():
            report = log.report
            for sid, track, opened in self._index.unseen(log.number):
                if self._index.tombstone(sid) is not None:
                    report.removed += 1
                elif elsewhere(sid):
                    report.elsewhere += 1
                else:
                    report.missing_count += 1
                    if len(report.missing) < MISSING_LIMIT:
                        report.missing.append(sid if track == "main" else f"{sid}.{track}")
                    reason = f"session {sid} ({track} track) is missing: the log saw it begin (entry {opened})"
                    report.fail(ALTERED, log.directory, opened, reason)


def _note_stale(report: LogReport, one: Anchored) -> None:
    """Note a cosignature that ends long before the log does: what came after it is not covered."""
    if report.ends and one.time and _seconds(report.ends) - _seconds(one.time) > STALE_SECONDS:
        report.notes.append(f"{one.place} cosigned last at {one.time}, the log goes on until {report.ends}")


def _seconds(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0


def _id_of(raw: bytes) -> str:
    return key_id(Ed25519PublicKey.from_public_bytes(raw))


def _moment(wall_ns: int) -> str:
    try:
        return datetime.fromtimestamp(wall_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(wall_ns)
