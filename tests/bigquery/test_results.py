"""What a tape says of BigQuery's answers: rows, cost, state and errors, of whole answers and of beginnings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocols.bigquery.result_rows import CELL_LIMIT, COLUMNS_LIMIT
from protocols.bigquery.results import (
    COUNTED_LIMIT,
    JOB_LIMIT,
    ROWS_LIMIT,
    SHOWN_LIMIT,
    TAIL_LIMIT,
    job_name,
    result_of,
    rpc_result,
    with_content,
)
from protocols.bigquery.schema import read_schema
from proxy.core.events import Result

REFERENCE = {"projectId": "shop", "jobId": "bqjob_r4f", "location": "EU"}
SCHEMA = {"fields": [{"name": "country", "type": "STRING"}, {"name": "n", "type": "INTEGER"}]}
COST = {"totalBytesProcessed": "1200000000", "totalBytesBilled": "1000000000", "totalSlotMs": "340"}


def row(*values: Any) -> dict[str, Any]:
    return {"f": [{"v": value} for value in values]}


def page(count: int, *, filler: str = "DE", **more: Any) -> dict[str, Any]:
    """An answer of getQueryResults, its members in the service's order."""
    return {
        "kind": "bigquery#getQueryResultsResponse", "schema": SCHEMA, "jobReference": REFERENCE,
        "totalRows": str(count), "rows": [row(f"{filler}{i}", str(i)) for i in range(count)], **COST,
        "jobComplete": True, "cacheHit": True, **more,
    }  # fmt: skip


def told(document: object, method: str = "jobs.getQueryResults", status: int = 200, **options: Any) -> Result:
    indent = options.pop("indent", None)
    data = document if isinstance(document, bytes) else json.dumps(document, indent=indent).encode()
    return result_of(method, status, data, True, len(data), 0, 7, **options)


def job(**more: Any) -> dict[str, Any]:
    """A job that is done, as jobs.get has it."""
    query = {"statementType": "MERGE", "cacheHit": False, "totalBytesBilled": "20", "totalBytesProcessed": "11",
             "dmlStats": {"insertedRowCount": "3", "updatedRowCount": "4"}}  # fmt: skip
    table = {"projectId": "shop", "datasetId": "out", "tableId": "daily"}
    return {
        "kind": "bigquery#job", "id": "shop:EU.bqjob_r4f", "configuration": {
            "jobType": "QUERY", "query": {"query": "MERGE ...", "destinationTable": table}},
        "jobReference": REFERENCE, "statistics": {"totalSlotMs": "340", "query": query}, "status": {"state": "DONE"},
        **more,
    }  # fmt: skip


# -- whole answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["jobs.query", "jobs.getQueryResults"])
def test_a_result_has_its_rows_and_what_it_cost(method: str) -> None:
    found = told(page(2), method, job="other:US.known")
    assert (found.tag, found.columns, found.rows, found.row_count) == (
        "200 OK", ("country", "n"), (("DE0", "0"), ("DE1", "1")), 2,
    )  # fmt: skip
    assert found.details == {
        "flow": 7, "status": 200, "sent": 0, "content_type": "application/json", "job": "shop:EU.bqjob_r4f",
        "state": "DONE", "processed": 1_200_000_000, "billed": 1_000_000_000, "slot_ms": 340, "total_rows": 2,
        "cache_hit": True,
    }  # fmt: skip
    assert found.error is None


def test_a_job_tells_of_itself() -> None:
    details = dict(told(job(), "jobs.get").details)
    for name in ("flow", "status", "sent", "content_type"):
        del details[name]
    assert details == {
        "job": "shop:EU.bqjob_r4f", "state": "DONE", "job_type": "query", "processed": 11, "billed": 20,
        "slot_ms": 340, "cache_hit": False, "statement": "MERGE", "affected": 7, "destination": "shop.out.daily",
    }  # fmt: skip
    assert told({"kind": "bigquery#jobCancelResponse", "job": job()}, "jobs.cancel").details["state"] == "DONE"
    dry = job(configuration={"dryRun": True, "query": {}})
    assert told(dry, "jobs.insert").details["dry_run"] is True
    load = job(configuration={"load": {}}, statistics={"load": {"outputRows": "12"}})
    assert told(load, "upload.insert").details["affected"] == 12


