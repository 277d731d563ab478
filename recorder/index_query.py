"""Questions to the index: which sessions, which commands. Rows come out one by one, as JSON values.

What a person types never becomes SQL, nor FTS5's query language: values are bound, and free text is taken apart here
into words, "phrases" and prefixes*, each of which becomes a quoted FTS5 string. In names ``*`` and ``?`` are
wildcards. All strings in the results come from tapes: print them through recorder.escape.visible.

Left out: OR, NOT and NEAR; ranking (the newest comes first).
Source: SQLite documentation, FTS5 3.1 (strings), 5.1.3 (snippet); GLOB and LIKE in "SQL Language Expressions".
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from recorder.disk import is_live
from recorder.format import SUFFIX
from recorder.index import Index
from recorder.index_days import inodes_of
from recorder.index_schema import unusable

VERDICTS: Final = {
    "allow": ("allow", "held-allow"),
    "deny": ("deny", "held-deny"),
    "held": ("held", "held-allow", "held-deny"),
    "held-allow": ("held-allow",),
    "held-deny": ("held-deny",),
}
STATUSES: Final = ("live", "unsealed", "closed", "failed", "crashed", "damaged")
_MOMENTARY: Final = ("live", "unsealed")  # only the lock of a tape tells, at this moment
QUERY_LIMIT: Final = 4096  # characters of free text, ours
TERMS_LIMIT: Final = 64  # words and phrases of it, ours: FTS5 nests one level a term, and has a limit of 256
PAGE: Final = 200  # commands whose texts are read at once, ours: bounds the memory of an answer that is streamed
SNIPPET_TOKENS: Final = 40  # FTS5's own limit is 64; a line of a wide terminal
TRIGRAM: Final = 3  # FTS5 4.3.4: no shorter text can be looked for
TEXT_LIMIT: Final = 2048  # characters of a text in a row that is not a whole one

_TERM: Final = re.compile(r'"([^"]*)"?(\*?)|([^\s"]+)')


class NothingToLookFor(ValueError):
    """The free text holds no letter and no digit."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sessions or commands; "" and None stand for any. Times are nanoseconds, from since up to before until.

    For sessions the times are of their beginning, for commands their own. The fields from verdict on are of commands;
    a session is wanted if it has such a command.
    """

    subject: str = ""
    agent: str = ""
    protocol: str = ""
    target: str = ""
    run: str = ""
    session: str = ""
    status: str = ""
    intent: str = ""
    since_ns: int | None = None
    until_ns: int | None = None
    verdict: str = ""
    rule: str = ""
    object: str = ""
    verb: str = ""
    kind: str = ""
    approver: str = ""
    error: str = ""
    code: str = ""
    text: str = ""
    limit: int = 100

    @property
    def of_commands(self) -> bool:
        """Whether it asks for something that only commands have."""
        return any((self.verdict, self.rule, self.object, self.verb, self.kind, self.approver, self.error, self.code,
                    self.text))  # fmt: skip


class _Where:
    """Conditions and their values."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.values: list[Any] = []

    def add(self, part: str, *values: Any) -> None:
        self.parts.append(part)
        self.values += values

    def name(self, column: str, pattern: str) -> None:
        """A name, with wildcards if it has any."""
        if pattern:
            self.add(f"{column} {'GLOB' if is_glob(pattern) else '='} ?", glob(pattern))

    def part(self, column: str, text: str) -> None:
        """A piece of a text, whatever its case."""
        if text:
            self.add(f"{column} LIKE ? ESCAPE '\\'", f"%{like(text)}%")

    def __str__(self) -> str:
        return " AND ".join(f"({part})" for part in self.parts) or "1"


