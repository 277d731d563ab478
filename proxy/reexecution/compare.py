"""Two outcomes of one command, and how they differ: SQLSTATE, tag and count, columns, rows, their order.

What cannot be the same is not compared: cells under masks, columns with volatile functions, identifiers that each
database gives itself (oid, xid, ctid, ...), user-defined types beyond that they are such. Rows are compared as
multisets; in order only under an ORDER BY, and then by its keys, since rows that tie may come in any order.

Source: recorder note, section 9 (re-execution diff).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, Literal

from protocols.postgres.outcomes import Outcome, Result
from protocols.postgres.recorded import Recorded
from protocols.postgres.rows import first_rows
from protocols.postgres.rowsets import CopySet, Room, RowSet
from protocols.postgres.wire import Field
from proxy.core.statement import Copy
from proxy.reexecution.statements import Facts

State = Literal["same", "different", "skipped", "not-replayable", "would-run"]

SHOWN_ROWS: Final = 5  # differing rows that are shown of each side; the rest is counted
FIRST_USER_OID: Final = 16384  # FirstNormalObjectId: user-defined types have other oids in each database
# oid, tid, xid, cid, pg_lsn, xid8, txid_snapshot, pg_snapshot: given by each database itself
OWN_TYPES: Final = frozenset((26, 27, 28, 29, 3220, 5069, 2970, 5038))

Row = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs, in words for people, which hold text of tapes and servers.

    result: which one of a command that has several. only_recorded, only_sandbox: rows as display text, None is NULL.
    """

    what: Literal["error", "result", "columns", "tag", "rows", "order", "value"]
    recorded: str = ""
    sandbox: str = ""
    result: int = 0
    columns: tuple[str, ...] = ()
    only_recorded: tuple[Row, ...] = ()
    only_sandbox: tuple[Row, ...] = ()
    more_recorded: int = 0
    more_sandbox: int = 0


@dataclass(slots=True)
class Entry:
    """One line of the report. reason: why it was skipped, or cannot be replayed."""

    command: Recorded
    state: State
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sets:
    """Makes the RowSets of both sides of one command, so that both leave out the same columns.

    copy: the COPY statement of a text, where it is one. ignored: names of columns that do not count.
    """

    key: bytes
    facts: Sequence[Facts]
    ignored: frozenset[str] = frozenset()
    copy: Copy | None = None
    under_masks: bool = False
    room_recorded: Room = field(default_factory=Room)
    room_sandbox: Room = field(default_factory=Room)

    def recorded(
        self, number: int, result: Result, columns: int, before: Result | None, masked: Mapping[int, str], encoding: str
    ) -> RowSet:
        """The set for a recorded result; masked are those that the tape names for it."""
        if not masked and self.under_masks and before is not None and before.fields == result.fields:
            masked = before.masked  # the gate masks equal columns of one command by one plan, and tapes it once
        result.masked = dict(masked)
        return self._make(number, result, columns, frozenset(masked), encoding, self.room_recorded)

    def sandbox(self, number: int, result: Result, columns: int, theirs: Sequence[Result], encoding: str) -> RowSet:
        """The set for the sandbox's: with the masks of the recording's, if that has rows of the same columns.

        Of a command under masks no other row is kept: the masks' columns are not known, so it could show a secret.
        """
        other = theirs[number] if number < len(theirs) else None
        known = other is not None and other.rows is not None and other.rows.columns == columns
        same_names = known and other is not None and _names(other.fields) == _names(result.fields)
        masked = frozenset(other.masked) if known and other is not None else frozenset()
        keep = not self.under_masks or bool(masked and same_names)
        return self._make(number, result, columns, masked, encoding, self.room_sandbox if keep else None)

    def _make(
        self, number: int, result: Result, columns: int, masked: frozenset[int], encoding: str, room: Room | None
    ) -> RowSet:
        facts = self.facts[number] if number < len(self.facts) else Facts()
        wild = masked | _places(facts.volatile, result.fields, columns)
        for index, each in enumerate(result.fields or ()):
            if each.type_oid in OWN_TYPES or each.name in self.ignored:
                wild |= {index}
        if result.copy == "out":
            order = () if facts.order is not None and not wild else None
            return CopySet(self.key, columns, self.copy, encoding, wild, order, room)
        return RowSet(self.key, columns, wild, _order(facts, result.fields, columns, wild), room)


def _names(fields: Sequence[Field] | None) -> list[str] | None:
    return None if fields is None else [each.name for each in fields]


def _places(named: Sequence[int | str], fields: Sequence[Field] | None, columns: int) -> frozenset[int]:
    """Turn positions (negative from the end) and names into positions."""
    found: set[int] = set()
    for each in named:
        if isinstance(each, int):
            found.add(each if each >= 0 else columns + each)
        else:
            found |= {index for index, one in enumerate(fields or ()) if one.name == each}
    return frozenset(index for index in found if 0 <= index < columns)


