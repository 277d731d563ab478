"""Real clients against real servers through the gateway: whatever works directly works here, byte for byte."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pg8000.dbapi
import psycopg
import pytest

from tests.fakes import TOKEN
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway, gateway

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module", params=["15", "18"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(f"postgres{request.param}")
    return found


@pytest.fixture(scope="module")
def gate(server: PostgresServer) -> Iterator[Gateway]:
    item = "CREATE TABLE item (id int PRIMARY KEY, name text, at timestamptz, data jsonb)"
    with server.database("clients", item), gateway(server.port, database="clients") as running:
        yield running


def run(server: PostgresServer, gate: Gateway, program: str, *arguments: str, **more: Any) -> str:
    """Run a client program of the server's own version through the gateway; stdout and stderr."""
    done = subprocess.run(
        [str(server.bin / program), *arguments],
        env={**gate.environment, **server.environment, **more.pop("env", {})},
        capture_output=True, text=True, timeout=60, check=False, **more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


SCRIPT = """
\\set ON_ERROR_STOP off
SELECT 1 AS one, 'two' AS two, NULL AS nothing;
SELECT 1/0;
SELECT 1 \\; SELECT 2 \\; SELECT 3;
BEGIN; CREATE TEMP TABLE t (a int UNIQUE, b text); INSERT INTO t VALUES (1, 'x'), (1, 'y'); SELECT 1; COMMIT;
SELECT * FROM t;
;
DO $$ BEGIN RAISE NOTICE 'hello %', 'world'; RAISE WARNING 'careful'; END $$;
CREATE TEMP TABLE c (a int, b text);
COPY c FROM STDIN;
1\tone
2\ttwo
\\.
COPY c TO STDOUT WITH (FORMAT csv, HEADER);
COPY c FROM STDIN;
x\tbad
\\.
PREPARE p (int) AS SELECT a, b FROM c WHERE a = $1;
EXECUTE p(2);
EXECUTE p(3);
DEALLOCATE p;
BEGIN;
DECLARE cur CURSOR FOR SELECT * FROM c ORDER BY a;
FETCH 1 FROM cur;
FETCH ALL FROM cur;
COMMIT;
SELECT a, b FROM c WHERE a = $1 \\bind 1 \\g
SET application_name = 'other';
SHOW application_name;
\\set FETCH_COUNT 1
SELECT * FROM generate_series(1, 3);
\\unset FETCH_COUNT
LISTEN ch;
NOTIFY ch, 'payload';
SELECT 1;
SELECT repeat('x', 100000) = repeat('x', 100000) AS same;
EXPLAIN (COSTS off) SELECT * FROM c;
SELECT count(*) FROM nothere;
\\echo :SQLSTATE :LAST_ERROR_MESSAGE
\\d c
\\dt pg_catalog.pg_class
\\lo_list
\\conninfo_is_left_out
"""


def test_psql_prints_the_same(server: PostgresServer, gate: Gateway) -> None:
    lines = [line for line in SCRIPT.splitlines() if server.version == "18" or "\\bind" not in line]
    script = "\n".join(lines)
    arguments = ["-X", "-v", "VERBOSITY=verbose", "-e"]
    direct = subprocess.run(
        [str(server.bin / "psql"), *arguments, server.conninfo(dbname="clients")],
        input=script, capture_output=True, text=True, timeout=60, check=False, env=dict(server.environment),
    )  # fmt: skip
    gated = subprocess.run(
        [str(server.bin / "psql"), *arguments, gate.conninfo()],
        input=script, capture_output=True, text=True, timeout=60, check=False, env=dict(server.environment),
    )  # fmt: skip
    assert _stable(gated.stdout) == _stable(direct.stdout)
    assert _stable(gated.stderr) == _stable(direct.stderr)
    assert "hello world" in gated.stderr and "division by zero" in gated.stderr


def _stable(text: str) -> list[str]:
    """Leave out what names the process."""
    lines = (line.split(" received from server process")[0] for line in text.splitlines() if "PID" not in line)
    return [re.sub(r" *pg_temp_\d+", "pg_temp", line) for line in lines]


def test_pgbench_in_every_mode(server: PostgresServer, gate: Gateway) -> None:
    run(server, gate, "pgbench", "-i", "-s", "1", "-q")
    for mode in ("simple", "extended", "prepared"):
        out = run(server, gate, "pgbench", "-M", mode, "-c", "4", "-j", "2", "-t", "50")
        assert "number of transactions actually processed: 200/200" in out
        assert "number of failed transactions: 0" in out


def test_dump_and_restore(server: PostgresServer, gate: Gateway, tmp_path: Path) -> None:
    made = """
        CREATE SCHEMA s; CREATE TABLE s.d AS SELECT i, md5(i::text) h FROM generate_series(1, 5000) i;
        CREATE VIEW s.v AS SELECT h FROM s.d WHERE i < 10; SELECT lo_from_bytea(4711, 'large')
    """
    server.run(made, dbname="clients")
    for style in ("plain", "custom"):
        gated, direct = tmp_path / f"gated.{style}", tmp_path / f"direct.{style}"
        arguments = [f"--format={style}", "--schema=s", "--no-owner"]
        run(server, gate, "pg_dump", *arguments, f"--file={gated}")
        if style == "plain":
            subprocess.run(
                [str(server.bin / "pg_dump"), *arguments, f"--file={direct}", server.conninfo(dbname="clients")],
                check=True, env=dict(server.environment), timeout=60,
            )  # fmt: skip
            keep = [line for line in direct.read_text().splitlines() if "restrict" not in line]
            assert [line for line in gated.read_text().splitlines() if "restrict" not in line] == keep
    server.run("DROP SCHEMA s CASCADE", dbname="clients")
    run(server, gate, "pg_restore", "--dbname=shop", str(tmp_path / "gated.custom"))
    assert server.run("SELECT count(*), max(h) FROM s.d", dbname="clients")[0][0] == 5000
    server.run("DROP SCHEMA s CASCADE; SELECT lo_unlink(4711)", dbname="clients")


def test_psycopg_in_every_way(gate: Gateway) -> None:
    with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
        connection.execute("TRUNCATE item")
        with connection.cursor(binary=True) as cursor:
            cursor.executemany("INSERT INTO item (id, name) VALUES (%s, %s)", [(i, f"n{i}") for i in range(500)])
            cursor.execute("SELECT id, name, now(), '{\"a\": 1}'::jsonb FROM item WHERE id = %s", (7,))
            row = cursor.fetchone()
            assert row is not None and row[0] == 7 and row[3] == {"a": 1}
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int", (i,)) for i in range(50)]
        assert [cursor.fetchone() for cursor in cursors] == [(i,) for i in range(50)]
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline() as pipeline:
            connection.execute("INSERT INTO item (id) VALUES (9000)")
            connection.execute("SELECT 1/0")
            connection.execute("INSERT INTO item (id) VALUES (9001)")
            pipeline.sync()
        assert connection.execute("SELECT count(*) FROM item WHERE id >= 9000").fetchone() == (0,)
        with connection.cursor() as cursor, cursor.copy("COPY item (id, name) FROM STDIN") as copy:
            for i in range(1000, 1100):
                copy.write_row((i, "copied\tand 'quoted'"))
        with connection.cursor() as cursor, cursor.copy("COPY item TO STDOUT (FORMAT binary)") as copy:
            assert len(b"".join(bytes(block) for block in copy)) > 1000
        for _ in range(8):  # prepared by the server after five
            assert connection.execute("SELECT name FROM item WHERE id = %s", (1000,)).fetchone() is not None
        with connection.transaction(), connection.cursor("named") as named:
            named.execute("SELECT id FROM item ORDER BY id")
            assert len(named.fetchmany(10)) == 10
        value = "x" * 30_000_000
        returned = connection.execute("SELECT %s::text", (value,)).fetchone()
        assert returned is not None and returned[0] == value


def test_psycopg_async(gate: Gateway) -> None:
    async def go() -> None:
        async with await psycopg.AsyncConnection.connect(gate.conninfo(), autocommit=True) as connection:
            for size in (8000, 16_000, 64_000, 1_000_000):
                cursor = await connection.execute("SELECT repeat('y', %s) FROM generate_series(1, 5)", (size,))
                assert [len(row[0]) for row in await cursor.fetchall()] == [size] * 5

    asyncio.run(go())


def test_asyncpg(gate: Gateway) -> None:
    async def go() -> None:
        connection = await asyncpg.connect(
            host=gate.host, port=gate.port, user="agent", password=TOKEN, database="shop", ssl=False
        )
        try:
            await connection.execute("TRUNCATE item")
            await connection.executemany("INSERT INTO item (id, name) VALUES ($1, $2)", [(i, "a") for i in range(2000)])
            assert await connection.fetchval("SELECT count(*) FROM item") == 2000
            with pytest.raises(asyncpg.UniqueViolationError):
                await connection.executemany("INSERT INTO item (id) VALUES ($1)", [(i,) for i in range(1990, 2010)])
            async with connection.transaction():
                got = [record["id"] async for record in connection.cursor("SELECT id FROM item ORDER BY id")]
            assert got == list(range(2000))
            await connection.copy_records_to_table("item", records=[(5000, "b", None, None)])
            heard: list[str] = []
            arrived = asyncio.Event()

            def listener(_: Any, pid: int, channel: str, payload: Any) -> None:
                heard.append(payload)
                assert pid == connection.get_server_pid()
                arrived.set()

            await connection.add_listener("news", listener)
            await connection.execute("NOTIFY news, 'told'")
            await asyncio.wait_for(arrived.wait(), 10)
            assert heard == ["told"]
            await connection.remove_listener("news", listener)
            with pytest.raises(asyncio.TimeoutError):
                await connection.execute("SELECT pg_sleep(30)", timeout=0.3)
            assert await connection.fetchval("SELECT 1") == 1
        finally:
            await connection.close()

    asyncio.run(go())


def test_pg8000(gate: Gateway) -> None:
    connection = pg8000.dbapi.connect(user="agent", password=TOKEN, host=gate.host, port=gate.port, database="shop")
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT %s::int + 1, 'x'", (41,))
        assert cursor.fetchall() == ([42, "x"],)
        with pytest.raises(pg8000.dbapi.DatabaseError):
            cursor.execute("SELECT nothing")
        connection.rollback()
        cursor.execute("SELECT 1")
    finally:
        connection.close()


def test_cancel_reaches_the_right_query(gate: Gateway) -> None:
    with (
        psycopg.connect(gate.conninfo(), autocommit=True) as one,
        psycopg.connect(gate.conninfo(), autocommit=True) as two,
    ):
        other: list[Any] = []
        thread = threading.Thread(target=lambda: other.append(two.execute("SELECT pg_sleep(1.5), 'ok'").fetchone()))
        thread.start()
        killer = threading.Timer(
            0.3, one.cancel_safe
        )  # cancel() would hold the GIL, and the gateway is in this process
        killer.start()
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            one.execute("SELECT pg_sleep(20)")
        assert time.monotonic() - began < 10
        one.cancel_safe()  # idle: nothing may be hit later
        assert one.execute("SELECT 1").fetchone() == (1,)
        thread.join()
        assert other[0][1] == "ok"


def test_user_who_vanishes_leaves_no_backend(server: PostgresServer, gate: Gateway) -> None:
    connection = psycopg.connect(gate.conninfo(), autocommit=True)
    pid = connection.info.backend_pid
    connection.pgconn.send_query(b"SELECT pg_sleep(30)")
    while not server.run(f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"):
        pass
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)  # no goodbye
    connection.close()
    deadline = time.monotonic() + 10
    while server.run(f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"):
        assert time.monotonic() < deadline, "the backend still runs"


def test_backend_terminated_is_told_in_its_own_words(server: PostgresServer, gate: Gateway) -> None:
    with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
        server.run(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        with pytest.raises(psycopg.errors.AdminShutdown) as caught:
            connection.execute("SELECT 1")
        assert "administrator command" in str(caught.value)


NAMED = {"PGOPTIONS": "-c gatecast.target=shop"}  # these programs always say dbname=replication


def test_logical_and_physical_replication(server: PostgresServer, gate: Gateway, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    run(server, gate, "pg_basebackup", "-D", str(backup), "-X", "stream", "-c", "fast", "--no-sync", env=NAMED)
    assert (backup / "PG_VERSION").read_text().strip() == server.version
    run(server, gate, "pg_recvlogical", "-d", "shop", "--slot=gc", "--create-slot", "--plugin=test_decoding")
    server.run("CREATE TABLE logged (a int); INSERT INTO logged VALUES (1), (2); DROP TABLE logged", dbname="clients")
    lsn = server.run("SELECT pg_current_wal_lsn()::text")[0][0]
    out = tmp_path / "changes"
    run(
        server,
        gate,
        "pg_recvlogical",
        "-d",
        "shop",
        "--slot=gc",
        "--start",
        "--no-loop",
        f"--endpos={lsn}",
        "-f",
        str(out),
    )
    assert "INSERT: a[integer]:2" in out.read_text()
    run(server, gate, "pg_recvlogical", "-d", "shop", "--slot=gc", "--drop-slot")
