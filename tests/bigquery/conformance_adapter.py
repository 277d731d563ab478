"""BigQuery's part in the conformance suite: a service that knows the suite's vocabulary, and a user of HTTP/1.1.

A word is one request. What reads is a query, ``SELECT .. /* read 7 */`` by jobs.query, with a dry run before it; a
write is a description that tables.patch gives to a table, and so may be as long as a body; bulk and floods are pages of
a table (tabledata.list), which stream. The service speaks TLS and wants the gate's bearer token. All its answers are
chunked; what both ends compare is the message without transfer coding, as it is on the tape, and of requests what is
the user's in them: the gate adds labels and a limit of bytes to a query.

What the protocol cannot say, and what stands for it here:
- a request that is no job is silent while it is held: note() reads the approval itself. Jobs that wait for a human are
  told as PENDING and outlive their request; test_through_bq_holds_peers.py has them;
- nothing comes unasked: the remark of "later" is a warning (``errors``) of the next answer;
- the gate's answer in the place of a target that failed is a 503, after which a client may go on; this one hangs up.
Each user has a run of its own, so that each has a tape of its own. There are no transactions.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from protocols.bigquery import PROTOCOL
from protocols.bigquery.bodies import BODY_LIMIT
from protocols.bigquery.commands import text_of
from protocols.bigquery.requests import read_request
from proxy.core.gate import Gate
from proxy.core.http.heads import RequestHead
from proxy.core.parties import Target
from proxy.core.stream import MemoryStream
from proxy.core.warehouse import Analysis
from proxy.policy.bigquery import analyse
from proxy.store.database import Database
from proxy.store.jobs import JobStore
from tests.conformance import CANARY, FLOOD_BYTES, Reply
from tests.fakes import SECRET, FakeApprovals
from tests.kubernetes import conformance_adapter as kubernetes
from tests.kubernetes.conformance_adapter import Asked, Head, Kept, Messages

_V2: Final = "/bigquery/v2/projects/shop"
_TABLE: Final = f"{_V2}/datasets/public/tables/people"
_BEFORE, _BEHIND = b'{"description":"', b'"}'
_READ_BYTES = 64 * 1024
_FIELDS = [{"name": "id", "type": "INTEGER"}, {"name": "email", "type": "STRING"}]
_PEOPLE = {"projectId": "shop", "datasetId": "public", "tableId": "people"}
_PAGED = ("bulk", "flood")  # words that pages of a table stand for
# What the gate adds to a query.
_ADDED = ("labels", "maximumBytesBilled")
_SMUGGLED = (
    b"POST /bq/shop/bigquery/v2/projects/shop/queries HTTP/1.1\r\nHost: gate\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nDELETE /write 1 HTTP/1.1\r\n\r\n"
)


def asked(word: str) -> Asked:
    """The request of a word."""
    verb = word.partition(" ")[0]
    if verb == "write":
        return Asked("PATCH", _TABLE, _BEFORE + f"/* {word} */".encode() + _BEHIND)
    if verb in _PAGED:
        return Asked("GET", f"{_TABLE}/data?pageToken={quote(f'/* {word} */', safe='')}")
    query = {"query": f"SELECT id, email FROM public.people /* {word} */", "useLegacySql": False}
    return Asked("POST", f"{_V2}/queries", json.dumps(query).encode())


def word_of(method: str, path: str, body: bytes) -> str:
    """The word of a request, "" if it has none: the gate's own questions have none."""
    place = urlsplit(path)
    text = ""
    if method == "PATCH":
        text = json.loads(body)["description"]
    elif place.path.endswith("/data"):
        text = parse_qs(place.query)["pageToken"][0]
    elif place.path.endswith("/queries"):
        text = json.loads(body)["query"]
    return text.partition("/* ")[2].removesuffix(" */")


def said(method: str, path: str, body: bytes) -> bytes:
    """What is a user's of a request."""
    if method == "POST":
        value = json.loads(body)
        body = json.dumps({name: value[name] for name in sorted(value) if name not in _ADDED}).encode()
    return f"{method} {path.partition('?')[0]}\n".encode() + body


def error(code: int, reason: str, message: str) -> bytes:
    """Google's error document."""
    first = {"message": message, "domain": "global", "reason": reason}
    return json.dumps({"error": {"code": code, "message": message, "errors": [first]}}).encode()


