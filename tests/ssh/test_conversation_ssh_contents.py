"""Written conversations: what a Content asks for is decided, sent, shown and ended in its order."""

from __future__ import annotations

from typing import Literal

import pytest

from protocols.ssh import wire
from protocols.ssh.actions import Alarm, Decide, Disconnect, Down, Up, Withdraw
from protocols.ssh.channels import Limits
from protocols.ssh.wire_bodies import Word
from proxy.core.errors import Refused
from proxy.core.events import Chunk, Command, Frame, Result
from proxy.core.session import Input, Permit
from proxy.core.verdict import Allow, Deny
from proxy.terminal.content import Ask, Broken, Content, Done, Settings, Step, ToTarget, ToUser, Wake
from recorder.tape import GATE, USER, Kind
from tests.fakes import FakeMasker
from tests.ssh.playing_ssh import MASKS, PACKET, WINDOW, Play, execute, exit_status, pty, request

SFTP = request("subsystem", Word("sftp").encode())


class Scripted:
    """Each line of the user is a command: asked for; "!" breaks, "plain" passes, "wake" sets an alarm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log: list[str] = []
        self.permits: list[Permit] = []

    def from_user(self, data: bytes, now: float) -> list[Step]:
        steps: list[Step] = []
        for line in data.splitlines(keepends=True):
            match line.strip():
                case b"!":
                    steps.append(Broken("what is this"))
                case b"plain":
                    steps.append(ToTarget(line))
                case b"secret":
                    steps.append(ToTarget(line, taped=False))
                case b"wake":
                    steps.append(Wake(0.5))
                case _:
                    command = Command("ssh", "line", "execute", line.decode().strip(), exact=False)
                    steps.append(Ask(command, line))
        return steps

    def from_target(self, stream: Literal["out", "err"], data: bytes, now: float) -> list[Step]:
        return [ToUser(data, stream, taped=data != b"body")]

    def allowed(self, ask: Ask, permit: Permit, now: float) -> list[Step]:
        self.permits.append(permit)
        return [ToUser(b"ok ", by_gate=True)]

    def refused(self, ask: Ask, refused: Refused, now: float) -> list[Step]:
        return [ToUser(b"withdrawn " if refused.withdrawn else b"no ", by_gate=True), ToTarget(b"\x15", by_gate=True)]

    def waiting(self, ask: Ask, text: str) -> list[Step]:
        return [ToUser(text.encode() + b"\r\n", by_gate=True)]

    def user_eof(self, now: float) -> list[Step]:
        self.log.append("user eof")
        return []

    def target_eof(self, now: float) -> list[Step]:
        self.log.append("target eof")
        return []

    def ended(self, now: float) -> list[Step]:
        return [ToUser(b"nobody sees this"), *(Done(permit, Result("done")) for permit in self.permits)]

    def resized(self, columns: int, rows: int) -> None:
        self.log.append(f"{columns}x{rows}")

    def tick(self, now: float) -> list[Step]:
        return [ToUser(b"tick", by_gate=True)]


class Contents:
    """The factory, with what it was asked."""

    def __init__(self) -> None:
        self.made: list[Scripted] = []
        self.asked: list[tuple[str, str, bool]] = []

    def __call__(self, kind: str, name: str, pty: bool, settings: Settings) -> Content:
        self.asked.append((kind, name, pty))
        self.made.append(Scripted(settings))
        return self.made[-1]


def lines(command: Command) -> Allow | None:
    """Programs are allowed, lines are left undecided."""
    return None if command.verb == "line" else Allow("all")


def on_terminal(play: Play) -> Play:
    play.opened().user(pty(), request("shell")).target(wire.ChannelSuccess(0), wire.ChannelSuccess(0))
    play.at_user(), play.at_target()
    return play


def test_a_content_is_told_what_it_may_know() -> None:
    contents = Contents()
    settings: dict[str, object] = {"record_contents": ("/etc/*",), "hold_when_unsure": True}
    on_terminal(Play(contents=contents, settings=settings))
    assert contents.asked == [("shell", "", True)]
    found = contents.made[0].settings
    assert (found.flow, found.target, found.login, found.columns, found.rows) == (0, "box", "deploy", 80, 24)
    assert found.record_contents == ("/etc/*",) and found.hold_when_unsure


def test_a_command_within_is_decided_before_its_data_pass() -> None:
    play = on_terminal(Play(lines, contents=Contents())).user(
        wire.Data(0, b"ls\r"), wire.Data(0, b"plain\r"), wire.Eof(0)
    )
    assert play.at_target() == []
    [command] = play.undecided.values()
    assert command.flow == 0 and command.wire == wire.frame(wire.Data(0, b"ls\r").encode())
    play.target(wire.Data(0, b"output"))
    assert play.texts() == (b"output", b""), "the target is not blocked"
    play.decide(Allow("all"))
    assert play.at_target() == [wire.Data(0, b"ls\r"), wire.Data(0, b"plain\r"), wire.Eof(0)]
    assert play.texts() == (b"ok ", b"")


def test_what_was_refused_does_not_pass() -> None:
    play = on_terminal(Play(lines, contents=Contents())).user(wire.Data(0, b"rm\r"), wire.Data(0, b"plain\r"))
    play.decide(Deny("no", "not here"))
    assert play.at_target() == [wire.Data(0, b"\x15"), wire.Data(0, b"plain\r")]
    assert play.texts() == (b"no ", b"")


def test_a_held_line_says_so_and_ctrl_c_takes_it_back() -> None:
    play = on_terminal(Play(lines, contents=Contents())).user(wire.Data(0, b"make\r")).hold(text="held: 01ABC")
    assert play.texts() == (b"gatecast: held: 01ABC\r\n", b"")
    key = min(play.undecided)
    play.user(wire.Data(0, b"plain\r"), wire.Data(0, b"x\x03plain\r"))
    assert play.of(Withdraw) == [Withdraw(key)]
    play.decide(Deny("x", "the request was withdrawn"), withdrawn=True)
    assert play.texts() == (b"withdrawn ", b"")
    assert play.at_target() == [wire.Data(0, b"\x15"), wire.Data(0, b"plain\r")], "what was typed ahead is gone"


def test_a_resize_does_not_wait_for_a_decision() -> None:
    contents = Contents()
    play = on_terminal(Play(lines, contents=contents)).user(wire.Data(0, b"make\r"))
    change = request("window-change", b"".join(wire.u32(n) for n in (100, 30, 0, 0)), want_reply=False)
    play.user(change)
    assert play.at_target() == [change] and contents.made[0].log == ["100x30"]


def test_how_steps_come_onto_the_tape() -> None:
    play = on_terminal(Play(lines, contents=Contents())).user(wire.Data(0, b"plain\r"), wire.Data(0, b"secret\r"))
    play.user(wire.Data(0, b"rm\r")).decide(Deny("no", "no"))
    cargo = [action.cargo for action in play.of(Up)][-3:]
    assert isinstance(cargo[0], Input) and cargo[0].flow == 0
    assert isinstance(cargo[1], Frame) and not cargo[1].taped and not cargo[1].by_gate
    assert isinstance(cargo[2], Frame) and cargo[2].by_gate
    wires = [(channel, payload) for channel, kind, payload in play.tape.records if kind == Kind.WIRE]
    assert (USER, b"plain\r") in wires and (GATE, wire.frame(wire.Data(0, b"\x15").encode())) in wires
    assert not any(b"secret" in payload for _, payload in wires)
    play.target(wire.Data(0, b"body"))
    chunk = play.of(Down)[-1].event
    assert isinstance(chunk, Chunk) and not chunk.taped and play.texts() == (b"no body", b"")


def test_the_end_of_a_channel_ends_what_is_open_within() -> None:
    contents = Contents()
    play = on_terminal(Play(contents=contents)).user(wire.Data(0, b"ls\r"), wire.Eof(0))
    play.target(exit_status(0), wire.Eof(0), wire.Close(0)).user(wire.Close(0))
    assert [record.result.tag for record in play.records] == ["done", "exit 0"]
    assert contents.made[0].log == ["user eof", "target eof"]
    assert b"nobody" not in play.texts()[0]


def test_eof_waits_for_what_is_undecided() -> None:
    contents = Contents()
    play = Play(lines, contents=contents).opened().user(SFTP).target(wire.ChannelSuccess(0))
    play.user(wire.Data(0, b"put\n"), wire.Eof(0))
    assert wire.Eof(0) not in play.at_target() and contents.made[0].log == []
    play.decide(Allow("all"))
    assert play.at_target() == [wire.Data(0, b"put\n"), wire.Eof(0)]


def test_a_close_takes_back_the_command_within() -> None:
    play = Play(lines, contents=Contents()).opened().user(SFTP, wire.Data(0, b"put\n"), wire.Data(0, b"plain\n"))
    key = min(play.undecided)
    play.user(wire.Close(0)).target(wire.Close(0))
    assert play.of(Withdraw) == [Withdraw(key)]
    assert play.at_target()[-1] == wire.Close(0)
    play.decide(Allow("late"))
    assert play.at_target() == []


def test_a_broken_channel_ends_on_both_sides() -> None:
    play = Play(contents=Contents()).opened().user(SFTP).target(wire.ChannelSuccess(0))
    play.at_user(), play.at_target()
    play.user(wire.Data(0, b"!\nplain\n"))
    assert play.at_user() == [
        wire.ExtendedData(0, wire.STDERR, b"gatecast: what is this\n"), exit_status(1), wire.Eof(0), wire.Close(0),
    ]  # fmt: skip
    assert play.at_target() == [wire.Close(0)]
    play.target(wire.Data(0, b"late"), exit_status(0), wire.Close(0)).user(wire.Close(0))
    assert play.at_user() == [] and play.records[-1].result.tag == "exit 1"


def test_alarms_come_back_as_ticks() -> None:
    play = on_terminal(Play(contents=Contents())).user(wire.Data(0, b"wake\r"))
    assert play.of(Alarm) == [Alarm(0, 0.5)]
    play.carry_out(play.conversation.tick(0, 1.0))
    play.carry_out(play.conversation.tick(77, 1.0))
    assert play.texts() == (b"tick", b"")


def test_data_too_large_for_the_window_go_in_pieces_behind_their_permit() -> None:
    play = Play(lines, contents=Contents()).user(wire.ChannelOpen("session", 0, WINDOW, PACKET))
    play.target(wire.OpenConfirmation(0, 0, 6, PACKET)).user(SFTP).target(wire.ChannelSuccess(0))
    play.at_target()
    play.user(wire.Data(0, b"mkdir\n"))
    assert next(iter(play.undecided.values())).wire == b""
    play.decide(Allow("all"))
    assert play.at_target() == [wire.Data(0, b"mkdir\n")]


def test_a_permits_data_wait_for_room() -> None:
    play = Play(lines, contents=Contents()).user(wire.ChannelOpen("session", 0, WINDOW, PACKET))
    play.target(wire.OpenConfirmation(0, 0, 8, PACKET)).user(SFTP).target(wire.ChannelSuccess(0))
    play.user(wire.Data(0, b"plain\n"))
    play.at_target()
    play.user(wire.Data(0, b"p\n")).decide(Allow("all"))
    assert play.at_target() == [wire.Data(0, b"p\n")]
    play.target(wire.WindowAdjust(0, 3)).user(wire.Data(0, b"pu\n")).decide(Deny("no", "no"))
    assert play.at_target() == [wire.Data(0, b"\x15")]
    play.user(wire.Data(0, b"")).target(wire.WindowAdjust(0, 1))
    assert not play.of(Disconnect)


@pytest.mark.parametrize("size", [1, 100, 32_768])
def test_what_waits_is_bounded_by_the_window_not_by_the_number_of_messages(size: int) -> None:
    play = Play(lines, contents=Contents(), limits=Limits(waiting=4)).opened().user(SFTP, wire.Data(0, b"put\n"))
    for _ in range(20):
        play.user(wire.Data(0, b"\n" * size))
    assert not play.of(Disconnect)
    assert len(play.of(Decide)) == 2


def test_the_masks_of_a_line_hold_for_what_follows() -> None:
    masker = FakeMasker()
    masker.word = b"word"
    play = on_terminal(Play(lines, contents=Contents(), masker=masker)).target(wire.Data(0, b"word "))
    play.user(wire.Data(0, b"ls\r")).decide(Allow("masked", MASKS))
    play.target(wire.Data(0, b"a word, a wo"), wire.Data(0, b"rd, wo"))
    assert play.texts() == (b"word ok a ****, a ****, ", b"")
    play.carry_out(play.conversation.flush(0))
    assert play.texts() == (b"wo", b"")
    play.target(wire.Data(0, b"w"), wire.Eof(0))
    assert play.at_user() == [wire.Data(0, b"w"), wire.Eof(0)]


def test_a_masked_exec_ends_in_its_order() -> None:
    masker = FakeMasker()
    masker.word = b"word"
    play = Play(lambda _: Allow("masked", MASKS), masker=masker).started("ls")
    play.target(
        wire.Data(0, b"x wo"), wire.ExtendedData(0, wire.STDERR, b"wor"), exit_status(0), wire.Eof(0), wire.Close(0)
    )
    found = play.at_user()
    assert found == [
        wire.Data(0, b"x "), exit_status(0), wire.Data(0, b"wo"), wire.ExtendedData(0, wire.STDERR, b"wor"),
        wire.Eof(0), wire.Close(0),
    ]  # fmt: skip


def test_an_exec_of_another_kind_has_no_content() -> None:
    asked: list[str] = []

    def contents(kind: str, name: str, pty: bool, settings: Settings) -> None:
        asked.append(name)

    Play(contents=contents).started("make all")
    assert asked == ["make all"]
    play = Play(contents=contents).opened().user(execute("x"))
    play.target(wire.ChannelFailure(0))
    assert play.records[0].result.tag == "failed"
