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
from proxy.policy.sql_scope import Item, Node, Relation, Scope, star_of


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
    _columns_written(walker, target, body.get("cols", ()))
    if "selectStmt" in body:
        select = body["selectStmt"]["SelectStmt"]
        read_before = "read" in facts.kinds
        for item in walker.select(select, parent):
            facts.move(item.flow)
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
        _assign(walker, target, conflict.get("targetList", ()), excluded)
        if "whereClause" in conflict:
            walker.aside(conflict["whereClause"], excluded)
    return _returning(walker, body, target, scope)


def _update(walker: Walker, body: Node, parent: Scope) -> tuple[Item, ...]:
    walker.facts.kinds["write"] = None
    scope = Scope(parent)
    target = walker.target(body["relation"])
    scope.relations.append(target)
    for node in body.get("fromClause", ()):
        walker.from_item(node, scope)
    _assign(walker, target, body.get("targetList", ()), scope)
    walker.facts.where(body)
    walker.aside(body.get("whereClause"), scope)
    return _returning(walker, body, target, scope)


def _delete(walker: Walker, body: Node, parent: Scope) -> tuple[Item, ...]:
    walker.facts.kinds["delete"] = None
    scope = Scope(parent)
    target = walker.target(body["relation"])
    scope.relations.append(target)
    for node in body.get("usingClause", ()):
        walker.from_item(node, scope)
    walker.facts.where(body)
    walker.aside(body.get("whereClause"), scope)
    return _returning(walker, body, target, scope)


def _merge(walker: Walker, body: Node, parent: Scope) -> tuple[Item, ...]:
    facts = walker.facts
    facts.kinds["write"] = None
    scope = Scope(parent)
    target = walker.target(body["relation"])
    walker.from_item(body["sourceRelation"], scope)
    scope.relations.insert(0, target)
    walker.aside(body.get("joinCondition"), scope)
    for node in body.get("mergeWhenClauses", ()):
        clause = node["MergeWhenClause"]
        walker.aside(clause.get("condition"), scope)
        match clause.get("commandType"):
            case "CMD_DELETE":
                facts.kinds["delete"] = None
            case "CMD_INSERT":
                _columns_written(walker, target, clause.get("targetList", ()))
                for value in clause.get("values", ()):
                    stream = Stream()
                    walker.expression(value, scope, stream)
                    facts.move(stream.flow())
            case "CMD_UPDATE":
                _assign(walker, target, clause.get("targetList", ()), scope)
            case _:
                continue  # DO NOTHING
    return _returning(walker, body, target, scope)


def _columns_written(walker: Walker, target: Relation, nodes: Sequence[Node]) -> None:
    for node in nodes:
        name = node["ResTarget"].get("name")
        if name:
            walker.facts.columns_written[ColumnRef(target.table, name)] = None


def _assign(walker: Walker, target: Relation, nodes: Sequence[Node], scope: Scope) -> None:
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
        itself = ColumnRef(target.table, node["ResTarget"].get("name", ""))
        if several is None and not flow.opaque and all(source == itself for source in flow.sources):
            continue
        walker.facts.move(flow)


def _returning(walker: Walker, body: Node, target: Relation, scope: Scope) -> tuple[Item, ...]:
    nodes = body.get("returningList") or body.get("returningClause", {}).get("exprs", ())
    if not nodes:
        return ()
    assert target.table is not None
    # PostgreSQL 18's OLD and NEW, or the names that WITH gives them: further out than what has that name itself.
    names = [option["ReturningOption"]["value"] for option in body.get("returningClause", {}).get("options", ())]
    versions = Scope(scope.parent)
    versions.relations = [Relation(name, (star_of(target.table),), target.table) for name in (*names, "old", "new")]
    inner = Scope(versions)
    inner.relations = scope.relations
    return walker.targets(nodes, inner)


_MODIFY: Final[dict[str, Callable[[Walker, Node, Scope], tuple[Item, ...]]]] = {
    "InsertStmt": _insert,
    "UpdateStmt": _update,
    "DeleteStmt": _delete,
    "MergeStmt": _merge,
}
