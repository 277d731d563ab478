"""What passes over the admin socket: one JSON object a line, requests up, answers down, any number in turn.

    -> {"method": "approvals.approve", "params": {"id": "ap_..."}}
    <- {"ok": true, "result": {...}}        <- {"ok": false, "error": {"code": "own-request", "text": "..."}}

JSON escapes every control character, so a newline always ends a message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.errors import GatecastError

# A request holds names, a reason and at most one token of 64 KiB.
REQUEST_LIMIT: Final = 128 * 1024
# A thousand approvals of 64 KiB each, escaped, and nothing beyond.
ANSWER_LIMIT: Final = 256 * 1024 * 1024
# sun_path of sockaddr_un holds 108 bytes with its NUL (unix(7)).
PATH_LIMIT: Final = 107


class AdminError(GatecastError):
    """A request to the gate could not be done. code is for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end of the socket, as the kernel tells (SO_PEERCRED)."""

    uid: int
    pid: int
    user: str


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the line of a message."""
    return json.dumps(message, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def unpack(line: bytes) -> dict[str, Any]:
    """Return the message of a line. Raises AdminError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AdminError("malformed", "the message is no JSON") from error
    if not isinstance(message, dict):
        raise AdminError("malformed", "the message is no JSON object")
    return message


def unpack_request(line: bytes) -> tuple[str, Mapping[str, Any]]:
    """Return method and params of a request. Raises AdminError."""
    message = unpack(line)
    method, params = message.get("method"), message.get("params", {})
    if not isinstance(method, str) or not isinstance(params, dict):
        raise AdminError("malformed", "a request has a method and params")
    return method, params
