"""SSH public keys and OpenSSH certificates, taken apart: bytes in, frozen values out; no files, no clock, no trust.

read_key() takes the blob of a plain public key and makes sure that it is one of a kind and strength that may log in;
read_certificate() that of a user or host certificate, with its signature checked against the authority's key that
stands inside it. Whether that authority, the dates, names and options are good for anything is for ssh_logins.py.

Refused here, whoever signed: DSA, RSA below 2048 bits, signatures with SHA-1, authorities that are certificates or
FIDO keys themselves, an option that appears twice, bytes left over. Certificates of FIDO keys (sk-...) are read.

Source: RFC 4251 5, RFC 4253 6.6, RFC 5656 3.1, RFC 8332, RFC 8709; OpenSSH's PROTOCOL.certkeys and PROTOCOL.u2f.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from proxy.identity.proof import ProofRefused

CERTIFICATE_SUFFIX: Final = "-cert-v01@openssh.com"
# RFC 4253 6.1: the payload that every implementation takes. A login's request holds the key, and a signature.
KEY_LIMIT: Final = 32_768
LINE_LIMIT: Final = 2 * KEY_LIMIT  # base64 makes four of three; a comment stands behind it
PRINCIPALS_LIMIT: Final = 256  # OpenSSH's SSHKEY_CERT_MAX_PRINCIPALS
OPTIONS_LIMIT: Final = 64  # OpenSSH knows three critical options and seven extensions
RSA_BITS_MIN: Final = 2048  # as NIST SP 800-131A; OpenSSH's RequiredRSASize is 1024 by default
RSA_BITS_LIMIT: Final = 16_384  # OpenSSH's OPENSSL_RSA_MAX_MODULUS_BITS
FOREVER: Final = (1 << 64) - 1  # PROTOCOL.certkeys: valid before

USER: Final = 1
HOST: Final = 2

# The strings that a kind's public key is made of, behind its name.
_FIELDS: Final[Mapping[str, int]] = {
    "ssh-ed25519": 1,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "ssh-rsa": 2,
    "sk-ssh-ed25519@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}
# What a certificate of a kind is called: the kind without its domain, and the suffix.
_CERTIFIED: Final[Mapping[str, str]] = {kind.partition("@")[0] + CERTIFICATE_SUFFIX: kind for kind in _FIELDS}
_CURVE_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "ecdsa-sha2-nistp256": hashes.SHA256(),
    "ecdsa-sha2-nistp384": hashes.SHA384(),
    "ecdsa-sha2-nistp521": hashes.SHA512(),
}
_RSA_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "rsa-sha2-256": hashes.SHA256(),
    "rsa-sha2-512": hashes.SHA512(),
}

Loaded = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that is what it says it is. comment: what stood behind it in its line."""

    kind: str
    blob: bytes
    comment: str = ""

    @property
    def fingerprint(self) -> str:
        """As OpenSSH shows it: SHA256:..."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode("ascii").rstrip("=")

    @property
    def proof(self) -> str:
        """As tapes name it: SHA-256, hex."""
        return hashlib.sha256(self.blob).hexdigest()

    @property
    def line(self) -> str:
        """As in a .pub file, without the comment."""
        return f"{self.kind} {base64.b64encode(self.blob).decode('ascii')}"

    @property
    def hardware(self) -> bool:
        """Whether it is a FIDO key."""
        return self.kind.startswith("sk-")

    def load(self) -> Loaded:
        """The key, for a signature to be checked with. Raises ProofRefused."""
        try:
            key = load_ssh_public_key(self.line.encode("ascii"))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ProofRefused("malformed-key", self.kind) from error
        if not isinstance(key, Loaded):
            raise ProofRefused("unknown-key-type", self.kind)
        return key


@dataclass(frozen=True, slots=True)
class Certificate:
    """An OpenSSH certificate whose signature by authority holds. Nothing else about it is decided.

    valid_before: FOREVER for one without an end. critical, extensions: names to what stands behind them, unwrapped;
    an option without a value has b"".
    """

    kind: str
    blob: bytes
    key: PublicKey
    serial: int
    type: Literal[1, 2]
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical: Mapping[str, bytes]
    extensions: Mapping[str, bytes]
    authority: PublicKey

    @property
    def proof(self) -> str:
        """As tapes name it: SHA-256 of the whole certificate, hex."""
        return hashlib.sha256(self.blob).hexdigest()

    @property
    def line(self) -> str:
        """As in a -cert.pub file, without a comment."""
        return f"{self.kind} {base64.b64encode(self.blob).decode('ascii')}"


def is_certificate(blob: bytes) -> bool:
    """Tell a certificate from a plain key by its kind."""
    return CERTIFICATE_SUFFIX.encode() in blob[: 4 + 64]


def read_line(text: str) -> PublicKey:
    """Read the line of a .pub file: a kind, base64, a comment. Raises ProofRefused."""
    kind, data, comment = _split_line(text)
    key = read_key(data, comment)
    if key.kind != kind:
        raise ProofRefused("malformed-key", "the line names another kind than the key")
    return key


def read_certificate_line(text: str) -> Certificate:
    """Read the line of a -cert.pub file. Raises ProofRefused."""
    kind, data, _ = _split_line(text)
    certificate = read_certificate(data)
    if certificate.kind != kind:
        raise ProofRefused("malformed-certificate", "the line names another kind than the certificate")
    return certificate


def read_key(blob: bytes, comment: str = "") -> PublicKey:
    """Read the blob of a plain public key. Raises ProofRefused."""
    if len(blob) > KEY_LIMIT:
        raise ProofRefused("too-long")
    reader = _Reader(blob, "malformed-key")
    kind = reader.text()
    count = _FIELDS.get(kind)
    if count is None:
        raise ProofRefused("unknown-key-type", "DSA" if kind == "ssh-dss" else "")
    for _ in range(count):
        reader.string()
    reader.end()
    key = PublicKey(kind, blob, comment)
    loaded = key.load()
    if isinstance(loaded, rsa.RSAPublicKey) and not RSA_BITS_MIN <= loaded.key_size <= RSA_BITS_LIMIT:
        raise ProofRefused("weak-key", f"RSA of {loaded.key_size} bits")
    return key


def read_certificate(blob: bytes) -> Certificate:
    """Read a certificate and check the signature on it. Raises ProofRefused."""
    if len(blob) > KEY_LIMIT:
        raise ProofRefused("too-long")
    reader = _Reader(blob, "malformed-certificate")
    kind = reader.text()
    plain = _CERTIFIED.get(kind)
    if plain is None:
        raise ProofRefused("unknown-key-type")
    reader.string()  # the nonce
    begin = reader.at
    for _ in range(_FIELDS[plain]):
        reader.string()
    key = read_key(pack_string(plain.encode()) + blob[begin : reader.at])
    serial, type_number = reader.u64(), reader.u32()
    if type_number not in (USER, HOST):
        raise ProofRefused("malformed-certificate", "its type")
    key_id = reader.text()
    principals = _principals(reader.string())
    valid_after, valid_before = reader.u64(), reader.u64()
    critical, extensions = _options(reader.string()), _options(reader.string())
    reader.string()  # reserved
    authority = _authority(reader.string())
    signed = blob[: reader.at]
    signature = reader.string()
    reader.end()
    _verify(authority, signature, signed)
    return Certificate(
        kind=kind,
        blob=blob,
        key=key,
        serial=serial,
        type=USER if type_number == USER else HOST,
        key_id=key_id,
        principals=principals,
        valid_after=valid_after,
        valid_before=valid_before,
        critical=critical,
        extensions=extensions,
        authority=authority,
    )


def pack_string(data: bytes) -> bytes:
    """RFC 4251 5: a string."""
    return struct.pack(">I", len(data)) + data


class _Reader:
    """RFC 4251's data types, one behind the other. why: what a ProofRefused of it says."""

    def __init__(self, data: bytes, why: str) -> None:
        self._data = data
        self._why = why
        self.at = 0

    @property
    def more(self) -> bool:
        return self.at < len(self._data)

    def string(self) -> bytes:
        size = self.u32()
        return self._take(size)

    def text(self) -> str:
        try:
            return self.string().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProofRefused(self._why, "not UTF-8") from error

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def end(self) -> None:
        if self.more:
            raise ProofRefused(self._why, "bytes left over")

    def _take(self, size: int) -> bytes:
        taken = self._data[self.at : self.at + size]
        if len(taken) != size:
            raise ProofRefused(self._why, "cut short")
        self.at += size
        return taken


