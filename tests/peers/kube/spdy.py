"""SPDY/3.1 as Kubernetes speaks it: a codec, and both ends over asyncio; the tests' own, not the gateway's.

There is no flow control: Kubernetes' library sends no WINDOW_UPDATE and honours none, so backpressure is TCP's and a
stream that nobody reads holds up the connection. Header blocks of one direction share one zlib stream.
Specification: SPDY protocol draft 3.1, sections 2.2 to 2.6.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

_WORDS: Final = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
]
_MORE: Final = ("200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin")
_REST: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    "gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY: Final = (
    b"".join(struct.pack("!I", len(word)) + word.encode() for word in (*_WORDS, *_MORE)) + _REST.encode()
)
DATA: Final = 0
SYN_STREAM: Final = 1
SYN_REPLY: Final = 2
RST_STREAM: Final = 3
PING: Final = 6
GOAWAY: Final = 7
HEADERS: Final = 8
FIN: Final = 1
CANCEL: Final = 5
QUEUE_LIMIT: Final = 8  # frames of one stream that wait to be read
PIECE_BYTES: Final = 65536
REPLY_SECONDS: Final = 30.0  # as Kubernetes waits for a SYN_REPLY

Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame. value: a ping's id, a reset's status."""

    kind: int
    stream: int = 0
    flags: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    data: bytes = b""
    value: int = 0


