"""One tape's row in the index: where reading stands, what the header and the seals say, what was counted."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from recorder.errors import FormatError
from recorder.format import ENCRYPTED, BlockType, Header
from recorder.index_collect import WORD_LIMIT, Collector, Counts, clean, whole, word
from recorder.index_days import Work, inodes_of
from recorder.index_scan import Cursor, Piece, Scan
from recorder.ulid import is_ulid, ulid_bytes

LIST_LIMIT: Final = 256  # groups or agents of an identity, ours


@dataclass(frozen=True, slots=True)
class State:
    """What the index knows of a tape that it has met before."""

    session: int
    cursor: Cursor
    seen: int
    done: bool
    error: str
    inodes: Mapping[int, int]
    counts: Counts

    @classmethod
    def load(cls, connection: sqlite3.Connection, sid: str) -> State | None:
        """Look the session up."""
        row = connection.execute(
            "SELECT id, segment, offset, seq, chain, seen, done, error, files, commands, allowed, denied, held, "
            "errors, lost, intent FROM sessions WHERE sid = ?",
            (sid,),
        ).fetchone()
        if row is None:
            return None
        counts = Counts(*row[9:15])
        counts.intents += [row[15]] if row[15] else []
        return cls(row[0], Cursor(*row[1:5]), row[5], bool(row[6]), row[7], inodes_of(row[8]), counts)


class TapeWriter:
    """Takes the pieces of a scan and writes them and the session's row, in the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, work: Work, scan: Scan, state: State | None) -> None:
        self._connection = connection
        self._work = work
        self._scan = scan
        self._session = state.session if state is not None else 0  # 0: it has no row yet
        self._seen = state.seen if state is not None else 0
        self._counts = state.counts if state is not None else Counts()
        self._collector: Collector | None = None
        self._safe = scan.cursor
        self._last_ns = 0
        self._encrypted = False
        self._seals = 0

    @property
    def full(self) -> bool:
        """Whether it is time to write()."""
        return self._collector is not None and self._collector.full

    def take(self, piece: Piece) -> None:
        """Take note of a block's records. What is wrong with them becomes the scan's damage."""
        block = piece.block
        collector = self._collector
        if collector is None:
            self._open(piece.header)
            collector = self._collector = Collector(self._session, piece.header.wall0_ns, self._counts, self._seen)
        if block.type is BlockType.GAP and block.first_record >= self._seen:
            self._counts.lost += block.n_records
        self._encrypted = self._encrypted or bool(block.flags & ENCRYPTED)
        self._last_ns = max(self._last_ns, whole(block.t0_ns))
        try:
            for record in piece.records:
                collector.feed(record)
        except FormatError as error:
            self._scan.damage = self._scan.damage or error.reason
            collector.drop()
        self._last_ns = max(self._last_ns, whole(collector.last_ns))
        self._seen = max(self._seen, whole(block.next_record if collector.idle else collector.joining_from))
        if collector.idle:
            self._safe = piece.after

    def write(self, ended: bool = False) -> int:
        """Write what was taken; ended: pieces() is over. Returns how many commands were new. Raises FormatError."""
        scan, counts = self._scan, self._counts
        if not self._session:
            if scan.header is None:
                raise FormatError("there is nothing in the file")
            self._open(scan.header)
        if ended and (self._collector is None or self._collector.idle):
            self._safe = scan.cursor
        new = self._collector.write(self._connection) if self._collector is not None else 0
        status = reason = ""
        for seal in scan.seals[self._seals :]:
            self._last_ns = max(self._last_ns, _number(seal.body.get("t_last")))
            if self._encrypted or self._is_encrypted():
                counts.commands = whole(counts.commands + _number(seal.body.get("commands")))
            status, reason = word(seal.body.get("status", "")), word(seal.body.get("reason", ""))
        self._seals = len(scan.seals)
        values: dict[str, Any] = {
            "segment": self._safe.segment, "offset": self._safe.offset, "seq": self._safe.seq,
            "chain": self._safe.chain, "seen": self._seen, "intent": "\n".join(counts.intents),
            "commands": counts.commands, "allowed": counts.allowed, "denied": counts.denied, "held": counts.held,
            "errors": counts.errors, "lost": counts.lost,
        }  # fmt: skip
        if ended:
            values |= {"done": int(scan.done), "damage": clean(scan.damage[:WORD_LIMIT])}
            values |= {"status": status if scan.done else "", "reason": reason if scan.done else ""}
            values |= _files(self._work)
        sets = ", ".join(f"{name} = ?" for name in values)
        self._connection.execute(
            f"UPDATE sessions SET duration_ns = max(duration_ns, ?), encrypted = max(encrypted, ?), {sets} "  # noqa: S608
            "WHERE id = ?",
            (self._last_ns, int(self._encrypted), *values.values(), self._session),
        )
        return new

    def _open(self, header: Header) -> None:
        if not self._session:
            self._session = insert_session(self._connection, self._work, header)

    def _is_encrypted(self) -> bool:
        return self._scan.header is not None and "enc" in self._scan.header.map_


def insert_session(connection: sqlite3.Connection, work: Work, header: Header | None) -> int:
    """Make a session's row, from its header if that can be read. Raises FormatError if it is of another session.

    Its mtime is not the file's yet: only what was read to its end may be passed over the next time.
    """
    said: Mapping[str, Any] = header.map_ if header is not None else {}
    if header is not None and header.sid != work.sid:
        raise FormatError("the header is of another session than the file's name")
    identity = said.get("identity")
    identity = identity if isinstance(identity, dict) else {}
    started_ns = whole(header.wall0_ns) if header is not None else _ulid_ns(work.sid)
    values: dict[str, Any] = {
        "sid": work.sid, "day": work.day, **_files(work), "mtime_ns": 0, "done": 0,
        "segment": min(work.files), "offset": 0, "seq": 0, "chain": b"", "seen": 0, "started_ns": started_ns,
        "duration_ns": 0,
        "status": "", "reason": "", "protocol": word(said.get("protocol", "")), "target": word(said.get("target", "")),
        "subject": word(identity.get("subject", "")), "agents": _list(identity.get("agents")),
        "groups": _list(identity.get("groups")), "run": word(said.get("run", "")), "node": word(said.get("node", "")),
        "intent": "", "encrypted": int("enc" in said), "commands": 0, "allowed": 0, "denied": 0, "held": 0,
        "errors": 0, "lost": 0, "error": "", "damage": "",
    }  # fmt: skip
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    cursor = connection.execute(
        f"INSERT INTO sessions({names}) VALUES({marks})",  # our own names
        tuple(values.values()),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def update_files(connection: sqlite3.Connection, work: Work) -> None:
    """Write down which files of a tape there are now; some may have left for the vault."""
    values = _files(work)
    sets = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE sessions SET {sets} WHERE sid = ?", (*values.values(), work.sid))  # noqa: S608


def _files(work: Work) -> dict[str, Any]:
    place = "local" if 0 in work.files else "partly"
    return {"files": work.key, "place": place, "size_bytes": work.size_bytes, "mtime_ns": work.mtime_ns}


def _list(value: object) -> str:
    items = value if isinstance(value, list | tuple) else ()
    return json.dumps([word(item) for item in items[:LIST_LIMIT]])


def _number(value: object) -> int:
    return whole(value) if isinstance(value, int) else 0


def _ulid_ns(sid: str) -> int:
    """When a session id was made: the best guess where the header cannot be read."""
    return whole(int.from_bytes(ulid_bytes(sid)[:6], "big") * 1_000_000) if is_ulid(sid) else 0
