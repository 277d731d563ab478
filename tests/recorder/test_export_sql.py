"""The script of a SQL session: what ran, in its order, and nothing that psql would take for anything else."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorder.export_sql as export_sql
from recorder.export import export_tape
from recorder.export_options import ExportError
from recorder.export_sql import literal, reads_as_one, statement
from recorder.reader import TapeReader
from recorder.tape import GATE, USER, Kind, Tape
from tests.recorder.stories import bad_intentions, one_of_everything, terminal_session
from tests.recorder.tapes import command, open_tape, pack, recorder


def script_of(path: Path) -> str:
    out = io.StringIO()
    export_tape(TapeReader(path), "sql", out)
    return out.getvalue()


def taped(directory: Path, commands: Any, **more: Any) -> str:
    async def scenario() -> Path:
        tape = open_tape(recorder(directory), **more)
        commands(tape)
        await tape.close("closed")
        return tape.path

    return script_of(asyncio.run(scenario()))


def test_the_script_of_a_session(tmp_path: Path) -> None:
    path = one_of_everything(tmp_path)
    assert (
        script_of(path)
        == f"""\
-- session {path.name[:26]} on postgres target shop-prod
-- by claude-code/ci-bot for ana@acme; begun 2026-09-21T14:13:20.000000Z

\\encoding UTF8

-- Q1 SELECT  2026-09-21T14:13:20.000000Z
-- allowed by rule ro
SELECT id, name, email
FROM orders LIMIT 200
;

-- Q2 UPDATE  2026-09-21T14:13:21.012700Z
-- approved by mia@acme "ok #812" (approval A7); allowed by rule writes
PREPARE gatecast_6 AS
UPDATE orders SET status = 'refunded'
;
EXECUTE gatecast_6('101', NULL);
DEALLOCATE gatecast_6;

-- Q3 SELECT  2026-09-21T14:14:02.015800Z
-- allowed by rule r1
SELECT 1/0
;

-- Q4 DROP  2026-09-21T14:14:02.015800Z
-- DENIED by rule r1: not today
-- not forwarded:
-- DROP TABLE orders;

