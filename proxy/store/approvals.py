"""Rows of the table approvals: functions on a connection, run as work of the Database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["pending", "approved", "denied", "expired", "withdrawn"]
STATES: tuple[State, ...] = ("pending", "approved", "denied", "expired", "withdrawn")

_COLUMNS = (
    "id, process, session, subject, agents, issuer, target, protocol, verb, kind, objects, exact, text, text_bytes, "
    "text_sha256, wire_sha256, rule, reason, approvers, created, expires, state, decided, decided_by, decided_as, "
    "decided_why, database"
)
_LISTS = ("agents", "objects", "approvers")


@dataclass(frozen=True, slots=True)
class Record:
    """One approval: who asks for what, who may decide, and how it ended. text is cut; the hashes are of all of it."""

    id: str
    process: str
    session: str
    subject: str
    agents: tuple[str, ...]
    issuer: str
    target: str
    protocol: str
    verb: str
    kind: str
    objects: tuple[str, ...]
    exact: bool
    text: str
    text_bytes: int
    text_sha256: str
    wire_sha256: str
    rule: str
    reason: str
    approvers: tuple[str, ...]
    created: float
    expires: float
    state: State = "pending"
    decided: float | None = None
    decided_by: str = ""
    decided_as: str = ""
    decided_why: str = ""
    database: str = ""  # as in Target: the login name where the protocol is ssh


def insert(
    record: Record, *, subject_limit: int | None = None, gateway_limit: int | None = None
) -> Callable[[sqlite3.Connection], str]:
    """Add an approval; returns '', or which limit of pending ones it would break: "subject" or "gateway".

    Counted in the same transaction, so that the limits hold over all processes of a gateway.
    sqlite3.IntegrityError (as StoreError) if the id is taken.
    """
    values = [getattr(record, name.strip()) for name in _COLUMNS.split(",")]
    row = [json.dumps(value) if isinstance(value, tuple) else value for value in values]

    def work(connection: sqlite3.Connection) -> str:
        waiting, own = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE subject = ?) FROM approvals "
            "WHERE state = 'pending' AND expires > ?",
            (record.subject, record.created),
        ).fetchone()
        if subject_limit is not None and own >= subject_limit:
            return "subject"
        if gateway_limit is not None and waiting >= gateway_limit:
            return "gateway"
        marks = ",".join("?" * len(row))
        connection.execute(f"INSERT INTO approvals ({_COLUMNS}) VALUES ({marks})", row)  # noqa: S608  # our own names
        return ""

    return work


def settle(
    approval: str, state: State, now: float, by: str = "", matched: str = "", why: str = "", was: State = "pending"
) -> Callable[[sqlite3.Connection], bool]:
    """Write down how an approval ended; False if it was not in the state `was` any more."""

    def work(connection: sqlite3.Connection) -> bool:
        cursor = connection.execute(
            "UPDATE approvals SET state = ?, decided = ?, decided_by = ?, decided_as = ?, decided_why = ? "
            "WHERE id = ? AND state = ?",
            (state, now, by, matched, why, approval, was),
        )
        return cursor.rowcount == 1

    return work


def find(approval: str) -> Callable[[sqlite3.Connection], Record | None]:
    """Look an approval up by its id."""

    def work(connection: sqlite3.Connection) -> Record | None:
        row = connection.execute(f"SELECT {_COLUMNS} FROM approvals WHERE id = ?", (approval,)).fetchone()  # noqa: S608
        return None if row is None else _record(row)

    return work


def listing(
    state: State | None, subject: str | None, target: str | None, limit: int
) -> Callable[[sqlite3.Connection], list[Record]]:
    """Return the newest approvals that match the filters; None matches all."""

    def work(connection: sqlite3.Connection) -> list[Record]:
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM approvals WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR subject = ?2) "  # noqa: S608
            "AND (?3 IS NULL OR target = ?3) ORDER BY created DESC, id LIMIT ?4",
            (state, subject, target, limit),
        )
        return [_record(row) for row in rows]

    return work


def recover(process: str, now: float) -> Callable[[sqlite3.Connection], int]:
    """End what earlier processes left pending: expired if its time is over, else withdrawn. Returns how many."""

    def work(connection: sqlite3.Connection) -> int:
        cursor = connection.execute(
            "UPDATE approvals SET state = CASE WHEN expires <= ?1 THEN 'expired' ELSE 'withdrawn' END, decided = ?1, "
            "decided_why = 'the gateway was restarted' WHERE state = 'pending' AND process <> ?2",
            (now, process),
        )
        return cursor.rowcount

    return work


def abandon(process: str, now: float) -> Callable[[sqlite3.Connection], int]:
    """End what a process that is gone left pending. Returns how many."""

    def work(connection: sqlite3.Connection) -> int:
        cursor = connection.execute(
            "UPDATE approvals SET state = CASE WHEN expires <= ?1 THEN 'expired' ELSE 'withdrawn' END, decided = ?1, "
            "decided_why = 'the process that waited for it ended' WHERE state = 'pending' AND process = ?2",
            (now, process),
        )
        return cursor.rowcount

    return work


def prune(before: float) -> Callable[[sqlite3.Connection], int]:
    """Forget what ended before that time; the tapes keep it. Returns how many."""

    def work(connection: sqlite3.Connection) -> int:
        return connection.execute("DELETE FROM approvals WHERE state <> 'pending' AND created < ?", (before,)).rowcount

    return work


def _record(row: sqlite3.Row) -> Record:
    values = dict(row)
    for name in _LISTS:
        values[name] = tuple(json.loads(values[name]))
    values["exact"] = bool(values["exact"])
    return Record(**values)
