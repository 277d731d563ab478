"""The tape has all that a user sent: what passed, what was asked for, and what went nowhere, each flow in its order."""

from __future__ import annotations

import pytest

from protocols.ssh import sftp_wire as packets
from protocols.ssh import wire
from protocols.ssh.actions import Disconnect
from protocols.ssh.contents import content_for
from protocols.ssh.wire_bodies import Word, X11Request
from proxy.core.events import Command
from proxy.core.verdict import Allow, Deny, Verdict
from proxy.policy.shell import read_shell
from proxy.terminal.content import Step
from recorder.tape import USER
from tests.ssh import sftp_stage as sftp
from tests.ssh.playing_ssh import (
    DENY,
    PACKET,
    WINDOW,
    Play,
    direct,
    env,
    execute,
    exit_status,
    listen,
    pty,
    request,
    session,
)
from tests.ssh.test_conversation_ssh_contents import Contents, Scripted, lines, on_terminal

SFTP = request("subsystem", Word("sftp").encode())


def typed(play: Play, flow: int = 0) -> bytes:
    """What the tape has of a flow's user."""
    return play.tape.stream(USER, flow)


def said(play: Play) -> list[wire.Message]:
    """The user's messages on the tape."""
    return [wire.decode(each, AssertionError) for each in wire.unframe(play.tape.stream(USER, None), AssertionError)]  # type: ignore[arg-type]


# -- what a Content asks for ----------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [Allow("all"), DENY])
def test_what_a_line_is_asked_with_is_the_streams_own(verdict: Allow | Deny) -> None:
    play = on_terminal(Play(lines, contents=Contents())).user(wire.Data(0, b"plain\rls\r"))
    assert typed(play) == b"plain\rls\r"
    play.decide(verdict).user(wire.Data(0, b"plain\r"))
    play.at_target()
    assert typed(play).startswith(b"plain\rls\rplain\r") and typed(play).count(b"ls\r") == 1
    assert not any(isinstance(each, wire.Data) for each in said(play))


def test_an_ask_that_is_too_long_for_one_message_is_taped_once() -> None:
    play = Play(lines, contents=Contents()).opened(window=64).user(SFTP, wire.Data(0, b"x" * 60 + b"\n"))
    play.decide(Allow("all")).target(wire.WindowAdjust(0, 64))
    assert b"".join(each.data for each in play.at_target() if isinstance(each, wire.Data)) == b"x" * 60 + b"\n"
    assert typed(play) == b"x" * 60 + b"\n"


def test_what_is_asked_for_waits_for_what_was_sent_before_it() -> None:
    """The target's window has no room for that yet: the tape has the flow in its order all the same."""

    class Doubling(Scripted):
        def from_user(self, data: bytes, now: float) -> list[Step]:
            return super().from_user(data.replace(b"plain\n", b"plain\n" * 2), now)

    play = Play(lines, contents=lambda start, name, has, settings: Doubling(settings)).opened(window=9)
    play.user(SFTP, wire.Data(0, b"plain\nls\n"))
    assert not play.undecided and typed(play) == b"plain\npla"[:6] + b"pla"
    play.target(wire.WindowAdjust(0, 100))
    assert play.undecided and typed(play) == b"plain\n" * 2 + b"ls\n"
    play.decide(Allow("all"))
    assert b"".join(each.data for each in play.at_target() if isinstance(each, wire.Data)) == b"plain\n" * 2 + b"ls\n"


@pytest.mark.parametrize("end", [wire.Close(0), None])
def test_what_the_window_has_no_room_for_when_the_channel_ends(end: wire.Message | None) -> None:
    class Doubling(Scripted):
        def from_user(self, data: bytes, now: float) -> list[Step]:
            return super().from_user(data.replace(b"plain\n", b"plain\n" * 2), now)

    play = Play(lines, contents=lambda start, name, has, settings: Doubling(settings)).opened(window=9)
    play.user(SFTP, wire.Data(0, b"plain\nls\n"))
    play.user(end) if end is not None else play.carry_out(play.conversation.gone(0.0))
    assert typed(play) == b"plain\n" * 2 + b"ls\n" and not play.undecided


# -- what goes nowhere ----------------------------------------------------------------------------------


def test_what_is_sent_on_a_denied_channel() -> None:
    play = Play(lambda _: DENY).opened().user(execute("rm x"), wire.Data(0, b"typed"), env("LANG", "C"), wire.Eof(0))
    play.user(wire.Close(0))
    assert typed(play) == b"typed"
    assert said(play)[1:] == [execute("rm x"), env("LANG", "C"), wire.Eof(0), wire.Close(0)]
    assert play.at_target() == [wire.Close(0)], "and nothing of it went on"


def test_what_waited_for_a_denied_program() -> None:
    play = Play(lambda _: None).opened().user(execute("rm x"), wire.Data(0, b"typed "), wire.Data(0, b"ahead"))
    change = request("window-change", b"".join(wire.u32(n) for n in (100, 30, 0, 0)), want_reply=False)
    play.user(change, wire.Eof(0)).decide(DENY)
    assert typed(play) == b"typed ahead" and said(play)[-2:] == [change, wire.Eof(0)]


