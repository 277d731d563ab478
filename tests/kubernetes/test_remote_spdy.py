"""exec over SPDY: every trap of the kubernetes note's section 4, on the user's end and on the target's."""

from __future__ import annotations

import asyncio
import random
import struct
from typing import Any

import pytest

from protocols.kubernetes.relay import Ends
from protocols.kubernetes.remote import Remote
from protocols.kubernetes.remote_spdy import STATUS_LIMIT, STREAMS_LIMIT, SpdyTargetLeg, SpdyUserLeg
from protocols.kubernetes.spdy_wire import CANCEL, DATA, FIN, GOAWAY, RST_STREAM, Decoder, Encoder
from protocols.kubernetes.status import exit_document
from protocols.kubernetes.streams import STDERR, STDIN, STDOUT, Asked, Data, End, Event, Over, Reply, Size, Status
from proxy.core.errors import TargetPeerError, UserPeerError
from tests.kubernetes.leg_peers import SpdyPeer
from tests.peers.kube.spdy import control, data_frame

PLAIN = Asked(stdin=True, stdout=True, stderr=True, tty=False)
TTY = Asked(stdin=True, stdout=True, stderr=False, tty=True)
NOBODY: Any = None  # a stream that is not read
ALL = ("error", "stdin", "stdout", "stderr")


def user(asked: Asked = PLAIN, names: tuple[str, ...] = ALL) -> tuple[SpdyPeer, SpdyUserLeg]:
    """A user whose streams are open."""
    peer, leg = SpdyPeer(True, names), SpdyUserLeg(asked)
    for event in leg.receive(peer.start()):
        assert isinstance(event, Reply)
        peer.receive(event.wire)
    return peer, leg


def target(asked: Asked = PLAIN) -> tuple[SpdyPeer, SpdyTargetLeg]:
    """A target that has taken the streams."""
    peer, leg = SpdyPeer(user=False), SpdyTargetLeg(asked)
    assert leg.receive(peer.receive(leg.start())) == []
    return peer, leg


# -- the user's end ---------------------------------------------------------------------------------------


def test_it_is_ready_when_all_streams_are_there() -> None:
    peer, leg = SpdyPeer(True, ALL), SpdyUserLeg(PLAIN)
    wire = peer.start()
    assert leg.start() == b"" and not leg.ready
    ready = []
    for at in range(len(wire)):
        for event in leg.receive(wire[at : at + 1]):
            assert isinstance(event, Reply)
            peer.receive(event.wire)
            ready.append(leg.ready)
    assert ready == [False, False, False, True] and peer.replied == [1, 3, 5, 7]


def test_a_terminal_has_a_stream_for_sizes_and_none_for_stderr() -> None:
    assert not user(TTY, ("error", "stdin", "stdout"))[1].ready
    assert user(TTY, ("error", "stdin", "stdout", "resize"))[1].ready
    assert user(Asked(False, True, False, False), ("error", "stdout"))[1].ready


def test_input_before_all_streams_are_there_is_kept_in_order() -> None:
    peer, leg = SpdyPeer(True, ALL), SpdyUserLeg(PLAIN)
    wire = peer.start()
    events = leg.receive(wire[: wire.index(b"\x80\x03\0\1", 40)] + b"")
    assert events and not leg.ready
    leg.receive(wire[wire.index(b"\x80\x03\0\1", 40) :])
    assert leg.ready
    assert leg.receive(peer.say(0, b"a") + peer.end(0)) == [Data(STDIN, b"a"), End(STDIN)]


def test_the_end_of_stdin_is_a_fin() -> None:
    peer, leg = user()
    assert leg.receive(peer.say(0, b"in")) == [Data(STDIN, b"in")]
    assert leg.receive(data_frame(3, b"last", fin=True)) == [Data(STDIN, b"last"), End(STDIN)]
    assert leg.receive(peer.say(0, b"behind")) == [], "as readers in Go drop it"
    peer, leg = user()
    assert leg.receive(control(RST_STREAM, struct.pack("!II", 3, CANCEL))) == [End(STDIN)]
    peer, leg = user()
    assert leg.receive(peer.end(0) + control(RST_STREAM, struct.pack("!II", 3, CANCEL))) == [End(STDIN)], "once"


