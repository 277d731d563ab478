"""Beside the tapes: what a full or failing disk, a deleted directory or a stopped process may not bring about."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import recorder.nodelog as nodelog
from recorder.cipher import AuditorKey
from recorder.errors import TapeError
from recorder.ledger import NodeLedger
from recorder.nodelog import NodeLog
from recorder.tape import GATE, OUT, Kind, Recorder
from recorder.upkeep import ROOM_BYTES
from recorder.verify import verify
from recorder.wal import FILE_BYTES, log_bytes
from tests.recorder.tapes import KEY, FaultyDisk, command, open_tape, recorder


class FullDisk(FaultyDisk):
    """Takes nothing into its log while it is full."""

    full = False
    free = 1 << 40

    def write_through(self, descriptor: int, offset: int, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write_through(descriptor, offset, data)

    def free_bytes(self, path: Path) -> int:
        return self.free


def test_a_log_that_takes_nothing_leaves_no_file_for_each_attempt(tmp_path: Path) -> None:
    """It had one descriptor and one file for each failed commit, until the first tape could be sealed."""
    disk = FullDisk()

    async def scenario() -> None:
        of = recorder(tmp_path, disk=disk, tick_seconds=3600)
        disk.full = True
        for _ in range(20):
            tape = open_tape(of, "durable")
            command(tape, "SELECT 1")
            with pytest.raises(TapeError, match="No space left"):
                await tape.commit()
        assert len(list(tmp_path.rglob("*.wal"))) <= 1
        assert len(disk.open_descriptors) <= 21  # the tapes' own, which the thread closes
        disk.full = False
        tape = open_tape(of, "durable")
        command(tape, "SELECT 1")
        await tape.commit()
        await tape.close("closed")
        of.close()
        assert verify(tape.path, KEY.public_keys()).status == "verified"

    asyncio.run(scenario())
    assert disk.open_descriptors == set()
    assert not list(tmp_path.rglob("*.wal"))


def test_a_disk_that_is_nearly_full_is_not_filled_to_be_ready_for_a_full_one(tmp_path: Path) -> None:
    """Once a second the upkeep wrote what was left into the emergency room, failed, and removed it."""
    disk = FullDisk()
    disk.free = 2 * ROOM_BYTES
    of = recorder(tmp_path, disk=disk, tick_seconds=3600)
    of.start()
    made = disk.calls["create_log"]
    of.upkeep.tick()
    assert disk.calls["create_log"] == made
    disk.free = 100 * ROOM_BYTES
    of.upkeep.tick()
    assert disk.calls["create_log"] == made + 1
    assert len(list(tmp_path.rglob("room"))) == 1
    of.close()


@pytest.mark.parametrize(
    ("free", "size"),
    [
        (1 << 40, 64 << 20),
        (1 << 30, 64 << 20),
        (160 << 20, 10 << 20),
        (12 << 20, 1 << 20),
        (0, 1 << 20),
    ],
)
def test_the_logs_files_fit_the_disk(tmp_path: Path, free: int, size: int) -> None:
    disk = FullDisk()
    disk.free = free
    assert log_bytes(disk, tmp_path, FILE_BYTES) == size


def test_an_idle_tape_whose_entries_were_lost_does_not_keep_the_log(tmp_path: Path) -> None:
    """It cannot know before its next call; until then no file of the log was used again."""
    disk = FullDisk()

    async def scenario() -> None:
        of = recorder(tmp_path, disk=disk, tick_seconds=3600, wal_bytes=1 << 16)
        idle = open_tape(of, "written")
        idle.append(OUT, Kind.WIRE, b"x" * 100)
        await idle.written()
        disk.full = True
        of.wal.nudge()
        other = open_tape(of, "durable")
        command(other, "SELECT 1")
        with pytest.raises(TapeError):
            await other.commit()
        disk.full = False
        busy = open_tape(of, "durable")
        for i in range(100):
            command(busy, f"SELECT {i}, '{os.urandom(2000).hex()}'")
            await busy.commit()
            of.upkeep.tick()
        assert len(list(tmp_path.rglob("*.wal"))) <= 4
        with pytest.raises(TapeError):
            idle.append(OUT, Kind.WIRE, b"x")
        await busy.close("closed")
        of.close()
        assert verify(busy.path, KEY.public_keys()).status == "verified"
        assert verify(idle.path, KEY.public_keys()).status == "incomplete"

    asyncio.run(scenario())


def test_a_session_ends_when_its_tape_is_deleted(tmp_path: Path) -> None:
    told: list[str] = []

    async def scenario() -> None:
        of = recorder(tmp_path, tick_seconds=3600, on_event=lambda event, words: told.append(event))
        gone, stays = open_tape(of, "durable"), open_tape(of, "durable")
        for tape in (gone, stays):
            command(tape, "SELECT 1")
            await tape.commit()
        gone.path.unlink()
        of.upkeep.tick()
        with pytest.raises(TapeError, match="its tape was removed"):
            gone.append(GATE, Kind.MARK, b"")
        command(stays, "SELECT 2")
        await stays.commit()
        await stays.close("closed")
        of.close()
        assert verify(stays.path, KEY.public_keys()).status == "verified"
        assert not gone.path.exists()

    asyncio.run(scenario())
    assert told == ["tape-removed"]


def test_without_its_directory_nothing_is_recorded_and_nobody_is_told_that_it_is(tmp_path: Path) -> None:
    tapes = tmp_path / "tapes"

    async def scenario() -> None:
        of = recorder(tapes, tick_seconds=3600)
        tape = open_tape(of, "durable")
        command(tape, "SELECT 1")
        await tape.commit()
        shutil.rmtree(tapes)
        command(tape, "SELECT 2")
        with pytest.raises(TapeError, match="log was removed"):
            await tape.commit()
        late = open_tape(of, "durable")
        command(late, "SELECT 3")
        with pytest.raises(TapeError):
            await late.commit()
        of.close()

    asyncio.run(scenario())


class ClosesBadly(FaultyDisk):
    """close() of a tape ends the descriptor and then fails, as NFS may."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[int] = []
        self.tapes: set[int] = set()

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self.tapes.add(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        assert descriptor in self.open_descriptors, "closed twice"
        super().close(descriptor)
        if descriptor in self.tapes:
            self.tapes.discard(descriptor)
            self.closed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_close_that_fails_is_not_repeated(tmp_path: Path) -> None:
    """The descriptor's number may belong to a user's connection by then."""
    disk = ClosesBadly()
    told: list[str] = []

    async def scenario() -> list[Path]:
        of = recorder(tmp_path, disk=disk, tick_seconds=3600, on_event=lambda event, words: told.append(event))
        tapes = [open_tape(of, "durable") for _ in range(3)]
        for tape in tapes:
            command(tape, "SELECT 1")
            await tape.close("closed")
        for _ in range(4):
            of.upkeep.tick()
            await asyncio.to_thread(of.upkeep._wait_for_log)
        assert len(disk.closed) == 3
        of.close()
        return [tape.path for tape in tapes]

    paths = asyncio.run(scenario())
    assert [verify(path, KEY.public_keys()).status for path in paths] == ["verified"] * 3
    assert told == []
    assert disk.open_descriptors == set()


def test_a_stopped_process_that_holds_the_nodes_log_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodelog, "LOCK_SECONDS", 0.2)
    log = NodeLog(tmp_path / "log" / "node-1", KEY, "example.com/node-1")
    log.checkpoint()
    script = (
        "import fcntl, os, sys, time\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    told: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log" / "node-1" / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        child.send_signal(signal.SIGSTOP)
        try:

            async def scenario() -> Recorder:
                of = recorder(
                    tmp_path, tick_seconds=3600, ledger=NodeLedger(log, "b", "1"), on_event=lambda e, w: told.append(e)
                )
                tape = open_tape(of, "durable")
                command(tape, "SELECT 1")
                await tape.commit()
                of.upkeep.tick()
                assert told == ["recorder-upkeep-failed"]
                await tape.close("closed")
                return of

            of = asyncio.run(scenario())
        finally:
            child.kill()
    of.close()  # what could not be told is told now
    assert log.checkpoint().size >= 3


def test_what_fails_to_begin_leaves_nothing(tmp_path: Path) -> None:
    """The .keys file of a tape that could not be created stayed."""
    key = AuditorKey.generate(tmp_path / "reader.key")

    for fail_at in (0, 1):
        disk = FaultyDisk("write", fail_at, errno.ENOSPC)
        of = recorder(tmp_path / str(fail_at), disk=disk, tick_seconds=3600)
        with pytest.raises(TapeError, match="No space left"):
            open_tape(of, recipients=[key.recipient])
        assert disk.failed
        assert not list(tmp_path.rglob("*.keys"))
        assert not list(tmp_path.rglob("*.gct"))
        of.close()
        assert disk.open_descriptors == set()
