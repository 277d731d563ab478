"""Every door that does without SQL what SQL can do: its verbs and objects. Source: bigquery note 4, right column."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocols.bigquery.effects import Effect, effects
from protocols.bigquery.methods import KIND_OF, METHODS, VERBS
from protocols.bigquery.requests import read_request
from proxy.core.http.heads import BadRequest, RequestHead

V2 = "/bigquery/v2/projects/home-1"
T = {"projectId": "home-1", "datasetId": "d", "tableId": "t"}
U = {"projectId": "home-1", "datasetId": "d", "tableId": "u"}
FAR = {"projectId": "far-away", "datasetId": "x", "tableId": "y"}
TAGS = {"fields": [{"name": "r", "fields": [{"name": "a", "policyTags": {"names": []}}]}]}


def done(method: str, path: str, body: Any = None) -> tuple[Effect, ...]:
    data = b"" if body is None else json.dumps(body).encode()
    return effects(read_request(RequestHead(method, V2 + path, ()), data))


def verbs(method: str, path: str, body: Any = None) -> set[tuple[str, str]]:
    return {(each.verb, name) for each in done(method, path, body) for name in each.objects}


def job(**configuration: Any) -> set[tuple[str, str]]:
    return verbs("POST", "/jobs", {"configuration": configuration})


def query(**settings: Any) -> set[tuple[str, str]]:
    return job(query={"query": "SELECT 1", **settings})


def test_a_plain_query_has_only_the_effects_of_its_sql() -> None:
    assert query() == set()
    assert verbs("POST", "/queries", {"query": "DROP TABLE d.t"}) == set()


def test_a_query_that_writes() -> None:
    assert query(destinationTable=T) == {("write_rows", "home-1.d.t")}
    for disposition in ("WRITE_TRUNCATE", "WRITE_TRUNCATE_DATA"):
        found = query(destinationTable=T, writeDisposition=disposition)
        assert found == {("write_rows", "home-1.d.t"), ("destroy", "home-1.d.t")}
    found = query(destinationTable=T, writeDisposition="WRITE_APPEND", schemaUpdateOptions=["ALLOW_FIELD_ADDITION"])
    assert found == {("write_rows", "home-1.d.t"), ("define", "home-1.d.t")}
    assert query(destinationTable=FAR) == {("write_rows", "far-away.x.y"), ("export", "far-away.x.y")}


def test_what_a_query_brings_along() -> None:
    everything = "home-1.*.*"
    assert query(tableDefinitions={"e": {"sourceUris": ["gs://b"]}}) == {("export", everything)}
    assert query(userDefinedFunctionResources=[{"inlineCode": "x"}]) == {("export", everything)}
    assert query(createSession=True) == {("session", everything)}
    assert query(connectionProperties=[{"key": "service_account", "value": "x@y"}]) == {("grant", everything)}
    found = done("POST", "/queries", {"query": "x", "createSession": True})
    assert found == (Effect("session", ("home-1.*.*",), "createSession"),)


def test_a_dry_run_of_a_query_looks_only() -> None:
    assert job(dryRun=True, query={"query": "x", "destinationTable": T}) == {("inspect", "home-1.*.*")}
    assert verbs("POST", "/queries", {"query": "x", "dryRun": True}) == {("inspect", "home-1.*.*")}
    # Of other jobs it is undefined what a dry run does.
    assert ("write_rows", "home-1.d.t") in job(dryRun=True, load={"destinationTable": T})


def test_a_load() -> None:
    found = done("POST", "/jobs", {"configuration": {"load": {"destinationTable": T, "sourceUris": ["gs://b/x"]}}})
    assert found == (Effect("write_rows", ("home-1.d.t",), "destinationTable", ("gs://b/x",)),)
    assert ("destroy", "home-1.d.t") in job(load={"destinationTable": T, "writeDisposition": "WRITE_TRUNCATE"})
    assert ("define", "home-1.d.t") in job(
        load={"destinationTable": T, "schemaUpdateOptions": ["ALLOW_FIELD_RELAXATION"]}
    )
    assert ("destroy", "home-1.d.t") in job(load={"destinationTable": T, "timePartitioning": {"expirationMs": "1"}})
    assert ("destroy", "home-1.d.t") not in job(
        load={"destinationTable": T, "timePartitioning": {"expirationMs": "1"}, "writeDisposition": "WRITE_EMPTY"}
    )
    assert ("grant", "home-1.d.t") in job(load={"destinationTable": T, "schema": TAGS})
    assert ("session", "home-1.*.*") in job(load={"destinationTable": T, "createSession": True})


def test_a_copy() -> None:
    copy = {"sourceTable": T, "destinationTable": U}
    plain = {("read_rows", "home-1.d.t"), ("write_rows", "home-1.d.u")}
    assert job(copy=copy) == plain
    assert job(copy={**copy, "writeDisposition": "WRITE_TRUNCATE"}) == plain | {("destroy", "home-1.d.u")}
    assert job(copy={**copy, "operationType": "SNAPSHOT"}) == plain | {("define", "home-1.d.u")}
    assert job(copy={"sourceTable": T, "destinationTable": FAR}) == {
        ("read_rows", "home-1.d.t"), ("write_rows", "far-away.x.y"), ("export", "home-1.d.t"),
    }  # fmt: skip
    assert ("export", "far-away.x.y") in job(copy={"sourceTables": [T, FAR], "destinationTable": U})
    append = {**copy, "writeDisposition": "WRITE_APPEND", "destinationExpirationTime": "2026-01-01T00:00:00Z"}
    assert ("destroy", "home-1.d.u") in job(copy=append)
    with pytest.raises(BadRequest):
        job(copy={**copy, "operationType": "WILD"})


def test_an_extract() -> None:
    found = done("POST", "/jobs", {"configuration": {"extract": {"sourceTable": T, "destinationUris": ["gs://b"]}}})
    assert found == (
        Effect("read_rows", ("home-1.d.t",), "extract"),
        Effect("export", ("home-1.d.t",), "extract", ("gs://b",)),
    )


DOORS: list[tuple[str, str, Any, set[tuple[str, str]]]] = [
    ("GET", "/datasets/d/tables/t/data", None, {("read_rows", "home-1.d.t")}),
    ("GET", "/queries/j", None, {("read_rows", "home-1.*.*")}),
    ("POST", "/datasets/d/tables/t/insertAll", {"rows": []}, {("write_rows", "home-1.d.t")}),
    ("POST", "/datasets/d/tables/t/insertAll", {"rows": [], "templateSuffix": "_x"},
     {("write_rows", "home-1.d.t"), ("define", "home-1.d.t_x"), ("write_rows", "home-1.d.t_x")}),
    ("DELETE", "/datasets/d?deleteContents=true", None, {("destroy", "home-1.d.*")}),
    ("DELETE", "/datasets/d/tables/t", None, {("destroy", "home-1.d.t")}),
    ("DELETE", "/datasets/d/tables/t$2026", None, {("destroy", "home-1.d.t")}),
    ("DELETE", "/datasets/d/models/m", None, {("destroy", "home-1.d.m")}),
    ("DELETE", "/datasets/d/routines/r", None, {("destroy", "home-1.d.r")}),
    ("DELETE", "/jobs/j/delete", None, {("destroy", "home-1.*.*")}),
    ("POST", "/jobs/j/cancel", None, {("cancel", "home-1.*.*")}),
    ("GET", "/jobs?allUsers=true", None, {("inspect", "home-1.*.*")}),
    ("GET", "/datasets/d", None, {("inspect", "home-1.d.*")}),
    ("POST", "/datasets/d/tables/t:testIamPermissions", {"permissions": ["x"]}, {("inspect", "home-1.d.t")}),
    ("POST", "/datasets/d:undelete", None, {("define", "home-1.d.*")}),
    # Datasets
    ("POST", "/datasets", {"datasetReference": {"datasetId": "n"}, "defaultTableExpirationMs": "1"},
     {("define", "home-1.n.*")}),
    ("PATCH", "/datasets/d", {"description": "x"}, {("define", "home-1.d.*")}),
    ("PATCH", "/datasets/d", {"access": [{"role": "READER", "specialGroup": "allAuthenticatedUsers"}]},
     {("define", "home-1.d.*"), ("grant", "home-1.d.*")}),
    ("PATCH", "/datasets/d", {"access": None}, {("define", "home-1.d.*"), ("grant", "home-1.d.*")}),
    ("PUT", "/datasets/d", {"description": "x"}, {("define", "home-1.d.*"), ("grant", "home-1.d.*")}),
    ("PATCH", "/datasets/d", {"defaultTableExpirationMs": "3600000"},
     {("define", "home-1.d.*"), ("destroy", "home-1.d.*")}),
    ("PATCH", "/datasets/d", {"defaultTableExpirationMs": None}, {("define", "home-1.d.*")}),
    ("PATCH", "/datasets/d", {"maxTimeTravelHours": "48"}, {("define", "home-1.d.*"), ("destroy", "home-1.d.*")}),
    ("PATCH", "/datasets/d", {"resourceTags": {"a": "b"}}, {("define", "home-1.d.*"), ("grant", "home-1.d.*")}),
    # As bq update --description sends it.
    ("PATCH", "/datasets/d/tables/t", {"schema": None, "description": "x", "labels": {}, "resourceTags": {}},
     {("define", "home-1.d.t")}),
    ("PATCH", "/datasets/d/tables/t", {"resourceTags": None}, {("define", "home-1.d.t"), ("grant", "home-1.d.t")}),
    ("POST", "/datasets", {"datasetReference": {"datasetId": "n"}, "linkedDatasetSource": {"sourceDataset": {
        "projectId": "far-away", "datasetId": "x"}}},
     {("define", "home-1.n.*"), ("read_rows", "far-away.x.*"), ("export", "home-1.n.*")}),
    ("POST", "/datasets", {"datasetReference": {"datasetId": "n"}, "externalDatasetReference": {"connection": "c"}},
     {("define", "home-1.n.*"), ("export", "home-1.n.*")}),
    # Tables
    ("POST", "/datasets/d/tables", {"tableReference": T, "expirationTime": "1"}, {("define", "home-1.d.t")}),
    ("PATCH", "/datasets/d/tables/t", {"expirationTime": "1"}, {("define", "home-1.d.t"), ("destroy", "home-1.d.t")}),
    ("PUT", "/datasets/d/tables/t", {"timePartitioning": {"expirationMs": 1}},
     {("define", "home-1.d.t"), ("destroy", "home-1.d.t")}),
    ("PATCH", "/datasets/d/tables/t", {"schema": TAGS}, {("define", "home-1.d.t"), ("grant", "home-1.d.t")}),
    ("PATCH", "/datasets/d/tables/t", {"schema": {"fields": [{"name": "a"}]}}, {("define", "home-1.d.t")}),
    ("PUT", "/datasets/d/tables/t", {"schema": {"fields": [{"name": "a"}]}},
     {("define", "home-1.d.t"), ("grant", "home-1.d.t")}),
    ("POST", "/datasets/d/tables", {"tableReference": T, "externalDataConfiguration": {"sourceUris": ["gs://b"]}},
     {("define", "home-1.d.t"), ("export", "home-1.d.t")}),
    ("POST", "/datasets/d/tables", {"tableReference": T, "biglakeConfiguration": {"storageUri": "gs://b"}},
     {("define", "home-1.d.t"), ("export", "home-1.d.t")}),
    ("POST", "/datasets/d/tables", {"tableReference": T, "tableReplicationInfo": {"sourceTable": FAR}},
     {("define", "home-1.d.t"), ("read_rows", "far-away.x.y"), ("export", "far-away.x.y")}),
    ("POST", "/datasets/d/tables", {"tableReference": T, "view": {
        "query": "x", "userDefinedFunctionResources": [{"resourceUri": "gs://f"}]}},
     {("define", "home-1.d.t"), ("export", "home-1.d.t")}),
    ("POST", "/datasets/d/tables/t:setIamPolicy", {"policy": {"bindings": [{"members": ["user:a"]}]}},
     {("grant", "home-1.d.t")}),
    # Row policies, routines, models
    ("POST", "/datasets/d/tables/t/rowAccessPolicies", {"rowAccessPolicyReference": {"policyId": "p"}},
     {("grant", "home-1.d.t")}),
    ("DELETE", "/datasets/d/tables/t/rowAccessPolicies/p", None, {("grant", "home-1.d.t"), ("destroy", "home-1.d.t")}),
    ("POST", "/datasets/d/tables/t/rowAccessPolicies:batchDelete", {"policyIds": ["p"]},
     {("grant", "home-1.d.t"), ("destroy", "home-1.d.t")}),
    ("POST", "/datasets/d/routines",
     {"routineReference": {"routineId": "r"}, "remoteFunctionOptions": {"endpoint": "e"}},
     {("define", "home-1.d.r"), ("export", "home-1.d.r")}),
    ("PUT", "/datasets/d/routines/r", {"importedLibraries": ["gs://l"], "securityMode": "DEFINER"},
     {("define", "home-1.d.r"), ("export", "home-1.d.r"), ("grant", "home-1.d.r")}),
    ("PUT", "/datasets/d/routines/r", {"dataGovernanceType": "DATA_MASKING"},
     {("define", "home-1.d.r"), ("grant", "home-1.d.r")}),
    ("PATCH", "/datasets/d/models/m", {"expirationTime": "1"}, {("define", "home-1.d.m"), ("destroy", "home-1.d.m")}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "expected"), DOORS)
def test_every_door(method: str, path: str, body: Any, expected: set[tuple[str, str]]) -> None:
    assert verbs(method, path, body) == expected


def test_every_method_is_a_door_of_the_table() -> None:
    """Of each method without a body of its own kind the effect is its verb: none is without one."""
    judged = {"Job", "QueryRequest"}
    for method in METHODS.values():
        if method.schema not in judged:
            assert method.verb in VERBS - {"call", "UNKNOWN"}, method.name


def test_effects_name_what_is_outside() -> None:
    body = {"access": [{"role": "READER", "userByEmail": "a@b"}, {"view": FAR},
                       {"dataset": {"dataset": {"projectId": "far-away", "datasetId": "x"}, "targetTypes": ["VIEWS"]}},
                       {"iamMember": "allUsers"}, {}]}  # fmt: skip
    grant = next(each for each in done("PATCH", "/datasets/d", body) if each.verb == "grant")
    assert grant.outside == (
        "userByEmail:a@b", "view:far-away.x.y", "dataset:far-away.x", "iamMember:allUsers",
    )  # fmt: skip
    policy = {"policy": {"bindings": [{"role": "r", "members": ["user:a", "user:b"]}, {"members": ["user:a"]}]}}
    assert done("POST", "/datasets/d/tables/t:setIamPolicy", policy)[0].outside == ("user:a", "user:b")
    routine = {"routineReference": {"routineId": "r"}, "remoteFunctionOptions": {"endpoint": "e", "connection": "c"}}
    assert {"e", "c"} == set(done("POST", "/datasets/d/routines", routine)[1].outside)


def test_kinds_follow_verbs() -> None:
    assert Effect("grant", (), "x").kind == "admin"
    assert {Effect(verb, (), "x").kind for verb in VERBS} == set(KIND_OF.values())