def _order(facts: Facts, fields: Sequence[Field] | None, columns: int, wild: frozenset[int]) -> tuple[int, ...] | None:
    if facts.order is None:
        return None
    keys = [min(_places((each,), fields, columns), default=-1) for each in facts.order]
    if -1 in keys or not keys:
        return () if not wild else None
    if wild.intersection(keys):
        keys = keys[: next(index for index, key in enumerate(keys) if key in wild)]
        return tuple(keys) or None
    return tuple(keys)


def compare(recorded: Outcome, sandbox: Outcome, command: Recorded, facts: Sequence[Facts]) -> Entry:
    """Compare two outcomes of one command."""
    entry = Entry(command, "same")
    if recorded.value is not None and sandbox.value is not None:
        entry.notes.append("the value of a fast-path call is not compared")
    for number, (ours, theirs) in enumerate(zip_longest(recorded.results, sandbox.results)):
        fact = facts[number] if number < len(facts) else Facts()
        if ours is None or theirs is None:
            entry.differences.append(_missing(number, ours, theirs))
            continue
        _compare_results(entry, number, ours, theirs, fact)
    if not entry.differences:
        return entry
    entry.state = "different"
    unsure = next((fact.unsure for fact in facts if fact.unsure), "")
    if unsure and all(each.what in ("rows", "order", "tag") for each in entry.differences):
        entry.state, entry.reason = "not-replayable", unsure
    return entry


def _missing(number: int, ours: Result | None, theirs: Result | None) -> Difference:
    return Difference("result", _brief(ours), _brief(theirs), number)


def _brief(result: Result | None) -> str:
    if result is None:
        return "no result"
    if result.error is not None:
        return f"error {result.code}"
    return result.tag or "done"


def _compare_results(entry: Entry, number: int, ours: Result, theirs: Result, fact: Facts) -> None:
    if ours.code != theirs.code:
        quiet = bool(entry.command.masks)
        entry.differences.append(Difference("error", _error(ours, False), _error(theirs, quiet), number))
        return
    if ours.error is not None:
        return
    same_columns = _compare_columns(entry, number, ours, theirs)
    if same_columns:
        _compare_rows(entry, number, ours, theirs)
    if (ours.tag or "") != (theirs.tag or "") and not any(each.what == "rows" for each in entry.differences):
        entry.differences.append(Difference("tag", ours.tag or "", theirs.tag or "", number))
    if fact.limited and any(each.what == "rows" for each in entry.differences):
        entry.notes.append("LIMIT without ORDER BY: which rows come is not defined")
    _tell(entry, ours)


def _tell(entry: Entry, ours: Result) -> None:
    """Note which columns were left out, and why."""
    if ours.rows is None or not ours.rows.wild:
        return
    masked = sorted(set(ours.masked.values()))
    names = [_column(ours, index) for index in sorted(ours.masked)]
    if names:
        entry.notes.append(f"not compared, masked by {', '.join(masked)}: {', '.join(names)}")
    others = [_column(ours, index) for index in sorted(ours.rows.wild - set(ours.masked))]
    if others:
        entry.notes.append(f"not compared, volatile, ignored or the database's own: {', '.join(others)}")


def _column(result: Result, index: int) -> str:
    return result.fields[index].name if result.fields and index < len(result.fields) else f"column {index + 1}"


def _error(result: Result, quiet: bool) -> str:
    if result.error is None:
        return result.tag or "no error"
    return result.code + ("" if quiet else f" ({result.error['message']})")


def _compare_columns(entry: Entry, number: int, ours: Result, theirs: Result) -> bool:
    """Compare names and types; returns whether rows can be compared."""
    if ours.copy != theirs.copy:
        entry.differences.append(Difference("result", ours.copy or "no COPY", theirs.copy or "no COPY", number))
        return False
    if ours.fields is not None and theirs.fields is not None:
        if len(ours.fields) == len(theirs.fields):
            pairs = list(zip(ours.fields, theirs.fields, strict=True))
            if any(one.name != two.name or _type(one) != _type(two) for one, two in pairs):
                wrong = [(one, two) for one, two in pairs if one.name != two.name or _type(one) != _type(two)]
                left = ", ".join(_described(one) for one, _ in wrong)
                right = ", ".join(_described(two) for _, two in wrong)
                entry.differences.append(Difference("columns", left, right, number))
                # In text a bigint looks as an int does; in binary it does not.
                return all(one.type_oid == two.type_oid or one.format == two.format == 0 for one, two in pairs)
            return True
        left, right = (", ".join(_described(each) for each in side) for side in (ours.fields, theirs.fields))
        entry.differences.append(Difference("columns", left, right, number))
        return False
    if ours.rows is not None and theirs.rows is not None and ours.rows.columns != theirs.rows.columns:
        counts = (f"{ours.rows.columns} columns", f"{theirs.rows.columns} columns")
        entry.differences.append(Difference("columns", *counts, number))
        return False
    return True


