"""Rows of the table jobs: functions on a connection, run as work of the Database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any, Final

from proxy.core.jobs import (
    ENDED,
    ENDED_SECONDS,
    REASON_LIMIT,
    REPLY_LIMIT,
    REQUEST_LIMIT,
    SCHEMA_LIMIT,
    Entry,
    Key,
    Owner,
    State,
)
from proxy.core.verdict import Mask
from proxy.store.database import StoreError

Names = tuple[str, ...]  # of one entry: its target, kind, project, id and owner

LIST_LIMIT: Final = 1000  # jobs.list gives at most so many a page
_NAMES: Final = ("target", "kind", "project", "id", "subject", "issuer", "agents")
WHERE: Final = " AND ".join(f"{name} = ?" for name in _NAMES)
_VALUES: Final = tuple(each.name for each in fields(Entry) if each.name not in ("key", "owner"))
_COLUMNS: Final = (*_NAMES, "location", *_VALUES)
_INSERT: Final = f"INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
# What settle and amend may change. location: where the target has put a job whose request named no place.
_CHANGES: Final = frozenset({
    "location", "rule", "masks", "facts", "schema", "destination", "parent", "mark", "request", "approval", "reason",
    "deadline", "reply_status", "reply", "session", "process",
})  # fmt: skip


def claim(new: Entry) -> Callable[[sqlite3.Connection], Entry | None]:
    """Add an entry, or return the one that has its id: whosoever that is."""

    key = new.key

    def work(at: sqlite3.Connection) -> Entry | None:
        place = (key.target, key.kind, key.project, key.id)
        same = "target = ? AND kind = ? AND project = ? AND id = ?"
        at.execute(f"DELETE FROM jobs WHERE {same} AND expires <= ?", (*place, new.created))  # noqa: S608
        row = at.execute(f"SELECT * FROM jobs WHERE {same} LIMIT 1", place).fetchone()  # noqa: S608
        if row is None:
            at.execute(f"INSERT {_INSERT}", _row(new))
            return None
        return _entry(row)

    return work


def add(new: list[Entry]) -> Callable[[sqlite3.Connection], None]:
    """Add entries of ids that an answer has named; what is known of one stays."""

    def work(at: sqlite3.Connection) -> None:
        for one in new:
            row = at.execute(f"SELECT * FROM jobs WHERE {WHERE}", names_of(one.key, one.owner)).fetchone()  # noqa: S608
            old = None if row is None else _entry(row)
            if old is not None and old.state != "open":
                continue  # a job under way is not opened by an answer that merely names it
            if old is not None and one.created < old.expires:
                # A cached result has one table for two runs of a query; whatever either permit masks stays masked.
                one = replace(
                    one,
                    masks=tuple(dict.fromkeys(old.masks + one.masks)),
                    schema=old.schema if one.schema is None else one.schema,
                )
            at.execute(f"INSERT OR REPLACE {_INSERT}", _row(one))

    return work


def delete(names: Names) -> Callable[[sqlite3.Connection], int]:
    """Drop one."""

    def work(at: sqlite3.Connection) -> int:
        return at.execute(f"DELETE FROM jobs WHERE {WHERE}", names).rowcount  # noqa: S608

    return work


def find(names: Names) -> Callable[[sqlite3.Connection], tuple[Entry | None, int]]:
    """Look one up; and how large it is in memory."""

    def work(at: sqlite3.Connection) -> tuple[Entry | None, int]:
        row = at.execute(f"SELECT * FROM jobs WHERE {WHERE}", names).fetchone()  # noqa: S608
        if row is None:
            return None, 0
        return _entry(row), sum(len(value) for value in row if isinstance(value, str | bytes)) + 500

    return work


def update(
    names: Names, state: State | None, was: list[State], expires: float | None, columns: dict[str, Any], now: float
) -> Callable[[sqlite3.Connection], Entry | None]:
    """Change one that is in a state of `was`, and return it; None if it is not. state, expires None: as they are."""
    sets = {**columns, "changed": now}
    if state is not None:
        sets["state"] = state
    if expires is not None:
        sets["expires"] = expires
    text = ", ".join(f"{name} = ?" for name in sets)

    def work(at: sqlite3.Connection) -> Entry | None:
        row = at.execute(
            f"UPDATE jobs SET {text} WHERE {WHERE} AND expires > ? "  # noqa: S608  # our own names
            f"AND state IN ({', '.join('?' * len(was))}) RETURNING *",
            (*sets.values(), *names, now, *was),
        ).fetchone()
        return None if row is None else _entry(row)

    return work


def owned(
    owner: Owner, target: str, project: str, ids: list[str], now: float
) -> Callable[[sqlite3.Connection], dict[str, str]]:
    """Return which of some jobs are the owner's, each with its location."""

    whose = (owner.subject, owner.issuer, json.dumps(owner.agents))

    def work(at: sqlite3.Connection) -> dict[str, str]:
        rows = at.execute(
            "SELECT id, location FROM jobs WHERE target = ? AND kind = 'job' AND project = ? AND subject = ? "
            "AND issuer = ? AND agents = ? AND expires > ? AND id IN (SELECT value FROM json_each(?))",
            (target, project, *whose, now, json.dumps(ids)),
        )
        return {row["id"]: row["location"] for row in rows}

    return work


