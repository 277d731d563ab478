"""What a FROM item of BigQuery SQL offers to the expressions around it, and the search for a name among such items.

A Source is a table (any column may be there), a query in brackets or of a WITH (its columns are known), or an array
that was unnested (its elements, and their fields). A Scope is the items of one SELECT, within those of the SELECT
around it.
Names compare without case. Where several items may have a column, it is of all of them: more origins, never fewer.

An alias wins over a column of the same name when fields follow (``u.email``); alone (``u``) it may be either.

Source: GoogleSQL, "Query syntax", Range variables and scope; bigquery note 9.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.core.warehouse import Origin, Outputs, ResultColumn, StarColumns, TableName

NOTHING = ResultColumn("")


@dataclass(frozen=True, slots=True)
class Source:
    """One FROM item. value: the whole row or element, as its alias alone means it."""

    alias: str
    outputs: Outputs
    value: ResultColumn


@dataclass(slots=True)
class Scope:
    """The FROM items of one SELECT so far, and the queries of WITH that are visible by name."""

    parent: Scope | None
    ctes: Mapping[str, Outputs]
    sources: list[Source] = field(default_factory=list)

    def has_alias(self, name: str) -> bool:
        """Whether an item of this SELECT or of one around it has this alias."""
        scope: Scope | None = self
        while scope is not None:
            if any(source.alias == name for source in scope.sources):
                return True
            scope = scope.parent
        return False


def union(values: Iterable[ResultColumn], *, bare: bool = False) -> ResultColumn:
    """Make one value of several: computed of all of them, or (bare) one of them unchanged."""
    listed = list(values)
    if bare and len(listed) == 1:
        return listed[0]
    origins = tuple(dict.fromkeys(origin for value in listed for origin in value.origins))
    taint = next((value.taint for value in listed if value.taint), "")
    with_origins = [value for value in listed if value.origins or value.fields or value.taint]
    return ResultColumn("", origins, bare and bool(with_origins) and all(v.bare for v in with_origins), taint)


def of_table(table: TableName, alias: str) -> Source:
    """A table, whose columns nobody here knows."""
    row = ResultColumn(alias, (Origin(table, ()),), True)
    return Source(alias, Outputs(stars=(StarColumns(table),)), row)


def of_query(outputs: Outputs, alias: str) -> Source:
    """A query's rows."""
    return Source(alias, outputs, row_of(outputs, alias))


def of_array(element: ResultColumn, alias: str, offset: str) -> Source:
    """The elements of an array: alias is the element, or its fields are columns."""
    columns = [ResultColumn(alias, element.origins, element.bare, element.taint, element.fields)] if alias else []
    columns += element.fields
    if offset:
        columns.append(ResultColumn(offset))
    stars = tuple(StarColumns(origin.table, origin.path) for origin in element.origins) if element.bare else ()
    also = () if element.bare or element.fields else element.origins
    return Source(alias, Outputs(tuple(columns), stars, also, element.taint), element)


def row_of(outputs: Outputs, name: str = "") -> ResultColumn:
    """A row of a query as one STRUCT."""
    origins = dict.fromkeys(origin for column in outputs.columns for origin in column.origins)
    origins.update(dict.fromkeys(Origin(star.table, star.path) for star in outputs.stars))
    origins.update(dict.fromkeys(outputs.also))
    taint = outputs.taint or next((column.taint for column in outputs.columns if column.taint), "")
    if not outputs.columns and len(outputs.stars) == 1 and not outputs.also and not taint:
        return ResultColumn(name, tuple(origins), True)
    fields = outputs.columns if not outputs.stars and not outputs.also else ()
    return ResultColumn(name, tuple(origins), False, taint, fields)


def find(outputs: Outputs, name: str) -> ResultColumn | None:
    """Return the column of this name (lower case), None where it is certain that there is none."""
    named = [column for column in outputs.columns if column.name.lower() == name]
    if len(named) == 1 and not outputs.stars and not outputs.also and not outputs.taint:
        return named[0]
    starred = tuple(Origin(s.table, (*s.path, name)) for s in outputs.stars if name not in s.excepted)
    if not named and not starred and not outputs.also and not outputs.taint:
        return None
    if named and not outputs.also and not outputs.taint:
        return union(named, bare=True)  # a query names it: what its star adds has another name
    values = [*named, ResultColumn(name, starred, True), ResultColumn(name, outputs.also)]
    found = union((value for value in values if value.origins or value.taint or value.fields), bare=True)
    return ResultColumn(name, found.origins, found.bare, outputs.taint or found.taint)


def lookup(parts: Sequence[str], scope: Scope | None, variables: Iterable[str]) -> ResultColumn:
    """Return the value of a path: a column or alias, and fields below it; tainted where nothing has that name."""
    first = parts[0].lower()
    values: list[ResultColumn] = []
    certain = False
    while scope is not None and not certain:
        rows = [source.value for source in scope.sources if source.alias == first]
        if rows and len(parts) > 1:
            inner = parts[1].lower()
            found = [find(source.outputs, inner) for source in scope.sources if source.alias == first]
            return _below(union([v for v in found if v] or [row.field(inner) for row in rows], bare=True), parts[2:])
        columns = [(source, find(source.outputs, first)) for source in scope.sources]
        values += rows
        values += [column for _, column in columns if column is not None]
        certain = bool(rows) or any(
            column is not None and any(named.name.lower() == first for named in source.outputs.columns)
            for source, column in columns
        )
        scope = scope.parent
    if not certain and first in variables:
        values.append(ResultColumn("", taint=f"{first} may be a variable of the script"))
    if not values:
        return ResultColumn("", taint=f"nothing that is known here is called {first}")
    return _below(union(values, bare=True), parts[1:])


def _below(value: ResultColumn, fields: Sequence[str]) -> ResultColumn:
    for name in fields:
        value = value.field(name)
    return value
