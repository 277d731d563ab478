"""Refuses requests to BigQuery that would carry masked values to where no mask stands: laundering, as in guard.py.

What is read: facts["warehouse"] (the statements of the text, proxy/core/warehouse.py), and the command's parts, one an
effect, for the doors that do without SQL what SQL can do. While masks of columns apply, refused is:

- storing what it reads from a masked column, by the lineage of what is stored: CREATE TABLE AS, INSERT, UPDATE and
  MERGE from columns, models, views and materialized views, EXPORT DATA, a query with a destination table, the query of
  a view that is made over the API; temporary tables too. Where the text does not tell (a variable, @@error, a value
  that USING gives), all that it reads counts, and where it reads a temporary table, anything. A view over unmasked
  columns passes.
- copies, clones, snapshots, replicas and extracts of a table with a masked column.
- functions and procedures that stay: nobody would see behind them later. Temporary functions pass.
- other definitions on a masked table: ALTER could rename it or its columns. Creating, dropping, indexes, rights and
  tables.patch (which renames nothing) are free.
- what nobody can read, and calls of routines that nobody has read: they may store, or be remote.
- doors: EXTERNAL_QUERY, remote functions and models, external and linked data, code from elsewhere, files that are
  loaded (not uploads: a user's own data): the same values may lie there under another name. AI.* and ML.* functions
  that may reach a model elsewhere, if the statement reads a masked table.
- SET @@query_label and its like from anything but a plain text, in a text that reads a masked table: labels are shown.

- variables of a session from masked tables, as later requests would read them; and what is stored there that the text
  does not tell.
- columns that compute from others, defined over the API on a masked table.

Under detectors, what goes out as files or to another system is refused, as nothing looks into it: extracts, EXPORT,
copies to another project, AI.* and remote models.

Behind a view: facts["beneath"] has the tables of all views of a request. Where one of these is masked, a table that is
not among them may be such a view, and all its columns count.

Filters are let through, and so are order, grouping and joins: ``WHERE email LIKE 'a%'`` is an oracle, as it is in
PostgreSQL (docs/masking.md). A condition stored beside its row (``email = 'x' AS hit``) is a value, and refused. Left
out: what INFORMATION_SCHEMA.JOBS shows of other people's texts; what lies in files. Rules are for these.

Source: bigquery note 4, 5 and 9.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.core.events import Column, Command
from proxy.core.verdict import Deny, Mask
from proxy.core.warehouse import (
    TEMPORARY,
    UNRESOLVED,
    Origin,
    Outputs,
    ResultColumn,
    StarColumns,
    Statement,
    TableName,
)
from proxy.masking.warehouse import FieldPatterns

# Doors that only bring data in: what comes passes the masks of a result.
_INWARD: Final = frozenset({"EXTERNAL_QUERY", "EXTERNAL TABLE", "LOAD DATA", "URI", "URIS", "CONNECTION"})
# Doors of EXPORT DATA itself: what leaves by it is known, column by column.
_OF_EXPORT: Final = frozenset({"EXPORT DATA", "URI", "URIS", "CONNECTION"})
# Functions among the doors, by the beginnings of their names: they send what they are given, if anything.
_CALLED: Final = ("ML.", "AI.", "OBJ.")
_ROUTINES: Final = frozenset({
    "CREATE FUNCTION", "CREATE AGGREGATE FUNCTION", "CREATE TABLE FUNCTION", "CREATE PROCEDURE", "CREATE CONSTANT",
    "ALTER FUNCTION", "ALTER PROCEDURE", "ALTER TABLE FUNCTION",
})  # fmt: skip
_ALTERS: Final = frozenset({"ALTER TABLE", "ALTER VIEW", "ALTER MATERIALIZED VIEW", "ALTER EXTERNAL TABLE"})
_STORES: Final = frozenset({"write_rows", "define", "export"})
_PLAIN_LABEL: Final = re.compile(r"""SET\s+@@[\w.]+\s*=\s*(?:'[^'\\]*'|"[^"\\]*")\s*""", re.IGNORECASE)
_PARTS: Final = 4  # project, dataset, table, column
_UNMASKED: Final = "it needs a rule without masks"


