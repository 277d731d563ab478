"""A full disk in the middle of sessions: they end, nothing passes unrecorded, and with room the gateway serves again.

A real gateway in a process of its own, real psql clients, a real PostgreSQL; the tapes are on a file system of some
MiB: tmpfs, which has no room the moment it is full, and ext4, which promises room first and allocates it later.
A third one loses its device under it (an image on a full tmpfs), so that writes and syncs are I/O errors.

Needs root, to mount. tests/recorder/test_tape_writing.py has the faults of single calls.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy.certificates import self_signed
from proxy.identity.commands import token_issue
from recorder.format import Kind, fields
from recorder.reader import TapeReader
from tests.peers.postgres import PostgresServer
from tests.test_kill_psql import environment, port_of

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]
MIB = 1024 * 1024
DISK_BYTES = 16 * MIB
RULES = "rules: [{name: all, who: {groups: [dev]}, commands: {opaque: true}, allow: true}]\n"
LOST = "58030"
ENDLESS = "FROM generate_series(1, 10000) j, generate_series(1, 10000) i"  # not put aside by the server first
# The upkeep's second, its retry after five, a sync, and a busy machine.
BACK_SECONDS = 30.0


def until(what: str, condition: Any, seconds: float = BACK_SECONDS) -> Any:
    """Return what condition returns, once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    return pytest.fail(f"not within {seconds} s: {what}")


@dataclass
class SmallDisk:
    """A mounted file system; fill() takes what is left of it, free() gives that back."""

    path: Path

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Write until nothing goes any more."""
        descriptor = os.open(self.path / f"filler{time.monotonic_ns()}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for size in (64 * 1024, 4096, 1):
                with suppress(OSError):
                    while self.free_bytes > leave_bytes + size:
                        os.write(descriptor, os.urandom(size))
            if not leave_bytes:
                with suppress(OSError):
                    while True:
                        os.write(descriptor, bytes(4096))
            with suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free(self) -> None:
        for filler in self.path.glob("filler*"):
            filler.unlink()


def run(*command: object) -> str:
    return subprocess.run([str(one) for one in command], check=True, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def small_disk(kind: str, folder: Path, size_bytes: int = DISK_BYTES) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root, to mount it")
    path = folder / "disk"
    path.mkdir()
    try:
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "gatecast-test", path)
        else:
            image = folder / "image"
            with image.open("wb") as file:
                file.truncate(size_bytes)
            run("mkfs.ext4", "-q", "-m", "0", "-J", "size=4", "-b", "4096", image)
            run("mount", "-o", "loop", image, path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no {kind} can be mounted here: {getattr(error, 'stderr', error)}")
    try:
        yield SmallDisk(path)
    finally:
        run("umount", "-l", path)


def configure(
    folder: Path,
    server: PostgresServer,
    disk: SmallDisk,
    recording: str = "durable",
    reserve: str = "0",
    workers: int = 1,
    state: str = "state",
) -> str:
    """Write a gateway's configuration; returns a token."""
    self_signed(folder, ["localhost", "127.0.0.1"])
    (folder / "secret").write_text("secret-of-the-target\n")
    (folder / "secret").chmod(0o600)
    (folder / "rules.yaml").write_text(RULES)
    (folder / "gatecast.yaml").write_text(
        f"state: {state}\n"
        f"workers: {workers}\n"
        "node: {name: little}\n"
        "listeners: [{name: pg, protocol: postgres, address: '127.0.0.1:0', tls: {cert: tls.crt, key: tls.key}}]\n"
        f"targets: [{{name: shop, host: {server.socket_folder}, port: {server.port}, database: shop_full,"
        f" recording: {recording}, credential: {{user: postgres, password_file: secret}}}}]\n"
        f"recorder: {{reserve: {reserve}, directory: {disk.path / 'tapes'}, index: false}}\n"
        "limits: {drain_seconds: 0}\n"
        "rules_file: rules.yaml\n"
    )
    token: str = token_issue(folder / state / "gatecast.db", "ana@example.com", groups=["dev"])["token"]
    return token


@contextmanager
def serving(folder: Path, name: str = "log") -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    log = folder / name
    with log.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--log-json"],
            cwd=folder,
            env=environment(""),
            stderr=file,
            start_new_session=True,
        )
    try:
        yield child, port_of(child, log)
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait(30)
                raise


