"""A target database's catalogue as the gate knows it: read on a connection of the gate's own, kept as a snapshot.

refresh() dials the target with the gate's credential (dial.py, so with the very TLS and login rules of the users'
sessions, and no libpq needed), reads in one read-only transaction by simple queries, and leaves: everything at first
and once in MAX_AGE_SECONDS, else only what has changed since (catalog_queries.py), for a migration of many
statements asks after each. No connection stays open; no setting outlives the transaction, so a pooler before the
target is not polluted. The definitions of views are read apart with a short lock_timeout, for pg_get_viewdef locks
what the view reads: where that fails, pg_depend alone has to do. A whole reading is parsed in a thread.

Look-ups never wait. Before the first load, and after one that failed, they know nothing: resolve gives (), origins
None, so that the caller fails closed; a snapshot that may be wrong is not kept. stale() is for DDL that was seen;
old tells that it, or MAX_AGE_SECONDS, has passed. DDL in a transaction still open cannot be seen from here.

Left out: watching for DDL that does not come through the gate (its window is MAX_AGE_SECONDS, and an unknown oid).

Source: PostgreSQL 18 documentation chapter 52 (System Catalogs); every query was run on 15 and 18 and keeps to
columns that 12 has.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from protocols.postgres import catalog_queries as queries
from protocols.postgres import startup
from protocols.postgres.catalog_snapshot import EMPTY, CatalogColumn, Row, Snapshot, Tables
from protocols.postgres.dial import TargetLink, dial
from protocols.postgres.images import UserType
from protocols.postgres.meaning import Known
from proxy.core.errors import TargetPeerError
from proxy.core.gate import Reader
from proxy.core.parties import Credential, Target

LOAD_SECONDS: Final = 30.0  # for everything; ten thousand relations take about one
MAX_AGE_SECONDS: Final = 60.0  # how long DDL that went past the gate stays unnoticed
RETRY_SECONDS: Final = 5.0  # after a failure; in between the failure is given again at once
RESULT_BYTES_LIMIT: Final = 256 * 1024 * 1024  # about 500,000 relations
READ_BYTES: Final = 256 * 1024
CHANGED_LIMIT: Final = 2000  # relations; they are taken in on the event loop, in about 10 ms

_APPLICATION: Final = "gatecast catalogue"
_SETUP: Final = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "SELECT pg_catalog.current_setting('search_path')",
    "SET LOCAL search_path = pg_catalog",
    f"SET LOCAL statement_timeout = {int(LOAD_SECONDS * 1000)}",
    queries.MARK,
)
_DEFINITIONS: Final = (
    "BEGIN READ ONLY",
    "SET LOCAL search_path = pg_catalog",
    "SET LOCAL lock_timeout = '500ms'",
    f"SET LOCAL statement_timeout = {int(LOAD_SECONDS * 1000)}",
)


class CatalogError(TargetPeerError):
    """The catalogue could not be read; whoever depends on it fails closed."""


class Catalog:
    """The catalogue of target.database, as the gate's user sees it."""

    def __init__(
        self,
        target: Target,
        credential: Credential,
        reader: Reader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._credential = credential
        self._reader = reader
        self._clock = clock
        self._lock = asyncio.Lock()
        self._snapshot = EMPTY
        self._content = b""
        self._loaded_at: float | None = None
        self._failed: tuple[float, str] | None = None
        self._whole_at = 0.0  # when everything was read
        self._mark: tuple[str, int] | None = None  # of the last reading: see catalog_queries.MARK
        self._last_change: object = None
        self._changes = 0  # counts stale(); a load covers those before its start
        self._covered = -1
        self.version = 0

    # -- keeping up ------------------------------------------------------------------------------------

    @property
    def old(self) -> bool:
        """Whether it has to be read (again) before a decision relies on it."""
        if self._loaded_at is None or self._covered != self._changes:
            return True
        return self._clock() - self._loaded_at > MAX_AGE_SECONDS

    def stale(self) -> None:
        """Say that DDL has passed."""
        self._changes += 1

    def use(self, credential: Credential) -> None:
        """Log in with this credential from now on: the last one may have expired."""
        self._credential = credential

    async def refresh(self) -> None:
        """Read the catalogue; whoever asks while somebody else's reading has not begun shares it. Raises CatalogError.

        After a failure nothing is known, and for RETRY_SECONDS nothing is tried.
        """
        changes = self._changes
        begun = self._clock()
        async with self._lock:
            if self._loaded_at is not None and self._loaded_at > begun and self._covered >= changes:
                return
            if self._failed is not None and self._clock() - self._failed[0] < RETRY_SECONDS:
                raise CatalogError(self._failed[1])
            covered, started = self._changes, self._clock()
            try:
                async with asyncio.timeout(LOAD_SECONDS):
                    await self._read(started)
            except (TargetPeerError, TimeoutError) as error:
                text = "the target's catalogue could not be read"
                self._forget(text)
                raise CatalogError(f"{text}: {_reason(error)}") from error
            self._failed = None
            self._covered, self._loaded_at = covered, started

    def _forget(self, text: str) -> None:
        self._failed = (self._clock(), text)
        self._loaded_at = None
        self._content = b""
        self._mark = None
        if self._snapshot is not EMPTY:
            self._snapshot = EMPTY
            self.version += 1

    async def _read(self, now: float) -> None:
        parameters = {"client_encoding": "UTF8", "application_name": _APPLICATION}
        if self._target.database:
            parameters["database"] = self._target.database
        link = await dial(self._target, self._credential, parameters)
        try:
            # All of it now and then: should a change leave no trace, it goes unnoticed no longer than others.
            due = self._mark is None or now - self._whole_at > MAX_AGE_SECONDS
            try:
                known = not due and await self._read_changes(link)
            except (ValueError, TypeError, IndexError, struct.error) as error:
                raise CatalogError("the target sent what is no catalogue") from error
            if not known:
                await self._read_all(link)
                self._whole_at = now
            await link.stream.write(startup.encode_message(b"X", b""))
        finally:
            await link.stream.close()

    async def _read_all(self, link: TargetLink) -> None:
        main = await _query(link, "; ".join((*_SETUP, *queries.everything().values(), "COMMIT")))
        definitions = await _query(link, "; ".join((*_DEFINITIONS, queries.definitions(), "COMMIT")))
        code = _error(main)
        if code is not None:
            raise CatalogError(f"the target answered with SQLSTATE {code}")
        snapshot, mark, content = await asyncio.to_thread(self._build, main, definitions)
        self._mark, self._last_change = mark, None
        if content != self._content:
            self._snapshot, self._content = snapshot, content
            self.version += 1

    async def _read_changes(self, link: TargetLink) -> bool:
        """Take in what has changed since the last reading; False where everything has to be read instead."""
        assert self._mark is not None
        asked = queries.changes(self._mark[1])
        first = await _query(link, "; ".join((*_SETUP, *asked.values())))
        changed: frozenset[int] = frozenset()
        if _error(first) is None:
            path, marked, *results = _results(first)
            found = dict(zip(asked, results, strict=True))
            mark, changed, live = _mark(marked), _oids(found.pop("changed")), _oids(found.pop("live"))
        if _error(first) is not None or mark[0] != self._mark[0] or len(changed) > CHANGED_LIMIT:
            await _query(link, "ROLLBACK")
            return False  # another server, too much, or what speaks like PostgreSQL and is not
        details = queries.of_relations(changed)
        second = await _query(link, "; ".join((*details.values(), "COMMIT")))
        if _error(second) is not None:
            await _query(link, "ROLLBACK")
            return False
        found.update(zip(details, _results(second), strict=True))
        views = self._snapshot.readers(changed, found["reads"], found["functions"])
        if views:
            third = await _query(link, "; ".join((*_DEFINITIONS, queries.definitions(views), "COMMIT")))
            found["definitions"] = _results(third)[0] if _error(third) is None else []
        self._mark = mark
        change = (changed, live, path, found)
        if change != self._last_change:
            # From here to the end nothing is awaited: nobody sees half of it.
            self._last_change = change
            tables = Tables(**found, search_path=path[0][0] or "")
            if self._snapshot.change(changed, live, views, tables):
                self._content = b""
                self.version += 1
        return True

    def _build(self, main: bytes, definitions: bytes) -> tuple[Snapshot, tuple[str, int], bytes]:
        """Make a snapshot of the answers, in a thread."""
        try:
            path, marked, *results = _results(main)
            tables = Tables(**dict(zip(queries.everything(), results, strict=True)), search_path=path[0][0] or "")
            if _error(definitions) is None:
                tables = replace(tables, definitions=_results(definitions)[0])
            snapshot = Snapshot(tables, self._reader)
            mark = _mark(marked)
        except (ValueError, TypeError, IndexError, struct.error) as error:
            raise CatalogError("the target sent what is no catalogue") from error
        content = repr((path, results)).encode("utf-8", "surrogateescape") + definitions
        return snapshot, mark, hashlib.sha256(content).digest()

    # -- look-ups: see catalog_snapshot.py ---------------------------------------------------------------

    @property
    def search_path(self) -> tuple[str, ...] | None:
        """The path of a session of the gate's user that sets none; None where it is not known."""
        return self._snapshot.search_path

    def resolve(self, name: str, search_path: tuple[str, ...] | None) -> tuple[str, ...]:
        """Return every "schema.relation" that a written name may mean."""
        return self._snapshot.resolve(name, search_path)

    def bases(self, name: str) -> frozenset[str]:
        """Return the tables behind "schema.relation"."""
        return self._snapshot.bases(name)

    def known(self, name: str) -> Known | None:
        """Return what there is to know of "schema.relation", None where it is not known."""
        return self._snapshot.known(name)

    def hides(self, name: str) -> bool:
        """Tell whether a view calls functions of users, so that bases() may not be all."""
        return self._snapshot.hides(name)

    def origins(self, oid: int, attnum: int) -> tuple[str, ...] | None:
        """Return every "schema.relation.column" that values of (oid, attnum) may come from, None = unknown."""
        return self._snapshot.origins(oid, attnum)

    def columns(self, name: str) -> tuple[CatalogColumn, ...]:
        """Return the columns of "schema.relation" in order."""
        return self._snapshot.columns(name)

    def function_name(self, oid: int) -> str | None:
        """Return "schema.function"."""
        return self._snapshot.function_name(oid)

    def user_type(self, oid: int) -> UserType | None:
        """Return what a type is that is not built in."""
        return self._snapshot.user_type(oid)


def _reason(error: BaseException) -> str:
    return getattr(error, "reason", "") or ("it took too long" if isinstance(error, TimeoutError) else str(error))


def _mark(rows: Sequence[Row]) -> tuple[str, int]:
    ((where, horizon),) = rows
    return where or "", int(horizon or 0)


def _oids(rows: Sequence[Row]) -> frozenset[int]:
    """Read the one cell of a list of oids."""
    return frozenset(map(int, (rows[0][0] or "").split(","))) if rows[0][0] else frozenset()


# -- a simple query and its answer ------------------------------------------------------------------------


async def _query(link: TargetLink, text: str) -> bytes:
    """Run a simple query and return all messages of its answer, ReadyForQuery included."""
    await link.stream.write(startup.encode_message(b"Q", text.encode() + b"\0"))
    answer = bytearray()
    position = 0
    while True:
        data = await link.stream.read(READ_BYTES)
        if not data:
            raise CatalogError("the target closed the connection")
        answer += data
        while len(answer) >= position + 5:
            kind = answer[position]
            position += 1 + int.from_bytes(answer[position + 1 : position + 5], "big")
            if kind == ord("Z"):
                return bytes(answer)
            if position > RESULT_BYTES_LIMIT:
                raise CatalogError(f"the catalogue is larger than {RESULT_BYTES_LIMIT} bytes")


def _messages(answer: bytes) -> list[tuple[int, int, int]]:
    """Return (type byte, start of body, end of body) of each message."""
    found = []
    position = 0
    while position + 5 <= len(answer):
        size = int.from_bytes(answer[position + 1 : position + 5], "big")
        if size < 4 or position + 1 + size > len(answer):
            raise CatalogError("the target sent a malformed message")
        found.append((answer[position], position + 5, position + 1 + size))
        position += 1 + size
    return found


def _error(answer: bytes) -> str | None:
    """Return the SQLSTATE of the first error, None where there is none."""
    for kind, start, end in _messages(answer):
        if kind == ord("E"):
            return startup.error_fields(answer[start:end]).get("C", "unknown")[:5]
    return None


def _results(answer: bytes) -> list[list[Row]]:
    """Return the rows of each result in text format, one list a RowDescription."""
    results: list[list[Row]] = []
    for kind, start, end in _messages(answer):
        if kind == ord("T"):
            results.append([])
        elif kind == ord("D"):
            results[-1].append(_cells(answer, start, end))
    return results


def _cells(answer: bytes, start: int, end: int) -> Row:
    (count,) = struct.unpack_from("!H", answer, start)
    position = start + 2
    cells: list[str | None] = []
    for _ in range(count):
        if position + 4 > end:
            raise CatalogError("the target sent a malformed row")
        (size,) = struct.unpack_from("!i", answer, position)
        position += 4
        if size < 0:
            cells.append(None)
            continue
        if position + size > end:
            raise CatalogError("the target sent a malformed row")
        cells.append(answer[position : position + size].decode("utf-8", "surrogateescape"))
        position += size
    return cells
