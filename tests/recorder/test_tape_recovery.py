"""Recovery, case by case: what is done with each kind of damage, and what is left alone."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from recorder.cipher import AuditorKey
from recorder.disk import Disk
from recorder.format import BLOCK_HEADER_BYTES, BlockType, decode_block_header, decode_header, encode_block_header
from recorder.reader import TapeReader
from recorder.recover import Recovery, recover, seal_broken, sweep
from recorder.repair import Recovered
from recorder.seal import leaf_hash
from recorder.tape import GATE, OUT, USER, Kind, Tape
from recorder.ulid import new_ulid, ulid_bytes
from recorder.verify import verify
from recorder.verify_tape import INCOMPLETE, VERIFIED
from recorder.walformat import ENTRY_HEADER_BYTES, EntryKind, encode_entry_header, read_entries
from tests.recorder.tapes import KEY, command, open_tape, pack, recorder
from tests.recorder.workload import FAR_FUTURE_NS, snapshot

DISK = Disk()


async def write(tape: Tape, commands: int) -> None:
    """Some commands with answers; the answers are only hashes in the log."""
    for i in range(commands):
        tape.append(USER, Kind.WIRE, b"Q%d" % i)
        command(tape, f"SELECT {i}")
        await tape.commit()
        tape.append(OUT, Kind.WIRE, b"row %d " % i * 50)
        await tape.written()
    command(tape, "COMMIT")
    await tape.commit()


def killed(tmp_path: Path, *, close: bool = False, commands: int = 3, limit: int = 1 << 20, **more: Any) -> Path:
    """What a kill leaves of a recorder with one tape: everything, and no DONE."""

    async def run() -> None:
        of = recorder(tmp_path / "live", tick_seconds=3600, segment_limit=limit)
        tape = open_tape(of, "durable", **more)
        await write(tape, commands)
        if close:
            await tape.close("closed", "bye")
        shutil.copytree(tmp_path / "live", tmp_path / "image")
        of.close()

    asyncio.run(run())
    return tmp_path / "image"


def segments(image: Path) -> list[Path]:
    return sorted(image.glob("[0-9]*/*/*/*.gct"))


def recovered(image: Path, disk: Disk = DISK) -> Recovery:
    return recover(image, image / "wal" / "0", KEY, disk=disk)


def one(image: Path) -> Recovered:
    found = recovered(image).segments
    assert len(found) == 1
    return found[0]


def statuses(image: Path) -> list[str]:
    return [tape.status for tape in verify(image, KEY.public_keys()).tapes]


def blocks(path: Path) -> list[tuple[BlockType, int]]:
    """The types of a segment's blocks, and where each begins."""
    data = path.read_bytes()
    offset, found = len(decode_header(data).raw), []
    while data[offset : offset + 4] == b"GCTB":
        block = decode_block_header(data[offset : offset + BLOCK_HEADER_BYTES], offset)
        found.append((block.type, offset))
        offset = block.end
    return found


def types(path: Path) -> list[str]:
    return [kind.name for kind, _ in blocks(path)]


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def wal_files(image: Path) -> list[Path]:
    return sorted((image / "wal" / "0").glob("*.wal"))


def log_size(path: Path) -> int:
    """Where the valid entries of a log file end."""
    return sum(ENTRY_HEADER_BYTES + len(entry.body) for entry in read_entries(path.read_bytes()))


def append_entry(image: Path, path: Path, kind: EntryKind, body: bytes = b"") -> None:
    header = decode_header(path.read_bytes()).map_
    log = wal_files(image)[-1]
    data = log.read_bytes()
    end = log_size(log)
    generation = int.from_bytes(data[12:20], "little")
    head = encode_entry_header(int(kind), 0, header["segment"], generation, ulid_bytes(header["sid"]), body)
    log.write_bytes(data[:end] + head + body + data[end + len(head) + len(body) :])


# -- one segment ----------------------------------------------------------------------------------------


