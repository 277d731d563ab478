"""Windows with a gate in the middle: two ideal ends, whatever the gate adds, swallows and changes.

Neither end's window or packet size is ever exceeded, nothing is lost or reordered, and nothing stands still.
"""

from __future__ import annotations

from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.ssh import wire
from protocols.ssh.actions import Disconnect
from proxy.core.errors import Refused
from proxy.core.session import Permit
from proxy.core.verdict import Allow, Mask
from proxy.terminal.content import Ask, Step, ToTarget, ToUser
from tests.fakes import FakeMasker
from tests.ssh.playing_ssh import MASKS, Play, execute

Ops = list[tuple[int, int]]


class Distorting:
    """A Content that doubles, drops and adds bytes, and notes what has to arrive."""

    def __init__(self) -> None:
        self.up = b""
        self.down = b""
        self.err = b""

    def from_user(self, data: bytes, now: float) -> list[Step]:
        new = distort(data)
        self.up += new
        return [ToTarget(new[:3]), ToTarget(new[3:], taped=False)]

    def from_target(self, stream: Literal["out", "err"], data: bytes, now: float) -> list[Step]:
        new = distort(data)
        if stream == "out":
            self.down += new
        else:
            self.err += new
        return [ToUser(new[:1], stream, by_gate=True), ToUser(new[1:], stream)]

    def tick(self, now: float) -> list[Step]:
        self.up += b"{tick}"
        self.down += b"[tick]"
        return [ToUser(b"[tick]", by_gate=True), ToTarget(b"{tick}", by_gate=True)]

    def user_eof(self, now: float) -> list[Step]:
        self.up += b"."
        return [ToTarget(b".", by_gate=True)]

    def target_eof(self, now: float) -> list[Step]:
        self.down += b"!"
        return [ToUser(b"!", by_gate=True)]

    def ended(self, now: float) -> list[Step]:
        return []

    def allowed(self, ask: Ask, permit: Permit, now: float) -> list[Step]:
        return []

    def refused(self, ask: Ask, refused: Refused, now: float) -> list[Step]:
        return []

    def waiting(self, ask: Ask, text: str) -> list[Step]:
        return []

    def resized(self, columns: int, rows: int) -> None: ...


def distort(data: bytes) -> bytes:
    return data.replace(b"-", b"").replace(b"+", b"+++++")


class DistortingMask:
    """Withholds up to the last line break; then as distort()."""

    def __init__(self) -> None:
        self._held = b""

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        text = self._held + data
        cut = text.rfind(b"\n") + 1
        self._held = text[cut:]
        return distort(text[:cut])

    def flush(self) -> bytes:
        held, self._held = self._held, b""
        return distort(held)


class DistortingMasker(FakeMasker):
    """Every mask of a stream distorts it."""

    def stream(self, masks: tuple[Mask, ...]) -> DistortingMask | None:  # type: ignore[override]
        return DistortingMask() if masks else None


class End:
    """One ideal end: sends as much as it may, adjusts when half of its window was used."""

    def __init__(self, window: int, packet: int) -> None:
        self.window = window
        self.packet = packet
        self.granted = window  # what the other may still send to it
        self.used = 0  # taken, and not given back yet
        self.room = 0  # what it may send
        self.peer_packet = 0
        self.got = b""
        self.got_err = b""
        self.eof = False
        self.adjusts: list[int] = []  # that it has sent, and
        self.adjusted: list[int] = []  # that have come

    def take(self, messages: list[wire.Message]) -> None:
        for message in messages:
            match message:
                case wire.Data() | wire.ExtendedData():
                    assert not self.eof, "data behind EOF"
                    assert 0 < len(message.data) <= self.packet, "a packet that is too large"
                    assert len(message.data) <= self.granted, "more than the window"
                    self.granted -= len(message.data)
                    self.used += len(message.data)
                    if isinstance(message, wire.Data):
                        self.got += message.data
                    else:
                        self.got_err += message.data
                case wire.WindowAdjust():
                    assert message.size > 0
                    self.adjusted.append(message.size)
                    self.room += message.size
                    assert self.room <= wire.WINDOW_LIMIT
                case wire.Eof():
                    self.eof = True
                case _:
                    raise AssertionError(f"{message}")

    def adjust(self, least: int) -> int:
        if not self.used or self.used < least:
            return 0
        size, self.used = self.used, 0
        self.granted += size
        self.adjusts.append(size)
        return size


