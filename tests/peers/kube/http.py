"""The stand-in's HTTP/1.1: one request after another on a connection, answers whole or in chunks, and upgrades.

Written for tests over asyncio's streams: strict enough for what the gateway and real clients send, and no more.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.peers.kube import protobuf

HEAD_LIMIT: Final = 1 << 20
BODY_LIMIT: Final = 3 << 20  # kube-apiserver's own limit of a request body
GZIP_BYTES: Final = 128 * 1024  # kube-apiserver compresses what is larger, where it may
READ_BYTES: Final = 65536
DROP_LIMIT: Final = 64 << 20


class ApiError(Exception):
    """An answer that is an error; body is its metav1.Status."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "details": dict(details or {}), "code": code,
        }  # fmt: skip


def not_found(plural: str, name: str) -> ApiError:
    """Return the error for an object that there is not."""
    return ApiError(404, "NotFound", f'{plural} "{name}" not found', {"name": name, "kind": plural})


def _too_large() -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY_LIMIT}")


@dataclass(slots=True)
class Request:
    """A request; headers' names are lower-case, several values of one name are joined by commas."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    user: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path as it was sent."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's values."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def one(self, name: str, otherwise: str = "") -> str:
        """The first value of a name in the query."""
        return self.query.get(name, [otherwise])[0]

    def flag(self, name: str) -> bool:
        """Whether a name in the query is true, by Kubernetes' rule for booleans."""
        return name in self.query and self.one(name).lower() not in ("0", "false")

    @property
    def upgrade(self) -> str:
        """The protocol that is asked for, in lower case."""
        return (
            self.headers.get("upgrade", "").lower() if "upgrade" in self.headers.get("connection", "").lower() else ""
        )

    def words(self, header: str) -> list[str]:
        """The comma-separated words of a header."""
        return [word for part in self.headers.get(header, "").split(",") if (word := part.strip())]

    @property
    def accept(self) -> str:
        """The media types that are wanted."""
        return self.headers.get("accept", "")


class Connection:
    """One connection; reader and writer are for what takes it over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read(self) -> bytes:
        """Return bytes of a connection that was upgraded; b"" at its end."""
        return await self.reader.read(READ_BYTES)

    async def write(self, *parts: bytes) -> None:
        """Send bytes and wait until few are waiting."""
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    async def request(self) -> Request | None:
        """Wait for a request; None at the connection's end."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name = name.lower()
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            await self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(method, target, headers, await self._body(headers))

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if "chunked" not in headers.get("transfer-encoding", ""):
            size = int(headers.get("content-length", "0"))
            if size > BODY_LIMIT:
                for _ in range(0, min(size, DROP_LIMIT), READ_BYTES):  # the answer to a sender that still sends is lost
                    if not await self.reader.read(READ_BYTES):
                        break
                raise _too_large()
            return await self.reader.readexactly(size)
        body = bytearray()
        while size := int((await self.reader.readline()).split(b";")[0], 16):
            body += await self.reader.readexactly(size)
            await self.reader.readline()
            if len(body) > BODY_LIMIT:
                raise _too_large()
        while (await self.reader.readline()).strip():
            pass
        return bytes(body)

    async def answer(
        self, request: Request, code: int, value: Any, media: str = "application/json", more: tuple[str, ...] = ()
    ) -> bool:
        """Answer with an object or with bytes, in the form that is wanted; returns whether another request can come."""
        wanted = request.accept.startswith(protobuf.MEDIA_TYPE)
        if wanted and isinstance(value, dict) and value.get("kind") in protobuf.KUBERNETES:
            value, media = protobuf.encode_object(value), protobuf.MEDIA_TYPE
        data = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode() + b"\n"
        fields = [f"Content-Type: {media}", *more]
        if "gzip" in request.headers.get("accept-encoding", "") and len(data) > GZIP_BYTES:
            data = gzip.compress(data, 1)
            fields += ["Content-Encoding: gzip", "Vary: Accept-Encoding"]
        await self.write(
            _head(code, *fields, f"Content-Length: {len(data)}"), data if request.method != "HEAD" else b""
        )
        return request.headers.get("connection", "").lower() != "close"

    async def start_chunks(self, media: str) -> None:
        """Begin an answer whose length nobody knows."""
        await self.write(_head(200, f"Content-Type: {media}", "Transfer-Encoding: chunked"))

    async def chunk(self, data: bytes = b"") -> None:
        """Send a piece of it; b"" ends it."""
        await self.write(b"%x\r\n" % len(data), data, b"\r\n")

    async def switch(self, *fields: str) -> None:
        """Answer 101."""
        await self.write(("\r\n".join(["HTTP/1.1 101 Switching Protocols", *fields]) + "\r\n\r\n").encode())

    @property
    def gone(self) -> bool:
        """Whether the other end has left."""
        return self.reader.at_eof() or self.writer.is_closing()


def _head(code: int, *fields: str) -> bytes:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    first = f"HTTP/1.1 {code} {HTTPStatus(code).phrase}"
    lines = [first, f"Audit-Id: {uuid.uuid4()}", "Cache-Control: no-cache, private", *fields, f"Date: {date}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
