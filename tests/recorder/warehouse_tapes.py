"""Small tapes of BigQuery, as its exchanges write them: queries with their polls, holds, uploads, calls of Storage."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from protocols.bigquery.results import result_of, rpc_result, with_content
from proxy.core.events import Result
from recorder.tape import GATE, OUT, USER, Kind
from tests.recorder import http_tapes
from tests.recorder.http_tapes import Api
from tests.recorder.tapes import pack

JOBS = "/bigquery/v2/projects/shop/jobs"
QUERIES = "/bigquery/v2/projects/shop/queries"
SQL = "SELECT country, COUNT(*) AS n\nFROM `shop.sales.orders`\nGROUP BY 1"
SCHEMA = {"fields": [{"name": "country", "type": "STRING"}, {"name": "n", "type": "INTEGER"}]}
COST = {"totalBytesProcessed": "1288490188", "totalBytesBilled": "1073741824"}
SHA256 = "5c0e" * 16


def reference(job: str) -> dict[str, str]:
    return {"projectId": "shop", "jobId": job, "location": "EU"}


def a_job(name: str, state: str = "DONE", statement: str = "SELECT", **more: Any) -> dict[str, Any]:
    """A Job resource; cost only of one that is done."""
    query: dict[str, Any] = {"statementType": statement}
    statistics: dict[str, Any] = {"query": query}
    if state == "DONE" and "status" not in more:
        query |= {**COST, "cacheHit": False}
        statistics["totalSlotMs"] = "340"
    return {
        "kind": "bigquery#job", "id": f"shop:EU.{name}", "jobReference": reference(name),
        "configuration": {"jobType": "QUERY", "query": {"query": SQL}}, "statistics": statistics,
        "status": {"state": state}, **more,
    }  # fmt: skip


def results(name: str, count: int = 2, total: int | None = None, **more: Any) -> dict[str, Any]:
    """A page of a result."""
    rows = [{"f": [{"v": country}, {"v": str(number)}]} for country, number in (("DE", 18), ("FR", 7))]
    rows = (rows * (count // 2 + 1))[:count]
    return {
        "kind": "bigquery#getQueryResultsResponse", "schema": SCHEMA, "jobReference": reference(name),
        "totalRows": str(count if total is None else total), "rows": rows, "jobComplete": True,
        "totalBytesProcessed": COST["totalBytesProcessed"], "cacheHit": False, **more,
    }  # fmt: skip


def failure(code: int, reason: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "errors": [{"reason": reason, "message": message}]}}


class Warehouse(Api):
    """A tape of BigQuery that is being written."""

    def query(self, text: str = SQL, method: str = "jobs.insert", **said: Any) -> tuple[int, int]:
        """A query is asked for."""
        path = JOBS if method == "jobs.insert" else QUERIES
        said = {"verb": "read_rows", "objects": ("shop.sales.orders",), **said}
        return self.ask(text, "POST", f"{path}?prettyPrint=false", body=json.dumps({"query": text}).encode(), **said)

    def reply(
        self, asked: tuple[int, int], document: dict[str, Any], method: str = "jobs.insert", *, took_ms: float = 180,
        status: str = "200 OK", change: Callable[[Result], Result] = lambda result: result,
    ) -> None:  # fmt: skip
        """The answer, and the RESULT that BigQuery's exchanges make of it, as Session.result writes it."""
        flow, n = asked
        self.clock.pass_ms(took_ms)
        self.head(flow, status)
        body = json.dumps(document).encode()
        self.body(flow, body)
        self.close_with(n, change(result_of(method, int(status[:3]), body, True, len(body), 0, flow)))

    def close_with(self, n: int, result: Result) -> None:
        entry: dict[str, Any] = {"command": n, "tag": result.tag, "count": result.row_count, "bytes": result.size_bytes}
        if result.columns:
            entry |= {"columns": result.columns, "rows": result.rows}
        if result.error is not None:
            entry["error"] = dict(result.error)
        self.tape.append(GATE, Kind.RESULT, pack(entry | dict(result.details)))

    def poll(
        self, name: str, document: dict[str, Any], method: str = "jobs.getQueryResults", *, wait_ms: float = 1000,
        status: str = "200 OK", **said: Any,
    ) -> tuple[int, int]:  # fmt: skip
        """A question after a job, and its answer."""
        path = f"{JOBS}/{name}" if method == "jobs.get" else f"{QUERIES}/{name}"
        text = f"{method} shop:{name}"
        asked = self.ask(text, path=path, verb="poll", kind="session", objects=(), rule="own job", **said)
        self.reply(asked, document, method, took_ms=wait_ms, status=status)
        return asked

    def call(self, text: str, result: Callable[[int], Result], took_ms: float = 41, **said: Any) -> tuple[int, int]:
        """A call of the Storage API: no messages of HTTP."""
        self.flow += 1
        entry = {"verb": said.pop("verb", "read_rows"), "kind": said.pop("kind", "read"), "text": text,
                 "objects": ["shop.sales.orders"], "flow": self.flow}  # fmt: skip
        n = self.tape.append(USER, Kind.COMMAND, pack(entry), entry)
        self.verdict(n, **said)
        self.clock.pass_ms(took_ms)
        self.tape.append(OUT, Kind.WIRE, b"\0\0\0\1\2arrow", flow=self.flow)
        self.close_with(n, result(self.flow))
        return self.flow, n


