"""Requests in pieces, requests that are two, and a target that misbehaves: one decided request is one at the target.

A real ``gatecast serve``; users write raw bytes. What is cut in pieces is served like what comes whole; what two
readers could cut differently is refused, and never at the target. A target that stalls, dies or lies costs its own
request alone, and nobody is told to repeat what may have been done.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from protocols.bigquery.upstream import NOT_LET_IN
from tests.bigquery.place_bq import ALLOW_ALL, TARGET, V2, Api, BqGateway, BqPlace, job_of
from tests.bigquery.scripted_bq import TOKEN, Asked, Handler, Scripted, scripted
from tests.kubernetes.place import tale

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]
SELECT: Final = "SELECT id, email FROM crm.people WHERE email = '{}'"
RETRYABLE: Final = ("backendError", "internalError", "rateLimitExceeded", "badGateway")  # bigquery note 8
QUIET_SECONDS: Final = 0.4  # for what must not come


@dataclass(slots=True)
class World:
    """One gateway for all of this file's tests."""

    place: BqPlace
    service: Scripted
    gateway: BqGateway


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with scripted(tmp_path_factory.mktemp("service")) as service:
        place = BqPlace(tmp_path_factory.mktemp("gw"), service)
        place.configure(ALLOW_ALL, targets={TARGET: {"recording": "written"}})
        with place.serving() as gateway:
            yield World(place, service, gateway)
    place.closed()
    log = (place.folder / "log").read_text()
    assert '"connection-failed"' not in log
    assert TOKEN not in log


@pytest.fixture(autouse=True)
def calm(world: World) -> Iterator[None]:
    """No test's script outlives it."""
    world.service.scripts.clear()
    world.service.release.clear()
    yield
    world.service.release.set()


class Wire:
    """A connection of a user who writes bytes."""

    def __init__(self, gateway: BqGateway) -> None:
        context = ssl.create_default_context(cafile=str(gateway.authority))
        plain = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wire = context.wrap_socket(plain, server_hostname="localhost")
        self._read = self._wire.makefile("rb")

    def send(self, data: bytes, size: int = 0) -> None:
        """Write bytes: whole, or so many at a time."""
        for at in range(0, len(data), size or len(data)):
            self._wire.sendall(data[at : at + (size or len(data))])

    def answer(self) -> tuple[int, bytes]:
        """Read an answer; 0 where there is none."""
        line = self._read.readline()
        if not line:
            return 0, b""
        length = 0
        while (field := self._read.readline()).strip():
            name, _, value = field.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return int(line.split()[1]), self._read.read(length)

    def over(self) -> bool:
        """Whether the gateway has ended the connection."""
        try:
            return self._read.read(1) == b""
        except OSError:
            return True

    def close(self) -> None:
        """Leave."""
        self._read.close()
        self._wire.close()


def request(gateway: BqGateway, method: str, path: str, value: Any = None, chunked: bool = False) -> bytes:
    """One request, as bytes."""
    head = [f"{method} /bq/{TARGET}{path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {gateway.token}"]
    body = b"" if value is None else json.dumps(value).encode()
    if value is not None:
        head += ["Content-Type: application/json"]
        head += ["Transfer-Encoding: chunked"] if chunked else [f"Content-Length: {len(body)}"]
    if chunked:
        body = b"".join(
            b"%x\r\n%s\r\n" % (len(body[at : at + 50]), body[at : at + 50]) for at in range(0, len(body), 50)
        )
        body += b"0\r\n\r\n"
    return "\r\n".join([*head, "", ""]).encode() + body


