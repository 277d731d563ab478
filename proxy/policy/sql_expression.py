"""Walking expressions: the columns they read, the functions they call, and what their values are computed from.

What an expression is computed from goes into a Stream; predicates (WHERE, ON, ORDER BY, GROUP BY, OVER) use one that
is thrown away, so that they count as columns read but not as sources of the result. FILTER, CASE conditions and the
ORDER BY of WITHIN GROUP do count as sources: their columns shape the value. A node that is not listed makes the
statement opaque and unknown.

Source: PostgreSQL 18 docs 4.2, src/backend/parser/parse_expr.c.
"""

# ruff: noqa: SIM905 - lists of one name a line would be pages

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from proxy.core.statement import ColumnRef
from proxy.policy.sql_facts import Facts, Stream, name_of
from proxy.policy.sql_functions import SET_CONFIG, function_class, gives_whole_row, known_operator
from proxy.policy.sql_scope import Flow, Item, Node, Scope, blur, join_flows
from proxy.policy.sql_where import constant_text


class Expressions:
    """The half of the Walker that walks expressions; queries below them are the other half's (sql_query.py)."""

    def __init__(self, facts: Facts, also_pure: frozenset[str]) -> None:
        self.facts = facts
        self.also_pure = also_pure

    def query(self, node: Node, parent: Scope) -> tuple[Item, ...]:
        """Walk a query below an expression; return its columns."""
        raise NotImplementedError

    def aside(self, node: Any, scope: Scope) -> None:
        """Walk something that decides about rows, not about values."""
        if node is not None:
            self.children(node, scope, Stream())

    def column(self, fields: Sequence[Node], scope: Scope) -> Flow:
        """Resolve a ColumnRef and note its columns as read."""
        if len(fields) == 1:
            return self.note(scope.column(name_of(fields[0])))
        parts = [name_of(field) for field in fields if "A_Star" not in field]
        if len(parts) < len(fields):
            return self.note(scope.row(parts))
        flow = scope.qualified(parts)
        self.facts.attributes.update(dict.fromkeys(flow.sources))
        return self.note(flow)

    def note(self, flow: Flow) -> Flow:
        for source in flow.sources:
            self.facts.columns[source] = None
        if flow.opaque and not flow.sources:
            self.facts.opaque("a column whose source is not known")
        return flow

    def expression(self, node: Node, scope: Scope, stream: Stream) -> None:
        """Walk one expression node and add what it is computed from to the stream."""
        for tag, body in node.items():
            if tag == "ColumnRef":
                stream.add(self.column(body["fields"], scope))
            elif tag in _LEAVES:
                continue
            elif tag == "A_Expr":
                self.operator(body["name"], stream)
                for key in ("lexpr", "rexpr"):
                    if key in body:
                        self.expression(body[key], scope, stream)
            elif tag in _PLAIN:
                for value in body.values():
                    if value.__class__ is list or value.__class__ is dict:
                        self.children(value, scope, stream)
            else:
                special = _SPECIAL.get(tag)
                if special is None:
                    self.facts.opaque(f"expression {tag} is not known")
                    stream.opaque = True
                    self.facts.kinds["unknown"] = None
                else:
                    special(self, body, scope, stream)

    def children(self, value: Any, scope: Scope, stream: Stream) -> None:
        """Walk whatever hangs below a node: a list, a node, or a struct that is not wrapped as a node."""
        if value.__class__ is list:
            for each in value:
                self.children(each, scope, stream)
        elif value.__class__ is dict:
            key = next(iter(value), None)
            if key is None:
                return
            if len(value) == 1 and key[0].isupper():
                self.expression(value, scope, stream)
            else:
                for name, each in value.items():
                    if name not in _NOT_EXPRESSIONS:
                        self.children(each, scope, stream)

    def operator(self, name: Sequence[Node], stream: Stream) -> None:
        """Note an operator that is not PostgreSQL's own: it calls a function that nobody knows."""
        symbol = name[-1]["String"].get("sval", "")
        if len(name) == 1 and symbol in _COMMON_OPERATORS:
            return
        parts = tuple(name_of(part) for part in name)
        if not known_operator(parts):
            written = f"operator({'.'.join(parts)})"
            if written not in self.also_pure and parts[-1] not in _KEYWORD_OPERATORS:
                self.facts.functions[written] = None
                self._unknown_call(written)
                stream.opaque = True

    def _unknown_call(self, name: str) -> None:
        self.facts.calls_unknown = True
        self.facts.kinds["execute"] = None
        self.facts.opaque(f"{name} is not a function that is known to compute from its arguments alone")

    def function(self, body: Node, scope: Scope, stream: Stream) -> None:
        """Walk a FuncCall."""
        parts = tuple(name_of(part) for part in body["funcname"])
        found = function_class(parts, self.also_pure)
        syntax = body.get("funcformat") == "COERCE_SQL_SYNTAX"
        name = parts[-1] if syntax and parts[0] == "pg_catalog" else ".".join(parts)
        facts = self.facts
        facts.functions[name] = None
        facts.kinds[found.kind] = None
        if found.opaque:
            facts.opaque(f"{name} may reach what the text does not name")
            stream.opaque = True
            facts.calls_unknown = True
        if found is SET_CONFIG:
            self._set_config(body.get("args", ()))
        for node in body.get("args", ()):
            self.expression(node, scope, stream)
        if "agg_order" in body:
            self.children(body["agg_order"], scope, stream if body.get("agg_within_group") else Stream())
        if "agg_filter" in body:
            self.expression(body["agg_filter"], scope, stream)
        if "over" in body:
            self.aside(body["over"], scope)

    def _set_config(self, args: Sequence[Node]) -> None:
        """set_config is SET: its setting is a fact, and a name that is not in the text makes it opaque."""
        self.facts.literal = True
        texts = [constant_text(arg) for arg in args[:2]]
        if len(texts) < 2 or texts[0] is None:
            self.facts.settings.append(("all", None))
            self._unknown_call("set_config of a computed name")
            return
        self.facts.settings.append((texts[0].lower(), texts[1]))
        if texts[1] is None or len(self.facts.settings) > 1:
            self._unknown_call("set_config of a computed value, or of several settings")

    def _sublink(self, body: Node, scope: Scope, stream: Stream) -> None:
        items = self.query(body["subselect"], scope)
        if "testexpr" in body:
            self.expression(body["testexpr"], scope, stream)
        if "operName" in body:
            self.operator(body["operName"], stream)
        if body.get("subLinkType") != "EXISTS_SUBLINK":
            for item in items:
                stream.add(item.flow)

    def _indirection(self, body: Node, scope: Scope, stream: Stream) -> None:
        """``(c).email``, ``(f(x)).a``, ``a[1]``."""
        fields = [name_of(node) for node in body.get("indirection", ()) if "String" in node]
        for node in body.get("indirection", ()):
            if "String" not in node:
                self.children(node, scope, stream)
        narrow = self._field(body["arg"], fields, scope) if fields else None
        if narrow is None:
            self.expression(body["arg"], scope, stream)
        else:
            stream.add(self.note(narrow))

    def _field(self, arg: Node, fields: list[str], scope: Scope) -> Flow | None:
        """The flow of ``(c).email`` where c names a relation and cannot be another one's column; else None.

        c may still be a column of that relation, whose field, or function of that name, email is then.
        """
        names = arg.get("ColumnRef", {}).get("fields", ())
        if len(names) != 1 or "String" not in names[0] or gives_whole_row(fields[0]):
            return None
        name = name_of(names[0])
        relation = scope.relation(name)
        if relation is None or scope.column(name) != relation.whole():
            return None
        flow = scope.qualified((name, fields[0]))
        self.facts.attributes.update(dict.fromkeys(flow.sources))
        also = relation.named(name) or (Flow((ColumnRef(relation.table, name),)) if relation.table else Flow())
        return blur(join_flows((flow, also, *relation.perhaps(name))))

    def _cast(self, body: Node, scope: Scope, stream: Stream) -> None:
        names = body["typeName"].get("names", ())
        if names:
            name = name_of(names[-1])
            if name.startswith("reg"):
                self.facts.type_casts[name] = None
        self.expression(body["arg"], scope, stream)


