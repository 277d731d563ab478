"""Written conversations: channels, programs, refusals, holds, and what ends the connection."""

from __future__ import annotations

import pytest

from protocols.ssh import wire
from protocols.ssh.actions import Decide, Disconnect, Forget, Intent, Mark, Withdraw
from protocols.ssh.channels import Limits
from protocols.ssh.wire_bodies import ExitSignal, Number, Word
from proxy.core.events import Command
from proxy.core.script import Invocation, Script
from proxy.core.verdict import Allow, Deny, Verdict
from recorder.tape import ERR, OUT, USER, Kind
from tests.ssh.playing_ssh import (
    DENY,
    Play,
    confirm,
    env,
    execute,
    exit_status,
    pty,
    request,
    session,
    verbs,
)

STDERR = wire.STDERR


def refusal(number: int, text: str, status: int = 126) -> list[wire.Message]:
    """What a user sees of a native refusal."""
    return [
        wire.ChannelSuccess(number),
        wire.ExtendedData(number, STDERR, text.encode()),
        exit_status(status, number),
        wire.Eof(number),
        wire.Close(number),
    ]


def test_an_exec_from_its_open_to_its_close() -> None:
    play = Play()
    play.user(session(3)).target(confirm(3, 7))
    play.user(execute("ls -l /srv", 7), wire.Data(7, b"in"), wire.Eof(7))
    assert play.at_target() == [session(3), execute("ls -l /srv", 7), wire.Data(7, b"in"), wire.Eof(7)]
    play.target(wire.ChannelSuccess(3), wire.Data(3, b"out"), wire.ExtendedData(3, STDERR, b"err"))
    play.target(exit_status(3, 3), wire.Eof(3), wire.Close(3))
    assert play.at_user() == [
        confirm(3, 7), wire.ChannelSuccess(3), wire.Data(3, b"out"), wire.ExtendedData(3, STDERR, b"err"),
        exit_status(3, 3), wire.Eof(3), wire.Close(3),
    ]  # fmt: skip
    assert not play.records
    play.user(wire.Close(7))
    assert play.at_target() == [wire.Close(7)]
    [record] = play.records
    assert record.result.tag == "exit 3"
    assert record.result.details == {"flow": 0, "sent": 2, "bytes": 6, "exit": 3}
    assert play.of(Forget) == [Forget(0)]
    assert play.tape.wire(USER).endswith(wire.frame(wire.Close(7).encode()))
    wires = [(channel, payload) for channel, kind, payload in play.tape.records if kind == Kind.WIRE]
    assert (USER, b"in") in wires and (OUT, b"out") in wires and (ERR, b"err") in wires


def test_what_a_command_says_of_itself() -> None:
    play = Play().opened()
    play.user(env("LANG", "C"), pty(), execute("/usr/bin/grep x | sort; rm a"))
    [command] = play.commands
    assert (command.verb, command.kind, command.text) == ("exec", "execute", "/usr/bin/grep x | sort; rm a")
    assert command.objects == ("grep", "sort", "rm")
    assert command.flow == 0
    assert command.facts["login"] == "deploy" and command.facts["pty"] is True
    assert command.facts["env"] == {"LANG": "C"} and command.facts["opaque"] is False
    assert len(command.facts["shell"].invocations) == 3
    assert command.wire == wire.frame(execute("/usr/bin/grep x | sort; rm a").encode())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("rsync --server -logDtpr . /srv", "transfer"),
        ("/usr/bin/rsync --server --sender .", "transfer"),
        ("rsync --server --daemon .", "execute"),
        ("rsync -a x y", "execute"),
        ("git-upload-pack 'a'", "transfer"),
        ("git-receive-pack 'a'", "transfer"),
        ("git-upload-archive 'a'", "transfer"),
        ("git-upload-pack 'a'; rm x", "execute"),
        ("git-upload-pack $x", "execute"),
        ("scp -r -p -t /tmp", "transfer"),
        ("scp -rf /tmp", "transfer"),
        ("scp a b:", "execute"),
        ("scp -oProxyCommand=touch -t b:", "execute"),
        ("ls", "execute"),
    ],
)
def test_the_kind_of_a_command_line(line: str, kind: str) -> None:
    play = Play().opened().user(execute(line))
    assert play.commands[0].kind == kind


