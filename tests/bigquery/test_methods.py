"""The table of methods: every path to its method and back, and what is refused because it is not in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bigquery.body_schemas import SCHEMAS
from protocols.bigquery.methods import KIND_OF, METHODS, NAME_LIMIT, PATH_LIMIT, VERBS, checked_id, route, table_id
from proxy.core.events import KINDS
from proxy.core.http.heads import BadRequest

IDS = {"P": "my-project", "D": "sales", "T": "orders", "J": "job_1-a", "R": "f", "M": "m", "A": "only_eu"}
NAMES = {"P": "project", "D": "dataset", "T": "table", "J": "job", "R": "routine", "M": "model", "A": "policy"}

# What real clients ask for. Source: bigquery note 3.
CLIENTS = """
POST /bigquery/v2/projects/p/jobs                          jobs.insert
GET /bigquery/v2/projects/p/jobs/j                         jobs.get
GET /bigquery/v2/projects/p/queries/j                      jobs.getQueryResults
POST /bigquery/v2/projects/p/queries                       jobs.query
POST /projects/p/queries                                   jobs.query
GET /bigquery/v2/projects/p/datasets/d/tables/t/data       tabledata.list
POST /bigquery/v2/projects/p/datasets/d/tables/t/insertAll tabledata.insertAll
DELETE /bigquery/v2/projects/p/jobs/j/delete               jobs.delete
POST /bigquery/v2/projects/p/jobs/j/cancel                 jobs.cancel
POST /bigquery/v2/projects/p/datasets/d:undelete           datasets.undelete
POST /bigquery/v2/projects/p/datasets/d%3Aundelete         datasets.undelete
POST /bigquery/v2/projects/p/datasets/d/tables/t:setIamPolicy          tables.setIamPolicy
POST /bigquery/v2/projects/p/datasets/d/tables/t/rowAccessPolicies:batchDelete rowAccessPolicies.batchDelete
POST /upload/bigquery/v2/projects/p/jobs                   upload.insert
POST /resumable/upload/bigquery/v2/projects/p/jobs         upload.insert
PUT /upload/bigquery/v2/projects/p/jobs                    upload.chunk
DELETE /upload/bigquery/v2/projects/p/jobs                 upload.cancel
GET /bigquery/v2/projects                                  projects.list
GET /bigquery/v2/projects/example.com:p/datasets           datasets.list
GET /bigquery/v2/projects/p/serviceAccount                 projects.getServiceAccount
"""

UNKNOWN = """
GET /bigquery/v2/projects/p
GET /bigquery/v2/projects/p/datasets/d/tables/t/columns
POST /bigquery/v2/projects/p/datasets/d
POST /bigquery/v2/projects/p/datasets/d:delete
GET /bigquery/v2/projects/p/datasets/d:undelete
POST /bigquery/v2/projects/p/datasets/d/tables/t:undelete
POST /bigquery/v2/projects/p/datasets/d:undelete:undelete
DELETE /bigquery/v2/projects/p/jobs/j
HEAD /bigquery/v2/projects/p/jobs/j
OPTIONS /bigquery/v2/projects/p/jobs
PATCH /bigquery/v2/projects/p/datasets/d/routines/r
GET /bigquery/v3/projects/p/jobs
GET /Bigquery/v2/projects/p/jobs
GET /bigquery/v2/Projects/p/jobs
GET /bigquery/v2/bigquery/v2/projects/p/jobs
GET /upload/bigquery/v2/projects/p/jobs
"""

MALFORMED = """
GET /bigquery/v2/projects/p/datasets/d%2Ftables%2Ft
GET /bigquery/v2/projects/p//datasets/d
GET /bigquery/v2/projects/p/datasets/d/
GET /bigquery/v2/projects/p/datasets/../datasets/d
GET /bigquery/v2/projects/p/datasets/%2e%2e/d
GET /bigquery/v2/projects/p/datasets/d%00
GET /bigquery/v2/projects/p/datasets/d%252F
GET /bigquery/v2/projects/p/datasets/d%zz
GET /bigquery/v2/projects/p/datasets/%ff
GET /bigquery/v2/projects/p/datasets/d;x
GET /
GET bigquery/v2/projects/p/datasets/d
GET /bigquery/v2/projects/123456789/datasets/d
GET /bigquery/v2/projects/P/datasets/d
GET /bigquery/v2/projects/*/datasets/d
GET /bigquery/v2/projects/p/datasets/a.b
GET /bigquery/v2/projects/p/datasets/d/tables/a.b
GET /bigquery/v2/projects/p/datasets/d/tables/events_*
GET /bigquery/v2/projects/p/datasets/d/tables/a%60b
GET /bigquery/v2/projects/p/jobs/US.job
"""


def test_every_method_has_a_verb_a_kind_and_a_schema() -> None:
    assert len([name for name in METHODS if not name.startswith("upload.")]) == 47
    assert set(KIND_OF.values()) <= set(KINDS)
    for method in METHODS.values():
        assert method.verb in VERBS
        assert method.kind == KIND_OF[method.verb]
        assert not method.schema or method.schema in SCHEMAS
        assert (method.http in ("GET", "DELETE")) <= (not method.schema)
        assert all(kind in ("s", "b", "i", "s*") for kind in method.parameters.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_path_leads_to_its_method_and_back(name: str) -> None:
    method = METHODS[name]
    words = [word.partition(":") for word in method.path]
    path = "/".join(IDS.get(word, word) + colon + verb for word, colon, verb in words)
    prefix = "/upload/bigquery/v2/" if method.place == "upload" else "/bigquery/v2/"
    found = route(method.http, prefix + path)
    assert found.method is method
    assert found.ids == {NAMES[word]: IDS[word] for word, _, _ in words if word in IDS}
    assert found.path == prefix + path


@pytest.mark.parametrize("line", CLIENTS.strip().splitlines())
def test_paths_of_clients(line: str) -> None:
    http, path, name = line.split()
    assert route(http, path).method.name == name


@pytest.mark.parametrize("line", UNKNOWN.strip().splitlines())
def test_what_is_not_in_the_table_is_not_found(line: str) -> None:
    with pytest.raises(BadRequest) as caught:
        route(*line.split())
    assert caught.value.status == 404
    assert "job" not in caught.value.text, "Python would send a job anew"


@pytest.mark.parametrize("line", MALFORMED.strip().splitlines())
def test_what_has_two_readings_is_refused(line: str) -> None:
    with pytest.raises(BadRequest) as caught:
        route(*line.split())
    assert caught.value.status == 400


def test_a_project_is_named_by_its_id() -> None:
    with pytest.raises(BadRequest, match="not by its number"):
        checked_id("project", "123456789012")


def test_a_table_has_a_decorator() -> None:
    for value, expected in {
        "t$20260101": ("t", "$20260101"),
        "t@-3600000": ("t", "@-3600000"),
        "t@1700000000000-1700000001000": ("t", "@1700000000000-1700000001000"),
        "Straße 12-b_c": ("Straße 12-b_c", ""),
    }.items():
        assert table_id(value) == expected
    found = route("GET", "/bigquery/v2/projects/p/datasets/d/tables/t%2420260101/data")
    assert (found.ids["table"], found.decorator) == ("t", "$20260101")
    assert found.path == "/bigquery/v2/projects/p/datasets/d/tables/t%2420260101/data"
    with pytest.raises(BadRequest):
        checked_id("table", "t$20260101")


def test_names_have_limits() -> None:
    assert checked_id("dataset", "d" * NAME_LIMIT)
    assert table_id("t" * NAME_LIMIT)
    for kind in ("dataset", "table"):
        with pytest.raises(BadRequest):
            checked_id(kind, "d" * (NAME_LIMIT + 1))
    with pytest.raises(BadRequest) as caught:
        route("GET", "/" + "a" * PATH_LIMIT)
    assert caught.value.status == 414


@given(st.text(alphabet="projectsdatasetsjobs/:%2Fe.$@*-_ \u00e9", max_size=60))
def test_any_path_is_refused_or_read_once(tail: str) -> None:
    path = "/bigquery/v2/projects/p/" + tail
    try:
        found = route("GET", path)
    except BadRequest as bad:
        assert bad.status in (400, 404)
        return
    again = route("GET", found.path)
    assert (again.method, again.ids, again.decorator) == (found.method, found.ids, found.decorator)