def test_what_ctrl_c_takes_back() -> None:
    play = on_terminal(Play(lines, contents=Contents())).user(wire.Data(0, b"make\r")).hold()
    play.user(wire.Data(0, b"typed "), wire.Data(0, b"ahead\x03plain\r"))
    play.decide(Deny("x", "the request was withdrawn"), withdrawn=True)
    play.at_target()
    assert typed(play) == b"make\rtyped ahead\x03plain\r"


def test_what_the_target_has_no_ear_for() -> None:
    play = Play().started("cat").target(exit_status(0), wire.Eof(0), wire.Close(0))
    play.user(wire.Data(0, b"late"), env("LANG", "C"), wire.Eof(0), wire.Close(0))
    assert typed(play) == b"late"
    assert said(play)[-3:] == [env("LANG", "C"), wire.Eof(0), wire.Close(0)]
    assert play.at_target() == [env("LANG", "C"), wire.Close(0)]


def test_what_follows_a_program_that_could_not_be_started() -> None:
    play = Play().opened().user(execute("x")).target(wire.ChannelFailure(0)).user(wire.Data(0, b"data"))
    assert typed(play) == b"data" and play.at_target() == [execute("x")]


def test_requests_that_the_gate_answers() -> None:
    unknown = request("what@example.com", b"?")
    intent, refused = env("GATECAST_INTENT", "why"), env("LD_PRELOAD", "x")
    second = execute("two")
    play = (
        Play(permits=frozenset()).opened().user(unknown, intent, refused, pty(), request("auth-agent-req@openssh.com"))
    )
    play.user(execute("one"), second)
    assert said(play)[1:] == [
        unknown, intent, refused, pty(), request("auth-agent-req@openssh.com"), execute("one"), second,
    ]  # fmt: skip
    assert play.at_target() == [execute("one")]


def test_a_command_in_whose_place_a_certificate_puts_another() -> None:
    play = Play(force_command="backup").opened().user(execute("sh"))
    assert said(play)[-2:] == [execute("sh"), execute("backup")] and play.at_target() == [execute("backup")]


def test_opens_and_global_requests_that_the_gate_answers() -> None:
    strange = wire.GlobalRequest("what@example.com", True, b"")
    open_strange = wire.ChannelOpen("what@example.com", 3, WINDOW, PACKET)
    cancel = listen(name="cancel-tcpip-forward")
    play = Play(permits=frozenset()).user(strange, open_strange, cancel, direct(4), listen())
    assert said(play) == [strange, open_strange, cancel, direct(4), listen()] and play.at_target() == []
    play = Play().user(bytes([150]) + b"?")
    assert play.tape.stream(USER, None) == wire.frame(bytes([150]) + b"?")


def test_what_was_open_when_the_connection_ended() -> None:
    play = Play(lambda _: None).opened().user(execute("rm x"), wire.Data(0, b"typed"), listen(), listen(port=2))
    play.carry_out(play.conversation.gone(0.0))
    assert typed(play) == b"typed" and said(play)[-1] == listen(port=2)


# -- sftp and scp ---------------------------------------------------------------------------------------


def everything(command: Command) -> Verdict | None:
    return None if command.verb.startswith("file-") else Allow("all")


def files(rule: object = everything) -> Play:
    """SFTP has begun; the gate's REALPATHs are answered with the path itself."""
    play = Play(rule, contents=content_for(read_shell), shell=read_shell)  # type: ignore[arg-type]
    play.opened().user(SFTP).target(wire.ChannelSuccess(0)).user(wire.Data(0, packets.init()))
    play.target(wire.Data(0, packets.packet(packets.VERSION, sftp.U32(3))))
    answer_look_ups(play)
    return play


def answer_look_ups(play: Play) -> bytes:
    """Answer what the gate asks; returns what else has reached the target."""
    data = b"".join(each.data for each in play.at_target() if isinstance(each, wire.Data))
    kept = b""
    for code, body in sftp.packets(data):
        fields = packets.Fields(body, 0, len(body))
        if code == packets.REALPATH:
            name = fields.u32(), fields.string()
            reply = sftp.request(packets.NAME, name[0], sftp.U32(1), sftp.S(b"/h"), sftp.S(b""), sftp.U32(0))
            play.target(wire.Data(0, reply))
        else:
            kept += packets.packet(code, body)
    return kept


@pytest.mark.parametrize("verdict", [Allow("all"), DENY])
def test_a_file_that_is_asked_for(verdict: Allow | Deny) -> None:
    play = files()
    opening = sftp.opening(b"a", 1)
    play.user(wire.Data(0, opening))
    answer_look_ups(play)
    play.decide(verdict)
    assert typed(play) == packets.init() + opening
    assert answer_look_ups(play) == (opening if isinstance(verdict, Allow) else b"")


