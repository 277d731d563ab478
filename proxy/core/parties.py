"""Who takes part: the identity of the user, the target, and the credential that only the gate holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from recorder.cipher import Recipient

RecordingMode = Literal["durable", "written", "strict"]


class Secret:
    """A string that does not show itself: repr, str and format hide it; only reveal() gives it out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself; call it only where it goes onto a target's wire."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is not pickled")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, as proved by a token or an OIDC JWT; never what the user merely claims.

    agents is the chain of agents that act for the subject, nearest last (RFC 8693 ``act``). proof is the
    SHA-256 (hex) of the proof itself, so that a tape can name it without holding it. expires_at is in
    seconds since the epoch, None for never.
    """

    subject: str
    groups: frozenset[str] = frozenset()
    agents: tuple[str, ...] = ()
    issuer: str = ""
    proof: str = ""
    expires_at: float | None = None

    @property
    def display(self) -> str:
        """One line for people: ``agent for subject``, or the subject alone."""
        return f"{'/'.join(self.agents)} for {self.subject}" if self.agents else self.subject


@dataclass(frozen=True, slots=True)
class KeyLogin:
    """Who an SSH public key or user certificate stands for, once a signature by it has been checked.

    force_command: the only command that it may run. permits: what its holder may ask for, by the names of OpenSSH's
    certificate extensions (permit-pty, permit-port-forwarding, permit-agent-forwarding, permit-X11-forwarding). how:
    one line for the tape: a key's fingerprint, a certificate's key id, serial and end. logins: the logins at targets
    that it is good for, None for all; whoever learns the login later than ssh_key (a jump, a target's own) asks again.
    """

    identity: Identity
    how: str
    force_command: str | None = None
    permits: frozenset[str] = frozenset()
    logins: frozenset[str] | None = None

    def allows(self, login: str) -> bool:
        """Tell whether the proof is good for this login at a target."""
        return self.logins is None or login in self.logins


@dataclass(frozen=True, slots=True)
class Target:
    """A place that commands go to. settings are the protocol's own keys, checked by its configuration model.

    database is the effective database (or project, or namespace) of this connection, '' before it is known.
    encrypt_to: the public keys that tapes are encrypted to; none: tapes are in the clear. original_to: those that
    the unmasked original track is encrypted to; none: there is no such track.
    """

    name: str
    protocol: str
    host: str = ""
    port: int = 0
    database: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    recording: RecordingMode = "durable"
    encrypt_to: tuple[Recipient, ...] = ()
    original_to: tuple[Recipient, ...] = ()


@dataclass(frozen=True, slots=True)
class Credential:
    """What the gate logs in to a target with. The user never sees any of it.

    secret: a password or a bearer token. A client certificate with its key is in files, or in certificate and key as
    PEM text. user is '' where the credential itself says whose it is.
    """

    user: str
    secret: Secret | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    expires_at: float | None = None
    passphrase: Secret | None = None  # of key_file
    certificate: Secret | None = None  # PEM: the client's certificate, then its intermediates
    key: Secret | None = None  # PEM: its private key
