"""``gatecast sessions list|search|show|reindex`` as they are typed: output, JSON, notes, hostile tapes, no index."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import cli
from proxy.example import write_example
from proxy.sessions import commands
from proxy.sessions.text import Paper, list_text, search_text, show_text
from recorder.cli import show
from recorder.index import Index, Updated
from recorder.index_query import Wanted, find_commands, find_sessions
from recorder.index_schema import update_lock
from recorder.tape import GATE, USER, Kind
from tests.recorder.tapes import command, open_tape, pack, recorder, small_tape

EVIL = "DROP TABLE orders \x1b]52;c;ZXZpbA==\x07\x9b31m\u202e\r\nfake\x00line"


@pytest.fixture
def tapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A configured gateway's directory of tapes, with one session of each sort; one is live."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATECAST_CONFIG", raising=False)
    write_example(Path(".gatecast"), io.StringIO())
    directory = tmp_path / ".gatecast" / "tapes"
    of = recorder(directory)

    async def scenario() -> None:
        await small_tape(of)
        identity = {"subject": "ana\x1b[2J@acme", "agents": ["bot"], "issuer": "tokens", "proof": "ab" * 32}
        tape = open_tape(of, identity=identity, run="run-7")
        tape.append(USER, Kind.INTENT, pack({"text": "refund \x1b[1m812"}))
        n = command(tape, "UPDATE orders SET x = 1", verb="UPDATE", verdict=None, objects=["public.orders"])
        pending = {"id": "ap_1", "state": "pending", "rule": "writes", "approvers": ["group:oncall"]}
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, **pending}))
        approved = {"id": "ap_1", "state": "approved", "by": "mia@acme", "reason": "ok \x1b[0m"}
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, **approved}))
        verdict = {"verdict": "allow", "rule": "writes", "approval": "ap_1", "masks": ["no-pii"]}
        tape.append(GATE, Kind.VERDICT, pack({"command": n, **verdict}))
        masked = [["email", 1, "no-pii"], ["e\x1b[2J", 2, "no-pii"], ["note", 3, "cards"]]
        tape.append(GATE, Kind.MASKMAP, pack({"command": n, "fields": masked, "scanned": [3]}))
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "UPDATE 1", "count": 1, "bytes": 9}))
        command(tape, EVIL, verb="DROP", verdict="deny", objects=["public.orders"])
        n = command(tape, "SELECT " + "x " * 300 + "needle " + "y " * 300)
        error = {"severity": "ERROR", "code": "42P01", "message": "no such \x1b[7mtable"}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "", "count": 0, "error": error}))
        await tape.close("closed")
        live = open_tape(of, identity={"subject": "leo"})
        command(live, "SELECT 'live'")
        await live.written()

    asyncio.run(scenario())
    yield directory
    of.close()


def gatecast(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["sessions", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_search_prints_a_line_for_each_command(tapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = gatecast(capsys, "search", "orders")
    assert (code, err) == (0, "")
    first, second, hint = out.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  [0-9A-Z]{14} 2  bot for ana", first)
    assert "  deny        DROP TABLE orders " in first
    assert "  held-allow  UPDATE orders SET x = 1" in second
    sid = json.loads(gatecast(capsys, "list", "--run", "run-7", "--json")[1])[0]["sid"]
    assert hint == f"See one in its place, as this: gatecast replay {sid} --command 2"


def test_nothing_from_a_tape_acts_on_the_terminal(tapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sid = json.loads(gatecast(capsys, "list", "--run", "run-7", "--json")[1])[0]["sid"]
    for arguments in (["list"], ["search"], ["search", "drop"], ["show", sid], ["search", "--error", "*"]):
        code, out, err = gatecast(capsys, *arguments)
        assert code == 0
        assert out.isprintable() or set(re.sub(r"[\n]", "", out)) <= set(filter(str.isprintable, out)), arguments
        assert "\n" + "fake" not in out
        assert not err
    paper = Paper(columns=100, color=True)
    Index.update(tapes)
    with Index(tapes) as index:
        texts = [
            search_text(list(find_commands(index, Wanted(text="drop"))), 100, paper),
            search_text(list(find_commands(index, Wanted())), 100, paper),
            list_text(list(find_sessions(index, Wanted())), paper),
            show_text(show(next(tapes.rglob(f"{sid}.000.gct"))), paper),
        ]
    for text in texts:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\n", "")
        assert plain.isprintable()
        assert set(re.findall(r"\x1b\[([0-9;]*)m", text)) <= {"0", "1", "2", "31", "32", "33", "1;4"}


def test_a_hit_far_in_is_shown_and_marked(tapes: Path) -> None:
    Index.update(tapes)
    with Index(tapes) as index:
        rows = list(find_commands(index, Wanted(text="needle")))
    for columns in (80, 120, 200):
        line = search_text(rows, 100, Paper(columns, color=True)).splitlines()[0]
        assert "\x1b[1;4mneedle\x1b[0m" in line
        plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
        assert min(columns, 150) - 20 < len(plain) <= max(columns, 110)
        assert "[42P01]" in plain


def test_hits_side_by_side_keep_the_space_between_them(tapes: Path) -> None:
    Index.update(tapes)
    with Index(tapes) as index:
        rows = list(find_commands(index, Wanted(text="drop table")))
    line = search_text(rows, 100, Paper(columns=200)).splitlines()[0]
    assert "DROP TABLE" in line.upper()


def test_search_as_json(tapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = gatecast(capsys, "search", "--verdict", "held", "--json")
    (row,) = json.loads(out)
    assert (row["verdict"], row["by"], row["rule"], row["objects"]) == (
        "held-allow", "mia@acme", "writes", ["public.orders"],
    )  # fmt: skip
    assert row["replay"] == f"gatecast replay {row['sid']} --command 1"
    assert "parts" not in row
    _, lines, _ = gatecast(capsys, "search", "--jsonl", "--run", "run-7")
    assert [json.loads(line)["verb"] for line in lines.splitlines()] == ["SELECT", "DROP", "UPDATE"]


def test_filters_on_the_command_line(tapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def count(*arguments: str) -> int:
        code, out, _ = gatecast(capsys, *arguments, "--json")
        assert code == 0
        return len(json.loads(out))

    assert count("search", "--since", "1h") == 7
    assert count("search", "--until", "1h") == 0
    assert count("search", "--since", "today", "--table", "orders", "--limit", "1") == 1
    assert count("search", "--session", "01") == 7
    assert count("list", "--since", "yesterday") == 3
    assert count("list", "--status", "live") == 1
    assert count("list", "--table", "orders") == 1
    assert count("list", "--sqlstate", "42P01", "--user", "ana*") == 1
    assert count("list", "--intent", "refund") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "--since", "soon"], "--since soon: a time is"),
        (["search", "***"], "there is no letter and no digit in it"),
        (["list", "--limit", "0"], "--limit is from 1"),
    ],
)
def test_what_cannot_be_looked_for_is_said(
    tapes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out, err = gatecast(capsys, *arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


def test_show_tells_the_whole_story(tapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sid = json.loads(gatecast(capsys, "list", "--run", "run-7", "--json")[1])[0]["sid"]
    _, out, _ = gatecast(capsys, "show", sid)
    for part in (
        "by agents  bot", "proved by  tokens, a proof with the SHA-256 abab", "status     closed; sealed, the seal not",
        "intent     refund", "   1  ", "held-allow by writes  UPDATE orders", "needs one of group:oncall: approved by",
        "mia@acme after", "masked by no-pii: email, e^[[2J\n", "UPDATE 1\n", "deny by r1", "refused: not today",
        "error 42P01: no such", f"gatecast verify {sid}",
    ):  # fmt: skip
        assert part in out, part
    _, text, _ = gatecast(capsys, "show", sid, "--json")
    found = json.loads(text)
    assert found["intents"] == ["refund \x1b[1m812"]
    assert found["commands"][0]["approval"] == {
        "id": "ap_1", "state": "approved", "approvers": ["group:oncall"], "by": "mia@acme", "reason": "ok \x1b[0m",
        "seconds": found["commands"][0]["approval"]["seconds"],
    }  # fmt: skip
    assert found["commands"][2]["error"] == {"code": "42P01", "message": "no such \x1b[7mtable"}


def test_show_reads_the_tape_and_not_the_index(tapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gatecast(capsys, "list")
    with Index(tapes) as index:
        index.connection.execute("UPDATE commands SET text = 'LIES', verdict = 'allow', rule = 'LIES'")
        sid = index.connection.execute("SELECT sid FROM sessions WHERE run = 'run-7'").fetchone()[0]
    _, out, _ = gatecast(capsys, "show", sid)
    assert "LIES" not in out
    assert "deny by r1" in out


def test_list_does_without_an_index(
    tapes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, with_index, _ = gatecast(capsys, "list")
    (tapes / "index.db").unlink()

    def busy(*_: Any, **__: Any) -> Updated:
        return Updated(busy=True)

    monkeypatch.setattr(Index, "update", busy)
    _, without, err = gatecast(capsys, "list")
    # Of two that began in the same millisecond only the index knows which was first.
    milliseconds = [line[:10] for line in without.splitlines()]
    assert milliseconds == [line[:10] for line in with_index.splitlines()]
    assert sorted(line[:26] for line in without.splitlines()) == sorted(line[:26] for line in with_index.splitlines())
    assert "there is no index yet" in err
    code, _, err = gatecast(capsys, "list", "--verdict", "deny")
    assert (code, "there is no index yet" in err) == (1, True)
    config = Path(".gatecast/gatecast.yaml")
    config.write_text(config.read_text() + "\nrecorder: {index: false}\n")
    _, off, err = gatecast(capsys, "list")
    assert (off, err) == (without, "")


def test_an_index_that_is_behind_says_so(
    tapes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "UPDATE_SECONDS", 0.0)
    code, out, err = gatecast(capsys, "search")
    assert code == 0
    assert "not complete yet (3 tapes to go): gatecast sessions reindex --update" in err
    assert len(json.loads(gatecast(capsys, "list", "--json")[1])) == 3  # from the tapes themselves
    monkeypatch.undo()
    with update_lock(tapes):
        monkeypatch.chdir(tapes.parent.parent)
        _, _, err = gatecast(capsys, "search")
        assert "another process updates the index at this moment" in err
    _, _, err = gatecast(capsys, "search", "--no-update")
    assert "the index is as of 20" in err
    assert out == "No command that is indexed is so.\n"


def test_reindex(tapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = gatecast(capsys, "reindex")
    assert code == 0
    assert re.fullmatch(r"3 sessions, 7 commands in the index; 3 tapes read in \d+\.\d s\.\n", out)
    result = json.loads(gatecast(capsys, "reindex", "--update", "--json")[1])
    assert (result["sessions"], result["tapes_read"], result["complete"], result["busy"]) == (3, 0, True, False)
    gatecast(capsys, "reindex", "--substring")
    assert len(json.loads(gatecast(capsys, "search", "eedl", "--json")[1])) == 1
    (tapes / "index.db").write_bytes(b"no index" * 1000)
    _, out, err = gatecast(capsys, "search", "needle", "--json")
    assert "put aside as index.db.damaged and is built again" in err
    assert len(json.loads(out)) == 1


def test_where_nothing_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATECAST_CONFIG", raising=False)
    write_example(Path(".gatecast"), io.StringIO())
    for arguments in (["search", "x"], ["reindex"]):
        code, _, err = gatecast(capsys, *arguments)
        assert (code, "no session is recorded here" in err) == (1, True)
    assert not (tmp_path / ".gatecast" / "tapes").exists()
