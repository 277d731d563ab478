"""Does a WHERE of BigQuery choose rows at all? ``DELETE FROM t WHERE 1=1`` deletes as much as one without.

A predicate that names no column cannot tell one row from another: it takes all of them or none, so it counts as always
true unless it can be seen to be false. So does ``x = x``, ``x IS NULL OR x IS NOT NULL``, ``id > 0 OR id <= 0``,
``x LIKE '%'``, a partition's pseudo column that IS NOT NULL, a CASE or IF whose every result is true, OR with such a
side, AND of such sides, NOT of what is false, and a subquery whose columns are all its own.

Left out: what takes arithmetic over columns to see (``x + 0 = x`` is seen, ``x > x - 1`` is not), knowledge of the data
(``id > 0``), and a subquery with columns of no table's name (they may be the row's).

Source: bigquery note 11.
"""

from __future__ import annotations

from typing import Final, Literal

from sqlglot import exp

Answer = Literal["true", "false", "same", "rows"]

_REFLEXIVE: Final = (exp.EQ, exp.GTE, exp.LTE, exp.NullSafeEQ)
_IRREFLEXIVE: Final = (exp.NEQ, exp.GT, exp.LT, exp.NullSafeNEQ)
# Comparisons that together take every value but NULL.
_COMPLEMENTS: Final = {
    frozenset({exp.GT, exp.LTE}),
    frozenset({exp.LT, exp.GTE}),
    frozenset({exp.EQ, exp.NEQ}),
    frozenset({exp.GTE, exp.LTE}),
    frozenset({exp.GTE, exp.NEQ}),
    frozenset({exp.LTE, exp.NEQ}),
    frozenset({exp.GTE, exp.LT}),
}
_MIRRORED: Final[dict[type[exp.Expr], type[exp.Expr]]] = {
    exp.GT: exp.LT,
    exp.LT: exp.GT,
    exp.GTE: exp.LTE,
    exp.LTE: exp.GTE,
}
# Columns that BigQuery adds and that are never NULL but in the streaming buffer.
_PSEUDO: Final = frozenset({"_partitiontime", "_partitiondate", "_table_suffix", "_file_name"})
# Terms of one OR that are compared with each other; more of them are compared with nothing.
_TERMS_LIMIT: Final = 64
# Levels of AND, OR and NOT that are looked through; below, rows are assumed not to be chosen.
_DEPTH_LIMIT: Final = 100


def is_always_true(node: exp.Expr) -> bool:
    """Tell whether a predicate takes all rows (or all or none, and nobody can see which)."""
    return _judge(node, 0) in ("true", "same")


def _judge(node: exp.Expr, depth: int) -> Answer:
    if depth > _DEPTH_LIMIT:
        return "same"
    depth += 1
    match node:
        case exp.Paren() | exp.Alias() | exp.Cast():
            return _judge(node.this, depth)
        case exp.Boolean():
            return "true" if node.this else "false"
        case exp.Null():
            return "false"
        case exp.Not():
            return _negated(_judge(node.this, depth))
        case exp.And() | exp.Or():
            return _joined(node, depth)
        case exp.Is():
            return _is(node, depth)
        case exp.Between():
            bounds = (node.args["low"], node.args["high"])
            return "true" if all(_plain(node.this) == _plain(bound) for bound in bounds) else _by_columns(node)
        case exp.In():
            return "true" if any(_plain(node.this) == _plain(each) for each in node.expressions) else _by_columns(node)
        case exp.Like():
            pattern = node.expression
            wide = (
                isinstance(pattern, exp.Literal) and pattern.is_string and pattern.name and not pattern.name.strip("%")
            )
            return "true" if wide else _by_columns(node)
        case exp.Coalesce():
            answers = [_judge(each, depth) for each in (node.this, *node.expressions)]
            return "true" if answers[0] == "true" or set(answers) <= {"true", "same"} else _by_columns(node)
        case exp.Case() | exp.If():
            results = _results(node)
            return "true" if results and all(_judge(each, depth) == "true" for each in results) else _by_columns(node)
        case exp.Binary():
            return _comparison(node)
        case _:
            return _by_columns(node)


def _negated(answer: Answer) -> Answer:
    return {"true": "false", "false": "true"}.get(answer, answer)  # type: ignore[return-value]  # a closed table


def _joined(node: exp.And | exp.Or, depth: int) -> Answer:
    terms = list(node.flatten())
    answers = [_judge(term, depth) for term in terms]
    order: tuple[Answer, ...]
    rest: Answer
    if isinstance(node, exp.And):
        order, rest = ("false", "rows", "same"), "true"
    else:
        if len(terms) <= _TERMS_LIMIT and _covers(terms):
            return "true"
        order, rest = ("true", "same", "rows"), "false"
    return next((answer for answer in order if answer in answers), rest)