@dataclass(frozen=True, slots=True)
class _Reach:
    """What one request can bring up: the patterns, the statements, the tables of all of them and behind its views."""

    patterns: FieldPatterns
    statements: tuple[Statement, ...]
    beneath: frozenset[str]  # lower case
    hiding: Mask | None  # of a table beneath
    session: bool = False  # later requests see its variables, and it sees those of earlier ones
    bound: bool = False  # EXECUTE IMMEDIATE gives values to some text
    known: dict[str | None, Mask | None] = field(default_factory=dict)

    def table(self, name: str) -> Mask | None:
        """The first mask that covers something of a table, or of what a wildcard stands for."""
        found = self.value(None if _is_wide(name) else f"{name}.*")
        if found is None and name.lower() not in self.beneath:
            return self.hiding  # it may be one of the views
        return found

    def value(self, origin: str | None) -> Mask | None:
        """The first mask that covers an origin; None as an origin is anything."""
        if origin not in self.known:
            self.known[origin] = self.patterns.covering(Column("", None if origin is None else (origin,)))
        return self.known[origin]

    def tables(self, statements: Iterable[Statement]) -> Mask | None:
        """The first mask that covers something of what these statements read."""
        found = (self.table(str(table)) for each in statements for table in _sources(each))
        return next((mask for mask in found if mask is not None), None)

    def anything(self) -> Mask | None:
        """The first mask that covers something of all that may be read: where the text does not tell more."""
        if self.session:
            return self.value(None)
        for each in self.statements:
            if any(table.dataset in (TEMPORARY, UNRESOLVED) for table in _sources(each)):
                return self.value(None)
        return self.tables(self.statements)

    def fills(self, text: str) -> bool:
        """Tell whether values may come into a text from elsewhere: what USING gives."""
        return self.bound and ("?" in text or "@" in text)

    # -- what is stored -----------------------------------------------------------------------------------

    def outputs(self, outputs: Outputs | None, reads: Sequence[Statement]) -> Mask | None:
        """The first mask that covers something of a result; None as a result is all that the statements read."""
        if outputs is None:
            return self.tables(reads)
        if outputs.taint or any(_tainted(column) for column in outputs.columns):
            found = self.anything()
            if found is not None:
                return found
        for column in outputs.columns:
            found = self._column(column)
            if found is not None:
                return found
        for star in outputs.stars:
            found = self._star(star)
            if found is not None:
                return found
        return self._origins(outputs.also, bare=False)

    def _column(self, column: ResultColumn) -> Mask | None:
        found = self._origins(column.origins, bare=column.bare)
        if found is not None:
            return found
        found_below = (self._column(inner) for inner in column.fields)
        return next((mask for mask in found_below if mask is not None), None)

    def _origins(self, origins: Iterable[Origin], *, bare: bool) -> Mask | None:
        # What is stored whole is stored with all below it, so that a bare field counts like an expression of it.
        for origin in origins:
            found = self.value(".".join((str(origin.table), *origin.path, "*")))
            found = found or self._hidden(str(origin.table))
            if found is not None:
                return found
        return None

    def _star(self, star: StarColumns) -> Mask | None:
        place = ".".join((str(star.table), *star.path, "*"))
        found = self._hidden(str(star.table))
        if found is None and (star.path or not star.excepted):
            return self.value(place)
        return found or self._star_without(place, frozenset(star.excepted))

    def _star_without(self, place: str, excepted: frozenset[str]) -> Mask | None:
        """The same, where columns of a table are left out by name."""
        for mask in self.patterns.masks:
            speaking = tuple(pattern for pattern in mask.columns if _column_of(pattern) not in excepted)
            if speaking and FieldPatterns([Mask(mask.rule, speaking)]).covering(Column("", (place,))) is not None:
                return mask
        return None

    def _hidden(self, table: str) -> Mask | None:
        return None if table.lower() in self.beneath else self.hiding


