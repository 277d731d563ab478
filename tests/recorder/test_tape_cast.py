"""Casts and transcripts: valid, timed, complete, and the same every time."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.cast import CastV2, CastV3, Piece
from recorder.cli import export
from recorder.export_options import TEXT_FORMATS, ExportError
from recorder.format import Record
from recorder.tape import ERR, GATE, OUT, USER, Kind
from recorder.transcript import TEXT_LINES_LIMIT, Transcript
from tests.recorder.stories import one_of_everything
from tests.recorder.tapes import Clock, open_tape, pack, recorder


@pytest.fixture
def story(tmp_path: Path) -> Path:
    return one_of_everything(tmp_path)


def exported(path: Path, form: str) -> str:
    out = io.StringIO()
    export(path, form, out)
    return out.getvalue()


def test_transcript(story: Path) -> None:
    text = exported(story, "txt")
    sid = story.name[:26]
    assert (
        text
        == f"""\
REC {sid}  postgres  claude-code/ci-bot for ana@acme -> shop-prod
    2026-09-21 14:13:20 UTC
-- intent: refund order 812
shop-prod=> SELECT id, name, email
shop-prod-> FROM orders LIMIT 200;
[allow] rule=ro mask=[pii.email]
|  id | name            | email                    |
| 101 | Ana             | ###@### masked:pii.email |
| 102 | 李雷            | NULL                     |
|   7 | evil^[]52;c;x^G | ## masked:pii.email      |
  ... 197 more rows recorded (200 rows, 18.4 KiB)  Time: 12.7 ms
shop-prod=> UPDATE orders SET status = 'refunded'
  values: '101', NULL