def test_the_status_and_the_fins_then_the_user_takes_its_leave() -> None:
    peer, leg = user()
    peer.receive(leg.data(STDOUT, b"out") + leg.data(STDERR, b"err"))
    wire = leg.finish(exit_document(7))
    frames = Decoder(user=False).feed(wire)
    assert [(frame.kind, frame.stream, frame.flags) for frame in frames] == [
        (DATA, 5, FIN), (DATA, 7, FIN), (DATA, 1, 0), (DATA, 1, FIN),
    ]  # fmt: skip
    peer.receive(wire)
    assert (peer.heard[1], peer.heard[2], peer.heard[3]) == (b"out", b"err", exit_document(7))
    assert peer.ended == {1, 2, 3} and not peer.closed
    assert leg.receive(peer.say(0, b"late") + peer.leave()) == [Over("")]
    assert leg.data(STDOUT, b"x") == leg.ping() == b"" == leg.finish(exit_document(0)) and leg.receive(b"x") == []


def test_without_a_status_the_connection_is_over() -> None:
    peer, leg = user()
    peer.receive(leg.finish(b""))
    assert peer.heard[3] == b"" and peer.ended == {1, 2, 3} and peer.closed


def test_streams_that_come_and_go_in_one_read_are_over() -> None:
    peer = SpdyPeer(True, ALL)
    assert SpdyUserLeg(PLAIN).receive(peer.start() + peer.leave()) == [Over("the user reset a stream")]


def test_every_ping_of_kubectl_is_echoed() -> None:
    peer, leg = user()
    for number in (1, 3, 5):
        assert leg.receive(peer.ping(number)) == [Reply(peer.ping(number))]
    assert leg.receive(leg.ping()) == [], "an echo of ours"
    peer.receive(leg.ping() + leg.ping())
    assert peer.pings == [4, 6]


def test_a_user_who_resets_what_it_listens_to_has_left() -> None:
    for name in ("error", "stdout", "stderr"):
        peer, leg = user()
        reset = control(RST_STREAM, struct.pack("!II", 1 + 2 * ALL.index(name), CANCEL))
        assert leg.receive(reset) == [Over("the user reset a stream")]
    peer, leg = user(TTY, ("error", "stdin", "stdout", "resize"))
    assert leg.receive(control(RST_STREAM, struct.pack("!II", 7, CANCEL))) == []
    assert leg.receive(peer.leave()) == [Over("the user reset a stream")]


def test_kubectl_1_20_leaves_without_a_ping() -> None:
    assert user()[1].receive(control(GOAWAY, bytes(8)) + data_frame(3, b"x")) == [Over("")]


def test_sizes_come_on_their_stream() -> None:
    peer, leg = user(TTY, ("error", "stdin", "stdout", "resize"))
    assert leg.receive(peer.say(4, b'{"Width":101,"He')) == []
    assert leg.receive(peer.say(4, b'ight":33}\n{"Width":1,"Height":2}\n')) == [Size(101, 33), Size(1, 2)]


def test_streams_that_were_not_asked_for_are_taken_and_dropped() -> None:
    peer, leg = user(Asked(False, True, True, False), (*ALL, "resize"))
    assert leg.ready and peer.replied == [1, 3, 5, 7, 9]
    assert leg.receive(peer.say(0, b"x") + peer.say(4, b"no size") + peer.end(0)) == []


def test_what_a_user_must_not_do_is_refused() -> None:
    opened = SpdyPeer(True, ALL).start()
    wrong = {
        "a stream of no type": Encoder().syn_stream(1, {}),
        "a stream of another type": Encoder().syn_stream(1, {"streamtype": "data"}),
        "two types": Encoder().syn_stream(1, {"streamtype": "stdin\0error"}),
        "a stream twice": SpdyPeer(True, ("error", "stdin", "error")).start(),
        "data on error": opened + data_frame(1, b"x"),
        "data on stdout": opened + data_frame(5, b"x"),
        "data on stderr": opened + data_frame(7, b"x"),
        "data on nothing": opened + data_frame(9, b"x"),
        "no SPDY": b"\x80\x02" + bytes(6),
    }
    for name, wire in wrong.items():
        leg = SpdyUserLeg(PLAIN)
        with pytest.raises(UserPeerError, match="SPDY") as raised:
            leg.receive(wire)
            pytest.fail(name)
        frame = Decoder(user=False).feed(leg.refuse(raised.value))[0]
        assert (frame.kind, frame.value) == (GOAWAY, 1), "PROTOCOL_ERROR"
        assert leg.refuse(raised.value) == b""


