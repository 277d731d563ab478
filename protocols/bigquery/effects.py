"""What a request does beside its SQL: the doors that do without SQL what SQL can do, as effects with verb and objects.

A rule on the text of SQL alone would be decoration: rows leave by a copy, a table is emptied by a disposition, rights
are given by a member of a dataset. Each effect is judged by itself; the gravest verdict stands (bigquery note 4).

What decides is that a key is there, not what it was before: nobody here knows the former value. So a PUT of a whole
dataset may change its access whatever it holds; null takes an expiration away and so destroys nothing.

A dry run of a query does nothing but tell of tables: one inspect. Of other jobs dryRun is documented as undefined, so
that they are judged as if they ran.

What the SQL itself does is not here: of a query, of a view, a routine, a policy's filter (Asked.query, Asked.sql).

Source: bigquery note 4 and 5; reference of JobConfiguration*, Dataset, Table, Routine, Model; "Copy jobs".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from protocols.bigquery.methods import KIND_OF
from protocols.bigquery.queries import TableName, external, schema_options, table_name, text
from protocols.bigquery.requests import Asked
from proxy.core.events import Kind
from proxy.core.http.heads import BadRequest

_OUTSIDE_ROUTINE: Final = ("remoteFunctionOptions", "sparkOptions", "externalRuntimeOptions", "pythonOptions")
_EXPIRATIONS: Final = frozenset({
    "expirationTime", "defaultTableExpirationMs", "defaultPartitionExpirationMs", "maxTimeTravelHours",
})  # fmt: skip
_TRUNCATES: Final = frozenset({"WRITE_TRUNCATE", "WRITE_TRUNCATE_DATA"})
_OPERATIONS: Final = frozenset({"", "OPERATION_TYPE_UNSPECIFIED", "COPY", "SNAPSHOT", "RESTORE", "CLONE"})


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing that a request does. objects: "project.dataset.table", "*" for a part that is not named.

    why: the member of the request that says so. outside: what lies outside of these tables and takes part: addresses,
    connections, projects, principals.
    """

    verb: str
    objects: tuple[str, ...]
    why: str
    outside: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return KIND_OF[self.verb]


def effects(asked: Asked) -> tuple[Effect, ...]:
    """Return the effects of a request without those of its SQL: () only of a plain query. Raises BadRequest."""
    method = asked.method
    match method.schema:
        case "Job" | "QueryRequest":
            found = _job(asked)
        case "Dataset":
            found = _dataset(asked)
        case "Table":
            found = _table(asked)
        case "Routine":
            found = _routine(asked)
        case "Model":
            found = _model(asked)
        case _:
            found = _plain(asked)
    return tuple(dict.fromkeys(found))


def _plain(asked: Asked) -> Iterator[Effect]:
    """The methods whose body changes little of what they do."""
    name, body = asked.method.name, asked.body or {}
    yield Effect(asked.method.verb, (asked.object,), name, _principals(asked))
    if name in ("rowAccessPolicies.delete", "rowAccessPolicies.batchDelete"):
        yield Effect("destroy", (asked.object,), name)
    elif name == "tabledata.insertAll" and (suffix := text(body, "templateSuffix")):
        table = table_name({"datasetId": asked.id("dataset"), "tableId": asked.id("table") + suffix}, asked.project)
        yield Effect("define", (str(table),), "templateSuffix")
        yield Effect("write_rows", (str(table),), "templateSuffix")


def _principals(asked: Asked) -> tuple[str, ...]:
    """Who is given rights by a policy."""
    body = asked.body or {}
    bindings = (body.get("policy") or {}).get("bindings") or []
    found = [member for binding in bindings for member in binding.get("members") or []]
    return tuple(dict.fromkeys([*found, *(body.get("grantees") or [])]))


# -- jobs -----------------------------------------------------------------------------------------------


def _job(asked: Asked) -> Iterator[Effect]:
    match asked.job:
        case "query":
            if asked.dry_run:
                yield Effect("inspect", (f"{asked.project}.*.*",), "dryRun")
            else:
                yield from _query(asked)
        case "load":
            yield from _load(asked)
        case "copy":
            yield from _copy(asked)
        case "extract":
            sources = tuple(str(each) for each in asked.sources)
            yield Effect("read_rows", sources, "extract")
            yield Effect("export", sources, "extract", asked.uris)


