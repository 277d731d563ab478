"""How to reach one PostgreSQL target: its settings, checked, and the TLS context they ask for.

Pure reading of configuration, apart from the certificate files that tls_context() loads (in a thread: see dial.py).
The names and meanings are libpq's; dial.py's docstring lists them.

Source: PostgreSQL 18 documentation 34.1.2 (parameter key words) and 34.19 (SSL support).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal

from proxy.core.errors import ConfigError
from proxy.core.parties import Target

APPLICATION_PROTOCOL: Final = "postgresql"  # ALPN, PostgreSQL docs 54.2.10
CONNECT_TIMEOUT_SECONDS: Final = 15.0
CONNECT_TIMEOUT_LIMIT: Final = 600.0  # PostgreSQL's own authentication_timeout ends there
CONTEXT_LIMIT: Final = 256  # TLS contexts kept; one a target and certificate

_SSLMODES: Final = ("disable", "prefer", "require", "verify-ca", "verify-full")
_METHODS: Final = frozenset({"none", "password", "md5", "scram-sha-256"})

Verify = Literal["nothing", "chain", "name"]


@dataclass(frozen=True, slots=True)
class DialSettings:
    """One target's settings, checked against each other. unix_path is the socket's own path, None for TCP."""

    host: str
    port: int
    hostaddr: str
    unix_path: str | None
    sslmode: str
    verify: Verify
    sslrootcert: str | None
    sslcert: str | None
    sslkey: str | None
    sslnegotiation: str
    channel_binding: str
    require_auth: frozenset[str]
    connect_timeout_seconds: float


def read_settings(target: Target) -> DialSettings:
    """Read and check the settings of a target. Raises ConfigError."""
    host = target.host
    port = target.port or 5432
    if not host:
        raise ConfigError(f"target {target.name}: host is empty")
    local_path = f"{host.rstrip('/')}/.s.PGSQL.{port}" if host.startswith("/") else None
    rootcert = _text(target, "sslrootcert", "") or None
    if local_path is not None:
        sslmode = "disable"
    else:
        address = _text(target, "hostaddr", "") or host
        sslmode = _choice(target, "sslmode", _SSLMODES, "prefer" if is_loopback(address) else "verify-full")
    verify: Verify = "nothing"
    if sslmode == "verify-full":
        verify = "name"
    elif sslmode == "verify-ca" or (sslmode == "require" and rootcert is not None):
        verify = "chain"
    negotiation = _choice(target, "sslnegotiation", ("postgres", "direct"), "postgres")
    if negotiation == "direct" and local_path is None and sslmode in ("disable", "prefer"):
        raise ConfigError(f"target {target.name}: sslnegotiation direct needs sslmode require or stronger")
    channel_binding = _choice(target, "channel_binding", ("disable", "prefer", "require"), "prefer")
    if channel_binding == "require" and sslmode == "disable":
        raise ConfigError(f"target {target.name}: channel_binding require needs TLS")
    certificate, key = _text(target, "sslcert", "") or None, _text(target, "sslkey", "") or None
    if key is not None and certificate is None:
        raise ConfigError(f"target {target.name}: sslkey without sslcert")
    return DialSettings(
        host=host,
        port=port,
        hostaddr=_text(target, "hostaddr", ""),
        unix_path=local_path,
        sslmode=sslmode,
        verify=verify,
        sslrootcert=rootcert,
        sslcert=certificate,
        sslkey=key,
        sslnegotiation=negotiation,
        channel_binding=channel_binding,
        require_auth=_methods(target),
        connect_timeout_seconds=_seconds(target),
    )


def is_loopback(host: str) -> bool:
    """Tell whether a host's name or address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def tls_context(verify: Verify, rootcert: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    """Return the context, from a cache as long as the files stay the same. Blocks on files. Raises ConfigError."""
    files = tuple((name, _stamp(name)) for name in (rootcert, certificate, key) if name is not None)
    return _context(verify, rootcert, certificate, key, files)


@lru_cache(maxsize=CONTEXT_LIMIT)
def _context(
    verify: Verify, rootcert: str | None, certificate: str | None, key: str | None, files: tuple[object, ...]
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([APPLICATION_PROTOCOL])
    context.check_hostname = verify == "name"
    context.verify_mode = ssl.CERT_NONE if verify == "nothing" else ssl.CERT_REQUIRED
    try:
        if rootcert is not None:
            context.load_verify_locations(cafile=rootcert)
        elif verify != "nothing":
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("the target's sslrootcert cannot be read") from error
    try:
        if certificate is not None:
            # A password of its own keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError("the client certificate or key for the target cannot be read") from error
    return context


def _stamp(name: str) -> tuple[int, int, int]:
    try:
        found = Path(name).stat()
    except OSError as error:
        raise ConfigError("a certificate file of the target cannot be read") from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _methods(target: Target) -> frozenset[str]:
    text = _text(target, "require_auth", "")
    methods = frozenset(part.strip() for part in text.split(",") if part.strip())
    if methods - _METHODS:
        raise ConfigError(f"target {target.name}: require_auth knows {', '.join(sorted(_METHODS))} only")
    return methods


def _seconds(target: Target) -> float:
    value = target.settings.get("connect_timeout_seconds", CONNECT_TIMEOUT_SECONDS)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= CONNECT_TIMEOUT_LIMIT:
        raise ConfigError(f"target {target.name}: connect_timeout_seconds is above 0, up to {CONNECT_TIMEOUT_LIMIT:g}")
    return float(value)


def _choice(target: Target, name: str, choices: tuple[str, ...], default: str) -> str:
    value = _text(target, name, default)
    if value not in choices:
        raise ConfigError(f"target {target.name}: {name} is one of {', '.join(choices)}")
    return value


def _text(target: Target, name: str, default: str) -> str:
    value = target.settings.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConfigError(f"target {target.name}: {name} is a text")
    return value
