"""exec and attach over SPDY/3.1: the ends of the protocol v4.channel.k8s.io, sans-IO.

A stream for each of error, stdin, stdout, stderr and resize that was asked for, opened by the client in this order,
named by the header streamtype; nothing is sent before all are there (`ready`). An end is a FIN. The end of all, of a
server: output's FINs, then the Status on error and its FIN; the client resets what is open, says GOAWAY and closes.

Frames name streams by numbers of their connection, so none passes from one leg to another unchanged (codec is "").
Source: k8s.io/apimachinery/pkg/util/httpstream/spdy, k8s.io/client-go/tools/remotecommand; kubernetes note 4.
"""

from __future__ import annotations

from typing import Final

from protocols.kubernetes import spdy, status
from protocols.kubernetes.sizes import Sizes, encode_size
from protocols.kubernetes.spdy_wire import PROTOCOL_ERROR, Limits
from protocols.kubernetes.streams import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Asked,
    Data,
    End,
    Event,
    Over,
    Reply,
    Status,
    Stream,
)
from proxy.core.errors import PeerError, TargetPeerError, UserPeerError

V4: Final = "v4.channel.k8s.io"
STREAM_TYPE: Final = "streamtype"
STREAMS_LIMIT: Final = 8  # five are used
STATUS_LIMIT: Final = status.DOCUMENT_LIMIT

_NAMES: Final[dict[Stream, str]] = {
    ERROR: "error",
    STDIN: "stdin",
    STDOUT: "stdout",
    STDERR: "stderr",
    RESIZE: "resize",
}
_STREAMS: Final[dict[str, Stream]] = {name: stream for stream, name in _NAMES.items()}


class _Leg:
    """What both ends share: a session, and which of its streams is which."""

    codec = ""

    def __init__(self, asked: Asked, user: bool) -> None:
        self._asked = asked
        self._session = spdy.Session(user, Limits(streams=STREAMS_LIMIT))
        self._ids: dict[Stream, int] = {}
        self._kinds: dict[int, Stream] = {}
        self._over = False
        self._gone = False  # what ends our side is sent

    def data(self, stream: Stream, data: bytes) -> bytes:
        """See streams.Leg."""
        return self._session.data(self._ids.get(stream, 0), data)

    def end(self, stream: Stream) -> bytes:
        """See streams.Leg."""
        return self._session.data(self._ids.get(stream, 0), b"", fin=True)

    def ping(self) -> bytes:
        """See streams.Leg."""
        return b"" if self._gone else self._session.ping()

    def refuse(self, error: PeerError) -> bytes:
        """See streams.Leg: SPDY has no words, only a number."""
        self._gone = True
        return self._session.goaway(PROTOCOL_ERROR)

    def _add(self, stream: Stream, number: int) -> None:
        self._ids[stream] = number
        self._kinds[number] = stream

    def _end(self, events: list[Event], reason: str = "") -> None:
        if not self._over:
            self._over = True
            events.append(Over(reason))


class SpdyUserLeg(_Leg):
    """The end towards the user: a server's. Specification: streams.UserLeg."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked, user=True)
        self._sizes = Sizes()
        self._ended = False  # stdin is

    @property
    def ready(self) -> bool:
        """See streams.Leg."""
        return all(stream in self._ids for stream in self._asked.streams)

    def start(self) -> bytes:
        """Nothing: the user opens the streams."""
        return b""

    def receive(self, data: bytes) -> list[Event]:
        """See streams.Leg."""
        events: list[Event] = []
        if self._over:
            return events
        for event in self._session.receive(data):
            if self._over:  # nothing follows an Over
                break
            match event:
                case spdy.Received(stream=number, data=piece, fin=fin):
                    if not self._gone:
                        self._received(self._kinds[number], piece, fin, events)
                case spdy.Opened():
                    self._opened(event, events)
                case spdy.Reply(wire=wire):
                    events.append(Reply(wire))
                case spdy.Reset(stream=number):
                    if not self._gone:
                        self._reset(self._kinds[number], events)
                case spdy.Away():
                    self._end(events)
                case spdy.Replied():
                    raise AssertionError("we open no streams")
        return events

    def finish(self, document: bytes) -> bytes:
        """See streams.UserLeg. Without a Status all is over at once; with one the user takes its leave."""
        ends = self.end(STDOUT) + self.end(STDERR)
        said = self.data(ERROR, document) if document else b""
        wire = ends + said + self.end(ERROR)
        if not document:
            wire += self._session.goaway()
        self._gone = True
        return wire

    def _opened(self, event: spdy.Opened, events: list[Event]) -> None:
        stream = _STREAMS.get(event.headers.get(STREAM_TYPE, ""))
        if stream is None or stream in self._ids:
            raise UserPeerError("SPDY: a stream of no known type, or of one that is there", str(PROTOCOL_ERROR))
        self._add(stream, event.stream)
        if wire := self._session.reply(event.stream):  # not where it was reset in the same read
            events.append(Reply(wire))
        if event.fin:
            self._received(stream, b"", True, events)

    def _received(self, stream: Stream, data: bytes, fin: bool, events: list[Event]) -> None:
        # What was not asked for is dropped, as kubelets do.
        match stream:
            case 0:
                if data and self._asked.stdin:
                    events.append(Data(STDIN, data))
                if fin and self._asked.stdin and not self._ended:
                    self._ended = True
                    events.append(End(STDIN))
            case 4:
                if self._asked.tty:
                    events += self._sizes.feed(data)
            case _:
                if data:
                    raise UserPeerError("SPDY: data on a stream of the target", str(PROTOCOL_ERROR))

    def _reset(self, stream: Stream, events: list[Event]) -> None:
        """stdin's is its end. Whoever resets what it listens to is about to leave."""
        if stream == STDIN:
            self._received(STDIN, b"", True, events)
        elif stream != RESIZE:
            self._end(events, "the user reset a stream")


