"""Does a statement, or one column of its result, touch a column that a mask covers? In doubt: yes.

Facts of the command that are read (all optional; what is missing counts against the command):

statements  tuple[Statement, ...]: what runs
resolved    Mapping[str, tuple[str, ...]]: relation name as written -> ``schema.table`` names it may mean, and the
            base tables behind a view
alike       Mapping[str, tuple[str, ...]]: those of resolved that have the very columns which the text names
opaque      bool: something of it could not be told

A relation whose resolution is exactly one name is a table, and its columns are known by name; so are those of all that
are alike (a table and its partitions, the candidates of an unknown search_path). Of the others (the tables behind a
view) the name of a column tells nothing, so any reference to it touches. A relation that resolves to nothing may be
anything.

Lineage (Statement.outputs with outputs_exact) is believed: a result column without sources (count(*), now()), or with
sources that are not covered (sum(total)), is clear. The arguments of a function count as its sources, so count(email)
is covered; count(*) is the way to count. Predicates are no sources: ``WHERE email LIKE 'a%'`` stays an oracle that only
a rule on predicates closes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from proxy.core.events import Command
from proxy.core.statement import ColumnRef, OutputColumn, Statement
from proxy.masking.names import ColumnPattern

# Statements of one text that are looked at in depth (PREPARE, EXPLAIN, COPY nest by one each).
DEPTH_LIMIT: Final = 16
_BY_NAME: Final = frozenset(("EXECUTE", "FETCH", "MOVE"))


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the names in a command may mean."""

    names: Mapping[str, tuple[str, ...]]
    alike: Mapping[str, tuple[str, ...]]

    def get(self, name: str) -> tuple[str, ...]:
        """Return every relation that a written name may mean, or that is behind it; () is any."""
        return self.names.get(name, ())

    def by_name(self, name: str, candidate: str) -> bool:
        """Tell whether a candidate of a written name has the columns that the text names."""
        return candidate == name or len(self.get(name)) == 1 or candidate in self.alike.get(name, ())


@dataclass(frozen=True, slots=True)
class Columns:
    """The column patterns of one mask."""

    patterns: tuple[ColumnPattern, ...]

    def cover_origin(self, origins: tuple[str, ...]) -> bool:
        """Tell whether a ``schema.table.column`` among these is covered."""
        return any(pattern.covers(origin) for pattern in self.patterns for origin in origins)

    def cover_relation(self, name: str, resolved: Resolved) -> bool:
        """Tell whether a relation (as written) may be a table with a covered column, or a view of one."""
        candidates = resolved.get(name)
        return not candidates or any(pattern.covers_table(each) for each in candidates for pattern in self.patterns)

    def cover_reference(self, table: str, column: str, resolved: Resolved) -> bool:
        """Tell whether a column of a relation (as written) may hold covered values."""
        candidates = resolved.get(table)
        if not candidates:
            return True
        for each in candidates:
            itself = resolved.by_name(table, each)
            for pattern in self.patterns:
                if pattern.covers_table(each) and (not itself or pattern.covers(f"{each}.{column}")):
                    return True
        return False


def statements_of(command: Command) -> tuple[Statement, ...] | None:
    """The statements of a command, None where the command does not say what runs."""
    found = command.facts.get("statements")
    return found if isinstance(found, tuple) and found else None


def resolved_of(command: Command) -> Resolved:
    """The resolved names of a command; empty, hence unknown, where there are none."""
    found, alike = command.facts.get("resolved"), command.facts.get("alike")
    return Resolved(found if isinstance(found, Mapping) else {}, alike if isinstance(alike, Mapping) else {})


def nested(statement: Statement) -> Iterator[Statement]:
    """The statement and those inside of it, outermost first."""
    each: Statement | None = statement
    for _ in range(DEPTH_LIMIT):
        if each is None:
            return
        yield each
        each = each.inner


def hidden(command: Command) -> bool:
    """Tell whether anything that the command runs is unknown."""
    statements = statements_of(command)
    if command.kind == "unknown" or command.facts.get("opaque") or statements is None:
        return True
    return any(is_opaque(each) for statement in statements for each in nested(statement))


def is_opaque(statement: Statement) -> bool:
    """Tell whether a statement (without those inside) could do more than its text tells."""
    return statement.opaque or statement.kind == "unknown"


def tables_of(statement: Statement) -> tuple[str, ...]:
    """All relations that a statement names, with those inside of it."""
    names = (name for each in nested(statement) for name in (*each.tables_read, *each.tables_written))
    return tuple(dict.fromkeys(names))


def references(columns: Columns, refs: tuple[ColumnRef, ...], tables: tuple[str, ...], resolved: Resolved) -> bool:
    """Tell whether some of these column references may name a covered column; tables are those in scope."""
    for ref in refs:
        scope = (ref.table,) if ref.table is not None else tables
        if any(columns.cover_reference(table, ref.name, resolved) for table in scope):
            return True
    return False


def touches(columns: Columns, statement: Statement, resolved: Resolved) -> bool:
    """Tell whether covered values may pass through a statement at all."""
    tables = tables_of(statement)
    for each in nested(statement):
        if is_opaque(each) or each.verb in _BY_NAME:
            return True
        refs = each.columns + tuple(ref for output in each.outputs or () for ref in output.sources)
        if references(columns, refs, tables, resolved):
            return True
        # No reference at all and no outputs known: the columns could not be told, the tables must do.
        untold = each.tables_read if not refs and each.outputs is None else ()
        if any(columns.cover_relation(name, resolved) for name in untold):
            return True
    return False


def output_touches(columns: Columns, statement: Statement, index: int, width: int, resolved: Resolved) -> bool | None:
    """Tell whether column index of a result of width columns may hold covered values.

    None: by its lineage the statement has a result of another width, so this is not its result.
    """
    source = _result_of(statement)
    if source is None:  # EXPLAIN: a plan, with the values that the text itself holds
        return any(is_opaque(each) for each in nested(statement))
    if not source.outputs_exact or source.outputs is None:
        return touches(columns, statement, resolved)
    if len(source.outputs) != width:
        return None
    return _output_covered(columns, source.outputs[index], tables_of(statement), resolved)


def _output_covered(columns: Columns, output: OutputColumn, tables: tuple[str, ...], resolved: Resolved) -> bool:
    return output.opaque or references(columns, output.sources, tables, resolved)


def _result_of(statement: Statement) -> Statement | None:
    """The statement whose outputs are the result's columns; None for EXPLAIN, whose result is its plan."""
    if statement.verb.startswith("EXPLAIN"):
        return None
    if statement.copy is not None and statement.inner is not None:
        return statement.inner
    return statement
