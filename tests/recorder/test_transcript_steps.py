"""The transcript's finer points: steps of prepared commands, columns without room, long texts, values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from recorder.export_steps import Steps
from recorder.format import PAYLOAD_LIMIT, Record
from recorder.tape import GATE, USER, Kind
from recorder.transcript import TEXT_LIMIT, VALUE_LIMIT, Transcript, value_text
from tests.recorder.tapes import pack

HEADER = {"sid": "S", "protocol": "postgres", "target": "shop"}
ALLOW = {"verdict": "allow", "rule": "ro", "masks": ["pii"]}
Said = tuple[int, Mapping[str, Any] | bytes]


def told(*said: Said, columns: int = 110, header: Mapping[str, Any] = HEADER) -> tuple[str, list[str]]:
    """The text, and the markers."""
    transcript = Transcript(header, color=False, newline="\n", columns=columns)
    pieces = []
    for n, (kind, what) in enumerate(said):
        payload = what if isinstance(what, bytes) else pack(what)
        pieces += transcript.feed(Record(n, n * 1_000_000, USER if kind == Kind.WIRE else GATE, kind, payload))
    return (
        "".join(piece.text for piece in pieces if piece.code == "o"),
        [piece.text for piece in pieces if piece.code == "m"],
    )


def step(message: bytes, text: str, n: int, verdict: Mapping[str, Any] = ALLOW, **more: Any) -> list[Said]:
    """A message, its COMMAND, which is record n, and the verdict."""
    return [
        (Kind.WIRE, message + b"..."),
        (Kind.COMMAND, {"verb": "SELECT", "text": text, **more}),
        (Kind.VERDICT, {"command": n, **verdict}),
    ]


def test_the_steps_of_a_command_are_a_line_each() -> None:
    text, markers = told(
        *step(b"P", "SELECT $1", 1),
        *step(b"B", "SELECT $1", 4, values=["1", None]),
        *step(b"E", "SELECT $1", 7, values=["1", None]),
        *step(b"B", "SELECT $1", 10, values=["it's"]),
        *step(b"E", "SELECT $1", 13, values=["it's"]),
        (Kind.RESULT, {"command": 7, "tag": "SELECT 1", "columns": ["a"], "rows": [["x"]], "count": 1, "bytes": 9}),
        (Kind.RESULT, {"command": 10, "tag": "SKIPPED", "count": 0, "bytes": 0}),
        (Kind.RESULT, {"command": 13, "tag": "SELECT 1", "columns": ["a"], "rows": [["y"]], "count": 1, "bytes": 9}),
    )
    assert (
        text
        == """\
shop=> SELECT $1   (prepare)
[allow] rule=ro mask=[pii]
  Q2 bind: '1', NULL
  Q3 run
  Q4 bind: 'it''s'
  Q5 run
