"""The target's side of an exchange: requests under a permit, and the gate's own questions.

A request's head bears the credential, so it is never on the tape; what the user asked for is. The gate's own questions
(a dry run, a schema, whether a job of ours is there) reveal nothing to the user: they are marks on the tape, by method
and address. A connection that had died unseen is dialled anew where the request can be repeated without harm:
a question, or a job under an id of its own.

Source: bigquery note 3 and 11; RFC 9110 9.2.2.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from protocols.bigquery.dial import dial, host_of, settings_of
from protocols.bigquery.parameters import safe_target
from proxy.core.errors import TargetPeerError
from proxy.core.events import Frame
from proxy.core.gate import Gate
from proxy.core.http.heads import Fields, ResponseHead, encode_request
from proxy.core.session import Input, Permit, Session
from proxy.core.writers import TargetWriter
from proxy.http.dialing import authorization
from proxy.http.links import Link, Links

ANSWER_LIMIT: Final = 16 * 1024 * 1024  # of an answer to the gate itself; a schema of 10,000 columns has 4 MB
# For an answer that no user waits for, or several do: a dry run of a large script takes some seconds. Ours
ANSWER_SECONDS: Final = 60.0
LATE: Final = f"the target took longer than {ANSWER_SECONDS:g} seconds to answer"
NOT_LET_IN: Final = "the target did not accept the gateway's credential; its operator has to look after that"
JSON: Final = "application/json"


class Lost(TargetPeerError):
    """The request was sent and no answer came: what became of it is not known."""


class Upstream:
    """Requests of one session to its target."""

    def __init__(self, gate: Gate, session: Session) -> None:
        self._gate = gate
        self._session = session
        self._host = ""  # of the Host field, once it was asked for
        self.passed = False  # a permit's request is, to the target

    @contextlib.asynccontextmanager
    async def send(
        self, permit: Permit, flow: int, method: str, target: str, fields: Fields, body: bytes, safe: bool
    ) -> AsyncIterator[tuple[Link, ResponseHead]]:
        """Send a request under a permit; yields its answer's head, and the connection with its body.

        safe: it may be sent twice. Raises TargetPeerError (Lost, where it may have been done), TapeError.
        """
        session = self._session
        credential = await self._gate.credentials.get(session.identity, session.target)
        wire = self._head(method, target, (*fields, *authorization(credential)), len(body)) + body
        async with Links.of(self._gate.shared).link(session.target, credential, dial) as link:
            try:
                response = await self._answered(link, permit, flow, method, wire)
            except TargetPeerError as error:
                if not (link.kept and link.connection.silent and safe):
                    if self.passed:
                        raise Lost(str(error)) from error
                    raise
                await link.anew()
                response = await self._answered(link, permit, flow, method, wire)
            if response.status == 401:
                raise TargetPeerError(NOT_LET_IN)
            yield link, response

    @contextlib.asynccontextmanager
    async def stream(
        self,
        permit: Permit,
        flow: int,
        method: str,
        target: str,
        fields: Fields,
        length: int,
        pieces: AsyncIterator[bytes],
        note: Callable[[bytes], None],
    ) -> AsyncIterator[tuple[Link, ResponseHead]]:
        """The same for a body of a length that is passed piece by piece; note sees each. It is sent once."""
        session = self._session
        credential = await self._gate.credentials.get(session.identity, session.target)
        head = self._head(method, target, (*fields, *authorization(credential)), length)
        async with Links.of(self._gate.shared).link(session.target, credential, dial) as link:
            if link.kept:  # what has died unseen would be found out when the user's data is gone
                await link.anew()
            writer = TargetWriter(link.connection.stream, session)
            link.connection.asking()
            writer.send(permit)
            writer.send(Input(permit, flow, b"", head))
            await writer.flush()
            self.passed = True
            async for piece in pieces:
                note(piece)
                writer.send(Input(permit, flow, piece, piece))
                await writer.flush()
            response = await link.connection.response(method)
            if response.status == 401:
                raise TargetPeerError(NOT_LET_IN)
            yield link, response

    async def _answered(self, link: Link, permit: Permit, flow: int, method: str, wire: bytes) -> ResponseHead:
        writer = TargetWriter(link.connection.stream, self._session)
        link.connection.asking()
        if not permit.spent:
            writer.send(permit)
        writer.send(Input(permit, flow, b"", wire))  # what was asked for is on the tape with the command
        await writer.flush()
        self.passed = True
        return await link.connection.response(method)

    async def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        """Ask the target something for the gate itself: nothing of it is the user's. Raises TargetPeerError."""
        session = self._session
        credential = await self._gate.credentials.get(session.identity, session.target)
        fields: Fields = (("Accept", JSON), ("Content-Type", JSON), *authorization(credential))
        wire = self._head(method, target, fields, len(body)) + body
        session.mark("asks", f"{'dry run' if method == 'POST' else 'looks'}: {method} {safe_target(target)}")
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                Links.of(self._gate.shared).link(session.target, credential, dial) as link,
            ):
                try:
                    response = await self._asked(link, method, wire)
                except TargetPeerError:
                    if not (link.kept and link.connection.silent):
                        raise
                    await link.anew()
                    response = await self._asked(link, method, wire)
                if response.status == 401:
                    raise TargetPeerError(NOT_LET_IN)
                return response.status, await link.connection.body(ANSWER_LIMIT)
        except TimeoutError as error:
            raise TargetPeerError(LATE) from error

    async def _asked(self, link: Link, method: str, wire: bytes) -> ResponseHead:
        writer = TargetWriter(link.connection.stream, self._session)
        link.connection.asking()
        writer.send(Frame(wire, by_gate=True, taped=False))
        await writer.flush()
        return await link.connection.response(method)

    def _head(self, method: str, target: str, fields: Fields, length: int) -> bytes:
        self._host = self._host or host_of(settings_of(self._session.target))
        own: list[tuple[str, str]] = [("Host", self._host)]
        if length or method in ("POST", "PUT", "PATCH"):
            own.append(("Content-Length", str(length)))
        return encode_request(method, target, (*own, *fields))
