"""One SQLite file, one connection, one thread: every piece of work is a short function that gets the connection.

The connection lives on a worker thread that the database owns, so that neither the event loop nor its default
executor ever waits for a disk. Each piece of work is one transaction, in the order in which it was handed in:
all of it, or nothing. WAL mode lets the command line read and write the same file while the gate serves; a
writer waits at most BUSY_LIMIT_SECONDS for another. changes() tells whether anybody, here or in another
process, has written since.

Durability: synchronous=FULL by default (a commit is on the disk when run() returns: approvals, tokens);
durable=False is NORMAL (a power cut may lose it, never corrupt the file: last use of a token).

Left out: several nodes on one database (PostgreSQL, later), and pools: all work here takes microseconds.
Source: sqlite.org/wal.html, sqlite.org/pragma.html (synchronous, data_version, user_version).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import structlog

from proxy.core.errors import GatecastError
from proxy.store.schema import MIGRATIONS

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

# A writer holds the lock for one small transaction; five seconds is a disk in trouble, and sqlite3's own default.
BUSY_LIMIT_SECONDS: Final = 5.0
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700

log = structlog.get_logger(__name__)


class StoreError(GatecastError):
    """The database could not be read or written; the text names the file and what SQLite said."""


class Database:
    """The store's file. open() and call() block (the command line); run() and submit() do not (the gate)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._worker: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None  # touched by the worker only
        self._writes = 0

    def open(self) -> Database:
        """Create the file (mode 0600) or bring it up to date. Raises StoreError."""
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gatecast-store")
        try:
            worker.submit(self._open).result()
        except BaseException:
            worker.shutdown(wait=False)
            raise
        self._worker = worker
        return self

    def close(self) -> None:
        """Finish all work that was handed in, then close the file. Safe to call twice."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.submit(self._close).result()
            worker.shutdown(wait=True)

    async def run(self, work: Work[T], *, durable: bool = True) -> T:
        """Run one transaction on the worker. Cancelling gives up the wait, not the work. Raises StoreError."""
        # Without the shield, cancelling would take the work out of the queue as well, if it has not begun.
        return await asyncio.shield(asyncio.wrap_future(self.submit(work, durable=durable)))

    def call(self, work: Work[T], *, durable: bool = True) -> T:
        """Run one transaction and block until it is done: for the command line. Raises StoreError."""
        return self.submit(work, durable=durable).result()

    def submit(self, work: Work[T], *, durable: bool = True) -> Future[T]:
        """Hand in one transaction and return at once; the future ends with its result or a StoreError."""
        if self._worker is None:
            raise StoreError(f"{self.path}: the store is closed")
        return self._worker.submit(self._transact, work, durable)

    async def changes(self) -> tuple[int, int]:
        """Return a value that differs from the last one if anybody wrote in between."""
        if self._worker is None:
            raise StoreError(f"{self.path}: the store is closed")
        return await asyncio.wrap_future(self._worker.submit(self._changes))

    # -- on the worker's thread -----------------------------------------------------------------------

    def _open(self) -> None:
        try:
            _prepare(self.path)
            connection = sqlite3.connect(self.path, timeout=BUSY_LIMIT_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path}: {error}") from error
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            self._migrate(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self.path}: {error}") from error
            raise
        self._connection = connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"{self.path}: made by a newer gatecast (schema {version}, this one knows {len(MIGRATIONS)})"
                )
            for migration in MIGRATIONS[version:]:
                for statement in migration:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS):d}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _transact(self, work: Work[T], durable: bool) -> T:
        assert self._connection is not None
        connection = self._connection
        try:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                before = connection.total_changes
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            if connection.total_changes != before:
                self._writes += 1
            return result
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    def _changes(self) -> tuple[int, int]:
        assert self._connection is not None
        try:
            # data_version counts the commits of other connections only, so our own are counted beside it.
            return (self._connection.execute("PRAGMA data_version").fetchone()[0], self._writes)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error


def _prepare(path: Path) -> None:
    """Create the directory and the file with their modes before SQLite does; its -wal and -shm copy the file's."""
    path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            os.fchmod(descriptor, FILE_MODE)
            log.warning("store-mode-tightened", file=str(path), mode=f"{mode:04o}")
    finally:
        os.close(descriptor)
