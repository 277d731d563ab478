"""Frames of SPDY/3.1, sans-IO: Decoder and Encoder, for either end.

A data frame need not be whole: what has come of it is given on at once, so frames of any length (24 bits, 16 MiB: what
a program in Go writes at once) hold no memory. Control frames are collected, up to a limit. Header blocks of one
direction share one zlib stream with the dictionary of SPDY/3, so every one is to be inflated, in order.

Left out: values of SETTINGS and WINDOW_UPDATE (their form is checked), and what SPDY/3 had before (CREDENTIAL, NOOP).
Specification: SPDY protocol draft 3.1, sections 2.2 and 2.6; kubernetes note 4.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from proxy.core.errors import PeerError, TargetPeerError, UserPeerError

DATA: Final = 0  # our name for a frame that is no control frame
SYN_STREAM: Final = 1
SYN_REPLY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
HEADERS: Final = 8
WINDOW_UPDATE: Final = 9

FIN: Final = 1
UNIDIRECTIONAL: Final = 2

OK: Final = 0  # of GOAWAY
PROTOCOL_ERROR: Final = 1
REFUSED_STREAM: Final = 3
CANCEL: Final = 5

CONTROL_LIMIT: Final = 1024 * 1024  # bytes of a control frame; kubernetes note 4
BLOCK_LIMIT: Final = 64 * 1024  # bytes of a header block, inflated; without one it was a CVE: kubernetes note 4
HEADERS_LIMIT: Final = 256  # headers of a block; kubernetes note 4
STREAMS_LIMIT: Final = (
    4096  # open at once; port-forward takes two a connection, kubectl opens as many as it is asked for
)
PIECE_BYTES: Final = 64 * 1024  # of a data frame that we send: readers in Go allocate the whole frame
STREAM_ID_LIMIT: Final = 0x7FFFFFFF  # 31 bits; draft 2.3.2

_HEAD: Final = struct.Struct("!II")
_CONTROL: Final = 0x8003_0000  # the bit of a control frame, and version 3
_LENGTH: Final = 0xFFFFFF

# The dictionary of header blocks: words with their lengths, then a tail without. Source: draft 2.6.10.1.
_WORDS: Final = (
    "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,accept-ranges,age,allow,"
    "authorization,cache-control,connection,content-base,content-encoding,content-language,content-length,"
    "content-location,content-md5,content-range,content-type,date,etag,expect,expires,from,host,if-match,"
    "if-modified-since,if-none-match,if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,"
    "proxy-authenticate,proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,"
    "user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,"
    "keep-alive,origin"
)
_TAIL: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY: Final = (
    b"".join(len(word).to_bytes(4, "big") + word.encode() for word in _WORDS.split(",")) + _TAIL.encode()
)


class Frame(NamedTuple):
    """One frame, or a piece of a data frame. value: the status of RST_STREAM and GOAWAY, the id of PING.

    flags of a data frame are those of its last piece; the others have none.
    """

    kind: int
    stream: int = 0
    flags: int = 0
    data: bytes = b""
    headers: Mapping[str, str] | None = None
    value: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may ask of us."""

    control_bytes: int = CONTROL_LIMIT
    block_bytes: int = BLOCK_LIMIT
    headers: int = HEADERS_LIMIT
    streams: int = STREAMS_LIMIT


DEFAULT_LIMITS: Final = Limits()


