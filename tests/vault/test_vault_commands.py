"""The vault in a running gateway, by its command line: status, fetch, reading back, holds, expiry, erasure, checks."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import protocols
from proxy import cli, logging
from proxy.app import Gateway
from proxy.config import load_config
from proxy.core.errors import ConfigError
from proxy.sections import VaultSection
from proxy.vault.service import VaultService
from proxy.vault.settings import options_of, retention_of
from recorder.cipher import AuditorKey
from recorder.nodelog import NodeLog, log_directory
from recorder.retention import DAY_SECONDS, SessionFacts
from recorder.seal import SealKey
from recorder.vault_expiry import Tombstones
from recorder.vault_state import State, elsewhere
from recorder.verify import verify
from tests import toy
from tests.recorder.tapes import KEY
from tests.test_app import CONFIG, RULES, run, token_of
from tests.vault.buckets import Clock, local_files, write_tape

PATIENCE_SECONDS = 10.0


@pytest.fixture(autouse=True)
def toy_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**protocols.load(), "toy": toy.PROTOCOL}
    monkeypatch.setattr(protocols, "load", lambda: known)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The gateway's log goes where a command's output does not."""
    logging.configure("error", StringIO())
    yield
    logging.configure("info", StringIO())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gateway's folder with a vault in a directory; the recorded session has ended two days ago."""
    vault = f"vault: {{url: '{(tmp_path / 'bucket').as_uri()}', keep_local_days: 0, retention_days: 1}}\n"
    (tmp_path / "gatecast.yaml").write_text(CONFIG + vault)
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "state" / "tapes").mkdir(parents=True, mode=0o700)
    (tmp_path / "state").chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATECAST_CONFIG", raising=False)
    monkeypatch.delenv("GATECAST_TOKEN", raising=False)
    return tmp_path


def record(folder: Path, **more: Any) -> str:
    return asyncio.run(write_tape(folder / "state" / "tapes", Clock(time.time() - 2 * DAY_SECONDS), **more))


def service_of(gateway: Gateway) -> VaultService:
    assert gateway.services.vault is not None
    return gateway.services.vault


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():
            await asyncio.sleep(0.01)


