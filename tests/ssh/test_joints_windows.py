"""Windows and EOF beside a Content that keeps data of the user: a slow target slows the user, and nothing is lost."""

from __future__ import annotations

import pytest

from protocols.ssh import scp, wire
from protocols.ssh import sftp as sftp_module
from protocols.ssh import sftp_wire as packets
from protocols.ssh.actions import Disconnect
from protocols.ssh.contents import content_for
from protocols.ssh.wire_bodies import Word
from proxy.core.verdict import Allow
from proxy.policy.shell import read_shell
from tests.ssh import sftp_stage as sftp
from tests.ssh.playing_ssh import DENY, PACKET, Play, execute, request

SFTP = request("subsystem", Word("sftp").encode())
WINDOW = 256 * 1024


def bytes_at(play: Play) -> bytes:
    """The data that have reached the target since the last look."""
    return b"".join(each.data for each in play.at_target() if isinstance(each, wire.Data))


def granted(play: Play) -> int:
    """What the user may send more since the last look."""
    return sum(each.size for each in play.at_user() if isinstance(each, wire.WindowAdjust))


class Fast:
    """A user who sends all that it may of one long stream; the target takes what comes, and says little."""

    def __init__(self, play: Play, stream: bytes) -> None:
        self.play = play
        self.stream = stream
        self.room = WINDOW
        self.arrived = b""

    def push(self) -> int:
        """Send what fits; returns how much that was."""
        size = min(self.room, len(self.stream), PACKET)
        if size:
            piece, self.stream = self.stream[:size], self.stream[size:]
            self.room -= size
            self.play.user(wire.Data(0, piece))
        self.look()
        return size

    def look(self) -> None:
        """The target gives room back for all that it has got."""
        got = bytes_at(self.play)
        self.arrived += got
        if got:
            self.play.target(wire.WindowAdjust(0, len(got)))
        self.room += granted(self.play)

    def push_all(self) -> None:
        """Send until there is no more room."""
        while self.push():
            pass
        assert not self.play.of(Disconnect), self.play.of(Disconnect)


def started(request_or_text: wire.ChannelRequest) -> Play:
    play = Play(lambda _: Allow("all"), contents=content_for(read_shell), shell=read_shell)
    play.opened(window=WINDOW).user(request_or_text).target(wire.ChannelSuccess(0))
    play.at_user(), play.at_target()
    return play


def test_a_target_that_is_slow_to_say_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_module, "AHEAD_LIMIT", WINDOW)
    opens = b"".join(sftp.opening(b"f%d" % number, number) for number in range(40_000))
    play = started(SFTP)
    fast = Fast(play, packets.init() + opens)
    fast.push_all()
    assert fast.arrived == packets.init() and len(fast.stream) > WINDOW, "the user was not slowed"
    assert "ssh-broken" not in play.marks
    play.target(wire.Data(0, packets.packet(packets.VERSION, sftp.U32(3))))
    fast.push_all()
    assert fast.arrived[len(packets.init()) + 4] == packets.REALPATH and not play.of(Disconnect)


