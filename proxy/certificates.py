"""TLS towards users: contexts of listeners, what their certificates say, and a self-signed one for the first start.

TLS 1.2 and later, no renegotiation, no compression; the chain and the key are checked against each other before a
context is made, so that a wrong pair is an error of the configuration and not of the first user's handshake.
A context is never changed: new files make a new one, and handshakes that have begun go on with the old.

Deliberately left out: ACME; whatever renews the files, they are read again when they change. Specification:
RFC 8446, RFC 9325 (recommendations), RFC 7301 (ALPN).
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from proxy.core.errors import ConfigError

EXPIRY_WARNING_DAYS: Final = 14  # ACME clients renew with 30 of 90 days left: at 14 something is wrong
SELF_SIGNED_DAYS: Final = 365


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What an operator wants to know of a listener's certificate. der: for channel bindings (RFC 5929)."""

    subject: str
    names: tuple[str, ...]
    fingerprint: str
    not_after: datetime.datetime
    der: bytes

    def warning(self, now: datetime.datetime) -> str | None:
        """Return what is wrong with its dates, if anything."""
        left = self.not_after - now
        if left <= datetime.timedelta(0):
            return f"the certificate expired on {self.not_after:%Y-%m-%d}"
        if left < datetime.timedelta(days=EXPIRY_WARNING_DAYS):
            return f"the certificate expires on {self.not_after:%Y-%m-%d}"
        return None


def server_context(
    cert: Path, key: Path, client_ca: Path | None, alpn: Sequence[str]
) -> tuple[ssl.SSLContext, ServerCertificate]:
    """Make the context of a listener. Raises ConfigError that names the file at fault."""
    described = _check_pair(cert, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        # The key was checked not to need a password; the empty answer keeps OpenSSL from asking the terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{cert}: OpenSSL does not take the certificate: {_reason(error)}") from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{client_ca}: no certificate authority could be read: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context, described


def self_signed(directory: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """Write tls.crt and tls.key (0600) for the names into the directory, and return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gatecast (self-signed)")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks of users may be behind
        .not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        # Its own authority, so that sslrootcert may name it; the rest is what RFC 5280 4.2.1 asks of one.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = directory / "tls.crt", directory / "tls.key"
    pem = key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    cert_path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return cert_path, key_path


def _check_pair(cert: Path, key: Path) -> ServerCertificate:
    try:
        certificates = x509.load_pem_x509_certificates(cert.read_bytes())
    except FileNotFoundError as error:
        hint = "gatecast serve without a configuration makes one to try, in .gatecast/"
        raise ConfigError(f"{cert}: is not there; {hint}") from error
    except OSError as error:
        raise ConfigError(f"{cert}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{cert}: holds no certificate in PEM form") from error
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{key}: cannot be read: {error.strerror}") from error
    except TypeError as error:
        raise ConfigError(f"{key}: the key has a password; gatecast reads keys without one, mode 0600") from error
    except ValueError as error:
        raise ConfigError(f"{key}: holds no private key in PEM form") from error
    leaf = certificates[0]
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
        raise ConfigError(f"{key}: is not the key of {cert} (the first certificate in a file is the server's own)")
    _check_chain(cert, certificates)
    return _describe(leaf)


def _check_chain(cert: Path, certificates: Sequence[x509.Certificate]) -> None:
    """Check that each certificate of the file was signed by the next, by OpenSSL's own rules for authorities.

    The standard library checks a chain only in a handshake, and then it is a user's client that fails: a missing
    or misplaced intermediate is the commonest mistake of all in such files. The last one may be signed by
    anybody. Dates do not count here: an expired certificate is served, with a warning.
    """
    for place, (signed, signer) in enumerate(itertools.pairwise(certificates), 1):
        store = crypto.X509Store()
        store.add_cert(crypto.X509.from_cryptography(signer))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        store.set_time(max(signed.not_valid_before_utc, signer.not_valid_before_utc) + datetime.timedelta(seconds=1))
        try:
            crypto.X509StoreContext(store, crypto.X509.from_cryptography(signed)).verify_certificate()
        except crypto.X509StoreContextError as error:
            raise ConfigError(
                f"{cert}: certificate {place} of the file is not signed by the one behind it ({error});"
                " put the server's own first, then each intermediate behind the one it signed"
            ) from error


def _describe(leaf: x509.Certificate) -> ServerCertificate:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(name.value) for name in extension)
    except (x509.ExtensionNotFound, ValueError):
        names = ()
    return ServerCertificate(
        subject=leaf.subject.rfc4514_string(),
        names=names,
        fingerprint="SHA256:" + leaf.fingerprint(hashes.SHA256()).hex(),
        not_after=leaf.not_valid_after_utc,
        der=leaf.public_bytes(Encoding.DER),
    )


def _usage() -> x509.KeyUsage:
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    others = dict.fromkeys((*names, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=True, key_cert_sign=True, **others)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unknown").lower().replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else None) or "unknown"
