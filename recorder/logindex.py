"""What nodes' logs say, kept so that verification can ask for it tape by tape: a temporary SQLite database.

It has no name and no place: SQLite keeps it in memory while it is small and spills it to the disk when it grows, so a
log of a hundred million heads takes no more memory than one of a thousand. Internal to verify.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from recorder.logentry import ERASED, Head, LogEntry, Open, Sealed, Tombstone

_SCHEMA: Final = """
CREATE TABLE tapes (sid TEXT, track TEXT, log INTEGER, h0 BLOB, at INTEGER, seen INTEGER DEFAULT 0,
                    PRIMARY KEY (sid, track)) WITHOUT ROWID;
CREATE TABLE heads (sid TEXT, track TEXT, segment INTEGER, seq INTEGER, chain BLOB, log INTEGER, at INTEGER);
CREATE TABLE seals (sid TEXT, track TEXT, segment INTEGER, root BLOB, status TEXT, log INTEGER, at INTEGER,
                    PRIMARY KEY (sid, track, segment)) WITHOUT ROWID;
CREATE TABLE tombs (sid TEXT PRIMARY KEY, policy TEXT, who TEXT, log INTEGER, at INTEGER) WITHOUT ROWID;
CREATE TABLE erased (sid TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE kept (origin TEXT, size INTEGER, root BLOB, time TEXT, place TEXT, outside INTEGER,
                   PRIMARY KEY (origin, size, root)) WITHOUT ROWID;
CREATE TABLE files (sid TEXT, track TEXT, root TEXT, PRIMARY KEY (sid, track)) WITHOUT ROWID;
"""
_HEADS_BATCH: Final = 10_000


@dataclass(frozen=True, slots=True)
class Saw:
    """A SEAL, as the log has it."""

    root: bytes
    status: str
    at: int


class LogIndex:
    """The entries of all logs below a directory."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN; {_SCHEMA}")
        self._heads: list[tuple[str, str, int, int, bytes, int, int]] = []

    def close(self) -> None:
        self._db.close()

    # -- entries --------------------------------------------------------------------------------------

    def add(self, entry: LogEntry, log: int, at: int) -> str:
        """Take an entry in; return what is wrong with it, "" if nothing."""
        db = self._db
        match entry:
            case Head():
                self._heads.append((entry.sid, entry.track, entry.segment, entry.seq, entry.chain, log, at))
                if len(self._heads) >= _HEADS_BATCH:
                    self._flush()
            case Open():
                row = (entry.sid, entry.track, log, entry.h0, at)
                if not db.execute("INSERT OR IGNORE INTO tapes VALUES (?, ?, ?, ?, ?, 0)", row).rowcount:
                    old = db.execute("SELECT h0, at FROM tapes WHERE sid = ? AND track = ?", row[:2]).fetchone()
                    if old[0] != entry.h0:
                        return f"another OPEN of session {entry.sid} than entry {old[1]}"
            case Sealed():
                key = (entry.sid, entry.track, entry.segment)
                new = (*key, entry.root, entry.status, log, at)
                if not db.execute("INSERT OR IGNORE INTO seals VALUES (?, ?, ?, ?, ?, ?, ?)", new).rowcount:
                    saw = self.seal(*key)
                    if saw is not None and (saw.root, saw.status) != (entry.root, entry.status):
                        return f"another SEAL of session {entry.sid}, segment {entry.segment}, than entry {saw.at}"
            case Tombstone() if entry.policy.startswith(ERASED):
                db.execute("INSERT OR IGNORE INTO erased VALUES (?)", (entry.sid,))
            case Tombstone():
                row_ = (entry.sid, entry.policy, entry.who, log, at)
                db.execute("INSERT OR IGNORE INTO tombs VALUES (?, ?, ?, ?, ?)", row_)
            case _:
                pass
        return ""

    def _flush(self) -> None:
        self._db.executemany("INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)", self._heads)
        self._heads.clear()

    def finish(self, log: int) -> tuple[int, str] | None:
        """Call after a log's last entry: return (entry, reason) of a HEAD or SEAL before its session's OPEN, if any."""
        self._flush()
        for kind in ("heads", "seals"):
            found = self._db.execute(
                f"SELECT e.at, e.sid FROM {kind} e LEFT JOIN tapes t ON t.sid = e.sid AND t.track = e.track "  # noqa: S608
                "WHERE e.log = ? AND (t.sid IS NULL OR (t.log = e.log AND t.at > e.at)) ORDER BY e.at LIMIT 1",
                (log,),
            ).fetchone()
            if found is not None:
                return int(found[0]), f"session {found[1]} has no OPEN before it"
        return None

    def sort(self) -> None:
        """Call after the last log, before heads() is asked for."""
        self._db.execute("CREATE INDEX by_tape ON heads (sid, track, segment, seq, at)")

    # -- tapes ----------------------------------------------------------------------------------------

    def opened(self, sid: str, track: str) -> tuple[int, bytes, int] | None:
        """(log, h0, entry) of the session's OPEN; the tape counts as seen."""
        row = self._db.execute("SELECT log, h0, at FROM tapes WHERE sid = ? AND track = ?", (sid, track)).fetchone()
        if row is None:
            return None
        self._db.execute("UPDATE tapes SET seen = 1 WHERE sid = ? AND track = ?", (sid, track))
        return int(row[0]), bytes(row[1]), int(row[2])

    def heads(self, sid: str, track: str, segment: int) -> Iterator[tuple[int, bytes, int]]:
        """(seq, chain, entry) of each HEAD of the segment, in order."""
        query = "SELECT seq, chain, at FROM heads WHERE sid = ? AND track = ? AND segment = ? ORDER BY seq, at"
        yield from self._db.execute(query, (sid, track, segment))

    def seal(self, sid: str, track: str, segment: int) -> Saw | None:
        """The segment's SEAL."""
        query = "SELECT root, status, at FROM seals WHERE sid = ? AND track = ? AND segment = ?"
        row = self._db.execute(query, (sid, track, segment)).fetchone()
        return None if row is None else Saw(bytes(row[0]), str(row[1]), int(row[2]))

    def last(self, sid: str, track: str) -> tuple[int, int]:
        """(segment, entry) of the highest segment that the log knows of the tape, (-1, -1) if none."""
        best = (-1, -1)
        for kind in ("heads", "seals"):
            query = f"SELECT segment, at FROM {kind} WHERE sid = ? AND track = ? ORDER BY segment DESC LIMIT 1"  # noqa: S608
            row = self._db.execute(query, (sid, track)).fetchone()
            if row is not None:
                best = max(best, (int(row[0]), int(row[1])))
        return best

    def tombstone(self, sid: str) -> tuple[str, str, int] | None:
        """(policy, who, entry) of the session's first tombstone."""
        row = self._db.execute("SELECT policy, who, at FROM tombs WHERE sid = ?", (sid,)).fetchone()
        return None if row is None else (str(row[0]), str(row[1]), int(row[2]))

    def erased(self, sid: str) -> bool:
        """Whether the session's keys were destroyed, and that was logged."""
        return self._db.execute("SELECT 1 FROM erased WHERE sid = ?", (sid,)).fetchone() is not None

    def unseen(self, log: int) -> Iterator[tuple[str, str, int]]:
        """(sid, track, entry) of each tape of the log that was not asked for, by entry."""
        yield from self._db.execute("SELECT sid, track, at FROM tapes WHERE log = ? AND NOT seen ORDER BY at", (log,))

    def first_file(self, sid: str, track: str, root: str) -> str:
        """Remember a tape file's root; return that of the first file of this session."""
        self._db.execute("INSERT OR IGNORE INTO files VALUES (?, ?, ?)", (sid, track, root))
        row = self._db.execute("SELECT root FROM files WHERE sid = ? AND track = ?", (sid, track)).fetchone()
        return str(row[0])

    def count(self, what: str, log: int) -> int:
        """How many tapes, heads, seals or tombs a log has."""
        assert what in ("tapes", "heads", "seals", "tombs")
        row = self._db.execute(f"SELECT count(*) FROM {what} WHERE log = ?", (log,)).fetchone()  # noqa: S608
        return int(row[0])

    # -- checkpoints that others kept -----------------------------------------------------------------

    def keep(self, row: tuple[str, int, bytes, str, str, bool]) -> None:
        """Take in (origin, size, root, time, place, whether it was kept outside the log's directory)."""
        self._db.execute("INSERT OR IGNORE INTO kept VALUES (?, ?, ?, ?, ?, ?)", row)

    def kept(self, origin: str) -> Iterator[tuple[int, bytes, str, str, bool]]:
        """(size, root, time, place, outside) of a log's, by size."""
        query = "SELECT size, root, time, place, outside FROM kept WHERE origin = ? ORDER BY size"
        for size, root, moment, place, outside in self._db.execute(query, (origin,)):
            yield int(size), bytes(root), str(moment), str(place), bool(outside)

    def origins(self) -> list[str]:
        """The origins of all checkpoints that were kept outside."""
        return [
            str(row[0]) for row in self._db.execute("SELECT DISTINCT origin FROM kept WHERE outside ORDER BY origin")
        ]
