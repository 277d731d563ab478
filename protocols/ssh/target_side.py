"""The gate as an SSH client, up to the end of a login: what it shows a target, and whom it believes.

Host keys and certificates are checked by asyncssh against the Pins and nothing else; no file, agent, environment or
configuration of the gate's own user is looked at. The login uses the credential's key (and certificate), and its
secret once: as the password, or as the answer to the one hidden question of keyboard-interactive.
Source: RFC 4252, RFC 4256, OpenSSH's PROTOCOL.certkeys.
"""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Sequence
from typing import Any, Final

import asyncssh
from asyncssh.connection import SSHClientConnection, SSHClientConnectionOptions
from asyncssh.constants import MSG_USERAUTH_FAILURE
from asyncssh.packet import SSHPacket
from asyncssh.public_key import SSHKey, SSHKeyPair, decode_ssh_certificate, decode_ssh_public_key, load_keypairs

from protocols.ssh import algorithms
from protocols.ssh.adapt import Adapted
from protocols.ssh.dial_settings import DialSettings, Pins
from proxy.core.errors import ConfigError
from proxy.core.parties import Credential, Secret

VERSION: Final = "gatecast"


class Applicant(asyncssh.SSHClient):
    """asyncssh's questions during the gate's own login."""

    def __init__(self, secret: Secret | None) -> None:
        self._secret = secret
        self._answered = False
        self._connection: TargetConnection | None = None

    def connection_made(self, conn: SSHClientConnection) -> None:
        """Begin."""
        assert isinstance(conn, TargetConnection)
        self._connection = conn

    def auth_completed(self) -> None:
        """The login is complete."""
        assert self._connection is not None
        if not self._connection.entered.done():
            self._connection.entered.set_result(None)

    def password_auth_requested(self) -> str | None:
        """The secret, once."""
        if self._secret is None or self._answered:
            return None
        self._answered = True
        return self._secret.reveal()

    def kbdint_auth_requested(self) -> str | None:
        """Whether to try it; no preference among its ways."""
        return None if self._secret is None or self._answered else ""

    def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Sequence[tuple[str, bool]]
    ) -> list[str] | None:
        """The secret to one question whose answer is not echoed; nothing to a mere notice."""
        if not prompts:
            return []
        if len(prompts) != 1 or prompts[0][1] or self._secret is None or self._answered:
            return None
        self._answered = True
        return [self._secret.reveal()]


class TargetConnection(Adapted, SSHClientConnection):
    """The connection to a target."""

    def __init__(self, options: SSHClientConnectionOptions) -> None:
        super().__init__(asyncio.get_running_loop(), options)
        self._agent = None  # asyncssh makes one for a path of ''
        self._get_agent_keys = False
        self.offered: list[str] = []  # the methods of login that the target named
        self.shown: bytes | None = None  # the host key, or certificate, that the target showed

    @property
    def complete(self) -> bool:
        """Whether the login is complete."""
        return self._auth_complete

    def validate_server_host_key(self, key_data: bytes) -> SSHKey:
        """Keep what was shown, for the error."""
        self.shown = key_data
        return super().validate_server_host_key(key_data)

    def _login_refused(self, pkttype: int, pktid: int, packet: SSHPacket) -> Any:
        """Keep the methods that the target names, for the error."""
        copy = SSHPacket(packet.get_full_payload())
        copy.get_byte()
        self.offered = [name.decode("ascii", "replace") for name in copy.get_namelist()]
        return self._process_userauth_failure(pkttype, pktid, packet)

    _packet_handlers = {**SSHClientConnection._packet_handlers, MSG_USERAUTH_FAILURE: _login_refused}  # noqa: RUF012

    def host_key_fingerprint(self) -> str:
        """The fingerprint of the key that the target showed; of a certificate, its key's."""
        if self.shown is None:
            return ""
        try:
            try:
                return decode_ssh_certificate(self.shown).key.get_fingerprint()
            except asyncssh.KeyImportError:
                return decode_ssh_public_key(self.shown).get_fingerprint()
        except (asyncssh.KeyImportError, ValueError):
            return "unreadable"


def read_keys(credential: Credential) -> list[SSHKeyPair]:
    """Read the credential's key, with its certificate first. Blocks. Raises ConfigError, which holds no secret."""
    if credential.key_file is None:
        return []
    try:
        passphrase = credential.passphrase.reveal() if credential.passphrase is not None else None
        key = asyncssh.read_private_key(credential.key_file, passphrase)
        certificate = credential.certificate_file
        certificates = [asyncssh.read_certificate(certificate)] if certificate is not None else []
        return list(load_keypairs([key], certlist=certificates))
    except (OSError, ValueError, asyncssh.Error):
        # Not chained: what a parser says of a key is not for a log.
        raise ConfigError("the gateway's key or certificate for the target cannot be read") from None


# What asyncssh would take from the gate's own user, its environment and its configuration.
_NOTHING_OF_OURS: Final[dict[str, Any]] = {
    "gss_host": None,
    "gss_kex": False,
    "gss_auth": False,
    "gss_delegate_creds": False,
    "agent_path": None,
    "agent_identities": None,
    "agent_forwarding": False,
    "pkcs11_provider": None,
    "x11_forwarding": False,
    "proxy_command": None,
    "tunnel": None,
    "canonicalize_hostname": False,
    "command": None,
    "env": None,
    "send_env": None,
}


def make_connection(
    settings: DialSettings, pins: Pins, login: str, keys: Sequence[SSHKeyPair], secret: Secret | None
) -> TargetConnection:
    """Make the protocol of a target's connection. Raises ConfigError."""
    _ensure_local_name()
    methods = [*(["publickey"] if keys else []), *(["password", "keyboard-interactive"] if secret is not None else [])]
    try:
        options = SSHClientConnectionOptions(
            config=None,
            client_factory=lambda: Applicant(secret),
            client_version=VERSION,
            host=settings.name,
            port=settings.port,
            known_hosts=(list(pins.keys), list(pins.authorities), list(pins.revoked)),
            host_key_alias=None,
            server_host_key_algs=pins.algorithms(),
            server_host_keys_handler=None,
            kex_algs=list(algorithms.KEX),
            encryption_algs=list(algorithms.CIPHERS),
            mac_algs=list(algorithms.MACS),
            compression_algs=list(algorithms.COMPRESSION),
            signature_algs=list(algorithms.SIGNATURES),
            x509_trusted_certs=None,
            x509_trusted_cert_paths=(),
            username=login,
            password=None,
            client_keys=list(keys) or None,
            client_host_keysign=False,
            client_host_keys=None,
            client_username=login,
            ignore_encrypted=False,
            preferred_auth=methods or ["none"],
            host_based_auth=False,
            public_key_auth=bool(keys),
            kbdint_auth=secret is not None,
            password_auth=secret is not None,
            **_NOTHING_OF_OURS,
            rekey_bytes=settings.rekey_bytes,
            rekey_seconds=0,
            login_timeout=0,
            connect_timeout=None,
            keepalive_interval=0,
            keepalive_count_max=3,
            tcp_keepalive=True,
            utf8_decode_errors="replace",
        )
    except ValueError as error:
        raise ConfigError(f"the login {login!r} cannot be used") from error
    return TargetConnection(options)


def _ensure_local_name() -> None:
    """asyncssh wants the name of the gate's own user, which a container's arbitrary user id has not; it is not used."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = VERSION
