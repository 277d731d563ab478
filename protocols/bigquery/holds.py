"""A held job as its user sees it: a job in state PENDING that every client waits for, until a human has decided.

Nothing is asked of the target meanwhile: jobs.get says PENDING, getQueryResults and jobs.query say jobComplete false
(after a long poll), with the job's own id or one of ours. Approved, it is sent as jobs.insert under that id, and from
then on the target answers. Denied or expired, it is DONE with errorResult accessDenied; taken back, DONE and stopped.
Each function takes the registry's entry and returns the answer, or None: ask the target.

What a human approves is bound to digest(): the job's configuration without its labels, project, location and target.
What leaves is made of the stored request, and only if its digest is still that of the entry (released).

Left out: holding uploads, whose data would have to be kept; a request over REQUEST_LIMIT cannot be held either.
Source: BigQuery note 7; BigQuery REST v2: Job, JobStatus, QueryRequest, JobConfiguration, jobs.cancel.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocols.bigquery.ownership import Failure, marked, refusal
from proxy.core.http.heads import BadRequest
from proxy.core.jobs import ENDED, Entry, Key, Owner
from proxy.core.text import harmless

POLL_SECONDS: Final = 10.0  # how long a result is waited for where timeoutMs is absent. Source: jobs.query, timeoutMs
POLL_LIMIT_SECONDS: Final = 200.0  # the service's own limit, about. Source: jobs.getQueryResults, timeoutMs
JOB_PREFIX: Final = "gw_"  # of the job ids that the gate makes

# Where the fields of a jobs.query belong in a jobs.insert. What is in neither table has no place there, and is refused.
_OF_QUERY: Final = frozenset({
    "connectionProperties", "continuous", "createSession", "defaultDataset", "destinationEncryptionConfiguration",
    "maximumBytesBilled", "parameterMode", "preserveNulls", "query", "queryParameters", "secureContext",
    "useLegacySql", "useQueryCache", "writeIncrementalResults",
})  # fmt: skip
_OF_JOB: Final = frozenset({"dryRun", "jobTimeoutMs", "labels", "maxSlots", "reservation"})
_OF_ANSWER: Final = frozenset({
    "arrowSerializationOptions", "formatOptions", "jobCreationMode", "kind", "location", "maxResults",
    "queryResultsFormat", "requestId", "timeoutMs",
})  # fmt: skip
_JOB_TYPES: Final = {"query": "QUERY", "load": "LOAD", "copy": "COPY", "extract": "EXTRACT"}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the gate's own."""

    status: int
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the target answered when the approved job was sent, and refused it: status and body as they came."""

    status: int
    body: bytes


Answer = Reply | Failure | Kept


# -- the command ----------------------------------------------------------------------------------------


def inserted(body: Mapping[str, Any], project: str, job: str, location: str = "") -> dict[str, Any]:
    """Return the jobs.insert that does what a jobs.query asks for. Raises BadRequest for what it could not carry."""
    strange = sorted(set(body) - _OF_QUERY - _OF_JOB - _OF_ANSWER)
    if strange:
        raise BadRequest(400, f"gatecast: a held query cannot have {harmless(', '.join(strange))[:200]}")
    configuration: dict[str, Any] = {name: body[name] for name in sorted(_OF_JOB) if name in body}
    configuration["query"] = {name: body[name] for name in sorted(_OF_QUERY) if name in body}
    return {"configuration": configuration, "jobReference": _reference(project, job, location)}


def digest(target: str, project: str, location: str, body: Mapping[str, Any]) -> str:
    """Return what an approval of a job is bound to: everything that it does and where, and none of its labels."""
    configuration = body.get("configuration")
    what = dict(configuration) if isinstance(configuration, Mapping) else {}
    for name in ("labels", "jobType"):  # jobType is an answer's
        what.pop(name, None)
    text = json.dumps([target, project, location.casefold(), what], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def job_name(owner: Owner, request: str, what: str, random: str) -> str:
    """Return a job id for a request without one. With a requestId, the same request gets the same id again.

    what: the request's digest. random: 32 hexadecimal digits, taken where there is no requestId.
    """
    if not request:
        return JOB_PREFIX + random
    text = json.dumps([owner.subject, owner.issuer, owner.agents, request, what])
    return JOB_PREFIX + hashlib.sha256(text.encode()).hexdigest()[:32]


def deadline(now: float, hold_seconds: float, job_timeout_ms: int | None) -> float:
    """Return when a hold ends: the rule's time, or the job's own (jobTimeoutMs runs for a job that waits, too)."""
    if job_timeout_ms is not None and job_timeout_ms > 0:
        hold_seconds = min(hold_seconds, job_timeout_ms / 1000)
    return now + hold_seconds


def poll_seconds(timeout_ms: int | None) -> float:
    """Return how long a question for a result waits before it is answered "not yet"."""
    seconds = POLL_SECONDS if timeout_ms is None else timeout_ms / 1000
    return min(max(seconds, 0.0), POLL_LIMIT_SECONDS)


def released(entry: Entry, labels: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """Return the body of the jobs.insert of an approved job, with our labels.

    None: the stored request is not the one that was approved (the file was edited), so nothing leaves.
    """
    body = _body(entry)
    key = entry.key
    reference = body.get("jobReference")
    location = reference.get("location", "") if isinstance(reference, Mapping) else ""
    if entry.state != "approved" or not isinstance(location, str):
        return None
    if not hmac.compare_digest(digest(key.target, key.project, location, body), entry.digest):
        return None
    return marked({**body, "jobReference": _reference(key.project, key.id, location)}, entry.mark, labels)


def unsure(entry: Entry) -> bool:
    """Whether nobody knows if the job has reached the target: look there, and believe what carries the mark."""
    return entry.state == "sent" and not entry.process


# -- answers --------------------------------------------------------------------------------------------


def get_job(entry: Entry) -> Answer | None:
    """The answer to jobs.get."""
    match entry.state:
        case "open":
            return None
        case "failed":
            return Kept(entry.reply_status, entry.reply)
        case _:
            return Reply(200, job(entry))


def insert(entry: Entry, repeated: bool = False) -> Answer | None:
    """The answer to the jobs.insert of a job that is held; repeated: it came once more, under the same id.

    The service knows no second insert under an id: 409, by which clients go on with the job that is there.
    """
    if repeated:
        return refusal("same", entry.key.project, entry.key.id, entry.key.location)
    return get_job(entry)


def get_results(entry: Entry, kind: str = "bigquery#getQueryResultsResponse") -> Answer | None:
    """The answer to jobs.getQueryResults, after its long poll."""
    match entry.state:
        case "open":
            return None
        case "failed":
            return Kept(entry.reply_status, entry.reply)
        case "denied" | "expired":
            return Failure(403, "accessDenied", message(entry))
        case "stopped":
            return Failure(400, "stopped", message(entry))
        case _:
            return Reply(200, {"kind": kind, "jobReference": _reference_of(entry.key), "jobComplete": False})


def query(entry: Entry) -> Answer | None:
    """The answer to the jobs.query that was held, and to the same one again."""
    return get_results(entry, "bigquery#queryResponse")


def cancel(entry: Entry) -> Answer | None:
    """The answer to jobs.cancel, of the entry after settle(.., "stopped"): what had ended before stays as it was."""
    found = get_job(entry)
    if isinstance(found, Reply):
        return Reply(200, {"kind": "bigquery#jobCancelResponse", "job": found.document})
    return found


def delete(entry: Entry) -> Answer | None:
    """The answer to jobs.delete; after a Reply the entry is to be forgotten."""
    if entry.state == "open":
        return None
    if entry.state in ENDED or entry.state == "failed":
        return Reply(200, {})
    return Failure(400, "invalid", "gatecast: the job has not ended; cancel it first")


def message(entry: Entry) -> str:
    """Why a job ended, in one line: as errors.denial_text says it."""
    if entry.state == "stopped":
        text = f"Job execution was cancelled: {entry.reason or 'User requested cancellation'}"
    else:
        text = f'Access Denied: gatecast: denied by rule "{entry.rule}": {entry.reason}'
    return harmless(text + (f" (approval {entry.approval})" if entry.approval else ""))


def job(entry: Entry) -> dict[str, Any]:
    """Return the Job resource of a job that the target does not know."""
    body = _body(entry)
    configuration = body.get("configuration")
    shown = dict(configuration) if isinstance(configuration, Mapping) else {}
    kind = next((name for name in _JOB_TYPES if name in shown), None)
    if kind is not None:
        shown["jobType"] = _JOB_TYPES[kind]
    reference = _reference_of(entry.key)
    place = f"{entry.key.location}." if entry.key.location else ""
    status: dict[str, Any] = {"state": "PENDING"}
    statistics = {"creationTime": _milliseconds(entry.created)}
    if entry.state in ENDED:
        error = {"reason": "stopped" if entry.state == "stopped" else "accessDenied", "message": message(entry)}
        status = {"state": "DONE", "errorResult": error, "errors": [error]}
        statistics |= dict.fromkeys(("startTime", "endTime"), _milliseconds(entry.changed))
    return {
        "kind": "bigquery#job",
        "id": f"{entry.key.project}:{place}{entry.key.id}",
        "user_email": entry.owner.subject,
        "jobReference": reference,
        "configuration": shown,
        "status": status,
        "statistics": statistics,
    }


def _body(entry: Entry) -> dict[str, Any]:
    """The stored request. It is our own writing; what cannot be read of it says nothing and releases nothing."""
    try:
        body = json.loads(entry.request) if entry.request else {}
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _reference_of(key: Key) -> dict[str, str]:
    return _reference(key.project, key.id, key.location)


def _reference(project: str, name: str, location: str) -> dict[str, str]:
    return {"projectId": project, "jobId": name} | ({"location": location} if location else {})


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
