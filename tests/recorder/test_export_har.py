"""HAR: requests and responses of an HTTP session, however they were cut into records; no credentials.

The sessions are made here, of WIRE records as export_har.py says that a tape of HTTP/1.1 holds them: no protocol of
ours speaks HTTP yet.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

import recorder.export_har as export_har
from recorder.export import export_tape
from recorder.export_options import ExportError
from recorder.reader import TapeReader
from recorder.tape import OUT, USER, Kind
from tests.recorder.stories import WALL_NS, one_of_everything
from tests.recorder.tapes import Clock, open_tape, recorder

GET = (
    b"GET /api/v1/pods?limit=5&access_token=CANARY&x=%2Fa HTTP/1.1\r\nHost: k8s.example\r\n"
    b"Authorization: Bearer CANARY\r\n"
    b"Cookie: s=CANARY\r\nX-Api-Key: CANARY\r\nAccept: */*\r\n\r\n"
)
PODS = b'{"items": []}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\nSet-Cookie: CANARY\r\n\r\n" + PODS
POST = b"POST /jobs HTTP/1.1\r\nHost: bq\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
POST += b"5\r\nhello\r\n6;x=y\r\n w\xc3\xb6rl\r\n1\r\nd\r\n0\r\nTrailer: x\r\n\r\n"
CREATED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\n\xff\x00\x01"
HEAD = b"HEAD / HTTP/1.1\r\nHost: bq\r\n\r\n"
HEAD_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"


def taped(directory: Path, pieces: list[tuple[int, bytes]], protocol: str = "kubernetes") -> Path:
    clock, wall = Clock(), Clock()
    wall.ns = WALL_NS

    async def scenario() -> Path:
        tape = open_tape(recorder(directory, monotonic_ns=clock, wall_ns=wall), protocol=protocol)
        for channel, data in pieces:
            tape.append(channel, Kind.WIRE, data)
            clock.pass_ms(10)
        await tape.close("closed")
        return tape.path

    return asyncio.run(scenario())


def har_of(path: Path) -> Any:
    out = io.StringIO()
    export_tape(TapeReader(path), "har", out)
    return json.loads(out.getvalue())["log"]


CONVERSATION = [
    (USER, GET),
    (OUT, OK),
    (USER, POST),
    (OUT, CREATED),
    (USER, HEAD),
    (OUT, HEAD_OK),
    (USER, GET),
    (OUT, OK),
]


def shapes() -> dict[str, list[tuple[int, bytes]]]:
    """The same conversation, whole and one byte at a time."""
    return {
        "whole": CONVERSATION,
        "bytes": [(channel, data[i : i + 1]) for channel, data in CONVERSATION for i in range(len(data))],
        "pipelined": [(USER, GET + POST + HEAD + GET), (OUT, OK + CREATED + HEAD_OK + OK)],
    }


@pytest.mark.parametrize("shape", ["whole", "bytes", "pipelined"])
def test_the_messages_of_a_session(tmp_path: Path, shape: str) -> None:
    log = har_of(taped(tmp_path, shapes()[shape]))
    assert log["version"] == "1.2"
    assert log["creator"]["name"] == "gatecast"
    get, post, head, _ = log["entries"]
    assert get["request"]["method"] == "GET"
    assert get["request"]["url"] == "https://k8s.example/api/v1/pods?limit=5&access_token=%5Bremoved%5D&x=%2Fa"
    assert {"name": "limit", "value": "5"} in get["request"]["queryString"]
    assert get["response"]["status"] == 200
    assert get["response"]["content"] == {"size": 13, "mimeType": "application/json", "text": PODS.decode()}
    assert post["request"]["postData"] == {"mimeType": "text/plain", "text": "hello wörld"}
    assert post["request"]["bodySize"] == 12
    assert post["response"]["status"] == 201
    content = post["response"]["content"]
    assert (content["encoding"], base64.b64decode(content["text"])) == ("base64", b"\xff\x00\x01")
    assert (head["response"]["bodySize"], head["response"]["content"]["text"]) == (0, "")
    assert [entry["response"]["status"] for entry in log["entries"]] == [200, 201, 200, 200]


def test_times(tmp_path: Path) -> None:
    get, post, *_ = har_of(taped(tmp_path, CONVERSATION))["entries"]
    assert get["startedDateTime"] == "2026-09-21T14:13:20.000000Z"
    assert post["startedDateTime"] == "2026-09-21T14:13:20.020000Z"
    assert get["timings"] == {"send": 0, "wait": 10, "receive": 0}
    assert get["time"] == 10


def test_no_credential_is_in_it(tmp_path: Path) -> None:
    out = io.StringIO()
    export_tape(TapeReader(taped(tmp_path, CONVERSATION)), "har", out)
    assert "CANARY" not in out.getvalue()
    assert out.getvalue().count('{"name": "Authorization", "value": "[removed]"}') == 2


@pytest.mark.parametrize(("limit", "whole"), [(14, True), (13, True), (12, False)])
def test_bodies_are_cut_with_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, whole: bool
) -> None:
    monkeypatch.setattr(export_har, "BODY_LIMIT", limit)
    content = har_of(taped(tmp_path, CONVERSATION))["entries"][0]["response"]["content"]
    assert content["size"] == 13
    assert content["text"] == PODS.decode()[:limit]
    assert ("comment" in content) is not whole


def test_a_body_until_the_end_and_a_request_without_an_answer(tmp_path: Path) -> None:
    log = har_of(taped(tmp_path, [(USER, GET + HEAD), (OUT, b"HTTP/1.0 200 OK\r\n\r\nabc"), (OUT, b"def")]))
    assert log["entries"][0]["response"]["content"]["text"] == "abcdef"
    assert log["entries"][1]["response"]["status"] == 0


def test_nothing_is_read_after_an_upgrade(tmp_path: Path) -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x82\x05hello"
    log = har_of(taped(tmp_path, [(USER, GET), (OUT, switch), (USER, b"\x81\x02ok"), (OUT, b"\x81\x02ok")]))
    assert [entry["response"]["status"] for entry in log["entries"]] == [101]


@pytest.mark.parametrize(
    "pieces",
    [
        [(USER, b"SSH-2.0-x\r\n\r\n")],
        [(USER, b"GET / HTTP/1.1\r\nno field\r\n\r\n")],
        [(USER, b"x" * (export_har.HEAD_LIMIT + 1))],
        [(USER, POST.replace(b"5\r\nhello", b"z\r\nhello"))],
        [(USER, b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n")],
        [(OUT, OK)],
    ],
)
def test_what_is_not_http_is_refused(tmp_path: Path, pieces: list[tuple[int, bytes]]) -> None:
    with pytest.raises(ExportError):
        har_of(taped(tmp_path, pieces))


def test_other_protocols_have_no_har(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a postgres session is no HTTP session"):
        har_of(one_of_everything(tmp_path))