def test_a_killed_tape_keeps_all_and_gets_a_crash_seal(tmp_path: Path) -> None:
    image = killed(tmp_path)
    path = segments(image)[0]
    before = path.read_bytes()
    found = one(image)
    assert (found.status, found.restored, found.gaps, found.cut_bytes, found.segment) == ("crashed", 0, 0, 0, 0)
    assert found.blocks == len(blocks(path)) - 2
    assert path.read_bytes().startswith(before)
    assert types(path)[-2:] == ["INDEX", "CRASHSEAL"]
    assert statuses(image) == [INCOMPLETE]
    report = verify(image, KEY.public_keys()).tapes[0]
    assert report.root == found.root.hex()
    assert not wal_files(image)


def test_a_closed_tape_comes_back_whole_from_the_log(tmp_path: Path) -> None:
    """Every block of it, if the answers reached the disk; the file is then what its writer made."""
    image = killed(tmp_path, close=True)
    path = segments(image)[0]
    before = path.read_bytes()
    last_answer = max(i for i, (kind, _) in enumerate(blocks(path)) if kind is BlockType.DATA)
    cut(path, blocks(path)[last_answer][1] + 7)
    found = one(image)
    assert (found.status, found.gaps) == ("closed", 0)
    assert found.restored >= 4  # CLOSE, COMMANDS, INDEX, SEAL
    assert path.read_bytes() == before
    assert statuses(image) == [VERIFIED]


@pytest.mark.parametrize("left", (0, 1, 100, 15))
def test_a_missing_or_torn_trailer_is_written_again(tmp_path: Path, left: int) -> None:
    image = killed(tmp_path, close=True)
    path = segments(image)[0]
    before = path.read_bytes()
    path.write_bytes(before[: len(before) - 16 + left] if left < 16 else before + b"x" * left)
    assert one(image).status == "closed"
    assert path.read_bytes() == before


def test_lost_answers_become_gaps_with_their_hashes(tmp_path: Path) -> None:
    image = killed(tmp_path, close=True)
    path = segments(image)[0]
    before = path.read_bytes()
    cut(path, len(decode_header(before).raw))
    found = one(image)
    assert (found.status, found.gaps, found.cut_bytes) == ("crashed", 3, 0)
    assert types(path) == ["DATA", "GAP", "DATA", "GAP", "DATA", "GAP", "DATA", "DATA", "INDEX", "CRASHSEAL"]
    assert statuses(image) == [INCOMPLETE]
    texts = [entry.text for entry in TapeReader(path).commands()]
    assert texts == ["SELECT 0", "SELECT 1", "SELECT 2", "COMMIT"]


def test_a_gap_in_a_long_record_hurts_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        of = recorder(tmp_path / "live", tick_seconds=3600)
        tape = open_tape(of, "durable")
        tape.append(GATE, Kind.RESULT, pack({"tag": "x", "junk": os.urandom(900_000)}))
        command(tape, "SELECT 1")
        await tape.commit()
        await write(tape, 1)
        shutil.copytree(tmp_path / "live", tmp_path / "image")
        of.close()

    asyncio.run(run())
    image = tmp_path / "image"
    path = segments(image)[0]
    log = wal_files(image)[0]
    entries = list(read_entries(log.read_bytes()))
    assert [entry.kind.name for entry in entries[1:5]] == ["FULL"] * 4  # with the command, all gate
    lost = entries[2]
    pinned = lost.body[:BLOCK_HEADER_BYTES] + leaf_hash(lost.body[:BLOCK_HEADER_BYTES], lost.body[BLOCK_HEADER_BYTES:])
    entries[2] = replace(lost, kind=EntryKind.DIGEST, body=pinned)
    log.write_bytes(b"".join(map(encoded, entries)))
    cut(path, blocks(path)[1][1])
    assert one(image).gaps >= 1
    assert types(path)[:4] == ["DATA", "GAP", "DATA", "DATA"]
    assert statuses(image) == [INCOMPLETE]
    numbers = [(record.n, record.kind) for record in TapeReader(path).records()]
    assert (1, Kind.MARK) in numbers
    assert [entry.text for entry in TapeReader(path).commands()] == ["SELECT 1", "SELECT 0", "COMMIT"]


