"""Connect to an HTTP target by TLS, its certificate checked; and the field that bears the gate's own token.

A connection offers ALPN http/1.1 alone (upgrades need it) and shows the client certificate, where the credential has
one. A bearer token is the request's: authorization(). The certificate's authority, and the client's certificate, are
read at each dial, so that rotated files count; contexts are kept, as making one reads all public authorities.
Left out: proxies (HTTP CONNECT, proxy-url), happy eyeballs. Source: kubernetes note 9; RFC 6750 2.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

import structlog

from proxy.core.errors import TargetPeerError
from proxy.core.http.heads import Fields
from proxy.core.parties import Credential, Secret
from proxy.core.stream import SocketStream, Stream

ALPN: Final = "http/1.1"
PEM_LIMIT_BYTES: Final = 1 << 20  # the bundles of public authorities have 250 KiB
CONTEXTS_LIMIT: Final = 64  # targets at a time; more are made anew at each dial
TOKEN_LIMIT: Final = 32 * 1024  # half of what an API server takes as the head of a request: http.DefaultMaxHeaderBytes
_TOKEN: Final = re.compile(r"[!-~]+")  # what a field may carry: RFC 9110 5.5; RFC 6750's own b64token is stricter
_CERTIFICATES: Final = re.compile(r"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?-----END [A-Z0-9 ]+-----", re.S)

# Why OpenSSL did not take a certificate, and what to do. Source: OpenSSL 3, include/openssl/x509_vfy.h.in.
_ISSUER_UNKNOWN: Final = frozenset({2, 7, 18, 19, 20, 21})  # 7: an authority of the same name, and another key
_OUT_OF_DATE: Final = frozenset({9, 10})
_ANOTHER_NAME: Final = frozenset({62, 64})

_log = structlog.get_logger(__name__)


class Place(Protocol):
    """Where a target is. server_name: what its certificate is checked against. No ca_file, no ca_data: public ones."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def server_name(self) -> str: ...
    @property
    def ca_file(self) -> str: ...
    @property
    def ca_data(self) -> str: ...
    @property
    def connect_timeout_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about a certificate that was not accepted, in the words of a protocol's settings.

    private: the authority that is named is not its; public: none is named; name: it is for another name.
    """

    private: str
    public: str
    name: str


async def connect(place: Place, credential: Credential, advice: Advice) -> Stream:
    """Return a connection to a place, past TLS. Raises TargetPeerError."""
    stream: SocketStream | None = None
    try:
        async with asyncio.timeout(place.connect_timeout_seconds):
            context = await asyncio.to_thread(tls_context, place, credential)
            stream = await _connect(place)
            await stream.start(context, place.server_name, whole=True)
        if stream.info("alpn") not in (None, ALPN):
            raise TargetPeerError(f"the target speaks {stream.info('alpn')} where {ALPN} was offered")
    except TimeoutError as error:
        _drop(stream)
        what = "to shake hands by TLS" if stream is not None else "to connect"
        text = f"the target took longer than {place.connect_timeout_seconds:g} seconds {what}"
        raise TargetPeerError(text) from error
    except TargetPeerError as error:
        _drop(stream)
        raise _explained(error, place, advice) from error.__cause__
    except BaseException:  # a cancellation too: nobody will close what nobody was given
        _drop(stream)
        raise
    return stream


def authorization(credential: Credential) -> Fields:
    """The field that shows the credential's token; none for a client certificate. Raises TargetPeerError."""
    if credential.secret is None:
        return ()
    token = credential.secret.reveal()
    if len(token) > TOKEN_LIMIT or not _TOKEN.fullmatch(token):
        raise TargetPeerError("the gateway's token for the target cannot be sent; ask its operator")
    return (("Authorization", f"Bearer {token}"),)


def tls_context(settings: Place, credential: Credential) -> ssl.SSLContext:
    """The context of dial()'s connections, for ``gatecast kube check``. Blocks. Raises TargetPeerError."""
    return _context(_material(settings, credential))


# -- the connection -----------------------------------------------------------------------------------


