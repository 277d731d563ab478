"""The lines typed on a terminal, without any shell: what is asked, when, and what becomes of keys."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxy.core.errors import Refused
from proxy.core.verdict import Deny
from proxy.terminal.content import Ask, Done, Settings, ToTarget, ToUser, Wake, held_bytes
from proxy.terminal.terminal import QUEUE_LIMIT, terminal_content
from tests.ssh.terminal_cases import Bash, Desk, permit_for, programs


def at_prompt(shell: Bash | None = None, **more: object) -> tuple[Desk, Bash]:
    shell = shell or Bash()
    desk = Desk(shell, **more)  # type: ignore[arg-type]
    desk.out(shell.prompt())
    return desk, shell


def type_keys(desk: Desk, text: str) -> None:
    for key in text:
        desk.keys(key.encode())


def test_a_typed_line_is_asked_for_before_its_enter_goes() -> None:
    desk, shell = at_prompt(answering=False)
    type_keys(desk, "ls /tmp\r")
    assert desk.sent == b"ls /tmp"
    ask = desk.asks[0]
    assert ask.data == b"\r"
    command = ask.command
    assert (command.protocol, command.verb, command.kind, command.text) == ("ssh", "line", "execute", "ls /tmp")
    assert command.objects == ("ls",)
    assert not command.exact
    assert command.flow == 7
    assert command.facts["how"] == "both"
    assert command.facts["login"] == "root"
    assert command.facts["shell"] == programs("ls /tmp")
    assert command.facts["unsure"] is False
    assert "typed" not in command.facts
    assert shell.ran == []
    desk.decide(ask)
    assert shell.ran == ["ls /tmp"]


def test_plain_typing_waits_for_nothing() -> None:
    """The latency bar: neither a key nor an Enter whose line is echoed costs any time."""
    desk, shell = at_prompt()
    start = desk.now
    for key in b"echo fast\r":
        desk.keys(bytes([key]), settle=False)
        assert desk.wake is None
    assert shell.ran == ["echo fast"]
    assert desk.now == start


def test_a_key_goes_on_in_the_step_it_comes() -> None:
    content = terminal_content(Settings(flow=0), programs)
    assert content.from_user(b"l", 1.0) == [ToTarget(b"l")]
    assert content.from_user(b"\x1b[A\x01\xff", 1.0) == [ToTarget(b"\x1b[A\x01\xff")]
    assert content.from_target("out", b"some output\r\n", 1.1) == [ToUser(b"some output\r\n")]


def test_an_echo_under_way_is_waited_for_and_no_longer() -> None:
    desk, shell = at_prompt()
    desk.answer = lambda data: b""  # a slow line
    desk.keys(b"echo slow", settle=False)
    desk.keys(b"\r", settle=False)
    assert desk.asks == []
    assert desk.wake is not None
    desk.answer = shell
    desk.out(b"echo s")
    assert desk.asks == []
    desk.out(b"low")
    assert desk.texts() == ["echo slow"]
    assert desk.hows() == ["both"]


def test_enter_alone_is_no_command() -> None:
    desk, shell = at_prompt()
    desk.keys(b"\r")
    type_keys(desk, "   \r")
    desk.keys(b"\r\r\r")
    assert desk.asks == []
    assert desk.sent == b"\r   \r\r\r\r"
    assert len(shell.ran) == 5


@pytest.mark.parametrize("key", [b"\r", b"\n", b"\x0f", b"\x1bOM", b"\x1b[13u", b"\x1b[13;5u", b"\x1b[106;5u"])
@pytest.mark.parametrize("cues", [True, False])
def test_every_submit_key_is_withheld(key: bytes, cues: bool) -> None:
    for cut in range(len(key)):
        desk, _ = at_prompt(Bash(cues), answering=False)
        type_keys(desk, "id")
        desk.keys(key[:cut])
        desk.keys(key[cut:])
        assert desk.sent == b"id" + key[:-1]
        assert desk.texts() == ["id"]
        assert desk.asks[0].data == key[-1:]


def test_ctrl_d_hands_a_line_over_where_no_editor_waits() -> None:
    desk, _ = at_prompt(Bash(cues=False), answering=False)
    type_keys(desk, "id\x04")
    assert desk.texts() == ["id"]
    assert desk.asks[0].data == b"\x04"
    desk, _ = at_prompt(Bash(cues=False))
    desk.keys(b"\x04")
    assert (desk.asks, desk.sent) == ([], b"\x04")
    desk, _ = at_prompt(Bash(cues=True))
    type_keys(desk, "id\x04")
    assert (desk.asks, desk.sent) == ([], b"id\x04")


def test_a_refused_line_is_cleared_and_what_follows_it_dropped() -> None:
    desk, shell = at_prompt(deny=lambda ask: "rm" in ask.command.objects)
    desk.keys(b"rm -rf x\recho next\r")
    assert desk.texts() == ["rm -rf x"]
    assert desk.cleared == b"\x03"
    assert desk.told == b'\r\ngatecast: denied by rule "x": not here\r\n'
    assert shell.ran == []
    assert desk.dropped == b"echo next\r"
    type_keys(desk, "echo fine\r")
    assert shell.ran == ["echo fine"]
    assert desk.texts() == ["rm -rf x", "echo fine"]
    assert desk.hows()[-1] == "both"


def test_a_line_that_was_taken_back_is_cleared() -> None:
    desk, shell = at_prompt(answering=False)
    type_keys(desk, "sleep 9\r")
    ask = desk.asks[0]
    desk.carry_out(desk.content.waiting(ask, "gatecast: held, approval 1"))
    assert desk.told == b"\r\ngatecast: held, approval 1\r\n"
    desk.open = None
    desk.carry_out(desk.content.refused(ask, Refused(Deny("r", "no"), "1", withdrawn=True), desk.now))
    assert desk.cleared == b"\x03"
    assert b"taken back" in desk.told
    assert shell.ran == []


def test_a_paste_without_brackets_is_asked_for_line_by_line() -> None:
    desk, shell = at_prompt()
    desk.keys(b"echo a\recho b\r\recho c")
    assert desk.texts() == ["echo a", "echo b"]
    assert shell.ran == ["echo a", "echo b", ""]
    assert shell.line == "echo c"
    assert desk.sent == b"echo a\recho b\r\recho c"


def test_line_breaks_of_a_bracketed_paste_are_text() -> None:
    desk, _ = at_prompt(answering=False)
    desk.keys(b"\x1b[200~echo a\recho b\x1b[201~")
    assert desk.asks == []
    assert desk.sent == b"\x1b[200~echo a\recho b\x1b[201~"
    desk.keys(b"\r")
    assert len(desk.asks) == 1


def test_strictly_they_are_not() -> None:
    desk, _ = at_prompt(Bash(cues=False), answering=False, hold_when_unsure=True)
    desk.keys(b"\x1b[200~echo a\rrm b\x1b[201~")
    assert len(desk.asks) == 1
    assert desk.sent == b"\x1b[200~echo a"


def test_programs_end_when_the_next_prompt_comes() -> None:
    desk, shell = at_prompt()
    shell.output = lambda line: b"\x1b]133;D;3\x07"
    type_keys(desk, "false\r")
    assert len(desk.done) == 1
    result = desk.done[0].result
    assert result.tag == "exit 3"
    assert result.details == {"flow": 7, "how": "both", "exit": 3}
    assert result.size_bytes > 0


def test_without_cues_a_line_ends_when_the_next_is_asked_for_or_the_channel_ends() -> None:
    desk, _ = at_prompt(Bash(cues=False))
    type_keys(desk, "one\r")
    assert desk.done == []
    type_keys(desk, "two\r")
    assert [done.permit for done in desk.done] and len(desk.done) == 1
    steps = desk.content.ended(desk.now)
    assert [type(step) for step in steps] == [Done]
    assert desk.content.ended(desk.now) == []


def test_a_line_typed_into_a_program_is_asked_for_as_one() -> None:
    desk, _ = at_prompt()
    type_keys(desk, "python3\r")
    desk.answer = Bash(cues=False)
    desk.out(b"\r\n\x1b[?2004l\r>>> ")
    type_keys(desk, "import os\r")
    assert desk.texts() == ["python3", "import os"]
    assert desk.hows() == ["both", "app"]
    assert desk.asks[-1].command.facts["unsure"] is True
    assert len(desk.done) == 1  # python3 goes on; its first prompt was the shell's


def test_a_refused_line_of_a_program_does_not_kill_the_program() -> None:
    desk, _ = at_prompt(deny=lambda ask: ask.command.text.startswith("drop"))
    type_keys(desk, "psql\r")
    desk.answer = lambda data: data if data >= b" " else b""
    desk.out(b"\r\n\x1b[?2004l\rdb=> ")
    type_keys(desk, "drop table x\r")
    assert desk.cleared == b"\x05\x15"
    assert desk.told.endswith(b"\r\ndb=> drop table x")


def test_what_is_not_echoed_is_not_in_the_question() -> None:
    desk, _ = at_prompt(Bash(cues=False, echo=False))
    type_keys(desk, "hunter2 x\r")
    command = desk.asks[0].command
    assert command.text == "(hidden input)"
    assert command.objects == ()
    assert command.facts["hidden"] is True
    assert command.facts["how"] == "app"
    assert command.facts["beneath"] == ("hunter2",)
    assert "typed" not in command.facts and "shown" not in command.facts


@pytest.mark.parametrize(
    "prompt", ["Password: ", "[sudo] password for joe: ", "Enter passphrase for key 'x': ", "PIN: "]
)
def test_keys_at_a_prompt_for_a_password_are_not_taped(prompt: str) -> None:
    desk, shell = at_prompt()
    type_keys(desk, "sudo id\r")
    desk.answer = lambda data: b""
    desk.out(b"\r\n\x1b[?2004l\r" + prompt.encode())
    type_keys(desk, "pa'ss $x\r")
    assert desk.untaped == b"pa'ss $x"
    command = desk.asks[-1].command
    assert command.text == "(hidden input)"
    assert command.facts["opaque"] is False  # no rule against programs stands in a password's way
    assert desk.asks[-1].data == b"\r"
    desk.answer = shell
    desk.out(b"\r\n" + shell.prompt())
    type_keys(desk, "ls\r")
    assert desk.untaped == b"pa'ss $x"
    assert desk.texts()[-1] == "ls"


def test_dots_for_a_password_are_no_line() -> None:
    desk, _ = at_prompt()
    desk.out(b"\x1b[?2004l\rPassword: ")
    desk.answer = lambda data: b"*" * len(data.rstrip())
    type_keys(desk, "hunter2\r")
    assert desk.texts() == ["(hidden input)"]
    assert desk.untaped.startswith(b"h")


def test_a_prompt_that_only_looks_like_one_for_a_password_is_taped_as_it_echoes() -> None:
    desk, _ = at_prompt(Bash(cues=False))
    desk.out(b"\r\nPassword: ")
    type_keys(desk, "rm -rf x\r")
    assert desk.texts() == ["rm -rf x"]
    assert desk.untaped == b"r"


def test_the_terminals_own_answers_are_no_keys() -> None:
    desk, _ = at_prompt()
    desk.answer = lambda data: b"" if data.startswith(b"\x1b") else data
    desk.keys(b"\x1b[24;1R")
    type_keys(desk, "ls\r")
    assert desk.hows() == ["both"]


@pytest.mark.parametrize("size", [QUEUE_LIMIT - 1, QUEUE_LIMIT, QUEUE_LIMIT + 1])
def test_the_queue_is_bounded_by_asking_at_once(size: int) -> None:
    desk, _ = at_prompt(answering=False)
    desk.answer = lambda data: b""
    desk.keys(b"slow\r", settle=False)
    assert desk.asks == []
    desk.keys(b"x" * size, settle=False)
    assert len(desk.asks) == (1 if size > QUEUE_LIMIT else 0)
    assert desk.sent == b"slow"


def test_the_end_of_input_does_not_overtake_lines() -> None:
    desk, shell = at_prompt(answering=False)
    desk.answer = lambda data: b""
    desk.keys(b"one\rtwo\r", settle=False)
    desk.answer = shell
    desk.carry_out(desk.content.user_eof(desk.now))
    assert len(desk.asks) == 1
    desk.answering = True
    desk.decide(desk.asks[0])
    assert len(desk.asks) == 2
    assert desk.sent == b"one\rtwo\r"


def test_a_ctrl_u_that_erases_nothing_empties_no_line() -> None:
    """Whoever has bound it to something else still has a line there: what is shown is asked for."""
    for cuts in ([], list(range(100))):
        for cues in (True, False):
            shell = Bash(cues)
            desk, _ = at_prompt(shell)
            desk.answer = lambda data, shell=shell: shell(data.replace(b"\x15", b""))  # type: ignore[misc]
            for start, end in pairwise([0, *cuts[1:8], 8] if cuts else [0, 8]):
                if start < end:
                    desk.keys(b"\x03rm x\x15\r"[start:end])
            assert shell.ran == ["rm x"]
            assert len(desk.asks) == 1
            assert "rm x" in desk.texts()[0]


def test_ctrl_c_leaves_a_line() -> None:
    desk, shell = at_prompt()
    type_keys(desk, "rm -rf x\x03echo after\r")
    assert desk.texts() == ["echo after"]
    assert shell.ran == ["echo after"]


def test_resizing_keeps_the_line() -> None:
    desk, _ = at_prompt()
    type_keys(desk, "echo " + "w" * 100)
    for columns in (0, 1, 2, 40, 100_000, 79):
        desk.content.resized(columns, 0)
    desk.keys(b"\r")
    assert desk.texts() == ["echo " + "w" * 100]


KEYS = st.lists(
    st.sampled_from(
        [b"ls", b"a b", b"x", b"\r", b"\n", b"\x7f", b"\x15", b"\x03", b"\x1b[A", b"\x1b[24;1R", b"\xc3\xa9"]
    ),
    max_size=12,
).map(b"".join)


def asked(data: bytes, cuts: list[int], cues: bool) -> tuple[list[str], list[str]]:
    desk, shell = at_prompt(Bash(cues))
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            desk.keys(data[start:end])
    assert desk.sent == data
    assert held_bytes(desk.content) == 0
    return desk.texts(), shell.ran


@settings(max_examples=300, deadline=None)
@given(KEYS, st.lists(st.integers(0, 1000), max_size=6), st.booleans())
@example("\x03éé\x15\r".encode(), [], True)
@example("\x03éé\x15\r".encode(), [], False)
def test_lines_are_the_same_however_keys_are_cut(data: bytes, cuts: list[int], cues: bool) -> None:
    # Whether a cursor key was answered cannot be told from what answers a Ctrl-C in the same read.
    assume(not (b"\x03" in data and b"\x1b[A" in data))
    assert asked(data, cuts, cues) == asked(data, list(range(len(data))), cues)


PIECES = (
    b"\x1b[?2004h \x1b[?2004l \x1b[?1049h \x1b[?1049l \x1b]133;B\x07 \x1b[200~ \x1b[201~ \r \n rm P> Password: \x1b[2J"
    b" \x1b \x1b] \x1b[5;2r \x03 \x04 \x1b[4h \x1b[999999999b"
    b" \xe4\xb8 \x1b[99999;99999H \x1b[99999L \x1bM \x1b7 \x1b8 \x1bc"
).split(b" ")
SIDES = st.lists(
    st.tuples(
        st.sampled_from(["user", "target", "wait", "resize"]),
        st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join)),
    ),
    max_size=25,
)


@settings(max_examples=400, deadline=None)
@given(SIDES, st.lists(st.booleans(), min_size=1, max_size=8), st.booleans(), st.integers(1, 30))
def test_nothing_raises_and_no_key_is_lost_or_overtaken(
    sides: list[tuple[str, bytes]], denials: list[bool], strict: bool, columns: int
) -> None:
    verdicts = iter(denials * 100)
    denied: list[Ask] = []

    def deny(ask: Ask) -> bool:
        if next(verdicts):
            denied.append(ask)
            return True
        return False

    desk = Desk(deny=deny, hold_when_unsure=strict, columns=columns, rows=5)
    typed = told = b""
    veiled = False
    for side, data in sides:
        match side:
            case "user":
                typed += data
                desk.keys(data, settle=False)
            case "target":
                told += data
                desk.out(data)
            case "wait":
                desk.settle()
            case _:
                desk.content.resized(len(data), columns)
        veiled = b"Password:" in told  # what is dropped behind a secret is not told
        assert held_bytes(desk.content) == len(typed) - len(desk.taken) or veiled
    desk.settle()
    assert held_bytes(desk.content) == 0
    assert desk.shown == told
    if veiled:
        rest = iter(typed)
        assert all(byte in rest for byte in desk.taken), "keys out of order"
    else:
        assert desk.taken == typed
    if not denied:
        assert desk.sent == typed
        assert desk.dropped == b""


def test_a_decided_line_goes_with_its_permit() -> None:
    desk, _ = at_prompt(answering=False)
    type_keys(desk, "ls\r")
    permit = permit_for(desk.asks[0])
    assert desk.content.allowed(desk.asks[0], permit, desk.now) == []
    assert [step.permit for step in desk.content.ended(desk.now) if isinstance(step, Done)] == [permit]


def test_a_wait_is_bounded() -> None:
    desk, _ = at_prompt(answering=False)
    desk.answer = lambda data: b""
    desk.keys(b"\x1b[Aquiet\r", settle=False)
    begun = desk.now
    for _ in range(1000):
        if desk.asks:
            break
        steps = desk.content.from_target("out", b"noise", desk.now)
        assert any(isinstance(step, Wake | Ask) for step in steps)
        desk.carry_out(steps)
        desk.now += 0.01
        desk.carry_out(desk.content.tick(desk.now))
    assert 1.4 < desk.now - begun < 1.6
