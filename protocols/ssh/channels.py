"""One channel: who opened it, its two lanes, its state on either side, and what waits for whom.

A side may send what the table NEXT allows in the state that this side is in; a missing entry is an error by
construction. Replies keeps the replies to one side's requests in the order of the requests (RFC 4254 5.4 and 4 have no
number in them): the gate's own answer to one waits until the other side has answered those before it.

Specification: RFC 4254 5.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from protocols.ssh import wire
from protocols.ssh.actions import Action, Mark
from protocols.ssh.lanes import DownLane, Item, Lane, Masked, UpLane
from proxy.core.errors import PeerError, TargetPeerError, UserPeerError
from proxy.core.session import Permit
from proxy.core.text import harmless
from proxy.terminal.content import Content

USER: Final = 0
TARGET: Final = 1
Side = Literal[0, 1]
NAMES: Final = ("user", "target")
ERRORS: Final[tuple[type[PeerError], type[PeerError]]] = (UserPeerError, TargetPeerError)

# What one side may do: "offered" = it has to answer an OPEN, "opened" = it waits for that answer.
State = Literal["offered", "opened", "open", "eof", "closed"]
NEXT: Final[dict[tuple[State, int], State]] = {
    ("offered", wire.CHANNEL_OPEN_CONFIRMATION): "open",
    ("offered", wire.CHANNEL_OPEN_FAILURE): "closed",
    ("open", wire.CHANNEL_WINDOW_ADJUST): "open",
    ("open", wire.CHANNEL_DATA): "open",
    ("open", wire.CHANNEL_EXTENDED_DATA): "open",
    ("open", wire.CHANNEL_REQUEST): "open",
    ("open", wire.CHANNEL_SUCCESS): "open",
    ("open", wire.CHANNEL_FAILURE): "open",
    ("open", wire.CHANNEL_EOF): "eof",
    ("open", wire.CHANNEL_CLOSE): "closed",
    ("eof", wire.CHANNEL_WINDOW_ADJUST): "eof",
    ("eof", wire.CHANNEL_REQUEST): "eof",
    ("eof", wire.CHANNEL_SUCCESS): "eof",
    ("eof", wire.CHANNEL_FAILURE): "eof",
    ("eof", wire.CHANNEL_CLOSE): "closed",
}

# OpenSSH lets a peer exceed a window by a tenth before it ends the connection (channels.c, channel_input_data).
GRACE_PARTS: Final = 10
# Channels of one connection at once: a browser on a dynamic forward has some hundreds; OpenSSH has no limit.
CHANNELS_LIMIT: Final = 1024
# Requests of one channel that wait for a decision, and global requests that do: OpenSSH sends one for each variable,
# and its server takes 128 of those (session.c, MAX_ENV).
WAITING_LIMIT: Final = 256
# Variables of one session: see above.
ENV_LIMIT: Final = 128
# Ports and sockets that the target listens on for one connection.
FORWARDS_LIMIT: Final = 256
# Messages that nobody understands, each with a remark on the tape: one for each of 10,000 sessions on one connection is
# what a client with an extension of its own may send; a peer that sends more of them has nothing else to say.
REMARKS_LIMIT: Final = 10_000
UNKNOWN: Final = "ssh-unknown"
# What the target says on these is a protocol of its own with what the user lends it; a mask would break it.
_UNMASKABLE: Final = frozenset({"x11", "auth-agent@openssh.com"})
NAME_CHARS: Final = 100  # names of RFC 4250 4.6.1 have at most 64 characters


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one connection; see above for where the numbers come from."""

    channels: int = CHANNELS_LIMIT
    waiting: int = WAITING_LIMIT
    env: int = ENV_LIMIT
    forwards: int = FORWARDS_LIMIT
    remarks: int = REMARKS_LIMIT


def shown(name: str) -> str:
    """Return a peer's name for something, fit for a line of text."""
    return harmless(name[:NAME_CHARS])


class Remarks:
    """What a peer sent that is ignored, each with a remark on the tape."""

    __slots__ = ("_left",)

    def __init__(self, limit: int) -> None:
        self._left = limit

    def add(self, out: list[Action], side: Side, label: str, text: str) -> None:
        """Remark on something of a side. Raises its PeerError where too much is unknown; refusals do not count."""
        if label == UNKNOWN:
            if not self._left:
                raise ERRORS[side]("too many messages that nobody understands")
            self._left -= 1
        out.append(Mark(label, f"{NAMES[side]}: {text}"))


