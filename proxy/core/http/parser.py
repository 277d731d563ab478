"""HTTP/1.1 messages out of bytes, sans-IO: RequestParser for what a user sends, ResponseParser for what a target does.

feed() takes bytes, cut anywhere, and returns what they say: a head, pieces of its body (transfer coding removed), End.
After End nothing more is parsed until renew() is called: what came behind the message stays in ``rest``, so that an
upgrade finds its first bytes there, and a pipelined request is not looked at while the one before it is served.

A head is collected up to its blank line under limits of our own, then read twice: by httptools (llhttp), which is
strict about tokens, line ends and lengths, and by the rules below, which refuse what llhttp lets pass (HTTP/0.9, ICE
and RTSP, two spaces, absolute and other target forms, several Hosts, codings beside chunked). Only what both take is a
message. httptools gets heads alone: it ends a message at any upgrade that is asked for, ours to grant or not, and has
no limits for chunk extensions and trailers. Bodies are cut here, by length, by chunks or by the connection's end.

Left out: trailers (dropped, bounded), chunk extensions (dropped, bounded), every transfer coding but chunked.
Source: RFC 9112 2 to 7, RFC 9110 7.8; kubernetes note 2 and 8.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NoReturn, TypeVar

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from proxy.core.errors import TargetPeerError
from proxy.core.http.heads import BadRequest, RequestHead, ResponseHead

HEAD_LIMIT: Final = 64 * 1024  # bytes; twice what nginx takes, for long tokens and many Impersonate-Group fields
FIELDS_LIMIT: Final = 200  # nginx and Apache take 100 to 200
CHUNK_LINE_LIMIT: Final = 4096  # bytes; net/http/internal's maxLineLength in Go
EXTENSIONS_LIMIT: Final = 16 * 1024  # bytes in one body; what Go takes since CVE-2023-39326
TRAILERS_LIMIT: Final = 8 * 1024  # bytes; nobody here sends any

# All control bytes but those of a line end, and the tab, which is white space in a value. RFC 9110 5.5.
_CONTROLS: Final = bytes({*range(0x20), 0x7F} - set(b"\t\r\n"))
# What can never become a head, seen before its end has come: a bare LF or CR, a NUL or another control byte.
_NEVER: Final = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: ([^\r]*))?\r\n")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_HOST: Final = re.compile(
    r"[A-Za-z0-9._~!$&'()*+;=:%\[\]-]*"
)  # RFC 3986 3.2.2 and 3.2.3, loosely: no /, ?, #, @, comma
_LENGTH: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
    """How large the parts of a message around its body may be."""

    head_bytes: int = HEAD_LIMIT
    fields: int = FIELDS_LIMIT
    chunk_line_bytes: int = CHUNK_LINE_LIMIT
    extensions_bytes: int = EXTENSIONS_LIMIT
    trailers_bytes: int = TRAILERS_LIMIT


@dataclass(frozen=True, slots=True)
class End:
    """The message is over."""


_END: Final = End()
Head = TypeVar("Head", RequestHead, ResponseHead)
RequestEvent = RequestHead | bytes | End
ResponseEvent = ResponseHead | bytes | End


class _State(Enum):
    HEAD = auto()
    FIXED = auto()  # a body of a length that is known
    LINE = auto()  # the line ahead of a chunk
    CHUNK = auto()
    BEHIND = auto()  # the CRLF behind a chunk
    TRAILERS = auto()
    TO_END = auto()  # the body ends with the connection
    DONE = auto()
    BROKEN = auto()


# The fields that say how a message is to be read.
_TELLING: Final = frozenset({
    b"connection", b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade",
})  # fmt: skip


class _Oracle:
    """What httptools calls back; on_header takes whole fields, as a head is fed whole."""

    __slots__ = ("fields", "telling")

    def __init__(self) -> None:
        self.fields: list[tuple[str, str]] = []
        self.telling: dict[bytes, list[str]] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        text = value.decode("latin-1").strip(" \t")
        self.fields.append((name.decode("latin-1"), text))
        if (lower := name.lower()) in _TELLING:
            self.telling.setdefault(lower, []).append(text)

    def values(self, name: bytes) -> list[str]:
        """All values of one of the fields that tell."""
        return self.telling.get(name, [])

    def kept(self, version: str) -> bool:
        """Whether the connection is to be kept. Source: RFC 9112 9.3."""
        options = [word.strip() for value in self.values(b"connection") for word in value.lower().split(",")]
        return "close" not in options if version == "1.1" else "keep-alive" in options


class _Parser:
    """What both directions share: collecting a head, cutting a body."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = _State.HEAD
        self._buffer = bytearray()  # of a head or a line that is not whole yet
        self._looked = 0  # how far the buffer was searched
        self._rest = b""
        self._remaining = 0  # bytes of the body, or of the chunk
        self._extensions = 0
        self._trailers = 0

    @property
    def done(self) -> bool:
        """Whether the message is over."""
        return self._state is _State.DONE

    @property
    def between(self) -> bool:
        """Whether nothing of a message has come yet."""
        return self._state is _State.HEAD and not self._buffer and not self._rest

    @property
    def rest(self) -> bytes:
        """What came behind the message that is over."""
        return self._rest

    def take_rest(self) -> bytes:
        """Return what came behind the message and forget it: somebody else reads on."""
        rest, self._rest = self._rest, b""
        return rest

    def renew(self) -> None:
        """Turn to the next message; feed() takes up what is in rest first."""
        assert self._state is _State.DONE, "the message is not over"
        self._state = _State.HEAD
        self._extensions = self._trailers = 0

    def _broken(self, text: str, status: int = 400) -> NoReturn:
        """Refuse for good."""
        self._state = _State.BROKEN
        self._buffer.clear()
        raise self._error(text, status)

    def _error(self, text: str, status: int) -> Exception:
        raise NotImplementedError

    def _take(self, data: bytes) -> bytes:
        """Put what is kept ahead of what came."""
        if self._state is _State.BROKEN:
            self._broken("the connection is out of step")
        if self._rest:
            data, self._rest = self._rest + data, b""
        return data

    def _events(self, data: bytes, understand: Callable[[bytes], Head]) -> list[Head | bytes | End]:
        """Go on with bytes that came, up to the end of the message."""
        events: list[Head | bytes | End] = []
        if self.done:
            self._rest = data
            return events
        if self._state is _State.HEAD:
            raw = self._head(data) if data else None
            if raw is None:
                return events
            events.append(understand(raw))
            data, self._rest = self._rest, b""
        if self.done:
            self._rest = data
        elif data and (piece := self._body(data)):
            events.append(piece)
        if self.done:
            events.append(_END)
        return events

    def _forget(self) -> None:
        """Empty the buffer of a head."""
        self._buffer.clear()
        self._looked = 0

    # -- heads ----------------------------------------------------------------------------------------

    def _head(self, data: bytes) -> bytes | None:
        """Collect; returns the head with its blank line, None if it is not whole. What is behind it is in rest."""
        buffer = self._buffer
        whole: bytes | bytearray = data
        if buffer:
            buffer += data
            whole = buffer
        end = whole.find(b"\r\n\r\n", max(0, self._looked - 3))
        if end < 0:
            if len(whole) > self._limits.head_bytes:
                self._broken("the head is too large", 431)
            if _NEVER.search(whole, max(0, self._looked - 1)):
                self._broken("this is not HTTP")
            if not buffer:
                buffer += data
            self._looked = len(buffer)
            return None
        end += 4
        if end > self._limits.head_bytes:
            self._broken("the head is too large", 431)
        head = bytes(whole[:end])
        self._rest = bytes(whole[end:])
        self._forget()
        lines = head.count(b"\r\n")
        if head.count(b"\n") != lines or head.count(b"\r") != lines or len(head.translate(None, _CONTROLS)) != end:
            self._broken("a control character in the head")
        if lines - 2 > self._limits.fields:
            self._broken("too many fields", 431)
        if b"\n " in head or b"\n\t" in head:
            self._broken("a field over several lines")
        return head

    def _read(self, head: bytes, parser: HttpRequestParser | HttpResponseParser) -> None:
        """Have httptools judge the head."""
        try:
            parser.feed_data(head)
        except HttpParserUpgrade:
            pass  # at the end of the head; whether it is one is decided elsewhere
        except HttpParserInvalidMethodError:
            self._broken("the method is not known", 501)
        except HttpParserError as error:
            text = str(error) or "this is not HTTP"
            # llhttp stops there without saying that it was an upgrade.
            self._broken("a 101 without Connection: Upgrade" if text.startswith("Pause on") else text)

    def _length(self, oracle: _Oracle, version: str) -> int | None:
        """Tell the length of the body that the fields speak of: None for chunks, -1 where they say nothing."""
        lengths = oracle.values(b"content-length")
        codings = oracle.values(b"transfer-encoding")
        if codings:
            if lengths or len(codings) > 1:
                self._broken("the length of the body is said twice")
            if version == "1.0":
                self._broken("Transfer-Encoding in HTTP/1.0")
            if codings[0].lower() != "chunked":
                self._broken("a transfer coding that is not chunked", 501)
            return None
        if not lengths:
            return -1
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            self._broken("Content-Length is not one number")
        return int(lengths[0])

    def _begin_body(self, length: int | None) -> None:
        """Turn to the body: of length bytes, None for chunks."""
        if length is None:
            self._state = _State.LINE
        elif length:
            self._state = _State.FIXED
            self._remaining = length
        else:
            self._state = _State.DONE

    # -- bodies ---------------------------------------------------------------------------------------

    def _body(self, data: bytes) -> bytes:
        """Take bytes of the body; returns what they are without the transfer coding. What is behind it is in rest."""
        if self._state is _State.TO_END:
            return data
        if self._state is _State.FIXED:
            if len(data) < self._remaining:
                self._remaining -= len(data)
                return data
            self._state = _State.DONE
            self._rest = data[self._remaining :]
            return data[: self._remaining]
        return self._chunks(data)

    def _chunks(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        at = 0
        while at < len(data) and self._state is not _State.DONE:
            if self._state is _State.CHUNK:
                part = data[at : at + self._remaining]
                parts.append(part)
                at += len(part)
                self._remaining -= len(part)
                if not self._remaining:
                    self._state = _State.BEHIND
            else:
                at = self._line(data, at)
        if self._state is _State.DONE:
            self._rest = data[at:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _line(self, data: bytes, at: int) -> int:
        """Read a line of the chunked coding; returns where the next thing begins. Source: RFC 9112 7.1."""
        buffer = self._buffer
        begun = len(buffer)
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end + 1
        if begun + stop - at > self._limits.chunk_line_bytes:
            self._broken("a line between chunks is too long")
        if end < 0:
            buffer += data[at:stop]
            if self._state is _State.BEHIND and buffer != b"\r":
                self._broken("a chunk is longer than it says")
            return stop
        line = bytes(buffer) + data[at:stop] if begun else data[at:stop]
        buffer.clear()
        if not line.endswith(b"\r\n") or line.count(b"\r") > 1:
            self._broken("a line between chunks does not end in CRLF")
        self._said(line[:-2])
        return stop

    def _said(self, line: bytes) -> None:
        """Take a whole line of the chunked coding, without its end."""
        match self._state:
            case _State.BEHIND:
                if line:
                    self._broken("a chunk is longer than it says")
                self._state = _State.LINE
            case _State.LINE:
                found = _CHUNK_LINE.fullmatch(line)
                if found is None:
                    self._broken("the size of a chunk is not a number")
                self._extensions += len(line) - len(found[1])
                if self._extensions > self._limits.extensions_bytes:
                    self._broken("too many chunk extensions")
                self._remaining = int(found[1], 16)
                self._state = _State.CHUNK if self._remaining else _State.TRAILERS
            case _:
                if not line:
                    self._state = _State.DONE
                    return
                self._trailers += len(line)
                if self._trailers > self._limits.trailers_bytes:
                    self._broken("the trailers are too large", 431)
                if not _TRAILER.fullmatch(line):
                    self._broken("a trailer is not a field")


class RequestParser(_Parser):
    """What a user sends. feed() raises BadRequest, always closing: the connection is out of step for good."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits or Limits())
        self._blank = True  # one empty line ahead of a request is forgiven: RFC 9112 2.2

    def feed(self, data: bytes) -> list[RequestEvent]:
        """Take bytes as they came; return what they say."""
        data = self._take(data)
        if self._blank and self._state is _State.HEAD and data[:1] in b"\r\n":
            data = self._skip_blank(data)
        return self._events(data, self._understand)

    def _skip_blank(self, data: bytes) -> bytes:
        if data[:2] == b"\r\n" and not self._buffer:
            data = data[2:]
        elif data[:1] == b"\n" and self._buffer == b"\r":
            self._forget()
            data = data[1:]
        else:
            return data
        self._blank = False
        return data

    def _error(self, text: str, status: int) -> BadRequest:
        return BadRequest(status, text, closing=True)

    def _understand(self, raw: bytes) -> RequestHead:
        line = _REQUEST_LINE.match(raw)
        if line is None:
            self._broken("the request line is not understood")
        version = line[3].decode("ascii")
        if version not in ("1.1", "1.0"):
            self._broken("only HTTP/1.1 is spoken here", 505)
        target = line[2].decode("ascii")
        if target[0] != "/" or "#" in target:
            self._broken("the target of a request is a path and a query")
        oracle = _Oracle()
        self._read(raw, HttpRequestParser(oracle))
        hosts = oracle.values(b"host")
        if len(hosts) > 1 or (not hosts and version == "1.1") or (hosts and not _HOST.fullmatch(hosts[0])):
            self._broken("there has to be one Host")
        length = self._length(oracle, version)
        length = 0 if length == -1 else length
        if any(value.lower() != "100-continue" for value in oracle.values(b"expect")):
            self._broken("an expectation that is not 100-continue", 417)
        self._begin_body(length)
        self._blank = True
        asked = any("upgrade" in value.lower() for value in oracle.values(b"connection"))
        return RequestHead(
            line[1].decode("ascii"),
            target,
            tuple(oracle.fields),
            version,
            length,
            ", ".join(oracle.values(b"upgrade")).lower() if asked else "",
            oracle.kept(version),
        )


class ResponseParser(_Parser):
    """What a target sends. feed() raises TargetPeerError."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits or Limits())
        self._method = "GET"

    def expect(self, method: str) -> None:
        """Say what the next response answers: it tells whether a body follows. Source: RFC 9112 6.3."""
        self._method = method

    def feed(self, data: bytes) -> list[ResponseEvent]:
        """Take bytes as they came; return what they say."""
        return self._events(self._take(data), self._understand)

    def feed_end(self) -> list[ResponseEvent]:
        """The connection has ended: that is the end of a body without a length, and an error in any other."""
        if self._state is _State.TO_END:
            self._state = _State.DONE
            return [_END]
        if self._state is not _State.DONE:
            self._broken("the target ended the connection in the middle of an answer")
        return []

    def _error(self, text: str, status: int) -> TargetPeerError:
        return TargetPeerError(f"the target's answer cannot be read: {text}")

    def _understand(self, raw: bytes) -> ResponseHead:
        line = _STATUS_LINE.match(raw)
        if line is None:
            self._broken("it does not begin with an HTTP/1.1 status line")
        oracle = _Oracle()
        self._read(raw, HttpResponseParser(oracle))
        version = line[1].decode("ascii")
        status = int(line[2])
        said = self._length(oracle, version)
        kept = oracle.kept(version)
        length: int | None
        if status < 200 or status in (204, 304) or self._method == "HEAD":
            length = 0
            self._begin_body(0)
        elif said == -1:
            length, kept = None, False
            self._state = _State.TO_END
        else:
            length = said
            self._begin_body(said)
        reason = (line[3] or b"").decode("latin-1")
        return ResponseHead(status, reason, tuple(oracle.fields), version, length, kept)