class Both:
    """A play with a running program, and both ends of its channel."""

    def __init__(self, play: Play, user: End, target: End) -> None:
        self.play = play
        self.user = user
        self.target = target
        user.room, user.peer_packet = target.window, target.packet
        target.room, target.peer_packet = user.window, user.packet
        play.user(wire.ChannelOpen("session", 0, user.window, user.packet))
        play.target(wire.OpenConfirmation(0, 0, target.window, target.packet))
        play.user(execute("cat")).target(wire.ChannelSuccess(0))
        play.at_user(), play.at_target()

    def look(self) -> None:
        assert not self.play.of(Disconnect)
        self.user.take(self.play.at_user())
        self.target.take(self.play.at_target())

    def send(self, side: int, data: bytes, err: bool = False) -> bytes:
        """Send what fits; returns the rest."""
        end = self.target if side else self.user
        size = min(len(data), end.room, end.peer_packet)
        if size:
            end.room -= size
            piece = data[:size]
            message: wire.Message = wire.ExtendedData(0, 1, piece) if err else wire.Data(0, piece)
            (self.play.target if side else self.play.user)(message)
            self.look()
        return data[size:]

    def adjust(self, side: int, least: int = 1) -> bool:
        end = self.target if side else self.user
        size = end.adjust(least)
        if size:
            (self.play.target if side else self.play.user)(wire.WindowAdjust(0, size))
            self.look()
        return bool(size)

    def finish(self, rest: list[bytes]) -> None:
        """Send all that is left, then EOF; both ends adjust only when half of their window was used."""
        for _ in range(100_000):
            before = list(rest)
            adjusted = False
            for side in (0, 1):
                rest[side] = self.send(side, rest[side])
                end = self.target if side else self.user
                adjusted |= self.adjust(side, max(1, end.window // 2))
            if rest == before and not adjusted:
                break
        assert rest == [b"", b""], "it stands still"
        self.play.user(wire.Eof(0))
        self.look()
        self.play.target(wire.Eof(0))
        self.look()
        for _ in range(10_000):
            if self.user.eof and self.target.eof:
                break
            self.adjust(0), self.adjust(1)


BYTES = b"ab+-\ncd++-"
OPS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 60)), max_size=40)
WINDOWS = st.sampled_from([1, 2, 7, 64, 200, 5000])
PACKETS = st.sampled_from([1, 5, 64, 32_768])


def run(both: Both, ops: Ops, tick: bool) -> list[bytes]:
    """Carry out random steps; returns what was sent: by the user, and by the target on stdout and stderr."""
    sent = [b"", b"", b""]
    for number, (op, size) in enumerate(ops):
        data = (BYTES * 7)[number % 10 :][:size]
        match op:
            case 0 | 1 | 2:
                rest = both.send(min(op, 1), data, err=op == 2)
                sent[op] += data[: len(data) - len(rest)]
            case 3 | 4:
                both.adjust(op - 3)
            case 5 if tick:
                both.play.carry_out(both.play.conversation.tick(0, 0.0))
                both.look()
            case 6:
                both.play.carry_out(both.play.conversation.flush(0))
                both.look()
    return sent


@settings(max_examples=200, deadline=None)
@given(OPS, WINDOWS, WINDOWS, PACKETS, PACKETS)
def test_a_content_may_add_and_swallow(ops: Ops, user_window: int, target_window: int, up: int, down: int) -> None:
    content = Distorting()
    play = Play(contents=lambda *_: content)
    both = Both(play, End(user_window, down), End(target_window, up))
    run(both, ops, tick=True)
    both.finish([BYTES * 6, BYTES * 8])
    assert both.target.eof and both.user.eof
    assert (both.target.got, both.user.got, both.user.got_err) == (content.up, content.down, content.err)