async def _connect(settings: Place) -> SocketStream:
    """Connect to the first of the host's addresses that takes it."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise TargetPeerError("the target's host name could not be resolved") from error
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
    raise TargetPeerError(f"the target cannot be reached: {detail}") from failure


def _drop(stream: SocketStream | None) -> None:
    if stream is not None:
        stream.abort()


def _explained(error: TargetPeerError, settings: Place, words: Advice) -> TargetPeerError:
    """Say what to do about a certificate that was not accepted."""
    cause = error.__cause__
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return error
    if cause.verify_code in _ISSUER_UNKNOWN:
        advice = words.private if settings.ca_file or settings.ca_data else words.public
    elif cause.verify_code in _ANOTHER_NAME:
        advice = f"it is not for {settings.server_name}: {words.name}"
    elif cause.verify_code in _OUT_OF_DATE:
        advice = "its dates are not of now: renew it, or set the clock"
    else:
        return error
    return TargetPeerError(f"{error}; {advice}")


# -- the context of TLS -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Material:
    """What a context is made of, in PEM form. ca: "" for the public authorities. Same values, same context."""

    ca: str
    certificate: Secret | None = None
    key: Secret | None = None
    passphrase: Secret | None = None


def _material(settings: Place, credential: Credential) -> _Material:
    """Read the files of now. Blocks. Raises TargetPeerError."""
    ca = _read(settings.ca_file, "certificate authority") if settings.ca_file else settings.ca_data
    if settings.ca_file or settings.ca_data:
        ca = "\n".join(_CERTIFICATES.findall(ca))
        if not ca:
            raise TargetPeerError("the certificate authority of the target holds no certificate; ask the operator")
    certificate, key = credential.certificate, credential.key
    if certificate is None and credential.certificate_file is not None:
        certificate = Secret(_read(credential.certificate_file, "client certificate"))
        key = Secret(_read(credential.key_file or credential.certificate_file, "client key"))
    return _Material(ca, certificate, key, credential.passphrase)


def _read(name: str, what: str) -> str:
    try:
        with Path(name).open("rb") as file:
            data = file.read(PEM_LIMIT_BYTES + 1)
    except OSError as error:
        _log.error("target settings are wrong", file=name, reason=error.strerror)
        raise TargetPeerError(f"the {what} for the target cannot be read; ask the operator") from error
    if len(data) > PEM_LIMIT_BYTES:
        raise TargetPeerError(f"the {what} for the target is larger than {PEM_LIMIT_BYTES} bytes")
    return data.decode("ascii", "replace")


@lru_cache(maxsize=CONTEXTS_LIMIT)
def _context(material: _Material) -> ssl.SSLContext:
    """Make a context. Blocks. Raises TargetPeerError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it checks certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As Go does: whatever is named as an authority is one, also an intermediate, or the server's own certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols([ALPN])
    try:
        if material.ca:
            context.load_verify_locations(cadata=material.ca)
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    except (ssl.SSLError, ValueError) as error:
        raise TargetPeerError("the certificate authority of the target is damaged; ask the operator") from error
    if material.certificate is not None:
        _load_pair(context, material)
    return context


def _load_pair(context: ssl.SSLContext, material: _Material) -> None:
    assert material.certificate is not None
    key = material.key.reveal() if material.key is not None else ""
    passphrase = material.passphrase.reveal() if material.passphrase is not None else ""
    with _nameless(f"{material.certificate.reveal()}\n{key}\n".encode()) as path:
        try:
            # The answer to a question for a password; without one OpenSSL would ask the terminal.
            context.load_cert_chain(path, password=lambda: passphrase)
        except (OSError, ssl.SSLError):
            # Without the cause: OpenSSL's reasons for a key belong to nobody but the operator, who has openssl(1).
            text = "the gateway's client certificate for the target and its key do not go together; ask the operator"
            raise TargetPeerError(text) from None


@contextlib.contextmanager
def _nameless(data: bytes) -> Iterator[str]:
    """A file for OpenSSL, which reads keys from files alone; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("gatecast", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as memory:
            memory.write(data)
            memory.flush()
            yield f"/proc/self/fd/{descriptor}"
        return
    with tempfile.NamedTemporaryFile() as file:  # mode 0600
        file.write(data)
        file.flush()
        yield file.name