def test_a_redirection_is_no_mere_transfer() -> None:
    script = Script((Invocation(("rsync", "--server", ".")),), writes=("/etc/passwd",))
    play = Play(shell=lambda _: script).opened().user(execute("x"))
    assert play.commands[0].kind == "execute"


def test_bytes_that_are_not_utf_8_stay_what_they_are() -> None:
    raw = request("exec", wire.string(b"echo \xff\xfe"))
    play = Play().opened().user(raw)
    assert play.commands[0].text == "echo \udcff\udcfe"
    assert play.at_target() == [wire.decode(raw.encode(), wire.PeerError)]
    assert wire.string(b"echo \xff\xfe") in play.commands[0].wire


def test_a_denied_exec_is_answered_natively_and_the_connection_lives_on() -> None:
    play = Play(lambda command: DENY if command.text == "rm x" else Allow("all")).opened(3, 7)
    play.user(execute("rm x", 7))
    assert play.at_user() == refusal(3, 'gatecast: denied by rule "no": not here\n')
    assert play.at_target() == [wire.Close(7)]
    play.user(wire.Data(7, b"late"), wire.Eof(7), wire.Close(7)).target(wire.Data(3, b"late"), wire.Close(3))
    assert play.at_user() == [] and play.at_target() == []
    assert not play.records and play.of(Forget) == [Forget(0)]
    assert (ERR, b'gatecast: denied by rule "no": not here\n') in [(c, p) for c, _, p in play.tape.records]
    play.started("ls", 3, 7).target(wire.Data(3, b"x"))
    assert play.at_user() == [wire.Data(3, b"x")]


@pytest.mark.parametrize("name", ["shell", "subsystem"])
def test_a_denied_shell_or_subsystem_is_answered_in_the_same_way(name: str) -> None:
    body = Word("sftp").encode() if name == "subsystem" else b""
    play = Play(lambda _: DENY).opened().user(request(name, body))
    assert play.at_user() == refusal(0, 'gatecast: denied by rule "no": not here\n')


def test_a_refusal_on_a_terminal_is_on_its_screen_and_behind_the_terminals_reply() -> None:
    play = Play(lambda _: DENY).opened().user(pty(), execute("rm x"))
    assert play.at_user() == []
    play.target(wire.ChannelSuccess(0))
    text = b'gatecast: denied by rule "no": not here\r\n'
    both = [wire.ChannelSuccess(0), wire.ChannelSuccess(0)]
    assert play.at_user() == [*both, wire.Data(0, text), exit_status(126), wire.Eof(0), wire.Close(0)]


def test_a_refusal_names_the_approval() -> None:
    play = Play(lambda _: None).opened().user(execute("make")).hold()
    play.decide(Deny("x", "denied by bob"), approval="01ABC")
    assert b"(approval 01ABC)" in play.texts()[1]


def test_nothing_of_a_channel_passes_while_its_program_is_undecided() -> None:
    play = Play(lambda command: None if command.text == "slow" else Allow("all")).opened(0, 0).opened(1, 1)
    play.user(execute("slow", 0), wire.Data(0, b"a"), wire.Data(0, b"b"), wire.Eof(0))
    play.user(execute("fast", 1), wire.Data(1, b"c"))
    assert play.at_target() == [execute("fast", 1), wire.Data(1, b"c")]
    play.hold()
    assert play.at_user() == [wire.ExtendedData(0, STDERR, b'gatecast: held by rule "x": approval 01ABC is pending\n')]
    play.decide(Allow("all"))
    assert play.at_target() == [execute("slow", 0), wire.Data(0, b"ab"), wire.Eof(0)]


