"""Connect to an SSH target, verify its host key, and log in with the gate's credential.

What a target says is read as an unknown peer's: every wait is within connect_timeout_seconds, lines and packets have
limits, and whatever goes wrong is a TargetPeerError whose text tells an operator what it was, without a secret. The
host key must be one that is pinned (dial_settings.py); there is no first use that is trusted.

Source: RFC 4251 to 4253; target_side.py holds the login.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final

import structlog
from asyncssh.misc import HostKeyNotVerifiable, KeyExchangeFailed, PermissionDenied

from protocols.ssh.dial_settings import DialSettings, Pins, pins_of, read_settings
from protocols.ssh.target_side import TargetConnection, make_connection, read_keys
from protocols.ssh.transport import TargetLeg, clean
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Credential, Target
from proxy.core.stream import SocketStream

CONNECT_FAILED: Final = "2"  # RFC 4254 5.1: what a channel's opening is answered with

_log = structlog.get_logger(__name__)


async def dial(target: Target, credential: Credential, login: str) -> TargetLeg:
    """Return the target's side of a relay, logged in as login. Raises TargetPeerError."""
    try:
        settings = read_settings(target)
        return await _dial(settings, credential, login)
    except ConfigError as error:
        _log.error("target settings are wrong", target=target.name, reason=str(error))
        raise TargetPeerError(str(error), CONNECT_FAILED) from error


async def _dial(settings: DialSettings, credential: Credential, login: str) -> TargetLeg:
    pins, keys = await asyncio.to_thread(lambda: (pins_of(settings), read_keys(credential)))
    stream: SocketStream | None = None
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            stream = await _connect(settings)
            connection = make_connection(settings, pins, login, keys, credential.secret)
            await stream.hand_over(connection)
            await asyncio.shield(connection.entered)
        if not connection.complete:
            raise _failed(connection, settings, pins, login)
    except TimeoutError as error:
        _drop(stream)
        where = "log in" if stream is not None else "connect"
        text = f"the target took longer than {settings.connect_timeout_seconds:g} seconds to {where}"
        raise TargetPeerError(text, CONNECT_FAILED) from error
    except BaseException:  # a cancellation too: nobody will close what nobody was given
        _drop(stream)
        raise
    return TargetLeg(connection, stream)


def _drop(stream: SocketStream | None) -> None:
    if stream is not None:
        stream.abort()


async def _connect(settings: DialSettings) -> SocketStream:
    """Connect to the first of the host's addresses that takes it."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise TargetPeerError("the target's host name could not be resolved", CONNECT_FAILED) from error
    failure: OSError | None = None
    for family, _, _, _, address in found:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            # One silent address must not use up the time of the others.
            async with asyncio.timeout(settings.connect_timeout_seconds / len(found)):
                await loop.sock_connect(sock, address)
            return SocketStream(sock, "target", server_side=False)
        except OSError as error:  # TimeoutError is one
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    detail = os.strerror(failure.errno) if failure is not None and failure.errno else "timed out"
    raise TargetPeerError(f"the target cannot be reached: {detail}", CONNECT_FAILED) from failure


def _failed(connection: TargetConnection, settings: DialSettings, pins: Pins, login: str) -> TargetPeerError:
    """Say why there was no login."""
    failure = connection.failure
    match failure:
        case HostKeyNotVerifiable():
            shown, known = connection.host_key_fingerprint(), pins.fingerprints()
            text = f"the target's host key is not trusted: it showed {shown}, and {settings.name} has {known}"
            if "not trusted" not in str(failure):
                text += f" ({clean(str(failure))})"  # revoked, expired, another name
        case PermissionDenied():
            methods = ", ".join(connection.offered) or "none"
            text = f"the target refused the gateway's login as {clean(login)} (it takes: {clean(methods)})"
        case KeyExchangeFailed():
            text = f"the target and the gateway have no algorithm in common: {clean(str(failure))}"
        case None:
            text = "the target ended the connection before the login"
        case OSError():
            text = "the connection to the target failed before the login"
        case _:
            text = f"the target ended the login: {clean(str(failure))}"
    error = TargetPeerError(text, CONNECT_FAILED)
    error.__cause__ = failure
    return error
