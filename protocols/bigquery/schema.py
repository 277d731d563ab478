"""Schemas of tables and results: from their JSON to typed fields, and to the columns that masks are chosen for.

How: a schema is read once, where it is learned, into a tree of fields. Its leaves (every field that is not a RECORD, in
depth-first order) are the columns of proxy/core/events.py: named by their path (``addr.zip``), each with where its
values come from and with what may stand in the place of a masked value:

STRING, BYTES    any text; of BYTES it is written in base64, so that it decodes
JSON             any JSON document
all others       NULL; the image of zero, of the epoch or of nothing where NULL does not decode (REQUIRED, REPEATED)

An origin is written ``project.dataset.table.column.nested`` where the value is that very field, and with ``.*`` behind
it where the value may hold anything of what lies at that place (a STRUCT turned to text, an expression). That is what
proxy/masking/warehouse.py reads.

A type that is not in the table is refused (Unreadable), and so is a schema that names a field twice: rows that nobody
can read do not pass. Left out: descriptions, policy tags, defaults, precision and length; RANGE's element type, as one
image serves all. FOREIGN is a name for types of others, so it is unknown.

Specification: BigQuery REST v2, TableFieldSchema; TableDataList, DataFormatOptions for the forms of TIMESTAMP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args

from proxy.core.errors import TargetPeerError
from proxy.core.events import Column
from proxy.core.http.heads import BadRequest

# Source: BigQuery quotas, "Maximum number of columns in a table, query result" and "Maximum nested record depth".
FIELDS_LIMIT: Final = 10_000
DEPTH_LIMIT: Final = 15
# Source: BigQuery docs, "Column names": 300 characters, and INFORMATION_SCHEMA has no longer ones.
NAME_LIMIT: Final = 300

Type = Literal[
    "STRING", "BYTES", "INTEGER", "FLOAT", "NUMERIC", "BIGNUMERIC", "BOOLEAN", "TIMESTAMP", "DATE", "TIME", "DATETIME",
    "GEOGRAPHY", "JSON", "INTERVAL", "RANGE", "RECORD",
]  # fmt: skip
Mode = Literal["NULLABLE", "REQUIRED", "REPEATED"]
# How the request asks for TIMESTAMP: seconds with a fraction, microseconds (useInt64Timestamp), or ISO 8601.
Stamps = Literal["float", "integer", "iso"]

_MODES: Final = frozenset(get_args(Mode))
_SAME: Final[dict[str, Type]] = {
    **{name: name for name in get_args(Type)},
    "INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD", "DECIMAL": "NUMERIC",
    "BIGDECIMAL": "BIGNUMERIC",
}  # fmt: skip
# Values without data that decode as their type.
_ZEROS: Final[dict[Type, str]] = {
    "STRING": "", "BYTES": "", "INTEGER": "0", "FLOAT": "0.0", "NUMERIC": "0", "BIGNUMERIC": "0", "BOOLEAN": "false",
    "DATE": "1970-01-01", "TIME": "00:00:00", "DATETIME": "1970-01-01T00:00:00",
    "GEOGRAPHY": "GEOMETRYCOLLECTION EMPTY", "JSON": "null", "INTERVAL": "0-0 0 0:0:0",
    "RANGE": "[UNBOUNDED, UNBOUNDED)",
}  # fmt: skip
_EPOCH: Final[dict[Stamps, str]] = {"float": "0", "integer": "0", "iso": "1970-01-01T00:00:00Z"}
# The names that proxy/masking/cells.py knows types by: in which ones detectors look, and for what.
_KNOWN_AS: Final[dict[Type, str]] = {
    "STRING": "text", "BYTES": "bytea", "JSON": "json", "INTEGER": "bigint", "FLOAT": "double precision",
    "NUMERIC": "numeric", "BIGNUMERIC": "numeric", "BOOLEAN": "boolean", "TIMESTAMP": "timestamp", "DATE": "date",
    "TIME": "time", "DATETIME": "timestamp", "GEOGRAPHY": "point", "INTERVAL": "interval", "RANGE": "timestamp",
}  # fmt: skip


class Unreadable(TargetPeerError):
    """An answer that masks apply to is not what they can read, so nothing of it passes."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a schema; fields are those of a RECORD."""

    name: str
    type: Type
    mode: Mode = "NULLABLE"
    fields: tuple[Field, ...] = ()

    def zero(self, stamps: Stamps) -> str:
        """What stands for a masked value where NULL may not."""
        return _EPOCH[stamps] if self.type == "TIMESTAMP" else _ZEROS[self.type]


