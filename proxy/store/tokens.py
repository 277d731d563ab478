"""Rows of the tables tokens and locks: functions on a connection, run as work of the Database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a gateway token; never the token itself."""

    id: str
    hash: str
    subject: str
    groups: tuple[str, ...]
    agents: tuple[str, ...]
    note: str
    created: float
    expires: float
    revoked: float | None = None
    used: float | None = None

    def state(self, now: float) -> str:
        """One word for people: active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if now >= self.expires else "active"


@dataclass(frozen=True, slots=True)
class Lock:
    """A subject that may not log in."""

    subject: str
    reason: str
    created: float


@dataclass(frozen=True, slots=True)
class Revocations:
    """What no longer holds: hashes of revoked tokens that would live on, and locked subjects."""

    hashes: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()


def insert(token: Token) -> Callable[[sqlite3.Connection], None]:
    """Add a token."""
    row = (
        token.id,
        token.hash,
        token.subject,
        json.dumps(token.groups),
        json.dumps(token.agents),
        token.note,
        token.created,
        token.expires,
    )

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO tokens (id, hash, subject, groups, agents, note, created, expires) VALUES (?,?,?,?,?,?,?,?)",
            row,
        )

    return work


def find(token_id: str) -> Callable[[sqlite3.Connection], Token | None]:
    """Look a token up by its id."""

    def work(connection: sqlite3.Connection) -> Token | None:
        row = connection.execute("SELECT * FROM tokens WHERE id = ?", (token_id,)).fetchone()
        return None if row is None else _token(row)

    return work


def listing(subject: str | None, limit: int) -> Callable[[sqlite3.Connection], list[Token]]:
    """Return the newest tokens, of one subject or of all."""

    def work(connection: sqlite3.Connection) -> list[Token]:
        rows = connection.execute(
            "SELECT * FROM tokens WHERE ?1 IS NULL OR subject = ?1 ORDER BY created DESC, id LIMIT ?2", (subject, limit)
        )
        return [_token(row) for row in rows]

    return work


def revoke(token_id: str, now: float) -> Callable[[sqlite3.Connection], Token | None]:
    """Revoke a token (the first time counts) and return it; None if there is no such token."""

    def work(connection: sqlite3.Connection) -> Token | None:
        connection.execute("UPDATE tokens SET revoked = ? WHERE id = ? AND revoked IS NULL", (now, token_id))
        return find(token_id)(connection)

    return work


def touch(used: Mapping[str, float]) -> Callable[[sqlite3.Connection], None]:
    """Write down when tokens were last used."""
    rows = [(when, token_id) for token_id, when in used.items()]

    def work(connection: sqlite3.Connection) -> None:
        connection.executemany("UPDATE tokens SET used = max(coalesce(used, 0), ?) WHERE id = ?", rows)

    return work


def lock(entry: Lock) -> Callable[[sqlite3.Connection], None]:
    """Lock a subject out; a second time replaces the reason."""

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT OR REPLACE INTO locks (subject, reason, created) VALUES (?,?,?)",
            (entry.subject, entry.reason, entry.created),
        )

    return work


def unlock(subject: str) -> Callable[[sqlite3.Connection], bool]:
    """Let a subject in again; False if it was not locked."""

    def work(connection: sqlite3.Connection) -> bool:
        return connection.execute("DELETE FROM locks WHERE subject = ?", (subject,)).rowcount > 0

    return work


def locks(connection: sqlite3.Connection) -> list[Lock]:
    """Return all locks, the newest first."""
    rows = connection.execute("SELECT subject, reason, created FROM locks ORDER BY created DESC, subject")
    return [Lock(*row) for row in rows]


def revocations(now: float) -> Callable[[sqlite3.Connection], Revocations]:
    """Return what no longer holds; a token that has expired by now needs no entry."""

    def work(connection: sqlite3.Connection) -> Revocations:
        hashes = connection.execute("SELECT hash FROM tokens WHERE revoked IS NOT NULL AND expires > ?", (now,))
        subjects = connection.execute("SELECT subject FROM locks")
        return Revocations(frozenset(row[0] for row in hashes), frozenset(row[0] for row in subjects))

    return work


def _token(row: sqlite3.Row) -> Token:
    return Token(
        row["id"],
        row["hash"],
        row["subject"],
        tuple(json.loads(row["groups"])),
        tuple(json.loads(row["agents"])),
        row["note"],
        row["created"],
        row["expires"],
        row["revoked"],
        row["used"],
    )
