"""How a command of BigQuery ended, for the people who replay its tape: rows in display text, cost, state, errors.

result_of() reads the beginning of an answer as the user saw it (after the masks), so it can quote nothing that a mask
hid. It is a view: an answer that is cut, of another shape, or no JSON at all says less, and never raises.

How: a small answer that is whole is decoded as it is. Of any other one the members before its rows are read, one after
the other, then the first rows; and where all of it is there, the members behind the rows (bytes processed, cache hit)
from its last few kilobytes. So a page of 10 MB costs what its first 256 KiB cost.

Columns have the names of the answer's schema; a page without one (tabledata.list, ``fields``) those of the schema that
the caller knows, or numbers. How cells are shown: result_rows.py. The keys of RESULT that are written here are
specified in recorder/format.py.

Left out: rows in Arrow, whose number is all that is told (rpc_result); content codings, which the caller has taken off.
Specification: BigQuery REST v2: Job, JobStatistics, JobStatistics2, QueryResponse, GetQueryResultsResponse,
TableDataList, TableDataInsertAllResponse, ErrorProto; RFC 8259.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final

from protocols.bigquery.result_rows import CELL_LIMIT, as_map, as_text, row_of, shapes_of
from protocols.bigquery.schema import Schema
from proxy.core.events import Result

# Of an answer, in bytes: what is decoded of its beginning, and looked at of its end. Measured: 2 ms, with rows of ten
# short cells; the members behind the rows are some hundred bytes, and a script's or a DML's a few thousand.
SHOWN_LIMIT: Final = 256 * 1024
TAIL_LIMIT: Final = 8 * 1024
# A job says what became of it behind its configuration, which holds the text of the query, 1 MB at most (BigQuery
# quotas, "unresolved GoogleSQL query length"), and twice that in escapes: 9 ms, measured, of what
# is no hot path.
JOB_LIMIT: Final = 2 * 1024 * 1024
COUNTED_LIMIT: Final = 512 * 1024  # bytes whose rows are counted: 1 ms, measured
ROWS_LIMIT: Final = 100  # as of Kubernetes' tables; ours
MESSAGE_LIMIT: Final = 4096  # characters, as errors.py has it
NAME_LIMIT: Final = 2048  # characters: project, dataset and table of 1,024 with room
_WHOLE_LIMIT: Final = 2**63 - 1  # msgpack's and SQLite's; a tape's numbers are no larger

_DECODER: Final = json.JSONDecoder()
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_BEHIND_ROWS: Final = re.compile(rb"\][ \t\r\n]*,[ \t\r\n]*(?=\")")
# A row opens with these in all spellings of JSON; in a string the quotes would be escaped. A record in a cell does,
# too, but behind a colon.
_ROW: Final = re.compile(rb"\{[ \t\r\n]*\"f\"")
_NESTED: Final = re.compile(rb":[ \t\r\n]*\{[ \t\r\n]*\"f\"")
_DIGITS: Final = re.compile(r"-?[0-9]{1,19}")
_WITH_ROWS: Final = frozenset({"jobs.query", "jobs.getQueryResults", "tabledata.list"})
_OF_JOBS: Final = frozenset({"jobs.get", "jobs.insert", "jobs.cancel", "upload.insert", "upload.chunk"})
_STATES: Final = frozenset({"PENDING", "RUNNING", "DONE"})
_JOB_TYPES: Final = ("query", "load", "copy", "extract")

_Details = dict[str, Any]


@dataclass(slots=True)
class _Answer:
    """What was read of an answer. count: its rows, as far as they were counted; partial: there may be more."""

    members: dict[str, Any] = field(default_factory=dict)
    rows: list[Any] = field(default_factory=list)
    count: int = 0
    partial: bool = False


def result_of(
    method: str,
    status: int,
    shown: bytes,
    whole: bool,
    size_bytes: int,
    sent: int,
    flow: int,
    *,
    content_type: str = "application/json",
    job: str = "",
    schema: Schema | None = None,
    rows: int | None = None,
) -> Result:
    """Return how an exchange of the REST API ended.

    method: "jobs.query". status: of HTTP. shown: the first bytes of the answer's body as the user saw them; whole:
    these are all. size_bytes: of the body; sent: of the request's body. job, schema: what the registry knows, for
    answers that do not name them ("project:location.id"; job_name()). rows: in the answer, where somebody counted them.
    """
    answer = _read(method, shown, whole)
    members = answer.members
    details: _Details = {"flow": flow, "status": status, "sent": sent}
    if content_type:
        details["content_type"] = content_type[:CELL_LIMIT]
    resource = as_map(members.get("job")) or members  # jobs.cancel wraps it
    found = _of_job(resource) if "configuration" in resource or "statistics" in resource else _of_query(resource)
    details |= {"job": job[:NAME_LIMIT], **found} if job else found
    error = _error(members, status) or _job_error(resource)
    if rows is None:
        rows, partial = answer.count, answer.partial
    else:
        partial = False
    if partial and rows:
        details["partial"] = True
    shapes = shapes_of(members.get("schema"), schema, answer.rows)
    tag = f"{status} {_phrase(status)}".rstrip()
    # A result without rows is a table all the same; one of which none were asked for is not shown as if it were empty.
    tells = answer.rows or (details.get("total_rows") == 0 and details.get("state") == "DONE")
    if error is not None or method not in _WITH_ROWS or not shapes or not tells:
        return Result(tag, row_count=rows, size_bytes=size_bytes, error=error, details=details)
    cells = tuple(row_of(row, shapes) for row in answer.rows)
    return Result(tag, tuple(each.name for each in shapes), cells, rows, size_bytes, None, details)


def rpc_result(
    method: str, code: str, rows: int, size_bytes: int, sent: int, flow: int, *, job: str = "", message: str = ""
) -> Result:
    """Return how a call of the Storage API ended.

    method: "ReadRows". code: google.rpc.Code by name ("OK"). rows, size_bytes: that went to the user.
    """
    details: _Details = {"flow": flow, "rpc": method, "sent": sent}
    if job:
        details["job"] = job[:NAME_LIMIT]
    error = None if code == "OK" else {"code": code, "message": message[:MESSAGE_LIMIT]}
    return Result(code, row_count=rows, size_bytes=size_bytes, error=error, details=details)


def with_content(result: Result, size: int, sha256: str, *, complete: bool = True) -> Result:
    """Return the result of an upload with what was uploaded. sha256: "" where its bytes did not pass in order."""
    told: _Details = {"direction": "upload", "size": size, "in_order": bool(sha256), "complete": complete}
    if sha256:
        told["sha256"] = sha256
    return replace(result, details={**result.details, **told})


def job_name(project: str, location: str, job: str) -> str:
    """The name of a job as Job.id has it: "project:US.id", "project:id" where nobody knows its location."""
    return f"{project}:{location}.{job}" if location else f"{project}:{job}"


# -- reading --------------------------------------------------------------------------------------------


def _read(method: str, shown: bytes, whole: bool) -> _Answer:
    limit = JOB_LIMIT if method in _OF_JOBS else SHOWN_LIMIT
    if whole and len(shown) <= limit:
        try:
            document = json.loads(shown)
        except (ValueError, RecursionError):  # UnicodeDecodeError is one
            return _Answer()
        members = document if isinstance(document, dict) else {}
        rows = members.get("rows")
        rows = rows if isinstance(rows, list) else []
        return _Answer(members, rows[:ROWS_LIMIT], len(rows))
    answer = _Answer(partial=not whole or len(shown) > COUNTED_LIMIT)
    _walk(bytes(shown[:SHOWN_LIMIT]).decode("utf-8", "ignore"), answer)
    if answer.rows:
        counted = bytes(shown[:COUNTED_LIMIT])
        answer.count = max(len(answer.rows), len(_ROW.findall(counted)) - len(_NESTED.findall(counted)))
    if whole:
        answer.members |= _behind_rows(bytes(shown[-TAIL_LIMIT:]))
    return answer


def _walk(text: str, answer: _Answer) -> None:
    """Read the members of an object whose end may be missing, up to what is cut; of its rows the first."""
    at = _skip(text, 0)
    if not text.startswith("{", at):
        return
    try:
        while True:
            name, at = _value(text, _skip(text, at + 1))
            at = _skip(text, at)
            if not isinstance(name, str) or not text.startswith(":", at):
                return
            at = _skip(text, at + 1)
            if name == "rows" and text.startswith("[", at):
                at = _rows(text, at, answer.rows)
            else:
                answer.members[name], at = _value(text, at)
            at = _skip(text, at)
            if not text.startswith(",", at):
                return
    except (ValueError, RecursionError):  # cut, or no JSON: what was read stands
        return


def _rows(text: str, at: int, rows: list[Any]) -> int:
    """Read the first rows of a list; return where it ends. Raises ValueError where it goes on."""
    while len(rows) < ROWS_LIMIT:
        at = _skip(text, at + 1)
        if text.startswith("]", at) and not rows:
            return at + 1
        row, at = _value(text, at)
        rows.append(row)
        at = _skip(text, at)
        if text.startswith("]", at):
            return at + 1
        if not text.startswith(",", at):
            break
    raise ValueError("more rows than are read, or cut")


def _value(text: str, at: int) -> tuple[Any, int]:
    """Decode a value. Raises ValueError for one that may go on behind the text: what follows shows a number's end."""
    value, end = _DECODER.raw_decode(text, at)
    if end >= len(text):
        raise ValueError("cut")
    return value, end


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found is not None else at


