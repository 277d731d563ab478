"""Rows of the tables ssh_keys, ssh_certificates and ssh_revoked: functions on a connection, run as work."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SshKey:
    """A registered public key. logins: those at targets that it is good for, ("*",) for all."""

    id: str
    hash: str
    key: str
    subject: str
    groups: tuple[str, ...]
    agents: tuple[str, ...]
    logins: tuple[str, ...]
    note: str
    created: float
    expires: float
    revoked: float | None = None
    used: float | None = None

    def state(self, now: float) -> str:
        """One word for people: active, expired or revoked."""
        return _state(self.revoked, self.expires, now)


@dataclass(frozen=True, slots=True)
class SshCertificate:
    """A certificate that was issued here. origin: the proof that it was made for, '' for the operator's word."""

    authority: str
    serial: int
    hash: str
    key_id: str
    subject: str
    groups: tuple[str, ...]
    agents: tuple[str, ...]
    logins: tuple[str, ...]
    origin: str
    created: float
    expires: float
    revoked: float | None = None

    def state(self, now: float) -> str:
        """One word for people: active, expired or revoked."""
        return _state(self.revoked, self.expires, now)


@dataclass(frozen=True, slots=True)
class SshRevocations:
    """What no longer holds: hashes of keys and certificates, and (authority, serial) of certificates."""

    hashes: frozenset[str] = frozenset()
    serials: frozenset[tuple[str, int]] = frozenset()


def add_key(key: SshKey) -> Callable[[sqlite3.Connection], SshKey | None]:
    """Add a key; one that is known already, and not just expired, is returned and nothing is added."""

    def work(connection: sqlite3.Connection) -> SshKey | None:
        known = find_key(key.hash)(connection)
        if known is not None and known.state(key.created) != "expired":
            return known
        connection.execute(
            "INSERT INTO ssh_keys (id, hash, key, subject, groups, agents, logins, note, created, expires)"
            " VALUES (?,?,?,?,?,?,?,?,?,?)",
            (key.id, key.hash, key.key, key.subject, json.dumps(key.groups), json.dumps(key.agents),
             json.dumps(key.logins), key.note, key.created, key.expires),
        )  # fmt: skip
        return None

    return work


def find_key(word: str) -> Callable[[sqlite3.Connection], SshKey | None]:
    """Look a key up by its id or hash. Of several registrations the newest counts, but a revocation over all."""

    def work(connection: sqlite3.Connection) -> SshKey | None:
        row = connection.execute(
            "SELECT * FROM ssh_keys WHERE id = ?1 OR hash = ?1 ORDER BY revoked IS NULL, created DESC LIMIT 1", (word,)
        ).fetchone()
        return None if row is None else _key(row)

    return work


def list_keys(subject: str | None, limit: int) -> Callable[[sqlite3.Connection], list[SshKey]]:
    """Return the newest keys, of one subject or of all."""

    def work(connection: sqlite3.Connection) -> list[SshKey]:
        rows = connection.execute(
            "SELECT * FROM ssh_keys WHERE ?1 IS NULL OR subject = ?1 ORDER BY created DESC, id LIMIT ?2",
            (subject, limit),
        )
        return [_key(row) for row in rows]

    return work


def revoke_key(word: str, now: float) -> Callable[[sqlite3.Connection], SshKey | None]:
    """Revoke a key by its id or hash (the first time counts) and return it; None if there is none."""

    def work(connection: sqlite3.Connection) -> SshKey | None:
        connection.execute(
            "UPDATE ssh_keys SET revoked = ?2 WHERE (id = ?1 OR hash = ?1) AND revoked IS NULL", (word, now)
        )
        return find_key(word)(connection)

    return work


def touch_keys(used: Mapping[str, float]) -> Callable[[sqlite3.Connection], None]:
    """Write down when keys were last used, by their hashes; those of certificates are nobody's here."""
    rows = [(when, proof) for proof, when in used.items()]

    def work(connection: sqlite3.Connection) -> None:
        connection.executemany("UPDATE ssh_keys SET used = max(coalesce(used, 0), ?) WHERE hash = ?", rows)

    return work


