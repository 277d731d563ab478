"""Sessions of real clients, recorded through the gateway and run again on a sandbox: what differs, and no more."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import asyncpg
import psycopg
import pytest

from tests.fakes import TOKEN
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway
from tests.postgres.reexecuting import of, recorded, states

pytestmark = pytest.mark.peer

SCHEMA = """
CREATE TABLE item (id int PRIMARY KEY, name text, price numeric(10,2), at timestamptz);
INSERT INTO item SELECT i, 'item ' || i, i * 1.5, '2026-01-01 12:00+00'::timestamptz + i * interval '1 hour'
FROM generate_series(1, 50) i;
"""


def psql(gate: Gateway, server: PostgresServer, script: str) -> str:
    done = subprocess.run(
        [str(server.bin / "psql"), "-X", "-v", "ON_ERROR_STOP=0"],
        env={**gate.environment, **server.environment},
        input=script, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


SCRIPT = """
SELECT id, name, price FROM item ORDER BY id;
SELECT name FROM item WHERE price > 10;
SELECT 1/0;
SELECT 1 \\; SELECT 2 \\; SELECT name FROM item WHERE id = 3;
BEGIN;
INSERT INTO item VALUES (100, 'new', 1, NULL);
INSERT INTO item VALUES (100, 'again', 1, NULL);
SELECT 1;
ROLLBACK;
UPDATE item SET price = price + 1 WHERE id < 5;
SET timezone = 'Asia/Tokyo';
SELECT at FROM item WHERE id = 7;
;
"""


def test_a_session_on_an_equal_database_is_the_same(postgres18: PostgresServer, tmp_path: Path) -> None:
    with recorded(postgres18, tmp_path, SCHEMA, lambda gate: psql(gate, postgres18, SCRIPT)) as bench:
        code, report = bench.run()
        assert states(report) and {state for state, _ in states(report)} == {"same"}, report
        assert code == 0
        assert len(report["commands"]) == 13


def test_the_report_says_what_was_changed(postgres18: PostgresServer, tmp_path: Path) -> None:
    script = """
    SELECT id, name, price FROM item ORDER BY id;
    SELECT count(*) FROM item;
    SELECT name FROM item WHERE id < 4;
    UPDATE item SET name = 'x' WHERE id > 48;
    INSERT INTO item VALUES (1, 'twice', 1, NULL);
    INSERT INTO item VALUES (200, 'too dear', 5000, NULL);
    """
    with recorded(postgres18, tmp_path, SCHEMA, lambda gate: psql(gate, postgres18, script)) as bench:
        bench.change("UPDATE item SET name = 'another' WHERE id = 7; DELETE FROM item WHERE id = 50;")
        bench.change("ALTER TABLE item ALTER price TYPE numeric(12,2), DROP CONSTRAINT item_pkey")
        bench.change("ALTER TABLE item ADD CHECK (price < 1000)")
        code, report = bench.run()
        assert code == report["exit_code"] == 1
        columns, rows = of(report, "SELECT id, name")["differences"]
        assert (columns["what"], columns["recorded"]) == ("columns", "price numeric(10,2)")
        assert columns["sandbox"] == "price numeric(12,2)"
        assert (rows["what"], rows["recorded"], rows["sandbox"]) == ("rows", "50 rows", "49 rows")
        assert rows["only_recorded"] == [["7", "item 7", "10.50"], ["50", "item 50", "75.00"]]
        assert rows["only_sandbox"] == [["7", "another", "10.50"]]
        assert of(report, "SELECT count")["differences"][0]["only_sandbox"] == [["49"]]
        assert of(report, "SELECT name FROM item WHERE id < 4")["state"] == "same"
        (tag,) = of(report, "UPDATE")["differences"]
        assert (tag["what"], tag["recorded"], tag["sandbox"]) == ("tag", "UPDATE 2", "UPDATE 1")
        (error,) = of(report, "INSERT INTO item VALUES (1")["differences"]
        assert error["what"] == "error" and error["recorded"].startswith("23505 (duplicate")
        assert error["sandbox"] == "INSERT 0 1"
        (error,) = of(report, "INSERT INTO item VALUES (200")["differences"]
        assert error["recorded"] == "INSERT 0 1" and error["sandbox"].startswith("23514 (new row")


def test_a_missing_table_fails_the_rest_of_its_transaction(postgres18: PostgresServer, tmp_path: Path) -> None:
    script = "BEGIN; SELECT 1 FROM other; COMMIT;\nBEGIN;\nSELECT 2 FROM other;\nSELECT 3;\nROLLBACK;\nSELECT 4;\n"
    schema = "CREATE TABLE other AS SELECT 1"
    with recorded(postgres18, tmp_path, schema, lambda gate: psql(gate, postgres18, script)) as bench:
        bench.change("DROP TABLE other")
        code, report = bench.run()
        assert code == 1
        (error,) = of(report, "SELECT 2")["differences"]
        assert error["sandbox"].startswith("42P01 (relation")
        follows = of(report, "SELECT 3")
        assert "25P02" in follows["differences"][0]["sandbox"]
        assert follows["notes"] == [
            f"follows from command {of(report, 'SELECT 2')['number']}, whose failure ended the transaction"
        ]
        assert of(report, "SELECT 4")["state"] == "same"


def test_order_counts_under_an_order_by_alone(postgres18: PostgresServer, tmp_path: Path) -> None:
    schema = "CREATE TABLE t (id int, rank int, name text); INSERT INTO t VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c')"
    script = (
        "SELECT * FROM t;\nSELECT rank, name FROM t ORDER BY rank;\nSELECT id FROM t ORDER BY name;\nTABLE t LIMIT 1;\n"
    )
    with recorded(postgres18, tmp_path, schema, lambda gate: psql(gate, postgres18, script)) as bench:
        bench.change("CREATE TABLE u AS SELECT * FROM t ORDER BY id DESC; DROP TABLE t; ALTER TABLE u RENAME TO t")
        code, report = bench.run()
        assert [state for state, _ in states(report)] == ["same", "same", "same", "different"]  # ties may swap
        assert of(report, "TABLE t")["notes"] == ["LIMIT without ORDER BY: which rows come is not defined"]
        bench.change("UPDATE t SET name = CASE name WHEN 'a' THEN 'c' WHEN 'c' THEN 'a' ELSE name END")
        code, report = bench.run()
        (order,) = of(report, "SELECT id")["differences"]
        assert (order["what"], order["recorded"]) == ("order", "row 1")
        assert (order["only_recorded"], order["only_sandbox"]) == ([["1"]], [["3"]])
        assert code == 1


def test_ten_thousand_rows_and_one_that_differs(postgres18: PostgresServer, tmp_path: Path) -> None:
    schema = "CREATE TABLE big AS SELECT i AS id, md5(i::text) AS hash FROM generate_series(1, 10000) i"
    with recorded(postgres18, tmp_path, schema, lambda gate: psql(gate, postgres18, "SELECT * FROM big;")) as bench:
        assert bench.run()[0] == 0
        bench.change("UPDATE big SET hash = 'gone' WHERE id = 9876")
        code, report = bench.run()
        (rows,) = of(report, "SELECT")["differences"]
        assert code == 1
        assert rows["only_sandbox"] == [["9876", "gone"]] and len(rows["only_recorded"]) == 1
        assert "~ 9876: hash: " in bench.text()[1]


def drive(gate: Gateway) -> None:
    """psycopg: prepared statements, binary results, a failing batch, a pipeline, a server-side cursor, autocommit."""
    with psycopg.connect(gate.conninfo()) as connection:
        for number in range(3):
            connection.execute("SELECT name, price FROM item WHERE id = %s", (number,), prepare=True).fetchall()
        connection.execute("SELECT id, price, at FROM item WHERE id < %s", (9,), binary=True).fetchall()
        connection.commit()
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM nothing WHERE id = %s", (1,))
        connection.rollback()
        with connection.pipeline():
            for number in range(20):
                connection.execute("INSERT INTO item (id, name) VALUES (%s, %s)", (1000 + number, "piped"))
        connection.commit()
        with connection.cursor() as cursor:
            cursor.executemany("UPDATE item SET name = %s WHERE id = %s", [("many", 1), ("many", 2)])
        with connection.cursor("named") as cursor:
            cursor.itersize = 7
            assert len(cursor.execute("SELECT id FROM item WHERE id <= %s ORDER BY id", (30,)).fetchall()) == 30
        connection.commit()


def test_psycopg(postgres18: PostgresServer, tmp_path: Path) -> None:
    with recorded(postgres18, tmp_path, SCHEMA, drive) as bench:
        code, report = bench.run(rollback=False)
        assert code == 0, [each for each in report["commands"] if each["state"] != "same"]
        assert sum(text.startswith("INSERT") for _, text in states(report)) == 20
        bench.change("DELETE FROM item WHERE id >= 1000")
        later = of(report, "SELECT id, price, at")["number"]
        code, partly = bench.run(first=later)
        assert code == 0 and partly["commands"] == [each for each in report["commands"] if each["number"] >= later]
        bench.change("UPDATE item SET price = 77 WHERE id = 5; DELETE FROM item WHERE id >= 1000")
        code, report = bench.run()
        assert code == 1
        (rows,) = of(report, "SELECT id, price, at")["differences"]
        assert [row[:2] for row in rows["only_sandbox"]] == [["5", "77.00"]]  # decoded from the binary format


async def drive_asyncpg(gate: Gateway) -> None:
    connection = await asyncpg.connect(
        host=gate.host, port=gate.port, user="agent", password=TOKEN, database="shop", ssl=False
    )
    try:
        async with connection.transaction():
            assert len(await connection.fetch("SELECT * FROM item WHERE id < $1", 20)) == 19
            await connection.executemany(
                "INSERT INTO item (id, name) VALUES ($1, $2)", [(i, "am") for i in range(300, 400)]
            )
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("INSERT INTO item (id) VALUES ($1)", 300)
        assert await connection.fetchval("SELECT name FROM item WHERE id = $1", 3) == "item 3"
        async with connection.transaction():
            rows = [row async for row in connection.cursor("SELECT id FROM item ORDER BY id", prefetch=10)]
            assert len(rows) == 150
        assert await connection.copy_records_to_table("item", records=[(900, "c", None, None)]) == "COPY 1"
    finally:
        await connection.close()


def test_asyncpg(postgres18: PostgresServer, tmp_path: Path) -> None:
    with recorded(postgres18, tmp_path, SCHEMA, lambda gate: asyncio.run(drive_asyncpg(gate))) as bench:
        code, report = bench.run()
        assert code == 0, [each for each in report["commands"] if each["state"] != "same"]
        assert bench.server.run("SELECT count(*) FROM item", dbname=bench.sandbox) == [(151,)]
        bench.change("DELETE FROM item WHERE id = 3; DELETE FROM item WHERE id >= 300")
        code, report = bench.run()
        assert code == 1
        assert of(report, "SELECT name FROM item WHERE id = $1")["differences"][0]["sandbox"] == "0 rows"
        (rows,) = of(report, "SELECT * FROM item")["differences"]
        assert rows["columns"] == ["id", "name", "price", "at"]  # of the statement: asyncpg describes no portals
        assert rows["only_recorded"] == [["3", "item 3", "4.50", "2026-01-01 15:00:00+00"]]
