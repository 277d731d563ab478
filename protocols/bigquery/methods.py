"""The table of all methods of BigQuery's REST v2, and which of them a request line asks for.

Verbs are by effect, the same for SQL and for the methods that do the like without SQL (bigquery note 4). A method's own
verb is that of its plain use; what else a request does is found in effects.py. What is not in the table is refused.

A path is read by its decoded segments and written anew from what was read (Route.path), so that the gate and the
service cannot read it differently: an encoded or doubled separator and segments of dots are refused, and ids are of the
letters that the service documents. Projects are named by their id: by its number a project would escape every rule.

Left out: batch requests (each inner request brings a credential of its own), the simple upload (uploadType=media: it
has no configuration), and Google's newer upload protocol (X-Goog-Upload-*).

Source: the public discovery document bigquery v2, revisions 20250528 and 20261009; bigquery note 3 and 4; "Creating and
managing projects" and "Naming" of datasets, tables, models, routines, jobs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import quote, unquote_to_bytes

from proxy.core.events import Kind
from proxy.core.http.heads import BadRequest

KIND_OF: Final[Mapping[str, Kind]] = {
    "read_rows": "read",
    "write_rows": "write",
    "destroy": "delete",
    "define": "define",
    "grant": "admin",
    "export": "transfer",
    "call": "execute",
    "inspect": "read",
    "session": "session",
    "cancel": "session",
    "poll": "session",
    "upload": "session",
    "discover": "read",
    "UNKNOWN": "unknown",
}
VERBS: Final = frozenset(KIND_OF)

PATH_LIMIT: Final = 8192  # bytes; a table's name may have 1,024 bytes, each encoded in three
NAME_LIMIT: Final = 1024  # of a dataset, table, job: their documentation

# name, HTTP method, path, verb, schema of the body, parameters of the query. Parameters are of the types that
# parameters.py reads: s (text), b (true or false), i (an integer); "*" behind one may come more than once.
_TEXT: Final = """
datasets.delete  DELETE projects/P/datasets/D  destroy -  deleteContents:b
datasets.get  GET projects/P/datasets/D  inspect -  accessPolicyVersion:i datasetView:s
datasets.insert  POST projects/P/datasets  define Dataset  accessPolicyVersion:i
datasets.list  GET projects/P/datasets  inspect -  all:b filter:s maxResults:i pageToken:s
datasets.patch  PATCH projects/P/datasets/D  define Dataset  accessPolicyVersion:i updateMode:s
datasets.undelete  POST projects/P/datasets/D:undelete  define UndeleteDatasetRequest
datasets.update  PUT projects/P/datasets/D  define Dataset  accessPolicyVersion:i updateMode:s
jobs.cancel  POST projects/P/jobs/J/cancel  cancel -  location:s projection:s
jobs.delete  DELETE projects/P/jobs/J/delete  destroy -  location:s
jobs.get  GET projects/P/jobs/J  inspect -  location:s projection:s
jobs.getQueryResults  GET projects/P/queries/J  read_rows -  location:s maxResults:i pageToken:s startIndex:i
  timeoutMs:i formatOptions.timestampOutputFormat:s formatOptions.useInt64Timestamp:b
jobs.insert  POST projects/P/jobs  call Job
jobs.list  GET projects/P/jobs  inspect -  allUsers:b maxCreationTime:i maxResults:i minCreationTime:i pageToken:s
  parentJobId:s projection:s stateFilter:s*
jobs.query  POST projects/P/queries  call QueryRequest
models.delete  DELETE projects/P/datasets/D/models/M  destroy
models.get  GET projects/P/datasets/D/models/M  inspect
models.list  GET projects/P/datasets/D/models  inspect -  maxResults:i pageToken:s
models.patch  PATCH projects/P/datasets/D/models/M  define Model
projects.getServiceAccount  GET projects/P/serviceAccount  inspect
projects.list  GET projects  inspect -  maxResults:i pageToken:s
routines.delete  DELETE projects/P/datasets/D/routines/R  destroy
routines.get  GET projects/P/datasets/D/routines/R  inspect -  readMask:s
routines.getIamPolicy  POST projects/P/datasets/D/routines/R:getIamPolicy  inspect GetIamPolicyRequest
routines.insert  POST projects/P/datasets/D/routines  define Routine
routines.list  GET projects/P/datasets/D/routines  inspect -  filter:s maxResults:i pageToken:s readMask:s
routines.setIamPolicy  POST projects/P/datasets/D/routines/R:setIamPolicy  grant SetIamPolicyRequest
routines.testIamPermissions  POST projects/P/datasets/D/routines/R:testIamPermissions  inspect TestIamPermissionsRequest
routines.update  PUT projects/P/datasets/D/routines/R  define Routine
rowAccessPolicies.batchDelete  POST projects/P/datasets/D/tables/T/rowAccessPolicies:batchDelete  grant
  BatchDeleteRowAccessPoliciesRequest
