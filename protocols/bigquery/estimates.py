"""What the target says of a query before it runs, what that costs, and how it is kept from costing more.

Estimates.of() asks for a dry run of what the caller asks for, in the gate's own request: the caller's configuration of
the query without what only a run has (labels, priority, limits, a new session), and without the cache of results, so
that bytes and tables are those of the query itself. Then it looks at the tables of the text (tables.get), as a view
shows what other tables hold; views are followed by reading their texts (WarehouseReader, where there is one), and
agreement.py compares. Where settings.dry_run is false, the views alone are looked at.

What was found is kept for a minute by all that the question holds: the text, parameters with their values (which choose
partitions, and so bytes and tables), defaults, session, destination, the account, the target and its settings, and what
the text read as. Equal questions at once are one. A dry run that fails is not kept: its answer is the caller's, as it
is. Between a question and the run of the query somebody else may change a view; forget() is for what this gate changes.

A text that DDL or DML is of, and a script, are asked about as well; of a script the target tells little, so that its
bytes are not known. Nor are they where the target says that its number is a lower bound.

What goes with the query itself: capped() puts maximumBytesBilled in, and labelled() labels.

Left out: daily amounts; prices by location or edition. Source: bigquery note 5, 7, 11; reference of
JobConfiguration.dryRun, JobConfigurationQuery, QueryRequest; "Estimate query costs"; "Labels", requirements.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

from protocols.bigquery import errors
from protocols.bigquery.agreement import (
    LOOKED_AT_LIMIT,
    VIEW_TYPES,
    Agreement,
    Behind,
    Said,
    Shape,
    agree,
    error_result,
    looked_at,
    plain,
    read_dry_run,
    read_table,
    unseen,
)
from protocols.bigquery.bodies import write_object
from protocols.bigquery.dial_settings import Settings
from protocols.bigquery.requests import Asked, JobKind
from proxy.core.gate import WarehouseReader
from proxy.core.warehouse import TEMPORARY, UNRESOLVED, Analysis, TableName

# (HTTP method, path?query, JSON) of a request of the gate's own to the target -> status and body of its answer.
Answer = tuple[int, bytes]
Ask = Callable[[str, str, bytes], Awaitable[Answer]]

KEPT_SECONDS: Final = 60.0
ENTRIES_LIMIT: Final = 2_048  # questions that are kept; tools repeat theirs, people do not. Ours
BYTES_LIMIT: Final = 16 * 1024 * 1024  # of the answers that are kept, in all; ours, as bigquery_workers.py
VIEW_DEPTH_LIMIT: Final = 16  # views below views. Source: "Quotas and limits", nested view levels
LABELS_VALUE_LIMIT: Final = 63  # characters of a label's key or value. Source: "Labels", requirements
_TIB: Final = 2**40
_V2: Final = "/bigquery/v2/projects"
# Of a query's configuration, what says how it is run and not what it is. A session would be made.
_RUN_ONLY: Final = frozenset({"priority", "maximumBytesBilled", "maximumBillingTier", "useQueryCache", "createSession",
                              "writeIncrementalResults"})  # fmt: skip
# What of a QueryRequest a job's configuration.query has too.
_QUERY_REQUEST: Final = frozenset({"query", "useLegacySql", "defaultDataset", "parameterMode", "queryParameters",
                                   "connectionProperties", "continuous", "preserveNulls", "secureContext",
                                   "destinationEncryptionConfiguration"})  # fmt: skip
_UNLABELLED: Final = re.compile(r"[^\w-]")
_INEXACT: Final = frozenset({"UNKNOWN", "LOWER_BOUND"})  # totalBytesProcessedAccuracy: it may cost more

_FULL: Final = re.compile(
    r"((?:[^:]*:)?[^.]+)\.(.+?)\.((?:INFORMATION_SCHEMA\.[^.]+)|[^.]+)", re.IGNORECASE | re.DOTALL
)

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a query before it runs. Names are "project.dataset.table" (or routine).

    known: bytes and price are of a dry run and at least what the query reads. referenced: what the dry run names.
    behind: view, in lower case -> all tables and views below it (schema.of_result, facts.KEPT_BEHIND). opaque: "", or
    why text and dry run do not agree: then it is held or denied, never passed. error: the target's answer where the dry
    run fails, status and body, for the user as it is; nothing else is known then.
    """

    known: bool = False
    bytes: int = 0
    price: float = 0.0
    statement_type: str = ""
    referenced: tuple[str, ...] = ()
    routines: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    behind: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    opaque: str = ""
    accuracy: str = ""
    error: Answer | None = None

    @property
    def beneath(self) -> tuple[str, ...]:
        """All tables behind views: the fact "beneath"."""
        return tuple(dict.fromkeys(name for names in self.behind.values() for name in names))


