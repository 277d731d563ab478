"""Which queries are rewritten before they are decided on, what is asked of the target for it, and what then runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from protocols.bigquery.bodies import write_object
from protocols.bigquery.dial_settings import Settings, read_settings
from protocols.bigquery.estimates import KEPT_SECONDS, dry_run
from protocols.bigquery.requests import Asked, read_request
from protocols.bigquery.rewriting import (
    FIELDS_LIMIT,
    SCHEMAS_LIMIT,
    TABLES_LIMIT,
    Schemas,
    forget,
    rewritten,
    schemas_of,
)
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.events import Command
from proxy.core.gate import Gate
from proxy.core.http.heads import RequestHead
from proxy.core.parties import Target
from proxy.core.verdict import Mask
from proxy.core.warehouse import Analysis, Replacement, Rewritten, TableName
from proxy.masking import Masking
from proxy.masking.warehouse_scan import WarehouseScans
from proxy.policy.bigquery import analyse
from proxy.policy.bigquery_rewrite import rewrite
from tests.fakes import fake_gate

MASKS = (Mask("hide", columns=("t.email",)),)
USERS = {
    "type": "TABLE",
    "schema": {"fields": [{"name": "id", "type": "INTEGER"}, {"name": "email", "type": "STRING"}]},
}
SCAN = "(SELECT gatecast_row.`id`, '[redacted]' AS `email` FROM {} AS gatecast_row)"
JSON = (("Content-Type", "application/json"),)


def settings(**more: Any) -> Settings:
    return read_settings(Target("warehouse", "bigquery", "127.0.0.1", 9050, "", None, more))


ON = settings(rewrite="where-exact")


def insert(text: str = "SELECT * FROM d.t", **query: Any) -> Asked:
    body = {"configuration": {"query": {"query": text, **query}, "labels": {"a": "b"}}}
    head = RequestHead("POST", "/bigquery/v2/projects/p/jobs", JSON)
    return read_request(head, json.dumps(body).encode())


def queries(text: str = "SELECT * FROM d.t", **more: Any) -> Asked:
    head = RequestHead("POST", "/bigquery/v2/projects/p/queries", JSON)
    return read_request(head, json.dumps({"query": text, **more}).encode())


class Reader:
    """The reading and rewriting of SQL, here and now. wrong: what is said instead of what was rewritten."""

    def __init__(self, wrong: Rewritten | None = None) -> None:
        self.wrong = wrong

    async def read(self, text: str, project: str, dataset: str | None) -> Analysis:
        return analyse(text, project, dataset)

    async def rewrite(
        self, text: str, project: str, dataset: str | None, scans: Mapping[str, tuple[Replacement, ...]]
    ) -> Rewritten:
        return self.wrong or rewrite(text, project, dataset, scans)


class Service:
    """The target's tables.get. tables: the answers; a number is a status."""

    def __init__(self, tables: dict[str, Any] | None = None) -> None:
        self.tables = {"p.d.t": USERS} if tables is None else tables
        self.asked: list[str] = []

    async def ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(path)
        assert (method, body, parse_qs(parts.query)["fields"]) == ("GET", b"", ["schema,type"])
        name = ".".join(unquote(each) for each in parts.path.split("/")[4::2])
        self.asked.append(name)
        found = self.tables.get(name, 404)
        return (found, b"{}") if isinstance(found, int) else (200, write_object(found))


def gate_of(reader: Reader | None = None) -> Gate:
    made = reader or Reader()
    return fake_gate(warehouse=made, rewriter=made, scans=WarehouseScans())


def of(
    asked: Asked,
    service: Service | None = None,
    *,
    masks: tuple[Mask, ...] = MASKS,
    gate: Gate | None = None,
    settings: Settings = ON,
    account: str = "a",
) -> tuple[Asked, Analysis, Rewritten] | None:
    query = asked.query
    analysis = analyse(query.text, query.project, query.dataset or None) if query else Analysis()
    ask = (service or Service()).ask
    made = gate or gate_of()
    return asyncio.run(rewritten(made, asked, analysis, masks, ask, settings=settings, account=account))


