"""SPDY/3.1 as Kubernetes speaks it, sans-IO: Session, one end of a connection, which keeps its streams.

It turns bytes into events (a stream was opened, was answered, has data, is reset), answers pings, and frames what is to
be said. What concerns a stream that is gone is ignored on the way in and b"" on the way out: either side may reset it
while the other is still talking. What concerns a stream that never was is an error.

There is no flow control: Kubernetes' library sends no WINDOW_UPDATE and honours none; backpressure is TCP's.
Left out: unidirectional streams, priorities, associated streams, windows. Header blocks are the Encoder's to order:
what open() and reply() return is to be sent in the order in which it was made.
Specification: SPDY protocol draft 3.1, sections 2.2 to 2.6; kubernetes note 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocols.kubernetes.spdy_wire import (
    CANCEL,
    DEFAULT_LIMITS,
    FIN,
    OK,
    STREAM_ID_LIMIT,
    UNIDIRECTIONAL,
    Decoder,
    Encoder,
    Frame,
    Limits,
)


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer has opened a stream, and waits for reply(). fin: it will send nothing there."""

    stream: int
    headers: Mapping[str, str]
    fin: bool


@dataclass(frozen=True, slots=True)
class Replied:
    """The peer has accepted a stream that we opened."""

    stream: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Received:
    """A piece of what the peer sends on a stream, perhaps empty. fin: the last."""

    stream: int
    data: bytes
    fin: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer has ended a stream in both directions."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What is to be sent back: the echo of a ping."""

    wire: bytes


@dataclass(frozen=True, slots=True)
class Away:
    """The peer opens and takes no more streams; kubectl and kubelets close soon after."""

    status: int


SessionEvent = Opened | Replied | Received | Reset | Reply | Away


@dataclass(slots=True)
class _State:
    """A stream that is open in at least one direction."""

    ours: bool
    replied: bool = False
    sent_fin: bool = False
    got_fin: bool = False


