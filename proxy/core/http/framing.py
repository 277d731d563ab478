"""How a response goes to the user: with its length, in chunks, up to the connection's end, or without a body.

The length that the target gave is kept where the body goes through as it came; where it is rewritten, or was never
known, HTTP/1.1 gets chunks, and HTTP/1.0 the end of the connection. A body that is shorter or longer than was said is
an error, never a silent cut: the caller closes the connection. Source: RFC 9112 6 and 7, RFC 9110 7.6.1.
"""

from __future__ import annotations

from enum import Enum, auto

from proxy.core.errors import TargetPeerError
from proxy.core.http.heads import HOP_BY_HOP, Fields, RequestHead, ResponseHead, encode_response, words


class _Way(Enum):
    NONE = auto()
    FIXED = auto()
    CHUNKED = auto()
    TO_END = auto()


class Framing:
    """The framing of one response. rewritten: the body will not have the target's length."""

    def __init__(self, request: RequestHead, response: ResponseHead, rewritten: bool = False) -> None:
        if response.status < 200:
            raise TargetPeerError(f"the target answered {response.status} where an answer was due")
        self._request = request
        self._response = response
        self._remaining = 0
        self._length: str | None = None
        if response.status in (204, 304) or request.method == "HEAD":
            self._way = _Way.NONE
            # What a GET would have had. Source: RFC 9110 8.6; a 204 has none.
            if response.status != 204 and not rewritten:
                self._length = response.get("content-length")
        elif response.length is not None and not rewritten:
            self._way = _Way.FIXED
            self._remaining = response.length
            self._length = str(response.length)
        elif request.version == "1.1":
            self._way = _Way.CHUNKED
        else:
            self._way = _Way.TO_END
        self._kept = request.keep_alive and self._way is not _Way.TO_END

    @property
    def keep_alive(self) -> bool:
        """Whether the connection can take another request once end() was said."""
        return self._kept

    def head(self, fields: Fields) -> bytes:
        """Return status line and fields: those given but for what is between neighbours, and the framing's own."""
        dropped = {*HOP_BY_HOP, "content-length", *words(self._response.fields, "connection")}
        own: list[tuple[str, str]] = [field for field in fields if field[0].lower() not in dropped]
        if self._length is not None:
            own.append(("Content-Length", self._length))
        elif self._way is _Way.CHUNKED:
            own.append(("Transfer-Encoding", "chunked"))
        if not self._kept:
            own.append(("Connection", "close"))
        elif self._request.version == "1.0":
            own.append(("Connection", "keep-alive"))
        return encode_response(self._response.status, self._response.reason, own)

    def data(self, data: bytes) -> bytes:
        """Frame a piece of the body. Raises TargetPeerError where it is longer than was said."""
        if not data:
            return b""
        match self._way:
            case _Way.CHUNKED:
                return b"%x\r\n%b\r\n" % (len(data), data)
            case _Way.FIXED:
                self._remaining -= len(data)
                if self._remaining < 0:
                    self._kept = False
                    raise TargetPeerError("the body of the answer is longer than was said")
                return data
            case _Way.TO_END:
                return data
            case _Way.NONE:
                return b""

    def end(self) -> bytes:
        """End the body. Raises TargetPeerError where it is shorter than was said: the connection is to be closed."""
        if self._remaining:
            self._kept = False
            raise TargetPeerError("the body of the answer is shorter than was said")
        return b"0\r\n\r\n" if self._way is _Way.CHUNKED else b""
