"""PostgreSQL 12 to 18 in containers, where a Docker engine is there; elsewhere these skip, and 15 and 18 stand for all.

The rest of the suite never needs an engine. Each version runs the same short conversation directly and through
the gateway: simple, extended, COPY, an error in a transaction, a masked column.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from proxy.core.events import Command
from proxy.core.verdict import Allow, Mask, Verdict
from tests.postgres.gateway import gateway

pytestmark = [pytest.mark.container, pytest.mark.peer]

VERSIONS = ("12", "13", "14", "15", "16", "17", "18")


def _engine() -> bool:
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture(scope="module", params=VERSIONS)
def container(request: pytest.FixtureRequest) -> Iterator[Any]:
    if not _engine():
        pytest.skip("no Docker engine: start one to run the versions 12 to 18")
    from testcontainers.postgres import PostgresContainer

    with PostgresContainer(
        f"postgres:{request.param}", username="postgres", password="secret", dbname="postgres"
    ) as it:
        yield it


def mask(command: Command) -> Verdict:
    return Allow("masked", (Mask("masked", columns=("public.people.email",)),))


def test_the_same_through_the_gateway(container: Any) -> None:
    host, port = container.get_container_host_ip(), int(container.get_exposed_port(5432))
    direct = f"host={host} port={port} user=postgres password=secret dbname=postgres"
    with psycopg.connect(direct, autocommit=True) as connection:
        connection.execute("CREATE TABLE people (id int, email text); INSERT INTO people VALUES (1, 'ana@acme.com')")
        wanted = _conversation(connection)
    with (
        gateway(port, target_host=host, password="secret") as gate,
        psycopg.connect(gate.conninfo(), autocommit=True) as connection,
    ):
        assert _conversation(connection) == wanted
    with (
        gateway(port, mask, target_host=host, password="secret") as gate,
        psycopg.connect(gate.conninfo(), autocommit=True) as connection,
    ):
        assert connection.execute("SELECT id, email FROM people").fetchall() == [(1, "[redacted]")]
        assert connection.execute("SELECT lower(email) FROM people", binary=True).fetchall() == [("[redacted]",)]


def _conversation(connection: psycopg.Connection[Any]) -> list[Any]:
    said: list[Any] = [
        connection.execute("SELECT 1, 'x', NULL, now() > '2000-01-01'").fetchall(),
        connection.execute("SELECT %s::int + 1", (41,), binary=True).fetchall(),
        connection.execute("SELECT g FROM generate_series(1, 1000) g").fetchall(),
    ]
    try:
        with connection.transaction():
            connection.execute("CREATE TABLE gone (a int)")
            connection.execute("SELECT 1/0")
    except psycopg.Error as error:
        said.append((error.sqlstate, str(error)))
    said.append(connection.execute("SELECT to_regclass('gone')").fetchall())
    with connection.cursor() as cursor, cursor.copy("COPY people TO STDOUT (FORMAT csv)") as copy:
        said.append(b"".join(bytes(block) for block in copy))
    return said
