"""Walking a query's parse tree: what it reads, and where each column of its result comes from.

The Walker goes through SELECT, its CTEs and its FROM once, top down, and collects Facts on the way; expressions are
walked by its other half (sql_expression.py). A recursive CTE's references to itself are marks while it is walked,
and are replaced by what they lead to afterwards. An item of FROM that is not listed makes the statement opaque.

Depth is the interpreter's own: a RecursionError goes to the caller (sql.py), which calls the statement unknown.

Source: PostgreSQL 18 docs 7.2-7.8, src/backend/parser/parse_clause.c, parse_cte.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from proxy.core.statement import ColumnRef
from proxy.policy.sql_expression import Expressions
from proxy.policy.sql_facts import MARK, Facts, Stream, column_name, name_of
from proxy.policy.sql_scope import (
    STAR,
    UNKNOWN_WIDTH,
    Flow,
    Item,
    Node,
    Relation,
    Scope,
    blur,
    exact,
    join_flows,
    mixed,
    rename,
    star_of,
    table_name,
    unite,
)


class Cte:
    """One WITH query. items is None until it was walked; partial while a recursive one is."""

    __slots__ = ("body", "busy", "items", "name", "partial", "scope")

    def __init__(self, name: str, body: Node, scope: Scope) -> None:
        self.name = name
        self.body = body
        self.scope = scope
        self.items: tuple[Item, ...] | None = None
        self.partial: tuple[Item, ...] | None = None
        self.busy = False


class Walker(Expressions):
    """Walks one statement into its Facts. modify walks INSERT, UPDATE, DELETE and MERGE (sql_modify.py)."""

    def __init__(self, facts: Facts, also_pure: frozenset[str], modify: Callable[[Walker, Node, Scope], Any]) -> None:
        super().__init__(facts, also_pure)
        self._modify = modify
        self._marks = 0

    # -- queries --------------------------------------------------------------------------------------

    def query(self, node: Node, parent: Scope) -> tuple[Item, ...]:
        """Walk a query or data-modifying statement, {"SelectStmt": ...}; return the columns of its result."""
        select = node.get("SelectStmt")
        if select is not None:
            return self.select(select, parent)
        items: tuple[Item, ...] = self._modify(self, node, parent)
        return items

    def select(self, body: Node, parent: Scope) -> tuple[Item, ...]:
        """Walk a SelectStmt's body: SELECT, VALUES, TABLE, or a set operation."""
        self.facts.kinds["read"] = None
        if "withClause" in body:
            parent = self.with_clause(body["withClause"], parent)
        if "larg" in body:
            items = unite(self.select(body["larg"], parent), self.select(body["rarg"], parent))
            self._tail(body, Scope(parent), items)
            return items
        scope = Scope(parent)
        if "valuesLists" in body:
            items = self._values(body["valuesLists"], scope)
            self._tail(body, scope, items)
            return items
        for node in body.get("fromClause", ()):
            self.from_item(node, scope)
        if "whereClause" in body:
            self.aside(body["whereClause"], scope)
        items = self.targets(body.get("targetList", ()), scope)
        if "intoClause" in body:
            self.into(body["intoClause"], items)
        self._tail(body, scope, items)
        return items

    def into(self, clause: Node, items: Sequence[Item]) -> None:
        """SELECT INTO and CREATE TABLE AS: a new table that holds what was read."""
        self.facts.kinds["define"] = None
        self.facts.written[self.range_name(clause["rel"])] = None
        if not clause.get("skipData"):
            for item in items:
                self.facts.move(item.flow)

    def _values(self, rows: Sequence[Node], scope: Scope) -> tuple[Item, ...]:
        streams: list[Stream] = []
        for row in rows:
            for place, cell in enumerate(row["List"].get("items", ())):
                if place == len(streams):
                    streams.append(Stream())
                if "A_Const" not in cell:
                    self.expression(cell, scope, streams[place])
        return tuple(Item(f"column{place}", stream.flow()) for place, stream in enumerate(streams, 1))

    def _tail(self, body: Node, scope: Scope, items: Sequence[Item]) -> None:
        """The clauses behind the target list, none of which adds to the result's sources."""
        for key in ("groupClause", "havingClause", "windowClause", "distinctClause"):
            if key in body:
                self.aside(body[key], scope)
        for node in body.get("sortClause", ()):
            name = _bare_name(node["SortBy"]["node"])
            if name is None or not any(item.name == name for item in items):
                self.aside(node, scope)
        for key in ("limitCount", "limitOffset"):
            if key in body:
                self.aside(body[key], scope)
        if "lockingClause" in body:
            self.facts.locks = True

    def targets(self, nodes: Sequence[Node], scope: Scope) -> tuple[Item, ...]:
        """Walk a target list or RETURNING; return its columns."""
        items: list[Item] = []
        for node in nodes:
            target = node["ResTarget"]
            value = target["val"]
            column = value.get("ColumnRef")
            if column is not None:
                fields = column["fields"]
                if "A_Star" in fields[-1]:
                    items += self._star([name_of(field) for field in fields[:-1]], scope)
                    continue
                flow = self.column(fields, scope)
                items.append(Item(target.get("name") or name_of(fields[-1]), flow))
                continue
            stream = Stream()
            self.expression(value, scope, stream)
            if _spreads_row(value):  # ends in .*: columns of unknown number, any of which may hold any of it
                items.append(Item(STAR, stream.flow(), True))
            else:
                items.append(Item(target.get("name") or column_name(value), stream.flow()))
        return tuple(items)

    def _star(self, parts: list[str], scope: Scope) -> list[Item]:
        items: list[Item] = []
        if parts:
            relation = scope.relation(parts[-1], parts[-2] if len(parts) > 1 else "")
            relations = [relation] if relation is not None else []
            if relation is None:
                items.append(star_of(table_name(parts[-2] if len(parts) > 1 else "", parts[-1])))
        else:
            relations = scope.relations
            if scope.natural or scope.merged:
                items.append(UNKNOWN_WIDTH)
        for relation in relations:
            items += relation.items
            if relation.rest is not None:
                items.append(Item(STAR, blur(relation.rest), True))
        for item in items:
            if item.star:
                self.facts.columns.update(dict.fromkeys(item.flow.sources))
        return items

    # -- WITH -----------------------------------------------------------------------------------------

    def with_clause(self, clause: Node, parent: Scope) -> Scope:
        """Open a scope with the CTEs of a WITH in it, each walked once, used or not."""
        scope = Scope(parent)
        scope.ctes = {}
        recursive = bool(clause.get("recursive"))
        ctes = [Cte(node["CommonTableExpr"]["ctename"], node["CommonTableExpr"], scope) for node in clause["ctes"]]
        if recursive:  # each sees all of them, the later ones too
            scope.ctes.update((cte.name, cte) for cte in ctes)
            for cte in ctes:
                self._cte_items(cte)
            return scope
        for cte in ctes:
            self._cte_items(cte)
            scope.ctes[cte.name] = cte
        return scope

    def _cte_items(self, cte: Cte) -> tuple[Item, ...]:
        if cte.items is not None:
            return cte.items
        if cte.busy:
            # It names itself: in the right place (partial is there), or where PostgreSQL forbids it.
            return cte.partial if cte.partial is not None else (Item(STAR, Flow((), False, True), True),)
        cte.busy = True
        names = [name_of(node) for node in cte.body.get("aliascolnames", ())]
        query = cte.body["ctequery"]
        select = query.get("SelectStmt")
        if select is not None and "larg" in select and cte.scope.ctes and cte.scope.ctes.get(cte.name) is cte:
            items = self._recursive(cte, select, names)
        else:
            items = rename(self.query(query, cte.scope), names)
        extra = [(cte.body.get("search_clause") or {}).get("search_seq_column")]
        cycle = cte.body.get("cycle_clause") or {}
        extra += [cycle.get("cycle_mark_column"), cycle.get("cycle_path_column")]
        every = mixed(items).flow
        cte.items = (*items, *(Item(name, every) for name in extra if name))
        cte.busy = False
        return cte.items

    def _recursive(self, cte: Cte, select: Node, names: list[str]) -> tuple[Item, ...]:
        """Walk a UNION that may name itself: its own columns are marks on the right side, resolved afterwards."""
        self.facts.kinds["read"] = None
        scope = self.with_clause(select["withClause"], cte.scope) if "withClause" in select else cte.scope
        left = rename(self.select(select["larg"], scope), names)
        self._marks += 1
        table = f"{MARK}{self._marks}"
        if exact(left):
            marks = tuple(
                Item(item.name, Flow((ColumnRef(table, str(place)),), True)) for place, item in enumerate(left)
            )
        else:
            marks = tuple(
                Item(item.name, Flow(mixed(left).flow.sources, False, item.flow.opaque), item.star) for item in left
            )
        cte.partial = marks
        right = self.select(select["rarg"], scope)
        items = unite(left, right)
        self._tail(select, Scope(scope), items)
        flows = {ColumnRef(table, str(place)): item.flow for place, item in enumerate(items)}
        return tuple(Item(item.name, _close(item.flow, flows), item.star) for item in items)

    def _find_cte(self, name: str, scope: Scope | None) -> Cte | None:
        while scope is not None:
            if scope.ctes is not None:
                cte: Cte | None = scope.ctes.get(name)
                if cte is not None:
                    return cte
            scope = scope.parent
        return None

    # -- FROM -----------------------------------------------------------------------------------------

    def range_name(self, body: Node) -> str:
        """The name of a RangeVar's relation."""
        return table_name(body.get("schemaname", ""), body["relname"])

    def target(self, body: Node) -> Relation:
        """The relation that a statement writes: never a CTE, whatever its name."""
        table = self.range_name(body)
        alias = body.get("alias")
        self.facts.written[table] = None
        items = (star_of(table),)
        return Relation(alias["aliasname"] if alias else body["relname"], items, table, body.get("schemaname", ""))

    def from_item(self, node: Node, scope: Scope) -> None:
        """Walk one item of FROM and make it visible in the scope."""
        body = node.get("RangeVar")
        if body is not None:
            scope.relations.append(self._range(body, scope))
            return
        ((tag, body),) = node.items()
        match tag:
            case "JoinExpr":
                self._join(body, scope)
            case "RangeSubselect":
                # Without LATERAL its siblings are out of its sight.
                items = self.query(body["subquery"], scope if body.get("lateral") else _outside(scope))
                name, names = _alias(body)
                scope.relations.append(Relation(name, rename(items, names)))
            case "RangeFunction":
                self._range_function(body, scope)
            case "RangeTableSample":
                self.from_item(body["relation"], scope)
                self.aside(body.get("args", ()), scope)
                self.aside(body.get("repeatable"), scope)
            case "RangeTableFunc" | "JsonTable":
                self._range_table(body, scope)
            case _:
                self.facts.opaque(f"{tag} in FROM is not known")
                scope.relations.append(Relation("", (), rest=Flow((), False, True)))

    def _range(self, body: Node, scope: Scope) -> Relation:
        name = body["relname"]
        alias, names = _alias(body)
        if "schemaname" not in body:
            cte = self._find_cte(name, scope)
            if cte is not None:
                return Relation(alias or name, rename(self._cte_items(cte), names))
        table = self.range_name(body)
        self.facts.read[table] = None
        if names:
            return Relation(alias, rename((star_of(table),), names))
        schema = "" if alias else body.get("schemaname", "")
        return Relation(alias or name, (star_of(table),), table, schema)

    def _join(self, body: Node, scope: Scope) -> None:
        start = len(scope.relations)
        self.from_item(body["larg"], scope)
        self.from_item(body["rarg"], scope)
        if "quals" in body:
            self.aside(body["quals"], scope)
        using = [name_of(node) for node in body.get("usingClause", ())]
        scope.merged.update(using)
        scope.natural = scope.natural or bool(body.get("isNatural"))
        merged = [Item(name, self.note(scope.column(name))) for name in using]
        if "join_using_alias" in body:
            scope.relations.append(Relation(body["join_using_alias"]["aliasname"], tuple(merged)))
        if "alias" in body:
            inner = scope.relations[start:]
            del scope.relations[start:]
            items = [item for relation in inner for item in relation.items]
            rests = [relation.rest for relation in inner if relation.rest is not None]
            if using or body.get("isNatural"):
                items = [*merged, mixed(items)]
            name, names = _alias(body)
            rest = join_flows(rests) if rests else None
            scope.relations.append(Relation(name, rename(items, names), rest=rest))

    def _range_function(self, body: Node, scope: Scope) -> None:
        stream = Stream()
        defined: list[str] = []
        first = ""
        for node in body.get("functions", ()):
            for part in node["List"].get("items", ()):
                if not part:
                    continue
                if "FuncCall" in part and not first:
                    first = name_of(part["FuncCall"]["funcname"][-1])
                if "ColumnDef" in part or "List" in part:
                    defined += [each["ColumnDef"]["colname"] for each in part.get("List", {"items": [part]})["items"]]
                else:
                    self.expression(part, scope, stream)
        defined += [each["ColumnDef"]["colname"] for each in body.get("coldeflist", ())]
        name, names = _alias(body)
        flow = stream.flow()
        items = tuple(Item(each, flow) for each in names or defined)
        scope.relations.append(Relation(name or first, items, rest=flow))

    def _range_table(self, body: Node, scope: Scope) -> None:
        """XMLTABLE and JSON_TABLE: every column comes from the document."""
        stream = Stream()
        for key, value in body.items():
            if key not in ("alias", "columns"):
                self.children(value, scope, stream)
        names = [name for name in _column_names(body.get("columns", ())) if name]
        self.children(body.get("columns"), scope, stream)
        alias, renamed = _alias(body)
        items = tuple(Item(name, stream.flow()) for name in names)
        scope.relations.append(Relation(alias, rename(items, renamed)))


