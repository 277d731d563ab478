"""INSERT, UPDATE, DELETE and MERGE: what they write, what values they move, and what RETURNING gives back.

Each takes the walker and the parse tree's node and returns the columns of RETURNING. Values that are stored are
noted with where they came from (Facts.move), so that a mask can refuse to let a hidden column be copied into one
that is not; a column computed from itself alone (``n = n + 1``) stays where it is and is not moved.

Source: PostgreSQL 18 docs INSERT, UPDATE, DELETE, MERGE; src/backend/parser/analyze.c, parse_merge.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from proxy.core.statement import ColumnRef
from proxy.policy.sql_facts import Stream
from proxy.policy.sql_query import Walker
from proxy.policy.sql_scope import STAR, Flow, Item, Node, Relation, Scope, blur, exact, join_flows, star_of

# What the columns of a target take: by name, or STAR for what may be any of them.
Values = dict[str, Flow]


def modify(walker: Walker, node: Node, parent: Scope) -> tuple[Item, ...]:
    """Walk a data-modifying statement, alone or in a WITH; an unknown node is opaque."""
    ((tag, body),) = node.items()
    handler = _MODIFY.get(tag)
    if handler is None:
        walker.facts.kinds["unknown"] = None
        walker.facts.opaque(f"{tag} is not known here")
        return ()
    scope = walker.with_clause(body["withClause"], parent) if "withClause" in body else parent
    return handler(walker, body, scope)


def _insert(walker: Walker, body: Node, parent: Scope) -> tuple[Item, ...]:
    facts = walker.facts
    facts.kinds["write"] = None
    target = walker.target(body["relation"])
    values: Values = {}
    _columns_written(walker, target, body.get("cols", ()))
    if "selectStmt" in body:
        select = body["selectStmt"]["SelectStmt"]
        read_before = "read" in facts.kinds
        items = walker.select(select, parent)
        for item in items:
            facts.move(item.flow)
        values = _placed(body.get("cols", ()), items)
        if "valuesLists" in select and not read_before and not facts.read:
            facts.kinds.pop("read", None)  # VALUES alone reads nothing
    scope = Scope(parent)
    scope.relations.append(target)
    conflict = body.get("onConflictClause")
    if conflict is not None:
        for element in conflict.get("infer", {}).get("indexElems", ()):
            if "name" in element["IndexElem"]:
                facts.columns[ColumnRef(target.table, element["IndexElem"]["name"])] = None
            walker.children(element["IndexElem"].get("expr"), scope, Stream())
        if "whereClause" in conflict.get("infer", {}):
            walker.aside(conflict["infer"]["whereClause"], scope)
        assert target.table is not None
        excluded = Scope(scope)
        excluded.relations += [target, Relation("excluded", (star_of(target.table),), target.table)]
        _assign(walker, target, conflict.get("targetList", ()), excluded, values)
        if "whereClause" in conflict:
            walker.aside(conflict["whereClause"], excluded)
    return _returning(walker, body, target, scope, values)


def _update(walker: Walker, body: Node, parent: Scope) -> tuple[Item, ...]:
    walker.facts.kinds["write"] = None
    scope = Scope(parent)
    target = walker.target(body["relation"])
    scope.relations.append(target)
    for node in body.get("fromClause", ()):
        walker.from_item(node, scope)
    values: Values = {}
    _assign(walker, target, body.get("targetList", ()), scope, values)
    walker.facts.where(body)
    walker.aside(body.get("whereClause"), scope)
    return _returning(walker, body, target, scope, values)


def _delete(walker: Walker, body: Node, parent: Scope) -> tuple[Item, ...]:
    walker.facts.kinds["delete"] = None
    scope = Scope(parent)
    target = walker.target(body["relation"])
    scope.relations.append(target)
    for node in body.get("usingClause", ()):
        walker.from_item(node, scope)
    walker.facts.where(body)
    walker.aside(body.get("whereClause"), scope)
    return _returning(walker, body, target, scope, {})


def _merge(walker: Walker, body: Node, parent: Scope) -> tuple[Item, ...]:
    facts = walker.facts
    facts.kinds["write"] = None
    scope = Scope(parent)
    target = walker.target(body["relation"])
    walker.from_item(body["sourceRelation"], scope)
    scope.relations.insert(0, target)
    walker.aside(body.get("joinCondition"), scope)
    values: Values = {}
    for node in body.get("mergeWhenClauses", ()):
        clause = node["MergeWhenClause"]
        walker.aside(clause.get("condition"), scope)
        match clause.get("commandType"):
            case "CMD_DELETE":
                facts.kinds["delete"] = None
            case "CMD_INSERT":
                _columns_written(walker, target, clause.get("targetList", ()))
                items: list[Item] = []
                for value in clause.get("values", ()):
                    stream = Stream()
                    walker.expression(value, scope, stream)
                    facts.move(stream.flow())
                    items.append(Item("", stream.flow()))
                _add(values, _placed(clause.get("targetList", ()), items))
            case "CMD_UPDATE":
                _assign(walker, target, clause.get("targetList", ()), scope, values)
            case _:
                continue  # DO NOTHING
    return _returning(walker, body, target, scope, values)


def _columns_written(walker: Walker, target: Relation, nodes: Sequence[Node]) -> None:
    for node in nodes:
        name = node["ResTarget"].get("name")
        if name:
            walker.facts.columns_written[ColumnRef(target.table, name)] = None


def _placed(columns: Sequence[Node], items: Sequence[Item]) -> Values:
    """Which target column takes which value; STAR for all of them where the text does not tell."""
    if len(columns) == len(items) and exact(items):
        return {node["ResTarget"]["name"]: item.flow for node, item in zip(columns, items, strict=True)}
    return {STAR: join_flows([item.flow for item in items])} if items else {}


def _add(values: Values, more: Values) -> None:
    for name, flow in more.items():
        values[name] = join_flows((values[name], flow)) if name in values else flow


def _assign(walker: Walker, target: Relation, nodes: Sequence[Node], scope: Scope, values: Values) -> None:
    """SET a = .., (b, c) = (..): note what is written, and from where. A row assigned at once is walked once."""
    _columns_written(walker, target, nodes)
    for node in nodes:
        value = node["ResTarget"]["val"]
        several = value.get("MultiAssignRef")
        if several is not None:
            if several.get("colno", 1) != 1:
                continue
            value = several["source"]
        stream = Stream()
        walker.expression(value, scope, stream)
        flow = stream.flow()
        if several is None:
            _add(values, {node["ResTarget"].get("name", ""): flow})
        else:
            _add(values, {STAR: flow})
        itself = ColumnRef(target.table, node["ResTarget"].get("name", ""))
        if several is None and not flow.opaque and all(source == itself for source in flow.sources):
            continue
        walker.facts.move(flow)


def _returning(walker: Walker, body: Node, target: Relation, scope: Scope, values: Values) -> tuple[Item, ...]:
    """Walk RETURNING. A column that took a value gives that value back, so it has its sources too."""
    nodes = body.get("returningList") or body.get("returningClause", {}).get("exprs", ())
    if not nodes:
        return ()
    assert target.table is not None
    everything = star_of(target.table)
    now: tuple[Item, ...] = (everything,)
    named = {name: flow for name, flow in values.items() if flow.sources or flow.opaque}
    if STAR in named:
        flow = join_flows((everything.flow, *named.values()))
        now = (Item(STAR, blur(flow), True),)
    elif named:
        own = {name: Flow((ColumnRef(target.table, name),)) for name in named}
        now = (*(Item(name, blur(join_flows((own[name], flow)))) for name, flow in named.items()), everything)
    table = None if named else target.table
    # PostgreSQL 18's OLD and NEW, or the names that WITH gives them: further out than what has that name itself.
    names = [option["ReturningOption"]["value"] for option in body.get("returningClause", {}).get("options", ())]
    versions = Scope(scope.parent)
    versions.relations = [Relation(name, now, table) for name in (*names, "old", "new")]
    inner = Scope(versions)
    inner.relations = [
        Relation(target.name, now, table, target.schema) if each is target else each for each in scope.relations
    ]
    return walker.targets(nodes, inner)


_MODIFY: Final[dict[str, Callable[[Walker, Node, Scope], tuple[Item, ...]]]] = {
    "InsertStmt": _insert,
    "UpdateStmt": _update,
    "DeleteStmt": _delete,
    "MergeStmt": _merge,
}
