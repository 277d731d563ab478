"""The API server's end of an exec or attach: five streams over WebSocket (v5, v4, v1, base64) or SPDY/3.1.

The tests' own second implementation. Source: k8s.io/apimachinery pkg/util/remotecommand, apiserver pkg/util/wsstream.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tests.peers.kube.http import ApiError, Connection, Request
from tests.peers.kube.spdy import SpdyConnection, SpdyStream
from tests.peers.kube.websocket import BINARY, TEXT, WebSocket, accept

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
ERROR: Final = 3
RESIZE: Final = 4
WEBSOCKET_PROTOCOLS: Final = (
    "v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io",
)  # fmt: skip
SPDY_PROTOCOLS: Final = ("v4.channel.k8s.io", "v3.channel.k8s.io")
CLOSE_SECONDS: Final = 5.0  # for the user's end to close
STREAMS_SECONDS: Final = 30.0  # for SPDY's streams to be opened
_NAMES: Final = {STDIN: "stdin", STDOUT: "stdout", STDERR: "stderr", ERROR: "error", RESIZE: "resize"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which streams a request asks for."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    @classmethod
    def of(cls, request: Request) -> Wanted:
        """Read the query. Raises ApiError."""
        tty = request.flag("tty")
        found = cls(request.flag("stdin"), request.flag("stdout"), request.flag("stderr") and not tty, tty)
        if not (found.stdin or found.stdout or found.stderr):
            raise ApiError(400, "BadRequest", "you must specify at least 1 of stdin, stdout, stderr")
        return found

    @property
    def flags(self) -> dict[str, bool]:
        """The same as the runtime wants it."""
        return {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr, "tty": self.tty}

    def has(self, channel: int) -> bool:
        """Whether a channel of output is wanted."""
        return {STDOUT: self.stdout, STDERR: self.stderr}.get(channel, True)


class Channels(Protocol):
    """The streams of one exec. protocol: what was negotiated; v4 and later end with a Status."""

    protocol: str

    async def send(self, channel: int, data: bytes) -> None:
        """Send a piece of output."""

    async def receive(self) -> tuple[int, bytes] | None:
        """Return a channel and what came on it, b"" for the end of stdin; None when the user is gone."""

    async def finish(self, status: bytes) -> None:
        """Send the Status and end in order."""


def success() -> bytes:
    """The Status of a command that ended well."""
    return json.dumps({"metadata": {}, "status": "Success"}).encode()


def exit_status(code: int) -> bytes:
    """The Status of a command that ended."""
    if code == 0:
        return success()
    return json.dumps({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }).encode()  # fmt: skip


def failure(message: str) -> bytes:
    """The Status of a command that did not start."""
    value: dict[str, Any] = {
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "code": 500,
    }
    return json.dumps(value).encode()


def negotiated(request: Request, newest: str) -> str:
    """Which WebSocket protocol it will be; newest: what the server knows at most. Raises ApiError."""
    known = WEBSOCKET_PROTOCOLS[WEBSOCKET_PROTOCOLS.index(newest) :]
    offered = request.words("sec-websocket-protocol")
    if not offered:
        return ""
    chosen = next((each for each in offered if each in known), None)
    if chosen is None:
        raise ApiError(400, "BadRequest", f"unable to upgrade: unable to negotiate protocol: {offered}")
    return chosen


@asynccontextmanager
async def websocket_channels(
    connection: Connection, request: Request, protocol: str, wanted: Wanted
) -> AsyncIterator[WebSocketChannels]:
    """Accept a WebSocket handshake."""
    channels = WebSocketChannels(await accept(connection, request, protocol), protocol)
    lowest = STDOUT if wanted.stdout else STDERR if wanted.stderr else ERROR
    await channels.send(lowest, b"")
    yield channels


class WebSocketChannels:
    """Channels in messages, the first byte of which is the channel."""

    def __init__(self, socket: WebSocket, protocol: str) -> None:
        self.socket = socket
        self.protocol = protocol
        self._base64 = "base64" in protocol
        self._gone = asyncio.Event()

    async def send(self, channel: int, data: bytes) -> None:
        """See Channels."""
        if self._base64:
            await self.socket.send(TEXT, str(channel).encode(), base64.b64encode(data))
        else:
            await self.socket.send(BINARY, bytes([channel]), data)

    async def receive(self) -> tuple[int, bytes] | None:
        """See Channels. An empty piece of stdin says nothing; v5's close of a channel says that it is over."""
        while True:
            message = await self.socket.receive()
            if message is None:
                self._gone.set()
                return None
            if not message:
                continue
            if self._base64:
                channel, data = message[0] - ord("0"), base64.b64decode(message[1:])
            else:
                channel, data = message[0], message[1:]
            if channel == 255 and self.protocol.startswith("v5."):
                return data[0], b""
            if data:
                return channel, data

    async def finish(self, status: bytes) -> None:
        """See Channels. Waits for the user's Close, which whoever calls receive() sees."""
        if self.protocol.startswith(("v4.", "v5.")):
            await self.send(ERROR, status)
        elif status != success():
            await self.send(ERROR, json.loads(status)["message"].encode())
        await self.socket.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._gone.wait()
        except TimeoutError:
            pass