def test_a_gap_does_not_break_the_chain_into_the_next_segment(tmp_path: Path) -> None:
    image = killed(tmp_path, commands=12, limit=3000)
    paths = segments(image)
    assert len(paths) > 2
    for path in paths:
        cut(path, len(decode_header(path.read_bytes()).raw))
    found = recovered(image).segments
    assert [item.status for item in found] == ["continued"] * (len(paths) - 1) + ["crashed"]
    assert all(item.gaps for item in found[:-1])
    assert statuses(image) == [INCOMPLETE]
    assert len(list(TapeReader(paths[0]).commands())) == 13


def test_a_file_that_never_reached_the_disk_is_made_again(tmp_path: Path) -> None:
    image = killed(tmp_path)
    path = segments(image)[0]
    header = decode_header(path.read_bytes()).raw
    shutil.rmtree(path.parents[2])
    found = one(image)
    assert (found.status, found.gaps, found.restored) == ("crashed", 3, 4)
    assert path.read_bytes().startswith(header)
    assert path.stat().st_mode & 0o777 == 0o600
    assert statuses(image) == [INCOMPLETE]


@pytest.mark.parametrize("torn", (b"", b"\x89GCT", b"\0" * 100))
def test_a_torn_header_is_put_back(tmp_path: Path, torn: bytes) -> None:
    image = killed(tmp_path)
    path = segments(image)[0]
    before = path.read_bytes()
    path.write_bytes(torn + before[len(torn) :] if len(torn) > 10 else torn)
    found = one(image)
    assert found.status == "crashed"
    assert path.read_bytes().startswith(decode_header(before).raw)
    if len(torn) > 10:  # the blocks behind it were not hurt
        assert path.read_bytes().startswith(before)
    assert statuses(image) == [INCOMPLETE]


def test_damage_in_the_middle_is_cut_out_and_filled_from_the_log(tmp_path: Path) -> None:
    image = killed(tmp_path)
    path = segments(image)[0]
    before = path.read_bytes()
    at = blocks(path)[3][1] + 60  # the second answer
    path.write_bytes(before[:at] + b"\xff\xfe" + before[at + 2 :])
    found = one(image)
    assert (found.gaps, found.status) == (2, "crashed")
    assert found.cut_bytes == len(before) - blocks(path)[3][1]
    assert types(path)[:7] == ["DATA", "DATA", "DATA", "GAP", "DATA", "GAP", "DATA"]
    assert statuses(image) == [INCOMPLETE]


def test_a_hole_ends_it_and_the_seal_says_so(tmp_path: Path) -> None:
    """The log begins behind what the disk has: only a broken disk does that."""
    image = killed(tmp_path)
    path = segments(image)[0]
    log = wal_files(image)[0]
    entries = list(read_entries(log.read_bytes()))
    kept = [entries[0], *entries[3:]]
    log.write_bytes(b"".join(encoded(entry) for entry in kept))
    cut(path, blocks(path)[1][1] + 5)
    found = one(image)
    assert (found.status, found.blocks) == ("crashed", 1)
    assert "a hole: block 1" in found.reason
    assert "a hole" in str(TapeReader(path).last.seal)
    assert statuses(image) == [INCOMPLETE]


def encoded(entry: Any, generation: int | None = None) -> bytes:
    own = entry.generation if generation is None else generation
    head = encode_entry_header(int(entry.kind), entry.track, entry.segment, own, entry.sid, entry.body)
    return head + bytes(entry.body)


# -- what contradicts the log ---------------------------------------------------------------------------


def assert_refused(image: Path, why: str) -> None:
    path = segments(image)[0]
    before, log = path.read_bytes(), wal_files(image)[0].read_bytes()
    found = one(image)
    assert found.status == "refused"
    assert why in found.reason
    assert path.read_bytes() == before
    kept = list((image / "wal" / "0").glob("*.refused"))
    assert [file.read_bytes() for file in kept] == [log]
    assert why in path.with_name(path.name + ".refused").read_text()
    assert not wal_files(image)
    assert sweep(image, KEY, FAR_FUTURE_NS, disk=DISK) == []
    assert path.read_bytes() == before


