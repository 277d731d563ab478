"""The writer: what is appended is on the disk, once, in order; commits coalesce; every fault fails closed."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

import recorder.tape as tape_module
from recorder.cli import list_sessions
from recorder.disk import Disk, is_live
from recorder.errors import TapeError
from recorder.format import JOINED_LIMIT, PAYLOAD_LIMIT, fields
from recorder.reader import TapeReader
from recorder.tape import ERR, GATE, OUT, USER, Kind, Tape
from recorder.verify import verify
from tests.recorder.tapes import KEY, Clock, FaultyDisk, command, open_tape, recorder, small_tape


def test_a_tape_holds_just_what_was_appended(tmp_path: Path) -> None:
    """The canary: every record comes back as it went in, nothing else is there, and only the owner may read it."""
    appended: list[tuple[int, int, bytes]] = []

    async def scenario() -> Path:
        tape = open_tape(of)
        for i in range(500):
            channel = (USER, OUT, ERR, GATE)[i % 4]
            payload = os.urandom(i * 7 % 3000)
            assert tape.append(channel, Kind.WIRE, payload) == i
            appended.append((channel, Kind.WIRE, payload))
            if i % 3 == 0:
                await tape.written()
        await tape.close("closed", "done")
        return tape.path

    of = recorder(tmp_path)
    path = asyncio.run(scenario())
    found = [(r.channel, r.kind, r.payload) for r in TapeReader(path).records()]
    assert found[:-1] == appended
    assert fields(found[-1][2]) == {"status": "closed", "reason": "done"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p for p in tmp_path.rglob("*.gct") if p.is_file()] == [path]
    day = path.relative_to(tmp_path).parts[:-1]
    assert [len(part) for part in day] == [4, 2, 2]
    assert path.name.endswith(".000.gct")


def test_times_are_the_monotonic_clocks(tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock))
        for step in (0, 1.5, 0.2505, 60_000):
            clock.pass_ms(step)
            tape.append(USER, Kind.WIRE, b"x")
        await tape.close("closed")
        return tape.path

    times = [r.t_ns for r in TapeReader(asyncio.run(scenario())).records()]
    assert times[:4] == [0, 1_500_000, 1_750_000, 60_001_750_000]  # microseconds within a block


def test_written_means_that_another_process_could_read_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        of = recorder(tmp_path)
        tape = open_tape(of)
        assert is_live(tape.path)
        tape.append(USER, Kind.WIRE, b"one")
        assert [r.payload for r in TapeReader(tape.path).records()] == []
        await tape.written()
        assert [r.payload for r in TapeReader(tape.path).records()] == [b"one"]
        await tape.close("closed")
        of.close()
        assert not is_live(tape.path)

    asyncio.run(scenario())


class CountingDisk(Disk):
    """Counts the log's writes, and holds each until the test lets it go; those that fill a new file are not counted."""

    def __init__(self, hold: bool = False) -> None:
        self.syncs = 0
        self.directories: list[Path] = []
        self.gate = threading.Event()
        self.started = threading.Event()
        if not hold:
            self.gate.set()

    def write_through(self, descriptor: int, offset: int, data: bytes) -> None:
        if data.strip(b"\0"):
            self.syncs += 1
            self.started.set()
            assert self.gate.wait(10)
        super().write_through(descriptor, offset, data)

    def sync_directory(self, path: Path) -> None:
        self.directories.append(path)
        super().sync_directory(path)


def test_commits_of_many_tapes_are_one_flush(tmp_path: Path) -> None:
    disk = CountingDisk(hold=True)

    async def scenario() -> None:
        of = recorder(tmp_path, disk=disk, tick_seconds=3600)
        tapes = [open_tape(of, "durable") for _ in range(50)]
        async with asyncio.TaskGroup() as group:
            for tape in tapes:
                command(tape, "SELECT 1")
                group.create_task(tape.commit())
            await asyncio.to_thread(disk.started.wait, 10)
            disk.gate.set()
        assert disk.syncs <= 2
        for tape in tapes:
            await tape.close("closed")
        of.close()

    asyncio.run(scenario())
    assert verify(tmp_path, KEY.public_keys()).exit_code == 0