def _query(asked: Asked) -> Iterator[Effect]:
    query = asked.query
    assert query is not None, "a query job without a query"
    everything = (f"{asked.project}.*.*",)
    if asked.destination is not None:
        yield from _written(asked, asked.destination, query.schema_options)
        if asked.destination.project != asked.project:
            yield Effect("export", (str(asked.destination),), "destinationTable", (asked.destination.project,))
    for each in query.tables:
        places = (*each.uris, *((each.connection,) if each.connection else ()))
        yield Effect("export", everything, "tableDefinitions", places)
    if query.code:
        yield Effect("export", everything, "userDefinedFunctionResources", query.code)
    if account := query.properties.get("service_account"):
        yield Effect("grant", everything, "connectionProperties.service_account", (account,))
    if query.create_session:
        yield Effect("session", everything, "createSession")


def _load(asked: Asked) -> Iterator[Effect]:
    destination, settings = asked.destination, asked.configuration
    assert destination is not None, "a load without a destination"
    # The places that rows and their schema come from; the schema's own file is read as well.
    places = external("", settings).uris
    yield from _written(asked, destination, schema_options(settings), places)
    yield from _tagged(settings, str(destination))
    if settings.get("createSession"):
        yield Effect("session", (f"{asked.project}.*.*",), "createSession")


def _copy(asked: Asked) -> Iterator[Effect]:
    destination, settings = asked.destination, asked.configuration
    assert destination is not None, "a copy without a destination"
    operation = text(settings, "operationType")
    if operation not in _OPERATIONS:
        raise BadRequest(400, "the operationType is not known")
    sources = tuple(str(each) for each in asked.sources)
    yield Effect("read_rows", sources, "copy")
    yield from _written(asked, destination, ())
    if operation in ("SNAPSHOT", "CLONE"):
        yield Effect("define", (str(destination),), "operationType")
    if any(each.project != destination.project for each in asked.sources):
        yield Effect("export", sources, "destinationTable", (destination.project,))


def _written(
    asked: Asked, destination: TableName, options: tuple[str, ...], places: tuple[str, ...] = ()
) -> Iterator[Effect]:
    """What a job does to the table where it puts its rows; places: where they come from."""
    settings, objects = asked.configuration, (str(destination),)
    yield Effect("write_rows", objects, "destinationTable", places)
    if asked.write in _TRUNCATES:
        yield Effect("destroy", objects, "writeDisposition")
    if options:
        yield Effect("define", objects, "schemaUpdateOptions")
    # Of a table that is there and stays. A new one that ends some day takes nothing away.
    if asked.write != "WRITE_EMPTY":
        yield from _expiring(settings.get("timePartitioning") or {}, objects, "timePartitioning", ("expirationMs",))
        yield from _expiring(settings.get("destinationTableProperties") or {}, objects, "destinationTableProperties")
        yield from _expiring(settings, objects, "copy", ("destinationExpirationTime",))


# -- definitions ----------------------------------------------------------------------------------------


def _dataset(asked: Asked) -> Iterator[Effect]:
    body, objects = asked.body or {}, (asked.object,)
    yield Effect("define", objects, asked.method.name)
    whole = asked.method.http == "PUT"
    if "access" in body or whole:
        given = [each for each in body.get("access") or [] if each]
        yield Effect("grant", objects, "access", tuple(dict.fromkeys(_grantee(each) for each in given)))
    if _retagged(asked):
        yield Effect("grant", objects, "resourceTags")
    if asked.method.http != "POST":
        yield from _expiring(body, objects, "expiration", tuple(sorted(_EXPIRATIONS)))
    for key in ("linkedDatasetSource", "externalDatasetReference", "externalCatalogDatasetOptions"):
        if body.get(key):
            yield Effect("export", objects, key, _places(body[key]))
    if linked := borrowed(asked):
        yield Effect("read_rows", tuple(map(str, linked)), "linkedDatasetSource")


def _grantee(access: dict[str, Any]) -> str:
    """Whom one entry of a dataset's access is for: a principal, or a view, routine or dataset that may read it."""
    for key in ("userByEmail", "groupByEmail", "domain", "specialGroup", "iamMember"):
        if access.get(key):
            return f"{key}:{access[key]}"
    for key in ("view", "routine", "dataset"):
        if reference := access.get(key):
            reference = reference.get("dataset") or reference
            names = (reference.get(part) for part in ("projectId", "datasetId", "tableId", "routineId"))
            return f"{key}:{'.'.join(name for name in names if name)}"
    return "*"


