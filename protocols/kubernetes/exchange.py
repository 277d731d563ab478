"""One plain request, from its head to the end of its answer: decide, pass on, pass back.

The body is read whole where it says what is asked for (objects: the API server takes 3 MiB at most, so does the gate),
and passed piece by piece where nobody looks into it (proxy). The answer is passed as it comes, or through the masks of
the permit: a stream of text, one object a line, or one document. Watches and logs are flushed piece by piece.

What the gate itself answers goes the same way, over the tape. A GET whose kept connection had died is sent once more.
Nothing is decided here. Source: kubernetes note 2, 6, 7, 8.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from protocols.kubernetes import status
from protocols.kubernetes.answer_fields import for_user
from protocols.kubernetes.commands import BadGateway, Conversation, Treatment
from protocols.kubernetes.dial import dial, impersonation
from protocols.kubernetes.documents import rewrite, rewrite_line
from protocols.kubernetes.handshakes import NOT_LET_IN
from protocols.kubernetes.request_info import RequestInfo
from protocols.kubernetes.verbs import UNREAD, verb_of
from proxy.core.errors import Refused, TapeError, TargetPeerError, UserPeerError
from proxy.core.events import Result
from proxy.core.gate import Gate, Pending
from proxy.core.http.framing import Framing
from proxy.core.http.heads import (
    BadRequest,
    Fields,
    RequestHead,
    ResponseHead,
    encode_request,
)
from proxy.core.http.server import UserConnection
from proxy.core.session import Input, Permit, Session
from proxy.core.stream import Stream
from proxy.core.writers import TargetWriter, UserWriter
from proxy.http.answers import Answer, Ended, Pieces, outcome
from proxy.http.dialing import authorization
from proxy.http.links import Link, Links

BODY_LIMIT: Final = 3 * 1024 * 1024  # the API server's own: apiserver's MaxRequestBodyBytes
DOCUMENT_LIMIT: Final = 16 * 1024 * 1024  # one masked answer: a second of the loop at worst; ours
LINE_LIMIT: Final = 8 * 1024 * 1024  # one event of a watch: an object is 1.5 MiB at most in etcd, more as JSON
FLUSH_SECONDS: Final = 2.0  # how long a mask may keep text that no line break follows; as protocols/ssh/relay.py
# Fields of an answer that hold nothing of an object's; under masks they are all that passes.
PLAIN_FIELDS: Final = frozenset({
    "content-type", "warning", "date", "cache-control", "last-modified", "vary", "audit-id", "retry-after",
    "x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid",
})  # fmt: skip
HIDDEN_WARNING: Final = '299 - "a warning of the target, which masks hide"'


class Exchange:
    """One request of a user in a session."""

    def __init__(
        self, connection: UserConnection, user: Stream, session: Session, flow: int, gate: Gate, log: Any
    ) -> None:
        self._connection = connection
        self._session = session
        self._flow = flow
        self._gate = gate
        self._log = log
        self._writer = UserWriter(user, session)
        self._conversation = Conversation(session.target, flow, gate.shell)
        self._answer: Answer | None = None
        self.passed = False  # the request is, to the target
        self._notes: list[str] = []  # for Warning fields
        self._pending: Pending | None = None

    @property
    def said(self) -> bool:
        """Whether something of the answer is on its way to the user."""
        return self._answer is not None and self._answer.begun

    def withdraw(self) -> bool:
        """Take back what is held for a human; returns whether anything was."""
        if self._pending is None:
            return False
        self._pending.withdraw()
        return True

    async def run(self, head: RequestHead, info: RequestInfo) -> bool:
        """Serve it; returns whether the connection can take another request. Raises TapeError, UserPeerError, Ended."""
        try:
            return await self._run(head, info)
        except BadRequest as bad:
            self._session.mark("bad-request", f"{head.method} {head.target[:200]}: {bad.text}")
            self._log.info("bad request", status=bad.status, reason=bad.text)
            head = replace(head, keep_alive=head.keep_alive and not bad.closing)
            return await self.answer(head, bad.status, status.failure(bad.status, bad.text))
        except TargetPeerError as error:
            self._log.warning("target failed", error=str(error))
            self._session.mark("target-error", str(error))
            if self.said:
                raise Ended(str(error)) from error
            return await self.answer(head, 503, status.failure(503, f"gatecast: {error}"))

    async def _run(self, head: RequestHead, info: RequestInfo) -> bool:
        body = None if verb_of(info) in UNREAD else await self._connection.body(BODY_LIMIT)
        command = self._conversation.from_user(head, info, body)
        try:
            permit = await self._session.decide(command, self._on_hold)
        except Refused as refused:
            self._log.info("request refused", rule=refused.deny.rule, text=command.text[:200])
            code, document = self._conversation.refuse(refused)
            return await self.answer(head, code, document)
        finally:
            self._pending = None
        if permit.approved:
            self._notes.append(f"gatecast: approved, by rule {permit.rule}")
        try:
            return await self._pass(head, info, permit, body)
        except (UserPeerError, asyncio.CancelledError):
            self._cut_short(permit)
            raise

    def _cut_short(self, permit: Permit) -> None:
        """Tape that the user has left, or that the session is over: how a watch and logs -f mostly end."""
        answer = self._answer
        details = {"flow": self._flow} | ({"status": answer.status} if answer is not None and answer.status else {})
        size_bytes = answer.size_bytes if answer is not None else 0
        with contextlib.suppress(TapeError):  # where nothing can be taped, that is why it ends
            self._session.result(permit, Result("ended early", size_bytes=size_bytes, details=details))

    async def _on_hold(self, pending: Pending) -> None:
        self._log.info("request held", approval=pending.id, rule=pending.hold.rule)
        self._pending = pending

    # -- towards the target ---------------------------------------------------------------------------

    async def _pass(self, head: RequestHead, info: RequestInfo, permit: Permit, body: bytes | None) -> bool:
        session = self._session
        credential = await self._gate.credentials.get(session.identity, session.target)
        extra: Fields = (*impersonation(session.target, session.identity), *authorization(credential))
        wire = encode_request(*self._conversation.upstream(head, info, bool(permit.masks), extra))
        async with Links.of(self._gate.shared).link(session.target, credential, dial) as link:
            sent = await self._send(link, permit, wire, body, head)
            try:
                response = await link.connection.response(head.method)
            except TargetPeerError:
                again = link.kept and link.connection.silent and body is not None
                if not again or head.method not in ("GET", "HEAD"):
                    raise
                await link.anew()
                await self._send(link, permit, wire, body, head)
                response = await link.connection.response(head.method)
            if response.status == 401 and info.subresource != "proxy":
                raise TargetPeerError(NOT_LET_IN)
            return await self._back(head, info, permit, link, response, sent)

    async def _send(self, link: Link, permit: Permit, wire: bytes, body: bytes | None, head: RequestHead) -> int:
        """Send the request; returns the size of its body. body None: the user's is passed on as it comes."""
        writer = TargetWriter(link.connection.stream, self._session)
        link.connection.asking()
        if not permit.spent:
            writer.send(permit)
        if body is not None:
            writer.send(Input(permit, self._flow, b"", wire + body))  # the body is on the tape with the command
            await writer.flush()
            self.passed = True
            return len(body)
        writer.send(Input(permit, self._flow, b"", wire))
        await writer.flush()
        self.passed = True
        size, chunked = 0, head.length is None
        async for piece in self._connection.pieces():
            size += len(piece)
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
            writer.send(Input(permit, self._flow, piece, framed))
            await writer.flush()
        if chunked:
            writer.send(Input(permit, self._flow, b"", b"0\r\n\r\n"))
            await writer.flush()
        return size

    # -- towards the user -----------------------------------------------------------------------------

    async def _back(
        self, head: RequestHead, info: RequestInfo, permit: Permit, link: Link, response: ResponseHead, sent: int
    ) -> bool:
        masked = bool(permit.masks) and permit.command.verb != "discover"
        if masked:  # what a target says there is text that nobody has masked
            response = replace(response, reason=status.reason_phrase(response.status))
        treatment = self._conversation.treatment(response, masked)
        if isinstance(treatment, BadGateway):
            raise TargetPeerError(treatment.text)
        # A HEAD's length is that of what a mask would have changed.
        framing = Framing(head, response, rewritten=treatment != "pass" or (masked and head.method == "HEAD"))
        answer = self._answer = Answer(self._flow, permit, self._writer, framing)
        self._say_head(answer, info, response, treatment)
        pieces = Pieces(link.connection, answer)
        resource = info.resource_name if info.is_resource else None
        try:
            await self._body(answer, treatment, pieces, resource)
        except TargetPeerError as error:
            self._session.result(permit, Result("broken off", details={"flow": self._flow, "status": response.status}))
            raise Ended(str(error)) from error
        self._session.result(permit, self._conversation.result(response, bytes(answer.shown), answer.size_bytes, sent))
        await self._writer.flush()
        self._session.forget_stream(self._flow)
        return framing.keep_alive and await self._connection.drop()

    def _say_head(self, answer: Answer, info: RequestInfo, response: ResponseHead, treatment: Treatment) -> None:
        fields = for_user(response.fields, self._session.target)
        if answer.permit is not None and answer.permit.masks and answer.permit.command.verb != "discover":
            # What else a target says in fields is text that nobody has masked: warnings quote objects.
            fields = tuple(
                (name, HIDDEN_WARNING if name.lower() == "warning" else value)
                for name, value in fields
                if name.lower() in PLAIN_FIELDS
            )
            if treatment != "pass" and self._touched(answer.permit, info):
                self._notes.append("gatecast: parts of this answer may be masked")
        fields = (*fields, *(("Warning", f'299 gatecast "{note}"') for note in self._notes))
        answer.head(response, fields)  # sent with what is already here of the body

    def _touched(self, permit: Permit, info: RequestInfo) -> bool:
        """Whether a mask may have something to hide in answers of this kind: else nobody is told of any."""
        fields = self._gate.masker.fields(permit.masks, permit.command)
        if fields is None:
            return False
        return fields.texts is not None or (info.is_resource and fields.touches(f"{info.resource_name}:"))

    async def _body(
        self, answer: Answer, treatment: Treatment, pieces: AsyncIterator[bytes], resource: str | None
    ) -> None:
        match treatment:
            case "pass":
                async for piece in pieces:
                    answer.chunk(piece, masked=False)
            case "text":
                await self._text(answer, pieces)
            case "lines":
                async for line in _lines(pieces):
                    answer.document(line, partial(rewrite_line, line, resource=resource))
            case "document":
                whole = bytearray()
                async for piece in pieces:
                    whole += piece
                    if len(whole) > DOCUMENT_LIMIT:
                        raise TargetPeerError("the answer is too large to be masked; ask for less (--chunk-size)")
                if whole:
                    answer.document(bytes(whole), partial(rewrite, bytes(whole), resource=resource))
        answer.end()
        await answer.flush()

    async def _text(self, answer: Answer, pieces: AsyncIterator[bytes]) -> None:
        """Text through the masks of streams; what they hold back is let go when nothing came for a while."""
        async with asyncio.TaskGroup() as group:  # raised behind it: else a group of one error, which nobody expects
            error = await outcome(self._through_masks(answer, pieces, group))
        if error is not None:
            raise error

    async def _through_masks(self, answer: Answer, pieces: AsyncIterator[bytes], group: asyncio.TaskGroup) -> None:
        piece: bytes | Exception | None = b""
        while isinstance(piece, bytes):
            coming = group.create_task(outcome(_next(pieces)))
            try:
                while not coming.done():
                    held = self._session.held_back(self._flow)
                    await asyncio.wait({coming}, timeout=FLUSH_SECONDS if held else None)
                    if not coming.done():
                        answer.chunk(b"", masked=True, flush=True)
                        await answer.flush()
            finally:
                coming.cancel()
            piece = coming.result()
            if isinstance(piece, bytes):
                answer.chunk(piece, masked=True)
                await answer.flush()
        answer.chunk(b"", masked=True, flush=True)
        if piece is not None:
            await answer.flush()
            raise piece

    async def answer(self, head: RequestHead, code: int, document: bytes, more: Fields = ()) -> bool:
        """Answer in the gate's own words; returns whether the connection can take another request."""
        fields: Fields = (("Content-Type", "application/json"), ("Content-Length", str(len(document))), *more)
        response = ResponseHead(code, status.reason_phrase(code), fields, length=len(document))
        framing = Framing(head, response)
        answer = self._answer = Answer(self._flow, None, self._writer, framing)
        answer.head(response, fields)
        answer.chunk(document if head.method != "HEAD" else b"", masked=False)
        answer.end()
        await answer.flush()
        return framing.keep_alive and await self._connection.drop()


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a watch into its events, each with its line break."""
    rest = bytearray()
    async for piece in pieces:
        rest += piece
        start = 0
        while (end := rest.find(b"\n", start)) >= 0:
            yield bytes(rest[start : end + 1])
            start = end + 1
        del rest[:start]
        if len(rest) > LINE_LIMIT:
            raise TargetPeerError("an event of the watch is too large to be masked")
    if rest:
        yield bytes(rest)