rowAccessPolicies.delete  DELETE projects/P/datasets/D/tables/T/rowAccessPolicies/A  grant -  force:b
rowAccessPolicies.get  GET projects/P/datasets/D/tables/T/rowAccessPolicies/A  inspect
rowAccessPolicies.getIamPolicy  POST projects/P/datasets/D/tables/T/rowAccessPolicies/A:getIamPolicy  inspect
  GetIamPolicyRequest
rowAccessPolicies.insert  POST projects/P/datasets/D/tables/T/rowAccessPolicies  grant RowAccessPolicy
rowAccessPolicies.list  GET projects/P/datasets/D/tables/T/rowAccessPolicies  inspect -  pageSize:i pageToken:s
rowAccessPolicies.testIamPermissions  POST projects/P/datasets/D/tables/T/rowAccessPolicies/A:testIamPermissions
  inspect TestIamPermissionsRequest
rowAccessPolicies.update  PUT projects/P/datasets/D/tables/T/rowAccessPolicies/A  grant RowAccessPolicy
tabledata.insertAll  POST projects/P/datasets/D/tables/T/insertAll  write_rows TableDataInsertAllRequest
tabledata.list  GET projects/P/datasets/D/tables/T/data  read_rows -  maxResults:i pageToken:s selectedFields:s
  startIndex:i formatOptions.timestampOutputFormat:s formatOptions.useInt64Timestamp:b
tables.delete  DELETE projects/P/datasets/D/tables/T  destroy
tables.get  GET projects/P/datasets/D/tables/T  inspect -  selectedFields:s view:s
tables.getIamPolicy  POST projects/P/datasets/D/tables/T:getIamPolicy  inspect GetIamPolicyRequest
tables.insert  POST projects/P/datasets/D/tables  define Table
tables.list  GET projects/P/datasets/D/tables  inspect -  maxResults:i pageToken:s
tables.patch  PATCH projects/P/datasets/D/tables/T  define Table  autodetect_schema:b
tables.setIamPolicy  POST projects/P/datasets/D/tables/T:setIamPolicy  grant SetIamPolicyRequest
tables.testIamPermissions  POST projects/P/datasets/D/tables/T:testIamPermissions  inspect TestIamPermissionsRequest
tables.update  PUT projects/P/datasets/D/tables/T  define Table  autodetect_schema:b
"""
_UPLOADS: Final = """
upload.insert  POST projects/P/jobs  call Job  uploadType:s
upload.chunk  PUT projects/P/jobs  upload -  uploadType:s upload_id:s
upload.cancel  DELETE projects/P/jobs  upload -  uploadType:s upload_id:s
"""
_NAME_OF: Final = {
    "P": "project", "D": "dataset", "T": "table", "J": "job", "R": "routine", "M": "model", "A": "policy",
}  # fmt: skip
# Where the methods live. The second is what node asks for with BIGQUERY_EMULATOR_HOST: bigquery note 2.
_PLAIN_PREFIXES: Final = (("bigquery", "v2"), ())
_UPLOAD_PREFIXES: Final = (("upload", "bigquery", "v2"), ("resumable", "upload", "bigquery", "v2"))

_RAW: Final = re.compile(r"/[!-~]*")  # visible ASCII: all else comes encoded
_TWO_READINGS: Final = re.compile(r"%(?:2[fF]|5[cC]|00)|[\\;#?]|//|%(?![0-9A-Fa-f]{2})")
# "example.com:" was put before the ids of projects of a domain. No id is all digits: that is a project's number.
_PROJECT: Final = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,252}:)?[a-z][a-z0-9-]{0,62}")
_IDS: Final = {
    "dataset": re.compile(r"[A-Za-z0-9_]{1,1024}"),
    "job": re.compile(r"[A-Za-z0-9_-]{1,1024}"),
    "routine": re.compile(r"[A-Za-z0-9_]{1,256}"),
    "model": re.compile(r"[A-Za-z0-9_-]{1,1024}"),
    "policy": re.compile(r"[A-Za-z0-9_-]{1,256}"),
}
# A partition ($20260101) or an instant (@-3600000) of a table.
_TABLE: Final = re.compile(r"([^$@]+)(\$[0-9A-Za-z_]{1,64}|@-?[0-9]{1,16}(?:-(?:-?[0-9]{1,16})?)?)?")
_TABLE_CATEGORIES: Final = frozenset({"Pc", "Pd", "Zs"})

Place = Literal["plain", "upload"]


@dataclass(frozen=True, slots=True)
class Method:
    """One method. http: of HTTP. path: its segments, ids by letter. schema: of its body, "" where it has none."""

    name: str
    http: str
    path: tuple[str, ...]
    verb: str
    schema: str
    parameters: Mapping[str, str]
    place: Place = "plain"

    @property
    def kind(self) -> Kind:
        return KIND_OF[self.verb]


@dataclass(frozen=True, slots=True)
class Route:
    """A request line, read: the method, and the ids in its path. decorator: of a table, "$20260101", "@-3600000"."""

    method: Method
    ids: Mapping[str, str] = field(default_factory=dict)
    decorator: str = ""

    @property
    def path(self) -> str:
        """The path for the target, in the one spelling that the gate writes."""
        segments = []
        for segment in self.method.path:
            letter, colon, verb = segment.partition(":")
            name = _NAME_OF.get(letter)
            if name is None:
                segments.append(segment)
                continue
            value = self.ids[name] + (self.decorator if name == "table" else "")
            segments.append(quote(value, safe=":") + colon + verb)
        prefix = _UPLOAD_PREFIXES[0] if self.method.place == "upload" else _PLAIN_PREFIXES[0]
        return "/" + "/".join((*prefix, *segments))


def _table(text: str, place: Place) -> dict[str, Method]:
    found = {}
    for line in re.sub(r"\n\s+", " ", text.strip()).splitlines():
        name, http, path, verb, *rest = line.split()
        schema = rest[0] if rest and rest[0] != "-" else ""
        parameters = {key: kind for key, _, kind in (word.partition(":") for word in rest[1:])}
        found[name] = Method(name, http, tuple(path.split("/")), verb, schema, parameters, place)
    return found


METHODS: Final[Mapping[str, Method]] = _table(_TEXT, "plain") | _table(_UPLOADS, "upload")


def route(http: str, path: str) -> Route:
    """Find the method of a request: http as a method override left it, path without its query. Raises BadRequest."""
    segments = _segments(path)
    places: list[tuple[Place, tuple[str, ...]]] = [
        *(("upload", prefix) for prefix in _UPLOAD_PREFIXES),
        *(("plain", prefix) for prefix in _PLAIN_PREFIXES),
    ]
    for place, prefix in places:
        if segments[: len(prefix)] != prefix:
            continue
        rest = segments[len(prefix) :]
        for method in METHODS.values():
            if method.place == place and method.http == http and _fits(method.path, rest):
                return _route(method, rest)
    # One answer for all: the path itself is not repeated, as clients take a 404 whose text names a job for its own.
    raise BadRequest(404, "gatecast: BigQuery's REST API v2 has no such method, or it is not served here")


def is_batch(path: str) -> bool:
    """Tell whether a path is that of batch requests, which hold requests with credentials of their own."""
    return path.partition("?")[0].lower().lstrip("/").startswith("batch")


def _segments(path: str) -> tuple[str, ...]:
    """Decode a path, once; refuse what another reader might take for another path."""
    if len(path) > PATH_LIMIT:
        raise BadRequest(414, "the path is too long")
    if not _RAW.fullmatch(path) or _TWO_READINGS.search(path):
        raise BadRequest(400, "the path is malformed, or has an encoded or doubled separator")
    try:
        segments = tuple(unquote_to_bytes(each).decode() for each in path[1:].split("/"))
    except UnicodeDecodeError as error:
        raise BadRequest(400, "the path is not UTF-8") from error
    if any(each in ("", ".", "..") or "%" in each or not each.isprintable() for each in segments):
        raise BadRequest(400, "the path has an empty segment, one of dots, or one that cannot be printed")
    return segments


def _fits(pattern: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    """Tell whether segments are a method's path. Only a last segment of an id can have a colon and a verb."""
    if len(pattern) != len(segments):
        return False
    for index, (expected, found) in enumerate(zip(pattern, segments, strict=True)):
        letter, _, verb = expected.partition(":")
        if letter not in _NAME_OF:
            if found != expected:
                return False
        elif index == len(pattern) - 1 and found.partition(":")[2] != verb:
            return False
    return True


