"""Does a WHERE choose rows at all? ``DELETE FROM t WHERE 1=1`` deletes as much as one without.

A predicate that names no column and no other table cannot tell one row from another: it takes all of them or
none. It counts as always true, unless it can be seen to be false (``WHERE false``, ``1=0``: nothing happens).
So do ``x = x`` and ``x LIKE '%'`` (true for all but NULL), ``x IS NULL OR x IS NOT NULL``, OR with such a side, AND of
such sides, NOT of what is false. A parameter in place of a constant is a value unknown: ``$1 = $2`` is always true.

Left out: what takes arithmetic over columns to see (``x > x - 1``), or knowledge of the data (``id > 0``).
"""

from __future__ import annotations

from typing import Any, Final, Literal

from proxy.policy.sql_scope import Node

WhereClass = Literal["always_true", "present"]

# TRUE and FALSE are seen; SAME is one unknown answer for all rows; ROWS depends on the row.
_TRUE: Final = "true"
_FALSE: Final = "false"
_SAME: Final = "same"
_ROWS: Final = "rows"

_COMPARISONS: Final = frozenset(("=", "<>", "!=", "<", ">", "<=", ">="))
_REFLEXIVE: Final = frozenset(("=", "<=", ">="))
_TRUE_WORDS: Final = frozenset(("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"))
_FALSE_WORDS: Final = frozenset(("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"))


def classify_where(node: Node) -> tuple[WhereClass, bool]:
    """Tell whether a WHERE's expression chooses rows, and whether the answer depended on a literal."""
    judge = _Judge()
    answer = judge.judge(node)
    return ("always_true" if answer in (_TRUE, _SAME) else "present"), judge.literal


def constant_text(node: Node) -> str | None:
    """The text of a constant, perhaps with a cast on it; None for NULL and all else."""
    body = _under(node).get("A_Const")
    if body is None or body.get("isnull"):
        return None
    value = _value(body)
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


class _Judge:
    """Folds one predicate. literal: whether a constant, or a parameter in its place, was looked at."""

    __slots__ = ("literal",)

    def __init__(self) -> None:
        self.literal = False

    def judge(self, node: Node) -> str:
        ((tag, body),) = node.items()
        match tag:
            case "BoolExpr":
                return self._boolean(body)
            case "A_Expr":
                return self._operator(body)
            case "A_Const" | "ParamRef":
                self.literal = True
                return _truth(body) if tag == "A_Const" else _SAME
            case "TypeCast" if is_value(node):
                self.literal = True
                inner = _under(node)
                return _truth(inner["A_Const"]) if "A_Const" in inner else _SAME
            case "NullTest" if is_value(body["arg"]):
                self.literal = True
                inner = _under(body["arg"])
                if "A_Const" not in inner:
                    return _SAME
                null = bool(inner["A_Const"].get("isnull"))
                return _TRUE if null == (body.get("nulltesttype", "IS_NULL") == "IS_NULL") else _FALSE
            case _:
                return _ROWS if _sees_rows(node) else _SAME

    def _boolean(self, body: Node) -> str:
        answers = [self.judge(each) for each in body["args"]]
        match body.get("boolop"):
            case "NOT_EXPR":
                return {_TRUE: _FALSE, _FALSE: _TRUE}.get(answers[0], answers[0])
            case "AND_EXPR":
                return next((answer for answer in (_FALSE, _ROWS, _SAME) if answer in answers), _TRUE)
            case _:
                if _null_or_not(body["args"]):
                    return _TRUE
                return next((answer for answer in (_TRUE, _SAME, _ROWS) if answer in answers), _FALSE)

    def _operator(self, body: Node) -> str:
        left, right = body.get("lexpr"), body.get("rexpr")
        if left is None or right is None:
            self.literal |= is_value({"A_Expr": body})
            return _ROWS if _sees_rows(body) else _SAME
        kind = body.get("kind", "AEXPR_OP")
        operator = body["name"][-1]["String"].get("sval", "")
        if "ColumnRef" in left:
            if kind in ("AEXPR_LIKE", "AEXPR_ILIKE") and is_value(right):
                self.literal = True
                pattern = constant_text(right)
                return _TRUE if operator in ("~~", "~~*") and pattern and not pattern.strip("%") else _ROWS
            if kind == "AEXPR_OP" and operator in _REFLEXIVE and "ColumnRef" in right and _same_column(left, right):
                return _TRUE
            if kind == "AEXPR_NOT_DISTINCT" and "ColumnRef" in right and _same_column(left, right):
                return _TRUE
            return _ROWS
        if kind == "AEXPR_OP" and operator in _COMPARISONS and is_value(left) and is_value(right):
            self.literal = True
            return _compare(left, operator, right)
        return _ROWS if _sees_rows(body) else _SAME


