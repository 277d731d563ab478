"""A BigQuery that tests tell what to do: it notes each request before it answers, and runs no SQL.

For tests of promises under trouble, where what counts is what the target got, in which order, and how it misbehaves.
Shapes are those of the public reference; the stand-in that runs SQL is tests/peers/bigquery.py. A word in a request
(script) makes it do something else instead of answering: stall, end the connection, say half of it.

TLS, HTTP/1.1, a thread a connection. Every query reads crm.people (id, email), where its text names it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from tests.peers.certificates import Authority

TOKEN: Final = "canary-service-account-8f31c6"
PROJECT: Final = "acme"
ACCOUNT: Final = "gate@acme.iam.gserviceaccount.com"
SCHEMA: Final = {"fields": [{"name": "id", "type": "INTEGER"}, {"name": "email", "type": "STRING"}]}
_JOBS: Final = f"/bigquery/v2/projects/{PROJECT}/jobs"
_QUERIES: Final = f"/bigquery/v2/projects/{PROJECT}/queries"
_READS: Final = re.compile(r"(?:FROM|USING)\s+`?crm\.(\w+)`?(?!\()", re.I)
_TIMES: Final = {"creationTime": "1767323045100", "startTime": "1767323045123", "endTime": "1767323045160"}


@dataclass(slots=True)
class Asked:
    """One request, as it came."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """What scripts and tests look for words in: the address and the body."""
        return f"{unquote(self.path)}?{unquote(self.query)}\n{self.body.decode('utf-8', 'replace')}"

    @property
    def dry(self) -> bool:
        """Whether it only asks for an estimate."""
        return b'"dryRun":true' in self.body.replace(b" ", b"")


Script = Callable[["Handler", Asked], None]


@dataclass(slots=True)
class Scripted:
    """The service. rows: of every result; jobs: by id; ran: ids of jobs and texts of queries, as they ran."""

    folder: Path
    authority: Authority
    port: int = 0
    rows: list[tuple[str, str]] = field(default_factory=lambda: [("1", "p1@example.org"), ("2", "p2@example.org")])
    scripts: dict[str, Script] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ran: list[tuple[str, str]] = field(default_factory=list)
    uploads: dict[str, Any] = field(default_factory=dict)
    come: threading.Condition = field(default_factory=threading.Condition)
    padding: str = ""  # of jobs, where their answers have to be large
    release: threading.Event = field(default_factory=threading.Event)  # lets go of who stalls

    def about(self, word: str) -> list[Asked]:
        """The requests with a word in them, but for dry runs."""
        with self.come:
            return [each for each in self.requests if word in each.text and not each.dry]

    def runs(self, word: str) -> int:
        """How often something ran."""
        with self.come:
            return sum(word in text for _, text in self.ran)

    def wait(self, word: str, count: int = 1, seconds: float = 30.0) -> list[Asked]:
        """Wait until so many requests with a word in them have come."""
        with self.come:
            found = self.come.wait_for(
                lambda: sum(word in each.text and not each.dry for each in self.requests) >= count, seconds
            )
            assert found, f"no request with {word}"
        return self.about(word)

    def begin(self, name: str, asked: Any, text: str) -> dict[str, Any]:
        """Make a job that has run at once."""
        configuration = dict(asked.get("configuration") or {})
        if "query" in configuration:
            anonymous = {"projectId": PROJECT, "datasetId": "_0a1b", "tableId": f"anon{name.replace('-', '')}"}
            configuration["query"] = {"destinationTable": anonymous, **configuration["query"]}
        job = {
            "kind": "bigquery#job", "id": f"{PROJECT}:US.{name}", "user_email": ACCOUNT,
            "jobReference": {"projectId": PROJECT, "jobId": name, "location": "US"},
            "configuration": configuration, "status": {"state": "DONE"},
            "statistics": {**_TIMES, "query": {"statementType": "SELECT", "totalBytesProcessed": "1024"}},
        }  # fmt: skip
        if self.padding:
            job["statistics"]["padding"] = self.padding
        with self.come:
            self.jobs[name] = job
            self.ran.append((name, text))
        return job

    def result(self, kind: str, name: str) -> dict[str, Any]:
        """A page of rows."""
        return {
            "kind": kind, "schema": SCHEMA, "jobComplete": True, "totalRows": str(len(self.rows)),
            "jobReference": {"projectId": PROJECT, "jobId": name, "location": "US"},
            "rows": [{"f": [{"v": one}, {"v": other}]} for one, other in self.rows],
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True  # head and body are two writes

    def answer(self) -> None:
        """Note a request, and answer it."""
        service = self.server.service
        body = self._body()
        place = urlsplit(self.path)
        asked = Asked(
            self.command, place.path, place.query, {name.lower(): value for name, value in self.headers.items()}, body
        )
        with service.come:
            service.requests.append(asked)
            service.come.notify_all()
        for word, script in tuple(service.scripts.items()):
            if word in asked.text and not asked.dry:
                return script(self, asked)
        return self.served(asked)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def _body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def served(self, asked: Asked) -> None:
        """Answer as the service does."""
        service, path = self.server.service, asked.path
        if asked.headers.get("authorization") != f"Bearer {TOKEN}" and not path.startswith("/$discovery"):
            return self.failure(401, "authError", "Invalid Credentials")
        name = unquote(path.rpartition("/")[2])
        if path.startswith("/upload/"):
            return self._upload(asked)
        if asked.method == "POST" and path == _JOBS:
            return self._insert(asked)
        if asked.method == "POST" and path == _QUERIES:
            return self._query(asked)
        if path.startswith(f"{_QUERIES}/"):
            known = name in service.jobs
            page = service.result("bigquery#getQueryResultsResponse", name)
            return self.say(page) if known else self.failure(404, "notFound", f"Not found: Job {PROJECT}:{name}")
        if path.startswith(f"{_JOBS}/"):
            return self._job(asked, name)
        return self._table(asked, name)

    def _job(self, asked: Asked, name: str) -> None:
        service = self.server.service
        found = service.jobs.get(unquote(asked.path[len(_JOBS) + 1 :].split("/")[0]))
        if found is None:
            return self.failure(404, "notFound", f"Not found: Job {PROJECT}:{name}")
        if name == "cancel":
            return self.say({"kind": "bigquery#jobCancelResponse", "job": found})
        return self.say(found)

    def _table(self, asked: Asked, name: str) -> None:
        service = self.server.service
        reference = {"projectId": PROJECT, "datasetId": "crm", "tableId": name}
        if name == "insertAll":
            with service.come:
                service.ran.append(("insertAll", asked.body.decode()))
            return self.say({"kind": "bigquery#tableDataInsertAllResponse"})
        if name == "data":
            rows = service.result("", "")
            return self.say({"kind": "bigquery#tableDataList", "rows": rows["rows"], "totalRows": rows["totalRows"]})
        if asked.path.startswith("/$discovery"):
            return self.failure(404, "notFound", "no discovery here")
        if "/tables/" in asked.path:
            return self.say({"kind": "bigquery#table", "type": "TABLE", "schema": SCHEMA, "tableReference": reference})
        return self.say({"kind": "bigquery#datasetList", "datasets": [], "path": asked.path})

    def _insert(self, asked: Asked) -> None:
        service = self.server.service
        value = json.loads(asked.body)
        query = value["configuration"].get("query", {})
        if value["configuration"].get("dryRun"):
            tables = [
                {"projectId": PROJECT, "datasetId": "crm", "tableId": each}
                for each in dict.fromkeys(_READS.findall(query["query"]))
            ]
            words = query["query"].lstrip().upper()
            kind = next((each for each in ("INSERT", "DELETE", "UPDATE") if words.startswith(each)), "SELECT")
            said = {"statementType": kind, "totalBytesProcessed": "1024", "referencedTables": tables, "schema": SCHEMA}
            statistics = {"creationTime": _TIMES["creationTime"], "totalBytesProcessed": "1024", "query": said}
            return self.say({
                "kind": "bigquery#job", "configuration": value["configuration"], "status": {"state": "DONE"},
                "jobReference": {"projectId": PROJECT, "location": "US"}, "statistics": statistics,
            })  # fmt: skip
        name = value["jobReference"]["jobId"]
        if name in service.jobs:
            return self.failure(409, "duplicate", f"Already Exists: Job {PROJECT}:US.{name}")
        return self.say(service.begin(name, value, query.get("query", "")))

    def _query(self, asked: Asked) -> None:
        service, value = self.server.service, json.loads(asked.body)
        name = f"job_{len(service.ran)}"
        if not value.get("dryRun"):
            service.begin(name, {"configuration": {"query": {}, "labels": value.get("labels")}}, value["query"])
        return self.say(service.result("bigquery#queryResponse", name))

    def _upload(self, asked: Asked) -> None:
        """Resumable ones: begun by POST, pieces by PUT; the last one makes the job."""
        service, words = self.server.service, parse_qs(asked.query)
        if asked.method == "POST":
            name = f"up{len(service.uploads)}"
            service.uploads[name] = [json.loads(asked.body), b""]
            where = f"https://localhost:{service.port}{asked.path}?uploadType=resumable&upload_id={name}"
            return self.say({}, headers={"Location": where})
        upload = service.uploads[words["upload_id"][0]]
        upload[1] += asked.body
        span = asked.headers["content-range"]
        if span.endswith("/*"):
            return self.say({}, 308, {"Range": f"bytes=0-{len(upload[1]) - 1}"})
        job = service.begin(upload[0]["jobReference"]["jobId"], upload[0], f"load {len(upload[1])}")
        return self.say(job)

    # -- how it answers -------------------------------------------------------------------------------

    def say(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with a document."""
        body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def failure(self, code: int, reason: str, message: str) -> None:
        """Answer with an error."""
        errors = [{"message": message, "domain": "global", "reason": reason}]
        self.say({"error": {"code": code, "message": message, "errors": errors}}, code)

    def raw(self, data: bytes) -> None:
        """Say these bytes, and end the connection."""
        self.wfile.write(data)
        self.wfile.flush()
        self.close_connection = True

    def die(self) -> None:
        """End the connection without a word."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def stall(self) -> None:
        """Say nothing until the service is told to go on."""
        self.server.service.release.wait(60)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    service: Scripted

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The gateway has left: killed, perhaps."""


@contextlib.contextmanager
def scripted(folder: Path) -> Iterator[Scripted]:
    """Run one."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(folder, "scripted-ca")
    pair = authority.issue("scripted")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    with _Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        service = server.service = Scripted(folder, authority, server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield service
        finally:
            service.release.set()
            server.shutdown()
            thread.join()
