"""The lobby as written conversations: what a user hears where there is no target, and how a guest is taken over."""

from __future__ import annotations

import pytest

from protocols.ssh import lobby as lobby_module
from protocols.ssh import wire
from protocols.ssh.lobby import FIRST_NUMBER, KEPT_LIMIT, SEATS_LIMIT, WINDOW_BYTES, Lobby
from proxy.core.errors import UserPeerError
from recorder.tape import USER
from tests.ssh.playing_ssh import (
    WINDOW,
    Play,
    confirm,
    direct,
    env,
    execute,
    exit_status,
    listen,
    pty,
    request,
    session,
)

SEAT = FIRST_NUMBER
REASON = "access denied"


def heard(frames: list[bytes]) -> list[wire.Message]:
    return [wire.decode(payload, UserPeerError) for payload in wire.unframe(b"".join(frames), UserPeerError)]


def tell(lobby: Lobby, *messages: wire.Message) -> list[wire.Message]:
    return heard([each for message in messages for each in lobby.from_user(message.encode())])


def admitted(number: int = 0) -> wire.Message:
    return wire.OpenConfirmation(number, SEAT, WINDOW_BYTES, lobby_module.PACKET_BYTES)


def ending(number: int, text: bytes, screen: bool = False) -> list[wire.Message]:
    said = wire.Data(number, text + b"\r\n") if screen else wire.ExtendedData(number, wire.STDERR, text + b"\n")
    return [wire.ChannelSuccess(number), said, exit_status(255, number), wire.Eof(number), wire.Close(number)]


# -- turned away ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [False, True])
def test_a_program_is_answered_with_the_reason(early: bool) -> None:
    lobby = Lobby()
    script = [session(3), env("LANG", "C", want_reply=True, recipient=SEAT), execute("ls", SEAT)]
    if early:
        said = tell(lobby, *script) + heard(lobby.refuse(1, REASON))
    else:
        assert lobby.refuse(1, REASON) == []
        said = tell(lobby, *script)
    assert said == [admitted(3), wire.ChannelSuccess(3), *ending(3, b"gatecast: access denied")]
    assert lobby.told and tell(lobby, wire.Close(SEAT), wire.Eof(SEAT)) == []


def test_a_terminal_shows_it_on_its_screen() -> None:
    lobby = Lobby()
    lobby.refuse(1, REASON)
    said = tell(lobby, session(), pty(SEAT), request("shell", recipient=SEAT))
    assert said == [admitted(), wire.ChannelSuccess(0), *ending(0, b"gatecast: access denied", screen=True)]


def test_everything_else_is_refused() -> None:
    lobby = Lobby()
    lobby.refuse(2, "no route")
    said = tell(lobby, direct(4), listen(), listen(port=1))
    assert said == [wire.OpenFailure(4, 2, "gatecast: no route"), wire.RequestFailure(), wire.RequestFailure()]
    assert tell(lobby, session(), request("what@example.com", recipient=SEAT))[1:] == [wire.ChannelFailure(0)]
    assert tell(lobby, wire.Close(SEAT)) == [wire.Eof(0), wire.Close(0)]


def test_no_more_is_said_than_the_window_takes() -> None:
    for window, said in ((0, []), (8, [wire.ExtendedData(0, wire.STDERR, b"gatecast")])):
        lobby = Lobby()
        lobby.refuse(1, REASON)
        found = tell(lobby, session(window=window), execute("x", SEAT))
        assert [each for each in found if isinstance(each, wire.ExtendedData)] == said


# -- held -----------------------------------------------------------------------------------------------


def test_a_hold_is_told_once_to_whatever_is_started() -> None:
    lobby = Lobby()
    assert tell(lobby, session(), execute("ls", SEAT)) == [admitted()]
    notice = wire.ExtendedData(0, wire.STDERR, b"gatecast: held: 01ABC\n")
    assert heard(lobby.held("held: 01ABC")) == [notice]
    assert tell(lobby, session(1)) == [wire.OpenConfirmation(1, SEAT + 1, WINDOW_BYTES, lobby_module.PACKET_BYTES)]
    assert tell(lobby, pty(SEAT + 1), request("shell", recipient=SEAT + 1)) == [
        wire.Data(1, b"gatecast: held: 01ABC\r\n")
    ]
    assert len(lobby.kept) == 5 and not lobby.told


