"""Connect to a PostgreSQL target, secure the connection, log in with the gate's credential, and cancel.

dial() connects (TCP or Unix socket), asks for TLS (or starts with it), sends a StartupMessage made of the
caller's parameters with the credential's user in place of theirs, authenticates, and reads on to the first
ReadyForQuery. It hands all that came after AuthenticationOk to the caller as it came, and reads not a byte more.
Protocol 3.0 is spoken, so cancel keys have 4 bytes. No SQL of ours is ever sent in this session (CVE-2025-12819).

target.host may be a directory (it starts with "/"): the Unix socket in it is used, and there TLS settings do not
count, as in libpq. target.settings (the names are libpq's):

- sslmode: disable | prefer | require | verify-ca | verify-full. Default verify-full; prefer where the host is
  loopback. prefer takes TLS if it is offered and falls back only on the target's plain "no". require checks no
  certificate unless sslrootcert is given; then it is verify-ca, as in libpq.
- sslrootcert: a file of CA certificates; without it the system's are used.
- sslcert, sslkey: our certificate for the target; a Credential's own files come first. No pass phrases.
- sslnegotiation: postgres | direct (TLS with ALPN from the first byte, PostgreSQL 17).
- channel_binding: disable | prefer | require.
- require_auth: comma-separated none, password, md5, scram-sha-256: what may be used to log in; default any.
- hostaddr: connect to this address; host is then the name that the certificate must have.
- connect_timeout_seconds: for everything up to ReadyForQuery.

What the user may learn: a target's own error that is about the user's wishes (no such database, unknown
parameter, too many connections) is a TargetStartupError with its fields. All else that goes wrong is about the
gate's own login and is a TargetLoginError: its text is neutral, its reason is for the operator's log and holds
neither a secret nor words of the target.

Left out: GSSAPI and SSPI (refused by name), Kerberos encryption, several hosts in one target, revocation lists,
caching of salted passwords (4096 iterations are about 1 ms), Cloud SQL's port 3307.

Source: PostgreSQL 18 documentation 54.2.1, 54.2.9, 54.2.10, 34.1.2; errors by SQLSTATE appendix A.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

import structlog

from protocols.postgres import startup
from protocols.postgres.dial_settings import APPLICATION_PROTOCOL, DialSettings, read_settings, tls_context
from protocols.postgres.scram import MECHANISM, MECHANISM_PLUS, ScramClient, end_point
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.parties import Credential, Target
from proxy.core.stream import SocketStream, Stream, read_exactly

CANCEL_SECONDS: Final = 10.0  # pgbouncer's cancel_wait_timeout (its #833)
LOGIN_BYTES_LIMIT: Final = 1024 * 1024  # of what precedes ReadyForQuery; PostgreSQL 18 sends about 500 bytes

UNREACHABLE: Final = "the gateway could not reach the target"
LOGIN_FAILED: Final = "the gateway could not log in to the target"

# SQLSTATE classes that a target answers with before it has authenticated anybody and that are not about the
# login: no such database, out of connections, starting up or shutting down.
_PASSED_BEFORE_LOGIN: Final = frozenset({"3D", "53", "57"})
_LOGIN_CLASS: Final = "28"  # invalid authorization specification; ours, not the user's

_log = structlog.get_logger(__name__)

Address = tuple[object, ...] | str


class TargetStartupError(TargetPeerError):
    """The target refused the session for a reason that the user may know; fields are its ErrorResponse's."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(fields.get("M", "the target refused the session"), fields.get("C", ""))
        self.fields = dict(fields)


class TargetLoginError(TargetPeerError):
    """The gate could not connect or log in. The text tells a user nothing; reason is for the operator's log."""

    def __init__(self, reason: str, text: str = LOGIN_FAILED, code: str = "08004") -> None:
        super().__init__(text, code)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TargetLink:
    """A target that is ready for queries.

    messages is what it sent after AuthenticationOk up to and including ReadyForQuery, raw and in order. pid and
    secret are 0 and b"" where it sent no BackendKeyData (RDS Proxy). address is where it really is: a cancel has
    to go there and not to another address of the same name.
    """

    stream: Stream
    messages: bytes
    pid: int
    secret: bytes = field(repr=False)
    parameters: dict[str, str]
    address: Address


async def dial(target: Target, credential: Credential, parameters: Mapping[str, str]) -> TargetLink:
    """Log in to the target. parameters are the start-up's, in order; user is replaced by the credential's.

    Raises TargetStartupError, TargetLoginError.
    """
    settings = _settings(target)
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            return await _dial(settings, credential, parameters)
    except TargetLoginError as error:
        _log.warning("target login failed", target=target.name, reason=error.reason)
        raise
    except TimeoutError as error:
        reason = f"no login within {settings.connect_timeout_seconds:g} s"
        _log.warning("target login failed", target=target.name, reason=reason)
        raise TargetLoginError(reason, "the target did not answer in time", "08001") from error


