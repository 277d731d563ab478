"""gatecast config check on the places of the node's log; verify's hint where sessions have left for the vault."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from proxy import cli
from proxy.checking import check_config, render_check
from proxy.core.errors import ConfigError
from recorder import vault_state
from recorder.ledger import NodeLedger
from recorder.nodelog import NodeLog, log_directory
from recorder.seal import SealKey
from recorder.tape import Recorder
from tests.recorder.tapes import command, open_tape

Capture = pytest.CaptureFixture[str]
CONFIG = """\
node: {{name: gw1}}
state: state
listeners:
  - {{name: pg, protocol: postgres, address: '127.0.0.1:6432', plain: true}}
recorder:
  anchors: [{{url: "file://{anchor}"}}]
  witnesses: [{{url: "https://witness.example.com", key: "{key}"}}]
rules: []
"""


def write(folder: Path, anchor: Path, key: str) -> Path:
    path = folder / "gatecast.yaml"
    path.write_text(CONFIG.format(anchor=anchor, key=key))
    return path


def test_it_shows_anchors_and_witnesses_and_warns_of_one_on_the_same_disk(tmp_path: Path) -> None:
    found = check_config(write(tmp_path, tmp_path / "anchors" / "deep", witness_key()))
    shown = render_check(found)
    assert f"anchor    file://{tmp_path}/anchors/deep" in shown
    assert "witness   witness.example.com at https://witness.example.com" in shown
    (warning,) = [text for text in found["warnings"] if "anchor" in text]
    assert "gatecast.yaml:6" in warning
    assert "on the disk of the tapes" in warning


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_an_anchor_on_another_file_system_is_no_doubt(tmp_path: Path) -> None:
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the tests' directory is there, too")
    found = check_config(write(tmp_path, Path("/dev/shm/gatecast-anchors"), witness_key()))
    assert not [text for text in found["warnings"] if "anchor" in text]


def test_a_witness_with_a_wrong_key_is_a_mistake_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gatecast\.yaml:7: recorder\.witnesses"):
        check_config(write(tmp_path, tmp_path, "witness.example.com+00000000+AAAA"))


def witness_key() -> str:
    """A verifier key of type 04, as a witness publishes it. Source: C2SP tlog-cosignature, signed-note."""
    name, raw = "witness.example.com", b"\x04" + bytes(range(32))
    key_id = sha256(name.encode() + b"\n" + raw).hexdigest()[:8]
    return f"{name}+{key_id}+{b64encode(raw).decode()}"


def test_verify_says_that_missing_sessions_are_in_the_vault_by_its_own_account(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapes = tmp_path / "tapes"
    key = SealKey.load(tmp_path / "seal.key")
    ledger = NodeLedger(NodeLog(log_directory(tapes, "gw1"), key, "gatecast/gw1"), "b", "1")
    of = Recorder(tapes, key, node="gw1", boot="b", ledger=ledger)

    async def scenario() -> Path:
        tape = open_tape(of)
        command(tape, "SELECT 1")
        await tape.commit()
        await tape.close("closed")
        return tape.path

    path = asyncio.run(scenario())
    of.close()
    arguments = ["verify", str(tapes), "--key", str(tmp_path / "seal.key.pub")]
    assert cli.main(arguments) == 0
    path.unlink()
    capsys.readouterr()
    assert cli.main(arguments) == 1
    assert "vault" not in capsys.readouterr().out
    monkeypatch.setattr(vault_state, "elsewhere", lambda directory: {path.name[:26]}.__contains__)
    assert cli.main(arguments) == 1  # a hint; nothing is believed
    said = capsys.readouterr().out
    assert "1 of 1 that are missing here are in the vault, by its own account" in said
    assert f"--elsewhere {tapes}/vault.db" in said


def test_that_nothing_could_be_judged_is_not_altered(tmp_path: Path) -> None:
    assert cli.main(["verify", str(tmp_path), "--key", str(tmp_path / "none.pub")]) == 3


def test_rules_may_speak_of_a_target_that_is_wrong_itself(tmp_path: Path) -> None:
    (tmp_path / "gatecast.yaml").write_text(
        "listeners: [{name: ssh, protocol: ssh, address: '127.0.0.1:0'}]\n"
        "targets:\n  - {name: web, protocol: ssh, host: web, credential: {user: x, password_env: X}, "
        "ssh: {known_hosts: not-there}}\n"
        "rules: [{name: all, on: {targets: [web]}, allow: true}, {name: none, on: {targets: [wob]}, deny: true}]\n"
    )
    with pytest.raises(ConfigError) as raised:
        check_config(tmp_path / "gatecast.yaml")
    problems = str(raised.value).splitlines()
    assert len(problems) == 2
    assert "gatecast.yaml:3: targets[0]" in problems[0]
    assert "not-there: cannot be read" in problems[0]
    assert "no configured target is called 'wob'" in problems[1]