def test_requests_behind_one_that_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same id again: the second waits for the answer to the first, and so does all behind it."""
    monkeypatch.setattr(sftp_module, "AHEAD_LIMIT", WINDOW)
    play = started(SFTP)
    play.user(wire.Data(0, packets.init())).target(wire.Data(0, packets.packet(packets.VERSION, sftp.U32(3))))
    lookup = packets.Fields(bytes_at(play), len(packets.init()) + 5, 99).u32()
    play.target(wire.Data(0, sftp.request(packets.STATUS, lookup, sftp.U32(4), sftp.S(b""), sftp.S(b""))))
    play.target(wire.WindowAdjust(0, WINDOW))
    granted(play), bytes_at(play)
    one = sftp.extended(b"limits@openssh.com", 7)
    fast = Fast(play, one * 20_000)
    fast.push_all()
    assert fast.arrived == one and len(fast.stream) > 0
    total = len(fast.stream)
    for _ in range(3):
        play.target(wire.Data(0, sftp.request(packets.STATUS, 7, sftp.U32(8), sftp.S(b""), sftp.S(b""))))
        fast.push_all()
    assert fast.arrived == one * 4, "one for each answer"
    assert len(fast.stream) >= total - 4 * PACKET and "ssh-broken" not in play.marks


def test_lines_of_scp_ahead_of_a_target_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scp, "AHEAD_LIMIT", WINDOW + PACKET)
    play = started(execute("scp -r -t /srv"))
    fast = Fast(play, b"".join(b"D0755 0 d%d\nE\n" % number for number in range(60_000)))
    fast.push_all()
    assert fast.arrived == b"" and fast.stream and "ssh-broken" not in play.marks
    for _ in range(5):
        play.target(wire.Data(0, b"\0"))
        fast.push_all()
    assert fast.arrived == b"D0755 0 d0\nE\nD0755 0 d1\nE\nD0755 0 d2\n" and "ssh-broken" not in play.marks


def test_what_is_asked_for_gives_no_room_before_it_is_decided() -> None:
    play = started(execute("scp -t /srv")).target(wire.Data(0, b"\0"))
    play.rule = lambda _: None
    play.at_user()
    for _ in range(7):
        play.user(wire.Data(0, b"C0644 1 a\n" * 3000))
    assert granted(play) == 0
    play.decide(DENY)
    assert granted(play) == 0 and play.undecided, "the next line is asked for"


def test_half_a_request_gives_room_for_its_rest() -> None:
    """It is the user who has to go on: without room it never could."""
    play = Play(contents=content_for(read_shell), shell=read_shell).opened(window=64).user(SFTP)
    play.target(wire.ChannelSuccess(0))
    play.user(wire.Data(0, packets.init())).target(wire.Data(0, packets.packet(packets.VERSION, sftp.U32(3))))
    lookup = packets.Fields(bytes_at(play), len(packets.init()) + 5, 99).u32()
    play.target(wire.Data(0, sftp.request(packets.STATUS, lookup, sftp.U32(4), sftp.S(b""), sftp.S(b""))))
    play.target(wire.WindowAdjust(0, 64))
    room = 64 - len(packets.init()) + granted(play)
    rest = sftp.opening(b"x" * 500, 1)
    while rest:
        assert room > 0, "it stands still"
        piece, rest = rest[:room], rest[room:]
        play.user(wire.Data(0, piece))
        room += granted(play) - len(piece)


# -- EOF ------------------------------------------------------------------------------------------------


def test_eof_waits_for_what_a_content_keeps() -> None:
    play = started(SFTP)
    play.user(wire.Data(0, packets.init()), wire.Data(0, sftp.extended(b"limits@openssh.com", 7)), wire.Eof(0))
    assert play.at_target() == [wire.Data(0, packets.init())]
    play.target(wire.Data(0, packets.packet(packets.VERSION, sftp.U32(3))))
    [asked] = play.at_target()
    assert isinstance(asked, wire.Data)
    lookup = packets.Fields(asked.data, 5, 99).u32()
    play.target(wire.Data(0, sftp.request(packets.STATUS, lookup, sftp.U32(4), sftp.S(b""), sftp.S(b""))))
    assert play.at_target() == [wire.Data(0, sftp.extended(b"limits@openssh.com", 7)), wire.Eof(0)]


def test_eof_waits_for_the_answer_before_the_last_line_of_scp() -> None:
    play = started(execute("scp -r -t /srv")).user(wire.Data(0, b"D0755 0 d\nE\n"), wire.Eof(0))
    for expected in ([wire.Data(0, b"D0755 0 d\n")], [wire.Data(0, b"E\n"), wire.Eof(0)]):
        assert play.at_target() == []
        play.target(wire.Data(0, b"\0"))
        assert play.at_target() == expected


def test_a_close_does_not_wait() -> None:
    play = started(execute("scp -r -t /srv")).user(wire.Data(0, b"D0755 0 d\n"), wire.Eof(0), wire.Close(0))
    assert play.at_target() == [wire.Close(0)]
