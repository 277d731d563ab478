"""What ``gatecast token ...`` does, without the parsing of arguments; it works on the store's file itself.

A running gate sees the change within a second. Each function returns JSON-able values with times as ISO 8601
text; each render_ function makes text of them. All raise StoreError and TokenError.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from proxy.core.text import fields, harmless, iso, table
from proxy.identity.tokens import MAX_SECONDS, Tokens
from proxy.store.database import Database
from proxy.store.tokens import Lock, Token

DATABASE_NAME: Final = "gatecast.db"  # in the state directory

JsonObject = dict[str, Any]


def token_issue(
    database: Path,
    subject: str,
    *,
    groups: Iterable[str] = (),
    agents: Iterable[str] = (),
    seconds: float | None = None,
    note: str = "",
    max_seconds: float = MAX_SECONDS,
    clock: Callable[[], float] = time.time,
) -> JsonObject:
    """Make a token. "token" in the result is the only time that it can be seen."""
    with _tokens(database, clock, max_seconds) as tokens:
        secret, token = tokens.issue(subject, groups, agents, seconds, note)
    return {"token": secret.reveal(), **_token_json(token, clock())}


def token_revoke(database: Path, token_id: str, *, clock: Callable[[], float] = time.time) -> JsonObject:
    """End a token, given by its id or in full."""
    with _tokens(database, clock) as tokens:
        return _token_json(tokens.revoke(token_id), clock())


def token_list(
    database: Path, *, subject: str | None = None, clock: Callable[[], float] = time.time
) -> list[JsonObject]:
    """Return all tokens, the newest first."""
    with _tokens(database, clock) as tokens:
        return [_token_json(token, clock()) for token in tokens.listing(subject)]


def subject_lock(
    database: Path, subject: str, *, reason: str = "", clock: Callable[[], float] = time.time
) -> JsonObject:
    """Let a subject in no more, with any proof; its open sessions get no more permits."""
    with _tokens(database, clock) as tokens:
        return _lock_json(tokens.lock(subject, reason))


def subject_unlock(database: Path, subject: str, *, clock: Callable[[], float] = time.time) -> JsonObject:
    """Let a subject in again."""
    with _tokens(database, clock) as tokens:
        return {"subject": subject, "unlocked": tokens.unlock(subject)}


def subject_locks(database: Path, *, clock: Callable[[], float] = time.time) -> list[JsonObject]:
    """Return the locked subjects."""
    with _tokens(database, clock) as tokens:
        return [_lock_json(lock) for lock in tokens.locks()]


def render_issued(entry: Mapping[str, Any]) -> str:
    """Return the new token with what to do with it."""
    head = fields(
        (
            ("token", entry["token"]),
            ("for", _who(entry)),
            ("groups", ", ".join(entry["groups"])),
            ("expires", entry["expires"]),
            ("id", entry["id"]),
        )
    )
    return (
        f"{head}\nIt is shown this once. Give it as the password (PGPASSWORD for psql); "
        f"gatecast token revoke {entry['id']} ends it.\n"
    )


def render_tokens(found: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of tokens."""
    if not found:
        return "There are no tokens; gatecast token issue makes one.\n"
    rows = [
        (
            entry["id"],
            entry["state"],
            _who(entry),
            ",".join(entry["groups"]),
            entry["expires"],
            entry["used"] or "never",
            entry["note"],
        )
        for entry in found
    ]
    return table(("ID", "STATE", "FOR", "GROUPS", "EXPIRES", "LAST USED", "NOTE"), rows)


def render_revoked(entry: Mapping[str, Any]) -> str:
    """Return one line."""
    return f"Token {entry['id']} of {harmless(_who(entry))} is revoked (since {entry['revoked']}).\n"


@contextmanager
def _tokens(database: Path, clock: Callable[[], float], max_seconds: float = MAX_SECONDS) -> Iterator[Tokens]:
    store = Database(database).open()
    try:
        yield Tokens(store, clock=clock, max_seconds=max_seconds)
    finally:
        store.close()


def _token_json(token: Token, now: float) -> JsonObject:
    return {
        "id": token.id,
        "state": token.state(now),
        "subject": token.subject,
        "groups": list(token.groups),
        "agents": list(token.agents),
        "note": token.note,
        "created": iso(token.created),
        "expires": iso(token.expires),
        "revoked": iso(token.revoked),
        "used": iso(token.used),
        "proof": token.hash,  # as tapes name the login
    }


def _lock_json(lock: Lock) -> JsonObject:
    return {"subject": lock.subject, "reason": lock.reason, "created": iso(lock.created)}


def _who(entry: Mapping[str, Any]) -> str:
    agents = "/".join(entry["agents"])
    return f"{agents} for {entry['subject']}" if agents else str(entry["subject"])