def _table(asked: Asked) -> Iterator[Effect]:
    body, objects = asked.body or {}, (asked.object,)
    yield Effect("define", objects, asked.method.name)
    if asked.method.http != "POST":
        yield from _expiring(body, objects, "expiration", tuple(sorted(_EXPIRATIONS)))
        yield from _expiring(body.get("timePartitioning") or {}, objects, "timePartitioning", ("expirationMs",))
    if _retagged(asked):
        yield Effect("grant", objects, "resourceTags")
    if asked.method.http == "PUT" and body.get("schema"):
        yield Effect("grant", objects, "schema")  # what it does not repeat of policy tags may be gone
    else:
        yield from _tagged(body, asked.object)
    if definition := body.get("externalDataConfiguration"):
        found = external("", definition)
        yield Effect("export", objects, "externalDataConfiguration", (*found.uris, *_some(found.connection)))
    for key in ("biglakeConfiguration", "externalCatalogTableOptions"):
        if body.get(key):
            yield Effect("export", objects, key, _places(body[key]))
    view = body.get("view") or {}
    if code := view.get("userDefinedFunctionResources"):
        uris = tuple(text(each, "resourceUri") or "inline" for each in code)
        yield Effect("export", objects, "userDefinedFunctionResources", uris)
    if replicated := (body.get("tableReplicationInfo") or {}).get("sourceTable"):
        source = table_name(replicated, asked.project)
        yield Effect("read_rows", (str(source),), "tableReplicationInfo")
        if source.project != asked.project:
            yield Effect("export", (str(source),), "tableReplicationInfo", (asked.project,))


def borrowed(asked: Asked) -> tuple[TableName, ...]:
    """The tables whose rows a definition brings to another place without SQL; of a dataset its own name, all of it."""
    body = asked.body or {}
    found = []
    if source := (body.get("tableReplicationInfo") or {}).get("sourceTable"):
        found.append(table_name(source, asked.project))
    if linked := (body.get("linkedDatasetSource") or {}).get("sourceDataset"):
        found.append(TableName(text(linked, "projectId") or asked.project, text(linked, "datasetId"), "*"))
    return tuple(found)


def _retagged(asked: Asked) -> bool:
    """Tell whether tags, on which rights may depend, are set. bq patches with no tags at all: that changes none."""
    body = asked.body or {}
    return "resourceTags" in body and not (asked.method.http == "PATCH" and body["resourceTags"] == {})


def _routine(asked: Asked) -> Iterator[Effect]:
    body, objects = asked.body or {}, (asked.object,)
    yield Effect("define", objects, asked.method.name)
    for key in _OUTSIDE_ROUTINE:
        if body.get(key):
            yield Effect("export", objects, key, _places(body[key]))
    if libraries := body.get("importedLibraries"):
        yield Effect("export", objects, "importedLibraries", tuple(libraries))
    if text(body, "securityMode").upper() == "DEFINER":
        yield Effect("grant", objects, "securityMode")
    if body.get("dataGovernanceType"):
        yield Effect("grant", objects, "dataGovernanceType")


def _model(asked: Asked) -> Iterator[Effect]:
    body, objects = asked.body or {}, (asked.object,)
    yield Effect("define", objects, asked.method.name)
    yield from _expiring(body, objects, "expiration", ("expirationTime",))


def _expiring(
    settings: dict[str, Any], objects: tuple[str, ...], why: str, keys: tuple[str, ...] = ("expirationTime",)
) -> Iterator[Effect]:
    """What ends some day is destroyed then; a value of null takes the end away."""
    if any(settings.get(key) is not None for key in keys):
        yield Effect("destroy", objects, why)


def _tagged(settings: dict[str, Any], name: str) -> Iterator[Effect]:
    """Policy tags and data policies of columns say who may read them; an empty list takes them away."""
    fields = (settings.get("schema") or {}).get("fields") or []
    keys = ("policyTags", "categories", "dataPolicies", "dataPolicyList", "dataGovernanceTagsInfo")
    while fields:
        if any(key in each for each in fields for key in keys):
            yield Effect("grant", (name,), "schema.policyTags")
            return
        fields = [inner for each in fields for inner in each.get("fields") or []]


def _places(value: Any) -> tuple[str, ...]:
    """All texts of an object that names places outside: addresses, connections, datasets. Any: see bodies.py."""
    if isinstance(value, str):
        return _some(value)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return tuple(dict.fromkeys(place for child in children for place in _places(child)))


def _some(value: str) -> tuple[str, ...]:
    return (value,) if value else ()
