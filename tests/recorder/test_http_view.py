"""Messages of HTTP read from pieces, and the short views of what they carry; hostile and broken ones, too."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.http_messages import HEAD_LIMIT, Message
from recorder.http_view import VIEW_LINES, body_lines, event_lines, object_name, problem

ANSWER = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Type: text/x; a=b\r\n\r\n"


def answer(body: bytes, content_type: str = "application/json", fields: str = "", limit: int = 65536) -> Message:
    message = Message(False, limit)
    message.feed(f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{fields}\r\n".encode() + body, 5)
    return message


@given(body=st.binary(max_size=50), cuts=st.lists(st.integers(0, 150), max_size=8))
def test_a_message_is_the_same_however_it_is_cut(body: bytes, cuts: list[int]) -> None:
    message = Message(False)
    data, passed, last = ANSWER + body, b"", 0
    for t_ns, at in enumerate([*sorted(cuts), len(data)]):
        if data[last:at]:
            passed += message.feed(data[last:at], t_ns)
            last = at
    assert (message.status, message.content_type, bytes(message.body)) == (404, "text/x", body)
    assert (passed, message.size, message.broken) == (body, len(body), False)


@pytest.mark.parametrize(("size", "broken"), [(HEAD_LIMIT, False), (HEAD_LIMIT + 1, True)])
def test_a_head_is_limited(size: int, broken: bool) -> None:
    message = Message(True)
    start = b"GET / HTTP/1.1\r\nx: "
    message.feed(start + b"y" * (size - len(start)) + b"\r\n\r\nbody", 0)
    assert (message.broken, message.begun) == (broken, not broken)


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n\r\nrest", b"HTTP/1.1 999 x\r\n\r\n", b"HTTP/1.1 200 OK\r\nno field\r\n\r\n"]
)
def test_what_is_no_message_is_a_body(data: bytes) -> None:
    message = Message(False)
    assert message.feed(data, 0) == data
    assert (message.broken, message.begun, message.status, bytes(message.body)) == (True, False, 0, data)


def test_bodies_are_kept_to_their_limit_and_counted_whole() -> None:
    for length, kept in ((9, 9), (10, 10), (11, 10)):
        message = answer(b"x" * length, "text/plain", limit=10)
        assert (len(message.body), message.size) == (kept, length)


def test_views_of_bodies() -> None:
    managed: dict[str, object] = {"metadata": {"managedFields": [{}] * 50}}
    assert body_lines(answer(json.dumps(managed).encode()), 80)[2] == '    "managedFields": "..."'
    assert body_lines(answer(b"a: 1\nb: [2]\n", "application/yaml"), 80) == ["a: 1", "b: [2]"]
    assert body_lines(answer(b"{'no json"), 80) == ["{'no json"]
    assert body_lines(answer(b""), 80) == []
    assert body_lines(answer(b"\1\2", "application/octet-stream"), 80) == ["(application/octet-stream, 2 B)"]
    assert body_lines(answer(b"x", fields="Content-Encoding: gzip\r\n"), 80) == ["(application/json, 1 B, gzip)"]
    assert body_lines(answer(b"{" * 30, limit=20), 10) == [
        "{" * 9 + "…",
        "... application/json, 30 B, the rest is recorded",
    ]
    many = body_lines(answer("\n".join(map(str, range(40))).encode(), "text/plain"), 80)
    assert len(many) == VIEW_LINES + 1 and many[-1] == "... 28 more lines recorded (109 B)"


@pytest.mark.parametrize(
    "body", [b"[" * 60_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"9" * 5000, b'"\\ud800"', b"\xff\xfe"]
)
def test_hostile_bodies_are_lines_all_the_same(body: bytes) -> None:
    for line in body_lines(answer(body), 80):
        assert len(line) <= 80 and line.isprintable()
    assert event_lines(body, "pods", False)[0][0].startswith("(an event of")
    assert (object_name(body), problem(answer(body))) == ("", {})


def test_names_and_problems() -> None:
    assert object_name(b'{"kind": "Node", "metadata": {"name": "n1"}}') == "Node n1"
    assert object_name(b'{"kind": "Pod", "metadata": {"name": "a", "namespace": "b"}}') == "Pod b/a"
    assert object_name(b'{"kind": 1, "metadata": {"name": "a"}}') == ""
    google = b'{"error": {"code": 404, "status": "NOT_FOUND", "message": "no such table"}}'
    assert problem(answer(google)) == {"code": "NOT_FOUND", "message": "no such table"}
    assert problem(answer(b'{"message": "x"}', "text/plain")) == {}


def test_events_of_odd_shapes() -> None:
    def lines(thing: object, resource: str = "pods") -> list[str]:
        return [
            text for text, _ in event_lines(json.dumps({"type": "ADDED", "object": thing}).encode(), resource, True)
        ]

    assert lines({"kind": "Table", "rows": None}) == ["ADDED  pods"]
    assert lines({"kind": "Table", "rows": [7, {"cells": [1, None]}]}) == [
        "ADDED     pods/?",
        "ADDED     pods/?  1  None",
    ]
    assert len(lines({"kind": "Table", "rows": [{"cells": ["a"]}] * 150})) == 101
    assert lines({}) == ["ADDED     pods/?"]
    assert lines({"metadata": {"name": "a\x1b[2J\nb", "namespace": "n"}}) == ["ADDED     n/pods/a^[[2J b"]
    assert lines({"kind": "Pod", "metadata": {"name": "a", "deletionTimestamp": "x"}}) == [
        "ADDED     pod/a  terminating"
    ]