@settings(max_examples=200, deadline=None)
@given(OPS, WINDOWS, WINDOWS, PACKETS, PACKETS)
def test_a_mask_may_change_lengths(ops: Ops, user_window: int, target_window: int, up: int, down: int) -> None:
    play = Play(lambda _: Allow("masked", MASKS), masker=DistortingMasker())
    both = Both(play, End(user_window, down), End(target_window, up))
    sent = run(both, ops, tick=False)
    more = [BYTES * 6, BYTES * 8]
    sent[0] += more[0]
    sent[1] += more[1]
    both.finish(more)
    assert both.target.eof and both.user.eof
    assert both.target.got == sent[0]
    assert both.user.got == distort(sent[1])
    assert both.user.got_err == distort(sent[2])


@settings(max_examples=100, deadline=None)
@given(OPS, WINDOWS, WINDOWS, PACKETS, PACKETS)
def test_without_either_all_passes_as_it_is(ops: Ops, user_window: int, target_window: int, up: int, down: int) -> None:
    play = Play()
    both = Both(play, End(user_window, down), End(target_window, up))
    sent = run(both, ops, tick=False)
    more = [BYTES * 6, BYTES * 8]
    sent[0] += more[0]
    sent[1] += more[1]
    both.finish(more)
    assert (both.target.got, both.user.got, both.user.got_err) == tuple(sent)
    assert both.user.adjusts == both.target.adjusted, "the gate adjusted where nothing was out of balance"
    assert both.target.adjusts == both.user.adjusted


def test_data_beyond_the_window_and_its_grace_end_the_connection() -> None:
    for more, ends in ((0, False), (10, False), (11, True)):
        play = Play().started(window=100)
        play.target(wire.Data(0, b"x" * 100), wire.Data(0, b"y" * more))
        assert bool(play.of(Disconnect)) is ends, more
        assert not ends or play.of(Disconnect)[0].blame == "target"
        assert play.texts() == (b"x" * 100, b""), "what the window has no room for waits"


def test_a_packet_that_is_too_large_ends_the_connection() -> None:
    for size, ends in ((63, False), (64, False), (65, True)):
        play = Play().started(packet=64)
        play.user(wire.Data(0, b"x" * size))
        assert bool(play.of(Disconnect)) is ends, size


def test_a_window_beyond_its_limit_ends_the_connection() -> None:
    for size, ends in (
        (wire.WINDOW_LIMIT - 101, False),
        (wire.WINDOW_LIMIT - 100, False),
        (wire.WINDOW_LIMIT - 99, True),
    ):
        play = Play().started(window=100)
        play.user(wire.WindowAdjust(0, size))
        assert bool(play.of(Disconnect)) is ends, size


def test_the_gate_adjusts_by_itself_when_a_quarter_was_swallowed() -> None:
    content = Distorting()
    play = Play(contents=lambda *_: content).started(window=400)
    play.target(wire.Data(0, b"-" * 99))
    assert play.at_target() == []
    play.target(wire.Data(0, b"-"))
    assert play.at_target() == [wire.WindowAdjust(0, 100)]


def test_what_the_gate_said_is_taken_from_the_next_adjust() -> None:
    play = Play(lambda _: None).opened()
    play.user(execute("make")).hold()
    cost = len(play.texts()[1])
    assert cost
    play.user(wire.WindowAdjust(0, cost - 1))
    assert play.at_target() == []
    play.user(wire.WindowAdjust(0, 11))
    assert play.at_target() == [wire.WindowAdjust(0, 10)]


def test_a_sender_gets_no_room_for_what_still_waits_for_the_receiver() -> None:
    content = Distorting()
    play = Play(contents=lambda *_: content).started(window=100)
    play.target(wire.Data(0, b"+" * 100))
    assert len(play.texts()[0]) == 100
    for _ in range(4):
        assert play.at_target() == []
        play.user(wire.WindowAdjust(0, 100))
        assert len(play.texts()[0]) == 100
    assert play.at_target() == []
    play.user(wire.WindowAdjust(0, 100))
    assert play.at_target() == [wire.WindowAdjust(0, 100)] and play.texts() == (b"", b"")