def test_a_block_unlike_the_logs_is_refused(tmp_path: Path) -> None:
    """A chain that holds, but another one: somebody rewrote the file."""
    (tmp_path / "other").mkdir()
    image = killed(tmp_path)
    log = wal_files(image)[0]
    entries = list(read_entries(log.read_bytes()))
    first = next(entry for entry in entries if entry.kind is EntryKind.FULL)
    changed = bytearray(first.body)
    changed[-1] ^= 1
    log.write_bytes(
        b"".join(
            encoded(entry)
            if entry is not first
            else encode_entry_header(2, entry.track, entry.segment, entry.generation, entry.sid, bytes(changed))
            + bytes(changed)
            for entry in entries
        )
    )
    assert_refused(image, "block 0 is not the one")


def test_another_header_is_refused(tmp_path: Path) -> None:
    image = killed(tmp_path)
    path = segments(image)[0]
    second = tmp_path / "second"
    second.mkdir()
    path.write_bytes(segments(killed(second))[0].read_bytes())
    assert_refused(image, "header is not the one")


def test_a_log_that_goes_on_behind_a_seal_is_refused(tmp_path: Path) -> None:
    image = killed(tmp_path, close=True)
    path = segments(image)[0]
    seal = list(read_entries(wal_files(image)[0].read_bytes()))[-1]
    block = decode_block_header(seal.body[:BLOCK_HEADER_BYTES], 0)
    assert block.type is BlockType.SEAL
    head = encode_block_header(1, 0, block.seq + 1, block.first_record, block.t0_ns, 1, 1, 1)
    append_entry(image, path, EntryKind.FULL, head + b"x")
    assert_refused(image, "behind the seal")


def test_a_log_without_the_opening_refuses(tmp_path: Path) -> None:
    image = killed(tmp_path)
    log = wal_files(image)[0]
    log.write_bytes(b"".join(encoded(entry) for entry in list(read_entries(log.read_bytes()))[1:]))
    before = snapshot(image / next(iter(image.glob("[0-9]*"))).name)
    found = one(image)
    assert (found.status, found.reason) == ("refused", "the log's OPEN: OPEN: not msgpack")
    assert snapshot(image / next(iter(image.glob("[0-9]*"))).name) == before


# -- the log --------------------------------------------------------------------------------------------


def test_a_done_segment_is_left_alone_whether_there_or_not(tmp_path: Path) -> None:
    image = killed(tmp_path, close=True)
    path = segments(image)[0]
    append_entry(image, path, EntryKind.DONE)
    path.unlink()
    assert recovered(image).segments == []
    assert not path.exists()
    assert not wal_files(image)


def test_entries_of_an_earlier_use_are_not_read(tmp_path: Path) -> None:
    image = killed(tmp_path)
    path = segments(image)[0]
    log = wal_files(image)[0]
    entries = list(read_entries(log.read_bytes()))
    log.write_bytes(b"".join(encoded(entry, 7) for entry in entries[:-1]) + encoded(entries[-1], 6) + bytes(100_000))
    cut(path, blocks(path)[-1][1])
    found = recovered(image)
    assert found.generation == 7
    assert found.segments[0].blocks == len(entries) - 2
    assert statuses(image) == [INCOMPLETE]


def test_generations_are_read_in_their_order_whatever_the_names(tmp_path: Path) -> None:
    image = killed(tmp_path, close=True)
    path = segments(image)[0]
    before = path.read_bytes()
    log = wal_files(image)[0]
    entries = list(read_entries(log.read_bytes()))
    log.write_bytes(encoded(entries[0], 9) + b"".join(encoded(entry, 9) for entry in entries[4:]))
    log.with_name("zz.wal").write_bytes(b"".join(encoded(entry, 8) for entry in entries[:4]))
    answers = [i for i, entry in enumerate(entries[1:]) if entry.kind is EntryKind.DIGEST]
    cut(path, blocks(path)[answers[-1] + 1][1])
    found = recovered(image)
    assert found.generation == 9
    assert found.segments[0].status == "closed"
    assert path.read_bytes() == before


