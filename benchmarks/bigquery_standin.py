"""BigQuery as bench_bigquery.py meets it: canned answers of the documented shapes, as fast as the wire lets them go.

    python -m benchmarks.bigquery_standin rest|storage CERTIFICATE KEY

prints the port on 127.0.0.1 and serves until it is ended. REST: jobs.query, jobs.insert, dry runs, jobs.get,
getQueryResults (a page of 10 MB of nested rows where a pageToken is given), tables.get; a job of jobs.query has an id
of its own, as the service gives it. Storage: CreateReadSession and ReadRows of STREAM_MESSAGES batches of 4 MB, Arrow.
Only who shows TOKEN is served, so that it is seen that the gateway shows its own. It runs no SQL: which of the two
results is asked for is told by the text.

Messages of Storage are put together by hand, as the gateway does, since Google's types are not installed with it.
Source: references of jobs, tables, google.cloud.bigquery.storage.v1 (storage.proto, stream.proto, arrow.proto).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import json
import re
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

TOKEN: Final = "bench-service-account-7d15e0"
PROJECT: Final = "acme-prod"
TABLE: Final = "acme-prod.crm.people"
PAGE_BYTES: Final = 10_000_000  # of one page of rows: the service's own limit
BATCH_BYTES: Final = 4_000_000
STREAM_MESSAGES: Final = 64
PAGE: Final = "page-2"  # the pageToken of the large page
SERVICE: Final = "/google.cloud.bigquery.storage.v1.BigQueryRead/"
_REFERENCE: Final = {"projectId": PROJECT, "datasetId": "crm", "tableId": "people"}


# -- documents ------------------------------------------------------------------------------------------


def _field(name: str, kind: str, mode: str = "NULLABLE", fields: Sequence[Any] = ()) -> dict[str, Any]:
    return {"name": name, "type": kind, "mode": mode} | ({"fields": list(fields)} if fields else {})


SMALL: Final = [_field("id", "INTEGER"), _field("name", "STRING"), _field("email", "STRING")]
NESTED: Final = [
    *SMALL,
    _field("address", "RECORD", fields=[_field("street", "STRING"), _field("zip", "STRING")]),
    _field("orders", "RECORD", "REPEATED", [_field("sku", "STRING"), _field("amount", "FLOAT")]),
]


def _word(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def small_rows() -> list[Any]:
    """Ten rows of three columns."""
    return [
        {"f": [{"v": str(number)}, {"v": f"name {number}"}, {"v": f"user{number}@example.org"}]} for number in range(10)
    ]


def nested_row(number: int) -> dict[str, Any]:
    """A row with a record, and with a repeated one."""
    orders = [{"v": {"f": [{"v": _word(number, each)[:12]}, {"v": f"{number % 97}.5"}]}} for each in range(number % 4)]
    address = {"f": [{"v": _word(number, "street")[:24]}, {"v": f"{number % 90_000:05}"}]}
    names = [{"v": str(number)}, {"v": _word(number, "name")[:16]}, {"v": f"user{number}@example.org"}]
    return {"f": [*names, {"v": address}, {"v": orders}]}


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@functools.cache
def page_rows(size: int = PAGE_BYTES) -> bytes:
    """The rows of a page: a JSON list of about so many bytes."""
    rows: list[bytes] = []
    left = size
    for number in itertools.count():
        if left <= 0:
            break
        rows.append(_dump(nested_row(number)))
        left -= len(rows[-1]) + 1
    return b"[" + b",".join(rows) + b"]"


def _job(name: str, nested: bool, dry: bool = False) -> dict[str, Any]:
    fields = NESTED if nested else SMALL
    query: dict[str, Any] = {
        "statementType": "SELECT", "totalBytesProcessed": "1048576", "referencedTables": [_REFERENCE],
        "totalBytesProcessedAccuracy": "PRECISE",
    }  # fmt: skip
    if dry:
        query["schema"] = {"fields": fields}
    else:
        query |= {"totalBytesBilled": "10485760", "cacheHit": False, "totalSlotMs": "12"}
    times = {} if dry else {"startTime": "1767323045123", "endTime": "1767323045160"}
    destination = {"projectId": PROJECT, "datasetId": "_0a1b", "tableId": f"anon{_word(name)}"}
    return {
        "kind": "bigquery#job",
        "etag": "bench==",
        "id": f"{PROJECT}:US.{name}",
        "user_email": "gate@acme-prod.iam.gserviceaccount.com",
        "jobReference": {"projectId": PROJECT, "jobId": name, "location": "US"},
        "configuration": {
            "jobType": "QUERY",
            "dryRun": dry,
            "query": {"query": "SELECT", "useLegacySql": False, "destinationTable": destination},
        },
        "status": {"state": "DONE"},
        "statistics": {
            "creationTime": "1767323045100",
            **times,
            "totalBytesProcessed": "1048576",
            "query": query,
        },
    }


def _result(kind: str, name: str, nested: bool, rows: bytes, total: int, token: str = "") -> bytes:
    head = {
        "kind": f"bigquery#{kind}",
        "schema": {"fields": NESTED if nested else SMALL},
        "jobReference": {"projectId": PROJECT, "jobId": name, "location": "US"},
        "totalRows": str(total),
        **({"pageToken": token} if token else {}),
    }
    tail = {"totalBytesProcessed": "1048576", "jobComplete": True, "cacheHit": False}
    if kind == "queryResponse":
        tail |= {"queryId": name, "totalBytesBilled": "10485760", "totalSlotMs": "12", "location": "US"}
    return _dump(head)[:-1] + b',"rows":' + rows + b"," + _dump(tail)[1:]


_TABLE_BODY: Final = _dump(
    {
        "kind": "bigquery#table", "id": f"{PROJECT}:crm.people", "tableReference": _REFERENCE, "type": "TABLE",
        "schema": {"fields": NESTED}, "numRows": "35000", "numBytes": "10485760", "location": "US",
    }
)  # fmt: skip
_NAME: Final = b"@@name@@"
_DRY: Final = {nested: _dump(_job("", nested, dry=True)) for nested in (False, True)}
_JOBS: Final = {nested: _dump(_job(_NAME.decode(), nested)) for nested in (False, True)}
_SMALL_ROWS: Final = _dump(small_rows())
_QUERIES: Final = {
    False: _result("queryResponse", _NAME.decode(), False, _SMALL_ROWS, 10),
    True: _result("queryResponse", _NAME.decode(), True, b"[]", 35_000, PAGE),
}
_RESULTS: Final = _result("getQueryResultsResponse", _NAME.decode(), False, _SMALL_ROWS, 10)


# -- REST -----------------------------------------------------------------------------------------------

_JOB_ID: Final = re.compile(rb'"jobId":\s*"([^"]+)"')
_PATH: Final = re.compile(
    rb"/bigquery/v2/projects/[^/]+/(jobs|queries|datasets)(?:/([^/?]+))?(?:/tables/[^/?]+)?(\?.*)?"
)
_LENGTH: Final = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_BEARER: Final = f"\r\nauthorization: bearer {TOKEN}\r\n".encode().lower()


class Rest(asyncio.Protocol):
    """One connection: requests one after another, each answered as it is whole."""

    _jobs = itertools.count(1)

    def __init__(self) -> None:
        self._data = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[: end + 2])
            length = _LENGTH.search(head)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._data) < size:
                return
            body = bytes(self._data[end + 4 : size])
            del self._data[:size]
            status, answer = self.answer(head, body)
            fields = b"HTTP/1.1 %s\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: %d\r\n\r\n"
            self._transport.write(fields % (status, len(answer)) + answer)

    @classmethod
    def answer(cls, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Return status line and body."""
        if _BEARER not in head.lower():
            return b"401 Unauthorized", b'{"error":{"code":401,"message":"no token"}}'
        method, target, _ = head.split(b" ", 2)
        found = _PATH.fullmatch(target)
        if found is None:
            return b"404 Not Found", b'{"error":{"code":404,"message":"no such method"}}'
        kind, name, query = found[1], found[2] or b"", found[3] or b""
        nested = b"address" in body
        if kind == b"datasets":
            return b"200 OK", _TABLE_BODY
        if kind == b"jobs" and method == b"POST":
            if b'"dryRun":true' in body:
                return b"200 OK", _DRY[nested]
            named = _JOB_ID.search(body)
            return b"200 OK", _JOBS[nested].replace(_NAME, named[1] if named else b"job_%d" % next(cls._jobs))
        if kind == b"jobs":
            return b"200 OK", _JOBS[False].replace(_NAME, name)
        if method == b"POST":
            return b"200 OK", _QUERIES[nested].replace(_NAME, b"job_%d" % next(cls._jobs))
        if PAGE.encode() in query:
            return b"200 OK", _page(name)
        return b"200 OK", _RESULTS.replace(_NAME, name)


