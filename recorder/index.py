"""The index of all tapes: what people search. A cache, kept up to date from the tapes alone, and never the truth.

``Index.update`` catches up. It lists a day's directory only if its mtime has changed, compares names and inodes with
what it knows, and reads new tapes from their beginning, known ones from where it stopped (index_scan.py); a sealed
tape is read once. A tape whose earlier part is not what it was is forgotten and read anew; one whose files are gone
is forgotten, unless they are elsewhere (in the vault). Rows and cursor change in one transaction, so a kill at any
moment costs the last second's work. ``Index.rebuild`` does the same into a file beside and then swaps the two.

Only one process updates; another one that would uses what is there. A damaged index is put aside and built again.
``Index(directory)`` opens it for queries (index_query.py).

Memory: one block, the commands whose result is not known, and a hundred bytes for each session of one day.
Left out: signatures (verify.py); text of encrypted tapes; changes of a sealed file in place, which keep its inode
(rebuild reads everything again; verify is what tells).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from recorder.index_schema import (
    INDEX_NAME,
    NEW_NAME,
    SWAP_LIMIT_SECONDS,
    IndexDamaged,
    IndexUnavailable,
    meta,
    number,
    open_file,
    put_aside,
    put_in_place,
    remove,
    unusable,
    update_lock,
    use_lock,
)
from recorder.index_update import Elsewhere, Progress, Updated, Updater

__all__ = ["Index", "IndexDamaged", "IndexUnavailable", "Progress", "Updated"]


class Index:
    """The index of one tapes directory, open for queries: ``with Index(directory) as index``."""

    def __init__(self, directory: Path) -> None:
        """Raises FileNotFoundError where there is none yet, IndexDamaged, IndexUnavailable."""
        self.directory = directory
        try:
            self._lock = use_lock(directory)
        except OSError as error:
            raise IndexUnavailable(f"the index cannot be opened: {error.strerror}") from error
        try:
            self.connection = open_file(directory / INDEX_NAME)
            self.complete = bool(meta(self.connection, "complete"))
            self.updated = float(meta(self.connection, "updated") or 0)
            self.substring = meta(self.connection, "tokenizer") == "trigram"
        except BaseException as error:
            self._lock.close()
            if isinstance(error, sqlite3.Error):
                raise unusable(error) from error
            raise

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()
        self._lock.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def counts(self) -> tuple[int, int]:
        """How many sessions and commands are in it."""
        return (
            number(self.connection, "SELECT count(*) FROM sessions"),
            number(self.connection, "SELECT count(*) FROM commands"),
        )

    @staticmethod
    def update(
        directory: Path,
        *,
        seconds: float | None = None,
        progress: Callable[[Progress], None] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> Updated:
        """Bring the index up to date, for at most so many seconds; makes one where there is none.

        elsewhere tells of a session whose files are gone whether the vault has them. Raises IndexUnavailable.
        """
        try:
            lock = update_lock(directory)
        except TimeoutError:
            return Updated(busy=True)
        except OSError as error:
            raise IndexUnavailable(f"the index cannot be written: {error.strerror}") from error
        deadline = None if seconds is None else time.monotonic() + seconds
        with lock:
            try:
                return _update(directory, deadline, progress, elsewhere, "")
            except IndexDamaged as error:
                with suppress(OSError):
                    put_aside(directory)
                return _update(directory, deadline, progress, elsewhere, str(error))

    @staticmethod
    def rebuild(
        directory: Path,
        *,
        substring: bool = False,
        progress: Callable[[Progress], None] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> Updated:
        """Build a new index beside the old one, and let it take its place; goes on where an earlier try was killed.

        substring: index every three characters in place of words: finds parts of words, and takes twice the room.
        Raises IndexUnavailable, TimeoutError if another process updates or uses the index for long.
        """
        tokenizer = "trigram" if substring else "unicode61"
        path = directory / NEW_NAME
        try:
            with update_lock(directory, SWAP_LIMIT_SECONDS):
                connection = _open_new(path, tokenizer)
                try:
                    done = Updater(directory, connection, None, progress, elsewhere).run()
                    _keep_elsewhere(directory, connection, elsewhere)
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                finally:
                    connection.close()
                put_in_place(directory)
                return done
        except TimeoutError:
            raise
        except OSError as error:
            raise IndexUnavailable(f"the index cannot be written: {error.strerror}") from error
        except sqlite3.Error as error:
            raise unusable(error) from error


def _update(
    directory: Path,
    deadline: float | None,
    progress: Callable[[Progress], None] | None,
    elsewhere: Elsewhere | None,
    repaired: str,
) -> Updated:
    with use_lock(directory):
        connection = open_file(directory / INDEX_NAME, create=True)
        try:
            updater = Updater(directory, connection, deadline, progress, elsewhere)
            updater.repaired = repaired
            return updater.run()
        except sqlite3.Error as error:
            raise unusable(error) from error
        except OSError as error:
            raise IndexUnavailable(f"the tapes cannot be read: {error.strerror}") from error
        finally:
            connection.close()


def _open_new(path: Path, tokenizer: str) -> sqlite3.Connection:
    """Open what a killed rebuild left, if it can be gone on with, or an empty one."""
    try:
        connection = open_file(path)
        if meta(connection, "tokenizer") == tokenizer:
            return connection
        connection.close()
    except (FileNotFoundError, IndexUnavailable):
        pass
    remove(path)
    return open_file(path, create=True, tokenizer=tokenizer)


def _keep_elsewhere(directory: Path, connection: sqlite3.Connection, elsewhere: Elsewhere | None) -> None:
    """Take over what only the old index knows: sessions whose tapes are in the vault by now."""
    if elsewhere is None or not (directory / INDEX_NAME).exists():
        return
    with suppress(IndexUnavailable, FileNotFoundError, sqlite3.Error), Index(directory) as old:
        known = old.connection.execute("SELECT * FROM sessions WHERE place = 'vault'")
        for row in known:
            if not elsewhere.has(row[1]):
                continue
            connection.execute("BEGIN IMMEDIATE")
            _copy_session(old.connection, connection, row)
            connection.execute("COMMIT")


def _copy_session(old: sqlite3.Connection, new: sqlite3.Connection, row: tuple[object, ...]) -> None:
    marks = ", ".join("?" * (len(row) - 1))
    cursor = new.execute(f"INSERT OR IGNORE INTO sessions VALUES(NULL, {marks})", row[1:])
    if not cursor.rowcount:
        return
    session = cursor.lastrowid
    for command in old.execute("SELECT * FROM commands WHERE session = ? ORDER BY n", (row[0],)):
        marks = ", ".join("?" * (len(command) - 2))
        id_ = new.execute(f"INSERT INTO commands VALUES(NULL, ?, {marks})", (session, *command[2:])).lastrowid
        new.execute("INSERT INTO texts(rowid, text) VALUES(?, ?)", (id_, command[-1]))
        for name in json.loads(command[-3] or "[]"):
            new.execute("INSERT OR IGNORE INTO names(name) VALUES(?)", (name,))
            new.execute("INSERT OR IGNORE INTO objects SELECT id, ? FROM names WHERE name = ?", (id_, name))
