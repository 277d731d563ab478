"""Nothing that a target printed acts on the terminal of whoever replays it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.escape import STRING_LIMIT, TerminalFilter, clip, visible, width

# What may leave the filter: written independently of it.
HARMLESS = re.compile(
    r"\x1b\[[0-9;:]*[A-HJKLMPSTX@abdefmrsu`]"
    r"|\x1b\[(\?(7|25|47|1047|1048|1049))(;\?(7|25|47|1047|1048|1049))*[hl]"
    r"|\x1b(7|8|D|E|M|\(0|\(B)"
)
CONTROLS = re.compile("[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
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
        ("a\x1b[!pb\x1b[1 qb\x1bcb", "abbb"),  # resets, cursor shapes
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
    assert not CONTROLS.search(HARMLESS.sub("", out)), repr(out)
    assert TerminalFilter().feed("".join(pieces)) == out, "however it is cut"
    plain = TerminalFilter(sequences=False).feed("".join(pieces))
    assert not CONTROLS.search(plain)


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
    assert visible("Grüße 李雷") == "Grüße 李雷"


@given(st.text())
def test_visible_holds_no_control_character(text: str) -> None:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", visible(text))


@given(st.text(), st.integers(1, 40))
def test_clip(text: str, cells: int) -> None:
    text = visible(text)
    cut = clip(text, cells)
    assert width(cut) <= cells
    assert cut == text or (cut.endswith("…") and text.startswith(cut[:-1]))