def events(folder: Path, name: str = "log") -> list[dict[str, Any]]:
    """The gateway's log so far."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines() if line.startswith("{")]


class Gatecast:
    """How clients reach the gateway of a folder."""

    def __init__(self, folder: Path, port: int, token: str) -> None:
        self.folder = folder
        self.token = token
        self.conninfo = (
            f"host=localhost port={port} user=whoever dbname=shop sslmode=verify-full sslrootcert={folder / 'tls.crt'}"
        )

    def psql(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["psql", "-XAtq", "-v", "VERBOSITY=verbose", self.conninfo, *arguments],
            env=environment(self.token), input=text, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def begin(self, errors: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start a psql."""
        with errors.open("w") as file:
            return subprocess.Popen(
                ["psql", "-XAtq", "-v", "VERBOSITY=verbose", self.conninfo, *arguments], env=environment(self.token),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, bufsize=1,
            )  # fmt: skip

    def works(self) -> bool:
        return self.psql("-c", "SELECT 'it works'").stdout == "it works\n"

    def verified(self) -> dict[str, Any]:
        """What verify says of the directory: never that something was altered, never that it cannot say."""
        done = subprocess.run(
            [sys.executable, "-m", "proxy", "verify", "--json"], cwd=self.folder, env=environment(""),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode not in (0, 2):
            pytest.fail(f"verify: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


class Writer(threading.Thread):
    """A psql that inserts its words, one after the other, until it is told that it may not go on."""

    def __init__(self, gatecast: Gatecast, number: str) -> None:
        super().__init__(daemon=True)
        self.answered: list[str] = []
        self._number = number
        self._errors = gatecast.folder / f"errors-{number}"
        self._process = gatecast.begin(self._errors)

    @property
    def said(self) -> str:
        return self._errors.read_text()

    def run(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            for count in range(1_000_000):
                word = f"{self._number}-{count}"
                stdin.write(f"INSERT INTO effects VALUES ('{word}') RETURNING word;\n")
                stdin.flush()
                if stdout.readline().strip() != word:
                    return
                self.answered.append(word)
        except BrokenPipeError:
            pass

    def end(self) -> None:
        self._process.kill()
        self._process.wait(30)
        self.join(30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


class Bulk:
    """A psql that reads without end."""

    def __init__(self, gatecast: Gatecast, name: str, text: str) -> None:
        self._errors = gatecast.folder / f"errors-{name}"
        self._process = gatecast.begin(self._errors, "-v", "FETCH_COUNT=100", "-c", text)

    def running(self) -> bool:
        """Wait for its first line."""
        assert self._process.stdout is not None
        return bool(self._process.stdout.readline())

    def end(self) -> str:
        """Read until it ends; returns its errors."""
        assert self._process.stdout is not None
        with self._process:
            while self._process.stdout.read(1 << 20):
                pass
        return self._errors.read_text()


def allowed(tapes: Path) -> set[str]:
    """Every text of a COMMAND with an allowing VERDICT, on any tape."""
    found = set()
    for path in tapes.rglob("*.gct"):
        texts: dict[int, str] = {}
        for record in TapeReader(path).records():
            if record.kind == Kind.COMMAND:
                texts[record.n] = fields(record.payload)["text"]
            elif record.kind == Kind.VERDICT and fields(record.payload)["verdict"] == "allow":
                found.add(texts[fields(record.payload)["command"]])
    return found


def effects(server: PostgresServer) -> set[str]:
    return {str(word) for (word,) in server.run("SELECT word FROM effects", dbname="shop_full")}


@pytest.fixture
def shop(postgres15: PostgresServer) -> Iterator[PostgresServer]:
    with postgres15.database("shop_full", "CREATE TABLE effects (word text PRIMARY KEY)"):
        yield postgres15


def all_sealed(tapes: Path, but: int = 0) -> bool:
    ends = [path.read_bytes()[-16:-12] == b"GCTT" for path in tapes.rglob("*.gct")]
    return len(ends) - sum(ends) <= but


@pytest.mark.parametrize(
    ("kind", "recording", "workers"),
    [("tmpfs", "durable", 1), ("ext4", "durable", 2), ("ext4", "written", 1), ("ext4", "strict", 1)],
)
def test_sessions_end_and_with_room_it_serves_again(
    tmp_path: Path, shop: PostgresServer, kind: str, recording: str, workers: int
) -> None:
    with small_disk(kind, tmp_path) as disk:
        token = configure(tmp_path, shop, disk, recording, workers=workers)
        with serving(tmp_path) as (_, port):
            gatecast = Gatecast(tmp_path, port, token)
            assert gatecast.works()
            writers = [Writer(gatecast, f"w{i}") for i in range(3)]
            for writer in writers:
                writer.start()
            until("every writer was answered", lambda: all(len(writer.answered) > 5 for writer in writers))
            bulk = [
                Bulk(gatecast, "select", f"SELECT md5(i::text), md5((-i)::text) {ENDLESS}"),
                Bulk(gatecast, "copy", f"COPY (SELECT md5(i::text) {ENDLESS}) TO STDOUT"),
            ]
            assert all(one.running() for one in bulk)
            disk.fill()
            for one in bulk:
                said = one.end()
                assert LOST in said, said
            for writer in writers:
                writer.join(60)
                assert not writer.is_alive()
                assert LOST in writer.said, writer.said
            report = gatecast.verified()
            assert not [tape for tape in report["tapes"] if tape["status"] in ("altered", "unknown")]
            missing = {f"INSERT INTO effects VALUES ('{word}') RETURNING word" for word in effects(shop)}
            assert missing - {text.rstrip(";") for text in allowed(disk.path)} == set()
            assert effects(shop) >= {word for writer in writers for word in writer.answered}

            disk.free()
            until("a new session works", gatecast.works)
            until("what broke is sealed", lambda: all_sealed(disk.path))
            for writer in writers:
                writer.end()
        after = gatecast.verified()
        assert {tape["status"] for tape in after["tapes"]} <= {"verified", "incomplete"}
        assert not list(disk.path.rglob("*.wal"))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_below_the_reserve_no_session_begins_and_those_that_run_go_on(
    tmp_path: Path, shop: PostgresServer, kind: str
) -> None:
    with small_disk(kind, tmp_path) as disk:
        token = configure(tmp_path, shop, disk, reserve="4MiB")
        with serving(tmp_path) as (_, port):
            gatecast = Gatecast(tmp_path, port, token)
            writer = Writer(gatecast, "running")
            writer.start()
            until("it was answered", lambda: len(writer.answered) > 5)
            disk.fill(leave_bytes=3 * MIB)
            refused = gatecast.psql("-c", "SELECT 1")
            assert refused.returncode == 2
            assert "the session cannot be recorded, so it is not opened" in refused.stderr
            before = len(writer.answered)
            until("it goes on", lambda: len(writer.answered) > before + 20)
            with pytest.raises(psycopg.OperationalError) as caught:
                psycopg.connect(f"{gatecast.conninfo} password={token}")
            assert "not opened" in str(caught.value)
            disk.free()
            assert gatecast.works()
            writer.end()
        assert effects(shop) >= set(writer.answered)
        assert {tape["status"] for tape in gatecast.verified()["tapes"]} == {"verified"}


def test_a_kill_while_the_disk_is_full(tmp_path: Path, shop: PostgresServer) -> None:
    """It cannot start on a disk on which it cannot end the broken tapes, says so, and starts when there is room."""
    with small_disk("ext4", tmp_path) as disk:
        token = configure(tmp_path, shop, disk)
        with serving(tmp_path) as (child, port):
            gatecast = Gatecast(tmp_path, port, token)
            writers = [Writer(gatecast, f"w{i}") for i in range(3)]
            for writer in writers:
                writer.start()
            until("every writer was answered", lambda: all(len(writer.answered) > 5 for writer in writers))
            disk.fill()
            for writer in writers:
                writer.join(60)
                assert LOST in writer.said
            disk.fill()  # and what the emergency room gave
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(30)
            for writer in writers:
                writer.end()
        kept = {path: path.read_bytes() for path in disk.path.rglob("*.gct")}
        gatecast.verified()
        for _ in range(2):
            started = subprocess.run(
                [sys.executable, "-m", "proxy", "serve", "--log-json"], cwd=tmp_path, env=environment(""),
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert started.returncode == 1
            assert "No space left on device" in started.stderr
            assert "Traceback" not in started.stderr
            gatecast.verified()
        disk.free()
        with serving(tmp_path, "log-2") as (_, port):
            gatecast = Gatecast(tmp_path, port, token)
            assert gatecast.works()
            assert all_sealed(disk.path, but=1)
        report = gatecast.verified()
        assert len(report["tapes"]) == 4
        texts = {text.rstrip(";") for text in allowed(disk.path)}
        assert {f"INSERT INTO effects VALUES ('{word}') RETURNING word" for word in effects(shop)} <= texts
        assert effects(shop) >= {word for writer in writers for word in writer.answered}
        for path, before in kept.items():  # what was there is there; a torn end may have gone
            whole = TapeReader(path)
            assert whole.segment(0).seal is not None
            assert path.read_bytes()[: len(before) - 4096] == before[: len(before) - 4096]


def test_many_failed_sessions_leave_nothing_behind(tmp_path: Path, shop: PostgresServer) -> None:
    with small_disk("tmpfs", tmp_path) as disk:
        token = configure(tmp_path, shop, disk)
        with serving(tmp_path) as (child, port):
            gatecast = Gatecast(tmp_path, port, token)
            assert gatecast.works()

            def descriptors() -> int:
                return len(list(Path(f"/proc/{child.pid}/fd").iterdir()))

            def resident_kb() -> int:
                return int(Path(f"/proc/{child.pid}/status").read_text().split("VmRSS:")[1].split()[0])

            def fail(sessions: int) -> None:
                for _ in range(sessions // 5):
                    several = []
                    for _ in range(5):
                        with suppress(psycopg.OperationalError):
                            several.append(psycopg.connect(f"{gatecast.conninfo} password={token}", autocommit=True))
                    disk.fill()
                    for one in several:
                        with pytest.raises(psycopg.OperationalError) as caught:  # room may be made meanwhile
                            while True:
                                one.execute("SELECT repeat('x', 5000)")
                        assert caught.value.sqlstate == LOST
                        one.close()
                    disk.free()

            fail(10)
            until("it works", gatecast.works)
            until("all is sealed", lambda: all_sealed(disk.path))
            before, kb = until("descriptors are let go of", descriptors), resident_kb()
            fail(50)
            until("it works", gatecast.works)
            until("all is sealed", lambda: all_sealed(disk.path))
            until("descriptors are let go of", lambda: descriptors() <= before + 1)
            assert resident_kb() < kb + 20_000
            assert not list(disk.path.rglob("*.orphan"))
            report = gatecast.verified()
            assert len(report["tapes"]) >= 40
        told = [event["event"] for event in events(tmp_path)]
        assert told.count("recorder-upkeep-failed") < 30


def test_a_device_that_fails_ends_the_sessions_and_takes_nothing_that_was_answered(
    tmp_path: Path, shop: PostgresServer
) -> None:
    """The image's blocks are on a tmpfs that has none left: ext4 gets I/O errors for what it wrote long ago."""
    (tmp_path / "below").mkdir()
    with small_disk("tmpfs", tmp_path / "below", 10 * MIB) as below:
        image, disk = below.path / "image", SmallDisk(tmp_path / "disk")
        disk.path.mkdir()
        with image.open("wb") as file:
            file.truncate(64 * MIB)
        run("mkfs.ext4", "-q", "-m", "0", "-J", "size=4", "-b", "4096", "-E", "nodiscard", image)
        run("mount", "-o", "loop", image, disk.path)
        try:
            token = configure(tmp_path, shop, disk)
            with serving(tmp_path) as (child, port):
                gatecast = Gatecast(tmp_path, port, token)
                writers = [Writer(gatecast, f"w{i}") for i in range(3)]
                for writer in writers:
                    writer.start()
                until("every writer was answered", lambda: all(len(writer.answered) > 5 for writer in writers))
                below.fill()
                for writer in writers:
                    writer.join(90)
                    assert not writer.is_alive()
                    assert LOST in writer.said, writer.said
                    writer.end()
                assert child.poll() is None
            failed = [event for event in events(tmp_path) if event["event"] == "recording failed, the session ends"]
            assert len(failed) == 3
        finally:
            run("umount", "-l", disk.path)
            below.free()
        until("the loop device is gone", lambda: str(image) not in run("losetup", "-a"))
        subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, timeout=60, check=False)
        run("mount", "-o", "loop", image, disk.path)
        try:
            with serving(tmp_path, "log-2") as (_, port):
                gatecast = Gatecast(tmp_path, port, token)
                assert gatecast.works()
            gatecast.verified()
            texts = {text.rstrip(";") for text in allowed(disk.path)}
            assert {f"INSERT INTO effects VALUES ('{word}') RETURNING word" for word in effects(shop)} <= texts
            assert effects(shop) >= {word for writer in writers for word in writer.answered}
        finally:
            run("umount", "-l", disk.path)