def test_a_close_takes_back_what_is_held() -> None:
    play = Play(lambda _: None).opened().user(execute("make")).hold()
    key = min(play.undecided)
    play.user(wire.Close(0))
    assert play.of(Withdraw) == [Withdraw(key)]
    assert play.at_target() == [wire.Close(0)]
    play.decide(Allow("too late"))
    play.target(wire.Close(0))
    assert play.at_target() == []
    assert play.at_user()[-1] == wire.Close(0)


@pytest.mark.parametrize("held", [True, False])
def test_ctrl_c_takes_back_what_is_held_and_only_that(held: bool) -> None:
    play = Play(lambda _: None).opened().user(pty()).target(wire.ChannelSuccess(0)).user(execute("make"))
    if held:
        play.hold()
    play.user(wire.Data(0, b"abc\x03"))
    assert bool(play.of(Withdraw)) is held
    play.at_user()
    if held:
        play.decide(Deny("x", "the request was withdrawn"), approval="01ABC", withdrawn=True)
        assert play.at_user()[-3] == exit_status(130)
    else:
        play.decide(Allow("all"))
        assert play.at_target()[-2:] == [execute("make"), wire.Data(0, b"abc\x03")]


def test_what_was_approved_while_it_was_taken_back_stays_refused() -> None:
    play = Play(lambda _: None).opened().user(execute("make")).hold()
    play.user(request("signal", Word("INT").encode(), want_reply=False))
    assert len(play.of(Withdraw)) == 1
    play.at_user()
    play.decide(Allow("all"))
    assert exit_status(130) in play.at_user()
    assert play.at_target() == [wire.Close(0)]


def test_a_second_program_on_a_channel_is_refused() -> None:
    play = Play().started("ls").user(execute("rm x"))
    assert play.at_user() == [wire.ChannelFailure(0)] and play.at_target() == []
    assert len(play.commands) == 1


def test_after_a_programs_failure_another_may_be_asked_for() -> None:
    play = Play().opened().user(request("subsystem", Word("sftp").encode())).target(wire.ChannelFailure(0))
    assert play.records[0].result.tag == "failed"
    play.user(wire.Data(0, b"typed ahead"), execute("sftp-server")).target(wire.ChannelSuccess(0))
    assert play.at_target()[-1] == execute("sftp-server")
    assert play.at_user() == [wire.ChannelFailure(0), wire.ChannelSuccess(0)]


def test_data_before_a_program_end_the_connection() -> None:
    play = Play().opened().user(wire.Data(0, b"x"))
    assert play.of(Disconnect) == [Disconnect(2, "data on a channel before anything was started on it", "user")]
    play.user(execute("ls"))
    assert play.at_target() == []


def test_variables_go_by_the_list() -> None:
    play = Play(settings={"env": ("LC_*", "X?")}).opened()
    play.user(
        env("LC_ALL", "C"),
        env("LD_PRELOAD", "evil"),
        env("X1", "y", want_reply=True),
        env("LANG", "C", want_reply=True),
    )
    assert play.at_target() == [env("LC_ALL", "C"), env("X1", "y", want_reply=True)]
    assert play.at_user() == []
    play.target(wire.ChannelSuccess(0))
    assert play.at_user() == [wire.ChannelSuccess(0), wire.ChannelFailure(0)]
    assert play.marks == ["ssh-refused", "ssh-refused"]


def test_the_gateways_own_variables_stay_here() -> None:
    play = Play().opened().user(env("GATECAST_INTENT", "fix the build", want_reply=True), env("GATECAST_RUN", "r1"))
    assert play.of(Intent) == [Intent("fix the build")]
    assert play.of(Mark) == [Mark("run", "r1")]
    assert play.at_user() == [wire.ChannelSuccess(0)] and play.at_target() == []


