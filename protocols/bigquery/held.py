"""A job that waits for a human: the decision as work of the session, beyond the request that asked for it.

While it waits, the registry has the request, and polls are answered from there (polling.py). What ends it, in whichever
process: a decision; the owner's cancel, or the job's own time, which take the approval back; the end of its session.
When the gateway stops, it stays held, and the next process asks again (adoption.py).

Approved, it leaves as jobs.insert under its id, made of the request that was approved, and of nothing else. An insert
under an id can be repeated; where the target cannot be reached for a while, it is.

Source: bigquery note 6 and 7.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from protocols.bigquery import errors, holds
from protocols.bigquery.bodies import decoded, write_object
from protocols.bigquery.estimates import label
from protocols.bigquery.facts import KEPT_IDENTITY
from protocols.bigquery.ownership import SESSION_LABEL, USER_LABEL, learned, named, ours
from protocols.bigquery.pages import PAGE_LIMIT, mask_errors
from protocols.bigquery.results import result_of
from protocols.bigquery.upstream import ANSWER_SECONDS, JSON, LATE, Upstream
from proxy.core.errors import GatecastError, Refused, TargetPeerError
from proxy.core.gate import Gate, Pending
from proxy.core.http.heads import BadRequest
from proxy.core.jobs import REPLY_LIMIT, REQUEST_LIMIT, Entry, Jobs
from proxy.core.session import Permit, Session
from proxy.http.sessions import Shared, identity_map

WATCH_SECONDS: Final = 60.0  # between two looks at a held job, which a change ends earlier
ATTEMPTS: Final = 4  # to send an approved job
PAUSE_SECONDS: Final = 1.0  # before the second attempt; twice as long before each further one
OWN_TIME: Final = "the job's own time (jobTimeoutMs) was over while it waited"


class Held:
    """One job that may be held. entry: as claimed; request: the jobs.insert that will leave, with our limits."""

    def __init__(
        self,
        gate: Gate,
        session: Session,
        shared: Shared,
        entry: Entry,
        flow: int,
        request: bytes,
        log: Any,
        job_timeout_ms: int | None,
    ) -> None:
        self._gate = gate
        self._session = session
        self._shared = shared
        self._entry = entry
        self._flow = flow
        self._request = request
        self._job_timeout_ms = job_timeout_ms
        self._log = log
        self._pending: Pending | None = None
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # it is held, and written down
        self.begun = False  # somebody is asked already: who leaves now leaves a held job behind
        self.failure: BadRequest | None = None  # why it cannot be

    @property
    def _jobs(self) -> Jobs:
        assert self._gate.jobs is not None, "a held job without a registry"
        return self._gate.jobs

    async def on_hold(self, pending: Pending) -> None:
        """Write the hold down: from now on polls are answered."""
        self.begun = True
        self._log.info("request held", approval=pending.id, rule=pending.hold.rule)
        if len(self._request) > REQUEST_LIMIT:
            self.failure = BadRequest(413, f"gatecast: a request over {REQUEST_LIMIT} bytes cannot wait for a human")
            pending.withdraw()
            return
        entry, jobs, identity = self._entry, self._jobs, self._session.identity
        kept = {**identity_map(identity), "expires_at": identity.expires_at}
        changes: dict[str, Any] = {
            "rule": pending.hold.rule,
            "masks": pending.hold.masks,
            "approval": pending.id,
            "request": self._request,
            "facts": {**entry.facts, KEPT_IDENTITY: kept},
            "deadline": holds.deadline(self._gate.clock(), pending.hold.timeout_seconds, self._job_timeout_ms),
        }
        if entry.state == "claimed":
            await jobs.claim(entry)  # a jobs.query has no id before it is held; of an insert it is ours already
            found = await jobs.settle(entry.key, entry.owner, "held", **changes)
        else:  # left by a process of before: it is asked for again, and its own time goes on
            changes["deadline"] = entry.deadline
            found = await jobs.amend(entry.key, entry.owner, **changes)
        if found is None:
            self.failure = BadRequest(409, "gatecast: the job could not be held; send it again")
            pending.withdraw()
            return
        self._entry = found
        self._pending = pending
        self.told.set_result(None)

    async def taken_back(self, pending: Pending) -> None:
        """For what was approved before a restart: rules that ask for another approval now get none."""
        pending.withdraw()

    async def follow(self, deciding: asyncio.Task[Permit | Exception]) -> None:
        """See a held job to its end. Never raises but CancelledError: then the gateway stops, or its session ends."""
        try:
            await self._follow(deciding)
        except asyncio.CancelledError:
            if not self._gate.residents.stopping.is_set():
                await asyncio.shield(self._ended(f"its session has ended: {self._shared.reason}"))
            raise
        except Exception as error:  # fails closed: what cannot be followed ends, or is looked for at the target
            self._log.error("a held job cannot be followed", error=str(error), job=self._entry.key.id)
            await self._ended("it could not be followed by the gateway; send it again")

    async def _ended(self, reason: str) -> None:
        """Nobody looks after the job any more: it is stopped, or, where it may have left, unsure."""
        key, owner = self._entry.key, self._entry.owner
        with contextlib.suppress(GatecastError):  # a registry that fails: the next process takes the job over
            if await self._jobs.settle(key, owner, "stopped", reason=reason) is None:
                await self._jobs.amend(key, owner, process="")

    async def _follow(self, deciding: asyncio.Task[Permit | Exception]) -> None:
        waits: set[asyncio.Future[Any]] = {deciding, self.told}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        entry = self._entry
        if not self.told.done() and entry.state == "claimed":  # it could not be written down, and nobody is told why
            await self._jobs.forget(entry.key, entry.owner)
            return
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            try:
                decided = await deciding
            finally:
                watching.cancel()
                if not deciding.done():
                    deciding.cancel()
        if isinstance(decided, Permit):
            with self._shared.lease():
                await self._release(decided)
        elif isinstance(decided, Refused):
            # What its owner has stopped stays so: the registry moves it once.
            state: Any = "stopped" if decided.withdrawn else "denied"
            await self._jobs.settle(entry.key, entry.owner, state, rule=decided.deny.rule, reason=decided.deny.reason)
            self._log.info("held job refused", rule=decided.deny.rule, job=entry.key.id)
        else:
            await self._jobs.settle(
                entry.key, entry.owner, "denied", reason="it could not be decided on; send it again"
            )
            self._log.error("a held job could not be decided", error=str(decided), job=entry.key.id)

    async def _watch(self) -> None:
        """Take the approval back when the job was cancelled, in any process, or its own time is over."""
        entry = self._entry
        while True:
            left = WATCH_SECONDS
            if entry.deadline is not None:
                left = min(left, entry.deadline - self._gate.clock())
            found = await self._jobs.wait(entry.key, entry.owner, max(left, 0.0))
            if found is not None and found.state == "held":
                if entry.deadline is None or self._gate.clock() < entry.deadline or not self._job_timeout_ms:
                    await asyncio.sleep(0.05 if left <= 0 else 0.0)  # the approval ends by itself
                    continue
                await self._jobs.settle(entry.key, entry.owner, "stopped", reason=OWN_TIME)
            elif found is not None and found.state != "stopped":
                return
            if self._pending is not None:
                self._pending.withdraw()
            return

    # -- after the approval ---------------------------------------------------------------------------

    async def _release(self, permit: Permit) -> None:
        """Send what was approved. Everything about it is on the tape and in the registry before it leaves."""
        jobs, key, owner = self._jobs, self._entry.key, self._entry.owner
        entry = await jobs.settle(key, owner, "approved", rule=permit.rule, masks=permit.masks)
        if entry is None:
            self._session.mark("held-job", f"{key.id} was taken back as it was approved")
            return
        await send_approved(self._gate, self._session, permit, entry, self._flow, self._log)


async def send_approved(gate: Gate, session: Session, permit: Permit, entry: Entry, flow: int, log: Any) -> None:
    """Send an approved job, and note what became of it. Raises TapeError."""
    jobs = gate.jobs
    assert jobs is not None
    key, owner = entry.key, entry.owner
    body = holds.released(entry, labels_of(session))
    if body is None:
        await jobs.settle(key, owner, "denied", reason="its stored request was changed while it waited")
        log.error("a held job was changed while it waited", job=key.id)
        return
    sent = await jobs.settle(key, owner, "sent", rule=permit.rule, masks=permit.masks)
    if sent is None:
        return
    sent = replace(sent, mark=entry.mark)
    request = write_object(body)
    try:
        status, answer = await _sent(Upstream(gate, session), permit, sent, flow, request)
    except TargetPeerError as error:
        log.warning("target failed", error=str(error))
        session.mark("target-error", str(error))
        text = f"gatecast: the job was approved, and the target could not be reached: {error}"
        status, answer = 503, errors.failure(503, text)
    job = decoded(answer) if status == 200 else None
    status, told = _told(gate, permit, status, answer)
    session.result(permit, result_of("jobs.insert", status, told, True, len(told), len(request), flow))
    if job is None:
        await jobs.settle(key, owner, "failed", reply_status=status, reply=told[:REPLY_LIMIT])
    else:
        await settle_open(jobs, sent, job)


def _told(gate: Gate, permit: Permit, status: int, answer: bytes) -> tuple[int, bytes]:
    """The target's answer as the tape and its user may have it: what its errors quote goes through the masks."""
    if not permit.masks or not answer.strip():
        return status, answer
    try:
        return status, mask_errors(answer, lambda fields: gate.masker.remark(permit.masks, fields))
    except TargetPeerError as error:
        return 503, errors.failure(503, f"gatecast: {error}")