def find_sessions(index: Index, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield the rows of the wanted sessions, the newest first. Raises IndexDamaged, IndexUnavailable, ValueError."""
    where = _sessions_where(wanted)
    if wanted.of_commands:
        inner = _commands_where(index, wanted, times=False)
        source = "commands AS c" + (" JOIN texts ON texts.rowid = c.id" if "MATCH" in str(inner) else "")
        where.add(f"s.id IN (SELECT c.session FROM {source} WHERE {inner})", *inner.values)  # noqa: S608  # bound values
    _session_times(where, wanted)
    query = f"SELECT s.* FROM sessions AS s WHERE {where} ORDER BY s.started_ns DESC, s.sid DESC LIMIT ?"  # noqa: S608
    look = wanted.limit if wanted.status not in _MOMENTARY else -1
    count = 0
    for row in _rows(index.connection, query, [*where.values, look]):
        if count >= wanted.limit:
            return
        found = session_row(index.directory, row)
        if not wanted.status or found.get("status") == wanted.status:
            count += 1
            yield found


def find_commands(index: Index, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield the wanted commands, the newest first; "parts" of a row is its text, or the piece of it that was found, as
    pairs of a text and whether it is a hit. Raises IndexDamaged, IndexUnavailable, NothingToLookFor.
    """
    where = _sessions_where(wanted)
    inner = _commands_where(index, wanted, times=True)
    where.add(str(inner), *inner.values)
    match = _match(index, wanted.text)[0] if wanted.text else ""
    joined = " JOIN texts ON texts.rowid = c.id" if match else ""
    query = (
        f"SELECT c.id FROM commands AS c JOIN sessions AS s ON s.id = c.session{joined} "  # noqa: S608  # bound values
        f"WHERE {where} ORDER BY c.at DESC, c.id DESC LIMIT ?"
    )
    # Only numbers are sorted; texts are read, and snippets made, of what is shown.
    look = wanted.limit if wanted.status not in _MOMENTARY else -1
    count = 0
    ids = _rows(index.connection, query, [*where.values, look])
    while page := [row[0] for row in islice(ids, PAGE)]:
        snippets = _snippets(index, page, match) if match else {}
        for id_ in page:
            if count >= wanted.limit:
                return
            found = _command_row(index, id_, snippets.get(id_))
            if found is not None and (not wanted.status or found["status"] == wanted.status):
                count += 1
                yield found


def count_cut(index: Index) -> int:
    """How many commands are in the index with the beginning of their text only."""
    row = index.connection.execute("SELECT count(*) FROM commands WHERE cut").fetchone()
    return int(row[0])


def _sessions_where(wanted: Wanted) -> _Where:
    where = _Where()
    for column in ("subject", "protocol", "target", "run"):
        where.name(f"s.{column}", getattr(wanted, column))
    if wanted.agent:
        inner = _Where()
        inner.name("value", wanted.agent)
        where.add(f"EXISTS (SELECT 1 FROM json_each(s.agents) WHERE {inner})", *inner.values)  # noqa: S608  # bound values
    if wanted.session:
        where.add("s.sid GLOB ?", wanted.session.upper().replace("[", "[[]") + "*")
    where.part("s.intent", wanted.intent)
    if wanted.status in ("live", "unsealed"):
        where.add("s.done = 0 AND s.damage = ''")
    elif wanted.status == "damaged":
        where.add("s.damage <> ''")
    elif wanted.status:
        where.add("s.status = ?", wanted.status)
    return where


def _session_times(where: _Where, wanted: Wanted) -> None:
    if wanted.since_ns is not None:
        where.add("s.started_ns >= ?", wanted.since_ns)
    if wanted.until_ns is not None:
        where.add("s.started_ns < ?", wanted.until_ns)


def _commands_where(index: Index, wanted: Wanted, times: bool) -> _Where:
    where = _Where()
    if wanted.verdict:
        words = VERDICTS[wanted.verdict]
        where.add(f"c.verdict IN ({', '.join('?' * len(words))})", *words)
        if "allow" not in words:
            where.add("c.verdict <> 'allow'")  # so that SQLite can take the partial index
    for column in ("rule", "kind"):
        where.name(f"c.{column}", getattr(wanted, column))
    where.name("upper(c.verb)", wanted.verb.upper())
    where.name("c.by", wanted.approver)
    if wanted.code:
        where.name("c.code", wanted.code.upper())
        where.add("c.error <> ''")
    if wanted.error:
        where.add("c.error <> ''")
        if wanted.error != "*":
            where.part("c.error", wanted.error)
    if wanted.object:
        inner = _Where()
        inner.name("name", wanted.object)
        inner.name("name", f"*.{wanted.object}")  # "orders" is any schema's
        either = " OR ".join(inner.parts)
        names = f"SELECT id FROM names WHERE {either}"  # noqa: S608  # bound values
        where.add(f"c.id IN (SELECT command FROM objects WHERE name IN ({names}))", *inner.values)  # noqa: S608
    if times and wanted.since_ns is not None:
        where.add("c.at >= ?", wanted.since_ns)
    if times and wanted.until_ns is not None:
        where.add("c.at < ?", wanted.until_ns)
    if wanted.text:
        match, short = _match(index, wanted.text)
        if match:
            where.add("texts MATCH ?", match)
        for text in short:
            where.part("c.text", text)
    return where


# -- free text --------------------------------------------------------------------------------------------


def _match(index: Index, text: str) -> tuple[str, list[str]]:
    """Return FTS5's query, and the words that must be looked for in the texts themselves. Raises NothingToLookFor."""
    words: list[str] = []
    short: list[str] = []
    for term, prefix in terms(text):
        quoted = '"' + term.replace('"', '""') + '"'
        if index.substring:
            # Every part of a text is found; but nothing below three characters.
            (words if len(term) >= TRIGRAM else short).append(quoted if len(term) >= TRIGRAM else term)
        elif any(unicodedata.category(character)[0] in "LN" for character in term):
            words.append(f"{quoted}*" if prefix else quoted)
    if not words and not short:
        raise NothingToLookFor("there is no letter and no digit in it")
    return " ".join(words), short


def terms(text: str) -> list[tuple[str, bool]]:
    """Take free text apart: words, "phrases", and whether only their beginning is given (a ``*`` at the end)."""
    found: list[tuple[str, bool]] = []
    for match in _TERM.finditer(text[:QUERY_LIMIT].replace("\0", " ")):
        phrase, star, word = match.groups()
        term = phrase if word is None else word.rstrip("*")
        if term.strip():
            found.append((term, bool(star) or (word is not None and word.endswith("*"))))
    return found[:TERMS_LIMIT]


def is_glob(pattern: str) -> bool:
    """Whether it has wildcards."""
    return "*" in pattern or "?" in pattern


def glob(pattern: str) -> str:
    """As SQLite's GLOB has it: its brackets are no wildcards here."""
    return pattern.replace("[", "[[]") if is_glob(pattern) else pattern


def like(text: str) -> str:
    """As a piece of a LIKE pattern with the escape character backslash."""
    return re.sub(r"([\\%_])", r"\\\1", text)


# -- rows -------------------------------------------------------------------------------------------------


def _rows(connection: sqlite3.Connection, query: str, values: list[Any]) -> Iterator[sqlite3.Row]:
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    try:
        yield from cursor.execute(query, values)
    except sqlite3.Error as error:
        raise unusable(error) from error


def session_row(directory: Path, row: sqlite3.Row) -> dict[str, Any]:
    """A session as JSON values; one that could not be read has its file's name and the error."""
    from recorder.export import wall_time

    day, sid = str(row["day"]), str(row["sid"])
    segments = [directory / day / f"{sid}.{segment:03d}{SUFFIX}" for segment in inodes_of(row["files"])]
    path = str(segments[0] if segments else directory / day / f"{sid}.000{SUFFIX}")
    if row["error"]:
        return {"sid": sid, "path": path, "error": row["error"]}
    status = _status(row, segments)
    encrypted = bool(row["encrypted"])
    counted = not encrypted or bool(row["done"])
    return {
        "sid": sid,
        "path": path,
        "segments": len(segments),
        "where": {"partly": "local, partly vault"}.get(row["place"], row["place"]),
        "started": wall_time(_sane(row["started_ns"])),
        "seconds": round(row["duration_ns"] / 1e9, 6),
        "status": status,
        "reason": row["reason"],
        "protocol": row["protocol"],
        "target": row["target"],
        "subject": row["subject"],
        "agents": json.loads(row["agents"]),
        "groups": json.loads(row["groups"]),
        "run": row["run"],
        "node": row["node"],
        "intent": row["intent"],
        "encrypted": encrypted,
        "records": row["seen"],
        "commands_count": row["commands"] if counted else None,
        "allowed": None if encrypted else row["allowed"],
        "denied": None if encrypted else row["denied"],
        "held": None if encrypted else row["held"],
        "errors": None if encrypted else row["errors"],
        "records_lost": row["lost"],
        "damage": row["damage"],
        "size_bytes": row["size_bytes"],
    }


def _status(row: sqlite3.Row, segments: list[Path]) -> str:
    if row["damage"]:
        return "damaged"
    if row["done"]:
        return str(row["status"])
    return "live" if segments and is_live(segments[-1]) else "unsealed"


def _command_row(index: Index, id_: int, snippet: list[list[Any]] | None) -> dict[str, Any] | None:
    from recorder.export import wall_time

    query = (
        "SELECT s.*, c.n, c.number, c.t_ns, c.at, c.verb, c.kind, c.verdict, c.rule, c.by, c.row_count, c.code, "
        "c.error AS problem, c.objects, c.cut, c.text FROM commands AS c JOIN sessions AS s ON s.id = c.session "
        "WHERE c.id = ?"
    )
    row = next(_rows(index.connection, query, [id_]), None)
    if row is None:  # forgotten in this moment
        return None
    session = session_row(index.directory, row)
    text = str(row["text"])
    return {
        "sid": session["sid"],
        "n": row["n"],
        "number": row["number"],
        "time": wall_time(_sane(row["at"])),
        "seconds": round(row["t_ns"] / 1e9, 6),
        **{name: session[name] for name in ("subject", "agents", "protocol", "target", "run", "status", "where")},
        "verb": row["verb"],
        "kind": row["kind"],
        "verdict": row["verdict"],
        "rule": row["rule"],
        "by": row["by"],
        "rows": row["row_count"],
        "code": row["code"],
        "error": row["problem"],
        "objects": json.loads(row["objects"]) if row["objects"] else [],
        "text": text,
        "text_cut": bool(row["cut"]),
        "parts": snippet if snippet is not None else [[text[:TEXT_LIMIT], False]],
        "path": session["path"],
    }


def _snippets(index: Index, ids: list[int], match: str) -> dict[int, list[list[Any]]]:
    """The pieces of the texts that were found, taken apart at marks that no text can guess.

    One pass for all of them (the plus keeps SQLite from looking each up alone): a beginning* is costly to expand.
    """
    opening, closing = f"\x02{secrets.token_hex(8)}", f"\x03{secrets.token_hex(8)}"
    query = (
        f"SELECT rowid, snippet(texts, 0, ?, ?, '…', {SNIPPET_TOKENS}) FROM texts "  # noqa: S608  # bound values
        f"WHERE texts MATCH ? AND +rowid IN ({', '.join('?' * len(ids))})"
    )
    rows = _rows(index.connection, query, [opening, closing, match, *ids])
    return {row[0]: _parts(str(row[1]), opening, closing) for row in rows}


def _parts(snippet: str, opening: str, closing: str) -> list[list[Any]]:
    pieces = re.split(f"({re.escape(opening)}|{re.escape(closing)})", snippet)
    parts: list[list[Any]] = []
    hit = False
    for piece in pieces:
        if piece in (opening, closing):
            hit = piece == opening
        elif piece:
            parts.append([piece, hit])
    return parts


def _sane(ns: int) -> int:
    """A time that a calendar has: a tape may say anything."""
    return max(0, min(ns, 253_402_300_799_000_000_000))  # 9999-12-31