@pytest.mark.parametrize("count", [3, 4, 5])
def test_there_are_only_so_many_variables(count: int) -> None:
    play = Play(limits=Limits(env=4)).opened()
    play.user(*(env(f"LC_{number}", "C") for number in range(count)))
    assert len(play.at_target()) == min(count, 4)


@pytest.mark.parametrize("name", ["A=B", "", "LC_\0"])
def test_a_variable_that_is_none_does_not_pass(name: str) -> None:
    play = Play(settings={"env": ("*",)}).opened().user(env(name, "x"))
    assert play.at_target() == []


def test_a_terminals_sizes_are_on_the_tape() -> None:
    play = Play().opened().user(pty(columns=0, rows=0)).target(wire.ChannelSuccess(0))
    change = request("window-change", b"".join(wire.u32(n) for n in (120, 40, 0, 0)), want_reply=False)
    play.user(change)
    assert [(each.columns, each.rows, each.flow) for each in play.resizes] == [(80, 24, 0), (120, 40, 0)]
    assert play.at_target() == [pty(columns=0, rows=0), change]


def test_a_login_without_terminals_gets_none() -> None:
    play = Play(permits=frozenset()).opened().user(pty())
    assert play.at_user() == [wire.ChannelFailure(0)] and play.at_target() == []


def test_a_target_for_single_commands_only() -> None:
    play = Play(settings={"exec_only": True})
    play.opened(0, 0).user(request("shell"))
    text = 'gatecast: denied by rule "exec_only": this target takes single commands only, no interactive shell\n'
    assert play.at_user() == refusal(0, text)
    play.opened(1, 1).user(execute("  ", 1))
    assert play.at_user() == refusal(1, text)
    play.opened(2, 2).user(execute("ls", 2))
    assert play.at_target()[-1] == execute("ls", 2)
    assert [command.text for command in play.commands] == ["ls"]


@pytest.mark.parametrize("asked", [execute("rm -rf /"), request("shell"), request("subsystem", Word("sftp").encode())])
def test_a_certificates_command_takes_the_place_of_any(asked: wire.ChannelRequest) -> None:
    play = Play(force_command="backup --now").opened().user(asked)
    assert play.at_target() == [execute("backup --now")]
    [command] = play.commands
    assert command.text == "backup --now" and command.objects == ("backup",)
    assert command.facts["original_command"] == (
        "" if asked.name == "shell" else Word.read(asked.body, wire.PeerError).text
    )


def test_a_certificates_internal_sftp_is_the_subsystem() -> None:
    play = Play(force_command="internal-sftp -l INFO").opened().user(execute("rm x"))
    assert play.at_target() == [request("subsystem", Word("sftp").encode())]


def test_a_shell_without_a_terminal_is_opaque() -> None:
    play = Play().opened().user(request("shell"))
    assert play.commands[0].facts["opaque"] is True
    play = Play().opened().user(pty(), request("shell"))
    assert play.commands[0].facts["opaque"] is False


def test_a_nul_in_an_argv_is_refused() -> None:
    play = Play().opened().user(execute("ls\0rm"))
    assert play.at_user()[2] == exit_status(126) and not play.commands


def test_plumbing_passes_both_ways() -> None:
    play = Play().started()
    up = [
        request("signal", Word("TERM").encode(), want_reply=False),
        request("break", Number(500).encode()),
        request("eow@openssh.com", want_reply=False),
        request("keepalive@openssh.com"),
    ]
    play.user(*up)
    assert play.at_target() == up
    down = [request("xon-xoff", b"\x01", want_reply=False), request("keepalive@openssh.com")]
    play.target(*down, wire.ChannelSuccess(0), wire.ChannelFailure(0)).user(wire.ChannelFailure(0))
    assert play.at_user() == [*down, wire.ChannelSuccess(0), wire.ChannelFailure(0)]
    assert play.at_target() == [wire.ChannelFailure(0)]


