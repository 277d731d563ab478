"""Any user leg with any target leg: a conversation through a relay gives both sides the same streams, however cut."""

from __future__ import annotations

import itertools
import random

import pytest

from protocols.kubernetes.legs import Kind, choose_protocol, target_leg, user_leg
from protocols.kubernetes.status import exit_document, exit_of
from protocols.kubernetes.streams import Reply
from tests.kubernetes.leg_peers import Relay, SpdyPeer, WsPeer, sizes

V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
USERS: list[tuple[Kind, str]] = [
    ("websocket", V5),
    ("websocket", V4),
    ("websocket", "channel.k8s.io"),
    ("websocket", "v4.base64.channel.k8s.io"),
    ("websocket", "base64.channel.k8s.io"),
    ("spdy", V4),
]
TARGETS: list[tuple[Kind, str]] = [("websocket", V5), ("websocket", V4), ("spdy", V4)]


class Talk:
    """A user, a target and the two legs between them; all bytes are cut anywhere."""

    def __init__(
        self, user: tuple[Kind, str], target: tuple[Kind, str], chance: random.Random, tty: bool = False
    ) -> None:
        streams = {"stdin": True, "stdout": True, "stderr": not tty, "tty": tty}
        names = ("error", "stdin", "stdout", *(() if tty else ("stderr",)), *(("resize",) if tty else ()))
        self.chance = chance
        self.user = WsPeer(user[1], user=True) if user[0] == "websocket" else SpdyPeer(True, names)
        self.target = WsPeer(target[1], user=False) if target[0] == "websocket" else SpdyPeer(user=False)
        awaited = set() if target[0] == "websocket" else {1} if tty else {1, 2}
        self.legs = user_leg(*user, **streams), target_leg(*target, **streams)
        self.relay = Relay(*self.legs, awaited)
        self.to_gate_up = self.to_gate_down = b""
        self.relay.to_user, self.relay.to_target = self.legs[0].start(), self.legs[1].start()
        self.run(self.user.start(), self.target.start())

    def run(self, up: bytes = b"", down: bytes = b"") -> None:
        """Deliver bytes in pieces, and the answers to them, until nothing moves."""
        self.to_gate_up += up
        self.to_gate_down += down
        while True:
            to_user, to_target = self.relay.sent()
            for at, size in self.pieces(to_user):
                self.to_gate_up += self.user.receive(to_user[at : at + size])
            for at, size in self.pieces(to_target):
                self.to_gate_down += self.target.receive(to_target[at : at + size])
            if not (self.to_gate_up or self.to_gate_down or to_user or to_target):
                return
            up, down, self.to_gate_up, self.to_gate_down = self.to_gate_up, self.to_gate_down, b"", b""
            for at, size in self.pieces(up):
                self.relay.up(up[at : at + size])
            for at, size in self.pieces(down):
                self.relay.down(down[at : at + size])

    def pieces(self, data: bytes) -> list[tuple[int, int]]:
        found, at = [], 0
        while at < len(data):
            size = self.chance.choice((1, 2, 3, 10, 1000, 40_000, 300_000)) if len(data) < 2000 else 50_000
            found.append((at, size))
            at += size
        return found


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
@pytest.mark.parametrize("user", USERS, ids="-".join)
def test_both_sides_hear_what_was_said(user: tuple[Kind, str], target: tuple[Kind, str]) -> None:
    for seed in range(12):
        chance = random.Random(seed)
        talk = Talk(user, target, chance)
        said = {0: b"", 1: b"", 2: b""}
        for _ in range(chance.randrange(30)):
            stream = chance.randrange(3)
            data = chance.randbytes(chance.choice((1, 5, 300, 32 * 1024, 100_000)))
            said[stream] += data
            wire = (talk.user if stream == 0 else talk.target).say(stream, data)
            talk.run(*((wire, b"") if stream == 0 else (b"", wire)))
        if (user[0] == "spdy" or user[1] == V5) and (target[0] == "spdy" or target[1] == V5):
            talk.run(up=talk.user.end(0))
            assert talk.target.ended == {0}
        code = chance.choice((0, 7))
        talk.run(down=talk.target.finish(exit_document(code)))
        assert talk.target.heard == {0: said[0], 1: b"", 2: b"", 3: b"", 4: b""}
        heard = talk.user.heard
        assert (heard[1], heard[2]) == (said[1], said[2])
        if user[1] in (V5, V4) or "v4" in user[1]:
            assert heard[3] == exit_document(code)
        else:
            assert heard[3].decode() == exit_of(exit_document(code))[1], "before v4 it is text, and nothing is success"
        if user[0] == "websocket":
            assert talk.user.closed and talk.user.code == 1000 and talk.relay.user_over
        else:
            assert talk.user.ended >= {1, 2, 3} and not talk.user.closed
            talk.run(up=talk.user.leave())
            assert talk.relay.user_over
        assert talk.target.closed or target[0] == "spdy"


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
@pytest.mark.parametrize("user", USERS, ids="-".join)
def test_a_terminals_sizes_arrive(user: tuple[Kind, str], target: tuple[Kind, str]) -> None:
    talk = Talk(user, target, random.Random(3), tty=True)
    talk.run(up=talk.user.say(4, b'{"Width":101,"Height":33}\n'))
    talk.run(up=talk.user.say(4, b'{"Height":50,"Width":200}'))
    talk.run(up=talk.user.say(0, b"ls\n"), down=talk.target.say(1, b"a  b\r\n"))
    assert sizes(talk.target.heard[4]) == [(101, 33), (200, 50)]
    assert talk.target.heard[0] == b"ls\n" and talk.user.heard[1] == b"a  b\r\n"


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
@pytest.mark.parametrize("user", USERS, ids="-".join)
def test_a_user_who_leaves_ends_the_target(user: tuple[Kind, str], target: tuple[Kind, str]) -> None:
    talk = Talk(user, target, random.Random(5))
    talk.run(up=talk.user.leave())
    assert talk.relay.user_over and talk.target.closed
    if isinstance(talk.target, SpdyPeer):
        assert sorted(talk.target.resets) == [1, 3, 5, 7], "as kubectl does"
    if isinstance(talk.user, WsPeer):
        assert talk.user.connection.state.name == "CLOSED", "its Close was answered"


