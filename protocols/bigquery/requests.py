"""A request of BigQuery's REST API, read: which method, of what, and everything in its body that changes its meaning.

read_line() reads what is known before the body comes: whether there is one, and of which form. read_request() reads the
whole. Both raise BadRequest for what the table of methods does not have, and for what two readers could read
differently. What is decided on is what leaves: Asked.target() and Asked.wire() are written anew from what was read.

GoogleSQL only: useLegacySql is set to false where the request is silent (silence means legacy), and refused where it
says true; so is a #legacySQL prefix. References have the project of the path where they name none. An id in the body
has to be that of the path.

asked.special names what only a rule that knows it should allow: reservation, continuous, create_session,
service_account (another identity runs the query), secure_context (row policies may read it), kms_key, copy_files.

Source: bigquery note 3 and 5; reference of jobs (JobConfigurationQuery, QueryRequest), tables, datasets, routines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from protocols.bigquery.bodies import (
    Range,
    inflate,
    is_json,
    media_type,
    read_multipart,
    read_object,
    read_range,
    write_object,
)
from protocols.bigquery.body_schemas import check
from protocols.bigquery.methods import Method, Route, checked_id, is_batch, route
from protocols.bigquery.parameters import Parameters, check_fields, http_method, read_parameters
from protocols.bigquery.queries import Query, TableName, integer, read_properties, read_query, table_name, text
from proxy.core.http.heads import BadRequest, RequestHead

# Of a multipart upload that is read whole, in bytes: Python sends one up to 5 MB, all clients' larger ones stream. Ours
MULTIPART_LIMIT: Final = 32 * 1024 * 1024
LOCATION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_UPLOAD_ID: Final = re.compile(r"[A-Za-z0-9_.~:/+=-]{1,1024}")

JobKind = Literal["", "query", "load", "copy", "extract"]
BodyForm = Literal["none", "form", "json", "multipart", "chunk"]

# What a job does with rows that are there. Source: writeDisposition, createDisposition of each JobConfiguration.
_WRITE: Final = frozenset({"WRITE_TRUNCATE", "WRITE_TRUNCATE_DATA", "WRITE_APPEND", "WRITE_EMPTY"})
_CREATE: Final = frozenset({"CREATE_IF_NEEDED", "CREATE_NEVER"})
_WRITE_DEFAULT: Final = {"query": "WRITE_EMPTY", "load": "WRITE_APPEND", "copy": "WRITE_EMPTY"}
# Which member of a body names what the path names, and how.
_REFERENCES: Final = {
    "Dataset": ("datasetReference", {"projectId": "project", "datasetId": "dataset"}),
    "Table": ("tableReference", {"projectId": "project", "datasetId": "dataset", "tableId": "table"}),
    "Routine": ("routineReference", {"projectId": "project", "datasetId": "dataset", "routineId": "routine"}),
    "Model": ("modelReference", {"projectId": "project", "datasetId": "dataset", "modelId": "model"}),
    "RowAccessPolicy": (
        "rowAccessPolicyReference",
        {"projectId": "project", "datasetId": "dataset", "tableId": "table", "policyId": "policy"},
    ),
}


@dataclass(frozen=True, slots=True)
class Line:
    """What a request line and its headers say. form: of the body; "chunk": bytes of an upload, never looked into."""

    route: Route
    form: BodyForm
    query: str
    upload: Literal["", "multipart", "resumable"] = ""

    @property
    def method(self) -> Method:
        return self.route.method


@dataclass(frozen=True, slots=True)
class Embedded:
    """SQL in a body that is no query of its own: where it stands, and of what form.

    form: "query" (of a view), "expression" (a filter, a default value), "routine" (the body of one).
    """

    where: str
    text: str
    form: Literal["query", "expression", "routine"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read. Ids are "" where there is none. job: of jobs.insert, jobs.query and uploads; else "".

    body: checked, without what only answers have, with useLegacySql set. content: the JSON as it came, inflated.
    media: type and data of a multipart upload. destination, write, create: where a job puts rows. sources: tables that
    a copy or an extract reads. uris: what a load reads, an extract writes. wait_ms: timeoutMs of jobs.query.
    """

    line: Line
    ids: Mapping[str, str]
    parameters: Parameters
    location: str = ""
    body: dict[str, Any] | None = None
    content: bytes = b""
    media: tuple[str, bytes] | None = None
    job: JobKind = ""
    query: Query | None = None
    destination: TableName | None = None
    write: str = ""
    create: str = ""
    sources: tuple[TableName, ...] = ()
    uris: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False
    job_timeout_ms: int | None = None
    wait_ms: int | None = None
    request_id: str = ""
    reservation: str = ""
    results_format: str = ""
    special: tuple[str, ...] = ()
    sql: tuple[Embedded, ...] = ()
    upload_id: str = ""
    range: Range | None = None

    @property
    def method(self) -> Method:
        return self.line.method

    def id(self, name: str) -> str:
        """Return an id: project, dataset, table, job, routine, model or policy."""
        return self.ids.get(name, "")

    @property
    def project(self) -> str:
        return self.id("project")

    @property
    def object(self) -> str:
        """What the method is about, in three parts: "project.dataset.table", "*" where it names less."""
        name = self.id("table") or self.id("routine") or self.id("model")
        return ".".join((self.project or "*", self.id("dataset") or "*", name or "*"))

    @property
    def session_id(self) -> str:
        """The session that a job runs in, "" for none."""
        if self.query is not None:
            return self.query.session_id
        return read_properties(self.configuration).get("session_id", "") if self.job == "load" else ""

    @property
    def configuration(self) -> dict[str, Any]:
        """The part of a job's body that says what is done: of jobs.query the body itself."""
        body = self.body or {}
        if self.method.schema == "QueryRequest":
            return body
        found = body.get("configuration", {}).get(self.job) if self.job else None
        return found if isinstance(found, dict) else {}

    def target(self) -> str:
        """Return path and query for the target."""
        mask = self.parameters.fields
        query = self.parameters.encoded("" if mask is None else mask.upstream(self.method.name))
        return f"{self.line.route.path}?{query}"

    def wire(self) -> bytes:
        """Return the JSON for the target. Rows to insert go as they came: no reading of their numbers is lost."""
        if self.body is None:
            return b""
        return self.content if self.method.name == "tabledata.insertAll" else write_object(self.body)