def test_a_job_that_runs_or_has_failed() -> None:
    waiting = told({"jobReference": REFERENCE, "jobComplete": False}, "jobs.query")
    assert (waiting.details["state"], waiting.columns) == ("RUNNING", ())
    error = {"reason": "accessDenied", "message": "Access Denied: gatecast: no"}
    failed = told(job(status={"state": "DONE", "errorResult": error}), "jobs.get")
    assert failed.error == {"code": "accessDenied", **error}
    assert failed.details["state"] == "DONE"


def test_errors_have_the_code_the_reason_and_the_message() -> None:
    inner = {"reason": "notFound", "message": "not this one"}
    document = {
        "error": {"code": 404, "message": "Not found: Table shop:d.t", "errors": [inner], "status": "NOT_FOUND"}
    }
    found = told(document, "tables.get", 404)
    assert found.error == {"code": "404", "reason": "notFound", "message": "Not found: Table shop:d.t"}
    assert found.tag == "404 Not Found"
    assert told(b"<html>", "jobs.get", 502).error == {"code": "502", "message": "Bad Gateway"}
    refused = [{"index": 4, "errors": [{"reason": "invalid", "message": "no such field: x."}]}] * 2
    assert told({"insertErrors": refused}, "tabledata.insertAll").error == {
        "code": "invalid", "reason": "invalid", "message": "2 rows were not inserted; the first: no such field: x.",
    }  # fmt: skip


def test_rows_are_asked_for_none_is_not_an_empty_result() -> None:
    assert told(page(0, totalRows="61"), "jobs.getQueryResults").columns == ()
    assert told(page(0)).columns == ("country", "n"), "which this one is"
    assert told({"schema": SCHEMA, "numRows": "4"}, "tables.get").columns == ()


def test_a_page_without_a_schema_takes_the_known_one_or_numbers() -> None:
    known = read_schema(SCHEMA)
    bare = {"kind": "bigquery#tableDataList", "totalRows": "2", "rows": [row("DE", "1"), row(None, "2")]}
    assert told(bare, "tabledata.list", schema=known).columns == ("country", "n")
    assert told(bare, "tabledata.list").columns == ("1", "2")
    assert told(bare, "tabledata.list", job="shop:EU.j").details["job"] == "shop:EU.j"
    assert told(bare, "tabledata.list").rows == (("DE", "1"), (None, "2"))


# -- cells ------------------------------------------------------------------------------------------------

NESTED = {
    "fields": [
        {"name": "id", "type": "INT64"},
        {"name": "address", "type": "RECORD", "fields": [
            {"name": "zip", "type": "INTEGER"}, {"name": "street", "type": "STRING"},
            {"name": "seen", "type": "TIMESTAMP"}]},
        {"name": "tags", "type": "STRING", "mode": "REPEATED"},
        {"name": "pairs", "type": "STRUCT", "mode": "REPEATED", "fields": [{"name": "ok", "type": "BOOL"}]},
    ]
}  # fmt: skip


@pytest.mark.parametrize("known", [False, True])
def test_nested_and_repeated_values_are_json(known: bool) -> None:
    cells = row(
        "1", row("75001", 'a "b"', "1.767323045123456E9"), [{"v": "x"}, {"v": None}], [{"v": row("true")}, {"v": None}]
    )
    document = {"totalRows": "1", "rows": [cells]} | ({} if known else {"schema": NESTED})
    found = told(document, "tabledata.list", schema=read_schema(NESTED) if known else None)
    assert found.rows == ((
        "1", '{"zip": 75001, "street": "a \\"b\\"", "seen": "2026-01-02 03:04:05.123456 UTC"}', '["x", null]',
        '[{"ok": true}, null]',
    ),)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("1.767323045123456E9", "2026-01-02 03:04:05.123456 UTC"),
        ("1767323045123456", "2026-01-02 03:04:05.123456 UTC"),
        ("1.767323045E9", "2026-01-02 03:04:05 UTC"),
        ("-1", "1969-12-31 23:59:59.999999 UTC"),
        ("0", "1970-01-01 00:00:00 UTC"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("1e999999999", "1e999999999"),
        ("9" * 19, "9" * 19),
        ("[masked]", "[masked]"),
        (None, None),
    ],
)
def test_times_are_dates(value: str | None, shown: str | None) -> None:
    schema = {"fields": [{"name": "at", "type": "TIMESTAMP"}]}
    found = told({"schema": schema, "totalRows": "1", "rows": [row(value)]}, "jobs.query")
    assert found.rows == ((shown,),)


