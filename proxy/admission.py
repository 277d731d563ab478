"""The door between a connection and the identity service: who failed too often waits, who is known is remembered.

Protocols see the Identities of proxy.core.gate. What they ask here is counted for the connection that asks (a
context variable, as in connections.py): a proof that was asked for and never came true counts as a failure of
its address when the connection ends, whichever way of logging in it was.
"""

from __future__ import annotations

from proxy.connections import Connection, current_connection
from proxy.core.parties import Identity, KeyLogin
from proxy.identity.service import Service


class Admission:
    """The gate's Identities: the service, behind the throttle."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.valid = service.valid  # asked before every command: no detour

    async def password(self, user: str, secret: str) -> Identity:
        """Check a token or JWT. Raises LoginRefused, also where this address has failed too often."""
        connection = current_connection()
        if connection is not None:
            self._service.admit(connection.peer)
            connection.unproved = True
        return self._proved(connection, await self._service.password(user, secret))

    def scram_verifier(self, user: str) -> str | None:
        """The verifier of a local user. Raises LoginRefused where this address has failed too often."""
        connection = current_connection()
        if connection is not None:
            self._service.admit(connection.peer)
            connection.unproved = True
        return self._service.scram_verifier(user)

    async def local(self, user: str) -> Identity:
        """The identity of a local user whose SCRAM proof was verified. Raises LoginRefused."""
        return self._proved(current_connection(), await self._service.local(user))

    async def ssh_key(self, login: str, key: bytes) -> KeyLogin:
        """Whom a key stands for. Raises LoginRefused, also where this address has failed too often."""
        connection = current_connection()
        if connection is not None:
            self._service.admit(connection.peer)
            connection.unproved = True
            return await self._service.ssh_key(login, key, peer=connection.peer, listener=connection.listener)
        return await self._service.ssh_key(login, key)

    def ssh_proved(self, login: KeyLogin) -> None:
        """The holder of the key has signed with it."""
        self._service.ssh_proved(login)
        self._proved(current_connection(), login.identity)

    def ended(self, connection: Connection) -> None:
        """A connection is over; if it proved nothing, its address is a little slower to be heard."""
        if connection.unproved:
            self._service.note_failure(connection.peer)

    def _proved(self, connection: Connection | None, identity: Identity) -> Identity:
        if connection is not None:
            connection.unproved = False
            connection.identity = identity
            connection.subject = identity.subject
        return identity