def read_line(head: RequestHead) -> Line:
    """Read all of a request but its body; the path without the gate's own prefix. Raises BadRequest."""
    check_fields(head)
    path, _, query = head.target.partition("?")
    if is_batch(path):
        raise BadRequest(404, "gatecast: batch requests are not served; send each request by itself")
    http, form = http_method(head)
    found = route(http, path)
    if found.method.place == "upload":
        return _upload_line(found, head, query)
    if form:
        return Line(found, "form", query)
    return Line(found, "json" if http in ("POST", "PUT", "PATCH") else "none", query)


def read_request(head: RequestHead, body: bytes) -> Asked:
    """Read a whole request. body: as it came; of an upload's chunk it is not looked at. Raises BadRequest."""
    line = read_line(head)
    raw = _query_text(line, head, body)
    parameters = read_parameters(raw, line.method.parameters)
    asked = Asked(line, dict(line.route.ids), parameters, _location(parameters.get("location")))
    if line.form == "chunk":
        return _chunk(asked, head)
    document, content, media = _document(line, head, body)
    if not line.method.schema:
        if document or content.strip() not in (b"", b"{}"):
            raise BadRequest(400, "this method has no body")
        return asked
    document = check(line.method.schema, document)
    ids = _referenced(line.method, asked.ids, document)
    asked = replace(asked, ids=ids, body=document, content=content, media=media)
    if line.method.schema in ("Job", "QueryRequest"):
        return _job(asked, ids, document)
    if line.method.schema in _REFERENCES:
        return replace(asked, sql=_embedded(document), special=_kms(document))
    return asked


def _upload_line(found: Route, head: RequestHead, query: str) -> Line:
    """Read the line of an upload. Its type is said by the query alone. Source: "Upload types"."""
    method = found.method
    parameters = read_parameters(query, method.parameters)
    kind = parameters.get("uploadType")
    if method.name == "upload.insert" and kind == "multipart":
        return Line(found, "multipart", query, "multipart")
    if kind != "resumable":
        raise BadRequest(400, "gatecast: uploads are of the types multipart and resumable")
    if method.name != "upload.insert":
        if not _UPLOAD_ID.fullmatch(parameters.get("upload_id")):
            raise BadRequest(400, "the upload has no valid id")
        if head.get("content-encoding") is not None:
            raise BadRequest(415, "the data of an upload comes plain")
        return Line(found, "chunk", query, "resumable")
    return Line(found, "json", query, "resumable")