def ten(gateway: BqGateway, mark: str) -> list[bytes]:
    """Ten requests of every sort."""
    query = {"query": SELECT.format(f"{mark}_query"), "useLegacySql": False}
    rows = {"rows": [{"insertId": "1", "json": {"id": 1, "email": mark}}]}
    return [
        request(gateway, "GET", f"{V2}/datasets?maxResults=1"),
        request(gateway, "POST", f"{V2}/jobs", job_of(f"{mark}a", SELECT.format(mark))),
        request(gateway, "POST", f"{V2}/jobs", job_of(f"{mark}b", SELECT.format(mark)), chunked=True),
        request(gateway, "GET", f"{V2}/jobs/{mark}a?location=US"),
        request(gateway, "GET", f"{V2}/queries/{mark}b?maxResults=1&timeoutMs=0"),
        request(gateway, "POST", f"{V2}/queries", query),
        request(gateway, "POST", f"{V2}/datasets/crm/tables/people/insertAll", rows),
        request(gateway, "GET", f"{V2}/datasets/crm/tables/people/data?maxResults=2"),
        request(gateway, "POST", f"{V2}/jobs/{mark}a/cancel?location=US", {}),
        request(gateway, "GET", f"{V2}/jobs/nobody"),
    ]


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_what_comes_in_pieces_is_what_comes_whole(world: World, size: int) -> None:
    expected = [200] * 9 + [404]
    whole, cut = Wire(world.gateway), Wire(world.gateway)
    for first, second in zip(ten(world.gateway, f"w{size}w"), ten(world.gateway, f"w{size}c"), strict=True):
        whole.send(first)
        cut.send(second, size)
        (code, body), (again, same) = whole.answer(), cut.answer()
        assert code == again == expected.pop(0), (code, again, second)
        body = body.replace(b"w%dw" % size, b"w%dc" % size)
        assert re.sub(rb"job_\d+", b"", same) == re.sub(rb"job_\d+", b"", body), second
    for each in (whole, cut):
        each.close()
    assert world.service.runs(f"w{size}c") == 4


def test_a_request_split_at_each_byte(world: World) -> None:
    data = request(world.gateway, "GET", f"{V2}/datasets")
    wire = Wire(world.gateway)
    for at in range(1, len(data)):
        wire.send(data[:at])
        wire.send(data[at:])
        assert wire.answer()[0] == 200, data[:at]
    wire.close()


def test_ten_requests_at_once_are_answered_in_order(world: World) -> None:
    wire = Wire(world.gateway)
    wire.send(b"".join(ten(world.gateway, "atonce")))
    assert [wire.answer()[0] for _ in range(10)] == [200] * 9 + [404]
    wire.close()
    assert world.service.runs("atonce") == 4


# What two readers of HTTP could cut differently. Source: tests/kubernetes/test_attacks_kubernetes.py; RFC 9112 6.3.
CUT: Final = (
    "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
    "Content-Length: 0\r\nContent-Length: 63\r\n\r\n",
    "Content-Length: 4, 4\r\n\r\n",
    "Content-Length: +4\r\n\r\n",
    "Content-Length: 0x4\r\n\r\n",
    "Content-Length: -1\r\n\r\n",
    "Content-Length:\r\n\r\n",
    "Content-Length : 4\r\n\r\n",
    "Transfer-Encoding: xchunked\r\n\r\n",
    "Transfer-Encoding: chunked, identity\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    "Transfer-Encoding : chunked\r\n\r\n",
    "Transfer-Encoding: \x0bchunked\r\n\r\n",
    "Transfer-Encoding:\r\n chunked\r\n\r\n",
    "X: y\r\n Content-Length: 4\r\n\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n\r\n",
    "X: y\rTransfer-Encoding: chunked\r\n\r\n",
    "X: y\x00\r\n\r\n",
    ": y\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n0_1\r\nx\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
    "Transfer-Encoding: chunked\r\n\r\n1\r\nxx0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "Host: y\r\nContent-Length: 0\r\n\r\n",
    "Expect: 200-maybe\r\nContent-Length: 0\r\n\r\n",
)


