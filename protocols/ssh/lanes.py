"""One direction of one channel: its windows, and what waits in it.

Windows. Messages pass end to end with the two ends' own flow control, but what the gate injects, swallows or changes
does not, so a lane knows two numbers: receiver, the room that its receiver still has for data, and sender, the room
that its sender believes it has. What may be granted to the sender is receiver - queued - sender; where nothing was
injected or swallowed that is exactly what the receiver adjusts. It is settled in the next WINDOW_ADJUST that passes, or
in one of the gate's own when enough has piled up, or when the sender has no room left. So the receiver's window is
never exceeded, whatever the gate adds: what does not fit waits in the queue, and everything behind it waits as well
(EOF, exit-status, CLOSE).

Masks. What a mask makes of a piece is known only when the relay reveals it, so it is accounted for then (Rewrap), and
what has become too long for the window goes back to the head of the queue. For that nothing of the same lane may follow
a piece that a mask can change in the same list of actions: the lane stands still until settle().

The tape. What the user sent is taped when it goes on; what never does (its target has closed the channel, its user has,
the window never opened) is Ignored, in its place: the tape of a flow has all of it, in order.

Specification: RFC 4254 5.2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from protocols.ssh import wire
from protocols.ssh.actions import Action, Decide, Down, Ignored, Up
from proxy.core.events import Chunk, Command, Frame
from proxy.core.session import Input, Permit

Stream = Literal["out", "err"]

# The gate adjusts by itself when so much has piled up, or a quarter of the window: OpenSSH's own packets are 32 KiB.
ADJUST_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Data, which cost window. revealed: the tape has it, and a mask has seen it. flush, masked: see Chunk."""

    data: bytes
    permit: Permit | None = None
    stream: Stream = "out"
    by_gate: bool = False
    taped: bool = True
    flush: bool = False
    revealed: bool = False
    masked: bool = True


@dataclass(frozen=True, slots=True)
class Parcel:
    """A whole action that keeps its place in the order. size: how much data is in it, which must fit whole."""

    action: Action
    size: int = 0
    last: Literal["", "eof", "close"] = ""


Item = Piece | Parcel


