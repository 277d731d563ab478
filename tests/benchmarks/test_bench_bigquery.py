"""The BigQuery benchmark's own parts: what its stand-ins say, how answers are read, what its bars say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from benchmarks.bench_bigquery import Client, bars, main, query, read_answer, report
from benchmarks.bigquery_standin import (
    NESTED,
    PAGE,
    PROJECT,
    TABLE,
    TOKEN,
    Rest,
    page_rows,
    read_session_request,
    stream_of,
    tagged,
)
from benchmarks.bigquery_world import Route
from benchmarks.report import Sample, Samples
from protocols.bigquery.agreement import read_dry_run, read_table
from protocols.bigquery.schema import read_schema
from protocols.bigquery.storage_requests import read_create

DIRECT = Route("direct", 1, 2, Path("ca"), TOKEN, TOKEN)


class Wire:
    """What a stand-in's connection writes."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def said(*requests: bytes) -> list[bytes]:
    """The bodies of the stand-in's answers to what comes in pieces of 100 bytes."""
    connection, wire = Rest(), Wire()
    connection._transport = wire
    data = b"".join(requests)
    for at in range(0, len(data), 100):
        connection.data_received(data[at : at + 100])
    incoming = io.BytesIO(wire.data)
    answers = [read_answer(incoming) for _ in requests]
    assert not incoming.read()
    return answers


def test_each_query_makes_a_job_of_its_own() -> None:
    asked = DIRECT.request("POST", "queries?prettyPrint=false", query("SELECT 1"))
    answers = [json.loads(each) for each in said(asked, asked)]
    assert len({each["jobReference"]["jobId"] for each in answers}) == 2
    assert all(len(each["rows"]) == 10 and each["jobComplete"] for each in answers)


def test_a_job_keeps_the_id_that_it_was_given() -> None:
    job = {"jobReference": {"projectId": PROJECT, "jobId": "mine"}, "configuration": {"query": {"query": "SELECT 1"}}}
    requests = (
        DIRECT.request("POST", "jobs", job), DIRECT.request("GET", "jobs/mine?location=US"),
        DIRECT.request("GET", "queries/mine?location=US"),
    )  # fmt: skip
    assert [json.loads(each)["jobReference"]["jobId"] for each in said(*requests)] == ["mine"] * 3


def test_the_gateway_reads_the_dry_run_and_the_table() -> None:
    body = {"configuration": {"dryRun": True, "query": {"query": "SELECT address"}}}
    dry, table = said(DIRECT.request("POST", "jobs", body), DIRECT.request("GET", "datasets/crm/tables/people"))
    found = read_dry_run(dry)
    assert found is not None
    assert found.referenced == (TABLE,)
    assert found.schema == {"fields": NESTED}
    assert read_table(table).type == "TABLE"


def test_a_page_is_as_large_as_pages_are_and_has_the_schema_of_its_rows() -> None:
    (page,) = said(DIRECT.request("GET", f"queries/mine?pageToken={PAGE}"))
    found = json.loads(page)
    assert 10_000_000 <= len(page) < 10_100_000
    assert len(read_schema(found["schema"])) == len(found["rows"][7]["f"]) == 5
    assert len(json.loads(page_rows(1000))) < 10


def test_who_shows_another_token_is_not_served() -> None:
    other = Route("direct", 1, 2, Path("ca"), "user", "user")
    with pytest.raises(RuntimeError, match="401"):
        said(other.request("GET", "jobs/mine"))


def test_the_gateway_reads_the_request_for_a_read_session() -> None:
    found = read_create(read_session_request(TABLE))
    assert found.table == tuple(TABLE.split("."))


def test_a_stream_is_found_by_its_name() -> None:
    name = b"projects/p/locations/us/sessions/s/streams/one"
    assert stream_of(tagged(1, b"projects/p/locations/us/sessions/s") + tagged(10, tagged(1, name)) + b"\x08") == name
    with pytest.raises(RuntimeError, match="no stream"):
        stream_of(b"nothing")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    ],
)
def test_an_answer_is_read_to_its_end_and_no_further_here(answer: bytes) -> None:
    incoming = io.BytesIO(answer + b"next")
    assert read_answer(incoming) == b"hello"
    assert incoming.read() == b"next"


def samples(case: str, metric: str, **values: list[float]) -> list[Sample]:
    return [
        Sample(case, route.replace("_", " "), number, metric, value)
        for route, each in values.items()
        for number, value in enumerate(each)
    ]


def test_the_bars_are_those_of_the_issue() -> None:
    new, known, page = "query, new text", "query, known text", "page of 10 MB"
    found = [
        *samples(new, "p50 ms less the reading", direct=[1.0, 2.0, 1.0], gatecast=[3.9, 5.1, 3.8]),
        *samples(known, "reading, p50 ms", gatecast=[0.2]),
        *samples(page, "MB/s", direct=[100.0], gatecast=[80.0], gatecast_masked=[39.0]),
        *samples("Storage Read", "MB/s", direct=[100.0], gatecast=[60.0]),
        *samples("200 clients", "RSS growth MiB", gatecast=[8.0]),
    ]
    assert [holds for _, _, holds in bars(Samples(found))] == [True, False, True, False, True, False]
    assert bars(Samples([])) == []


def test_the_page_of_numbers_has_ratios_and_what_is_added() -> None:
    found = [
        *samples("page of 10 MB", "MB/s", direct=[400.0], nginx=[200.0], gatecast=[100.0]),
        *samples("jobs.get", "p50 ms", direct=[0.5], gatecast=[2.0]),
    ]
    lines = report(Samples(found)).splitlines()
    assert "| page of 10 MB | 0.50 | 0.25 |  |" in lines
    assert "| jobs.get |  | 1.50 |  |" in lines


def test_unknown_routes_are_said_before_anything_starts() -> None:
    with pytest.raises(SystemExit):
        main(["--routes", "direct,nowhere"])


def test_a_client_needs_a_certificate_to_trust() -> None:
    with pytest.raises(OSError):
        Client(DIRECT)
