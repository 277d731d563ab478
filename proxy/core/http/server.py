"""The user's end of HTTP/1.1: a connection that requests come over, one after another.

One request at a time: nothing is parsed behind its end until request() is called again. What a user sends ahead stays
in the stream's own bounded buffer, and TCP makes it wait. Whoever serves a request reads its body (body, pieces) or
leaves it; drop() then clears the way for the next one, or says that the connection has to be closed.

Left out: whole answers of sessions, which go over the tape (framing.py and the writers). respond() is for what has no
session yet. Source: RFC 9112 9, RFC 9110 10.1.1; kubernetes note 8.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from http import HTTPStatus
from typing import Final

from proxy.core.errors import PeerError, UserPeerError
from proxy.core.http.heads import BadRequest, RequestHead, encode_response
from proxy.core.http.parser import End, Limits, RequestEvent, RequestParser
from proxy.core.stream import Stream

READ_BYTES: Final = 64 * 1024  # as much as a stream keeps: stream.HIGH_WATER_BYTES
DROP_LIMIT: Final = 256 * 1024  # bytes of a body that nobody wants; maxPostHandlerReadBytes of Go's net/http
DROP_SECONDS: Final = 5.0  # as long as Go's net/http takes to ours: the user is there, and sends
BODY_SECONDS: Final = 60.0  # without a byte of a body that is read whole; nginx's client_body_timeout
LINGER_SECONDS: Final = 1.0  # for the user to read the last answer; Go waits 0.5 s, nginx 5 s
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class UserConnection:
    """One connection of a user, past TLS."""

    def __init__(self, stream: Stream, head_seconds: float = 10.0, limits: Limits | None = None) -> None:
        self._stream = stream
        self._head_seconds = head_seconds
        self._parser = RequestParser(limits)
        self._coming: list[RequestEvent] = []  # parsed, and not given out yet
        self._head: RequestHead | None = None
        self._over = True  # the request's body has been given out to its end
        self._promised = False  # it waits for "100 Continue"
        self._lost = False  # out of step: no further request can be read
        self._taken = False

    async def request(self, idle_seconds: float | None = None) -> RequestHead | None:
        """Return the head of the next request.

        None: the user ended the connection between two requests, did not begin one in idle_seconds, or the body of
        the last one is in the way. Raises BadRequest (closing), UserPeerError.
        """
        assert not self._taken, "the connection was taken over"
        if self._lost or (not self._over and not await self.drop()):
            return None
        self._head = None
        parser = self._parser
        if parser.done:
            parser.renew()
        events = self._feed(b"") if parser.rest else []
        if not events and parser.between:
            data = await self._first(idle_seconds)
            if not data:
                return None
            events = self._feed(data)
        if not events:
            events = await self._whole_head()
        head = events.pop(0)
        assert isinstance(head, RequestHead)
        self._head = head
        self._coming = events
        self._over = False
        self._promised = head.version == "1.1" and head.get("expect") is not None and head.length != 0
        self._settle()
        return head

    async def body(self, limit: int) -> bytes:
        """Return the whole body, of at most limit bytes. Raises BadRequest (413, 400, 408), UserPeerError."""
        head = self._head
        assert head is not None, "there is no request"
        if head.length is not None and head.length > limit:
            raise BadRequest(413, f"the body is larger than {limit} bytes", closing=True)
        parts: list[bytes] = []
        size = 0
        while (piece := await self._piece(BODY_SECONDS)) is not None:
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise BadRequest(413, f"the body is larger than {limit} bytes", closing=True)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self) -> AsyncIterator[bytes]:
        """Return the body piece by piece; a piece is only read when it is asked for. Raises as body() does."""
        return _Pieces(self)

    async def drop(self) -> bool:
        """Throw away what is left of the body; False: it is too much, and the connection has to be closed."""
        head = self._head
        if self._over or head is None:
            return not self._lost
        # Who waits for a "100 Continue" and does not get it may send its body or not: nobody can tell what comes.
        if self._lost or self._promised or (head.length or 0) > DROP_LIMIT:
            self._lost = True
            return False
        size = 0
        try:
            async with asyncio.timeout(DROP_SECONDS):
                while (piece := await self._piece(None)) is not None:
                    size += len(piece)
                    if size > DROP_LIMIT:
                        self._lost = True
                        return False
        except (BadRequest, PeerError, TimeoutError):
            self._lost = True
            return False
        return True

    async def gone(self) -> None:
        """Return once the user has left, read or not. Nothing is read meanwhile: what it sends ahead waits."""
        await self._stream.gone()

    @property
    def taken(self) -> bool:
        """Whether the connection was taken over: it has no requests and answers any more."""
        return self._taken

    def take_over(self) -> bytes:
        """An upgrade is accepted: return what came behind the request. The caller reads the Stream from now on."""
        if not self._over:
            raise BadRequest(400, "a body where the connection is to be taken over", closing=True)
        self._taken = True
        return self._parser.take_rest()

    async def respond(
        self, status: int, fields: Iterable[tuple[str, str]] = (), body: bytes = b"", close: bool = False
    ) -> None:
        """Answer where there is no session to do it. close: the caller closes the stream next. Raises UserPeerError.

        fields are without framing: Content-Length and Connection are put in here.
        """
        head = self._head
        close = close or self._lost
        own = [*fields, ("Content-Length", str(len(body)))]
        if close or (head is not None and not head.keep_alive):
            own.append(("Connection", "close"))
        elif head is not None and head.version == "1.0":
            own.append(("Connection", "keep-alive"))
        sent = b"" if head is not None and head.method == "HEAD" else body
        await self._stream.write(encode_response(status, _reason(status), own) + sent)
        if close:
            await self.linger()

    async def linger(self) -> None:
        """Before a close with bytes still on their way here: read them, or their reset takes the answer along.

        Bounded in bytes and time; ends at once where the user ends the connection, or nothing can be on its way.
        Source: RFC 9112 9.6.
        """
        if self._over and not self._lost:
            return
        size = 0
        with contextlib.suppress(PeerError, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while size < DROP_LIMIT and (data := await self._stream.read(READ_BYTES)):
                    size += len(data)

    # -- inside ---------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> list[RequestEvent]:
        try:
            return self._parser.feed(data)
        except BadRequest:
            self._lost = True
            raise

    async def _first(self, idle_seconds: float | None) -> bytes:
        """Wait for the first bytes of a request; none at all if there will be none."""
        try:
            if idle_seconds is None:
                data = await self._stream.read(READ_BYTES)
            else:
                async with asyncio.timeout(idle_seconds):
                    data = await self._stream.read(READ_BYTES)
        except (TimeoutError, UserPeerError):
            data = b""  # a reset between two requests is an end like any other
        self._lost = not data
        return data

    async def _whole_head(self) -> list[RequestEvent]:
        """Wait for the rest of a head that has begun."""
        try:
            async with asyncio.timeout(self._head_seconds):
                while True:
                    data = await self._stream.read(READ_BYTES)
                    if not data:
                        self._lost = True
                        raise UserPeerError("the user ended the connection in the middle of a request")
                    if events := self._feed(data):
                        return events
        except TimeoutError:
            self._lost = True
            raise BadRequest(408, "the request did not come in time", closing=True) from None

    async def _piece(self, seconds: float | None) -> bytes | None:
        """Return the next piece of the body, None at its end."""
        if self._over:
            return None
        while not self._coming:
            if self._promised:
                self._promised = False
                await self._stream.write(_CONTINUE)
            self._coming = self._feed(await self._more(seconds))
        event = self._coming.pop(0)
        self._settle()
        if isinstance(event, bytes):
            self._promised = False  # it came without being asked for
            return event
        return None

    async def _more(self, seconds: float | None) -> bytes:
        try:
            if seconds is None:
                data = await self._stream.read(READ_BYTES)
            else:
                async with asyncio.timeout(seconds):
                    data = await self._stream.read(READ_BYTES)
        except TimeoutError:
            self._lost = True
            raise BadRequest(408, "the body did not come in time", closing=True) from None
        if not data:
            self._lost = True
            raise UserPeerError("the user ended the connection in the middle of a request")
        return data

    def _settle(self) -> None:
        """See whether the request is over."""
        if self._coming and isinstance(self._coming[0], End):
            self._coming.clear()
            self._over = True
        elif not self._coming and self._parser.done:
            self._over = True


class _Pieces:
    """The pieces of a body; no generator, so that leaving a loop in its middle leaves nothing to clean up."""

    __slots__ = ("_connection",)

    def __init__(self, connection: UserConnection) -> None:
        self._connection = connection

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._connection._piece(None)
        if piece is None:
            raise StopAsyncIteration
        return piece


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
