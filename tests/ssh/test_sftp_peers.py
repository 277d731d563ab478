"""SFTP with the real programs: OpenSSH's sftp and scp, paramiko and asyncssh through the Content to sftp-server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.peer

SERVER = Path("/usr/lib/openssh/sftp-server")
PUMP = Path(__file__).with_name("content_pump.py")


class Box:
    """A directory with a server behind a Content. far: the target's files, near: the user's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.far = root / "far"
        self.near = root / "near"
        self.far.mkdir()
        self.near.mkdir()
        self.log_file = root / "log.jsonl"
        self.server = root / "server"
        self.server.write_text(
            f"#!/bin/sh\ncd {self.far} && exec {sys.executable} {PUMP} {root}/settings.json {self.log_file} {SERVER}\n"
        )
        self.server.chmod(0o755)
        self.configure()

    def configure(self, **settings: Any) -> None:
        (self.root / "settings.json").write_text(json.dumps({"content": "sftp", **settings}))

    def sftp(self, batch: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a batch in the near directory; a line that begins with - may fail."""
        return subprocess.run(
            ["sftp", "-D", str(self.server), "-b", "-", *options],
            input=batch, capture_output=True, text=True, cwd=self.near, timeout=100, check=False,
        )  # fmt: skip

    def log(self, what: str, verb: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines()] if self.log_file.exists() else []
        return [line for line in lines if line["what"] == what and verb in ("", line.get("verb"))]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    if not SERVER.exists() or shutil.which("sftp") is None:
        pytest.skip("OpenSSH's sftp and sftp-server are not installed: apt install openssh-client openssh-sftp-server")
    return Box(tmp_path.resolve())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_files_go_both_ways_with_their_hashes(box: Box) -> None:
    data = os.urandom(3_000_001)
    (box.near / "a").write_bytes(data)
    (box.near / "empty").touch()
    run = box.sftp("put a\nput -p empty\nget a b\nget empty empty2\n")
    assert run.returncode == 0, run.stderr
    assert (box.far / "a").read_bytes() == data == (box.near / "b").read_bytes()
    up, up_empty = box.log("done", "file-write")
    down, down_empty = box.log("done", "file-read")
    for each in (up, down):
        assert each["path"] == str(box.far / "a")
        assert (each["size"], each["sha256"], each["complete"]) == (len(data), sha(data), True)
    for each in (up_empty, down_empty):
        assert (each["size"], each["sha256"], each["complete"]) == (0, sha(b""), True)
    assert (up["direction"], down["direction"]) == ("upload", "download")


def test_a_resumed_transfer_is_a_part(box: Box) -> None:
    data = os.urandom(500_000)
    (box.far / "a").write_bytes(data)
    (box.near / "a").write_bytes(data[:200_000])
    (box.near / "c").write_bytes(data)
    (box.far / "c").write_bytes(data[:300_000])
    run = box.sftp("reget a\nreput c\n")
    assert run.returncode == 0, run.stderr
    assert (box.near / "a").read_bytes() == data == (box.far / "c").read_bytes()
    down, up = box.log("done", "file-read")[0], box.log("done", "file-write")[0]
    assert down["ranges"] == [[200_000, 500_000]] and down["in_order"] is False and down["complete"] is False
    assert up["size"] == 200_000 and up["complete"] is False and "sha256" not in up


def test_all_that_sftp_can_do(box: Box) -> None:
    for name in ("g1", "g2", "h"):
        (box.far / name).write_text(name)
    (box.near / "tree" / "sub").mkdir(parents=True)
    (box.near / "tree" / "sub" / "f").write_text("deep")
    run = box.sftp(
        "pwd\nmkdir d\nput -r tree\nget -r tree back\nget g* .\nrename g1 d/g1\nrename d/g1 g3\n"
        "ln g2 hard\nln -s d soft\nls -l soft\nchmod 600 g2\nls -la\nls -1 g*\ncp h h2\nrm h\nrmdir d\ndf\ndf -h\n"
        "lls\ncd tree\npwd\n-get nothing\n-rmdir nothing\n-ls nothing\n"
    )
    assert run.returncode == 0, run.stderr
    assert (box.near / "back" / "sub" / "f").read_text() == "deep"
    assert (box.near / "g1").read_text() == "g1" and (box.far / "g3").read_text() == "g1"
    assert (box.far / "hard").samefile(box.far / "g2") and (box.far / "soft").readlink() == Path("d")
    assert stat.S_IMODE((box.far / "g2").stat().st_mode) == 0o600
    assert (box.far / "h2").read_text() == "h" and not (box.far / "h").exists() and not (box.far / "d").exists()
    verbs = {line["verb"] for line in box.log("allowed")}
    assert verbs == {
        "file-read", "file-write", "file-list", "file-stat", "file-remove", "file-rmdir", "file-rename", "file-mkdir",
        "file-setstat", "file-link", "file-copy", "file-statvfs",
    }  # fmt: skip
    assert {line["tag"] for line in box.log("done", "file-remove")} == {"ok"}
    link = box.log("allowed", "file-link")[1]
    assert link["objects"] == [str(box.far / "soft"), str(box.far / "d")]
    assert not box.log("broken")


def test_denials_in_the_middle_and_the_session_lives(box: Box) -> None:
    (box.far / "secret").write_text("no")
    (box.far / "open").write_text("yes")
    (box.far / "soft").symlink_to("secret")
    box.configure(deny=[["file-read", "*/secret"], ["file-remove", "*"], ["file-rename", "*"], ["file-write", "*/no*"]])
    (box.near / "nope").write_text("x")
    run = box.sftp("-get secret s1\n-get soft s2\n-rm open\n-rename open o\n-put nope\nget open\n")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("Permission denied") + run.stderr.count("Couldn't") >= 5
    assert 'gatecast: denied by rule "test": not here: file-remove' in run.stderr
    assert not (box.near / "s1").exists() or not (box.near / "s1").read_bytes()
    assert not (box.near / "s2").exists() or not (box.near / "s2").read_bytes()
    assert (box.far / "open").exists() and not (box.far / "nope").exists()
    assert (box.near / "open").read_text() == "yes"
    assert len(box.log("denied")) == 5


def test_a_hold_is_said_on_stderr(box: Box) -> None:
    (box.far / "a").write_text("yes")
    box.configure(hold=[["file-read", "*"]])
    run = box.sftp("get a\n")
    assert run.returncode == 0 and (box.near / "a").read_text() == "yes"
    assert f'gatecast: held by rule "test": file-read {box.far}/a' in run.stderr


def test_a_directory_of_ten_thousand_entries(box: Box) -> None:
    many = box.far / "many"
    many.mkdir()
    for number in range(10_000):
        (many / f"file-{number:05}").touch()
    run = box.sftp("ls -l many\n")
    assert run.returncode == 0 and len(run.stdout.splitlines()) >= 10_000
    assert box.log("done", "file-list")[-1]["count"] == 10_002


def test_300_megabytes_each_way(box: Box) -> None:
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with (box.near / "big").open("wb") as file:
        for number in range(300):
            piece = number.to_bytes(4, "big") + block
            file.write(piece)
            digest.update(piece)
    run = box.sftp("put big\nget big big2\n", "-R", "128", "-B", "200000")
    assert run.returncode == 0, run.stderr
    with (box.near / "big2").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
    for verb in ("file-write", "file-read"):
        done = box.log("done", verb)[0]
        assert (done["sha256"], done["complete"]) == (digest.hexdigest(), True)


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_any_cut_of_the_pipes(box: Box, cut: int) -> None:
    data = os.urandom(20_000)
    (box.near / "a").write_bytes(data)
    box.configure(cut=cut)
    run = box.sftp("put a\nget a b\nls -l\n")
    assert run.returncode == 0, run.stderr
    assert (box.near / "b").read_bytes() == data
    assert box.log("done", "file-read")[0]["sha256"] == sha(data)


def test_modern_scp_speaks_sftp(box: Box) -> None:
    (box.near / "tree").mkdir()
    (box.near / "tree" / "f").write_text("deep")
    for arguments in (["-r", "-p", "tree", f"box:{box.far}/"], ["-r", f"box:{box.far}/tree", "back"]):
        run = subprocess.run(
            ["scp", "-D", str(box.server), *arguments], capture_output=True, text=True, cwd=box.near, check=False,
            timeout=60,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
    assert (box.near / "back" / "f").read_text() == "deep"
    assert {line["sha256"] for line in box.log("done") if "sha256" in line} == {sha(b"deep")}


# -- clients in Python ----------------------------------------------------------------------------------


@pytest.fixture
def pipe(box: Box) -> Iterator[socket.socket]:
    """A socket with the pump at its other end."""
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen([str(box.server)], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        theirs.close()
        yield ours
        ours.close()
        process.wait(20)


def test_paramiko_prefetches_and_writes_ahead(box: Box, pipe: socket.socket) -> None:
    paramiko = pytest.importorskip("paramiko")
    data = os.urandom(2_500_000)
    client = paramiko.SFTPClient(_Pipe(pipe))
    with client.open("up", "w") as file:
        file.set_pipelined(True)
        for start in range(0, len(data), 10_000):
            file.write(data[start : start + 10_000])
    with client.open("up", "r") as file:
        file.prefetch()
        assert file.read() == data
    with client.open("up", "r") as file:
        assert file.readv([(1_000_000, 50), (10, 20)]) is not None
        file.seek(0)
    assert client.stat("up").st_size == len(data)
    assert sorted(client.listdir(".")) == ["up"]
    client.symlink("up", "soft")
    assert client.readlink("soft") == "up"
    client.rename("up", "down")
    client.truncate("down", 10)
    client.chmod("down", 0o600)
    with pytest.raises(IOError):
        client.open("nothing")
    client.close()
    wait_for(box, "file-setstat", 2)
    up, down = box.log("done", "file-write")[0], box.log("done", "file-read")[0]
    assert up["sha256"] == down["sha256"] == sha(data) and down["complete"] is True
    assert box.log("allowed", "file-link")[0]["objects"] == [str(box.far / "soft"), str(box.far / "up")]


def test_paramiko_reads_what_its_prefetching_thread_reads_as_well(
    box: Box, pipe: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader gives up prefetching once every request is answered, though the thread has more of them to send."""
    paramiko = pytest.importorskip("paramiko")
    data = os.urandom(1_000_000)
    (box.far / "a").write_bytes(data)
    client = paramiko.SFTPClient(_Pipe(pipe))
    gave_up = threading.Event()
    real, sent = client._async_request, []

    def one_after_the_other(owner: Any, *request: Any) -> Any:
        if owner is file:
            sent.append(request)
            if len(sent) == 5:
                assert gave_up.wait(20)
        elif request[0] == paramiko.sftp.CMD_READ:
            gave_up.set()
        return real(owner, *request)

    with client.open("a", "r") as file:
        monkeypatch.setattr(client, "_async_request", one_after_the_other)
        file.prefetch()
        assert file.read() == data
    client.close()
    wait_for(box, "file-read", 1)
    down = box.log("done", "file-read")[0]
    assert gave_up.is_set() and down["repeated"] > 0
    assert (down["sha256"], down["complete"], down["in_order"]) == (sha(data), True, True)


class _Pipe:
    """What paramiko wants of a channel."""

    def __init__(self, sock: socket.socket) -> None:
        self.recv = sock.recv
        self.send = sock.send
        self.close = sock.close

    def get_name(self) -> str:
        return "pipe"

    def recv_ready(self) -> bool:
        return False


def wait_for(box: Box, verb: str, count: int) -> None:
    """Wait until the pump has written its log."""
    gone = threading.Event()
    for _ in range(500):
        if len(box.log("done", verb)) >= count:
            return
        gone.wait(0.01)
    raise AssertionError(f"{verb} was not recorded")


def test_asyncssh_reads_in_parallel(box: Box) -> None:
    asyncssh = pytest.importorskip("asyncssh")
    data = os.urandom(4_000_000)
    (box.far / "a").write_bytes(data)

    async def use() -> None:
        process = await asyncio.create_subprocess_exec(
            str(box.server), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        channel = _Channel(process)
        client = await asyncssh.sftp.start_sftp_client(
            channel, asyncio.get_running_loop(), "strict", channel, channel, "utf-8", "strict", 6
        )
        await client.get("a", str(box.near / "a"), max_requests=32)
        assert client.version == 3
        assert (await client.stat("a")).size == len(data)
        await client.put(str(box.near / "a"), "b")
        client.exit()
        await client.wait_closed()
        await process.wait()

    asyncio.run(use())
    assert (box.far / "b").read_bytes() == data
    assert box.log("done", "file-read")[0]["sha256"] == sha(data) == box.log("done", "file-write")[0]["sha256"]


class _Channel:
    """What asyncssh's SFTP client wants of a connection, a channel, its reader and its writer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._stdin = process.stdin
        self.readexactly = process.stdout.readexactly
        self.write = process.stdin.write
        self.close = process.stdin.close
        self.logger = __import__("asyncssh").logging.logger
        self.channel = self
        self.tasks: list[asyncio.Task[Any]] = []

    def create_task(self, coroutine: Any, logger: object) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine))

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return False

    def write_eof(self) -> None:
        self._stdin.write_eof()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self.tasks)