class SpdyTargetLeg(_Leg):
    """The end towards the API server: a client's. Specification: streams.TargetLeg."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked, user=False)
        self._awaited: set[int] = set()
        self._started = False
        self._document = bytearray()
        self._said_status = False

    @property
    def ready(self) -> bool:
        """See streams.Leg."""
        return self._started and not self._awaited

    def start(self) -> bytes:
        """Open the streams."""
        self._started = True
        wire = []
        for stream in self._asked.streams:
            number, opening = self._session.open({STREAM_TYPE: _NAMES[stream]})
            self._add(stream, number)
            self._awaited.add(number)
            wire.append(opening)
        return b"".join(wire)

    def receive(self, data: bytes) -> list[Event]:
        """See streams.Leg."""
        events: list[Event] = []
        if self._over:
            return events
        for event in self._session.receive(data):
            if self._over:  # nothing follows an Over
                break
            match event:
                case spdy.Received(stream=number, data=piece, fin=fin):
                    if self._awaited:
                        raise TargetPeerError("SPDY: data before all streams were accepted", str(PROTOCOL_ERROR))
                    self._received(self._kinds[number], piece, fin, events)
                case spdy.Reply(wire=wire):
                    events.append(Reply(wire))
                case spdy.Replied(stream=number):
                    self._awaited.discard(number)
                case spdy.Reset(stream=number):
                    if number in self._awaited:
                        self._end(events, "the target refused a stream")
                    else:
                        self._reset(self._kinds[number], events)
                case spdy.Away(status=code):
                    self._say_status(events)
                    self._end(events, f"GOAWAY {code}" if code else "")
                case spdy.Opened():
                    raise TargetPeerError("SPDY: the target opened a stream", str(PROTOCOL_ERROR))
        return events

    def resize(self, columns: int, rows: int) -> bytes:
        """See streams.TargetLeg."""
        return self.data(RESIZE, encode_size(columns, rows))

    def finish(self) -> bytes:
        """See streams.TargetLeg: as kubectl, reset what is open and say GOAWAY."""
        self._gone = True
        return b"".join(self._session.reset(number) for number in self._session.streams) + self._session.goaway()

    def _received(self, stream: Stream, data: bytes, fin: bool, events: list[Event]) -> None:
        match stream:
            case 1 | 2:
                if data:
                    events.append(Data(stream, data))
                if fin:
                    events.append(End(stream))
            case 3:
                self._document += data
                if len(self._document) > STATUS_LIMIT:
                    raise TargetPeerError(f"SPDY: a Status of more than {STATUS_LIMIT} bytes", str(PROTOCOL_ERROR))
                if fin:
                    # An error stream that ends empty means success, to client-go as well (its errorstream.go).
                    self._document = self._document or bytearray(status.exit_document(0))
                    self._say_status(events)
            case _:
                if data:
                    raise TargetPeerError("SPDY: data on a stream of the user", str(PROTOCOL_ERROR))

    def _reset(self, stream: Stream, events: list[Event]) -> None:
        match stream:
            case 1 | 2:
                events.append(End(stream))
            case 3:
                self._say_status(events)
            case _:
                pass  # stdin: what is still sent there is b""

    def _say_status(self, events: list[Event]) -> None:
        if self._document and not self._said_status:
            self._said_status = True
            events.append(Status(bytes(self._document)))
