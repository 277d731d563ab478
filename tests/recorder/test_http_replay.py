"""What a person sees of an API session: commands and tables, logs and watches in time, folds, and the raw messages."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recorder.cast import Piece
from recorder.export import export_tape
from recorder.export_options import ExportOptions
from recorder.flows_find import FlowFinder
from recorder.player_index import TapeIndex
from recorder.player_options import BadOption
from recorder.reader import TapeReader
from recorder.replay import Player, ReplayOptions, Spot
from recorder.tape import ERR, GATE, OUT, USER, Kind
from recorder.transcript_flows import transcript_of
from tests.recorder import http_tapes
from tests.recorder.http_tapes import PODS, ROWS, SHA256, Api, discovery, event, status, write
from tests.recorder.tapes import pack


def pieces(path: Path, *, color: bool = False, columns: int = 110, messages: bool = False) -> list[Piece]:
    tape = TapeReader(path)
    options: dict[str, Any] = {"color": color, "columns": columns, "newline": "\n"}
    transcript = transcript_of(tape.header.map_, screen=False, messages=messages, **options)
    return [piece for record in tape.records() for piece in transcript.feed(record)]


def lines(directory: Path, tell: Callable[[Api], None], **options: object) -> list[str]:
    """The whole session as it is rendered, without its last line."""
    path = write(directory, tell, http=bool(options.pop("http", True)))
    text = "".join(piece.text for piece in pieces(path, **options) if piece.code == "o")  # type: ignore[arg-type]
    return text.removesuffix("-- session closed: idle\n").splitlines()


def played(path: Path, tmp_path: Path, **options: object) -> str:
    """What a player prints where there is no terminal."""
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        Player(TapeReader(path), ReplayOptions(**options), out, None, timed=False).play()  # type: ignore[arg-type]
    finally:
        os.close(out)
    return (tmp_path / "out").read_text()


# -- commands and answers ---------------------------------------------------------------------------------


def test_a_list_is_a_command_and_a_table(tmp_path: Path) -> None:
    assert lines(tmp_path, lambda api: api.table(count=60)) == [
        "prod/payments$ kubectl get pods -l app=api",
        "[allow] rule=readers",
        f"  GET {PODS}?labelSelector=app%3Dapi&limit=500  200  31.0 ms",
        "| NAME           | READY | STATUS           | RESTARTS | AGE |",
        "| api-7f6d-fghij | 0/1   | CrashLoopBackOff |       14 | 52m |",
        "| db-0           | 1/1   | Running          |        0 | 12d |",
        "  ... 58 more rows recorded (60 rows, 29 B)",
    ]


def test_the_request_stands_behind_the_command_where_the_rule_was_named(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        api.answer(api.ask("kubectl get pod a", path=f"{PODS}/a"), b"", 4)
        api.answer(api.ask("kubectl get pod b", path=f"{PODS}/b"), b"", 5)
        api.answer(api.ask("kubectl get pod c", path=f"{PODS}/c", masks=["env"]), b"", 6)

    shown = lines(tmp_path, tell)
    assert shown[3:] == [
        "prod/payments$ kubectl get pod b      GET /api/v1/namespaces/payments/pods/b  200  5.0 ms",
        "prod/payments$ kubectl get pod c",
        "[allow] rule=readers mask=[env]",
        "  GET /api/v1/namespaces/payments/pods/c  200  6.0 ms",
    ]


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_no_line_of_ours_is_wider_than_the_terminal(tmp_path: Path, columns: int) -> None:
    shown = lines(tmp_path, http_tapes.day, columns=columns)
    ours = [line for line in shown if "GET /" in line or "PATCH /" in line or "same" in line]
    assert len(ours) >= 7
    assert all(len(line) <= columns for line in ours if not line.startswith("prod/payments$ kubectl") or "GET" in line)


def test_an_error_is_told_in_its_own_words(tmp_path: Path) -> None:
    """By the RESULT, or read from the Status where that says nothing."""

    def tell(api: Api) -> None:
        gone = status(404, "NotFound", 'pods "x" not found')
        api.answer(api.ask("kubectl get pod x"), gone, status="404 Not Found")
        said = {"code": "409", "reason": "AlreadyExists", "message": "is there"}
        api.answer(api.ask("kubectl create ns x", "POST", verb="create", kind="write"), b"", status="409 Conflict",
                   error=said)  # fmt: skip

    path = write(tmp_path, tell)
    told = [piece for piece in pieces(path, color=True) if piece.code == "o" and "ERROR" in piece.text]
    assert [piece.text for piece in told] == [
        '\x1b[31mERROR:  NotFound: pods "x" not found\x1b[0m\n',
        "\x1b[31mERROR:  AlreadyExists: is there\x1b[0m\n",
    ]
    assert [piece.text for piece in pieces(path) if piece.code == "m"] == [
        "Q1 get payments/pods/*", "ERROR NotFound Q1", "Q2 create payments/pods/*", "ERROR AlreadyExists Q2", "CLOSE",
    ]  # fmt: skip


def test_holds_and_denials_are_told_as_for_other_protocols(tmp_path: Path) -> None:
    shown = lines(tmp_path, http_tapes.day)
    at = shown.index("prod/payments$ kubectl scale deployment/api --replicas=3")
    assert shown[at + 1 : at + 14] == [
        "[hold] rule=writes needs one of: group:oncall  approval A7",
        '[approved] by mia@acme after 41.00 s "ok #812"',
        "[allow] rule=writes",
        "  PATCH /apis/apps/v1/namespaces/payments/deployments/api  200  12.0 ms",
        "  > {",
        '  >   "spec": {',
        '  >     "replicas": 3',
        "  >   }",
        "  > }",
        "  Deployment payments/api",
        "prod$ kubectl delete namespace payments",
        "[DENIED] rule=keep-out: not from here - not forwarded",
        "prod/payments$ kubectl get pods -w",
    ]


def test_what_overlaps_is_told_apart(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        one, two = api.ask("kubectl get pod a", path=f"{PODS}/a"), api.ask("kubectl get pod b", path=f"{PODS}/b")
        api.answer(one, b"", columns=["NAME"], rows=[["a"]], count=1)
        api.answer(two, b"", columns=["NAME"], rows=[["b"]], count=1)

    assert lines(tmp_path, tell)[2:] == [
        "prod/payments$ kubectl get pod b",
        f"  Q1 GET {PODS}/a  200  31.0 ms",
        "Q1:",
        "| NAME |",
        "| a    |",
        "(1 row, 0 B)",
        f"  Q2 GET {PODS}/b  200  62.0 ms",
        "Q2:",
        "| NAME |",
        "| b    |",
        "(1 row, 0 B)",
    ]


def test_an_answer_that_broke_off_says_so(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        flow, n = api.ask("kubectl get pods")
        api.head(flow)
        api.body(flow, b'{"half')
        api.result(n, flow, tag="broken off")

    assert lines(tmp_path, tell)[-2:] == ['  {"half', "[broken off]"]


# -- in time ----------------------------------------------------------------------------------------------


def test_a_log_comes_as_it_came(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        flow, n = api.ask("kubectl logs -f api", path=f"{PODS}/api/log?follow=true", verb="log")
        api.clock.pass_ms(1000)
        api.head(flow, content_type="text/plain")
        for text in (b"one\ntw", b"o\xc3", b"\xb6\n\x1b[2J\x1b]52;c;x\x07red\n"):
            api.clock.pass_ms(1000)
            api.body(flow, text)
        api.result(n, flow, bytes=30)

    path = write(tmp_path, tell)
    shown = [(piece.t_ns // 1_000_000_000, piece.text) for piece in pieces(path) if piece.code == "o"]
    assert (2, "one\ntw") in shown and (3, "o") in shown
    assert (4, "ö\nred\n") in shown, "and nothing of it acts on the terminal"
    assert (1, f"  GET {PODS}/api/log?follow=true  200  1.00 s\n") in shown, "when its head came"
    assert (4, "[200 OK, 4.00 s, 30 B]\n") in shown


def test_a_watch_is_a_line_an_event_however_it_is_cut(tmp_path: Path) -> None:
    rows = {"rows": [{"cells": ["a", "1/1", 3], "object": {"metadata": {"name": "a", "namespace": "x"}}}]}
    named = [{"name": "Name", "priority": 0}, {"name": "Ready", "priority": 0}, {"name": "Wide", "priority": 1}]
    data = b"".join((
        event("Pod", "a", status={"phase": "Pending"}),
        event("Pod", "a", "MODIFIED", status={"phase": "Running"}),
        json.dumps({"type": "ADDED", "object": {"kind": "Table", "columnDefinitions": named, **rows}}).encode() + b"\n",
        b'{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"77"}}}\n',
        b'{"type":"ERROR","object":{"kind":"Status","reason":"Expired","message":"too old"}}\n',
        b"no event \x1b[2J\n",
        event("Event", "a.17", reason="BackOff", message="restarting"),
        event("Pod", "a", "DELETED")[:-1],
    ))  # fmt: skip

    def tell(api: Api, size: int) -> None:
        flow, n = api.ask("kubectl get pods -w", path=f"{PODS}?watch=true", verb="watch", objects=("*/pods/*",))
        api.head(flow)
        for at in range(0, len(data), size):
            api.body(flow, data[at : at + size])
        api.result(n, flow, bytes=len(data))

    expected = [
        "ADDED     payments/pod/a  Pending",
        "MODIFIED  payments/pod/a  Running",
        "ADDED     x/pods/a  1/1",
        "BOOKMARK  up to 77",
        "ERROR     Expired: too old",
        "(an event of 13 B that is not read here)",
        "ADDED     payments/event/a.17  BackOff  restarting",
        "DELETED   payments/pod/a",
        f"[200 OK, 0.0 ms, {len(data)} B]",
    ]
    for size in (1, 7, len(data)):
        shown = lines(tmp_path / str(size), lambda api, size=size: tell(api, size))  # type: ignore[misc]
        assert shown[3:] == expected, size


def test_an_event_without_an_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.transcript_http.EVENT_LIMIT", 1000)

    def tell(api: Api) -> None:
        flow, n = api.ask("kubectl get pods -w", verb="watch")
        api.head(flow)
        for _ in range(5):
            api.body(flow, b"x" * 900)
        api.body(flow, b"\n" + event("Pod", "a"))
        api.result(n, flow)

    assert lines(tmp_path, tell)[3:5] == ["(an event of 4.4 KiB is recorded)", "ADDED     pod/a"]


def test_two_that_speak_at_once_are_told_apart(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        flows = [api.ask(f"kubectl logs -f {name}", path=f"{PODS}/{name}/log", verb="log")[0] for name in "ab"]
        for flow in flows:
            api.head(flow, content_type="text/plain")
        for text in (b"1", b"2\n"):
            for flow in flows:
                api.body(flow, b"%d:%b" % (flow, text))

    assert lines(tmp_path, tell)[-8:] == [
        "-- Q1 kubectl logs -f a", "0:1", "-- Q2 kubectl logs -f b", "1:1",
        "-- Q1 kubectl logs -f a", "0:2", "-- Q2 kubectl logs -f b", "1:2",
    ]  # fmt: skip


def test_a_log_that_is_no_text_is_not_printed(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        flow, n = api.ask("kubectl logs api", verb="log")
        api.head(flow, content_type="text/plain")
        api.body(flow, b"a\0b")
        api.body(flow, b"more")
        api.result(n, flow, bytes=7)

    shown = lines(tmp_path, tell)
    assert shown[-2] == "-- binary output: export --format bytes --flow 0 writes it"
    assert "more" not in "".join(shown)


# -- folds ------------------------------------------------------------------------------------------------


def test_polls_are_folded_and_changes_counted(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        for i in range(6):
            api.table(rows=ROWS[: 1 if i == 3 else 2])
            api.clock.pass_ms(4969)
        api.answer(api.ask("kubectl get pod a", path=f"{PODS}/a"), b"")

    shown = lines(tmp_path, tell)
    assert sum("kubectl get pods" in line for line in shown) == 1
    assert shown[-2:] == [
        "  ... the same 5 times more, 200, in 25.00 s; the answer changed 2 times",
        "prod/payments$ kubectl get pod a      GET /api/v1/namespaces/payments/pods/a  200  31.0 ms",
    ]


def test_who_follows_hears_of_ten_and_of_a_hundred(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        for _ in range(105):
            api.table()

    shown = [line for line in lines(tmp_path, tell) if "same" in line]
    assert [re.sub(", in.*", "", line) for line in shown] == [
        "  ... the same 10 times more, 200", "  ... the same 90 times more, 200", "  ... the same 4 times more, 200",
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["status", "verdict", "rule", "hold", "write", "text"])
def test_what_differs_is_shown(tmp_path: Path, what: str) -> None:
    """A repetition that ends otherwise, is decided otherwise, or writes is no repetition."""

    def tell(api: Api) -> None:
        kind = "write" if what == "write" else "read"
        for i in (0, 1):
            other = i == 1
            text = "kubectl get pod b" if other and what == "text" else "kubectl get pod a"
            asked = api.ask(text, kind=kind, verdict="")
            if other and what == "hold":
                api.approval(asked[1], state="pending", rule="readers", approvers=["x"])
                api.approval(asked[1], state="approved", by="mia")
                api.verdict(asked[1], approval="A7")
            elif other and what == "verdict":
                api.verdict(asked[1], "deny")
                continue
            else:
                api.verdict(asked[1], rule="others" if other and what == "rule" else "readers")
            api.answer(asked, b"", status="410 Gone" if other and what == "status" else "200 OK")

    shown = lines(tmp_path, tell)
    assert sum("$ kubectl get pod" in line for line in shown) == 2
    assert not any("same" in line for line in shown)


def test_a_repetition_is_shown_when_something_comes_in_between(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        api.table()
        again = api.ask("kubectl get pods -l app=api", path=f"{PODS}?labelSelector=app%3Dapi&limit=500", verb="list")
        api.answer(api.ask("kubectl get pod a", path=f"{PODS}/a"), b"")
        api.answer(again, b"")

    shown = lines(tmp_path, tell)
    order = [line.split(" GET")[0].strip() for line in shown if "$ " in line]
    assert order == ["prod/payments$ kubectl get pods -l app=api"] * 2 + ["prod/payments$ kubectl get pod a"]
    assert shown[-1].startswith("  Q2 GET")


def test_a_read_behind_a_write_that_is_not_over_is_shown(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        api.table()
        patch = api.ask("kubectl patch pod a", "PATCH", verb="patch", kind="write")
        api.table()
        api.answer(patch, b"")

    shown = [line.split("$ ")[1].split("   ")[0] for line in lines(tmp_path, tell) if "$ " in line]
    assert shown == ["kubectl get pods -l app=api", "kubectl patch pod a", "kubectl get pods -l app=api"]


def test_a_thousand_at_once_are_shown(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        api.table()
        for _ in range(1500):
            api.ask("kubectl get pods -l app=api", verb="list")
        api.ask("kubectl get pod other")

    shown = lines(tmp_path, tell)
    assert sum("app=api" in line and "$ " in line for line in shown) == 1 + 1023, "the others were forgotten"


def test_discovery_is_one_line(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        discovery(api, 3)
        api.table()
        discovery(api, 1)

    shown = lines(tmp_path, tell)
    assert shown[0] == "-- discovery: 3 requests, 162 B, 1 failed"
    assert shown[-1] == "-- discovery: 1 request, 27 B"
    assert not any("/apis/" in line for line in shown)


def test_discovery_that_is_denied_is_shown(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        api.ask("GET /api", path="/api", verb="discover", objects=("/api",), verdict="deny")

    assert lines(tmp_path, tell) == ["prod$ GET /api", "[DENIED] rule=keep-out: not from here - not forwarded"]


# -- the messages themselves ------------------------------------------------------------------------------


def test_messages_are_shown_as_they_are(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        asked = api.ask("kubectl apply -f -", "POST", verb="create", kind="write", body=b'{"a":\n1}')
        api.answer(asked, b'{"b":2}\n')
        api.answer(api.ask("kubectl get pod a", path=f"{PODS}/a"), b"\0\1")
        discovery(api, 1)

    assert lines(tmp_path, tell, messages=True) == [
        "prod/payments$ kubectl apply -f -",
        f"> POST {PODS} HTTP/1.1",
        "> Host: 10.0.0.1:6443",
        "> User-Agent: kubectl/v1.32",
        "> Content-Type: application/json",
        "> ",
        '> {"a":',
        "> 1}",
        "[allow] rule=readers",
        "< HTTP/1.1 200 OK",
        "< Content-Type: application/json",
        "< ",
        '< {"b":2}',
        "  200  31.0 ms",
        "prod/payments$ kubectl get pod a",
        f"> GET {PODS}/a HTTP/1.1",
        "> Host: 10.0.0.1:6443",
        "> User-Agent: kubectl/v1.32",
        "> ",
        "< HTTP/1.1 200 OK",
        "< Content-Type: application/json",
        "< ",
        "-- binary body: export --format bytes --flow 1 writes the message",
        "  200  31.0 ms",
        "prod$ GET /apis/group0/v1",
        "> GET /apis/group0/v1 HTTP/1.1",
        "> Host: 10.0.0.1:6443",
        "> User-Agent: kubectl/v1.32",
        "> ",
        "< HTTP/1.1 200 OK",
        "< Content-Type: application/json",
        "< ",
        '< {"kind": "APIResourceList"}',
        "  200  1.0 ms",
    ]


@pytest.mark.parametrize("messages", [False, True])
def test_nothing_of_the_target_can_pass_for_the_gates_own_lines(tmp_path: Path, messages: bool) -> None:
    evil = "x\n[allow] rule=evil\n\x1b[2J\x1b]52;c;x\x07\r[DENIED] \u202e\x9b2J"

    def tell(api: Api) -> None:
        body = json.dumps({"kind": evil, "metadata": {"name": evil}}).encode()
        api.answer(api.ask("kubectl get a", objects=(f"{evil}/pods/a",)), body)
        api.answer(api.ask("kubectl get b"), evil.encode(), content_type="text/plain")
        api.answer(api.ask("kubectl get c"), b"", status="404 Not Found", error={"message": evil, "code": evil})
        api.answer(api.ask("kubectl patch d", "PATCH", kind="write", body=body), body)
        flow, n = api.ask("kubectl get -w", verb="watch")
        api.head(flow)
        api.body(
            flow, json.dumps({"type": evil, "object": {"kind": evil, "metadata": {"name": evil}}}).encode() + b"\n"
        )
        api.result(n, flow, tag=evil)

    shown = lines(tmp_path, tell, messages=messages)
    assert not [line for line in shown if line.startswith(("[allow] rule=evil", "[DENIED]"))]
    assert not set("\x1b\x07\x9b\r\u202e") & set("".join(shown).replace("\u202e", "") if messages else "".join(shown))


# -- the player -------------------------------------------------------------------------------------------


def test_one_exchange_is_played_alone(tmp_path: Path) -> None:
    path = write(tmp_path, http_tapes.day)
    shown = played(path, tmp_path, flow=9)
    assert "kubectl logs -f" in shown and "half a line" in shown
    assert "get pods" not in shown.replace("[", "")
    assert "GET /api/v1/namespaces/payments/pods/api-7f6d-fghij/log" in shown, "its request came before its command"
    assert "< line 2 of the log" in played(path, tmp_path, flow=9, http=True)
    with pytest.raises(BadOption, match="no flow 99"):
        played(path, tmp_path, flow=99)


@pytest.mark.parametrize("size", [0, 30_000, 900_000])
def test_an_exchange_begins_with_its_request(tmp_path: Path, size: int) -> None:
    """Which stands before its command, in one block or in many."""

    async def tell(api: Api) -> None:
        api.table()
        await api.tape.written()
        api.ask("kubectl create -f -", "POST", verb="create", kind="write", body=os.urandom(size))
        await api.tape.written()

    tape = TapeReader(write(tmp_path, tell))
    found = FlowFinder(tape, TapeIndex(tape)).look_up(1)
    assert found is not None
    record = next(tape.records(found.first))
    assert (record.flow, record.channel, record.payload[:5]) == (1, USER, b"POST ")


def test_only_what_has_messages_shows_them(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="--http"):
        played(write(tmp_path, http_tapes.an_exec, http=False), tmp_path, http=True)


def test_from_the_middle_a_watch_is_known(tmp_path: Path) -> None:
    """Its command came before what is shown, and its first bytes are the rest of an event."""

    def tell(api: Api) -> None:
        flow, n = api.ask("kubectl get pods -w", path=f"{PODS}?watch=true", verb="watch")
        late = api.ask("kubectl get pod late", path=f"{PODS}/late")
        api.head(flow)
        api.body(flow, event("Pod", "a")[:30])
        api.clock.pass_ms(10_000)
        api.body(flow, event("Pod", "a")[30:] + event("Pod", "b"))
        api.answer(api.ask("kubectl get pod c", path=f"{PODS}/c"), b"")
        api.answer(late, b'{"a": 1}')
        api.result(n, flow, bytes=100)

    out = io.StringIO()
    export_tape(TapeReader(write(tmp_path, tell)), "txt", out, ExportOptions(start_ns=5_000_000_000))
    assert out.getvalue().splitlines()[2:] == [
        "-- kubectl get pods -w",
        "(an event of 66 B that is not read here)",
        "ADDED     pod/b",
        "prod/payments$ kubectl get pod c",
        "[allow] rule=readers",
        "  GET /api/v1/namespaces/payments/pods/c  200  31.0 ms",
        "  -- kubectl get pod late  200  10.06 s",
        "  {",
        '    "a": 1',
        "  }",
        "-- kubectl get pods -w",
        "[200 OK, 10.06 s, 100 B]",
        "-- session closed: idle",
    ]


def drawn(player: Player, n: int) -> str:
    """What a jump to behind record n puts on the screen."""
    out = player.terminal._out
    os.lseek(out, 0, os.SEEK_SET)
    os.ftruncate(out, 0)
    player._draw(Spot(n, player.index.time_of(n)))
    os.lseek(out, 0, os.SEEK_SET)
    return os.read(out, 1_000_000).decode()


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[int]:
    out = os.open(tmp_path / "screen", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    yield out
    os.close(out)


def test_jumps_draw_what_playing_shows(tmp_path: Path, screen: int) -> None:
    path = write(tmp_path, http_tapes.day)
    player = Player(TapeReader(path), ReplayOptions(columns=110), screen, None, timed=True)
    everything = played(path, tmp_path, columns=110)
    commands = 0
    for n in range(player.tape.next_record):
        text = re.sub("\x1b\\[[0-9;]*[mHJ]", "", drawn(player, n)).replace("\r\n", "\n")
        here = player.index.at(n)
        commands = 0 if here is None else here.ordinal + 1
        assert player._transcript.count == commands
        last = text.rstrip("\n").rsplit("\n", 1)[-1].removesuffix("half a ")
        assert last[:60] in everything or last.startswith("-- "), (n, last)
    assert commands == 16


def test_twenty_thousand_exchanges_open_and_jump_at_once(tmp_path: Path, screen: int) -> None:
    """A guard by CPU time against reading all of the tape for one jump, or all of a list for one flow."""

    def tell(api: Api) -> None:
        for i in range(20_000):
            asked = api.ask(f"kubectl get pod p{i}", path=f"{PODS}/p{i}", objects=(f"payments/pods/p{i}",))
            api.head(asked[0])
            api.result(asked[1], asked[0], bytes=20)

    tape = TapeReader(write(tmp_path, tell))
    began = time.process_time()
    finder = FlowFinder(tape, TapeIndex(tape))
    for number in (0, 19_999, 10_000, 5):
        found = finder.find(number)
        assert found is not None and found.text == f"kubectl get pod p{number}"
    assert time.process_time() - began < 1.0
    player = Player(tape, ReplayOptions(), screen, None, timed=True)
    began = time.process_time()
    for n in (99_000, 50_000, 12):
        assert f"kubectl get pod p{n // 5 - 1}" in drawn(player, n)
    assert time.process_time() - began < 1.5


# -- streams of Kubernetes --------------------------------------------------------------------------------


def test_an_exec_is_a_terminal_whose_size_comes_late(tmp_path: Path, screen: int) -> None:
    tape = TapeReader(write(tmp_path, http_tapes.an_exec, http=False))
    flow = FlowFinder(tape, TapeIndex(tape)).find(0)
    assert flow is not None and (flow.terminal, flow.columns, flow.rows) == (True, 120, 40)
    player = Player(tape, ReplayOptions(columns=110), screen, None, timed=True)
    assert player.tty and player.streams.size() == (120, 40)
    text = drawn(player, tape.next_record - 2)
    assert "\x1b[32m/app\x1b[0m # ls\r\n\x1b[34mbin" in text
    assert "[exit 0, 3.00 s, 60 B]" in text


def test_an_exec_as_text(tmp_path: Path) -> None:
    assert lines(tmp_path, http_tapes.an_exec, http=False) == [
        "prod/payments$ kubectl exec -it api -c api -- sh",
        "[allow] rule=readers",
        "/app # ls",
        "bin",
        "/app # ",
        "[exit 0, 3.00 s, 60 B]",
    ]


def test_an_exec_without_a_terminal(tmp_path: Path) -> None:
    def tell(api: Api) -> None:
        said = {"verb": "exec", "kind": "execute", "text": "kubectl exec api -- make", "flow": 0}
        n = api.tape.append(USER, Kind.COMMAND, pack(said), said)
        api.verdict(n)
        api.tape.append(OUT, Kind.WIRE, b"made\n", flow=0)
        api.tape.append(ERR, Kind.WIRE, b"a warning\n", flow=0)
        end = {"command": n, "tag": "exit 7", "flow": 0, "exit": 7, "bytes": 15, "sent": 0, "count": 0}
        api.tape.append(GATE, Kind.RESULT, pack(end))

    assert lines(tmp_path, tell, http=False)[2:] == ["made", "a warning", "[exit 7, 0.0 ms, 15 B]"]


def test_a_copy_lists_its_files(tmp_path: Path) -> None:
    assert lines(tmp_path, http_tapes.copy_out, http=False) == [
        "prod/payments$ kubectl cp -n payments api:/var/log .",
        "[allow] rule=readers",
        f"get log/access.log  12.3 MiB  sha256 {SHA256[:12]}",
        f"get log/error.log  0 B  sha256 {SHA256[:12]}",
        "get log/old  (directory)  0 B",
        "tar: removing leading '/'",
        "[exit 0, 500.0 ms, 0 B up, 12.3 MiB down]",
    ]


def test_a_port_forward_is_a_line_a_connection(tmp_path: Path) -> None:
    assert lines(tmp_path, http_tapes.forward, http=False) == [
        "prod/payments$ kubectl port-forward -n payments pod/db-0",
        "[allow] rule=readers",
        "connect to port 5432 of pod db-0  [allow] rule=readers",
        "connect to port 5432 of pod db-0  (12.0 KiB up, 3.0 MiB down, 4.00 s)",
        "[DENIED] connect to port 22 of pod db-0  rule=keep-out: not from here - not forwarded",
        "closed  Time: 4.00 s",
    ]
