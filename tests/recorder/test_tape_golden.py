"""A second reader, written from format.py's docstring alone, reads a tape of old: the format may not drift unnoticed.

golden.tape was written by make_golden() and is kept; ``python -m tests.recorder.test_tape_golden`` makes it anew, which
only a new format version may ask for. The reader below imports nothing of the recorder on purpose.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import msgpack
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

GOLDEN = Path(__file__).parent / "golden.tape"
PUBLIC = Path(__file__).parent / "golden.pub"


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 6962 2.1, as it is written there."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha(b"\x01", tree_hash(leaves[:k]), tree_hash(leaves[k:]))


def read_by_the_book(data: bytes, public: Ed25519PublicKey) -> tuple[dict[str, Any], list[list[Any]], list[Any], Any]:
    """Return (header map, records, COMMANDS entries, seal body); AssertionError for whatever is not as specified."""
    assert data[:8] == bytes([0x89, 0x47, 0x43, 0x54, 0x0D, 0x0A, 0x1A, 0x0A])
    version, map_len = struct.unpack_from("<HI", data, 8)
    assert version == 1
    end = 14 + map_len
    header = msgpack.unpackb(data[14:end])
    assert struct.unpack_from("<I", data, end)[0] == zlib.crc32(data[:end])
    at = end + 4
    chain = sha(b"\x03", data[:at])
    h0 = chain
    leaves: list[bytes] = []
    records: list[list[Any]] = []
    commands: list[Any] = []
    index: list[Any] = []
    places: list[list[Any]] = []
    index_at = 0
    body: Any = None
    next_record = header["first_record"]
    seq = 0
    while body is None:
        head = data[at : at + 48]
        magic, kind, flags, zero, number, first, t0, count, raw_len, stored_len, crc = struct.unpack(
            "<4sBBHQQQIIII", head
        )
        assert (magic, zero, number, first) == (b"GCTB", 0, seq, next_record)
        assert crc == zlib.crc32(head[:44])
        stored = data[at + 48 : at + 48 + stored_len]
        leaf = sha(b"\x00", head, stored)
        before = chain
        chain = sha(b"\x02", chain, leaf)
        assert data[at + 48 + stored_len : at + 80 + stored_len] == chain
        assert flags in (0, 1)
        raw = zstandard.ZstdDecompressor().decompress(stored) if flags else stored
        assert len(raw) == raw_len
        items = list(stream(raw))
        if kind == 1:
            assert len(items) == count
            for item in items:
                assert item[0] == next_record
                next_record += 1
                records.append([item[0], t0 + 1000 * item[1], *item[2:]])
        elif kind == 3:
            commands += items
        elif kind == 4:
            index_at = index_at or at
            index += items
        elif kind == 5:
            signed, [[alg, key_id, signature]] = items[0]
            assert alg == "ed25519"
            assert key_id == sha(public.public_bytes_raw()).hex()[:16]
            public.verify(signature, b"gatecast tape seal v1\n" + signed)
            body = msgpack.unpackb(signed)
            assert (body["root"], body["head"], body["h0"]) == (tree_hash(leaves), before, h0)
            assert body["blocks"] == seq
        else:
            raise AssertionError(kind)
        if kind in (1, 3):
            places.append([at, kind, seq, first, t0, count, leaf])
        leaves.append(leaf)
        at += 80 + stored_len
        seq += 1
    assert places == index
    assert data[at : at + 12] == struct.pack("<4sQ", b"GCTT", index_at)
    assert struct.unpack_from("<I", data, at + 12)[0] == zlib.crc32(data[at : at + 12])
    assert len(data) == at + 16
    return header, records, commands, body


def stream(raw: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker()
    unpacker.feed(raw)
    return unpacker


def test_a_stranger_reads_the_golden_tape() -> None:
    public = load_pem_public_key(PUBLIC.read_bytes())
    assert isinstance(public, Ed25519PublicKey)
    header, records, commands, body = read_by_the_book(GOLDEN.read_bytes(), public)
    assert header["sid"] == "01K0000000000000000000GCT1"
    assert header["identity"] == {"subject": "ana@acme", "agents": ["claude-code"], "groups": ["dba", "dev"]}
    assert (header["protocol"], header["target"], header["mode"]) == ("postgres", "shop", "durable")
    assert header["wall0_ns"] == 1_790_000_000_000_000_000
    # Channel and kind: the gate's words have channel 0, the answer is 2/WIRE.
    said = "1/6 1/1 1/2 0/3 2/1 0/9 0/5 1/2 1/2 0/4 0/4 0/3 1/2 0/3 0/7 0/8 0/10"
    assert [f"{record[2]}/{record[3]}" for record in records] == said.split()
    assert records[1][4] == b"Q\x00\x00\x00\x0dSELECT 1\x00"
    assert records[4][4] == bytes(range(256)) * 20
    assert msgpack.unpackb(records[0][4]) == {"text": "why not"}
    assert records[0][1] == 1_000_000
    assert records[7][5] == {"part": 0, "more": 1}
    assert records[8][5] == {"part": 1, "more": 0}
    assert len(records[7][4]) == 262_144
    long = msgpack.unpackb(records[7][4] + records[8][4])
    assert long["text"] == "SELECT '" + "x" * 300_000 + "'"
    assert commands == [
        [2, 1_000_000, "SELECT", "read", "allow", "SELECT 1"],
        [7, 3_000_000, "SELECT", "read", "held-allow", "SELECT '" + "x" * 112],
        [12, 5_000_000, "DROP", "define", "deny", "DROP TABLE orders"],
    ]
    assert msgpack.unpackb(records[-1][4]) == {"status": "closed", "reason": "end"}
    assert (body["status"], body["reason"], body["records"], body["commands"]) == ("closed", "end", 17, 3)


def test_what_is_written_today_reads_the_same(tmp_path: Path) -> None:
    """The bytes may differ (compressors change), what they say may not."""
    key = golden_key()
    today = read_by_the_book(make_golden(tmp_path).read_bytes(), key.public_key())
    golden = read_by_the_book(GOLDEN.read_bytes(), key.public_key())
    assert today[:3] == golden[:3]


def test_our_own_reader_agrees() -> None:
    from recorder.format import Joiner
    from recorder.reader import TapeReader
    from recorder.seal import load_public_keys
    from recorder.verify import verify

    report = verify(GOLDEN, load_public_keys(PUBLIC))
    assert report.exit_code == 0, report
    _, records, commands, _ = read_by_the_book(GOLDEN.read_bytes(), golden_key().public_key())
    reader = TapeReader(GOLDEN)
    assert [[e.n, e.t_ns, e.verb, e.kind, e.verdict, e.text] for e in reader.commands()] == commands
    found = [[r.n, r.t_ns, r.channel, r.kind, r.payload] for r in reader.segment(0).records(0)]
    assert found == [record[:5] for record in records]
    assert Joiner()


def golden_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def make_golden(directory: Path) -> Path:
    """Write the golden tape with today's writer; nothing in it depends on the time or on chance."""
    from recorder.seal import SealKey
    from recorder.tape import GATE, OUT, USER, Kind, Recorder

    clock = [10_000_000_000]
    pack = msgpack.packb

    async def scenario() -> Path:
        of = Recorder(
            directory,
            SealKey(golden_key()),
            node="node-1",
            wall_ns=lambda: 1_790_000_000_000_000_000,
            monotonic_ns=lambda: clock[0],
        )
        tape = of.open(
            protocol="postgres",
            identity={"subject": "ana@acme", "agents": ["claude-code"], "groups": frozenset({"dev", "dba"})},
            target="shop",
            mode="durable",
            policy_revision="r7",
        )
        clock[0] += 1_000_000
        tape.append(USER, Kind.INTENT, pack({"text": "why not"}))
        tape.append(USER, Kind.WIRE, b"Q\x00\x00\x00\x0dSELECT 1\x00")
        n = tape.append(USER, Kind.COMMAND, pack({"verb": "SELECT", "kind": "read", "text": "SELECT  1"}))
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "allow", "rule": "reads", "masks": ["pii"]}))
        await tape.commit()
        clock[0] += 1_000_000
        tape.append(OUT, Kind.WIRE, bytes(range(256)) * 20)
        tape.append(GATE, Kind.MASKMAP, pack({"command": n, "fields": [["email", 0, "pii"]]}))
        rows = {"columns": ["email"], "rows": [["###"], [None]], "count": 2, "bytes": 20}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "SELECT 2", **rows}))
        await tape.written()
        clock[0] += 1_000_000
        text = "SELECT '" + "x" * 300_000 + "'"
        n = tape.append(USER, Kind.COMMAND, pack({"verb": "SELECT", "kind": "read", "text": text}))
        pending = {"state": "pending", "rule": "big", "approvers": ["group:dba"]}
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A1", **pending}))
        await tape.commit()
        clock[0] += 1_000_000
        tape.append(
            GATE, Kind.APPROVAL, pack({"command": n, "id": "A1", "state": "approved", "by": "mia", "reason": ""})
        )
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "allow", "rule": "big", "approval": "A1"}))
        await tape.commit()
        clock[0] += 1_000_000
        n = tape.append(USER, Kind.COMMAND, pack({"verb": "DROP", "kind": "define", "text": "DROP TABLE orders"}))
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": "deny", "rule": "no-ddl", "reason": "no"}))
        tape.append(GATE, Kind.RESIZE, pack([120, 40]))
        tape.append(GATE, Kind.MARK, pack({"label": "note", "text": "it"}))
        await tape.close("closed", "end")
        return tape.path

    with mock.patch("recorder.tape.new_ulid", lambda wall_ns: "01K0000000000000000000GCT1"):
        return asyncio.run(scenario())


if __name__ == "__main__":
    import shutil
    import tempfile

    from recorder.seal import SealKey

    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(make_golden(Path(scratch)), GOLDEN)
    GOLDEN.chmod(0o644)
    PUBLIC.write_bytes(SealKey(golden_key()).public_pem())