class Decoder:
    """Frames out of bytes. user: the peer is a user, else a target: so it is a UserPeerError or a TargetPeerError.

    A decoder that has raised is of no use any more.
    """

    def __init__(self, user: bool, limits: Limits = DEFAULT_LIMITS) -> None:
        self._error: type[PeerError] = UserPeerError if user else TargetPeerError
        self._limits = limits
        self._pending = bytearray()  # of a head, or of a control frame
        self._needed = _HEAD.size
        self._stream = self._flags = self._left = 0  # of the data frame that has begun
        self._inflater = zlib.decompressobj(zdict=DICTIONARY)
        self._broken: PeerError | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes, cut anywhere; return the frames, and pieces of data frames, that are there now."""
        if self._broken is not None:
            raise self._broken
        frames: list[Frame] = []
        at = 0
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return frames
            data = bytes(self._pending)
            self._pending.clear()
        stop = len(data)
        if self._left:
            at = self._piece(data, 0, stop, frames)
        while at < stop:
            if stop - at < _HEAD.size:
                self._keep(data, at, _HEAD.size)
                break
            first, second = _HEAD.unpack_from(data, at)
            length = second & _LENGTH
            if first <= STREAM_ID_LIMIT:
                self._stream, self._flags, self._left = first, second >> 24, length
                at = self._piece(data, at + _HEAD.size, stop, frames)
                continue
            if length > self._limits.control_bytes:
                self.refuse(f"a control frame of more than {self._limits.control_bytes} bytes")
            end = at + _HEAD.size + length
            if end > stop:
                self._keep(data, at, _HEAD.size + length)
                break
            frames.append(self._control(first, second >> 24, data[at + _HEAD.size : end]))
            at = end
        return frames

    def _keep(self, data: bytes, at: int, needed: int) -> None:
        self._pending += memoryview(data)[at:]
        self._needed = needed

    def _piece(self, data: bytes, at: int, stop: int, frames: list[Frame]) -> int:
        """Give on what is there of the data frame that has begun; returns where it ends."""
        end = at + self._left
        if end <= stop:
            self._left = 0
            frames.append(Frame(DATA, self._stream, self._flags, data[at:end]))
            return end
        if at < stop:
            self._left = end - stop
            frames.append(Frame(DATA, self._stream, 0, data[at:]))
        return stop

    def _control(self, first: int, flags: int, body: bytes) -> Frame:
        if first & 0xFFFF_0000 != _CONTROL:
            self.refuse(f"version {first >> 16 & 0x7FFF}, not 3")
        kind, size = first & 0xFFFF, len(body)
        number = int.from_bytes(body[:4], "big") & STREAM_ID_LIMIT if size >= 4 else 0
        match kind:
            case 1 if size >= 10:
                frame = Frame(kind, number, flags, headers=self._headers(body[10:]))
            case 2 | 8 if size >= 4:
                frame = Frame(kind, number, flags, headers=self._headers(body[4:]))
            case 3 | 7 if size == 8:
                frame = Frame(kind, number, value=int.from_bytes(body[4:], "big"))
            case 6 if size == 4:
                frame = Frame(kind, value=int.from_bytes(body, "big"))
            case 4 if size >= 4 and size == 4 + 8 * int.from_bytes(body[:4], "big"):
                frame = Frame(kind)
            case 9 if size == 8:
                frame = Frame(kind, number)
            case _:
                self.refuse(f"a control frame of type {kind} and {size} bytes")
        return frame

    def _headers(self, block: bytes) -> dict[str, str]:
        """Read a header block. Source: draft 2.6.10."""
        limit = self._limits.block_bytes
        try:
            raw = self._inflater.decompress(block, limit + 1)
        except zlib.error:
            self.refuse("a header block that cannot be inflated")
        if len(raw) > limit or self._inflater.unconsumed_tail:
            self.refuse(f"a header block of more than {limit} bytes")
        if self._inflater.eof:
            self.refuse("an end of the headers' zlib stream")
        count = int.from_bytes(raw[:4], "big")
        if len(raw) < 4 or count > self._limits.headers:
            self.refuse(f"a header block without a count, or with more than {self._limits.headers} headers")
        headers: dict[str, str] = {}
        at = 4
        for _ in range(count):
            name, at = self._word(raw, at)
            value, at = self._word(raw, at)
            if not name or name != name.lower() or name in headers:
                self.refuse("a header without a name, in capitals, or twice")
            headers[name] = value
        if at != len(raw):
            self.refuse("a header block with something behind its headers")
        return headers

    def _word(self, raw: bytes, at: int) -> tuple[str, int]:
        end = at + 4 + int.from_bytes(raw[at : at + 4], "big")
        if at + 4 > len(raw) or end > len(raw):
            self.refuse("a header block that is cut off")
        return raw[at + 4 : end].decode("latin-1"), end

    def refuse(self, text: str) -> NoReturn:
        """Raise the error of this side, now and at every later feed()."""
        self._pending.clear()
        self._broken = self._error(f"SPDY: {text}", str(PROTOCOL_ERROR))
        raise self._broken


class Encoder:
    """Frames to bytes. Header blocks are to be sent in the order in which they were made."""

    def __init__(self) -> None:
        # A window of 2 KiB holds the dictionary, and little memory is taken for headers of a few words.
        self._deflater = zlib.compressobj(6, zlib.DEFLATED, 11, 1, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)

    def syn_stream(self, stream: int, headers: Mapping[str, str], fin: bool = False) -> bytes:
        """Open a stream; it is associated to none, and has the highest priority. Source: draft 2.6.1."""
        return self._frame(SYN_STREAM, struct.pack("!IIH", stream, 0, 0) + self._block(headers), FIN if fin else 0)

    def syn_reply(self, stream: int, headers: Mapping[str, str] | None = None, fin: bool = False) -> bytes:
        """Accept a stream. Source: draft 2.6.2."""
        return self._frame(SYN_REPLY, struct.pack("!I", stream) + self._block(headers or {}), FIN if fin else 0)

    def headers(self, stream: int, headers: Mapping[str, str], fin: bool = False) -> bytes:
        """Source: draft 2.6.7."""
        return self._frame(HEADERS, struct.pack("!I", stream) + self._block(headers), FIN if fin else 0)

    def data(self, stream: int, data: bytes, fin: bool = False) -> bytes:
        """Frame data in pieces; the last of them ends the stream where fin is set. b"" for nothing at all."""
        size = len(data)
        if size <= PIECE_BYTES:
            return _HEAD.pack(stream, (FIN << 24 if fin else 0) | size) + data if data or fin else b""
        parts: list[bytes | memoryview] = []
        view = memoryview(data)
        for at in range(0, size, PIECE_BYTES):
            piece = view[at : at + PIECE_BYTES]
            last = fin and at + PIECE_BYTES >= size
            parts += (_HEAD.pack(stream, (FIN << 24 if last else 0) | len(piece)), piece)
        return b"".join(parts)

    def rst_stream(self, stream: int, status: int) -> bytes:
        """Source: draft 2.6.3."""
        return self._frame(RST_STREAM, _HEAD.pack(stream, status))

    def settings(self, values: Mapping[int, int]) -> bytes:
        """Source: draft 2.6.4. values: by their ids; no flags."""
        entries = b"".join(_HEAD.pack(number, value) for number, value in values.items())
        return self._frame(SETTINGS, len(values).to_bytes(4, "big") + entries)

    def ping(self, number: int) -> bytes:
        """Source: draft 2.6.5."""
        return self._frame(PING, number.to_bytes(4, "big"))

    def goaway(self, last: int, status: int) -> bytes:
        """Source: draft 2.6.6. last: the peer's last stream that was taken."""
        return self._frame(GOAWAY, _HEAD.pack(last, status))

    def window_update(self, stream: int, delta: int) -> bytes:
        """Source: draft 2.6.8."""
        return self._frame(WINDOW_UPDATE, _HEAD.pack(stream, delta))

    def _block(self, headers: Mapping[str, str]) -> bytes:
        parts = [len(headers).to_bytes(4, "big")]
        for name, value in headers.items():
            for word in (name.lower().encode("latin-1"), value.encode("latin-1")):
                parts += (len(word).to_bytes(4, "big"), word)
        return self._deflater.compress(b"".join(parts)) + self._deflater.flush(zlib.Z_SYNC_FLUSH)

    @staticmethod
    def _frame(kind: int, body: bytes, flags: int = 0) -> bytes:
        return _HEAD.pack(_CONTROL | kind, flags << 24 | len(body)) + body