def _type(each: Field) -> tuple[int, int]:
    return (0, -1) if each.type_oid >= FIRST_USER_OID else (each.type_oid, each.type_mod)


def _described(each: Field) -> str:
    return f"{each.name} {type_name(each)}"


def type_name(each: Field) -> str:
    """The name of a column's type, with its length or precision."""
    from psycopg.postgres import types  # here: it takes 50 ms that a run without a difference need not spend

    if each.type_oid >= FIRST_USER_OID:
        return "a user-defined type"
    known = types.get(each.type_oid)
    name = known.name if known is not None else f"type {each.type_oid}"
    if known is not None and each.type_oid == known.array_oid:
        name += "[]"
    if each.type_mod < 0:
        return name
    if each.type_oid == 1700:  # numeric: precision and scale in one number, behind 4
        packed = each.type_mod - 4
        return f"{name}({packed >> 16 & 0xFFFF},{packed & 0x7FF})"
    return f"{name}({each.type_mod - 4 if each.type_oid in (1042, 1043) else each.type_mod})"


def _compare_rows(entry: Entry, number: int, ours: Result, theirs: Result) -> None:
    one, two = ours.rows, theirs.rows
    counts = tuple(each.count if each is not None else 0 for each in (one, two))
    if one is not None and two is not None and one.digest == two.digest:
        if one.order is not None and one.sequence != two.sequence:
            entry.differences.append(_order_difference(number, ours, one, two))
        return
    if counts == (0, 0):
        return
    left, right = _only(one, two), _only(two, one)
    place = 0
    if not left and not right and one is not None and two is not None:
        place, left, right = _first_difference(one, two)
    texts = tuple(f"{count:,} {'row' if count == 1 else 'rows'}" for count in counts)
    names = tuple(_column(ours, index) for index in range(one.columns if one is not None else 0)) or tuple(
        _column(theirs, index) for index in range(two.columns if two is not None else 0)
    )
    entry.differences.append(
        Difference(
            "rows",
            texts[0],
            texts[1],
            number,
            names,
            _shown(left[:SHOWN_ROWS], ours),
            _shown(right[:SHOWN_ROWS], theirs),
            max(0, len(left) - SHOWN_ROWS),
            max(0, len(right) - SHOWN_ROWS),
        )
    )
    if place:
        entry.notes.append(f"too many rows to tell which differ; the first place at which they do is row {place:,}")
    elif (one is not None and not one.whole) or (two is not None and not two.whole):
        entry.notes.append("which rows differ is not told: there are too many, or they must not be shown")


def _order_difference(number: int, ours: Result, one: RowSet, two: RowSet) -> Difference:
    """Show the first place at which the order differs."""
    place, left, right = _first_difference(one, two)
    if not place:
        return Difference("order", "one order", "another order", number)
    names = tuple(_column(ours, index) for index in range(one.columns))
    text = f"row {place}"
    return Difference("order", text, text, number, names, _shown(left, ours), _shown(right, ours))


def _first_difference(one: RowSet, two: RowSet) -> tuple[int, list[bytes], list[bytes]]:
    """The first place, from 1, at which the kept rows differ, and the rows there; 0 if there is none."""
    for place, (left, right) in enumerate(zip(one.kept, two.kept, strict=False), 1):
        if left != right:
            return place, [left], [right]
    return 0, [], []


def _only(one: RowSet | None, two: RowSet | None) -> list[bytes]:
    """The rows of one that are not in two, where all rows of both are held."""
    if one is None or not one.whole or (two is not None and not two.whole):
        return []
    left = Counter(two.kept if two is not None else ())
    found: list[bytes] = []
    for row in one.kept:
        if left[row]:
            left[row] -= 1
        else:
            found.append(row)
    return found


def _shown(rows: Sequence[bytes], result: Result) -> tuple[Row, ...]:
    """Rows as text for people; a cell that was left out is "·"."""
    if isinstance(result.rows, CopySet):
        return tuple((row[5:].decode("utf-8", "replace").rstrip("\r\n"),) for row in rows)
    wild = result.rows.wild if result.rows is not None else frozenset()
    types = [(each.type_oid, each.format == 1) for each in result.fields or ()]
    shown: list[Row] = []
    for row in first_rows(b"".join(rows), len(rows), types):
        shown.append(tuple("·" if index in wild else cell for index, cell in enumerate(row)))
    return tuple(shown)