def test_commits_of_one_tape_coalesce(tmp_path: Path) -> None:
    disk = CountingDisk(hold=True)

    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path, disk=disk, tick_seconds=3600), "durable")
        command(tape, "SELECT 1")
        async with asyncio.TaskGroup() as group:
            group.create_task(tape.commit())
            await asyncio.to_thread(disk.started.wait, 10)
            waiting = []
            for i in range(20):
                command(tape, f"SELECT {i}")
                waiting.append(group.create_task(tape.commit()))
            await asyncio.sleep(0)
            assert disk.syncs == 1
            disk.gate.set()
        assert disk.syncs == 2  # the one that ran, and one for all that came meanwhile
        await tape.commit()
        assert disk.syncs == 2  # nothing new: nothing to do
        await tape.close("closed")
        assert disk.syncs == 3

    asyncio.run(scenario())


def test_commit_returns_only_after_the_sync_that_covers_it(tmp_path: Path) -> None:
    disk = CountingDisk(hold=True)

    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path, disk=disk, tick_seconds=3600), "durable")
        command(tape, "SELECT 1")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(tape.commit())
            await asyncio.to_thread(disk.started.wait, 10)
            command(tape, "SELECT 2")
            second = group.create_task(tape.commit())
            for _ in range(5):
                await asyncio.sleep(0)
            assert not first.done()
            assert not second.done()
            disk.gate.set()
        assert disk.syncs == 2
        await tape.close("closed")

    asyncio.run(scenario())


def test_a_cancelled_commit_harms_nobody(tmp_path: Path) -> None:
    disk = CountingDisk(hold=True)

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path, disk=disk, tick_seconds=3600), "durable")
        command(tape, "SELECT 1")
        async with asyncio.TaskGroup() as group:
            first, _other = group.create_task(tape.commit()), group.create_task(tape.commit())
            await asyncio.to_thread(disk.started.wait, 10)
            first.cancel()
            closing = group.create_task(tape.close("closed"))
            await asyncio.sleep(0)
            closing.cancel()  # while the first sync runs: the seal is written, its sync is still to come
            await asyncio.sleep(0)
            disk.gate.set()
        await tape.close("closed")
        assert disk.syncs == 2
        return tape.path

    path = asyncio.run(scenario())
    assert verify(path, KEY.public_keys()).exit_code == 0


def test_the_directories_are_durable_before_the_log_is_let_go_of(tmp_path: Path) -> None:
    disk = CountingDisk()

    async def scenario() -> Path:
        of = recorder(tmp_path, disk=disk, tick_seconds=3600)
        tape = open_tape(of, "durable")
        await tape.commit()
        await tape.close("closed")
        assert list(tmp_path.glob("wal/*/*.wal"))
        of.close()
        assert not list(tmp_path.glob("wal/*/*.wal"))
        return tape.path

    day = asyncio.run(scenario()).parent
    assert {tmp_path, day.parent.parent, day.parent, day} <= set(disk.directories)


def test_mode_written_waits_for_no_flush(tmp_path: Path) -> None:
    disk = CountingDisk(hold=True)
    of = recorder(tmp_path, disk=disk, tick_seconds=3600)
    path = asyncio.run(small_tape(of))
    assert not disk.started.is_set()
    disk.gate.set()
    of.close()
    assert verify(path, KEY.public_keys()).exit_code == 0


def test_mode_strict_waits_for_the_disk_with_what_the_user_sees(tmp_path: Path) -> None:
    disk = CountingDisk()

    async def scenario() -> bytes:
        of = recorder(tmp_path, disk=disk, tick_seconds=3600)
        tape = open_tape(of, "strict")
        tape.append(OUT, Kind.WIRE, b"seen by the user")
        await tape.written()
        return b"".join(file.read_bytes() for file in tmp_path.glob("wal/*/*.wal"))

    assert b"seen by the user" in asyncio.run(scenario())
    assert disk.syncs == 1


