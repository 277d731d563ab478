"""What a target database looked like at one moment: names, columns, where a column's values come from. Pure.

Snapshot is made of the rows that catalog.py reads. It answers three questions, always so that a doubt makes the
answer wider and never narrower:

- resolve: which relations can a written name mean? Exactly one where the search_path is known and no temporary
  relation or role schema interferes; otherwise all that may be meant.
- origins: which columns can the values of (table oid, attnum) of a RowDescription come from? Itself; the columns
  of the same name in its partitions and parents; what a generated column is computed from; and for a view what
  its column reads, down to the tables. The definition of a view is read by the SQL reader, column by column, and
  checked against pg_depend; where that fails, every column that the view depends on counts for each of its own.
- bases: which tables are behind a relation?

Names are "schema.relation" and "schema.relation.column" as the server has them, unquoted. Every session's own
temporary schema is called pg_temp. The columns of a relation stay JSON until somebody asks for them: of ten
thousand relations a session meets a few.

Left out: what a function reads (a view column that a function hides has origins None), relations that were made
in a transaction still open (no other session can see them), what triggers and rules copy.

Source: PostgreSQL 18 documentation 5.10.3 (search path), 52.11 pg_class, 52.18 pg_depend, 52.28 pg_inherits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.postgres.images import UserType
from protocols.postgres.meaning import Known, parts_of, split_path
from proxy.core.gate import Reader
from proxy.core.statement import ColumnRef, Statement

DEPTH_LIMIT: Final = 100  # views over views; PostgreSQL's own stack ends near there when it expands them
FIRST_USER_OID: Final = 16384  # FirstNormalObjectId, PostgreSQL src/include/access/transam.h

_TEMPORARY = re.compile(r"pg_temp_[0-9]+")
_TOAST_TEMPORARY = re.compile(r"pg_toast_temp_[0-9]+")
_VIEWS: Final = frozenset("vm")
_SHAPES: Final = {"d": "domain", "e": "enum", "c": "composite", "r": "range", "m": "multirange"}

Key = tuple[int, int]
Row = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class CatalogColumn:
    """One column of a relation."""

    name: str
    type_oid: int
    type_mod: int
    table_oid: int
    attnum: int


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation. columns_json: [[attnum, name, type oid, type modifier], ...] or '' for none."""

    oid: int
    schema: str
    name: str
    kind: str
    columns_json: str

    @property
    def qualified(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(slots=True)
class Tables:
    """The rows of the catalogue queries, by what they are (catalog.py says which query gives which)."""

    relations: Sequence[Row] = ()
    inherits: Sequence[Row] = ()
    reads: Sequence[Row] = ()
    calls: Sequence[Row] = ()
    generated: Sequence[Row] = ()
    functions: Sequence[Row] = ()
    types: Sequence[Row] = ()
    role_schemas: Sequence[Row] = ()
    definitions: Sequence[Row] = ()
    search_path: str = ""


@dataclass(slots=True)
class _Lineage:
    """What a view reads: columns[i] are the sources of its i-th column, None = cannot be told."""

    columns: Mapping[int, frozenset[Key] | None]
    relations: frozenset[int]


@dataclass(slots=True)
class _Caches:
    columns: dict[int, tuple[CatalogColumn, ...]] = field(default_factory=dict)
    lineage: dict[int, _Lineage] = field(default_factory=dict)
    origins: dict[Key, tuple[str, ...] | None] = field(default_factory=dict)
    bases: dict[str, frozenset[str]] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)