def _covers(terms: list[exp.Expr]) -> bool:
    """``x IS NULL OR x IS NOT NULL``, ``id > 0 OR id <= 0``, ``p OR NOT p``."""
    seen: dict[tuple[str, str], set[type[exp.Expr]]] = {}
    texts = {_plain(term) for term in terms}
    for term in terms:
        bare = _bare(term)
        if isinstance(bare, exp.Not) and _plain(bare.this) in texts:
            return True
        if not isinstance(bare, exp.Predicate | exp.Binary) or not isinstance(bare, exp.Binary):
            continue
        left, right = _plain(bare.this), _plain(bare.expression)
        kind: type[exp.Expr] = type(bare)
        if isinstance(bare.this, exp.Literal) and kind in _MIRRORED:
            left, right, kind = right, left, _MIRRORED[kind]
        kinds = seen.setdefault((left, right), set())
        kinds.add(kind)
        if any(pair <= kinds for pair in _COMPLEMENTS):
            return True
    return False


def _is(node: exp.Is, depth: int) -> Answer:
    if isinstance(node.expression, exp.Null):
        column = _bare(node.this)
        if isinstance(column, exp.Column):
            return "false" if column.name.lower() in _PSEUDO else "rows"
        return _by_columns(node)
    if isinstance(node.expression, exp.Boolean):
        answer = _judge(node.this, depth)
        if node.expression.this:
            return answer
        return _negated(answer)
    return _by_columns(node)


def _comparison(node: exp.Binary) -> Answer:
    left, right = node.this, node.expression
    if isinstance(node, _REFLEXIVE + _IRREFLEXIVE):
        if _plain(left) == _plain(right):
            return "true" if isinstance(node, _REFLEXIVE) else "false"
        if isinstance(left, exp.Literal) and isinstance(right, exp.Literal):
            return _literals(node, left, right)
    return _by_columns(node)


def _literals(node: exp.Binary, left: exp.Literal, right: exp.Literal) -> Answer:
    if left.is_string != right.is_string:
        return "same"
    try:
        one, two = (left.name, right.name) if left.is_string else (float(left.name), float(right.name))
    except ValueError:
        return "same"
    match node:
        case exp.EQ() | exp.NullSafeEQ():
            answer = one == two
        case exp.NEQ() | exp.NullSafeNEQ():
            answer = one != two
        case exp.GT():
            answer = one > two  # type: ignore[operator]  # both are strings, or both numbers
        case exp.GTE():
            answer = one >= two  # type: ignore[operator]
        case exp.LT():
            answer = one < two  # type: ignore[operator]
        case _:
            answer = one <= two  # type: ignore[operator]
    return "true" if answer else "false"


def _results(node: exp.Case | exp.If) -> list[exp.Expr]:
    if isinstance(node, exp.If):
        return [node.args["true"], node.args["false"]] if node.args.get("false") is not None else []
    if node.args.get("default") is None:
        return []
    return [*(each.args["true"] for each in node.args["ifs"]), node.args["default"]]


def _bare(node: exp.Expr) -> exp.Expr:
    while isinstance(node, exp.Paren):
        node = node.this
    return node


def _plain(node: exp.Expr) -> str:
    """The text by which two expressions are the same: without brackets, ``+ 0`` and letter case of names."""
    node = _bare(node)
    if isinstance(node, exp.Add | exp.Sub) and _is_number(node.expression, "0"):
        node = _bare(node.this)
    if isinstance(node, exp.Mul) and _is_number(node.expression, "1"):
        node = _bare(node.this)
    if isinstance(node, exp.Column):
        return "column " + node.name.lower() if not node.table else f"column {node.table.lower()}.{node.name.lower()}"
    return node.sql(dialect="bigquery", comments=False)


def _is_number(node: exp.Expr, text: str) -> bool:
    return isinstance(node, exp.Literal) and not node.is_string and node.name == text


def _by_columns(node: exp.Expr) -> Answer:
    """Whether the answer may depend on the row: it names a column that is not a subquery's own."""
    for column in node.find_all(exp.Column):
        if not _is_inner(column, node):
            return "rows"
    return "same"


def _is_inner(column: exp.Column, top: exp.Expr) -> bool:
    """Whether a column, by its qualifier, is of a FROM between it and the predicate."""
    qualifier = column.parts[0].name.lower() if len(column.parts) > 1 else ""
    if isinstance(column.this, exp.Star) and not qualifier:
        return True
    parent = column.parent
    while parent is not None and parent is not top.parent:
        if isinstance(parent, exp.Select) and qualifier:
            sources = [parent.args.get("from_"), *(parent.args.get("joins") or ())]
            if any(source is not None and source.this.alias_or_name.lower() == qualifier for source in sources):
                return True
        parent = parent.parent
    return False
