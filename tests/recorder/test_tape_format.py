"""The format's parts: round trips, limits at their edges, and refusal of everything unknown."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.errors import FormatError, NotATape, Truncated, UnknownVersion, Unreadable
from recorder.format import (
    BLOCK_TARGET_BYTES,
    HEADER_LIMIT,
    JOINED_LIMIT,
    MAGIC,
    PAYLOAD_LIMIT,
    RAW_BELOW_BYTES,
    RAW_LIMIT,
    STORED_LIMIT,
    Block,
    BlockType,
    Joiner,
    Kind,
    Record,
    decode_block_header,
    decode_commands,
    decode_header,
    decode_index,
    decode_records,
    decode_trailer,
    encode_block_header,
    encode_header,
    encode_trailer,
    restore,
    store,
)
from recorder.segment import CommandIndex

FIELDS: dict[str, Any] = {"sid": "0" * 26, "segment": 0, "first_record": 0, "wall0_ns": 1, "prev": None}
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


def with_crc(head: bytes) -> bytes:
    return head + struct.pack("<I", zlib.crc32(head))


def block_of(raw: bytes, n_records: int, **more: int) -> Block:
    return Block(0, BlockType.DATA, more.get("flags", 0), 0, more.get("first", 0), 0, n_records, len(raw), len(raw))


@given(st.dictionaries(st.text(max_size=20), st.one_of(st.text(), u64, st.binary(), st.none()), max_size=8))
def test_header_round_trip(more: dict[str, Any]) -> None:
    fields = {**more, **FIELDS}
    raw = encode_header(fields)
    header = decode_header(raw + b"tail")
    assert header.map_ == fields
    assert header.raw == raw


def test_header_takes_sets_as_sorted_lists() -> None:
    header = decode_header(encode_header({**FIELDS, "identity": {"groups": frozenset({"b", "a"})}}))
    assert header.map_["identity"] == {"groups": ["a", "b"]}


def test_header_limit() -> None:
    room = HEADER_LIMIT - len(encode_header({**FIELDS, "x": "y" * 40_000})) + 40_000 + len(MAGIC) + 2 + 4 + 4
    assert decode_header(encode_header({**FIELDS, "x": "y" * room})).map_["x"] == "y" * room
    with pytest.raises(ValueError, match="larger"):
        encode_header({**FIELDS, "x": "y" * (room + 1)})
    with pytest.raises(FormatError, match="above its limit"):
        decode_header(MAGIC + struct.pack("<HI", 1, HEADER_LIMIT + 1) + bytes(100))


def test_header_refusals() -> None:
    good = encode_header(FIELDS)
    for cut in range(len(good)):
        with pytest.raises(Truncated):
            decode_header(good[:cut])
    with pytest.raises(NotATape):
        decode_header(b"PK\x03\x04" + good)
    with pytest.raises(UnknownVersion, match="version 2"):
        decode_header(MAGIC + struct.pack("<H", 2) + good[10:])
    for at in range(10, len(good)):
        flipped = bytearray(good)
        flipped[at] ^= 4
        with pytest.raises(FormatError):
            decode_header(bytes(flipped))
    with pytest.raises(FormatError, match="sid is missing"):
        decode_header(encode_header({**FIELDS, "sid": 7}))


@given(
    st.integers(1, 6), st.integers(1, 7), u64, u64, u64, u32, st.integers(0, RAW_LIMIT), st.integers(0, STORED_LIMIT)
)
def test_block_header_round_trip(
    kind: int, flags: int, seq: int, first: int, t0: int, count: int, raw_len: int, stored_len: int
) -> None:
    raw = encode_block_header(kind, flags, seq, first, t0, count, raw_len, stored_len)
    assert len(raw) == 48
    block = decode_block_header(raw, 7)
    assert block == Block(7, BlockType(kind), flags, seq, first, t0, count, raw_len, stored_len)
    assert block.end == 7 + 48 + stored_len + 32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": 0}, "unknown type 0"),
        ({"kind": 7}, "unknown type 7"),
        ({"flags": 8}, "unknown flags"),
        ({"flags": 128}, "unknown flags"),
        ({"reserved": 1}, "reserved"),
        ({"raw": RAW_LIMIT + 1, "flags": 1}, "above its limit"),
        ({"stored": STORED_LIMIT + 1, "flags": 1}, "above its limit"),
        ({"raw": 9}, "another length"),
        ({"magic": b"GCTX"}, "wrong magic"),
    ],
)
def test_block_header_refusals(change: dict[str, Any], reason: str) -> None:
    said = {"magic": b"GCTB", "kind": 1, "flags": 0, "reserved": 0, "raw": 10, "stored": 10, **change}
    head = struct.pack(
        "<4sBBHQQQIII",
        said["magic"],
        said["kind"],
        said["flags"],
        said["reserved"],
        0,
        0,
        0,
        1,
        said["raw"],
        said["stored"],
    )
    with pytest.raises(FormatError, match=reason):
        decode_block_header(with_crc(head), 0)


def test_lengths_at_their_limits_are_taken() -> None:
    raw = encode_block_header(1, 1, 0, 0, 0, 1, RAW_LIMIT, STORED_LIMIT)
    assert decode_block_header(raw, 0).raw_len == RAW_LIMIT


def test_every_bit_of_a_block_header_counts() -> None:
    raw = encode_block_header(1, 1, 2, 3, 4, 5, 6, 7)
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_block_header(bytes(flipped), 0)


def test_trailer() -> None:
    raw = encode_trailer(2**40 + 1)
    assert decode_trailer(raw) == 2**40 + 1
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_trailer(bytes(flipped))
    with pytest.raises(FormatError):
        decode_trailer(raw[:-1])


@given(st.binary(max_size=2000), st.booleans())
def test_store_and_restore(data: bytes, doubled: bool) -> None:
    raw = data * 40 if doubled else data
    flags, stored = store(raw)
    block = Block(0, BlockType.DATA, flags, 0, 0, 0, 1, len(raw), len(stored))
    assert restore(block, stored) == raw
    assert flags == 0 if len(raw) < 128 else len(stored) <= len(raw)


def test_what_does_not_shrink_is_stored_as_it_is() -> None:
    noise = random.Random(1).randbytes(5000)
    assert store(noise) == (0, noise)
    short = b"a" * (RAW_BELOW_BYTES - 1)
    assert store(short) == (0, short)
    assert store(short + b"a")[0] == 1


def test_a_frame_that_announces_more_is_refused_before_it_is_unpacked() -> None:
    _, bomb = store(bytes(1024 * 1024 * 64))
    block = Block(0, BlockType.DATA, 1, 0, 0, 0, 1, RAW_LIMIT, len(bomb))
    with pytest.raises(FormatError, match="content size"):
        restore(block, bomb)
    with pytest.raises(FormatError):
        restore(Block(0, BlockType.DATA, 1, 0, 0, 0, 1, 5, 5), b"junk!")
    with pytest.raises(Unreadable):
        restore(Block(0, BlockType.DATA, 2, 0, 0, 0, 1, 5, 5), b"junk!")


records = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 255), st.binary(max_size=100)), max_size=20
)


@given(records, st.integers(0, 2**40))
def test_records_round_trip(items: list[tuple[int, int, int, bytes]], first: int) -> None:
    dt = 0
    expected, raw = [], b""
    for i, (step, channel, kind, payload) in enumerate(items):
        dt += step
        expected.append(Record(first + i, dt * 1000, channel, kind, payload))
        raw += msgpack.packb([first + i, dt, channel, kind, payload])
    assert decode_records(block_of(raw, len(items), first=first), raw) == expected


@pytest.mark.parametrize(
    ("items", "count", "reason"),
    [
        ([[1, 0, 0, 1, b""]], 1, "not contiguous"),
        ([[0, 5, 0, 1, b""], [1, 4, 0, 1, b""]], 2, "time goes back"),
        ([[0, 0, 4, 1, b""]], 1, "out of range"),
        ([[0, 0, 0, 1, b""]], 2, "1 records, 2 announced"),
        ([[0, 0, 0, 1, "text"]], 1, "not of the form"),
        ([[0, 0, 0, 1]], 1, "not of the form"),
        ([7], 1, "not of the form"),
        ([[0, 0, 0, 1, bytes(PAYLOAD_LIMIT + 1)]], 1, "out of range"),
        ([[0, 0, 0, 1, b"", {"more": "x"}]], 1, "out of range"),
    ],
)
def test_record_refusals(items: list[Any], count: int, reason: str) -> None:
    raw = b"".join(msgpack.packb(item) for item in items)
    with pytest.raises(FormatError, match=reason):
        decode_records(block_of(raw, count), raw)


def test_payload_at_its_limit() -> None:
    raw = msgpack.packb([0, 0, 0, 1, bytes(PAYLOAD_LIMIT)])
    assert len(decode_records(block_of(raw, 1), raw)[0].payload) == PAYLOAD_LIMIT


def test_half_a_record_at_the_end() -> None:
    raw = msgpack.packb([0, 0, 0, 1, b"abc"]) + msgpack.packb([1, 0, 0, 1, b"abc"])[:-2]
    with pytest.raises(FormatError):
        decode_records(block_of(raw, 1), raw)


@given(st.binary(max_size=300))
def test_garbage_is_a_format_error_and_nothing_else(data: bytes) -> None:
    for decode in (
        decode_header,
        decode_trailer,
        decode_commands,
        decode_index,
        lambda raw: decode_block_header(raw[:48], 0),
        lambda raw: decode_records(block_of(raw, 1), raw),
    ):
        try:
            decode(data)
        except FormatError as error:
            assert error.reason
        else:
            # Nothing at all is a valid list of no entries.
            assert data == b"" or decode in (decode_commands, decode_index) or data[:4] == b"GCTB"


def test_joiner() -> None:
    parts = [Record(5 + i, 100 + i, 1, 2, bytes([65 + i]), i, 2 - i) for i in range(3)]
    alone = Record(8, 200, 1, 2, b"x")
    joiner = Joiner()
    assert [joiner.feed(r) for r in (*parts, alone)] == [None, None, Record(5, 100, 1, 2, b"ABC"), alone]
    late = Joiner()  # began to read in the middle
    assert [late.feed(r) for r in (*parts[1:], alone)] == [None, None, alone]
    for wrong in ([parts[0], alone], [parts[0], parts[2]], [parts[0], Record(6, 0, 1, 3, b"", 1, 1)]):
        joiner = Joiner()
        joiner.feed(wrong[0])
        with pytest.raises(FormatError):
            joiner.feed(wrong[1])


def test_joined_limit() -> None:
    joiner = Joiner()
    size = PAYLOAD_LIMIT
    count = JOINED_LIMIT // size + 1
    for i in range(count - 1):
        assert joiner.feed(Record(i, 0, 1, 2, bytes(size), i, count - 1 - i)) is None
    with pytest.raises(FormatError, match="limit"):
        joiner.feed(Record(count, 0, 1, 2, b"1", count - 1, 0))


def test_a_long_index_is_cut_at_entries_into_pieces_that_fit() -> None:
    index = CommandIndex()
    count = 3000
    for n in range(count):
        index.note(2 * n, n, Kind.COMMAND, msgpack.packb({"verb": "SELECT", "kind": "read", "text": "x" * 500}))
        index.note(2 * n + 1, n, Kind.VERDICT, msgpack.packb({"command": 2 * n, "verdict": "allow", "rule": "r"}))
    pieces = index.finish()
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= BLOCK_TARGET_BYTES
    assert sum(map(len, pieces)) == index.size_bytes
    entries = [entry for piece in pieces for entry in decode_commands(piece)]
    assert [entry.n for entry in entries] == list(range(0, 2 * count, 2))
    assert {entry.verdict for entry in entries} == {"allow"}
