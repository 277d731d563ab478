"""Exports of a BigQuery session, and what the index finds of it: HAR, SQL, text, casts, the page; jobs, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.sessions.text import Paper, show_text
from recorder.cli import show
from recorder.index import Index
from recorder.index_query import Wanted, find_commands
from recorder.tape import USER, Kind
from tests.recorder.tapes import pack
from tests.recorder.test_http_export import exported
from tests.recorder.warehouse_tapes import (
    COST,
    SHA256,
    Warehouse,
    a_job,
    day,
    failure,
    reference,
    results,
    write,
)


def found(directory: Path, **wanted: Any) -> list[dict[str, Any]]:
    Index.update(directory)
    with Index(directory) as index:
        return list(find_commands(index, Wanted(**wanted)))


# -- exports ----------------------------------------------------------------------------------------------


def test_each_exchange_is_in_the_har_and_no_upload_can_be_gone_on_with(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        day(api)
        flow, n = api.ask("LOAD DATA INTO `x`", "POST", "/upload/x?uploadType=resumable&upload_id=CANARY-query")
        api.head(
            flow,
            more="Location: https://gw/upload/x?a=1&upload_id=CANARY-place&b=2\r\nX-GUploader-UploadID: CANARY\r\n",
        )
        api.result(n, flow)

    text = exported(write(tmp_path, tell), "har")
    assert "CANARY" not in text
    entries = json.loads(text)["log"]["entries"]
    (place,) = [entry["response"]["redirectURL"] for entry in entries if entry["response"]["redirectURL"]]
    assert place == "https://gw/upload/x?a=1&upload_id=[removed]&b=2"
    assert [entry["comment"] for entry in entries if entry["request"]["method"] == "DELETE"] == [
        "tables.delete shop.sales.orders: denied by keep-out",
    ]  # fmt: skip
    (query,) = [entry for entry in entries if "SELECT 1 AS one" in entry["request"].get("postData", {}).get("text", "")]
    assert json.loads(query["response"]["content"]["text"])["totalRows"] == "1"
    assert sum(entry["comment"].startswith("jobs.get") for entry in entries) >= 10, "polls are exchanges, too"


def test_the_script_has_statements_and_neither_polls_nor_methods(tmp_path: Path) -> None:
    script = exported(write(tmp_path, day), "sql")
    ran = [line for line in script.splitlines() if line and not line.startswith("--")]
    assert ran == [
        "SELECT country, COUNT(*) AS n", "FROM `shop.sales.orders`", "GROUP BY 1", ";",
        "SELECT 1 AS one", ";",
        "SELECT nope FROM `shop.sales.orders`", ";",
        "DELETE FROM `shop.sales.orders` WHERE day < '2020-01-01'", ";",
        "LOAD DATA INTO `shop.sales.raw`", ";",
    ]  # fmt: skip
    assert "jobs.get" not in script and "upload.chunk" not in script
    assert "-- tables.delete shop.sales.orders" in script


def test_text_and_casts_are_what_replay_shows(tmp_path: Path) -> None:
    path = write(tmp_path, day)
    text = exported(path, "txt")
    assert "  waited 11.42 s (7 polls)\n" in text and "jobs.getQueryResults" not in text
    assert "> GET /bigquery/v2/projects/shop/queries/bqjob_r4f" in exported(path, "txt", http=True)
    for form in ("asciicast-v2", "asciicast-v3"):
        _, *lines = map(json.loads, exported(path, form).splitlines())
        shown = "".join(text for _, code, text in lines if code == "o")
        assert "waited 11.42 s (7 polls)" in shown
        markers = [text for _, code, text in lines if code == "m"]
        assert "Q2 read_rows shop.sales.orders" in markers and not any("poll" in marker for marker in markers)


def test_the_page_lists_commands_with_their_cost_and_not_their_polls(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        day(api)
        api.poll("bad", failure(404, "notFound", "no such job"), "jobs.get", status="404 Not Found")
        api.ask("jobs.get shop:j", path="/x", verb="poll", kind="session", objects=(), verdict="deny")

    page = exported(write(tmp_path, tell), "html")
    listed = page[page.index('<ol id="commands">') : page.index("</ol>")]
    assert "job shop:EU.quick DONE, 1 row, 1.2 GiB processed, 0 B billed, 0.0 ms slots, cached" in listed
    assert f"upload 12.3 MiB, sha256 {SHA256}, job shop:EU.load1 DONE, 812 rows affected" in listed
    assert "ReadRows" in listed
    polls = listed.count("jobs.getQueryResults") + listed.count("jobs.get ")
    assert polls == 4, "one that was denied, and three that failed"
    assert "more commands are in the recording" not in page


def test_show_has_what_a_job_says(tmp_path: Path) -> None:
    commands = show(write(tmp_path, day))["commands"]
    (quick,) = [command for command in commands if command["text"] == "SELECT 1 AS one"]
    told = {name: quick["details"][name] for name in ("job", "state", "processed", "billed", "slot_ms", "cache_hit")}
    assert told == {
        "job": "shop:EU.quick", "state": "DONE", "processed": int(COST["totalBytesProcessed"]), "billed": 0,
        "slot_ms": 0, "cache_hit": True,
    }  # fmt: skip
    (load,) = [command for command in commands if command["verb"] == "upload" and "job" in command["details"]]
    assert (load["details"]["sha256"], load["details"]["affected"]) == (SHA256, 812)


def test_show_has_why_a_command_was_asked_for_and_with_what(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        for text in ("SELECT 1", "SELECT 2"):
            api.tape.append(USER, Kind.INTENT, pack({"text": "a report", "flow": api.flow + 1}))
            api.reply(api.query(text, "jobs.query", values=["7"]), results("j"), "jobs.query")
        api.reply(api.query("SELECT 3", "jobs.query"), results("k"), "jobs.query")
        api.tape.append(USER, Kind.INTENT, pack({"text": "all of it"}))
        api.query("SELECT 4", "jobs.query")

    path = write(tmp_path, tell)
    found = show(path)
    assert found["intents"] == ["a report", "all of it"]
    told = [(each["text"], each["intent"], each["values"]) for each in found["commands"]]
    assert told == [
        ("SELECT 1", "a report", ["'7'"]), ("SELECT 2", "a report", ["'7'"]), ("SELECT 3", "", []), ("SELECT 4", "", [])
    ]  # fmt: skip
    assert "<dd>a report; all of it</dd>" in exported(path, "html")


def test_the_text_of_show_says_the_job_its_cost_and_why(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        api.tape.append(USER, Kind.INTENT, pack({"text": "a\nreport", "flow": api.flow + 1}))
        api.reply(api.query("SELECT 1", values=["@x = 7"], estimate=[1 << 40, 6.25]), a_job("j"))

    shown = show_text(show(write(tmp_path, tell)), Paper()).splitlines()
    assert "      values: '@x = 7'" in shown
    assert "      estimate: 1.0 TiB, price 6.25" in shown
    assert "      intent: a report" in shown
    assert "      200 OK, job shop:EU.j  DONE, 1.2 GiB processed, 1.0 GiB billed, 340.0 ms slots" in shown


# -- the index --------------------------------------------------------------------------------------------


def test_a_query_is_found_by_its_job_and_its_tables(tmp_path: Path) -> None:
    write(tmp_path, day)
    for words in ("bqjob_r4f", '"shop:EU.bqjob_r4f"'):
        (row, *polls) = sorted(found(tmp_path, text=words), key=lambda row: int(row["number"]))
        assert row["number"] == 2
        assert len(polls) == (9 if words == "bqjob_r4f" else 0), "they name it without its location"
    for name in ("shop.sales.orders", "orders", "sales.orders", "shop.*"):
        assert {"destroy", "read_rows"} <= {row["verb"] for row in found(tmp_path, object=name)}
    assert {row["verb"] for row in found(tmp_path, text=SHA256)} == {"upload"}
    assert [row["error"] for row in found(tmp_path, error="Unrecognized")] == ["Unrecognized name: nope at [1:8]"] * 2
    assert [row["verdict"] for row in found(tmp_path, verdict="held")] == ["held-allow"]


def test_where_a_result_went_is_found(tmp_path: Path) -> None:
    table = {"projectId": "shop", "datasetId": "out", "tableId": "daily_report"}

    def tell(api: Warehouse) -> None:
        configuration = {"query": {"query": "SELECT 1", "destinationTable": table}}
        api.reply(api.query("SELECT 1"), a_job("j1", configuration=configuration))
        api.reply(api.query("SELECT 2 FROM `shop.out.daily_report`"), a_job("j2", configuration=configuration))

    write(tmp_path, tell)
    rows = found(tmp_path, text='"shop.out.daily_report"')
    assert sorted(row["number"] for row in rows) == [1, 2]
    Index.update(tmp_path)
    with Index(tmp_path) as index:
        texts = [text for (text,) in index.connection.execute("SELECT text FROM commands ORDER BY number")]
    assert texts == [
        "SELECT 1\njob shop:EU.j1\ndestination shop.out.daily_report",
        "SELECT 2 FROM `shop.out.daily_report`\njob shop:EU.j2",
    ]


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_job_is_found_in_a_session_that_goes_on(tmp_path: Path, chunk: int) -> None:
    """Its RESULT comes behind what the index has already."""

    async def tell(api: Warehouse) -> None:
        asked = api.query()
        await api.tape.written()
        Index.update(tmp_path)
        api.reply(asked, a_job("late", "RUNNING"))
        for _ in range(chunk):
            poll = api.ask("jobs.getQueryResults shop:late", verb="poll", kind="session", objects=())
            await api.tape.written()
            Index.update(tmp_path)
            api.reply(poll, {"jobReference": reference("late"), "jobComplete": False}, "jobs.getQueryResults")
        api.reply(asked, results("late"))
        await api.tape.written()

    write(tmp_path, tell)
    assert [row["number"] for row in found(tmp_path, text='"shop:EU.late"')] == [1]
    with Index(tmp_path) as index:
        index.connection.execute("INSERT INTO texts(texts, rank) VALUES('integrity-check', 1)")
        polls = index.connection.execute("SELECT DISTINCT text FROM commands WHERE verb = 'poll'").fetchall()
    assert [text for (text,) in polls] == ["jobs.getQueryResults shop:late"]