def laundering(patterns: FieldPatterns, command: Command) -> Deny | None:
    """Refuse what would carry the covered columns' values past their masks."""
    if not patterns.speaks or _only_asks(command):
        return None
    rule = patterns.masks[0].rule
    statements = statements_of(command)
    if command.kind == "unknown" or command.facts.get("opaque") or any(each.opaque for each in statements):
        return Deny(rule, "nobody can read all that this does, so masked columns cannot be kept masked in it")
    reach = _reach(patterns, statements, command)
    reason = _by_doors(reach, command)
    kept = _keeps(command, statements)
    for each in statements:
        reason = reason or _statement(reach, each) or _stored(reach, each, kept) or _computed(reach, each, command)
    return None if reason is None else Deny(*(reason if isinstance(reason, tuple) else (rule, reason)))


def unmaskable(command: Command, rule: str) -> Deny | None:
    """Refuse what goes out where no detector can look into it."""
    if _only_asks(command):
        return None
    statements = statements_of(command)
    out = any(effect.verb == "export" and set(each.doors) - _INWARD for each in statements for effect in each.effects)
    facts = command.facts
    job, destination = facts.get("bq_job"), facts.get("bq_destination")
    exports = [part for part in _parts(command) if part.verb == "export"]
    out = out or any(job in ("extract", "copy") or (destination and destination in part.objects) for part in exports)
    if not out:
        return None
    return Deny(rule, f'rule "{rule}" masks what this target gives out, and what is exported cannot be masked')


def statements_of(command: Command) -> tuple[Statement, ...]:
    """The statements of a request's SQL, () where it has none."""
    found: Any = command.facts.get("warehouse")
    return found if isinstance(found, tuple) else ()


# -- doors ----------------------------------------------------------------------------------------------


def _by_doors(reach: _Reach, command: Command) -> tuple[str, str] | str | None:
    """Say why a request may not do what it does beside its SQL, None if it may."""
    facts = command.facts
    parts = _parts(command)
    if facts.get("bq_method") in ("routines.insert", "routines.update"):
        return f"a routine would hide what it reads from the masks; {_UNMASKED}"
    told = {str(table).lower() for each in reach.statements for effect in each.effects for table in effect.objects}
    told |= {name.replace("..", ".*.") for name in told}  # a dataset that nobody knows
    said = any(effect.verb == "export" for each in reach.statements for effect in each.effects)
    read = [name for part in parts if part.verb == "read_rows" for name in part.objects]
    read = [name for name in read if not reach.statements or name.lower() not in told]
    for part in parts:
        if part.verb == "export" and not (said and {name.lower() for name in part.objects} <= told):
            if facts.get("bq_job") in ("extract", "copy"):
                continue
            return f"data or code from elsewhere may hold masked values under another name; {_UNMASKED}"
    if facts.get("bq_job") == "load" and facts.get("bq_uris"):
        return f"files may hold masked values under another name; {_UNMASKED}"
    if any(part.verb in _STORES for part in parts):
        for name in read:
            mask = reach.table(name)
            if mask is not None:
                return mask.rule, f"{name} has masked columns, and a copy of it would show them; {_UNMASKED}"
    return None


def _keeps(command: Command, statements: tuple[Statement, ...]) -> bool:
    """Tell whether results of the text are kept where no mask knows them: a destination, a definition over the API."""
    facts = command.facts
    if facts.get("bq_destination"):
        return True
    method = str(facts.get("bq_method", ""))
    return bool(statements) and method.startswith(("tables.", "datasets.", "models."))


def _only_asks(command: Command) -> bool:
    """Tell whether it is a dry run of a query, which stores and reads nothing."""
    facts = command.facts
    return bool(facts.get("bq_asks_dry_run")) and facts.get("bq_job") == "query" and command.verb == "inspect"


# -- statements -----------------------------------------------------------------------------------------