def test_requests_of_sftp_that_the_gate_answers() -> None:
    play = files()
    sent = [
        sftp.closing(b"no", 1),
        sftp.request(packets.READDIR, 2, sftp.S(b"no")),
        sftp.extended(b"what@example.com", 3),
        sftp.request(packets.FSETSTAT, 4, sftp.S(b"no"), sftp.U32(0)),
    ]
    play.user(*(wire.Data(0, each) for each in sent), wire.Data(0, sftp.writing(b"no", 5, 0, b"body")))
    assert typed(play) == packets.init() + b"".join(sent) + sftp.writing(b"no", 5, 0, b"body")[:-4]
    assert answer_look_ups(play) == b""


def test_an_offer_of_a_later_version() -> None:
    play = Play(contents=content_for(read_shell), shell=read_shell).opened().user(SFTP)
    play.user(wire.Data(0, packets.packet(packets.INIT, sftp.U32(6))))
    assert typed(play) == packets.packet(packets.INIT, sftp.U32(6))
    assert wire.Data(0, packets.init()) in play.at_target()


@pytest.mark.parametrize("end", [wire.Eof(0), wire.Close(0)])
def test_half_a_request_at_the_end(end: wire.Message) -> None:
    play = files().user(wire.Data(0, sftp.opening(b"a", 1)[:9]), end)
    if isinstance(end, wire.Close):
        play.target(wire.Close(0))
    assert typed(play) == packets.init() + sftp.opening(b"a", 1)[:9]
    assert end in play.at_target()


def test_requests_that_wait_when_the_channel_ends() -> None:
    """But the content of a file that nobody asked to keep."""
    play = files()
    first, second, third = sftp.opening(b"a", 1), sftp.opening(b"b", 2), sftp.writing(b"h", 3, 0, b"body")
    play.user(wire.Data(0, first + second), wire.Data(0, third), wire.Close(0)).target(wire.Close(0))
    assert typed(play) == packets.init() + first + second + third[:-4]


def test_what_is_no_sftp() -> None:
    play = files().user(wire.Data(0, b"\xff" * 12), wire.Data(0, b"more"))
    assert typed(play) == packets.init() + b"\xff" * 12 + b"more"


def test_a_file_of_scp_that_is_refused() -> None:
    rule = lambda command: DENY if command.verb == "file-write" else Allow("all")  # noqa: E731
    play = Play(rule, contents=content_for(read_shell), shell=read_shell).opened().user(execute("scp -t /srv"))
    play.target(wire.ChannelSuccess(0), wire.Data(0, b"\0")).user(wire.Data(0, b"C0644 4 a\n"))
    play.user(wire.Data(0, b"C0644 4 ../b\n"), wire.Data(0, b"C06")).user(wire.Close(0)).target(wire.Close(0))
    assert typed(play) == b"C0644 4 a\nC0644 4 ../b\nC06"


def test_the_content_of_a_file_of_scp_is_not_taped_when_it_goes_nowhere() -> None:
    play = Play(contents=content_for(read_shell), shell=read_shell).opened().user(execute("scp -t /srv"))
    play.target(wire.ChannelSuccess(0), wire.Data(0, b"\0")).user(wire.Data(0, b"C0644 4 a\n"))
    play.user(wire.Data(0, b"body")).user(wire.Close(0)).target(wire.Close(0))
    assert typed(play) == b"C0644 4 a\n"


# -- results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "body"),
    [("auth-agent-req@openssh.com", b""), ("x11-req", X11Request(False, "MIT-MAGIC-COOKIE-1", "00", 0).encode())],
)
def test_what_is_lent_has_a_result(name: str, body: bytes) -> None:
    for reply, tag in ((wire.ChannelSuccess(0), "ok"), (wire.ChannelFailure(0), "failed")):
        play = Play().opened().user(request(name, body)).target(reply)
        [record] = play.records
        assert (record.result.tag, dict(record.result.details)) == (tag, {"flow": 0})
        assert record.permit.command.verb in ("auth-agent", "x11")
    play = Play().opened().user(request(name, body), execute("x")).target(wire.Close(0)).user(wire.Close(0))
    assert [record.result.tag for record in play.records] == ["closed", "closed"]
    play = Play().opened().user(request(name, body), execute("x"), session(1))
    play.target(wire.ChannelSuccess(0), wire.ChannelFailure(0))
    assert [record.result.tag for record in play.records] == ["ok", "failed"]


def test_a_forward_that_is_listened_for_has_a_result() -> None:
    for reply, tag in ((wire.RequestSuccess(), "ok"), (wire.RequestFailure(), "failed")):
        play = Play().user(listen(), wire.GlobalRequest("keepalive@openssh.com", True, b"")).target(reply, reply)
        [record] = play.records
        assert (record.result.tag, record.permit.command.verb) == (tag, "tcpip-forward")
    play = Play().user(listen())
    play.carry_out(play.conversation.gone(0.0))
    assert [record.result.tag for record in play.records] == ["closed"]
    assert not play.of(Disconnect)
