"""What an exec or attach is made of, whatever carries it: five streams, in events; how legs and relay meet.

A leg is one end of a stream connection (WebSocket with the channel protocols, SPDY/3.1), sans-IO: it turns bytes that
came into events, and what is to be said into bytes. UserLeg is a server's end, towards the user; TargetLeg a client's,
towards the API server. Any user leg goes with any target leg: the relay speaks in events.

A leg answers by itself what concerns its transport alone (pings, SYN_REPLYs): such bytes are the event Reply, to be
sent back to where the event came from. Specification: kubernetes note, sections 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

from proxy.core.errors import PeerError

Stream = Literal[0, 1, 2, 3, 4]
STDIN: Final[Literal[0]] = 0
STDOUT: Final[Literal[1]] = 1
STDERR: Final[Literal[2]] = 2
ERROR: Final[Literal[3]] = 3  # the metav1.Status at the end
RESIZE: Final[Literal[4]] = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """The streams that a request asks for; the error stream is always there, sizes where there is a terminal."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    def has(self, stream: Stream) -> bool:
        """Whether a stream is asked for."""
        return (self.stdin, self.stdout, self.stderr, True, self.tty)[stream]

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All of them, in the order in which clients open them."""
        order: tuple[Stream, ...] = (ERROR, STDIN, STDOUT, STDERR, RESIZE)
        return tuple(stream for stream in order if self.has(stream))


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of stdin, stdout or stderr. wire: the same, framed as it came; b"" where only the bytes are known.

    A leg of the same codec (see codec) takes wire as it is in the same direction.
    """

    stream: Literal[0, 1, 2]
    data: bytes
    wire: bytes = b""


@dataclass(frozen=True, slots=True)
class End:
    """One stream is over: the user's stdin (half-close), or an output of the target."""

    stream: Literal[0, 1, 2]


@dataclass(frozen=True, slots=True)
class Size:
    """The user's terminal has this size."""

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Status:
    """How it ended: the document of the error stream (v4 and later: a metav1.Status in JSON; before that, text)."""

    document: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes of the transport's own for the peer that the event came from."""

    wire: bytes


@dataclass(frozen=True, slots=True)
class Over:
    """The peer has ended the connection, in order or with an error; nothing more is to be said to it but finish()."""

    reason: str = ""


Event = Data | End | Size | Status | Reply | Over


class Leg(Protocol):
    """One end. receive() raises UserPeerError or TargetPeerError, by whose end it is, for what is not the protocol."""

    @property
    def codec(self) -> str:
        """Names the framing of Data.wire: legs of one codec pass it to each other unchanged; "" passes none."""

    @property
    def ready(self) -> bool:
        """Whether the streams that were asked for are there (SPDY opens them one by one); nothing is sent before."""

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes that came, cut anywhere; return what they say."""

    def data(self, stream: Stream, data: bytes) -> bytes:
        """Frame a piece of a stream, in as many frames as the protocol's limits ask for."""

    def end(self, stream: Stream) -> bytes:
        """Say that a stream is over; b"" where the protocol cannot say so."""

    def ping(self) -> bytes:
        """Return a ping that keeps the way open; b"" where the protocol has none."""

    def refuse(self, error: PeerError) -> bytes:
        """End the connection with what the peer did wrong, in the protocol's own words; b"" where it has ended."""


class UserLeg(Leg, Protocol):
    """A server's end: takes stdin and sizes, gives output and the Status."""

    def start(self) -> bytes:
        """What is sent first, once the handshake is over (WebSocket: an empty message on the lowest output)."""

    def finish(self, document: bytes) -> bytes:
        """Send the Status (b"" for none) and end in order: streams, then the connection's close."""


class TargetLeg(Leg, Protocol):
    """A client's end: gives stdin and sizes, takes output and the Status."""

    def start(self) -> bytes:
        """What is sent first, once the handshake is over (SPDY: the streams are opened)."""

    def resize(self, columns: int, rows: int) -> bytes:
        """Tell the terminal's size."""

    def finish(self) -> bytes:
        """End in order: what answers the target's close, or leaves it."""
