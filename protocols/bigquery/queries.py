"""What a query's settings say beside its text: where names lead, what else it reads, where its rows go, who runs it.

The same members in a job's configuration.query and in the body of jobs.query; see requests.py, which uses this.

Connection properties are a closed list: each changes what names mean or whose rights hold. dataset_project_id is the
project of names without one; session_id ties the query to a session; service_account runs it as another identity;
query_label and time_zone change neither.

Source: bigquery note 5; reference of JobConfigurationQuery, ConnectionProperty, ExternalDataConfiguration; "GoogleSQL
and legacy SQL", query prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from protocols.bigquery.methods import checked_id, table_id
from proxy.core.http.heads import BadRequest

# Characters of a query. Source: "Quotas", maximum unresolved GoogleSQL query length: 1 MB.
QUERY_LIMIT: Final = 1024 * 1024
PROPERTIES: Final = frozenset({"dataset_project_id", "session_id", "service_account", "query_label", "time_zone"})
# Wherever it stands: which lines the service takes for a prefix is its own to say.
_LEGACY: Final = re.compile(r"#\s*legacy\s*sql", re.IGNORECASE)
_SCHEMA_OPTIONS: Final = frozenset({"ALLOW_FIELD_ADDITION", "ALLOW_FIELD_RELAXATION"})


@dataclass(frozen=True, slots=True)
class TableName:
    """A table (or a model), by all of its name. decorator: a partition or an instant of it."""

    project: str
    dataset: str
    table: str
    decorator: str = ""

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"


@dataclass(frozen=True, slots=True)
class External:
    """A table of tableDefinitions: its name in the query, and what it reads outside of BigQuery."""

    name: str
    uris: tuple[str, ...]
    connection: str


@dataclass(frozen=True, slots=True)
class Query:
    """A query and what changes its meaning. project, dataset: of names that have none ("" = such names are errors).

    dataset is "project.dataset". parameters: queryParameters as they came. code: JavaScript that comes with the query,
    by its URI, or "inline". maximum_bytes: maximumBytesBilled. schema_options: how its rows may change a table.
    """

    text: str
    project: str
    dataset: str = ""
    parameters: tuple[Mapping[str, Any], ...] = ()
    parameter_mode: str = ""
    tables: tuple[External, ...] = ()
    code: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    create_session: bool = False
    maximum_bytes: int | None = None
    schema_options: tuple[str, ...] = ()

    @property
    def session_id(self) -> str:
        return self.properties.get("session_id", "")


def read_query(settings: dict[str, Any], project: str) -> Query:
    """Read the settings of a query, checked against their schema; sets useLegacySql to false. Raises BadRequest."""
    sql = text(settings, "query")
    if not sql.strip():
        raise BadRequest(400, "the query has no text")
    if len(sql) > QUERY_LIMIT:
        raise BadRequest(400, f"the query is longer than {QUERY_LIMIT} characters")
    if settings.get("useLegacySql") or _LEGACY.search(sql):
        raise BadRequest(
            400, "gatecast: legacy SQL is not served; use GoogleSQL (bq: --nouse_legacy_sql), without #legacySQL"
        )
    settings["useLegacySql"] = False
    properties = read_properties(settings)
    names = properties.get("dataset_project_id") or project
    checked_id("project", names)
    return Query(
        text=sql,
        project=names,
        dataset=_default_dataset(settings.get("defaultDataset"), project),
        parameters=tuple(settings.get("queryParameters") or ()),
        parameter_mode=text(settings, "parameterMode"),
        tables=tuple(external(name, each or {}) for name, each in (settings.get("tableDefinitions") or {}).items()),
        code=tuple(
            text(each, "resourceUri") or "inline" for each in settings.get("userDefinedFunctionResources") or []
        ),
        properties=properties,
        create_session=settings.get("createSession") is True,
        maximum_bytes=integer(settings, "maximumBytesBilled"),
        schema_options=schema_options(settings),
    )


def external(name: str, definition: dict[str, Any]) -> External:
    """Read one external table: the places that it reads from."""
    options = definition.get("hivePartitioningOptions") or {}
    extra = (text(definition, "referenceFileSchemaUri"), text(options, "sourceUriPrefix"))
    uris = (*(definition.get("sourceUris") or ()), *(uri for uri in extra if uri))
    return External(name, uris, text(definition, "connectionId"))


def schema_options(settings: dict[str, Any]) -> tuple[str, ...]:
    """Return how a job's rows may change the schema of their table. Raises BadRequest."""
    found = tuple(settings.get("schemaUpdateOptions") or ())
    if not set(found) <= _SCHEMA_OPTIONS:
        raise BadRequest(400, "an option of schemaUpdateOptions is not known")
    return found


def table_name(reference: dict[str, Any], project: str, decorated: bool = False, name: str = "table") -> TableName:
    """Read a reference; project: of one that names none. Raises BadRequest."""
    owner = checked_id("project", text(reference, "projectId") or project)
    dataset = checked_id("dataset", text(reference, "datasetId"))
    value = text(reference, "tableId")
    if name == "table" and decorated:
        return TableName(owner, dataset, *table_id(value))
    return TableName(owner, dataset, checked_id(name, value))


def text(document: dict[str, Any], key: str) -> str:
    """Return a text of a checked document, "" where there is none."""
    value = document.get(key)
    return value if isinstance(value, str) else ""


def integer(document: dict[str, Any], key: str) -> int | None:
    """Return an integer of a checked document, which may come as its digits, None where there is none."""
    value = document.get(key)
    return None if value is None else int(value)


def _default_dataset(reference: dict[str, Any] | None, project: str) -> str:
    if reference is None:
        return ""
    owner = checked_id("project", text(reference, "projectId") or project)
    reference["projectId"] = owner  # said, so that no other default (dataset_project_id) can be taken for it
    return f"{owner}.{checked_id('dataset', text(reference, 'datasetId'))}"


def read_properties(settings: dict[str, Any]) -> dict[str, str]:
    """Read the connection properties of a query or a load. Raises BadRequest."""
    found: dict[str, str] = {}
    for each in settings.get("connectionProperties") or []:
        key = text(each, "key")
        if key not in PROPERTIES:
            raise BadRequest(400, "gatecast: a connection property is not known here")
        if key in found:
            raise BadRequest(400, f"the connection property {key} comes twice")
        found[key] = text(each, "value")
    return found
