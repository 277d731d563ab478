"""What the vault knows: ``vault.db`` in the directory of tapes, one SQLite file. The queue of uploads is in it.

Each file that goes to the vault is an item in one state; the table TRANSITIONS holds every step that there is:

    ACTIVE    being written, or not yet known to be finished
    SEALED    finished: to be uploaded
    UPLOADED  in the bucket; size and checksum were read back
    LOCAL_PURGED  the same, and the local copy is gone
    CONFLICT  the bucket has something else under its name, or the file has changed: a person must look
    EXPIRED   two people have said that it shall go; was: the state before
    TOMBSTONED  the node log says that it is gone; now it is deleted, and gone_at tells when that was done

Why it survives a kill at any moment: a transition is one transaction (synchronous=FULL, WAL), made after the act that
it reports, and every act can be repeated. The file is no truth of its own for local tapes: without it, every tape
is noticed and uploaded again, and finds its own object there.

Used from one thread (the Vault's), or by a command that reads beside it. Specification: recorder note, section 10.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from recorder.retention import Hold, SessionFacts

STATE_NAME: Final = "vault.db"
BUSY_SECONDS: Final = 5.0  # sqlite3's own default: a writer holds the lock for one small transaction
ERROR_LIMIT: Final = 500  # characters of an error that are kept: a line or two for a person
_VERSION: Final = 1


class VaultError(Exception):
    """The vault cannot do what was asked; the text says why and is safe to show."""


class State(StrEnum):
    """See the module."""

    ACTIVE = "active"
    SEALED = "sealed"
    UPLOADED = "uploaded"
    LOCAL_PURGED = "local-purged"
    CONFLICT = "conflict"
    EXPIRED = "expired"
    TOMBSTONED = "tombstoned"


TRANSITIONS: Final[Mapping[tuple[State, str], State]] = {
    (State.ACTIVE, "seal"): State.SEALED,
    (State.SEALED, "upload"): State.UPLOADED,
    (State.SEALED, "conflict"): State.CONFLICT,
    (State.UPLOADED, "purge"): State.LOCAL_PURGED,
    (State.UPLOADED, "lose"): State.SEALED,  # the bucket has it no more: once again
    (State.UPLOADED, "conflict"): State.CONFLICT,
    (State.CONFLICT, "retry"): State.SEALED,
    (State.ACTIVE, "expire"): State.EXPIRED,
    (State.SEALED, "expire"): State.EXPIRED,
    (State.UPLOADED, "expire"): State.EXPIRED,
    (State.LOCAL_PURGED, "expire"): State.EXPIRED,
    (State.CONFLICT, "expire"): State.EXPIRED,
    (State.EXPIRED, "tombstone"): State.TOMBSTONED,
}


@dataclass(frozen=True, slots=True)
class Item:
    """One file. path is relative to the directory of tapes, and its name in the bucket. Times: seconds, epoch."""

    path: str
    kind: str  # "segment", "keys" or "log"
    sid: str
    track: str
    number: int
    state: State
    size: int = 0
    sha256: str = ""
    etag: str = ""
    version: str = ""
    ended: float = 0.0
    final: bool = False
    sealed_at: float | None = None
    uploaded_at: float | None = None
    purged_at: float | None = None
    gone_at: float | None = None
    attempts: int = 0
    next_try: float = 0.0
    error: str = ""
    was: str = ""


@dataclass(frozen=True, slots=True)
class Removal:
    """What two people decided to delete: all of a session, or its keys only ("erased")."""

    sid: str
    what: str  # "all" or "keys"
    policy: str
    who: str
    when: float
    tombstoned: bool = False


_ITEM_COLUMNS: Final = ", ".join(Item.__slots__)
_SCHEMA: Final = """
CREATE TABLE items (
  path TEXT PRIMARY KEY, kind TEXT NOT NULL, sid TEXT NOT NULL, track TEXT NOT NULL, number INTEGER NOT NULL,
  state TEXT NOT NULL, size INTEGER NOT NULL DEFAULT 0, sha256 TEXT NOT NULL DEFAULT '', etag TEXT NOT NULL DEFAULT '',
  version TEXT NOT NULL DEFAULT '', ended REAL NOT NULL DEFAULT 0, final INTEGER NOT NULL DEFAULT 0,
  sealed_at REAL, uploaded_at REAL, purged_at REAL, gone_at REAL,
  attempts INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
  was TEXT NOT NULL DEFAULT '') STRICT, WITHOUT ROWID;