async def _sent(upstream: Upstream, permit: Permit, entry: Entry, flow: int, body: bytes) -> tuple[int, bytes]:
    """Send an insert, again where no answer came; 409 is our own first attempt, if the job bears our mark."""
    path = f"/bigquery/v2/projects/{quote(entry.key.project, safe=':')}/jobs?prettyPrint=false"
    fields = (("Accept", JSON), ("Content-Type", JSON))
    for attempt in range(ATTEMPTS):
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                upstream.send(permit, flow, "POST", path, fields, body, True) as (link, response),
            ):
                status, answer = response.status, await link.connection.body(PAGE_LIMIT)
        except (TargetPeerError, TimeoutError) as error:
            if attempt == ATTEMPTS - 1:
                raise TargetPeerError(str(error) or LATE) from error
            await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
            continue
        if status == 409:
            found = await look(upstream, entry)
            return (status, answer) if found is None else (200, write_object(found))
        return status, answer
    raise AssertionError("unreachable")


def labels_of(session: Session) -> dict[str, str]:
    """What the cloud's own audit log finds our tape by."""
    return {SESSION_LABEL: label(session.id), USER_LABEL: label(session.identity.subject)}


async def settle_open(jobs: Jobs, entry: Entry, job: Mapping[str, Any]) -> None:
    """The target has the job: note that, and the ids that it names."""
    await jobs.settle(entry.key, entry.owner, "open", **learned(job))
    beside = named(job, entry)
    if beside:
        await jobs.add(beside)


async def look(upstream: Upstream, entry: Entry) -> dict[str, Any] | None:
    """Return the job of an entry as the target has it, None where there is none that is ours.

    Raises TargetPeerError: also where the target does not tell.
    """
    project, name = quote(entry.key.project, safe=":"), quote(entry.key.id)
    place = f"location={quote(entry.key.location)}&" if entry.key.location else ""
    status, body = await upstream.ask("GET", f"/bigquery/v2/projects/{project}/jobs/{name}?{place}prettyPrint=false")
    if status not in (200, 404):
        raise TargetPeerError(f"the target does not tell whether it has the job: {status}")
    found = decoded(body) if status == 200 else None
    return found if found is not None and ours(found, entry) else None
