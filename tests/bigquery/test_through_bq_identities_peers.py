"""Every id of BigQuery's belongs to who made it: for another user of the same target it is unknown, to the byte."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bigquery.gateway_bq import Answer, Gateway, gateway, target_of
from tests.bigquery.people_bq import ANA, BOB, Loop
from tests.peers.bigquery import PROJECT, BigQueryServer

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
JOBS = f"/projects/{PROJECT}/jobs"
QUERIES = f"/projects/{PROJECT}/queries"


@pytest.fixture(scope="module")
def two(bq_loop: Loop, bq_service: BigQueryServer) -> Iterator[Gateway]:
    """A gateway whose one rule allows everything to both of its users."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        gateway(bq_loop, Path(folder), target_of(bq_service)) as running,
    ):
        yield running


def configured(text: str = "SELECT 1 AS n", **query: object) -> dict[str, Any]:
    """The configuration of a query."""
    return {"configuration": {"query": {"query": text, "useLegacySql": False, **query}}}


def inserted(gate: Gateway, value: dict[str, Any]) -> str:
    """A job of Ana's that is done: its id."""
    name = uuid.uuid4().hex
    answer = gate.ask("POST", JOBS, {**value, "jobReference": {"projectId": PROJECT, "jobId": name}})
    assert answer.code == 200, answer.body
    done = gate.ask("GET", f"{QUERIES}/{name}")
    assert done.code == 200 and done.json["jobComplete"], done.body
    return name


def unknown(gate: Gateway, service: BigQueryServer, ask: Callable[[str], Answer], name: str, nobodys: str) -> None:
    """Bob's question for Ana's id is answered as one for nobody's, and the service hears of neither."""
    since = service.mark()
    found, missing = ask(name), ask(nobodys)
    assert found.code == missing.code == 404, found.body
    assert found.reason == "notFound"
    assert found.body.replace(name.encode(), b"") == missing.body.replace(nobodys.encode(), b"")
    assert sorted(found.headers.keys()) == sorted(missing.headers.keys())
    assert not service.requests(since)


WAYS_TO_A_JOB: dict[str, tuple[str, str]] = {
    "get": ("GET", JOBS + "/{}"),
    "results": ("GET", QUERIES + "/{}"),
    "page": ("GET", QUERIES + "/{}?maxResults=1&startIndex=0&location=US"),
    "fields": ("GET", QUERIES + "/{}?fields=rows"),
    "cancel": ("POST", JOBS + "/{}/cancel"),
    "delete": ("DELETE", JOBS + "/{}/delete"),
    "children": ("GET", JOBS + "?parentJobId={}"),
}


@pytest.mark.parametrize("way", WAYS_TO_A_JOB)
def test_a_job(two: Gateway, bq_service: BigQueryServer, way: str) -> None:
    method, path = WAYS_TO_A_JOB[way]
    mine = inserted(two, configured())
    nobodys = uuid.uuid4().hex
    unknown(two, bq_service, lambda name: two.ask(method, path.format(name), who=BOB), mine, nobodys)
    assert two.ask("GET", f"{JOBS}/{mine}").code == 200


def test_a_job_is_listed_to_its_owner(two: Gateway) -> None:
    mine = inserted(two, configured())

    def listed(who: Any, more: str = "") -> set[str]:
        answer = two.ask("GET", f"{JOBS}?maxResults=50{more}", who=who)
        assert answer.code == 200, answer.body
        return {each["jobReference"]["jobId"] for each in answer.json.get("jobs", [])}

    assert mine in listed(ANA)
    assert mine not in listed(BOB)
    assert mine not in listed(BOB, "&allUsers=true")


def test_a_job_id_that_is_taken(two: Gateway, bq_service: BigQueryServer) -> None:
    """Bob cannot make a job under Ana's id, nor get hers by trying, and hers stays as it is.

    A 409 would make the Python client take the job as made.
    """
    mine = inserted(two, configured("SELECT 'of ana' AS n"))
    since = bq_service.mark()
    value = {**configured("SELECT 'of bob' AS n"), "jobReference": {"projectId": PROJECT, "jobId": mine}}
    answer = two.ask("POST", JOBS, value, who=BOB)
    assert answer.code == 400, answer.body
    assert b"of ana" not in answer.body
    sent = [each for each in bq_service.requests(since, about="of bob") if '"dryRun": true' not in each["body"]]
    assert not [each for each in sent if '"dryRun":true' not in each["body"]]
    assert two.ask("GET", f"{QUERIES}/{mine}", who=BOB).code == 404
    assert two.ask("GET", f"{QUERIES}/{mine}").json["rows"] == [{"f": [{"v": "of ana"}]}]


def test_a_query_without_a_job(two: Gateway, bq_service: BigQueryServer) -> None:
    body = {"query": "SELECT 1 AS n", "useLegacySql": False, "jobCreationMode": "JOB_CREATION_OPTIONAL"}
    answer = two.ask("POST", QUERIES, body)
    assert answer.code == 200, answer.body
    name = answer.json["queryId"]
    path = QUERIES + "/{}"
    unknown(two, bq_service, lambda each: two.ask("GET", path.format(each), who=BOB), name, uuid.uuid4().hex)