def is_value(node: Node) -> bool:
    """Whether this is a constant or a parameter, perhaps under casts: a normalised text does not tell them apart.

    Neither does it tell ``-'x'`` from ``'x'``: it takes the minus for a sign.
    """
    node = _under(node)
    if "A_Const" in node or "ParamRef" in node:
        return True
    negated = node.get("A_Expr")
    return negated is not None and "lexpr" not in negated and "A_Const" in negated.get("rexpr", ())


def _value(body: Node) -> bool | int | float | str | None:
    """The value of an A_Const; the parser leaves out zero, false and the empty string."""
    if "ival" in body:
        return int(body["ival"].get("ival", 0))
    if "boolval" in body:
        return bool(body["boolval"].get("boolval", False))
    if "fval" in body:
        try:
            return float(body["fval"].get("fval", "0"))
        except ValueError:  # 0x1FFFFFFFFFFFFFFFF, 1_000_000_000_000_000
            return str(body["fval"])
    for key in ("sval", "bsval"):
        if key in body:
            return str(body[key].get(key, ""))
    return None


def _truth(body: Node) -> str:
    if body.get("isnull"):
        return _FALSE
    value = _value(body)
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    word = str(value).strip().lower()
    return _TRUE if word in _TRUE_WORDS else _FALSE if word in _FALSE_WORDS else _SAME


def _compare(left: Node, operator: str, right: Node) -> str:
    one, two = constant_text(left), constant_text(right)
    if "A_Const" not in _under(left) or "A_Const" not in _under(right):
        return _SAME
    if one is None or two is None:
        return _FALSE  # a comparison with NULL
    try:
        first: Any = float(one)
        second: Any = float(two)
    except ValueError:
        first, second = one, two
        if operator not in ("=", "<>", "!="):
            return _SAME  # depends on the collation
    match operator:
        case "=":
            answer = first == second
        case "<>" | "!=":
            answer = first != second
        case "<":
            answer = first < second
        case ">":
            answer = first > second
        case "<=":
            answer = first <= second
        case _:
            answer = first >= second
    if not answer and first.__class__ is str:
        return _SAME  # 'a' = 'A' under citext, char(3) 'a' = 'a '
    return _TRUE if answer else _FALSE


def _under(node: Node) -> Node:
    while "TypeCast" in node:
        node = node["TypeCast"]["arg"]
    return node


def _fields(node: Node) -> list[str]:
    return [each.get("String", {}).get("sval", "*") for each in node["ColumnRef"]["fields"]]


def _same_column(left: Node, right: Node) -> bool:
    one, two = _fields(left), _fields(right)
    return one == two or (one[-1] == two[-1] and 1 in (len(one), len(two)))


def _null_or_not(args: list[Node]) -> bool:
    """``x IS NULL OR x IS NOT NULL``."""
    seen: dict[tuple[str, ...], set[str]] = {}
    for each in args:
        test = each.get("NullTest")
        if test is not None and "ColumnRef" in test["arg"]:
            kinds = seen.setdefault(tuple(_fields(test["arg"])), set())
            kinds.add(test.get("nulltesttype", "IS_NULL"))
    return any(len(kinds) > 1 for kinds in seen.values())


def _sees_rows(value: Any) -> bool:
    """Whether anything below names a column or a table, or follows a cursor."""
    if value.__class__ is list:
        return any(_sees_rows(each) for each in value)
    if value.__class__ is dict:
        if "ColumnRef" in value or "RangeVar" in value or "CurrentOfExpr" in value or "RangeFunction" in value:
            return True
        return any(_sees_rows(each) for each in value.values())
    return False
