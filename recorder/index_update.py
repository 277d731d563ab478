"""One pass over the tapes directory that brings the index up to date; index.py says how and when.

Everything is one transaction after the other, each with the rows of what was read and the cursor behind it. Where
a block ends within a long record (its parts may lie in several blocks), the cursor stays before that block and ``seen``
says which records of it are in the index already.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from recorder.errors import FormatError
from recorder.index_collect import clean, forget_commands
from recorder.index_days import NO_FILE, Day, Known, Work, day_directories, find_work
from recorder.index_scan import Changed, Cursor, Scan
from recorder.index_schema import meta, set_meta
from recorder.index_tape import State, TapeWriter, insert_session, update_files

COMMIT_SECONDS: Final = 1.0  # ours: the work that a kill costs, against 13 us a commit (recorder note, section 10)
COMMIT_COMMANDS: Final = 20_000  # bounds the WAL file: some 10 MB


class Elsewhere(Protocol):
    """Who knows of sessions whose files are not here; VaultView is one."""

    def has(self, sid: str) -> bool:
        """Whether the session's tape is there."""

    def removals(self) -> int:
        """How many sessions were removed for good; it only grows."""

    def removed(self) -> Iterator[str]:
        """Their ids."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an update is. Bytes are those of the tapes that are to be read."""

    tapes: int
    tapes_total: int
    bytes: int
    bytes_total: int
    commands: int


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update did. complete: the index has all that the tapes have. busy: another process is at it."""

    tapes: int = 0
    commands: int = 0
    forgotten: int = 0
    left: int = 0
    complete: bool = False
    busy: bool = False
    repaired: str = ""  # why the old index was put aside, if it was


class Updater:
    """One pass over the tapes directory, under the update lock."""

    def __init__(
        self,
        directory: Path,
        connection: sqlite3.Connection,
        deadline: float | None,
        progress: Callable[[Progress], None] | None,
        elsewhere: Elsewhere | None,
    ) -> None:
        self.repaired = ""
        self._directory = directory
        self._connection = connection
        self._deadline = deadline
        self._progress = progress
        self._elsewhere = elsewhere
        self._tapes = self._commands = self._forgotten = self._bytes = 0
        self._total_tapes = self._total_bytes = 0
        self._committed = time.monotonic()
        self._uncommitted = 0

    def run(self) -> Updated:
        """Catch up. Raises sqlite3.Error, OSError."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        late = False
        try:
            self._removed()
            late = not self._open_ones() or not all(map(self._day, self._days()))
            if not late:
                late = not self._scrub()
            left = self._total_tapes - self._tapes
            set_meta(connection, "complete", int(not late))
            set_meta(connection, "updated", str(time.time()))
            connection.execute("COMMIT")
            self._commands += self._uncommitted
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return Updated(
            self._tapes, self._commands, self._forgotten, max(0, left), complete=not late, repaired=self.repaired
        )

    # -- what there is to do --------------------------------------------------------------------------

    def _open_ones(self) -> bool:
        """Go on with the tapes that had no end; False if time is over."""
        rows = self._connection.execute(
            "SELECT sid, day, files, size_bytes, mtime_ns FROM sessions WHERE done = 0 ORDER BY sid DESC"
        ).fetchall()
        works = []
        for sid, day, files, size, mtime_ns in rows:
            work = Work.of(self._directory, day, sid, files)
            if work is not None and (work.size_bytes, work.mtime_ns) != (size, mtime_ns):
                works.append(work)
        return self._do(works)

    def _days(self) -> Iterator[Day]:
        """Yield the days that have changed, the newest first; one that is gone comes last."""
        known = dict(self._connection.execute("SELECT day, mtime_ns FROM days"))
        changed = [day for day in day_directories(self._directory) if known.pop(day.name, None) != day.mtime_ns]
        yield from changed
        yield from (Day(name, self._directory / name, 0) for name in known)

    def _day(self, day: Day) -> bool:
        """Bring one day up to date; False if time is over."""
        rows = self._connection.execute("SELECT sid, files, place FROM sessions WHERE day = ?", (day.name,))
        works, gone = find_work(day, {sid: Known(files, place) for sid, files, place in rows})
        for sid in gone:
            self._gone(sid)
        if not self._do(works):
            return False
        if day.mtime_ns and day.settled:
            self._connection.execute("INSERT OR REPLACE INTO days VALUES(?, ?)", (day.name, day.mtime_ns))
        elif not day.mtime_ns:
            self._connection.execute("DELETE FROM days WHERE day = ?", (day.name,))
        return True

    def _gone(self, sid: str) -> None:
        if self._elsewhere is not None and self._elsewhere.has(sid):
            self._connection.execute("UPDATE sessions SET place = 'vault', done = 1, files = '' WHERE sid = ?", (sid,))
            return
        self._forget(sid)
        self._forgotten += 1
        set_meta(self._connection, "scrub", 1)

    def _removed(self) -> None:
        """Forget what was removed from the vault; the day's directory does not tell of that."""
        count = self._elsewhere.removals() if self._elsewhere is not None else 0
        if self._elsewhere is None or count == (meta(self._connection, "removals") or 0):
            return
        for sid in self._elsewhere.removed():
            place = self._connection.execute("SELECT place FROM sessions WHERE sid = ?", (sid,)).fetchone()
            if place == ("vault",):
                self._gone(sid)
        set_meta(self._connection, "removals", count)

    def _forget(self, sid: str) -> None:
        row = self._connection.execute("SELECT id FROM sessions WHERE sid = ?", (sid,)).fetchone()
        if row is not None:
            forget_commands(self._connection, row[0])
            self._connection.execute("DELETE FROM sessions WHERE id = ?", row)

    def _scrub(self) -> bool:
        """Rewrite the full-text index once something was forgotten: until then its words lie in it. Takes its time."""
        if not meta(self._connection, "scrub"):
            return True
        if self._deadline is None:
            self._connection.execute("INSERT INTO texts(texts) VALUES('optimize')")
            self._connection.execute("DELETE FROM names WHERE id NOT IN (SELECT name FROM objects)")
            set_meta(self._connection, "scrub", 0)
        return True

    # -- one tape after the other ---------------------------------------------------------------------

    def _do(self, works: list[Work]) -> bool:
        self._total_tapes += len(works)
        self._total_bytes += sum(work.size_bytes for work in works)
        for work in works:
            if self._late():
                return False
            if not self._tape(work):
                return False
            self._tapes += 1
            self._report()
        return True

    def _tape(self, work: Work) -> bool:
        """Read what is new of one tape; False if time was over before its end."""
        for _ in range(2):
            try:
                return self._read(work)
            except Changed:  # and once more, from its beginning
                self._forget(work.sid)
                set_meta(self._connection, "scrub", 1)
            except FormatError as error:
                self._unreadable(work, error.reason)
                return True
            except OSError as error:
                if error.errno not in NO_FILE:
                    raise
                if error.errno != errno.ENOENT:  # moved while we looked: the directory's mtime tells the next time
                    self._unreadable(work, str(error.strerror))
                return True
        return True

    def _unreadable(self, work: Work, reason: str) -> None:
        self._forget(work.sid)
        session = insert_session(self._connection, work, None)
        self._connection.execute("UPDATE sessions SET error = ? WHERE id = ?", (clean(reason), session))
        update_files(self._connection, work)

    def _read(self, work: Work) -> bool:
        state = State.load(self._connection, work.sid)
        if state is not None:
            new = work.inodes
            if state.error or any(new.get(segment, inode) != inode for segment, inode in state.inodes.items()):
                raise Changed  # it was unreadable, or a file was replaced
            if state.done:
                update_files(self._connection, work)
                return True
        scan = Scan(work.files, state.cursor if state is not None else Cursor(min(work.files)))
        writer = TapeWriter(self._connection, work, scan, state)
        done_bytes = 0
        for piece in scan.pieces():
            writer.take(piece)
            done_bytes += piece.block.stored_len
            if writer.full or self._due() or self._late():
                self._uncommitted += writer.write()
                self._commit_if_due(done_bytes)
                if self._late():
                    return False
        self._uncommitted += writer.write(ended=True)
        self._bytes += work.size_bytes
        self._commit_if_due(0)
        return True

    # -- the clock ------------------------------------------------------------------------------------

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _due(self) -> bool:
        return time.monotonic() - self._committed >= COMMIT_SECONDS

    def _commit_if_due(self, begun: int) -> None:
        self._report(begun)
        if self._uncommitted >= COMMIT_COMMANDS or self._due():
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN IMMEDIATE")
            self._commands += self._uncommitted
            self._uncommitted = 0
            self._committed = time.monotonic()

    def _report(self, begun: int = 0) -> None:
        if self._progress is not None:
            done = min(self._bytes + begun, self._total_bytes)
            self._progress(
                Progress(self._tapes, self._total_tapes, done, self._total_bytes, self._commands + self._uncommitted)
            )
