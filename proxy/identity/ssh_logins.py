"""Whom an SSH key or user certificate stands for: registered keys, and certificates of the authorities that we trust.

A certificate of our own user CA says whose it is (ssh_ca.py). One of another authority, configured at a listener
(user_cas), stands for the subject that its key id or its only principal names, with the groups that the
configuration gives to that authority; what it says beyond that is OpenSSH's: principals are logins, none means
nobody, critical options are honoured or the certificate is refused, unknown extensions mean nothing.

A proof's signature is not checked here: whoever offers a key is answered before he has signed (RFC 4252 7).
holds() is asked before every command and looks into memory only. It knows a certificate's serial by remembering
those that were looked at; a certificate of another authority that it does not remember does not hold.

Source: OpenSSH's PROTOCOL.certkeys; sshd_config(5), TrustedUserCAKeys; ssh-keygen(1), "CERTIFICATES".
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from proxy.core.parties import Identity, KeyLogin
from proxy.identity.proof import ProofRefused, check_subject
from proxy.identity.ssh_ca import ANY_LOGIN, IDENTITY_EXTENSION, PERMITS, unpack_identity
from proxy.identity.ssh_certificate import (
    FOREVER,
    USER,
    Certificate,
    PublicKey,
    is_certificate,
    read_certificate,
    read_key,
)
from proxy.identity.ssh_keys import Keys, identity_of
from proxy.identity.throttle import address_of
from proxy.store.ssh_keys import SshRevocations

ISSUER_PREFIX: Final = "ssh-ca:"
REMEMBERED_LIMIT: Final = 100_000  # as sections.CONNECTIONS_LIMIT: a certificate for each connection

_SOURCE_ADDRESS: Final = "source-address"
_FORCE_COMMAND: Final = "force-command"


@dataclass(frozen=True, slots=True)
class UserAuthority:
    """Somebody else's user CA. subject: which of its words names the person. groups: of all whom it certifies."""

    key: PublicKey
    subject: Literal["key_id", "principal"] = "key_id"
    groups: frozenset[str] = frozenset()

    @property
    def issuer(self) -> str:
        """What identities by its certificates have as their issuer."""
        return ISSUER_PREFIX + self.key.fingerprint


