"""Shared by the tests of SSH identities: certificates of any content, made by hand, and a service that reads them."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from proxy.core.errors import LoginRefused
from proxy.core.parties import KeyLogin
from proxy.identity.service import REFUSED_TEXT, Service
from proxy.identity.ssh_ca import Authority, PrivateKey, pack_identity
from proxy.identity.ssh_certificate import PublicKey, read_line
from proxy.identity.ssh_keys import Keys, named
from proxy.identity.ssh_logins import SshTrust, UserAuthority
from proxy.identity.tokens import Tokens
from proxy.store.database import Database
from tests.identity.stores import Clock

PEER = "192.0.2.7:50022"


def text(data: bytes | str) -> bytes:
    """RFC 4251's string."""
    data = data.encode() if isinstance(data, str) else data
    return struct.pack(">I", len(data)) + data


def number(value: int) -> bytes:
    """RFC 4251's mpint of what is not negative."""
    return text(value.to_bytes(value.bit_length() // 8 + 1, "big") if value else b"")


def public_of(key: PrivateKey) -> PublicKey:
    return read_line(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())


def blob_of(key: PrivateKey) -> bytes:
    """The blob of any key, also of one that is not good enough."""
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])


def signature(key: PrivateKey, data: bytes, algorithm: str = "") -> bytes:
    match key:
        case ed25519.Ed25519PrivateKey():
            return text(algorithm or "ssh-ed25519") + text(key.sign(data))
        case ec.EllipticCurvePrivateKey():
            hash_ = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
            r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hash_)))
            return text(algorithm or f"ecdsa-sha2-nistp{key.curve.key_size}") + text(number(r) + number(s))
        case _:
            name = algorithm or "rsa-sha2-256"
            kind = {"ssh-rsa": hashes.SHA1(), "rsa-sha2-256": hashes.SHA256(), "rsa-sha2-512": hashes.SHA512()}[name]
            return text(name) + text(key.sign(data, padding.PKCS1v15(), kind))


def craft(
    subject: bytes,
    signer: PrivateKey,
    *,
    type: int = 1,
    key_id: str = "ana@example.com",
    principals: Sequence[str] = ("deploy",),
    after: int = 0,
    before: int = (1 << 64) - 1,
    critical: Sequence[tuple[str, str | None]] = (),
    extensions: Sequence[tuple[str, str | None]] = (),
    serial: int = 7,
    algorithm: str = "",
    kind: str | None = None,
    signer_blob: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A certificate as PROTOCOL.certkeys has it, of the blob of a public key. None: an option without a value."""
    size = int.from_bytes(subject[:4], "big")
    name, rest = subject[4 : 4 + size].decode(), subject[4 + size :]

    def options(pairs: Sequence[tuple[str, str | None]]) -> bytes:
        return b"".join(text(name) + text(b"" if value is None else text(value)) for name, value in pairs)

    body = text(kind or name.partition("@")[0] + "-cert-v01@openssh.com") + text(b"n" * 32) + rest
    body += struct.pack(">QI", serial, type) + text(key_id)
    body += text(b"".join(text(one) for one in principals)) + struct.pack(">QQ", after, before)
    body += text(options(critical)) + text(options(extensions)) + text(b"")
    body += text(blob_of(signer) if signer_blob is None else signer_blob)
    return body + text(signature(signer, body, algorithm)) + tail


@dataclass
class SshHouse:
    """A service on a store, with our user CA, and another that the listener "front" trusts."""

    database: Database
    clock: Clock
    own: Authority
    own_key: PrivateKey
    other: PrivateKey
    keys: Keys
    tokens: Tokens
    service: Service

    @classmethod
    def build(cls, database: Database) -> SshHouse:
        clock = Clock()
        own_key, other = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
        own = Authority(own_key, clock)
        trusted = UserAuthority(public_of(other), groups=frozenset({"contractors"}))
        tokens = Tokens(database, clock=clock)
        trust = SshTrust(own.public, {"front": (trusted,)})
        service = Service(database, tokens, clock=clock, monotonic=Clock(1000.0), trust=trust)
        asyncio.run(service.refresh())
        return cls(database, clock, own, own_key, other, Keys(database, clock=clock), tokens, service)

    def trust(self, *trusted: UserAuthority) -> None:
        """Take a new configuration of the listener's authorities."""
        self.service.configure((), (), SshTrust(self.own.public, {"front": trusted}))

    def refresh(self) -> None:
        asyncio.run(self.service.refresh())

    def login(self, blob: bytes, login: str = "deploy", peer: str = PEER, listener: str = "front") -> KeyLogin:
        return asyncio.run(self.service.ssh_key(login, blob, peer=peer, listener=listener))

    def refused(self, blob: bytes, login: str = "deploy", peer: str = PEER, listener: str = "front") -> str:
        """Return what the log says; what the user reads is the same for every reason."""
        with capture_logs() as logs, pytest.raises(LoginRefused) as caught:
            self.login(blob, login, peer, listener)
        assert caught.value.text == REFUSED_TEXT
        assert caught.value.__context__ is None
        return str(logs[-1]["why"])

    def ours(self, subject: bytes, extensions: Sequence[tuple[str, str | None]] = (), **more: object) -> bytes:
        """A certificate with our own CA's signature, and an identity in it."""
        identity = pack_identity(named("ana@example.com", ["dba"], ["claude"]))
        after = int(self.clock.now) - 60
        given: Mapping[str, object] = {"after": after, "before": after + 960, **more}
        held = [("identity@gatecast", identity), *extensions]
        return craft(subject, self.own_key, extensions=held, **given)  # type: ignore[arg-type]


def write_private(path: Path, key: PrivateKey, mode: int = 0o600) -> Path:
    """Write a private key as OpenSSH does, with its .pub beside it."""
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(mode)
    Path(f"{path}.pub").write_text(public_of(key).line + " someone@somewhere\n")
    return path


def make_rsa(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)
