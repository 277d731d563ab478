"""Answers of BigQuery with rows or errors under masks: what is kept, what is left out, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocols.bigquery import pages as pages_module
from protocols.bigquery.pages import mask_errors, mask_page, schema_of
from protocols.bigquery.schema import Unreadable, read_schema
from proxy.core.events import NULL_CELL, CellMask, RemarkFields
from proxy.core.verdict import Mask
from proxy.masking import Masking
from tests.bigquery.test_rows_bq import field, row

SCHEMA_JSON = {"fields": [field("id", "INTEGER"), field("mail")]}
SCHEMA = read_schema(SCHEMA_JSON)
MAIL: list[CellMask | None] = [None, b"[redacted]"]
CANARY = "alice@example.org"

RESULT: dict[str, Any] = {
    "kind": "bigquery#getQueryResultsResponse",
    "etag": "abc",
    "schema": SCHEMA_JSON,
    "jobReference": {"projectId": "p", "jobId": "j", "location": "EU"},
    "totalRows": "2",
    "pageToken": "next",
    "rows": [row("1", CANARY), row("2", None)],
    "totalBytesProcessed": "17",
    "jobComplete": True,
    "cacheHit": False,
}


def text_of(document: Any, **more: Any) -> bytes:
    return json.dumps(document, **more).encode()


def masked(document: Any, **more: Any) -> Any:
    return json.loads(mask_page(text_of(document), SCHEMA, MAIL, **more))


def remark(*masks: Mask) -> Any:
    masking = Masking(b"k" * 32)

    def change(fields: RemarkFields) -> RemarkFields:
        return masking.remark(masks, fields)

    return change


COLUMN = remark(Mask("h", columns=("t.mail",)))
DETECTOR = remark(Mask("h", detectors=("email",)))


# -- rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"no JSON at all", b"\xff" * 100, b'{"rows":[{"f":[{"v":"1"}]}]}'])
def test_a_page_without_masks_is_not_read(data: bytes) -> None:
    assert mask_page(data, None, None) is data
    assert mask_page(data, SCHEMA, None) is data


def test_rows_are_masked_and_the_rest_stays() -> None:
    expected = {**RESULT, "rows": [row("1", "[redacted]"), row("2", None)]}
    assert masked(RESULT) == expected
    assert json.loads(mask_page(text_of(RESULT, indent=2), SCHEMA, MAIL)) == expected


@pytest.mark.parametrize(
    "fields",
    [
        ("rows",),  # fields=rows
        ("jobReference", "totalRows", "pageToken", "rows"),  # as Google's Python library asks
        ("kind", "etag", "totalRows", "rows", "pageToken"),  # tabledata.list
    ],
)
def test_a_part_of_an_answer_is_masked_by_the_schema_of_the_registry(fields: tuple[str, ...]) -> None:
    part = {key: RESULT[key] for key in fields}
    assert masked(part) == {**part, "rows": [row("1", "[redacted]"), row("2", None)]}


@pytest.mark.parametrize(
    "rows",
    [
        [{"f": [{}, {"v": CANARY}]}],  # fields=rows/f(v/f): a scalar loses its v
        [{}],  # fields=rows/g
        [{"f": [{"v": CANARY}]}],  # selectedFields=mail
        [{"f": [{"v": CANARY}, {"v": "1"}]}],  # selectedFields=mail,id
        {"f": [{"v": "1"}, {"v": CANARY}]},
        CANARY,
        [[{"v": "1"}, {"v": CANARY}]],
    ],
)
def test_rows_that_a_parameter_has_changed_are_refused(rows: Any) -> None:
    with pytest.raises(Unreadable) as caught:
        masked({**RESULT, "rows": rows})
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("part", [{}, {"schema": SCHEMA_JSON}, {"jobComplete": False}, {"rows": []}])
def test_an_answer_without_rows_passes(part: dict[str, Any]) -> None:
    assert masked({"kind": "bigquery#queryResponse", **part}) == {"kind": "bigquery#queryResponse", **part}


def test_rows_without_a_schema_are_refused() -> None:
    with pytest.raises(Unreadable, match="not known"):
        mask_page(text_of(RESULT), None, MAIL)


@pytest.mark.parametrize(
    "other",
    [
        {"fields": [field("mail"), field("id", "INTEGER")]},
        {"fields": [field("id", "INTEGER"), field("mail", "STRING", "REPEATED")]},
        {"fields": [field("id", "INTEGER"), field("email")]},
        {"fields": [field("id", "INTEGER")]},
        {},
        None,
    ],
)
def test_an_answer_with_another_schema_is_refused(other: Any) -> None:
    with pytest.raises(Unreadable):
        masked({**RESULT, "schema": other})


def test_a_schema_in_other_words_is_the_same() -> None:
    words = {"fields": [{"name": "id", "type": "INT64", "description": "x"}, {"name": "mail", "type": "STRING"}]}
    assert masked({**RESULT, "schema": words})["rows"][0] == row("1", "[redacted]")


@pytest.mark.parametrize("key", ["arrowSchema", "arrowRecordBatch", "pageRowCount"])
def test_rows_in_arrow_are_refused(key: str) -> None:
    with pytest.raises(Unreadable, match="Arrow"):
        masked({"kind": "bigquery#queryResponse", key: {"serializedRecordBatch": "/////w"}})
    with pytest.raises(Unreadable, match="Arrow"):
        mask_page(text_of({key: "1"}), None, None, remark=COLUMN)


def test_what_nobody_knows_is_left_out() -> None:
    assert masked({**RESULT, "Rows": RESULT["rows"], "preview": CANARY}) == masked(RESULT)
    assert CANARY.encode() not in mask_page(text_of({**RESULT, "preview": CANARY}), SCHEMA, MAIL)


def test_a_member_that_comes_twice_passes_once_and_masked() -> None:
    rows = json.dumps(RESULT["rows"])
    after = mask_page(f'{{"rows":{rows},"rows":{rows}}}'.encode(), SCHEMA, MAIL)
    assert CANARY.encode() not in after
    twice = f'{{"rows":[{{"f":[{{"v":"1"}},{{"v":"{CANARY}","v":"{CANARY}"}}]}}]}}'.encode()
    assert CANARY.encode() not in mask_page(twice, SCHEMA, MAIL)
    hidden = b'{"\\u0072ows":[{"\\u0066":[{"v":"1"},{"\\u0076":"' + CANARY.encode() + b'"}]}]}'
    assert CANARY.encode() not in mask_page(hidden, SCHEMA, MAIL)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"a"', b"{", b'{"rows":[]}x', b'{"a":\xff}', b"[" * 5000])
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        mask_page(data, SCHEMA, MAIL)
    with pytest.raises(Unreadable):
        schema_of(data)


def test_limit_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    data = text_of(RESULT)
    for limit in (len(data) + 1, len(data)):
        monkeypatch.setattr(pages_module, "PAGE_LIMIT", limit)
        assert CANARY.encode() not in mask_page(data, SCHEMA, MAIL)
    monkeypatch.setattr(pages_module, "PAGE_LIMIT", len(data) - 1)
    with pytest.raises(Unreadable, match="larger"):
        mask_page(data, SCHEMA, MAIL)


def test_masks_of_another_width_are_refused() -> None:
    with pytest.raises(Unreadable, match="another schema"):
        mask_page(text_of(RESULT), SCHEMA, [NULL_CELL])


def test_the_schema_of_an_answer_is_learned() -> None:
    assert schema_of(text_of(RESULT)) == SCHEMA
    assert schema_of(text_of({"jobComplete": False})) is None
    with pytest.raises(Unreadable):
        schema_of(text_of({"schema": {"fields": [field("x", "FOREIGN")]}}))


# -- errors -------------------------------------------------------------------------------------------


def error(reason: str, message: str, **more: Any) -> dict[str, Any]:
    inner = {"message": message, "domain": "global", "reason": reason, "location": "q", **more}
    return {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "errors": [inner], **more}}


@pytest.mark.parametrize("reason", ["invalidQuery", "invalid", "somethingNew", ""])
@pytest.mark.parametrize("message", [f"Bad int64 value: {CANARY}", CANARY, f"Error: '{CANARY}' at [1:8]"])
def test_an_error_does_not_tell_what_column_masks_hide(reason: str, message: str) -> None:
    data = text_of(error(reason, message, debugInfo=CANARY, details=[{"metadata": {"value": CANARY}}]))
    after = mask_errors(data, COLUMN)
    assert CANARY.encode() not in after
    found = json.loads(after)["error"]
    assert (found["code"], found["status"]) == (400, "INVALID_ARGUMENT")
    assert found["errors"] == [{"reason": reason, "location": "q", "domain": "global", "message": "[masked message]"}]
    assert found["message"] == "[masked message]"


def test_detectors_alone_leave_the_rest_of_an_error() -> None:
    after = json.loads(mask_errors(text_of(error("invalidQuery", f"Bad int64 value: {CANARY}; sorry")), DETECTOR))
    assert after["error"]["message"] == "Bad int64 value: [redacted]; sorry"
    assert after["error"]["errors"][0]["message"] == "Bad int64 value: [redacted]; sorry"


@pytest.mark.parametrize("reason", ["notFound", "accessDenied", "bytesBilledLimitExceeded", "stopped"])
def test_an_error_that_names_things_only_stays(reason: str) -> None:
    document = error(reason, "Not found: Table p:d.t was not found in location EU")
    assert json.loads(mask_errors(text_of(document), COLUMN)) == document


def test_one_reason_that_may_quote_is_enough() -> None:
    document = error("notFound", "names things")
    document["error"]["errors"].append({"reason": "invalid", "message": CANARY})
    document["error"]["errors"].append(CANARY)
    after = mask_errors(text_of(document), COLUMN)
    assert CANARY.encode() not in after
    assert json.loads(after)["error"]["message"] == "[masked message]"
    bare = {"error": {"code": 400, "message": CANARY}}
    assert CANARY.encode() not in mask_errors(text_of(bare), COLUMN)
    bare = {"error": {"code": 400, "message": CANARY, "errors": []}}
    assert CANARY.encode() not in mask_errors(text_of(bare), COLUMN)


def test_insert_errors_and_jobs_are_masked() -> None:
    proto = {"reason": "invalid", "location": "age", "debugInfo": CANARY, "message": f"Cannot convert: {CANARY}"}
    inserted = {"kind": "bigquery#tableDataInsertAllResponse", "insertErrors": [{"index": 3, "errors": [proto]}]}
    told = {"reason": "invalid", "location": "age", "message": "[masked message]"}
    expected = {**inserted, "insertErrors": [{"index": 3, "errors": [told]}]}
    assert json.loads(mask_errors(text_of(inserted), COLUMN)) == expected
    job = {"id": "p:j", "status": {"state": "DONE", "errorResult": proto, "errors": [proto]}, "statistics": {"n": "1"}}
    expected = {**job, "status": {"state": "DONE", "errorResult": told, "errors": [told]}}
    assert json.loads(mask_errors(text_of(job), COLUMN)) == expected
    assert CANARY.encode() not in mask_errors(text_of({"kind": "bigquery#jobList", "jobs": [job, job]}), COLUMN)


@pytest.mark.parametrize("document", [RESULT, {"kind": "bigquery#queryResponse"}])
def test_errors_beside_rows_are_masked(document: dict[str, Any]) -> None:
    whole = {**document, "errors": [{"reason": "invalid", "message": f"row 7: {CANARY}"}, None]}
    assert masked(whole, remark=DETECTOR)["errors"] == [{"reason": "invalid", "message": "row 7: [redacted]"}, None]
    assert masked(whole)["errors"] == [{"reason": "invalid", "message": "[masked message]"}, None]
    without = json.loads(mask_page(text_of(whole), SCHEMA, None, remark=COLUMN))
    assert without["errors"][0]["message"] == "[masked message]"
    assert without.get("rows") == document.get("rows")  # no mask speaks of this result's columns
    with pytest.raises(Unreadable):
        masked({**document, "errors": CANARY})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"errors":[}', b"[" * 100_000])
def test_errors_that_are_no_json_are_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        mask_errors(data, COLUMN)


def test_limit_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    data = text_of(error("invalid", CANARY))
    for limit in (len(data) + 1, len(data)):
        monkeypatch.setattr(pages_module, "ERRORS_LIMIT", limit)
        assert CANARY.encode() not in mask_errors(data, COLUMN)
    monkeypatch.setattr(pages_module, "ERRORS_LIMIT", len(data) - 1)
    with pytest.raises(Unreadable, match="larger"):
        mask_errors(data, COLUMN)
