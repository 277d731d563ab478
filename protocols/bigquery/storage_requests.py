"""Requests of the Storage Read API, read: which table or stream, and everything that changes what comes back.

CreateReadSession is a Command of its own (read_rows); ReadRows and SplitReadStream ask for more of what it gave, as
polls do of a job. A row_restriction is a piece of SQL: it is read like the WHERE of a query, so that tables and
functions in it are facts, and the columns that it filters by are known where masks make an oracle of it.

What leaves is written anew of what was read. Left out: what only answers have in a ReadSession (its name, streams,
schemas): a request that brings it is refused, as the service ignores it and nobody could tell what it was for.
Source: bigquery note 10; storage.proto, stream.proto.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from protocols.bigquery import storage_wire as wire
from protocols.bigquery.facts import FACTS, WAREHOUSE
from protocols.bigquery.methods import checked_id, table_id
from protocols.bigquery.ownership import hidden
from proxy.core.events import Column, Command
from proxy.core.http.heads import BadRequest
from proxy.core.jobs import ID_LIMIT
from proxy.core.text import harmless
from proxy.core.warehouse import Analysis, Origin

Format = Literal["", "avro", "arrow"]

RESTRICTION_LIMIT: Final = 1024 * 1024  # bytes. Source: TableReadOptions.row_restriction, "Maximum length is 1 MB"
_FORMATS: Final[Mapping[int, Format]] = {0: "", 1: "avro", 2: "arrow"}
_TABLE: Final = re.compile(r"projects/([^/]+)/datasets/([^/]+)/tables/([^/]+)")
_OF_ANSWERS: Final = (
    "name", "expire_time", "avro_schema", "arrow_schema", "streams", "estimated_total_bytes_scanned",
    "estimated_row_count", "estimated_total_physical_file_size",
)  # fmt: skip
_INT64: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Asked:
    """A CreateReadSession, read. table: project, dataset and table, without a decorator. project: that is billed."""

    values: Mapping[str, Any]
    project: str
    table: tuple[str, str, str]
    format: Format
    selected: tuple[str, ...]
    restriction: str

    @property
    def name(self) -> str:
        """The table as rules and masks name it."""
        return ".".join(self.table)

    @property
    def hidden(self) -> bool:
        """Whether the table is somebody's own: an anonymous result, say."""
        return hidden(self.table[1])

    @property
    def sql(self) -> str:
        """The restriction as a query has one, for the analysis."""
        return f"SELECT 1 FROM `{self.name}` WHERE (\n{self.restriction}\n)"  # noqa: S608  # read, never run

    def wire(self, *, plain: bool) -> bytes:
        """Write the request for the target. plain: without the compression of whole answers, so that masks read it."""
        values = dict(self.values)
        if plain and "read_options" in values["read_session"]:
            options = dict(values["read_session"]["read_options"])
            options.pop("response_compression_codec", None)
            values["read_session"] = {**values["read_session"], "read_options": options}
        return wire.encode(wire.CREATE_READ_SESSION, values)


@dataclass(frozen=True, slots=True)
class Filter:
    """What a row_restriction reads. opaque: nobody can tell; why says why."""

    tables: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    routines: tuple[str, ...] = ()
    columns: tuple[Origin, ...] = ()
    opaque: bool = False
    why: str = ""
    statements: tuple[Any, ...] = field(default=())


def read_create(data: bytes) -> Asked:
    """Read a CreateReadSessionRequest. Raises Garbage, BadRequest."""
    values = wire.decode(wire.CREATE_READ_SESSION, data, strict=True)
    session = values.get("read_session")
    if session is None:
        raise BadRequest(400, "the request has no read_session")
    for name in _OF_ANSWERS:
        if name in session:
            raise BadRequest(400, f"read_session.{name} is of answers alone")
    parent = str(values.get("parent", ""))
    if not parent.startswith("projects/"):
        raise BadRequest(400, "parent is projects/<project>")
    project = checked_id("project", parent.removeprefix("projects/"))
    found = _TABLE.fullmatch(str(session.get("table", "")))
    if found is None:
        raise BadRequest(400, "read_session.table is projects/<project>/datasets/<dataset>/tables/<table>")
    table, _ = table_id(found[3])
    where = (checked_id("project", found[1]), checked_id("dataset", found[2]), table)
    kind = _FORMATS.get(session.get("data_format", 0))
    if kind is None:
        raise BadRequest(400, "read_session.data_format is AVRO or ARROW")
    options = session.get("read_options", {})
    restriction = options.get("row_restriction", "")
    if len(restriction.encode()) > RESTRICTION_LIMIT:
        raise BadRequest(400, f"the row_restriction is longer than {RESTRICTION_LIMIT} bytes")
    return Asked(values, project, where, kind, tuple(options.get("selected_fields", ())), restriction)


