"""Requests about a job that is there: its state, its rows, its end. They are its owner's alone.

What is not the caller's gets what an unknown id gets, without a look at the target. A job that waits for a human, or
ended before it left, is answered from the registry (holds.py); one that the target has is asked for there, and rides on
the permit that it was made under: a command of kind session, with the masks of then. So a rule that was taken away ends
it by its identity or a sweeping deny, and not by what the rule for its SQL says today.

Source: bigquery note 6 and 7; reference of jobs.get, getQueryResults, cancel, delete, list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from protocols.bigquery import holds
from protocols.bigquery.bodies import decoded, encoded
from protocols.bigquery.commands import poll_of, taped
from protocols.bigquery.errors import document
from protocols.bigquery.held import look, settle_open
from protocols.bigquery.holds import Kept, Reply
from protocols.bigquery.ownership import (
    Failure,
    children,
    job_key,
    learned,
    listed,
    named,
    not_found,
    own_list,
    shown,
)
from protocols.bigquery.pages import mask_errors
from protocols.bigquery.paging import masked_result
from protocols.bigquery.requests import LOCATION, Asked
from protocols.bigquery.turn import Missing, Turn
from proxy.core.http.heads import ResponseHead
from proxy.core.jobs import ENDED, Entry, Key
from proxy.core.session import Permit

LIST_LIMIT: Final = 1000  # jobs of one page: the service's own maximum. Source: jobs.list, maxResults
_FORGOTTEN: Final = frozenset({404, 410})


async def entry_of(turn: Turn, asked: Asked) -> Entry:
    """Return what is known of the job of a request. Raises Missing."""
    key = job_key(turn.target_name, asked.project, asked.id("job"), asked.location)
    found = await turn.jobs.find(key, turn.owner) if key.sane else None
    if found is None:
        raise Missing(not_found("Job", asked.project, asked.id("job"), asked.location))
    return found


async def serve_job(turn: Turn, asked: Asked) -> bool:
    """Serve jobs.get, getQueryResults, cancel or delete of one job. Raises Missing, Refused."""
    entry = await entry_of(turn, asked)
    asked = _placed(asked, entry)
    command = poll_of(asked, f"{entry.key.project}:{entry.key.id}", turn.flow, taped(turn.head, b""), _verb(asked))
    permit = await turn.decide(command, entry.masks)
    entry = await _sought(turn, entry)
    match asked.method.name:
        case "jobs.get":
            answer = holds.get_job(entry)
        case "jobs.getQueryResults":
            entry = await _waited(turn, asked, entry)
            answer = holds.get_results(entry)
        case "jobs.cancel":
            entry = await turn.jobs.settle(entry.key, turn.owner, "stopped", reason="") or entry
            answer = holds.cancel(entry)
        case _:
            answer = holds.delete(entry)
    if answer is not None:
        done = await tell(turn, asked, permit, answer)
        if asked.method.name == "jobs.delete" and isinstance(answer, Reply):
            await turn.jobs.forget(entry.key, turn.owner)
        return done
    return await _of_target(turn, asked, permit, entry)


def _placed(asked: Asked, entry: Entry) -> Asked:
    """Name the job's place, where the request does not: elsewhere, a job of the same id may be somebody else's."""
    if asked.location or not entry.key.location or not LOCATION.fullmatch(entry.key.location):
        return asked
    pairs = [pair for pair in asked.parameters.pairs if pair[0] != "location"]
    parameters = replace(asked.parameters, pairs=(*pairs, ("location", entry.key.location)))
    return replace(asked, parameters=parameters, location=entry.key.location)


async def _sought(turn: Turn, entry: Entry) -> Entry:
    """Look for a job that has left and was not answered: its process has died, or could not write the answer down.

    One that never came to the target is forgotten; clients send it again when they are told so. Raises Missing.
    """
    if entry.state != "sent":
        return entry
    job = await look(turn.upstream, entry)
    if job is not None:
        await settle_open(turn.jobs, entry, job)
        return await turn.jobs.find(entry.key, turn.owner) or entry
    if holds.unsure(entry):
        await turn.jobs.forget(entry.key, turn.owner)
        raise Missing(not_found("Job", entry.key.project, entry.key.id, entry.key.location))
    return entry


def _verb(asked: Asked) -> str:
    return "cancel" if asked.method.name in ("jobs.cancel", "jobs.delete") else "poll"


async def _waited(turn: Turn, asked: Asked, entry: Entry) -> Entry:
    """A question for a result waits as long as the service would make it wait."""
    if entry.state in ("open", "failed") or entry.state in ENDED:
        return entry
    timeout = asked.parameters.get("timeoutMs")
    seconds = holds.poll_seconds(int(timeout) if timeout else None)
    return await turn.jobs.wait(entry.key, turn.owner, seconds) or entry


async def tell(turn: Turn, asked: Asked, permit: Permit | None, answer: holds.Answer) -> bool:
    """Give an answer of the registry's to the user."""
    match answer:
        case Failure():
            status, body = answer.status, document(answer.status, answer.reason, answer.message)
        case Kept():
            status, body = answer.status, answer.body
        case Reply():
            status, body = answer.status, encoded(answer.document)
    fields = (("Content-Type", "application/json; charset=UTF-8"),)
    return await turn.reply(asked, permit, ResponseHead(status, "", fields, length=len(body)), body)


