"""Masks as drivers see them: every masked value decodes as its type, every other is byte-identical to direct."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import asyncpg
import pg8000.dbapi
import psycopg
import pytest

from tests.fakes import TOKEN
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway, gateway
from tests.postgres.masked_shop import EVERYTHING, MASKS, ROWS, SCHEMA, Watch, everything, found_canaries, ruleset

pytestmark = pytest.mark.peer

COLUMNS = "id, name, email, card, code, note, born, balance, tags, ref, mood, mail, phones"
EMAIL_LENGTH = 29
MASKED = {
    "email": "*" * (EMAIL_LENGTH - 2) + "le", "code": 0, "note": {"hidden": True}, "born": datetime.date(2000, 1, 1),
    "balance": decimal.Decimal(0), "tags": [], "ref": uuid.UUID(int=0), "mood": "calm", "phones": None,
}  # fmt: skip
# Not behind a column mask, so only the detectors look at it.
DETECTED = """
  - name: found-anywhere
    mask: [{detectors: [email, card], action: redact, text: "<found>"}]
"""


@pytest.fixture(scope="module", params=["15", "18"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(f"postgres{request.param}")
    return found


@pytest.fixture(scope="module")
def gate(server: PostgresServer) -> Iterator[Gateway]:
    rules = ruleset(EVERYTHING + MASKS)
    with (
        server.database("drivers", SCHEMA),
        gateway(server.port, database="drivers", policy=rules.decide) as running,
    ):
        watch = Watch(running)
        yield running
        assert not watch.leaks()


def check(rows: list[tuple[Any, ...]], direct: list[tuple[Any, ...]]) -> None:
    names = COLUMNS.split(", ")
    assert len(rows) == ROWS
    for row, plain in zip(rows, direct, strict=True):
        assert row[:2] == plain[:2]
        seen = dict(zip(names, row, strict=True))
        assert {name: seen[name] for name in MASKED} == MASKED
        assert len(seen["card"]) == 20 and seen["mail"] == MASKED["email"]


@pytest.mark.parametrize("binary", [False, True])
def test_psycopg_decodes_every_masked_value(server: PostgresServer, gate: Gateway, binary: bool) -> None:
    text = f"SELECT {COLUMNS} FROM customers ORDER BY id".encode()
    direct = server.run(text.decode(), dbname="drivers")
    with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
        for info in ("mood", "address"):
            kind = psycopg.types.TypeInfo.fetch(connection, info)
            assert kind is not None
        for _ in range(8):  # prepared by the server after five, and described no more
            with connection.cursor(binary=binary) as cursor:
                rows = [
                    tuple(cell.decode() if isinstance(cell, bytes) else cell for cell in row)
                    for row in cursor.execute(text).fetchall()
                ]
                check(rows, direct)
        with connection.transaction(), connection.cursor("named", binary=binary) as named:
            named.execute(text)
            assert [row[0] for row in named.fetchmany(2)] == [1, 2]
            assert MASKED["email"] in named.fetchall()[0]


def test_asyncpg_decodes_what_it_has_prepared(server: PostgresServer, gate: Gateway) -> None:
    direct = server.run(f"SELECT {COLUMNS} FROM customers ORDER BY id", dbname="drivers")

    async def go() -> None:
        connection = await asyncpg.connect(
            host=gate.host, port=gate.port, user="agent", password=TOKEN, database="shop", ssl=False
        )
        try:
            await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=__import__("json").loads)
            prepared = await connection.prepare(f"SELECT {COLUMNS} FROM customers ORDER BY id")
            for _ in range(10):
                check([tuple(record) for record in await prepared.fetch()], direct)
            one = await connection.prepare("SELECT lower(email), upper(name), born + 1 FROM customers WHERE id = $1")
            for i in (1, 2, 3, 1):
                record = await one.fetchrow(i)
                assert record is not None
                assert tuple(record) == (MASKED["email"], f"NAME{i}", MASKED["born"])
            async with connection.transaction():
                found = [record["email"] async for record in connection.cursor("SELECT email FROM customers")]
            assert found == [MASKED["email"]] * ROWS
        finally:
            await connection.close()

    asyncio.run(go())


def test_pg8000_decodes_every_masked_value(gate: Gateway) -> None:
    connection = pg8000.dbapi.connect(user="agent", password=TOKEN, host=gate.host, port=gate.port, database="shop")
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT email, code, note, born, balance, tags, ref FROM customers WHERE id = %s", (1,))
        (row,) = cursor.fetchall()
        assert row == [MASKED[name] for name in ("email", "code", "note", "born", "balance", "tags", "ref")]
    finally:
        connection.close()


def test_psql_shows_masks_in_every_way(server: PostgresServer, gate: Gateway) -> None:
    script = """
