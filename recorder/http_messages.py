"""The messages of HTTP on a tape whose flows are exchanges: heads parsed, bodies counted, their beginnings kept. Pure.

A Message is one direction of one exchange; it is fed the pieces of its flow's channel and gives back what of each is
body. Transfer codings are off (recorder/format.py, "Flows"), so a body ends where its flow does. What does not parse is
``broken``: it has no head, and what came of it is body as it is. Interim answers (1xx) are passed over.

Source: RFC 9112 2 to 5. Left out: content codings, trailers, what the fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

HEAD_LIMIT: Final = 64 * 1024  # ours; servers take 8 to 64 KiB
BODY_LIMIT: Final = 64 * 1024  # bytes of a body that are kept: a viewer shows no more
REQUEST: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) (HTTP/1\.[01])")
STATUS: Final = re.compile(r"(HTTP/1\.[01]) ([1-5][0-9]{2})(?: (.*))?")
FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")


@dataclass(slots=True)
class Message:
    """One request or response as far as it came. size counts its whole body, body holds the beginning.

    head_bytes: -1 while the head is not all there. t_ns, end_ns: of its first and last piece, -1 before any.
    """

    is_request: bool
    body_limit: int = BODY_LIMIT
    start: re.Match[str] | None = None
    fields: list[tuple[str, str]] = field(default_factory=list)
    head_bytes: int = -1
    t_ns: int = -1
    end_ns: int = -1
    size: int = 0
    body: bytearray = field(default_factory=bytearray)
    broken: bool = False
    _head: bytearray = field(default_factory=bytearray)

    @property
    def begun(self) -> bool:
        """Whether its head is known."""
        return self.start is not None

    @property
    def whole(self) -> bool:
        """Whether all of the body that the head announces is there; False where it announces no length."""
        length = self.get("content-length")
        return self.begun and length.isascii() and length.isdigit() and self.size >= int(length[:18])

    @property
    def method(self) -> str:
        return self.start[1] if self.is_request and self.start is not None else ""

    @property
    def target(self) -> str:
        """The path and query of a request."""
        return self.start[2] if self.is_request and self.start is not None else ""

    @property
    def status(self) -> int:
        """The status of a response, 0 where it is not known."""
        return int(self.start[2]) if not self.is_request and self.start is not None else 0

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters."""
        return self.get("content-type").partition(";")[0].strip().lower()

    def get(self, name: str) -> str:
        """Return a field's value, "" if there is none. name is in lower case."""
        return next((value for found, value in self.fields if found.lower() == name), "")

    def feed(self, data: bytes, t_ns: int) -> bytes:
        """Take a piece; return what of it belongs to the body."""
        if self.t_ns < 0:
            self.t_ns = t_ns
        self.end_ns = t_ns
        if not self.begun and not self.broken:
            data = self._take_head(data)
        self.size += len(data)
        room = self.body_limit - len(self.body)
        if room > 0:
            self.body += data[:room]
        return data

    def _take_head(self, data: bytes) -> bytes:
        """Add to the head; return what is behind it."""
        self._head += data
        while True:
            end = self._head.find(b"\r\n\r\n", 0, HEAD_LIMIT + 4)
            if end < 0:
                return self._give_up() if len(self._head) > HEAD_LIMIT + 4 else b""
            if not self._parse(bytes(self._head[:end])):
                return self._give_up()
            if self.status // 100 != 1 or self.status == 101:
                self.head_bytes = end + 4
                rest = bytes(self._head[end + 4 :])
                self._head = bytearray()
                return rest
            del self._head[: end + 4]
            self.start, self.fields = None, []

    def _parse(self, head: bytes) -> bool:
        lines = head.decode("latin-1").split("\r\n")
        found = [FIELD.fullmatch(line) for line in lines[1:]]
        self.start = (REQUEST if self.is_request else STATUS).fullmatch(lines[0])
        if self.start is None or None in found:
            self.start = None
            return False
        self.fields = [(match[1], match[2]) for match in found if match]
        return True

    def _give_up(self) -> bytes:
        self.broken = True
        data, self._head = bytes(self._head), bytearray()
        return data


def is_http(header: Mapping[str, Any]) -> bool:
    """Whether the flows of a tape with this header are exchanges of HTTP."""
    more = header.get("more")
    return isinstance(more, dict) and more.get("http") is True
