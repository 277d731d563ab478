"""Whose an id of BigQuery's is: the keys of the registry (proxy/core/jobs.py), and what answers say of them.

All users of a target share its service account, so the service shows each of them everyone's jobs, cached results,
sessions and uploads. The gate shows an id to its owner alone: an id that the caller does not own gets not_found(),
made of the request's own words, with no look at the target; so it reads as an unknown one does, to the byte.

A job is known to be ours by a mark: a random label under which it was sent. Where the answer to an insert was lost, or
was 409, the job of that id counts as ours only if it carries the mark.

requestId is the caller's own word too, and the service answers equal requests of one account with one job: so each
owner's ids are made different on their way (request_id).

Whoever sends a request has looked up every id in it first: a session that it names, a table of a hidden dataset that it
reads or writes. A destination that the request itself has chosen is not learned from the answer (CHOSEN): else a
query that names somebody's result as its destination would make it the asker's.

Left out: children of a script before their list was asked for (jobs.list, parentJobId): they are unknown until then.
Source: BigQuery note 6; BigQuery REST v2 reference: Job, JobReference, QueryResponse, GetQueryResultsResponse;
Storage API: names of ReadSession and ReadStream.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from proxy.core.jobs import ID_LIMIT, Entry, Key, Owner

# Labels of the gate's own, by which the cloud's audit log leads back to a tape; users do not see them on their jobs.
SESSION_LABEL: Final = "gatecast-session"
USER_LABEL: Final = "gatecast-user"
MARK_LABEL: Final = "gatecast-mark"  # a label's key: lower-case letters, digits, - and _, at most 63
CHOSEN: Final = "destination_chosen"  # in Entry.facts: the request had a destinationTable
_OWN_LABELS: Final = frozenset({MARK_LABEL, SESSION_LABEL, USER_LABEL})
_IDENTITY_FIELDS: Final = ("user_email", "principal_subject")  # of a Job: the service account's
_SESSION_NAME: Final = re.compile(r"(projects/([^/\s]+)/locations/([^/\s]+)/sessions/[^/\s]+)(/streams/[^/\s]+)?")
_JOB_STREAM: Final = re.compile(r"projects/([^/\s]+)/locations/([^/\s]+)/jobs/([^/\s]+)/streams/[^/\s]+")

Repeat = Literal["same", "changed", "taken"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error for the user, to be written by errors.py: HTTP status, BigQuery's word for the reason, and the text."""

    status: int
    reason: str
    message: str


# -- keys -----------------------------------------------------------------------------------------------


def job_key(target: str, project: str, job: str, location: str = "") -> Key:
    """The key of a job. location: as the request has it, "" where it has none."""
    return Key(target, "job", project, job, location)


def table_key(target: str, project: str, dataset: str, table: str) -> Key:
    """The key of a table that only its owner may see; see hidden()."""
    return Key(target, "table", project, f"{dataset}.{table}")


def hidden(dataset: str) -> bool:
    """Whether tables of a dataset are somebody's own: of an anonymous one, where results lie, a session's, a script's.

    Names of users' datasets may begin with "_" as well, which hides them from lists; they are treated alike.
    Source: BigQuery docs, "Using cached query results" (anonymous datasets), "Hidden datasets".
    """
    return dataset.startswith("_")


def stream_key(target: str, name: str) -> Key | None:
    """The key of what the Storage API reads: a read session, also by one of its streams, or a job by its stream."""
    if len(name) > 2 * ID_LIMIT:
        return None
    session = _SESSION_NAME.fullmatch(name)
    if session is not None:
        return Key(target, "read_session", session[2], session[1], session[3])
    job = _JOB_STREAM.fullmatch(name)
    return None if job is None else job_key(target, job[1], job[3], job[2])


def request_id(owner: Owner, request: str) -> str:
    """The requestId that goes to the target in place of an owner's: 36 characters of ASCII at most."""
    text = json.dumps([owner.subject, owner.issuer, owner.agents, request])
    return hashlib.sha256(text.encode()).hexdigest()[:36]


def not_found(what: str, project: str, name: str, location: str = "") -> Failure:
    """What an id gets that is not the caller's, or nobody's. All of it are words of the request.

    Source: the service's own words: "Not found: Job my-project:US.job_1", "Not found: Table my-project:set.table".
    """
    shown = f"{location}.{name}" if location else name
    return Failure(404, "notFound", f"Not found: {what} {project}:{shown}")


def repeat(found: Entry, owner: Owner, digest: str) -> Repeat:
    """What it means that an id is taken: the same command again, another under its id, or somebody else's.

    "same": no second decision, no second job; the answer is that of a known job. The others are refused: see refusal().
    """
    if found.owner != owner:
        return "taken"
    return "same" if hmac.compare_digest(found.digest, digest) else "changed"


def refusal(case: Repeat, project: str, name: str, location: str = "") -> Failure:
    """The error of an insert whose id is known. A 409 makes Python poll that job: it is given to its owner alone."""
    if case == "taken":
        return Failure(400, "invalid", "gatecast: this job id cannot be used here; choose another one")
    shown = f"{location}.{name}" if location else name
    return Failure(409, "duplicate", f"Already Exists: Job {project}:{shown}")


# -- what goes to the target, and what its answers say ---------------------------------------------------


