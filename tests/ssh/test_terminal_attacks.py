"""What a target may print to keep a line from being asked for, or to make it look like another one."""

from __future__ import annotations

import time

import pytest

from proxy.terminal.content import Settings
from proxy.terminal.terminal import terminal_content
from tests.ssh.terminal_cases import PROMPT, Bash, Desk, programs

ALTERNATE = b"\x1b[?1049h"
EVIL = "rm -rf /srv"


def type_keys(desk: Desk, text: str) -> None:
    for key in text:
        desk.keys(key.encode())


def evil(cues: bool = True, **more: object) -> tuple[Desk, Bash]:
    """A terminal that has run one line already, where rm is denied."""
    shell = Bash(cues)
    desk = Desk(shell, deny=lambda ask: "rm" in ask.command.objects, **more)  # type: ignore[arg-type]
    desk.out(b"Welcome\r\n" + shell.prompt())
    type_keys(desk, "true\r")
    return desk, shell


PRINTED = {
    "alternate screen": ALTERNATE,
    "older alternate screens": b"\x1b[?47h\x1b[?1047h",
    "alternate screen among others": b"\x1b[?25;1049;7h",
    "alternate screen and an unfinished sequence": ALTERNATE + b"\x1b[2;1",
    "an editor that hands over": b"\x1b[?2004l",
    "an editor that waits again": b"\x1b[?2004h",
    "both": b"\x1b[?2004l\x1b[?2004h",
    "marks": b"\x1b]133;A\x07\x1b]133;B\x07\x1b]133;C\x07\x1b]133;D;0\x07",
    "marks of the other kind": b"\x1b]633;C\x1b\\",
    "an end of the prompt": b"\x1b]133;B\x1b\\",
    "a prompt": b"\r\n" + PROMPT.encode(),
    "a prompt over the line": b"\r\x1b[K" + PROMPT.encode(),
    "another line": b"\r\x1b[K" + PROMPT.encode() + b"ls",
    "an empty screen": b"\x1b[2J\x1b[H",
    "a reset": b"\x1bc",
    "a string without an end": b"\x1b]0;",
    "a sequence without an end": b"\x1b[1;2",
    "a lone escape": b"\x1b",
    "line breaks": b"\r\n" * 300,
    "a prompt for a password": b"\r\nPassword: ",
    "much": b"x" * 100_000,
    "grey": b"\x1b[90m",
    "one column of scrolling": b"\x1b[5;6r",
}


@pytest.mark.parametrize("what", PRINTED)
@pytest.mark.parametrize("cues", [True, False])
def test_nothing_printed_just_before_enter_hides_what_was_typed(what: str, cues: bool) -> None:
    desk, shell = evil(cues)
    type_keys(desk, EVIL)
    desk.out(PRINTED[what])
    desk.keys(b"\r")
    assert EVIL not in shell.ran
    command = desk.asks[-1].command
    assert "rm" in command.objects
    assert EVIL in (command.text, command.facts.get("typed"))


@pytest.mark.parametrize("what", PRINTED)
@pytest.mark.parametrize("cues", [True, False])
def test_nothing_printed_while_the_screen_settles_does(what: str, cues: bool) -> None:
    desk, shell = evil(cues)
    desk.answer = lambda data: b""
    desk.keys(EVIL.encode() + b"\r", settle=False)
    desk.out(b"rm -rf ")
    desk.out(PRINTED[what])
    desk.answer = shell
    desk.settle()
    assert shell.ran == ["true"]
    assert "rm" in desk.asks[-1].command.objects


@pytest.mark.parametrize("what", PRINTED)
@pytest.mark.parametrize("strict", [True, False])
def test_nothing_printed_by_a_file_hides_the_next_line(what: str, strict: bool) -> None:
    """As of `cat file`; the shell's prompt follows. (Its own prompt for a password hides the keys, not the line.)"""
    desk, shell = evil(hold_when_unsure=strict)
    shell.output = lambda line: PRINTED[what]
    type_keys(desk, "cat file\r")
    type_keys(desk, EVIL + "\r")
    assert EVIL not in shell.ran
    assert "rm" in desk.asks[-1].command.objects


def test_on_a_forged_alternate_screen_an_unknown_prompt_passes_unless_strict() -> None:
    """The stated limit: here only hold_when_unsure helps."""
    for strict in (False, True):
        desk, shell = evil(hold_when_unsure=strict)
        shell.output = lambda line: ALTERNATE
        shell.prompt = lambda: b"new$ "  # type: ignore[method-assign]
        type_keys(desk, "evade\r")
        type_keys(desk, EVIL + "\r")
        assert (EVIL in shell.ran) is not strict
        if strict:
            facts = desk.asks[-1].command.facts
            assert (facts["how"], facts["alternate"], facts["unsure"]) == ("app", True, True)
            assert EVIL in desk.asks[-1].command.text
        assert EVIL.encode() in desk.sent or strict


