"""Pages of rows: of a job's result and of a table, under masks.

Which masks apply to a page of a job is what its permit said (Entry.masks); where its columns come from is read from its
SQL (lineage.py). The schema comes with the answer, or is known from an earlier one, or the target is asked for it: no
schema, no rows. tabledata.list has none at all: the table's is asked for before and after, so that a table that was
changed in between cannot pass its new columns under the masks of the old.

Source: bigquery note 3, 6 and 9; reference of tabledata.list, jobs.getQueryResults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from protocols.bigquery.lineage import lineage_of
from protocols.bigquery.pages import mask_page, schema_of
from protocols.bigquery.requests import Asked
from protocols.bigquery.schema import Lineage, Schema, Stamps, Unreadable, columns, of_table, read_schema, select
from protocols.bigquery.turn import Masked, Turn
from proxy.core.errors import TargetPeerError
from proxy.core.jobs import Entry
from proxy.core.session import Permit

# What tabledata.list reads, of which the columns are the table's own. Source: reference of Table.type.
OWN_COLUMNS: Final = frozenset({"TABLE", "SNAPSHOT", "EXTERNAL", "CLONE"})
# What a table's id may end in where its rows are those of the table: a partition. An instant is of an older schema, and
# $__PARTITIONS_SUMMARY__ is of another. Source: "Table decorators", "Managing partitioned tables".
_PARTITION = re.compile(r"(?:\$(?:__NULL__|__UNPARTITIONED__|[0-9A-Za-z][0-9A-Za-z_]*))?")


def stamps_of(asked: Asked) -> Stamps:
    """In which form a request wants TIMESTAMP. Source: DataFormatOptions; a timestampOutputFormat wins."""
    options = (asked.body or {}).get("formatOptions") or {}
    form = asked.parameters.get("formatOptions.timestampOutputFormat") or options.get("timestampOutputFormat") or ""
    integer = asked.parameters.flag("formatOptions.useInt64Timestamp") or options.get("useInt64Timestamp") is True
    match str(form).upper():
        case "ISO8601_STRING":
            return "iso"
        case "INT64":
            return "integer"
        case _:
            return "integer" if integer else "float"


async def masked_result(
    turn: Turn, permit: Permit, asked: Asked, body: bytes, facts: Mapping[str, Any], known: Mapping[str, Any] | None
) -> Masked | None:
    """Return how a page of a job's result is masked, None without masks. facts, known: of the registry's entry.

    Raises Unreadable.
    """
    if not permit.masks:
        return None
    schema = schema_of(body)
    if schema is None and known is not None:
        schema = read_schema(known)
    lineage = None if schema is None else await lineage_of(turn.gate.warehouse, facts, schema)
    return _masked(turn, permit, schema, lineage, stamps_of(asked))


def _masked(turn: Turn, permit: Permit, schema: Schema | None, lineage: Lineage | None, stamps: Stamps) -> Masked:
    remark = turn.remark(permit)
    found = () if schema is None or lineage is None else columns(schema, lineage, stamps)

    def rewrite(data: bytes, cells: Any) -> bytes:
        return mask_page(data, schema, cells, stamps, remark)

    return Masked(found, rewrite)


async def table_rows(turn: Turn, asked: Asked, permit: Permit, entry: Entry | None) -> bool:
    """Serve tabledata.list. entry: of a table that is its owner's alone."""
    if not permit.masks:
        return await turn.pass_on(asked, permit, safe=True)
    if not _PARTITION.fullmatch(asked.line.route.decorator):
        raise Unreadable("masks apply, and nobody knows which columns the table had at another time; query it")
    before = await _table(turn, asked)
    response, body = await turn.whole(asked, permit, b"", safe=True)
    if response.status != 200:
        return await turn.reply(asked, permit, response, body)
    if await _table(turn, asked) != before:
        raise TargetPeerError("the table was changed while it was read; try again")
    schema = read_schema(before.get("schema"))
    if entry is not None:
        lineage = await lineage_of(turn.gate.warehouse, entry.facts, schema)
    else:
        if before.get("type") not in OWN_COLUMNS:
            raise Unreadable("masks apply, and this is no table with columns of its own; query it")
        lineage = of_table(asked.project, asked.id("dataset"), asked.id("table"), schema)
    names = asked.parameters.get("selectedFields")
    chosen = select(schema, [name for name in names.split(",") if name.strip()]) if names else schema
    masked = _masked(turn, permit, chosen, _chosen(schema, chosen, lineage), stamps_of(asked))
    return await turn.reply(asked, permit, response, body, masked=masked)


def _chosen(schema: Schema, chosen: Schema, lineage: Lineage) -> Lineage:
    """The lineage of some of a table's columns."""
    places = {field.name: place for place, field in enumerate(schema)}
    order = [places[field.name] for field in chosen]
    return lambda index, path: lineage(order[index], path)


async def _table(turn: Turn, asked: Asked) -> dict[str, Any]:
    """The schema and the type of the table, as of now."""
    ids = (asked.project, asked.id("dataset"), asked.id("table"))
    project, dataset, table = (quote(each, safe=":") for each in ids)
    path = f"/bigquery/v2/projects/{project}/datasets/{dataset}/tables/{table}?fields=schema,type&prettyPrint=false"
    status, body = await turn.upstream.ask("GET", path)
    try:
        found = json.loads(body) if status == 200 else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise Unreadable("masks apply, and the table's schema is not to be had")
    return {key: found.get(key) for key in ("schema", "type")}
