"""The keys that a terminal's Content keeps: how many it says they are, and what becomes of them."""

from __future__ import annotations

import pytest

from protocols.ssh import wire
from protocols.ssh.contents import content_for
from proxy.core.errors import Refused
from proxy.core.verdict import Allow, Deny
from proxy.policy.shell import read_shell
from proxy.terminal.content import Dropped, held_bytes
from recorder.tape import USER
from tests.ssh.playing_ssh import DENY, Play, pty, request
from tests.ssh.terminal_cases import permit_for
from tests.ssh.test_conversation_ssh_contents import lines
from tests.ssh.test_terminal import at_prompt, type_keys


def test_keys_held_are_counted_until_they_are_passed_asked_for_or_dropped() -> None:
    desk, shell = at_prompt(answering=False)
    content = desk.content
    assert held_bytes(content) == 0
    desk.answer = lambda data: b""
    desk.keys(b"rm x", settle=False)
    assert held_bytes(content) == 0
    desk.keys(b"\rls", settle=False)
    assert (desk.asks, held_bytes(content)) == ([], 3)
    desk.keys(b" /\r", settle=False)
    assert held_bytes(content) == 6
    desk.answer = shell
    desk.out(b"rm x")
    assert desk.texts() == ["rm x"]
    assert held_bytes(content) == 5  # the Enter is the question's
    desk.open = None
    steps = content.refused(desk.asks[0], Refused(Deny("x", "no"), "1"), desk.now)
    assert steps[0] == Dropped(b"ls /\r")
    assert held_bytes(content) == 0
    desk.carry_out(steps)
    assert desk.taken == b"rm x\rls /\r"


def test_keys_behind_a_submitted_line_are_held_until_the_shell_is_back() -> None:
    desk, _ = at_prompt(answering=False)
    type_keys(desk, "ls")
    desk.keys(b"\ra", settle=False)
    desk.carry_out(desk.content.allowed(desk.asks[0], permit_for(desk.asks[0]), desk.now))
    assert held_bytes(desk.content) == 1
    assert desk.wake is not None
    desk.open = None
    desk.settle()
    assert held_bytes(desk.content) == 0
    assert desk.sent == b"lsa"
    desk, _ = at_prompt()
    desk.keys(b"\rb", settle=False)  # an empty line before it
    assert desk.sent == b"\r"
    assert held_bytes(desk.content) == 1
    desk.settle()
    assert (held_bytes(desk.content), desk.sent) == (0, b"\rb")


@pytest.mark.parametrize("asked_for", [True, False])
def test_what_waits_at_the_end_of_the_channel_is_dropped(asked_for: bool) -> None:
    desk, _ = at_prompt(answering=False)
    desk.answer = lambda data: b""
    desk.keys(b"one\rtwo\r", settle=asked_for)
    assert len(desk.asks) == asked_for
    assert desk.content.ended(desk.now) == [Dropped(b"two\r" if asked_for else b"\rtwo\r")]
    assert held_bytes(desk.content) == 0
    assert desk.content.ended(desk.now) == []


@pytest.mark.parametrize("end", ["refused", "ended", "ended before"])
def test_what_is_dropped_behind_a_password_is_not_taped(end: str) -> None:
    """passwd asks twice: whoever pastes both has the secret in the queue."""
    desk, _ = at_prompt(answering=False)
    desk.answer = lambda data: b""
    desk.out(b"passwd\r\n\x1b[?2004l\rNew password: ")
    desk.keys(b"hunter2\rhunter2\r", settle=end != "ended before")
    assert desk.untaped == b"hunter2"
    assert held_bytes(desk.content) == (9 if end == "ended before" else 8)
    if end == "refused":
        desk.open = None
        desk.carry_out(desk.content.refused(desk.asks[0], Refused(Deny("x", "no"), "1"), desk.now))
        assert desk.cleared == b"\x05\x15"
    else:
        desk.carry_out(desk.content.ended(desk.now))
    assert desk.dropped == (b"\r" if end == "ended before" else b"")
    assert held_bytes(desk.content) == 0


# -- in a conversation ----------------------------------------------------------------------------------


def on_terminal(window: int) -> Play:
    """A shell at its prompt; its lines are left undecided."""
    play = Play(lines, contents=content_for(read_shell), shell=read_shell).opened(window=window)
    play.user(pty(), request("shell")).target(wire.ChannelSuccess(0), wire.ChannelSuccess(0), wire.Data(0, b"P> "))
    play.at_user(), play.at_target()
    return play


def granted(play: Play) -> int:
    """The room that the user has got since the last look."""
    return sum(each.size for each in play.at_user() if isinstance(each, wire.WindowAdjust))


@pytest.mark.parametrize("verdict", [Allow("all"), DENY])
def test_the_end_of_input_waits_for_keys_that_are_held(verdict: Allow | Deny) -> None:
    play = on_terminal(4096).user(wire.Data(0, b"rm x\rls"), wire.Eof(0))
    assert play.at_target() == [wire.Data(0, b"rm x")]
    play.target(wire.Data(0, b"rm x"))
    assert [command.text for command in play.undecided.values()] == ["rm x"]
    play.decide(verdict)
    if isinstance(verdict, Deny):
        assert play.at_target() == [wire.Data(0, b"\x03"), wire.Eof(0)]
    else:
        assert play.at_target() == [wire.Data(0, b"\r")]
        play.now = 10.0
        play.target(wire.Data(0, b"\r\nP> "))
        assert play.at_target() == [wire.Data(0, b"ls"), wire.Eof(0)]
    assert play.tape.stream(USER, 0) == b"rm x\rls"


def test_no_room_is_granted_for_keys_that_are_held() -> None:
    play = on_terminal(1000).user(wire.Data(0, b"rm x\r" + b"y" * 900))
    assert play.at_target() == [wire.Data(0, b"rm x")]
    play.target(wire.WindowAdjust(0, 4))
    assert granted(play) == 4
    play.target(wire.Data(0, b"rm x")).decide(DENY)
    assert play.at_target() == [wire.Data(0, b"\x03")]
    assert granted(play) == 900  # the Enter and what stood behind it, but for the gate's own Ctrl-C
    assert play.tape.stream(USER, 0) == b"rm x\r" + b"y" * 900


def test_keys_that_are_held_when_the_channel_closes_are_on_the_tape() -> None:
    play = on_terminal(4096).user(wire.Data(0, b"rm x\rls\r"), wire.Close(0)).target(wire.Close(0))
    assert play.tape.stream(USER, 0) == b"rm x\rls\r"
    assert play.undecided == {}