def _behind_rows(tail: bytes) -> dict[str, Any]:
    """The members behind the rows, from the end of an answer.

    They begin behind the bracket that closes a list and the first quote of a name. Inside a string such a quote would
    be its end, and what is read from there is no object: the names in rows ("v") would stand outside of the quotes.
    """
    for found in _BEHIND_ROWS.finditer(tail):
        try:
            document = json.loads(b"{" + tail[found.end() :])
        except (ValueError, RecursionError):
            continue
        return document if isinstance(document, dict) else {}
    return {}


# -- what is said of jobs -------------------------------------------------------------------------------


def _of_job(resource: Mapping[str, Any]) -> _Details:
    """Of a Job resource."""
    configuration, statistics = as_map(resource.get("configuration")), as_map(resource.get("statistics"))
    query, kind = as_map(statistics.get("query")), next((name for name in _JOB_TYPES if name in configuration), "")
    work = as_map(configuration.get(kind))
    told: _Details = {}
    _put(told, "job", _reference(resource))
    state = as_map(resource.get("status")).get("state")
    _put(told, "state", state if isinstance(state, str) and state in _STATES else "")
    _put(told, "job_type", kind)
    _put(told, "processed", _whole(query, "totalBytesProcessed"), _whole(statistics, "totalBytesProcessed"))
    _put(told, "billed", _whole(query, "totalBytesBilled"))
    _put(told, "slot_ms", _whole(statistics, "totalSlotMs"), _whole(query, "totalSlotMs"))
    if isinstance(query.get("cacheHit"), bool):
        told["cache_hit"] = query["cacheHit"]
    _put(told, "statement", as_text(query.get("statementType"), CELL_LIMIT))
    loaded, copied = as_map(statistics.get("load")), as_map(statistics.get("copy"))
    _put(told, "affected", _affected(query), _whole(loaded, "outputRows"), _whole(copied, "copiedRows"))
    _put(told, "destination", _table(work.get("destinationTable")))
    if configuration.get("dryRun") is True:
        told["dry_run"] = True
    return told


