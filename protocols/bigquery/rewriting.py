"""Masks put into a query before it is decided on: the scans of tables with masked columns are replaced.

rewritten() asks the target for the schemas of the tables that masks cover, has the text rewritten (Gate.rewriter, with
the expressions of Gate.scans) and reads it again. All that follows works on what it returns: dry run, decision, the
approver's card, the text that runs, the lineage of the result, under the same masks. So where nothing is rewritten, or
wrongly, a masked column is masked by where its values come from, as ever.

Only queries that are read whole, of targets whose setting "rewrite" is "where-exact". Left as they are: queries with
tables of their own (tableDefinitions), which may have a table's name; names without a dataset in a session, where an
earlier query may have made a table of that name; a destination that is itself read under masks; all that is no table
(a view shows what its tables hold, and is masked by them).

A schema is kept for a minute, by the account that it was shown to. A column that is made meanwhile is not in a
rewritten scan; one that is gone makes the query fail: forget() after a statement that defines.

The caller sees to it that nothing is asked of the target for who may not ask: this comes behind would_refuse().
Source: bigquery note 9, layer 2; reference of tables.get.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

import msgspec

from protocols.bigquery.dial_settings import Settings
from protocols.bigquery.estimates import KEPT_SECONDS, Ask
from protocols.bigquery.requests import Asked
from protocols.bigquery.schema import Schema, Unreadable, read_schema
from proxy.core.gate import Gate
from proxy.core.verdict import Mask
from proxy.core.warehouse import TEMPORARY, UNRESOLVED, Analysis, Replacement, Rewritten, TableName

# Tables of one query whose schemas are asked for, one behind another; more are left to the lineage. Ours
TABLES_LIMIT: Final = 32
# Schemas that are kept, and their columns in all. Ours; 100,000 fields take some 20 MB.
SCHEMAS_LIMIT: Final = 1_024
FIELDS_LIMIT: Final = 100_000

_KEPT: Final = "bigquery.schemas"
_FIELDS: Final = "fields=schema,type&prettyPrint=false"
_table: Final = msgspec.json.Decoder(dict[str, Any])


class Schemas:
    """Schemas of tables by account and name, for some time; None where there is none, or it is no table."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, seconds: float = KEPT_SECONDS) -> None:
        self._clock, self._seconds = clock, seconds
        self._kept: OrderedDict[tuple[str, TableName], tuple[float, Schema | None, int]] = OrderedDict()
        self._fields = 0

    async def of(self, account: str, name: TableName, ask: Ask) -> Schema | None:
        """Return the schema of a table. Raises what ask() does."""
        key = (account, name)
        found = self._kept.get(key)
        if found is not None and found[0] > self._clock():
            return found[1]
        path = "/".join(
            ("/bigquery/v2/projects", quote(name.project, safe=":"), "datasets", quote(name.dataset, safe=""), "tables",
             quote(name.table, safe=""))
        )  # fmt: skip
        status, answer = await ask("GET", f"{path}?{_FIELDS}", b"")
        schema = _schema(answer) if status == 200 else None
        if status in (200, 404):
            self._keep(key, schema)
        return schema

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._fields = 0

    def _keep(self, key: tuple[str, TableName], schema: Schema | None) -> None:
        if (old := self._kept.pop(key, None)) is not None:
            self._fields -= old[2]
        size = _size(schema or ())
        self._kept[key] = (self._clock() + self._seconds, schema, size)
        self._fields += size
        while len(self._kept) > SCHEMAS_LIMIT or self._fields > FIELDS_LIMIT:
            _, (_, _, gone) = self._kept.popitem(last=False)
            self._fields -= gone

    def __len__(self) -> int:
        return len(self._kept)


def schemas_of(shared: MutableMapping[str, Any]) -> Schemas:
    """The schemas that Gate.shared holds, made where there are none."""
    found: Schemas = shared.setdefault(_KEPT, Schemas())
    return found


def forget(shared: MutableMapping[str, Any]) -> None:
    """Forget all schemas: a statement has changed what tables are."""
    schemas_of(shared).clear()


async def rewritten(
    gate: Gate, asked: Asked, analysis: Analysis, masks: tuple[Mask, ...], ask: Ask, *, settings: Settings, account: str
) -> tuple[Asked, Analysis, Rewritten] | None:
    """Return a query as it is to be decided on and run, with its analysis and what was done; None as it came.

    analysis: of asked. masks: what the policy would put on it. account: whose eyes the target is seen with, and of
    which target. Raises what ask() does.
    """
    query, reader, rewriter = asked.query, gate.warehouse, gate.rewriter
    if query is None or reader is None or rewriter is None or not settings.rewrite or not _fits(asked, analysis):
        return None
    scans = await _scans(gate, asked, analysis, masks, ask, account)
    if not scans:
        return None
    where = (query.project, query.dataset or None)
    done = await rewriter.rewrite(query.text, *where, scans)
    if not done.tables:
        return None
    read = await reader.read(done.text, *where)
    if read.opaque or set(read.tables_read) != set(analysis.tables_read):
        return None  # fails closed: what came is masked by its lineage
    return _with_text(asked, done.text), read, done


def _fits(asked: Asked, analysis: Analysis) -> bool:
    """Tell whether a request is a query whose names mean what its text says."""
    query = asked.query
    if asked.job != "query" or query is None or query.tables or analysis.opaque or not analysis.statements:
        return False
    session = bool(query.session_id) or query.create_session
    return not (session and any(each.bare_tables for each in analysis.statements))


async def _scans(
    gate: Gate, asked: Asked, analysis: Analysis, masks: tuple[Mask, ...], ask: Ask, account: str
) -> dict[str, tuple[Replacement, ...]]:
    """What the columns of the tables that masks cover are to be shown as, by the tables' names."""
    if gate.scans is None:
        return {}
    covers = gate.scans.covers
    names = [name for name in analysis.tables_read if _is_plain(name) and covers(masks, str(name))]
    written = "" if asked.destination is None else str(replace(asked.destination, decorator="")).lower()
    if any(str(name).lower() == written for name in names):
        return {}
    schemas = schemas_of(gate.shared)
    found: dict[str, tuple[Replacement, ...]] = {}
    for name in names[:TABLES_LIMIT]:
        schema = await schemas.of(account, name, ask)
        shown = None if schema is None else gate.scans.replacements(masks, str(name), schema)
        if shown is not None:
            found[str(name)] = shown
    return found


def _is_plain(name: TableName) -> bool:
    return not (name.is_pattern or name.is_metadata or name.dataset in (TEMPORARY, UNRESOLVED))


def _schema(answer: bytes) -> Schema | None:
    """The schema in an answer of tables.get; None of what is no table, or cannot be read."""
    try:
        found = _table.decode(answer)
        return read_schema(found.get("schema")) if found.get("type") == "TABLE" else None
    except (msgspec.DecodeError, UnicodeDecodeError, Unreadable, RecursionError):
        return None


def _size(schema: Schema) -> int:
    return sum(1 + _size(each.fields) for each in schema)


def _with_text(asked: Asked, text: str) -> Asked:
    """The request with another text in its body and its query. What came (content) stays, for the tape."""
    assert asked.query is not None, "only queries are rewritten"
    body = dict(asked.body or {})
    if asked.method.schema == "QueryRequest":
        body["query"] = text
    else:
        whole = dict(body.get("configuration") or {})
        body["configuration"] = {**whole, "query": {**(whole.get("query") or {}), "query": text}}
    return replace(asked, body=body, query=replace(asked.query, text=text))