def test_a_request_id(two: Gateway) -> None:
    """The same requestId of two users is two queries."""
    body = {"query": "SELECT SESSION_USER() AS n", "useLegacySql": False, "requestId": uuid.uuid4().hex}
    first, second = (two.ask("POST", QUERIES, body, who=who) for who in (ANA, BOB))
    assert first.code == second.code == 200
    assert first.json["jobReference"]["jobId"] != second.json["jobReference"]["jobId"]


def test_a_session(two: Gateway, bq_service: BigQueryServer) -> None:
    answer = two.ask("POST", QUERIES, {"query": "SELECT 1 AS n", "useLegacySql": False, "createSession": True})
    assert answer.code == 200, answer.body
    name = answer.json["sessionInfo"]["sessionId"]

    def ask(session: str, who: Any = BOB) -> Answer:
        properties = [{"key": "session_id", "value": session}]
        body = {"query": "SELECT 2 AS n", "useLegacySql": False, "connectionProperties": properties}
        return two.ask("POST", QUERIES, body, who=who)

    unknown(two, bq_service, ask, name, uuid.uuid4().hex)
    assert ask(name, ANA).code == 200


def test_an_upload(two: Gateway, bq_service: BigQueryServer) -> None:
    """Its address leads to the gateway, for its owner alone; the service never sees Bob's chunk."""
    prefix = "/bq/warehouse/upload/bigquery/v2"
    table = {"projectId": PROJECT, "datasetId": "up", "tableId": f"t{uuid.uuid4().hex[:8]}"}
    two.ask("POST", f"/projects/{PROJECT}/datasets", {"datasetReference": {"projectId": PROJECT, "datasetId": "up"}})
    fields = [{"name": "n", "type": "INTEGER"}]
    load = {"destinationTable": table, "sourceFormat": "NEWLINE_DELIMITED_JSON", "schema": {"fields": fields}}
    began = two.ask(
        "POST", f"/projects/{PROJECT}/jobs?uploadType=resumable", {"configuration": {"load": load}}, prefix=prefix,
        headers={"X-Upload-Content-Type": "*/*"},
    )  # fmt: skip
    assert began.code == 200, began.body
    where = began.headers["Location"]
    assert where.startswith(f"https://127.0.0.1:{two.port}{prefix}/")
    path, _, name = where.partition(prefix)[2].partition("upload_id=")
    named = path + "upload_id={}"

    def chunk(upload: str, who: Any = BOB) -> Answer:
        return two.ask("PUT", named.format(upload), b'{"n": 1}\n', prefix=prefix, who=who)

    unknown(two, bq_service, chunk, name, uuid.uuid4().hex)
    done = chunk(name, ANA)
    assert done.code == 200, done.body
    assert done.json["configuration"]["load"]["destinationTable"] == table


def test_the_table_of_a_result(two: Gateway, bq_service: BigQueryServer) -> None:
    mine = inserted(two, configured("SELECT 'of ana' AS n"))
    table = two.ask("GET", f"{JOBS}/{mine}").json["configuration"]["query"]["destinationTable"]
    dataset, name = table["datasetId"], table["tableId"]
    assert dataset.startswith("_") and name.startswith("anon")
    where = f"/projects/{PROJECT}/datasets/{dataset}/tables/"
    nobodys = "anon" + uuid.uuid4().hex * 2
    for path in ("{}", "{}/data", "{}/data?selectedFields=n"):
        asked = where + path

        def read(each: str, asked: str = asked) -> Answer:
            return two.ask("GET", asked.format(each), who=BOB)

        unknown(two, bq_service, read, name, nobodys)
        assert two.ask("GET", asked.format(name)).code == 200
    text = f"SELECT * FROM `{PROJECT}.{dataset}.{{}}`"
    for by in ("jobs", "queries"):

        def ask(each: str, by: str = by) -> Answer:
            query = configured(text.format(each))
            return two.ask("POST", f"/projects/{PROJECT}/{by}", query if by == "jobs" else {
                "query": text.format(each), "useLegacySql": False}, who=BOB)  # fmt: skip

        unknown(two, bq_service, ask, name, nobodys)
    copied = {"projectId": PROJECT, "datasetId": "up", "tableId": "copied"}

    def copy(each: str) -> Answer:
        source = {"projectId": PROJECT, "datasetId": dataset, "tableId": each}
        body = {"configuration": {"copy": {"sourceTable": source, "destinationTable": copied}}}
        return two.ask("POST", JOBS, body, who=BOB)

    unknown(two, bq_service, copy, name, nobodys)
    listed = two.ask("GET", f"/projects/{PROJECT}/datasets/{dataset}/tables", who=BOB)
    assert name.encode() not in listed.body
    wild = two.ask("POST", QUERIES, {"query": f"SELECT * FROM `{PROJECT}.{dataset}.anon*`", "useLegacySql": False},
                   who=BOB)  # fmt: skip
    assert wild.code != 200
    assert b"of ana" not in wild.body
