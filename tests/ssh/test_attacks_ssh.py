"""Attacks on SSH that need no sockets: paths that hide where they lead, terminals that are none, and the like."""

from __future__ import annotations

import pytest

from protocols.ssh import sftp_wire as wire
from protocols.ssh import wire as wire4254
from protocols.ssh.wire_bodies import Pty, encode_modes
from proxy.policy.shell import read_shell
from proxy.terminal.content import Ask, Settings
from proxy.terminal.terminal import terminal_content
from tests.ssh.playing_ssh import Play, execute, pty
from tests.ssh.sftp_stage import U32, S, begun, extended, opening, packets, request

# -- SFTP: a path that REALPATH gives up on, and the kernel does not ------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_file_whose_links_the_target_does_not_resolve_is_not_opened(there: bool) -> None:
    stage = begun()
    stage.answering = False
    stage.user(opening(b"/home/alice/chain", 5))
    (parent, _), (whole, path) = stage.lookups
    assert path == b"/home/alice/chain"
    stage.target(request(wire.NAME, parent, U32(1), S(b"/home/alice"), S(b""), U32(0)))
    stage.target(wire.status(whole, wire.FX_NO_SUCH_FILE, "too many links"))
    assert packets(stage.gate_up)[-1] == (wire.LSTAT, (whole - 1).to_bytes(4, "big") + S(b"/home/alice/chain"))
    attributes = request(wire.ATTRS, whole - 1, U32(0))
    stage.target(attributes if there else wire.status(whole - 1, wire.FX_NO_SUCH_FILE, ""))
    assert stage.commands[0].facts["resolved"] is False
    up = stage.take()[0]
    assert [code for code, _ in up] == ([] if there else [wire.OPEN])


@pytest.mark.parametrize("status", [wire.FX_NO_SUCH_FILE, wire.FX_FAILURE, wire.FX_BAD_MESSAGE])
def test_a_file_in_a_directory_that_cannot_be_resolved_is_decided_and_never_opened(status: int) -> None:
    stage = begun()
    stage.answering = False
    stage.user(request(wire.LSTAT, 5, S(b"chain/x")))
    ((parent, _),) = stage.lookups
    stage.target(wire.status(parent, status, ""))
    assert [command.objects for command in stage.commands] == [("/home/alice/chain/x",)]
    assert stage.statuses() == [(5, status, "gatecast: the path cannot be resolved")]
    assert [result.tag for result in stage.results] == [wire.status_text(status)]
    stage.answering = True
    stage.lookups.clear()
    stage.user(request(wire.LSTAT, 6, S(b"/etc/passwd")))
    assert [code for code, _ in stage.take()[0]] == [wire.LSTAT], "the session goes on"


def test_what_a_new_link_holds_may_lead_nowhere() -> None:
    stage = begun()
    stage.missing = {b"/gone"}
    stage.user(request(wire.SYMLINK, 5, S(b"/gone/x"), S(b"/home/alice/l")))
    assert [code for code, _ in stage.take()[0]] == [wire.SYMLINK]


# -- terminals, certificates ---------------------------------------------------------------------------


def test_a_second_terminal_is_refused_and_the_first_one_stays() -> None:
    play = Play().opened().user(pty(), pty(), execute("bash"))
    assert [type(each).__name__ for each in play.at_target()] == ["ChannelRequest", "ChannelRequest"]
    play.target(wire4254.ChannelSuccess(0), wire4254.ChannelSuccess(0))
    kinds = [type(each).__name__ for each in play.at_user()]
    assert kinds == ["ChannelSuccess", "ChannelFailure", "ChannelSuccess"]
    assert play.commands[-1].facts["pty"] is True


@pytest.mark.parametrize(
    ("forced", "passes"),
    [
        ("internal-sftp", True), ("internal-sftp -l INFO -f AUTH", True), ("internal-sftp -lINFO -e", True),
        ("internal-sftp -R", False), ("internal-sftp -l INFO -R", False), ("internal-sftp -d /srv", False),
        ("internal-sftp -p read", False), ("internal-sftp -eR", False), ("internal-sftp x", False),
    ],
)  # fmt: skip
def test_what_a_certificate_forbids_sftp_is_not_forgotten(forced: str, passes: bool) -> None:
    play = Play(force_command=forced).opened().user(execute("ls"))
    asked = [each for each in play.at_target() if isinstance(each, wire4254.ChannelRequest)]
    assert [each.name for each in asked] == (["subsystem"] if passes else [])
    if not passes:
        assert b"options of internal-sftp cannot be kept" in play.texts()[1]


