"""The gate as an SSH server, up to the end of a login: its options, what it asks a Login, and the limits.

asyncssh runs the dialogue; who may come in is for the Login to say. A key or certificate goes to it as the blob that
the user sent, at the query and again before the signature is checked, and the signature is checked here, by the key
inside; certificates are nobody's to judge but the Login's. The proof that counts is the one that succeeded: a user may
ask about one key and sign with another.

Limits: FAILURES_LIMIT wrong attempts, REQUESTS_LIMIT requests of any kind (an agent with many keys asks about each),
and the caller's time. "none" never succeeds, begin_auth() always says that a proof is needed, and no answer depends on
whether a target exists. Source: RFC 4252; RFC 4256; OpenSSH's PROTOCOL.certkeys; ssh note 3.
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

import asyncssh
from asyncssh.connection import SSHServerConnection, SSHServerConnectionOptions
from asyncssh.constants import MSG_KEXINIT
from asyncssh.misc import DisconnectError
from asyncssh.packet import PacketDecodeError, SSHPacket, String
from asyncssh.public_key import SSHKeyPair, decode_ssh_certificate, decode_ssh_public_key, load_keypairs

from protocols.ssh import algorithms
from protocols.ssh.adapt import Adapted
from proxy.core.errors import ConfigError

FAILURES_LIMIT: Final = 6  # OpenSSH's MaxAuthTries
REQUESTS_LIMIT: Final = 32  # those, a "none", and about twenty keys of an agent
KEY_BLOB_BYTES_LIMIT: Final = 16 * 1024  # a certificate of RSA-4096 by RSA-4096 with many names is below 4 KiB
SECRET_BYTES_LIMIT: Final = 64 * 1024  # a JWT with many groups
HOLD_BACK_SECONDS: Final = 0.5  # ssh note 1.5
PROMPT: Final = "Token as password: "  # sshpass, expect scripts and asyncssh's client look for "password"
AGAIN: Final = "This is no valid token of the gateway: mistyped, expired or revoked."
PROTOCOL_ERROR: Final = 2  # what sshd says for too many attempts, and clients know
REKEY_BYTES: Final = 1 << 30  # RFC 4253 9
OPTIONS_LIMIT: Final = 256  # kept: one a listener, and one a target for inner connections


class Login(Protocol):
    """Who may log in."""

    @property
    def banner(self) -> str:
        """A text for the user before it logs in, or ''."""

    @property
    def prompts(self) -> bool:
        """Whether keyboard-interactive asks for a token; False: it asks nothing, and password() gets ''."""

    async def key(self, user: str, blob: bytes) -> bool:
        """Whether this public key or certificate may log in, if it signs."""

    async def password(self, user: str, secret: str) -> bool:
        """Whether this token may log in."""

    async def proved(self, user: str, method: str, blob: bytes | None) -> None:
        """The login is complete, by this proof: "publickey" with its blob, "password" or "keyboard-interactive".

        May raise LoginRefused: then the connection ends with its text.
        """


class HostKey:
    """A private key of the gate's own server, and its certificate if there is one."""

    __slots__ = ("pairs",)

    def __init__(self, private: bytes, certificate: bytes | None = None) -> None:
        """private: PEM or OpenSSH; certificate: OpenSSH's one line. Raises ConfigError."""
        try:
            key = asyncssh.import_private_key(private)
            certificates = [asyncssh.import_certificate(certificate)] if certificate else []
            self.pairs = tuple(load_keypairs([key], certlist=certificates))
        except (ValueError, asyncssh.Error) as error:
            raise ConfigError("a host key, or its certificate, cannot be read") from error


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the gate answers users. methods: of publickey, password and keyboard-interactive."""

    host_keys: tuple[HostKey, ...]
    banner: str = ""
    version: str = "gatecast"
    login_seconds: float = 60.0
    rekey_bytes: int = REKEY_BYTES
    methods: frozenset[str] = frozenset({"publickey", "password", "keyboard-interactive"})


@dataclass(frozen=True, slots=True)
class Proof:
    """What has succeeded. blob: of a key or certificate."""

    user: str
    method: str
    blob: bytes | None = None


class Guard(asyncssh.SSHServer):
    """asyncssh's questions about the methods of a login. It asks no others: UserConnection answers them itself."""

    def begin_auth(self, username: str) -> bool:
        """True: a proof is needed. False would let everybody in (ssh note 3)."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Whether it may be tried; the options say so."""
        return True

    def password_auth_supported(self) -> bool:
        """The same."""
        return True

    def kbdint_auth_supported(self) -> bool:
        """The same."""
        return True


