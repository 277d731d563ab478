"""A target that answers whatever a test says: for attacks by a target, and for what may reach it.

TLS and HTTP/1.1, a thread a connection. What a test does not answer itself gets a plain answer of its kind: a dry run
finds a SELECT that reads nothing, a job is done, a result has one row.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from proxy.core.parties import Target
from tests.bigquery.gateway_bq import TARGET
from tests.peers.certificates import Authority

PROJECT: Final = "acme"
JOBS: Final = f"/projects/{PROJECT}/jobs"
QUERIES: Final = f"/projects/{PROJECT}/queries"


@dataclass(frozen=True, slots=True)
class Heard:
    """A request that has reached the target."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def place(self) -> str:
        """The path without its query."""
        return urlsplit(self.path).path

    @property
    def query(self) -> dict[str, list[str]]:
        """What the query says."""
        return parse_qs(urlsplit(self.path).query)

    @property
    def json(self) -> dict[str, Any]:
        """The body."""
        found: dict[str, Any] = json.loads(self.body or b"{}")
        return found

    @property
    def dry(self) -> bool:
        """Whether it is a dry run."""
        return self.method == "POST" and b'"dryRun":true' in self.body.replace(b" ", b"")


# (status, fields, body: bytes as they are, else as JSON), None: the plain answer.
Said = tuple[int, Mapping[str, str], Any] | None


@dataclass(slots=True)
class Hostile:
    """The target. answer is what a test sets; heard is all that has come."""

    port: int
    folder: Path
    ca_file: Path
    answer: Callable[[Heard], Said] = lambda heard: None
    heard: list[Heard] = field(default_factory=list)

    def target(self, **settings: object) -> Target:
        """It as a target of the gateway."""
        given = {"ca_file": str(self.ca_file), **settings}
        return Target(TARGET, "bigquery", host="localhost", port=self.port, settings=given, recording="written")

    def ran(self, about: str = "") -> list[Heard]:
        """The requests that make jobs and are no dry runs, with this in them."""
        made = [each for each in self.heard if each.method == "POST" and not each.dry]
        return [each for each in made if about in each.body.decode("utf-8", "replace")]


def job_of(heard: Heard, location: str = "US") -> dict[str, Any]:
    """The job of a jobs.insert, done."""
    body = heard.json
    reference = {"location": location, **body.get("jobReference", {}), "projectId": PROJECT}
    return {
        "kind": "bigquery#job", "id": f"{PROJECT}:{location}.{reference.get('jobId')}", "jobReference": reference,
        "configuration": body.get("configuration", {}), "status": {"state": "DONE"}, "statistics": {},
    }  # fmt: skip


def rows_of(*cells: str, names: tuple[str, ...] = ("x",), job: str = "job_1", location: str = "US") -> dict[str, Any]:
    """A result of one row, of texts."""
    return {
        "kind": "bigquery#getQueryResultsResponse", "jobComplete": True, "totalRows": "1",
        "jobReference": {"projectId": PROJECT, "jobId": job, "location": location},
        "schema": {"fields": [{"name": name, "type": "STRING"} for name in names]},
        "rows": [{"f": [{"v": cell} for cell in cells]}],
    }  # fmt: skip


def _plain(heard: Heard) -> Any:
    if heard.dry:
        query = {"statementType": "SELECT", "referencedTables": [], "totalBytesProcessed": "1"}
        return {**job_of(heard), "statistics": {"totalBytesProcessed": "1", "query": query}}
    if heard.place.endswith("/jobs") and heard.method == "POST":
        return job_of(heard)
    if "/queries" in heard.place:
        return rows_of("value")
    if "/jobs/" in heard.place:
        name = heard.place.rsplit("/", 1)[1]
        return {"jobReference": {"projectId": PROJECT, "jobId": name, "location": "US"}, "status": {"state": "DONE"}}
    return {"kind": "bigquery#table", "type": "TABLE"}


@contextlib.contextmanager
def hostile() -> Iterator[Hostile]:
    """Run it."""
    with tempfile.TemporaryDirectory(prefix="gc-ho-") as name:
        authority = Authority(Path(name), "target-ca")
        pair = authority.issue("localhost", ("localhost",))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # an answer is one piece
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                heard = Heard(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                made.heard.append(heard)
                status, fields, answer = made.answer(heard) or (200, {}, _plain(heard))
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for key, value in {"Content-Type": "application/json", **fields}.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # http.server's names

            def log_message(self, format: str, *args: object) -> None:  # http.server's name
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # the gateway has hung up

        server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate_file, pair.key_file)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        made = Hostile(server.server_address[1], Path(name), authority.ca_file)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
