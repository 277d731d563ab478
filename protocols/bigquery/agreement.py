"""Whether the text as it was read here and the target's dry run of it speak of the same tables, routines and deeds.

The parser reads names by BigQuery's rules; the service has the last word on what they mean. Whatever the dry run names
(referencedTables, referencedRoutines, the targets of DDL) must be explained by the text:

- a table by the text's own name of it, to the letter; by a wildcard table or INFORMATION_SCHEMA of the text; by a
  temporary table; by a routine that the text calls (the analysis has judged that one);
- else by a view among the text's tables: one whose text has been read and names it, itself or by views below (Behind),
  or one whose text tells nothing, which explains everything;
- statementType by the words of the statements.

What is not explained is a sentence: the command is opaque then, and never passes as what its text seems to be. The text
may name more than the dry run does: who decides on more has decided on that.

A view shows columns of tables that the text does not name, so masks have to follow: behind is for schema.of_result. Of
a view whose text has been read it has all tables and views below; of another, everything that the dry run names.

The dry run's list ends somewhere ("Queries that reference more than 50 tables will not have a complete list"): with so
many, views cannot be explained by it, and a table of the text that is not in it has not been confirmed.

Left out: models, which no dry run names; what a row access policy reads (its tables, where named, are unexplained).
Source: bigquery note 5, 9, 11; reference of JobStatistics2 (statementType, referencedTables, referencedRoutines,
ddlTarget*), Table.type; "Logical views", "Using sessions" (temporary tables).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.warehouse import TEMPORARY, UNRESOLVED, Analysis, TableName

REFERENCED_LIMIT: Final = 50  # from here on the list may not be complete. Source: JobStatistics2.referencedTables
# Tables and views of one query that are looked at, with those below views: more than any query that people write. Ours
LOOKED_AT_LIMIT: Final = 100
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_ROW_TYPES: Final = frozenset({"TABLE", "EXTERNAL", "SNAPSHOT", "CLONE"})  # Table.type: what holds its rows itself
VIEW_TYPES: Final = frozenset({"VIEW", "MATERIALIZED_VIEW"})
# First words of statements that make a text a script, whatever else there is.
_SCRIPT_WORDS: Final = frozenset({
    "DECLARE", "SET", "BEGIN", "COMMIT", "ROLLBACK", "CALL", "EXECUTE", "RAISE", "RETURN", "BREAK", "LEAVE", "CONTINUE",
    "ITERATE", "ASSERT",
})  # fmt: skip
_PRELUDE: Final = frozenset({"CREATE FUNCTION", "CREATE AGGREGATE FUNCTION", "CREATE TABLE FUNCTION"})

# What DDL is about, and the part of such a reference beside project and dataset.
_TARGETS: Final = {"ddlTargetTable": "tableId", "ddlTargetRoutine": "routineId", "ddlTargetDataset": ""}


@dataclass(frozen=True, slots=True)
class Said:
    """What a dry run says. Tables and routines are "project.dataset.name"; processed: bytes, None where not told.

    targets: what DDL makes or drops; a dataset is "project.dataset.*".
    """

    statement_type: str = ""
    referenced: tuple[str, ...] = ()
    routines: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    processed: int | None = None
    accuracy: str = ""
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a name is, as tables.get says. type: Table.type; "" where there is nothing of that name. query: a view's."""

    type: str
    query: str = ""

    @property
    def is_view(self) -> bool:
        """Whether it may show what other tables hold: a type that is not known may."""
        return self.type not in _ROW_TYPES and self.type != ""


@dataclass(frozen=True, slots=True)
class Behind:
    """What a view reads: all tables and views below it; whole: nothing of them is left in the dark."""

    tables: tuple[str, ...] = ()
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Agreement:
    """opaque: "", or why the two do not agree. behind: view, in lower case -> tables, as schema.of_result takes it."""

    opaque: str
    behind: Mapping[str, tuple[str, ...]]


# -- what the target says -------------------------------------------------------------------------------


def read_dry_run(body: bytes) -> Said | None:
    """Read the answer to a dry run (a Job); None for what is none."""
    job = _object(body)
    statistics = _map(job, "statistics")
    query = _map(statistics, "query")
    if not query or _map(job, "status").get("state") != "DONE":
        return None
    referenced = _names(query.get("referencedTables"), "tableId")
    routines = _names(query.get("referencedRoutines"), "routineId")
    if referenced is None or routines is None:
        return None
    targets: list[str] = []
    for key, part in _TARGETS.items():
        names = _names([query[key]] if key in query else None, part)
        if names is None:
            return None
        targets += names
    sizes = [_integer(place.get("totalBytesProcessed")) for place in (statistics, query)]
    schema = query.get("schema")
    return Said(
        _text(query, "statementType"),
        tuple(dict.fromkeys(referenced)),
        tuple(dict.fromkeys(routines)),
        tuple(targets),
        max((size for size in sizes if size is not None), default=None),
        _text(query, "totalBytesProcessedAccuracy"),
        schema if isinstance(schema, Mapping) else None,
    )