def _split_line(text: str) -> tuple[str, bytes, str]:
    if len(text) > LINE_LIMIT:
        raise ProofRefused("too-long")
    parts = text.strip().split(None, 2)
    if len(parts) < 2 or "\n" in text.strip():
        raise ProofRefused("malformed-key", "a line is a kind, base64 and a comment")
    try:
        data = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProofRefused("malformed-key", "not base64") from error
    return parts[0], data, parts[2] if len(parts) == 3 else ""


def _principals(data: bytes) -> tuple[str, ...]:
    reader = _Reader(data, "malformed-certificate")
    found: list[str] = []
    while reader.more:
        found.append(reader.text())
        if len(found) > PRINCIPALS_LIMIT:
            raise ProofRefused("malformed-certificate", "too many principals")
    return tuple(found)


def _options(data: bytes) -> dict[str, bytes]:
    """Names to values; a value is a string inside of the data's string."""
    reader = _Reader(data, "malformed-certificate")
    found: dict[str, bytes] = {}
    while reader.more:
        name, inner = reader.text(), _Reader(reader.string(), "malformed-certificate")
        value = inner.string() if inner.more else b""
        inner.end()
        # Who reads the first and who reads the last would read different certificates.
        if name in found or len(found) >= OPTIONS_LIMIT:
            raise ProofRefused("malformed-certificate", "an option appears twice, or there are too many")
        found[name] = value
    return found


def _authority(blob: bytes) -> PublicKey:
    if is_certificate(blob):
        raise ProofRefused("malformed-certificate", "signed by a certificate")
    key = read_key(blob)
    if key.hardware:
        raise ProofRefused("unknown-key-type", "signed by a FIDO key")
    return key


def _verify(authority: PublicKey, signature: bytes, signed: bytes) -> None:
    reader = _Reader(signature, "malformed-certificate")
    algorithm, value = reader.text(), reader.string()
    reader.end()
    key = authority.load()
    try:
        if isinstance(key, ed25519.Ed25519PublicKey) and algorithm == authority.kind:
            key.verify(value, signed)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm == authority.kind:
            pair = _Reader(value, "malformed-certificate")
            r, s = (int.from_bytes(pair.string(), "big") for _ in range(2))
            pair.end()
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(_CURVE_HASHES[authority.kind]))
        elif isinstance(key, rsa.RSAPublicKey) and algorithm in _RSA_HASHES:
            key.verify(value, signed, padding.PKCS1v15(), _RSA_HASHES[algorithm])
        else:
            raise ProofRefused("bad-signature-algorithm", "SHA-1" if algorithm == "ssh-rsa" else "")
    except InvalidSignature as error:
        raise ProofRefused("bad-signature") from error
