"""Who logs in, and where to: names, keys, certificates and tokens at the gateway's own SSH server.

The user name carries the target: ``login:target``, or ``target`` alone for the login that the gateway's credential
has. Any other name is one of a jump (``ssh -J gateway target``): it opens nothing but connections to targets. Whether
a target exists is no part of the login, so that a wrong token and a wrong target look alike until the login is done.

A key is asked for before it signs; only what signed counts (proved()). An inner connection of ``ssh -J`` has been
vouched for by the outer one: it takes any key that signs, or an answer to no question at all, and is the outer
identity's. Source: RFC 4252; ssh note 3.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from proxy.core.errors import LoginRefused
from proxy.core.gate import Gate
from proxy.core.parties import Identity, KeyLogin

# What OpenSSH gives to a certificate that asks for nothing special: PROTOCOL.certkeys, extensions.
ALL_PERMITS = frozenset({"permit-pty", "permit-port-forwarding", "permit-agent-forwarding", "permit-X11-forwarding"})


@dataclass(frozen=True, slots=True)
class Name:
    """A user name, taken apart: login is '' where the target's own is meant."""

    login: str
    target: str


def split_name(user: str) -> Name:
    """Take ``login:target`` or ``target`` apart. The last colon counts: logins may hold one, targets never do."""
    login, colon, target = user.rpartition(":")
    return Name(login, target) if colon else Name("", user)


class UserLogin:
    """The answers to one user's attempts to log in. Afterwards, proof says who it is."""

    def __init__(self, gate: Gate, vouched: KeyLogin | None = None, banner: str = "") -> None:
        self._gate = gate
        self._vouched = vouched
        self._keys: dict[bytes, KeyLogin] = {}
        self._identity: Identity | None = None
        self.banner = banner
        self.proof: KeyLogin | None = None
        self.user = ""

    @property
    def prompts(self) -> bool:
        """Whether keyboard-interactive has to ask for a token."""
        return self._vouched is None

    async def key(self, user: str, blob: bytes) -> bool:
        """Whether this key or certificate may log in, if it signs."""
        if self._vouched is not None:
            self._keys[blob] = self._vouched
            return True
        with contextlib.suppress(LoginRefused):
            self._keys[blob] = await self._gate.identities.ssh_key(split_name(user).login, blob)
            return True
        return False

    async def password(self, user: str, secret: str) -> bool:
        """Whether this is somebody's token."""
        if self._vouched is not None:
            return True
        with contextlib.suppress(LoginRefused):
            self._identity = await self._gate.identities.password(user, secret)
            return True
        return False

    async def proved(self, user: str, method: str, blob: bytes | None) -> None:
        """The login is complete, by this very proof."""
        self.user = user
        if self._vouched is not None:
            self.proof = self._vouched
        elif blob is not None:
            self.proof = self._keys[blob]
            self._gate.identities.ssh_proved(self.proof)
        else:
            assert self._identity is not None, "a password was accepted that nobody checked"
            self.proof = KeyLogin(self._identity, method, permits=ALL_PERMITS)