def rows(*cells: tuple[str, str]) -> list[Any]:
    """Rows as the service writes them."""
    return [{"f": [{"v": value} for value in row]} for row in cells]


class Unframed(Head):
    """A head whose message is compared without what frames it: the gate gives a length to what it has read whole."""

    def taped(self) -> bytes:
        framing = ("transfer-encoding:", "content-length:", "connection:")
        lines = [line for line in self.lines if not line.lower().startswith(framing)]
        return "".join(f"{line}\r\n" for line in (self.first, *lines, "")).encode("latin-1")


class Answers(Messages):
    """Messages with such heads."""

    async def head(self) -> Head:
        return Unframed(await self._until(b"\r\n\r\n"))


class Server(kubernetes.Server):
    """See tests/conformance.Backend."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs = itertools.count(1)

    async def _exchange(self, messages: Messages, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; returns whether another may follow."""
        head = await messages.head()
        body = b"".join([piece async for piece in messages.body(head)])
        method, path, _ = head.first.split(" ")
        if head.get("authorization") != f"Bearer {SECRET}":
            await self._say(writer, 401, [error(401, "authError", "Unauthorized")], kept=False)
            return True
        self.secret_seen = True
        word = word_of(method, path, body)
        if not word:
            await self._say(writer, 200, [json.dumps(_own(path)).encode()], kept=False)
            return True
        self.received += said(method, path, body)
        self.commands.append(word)
        self.on_command(word)
        return await self._answer(word, writer)

    async def _answer(self, word: str, writer: asyncio.StreamWriter) -> bool:
        verb, _, number = word.partition(" ")
        late, self._late = self._late, ""
        match verb:
            case "read":
                await self._say(writer, 200, [self._result(late, (number, CANARY))])
            case "begin" | "end":
                await self._say(writer, 200, [self._result(late)])
            case "write":
                await self._say(writer, 200, [b'{"kind":"bigquery#table"}'])
            case "notice":
                await self._say(writer, 200, [self._result(CANARY)])
            case "later":
                self._late = CANARY
                await self._say(writer, 200, [self._result("")])
            case "bulk":
                await self._say(writer, 200, [_page(rows(*[("1", CANARY)] * 3))])
            case "error":
                await self._say(writer, 400, [error(400, "invalidQuery", f"Bad int64 value: {CANARY}")])
            case "secret":
                await self._say(writer, 500, [error(500, "invalid", f"I was given {SECRET}")])
            case "flood":
                row = json.dumps(rows(("1", "x" * 1000))[0]).encode() + b","
                await self._say(writer, 200, itertools.chain(
                    [b'{"rows":['], itertools.repeat(row, FLOOD_BYTES // len(row)), [b'{"f":[]}]}'],
                ))  # fmt: skip
            case "garbage":
                writer.write(b"HELO I am no API server\r\n\r\n")
                await writer.drain()
                return False
            case "stall":
                await self._over.wait()
            case _:
                await self._say(writer, 404, [error(404, "notFound", "that did not work")])
        return True

    async def _say(
        self, writer: asyncio.StreamWriter, code: int, pieces: Any, warning: str = "",
        content_type: str = "application/json", *, kept: bool = True,
    ) -> None:  # fmt: skip
        head = f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\nContent-Type: {content_type}\r\n".encode()
        self._note(head + b"\r\n", kept)
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            self._note(piece, kept)
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _result(self, warning: str, *cells: tuple[str, str]) -> bytes:
        reference = {"projectId": "shop", "jobId": f"job_{next(self._jobs)}", "location": "US"}
        found = {
            "kind": "bigquery#queryResponse", "schema": {"fields": _FIELDS}, "jobReference": reference,
            "totalRows": str(len(cells)), "rows": rows(*cells), "jobComplete": True, "cacheHit": False,
        }  # fmt: skip
        if warning:
            found["errors"] = [{"reason": "invalid", "message": f"by the way {warning}"}]
        return json.dumps(found).encode()


def _page(found: list[Any]) -> bytes:
    return json.dumps({"kind": "bigquery#tableDataList", "totalRows": str(len(found)), "rows": found}).encode()


def _own(path: str) -> dict[str, Any]:
    """What the service answers to the gate's own questions: dry runs and tables; and to a login's."""
    place = urlsplit(path).path
    if place.endswith("/jobs"):
        query = {
            "statementType": "SELECT", "referencedTables": [_PEOPLE], "totalBytesProcessed": "56",
            "totalBytesProcessedAccuracy": "PRECISE", "schema": {"fields": _FIELDS},
        }  # fmt: skip
        statistics = {"query": query, "totalBytesProcessed": "56"}
        return {"kind": "bigquery#job", "status": {"state": "DONE"}, "statistics": statistics}
    if place.endswith("/people"):
        return {"tableReference": _PEOPLE, "type": "TABLE", "schema": {"fields": _FIELDS}}
    return {"kind": "bigquery#projectList", "projects": []}


class User(kubernetes.User):
    """See tests/conformance.Caller."""

    def __init__(self, stream: MemoryStream, token: str, target: str, approvals: FakeApprovals | None) -> None:
        super().__init__(stream, token, target, approvals)
        self._messages = Answers(self._read)

    async def say(self, *words: str) -> None:
        for word in words:
            request = asked(word)
            self.sent += said(request.method, request.path, request.body)
            self._send(self._wire(request))

    def _wire(self, request: Asked) -> bytes:
        return super()._wire(request).replace(b" /k8s/", b" /bq/", 1)

    async def violate(self) -> None:
        self._send(_SMUGGLED)

    @staticmethod
    def _understand(head: Head, body: bytes, reply: Reply) -> None:
        if reply.ended:
            return
        document = json.loads(body) if body else {}
        if "error" in document:
            reply.error = str(document["error"]["message"])
        reply.notes = [str(each.get("message")) for each in document.get("errors", ())]
        for row in document.get("rows", ()):
            reply.cells += [cell["v"] for cell in row["f"]]


class Reading:
    """A reader of SQL in the test's own process."""

    async def read(self, text: str, project: str, dataset: str | None) -> Analysis:
        return _read(text, project, dataset)


@cache
def _read(text: str, project: str, dataset: str | None) -> Analysis:
    return analyse(text, project, dataset)


class BigQueryAdapter:
    """See tests/conformance.Adapter."""

    protocol = PROTOCOL
    limit = BODY_LIMIT
    streams = True
    cut = ("the connection ended in the middle of an answer", "the connection ended")
    transactions = False

    def __init__(self) -> None:
        self._kept: Kept | None = None
        self._database: Database | None = None
        self._folder = Path()
        self._approvals: FakeApprovals | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"plain_allowed": True, "login_seconds": 10.0}

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Server]:
        backend = Server()
        with kubernetes._certificate() as folder, tempfile.TemporaryDirectory(prefix="gatecast-") as place:
            self._folder = Path(place)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
            server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, ssl=context)
            settings = {"ca_file": str(folder / "tls.crt"), "server_name": "localhost"}
            port = server.sockets[0].getsockname()[1]
            backend.target = Target("shop", "bigquery", host="127.0.0.1", port=port, settings=settings)
            try:
                yield backend
            finally:
                await self._end()
                server.close()
                await backend.close()

    async def _end(self) -> None:
        """The gateway stops: sessions that wait for a next request are over."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.stopping.set()
            await asyncio.gather(*kept.tasks, return_exceptions=True)
        if self._database is not None:
            self._database.close()
            self._database = None

    def prepare(self, gate: Gate) -> None:
        self._kept = Kept()
        self._database = Database(self._folder / "gatecast.db").open()
        object.__setattr__(gate, "residents", self._kept)
        object.__setattr__(gate, "jobs", JobStore(self._database))
        object.__setattr__(gate, "warehouse", Reading())
        self._approvals = gate.approvals if isinstance(gate.approvals, FakeApprovals) else None

    async def login(self, user: MemoryStream, token: str, target: str) -> User | str:
        """Ask for the projects, as tools do first."""
        made = User(user, token, target, self._approvals)
        made._send(made._wire(Asked("GET", "/bigquery/v2/projects")))
        reply = await made.hear()
        made.logged_in = True
        return reply.error or made

    def text(self, word: str) -> str:
        request = asked(word)
        fields = (("Content-Type", "application/json"), ("Content-Length", str(len(request.body))))
        head = RequestHead(
            request.method, request.path, fields if request.body else (), length=len(request.body) or None
        )
        return text_of(read_request(head, request.body))

    def sized(self, size: int) -> str:
        return "write " + "x" * (size - len(_BEFORE) - len(_BEHIND) - len("/* write  */"))

    def own_words(self, data: bytes) -> bool:
        return True


ADAPTER = BigQueryAdapter()
