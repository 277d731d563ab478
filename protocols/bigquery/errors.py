"""What users are told when something fails: Google's error document, and that of the token endpoint.

Clients show errors[0].message whole and act on errors[0].reason: Python repeats a request for ten minutes where the
reason is rateLimitExceeded, backendError, internalError or badGateway, and where a 429 or 5xx has no reason at all. So
a refusal always has a reason, and never one of these; only unavailable() has: nothing was done, and trying again helps.

Two texts have a meaning of their own: a 404 that speaks of a job makes Python send the job anew, so that not_found()
alone says so; and a 409 makes it take the job as existing.

Source: bigquery note 8; "Error messages" of BigQuery's documentation; google.rpc.Code; google-cloud-bigquery retry.py;
RFC 6749 5.2, RFC 8693 2.2.2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, Literal

from proxy.core.errors import Refused
from proxy.core.text import harmless

MESSAGE_LIMIT: Final = 4096  # characters of a message: a rule's reason and an address, with room; ours

# The words of google.rpc.Code by HTTP status. Source: google/rpc/code.proto, "HTTP Mapping".
_STATUSES: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    414: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# The reasons of failures of a request, by HTTP status: none of them is repeated. Source: "Error table".
_REASONS: Final[Mapping[int, str]] = {
    400: "invalid",
    401: "authError",
    403: "accessDenied",
    404: "notFound",
    409: "duplicate",
    412: "conditionNotMet",
    413: "uploadTooLarge",
    429: "quotaExceeded",
    501: "notImplemented",
}
RETRIED: Final = frozenset({"rateLimitExceeded", "backendError", "internalError", "badGateway"})

# "invalid_target" is RFC 8693's: the audience is not one of this gateway's.
TokenError = Literal[
    "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
    "invalid_scope", "invalid_target",
]  # fmt: skip


def document(code: int, reason: str, message: str) -> bytes:
    """Return an error's document. reason is one of BigQuery's words; message is shown by every client."""
    shown = _shown(message)
    error = {
        "code": code,
        "message": shown,
        "status": _STATUSES.get(code, "INTERNAL" if code >= 500 else "INVALID_ARGUMENT"),
        "errors": [{"message": shown, "domain": "global", "reason": reason}],
    }
    text = json.dumps({"error": error}, ensure_ascii=False, separators=(",", ":")) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a reason may be the target's, with half a surrogate pair


def failure(code: int, message: str) -> bytes:
    """Return the document of a request that cannot be served; no client sends it again by itself."""
    return document(code, _REASONS.get(code, "stopped" if code >= 500 else "invalid"), message)


def unavailable(message: str) -> bytes:
    """Return the document of a 503 for which nothing was done: clients try again, for ten minutes."""
    return document(503, "backendError", message)


def not_found(kind: str, name: str) -> bytes:
    """Return the document of a 404: of what is not there, and alike of what is another's. kind: "Job", "Table", ...

    Source: BigQuery's own words, "Not found: Job my-project:US.job_1".
    """
    return document(404, "notFound", f"Not found: {kind} {name}")


def duplicate(kind: str, name: str) -> bytes:
    """Return the document of a 409: clients take what they wanted to make as made."""
    return document(409, "duplicate", f"Already Exists: {kind} {name}")


def denial(refused: Refused, url: str = "") -> bytes:
    """Return the document of a refused command: rule, reason, and the approval's id and address if there was one."""
    return document(403, "accessDenied", denial_text(refused, url))


def denial_text(refused: Refused, url: str = "") -> str:
    """Return the message of a refusal, in one line. It begins as BigQuery's own."""
    deny = refused.deny
    if refused.withdrawn:
        text = f'gatecast: taken back while held by rule "{deny.rule}"'
    else:
        text = f'gatecast: denied by rule "{deny.rule}": {deny.reason}'
    if refused.approval is not None:
        text += f" (approval {refused.approval}{' ' + url if url else ''})"
    return _shown(f"Access Denied: {text}")


def unauthenticated(message: str) -> tuple[bytes, tuple[str, str]]:
    """Return the document of a 401 and the field that goes with it: the gate token is bad, missing, or over.

    Only for these: clients get a new token and come again. Source: RFC 6750 3.
    """
    return failure(401, message), ("WWW-Authenticate", 'Bearer realm="gatecast", error="invalid_token"')


def token_error(error: TokenError, description: str) -> tuple[int, bytes]:
    """Return status and document of a failure at the token endpoint; clients print the description.

    The description is of printable ASCII without quotes and backslashes. Source: RFC 6749 5.2.
    """
    shown = "".join(
        {'"': "'", "\\": "/"}.get(char, char if " " <= char <= "~" else "?") for char in description[:MESSAGE_LIMIT]
    )
    text = json.dumps({"error": error, "error_description": shown}, separators=(",", ":"))
    return (401 if error == "invalid_client" else 400), text.encode()


def _shown(message: str) -> str:
    return harmless(message)[:MESSAGE_LIMIT]