def test_an_empty_log_is_no_work(tmp_path: Path) -> None:
    assert recover(tmp_path, tmp_path / "wal", KEY, disk=DISK) == Recovery([], 0)


def test_a_living_writer_is_not_disturbed(tmp_path: Path) -> None:
    image = killed(tmp_path)
    before = snapshot(image)
    descriptor = DISK.open_existing(segments(image)[0])
    try:
        with pytest.raises(BlockingIOError):
            recovered(image)
    finally:
        os.close(descriptor)
    assert snapshot(image) == before


# -- keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", (None, b"", b"\x84half"))
def test_lost_keys_come_back(tmp_path: Path, torn: bytes | None) -> None:
    auditor = AuditorKey.generate(tmp_path / "auditor")
    image = killed(tmp_path, recipients=(auditor.recipient,))
    keys = segments(image)[0].with_name(segments(image)[0].name[:26] + ".keys")
    before = keys.read_bytes()
    keys.unlink()
    if torn is not None:
        keys.write_bytes(torn)
    assert one(image).status == "crashed"
    assert keys.read_bytes() == before
    wraps = decode_header(segments(image)[0].read_bytes()).map_["enc"]["wraps"]
    assert wraps == sha256(before).digest()


# -- segments and tapes that the log does not name ------------------------------------------------------


def test_a_segment_begun_just_before_the_kill_is_ended_too(tmp_path: Path) -> None:
    image = killed(tmp_path, commands=12, limit=3000)
    paths = segments(image)
    log = wal_files(image)[0]
    entries = [entry for entry in read_entries(log.read_bytes()) if entry.segment < len(paths) - 2]
    log.write_bytes(b"".join(map(encoded, entries)))
    found = recovered(image).segments
    assert [item.segment for item in found] == list(range(len(paths)))
    assert [item.status for item in found] == ["continued"] * (len(paths) - 1) + ["crashed"]
    assert statuses(image) == [INCOMPLETE]
    assert len(list(TapeReader(paths[0]).commands())) == 13


def test_a_segment_that_was_only_opened_is_ended_empty(tmp_path: Path) -> None:
    image = killed(tmp_path, commands=12, limit=3000)
    paths = segments(image)
    log = wal_files(image)[0]
    entries = list(read_entries(log.read_bytes()))
    last = max(i for i, entry in enumerate(entries) if entry.kind is EntryKind.OPEN)
    log.write_bytes(b"".join(map(encoded, entries[: last + 1])))
    paths[-1].unlink()
    found = recovered(image).segments
    assert [item.status for item in found[-2:]] == ["continued", "crashed"]
    assert types(paths[-1]) == ["INDEX", "CRASHSEAL"]
    assert statuses(image) == [INCOMPLETE]


def test_a_segment_that_continues_nothing_is_set_aside(tmp_path: Path) -> None:
    image = killed(tmp_path, commands=12, limit=3000)
    paths = segments(image)
    log = wal_files(image)[0]
    entries = [entry for entry in read_entries(log.read_bytes()) if entry.segment < len(paths) - 1]
    last = max(i for i, entry in enumerate(entries) if entry.body[4:5] == b"\x01" and entry.kind is EntryKind.FULL)
    log.write_bytes(b"".join(map(encoded, entries[:last])))
    cut(paths[-2], blocks(paths[-2])[-5][1] + 3)  # a block is lost that the log does not have either
    found = recovered(image).segments
    assert found[-1].status == "crashed"
    assert not paths[-1].exists()
    assert paths[-1].with_name(paths[-1].name + ".orphan").exists()
    assert statuses(image) == [INCOMPLETE]