class Shell:
    """Runs commands as an operator does, in a thread beside the gateway."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.code = 0
        self.err = ""

    async def __call__(self, *words: str, token: str = "") -> str:
        self._capsys.readouterr()
        if token:
            os.environ["GATECAST_TOKEN"] = token
        try:
            self.code = await asyncio.to_thread(cli.main, words)
        finally:
            os.environ.pop("GATECAST_TOKEN", None)
        out, self.err = self._capsys.readouterr()
        return out

    async def json(self, *words: str, token: str = "") -> Any:
        return json.loads(await self(*words, "--json", token=token))


def test_a_session_leaves_is_read_back_held_and_deleted_by_two(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sid = record(folder, segments=2)
    tapes = folder / "state" / "tapes"
    shell = Shell(capsys)
    log = NodeLog(log_directory(tapes, "node-1"), KEY, "example.org/node-1")

    async def body(gateway: Gateway) -> None:
        service = service_of(gateway)
        service.expiry.tombstones = log
        await until(lambda: local_files(tapes) == [])
        status = await shell.json("vault", "status")
        assert status["backlog"]["count"] == 0
        assert status["states"]["local-purged"]["count"] > 1
        assert status["free_bytes"] > 0
        assert "local-purged" in await shell("vault", "status")
        assert elsewhere(tapes)(sid)
        # Reading back: each command fetches what it needs, and says so.
        shown = await shell.json("sessions", "show", sid[:10])
        assert shown["sid"] == sid
        assert "reading it from the vault" in shell.err
        assert "SELECT 0" in await shell("export", sid, "--format", "txt")
        fetched = await shell.json("vault", "fetch", sid, "--to", str(folder / "case"))
        assert (fetched["checked"], fetched["erased"]) == (True, False)
        assert verify(folder / "case", KEY.public_keys()).status == "verified"
        assert await shell("vault", "fetch", "01ZZZZZZ") == ""
        assert (shell.code, "knows no session" in shell.err) == (1, True)
        # A hold keeps it.
        hold = await shell.json("vault", "hold", "add", "--matter", "case 7", "--session", sid[:12])
        assert hold["session"] == sid
        assert "case 7" in await shell("vault", "hold", "list")
        assert "HELD by" in await shell("vault", "expire", "--dry-run")
        await shell("vault", "hold", "release", hold["id"], "--reason", "closed")
        # Two people.
        dry = await shell.json("vault", "expire", "--dry-run")
        assert [one["sid"] for one in dry["sessions"]] == [sid]
        token = dry["plan"]["token"]
        assert await shell("vault", "expire", "--confirm", token) == ""
        assert "somebody else" in shell.err
        mia, _ = token_of(folder, "mia@acme")
        done = await shell.json("vault", "expire", "--confirm", token, token=mia)
        assert (done["sessions"], done["confirmed_by"]) == ([sid], "mia@acme")
        await until(lambda: not [one for one in (folder / "bucket" / "tapes").rglob("*") if one.is_file()])
        await until(lambda: not service.vault.state.removals())
        history = await shell("vault", "history")
        for word in ("hold-added", "hold-released", "expire-asked", "expire-confirmed", "expire-done", "mia@acme"):
            assert word in history
        assert await shell("replay", sid) == ""
        assert "has expired" in shell.err

    run(folder, body)
    assert b"retention: 1 days (default)" in b"".join(path.read_bytes() for path in (tapes / "log").rglob("*/000.p/*"))


def test_erasure_by_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auditor = AuditorKey.generate(folder / "auditor.key")
    sid = record(folder, recipients=(auditor.recipient,))
    tapes = folder / "state" / "tapes"
    shell = Shell(capsys)

    async def body(gateway: Gateway) -> None:
        service = service_of(gateway)
        service.expiry.tombstones = NodeLog(log_directory(tapes, "node-1"), KEY, "example.org/node-1")
        await until(lambda: local_files(tapes) == [])
        assert "SELECT 0" in await shell("export", sid, "--format", "txt", "--identity", "auditor.key")
        assert await shell("sessions", "erase", sid) == ""
        assert "--reason" in shell.err
        plan = (await shell.json("sessions", "erase", sid, "--reason", "GDPR 17"))["plan"]
        mia, _ = token_of(folder, "mia@acme")
        await shell("sessions", "erase", "--confirm", plan["token"], token=mia)
        await until(lambda: not service.vault.state.removals())
        assert not list((folder / "bucket").rglob("*.keys"))
        assert not (folder / "state" / "vault-cache" / sid).exists()  # nor does a copy that was read stay
        text = await shell("export", sid, "--format", "txt", "--identity", "auditor.key")
        assert "SELECT 0" not in text
        assert "keys were erased" in shell.err

    run(folder, body)


def test_what_needs_a_vault_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gatecast.yaml").write_text(CONFIG)
    for words in (["status"], ["fetch", "01KA"], ["hold", "list"], ["expire", "--dry-run"], ["history"]):
        assert cli.main(["vault", *words]) == 1
        assert "there is no vault; add 'vault:" in capsys.readouterr().err
    assert cli.main(["replay", "01KA"]) == 1
    assert "no session 01KA" in capsys.readouterr().err


def test_config_check_says_what_the_vault_would_do_and_tries_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "check"]) == 0
    assert "0 days here, 1 in all" in capsys.readouterr().out
    assert not (folder / "bucket").exists()
    assert cli.main(["config", "check", "--connect"]) == 0
    assert "which takes and keeps what it is given" in capsys.readouterr().out
    assert (folder / "bucket" / "probe" / "gatecast").exists()
    (folder / "bucket").rename(folder / "was")
    (folder / "bucket").write_text("a file")
    assert cli.main(["config", "check", "--connect"]) == 1
    assert "gatecast.yaml:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vault: {url: 's3://b/p', options: {secret_access_key: x}}", "secret_access_key is a secret"),
        ("vault: {url: 's3://b/p', options: {azure_storage_account_key: x}}", "is a secret"),
        ("vault: {url: 's3://b/p', options: {session_token: x}}", "is a secret"),
        ("vault: {url: 'http://b/p'}", "write s3://bucket/prefix"),
        ("vault: {url: 's3://u:p@b/p'}", "write s3://bucket/prefix"),
        ("vault: {keys_url: 's3://b/p'}", "keys_url goes with url"),
        ("vault: {retention: [{days: 1, match: {verdict: maybe}}]}", "maybe is no verdict"),
        ("vault: {retention: [{days: 0}]}", "greater than or equal to 1"),
        ("vault: {concurrency: 17}", "less than or equal to 16"),
        ("vault: {keep_lokal_days: 1}", "did you mean keep_local_days"),
    ],
)
def test_wrong_settings_are_refused_with_their_line(folder: Path, text: str, said: str) -> None:
    (folder / "gatecast.yaml").write_text(f"{CONFIG}{text}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(folder / "gatecast.yaml", frozenset(protocols.load()))
    assert "gatecast.yaml:" in str(caught.value)


def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    (tmp_path / "key").chmod(0o600)
    options: dict[str, str | bool | int] = {
        "region": "eu",
        "skip_signature": True,
        "secret_access_key_env": "KEY",
        "session_token_file": "key",
    }
    section = VaultSection(url="s3://b/p", options=options)

    def resolve(path: Path) -> Path:
        return tmp_path / path

    assert options_of(section.options, resolve, {"KEY": "from-env"}) == {
        "region": "eu",
        "skip_signature": "true",
        "secret_access_key": "from-env",
        "session_token": "from-file",
    }
    with pytest.raises(ConfigError, match="KEY is not set"):
        options_of(section.options, resolve, {})
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        options_of(section.options, resolve, {"KEY": "x"})


def test_terms_come_from_the_configuration() -> None:
    section = VaultSection.model_validate(
        {"retention_days": 30, "retention": [{"match": {"target": "shop-*", "labels": {"env": "prod"}}, "days": 2190}]}
    )
    facts = SessionFacts("s", "postgres", "shop-eu", "ana", 0.0, 0.0, {"env": "prod"}, frozenset())
    assert retention_of(section).term_of(facts) == (2190, "retention 1")
    assert retention_of(VaultSection()).term_of(facts) == (400, "default")


def test_a_node_log_takes_tombstones(tmp_path: Path) -> None:
    stones: Tombstones = NodeLog(log_directory(tmp_path, "gw1"), SealKey.generate(), "example.org/gw1")
    assert stones is not None


def test_states_are_all_reached_by_the_table() -> None:
    from recorder.vault_state import TRANSITIONS

    assert set(TRANSITIONS.values()) | {State.ACTIVE} == set(State)