def _close(flow: Flow, marks: dict[ColumnRef, Flow]) -> Flow:
    """Replace a recursive CTE's references to itself by what they lead to."""
    if not any(source in marks for source in flow.sources):
        return flow
    sources: dict[ColumnRef, None] = {}
    opaque = flow.opaque
    seen: set[ColumnRef] = set()
    open_marks = list(flow.sources)
    while open_marks:
        source = open_marks.pop(0)
        target = marks.get(source)
        if target is None:
            sources[source] = None
        elif source not in seen:
            seen.add(source)
            opaque |= target.opaque
            open_marks += target.sources
    return Flow(tuple(sources), False, opaque)


def _spreads_row(value: Node) -> bool:
    """Whether a target ends in ``.*`` behind an expression, which spreads a row of unknown width."""
    indirection = value.get("A_Indirection", {}).get("indirection", ())
    return bool(indirection) and "A_Star" in indirection[-1]


def _bare_name(node: Node) -> str | None:
    fields = node.get("ColumnRef", {}).get("fields", ())
    return name_of(fields[0]) if len(fields) == 1 and "String" in fields[0] else None


def _alias(body: Node) -> tuple[str, list[str]]:
    alias = body.get("alias")
    if alias is None:
        return "", []
    return alias["aliasname"], [name_of(node) for node in alias.get("colnames", ())]


def _outside(scope: Scope) -> Scope:
    return scope.parent if scope.parent is not None else Scope(None)


def _column_names(nodes: Sequence[Node]) -> list[str]:
    names: list[str] = []
    for node in nodes:
        body = node.get("RangeTableFuncCol") or node.get("JsonTableColumn") or {}
        names.append(body.get("colname") or body.get("name") or "")
        names += _column_names(body.get("columns", ()))
    return names
