"""What of a tape goes into the index: commands with their verdict, rule, result and objects; intents; counts.

The records are those of format.py, after masking: what the tape does not hold cannot get into the index. Texts are kept
up to TEXT_LIMIT and the row says when one was cut, so that a search can say what it did not look through.

A command is held in memory until its result is known, at most OPEN_LIMIT of them; what comes later becomes an UPDATE.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from recorder.format import Joiner, Kind, Record, fields, verdict_word

TEXT_LIMIT: Final = 64 * 1024  # characters, ours: what people type is shorter; bulk INSERTs would make the index a tape
INTENT_LIMIT: Final = 4 * 1024  # characters of all intents of a session, ours
WORD_LIMIT: Final = 256  # characters of a name, a rule, a SQLSTATE, ours
ERROR_LIMIT: Final = 300  # characters of an error's message, ours: two lines
NOTES_LIMIT: Final = 64 * 1024  # characters of what is added to a text: 700 files of a copy with their hashes, ours
PATH_LIMIT: Final = 4096  # characters of a transfer's path: Linux's PATH_MAX
OBJECTS_LIMIT: Final = 256  # objects of one command, ours
OPEN_LIMIT: Final = 4096  # commands in memory whose result is not known: a pipeline's worth, as segment.py has it
OPEN_BYTES_LIMIT: Final = 4 * 1024 * 1024  # characters of their texts
_INTEGER_LIMIT: Final = 2**63 - 1  # SQLite's


@dataclass(slots=True)
class _Row:
    """A command that is not in the database yet."""

    n: int
    number: int
    t_ns: int
    verb: str
    kind: str
    text: str
    cut: bool
    objects: list[str]
    verdict: str = ""
    rule: str = ""
    by: str = ""
    row_count: int | None = None
    code: str = ""
    error: str = ""


@dataclass(slots=True)
class Counts:
    """What a session's row sums up; commands is how many there were before, too."""

    commands: int = 0
    allowed: int = 0
    denied: int = 0
    held: int = 0
    errors: int = 0
    lost: int = 0
    intents: list[str] = field(default_factory=list)


