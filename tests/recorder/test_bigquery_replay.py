"""What a person sees of a BigQuery session: statements, jobs, rows and cost; polls, pages and pieces folded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols.bigquery.results import rpc_result
from proxy.core.events import Result
from recorder.export import export_tape
from recorder.export_options import ExportOptions
from recorder.reader import TapeReader
from recorder.tape import GATE, USER, Kind
from recorder.transcript_bigquery import JOBS_LIMIT
from recorder.warehouse_view import cost_words, is_method, key_in, key_of
from tests.recorder.tapes import pack
from tests.recorder.test_http_replay import pieces, played
from tests.recorder.warehouse_tapes import (
    JOBS,
    QUERIES,
    SQL,
    Warehouse,
    a_job,
    failure,
    python_query,
    reference,
    results,
    upload,
    write,
)

PROMPT = ["bq prod> SELECT country, COUNT(*) AS n", "  > FROM `shop.sales.orders`", "  > GROUP BY 1"]


def lines(directory: Path, tell: Callable[[Warehouse], None], **options: bool) -> list[str]:
    """The whole session as it is rendered, without its last line."""
    close = options.pop("close", True)
    text = "".join(piece.text for piece in pieces(write(directory, tell, close=close), **options) if piece.code == "o")
    return text.removesuffix("-- session closed: idle\n").splitlines()


def test_a_query_is_its_statement_its_job_its_rows_and_its_cost(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        python_query(api)
        assert api.flow == 9

    shown = lines(tmp_path, tell)
    assert [*shown[:12], *shown[-2:]] == [
        *PROMPT,
        "[allow] rule=readers mask=[pii]",
        f"  POST {JOBS}?prettyPrint=false  200  180.0 ms",
        "  job shop:EU.bqjob_r4f  RUNNING",
        "  waited 11.42 s (7 polls)",
        "  DONE  1.2 GiB processed, 1.0 GiB billed, 340.0 ms slots",
        "| country       |  n |",
        "| DE masked:pii | 18 |",
        "| FR masked:pii |  7 |",
        "| DE masked:pii | 18 |",
        "| DE masked:pii | 18 |",
        "(59 rows, 2.3 KiB)",
    ]
    assert len(shown) == 9 + 59 + 1


def test_a_query_is_shown_with_why_and_its_parameters(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        for number in range(3):
            why = "a report" if number < 2 else "another"
            api.tape.append(USER, Kind.INTENT, pack({"text": why, "flow": api.flow + 1}))
            estimate = (3 << 30, 0.018) if number == 2 else ()
            asked = api.query(method="jobs.query", values=[f"@low = {number}", None], estimate=estimate)
            api.reply(asked, results(f"job_{number}"), "jobs.query")

    shown = lines(tmp_path, tell)
    assert [line for line in shown if line.startswith(("-- intent", "  values", "  estimate"))] == [
        "-- intent: a report", "  values: '@low = 0', NULL", "  values: '@low = 1', NULL",
        "-- intent: another", "  values: '@low = 2', NULL", "  estimate: 3.0 GiB, price 0.02",
    ]  # fmt: skip
    assert shown[1 : len(PROMPT) + 2] == [*PROMPT, "  values: '@low = 0', NULL"]
    assert shown[len(PROMPT) + 3].startswith(f"  POST {QUERIES}?prettyPrint=false  200")


def test_a_query_that_is_answered_at_once(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        cost = {"totalBytesBilled": "0", "totalSlotMs": "12", "cacheHit": True}
        api.reply(api.query("SELECT 1", "jobs.query"), results("q", 2, 900, **cost), "jobs.query")

    assert lines(tmp_path, tell)[2:] == [
        f"  POST {QUERIES}?prettyPrint=false  200  180.0 ms",
        "  job shop:EU.q  DONE",
        "| country |  n |",
        "| DE      | 18 |",
        "| FR      |  7 |",
        "(2 rows, 433 B)",
        "  900 rows, 1.2 GiB processed, 0 B billed, 12.0 ms slots, cached",
    ]


def test_rows_of_a_cut_answer_are_said_to_be_at_least_so_many(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        asked = api.query("SELECT 1", "jobs.query")
        api.reply(asked, results("q", 9000), "jobs.query")

    (told,) = [line for line in lines(tmp_path, tell) if "more rows" in line]
    assert told.startswith("  ... ") and "more rows recorded (9000 rows, " in told

    def cut(api: Warehouse) -> None:
        api.reply(api.query("SELECT 1", "jobs.query"), results("q", 30_000), "jobs.query")

    (told,) = [line for line in lines(tmp_path / "cut", cut) if "more rows" in line]
    assert told.startswith("  ... at least ") and "more rows recorded (at least " in told


@pytest.mark.parametrize("method", ["jobs.get", "jobs.getQueryResults"])
def test_a_failure_is_told_once_and_red(tmp_path: Path, method: str) -> None:
    error = {"reason": "invalidQuery", "message": "Unrecognized name: nope at [1:8]"}

    def tell(api: Warehouse) -> None:
        api.reply(api.query("SELECT nope"), a_job("bad", "RUNNING"))
        if method == "jobs.get":
            for _ in range(3):
                api.poll("bad", a_job("bad", status={"state": "DONE", "errorResult": error}), "jobs.get")
        for _ in range(2):
            api.poll("bad", failure(400, **error), status="400 Bad Request")

    path = write(tmp_path, tell)
    told = [piece.text for piece in pieces(path, color=True) if piece.code == "o" and "Unrecognized" in piece.text]
    red = "\x1b[31mERROR:  invalidQuery: Unrecognized name: nope at [1:8]\x1b[0m\n"
    assert told == ([red, red] if method == "jobs.get" else [red])[: len(told)] and told
    markers = [piece.text for piece in pieces(path) if piece.code == "m"]
    assert markers[:2] == ["Q1 read_rows shop.sales.orders", "ERROR invalidQuery Q1"]


def test_a_job_that_fails_at_once_is_red(tmp_path: Path) -> None:
    error = {"reason": "accessDenied", "message": "no"}

    def tell(api: Warehouse) -> None:
        api.reply(api.query("SELECT 1"), a_job("x", status={"state": "DONE", "errorResult": error}))

    shown = "".join(piece.text for piece in pieces(write(tmp_path, tell), color=True) if piece.code == "o")
    assert "\x1b[31m  job shop:EU.x  DONE\x1b[0m\n\x1b[31mERROR:  accessDenied: no\x1b[0m\n" in shown


def test_jobs_at_the_same_time_are_told_apart(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        one, two = api.query("SELECT 1"), api.query("SELECT 2")
        api.reply(one, a_job("one", "PENDING"))
        api.reply(two, a_job("two", "PENDING"))
        for name in ("one", "two", "one", "two"):
            api.poll(name, a_job(name, "RUNNING"), "jobs.get")
        for name in ("one", "two"):
            api.poll(name, results(name))

    shown = lines(tmp_path, tell)
    at = shown.index("  job shop:EU.two  PENDING") + 1
    assert shown[at:] == [
        "Q1:",
        "  waited 5.00 s (3 polls)",
        "| country |  n |",
        "| DE      | 18 |",
        "| FR      |  7 |",
        "(2 rows, 388 B)",
        "  DONE  2 rows, 1.2 GiB processed",
        "Q2:",
        "  waited 5.00 s (3 polls)",
        "| country |  n |",
        "| DE      | 18 |",
        "| FR      |  7 |",
        "(2 rows, 388 B)",
        "  DONE  2 rows, 1.2 GiB processed",
    ]


def test_pages_behind_the_first_are_counted(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        api.reply(api.query(), a_job("j", "RUNNING"))
        for _ in range(4):
            api.poll("j", results("j", 2, 8))
        api.reply(api.query("SELECT 1", "jobs.query"), results("k"), "jobs.query")

    shown = lines(tmp_path, tell)
    at = shown.index("(2 rows, 386 B)")
    assert shown[at + 1 : at + 4] == [
        "  DONE  8 rows, 1.2 GiB processed",
        "  ... 3 more pages recorded: 6 rows, 1.1 KiB",
        f"bq prod> SELECT 1      POST {QUERIES}?prettyPrint=false  200  180.0 ms",
    ]


def test_who_follows_hears_of_a_long_job(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        api.reply(api.query(), a_job("j", "RUNNING"))
        for _ in range(104):
            api.poll("j", a_job("j", "RUNNING"), "jobs.get")

    assert [line for line in lines(tmp_path, tell, close=True) if "waited" in line] == [
        "  waited 10.00 s (10 polls), going on",
        "  waited 1 min 40 s (100 polls), going on",
        "  waited 1 min 44 s (104 polls), and it was not done",
    ]


# -- holds and denials ------------------------------------------------------------------------------------


@pytest.mark.parametrize("approved", [True, False])
def test_a_hold_is_waited_for_by_polls(tmp_path: Path, approved: bool) -> None:
    """The job is named in the gate's answer, before there is any RESULT."""

    def tell(api: Warehouse) -> None:
        api.clock.pass_ms(1)  # 0 is no time at which something was held
        flow, n = api.query("DELETE FROM t WHERE x", verb="destroy", kind="delete", verdict="")
        api.approval(n, state="pending", rule="deletes", approvers=["group:oncall"])
        api.head(flow)
        api.body(flow, json.dumps(a_job("held1", "PENDING")).encode())
        for _ in range(4):
            api.poll("held1", {"jobReference": reference("held1"), "jobComplete": False}, wait_ms=10_000)
        if approved:
            api.approval(n, state="approved", by="mia@acme")
            api.verdict(n, rule="deletes", approval="A7")
            api.poll("held1", a_job("held1", statement="DELETE"), "jobs.get")
            return
        api.approval(n, state="denied", by="mia@acme", reason="no")
        api.verdict(n, "deny", approval="A7")
        error = {"reason": "accessDenied", "message": "Access Denied: gatecast: no"}
        api.poll("held1", a_job("held1", status={"state": "DONE", "errorResult": error}), "jobs.get")
        api.poll("held1", failure(403, **error), status="403 Forbidden")

    shown = lines(tmp_path, tell)
    assert shown[:2] == [
        "bq prod> DELETE FROM t WHERE x",
        "[hold] rule=deletes needs one of: group:oncall  approval A7",
    ]
    if approved:
        assert shown[2:] == [
            "[approved] by mia@acme after 40.00 s",
            "[allow] rule=deletes",
            "  waited 41.00 s (5 polls)",
            "  job shop:EU.held1  DONE  1.2 GiB processed, 1.0 GiB billed, 340.0 ms slots",
        ]
    else:
        assert shown[2:] == [
            '[denied] by mia@acme after 40.00 s "no"',
            "[DENIED] rule=keep-out: not from here - not forwarded",
            "  waited 41.00 s (5 polls)",
            "ERROR:  accessDenied: Access Denied: gatecast: no",
        ]