def _sort_by(walker: Expressions, body: Node, scope: Scope, stream: Stream) -> None:
    if "useOp" in body:
        walker.operator(body["useOp"], stream)
    walker.children(body["node"], scope, stream)


def _query_below(walker: Expressions, body: Node, scope: Scope, stream: Stream) -> None:
    for item in walker.query({"SelectStmt": body}, scope):
        stream.add(item.flow)


_SPECIAL: Final[dict[str, Callable[[Expressions, Node, Scope, Stream], None]]] = {
    "FuncCall": Expressions.function,
    "SubLink": Expressions._sublink,
    "A_Indirection": Expressions._indirection,
    "TypeCast": Expressions._cast,
    "SortBy": _sort_by,
    "SelectStmt": _query_below,
}

# Nodes that are computed from their children alone.
_PLAIN: Final = frozenset(
    """BoolExpr NullTest BooleanTest CaseExpr CaseWhen CoalesceExpr MinMaxExpr A_ArrayExpr RowExpr List NamedArgExpr
    CollateClause XmlExpr XmlSerialize GroupingFunc GroupingSet WindowDef ResTarget MultiAssignRef A_Indices
    JsonObjectConstructor JsonArrayConstructor JsonArrayQueryConstructor JsonObjectAgg JsonArrayAgg JsonKeyValue
    JsonValueExpr JsonIsPredicate JsonParseExpr JsonScalarExpr JsonSerializeExpr JsonFuncExpr JsonArgument JsonBehavior
    JsonTablePathSpec JsonTableColumn RangeTableFuncCol IndexElem""".split()
)
_LEAVES: Final = frozenset(
    """A_Const ParamRef SQLValueFunction SetToDefault CurrentOfExpr A_Star String Integer Float Boolean BitString
    MergeSupportFunc TypeName JsonOutput JsonFormat JsonReturning""".split()
)
_NOT_EXPRESSIONS: Final = frozenset(("typeName", "alias", "format", "output", "funcname", "opclass", "collation"))
_COMMON_OPERATORS: Final = frozenset(("=", "<", ">", "<=", ">=", "<>", "+", "-", "*", "/", "||", "~~", "->", "->>"))
# Names that the grammar gives to its own constructs: BETWEEN, SIMILAR and so on.
_KEYWORD_OPERATORS: Final = frozenset(("BETWEEN", "NOT BETWEEN", "BETWEEN SYMMETRIC", "NOT BETWEEN SYMMETRIC", "!="))


# Every node that expression() takes, for those who look for expressions in other trees.
EXPRESSIONS: Final = (_PLAIN | frozenset(_SPECIAL) | {"ColumnRef", "A_Expr"}) - {"List", "SelectStmt"}