\\x on
SELECT * FROM customers;
\\x off
\\set FETCH_COUNT 1
SELECT email, lower(email) FROM customers;
\\unset FETCH_COUNT
\\copy customers TO STDOUT CSV HEADER
\\copy (SELECT email, name FROM people_no) TO STDOUT
SELECT email FROM customers \\gdesc
SELECT email FROM customers \\gset x_
TABLE people;
\\d+ customers
SELECT email::int FROM customers;
\\errverbose
INSERT INTO customers (id, name, email) VALUES (9, 'n', 'nothing');
SELECT scream(email) FROM customers;
"""
    done = subprocess.run(
        [str(server.bin / "psql"), "-X"], input=script, env={**gate.environment, **server.environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert not found_canaries(shown.replace("'vogelfrei'", "").encode())
    assert shown.count(str(MASKED["email"])) >= 4 * ROWS and "name3" in shown and "Failing row" not in shown


def test_other_columns_are_byte_identical(server: PostgresServer, gate: Gateway) -> None:
    """COPY in every format and rows in both: what no mask covers is what the server sent."""
    texts = (
        "COPY (SELECT id, name FROM customers ORDER BY id) TO STDOUT (FORMAT binary)",
        "COPY orders TO STDOUT (FORMAT csv, HEADER, FORCE_QUOTE *)",
        "COPY orders TO STDOUT",
        "SELECT id, name, upper(name), id * 2.5 FROM customers ORDER BY id",
        "SELECT o.*, c.name FROM orders o JOIN customers c ON c.id = o.customer_id ORDER BY oid",
        "SELECT count(*), max(id) FROM customers",
        "SELECT * FROM safe.customers",
        "SELECT id, upper(email) FROM safe.customers",
        "WITH x AS (SELECT id FROM customers) SELECT array_agg(id ORDER BY id) FROM x",
        "SELECT item, row_number() OVER (ORDER BY oid) FROM orders",
        "EXPLAIN (COSTS off) SELECT email FROM customers",
        "SELECT id, at FROM visits ORDER BY id",
        'SELECT "plain", id FROM "Odd.Table" ORDER BY id',
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
    )
    for binary in (False, True):
        with (
            psycopg.connect(gate.conninfo(), autocommit=True) as gated,
            server.connect(dbname="drivers") as direct,
        ):
            for text in texts:
                assert everything(gated, text, binary) == everything(direct, text, binary), text


def test_ddl_of_the_session_is_followed_at_once(gate: Gateway) -> None:
    with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
        for text, shows in (
            ("CREATE TABLE fresh (id int, email text)", False),
            ("INSERT INTO fresh VALUES (1, 'mine')", False),
            ("SELECT email, upper(email) FROM fresh", True),
            ("ALTER TABLE fresh RENAME COLUMN email TO note", False),
            ("SELECT note, upper(note) FROM fresh", True),
            ("ALTER TABLE fresh ADD COLUMN more text DEFAULT 'more'", False),
            ("SELECT note, more, upper(more) FROM fresh", True),
            ("CREATE VIEW fresh_view AS SELECT note AS email FROM fresh", False),
            ("SELECT email, upper(email) FROM fresh_view", True),
            ("DROP TABLE fresh CASCADE", False),
        ):
            shown = everything(connection, text)
            assert "ERROR" not in shown and ("MINE" in shown or "MORE" in shown) is shows, shown
        with connection.transaction():
            connection.execute("CREATE TABLE fresh (id int, email text)")
            connection.execute("INSERT INTO fresh VALUES (1, 'mine')")
            # No other session can see what it is, so it may be anything.
            assert "mine" not in everything(connection, "SELECT email, upper(email) FROM fresh")
        assert "mine" in everything(connection, "SELECT email FROM fresh")
        connection.execute("DROP TABLE fresh")


def test_detectors_find_what_no_column_mask_covers(server: PostgresServer) -> None:
    rules = ruleset(EVERYTHING + DETECTED)
    with (
        server.database("found", SCHEMA),
        gateway(server.port, database="found", policy=rules.decide) as running,
        psycopg.connect(running.conninfo(), autocommit=True) as connection,
    ):
        for text in (
            "SELECT email, name FROM customers",
            "SELECT name || ' writes from ' || email FROM customers",
            "SELECT row_to_json(c) ->> 'email', c::text FROM customers c",
            "COPY (SELECT email FROM customers) TO STDOUT",
            "SELECT email::int FROM customers",
            "SELECT shout(email) FROM customers",
        ):
            shown = everything(connection, text)
            assert "@secret" not in shown and ("<found>" in shown or text.startswith("COPY")), shown


# -- an agent that may only read ---------------------------------------------------------------------------

READER = """
rules:
  - name: readers
    commands: {kinds: [read], objects: ["public.*", "pg_catalog.*"]}
    allow: true
  - name: not-this
    commands: {objects: [public.orders]}
    deny: {reason: "not for agents"}
