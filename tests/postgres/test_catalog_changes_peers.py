"""A catalogue that reads only what has changed is, after every statement, the one that reads everything."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from protocols.postgres import catalog as module
from protocols.postgres.catalog import Catalog
from protocols.postgres.catalog_snapshot import Snapshot
from proxy.core.parties import Credential, Target
from proxy.policy.sql import SqlReader
from tests.peers.postgres import PostgresServer

pytestmark = pytest.mark.peer

STATEMENTS = """
CREATE TABLE one (a int PRIMARY KEY, b text, c text)
CREATE TABLE two (a int, b text)
CREATE VIEW v AS SELECT a, b, c FROM one
CREATE VIEW vv AS SELECT v.a, upper(v.b) AS b FROM v JOIN two USING (a)
ALTER TABLE one RENAME COLUMN b TO x
ALTER TABLE one RENAME COLUMN c TO b
ALTER TABLE one RENAME COLUMN x TO c
CREATE OR REPLACE VIEW v AS SELECT a, b, c FROM (SELECT a, b, c FROM one) AS s
CREATE OR REPLACE VIEW v AS SELECT a, b, NULL::text AS c FROM two
ALTER TABLE one RENAME TO three
ALTER TABLE two RENAME TO one
CREATE TABLE two (a int, b text)
ALTER TABLE three ADD COLUMN d int GENERATED ALWAYS AS (a + 1) STORED
ALTER TABLE three ALTER COLUMN d DROP EXPRESSION
ALTER TABLE three DROP COLUMN c
ALTER TABLE three ALTER COLUMN b TYPE varchar(20)
CREATE SCHEMA s
ALTER TABLE three SET SCHEMA s
ALTER VIEW vv SET SCHEMA s
ALTER SCHEMA s RENAME TO t
CREATE TABLE parent (a int, b text)
CREATE TABLE child (c int) INHERITS (parent)
ALTER TABLE child NO INHERIT parent
ALTER TABLE child INHERIT parent
CREATE TABLE part (a int, b text) PARTITION BY RANGE (a)
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10)
CREATE TABLE part_2 (b text, a int)
ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (10) TO (20)
ALTER TABLE part DETACH PARTITION part_1
ALTER TABLE part DETACH PARTITION part_2 CONCURRENTLY
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT max(a) FROM public.one'
CREATE OR REPLACE VIEW t.vv AS SELECT a, upper(b) AS b FROM two WHERE a = f()
ALTER FUNCTION f() RENAME TO g
CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE moody (m mood)
ALTER TYPE mood ADD VALUE 'fine'
ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'
CREATE DOMAIN d AS varchar(10) CHECK (VALUE <> '')
CREATE MATERIALIZED VIEW m AS SELECT * FROM moody
REFRESH MATERIALIZED VIEW m
CREATE SEQUENCE q
CREATE RULE r AS ON INSERT TO two DO ALSO NOTIFY two
BEGIN; SAVEPOINT a; CREATE TABLE sub (a int); RELEASE a; COMMIT
BEGIN; CREATE TABLE never (a int); ROLLBACK
BEGIN; CREATE TABLE prepared (a int); PREPARE TRANSACTION 'changes'
CREATE TABLE while_prepared (a int)
COMMIT PREPARED 'changes'
VACUUM FULL pg_catalog.pg_class; VACUUM FREEZE pg_catalog.pg_attribute
ALTER TABLE two ADD COLUMN after_vacuum int
CREATE ROLE changes_role; CREATE SCHEMA changes_role
ALTER DATABASE changes SET search_path = t, public
CREATE TEMP TABLE one (z int)
DROP VIEW v, t.vv
DROP TABLE one CASCADE
DROP TABLE parent CASCADE
DROP SCHEMA changes_role; DROP ROLE changes_role
""".strip().splitlines()

PARTS = ("_relations", "_by_name", "_by_bare", "_parents", "_children", "_reads", "_calls", "_generated",
         "_definitions", "_role_schemas", "search_path")  # fmt: skip


def content(snapshot: Snapshot) -> dict[str, Any]:
    """Everything in it, in an order of its own; dropped functions and types may stay."""
    found: dict[str, Any] = {}
    for part in PARTS:
        value = getattr(snapshot, part)
        if part in ("_by_name", "_by_bare"):
            value = {name: sorted(each.oid for each in relations) for name, relations in value.items()}
        elif part in ("_parents", "_children"):
            value = {oid: sorted(others) for oid, others in value.items() if others}
        elif part == "_generated":
            value = {oid: {number: sorted(from_) for number, from_ in of.items()} for oid, of in value.items()}
        found[part] = value
    return found


async def _follow(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("x", "postgres", "127.0.0.1", server.port, "changes", settings={"sslmode": "disable"})
    reader = SqlReader()
    followed = Catalog(target, Credential("postgres"), reader)
    await followed.refresh()
    whole: list[str] = []

    async def read_all(self: Catalog, link: Any) -> None:
        whole.append("read")
        await real(self, link)

    real = Catalog._read_all
    monkeypatch.setattr(module, "MAX_AGE_SECONDS", 1e9)
    with server.connect(dbname="changes") as connection:
        for text in STATEMENTS:
            connection.execute("COMMIT")
            for each in text.split(";"):
                connection.execute(each.strip().encode())
            monkeypatch.setattr(Catalog, "_read_all", read_all)
            version = followed.version
            followed.stale()
            await followed.refresh()
            assert not whole, f"everything was read again after {text}"
            monkeypatch.setattr(Catalog, "_read_all", real)
            fresh = Catalog(target, Credential("postgres"), reader)
            await fresh.refresh()
            assert content(followed._snapshot) == content(fresh._snapshot), text
            assert fresh._snapshot._functions.items() <= followed._snapshot._functions.items(), text
            assert fresh._snapshot._types.items() <= followed._snapshot._types.items(), text
            seen = followed.version
            followed.stale()
            await followed.refresh()
            assert followed.version == seen, f"nothing has changed, and yet the version did after {text}"
            if text.startswith("BEGIN; CREATE TABLE never"):
                assert followed.version == version


@pytest.mark.parametrize("version", ["15", "18"])
def test_changes_lead_to_the_same(
    version: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: PostgresServer = request.getfixturevalue(f"postgres{version}")
    with server.database("changes"):
        asyncio.run(_follow(server, monkeypatch))


def test_another_server_is_read_whole(postgres15: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted or restored server may count transactions anew: what changed since then cannot be told."""

    async def go() -> None:
        target = Target("x", "postgres", "127.0.0.1", postgres15.port, "postgres", settings={"sslmode": "disable"})
        catalog = Catalog(target, Credential("postgres"))
        await catalog.refresh()
        read: list[str] = []

        async def read_all(self: Catalog, link: Any) -> None:
            read.append("all")
            await real(self, link)

        real = Catalog._read_all
        monkeypatch.setattr(Catalog, "_read_all", read_all)
        catalog.stale()
        await catalog.refresh()
        assert read == []
        assert catalog._mark is not None
        catalog._mark = ("another start", catalog._mark[1])
        catalog.stale()
        await catalog.refresh()
        assert read == ["all"] and catalog._mark[0] != "another start"

    asyncio.run(go())
