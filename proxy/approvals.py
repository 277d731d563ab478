"""Approvals: a held command becomes a row that is on the disk before anybody hears of it, and waits for a human.

States: pending -> approved | denied | expired | withdrawn. This process alone moves the requests that it waits for,
so a decision wakes its session at once; the row follows (a decision is on the disk before the session learns of
it, the end of a request that nobody approved may come a moment later). What an earlier process left pending ends
when the next one starts: the sessions that waited are gone.

Who decides: any one of the hold's approvers, by subject or as ``group:NAME``, no patterns; never the subject that
asks, in no role and under no spelling, and never an agent: a hold is for a human. An identity is a token's or a
JWT's, or the local operator's (proxy.admin.handlers), never a mere name.

Whoever reads the text may be lied to by its length: what is cut keeps its beginning and its end, and says so. Values
that a statement is bound to stand below it.
Left out: approvals by several people, edited commands, reuse of an approval; notifications (later issues).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import secrets
import time
import unicodedata
from collections.abc import Callable
from typing import Final, Literal

import structlog

from proxy.core.errors import GatecastError
from proxy.core.events import ESTIMATE_FACT, Command
from proxy.core.gate import Decision
from proxy.core.parties import Identity, Target
from proxy.core.text import harmless
from proxy.core.verdict import Hold
from proxy.store import approvals as rows
from proxy.store.approvals import Record, State
from proxy.store.database import Database, StoreError
from recorder.wording import size

DEFAULT_TIMEOUT_SECONDS: Final = 600.0
TIMEOUT_LIMIT_SECONDS: Final = 7 * 86_400.0  # nobody remembers what was asked a week ago
# A conversation of one stream waits for its command; the channels of an SSH connection wait apart (ansible: 5 forks),
# and so do the jobs of one BigQuery session: dbt is run with up to 32 threads.
SESSION_LIMIT: Final = 32
# A person who has 50 things to decide for one agent decides nothing; one agent must not crowd out the others.
SUBJECT_LIMIT: Final = 50
GATEWAY_LIMIT: Final = 1000
# A screenful is 4 KiB; 64 KiB is more than anybody reads, and the tape has all of it.
TEXT_HEAD_LIMIT: Final = 48 * 1024
TEXT_TAIL_LIMIT: Final = 16 * 1024
OBJECTS_LIMIT: Final = 200
INTENT_LIMIT: Final = 4096  # characters of why: what fits a header (proxy/http/serving.py)
WHY_LIMIT: Final = 1000
LIST_LIMIT: Final = 1000
KEEP_SECONDS: Final = 90 * 86_400.0
# The wall clock may be set while we wait, so a long wait looks at it now and then.
LOOK_SECONDS: Final = 30.0

GATE: Final = "gatecast"  # who "decides" where no human was asked
_ID_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648 base 32
_ID_LENGTH: Final = 10

ErrorCode = Literal["unknown", "ended", "not-approver", "own-request", "agent"]

log = structlog.get_logger(__name__)


class ApprovalError(GatecastError):
    """A decision cannot be taken; the text says why, code says it to programs."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Request:
    """A held command that waits (proxy.core.gate.Pending)."""

    def __init__(self, approvals: Approvals, record: Record, hold: Hold, url: str) -> None:
        self._approvals = approvals
        self._changed = asyncio.Event()
        self.record = record
        self.decision: Decision | None = None
        self.settling = False  # a decision is on its way to the disk
        self.hold = hold
        self.url = url

    @property
    def id(self) -> str:
        """The approval's id, as users and approvers see it."""
        return self.record.id

    async def wait(self) -> Decision:
        """Return once it is decided, expired or withdrawn. Cancelling withdraws."""
        try:
            while self.decision is None:
                left = self._approvals.left_seconds(self)
                if left <= 0 and not self.settling:
                    self._approvals.end(self, "expired")
                    continue
                self._changed.clear()
                try:
                    async with asyncio.timeout(min(max(left, 0.0), LOOK_SECONDS) if not self.settling else None):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        except asyncio.CancelledError:
            self.withdraw()
            raise
        return self.decision

    def withdraw(self) -> None:
        """Take the request back; does nothing once it has ended."""
        self._approvals.end(self, "withdrawn")

    def settle(self, decision: Decision) -> None:
        """Set how it ended, once, and wake who waits."""
        assert self.decision is None
        self.decision = decision
        self.wake()

    def wake(self) -> None:
        """Let who waits look again, at the decision and at the clock."""
        self._changed.set()


