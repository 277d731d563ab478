"""Names and where they lead: relations in scope, their columns, and the flow of values through a query.

A Flow says which table columns a value was computed from. An Item is one column of a derived relation, or a star:
an unknown number of columns. A Scope is one level of a query: what FROM made visible, the CTEs of its WITH, and
the level around it. Looking a column up gives every place that it may be, for the text does not tell which table
has a column: an inner table without that column lets the name reach an outer one.

Left out: types, and so whether ``a.b`` is a column or a function of the row: the builtins that can be called so
count as both; a user's function needs the catalogue.

Source: PostgreSQL 18, src/backend/parser/parse_relation.c colNameToVar, parse_expr.c transformColumnRef.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from proxy.core.events import Kind
from proxy.core.statement import ColumnRef
from proxy.policy.sql_functions import gives_whole_row

# A node of the parse tree as pgparse gives it: JSON, {"SelectStmt": {...}}; its shape is the parser's, not ours.
Node = dict[str, Any]

STAR: Final = "*"

# From harmless to grave. A single statement has the gravest kind of what is in it; set_config makes a read "session".
_GRAVITY: Final[dict[Kind, int]] = {
    "read": 0,
    "session": 1,
    "transfer": 2,
    "write": 3,
    "execute": 4,
    "define": 5,
    "delete": 6,
    "admin": 7,
    "unknown": 8,
}


def gravest(kinds: Iterable[Kind]) -> Kind:
    """The gravest of some kinds; "unknown" of none."""
    return max(kinds, key=_GRAVITY.__getitem__, default="unknown")


class Flow(NamedTuple):
    """Where a value comes from. bare: unchanged from the one column of sources."""

    sources: tuple[ColumnRef, ...] = ()
    bare: bool = False
    opaque: bool = False


class Item(NamedTuple):
    """One column of a relation, or with star several of unknown number and names.

    A star whose flow is bare stands for the columns of its one table, by their own names; one that is not has
    columns that may hold any of its sources.
    """

    name: str
    flow: Flow
    star: bool = False


NOTHING: Final = Flow()
# Makes a list of items inexact without adding a source.
UNKNOWN_WIDTH: Final = Item(STAR, NOTHING, True)


def join_flows(flows: Sequence[Flow]) -> Flow:
    """The flow of a value that may be any of these, or is computed from all of them."""
    if len(flows) == 1:
        return flows[0]
    sources = tuple(dict.fromkeys(source for flow in flows for source in flow.sources))
    return Flow(sources, False, any(flow.opaque for flow in flows))


def blur(flow: Flow) -> Flow:
    """The same sources, no longer passed on unchanged."""
    return Flow(flow.sources, False, flow.opaque) if flow.bare else flow


def exact(items: Sequence[Item]) -> bool:
    """Whether the number and order of the columns are known."""
    return not any(item.star for item in items)


def star_of(table: str) -> Item:
    """All columns of a table."""
    return Item(STAR, Flow((ColumnRef(table, STAR),), True), True)


def mixed(items: Sequence[Item]) -> Item:
    """A star of which every column may hold anything of items."""
    return Item(STAR, blur(join_flows([item.flow for item in items])) if items else NOTHING, True)


def rename(items: Sequence[Item], names: Sequence[str]) -> tuple[Item, ...]:
    """Apply a column alias list, ``as x(a, b)``: it renames from the left, as far as it goes."""
    if not names:
        return tuple(items)
    renamed: list[Item] = []
    for place, item in enumerate(items):
        if item.star:
            # From here on nobody knows which name meets which column.
            rest = mixed(items[place:])
            renamed += [Item(name, rest.flow) for name in names[place:]]
            return (*renamed, rest)
        renamed.append(Item(names[place], item.flow) if place < len(names) else item)
    return tuple(renamed)


def unite(left: Sequence[Item], right: Sequence[Item]) -> tuple[Item, ...]:
    """The columns of a UNION, INTERSECT or EXCEPT: by position, under the left side's names."""
    if len(left) == len(right) and exact(left) and exact(right):
        return tuple(Item(one.name, join_flows((one.flow, two.flow))) for one, two in zip(left, right, strict=True))
    every = blur(join_flows([item.flow for item in (*left, *right)])) if left or right else NOTHING
    return tuple(Item(item.name, every, item.star) for item in left)


