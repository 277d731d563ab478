"""A terminal's size as kubectl tells it: {"Width":101,"Height":33}. Source: kubernetes note 3."""

from __future__ import annotations

import json
from typing import Final

from protocols.kubernetes.streams import Size
from proxy.core.errors import UserPeerError

SIZE_LIMIT: Final = 1024  # bytes; a size has about thirty
CELLS_LIMIT: Final = 65_535  # a uint16 each


def read_size(payload: bytes) -> Size:
    """Read a terminal's size. Raises UserPeerError."""
    try:
        value = json.loads(payload) if len(payload) <= SIZE_LIMIT else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        columns, rows = value.get("Width"), value.get("Height")
        if type(columns) is int and type(rows) is int and 0 <= columns <= CELLS_LIMIT and 0 <= rows <= CELLS_LIMIT:
            return Size(columns, rows)
    raise UserPeerError("a terminal's size that cannot be read")
