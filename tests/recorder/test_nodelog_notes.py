"""Trees, tiles, signed notes and checkpoints: after the specifications, with their own examples."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.checkpoint import (
    NOTE_LIMIT,
    SIGNATURES_LIMIT,
    NoteSignature,
    decode_checkpoint,
    decode_signatures,
    decode_vkey,
    log_key,
    sign_checkpoint,
)
from recorder.errors import FormatError
from recorder.merkle import (
    EMPTY_ROOT,
    Edge,
    consistency_holds,
    consistency_proof,
    entry_hash,
    inclusion_holds,
    inclusion_proof,
    node_hash,
    root_at,
    tile_path,
    tree_hash,
    widths,
)
from recorder.seal import SealKey, Tree
from tests.recorder.nodelogs import ORIGIN, StandInWitness
from tests.recorder.tapes import KEY

# RFC 6962 has no vectors; these are of its reference implementation (certificate-transparency, merkle_tree_test).
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
TLOG_CHECKPOINT = (  # C2SP tlog-checkpoint's example
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)


class Rows:
    """All hashes of a small tree by level, as tiles would have them."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.rows = [leaves]
        while len(self.rows[-1]) >= 256:
            row = self.rows[-1]
            self.rows.append([tree_hash(row[i : i + 256]) for i in range(0, len(row) // 256 * 256, 256)])

    def __call__(self, level: int, start: int, count: int) -> list[bytes]:
        found = self.rows[level][start : start + count]
        assert len(found) == count
        return found


def leaves(count: int) -> list[bytes]:
    return [entry_hash(b"%d" % i) for i in range(count)]


def test_roots_are_those_of_the_reference_implementation() -> None:
    edge = Edge()
    assert edge.root() == EMPTY_ROOT == sha256(b"").digest()
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        edge.add(entry_hash(leaf))
        assert edge.root().hex() == root
    assert tree_hash([entry_hash(leaf) for leaf in LEAVES]).hex() == ROOTS[-1]


def test_paths_are_those_of_the_specification() -> None:
    """C2SP tlog-tiles: index 1234067; a tree of 70,000 entries."""
    assert tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tile_path(None, 0, 5) == "tile/entries/000.p/5"
    assert tile_path(3, 999) == "tile/3/999"
    assert tile_path(3, 1000, 255) == "tile/3/x001/000.p/255"
    assert list(widths(70_000)) == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert list(widths(256)) == [(1, 0, 1)]
    assert list(widths(0)) == []


def test_an_edge_gives_tiles_and_roots_as_the_tree_does() -> None:
    edge, tree, rows = Edge(), Tree(), Rows(leaves(70_000))
    filled: list[tuple[int, int]] = []
    for i, leaf in enumerate(rows.rows[0]):
        for level, index, data in edge.add(leaf):
            assert data == b"".join(rows.rows[level][index * 256 : index * 256 + 256])
            filled.append((level, index))
        tree.add(leaf)
        if i % 997 == 0 or i in (255, 256, 65_535):
            assert edge.root() == tree.root()
    assert edge.root() == tree.root() == root_at(70_000, rows)
    assert filled.count((1, 0)) == 1 and len(filled) == 273 + 1
    assert Edge(edge.size, edge.levels).root() == edge.root()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 1500), st.data())
def test_proofs_hold_and_no_other_does(size: int, data: st.DataObject) -> None:
    all_leaves = leaves(size)
    read, root = Rows(all_leaves), tree_hash(all_leaves)
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(0, size))
    included, consistent = inclusion_proof(index, size, read), consistency_proof(old, size, read)
    old_root = tree_hash(all_leaves[:old])
    assert inclusion_holds(all_leaves[index], index, size, included, root)
    assert consistency_holds(old, old_root, size, root, consistent)
    assert not inclusion_holds(entry_hash(b"other"), index, size, included, root)
    assert not inclusion_holds(all_leaves[index], index, size, [*included, root], root)
    assert not consistency_holds(old, entry_hash(b"other"), size, root, consistent) or not old
    assert not consistency_holds(old, old_root, size, entry_hash(b"other"), consistent) or not old
    if included:
        assert not inclusion_holds(all_leaves[index], index, size, included[:-1], root)
        other = data.draw(st.integers(0, size - 1).filter(lambda at: at != index))
        assert not inclusion_holds(all_leaves[index], other, size, included, root)
    if consistent:
        assert not consistency_holds(old, old_root, size, root, consistent[:-1])
        broken = [node_hash(piece, piece) if i == 0 else piece for i, piece in enumerate(consistent)]
        assert not consistency_holds(old, old_root, size, root, broken)


def test_proofs_out_of_range() -> None:
    read = Rows(leaves(3))
    for index in (-1, 3):
        with pytest.raises(ValueError):
            inclusion_proof(index, 3, read)
    for old in (-1, 4):
        with pytest.raises(ValueError):
            consistency_proof(old, 3, read)
    assert not inclusion_holds(bytes(32), 3, 3, [], bytes(32))
    assert not consistency_holds(4, bytes(32), 3, bytes(32), [])


