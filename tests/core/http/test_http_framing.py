"""How an answer goes to a user; h11 reads it as it was meant."""

from __future__ import annotations

import h11
import pytest

from proxy.core.errors import TargetPeerError
from proxy.core.http.framing import Framing
from proxy.core.http.heads import Fields, RequestHead, ResponseHead
from proxy.core.http.parser import RequestParser
from tests.core.http.messages import request

GET = RequestHead("GET", "/", (("Host", "gate"),))
HEAD = RequestHead("HEAD", "/", (("Host", "gate"),))
OLD = RequestHead("GET", "/", (), version="1.0", keep_alive=False)
OLD_KEPT = RequestHead("GET", "/", (), version="1.0", keep_alive=True)
LAST = RequestHead("GET", "/", (("Host", "gate"), ("Connection", "close")), keep_alive=False)


def answer(length: int | None, *fields: tuple[str, str], status: int = 200) -> ResponseHead:
    own: Fields = (("Content-Length", str(length)),) if length is not None else (("Transfer-Encoding", "chunked"),)
    return ResponseHead(status, "Fine", (*fields, *own), length=length)


def sent(framing: Framing, head: ResponseHead, *pieces: bytes) -> bytes:
    return framing.head(head.fields) + b"".join(map(framing.data, pieces)) + framing.end()


def test_a_length_is_kept_where_the_body_is_untouched() -> None:
    head = answer(5, ("X", "y"))
    framing = Framing(GET, head)
    assert sent(framing, head, b"he", b"", b"llo") == b"HTTP/1.1 200 Fine\r\nX: y\r\nContent-Length: 5\r\n\r\nhello"
    assert framing.keep_alive


def test_a_rewritten_body_goes_in_chunks() -> None:
    head = answer(5)
    framing = Framing(GET, head, rewritten=True)
    assert sent(framing, head, b"0123456789", b"") == (
        b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"
    )
    assert framing.keep_alive


def test_without_a_length_old_users_get_the_end_of_the_connection() -> None:
    head = answer(None)
    for asked in (OLD, OLD_KEPT):
        framing = Framing(asked, head)
        assert sent(framing, head, b"a", b"b") == b"HTTP/1.1 200 Fine\r\nConnection: close\r\n\r\nab"
        assert not framing.keep_alive
    framing = Framing(OLD_KEPT, answer(1))
    assert framing.head(()) == b"HTTP/1.1 200 Fine\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n"
    assert framing.keep_alive


def test_answers_without_a_body() -> None:
    for asked, head, length in [
        (HEAD, answer(5), b"Content-Length: 5\r\n"),
        (HEAD, answer(None), b""),
        (GET, answer(5, status=304), b"Content-Length: 5\r\n"),
        (GET, ResponseHead(204, "Fine", (("Content-Length", "0"),), length=0), b""),
    ]:
        framing = Framing(asked, head)
        assert framing.head(head.fields) == b"HTTP/1.1 %d Fine\r\n%b\r\n" % (head.status, length)
        assert framing.data(b"x") == framing.end() == b""
        assert framing.keep_alive
    assert b"Content-Length" not in Framing(HEAD, answer(5), rewritten=True).head(answer(5).fields)


def test_fields_between_neighbours_go_no_further() -> None:
    fields = (
        ("Connection", "X-Secret, keep-alive"), ("Keep-Alive", "timeout=5"), ("X-Secret", "1"), ("Upgrade", "h2c"),
        ("Proxy-Authenticate", "Basic"), ("Trailer", "T"), ("TE", "trailers"), ("Set-Cookie", "a"), ("Set-Cookie", "b"),
    )  # fmt: skip
    head = answer(0, *fields)
    assert Framing(LAST, head).head(head.fields) == (
        b"HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def test_a_body_of_another_length_is_never_passed_off_as_whole() -> None:
    framing = Framing(GET, answer(5))
    framing.data(b"abc")
    with pytest.raises(TargetPeerError):
        framing.end()
    assert not framing.keep_alive
    framing = Framing(GET, answer(5))
    framing.data(b"abcde")
    with pytest.raises(TargetPeerError):
        framing.data(b"f")
    assert not framing.keep_alive


def test_an_interim_answer_is_no_answer() -> None:
    with pytest.raises(TargetPeerError):
        Framing(GET, ResponseHead(101, "Switching Protocols", (("Upgrade", "websocket"),)))


def test_h11_reads_every_framing_as_it_was_meant() -> None:
    bodies = [(), (b"",), (b"a",), (b"a", b"bc" * 9000, b"d")]
    for line in ("GET / HTTP/1.1", "HEAD / HTTP/1.1", "GET / HTTP/1.0"):
        for length_known in (True, False):
            for rewritten in (True, False):
                for pieces in bodies:
                    whole = b"".join(pieces)
                    asked = RequestParser().feed(request(line))[0]
                    assert isinstance(asked, RequestHead)
                    head = answer(len(whole) if length_known else None, ("X", "y"))
                    framing = Framing(asked, head, rewritten)
                    peer = h11.Connection(h11.CLIENT)
                    headers = [("Host", "gate")] + ([("Connection", "close")] if not asked.keep_alive else [])
                    peer.send(h11.Request(method=asked.method, target="/", headers=headers))
                    peer.send(h11.EndOfMessage())
                    peer.receive_data(sent(framing, head, *pieces))
                    if not framing.keep_alive:
                        peer.receive_data(b"")
                    assert isinstance(peer.next_event(), h11.Response)
                    theirs = b""
                    while isinstance(event := peer.next_event(), h11.Data):
                        theirs += event.data
                    assert isinstance(event, h11.EndOfMessage)
                    assert theirs == (b"" if asked.method == "HEAD" else whole)
                    assert framing.keep_alive is (peer.their_state is h11.DONE)
