"""Gateway tokens: made, stored as a hash only, checked, expired, revoked from another process."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.identity import commands
from proxy.identity.proof import PROOF_LIMIT, ProofRefused
from proxy.identity.tokens import DAY_SECONDS, DEFAULT_SECONDS, TokenError, Tokens
from proxy.store.database import Database, StoreError
from proxy.store.schema import MIGRATIONS
from tests.identity.stores import Clock, opened


def refusal(tokens: Tokens, text: str) -> str:
    with pytest.raises(ProofRefused) as caught:
        asyncio.run(tokens.check(text))
    assert text not in str(caught.value)
    return caught.value.why


def test_a_token_proves_its_subject_groups_and_agents(tmp_path: Path) -> None:
    with opened(tmp_path / "g.db") as database:
        clock = Clock()
        tokens = Tokens(database, clock=clock)
        secret, token = tokens.issue("alice@example.com", ["dba", "dev"], ["orchestrator", "claude"], note="laptop")
        identity, token_id = asyncio.run(tokens.check(secret.reveal()))
        assert identity.subject == "alice@example.com"
        assert identity.groups == {"dba", "dev"}
        assert identity.agents == ("orchestrator", "claude")
        assert identity.expires_at == clock.now + DEFAULT_SECONDS
        assert (identity.proof, token_id) == (token.hash, token.id)


def test_only_the_hash_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "g.db"
    issued = commands.token_issue(path, "alice")
    secret = issued["token"].rpartition("_")[2]
    assert len(secret) == 43
    with opened(path):  # the -wal is there while a connection is
        for file in path.parent.iterdir():
            assert secret.encode() not in file.read_bytes()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    listed = commands.token_list(path)
    assert secret not in repr(listed)
    assert secret not in commands.render_tokens(listed)
    assert issued["token"] in commands.render_issued(issued)


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    path.touch(mode=0o644)
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_wrong_tokens_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "g.db") as database:
        clock = Clock()
        tokens = Tokens(database, clock=clock)
        secret, token = tokens.issue("alice", seconds=100)
        text = secret.reveal()
        other = "A" if text[-1] != "A" else "B"
        assert refusal(tokens, text[:-1] + other) == "unknown-token"
        assert refusal(tokens, text.replace(token.id, "a" * 10)) == "unknown-token"
        for bad in ("gct_", text[:-1], text + "a", text + "\n", text.replace("_", "-"), "gct_" + "a" * PROOF_LIMIT):
            assert refusal(tokens, bad) == "malformed-token"
        assert refusal(tokens, "gct_\udcff") == "not-utf8"
        clock.advance(99)
        asyncio.run(tokens.check(text))
        clock.advance(1)
        assert refusal(tokens, text) == "expired-token"


def test_revoked_by_id_or_by_the_token_itself(tmp_path: Path) -> None:
    with opened(tmp_path / "g.db") as database:
        clock = Clock()
        tokens = Tokens(database, clock=clock)
        first, token = tokens.issue("alice")
        second, _ = tokens.issue("alice")
        assert tokens.revoke(token.id).revoked == clock.now
        clock.advance(5)
        assert tokens.revoke(token.id).revoked == clock.now - 5, "the first time counts"
        tokens.revoke(second.reveal())
        assert refusal(tokens, first.reveal()) == refusal(tokens, second.reveal()) == "revoked-token"
        with pytest.raises(TokenError, match="no such token"):
            tokens.revoke("nothing")


@pytest.mark.parametrize(
    ("subject", "groups", "agents"),
    [
        ("", [], []),
        (" alice", [], []),
        ("a\nb", [], []),
        ("a\x1b[2Jb", [], []),
        ("a" * 257, [], []),
        ("group:dba", [], []),
        ("Local:root", [], []),
        ("alice", [""], []),
        ("alice", [str(n) for n in range(1001)], []),
        ("alice", [], ["a"] * 9),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, subject: str, groups: list[str], agents: list[str]) -> None:
    with opened(tmp_path / "g.db") as database, pytest.raises(TokenError):
        Tokens(database).issue(subject, groups, agents)


def test_a_token_always_ends(tmp_path: Path) -> None:
    with opened(tmp_path / "g.db") as database:
        tokens = Tokens(database, clock=Clock(0.0), max_seconds=10 * DAY_SECONDS)
        assert tokens.issue("a")[1].expires == 10 * DAY_SECONDS
        assert tokens.issue("a", seconds=10 * DAY_SECONDS)[1].expires == 10 * DAY_SECONDS
        for seconds in (0.0, -1.0, 10 * DAY_SECONDS + 1, float("inf"), float("nan")):
            with pytest.raises(TokenError):
                tokens.issue("a", seconds=seconds)


def test_two_processes_use_one_file(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    issued = commands.token_issue(path, "alice")
    with opened(path) as database:
        before = asyncio.run(database.changes())
        code = (
            "import sys; from pathlib import Path; from proxy.identity import commands; "
            "commands.token_revoke(Path(sys.argv[1]), sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", code, str(path), issued["id"]], check=True, timeout=60)
        assert asyncio.run(database.changes()) != before
        assert refusal(Tokens(database), issued["token"]) == "revoked-token"


def test_the_store_refuses_a_newer_file_and_garbage(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    with opened(path) as database:
        assert database.call(lambda c: c.execute("PRAGMA user_version").fetchone()[0]) == len(MIGRATIONS)
        database.call(lambda c: c.execute("PRAGMA user_version = 99") and None)
    with pytest.raises(StoreError, match="newer gatecast"):
        Database(path).open()
    (tmp_path / "garbage").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        Database(tmp_path / "garbage").open()


def test_a_failed_piece_of_work_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "g.db") as database:
        tokens = Tokens(database)
        tokens.lock("alice")

        def half(connection: object) -> None:
            connection.execute("DELETE FROM locks")  # type: ignore[attr-defined]
            raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError):
            database.call(half)
        assert [lock.subject for lock in tokens.locks()] == ["alice"]
    with pytest.raises(StoreError, match="closed"):
        tokens.locks()


def test_commands_speak_iso_and_hide_escapes(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    clock = Clock(0.0)
    issued = commands.token_issue(path, "alice", groups=["b", "a"], agents=["claude"], seconds=60, clock=clock)
    assert issued["expires"] == "1970-01-01T00:01:00Z"
    assert (issued["groups"], issued["used"], issued["state"]) == (["a", "b"], None, "active")
    assert "claude for alice" in commands.render_tokens(commands.token_list(path, clock=clock))
    clock.advance(60)
    assert commands.token_list(path, subject="alice", clock=clock)[0]["state"] == "expired"
    assert commands.token_list(path, subject="bob", clock=clock) == []
    assert "1970-01-01T00:01:00Z" in commands.render_revoked(commands.token_revoke(path, issued["id"], clock=clock))
    assert commands.subject_lock(path, "bob", clock=clock)["subject"] == "bob"
    assert commands.subject_locks(path)[0]["created"] == "1970-01-01T00:01:00Z"
    assert commands.subject_unlock(path, "bob") == {"subject": "bob", "unlocked": True}
    assert commands.subject_unlock(path, "bob")["unlocked"] is False