# -- notes ------------------------------------------------------------------------------------------------


def test_the_specifications_example_is_read() -> None:
    checkpoint = decode_checkpoint(TLOG_CHECKPOINT.encode())
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert checkpoint.signatures[0].key_id == bytes.fromhex("033de0ae")
    assert checkpoint.encode() == TLOG_CHECKPOINT.encode()
    assert checkpoint.signers(KEY.public_keys()) == []


def test_x_mods_example_key_is_read() -> None:
    """golang.org/x/mod/sumdb/note's PeterNeumann: key, text and signature."""
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    key = decode_vkey(vkey)
    assert key.vkey == vkey
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    lines = decode_signatures(
        "\u2014 PeterNeumann "
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    assert lines[0].key_id == key.id
    key.public.verify(lines[0].value, text.encode())  # raises if it does not hold


def test_a_checkpoint_that_we_sign() -> None:
    checkpoint = sign_checkpoint(ORIGIN, 5, bytes(32), [KEY])
    again = decode_checkpoint(checkpoint.encode())
    assert again == checkpoint
    other = SealKey.generate()
    assert again.signers({**KEY.public_keys(), **other.public_keys()}) == [KEY.id]
    assert again.signers(other.public_keys()) == []
    vkey = log_key(ORIGIN, KEY.public_keys()[KEY.id])
    assert decode_vkey(vkey.vkey).id == again.signatures[0].key_id == vkey.id


def test_every_bit_of_a_checkpoint() -> None:
    good = sign_checkpoint(ORIGIN, 5, bytes(range(32)), [KEY]).encode()
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with suppress(FormatError):
            assert decode_checkpoint(bytes(bad)).signers(KEY.public_keys()) == []


GOOD = sign_checkpoint(ORIGIN, 5, bytes(32), [KEY]).encode().decode()


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n\n",
        GOOD.split("\u2014")[0],
        GOOD[:-1],
        GOOD.replace("\n5\n", "\n05\n"),
        GOOD.replace("\n5\n", "\n-5\n"),
        GOOD.replace("\n5\n", "\n9223372036854775808\n"),
        GOOD.replace("\n5\n", "\n\u0665\n"),
        GOOD.replace("AAAA=", "AAAA"),
        GOOD.replace("AAAA=", "AAAB="),
        GOOD.replace("AAAA=", "AA="),
        GOOD.replace("\u2014 ", "- "),
        GOOD.replace("\n5\n", "\n5\r\n"),
        GOOD + "\u2014 x AAAA\n",
        GOOD + "\u2014 x+y AAAAAAAA\n",
        GOOD + "\u2014 x AAAAAAAA\n" * SIGNATURES_LIMIT,
        "x" * (NOTE_LIMIT + 1),
    ],
)
def test_notes_of_another_form(note: str) -> None:
    with pytest.raises(FormatError):
        decode_checkpoint(note.encode())


def test_limits_of_notes() -> None:
    strange = "\u2014 x AAAAAAAA\n"
    assert len(decode_checkpoint((GOOD + strange * (SIGNATURES_LIMIT - 1)).encode()).signatures) == SIGNATURES_LIMIT
    with pytest.raises(FormatError):
        decode_checkpoint(b"\xff" + GOOD.encode())
    with_more = GOOD.replace("\n\n", "\nextension\n\n", 1)
    assert decode_checkpoint(with_more.encode()).text.endswith("extension\n")
    with pytest.raises(FormatError):
        decode_checkpoint(with_more.encode()).signers(KEY.public_keys())  # signed without it


@pytest.mark.parametrize(
    "vkey",
    ["", "a", "a+00000000", "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", "a b+0+AQ=="],
)
def test_keys_of_another_form(vkey: str) -> None:
    with pytest.raises(FormatError):
        decode_vkey(vkey)


def test_cosignatures() -> None:
    witness = StandInWitness(ORIGIN, KEY.public_keys())
    checkpoint = sign_checkpoint(ORIGIN, 1, entry_hash(b"x"), [KEY])
    status, body = witness.answer(b"old 0\n\n" + checkpoint.encode())
    assert status == 200
    cosigned = checkpoint.with_signatures(decode_signatures(body.decode()))
    assert cosigned.cosigned(witness.key) == witness.seconds
    assert checkpoint.cosigned(witness.key) is None
    assert cosigned.signers(KEY.public_keys()) == [KEY.id]
    assert cosigned.with_signatures(cosigned.signatures) == cosigned
    value = cosigned.signatures[1].value
    for bad in (value[:-1], bytes(8) + value[8:], value[:-1] + bytes([value[-1] ^ 1])):
        forged = checkpoint.with_signatures([NoteSignature(witness.key.name, witness.key.id, bad)])
        with pytest.raises(FormatError):
            forged.cosigned(witness.key)