def filter_of(asked: Asked, analysis: Analysis | None) -> Filter:
    """Tell what a restriction reads, by the analysis of Asked.sql; None: nobody read it."""
    if not asked.restriction:
        return Filter()
    if analysis is None or analysis.opaque or len(analysis.statements) != 1 or analysis.control:
        return Filter(opaque=True, why=(analysis.why if analysis else "") or "the row_restriction could not be read")
    only = analysis.statements[0]
    if only.opaque or only.verb != "read_rows" or only.tables_written or only.doors:
        return Filter(opaque=True, why=only.why or "the row_restriction is more than a condition on rows")
    tables = tuple(str(each) for each in only.tables_read)
    return Filter(tables, only.functions, only.routines, only.filters, statements=(only,))


def command(asked: Asked, found: Filter, flow: int, data: bytes) -> Command:
    """The Command that a CreateReadSession is. data: the request as the user sent it."""
    facts: dict[str, Any] = {
        **FACTS,
        WAREHOUSE: found.statements,
        "tables_read": tuple(dict.fromkeys((asked.name, *found.tables))),
        "tables_written": (),
        "functions": found.functions,
        "kinds": ("read",),
        "where": "present" if asked.restriction else "none",
        "opaque": found.opaque,
        "why": found.why,
        "bq_method": "storage.CreateReadSession",
        "bq_project": asked.project,
        "bq_projects": tuple(dict.fromkeys((asked.table[0], asked.project))),
        "bq_datasets": (".".join(asked.table[:2]),),
        "bq_routines": found.routines,
    }
    objects = facts["tables_read"]
    text = _shown(asked)
    return Command(
        "bigquery", "read_rows", "read", text, objects=objects, facts=facts, flow=flow, data=wire.framed(data)
    )


def _shown(asked: Asked) -> str:
    """The request as a human approves it: all that changes which rows come, and in whose name."""
    session = asked.values["read_session"]
    options = session.get("read_options", {})
    lines = [f"read rows of {session['table']}", f"billed to {asked.project}"]
    lines.append("columns: " + (", ".join(asked.selected) if asked.selected else "all"))
    if asked.restriction:
        lines.append(f"where {asked.restriction}")
    if "sample_percentage" in options:
        lines.append(f"sample of {struct.unpack('<d', options['sample_percentage'])[0]:g} %")
    if moment := session.get("table_modifiers", {}).get("snapshot_time"):
        lines.append(f"as of {signed(moment.get('seconds', 0))} seconds since the epoch")
    if trace := session.get("trace_id"):
        lines.append(f"trace id {trace}")
    return "\n".join(harmless(line, lines=True) for line in lines)


def follow(
    method: Literal["ReadRows", "SplitReadStream"], name: str, table: str, flow: int, data: bytes, more: str
) -> Command:
    """The Command that asks for rows of what a permit gave before. table: "" where it is a job's result."""
    project = name.split("/", 2)[1] if name.count("/") > 1 else ""
    facts = {**FACTS, WAREHOUSE: (), "bq_method": f"storage.{method}", "bq_project": project}
    text = harmless(f"{method} {name}{more}")
    objects = (table,) if table else ()
    return Command("bigquery", "poll", "session", text, objects=objects, facts=facts, flow=flow, data=wire.framed(data))


def read_rows(data: bytes) -> tuple[str, int, bytes]:
    """Read a ReadRowsRequest: stream, offset, and the request for the target. Raises Garbage, BadRequest."""
    values = wire.decode(wire.READ_ROWS, data, strict=True)
    offset = signed(values.get("offset", 0))
    if offset < 0:
        raise BadRequest(400, "the offset is negative")
    return _stream(values.get("read_stream")), offset, wire.encode(wire.READ_ROWS, values)


def read_split(data: bytes) -> tuple[str, bytes]:
    """Read a SplitReadStreamRequest: stream, and the request for the target. Raises Garbage, BadRequest."""
    values = wire.decode(wire.SPLIT_STREAM, data, strict=True)
    return _stream(values.get("name")), wire.encode(wire.SPLIT_STREAM, values)


def _stream(name: object) -> str:
    if (
        not isinstance(name, str)
        or not name
        or len(name) > 2 * ID_LIMIT
        or not name.isascii()
        or not name.isprintable()
    ):
        raise BadRequest(400, "the request names no stream")
    return name


def signed(number: int) -> int:
    """The int64 that a varint stands for."""
    return number - 2 * _INT64 if number >= _INT64 else number


def filtered(asked: Asked, found: Filter) -> tuple[Column, ...]:
    """The columns that a restriction filters by, to ask masks about: an oracle on what they hide."""
    # What a column of a table is called with the table itself before it, or an alias, is the same column.
    return tuple(
        Column(".".join(each.path) or "*", (".".join((str(each.table), *each.path)),), "text") for each in found.columns
    )