def test_streams_are_few() -> None:
    encoder, leg = Encoder(), SpdyUserLeg(PLAIN)
    kinds = [*ALL, "resize"]
    leg.receive(b"".join(encoder.syn_stream(1 + 2 * at, {"streamtype": kind}) for at, kind in enumerate(kinds)))
    assert STREAMS_LIMIT == 8 and leg.ready
    with pytest.raises(UserPeerError):
        leg.receive(encoder.syn_stream(11, {"streamtype": "stdin"}))


# -- the target's end -------------------------------------------------------------------------------------


def test_streams_are_opened_in_the_order_of_kubectl() -> None:
    peer, leg = SpdyPeer(user=False), SpdyTargetLeg(TTY)
    assert not leg.ready
    answer = peer.receive(leg.start())
    assert peer.opened == ["error", "stdin", "stdout", "resize"] and sorted(peer.kinds) == [1, 3, 5, 7]
    assert leg.receive(answer[:-1]) == [] and not leg.ready
    assert leg.receive(answer[-1:]) == [] and leg.ready
    peer, leg = target(Asked(False, True, True, False))
    assert peer.opened == ["error", "stdout", "stderr"]


def test_output_in_the_read_of_the_last_reply_is_given() -> None:
    peer, leg = SpdyPeer(user=False), SpdyTargetLeg(PLAIN)
    answer = peer.receive(leg.start())
    assert leg.receive(answer + peer.say(1, b"fast")) == [Data(STDOUT, b"fast")] and leg.ready


def test_what_a_quick_command_says_in_the_read_of_the_last_reply_is_kept() -> None:
    peer, leg = SpdyPeer(user=False), SpdyTargetLeg(PLAIN)
    replies = peer.receive(leg.start())
    ends = Ends(NOBODY, SpdyUserLeg(PLAIN), NOBODY, leg, from_target=replies + peer.say(1, b"hi") + peer.end(3))
    asyncio.run(object.__new__(Remote)._await_target(ends))
    assert ends.said == (Data(STDOUT, b"hi"), Status(exit_document(0))) and ends.from_target == b""


def test_output_before_all_streams_are_taken_is_refused() -> None:
    encoder, leg = Encoder(), SpdyTargetLeg(PLAIN)
    leg.start()
    replies = [encoder.syn_reply(stream) for stream in (1, 3, 5)]  # stderr's is missing
    assert leg.receive(b"".join(replies)) == [] and not leg.ready
    with pytest.raises(TargetPeerError, match="before all streams"):
        leg.receive(data_frame(5, b"x"))


def test_a_stream_that_the_target_refuses_ends_it() -> None:
    peer, leg = SpdyPeer(user=False), SpdyTargetLeg(PLAIN)
    peer.receive(leg.start())
    assert leg.receive(control(RST_STREAM, struct.pack("!II", 1, 3))) == [Over("the target refused a stream")]


def test_the_status_comes_with_the_end_of_the_error_stream() -> None:
    peer, leg = target()
    document = exit_document(7)
    assert leg.receive(peer.say(1, b"out") + peer.say(3, document[:9])) == [Data(STDOUT, b"out")]
    assert leg.receive(peer.say(3, document[9:])) == []
    assert leg.receive(peer.end(3) + peer.say(2, b"late") + peer.end(1)) == [
        Status(document),
        Data(STDERR, b"late"),
        End(STDOUT),
    ]
    assert leg.receive(control(RST_STREAM, struct.pack("!II", 7, CANCEL))) == [End(STDERR)], "Go resets on close"


def test_a_status_whose_stream_is_reset_or_gone_is_still_said() -> None:
    for end in (control(RST_STREAM, struct.pack("!II", 1, CANCEL)), control(GOAWAY, bytes(8))):
        peer, leg = target()
        assert leg.receive(peer.say(3, exit_document(1)) + end)[0] == Status(exit_document(1))


