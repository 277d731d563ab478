"""The options of replay, and what the player writes by itself: pure functions."""

from __future__ import annotations

import argparse
import asyncio
import io
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from recorder.escape import width
from recorder.player_arguments import add_arguments
from recorder.player_options import BadOption, ReplayOptions, from_arguments, place_ns
from recorder.player_screen import Status, afresh, clock_text, help_screen, last_lines, status_line, time_of_day
from recorder.reader import TapeReader
from recorder.replay import print_markers
from recorder.table import wrapped
from recorder.tape import GATE, Kind
from tests.recorder.tapes import Clock, command, open_tape, pack, recorder

WALL0_NS = 1_795_251_600_500_000_000  # 2026-11-21T09:00:00.5Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90.5", 90.5),
        ("90s", 90),
        ("5m", 300),
        ("2h", 7200),
        ("250ms", 0.25),
        ("1:30", 90),
        ("01:02:03.5", 3723.5),
        ("2026-11-21T09:01:00Z", 59.5),
        ("2026-11-21T10:01:00+01:00", 59.5),
        ("2026-11-21 09:01", 59.5),
        ("2026-11-21T08:00:00Z", 0),
    ],
)
def test_places(text: str, seconds: float) -> None:
    assert place_ns(text, WALL0_NS) == pytest.approx(seconds * 1e9, abs=1)


@pytest.mark.parametrize("text", ["", "soon", "-5", "1:2:3:4", "5 m", "1:3", "2026-13-01", "9" * 400, "nan"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(BadOption, match="no time"):
        place_ns(text, WALL0_NS)


def parsed(*arguments: str) -> ReplayOptions:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(arguments))


def test_arguments() -> None:
    assert parsed() == ReplayOptions()
    found = parsed(
        "--speed", "4", "--idle-limit", "2s", "--command", "7", "--to", "5m", "--no-color", "--raw", "--plain"
    )
    assert found == ReplayOptions(4.0, 2.0, command=7, stop="5m", color=False, raw=True, plain=True)
    for wrong in (("--speed", "0"), ("--speed", "65"), ("--speed", "nan"), ("--command", "0"), ("--to", "x")):
        with pytest.raises(BadOption):
            parsed(*wrong)


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ReplayOptions().wants_color(True)
    assert not ReplayOptions().wants_color(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not ReplayOptions().wants_color(True)
    assert ReplayOptions(color=True).wants_color(True)


def test_the_status_line_fits() -> None:
    status = Status(True, 65 * 10**9, 3700 * 10**9, 3, 12, 0.5, note="evil\x1b]52;c;x\x07\nnote")
    assert status.text() == "PAUSED  01:05 / 1:01:40   Q3 of 12   0.5x   evil^[]52;c;x^G note"
    for columns in (4, 20, 200):
        line = status_line(status, columns, 24, color=True)
        shown = line.removeprefix("\x1b7\x1b[24;1H\x1b[0;7m\x1b(B").removesuffix("\x1b[0m\x1b[K\x1b8")
        assert width(shown) == columns - 1
    timed = replace(status, wall="08:58:54Z", note="")
    assert timed.text() == "PAUSED  01:05 / 1:01:40   08:58:54Z   Q3 of 12   0.5x   ? help"
    assert timed.text(62) == timed.text()
    assert timed.text(61) == "PAUSED  01:05 / 1:01:40   Q3 of 12   0.5x   ? help"
    assert clock_text(59_999_999_999) == "00:59"
    assert time_of_day(1_790_000_000_999_999_999) == "14:13:20Z"
    assert all(width(line) <= 40 for line in help_screen(40).split("\r\n")[1:])


def test_last_lines() -> None:
    text = "".join(f"{i}\r\n" for i in range(10))
    assert last_lines(text, "\r\n", 3) == ("7\r\n8\r\n9\r\n", True)
    assert last_lines(text, "\r\n", 10) == (text, False)
    assert last_lines("a", "\r\n", 1) == ("a", False)


def test_a_screen_is_drawn_from_where_it_began_afresh() -> None:
    assert afresh("old\x1b[2Jnew", 24) == "\x1b[2Jnew"
    enter, leave = "\x1b[?1049h", "\x1b[?1049l"
    assert afresh(f"shell{enter}vi\x1b[2Jscreen", 24) == f"shell{enter}\x1b[2Jscreen", "on the screen that it was on"
    assert afresh(f"shell{enter}vi{leave}more", 24) == "shellmore", "as if the editor had never been"
    assert afresh(f"of an editor{leave}more", 24) == "more"
    assert afresh(f"a{enter}b{leave}c{enter}d", 24) == f"ac{enter}d"
    assert afresh(enter * 60_000 + "x", 24).endswith("x"), "and it takes no time"
    lines = "".join(f"{i}\r\n" for i in range(100))
    assert afresh(lines, 2).startswith("92\r\n"), "a few screens of lines"
    assert afresh("few\r\n", 24) == "few\r\n"


def test_long_lists_are_wrapped() -> None:
    items = [str(i) * 5 for i in range(9)] + ["李" * 30]
    lines = wrapped("  values: ", items, 40)
    assert " ".join(lines).split() == ["values:", *(f"{item}," for item in items[:-1]), items[-1]]
    assert all(width(line) <= 40 for line in lines[:-1])
    assert all(line.startswith(" " * 10) for line in lines[1:])
    assert wrapped("  values: ", ["1"], 40) == ["  values: 1"]


DENY = "   01:01.000  Q2      DENY       rule=r1: not today"
ERROR = "   01:10.000  Q2      ERROR      22012 division^[[31m by zero"


def test_the_list_of_markers(tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock))
        command(tape, "SELECT 1")
        clock.pass_ms(61_000)
        n = command(tape, "DROP TABLE x", verdict="deny")
        clock.pass_ms(9000)
        error = {"code": "22012", "message": "division\x1b[31m by\nzero"}
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "", "error": error}))
        await tape.close("closed")
        return tape.path

    tape = TapeReader(asyncio.run(scenario()))
    for options, lines in (
        (
            ReplayOptions(),
            [DENY, ERROR],
        ),
        (ReplayOptions(start="62s"), [ERROR]),
        (
            ReplayOptions(start="1:01"),
            [DENY, ERROR],
        ),
        (ReplayOptions(stop="1:02"), [DENY]),
    ):
        out = io.StringIO()
        with redirect_stdout(out):
            print_markers(tape, options)
        assert out.getvalue().splitlines() == lines
