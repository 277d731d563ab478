"""A certificate file's chain is checked when it is loaded; a target may be given as libpq writes it."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from proxy.certificates import server_context
from proxy.core.errors import ConfigError
from proxy.sections import Target


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, ca: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """The key file of a leaf, and leaf, intermediate, root and a stranger in PEM."""
    root, middle, leaf, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
    certificates = [
        _certificate("leaf", leaf, "middle", middle, ca=False),
        _certificate("middle", middle, "root", root, ca=True),
        _certificate("root", root, "root", root, ca=True),
        _certificate("middle", other, "root", root, ca=True),
    ]
    key = tmp_path / "leaf.key"
    key.write_bytes(
        leaf.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return key, [each.public_bytes(serialization.Encoding.PEM) for each in certificates]


@pytest.mark.parametrize("places", [(0,), (0, 1), (0, 1, 2)])
def test_a_chain_in_order_is_taken(chain: tuple[Path, list[bytes]], tmp_path: Path, places: tuple[int, ...]) -> None:
    key, pems = chain
    cert = tmp_path / "tls.crt"
    cert.write_bytes(b"".join(pems[place] for place in places))
    assert server_context(cert, key, None, ())[1].subject == "CN=leaf"


@pytest.mark.parametrize("places", [(0, 2), (0, 2, 1), (0, 3), (0, 1, 3)])
def test_a_chain_with_a_gap_or_a_stranger_is_named(
    chain: tuple[Path, list[bytes]], tmp_path: Path, places: tuple[int, ...]
) -> None:
    key, pems = chain
    cert = tmp_path / "tls.crt"
    cert.write_bytes(b"".join(pems[place] for place in places))
    with pytest.raises(ConfigError, match=f"certificate {len(places) - 1 if places != (0, 2, 1) else 1} of the file"):
        server_context(cert, key, None, ())


def _target(**more: object) -> Target:
    return Target.model_validate({"name": "shop", "credential": {"user": "gate"}, **more})


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://db.example:6432/shop?sslmode=verify-full&sslrootcert=/ca.crt",
        "host=db.example port=6432 dbname=shop sslmode=verify-full sslrootcert=/ca.crt",
    ],
)
def test_a_target_as_libpq_writes_it(conninfo: str) -> None:
    target = _target(conninfo=conninfo)
    assert (target.host, target.port, target.database) == ("db.example", 6432, "shop")
    assert (target.sslmode, target.sslrootcert) == ("verify-full", Path("/ca.crt"))


def test_the_user_of_a_conninfo_is_the_credentials() -> None:
    target = _target(conninfo="host=h user=ro", credential={"password_env": "X"})
    assert target.credential.user == "ro"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"conninfo": "host=h password=canary"}, "no password here"),
        ({"conninfo": "host=h", "host": "other"}, "given twice"),
        ({"conninfo": "host=h target_session_attrs=any"}, "means nothing here"),
        ({"conninfo": "nonsense"}, "conninfo"),
        ({"conninfo": "port=1"}, "host"),
    ],
)
def test_a_conninfo_that_cannot_be_is_refused(more: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text) as caught:
        _target(**more)
    assert "canary" not in str(caught.value)