CREATE INDEX items_by_state ON items (state, next_try);
CREATE INDEX items_by_sid ON items (sid);
CREATE TABLE sessions (
  sid TEXT PRIMARY KEY, protocol TEXT NOT NULL, target TEXT NOT NULL, subject TEXT NOT NULL, started REAL NOT NULL,
  ended REAL NOT NULL, labels TEXT, verdicts TEXT, complete INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE holds (
  id TEXT PRIMARY KEY, matter TEXT NOT NULL, "by" TEXT NOT NULL, at REAL NOT NULL, session TEXT NOT NULL,
  target TEXT NOT NULL, subject TEXT NOT NULL, since REAL, until REAL, released_by TEXT NOT NULL,
  released_at REAL) STRICT;
CREATE TABLE plans (token TEXT PRIMARY KEY, what TEXT NOT NULL, asked_by TEXT NOT NULL, at REAL NOT NULL,
  reason TEXT NOT NULL, sids TEXT NOT NULL) STRICT;
CREATE TABLE removals (
  sid TEXT NOT NULL, what TEXT NOT NULL, policy TEXT NOT NULL, who TEXT NOT NULL, "when" REAL NOT NULL,
  tombstoned INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (sid, what)) STRICT;
CREATE TABLE history (n INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL,
  subject TEXT NOT NULL, detail TEXT NOT NULL) STRICT;
"""


class VaultState:
    """The file, open. Raises VaultError from every method when SQLite fails."""

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        """Open vault.db in the directory of tapes, or make it (0600). read_only: raises VaultError if it is missing."""
        self.path = directory / STATE_NAME
        try:
            if read_only:
                uri = f"{self.path.absolute().as_uri()}?mode=ro"
                self._db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
            else:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                # Made in one thread and used in another, never in two at once.
                self._db = sqlite3.connect(
                    self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
                )
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
            self._db.row_factory = sqlite3.Row
            self._migrate(read_only)
        except (OSError, sqlite3.Error) as error:
            raise VaultError(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _migrate(self, read_only: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise VaultError(f"{self.path}: made by a newer gatecast (schema {version})")
        if version == 0 and not read_only:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of what is inside, or nothing."""
        if self._db.in_transaction:  # part of an outer one
            yield self._db
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise VaultError(f"{self.path}: {error}") from error

    def _rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise VaultError(f"{self.path}: {error}") from error

    def _items(self, where: str, *values: object) -> list[Item]:
        return [_item(row) for row in self._rows(f"SELECT {_ITEM_COLUMNS} FROM items WHERE {where}", *values)]  # noqa: S608  # our own words

    # -- items ----------------------------------------------------------------------------------------

    def notice(self, items: Sequence[Item]) -> None:
        """Take up files that were not known."""
        marks = ", ".join("?" * len(Item.__slots__))
        with self.transaction() as db:
            db.executemany(
                f"INSERT OR IGNORE INTO items ({_ITEM_COLUMNS}) VALUES ({marks})",  # noqa: S608
                [tuple(getattr(item, name) for name in Item.__slots__) for item in items],
            )

    def forget(self, path: str) -> None:
        """Drop an ACTIVE item whose file is no more."""
        with self.transaction() as db:
            db.execute("DELETE FROM items WHERE path = ? AND state = ?", (path, State.ACTIVE))

    def move(self, path: str, event: str, **fields: object) -> Item:
        """Make one transition and set fields with it. Raises VaultError where there is none."""
        with self.transaction() as db:
            item = self.find(path)
            if item is None:
                raise VaultError(f"{path} is not known")
            state = TRANSITIONS.get((item.state, event))
            if state is None:
                raise VaultError(f"{path} is {item.state}: no {event} from there")
            if event == "expire":
                fields["was"] = item.state
            self._set(db, path, state=state, attempts=0, next_try=0.0, **{"error": "", **fields})
        found = self.find(path)
        assert found is not None
        return found

    def note(self, path: str, **fields: object) -> None:
        """Set fields without a transition: the checksum before an upload, a failure after one."""
        with self.transaction() as db:
            self._set(db, path, **fields)

    def _set(self, db: sqlite3.Connection, path: str, **fields: object) -> None:
        if "error" in fields:
            fields["error"] = str(fields["error"])[:ERROR_LIMIT]
        assert set(fields) <= set(Item.__slots__)
        names = ", ".join(f"{name} = ?" for name in fields)
        db.execute(f"UPDATE items SET {names} WHERE path = ?", (*fields.values(), path))  # noqa: S608

    def find(self, path: str) -> Item | None:
        """Return an item by its path."""
        return next(iter(self._items("path = ?", path)), None)

    def in_state(self, state: State, limit: int = -1) -> list[Item]:
        """Return items of one state, the oldest paths first."""
        return self._items("state = ? ORDER BY path LIMIT ?", state, limit)

    def waiting(self, now: float, limit: int) -> list[Item]:
        """Return items to be uploaded: those that never failed first, then those whose time has come."""
        return self._items(
            "state = ? AND next_try <= ? ORDER BY next_try, sealed_at, path LIMIT ?", State.SEALED, now, limit
        )

    def next_try(self) -> float | None:
        """Return when the next upload is due, None if nothing waits."""
        value = self._rows("SELECT min(next_try) FROM items WHERE state = ?", State.SEALED)[0][0]
        return None if value is None else float(value)

    def purgeable(self, before: float, now: float, limit: int) -> list[Item]:
        """Return uploaded segments that ended before, in the order in which they go: the first of a tape first.

        A .keys file is among them once no segment of its tape is left here, or still to come.
        """
        return self._items(
            "state = 'uploaded' AND kind <> 'log' AND next_try <= ? AND ("
            " (kind = 'segment' AND ended < ? AND NOT EXISTS (SELECT 1 FROM items b WHERE b.sid = items.sid"
            "   AND b.track = items.track AND b.kind = 'segment' AND b.number < items.number"
            "   AND b.state NOT IN ('local-purged', 'expired', 'tombstoned')))"
            " OR (kind = 'keys' AND EXISTS (SELECT 1 FROM items b WHERE b.sid = items.sid AND b.track = items.track"
            "   AND b.kind = 'segment' AND b.final) AND NOT EXISTS (SELECT 1 FROM items b WHERE b.sid = items.sid"
            "   AND b.track = items.track AND b.kind = 'segment' AND b.state <> 'local-purged'))"
            ") ORDER BY kind DESC, path LIMIT ?",
            now,
            before,
            limit,
        )

    def of_session(self, sid: str) -> list[Item]:
        """Return all items of a session, main track first, in order."""
        return self._items("sid = ? ORDER BY track, kind DESC, number", sid)

    def paths_under(self, folder: str) -> set[str]:
        """Return the known paths in a folder, without its subfolders' where it is a day's."""
        rows = self._rows("SELECT path FROM items WHERE path >= ? AND path < ?", f"{folder}/", f"{folder}0")
        return {row[0] for row in rows}

    # -- sessions -------------------------------------------------------------------------------------

    def learn(self, facts: SessionFacts, *, complete: bool) -> None:
        """Add what one segment tells of its session to what is known."""
        with self.transaction() as db:
            known = self.session(facts.sid)
            verdicts, labels = facts.verdicts, facts.labels
            if known is not None:
                both = (known[0].verdicts, facts.verdicts)
                verdicts = both[0] | both[1] if both[0] is not None and both[1] is not None else None
                labels = known[0].labels if known[0].labels is not None else labels
                complete = complete or known[1]
            db.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    facts.sid,
                    facts.protocol,
                    facts.target,
                    facts.subject,
                    facts.started,
                    max(facts.ended, known[0].ended if known else 0.0),
                    None if labels is None else json.dumps(dict(labels)),
                    None if verdicts is None else json.dumps(sorted(verdicts)),
                    int(complete),
                ),
            )

    def session(self, sid: str) -> tuple[SessionFacts, bool] | None:
        """Return what is known of a session, and whether its last segment is among that."""
        rows = self._rows("SELECT * FROM sessions WHERE sid = ?", sid)
        return (_facts(rows[0]), bool(rows[0]["complete"])) if rows else None

    def ended_before(self, before: float, sid: str = "") -> Iterator[SessionFacts]:
        """Yield complete sessions (or this one) that ended before, the oldest first; not those gone or going."""
        sql = (
            "SELECT * FROM sessions s WHERE complete AND ended <= ? AND (? = '' OR sid = ?) AND NOT EXISTS"
            " (SELECT 1 FROM removals r WHERE r.sid = s.sid AND r.what = 'all')"
            " AND NOT EXISTS (SELECT 1 FROM items i WHERE i.sid = s.sid AND i.state = 'active') ORDER BY ended"
        )
        try:
            yield from map(_facts, self._db.execute(sql, (before, sid, sid)))
        except sqlite3.Error as error:
            raise VaultError(f"{self.path}: {error}") from error

    def find_sessions(self, beginning: str) -> list[str]:
        """Return the ids that begin so, at most two: one is found, two are too many."""
        rows = self._rows(
            "SELECT DISTINCT sid FROM items WHERE sid >= ? AND sid < ? AND sid <> '' LIMIT 2",
            beginning,
            f"{beginning}~",
        )
        return [row[0] for row in rows]

    def known_elsewhere(self, sid: str) -> bool:
        """Tell whether the bucket has all segments of the session that are not here (verify's question)."""
        items = [item for item in self.of_session(sid) if item.kind == "segment"]
        # What is only about to go has no tombstone yet, and is in the bucket still.
        states = [item.was if item.state is State.EXPIRED else item.state for item in items]
        return State.LOCAL_PURGED in states and State.TOMBSTONED not in states and State.CONFLICT not in states

    def is_going(self, sid: str, what: str) -> bool:
        """Tell whether a removal of this kind was decided on already."""
        return bool(self._rows("SELECT 1 FROM removals WHERE sid = ? AND what = ?", sid, what))

    # -- removals, history, numbers -------------------------------------------------------------------

    def removals(self) -> list[Removal]:
        """Return what is to be deleted and not yet gone."""
        return [
            Removal(row["sid"], row["what"], row["policy"], row["who"], row["when"], bool(row["tombstoned"]))
            for row in self._rows(
                "SELECT * FROM removals r WHERE NOT tombstoned OR EXISTS"
                " (SELECT 1 FROM items i WHERE i.sid = r.sid AND i.state = 'tombstoned' AND i.gone_at IS NULL)"
            )
        ]

    def record(self, at: float, who: str, action: str, subject: str, detail: Mapping[str, Any] | None = None) -> None:
        """Write one line of history; nothing ever removes one."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO history (at, who, action, subject, detail) VALUES (?, ?, ?, ?, ?)",
                (at, who, action, subject, json.dumps(dict(detail or {}))),
            )

    def history(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest lines of the history, the newest first."""
        rows = self._rows("SELECT * FROM history ORDER BY n DESC LIMIT ?", limit)
        return [{**dict(row), "detail": json.loads(row["detail"])} for row in rows]

    def holds(self, *, released: bool = False) -> list[Hold]:
        """Return the holds in force; released: those that were, too."""
        where = "1" if released else "released_at IS NULL"
        return [Hold(**dict(row)) for row in self._rows(f"SELECT * FROM holds WHERE {where} ORDER BY at")]  # noqa: S608

    def summary(self) -> dict[str, Any]:
        """Return counts and bytes by state, the oldest that waits, the last error."""
        states = {
            row["state"]: {"count": row["n"], "bytes": row["size"]}
            for row in self._rows("SELECT state, count(*) n, sum(size) size FROM items GROUP BY state")
        }
        waits = self._rows("SELECT count(*) n, coalesce(sum(size), 0) size, min(sealed_at) oldest FROM items"
                           " WHERE state = 'sealed'")[0]  # fmt: skip
        errors = self._rows(
            "SELECT path, error, attempts FROM items WHERE error <> '' AND gone_at IS NULL"
            " ORDER BY state = 'conflict' DESC, next_try DESC LIMIT 1"
        )
        return {
            "states": states,
            "backlog": {"count": waits["n"], "bytes": waits["size"], "oldest": waits["oldest"]},
            "last_error": dict(errors[0]) if errors else None,
            "to_delete": len(self.removals()),
            "holds": len(self.holds()),
        }


def _item(row: sqlite3.Row) -> Item:
    values = dict(row)
    return Item(**{**values, "state": State(values["state"]), "final": bool(values["final"])})


def _facts(row: sqlite3.Row) -> SessionFacts:
    return SessionFacts(
        sid=row["sid"],
        protocol=row["protocol"],
        target=row["target"],
        subject=row["subject"],
        started=row["started"],
        ended=row["ended"],
        labels=None if row["labels"] is None else json.loads(row["labels"]),
        verdicts=None if row["verdicts"] is None else frozenset(json.loads(row["verdicts"])),
    )


def elsewhere(directory: Path) -> Callable[[str], bool]:
    """Return what verify asks of sessions without files (verify.py): whether the vault has them. Raises VaultError."""
    if not (directory / STATE_NAME).exists():
        return lambda sid: False
    state = VaultState(directory, read_only=True)
    return state.known_elsewhere
