"""An answer on its way to the user: events for the waist, framed for HTTP; and what a whole exchange needs beside it.

The tape holds head and body without their framing, under the flow of the exchange. The user gets nothing that is not
there; what masks change is framed anew. Source: RFC 9112 7; kubernetes note 8.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from proxy.core.errors import TapeError
from proxy.core.events import CellMask, Chunk, Column, Document, FieldMask, Rows
from proxy.core.http.client import TargetConnection
from proxy.core.http.framing import Framing
from proxy.core.http.heads import Fields, ResponseHead, encode_response, without
from proxy.core.session import Permit
from proxy.core.writers import UserWriter

SHOWN_LIMIT: Final = 1024 * 1024  # of an answer, for the decoded view of the tape
_OWN_FRAMING: Final = frozenset({"transfer-encoding", "connection", "keep-alive"})

T = TypeVar("T")


class Ended(Exception):
    """The answer cannot be finished: the connection is closed in its middle, so that nobody takes it for whole."""


class Answer:
    """What goes to the user: events for the waist, framed."""

    def __init__(self, flow: int, permit: Permit | None, writer: UserWriter, framing: Framing) -> None:
        self.permit = permit
        self.shown = bytearray()  # of the body, as the user saw it
        self.size_bytes = 0
        self.begun = False  # something of it is on its way
        self.status = 0  # once its head is said
        self._flow = flow
        self._writer = writer
        self._framing = framing
        self._rewritten = b""

    def head(self, response: ResponseHead, fields: Fields) -> None:
        """Say the head; fields are all that the user gets."""
        self.status = response.status
        taped = encode_response(response.status, response.reason, without(fields, _OWN_FRAMING))
        wire = self._framing.head(fields)
        self._writer.send(self.permit, Chunk(self._flow, "out", taped, wire, _as_it_is, masked=False))

    def chunk(self, data: bytes, *, masked: bool, flush: bool = False) -> None:
        """Say a piece of the body. masked: through the masks of streams."""
        wire = self._framing.data(data)
        event = Chunk(self._flow, "out", data, wire, self._rewrap, flush=flush, masked=masked)
        self._note(data, self._reveal(event), wire)

    def document(self, data: bytes, rewrite: Callable[[FieldMask], bytes]) -> None:
        """Say a document (one of a watch with its line break), which rewrite masks."""
        wire = self._framing.data(data)
        self._note(data, self._reveal(Document(self._flow, data, wire, rewrite, self._rewrap)), wire)

    def rows(
        self, data: bytes, columns: tuple[Column, ...], rewrite: Callable[[Sequence[CellMask | None]], bytes]
    ) -> None:
        """Say a whole answer that holds rows."""
        self._reveal(Rows(columns, data, rewrite, self._flow, self._rewrap))
        self._note(self._rewritten, b"", b"")

    def end(self) -> None:
        """Say that the body is whole."""
        event = Chunk(self._flow, "out", b"", self._framing.end(), _as_it_is, taped=False, masked=False)
        self._writer.send(self.permit, event)

    async def flush(self) -> None:
        """Give it to the user, once the tape has it. Raises TapeError: nothing of it was given."""
        before, self.begun = self.begun, True
        try:
            await self._writer.flush()
        except TapeError:
            self.begun = before
            raise

    def _reveal(self, event: Chunk | Document | Rows) -> bytes:
        self._rewritten = b""
        return self._writer.send(self.permit, event)

    def _rewrap(self, data: bytes) -> bytes:
        self._rewritten = data
        return self._framing.data(data)

    def _note(self, data: bytes, revealed: bytes, wire: bytes) -> None:
        """Keep what the user saw, as far as the tape's decoded view shows it."""
        seen = data if revealed is wire else self._rewritten
        self.size_bytes += len(seen)
        if len(self.shown) < SHOWN_LIMIT:
            self.shown += seen[: SHOWN_LIMIT + 1 - len(self.shown)]


def _as_it_is(data: bytes) -> bytes:
    return data


class Pieces:
    """The pieces of a target's answer; before it waits for the next one, the user gets what there is.

    So the head, a small body and its end are one block of the tape and one write. No more than what one read of the
    target brought is kept back. No generator: leaving a loop in its middle leaves nothing to clean up.
    """

    __slots__ = ("_answer", "_connection", "_pieces")

    def __init__(self, connection: TargetConnection, answer: Answer) -> None:
        self._connection = connection
        self._pieces = connection.pieces()
        self._answer = answer

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        if not self._connection.ready:
            await self._answer.flush()
        return await anext(self._pieces)


async def outcome(work: Awaitable[T]) -> T | Exception:
    """What it returns, or the error that it raises: so that it ends nothing but itself."""
    try:
        return await work
    except Exception as error:  # raised again by who waits for it: fails closed
        return error
