"""How to reach one SSH target: its settings, checked, and the host keys that it may show.

target.settings read here; at least one of the first three must be there, for a host key is never trusted unseen:

- known_hosts: OpenSSH's format, with hashed names, @cert-authority and @revoked: its lines, or a file, which is read
  at each dial.
- host_keys: public keys of the target, each as "ssh-ed25519 AAAA...".
- host_ca: public keys of authorities, whose host certificates for the target's name are trusted.
- host_key_alias: the name that stands in known_hosts and in certificates, where it is not the target's host.
- connect_timeout_seconds: for everything up to the end of the login. rekey: how many bytes one key encrypts.

As OpenSSH does, a port other than 22 is looked up as [name]:port first and as the name alone if that is unknown.
Addresses count only if the target is configured by one: what another host showed is no proof of this one.
Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT; OpenSSH's PROTOCOL.certkeys.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncssh
from asyncssh.public_key import SSHKey

from protocols.ssh import algorithms
from proxy.core.errors import ConfigError
from proxy.core.parties import Target

PORT: Final = 22
CONNECT_TIMEOUT_SECONDS: Final = 15.0  # as protocols/postgres/dial_settings.py
CONNECT_TIMEOUT_LIMIT: Final = 600.0
REKEY_BYTES: Final = 1 << 30  # RFC 4253 9
REKEY_BYTES_LIMIT: Final = 1 << 36  # RFC 4344 3.2: 2^32 blocks of 16 bytes; as proxy/ssh_sections.py
REKEY_BYTES_LEAST: Final = 1 << 16  # below it a connection does little else
KNOWN_HOSTS_BYTES_LIMIT: Final = 16 * 1024 * 1024  # a hundred thousand hosts


@dataclass(frozen=True, slots=True)
class DialSettings:
    """One target's settings. name: what its host keys are looked up by."""

    host: str
    port: int
    name: str
    known_hosts: str | tuple[str, ...]
    host_keys: tuple[SSHKey, ...]
    host_ca: tuple[SSHKey, ...]
    connect_timeout_seconds: float
    rekey_bytes: int


@dataclass(frozen=True, slots=True)
class Pins:
    """The host keys and authorities that are trusted, and the keys that are not, whoever signed them."""

    keys: tuple[SSHKey, ...]
    authorities: tuple[SSHKey, ...]
    revoked: tuple[SSHKey, ...]

    def algorithms(self) -> list[str]:
        """What to ask the target for: the kinds of keys that could be recognised, in our order."""
        of_keys = {name.decode() for key in self.keys for name in key.sig_algorithms}
        names = [name for name in algorithms.SIGNATURES if name in of_keys]
        return [*algorithms.HOST_CERTIFICATES, *names] if self.authorities else names

    def fingerprints(self) -> str:
        """The trusted keys and authorities, for a person."""
        parts = [key.get_fingerprint() for key in self.keys]
        parts += [f"certificates by {key.get_fingerprint()}" for key in self.authorities]
        return ", ".join(parts)


def read_settings(target: Target) -> DialSettings:
    """Read and check the settings of a target. Raises ConfigError."""
    if not target.host:
        raise ConfigError(f"target {target.name}: host is empty")
    known_hosts = _known_hosts(target)
    host_keys, host_ca = _keys(target, "host_keys"), _keys(target, "host_ca")
    if not known_hosts and not host_keys and not host_ca:
        raise ConfigError(f"target {target.name}: one of known_hosts, host_keys and host_ca is needed")
    return DialSettings(
        host=target.host,
        port=target.port or PORT,
        name=_text(target, "host_key_alias") or target.host,
        known_hosts=known_hosts,
        host_keys=host_keys,
        host_ca=host_ca,
        connect_timeout_seconds=_number(target, "connect_timeout_seconds", CONNECT_TIMEOUT_SECONDS, 0.1),
        rekey_bytes=int(_number(target, "rekey", REKEY_BYTES, REKEY_BYTES_LEAST)),
    )


def pins_of(settings: DialSettings) -> Pins:
    """Return what is trusted for the target. Blocks on the file. Raises ConfigError."""
    keys, authorities = list(settings.host_keys), list(settings.host_ca)
    revoked: list[SSHKey] = []
    if settings.known_hosts:
        try:
            known = asyncssh.import_known_hosts(_known_hosts_text(settings.known_hosts))
        except (OSError, ValueError) as error:
            raise ConfigError("the target's known_hosts cannot be read") from error
        port = settings.port if settings.port != PORT else None
        found = known.match(settings.name, "", port)
        keys += found[0]
        authorities += found[1]
        revoked += found[2]
        if port is not None:
            revoked += known.match(settings.name, "", None)[2]  # it counts for the host, whatever its port
    if not keys and not authorities:
        raise ConfigError(f"known_hosts has no key for {settings.name}")
    pins = Pins(tuple(keys), tuple(authorities), tuple(revoked))
    if not pins.algorithms():
        raise ConfigError(f"none of the host keys of {settings.name} is of a kind that is supported")
    return pins


def _known_hosts(target: Target) -> str | tuple[str, ...]:
    value = target.settings.get("known_hosts", ())
    return _lines(target, "known_hosts") if isinstance(value, tuple | list) else _text(target, "known_hosts")


def _known_hosts_text(known_hosts: str | tuple[str, ...]) -> str:
    if isinstance(known_hosts, tuple):
        return "\n".join(known_hosts)
    file = Path(known_hosts)
    if file.stat().st_size > KNOWN_HOSTS_BYTES_LIMIT:
        raise ConfigError(f"known_hosts is larger than {KNOWN_HOSTS_BYTES_LIMIT >> 20} MiB")
    return file.read_text("utf-8", "replace")


def _keys(target: Target, setting: str) -> tuple[SSHKey, ...]:
    try:
        return tuple(asyncssh.import_public_key(line) for line in _lines(target, setting))
    except (ValueError, asyncssh.Error) as error:
        raise ConfigError(f"target {target.name}: {setting} has a line that is no public key") from error


def _lines(target: Target, setting: str) -> tuple[str, ...]:
    value = target.settings.get(setting, ())
    if not isinstance(value, tuple | list) or not all(isinstance(line, str) for line in value):
        raise ConfigError(f"target {target.name}: {setting} is a list of lines")
    return tuple(value)


def _text(target: Target, setting: str) -> str:
    value = target.settings.get(setting, "")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"target {target.name}: {setting} is a text")
    return value


def _number(target: Target, setting: str, default: float, least: float) -> float:
    value = target.settings.get(setting, default)
    most = CONNECT_TIMEOUT_LIMIT if setting.endswith("_seconds") else float(REKEY_BYTES_LIMIT)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"target {target.name}: {setting} is from {least:g} to {most:g}")
    return float(value)
