"""Recovery: after a crash, tapes get back what the write-ahead log has of them, and an end. Needs no decryption key.

recover() runs before the writer that owned the log starts again, and before anyone listens. For each segment that the
log names and does not call DONE (walformat.py):

    1. Its .keys file and its header are put back from the OPEN entry if they are missing or torn. A whole header that
       is another one is not touched: "refused".
    2. Its file is scanned (salvage.py); whatever is behind the last good block is cut off.
    3. The log's entries follow in order. A block that the file has must have the hash that the log says, else
       "refused". The next block is appended as it was (FULL), or becomes a GAP with its hash (DIGEST). After a hole
       nothing can be trusted: what is there so far is kept, and the seal's reason says so.
    4. If COMMANDS, INDEX and SEAL came back and nothing was lost, the segment is as its writer made it. Otherwise it is
       ended with INDEX and CRASHSEAL.
    5. It is synced, then its directories; when that is done for all, the log's files are deleted, the oldest first,
       each durably before the next: a DONE must not be forgotten before what it speaks of.

A crash in the middle loses nothing: until 5 the log is whole, and the same steps give the same bytes. A file that was
ended by CRASHSEAL is opened once more only if the log has its next block (a writer that gave up may have sealed less
than was acknowledged). A segment that the log does not name but that continues the last one it names was begun just
before a kill: it is ended too. One that does not continue it holds nothing that was acknowledged, and would make
the tape contradict itself: it is renamed to ``*.orphan``. After "refused" the log is kept as ``*.refused``, and so is
the reason, in a file beside the tape; for as long as that is there, nobody here touches the tape.

Any OSError ends recovery with the log in place: the gateway does not start on a disk that it cannot read or write.
sweep() ends tapes that no log ever named: the kernel had them, the log's first batch with them was not yet written.
Left out: several logs at once (one folder each); a DONE segment is never looked at.
Source: recorder note, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from recorder.disk import Disk, is_live
from recorder.errors import FormatError
from recorder.format import HEADER_LIMIT, KEYS_SUFFIX, SUFFIX, TRAILER_BYTES, Header, decode_header, encode_trailer
from recorder.paths import keys_path, segment_path
from recorder.reader import name_of, stem_of
from recorder.repair import Entries, Recovered, Refused, Repair
from recorder.salvage import scan
from recorder.seal import SealKey
from recorder.ulid import is_ulid, ulid_bytes, ulid_text
from recorder.walformat import KEYS_LIMIT, TRACKS, decode_open
from recorder.walread import Log, Named

__all__ = ["Recovered", "Recovery", "recover", "seal_broken", "sweep"]

KILLED: Final = "the gateway was killed, or the machine stopped"
ORPHAN_SUFFIX: Final = ".orphan"
REFUSED_SUFFIX: Final = ".refused"
COPY_SUFFIX: Final = ".copy"
COPY_BYTES: Final = 1024 * 1024
# How much older than the newest tape one that no log names can be. Ours: the longest that a commit may hang, and more.
SWEEP_NS: Final = 600 * 1_000_000_000
# A tape that lived and ended within one batch of the log may lack pages before its trailer: such are small and young.
SHORT_BYTES: Final = 1024 * 1024
SHORT_NS: Final = 60 * 1_000_000_000


Lacking = Callable[[Sequence[Header]], Sequence[Header]]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of all segments of a log. generation: the highest in it, 0 if it was empty."""

    segments: list[Recovered]
    generation: int


def recover(
    directory: Path,
    wal: Path,
    key: SealKey,
    *,
    disk: Disk,
    reason: str = KILLED,
    tell: Callable[[list[Recovered]], None] = lambda found: None,
) -> Recovery:
    """Recover every tape below directory that the log in the folder wal names; then delete the log's files.

    reason goes into the seals. tell is called before that: a tape that was ended and of which nobody knows would look
    like one that was planted. Raises OSError (BlockingIOError: a writer still has a segment open) with the log intact.
    """
    log = Log(disk, wal)
    try:
        work = _Work(directory, key, disk, reason)
        work.run(log)
    finally:
        log.close()
    tell(work.results)
    refused = next((item.sid for item in work.results if item.status == "refused"), "")
    for path in log.paths:
        if refused:
            disk.rename(path, path.with_name(f"{path.stem}.{refused}{REFUSED_SUFFIX}"))
        else:
            disk.remove(path)
        disk.sync_directory(wal)
    return Recovery(work.results, log.generation)


