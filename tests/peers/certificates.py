"""Certificates for peers: an authority of our own, and server and client certificates of every kind of key."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KeyKind = Literal["rsa", "rsa-pss", "ecdsa", "ecdsa-sha384", "ed25519"]
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

LOCAL_NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in PEM files; der is the certificate."""

    certificate_file: Path
    key_file: Path
    der: bytes


class Authority:
    """A certificate authority whose files live in folder; ca_file is what to trust."""

    def __init__(self, folder: Path, name: str = "gatecast test CA", kind: KeyKind = "ecdsa") -> None:
        self.folder = folder
        self._kind = kind
        self._key = _make_key(kind)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._name, self._name, self._key)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._certificate = _sign(builder, self._key, kind)
        self.ca_file = folder / f"{name.replace(' ', '-')}.crt"
        self.ca_file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        sans: Sequence[str] = LOCAL_NAMES,
        kind: KeyKind = "ecdsa",
        *,
        client: bool = False,
        days: int = 30,
        file_name: str | None = None,
    ) -> Pair:
        """Issue a certificate with CN name, for a server or a client. days below zero gives one that has expired.

        kind is of its key; the signature on it, which channel binding goes by, is of the authority's kind.
        """
        key = _make_key(kind)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._name, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if sans and not client:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(san) for san in sans]), critical=False
            )
        certificate = _sign(builder, self._key, self._kind)
        stem = file_name or f"{name}-{kind}"
        pair = Pair(
            self.folder / f"{stem}.crt",
            self.folder / f"{stem}.key",
            certificate.public_bytes(serialization.Encoding.DER),
        )
        pair.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_key(pair.key_file, key)
        return pair


def _make_key(kind: KeyKind) -> PrivateKey:
    match kind:
        case "rsa" | "rsa-pss":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "ecdsa" | "ecdsa-sha384":
            return ec.generate_private_key(ec.SECP256R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey, days: int = 30) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _sign(builder: x509.CertificateBuilder, key: PrivateKey, kind: KeyKind) -> x509.Certificate:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None)
    if isinstance(key, rsa.RSAPrivateKey) and kind == "rsa-pss":
        pss = padding.PSS(padding.MGF1(hashes.SHA512()), padding.PSS.DIGEST_LENGTH)
        return builder.sign(key, hashes.SHA512(), rsa_padding=pss)
    return builder.sign(key, hashes.SHA384() if kind == "ecdsa-sha384" else hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path, key: PrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