def test_close_twice_and_append_after_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path), "durable")
        await tape.close("failed", "x" * 5000)
        size = tape.path.stat().st_size
        await tape.close("closed")
        await tape.written()
        await tape.commit()
        assert tape.path.stat().st_size == size
        with pytest.raises(TapeError, match="closed"):
            tape.append(USER, Kind.WIRE, b"late")
        reader = TapeReader(tape.path)
        assert reader.status == "failed"
        assert len(fields(next(reader.records()).payload)["reason"]) == 1024

    asyncio.run(scenario())


def test_an_empty_tape_is_a_tape(tmp_path: Path) -> None:
    path = asyncio.run(small_tape(recorder(tmp_path), commands=0))
    assert verify(path, KEY.public_keys()).exit_code == 0
    assert [r.kind for r in TapeReader(path).records()] == [Kind.CLOSE]


@pytest.mark.parametrize("size", [PAYLOAD_LIMIT - 1, PAYLOAD_LIMIT, PAYLOAD_LIMIT + 1, 3 * PAYLOAD_LIMIT + 5])
def test_long_payloads(tmp_path: Path, size: int) -> None:
    wire = os.urandom(size)
    text = "SELECT '" + "ü" * (size // 2) + "'"

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path))
        assert tape.append(OUT, Kind.WIRE, wire) == 0
        n = command(tape, text)
        assert n == (size + PAYLOAD_LIMIT - 1) // PAYLOAD_LIMIT
        await tape.close("closed")
        return tape.path

    path = asyncio.run(scenario())
    reader = TapeReader(path)
    records = list(reader.records())
    assert b"".join(r.payload for r in records if r.kind == Kind.WIRE) == wire
    assert [fields(r.payload)["text"] for r in records if r.kind == Kind.COMMAND] == [text]
    entry = next(reader.commands())
    assert (entry.verdict, entry.text) == ("allow", text[:120])
    assert entry.n == next(r.n for r in records if r.kind == Kind.COMMAND)
    assert verify(path, KEY.public_keys()).exit_code == 0


def test_a_record_above_the_joined_limit_ends_the_tape(tmp_path: Path) -> None:
    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path))
        tape.append(USER, Kind.COMMAND, bytes(JOINED_LIMIT))
        with pytest.raises(TapeError, match="limit"):
            tape.append(USER, Kind.COMMAND, bytes(JOINED_LIMIT + 1))
        with pytest.raises(TapeError):
            await tape.written()

    asyncio.run(scenario())


def test_what_nobody_waits_for_is_written_at_the_pending_limit(tmp_path: Path) -> None:
    tape = open_tape(recorder(tmp_path))
    before = tape.path.stat().st_size
    written = 0
    while tape.path.stat().st_size == before:
        tape.append(OUT, Kind.WIRE, os.urandom(100_000))
        written += 100_000
    assert tape_module.PENDING_LIMIT - 100_000 < written <= tape_module.PENDING_LIMIT + 100_000
    asyncio.run(tape.close("closed"))
    assert verify(tape.path, KEY.public_keys()).exit_code == 0


def rotated(tmp_path: Path, mode: str) -> tuple[Path, int]:
    async def scenario() -> tuple[Path, int]:
        of = recorder(tmp_path, segment_limit=20_000)
        tape = open_tape(of, mode)
        for i in range(40):
            command(tape, f"SELECT {i}", verdict=None if i == 7 else "allow")
            tape.append(OUT, Kind.WIRE, os.urandom(2000))
            await tape.commit()
        await tape.close("closed")
        of.close()
        return tape.path, 40 * 3 - 1 + 1

    return asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["written", "durable"])
