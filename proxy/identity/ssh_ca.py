"""The gateway's SSH authorities: who may log in to it (user CA), that a host is what it is called (host CA).

Keys are Ed25519 files in the state directory (ssh/user_ca, ssh/host_ca, and ssh/host_ed25519, the host key), made on
first use by whichever process comes first, mode 0600, their public halves beside them as .pub; others may be named in
the configuration. ssh-keygen reads them all.

A user certificate says in an extension of our own, identity@gatecast, whose it is: subject, groups, agents and issuer
as they were when it was made, and the proof that asked for it. So the holder keeps these groups and no others until
it ends, which is minutes later, and never after the proof itself. It is worth something only where this user CA is
trusted: with us; a target that names it in TrustedUserCAKeys lets its holder in without us.

Left out: authorities with passphrases, in agents, in hardware; certificates of FIDO keys (register these instead);
OpenSSH's key revocation lists (the store says what is revoked).
Source: OpenSSH's PROTOCOL.certkeys; ssh-keygen(1), "CERTIFICATES".
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
    load_pem_private_key,
    load_ssh_private_key,
)

from proxy.core.errors import ConfigError
from proxy.core.parties import Identity
from proxy.identity.proof import ProofRefused, check_agents, check_groups, check_subject
from proxy.identity.ssh_certificate import (
    KEY_LIMIT,
    PRINCIPALS_LIMIT,
    Certificate,
    PublicKey,
    read_certificate_line,
    read_line,
)

DIRECTORY_NAME: Final = "ssh"  # in the state directory
USER_CA_NAME: Final = "user_ca"
HOST_CA_NAME: Final = "host_ca"
HOST_KEY_NAME: Final = "host_ed25519"

DEFAULT_SECONDS: Final = 15 * 60.0
VALID_LIMIT_SECONDS: Final = 7 * 86_400.0  # as proxy/ssh_sections.py: beyond a week it is a key
HOST_SECONDS: Final = 86_400.0  # a host certificate is signed again when half of this is over
BACKDATED_SECONDS: Final = 60.0  # clocks of users and hosts may be behind
PRIVATE_KEY_LIMIT: Final = 32_768  # a key of RSA 16384 has 13 kB
IDENTITY_EXTENSION: Final = "identity@gatecast"
ANY_LOGIN: Final = "*"
NAME_LIMIT: Final = 255  # RFC 1035 2.3.4: a host's name; user names are shorter
KEY_ID_LIMIT: Final = 1024
COMMAND_LIMIT: Final = 8192

PERMITS: Final = frozenset({
    "permit-pty", "permit-port-forwarding", "permit-agent-forwarding", "permit-X11-forwarding", "permit-user-rc",
})  # fmt: skip
DEFAULT_PERMITS: Final = frozenset({"permit-pty", "permit-port-forwarding", "permit-agent-forwarding"})

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


class Authority:
    """A private key that signs certificates."""

    def __init__(self, key: PrivateKey, clock: Callable[[], float] = time.time) -> None:
        """Raises ConfigError if the key is of no kind or strength that is good enough."""
        self._key = key
        self._clock = clock
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
        try:
            self.public = read_line(line)
        except ProofRefused as error:
            raise ConfigError(f"the key cannot sign certificates ({error})") from error

    @property
    def fingerprint(self) -> str:
        """As OpenSSH shows it: SHA256:..."""
        return self.public.fingerprint

    def sign_user(
        self,
        key: PublicKey,
        identity: Identity,
        *,
        logins: Iterable[str],
        valid_seconds: float = DEFAULT_SECONDS,
        key_id: str = "",
        source_addresses: Iterable[str] = (),
        force_command: str | None = None,
        permits: Iterable[str] = DEFAULT_PERMITS,
    ) -> Certificate:
        """Certify that the holder of a key is this identity, at most until the identity's own end.

        logins: names at targets that it may use, "*" for all; at least one. source_addresses: networks that it may
        come from, as 10.0.0.0/8. key_id: what logs and tapes call it. Raises ConfigError.
        """
        names = tuple(dict.fromkeys(logins))
        if not names:
            raise ConfigError("say which logins it is for; * is all")
        options: dict[str, str] = {}
        sources = [_network(text) for text in source_addresses]
        if sources:
            options["source-address"] = ",".join(sources)
        if force_command is not None:
            options["force-command"] = _command(force_command)
        extensions = dict.fromkeys(permits, "")
        unknown = set(extensions) - PERMITS
        if unknown:
            raise ConfigError(f"{min(unknown)} is no permit; known: {', '.join(sorted(PERMITS))}")
        extensions[IDENTITY_EXTENSION] = pack_identity(identity)
        if not 0 < valid_seconds <= VALID_LIMIT_SECONDS:
            raise ConfigError("a certificate holds for a week at most, and for some time")
        end = self._clock() + valid_seconds
        if identity.expires_at is not None:
            end = min(end, identity.expires_at)
        if int(end) <= self._clock():
            raise ConfigError("it would end before it begins, or the proof that asks for it has ended itself")
        return self._sign(SSHCertificateType.USER, key, key_id or identity.display, names, end, options, extensions)

    def sign_host(self, key: PublicKey, names: Iterable[str], *, valid_seconds: float = HOST_SECONDS) -> Certificate:
        """Certify that a host key belongs to these names, without wildcards. Raises ConfigError."""
        found = tuple(dict.fromkeys(names))
        if not found or any("*" in name or "?" in name for name in found):
            raise ConfigError("a host certificate is for names, without wildcards")
        return self._sign(SSHCertificateType.HOST, key, found[0], found, self._clock() + valid_seconds, {}, {})

    def _sign(
        self,
        kind: SSHCertificateType,
        key: PublicKey,
        key_id: str,
        principals: tuple[str, ...],
        end: float,
        options: Mapping[str, str],
        extensions: Mapping[str, str],
    ) -> Certificate:
        if key.hardware:
            raise ConfigError("FIDO keys get no certificate; register the key: gatecast ssh key add")
        for name in principals:
            _check_principal(name)
        if len(principals) > PRINCIPALS_LIMIT:
            raise ConfigError(f"a certificate is for at most {PRINCIPALS_LIMIT} names")
        if not key_id.isprintable() or len(key_id) > KEY_ID_LIMIT:
            raise ConfigError(f"a key id is one line of at most {KEY_ID_LIMIT} characters")
        try:
            builder = (
                SSHCertificateBuilder()
                .public_key(key.load())
                .type(kind)
                .serial(secrets.randbits(63))
                .key_id(key_id.encode())
                .valid_principals([name.encode() for name in principals])
                .valid_after(max(0, int(self._clock() - BACKDATED_SECONDS)))
                .valid_before(int(end))
            )
            for name, value in options.items():
                builder = builder.add_critical_option(name.encode(), value.encode())
            for name, value in extensions.items():
                builder = builder.add_extension(name.encode(), value.encode())
            line = builder.sign(self._key).public_bytes().decode("ascii")
            # Read back as strictly as at a login: what we sign, we take.
            return read_certificate_line(line)
        except ProofRefused as error:
            raise ConfigError(f"the certificate cannot be made ({error}; at most {KEY_LIMIT} bytes)") from error


@dataclass(frozen=True, slots=True)
class AuthorityFiles:
    """Where the state directory keeps the keys of SSH. Nothing is made before it is asked for."""

    directory: Path

    @classmethod
    def of(cls, state: Path) -> AuthorityFiles:
        """Those of a state directory."""
        return cls(state / DIRECTORY_NAME)

    @property
    def host_key(self) -> Path:
        """The host key; made if it is missing. Raises ConfigError."""
        return make_key(self.directory / HOST_KEY_NAME, "gatecast host key")

    def user_ca(self, configured: Path | None = None) -> Authority:
        """The user CA: the configured one, or the state's, made if it is missing. Raises ConfigError."""
        return load_authority(configured or make_key(self.directory / USER_CA_NAME, "gatecast user CA"))

    def host_ca(self, configured: Path | None = None) -> Authority:
        """The host CA, in the same way."""
        return load_authority(configured or make_key(self.directory / HOST_CA_NAME, "gatecast host CA"))


