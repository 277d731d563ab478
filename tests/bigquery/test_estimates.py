"""What a query would read and cost, asked of the target once a minute; views followed; limits and labels put in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from protocols.bigquery.agreement import LOOKED_AT_LIMIT
from protocols.bigquery.dial_settings import MAXIMUM_BYTES_BILLED, Settings, read_settings
from protocols.bigquery.estimates import (
    KEPT_SECONDS,
    VIEW_DEPTH_LIMIT,
    Estimate,
    Estimates,
    billed,
    capped,
    dry_run,
    estimates_of,
    label,
    labelled,
    places,
)
from protocols.bigquery.facts import FACTS
from protocols.bigquery.requests import Asked, read_request
from proxy.core.errors import TargetPeerError
from proxy.core.http.heads import RequestHead
from proxy.core.parties import Target
from proxy.core.warehouse import Analysis
from proxy.policy.bigquery import analyse
from tests.peers.bigquery import PROJECT, BigQueryServer

JSON = (("Content-Type", "application/json"),)
SETTINGS = read_settings(Target("warehouse", "bigquery", "127.0.0.1", 9050, "", None, {}))
TIB = 2**40


def request(path: str, body: dict[str, Any], method: str = "POST") -> Asked:
    return read_request(RequestHead(method, f"/bigquery/v2/projects/p{path}", JSON), json.dumps(body).encode())


def insert(text: str = "SELECT * FROM d.t", reference: dict[str, str] | None = None, **more: Any) -> Asked:
    settings = {"query": text, **more.pop("query", {})}
    body = {"configuration": {"query": settings, **more}}
    return request("/jobs", {**body, "jobReference": reference} if reference else body)


def queries(text: str = "SELECT * FROM d.t", **more: Any) -> Asked:
    return request("/queries", {"query": text, **more})


class Reader:
    """The reading of SQL, here and now."""

    async def read(self, text: str, project: str, dataset: str | None) -> Analysis:
        return analyse(text, project, dataset)


class Service:
    """The target, as the gate's own requests see it. tables: type, or a view's query; None refuses to tell."""

    def __init__(self, tables: dict[str, str | None] | None = None, **query: Any) -> None:
        self.tables = {"p.d.t": "TABLE"} if tables is None else tables
        self.query = {"statementType": "SELECT", "totalBytesProcessed": "0", "totalBytesProcessedAccuracy": "PRECISE",
                      **query}  # fmt: skip
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.answer: tuple[int, bytes] | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append((method, path, json.loads(body or b"{}")))
        await self.gate.wait()
        if method == "POST":
            return self.answer or (200, self._job())
        found = self.tables.get(_name(path), "")
        if found is None:
            return 403, b"{}"
        if not found:
            return 404, b"{}"
        if " " not in found:
            return 200, json.dumps({"type": found}).encode()
        return 200, json.dumps({"type": "VIEW", "view": {"query": found}}).encode()

    def _job(self) -> bytes:
        return json.dumps({"status": {"state": "DONE"}, "statistics": {"query": self.query}}).encode()

    @property
    def runs(self) -> int:
        return sum(method == "POST" for method, _, _ in self.asked)

    @property
    def looks(self) -> list[str]:
        return [
            ".".join(unquote(urlsplit(path).path).split("/")[4::2]) for method, path, _ in self.asked if method == "GET"
        ]


def _name(path: str) -> str:
    return ".".join(unquote(urlsplit(path).path).split("/")[4::2])


def tables(*names: str) -> list[dict[str, str]]:
    return [dict(zip(("projectId", "datasetId", "tableId"), name.split("."), strict=True)) for name in names]


def of(asked: Asked, service: Service, settings: Settings = SETTINGS, estimates: Estimates | None = None) -> Estimate:
    return asyncio.run(reading(estimates or Estimates(reader=Reader()), asked, service, settings))


async def reading(
    estimates: Estimates, asked: Asked, service: Service, settings: Settings = SETTINGS, account: str = "a"
) -> Estimate:
    query = asked.query
    analysis = analyse(query.text, query.project, query.dataset.partition(".")[2] or None) if query else Analysis()
    return await estimates.of(asked, analysis, settings, account, service.ask)


# -- the question ---------------------------------------------------------------------------------------


def test_the_question_is_the_callers_query_without_what_a_run_has() -> None:
    given = [{"name": "a", "parameterType": {"type": "INT64"}, "parameterValue": {"value": "1"}}]
    asked = insert(
        "SELECT @a", {"projectId": "p", "jobId": "mine", "location": "EU"}, labels={"a": "b"}, jobTimeoutMs="5",
        reservation="r",
        query={"priority": "BATCH", "maximumBytesBilled": "7", "createSession": True, "useQueryCache": True,
               "defaultDataset": {"datasetId": "d"}, "destinationTable": tables("p.d.t")[0],
               "queryParameters": given},
    )  # fmt: skip
    assert dry_run(asked) == {
        "jobReference": {"projectId": "p", "location": "EU"},
        "configuration": {"dryRun": True, "query": {
            "query": "SELECT @a", "useLegacySql": False, "useQueryCache": False,
            "defaultDataset": {"projectId": "p", "datasetId": "d"},
            "destinationTable": tables("p.d.t")[0],
            "queryParameters": given,
        }},
    }  # fmt: skip


def test_jobs_query_is_asked_about_as_a_job() -> None:
    asked = queries(
        "SELECT 1", location="EU", maxResults=5, requestId="x", labels={"a": "b"}, timeoutMs="5", dryRun=True,
        formatOptions={"useInt64Timestamp": True}, connectionProperties=[{"key": "session_id", "value": "s"}],
    )  # fmt: skip
    assert dry_run(asked)["configuration"] == {"dryRun": True, "query": {
        "query": "SELECT 1", "useLegacySql": False, "useQueryCache": False,
        "connectionProperties": [{"key": "session_id", "value": "s"}],
    }}  # fmt: skip


def test_the_question_goes_to_the_project_of_the_caller() -> None:
    service = Service()
    of(insert(), service)
    method, path, body = service.asked[0]
    assert (method, urlsplit(path).path) == ("POST", "/bigquery/v2/projects/p/jobs")
    assert body["configuration"]["dryRun"] is True
    method, path, _ = service.asked[1]
    assert (method, urlsplit(path).path) == ("GET", "/bigquery/v2/projects/p/datasets/d/tables/t")
    fields = parse_qs(urlsplit(path).query)["fields"]
    assert fields == ["type,view(query,useLegacySql),materializedView(query)"]


# -- the answer -----------------------------------------------------------------------------------------


def test_bytes_and_price_are_those_of_the_dry_run() -> None:
    found = of(
        insert(), Service(totalBytesProcessed=str(2 * TIB), referencedTables=tables("p.d.t"), schema={"fields": []})
    )
    assert found == Estimate(
        True, 2 * TIB, 12.5, "SELECT", ("p.d.t",), (), {"fields": []}, {}, "", "PRECISE"
    )  # fmt: skip
    dear = of(insert(), Service(totalBytesProcessed=str(TIB)), replace(SETTINGS, price_per_tib=8.0))
    assert dear.price == 8.0


@pytest.mark.parametrize(
    ("text", "query", "known"),
    [
        ("SELECT 1", {}, True),
        ("SELECT 1", {"totalBytesProcessedAccuracy": "UPPER_BOUND"}, True),
        ("SELECT 1", {"totalBytesProcessedAccuracy": "LOWER_BOUND"}, False),
        ("SELECT 1", {"totalBytesProcessedAccuracy": "UNKNOWN"}, False),
        ("SELECT 1", {"totalBytesProcessed": "many"}, False),
        ("SELECT 1; SELECT 2", {"statementType": "SCRIPT"}, False),
        ("INSERT d.t VALUES (1)", {"statementType": "INSERT"}, True),
    ],
)
def test_bytes_are_known_where_the_target_stands_by_them(text: str, query: dict[str, Any], known: bool) -> None:
    found = of(insert(text), Service(**query))
    assert (found.known, found.opaque) == (known, "")


@pytest.mark.parametrize("status", [400, 403, 404, 503])
def test_a_dry_run_that_fails_is_the_targets_own_answer(status: int) -> None:
    service = Service()
    service.answer = (status, b'{"error": {"code": 400}}')
    assert of(insert(), service) == Estimate(error=(status, b'{"error": {"code": 400}}'))
    assert not service.looks


def test_a_job_that_failed_is_an_error_too() -> None:
    service = Service()
    service.answer = (200, b'{"status": {"errorResult": {"reason": "notFound", "message": "Not found: Table p:d.t"}}}')
    error = of(insert(), service).error
    assert error is not None
    assert error[0] == 404
    assert json.loads(error[1])["error"]["errors"][0] == {
        "reason": "notFound", "message": "Not found: Table p:d.t", "domain": "global",
    }  # fmt: skip


def test_an_answer_that_nobody_can_read_is_opaque() -> None:
    service = Service()
    service.answer = (200, b"<html>")
    found = of(insert(), service)
    assert (found.known, found.opaque) == (False, "the target's answer to the dry run cannot be read")


def test_what_is_no_query_is_not_asked_about() -> None:
    service = Service()
    assert of(request("/datasets", {"datasetReference": {"datasetId": "d"}}), service) == Estimate()
    assert not service.asked


# -- views ----------------------------------------------------------------------------------------------


def test_a_view_is_followed_to_the_tables() -> None:
    tree = {"p.d.V": "SELECT * FROM `q.x.inner`", "q.x.inner": "SELECT * FROM x.t JOIN `p.y.u` USING (id)",
            "q.x.t": "TABLE", "p.y.u": "EXTERNAL"}  # fmt: skip
    service = Service(dict(tree), referencedTables=tables("q.x.t", "p.y.u"))
    found = of(insert("SELECT * FROM d.V"), service)
    assert (found.opaque, found.behind) == ("", {"p.d.v": ("q.x.inner", "q.x.t", "p.y.u")})
    assert found.beneath == ("q.x.inner", "q.x.t", "p.y.u")
    service = Service(dict(tree), referencedTables=tables("q.x.t", "p.y.other"))
    assert "p.y.other" in of(insert("SELECT * FROM d.V"), service).opaque


def test_a_view_is_known_though_its_table_is_named_beside_it() -> None:
    """All that the dry run names is in the text then; the view's columns are the table's all the same."""
    service = Service({"p.d.v": "SELECT * FROM d.t", "p.d.t": "TABLE"}, referencedTables=tables("p.d.t"))
    assert of(insert("SELECT v.email FROM d.v JOIN d.t USING (id)"), service).behind == {"p.d.v": ("p.d.t",)}


@pytest.mark.parametrize("query", ["SELECT d.f(a) FROM d.t", "SELECT * FROM (", "SELECT * FROM t"])
def test_a_view_that_cannot_be_read_shows_all_that_the_dry_run_names(query: str) -> None:
    service = Service({"p.d.v": query, "p.d.t": "TABLE"}, referencedTables=tables("p.d.v", "p.x.a", "p.x.b"))
    found = of(insert("SELECT * FROM d.v"), service)
    assert found.opaque == ""
    assert set(found.behind["p.d.v"]) >= {"p.x.a", "p.x.b"}


def test_without_a_reader_a_view_shows_all_that_the_dry_run_names() -> None:
    service = Service({"p.d.v": "SELECT * FROM d.t", "p.d.t": "TABLE"}, referencedTables=tables("p.d.t", "p.d.u"))
    found = of(insert("SELECT * FROM d.v"), service, estimates=Estimates())
    assert (found.opaque, found.behind) == ("", {"p.d.v": ("p.d.t", "p.d.u")})


def test_a_type_that_nobody_knows_may_be_a_view() -> None:
    service = Service({"p.d.t": "NEWEST"}, referencedTables=tables("p.d.t", "p.x.a"))
    assert of(insert(), service).behind == {"p.d.t": ("p.x.a",)}


def test_what_a_name_is_has_to_be_told() -> None:
    found = of(insert(), Service({"p.d.t": None}, referencedTables=tables("p.d.t")))
    assert found.opaque == "it cannot be told whether p.d.t is a view"
    assert of(insert(), Service({}, referencedTables=tables("p.d.t"))).opaque == "", "a name of nothing is no view"


def test_a_table_below_a_view_that_nobody_may_see_leaves_it_in_the_dark() -> None:
    """An authorised view: the account may read the view, and knows nothing of its table."""
    service = Service(
        {"p.d.v": "SELECT * FROM d.hidden", "p.d.hidden": None}, referencedTables=tables("p.d.v", "p.x.deep")
    )
    assert of(insert("SELECT * FROM d.v"), service).behind == {"p.d.v": ("p.d.hidden", "p.x.deep")}


def test_views_are_followed_so_deep_and_no_deeper() -> None:
    def chain(length: int) -> Service:
        views: dict[str, str | None] = {f"p.d.v{n}": f"SELECT * FROM d.v{n + 1}" for n in range(length)}
        return Service({**views, f"p.d.v{length}": "TABLE"}, referencedTables=tables(f"p.d.v{length}", "p.d.v0"))

    whole = of(insert("SELECT * FROM d.v0; SELECT 1"), chain(VIEW_DEPTH_LIMIT), replace(SETTINGS, dry_run=False))
    assert (whole.opaque, len(whole.behind["p.d.v0"])) == ("", VIEW_DEPTH_LIMIT)
    deeper = of(insert("SELECT * FROM d.v0; SELECT 1"), chain(VIEW_DEPTH_LIMIT + 1), replace(SETTINGS, dry_run=False))
    assert deeper.opaque == "nothing tells which tables are behind p.d.v0"


def test_views_that_name_each_other_end() -> None:
    service = Service({"p.d.a": "SELECT * FROM d.b", "p.d.b": "SELECT * FROM d.a"}, referencedTables=tables("p.d.a"))
    assert of(insert("SELECT * FROM d.a"), service).behind == {"p.d.a": ("p.d.b",)}


def test_a_view_below_many_views_is_read_once() -> None:
    """Each of these names the next twice: a walk of all ways would have 2 ** 14 steps."""
    views: dict[str, str | None] = {
        f"p.d.v{n}": f"SELECT * FROM d.v{n + 1} JOIN d.w{n + 1} USING (a)" for n in range(14)
    }
    views |= {f"p.d.w{n}": f"SELECT * FROM d.v{n + 1} JOIN d.w{n + 1} USING (a)" for n in range(1, 14)}
    reads = 0

    class Counting(Reader):
        async def read(self, text: str, project: str, dataset: str | None) -> Analysis:
            nonlocal reads
            reads += 1
            return await super().read(text, project, dataset)

    service = Service({**views, "p.d.v14": "TABLE", "p.d.w14": "TABLE"}, referencedTables=tables("p.d.v14", "p.d.w14"))
    found = of(insert("SELECT * FROM d.v0"), service, estimates=Estimates(reader=Counting()))
    assert (found.opaque, reads, len(found.behind["p.d.v0"])) == ("", len(views), 28)


def test_so_many_tables_are_looked_at_and_no_more() -> None:
    for count, opaque in ((LOOKED_AT_LIMIT, False), (LOOKED_AT_LIMIT + 1, True)):
        names: dict[str, str | None] = {f"p.d.t{n}": "TABLE" for n in range(count)}
        service = Service(names)
        found = of(insert("SELECT * FROM " + ", ".join(f"d.t{n}" for n in range(count))), service,
                   replace(SETTINGS, dry_run=False))  # fmt: skip
        assert (bool(found.opaque), len(service.looks)) == (opaque, LOOKED_AT_LIMIT)


def test_where_there_is_no_dry_run_views_are_looked_at_all_the_same() -> None:
    service = Service({"p.d.v": "SELECT * FROM d.t", "p.d.t": "TABLE"})
    never = replace(SETTINGS, dry_run=False)
    assert of(insert("SELECT * FROM d.v"), service, never) == Estimate(behind={"p.d.v": ("p.d.t",)})
    assert service.runs == 0
    assert of(insert("SELECT * FROM d.v"), service, never, Estimates()).opaque


# -- what is kept ---------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(test: Callable[[Estimates, Clock], Awaitable[None]], **limits: Any) -> None:
    clock = Clock()
    asyncio.run(_main(test(Estimates(clock, reader=Reader(), **limits), clock)))


async def _main(test: Awaitable[None]) -> None:
    await test


def test_what_was_found_is_kept_for_a_minute() -> None:
    async def test(estimates: Estimates, clock: Clock) -> None:
        service = Service()
        first = await reading(estimates, insert(), service)
        clock.now += KEPT_SECONDS - 0.001
        assert await reading(estimates, insert(labels={"other": "1"}), service) is first
        assert (service.runs, len(service.looks)) == (1, 1)
        clock.now += 0.001
        assert await reading(estimates, insert(), service) == first
        assert (service.runs, len(service.looks)) == (2, 2)

    run(test)


def test_whatever_changes_the_answer_asks_again() -> None:
    parameter = {"name": "a", "parameterType": {"type": "INT64"}}
    one, two = ({"queryParameters": [{**parameter, "parameterValue": {"value": v}}]} for v in "12")
    others = [
        insert("SELECT * FROM d.t "), insert(query={"defaultDataset": {"datasetId": "e"}}), insert(query=one),
        insert(query=two), insert(query={"destinationTable": tables("p.d.w")[0]}), insert(reference={"location": "EU"}),
        insert(query={"connectionProperties": [{"key": "session_id", "value": "s"}]}),
    ]  # fmt: skip

    async def test(estimates: Estimates, _: Clock) -> None:
        service = Service()
        await reading(estimates, insert(), service)
        for count, other in enumerate(others, 2):
            await reading(estimates, other, service)
            assert service.runs == count
        await reading(estimates, insert(), service, account="b")
        await reading(estimates, insert(), service, replace(SETTINGS, host="elsewhere"))
        await estimates.of(insert(), analyse("SELECT 1", "p", None), SETTINGS, "a", service.ask)
        assert service.runs == len(others) + 4

    run(test)


def test_tables_are_looked_at_once_for_all_queries() -> None:
    async def test(estimates: Estimates, _: Clock) -> None:
        service = Service()
        await reading(estimates, insert("SELECT a FROM d.t"), service)
        await reading(estimates, insert("SELECT b FROM d.t"), service)
        assert service.looks == ["p.d.t"]
        await reading(estimates, insert("SELECT b FROM d.t"), service, account="b")
        assert service.looks == ["p.d.t", "p.d.t"], "another account sees other tables"

    run(test)


def test_an_error_is_not_kept() -> None:
    async def test(estimates: Estimates, _: Clock) -> None:
        service = Service()
        service.answer = (404, b"{}")
        assert (await reading(estimates, insert(), service)).error
        service.answer = None
        assert (await reading(estimates, insert(), service)).error is None

    run(test)


def test_equal_questions_at_once_are_one() -> None:
    async def test(estimates: Estimates, _: Clock) -> None:
        service = Service()
        service.gate.clear()
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(reading(estimates, insert(), service)) for _ in range(5)]
            other = group.create_task(reading(estimates, insert("SELECT 2"), service))
            while service.runs < 2:
                await asyncio.sleep(0)
            service.gate.set()
        assert service.runs == 2
        assert len({id(each.result()) for each in asking}) == 1
        assert other.result() is not asking[0].result()

    run(test)


def test_who_leaves_does_not_take_the_answer_along() -> None:
    async def test(estimates: Estimates, _: Clock) -> None:
        service = Service()
        service.gate.clear()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(reading(estimates, insert(), service))
            while not service.runs:
                await asyncio.sleep(0)
            second = group.create_task(reading(estimates, insert(), service))
            third = group.create_task(reading(estimates, insert(), service))
            await asyncio.sleep(0)
            third.cancel()
            first.cancel()
            service.gate.set()
        assert first.cancelled()
        assert third.cancelled()
        assert second.result().known
        assert service.runs == 2

    run(test)


def test_what_fails_fails_for_all_who_wait() -> None:
    async def test(estimates: Estimates, _: Clock) -> None:
        service = Service()
        calls = 0

        async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
            nonlocal calls
            calls += 1
            for _ in range(3):  # the others come meanwhile
                await asyncio.sleep(0)
            raise TargetPeerError("the target has gone")

        asking = [estimates.of(insert(), analyse("SELECT 1", "p", None), SETTINGS, "a", ask) for _ in range(3)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(each) for each in found] == [TargetPeerError] * 3
        assert calls == 1
        assert (await reading(estimates, insert(), service)).known

    run(test)


def test_so_much_is_kept_and_no_more() -> None:
    async def test(estimates: Estimates, _: Clock) -> None:
        service = Service({})
        for text in ("SELECT 1", "SELECT 2", "SELECT 3", "SELECT 3", "SELECT 2", "SELECT 1"):
            await reading(estimates, insert(text), service)
        assert service.runs == 4

    run(test, entries_limit=2)

    async def large(estimates: Estimates, _: Clock) -> None:
        service = Service({}, schema={"fields": ["x" * 2_000]})
        for _ in range(2):
            await reading(estimates, insert("SELECT 1"), service)
        assert service.runs == 2

    run(large, bytes_limit=2_000)

    async def many(estimates: Estimates, _: Clock) -> None:
        service = Service({}, schema={"fields": ["x" * 1_000]})
        for text in ("SELECT 1", "SELECT 1", "SELECT 2", "SELECT 1"):
            await reading(estimates, insert(text), service)
        assert service.runs == 3, "the second took the place of the first"

    run(many, bytes_limit=2_000)


def test_what_is_forgotten_is_asked_for_again() -> None:
    async def test(estimates: Estimates, _: Clock) -> None:
        service = Service()
        await reading(estimates, insert(), service)
        estimates.forget()
        service.gate.clear()
        async with asyncio.TaskGroup() as group:
            before = group.create_task(reading(estimates, insert(), service))
            while service.runs < 2:
                await asyncio.sleep(0)
            estimates.forget()
            service.gate.set()
        assert before.result().known
        await reading(estimates, insert(), service)
        assert service.runs == 3, "what was asked before may be of what was before"

    run(test)


def test_a_process_has_one() -> None:
    shared: dict[str, Any] = {}
    assert estimates_of(shared) is estimates_of(shared)
    assert estimates_of({}) is not estimates_of(shared)


# -- what goes with the query ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "expected"),
    [(None, 1_000), ("999", 999), ("1000", 1_000), ("1001", 1_000), ("0", 1_000), ("-5", 1_000), (str(2**63), 1_000)],
)
def test_a_caller_may_ask_for_less_and_never_for_more(own: str | None, expected: int) -> None:
    settings = replace(SETTINGS, maximum_bytes_billed=1_000)
    more = {} if own is None else {"maximumBytesBilled": own}
    assert billed(insert(query=more), settings) == billed(queries(**more), settings) == expected
    assert billed(insert(), SETTINGS) == MAXIMUM_BYTES_BILLED


def test_limits_are_put_in_where_each_method_has_them() -> None:
    body = {"configuration": {"query": {"query": "x", "maximumBytesBilled": "9", "useQueryCache": True}, "labels": {}}}
    assert capped(body, "query", 5) == {
        "configuration": {"query": {"query": "x", "maximumBytesBilled": "5", "useQueryCache": True}, "labels": {}}
    }
    assert capped(body, "query", 5, fresh=True)["configuration"]["query"]["useQueryCache"] is False
    assert capped({"query": "x", "maximumBytesBilled": "9"}, "query", 5, fresh=True) == {
        "query": "x", "maximumBytesBilled": "5", "useQueryCache": False,
    }  # fmt: skip
    load = {"configuration": {"load": {}}}
    assert capped(load, "load", 5, fresh=True) == load


def test_labels_fit() -> None:
    assert labelled({"query": "x", "labels": {"a": "b", "session": "own"}}, {"session": "2026-01-02T03:04/X y"}) == {
        "query": "x", "labels": {"a": "b", "session": "2026-01-02t03_04_x_y"},
    }  # fmt: skip
    assert labelled({"configuration": {"load": {}}}, {"a": "B"}) == {
        "configuration": {"load": {}, "labels": {"a": "b"}}
    }
    assert label("x" * 63) == "x" * 63
    assert label("x" * 64) == "x" * 63


# -- scope ----------------------------------------------------------------------------------------------


def scope(asked: Asked, estimate: Estimate | None = None, dataset: str | None = "main") -> tuple[Any, ...]:
    analysis = analyse(asked.query.text, "p", dataset) if asked.query else None
    found = places(asked, analysis, estimate)
    assert set(found) <= set(FACTS)
    return tuple(found[key] for key in ("bq_projects", "bq_datasets", "bq_location"))


def test_scope_is_all_that_a_query_is_about() -> None:
    assert scope(insert("SELECT * FROM d.t, `q.e.u`")) == (("p", "q"), ("p.d", "q.e"), "")
    assert scope(insert("SELECT * FROM t", {"projectId": "p", "location": "EU"})) == (("p",), ("p.main",), "EU")
    assert scope(insert("SELECT 1")) == ((), (), "")
    assert scope(insert("SELECT * FROM t"), dataset=None)[1] == ("p.*",), "a name that nothing completes may be any"
    assert scope(insert("CREATE TEMP TABLE x AS SELECT 1; SELECT * FROM x"))[1] == ()
    assert scope(insert("DROP SCHEMA e"))[1] == ("p.e",)
    written = insert("SELECT 1", query={"destinationTable": tables("far-away.w.t")[0]})
    assert scope(written)[:2] == (("far-away",), ("far-away.w",))
    assert scope(insert("SELECT * FROM `google.com:a.d.t`"))[:2] == (("google.com:a",), ("google.com:a.d",))


def test_scope_has_what_only_the_dry_run_tells() -> None:
    estimate = Estimate(
        referenced=("p.d.t", "q.deep.u"), routines=("r.f.x",), behind={"p.d.t": ("s.far.INFORMATION_SCHEMA.X",)}
    )
    assert scope(insert(), estimate) == (("p", "q", "r", "s"), ("p.d", "q.deep", "r.f", "s.far"), "")


def test_scope_of_what_is_no_query() -> None:
    copy = {"sourceTable": tables("q.e.t")[0], "destinationTable": tables("p.d.t")[0]}
    assert scope(request("/jobs", {"configuration": {"copy": copy}}))[1] == ("p.d", "q.e")
    listing = read_request(RequestHead("GET", "/bigquery/v2/projects/p/datasets/d/tables", ()), b"")
    assert scope(listing)[:2] == (("p",), ("p.d",))
    listing = read_request(RequestHead("GET", "/bigquery/v2/projects/p/datasets", ()), b"")
    assert scope(listing)[:2] == (("p",), ("p.*",))


# -- the stand-in ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warehouse(bq_service: BigQueryServer) -> BigQueryServer:
    """Tables, wildcard tables, views and views below views, in a dataset of their own."""
    reference = {"projectId": PROJECT, "datasetId": "estimated"}
    assert bq_service.api("POST", f"/projects/{PROJECT}/datasets", {"datasetReference": reference})[0] == 200
    for text in (
        "CREATE TABLE estimated.t (id INT64, email STRING)", "INSERT estimated.t VALUES (1, 'a'), (2, 'b')",
        "CREATE TABLE estimated.events_1 (id INT64)", "CREATE TABLE estimated.events_2 (id INT64)",
        "INSERT estimated.events_2 VALUES (1)", "CREATE TABLE estimated.b (id INT64)",
        "CREATE VIEW estimated.v AS SELECT id, email FROM estimated.t",
        f"CREATE VIEW estimated.wide AS SELECT v.email FROM `{PROJECT}.estimated.v` AS v",
    ):  # fmt: skip
        bq_service.sql(text)
    return bq_service


def estimated(server: BigQueryServer, text: str) -> Estimate:
    async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        value = json.loads(body) if body else None
        code, answer = await asyncio.to_thread(server.api, method, path.removeprefix("/bigquery/v2"), value)
        return code, json.dumps(answer).encode()

    data = json.dumps({"query": text}).encode()
    asked = read_request(RequestHead("POST", f"/bigquery/v2/projects/{PROJECT}/queries", JSON), data)
    reading = Estimates(reader=Reader()).of(asked, analyse(text, PROJECT, None), SETTINGS, "a", ask)
    return asyncio.run(reading)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("text", "type_", "size", "referenced"),
    [
        ("SELECT * FROM estimated.t", "SELECT", 2 * (8 + 20), ["t"]),
        ("SELECT id FROM estimated.t", "SELECT", 2 * 8, ["t"]),
        ("SELECT COUNT(*) FROM estimated.t", "SELECT", 0, ["t"]),
        ("FROM estimated.t |> SELECT id", "SELECT", 2 * (8 + 20), ["t"]),
        ("SELECT id FROM `estimated.events_*`", "SELECT", 8, ["events_*"]),
        ("SELECT * FROM estimated.v", "SELECT", 2 * (8 + 20), ["v", "t"]),
        ("SELECT * FROM estimated.wide", "SELECT", 2 * (8 + 20), ["wide", "v", "t"]),
        ("WITH a AS (SELECT id FROM estimated.b), b AS (SELECT 1 AS id) SELECT * FROM a, b", "SELECT", 0, ["b"]),
        ("SELECT table_name FROM estimated.INFORMATION_SCHEMA.TABLES", "SELECT", 0, []),
        ("INSERT estimated.b SELECT id FROM estimated.t", "INSERT", 2 * 8, ["t"]),
        ("UPDATE estimated.t SET email = 'x' WHERE id = 1", "UPDATE", 2 * (8 + 20), ["t"]),
        ("DELETE FROM estimated.t WHERE id = 1", "DELETE", 2 * (8 + 20), ["t"]),
        ("MERGE estimated.b USING estimated.t ON b.id = t.id WHEN MATCHED THEN DELETE", "MERGE", 2 * 8, ["b", "t"]),
        ("CREATE TABLE estimated.n AS SELECT id FROM estimated.v", "CREATE_TABLE_AS_SELECT", 2 * (8 + 20), ["v", "t"]),
        ("DROP TABLE estimated.t", "DROP_TABLE", 0, ["t"]),
    ],
)
def test_the_stand_in_is_agreed_with(
    warehouse: BigQueryServer, text: str, type_: str, size: int, referenced: list[str]
) -> None:
    found = estimated(warehouse, text)
    assert (found.error, found.opaque) == (None, "")
    assert (found.statement_type, found.bytes, found.known) == (type_, size, True)
    assert [name.removeprefix(f"{PROJECT}.estimated.") for name in found.referenced] == referenced


@pytest.mark.peer
def test_views_of_the_stand_in_are_followed(warehouse: BigQueryServer) -> None:
    name = f"{PROJECT}.estimated."
    assert estimated(warehouse, "SELECT email FROM estimated.wide").behind == {f"{name}wide": (f"{name}v", f"{name}t")}
    assert estimated(warehouse, "SELECT id FROM estimated.t").behind == {}


@pytest.mark.peer
def test_errors_of_the_stand_in_are_its_own(warehouse: BigQueryServer) -> None:
    for text, code in (("SELECT * FROM estimated.nothing", 404), ("SELECT nothing FROM estimated.t", 400)):
        error = estimated(warehouse, text).error
        assert error is not None
        assert (error[0], json.loads(error[1])["error"]["code"]) == (code, code)


@pytest.mark.peer
def test_scripts_of_the_stand_in_have_no_price(warehouse: BigQueryServer) -> None:
    found = estimated(warehouse, "SELECT 1; SELECT * FROM estimated.t")
    assert (found.statement_type, found.known, found.opaque) == ("SCRIPT", False, "")
