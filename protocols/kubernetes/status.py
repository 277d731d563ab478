"""metav1.Status: the form of all errors of the API server, and of how an exec ended.

kubectl prints ``Error from server (<reason>): <message>``; of exec, with reason NonZeroExitCode, it takes the exit code
from the causes and prints nothing.

Source: k8s.io/apimachinery/pkg/apis/meta/v1/types.go (Status, StatusReason), remotecommand/v4.go of client-go;
kubernetes note 3 and 6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from proxy.core.errors import Refused
from proxy.core.text import harmless

# Source: metav1.StatusReason and the codes that it documents.
REASONS: Final[Mapping[int, str]] = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    408: "Timeout",
    409: "Conflict",
    410: "Gone",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
DOCUMENT_LIMIT: Final = 1024 * 1024  # of an exec's error stream; a Status is some hundred bytes, ours
_MESSAGE_LIMIT: Final = 4096  # of what is shown of it


def reason_phrase(code: int) -> str:
    """Return the words of a status line."""
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return "Unknown"


def status(code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> bytes:
    """Return a failure's document. reason is one of metav1's words; message is printed by kubectl."""
    document: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": harmless(message),
        "reason": reason,
        "code": code,
    }
    if details:
        document["details"] = dict(details)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def failure(code: int, message: str) -> bytes:
    """Return the document of an HTTP error, with the reason that the code stands for."""
    return status(code, REASONS.get(code, "InternalError" if code >= 500 else "BadRequest"), message)


def denial(refused: Refused) -> bytes:
    """Return the document of a refused command: which rule, why, and the approval's id if there was one."""
    causes = [{"reason": "GatecastRule", "message": harmless(refused.deny.rule)}]
    if refused.approval is not None:
        causes.append({"reason": "GatecastApproval", "message": harmless(refused.approval)})
    return status(403, "Forbidden", denial_text(refused), {"causes": causes})


def denial_text(refused: Refused) -> str:
    """Return the message of a refusal, in one line."""
    deny = refused.deny
    if refused.withdrawn:
        text = f'gatecast: taken back while held by rule "{deny.rule}"'
    else:
        text = f'gatecast: denied by rule "{deny.rule}": {deny.reason}'
    if refused.approval is not None:
        text += f" (approval {refused.approval})"
    return harmless(text)


# -- how an exec ended ----------------------------------------------------------------------------------


def exit_document(code: int) -> bytes:
    """Return the document of an exec's end: of success for 0, else with the exit code."""
    if code == 0:
        return b'{"metadata":{},"status":"Success"}'
    text = f"command terminated with non-zero exit code: exit status {code}"
    document = {
        "metadata": {},
        "status": "Failure",
        "message": text,
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def failure_document(message: str, reason: str = "InternalError", code: int = 500) -> bytes:
    """Return the document of an exec that ended without an exit code; kubectl prints the message, and exits with 1."""
    document = {
        "metadata": {},
        "status": "Failure",
        "message": harmless(message),
        "reason": reason,
        "code": code,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def exit_of(document: bytes) -> tuple[int | None, str]:
    """Read what came on an exec's error stream: the exit code (None where it is not said) and the message.

    Before v4 it is plain text, and nothing means success. Never raises: what cannot be read is a message.
    """
    text = document.decode("utf-8", "replace").strip()
    if not text:
        return 0, ""
    try:
        value = json.loads(text) if len(document) <= DOCUMENT_LIMIT else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("status") not in ("Success", "Failure"):
        return None, text[:_MESSAGE_LIMIT]
    if value["status"] == "Success":
        return 0, ""
    message = value.get("message")
    shown = message[:_MESSAGE_LIMIT] if isinstance(message, str) else ""
    return (_exit_code(value) if value.get("reason") == "NonZeroExitCode" else None), shown


def _exit_code(value: Mapping[str, Any]) -> int | None:
    details = value.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    for cause in causes if isinstance(causes, list) else ():
        if isinstance(cause, dict) and cause.get("reason") == "ExitCode":
            code = cause.get("message")
            if isinstance(code, str) and code.isascii() and code.isdecimal() and len(code) <= 10:
                return int(code)
    return None


# -- what a target answered -----------------------------------------------------------------------------


def read_status(document: bytes) -> Mapping[str, Any] | None:
    """Return a metav1.Status as a mapping, None where it is none. Never raises."""
    try:
        value = json.loads(document) if len(document) <= DOCUMENT_LIMIT else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("kind") == "Status" else None


def code_of(document: bytes) -> int:
    """Return the HTTP code that a failure's document names, 500 where it names none."""
    code = (read_status(document) or {}).get("code")
    return code if isinstance(code, int) and 400 <= code <= 599 else 500
