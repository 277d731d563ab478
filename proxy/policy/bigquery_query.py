"""What one query of BigQuery touches, and where each column of its result comes from.

Walks sqlglot's tree once: FROM items in their order (so that an array of an item before is no table), then the columns,
then all that filters, groups and orders. Every table of the tree must have been met at the end, and every node be of a
kind that is known here: else Unreadable. WITH follows BigQuery: without RECURSIVE, only what is later sees a query.

What is not followed is tainted: PIVOT and UNPIVOT, table functions, pipes, recursive queries, routines, variables and
parameters of the system. Left out: types, so TO_JSON(u) and COUNT(u) have the same origins.

Source: bigquery note 9 and 12; GoogleSQL, "Query syntax".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from sqlglot import exp

from proxy.core.warehouse import Origin, Outputs, ResultColumn, StarColumns, TableName
from proxy.policy.bigquery_functions import is_builtin
from proxy.policy.bigquery_lex import Unreadable
from proxy.policy.bigquery_names import Names, is_single
from proxy.policy.bigquery_sources import (
    NOTHING,
    Scope,
    Source,
    lookup,
    of_array,
    of_query,
    of_table,
    row_of,
    union,
)

# Nodes beside expressions (exp.Condition: columns, literals, operators, functions) that are known here.
_KNOWN: Final = (
    exp.Select, exp.SetOperation, exp.Subquery, exp.Table, exp.TableAlias, exp.Identifier, exp.Var, exp.With, exp.CTE,
    exp.From, exp.Join, exp.Where, exp.Group, exp.Having, exp.Qualify, exp.Order, exp.Ordered, exp.Limit, exp.Offset,
    exp.Distinct, exp.Unnest, exp.Pivot, exp.TableSample, exp.Version, exp.WindowSpec, exp.DataType, exp.ColumnDef,
    exp.Star, exp.Tuple, exp.Values, exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Whens, exp.When, exp.Schema,
    exp.Lambda, exp.Kwarg, exp.Interval, exp.IgnoreNulls, exp.RespectNulls, exp.HavingMax, exp.Rollup, exp.Cube,
    exp.GroupingSets, exp.DataTypeParam, exp.Collate, exp.Alias, exp.Aliases, exp.PropertyEQ, exp.PivotAlias,
    exp.PivotAny, exp.WithTableHint, exp.IntervalSpan, exp.JSONKeyValue, exp.AtTimeZone, exp.JSONPath,
    exp.JSONPathPart, exp.Slice,
)  # fmt: skip
_SELECT_PARTS: Final = frozenset({"with_", "kind", "expressions", "from_", "joins", "where", "group", "having",
                                  "qualify", "windows", "order", "limit", "offset", "distinct"})  # fmt: skip
_SAME_ELEMENTS: Final = (exp.ArrayAgg, exp.AnyValue)


class QueryReader:
    """Reads the queries of one statement; what it found is in its attributes."""

    def __init__(self, names: Names, variables: Iterable[str] = (), trusted: frozenset[str] = frozenset()) -> None:
        self._names = names
        self._trusted = trusted
        self._variables = frozenset(variables)
        self._met: set[int] = set()
        self.reads: dict[TableName, None] = {}
        self.bare: dict[str, None] = {}
        self.functions: dict[str, None] = {}
        self.filters: dict[Origin, None] = {}

    def check(self, tree: exp.Expr) -> None:
        """Raise Unreadable if the tree holds what is not known here, or a table that was not met."""
        for node in tree.walk():
            if not isinstance(node, (exp.Condition, *_KNOWN)):
                raise Unreadable(f"the text holds what is not known here ({type(node).__name__})")
            if isinstance(node, exp.Table) and id(node) not in self._met:
                raise Unreadable("the text names a table at a place that is not known here")

    # Names

    def name_of(self, table: exp.Table) -> list[str]:
        """The parts of a table's name as written; met from now on."""
        self._met.add(id(table))
        parts: list[str] = []
        for part in table.parts:
            parts += [each.name for each in part.flatten()] if isinstance(part, exp.Dot) else [part.name]
        return parts

    def table(self, node: exp.Table, *, reads: bool = True) -> TableName:
        """The table that a node names, noted as read."""
        parts = self.name_of(node)
        found = self._names.table(parts)
        if is_single(parts):
            self.bare[parts[0]] = None
        if reads:
            self.reads[found] = None
        return found

    # Queries

    def query(self, node: exp.Expr, scope: Scope | None, ctes: Mapping[str, Outputs]) -> Outputs:
        """Read a query; return its columns."""
        ctes = self._with(node, scope, ctes)
        match node:
            case exp.Subquery():
                inner = self.query(node.this, scope, ctes)
                self._rest(node, Scope(scope, ctes), {"this", "with_", "alias"})
                return inner
            case exp.SetOperation():
                return self._set_operation(node, scope, ctes)
            case exp.Select():
                return self._select(node, scope, ctes)
            case exp.Table():  # FROM d.t in pipes, brackets around a table
                inside = Scope(scope, ctes)
                return _all_of(self._source(node, inside))
            case _:
                raise Unreadable(f"{type(node).__name__} is no query that is known here")

    def _with(self, node: exp.Expr, scope: Scope | None, ctes: Mapping[str, Outputs]) -> Mapping[str, Outputs]:
        with_ = node.args.get("with_")
        if with_ is None:
            return ctes
        visible = dict(ctes)
        recursive = bool(with_.args.get("recursive"))
        if recursive:
            for cte in with_.expressions:
                visible[cte.alias.lower()] = Outputs(taint="a recursive query is not followed")
        for cte in with_.expressions:
            if not isinstance(cte.this, exp.Query):
                raise Unreadable("a WITH holds what is no query")
            if "." in cte.alias:
                raise Unreadable("a WITH names a query by what reads like a table's full name")
            outputs = self.query(cte.this, scope, dict(visible))
            if recursive or cte.args["alias"].args.get("columns"):
                outputs = Outputs(taint="a recursive query, or one with column names, is not followed")
            visible[cte.alias.lower()] = outputs
        return visible

    def _set_operation(self, node: exp.SetOperation, scope: Scope | None, ctes: Mapping[str, Outputs]) -> Outputs:
        sides: list[Outputs] = []
        left: exp.Expr = node
        rights: list[exp.Expr] = []
        named: set[bool] = set()
        while isinstance(left, exp.SetOperation):  # a long chain leans to the left
            if left is not node and left.args.get("with_") is not None:
                break
            rights.append(left.expression)
            named.add(bool(left.args.get("by_name")))
            self._rest(left, Scope(scope, ctes), {"this", "expression", "with_", "distinct", "by_name", "side", "kind",
                                                  "on"})  # fmt: skip
            left = left.this
        sides.append(self.query(left, scope, ctes))
        sides += [self.query(right, scope, ctes) for right in reversed(rights)]
        return _merged(sides) if named == {False} else _merged_by_name(sides, mixed=len(named) > 1)

    def _select(self, node: exp.Select, scope: Scope | None, ctes: Mapping[str, Outputs]) -> Outputs:
        if unknown := [key for key, value in node.args.items() if value and key not in _SELECT_PARTS]:
            raise Unreadable(f"a SELECT has what is not known here ({unknown[0]})")
        inside = Scope(scope, ctes)
        if node.args.get("from_") is not None:
            self._join(node.args["from_"].this, inside)
        for join in node.args.get("joins") or ():
            self._joined(join, inside)
        outputs = self._columns(node, inside)
        self._rest(node, inside, {"with_", "kind", "expressions", "from_", "joins"})
        if node.args.get("kind") == "STRUCT":
            return Outputs((row_of(outputs),))
        return outputs

    def _joined(self, join: exp.Join, scope: Scope) -> None:
        self._join(join.this, scope)
        for name in join.args.get("using") or ():
            self.filters.update(dict.fromkeys(lookup([name.name], scope, ()).origins))
        if join.args.get("on") is not None:
            self._filter(join.args["on"], scope)

    def _rest(self, node: exp.Expr, scope: Scope, done: set[str]) -> None:
        """Read what is neither a column nor a source: it filters, groups or orders."""
        for key, value in node.args.items():
            if key in done:
                continue
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, exp.Expr):
                    self._filter(each, scope)

    def _filter(self, node: exp.Expr, scope: Scope) -> None:
        self.filters.update(dict.fromkeys(self.value(node, scope).origins))

    # FROM

    def join(self, node: exp.Expr, scope: Scope, joins: Iterable[exp.Join]) -> None:
        """Add the FROM of an UPDATE or the USING of a MERGE to the scope."""
        self._join(node, scope)
        for join in joins:
            if id(join.this) not in self._met:
                self._joined(join, scope)

    def _join(self, node: exp.Expr, scope: Scope) -> None:
        """Add a FROM item, or the items of a join in brackets, to the scope."""
        if (
            isinstance(node, exp.Subquery)
            and not isinstance(node.this, exp.Select | exp.SetOperation)
            and not node.alias
        ):
            self._join(node.this, scope)
            for join in node.args.get("joins") or ():
                self._joined(join, scope)
            return
        scope.sources.append(self._source(node, scope))
        if isinstance(node, exp.Table | exp.Subquery):
            for join in node.args.get("joins") or ():
                self._joined(join, scope)

    def _source(self, node: exp.Expr, scope: Scope) -> Source:
        alias = node.alias_or_name.lower()
        if "." in node.alias and not _is_metadata(node):
            raise Unreadable("an alias reads like a table's full name")
        match node:
            case exp.Table() if not isinstance(node.this, exp.Identifier | exp.Dot):
                return self._table_function(node, scope)
            case exp.Table():
                source = self._named(node, alias, scope)
                self._rest(node, scope, {"this", "db", "catalog", "alias", "joins"})
            case exp.Subquery():
                # A query in FROM sees what is around the SELECT, never its neighbours: there, x.y is a table.
                ctes = self._with(node, scope.parent, scope.ctes)
                source = of_query(self.query(node.this, scope.parent, ctes), node.alias.lower())
                self._rest(node, scope, {"this", "alias", "with_", "joins"})
            case exp.Unnest():
                source = self._unnest(node, scope)
            case _:
                raise Unreadable(f"{type(node).__name__} in FROM is not known here")
        given = node.args.get("alias")
        renamed = given is not None and given.args.get("columns") and not isinstance(node, exp.Unnest)
        if node.args.get("pivots") or renamed:
            pivoted = node.args.get("pivots")
            name = pivoted[-1].alias.lower() if pivoted and pivoted[-1].alias else source.alias
            return _tainted(name, row_of(source.outputs).origins, "PIVOT and names of columns are not followed")
        return source

    def _named(self, node: exp.Table, alias: str, scope: Scope) -> Source:
        parts = self.name_of(node)
        if is_single(parts) and parts[0].lower() in scope.ctes:
            return of_query(scope.ctes[parts[0].lower()], alias)
        if len(parts) > 1 and scope.has_alias(parts[0].lower()):
            array = lookup(parts, scope, self._variables)
            return self._either(array, parts, alias) if _in_one(node.parts) else of_array(array, alias, "")
        table = self.table(node)
        return of_table(table, alias.rsplit(".", 1)[-1])

    def _either(self, array: ResultColumn, parts: list[str], alias: str) -> Source:
        """`x.secret` in one pair of quotes: the table of that name, though x is an alias; or the array after all."""
        table = self._names.table(parts)
        self.reads[table] = None
        origins = (*array.origins, Origin(table, ()))
        return _tainted(alias, origins, "a quoted name with a dot may be a table or an array")

    def _unnest(self, node: exp.Unnest, scope: Scope) -> Source:
        element = union((self.value(each, scope) for each in node.expressions), bare=True)
        given = node.args.get("alias")
        names = [name.name.lower() for name in given.args.get("columns") or ()] if given is not None else []
        alias = names[0] if names else given.name.lower() if given is not None else ""
        if "." in alias:
            raise Unreadable("an alias reads like a table's full name")
        path = node.expressions[0] if len(node.expressions) == 1 else None
        if isinstance(path, exp.Column) and _in_one(path.parts):  # what the parser takes for an array
            return self._either(element, [part.name for part in path.parts], alias)
        offset = node.args.get("offset")
        return of_array(element, alias, offset.name.lower() if isinstance(offset, exp.Expr) else "")

    def _table_function(self, node: exp.Table, scope: Scope) -> Source:
        self._met.add(id(node))
        prefix = [part.name for part in node.parts[:-1]]
        called = node.this
        scope = Scope(scope.parent, scope.ctes)  # as a query in FROM, it does not see its neighbours
        known = not isinstance(called, exp.Anonymous)  # to the parser: ML.PREDICT, VECTOR_SEARCH
        value = self.value(called, scope) if known else self._call(called, prefix, scope)
        self._rest(node, scope, {"this", "db", "catalog", "alias", "joins"})
        return _tainted(node.alias.lower(), value.origins, "a table function is not followed")

    # Columns

    def _columns(self, node: exp.Select, scope: Scope) -> Outputs:
        columns: list[ResultColumn] = []
        stars: list[StarColumns] = []
        also: list[Origin] = []
        taint = ""
        unnamed = 0
        windows = [self.value(each, scope) for each in node.args.get("windows") or ()]
        for each in node.expressions:
            star = _star_of(each)
            # OVER w: what the window is made of stands elsewhere, and says as much as it would here.
            window = union(windows) if windows and each.find(exp.Window) is not None else NOTHING
            if star is not None:
                found = self._star(each, star, scope)
                columns += found.columns
                stars += found.stars
                also += (*found.also, *window.origins)
                taint = taint or found.taint or window.taint
                continue
            value = self.value(each, scope)
            value = union([value, window]) if window.origins or window.taint else value
            name = each.alias_or_name
            if not name or not _is_named(each):
                name = f"f{unnamed}_"
                unnamed += 1
            columns.append(ResultColumn(name, value.origins, value.bare, value.taint, value.fields))
        return Outputs(tuple(columns), tuple(stars), tuple(dict.fromkeys(also)), taint)

    def _star(self, node: exp.Expr, star: exp.Star, scope: Scope) -> Outputs:
        """The columns of ``*``, ``t.*`` or ``t.field.*``."""
        if isinstance(node, exp.Column):
            path = [part.name for part in node.parts[:-1]]
            sources = [s for s in scope.sources if s.alias == path[0].lower()] if len(path) == 1 else []
            whole = _all_of(sources[0]) if len(sources) == 1 else _fields_of(lookup(path, scope, self._variables))
        elif isinstance(node, exp.Dot):
            whole = _fields_of(self.value(node.this, scope))
        else:
            parts = [_all_of(source) for source in scope.sources]
            whole = Outputs(
                tuple(column for part in parts for column in part.columns),
                tuple(each for part in parts for each in part.stars),
                tuple(origin for part in parts for origin in part.also),
                next((part.taint for part in parts if part.taint), ""),
            )
        if star.args.get("rename"):
            return Outputs(also=row_of(whole).origins, taint=whole.taint or "renamed columns are not followed")
        out = {each.name.lower() for each in star.args.get("except_") or ()}
        replaced = [(each.alias, self.value(each, scope)) for each in star.args.get("replace") or ()]
        out |= {name.lower() for name, _ in replaced}
        columns = [column for column in whole.columns if column.name.lower() not in out]
        columns += [ResultColumn(name, v.origins, v.bare, v.taint, v.fields) for name, v in replaced]
        stars = [StarColumns(s.table, s.path, tuple(sorted({*s.excepted, *out}))) for s in whole.stars]
        return Outputs(tuple(columns), tuple(stars), whole.also, whole.taint)

    # Expressions

    def value(self, node: exp.Expr, scope: Scope | None) -> ResultColumn:
        """Return where the value of an expression comes from."""
        match node:
            case exp.Column():
                if isinstance(node.this, exp.Star):
                    return lookup([part.name for part in node.parts[:-1]], scope, self._variables)
                return lookup([part.name for part in node.parts], scope, self._variables)
            case exp.Paren() | exp.Alias():
                return self.value(node.this, scope)
            case exp.Query():
                return self._scalar(self.query(node, scope, scope.ctes if scope else {}))
            case exp.Dot():
                return self._dot(node, scope)
            case exp.Bracket():
                inner = self.value(node.this, scope)
                index = union(self.value(each, scope) for each in node.expressions)
                return inner if not index.origins and not index.taint else union([inner, index])
            case exp.Array() if len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Query):
                return self.value(node.expressions[0], scope)
            case exp.Array():
                return union((self.value(each, scope) for each in node.expressions), bare=True)
            case exp.Struct():
                return self._struct(node, scope)
            case exp.Parameter():
                return _parameter(node)
            case exp.Anonymous():
                return self._call(node, [], scope)
            case exp.Table():
                return ResultColumn("", (Origin(self.table(node), ()),))
            case exp.ArrayAgg() | exp.AnyValue() if not isinstance(node.this, exp.Order | exp.Limit | exp.HavingMax):
                return self.value(node.this, scope)
            case exp.Binary():
                return self._chain(node, scope)
            case _:
                return union(self.value(each, scope) for each in node.iter_expressions())

    def _chain(self, node: exp.Binary, scope: Scope | None) -> ResultColumn:
        """Operators lean to the left: a sum of thousands is no recursion of thousands."""
        values: list[ResultColumn] = []
        left: exp.Expr = node
        while isinstance(left, exp.Binary) and not isinstance(left, exp.Dot):
            values += [self.value(each, scope) for each in left.iter_expressions() if each is not left.this]
            left = left.this
        values.append(self.value(left, scope) if isinstance(left, exp.Expr) else NOTHING)
        return union(values)

    def _scalar(self, outputs: Outputs) -> ResultColumn:
        if len(outputs.columns) == 1 and not outputs.stars and not outputs.also and not outputs.taint:
            return outputs.columns[0]
        return row_of(outputs)

    def _struct(self, node: exp.Struct, scope: Scope | None) -> ResultColumn:
        fields: list[ResultColumn] = []
        for each in node.expressions:
            named = isinstance(each, exp.PropertyEQ | exp.Alias)
            name = each.this.name if isinstance(each, exp.PropertyEQ) else each.alias_or_name
            value = self.value(each.expression if isinstance(each, exp.PropertyEQ) else each, scope)
            if not named and not isinstance(each, exp.Column | exp.Dot):
                name = ""
            fields.append(ResultColumn(name, value.origins, value.bare, value.taint, value.fields))
        whole = union(fields)
        return ResultColumn("", whole.origins, False, whole.taint, tuple(fields))

    def _dot(self, node: exp.Dot, scope: Scope | None) -> ResultColumn:
        parts = list(node.flatten())
        if isinstance(parts[-1], exp.Anonymous) and all(isinstance(part, exp.Identifier) for part in parts[:-1]):
            return self._call(parts[-1], [part.name for part in parts[:-1]], scope)
        if isinstance(node.expression, exp.Identifier | exp.Var):
            return self.value(node.this, scope).field(node.expression.name)
        return union(self.value(part, scope) for part in (node.this, node.expression))

    def _call(self, node: exp.Anonymous, prefix: list[str], scope: Scope | None) -> ResultColumn:
        """A function that the parser does not know: BigQuery's own, or somebody's."""
        name = ".".join([*prefix, node.name])
        own = isinstance(node.this, exp.Identifier) and node.this.quoted
        self.functions[name if own or not is_builtin(name.upper()) else name.upper()] = None
        value = union(self.value(each, scope) for each in node.expressions)
        if (not own and is_builtin(name.upper())) or str(self._names.table([name])) in self._trusted:
            return value
        return ResultColumn("", value.origins, False, value.taint or f"{name} is a routine that nobody read")


