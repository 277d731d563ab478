"""Requests that two readers would cut differently: all are refused; what is taken, h11 cuts in the same place."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.errors import PeerError
from proxy.core.http.heads import BadRequest
from proxy.core.http.parser import RequestParser, ResponseParser
from tests.core.http.messages import cuts, read_requests, read_responses, request, response
from tests.core.http.test_http_parser import CHUNKED, refused

POST = "POST / HTTP/1.1"
NONE = b"0\r\n\r\n"

CORPUS: dict[str, tuple[bytes, int]] = {
    "CL and TE": (request(POST, "Content-Length: 5", CHUNKED, body=NONE), 400),
    "TE and CL": (request(POST, CHUNKED, "Content-Length: 5", body=NONE), 400),
    "two lengths": (request(POST, "Content-Length: 3", "Content-Length: 4", body=b"abcd"), 400),
    "one length twice": (request(POST, "Content-Length: 3", "Content-Length: 3", body=b"abc"), 400),
    "a list of lengths": (request(POST, "Content-Length: 3, 3", body=b"abc"), 400),
    "a signed length": (request(POST, "Content-Length: +3", body=b"abc"), 400),
    "a negative length": (request(POST, "Content-Length: -1"), 400),
    "a hexadecimal length": (request(POST, "Content-Length: 0x3", body=b"abc"), 400),
    "an empty length": (request(POST, "Content-Length: "), 400),
    "a length with a space": (request(POST, "Content-Length: 1 0", body=b"0123456789"), 400),
    "a length beyond 64 bits": (request(POST, "Content-Length: 18446744073709551617"), 400),
    "a length beyond ours": (request(POST, "Content-Length: 9999999999999999999"), 400),
    "TE twice": (request(POST, CHUNKED, CHUNKED, body=NONE), 400),
    "chunked twice": (request(POST, "Transfer-Encoding: chunked, chunked", body=NONE), 400),
    "chunked not last": (request(POST, "Transfer-Encoding: chunked, identity", body=NONE), 400),
    "gzip and chunked": (request(POST, "Transfer-Encoding: gzip, chunked", body=NONE), 501),
    "a coding nobody knows": (request(POST, "Transfer-Encoding: xchunked", body=NONE), 400),
    "an empty coding": (request(POST, "Transfer-Encoding:", body=NONE), 400),
    "a coding with a parameter": (request(POST, "Transfer-Encoding: chunked;a=b", body=NONE), 400),
    "a vertical tab before chunked": (request(POST, "Transfer-Encoding: \x0bchunked", body=NONE), 400),
    "TE in HTTP/1.0": (request("POST / HTTP/1.0", CHUNKED, body=NONE), 400),
    "a space before the colon": (request(POST, "Content-Length : 3", body=b"abc"), 400),
    "a tab before the colon": (request(POST, "Transfer-Encoding\t: chunked", body=NONE), 400),
    "obs-fold": (request("GET / HTTP/1.1", "X: a", " b"), 400),
    "obs-fold with a tab": (request("GET / HTTP/1.1", "Transfer-Encoding:", "\tchunked"), 400),
    "a field begins with a space": (request("GET / HTTP/1.1", " X: a", host=""), 400),
    "a bare LF ends the line": (b"GET / HTTP/1.1\nHost: gate\r\n\r\n", 400),
    "a bare LF ends a field": (b"GET / HTTP/1.1\r\nHost: gate\nX: y\r\n\r\n", 400),
    "a bare LF ends the head": (b"GET / HTTP/1.1\r\nHost: gate\n\n", 400),
    "LF CR": (b"GET / HTTP/1.1\n\rHost: gate\n\r\n\r", 400),
    "a bare CR in a value": (request("GET / HTTP/1.1", "X: a\rb"), 400),
    "CR CR LF": (b"GET / HTTP/1.1\r\r\nHost: gate\r\n\r\n", 400),
    "a NUL in a value": (request("GET / HTTP/1.1", "X: a\x00b"), 400),
    "a NUL in a name": (request("GET / HTTP/1.1", "X\x00: a"), 400),
    "a NUL in the target": (request("GET /\x00 HTTP/1.1"), 400),
    "a DEL in a value": (request("GET / HTTP/1.1", "X: a\x7fb"), 400),
    "a name that is no token": (request("GET / HTTP/1.1", "X(y): a"), 400),
    "a name beyond ASCII": (request("GET / HTTP/1.1", "Content\xadLength: 3"), 400),
    "a field without a name": (request("GET / HTTP/1.1", ": a"), 400),
    "a field without a colon": (request("GET / HTTP/1.1", "Content-Length"), 400),
    "two Hosts": (request("GET / HTTP/1.1", "Host: other"), 400),
    "no Host": (request("GET / HTTP/1.1", host=""), 400),
    "a Host that is a list": (request("GET / HTTP/1.1", host="Host: gate, other"), 400),
    "a Host with a path": (request("GET / HTTP/1.1", host="Host: gate/x"), 400),
    "a Host with a user": (request("GET / HTTP/1.1", host="Host: x@gate"), 400),
    "absolute-form": (request("GET http://gate/ HTTP/1.1"), 400),
    "absolute-form of another": (request("GET https://other/api HTTP/1.1"), 400),
    "asterisk-form": (request("OPTIONS * HTTP/1.1"), 400),
    "authority-form": (request("CONNECT gate:443 HTTP/1.1"), 400),
    "a fragment": (request("GET /a#b HTTP/1.1"), 400),
    "a target beyond ASCII": (request("GET /\xff HTTP/1.1"), 400),
    "no target": (request("GET  HTTP/1.1"), 400),
    "two spaces": (request("GET  / HTTP/1.1"), 400),
    "a tab for a space": (request("GET\t/ HTTP/1.1"), 400),
    "a space behind the version": (request("GET / HTTP/1.1 "), 400),
    "a space ahead of the method": (request(" GET / HTTP/1.1"), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/0.9 with a version": (request("GET / HTTP/0.9"), 505),
    "HTTP/1.2": (request("GET / HTTP/1.2"), 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/11": (request("GET / HTTP/11"), 400),
    "RTSP": (request("OPTIONS / RTSP/1.0"), 400),
    "ICE": (request("SOURCE / ICE/1.0"), 400),
    "a method nobody knows": (request("SMUGGLE / HTTP/1.1"), 501),
    "a method in lower case": (request("get / HTTP/1.1"), 501),
    "another expectation": (request(POST, "Expect: 200-ok", "Content-Length: 1", body=b"x"), 417),
    "two expectations": (request(POST, "Expect: 100-continue", "Expect: x", "Content-Length: 1", body=b"x"), 417),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a chunk without a size": (request(POST, CHUNKED, body=b"\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk of 0x3": (request(POST, CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk of +3": (request(POST, CHUNKED, body=b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk of -3": (request(POST, CHUNKED, body=b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk of 1_0": (request(POST, CHUNKED, body=b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"), 400),
    "a chunk of 3 and a space": (request(POST, CHUNKED, body=b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk beyond 60 bits": (request(POST, CHUNKED, body=b"f000000000000003\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk that is longer": (request(POST, CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "a chunk's end is LF": (request(POST, CHUNKED, body=b"3\r\nabc\n0\r\n\r\n"), 400),
    "a size's end is LF": (request(POST, CHUNKED, body=b"3\nabc\r\n0\r\n\r\n"), 400),
    "an LF in an extension": (request(POST, CHUNKED, body=b"3;a\nabc\r\n0\r\n\r\n"), 400),
    "a CR in an extension": (request(POST, CHUNKED, body=b"3;a\rb\r\nabc\r\n0\r\n\r\n"), 400),
    "a NUL in an extension": (request(POST, CHUNKED, body=b"3;\x00\r\nabc\r\n0\r\n\r\n"), 400),
    "a request as a trailer": (request(POST, CHUNKED, body=b"0\r\nGET / HTTP/1.1\r\n\r\n"), 400),
    "a fold as a trailer": (request(POST, CHUNKED, body=b"0\r\nX: y\r\n z: a\r\n\r\n"), 400),
    "a space before a trailer's colon": (request(POST, CHUNKED, body=b"0\r\nX : y\r\n\r\n"), 400),
    "the last chunk's end is LF": (request(POST, CHUNKED, body=b"0\r\n\n"), 400),
}


@pytest.mark.parametrize("name", CORPUS)
def test_it_is_refused_however_it_is_cut(name: str) -> None:
    data, status = CORPUS[name]
    assert refused(data) == status
    # With a tail: what follows is never read as a request of its own.
    parser = RequestParser()
    with pytest.raises(BadRequest):
        read_requests(parser, [data + request("GET /smuggled HTTP/1.1")])
    with pytest.raises(BadRequest):
        parser.feed(request("GET /smuggled HTTP/1.1"))


def test_what_looks_odd_and_is_right_is_taken() -> None:
    for data in [
        request(POST, "transfer-encoding:\tChunked ", body=NONE),
        request(POST, "CONTENT-LENGTH:00003 ", body=b"abc"),
        request(POST, CHUNKED, body=b'000003;x="y"\r\nabc\r\n00\r\nX: y\r\n\r\n'),
        request("GET / HTTP/1.0", host=""),
        request("GET //a/../b?x=http://c/ HTTP/1.1"),
        request("GET / HTTP/1.1", host="Host: [::1]:443"),
        request("GET / HTTP/1.1", host="Host:"),
        request(POST, "Expect: 100-Continue", "Content-Length: 1", body=b"x"),
    ]:
        assert refused(data) == 0, data


SEEDS = [
    request("GET /api/v1/pods?limit=5 HTTP/1.1", "Accept: a/b, c/d;q=1", "X-Y:z"),
    request(POST, "Content-Length: 11", body=b"hello world"),
    request(POST, CHUNKED, body=b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nT: u\r\n\r\n"),
    request(POST, "Connection: upgrade", "Upgrade: websocket", "Content-Length: 3", body=b"abc"),
]
EDITS = [b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b":", b",", b";", b"0", b"1", b"a", b"\xff", b"\r\n ",
         b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"Host: x\r\n"]  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3), st.sampled_from(EDITS)), min_size=1, max_size=3),
)
def test_what_is_taken_h11_cuts_in_the_same_place(seed: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    data = seed
    for place, removed, added in edits:
        at = place % len(data)
        data = data[:at] + added + data[at + removed :]
    outcomes = []
    for pieces in cuts(data):
        parser = RequestParser()
        try:
            outcomes.append([(read.head, read.body, read.ended) for read in read_requests(parser, pieces)])
        except BadRequest as bad:
            assert bad.closing
            outcomes.append([])
    if not all(outcomes):
        assert not any(outcomes)  # however it is cut
        return
    assert outcomes[0] == outcomes[1] == outcomes[2]
    head, body, ended = outcomes[0][0]
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(data.removeprefix(b"\r\n"))
    event = peer.next_event()
    assert isinstance(event, h11.Request), (data, event)
    assert (event.method.decode(), event.target.decode()) == (head.method, head.target)
    theirs = b""
    while isinstance(event := peer.next_event(), h11.Data):
        theirs += event.data
    assert theirs == body
    assert isinstance(event, h11.EndOfMessage) is ended


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=300), st.builds(lambda a, b: a + b, st.sampled_from(SEEDS), st.binary(max_size=80)))
)
def test_garbage_is_a_bad_request_and_nothing_else(data: bytes) -> None:
    for pieces in cuts(data):
        try:
            read_requests(RequestParser(), pieces)
        except BadRequest as bad:
            assert bad.status in (400, 417, 431, 501, 505)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"", response("HTTP/1.1 200 OK", CHUNKED), response("HTTP/1.1 200 OK", "Content-Length: 9")]),
    st.binary(max_size=200),
)
def test_garbage_of_a_target_is_its_error_and_nothing_else(seed: bytes, garbage: bytes) -> None:
    for pieces in cuts(seed + garbage):
        parser = ResponseParser()
        try:
            found = read_responses(parser, pieces, ["GET"])
            if found and found[0].ended:
                assert seed + garbage != seed
            parser.feed_end()
        except PeerError as error:
            assert "target" in str(error)