def test_a_tape_that_no_log_names_is_swept(tmp_path: Path) -> None:
    image = killed(tmp_path, commands=12, limit=3000)
    for log in wal_files(image):
        log.unlink()
    before = snapshot(image)
    assert sweep(image, KEY, 0, disk=DISK) == []  # they began later than that
    assert snapshot(image) == before
    paths = segments(image)
    found = sweep(image, KEY, FAR_FUTURE_NS, disk=DISK)
    assert found[-1].status == "crashed"
    assert statuses(image) == [INCOMPLETE]
    assert len(list(TapeReader(paths[0]).commands())) == 13
    after = snapshot(image)
    assert sweep(image, KEY, FAR_FUTURE_NS, disk=DISK) == []
    assert snapshot(image) == after


@pytest.mark.parametrize("what", ("empty", "torn", "lone"))
def test_what_was_begun_in_vain_is_set_aside(tmp_path: Path, what: str) -> None:
    """A name without a header, or a later segment whose earlier ones never reached the disk."""
    image = killed(tmp_path, commands=12, limit=3000)
    paths = segments(image)
    for log in wal_files(image):
        log.unlink()
    whole = paths[-1].read_bytes()
    for path in paths:
        path.unlink()
    left = paths[0] if what != "lone" else paths[-1]
    left.write_bytes({"empty": b"", "torn": whole[:99], "lone": whole}[what])
    assert sweep(image, KEY, FAR_FUTURE_NS, disk=DISK) == []
    assert [file.name for file in left.parent.iterdir()] == [left.name + ".orphan"]


def test_keys_that_never_came_whole_are_set_aside(tmp_path: Path) -> None:
    """A power cut left a whole tape by luck, its keys not, and no log has either: nothing of it was acknowledged."""
    auditor = AuditorKey.generate(tmp_path / "auditor")
    image = killed(tmp_path, close=True, recipients=(auditor.recipient,))
    for log in wal_files(image):
        log.unlink()
    path = segments(image)[0]
    keys = path.with_name(path.name[:26] + ".keys")
    cut(keys, 10)
    sweep(image, KEY, FAR_FUTURE_NS, disk=DISK)
    assert not keys.exists()
    assert keys.with_name(keys.name + ".orphan").read_bytes()
    assert statuses(image) == [VERIFIED]


def test_a_trailer_alone_is_not_believed_of_a_young_tape(tmp_path: Path) -> None:
    """Closed within one batch of the log that was lost: of its pages the last one came, and not the first."""
    image = killed(tmp_path, close=True)
    for log in wal_files(image):
        log.unlink()
    path = segments(image)[0]
    data = path.read_bytes()
    at = blocks(path)[2][1]
    path.write_bytes(data[:at] + bytes(200) + data[at + 200 :])
    found = sweep(image, KEY, FAR_FUTURE_NS, disk=DISK)
    assert [(item.status, item.blocks) for item in found] == [("crashed", 2)]
    assert statuses(image) == [INCOMPLETE]


def test_a_live_tape_is_not_swept(tmp_path: Path) -> None:
    image = killed(tmp_path)
    before = snapshot(image)
    descriptor = DISK.open_existing(segments(image)[0])
    try:
        assert sweep(image, KEY, FAR_FUTURE_NS, disk=DISK) == []
    finally:
        os.close(descriptor)
    assert snapshot(image) == before


def test_old_tapes_are_not_looked_at_by_a_sweep(tmp_path: Path) -> None:
    """Without their end they stay: whatever they are, no crash of now made them."""
    image = killed(tmp_path)
    for log in wal_files(image):
        log.unlink()
    path = segments(image)[0]
    newer = path.with_name(new_ulid(time.time_ns() + 3600 * 10**9) + ".000.gct")
    newer.write_bytes(b"")
    before = path.read_bytes()
    sweep(image, KEY, FAR_FUTURE_NS, disk=DISK)
    assert path.read_bytes() == before
    assert not newer.exists()


