"""The model of the screen, the cues in the output, and the names of the keys."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.terminal.cues import LOOK_BACK_LIMIT, Cue, Cues
from proxy.terminal.keys import SEQUENCE_LIMIT, KeyKind, Keys
from proxy.terminal.lines import BACKLOG_LIMIT, KEPT_BYTES, Backlog
from proxy.terminal.screen import COLUMNS_LIMIT, ROWS_LIMIT, WORK_LIMIT, Screen, width_of


def rows(data: bytes, columns: int = 10, height: int = 4) -> list[str]:
    screen = Screen(columns, height)
    screen.feed(data)
    return [screen.text(y).rstrip() for y in range(len(screen.rows))]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"abc\r\ndef", ["abc", "def"]),
        (b"abc\rX", ["Xbc"]),
        (b"abc\b\bX", ["aXc"]),
        (b"a\tb", ["a       b"]),
        (b"0123456789ab", ["0123456789", "ab"]),
        (b"0123456789\r\nab", ["0123456789", "ab"]),
        (b"0123456789\b\bX", ["0123456X89"]),  # the cursor waits behind the margin
        (b"\x1b[?7l0123456789abc", ["012345678c"]),
        (b"abcdef\x1b[3D\x1b[K", ["abc"]),
        (b"abcdef\x1b[3D\x1b[1K", ["    ef"]),
        (b"abcdef\x1b[2K", [""]),
        (b"abcdef\x1b[4D\x1b[2P", ["abef"]),
        (b"abcdef\x1b[4D\x1b[2@", ["ab  cdef"]),
        (b"abcdef\x1b[4D\x1b[2X", ["ab  ef"]),
        (b"abc\r\x1b[4hXY\x1b[4lZ", ["XYZbc"]),
        (b"a\r\nb\r\nc\x1b[2;1H\x1b[L", ["a", "", "b", "c"]),
        (b"a\r\nb\r\nc\x1b[1;1H\x1b[M", ["b", "c", "", ""]),
        (b"a\r\nb\r\nc\r\nd\r\ne", ["b", "c", "d", "e"]),
        (b"a\r\nb\r\nc\r\nd\x1b[1;3r\x1b[3;1H\n", ["b", "c", "", "d"]),
        (b"a\r\nb\r\nc\r\nd\x1b[2;3r\x1b[3;1H\n", ["a", "c", "", "d"]),
        (b"a\r\nb\x1b[1;1H\x1bM", ["", "a", "b", ""]),
        (b"abc\r\ndef\x1b[1;2H\x1b[J", ["a"]),
        (b"abc\x1b7\r\nx\x1b8d", ["abcd", "x"]),
        (b"abc\x1bcd", ["d"]),
        (b"\x1b[2;3Hx", ["", "  x"]),
        (b"\x1b[5Gx\x1b[2dy", ["    x", "     y"]),
        (b"-\x1b[4b", ["-----"]),
        ("世界e\u0301".encode(), ["世界e\u0301"]),
        ("012345678世".encode(), ["012345678", "世"]),
        (b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1bPq\x1b\\c", ["abc"]),
        (b"a\x1b[2;1\x1b[mb", ["ab"]),  # a sequence that another one breaks off
        (b"a\x1b(Bb\x1b[3 qc\x1b[>4;2md\x1b=e", ["abcde"]),
        (b"\xff\xfea", ["\ufffd\ufffda"]),
    ],
)
def test_it_shows_what_a_terminal_shows(data: bytes, expected: list[str]) -> None:
    assert rows(data) == expected
    screen = Screen(10, 4)
    for byte in data:
        screen.feed(bytes([byte]))
    assert [screen.text(y).rstrip() for y in range(len(screen.rows))] == expected


def test_it_knows_which_rows_go_on() -> None:
    screen = Screen(10, 6)
    screen.feed("0123456789ab\r\n012345678世\r\nx".encode())
    assert [screen.goes_on(y) for y in range(len(screen.rows))] == [True, False, True, False, False]


def test_it_keeps_the_mark_in_place_while_it_scrolls() -> None:
    screen = Screen(10, 3)
    screen.feed(b"a\r\n$ \x1b]133;B\x07ls\r\nx\r\ny")
    assert screen.mark == (0, 2)
    assert screen.scrolled == 1


@pytest.mark.parametrize("code", ["90", "2", "38;5;8", "38;5;240", "38;2;85;85;85", "1;90"])
def test_it_knows_grey(code: str) -> None:
    screen = Screen(10, 1)
    screen.feed(f"a\x1b[{code}mb\x1b[0mc".encode())
    assert screen.rows[0].grey[:4] == b"\x00\x01\x00\x00"


@pytest.mark.parametrize("code", ["31", "38;5;9", "38;5;255", "38;2;85;200;85", "48;5;240", "0"])
def test_it_knows_what_is_not_grey(code: str) -> None:
    screen = Screen(10, 1)
    screen.feed(f"\x1b[{code}mb".encode())
    assert screen.rows[0].grey[:1] == b"\x00"


@pytest.mark.parametrize(
    ("char", "width"), [("a", 1), ("é", 1), ("世", 2), ("😀", 2), ("\u0301", 0), ("\u200d", 0), ("\x85", -1)]
)
def test_widths(char: str, width: int) -> None:
    assert width_of(char) == width


@pytest.mark.parametrize("columns", [COLUMNS_LIMIT - 1, COLUMNS_LIMIT, COLUMNS_LIMIT + 1])
def test_columns_are_limited(columns: int) -> None:
    screen = Screen(columns, 10**9)
    assert screen.columns == min(columns, COLUMNS_LIMIT)
    assert screen.height == ROWS_LIMIT


def test_work_is_limited_and_told() -> None:
    screen = Screen(1000, 24)
    assert screen.feed(b"x" * 1000)
    assert not screen.feed(b"\x1b[99L" * (WORK_LIMIT // 1000))
    assert screen.feed(b"\r\nagain")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 12), st.integers(1, 6), st.lists(st.integers(1, 30), max_size=3))
def test_any_bytes_leave_a_screen_in_shape(data: bytes, columns: int, height: int, sizes: list[int]) -> None:
    screen = Screen(columns, height)
    for size in [columns, *sizes]:
        screen.resize(size, height)
        screen.feed(data.replace(b"0", b"\x1b[").replace(b"1", b"\n"))
        assert 1 <= len(screen.rows) <= height
        assert 0 <= screen.x < size and 0 <= screen.y < len(screen.rows)
        assert all(len(row.cells) == len(row.grey) == size for row in screen.rows)


CUES = [
    (b"\x1b[?2004h", Cue("editor-on")),
    (b"\x1b[?2004l", Cue("editor-off")),
    (b"\x1b[?1049h", Cue("alternate-on")),
    (b"\x1b[?25;47;7l", Cue("alternate-off")),
    (b"\x1bc", Cue("alternate-off")),
    (b"\x1b]133;A\x07", Cue("prompt")),
    (b"\x1b]633;C;x=1\x1b\\", Cue("run")),
    (b"\x1b]133;D;17;aid=1\x07", Cue("exit", "17")),
    (b"\x1b]133;D\x07", Cue("exit")),
    (b"\x1b]133;D;no\x07", Cue("exit")),
]


@pytest.mark.parametrize(("data", "cue"), CUES)
def test_cues_are_found_wherever_they_are_cut(data: bytes, cue: Cue) -> None:
    whole = b"before" + data + b"behind"
    for cut in range(len(whole) + 1):
        cues = Cues()
        pieces = [*cues.split(whole[:cut]), *cues.split(whole[cut:])]
        assert [each for _, found in pieces for each in found] == [cue]
        assert b"".join(piece for piece, _ in pieces) == whole


@pytest.mark.parametrize(
    "data", [b"\x1b[?25h", b"\x1b[2004h", b"\x1b]133;B\x07", b"\x1b[?20049h", b"\x1b[?1049$p", b"2004h"]
)
def test_what_is_no_cue(data: bytes) -> None:
    assert list(Cues().split(data)) == [(data, ())]


@pytest.mark.parametrize("size", [LOOK_BACK_LIMIT - 1, LOOK_BACK_LIMIT, LOOK_BACK_LIMIT + 1, 100_000])
def test_the_look_back_is_bounded(size: int) -> None:
    cues = Cues()
    held = size
    for byte in b"\x1b]133;A;" + b"x" * size:
        held -= sum(len(piece) for piece, _ in cues.split(bytes([byte])))
    assert held <= LOOK_BACK_LIMIT


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*(data for data, _ in CUES), b"x", b"\x1b", b"\x1b[", b"\x1b]", b"133;", b"\r\n"]), max_size=9
    )
)
def test_no_output_is_lost_in_cues(parts: list[bytes]) -> None:
    cues = Cues()
    end = b"." * (LOOK_BACK_LIMIT + 2)  # lets go of what is kept back
    pieces = [piece for part in [*parts, end] for piece, _ in cues.split(part)]
    assert b"".join(pieces) == b"".join(parts) + end


def names(data: bytes, pastes: bool = True) -> list[tuple[KeyKind, bytes]]:
    keys, found, position = Keys(), [], 0
    while position < len(data):
        kind, end = keys.next(data, position, pastes)
        found.append((kind, data[position:end]))
        position = end
    return found


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (b"abc", ["text"]),
        (b"a\x7f", ["text", "control"]),
        (b"\x1b[A", ["part", "part", "edit"]),
        (b"\x1bb", ["part", "edit"]),
        (b"\x1bOA", ["part", "part", "edit"]),
        (b"\x1bOM", ["part", "part", "submit"]),
        (b"\x1b\r", ["part", "submit"]),
        (b"\x1b[13\r", ["part", "part", "part", "part", "submit"]),
        (b"\x1b[I", ["part", "part", "report"]),
        (b"\x1b[1;2R", ["part"] * 5 + ["report"]),
        (b"\x1b[97;5u", ["part"] * 6 + ["edit"]),
        (b"\x1b]0\r", ["part", "edit", "text", "submit"]),
        (b"\x1b[200~\ra\x1b[A\x1b[201~\r", ["part"] * 5 + ["paste-start", "paste"] + ["part"] * 2 + ["paste"]
         + ["part"] * 5 + ["paste-end", "submit"]),
    ],
)  # fmt: skip
def test_keys_have_names(data: bytes, kinds: list[KeyKind]) -> None:
    assert [kind for kind, _ in names(data)] == kinds


def test_a_paste_need_not_be_honoured() -> None:
    assert [kind for kind, _ in names(b"\x1b[200~a\r\x1b[201~", pastes=False)][5:8] == ["paste-start", "text", "submit"]


def test_a_key_is_no_longer_than_its_limit() -> None:
    for digits, whole in ((SEQUENCE_LIMIT - 3, True), (SEQUENCE_LIMIT - 2, True), (SEQUENCE_LIMIT - 1, False)):
        found = names(b"\x1b[" + b"1" * digits + b"R")
        assert found[-1] == ("report" if whole else "text", b"R")


@pytest.mark.parametrize("size", [BACKLOG_LIMIT - 1, BACKLOG_LIMIT, BACKLOG_LIMIT + 1])
def test_a_backlog_is_bounded(size: int) -> None:
    backlog = Backlog(80, 24)
    for _ in range(size // 64):
        backlog.add(b"x" * 64)
    backlog.add(b"x" * (size % 64))
    assert backlog.clipped == (size > BACKLOG_LIMIT)
    backlog.restart(b"y" * (KEPT_BYTES + 1))
    assert backlog.clipped
