"""What a Conversation asks the relay to do. The relay carries actions out in the order in which they come."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.events import Command, Event, Frame, Result
from proxy.core.session import Input, Permit


@dataclass(frozen=True, slots=True)
class Up:
    """Send this to the target: a permit (its command's wire), input of a stream that a permit opened, or a frame."""

    cargo: Permit | Input | Frame


@dataclass(frozen=True, slots=True)
class Down:
    """Reveal this to the user. permit: whose answer it is.

    If a mask keeps all of a Chunk back, the relay calls Conversation.withheld(chunk).
    """

    permit: Permit | None
    event: Event


@dataclass(frozen=True, slots=True)
class Ignored:
    """Tape this of the user, which does not go to the target. flow: whose data it is; None: a framed message."""

    flow: int | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Decide:
    """Have the command decided, without waiting for it here; then call allowed(key, ..) or refused(key, ..).

    When it is held for a human, held(key, ..) is called at once. Keys are never used twice.
    """

    key: int
    command: Command


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The user took this command back, decided or not: what comes of it interests nobody but the tape."""

    key: int


@dataclass(frozen=True, slots=True)
class Record:
    """Tape how a command ended."""

    permit: Permit
    result: Result


@dataclass(frozen=True, slots=True)
class Alarm:
    """Call tick(flow, ..) after so many seconds; a later Alarm of the same flow replaces it."""

    flow: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Forget:
    """The stream is over: no mask and no alarm of it is needed any more."""

    flow: int


@dataclass(frozen=True, slots=True)
class Intent:
    """The user said why it does this."""

    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A remark for the tape."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End both connections. code: RFC 4253 11.1; blame: whose fault it is."""

    code: int
    reason: str
    blame: str = "user"


Action = Up | Down | Ignored | Decide | Withdraw | Record | Alarm | Forget | Intent | Mark | Disconnect
