"""gatecast keys rotate-seal: tapes of both keys verify, a crash at any point loses nothing; the old key is retired."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import protocols
from proxy import cli
from proxy.config import load_config
from proxy.core.errors import ConfigError
from proxy.rotation import rotate_seal
from proxy.services import lock_state, node_log_of
from recorder.disk import Disk
from recorder.ledger import NodeLedger
from recorder.logentry import KeyRotate, decode_entry
from recorder.nodelog import NodeLog
from recorder.seal import SealKey, load_public_keys, public_path
from recorder.tape import Kind, Recorder
from recorder.verify import verify
from tests.recorder.tapes import command, open_tape

ROOT = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]
CONFIG = """\
node: {name: gw1}
state: state
listeners:
  - {name: pg, protocol: postgres, address: '127.0.0.1:6432', plain: true}
targets: []
rules: []
"""


class FailingDisk(Disk):
    """Fails at the call with this number of those that change a name or make it durable."""

    def __init__(self, fail_at: int) -> None:
        self.calls, self.fail_at = 0, fail_at

    def _count(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise OSError(errno.EIO, "Input/output error")

    def rename(self, path: Path, to: Path) -> None:
        self._count()
        super().rename(path, to)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gatecast.yaml"
    path.write_text(CONFIG)
    record(path, "SELECT 1")
    return path


def log_of(config: Path) -> NodeLog:
    return node_log_of(load_config(config, frozenset(protocols.load())))


def record(config: Path, text: str, *, crash: bool = False) -> None:
    """Record a session as the gateway does, with the key and the log that it has; crash: end this process in it."""
    state = config.parent / "state"
    ledger = NodeLedger(log_of(config), "b", "1")
    of = Recorder(state / "tapes", SealKey.load(state / "seal.key"), node="gw1", boot="b", ledger=ledger)

    async def scenario() -> None:
        tape = open_tape(of)
        command(tape, text)
        tape.append(2, Kind.WIRE, b"answer\n")
        await tape.commit()
        if crash:
            os._exit(9)
        await tape.close("closed")

    of.start()
    asyncio.run(scenario())
    of.close()


def rotations(config: Path) -> int:
    log = log_of(config)
    entries = [decode_entry(raw) for raw in log.files.entries(log.checkpoint().size)]
    return sum(isinstance(entry, KeyRotate) for entry in entries)


def test_tapes_of_both_keys_verify_and_neither_key_alone_does(config: Path, capsys: Capture) -> None:
    state = config.parent / "state"
    before = load_public_keys(public_path(state / "seal.key"))
    assert cli.main(["keys", "rotate-seal", "-c", str(config), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    record(config, "SELECT 2")
    both = load_public_keys(Path(said["public"]))
    assert set(both) == {said["old"], said["new"]} == {*before, SealKey.load(state / "seal.key").id}
    report = verify(state / "tapes", both)
    assert (report.status, len(report.tapes), rotations(config)) == ("verified", 2, 1)
    assert verify(state / "tapes", before).status != "verified"
    assert verify(state / "tapes", {said["new"]: both[said["new"]]}).status != "verified"
    assert sorted(path.name for path in state.glob("seal*")) == ["seal.key", "seal.key.pub"]
    assert (state / "seal.key").stat().st_mode & 0o777 == 0o600


def test_it_says_what_to_do_with_the_public_keys(config: Path, capsys: Capture) -> None:
    assert cli.main(["keys", "rotate-seal", "-c", str(config)]) == 0
    said = capsys.readouterr().out
    assert "seal.key.pub" in said
    assert "Give it to whoever verifies" in said


def test_a_session_that_a_crash_left_is_sealed_by_the_old_key_first(config: Path) -> None:
    state = config.parent / "state"
    key = (state / "seal.key").read_bytes()
    crash = "import sys, pathlib; from tests.test_rotation import record;"
    crash += "record(pathlib.Path(sys.argv[1]), 'SELECT 3', crash=True)"
    done = subprocess.run([sys.executable, "-c", crash, str(config)], cwd=ROOT, check=False)
    assert done.returncode == 9
    rotated = rotate_seal(config)
    assert rotated.recovered == 1
    assert (state / "seal.key").read_bytes() != key
    report = verify(state / "tapes", load_public_keys(rotated.public))
    assert report.status == "incomplete"  # the crash, and nothing else
    assert sorted(tape.ended for tape in report.tapes) == ["closed", "crashed"]
    assert {name for tape in report.tapes for name in tape.keys} == {rotated.old}


@pytest.mark.parametrize("fail_at", range(5))
def test_it_goes_on_where_a_failing_disk_ended_it(config: Path, fail_at: int) -> None:
    """rename and sync of the public file, sync of the new key, rename and sync of the key: each fails once."""
    state = config.parent / "state"
    disk = FailingDisk(fail_at)
    with pytest.raises(ConfigError, match="type the command again"):
        rotate_seal(config, disk)
    if (state / "seal.key.next").exists():
        with pytest.raises(ConfigError, match="rotation of the seal key was interrupted"):
            log_of(config)  # what a start of the gateway does
        rotate_seal(config)
    assert rotations(config) == 1
    record(config, "SELECT 4")
    report = verify(state / "tapes", load_public_keys(public_path(state / "seal.key")))
    assert (report.status, len(report.tapes)) == ("verified", 2)


def test_not_while_the_gateway_runs(config: Path, capsys: Capture) -> None:
    state = config.parent / "state"
    key = (state / "seal.key").read_bytes()
    with lock_state(state):
        assert cli.main(["keys", "rotate-seal", "-c", str(config)]) == 1
    assert "another gatecast" in capsys.readouterr().err
    assert ((state / "seal.key").read_bytes(), rotations(config)) == (key, 0)


def test_without_a_key_there_is_nothing_to_rotate(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "gatecast.yaml").write_text(CONFIG)
    assert cli.main(["keys", "rotate-seal", "-c", str(tmp_path / "gatecast.yaml")]) == 1
    assert "there is no key yet" in capsys.readouterr().err
    assert not (tmp_path / "state" / "seal.key.next").exists()


def test_a_log_that_is_not_ours_is_left_alone(config: Path, capsys: Capture) -> None:
    state = config.parent / "state"
    (state / "seal.key").unlink()
    other = SealKey.load(state / "seal.key")
    assert cli.main(["keys", "rotate-seal", "-c", str(config)]) == 1
    assert "signed by another key" in capsys.readouterr().err
    assert SealKey.load(state / "seal.key").id == other.id
    (state / "seal.key.next").unlink(missing_ok=True)