@dataclass(frozen=True, slots=True)
class _Made(Generic[V]):
    """A value to be kept, or not (size None). size: about how many bytes it holds."""

    value: V
    size: int | None


class _Kept(Generic[V]):
    """Values by what was asked: for some time, so many, and each asked for once at a time. One event loop only."""

    def __init__(self, clock: Callable[[], float], entries: int, size: int, seconds: float) -> None:
        self._clock, self._entries, self._size, self._seconds = clock, entries, size, seconds
        self._values: OrderedDict[Hashable, tuple[float, int, V]] = OrderedDict()
        self._flights: dict[Hashable, asyncio.Future[V]] = {}
        self._held = 0

    async def get(self, key: Hashable, make: Callable[[], Awaitable[_Made[V]]]) -> V:
        """Return the value that is kept or being made, else make it. Raises what make() does, to all who wait."""
        while True:
            found = self._values.get(key)
            if found is not None and found[0] > self._clock():
                return found[2]
            flight = self._flights.get(key)
            if flight is None:
                return await self._make(key, make)
            try:
                return await asyncio.shield(flight)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not flight.cancelled() or (task is not None and task.cancelling()):
                    raise
                # Whoever asked has gone; somebody else of those who wait asks now.

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[_Made[V]]]) -> V:
        flight: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            made = await make()
        except Exception as error:  # it goes to this caller and to all who wait
            self._land(key, flight)
            flight.set_exception(error)
            flight.exception()  # nobody may wait
            raise
        except BaseException:
            self._land(key, flight)
            flight.cancel()
            raise
        if self._land(key, flight) and made.size is not None and made.size <= self._size:
            self._keep(key, made.value, made.size)
        flight.set_result(made.value)
        return made.value

    def _land(self, key: Hashable, flight: asyncio.Future[V]) -> bool:
        """Take a flight from the list; False where clear() has been there since."""
        if self._flights.get(key) is not flight:
            return False
        del self._flights[key]
        return True

    def _keep(self, key: Hashable, value: V, size: int) -> None:
        if (old := self._values.pop(key, None)) is not None:
            self._held -= old[1]
        self._values[key] = (self._clock() + self._seconds, size, value)
        self._held += size
        while len(self._values) > self._entries or self._held > self._size:
            _, (_, gone, _) = self._values.popitem(last=False)
            self._held -= gone

    def clear(self) -> None:
        """Forget all; what is being made goes to those who wait already, and is not kept."""
        self._values.clear()
        self._flights.clear()
        self._held = 0

    def __len__(self) -> int:
        return len(self._values)


