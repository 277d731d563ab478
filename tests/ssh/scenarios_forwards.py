"""Scenarios of forwards (TCP, Unix sockets, SOCKS, -W, agents) and of shared connections (ssh note, 5)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import quote

import pytest

from tests.peers.ssh import free_port, program
from tests.ssh.running import Argument, Runner, scenario, until
from tests.ssh.services import connect, echo, read_all, serving, socks, speaks_first, talk

MIB = 1 << 20


@contextlib.contextmanager
def shared(run: Runner, *options: Argument) -> Iterator[Path]:
    """A connection that others share (ControlMaster); yields its socket."""
    path = run.folder / "control"
    with run.started(*run.argv("-M", "-N", "-S", path, "-o", "ExitOnForwardFailure=yes", *options, run.host)) as master:
        until(lambda: path.exists() or master.poll() is not None, "control socket")
        assert master.poll() is None, master.stderr and master.stderr.read()
        yield path
        if master.poll() is None:
            control(run, path, "exit")
            master.wait(20)


def control(run: Runner, path: Path, word: str, *options: Argument) -> subprocess.CompletedProcess[bytes]:
    """ssh -O word."""
    return run.ssh(None, "-S", path, "-O", word, *options)


# -- to the target's side -----------------------------------------------------------------------------


@scenario(main=True)
def local_forward(run: Runner) -> None:
    near, refused = free_port(), free_port()
    with serving(echo) as far, shared(run, "-L", f"{near}:127.0.0.1:{far}", "-L", f"{refused}:127.0.0.1:1"):
        assert talk(near, b"hello") == b"hello|5"
        data = os.urandom(3 * MIB)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: talk(near, data), range(8)))
        assert all(answer == data + b"|%d" % len(data) for answer in answers)
        for _ in range(3):  # nobody listens there: an end, and the connection lives on
            with connect(refused) as connection, contextlib.suppress(ConnectionResetError):
                assert connection.recv(10) == b""
        assert talk(near, b"still") == b"still|5"


@scenario(main=True)
def server_speaks_first(run: Runner) -> None:
    near = free_port()
    with serving(speaks_first) as far:
        for _ in range(2):  # fresh connections: the first channel is the forward's
            with shared(run, "-L", f"{near}:127.0.0.1:{far}"):
                for _ in range(4):
                    with connect(near) as connection:
                        assert connection.recv(100) == b"220 hello\r\n"


@scenario()
def many_connections_through_a_forward(run: Runner) -> None:
    near = free_port()
    with serving(echo) as far, shared(run, "-L", f"{near}:127.0.0.1:{far}"), ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: talk(near, b"%d" % i * 100), range(200)))
    assert all(answer.startswith(b"%d" % i) and b"|" in answer for i, answer in enumerate(answers))


@scenario()
def half_close_from_the_far_side(run: Runner) -> None:
    def ends_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        got.append(read_all(connection))

    got: list[bytes] = []
    near = free_port()
    with serving(ends_first) as far, shared(run, "-L", f"{near}:127.0.0.1:{far}"):
        with connect(near) as connection:
            assert read_all(connection) == b"bye"
            connection.sendall(b"x" * 100_000)
        until(lambda: got, "what was sent after the far end's end")
    assert len(got[0]) == 100_000


@scenario()
def local_unix_socket(run: Runner) -> None:
    near, far = run.folder / "near.sock", run.remote / "far.sock"
    with serving(echo, far), shared(run, "-L", f"{near}:{far}"):
        assert talk(near, b"hello") == b"hello|5"


@scenario(main=True)
def dynamic_forward(run: Runner) -> None:
    near = free_port()
    with serving(echo) as far, shared(run, "-D", f"{near}"):
        for version in (4, 5):
            with socks(version, near, "localhost", far) as connection:
                connection.sendall(b"hello")
                connection.shutdown(socket.SHUT_WR)
                assert read_all(connection) == b"hello|5"
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
            socks(5, near, "127.0.0.1", 1)
        with socks(5, near, "127.0.0.1", far) as connection:
            connection.sendall(b"again")
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b"again|5"


@scenario(main=True)
def stdio_forward(run: Runner) -> None:
    data = os.urandom(2 * MIB)
    with serving(echo) as far:
        done = run.ssh(None, "-W", f"127.0.0.1:{far}", input=data)
    assert (done.returncode, done.stdout) == (0, data + b"|%d" % len(data))


# -- from the target's side ---------------------------------------------------------------------------


@scenario(main=True)
def remote_forward(run: Runner) -> None:
    port = free_port()
    with serving(echo) as home, shared(run, "-R", f"{port}:127.0.0.1:{home}") as path:
        until(lambda: _listens(port), "forward")
        assert talk(port, b"hello") == b"hello|5"
        data = os.urandom(2 * MIB)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: talk(port, data), range(4)))
        assert all(answer == data + b"|%d" % len(data) for answer in answers)
        # Port 0: the target chooses, and OpenSSH prints what it chose.
        chosen = int(control(run, path, "forward", "-R", f"0:127.0.0.1:{home}").stdout)
        assert talk(chosen, b"more") == b"more|4"
        assert control(run, path, "cancel", "-R", f"{port}:127.0.0.1:{home}").returncode == 0
        until(lambda: not _listens(port), "end of the forward")
        assert talk(chosen, b"more") == b"more|4"


def _listens(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


@scenario()
def remote_forward_whose_end_refuses(run: Runner) -> None:
    port = free_port()
    with shared(run, "-R", f"{port}:127.0.0.1:1"):
        until(lambda: _listens(port), "forward")
        for _ in range(3):
            with connect(port) as connection, contextlib.suppress(ConnectionResetError):
                assert connection.recv(10) == b""


@scenario()
def remote_forward_of_a_port_in_use(run: Runner) -> None:
    spec = f"{free_port()}:127.0.0.1:1"
    with shared(run, "-R", spec):  # sshd itself has it now, for IPv6 as well
        until(lambda: _listens(int(spec.partition(":")[0])), "forward")
        done = run.ssh("true", "-R", spec, "-o", "ExitOnForwardFailure=yes")
    assert done.returncode == 255
    assert b"remote port forwarding failed" in done.stderr


@scenario()
def remote_unix_socket(run: Runner) -> None:
    near, far = run.folder / "near.sock", run.remote / "far.sock"
    with serving(echo, near), shared(run, "-R", f"{far}:{near}"):
        until(far.exists, "socket")
        assert talk(far, b"hello") == b"hello|5"


@scenario()
def remote_dynamic_forward(run: Runner) -> None:
    port = free_port()
    with serving(echo) as home, shared(run, "-R", f"{port}"):
        until(lambda: _listens(port), "forward")
        with socks(5, port, "127.0.0.1", home) as connection:
            connection.sendall(b"hello")
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b"hello|5"


@scenario()
def agent_forwarding(run: Runner) -> None:
    """Directly it works; a rule that allows everything does not mean it (a rule must name auth-agent)."""
    with run.started(program("ssh-agent", "openssh-client"), "-D", "-a", run.folder / "agent") as agent:
        until((run.folder / "agent").exists, "agent")
        where = {"SSH_AUTH_SOCK": str(run.folder / "agent")}
        assert run.run(program("ssh-add"), "-q", str(run.key.file), env=where).returncode == 0
        words = run.argv("-A", "-o", "IdentityAgent=SSH_AUTH_SOCK", run.host, 'echo "[$SSH_AUTH_SOCK]"; ssh-add -l')
        done = run.run(*words, env=where)
        assert agent.poll() is None
    if run.via == "direct":
        assert b"ED25519" in done.stdout
    else:
        assert done.stdout.startswith(b"[]")
        assert b"ED25519" not in done.stdout


# -- shared connections -------------------------------------------------------------------------------


@scenario(main=True)
def ten_sessions_at_once(run: Runner) -> None:
    with shared(run) as path:
        started = time.monotonic()
        with ThreadPoolExecutor(10) as pool:
            command = "read x; echo $x; sleep 0.5; exit $x"
            done = list(pool.map(lambda i: run.ssh(command, "-S", path, input=b"%d\n" % i), range(10)))
        assert [(each.returncode, each.stdout) for each in done] == [(i, b"%d\n" % i) for i in range(10)]
        assert time.monotonic() - started < 4.5, "they waited for each other"
        assert control(run, path, "check").returncode == 0


@scenario()
def one_session_does_not_wait_for_another(run: Runner) -> None:
    """One session of a shared connection is full up because nobody reads it; another goes on."""
    with shared(run) as path, run.started(*run.argv("-S", path, run.host, "cat /dev/zero")) as full:
        assert full.stdout is not None
        assert full.stdout.read(10) == bytes(10)
        for i in range(3):
            assert run.ssh(f"echo {i}; head -c 3000000 /dev/zero", "-S", path).stdout == b"%d\n" % i + bytes(3_000_000)


@scenario()
def forwards_of_a_shared_connection(run: Runner) -> None:
    near = free_port()
    with serving(echo) as far, shared(run) as path:
        spec = f"{near}:127.0.0.1:{far}"
        assert control(run, path, "forward", "-L", spec).returncode == 0
        assert talk(near, b"x") == b"x|1"
        assert control(run, path, "cancel", "-L", spec).returncode == 0
        with pytest.raises(ConnectionRefusedError):
            connect(near)
        assert run.ssh("echo on", "-S", path).stdout == b"on\n"


@scenario()
def shared_connection_is_ended(run: Runner) -> None:
    seen = run.remote / "seen"
    with shared(run) as path, run.started(*run.argv("-S", path, run.host, f"touch {quote(str(seen))}; cat")) as session:
        until(seen.exists, "session")
        assert control(run, path, "exit").returncode == 0
        assert session.wait(20) == 255


@scenario()
def files_and_commands_share_a_connection(run: Runner) -> None:
    with shared(run) as path:
        (run.folder / "file").write_bytes(b"x" * 100_000)
        options = ["-o", f"ControlPath={path}"]
        with ThreadPoolExecutor(6) as pool:
            puts = [pool.submit(run.sftp, f"put file {run.remote}/copy{i}", options=options) for i in range(3)]
            runs = [pool.submit(run.ssh, f"echo {i}", "-S", path) for i in range(3)]
        assert [put.result().returncode for put in puts] == [0, 0, 0]
        assert [each.result().stdout for each in runs] == [b"%d\n" % i for i in range(3)]
        assert all((run.remote / f"copy{i}").stat().st_size == 100_000 for i in range(3))
