"""The layer's HTTP/1.1: one request after another on a connection, answers whole; and the way to the emulator.

Written for tests over asyncio's streams: strict enough for what the gateway and real clients send, and no more.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import httpx

HEAD_LIMIT: Final = 1 << 16
BODY_LIMIT: Final = 256 << 20
READ_BYTES: Final = 65536
UPSTREAM_SECONDS: Final = 60.0
OVERRIDE: Final = "x-http-method-override"


@dataclass(slots=True)
class Request:
    """A request; headers' names are lower-case, several values of one name are joined by commas."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: Mapping[str, str]
    body: bytes
    scheme: str = "https"
    user: str = ""

    def one(self, name: str, otherwise: str = "") -> str:
        """The first value of a name in the query."""
        return next((value for key, value in self.query if key == name), otherwise)

    @property
    def segments(self) -> list[str]:
        """The path's segments, decoded; colon verbs stay on their segment."""
        return [unquote(part) for part in self.path.strip("/").split("/")]

    @property
    def base(self) -> str:
        """What the user calls this server."""
        return f"{self.scheme}://{self.headers.get('host', 'localhost')}"

    @property
    def data(self) -> bytes:
        """The body without compression. Raises ApiError."""
        if self.headers.get("content-encoding", "") != "gzip":
            return self.body
        inflate = zlib.decompressobj(31)
        try:
            data = inflate.decompress(self.body, BODY_LIMIT)
        except zlib.error as error:
            raise ApiError(400, "parseError", f"Failed to unzip the request: {error}") from error
        return data

    def json(self) -> dict[str, Any]:
        """The body as an object. Raises ApiError."""
        try:
            value = json.loads(self.data or b"{}")
        except ValueError as error:
            raise ApiError(400, "parseError", "Parse Error") from error
        if not isinstance(value, dict):
            raise ApiError(400, "parseError", "Parse Error")
        return value


@dataclass(slots=True)
class Answer:
    """An answer: JSON if value is a dict, bytes as they are."""

    code: int
    value: dict[str, Any] | bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def object(self) -> dict[str, Any]:
        """The value, where it is an object; {} elsewhere."""
        return self.value if isinstance(self.value, dict) else {}


# What a reason's HTTP status is. Source: cloud.google.com/bigquery/docs/error-messages.
CODES: Final = {
    "accessDenied": 403, "authError": 401, "billingNotEnabled": 403, "bytesBilledLimitExceeded": 400, "duplicate": 409,
    "invalid": 400, "invalidQuery": 400, "notFound": 404, "notImplemented": 501, "parseError": 400,
    "resourceInUse": 400, "resourcesExceeded": 400, "responseTooLarge": 403, "stopped": 200,
}  # fmt: skip
STATUSES: Final = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS",
    501: "UNIMPLEMENTED",
}  # fmt: skip


class ApiError(Exception):
    """An answer that is an error, in Google's JSON shape."""

    def __init__(self, code: int, reason: str, message: str, **more: str) -> None:
        super().__init__(message)
        first = {"message": message, "domain": "global", "reason": reason, **more}
        error = {"code": code, "message": message, "errors": [first], "status": STATUSES.get(code, "INTERNAL")}
        self.answer = Answer(code, {"error": error})

    @classmethod
    def of(cls, result: Mapping[str, str]) -> ApiError:
        """The error that a failed job's errorResult is, where a request asks for its rows."""
        reason = result.get("reason", "invalid")
        more = {"location": result["location"]} if "location" in result else {}
        return cls(CODES.get(reason, 400), reason, result.get("message", ""), **more)


class Connection:
    """One connection of a user."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scheme: str) -> None:
        self._reader = reader
        self._writer = writer
        self._scheme = scheme

    async def request(self) -> Request | None:
        """Wait for a request, its method as overridden; None at the connection's end."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return None
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name = name.lower()
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._body(headers)
        split = urlsplit(target)
        query = parse_qsl(split.query, keep_blank_values=True)
        if method == "POST" and headers.get(OVERRIDE):
            method = headers[OVERRIDE].upper()
            if "x-www-form-urlencoded" in headers.get("content-type", ""):  # googleapiclient: the query of a long GET
                query, body = parse_qsl(body.decode(), keep_blank_values=True), b""
        return Request(method, split.path, query, headers, body, self._scheme)

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if "chunked" not in headers.get("transfer-encoding", ""):
            size = int(headers.get("content-length", "0"))
            if size > BODY_LIMIT:
                raise ConnectionError(f"a body of {size} bytes")
            return await self._reader.readexactly(size)
        body = bytearray()
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            body += await self._reader.readexactly(size)
            await self._reader.readline()
            if len(body) > BODY_LIMIT:
                raise ConnectionError("a body over the limit")
        while (await self._reader.readline()).strip():
            pass
        return bytes(body)

    async def answer(self, request: Request, answer: Answer) -> bool:
        """Send an answer; returns whether another request can come."""
        data = answer.value if isinstance(answer.value, bytes) else json.dumps(answer.value).encode()
        fields = dict(answer.headers)
        if not isinstance(answer.value, bytes):
            fields.setdefault("Content-Type", "application/json; charset=UTF-8")
        fields.setdefault("Vary", "Origin, X-Origin, Referer")
        # Google compresses only for a User-Agent that says gzip too: cloud.google.com/bigquery/docs/api-performance.
        wants = "gzip" in request.headers.get("accept-encoding", "") and "gzip" in request.headers.get("user-agent", "")
        if wants and data and answer.code == HTTPStatus.OK:
            data = gzip.compress(data, 1)
            fields["Content-Encoding"] = "gzip"
        fields["Content-Length"] = str(len(data))
        phrase = "Resume Incomplete" if answer.code == 308 else HTTPStatus(answer.code).phrase
        head = [f"HTTP/1.1 {answer.code} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
        self._writer.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
        if request.method != "HEAD":
            self._writer.write(data)
        await self._writer.drain()
        return request.headers.get("connection", "").lower() != "close"


class Emulator:
    """The emulator, asked over HTTP."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=UPSTREAM_SECONDS, trust_env=False)

    async def ask(
        self,
        method: str,
        path: str,
        value: Mapping[str, Any] | bytes | None = None,
        query: list[tuple[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask for a path below the root, already encoded; value: a JSON object or bytes."""
        fields = {"accept-encoding": "identity", "content-type": "application/json", **(headers or {})}
        data = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
        url = f"{path}?{urlencode(query)}" if query else path
        said = await self._client.request(method, url, content=data, headers=fields)
        kept = {name: said.headers[name] for name in ("etag", "location", "range") if name in said.headers}
        if "json" in said.headers.get("content-type", "") and said.content:
            return Answer(said.status_code, said.json(), kept)
        return Answer(said.status_code, said.content, kept)

    async def api(self, method: str, *segments: str, value: Mapping[str, Any] | None = None, **query: str) -> Answer:
        """Ask for a resource, by its segments after /bigquery/v2/projects."""
        path = "/bigquery/v2/projects/" + "/".join(quote(each, safe=":") for each in segments)
        return await self.ask(method, path, value, list(query.items()))

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()