def make_key(path: Path, comment: str) -> Path:
    """Make an Ed25519 key (0600) and its .pub where there is none. Where processes race, one key wins for all."""
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = ed25519.Ed25519PrivateKey.generate()
            _place(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), 0o600)
        public = Path(f"{path}.pub")
        if not public.exists():
            line = load_authority(path).public.line
            _place(public, f"{line} {comment}\n".encode(), 0o644)
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be made: {error.strerror}") from error
    return path


def load_authority(path: Path) -> Authority:
    """Load an authority's private key. Raises ConfigError that names the file."""
    try:
        return Authority(load_private(path)[0])
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def load_private(path: Path) -> tuple[PrivateKey, str]:
    """Load a private key without a passphrase, that others may not read: the key, and the file's text.

    Raises ConfigError that names the file and never quotes it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(PRIVATE_KEY_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: others may read the key; chmod 600 it")
    if len(data) > PRIVATE_KEY_LIMIT:
        raise ConfigError(f"{path}: is longer than {PRIVATE_KEY_LIMIT} bytes")
    load = load_ssh_private_key if b"BEGIN OPENSSH" in data else load_pem_private_key
    try:
        key = load(data, None)
    except TypeError:
        raise ConfigError(f"{path}: the key has a passphrase; gatecast reads keys without one, mode 0600") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: holds no private key that is understood") from None
    if not isinstance(key, PrivateKey):
        raise ConfigError(f"{path}: a key of this kind does not sign for SSH")
    return key, data.decode("ascii", "replace")


def pack_identity(identity: Identity) -> str:
    """What identity@gatecast holds."""
    return json.dumps(
        {
            "v": 1,
            "subject": identity.subject,
            "groups": sorted(identity.groups),
            "agents": list(identity.agents),
            "issuer": identity.issuer,
            "proof": identity.proof,
        },
        separators=(",", ":"),
    )


def unpack_identity(data: bytes, proof: str, expires_at: float) -> tuple[Identity, str]:
    """Read identity@gatecast: the identity with the certificate as its proof, and the proof that asked for it.

    Raises ProofRefused: a key of ours was used by hand, or by another version.
    """
    try:
        found: Any = json.loads(data)  # checked below, member by member
    except (ValueError, RecursionError) as error:
        raise ProofRefused("bad-identity-extension") from error
    if not isinstance(found, dict) or found.get("v") != 1:
        raise ProofRefused("bad-identity-extension", "its version")
    groups, agents, issuer, origin = (found.get(name) for name in ("groups", "agents", "issuer", "proof"))
    if not isinstance(groups, list) or not isinstance(agents, list):
        raise ProofRefused("bad-identity-extension", "groups or agents")
    if not isinstance(issuer, str) or not isinstance(origin, str):
        raise ProofRefused("bad-identity-extension", "issuer or proof")
    subject = check_subject(found.get("subject"))
    return Identity(subject, check_groups(groups), check_agents(agents), issuer, proof, expires_at), origin


def _place(path: Path, data: bytes, mode: int) -> None:
    """Put a file in its place whole, unless one is there: who comes second uses the first one's."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _check_principal(name: str) -> None:
    if not name or len(name) > NAME_LIMIT or not name.isprintable() or "," in name or name != name.strip():
        raise ConfigError(f"a login or a host's name is printable, has at most {NAME_LIMIT} characters and no comma")


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ConfigError(f"a source address is an address or a network like 10.0.0.0/8 ({error})") from error


def _command(text: str) -> str:
    if not text or len(text) > COMMAND_LIMIT or "\0" in text:
        raise ConfigError(f"a forced command has 1 to {COMMAND_LIMIT} characters")
    return text
