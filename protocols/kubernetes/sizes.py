"""Sizes of a terminal, as the resize stream says them: JSON objects one after another, cut anywhere.

``{"Width":101,"Height":33}`` and a newline, numbers of 16 bits; names of members in any case, others ignored, as Go
reads them. A size with a zero is no size, and ignored. What is no such object is an error: nothing else is ever sent.
Source: k8s.io/client-go/tools/remotecommand (TerminalSize), kubernetes note 3.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from protocols.kubernetes.streams import Size
from proxy.core.errors import UserPeerError

SIZE_LIMIT: Final = 1024  # bytes of one object; kubectl's have 26
CELLS_LIMIT: Final = 65_535  # uint16

_OBJECT: Final = re.compile(rb"\s*(\{[^{}]*\})")
_OPEN: Final = re.compile(rb"\s*(\{[^{}]*)?\Z")


class Sizes:
    """Reads a resize stream."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Size]:
        """Take a piece of the stream; return the sizes that are whole now. Raises UserPeerError."""
        text = self._pending + data
        sizes: list[Size] = []
        at = 0
        while found := _OBJECT.match(text, at):
            at = found.end()
            size = _size(found[1])
            if size.columns and size.rows:
                sizes.append(size)
        if not _OPEN.match(text, at) or len(text) - at > SIZE_LIMIT:
            raise UserPeerError("a terminal's size that cannot be read")
        self._pending = text[at:].lstrip()
        return sizes


def encode_size(columns: int, rows: int) -> bytes:
    """Say a size as kubectl does."""
    return b'{"Width":%d,"Height":%d}\n' % (max(0, min(columns, CELLS_LIMIT)), max(0, min(rows, CELLS_LIMIT)))


def _size(text: bytes) -> Size:
    try:
        value: dict[str, Any] = {name.lower(): number for name, number in json.loads(text).items()}
    except (ValueError, RecursionError):
        value = {"width": -1}
    width, height = value.get("width", 0), value.get("height", 0)
    for number in (width, height):
        if type(number) is not int or not 0 <= number <= CELLS_LIMIT:
            raise UserPeerError("a terminal's size that cannot be read")
    return Size(width, height)