def _statement(reach: _Reach, each: Statement) -> tuple[str, str] | str | None:
    """Say why a statement may not run whatever it stores, None if it may."""
    if each.word in _ROUTINES and not _is_temporary(each):
        return f"{each.word} would hide what it reads from the masks; {_UNMASKED}"
    called = [door for door in each.doors if door.startswith(_CALLED)]
    strange = set(each.doors) - set(called) - (_OF_EXPORT if each.word == "EXPORT DATA" else set())
    if strange:
        return f"{min(strange)} may hold masked values under another name; {_UNMASKED}"
    if called:
        mask = reach.tables([each])
        if mask is not None:
            return mask.rule, f"{called[0]} may send masked values elsewhere; leave that table out"
    if each.word in _ALTERS:
        masks = (reach.table(str(table)) for table in each.tables_written)
        mask = next((mask for mask in masks if mask is not None), None)
        if mask is not None:
            return mask.rule, f"{each.word} could rename masked columns; {_UNMASKED}"
    if reach.session and (each.word in ("DECLARE", "SET") or (each.word == "EXECUTE IMMEDIATE" and _into(each))):
        mask = reach.tables(reach.statements)
        if mask is not None:
            return mask.rule, "a session would keep values of a masked column in its variables; leave it out"
    if each.word == "SET" and "@@" in each.text and not _PLAIN_LABEL.fullmatch(each.text):
        mask = reach.anything()
        if mask is not None:
            return mask.rule, "a setting could show values of a masked column; set it to a plain text"
    return None


def _stored(reach: _Reach, each: Statement, kept: bool) -> tuple[str, str] | None:
    """Say why a statement may not store what it reads, None if it may."""
    moves = each.moves_data or (kept and (each.outputs is not None or each.word == "SELECT"))
    mask = reach.outputs(each.outputs, [each]) if moves else None
    if mask is None and (moves or any(effect.verb in _STORES for effect in each.effects)) and reach.fills(each.text):
        mask = reach.anything()
    if mask is None:
        return None
    if each.word in ("CREATE VIEW", "SELECT"):
        what = "this" if each.word == "SELECT" else "a view"
        return mask.rule, f"{what} would show a masked column under another name; leave that column out"
    return mask.rule, f"{each.word} would store values of a masked column where they are not masked; leave it out"


def _computed(reach: _Reach, each: Statement, command: Command) -> tuple[str, str] | None:
    """Say why a column may not be defined so: tables.patch with an expression of the table's own columns."""
    if not str(command.facts.get("bq_method", "")).startswith("tables.") or each.tables_read or each.outputs is None:
        return None
    if not any(_tainted(column) for column in each.outputs.columns):
        return None
    names = [name for part in _parts(command) if part.verb == "define" for name in part.objects]
    mask = next((mask for mask in map(reach.table, names) if mask is not None), None)
    return None if mask is None else (mask.rule, f"a column could show a masked one under another name; {_UNMASKED}")


# -- small things ---------------------------------------------------------------------------------------


def _reach(patterns: FieldPatterns, statements: tuple[Statement, ...], command: Command) -> _Reach:
    beneath = tuple(map(str, command.facts.get("beneath") or ()))
    bare = _Reach(patterns, statements, frozenset(), None)
    hiding = next((mask for mask in (bare.table(name) for name in beneath) if mask is not None), None)
    bound = any(each.word == "EXECUTE IMMEDIATE" and "USING" in each.text.upper() for each in statements)
    session = bool(command.facts.get("bq_session")) or "create_session" in command.facts.get("bq_special", ())
    return _Reach(patterns, statements, frozenset(name.lower() for name in beneath), hiding, session, bound)


def _parts(command: Command) -> tuple[Command, ...]:
    return command.parts or (command,)


def _sources(each: Statement) -> Iterator[TableName]:
    """The tables whose rows a statement may take values from: an UPDATE reads its own."""
    yield from (table for table in each.tables_read if not table.is_metadata)
    if each.word in ("UPDATE", "MERGE"):
        yield from each.tables_written


def _tainted(column: ResultColumn) -> bool:
    return bool(column.taint) or any(_tainted(inner) for inner in column.fields)


def _into(each: Statement) -> bool:
    return "INTO" in each.text.upper()


def _is_temporary(each: Statement) -> bool:
    made = [table for effect in each.effects if effect.verb == "define" for table in effect.objects]
    return bool(made) and all(table.dataset == TEMPORARY for table in made)


def _is_wide(name: str) -> bool:
    """Tell whether a name stands for tables of several datasets, or for one that nobody knows."""
    return "*" in name.rpartition(".")[0] or name.endswith(".*")


def _column_of(pattern: str) -> str:
    """The column that a pattern is about, "*" where it is not a plain one or the pattern is about something below."""
    parts = pattern.lower().split(".")
    return "*" if ":" in pattern or len(parts) > _PARTS or re.search(r"[*?\[]", parts[-1]) else parts[-1]
