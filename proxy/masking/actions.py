"""What is put in the place of a masked value: one small function on text for each action.

=========  ==========================================================================================================
redact     the mask's text, ``[redacted]`` if it has none
constant   the mask's text (it must have one); in a JSON column a text that is JSON stands as it is
partial    a ``*`` for each character but the last ``keep``; a value of fewer than 2 * keep characters shows none,
           so that never more than half of a value is readable. Characters are Unicode code points; the length
           of the value shows (up to PARTIAL_LIMIT)
hash       HMAC-SHA-256 with the gateway's masking key, in hexadecimal, the first HASH_CHARS digits (80 bits): equal
           values have equal hashes in every column, so that joins still work
null       NULL; in a stream, where there is no NULL, nothing at all
=========  ==========================================================================================================

Bytes that are not UTF-8 (another client_encoding) pass through partial unharmed, one character each. Left out:
format-preserving encryption.

Specification: RFC 2104 (HMAC), FIPS 180-4 (SHA-256).
"""

from __future__ import annotations

import hashlib
from binascii import hexlify
from collections.abc import Callable, Collection
from typing import Final, assert_never, get_args

from proxy.core.verdict import Action, Mask
from proxy.masking.names import check_field, check_pattern
from proxy.masking.warehouse import check_path, is_path

ACTIONS: Final[frozenset[str]] = frozenset(get_args(Action))
REDACTED: Final = "[redacted]"
HASH_CHARS: Final = 20
_BLOCK_BYTES: Final = 64  # of SHA-256, for HMAC: RFC 2104 2
# A mask that shows more is no mask: a card's last four, an IBAN's last eight, with room.
KEEP_LIMIT: Final = 32
# As a label in a cell; a longer one would make results larger than they were.
MASK_TEXT_LIMIT: Final = 1024
# Stars and kept characters of one value; the true length of a longer one does not show.
PARTIAL_LIMIT: Final = 4096

Replace = Callable[[bytes], bytes | None]


def replacer(mask: Mask, key: bytes) -> Replace:
    """Return the function that masks one whole value (text without a prefix); None stands for NULL."""
    match mask.action:
        case "redact" | "constant":
            text = fixed_text(mask)
            return lambda value: text
        case "null":
            return lambda value: None
        case "partial":
            keep = mask.keep
            return lambda value: partial(value, keep)
        case "hash":
            return hasher(key)
        case _:
            assert_never(mask.action)


def fixed_text(mask: Mask) -> bytes:
    """What redact and constant write."""
    return (REDACTED if mask.text is None else mask.text).encode()


def partial(value: bytes, keep: int) -> bytes:
    """Return stars and the last keep characters; stars alone where that would be more than half of the value."""
    # Of a huge value only the end is decoded; a character cut in half at the front lies among the stars.
    huge = len(value) > 8 * PARTIAL_LIMIT
    text = (
        value[-2 * PARTIAL_LIMIT :].decode("utf-8", "surrogateescape")
        if huge
        else value.decode("utf-8", "surrogateescape")
    )
    shown = text[len(text) - keep :] if 0 < keep <= len(text) // 2 else ""
    stars = "*" * (PARTIAL_LIMIT if huge else min(len(text) - len(shown), PARTIAL_LIMIT))
    return (stars + shown).encode("utf-8", "surrogateescape")


def hasher(key: bytes) -> Callable[[bytes], bytes]:
    """Return the function that gives the keyed hash of a value as HASH_CHARS hexadecimal digits.

    HMAC by its two halves, which are made once: hmac.digest makes them anew for each value, for twice the time.
    """
    block = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
    inner = hashlib.sha256(bytes(each ^ 0x36 for each in block))
    outer = hashlib.sha256(bytes(each ^ 0x5C for each in block))

    def hashed(value: bytes) -> bytes:
        one, other = inner.copy(), outer.copy()
        one.update(value)
        other.update(one.digest())
        return hexlify(other.digest()[: HASH_CHARS // 2])

    return hashed


def hashed(value: bytes, key: bytes) -> bytes:
    """Return the keyed hash of one value."""
    return hasher(key)(value)


def check_mask(mask: Mask, known_detectors: Collection[str]) -> str | None:
    """Return what is wrong with a mask of the configuration, None if nothing is."""
    if not mask.columns and not mask.detectors and not mask.fields:
        return "a mask needs columns or detectors (or fields, of Kubernetes)"
    if mask.action not in ACTIONS:
        return f"unknown action {mask.action!r}; known are {', '.join(sorted(ACTIONS))}"
    for pattern in mask.columns:
        problem = check_path(pattern) if is_path(pattern) else check_pattern(pattern)
        if problem is not None:
            return problem
    for pattern in mask.fields:
        problem = check_field(pattern)
        if problem is not None:
            return problem
    for name in mask.detectors:
        if name not in known_detectors:
            return f"unknown detector {name!r}; known are {', '.join(sorted(known_detectors))}"
    if mask.action == "constant" and mask.text is None:
        return "the action constant needs a text"
    if mask.text is not None and mask.action not in ("redact", "constant"):
        return f"the action {mask.action} takes no text"
    if mask.text is not None and len(mask.text.encode("utf-8", "replace")) > MASK_TEXT_LIMIT:
        return f"the text is longer than {MASK_TEXT_LIMIT} bytes"
    if mask.text is not None and any(each < " " or "\ud800" <= each <= "\udfff" for each in mask.text):
        return "the text holds a control character"
    if not 0 <= mask.keep <= KEEP_LIMIT:
        return f"keep must lie between 0 and {KEEP_LIMIT}"
    return None