def _parameter(node: exp.Parameter) -> ResultColumn:
    """@p is the caller's own; @@error.message may quote what the script read."""
    return ResultColumn("", taint="a variable of the system") if isinstance(node.this, exp.Parameter) else NOTHING


def _is_named(node: exp.Expr) -> bool:
    """Whether a column of a SELECT has a name of its own: an alias, a column's, or a field's."""
    if isinstance(node, exp.Dot):
        return isinstance(node.expression, exp.Identifier)
    return isinstance(node, exp.Alias | exp.Column)


def _star_of(node: exp.Expr) -> exp.Star | None:
    if isinstance(node, exp.Star):
        return node
    if isinstance(node, exp.Column) and isinstance(node.this, exp.Star):
        return node.this
    if isinstance(node, exp.Dot) and isinstance(node.expression, exp.Star):
        return node.expression
    return None


def _in_one(parts: Sequence[exp.Expr]) -> bool:
    """Whether the first names of a path stand in one pair of quotes, as the places that the parser noted tell."""
    places = [part.meta.get("start") for part in parts[:2]]
    return len(places) > 1 and places[0] is not None and places[0] == places[1]


def _is_metadata(node: exp.Expr) -> bool:
    """Whether this is a table of INFORMATION_SCHEMA, to which the parser gives its name as an alias."""
    return isinstance(node, exp.Table) and any("INFORMATION_SCHEMA" in part.name.upper() for part in node.parts)


