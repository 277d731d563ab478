"""What a command may touch is read from the catalogue as it is after the DDL before it, not as it was."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from proxy.core.events import Command
from proxy.core.verdict import Allow, Verdict
from tests.peers.postgres import PostgresServer
from tests.postgres.gateway import Gateway, gateway

pytestmark = pytest.mark.peer

TABLES = """
    CREATE TABLE plain (a int, b text); CREATE TABLE secret (a int, b text);
    INSERT INTO plain VALUES (1, 'p'); INSERT INTO secret VALUES (2, 's')
"""


class Watched:
    """Allows everything and remembers what each command was said to touch."""

    def __init__(self) -> None:
        self.resolved: dict[str, dict[str, tuple[str, ...]]] = {}

    def __call__(self, command: Command) -> Verdict:
        self.resolved[command.text] = dict(command.facts.get("resolved", {}))
        return Allow("watched")


@pytest.fixture(scope="module")
def watched(postgres15: PostgresServer) -> Iterator[tuple[Gateway, Watched]]:
    rule = Watched()
    with (
        postgres15.database("after_ddl", TABLES),
        gateway(postgres15.port, rule, database="after_ddl") as running,
    ):
        yield running, rule


def test_the_first_command_after_ddl_is_read_with_it(watched: tuple[Gateway, Watched]) -> None:
    """A view that changed its table was decided once more by the old one."""
    gate, rule = watched
    with psycopg.connect(gate.conninfo(), autocommit=True) as connection:
        connection.execute("CREATE VIEW v AS SELECT a, b FROM plain")
        connection.execute("SELECT a FROM v /* 1 */")
        assert rule.resolved["SELECT a FROM v /* 1 */"] == {"v": ("public.v", "public.plain")}
        connection.execute("CREATE OR REPLACE VIEW v AS SELECT a, b FROM secret")
        assert connection.execute("SELECT a FROM v /* 2 */").fetchall() == [(2,)]
        assert rule.resolved["SELECT a FROM v /* 2 */"] == {"v": ("public.v", "public.secret")}
        connection.execute("ALTER VIEW v RENAME TO w")
        connection.execute("SELECT a FROM w /* 3 */")
        assert rule.resolved["SELECT a FROM w /* 3 */"] == {"w": ("public.w", "public.secret")}
        connection.execute("DROP VIEW w")
        connection.execute("ALTER TABLE plain RENAME TO other")
        connection.execute("ALTER TABLE secret RENAME TO plain")
        connection.execute("SELECT a FROM plain /* 4 */")
        connection.execute("CREATE VIEW v AS SELECT a FROM other")
        connection.execute("SELECT a FROM v /* 5 */")
        assert rule.resolved["SELECT a FROM v /* 5 */"] == {"v": ("public.v", "public.other")}
        connection.execute("DROP VIEW v")
        connection.execute("ALTER TABLE plain RENAME TO secret")
        connection.execute("ALTER TABLE other RENAME TO plain")
