"""Why a caller does something, as far as the request itself says so: the comments around its SQL, and a job's labels.

Comments before the first word of the SQL and behind the last one speak about the whole: a prompt that an agent puts
there, dbt's and Looker's context, sqlcommenter's pairs. Those within explain a line, and are left to the text. Pairs
are decoded; traceparent and tracestate, which differ for every query and tell no reason, are left out of them (the text
of the command has them). White space is joined, as an intent is a line.

This is the caller's own word: it proves nothing, and no decision rests on it. The header Gatecast-Intent is read where
all HTTP is (proxy/http/serving.py).

Left out: comments behind the last word of a text over TEXT_LIMIT; SQL within definitions (views, routines).
Source: the sqlcommenter specification, "Format"; BigQuery's lexical structure, "Comments", "String and bytes literals".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from protocols.bigquery.requests import Asked

TEXT_LIMIT: Final = 64 * 1024  # characters of SQL that are looked through to the end: some milliseconds. Ours
INTENT_LIMIT: Final = 4096  # characters of one intent, as proxy/http/serving.py has it for the header

_COMMENT: Final = r"--[^\n]*|\#[^\n]*|/\*.*?(?:\*/|\Z)"
_HEAD: Final = re.compile(rf"(?:\s+|{_COMMENT})*+", re.DOTALL)
# Strings are passed over whole, as what looks like a comment in one is none. Nothing here reads a character twice.
_PIECE: Final = re.compile(
    rf"""(?P<comment>{_COMMENT})
    | '''(?:\\.|(?!''')[^\\])*+(?:''')?+ | \"\"\"(?:\\.|(?!\"\"\")[^\\])*+(?:\"\"\")?+
    | '(?:\\.|[^'\\\n])*+'?+ | "(?:\\.|[^"\\\n])*+"?+ | `(?:\\.|[^`\\\n])*+`?+
    | (?P<space>[\s;]++) | [^\s;'"`\#/-]++ | .""",
    re.DOTALL | re.VERBOSE,
)
_PAIR: Final = r"\s*([^\s=,']{1,200})\s*=\s*'((?:\\'|[^'])*)'\s*"
_PAIRS: Final = re.compile(rf"{_PAIR}(?:,{_PAIR})*+")
_EACH: Final = re.compile(_PAIR)
_TRACE: Final = frozenset({"traceparent", "tracestate"})
_SPACE: Final = re.compile(r"[\s\x00-\x1f\x7f]+")


def intent_of(asked: Asked) -> str:
    """Return what a request says of its purpose, "" where it says nothing."""
    said = comments_of(asked.query.text) if asked.query is not None else ()
    words = [*said, labels_text(asked.labels)]
    return "; ".join(dict.fromkeys(word for word in words if word))[:INTENT_LIMIT]


def comments_of(sql: str) -> tuple[str, ...]:
    """Return the comments before and behind all of a text, one line each."""
    head = _HEAD.match(sql)
    begin = head.end() if head is not None else 0
    found = _lines(_comments(sql[:begin]))
    if len(sql) <= TEXT_LIMIT:
        found += _lines(_comments(sql[begin:]))
    return tuple(found)


def labels_text(labels: Mapping[str, str]) -> str:
    """Return a job's labels in a line."""
    pairs = (f"{key}={value}" if value else key for key, value in labels.items())
    return "labels " + ", ".join(_SPACE.sub(" ", pair) for pair in pairs) if labels else ""


def _comments(sql: str) -> list[str]:
    """The comments at the end of a text."""
    found: list[str] = []
    for piece in _PIECE.finditer(sql):
        if piece["comment"] is not None:
            found.append(piece["comment"])
        elif piece["space"] is None:
            found.clear()
    return found


def _lines(comments: list[str]) -> list[str]:
    """What comments say; lines of -- that follow each other are one."""
    found: list[str] = []
    joins = False
    for comment in comments:
        block = comment.startswith("/*")
        text = comment[2:].removesuffix("*/") if block else comment.lstrip("-" if comment[0] == "-" else "#")
        text = _pairs(text) if block else text
        text = _SPACE.sub(" ", text).strip(" *") if block else _SPACE.sub(" ", text).strip()
        if joins and not block and text:
            found[-1] = f"{found[-1]} {text}"
        elif text:
            found.append(text)
        joins = not block and (joins or bool(text))
    return found


def _pairs(text: str) -> str:
    """Decode a comment of sqlcommenter's; any other is returned as it is."""
    if _PAIRS.fullmatch(text) is None:
        return text
    pairs = ((unquote(key), unquote(value.replace("\\'", "'"))) for key, value in _EACH.findall(text))
    return ", ".join(f"{key}={value}" for key, value in pairs if key.lower() not in _TRACE)