def test_what_is_shown_has_limits() -> None:
    for size in (CELL_LIMIT - 1, CELL_LIMIT, CELL_LIMIT + 1):
        found = told({"rows": [row("x" * size, [{"v": "y"}] * size)]}, "tabledata.list")
        assert [len(cell or "") for cell in found.rows[0]] == [min(size, CELL_LIMIT), CELL_LIMIT]
    for count in (ROWS_LIMIT - 1, ROWS_LIMIT, ROWS_LIMIT + 1):
        found = told(page(count))
        assert (len(found.rows), found.row_count) == (min(count, ROWS_LIMIT), count)
    for count in (COLUMNS_LIMIT - 1, COLUMNS_LIMIT, COLUMNS_LIMIT + 1):
        wide = told({"rows": [row(*map(str, range(count)))]}, "tabledata.list")
        assert len(wide.columns) == len(wide.rows[0]) == min(count, COLUMNS_LIMIT)


# -- answers that are cut, large, or no answers -----------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
def test_any_beginning_of_an_answer_can_be_read(indent: int | None) -> None:
    """And what it says is what the whole says, as far as it goes."""
    data = json.dumps(page(4, numDmlAffectedRows="40"), indent=indent).encode()
    whole = told(data)
    seen = set()
    for end in range(len(data)):
        found = result_of("jobs.getQueryResults", 200, data[:end], False, len(data), 0, 7)
        assert found.rows == whole.rows[: len(found.rows)]
        assert set(found.details.items()) <= {*whole.details.items(), ("partial", True)}
        assert (found.details.get("partial") is True) == (len(found.rows) > 0)
        seen.add(len(found.rows))
    assert seen == {0, 1, 2, 3, 4}


def test_a_number_that_is_cut_is_none() -> None:
    data = b'{"error": {"code": 1}, "totalRows": 1234}'
    for end in range(data.index(b"1234"), data.index(b"1234") + 5):
        assert "total_rows" not in result_of("jobs.query", 200, data[:end], False, 99, 0, 7).details


@pytest.mark.parametrize("indent", [None, 1])
def test_what_stands_behind_the_rows_of_a_large_page_is_told(indent: int | None) -> None:
    count = COUNTED_LIMIT // 40
    found = told(page(count, filler='],"totalSlotMs":"1","x":"'), indent=indent)
    assert (len(found.rows), found.details["processed"], found.details["cache_hit"]) == (
        ROWS_LIMIT,
        1_200_000_000,
        True,
    )
    assert found.details["slot_ms"] == 340
    assert (found.details["partial"], found.details["total_rows"]) == (True, count)
    assert ROWS_LIMIT < found.row_count < count
    counted = told(page(count), rows=count)
    assert counted.row_count == count and "partial" not in counted.details


@pytest.mark.parametrize("indent", [None, 1])
def test_records_in_rows_are_no_rows(indent: int | None) -> None:
    nested = row("x" * 100, row("a", [{"v": row("b")}, {"v": row("c")}]))
    count = SHOWN_LIMIT // len(json.dumps(nested, indent=indent)) + 10
    found = told({"schema": SCHEMA, "rows": [nested] * count}, indent=indent)
    assert (found.row_count, "partial" in found.details) == (count, False)