class Estimates:
    """The dry runs of a process, for all its sessions. reader: of the texts of views; without it they tell nothing."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        reader: WarehouseReader | None = None,
        entries_limit: int = ENTRIES_LIMIT,
        bytes_limit: int = BYTES_LIMIT,
        seconds: float = KEPT_SECONDS,
    ) -> None:
        self._reader = reader
        self._estimates: _Kept[Estimate] = _Kept(clock, entries_limit, bytes_limit, seconds)
        self._shapes: _Kept[tuple[int, Shape]] = _Kept(clock, entries_limit, bytes_limit, seconds)

    async def of(self, asked: Asked, analysis: Analysis, settings: Settings, account: str, ask: Ask) -> Estimate:
        """Tell of a query. account: whose eyes the target is seen with, and of which target. Raises what ask() does."""
        if asked.query is None:
            return Estimate()
        body = write_object(dry_run(asked))
        read = repr((analysis.opaque, analysis.tables_read, analysis.tables_written, analysis.control, len(body)))
        digest = hashlib.sha256(read.encode("utf-8", "surrogatepass") + body).digest()
        key = (settings, account, asked.project, digest)

        async def make() -> _Made[Estimate]:
            return await self._make(asked, analysis, settings, account, ask, body)

        return await self._estimates.get(key, make)

    def forget(self) -> None:
        """Forget all that was found: a statement has changed what names mean."""
        self._estimates.clear()
        self._shapes.clear()

    async def _make(
        self, asked: Asked, analysis: Analysis, settings: Settings, account: str, ask: Ask, body: bytes
    ) -> _Made[Estimate]:
        said, answer = Said(), b""
        if settings.dry_run:
            status, answer = await ask("POST", f"{_V2}/{quote(asked.project, safe=':')}/jobs?prettyPrint=false", body)
            failed = _failure(status, answer)
            if failed is not None:
                return _Made(Estimate(error=failed), None)
            found = read_dry_run(answer)
            if found is None:
                return _Made(Estimate(opaque="the target's answer to the dry run cannot be read"), None)
            said = found
        look = _Look(self._shapes, self._reader, ask, (settings, account))
        names = looked_at(analysis, {each.name for each in asked.query.tables} if asked.query else ())
        views = await look.views(names)
        agreed = agree(analysis, said, views, settings.trusted_routines) if settings.dry_run else unseen(views)
        agreed = Agreement(look.why or agreed.opaque, agreed.behind)
        size = len(body) + len(answer) + sum(len(name) for names_ in agreed.behind.values() for name in names_)
        return _Made(_estimate(said, agreed, settings), size)


def estimates_of(shared: MutableMapping[str, Any], reader: WarehouseReader | None = None) -> Estimates:
    """The estimates that Gate.shared holds, made where there are none. reader: Gate.warehouse."""
    found: Estimates = shared.setdefault("bigquery.estimates", Estimates(reader=reader))
    return found


def dry_run(asked: Asked) -> dict[str, Any]:
    """Return the body of jobs.insert that asks for a dry run of a query."""
    request = asked.method.schema == "QueryRequest"
    query = {
        key: value
        for key, value in asked.configuration.items()
        if key not in _RUN_ONLY and (not request or key in _QUERY_REQUEST)
    }
    body: dict[str, Any] = {
        "configuration": {"dryRun": True, "query": {**query, "useLegacySql": False, "useQueryCache": False}}
    }
    if asked.location:
        body["jobReference"] = {"projectId": asked.project, "location": asked.location}
    return body


def _failure(status: int, answer: bytes) -> Answer | None:
    """The answer of a dry run that failed, as a user gets it."""
    if status != 200:
        return status, answer
    found = error_result(answer)
    if found is None:
        return None
    reason, message = found
    code = {"accessDenied": 403, "notFound": 404}.get(reason, 400)
    return code, errors.document(code, reason or "invalid", message)


def _estimate(said: Said, agreed: Agreement, settings: Settings) -> Estimate:
    size = said.processed or 0
    known = said.processed is not None and said.statement_type != "SCRIPT" and said.accuracy not in _INEXACT
    return Estimate(
        known,
        size,
        size / _TIB * settings.price_per_tib,
        said.statement_type,
        said.referenced,
        said.routines,
        said.schema,
        agreed.behind,
        agreed.opaque,
        said.accuracy,
    )


# -- views ----------------------------------------------------------------------------------------------


class _Look:
    """Looks at the tables of one query. why: what could not be told, and has to be."""

    def __init__(
        self, shapes: _Kept[tuple[int, Shape]], reader: WarehouseReader | None, ask: Ask, place: Hashable
    ) -> None:
        self._shapes, self._reader, self._ask, self._place = shapes, reader, ask, place
        self._seen: set[str] = set()
        self.why = ""

    async def views(self, names: tuple[TableName, ...]) -> dict[str, Behind]:
        """Return what is behind those of some names that are views."""
        found: dict[str, Behind] = {}
        for name in names:
            shape = await self._shape(name)
            if shape is None:
                self.why = self.why or f"it cannot be told whether {name} is a view"
            elif shape.is_view:
                below: dict[str, None] = {}
                whole = await self._below(name, shape, below, VIEW_DEPTH_LIMIT)
                below.pop(str(name), None)
                found[str(name)] = Behind(tuple(below), whole)
        return found

    async def _below(self, view: TableName, shape: Shape, found: dict[str, None], depth: int) -> bool:
        """Add what a view reads, and all below; False where something is not told."""
        if not depth or self._reader is None or shape.type not in VIEW_TYPES or not shape.query:
            return False
        analysis = await self._reader.read(shape.query, view.project, None)
        whole = not analysis.opaque
        for table in analysis.tables_read:
            if str(table) in found:
                continue
            found[str(table)] = None
            if not plain(table):
                whole = whole and table.dataset not in (TEMPORARY, UNRESOLVED)
                continue
            inner = await self._shape(table)
            if inner is None:
                whole = False
            elif inner.is_view:
                whole = await self._below(table, inner, found, depth - 1) and whole
        return whole

    async def _shape(self, name: TableName) -> Shape | None:
        """What a name is; None where the target does not tell, or too much was asked."""
        full = str(name)
        if full not in self._seen and len(self._seen) >= LOOKED_AT_LIMIT:
            return None
        self._seen.add(full)
        status, shape = await self._shapes.get((self._place, full), lambda: self._get(name))
        return shape if status in (200, 404) else None

    async def _get(self, name: TableName) -> _Made[tuple[int, Shape]]:
        parts = (quote(part, safe=":") for part in (name.project, "datasets", name.dataset, "tables", name.table))
        fields = quote("type,view(query,useLegacySql),materializedView(query)", safe="")
        status, body = await self._ask("GET", f"{_V2}/{'/'.join(parts)}?fields={fields}&prettyPrint=false", b"")
        if status == 200:
            shape = read_table(body)
            return _Made((status, shape), len(shape.query) + 256)
        return _Made((status, Shape("")), None)


# -- what goes with the query ---------------------------------------------------------------------------


def billed(asked: Asked, settings: Settings) -> int:
    """The bytes that a query may be billed for at most. Nothing and less are no limit of the caller's."""
    own = asked.query.maximum_bytes if asked.query is not None else None
    if own is None or own <= 0:
        return settings.maximum_bytes_billed
    return min(own, settings.maximum_bytes_billed)