def _tainted(alias: str, origins: tuple[Origin, ...], why: str) -> Source:
    return Source(alias, Outputs(also=origins, taint=why), ResultColumn(alias, origins, False, why))


def _all_of(source: Source) -> Outputs:
    return source.outputs


def _fields_of(value: ResultColumn) -> Outputs:
    """The columns of ``value.*``."""
    if value.bare:
        return Outputs(stars=tuple(StarColumns(o.table, o.path) for o in value.origins), taint=value.taint)
    if value.fields and not value.taint:
        return Outputs(value.fields)
    return Outputs(also=value.origins, taint=value.taint or "the fields of a value are not known")


def _merged_by_name(sides: list[Outputs], *, mixed: bool) -> Outputs:
    """BY NAME and CORRESPONDING: values of all sides that have a column of the name, whatever their places are.

    mixed: some of a chain go by place. Then, and where a side's columns are not all known, each may hold all.
    """
    exact = not mixed and not any(side.stars or side.also or side.taint for side in sides)
    rows: dict[str, list[ResultColumn]] = {}
    for side in sides:
        for column in side.columns:
            rows.setdefault(column.name.lower(), []).append(column)
    if exact:
        merged = [(row[0].name, union(row, bare=True)) for row in rows.values()]
        return Outputs(tuple(ResultColumn(name, v.origins, v.bare, v.taint, v.fields) for name, v in merged))
    also = dict.fromkeys(origin for side in sides for origin in row_of(side).origins)
    taint = next((side.taint for side in sides if side.taint), "")
    return Outputs(sides[0].columns, sides[0].stars, tuple(also), taint)


def _merged(sides: list[Outputs]) -> Outputs:
    """UNION and its like: names of the first side, values of all, by place; of all there is where it is not known."""
    first = sides[0]
    taint = next((side.taint for side in sides if side.taint), "")
    exact = all(not side.stars and not side.also and len(side.columns) == len(first.columns) for side in sides)
    if exact and not taint:
        rows: Iterator[tuple[ResultColumn, ...]] = zip(*(side.columns for side in sides), strict=True)
        return Outputs(
            tuple(
                ResultColumn(row[0].name, (v := union(row, bare=True)).origins, v.bare, v.taint, v.fields)
                for row in rows
            )
        )
    also = dict.fromkeys(origin for side in sides for origin in row_of(side).origins)
    return Outputs(first.columns, first.stars, tuple(also), taint)
