"""Whatever either side sends: actions or a Disconnect, never an exception, and nothing passes undecided."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.ssh import wire
from protocols.ssh.actions import Disconnect, Down, Up
from protocols.ssh.wire_bodies import OPENS, REQUESTS, Word
from proxy.core.events import Command, Frame
from proxy.core.session import Permit
from proxy.core.verdict import Allow, Deny, Verdict
from tests.fakes import SSH_PERMITS
from tests.ssh.playing_ssh import MASKS, Play, env, execute, exit_status, listen, pty
from tests.ssh.test_conversation_ssh_contents import Contents
from tests.ssh.test_conversation_ssh_windows import DistortingMasker

NUMBER = st.sampled_from([0, 0, 0, 1, 1, 2, 2**32 - 1])
SIZE = st.sampled_from([0, 1, 50, 1000, 2**31, 2**32 - 1])
NAME = st.one_of(st.sampled_from([*REQUESTS, "warp"]), st.text(max_size=5))
KIND = st.one_of(st.sampled_from([*OPENS, "session", "session", "warp"]), st.text(max_size=5))
BODY = st.one_of(st.just(b""), st.just(Word("ls").encode()), st.binary(max_size=30))
SENSIBLE = st.sampled_from([pty(), execute("ls"), execute("rm"), env("LANG", "C"), exit_status(1), execute("ls", 1)])
MESSAGE = st.one_of(
    SENSIBLE,
    st.just(listen()),
    st.builds(wire.ChannelOpen, KIND, NUMBER, SIZE, SIZE, BODY),
    st.builds(wire.ChannelOpen, st.just("session"), NUMBER, st.just(1000), st.just(100)),
    st.builds(wire.OpenConfirmation, NUMBER, NUMBER, SIZE, SIZE),
    st.builds(wire.OpenConfirmation, NUMBER, NUMBER, st.just(1000), st.just(100)),
    st.builds(wire.OpenFailure, NUMBER, NUMBER),
    st.builds(wire.WindowAdjust, NUMBER, SIZE),
    st.builds(wire.Data, NUMBER, st.sampled_from([b"", b"plain\n", b"ls\n", b"!\n", b"wake\n\x03", b"x" * 90])),
    st.builds(wire.ExtendedData, NUMBER, NUMBER, st.binary(max_size=20)),
    st.builds(wire.Eof, NUMBER),
    st.builds(wire.Close, NUMBER),
    st.builds(wire.ChannelRequest, NUMBER, NAME, st.booleans(), BODY),
    st.builds(wire.ChannelSuccess, NUMBER),
    st.builds(wire.ChannelFailure, NUMBER),
    st.builds(wire.GlobalRequest, NAME, st.booleans(), BODY),
    st.builds(wire.RequestSuccess, BODY),
    st.just(wire.RequestFailure()),
).map(lambda message: message.encode())
PAYLOAD = st.one_of(MESSAGE, MESSAGE, MESSAGE, st.binary(max_size=40))
STEP = st.one_of(st.tuples(st.integers(0, 1), PAYLOAD), st.tuples(st.integers(2, 6), st.just(b"")))


class Fuzzed(Play):
    """A play that can be told to decide, hold, wait and flush."""

    def step(self, what: int, payload: bytes) -> None:
        match what:
            case 0:
                self.user(payload)
            case 1:
                self.target(payload)
            case 2 | 3 if self.undecided:
                self.decide(Allow("all", MASKS if what == 3 else ()) if len(self.commands) % 3 else Deny("no", "no"))
            case 4 if self.undecided:
                self.hold()
            case 5:
                self.carry_out(self.conversation.tick(0, 1.0))
            case 6:
                self.carry_out(self.conversation.flush(0))

    def finish(self) -> None:
        self.carry_out(self.conversation.gone(1.0))
        self.carry_out(self.conversation.gone(1.0))
        ends = self.of(Disconnect)
        assert len(ends) <= 1
        self.at_user()  # every frame that was made can be decoded
        self.at_target()


def sometimes(command: Command) -> Verdict | None:
    """Decide by the text, leave some undecided."""
    return {"ls": Allow("all"), "rm": Deny("no", "no")}.get(command.text)


def asks(message: object) -> bool:
    """Whether a message may leave only within a permit."""
    if isinstance(message, wire.ChannelRequest):
        return message.name in ("exec", "shell", "subsystem", "x11-req", "auth-agent-req@openssh.com")
    if isinstance(message, wire.GlobalRequest):
        return message.name in ("tcpip-forward", "streamlocal-forward@openssh.com")
    return isinstance(message, wire.ChannelOpen) and message.kind != "session"


@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, max_size=30), st.booleans())
def test_anything_may_come_from_either_side(steps: list[tuple[int, bytes]], decoded: bool) -> None:
    play = Fuzzed(sometimes, masker=DistortingMasker(), permits=SSH_PERMITS)
    if decoded:
        play = Fuzzed(sometimes, contents=Contents(), masker=DistortingMasker())
    play.opened(window=1000, packet=100)
    for step in steps:
        play.step(*step)
    play.finish()
    for action in play.of(Up):
        if isinstance(action.cargo, Frame):
            for payload in wire.unframe(action.cargo.wire, wire.PeerError):
                assert not asks(wire.decode(payload, wire.PeerError)), "it passed without a decision"
    spent = [action.cargo for action in play.of(Up) if isinstance(action.cargo, Permit)]
    assert len({id(permit) for permit in spent}) == len(spent)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=60)), max_size=10))
def test_garbage_ends_the_connection_or_is_ignored(steps: list[tuple[int, bytes]]) -> None:
    play = Fuzzed()
    for step in steps:
        play.step(*step)
    play.finish()


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_nothing_follows_a_close(steps: list[tuple[int, bytes]]) -> None:
    """Neither side is sent anything for a channel after CLOSE, until its number is given again."""
    play = Fuzzed(sometimes, contents=Contents(), masker=DistortingMasker())
    play.opened(window=1000, packet=100)
    for step in steps:
        play.step(*step)
    closed: set[int] = set()
    for action in play.actions:
        if isinstance(action, Up) and isinstance(action.cargo, Frame):
            for payload in wire.unframe(action.cargo.wire, wire.PeerError):
                message = wire.decode(payload, wire.PeerError)
                if isinstance(message, wire.OpenConfirmation):
                    closed.discard(message.sender)
        if not isinstance(action, Down):
            continue
        for payload in wire.unframe(getattr(action.event, "wire", b""), wire.PeerError):
            message = wire.decode(payload, wire.PeerError)
            if isinstance(message, wire.OpenConfirmation):
                closed.discard(message.recipient)
            elif isinstance(message, wire.Close):
                assert message.recipient not in closed, "a second CLOSE"
                closed.add(message.recipient)
            elif isinstance(message, wire.Data | wire.ExtendedData | wire.Eof):
                assert message.recipient not in closed, "data behind CLOSE"
