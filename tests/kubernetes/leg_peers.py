"""Users and targets of exec for tests of the legs: over wsproto and the tests' own SPDY; and a relay that only relays.

Each has the protocol's other end: what it was told is in its attributes, what it says are bytes.
"""

from __future__ import annotations

import base64
import json
from typing import Protocol

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from protocols.kubernetes.streams import Data, End, Event, Over, Reply, Size, Status, TargetLeg, UserLeg
from tests.peers.kube.spdy import DATA, FIN, GOAWAY, PING, RST_STREAM, SYN_REPLY, SYN_STREAM, Codec, control, data_frame

NAMES = {"error": 3, "stdin": 0, "stdout": 1, "stderr": 2, "resize": 4}


class Peer(Protocol):
    """What users and targets have in common. heard: bytes by stream; ended: streams that are over."""

    heard: dict[int, bytes]
    ended: set[int]
    closed: bool

    def start(self) -> bytes: ...
    def receive(self, data: bytes) -> bytes: ...
    def say(self, stream: int, data: bytes) -> bytes: ...
    def end(self, stream: int) -> bytes: ...
    def finish(self, document: bytes) -> bytes: ...
    def leave(self) -> bytes: ...


class WsPeer:
    """An end of the channel protocols."""

    def __init__(self, protocol: str, user: bool) -> None:
        self.user = user
        self.base64 = "base64" in protocol
        self.v5 = protocol.startswith("v5")
        self.connection = Connection(ConnectionType.CLIENT if user else ConnectionType.SERVER)
        self.heard = {0: b"", 1: b"", 2: b"", 3: b"", 4: b""}
        self.ended: set[int] = set()
        self.messages: list[bytes] = []
        self.pongs: list[bytes] = []
        self.closed = False
        self.code = 0
        self.partial = b""

    def start(self) -> bytes:
        return b"" if self.user else self.message(1, b"")

    def message(self, channel: int, data: bytes, finished: bool = True) -> bytes:
        if self.base64:
            return self.connection.send(TextMessage(f"{channel}{base64.b64encode(data).decode()}"))
        return self.connection.send(BytesMessage(bytes((channel,)) + data, message_finished=finished))

    def say(self, stream: int, data: bytes) -> bytes:
        return self.message(stream, data)

    def end(self, stream: int) -> bytes:
        return self.connection.send(BytesMessage(bytes((255, stream)))) if self.v5 else b""

    def finish(self, document: bytes) -> bytes:
        return self.message(3, document) + self.connection.send(CloseConnection(1000))

    def leave(self) -> bytes:
        return self.connection.send(CloseConnection(1000))

    def ping(self, payload: bytes) -> bytes:
        return self.connection.send(Ping(payload))

    def receive(self, data: bytes) -> bytes:
        answers = b""
        self.connection.receive_data(data)
        for event in self.connection.events():
            match event:
                case Ping():
                    answers += self.connection.send(event.response())
                case Pong():
                    self.pongs.append(bytes(event.payload))
                case CloseConnection():
                    if not self.closed and self.connection.state.name == "REMOTE_CLOSING":
                        answers += self.connection.send(event.response())
                    self.closed, self.code = True, event.code
                case TextMessage() | BytesMessage():
                    piece = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
                    self.partial += piece
                    if event.message_finished:
                        self.take(self.partial)
                        self.partial = b""
        return answers

    def take(self, message: bytes) -> None:
        self.messages.append(message)
        if message[0] == 255:
            assert self.v5 and len(message) == 2
            self.ended.add(message[1])
            return
        channel = message[0] - 48 if self.base64 else message[0]
        self.heard[channel] += base64.b64decode(message[1:], validate=True) if self.base64 else message[1:]


