"""SSH public keys and certificates as bytes: what is read, what is refused, and that nothing else is raised."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from proxy.identity.proof import ProofRefused
from proxy.identity.ssh_ca import PrivateKey
from proxy.identity.ssh_certificate import (
    KEY_LIMIT,
    OPTIONS_LIMIT,
    PRINCIPALS_LIMIT,
    RSA_BITS_MIN,
    is_certificate,
    read_certificate,
    read_certificate_line,
    read_key,
    read_line,
)
from tests.identity.ssh_kit import blob_of, craft, make_rsa, number, public_of, text

KEY = ed25519.Ed25519PrivateKey.generate()
CA = ed25519.Ed25519PrivateKey.generate()
BLOB = blob_of(KEY)


def why(blob: bytes) -> str:
    with pytest.raises(ProofRefused) as caught:
        read_certificate(blob) if is_certificate(blob) else read_key(blob)
    return caught.value.why


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: make_rsa(RSA_BITS_MIN),
    ],
)
def test_each_kind_of_key_as_holder_and_as_authority(make: object) -> None:
    key: PrivateKey = make()  # type: ignore[operator]
    plain = public_of(key)
    assert read_key(plain.blob) == plain
    for holder, signer in ((key, CA), (KEY, key)):
        found = read_certificate(craft(blob_of(holder), signer, key_id="someone", serial=9))
        assert found.key.blob == blob_of(holder)
        assert found.authority.blob == blob_of(signer)
        assert (found.key_id, found.serial, found.principals) == ("someone", 9, ("deploy",))
        assert read_certificate_line(found.line) == found
    changed = bytearray(craft(BLOB, key, key_id="someone"))
    at = bytes(changed).index(b"someone")
    changed[at] ^= 1
    assert why(bytes(changed)) == "bad-signature"


def test_rsa_signatures() -> None:
    key = make_rsa(RSA_BITS_MIN)
    for algorithm in ("rsa-sha2-256", "rsa-sha2-512"):
        assert read_certificate(craft(BLOB, key, algorithm=algorithm)).authority.kind == "ssh-rsa"
    assert why(craft(BLOB, key, algorithm="ssh-rsa")) == "bad-signature-algorithm", "SHA-1"
    assert why(craft(BLOB, CA, algorithm="rsa-sha2-256")) == "bad-signature-algorithm"


def test_keys_that_are_not_good_enough() -> None:
    weak = make_rsa(1024)
    assert why(blob_of(weak)) == "weak-key"
    assert why(craft(blob_of(weak), CA)) == "weak-key"
    assert why(craft(BLOB, weak)) == "weak-key"
    dsa = text("ssh-dss") + number(5) * 4
    assert why(dsa) == "unknown-key-type"
    assert why(craft(dsa, CA)) == "unknown-key-type"
    assert why(text("ssh-ed25519") + text(b"short")) == "malformed-key"
    assert why(text("ecdsa-sha2-nistp256") + text("nistp256") + text(b"\4" + bytes(64))) == "malformed-key"
    assert why(text("ecdsa-sha2-nistp256") + text("nistp384") + BLOB) == "malformed-key"
    assert why(BLOB + b"x") == "malformed-key"
    assert why(b"") == "malformed-key"


def test_fido_keys_and_their_certificates_are_read() -> None:
    point = BLOB[-32:]
    sk = text("sk-ssh-ed25519@openssh.com") + text(point) + text("ssh:")
    assert read_key(sk).hardware
    found = read_certificate(craft(sk, CA))
    assert (found.kind, found.key.blob) == ("sk-ssh-ed25519-cert-v01@openssh.com", sk)
    assert why(craft(BLOB, CA, signer_blob=sk)) == "unknown-key-type", "a FIDO key signs otherwise"


def test_certificates_that_are_ambiguous_or_broken() -> None:
    assert why(craft(BLOB, CA, critical=[("force-command", "a"), ("force-command", "b")])) == "malformed-certificate"
    assert why(craft(BLOB, CA, extensions=[("permit-pty", None)] * 2)) == "malformed-certificate"
    assert why(craft(BLOB, CA, type=3)) == "malformed-certificate"
    assert why(craft(BLOB, CA, tail=b"x")) == "malformed-certificate"
    assert why(craft(BLOB, CA, kind="ssh-rsa-cert-v01@openssh.com")) in ("malformed-key", "weak-key")
    inner = craft(BLOB, CA)
    assert why(craft(BLOB, CA, signer_blob=inner)) == "malformed-certificate", "certificates do not chain"
    other = ed25519.Ed25519PrivateKey.generate()
    assert why(craft(BLOB, CA, signer_blob=blob_of(other))) == "bad-signature"


@pytest.mark.parametrize(("count", "fits"), [(PRINCIPALS_LIMIT - 1, True), (PRINCIPALS_LIMIT, True), (257, False)])
def test_principals_limit(count: int, fits: bool) -> None:
    blob = craft(BLOB, CA, principals=[f"u{n}" for n in range(count)])
    assert len(read_certificate(blob).principals) == count if fits else why(blob) == "malformed-certificate"


@pytest.mark.parametrize(("count", "fits"), [(OPTIONS_LIMIT - 1, True), (OPTIONS_LIMIT, True), (65, False)])
def test_options_limit(count: int, fits: bool) -> None:
    blob = craft(BLOB, CA, extensions=[(f"x{n:03}", "v") for n in range(count)])
    assert len(read_certificate(blob).extensions) == count if fits else why(blob) == "malformed-certificate"


def test_size_limit() -> None:
    size = len(craft(BLOB, CA, key_id=""))
    assert read_certificate(craft(BLOB, CA, key_id="x" * (KEY_LIMIT - size))).key_id.startswith("x")
    assert why(craft(BLOB, CA, key_id="x" * (KEY_LIMIT - size + 1))) == "too-long"


def test_lines() -> None:
    line = public_of(KEY).line
    assert read_line(f"  {line} ana at home\n").comment == "ana at home"
    for bad in ("", "ssh-ed25519", line.replace("ssh-ed25519", "ssh-rsa"), f"{line}\n{line}", "ssh-ed25519 A=A",
                "ssh-ed25519 " + base64.b64encode(b"x").decode(), "x" * 100_000, "ssh-ed25519 ÄÄÄÄ"):  # fmt: skip
        with pytest.raises(ProofRefused):
            read_line(bad)


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    for read in (read_key, read_certificate):
        with pytest.raises(ProofRefused):
            read(data)


GOOD = craft(BLOB, CA, critical=[("source-address", "10.0.0.0/8")], extensions=[("permit-pty", None)])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_byte_can_be_changed(place: int, by: int) -> None:
    changed = bytearray(GOOD)
    changed[place] ^= by
    with pytest.raises(ProofRefused):
        read_certificate(bytes(changed))


@given(st.integers(0, len(GOOD) - 1))
def test_no_byte_can_be_cut_off(size: int) -> None:
    with pytest.raises(ProofRefused):
        read_certificate(GOOD[:size])