-- end of the session
"""
    )


def code_of(script: str) -> list[str]:
    return [line for line in script.splitlines() if line and not line.startswith("--")]


def test_an_extended_statement_is_run_once(tmp_path: Path) -> None:
    def commands(tape: Tape) -> None:
        for message in (b"P", b"B", b"E"):
            tape.append(USER, Kind.WIRE, message + b"\0\0\0\4")
            command(tape, "SELECT $1", values=["it's"] if message != b"P" else [])
        tape.append(USER, Kind.WIRE, b"E\0\0\0\4")  # more rows of the same portal
        command(tape, "SELECT $1", values=["it's"])
        tape.append(USER, Kind.WIRE, b"P\0\0\0\4")
        command(tape, "DROP TABLE x", "DROP", "deny")

    script = taped(tmp_path, commands)
    assert code_of(script)[1:] == [
        "PREPARE gatecast_7 AS", "SELECT $1", ";", "EXECUTE gatecast_7('it''s');", "DEALLOCATE gatecast_7;",
    ]  # fmt: skip
    assert "-- goes on reading the rows of the statement before:" in script
    assert "-- not forwarded:\n-- DROP TABLE x\n" in script


@pytest.mark.parametrize(
    ("verb", "text", "values", "why"),
    [
        ("COPY", "COPY t FROM STDIN", [], "its data came from the client"),
        ("COPY", "copy t from /* ; */ stdin with csv", [], "its data came from the client"),
        ("CONNECT", "connect to shop", [], "no statement"),
        ("SET", "SET application_name = 'psql'", [], "came with the login"),
        ("SELECT", "SELECT $1", ["long…"], "bind values that the tape has only cut"),
        ("CALL", "CALL f($1)", ["1"], "has bind values, but cannot be prepared"),
    ],
)
def test_what_no_script_can_repeat_is_a_comment(
    tmp_path: Path, verb: str, text: str, values: list[str], why: str
) -> None:
    script = taped(tmp_path, lambda tape: command(tape, text, verb, values=values))
    assert f"{why}:\n-- {text}" in script
    assert code_of(script) == ["\\encoding UTF8"]


def test_a_text_that_the_tape_has_cut_is_a_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, whole in ((9, True), (8, False)):
        monkeypatch.setattr(export_sql, "CUT_TEXT_CHARACTERS", limit)
        script = taped(tmp_path, lambda tape: command(tape, "SELECT 1"))
        assert ("SELECT 1" in code_of(script)) is whole


def test_undecided_and_withdrawn_commands_do_not_run(tmp_path: Path) -> None:
    def commands(tape: Tape) -> None:
        n = command(tape, "DELETE FROM a", verdict=None)
        tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A1", "state": "pending", "rule": "w"}))

    script = taped(tmp_path, commands)
    assert "-- pending (approval A1); no verdict is on the tape\n-- not forwarded:\n-- DELETE FROM a\n" in script


def test_the_order_is_that_of_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commands(tape: Tape) -> None:
        first = command(tape, "SELECT 'first'", verdict=None)
        for i in range(3):
            command(tape, f"SELECT {i}")
        tape.append(GATE, Kind.VERDICT, pack({"command": first, "verdict": "allow", "rule": "r"}))

    expected = ["SELECT 'first'", "SELECT 0", "SELECT 1", "SELECT 2"]
    for limit in (4, 3):
        monkeypatch.setattr(export_sql, "WAITING_LIMIT", limit)
        script = taped(tmp_path / str(limit), commands)
        selects = [line for line in code_of(script) if line.startswith("SELECT")]
        # Above the limit nothing is held up any longer: the first is written as undecided.
        assert selects == (expected if limit == 4 else expected[1:])


def test_hostile_text_is_quoted_or_a_comment(tmp_path: Path) -> None:
    script = script_of(bad_intentions(tmp_path))
    code = code_of(script)
    assert "\x1b" not in script
    assert "\u202e" not in script
    assert not [
        line for line in code if "touch" in line and not line.startswith(("EXECUTE gatecast_1(E'", "SELECT E'"))
    ]
    assert code[0] == "\\encoding UTF8"
    assert not [line for line in code[1:] if line.startswith("\\")]


def test_only_sql_sessions_have_a_script(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="ssh session is no SQL session"):
        script_of(terminal_session(tmp_path))


def test_other_sql_is_left_as_it_is(tmp_path: Path) -> None:
    def commands(tape: Tape) -> None:
        command(tape, "SELECT r'\\d' FROM `p.d.t` WHERE x = @x", values=["7"])
        command(tape, "SELECT '\x1b[2J'")

    script = taped(tmp_path, commands, protocol="bigquery")
    assert "-- values: '7'\nSELECT r'\\d' FROM `p.d.t` WHERE x = @x\n;\n" in script
    assert "holds characters that a terminal would act on:\n-- SELECT '^[[2J'\n" in script
    assert "encoding" not in script


PLAIN = [
    "SELECT 1", "SELECT 1;", "select $$a;b$$", "select $a$ $b$ ; $a$", "select a::int", "select ':x'", "BEGIN",
    "select 1 -- x", "select /* /* ; */ */ 1;", "select U&\"d!0061\"", "select $1, $2", "select a$b$c", "(select 1)",
    "x := 1", "select ä", "select 1 ; -- the end", "select E'a''b'", 'select "a""b;"', "select 'a'\n'b'",
]  # fmt: skip
DOUBTFUL = [
    "", ";", "-- only", "select 'a", 'select "a', "select $$a", "select $a$ $b$", "select 1; select 2", "select 1;;",
    "select :x", "select :'x'", "select x[1:n]", "select (1", "select 1)", "select (1;", "select /* a", "select '\\'",
    "select 1 \\! ls", "\\copy x from y", "create function f() begin atomic select 1; end",
    "CREATE PROCEDURE p() BEGIN",
    "select 1$a$", "select €$$ ; $$", "select '\x1b[2J'", "select '\u202e'", "select\r1", "select 'a'' ; ", "/* */",
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_plain_statements_stand_as_they_are(text: str) -> None:
    assert reads_as_one(text)
    assert statement(text) == text.rstrip().rstrip(";") + "\n;\n"


@pytest.mark.parametrize("text", DOUBTFUL)
def test_doubtful_statements_go_as_strings(text: str) -> None:
    assert not reads_as_one(text)
    assert statement(text) == f"SELECT {literal(text)} \\gexec\n"


def read_literal(text: str) -> str:
    """Read a constant as PostgreSQL does (4.1.2.1, 4.1.2.2), by a way of our own."""
    escapes = text.startswith("E")
    body = text[2 if escapes else 1 : -1].replace("''", "'")
    if not escapes:
        return body
    out, at = "", 0
    while at < len(body):
        if body[at] != "\\":
            out, at = out + body[at], at + 1
        elif body[at + 1] == "\\":
            out, at = out + "\\", at + 2
        else:
            assert body[at + 1] == "u"
            out, at = out + chr(int(body[at + 2 : at + 6], 16)), at + 6
    return out


@given(st.text(st.characters(codec="utf-8")))
def test_a_literal_says_the_text(text: str) -> None:
    made = literal(text)
    assert read_literal(made) == text
    assert made[-1] == "'"
    assert ("\\" in made) == made.startswith("E'")
    body = made.removeprefix("E")[1:-1]
    assert body.replace("''", "").count("'") == 0


@given(st.text(st.sampled_from("ab1 '\"$;:\\-/*()\n\u00e9€"), max_size=30))
def test_a_statement_is_never_both(text: str) -> None:
    made = statement(text)
    assert made.endswith(("\n;\n", " \\gexec\n"))
    if made.endswith("\n;\n"):
        assert "\\" not in made