class Collector:
    """Turns the records of one session into rows. write() puts them into the database, in the caller's transaction."""

    def __init__(self, session: int, wall0_ns: int, counts: Counts, seen: int = 0) -> None:
        """seen: records below this number were taken note of before."""
        self.counts = counts
        self.last_ns = 0
        self.joining_from = 0
        self._seen = seen
        self._session = session
        self._wall0_ns = wall0_ns
        self._joiner = Joiner()
        self._joining = False
        self._rows: dict[int, _Row] = {}
        self._size = 0
        self._late: list[tuple[str, tuple[Any, ...]]] = []
        self._notes: dict[int, list[str]] = {}  # by the command's number: what is to be added to its text
        self._noted = 0  # characters of them

    @property
    def idle(self) -> bool:
        """Whether reading may stop here: no long record is half read."""
        return not self._joining

    @property
    def full(self) -> bool:
        """Whether it is time to write()."""
        many = len(self._rows) + len(self._late) + len(self._notes) >= OPEN_LIMIT
        return many or self._size + self._noted >= OPEN_BYTES_LIMIT

    def feed(self, part: Record) -> None:
        """Take note of a record. Raises FormatError if its parts do not belong together."""
        self.last_ns = part.t_ns
        if part.more and not part.part:
            self.joining_from = part.n
        self._joining = part.more > 0
        if part.kind == Kind.WIRE and not part.part and not part.more:
            return
        record = self._joiner.feed(part)
        if record is None or record.n < self._seen:
            return
        match record.kind:
            case Kind.COMMAND:
                self._command(record, fields(record.payload))
            case Kind.VERDICT:
                self._verdict(fields(record.payload))
            case Kind.APPROVAL:
                self._approval(fields(record.payload))
            case Kind.RESULT:
                self._result(fields(record.payload))
            case Kind.INTENT:
                self._intent(fields(record.payload))
            case _:
                pass

    def drop(self) -> None:
        """Give up the long record that is half read."""
        self._joiner, self._joining = Joiner(), False

    def _command(self, record: Record, said: Mapping[str, Any]) -> None:
        self.counts.commands += 1
        text = said.get("text")
        text = text if isinstance(text, str) else ""
        objects = said.get("objects")
        names = [word(item) for item in objects[:OBJECTS_LIMIT]] if isinstance(objects, list) else []
        self._rows[record.n] = _Row(
            record.n,
            self.counts.commands,
            whole(record.t_ns),
            word(said.get("verb", "")),
            word(said.get("kind", "")),
            clean(text[:TEXT_LIMIT]),
            len(text) > TEXT_LIMIT,
            list(dict.fromkeys(name for name in names if name)),
        )
        self._size += min(len(text), TEXT_LIMIT)

    def _verdict(self, said: Mapping[str, Any]) -> None:
        verdict, rule = word(verdict_word(said)), word(said.get("rule", ""))
        if verdict.endswith("allow"):
            self.counts.allowed += 1
        else:
            self.counts.denied += 1
        row = self._open(said)
        if row is None:
            self._update("verdict = ?, rule = ?", said, verdict, rule)
        else:
            row.verdict, row.rule = verdict, rule

    def _approval(self, said: Mapping[str, Any]) -> None:
        row = self._open(said)
        if said.get("state") == "pending":
            self.counts.held += 1
            if row is None:
                self._update("verdict = 'held', rule = ?", said, word(said.get("rule", "")))
            else:
                row.verdict, row.rule = "held", word(said.get("rule", ""))
        elif said.get("by"):
            if row is None:
                self._update("by = ?", said, word(said["by"]))
            else:
                row.by = word(said["by"])

    def _result(self, said: Mapping[str, Any]) -> None:
        count = said.get("count")
        rows = whole(count) if isinstance(count, int) else 0
        problem = said.get("error")
        code = error = ""
        if isinstance(problem, dict):
            self.counts.errors += 1
            code = word(problem.get("code") or problem.get("sqlstate") or "")
            error = clean(str(problem.get("message") or problem.get("severity") or "error")[:ERROR_LIMIT])
        row = self._open(said)
        if row is None:
            # The first error of a command stands, and the rows of its statements add up.
            self._update(
                "row_count = min(coalesce(row_count, 0) + ?, 9223372036854775807), "
                "code = iif(error = '', ?, code), error = iif(error = '', ?, error)",
                said,
                rows,
                code,
                error,
            )
        else:
            row.row_count = whole((row.row_count or 0) + rows)
            if not row.error:
                row.code, row.error = code, error

        notes = _content_notes(said, row.text if row is not None else "")
        if notes and isinstance(said.get("command"), int):
            self._notes.setdefault(whole(said["command"]), []).append(notes)
            self._noted += len(notes)

    def _intent(self, said: Mapping[str, Any]) -> None:
        kept = self.counts.intents
        room = INTENT_LIMIT - sum(map(len, kept)) - len(kept)
        text = clean(str(said.get("text", ""))[: max(0, room)])
        if text and text not in kept:
            kept.append(text)

    def _open(self, said: Mapping[str, Any]) -> _Row | None:
        n = said.get("command")
        return self._rows.get(n) if isinstance(n, int) else None

    def _update(self, what: str, said: Mapping[str, Any], *values: str | int) -> None:
        n = said.get("command")
        if isinstance(n, int):
            self._late.append((what, (*values, self._session, whole(n))))

    def write(self, connection: sqlite3.Connection) -> int:
        """Insert and update; return how many commands were new."""
        rows = list(self._rows.values())
        for row in rows:
            notes = self._notes.pop(row.n, None)
            if notes is not None:
                row.text, cut = _with_notes(row.text, notes)
                row.cut = row.cut or cut
        self._rows, self._size = {}, 0
        if rows:
            first = 1 + connection.execute("SELECT coalesce(max(id), 0) FROM commands").fetchone()[0]
            connection.executemany(
                "INSERT INTO commands VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._cells(row, first + i) for i, row in enumerate(rows)),
            )
            connection.executemany(
                "INSERT INTO texts(rowid, text) VALUES(?, ?)",
                ((first + i, row.text) for i, row in enumerate(rows)),
            )
            self._write_objects(connection, rows, first)
        for what, values in self._late:
            connection.execute(f"UPDATE commands SET {what} WHERE session = ? AND n = ?", values)  # noqa: S608  # ours
        for n, late in self._notes.items():
            self._add_notes(connection, n, late)
        self._late, self._notes, self._noted = [], {}, 0
        return len(rows)

    def _add_notes(self, connection: sqlite3.Connection, n: int, notes: list[str]) -> None:
        """Add to the text of a command that is in the index already."""
        found = connection.execute(
            "SELECT id, text FROM commands WHERE session = ? AND n = ?", (self._session, n)
        ).fetchone()
        if found is None:
            return
        id_, before = found
        known = set(before.split("\n"))
        notes = [note for note in notes if not known.issuperset(note.split("\n"))]
        text, cut = _with_notes(before, [note for note in notes if not _asks_for(note.removeprefix("job "), before)])
        if cut:
            connection.execute("UPDATE commands SET cut = 1 WHERE id = ?", (id_,))
        if text == before:
            return
        # An external content table must be told what it had indexed. SQLite documentation, FTS5 4.4.3.
        connection.execute("INSERT INTO texts(texts, rowid, text) VALUES('delete', ?, ?)", (id_, before))
        connection.execute("UPDATE commands SET text = ? WHERE id = ?", (text, id_))
        connection.execute("INSERT INTO texts(rowid, text) VALUES(?, ?)", (id_, text))

    def _cells(self, row: _Row, id_: int) -> tuple[Any, ...]:
        at = whole(self._wall0_ns + row.t_ns)
        objects = json.dumps(row.objects) if row.objects else ""
        return (
            id_, self._session, row.n, row.number, row.t_ns, at, row.verb, row.kind, row.verdict, row.rule, row.by,
            row.row_count, row.code, row.error, objects, int(row.cut), row.text,
        )  # fmt: skip

    def _write_objects(self, connection: sqlite3.Connection, rows: list[_Row], first: int) -> None:
        names = {name for row in rows for name in row.objects}
        if not names:
            return
        connection.executemany("INSERT OR IGNORE INTO names(name) VALUES(?)", ((name,) for name in names))
        connection.executemany(
            "INSERT OR IGNORE INTO objects SELECT id, ? FROM names WHERE name = ?",
            ((first + i, name) for i, row in enumerate(rows) for name in row.objects),
        )


