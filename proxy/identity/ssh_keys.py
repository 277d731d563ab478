"""Registered SSH keys, and what was issued and revoked of certificates: the operator's side, and one look-up.

A key is registered for one subject, always with an end, and known by its SHA-256; one that was revoked is not taken
again. All methods block for one short transaction (the command line) but find(), which the gate uses.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from typing import Final

from proxy.core.errors import GatecastError
from proxy.core.parties import Identity
from proxy.identity.proof import ProofRefused, check_agents, check_groups, check_subject
from proxy.identity.ssh_ca import ANY_LOGIN, Authority
from proxy.identity.ssh_certificate import Certificate, PublicKey
from proxy.identity.tokens import DAY_SECONDS, ISSUER, LIST_LIMIT, NOTE_LIMIT
from proxy.store import ssh_keys as rows
from proxy.store.database import Database
from proxy.store.ssh_keys import SshCertificate, SshKey

DEFAULT_SECONDS: Final = 90 * DAY_SECONDS
MAX_SECONDS: Final = 365 * DAY_SECONDS  # unless configured: identity.ssh.key_max_days
REASON_LIMIT: Final = NOTE_LIMIT
_ID_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH: Final = 10


class SshKeyError(GatecastError):
    """What the operator asked of a key or certificate cannot be; the text says why."""


class Keys:
    """The registered keys and the issued certificates of one store."""

    def __init__(
        self, database: Database, *, clock: Callable[[], float] = time.time, max_seconds: float = MAX_SECONDS
    ) -> None:
        self._database = database
        self._clock = clock
        self._max_seconds = max_seconds

    def add(
        self,
        key: PublicKey,
        subject: str,
        groups: Iterable[str] = (),
        agents: Iterable[str] = (),
        logins: Iterable[str] = (ANY_LOGIN,),
        seconds: float | None = None,
        note: str = "",
    ) -> SshKey:
        """Register a key. seconds: how long it counts, 90 days if None. Raises SshKeyError, StoreError."""
        life = min(DEFAULT_SECONDS, self._max_seconds) if seconds is None else seconds
        if not 0 < life <= self._max_seconds:
            raise SshKeyError(f"a key counts for at most {self._max_seconds / DAY_SECONDS:g} days, and more than none")
        if len(note) > NOTE_LIMIT or not note.isprintable():
            raise SshKeyError(f"a note is one line of at most {NOTE_LIMIT} characters")
        identity = named(subject, groups, agents)
        now = self._clock()
        entry = SshKey(
            id="".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH)),
            hash=key.proof,
            key=key.line,
            subject=identity.subject,
            groups=tuple(sorted(identity.groups)),
            agents=identity.agents,
            logins=tuple(dict.fromkeys(logins)) or (ANY_LOGIN,),
            note=note,
            created=now,
            expires=now + life,
        )
        known = self._database.call(rows.add_key(entry))
        if known is not None:
            state = known.state(now)
            hint = "take another key" if state == "revoked" else "revoke it first"
            raise SshKeyError(f"the key is registered as {known.id} for {known.subject}, and {state}: {hint}")
        return entry

    def find_now(self, word: str) -> SshKey:
        """Look a key up by its id or its hash. Raises SshKeyError."""
        return self._known(self._database.call(rows.find_key(word), durable=False))

    def listing(self, subject: str | None = None) -> list[SshKey]:
        """Return the newest keys, of one subject or of all; at most LIST_LIMIT."""
        return self._database.call(rows.list_keys(subject, LIST_LIMIT), durable=False)

    def revoke(self, word: str) -> SshKey:
        """End a key, by its id or its hash; a second time changes nothing. Raises SshKeyError."""
        return self._known(self._database.call(rows.revoke_key(word, self._clock())))

    def issued(self, certificate: Certificate, identity: Identity) -> SshCertificate:
        """Note a certificate that was signed for an identity; before it is given away."""
        entry = SshCertificate(
            authority=certificate.authority.fingerprint,
            serial=certificate.serial,
            hash=certificate.proof,
            key_id=certificate.key_id,
            subject=identity.subject,
            groups=tuple(sorted(identity.groups)),
            agents=identity.agents,
            logins=certificate.principals,
            origin=identity.proof,
            created=self._clock(),
            expires=float(certificate.valid_before),
        )
        self._database.call(rows.add_certificate(entry))
        return entry

    def certificates(self, subject: str | None = None) -> list[SshCertificate]:
        """Return the newest certificates, of one subject or of all; at most LIST_LIMIT."""
        return self._database.call(rows.list_certificates(subject, LIST_LIMIT), durable=False)

    def revoke_certificate(self, authority: str, serial: int, reason: str = "") -> SshCertificate | None:
        """End a certificate by its authority's fingerprint and its serial; None if it was not issued here."""
        if not 0 < serial < 1 << 64:
            # 0 is what all certificates have whose authority does not count them (ssh-keygen without -z).
            raise SshKeyError("a serial is a number of 64 bits, and not 0, which many certificates may have")
        reason = reason[:REASON_LIMIT]
        return self._database.call(rows.revoke_certificate(authority, serial, reason, self._clock()))

    async def find(self, key: PublicKey) -> SshKey:
        """Return the registration of a key that counts now. Raises ProofRefused, StoreError."""
        entry = await self._database.run(rows.find_key(key.proof), durable=False)
        if entry is None:
            raise ProofRefused("unknown-key", key.fingerprint)
        state = entry.state(self._clock())
        if state != "active":
            raise ProofRefused(f"{state}-key", entry.id)
        return entry

    @staticmethod
    def _known(entry: SshKey | None) -> SshKey:
        if entry is None:
            raise SshKeyError("there is no such key; gatecast ssh key list shows them")
        return entry


def named(subject: str, groups: Iterable[str], agents: Iterable[str], expires_at: float | None = None) -> Identity:
    """An identity by the operator's word. Raises SshKeyError."""
    try:
        return Identity(
            check_subject(subject), check_groups(groups), check_agents(agents), ISSUER, expires_at=expires_at
        )
    except ProofRefused as error:
        raise SshKeyError(f"a subject, group or agent cannot be named so ({error})") from error


def identity_of(entry: SshKey) -> Identity:
    """Whom a registered key stands for."""
    return Identity(entry.subject, frozenset(entry.groups), entry.agents, ISSUER, entry.hash, entry.expires)


def sign_and_note(keys: Keys, authority: Authority, key: PublicKey, identity: Identity, **how: object) -> Certificate:
    """Sign a user certificate and note it, before anybody has it; how: as Authority.sign_user."""
    certificate = authority.sign_user(key, identity, **how)  # type: ignore[arg-type]  # checked there
    keys.issued(certificate, identity)
    return certificate