class Snapshot:
    """One reading of a catalogue; see the module."""

    def __init__(self, tables: Tables, reader: Reader | None = None) -> None:
        self._reader = reader
        self._caches = _Caches()
        self._relations: dict[int, Relation] = {}
        self._by_name: dict[str, list[Relation]] = {}
        self._by_bare: dict[str, list[Relation]] = {}
        self._toast: dict[int, int] = {}
        self._parents: dict[int, list[int]] = {}
        self._children: dict[int, list[int]] = {}
        self._reads: dict[int, set[Key]] = {}
        self._calls: set[int] = set()
        self._generated: dict[int, dict[int, list[int]]] = {}
        self._functions: dict[int, str] = {}
        self._types: dict[int, Row] = {}
        self._role_schemas: tuple[str, ...] = ()
        self._definitions: dict[int, str] = {}
        self.search_path: tuple[str, ...] | None = None
        self._take(tables)

    def _take(self, tables: Tables) -> None:
        """Add rows; the relations in them are not there yet."""
        for oid, schema, name, kind, toast, columns in tables.relations:
            relation = Relation(int(oid or 0), _schema(schema or ""), name or "", kind or "", columns or "")
            self._relations[relation.oid] = relation
            self._by_name.setdefault(relation.qualified, []).append(relation)
            self._by_bare.setdefault(relation.name, []).append(relation)
            if toast not in (None, "0"):
                self._toast[int(toast or 0)] = relation.oid
        for row in tables.inherits:
            child, parent = (int(cell or 0) for cell in row)
            self._parents.setdefault(child, []).append(parent)
            self._children.setdefault(parent, []).append(child)
        for view, relation_oid, attnum in tables.reads:
            self._reads.setdefault(int(view or 0), set()).add((int(relation_oid or 0), int(attnum or 0)))
        self._calls.update(int(row[0] or 0) for row in tables.calls)
        for row in tables.generated:
            owner, number, source = (int(cell or 0) for cell in row)
            self._generated.setdefault(owner, {}).setdefault(number, []).append(source)
        self._functions.update({int(oid or 0): f"{schema}.{name}" for oid, schema, name in tables.functions})
        self._types.update({int(row[0] or 0): row for row in tables.types})
        self._role_schemas = tuple(row[0] or "" for row in tables.role_schemas)
        self._definitions.update({int(oid or 0): text for oid, text in tables.definitions if text is not None})
        self.search_path = split_path(tables.search_path)

    # -- keeping up ------------------------------------------------------------------------------------

    def readers(self, oids: frozenset[int], reads: Sequence[Row], functions: Sequence[Row]) -> list[int]:
        """Return the views whose text may be another now that these relations and functions have changed.

        A view's text holds the names of what it reads and calls, and these may have been given to something else.
        reads: the changed relations' rows.
        """
        found = {view for view, keys in self._reads.items() if any(oid in oids for oid, _ in keys)}
        found |= {int(row[0] or 0) for row in reads} | oids & self._reads.keys()
        if functions:
            found |= self._calls
        return sorted(view for view in found if view >= FIRST_USER_OID)

    def change(self, changed: frozenset[int], live: frozenset[int], views: Sequence[int], tables: Tables) -> bool:
        """Take in a later reading: rows of the changed relations, and the texts of views; the others are as they were.

        live are the oids of all relations there are. Returns whether anything is different.
        """
        gone = self._relations.keys() - live
        if not (gone or changed or tables.functions or tables.types):
            roles = tuple(row[0] or "" for row in tables.role_schemas)
            if roles == self._role_schemas and split_path(tables.search_path) == self.search_path:
                return False
        for oid in changed | gone:
            self._forget(oid)
        for view in views:
            self._definitions.pop(view, None)
        self._take(tables)
        self._caches = _Caches()
        return True

    def _forget(self, oid: int) -> None:
        relation = self._relations.pop(oid, None)
        if relation is not None:
            self._by_name[relation.qualified].remove(relation)
            self._by_bare[relation.name].remove(relation)
            for names, name in ((self._by_name, relation.qualified), (self._by_bare, relation.name)):
                if not names[name]:
                    del names[name]
        for parent in self._parents.pop(oid, ()):
            self._children[parent].remove(oid)
        self._reads.pop(oid, None)
        self._calls.discard(oid)
        self._generated.pop(oid, None)
        self._definitions.pop(oid, None)

    # -- names -----------------------------------------------------------------------------------------

    def resolve(self, name: str, search_path: tuple[str, ...] | None) -> tuple[str, ...]:
        """Return every "schema.relation" that the written name may mean, () where nothing has that name.

        name is "relation", "schema.relation" or "database.schema.relation"; search_path None = unknown. "$user" in
        the path may be any schema that is named like a role, for SET ROLE moves it.
        """
        parts = parts_of(name)
        full = dict.fromkeys((name, ".".join(parts[-2:]))) if len(parts) > 1 else ()
        found = {relation.qualified: None for each in full for relation in self._by_name.get(each, ())}
        # A quoted name may hold a dot, so even a dotted name is looked for as a bare one.
        for bare in dict.fromkeys((parts[0], name) if len(parts) == 1 else (name,)):
            found.update(dict.fromkeys(self._through_path(bare, search_path)))
        return tuple(found)

    def _through_path(self, name: str, search_path: tuple[str, ...] | None) -> list[str]:
        candidates = {relation.schema: relation.qualified for relation in self._by_bare.get(name, ())}
        if not candidates or search_path is None:
            return list(candidates.values())
        path = [entry.strip('"') for entry in search_path]
        if "pg_catalog" not in path:
            path.insert(0, "pg_catalog")
        # The temporary schema of whichever session: whether it is this one's cannot be told from here.
        found = [candidates["pg_temp"]] if "pg_temp" in candidates else []
        for entry in path:
            if entry == "$user":
                found += [candidates[schema] for schema in self._role_schemas if schema in candidates]
            elif entry in candidates and entry != "pg_temp":
                return [*found, candidates[entry]]
        return found

    def bases(self, name: str) -> frozenset[str]:
        """Return the tables behind "schema.relation": of a view those it reads, of a table itself and its relatives.

        What a view calls cannot be seen (see hides); a name that is not known is its own base.
        """
        if name not in self._caches.bases:
            found: set[str] = set()
            for relation in self._by_name.get(name, ()):
                self._collect_bases(relation.oid, found, set())
            self._caches.bases[name] = frozenset(found) or frozenset({name})
        return self._caches.bases[name]

    def _collect_bases(self, oid: int, found: set[str], seen: set[int]) -> None:
        relation = self._relations.get(oid)
        if relation is None or oid in seen:
            return
        seen.add(oid)
        if relation.kind in _VIEWS and oid >= FIRST_USER_OID:
            for source in self._lineage(relation).relations:
                self._collect_bases(source, found, seen)
            if relation.kind == "m":
                found.add(relation.qualified)
            return
        found |= self._line_of(relation)

    def _line_of(self, relation: Relation) -> set[str]:
        """A table, all that it inherits from, and all that inherit from it: a row of one shows in the others."""
        found: set[str] = set()
        for step in (self._parents, self._children):
            seen: set[int] = set()
            waiting = [relation.oid]
            while waiting:
                oid = waiting.pop()
                if oid not in seen and oid in self._relations:
                    seen.add(oid)
                    found.add(self._relations[oid].qualified)
                    waiting += step.get(oid, ())
        return found

    def hides(self, name: str) -> bool:
        """Tell whether "schema.view" calls functions of users, so that it may read more than bases() says."""
        return any(relation.oid in self._calls for relation in self._by_name.get(name, ()))

    def known(self, name: str) -> Known | None:
        """Return what there is to know of "schema.relation" by name, None where it is not there, or not only one."""
        found = self._by_name.get(name, [])
        if len(found) != 1:
            return None
        if name not in self._caches.known:
            relation = found[0]
            generated = self._generated.get(relation.oid, {})
            computed = {column.name: column.attnum in generated for column in self._columns(relation)}
            relatives = self._line_of(relation) - {name}
            self._caches.known[name] = Known(computed, tuple(sorted(relatives)))
        return self._caches.known[name]

    def columns(self, name: str) -> tuple[CatalogColumn, ...]:
        """Return the columns of "schema.relation" in its order, () where it is not known or not only one."""
        found = self._by_name.get(name, [])
        return self._columns(found[0]) if len(found) == 1 else ()

    def function_name(self, oid: int) -> str | None:
        """Return "schema.function", None where the oid is not known."""
        return self._functions.get(oid)

    def user_type(self, oid: int) -> UserType | None:
        """Return what a type is that is not built in, None where the oid is not known."""
        row = self._types.get(oid)
        if row is None:
            return None
        _, name, typtype, category, base, modifier, element, labels = row
        if typtype == "b":
            array = category == "A" and element != "0"
            return UserType(name or "", "array" if array else "base", int(element or 0) if array else 0)
        shape = _SHAPES.get(typtype or "", "base")
        return UserType(
            name or "",
            shape,  # type: ignore[arg-type]  # a value of _SHAPES
            int(base or 0),
            int(modifier or -1),
            tuple(json.loads(labels)) if labels else (),
        )

    # -- where values come from ------------------------------------------------------------------------

    def origins(self, oid: int, attnum: int) -> tuple[str, ...] | None:
        """Return every "schema.relation.column" that the values may come from; None where it cannot be told.

        attnum 0 is the whole row, so all of its columns. Sorted, the column itself first.
        """
        key = (oid, attnum)
        if key not in self._caches.origins:
            found = self._origins(key, 0)
            own = self._own_names(key)
            self._caches.origins[key] = None if found is None else (*sorted(own), *sorted(found - own))
        return self._caches.origins[key]

    def _own_names(self, key: Key) -> frozenset[str]:
        relation = self._relations.get(key[0])
        if relation is None:
            return frozenset()
        found = [column.name for column in self._columns(relation) if column.attnum == key[1]]
        return frozenset(f"{relation.qualified}.{name}" for name in found)

    def _origins(self, key: Key, depth: int) -> frozenset[str] | None:
        oid, attnum = key
        relation = self._relations.get(oid)
        if relation is None and oid in self._toast:
            return self._origins((self._toast[oid], 0), depth)  # a slice of any column of its owner
        if relation is None or depth > DEPTH_LIMIT:
            return None
        if attnum < 0:
            return frozenset({f"{relation.qualified}.#{-attnum}"})  # a system column (ctid, xmin): no data
        columns = self._columns(relation)
        if attnum == 0:
            return _union([self._origins((oid, column.attnum), depth + 1) for column in columns])
        named = [column.name for column in columns if column.attnum == attnum]
        if not named:
            return None  # newer than this snapshot
        found: list[frozenset[str] | None] = [frozenset({f"{relation.qualified}.{named[0]}"})]
        if relation.kind in _VIEWS and oid >= FIRST_USER_OID:
            sources = self._lineage(relation).columns.get(attnum)
            if sources is None:
                return None
            found += [self._origins(source, depth + 1) for source in sources]
        else:
            found.append(self._relatives(oid, named[0], self._parents))
            found.append(self._relatives(oid, named[0], self._children))
            found += [
                self._origins((oid, source), depth + 1) for source in self._generated.get(oid, {}).get(attnum, ())
            ]
        return _union(found)

    def _relatives(self, oid: int, name: str, step: Mapping[int, Sequence[int]]) -> frozenset[str]:
        """Follow inheritance one way; a column keeps its name there, not its number."""
        found: set[str] = set()
        seen = {oid}
        waiting = list(step.get(oid, ()))
        while waiting:
            other = waiting.pop()
            relation = self._relations.get(other)
            if relation is None or other in seen:
                continue
            seen.add(other)
            if any(column.name == name for column in self._columns(relation)):
                found.add(f"{relation.qualified}.{name}")
            waiting += step.get(other, ())
        return frozenset(found)

    def _columns(self, relation: Relation) -> tuple[CatalogColumn, ...]:
        known = self._caches.columns.get(relation.oid)
        if known is None:
            rows = json.loads(relation.columns_json) if relation.columns_json else ()
            known = tuple(CatalogColumn(name, kind, mod, relation.oid, number) for number, name, kind, mod in rows)
            self._caches.columns[relation.oid] = known
        return known

    # -- views -----------------------------------------------------------------------------------------

    def _lineage(self, view: Relation) -> _Lineage:
        known = self._caches.lineage.get(view.oid)
        if known is None:
            known = self._caches.lineage[view.oid] = self._read_view(view)
        return known

    def _read_view(self, view: Relation) -> _Lineage:
        """Tell the sources of each column of a view: by its text where that is exact, else by its dependencies."""
        reads = self._reads.get(view.oid, set())
        relations = {oid for oid, _ in reads}
        numbers = [column.attnum for column in self._columns(view)]
        statement = self._parsed(view)
        if statement is not None:
            exact = self._by_text(statement, numbers, reads, view.oid in self._calls)
            # pg_depend knows no relation of the system itself; the text does.
            system = {
                relation.oid
                for name in statement.tables_read
                for relation in self._meant(name)
                if relation.oid < FIRST_USER_OID
            }
            relations |= system
            if exact is not None:
                return _Lineage(exact, frozenset(relations))
            reads = reads | {(oid, 0) for oid in system}
        opaque = view.oid in self._calls or (statement is not None and statement.opaque)
        sources = None if opaque else frozenset(reads)
        return _Lineage(dict.fromkeys(numbers, sources), frozenset(relations))

    def _parsed(self, view: Relation) -> Statement | None:
        text = self._definitions.get(view.oid)
        if self._reader is None or text is None:
            return None
        statements = self._reader(text)
        return statements[0] if len(statements) == 1 and statements[0].error is None else None

    def _by_text(
        self, statement: Statement, numbers: Sequence[int], reads: set[Key], calls: bool
    ) -> Mapping[int, frozenset[Key] | None] | None:
        """Return each column's sources out of the definition, None where any is in doubt.

        calls: functions of users are behind something in it, perhaps an operator or a cast that does not look like
        a call, so that only a bare column is what it seems.
        """
        outputs = statement.outputs
        if outputs is None or not statement.outputs_exact or len(outputs) != len(numbers):
            return None
        found: dict[int, frozenset[Key] | None] = {}
        for number, output in zip(numbers, outputs, strict=True):
            if output.opaque or (calls and not output.bare):
                found[number] = None
                continue
            keys: set[Key] = set()
            for source in output.sources:
                meant = self._source(source, statement, reads)
                if not meant:
                    return None
                keys |= meant
            found[number] = frozenset(keys)
        return found

    def _source(self, source: ColumnRef, statement: Statement, reads: set[Key]) -> set[Key]:
        """Return the columns that a reference in a view's text means, as far as pg_depend confirms them."""
        tables = (source.table,) if source.table is not None else statement.tables_read
        found: set[Key] = set()
        for relation in (relation for name in tables for relation in self._meant(name)):
            for column in self._columns(relation):
                if source.name not in ("*", column.name):
                    continue
                key = (relation.oid, column.attnum)
                if relation.oid < FIRST_USER_OID or key in reads or (relation.oid, 0) in reads:
                    found.add(key)
        return found

    def _meant(self, name: str) -> list[Relation]:
        """Return the relations of a name in a definition, which pg_get_viewdef wrote with pg_catalog as the path."""
        return [relation for full in self.resolve(name, ("pg_catalog",)) for relation in self._by_name.get(full, ())]


def _union(parts: Sequence[frozenset[str] | None]) -> frozenset[str] | None:
    found: set[str] = set()
    for part in parts:
        if part is None:
            return None
        found |= part
    return frozenset(found)


def _schema(name: str) -> str:
    if _TEMPORARY.fullmatch(name):
        return "pg_temp"
    return "pg_toast_temp" if _TOAST_TEMPORARY.fullmatch(name) else name


EMPTY: Final = Snapshot(Tables())
EMPTY.search_path = None
