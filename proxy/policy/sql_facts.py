"""What a walk through a statement collects: its facts, and the sources of one expression.

Dictionaries serve as ordered sets. column_name gives an unnamed result column the name that PostgreSQL gives it.

Source: PostgreSQL 18 src/backend/parser/parse_target.c FigureColname.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from proxy.core.events import Kind
from proxy.core.statement import ColumnRef, OutputColumn
from proxy.policy.sql_scope import UNKNOWN_WIDTH, Flow, Item, Node, exact
from proxy.policy.sql_where import WhereClass, classify_where

# A recursive CTE's reference to itself, until its sources are known; no table can have this name.
MARK: Final = "\0"


class Facts:
    """What was found so far in one statement. Dictionaries are ordered sets."""

    __slots__ = (
        "attributes",
        "calls_unknown",
        "columns",
        "columns_written",
        "functions",
        "keeps_calls",
        "kinds",
        "literal",
        "locks",
        "moved",
        "moved_opaque",
        "moves",
        "opaque_reason",
        "read",
        "settings",
        "type_casts",
        "wheres",
        "written",
    )

    def __init__(self) -> None:
        self.attributes: dict[ColumnRef, None] = {}  # written as relation.name: a column, or a function of the row
        self.read: dict[str, None] = {}
        self.written: dict[str, None] = {}
        self.columns: dict[ColumnRef, None] = {}
        self.columns_written: dict[ColumnRef, None] = {}
        self.functions: dict[str, None] = {}
        self.kinds: dict[Kind, None] = {}
        self.moved: dict[ColumnRef, None] = {}
        self.moves = False
        self.moved_opaque = False
        self.opaque_reason = ""
        self.settings: list[tuple[str, str | None]] = []
        self.type_casts: dict[str, None] = {}
        self.wheres: list[Literal["none"] | WhereClass] = []
        self.literal = False
        self.locks = False
        self.calls_unknown = False
        self.keeps_calls = False

    def opaque(self, reason: str) -> None:
        """Note that the text does not tell all; the first reason stands."""
        if not self.opaque_reason:
            self.opaque_reason = reason

    def where(self, body: Node) -> None:
        """Note how far the WHERE of a statement that can have one holds it back."""
        if "whereClause" not in body:
            self.wheres.append("none")
            return
        found, literal = classify_where(body["whereClause"])
        self.wheres.append(found)
        self.literal |= literal

    def move(self, flow: Flow) -> None:
        """Note that a value of this flow is stored."""
        self.moved.update(dict.fromkeys(flow.sources))
        if flow.sources or flow.opaque:
            self.moves = True
        self.moved_opaque |= flow.opaque


class Stream:
    """Collects what one expression is computed from."""

    __slots__ = ("opaque", "sources")

    def __init__(self) -> None:
        self.sources: dict[ColumnRef, None] = {}
        self.opaque = False

    def add(self, flow: Flow) -> None:
        for source in flow.sources:
            self.sources[source] = None
        if flow.opaque:
            self.opaque = True

    def flow(self) -> Flow:
        return Flow(tuple(self.sources), False, self.opaque)


def is_mark(column: ColumnRef) -> bool:
    """Whether this stands for a recursive CTE's reference to itself, which is no table's column."""
    return column.table is not None and column.table.startswith(MARK)


def outputs_of(items: Iterable[Item]) -> tuple[tuple[OutputColumn, ...], bool]:
    """The columns of a result as facts, and whether their number and order are known."""
    columns = tuple(
        OutputColumn(item.name, item.flow.sources, item.flow.bare, item.flow.opaque)
        for item in items
        if item is not UNKNOWN_WIDTH
    )
    return columns, exact(tuple(items))


def column_name(node: Node) -> str:
    """The name that PostgreSQL gives to an unnamed result column."""
    return _name_and_strength(node)[0] or "?column?"


def _name_and_strength(node: Node) -> tuple[str, int]:
    """The name, and 2 for a good one, 1 for one that a cast overrides, 0 for none."""
    ((tag, body),) = node.items()
    match tag:
        case "ColumnRef":
            names = [name_of(field) for field in body["fields"] if "String" in field]
            return (names[-1], 2) if names else ("", 0)
        case "A_Expr":
            return ("nullif", 2) if body.get("kind") == "AEXPR_NULLIF" else ("", 0)
        case "XmlExpr":
            return str(body["op"]).removeprefix("IS_").lower(), 2
        case "JsonFuncExpr":
            return str(body["op"]).removesuffix("_OP").lower(), 2
        case "FuncCall":
            return name_of(body["funcname"][-1]), 2
        case "TypeCast":
            inner = _name_and_strength(body["arg"])
            return inner if inner[1] > 1 else (name_of(body["typeName"]["names"][-1]), 1)
        case "A_Indirection":
            fields = [name_of(each) for each in body.get("indirection", ()) if "String" in each]
            return (fields[-1], 2) if fields else _name_and_strength(body["arg"])
        case "CollateClause":
            return _name_and_strength(body["arg"])
        case "CaseExpr":
            inner = _name_and_strength(body["defresult"]) if "defresult" in body else ("", 0)
            return inner if inner[1] > 1 else ("case", 1)
        case "SubLink":
            return _sublink_name(body)
        case "SQLValueFunction":
            return str(body["op"]).removeprefix("SVFOP_").removesuffix("_N").lower(), 2
        case "MinMaxExpr":
            return ("least" if body.get("op") == "IS_LEAST" else "greatest"), 2
        case _:
            return _FIXED_NAMES.get(tag, ""), 2 if tag in _FIXED_NAMES else 0


def _sublink_name(body: Node) -> tuple[str, int]:
    kind = body.get("subLinkType")
    if kind != "EXPR_SUBLINK":
        name = {"EXISTS_SUBLINK": "exists", "ARRAY_SUBLINK": "array"}.get(str(kind), "")
        return name, 2 if name else 0
    select = body["subselect"].get("SelectStmt", {})
    while "larg" in select:
        select = select["larg"]
    if "valuesLists" in select:
        return "column1", 2
    for node in select.get("targetList", ()):
        target = node["ResTarget"]
        return target.get("name") or column_name(target["val"]), 2
    return "", 0


_FIXED_NAMES: Final = {
    "CoalesceExpr": "coalesce",
    "A_ArrayExpr": "array",
    "RowExpr": "row",
    "GroupingFunc": "grouping",
    "XmlSerialize": "xmlserialize",
    "MergeSupportFunc": "merge_action",
    "JsonObjectConstructor": "json_object",
    "JsonArrayConstructor": "json_array",
    "JsonArrayQueryConstructor": "json_array",
    "JsonObjectAgg": "json_objectagg",
    "JsonArrayAgg": "json_arrayagg",
    "JsonParseExpr": "json",
    "JsonScalarExpr": "json_scalar",
    "JsonSerializeExpr": "json_serialize",
}


def name_of(node: Node) -> str:
    """The text of a String node."""
    text: str = node["String"].get("sval", "")
    return text
