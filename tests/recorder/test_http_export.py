"""Exports of an API session: HAR by exchange, text, casts and the page as replay renders them, exact bytes, lists."""

from __future__ import annotations

import base64
import io
import json
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recorder.export_har as export_har
from recorder.cli import show
from recorder.export import export_tape
from recorder.export_file import export_to
from recorder.export_options import ExportError, ExportOptions, add_arguments, from_arguments
from recorder.flows import Flows
from recorder.index import Index
from recorder.index_query import Wanted, find_commands
from recorder.reader import TapeReader
from recorder.tape import GATE, USER, Kind
from tests.recorder import http_tapes
from tests.recorder.http_tapes import PODS, SHA256, Api, status, write
from tests.recorder.tapes import pack


def exported(path: Path, form: str, **options: Any) -> str:
    out = io.StringIO()
    export_tape(TapeReader(path), form, out, ExportOptions(**options))
    return out.getvalue()


def har(directory: Path, tell: Callable[[Api], None], **options: Any) -> list[dict[str, Any]]:
    log = json.loads(exported(write(directory, tell), "har", **options))["log"]
    assert log["version"] == "1.2"
    entries: list[dict[str, Any]] = log["entries"]
    return entries


# -- HAR --------------------------------------------------------------------------------------------------


def test_each_exchange_is_an_entry(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        first = api.ask("kubectl logs -f api", path=f"{PODS}/api/log?follow=true&token=CANARY", verb="log")
        body = b'{"spec": 1}'
        patch = api.ask("kubectl patch pod api", "PATCH", f"{PODS}/api", verb="patch", kind="write", body=body)
        api.answer(patch, b"\xff\x00", 30, "409 Conflict")
        api.head(first[0], content_type="text/plain")
        for text in (b"one\n", b"two\n"):
            api.clock.pass_ms(100)
            api.body(first[0], text)
        api.result(first[1], first[0])

    patch, log = har(tmp_path, tell)
    assert patch["request"]["method"] == "PATCH"
    assert patch["request"]["url"] == f"https://10.0.0.1:6443{PODS}/api"
    assert patch["request"]["postData"] == {"mimeType": "application/json", "text": '{"spec": 1}'}
    assert (patch["response"]["status"], patch["response"]["statusText"]) == (409, "Conflict")
    assert base64.b64decode(patch["response"]["content"]["text"]) == b"\xff\x00"
    assert patch["comment"] == "kubectl patch pod api: allowed by readers"
    assert log["response"]["content"] == {"size": 8, "mimeType": "text/plain", "text": "one\ntwo\n"}
    assert log["timings"] == {"send": 0, "wait": 30, "receive": 200}
    assert "CANARY" not in json.dumps(log)


def test_what_was_denied_is_an_entry_and_what_began_before_is_none(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        before = api.ask("kubectl get pod early", path=f"{PODS}/early")
        api.clock.pass_ms(1000)
        flow, _ = api.ask("kubectl delete ns x", "DELETE", verb="delete", kind="delete", verdict="deny")
        document = status(403, "Forbidden", "gatecast: keep-out")
        api.head(flow, "403 Forbidden", more=f"Content-Length: {len(document)}\r\n")
        api.body(flow, document)
        api.answer(before, b"{}")
        silent = api.ask("kubectl get pod silent", path=f"{PODS}/silent")
        assert silent

    entries = har(tmp_path, tell, start_ns=500_000_000)
    assert [(entry["response"]["status"], entry["comment"]) for entry in entries] == [
        (403, "kubectl delete ns x: denied by keep-out"),
        (0, "kubectl get pod silent: allowed by readers"),
    ]


def test_a_body_goes_on_to_the_end_of_its_flow_whatever_its_length_says(tmp_path: Path) -> None:
    """A mask changed it, and nothing of it may be taken for another message."""

    def tell(api: Api) -> None:
        flow, n = api.ask("kubectl get secret x")
        api.head(flow, more="Content-Length: 5\r\n")
        api.body(flow, b"[masked] and ")
        api.body(flow, b"HTTP/1.1 200 OK\r\n\r\n")
        api.result(n, flow)

    (entry,) = har(tmp_path, tell)
    assert entry["response"]["content"]["text"] == "[masked] and HTTP/1.1 200 OK\r\n\r\n"


def test_messages_may_be_cut_anywhere(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        flow, n = api.ask("kubectl get pods")
        for byte in b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\n\r\nbody":
            api.body(flow, bytes([byte]))
        api.result(n, flow)

    (entry,) = har(tmp_path, tell)
    assert (entry["response"]["status"], entry["response"]["content"]["mimeType"]) == (200, "a/b")
    assert entry["response"]["content"]["text"] == "\r\nbody"


def test_exchanges_without_an_end_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_har, "WAITING_LIMIT", 4)

    def tell(api: Api) -> None:
        for i in range(20):
            api.ask(f"kubectl get pod {i}")

    assert [entry["comment"].split(":")[0][-2:].strip() for entry in har(tmp_path, tell)] == list(map(str, range(20)))


def test_an_exec_has_no_har(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no exchanges of HTTP"):
        exported(write(tmp_path, http_tapes.an_exec, http=False), "har")


def test_another_protocol_with_exchanges_has_one(tmp_path: Path) -> None:
    path = write(tmp_path, lambda api: api.answer(api.ask("SELECT 1", "POST", "/jobs"), b"{}"), protocol="bigquery")
    (entry,) = json.loads(exported(path, "har"))["log"]["entries"]
    assert entry["request"]["method"] == "POST"
    assert "bq prod> SELECT 1" in exported(path, "txt")


# -- text, casts, a page, bytes ---------------------------------------------------------------------------


def test_text_is_what_replay_shows(tmp_path: Path) -> None:
    path = write(tmp_path, http_tapes.day)
    text = exported(path, "txt")
    assert "  ... the same 5 times more, 200" in text and "MODIFIED  pod/api-7f6d  Running" in text
    raw = exported(path, "txt", http=True, flow=15)
    assert '< {"type": "ADDED"' in raw or "GET /api" in raw
    assert "same" not in exported(path, "txt", http=True)
    with pytest.raises(ExportError, match="--http"):
        exported(write(tmp_path / "exec", http_tapes.an_exec, http=False), "txt", http=True)


@pytest.mark.parametrize("form", ["asciicast-v2", "asciicast-v3"])
def test_a_cast_of_an_api_session(tmp_path: Path, form: str) -> None:
    head, *lines = map(json.loads, exported(write(tmp_path, http_tapes.day), form).splitlines())
    assert head.get("width", 110) == 110
    shown = "".join(text for _, code, text in lines if code == "o")
    assert "kubectl\x1b" in shown or "kubectl get" in shown
    markers = [text for _, code, text in lines if code == "m"]
    assert "Q4 list payments/pods/*" in markers and "DENY Q14" in markers
    assert not [marker for marker in markers if "discover" in marker], "discovery has no markers"


def test_a_cast_of_an_exec_is_its_terminal(tmp_path: Path) -> None:
    path = write(tmp_path, http_tapes.an_exec, http=False)
    head, *lines = map(json.loads, exported(path, "asciicast-v2").splitlines())
    assert (head["width"], head["height"]) == (120, 40)
    shown = "".join(text for _, code, text in lines if code == "o")
    assert "\x1b[32m/app\x1b[0m # ls\r\n\x1b[34mbin\x1b[0m" in shown
    assert [text for _, code, text in lines if code == "r"] == ["120x40", "100x30"]


def test_the_page_has_every_command(tmp_path: Path) -> None:
    page = exported(write(tmp_path / "day", http_tapes.day), "html")
    assert "kubectl delete namespace payments" in page and 'data-outcome="deny"' in page
    copy = exported(write(tmp_path / "copy", http_tapes.copy_out, http=False), "html")
    assert f"log/access.log download 12.3 MiB, sha256 {SHA256}" in copy


@pytest.mark.parametrize(("direction", "begins"), [("out", b"HTTP/1.1 200 OK\r\n"), ("user", b"GET /api/v1")])
def test_bytes_of_an_exchange_are_its_message(tmp_path: Path, direction: str, begins: bytes) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    said = parser.parse_args(["--format", "bytes", "--flow", "9", "--direction", direction])
    export_to(TapeReader(write(tmp_path, http_tapes.day)), "bytes", tmp_path / "bytes", from_arguments(said, 0))
    found = (tmp_path / "bytes").read_bytes()
    assert found.startswith(begins)
    assert found.endswith(b"half a line\n" if direction == "out" else b"\r\n\r\n")


# -- lists and the index ----------------------------------------------------------------------------------


def test_flows_of_a_copy_and_of_a_port_forward(tmp_path: Path) -> None:
    """The RESULT of a file does not end the stream that carried it."""
    for number, tell in enumerate((http_tapes.copy_out, http_tapes.forward)):
        flows = Flows()
        for record in TapeReader(write(tmp_path / str(number), tell, http=False)).records():
            flows.feed(record)
        found = [(flow.verb, flow.tag, flow.up, flow.down) for flow in flows.all()]
        if number == 0:
            assert found == [("copy-out", "exit 0", 0, 12_904_448)]
        else:
            assert found == [("connect", "closed", 12_288, 3_145_728), ("connect", "", 0, 0)]


def test_commands_objects_and_files_are_found(tmp_path: Path) -> None:
    for name, tell, http in (("day", http_tapes.day, True), ("copy", http_tapes.copy_out, False)):
        write(tmp_path / name, tell, http=http)
        Index.update(tmp_path / name)

    def found(directory: str, **wanted: str) -> list[tuple[int, str]]:
        with Index(tmp_path / directory) as index:
            return sorted((row["number"], row["verb"]) for row in find_commands(index, Wanted(**wanted)))  # type: ignore[arg-type]

    assert found("day", text="delete namespace", verdict="deny") == [(14, "delete")]
    assert found("day", object="payments/deployments.apps/*") == [(13, "patch")]
    assert found("day", object="payments/pods/gone", error="not found") == [(11, "get")]
    assert found("day", verb="watch") == [(15, "watch")]
    assert found("copy", text="access.log") == found("copy", text=SHA256) == [(1, "copy-out")]


@pytest.mark.parametrize("late", [False, True])
def test_a_copy_of_many_files_stays_small_in_the_index(tmp_path: Path, late: bool) -> None:
    def tell(api: Api) -> None:
        said = {"verb": "copy-out", "kind": "transfer", "text": "kubectl cp", "flow": 0}
        n = api.tape.append(USER, Kind.COMMAND, pack(said), said)
        api.verdict(n)
        if late:  # so many in between that the command is in the index before its files come
            for _ in range(5000):
                said = {"verb": "line", "kind": "execute", "text": "x", "flow": 0}
                api.tape.append(USER, Kind.COMMAND, pack(said), said)
        for i in range(5000):
            file = {"command": n, "tag": "file", "path": f"dir/file-{i}", "direction": "download", "size": 1}
            api.tape.append(GATE, Kind.RESULT, pack({**file, "sha256": f"{i:064x}", "complete": True}))

    path = write(tmp_path, tell, http=False)
    Index.update(tmp_path)
    with Index(tmp_path) as index:
        text, cut = index.connection.execute("SELECT text, cut FROM commands WHERE verb = 'copy-out'").fetchone()
        index.connection.execute("INSERT INTO texts(texts, rank) VALUES('integrity-check', 1)")
        (row,) = find_commands(index, Wanted(text=f"{7:064x}"))
    assert row["verb"] == "copy-out"
    assert cut == 1 and len(text) <= 2 * 64 * 1024
    files = show(path)["commands"][0]["details"]["files"]
    assert len(files) == 256 and files[7]["path"] == "dir/file-7"