def add_certificate(entry: SshCertificate) -> Callable[[sqlite3.Connection], None]:
    """Note a certificate that was signed."""
    row = (
        entry.authority, str(entry.serial), entry.hash, entry.key_id, entry.subject, json.dumps(entry.groups),
        json.dumps(entry.agents), json.dumps(entry.logins), entry.origin, entry.created, entry.expires,
    )  # fmt: skip

    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO ssh_certificates VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)

    return work


def list_certificates(subject: str | None, limit: int) -> Callable[[sqlite3.Connection], list[SshCertificate]]:
    """Return the newest certificates, of one subject or of all."""

    def work(connection: sqlite3.Connection) -> list[SshCertificate]:
        rows = connection.execute(
            f"{_CERTIFICATES} WHERE ?1 IS NULL OR subject = ?1 ORDER BY c.created DESC, serial LIMIT ?2",
            (subject, limit),
        )
        return [_certificate(row) for row in rows]

    return work


def revoke_certificate(
    authority: str, serial: int, reason: str, now: float
) -> Callable[[sqlite3.Connection], SshCertificate | None]:
    """Revoke a serial of an authority (the first time counts); return the certificate, None if it is not known here."""

    def work(connection: sqlite3.Connection) -> SshCertificate | None:
        connection.execute("INSERT OR IGNORE INTO ssh_revoked VALUES (?,?,?,?)", (authority, str(serial), reason, now))
        row = connection.execute(f"{_CERTIFICATES} WHERE c.authority = ? AND c.serial = ?", (authority, str(serial)))
        found = row.fetchone()
        return None if found is None else _certificate(found)

    return work


def revocations(now: float) -> Callable[[sqlite3.Connection], SshRevocations]:
    """Return what no longer holds: also certificates that were made for a token or key that is revoked."""

    def work(connection: sqlite3.Connection) -> SshRevocations:
        hashes = connection.execute(
            """
            SELECT hash FROM ssh_keys WHERE revoked IS NOT NULL
            UNION SELECT hash FROM ssh_certificates WHERE expires > ?1 AND origin IN (
                SELECT hash FROM tokens WHERE revoked IS NOT NULL
                UNION SELECT hash FROM ssh_keys WHERE revoked IS NOT NULL
            )
            """,
            (now,),
        )
        serials = connection.execute("SELECT authority, serial FROM ssh_revoked")
        return SshRevocations(frozenset(row[0] for row in hashes), frozenset((row[0], int(row[1])) for row in serials))

    return work


_CERTIFICATES = (
    "SELECT c.*, r.created AS revoked FROM ssh_certificates c"
    " LEFT JOIN ssh_revoked r ON r.authority = c.authority AND r.serial = c.serial"
)


def _state(revoked: float | None, expires: float, now: float) -> str:
    if revoked is not None:
        return "revoked"
    return "expired" if now >= expires else "active"


def _key(row: sqlite3.Row) -> SshKey:
    return SshKey(
        row["id"],
        row["hash"],
        row["key"],
        row["subject"],
        tuple(json.loads(row["groups"])),
        tuple(json.loads(row["agents"])),
        tuple(json.loads(row["logins"])),
        row["note"],
        row["created"],
        row["expires"],
        row["revoked"],
        row["used"],
    )


def _certificate(row: sqlite3.Row) -> SshCertificate:
    return SshCertificate(
        row["authority"],
        int(row["serial"]),
        row["hash"],
        row["key_id"],
        row["subject"],
        tuple(json.loads(row["groups"])),
        tuple(json.loads(row["agents"])),
        tuple(json.loads(row["logins"])),
        row["origin"],
        row["created"],
        row["expires"],
        row["revoked"],
    )