"""

# "-" runs, "D" is denied.
READ_ONLY = """
- | SELECT id FROM customers
- | SELECT count(*) FROM customers
- | BEGIN;; SELECT id FROM customers;; COMMIT
D | SELECT * FROM orders
D | SELECT * FROM public.orders
D | SELECT * FROM "orders"
D | SELECT * FROM ONLY public . orders
D | SELECT * FROM U&"\\006frders"
D | /* x */ SELECT /* -- */ * FROM /* y */ orders -- z
D | TABLE orders
D | WITH orders AS (SELECT 1) SELECT * FROM public.orders
- | WITH orders AS (SELECT 1) SELECT * FROM orders
D | SELECT (SELECT note FROM orders LIMIT 1)
D | SELECT id FROM customers WHERE EXISTS (SELECT 1 FROM orders)
D | SELECT id FROM customers ORDER BY (SELECT count(*) FROM orders)
D | SELECT id FROM customers LIMIT (SELECT count(*) FROM orders)
D | VALUES ((SELECT count(*) FROM orders))
D | EXPLAIN SELECT * FROM orders
D | EXPLAIN ANALYZE DELETE FROM customers
D | DECLARE c CURSOR FOR SELECT * FROM orders
D | PREPARE p AS SELECT * FROM orders
D | PREPARE p AS DELETE FROM customers
D | EXECUTE nobody
D | FETCH 1 FROM nobody
D | COPY customers TO STDOUT
D | COPY (DELETE FROM customers RETURNING id) TO STDOUT
D | COPY customers TO PROGRAM 'true'
D | COPY customers FROM STDIN
D | INSERT INTO customers (id, name) VALUES (99, 'x')
D | WITH x AS (DELETE FROM customers RETURNING id) SELECT * FROM x
D | WITH x AS (INSERT INTO customers (id, name) VALUES (99, 'x') RETURNING id) SELECT * FROM x
D | SELECT id INTO stolen FROM customers
D | CREATE TABLE stolen AS SELECT id FROM customers
D | CREATE FUNCTION public.lower(customers) RETURNS text LANGUAGE sql AS 'SELECT 1'
D | CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)
D | SELECT emails()
D | SELECT * FROM emails()
D | SELECT public.email_of(1)
D | SELECT 1 OPERATOR(public.=) 1
D | DO $$ BEGIN DELETE FROM customers; END $$
D | DO $_$ BEGIN NULL; END $_$
D | CALL tell()
D | SELECT pg_read_file('/etc/passwd')
D | SELECT pg_ls_dir('/')
D | SELECT lo_import('/etc/passwd')
D | SELECT lo_create(1)
D | SELECT nextval('x')
D | SELECT pg_notify('a', 'b')
D | SELECT pg_terminate_backend(1)
D | SELECT pg_reload_conf()
D | SELECT query_to_xml('SELECT * FROM orders', true, true, '')
D | SELECT table_to_xml('orders', true, true, '')
D | SELECT dblink('dbname=shop', 'SELECT 1')
D | SELECT set_config('role', 'postgres', false)
D | SELECT set_config('ro' || 'le', 'postgres', false)
D | SET ROLE postgres
D | SET SESSION AUTHORIZATION postgres
D | SET LOCAL ROLE postgres
D | RESET ROLE
D | SET standard_conforming_strings = off
D | SELECT 1; DELETE FROM customers
D | SELECT 1; SELECT * FROM orders
D | BEGIN; SELECT id FROM customers; TRUNCATE customers; COMMIT
D | SELECT id FROM customers \\; DELETE FROM customers
D | LOCK TABLE customers
D | TRUNCATE customers
D | VACUUM customers
D | ANALYZE customers
D | COMMENT ON TABLE customers IS 'x'
D | GRANT ALL ON customers TO PUBLIC
D | ALTER SYSTEM SET work_mem = '1MB'
D | CHECKPOINT
D | LOAD 'auto_explain'
D | CREATE TEMP TABLE t (a int)
D | CREATE TEMP VIEW customers AS SELECT 1
D | MERGE INTO customers c USING customers d ON false WHEN NOT MATCHED THEN INSERT (id, name) VALUES (99, 'x')
D | SELECT * FROM safe.customers
- | SELECT E'\\'; DELETE FROM customers; --'
D | SELECT $a$ $a$; DELETE FROM customers
D | REFRESH MATERIALIZED VIEW frozen
D | SELECT id FROM customers FOR UPDATE; DELETE FROM customers
"""


@pytest.fixture(scope="module")
def reader(server: PostgresServer) -> Iterator[Gateway]:
    with (
        server.database("reads", SCHEMA),
        gateway(server.port, database="reads", policy=ruleset(READER).decide) as running,
    ):
        yield running


@pytest.mark.parametrize("line", [line for line in READ_ONLY.splitlines() if line], ids=lambda line: line[-50:])
def test_reader_reads_and_no_more(server: PostgresServer, reader: Gateway, line: str) -> None:
    expected, _, attempt = line.partition(" | ")
    with psycopg.connect(reader.conninfo(), autocommit=True) as connection:
        shown = [everything(connection, text.replace("\\\\", "\\")) for text in attempt.split(";; ") if text.strip()]
    assert ("42501" in shown[-1]) is (expected == "D"), shown
    assert server.run("SELECT count(*) FROM customers", dbname="reads") == [(ROWS,)]


def test_reader_cannot_move_to_another_schema(reader: Gateway) -> None:
    """Once the path is set, a bare name may be that of any schema: all of them must be allowed."""
    with psycopg.connect(reader.conninfo(), autocommit=True) as connection:
        connection.execute("SET search_path = safe")
        for _ in range(2):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT id FROM customers")
        assert connection.execute("SELECT count(*) FROM public.customers").fetchone() == (ROWS,)