def seal_broken(path: Path, key: SealKey, *, disk: Disk, reason: str, copy: bool = False) -> Recovered:
    """End one segment whose writer gave up and has closed it: cut the torn end off, seal what is there, sync.

    copy: after a failed sync. The kernel may call pages clean that never reached the disk, and a second sync would
    believe it; so what can still be read goes to a new file, which takes the old one's place once it is durable.
    A file without a whole header is "refused": there is nothing to seal. Raises OSError.
    """
    descriptor = disk.open_existing(path)
    try:
        header = decode_header(disk.read_at(descriptor, HEADER_LIMIT + 32, 0))
        _settle_keys(disk, path.with_name(stem_of(header) + KEYS_SUFFIX), header, copy)
        if copy:
            descriptor = _copied(disk, descriptor, path)
        repair = Repair(disk, descriptor, header)
        repair.finish("crashed", reason, key, apart=True)
        disk.sync_all(descriptor)
        if copy:
            disk.rename(path.with_name(path.name + COPY_SUFFIX), path)
    except FormatError as error:
        return _refused(path.name[:26], 0, 0, path, error.reason)
    finally:
        disk.close(descriptor)
    disk.sync_directory(path.parent)
    return repair.result(path, "crashed", reason)


def _settle_keys(disk: Disk, path: Path, header: Header, copy: bool) -> None:
    """Make the .keys file of a tape durable, if it has one: with its seal the log's copy of them is forgotten."""
    if not isinstance(header.map_.get("enc"), dict) or not path.exists():
        return
    descriptor = disk.open_existing(path)
    try:
        if copy:
            descriptor = _copied(disk, descriptor, path)
        disk.sync_all(descriptor)
        if copy:
            disk.rename(path.with_name(path.name + COPY_SUFFIX), path)
    finally:
        disk.close(descriptor)


def _copied(disk: Disk, descriptor: int, path: Path) -> int:
    """Copy the open file and close it; returns the copy, open. Raises OSError, with the descriptor still open."""
    target = path.with_name(path.name + COPY_SUFFIX)
    if target.exists():
        disk.remove(target)
    made = disk.create(target)
    offset = 0
    try:
        while data := disk.read_at(descriptor, COPY_BYTES, offset):
            disk.write(made, (data,))
            offset += len(data)
    finally:
        disk.close(made)
    copy = disk.open_existing(target)
    disk.close(descriptor)
    return copy


def sweep(
    directory: Path,
    key: SealKey,
    before_ns: int,
    *,
    disk: Disk,
    reason: str = KILLED,
    lacking: Lacking | None = None,
) -> list[Recovered]:
    """End the tapes below directory that no log names. To be called when every log was recovered.

    before_ns: a wall time at which all earlier writers were dead; tapes that began later are left alone. Looks at the
    newest tapes only (SWEEP_NS): a tape is in a log within seconds. A file without a whole header is set aside.
    lacking: picks, of young segments that have their end, those that the node's log has not seen ended. They began and
    ended within one batch of a log that was lost (recording: written); they are reported like what was ended here, for
    a tape of which nobody knows would look like one that was planted. Raises OSError.
    """
    days = sorted(directory.glob("[0-9]*/[0-9]*/[0-9]*"))[-2:]
    begun = sorted((name[0], path) for day in days for path in disk.files(day, SUFFIX) if (name := name_of(path)))
    # A stray file of such a name must not keep the gateway from starting.
    begun = [(sid, path) for sid, path in begun if is_ulid(sid[:26]) and _began_ns(sid) < before_ns]
    work = _Work(directory, key, disk, reason)
    for sid, path in begun:
        age_ns = _began_ns(begun[-1][0]) - _began_ns(sid)
        if age_ns <= SWEEP_NS and not is_live(path):
            work.sweep(path, age_ns <= SHORT_NS)
    for header in lacking(work.whole) if lacking is not None else ():
        work.adopt(header)
    work.sync_directories()
    return work.results