def test_an_error_stream_that_ends_empty_is_success() -> None:
    peer, leg = target()
    assert leg.receive(peer.end(3)) == [Status(exit_document(0))]
    peer, leg = target()
    assert leg.receive(control(GOAWAY, struct.pack("!II", 0, 2))) == [Over("GOAWAY 2")], "but silence is none"


def test_a_status_is_bounded() -> None:
    peer, leg = target()
    assert leg.receive(peer.say(3, bytes(STATUS_LIMIT))) == []
    with pytest.raises(TargetPeerError, match="more than"):
        leg.receive(peer.say(3, b"x"))


def test_input_and_sizes_go_to_their_streams() -> None:
    peer, leg = target(TTY)
    peer.receive(leg.data(STDIN, b"ls\n") + leg.resize(80, 24) + leg.end(STDIN))
    assert peer.heard[0] == b"ls\n" and peer.heard[4] == b'{"Width":80,"Height":24}\n' and peer.ended == {0}
    assert leg.data(STDIN, b"x") == leg.end(STDIN) == b""
    assert target(PLAIN)[1].resize(80, 24) == b""


def test_leaving_resets_each_stream_and_says_goaway() -> None:
    peer, leg = target()
    peer.receive(leg.finish())
    assert peer.resets == [1, 3, 5, 7] and peer.closed and leg.finish() == leg.ping() == b""


def test_what_a_target_must_not_do_is_refused() -> None:
    for wire in (data_frame(3, b"x"), Encoder().syn_stream(2, {}), data_frame(11, b"x")):
        with pytest.raises(TargetPeerError):
            target()[1].receive(wire)


# -- cuts and mutations -------------------------------------------------------------------------------------


def joined(events: list[Event]) -> list[Event]:
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Data) and isinstance(last, Data) and last.stream == event.stream:
            found[-1] = Data(event.stream, last.data + event.data)
        else:
            found.append(event)
    return found


def user_says() -> bytes:
    peer = SpdyPeer(True, ("error", "stdin", "stdout", "resize"))
    wire = peer.start() + peer.say(0, b"echo hello\n") + peer.say(4, b'{"Width":80,"Height":24}\n') + peer.ping(1)
    return wire + peer.say(0, b"x" * 200) + peer.end(0) + control(GOAWAY, bytes(8))


def target_says() -> bytes:
    peer, leg = SpdyPeer(user=False), SpdyTargetLeg(PLAIN)
    replies = peer.receive(leg.start())
    return replies + peer.say(1, b"hello") + peer.say(2, b"x" * 300) + peer.ping(2) + peer.finish(exit_document(7))


def test_any_cut_of_the_bytes_gives_the_same_events() -> None:
    wire = user_says()
    whole = joined(SpdyUserLeg(TTY).receive(wire))
    assert [type(event) for event in whole[4:]] == [Data, Size, Reply, Data, End, Over]
    for seed in range(50):
        chance, leg, events, at = random.Random(seed), SpdyUserLeg(TTY), list[Event](), 0
        while at < len(wire):
            size = 1 if seed == 0 else chance.choice((1, 2, 7, 8, 9, 100))
            events += leg.receive(wire[at : at + size])
            at += size
        assert joined(events) == whole


def test_20000_mutations_raise_nothing_but_peer_errors() -> None:
    chance, refused = random.Random(9), 0
    conversations = user_says(), target_says()
    for number in range(20_000):
        changed = bytearray(conversations[number % 2])
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(changed))
            if chance.random() < 0.3:
                del changed[at : at + chance.randint(1, 8)]
            elif chance.random() < 0.4:
                changed[at:at] = chance.randbytes(chance.randint(1, 8))
            else:
                changed[at] = chance.randrange(256)
        leg: SpdyUserLeg | SpdyTargetLeg = SpdyTargetLeg(PLAIN) if number % 2 else SpdyUserLeg(TTY)
        leg.start()
        cut = chance.randrange(len(changed))
        try:
            leg.receive(bytes(changed[:cut]))
            leg.receive(bytes(changed[cut:]))
        except (TargetPeerError, UserPeerError) as error:
            assert isinstance(error, TargetPeerError if number % 2 else UserPeerError)
            leg.refuse(error)
            refused += 1
        leg.data(STDIN, b"x")
        leg.end(STDOUT)
    assert 5_000 < refused < 19_900, "the mutations reach both ends"
