"""Running recorded sessions again: masks, refusals, COPY, what cannot be repeated, and what a run must not do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psycopg
import pytest

from protocols.postgres import rowsets
from proxy.core.events import Command
from proxy.core.gate import Decision
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict
from proxy.reexecution.command import ReexecutionError
from recorder.format import Kind, fields
from tests.fakes import FakeApprovals
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway
from tests.postgres.reexecuting import Bench, of, recorded, states
from tests.postgres.test_reexecute_peers import psql

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parents[2]
CANARY = "kanarienvogel"
PEOPLE = f"""
CREATE TABLE person (id int PRIMARY KEY, name text, email text);
INSERT INTO person SELECT i, 'name ' || i, '{CANARY}' || i || '@secret.example' FROM generate_series(1, 30) i;
"""


def masked(command: Command) -> Verdict:
    return Allow("masked", (Mask("pii", columns=("*.*.email",)),))


MASKED_SCRIPT = """
SELECT * FROM person ORDER BY id;
SELECT id, email FROM person WHERE id = 3 \\; SELECT id, email FROM person WHERE id = 4;
SELECT email FROM person WHERE id > 100;
COPY person TO STDOUT;
COPY person (email, id) TO STDOUT (FORMAT csv);
"""


def test_masked_cells_are_wildcards(postgres18: PostgresServer, tmp_path: Path) -> None:
    with recorded(postgres18, tmp_path, PEOPLE, lambda gate: psql(gate, postgres18, MASKED_SCRIPT), masked) as bench:
        bench.change("UPDATE person SET email = 'kanarienvogel changed' WHERE id = 3")
        code, report = bench.run()
        assert code == 0, report
        assert of(report, "SELECT * FROM")["notes"] == ["not compared, masked by pii: email"]
        assert of(report, "COPY person TO")["notes"] == ["not compared, masked by pii: column 3"]
        bench.change(
            "UPDATE person SET name = 'other' WHERE id = 5; INSERT INTO person VALUES (200, 'n', 'kanarienvogel')"
        )
        code, report = bench.run()
        assert code == 1
        (rows,) = of(report, "SELECT * FROM")["differences"]
        assert rows["only_recorded"] == [["5", "name 5", "·"]]
        assert rows["only_sandbox"] == [["5", "other", "·"], ["200", "n", "·"]]
        (rows,) = of(report, "COPY person TO")["differences"]
        assert rows["only_recorded"] == [["5\tname 5\t\\N"]]
        # Under masks, and without a recorded row to tell which: nothing of it is shown.
        hidden = of(report, "SELECT email FROM person WHERE id > 100")["differences"][0]
        assert (hidden["recorded"], hidden["sandbox"], hidden.get("only_sandbox")) == ("0 rows", "1 row", [])
        code, text = bench.text()
        assert CANARY not in str(report) and CANARY not in text


def judge(command: Command) -> Verdict:
    if command.verb == "DELETE":
        return Deny("no-delete", "not here")
    if command.verb == "UPDATE":
        return Hold("ask", ("ana",), 30.0)
    return Allow("rest")


def test_refused_commands_are_skipped_and_fail_what_they_failed(postgres18: PostgresServer, tmp_path: Path) -> None:
    approvals = FakeApprovals()
    approvals.answer = Decision("approved", "mia")
    script = (
        "DELETE FROM person;\nBEGIN;\nDELETE FROM person;\nSELECT 1;\nROLLBACK;\n"
        "UPDATE person SET name = 'held' WHERE id = 1;\n"
    )
    session = partial(psql, server=postgres18, script=script)
    with recorded(postgres18, tmp_path, PEOPLE, session, judge, approvals=approvals) as bench:
        code, report = bench.run()
        assert code == 0, report
        assert [state for state, _ in states(report)] == ["skipped", "same", "skipped", "same", "same", "same"]
        assert report["commands"][0]["reason"] == "denied by no-delete: not here"
        assert bench.server.run("SELECT count(*), min(name) FROM person", dbname="sandbox") == [(30, "held")]


def test_a_refused_statement_of_a_driver_s_pipeline(postgres18: PostgresServer, tmp_path: Path) -> None:
    def session(gate: Gateway) -> None:
        with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM person WHERE id = %s", (1,))
            with pytest.raises(psycopg.Error), connection.pipeline():
                connection.execute("INSERT INTO person VALUES (%s, 'lost')", (500,))
                connection.execute("DELETE FROM person WHERE id = %s", (2,))
                connection.execute("INSERT INTO person VALUES (%s, 'never')", (501,))
            assert connection.execute("SELECT count(*) FROM person WHERE id > %s", (0,)).fetchone() == (30,)

    with recorded(postgres18, tmp_path, PEOPLE, session, judge) as bench:
        code, report = bench.run()
        assert code == 0, report
        assert bench.server.run("SELECT count(*) FROM person", dbname="sandbox") == [(30,)]
        assert {each["reason"] for each in report["commands"] if each["state"] == "skipped"} >= {
            "denied by no-delete: not here"
        }


@pytest.mark.parametrize("form", ["text", "csv", "binary"])
def test_copy_in_and_out(postgres18: PostgresServer, tmp_path: Path, form: str) -> None:
    def session(gate: Gateway) -> None:
        with psycopg.connect(gate.conninfo()) as connection:
            with connection.cursor().copy(f"COPY person TO STDOUT (FORMAT {form})".encode()) as copy:
                data = b"".join(bytes(each) for each in copy)
            connection.execute("TRUNCATE person")
            with connection.cursor().copy(f"COPY person FROM STDIN (FORMAT {form})".encode()) as copy:
                for at in range(0, len(data), 100):
                    copy.write(data[at : at + 100])
            with (
                pytest.raises(psycopg.errors.UniqueViolation),
                connection.transaction(),
                connection.cursor().copy(f"COPY person FROM STDIN (FORMAT {form})".encode()) as copy,
            ):
                copy.write(data)
            connection.execute("SELECT count(*) FROM person")
            connection.commit()

    with recorded(postgres18, tmp_path, PEOPLE, session) as bench:
        assert bench.run()[0] == 0
        bench.change("UPDATE person SET name = 'other' WHERE id = 7; ALTER TABLE person ADD CHECK (id < 29)  NOT VALID")
        code, report = bench.run()
        assert code == 1
        out = of(report, "COPY person TO")
        assert out["differences"][0]["what"] == "rows" and len(out["differences"][0]["only_sandbox"]) == 1
        into = next(each for each in report["commands"] if each["text"].startswith("COPY person FROM"))
        assert into["differences"][0]["recorded"] == "COPY 30"
        assert into["differences"][0]["sandbox"].startswith("23514")


def test_what_cannot_be_repeated(postgres18: PostgresServer, tmp_path: Path) -> None:
    script = """
    SELECT id, now(), random() FROM person WHERE id < 3;
    SELECT name FROM person WHERE random() < 0.5;
    EXPLAIN ANALYZE SELECT count(*) FROM generate_series(1, 200000) i WHERE sqrt(i) > 7;
    SET statement_timeout = '50ms';
    BEGIN;
    SELECT pg_sleep(5);
    INSERT INTO person VALUES (900, 'no', '');
    COMMIT;
    SELECT pg_backend_pid();
    """
    with recorded(postgres18, tmp_path, PEOPLE, lambda gate: psql(gate, postgres18, script)) as bench:
        code, report = bench.run()
        assert code == 2
        assert [state for state, _ in states(report)] == [
            "same", "not-replayable", "not-replayable", "same", "same", "not-replayable", "same", "same", "same"
        ]  # fmt: skip
        assert of(report, "SELECT id, now()")["notes"] == [
            "not compared, volatile, ignored or the database's own: now, random"
        ]
        assert of(report, "SELECT name")["reason"] == "its rows depend on random()"
        assert of(report, "SELECT pg_sleep")["reason"] == "in the recording it was cancelled, or timed out (57014)"
        assert bench.server.run("SELECT count(*) FROM person", dbname="sandbox") == [(30,)]
        assert bench.run(first=4, last=4)[1]["commands"][0]["text"].startswith("SELECT name")


ROLLED = """
INSERT INTO person VALUES (100, 'kept', '');
INSERT INTO person VALUES (100, 'twice', '');
BEGIN;
INSERT INTO person VALUES (101, 'gone', '');
SELECT count(*) FROM person;
ROLLBACK;
BEGIN;
DELETE FROM person WHERE id < 10;
SAVEPOINT s;
DELETE FROM person;
ROLLBACK TO s;
COMMIT;
BEGIN;
SELECT 1/0;
COMMIT;
SELECT count(*) FROM person;
"""


def test_rollback_leaves_nothing(postgres18: PostgresServer, tmp_path: Path) -> None:
    def session(gate: Gateway) -> None:
        psql(gate, postgres18, ROLLED)

    with recorded(postgres18, tmp_path, PEOPLE, session) as bench:
        for _ in range(2):
            code, report = bench.run(rollback=True)
            assert code == 0, report
            assert bench.server.run("SELECT count(*) FROM person", dbname="sandbox") == [(30,)]
        assert report["rollback"] is True


def test_rollback_with_a_driver_s_batches(postgres18: PostgresServer, tmp_path: Path) -> None:
    def session(gate: Gateway) -> None:
        with psycopg.connect(gate.conninfo()) as connection:
            connection.execute("INSERT INTO person VALUES (%s, 'a', 'b')", (100,))
            connection.commit()
            with pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute("INSERT INTO person VALUES (%s, 'a', 'b')", (100,))
            connection.rollback()
            with connection.pipeline():
                connection.execute("DELETE FROM person WHERE id = %s", (100,))
                connection.execute("SELECT count(*) FROM person WHERE id > %s", (0,))
            connection.commit()

    with recorded(postgres18, tmp_path, PEOPLE, session) as bench:
        code, report = bench.run(rollback=True)
        assert code == 0, report
        assert bench.server.run("SELECT count(*) FROM person", dbname="sandbox") == [(30,)]


def test_what_rollback_cannot_hold_is_not_run(postgres18: PostgresServer, tmp_path: Path) -> None:
    script = "BEGIN \\; DELETE FROM person \\; COMMIT;\nVACUUM person;\n"
    with recorded(postgres18, tmp_path, PEOPLE, lambda gate: psql(gate, postgres18, script)) as bench:
        code, report = bench.run(rollback=True)
        first, second = report["commands"]
        assert first["state"] == "not-replayable" and "--rollback" in first["reason"]
        assert second["differences"][0]["sandbox"].startswith("25001")
        assert code == 1
        assert bench.server.run("SELECT count(*) FROM person", dbname="sandbox") == [(30,)]


def test_a_slow_statement_is_cancelled_and_the_rest_goes_on(postgres18: PostgresServer, tmp_path: Path) -> None:
    schema = "CREATE FUNCTION wait() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    with recorded(
        postgres18, tmp_path, schema, lambda gate: psql(gate, postgres18, "SELECT wait();\nSELECT 2;")
    ) as bench:
        bench.change("CREATE OR REPLACE FUNCTION wait() RETURNS int LANGUAGE sql AS 'SELECT 1 FROM pg_sleep(60)'")
        began = time.monotonic()
        code, report = bench.run(timeout_seconds=0.2)
        assert time.monotonic() - began < 20
        assert code == 2
        assert [each["state"] for each in report["commands"]] == ["not-replayable", "same"]
        assert report["commands"][0]["reason"] == "the sandbox took too long"


def test_a_sandbox_that_dies_is_an_error(postgres18: PostgresServer, tmp_path: Path) -> None:
    schema = "CREATE FUNCTION f() RETURNS bool LANGUAGE sql AS 'SELECT true'"
    with recorded(postgres18, tmp_path, schema, lambda gate: psql(gate, postgres18, "SELECT f();\nSELECT 2;")) as bench:
        end = "SELECT pg_terminate_backend(pg_backend_pid())"
        bench.change(f"CREATE OR REPLACE FUNCTION f() RETURNS bool LANGUAGE sql AS '{end}'")
        with pytest.raises(ReexecutionError, match=r"lab/sandbox: the sandbox ended the connection \(57P01\)"):
            bench.run()
        (own,) = bench.own_tapes()
        assert own.status == "failed"


def test_a_sandbox_that_cannot_be_reached_is_an_error(postgres18: PostgresServer, tmp_path: Path) -> None:
    with recorded(postgres18, tmp_path, PEOPLE, lambda gate: psql(gate, postgres18, "SELECT 1;")) as bench:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        bench.config.write_text(bench.config.read_text().replace(str(bench.server.port), str(port)))
        with pytest.raises(ReexecutionError, match="lab: the gateway could not reach the target"):
            bench.run()


def test_a_dry_run_lists_and_stop_at_first_stops(postgres18: PostgresServer, tmp_path: Path) -> None:
    script = "SELECT 1;\nDELETE FROM person;\nSELECT name FROM person WHERE id = 1;\nSELECT 3;\n"
    with recorded(postgres18, tmp_path, PEOPLE, lambda gate: psql(gate, postgres18, script), judge) as bench:
        code, report = bench.run(dry_run=True)
        assert code == 0
        assert [state for state, _ in states(report)] == ["would-run", "skipped", "would-run", "would-run"]
        assert not bench.own_tapes()
        bench.change("UPDATE person SET name = 'x'")
        code, report = bench.run(stop_at_first=True)
        assert (code, len(report["commands"])) == (1, 3)
        last = report["commands"][-1]["number"]
        assert [text for _, text in states(bench.run(first=last + 1)[1])] == ["SELECT 3;"]
        assert [text for _, text in states(bench.run(last=last - 2)[1])] == ["SELECT 1;"]


def test_the_run_is_recorded_without_what_came_back(postgres18: PostgresServer, tmp_path: Path) -> None:
    with recorded(postgres18, tmp_path, PEOPLE, lambda gate: psql(gate, postgres18, MASKED_SCRIPT), masked) as bench:
        report = bench.run()[1]
        (own,) = bench.own_tapes()
        assert own.header.sid == report["recorded_as"] and own.status == "closed"
        assert own.header.map_["identity"]["subject"].startswith("operator:")
        records = list(own.records())
        marks = [fields(each.payload) for each in records if each.kind == Kind.MARK]
        assert {"label": "reexecution", "text": f"reexecution of {report['session']}"} in marks
        commands = [fields(each.payload)["text"] for each in records if each.kind == Kind.COMMAND]
        assert len(commands) == 5 and commands[0].startswith("SELECT * FROM person")
        results = [fields(each.payload) for each in records if each.kind == Kind.RESULT]
        assert results[0]["count"] == 30 and "rows" not in results[0]
        assert not any(CANARY.encode() in each.payload for each in records)


def run_cli(bench: Bench, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "proxy", "replay", str(bench.tape), "-c", str(bench.config), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_line(postgres18: PostgresServer, tmp_path: Path) -> None:
    with recorded(
        postgres18, tmp_path, PEOPLE, lambda gate: psql(gate, postgres18, "TABLE person;\nSELECT 2;")
    ) as bench:
        with run_cli(bench, "--against", "lab", "--from", "2") as process:
            out, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (0, ""), error
        assert "2 commands: 2 same\n" in out
        with run_cli(bench, "--against", "shop") as process:
            out, error = process.communicate(timeout=60)
        assert process.returncode == 1 and "sandbox: true" in error and "gatecast.yaml:4" in error
        with run_cli(bench, "--against", "lab", "--from", "9s") as process:
            out, error = process.communicate(timeout=60)
        assert process.returncode == 1 and "number of a command" in error


def test_an_interrupt_leaves_nothing_running(postgres18: PostgresServer, tmp_path: Path) -> None:
    schema = "CREATE FUNCTION wait() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    with recorded(
        postgres18, tmp_path, schema, lambda gate: psql(gate, postgres18, "SELECT wait();\nSELECT 2;")
    ) as bench:
        bench.change("CREATE OR REPLACE FUNCTION wait() RETURNS int LANGUAGE sql AS 'SELECT 1 FROM pg_sleep(60)'")
        running = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'sandbox' AND wait_event = 'PgSleep'"
        with run_cli(bench, "--against", "lab") as process:
            while bench.server.run(running) != [(1,)]:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 130
        left = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'sandbox'"
        deadline = time.monotonic() + 20
        while bench.server.run(left) != [(0,)]:
            assert time.monotonic() < deadline
        (own,) = bench.own_tapes()
        assert own.status == "failed"


def test_a_transaction_that_failed_then_fails_now(postgres18: PostgresServer, tmp_path: Path) -> None:
    """Else the rows of a transaction that came to nothing would be there for all that follows."""

    def batch(gate: Gateway) -> None:
        with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
            with pytest.raises(psycopg.Error), connection.pipeline():
                connection.execute("INSERT INTO person VALUES (%s, 'c', 'd')", (41,))
                connection.execute("INSERT INTO person VALUES (%s, 'twice', 'd')", (1,))
            connection.execute("SELECT count(*) FROM person WHERE id > %s", (0,))

    script = (
        "BEGIN;\nINSERT INTO person VALUES (40, 'a', 'b');\nINSERT INTO person VALUES (1, 'twice', 'b');\n"
        "SELECT 1;\nCOMMIT;\nSELECT count(*) FROM person;\n"
    )
    for number, drive in enumerate((partial(psql, server=postgres18, script=script), batch)):
        (tmp_path / str(number)).mkdir()
        with recorded(postgres18, tmp_path / str(number), PEOPLE, drive) as bench:
            bench.change("ALTER TABLE person DROP CONSTRAINT person_pkey")
            code, report = bench.run()
            different = [each["text"].partition(" (")[0] for each in report["commands"] if each["state"] != "same"]
            assert (code, len(different)) == (1, 1), report
            assert bench.server.run("SELECT count(*) FROM person", dbname="sandbox") == [(30,)]


def test_too_many_rows_to_keep(postgres18: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowsets, "KEPT_ROWS_LIMIT", 20)
    with recorded(postgres18, tmp_path, PEOPLE, partial(psql, server=postgres18, script="TABLE person;")) as bench:
        bench.change("UPDATE person SET name = 'x' WHERE id = 30")
        code, report = bench.run()
        (difference,) = report["commands"][0]["differences"]
        assert (code, difference["what"], difference["only_sandbox"]) == (1, "rows", [])  # behind what is kept
        assert "which rows differ is not told" in report["commands"][0]["notes"][0]
        bench.change(
            "CREATE TABLE t AS SELECT * FROM person ORDER BY id; DROP TABLE person; ALTER TABLE t RENAME TO person"
        )
        bench.change("UPDATE person SET email = 'y' WHERE id = 30; DELETE FROM person WHERE id = 7")
        difference = bench.run()[1]["commands"][0]["differences"][0]
        assert [each[0] for each in difference["only_recorded"] + difference["only_sandbox"]] == ["7", "8"]