def _query_text(line: Line, head: RequestHead, body: bytes) -> str:
    """Return the query: of an overridden GET it is the body."""
    if line.form != "form":
        return line.query
    if line.query and body:
        raise BadRequest(400, "the parameters come in the query and in the body")
    try:
        return inflate(body, head.get("content-encoding")).decode("ascii") or line.query
    except UnicodeDecodeError as error:
        raise BadRequest(400, "the query is malformed") from error


def _chunk(asked: Asked, head: RequestHead) -> Asked:
    found = read_range(head.get("content-range")) if asked.method.name == "upload.chunk" else None
    return Asked(asked.line, asked.ids, asked.parameters, range=found, upload_id=asked.parameters.get("upload_id"))


def _document(line: Line, head: RequestHead, body: bytes) -> tuple[dict[str, Any], bytes, tuple[str, bytes] | None]:
    """Return the body's object, its JSON, and the data that comes with it."""
    if line.form == "form":
        return {}, b"", None
    if line.form == "multipart":
        plain = inflate(body, head.get("content-encoding"), MULTIPART_LIMIT)
        content, kind, data = read_multipart(head.get("content-type"), plain)
        return read_object(content), content, (kind, data)
    content = inflate(body, head.get("content-encoding"))
    if line.form == "none" and content:
        raise BadRequest(400, "this method has no body")
    if not content.strip():
        return {}, b"", None
    if not is_json(head.get("content-type")):
        raise BadRequest(415, f"bodies are JSON, not {media_type(head.get('content-type'))[:80]!r}")
    return read_object(content), content, None


def _location(value: str) -> str:
    if value and not LOCATION.fullmatch(value):
        raise BadRequest(400, "the location is malformed")
    return value


def _referenced(method: Method, ids: Mapping[str, str], document: dict[str, Any]) -> dict[str, str]:
    """Return the ids of a request with those that its body names; an insert names its own, all others the path's."""
    found = dict(ids)
    known = _REFERENCES.get(method.schema)
    if known is None:
        return found
    member, keys = known
    reference = document.get(member) or {}
    for key, name in keys.items():
        value = reference.get(key)
        if value is None:
            continue
        checked_id(name, value)
        if found.setdefault(name, value) != value:
            raise BadRequest(400, f"the {name} in the body is not that of the path")
    missing = next((name for name in keys.values() if name not in found), None)
    if missing is not None:
        raise BadRequest(400, f"the body names no {missing}")
    return found


# -- jobs -----------------------------------------------------------------------------------------------


def _job(asked: Asked, ids: dict[str, str], body: dict[str, Any]) -> Asked:
    """Read jobs.insert, an upload's configuration, or jobs.query; ids takes the job's own."""
    project = ids["project"]
    if asked.method.schema == "QueryRequest":
        kind: JobKind = "query"
        whole = settings = body
        location = _location(text(body, "location"))
    else:
        whole = body.get("configuration") or {}
        kind, settings = _kind(whole)
        location = _reference(ids, body.get("jobReference") or {})
    if asked.line.upload and kind != "load":
        raise BadRequest(400, "an upload is of a load job")
    query = read_query(settings, project) if kind == "query" else None
    reference = settings.get("destinationTable")
    destination = None if reference is None else table_name(reference, project, decorated=True)
    if kind == "load" and not set(read_properties(settings)) <= {"session_id"}:
        raise BadRequest(400, "gatecast: a connection property is not known here")
    if kind in ("load", "copy") and destination is None:
        raise BadRequest(400, "the job has no destination")
    uris = settings.get("sourceUris" if kind == "load" else "destinationUris") or []
    if kind == "extract" and settings.get("destinationUri") is not None:
        uris = [*uris, text(settings, "destinationUri")]
    return replace(
        asked,
        ids=ids,
        location=location,
        job=kind,
        query=query,
        destination=destination,
        write=_disposition(settings, "writeDisposition", _WRITE, _WRITE_DEFAULT.get(kind, "")),
        create=_disposition(settings, "createDisposition", _CREATE, "CREATE_IF_NEEDED"),
        sources=_sources(kind, settings, project),
        uris=tuple(uris) if kind in ("load", "extract") else (),
        labels={key: value or "" for key, value in (whole.get("labels") or {}).items()},
        dry_run=whole.get("dryRun") is True,
        job_timeout_ms=integer(whole, "jobTimeoutMs"),
        wait_ms=integer(settings, "timeoutMs") if kind == "query" else None,
        request_id=text(whole, "requestId"),
        reservation=text(whole, "reservation"),
        results_format=text(whole, "queryResultsFormat"),
        special=_special(whole, settings, query),
    )