def capped(body: Mapping[str, Any], kind: JobKind, limit: int, *, fresh: bool = False) -> dict[str, Any]:
    """Return the body of jobs.insert or jobs.query with its limit in bytes. fresh: no result of an earlier query.

    Rows of an earlier query are those that its masks left, or that it had none for. Of other jobs the body stays.
    """
    if kind != "query":
        return dict(body)
    ours: dict[str, Any] = {"maximumBytesBilled": str(limit), **({"useQueryCache": False} if fresh else {})}
    configuration = body.get("configuration")
    if not isinstance(configuration, Mapping):
        return {**body, **ours}
    return {**body, "configuration": {**configuration, "query": {**configuration["query"], **ours}}}


def labelled(body: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the body of jobs.insert or jobs.query with labels of ours, made to fit; they win over the caller's."""
    ours = {label(key): label(value) for key, value in labels.items()}
    configuration = body.get("configuration")
    whole = configuration if isinstance(configuration, Mapping) else body
    found = {**whole, "labels": {**(whole.get("labels") or {}), **ours}}
    return {**body, "configuration": found} if whole is configuration else found


def label(text: str) -> str:
    """Make a text fit to be a label's key or value: small letters, digits, "_" and "-", at most 63 of them."""
    return _UNLABELLED.sub("_", text.lower())[:LABELS_VALUE_LIMIT]


def places(asked: Asked, analysis: Analysis | None, estimate: Estimate | None) -> dict[str, Any]:
    """The facts of scope (facts.py): all projects and datasets that a request is about, and its location.

    "*" is a part that is not told: all of a project's datasets, a name that nothing completes. Temporary tables are in
    none. What only the dry run knows (tables behind views, a wildcard's) counts as well.
    """
    names = [str(each) for each in (asked.destination, *asked.sources) if each is not None]
    if not asked.job:
        names.append(asked.object)
    tables = [effect_table for effect in analysis.effects for effect_table in effect.objects] if analysis else []
    if analysis is not None:
        tables += [*analysis.tables_read, *analysis.tables_written]
    found = [(each.project, each.dataset or "*") for each in tables if each.dataset != TEMPORARY]
    if estimate is not None:
        names += [*estimate.referenced, *estimate.routines, *estimate.beneath]
    for name in names:
        if (full := _FULL.fullmatch(name)) is not None:
            found.append((full[1], full[2]))
    datasets = dict.fromkeys(f"{project}.{dataset}" for project, dataset in found)
    return {
        "bq_projects": tuple(dict.fromkeys(project for project, _ in found)),
        "bq_datasets": tuple(datasets),
        "bq_location": asked.location,
    }
