"""Verification: every bit, every cut, every missing piece; and nothing unsealed is ever verified."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest

from recorder.cli import verify_path
from recorder.errors import FormatError
from recorder.format import (
    BLOCK_HEADER_BYTES,
    CHAIN_BYTES,
    TRAILER_BYTES,
    Block,
    BlockType,
    decode_block_header,
    decode_header,
    encode_block_header,
    encode_header,
    encode_trailer,
    restore,
    store,
)
from recorder.reader import TapeReader
from recorder.seal import SealKey, Tree, chain_hash, header_hash, leaf_hash
from recorder.tape import OUT, Kind
from recorder.verify import verify
from tests.recorder.tapes import KEY, command, open_tape, recorder, small_tape

KEYS = KEY.public_keys()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return asyncio.run(small_tape(recorder(tmp_path / "tapes")))


@pytest.fixture
def segments(tmp_path: Path) -> list[Path]:
    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path / "tapes", segment_limit=6000))
        for i in range(5):
            command(tape, f"SELECT {i}")
            tape.append(OUT, Kind.WIRE, os.urandom(3000))
            await tape.written()
        await tape.close("closed")
        return tape.path

    found = TapeReader(asyncio.run(scenario())).segments
    assert len(found) == 3
    return found


def blocks_of(data: bytes) -> list[tuple[Block, bytes]]:
    """Every block and its stored payload."""
    at = len(decode_header(data).raw)
    found = []
    while at < len(data) - TRAILER_BYTES:
        block = decode_block_header(data[at : at + BLOCK_HEADER_BYTES], at)
        found.append((block, data[at + BLOCK_HEADER_BYTES : block.end - CHAIN_BYTES]))
        at = block.end
    return found


def head_of(item: dict[str, Any]) -> bytes:
    names = ("type", "flags", "seq", "first_record", "t0_ns", "n_records", "raw_len")
    return encode_block_header(*(item[name] for name in names), len(item["stored"]))


def remake(
    data: bytes,
    change: Callable[[list[dict[str, Any]]], None] = lambda blocks: None,
    body: Callable[[dict[str, Any]], None] = lambda body: None,
    key: SealKey = KEY,
    seal_type: BlockType = BlockType.SEAL,
    header: dict[str, Any] | None = None,
) -> bytes:
    """Make a tape anew with changed blocks and consistent hashes and seal: what only the holder of the key can do."""
    old = decode_header(data)
    raw_header = encode_header(header) if header is not None else old.raw
    plan: list[dict[str, Any]] = []
    for block, stored in blocks_of(data):
        names = ("type", "flags", "seq", "first_record", "t0_ns", "n_records", "raw_len")
        plan.append({**{name: getattr(block, name) for name in names}, "stored": stored})
    seal_block = plan.pop()
    seal_body = msgpack.unpackb(msgpack.unpackb(seal_block["stored"])[0])
    change(plan)
    out, chain, tree, index_at = raw_header, header_hash(raw_header), Tree(), 0
    entries = b""
    for i, item in enumerate(plan):
        if item["type"] == BlockType.INDEX:
            index_at = index_at or len(out)
            if not item.get("keep"):
                item["raw_len"] = len(entries)
                item["flags"], item["stored"] = store(entries)
        stored = item["stored"]
        head = head_of(item)
        leaf = item.get("leaf") or leaf_hash(head, stored)
        chain = chain_hash(chain, leaf)
        tree.add(leaf)
        if item["type"] != BlockType.INDEX:
            entry = (
                len(out),
                int(item["type"]),
                item["seq"],
                item["first_record"],
                item["t0_ns"],
                item["n_records"],
                leaf,
            )
            entries += msgpack.packb(entry)
        out += head + stored + chain
        seal_block["seq"] = i + 1
    last = plan[-1]
    seal_block |= {"first_record": last["first_record"] + last["n_records"], "t0_ns": last["t0_ns"]}
    seal_body |= {"h0": header_hash(raw_header), "root": tree.root(), "head": chain, "blocks": len(plan)}
    body(seal_body)
    stored = key.seal(seal_body)
    head = encode_block_header(
        seal_type,
        0,
        seal_block["seq"],
        seal_block["first_record"],
        seal_block["t0_ns"],
        0,
        len(stored),
        len(stored),
    )
    out += head + stored + chain_hash(chain, leaf_hash(head, stored))
    return out + encode_trailer(index_at)


def reason_of(path: Path, status: str, keys: Any = KEYS) -> str:
    tape = verify(path, keys).tapes[0]
    assert tape.status == status, tape
    assert tape.fault is not None
    return tape.fault.reason


def test_a_sealed_tape_is_verified(sealed: Path) -> None:
    report = verify(sealed, KEYS)
    assert report.exit_code == 0
    tape = report.tapes[0]
    assert (tape.status, tape.ended, tape.commands, tape.fault) == ("verified", "closed", 3, None)
    assert tape.keys == [KEY.id]
    assert remake(sealed.read_bytes()) == sealed.read_bytes()  # so that the forgeries below are good ones


def test_every_bit_flip_is_detected(sealed: Path) -> None:
    good = sealed.read_bytes()
    assert len(good) < 6000
    unknown = 0
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        sealed.write_bytes(bad)
        status = verify(sealed, KEYS).status
        if status == "unknown":
            unknown += 1
            assert bit // 8 < 14, "only magic, version and length may leave it open what the file is"
        else:
            assert status == "altered", (bit, status)
    assert unknown >= 80


def test_every_cut_is_detected_and_what_is_left_is_readable(sealed: Path) -> None:
    good = sealed.read_bytes()
    whole = list(TapeReader(sealed).records())
    header = len(decode_header(good).raw)
    ends = [block.end for block, _ in blocks_of(good) if block.type is BlockType.DATA]
    for cut in range(len(good)):
        sealed.write_bytes(good[:cut])
        report = verify(sealed, KEYS)
        assert report.exit_code == (3 if cut < header else 2), (cut, report)
        if cut < header:
            with pytest.raises(FormatError):
                TapeReader(sealed)
            continue
        found = list(TapeReader(sealed).records())
        assert found == whole[: len(found)]
        complete = sum(1 for end in ends if end <= cut)
        assert (len(found) > 0) == (complete > 0)
        if cut >= ends[-1]:
            assert found == whole


@pytest.mark.parametrize("tail", [bytes(500), b"\xff" * 77, b"GCTB", b"GCTB" + bytes(44)])
def test_what_a_power_cut_leaves_behind_the_last_block_is_a_torn_end(tmp_path: Path, tail: bytes) -> None:
    path = asyncio.run(small_tape(recorder(tmp_path), close=False))
    whole = list(TapeReader(path).records())
    with path.open("ab") as file:
        file.write(tail)
    assert "not sealed" in reason_of(path, "incomplete")
    assert list(TapeReader(path).records()) == whole


def test_an_unsealed_tape_is_never_verified(tmp_path: Path) -> None:
    path = asyncio.run(small_tape(recorder(tmp_path), close=False))
    report = verify(path, KEYS)
    assert (report.status, report.exit_code) == ("incomplete", 2)
    assert "not sealed" in reason_of(path, "incomplete")


def test_damage_in_the_middle_of_an_unsealed_tape_is_no_torn_end(tmp_path: Path) -> None:
    path = asyncio.run(small_tape(recorder(tmp_path), close=False))
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(decode_header(good).raw) + 60] ^= 1
    path.write_bytes(bad)
    assert "chain" in reason_of(path, "altered")


def test_a_seal_by_another_key(sealed: Path) -> None:
    other = SealKey.generate()
    assert "key that was not given" in reason_of(sealed, "unknown", other.public_keys())
    assert verify(sealed, {}).exit_code == 3
    good = sealed.read_bytes()
    sealed.write_bytes(remake(good, key=other))
    assert "key that was not given" in reason_of(sealed, "unknown")
    assert verify(sealed, {**KEYS, **other.public_keys()}).exit_code == 0
    forged = SealKey.generate()
    forged.id = KEY.id  # claims to be ours
    sealed.write_bytes(remake(good, key=forged))
    assert "does not hold" in reason_of(sealed, "altered")


def test_a_body_that_is_not_what_the_file_holds(sealed: Path) -> None:
    """Signed by the right key all the same: each field is checked, so a bug of ours is found, too."""
    good = sealed.read_bytes()
    body = TapeReader(sealed).last.seal
    assert body is not None
    checked = [name for name in body.body if name not in ("reason", "log")]
    assert len(checked) == 14
    for name in checked:

        def change(body: dict[str, Any], name: str = name) -> None:
            body[name] = {"int": 77, "str": "other", "bytes": bytes(32), "list": [0]}[type(body[name]).__name__]

        sealed.write_bytes(remake(good, body=change))
        assert reason_of(sealed, "altered").startswith("seal: "), name


def set_data(number: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(blocks: list[dict[str, Any]]) -> None:
        blocks[number].update(values)

    return change


def swap(blocks: list[dict[str, Any]]) -> None:
    blocks[1], blocks[2] = blocks[2], blocks[1]


def drop(blocks: list[dict[str, Any]]) -> None:
    del blocks[2]


def commands_first(blocks: list[dict[str, Any]]) -> None:
    blocks.insert(0, {**blocks.pop(-2), "first_record": 0, "t0_ns": 0})
    for i, block in enumerate(blocks):
        block["seq"] = i


def no_index(blocks: list[dict[str, Any]]) -> None:
    del blocks[-1]


def lie_in_index(blocks: list[dict[str, Any]]) -> None:
    raw = msgpack.packb((1, 2, 3, 4, 5, 6, b"7"))
    blocks[-1].update(stored=raw, raw_len=len(raw), flags=0, keep=True)


def lie_in_commands(blocks: list[dict[str, Any]]) -> None:
    raw = msgpack.packb((1, 2, "SELECT", "read", "allow", "SELECT 99"))
    blocks[-2].update(stored=raw, raw_len=len(raw), flags=0)


def no_close(blocks: list[dict[str, Any]]) -> None:
    del blocks[-3]
    for i, block in enumerate(blocks):
        block["seq"] = i
    for block in blocks[-2:]:
        block["first_record"] -= 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap, "in the place of"),
        (drop, "in the place of"),
        (set_data(1, first_record=77), "is missing"),
        (set_data(1, t0_ns=0), "time goes back"),
        (set_data(1, n_records=0), "does not fit"),
        (set_data(0, n_records=7), "7 announced"),
        (commands_first, "in this place"),
        (no_index, "in this place"),
        (lie_in_index, "INDEX is not"),
        (lie_in_commands, "COMMANDS is not"),
        (set_data(-1, flags=2), "encrypted"),
    ],
)
def test_forgeries_with_the_key(sealed: Path, change: Callable[[list[dict[str, Any]]], None], reason: str) -> None:
    good = sealed.read_bytes()

    data = remake(good, change)
    if reason == "encrypted":  # the INDEX was rebuilt with its own flags
        data = remake(good, lambda blocks: blocks[-1].update(flags=2, keep=True))
    sealed.write_bytes(data)
    assert reason in reason_of(sealed, "altered")


def test_a_closed_tape_without_close(sealed: Path) -> None:
    def fewer(body: dict[str, Any]) -> None:
        body["records"] -= 1
        body["t_last"] = last

    good = sealed.read_bytes()
    last = list(TapeReader(sealed).records())[-2].t_ns

    sealed.write_bytes(remake(good, no_close, fewer))
    assert reason_of(sealed, "altered") == "the last record is not CLOSE"


def gap(
    listed: bool, lie: bool = False
) -> tuple[Callable[[list[dict[str, Any]]], None], Callable[[dict[str, Any]], None]]:
    """Turn block 1 into a GAP, as recovery does; the chain stays what it was."""
    payload: list[bytes] = []

    def change(blocks: list[dict[str, Any]]) -> None:
        block = blocks[1]
        head = head_of(block)
        leaf = leaf_hash(head, block["stored"])
        stored = head + leaf
        payload[:] = [sha256(stored).digest()]
        block.update(type=BlockType.GAP, flags=0, stored=stored, raw_len=len(stored), leaf=leaf)
        if lie:
            block["n_records"] += 1
            for later in blocks[2:]:
                later["first_record"] += 1

    def body(seal: dict[str, Any]) -> None:
        seal["gaps"] = [[1, payload[0]]] if listed else []
        seal["status"] = "crashed"
        seal["commands"] = None
        seal["t_last"] = last

    last = 0

    def change_and_note(blocks: list[dict[str, Any]]) -> None:
        nonlocal last
        change(blocks)
        last = max(block["t0_ns"] for block in blocks if block["n_records"])

    return change_and_note, body


def test_a_gap_is_what_a_crash_leaves_and_never_verified(sealed: Path) -> None:
    good = sealed.read_bytes()
    change, body = gap(listed=True)
    sealed.write_bytes(remake(good, change, body, seal_type=BlockType.CRASHSEAL))
    assert "crash" in reason_of(sealed, "incomplete")
    marks = [r for r in TapeReader(sealed).records() if r.kind == Kind.MARK]
    assert [msgpack.unpackb(r.payload)["label"] for r in marks] == ["gap"]
    change, body = gap(listed=False)
    sealed.write_bytes(remake(good, change, body, seal_type=BlockType.CRASHSEAL))
    assert "gaps is not" in reason_of(sealed, "altered")
    change, body = gap(listed=True)
    sealed.write_bytes(remake(good, change, body))  # a plain seal over a crash
    assert "does not fit" in reason_of(sealed, "altered")
    change, body = gap(listed=True)

    def as_if_closed(seal: dict[str, Any]) -> None:
        before = dict(seal)
        body(seal)
        seal.update({**before, "gaps": seal["gaps"]})

    sealed.write_bytes(remake(good, change, as_if_closed))
    assert "gaps without a crash" in reason_of(sealed, "altered")
    change, body = gap(listed=True, lie=True)
    sealed.write_bytes(remake(good, change, body, seal_type=BlockType.CRASHSEAL))
    assert "GAP unlike" in reason_of(sealed, "altered")


def test_what_a_gap_says_of_the_lost_block_is_sealed(sealed: Path) -> None:
    """Its flags and lengths are in no leaf: the pinned one is the lost block's, whose content is gone."""
    good = sealed.read_bytes()
    change, body = gap(listed=True)

    def another_length(blocks: list[dict[str, Any]]) -> None:
        change(blocks)
        head = bytearray(blocks[1]["stored"][:48])
        head[36:40] = (1234).to_bytes(4, "little")  # raw_len
        head[5] = 1
        head[44:48] = zlib.crc32(head[:44]).to_bytes(4, "little")
        blocks[1]["stored"] = bytes(head) + blocks[1]["stored"][48:]

    sealed.write_bytes(remake(good, another_length, body, seal_type=BlockType.CRASHSEAL))
    assert "gaps is not" in reason_of(sealed, "altered")


