"""The index's file: its tables, how it is opened, shared, put aside when it is damaged, and replaced.

``index.db`` lies in the tapes directory, mode 0600: SQLite in WAL mode with synchronous=NORMAL. A kill or a power cut
leaves it consistent, at worst some commits behind; what is missing is read again from the tapes. Beside it:

    index.lock          held shared by whoever has index.db open; exclusively for the moment in which it is replaced. A
                        stale -wal or -shm must never meet another database: SQLite would apply it.
    index.update.lock   held by the one process that brings the index up to date
    index.db.new        a rebuild under way; it goes on after a kill and is renamed when it is complete
    index.db.damaged    what was put aside, for whoever wants to know why

Every reader checks application_id and user_version: a file of another kind or version is put aside and built again.
Sources: SQLite documentation, "How To Corrupt An SQLite Database File" 1.2 to 1.4 and 2; FTS5 4.3 (tokenizers), 4.4.3
(external content tables). Left out: several nodes in one index (recorder note, section 10: PostgreSQL by month).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

INDEX_NAME: Final = "index.db"
NEW_NAME: Final = "index.db.new"
DAMAGED_NAME: Final = "index.db.damaged"
_LOCK_NAME: Final = "index.lock"
_UPDATE_LOCK_NAME: Final = "index.update.lock"

APPLICATION_ID: Final = 0x47435449  # "GCTI"
SCHEMA_VERSION: Final = 1
TOKENIZERS: Final = ("unicode61", "trigram")
BUSY_SECONDS: Final = 5.0  # ours: a commit takes milliseconds; a person waits no longer for a list
SWAP_LIMIT_SECONDS: Final = 30.0  # ours: the longest query that a rebuild waits for before it gives up
_SIDECARS: Final = ("-wal", "-shm", "-journal")

# A session's cursor is a block's boundary: everything before it is in the index, nothing behind it is. files is what
# was in the day's directory, "segment:inode ..."; seen is the number of the first record that is not in the index;
# done is 1 once the tape has its end and was read up to it.
# commands.verdict is as in the tape's COMMANDS, and "held" while an approval is waited for.
_TABLES: Final = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE days(day TEXT PRIMARY KEY, mtime_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions(
    id INTEGER PRIMARY KEY, sid TEXT NOT NULL UNIQUE, day TEXT NOT NULL, files TEXT NOT NULL, place TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, done INTEGER NOT NULL,
    segment INTEGER NOT NULL, offset INTEGER NOT NULL, seq INTEGER NOT NULL, chain BLOB NOT NULL,
    seen INTEGER NOT NULL,
    started_ns INTEGER NOT NULL, duration_ns INTEGER NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL,
    protocol TEXT NOT NULL, target TEXT NOT NULL, subject TEXT NOT NULL, agents TEXT NOT NULL, groups TEXT NOT NULL,
    run TEXT NOT NULL, node TEXT NOT NULL, intent TEXT NOT NULL, encrypted INTEGER NOT NULL,
    commands INTEGER NOT NULL, allowed INTEGER NOT NULL, denied INTEGER NOT NULL,
    held INTEGER NOT NULL, errors INTEGER NOT NULL, lost INTEGER NOT NULL, error TEXT NOT NULL, damage TEXT NOT NULL
);
CREATE INDEX sessions_started ON sessions(started_ns);
CREATE INDEX sessions_day ON sessions(day);
CREATE INDEX sessions_open ON sessions(sid) WHERE done = 0;
CREATE INDEX sessions_subject ON sessions(subject, started_ns);
CREATE INDEX sessions_target ON sessions(target, started_ns);
CREATE INDEX sessions_run ON sessions(run) WHERE run <> '';
CREATE TABLE commands(
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL, n INTEGER NOT NULL, number INTEGER NOT NULL,
    t_ns INTEGER NOT NULL, at INTEGER NOT NULL, verb TEXT NOT NULL, kind TEXT NOT NULL, verdict TEXT NOT NULL,
    rule TEXT NOT NULL, by TEXT NOT NULL, row_count INTEGER, code TEXT NOT NULL, error TEXT NOT NULL,
    objects TEXT NOT NULL, cut INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX commands_session ON commands(session, n);
CREATE INDEX commands_at ON commands(at);
CREATE INDEX commands_notable ON commands(at) WHERE verdict <> 'allow';
CREATE INDEX commands_failed ON commands(at) WHERE error <> '';
CREATE TABLE names(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE objects(name INTEGER NOT NULL, command INTEGER NOT NULL, PRIMARY KEY(name, command)) WITHOUT ROWID;
CREATE VIRTUAL TABLE texts USING fts5(text, content='commands', content_rowid='id', tokenize='{tokenizer}');
"""