def test_frames_of_one_codec_pass_as_they_came() -> None:
    """The user's mask stays on towards the target, and the target's frames come out bit for bit."""
    for user, target in itertools.product(("v5.channel.k8s.io", V4, "channel.k8s.io"), (V5, V4)):
        talk = Talk(("websocket", user), ("websocket", target), random.Random(1))
        up, down = talk.user.say(0, b"in" * 9000), talk.target.say(1, b"out" * 9000)
        talk.relay.up(up)
        talk.relay.down(down)
        assert talk.relay.sent() == (down, up) and up[1] & 0x80 and not down[1] & 0x80
    names = {user_leg(*user, True, True, True, False).codec for user in USERS[:3]}
    assert names == {target_leg(*target, True, True, True, False).codec for target in TARGETS[:2]} != {""}
    assert {user_leg(*user, True, True, True, False).codec for user in USERS[3:]} == {""}
    assert target_leg("spdy", V4, True, True, True, False).codec == ""


def test_pings_are_answered_by_each_leg_alone() -> None:
    for user, target in itertools.product(USERS, TARGETS):
        talk = Talk(user, target, random.Random(2))
        events = talk.legs[0].receive(talk.user.ping(b"up")) if isinstance(talk.user, WsPeer) else []
        assert all(isinstance(event, Reply) for event in events)
        for peer, leg in ((talk.user, talk.legs[0]), (talk.target, talk.legs[1])):
            for event in events if peer is talk.user else ():
                assert isinstance(event, Reply)
                peer.receive(event.wire)
            assert leg.ping(), "the gate keeps the way open"
            answer = peer.receive(leg.ping())
            assert isinstance(peer, SpdyPeer) or leg.receive(answer) == [], "the answer says nothing to the relay"
        if isinstance(talk.user, WsPeer):
            assert talk.user.pongs == [b"up"]


def test_the_first_protocol_that_is_known_is_chosen() -> None:
    assert choose_protocol("websocket", ["nobody.k8s.io", V4, V5]) == V4
    assert choose_protocol("websocket", [V5, V4]) == V5
    assert choose_protocol("websocket", []) == "channel.k8s.io", "none at all is v1"
    assert choose_protocol("websocket", ["SPDY/3.1+portforward.k8s.io"]) is None
    assert choose_protocol("spdy", ["v5.channel.k8s.io", V4, "v3.channel.k8s.io"]) == V4, "kubectl 1.29 offers v5"
    assert choose_protocol("spdy", []) is None and choose_protocol("spdy", ["channel.k8s.io"]) is None


def test_a_terminal_has_no_stderr() -> None:
    leg = target_leg("spdy", V4, True, True, True, True)
    peer = SpdyPeer(user=False)
    peer.receive(leg.start())
    assert peer.opened == ["error", "stdin", "stdout", "resize"]