[hold] rule=writes needs one of: group:oncall  approval A7
[approved] by mia@acme after 41.00 s "ok #812"
[allow] rule=writes
UPDATE 1  Time: 3.1 ms
shop-prod=> SELECT 1/0
[allow] rule=r1
ERROR:  22012: division by zero
HINT:  do not
shop-prod=> DROP TABLE orders;
[DENIED] rule=r1: not today - not forwarded
-- session closed: user left
"""
    )


def test_masked_cells_are_inverse_and_name_their_rule(story: Path) -> None:
    cast = [json.loads(line) for line in exported(story, "asciicast-v2").splitlines()]
    shown = "".join(event[2] for event in cast[1:] if event[1] == "o")
    assert "\x1b[7m###@### masked:pii.email\x1b[0m" in shown
    assert shown.count("\x1b[7m") == 2  # NULL is no masked value
    assert "\x1b[97;41m[DENIED]" in shown
    assert "\x1b[94mSELECT\x1b[0m" in shown
    assert "\x1b]52" not in shown
    assert "secret wire" not in shown


def test_cells_that_a_detector_left_alone_are_not_called_masked() -> None:
    header = {"sid": "S", "protocol": "postgres", "target": "shop"}
    transcript = Transcript(header, color=False, newline="\n")
    said = [
        (Kind.COMMAND, {"verb": "SELECT", "text": "SELECT 1"}),
        (Kind.VERDICT, {"command": 0, "verdict": "allow", "rule": "r", "masks": ["pii", "pii"]}),
        (Kind.MASKMAP, {"command": 0, "fields": [["a", 0, "pii"], ["b", 1, "pii"]], "scanned": [1]}),
        (Kind.RESULT, {"command": 0, "tag": "SELECT 1", "columns": ["a", "b"], "rows": [["x", "y"]], "count": 1}),
    ]
    pieces = [
        piece for n, (kind, what) in enumerate(said) for piece in transcript.feed(Record(n, n, GATE, kind, pack(what)))
    ]
    shown = "".join(piece.text for piece in pieces if piece.code == "o")
    assert "| x masked:pii | y |" in shown
    assert "mask=[pii]" in shown


MARKERS = ["Q1 SELECT", "Q2 UPDATE", "HOLD Q2", "APPROVED mia@acme Q2", "Q3 SELECT", "ERROR 22012 Q3"]
MARKERS += ["Q4 DROP", "DENY Q4", "CLOSE"]


def test_cast_v2(story: Path) -> None:
    lines = exported(story, "asciicast-v2").splitlines()
    header, *events = [json.loads(line) for line in lines]
    assert (header["version"], header["width"], header["height"]) == (2, 110, 32)
    assert header["timestamp"] == 1_790_000_000
    assert header["duration"] == pytest.approx(42.0158)
    assert all(isinstance(t, float) and code in "oimr" and isinstance(data, str) for t, code, data in events)
    times = [event[0] for event in events]
    assert times == sorted(times)
    assert [event[2] for event in events if event[1] == "m"] == MARKERS
    approved = next(event for event in events if "[approved]" in event[2])
    assert approved[0] == pytest.approx(42.0127)
    assert all("\n" not in data.replace("\r\n", "") for _, code, data in events if code == "o")


def test_cast_v3(story: Path) -> None:
    lines = exported(story, "asciicast-v3").splitlines()
    header, *events = [json.loads(line) for line in lines]
    assert header["version"] == 3
    assert header["term"] == {"cols": 110, "rows": 32}
    assert "width" not in header
    assert "duration" not in header
    assert all(t >= 0 and code in "oimrx" and isinstance(data, str) for t, code, data in events)
    assert events[-1][1:] == ["x", "0"]
    assert sum(event[0] for event in events) == pytest.approx(42.016, abs=0.0006)
    assert [event[2] for event in events if event[1] == "m"] == MARKERS


@given(st.lists(st.integers(0, 3_000_000_000), min_size=1, max_size=200))
def test_v3_does_not_drift(steps: list[int]) -> None:
    cast = CastV3()
    now = 0
    shown_ms = 0
    for step in steps:
        now += step
        interval = json.loads(cast.event(Piece(now, "o", "x")))[0]
        shown_ms += round(interval * 1000)
        assert interval >= 0
        assert abs(shown_ms * 1_000_000 - now) <= 500_000  # never more than half a millisecond off


@given(st.lists(st.integers(0, 3_000_000_000), min_size=1, max_size=50))
def test_v2_times_are_absolute(steps: list[int]) -> None:
    cast = CastV2()
    now = 0
    for step in steps:
        now += step
        assert json.loads(cast.event(Piece(now, "o", "x")))[0] == pytest.approx(now / 1e9, abs=1e-6)


@given(st.text())
def test_a_cast_line_is_one_line_of_ascii(text: str) -> None:
    for cast in (CastV2(), CastV3()):
        line = cast.event(Piece(1, "o", text))
        assert line.isascii()
        assert line.count("\n") == 1
        assert json.loads(line)[2] == text


def test_a_terminal_session_is_shown_as_it_was(tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock), protocol="ssh", more={"tty": [80, 24]})
        euro = "€".encode()
        tape.append(OUT, Kind.WIRE, b"\x1b[1mroot#\x1b[0m ls\r\n" + euro[:1])
        clock.pass_ms(500)
        tape.append(OUT, Kind.WIRE, euro[1:] + b" \x1b]52;c;evil\x07done\xff\r\n")
        tape.append(ERR, Kind.WIRE, b"oops\r\n")
        tape.append(USER, Kind.WIRE, b"typed password")
        tape.append(GATE, Kind.RESIZE, pack([132, 43]))
        await tape.close("closed")
        return tape.path

    path = asyncio.run(scenario())
    header, *events = [json.loads(line) for line in exported(path, "asciicast-v2").splitlines()]
    assert (header["width"], header["height"]) == (80, 24)
    assert [e[1:] for e in events[1:5]] == [
        ["o", "\x1b[1mroot#\x1b[0m ls\r\n"],
        ["o", "€ done\ufffd\r\n"],
        ["o", "oops\r\n"],
        ["r", "132x43"],
    ]
    text = exported(path, "txt")
    assert "root# ls\n€ done\ufffd\noops\n" in text
    assert "typed password" not in text


def test_pipelined_results_name_their_command() -> None:
    transcript = Transcript({"protocol": "postgres", "target": "t"}, color=False, newline="\n")
    for n in (0, 1):
        transcript.feed(Record(n, 0, USER, Kind.COMMAND, pack({"verb": "SELECT", "text": f"SELECT {n}"})))
    result = {"command": 0, "tag": "SELECT 1", "count": 1, "bytes": 1}
    pieces = transcript.feed(Record(2, 5_000_000, GATE, Kind.RESULT, pack(result)))
    assert pieces[0].text == "Q1 SELECT 1  Time: 5.0 ms\n"


def test_a_long_statement_is_cut_with_a_count() -> None:
    transcript = Transcript({"protocol": "postgres", "target": "t"}, color=False, newline="\n")
    text = "\n".join(str(i) for i in range(TEXT_LINES_LIMIT + 7))
    pieces = transcript.feed(Record(0, 0, USER, Kind.COMMAND, pack({"verb": "SELECT", "text": text})))
    lines = pieces[1].text.splitlines()
    assert len(lines) == TEXT_LINES_LIMIT + 1
    assert lines[-1].endswith("... 7 more lines recorded")


junk = st.recursive(
    st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=5), st.binary(max_size=5), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
)
KEYS = ["command", "verdict", "rule", "masks", "state", "approvers", "fields", "columns", "rows", "count", "bytes"]
KEYS += ["error", "text", "verb", "values", "label", "status", "reason", "id", "by", "tag", "exact"]


@given(st.lists(st.tuples(st.integers(1, 12), st.dictionaries(st.sampled_from(KEYS), junk, max_size=6)), max_size=12))
def test_a_transcript_survives_whatever_is_on_the_tape(items: list[tuple[int, dict[str, Any]]]) -> None:
    for color in (True, False):
        transcript = Transcript({"protocol": "postgres", "target": "t", "more": {"tty": 1}}, color=color)
        for n, (kind, said) in enumerate(items):
            for piece in transcript.feed(Record(n, n, OUT, kind, pack(said))):
                assert piece.text
                assert color or "\x1b" not in piece.text


def test_text_formats(story: Path) -> None:
    for form in TEXT_FORMATS:
        if form != "har":
            assert exported(story, form), form
    with pytest.raises(ExportError, match="there are asciicast-v2"):
        exported(story, "gif")