def test_unknown_requests_fail_on_either_side() -> None:
    play = Play().started()
    play.user(request("hyper@example.com"), request("quiet@example.com", want_reply=False))
    play.target(request("hyper@example.com"))
    assert play.at_user() == [wire.ChannelFailure(0)] and play.at_target() == [wire.ChannelFailure(0)]
    assert play.marks == ["ssh-unknown"] * 3
    play.user(request("winadj@putty.projects.tartarus.org"))
    assert play.at_user() == [wire.ChannelFailure(0)] and len(play.marks) == 3


def test_a_signal_ends_a_program() -> None:
    play = (
        Play().started().target(request("exit-signal", ExitSignal("TERM", False, "ended").encode(), want_reply=False))
    )
    play.target(wire.Close(0)).user(wire.Close(0))
    [record] = play.records
    assert record.result.tag == "signal TERM" and record.result.details["signal"] == "TERM"
    assert record.result.error == {"message": "ended"}


def test_the_end_of_the_connection_closes_what_is_open() -> None:
    play = (
        Play(verbs("exec")).started("ls", 0, 0).target(wire.Data(0, b"x")).opened(1, 1).user(request("shell", b"", 1))
    )
    key = min(play.undecided)
    play.carry_out(play.conversation.gone(1.0))
    play.carry_out(play.conversation.gone(1.0))
    [record] = play.records
    assert record.result.tag == "closed" and record.result.details == {"flow": 0, "sent": 0, "bytes": 1}
    assert play.of(Withdraw) == [Withdraw(key)]


def test_a_number_is_used_again_before_the_targets_side_is_closed() -> None:
    play = Play(lambda command: DENY if command.text == "rm" else Allow("all")).opened(0, 0).user(execute("rm"))
    play.at_user(), play.at_target()
    play.user(wire.Close(0), session(0))
    assert play.at_target() == [], "the target still has a channel with this number"
    play.target(wire.Close(0))
    assert play.at_target() == [session(0)]


def test_a_number_is_given_again_before_the_user_has_closed() -> None:
    play = Play(lambda command: DENY if command.text == "rm" else Allow("all")).opened(0, 0).user(execute("rm"))
    play.target(wire.Close(0)).user(session(1)).at_user()
    play.target(confirm(1, 0))
    assert play.at_user() == [], "the user still has a channel that the target gave this number"
    play.user(wire.Close(0))
    assert play.at_user() == [confirm(1, 0)]
    play.user(execute("ls", 0))
    assert play.at_target()[-1] == execute("ls", 0)
    assert play.commands[-1].flow == 1


BAD_USER: list[list[wire.Message]] = [
    [session(0)],  # its number is open
    [wire.Data(9, b"x")],
    [wire.Eof(0), wire.Data(0, b"x")],
    [wire.Eof(0), wire.Eof(0)],
    [wire.Close(0), wire.Data(0, b"x")],
    [confirm(0, 5)],
    [wire.OpenFailure(5, 1)],
    [wire.ChannelOpen("session", 5, 0, 0)],
]


@pytest.mark.parametrize("messages", BAD_USER, ids=str)
def test_what_breaks_the_protocol_ends_the_connection(messages: list[wire.Message]) -> None:
    play = Play().started().user(*messages)
    [end] = play.of(Disconnect)
    assert (end.code, end.blame) == (2, "user")


BAD_TARGET: list[list[wire.Message]] = [
    [confirm(0, 5)],
    [wire.Eof(0), wire.ExtendedData(0, STDERR, b"x")],
    [wire.Data(9, b"x")],
    [wire.Close(0), wire.Close(0)],
    [exit_status(0, 9)],
]


@pytest.mark.parametrize("messages", BAD_TARGET, ids=str)
def test_a_target_that_breaks_the_protocol_is_blamed(messages: list[wire.Message]) -> None:
    play = Play().started().target(*messages)
    [end] = play.of(Disconnect)
    assert (end.code, end.blame) == (2, "target")


