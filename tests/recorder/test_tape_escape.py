"""Nothing that a target printed acts on the terminal of whoever replays it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.escape import STRING_LIMIT, TerminalFilter, clip, visible, width
from recorder.format import OUT, Kind, Record
from recorder.transcript import Transcript

# What may leave the filter: written independently of it.
CURSOR_AND_COLOUR = set("ABCDEFGHJKLMPSTX@abdefmrsu`")
MODES = {"7", "25", "47", "1047", "1048", "1049"}


def harm(text: str, moves: bool = True) -> str:
    """What of the text acts on a terminal beyond its picture: a tiny parser of ECMA-48, for what may leave only."""
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character in "\b\t\n\r" or (character >= " " and not "\x7f" <= character <= "\x9f"):
            continue
        if character != "\x1b" or not moves:
            return f"{character!r} at {at - 1}"
        following = text[at : at + 1]
        at += 1
        if following in ("7", "8", "D", "E", "M"):
            continue
        if following == "(" and text[at : at + 1] in ("0", "B"):
            at += 1
            continue
        end = at
        while end < len(text) and text[end] in "0123456789;:?":
            end += 1
        parameters, final = text[at:end], text[end : end + 1]
        at = end + 1
        if following != "[":
            return f"ESC {following!r}"
        if final and final in "hl" and parameters[:1] == "?" and set(parameters[1:].split(";")) <= MODES:
            continue
        numbers = re.split("[;:]", parameters)
        if final not in CURSOR_AND_COLOUR or "?" in parameters or max(map(len, numbers)) > 5:
            return f"CSI {parameters!r} {final!r}"
        if final == "T" and len(numbers) > 1:
            return "mouse tracking"
    return ""


nasty = st.lists(
    st.one_of(
        st.sampled_from(
            ["\x1b", "\x1b[", "\x1b]", "\x1bP", "\x9b", "\x9d", "\x90", "\x07", "\x1b\\", "\x9c", "\x18", "(", "0"]
        ),
        st.sampled_from(["52;c;", "?1049", "6n", "c", "31m", ";", "?", ">", " ", "q", "2J", "h", "t", "b", "8"]),
        st.text(max_size=3),
    ),
    max_size=30,
).map("".join)


@pytest.mark.parametrize(
    ("evil", "left"),
    [
        ("a\x1b]52;c;ZXZpbA==\x07b", "ab"),  # sets the clipboard
        ("a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"),
        ("a\x9d52;c;x\x9cb", "ab"),  # the same in C1
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1bP+q544e\x1b\\b", "ab"),  # DCS: asks for capabilities, and is answered on the viewer's input
        ("a\x1b_payload\x1b\\b\x1b^pm\x1b\\c\x1bXsos\x1b\\d", "abcd"),
        ("a\x1bktitle\x1b\\b", "ab"),
        ("a\x1b[6nb\x1b[cb\x1b[>cb\x1b[?6nb\x1b[5nb\x1b[21tb", "abbbbbb"),  # queries
        ("a\x1b[>4;2mb", "ab"),  # changes what the viewer's keys send
        ("a\x1b[?1000hb\x1b[?2004hb\x1b[4hb", "abbb"),  # mouse, paste, insert mode
        ("a\x1b[!pb\x1b[1 qb", "abb"),  # a soft reset, cursor shapes
        ("a\x1bcb", "a\x1b[0m\x1b(B\x1b[r\x1b[?25h\x1b[?7h\x1b[H\x1b[2Jb"),  # a full one: the same picture
        ("a\x1b[1;2;3;4;5Tb\x1b[2Tb", "ab\x1b[2Tb"),  # mouse tracking, which stops some terminals; scrolling
        ("a\x1b[1000000000bb\x1b[7bb", "ab\x1b[7bb"),  # a character a thousand million times
        ("a\x1b[?1049;1000;25hb", "a\x1b[?1049;25hb"),  # of several modes the harmless ones
        ("a\x1b[?1049$pb\x1b[?996nb\x1bZb\x1b[>qb\x1b[?ub\x1b[14tb", "abbbbbb"),  # more queries
        ("a\x1b[>1ub\x1b[=5;1ub\x1b[?9001hb\x1b[?1hb\x1b=b", "abbbbb"),  # what keys send
        ("a\x1b)0b\x0eq\x0fb", "ab\x1b(0q\x1b(Bb"),  # line drawing by shifting
        ("a\x0eq\x0fb\x1b(1b\x1b*0b\x1bnb", "aqbbbb"),  # other character sets
        ("a\x0bb\x0cc", "a\nb\nc"),  # as terminals take them
        ("a\x1b]8;;http://evil\x1b\\b\x1b]1337;File=:AA\x07c\x1b]777;notify;x\x07d", "abcd"),
        ("a\x07\x0e\x0f\x05b", "ab"),
        ("a\x1b[31mb\x1b[0m", "a\x1b[31mb\x1b[0m"),
        ("a\x9b31mb", "a\x1b[31mb"),
        ("\x1b[?1049h\x1b[2J\x1b[3;4Hx\x1b[K", "\x1b[?1049h\x1b[2J\x1b[3;4Hx\x1b[K"),
        ("\x1b[38:2::1:2:3mx", "\x1b[38:2::1:2:3mx"),
        ("\x1b7\x1b8\x1bM\x1b(0q\x1b(B", "\x1b7\x1b8\x1bM\x1b(0q\x1b(B"),
        ("a\r\nb\tc\x08d", "a\r\nb\tc\x08d"),
        ("a\x1b\x1b[31mb", "a\x1b[31mb"),
        ("a\x1b[\x1b[31mb", "a\x1b[31mb"),
        ("a\x1b%Gb", "ab"),
    ],
)
def test_known_attacks_and_known_goods(evil: str, left: str) -> None:
    assert TerminalFilter().feed(evil) == left
    drop = TerminalFilter()
    assert "".join(drop.feed(character) for character in evil) == left, "one character at a time"


@given(st.lists(nasty, max_size=6))
def test_only_harmless_sequences_leave(pieces: list[str]) -> None:
    terminal = TerminalFilter()
    out = "".join(terminal.feed(piece) for piece in pieces)
    assert harm(out) == "", repr(out)
    assert TerminalFilter().feed("".join(pieces)) == out, "however it is cut"
    plain = TerminalFilter(sequences=False).feed("".join(pieces))
    assert harm(plain, moves=False) == ""
    uncoloured = TerminalFilter(colors=False).feed("".join(pieces))
    assert harm(uncoloured) == ""
    assert not re.search("\x1b\\[[0-9;:]*m", uncoloured)


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 3))
def test_whatever_bytes_are_on_the_tape(pieces: list[bytes], start: int) -> None:
    header = {"protocol": "ssh", "target": "web", "more": {"tty": [80, 24]}}
    transcript = Transcript(header)
    attack = [b"", b"\x1b]52;c;", b"\x1bP", b"\xc2\x9b"][start]
    shown = "".join(
        piece.text
        for n, data in enumerate([attack, *pieces])
        for piece in transcript.feed(Record(n, n, OUT, Kind.WIRE, data))
    )
    assert harm(shown) == ""


def test_the_parser_of_this_test_finds_harm() -> None:
    for evil in (
        "\x1b]0;x\x07",
        "\x1b[6n",
        "\x1b[?1000h",
        "\x9b31m",
        "\x07",
        "\x1bc",
        "\x1b[999999b",
        "\x1b",
        "\x1b[31",
    ):
        assert harm("a" + evil)


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_plain_text_passes_as_it_is(text: str) -> None:
    assert TerminalFilter().feed(text) == text


def test_an_unfinished_string_does_not_hide_the_rest_for_ever() -> None:
    for size, shown in ((STRING_LIMIT - 1, ""), (STRING_LIMIT, ""), (STRING_LIMIT + 5, "xxxxx")):
        assert TerminalFilter().feed("\x1b]" + "x" * size) == shown
        one = TerminalFilter()
        assert "".join(one.feed(c) for c in "\x1b]" + "x" * size) == shown


def test_reset_leaves_the_alternate_screen_only_if_it_was_entered() -> None:
    terminal = TerminalFilter()
    assert "1049" not in terminal.reset()
    terminal.feed("\x1b[?1049h")
    assert "\x1b[?1049l" in terminal.reset()
    terminal.feed("\x1b[?1049l")
    assert "1049" not in terminal.reset()
    assert TerminalFilter(sequences=False).reset() == ""


def test_visible_spells_out() -> None:
    assert visible("a\x1b]52;c;x\x07b\r\nc\td\x7f") == "a^[]52;c;x^Gb\nc\td^?"
    assert visible("access \u202e\u2066// admin\u2069") == "access <U+202E><U+2066>// admin<U+2069>"
    assert visible("zero\u200bwidth\ufeff\x9b") == "zero<U+200B>width<U+FEFF><U+009B>"
    assert visible("a\U000e0041\u3164\ud800b") == "a<U+E0041><U+3164><U+D800>b"  # hidden texts, fillers, halves
    assert visible("Grüße 李雷 👍🏽") == "Grüße 李雷 👍🏽"


def test_width() -> None:
    assert [width(text) for text in ("abc", "李雷", "e\u0301", "❤\ufe0f", "कि")] == [3, 4, 1, 1, 2]


@given(st.text())
def test_visible_holds_no_control_character(text: str) -> None:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", visible(text))


@given(st.text(), st.integers(1, 40))
def test_clip(text: str, cells: int) -> None:
    text = visible(text)
    cut = clip(text, cells)
    assert width(cut) <= cells
    assert cut == text or (cut.endswith("…") and text.startswith(cut[:-1]))
