"""What decodes the data of one channel: SFTP, the old scp protocol, the lines typed on a terminal. Interface and steps.

A channel whose exec, shell or subsystem was allowed gets one Content. It is sans-IO: the conversation (commands.py)
hands it the channel's data as they come, whole or in any pieces, and carries out the steps that it returns, in order.
Framing, windows, masks and the tape are the conversation's business and the waist's; deciding is the policy's.

While a Content waits for an answer to Ask, no more of the user's data reaches it (they stay with the conversation, and
the window bounds them); the target's data do. EOF from the user waits its turn as well; a CLOSE does not: it takes
back what is held.

A Content that waits for the target (an answer that must come first) may keep data of the user meanwhile. It says how
much in held_bytes, so that the user gets no new room for them, and EOF waits until there are none.

All that a user sent is on the tape: as ToTarget, as the data of an Ask, or as Dropped where it goes nowhere.

Specification: RFC 4254 section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from proxy.core.errors import Refused
from proxy.core.events import Command, Result
from proxy.core.session import Permit


@dataclass(frozen=True, slots=True)
class ToTarget:
    """Bytes of the user that go on to the target. by_gate: the gate made them. taped False: a transfer's content."""

    data: bytes
    by_gate: bool = False
    taped: bool = True


@dataclass(frozen=True, slots=True)
class Dropped:
    """Bytes of the user that go nowhere: another packet stands for them, or the gate has answered them itself."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ToUser:
    """Bytes for the user. by_gate: the gate made them: they cost window that the target does not know of.

    masked False: no mask looks at them: they are packets, which a mask would break, or words of the gate.
    """

    data: bytes
    stream: Literal["out", "err"] = "out"
    by_gate: bool = False
    taped: bool = True
    masked: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """The command is to be decided; data are what goes to the target if it is allowed (they become Command.wire).

    data may be empty: then nothing goes by itself, and what allowed() returns follows.
    """

    command: Command
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that was allowed has ended; how is for the tape."""

    permit: Permit
    result: Result


@dataclass(frozen=True, slots=True)
class Wake:
    """Call tick() after so long; a later Wake of the same Content replaces it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Broken:
    """The user's side of the channel is not what it should be: the channel ends with this text on stderr."""

    text: str


Step = ToTarget | Dropped | ToUser | Ask | Done | Wake | Broken


@dataclass(frozen=True, slots=True)
class Settings:
    """What a Content may know. flow is the channel's number on the tape, protocol that of its commands.

    The rest is the target's configuration. record_contents: globs of paths; transfers of these are on the tape whole.
    login: the name at the target.
    """

    flow: int
    target: str = ""
    login: str = ""
    record_contents: tuple[str, ...] = ()
    hold_when_unsure: bool = False
    columns: int = 80
    rows: int = 24
    env: dict[str, str] = field(default_factory=dict)
    protocol: str = "ssh"


class Content(Protocol):
    """Decodes the data of one channel. Every method returns steps to carry out; none raises for a peer's bytes."""

    def from_user(self, data: bytes, now: float) -> list[Step]:
        """Take data of the user. now: seconds on a monotonic clock, as everywhere here."""

    def from_target(self, stream: Literal["out", "err"], data: bytes, now: float) -> list[Step]:
        """Take data of the target."""

    def allowed(self, ask: Ask, permit: Permit, now: float) -> list[Step]:
        """The command asked for was allowed, and its data are on their way."""

    def refused(self, ask: Ask, refused: Refused, now: float) -> list[Step]:
        """It was refused: answer the user as the target would."""

    def waiting(self, ask: Ask, text: str) -> list[Step]:
        """It is held for a human; text says so, in one line without a line break. Show it where that does no harm."""

    def user_eof(self, now: float) -> list[Step]:
        """The user will send no more."""

    def target_eof(self, now: float) -> list[Step]:
        """The target will send no more."""

    def ended(self, now: float) -> list[Step]:
        """The channel is closed: give back what is unfinished as Done, what waits as Dropped. The rest is of no use."""

    def resized(self, columns: int, rows: int) -> None:
        """The user's terminal has a new size."""

    def tick(self, now: float) -> list[Step]:
        """The time of the last Wake has come."""


def held_bytes(content: Content | None) -> int:
    """How many bytes of the user a Content keeps: neither passed, answered nor asked for.

    0 where only the user's next bytes can help. Only a Content that may keep some has the property.
    """
    held: int = getattr(content, "held_bytes", 0)
    return held