class Session:
    """One end of a connection. server: the peer is a user (it opens odd streams), else a target."""

    def __init__(self, server: bool, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._decoder = Decoder(server, limits)
        self._encoder = Encoder()
        self._streams: dict[int, _State] = {}
        self._parity = 1 if server else 0  # of the peer's ids, of streams and pings
        self._next = 2 if server else 1
        self._last = 0  # the peer's last stream
        self._pings = 2 if server else 1
        self._gone_away = False

    @property
    def streams(self) -> tuple[int, ...]:
        """The streams that are open in at least one direction, in the order in which they were opened."""
        return tuple(self._streams)

    def receive(self, data: bytes) -> list[SessionEvent]:
        """Take bytes that came, cut anywhere; return what they say. Raises UserPeerError or TargetPeerError."""
        events: list[SessionEvent] = []
        for frame in self._decoder.feed(data):
            match frame.kind:
                case 0:  # DATA
                    self._received(frame.stream, frame.data, frame.flags & FIN != 0, events)
                case 1:  # SYN_STREAM
                    self._opened(frame, events)
                case 2:  # SYN_REPLY
                    self._replied(frame, events)
                case 8:  # HEADERS
                    self._received(frame.stream, b"", frame.flags & FIN != 0, events)
                case 3:  # RST_STREAM
                    if self._known(frame.stream) is not None:
                        del self._streams[frame.stream]
                        events.append(Reset(frame.stream, frame.value))
                case 6:  # PING
                    if frame.value & 1 == self._parity:
                        events.append(Reply(self._encoder.ping(frame.value)))
                case 7:  # GOAWAY
                    events.append(Away(frame.value))
                case _:  # SETTINGS, WINDOW_UPDATE: nothing here has windows
                    pass
        return events

    def open(self, headers: Mapping[str, str], fin: bool = False) -> tuple[int, bytes]:
        """Open a stream; returns its id and what is to be sent. Raises PeerError where too many are open already."""
        stream = self._next
        if len(self._streams) >= self._limits.streams or stream > STREAM_ID_LIMIT:
            self._decoder.refuse("too many streams: the peer ends none")
        self._next += 2
        self._streams[stream] = _State(ours=True, sent_fin=fin)
        return stream, self._encoder.syn_stream(stream, headers, fin)

    def reply(self, stream: int) -> bytes:
        """Accept a stream of the peer."""
        state = self._streams.get(stream)
        if state is None or state.replied:
            return b""
        assert not state.ours, "the peer answers what we opened"
        state.replied = True
        return self._encoder.syn_reply(stream)

    def data(self, stream: int, data: bytes, fin: bool = False) -> bytes:
        """Frame a piece of a stream; fin: the last. b"" where the stream takes no more."""
        state = self._streams.get(stream)
        if state is None or state.sent_fin:
            return b""
        if fin:
            state.sent_fin = True
            self._settle(stream, state)
        return self._encoder.data(stream, data, fin)

    def reset(self, stream: int, status: int = CANCEL) -> bytes:
        """End a stream in both directions."""
        return b"" if self._streams.pop(stream, None) is None else self._encoder.rst_stream(stream, status)

    def ping(self) -> bytes:
        """Ask whether the peer is there; its echo makes no event."""
        number = self._pings
        self._pings = (self._pings + 2) & 0xFFFFFFFF
        return self._encoder.ping(number)

    def goaway(self, status: int = OK) -> bytes:
        """Say that no more streams are taken; b"" where it was said before."""
        if self._gone_away:
            return b""
        self._gone_away = True
        return self._encoder.goaway(self._last, status)

    # -- from the peer --------------------------------------------------------------------------------

    def _known(self, stream: int) -> _State | None:
        """Return a stream's state, None if it is gone. Raises PeerError if it never was."""
        state = self._streams.get(stream)
        if state is None and not 0 < stream <= (self._last if stream & 1 == self._parity else self._next - 1):
            self._decoder.refuse("a frame of a stream that was never opened")
        return state

    def _received(self, stream: int, data: bytes, fin: bool, events: list[SessionEvent]) -> None:
        state = self._known(stream)
        # Behind its FIN a writer in Go may still have been copying; readers in Go drop it as well.
        if state is None or state.got_fin:
            return
        if state.ours and not state.replied:
            self._decoder.refuse("data of a stream before its SYN_REPLY")
        if fin:
            state.got_fin = True
            self._settle(stream, state)
        elif not data:
            return
        events.append(Received(stream, data, fin))

    def _opened(self, frame: Frame, events: list[SessionEvent]) -> None:
        stream = frame.stream
        if stream & 1 != self._parity or stream <= self._last:
            self._decoder.refuse("a stream whose id is not the next one of its side")
        if frame.flags & UNIDIRECTIONAL:
            self._decoder.refuse("a stream of one direction")
        if len(self._streams) >= self._limits.streams:
            self._decoder.refuse(f"more than {self._limits.streams} streams at once")
        self._last = stream
        if self._gone_away:
            return  # on its way when we said that no more are taken
        fin = frame.flags & FIN != 0
        self._streams[stream] = _State(ours=False, got_fin=fin)
        events.append(Opened(stream, frame.headers or {}, fin))

    def _replied(self, frame: Frame, events: list[SessionEvent]) -> None:
        if frame.stream & 1 == self._parity:
            self._decoder.refuse("a SYN_REPLY to the peer's own stream")
        state = self._known(frame.stream)
        if state is None:
            return
        if state.replied:
            self._decoder.refuse("a second SYN_REPLY")
        state.replied = True
        events.append(Replied(frame.stream, frame.headers or {}))
        if frame.flags & FIN:
            self._received(frame.stream, b"", True, events)

    def _settle(self, stream: int, state: _State) -> None:
        """A stream that both sides have ended is gone."""
        if state.sent_fin and state.got_fin:
            del self._streams[stream]