def test_ctrl_c_on_a_terminal_takes_it_back() -> None:
    for first, interrupted in (([], False), ([pty(SEAT)], True)):
        lobby = Lobby()
        tell(lobby, session(), *first, request("shell", recipient=SEAT), wire.Data(SEAT, b"x\x03"))
        assert lobby.interrupted is interrupted


def test_what_waits_is_bounded() -> None:
    lobby = Lobby()
    for number in range(KEPT_LIMIT):
        tell(lobby, listen(port=number))
    with pytest.raises(UserPeerError, match="messages wait"):
        tell(lobby, listen())
    lobby = Lobby()
    for number in range(SEATS_LIMIT):
        tell(lobby, session(number))
    with pytest.raises(UserPeerError, match="too many sessions"):
        tell(lobby, session(SEATS_LIMIT))


@pytest.mark.parametrize("message", [wire.Data(7, b"x"), execute("x", 7), wire.Close(7), wire.WindowAdjust(7, 1)])
def test_a_channel_that_is_not_open(message: wire.Message) -> None:
    lobby = Lobby()
    lobby.refuse(1, REASON)
    with pytest.raises(UserPeerError):
        tell(lobby, message)


# -- guests ---------------------------------------------------------------------------------------------


def taken_over(*messages: wire.Message, notice: str = "held") -> tuple[Play, int]:
    """A conversation that takes over what a user has said in the lobby; and how much the lobby has said."""
    lobby = Lobby()
    lobby.held(notice)
    tell(lobby, *messages)
    play = Play()
    play.conversation.adopt(lobby.seats.values())
    play.user(*lobby.kept)
    return play, lobby.seats[SEAT].said_bytes


@pytest.mark.parametrize("window", [0, 100, WINDOW_BYTES, WINDOW])
def test_a_guest_is_taken_over(window: int) -> None:
    play, cost = taken_over(session(3), execute("cat", SEAT), wire.Data(SEAT, b"typed"))
    assert cost == len("gatecast: held\n") and play.at_target() == [session(3, WINDOW - cost)]
    play.target(confirm(3, 9, window))
    more = window - WINDOW_BYTES
    assert play.at_user() == ([wire.WindowAdjust(3, more)] if more > 0 else []), "it has been let in already"
    play.target(wire.ChannelSuccess(3), wire.WindowAdjust(3, 4000))
    found = play.at_target()
    assert found == [execute("cat", 9), wire.Data(9, b"typed")]
    granted = sum(each.size for each in play.at_user() if isinstance(each, wire.WindowAdjust))
    assert max(more, 0) + WINDOW_BYTES + granted == window + 4000, "the user's room is the target's"
    play.user(wire.Data(SEAT, b"more"), wire.Eof(SEAT)).target(wire.Data(3, b"typedmore"), wire.Close(3))
    assert play.at_target() == [wire.Data(9, b"more"), wire.Eof(9)]
    assert play.at_user() == [wire.Data(3, b"typedmore"), wire.Close(3)]
    play.user(wire.Close(SEAT))
    assert play.at_target() == [wire.Close(9)] and play.records[-1].result.tag == "closed"
    assert play.tape.stream(USER, 0) == b"typedmore"


def test_two_guests_and_a_later_session_do_not_meet() -> None:
    play, _ = taken_over(session(0), session(1), execute("one", SEAT), execute("two", SEAT + 1))
    play.target(confirm(1, 0), confirm(0, 1))
    play.user(session(2)).target(confirm(2, 2)).user(execute("three", 2))
    assert play.at_target()[-3:] == [execute("one", 1), session(2), execute("three", 2)]
    assert [command.text for command in play.commands] == ["two", "one", "three"]


def test_a_guest_whom_the_target_refuses_is_told_and_sent_off() -> None:
    play, _ = taken_over(session(3), execute("cat", SEAT))
    play.target(wire.OpenFailure(3, 1, "not here"))
    assert play.at_user() == [
        wire.ExtendedData(3, wire.STDERR, b"gatecast: not here\n"), exit_status(255, 3), wire.Eof(3), wire.Close(3)
    ]  # fmt: skip
    play.user(wire.Close(SEAT)).user(session(3)).target(confirm(3, 5))
    assert play.at_user() == [confirm(3, 5)], "the number is free again"


def test_what_waits_for_a_number_at_the_end_is_on_the_tape() -> None:
    play, _ = taken_over(session(3), execute("cat", SEAT))
    play.carry_out(play.conversation.gone(0.0))
    assert play.tape.stream(USER, None).endswith(wire.frame(execute("cat", SEAT).encode()))
