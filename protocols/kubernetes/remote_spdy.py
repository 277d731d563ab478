"""exec and attach over SPDY/3.1 (subprotocol v4.channel.k8s.io), both ends, sans-IO: a stream for each of the five.

The user opens them in the order error, stdin, stdout, stderr, resize, only those that were asked for, each named by the
header streamtype, and waits for each reply; nothing is said before all are there. Towards the target it is the same the
other way round. Specification: kubernetes note 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from protocols.kubernetes import spdy
from protocols.kubernetes.sizes import read_size
from protocols.kubernetes.streams import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Data,
    End,
    Event,
    Over,
    Reply,
    Status,
    Stream,
)
from proxy.core.errors import TargetPeerError, UserPeerError

STATUS_LIMIT: Final = 1024 * 1024
SIZES_LIMIT: Final = 64 * 1024  # of a resize that has no end
_NAMES: Final[dict[str, Stream]] = {
    "error": ERROR, "stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "resize": RESIZE,
}  # fmt: skip


def wanted(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> tuple[str, ...]:
    """The streams that go with what was asked for, in the order in which they are opened."""
    asked = {"error": True, "stdin": stdin, "stdout": stdout, "stderr": stderr and not tty, "resize": tty}
    return tuple(name for name, there in asked.items() if there)


class _Streams:
    """What both ends share."""

    def __init__(self, server: bool, names: tuple[str, ...]) -> None:
        self._session = spdy.Session(server)
        self._names = names
        self._numbers: dict[Stream, int] = {}
        self._streams: dict[int, Stream] = {}

    @property
    def codec(self) -> str:
        """See streams.Leg."""
        return ""

    def data(self, stream: Stream, data: bytes) -> bytes:
        """See streams.Leg."""
        return self._session.data(self._numbers[stream], data) if stream in self._numbers else b""

    def end(self, stream: Stream) -> bytes:
        """See streams.Leg."""
        return self._session.data(self._numbers[stream], b"", True) if stream in self._numbers else b""

    def ping(self) -> bytes:
        """See streams.Leg."""
        return self._session.ping()

    def _put(self, stream: Stream, number: int) -> None:
        self._numbers[stream] = number
        self._streams[number] = stream


class SpdyUser(_Streams):
    """The server's end, towards the user. See streams.UserLeg."""

    def __init__(self, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> None:
        super().__init__(True, wanted(stdin, stdout, stderr, tty))
        self._sizes = bytearray()

    @property
    def ready(self) -> bool:
        """See streams.Leg."""
        return len(self._numbers) == len(self._names)

    def start(self) -> bytes:
        """See streams.UserLeg."""
        return b""

    def receive(self, data: bytes) -> list[Event]:
        """See streams.Leg."""
        events: list[Event] = []
        for event in self._session.receive(data):
            match event:
                case spdy.Opened(stream=number, headers=headers, fin=fin):
                    events.append(Reply(self._opened(number, headers)))
                    if fin and self._streams[number] == STDIN:
                        events.append(End(STDIN))
                case spdy.Received(stream=number, data=piece, fin=fin):
                    self._received(self._streams[number], piece, fin, events)
                case spdy.Reset(stream=number):
                    if self._streams.get(number) == STDIN:
                        events.append(End(STDIN))
                case spdy.Reply(wire=wire):
                    events.append(Reply(wire))
                case spdy.Away():
                    events.append(Over())
        return events

    def _opened(self, number: int, headers: Mapping[str, str]) -> bytes:
        name = headers.get("streamtype", "")
        if name not in self._names:
            raise UserPeerError(f"a stream that was not asked for: {name[:40]!r}")
        if _NAMES[name] in self._numbers:
            raise UserPeerError(f"a second stream {name}")
        self._put(_NAMES[name], number)
        return self._session.reply(number)

    def _received(self, stream: Stream, piece: bytes, fin: bool, events: list[Event]) -> None:
        if stream == STDIN:
            if piece:
                events.append(Data(STDIN, piece))
            if fin:
                events.append(End(STDIN))
        elif stream == RESIZE:
            self._sizes += piece
            while (end := self._sizes.find(b"\n")) >= 0:
                events.append(read_size(bytes(self._sizes[:end])))
                del self._sizes[: end + 1]
            if len(self._sizes) > SIZES_LIMIT:
                raise UserPeerError("a terminal's size that cannot be read")
        elif piece:
            raise UserPeerError("the user sent on a stream of the target")

    def finish(self, document: bytes) -> bytes:
        """See streams.UserLeg."""
        said = self.data(ERROR, document) + self.end(ERROR)
        return said + self.end(STDOUT) + self.end(STDERR) + self._session.goaway()


class SpdyTarget(_Streams):
    """The client's end, towards the target. See streams.TargetLeg."""

    def __init__(self, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> None:
        super().__init__(False, wanted(stdin, stdout, stderr, tty))
        self._waiting: set[int] = set()
        self._status = bytearray()
        self._told = False

    @property
    def ready(self) -> bool:
        """See streams.Leg."""
        return bool(self._numbers) and not self._waiting

    def start(self) -> bytes:
        """See streams.TargetLeg."""
        frames = []
        for name in self._names:
            number, frame = self._session.open({"streamtype": name})
            self._put(_NAMES[name], number)
            self._waiting.add(number)
            frames.append(frame)
        return b"".join(frames)

    def receive(self, data: bytes) -> list[Event]:
        """See streams.Leg."""
        events: list[Event] = []
        for event in self._session.receive(data):
            match event:
                case spdy.Replied(stream=number):
                    self._waiting.discard(number)
                case spdy.Received(stream=number, data=piece, fin=fin):
                    self._received(self._streams[number], piece, fin, events)
                case spdy.Reset(stream=number):
                    self._waiting.discard(number)
                    self._ended(self._streams[number], events)
                case spdy.Reply(wire=wire):
                    events.append(Reply(wire))
                case spdy.Away():
                    events.append(Over())
                case spdy.Opened():
                    raise TargetPeerError("the target opened a stream")
        return events

    def _received(self, stream: Stream, piece: bytes, fin: bool, events: list[Event]) -> None:
        if stream == ERROR:
            self._status += piece
            if len(self._status) > STATUS_LIMIT:
                raise TargetPeerError("a Status above its limit")
        elif stream in (STDOUT, STDERR):
            if piece:
                events.append(Data(STDOUT if stream == STDOUT else STDERR, piece))
        elif piece:
            raise TargetPeerError("the target sent on a stream of the user")
        if fin:
            self._ended(stream, events)

    def _ended(self, stream: Stream, events: list[Event]) -> None:
        if stream == ERROR:
            if not self._told:
                self._told = True
                events.append(Status(bytes(self._status)))
        elif stream in (STDOUT, STDERR):
            events.append(End(STDOUT if stream == STDOUT else STDERR))

    def resize(self, columns: int, rows: int) -> bytes:
        """See streams.TargetLeg."""
        return self.data(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode() + b"\n")

    def finish(self) -> bytes:
        """See streams.TargetLeg."""
        return b"".join(self._session.reset(number) for number in self._streams) + self._session.goaway()
