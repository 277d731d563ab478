"""A stand-in for Google Cloud Storage's XML API, as far as obstore speaks it: in memory, on 127.0.0.1.

Objects: PUT with x-goog-if-generation-match: 0 (412 if there is one), GET, HEAD, DELETE, and the bucket's listing
(list-type=2, prefix). ETags are the MD5 of the content and generations count up, as the real one has it. No
authorization: the service account that goes with it says disable_oauth. Everything else is 501.
Source: cloud.google.com/storage/docs/xml-api/reference-methods; what obstore 0.12 was seen to send.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MODIFIED = "Sat, 21 Nov 2026 07:00:00 GMT"


@dataclass
class Stored:
    data: bytes
    generation: int
    meta: dict[str, str]


@dataclass
class GcsStandIn:
    """The bucket ("tapes") and what was asked of it."""

    url: str = ""
    objects: dict[str, Stored] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    refuse: int = 0  # answer everything with this status

    @property
    def service_account(self) -> str:
        """What obstore takes as service_account_key."""
        return json.dumps(
            {
                "gcs_base_url": self.url,
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
        )


def handler_of(bucket: GcsStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", headers.pop("length", str(len(body))))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            _, name, *rest = unquote(parts.path).split("/", 2)
            key = rest[0] if rest else ""
            bucket.requests.append((self.command, key))
            if bucket.refuse:
                self.reply(bucket.refuse, b"<Error><Code>SlowDown</Code></Error>")
            elif name != "tapes":
                self.reply(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            elif not key and self.command == "GET":
                self.listing(parse_qs(parts.query).get("prefix", [""])[0])
            elif self.command == "PUT":
                self.put(key, body)
            elif key not in bucket.objects:
                self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
            elif self.command == "DELETE":
                del bucket.objects[key]
                self.reply(204)
            elif self.command in ("GET", "HEAD"):
                self.content(bucket.objects[key])
            else:
                self.reply(501)

        def put(self, key: str, body: bytes) -> None:
            if self.headers.get("x-goog-if-generation-match") == "0" and key in bucket.objects:
                self.reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            meta = {
                name.lower(): value for name, value in self.headers.items() if name.lower().startswith("x-goog-meta-")
            }
            generation = len(bucket.requests)
            bucket.objects[key] = Stored(body, generation, meta)
            self.reply(200, ETag=f'"{md5(body).hexdigest()}"', x_goog_generation=str(generation))

        def content(self, stored: Stored) -> None:
            headers = {name.replace("-", "_"): value for name, value in stored.meta.items()}
            headers |= {"ETag": f'"{md5(stored.data).hexdigest()}"', "x_goog_generation": str(stored.generation)}
            self.reply(200, stored.data, Last_Modified=MODIFIED, **headers)

        def listing(self, prefix: str) -> None:
            rows = "".join(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-21T07:00:00.000Z</LastModified>"
                f'<ETag>"{md5(stored.data).hexdigest()}"</ETag><Size>{len(stored.data)}</Size></Contents>'
                for key, stored in sorted(bucket.objects.items())
                if key.startswith(prefix)
            )
            self.reply(200, f"<ListBucketResult><Name>tapes</Name>{rows}</ListBucketResult>".encode())

        do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = handle_request

    return Handler


@contextmanager
def gcs() -> Iterator[GcsStandIn]:
    """Run the stand-in on a port of its own."""
    bucket = GcsStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(bucket))
    server.daemon_threads = True
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
