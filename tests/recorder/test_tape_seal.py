"""Key files, signatures, and the Merkle tree against its definition."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from recorder.errors import FormatError, KeyFileError
from recorder.seal import SealKey, Tree, decode_seal, load_public_keys, public_path


def test_a_key_is_made_on_first_use_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "seal.key"
    key = SealKey.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert SealKey.load(path).id == key.id
    assert list(load_public_keys(public_path(path))) == [key.id]
    assert b"PRIVATE" not in public_path(path).read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["seal.key", "seal.key.pub"]
    public_path(path).unlink()
    SealKey.load(path)
    assert list(load_public_keys(public_path(path))) == [key.id]


def test_of_many_makers_one_wins(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: SealKey.load(tmp_path / "seal.key").id, range(16)))
    assert len(set(keys)) == 1


def test_key_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        SealKey.load(tmp_path / "none", create=False)
    path = tmp_path / "seal.key"
    SealKey.load(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="0600"):
        SealKey.load(path)
    path.chmod(0o600)
    path.write_text("-----BEGIN PRIVATE KEY-----\njunk\n-----END PRIVATE KEY-----\n")
    with pytest.raises(KeyFileError):
        SealKey.load(path)
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyFileError, match="not an Ed25519"):
        SealKey.load(path)
    with pytest.raises(KeyFileError, match="no public key"):
        load_public_keys(path)
    path.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFileError, match="not Ed25519"):
        load_public_keys(path)
    with pytest.raises(KeyFileError):
        load_public_keys(tmp_path / "none")


def test_old_keys_stay_in_the_file(tmp_path: Path) -> None:
    keys = [SealKey.generate() for _ in range(3)]
    path = tmp_path / "all.pub"
    path.write_bytes(b"# kept since 2026\n" + b"\n".join(key.public_pem() for key in keys))
    assert list(load_public_keys(path)) == [key.id for key in keys]


def test_seal_round_trip_and_forgery() -> None:
    key = SealKey.generate()
    raw = key.seal({"sid": "x", "root": b"\x00" * 32})
    seal = decode_seal(raw)
    assert seal.body == {"sid": "x", "root": b"\x00" * 32}
    assert seal.check(key.public_keys()) == key.id
    assert seal.check({}) is None
    assert seal.check(SealKey.generate().public_keys()) is None
    signed, signatures = msgpack.unpackb(raw)
    for forged in (
        [signed.replace(b"x", b"y"), signatures],
        [signed, [[*signatures[0][:2], bytes(64)]]],
        [signed, [*signatures, ["ed25519", key.id, bytes(64)]]],  # one good signature does not hide a bad one
    ):
        with pytest.raises(FormatError, match="does not hold"):
            decode_seal(msgpack.packb(forged)).check(key.public_keys())
    unknown = decode_seal(msgpack.packb([signed, [["rot13", key.id, signatures[0][2]]]]))
    assert unknown.check(key.public_keys()) is None


@given(st.binary(max_size=60))
def test_a_seal_of_garbage_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_seal(data)


def test_a_signature_without_its_context_does_not_hold() -> None:
    """So that a signature over something else can never be taken for a seal."""
    private = Ed25519PrivateKey.generate()
    key = SealKey(private)
    body = msgpack.packb({"sid": "x"})
    bare = msgpack.packb([body, [["ed25519", key.id, private.sign(body)]]])
    with pytest.raises(FormatError):
        decode_seal(bare).check(key.public_keys())


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 2.1, over leaves that are hashed already."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


@given(st.integers(0, 70))
def test_the_tree_is_that_of_rfc_6962(count: int) -> None:
    leaves = [sha256(bytes([i])).digest() for i in range(count)]
    tree = Tree()
    for i, leaf in enumerate(leaves):
        assert tree.root() == by_definition(leaves[:i])
        tree.add(leaf)
    assert tree.root() == by_definition(leaves)


def test_the_tree_against_the_known_answers() -> None:
    """The test vectors of certificate-transparency's own tree test."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    tree = Tree()
    for i, text in enumerate(inputs, 1):
        tree.add(sha256(b"\x00" + bytes.fromhex(text)).digest())
        if i in roots:
            assert tree.root().hex() == roots[i]
