"""What the configuration names of SSH, read and checked: known hosts, public keys, authorities. Nothing is made here.

Each function raises ConfigError with the file and its line; proxy/snapshot.py puts the line of gatecast.yaml before it.
Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; sshd_config(5), TrustedUserCAKeys.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from proxy.config import Loaded
from proxy.core.errors import ConfigError
from proxy.identity.proof import ProofRefused, check_groups
from proxy.identity.ssh_certificate import PublicKey, read_line
from proxy.identity.ssh_logins import UserAuthority
from proxy.ssh_sections import ListenerSsh, TargetSsh

if TYPE_CHECKING:
    from proxy.sections import Config

LINES_LIMIT_BYTES: Final = 4 << 20  # 10,000 hosts of 400 bytes, as proxy/lines.py has them
_MARKERS: Final = frozenset({"@cert-authority", "@revoked"})


def settings_of(loaded: Loaded, section: TargetSsh, login: str) -> dict[str, object]:
    """A target's settings, as proxy/ssh_sections.py lists them. Raises ConfigError."""
    known_hosts = _known_hosts(loaded.resolve(section.known_hosts)) if section.known_hosts is not None else ()
    host_keys = tuple(public_key(line, "ssh.host_keys").line for line in section.host_keys)
    host_ca = tuple(key.line for word in section.host_ca for key in _authorities(loaded, word))
    if not known_hosts and not host_keys and not host_ca:
        raise ConfigError("no host key is known of it: known_hosts, host_keys and host_ca name none")
    return {
        "login": login,
        "known_hosts": known_hosts,
        "host_keys": host_keys,
        "host_ca": host_ca,
        "exec_only": section.exec_only,
        "env": section.env,
        "logins": section.logins,
        "record_contents": section.record_contents,
        "hold_when_unsure": section.hold_when_unsure,
        "rekey": section.rekey,
        **({"host_key_alias": section.host_key_alias} if section.host_key_alias else {}),
    }


def authorities_of(loaded: Loaded, section: ListenerSsh) -> tuple[UserAuthority, ...]:
    """The authorities of others that a listener trusts. Raises ConfigError."""
    found: dict[bytes, UserAuthority] = {}
    for entry in section.user_cas:
        path = loaded.resolve(entry.file)
        try:
            groups = check_groups(entry.groups)
        except ProofRefused as error:
            raise ConfigError(f"{path}: a group cannot be named so ({error})") from error
        for key in public_keys(path):
            if key.blob in found:
                raise ConfigError(f"{path}: the authority {key.fingerprint} is named twice")
            found[key.blob] = UserAuthority(key, entry.subject, groups)
    return tuple(found.values())


def files_of(config: Config) -> Iterator[Path | None]:
    """The files whose change asks for a reload."""
    yield config.identity.ssh.user_ca
    for listener in config.listeners:
        if listener.ssh is not None:
            yield listener.ssh.host_ca
            yield from listener.ssh.host_keys
            yield from listener.ssh.host_certificates
            yield from (entry.file for entry in listener.ssh.user_cas)
    for target in config.targets:
        if target.ssh is not None:
            yield target.ssh.known_hosts
            yield from (Path(word) for word in target.ssh.host_ca if not _is_key(word))


def public_keys(path: Path) -> tuple[PublicKey, ...]:
    """The public keys of a file, one a line, at least one. Raises ConfigError."""
    keys = tuple(public_key(line, f"{path}:{number}") for number, line in _lines(path))
    if not keys:
        raise ConfigError(f"{path}: holds no public key")
    return keys


def public_key(line: str, where: str) -> PublicKey:
    """Read the line of a public key. Raises ConfigError that begins with where."""
    try:
        return read_line(line)
    except ProofRefused as error:
        raise ConfigError(f"{where}: is no public key that is good enough ({error})") from error


def _authorities(loaded: Loaded, word: str) -> tuple[PublicKey, ...]:
    return (public_key(word, "ssh.host_ca"),) if _is_key(word) else public_keys(loaded.resolve(Path(word)))


def _is_key(word: str) -> bool:
    """Tell the line of a key from the path of a file: it has two words, the second of which is base64 of its kind."""
    parts = word.split()
    return len(parts) >= 2 and parts[1].startswith("AAAA")


def _known_hosts(path: Path) -> tuple[str, ...]:
    """The lines of a known_hosts file that say something. Raises ConfigError."""
    found = []
    for number, line in _lines(path):
        parts = line.split()
        if parts[0].startswith("@"):
            if parts[0] not in _MARKERS:
                raise ConfigError(f"{path}:{number}: knows no {parts[0]}; @cert-authority and @revoked are")
            parts = parts[1:]
        if len(parts) < 3:
            raise ConfigError(f"{path}:{number}: a line is names, a kind of key, and base64")
        found.append(line)
    if not found:
        raise ConfigError(f"{path}: holds no host key")
    return tuple(found)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are neither empty nor comments, with their numbers."""
    try:
        with path.open("rb") as file:
            raw = file.read(LINES_LIMIT_BYTES + 1)
        if len(raw) > LINES_LIMIT_BYTES:
            raise ConfigError(f"{path}: is longer than {LINES_LIMIT_BYTES} bytes")
        text = raw.decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8") from error
    for number, row in enumerate(text.splitlines(), 1):
        line = row.strip()
        if line and not line.startswith("#"):
            yield number, line