class Approvals:
    """The gate's Approvals (proxy.core.gate), and what approvers do with them."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        url: str = "",
        default_timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        session_limit: int = SESSION_LIMIT,
        subject_limit: int = SUBJECT_LIMIT,
        gateway_limit: int = GATEWAY_LIMIT,
        on_event: Callable[[Record], None] = lambda record: None,
    ) -> None:
        """url: where an approval is decided, {id} stands for its id. on_event hears of every new state."""
        self._database = database
        self._clock = clock
        self._url = url
        self._default_timeout_seconds = default_timeout_seconds
        self._limits = {"session": session_limit, "subject": subject_limit, "gateway": gateway_limit}
        self._on_event = on_event
        self._process = secrets.token_hex(8)
        self._open: dict[str, Request] = {}

    async def start(self) -> int:
        """End what earlier processes left pending; returns how many. Call once before serving. Raises StoreError.

        Only one process may serve a state directory: the admin socket sees to it.
        """
        now = self._clock()
        ended = await self._database.run(rows.recover(self._process, now))
        await self._database.run(rows.prune(now - KEEP_SECONDS), durable=False)
        if ended:
            log.info("approvals-of-earlier-process-ended", count=ended)
        return ended

    @property
    def process(self) -> str:
        """How the rows name this process, which alone can decide what it waits for."""
        return self._process

    async def abandon(self, process: str) -> None:
        """End what another process of this gateway left pending when it died. Raises StoreError."""
        ended = await self._database.run(rows.abandon(process, self._clock()))
        if ended:
            log.warning("approvals-of-dead-process-ended", count=ended)

    def configure(self, url: str, default_timeout_seconds: float) -> None:
        """Take a new configuration; what waits already keeps its own."""
        self._url = url
        self._default_timeout_seconds = default_timeout_seconds

    def close(self) -> None:
        """Withdraw what still waits: the gate stops."""
        for request in list(self._open.values()):
            self.end(request, "withdrawn")

    # -- the waist's side -----------------------------------------------------------------------------

    async def open(self, session: str, identity: Identity, target: Target, command: Command, hold: Hold) -> Request:
        """Persist a request, then return it.

        One that breaks a limit or cannot be stored comes back denied, and is in no list: that fails closed, and
        the session lives on with its protocol's native error.
        """
        self.expire_due()
        record = self._record(session, identity, target, command, hold)
        request = Request(self, record, hold, self._url.replace("{id}", record.id))
        limit = self._crowd(session, identity)
        if limit:
            return self._crowded(request, limit)
        self._open[record.id] = request
        try:
            limit = await self._database.run(
                rows.insert(record, subject_limit=self._limits["subject"], gateway_limit=self._limits["gateway"])
            )
        except StoreError as error:
            del self._open[record.id]
            log.error("approval-not-opened", why="store", error=str(error), session=session)
            request.settle(Decision("denied", GATE, "the request could not be stored; ask the operator to see the log"))
            return request
        except asyncio.CancelledError:
            self.end(request, "withdrawn")  # queued behind the insert, which still runs
            raise
        if limit:  # with those of the gateway's other processes
            self._open.pop(record.id, None)
            return self._crowded(request, limit)
        self._tell(request.record)
        return request

    def left_seconds(self, request: Request) -> float:
        """Return how long a request may still wait."""
        return request.record.expires - self._clock()

    def end(self, request: Request, state: Literal["expired", "withdrawn"]) -> None:
        """End a request that no human decided; does nothing if it has ended. The row follows at once."""
        if request.decision is not None:
            return
        now = self._clock()
        request.record = _with_end(request.record, state, now)
        self._open.pop(request.id, None)
        request.settle(Decision(state))
        # A decision may be on its way to the disk; it has not been told to anybody, so this one stands.
        was: tuple[State, ...] = ("pending", "approved", "denied") if request.settling else ("pending",)
        try:
            for old in was:
                self._database.submit(rows.settle(request.id, state, now, was=old))
        except StoreError as error:  # a closed store: start() of the next process ends the row
            log.warning("approval-end-not-stored", approval=request.id, error=str(error))
        self._tell(request.record)

    def tick(self) -> None:
        """Let everything that waits look at the clock: for tests, and after the wall clock was set."""
        for request in self._open.values():
            request.wake()

    # -- the approvers' side --------------------------------------------------------------------------

    async def decide(self, approval: str, by: Identity, approve: bool, reason: str = "") -> Record:
        """Approve or deny; the session goes on when it is on the disk. Raises ApprovalError, StoreError."""
        self.expire_due()
        request = self._open.get(approval)
        if request is None:
            raise await self._not_open(approval)
        if request.settling:
            raise ApprovalError("ended", f"{approval} is being decided by somebody else")
        matched = check_approver(request.record, by)
        why = printable_line(reason)[:WHY_LIMIT]
        state: Literal["approved", "denied"] = "approved" if approve else "denied"
        now = self._clock()
        request.settling = True
        writing = asyncio.wrap_future(
            self._database.submit(rows.settle(approval, state, now, by.subject, matched, why))
        )
        decided = _with_end(request.record, state, now, by.subject, matched, why)
        # A callback, so that an approver who hangs up in the middle leaves no half-taken decision.
        writing.add_done_callback(lambda done: self._written(request, decided, done))
        await asyncio.shield(writing)
        if request.record is not decided:  # its user took it back while this was being written
            raise ApprovalError("ended", f"{approval} was withdrawn a moment ago")
        return decided

    def _written(self, request: Request, decided: Record, writing: asyncio.Future[bool]) -> None:
        """Take a decision that is on the disk; one that could not be written was not taken, the request waits on."""
        request.settling = False
        if request.decision is not None:
            return
        if writing.cancelled() or writing.exception() is not None:
            request.wake()
        elif not writing.result():  # the row is gone or has ended: somebody edited the file
            self.end(request, "withdrawn")
        else:
            request.record = decided
            del self._open[request.id]
            request.settle(
                Decision(
                    "approved" if decided.state == "approved" else "denied", decided.decided_by, decided.decided_why
                )
            )
            self._tell(decided)

    async def find(self, approval: str) -> Record:
        """Return one approval. Raises ApprovalError, StoreError."""
        self.expire_due()
        record = await self._database.run(rows.find(approval), durable=False)
        if record is None:
            raise ApprovalError("unknown", "there is no such approval; gatecast approvals list shows them")
        return record

    async def listing(
        self, state: State | None = None, subject: str | None = None, target: str | None = None, limit: int = LIST_LIMIT
    ) -> list[Record]:
        """Return the newest approvals that match. Raises StoreError."""
        self.expire_due()
        return await self._database.run(
            rows.listing(state, subject, target, max(1, min(limit, LIST_LIMIT))), durable=False
        )

    @property
    def waiting(self) -> int:
        """How many requests wait now."""
        return len(self._open)

    # -- inside ---------------------------------------------------------------------------------------

    def _record(self, session: str, identity: Identity, target: Target, command: Command, hold: Hold) -> Record:
        now = self._clock()
        timeout = hold.timeout_seconds if hold.timeout_seconds > 0 else self._default_timeout_seconds
        text = with_values(command)
        full = text.encode("utf-8", "surrogatepass")
        return Record(
            id="ap_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH)),
            process=self._process,
            session=session,
            subject=identity.subject,
            agents=identity.agents,
            issuer=identity.issuer,
            target=target.name,
            database=target.database,
            protocol=command.protocol,
            verb=command.verb,
            kind=command.kind,
            objects=command.objects[:OBJECTS_LIMIT],
            exact=command.exact,
            text=cut(text),
            text_bytes=len(full),
            text_sha256=hashlib.sha256(full).hexdigest(),
            wire_sha256=hashlib.sha256(command.wire).hexdigest(),
            rule=hold.rule,
            reason=hold.reason,
            approvers=hold.approvers,
            created=now,
            expires=now + min(timeout, TIMEOUT_LIMIT_SECONDS),
        )

    def _crowd(self, session: str, identity: Identity) -> str:
        """Say which limit one more request would break by what this process knows, or ''."""
        others = [request.record for request in self._open.values()]
        if sum(record.session == session for record in others) >= self._limits["session"]:
            return "session"
        if sum(record.subject == identity.subject for record in others) >= self._limits["subject"]:
            return "subject"
        return "gateway" if len(others) >= self._limits["gateway"] else ""

    def _crowded(self, request: Request, limit: str) -> Request:
        record = request.record
        crowd = {
            "session": f"{self._limits['session']} commands of this session wait for approval already",
            "subject": f"{self._limits['subject']} commands of {record.subject} wait for approval already",
            "gateway": "too many commands wait for approval at this gateway",
        }[limit]
        log.warning("approval-not-opened", why=crowd, session=record.session, identity=record.subject)
        if request.decision is None:
            request.settle(Decision("denied", GATE, crowd))
        return request

    def expire_due(self) -> None:
        """End what is over, also where nobody waits for it (a BigQuery job that nobody polls)."""
        for request in list(self._open.values()):
            if not request.settling and self.left_seconds(request) <= 0:
                self.end(request, "expired")

    async def _not_open(self, approval: str) -> ApprovalError:
        record = await self._database.run(rows.find(approval), durable=False)
        if record is None:
            return ApprovalError("unknown", "there is no such approval; gatecast approvals list shows them")
        if record.state == "pending":  # another process's, or one whose end is on its way to the disk
            return ApprovalError("ended", f"{approval} does not wait any more")
        by = f" by {record.decided_by}" if record.decided_by else ""
        return ApprovalError("ended", f"{approval} was {record.state}{by} already")

    def _tell(self, record: Record) -> None:
        log.info(
            f"approval-{record.state}",
            approval=record.id,
            session=record.session,
            identity=record.subject,
            target=record.target,
            rule=record.rule,
            by=record.decided_by,
        )
        try:
            self._on_event(record)
        except Exception:  # a listener that fails takes no part in the decision: the request goes its way
            log.exception("approval-listener-failed", approval=record.id)


def check_approver(record: Record, by: Identity) -> str:
    """Return the entry of the approvers that lets this identity decide. Raises ApprovalError."""
    asking = {_folded(name) for name in (record.subject, *record.agents)}
    if _folded(by.subject) in asking:
        raise ApprovalError("own-request", "nobody approves or denies their own request, whatever their role")
    if by.agents:
        raise ApprovalError("agent", f"{by.display} is an agent; this waits for a human")
    for entry in record.approvers:
        group = entry.removeprefix("group:") if entry.startswith("group:") else None
        if (group in by.groups) if group is not None else (entry == by.subject):
            return entry
    approvers = ", ".join(record.approvers) or "nobody"
    raise ApprovalError("not-approver", f"{by.subject} is not among the approvers of rule {record.rule}: {approvers}")


def with_values(command: Command) -> str:
    """Return a command's text and, below it, the values of its parameters, where it has some: they are what it does.

    Last comes why the user says it does this; it is one line, and so cannot look like anything else.
    """
    lines = [command.text]
    values = command.facts.get("values")
    if values:
        lines.append(f"-- with {len(values)} parameters:")
        lines += (
            f"-- ${place} = " + ("NULL" if value is None else f"'{harmless(value)}'")
            for place, value in enumerate(values, 1)
        )
    if ESTIMATE_FACT in command.facts:
        amount, price = command.facts[ESTIMATE_FACT]
        lines.append(f"-- estimate: {size(amount)}, price {price:.2f}")
    if command.why:
        lines.append(f"-- intent: {harmless(command.why[:INTENT_LIMIT])}")
    return "\n".join(lines)


def cut(text: str) -> str:
    """Cut a text for display: its beginning and its end, with a line in between that says so. In characters."""
    text = text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate fits no database
    left_out = len(text) - TEXT_HEAD_LIMIT - TEXT_TAIL_LIMIT
    if left_out <= 0:
        return text
    note = f"\n[... {left_out} characters are left out here; the tape has them ...]\n"
    return text[:TEXT_HEAD_LIMIT] + note + text[-TEXT_TAIL_LIMIT:]


def printable_line(text: str) -> str:
    """Make one printable line of what an approver typed: it goes into errors, tapes and terminals."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _with_end(record: Record, state: State, now: float, by: str = "", matched: str = "", why: str = "") -> Record:
    return dataclasses.replace(record, state=state, decided=now, decided_by=by, decided_as=matched, decided_why=why)