Schema = tuple[Field, ...]
Path = tuple[str, ...]
# Says for a leaf where its values come from: the index of its column, and its path from there; see Column.origins.
Lineage = Callable[[int, Path], tuple[str, ...] | None]


class Place(Protocol):
    """Something that values come from; the text of table is its full name."""

    @property
    def table(self) -> object: ...
    @property
    def path(self) -> Path: ...


class Traced(Protocol):
    """What the analysis of a text tells of one column of its result: ResultColumn of proxy/core/warehouse.py."""

    @property
    def origins(self) -> Sequence[Place]: ...
    @property
    def bare(self) -> bool:
        """The value passes unchanged from one of the origins."""

    @property
    def taint(self) -> str:
        """Why nothing is known; "" where something is."""

    def field(self, name: str) -> Traced:
        """The same of a field of a STRUCT."""


def read_schema(value: Any) -> Schema:  # Any: decoded JSON
    """Read the ``schema`` of a table or a result ({"fields": [...]}). Raises Unreadable."""
    fields = value.get("fields", []) if isinstance(value, dict) else None
    if not isinstance(fields, list):
        raise Unreadable("a schema is no object with fields")
    schema = _fields(fields, 1)
    if sum(1 for _ in _all(schema)) > FIELDS_LIMIT:
        raise Unreadable(f"a schema has more than {FIELDS_LIMIT} fields")
    return schema


def _fields(values: list[Any], depth: int) -> Schema:
    # The column itself is not nested, hence one level more.
    if depth > DEPTH_LIMIT + 1:
        raise Unreadable(f"a schema is nested deeper than {DEPTH_LIMIT}")
    if len(values) > FIELDS_LIMIT:
        raise Unreadable(f"a schema has more than {FIELDS_LIMIT} fields")
    fields = tuple(_field(each, depth) for each in values)
    if len({each.name.lower() for each in fields}) != len(fields):
        raise Unreadable("a schema has two fields of one name")
    return fields


def _field(value: Any, depth: int) -> Field:
    if not isinstance(value, dict):
        raise Unreadable("a field of a schema is no object")
    name, kind, mode, inner = value.get("name"), value.get("type"), value.get("mode") or "NULLABLE", value.get("fields")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT or "." in name:
        raise Unreadable("a field of a schema has no usable name")
    if not isinstance(kind, str) or kind.upper() not in _SAME:
        raise Unreadable("a schema has a field of a type that is not known here")
    if not isinstance(mode, str) or mode.upper() not in _MODES:
        raise Unreadable("a schema has a field of a mode that is not known here")
    found = _SAME[kind.upper()]
    known: Mode = "REPEATED" if mode.upper() == "REPEATED" else "REQUIRED" if mode.upper() == "REQUIRED" else "NULLABLE"
    if found != "RECORD":
        if inner:
            raise Unreadable("a schema has a field with fields that is no RECORD")
        return Field(name, found, known)
    if not isinstance(inner, list) or not inner:
        raise Unreadable("a schema has a RECORD without fields")
    return Field(name, found, known, _fields(inner, depth + 1))


def _all(fields: Schema) -> Iterator[Field]:
    for each in fields:
        yield each
        yield from _all(each.fields)


