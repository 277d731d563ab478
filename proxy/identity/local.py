"""Users that the configuration itself defines, for logins by SCRAM-SHA-256; only their verifiers are known.

A verifier has PostgreSQL's form, ``SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>``, so that one made by
PostgreSQL or psql's \\password can be used as it is. The password itself never reaches the gate.

Specifications: RFC 5802 section 3, RFC 7677; PostgreSQL 18 docs 52.8 (pg_authid.rolpassword).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from typing import Final

from proxy.core.errors import ConfigError
from proxy.core.parties import Identity
from proxy.identity.proof import ProofRefused, check_agents, check_groups, check_subject

ISSUER: Final = "local"
# RFC 7677 4 asks for 4096 at least; PostgreSQL's scram_iterations goes further than anybody's patience.
ITERATIONS_MIN: Final = 4096
ITERATIONS_LIMIT: Final = 10_000_000
_SHAPE: Final = re.compile(r"SCRAM-SHA-256\$(\d{1,8}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class LocalUser:
    """A user of the configuration: its name is its subject."""

    name: str
    verifier: str
    groups: frozenset[str] = frozenset()
    agents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            check_subject(self.name)
            check_groups(self.groups)
            check_agents(self.agents)
        except ProofRefused as error:
            raise ConfigError(f"a local user, its group or agent cannot be named so ({error})") from error
        if not _is_verifier(self.verifier):
            raise ConfigError(f"the verifier of the local user {self.name} is no SCRAM-SHA-256 verifier")

    def __repr__(self) -> str:
        return f"LocalUser({self.name!r})"  # a verifier can be attacked by guessing: it stays out of logs

    @property
    def proof(self) -> str:
        """The fingerprint of the login; a new password makes a new one."""
        return hashlib.sha256(f"{self.name}\0{self.verifier}".encode()).hexdigest()

    def identity(self) -> Identity:
        """Return who this is, once the SCRAM proof was checked."""
        return Identity(self.name, self.groups, self.agents, ISSUER, self.proof)


def _is_verifier(text: str) -> bool:
    shape = _SHAPE.fullmatch(text)
    if shape is None or not ITERATIONS_MIN <= int(shape[1]) <= ITERATIONS_LIMIT:
        return False
    try:
        salt, stored, server = (base64.b64decode(part, validate=True) for part in shape.group(2, 3, 4))
    except binascii.Error:
        return False
    return len(salt) > 0 and len(stored) == len(server) == _KEY_BYTES


def make_verifier(password: str, *, iterations: int = ITERATIONS_MIN, salt: bytes | None = None) -> str:
    """Make the verifier of a password of printable ASCII (others need SASLprep: let psql's \\password make it).

    Raises ConfigError.
    """
    if not password or not password.isascii() or not password.isprintable():
        raise ConfigError(
            "a password is made of printable ASCII here; for others, let psql's \\password make the verifier"
        )
    if not ITERATIONS_MIN <= iterations <= ITERATIONS_LIMIT:
        raise ConfigError(f"SCRAM iterations are {ITERATIONS_MIN} to {ITERATIONS_LIMIT}")
    salt = os.urandom(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored_text, server_text = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${iterations}:{salt_text}${stored_text}:{server_text}"