@pytest.mark.parametrize("late", [wire.WindowAdjust(9, 1), wire.ChannelSuccess(9), wire.ChannelFailure(9)])
def test_what_may_come_late_is_ignored(late: wire.Message) -> None:
    play = Play().started().user(late).target(late)
    assert not play.of(Disconnect) and play.at_user() == [] and play.at_target() == []


@pytest.mark.parametrize("count", [3, 4, 5])
def test_only_so_many_requests_wait(count: int) -> None:
    play = Play(lambda _: None, limits=Limits(waiting=4)).opened().user(execute("make"))
    play.user(*[request("keepalive@openssh.com")] * count)
    assert bool(play.of(Disconnect)) is (count > 4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_so_many_channels_are_open(count: int) -> None:
    play = Play(limits=Limits(channels=2))
    play.user(*(session(number) for number in range(count)))
    assert len(play.at_target()) == min(count, 2)
    assert [type(each) for each in play.at_user()] == [wire.OpenFailure] * (count - 2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_so_much_nonsense_is_taken(count: int) -> None:
    play = Play(limits=Limits(remarks=2)).started().user(*[bytes((120,))] * count)
    assert bool(play.of(Disconnect)) is (count > 2)


def test_what_is_refused_may_be_asked_for_again_and_again() -> None:
    play = Play(limits=Limits(remarks=1)).opened().user(*[env("LD_PRELOAD", "x")] * 5)
    assert not play.of(Disconnect) and play.marks == ["ssh-refused"] * 5


def test_sessions_end_where_no_more_are_wanted() -> None:
    play = Play().user(wire.GlobalRequest("no-more-sessions@openssh.com", False), session(0))
    assert play.at_target() == [wire.GlobalRequest("no-more-sessions@openssh.com", False)]
    assert play.at_user() == [wire.OpenFailure(0, 1, "gatecast: the connection takes no more sessions")]


def test_a_target_does_not_open_sessions_and_nobody_opens_what_is_unknown() -> None:
    play = Play().target(session(0)).user(wire.ChannelOpen("warp@example.com", 0, 10, 10))
    assert play.at_target()[0] == wire.OpenFailure(0, 1, "gatecast: the target's side does not open these")
    assert play.at_user()[0] == wire.OpenFailure(0, 3, "gatecast: unknown channel type")


def interleavings() -> list[list[tuple[int, wire.Message]]]:
    """A conversation in two orders: the sides in turns, and each as early as it may."""
    user: list[wire.Message] = [execute("cat"), wire.Data(0, b"a"), wire.Data(0, b"b"), wire.Eof(0)]
    target: list[wire.Message] = [wire.ChannelSuccess(0), wire.Data(0, b"a"), wire.Data(0, b"b"), wire.Eof(0)]
    in_turns = [each for pair in zip(user, target, strict=True) for each in ((0, pair[0]), (1, pair[1]))]
    return [in_turns, [(0, each) for each in user] + [(1, each) for each in target]]


@pytest.mark.parametrize("steps", interleavings(), ids=["in turns", "user first"])
def test_the_order_of_the_sides_changes_nothing(steps: list[tuple[int, wire.Message]]) -> None:
    play = Play().opened()
    for side, message in steps:
        (play.target if side else play.user)(message)
    play.target(exit_status(0), wire.Close(0)).user(wire.Close(0))
    assert play.at_target() == [message for side, message in steps if not side] + [wire.Close(0)]
    assert play.at_user() == [message for side, message in steps if side] + [exit_status(0), wire.Close(0)]
    assert play.records[0].result.details == {"flow": 0, "sent": 2, "bytes": 2, "exit": 0}


def test_keys_are_never_used_twice() -> None:
    def rule(command: Command) -> Verdict | None:
        return Allow("all")

    play = Play(rule)
    for number in range(5):
        play.started("ls", number, number)
    keys = [action.key for action in play.of(Decide)]
    assert len(keys) == 5 == len(set(keys))