@pytest.mark.parametrize("name", [b"expand-path@openssh.com", b"home-directory"])
def test_an_extension_that_is_answered_with_a_name_breaks_nothing(name: bytes) -> None:
    stage = begun()
    answer = request(wire.NAME, 5, U32(1), S(b"/root"), S(b""), U32(0))
    stage.user(extended(name, 5, S(b"~"))).target(answer)
    assert not stage.broken and stage.take()[1][-1:] == packets(answer)


@pytest.mark.parametrize(("keys", "opaque"), [(b"hunter$(2", False), (b"hunx\x7fter", False), (b"lsx\x17rm x", True)])
def test_what_was_edited_without_an_echo_is_known_to_nobody(keys: bytes, opaque: bool) -> None:
    content = terminal_content(Settings(flow=0), read_shell)
    content.from_target("out", b"$ su\r\nPassword: ", 0.0)
    for at, key in enumerate((*keys, 13)):
        steps = content.from_user(bytes((key,)), 1.0 + at / 100)
    steps = steps if any(isinstance(step, Ask) for step in steps) else content.tick(9.0)
    (ask,) = (step for step in steps if isinstance(step, Ask))
    assert ask.command.text == "(hidden input)" and not ask.command.objects
    assert ask.command.facts["opaque"] is opaque


# -- keys and terminals that run a line without Enter ----------------------------------------------------


def at_prompt(keys: bytes, strict: bool = False) -> list[str]:
    """Type keys at a shell's prompt that echoes them; returns the lines that are asked for."""
    content = terminal_content(Settings(flow=0, hold_when_unsure=strict), read_shell)
    content.from_target("out", b"\x1b[?2004hvm# ", 0.0)
    asked: list[str] = []
    for at, key in enumerate(keys):
        now = 1.0 + at / 100
        steps = content.from_user(bytes((key,)), now)
        if chr(key).isprintable() and keys[at - 1 : at] != b"\x1b":
            steps += content.from_target("out", bytes((key,)), now + 0.005)
        asked += [step.command.text for step in steps if isinstance(step, Ask)]
    return asked + [step.command.text for step in content.tick(9.0) if isinstance(step, Ask)]


@pytest.mark.parametrize("key", [b"\t", b"\x18*", b"\x1b\x05", b"\x1b\t"])
def test_what_expands_a_substitution_is_asked_for(key: bytes) -> None:
    for line in (b"$(touch x)", b"ls `touch x`", b"cat <(touch x)"):
        assert at_prompt(line + key)[:1] == [line.decode()]
    assert at_prompt(b"ls x" + key) == [], "no other completion is a command"


@pytest.mark.parametrize("key", [b"\x1ba", b"\x1bA"])
def test_accept_and_hold_submits_where_nothing_may_be_unsure(key: bytes) -> None:
    assert at_prompt(b"touch x" + key, strict=True) == ["touch x"]
    assert at_prompt(b"touch x" + key) == []


@pytest.mark.parametrize(
    ("modes", "passes"),
    [
        ({3: 127, 4: 21, 6: 255, 33: 0, 36: 1, 53: 1}, True), ({}, True), ({33: 1}, False), ({37: 1}, False),
        ({3: ord("x")}, False), ({6: ord(" ")}, False), ({13: ord("~")}, False),
    ],
)  # fmt: skip
def test_a_terminal_that_changes_what_is_typed_is_refused(modes: dict[int, int], passes: bool) -> None:
    body = Pty("xterm", 80, 24, 0, 0, encode_modes(modes)).encode()
    play = Play().opened().user(wire4254.ChannelRequest(0, "pty-req", True, body), execute("sh"))
    asked = [each.name for each in play.at_target() if isinstance(each, wire4254.ChannelRequest)]
    assert asked == (["pty-req", "exec"] if passes else ["exec"])
    assert play.commands[0].facts["pty"] is passes


@pytest.mark.parametrize("keys", [b"lx\x7fs", b"rm x;#\x15ls"])
def test_editing_that_is_not_echoed_is_opaque(keys: bytes) -> None:
    content = terminal_content(Settings(flow=0), read_shell)
    content.from_target("out", b"# ", 0.0)
    for at, key in enumerate((*keys, 13)):
        steps = content.from_user(bytes((key,)), 1.0 + at / 100)
    (ask,) = (step for step in (*steps, *content.tick(9.0)) if isinstance(step, Ask))
    assert (ask.command.text, ask.command.facts["opaque"]) == ("(hidden input)", True)