class Codec:
    """Bytes to frames and back, for one end of a connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(level=6, zdict=DICTIONARY)

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole now."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        while len(buffer) - at >= 8:
            first, second = struct.unpack_from("!II", buffer, at)
            size, flags = second & 0xFFFFFF, second >> 24
            if len(buffer) - at - 8 < size:
                break
            body = bytes(memoryview(buffer)[at + 8 : at + 8 + size])
            at += 8 + size
            frames.append(self._control(first, flags, body) if first >> 31 else Frame(DATA, first, flags, data=body))
        del buffer[:at]
        return frames

    def _control(self, first: int, flags: int, body: bytes) -> Frame:
        kind = first & 0xFFFF
        number = struct.unpack_from("!I", body)[0] if len(body) >= 4 else 0
        match kind:
            case 1:
                return Frame(kind, number & 0x7FFFFFFF, flags, self._headers(body[10:]))
            case 2 | 8:
                return Frame(kind, number & 0x7FFFFFFF, flags, self._headers(body[4:]))
            case 3:
                return Frame(kind, number & 0x7FFFFFFF, flags, value=struct.unpack_from("!I", body, 4)[0])
            case _:
                return Frame(kind, flags=flags, value=number)

    def _headers(self, block: bytes) -> dict[str, str]:
        raw = self._inflate.decompress(block)
        words: list[str] = []
        at = 4
        for _ in range(2 * struct.unpack_from("!I", raw)[0]):
            size = struct.unpack_from("!I", raw, at)[0]
            words.append(raw[at + 4 : at + 4 + size].decode("latin-1"))
            at += 4 + size
        return {name.lower(): value for name, value in zip(words[::2], words[1::2], strict=True)}

    def _block(self, headers: Mapping[str, str]) -> bytes:
        parts = [struct.pack("!I", len(headers))]
        for name, value in headers.items():
            for word in (name.lower().encode("latin-1"), value.encode("latin-1")):
                parts.append(struct.pack("!I", len(word)) + word)
        return self._deflate.compress(b"".join(parts)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def syn_stream(self, stream: int, headers: Mapping[str, str]) -> bytes:
        """Open a stream."""
        return control(SYN_STREAM, struct.pack("!IIBB", stream, 0, 0, 0) + self._block(headers))

    def syn_reply(self, stream: int) -> bytes:
        """Accept a stream."""
        return control(SYN_REPLY, struct.pack("!I", stream) + self._block({}))


def control(kind: int, body: bytes) -> bytes:
    """Return a control frame."""
    return struct.pack("!II", 0x80030000 | kind, len(body)) + body


def data_frame(stream: int, data: bytes = b"", fin: bool = False) -> bytes:
    """Return a data frame."""
    return struct.pack("!II", stream, FIN * fin << 24 | len(data)) + data


@dataclass(slots=True, eq=False)
class SpdyStream:
    """One stream of a connection."""

    connection: SpdyConnection
    number: int
    headers: Mapping[str, str]
    finished: bool = False  # we have said FIN, or somebody RST
    _pieces: deque[bytes] = field(default_factory=deque)
    _ended: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> bytes:
        """Wait for a piece; b"" at the end, again and again."""
        while not self._pieces and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces.popleft() if self._pieces else b""
        self._changed.set()
        return piece

    async def take(self, piece: bytes) -> None:
        """Keep a piece that came, once there is room."""
        while len(self._pieces) >= QUEUE_LIMIT and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        self._pieces.append(piece)
        self._changed.set()

    def end(self) -> None:
        """Nothing more comes; what is there can still be read."""
        self._ended = True
        self._changed.set()

    async def write(self, data: bytes) -> None:
        """Send data, in pieces."""
        for start in range(0, len(data), PIECE_BYTES):
            await self.connection.send(data_frame(self.number, data[start : start + PIECE_BYTES]))

    async def close(self) -> None:
        """Send FIN."""
        if not self.finished:
            self.finished = True
            await self.connection.send(data_frame(self.number, fin=True))

    async def reset(self) -> None:
        """Send RST_STREAM."""
        self.finished = True
        await self.connection.send(control(RST_STREAM, struct.pack("!II", self.number, CANCEL)))


class SpdyConnection:
    """One end of a connection, over any pair of read() (b"" at the end) and write(). opener: this end opens streams."""

    def __init__(self, read: Read, write: Write, *, opener: bool = False) -> None:
        self._read = read
        self._write = write
        self._opener = opener
        self._codec = Codec()
        self._streams: dict[int, SpdyStream] = {}
        self._replies: dict[int, asyncio.Event] = {}
        self._next = 1
        self._writing = asyncio.Lock()
        self.accepted: asyncio.Queue[SpdyStream | None] = asyncio.Queue()  # None: the connection is over
        self.over = asyncio.Event()

    async def send(self, data: bytes) -> None:
        """Send whole frames."""
        async with self._writing:
            await self._write(data)

    async def run(self) -> None:
        """Read to the end of the connection."""
        try:
            while piece := await self._read():
                for frame in self._codec.feed(piece):
                    await self._take(frame)
        except (ConnectionError, OSError, asyncio.IncompleteReadError, zlib.error):
            pass  # as an end
        finally:
            for stream in self._streams.values():
                stream.end()
            self.accepted.put_nowait(None)
            self.over.set()
            for event in self._replies.values():
                event.set()

    async def _take(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream)
        match frame.kind:
            case 0 if stream is not None:
                if frame.data:
                    await stream.take(frame.data)
                if frame.flags & FIN:
                    stream.end()
            case 1:
                stream = self._streams[frame.stream] = SpdyStream(self, frame.stream, frame.headers)
                await self.send(self._codec.syn_reply(frame.stream))
                if frame.flags & FIN:
                    stream.end()
                self.accepted.put_nowait(stream)
            case 2:
                if (waiting := self._replies.pop(frame.stream, None)) is not None:
                    waiting.set()
            case 3 if stream is not None:
                stream.finished = True
                del self._streams[frame.stream]
                stream.end()
            case 6 if frame.value % 2 != self._opener:  # the other end's ping
                await self.send(control(PING, struct.pack("!I", frame.value)))

    async def open(self, headers: Mapping[str, str]) -> SpdyStream:
        """Open a stream and wait until it is accepted. Raises ConnectionError, TimeoutError."""
        number, self._next = self._next, self._next + 2
        stream = self._streams[number] = SpdyStream(self, number, headers)
        accepted = self._replies[number] = asyncio.Event()
        await self.send(self._codec.syn_stream(number, headers))
        async with asyncio.timeout(REPLY_SECONDS):
            await accepted.wait()
        if self.over.is_set():
            raise ConnectionResetError("the connection ended before a stream was accepted")
        return stream

    async def goaway(self) -> None:
        """Say that no more streams are taken."""
        with contextlib.suppress(ConnectionError, OSError, RuntimeError):
            await self.send(control(GOAWAY, struct.pack("!II", 0, 0)))