Q3:
| a |
| x |
(1 row, 9 B)  Time: 7.0 ms
Q4 SKIPPED
| a |
| y |
(1 row, 9 B)  Time: 3.0 ms
"""
    )
    assert markers == ["Q1 SELECT"]


def test_whole_commands_and_other_texts_are_never_steps() -> None:
    text, markers = told(
        *step(b"Q", "SELECT 1", 1),
        *step(b"Q", "SELECT 1", 4),
        *step(b"B", "SELECT 2", 7, values=["1"]),
        *step(b"P", "SELECT 2", 10),
    )
    assert [line for line in text.splitlines() if line.startswith("shop")] == [
        "shop=> SELECT 1",
        "shop=> SELECT 1",
        "shop=> SELECT 2   (bind)",
        "shop=> SELECT 2   (prepare)",
    ]
    assert text.count("[allow]") == 4
    assert len(markers) == 4


@pytest.mark.parametrize(
    "verdict",
    [
        {"verdict": "allow", "rule": "other"},
        {"verdict": "allow", "rule": "ro", "masks": []},
        {"verdict": "deny", "rule": "ro", "reason": "no"},
        {"verdict": "allow", "rule": "ro", "masks": ["pii"], "approval": "A7"},
    ],
)
def test_another_verdict_on_a_step_is_said(verdict: Mapping[str, Any]) -> None:
    text, _ = told(*step(b"P", "SELECT 1", 1), *step(b"E", "SELECT 1", 4, verdict), *step(b"E", "SELECT 1", 7, verdict))
    lines = text.splitlines()
    assert lines[2] == "  Q2 run"
    assert lines[3].startswith("[DENIED]" if verdict["verdict"] == "deny" else "[allow]")
    assert verdict["verdict"] == "allow" or lines[5].startswith("[DENIED]"), "a denial is said each time"


def test_no_other_protocol_has_steps() -> None:
    header = {**HEADER, "protocol": "ssh"}
    text, _ = told(*step(b"P", "ls", 1), *step(b"E", "ls", 4), header=header)
    assert text.count("shop$ ls") == 2


def test_a_message_over_the_limit_goes_on_in_the_next_record() -> None:
    steps = Steps("postgres")
    steps.feed(Record(0, 0, USER, Kind.WIRE, b"P" + b"x" * (PAYLOAD_LIMIT - 1)))
    steps.feed(Record(1, 0, USER, Kind.WIRE, b"E and so on"))
    found = steps.feed(Record(2, 0, USER, Kind.COMMAND, pack({"verb": "SELECT", "text": "x"})))
    assert found is not None
    assert (found.phase, found.typed) == ("prepare", True)
    found = steps.feed(Record(3, 0, USER, Kind.COMMAND, pack({"verb": "SELECT", "text": "x"})))
    assert found is not None
    assert (found.phase, found.typed) == ("run", False)


def test_columns_without_room_are_named_and_say_that_they_are_masked() -> None:
    names = [f"column_{i}" for i in range(20)]
    said: list[Said] = [
        (Kind.COMMAND, {"verb": "SELECT", "text": "SELECT 1"}),
        (Kind.MASKMAP, {"command": 0, "fields": [["column_2", 2, "pii"], ["column_5", 5, "evil\n\x1b[2J"]]}),
        (Kind.RESULT, {"command": 0, "columns": names, "rows": [["x"] * 20], "count": 1, "bytes": 9}),
    ]
    text, _ = told(*said, columns=40)
    assert "| column_0 | column_1 | +18\n" in text
    assert "no room for column_2 masked:pii, column_3, column_4, column_5 masked:evil ^[[2J, column_6," in text
    assert "column_9 and 10 more)  Time" in text
    wide, _ = told(*said, columns=1000)
    assert "no room" not in wide


def test_a_copy_says_what_was_masked_in_it() -> None:
    text, _ = told(
        (Kind.COMMAND, {"verb": "COPY", "text": "COPY t TO STDOUT"}),
        (Kind.MASKMAP, {"command": 0, "fields": [["email", 2, "pii"], ["free", 3, "cards"]], "scanned": [3]}),
        (Kind.RESULT, {"command": 0, "tag": "COPY 6", "count": 6, "bytes": 457}),
    )
    assert "COPY 6  (457 B; email masked:pii)  Time: 2.0 ms\n" in text


def test_a_long_line_is_cut_with_a_count() -> None:
    for length, rest in ((TEXT_LIMIT, ""), (TEXT_LIMIT + 1, "shop-> ... 1 more character recorded\n")):
        text, _ = told((Kind.COMMAND, {"verb": "INSERT", "text": "x" * length}))
        assert text == f"shop=> {'x' * TEXT_LIMIT}\n{rest}"
    lines = "\n".join(["x" * 30] * 2000)
    text, _ = told((Kind.COMMAND, {"verb": "INSERT", "text": lines}))
    assert text.endswith("... 1600 more lines recorded\n")


def test_values_are_as_sql_has_them() -> None:
    assert value_text(None) == "NULL"
    assert value_text("it's \\x00") == "'it''s \\x00'"
    assert value_text(b"\xff\x1b") == "'\ufffd^['"
    assert value_text(7) == "7"
    assert value_text("x" * VALUE_LIMIT) == f"'{'x' * VALUE_LIMIT}'"
    assert value_text("x" * 1_000_000) == f"'{'x' * (VALUE_LIMIT - 1)}…' (1000000 characters)"
    assert value_text("李" * VALUE_LIMIT).endswith(f"…' ({VALUE_LIMIT} characters)")


def test_the_banner_says_where_and_when() -> None:
    more = {"wall0_ns": 1_790_000_000_000_000_000, "run": "r-7", "more": {"database": "orders"}}
    (piece,) = Transcript({**HEADER, **more}, color=False, newline="\n").banner()
    assert piece.text == "REC S  postgres  ? -> shop/orders\n    2026-09-21 14:13:20 UTC  run r-7\n"
    for wrong in (10**30, -(10**30), "x", None):
        (piece,) = Transcript({**HEADER, "wall0_ns": wrong}, color=False, newline="\n").banner()
        assert piece.text == "REC S  postgres  ? -> shop\n"


def test_selectors_of_emoji_do_not_move_the_columns() -> None:
    text, _ = told(
        (Kind.COMMAND, {"verb": "SELECT", "text": "SELECT 1"}),
        (Kind.RESULT, {"command": 0, "columns": ["a", "b"], "rows": [["❤\ufe0f", "x"], ["y", "z"]], "count": 2}),
    )
    assert "| ❤ | x |\n| y | z |\n" in text