# -- seal_broken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", (False, True))
def test_a_broken_segment_is_sealed_where_it_broke(tmp_path: Path, copy: bool) -> None:
    image = killed(tmp_path)
    path = segments(image)[0]
    before = path.read_bytes()
    at = blocks(path)[-1][1]
    cut(path, at + 20)
    inode = path.stat().st_ino
    found = seal_broken(path, KEY, disk=DISK, reason="No space left on device", copy=copy)
    assert (found.status, found.cut_bytes, found.reason) == ("crashed", 20, "No space left on device")
    assert path.read_bytes().startswith(before[:at])
    assert (path.stat().st_ino != inode) is copy
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert statuses(image) == [INCOMPLETE]
    whole = path.read_bytes()
    assert seal_broken(path, KEY, disk=DISK, reason="again").root == found.root
    assert path.read_bytes() == whole


def test_recovery_adds_what_a_broken_segments_seal_did_not_know(tmp_path: Path) -> None:
    """The writer gave up and sealed less than was acknowledged: the log still has it."""
    image = killed(tmp_path)
    path = segments(image)[0]
    count = len(blocks(path))
    cut(path, blocks(path)[-1][1] + 20)
    seal_broken(path, KEY, disk=DISK, reason="an I/O error")
    found = one(image)
    assert (found.status, found.restored, found.blocks) == ("crashed", 1, count)
    assert statuses(image) == [INCOMPLETE]
    assert [entry.text for entry in TapeReader(path).commands()][-1] == "COMMIT"


def test_what_never_had_a_header_cannot_be_sealed(tmp_path: Path) -> None:
    path = tmp_path / "01ARZ3NDEKTSV4RRFFQ69G5FAV.000.gct"
    path.write_bytes(b"\x89GCT")
    assert seal_broken(path, KEY, disk=DISK, reason="x").status == "refused"
    assert path.read_bytes() == b"\x89GCT"


# -- errors ---------------------------------------------------------------------------------------------

CALLS = (
    "close", "create", "files", "make_directories", "open_existing", "open_read", "read_at", "remove", "rename", "size",
    "sync_all", "sync_directory", "truncate", "write", "write_at",
)  # fmt: skip


class FailingDisk(Disk):
    """The call of that number fails, whichever it is; a write after half of its bytes."""

    def __init__(self, fail_at: int, code: int) -> None:
        self.calls = 0
        self.fail_at = fail_at
        self.code = code


def _failing(name: str) -> Callable[..., Any]:
    real = getattr(Disk, name)

    def call(self: FailingDisk, *args: Any) -> Any:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            if name == "write_at":
                real(self, args[0], args[1][: len(args[1]) // 2], args[2])
            if name == "close":
                real(self, *args)
            raise OSError(self.code, os.strerror(self.code))
        return real(self, *args)

    return call


for _name in CALLS:
    setattr(FailingDisk, _name, _failing(_name))


@pytest.mark.parametrize("code", (errno.EIO, errno.ENOSPC))
def test_an_error_at_any_call_ends_recovery_and_loses_nothing(tmp_path: Path, code: int) -> None:
    auditor = AuditorKey.generate(tmp_path / "auditor")
    image = killed(tmp_path, commands=6, limit=2000, recipients=(auditor.recipient,))
    for path in segments(image)[1:]:
        cut(path, blocks(path)[-1][1] + 9)
    next(image.glob("*/*/*/*.keys")).unlink()
    untouched = tmp_path / "untouched"
    shutil.copytree(image, untouched)
    counting = FailingDisk(-1, code)
    recovered(image, counting)
    undisturbed = snapshot(image)
    assert counting.calls > 50
    for number in range(counting.calls):
        shutil.rmtree(image)
        shutil.copytree(untouched, image)
        with pytest.raises(OSError, match=os.strerror(code)):
            recovered(image, FailingDisk(number, code))
        assert held(image) == [], f"call {number} leaks a descriptor"
        recovered(image)
        assert snapshot(image) == undisturbed, f"call {number}"


def held(folder: Path) -> list[str]:
    """What this process has open below the folder; other tests' threads open and close things elsewhere."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(link.readlink()))
    return [place for place in found if place.startswith(str(folder))]