def test_bytes_behind_the_end(sealed: Path) -> None:
    good = sealed.read_bytes()
    sealed.write_bytes(good + b"x")
    assert "bytes after the end" in reason_of(sealed, "altered")
    sealed.write_bytes(good[:-16] + encode_trailer(5))
    assert "points elsewhere" in reason_of(sealed, "altered")


def test_unknown_files(tmp_path: Path, sealed: Path) -> None:
    good = sealed.read_bytes()
    sealed.write_bytes(good[:8] + b"\x02" + good[9:])
    assert "version 2" in reason_of(sealed, "unknown")
    stray = tmp_path / "note.gct"
    stray.write_text("hello")
    assert "not a tape" in reason_of(stray, "unknown")
    (tmp_path / "empty").mkdir()
    assert verify(tmp_path / "empty", KEYS).exit_code == 3


def test_segments(segments: list[Path]) -> None:
    report = verify(segments[1], KEYS)  # any of them stands for the tape
    assert report.exit_code == 0
    assert report.tapes[0].segments == 3


@pytest.mark.parametrize(
    ("missing", "status", "reason"),
    [
        (0, "altered", "segment 0 is missing"),
        (1, "altered", "segment 1 is missing"),
        (2, "incomplete", "the end is missing"),
    ],
)
def test_a_missing_segment(segments: list[Path], missing: int, status: str, reason: str) -> None:
    segments[missing].unlink()
    assert reason in reason_of(segments[1 if missing != 1 else 0], status)


