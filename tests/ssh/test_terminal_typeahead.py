"""Keys typed ahead of a prompt, cut anywhere: what the target prints meanwhile takes nothing of them away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.terminal.content import Ask
from tests.ssh.terminal_cases import Desk, programs

LINE = "echo ws-114 >> ws; echo al''so ws-114"
FIRST = "true"
PROMPTS = {
    "plain": b"P> ",
    "root": b"root@box:/tmp/x# ",
    "paste": b"\x1b[?2004hP> ",
    "paste, coloured": b"\x1b[?2004h\x1b[32mme@box\x1b[0m:\x1b[34m~\x1b[0m$ ",
    "two rows": b"\x1b[?2004h\r\n~\r\nP> ",
    "marks": b"\x1b]133;D;0\x07\x1b]133;A\x07\x1b[?2004hP> \x1b]133;B\x07",
    "no paste, marks": b"\x1b]133;D;0\x07\x1b]133;A\x07P> \x1b]133;B\x07",
    "zsh": b"\x1b[1m\x1b[7m%\x1b[27m\x1b[1m\x1b[0m"
    + b" " * 79
    + b"\r \r\r\x1b[0m\x1b[27m\x1b[24m\x1b[JP> \x1b[K\x1b[?2004h",
}


class Late:
    """A shell that is not back yet: the kernel echoes what is typed, readline draws it again behind its prompt."""

    def __init__(self, prompt: bytes, redraws: bool) -> None:
        self.prompt, self.redraws = prompt, redraws
        self.raw = True
        self.buffer = b""
        self.ran: list[str] = []

    def __call__(self, data: bytes) -> bytes:
        said = b""
        for byte in data:
            if byte != 13:
                self.buffer += bytes([byte])
                said += bytes([byte])
                continue
            self.ran.append(self.buffer.decode())
            self.buffer = b""
            self.raw = False
            said += b"\r\n" + (b"\x1b[?2004l\r" if b"2004h" in self.prompt else b"")
        return said


def begun(prompt: bytes, redraws: bool, columns: int) -> tuple[Desk, Late]:
    """A desk whose first line has run, and has answered all but the prompt."""
    shell = Late(prompt, redraws)
    desk = Desk(shell, columns=columns)
    desk.out(b"Welcome\r\n" + prompt)
    for key in FIRST.encode():
        desk.keys(bytes([key]))
    desk.keys(b"\r")
    assert desk.texts() == [FIRST]
    return desk, shell


def pieces(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for cut in range(len(data) + 1):
        yield data[:cut], data[cut:]


def whole(ask: Ask) -> bool:
    command = ask.command
    return (
        command.text == LINE
        and set(programs(LINE).names) <= set(command.objects)
        and (command.facts["how"] == "both" or command.facts.get("typed") == LINE)
    )


def typed_ahead(drawn: bytes, redraws: bool, columns: int) -> Iterator[tuple[object, Desk]]:
    """Cut the keys anywhere, and let parts of the prompt come between them; the kernel's echo comes at once."""
    for ahead, rest in pieces(LINE.encode()):
        for at in {0, 1, 9, len(drawn) - 1, len(drawn)}:
            for answer_first in (True, False):
                desk, shell = begun(drawn, redraws, columns)
                if answer_first:
                    desk.out(b"also ws-113\r\n")
                desk.keys(ahead)
                if not answer_first:
                    desk.out(b"also ws-113\r\n")
                again = shell.buffer if redraws else b""
                desk.out(drawn[:at])
                # The prompt is one write, so what is typed between its reads is echoed behind it.
                desk.answer = lambda data: b""
                desk.keys(rest[: len(rest) // 2], settle=False)
                desk.answer = shell
                desk.out(drawn[at:] + again + shell(rest[: len(rest) // 2]))
                desk.keys(rest[len(rest) // 2 :])
                desk.keys(b"\r")
                yield (ahead, at, answer_first), desk


@pytest.mark.parametrize("columns", [80, 24, 20])
@pytest.mark.parametrize("redraws", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_line_typed_ahead_is_asked_for_whole(prompt: str, redraws: bool, columns: int) -> None:
    wrong = [
        (case, [(ask.command.text, ask.command.facts) for ask in desk.asks[1:]])
        for case, desk in typed_ahead(PROMPTS[prompt], redraws, columns)
        if len(desk.asks) != 2 or not whole(desk.asks[1])
    ]
    assert not wrong, f"{len(wrong)}: {wrong[:3]}"


@pytest.mark.parametrize("prompt", ["plain", "paste", "marks"])
def test_a_line_drawn_anew_behind_its_prompt_is_sure(prompt: str) -> None:
    """Though the kernel's echo stands before the prompt, on the same row."""
    desk, shell = begun(PROMPTS[prompt], True, 80)
    desk.keys(LINE.encode())
    desk.out(PROMPTS[prompt] + shell.buffer)
    desk.keys(b"\r")
    assert desk.texts() == [FIRST, LINE]
    assert desk.hows() == ["both", "both"]


@pytest.mark.parametrize("prompt", ["plain", "root", "paste", "paste, coloured", "marks"])
@pytest.mark.parametrize("late", [True, False])
def test_keys_typed_before_the_alternate_screen_is_left_belong_to_the_line(prompt: str, late: bool) -> None:
    drawn = PROMPTS[prompt]
    for cut in range(1, len(LINE) + 1):
        desk, shell = begun(drawn, True, 80)
        desk.out(b"\x1b[?1049h\x1b[H1\r\n2\r\n:")
        desk.answer = lambda data: b""
        desk.keys(b"q")
        desk.keys(LINE[:cut].encode())
        desk.answer = shell
        desk.out(b"\x1b[?1049l")
        if late:
            desk.answer = lambda data: b""
            desk.keys(LINE[cut:].encode(), settle=False)
            desk.answer = shell
            shell.buffer = LINE.encode()
        else:
            shell.buffer = LINE[:cut].encode()
        desk.out(drawn + shell.buffer)
        if not late:
            desk.keys(LINE[cut:].encode())
        desk.keys(b"\r")
        assert shell.ran == [FIRST, LINE]
        assert len(desk.asks) == 2, (cut, desk.texts())
        command = desk.asks[1].command
        assert LINE in (command.text, command.facts.get("shown")), (cut, command)
        assert command.text.endswith(LINE) and set(programs(LINE).names) <= set(command.objects)


@pytest.mark.parametrize("prompt", ["plain", "paste", "marks"])
def test_a_pager_that_was_left_leaves_nothing_in_the_line(prompt: str) -> None:
    desk, shell = begun(PROMPTS[prompt], True, 80)
    desk.out(b"\x1b[?1049h\x1b[H1\r\n2\r\n:")
    desk.answer = lambda data: b""
    desk.keys(b"q")
    desk.answer = shell
    desk.out(b"\x1b[?1049l" + PROMPTS[prompt])
    desk.keys(b"\r")
    assert desk.texts() == [FIRST]
    desk.out(PROMPTS[prompt])
    desk.keys(b"echo on")
    desk.keys(b"\r")
    assert desk.texts() == [FIRST, "echo on"]
    assert desk.hows() == ["both", "both"]
    assert shell.ran == [FIRST, "", "echo on"]