def forget_commands(connection: sqlite3.Connection, session: int) -> None:
    """Take a session's commands out of all tables."""
    while True:
        rows = connection.execute(
            "SELECT id, text, objects FROM commands WHERE session = ? LIMIT 500", (session,)
        ).fetchall()
        if not rows:
            return
        # An external content table must be told what it had indexed. SQLite documentation, FTS5 4.4.3.
        connection.executemany(
            "INSERT INTO texts(texts, rowid, text) VALUES('delete', ?, ?)",
            ((id_, text) for id_, text, _ in rows),
        )
        connection.executemany(
            "DELETE FROM objects WHERE name = (SELECT id FROM names WHERE name = ?) AND command = ?",
            ((name, id_) for id_, _, objects in rows if objects for name in json.loads(objects)),
        )
        connection.executemany("DELETE FROM commands WHERE id = ?", ((id_,) for id_, _, _ in rows))


def _with_notes(text: str, notes: list[str]) -> tuple[str, bool]:
    """The text with the notes, and whether some had no room: a copy of a directory has as many as it has files."""
    room = TEXT_LIMIT + NOTES_LIMIT - len(text)
    kept: list[str] = []
    for note in notes:
        room -= len(note) + 1
        if room < 0:
            return "\n".join(filter(None, [text, *kept])), True
        kept.append(note)
    return "\n".join(filter(None, [text, *kept])), False


def _content_notes(said: Mapping[str, Any], text: str) -> str:
    """What is looked for beside a command's text: of a transfer the hash of its content, and its path; of a command of
    BigQuery its job, and the table that the result went to. Who only asks for a job again names it in the text.
    """
    notes = []
    for name in ("job", "destination"):
        named = said.get(name)
        if isinstance(named, str) and named and named not in text and not _asks_for(named, text):
            notes.append(f"{name} {word(named)}")
    path, digest = said.get("path"), said.get("sha256")
    if isinstance(path, str) and path and path not in text:
        notes.append(clean(path[:PATH_LIMIT]))
    if isinstance(digest, str) and digest:
        notes.append(f"sha256 {word(digest)}")
    return "\n".join(notes)


def _asks_for(job: str, text: str) -> bool:
    """Whether a text names a job, with or without its location: "jobs.get shop:bqjob_1" that of "shop:EU.bqjob_1"."""
    project, colon, name = job.rpartition(":")
    return bool(colon) and text.endswith(f" {project}:{name.rpartition('.')[2]}")


def whole(value: int) -> int:
    """The integer as SQLite can hold it: a tape may say anything."""
    return max(-_INTEGER_LIMIT, min(_INTEGER_LIMIT, value))


def word(value: object) -> str:
    """A short string out of whatever a tape has in its place."""
    return clean(str(value)[:WORD_LIMIT])


def clean(text: str) -> str:
    """SQLite's functions end a text at NUL; half a surrogate pair is no UTF-8."""
    if "\0" in text:
        text = text.replace("\0", "\N{SYMBOL FOR NULL}")
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