@dataclass(frozen=True, slots=True)
class SshTrust:
    """Whose certificates count. own: our user CA. listeners: by a listener's name, what counts there besides."""

    own: PublicKey | None = None
    listeners: Mapping[str, tuple[UserAuthority, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holding:
    """What an identity by a certificate hangs on. origin: the proof that the certificate was made for."""

    serial: tuple[str, int]
    origin: str = ""


class SshLogins:
    """Keys and certificates -> KeyLogin, and whether identities by them still hold."""

    def __init__(self, keys: Keys, trust: SshTrust, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock
        self._remembered: OrderedDict[str, Holding] = OrderedDict()  # by the identity's proof
        self.revoked = SshRevocations()
        self.trust = trust

    @property
    def trust(self) -> SshTrust:
        """Whose certificates count; it may be replaced at any time."""
        return self._trust

    @trust.setter
    def trust(self, trust: SshTrust) -> None:
        self._trust = trust
        self._issuers = {one.issuer for found in trust.listeners.values() for one in found}

    async def check(self, login: str, blob: bytes, peer: str, listener: str) -> KeyLogin:
        """Whom a blob stands for, at a login name ("" if that is not known yet), from a peer's address.

        Raises ProofRefused, StoreError.
        """
        if not is_certificate(blob):
            return await self._registered(login, read_key(blob))
        certificate = read_certificate(blob)
        return self._certified(login, certificate, peer, listener)

    def holds(self, identity: Identity, revoked: Collection[str]) -> bool:
        """Tell whether an identity still holds, as far as SSH knows; revoked: proofs that do not."""
        if identity.proof in self.revoked.hashes:
            return False
        holding = self._remembered.get(identity.proof)
        if holding is None:
            return not identity.issuer.startswith(ISSUER_PREFIX)
        if holding.serial in self.revoked.serials or holding.origin in revoked:
            return False
        return not identity.issuer.startswith(ISSUER_PREFIX) or identity.issuer in self._issuers

    def origin(self, proof: str) -> str:
        """The proof that a certificate was made for; a proof that is no certificate is its own."""
        holding = self._remembered.get(proof)
        return proof if holding is None else holding.origin

    async def _registered(self, login: str, key: PublicKey) -> KeyLogin:
        entry = await self._keys.find(key)
        logins = None if ANY_LOGIN in entry.logins else frozenset(entry.logins)
        proved = KeyLogin(identity_of(entry), f"key {key.fingerprint} ({entry.id})", None, PERMITS, logins)
        if login and not proved.allows(login):
            raise ProofRefused("wrong-login", f"{entry.id} is not for {login!r:.80}")
        return proved

    def _certified(self, login: str, certificate: Certificate, peer: str, listener: str) -> KeyLogin:
        own = self._trust.own
        ours = own is not None and own.blob == certificate.authority.blob
        other = None if ours else self._other(certificate.authority, listener)
        what = f"{certificate.key_id!r:.80} serial {certificate.serial}"
        if not ours and other is None:
            raise ProofRefused("unknown-authority", f"{certificate.authority.fingerprint} of {what}")
        if certificate.type != USER:
            raise ProofRefused("not-a-user-certificate", what)
        now = self._clock()
        if now < certificate.valid_after:
            raise ProofRefused("certificate-not-yet-valid", what)
        if now >= certificate.valid_before:
            raise ProofRefused("certificate-expired", what)
        serial = (certificate.authority.fingerprint, certificate.serial)
        if serial in self.revoked.serials or certificate.proof in self.revoked.hashes:
            raise ProofRefused("certificate-revoked", what)
        logins = self._logins(login, certificate, ours, what)
        force_command = _critical(certificate, peer, what)
        if other is None:
            identity, origin = _own_identity(certificate)
        else:
            identity, origin = _others_identity(certificate, other), ""
        self._remember(identity.proof, Holding(serial, origin))
        how = (
            f"certificate {certificate.key_id} serial {certificate.serial}, ends {_day(certificate.valid_before)},"
            f" of {serial[0]}, key {certificate.key.fingerprint}"
        )
        return KeyLogin(identity, how, force_command, PERMITS & certificate.extensions.keys(), logins)

    def _other(self, authority: PublicKey, listener: str) -> UserAuthority | None:
        trusted = self._trust.listeners.get(listener, ())
        return next((one for one in trusted if one.key.blob == authority.blob), None)

    @staticmethod
    def _logins(login: str, certificate: Certificate, ours: bool, what: str) -> frozenset[str] | None:
        """The logins that its principals are good for; ours may say all of them."""
        if not certificate.principals:
            raise ProofRefused("no-principals", what)  # sshd, too, takes none for nobody
        if ours and ANY_LOGIN in certificate.principals:
            return None
        logins = frozenset(certificate.principals)
        if login and login not in logins:
            raise ProofRefused("wrong-login", f"{what} is not for {login!r:.80}")
        return logins

    def _remember(self, proof: str, holding: Holding) -> None:
        self._remembered[proof] = holding
        self._remembered.move_to_end(proof)
        if len(self._remembered) > REMEMBERED_LIMIT:
            self._remembered.popitem(last=False)


def _day(valid_before: int) -> str:
    """An end for people; what is beyond the years of the calendar is never."""
    try:
        return datetime.fromtimestamp(valid_before, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return "never"


def _own_identity(certificate: Certificate) -> tuple[Identity, str]:
    said = certificate.extensions.get(IDENTITY_EXTENSION)
    if said is None:
        raise ProofRefused("no-identity", "signed by our user CA, but not by gatecast")
    return unpack_identity(said, certificate.proof, float(certificate.valid_before))


def _others_identity(certificate: Certificate, authority: UserAuthority) -> Identity:
    name = certificate.key_id
    if authority.subject == "principal":
        if len(certificate.principals) != 1:
            raise ProofRefused("bad-subject", "several principals, and each could be the person")
        name = certificate.principals[0]
    end = None if certificate.valid_before == FOREVER else float(certificate.valid_before)
    return Identity(check_subject(name), authority.groups, (), authority.issuer, certificate.proof, end)


def _critical(certificate: Certificate, peer: str, what: str) -> str | None:
    """Honour the critical options; return the forced command, if there is one. Raises ProofRefused for all others."""
    for name, value in certificate.critical.items():
        if name == _SOURCE_ADDRESS:
            _check_source(value, peer, what)
        elif name != _FORCE_COMMAND:
            # verify-required among them: the transport does not tell whether a FIDO key saw its owner.
            raise ProofRefused("unknown-critical-option", f"{name!r:.80} of {what}")
    command = certificate.critical.get(_FORCE_COMMAND)
    if command is None:
        return None
    if not command:
        raise ProofRefused("bad-force-command", f"nothing, of {what}")  # which some would read as no restriction
    try:
        return command.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProofRefused("bad-force-command", what) from error


def _check_source(value: bytes, peer: str, what: str) -> None:
    address = address_of(peer)
    if address is None:
        raise ProofRefused("wrong-source-address", f"no address, for {what}")
    try:
        # A network with bits beyond its mask is an error to OpenSSH, too (addr_match_cidr_list).
        networks = [ipaddress.ip_network(text) for text in value.decode("ascii").split(",")]
    except ValueError as error:
        raise ProofRefused("bad-source-address", what) from error
    if not any(address in network for network in networks):
        raise ProofRefused("wrong-source-address", f"{address} for {what}")