class _Work:
    """One run of recovery."""

    def __init__(self, directory: Path, key: SealKey, disk: Disk, reason: str) -> None:
        self.results: list[Recovered] = []
        self.whole: list[Header] = []  # of young segments that no log names, and that have their end
        self._directory = directory
        self._key = key
        self._disk = disk
        self._reason = reason
        self._changed: set[Path] = set()  # directories to be synced

    def run(self, log: Log) -> None:
        """Recover all segments that the log names, and make that durable. Raises OSError."""
        for key in sorted(log.named):
            if key not in log.done:
                self._segment(log, *key)
        for refused in self.results:
            if refused.status == "refused":
                self._mark(refused)
        self.sync_directories()

    def _mark(self, refused: Recovered) -> None:
        """Leave a word beside a file that contradicts the log, for people and for sweep()."""
        if not refused.path.is_file():
            return
        mark = refused.path.with_name(refused.path.name + REFUSED_SUFFIX)
        if not mark.exists():
            descriptor = self._disk.create(mark)
            try:
                self._disk.write(descriptor, (f"{refused.reason}\n".encode(),))
                self._disk.sync_all(descriptor)
            finally:
                self._disk.close(descriptor)

    def sync_directories(self) -> None:
        """Make durable what was created and renamed: the deepest first, a directory's content before its name."""
        for path in sorted(self._changed, key=lambda path: (-len(path.parts), path)):
            self._disk.sync_directory(path)

    def sweep(self, path: Path, young: bool) -> None:
        """End a segment that no log names, unless it has its end, or was refused. Raises OSError.

        young: a trailer alone is not believed.
        """
        if not path.exists() or path.with_name(path.name + REFUSED_SUFFIX).exists():
            return
        sealed, header = self._look(path, young)
        if sealed:
            if header is not None:  # it may have reached the disk whole, and its keys not
                self._drop_torn_keys(header)
                if young:
                    self.whole.append(header)
            return
        if header is not None and header.segment:
            # Whether it continues the one before is asked from there. Without that it was begun in vain.
            before = segment_path(self._directory, header, header.segment - 1)
            header = self._look(before)[1] if before.exists() else None
        self._touch(path.parent)
        if header is None:
            self._disk.rename(path, path.with_name(path.name + ORPHAN_SUFFIX))
        else:
            self._drop_torn_keys(header)
            self._repair(segment_path(self._directory, header), header, (), False)

    def adopt(self, header: Header) -> None:
        """Make a segment durable that has its end, and report it. Raises OSError."""
        path = segment_path(self._directory, header)
        self._touch(path.parent)
        self._repair(path, header, (), False)

    def _drop_torn_keys(self, header: Header) -> None:
        """Set a .keys file aside that never reached the disk whole; a missing one is no contradiction."""
        enc, path = header.map_.get("enc"), keys_path(self._directory, header)
        if not isinstance(enc, dict) or not path.exists():
            return
        descriptor = self._disk.open_existing(path)
        try:
            whole = sha256(self._disk.read_at(descriptor, KEYS_LIMIT + 1, 0)).digest() == enc.get("wraps")
            if whole:
                self._disk.sync_all(descriptor)
        finally:
            self._disk.close(descriptor)
        if not whole:
            self._disk.rename(path, path.with_name(path.name + ORPHAN_SUFFIX))
            self._touch(path.parent)

    def _look(self, path: Path, young: bool = False) -> tuple[bool, Header | None]:
        """Return whether the file has its end, and its header if that is whole and in its place."""
        descriptor = self._disk.open_existing(path)
        try:
            size = self._disk.size(descriptor)
            sealed = self._disk.read_at(descriptor, 4, max(0, size - TRAILER_BYTES)) == encode_trailer(0)[:4]
            header = decode_header(self._disk.read_at(descriptor, HEADER_LIMIT + 32, 0))
            if sealed and young and size <= SHORT_BYTES:
                sealed = scan(self._disk, descriptor, header)[1] is not None
            return sealed, header if segment_path(self._directory, header) == path else None
        except FormatError:
            return False, None
        finally:
            self._disk.close(descriptor)

    def _segment(self, log: Log, sid: bytes, track: int, segment: int) -> None:
        named = log.named[sid, track, segment]
        next_key = (sid, track, segment + 1)
        followed = next_key in log.named or next_key in log.done
        path = Path()
        try:
            header, keys = self._opening(named)
            if (header.sid, header.map_.get("track"), header.segment) != (ulid_text(sid), TRACKS[track], segment):
                raise Refused("the log's OPEN is about another segment")
            path = segment_path(self._directory, header)
            self._touch(path.parent)
            note = self._put_keys(header, keys)
            self._repair(path, header, log.entries(named), followed, note)
        except FormatError as error:
            self.results.append(_refused(ulid_text(sid), track, segment, path, f"the log's OPEN: {error.reason}"))
        except Refused as error:
            self.results.append(_refused(ulid_text(sid), track, segment, path, str(error)))

    @staticmethod
    def _opening(named: Named) -> tuple[Header, bytes | None]:
        raw, keys = decode_open(named.opening)
        header = decode_header(raw)
        if header.raw != raw:
            raise FormatError("bytes behind the header")
        return header, keys

    def _touch(self, day: Path) -> None:
        """Make the day's directory, and have it and all above it synced."""
        self._changed.update(self._disk.make_directories(day))
        self._changed.update((day, day.parent, day.parent.parent, self._directory))

    def _put_keys(self, header: Header, keys: bytes | None) -> str:
        """Restore the tape's .keys file; returns a remark if that cannot be."""
        enc = header.map_.get("enc")
        if keys is None or not isinstance(enc, dict):
            return ""
        if len(keys) > KEYS_LIMIT or sha256(keys).digest() != enc.get("wraps"):
            return "the log's keys are not those of the header"
        path = keys_path(self._directory, header)
        if path.exists():
            descriptor = self._disk.open_existing(path)
            try:
                if self._disk.read_at(descriptor, KEYS_LIMIT + 1, 0) == keys:
                    self._disk.sync_all(descriptor)
                    return ""
            finally:
                self._disk.close(descriptor)
            self._disk.remove(path)
        descriptor = self._disk.create(path)
        try:
            self._disk.write(descriptor, (keys,))
            self._disk.sync_all(descriptor)
        finally:
            self._disk.close(descriptor)
        return ""

    def _repair(self, path: Path, header: Header, entries: Entries, followed: bool, note: str = "") -> None:
        """Repair one segment, and the ones behind it that the log does not name. Raises Refused, OSError."""
        if not path.exists():
            self._disk.close(self._disk.create(path))
        descriptor = self._disk.open_existing(path)
        following: Header | None = None
        try:
            self._put_header(descriptor, header)
            repair = Repair(self._disk, descriptor, header)
            repair.follow(entries)
            if not followed and repair.end_status not in ("closed", "failed"):
                following = self._unnamed(header, repair)
            status: Literal["crashed", "continued"] = "continued" if followed or following is not None else "crashed"
            repair.finish(status, self._reason, self._key)
            self._disk.sync_all(descriptor)
        finally:
            self._disk.close(descriptor)
        self.results.append(repair.result(path, status, "; ".join(filter(None, (self._reason, note)))))
        if following is not None:
            self._repair(segment_path(self._directory, following), following, (), False)

    def _put_header(self, descriptor: int, header: Header) -> None:
        """See that the file begins with the header. Raises Refused if it begins with another one."""
        there = self._disk.read_at(descriptor, HEADER_LIMIT + 32, 0)
        if there.startswith(header.raw):
            return
        try:
            decode_header(there)
        except FormatError:  # torn, or never written
            self._disk.write_at(descriptor, header.raw, 0)
        else:
            raise Refused("the file's header is not the one that the log speaks of")

    def _unnamed(self, header: Header, repair: Repair) -> Header | None:
        """Return the header of the next segment if it is there and continues this one; set another one aside."""
        path = segment_path(self._directory, header, header.segment + 1)
        if not path.exists():
            return None
        descriptor = self._disk.open_existing(path)
        try:
            said = decode_header(self._disk.read_at(descriptor, HEADER_LIMIT + 32, 0))
            place = {"segment": header.segment + 1, "prev": repair.body.chain, "first_record": repair.body.next_record}
            if {**said.map_, "enc": None} == {**header.map_, **place, "enc": None}:
                self._disk.sync_all(descriptor)  # the seal before it will say that it is there
                self._disk.sync_directory(path.parent)
                return said
        except FormatError:
            pass
        finally:
            self._disk.close(descriptor)
        self._disk.rename(path, path.with_name(path.name + ORPHAN_SUFFIX))
        return None


def _refused(sid: str, track: int, segment: int, path: Path, reason: str) -> Recovered:
    return Recovered(sid, TRACKS[track], segment, path, "refused", 0, 0, 0, reason)


def _began_ns(stem: str) -> int:
    """When the tape of that name was opened: the first 48 bits of its id are milliseconds."""
    return int.from_bytes(ulid_bytes(stem[:26])[:6], "big") * 1_000_000