def test_requests_that_two_readers_cut_differently_are_refused(world: World) -> None:
    gateway = world.gateway
    before = len(world.service.requests)
    hidden = request(gateway, "POST", f"{V2}/queries", {"query": SELECT.format("hidden"), "useLegacySql": False})
    start = f"POST /bq/{TARGET}{V2}/queries HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {gateway.token}\r\n"
    wires = []
    for cut in CUT:  # at once, as each lingers a second when it has refused
        wires.append(Wire(gateway))
        wires[-1].send(start.encode() + cut.encode("latin-1") + b"0\r\n\r\n" + hidden)
    for cut, wire in zip(CUT, wires, strict=True):
        code, body = wire.answer()
        assert code in (400, 413, 417, 431, 501), (cut, code, body)
        assert json.loads(body)["error"]["message"]
    for cut, wire in zip(CUT, wires, strict=True):
        assert wire.over(), cut
        wire.close()
    assert len(world.service.requests) == before


def test_a_body_that_is_a_request_stays_a_body(world: World) -> None:
    """Of a GET that brings one, of a query whose text is one: nothing behind it is another request."""
    gateway = world.gateway
    inner = request(gateway, "POST", f"{V2}/queries", {"query": SELECT.format("inner"), "useLegacySql": False})
    query = {"query": f"SELECT 1 /* {inner.decode()} */", "useLegacySql": False}
    wire = Wire(gateway)
    head = request(gateway, "GET", f"{V2}/datasets")[:-2]
    wire.send(head + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
    code, _ = wire.answer()
    assert code in (200, 400)
    wire.close()
    api = Api(gateway)
    assert api.ask("POST", f"{V2}/queries", query).code in (200, 403)
    api.close()
    asked = [each for each in world.service.about("inner") if each.method == "POST" and "SELECT 1" not in each.text]
    assert not asked


# -- a target that misbehaves ---------------------------------------------------------------------------


def _garbage(handler: Handler, asked: Asked) -> None:
    handler.raw(b"\x00\x01 SSH-2.0-nothing of HTTP\r\n\r\n")


def _half_head(handler: Handler, asked: Asked) -> None:
    handler.raw(b"HTTP/1.1 200 OK\r\nContent-Ty")


def _half_body(handler: Handler, asked: Asked) -> None:
    handler.raw(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"kind":')


def _two_lengths(handler: Handler, asked: Asked) -> None:
    handler.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc")


def _dies(handler: Handler, asked: Asked) -> None:
    handler.die()


def _redirect(handler: Handler, asked: Asked) -> None:
    handler.say({}, 307, {"Location": "https://evil.example/bigquery"})


def _login(handler: Handler, asked: Asked) -> None:
    handler.failure(401, "authError", f"Invalid Credentials: {TOKEN}")


def _busy(handler: Handler, asked: Asked) -> None:
    handler.failure(503, "backendError", "busy")


def _no_json(handler: Handler, asked: Asked) -> None:
    handler.say(b"<html>nothing of JSON")


MISBEHAVE: Final = {
    each.__name__.strip("_"): each
    for each in (_garbage, _half_head, _half_body, _two_lengths, _dies, _redirect, _login, _busy, _no_json)
}
LOST: Final = {"garbage", "half_head", "two_lengths", "dies"}  # whether it was done is not known


@pytest.mark.parametrize("how", MISBEHAVE)
def test_what_a_target_does_wrong_ends_its_own_request_alone(world: World, how: str) -> None:
    api, other = Api(world.gateway), Api(world.gateway)
    word = f"mis_{how}_"
    assert api.insert(f"{word}job", SELECT.format("fine")).code == 200
    world.service.scripts[word] = MISBEHAVE[how]
    answers: dict[str, tuple[int, bytes]] = {}
    for name, ask in {
        "list": ("GET", f"{V2}/datasets/{word}/tables", None),
        "page": ("GET", f"{V2}/queries/{word}job", None),
        "get": ("GET", f"{V2}/jobs/{word}job", None),
        "query": ("POST", f"{V2}/queries", {"query": SELECT.format(word), "useLegacySql": False}),
        "insert": ("POST", f"{V2}/jobs", job_of(f"{word}new", SELECT.format(word))),
        "add": ("POST", f"{V2}/datasets/crm/tables/{word}/insertAll", {"rows": [{"json": {"id": 1}}]}),
    }.items():
        try:
            answer = api.ask(*ask)
            answers[name] = answer.code, answer.body
        except Exception as error:  # cut off in the middle: nobody takes it for whole
            answers[name] = 0, repr(error).encode()
            api.close()
        assert TOKEN.encode() not in answers[name][1]
        assert b"evil.example" not in answers[name][1]
        assert other.get("/datasets").code == 200
    codes = {name: code for name, (code, _) in answers.items()}
    match how:
        case "redirect":
            assert not [code for code in codes.values() if code == 200], codes
        case "login":
            assert set(codes.values()) == {503}, codes
            assert all(NOT_LET_IN.encode() in body for _, body in answers.values()), answers
        case "busy":
            assert set(codes.values()) == {503}, codes
        case "no_json":
            assert all(code in (200, 503) for code in codes.values()), answers
        case _:
            assert set(codes.values()) <= {0, 503}, answers
    for name in ("query", "add") if how in LOST else ():
        reason = json.loads(answers[name][1])["error"]["errors"][0]["reason"]
        assert reason not in RETRYABLE, (name, reason)  # it may have been done
    world.service.scripts.clear()
    assert api.state(f"{word}job") == "DONE"
    for each in (api, other):
        each.close()


def test_a_job_whose_answer_was_lost_is_found_or_sent_again(world: World) -> None:
    """Clients send it once more: it runs once either way."""

    def runs_and_dies(handler: Handler, asked: Asked) -> None:
        service, value = handler.server.service, json.loads(asked.body or b"{}")
        if asked.path.endswith("/jobs") and value["jobReference"]["jobId"] not in service.jobs:
            service.begin(value["jobReference"]["jobId"], value, "lost_answer")
            return handler.die()
        return handler.served(asked)

    world.service.scripts["lost_answer"] = runs_and_dies
    api = Api(world.gateway)
    answer = api.insert("lost_answer1", SELECT.format("lost_answer"))
    assert answer.code == 200 or (answer.code == 503 and answer.reason in RETRYABLE), answer.body
    assert [name for name, _ in world.service.ran].count("lost_answer1") == 1
    assert api.state("lost_answer1") == "DONE"
    again = api.insert("lost_answer1", SELECT.format("lost_answer"))
    assert (again.code, again.reason) == (409, "duplicate")
    world.service.scripts["never_came"] = _dies
    assert api.insert("never_came1", SELECT.format("x")).code == 503
    world.service.scripts.clear()
    assert api.insert("never_came1", SELECT.format("x")).code == 200
    assert [name for name, _ in world.service.ran].count("never_came1") == 1
    api.close()


def test_a_target_that_stalls_is_left_when_its_user_leaves(world: World) -> None:
    def stall(handler: Handler, asked: Asked) -> None:
        handler.stall()
        handler.die()

    world.service.scripts["stalling"] = stall
    wire, other = Wire(world.gateway), Api(world.gateway)
    wire.send(request(world.gateway, "GET", f"{V2}/datasets/stalling/tables"))
    world.service.wait("stalling")
    assert other.get("/datasets").code == 200
    time.sleep(QUIET_SECONDS)
    wire.close()
    (sid,) = [row["id"] for row in world.gateway.call("sessions.live")]
    world.gateway.call("sessions.kill", id=sid)
    (path,) = [path for path in world.gateway.tapes() if path.name.startswith(sid)]
    assert world.gateway.sealed(path).status
    assert any(result["tag"] == "ended early" for result in tale(path).results)
    assert other.get("/datasets").code == 200
    other.close()