async def cancel(
    target: Target, credential: Credential, pid: int, secret: bytes, address: Address | None = None
) -> None:
    """Ask the target to cancel what the backend pid runs now; returns once the target has closed the connection.

    address is the link's. There is no answer, so success is not known. Raises TargetPeerError only, within
    CANCEL_SECONDS.
    """
    settings = _settings(target)
    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            stream, _ = await _connect(settings, address)
            try:
                await _secure(stream, settings, credential)
                await stream.write(startup.encode_cancel(pid, secret))
                # libpq waits for the end too: the signal is on its way once the target closes.
                with contextlib.suppress(TargetPeerError):
                    await stream.read(1)
            finally:
                stream.abort()
    except TimeoutError as error:
        raise TargetLoginError("no answer to a cancel request", "the target did not answer in time", "08001") from error


def _settings(target: Target) -> DialSettings:
    try:
        return read_settings(target)
    except ConfigError as error:
        _log.error("target settings are wrong", target=target.name, reason=str(error))
        raise TargetLoginError(str(error), "the target is not configured correctly", "08001") from error


# -- connecting -------------------------------------------------------------------------------------------


async def _dial(settings: DialSettings, credential: Credential, parameters: Mapping[str, str]) -> TargetLink:
    stream, address = await _connect(settings, None)
    try:
        await _secure(stream, settings, credential)
        login = _Login(stream, settings, credential, _trusted(stream, address))
        return await login.run(parameters, address)
    except (TargetStartupError, TargetLoginError):
        stream.abort()
        raise
    except TargetPeerError as error:
        stream.abort()
        raise TargetLoginError(str(error)) from error
    except BaseException:  # a timeout or a cancellation: nobody will close what nobody was given
        stream.abort()
        raise


