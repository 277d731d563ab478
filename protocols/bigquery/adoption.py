"""Held jobs that a process of before left: each is taken by one process, and seen to its end.

What still waited for a human is asked for anew: the session that it waited in is gone, so
it waits in a new one, with the same identity and under the rules of now. What had been approved and had not left is
judged by the rules of now as well, and leaves if they would have asked for the same approval. What had left and was not
answered is looked for at the target, by its mark, when its owner asks (running.py).

Nothing else is taken over: a login that has expired, a target that is gone or a request that no longer reads ends it.
Source: bigquery note 7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import structlog

from protocols.bigquery import holds
from protocols.bigquery.commands import command_of, taped
from protocols.bigquery.estimates import Estimate
from protocols.bigquery.facts import KEPT_IDENTITY
from protocols.bigquery.held import Held, send_approved
from protocols.bigquery.requests import Asked, read_request
from protocols.bigquery.running import analysed_by, estimated
from protocols.bigquery.upstream import Upstream
from proxy.core.errors import GatecastError, Refused, TapeError
from proxy.core.gate import Gate
from proxy.core.http.heads import RequestHead
from proxy.core.jobs import Entry
from proxy.core.parties import Identity
from proxy.core.session import Session
from proxy.core.verdict import Given
from proxy.http.answers import outcome
from proxy.http.sessions import Caller, Shared, sessions_of

ADOPT_LIMIT: Final = 100  # jobs taken at a time; other processes take theirs
LOOK_SECONDS: Final = 5.0  # between two looks for jobs of a process that has died

_log = structlog.get_logger(__name__)


async def adopt(gate: Gate) -> None:
    """Take over held jobs, now and as long as the gateway runs. Never raises but CancelledError."""
    while gate.jobs is not None:
        try:
            for entry in await gate.jobs.adopt(ADOPT_LIMIT):
                await _taken(gate, entry)
        except GatecastError as error:
            _log.error("held jobs cannot be taken over", error=str(error))
        await asyncio.sleep(LOOK_SECONDS)


async def _taken(gate: Gate, entry: Entry) -> None:
    assert gate.jobs is not None
    log = _log.bind(job=entry.key.id, target=entry.key.target)
    try:
        identity = identity_of(entry.facts.get(KEPT_IDENTITY))
        target = gate.targets.find(entry.key.target)
        if identity is None or target is None or not gate.identities.valid(identity):
            raise GatecastError("its login has ended, or its target is gone")
        asked = _asked(entry)
        caller = Caller(identity, "", "", "gatecast", str(gate.settings.get("listener", "")))
        leases = sessions_of(gate.shared).lease(caller, target, gate)
        async with leases as (shared, session):
            log.info("held job taken over", session=session.id, state=entry.state)
            shared.spawn(_again(gate, session, shared, entry, asked, log))
            await asyncio.sleep(0)  # it has begun, and keeps the session open
    except (GatecastError, TapeError) as error:
        log.warning("held job ended", reason=str(error))
        reason = f"the gateway was restarted, and {error}"
        await gate.jobs.settle(entry.key, entry.owner, "denied", reason=reason)
    except Exception as error:  # it stays held, and is anybody's again: a process that keeps what it took loses it
        log.error("held jobs cannot be taken over", error=repr(error))
        await gate.jobs.amend(entry.key, entry.owner, process="")


async def _again(gate: Gate, session: Session, shared: Shared, entry: Entry, asked: Asked, log: Any) -> None:
    """Decide anew. What fails here fails closed: the job is denied."""
    assert gate.jobs is not None
    flow = shared.flow()
    try:
        analysis = await analysed_by(gate, asked)
        estimate = Estimate()
        if asked.query is not None:
            estimate = await estimated(gate, session, Upstream(gate, session), asked, analysis)
        data = taped(_head(entry), entry.request)
        command = command_of(asked, analysis, estimate, flow, data)
        left = f"{entry.key.id} was left by a process of before, in the state {entry.state}"
        session.mark("held-job", f"{left}; it was asked for in session {entry.session}")
        held = Held(gate, session, shared, entry, flow, entry.request, log, asked.job_timeout_ms)
        if entry.state == "approved":
            given = Given(entry.approval, entry.rule)
            permit = await session.decide(command, held.taken_back, given=given)
            with shared.lease():
                await send_approved(gate, session, permit, entry, flow, log)
            return
        deciding = shared.spawn(outcome(session.decide(command, held.on_hold)))
        waits: set[asyncio.Future[Any]] = {deciding, held.told}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        await held.follow(deciding)
    except Refused as refused:
        await gate.jobs.settle(entry.key, entry.owner, "denied", rule=refused.deny.rule, reason=refused.deny.reason)
    except Exception as error:  # fails closed: the job is denied, and its session's other work goes on
        log.error("a held job cannot be followed", error=str(error))
        await gate.jobs.settle(entry.key, entry.owner, "denied", reason=f"after a restart of the gateway: {error}")


def _head(entry: Entry) -> RequestHead:
    path = f"/bigquery/v2/projects/{entry.key.project}/jobs"
    return RequestHead("POST", path, (("Content-Type", "application/json"),), length=len(entry.request))


def _asked(entry: Entry) -> Asked:
    """Read the stored request anew, and see that it is the one that was asked for. Raises GatecastError."""
    asked = read_request(_head(entry), entry.request)
    if holds.digest(entry.key.target, asked.project, asked.location, asked.body or {}) != entry.digest:
        raise GatecastError("its stored request was changed")
    return asked


def identity_of(value: object) -> Identity | None:
    """Return the identity that is kept with a held job."""
    if not isinstance(value, Mapping):
        return None
    subject, expires = value.get("subject"), value.get("expires_at")
    if not isinstance(subject, str) or not isinstance(expires, int | float | None):
        return None
    return Identity(
        subject,
        frozenset(map(str, value.get("groups") or ())),
        tuple(map(str, value.get("agents") or ())),
        str(value.get("issuer") or ""),
        str(value.get("proof") or ""),
        expires,
    )