def marked(body: Mapping[str, Any], mark: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the body of an insert (or a jobs.query) with our labels, whatever labels of these names it had."""
    ours = {**(labels or {}), MARK_LABEL: mark}
    configuration = body.get("configuration")
    if isinstance(configuration, Mapping):
        return {**body, "configuration": {**configuration, "labels": {**(configuration.get("labels") or {}), **ours}}}
    return {**body, "labels": {**(body.get("labels") or {}), **ours}}


def ours(job: Mapping[str, Any], entry: Entry) -> bool:
    """Whether a job of the target's is the one that was sent for this entry."""
    labels = _map(_map(job, "configuration"), "labels")
    mark = labels.get(MARK_LABEL)
    reference = _map(job, "jobReference")
    return (
        bool(entry.mark)
        and isinstance(mark, str)
        and hmac.compare_digest(mark.encode("utf-8", "replace"), entry.mark.encode())
        and reference.get("jobId") == entry.key.id
        and reference.get("projectId") == entry.key.project
    )


def learned(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer (Job, jobs.query, getQueryResults) says of its job: changes for settle() and amend()."""
    changes: dict[str, Any] = {}
    location = _map(answer, "jobReference").get("location") or answer.get("location")
    if isinstance(location, str) and location:
        changes["location"] = location
    schema = answer.get("schema")
    if isinstance(schema, Mapping) and isinstance(schema.get("fields"), list):
        changes["schema"] = schema
    destination = _destination(answer)
    if destination is not None:
        changes["destination"] = ".".join(destination)
    return changes


def named(answer: Mapping[str, Any], entry: Entry) -> tuple[Entry, ...]:
    """Return entries for the ids that an answer names beside its job's: they are its owner's, under its permit."""
    keys: list[Key] = []
    target, project = entry.key.target, entry.key.project
    query = answer.get("queryId")
    if isinstance(query, str) and query:
        keys.append(Key(target, "query", project, query))
    for place in (answer, _map(answer, "statistics")):
        session = _map(place, "sessionInfo").get("sessionId")
        if isinstance(session, str) and session:
            keys.append(Key(target, "session", project, session))
    destination = _destination(answer)
    if destination is not None and hidden(destination[1]) and not entry.facts.get(CHOSEN):
        keys.append(table_key(target, *destination))
    return tuple(_beside(entry, key) for key in dict.fromkeys(keys) if key.sane)


def children(answer: Mapping[str, Any], parent: Entry) -> tuple[Entry, ...]:
    """Return entries for the jobs of a list that are a script's own: those that name it as their parent."""
    found = []
    for job in _jobs(answer):
        reference = _map(job, "jobReference")
        name, said = reference.get("jobId"), _map(job, "statistics").get("parentJobId")
        if said != parent.key.id or reference.get("projectId") != parent.key.project or not isinstance(name, str):
            continue
        location = reference.get("location")
        key = job_key(parent.key.target, parent.key.project, name, location if isinstance(location, str) else "")
        if key.sane and name != parent.key.id:
            found.append(_beside(parent, key))
    return tuple(found)


def listed(answer: Mapping[str, Any]) -> frozenset[str]:
    """Return the ids of a list of jobs."""
    names = (_map(job, "jobReference").get("jobId") for job in _jobs(answer))
    return frozenset(name for name in names if isinstance(name, str))


def own_list(
    answer: Mapping[str, Any], owned: Mapping[str, str], owner: Owner, before: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return a list of jobs with the owner's alone. owned: the ids that are the owner's, and where; "" is not known.

    Elsewhere a job of the same id is somebody else's. before: jobs that the gate answers for, for the first page.
    """
    own = [shown(job, owner) for job in _jobs(answer) if _is_owned(_map(job, "jobReference"), owned)]
    return {**answer, "jobs": [*before, *own]}


def _is_owned(reference: Mapping[str, Any], owned: Mapping[str, str]) -> bool:
    name, place = reference.get("jobId"), reference.get("location")
    if not isinstance(name, str) or name not in owned:
        return False
    known = owned[name]
    return not known or not place or (isinstance(place, str) and place.casefold() == known.casefold())


def shown(job: Mapping[str, Any], owner: Owner) -> dict[str, Any]:
    """Return a job as its owner sees it: theirs, not the service account's, and without our mark."""
    seen = {name: value for name, value in job.items() if name not in _IDENTITY_FIELDS}
    if "user_email" in job:
        seen["user_email"] = owner.subject
    configuration = _map(job, "configuration")
    labels = _map(configuration, "labels")
    if not _OWN_LABELS.isdisjoint(labels):
        left = {name: value for name, value in labels.items() if name not in _OWN_LABELS}
        rest = {name: value for name, value in configuration.items() if name != "labels"}
        seen["configuration"] = {**rest, "labels": left} if left else rest
    return seen


def _beside(entry: Entry, key: Key) -> Entry:
    return Entry(
        key,
        entry.owner,
        rule=entry.rule,
        masks=entry.masks,
        facts=entry.facts,
        schema=entry.schema if key.kind in ("query", "table") else None,
        parent=entry.key.id,
        session=entry.session,
    )


def _destination(answer: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The table that a query job puts its result in, as its configuration says."""
    table = _map(_map(_map(answer, "configuration"), "query"), "destinationTable")
    names = tuple(table.get(name) for name in ("projectId", "datasetId", "tableId"))
    if not all(isinstance(name, str) and name for name in names):
        return None
    return str(names[0]), str(names[1]), str(names[2])


def _jobs(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    jobs = answer.get("jobs")
    return [job for job in jobs if isinstance(job, Mapping)] if isinstance(jobs, list) else []


def _map(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}
