"""Errors, notices and notifications quote data: what is left of their texts under masks.

Under a column mask nobody can tell which column a text quotes, so:

message   of an error: everything from the first quote or bracket to the last becomes ``?`` (a value may hold quotes
          itself, so that pairs cannot be trusted), and so do byte sequences (0xc3), numbers (chr(n), make_date(..)
          quote theirs bare) and what follows a colon (``operator does not exist: ?``, for a cast to regoper). Of an
          error that a function raises with words of its own (P0001, class P0), and of a notice whose code is not in
          HARMLESS_CODES, nothing is left
hint      like an error's message
detail    dropped: it shows whole rows and keys          where    dropped: it shows lines of data
payload   (NOTIFY) and value (a reported setting): masked

Codes, constraint, table and column names are left, drivers need them. Under detectors alone the detectors work on each
text. Keys: proxy/core/events.Remark; severity and code are read, all other keys are passed.

Source: PostgreSQL 18 docs 54.8 (fields), appendix A (codes); postgres note 9 lists what each field leaked.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.events import RemarkFields
from proxy.masking.texts import TextMask

FREE_TEXT: Final = ("message", "detail", "hint", "where", "payload", "value")
MASKED: Final = "[masked]"
MASKED_NOTICE: Final = "[masked notice]"
MASKED_MESSAGE: Final = "[masked message]"
# Notices of the server itself, with names of objects only: "already exists, skipping" and transaction warnings.
HARMLESS_CODES: Final = frozenset(
    ("42P07", "42P06", "42701", "42710", "42723", "42622", "25001", "25P01", "25P02", "3F000", "42P01", "57P01")
)
_ERRORS: Final = frozenset(("ERROR", "FATAL", "PANIC"))
# Quotes and brackets of the languages that PostgreSQL's messages come in (lc_messages): ASCII, guillemets, the
# typographic quotes U+2018 to U+201F and U+2039/203A, and the CJK brackets U+3008 to U+3011 and U+FF02.
_QUOTES: Final = "[\"'`()\\[\\]{}\u00ab\u00bb\u2018-\u201f\u2039\u203a\u3008-\u3011\uff02]"
_OPENING: Final = re.compile(_QUOTES)
_QUOTED: Final = re.compile(f"{_QUOTES}.*{_QUOTES}", re.DOTALL)
# A number that stands alone; the digits of an identifier do not.
_NUMBERS: Final = re.compile(r"0x[0-9A-Fa-f]+|(?<![A-Za-z0-9_])[-+]?[0-9][0-9A-Fa-f.,:+-]*")
_PLACEHOLDERS: Final = frozenset(('"?"', "'?'", "(?)", "`?`"))


def under_columns(fields: RemarkFields) -> dict[str, str]:
    """Mask the texts of a remark where some column is masked."""
    masked = dict(fields)
    for key in ("detail", "where"):
        if masked.get(key):
            masked[key] = ""
    for key in ("payload", "value"):
        if masked.get(key):
            masked[key] = MASKED
    if masked.get("hint"):
        masked["hint"] = unquoted(masked["hint"])
    if masked.get("message"):
        masked["message"] = _message(masked)
    return masked


def _message(fields: dict[str, str]) -> str:
    code = fields.get("code", "")
    if fields.get("severity", "").upper() in _ERRORS:
        return MASKED_MESSAGE if code.startswith("P0") or not code else unquoted(fields["message"])
    return unquoted(fields["message"]) if code in HARMLESS_CODES else MASKED_NOTICE


def unquoted(text: str) -> str:
    """Replace what may be a value by ``?``: all from the first quote or bracket to the last, or to the end if there is
    only one; numbers; all behind a colon."""
    opening = _OPENING.search(text)
    if opening is not None:
        quoted = _QUOTED.search(text, opening.start())
        end = quoted.end() if quoted is not None else len(text)
        mark = text[opening.start()] if text[opening.start()] in "\"'(" else '"'
        text = f"{text[: opening.start()]}{mark}?{')' if mark == '(' else mark}{text[end:]}"
    head, colon, tail = text.partition(": ")
    if colon and tail not in _PLACEHOLDERS:
        text = f"{head}: ?"
    return _NUMBERS.sub("?", text)


def under_detectors(fields: RemarkFields, texts: TextMask) -> RemarkFields:
    """Let the detectors work on each free text; NULL becomes the empty text. The same object if nothing changes."""
    masked: dict[str, str] | None = None
    for key in FREE_TEXT:
        text = fields.get(key)
        if not text:
            continue
        before = text.encode("utf-8", "surrogateescape")
        after = texts(before)
        if after is not before:
            masked = dict(fields) if masked is None else masked
            masked[key] = (after or b"").decode("utf-8", "surrogateescape")
    return fields if masked is None else masked
