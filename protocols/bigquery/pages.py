"""Answers that hold rows or quote them, under masks: getQueryResults, jobs.query, tabledata.list, insertAll, errors.

How: of an answer with rows only the members of its object are told apart; the rows go to rows.py, the rest stays as it
is. A member that is not in PASSED is left out, as nobody knows what it holds. Refused (Unreadable, which ends the
exchange) is what cannot be masked: rows whose schema is not known, a schema in the answer that is not the one which
masks were chosen by, rows in Arrow, rows that a ``fields`` parameter has thinned out so that cells lack their ``v``.

A page that no mask speaks of is handed back as it came, unread: mask_page(data, schema, None) does not look at it.

Errors quote values (``Bad int64 value: 4111...``, and ERROR(email) says whatever it likes), so under column masks the
message of a failed query is left out unless its reason is one whose messages name things only. Whoever knows that
nothing was read (the errors of a dry run) passes them unmasked. reason, location, domain and code stay: tools need
them. What else an error carries (debugInfo, details) goes.

What insertErrors quote are the user's own rows; they are masked all the same, as a tape is read by others. Left out: a
script that makes a table's name of a value and runs into its absence (EXECUTE IMMEDIATE) shows the value as a name; the
analysis of the text calls such a script opaque.

Specification: BigQuery REST v2: GetQueryResultsResponse, QueryResponse, TableDataList, TableDataInsertAllResponse,
ErrorProto; Google's JSON errors (AIP-193); bigquery note, sections 3, 8 and 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from protocols.bigquery.rows import mask_rows
from protocols.bigquery.schema import Schema, Stamps, Unreadable, read_schema
from proxy.core.events import CellMask, RemarkFields

# A page holds 10 MB of row data (docs: getQueryResults, tabledata.list), in which each value stands in {"v":""}, 8
# characters of its own: values of one byte make nine times as much, and pretty printing doubles it once more.
PAGE_LIMIT: Final = 192 * 1024 * 1024
# Answers without rows: errors, insertErrors of a request of 10 MB (docs: insertAll), job resources.
ERRORS_LIMIT: Final = 16 * 1024 * 1024

# Members of an answer that hold no values of rows. "errors" and "rows" are masked.
PASSED: Final = frozenset((
    "kind", "etag", "schema", "jobReference", "totalRows", "pageToken", "totalBytesProcessed", "totalBytesBilled",
    "totalSlotMs", "jobComplete", "cacheHit", "numDmlAffectedRows", "dmlStats", "sessionInfo", "location", "queryId",
    "jobCreationReason", "creationTime", "startTime", "endTime",
))  # fmt: skip
# Rows in a form that only the Storage API's masks read. Source: bigquery note, section 10.
_ARROW: Final = frozenset(("arrowSchema", "arrowRecordBatch", "arrowRecordBatches", "pageRowCount"))
# Reasons whose messages name objects, limits and rights, never values. Source: BigQuery docs, "Error messages".
_NAMES_ONLY: Final = frozenset((
    "accessDenied", "authError", "backendError", "badGateway", "billingNotEnabled", "billingTierLimitExceeded",
    "bytesBilledLimitExceeded", "blocked", "duplicate", "forbidden", "internalError", "jobBackendError",
    "jobInternalError", "jobRateLimitExceeded", "notFound", "notImplemented", "quotaExceeded", "rateLimitExceeded",
    "required", "resourceInUse", "resourcesExceeded", "responseTooLarge", "serviceUnavailable", "stopped",
    "tableUnavailable", "timeout",
))  # fmt: skip
_KEPT: Final = ("reason", "location", "locationType", "domain", "code", "status")

# Masks the fields of a remark; see proxy/core/gate.Masker.remark.
RemarkMask = Callable[[RemarkFields], RemarkFields]

_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode: Final[Callable[[Any], bytes]] = msgspec.json.Encoder().encode


def mask_page(
    data: bytes,
    schema: Schema | None,
    cells: Sequence[CellMask | None] | None,
    stamps: Stamps = "float",
    remark: RemarkMask | None = None,
) -> bytes:
    """Return an answer with rows, masked; data itself if there is nothing to do. Raises Unreadable.

    schema: what the masks were chosen by; None if nobody knows it, then no rows pass. cells: one entry a leaf, None if
    no mask speaks of this result. remark: masks what errors in the answer say; None if there are no masks at all.
    """
    if cells is None and remark is None:
        return data
    members = _members(data)
    for key in members.keys() & _ARROW:
        raise Unreadable(f"an answer has rows in Arrow ({key}), which masks do not read here")
    if "rows" in members and cells is not None:
        rows = members["rows"]
        if schema is None:
            raise Unreadable("the schema of these rows is not known, and masks apply to them")
        if "schema" in members and read_schema(_decoded(members["schema"])) != schema:
            raise Unreadable("an answer's schema is not the one that its masks were chosen by")
        members["rows"] = msgspec.Raw(mask_rows(rows, schema, cells, stamps))
    if "errors" in members:
        members["errors"] = msgspec.Raw(_encode(_protos(_decoded(members["errors"]), remark or _hidden)))
    return _encode({key: each for key, each in members.items() if key in PASSED or key in ("rows", "errors")})


def schema_of(data: bytes) -> Schema | None:
    """Return the schema that an answer brings (a result's, a table's), None if it brings none. Raises Unreadable."""
    members = _members(data)
    return read_schema(_decoded(members["schema"])) if "schema" in members else None


def mask_errors(data: bytes, remark: RemarkMask) -> bytes:
    """Return an answer with what its errors quote masked, wherever they are. Raises Unreadable.

    For answers of a status that says failure, insertAll, and job resources (``status.errorResult``).
    """
    if len(data) > ERRORS_LIMIT:
        raise Unreadable(f"an answer with errors is larger than {ERRORS_LIMIT} bytes")
    try:
        return _encode(_searched(_decoded(data), remark))
    except RecursionError as error:
        raise Unreadable("an answer is nested too deeply") from error


def _members(data: bytes) -> dict[str, Any]:
    if len(data) > PAGE_LIMIT:
        raise Unreadable(f"a page of rows is larger than {PAGE_LIMIT} bytes")
    try:
        members: dict[str, Any] = _MEMBERS.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Unreadable("an answer that masks apply to is no JSON object") from error
    return members


def _decoded(data: Any) -> Any:  # Any: JSON, of any shape
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Unreadable("an answer that masks apply to is no JSON") from error


# -- errors -------------------------------------------------------------------------------------------


def _hidden(fields: RemarkFields) -> RemarkFields:
    """Where rows are masked and nobody said how errors are."""
    return {**fields, "message": "[masked message]"}


def _searched(value: Any, remark: RemarkMask) -> Any:
    if isinstance(value, list):
        return [_searched(each, remark) for each in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, each in value.items():
        if key in ("error", "errorResult") and isinstance(each, dict):
            found[key] = _proto(each, remark)
        elif key == "errors" and isinstance(each, list):
            found[key] = _protos(each, remark)
        else:
            found[key] = _searched(each, remark)
    return found


def _protos(values: Any, remark: RemarkMask) -> list[Any]:
    if values is None:
        return []
    if not isinstance(values, list):
        raise Unreadable("the errors of an answer are no list")
    return [_proto(each, remark) if isinstance(each, dict) else None for each in values]


def _proto(value: dict[str, Any], remark: RemarkMask) -> dict[str, Any]:
    """Mask an ErrorProto, or the error object of a failed request, whose own errors tell its reason."""
    inner = value.get("errors")
    found = {key: value[key] for key in _KEPT if isinstance(value.get(key), str | int)}
    reasons = [value.get("reason")]
    if isinstance(inner, list):
        reasons = [each.get("reason") if isinstance(each, dict) else None for each in inner]
    message = value.get("message")
    if isinstance(message, str):
        names_only = bool(reasons) and all(isinstance(each, str) and each in _NAMES_ONLY for each in reasons)
        found["message"] = message if names_only else _told(message, remark)
    if isinstance(inner, list):
        found["errors"] = _protos(inner, remark)
    return found


def _told(message: str, remark: RemarkMask) -> str:
    """A message of which nobody knows what it quotes: no code stands for one, so that column masks leave none of it."""
    return remark({"severity": "ERROR", "code": "", "message": message}).get("message", "")
