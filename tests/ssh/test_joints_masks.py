"""Masks beside decoded transfers and what is lent: packets stay whole, text is masked, the rest is refused."""

from __future__ import annotations

import pytest

from protocols.ssh import sftp_wire as packets
from protocols.ssh import wire
from protocols.ssh.contents import content_for
from protocols.ssh.wire_bodies import Origin, Word, X11Request
from proxy.core.events import Command
from proxy.core.verdict import Allow, Mask
from proxy.masking import Masking
from proxy.policy.shell import read_shell
from recorder.tape import ERR, OUT
from tests.fakes import FakeMasker
from tests.ssh import sftp_stage as sftp
from tests.ssh.playing_ssh import MASKS, PACKET, WINDOW, Play, direct, execute, listen, pty, request

SFTP = request("subsystem", Word("sftp").encode())
EMAILS = (Mask("emails", detectors=("email",)),)


def masked(word: bytes) -> Play:
    """A connection on which every answer has a mask for one word."""
    masker = FakeMasker()
    masker.word = word
    return Play(lambda _: Allow("masked", MASKS), masker=masker, contents=content_for(read_shell), shell=read_shell)


def files(play: Play) -> Play:
    """SFTP has begun; nothing of it is to be looked at any more."""
    play.opened().user(SFTP).target(wire.ChannelSuccess(0)).user(wire.Data(0, packets.init()))
    play.target(wire.Data(0, packets.packet(packets.VERSION, sftp.U32(3))))
    lookup = packets.Fields(b"".join(each.data for each in play.at_target() if isinstance(each, wire.Data)), 9 + 5, 99)
    play.target(
        wire.Data(0, sftp.request(packets.NAME, lookup.u32(), sftp.U32(1), sftp.S(b"/h"), sftp.S(b""), sftp.U32(0)))
    )
    play.at_target(), play.texts()
    return play


def test_no_mask_looks_at_the_packets_of_sftp() -> None:
    play = files(masked(b"word"))
    play.user(wire.Data(0, sftp.extended(b"limits@openssh.com", 5)))
    reply = sftp.request(packets.STATUS, 5, sftp.U32(4), sftp.S(b"a word, a wo"), sftp.S(b""))
    play.target(wire.Data(0, reply))
    assert play.texts() == (reply, b"")
    assert play.tape.stream(OUT, 0).endswith(reply)


def test_what_the_server_of_sftp_says_on_stderr_is_masked() -> None:
    play = files(masked(b"word"))
    play.target(wire.ExtendedData(0, wire.STDERR, b"a word\n"))
    assert play.texts() == (b"", b"a ****\n") and play.tape.stream(ERR, 0) == b"a ****\n"


def test_no_mask_looks_at_the_lines_of_scp() -> None:
    play = (
        masked(b"word").opened().user(execute("scp -t /srv/word")).target(wire.ChannelSuccess(0), wire.Data(0, b"\0"))
    )
    play.user(wire.Data(0, b"C0644 1 a\n")).target(wire.Data(0, b"\1scp: /srv/word: no\n"))
    assert play.texts() == (b"\0\1scp: /srv/word: no\n", b"")


def test_what_a_shell_says_behind_scp_is_masked() -> None:
    play = masked(b"word").opened().user(execute("scp -t /srv")).target(wire.ChannelSuccess(0), wire.Data(0, b"\0"))
    play.target(wire.Data(0, b"bad word"), wire.Eof(0))
    assert play.texts() == (b"\0bad ****", b"")


def test_no_mask_looks_at_the_words_of_the_gate() -> None:
    play = masked(b"gatecast").started("ls")
    play.opened(1, 1).rule = lambda _: None
    play.user(execute("ls", 1)).hold()
    assert play.texts()[1].startswith(b"gatecast: held")


def test_what_a_mask_keeps_is_let_go_before_a_broken_channel_ends() -> None:
    play = files(masked(b"word")).target(wire.ExtendedData(0, wire.STDERR, b"last wo"))
    assert play.texts() == (b"", b"last ")
    play.user(wire.Data(0, b"\xff" * 9))
    err = play.texts()[1]
    assert err.startswith(b"wogatecast: SFTP: this is no SFTP")


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        ("auth-agent-req@openssh.com", b"", "auth-agent@openssh.com"),
        ("x11-req", X11Request(False, "MIT-MAGIC-COOKIE-1", "00", 0).encode(), "x11"),
    ],
)
def test_no_mask_looks_at_what_is_lent(name: str, body: bytes, kind: str) -> None:
    play = masked(b"word").opened().user(request(name, body), execute("ls"))
    play.target(wire.ChannelSuccess(0), wire.ChannelSuccess(0))
    origin = Origin("::1", 6010).encode() if kind == "x11" else b""
    play.target(wire.ChannelOpen(kind, 3, WINDOW, PACKET, origin)).user(wire.OpenConfirmation(3, 5, WINDOW, PACKET))
    play.at_user()
    play.target(wire.Data(5, b"a word, a wo"), wire.Data(5, b"rd"))
    assert play.texts()[0] == b"a word, a word"


@pytest.mark.parametrize("text", ["rsync --server -logDtpre.iLsfxC . /srv", "git-receive-pack 'a'"])
def test_no_mask_keeps_the_answers_to_an_upload(text: str) -> None:
    """They would wait there for more, and the user's rsync for them."""
    play = masked(b"word").opened().user(execute(text)).target(wire.ChannelSuccess(0))
    play.target(wire.Data(0, b"a wo"))
    assert play.texts() == (b"a wo", b"")
    play.target(wire.Data(0, b"rd"), wire.ExtendedData(0, wire.STDERR, b"a word\n"))
    assert play.texts() == (b"rd", b"a ****\n")


