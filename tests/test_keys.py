"""Auditors' keys from the command line and the configuration to an encrypted tape, and back to who may read it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from proxy import cli
from proxy.checking import check_config, render_check
from proxy.core.errors import ConfigError
from proxy.snapshot import read_snapshot
from recorder.cipher import AuditorKey
from recorder.seal import SealKey
from recorder.tape import Kind
from tests.recorder.tapes import KEY, command, open_tape, recorder

Capture = pytest.CaptureFixture[str]
CONFIG = """\
listeners:
  - {name: pg, protocol: postgres, address: '127.0.0.1:6432', plain: true}
targets:
  - name: shop
    host: 127.0.0.1
    credential: {user: gate, password_env: SHOP_PASSWORD}
    encrypt_to:
      - ana.key.pub
      - more.pub
    original_to: ana.key.pub
rules: []
"""


def run(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """An encrypted tape of one command, for ana.key."""
    ana = AuditorKey.generate(tmp_path / "ana.key")

    async def scenario() -> Path:
        of = recorder(tmp_path / "tapes")
        tape = open_tape(of, recipients=[ana.recipient])
        n = command(tape, "SELECT 'canary-31'")
        tape.append(2, Kind.WIRE, b"canary-31\n")
        await tape.commit()
        assert n == 0
        await tape.close("closed")
        of.close()
        return tape.path

    (tmp_path / "seal.pub").write_bytes(KEY.public_pem())
    return asyncio.run(scenario())


# -- keys generate, keys show -------------------------------------------------------------------------------


def test_generate_makes_a_pair_and_says_what_to_do_with_it(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "ana.key"
    code, said, _ = run(capsys, "keys", "generate", str(file))
    key = AuditorKey.load(file)
    assert code == 0
    for words in (key.id, "ana.key.pub", "encrypt_to: [ana.key.pub]", "away from the gateway", "--identity"):
        assert words in said
    assert "PRIVATE" not in said
    code, _, error = run(capsys, "keys", "generate", str(file))
    assert code == 1
    assert "already" in error
    assert AuditorKey.load(file).id == key.id


def test_generate_for_scripts(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "leo.key"
    code, said, _ = run(capsys, "keys", "generate", str(file), "--json")
    assert (code, json.loads(said)) == (
        0,
        {"id": AuditorKey.load(file).id, "private": str(file), "public": f"{file}.pub"},
    )


def test_show_tells_to_whom_a_tape_is_encrypted(tape: Path, tmp_path: Path, capsys: Capture) -> None:
    ana = AuditorKey.load(tmp_path / "ana.key")
    keys_file = tape.with_name(tape.name.replace(".000.gct", ".keys"))
    for file in (tape, keys_file):
        code, said, _ = run(capsys, "keys", "show", str(file))
        assert code == 0
        assert ana.id in said
        assert tape.name.partition(".")[0] in said
    found = json.loads(run(capsys, "keys", "show", str(tape), "--json")[1])
    assert (found["encrypted"], found["erased"], found["track"]) == (True, False, "main")
    assert found["recipients"] == [{"id": ana.id, "suite": "hpke-x25519-sha256-aes256gcm"}]
    keys_file.unlink()
    assert "erased" in run(capsys, "keys", "show", str(tape))[1]
    code, _, error = run(capsys, "keys", "show", str(tmp_path / "seal.pub"))
    assert (code, "neither a tape nor its .keys file" in error) == (1, True)


# -- --identity ---------------------------------------------------------------------------------------------


def test_verify_takes_no_key_and_looks_inside_with_one(tape: Path, tmp_path: Path, capsys: Capture) -> None:
    seal, ana = str(tmp_path / "seal.pub"), str(tmp_path / "ana.key")
    code, said, _ = run(capsys, "verify", str(tape), "--key", seal)
    assert code == 0
    assert said.startswith("verified")
    assert "not looked into" in said
    code, said, _ = run(capsys, "verify", str(tape), "--key", seal, "--identity", ana)
    assert (code, "looked" in said) == (0, False)
    tape.with_name(tape.name.replace(".000.gct", ".keys")).unlink()
    code, said, _ = run(capsys, "verify", str(tape), "--key", seal, "--json")
    [one] = json.loads(said)["tapes"]
    assert (code, one["status"], one["content"], one["commands"]) == (0, "verified", "erased", 1)
    assert "nobody can read" in run(capsys, "verify", str(tape), "--key", seal)[1]


@pytest.mark.parametrize(
    "words", [["replay"], ["replay", "--plain"], ["export", "--format", "jsonl"], ["export", "--format", "txt"]]
)
def test_replay_and_export_need_a_key_and_say_which(
    words: list[str], tape: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.txt"
    # What a command prints may go past sys.stdout: into a file, where there is a way.
    to = ["-o", str(out)] if words[0] == "export" else []
    AuditorKey.generate(tmp_path / "eve.key")
    for wrong in ([], ["--identity", "eve.key"]):
        code, _, error = run(capsys, words[0], str(tape), *words[1:], *to, *wrong)
        assert code == 1
        assert f"encrypted to key {AuditorKey.load(tmp_path / 'ana.key').id}; give --identity FILE with it" in error
        assert not out.exists()
    code, _, error = run(capsys, words[0], str(tape), *words[1:], *to, "--identity", "eve.key", "--identity", "ana.key")
    assert (code, error) == (0, "")
    if to:
        assert "canary-31" in out.read_text()


def test_show_lists_what_it_may(tape: Path, tmp_path: Path, capsys: Capture) -> None:
    code, said, _ = run(capsys, "sessions", "show", str(tape))
    assert code == 0
    assert "canary" not in said
    assert "--identity" in said
    code, said, _ = run(capsys, "sessions", "show", str(tape), "--identity", str(tmp_path / "ana.key"))
    assert (code, "canary-31" in said) == (0, True)


def test_a_key_that_others_can_read_is_refused(tape: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "ana.key").chmod(0o644)
    code, _, error = run(capsys, "sessions", "show", str(tape), "--identity", str(tmp_path / "ana.key"))
    assert (code, "0600" in error) == (1, True)


# -- configuration ------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    ana = AuditorKey.generate(tmp_path / "ana.key")
    others = [AuditorKey.generate(tmp_path / name) for name in ("leo.key", "mia.key")]
    (tmp_path / "more.pub").write_bytes(b"".join(key.public_pem() for key in [*others, ana]))
    path = tmp_path / "gatecast.yaml"
    path.write_text(CONFIG)
    return path


def test_a_target_names_its_readers(config: Path) -> None:
    snapshot = read_snapshot(config, bytes(32))
    target = snapshot.targets["shop"]
    folder = config.parent
    ids = [AuditorKey.load(folder / name).id for name in ("ana.key", "leo.key", "mia.key")]
    assert [one.id for one in target.encrypt_to] == ids  # each once, in the order of the file
    assert [one.id for one in target.original_to] == ids[:1]
    assert {folder / "ana.key.pub", folder / "more.pub"} <= snapshot.files  # a change of them is a reload
    found = check_config(config)
    shown = render_check(found)
    assert f"tapes encrypted to {', '.join(ids)}" in shown
    assert f"originals kept for {ids[0]}" in shown


def test_a_reload_changes_new_sessions_only(config: Path) -> None:
    before = read_snapshot(config, bytes(32)).targets["shop"]
    (config.parent / "more.pub").write_bytes((config.parent / "leo.key.pub").read_bytes())
    after = read_snapshot(config, bytes(32)).targets["shop"]
    assert (len(before.encrypt_to), len(after.encrypt_to)) == (3, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the key: No such file"),
        (b"", "holds no public key"),
        (b"private", "holds a private key, which stays with its owner"),
        (b"seal", "holds a key that is not X25519"),
    ],
)
def test_a_key_file_that_is_wrong_is_told_with_its_line(config: Path, content: bytes | None, words: str) -> None:
    file = config.parent / "more.pub"
    match content:
        case None:
            file.unlink()
        case b"private":
            file.write_bytes((config.parent / "leo.key").read_bytes())
        case b"seal":
            file.write_bytes(SealKey.generate().public_pem())
        case _:
            file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_snapshot(config, bytes(32))
    assert str(error.value).startswith(f"{config}:9: targets[0].encrypt_to[1]: {file}: {words}")
    (config.parent / "ana.key.pub").unlink()
    with pytest.raises(ConfigError) as error:
        read_snapshot(config, bytes(32))
    lines = [line.removeprefix(f"{config}:").partition(":")[0] for line in str(error.value).splitlines()]
    assert lines == ["8", "9", "10"]  # all at once; a single file stands without a list