class SpdyPeer:
    """An end of v4.channel.k8s.io over SPDY."""

    def __init__(self, user: bool, streams: tuple[str, ...] = ()) -> None:
        self.user = user
        self.streams = streams
        self.codec = Codec()
        self.ids: dict[int, int] = {}
        self.kinds: dict[int, int] = {}
        self.opened: list[str] = []
        self.replied: list[int] = []
        self.heard = {0: b"", 1: b"", 2: b"", 3: b"", 4: b""}
        self.ended: set[int] = set()
        self.resets: list[int] = []
        self.pings: list[int] = []
        self.closed = False

    def start(self) -> bytes:
        wire = b""
        for at, name in enumerate(self.streams):
            number = 2 * at + 1
            self.ids[NAMES[name]], self.kinds[number] = number, NAMES[name]
            wire += self.codec.syn_stream(number, {"streamtype": name})
        return wire

    def say(self, stream: int, data: bytes) -> bytes:
        return data_frame(self.ids[stream], data)

    def end(self, stream: int) -> bytes:
        return data_frame(self.ids[stream], fin=True)

    def finish(self, document: bytes) -> bytes:
        """As kubelets: the Status, its end, and the outputs' only then."""
        ends = [self.end(stream) for stream in (1, 2) if stream in self.ids]
        return self.say(3, document) + self.end(3) + b"".join(ends)

    def leave(self) -> bytes:
        """As kubectl does at the end."""
        resets = [control(RST_STREAM, number.to_bytes(4, "big") + b"\0\0\0\5") for number in self.ids.values()]
        return b"".join(resets) + control(GOAWAY, bytes(8))

    def ping(self, number: int) -> bytes:
        return control(PING, number.to_bytes(4, "big"))

    def receive(self, data: bytes) -> bytes:
        answers = b""
        for frame in self.codec.feed(data):
            if frame.kind == SYN_STREAM:
                name = frame.headers["streamtype"]
                self.opened.append(name)
                self.ids[NAMES[name]], self.kinds[frame.stream] = frame.stream, NAMES[name]
                answers += self.codec.syn_reply(frame.stream)
            elif frame.kind == SYN_REPLY:
                self.replied.append(frame.stream)
            elif frame.kind == DATA:
                self.heard[self.kinds[frame.stream]] += frame.data
                if frame.flags & FIN:
                    self.ended.add(self.kinds[frame.stream])
            elif frame.kind == RST_STREAM:
                self.resets.append(frame.stream)
            elif frame.kind == PING:
                self.pings.append(frame.value)
            elif frame.kind == GOAWAY:
                self.closed = True
        return answers


class Relay:
    """Passes what one leg says to the other, as it came where the codec is one; keeps the events."""

    def __init__(self, user_leg: UserLeg, target_leg: TargetLeg, awaited: set[int]) -> None:
        self.user_leg = user_leg
        self.target_leg = target_leg
        self.same = user_leg.codec == target_leg.codec != ""
        self.awaited = set(awaited)  # the target's streams that say when they end
        self.status: bytes | None = None
        self.to_user = b""
        self.to_target = b""
        self.events: list[Event] = []
        self.user_over = self.target_over = False

    def up(self, data: bytes) -> None:
        for event in self.user_leg.receive(data):
            self.events.append(event)
            match event:
                case Data(stream=stream, data=piece, wire=wire):
                    self.to_target += wire if wire and self.same else self.target_leg.data(stream, piece)
                case End(stream=stream):
                    self.to_target += self.target_leg.end(stream)
                case Size(columns=columns, rows=rows):
                    self.to_target += self.target_leg.resize(columns, rows)
                case Reply(wire=wire):
                    self.to_user += wire
                case Over():
                    self.user_over = True
                    self.to_target += self.target_leg.finish()
                case Status():
                    raise AssertionError("a user has no Status")

    def down(self, data: bytes) -> None:
        for event in self.target_leg.receive(data):
            self.events.append(event)
            match event:
                case Data(stream=stream, data=piece, wire=wire):
                    self.to_user += wire if wire and self.same else self.user_leg.data(stream, piece)
                case End(stream=stream):
                    self.awaited.discard(stream)
                case Reply(wire=wire):
                    self.to_target += wire
                case Over():
                    self.target_over = True
                case Status(document=document):
                    self.status = document
                case Size():
                    raise AssertionError("a target has no size")
        if self.status is not None and not self.awaited:
            self.to_user += self.user_leg.finish(self.status)
            self.status = None

    def sent(self) -> tuple[bytes, bytes]:
        """What is to go to the user, and to the target, since the last call."""
        sent = self.to_user, self.to_target
        self.to_user = self.to_target = b""
        return sent


def sizes(heard: bytes) -> list[tuple[int, int]]:
    """What came on a resize stream."""
    return [(size["Width"], size["Height"]) for size in map(json.loads, heard.splitlines())]