def test_rotation(tmp_path: Path, mode: str) -> None:
    path, count = rotated(tmp_path, mode)
    reader = TapeReader(path)
    assert len(reader.segments) == 5
    assert path == reader.segments[-1]
    assert [r.n for r in reader.records()] == list(range(count))
    assert [entry.text for entry in reader.commands()] == [f"SELECT {i}" for i in range(40)]
    assert [i for i, entry in enumerate(reader.commands()) if not entry.verdict] == [7]
    report = verify(path, KEY.public_keys())
    assert report.exit_code == 0, report
    assert (report.tapes[0].segments, report.tapes[0].records, report.tapes[0].commands) == (5, count, 40)


def test_two_tapes_interleave(tmp_path: Path) -> None:
    """They share the packer; each must get its own records."""

    async def scenario() -> list[Path]:
        of = recorder(tmp_path)
        tapes = [open_tape(of), open_tape(of)]
        for i in range(50):
            for number, tape in enumerate(tapes):
                tape.append(USER, Kind.WIRE, b"%d/%d" % (number, i))
            if i % 3 == 0:
                await tapes[i % 2].written()
        for tape in tapes:
            await tape.close("closed")
        return [tape.path for tape in tapes]

    for number, path in enumerate(asyncio.run(scenario())):
        payloads = [r.payload for r in TapeReader(path).records() if r.kind == Kind.WIRE]
        assert payloads == [b"%d/%d" % (number, i) for i in range(50)]


async def eventful(tape: Tape) -> None:
    for i in range(6):
        command(tape, f"SELECT {i}")
        await tape.commit()
        tape.append(OUT, Kind.WIRE, os.urandom(3000))
        await tape.written()
    await tape.close("closed")


async def fails_closed(tape: Tape) -> None:
    with pytest.raises(TapeError):
        tape.append(USER, Kind.WIRE, b"more")
    with pytest.raises(TapeError):
        await tape.written()
    with pytest.raises(TapeError):
        await tape.commit()
    with pytest.raises(TapeError):
        await tape.close("failed")