def test_segments_that_do_not_belong_together(segments: list[Path], tmp_path: Path) -> None:
    good = segments[1].read_bytes()
    header = dict(decode_header(good).map_)
    for change, reason in (
        ({"prev": bytes(32)}, "prev"),
        ({"target": "elsewhere"}, "another session"),
        ({"first_record": 99}, "first_record"),
        ({"segment": 5}, "name"),
    ):
        segments[1].write_bytes(remake(good, header={**header, **change}))
        assert reason in reason_of(segments[0], "altered")
    segments[1].write_bytes(good)
    shutil.copy(segments[2], segments[2].with_name(segments[2].name.replace("002", "003")))
    assert "name" in reason_of(segments[0], "altered")


def test_a_directory_is_as_good_as_its_worst_tape(tmp_path: Path) -> None:
    of = recorder(tmp_path)
    paths = [asyncio.run(small_tape(of)) for _ in range(3)]
    assert verify(tmp_path, KEYS).exit_code == 0
    assert len(verify(tmp_path, KEYS).tapes) == 3
    asyncio.run(small_tape(of, close=False))
    assert verify(tmp_path, KEYS).exit_code == 2
    data = bytearray(paths[1].read_bytes())
    data[-100] ^= 1
    paths[1].write_bytes(data)
    report = verify(tmp_path, KEYS)
    assert report.exit_code == 1
    assert sorted(tape.status for tape in report.tapes) == ["altered", "incomplete", "verified", "verified"]


