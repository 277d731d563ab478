"""Sessions of real clients, recorded through the gateway and run again on a sandbox: what is said to differ, differs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg
import pytest

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
