"""A Storage API that tests tell what to do: tables in memory, answers that break off, calls that are looked at.

It knows gRPC alone (no TLS: it stands on loopback), and writes messages with the gateway's own codec, which
test_storage_wire.py holds against protobuf's rules and the peers' tests against Google's client.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import grpc

from protocols.bigquery import storage_wire as wire
from proxy.core.parties import Target
from tests.peers.certificates import Authority

SERVICE: Final = "/google.cloud.bigquery.storage.v1.BigQueryRead/"
PROJECT: Final = "acme"
UNLIMITED: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(slots=True)
class Asked:
    """A call that has come: its method, request, metadata; over, once it has ended."""

    method: str
    request: bytes
    metadata: dict[str, str]
    sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False


@dataclass(slots=True)
class Service:
    """answers: by method, what gives the messages of an answer; it may raise Status. calls: all that have come."""

    answers: dict[str, Callable[[bytes], Iterator[bytes]]] = field(default_factory=dict)
    calls: list[Asked] = field(default_factory=list)
    come: threading.Condition = field(default_factory=threading.Condition)
    port: int = 0
    kind: str = "TABLE"  # what its REST endpoint says that all tables are
    rest: Target = field(default_factory=lambda: Target("none", "bigquery"))  # host, port and ca_file of that
    stop: Callable[[], object] = lambda: None

    def of(self, method: str) -> list[Asked]:
        """The calls of a method."""
        return [each for each in self.calls if each.method == method]

    def session(self, name: str, schema: dict[str, Any], streams: int = 1) -> None:
        """Give that read session to whoever asks for one; schema: {"arrow_schema": ...} or {"avro_schema": ...}."""

        def answer(request: bytes) -> Iterator[bytes]:
            asked = wire.decode(wire.CREATE_READ_SESSION, request, strict=True)["read_session"]
            names = [{"name": f"{name}/streams/{number}"} for number in range(streams)]
            yield wire.encode(wire.READ_SESSION, {"name": name, "table": asked["table"], "streams": names, **schema})

        self.answers["CreateReadSession"] = answer

    def rows(self, *messages: dict[str, Any]) -> None:
        """Give these answers to ReadRows."""
        written = [wire.encode(wire.ROWS, each) for each in messages]
        self.answers["ReadRows"] = lambda request: iter(written)


class Status(Exception):
    """An answer ends so."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    def __init__(self, service: Service) -> None:
        self._service = service

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        metadata = {key: str(value) for key, value in details.invocation_metadata}

        def handle(request: bytes, context: Any) -> Iterator[bytes]:
            asked = Asked(method, request, metadata)

            def ended() -> None:
                asked.over.set()

            context.add_callback(ended)
            with self._service.come:
                self._service.calls.append(asked)
                self._service.come.notify_all()
            try:
                for message in self._service.answers[method](request):
                    yield message
                    asked.sent += 1
            except Status as status:
                context.abort(status.code, status.text)
            finally:
                asked.cancelled = not context.is_active()

        return grpc.unary_stream_rpc_method_handler(handle)


@contextlib.contextmanager
def _rest(service: Service, folder: Path) -> Iterator[Target]:
    """A REST endpoint that knows of all tables of what kind they are, and nothing else."""

    class Tables(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # a connection for each question

        def do_GET(self) -> None:
            body = json.dumps({"type": service.kind}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    authority = Authority(folder)
    pair = authority.issue("rest", ("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Tables)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    running = threading.Thread(target=server.serve_forever, args=(0.05,))
    running.start()
    try:
        yield Target("rest", "bigquery", "127.0.0.1", server.server_port, settings={"ca_file": str(authority.ca_file)})
    finally:
        server.shutdown()
        server.server_close()
        running.join()


@contextlib.contextmanager
def storage_service() -> Iterator[Service]:
    """Run one on a free port of loopback."""
    service = Service()
    with (
        ThreadPoolExecutor(16) as pool,
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        _rest(service, Path(folder)) as service.rest,
    ):
        server = grpc.server(pool, handlers=(_Handler(service),), options=UNLIMITED)
        service.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        service.stop = lambda: server.stop(None).wait()
        try:
            yield service
        finally:
            server.stop(None).wait()
