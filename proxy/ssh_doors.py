"""From an SSH listener's configuration to what its protocol shows: host keys, and certificates of our host CA.

door_of() is called at the start and at every reload, and reads or makes the keys then. Host certificates are signed
when a name is asked for first, kept, and signed again when half of their time is over; that takes a tenth of a
millisecond and no file. The names are those of configured targets and of the gateway itself, but a user may ask for
others, so the number of certificates that are kept is bounded.
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.config import Loaded
from proxy.core.doors import SshDoor
from proxy.core.errors import ConfigError
from proxy.core.parties import Secret
from proxy.identity.proof import ProofRefused
from proxy.identity.ssh_ca import (
    HOST_KEY_NAME,
    HOST_SECONDS,
    Authority,
    AuthorityFiles,
    load_authority,
    load_private,
)
from proxy.identity.ssh_certificate import HOST, LINE_LIMIT, Certificate, PublicKey, read_certificate_line, read_line
from proxy.identity.ssh_logins import SshTrust
from proxy.sections import Listener
from proxy.snapshot import Snapshot
from proxy.ssh_sections import SSH, ListenerSsh

NAMES_LIMIT: Final = 1024  # names whose certificates are kept: some 600 bytes for each host key


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host key: its public half, and the private one as text."""

    path: Path
    public: PublicKey
    private: Secret


class HostCertificates:
    """The host certificates of a listener: an SshDoor's host_certificates.

    names: the gateway's own. given: certificates that another authority has signed, shown for the gateway itself.
    """

    def __init__(
        self,
        authority: Authority,
        keys: tuple[PublicKey, ...],
        names: tuple[str, ...],
        given: tuple[str, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._keys = tuple(key for key in keys if not key.hardware)
        self._names = names
        self._given = given
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()

    def __call__(self, name: str) -> tuple[str, ...]:
        """Certificate lines for a name, "" for the gateway's own; () for a name that cannot be certified."""
        if not name and self._given:
            return self._given
        renew_at, lines = self._kept.get(name, (0.0, ()))
        now = self._clock()
        if now >= renew_at:
            try:
                names = (name,) if name else self._names
                lines = tuple(self._authority.sign_host(key, names).line for key in self._keys)
            except ConfigError:
                return ()  # a user asked for what is no name: without a certificate, his client sees the bare key
            self._kept[name] = (now + HOST_SECONDS / 2, lines)
            if len(self._kept) > NAMES_LIMIT:
                self._kept.popitem(last=False)
        return lines


def door_of(loaded: Loaded, listener: Listener) -> SshDoor:
    """What a listener shows, with keys made where they are missing. Raises ConfigError."""
    section = listener.ssh or ListenerSsh()
    files = AuthorityFiles.of(loaded.state)
    keys = host_keys(loaded, section) or (_host_key(files.host_key),)
    authority = files.host_ca(loaded.resolve(section.host_ca) if section.host_ca is not None else None)
    given = tuple(one.line for one in host_certificates(loaded, section, keys))
    if not given:
        authority.sign_host(keys[0].public, names_of(section))  # an error of the start, not of the first user
    certificates = HostCertificates(authority, tuple(key.public for key in keys), names_of(section), given)
    methods: tuple[str, ...] = tuple(section.login)
    return SshDoor(tuple(key.private for key in keys), certificates, section.banner, methods)


def check_door(loaded: Loaded, listener: Listener) -> dict[str, str]:
    """Look at all that door_of() would read, and make nothing; return what to tell of it. Raises ConfigError."""
    section = listener.ssh or ListenerSsh()
    keys = host_keys(loaded, section)
    made = AuthorityFiles.of(loaded.state).directory / HOST_KEY_NAME
    if not keys and made.exists():
        keys = (_host_key(made),)
    for configured in (section.host_ca, loaded.config.identity.ssh.user_ca):
        if configured is not None:
            load_authority(loaded.resolve(configured))
    if keys:
        host_certificates(loaded, section, keys)
    shown = ", ".join(f"{key.public.kind} {key.public.fingerprint}" for key in keys)
    return {"host_key": shown or "a host key that the first start makes"}


def host_keys(loaded: Loaded, section: ListenerSsh) -> tuple[HostKey, ...]:
    """The configured host keys. Raises ConfigError."""
    return tuple(_host_key(loaded.resolve(path)) for path in section.host_keys)


def host_certificates(loaded: Loaded, section: ListenerSsh, keys: tuple[HostKey, ...]) -> tuple[Certificate, ...]:
    """The configured host certificates, each of one of the keys. Raises ConfigError."""
    found = []
    for file in section.host_certificates:
        path = loaded.resolve(file)
        try:
            with path.open("rb") as opened:
                certificate = read_certificate_line(opened.read(LINE_LIMIT + 1).decode())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (ProofRefused, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: holds no certificate that is good enough ({error})") from error
        if certificate.type != HOST:
            raise ConfigError(f"{path}: is a user certificate; ssh-keygen -h makes one for a host")
        if all(certificate.key.blob != key.public.blob for key in keys):
            raise ConfigError(f"{path}: is of none of the host keys")
        found.append(certificate)
    return tuple(found)


def names_of(section: ListenerSsh) -> tuple[str, ...]:
    """The gateway's own names, as its host certificates have them."""
    return section.names or (socket.gethostname(),)


def trust_of(snapshot: Snapshot) -> SshTrust:
    """Whose user certificates count; the own user CA is made if there is a listener for it. Raises ConfigError."""
    loaded = snapshot.loaded
    if all(listener.protocol != SSH for listener in loaded.config.listeners):
        return SshTrust()
    configured = loaded.config.identity.ssh.user_ca
    own = AuthorityFiles.of(loaded.state).user_ca(loaded.resolve(configured) if configured is not None else None)
    return SshTrust(own.public, snapshot.user_authorities)


def _host_key(path: Path) -> HostKey:
    key, text = load_private(path)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    try:
        return HostKey(path, read_line(line), Secret(text))
    except ProofRefused as error:
        raise ConfigError(f"{path}: the key is not good enough ({error})") from error