def waiting(owner: Owner, target: str, project: str, now: float) -> Callable[[sqlite3.Connection], list[Entry]]:
    """Return an owner's jobs that the target does not know, the newest first."""

    whose = (owner.subject, owner.issuer, json.dumps(owner.agents))

    def work(at: sqlite3.Connection) -> list[Entry]:
        rows = at.execute(
            "SELECT * FROM jobs WHERE subject = ? AND issuer = ? AND agents = ? AND target = ? AND project = ? "
            "AND kind = 'job' AND expires > ? AND state IN ('held', 'approved', 'sent', 'denied', 'expired', 'stopped')"
            " ORDER BY created DESC, id LIMIT ?",
            (*whose, target, project, now, LIST_LIMIT),
        )
        return [_entry(row) for row in rows]

    return work


def orphan(process: str | None, own: str, now: float) -> Callable[[sqlite3.Connection], int]:
    """Take from a dead process (None: from all but this one) what it left; settle what was decided meanwhile."""

    def work(at: sqlite3.Connection) -> int:
        mine, who = ("process = ?", process) if process is not None else ("process <> ?", own)
        gone = at.execute(f"DELETE FROM jobs WHERE state = 'claimed' AND {mine}", (who,)).rowcount  # noqa: S608
        rows = at.execute(
            f"SELECT jobs.rowid AS row, jobs.state AS state, jobs.deadline, approvals.state AS outcome, decided_by, "  # noqa: S608
            f"decided_why FROM jobs LEFT JOIN approvals ON approvals.id = jobs.approval "
            f"WHERE jobs.state IN ('held', 'approved', 'sent') AND jobs.{mine}",
            (who,),
        ).fetchall()
        for row in rows:
            state, reason = _left(row, now)
            expires = now + ENDED_SECONDS if state in ENDED else None
            at.execute(
                "UPDATE jobs SET state = ?, process = '', changed = ?, reason = CASE WHEN ? <> '' THEN ? ELSE reason "
                "END, expires = coalesce(?, expires) WHERE rowid = ?",
                (state, now, reason, reason, expires, row["row"]),
            )
        return gone + len(rows)

    return work


def _left(row: sqlite3.Row, now: float) -> tuple[State, str]:
    """What becomes of a job whose process is gone, and why."""
    late = row["deadline"] is not None and now >= row["deadline"]
    match row["state"], row["outcome"]:
        case "held", "denied":
            why = f": {row['decided_why']}" if row["decided_why"] else ""
            return "denied", f"denied by {row['decided_by']}{why}"[:REASON_LIMIT]
        case (("held" | "approved"), _) if late:
            return "expired", "nobody approved it in time" if row["state"] == "held" else "it was not sent in time"
        case "held", "expired":
            return "expired", "nobody approved it in time"
        case "held", "approved":
            return "approved", ""
        case state, _:
            return state, ""