def _of_query(members: Mapping[str, Any]) -> _Details:
    """Of jobs.query, jobs.getQueryResults, tabledata.list."""
    told: _Details = {}
    _put(told, "job", _reference(members))
    if isinstance(members.get("jobComplete"), bool):
        # Whether it waits or runs is not said here.
        told["state"] = "DONE" if members["jobComplete"] else "RUNNING"
    for name, key in (
        ("processed", "totalBytesProcessed"),
        ("billed", "totalBytesBilled"),
        ("slot_ms", "totalSlotMs"),
        ("total_rows", "totalRows"),
    ):
        _put(told, name, _whole(members, key))
    if isinstance(members.get("cacheHit"), bool):
        told["cache_hit"] = members["cacheHit"]
    _put(told, "affected", _affected(members))
    return told


def _reference(resource: Mapping[str, Any]) -> str:
    reference = as_map(resource.get("jobReference"))
    project, job, location = (as_text(reference.get(name), NAME_LIMIT) for name in ("projectId", "jobId", "location"))
    if project and job:
        return job_name(project, location, job)[:NAME_LIMIT]
    named = as_text(resource.get("id"), NAME_LIMIT)
    return named if resource.get("kind") == "bigquery#job" else ""


def _affected(query: Mapping[str, Any]) -> int | None:
    counts = as_map(query.get("dmlStats"))
    known = [_whole(counts, name) for name in ("insertedRowCount", "updatedRowCount", "deletedRowCount")]
    if any(count is not None for count in known):
        return min(_WHOLE_LIMIT, sum(count for count in known if count is not None))
    return _whole(query, "numDmlAffectedRows")