# -- what then runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [insert("SELECT u FROM d.t u"), queries("SELECT u FROM d.t u", maxResults=5)])
def test_the_new_text_is_in_the_request_and_in_its_analysis(asked: Asked) -> None:
    before = asked.wire()
    found = of(asked)
    assert found is not None
    new, analysis, done = found
    expected = f"SELECT u FROM {SCAN.format('d.t')} u"
    assert done == Rewritten(expected, ("p.d.t",))
    assert new.query is not None
    assert new.query.text == new.configuration["query"] == expected
    assert json.loads(new.wire()) == json.loads(before.replace(b"d.t", SCAN.format("d.t").encode()))
    assert analysis == analyse(expected, "p", None)
    assert dry_run(new)["configuration"]["query"]["query"] == expected
    assert (asked.wire(), new.content) == (before, asked.content), "what came stays as it came"


def test_names_are_completed_by_the_requests_own_defaults() -> None:
    found = of(
        queries("SELECT * FROM t", defaultDataset={"projectId": "q", "datasetId": "d"}), Service({"q.d.t": USERS})
    )
    assert found is not None
    assert found[2].tables == ("q.d.t",)


@pytest.mark.parametrize("text", [
    "CREATE TABLE d.w AS SELECT * FROM d.t", "INSERT INTO d.w SELECT * FROM d.t",
    "EXPORT DATA OPTIONS (uri = 'gs://b/*', format = 'CSV') AS SELECT * FROM d.t",
    "CREATE TEMP TABLE x AS SELECT * FROM d.t; SELECT 1",
])  # fmt: skip
def test_what_the_guard_refuses_it_allows_when_rewritten(text: str) -> None:
    """As the lineage of the new text says that nothing masked is stored; and of nothing else."""
    masking = Masking(b"k" * 32)
    found = of(insert(text))
    assert found is not None

    def refused(analysis: Analysis) -> bool:
        facts = {"warehouse": analysis.statements, "bq_method": "jobs.insert", "bq_job": "query"}
        return masking.guard(MASKS, Command("bigquery", "write_rows", "write", text, facts=facts)) is not None

    assert refused(analyse(text, "p", None))
    assert not refused(found[1])


# -- what stays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        insert("SELECT 1"),
        insert("SELECT * FROM d.other"),
        insert("SELECT * FROM t"),
        insert("SELECT * FROM `d.t*`"),
        insert("SELECT * FROM d.INFORMATION_SCHEMA.TABLES"),
        insert("SELECT * FROM d.t FOR SYSTEM_TIME AS OF '2026-01-01'"),
        insert("DELETE FROM d.w WHERE id IN (SELECT id FROM d.t)"),
        insert("SELECT d.f(id) FROM d.t"),
        insert("SELECT ("),
        insert(tableDefinitions={"t": {"sourceFormat": "CSV", "sourceUris": ["gs://b/x"]}}),
        insert(destinationTable={"projectId": "p", "datasetId": "d", "tableId": "t"}),
        insert(destinationTable={"projectId": "p", "datasetId": "D", "tableId": "T$20260101"}),
        insert("SELECT * FROM t", defaultDataset={"datasetId": "d"}, createSession=True),
        queries("SELECT * FROM t", defaultDataset={"datasetId": "d"},
                connectionProperties=[{"key": "session_id", "value": "s"}]),
    ],
)  # fmt: skip
def test_what_is_left_as_it_came(asked: Asked) -> None:
    assert of(asked) is None


def test_a_session_may_name_tables_in_full() -> None:
    assert of(insert(createSession=True)) is not None


@pytest.mark.parametrize("answer", [
    403, 404, 500, {**USERS, "type": "VIEW"}, {**USERS, "type": "EXTERNAL"}, {"type": "TABLE"}, {}, {"schema": {}},
    {"type": "TABLE", "schema": {"fields": [{"name": "email", "type": "WHATEVER"}]}},
    {"type": "TABLE", "schema": {"fields": [{"name": "id", "type": "STRING"}]}},
])  # fmt: skip
def test_a_table_without_a_schema_of_its_own_is_left(answer: Any) -> None:
    service = Service({"p.d.t": answer})
    assert of(insert(), service) is None
    assert service.asked == ["p.d.t"]


