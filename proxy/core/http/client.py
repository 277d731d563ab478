"""The target's end of HTTP/1.1: a connection that the gate's requests go over, and their answers come back.

Requests are written to the stream by whoever has the permit (a TargetWriter); response() then reads the answer's head,
and body() or pieces() its body. A connection is used again only if the answer was read to its end, both sides want it,
and nothing else has come. Deadlines are the caller's. Source: RFC 9112 6.3 and 9, RFC 9110 15.2; kubernetes note 8.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from proxy.core.errors import TargetPeerError
from proxy.core.http.heads import ResponseHead
from proxy.core.http.parser import End, Limits, ResponseEvent, ResponseParser
from proxy.core.stream import MemoryStream, SocketStream, Stream

READ_BYTES: Final = 64 * 1024  # as much as a stream keeps: stream.HIGH_WATER_BYTES
INTERIM_LIMIT: Final = 5  # 1xx answers ahead of the real one; net/http's max1xxResponses in Go


class TargetConnection:
    """One connection to a target, past TLS."""

    def __init__(self, stream: Stream, limits: Limits | None = None) -> None:
        self.stream = stream
        self.used = 0  # requests that were answered, or began to be
        self.silent = True  # nothing of the answer has come: a GET over a kept connection may be sent once more
        self._parser = ResponseParser(limits)
        self._coming: list[ResponseEvent] = []  # parsed, and not given out yet
        self._head: ResponseHead | None = None
        self._over = True  # the answer has been given out to its end
        self._broken = False
        self._asking = False  # a request is being written, perhaps in part

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: the answer is read, and the target keeps the connection open."""
        kept = self._head is None or (self._head.keep_alive and self._head.status != 101)
        free = self._over and not self._asking and not self._broken
        return kept and free and not self._parser.rest and self.stream.info("quiet") is True

    def asking(self) -> None:
        """A request is about to be written: until its answer is read, the connection is nobody else's.

        Whoever is cut off in between leaves half a request, or an answer to come: the next one must not meet it.
        """
        self._asking = True

    @property
    def ready(self) -> bool:
        """Whether the next piece of the body, or its end, is here already: nobody has to wait for the target."""
        return self._over or bool(self._coming)

    async def response(self, method: str) -> ResponseHead:
        """Return the head of the answer to a request of this method; 1xx but 101 are skipped.

        Raises TargetPeerError for what is not HTTP, or an end.
        """
        if not self._over or self._broken:
            raise TargetPeerError("the connection to the target is out of step")
        if self._parser.done:
            if self._parser.rest:
                raise self._fault("the target said something before it was asked")
            self._parser.renew()
        self.used += 1
        self.silent = True
        self._over = self._asking = False
        for _ in range(INTERIM_LIMIT + 1):
            self._parser.expect(method)
            while not self._coming:
                await self._more()
            head = self._coming.pop(0)
            assert isinstance(head, ResponseHead)
            self._head = head
            if head.status >= 200 or head.status == 101:
                self._settle()
                return head
            self._coming.clear()  # its end
            self._parser.renew()
            if self._parser.rest:
                self._coming = self._feed(b"")
        raise self._fault("the target answers with nothing but interim answers")

    async def body(self, limit: int) -> bytes:
        """Return the whole body. Raises TargetPeerError, also where it is cut short or over limit bytes."""
        head = self._head
        assert head is not None, "there is no answer"
        if head.length is not None and head.length > limit:
            raise self._fault(f"the target's answer is larger than {limit} bytes")
        parts: list[bytes] = []
        size = 0
        while (piece := await self._piece()) is not None:
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise self._fault(f"the target's answer is larger than {limit} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self) -> AsyncIterator[bytes]:
        """Return the body piece by piece; a piece is only read when it is asked for. Raises as body() does."""
        return _Pieces(self)

    def take_over(self) -> bytes:
        """After 101: return what came behind its head. The caller reads the stream from now on."""
        if self._head is None or self._head.status != 101:
            raise TargetPeerError("the target did not switch protocols")
        self._broken = True  # for HTTP
        return self._parser.take_rest()

    async def close(self) -> None:
        """Close in order, in bounded time. Never raises."""
        self._broken = True
        await self.stream.close()

    def discard(self) -> None:
        """Drop the connection at once: it has ended, or nobody waits for what may still be on its way."""
        self._broken = True
        if isinstance(self.stream, SocketStream | MemoryStream):
            self.stream.abort()

    # -- inside ---------------------------------------------------------------------------------------

    def _fault(self, text: str) -> TargetPeerError:
        self._broken = True
        return TargetPeerError(text)

    def _feed(self, data: bytes) -> list[ResponseEvent]:
        try:
            return self._parser.feed(data)
        except TargetPeerError:
            self._broken = True
            raise

    async def _more(self) -> None:
        try:
            data = await self.stream.read(READ_BYTES)
            if data:
                self.silent = False
                self._coming = self._feed(data)
            elif self.silent:
                raise TargetPeerError("the target ended the connection without an answer")
            else:
                self._coming = self._parser.feed_end()
        except TargetPeerError:
            self._broken = True
            raise

    async def _piece(self) -> bytes | None:
        """Return the next piece of the body, None at its end."""
        if self._over:
            return None
        if self._broken:
            raise TargetPeerError("the connection to the target is out of step")
        while not self._coming:
            await self._more()
        event = self._coming.pop(0)
        self._settle()
        return event if isinstance(event, bytes) else None

    def _settle(self) -> None:
        """See whether the answer is over."""
        if self._coming and isinstance(self._coming[0], End):
            self._coming.clear()
            self._over = True
        elif not self._coming and self._parser.done:
            self._over = True


class _Pieces:
    """The pieces of a body; no generator, so that leaving a loop in its middle leaves nothing to clean up."""

    __slots__ = ("_connection",)

    def __init__(self, connection: TargetConnection) -> None:
        self._connection = connection

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._connection._piece()
        if piece is None:
            raise StopAsyncIteration
        return piece
