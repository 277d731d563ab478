"""Which tables a query names, and how many bytes it would read: the layer's own dry run.

sqlglot names the tables, the emulator's catalogue says which of them exist. A view is named, and so is what it reads;
its text comes from INFORMATION_SCHEMA.VIEWS, which tables.get of the emulator leaves out. A wildcard table is named as
the text does, and has the bytes of all tables that it covers; INFORMATION_SCHEMA costs nothing and is not named. A WITH
names only what comes later, as the service does it. The bytes are rows x sizes of the columns that the text names (all
of them where a star is, none for COUNT(*); of what UPDATE, DELETE and MERGE write all), by the sizes of
cloud.google.com/bigquery/pricing#data; strings count as STRING_BYTES. sizes.json in the layer's folder, a mapping of
"project.dataset.table" to bytes, overrules a table's bytes: for tests of cost.

Type, schema and errors of a dry run are the emulator's own. Not known here: referencedRoutines (gaps.py, "routines").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlglot
from sqlglot import exp

from tests.peers.bq.http import Emulator

STRING_BYTES: Final = 20  # 2 bytes and a text of 18: an assumption, the real service counts the text
FIELD_BYTES: Final = {
    "INTEGER": 8, "INT64": 8, "FLOAT": 8, "FLOAT64": 8, "NUMERIC": 16, "BIGNUMERIC": 32, "BOOLEAN": 1, "BOOL": 1,
    "DATE": 8, "DATETIME": 8, "TIME": 8, "TIMESTAMP": 8, "INTERVAL": 16,
}  # fmt: skip
BILLED_LEAST: Final = 10 << 20  # of each query: cloud.google.com/bigquery/pricing#on_demand_pricing
VIEW_DEPTH_LIMIT: Final = 16  # cloud.google.com/bigquery/quotas#view_limits

Table = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a query reads: tables in the order of the text; target: what a DML or DDL statement is about."""

    tables: tuple[Table, ...] = ()
    size_bytes: int = 0
    target: Table | None = None

    @property
    def billed_bytes(self) -> int:
        """What would be billed: whole megabytes, at least ten where anything is read."""
        return 0 if not self.size_bytes else max(BILLED_LEAST, -(-self.size_bytes // (1 << 20)) << 20)

    @property
    def references(self) -> list[dict[str, str]]:
        """The tables as TableReferences."""
        return [reference(table) for table in self.tables]


def reference(table: Table) -> dict[str, str]:
    """Return a TableReference."""
    return dict(zip(("projectId", "datasetId", "tableId"), table, strict=True))


class Estimator:
    """Estimates, against the emulator's catalogue."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        self._emulator = emulator
        self._sizes = folder / "sizes.json"

    async def of(self, text: str, project: str, dataset: Mapping[str, str] | None = None) -> Estimate:
        """Estimate a query; what cannot be parsed reads nothing."""
        statements = _parsed(text)
        found: dict[Table, int] = {}
        target: Table | None = None
        for statement in statements:
            await self._read(statement, project, dataset, found, VIEW_DEPTH_LIMIT)
            target = _target(statement, project, dataset) or target
        return Estimate(tuple(found), sum(found.values()), target)

    async def _read(
        self,
        statement: exp.Expression,
        project: str,
        dataset: Mapping[str, str] | None,
        found: dict[Table, int],
        depth: int,
    ) -> None:
        named = {column.name.lower() for column in statement.find_all(exp.Column)}
        every = any(not isinstance(star.parent, exp.Count) for star in statement.find_all(exp.Star))
        written = _target(statement, project, dataset)
        for table in _tables(statement, project, dataset):
            if table in found:
                continue
            if table[2].endswith("*"):
                covered = await self._covered(table)
                if covered:
                    found[table] = sum([await self._size(each, named, every) for each in covered])
                continue
            resource = await self.table(table)
            if resource is not None and "view" in resource and depth:
                found[table] = 0
                for inner in _parsed(resource["view"].get("query", "")):
                    await self._read(inner, table[0], None, found, depth - 1)
            elif resource is not None:
                found[table] = await self._size(resource, named, every or table == written)

    async def _size(self, resource: Mapping[str, Any], named: set[str], every: bool) -> int:
        table = tuple(resource["tableReference"][key] for key in ("projectId", "datasetId", "tableId"))
        fields = resource.get("schema", {}).get("fields", [])
        wanted = [each for each in fields if every or each["name"].lower() in named]
        return self._declared(table) or int(resource["numRows"]) * sum(map(_bytes, wanted))

    async def _covered(self, pattern: Table) -> list[dict[str, Any]]:
        """The tables that a wildcard covers; views are none of them. Source: "Wildcard tables", limitations."""
        got = await self._emulator.api("GET", pattern[0], "datasets", pattern[1], "tables", maxResults="1000")
        names = [each["tableReference"]["tableId"] for each in got.object.get("tables", [])]
        found = [await self.table((*pattern[:2], name)) for name in names if name.startswith(pattern[2][:-1])]
        return [each for each in found if each is not None and each.get("type") == "TABLE"]

    async def table(self, table: Table) -> dict[str, Any] | None:
        """Return a table's resource with numRows and numBytes, which the emulator leaves at 0."""
        got = await self._emulator.api("GET", table[0], "datasets", table[1], "tables", table[2])
        if got.code != 200:
            return None
        resource = got.object
        if resource.get("type") == "VIEW":
            resource.setdefault("view", {"query": await self._definition(table), "useLegacySql": False})
        if resource.get("type") in ("TABLE", "MATERIALIZED_VIEW", "SNAPSHOT"):
            where = (table[0], "datasets", table[1], "tables", table[2], "data")
            rows = int((await self._emulator.api("GET", *where, maxResults="0")).object.get("totalRows", 0))
            size = self._declared(table) or rows * sum(map(_bytes, resource.get("schema", {}).get("fields", [])))
            resource["numRows"] = str(rows)
            for name in ("numBytes", "numActiveLogicalBytes", "numTotalLogicalBytes"):
                resource[name] = str(size)
        return resource

    async def _definition(self, view: Table) -> str:
        text = (
            f"SELECT view_definition FROM `{view[0]}`.{view[1]}.INFORMATION_SCHEMA.VIEWS WHERE table_name = '{view[2]}'"
        )
        value = {"query": text, "useLegacySql": False}
        rows = (await self._emulator.api("POST", view[0], "queries", value=value)).object.get("rows", [])
        return rows[0]["f"][0]["v"] if rows else ""

    def _declared(self, table: Table) -> int:
        if not self._sizes.exists():
            return 0
        declared: dict[str, int] = json.loads(self._sizes.read_text())
        return declared.get(".".join(table), 0)


def _parsed(text: str) -> list[exp.Expression]:
    try:
        return [each for each in sqlglot.parse(text, dialect="bigquery") if each is not None]
    except (sqlglot.errors.SqlglotError, RecursionError):
        return []


def _tables(statement: exp.Expression, project: str, dataset: Mapping[str, str] | None) -> Iterator[Table]:
    """Tables that are read. An INSERT's or a CREATE's own table is written alone."""
    written = statement.this if isinstance(statement, exp.Insert | exp.Create) else None
    if isinstance(written, exp.Schema):
        written = written.this
    for node in statement.find_all(exp.Table):
        if node is written or (not node.db and node.name.lower() in _visible(node)):
            continue
        if (table := _table(node, project, dataset)) is not None:
            yield table


def _visible(node: exp.Expression) -> set[str]:
    """The queries of WITH that a place sees: those before it, all of them where it is RECURSIVE."""
    found: set[str] = set()
    inside: exp.Expression | None = node
    while inside is not None and (parent := inside.parent) is not None:
        if isinstance(parent, exp.With):
            every = bool(parent.args.get("recursive"))
            before = parent.expressions if every else parent.expressions[: parent.expressions.index(inside)]
            found |= {each.alias.lower() for each in before}
            inside = parent.parent
            continue
        with_ = parent.args.get("with") or parent.args.get("with_")  # its name depends on the version
        if with_ is not None:
            found |= {each.alias.lower() for each in with_.expressions}
        inside = parent
    return found


def _table(node: exp.Table, project: str, dataset: Mapping[str, str] | None) -> Table | None:
    if not node.name or "INFORMATION_SCHEMA" in node.sql().upper():
        return None
    if not node.db and not dataset:
        return None
    given = dataset or {}
    default = given.get("projectId", project) if not node.db else project
    return node.catalog or default, node.db or given["datasetId"], node.name


def _target(statement: exp.Expression, project: str, dataset: Mapping[str, str] | None) -> Table | None:
    if not isinstance(statement, exp.Insert | exp.Update | exp.Delete | exp.Merge | exp.Create):
        return None
    node = statement.this.this if isinstance(statement.this, exp.Schema) else statement.this
    return _table(node, project, dataset) if isinstance(node, exp.Table) else None


def _bytes(field: Mapping[str, Any]) -> int:
    if "fields" in field:
        return sum(map(_bytes, field["fields"]))
    return FIELD_BYTES.get(field["type"], STRING_BYTES)