def test_a_lost_target_is_told() -> None:
    async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        raise TargetPeerError("gone")

    service = Service()
    service.ask = ask  # type: ignore[method-assign]
    with pytest.raises(TargetPeerError):
        of(insert(), service)


def test_without_leave_nothing_is_asked() -> None:
    service = Service()
    assert of(insert(), service, settings=settings()) is None
    assert of(insert(), service, settings=settings(rewrite="off")) is None
    assert of(insert(), service, masks=()) is None
    assert of(insert(), service, masks=(Mask("m", detectors=("email",)), Mask("o", columns=("x.email",)))) is None
    assert of(insert(), service, gate=fake_gate()) is None
    assert of(insert(), service, gate=fake_gate(warehouse=Reader(), rewriter=Reader())) is None
    assert not service.asked


@pytest.mark.parametrize("wrong", ["SELECT (", "SELECT * FROM d.other", "SELECT 1"])
def test_a_text_that_reads_something_else_is_not_used(wrong: str) -> None:
    assert of(insert(), gate=gate_of(Reader(Rewritten(wrong, ("p.d.t",))))) is None


@pytest.mark.parametrize("value", ["on", True, 1, ""])
def test_the_setting_has_two_values(value: Any) -> None:
    with pytest.raises(ConfigError, match="rewrite"):
        settings(rewrite=value)


# -- schemas that are kept ------------------------------------------------------------------------------


def test_a_schema_is_asked_for_once_by_account_until_it_is_forgotten() -> None:
    service, gate = Service(), gate_of()
    for account in ("a", "a", "b", "a"):
        assert of(insert(), service, gate=gate, account=account) is not None
    assert service.asked == ["p.d.t"] * 2
    forget(gate.shared)
    assert of(insert(), service, gate=gate) is not None
    assert service.asked == ["p.d.t"] * 3
    assert len(schemas_of(gate.shared)) == 1


def test_no_more_tables_than_so_many_are_asked_for() -> None:
    for count in (TABLES_LIMIT - 1, TABLES_LIMIT, TABLES_LIMIT + 1):
        service = Service({f"p.d{n}.t": USERS for n in range(count)})
        text = "SELECT 1 FROM " + ", ".join(f"d{n}.t a{n}" for n in range(count))
        found = of(insert(text), service)
        assert found is not None
        assert len(found[2].tables) == len(service.asked) == min(count, TABLES_LIMIT)


async def _many(schemas: Schemas, service: Service, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await schemas.of("a", TableName("p", "d", f"t{number}"), service.ask)


def test_schemas_are_kept_for_a_while_and_so_many() -> None:
    now = [0.0]
    schemas, service = Schemas(lambda: now[0]), Service({})
    asyncio.run(_many(schemas, service, 1))
    now[0] = KEPT_SECONDS - 0.1
    asyncio.run(_many(schemas, service, 1))
    assert len(service.asked) == 1
    now[0] = KEPT_SECONDS
    asyncio.run(_many(schemas, service, 1))
    assert (len(service.asked), len(schemas)) == (2, 1)
    asyncio.run(_many(schemas, service, SCHEMAS_LIMIT, 1))
    assert len(schemas) == SCHEMAS_LIMIT


def test_schemas_are_kept_up_to_so_many_fields() -> None:
    wide = {"type": "TABLE", "schema": {"fields": [{"name": f"c{n}", "type": "STRING"} for n in range(10_000)]}}
    most = FIELDS_LIMIT // 10_000
    schemas, service = Schemas(), Service({f"p.d.t{n}": wide for n in range(most + 1)})
    for count, kept in ((most - 1, most - 1), (most, most), (most + 1, most)):
        asyncio.run(_many(schemas, service, count))
        assert len(schemas) == kept


def test_what_a_busy_target_says_is_not_kept() -> None:
    schemas, service = Schemas(), Service({"p.d.t0": 503})
    asyncio.run(_many(schemas, service, 1))
    assert len(schemas) == 0