class Lane(ABC):
    """What both directions have in common."""

    __slots__ = (
        "closed", "ended", "flow", "gone", "held", "high", "origin", "packet", "paused", "queue", "queued", "receiver",
        "recipient", "sender", "sent", "waiting",
    )  # fmt: skip

    def __init__(self, flow: int) -> None:
        self.flow = flow
        self.receiver = 0  # room of the receiver
        self.sender = 0  # room that the sender believes in
        self.high = 0  # the largest room that the receiver has had
        self.packet = 0  # the receiver's largest packet
        self.recipient = 0  # the channel's number at the receiver
        self.origin = 0  # the channel's number at the sender
        self.queue: deque[Item] = deque()
        self.queued = 0  # bytes of data in the queue
        self.waiting = 0  # bytes of data that wait for a decision, ahead of the queue
        self.held = 0  # bytes of data that a Content keeps, or has asked for
        self.sent = 0  # bytes of data that went on to the receiver
        self.paused = False  # until the channel's number at the receiver is free
        self.ended = False  # EOF was put in: no data may follow
        self.closed = False  # CLOSE was put in: nothing may follow
        self.gone = False  # CLOSE went out

    def open(self, window: int, packet: int) -> None:
        """The receiver takes so much; the sender is told the same."""
        self.receiver = self.sender = self.high = window
        self.packet = packet

    @property
    def owed(self) -> int:
        """What the sender may be granted, below zero if it has too much already."""
        return self.receiver - self.queued - self.waiting - self.held - self.sender

    def push(self, item: Item, out: list[Action]) -> None:
        """Let an item go on, or wait for its turn."""
        if self.closed or (self.ended and (isinstance(item, Piece) or item.last == "eof")):
            self.drop(item, out)
            return
        if isinstance(item, Piece):
            self.queued += len(item.data)
        else:
            self.queued += item.size
            self.ended = self.ended or item.last != ""
            self.closed = item.last == "close"
        self.queue.append(item)
        self.drain(out)

    def drain(self, out: list[Action]) -> None:
        """Let go of what may go."""
        queue = self.queue
        while queue and not self.paused:
            item = queue[0]
            if isinstance(item, Parcel):
                if item.size > self.receiver:
                    return
                self.receiver -= item.size
                self.sent += item.size
                self.queued -= item.size
                queue.popleft()
                self.gone = self.gone or item.last == "close"
                out.append(item.action)
                continue
            size = len(item.data)
            if size > self.receiver:
                size = self.receiver
                if size <= 0:
                    return
                queue[0] = replace(item, data=item.data[size:])
                item = replace(item, data=item.data[:size], flush=False)
            else:
                queue.popleft()
            self.queued -= size
            self.receiver -= size
            self.sent += size
            if not self.let_go(item, out):
                return

    @abstractmethod
    def let_go(self, piece: Piece, out: list[Action]) -> bool:
        """Emit a piece that fits; returns whether more may follow at once."""

    @abstractmethod
    def adjust(self, size: int) -> Action:
        """Return a WINDOW_ADJUST of the gate's own, to the sender."""

    def granted(self, size: int, out: list[Action]) -> None:
        """The receiver has sent WINDOW_ADJUST; WINDOW_LIMIT was checked."""
        self.receiver += size
        self.high = max(self.high, self.receiver)
        self.drain(out)
        self._grant(1, out)

    def settle(self, out: list[Action]) -> None:
        """Grant the sender what has piled up, if it is enough or the sender has no room."""
        if self.owed > 0:
            self._grant(1 if self.sender <= 0 else min(ADJUST_BYTES, max(1, self.high // 4)), out)

    def _grant(self, least: int, out: list[Action]) -> None:
        owed = min(self.owed, wire.WINDOW_LIMIT - max(self.sender, 0))
        if owed >= least and not self.ended:
            self.sender += owed
            out.append(self.adjust(owed))

    def drop(self, item: Item, out: list[Action]) -> None:  # noqa: B027 - most are of no interest
        """Say what became of an item that goes nowhere."""

    def lend(self, size: int, out: list[Action]) -> None:
        """Let the sender send so much although the receiver has no room yet; what it sends waits here."""
        short = size - max(self.sender, 0)
        if short > 0 and not self.ended:
            self.sender += short
            out.append(self.adjust(short))

    def lent(self, size: int, more: int, out: list[Action]) -> None:
        """The sender was let send so much before the lane was open, and may send more now."""
        self.sender = size + more
        if more:
            out.append(self.adjust(more))

    def clear(self, out: list[Action]) -> None:
        """Drop what waits: nobody wants it any more."""
        for item in self.queue:
            self.drop(item, out)
        self.queue.clear()
        self.queued = self.waiting = self.held = 0

    def end(self, out: list[Action]) -> None:
        """Drop what waits, and let nothing follow: CLOSE goes out at once."""
        self.clear(out)
        self.ended = self.closed = self.gone = True


class UpLane(Lane):
    """From the user to the target."""

    __slots__ = ()

    def drop(self, item: Item, out: list[Action]) -> None:
        """See Lane: the tape gets what the user sent."""
        if isinstance(item, Piece):
            if item.taped and not item.by_gate and item.data:
                out.append(Ignored(self.flow, item.data))
            return
        match item.action:
            case Up(Frame(wire=framed, by_gate=False, taped=True)):
                out.append(Ignored(None, framed))
            case Decide(command=Command(flow=flow, data=bytes() as data)):
                out.append(Ignored(flow, data))
            case Ignored():
                out.append(item.action)

    def let_go(self, piece: Piece, out: list[Action]) -> bool:
        """See Lane."""
        framed = wire.data_frames(self.recipient, piece.data, self.packet)
        if piece.taped and not piece.by_gate:
            assert piece.permit is not None, "input without a permit"
            out.append(Up(Input(piece.permit, self.flow, piece.data, framed)))
        else:
            out.append(Up(Frame(framed, piece.by_gate, piece.taped)))
        return True

    def adjust(self, size: int) -> Action:
        """See Lane."""
        return Down(None, Frame(wire.frame(wire.WindowAdjust(self.origin, size).encode()), True, False))


@dataclass(slots=True)
class Masked:
    """What the lanes of one connection share: those to be settled after a reveal; whether any permit had masks."""

    unsettled: dict[int, DownLane] = field(default_factory=dict)
    any: bool = False


class DownLane(Lane):
    """From the target to the user."""

    __slots__ = ("_shared", "maskable", "masked", "packets", "still")

    def __init__(self, flow: int, shared: Masked, maskable: bool) -> None:
        super().__init__(flow)
        self.maskable = maskable  # False: a protocol that a mask would break, which no mask may look at
        self.masked = False  # a mask may look at what goes on here
        self.packets = False  # stdout is one side of an upload that is not decoded (rsync, git): no text for a mask
        self.still = False  # a piece is on its way that a mask may change
        self._shared = shared

    def answers(self, permit: Permit | None) -> None:
        """What comes is this permit's answer: masks of a stream add up, see Session.reveal."""
        if self._shared.any if permit is None else permit.masks:
            self._shared.any = True
            self.masked = self.maskable

    def may_be_masked(self, permit: Permit | None) -> bool:
        """Whether a mask may look at what this permit answers here."""
        self.answers(permit)
        return self.masked

    def drain(self, out: list[Action]) -> None:
        """See Lane."""
        if not self.still:
            super().drain(out)

    def let_go(self, piece: Piece, out: list[Action]) -> bool:
        """See Lane."""
        data = piece.data
        code = None if piece.stream == "out" else wire.STDERR
        framed = wire.data_frames(self.recipient, data, self.packet, code) if data else b""
        if piece.revealed:
            out.append(Down(None, Frame(framed, True, False)))
            return True
        rewrap = Rewrap(self, piece.stream, len(data))
        masked = piece.masked and self.maskable and not (self.packets and piece.stream == "out")
        chunk = Chunk(self.flow, piece.stream, data, framed, rewrap, piece.flush, piece.taped, masked)
        out.append(Down(piece.permit, chunk))
        self.answers(piece.permit)
        if not (piece.taped and masked and self.masked):
            return True
        self.still = True
        self._shared.unsettled[self.flow] = self
        return False

    def adjust(self, size: int) -> Action:
        """See Lane."""
        return Up(Frame(wire.frame(wire.WindowAdjust(self.origin, size).encode()), True, False))

    def changed(self, stream: Stream, size: int, data: bytes) -> bytes:
        """A mask made data of a piece of size bytes: account for it, and return what fits, framed."""
        self.receiver += size
        self.sent -= size
        if self.gone:
            return b""  # the channel is closed to the user
        self._shared.unsettled[self.flow] = self
        fits = data[: max(0, self.receiver)]
        self.receiver -= len(fits)
        self.sent += len(fits)
        if len(fits) < len(data):
            rest = Piece(data[len(fits) :], None, stream, revealed=True)
            self.queued += len(rest.data)
            self.queue.appendleft(rest)
        code = None if stream == "out" else wire.STDERR
        return wire.data_frames(self.recipient, fits, self.packet, code) if fits else b""


class Rewrap:
    """Frames what a mask has made of a chunk in the chunk's place."""

    __slots__ = ("_lane", "_size", "_stream", "_used")

    def __init__(self, lane: DownLane, stream: Stream, size: int) -> None:
        self._lane = lane
        self._stream: Stream = stream
        self._size = size
        self._used = False

    def __call__(self, data: bytes) -> bytes:
        """Return the frames of other data; what the window has no room for comes later."""
        self._used = True
        return self._lane.changed(self._stream, self._size, data)

    def withheld(self) -> None:
        """The mask keeps all of it for now: the user's room is as it was."""
        if not self._used:
            self._used = True
            self._lane.changed(self._stream, self._size, b"")
