"""A full disk in the middle of SSH sessions: they end with a reason that ssh prints, and nothing was done unrecorded.

A real gateway in a process of its own, real OpenSSH clients, a real sshd; the tapes are on a file system of some MiB:
tmpfs, which has no room the moment it is full, and ext4, which promises room first and allocates it later. With room
made, the same gateway serves again.

Needs root, to mount. tests/test_disk_full_psql.py has what no protocol differs in: a kill while the disk is full, a
device that fails; tests/recorder/test_tape_writing.py the faults of single calls.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from recorder.reader import TapeReader
from tests.peers.ssh import SshServer, children, ssh_server
from tests.ssh.gateway import GatewayProcess
from tests.ssh.running import Runner, noise, sha256, until
from tests.test_disk_full_psql import MIB, SmallDisk, all_sealed, events, small_disk
from tests.test_kill_ssh import Execs, Place, Puts, Typed, begin, check, loads, shared_folder, told, way

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]
LOST: Final = b"the session can no longer be recorded, so it ends"
NOT_OPENED: Final = b"the session cannot be recorded, so it is not opened"
# The upkeep's second, its retry after five, a sync, and a busy machine; as in test_disk_full_psql.py.
BACK_SECONDS: Final = 30.0
SLOW: Final = "while head -c 20000 /dev/urandom; do sleep 0.1; done"
WHOLE: Final = {"record_contents": ["/*"]}  # transfers' contents are on the tape


@pytest.fixture(scope="module")
def sshd() -> Iterator[SshServer]:
    with ssh_server() as server:
        yield server


def place_on(
    disk: SmallDisk, folder: Path, server: SshServer, recording: str, *, workers: int = 1, reserve: object = 0
) -> Place:
    place = Place(folder, server)
    place.configure(
        workers=workers,
        targets={"box": {"recording": recording}, "whole": {"recording": recording, "ssh": WHOLE}},
        recorder={"reserve": reserve, "directory": str(disk.path / "tapes")},
    )
    place.register(place.user_key)
    return place


def works(run: Runner) -> bool:
    return bool(run.ssh("echo it works").stdout == b"it works\n")


class Bulk:
    """An ssh whose command has no end. Its output waits in the pipe until end(), or the disk would be full too soon."""

    def __init__(self, run: Runner, name: str, *arguments: str) -> None:
        self._errors = run.folder / f"{name}.errors"
        with self._errors.open("wb") as errors:
            self._process = run.start(*run.argv(*arguments), stderr=errors, stdin=subprocess.DEVNULL)
        assert self._process.stdout is not None
        assert len(self._process.stdout.read(1000)) == 1000

    def end(self) -> bytes:
        """Read until it ends; returns its errors."""
        assert self._process.stdout is not None
        while self._process.stdout.read(1 << 20):
            pass
        assert self._process.wait(60) == 255
        return self._errors.read_bytes()


@pytest.mark.parametrize(
    ("kind", "recording", "workers"),
    [("tmpfs", "durable", 1), ("ext4", "durable", 2), pytest.param("ext4", "written", 1, marks=pytest.mark.nightly)],
)
def test_sessions_end_and_with_room_it_serves_again(
    tmp_path: Path, sshd: SshServer, kind: str, recording: str, workers: int
) -> None:
    with small_disk(kind, tmp_path) as disk, shared_folder() as effects:
        place = place_on(disk, tmp_path, sshd, recording, workers=workers)
        with place.serving() as gateway, way(gateway) as run, way(gateway, "whole") as other:
            assert works(run)
            every = loads(run, "w", effects)
            begin(every)
            endless = "cat /dev/urandom"
            bulk = [
                Bulk(run, "out", "box", endless),
                Bulk(run, "err", "box", f"head -c 1000 /dev/zero; ({SLOW}) >&2"),
                Bulk(run, "terminal", "-tt", "box", f"{endless} | base64"),
            ]
            disk.fill()
            for reader in bulk:
                assert LOST in reader.end()
            for one in every:
                one.join(60)
                assert not one.is_alive(), one.label
                # A client that connects each time may have met the full disk at its next session.
                assert LOST in one.said or (one.label == "wa" and NOT_OPENED in one.said), (one.label, one.said)
            assert NOT_OPENED in turned_away(disk, lambda: run.ssh("echo unrecorded"))
            assert NOT_OPENED in turned_away(disk, lambda: other.sftp(f"ls {effects}"))
            until(lambda: not sshd.connections(), "end of the sessions at the target")
            check(every, told(disk.path))
            assert not [tape for tape in place.verified()["tapes"] if tape["status"] in ("altered", "unknown")]

            disk.free()
            until(lambda: works(run), "session that works", BACK_SECONDS)
            until(lambda: all_sealed(disk.path), "seal of what broke", BACK_SECONDS)
            check(every, told(disk.path))
        after = place.verified()
        assert {tape["status"] for tape in after["tapes"]} <= {"verified", "incomplete"}
        assert not list(disk.path.rglob("*.wal"))


def turned_away(disk: SmallDisk, attempt: Callable[[], subprocess.CompletedProcess[bytes]]) -> bytes:
    """Try until no session is opened: what broke gives room back when it is sealed. Returns what the client said."""

    def refused() -> bytes:
        disk.fill()
        done = attempt()
        return b"" if done.returncode == 0 else done.stderr

    said = until(refused, "refusal")
    assert isinstance(said, bytes)
    return said


@pytest.mark.parametrize("command", ["put", "get"])
def test_a_transfer_whose_content_is_taped_ends_where_the_tape_does(
    tmp_path: Path, sshd: SshServer, command: str
) -> None:
    with small_disk("tmpfs", tmp_path) as disk, shared_folder() as far:
        place = place_on(disk, tmp_path, sshd, "durable")
        with place.serving() as gateway, way(gateway, "whole") as run:
            size = 40 * MIB  # more than the disk has
            disk.fill(leave_bytes=8 * MIB)
            here, there = run.folder / "here", far / "there"
            source, copy = (here, there) if command == "put" else (there, here)
            noise(source, size)
            words = f"put {here} {there}" if command == "put" else f"get {there} {here}"
            done = run.sftp(words)
            assert done.returncode != 0  # sftp itself ends by a signal where it has something to send
            assert LOST in done.stderr
            assert copy.stat().st_size < 20 * MIB
            until(lambda: not sshd.connections(), "end of the session at the target")
            # What reached the other side is on the tape, and what the tape has is as it was sent.
            (path,) = disk.path.rglob("*.000.gct")
            verb = "file-write" if command == "put" else "file-read"
            stream = b"".join(
                bytes(record.payload) for record in TapeReader(path).records()
                if record.flow is not None and record.channel == (1 if command == "put" else 2)
            )  # fmt: skip
            data = source.read_bytes()
            arrived = copy.stat().st_size
            assert verb.encode() in b"".join(bytes(record.payload) for record in TapeReader(path).records())
            assert arrived > 0
            for start in range(0, arrived - 4096, 1 << 20):
                assert data[start : start + 4096] in stream, start
            disk.free()
            small = noise(run.folder / "small", 100_000)
            until(lambda: run.sftp(f"put {small} {far}/small").returncode == 0, "transfer", BACK_SECONDS)
            assert sha256(far / "small") == sha256(small)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_below_the_reserve_no_session_begins_and_those_that_run_go_on(
    tmp_path: Path, sshd: SshServer, kind: str
) -> None:
    with small_disk(kind, tmp_path) as disk, shared_folder() as effects:
        place = place_on(disk, tmp_path, sshd, "durable", reserve="4MiB")
        with place.serving() as gateway, way(gateway) as run:
            every = [Execs(run, "a", effects, shared=True), Puts(run, "p", effects), Typed(run, "s", effects)]
            begin(every)
            disk.fill(leave_bytes=3 * MIB)
            refused = run.ssh("echo unrecorded")
            assert (refused.returncode, refused.stdout) == (255, b"")
            assert NOT_OPENED in refused.stderr
            before = [one.done for one in every]
            until(lambda: all(one.done > seen + 5 for one, seen in zip(every, before, strict=True)), "progress")
            disk.free()
            assert works(run)
            for one in every:
                one.finish()
            run.close()  # the shared connection
            until(lambda: not sshd.connections(), "end of the sessions at the target")
        check(every, told(disk.path))
        assert {tape["status"] for tape in place.verified()["tapes"]} == {"verified"}


def test_many_failed_sessions_leave_nothing_behind(tmp_path: Path, sshd: SshServer) -> None:
    with small_disk("tmpfs", tmp_path) as disk:
        place = place_on(disk, tmp_path, sshd, "durable")
        with place.serving() as gateway, way(gateway) as run:
            assert works(run)
            fail(run, disk, 5)
            until(lambda: works(run) and all_sealed(disk.path), "recovery", BACK_SECONDS)
            before, size = until(lambda: rest(gateway), "rest"), gateway.resident_bytes
            fail(run, disk, 15)
            until(lambda: works(run) and all_sealed(disk.path), "recovery", BACK_SECONDS)
            until(lambda: rest(gateway) <= before + 1, "descriptors let go of", BACK_SECONDS)
            assert gateway.resident_bytes < size + 20 * MIB
            assert not list(disk.path.rglob("*.orphan"))
            assert len(place.verified()["tapes"]) >= 16
        told_of = [event["event"] for event in events(tmp_path)]
        assert told_of.count("recorder-upkeep-failed") < 30
        assert told_of.count("recording failed, the session ends") >= 15


def fail(run: Runner, disk: SmallDisk, sessions: int) -> None:
    """End so many sessions by a full disk, five at a time."""
    for _ in range(sessions // 5):
        with ThreadPoolExecutor(5) as pool:
            until(lambda: works(run), "session that works", BACK_SECONDS)
            several = list(pool.map(lambda i: Bulk(run, f"b{i}", "box", SLOW), range(5)))
            disk.fill()
            assert all(LOST in said for said in pool.map(Bulk.end, several))
        disk.free()


def rest(gateway: GatewayProcess) -> int:
    """How many descriptors the gateway has open, once no session is."""
    until(lambda: not gateway.json("sessions", "live"), "end of the sessions")
    return sum(
        len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (gateway.process.pid, *children(gateway.process.pid))
    )