@pytest.mark.parametrize("mode", ["written", "durable", "strict"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_every_call_to_the_system_may_fail(tmp_path: Path, mode: str, code: int) -> None:
    """Whichever call fails: the session hears of it or loses nothing, and what is there never passes for more."""

    def attempt(name: str, number: int, directory: Path) -> FaultyDisk:
        disk = FaultyDisk(name, number, code)

        async def scenario() -> None:
            of = recorder(directory, disk=disk, segment_limit=8000, tick_seconds=3600)
            tape: Tape | None = None
            try:
                tape = open_tape(of, mode)
                await eventful(tape)
            except TapeError as error:
                assert name
                assert os.strerror(code) in str(error)
                assert str(directory) not in str(error)
                if tape is not None:
                    before = disk.calls["write"], disk.calls["write_through"]
                    await fails_closed(tape)
                    assert before == (disk.calls["write"], disk.calls["write_through"])
            of.close()

        asyncio.run(scenario())
        assert disk.open_descriptors == set(), name
        return disk

    (tmp_path / "good").mkdir()
    calls = attempt("", 0, tmp_path / "good").calls
    assert calls["create"] >= 2  # rotation is among what fails
    for name in ("make_directories", "create", "create_log", "write", "write_through", "sync", "sync_directory"):
        for number in range(calls[name]):
            directory = tmp_path / f"{name}-{number}"
            directory.mkdir()
            disk = attempt(name, number, directory)
            assert disk.failed, (name, number)
            left = recorder(directory)
            left.recover()
            for report in verify(directory, KEY.public_keys()).tapes:
                assert report.status in ("verified", "incomplete"), (name, number, report)


def test_the_fault_of_a_flush_reaches_all_who_wait_and_no_one_else(tmp_path: Path) -> None:
    class BadLog(CountingDisk):
        bad = False

        def write_through(self, descriptor: int, offset: int, data: bytes) -> None:
            super().write_through(descriptor, offset, data)
            if self.bad and data.strip(b"\0"):
                self.bad = False
                raise OSError(errno.EIO, "Input/output error")

    disk = BadLog()

    async def scenario() -> tuple[Path, Path, Path]:
        of = recorder(tmp_path, disk=disk, tick_seconds=3600)
        tape, idle = open_tape(of, "durable"), open_tape(of, "durable")
        command(idle, "SELECT 'before'")
        await idle.commit()

        async def one(number: int) -> None:
            command(tape, f"SELECT {number}")
            await tape.commit()

        disk.bad = True
        results = await asyncio.gather(*(one(i) for i in range(4)), return_exceptions=True)
        assert [type(result) for result in results] == [TapeError] * 4
        await fails_closed(tape)
        command(idle, "SELECT 'after'")  # its records were safe, and go on in another file
        await idle.commit()
        late = open_tape(of, "durable")
        command(late, "SELECT 'late'")
        await late.commit()
        assert len(list(tmp_path.glob("wal/*/*.wal"))) == 2
        await idle.close("closed")
        await late.close("closed")
        of.close()
        return tape.path, idle.path, late.path

    bad, *good = asyncio.run(scenario())
    assert [verify(path, KEY.public_keys()).status for path in good] == ["verified", "verified"]
    assert verify(bad, KEY.public_keys()).status == "incomplete"
    assert TapeReader(bad).status == "crashed"


def test_a_closed_recorder_opens_no_promise(tmp_path: Path) -> None:
    async def scenario() -> None:
        of = recorder(tmp_path)
        tape = open_tape(of, "durable")
        of.close()
        with pytest.raises(TapeError):
            await tape.commit()
        await fails_closed(tape)

    asyncio.run(scenario())


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_writev, real_write = os.writev, os.write
    monkeypatch.setattr(os, "writev", lambda fd, buffers: real_write(fd, b"".join(buffers)[:5]))
    monkeypatch.setattr(os, "write", lambda fd, data: real_writev(fd, [bytes(data[:7])]))
    path = asyncio.run(small_tape(recorder(tmp_path)))
    monkeypatch.undo()
    assert verify(path, KEY.public_keys()).exit_code == 0


def test_a_tape_is_created_exclusively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "new_ulid", lambda wall_ns: "0" * 26)
    of = recorder(tmp_path)
    tape = open_tape(of)
    with pytest.raises(TapeError, match="File exists"):
        open_tape(of)
    asyncio.run(tape.close("closed"))
    assert verify(tmp_path, KEY.public_keys()).exit_code == 0


def test_what_cannot_be_in_a_header_is_a_tape_error(tmp_path: Path) -> None:
    of = recorder(tmp_path)
    with pytest.raises(TapeError):
        open_tape(of, identity={"subject": object()})
    with pytest.raises(TapeError, match="larger"):
        open_tape(of, more={"x": "y" * 70_000})
    assert list_sessions(tmp_path) == []


def test_a_thousand_segments_need_no_thousand_handles(tmp_path: Path) -> None:
    path, count = rotated(tmp_path, "written")

    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = handles()
    reader = TapeReader(path)
    assert {handles() for _ in reader.records()} == {before + 1}  # that of the segment which is being read
    assert sum(len(list(reader.segment(i).records(0))) for i in range(len(reader.segments))) == count
    assert handles() == before


def test_a_pack_that_fails_leaves_no_trace_in_the_next_tape(tmp_path: Path) -> None:
    async def scenario() -> Path:
        of = recorder(tmp_path)
        bad, good = open_tape(of), open_tape(of)
        bad.append(USER, Kind.WIRE, b"left over")
        bad.append(object(), Kind.WIRE, b"cannot be packed")  # type: ignore[arg-type]
        with pytest.raises(TapeError):
            await bad.written()
        await fails_closed(bad)
        good.append(USER, Kind.WIRE, b"mine")
        await good.close("closed")
        return good.path

    path = asyncio.run(scenario())
    assert next(r.payload for r in TapeReader(path).records()) == b"mine"
