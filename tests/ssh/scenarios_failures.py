"""Scenarios of things that go wrong: a target that stalls or dies, a client that stops, garbage (ssh note, 5)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import quote

from tests.ssh.running import Runner, scenario, still, until

MIB = 1 << 20
GROWTH_BYTES = 96 * MIB  # as in scenarios.py


@contextlib.contextmanager
def _sshd_behind(run: Runner, command: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command, and yield its client with the pid of the sshd that serves it at the target."""
    with run.started(*run.argv(run.host, f"echo $PPID; {command}")) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())


@scenario(main=True)
def target_dies(run: Runner) -> None:
    with _sshd_behind(run, "cat") as (process, pid):
        os.kill(pid, signal.SIGKILL)
        assert process.wait(30) == 255
    assert run.ssh("echo next").stdout == b"next\n"


@scenario()
def target_dies_in_a_transfer(run: Runner) -> None:
    with _sshd_behind(run, "cat /dev/zero") as (process, pid):
        assert process.stdout is not None
        assert len(process.stdout.read(5 * MIB)) == 5 * MIB
        os.kill(pid, signal.SIGKILL)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(process.stdout.read).result(30)
        assert process.wait(30) == 255


@scenario()
def target_stalls(run: Runner) -> None:
    """It stops: nothing is lost, others are served, memory does not grow, and it goes on when the target does."""
    before = run.gateway.resident_bytes if run.gateway else 0
    with _sshd_behind(run, "cat") as (process, pid):
        assert process.stdin is not None
        assert process.stdout is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            size = 32 * MIB
            with ThreadPoolExecutor(2) as pool:
                writing = pool.submit(_write, process.stdin, size)
                reading = pool.submit(_read, process.stdout)
                assert run.ssh("echo others").stdout == b"others\n"
                assert not writing.done()
                if run.gateway is not None:
                    assert run.gateway.resident_bytes - before < GROWTH_BYTES
                os.kill(pid, signal.SIGCONT)
                writing.result(60)
                process.stdin.close()
                assert reading.result(60) == size
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert process.wait(30) == 0


def _write(stream: object, size: int) -> None:
    for _ in range(size // MIB):
        stream.write(bytes(MIB))  # type: ignore[attr-defined]  # an IO[bytes] of Popen
    stream.flush()  # type: ignore[attr-defined]


def _read(stream: object) -> int:
    size = 0
    while piece := stream.read(MIB):  # type: ignore[attr-defined]
        size += len(piece)
    return size


@scenario()
def user_leaves_a_stalled_target(run: Runner) -> None:
    with _sshd_behind(run, "cat") as (process, pid):
        os.kill(pid, signal.SIGSTOP)
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)
            assert run.ssh("echo others").stdout == b"others\n"
        finally:
            os.kill(pid, signal.SIGCONT)


@scenario()
def client_is_stopped(run: Runner) -> None:
    """A client that takes nothing more, not even TCP: the target's program rests, memory stays, others go on."""
    before = run.gateway.resident_bytes if run.gateway else 0
    progress = run.remote / "progress"
    script = (
        f"import os\nf = os.open({str(progress)!r}, os.O_CREAT | os.O_WRONLY)\nn = 0\n"
        "while True:\n n += os.write(1, bytes(1 << 16))\n os.pwrite(f, b'%15d' % n, 0)\n"
    )
    with run.started(*run.argv(run.host, f"python3 -c {quote(script)}"), stdout=subprocess.DEVNULL) as process:
        until(lambda: progress.exists() and _number(progress) > 20 * MIB, "flood")
        os.kill(process.pid, signal.SIGSTOP)
        at = still(lambda: _number(progress), seconds=1.0)
        if run.gateway is not None:
            assert run.gateway.resident_bytes - before < GROWTH_BYTES
        assert run.ssh("echo others").stdout == b"others\n"
        assert _number(progress) == at
        os.kill(process.pid, signal.SIGKILL)
        script_pid = f"{progress}"
        until(lambda: not _runs(script_pid), "end of the target's program")


def _number(path: Path) -> int:
    return int(path.read_text() or 0)


def _runs(word: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if words.startswith(b"python3\0-c") and word.encode() in words:
                return True
    return False


@scenario()
def cut_at_any_moment(run: Runner) -> None:
    """The TCP connection is cut after every so many bytes, from the first to deep in a session; others go on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = run.folder / "cut_config"
        text = run.config.read_text().replace(f"Port {run.port}", f"Port {listener.getsockname()[1]}")
        config.write_text(text)
        for limit in (0, 1, 30, 1_000, 1_700, 2_500, 3_200, 4_000, 5_000, 8_000, 60_000):
            with run.started(*run.argv(run.host, "head -c 500000 /dev/zero", config=config)) as process:
                connection, _ = listener.accept()
                with connection, socket.create_connection(("127.0.0.1", run.port), 30) as onward:
                    _pass(connection, onward, limit)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
                    onward.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                process.communicate(timeout=30)
                assert process.returncode == 255, limit
    assert run.ssh("echo others").stdout == b"others\n"


def _pass(user: socket.socket, server: socket.socket, limit: int) -> None:
    """Pass bytes on between the two until the server has sent so many."""
    passed = 0
    user.setblocking(False)
    server.setblocking(False)
    deadline = time.monotonic() + 20
    while passed < limit:
        assert time.monotonic() < deadline, f"only {passed} bytes came"
        moved = 0
        for source, sink in ((user, server), (server, user)):
            with contextlib.suppress(BlockingIOError):
                data = source.recv(4096 if limit > 10_000 else 64)
                assert data, "an end before the cut"
                moved += len(data)
                sink.setblocking(True)
                sink.sendall(data)
                sink.setblocking(False)
                passed += len(data) if source is server else 0
        if not moved:
            time.sleep(0.001)


@scenario(vias=("direct", "gateway"))
def garbage_instead_of_ssh(run: Runner) -> None:
    version = b"SSH-2.0-OpenSSH_9.2\r\n"
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-1.5-old\r\n",
        bytes(range(256)) * 300,
        b"x" * 300_000,
        version + b"\xff" * 40_000,
        version + b"\0\0\0\x0c\x0a\x15" + bytes(10),  # NEWKEYS before any key
        version + b"\0\0\0\x0c\x06\x5a" + bytes(10),  # a channel before any login
        version + b"\0\0\0\x0c\x0a\x14" + bytes(10),  # a KEXINIT that ends in its cookie
        version + bytes(100_000),
        b"",
    ):
        with socket.create_connection(("127.0.0.1", run.port), 30) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 30
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    assert time.monotonic() < deadline, data[:40]
    assert run.ssh("echo others").stdout == b"others\n"