def _route(method: Method, segments: tuple[str, ...]) -> Route:
    ids = {}
    decorator = ""
    for expected, found in zip(method.path, segments, strict=True):
        name = _NAME_OF.get(expected.partition(":")[0])
        if name is None:
            continue
        value = found.partition(":")[0] if ":" in expected else found
        if name == "table":
            value, decorator = table_id(value)
        ids[name] = checked_id(name, value)
    return Route(method, ids, decorator)


def checked_id(name: str, value: str) -> str:
    """Return an id of a kind ("project", "dataset", "job", ...) if it is one. Raises BadRequest."""
    if name == "table":
        found, decorator = table_id(value)
        if decorator:
            raise BadRequest(400, "a partition or an instant of a table cannot be named here")
        return found
    if name == "project":
        if value.isdecimal():
            raise BadRequest(400, "gatecast: name the project by its id, not by its number")
        good = _PROJECT.fullmatch(value)
    else:
        good = _IDS[name].fullmatch(value)
    if good is None:
        raise BadRequest(400, f"the {name} has no valid id")
    return value


def table_id(value: str) -> tuple[str, str]:
    """Split a table's id into the table and its decorator, "" where it has none. Raises BadRequest.

    Letters, marks, numbers, connectors, dashes and spaces make a name ("Table naming"); no dot and no star, so that
    "project.dataset.table" has one reading.
    """
    found = _TABLE.fullmatch(value)
    if found is None or len(found[1].encode("utf-8", "replace")) > NAME_LIMIT:
        raise BadRequest(400, "the table has no valid id")
    for char in found[1]:
        category = unicodedata.category(char)
        if category[0] not in "LMN" and category not in _TABLE_CATEGORIES:
            raise BadRequest(400, "the table has no valid id")
    return found[1], found[2] or ""