def adopt(process: str, now: float, limit: int) -> Callable[[sqlite3.Connection], list[Entry]]:
    """Give jobs that nobody looks after to a process, the oldest first."""

    def work(at: sqlite3.Connection) -> list[Entry]:
        rows = at.execute(
            "UPDATE jobs SET process = ?, changed = ? WHERE rowid IN (SELECT rowid FROM jobs WHERE process = '' "
            "AND state IN ('held', 'approved') AND expires > ? ORDER BY created, rowid LIMIT ?) RETURNING *",
            (process, now, now, limit),
        ).fetchall()
        return sorted((_entry(row) for row in rows), key=lambda entry: entry.created)

    return work


def prune(now: float, owner_limit: int) -> Callable[[sqlite3.Connection], int]:
    """Forget what has expired, and the oldest settled entries of owners who have too many. Returns how many."""

    def work(at: sqlite3.Connection) -> int:
        gone = at.execute("DELETE FROM jobs WHERE expires <= ?", (now,)).rowcount
        crowded = at.execute(
            "SELECT subject, issuer, agents FROM jobs GROUP BY subject, issuer, agents HAVING count(*) > ?",
            (owner_limit,),
        ).fetchall()
        for owner in crowded:
            gone += at.execute(
                "DELETE FROM jobs WHERE rowid IN (SELECT rowid FROM jobs WHERE subject = ? AND issuer = ? AND agents = "
                "? ORDER BY created DESC, rowid DESC LIMIT -1 OFFSET ?) "
                "AND state NOT IN ('claimed', 'held', 'approved', 'sent')",
                (*owner, owner_limit),
            ).rowcount
        return gone

    return work


# -- values and columns ---------------------------------------------------------------------------------


def names_of(key: Key, owner: Owner) -> Names:
    """The columns that tell an entry from all others."""

    return (key.target, key.kind, key.project, key.id, owner.subject, owner.issuer, json.dumps(owner.agents))


def _row(entry: Entry) -> tuple[Any, ...]:
    values = (written(name, getattr(entry, name)) if name in _CHANGES else getattr(entry, name) for name in _VALUES)
    return (*names_of(entry.key, entry.owner), entry.key.location, *values)


def written(name: str, value: Any) -> Any:
    """A field of Entry as its column holds it. What is too long to keep is an error before it is written."""
    if name not in _CHANGES:
        raise ValueError(f"{name} is not changed so")
    if name == "masks":
        return json.dumps([asdict(mask) for mask in value])
    if name in ("facts", "schema"):
        text = json.dumps(value)
        if len(text) > SCHEMA_LIMIT:
            raise StoreError(f"{name} of a job has more than {SCHEMA_LIMIT} bytes")
        return text
    if name == "request" and len(value) > REQUEST_LIMIT:
        raise StoreError(f"a request of more than {REQUEST_LIMIT} bytes cannot be held")
    if name == "reply":
        return value[:REPLY_LIMIT]
    if isinstance(value, str):  # a lone surrogate fits no database
        value = value.encode("utf-8", "backslashreplace").decode()
        return value[:REASON_LIMIT] if name == "reason" else value
    return value


def check(entry: Entry) -> None:
    """Raise StoreError if nothing can have this id."""

    if not entry.key.sane:
        raise StoreError("this cannot be the id of anything")


def _entry(row: sqlite3.Row) -> Entry:
    values = dict(row)
    try:
        key = Key(*(values.pop(name) for name in ("target", "kind", "project", "id", "location")))
        owner = Owner(values.pop("subject"), values.pop("issuer"), tuple(json.loads(values.pop("agents"))))
        values["masks"] = tuple(_mask(one) for one in json.loads(values["masks"]))
        values["facts"] = json.loads(values["facts"])
        values["schema"] = json.loads(values["schema"])
        return Entry(key, owner, **values)
    except (TypeError, ValueError, AttributeError) as error:  # fails closed: no entry with fewer masks than it has
        raise StoreError("a row of jobs cannot be read; was it made by another version?") from error


def _mask(values: dict[str, Any]) -> Mask:
    named: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Mask(**named)


def same_place(asked: str, known: str) -> bool:
    """Whether a look-up at a location may find what is at another; "" is not known."""
    return not asked or not known or asked.casefold() == known.casefold()
