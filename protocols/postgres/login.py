"""How a user's connection begins: requests for encryption, the start-up packet, and the proof of who it is.

One of three methods, chosen by the listener, for libpq cannot be offered two at once (postgres note 1.5): a token
as cleartext password inside TLS (every driver has it), SCRAM-SHA-256 for locally defined users (PLUS where TLS
is up), OAUTHBEARER (RFC 7628). Before AuthenticationOk nothing but Authentication messages or an error is sent:
a notice there kills libpq and pgjdbc (postgres note 1.3).

Gate.settings read here: tls (SSLContext or None), plain_allowed (bool), login (token | scram | oauth),
certificate (DER of ours, for channel binding), scram_mock_key (bytes), oauth (issuer, scope).
Left out: protocol 2 and GSSAPI (answered as PostgreSQL without them does). Source: PostgreSQL 18 docs 54.2.1,
54.2.10, 54.3; RFC 5802, 7628.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Mapping
from typing import Any, Final, cast

from protocols.postgres import startup
from protocols.postgres.scram import ScramServer
from proxy.core.errors import LoginRefused, UserPeerError
from proxy.core.gate import Gate
from proxy.core.parties import Identity
from proxy.core.stream import Stream, read_exactly

TLS_FIRST_BYTE: Final = 0x16  # a TLS handshake record: PostgreSQL 17 direct TLS, docs 54.2.11
ALPN: Final = "postgresql"
HEAD_BYTES: Final = 8
LAST_WORD_SECONDS: Final = 1.0
LAST_READ_BYTES: Final = 64 * 1024
INVALID_PASSWORD: Final = "28P01"  # noqa: S105  # a SQLSTATE
INVALID_AUTHORIZATION: Final = "28000"
HOW_TO_LOG_IN: Final = "Use a gateway token (gatecast token issue) or an OIDC token as the password."


async def greet(user: Stream, settings: Mapping[str, Any]) -> startup.StartupMessage | startup.CancelRequest | None:
    """Read up to the start-up packet, and end the stream's first phase; None where the user sent nothing at all.

    Raises UserPeerError, whose text is for the user; EOFError, whose text (if it is one) is for the log.
    """
    tls = cast("ssl.SSLContext | None", settings.get("tls"))
    asked: set[type[object]] = set()
    first = await user.peek(1)
    if not first:
        return None
    if first[0] == TLS_FIRST_BYTE:
        if tls is None:
            # PostgreSQL without TLS reads garbage here and closes; an error in the clear would tell nobody.
            raise EOFError("TLS from the first byte, and this listener has none")
        await user.start(tls)
        if user.info("alpn") != ALPN:
            raise UserPeerError(
                "received direct SSL connection request without ALPN protocol negotiation extension", "08P01"
            )
        asked |= {startup.SSLRequest, startup.GSSENCRequest}
    while True:
        message = startup.parse_first(await _packet(user))
        if isinstance(message, startup.StartupMessage | startup.CancelRequest):
            break
        if type(message) in asked:
            raise UserPeerError("unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2", "0A000")
        asked.add(type(message))
        if isinstance(message, startup.GSSENCRequest) or tls is None:
            await user.write(b"N")
            continue
        asked.add(startup.GSSENCRequest)
        await user.write(b"S")
        # Only what comes from here on is read as TLS; the first phase took no byte too many.
        await user.start(tls)
        if user.info("alpn") not in (None, ALPN):
            raise UserPeerError("unexpected ALPN protocol", "08P01")
    if not user.info("tls"):
        await user.start(None)
    return message


async def _packet(user: Stream) -> bytes:
    """Read one packet of the start-up phase, without its length. Raises EOFError, UserPeerError."""
    head = await read_exactly(user, 4)
    length = int.from_bytes(head, "big")
    if not HEAD_BYTES <= length <= startup.STARTUP_LIMIT + 4:
        # PostgreSQL closes without a word; the word costs nothing, and psql with too many settings shows it. What
        # has come is read first: closing with bytes unread would reset the connection and lose the word.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await user.read(LAST_READ_BYTES)
        raise UserPeerError("invalid length of startup packet", "08P01")
    return await read_exactly(user, length - 4)


def negotiate(message: startup.StartupMessage) -> bytes:
    """Return NegotiateProtocolVersion for a user that asked for more than 3.2, or for options; else b''.

    3.2 differs from 3.0 in the length of cancel keys only, and those are our own, whatever the target speaks.
    """
    if message.version <= startup.PROTOCOL_3_2 and not message.unknown_protocol_options:
        return b""
    return startup.encode_negotiate(min(message.version, startup.PROTOCOL_3_2), message.unknown_protocol_options)


async def authenticate(user: Stream, gate: Gate, message: startup.StartupMessage) -> Identity:
    """Find out who it is. Raises LoginRefused, UserPeerError; EOFError where the user went away."""
    settings = gate.settings
    if not user.info("tls") and not settings.get("plain_allowed", False):
        raise UserPeerError(
            "this gateway takes connections in TLS only; connect with sslmode=require", INVALID_AUTHORIZATION
        )
    name = message.parameters.get("user", "")
    before = negotiate(message)
    match settings.get("login", "token"):
        case "scram":
            return await _scram(user, gate, name, before)
        case "oauth":
            return await _oauth(user, gate, name, before)
        case _:
            await user.write(before + startup.encode_auth(startup.AUTH_CLEARTEXT))
            secret = startup.parse_password(await _answer(user))
            try:
                text = secret.decode("utf-8")
            except UnicodeDecodeError:
                raise LoginRefused("the password is not valid UTF-8", HOW_TO_LOG_IN) from None
            if not text:
                raise LoginRefused("no password was given", HOW_TO_LOG_IN)
            return await gate.identities.password(name, text)


async def _answer(user: Stream) -> bytes:
    """Read the body of a 'p' message: password or SASL. Raises EOFError, UserPeerError."""
    head = await read_exactly(user, 5)
    length = int.from_bytes(head[1:], "big")
    if head[0] != ord("p"):
        raise UserPeerError(f"expected password response, got message type {head[0]}", "08P01")
    if not 4 <= length <= startup.PASSWORD_LIMIT + 5:
        raise UserPeerError("the password is too long", "08P01")
    return await read_exactly(user, length - 4)


async def _scram(user: Stream, gate: Gate, name: str, before: bytes) -> Identity:
    server = ScramServer(
        name,
        gate.identities.scram_verifier(name),
        cast(bytes, gate.settings["scram_mock_key"]),
        certificate=cast("bytes | None", gate.settings.get("certificate")) if user.info("tls") else None,
    )
    await user.write(before + startup.encode_sasl_mechanisms(server.mechanisms))
    mechanism, first = startup.parse_sasl_initial(await _answer(user))
    await user.write(startup.encode_auth(startup.AUTH_SASL_CONTINUE, server.begin(mechanism, first)))
    final = server.finish(await _answer(user))
    if final is None:
        raise LoginRefused(f'password authentication failed for user "{name}"')
    await user.write(startup.encode_auth(startup.AUTH_SASL_FINAL, final))
    return await gate.identities.local(name)


async def _oauth(user: Stream, gate: Gate, name: str, before: bytes) -> Identity:
    """RFC 7628: an empty auth value asks where to get a token; libpq 18 does that on a connection of its own."""
    await user.write(before + startup.encode_sasl_mechanisms(("OAUTHBEARER",)))
    mechanism, first = startup.parse_sasl_initial(await _answer(user))
    if mechanism != "OAUTHBEARER" or first is None:
        raise UserPeerError("client selected an invalid SASL authentication mechanism", "08P01")
    token = _bearer(first)
    if not token:
        oauth = cast("Mapping[str, str]", gate.settings.get("oauth") or {})
        issuer = oauth.get("issuer", "").rstrip("/")
        document = {
            "status": "invalid_token",
            "openid-configuration": f"{issuer}/.well-known/openid-configuration",
            "scope": oauth.get("scope", "openid"),
        }
        await user.write(startup.encode_auth(startup.AUTH_SASL_CONTINUE, json.dumps(document).encode()))
        await _answer(user)  # one 0x01: the user has read it
        raise LoginRefused("OAuth bearer authentication failed: no token was sent yet")
    return await gate.identities.password(name, token)


def _bearer(first: bytes) -> str:
    """Return the token of an initial client response, '' where it asks for discovery. Raises UserPeerError."""
    parts = first.split(b"\x01")
    if len(parts) < 4 or parts[-2:] != [b"", b""] or parts[0].split(b",")[0] not in (b"n", b"y"):
        raise UserPeerError("malformed OAUTHBEARER message", "08P01")
    for part in parts[1:-2]:
        key, _, value = part.partition(b"=")
        if key == b"auth":
            if not value:
                return ""
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer" and token:
                return token.strip().decode("ascii", "replace")
            break
    raise UserPeerError("malformed OAUTHBEARER message", "08P01")