class Relation:
    """Something that FROM makes visible. table: the name of a real table, None for a derived relation.

    rest: the flow of a column that items do not name, for functions in FROM, whose columns only the catalogue knows.
    """

    __slots__ = ("items", "name", "rest", "schema", "table")

    def __init__(
        self, name: str, items: tuple[Item, ...], table: str | None = None, schema: str = "", rest: Flow | None = None
    ) -> None:
        self.name = name
        self.items = items
        self.table = table
        self.schema = schema
        self.rest = rest

    def whole(self) -> Flow:
        """The flow of a whole row of it."""
        flows = [item.flow for item in self.items]
        if self.rest is not None:
            flows.append(self.rest)
        return blur(join_flows(flows)) if flows else NOTHING

    def named(self, name: str) -> Flow | None:
        """The flow of the column that certainly has this name."""
        flows = [item.flow for item in self.items if item.name == name and not item.star]
        return join_flows(flows) if flows else None

    def perhaps(self, name: str) -> list[Flow]:
        """The flows of what may be a column of this name: through stars, and functions' unknown columns."""
        flows: list[Flow] = []
        for item in self.items:
            if item.star and (item.flow.sources or item.flow.opaque):
                flow = item.flow
                flows.append(Flow((ColumnRef(flow.sources[0].table, name),), True, flow.opaque) if flow.bare else flow)
        if self.rest is not None:
            flows.append(self.rest)
        return flows


class Scope:
    """One level of a query. merged: names that USING made one of two columns; natural: any may be."""

    __slots__ = ("ctes", "merged", "natural", "parent", "relations")

    def __init__(self, parent: Scope | None) -> None:
        self.parent = parent
        self.relations: list[Relation] = []
        self.ctes: dict[str, Any] | None = None  # of Cte, which is the walker's
        self.merged: set[str] = set()
        self.natural = False

    def relation(self, name: str, schema: str = "") -> Relation | None:
        """The nearest relation of this name; with a schema only one that was named with it and has no alias."""
        scope: Scope | None = self
        while scope is not None:
            for relation in scope.relations:
                if relation.name == name and (not schema or relation.schema == schema):
                    return relation
            scope = scope.parent
        return None

    def column(self, name: str) -> Flow:
        """Everything that an unqualified column name may be."""
        tables: dict[str, None] = {}
        flows: list[Flow] = []
        scope: Scope | None = self
        while scope is not None:
            sure = False
            certain: list[Flow] = []
            level_tables: list[str] = []
            level_flows: list[Flow] = []
            for relation in scope.relations:
                if relation.table is None and (flow := relation.named(name)) is not None:
                    sure = True
                    certain.append(flow)
                elif relation.name == name:  # a whole row, if no column has that name
                    level_flows.append(relation.whole())
                elif relation.table is not None:
                    level_tables.append(relation.table)
                else:
                    level_flows += relation.perhaps(name)
            if sure and not (scope.natural or name in scope.merged):
                flows += certain  # were there another one, PostgreSQL would call the name ambiguous
                break
            flows += certain
            flows += level_flows
            tables.update(dict.fromkeys(level_tables))
            if sure:
                break
            scope = scope.parent
        return _either(name, list(tables), list(dict.fromkeys(flows)))

    def qualified(self, parts: Sequence[str]) -> Flow:
        """The flow of ``relation.column``, ``schema.relation.column`` or ``database.schema.relation.column``."""
        name = parts[-1]
        schema = parts[-3] if len(parts) > 2 else ""
        relation = self.relation(parts[-2], schema)
        if relation is None:
            return Flow((ColumnRef(table_name(schema, parts[-2]), name),), True)
        flow = relation.named(name)
        if flow is None:
            found = relation.perhaps(name)
            if not found:
                # No column: an attribute that is a function of the row, or an error.
                return Flow(relation.whole().sources, False, True)
            flow = join_flows(found)
            if gives_whole_row(name):
                flow = join_flows((flow, relation.whole()))
        return flow

    def row(self, parts: Sequence[str]) -> Flow:
        """The flow of ``relation.*`` as one value."""
        relation = self.relation(parts[-1], parts[-2] if len(parts) > 1 else "")
        if relation is None:
            return Flow((ColumnRef(table_name(parts[-2] if len(parts) > 1 else "", parts[-1]), STAR),))
        return relation.whole()


def _either(name: str, tables: list[str], flows: list[Flow]) -> Flow:
    if tables or not flows:  # a column of a table; of which one, only a single candidate tells
        flows.append(Flow((ColumnRef(tables[0] if len(tables) == 1 else None, name),), True))
    told = [flow for flow in flows if flow.sources or flow.opaque]
    return join_flows(told) if told else NOTHING


def table_name(schema: str, name: str) -> str:
    """Write a relation's name as facts have it: "schema.table", or "table" where the text names no schema."""
    return dotted((schema, name)) if schema else dotted((name,))


def dotted(parts: Sequence[str]) -> str:
    """Join the parts of a name; a part with a dot or a quote in it is quoted, so that no two names look alike."""
    return ".".join(_quote(part) if "." in part or '"' in part else part for part in parts)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