class Replies:
    """The replies to the requests of one side, in order: the other side's to come, and the gate's own that wait."""

    __slots__ = ("_order",)

    def __init__(self) -> None:
        self._order: deque[str | tuple[Item, ...]] = deque()

    def expect(self, what: str) -> None:
        """A request that wants a reply goes to the other side."""
        self._order.append(what)

    def answer(self, items: tuple[Item, ...]) -> list[Item]:
        """The gate answers a request itself; returns what may be said now."""
        if not self._order:
            return list(items)
        self._order.append(items)
        return []

    def arrived(self) -> tuple[str | None, list[Item]]:
        """The other side has answered: what (None: nothing was asked), and what the gate may say behind it."""
        if not self._order:
            return None, []
        what = self._order.popleft()
        assert isinstance(what, str), "an answer of the gate waits behind nothing"
        return what, self._ready()

    def abandon(self) -> list[Item]:
        """The other side answers no more; returns all that the gate has to say."""
        items = [item for entry in self._order if not isinstance(entry, str) for item in entry]
        self._order.clear()
        return items

    def _ready(self) -> list[Item]:
        items: list[Item] = []
        while self._order and not isinstance(first := self._order[0], str):
            items += first
            self._order.popleft()
        return items

    def __len__(self) -> int:
        return len(self._order)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message of the user that waits for the decision on an earlier one: data, a request, or EOF."""

    data: bytearray | None = None
    request: wire.ChannelRequest | None = None
    told: bool = False  # EOF: the content knows of it


Program = Literal["", "asked", "running", "failed"]


class Channel:
    """See the module."""

    __slots__ = (
        "answer", "asks", "columns", "content", "down", "env", "err", "exit", "flow", "ids", "kind", "lent", "opener",
        "over", "permit", "program", "pty", "replies", "rows", "signal", "states", "up", "waiting",
    )  # fmt: skip

    def __init__(self, flow: int, kind: str, opener: Side, shared: Masked) -> None:
        self.flow = flow
        self.kind = kind
        self.opener: Side = opener
        self.ids = [0, 0]  # the number that each side has given it
        self.states: list[State] = ["opened", "opened"]
        self.states[1 - opener] = "offered"
        self.down = DownLane(flow, shared, maskable=kind not in _UNMASKABLE)
        self.up = UpLane(flow)
        self.replies = (Replies(), Replies())  # to the requests of the user, of the target
        self.permit: Permit | None = None  # for what the user sends: the program's, or the forward's
        self.answer: Permit | None = None  # for what the target sends: that, or the last command's within
        self.content: Content | None = None
        self.program: Program = ""
        self.over = False  # the gate has ended it: nothing but the closing passes any more
        self.asks: set[int] = set()  # the keys of what is undecided; the channel is blocked by them
        self.waiting: deque[Waiting] = deque()
        self.lent: deque[Permit] = deque()  # of an agent or a display: the target has not answered yet
        self.pty = False
        self.columns = 80
        self.rows = 24
        self.env: dict[str, str] = {}
        self.err = False  # something came on stderr
        self.exit: int | None = None
        self.signal: tuple[str, str] | None = None

    def lane_to(self, side: Side) -> Lane:
        """The direction towards a side."""
        return self.down if side == USER else self.up

    @property
    def plain_down(self) -> bool:
        """Whether nothing stands in the way of the target's data but a Content."""
        down = self.down
        return not (down.queue or down.ended or down.still or self.over) and self.answer is not None

    @property
    def plain_up(self) -> bool:
        """Whether nothing stands in the way of the user's data but a Content."""
        up = self.up
        return not (self.asks or self.waiting or up.queue or up.ended or self.over)

    def number(self, side: Side, number: int) -> None:
        """A side has given the channel its number."""
        self.ids[side] = number
        self.lane_to(side).recipient = number
        self.lane_to(USER if side == TARGET else TARGET).origin = number

    @property
    def tag(self) -> str:
        """How its program ended."""
        if self.signal is not None:
            return f"signal {self.signal[0]}"
        return "closed" if self.exit is None else f"exit {self.exit}"
