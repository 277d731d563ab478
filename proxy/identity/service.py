"""Identities: one door for all proofs. A password is told by its shape: gateway token, or JWT of a known issuer.

The user name of a login is never believed: the subject comes from the proof alone (peers note, bug 100). Every
refusal reads the same to the user; the log says why, never with the proof in it.

valid() is asked before every command, so it only looks into memory: the end of the proof, revoked tokens, locked
subjects, local users that the configuration still knows. run() keeps that picture fresh: it asks the store twice
a second whether anybody wrote (the command line of another process does), and then reads what is revoked. If the
store cannot be asked for STALE_LIMIT_SECONDS, nobody is valid any more: fails closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from proxy.core.errors import ConfigError, LoginRefused
from proxy.core.parties import Identity, KeyLogin
from proxy.identity import local, oidc
from proxy.identity.local import LocalUser
from proxy.identity.oidc import Issuer, Verifier
from proxy.identity.proof import PROOF_LIMIT, ProofRefused
from proxy.identity.ssh_keys import Keys
from proxy.identity.ssh_logins import SshLogins, SshTrust
from proxy.identity.throttle import Throttle
from proxy.identity.tokens import Tokens, looks_like_token
from proxy.store import ssh_keys as ssh_rows
from proxy.store import tokens as rows
from proxy.store.database import Database, StoreError

POLL_SECONDS: Final = 0.5  # a revocation counts within a second
FLUSH_SECONDS: Final = 60.0
# A disk that answers nothing for so long is broken; until then a slow one ends nobody's session.
STALE_LIMIT_SECONDS: Final = 15.0
USER_LOG_LIMIT: Final = 64  # characters of the user name in a log line; PostgreSQL's NAMEDATALEN

REFUSED_TEXT: Final = "the login was refused"
SSH_HINT: Final = "use a key that is registered, or a certificate that holds"
REFUSED_HINT: Final = "give a gateway token (gatecast token issue) or your identity provider's, as password or bearer"

log = structlog.get_logger(__name__)


class Service:
    """The gate's Identities (proxy.core.gate)."""

    def __init__(
        self,
        database: Database,
        tokens: Tokens,
        issuers: Iterable[Issuer] = (),
        users: Iterable[LocalUser] = (),
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
        trust: SshTrust | None = None,
    ) -> None:
        """on_change is called when identities may have ceased to be valid, so that their sessions can be ended."""
        self._database = database
        self._tokens = tokens
        self._clock = clock
        self._monotonic = monotonic
        self._on_change = on_change
        self._throttle = Throttle(monotonic)
        self._ssh = SshLogins(Keys(database, clock=clock), trust or SshTrust(), clock)
        self._verifiers: dict[str, Verifier] = {}
        self._users: dict[str, LocalUser] = {}
        self._user_proofs: frozenset[str] = frozenset()
        self._revoked: frozenset[str] = frozenset()
        self._locked: frozenset[str] = frozenset()
        self._seen: tuple[int, int] | None = None
        self._fresh_at = float("-inf")
        self._used: dict[str, float] = {}
        self._used_keys: dict[str, float] = {}  # by the proof
        self._flushed_at = monotonic()
        self._set(issuers, users)

    def configure(self, issuers: Iterable[Issuer], users: Iterable[LocalUser], trust: SshTrust | None = None) -> None:
        """Take a new configuration; a local user that is gone or has a new password is not valid any more.

        An issuer whose configuration did not change keeps its keys. Raises ConfigError, and changes nothing.
        """
        self._set(issuers, users)
        self._ssh.trust = trust or SshTrust()
        self._on_change()

    def _set(self, issuers: Iterable[Issuer], users: Iterable[LocalUser]) -> None:
        verifiers: dict[str, Verifier] = {}
        for issuer in issuers:
            if issuer.issuer in verifiers:
                raise ConfigError(f"the OIDC issuer {issuer.issuer} appears twice")
            old = self._verifiers.get(issuer.issuer)
            keep = old is not None and old.issuer == issuer
            verifiers[issuer.issuer] = (
                old if old and keep else Verifier(issuer, clock=self._clock, monotonic=self._monotonic)
            )
        by_name: dict[str, LocalUser] = {}
        for user in users:
            if user.name in by_name:
                raise ConfigError(f"the local user {user.name} appears twice")
            by_name[user.name] = user
        self._verifiers, self._users = verifiers, by_name
        self._user_proofs = frozenset(user.proof for user in by_name.values())

    # -- the protocol's side --------------------------------------------------------------------------

    async def password(self, user: str, secret: str) -> Identity:
        """Return whose token or JWT this is. Raises LoginRefused, with one text for every reason."""
        try:
            identity = await self._check(secret)
            if not self.valid(identity):
                raise ProofRefused("revoked-or-locked", identity.subject)
        except ProofRefused as error:
            log.warning("login-refused", user=_loggable(user), why=error.why, detail=error.detail)
        except StoreError as error:
            log.error("login-refused", user=_loggable(user), why="store", detail=str(error))
        else:
            return identity
        # Raised out here: a traceback of it has no context that could hold a piece of the proof.
        raise LoginRefused(REFUSED_TEXT, REFUSED_HINT)

    async def _check(self, secret: str) -> Identity:
        if len(secret) > PROOF_LIMIT:
            raise ProofRefused("too-long")
        if looks_like_token(secret):
            identity, token_id = await self._tokens.check(secret)
            self._used[token_id] = self._clock()
            return identity
        if oidc.looks_like_jwt(secret):
            verifier = self._verifiers.get(oidc.peek_issuer(secret))
            if verifier is None:
                raise ProofRefused("unknown-issuer")
            return await verifier.check(secret)
        raise ProofRefused("neither-token-nor-jwt")

    async def ssh_key(self, login: str, key: bytes, *, peer: str = "", listener: str = "") -> KeyLogin:
        """Return whom a key or certificate stands for. Raises LoginRefused, with one text for every reason.

        peer: the connection's address, which a certificate may be bound to; listener: which other user CAs count.
        login "" is one that is not known yet: the caller asks KeyLogin.allows() when it is.
        """
        try:
            found = await self._ssh.check(login, key, peer, listener)
            if not self.valid(found.identity):
                raise ProofRefused("revoked-or-locked", found.identity.subject)
        except ProofRefused as error:
            log.warning("login-refused", user=_loggable(login), why=error.why, detail=error.detail)
        except StoreError as error:
            log.error("login-refused", user=_loggable(login), why="store", detail=str(error))
        else:
            return found
        raise LoginRefused(REFUSED_TEXT, SSH_HINT)

    def ssh_proved(self, login: KeyLogin) -> None:
        """A signature by the key was checked: note that it was used."""
        self._used_keys[login.identity.proof] = self._clock()

    def scram_verifier(self, user: str) -> str | None:
        """Return the verifier of a local user, None if there is none."""
        found = self._users.get(user)
        return None if found is None else found.verifier

    async def local(self, user: str) -> Identity:
        """Return a local user's identity; the caller has checked the SCRAM proof. Raises LoginRefused."""
        found = self._users.get(user)
        if found is None or not self.valid(found.identity()):
            log.warning("login-refused", user=_loggable(user), why="no-such-user" if found is None else "locked")
            raise LoginRefused(REFUSED_TEXT, REFUSED_HINT)
        return found.identity()

    def valid(self, identity: Identity) -> bool:
        """Tell whether the identity still holds. Takes well under a microsecond."""
        if identity.expires_at is not None and self._clock() >= identity.expires_at:
            return False
        if identity.proof in self._revoked or identity.subject in self._locked:
            return False
        if not self._ssh.holds(identity, self._revoked):
            return False
        if identity.issuer == local.ISSUER and self._ssh.origin(identity.proof) not in self._user_proofs:
            return False
        return self._monotonic() - self._fresh_at < STALE_LIMIT_SECONDS

    # -- against guessing -----------------------------------------------------------------------------

    def admit(self, source: str) -> None:
        """Raise LoginRefused if this source (peer address) has failed too often of late."""
        wait = self._throttle.wait_seconds(source)
        if wait > 0:
            log.warning("login-throttled", source=source, wait_seconds=wait)
            raise LoginRefused("too many failed logins from this address", f"try again in {wait:g} seconds")

    def note_failure(self, source: str) -> None:
        """Count a failed login of this source (peer address)."""
        self._throttle.failure(source)

    # -- the picture of what is revoked ---------------------------------------------------------------

    async def run(self) -> None:
        """Keep the picture fresh until cancelled; a task of the app's group. Writes last uses at its end."""
        try:
            while True:
                try:
                    await self.refresh()
                except StoreError as error:  # fails closed: valid() says no when this lasts
                    log.error("revocations-unknown", error=str(error))
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._submit_used()

    async def refresh(self) -> None:
        """Read what is revoked if anybody wrote since the last time. Call once before serving. Raises StoreError."""
        asked_at = self._monotonic()
        changes = await self._database.changes()
        if changes != self._seen:
            found = await self._database.run(rows.revocations(self._clock()), durable=False)
            ssh = await self._database.run(ssh_rows.revocations(self._clock()), durable=False)
            changed = (found.hashes, found.subjects, ssh) != (self._revoked, self._locked, self._ssh.revoked)
            # Read before the rows were: what was written in between shows up as another change.
            self._seen, self._revoked, self._locked = changes, found.hashes, found.subjects
            self._ssh.revoked = ssh
            if changed:
                of_ssh = len(ssh.hashes) + len(ssh.serials)
                log.info("revocations", tokens=len(found.hashes), subjects=len(found.subjects), ssh=of_ssh)
                self._on_change()
        self._fresh_at = asked_at
        if (self._used or self._used_keys) and self._monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self._submit_used()

    def _submit_used(self) -> None:
        if not self._used and not self._used_keys:
            return
        used, self._used = self._used, {}
        keys, self._used_keys = self._used_keys, {}
        self._flushed_at = self._monotonic()
        try:
            self._database.submit(rows.touch(used), durable=False)  # lost with a power cut, and no harm done
            self._database.submit(ssh_rows.touch_keys(keys), durable=False)
        except StoreError as error:
            log.warning("last-use-lost", error=str(error))


def _loggable(user: str) -> str:
    """Cut what a stranger claims to be called to something that fits a log line. A proof in its place is hidden."""
    # In any part of it: "token:target" is a user name of SSH.
    if any(looks_like_token(part) or oidc.looks_like_jwt(part) for part in user.split(":")):
        return "(a token in place of a user name)"
    return user[:USER_LOG_LIMIT].encode("unicode_escape").decode("ascii")