def test_tapes_above_the_limit_are_not_passed_over_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = recorder(tmp_path)
    for _ in range(3):
        asyncio.run(small_tape(of, commands=0))
    for limit, code in ((4, 0), (3, 0), (2, 3)):
        monkeypatch.setattr("recorder.verify.TAPES_LIMIT", limit)
        assert verify(tmp_path, KEYS).exit_code == code


def test_two_different_tapes_of_one_session(tmp_path: Path) -> None:
    path = asyncio.run(small_tape(recorder(tmp_path)))
    other = tmp_path / "copy"
    other.mkdir()
    shutil.copy(path, other)
    assert verify(tmp_path, KEYS).exit_code == 0  # the same tape twice is a copy

    def note(body: dict[str, Any]) -> None:
        body["reason"] = "another end"

    def later(blocks: list[dict[str, Any]]) -> None:
        blocks[-1]["t0_ns"] += 1

    (other / path.name).write_bytes(remake(path.read_bytes(), later, note))
    report = verify(tmp_path, KEYS)
    assert report.exit_code == 1
    assert any(tape.fault and "another, different tape" in tape.fault.reason for tape in report.tapes)


def test_verify_path_is_json_with_the_place(sealed: Path, tmp_path: Path) -> None:
    keys = tmp_path / "seal.pub"
    keys.write_bytes(KEY.public_pem())
    assert verify_path(sealed, keys)["exit_code"] == 0
    data = bytearray(sealed.read_bytes())
    block = blocks_of(bytes(data))[2][0]
    data[block.offset + 50] ^= 1
    sealed.write_bytes(data)
    fault = verify_path(sealed, keys)["tapes"][0]["fault"]
    assert (fault["offset"], fault["block"], fault["status"]) == (block.offset, 2, "altered")
    assert fault["file"] == str(sealed)


def test_the_content_of_a_block_is_checked_too(sealed: Path) -> None:
    good = sealed.read_bytes()
    block, stored = blocks_of(good)[0]
    raw = restore(block, stored)
    items = list(msgpack.Unpacker(io.BytesIO(raw)))
    items[0][1] = 10**6  # the first record later than the second

    def change(blocks: list[dict[str, Any]]) -> None:
        packed = b"".join(msgpack.packb(item) for item in items)
        blocks[0].update(raw_len=len(packed), flags=0, stored=packed)

    sealed.write_bytes(remake(good, change))
    assert "time goes back" in reason_of(sealed, "altered")