# -- what is refused ------------------------------------------------------------------------------------


def commands_of(text: str) -> Command:
    """What an exec is decided as."""
    play = Play(shell=read_shell).opened().user(execute(text))
    return play.commands[0]


def refused(command: Command, masks: tuple[Mask, ...] = EMAILS) -> str:
    denied = Masking(b"k" * 32).guard(masks, command)
    return denied.reason if denied is not None else ""


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("cat /etc/passwd", ""),
        ("scp -t /srv", ""),
        ("scp -f /srv/a", ""),  # each file is asked for, and refused then
        ("sftp-server", ""),
        ("/usr/lib/openssh/sftp-server -e", ""),
        ("rsync --server -logDtpre.iLsfxC . /srv", ""),
        ("git-receive-pack 'a'", ""),
        ("rsync --server --sender -logDtpre.iLsfxC . /srv", "a copied file"),
        ("git-upload-pack 'a'", "a copied file"),
        ("git-upload-archive 'a'", "a copied file"),
        ("cat x; sftp-server", "a copied file"),  # what is decoded passes no mask, whoever says it
        ("/tmp/sftp-server", "a copied file"),
        ("/tmp/scp -f x", "a copied file"),
        ("scp -f $(cat x)", "a copied file"),
        ("scp -t x; cat y", "a copied file"),
        ("true; scp -t /etc/x", ""),  # not decoded: text, masked as such
    ],
)
def test_an_exec_whose_output_passes_no_mask_is_refused_under_one(text: str, what: str) -> None:
    reason = refused(commands_of(text))
    assert (what in reason) if what else not reason
    assert not reason or reason == f'rule "emails" masks what this target gives out, and {what} cannot be masked'
    assert not refused(commands_of(text), ()), "no mask, no matter"


def test_a_transfer_with_a_terminal_is_refused_as_well() -> None:
    play = Play(shell=read_shell).opened().user(pty(), execute("scp -f x"))
    assert play.commands[0].facts["decoded"] == "" and refused(play.commands[0])


def test_forwards_are_refused_under_a_mask() -> None:
    play = Play().user(direct(), listen())
    assert [command.verb for command in play.commands] == ["direct-tcpip", "tcpip-forward"]
    for command in play.commands:
        assert "a forwarded connection" in refused(command)


@pytest.mark.parametrize(
    ("verb", "kind", "denied"),
    [
        ("file-read", "read", True),
        ("file-write", "write", False),
        ("file-list", "read", False),
        ("file-stat", "read", False),
        ("file-readlink", "read", False),
        ("direct-streamlocal", "transfer", True),
        ("forwarded-tcpip", "transfer", True),
        ("forwarded-streamlocal", "transfer", True),
        ("streamlocal-forward", "transfer", True),
        ("tun", "admin", True),
        ("x11", "admin", True),
        ("auth-agent", "admin", False),
        ("subsystem", "execute", False),
        ("shell", "execute", False),
        ("line", "execute", False),
    ],
)
def test_which_verbs_are_refused_under_a_mask(verb: str, kind: str, denied: bool) -> None:
    command = Command("ssh", verb, kind, "x")  # type: ignore[arg-type]
    assert bool(refused(command)) is denied
    assert not refused(command, (Mask("hide", columns=("*.*.email",)),)), "a mask of columns says nothing here"


def test_a_file_that_is_opened_to_read_and_write_is_read() -> None:
    parts = (Command("ssh", "file-read", "read", "x"), Command("ssh", "file-write", "write", "x"))
    assert refused(Command("ssh", "file-write", "write", "x", parts=parts))


def test_the_facts_and_the_channel_agree_on_what_is_decoded() -> None:
    for text, found in (
        ("scp -t /x", "scp"), ("true; scp -t /x", ""), ("sftp-server", "sftp"), ("sudo sftp-server", "sftp"),
        ("sftp-server; true", ""), ("internal-sftp", "sftp"), ("ls", ""),
    ):  # fmt: skip
        made: list[object] = []

        def contents(*asked: object, made: list[object] = made) -> None:
            made.append(content_for(read_shell)(*asked))  # type: ignore[arg-type]

        play = Play(shell=read_shell, contents=contents).opened().user(execute(text))
        assert play.commands[0].facts["decoded"] == found, text
        assert (made[0] is not None) is bool(found), text
    play = Play(shell=read_shell).opened().user(SFTP)
    assert play.commands[0].facts["decoded"] == "sftp"


def test_a_terminal_that_the_target_refuses_is_read_as_it_was_decided() -> None:
    """The shell was allowed as one whose lines are asked for: without a terminal nobody would."""
    asked: list[tuple[str, bool]] = []
    play = Play(lambda _: None, contents=lambda start, name, has, settings: asked.append((start, has))).opened()
    play.user(pty(), request("shell"))
    assert play.commands[0].facts["opaque"] is False
    play.target(wire.ChannelFailure(0)).decide(Allow("all"))
    assert asked == [("shell", True)]


def test_what_is_lent_and_refused_by_the_target_is_not_lent() -> None:
    play = Play().opened().user(request("auth-agent-req@openssh.com")).target(wire.ChannelFailure(0))
    play.target(wire.ChannelOpen("auth-agent@openssh.com", 3, WINDOW, PACKET))
    assert isinstance(play.at_target()[-1], wire.OpenFailure)
