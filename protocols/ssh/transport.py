"""The two sides of an SSH connection after their logins, as queues of messages: UserLeg and TargetLeg.

A Leg reads and writes the messages of the connection protocol (RFC 4254) and nothing else; below it asyncssh, adapted
(adapt.py), keeps the transport going. open_user() greets a user, exchanges keys and lets it log in, by the answers of
a Login; dial.py does the same towards a target. A user's connection may lie on a socket or in a channel (pipe.py).

open_user() holds our list of algorithms back until the user's is here, and offers only AES-GCM to a user who knows it:
OpenSSH before 10 prefers chacha20, which costs four times as much here, and the user's order wins (ssh note 1.5).

Left out: GSSAPI, host-based login, changing a password, compression, X.509. Source: RFC 4252, 4253, 4256, 8308, 8332.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from asyncssh.misc import DisconnectError

from protocols.ssh.adapt import Adapted
from protocols.ssh.pipe import ChannelPipe as ChannelPipe
from protocols.ssh.user_side import HostKey as HostKey
from protocols.ssh.user_side import Login as Login
from protocols.ssh.user_side import ServerOptions as ServerOptions
from protocols.ssh.user_side import UserConnection, make_connection
from proxy.core.errors import LoginRefused, PeerError, TargetPeerError, UserPeerError
from proxy.core.stream import Heir

BY_APPLICATION: Final = 11  # RFC 4253 11.1
NO_MORE_METHODS: Final = 14
TEXT_LIMIT: Final = 200  # characters of a peer's own words in an error
_LOST: Final = 10


class Way(Protocol):
    """Where a connection may lie: a Stream in its first phase, or a ChannelPipe."""

    async def hand_over(self, heir: Heir) -> asyncio.Transport: ...

    async def gone(self) -> None: ...

    async def close(self) -> None: ...

    def info(self, key: str) -> Any: ...


class Leg:
    """One side of a relay, after its login."""

    _side = ""
    _error: type[PeerError] = PeerError

    def __init__(self, connection: Adapted, way: Way) -> None:
        self._connection = connection
        self._way = way

    async def read(self) -> list[bytes]:
        """Return the payloads of the next messages, in order, [] at the end. Raises PeerError."""
        payloads = await self._connection.take()
        if not payloads:
            failure = self._connection.failure
            if failure is not None and getattr(failure, "code", None) != _LOST:
                raise self._mapped(failure) from failure
        return payloads

    async def write(self, data: bytes) -> None:
        """Write framed messages (each u32 length || payload); returns when few enough wait. Raises PeerError."""
        connection = self._connection
        try:
            connection.post(data)
            if connection.congested:
                await connection.drain()
        except ConnectionError as error:
            raise self._error(f"the {self._side}'s connection is closed") from error

    async def gone(self) -> None:
        """Return once the other side has ended or lost the connection, read or not."""
        await self._way.gone()

    def disconnect(self, code: int, reason: str) -> None:
        """Say DISCONNECT (RFC 4253 11.1), and end; a later one says nothing any more."""
        self._connection.part(code, reason)

    async def close(self) -> None:
        """Write what is queued, close, and wait a bounded time. Never raises."""
        self._connection.part(BY_APPLICATION, "")
        await self._way.close()

    def info(self, key: str) -> Any:
        """Tell "peer", "username", "client_version", "server_version", "send_cipher", "recv_cipher", "kex" or None.

        Also "session_id" (hex), which names this connection at both of its ends, and "host_key" (its fingerprint).
        """
        match key:
            case "peer" | "tls":
                return self._way.info(key)
            case "kex":
                return self._connection.kex_name
            case "session_id":
                return self._connection.identifier.hex()
            case "host_key":
                return self._connection.host_key_fingerprint()
            case _:
                return self._connection.get_extra_info(key)

    def _mapped(self, failure: Exception) -> PeerError:
        if isinstance(failure, OSError):
            return self._error(f"the {self._side}'s connection failed")
        if isinstance(failure, DisconnectError):
            return self._error(clean(failure.reason), str(failure.code))
        # A parser stumbled over the peer's bytes: its words are for a log (the cause), and the fault is the peer's.
        return self._error(f"the {self._side} sent what is not SSH")


class UserLeg(Leg):
    """The user's side."""

    _side = "user"
    _error = UserPeerError


class TargetLeg(Leg):
    """The target's side."""

    _side = "target"
    _error = TargetPeerError


def clean(text: str) -> str:
    """Make a peer's words fit for one line of a log or of an error."""
    return "".join(char if char.isprintable() else "?" for char in text[:TEXT_LIMIT])


async def open_user(way: Way, login: Login, options: ServerOptions) -> UserLeg:
    """Answer a user as an SSH server, up to the end of its login. login.proved() has been awaited then.

    Raises LoginRefused (too many wrong attempts, or it gave up after one), EOFError (it went away), TimeoutError (it
    took longer than options.login_seconds), UserPeerError (it broke the protocol), and what login raises.
    """
    connection = make_connection(login, options)
    leg = UserLeg(connection, way)
    try:
        async with asyncio.timeout(options.login_seconds):
            await way.hand_over(connection)
            await asyncio.shield(connection.entered)
        proof = connection.proof
        if not connection.complete or proof is None:
            raise _why_not(connection, leg)
        await login.proved(proof.user, proof.method, proof.blob)
    except LoginRefused as refused:
        leg.disconnect(NO_MORE_METHODS, refused.text)
        await asyncio.shield(leg.close())
        raise
    except TimeoutError:
        leg.disconnect(BY_APPLICATION, "the login took too long")
        await asyncio.shield(leg.close())
        raise
    except BaseException:  # a cancellation too: nobody will close what nobody was given
        await asyncio.shield(leg.close())
        raise
    return leg


def _why_not(connection: UserConnection, leg: UserLeg) -> Exception:
    """Why there was no login."""
    if connection.failures:
        # Without the name that was tried, which may be a token: the identity service has logged it, as far as it may.
        attempts = "wrong attempt" if connection.failures == 1 else "wrong attempts"
        return LoginRefused(f"{connection.failures} {attempts} to log in")
    failure = connection.failure
    if failure is None or isinstance(failure, OSError) or getattr(failure, "code", None) == _LOST:
        return EOFError("the user went away before it logged in")
    return leg._mapped(failure)