def leaves(fields: Schema, above: Path = ()) -> Iterator[tuple[Path, Field]]:
    """Yield every field that holds values itself, with its path; this is the order of columns()."""
    for each in fields:
        path = (*above, each.name)
        if each.type == "RECORD":
            yield from leaves(each.fields, path)
        else:
            yield path, each


def columns(schema: Schema, lineage: Lineage, stamps: Stamps = "float") -> tuple[Column, ...]:
    """Return the columns of all leaves, for which masks are then chosen (Masker.plan)."""
    return tuple(
        _column(path, field, lineage(index, path[1:]), stamps)
        for index, column in enumerate(schema)
        for path, field in leaves((column,))
    )


def _column(path: Path, field: Field, origins: tuple[str, ...] | None, stamps: Stamps) -> Column:
    kind: Literal["text", "json", "other"] = "other"
    if field.type in ("STRING", "BYTES"):
        kind = "text"
    elif field.type == "JSON":
        kind = "json"
    constant = None if field.mode == "NULLABLE" else field.zero(stamps).encode()
    return Column(".".join(path), origins, kind, constant, type_name=_KNOWN_AS[field.type])


def of_table(project: str, dataset: str, table: str, schema: Schema) -> Lineage:
    """The lineage of a table's own rows: every leaf is itself. Partition and snapshot decorators are no names."""
    plain = table.partition("$")[0].partition("@")[0]
    return lambda index, path: (".".join((project, dataset, plain, schema[index].name, *path)),)


def of_result(traced: Sequence[Traced], behind: Mapping[str, tuple[str, ...]]) -> Lineage:
    """The lineage of a query's rows. traced: one entry a column of the real result, in its order.

    behind: for a view (its full name, in lower case) the tables that it reads. A text does not tell which of their
    columns a view shows, so a column that comes from a view may hold anything of them.
    """

    def lineage(index: int, path: Path) -> tuple[str, ...] | None:
        if index >= len(traced):
            return None
        found = traced[index]
        for name in path:
            found = found.field(name)
        if found.taint:
            return None
        names: list[str] = []
        for place in found.origins:
            names.append(".".join((str(place.table), *place.path, *(() if found.bare else ("*",)))))
            names += (f"{table}.*" for table in behind.get(str(place.table).lower(), ()))
        return tuple(dict.fromkeys(names))

    return lineage


def unknown(index: int, path: Path) -> None:
    """The lineage of which nothing is known."""
    return


def select(schema: Schema, names: Sequence[str]) -> Schema:
    """Return the fields that ``selectedFields`` leaves of a table's rows ("id", "addr.zip").

    Nothing says whether rows follow the request or the table where their orders differ, so such a selection is refused.
    A field and one below it, or a field twice, are refused as well; no names are all fields.
    Raises BadRequest.
    """
    if not names:
        return schema
    return _selected(schema, [name.strip().split(".") for name in names])


def _selected(fields: Schema, paths: list[list[str]]) -> Schema:
    places = {each.name.lower(): place for place, each in enumerate(fields)}
    groups: list[tuple[int, list[list[str]]]] = []
    for head, *rest in paths:
        place = places.get(head.lower())
        if place is None:
            raise BadRequest(400, "selectedFields names a field that the table does not have")
        if not groups or groups[-1][0] != place:
            groups.append((place, []))
        groups[-1][1].append(rest)
    order = [place for place, _ in groups]
    if order != sorted(set(order)):
        raise BadRequest(400, "gatecast: masks apply: name selectedFields in the order that they have in the table")
    found = []
    for place, below in groups:
        field = fields[place]
        if below == [[]]:
            found.append(field)
        elif [] in below or field.type != "RECORD":
            raise BadRequest(400, "selectedFields names a field twice, or something below one that has nothing below")
        else:
            found.append(Field(field.name, field.type, field.mode, _selected(field.fields, below)))
    return tuple(found)