def test_no_value_can_pass_for_what_stands_behind_the_rows() -> None:
    """Whatever strings the rows end with: brackets, quotes, names."""
    evil = ['],"totalSlotMs":"6"}', "x],", "],", "]", '"', "\\", ']],"a":1}', '],"', "},{", ":", '"v":[],']
    rows = [row(one, other) for one in evil for other in evil]
    filler = [row("x" * 1000, "")] * (SHOWN_LIMIT // 1000 + 1)
    for separators in ((",", ":"), (" ,\n", " :\n")):
        head = json.dumps({"schema": SCHEMA, "rows": filler}, separators=separators).encode()[:-2]
        for end in rows:
            data = head + separators[0].encode() + json.dumps(end, separators=separators).encode() + b"]}"
            found = told(data)
            assert len(found.rows) == ROWS_LIMIT
            assert set(found.details) == {"flow", "status", "sent", "content_type"}


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_the_limits_of_what_is_decoded_whole(beyond: int) -> None:
    """Behind them the beginning and the end are read, and rows are counted all the same."""
    for method, limit in (("jobs.getQueryResults", SHOWN_LIMIT), ("jobs.get", JOB_LIMIT)):
        document = job(status={"state": "DONE"}) if method == "jobs.get" else page(3)
        empty = json.dumps({"filler": "", **document}).encode()
        data = empty.replace(b'"filler": "', b'"filler": "' + b"x" * (limit + beyond - len(empty)))
        assert len(data) == limit + beyond
        found = told(data, method)
        if method == "jobs.get":
            assert ("state" in found.details) == (beyond <= 0)
        else:
            assert (found.row_count, found.details["processed"]) == (3, 1_200_000_000)


def test_the_end_of_a_large_page_is_read_up_to_a_limit() -> None:
    rows = page(10_000)
    assert told({**rows, "z": "x" * (TAIL_LIMIT // 2)}).details["slot_ms"] == 340
    assert "slot_ms" not in told({**rows, "z": "x" * (TAIL_LIMIT + 1)}).details


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{", b'{"', b"\xff", b"{}", b'{"rows": 4}', b'{"rows": [[]]}', b'{"rows": [{"f": 1}]}',
        b'{"schema": 3, "rows": [{"f": [3, {"v": 4}, {"v": {"a": 1}}]}]}', b'{"schema": {"fields": [7]}, "rows": [1]}',
        b'{"jobReference": [], "totalRows": {}, "totalSlotMs": "99999999999999999999999", "jobComplete": 1}',
        b'{"error": "x"}', b'{"error": {"errors": [[]], "code": true}}', b'{"insertErrors": [3]}',
        b'{"configuration": 1, "statistics": [], "status": "DONE", "job": 5}', b'{"a":' * 50_000, b"[" * 100_000,
        b'{"schema":' + b'{"fields":[{"fields":' * 400 + b"1" + b"}]}" * 400 + b',"rows":[{"f":[{"v":"1"}]}]}',
        b'{"rows":[{"f":[{"v":' + b'{"f":[{"v":' * 300 + b"1" + b"}]}" * 300 + b"}]}]}",
    ],
    ids=range(21),
)  # fmt: skip
@pytest.mark.parametrize("whole", [True, False])
def test_garbage_says_nothing_and_raises_nothing(data: bytes, whole: bool) -> None:
    for method in ("jobs.query", "jobs.get", "jobs.cancel", "tabledata.list", "tables.list"):
        found = result_of(method, 200, data, whole, len(data), 0, 7)
        assert found.details["flow"] == 7 and found.tag == "200 OK"
        assert all(isinstance(cell, str | None) for cells in found.rows for cell in cells)
        assert "job" not in found.details and "slot_ms" not in found.details


# -- beside the REST API ----------------------------------------------------------------------------------


def test_calls_uploads_and_names() -> None:
    read = rpc_result("ReadRows", "OK", 12, 3400, 80, 7, job="shop:EU.j")
    assert (read.tag, read.row_count, read.size_bytes, read.error) == ("OK", 12, 3400, None)
    assert read.details == {"flow": 7, "rpc": "ReadRows", "sent": 80, "job": "shop:EU.j"}
    failed = rpc_result("ReadRows", "NOT_FOUND", 0, 0, 80, 7, message="no such stream")
    assert failed.error == {"code": "NOT_FOUND", "message": "no such stream"}
    done = with_content(told(job(), "upload.chunk"), 4, "ab" * 32)
    assert done.details | {"size": 4, "sha256": "ab" * 32, "direction": "upload", "in_order": True} == done.details
    torn = with_content(told(b"", "upload.chunk"), 4, "", complete=False)
    assert "sha256" not in torn.details
    assert (torn.details["in_order"], torn.details["complete"]) == (False, False)
    assert (job_name("p", "", "j"), job_name("a.com:p", "EU", "j")) == ("p:j", "a.com:p:EU.j")