class UserConnection(Adapted, SSHServerConnection):
    """A user's connection."""

    def __init__(self, options: SSHServerConnectionOptions, login: Login) -> None:
        super().__init__(asyncio.get_running_loop(), options)
        self.proof: Proof | None = None
        self.complete = False
        self.failures = 0
        self._login = login
        self._requests = 0
        self._asked = False  # about a key: a no to that is no failure
        self._answered = False  # at the prompt, and it was no token
        self._held_back: asyncio.TimerHandle | None = None
        # Of its own: asyncssh notes the chosen algorithm in the key, and another user may choose another.
        allowed = [name.encode() for name in algorithms.HOST_KEYS]
        own = {id(pair): copy.copy(pair) for pair in self._server_host_keys.values()}
        self._server_host_keys = OrderedDict(
            (name, own[id(pair)]) for name, pair in self._server_host_keys.items() if name in allowed
        )
        self._server_host_key_algs = list(self._server_host_keys)

    @property
    def name(self) -> str:
        """The user name that was tried last."""
        return self._username

    # -- the key exchange -----------------------------------------------------------------------------

    def _send_kexinit(self) -> None:
        """Wait with the first for the user's."""
        if self._session_id or self._client_kexinit or self._held_back is not None:
            super()._send_kexinit()
        else:
            self._held_back = self._loop.call_later(HOLD_BACK_SECONDS, self._send_held_back)

    def _send_held_back(self) -> None:
        held, self._held_back = self._held_back, None
        if held is not None and self._transport is not None:
            held.cancel()
            SSHServerConnection._send_kexinit(self)

    async def _first_kexinit(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """Offer AES-GCM alone to a user who knows it."""
        if not self._session_id and self._held_back is not None:
            theirs = SSHPacket(packet.get_full_payload())
            theirs.get_bytes(17)  # the type and the cookie
            theirs.get_namelist()
            theirs.get_namelist()
            up, down = theirs.get_namelist(), theirs.get_namelist()
            fast = [name.encode() for name in algorithms.GCM if name.encode() in up and name.encode() in down]
            if fast:
                self._enc_algs = fast
            self._send_held_back()
        body = SSHPacket(packet.get_full_payload())
        body.get_bytes(17)
        names = [body.get_namelist() for _ in range(10)]  # RFC 4253 7.1
        guessed = body.get_boolean()
        await self._process_kexinit(pkttype, pktid, packet)  # until it is done, no further packet is looked at
        # A guess is wrong if the first key exchange or the first kind of host key differs (RFC 4253 7). asyncssh looks
        # at the exchange alone, and would take dropbear's guess for the real one where we have a certificate.
        ours = [self._kex_algs[:1], list(self._server_host_key_algs or ())[:1]]
        self._ignore_first_kex = guessed and ours != [names[0][:1], names[1][:1]]

    _packet_handlers = {**SSHServerConnection._packet_handlers, MSG_KEXINIT: _first_kexinit}  # noqa: RUF012

    async def reload_config(self) -> None:
        """Options stay as they are; asyncssh would read its configuration again for each user name."""

    # -- the login ------------------------------------------------------------------------------------

    async def _finish_userauth(self, begin_auth: bool, method: bytes, packet: SSHPacket) -> None:
        self._requests += 1
        if self._requests > REQUESTS_LIMIT:
            self.failures = max(self.failures, 1)
            raise DisconnectError(PROTOCOL_ERROR, "Too many authentication requests")
        if self._requests == 1 and self._login.banner:
            self.send_auth_banner(self._login.banner.rstrip("\r\n") + "\r\n")  # a line of its own: RFC 4252 5.4
        self._asked = False
        await super()._finish_userauth(begin_auth, method, packet)

    def send_userauth_failure(self, partial_success: bool) -> None:
        """Say no, a few times."""
        if self._auth is not None and not self._asked:  # None: a method that there is not, as "none"
            self.failures += 1
        if self.failures >= FAILURES_LIMIT:
            self.part(PROTOCOL_ERROR, "Too many authentication failures")
            return
        super().send_userauth_failure(partial_success)

    async def send_userauth_success(self) -> None:
        """Let in whoever has a proof, and nobody else."""
        if self.proof is None:
            raise DisconnectError(PROTOCOL_ERROR, "a login without a proof")
        await super().send_userauth_success()
        self.complete = True
        if not self.entered.done():
            self.entered.set_result(None)

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """Ask the Login about a key, and check its signature if there is one."""
        self.proof = None
        self._asked = not msg
        if len(key_data) > KEY_BLOB_BYTES_LIMIT or not await self._login.key(username, key_data):
            return False
        if not msg:
            return True
        if not _signed(key_data, String(self._session_id) + msg, signature):
            return False
        self.proof = Proof(username, "publickey", key_data)
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        """Ask the Login about a token."""
        return await self._token(username, "password", password)

    async def change_password(self, username: str, old_password: str, new_password: str) -> bool:
        """There is nothing to change."""
        return False

    async def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        """Ask for a token, or for nothing."""
        if not self._login.prompts:
            return "", "", "en", ()
        again = AGAIN if self._answered else ""  # clients say nothing themselves between two prompts
        return "", again, "en", ((PROMPT, False),)

    async def validate_kbdint_response(self, username: str, responses: Any) -> bool:
        """Ask the Login about the answer."""
        if len(responses) != (1 if self._login.prompts else 0):
            return False
        self._answered = True
        return await self._token(username, "keyboard-interactive", responses[0] if responses else "")

    async def _token(self, user: str, method: str, secret: str) -> bool:
        self.proof = None
        if len(secret) > SECRET_BYTES_LIMIT or not await self._login.password(user, secret):
            return False
        self.proof = Proof(user, method)
        return True

    def host_key_fingerprint(self) -> str:
        """The fingerprint of the key that was shown to the user."""
        pair = self.get_server_host_key()
        return decode_ssh_public_key(pair.key_public_data).get_fingerprint() if isinstance(pair, SSHKeyPair) else ""


def make_connection(login: Login, options: ServerOptions) -> UserConnection:
    """Make the protocol of a user's connection. Raises ConfigError."""
    own = copy.copy(_asyncssh_options(options))
    own.protocol_factory = Guard
    return UserConnection(own, login)


@lru_cache(maxsize=OPTIONS_LIMIT)
def _asyncssh_options(options: ServerOptions) -> SSHServerConnectionOptions:
    """Say everything to asyncssh that it would otherwise decide by itself."""
    try:
        return SSHServerConnectionOptions(
            config=None,
            server_factory=Guard,
            server_version=options.version,
            server_host_keys=[pair for key in options.host_keys for pair in key.pairs],
            send_server_host_keys=False,
            kex_algs=list(algorithms.KEX),
            encryption_algs=list(algorithms.CIPHERS),
            mac_algs=list(algorithms.MACS),
            compression_algs=list(algorithms.COMPRESSION),
            signature_algs=list(algorithms.SIGNATURES),
            x509_trusted_certs=None,
            x509_trusted_cert_paths=(),
            known_client_hosts=None,
            trust_client_host=False,
            authorized_client_keys=None,
            host_based_auth=False,
            public_key_auth="publickey" in options.methods,
            kbdint_auth="keyboard-interactive" in options.methods,
            password_auth="password" in options.methods,
            gss_host=None,
            gss_kex=False,
            gss_auth=False,
            allow_pty=False,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_scp=False,
            rdns_lookup=False,
            rekey_bytes=options.rekey_bytes,
            rekey_seconds=0,
            login_timeout=0,
            connect_timeout=None,
            keepalive_interval=0,
            keepalive_count_max=3,
            tcp_keepalive=True,
            utf8_decode_errors="replace",
        )
    except ValueError as error:
        raise ConfigError(f"the host keys do not fit together: {error}") from error


def _signed(blob: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the key in the blob (a certificate's own key) made this signature, by an algorithm of ours."""
    try:
        try:
            certificate = decode_ssh_certificate(blob)
        except asyncssh.KeyImportError:
            key = decode_ssh_public_key(blob)
        else:
            if certificate.is_x509_chain:
                return False
            key = certificate.key
        key.set_touch_required(True)
        algorithm = SSHPacket(signature).get_string().decode("ascii", "replace")
        return algorithm in algorithms.SIGNATURES and key.verify(message, signature)
    except (PacketDecodeError, ValueError, asyncssh.Error):  # whatever it was, it is no signature
        return False
