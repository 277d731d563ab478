"""One request in its session: what every kind of request needs of the waist, the registry, the target and the user.

decide() waits where a command is held, with the user's connection open: so it is with requests that make no job (jobs
have running.py). pass_on() streams an answer as it comes; whole() reads one, and reply() gives it to the user, its rows
through the masks. What is masked is masked before it is on the tape.

Answers are asked for unpacked: the tape is to be read by people, and masks read it too.
Source: bigquery note 6, 7, 8 and 9; RFC 9110 15.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

from protocols.bigquery import errors
from protocols.bigquery.ownership import Failure, hidden, not_found, table_key
from protocols.bigquery.pages import ERRORS_LIMIT, PAGE_LIMIT, mask_errors
from protocols.bigquery.parameters import forwarded
from protocols.bigquery.requests import Asked
from protocols.bigquery.results import job_name, result_of, with_content
from protocols.bigquery.upstream import JSON, Lost, Upstream
from proxy.core.errors import Refused, TapeError, TargetPeerError, UserPeerError
from proxy.core.events import CellMask, Column, Command, RemarkFields, Result
from proxy.core.gate import Gate, Pending
from proxy.core.http.framing import Framing
from proxy.core.http.heads import BadRequest, Fields, RequestHead, ResponseHead, without
from proxy.core.http.server import UserConnection
from proxy.core.jobs import Entry, Jobs, Owner, owner_of
from proxy.core.session import Permit, Session
from proxy.core.stream import Stream
from proxy.core.verdict import Mask
from proxy.core.writers import UserWriter
from proxy.http.answers import Answer, Ended, Pieces
from proxy.http.sessions import Shared

# Fields of the target's answers that users get. Location is rewritten where it comes (uploads.py).
_BACK: Final = frozenset({"content-type", "etag", "date", "cache-control", "vary", "retry-after", "range", "expires"})
_UNPACKED: Final = frozenset({"accept-encoding"})
RESULT_BYTES: Final = 256 * 1024  # of an answer, read for its RESULT; a page's first rows are in it
THREAD_BYTES: Final = 256 * 1024  # a page above it is masked in a thread: bigquery note 9


@dataclass(frozen=True, slots=True)
class Masked:
    """How the rows of an answer are masked: its columns, and what rewrites it."""

    columns: tuple[Column, ...]
    rewrite: Callable[[bytes, Sequence[CellMask | None] | None], bytes]


class Turn:
    """One request of a user; see the module."""

    def __init__(
        self,
        connection: UserConnection,
        user: Stream,
        session: Session,
        shared: Shared,
        gate: Gate,
        log: Any,
        root: str,
    ) -> None:
        self.connection = connection
        self.session = session
        self.shared = shared
        self.gate = gate
        self.log = log
        self.root = root  # the gate's address as the user has it, with the target's path where it named one
        self.flow = shared.flow()
        self.owner: Owner = owner_of(session.identity)
        self.upstream = Upstream(gate, session)
        self.head = RequestHead("GET", "/", ())
        self.body = b""  # of the request, as it came
        self.content: tuple[int, str] | None = None  # size and SHA-256 of data that the request brought
        self._writer = UserWriter(user, session)
        self._answer: Answer | None = None
        self._pending: Pending | None = None

    @property
    def jobs(self) -> Jobs:
        """The registry. Raises TargetPeerError where a gate has none."""
        if self.gate.jobs is None:
            raise TargetPeerError("this gateway keeps no registry of jobs")
        return self.gate.jobs

    @property
    def target_name(self) -> str:
        """The target's name, as the registry's keys have it."""
        return self.session.target.name

    @property
    def said(self) -> bool:
        """Whether something of the answer is on its way to the user."""
        return self._answer is not None and self._answer.begun

    @property
    def passed(self) -> bool:
        """Whether the request is, to the target."""
        return self.upstream.passed

    def withdraw(self) -> bool:
        """Take back what is held for a human with the user's connection open; returns whether anything was."""
        if self._pending is None:
            return False
        self._pending.withdraw()
        return True

    # -- towards the target ---------------------------------------------------------------------------

    async def decide(self, command: Command, masks: tuple[Mask, ...] = ()) -> Permit:
        """Return leave for a command; where it is held, wait. Raises Refused, TapeError."""
        try:
            return await self.session.decide(command, self._on_hold, masks=masks)
        finally:
            self._pending = None

    async def refuse_early(self, command: Command) -> None:
        """Refuse what is refused anyhow, before the registry or the target tells whether an id or a table is there.

        Raises Refused, TapeError.
        """
        if await self.session.would_refuse(command):
            await self.decide(command)
            raise BadRequest(503, "gatecast: the rules changed a moment ago; send it again")

    async def _on_hold(self, pending: Pending) -> None:
        self.log.info("request held", approval=pending.id, rule=pending.hold.rule)
        self._pending = pending

    def fields(self, permit: Permit, asked: Asked) -> Fields:
        """The user's fields that go to the target."""
        fields = without(forwarded(self.head, bool(permit.masks)), _UNPACKED)
        return (*fields, ("Content-Type", JSON)) if asked.body is not None else fields

    async def owned_table(self, asked: Asked, project: str, dataset: str, table: str) -> Entry | None:
        """Return what is known of a table that only its owner may see, None of any other. Raises Missing."""
        if not hidden(dataset):
            return None
        found = (
            await self.jobs.find(table_key(self.target_name, project, dataset, table), self.owner) if table else None
        )
        if found is None:
            raise Missing(
                not_found("Table" if table else "Dataset", project, f"{dataset}.{table}" if table else dataset)
            )
        return found

    async def pass_on(self, asked: Asked, permit: Permit, safe: bool) -> bool:
        """Send a request and give its answer to the user as it comes; errors go through the masks."""
        sending = self.upstream.send(
            permit, self.flow, asked.method.http, asked.target(), self.fields(permit, asked), asked.wire(), safe
        )
        async with sending as (link, response):
            if permit.masks and response.status >= 400:
                body = await link.connection.body(ERRORS_LIMIT)
                return await self.reply(asked, permit, response, body, sent=len(asked.wire()))
            framing = Framing(self.head, response)
            answer = self._answer = Answer(self.flow, permit, self._writer, framing)
            answer.head(self._said(response), self._back(response))
            try:
                async for piece in Pieces(link.connection, answer):
                    answer.chunk(piece, masked=False)
                answer.end()
            except TargetPeerError as error:
                details = {"flow": self.flow, "status": response.status}
                self.session.result(permit, Result("broken off", details=details))
                raise Ended(str(error)) from error
            return await self._over(asked, permit, response, answer, framing, len(asked.wire()))

    async def whole(
        self, asked: Asked, permit: Permit, body: bytes, *, safe: bool, target: str = "", fields: Fields | None = None
    ) -> tuple[ResponseHead, bytes]:
        """Send a request, and read its whole answer. Raises TargetPeerError, TapeError."""
        given = self.fields(permit, asked) if fields is None else fields
        place = target or asked.target()
        async with self.upstream.send(permit, self.flow, asked.method.http, place, given, body, safe) as (link, head):
            try:
                return head, await link.connection.body(PAGE_LIMIT)
            except TargetPeerError as error:
                if asked.method.http == "GET":
                    raise
                raise Lost(str(error)) from error  # it may have been done, whatever is missing of the answer

    # -- towards the user -----------------------------------------------------------------------------

    def remark(self, permit: Permit) -> Callable[[RemarkFields], RemarkFields] | None:
        """What masks make of errors, None where there are no masks."""
        masks = permit.masks
        return (lambda fields: self.gate.masker.remark(masks, fields)) if masks else None

    async def reply(
        self,
        asked: Asked,
        permit: Permit | None,
        response: ResponseHead,
        body: bytes,
        *,
        masked: Masked | None = None,
        more: Fields = (),
        sent: int = 0,
    ) -> bool:
        """Give an answer to the user that was read whole, or is the gate's own; returns whether another can follow."""
        if permit is not None and permit.masks and response.status >= 400:
            remark = self.remark(permit)
            body = mask_errors(body, remark) if remark is not None and body.strip() else body
        rows: Callable[[Sequence[CellMask | None]], bytes] | None = None
        if masked is not None and permit is not None and permit.masks:
            plan = self.gate.masker.plan(permit.masks, permit.command, masked.columns)
            cells = None if plan is None else plan.cells
            big = len(body) > THREAD_BYTES
            rewritten = await asyncio.to_thread(masked.rewrite, body, cells) if big else masked.rewrite(body, cells)
            # Where no mask speaks of any column, the waist would take the rows as they came; errors are masked still.
            body, rows = (rewritten, None) if plan is None else (body, lambda cells: rewritten)
        framing = Framing(self.head, replace(response, length=len(body)), rewritten=rows is not None)
        answer = self._answer = Answer(self.flow, permit, self._writer, framing)
        answer.head(self._said(response), (*self._back(response), *more))
        if self.head.method == "HEAD":
            pass
        elif rows is not None and masked is not None:
            answer.rows(body, masked.columns, rows)
        else:
            answer.chunk(body, masked=False)
        answer.end()
        return await self._over(asked, permit, response, answer, framing, sent)

    async def _over(
        self, asked: Asked, permit: Permit | None, response: ResponseHead, answer: Answer, framing: Framing, sent: int
    ) -> bool:
        if permit is not None:
            shown = bytes(answer.shown[:RESULT_BYTES])
            whole = len(shown) == answer.size_bytes
            job = job_name(asked.project, asked.location, asked.id("job")) if asked.id("job") else ""
            kind = response.get("content-type") or ""
            result = result_of(
                asked.method.name, response.status, shown, whole, answer.size_bytes, sent, self.flow,
                content_type=kind, job=job,
            )  # fmt: skip
            self.session.result(permit, result if self.content is None else with_content(result, *self.content))
        await answer.flush()
        return framing.keep_alive and await self.connection.drop()

    async def say(self, code: int, document: bytes, more: Fields = ()) -> bool:
        """Answer in the gate's own words; returns whether the connection can take another request."""
        fields: Fields = (("Content-Type", f"{JSON}; charset=UTF-8"), *more)
        response = ResponseHead(code, _phrase(code), fields, length=len(document))
        framing = Framing(self.head, response)
        answer = self._answer = Answer(self.flow, None, self._writer, framing)
        answer.head(response, fields)
        if self.head.method != "HEAD":
            answer.chunk(document, masked=False)
        answer.end()
        await answer.flush()
        return framing.keep_alive and await self.connection.drop()

    async def fail(self, failure: Failure) -> bool:
        """Answer with an error."""
        return await self.say(failure.status, errors.document(failure.status, failure.reason, failure.message))

    async def refuse(self, refused: Refused) -> bool:
        """Answer to a command without a permit."""
        self.log.info("request refused", rule=refused.deny.rule)
        return await self.say(403, errors.denial(refused))

    def cut_short(self, permit: Permit) -> None:
        """Tape that the user has left, or that the session is over."""
        size = self._answer.size_bytes if self._answer is not None else 0
        with contextlib.suppress(TapeError):  # where nothing can be taped, that is why it ends
            self.session.result(permit, Result("ended early", size_bytes=size, details={"flow": self.flow}))

    def _said(self, response: ResponseHead) -> ResponseHead:
        """An answer's head without what the target says there in words."""
        return replace(response, reason=_phrase(response.status))

    def _back(self, response: ResponseHead) -> Fields:
        return tuple(field for field in response.fields if field[0].lower() in _BACK)


class Missing(Exception):
    """An id of the request is not the caller's, or nobody's; failure: what the user is told."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


# What ends a turn that has begun at the target.
CUT: Final = (UserPeerError, asyncio.CancelledError)


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return ""


def check_format(asked: Asked, permit: Permit) -> None:
    """Refuse rows in a form that masks do not read. Raises BadRequest."""
    if permit.masks and asked.results_format.upper() not in ("", "JSON", "QUERY_RESULTS_FORMAT_UNSPECIFIED"):
        raise BadRequest(400, "gatecast: masks apply, so rows come as JSON (queryResultsFormat)")