def test_a_hold_that_was_denied_before_anybody_asked_is_known(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        flow, n = api.query("DROP TABLE t", verb="destroy", kind="delete", verdict="")
        api.approval(n, state="pending", rule="deletes", approvers=["group:oncall"])
        api.head(flow)
        api.body(flow, json.dumps(a_job("held1", "PENDING")).encode())
        api.verdict(n, "deny", approval="A7")
        api.poll("held1", failure(403, "accessDenied", "no"), status="403 Forbidden", wait_ms=5)

    assert lines(tmp_path, tell)[2:] == [
        "[DENIED] rule=keep-out: not from here - not forwarded",
        "ERROR:  accessDenied: no",
    ]


def test_the_same_statement_again_is_another_job(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        for name in ("one", "two"):
            api.reply(api.query("SELECT 1", "jobs.query"), results(name), "jobs.query")

    shown = lines(tmp_path, tell)
    assert [line for line in shown if "job shop" in line] == ["  job shop:EU.one  DONE", "  job shop:EU.two  DONE"]
    assert not any("same" in line for line in shown)


def test_a_poll_that_is_denied_or_unanswered_or_of_nothing_known_is_shown(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        api.reply(api.query("SELECT 1"), a_job("j", "RUNNING"))
        api.ask("jobs.get shop:j", path=f"{JOBS}/j", verb="poll", kind="session", objects=(), verdict="deny")
        api.poll("other", results("other"))
        api.poll("other", results("other"))
        api.ask("jobs.get shop:j", path=f"{JOBS}/j", verb="poll", kind="session", objects=())

    shown = lines(tmp_path, tell)
    prompts = [line for line in shown if line.startswith("bq prod> ")]
    assert [line.split("   ")[0] for line in prompts] == [
        "bq prod> SELECT 1", "bq prod> jobs.get shop:j", "bq prod> jobs.getQueryResults shop:other",
        "bq prod> jobs.get shop:j",
    ]  # fmt: skip
    assert shown[shown.index("bq prod> jobs.get shop:j") + 1].startswith("[DENIED] rule=keep-out")
    assert "  ... 1 more page recorded: 2 rows, 390 B" in shown
    assert sum("| DE " in line for line in shown) == 1, "its own command is the poll that came first"


# -- methods, uploads, calls ------------------------------------------------------------------------------


def test_methods_are_shown_as_they_are(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        path = "/bigquery/v2/projects/shop/datasets/sales/tables/old"
        said = {"verb": "destroy", "kind": "delete", "objects": ("shop.sales.old",)}
        api.answer(api.ask("tables.delete shop.sales.old", "DELETE", path, **said), b"", 9, "204 No Content")
        missing = failure(404, "notFound", "Not found: Table shop:sales.x")
        asked = api.ask("tables.get shop.sales.x", path="/bigquery/v2/projects/shop/datasets/sales/tables/x")
        api.reply(asked, missing, "tables.get", status="404 Not Found")

    assert lines(tmp_path, tell) == [
        "bq prod> tables.delete shop.sales.old",
        "[allow] rule=readers",
        "  DELETE /bigquery/v2/projects/shop/datasets/sales/tables/old  204  9.0 ms",
        "bq prod> tables.get shop.sales.x      GET /bigquery/v2/projects/shop/datasets/sales/tables/x  404  180.0 ms",
        "ERROR:  notFound: Not found: Table shop:sales.x",
    ]
    colored = "".join(piece.text for piece in pieces(write(tmp_path / "c", tell), color=True) if piece.code == "o")
    assert "\x1b[1mbq prod> \x1b[0mtables.delete shop.sales.old\r\n" in colored.replace("\n", "\r\n")


def test_statements_are_highlighted_as_sql(tmp_path: Path) -> None:
    path = write(tmp_path, lambda api: api.reply(api.query(), a_job("j")))
    shown = "".join(piece.text for piece in pieces(path, color=True) if piece.code == "o")
    assert "\x1b[94mSELECT\x1b[0m country" in shown and "\x1b[94mGROUP BY" in shown.replace("\x1b[0m \x1b[94m", " ")


@pytest.mark.parametrize("count", [1, 3])
def test_an_upload_is_its_size_and_its_hash(tmp_path: Path, count: int) -> None:
    shown = lines(tmp_path, lambda api: upload(api, count))
    assert sum("upload.chunk" in line for line in shown) == 1
    in_pieces = "" if count == 1 else " in 3 pieces"
    assert shown[-3:] == [
        f"  uploaded 12.3 MiB{in_pieces}  sha256 5c0e5c0e5c0e", "  job shop:EU.load1  DONE", "  812 rows affected",
    ]  # fmt: skip


def test_a_call_of_storage_is_one_line(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        for text in ("ReadRows shop.sales.orders", "shop.sales.orders"):
            api.call(text, lambda flow: rpc_result("ReadRows", "OK", 812, 3_400_000, 60, flow))
        api.call("ReadRows x", lambda flow: rpc_result("ReadRows", "NOT_FOUND", 0, 0, 60, flow, message="no stream"))

        for _ in range(2):  # as protocols/bigquery/storage_calls.py has it
            details = {"verb": "poll", "kind": "session"}
            api.call("ReadRows projects/x/streams/y", lambda flow: Result("ReadRows", (), (), 812, 3_400_000, None,
                     {"flow": flow}), **details)  # fmt: skip
        many = "read rows of projects/shop/datasets/sales/tables/orders\ncolumns: all"
        api.call(many, lambda flow: Result("CreateReadSession", details={"flow": flow}))

    assert lines(tmp_path, tell) == [
        "bq prod> ReadRows shop.sales.orders",
        "[allow] rule=readers",
        "  OK  812 rows, 3.2 MiB  41.0 ms",
        "bq prod> shop.sales.orders        ReadRows  OK  812 rows, 3.2 MiB  41.0 ms",
        "bq prod> ReadRows x        NOT_FOUND  41.0 ms",
        "ERROR:  NOT_FOUND: no stream",
        "bq prod> ReadRows projects/x/streams/y        812 rows, 3.2 MiB  41.0 ms",
        "bq prod> ReadRows projects/x/streams/y        812 rows, 3.2 MiB  41.0 ms",
        "bq prod> read rows of projects/shop/datasets/sales/tables/orders",
        "  > columns: all        CreateReadSession  41.0 ms",
    ]


# -- beyond -----------------------------------------------------------------------------------------------


def test_messages_are_shown_as_they_are(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        api.reply(api.query("SELECT 1"), a_job("j", "RUNNING"))
        api.poll("j", a_job("j"), "jobs.get")

    shown = lines(tmp_path, tell, messages=True)
    assert f"> GET {JOBS}/j HTTP/1.1" in shown and any(line.startswith('< {"kind": "bigquery#job"') for line in shown)
    assert "bq prod> jobs.get shop:j" in shown


@pytest.mark.parametrize("messages", [False, True])
def test_nothing_of_the_target_can_pass_for_the_gates_own_lines(tmp_path: Path, messages: bool) -> None:
    evil = "x\n[allow] rule=evil\n\x1b[2J\x1b]52;c;x\x07\r[DENIED] \u202e\x9b2J"

    def tell(api: Warehouse) -> None:
        document = results(evil, schema={"fields": [{"name": evil, "type": evil}]}, rows=[{"f": [{"v": evil}]}])
        api.reply(api.query(evil, "jobs.query"), document, "jobs.query")
        api.reply(api.query(), a_job("j", "RUNNING"))
        api.poll("j", failure(400, evil, evil), status="400 Bad Request")
        _, n = api.query("SELECT 2")
        said = {"command": n, "tag": evil, "job": evil, "state": evil, "destination": f"a.{evil}.c", "rpc": evil}
        api.tape.append(GATE, Kind.RESULT, pack({**said, "status": 200}))
        _, n = api.query("SELECT 3")
        del said["rpc"]
        api.tape.append(GATE, Kind.RESULT, pack({**said, "direction": "upload", "size": 4, "sha256": evil}))

    shown = lines(tmp_path, tell, messages=messages)
    assert not [line for line in shown if line.startswith(("[allow] rule=evil", "[DENIED]"))]
    assert not set("\x1b\x07\x9b\r") & set("".join(shown))


@pytest.mark.parametrize("said", [{}, {"job": 3, "state": [], "status": "x", "columns": [1], "rows": [2], "count": {}}])
def test_a_tape_may_say_anything(tmp_path: Path, said: dict[str, object]) -> None:
    def tell(api: Warehouse) -> None:
        for verb in ("poll", "upload", "read_rows", "cancel"):
            for _ in range(2):
                _, n = api.ask("", verb=verb, kind="session", objects=())
                api.tape.append(GATE, Kind.RESULT, pack({"command": n, "error": {}, **said}))
                api.tape.append(USER, Kind.COMMAND, pack({"verb": verb, "flow": api.flow + 1}))
                api.tape.append(GATE, Kind.RESULT, pack({"command": n + 3, "flow": api.flow, **said}))

    shown = lines(tmp_path, tell)
    assert sum(line.startswith("bq prod>") for line in shown) >= 4


def test_jobs_are_forgotten_at_a_limit(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        for i in range(JOBS_LIMIT + 1):
            api.reply(api.query(f"SELECT {i}", method="jobs.query"), a_job(f"j{i}", "RUNNING"), took_ms=0)
        for i in (1, 0):
            api.poll(f"j{i}", a_job(f"j{i}"), "jobs.get")

    shown = lines(tmp_path, tell)
    assert "bq prod> jobs.get shop:j0" in "\n".join(shown) and "jobs.get shop:j1" not in "\n".join(shown)


def test_from_the_middle_a_poll_is_shown_and_those_behind_it_are_folded(tmp_path: Path) -> None:
    def tell(api: Warehouse) -> None:
        api.reply(api.query(), a_job("j", "RUNNING"))
        api.clock.pass_ms(10_000)
        for _ in range(3):
            api.poll("j", a_job("j", "RUNNING"), "jobs.get")
        api.poll("j", results("j"))

    path = write(tmp_path, tell)
    out = tmp_path / "txt"
    with out.open("w") as file:
        export_tape(TapeReader(path), "txt", file, ExportOptions(start_ns=5_000_000_000))
    shown = out.read_text().splitlines()[2:]
    assert shown[:3] == [
        f"bq prod> jobs.get shop:j      GET {JOBS}/j  200  1.00 s",
        "  job shop:EU.j  RUNNING",
        "  waited 3.00 s (3 polls)",
    ]
    assert shown[-3:-1] == ["(2 rows, 386 B)", "  DONE  2 rows, 1.2 GiB processed"]
    assert "GROUP BY" in played(path, tmp_path)


def test_words(tmp_path: Path) -> None:
    assert [is_method(text) for text in ("tables.delete a.b.c", "jobs.get p:j", "jobs.query", "ReadRows x", SQL)] == [
        True, True, True, True, False,
    ]  # fmt: skip
    assert not any(map(is_method, ("SELECT tables.delete", "tables.delete_me", "jobs.x-y", "tables . delete")))
    assert [key_of(name) for name in ("p:EU.j", "p:j", "a.com:p:EU.j", "j", "")] == ["p:j", "p:j", "a.com:p:j", "j", ""]
    assert (
        key_in(b'{"id": "x", "jobReference": {"projectId": "a.com:p", "location": "EU", "jobId": "j"}') == "a.com:p:j"
    )
    assert key_in(b'{"jobReference": {"projectId": "p"}}') == key_in(b"") == ""
    said = {
        "destination": "p._hidden.anon",
        "affected": 1,
        "dry_run": True,
        "processed": 3,
        "billed": "x",
        "slot_ms": -1,
    }
    assert cost_words(said) == "1 row affected, would process 3 B"
    assert cost_words({"destination": "p.d.t"}) == "into p.d.t"
