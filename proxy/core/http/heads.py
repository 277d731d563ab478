"""The heads of HTTP messages as values, and their encoding. The parsing is parser.py's.

Field names keep the spelling in which they came; look-ups ignore case. Text is latin-1, so that every byte is kept.
Source: RFC 9110 5 and 7.6.1, RFC 9112 2 to 6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from proxy.core.errors import GatecastError

Fields = tuple[tuple[str, str], ...]

# What is said between two neighbours and goes no further. Source: RFC 9110 7.6.1, and what old proxies send.
HOP_BY_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip

_CONTROLS: Final = bytes({*range(0x20), 0x7F} - {0x09})  # the tab is white space in a value: RFC 9110 5.5


class BadRequest(GatecastError):
    """The user's request cannot be served. status is the HTTP status; closing: the connection is of no more use."""

    def __init__(self, status: int, text: str, closing: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.closing = closing


def get(fields: Fields, name: str) -> str | None:
    """Return the first value of a field, None if there is none. name is in lower case."""
    return next((value for found, value in fields if found.lower() == name), None)


def values(fields: Fields, name: str) -> list[str]:
    """Return all values of a field, as they came. name is in lower case."""
    return [value for found, value in fields if found.lower() == name]


def words(fields: Fields, name: str) -> list[str]:
    """Return the elements of a field that is a comma-separated list, in lower case."""
    return [word.strip().lower() for value in values(fields, name) for word in value.split(",") if word.strip()]


def without(fields: Fields, names: Collection[str]) -> Fields:
    """Return the fields but for some. names are in lower case."""
    return tuple(field for field in fields if field[0].lower() not in names)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's first line and fields. target is as it came (origin form: path and query).

    length: of the body in bytes: None where it is chunked, 0 where there is none. upgrade: the value of Upgrade in
    lower case where Connection asks for one, else "". keep_alive: the user wants to send another request.
    """

    method: str
    target: str
    fields: Fields
    version: str = "1.1"
    length: int | None = 0
    upgrade: str = ""
    keep_alive: bool = True

    def get(self, name: str) -> str | None:
        """Return the first value of a field (name in lower case), None if there is none."""
        return get(self.fields, name)


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response's status line and fields.

    length: as in RequestHead; None also where the end of the connection ends the body.
    """

    status: int
    reason: str
    fields: Fields
    version: str = "1.1"
    length: int | None = 0
    keep_alive: bool = True

    def get(self, name: str) -> str | None:
        """Return the first value of a field (name in lower case), None if there is none."""
        return get(self.fields, name)


def encode_request(method: str, target: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return the head of a request, with its blank line. A control character in it is our own mistake."""
    return _encode(f"{method} {target} HTTP/1.1", fields)


def encode_response(status: int, reason: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return the head of a response, with its blank line."""
    return _encode(f"HTTP/1.1 {status} {reason}", fields)


def _encode(first: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [first, *[f"{name}: {value}" for name, value in fields], ""]
    data = "\r\n".join(lines).encode("latin-1")
    # All that may be taken away are the line ends that were just put in.
    assert len(data) - len(data.translate(None, _CONTROLS)) == 2 * len(lines) - 2, "a control character in a head"
    return data + b"\r\n"
