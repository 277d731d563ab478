"""The parser of both sides: what is taken, what is refused, where a message ends; h11 is the second opinion."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.errors import TargetPeerError
from proxy.core.http.heads import BadRequest, encode_request, encode_response
from proxy.core.http.parser import (
    CHUNK_LINE_LIMIT,
    EXTENSIONS_LIMIT,
    FIELDS_LIMIT,
    HEAD_LIMIT,
    TRAILERS_LIMIT,
    End,
    RequestParser,
    ResponseParser,
)
from tests.core.http.messages import cuts, read_requests, read_responses, request, response

CHUNKED = "Transfer-Encoding: chunked"


def refused(data: bytes) -> int:
    """The status with which a request is refused, the same however it is cut; 0 if it is not."""
    statuses = set()
    for pieces in cuts(data):
        try:
            read_requests(RequestParser(), pieces)
            statuses.add(0)
        except BadRequest as bad:
            assert bad.closing
            statuses.add(bad.status)
    assert len(statuses) == 1, (data, statuses)
    return statuses.pop()


def cannot_be_read(data: bytes, method: str = "GET") -> bool:
    results = set()
    for pieces in cuts(data):
        try:
            read_responses(ResponseParser(), pieces, [method])
            results.add(False)
        except TargetPeerError:
            results.add(True)
    assert len(results) == 1, (data, results)
    return results.pop()


def test_a_request_whole_in_bytes_and_with_a_tail() -> None:
    one = request("POST /api?x=%20y HTTP/1.1", "X-One:  a \t", "x-one: \xe9", "Content-Length: 5", body=b"hello")
    two = request("PUT /c HTTP/1.1", CHUNKED, body=b"3;a=b\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-T: y\r\n\r\n")
    for pieces in cuts(one + two + one):
        found = read_requests(RequestParser(), pieces)
        assert [(read.head.method, read.head.target, read.body, read.ended) for read in found] == [
            ("POST", "/api?x=%20y", b"hello", True),
            ("PUT", "/c", b"abc0123456789", True),
            ("POST", "/api?x=%20y", b"hello", True),
        ]
        assert found[0].head.fields == (
            ("Host", "gate"), ("X-One", "a"), ("x-one", "\xe9"), ("Content-Length", "5"),
        )  # fmt: skip
        assert (found[0].head.length, found[1].head.length) == (5, None)


def test_nothing_is_parsed_behind_the_end() -> None:
    parser = RequestParser()
    events = parser.feed(request() + b"\x16\x03 not HTTP")
    assert isinstance(events[-1], End)
    assert parser.rest == b"\x16\x03 not HTTP"
    assert parser.feed(b" at all") == []
    assert parser.take_rest() == b"\x16\x03 not HTTP at all"
    assert parser.rest == b""


def test_an_upgrade_leaves_its_first_bytes_and_a_refused_one_its_body() -> None:
    """httptools ends a message at any upgrade that is asked for; here its body is still a body."""
    asked = ("Connection: Upgrade", "Upgrade: websocket")
    parser = RequestParser()
    parser.feed(request("GET / HTTP/1.1", *asked) + b"\x82\x00")
    assert parser.rest == b"\x82\x00"
    for pieces in cuts(request("POST / HTTP/1.1", *asked, "Content-Length: 3", body=b"abc") + request()):
        found = read_requests(RequestParser(), pieces)
        assert [(read.head.upgrade, read.body) for read in found] == [("websocket", b"abc"), ("", b"")]


@pytest.mark.parametrize(
    ("fields", "upgrade"),
    [
        (("Connection: Upgrade", "Upgrade: WebSocket"), "websocket"),
        (("Connection: keep-alive, x-upgrade-x", "Upgrade: SPDY/3.1"), "spdy/3.1"),
        (("Connection: close", "Connection: upGRADE", "Upgrade: a", "Upgrade: b"), "a, b"),
        (("Upgrade: websocket",), ""),
        (("Connection: close", "Upgrade: websocket"), ""),
        (("Connection: upgrade",), ""),
    ],
)
def test_what_counts_as_an_upgrade(fields: tuple[str, ...], upgrade: str) -> None:
    """As the API server sees it: any Connection that merely contains "upgrade" (kubernetes note 2)."""
    assert read_requests(RequestParser(), [request("GET / HTTP/1.1", *fields)])[0].head.upgrade == upgrade


def test_who_wants_to_keep_the_connection() -> None:
    for line, fields, kept in [
        ("GET / HTTP/1.1", (), True),
        ("GET / HTTP/1.1", ("Connection: x, Close",), False),
        ("GET / HTTP/1.0", (), False),
        ("GET / HTTP/1.0", ("Connection: Keep-Alive",), True),
    ]:
        assert read_requests(RequestParser(), [request(line, *fields)])[0].head.keep_alive is kept


def test_limits_of_a_head() -> None:
    plain = request("GET / HTTP/1.1", "X: ")
    for size, status in [(HEAD_LIMIT - 1, 0), (HEAD_LIMIT, 0), (HEAD_LIMIT + 1, 431)]:
        data = request("GET / HTTP/1.1", "X: " + "x" * (size - len(plain)))
        assert len(data) == size
        parser = RequestParser()
        if status:
            with pytest.raises(BadRequest) as caught:
                parser.feed(data)
            assert caught.value.status == status
        else:
            assert len(parser.feed(data)) == 2
    for count, status in [(FIELDS_LIMIT - 1, 0), (FIELDS_LIMIT, 0), (FIELDS_LIMIT + 1, 431)]:
        assert refused(request("GET / HTTP/1.1", *["X: y"] * (count - 1))) == status


def test_an_endless_head_is_refused_before_its_end() -> None:
    parser = RequestParser()
    parser.feed(b"GET / HTTP/1.1\r\nX: ")
    with pytest.raises(BadRequest) as caught:
        for _ in range(HEAD_LIMIT // 1024 + 1):
            parser.feed(b"x" * 1024)
    assert caught.value.status == 431
    with pytest.raises(BadRequest):
        parser.feed(b"\r\n\r\n")


def test_limits_of_the_chunked_coding() -> None:
    def chunked(body: bytes) -> int:
        try:
            return (
                0 if read_requests(RequestParser(), [request("POST / HTTP/1.1", CHUNKED, body=body)])[0].ended else -1
            )
        except BadRequest as bad:
            return bad.status

    for size, status in [(CHUNK_LINE_LIMIT - 1, 0), (CHUNK_LINE_LIMIT, 0), (CHUNK_LINE_LIMIT + 1, 400)]:
        assert chunked(b"1;" + b"x" * (size - 4) + b"\r\nx\r\n0\r\n\r\n") == status
    per = 1024  # bytes of extensions in one line
    for extra, status in [(-1, 0), (0, 0), (1, 400)]:
        lines = (b"1;" + b"x" * (per - 1) + b"\r\nx\r\n") * (EXTENSIONS_LIMIT // per - 1)
        assert chunked(lines + b"1;" + b"x" * (per - 1 + extra) + b"\r\nx\r\n0\r\n\r\n") == status
    for size, status in [(TRAILERS_LIMIT - 1, 0), (TRAILERS_LIMIT, 0), (TRAILERS_LIMIT + 1, 431)]:
        lines = b"".join(b"X: " + b"x" * 1021 + b"\r\n" for _ in range(7))
        assert chunked(b"0\r\n" + lines + b"X: " + b"x" * (size - 7 * 1024 - 3) + b"\r\n\r\n") == status
    # A line that never ends is not collected beyond its limit either.
    parser = RequestParser()
    parser.feed(request("POST / HTTP/1.1", CHUNKED))
    with pytest.raises(BadRequest):
        for _ in range(CHUNK_LINE_LIMIT + 1):
            parser.feed(b"0")


def test_one_empty_line_ahead_of_a_request_is_forgiven() -> None:
    assert refused(b"\r\n" + request() + b"\r\n" + request()) == 0
    assert refused(b"\r\n\r\n" + request()) == 400


def test_responses_end_where_their_request_says() -> None:
    """RFC 9112 6.3: HEAD, 204, 304 and 1xx have no body, whatever their fields say."""
    data = (
        response("HTTP/1.1 200 OK", "Content-Length: 7")
        + response("HTTP/1.1 304 Not Modified", "Content-Length: 9")
        + response("HTTP/1.1 204 No Content", CHUNKED)
        + response("HTTP/1.1 100 Continue")
        + response("HTTP/1.1 200", "Content-Length: 3", body=b"abc")
        + response("HTTP/1.1 404 Not Found", CHUNKED, body=b"4\r\nnone\r\n0\r\n\r\n")
        + response("HTTP/1.0 200 OK", "X: y", body=b"to the end")
    )
    for pieces in cuts(data):
        parser = ResponseParser()
        found = read_responses(parser, pieces, ["HEAD", "GET", "GET", "GET", "GET", "PUT", "GET"])
        assert [(read.head.status, read.head.reason, read.body, read.ended) for read in found] == [
            (200, "OK", b"", True), (304, "Not Modified", b"", True), (204, "No Content", b"", True),
            (100, "Continue", b"", True), (200, "", b"abc", True), (404, "Not Found", b"none", True),
            (200, "OK", b"to the end", False),
        ]  # fmt: skip
        assert [read.head.keep_alive for read in found] == [True] * 6 + [False]
        assert isinstance(parser.feed_end()[0], End)


def test_a_response_that_is_cut_short_is_an_error() -> None:
    for data in [
        response("HTTP/1.1 200 OK", "Content-Length: 4", body=b"abc"),
        response("HTTP/1.1 200 OK", CHUNKED, body=b"3\r\nabc\r\n"),
        response("HTTP/1.1 200 OK", CHUNKED, body=b"3\r\nabc\r\n0\r\n"),
        b"HTTP/1.1 200 OK\r\n",
        b"",
    ]:
        parser = ResponseParser()
        parser.feed(data)
        with pytest.raises(TargetPeerError):
            parser.feed_end()


def test_what_is_not_a_response() -> None:
    for data in [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        response("HTTP/2 200 OK"),
        response("HTTP/1.2 200 OK"),
        response("HTTP/1.1  200 OK"),
        response("HTTP/1.1 20 OK"),
        response("HTTP/1.1 099 OK"),
        response("HTTP/1.1 200 OK\x01"),
        response("HTTP/1.1 200 OK", "X: a", " b"),
        response("HTTP/1.1 200 OK", "X : a"),
        response("HTTP/1.1 200 OK", "Content-Length: 3", "Content-Length: 3", body=b"abc"),
        response("HTTP/1.1 200 OK", "Content-Length: 3", CHUNKED, body=b"0\r\n\r\n"),
        response("HTTP/1.1 200 OK", "Content-Length: -3"),
        response("HTTP/1.1 200 OK", "Content-Length: 9999999999999999999"),
        response("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked"),
        response("HTTP/1.0 200 OK", CHUNKED, body=b"0\r\n\r\n"),
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        response("HTTP/1.1 200 OK", "X: \x00"),
        response("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket"),
        response("HTTP/1.1 200 OK", CHUNKED, body=b"3\r\nabcd\r\n"),
        response("HTTP/1.1 200 OK", *["X: y"] * (FIELDS_LIMIT + 1)),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_LIMIT,
    ]:
        assert cannot_be_read(data), data
    assert not cannot_be_read(response("HTTP/1.1 200 OK", "X: y", body=b"z"))


# -- h11 as the second opinion ------------------------------------------------------------------------

TOKEN = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=20)
RESERVED = {"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "date"}
FIELDS = st.lists(st.tuples(TOKEN.filter(lambda name: name.lower() not in RESERVED), VALUE), max_size=8)
BODY = st.lists(st.binary(max_size=200), max_size=5)


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(at)]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    st.text("abc/%?=&.-_~", max_size=30),
    FIELDS,
    BODY,
    st.booleans(),
    st.lists(st.integers(0, 5000), max_size=6),
)
def test_requests_of_h11_are_read_as_it_meant_them(
    method: str, path: str, fields: list[tuple[str, str]], body: list[bytes], chunked: bool, places: list[int]
) -> None:
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(sum(map(len, body))))
    all_fields = [("Host", "gate:443"), *fields, framing]
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in all_fields]
    peer = h11.Connection(h11.CLIENT)
    data = peer.send(h11.Request(method=method, target=("/" + path).encode(), headers=headers)) or b""
    for piece in body:
        data += peer.send(h11.Data(piece)) or b""
    data += peer.send(h11.EndOfMessage()) or b""
    found = read_requests(RequestParser(), [*cut_at(data, places), *cut_at(data, places)])
    assert len(found) == 2
    for read in found:
        assert (read.head.method, read.head.target, read.body, read.ended) == (method, "/" + path, b"".join(body), True)
        assert [(name.lower(), value) for name, value in read.head.fields] == [
            (name.lower(), value) for name, value in all_fields
        ]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    FIELDS,
    BODY,
    st.booleans(),
    st.lists(st.integers(0, 5000), max_size=6),
)
def test_responses_of_h11_are_read_as_it_meant_them(
    status: int, fields: list[tuple[str, str]], body: list[bytes], chunked: bool, places: list[int]
) -> None:
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(sum(map(len, body))))
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in [*fields, framing]]
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(request())
    peer.next_event()
    data = peer.send(h11.Response(status_code=status, headers=headers, reason=b"As It Is")) or b""
    for piece in body:
        data += peer.send(h11.Data(piece)) or b""
    data += peer.send(h11.EndOfMessage()) or b""
    (read,) = read_responses(ResponseParser(), cut_at(data, places), ["GET"])
    assert (read.head.status, read.head.reason, read.body, read.ended) == (status, "As It Is", b"".join(body), True)
    assert len(read.head.fields) == len(fields) + 1


@settings(max_examples=100, deadline=None)
@given(FIELDS)
def test_h11_reads_our_heads(fields: list[tuple[str, str]]) -> None:
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(encode_request("GET", "/x?y", [("Host", "gate"), *fields]))
    event = peer.next_event()
    assert isinstance(event, h11.Request)
    assert event.target == b"/x?y"
    assert [(name.decode().lower(), value.decode("latin-1")) for name, value in event.headers][1:] == [
        (name.lower(), value) for name, value in fields
    ]
    user = h11.Connection(h11.CLIENT)
    user.send(h11.Request(method="GET", target="/", headers=[("Host", "gate")]))
    user.send(h11.EndOfMessage())
    user.receive_data(encode_response(207, "Multi", [*fields, ("Content-Length", "0")]))
    answer = user.next_event()
    assert isinstance(answer, h11.Response)
    assert (answer.status_code, len(answer.headers)) == (207, len(fields) + 1)


def test_a_control_character_never_gets_into_a_head() -> None:
    for value in ["a\r\nEvil: yes", "a\nb", "a\rb", "\x00", "\x7f", "\x1b[0m"]:
        with pytest.raises(AssertionError):
            encode_request("GET", "/", [("X", value)])
        with pytest.raises(AssertionError):
            encode_response(200, value, [])
        with pytest.raises(AssertionError):
            encode_response(200, "OK", [(value, "x")])
    assert encode_request("GET", "/", [("X", "a\tb")]) == b"GET / HTTP/1.1\r\nX: a\tb\r\n\r\n"
