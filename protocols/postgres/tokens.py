"""Names that nobody can have guessed, for replacements of refused messages."""

from __future__ import annotations

import secrets


def new_token() -> str:
    """Return 128 random bits as an ASCII identifier shorter than NAMEDATALEN (64)."""
    return "gatecast_" + secrets.token_hex(16)