@asynccontextmanager
async def spdy_channels(connection: Connection, request: Request, wanted: Wanted) -> AsyncIterator[SpdyChannels]:
    """Accept a SPDY upgrade and the streams that the user opens. Raises ApiError."""
    offered = request.words("x-stream-protocol-version")
    protocol = next((each for each in offered if each in SPDY_PROTOCOLS), None)
    if protocol is None:
        raise ApiError(403, "Forbidden", "unable to upgrade: unable to negotiate protocol")
    await connection.switch("Connection: Upgrade", "Upgrade: SPDY/3.1", f"X-Stream-Protocol-Version: {protocol}")
    spdy = SpdyConnection(connection.read, connection.write)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(spdy.run())
        missing = {ERROR, *([STDIN] if wanted.stdin else []), *([STDOUT] if wanted.stdout else []),
                   *([STDERR] if wanted.stderr else []), *([RESIZE] if wanted.tty else [])}  # fmt: skip
        streams: dict[int, SpdyStream] = {}
        numbers = {name: number for number, name in _NAMES.items()}
        try:
            async with asyncio.timeout(STREAMS_SECONDS):
                while missing:
                    stream = await spdy.accepted.get()
                    if stream is None:
                        raise ConnectionResetError("the user left before the streams were there")
                    number = numbers[stream.headers["streamtype"]]
                    streams[number] = stream
                    missing.discard(number)
            channels = SpdyChannels(spdy, streams, protocol)
            for number in (STDIN, RESIZE):
                if number in streams:
                    group.create_task(channels.listen(number))
            group.create_task(channels.end())
            yield channels
        finally:
            running.cancel()
            spdy.over.set()


class SpdyChannels:
    """Channels that are streams of SPDY each."""

    def __init__(self, spdy: SpdyConnection, streams: dict[int, SpdyStream], protocol: str) -> None:
        self.protocol = protocol
        self._spdy = spdy
        self._streams = streams
        self._came: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(1)

    async def listen(self, number: int) -> None:
        """Pass on what comes in a stream."""
        stream = self._streams[number]
        while data := await stream.read():
            await self._came.put((number, data))
        if number == STDIN and not self._spdy.over.is_set():
            await self._came.put((STDIN, b""))

    async def end(self) -> None:
        """Say that the user is gone, when that is so."""
        await self._spdy.over.wait()
        if self._came.full():
            self._came.get_nowait()
        self._came.put_nowait(None)

    async def send(self, channel: int, data: bytes) -> None:
        """See Channels."""
        if self._spdy.over.is_set():
            raise ConnectionResetError("the user is gone")
        await self._streams[channel].write(data)

    async def receive(self) -> tuple[int, bytes] | None:
        """See Channels."""
        return await self._came.get()

    async def finish(self, status: bytes) -> None:
        """See Channels."""
        await self._streams[ERROR].write(status)
        for stream in self._streams.values():
            await stream.close()
        await self._spdy.goaway()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._spdy.over.wait()
        except TimeoutError:
            pass
