"""ULIDs: 48 bits of milliseconds and 80 random bits in 26 characters of Crockford's base 32; they sort by time.

Source: github.com/ulid/spec. Left out: the monotonic variant; two ids of one millisecond sort by chance.
"""

from __future__ import annotations

import os
import re
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SID_CHARACTERS: Final = frozenset(_ALPHABET)
_SHAPE: Final = re.compile(f"[0-7][{_ALPHABET}]{{25}}")


def new_ulid(wall_ns: int) -> str:
    """Return a new id for the instant wall_ns (nanoseconds since the epoch)."""
    value = (wall_ns // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    return ulid_text(value.to_bytes(16, "big"))


def ulid_bytes(text: str) -> bytes:
    """Return the id as 16 bytes, big-endian. The text must have the shape of a ULID."""
    value = 0
    for character in text:
        value = value << 5 | _ALPHABET.index(character)
    return value.to_bytes(16, "big")


def ulid_text(raw: bytes) -> str:
    """Return the 26 characters of 16 bytes."""
    value = int.from_bytes(raw, "big")
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    """Tell whether the text has the shape of a ULID."""
    return _SHAPE.fullmatch(text) is not None