@functools.lru_cache(16)
def _page(name: bytes) -> bytes:
    return _result("getQueryResultsResponse", name.decode(), True, page_rows(), 35_000)


async def serve_rest(certificate: Path, key: Path) -> None:
    """Serve until the process is ended."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    page_rows()
    server = await asyncio.get_running_loop().create_server(Rest, "127.0.0.1", 0, ssl=context, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# -- Storage --------------------------------------------------------------------------------------------


def tagged(number: int, value: bytes | int) -> bytes:
    """A field of a message: a varint, or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def read_session_request(table: str) -> bytes:
    """A CreateReadSessionRequest: parent, read_session (data_format ARROW, table), one stream."""
    project, dataset, name = table.split(".")
    path = f"projects/{project}/datasets/{dataset}/tables/{name}"
    session = tagged(3, 2) + tagged(6, path.encode())
    return tagged(1, f"projects/{project}".encode()) + tagged(2, session) + tagged(3, 1)


def stream_of(session: bytes) -> bytes:
    """The name of the first stream that an answer to CreateReadSession names. Raises RuntimeError."""
    found = re.search(rb"projects/[^/]+/locations/[^/]+/sessions/[^/]+/streams/[A-Za-z0-9_-]+", session)
    if found is None:
        raise RuntimeError(f"no stream: {session[:300]!r}")
    return found[0]


