"""What the tests of HTTP share: bytes cut in every way, messages in one line, and parsers run to their end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proxy.core.http.heads import RequestHead, ResponseHead
from proxy.core.http.parser import End, RequestParser, ResponseParser


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes whole, byte by byte, and cut in the middle."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    yield [data[: len(data) // 2], data[len(data) // 2 :]]


def request(line: str = "GET / HTTP/1.1", *fields: str, body: bytes = b"", host: str = "Host: gate") -> bytes:
    """A request with one Host; fields as they stand on the wire."""
    lines = [line, *([host] if host else []), *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def response(line: str = "HTTP/1.1 200 OK", *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1") + body


@dataclass
class ReadRequest:
    """One message as a parser gave it."""

    head: RequestHead
    body: bytes = b""
    ended: bool = False


@dataclass
class ReadResponse:
    """One message as a parser gave it."""

    head: ResponseHead
    body: bytes = b""
    ended: bool = False


def read_requests(parser: RequestParser, pieces: list[bytes]) -> list[ReadRequest]:
    """Feed all pieces, going on to the next message after each."""
    found: list[ReadRequest] = []
    for piece in pieces:
        events = parser.feed(piece)
        while events:
            for event in events:
                match event:
                    case RequestHead():
                        found.append(ReadRequest(event))
                    case End():
                        found[-1].ended = True
                    case bytes():
                        found[-1].body += event
            events = []
            if parser.done:
                parser.renew()
                events = parser.feed(b"")
    return found


def read_responses(parser: ResponseParser, pieces: list[bytes], methods: list[str]) -> list[ReadResponse]:
    """Feed all pieces; methods: what the responses answer, one after another."""
    found: list[ReadResponse] = []
    left = list(methods)
    parser.expect(left.pop(0))
    for piece in pieces:
        events = parser.feed(piece)
        while events:
            for event in events:
                match event:
                    case ResponseHead():
                        found.append(ReadResponse(event))
                    case End():
                        found[-1].ended = True
                    case bytes():
                        found[-1].body += event
            events = []
            if parser.done and left:
                parser.renew()
                parser.expect(left.pop(0))
                events = parser.feed(b"")
    return found