async def _connect(settings: DialSettings, address: Address | None) -> tuple[SocketStream, Address]:
    """Connect to address, or to the first of the host's addresses that takes it."""
    loop = asyncio.get_running_loop()
    if settings.unix_path is not None:
        candidates: list[tuple[socket.AddressFamily, Address]] = [(socket.AF_UNIX, settings.unix_path)]
    elif isinstance(address, tuple):
        candidates = [(socket.AF_INET6 if len(address) == 4 else socket.AF_INET, address)]
    else:
        try:
            found = await loop.getaddrinfo(
                settings.hostaddr or settings.host, settings.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
        except (OSError, UnicodeError) as error:
            raise TargetLoginError("the host name could not be resolved", UNREACHABLE, "08001") from error
        candidates = [(family, sockaddr) for family, _, _, _, sockaddr in found]
    failure: OSError | None = None
    for family, sockaddr in candidates:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            # One silent address must not use up the time of the others.
            async with asyncio.timeout(settings.connect_timeout_seconds / len(candidates)):
                await loop.sock_connect(sock, sockaddr)
            return SocketStream(sock, "target", server_side=False), sockaddr
        except OSError as error:  # TimeoutError is one
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    detail = os.strerror(failure.errno) if failure is not None and failure.errno else "timed out"
    raise TargetLoginError(f"no connection: {detail}", UNREACHABLE, "08001") from failure


async def _secure(stream: SocketStream, settings: DialSettings, credential: Credential) -> None:
    """End the stream's first phase, with TLS where the settings and the target want it."""
    try:
        if settings.sslmode == "disable":
            await stream.start(None)
            return
        if settings.sslnegotiation == "postgres" and not await _ask_for_tls(stream, settings):
            await stream.start(None)
            return
        certificate = credential.certificate_file or settings.sslcert
        key = credential.key_file or settings.sslkey
        context = await asyncio.to_thread(tls_context, settings.verify, settings.sslrootcert, certificate, key)
        await stream.start(context, settings.host)
    except TargetLoginError:
        raise
    except ConfigError as error:
        raise TargetLoginError(str(error), "the target is not configured correctly", "08001") from error
    except TargetPeerError as error:
        raise TargetLoginError(str(error), code="08001") from error
    if settings.sslnegotiation == "direct" and stream.info("alpn") != APPLICATION_PROTOCOL:
        raise TargetLoginError("direct TLS, but the target did not select ALPN postgresql", code="08001")


async def _ask_for_tls(stream: SocketStream, settings: DialSettings) -> bool:
    """Send SSLRequest and read the one byte of the answer; what lies behind it stays for the TLS layer."""
    await stream.write(startup.encode_ssl_request())
    match await stream.read(1):
        case b"S":
            return True
        case b"N" if settings.sslmode == "prefer":
            return False
        case b"N":
            raise TargetLoginError(f"the target has no TLS, and sslmode is {settings.sslmode}", code="08001")
        case b"":
            raise TargetLoginError("the target closed the connection at the request for TLS", code="08001")
        case b"E":
            # Its text would come from nobody we know (CVE-2024-10977), so it is not even read.
            raise TargetLoginError("the target answered the request for TLS with an error", code="08001")
        case _:
            raise TargetLoginError("the target does not speak PostgreSQL", code="08001")


def _trusted(stream: SocketStream, address: Address) -> bool:
    """Tell whether nobody on the way can read: TLS, a Unix socket, or loopback."""
    if stream.info("tls") or isinstance(address, str):
        return True
    return ip_address(str(address[0]).partition("%")[0]).is_loopback


# -- logging in -------------------------------------------------------------------------------------------


class _Login:
    """The dialogue from StartupMessage to ReadyForQuery."""

    def __init__(self, stream: SocketStream, settings: DialSettings, credential: Credential, trusted: bool) -> None:
        self._stream = stream
        self._settings = settings
        self._credential = credential
        self._trusted = trusted
        self._scram: ScramClient | None = None
        self._answered = False  # a password or proof was sent

    async def run(self, parameters: Mapping[str, str], address: Address) -> TargetLink:
        """Send the start-up, authenticate, and read on to ReadyForQuery."""
        merged = {name: value for name, value in parameters.items() if name != "user"}
        try:
            packet = startup.encode_startup({"user": self._credential.user, **merged})
        except ValueError as error:
            # Too long, or a NUL that only a configured value can hold: the error of a server that got it.
            raise TargetStartupError({"S": "FATAL", "V": "FATAL", "C": "08P01", "M": str(error)}) from error
        await self._stream.write(packet)
        await self._authenticate()
        return await self._settle(address)

    async def _authenticate(self) -> None:
        """Answer authentication requests up to AuthenticationOk."""
        total = 0
        while True:
            kind, body = await self._read()
            total += len(body)
            if total > LOGIN_BYTES_LIMIT:
                raise TargetLoginError("the target sent too much during the login")
            match kind:
                case b"R":
                    if len(body) > startup.AUTH_LIMIT:
                        raise TargetLoginError("an authentication request is too long")
                    code, data = startup.parse_auth(body)
                    if code == startup.AUTH_OK:
                        self._check_proven()
                        return
                    answer = await self._answer(code, data)
                    if answer is not None:
                        await self._stream.write(answer)
                case b"N":
                    # About our login, so not the user's to read; libpq would fail here, poolers do send it.
                    startup.error_fields(body)
                case b"E":
                    raise self._refusal(startup.error_fields(body), authenticated=False)
                case _:
                    raise TargetLoginError("the target broke the protocol during the login")

    async def _answer(self, code: int, data: bytes) -> bytes | None:
        """Return the message that answers one authentication request, if any is due. Raises TargetLoginError."""
        if code == startup.AUTH_SASL_CONTINUE and self._scram is not None:
            # PBKDF2 holds no lock, and may be asked for ten million rounds: off the loop.
            return startup.encode_sasl_response(await asyncio.to_thread(self._scram.final, data))
        if code == startup.AUTH_SASL_FINAL and self._scram is not None:
            self._scram.verify(data)
            return None
        if self._answered:
            raise TargetLoginError("the target asked for a second proof")
        self._answered = True
        match code:
            case startup.AUTH_CLEARTEXT:
                self._permit_method("password")
                if not self._trusted:
                    raise TargetLoginError("the target asked for the password in the clear, without TLS")
                return self._password_message(self._secret().encode("utf-8", "surrogateescape"))
            case startup.AUTH_MD5:
                self._permit_method("md5")
                if len(data) != 4:
                    raise TargetLoginError("the target sent a malformed md5 salt")
                return self._password_message(_md5(self._credential.user, self._secret(), data))
            case startup.AUTH_SASL:
                self._permit_method("scram-sha-256")
                return self._start_scram(startup.parse_sasl_mechanisms(data))
            case startup.AUTH_GSS | startup.AUTH_GSS_CONTINUE | startup.AUTH_SSPI:
                raise TargetLoginError("the target asked for GSSAPI or SSPI, which the gateway does not speak")
            case _:
                raise TargetLoginError(f"the target asked for an unknown authentication ({code})")

    def _start_scram(self, mechanisms: tuple[str, ...]) -> bytes:
        """Choose PLUS wherever it can be used, and begin."""
        wanted = self._settings.channel_binding
        tls = bool(self._stream.info("tls"))
        binding = end_point(self._stream.info("certificate")) if tls and wanted != "disable" else None
        if binding is not None and MECHANISM_PLUS in mechanisms:
            self._scram = ScramClient(self._secret(), binding=binding)
        elif wanted == "require":
            raise TargetLoginError("channel binding is required, and impossible with this target")
        elif MECHANISM in mechanisms:
            self._scram = ScramClient(self._secret(), binding_possible=binding is not None)
        else:
            raise TargetLoginError("the target offers no SASL mechanism that the gateway speaks")
        return startup.encode_sasl_initial(self._scram.mechanism, self._scram.first())

    def _permit_method(self, method: str) -> None:
        allowed = self._settings.require_auth
        if allowed and method not in allowed:
            raise TargetLoginError(f"the target asked for {method}, which require_auth does not allow")
        if self._settings.channel_binding == "require" and method != "scram-sha-256":
            raise TargetLoginError(f"channel binding is required, but the target asked for {method}")

    def _check_proven(self) -> None:
        """AuthenticationOk must not cut a SCRAM exchange short: the target has to prove itself (RFC 5802 5)."""
        if self._scram is not None:
            if not self._scram.verified:
                raise TargetLoginError("the target ended the SCRAM exchange without its own proof")
        elif not self._answered:
            self._permit_method("none")

    def _secret(self) -> str:
        if self._credential.secret is None:
            raise TargetLoginError("the target asked for a password, and the credential has none")
        return self._credential.secret.reveal()

    def _password_message(self, password: bytes) -> bytes:
        if len(password) >= startup.PASSWORD_LIMIT or b"\0" in password or not password:
            raise TargetLoginError("the credential's password is empty, too long, or holds a NUL")
        return startup.encode_password(password)

    async def _settle(self, address: Address) -> TargetLink:
        """Collect what follows AuthenticationOk, up to and including the first ReadyForQuery."""
        messages = bytearray()
        parameters: dict[str, str] = {}
        pid, secret = 0, b""
        while True:
            kind, body = await self._read()
            messages += startup.encode_message(kind, body)
            if len(messages) > LOGIN_BYTES_LIMIT:
                raise TargetLoginError("the target sent too much before it was ready")
            match kind:
                case b"S":
                    name, value = startup.parse_parameter_status(body)
                    parameters[name] = value
                case b"K":
                    pid, secret = startup.parse_backend_key(body)
                case b"N":
                    startup.error_fields(body)
                case b"E":
                    raise self._refusal(startup.error_fields(body), authenticated=True)
                case b"Z":
                    return TargetLink(self._stream, bytes(messages), pid, secret, parameters, address)
                case _:
                    raise TargetLoginError("the target broke the protocol before it was ready")

    def _refusal(self, fields: Mapping[str, str], authenticated: bool) -> TargetPeerError:
        """Tell an error of the user's wishes from one of our login; what is not surely the former is the latter."""
        code = fields.get("C", "")
        known = len(code) == 5 and code.isascii() and code.isalnum()
        if known and code[:2] != _LOGIN_CLASS and (authenticated or code[:2] in _PASSED_BEFORE_LOGIN):
            return TargetStartupError({key: self._scrubbed(value) for key, value in fields.items()})
        return TargetLoginError(f"the target refused the login, SQLSTATE {code if known else 'unknown'}")

    def _scrubbed(self, text: str) -> str:
        """Promise 6, even against a target that quotes back what it was told."""
        secret = self._credential.secret.reveal() if self._credential.secret is not None else ""
        return text.replace(secret, "***") if secret else text

    async def _read(self) -> tuple[bytes, bytes]:
        """Read one message, and not a byte behind it."""
        try:
            header = await read_exactly(self._stream, 5)
            size = int.from_bytes(header[1:], "big") - 4
            if not 0 <= size <= startup.LOGIN_MESSAGE_LIMIT:
                raise TargetLoginError("the target does not speak PostgreSQL, or its message is too long")
            return header[:1], await read_exactly(self._stream, size)
        except EOFError as error:
            raise TargetLoginError("the target closed the connection during the login") from error


def _md5(user: str, password: str, salt: bytes) -> bytes:
    """Return PostgreSQL's md5 answer. Source: documentation 54.2.1, AuthenticationMD5Password."""
    names = [text.encode("utf-8", "surrogateescape") for text in (password, user)]
    inner = hashlib.md5(b"".join(names), usedforsecurity=False).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + salt, usedforsecurity=False).hexdigest().encode()