def _kind(whole: dict[str, Any]) -> tuple[JobKind, dict[str, Any]]:
    """Return of which kind a job is, and the configuration of that kind: there has to be one."""
    kinds: tuple[JobKind, ...] = ("query", "load", "copy", "extract")
    given = [kind for kind in kinds if whole.get(kind) is not None]
    if len(given) != 1:
        raise BadRequest(400, "a job is one of query, load, copy and extract")
    kind = given[0]
    if text(whole, "jobType").lower() not in ("", kind):
        raise BadRequest(400, "the job is of another type than its configuration")
    return kind, whole[kind]


def _reference(ids: dict[str, str], reference: dict[str, Any]) -> str:
    """Take a job's id from its reference; return its location."""
    if text(reference, "projectId") not in ("", ids["project"]):
        raise BadRequest(400, "the project in the body is not that of the path")
    if job := text(reference, "jobId"):
        ids["job"] = checked_id("job", job)
    return _location(text(reference, "location"))


def _disposition(settings: dict[str, Any], key: str, known: frozenset[str], default: str) -> str:
    value = text(settings, key)
    if value and value not in known:
        raise BadRequest(400, f"the {key} is not known")
    return value or default


def _sources(kind: JobKind, settings: dict[str, Any], project: str) -> tuple[TableName, ...]:
    if kind not in ("copy", "extract"):
        return ()
    one, many, model = (settings.get(key) for key in ("sourceTable", "sourceTables", "sourceModel"))
    if sum(1 for each in (one, many, model) if each) != 1:
        raise BadRequest(400, "the job has no source, or several kinds of it")
    if model:
        return (table_name({**model, "tableId": model.get("modelId")}, project, name="model"),)
    return tuple(table_name(each, project, decorated=True) for each in (many or [one]))


def _special(whole: dict[str, Any], settings: dict[str, Any], query: Query | None) -> tuple[str, ...]:
    found = [
        name
        for key, name in (
            ("reservation", "reservation"),
            ("continuous", "continuous"),
            ("createSession", "create_session"),
            ("secureContext", "secure_context"),
            ("copyFilesOnly", "copy_files"),
        )
        if whole.get(key) or settings.get(key)
    ]
    if query is not None and "service_account" in query.properties:
        found.append("service_account")
    return (*found, *_kms(settings))


def _kms(document: dict[str, Any]) -> tuple[str, ...]:
    keys = ("destinationEncryptionConfiguration", "encryptionConfiguration", "defaultEncryptionConfiguration")
    return ("kms_key",) if any(document.get(key) for key in keys) else ()


# -- definitions ----------------------------------------------------------------------------------------


def _embedded(document: dict[str, Any]) -> tuple[Embedded, ...]:
    """Find the SQL of a view, a routine, a row policy, of columns; views are made GoogleSQL."""
    found = []
    view = document.get("view")
    if view is not None:
        if view.get("useLegacySql"):
            raise BadRequest(400, "gatecast: legacy SQL is not served; write the view in GoogleSQL")
        view["useLegacySql"] = False
        found += [Embedded("view.query", text(view, "query"), "query")]
        found += [Embedded("view.foreignDefinitions", text(each, "query"), "query")
                  for each in view.get("foreignDefinitions") or []]  # fmt: skip
    if document.get("materializedView") is not None:
        found.append(Embedded("materializedView.query", text(document["materializedView"], "query"), "query"))
    if document.get("definitionBody") is not None:
        found.append(Embedded("definitionBody", text(document, "definitionBody"), "routine"))
    if document.get("filterPredicate") is not None:
        found.append(Embedded("filterPredicate", text(document, "filterPredicate"), "expression"))
    fields = (document.get("schema") or {}).get("fields") or []
    while fields:
        for each in fields:
            default = text(each, "defaultValueExpression")
            generated = ((each.get("generatedColumn") or {}).get("generatedExpressionInfo") or {}).get(
                "generationExpression"
            )
            found += [Embedded("schema", sql, "expression") for sql in (default, generated) if sql]
        fields = [inner for each in fields for inner in each.get("fields") or []]
    return tuple(each for each in found if each.text)
