"""Scenarios of other clients: ansible, paramiko, asyncssh, dropbear, ssh-keyscan; odd options of OpenSSH (note, 5)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from shlex import quote

import asyncssh
import paramiko  # type: ignore[import-untyped]  # it ships no types

from tests.peers.ssh import program
from tests.ssh.running import Argument, Runner, noise, scenario, sha256

MIB = 1 << 20
CHANNELS = 500
CONNECTIONS = 30
TRAP = "trap 'echo got; exit 9' USR1; echo up; while :; do sleep .1; done"

# -- ansible ------------------------------------------------------------------------------------------

PLAYBOOK = """\
- hosts: all
  gather_facts: false
  tasks:
    - command: echo from ansible
      register: said
    - assert: {that: said.stdout == "from ansible"}
    - copy: {content: "kept ümläut\\n", dest: "FAR/copied", mode: "0640"}
    - file: {path: "FAR/folder/deep", state: directory}
    - shell: exit 3
      register: failed
      failed_when: failed.rc != 3
"""


@scenario(main=True)
def ansible_ping(run: Runner) -> None:
    done = _ansible(run, "ansible", "all", "-m", "ping")
    assert (done.returncode, b'"ping": "pong"' in done.stdout) == (0, True), done.stdout + done.stderr


@scenario()
def ansible_raw_and_missing_command(run: Runner) -> None:
    done = _ansible(run, "ansible", "all", "-m", "raw", "-a", "echo raw; exit 7")
    assert b"rc=7" in done.stdout
    assert b"raw\n" in done.stdout


@scenario()
def ansible_playbook(run: Runner) -> None:
    """With and without pipelining (a command's input, or a file by sftp), over a shared connection as is its habit."""
    path = run.folder / "play.yaml"
    path.write_text(PLAYBOOK.replace("FAR", str(run.remote)))
    for pipelining in ("True", "False"):
        done = _ansible(run, "ansible-playbook", str(path), pipelining=pipelining)
        assert done.returncode == 0, done.stdout + done.stderr
        assert b"failed=0" in done.stdout
        assert (run.remote / "copied").read_text() == "kept ümläut\n"
        assert stat.S_IMODE((run.remote / "copied").stat().st_mode) == 0o640
        (run.remote / "copied").unlink()


def _ansible(run: Runner, name: str, *arguments: str, pipelining: str = "False") -> subprocess.CompletedProcess[bytes]:
    common = f"-F {run.config}"
    (run.folder / "inventory").write_text(
        f"box ansible_ssh_common_args='{common}' ansible_python_interpreter={sys.executable}\n"
    )
    (run.folder / "ansible.cfg").touch()
    control = run.folder / "cm"
    control.mkdir(exist_ok=True)
    settings = {
        "ANSIBLE_CONFIG": str(run.folder / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": pipelining,
        "ANSIBLE_HOME": str(run.folder / "ansible"), "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control),
        "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=60s", "ANSIBLE_DEPRECATION_WARNINGS": "0",
    }  # fmt: skip
    found = Path(sys.executable).with_name(name)
    try:
        return run.run(found, "-i", str(run.folder / "inventory"), *arguments, timeout=100, env=settings)
    finally:
        for path in control.iterdir():  # the shared connection would outlive us by a minute
            run.ssh(None, "-o", f"ControlPath={path}", "-O", "exit")


# -- paramiko -----------------------------------------------------------------------------------------


@contextmanager
def _paramiko(run: Runner) -> Iterator[paramiko.SSHClient]:
    client = paramiko.SSHClient()
    client.load_host_keys(str(_known_hosts(run)))
    key = paramiko.Ed25519Key.from_private_key_file(str(run.key.file))
    client.connect(
        "127.0.0.1", run.port, run.login, pkey=key, allow_agent=False, look_for_keys=False, timeout=30,
    )  # fmt: skip
    try:
        yield client
    finally:
        client.close()


def _known_hosts(run: Runner) -> Path:
    path = run.folder / "known"
    key = run.server.host_key.line if run.gateway is None else run.gateway.host_key
    path.write_text(f"[127.0.0.1]:{run.port} {key}\n")
    return path


@scenario()
def paramiko_exec(run: Runner) -> None:
    with _paramiko(run) as client:
        for code in (0, 3):
            stdin, stdout, stderr = client.exec_command(f"cat; echo err >&2; exit {code}", timeout=30)
            stdin.write(b"x" * 300_000)
            stdin.channel.shutdown_write()
            assert (len(stdout.read()), stderr.read(), stdout.channel.recv_exit_status()) == (300_000, b"err\n", code)
        shell = client.invoke_shell("vt100", 100, 40)
        shell.settimeout(30)
        shell.sendall(b"stty size; exit 5\n")
        said = b""
        while piece := shell.recv(65536):
            said += piece
        assert b"40 100\r\n" in said
        assert shell.recv_exit_status() == 5


@scenario()
def paramiko_sftp(run: Runner) -> None:
    """Its prefetch asks for everything at once, and its writes do not wait for answers."""
    source, there, back = noise(run.folder / "noise", 12 * MIB + 5), run.remote / "noise", run.folder / "back"
    with _paramiko(run) as client, client.open_sftp() as sftp:
        sftp.put(str(source), str(there))
        sftp.get(str(there), str(back), prefetch=True)
        assert sha256(source) == sha256(there) == sha256(back)
        sftp.chdir(str(run.remote))
        sftp.mkdir("folder")
        sftp.posix_rename("noise", "folder/moved")
        assert sftp.listdir("folder") == ["moved"]
        assert sftp.stat("folder/moved").st_size == 12 * MIB + 5
        with sftp.open("folder/moved", "r+b") as file:
            file.seek(1000)
            file.write(b"in the middle")
            file.seek(1000)
            assert file.read(13) == b"in the middle"
        try:
            sftp.stat("nothing")
            raise AssertionError("there is nothing")
        except FileNotFoundError:
            pass


@scenario()
def paramiko_forward(run: Runner) -> None:
    with _paramiko(run) as client:
        transport = client.get_transport()
        assert transport is not None
        with socket.create_server(("127.0.0.1", 0)) as far:
            channel = transport.open_channel("direct-tcpip", far.getsockname(), ("127.0.0.1", 0), timeout=30)
            connection, _ = far.accept()
            with connection, channel:
                connection.sendall(b"hello")
                assert channel.recv(5) == b"hello"
                channel.sendall(b"world")
                channel.shutdown_write()
                assert connection.recv(100) == b"world"
                assert connection.recv(100) == b""


# -- asyncssh -----------------------------------------------------------------------------------------


@asynccontextmanager
async def _asyncssh(run: Runner) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with asyncssh.connect(
        "127.0.0.1", run.port, username=run.login, client_keys=[str(run.key.file)], agent_path=None, config=None,
        known_hosts=str(_known_hosts(run)), login_timeout=60, connect_timeout=60,
    ) as connection:  # fmt: skip
        yield connection


@scenario()
def asyncssh_client(run: Runner) -> None:
    async def main() -> None:
        async with _asyncssh(run) as connection:
            done = await connection.run("kill -TERM $$", encoding=None)
            assert done.exit_signal is not None
            assert done.exit_signal[0] == "TERM"
            if run.server.user != "root":  # sshd signals no session of root's (it needs its privilege separation)
                process = await connection.create_process(TRAP)
                assert await process.stdout.readline() == "up\n"
                process.send_signal("USR1")
                assert await process.stdout.readline() == "got\n"
                assert (await process.wait()).exit_status == 9
            async with connection.start_sftp_client() as sftp:
                data = os.urandom(3 * MIB)
                async with sftp.open(str(run.remote / "written"), "wb") as file:
                    await file.write(data)
                async with sftp.open(str(run.remote / "written"), "rb") as file:
                    assert bytes(await file.read()) == data  # type: ignore[arg-type]
                assert await sftp.glob(f"{run.remote}/wr*") == [f"{run.remote}/written"]
            try:
                await connection.create_session(asyncssh.SSHClientSession, subsystem="no-such-thing")
                raise AssertionError("there is no such subsystem")
            except asyncssh.ChannelOpenError:
                pass
            done = await connection.run("echo alive")
            assert done.stdout == "alive\n"

    asyncio.run(main())


@scenario()
def hundreds_of_channels_one_after_another(run: Runner) -> None:
    _channels(run, CHANNELS)


@scenario(nightly=True)
def ten_thousand_channels_one_after_another(run: Runner) -> None:
    _channels(run, 10_000)


def _channels(run: Runner, count: int) -> None:
    async def main() -> None:
        before = 0
        async with _asyncssh(run) as connection:
            for i in range(count):
                done = await connection.run(f"echo {i}; exit {i % 7}")
                assert (done.stdout, done.exit_status) == (f"{i}\n", i % 7)
                if run.gateway is not None and i == count // 5:
                    before = run.gateway.resident_bytes
        if run.gateway is not None:
            grown = run.gateway.resident_bytes - before
            assert grown < 24 * MIB + count * 4096, f"{grown / MIB:.0f} MiB more after {count} channels"

    asyncio.run(main())


@scenario()
def many_connections_at_once(run: Runner) -> None:
    _connections(run, CONNECTIONS)


@scenario(nightly=True)
def two_hundred_connections_at_once(run: Runner) -> None:
    _connections(run, 200)


def _connections(run: Runner, count: int) -> None:
    async def main() -> None:
        there = asyncio.Event()
        inside = 0

        async def one(i: int) -> None:
            nonlocal inside
            async with _asyncssh(run) as connection:
                inside += 1
                if inside == count:
                    there.set()
                await asyncio.wait_for(there.wait(), 100)  # all of them are open at the same time
                done = await connection.run("cat; head -c 200000 /dev/zero", input=f"{i}\n")
                assert done.stdout == f"{i}\n" + "\0" * 200_000

        async with asyncio.TaskGroup() as group:
            for i in range(count):
                group.create_task(one(i))

    asyncio.run(main())


# -- dropbear's, keyscan, options ---------------------------------------------------------------------


@scenario()
def dropbear(run: Runner) -> None:
    key = run.folder / "dropbear_key"
    program("dbclient", "dropbear-bin")
    converted = run.run(program("dropbearconvert", "dropbear-bin"), "openssh", "dropbear", run.key.file, key)
    assert converted.returncode == 0, converted.stderr
    data = bytes(range(256)) * 20_000
    for cipher in ("aes128-ctr", "chacha20-poly1305@openssh.com"):
        words: list[Argument] = [
            program("dbclient"),
            "-y",
            "-y",
            "-T",
            "-i",
            key,
            "-c",
            cipher,
            "-p",
            str(run.port),
            "-l",
            run.login,
        ]
        done = run.run(*words, "127.0.0.1", "cat; echo err >&2; exit 6", input=data)
        assert (done.returncode, done.stderr.endswith(b"\nerr\n")) == (6, True), done.stderr
        assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest(), cipher


@scenario()
def keyscan(run: Runner) -> None:
    scan = program("ssh-keyscan", "openssh-client")
    done = run.run(scan, "-p", str(run.port), "-t", "ed25519", "127.0.0.1")
    expected = run.server.host_key.line if run.gateway is None else run.gateway.host_key
    assert expected.encode() in done.stdout, done.stderr


@scenario()
def compression_is_asked_for(run: Runner) -> None:
    assert run.ssh("head -c 1000000 /dev/zero", "-C").stdout == bytes(1_000_000)


@scenario()
def keepalives(run: Runner) -> None:
    """Both kinds are answered: a client that gets no answer gives up."""
    done = run.ssh("sleep 3.2; echo alive", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
    assert (done.returncode, done.stdout) == (0, b"alive\n")


@scenario(main=True)
def host_keys_are_not_mixed_up(run: Runner) -> None:
    """With UpdateHostKeys the client learns no key that this way does not have."""
    config = run.write("updating", None, UpdateHostKeys="yes")
    known = run.folder / "updating.known_hosts"
    before = known.read_text()
    assert run.ssh("echo in", config=config).stdout == b"in\n"
    keys = {line.split()[-1] for line in known.read_text().splitlines()} - {
        line.split()[-1] for line in before.splitlines()
    }
    assert run.server.host_key.line.split()[1] not in keys or run.via == "direct"


@scenario(main=True)
def wrong_host_key(run: Runner) -> None:
    config = run.write("wrong", None)
    known = run.folder / "wrong.known_hosts"
    other = run.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    line = " ".join(other.with_suffix(".pub").read_text().split()[:2])
    known.write_text(f"box {line}\ngatecast {line}\n@cert-authority * {line}\n")
    done = run.ssh("echo in", config=config)
    assert (done.returncode, done.stdout) == (255, b"")


@scenario()
def wrong_key(run: Runner) -> None:
    other = run.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    done = run.ssh("echo in", "-i", other, "-o", "IdentityFile=none", config=_without_key(run))
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"Permission denied" in done.stderr


def _without_key(run: Runner) -> Path:
    config = run.folder / "no_key"
    config.write_text("".join(line for line in run.config.read_text().splitlines(True) if "IdentityFile" not in line))
    return config


@scenario()
def unknown_subsystem(run: Runner) -> None:
    done = run.ssh("no-such-subsystem", "-s")
    assert (done.returncode, done.stdout) == (255, b"") or done.returncode == 1
    assert b"subsystem request failed" in done.stderr


@scenario()
def a_subsystem_by_hand(run: Runner) -> None:
    """sftp's INIT and VERSION, as any program may send them."""
    with run.started(*run.argv("-s", run.host, "sftp")) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\0\0\0\x05\x01\0\0\0\x03")
        process.stdin.flush()  # its end would make the server go before it has answered
        assert process.stdout.read(9)[4:] == b"\x02\0\0\0\x03"
        process.stdin.close()
        assert process.wait(20) == 0


@scenario()
def commands_with_json_and_quotes(run: Runner) -> None:
    """What agents do: a program that reads a document from its input and writes another."""
    data = {"text": "line\nnext \u2028 \U0001f600 'quotes' \"double\" \\ back", "list": list(range(1_000))}
    code = "import json,sys; d=json.load(sys.stdin); d['n']=len(d['list']); json.dump(d, sys.stdout)"
    done = run.ssh(f"python3 -c {quote(code)}", input=json.dumps(data).encode())
    assert json.loads(done.stdout) == {**data, "n": 1_000}