def error_result(body: bytes) -> tuple[str, str] | None:
    """Return reason and message of a dry run that failed although its status was 200; None where it did not."""
    found = _map(_map(_object(body), "status"), "errorResult")
    return (_text(found, "reason"), _text(found, "message")) if found else None


def read_table(body: bytes) -> Shape:
    """Read a Table, cut to its type and its query."""
    table = _object(body)
    view = _map(table, "view")
    query = _text(view or _map(table, "materializedView"), "query")
    return Shape(_text(table, "type") or "UNKNOWN", "" if view.get("useLegacySql") is True else query)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _map(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""


def _integer(value: object) -> int | None:
    """An int64 of JSON: its digits, or a number."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return int(text) if _NUMBER.fullmatch(text) else None


def _names(references: object, part: str) -> list[str] | None:
    """Full names of references; None where one is malformed: then the list tells nothing."""
    if references is None:
        return []
    if not isinstance(references, list):
        return None
    found = []
    for each in references:
        reference = each if isinstance(each, Mapping) else {}
        names = [_text(reference, key) for key in ("projectId", "datasetId", part) if key]
        if not all(names):
            return None
        names[2:] = [names[2].partition("$")[0].partition("@")[0]] if part else ["*"]
        found.append(".".join(names))
    return found


# -- what the text says ---------------------------------------------------------------------------------


def looked_at(analysis: Analysis, externals: Collection[str] = ()) -> tuple[TableName, ...]:
    """The tables of a text that may be views. externals: names that the request itself defines (tableDefinitions)."""
    bare = {name for statement in analysis.statements for name in statement.bare_tables}
    return tuple(
        table
        for table in analysis.tables_read
        if plain(table) and not (table.table in externals and table.table in bare)
    )


def plain(table: TableName) -> bool:
    """Whether a name is that of one table or view that lies in a dataset of users."""
    hidden = table.dataset in (TEMPORARY, UNRESOLVED) or table.dataset.startswith("_")
    return not (table.is_pattern or table.is_metadata or hidden)


def _rows_of(analysis: Analysis) -> dict[str, TableName]:
    """The tables that a text reads or writes, by their full names."""
    return {str(table): table for table in (*analysis.tables_read, *analysis.tables_written)}


def _objects_of(analysis: Analysis) -> dict[str, TableName]:
    """All that a text does something to, and the routines that it calls and nobody vouches for."""
    return {str(table): table for effect in analysis.effects for table in effect.objects} | _rows_of(analysis)


# -- agreement ------------------------------------------------------------------------------------------


def agree(analysis: Analysis, said: Said, views: Mapping[str, Behind], trusted: Collection[str] = ()) -> Agreement:
    """Compare. views: what is behind each view among looked_at(), by its full name. trusted: routines vouched for."""
    own, objects = _rows_of(analysis), _objects_of(analysis)
    dark = [name for name, each in views.items() if not each.whole]
    called = any("." in name for statement in analysis.statements for name in statement.routines)
    named = {*own, *(name for each in views.values() for name in each.tables)}
    patterns = [name for name in named if "*" in name]
    whys = [_statements(analysis, said.statement_type)]
    for name in said.referenced:
        if name in named or any(_matches(pattern, name) for pattern in patterns):
            continue
        why = _temporary(analysis, own.values(), name)
        if why is None and not dark and not called and not _metadata(own.values(), name):
            why = f"the target's dry run reads {name}, which the text does not name"
        whys.append(why or "")
    whys += [_target(analysis, objects, name) for name in said.targets]
    whys += [_routine(objects, trusted, name) for name in said.routines]
    whys.append(_complete(analysis, said, views, dark))
    behind = _lower({name: _behind(name, each, said, patterns) for name, each in views.items()})
    return Agreement(next((why for why in whys if why), ""), behind)


def unseen(views: Mapping[str, Behind]) -> Agreement:
    """The agreement where there is no dry run: what views are made of, as far as their texts tell."""
    dark = [name for name, each in views.items() if not each.whole]
    why = f"nothing tells which tables are behind {dark[0]}" if dark else ""
    return Agreement(why, _lower({name: each.tables for name, each in views.items()}))


def _lower(behind: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The same by names in lower case: what is behind views whose names differ in case is behind each of them."""
    found: dict[str, tuple[str, ...]] = {}
    for name, tables in behind.items():
        found[name.lower()] = tuple(dict.fromkeys((*found.get(name.lower(), ()), *tables)))
    return found


def _behind(name: str, found: Behind, said: Said, patterns: Sequence[str]) -> tuple[str, ...]:
    if not found.whole:
        return tuple(dict.fromkeys((*found.tables, *(each for each in said.referenced if each != name))))
    below = [pattern for pattern in patterns if pattern in found.tables]
    matched = (each for each in said.referenced if any(_matches(pattern, each) for pattern in below))
    return tuple(dict.fromkeys((*found.tables, *matched)))


def _matches(pattern: str, name: str) -> bool:
    """Whether a wildcard table (or all of a dataset: "p.d.*", of DDL) covers a table."""
    return pattern.endswith("*") and name.startswith(pattern[:-1]) and "." not in name[len(pattern) - 1 :]


def _metadata(own: Iterable[TableName], name: str) -> bool:
    """Whether a view on metadata that the text names is what the dry run calls so, whatever it puts before it."""
    upper = name.upper()
    if "INFORMATION_SCHEMA" not in upper and "__TABLES" not in upper:
        return False
    return any(table.is_metadata and upper.endswith("." + table.table.upper().rpartition(".")[2]) for table in own)


def _temporary(analysis: Analysis, own: Iterable[TableName], name: str) -> str | None:
    """Explain a table of a hidden dataset: "" for a temporary one of the text; None where it is none."""
    _, dataset, table = name.rsplit(".", 2)
    if not dataset.startswith("_"):
        return None
    known = [each for each in own if each.dataset in (TEMPORARY, UNRESOLVED) and each.table.lower() == table.lower()]
    if known:
        return ""
    bare = {each.lower() for statement in analysis.statements for each in statement.bare_tables}
    if table.lower() in bare:
        return f"{table} is a temporary table of the session, not what the text's default dataset makes of that name"
    return None


def _target(analysis: Analysis, own: Mapping[str, TableName], name: str) -> str:
    if name in own or any(_matches(pattern, name) for pattern in own if "*" in pattern):
        return ""
    if _temporary(analysis, own.values(), name) == "":
        return ""
    return f"the target's dry run makes, changes or drops {name}, which the text does not name"


def _routine(own: Iterable[str], trusted: Collection[str], name: str) -> str:
    if name in trusted or name.lower() in {each.lower() for each in own}:
        return ""
    return f"the target's dry run calls {name}, which the text does not name and nobody here has read"


def _complete(analysis: Analysis, said: Said, views: Mapping[str, Behind], dark: Sequence[str]) -> str:
    """Why the dry run's list does not tell enough: too long, or none at all where a view depends on it."""
    if len(said.referenced) >= REFERENCED_LIMIT:
        missing = [str(table) for table in analysis.tables_read if plain(table) and str(table) not in said.referenced]
        open_ends = [*views, *missing]
        if open_ends:
            return f"the target's dry run names {len(said.referenced)} tables and may leave out others: {open_ends[0]}"
    if dark and (said.statement_type == "SCRIPT" or not set(said.referenced) - set(views)):
        return f"nothing tells which tables are behind {dark[0]}"
    return ""


def _statements(analysis: Analysis, type_: str) -> str:
    """Why the words of the text are not of the type that the dry run says."""
    words = [statement.word for statement in analysis.statements if not statement.declared]
    if "UNKNOWN" in words:
        return ""  # nobody could read it: that is said elsewhere
    if not type_:
        return "the target's dry run does not say what the statement is"
    control = bool(analysis.control) and words != ["CREATE PROCEDURE"]  # its body's is not the text's own
    alone = words[0] if len(words) == 1 and not control else ""
    if type_ in _types(words, control) or (alone and type_.partition("_")[0] == alone.partition(" ")[0]):
        return ""
    return f"the target's dry run says that the text is {type_}, and it reads as {alone or 'a script'}"


def _types(words: Sequence[str], control: bool) -> set[str]:
    script = control or len(words) != 1 or words[0].partition(" ")[0] in _SCRIPT_WORDS
    found = {"SCRIPT"} if script else set()
    # Functions that are made for one query are part of it; then the type is that of the query.
    if not control and words and " " not in words[-1] and all(word in _PRELUDE for word in words[:-1]):
        found.add(words[-1])
    return found