def write(directory: Path, tell: Callable[[Warehouse], Awaitable[None] | None], **options: Any) -> Path:
    """Write a tape by a story; return its first segment."""

    def told(api: Api) -> Awaitable[None] | None:
        return tell(Warehouse(api.tape, api.clock))

    return http_tapes.write(directory, told, protocol="bigquery", **options)


def python_query(api: Warehouse, name: str = "bqjob_r4f", polls: int = 6) -> None:
    """What google-cloud-bigquery does for query().result()."""
    asked = api.query(masks=["pii"])
    api.reply(asked, a_job(name, "RUNNING"))
    for _ in range(polls):
        api.poll(name, {"jobReference": reference(name), "jobComplete": False}, wait_ms=1900)
    api.poll(name, a_job(name), "jobs.get", wait_ms=20)
    api.poll(name, results(name, 0, 59), wait_ms=20)
    flow, n = api.ask(f"jobs.getQueryResults shop:{name}", path=f"{QUERIES}/{name}?maxResults=50000", verb="poll",
                      kind="session", objects=(), masks=["pii"])  # fmt: skip
    api.tape.append(GATE, Kind.MASKMAP, pack({"command": n, "fields": [["country", 0, "pii"]]}))
    api.reply((flow, n), results(name, 59), "jobs.getQueryResults", took_ms=35)


def upload(api: Warehouse, pieces: int = 3) -> None:
    """A load by a resumable upload."""
    start = api.ask("LOAD DATA INTO `shop.sales.raw`", "POST", f"/upload{JOBS}?uploadType=resumable",
                    verb="write_rows", kind="write", objects=("shop.sales.raw",),
                    body=b'{"configuration": {"load": {}}}')  # fmt: skip
    api.answer(start, b"", 20)
    for i in range(pieces):
        path = f"/upload{JOBS}?uploadType=resumable&upload_id=CANARY-upload"
        asked = api.ask("upload.chunk of shop.sales.raw", "PUT", path, verb="upload", kind="session", objects=())
        if i < pieces - 1:
            flow, n = asked
            api.clock.pass_ms(400)
            api.head(flow, "308 Resume Incomplete", more="Range: bytes=0-262143\r\n")
            api.result(n, flow, 308, "308 Permanent Redirect", sent=262_144)
            continue
        job = a_job("load1", configuration={"load": {}}, statistics={"load": {"outputRows": "812"}})
        content = partial(with_content, size=12_900_000, sha256=SHA256)
        api.reply(asked, job, "upload.chunk", change=content)


def day(api: Warehouse) -> None:
    """A bit of everything that an agent does in a day."""
    api.tape.append(USER, Kind.INTENT, pack({"text": "weekly revenue"}))
    discovery = api.ask("GET /$discovery/rest", path="/$discovery/rest?version=v2", verb="discover", objects=())
    api.reply(discovery, {"kind": "discovery#restDescription"}, "discovery")
    python_query(api)
    quick = api.query("SELECT 1 AS one", "jobs.query")
    api.reply(quick, results("quick", 1, cacheHit=True, totalSlotMs="0", totalBytesBilled="0"), "jobs.query")
    failed = api.query("SELECT nope FROM `shop.sales.orders`")
    api.reply(failed, a_job("bad", "RUNNING"))
    error = {"reason": "invalidQuery", "message": "Unrecognized name: nope at [1:8]"}
    api.poll("bad", a_job("bad", status={"state": "DONE", "errorResult": error}), "jobs.get")
    api.poll("bad", failure(400, "invalidQuery", error["message"]), status="400 Bad Request")
    text = "DELETE FROM `shop.sales.orders` WHERE day < '2020-01-01'"
    flow, n = held = api.query(text, verb="destroy", kind="delete", verdict="")
    api.approval(n, state="pending", rule="deletes", approvers=["group:oncall"])
    api.head(flow)
    api.body(flow, json.dumps(a_job("held1", "PENDING")).encode())
    for _ in range(4):
        api.poll("held1", {"jobReference": reference("held1"), "jobComplete": False}, wait_ms=10_000)
    api.approval(n, state="approved", by="mia@acme", reason="ok #812")
    api.verdict(n, rule="deletes", approval="A7")
    api.poll("held1", {"jobReference": reference("held1"), "jobComplete": False}, wait_ms=900)
    done = a_job("held1", statement="DELETE")
    done["statistics"]["query"]["dmlStats"] = {"deletedRowCount": "4200"}
    api.poll("held1", done, "jobs.get")
    assert held
    flow, _ = api.ask("tables.delete shop.sales.orders", "DELETE",
                      "/bigquery/v2/projects/shop/datasets/sales/tables/orders", verb="destroy", kind="delete",
                      objects=("shop.sales.orders",), verdict="deny")  # fmt: skip
    api.head(flow, "403 Forbidden")
    api.body(flow, json.dumps(failure(403, "accessDenied", "gatecast: keep-out")).encode())
    upload(api)
    api.call("ReadRows shop.sales.orders", lambda flow: rpc_result("ReadRows", "OK", 812, 3_400_000, 60, flow))