def _table(reference: Any) -> str:
    parts = [as_text(as_map(reference).get(name), NAME_LIMIT) for name in ("projectId", "datasetId", "tableId")]
    return ".".join(parts)[:NAME_LIMIT] if all(parts) else ""


def _error(members: Mapping[str, Any], status: int) -> dict[str, str] | None:
    """What Google's error document says, or insertErrors; a failure that says nothing is one all the same."""
    document = as_map(members.get("error"))
    if document:
        first = _first(document.get("errors"))
        told = {"code": str(_whole(document, "code") or status)}
        _put(told, "reason", as_text(first.get("reason"), CELL_LIMIT) or as_text(document.get("status"), CELL_LIMIT))
        return {**told, "message": as_text(document.get("message"), MESSAGE_LIMIT)}
    refused = members.get("insertErrors")
    if isinstance(refused, list) and refused:
        first = _first(as_map(refused[0]).get("errors"))
        noun = "row was" if len(refused) == 1 else "rows were"
        message = f"{len(refused)} {noun} not inserted; the first: {as_text(first.get('message'), MESSAGE_LIMIT)}"
        reason = as_text(first.get("reason"), CELL_LIMIT)
        return {"code": reason, "reason": reason, "message": message}
    if status >= 400:
        return {"code": str(status), "message": _phrase(status)}
    return None


def _job_error(resource: Mapping[str, Any]) -> dict[str, str] | None:
    """What a job says that it failed of."""
    result = as_map(as_map(resource.get("status")).get("errorResult"))
    if not result:
        return None
    reason = as_text(result.get("reason"), CELL_LIMIT)
    return {"code": reason, "reason": reason, "message": as_text(result.get("message"), MESSAGE_LIMIT)}


# -- values of any shape --------------------------------------------------------------------------------


def _first(value: Any) -> dict[str, Any]:
    return as_map(value[0]) if isinstance(value, list) and value else {}


def _whole(members: Mapping[str, Any], name: str) -> int | None:
    """An integer, which the API writes as a string where it may have 64 bits; None of what is none, or is negative."""
    value = members.get(name)
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    return min(value, _WHOLE_LIMIT) if type(value) is int and value >= 0 else None


def _put(told: dict[str, Any], name: str, *values: str | int | None) -> None:
    """Note the first value that there is."""
    for value in values:
        if value is not None and value != "":
            told[name] = value
            return


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