@functools.cache
def arrow(size: int = BATCH_BYTES) -> tuple[bytes, bytes, int]:
    """Schema and batch of id, email and text, serialized, and the rows of the batch."""
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

    schema = pyarrow.schema(
        [("id", pyarrow.int64()), ("email", pyarrow.string()), ("text", pyarrow.string())],
    )
    count = size // 104
    rows = range(count)
    batch = pyarrow.record_batch(
        [list(rows), [f"user{each:06}@example.org" for each in rows], [_word(each) for each in rows]], schema=schema
    )
    return schema.serialize().to_pybytes(), batch.serialize().to_pybytes(), count


async def serve_storage(certificate: Path, key: Path) -> None:
    """Serve until the process is ended."""
    import grpc  # type: ignore[import-untyped, unused-ignore]

    schema, batch, count = arrow()
    message = tagged(4, tagged(1, batch) + tagged(2, count)) + tagged(6, count)
    sessions = itertools.count(1)

    async def create(request: bytes, context: Any) -> bytes:
        await _checked(context)
        name = f"projects/{PROJECT}/locations/us/sessions/bench{next(sessions)}"
        table = re.search(rb"projects/[^/]+/datasets/[^/]+/tables/[A-Za-z0-9_]+", request)
        streams = tagged(10, tagged(1, f"{name}/streams/one".encode()))
        expires = tagged(2, tagged(1, 4_000_000_000))
        fixed = tagged(3, 2) + tagged(5, tagged(1, schema)) + tagged(6, table[0] if table else b"")
        return tagged(1, name.encode()) + expires + fixed + streams

    async def read(_: bytes, context: Any) -> AsyncIterator[bytes]:
        await _checked(context)
        for _each in range(STREAM_MESSAGES):
            yield message

    async def _checked(context: Any) -> None:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
        def service(self, details: Any) -> Any:
            match details.method.removeprefix(SERVICE):
                case "CreateReadSession":
                    return grpc.unary_unary_rpc_method_handler(create)
                case "ReadRows":
                    return grpc.unary_stream_rpc_method_handler(read)
            return None

    server = grpc.aio.server(options=(("grpc.max_send_message_length", -1),))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_secure_port("127.0.0.1:0", _credentials(certificate, key))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def _credentials(certificate: Path, key: Path) -> Any:
    import grpc

    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve = {"rest": serve_rest, "storage": serve_storage}[sys.argv[1]]
        uvloop.run(serve(Path(sys.argv[2]), Path(sys.argv[3])))