async def _of_target(turn: Turn, asked: Asked, permit: Permit, entry: Entry) -> bool:
    name = asked.method.name
    if name == "jobs.getQueryResults":
        if not permit.masks:
            return await turn.pass_on(asked, permit, safe=True)
        response, body = await turn.whole(asked, permit, b"", safe=True)
        masked = None
        if response.status == 200:
            masked = await masked_result(turn, permit, asked, body, entry.facts, entry.schema)
        return await turn.reply(asked, permit, response, body, masked=masked)
    response, body = await turn.whole(asked, permit, b"", safe=True)
    if name == "jobs.delete":
        if response.status < 300 or response.status in _FORGOTTEN:
            await turn.jobs.forget(entry.key, turn.owner)
        return await turn.reply(asked, permit, response, body)
    found = decoded(body) if response.status == 200 else None
    if found is not None:
        job = found.get("job") if name == "jobs.cancel" else found
        if isinstance(job, dict):
            await learn(turn, entry, job)
            seen = shown(job, turn.owner)
            body = encoded({**found, "job": seen} if name == "jobs.cancel" else seen)
            body = masked_errors(turn, permit, body)
    return await turn.reply(asked, permit, response, body)


def masked_errors(turn: Turn, permit: Permit, body: bytes) -> bytes:
    """What a job's own errors quote goes through the masks, whatever the status of the answer."""
    remark = turn.remark(permit)
    return body if remark is None else mask_errors(body, remark)


async def learn(turn: Turn, entry: Entry, answer: Mapping[str, Any]) -> None:
    """Note what an answer says of a job: ids that it names, schema, place. Before the user sees it."""
    changes = {key: value for key, value in learned(answer).items() if getattr(entry, key, None) != value}
    changes.pop("location", None)  # of the key: narrowed when the job was settled
    if entry.schema is not None:
        changes.pop("schema", None)
    if changes:
        await turn.jobs.amend(entry.key, turn.owner, **changes)
    beside = named(answer, entry)
    if beside:
        await turn.jobs.add(beside)


# -- the list -------------------------------------------------------------------------------------------


async def serve_list(turn: Turn, asked: Asked, permit: Permit) -> bool:
    """Serve jobs.list: the caller's own jobs, whatever all users of the account see there; children of a script too."""
    parent: Entry | None = None
    if name := asked.parameters.get("parentJobId"):
        parent = await turn.jobs.find(Key(turn.target_name, "job", asked.project, name), turn.owner)
        if parent is None:
            raise Missing(not_found("Job", asked.project, name))
    response, body = await turn.whole(asked, permit, b"", safe=True)
    found = decoded(body) if response.status == 200 else None
    if found is not None:
        if parent is not None:
            await turn.jobs.add(children(found, parent))
        owned = await turn.jobs.owned(turn.owner, turn.target_name, asked.project, listed(found))
        before: list[dict[str, Any]] = []
        if parent is None and not asked.parameters.get("pageToken"):
            waiting = await turn.jobs.waiting(turn.owner, turn.target_name, asked.project)
            states = {each.lower() for key, each in asked.parameters.pairs if key == "stateFilter"}
            before = [job for job in map(_as_listed, waiting) if not states or _state(job) in states]
        body = masked_errors(turn, permit, encoded(own_list(found, owned, turn.owner, before[:LIST_LIMIT])))
    return await turn.reply(asked, permit, replace(response, length=len(body)), body)


def _as_listed(entry: Entry) -> dict[str, Any]:
    job = holds.job(entry)
    state = job["status"]["state"]
    error = job["status"].get("errorResult")
    return {**job, "kind": "bigquery#job", "state": state} | ({"errorResult": error} if error else {})


def _state(job: Mapping[str, Any]) -> str:
    return str(job.get("state", "")).lower()
