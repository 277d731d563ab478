"""What OpenSSH shows where there is no target (yet): denied, held and unreachable, at every log level."""

from __future__ import annotations

import getpass
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.ssh import SshServer, free_port, program
from tests.ssh.gateway import ALL_KINDS, GatewayProcess, ssh_gateway, story
from tests.ssh.running import Runner, until
from tests.ssh.terminal import terminal

pytestmark = pytest.mark.peer

RULES = """\
rules:
  - {name: all, who: {groups: [dev]}, on: {targets: [box, gone]}, commands: {kinds: KINDS, opaque: true}, allow: true}
  - {name: waiting, who: {groups: [dev]}, on: {targets: [reviewed]}, commands: {verbs: [CONNECT]},
     hold: {approvers: ["local:USER"], timeout: 1m, reason: it is night}}
  - {name: inside, who: {groups: [dev]}, on: {targets: [reviewed]},
     commands: {kinds: [execute, transfer, read, write], opaque: true}, allow: true}
  - {name: no-entry, on: {targets: [closed]}, commands: {verbs: [CONNECT]}, deny: {reason: nobody goes there}}
"""
DENIED = b'gatecast: access to "closed" denied by rule "no-entry": nobody goes there'
HELD = b'gatecast: held by rule "waiting": approval '


@pytest.fixture(scope="module")
def guarded(sshd: SshServer) -> Iterator[GatewayProcess]:
    rules = RULES.replace("KINDS", ALL_KINDS).replace("USER", getpass.getuser())
    targets: dict[str, dict[str, Any]] = {"closed": {}, "reviewed": {}, "gone": {"port": free_port()}}
    with (
        tempfile.TemporaryDirectory(prefix="gatecast-") as folder,
        ssh_gateway(Path(folder) / "gw", sshd, rules, targets=targets) as gateway,
    ):
        yield gateway


@pytest.fixture
def way(request: pytest.FixtureRequest, sshd: SshServer, guarded: GatewayProcess) -> Iterator[Runner]:
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        near, far = Path(folder) / "near", Path(folder) / "far"
        near.mkdir(mode=0o700)
        far.mkdir()
        runner = Runner("gateway", sshd, guarded, near, far, target=request.param)
        try:
            yield runner
        finally:
            runner.close()


LEVELS = ("INFO", "ERROR", "QUIET")


@pytest.mark.parametrize("way", ["closed"], indirect=True)
@pytest.mark.parametrize("level", LEVELS)
def test_a_denied_connection_says_why(way: Runner, level: str) -> None:
    done = way.ssh("echo in", "-o", f"LogLevel={level}")
    assert (done.returncode, done.stdout) == (255, b"") and DENIED in done.stderr
    with terminal(way, "-tt", "-o", f"LogLevel={level}", way.host, columns=200) as seat:
        assert DENIED.decode() in seat.until("ENDED 255")


@pytest.mark.parametrize("way", ["closed"], indirect=True)
def test_tools_that_run_ssh_show_it_too(way: Runner) -> None:
    (way.folder / "f").write_text("x")
    for options in ((), ("-O",)):
        done = way.scp("-o", "LogLevel=ERROR", *options, way.folder / "f", f"{way.host}:f")
        assert done.returncode and DENIED in done.stderr
    forward = way.ssh(None, "-W", "127.0.0.1:1", "-o", "LogLevel=INFO", input=None)
    assert forward.returncode == 255 and DENIED in forward.stderr


@pytest.mark.parametrize("way", ["gone"], indirect=True)
@pytest.mark.parametrize("level", LEVELS)
def test_a_target_that_cannot_be_reached_says_so(way: Runner, level: str) -> None:
    done = way.ssh("echo in", "-o", f"LogLevel={level}")
    assert (done.returncode, done.stdout) == (255, b"") and b"gatecast: the target cannot be reached" in done.stderr


def approvals(gateway: GatewayProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.json("approvals", "list")
    return found


@pytest.mark.parametrize("way", ["reviewed"], indirect=True)
@pytest.mark.parametrize("level", LEVELS)
def test_a_held_connection_says_so_and_goes_on(way: Runner, guarded: GatewayProcess, level: str) -> None:
    options = ["-o", f"LogLevel={level}", "-o", "SendEnv=LANG"]
    with way.started(*way.argv(*options, way.host, "cat; echo err >&2; exit 7")) as process:
        assert process.stdin is not None and process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(HELD) and b"(it is night)" in line
        name = line.split(HELD)[1].split()[0].decode()
        approved = guarded.gatecast("approvals", "approve", name)
        assert approved.returncode == 0, approved.stdout + approved.stderr
        data = bytes(range(256)) * 20_000
        out, err = process.communicate(data, timeout=60)
        assert (process.returncode, out == data, err) == (7, True, b"err\n")
    told = story(guarded.sealed(guarded.tapes()[-1]))
    assert told.sha256(0, "user") == told.sha256(0, "out")


@pytest.mark.parametrize("way", ["reviewed"], indirect=True)
def test_a_held_connection_for_files(way: Runner, guarded: GatewayProcess) -> None:
    data = way.folder / "data"
    data.write_bytes(bytes(300_000))
    for options in ((), ("-O",)):
        argv = [program("scp", "openssh-client"), "-F", way.config, *options, data, f"{way.host}:{way.remote}/copy"]
        with way.started(*argv) as process:
            assert process.stderr is not None
            name = process.stderr.readline().split(HELD)[1].split()[0].decode()
            assert guarded.gatecast("approvals", "approve", name).returncode == 0
            assert process.wait(60) == 0, process.stderr.read()
        assert (way.remote / "copy").read_bytes() == data.read_bytes()
        (way.remote / "copy").unlink()


@pytest.mark.parametrize("way", ["reviewed"], indirect=True)
def test_a_held_connection_that_is_denied_then(way: Runner, guarded: GatewayProcess) -> None:
    with way.started(*way.argv("-o", "LogLevel=ERROR", way.host, "echo in")) as process:
        assert process.stderr is not None and process.stdout is not None
        name = process.stderr.readline().split(HELD)[1].split()[0].decode()
        assert guarded.gatecast("approvals", "deny", name, "--reason", "not now").returncode == 0
        assert process.wait(30) == 255
        assert b"not now" in process.stderr.read() and process.stdout.read() == b""


@pytest.mark.parametrize("way", ["reviewed"], indirect=True)
def test_ctrl_c_takes_a_held_connection_back(way: Runner, guarded: GatewayProcess) -> None:
    with terminal(way, way.host, columns=200) as seat:
        seat.until("held by rule")
        seat.press("C-c")
        assert "withdrawn" in seat.until("ENDED 255")
    until(lambda: not [each for each in approvals(guarded) if each["state"] == "pending"], "withdrawal")


@pytest.mark.parametrize("way", ["reviewed"], indirect=True)
def test_a_user_who_leaves_takes_a_held_connection_back(way: Runner, guarded: GatewayProcess) -> None:
    with way.started(*way.argv(way.host, "echo in")) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.wait(30)
    until(lambda: not [each for each in approvals(guarded) if each["state"] == "pending"], "withdrawal")


@pytest.mark.parametrize("way", ["reviewed"], indirect=True)
def test_a_terminal_of_a_held_connection(way: Runner, guarded: GatewayProcess) -> None:
    with terminal(way, "-t", way.host, "stty size; exec cat", columns=200) as seat:
        name = seat.until("is pending").split("approval ")[-1].split()[0]
        assert guarded.gatecast("approvals", "approve", name).returncode == 0
        seat.until("24 200")
        seat.line("hello")
        seat.until_count("hello", 2)