class IndexUnavailable(Exception):
    """There is no index that can be used; the text says why, in a line for a person."""


class IndexDamaged(IndexUnavailable):
    """The file is no index, or not one of this version, or SQLite finds it malformed."""


class Lock:
    """A lock on a file beside the index, freed by close() or by the end of the process."""

    def __init__(self, path: Path, how: int, wait_seconds: float | None = None) -> None:
        """how: fcntl.LOCK_SH or LOCK_EX. Raises TimeoutError if it is not to be had in time (None: for ever)."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        try:
            own_as(path, path.parent)
            self._take(how, wait_seconds)
        except BaseException:
            self.close()
            raise

    def _take(self, how: int, wait_seconds: float | None) -> None:
        deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
        while deadline is not None:
            try:
                fcntl.flock(self._descriptor, how | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError("another process holds the lock") from None
                time.sleep(0.02)
        fcntl.flock(self._descriptor, how)

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def use_lock(directory: Path) -> Lock:
    """Keep the index from being replaced while it is open."""
    return Lock(directory / _LOCK_NAME, fcntl.LOCK_SH)


def update_lock(directory: Path, wait_seconds: float = 0.0) -> Lock:
    """Be the one that updates. Raises TimeoutError if another process is."""
    return Lock(directory / _UPDATE_LOCK_NAME, fcntl.LOCK_EX, wait_seconds)


def own_as(path: Path, like: Path) -> None:
    """Give a file that root made to the owner of the directory: the gateway must be able to go on with it."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a file system without owners
            owner = like.stat()
            os.chown(path, owner.st_uid, owner.st_gid)


def open_file(path: Path, *, create: bool = False, tokenizer: str = "unicode61") -> sqlite3.Connection:
    """Open an index; create: make one where there is none.

    Raises IndexDamaged, FileNotFoundError where there is none, IndexUnavailable.
    """
    if not path.exists():
        if not create:
            raise FileNotFoundError(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        own_as(path, path.parent)
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise IndexUnavailable(f"the index cannot be opened: {error}") from error
    try:
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        _check(connection, create, tokenizer)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise unusable(error) from error
        raise
    return connection


def unusable(error: sqlite3.Error) -> IndexUnavailable:
    """Tell damage from what may be over the next time: a lock, a full disk, a missing right."""
    if isinstance(error, sqlite3.OperationalError) and not _malformed(error):
        return IndexUnavailable(f"the index cannot be used: {error}")
    return IndexDamaged(f"the index is damaged: {error}")


def _malformed(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such" in str(error)


def _check(connection: sqlite3.Connection, create: bool, tokenizer: str) -> None:
    found = connection.execute("PRAGMA application_id").fetchone()[0], number(connection, "PRAGMA user_version")
    if found == (0, 0) and create and not number(connection, "SELECT count(*) FROM sqlite_schema"):
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"no tokenizer {tokenizer}")
        connection.executescript(
            f"BEGIN IMMEDIATE;{_TABLES.format(tokenizer=tokenizer)}"
            f"INSERT INTO meta VALUES('tokenizer', '{tokenizer}'), ('complete', 0);"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
    elif found != (APPLICATION_ID, SCHEMA_VERSION):
        raise IndexDamaged("the index is of another version, or no index")


def number(connection: sqlite3.Connection, query: str) -> int:
    """The one number that a query gives."""
    return int(connection.execute(query).fetchone()[0])


def meta(connection: sqlite3.Connection, key: str) -> str | int | None:
    """What the index knows of itself: tokenizer, complete, updated (seconds since the epoch), scrub."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def set_meta(connection: sqlite3.Connection, key: str, value: str | int) -> None:
    """Write down what the index knows of itself."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))


def put_aside(directory: Path) -> None:
    """Move the index out of the way, so that the next update makes a new one. Raises TimeoutError, OSError."""
    with Lock(directory / _LOCK_NAME, fcntl.LOCK_EX, SWAP_LIMIT_SECONDS):
        _remove_sidecars(directory / INDEX_NAME)
        with contextlib.suppress(FileNotFoundError):
            (directory / INDEX_NAME).replace(directory / DAMAGED_NAME)


def put_in_place(directory: Path) -> None:
    """Let the rebuilt index take the old one's place; it must be closed. Raises TimeoutError, OSError."""
    with Lock(directory / _LOCK_NAME, fcntl.LOCK_EX, SWAP_LIMIT_SECONDS):
        _remove_sidecars(directory / INDEX_NAME)
        (directory / NEW_NAME).replace(directory / INDEX_NAME)


def remove(path: Path) -> None:
    """Delete a database that nobody has open."""
    _remove_sidecars(path)
    path.unlink(missing_ok=True)


def _remove_sidecars(path: Path) -> None:
    for suffix in _SIDECARS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