def test_leaving_the_alternate_screen_takes_no_keys_along() -> None:
    desk, shell = evil(hold_when_unsure=True)
    desk.out(b"\x1b[?2004l" + ALTERNATE)
    type_keys(desk, EVIL)
    desk.out(b"\x1b[?1049l\x1b[?2004h")
    desk.keys(b"\r")
    assert shell.ran == ["true"]
    assert "rm" in desk.asks[-1].command.objects


def test_a_quoted_enter_does_not_cut_a_line_in_two() -> None:
    """Ctrl-V Enter puts a character into the line; after Backspace the rest would look like a line of its own."""
    desk = Desk(answer=lambda data: data.replace(b"\x16", b"").replace(b"\r", b"^M").replace(b"\x7f", b"\b\b\x1b[K"))
    desk.out(b"\x1b[?2004h" + PROMPT.encode())
    type_keys(desk, "r\x16\r\x7fm -rf x\r")
    assert desk.texts()[-1] == "rm -rf x"
    assert "rm" in desk.asks[-1].command.objects


def test_a_ctrl_c_that_was_switched_off_does_not_hide_a_line() -> None:
    desk = Desk(answer=lambda data: data.replace(b"\x03", b"^C") if data != b"\r" else b"")
    desk.out(PROMPT.encode())
    type_keys(desk, "rm -rf x #\x03\r")
    assert len(desk.asks) == 1
    assert "rm" in desk.asks[0].command.objects


def test_a_line_in_an_open_string_of_the_users_is_still_one() -> None:
    for opening in (b"\x1b]0;", b"\x1bP", b"\x1b_", b"\x1b[1;", b"\x1b", b"\x1bO", b"\x1b[<"):
        desk, shell = evil()
        desk.keys(opening)
        type_keys(desk, EVIL + "\r")
        assert EVIL not in shell.ran
        assert len(desk.asks) == 2


def test_unseen_history_is_asked_for_and_opaque() -> None:
    desk = Desk(answer=lambda data: b"")  # stty -echo
    desk.out(b"\x1b[?2004h" + PROMPT.encode())
    desk.keys(b"\x1b[A")
    desk.keys(b"\r")
    assert len(desk.asks) == 1
    assert desk.asks[0].command.facts["opaque"] is True


def test_a_model_that_fails_leaves_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, shell = evil()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("proxy.terminal.screen.Screen.feed", fail)
    monkeypatch.setattr("proxy.terminal.screen.Screen.text", fail)
    type_keys(desk, EVIL + "\r")
    assert desk.texts()[-1] == EVIL
    assert desk.hows()[-1] == "guess"
    assert EVIL not in shell.ran


HOSTILE = {
    "escapes": b"\x1b" * 65536,
    "sequences": b"\x1b[" * 32768,
    "deep parameters": (b"\x1b[" + b"1;" * 4096 + b"m") * 8,
    "large numbers": b"\x1b[99999999b\x1b[99999L\x1b[9999@" * 2048,
    "long strings": b"\x1b]133;A" + b"x" * 65528,
    "unfinished strings": b"\x1b]133;A;" * 8192,
    "marks": b"\x1b]133;B\x07" * 8192,
    "switches": b"\x1b[?2004h\x1b[?2004l" * 4096,
    "screens": b"\x1b[?1049hx\x1b[?1049lx" * 3600,
    "scrolling": b"\x1b[120;1H" + b"\n" * 65528,
    "reverse scrolling": b"\x1bM" * 32768,
    "combining": b"e" + "\u0301".encode() * 32767,
    "wide": "世".encode() * 21845,
    "colours": b"\x1b[38;2;1;2;3mx" * 4681,
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("columns", [1, 80, 1000])
def test_no_output_is_slow(what: str, columns: int) -> None:
    """64 KiB and an Enter after each of them take well under a fifth of a second, on any machine."""
    content = terminal_content(Settings(flow=0, columns=columns, hold_when_unsure=True), programs)
    content.from_target("out", b"\x1b[?2004h$ ", 0.0)
    content.from_user(b"x", 0.0)
    begun = time.process_time()
    for turn in range(3):
        content.from_target("out", HOSTILE[what], float(turn))
        content.from_user(b"\x1b[A", float(turn))
        content.resized(columns, 24)
    content.from_user(b"\r", 5.0)
    content.tick(10.0)
    assert time.process_time() - begun < 0.6
