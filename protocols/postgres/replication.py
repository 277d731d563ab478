"""Replication commands: the small grammar that a walsender speaks beside SQL.

Each is known by its first word, as PostgreSQL itself does (repl_gram.y, replication_scanner_is_replication_command);
what a command streams afterwards passes every mask, so the ones that stream are transfers, decided as a whole.
Source: PostgreSQL 18 docs 54.4 Streaming Replication Protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from proxy.core.events import Kind
from proxy.core.statement import Statement

REPLICATION_VERBS: Final[Mapping[str, Kind]] = {
    "IDENTIFY_SYSTEM": "read",
    "TIMELINE_HISTORY": "read",
    "READ_REPLICATION_SLOT": "read",
    "CREATE_REPLICATION_SLOT": "define",
    "ALTER_REPLICATION_SLOT": "define",
    "DROP_REPLICATION_SLOT": "delete",
    "START_REPLICATION": "transfer",
    "BASE_BACKUP": "transfer",
    "UPLOAD_MANIFEST": "transfer",
}

_FIRST_WORD: Final = re.compile(r"\s*([A-Za-z_]+)")


def replication_statement(text: str) -> Statement | None:
    """Return the statement if the text is a replication command; None if it is to be read as SQL."""
    match = _FIRST_WORD.match(text)
    if match is None:
        return None
    verb = match[1].upper()
    kind = REPLICATION_VERBS.get(verb)
    if kind is None:
        return None
    return Statement(verb, kind, text, literal_free=False, more={"replication": True})
