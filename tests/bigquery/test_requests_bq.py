"""Requests as clients send them, and every member of a body that changes what they mean."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bigquery.bodies import Range
from protocols.bigquery.queries import QUERY_LIMIT, External, TableName
from protocols.bigquery.requests import Asked, read_line, read_request
from proxy.core.http.heads import BadRequest, RequestHead

V2 = "/bigquery/v2/projects/my-project"
TABLE = {"projectId": "my-project", "datasetId": "sales", "tableId": "orders"}
TYPE = ("Content-Type", "application/json")


def ask(method: str, target: str, body: Any = None, *fields: tuple[str, str]) -> Asked:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return read_request(RequestHead(method, target, (TYPE, *fields) if body is not None else fields), data)


def query(**settings: Any) -> Asked:
    return ask("POST", f"{V2}/jobs", {"configuration": {"query": {"query": "SELECT 1", **settings}}})


def refused(method: str, target: str, body: Any = None, *fields: tuple[str, str]) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        ask(method, target, body, *fields)
    return caught.value


def refused_query(**settings: Any) -> str:
    return refused("POST", f"{V2}/jobs", {"configuration": {"query": {"query": "SELECT 1", **settings}}}).text


# -- what clients send ----------------------------------------------------------------------------------


def test_a_job_of_google_cloud_bigquery() -> None:
    """client.query(): POST jobs with a job id of its own. Source: bigquery note 3."""
    body = {
        "jobReference": {"jobId": "0a-1", "projectId": "my-project", "location": "EU"},
        "configuration": {
            "query": {"query": "SELECT 1", "useLegacySql": False, "maximumBytesBilled": "1000"},
            "labels": {"team": "a"},
            "jobTimeoutMs": "60000",
        },
    }
    found = ask("POST", f"{V2}/jobs?prettyPrint=false", body)
    assert (found.method.name, found.job, found.project, found.id("job")) == (
        "jobs.insert",
        "query",
        "my-project",
        "0a-1",
    )
    assert (found.location, found.labels, found.job_timeout_ms, found.dry_run) == ("EU", {"team": "a"}, 60000, False)
    assert found.query is not None
    assert (found.query.text, found.query.project, found.query.maximum_bytes) == ("SELECT 1", "my-project", 1000)
    assert found.target() == f"{V2}/jobs?prettyPrint=false"
    assert json.loads(found.wire()) == body


def test_a_query_of_query_and_wait() -> None:
    body = {
        "query": "SELECT @a", "useLegacySql": False, "requestId": "r-1", "location": "US", "timeoutMs": 10000,
        "dryRun": True, "jobCreationMode": "JOB_CREATION_OPTIONAL", "formatOptions": {"useInt64Timestamp": True},
        "maxResults": 10, "parameterMode": "NAMED", "createSession": False, "queryResultsFormat": "ARROW",
        "queryParameters": [{"name": "a", "parameterType": {"type": "INT64"}, "parameterValue": {"value": "1"}}],
        "defaultDataset": {"datasetId": "sales"},
    }  # fmt: skip
    found = ask("POST", f"{V2}/queries", body)
    assert (found.method.name, found.job, found.location, found.wait_ms) == ("jobs.query", "query", "US", 10000)
    assert (found.request_id, found.dry_run, found.results_format) == ("r-1", True, "ARROW")
    assert found.query is not None
    assert found.query.dataset == "my-project.sales"
    assert found.query.parameters[0]["name"] == "a"
    assert found.special == ()
    assert found.configuration["query"] == "SELECT @a"


def test_pages_and_polls() -> None:
    found = ask("GET", f"{V2}/queries/j?fields=jobReference,totalRows,pageToken,rows&maxResults=5&location=EU")
    assert (found.method.name, found.id("job"), found.location, found.body) == ("jobs.getQueryResults", "j", "EU", None)
    assert "schema" in found.target()
    assert ask("GET", f"{V2}/jobs/j?projection=full").parameters.get("projection") == "full"
    page = ask("GET", f"{V2}/datasets/sales/tables/orders/data?selectedFields=id%2Cemail")
    assert page.object == "my-project.sales.orders"
    assert page.parameters.get("selectedFields") == "id,email"
    assert "selectedFields=id%2Cemail" in page.target()
    assert ask("GET", "/bigquery/v2/projects").object == "*.*.*"
    assert ask("POST", f"{V2}/jobs/j/cancel", {}).body is None


def test_a_long_get_of_googleapiclient() -> None:
    fields = (("X-HTTP-Method-Override", "GET"), ("Content-Type", "application/x-www-form-urlencoded"))
    target = f"{V2}/datasets/sales/tables/orders/data"
    found = read_request(RequestHead("POST", target, fields), b"selectedFields=a%2Cb&alt=json")
    assert (found.method.name, found.parameters.get("selectedFields")) == ("tabledata.list", "a,b")
    for other, data in ((f"{target}?maxResults=1", b"maxResults=2"), (target, b"access_token=x"), (target, b"\xff")):
        with pytest.raises(BadRequest):
            read_request(RequestHead("POST", other, fields), data)


def test_a_body_may_be_packed() -> None:
    body = gzip.compress(b'{"query":"SELECT 1"}')
    found = ask("POST", f"{V2}/queries", body, ("Content-Encoding", "gzip"))
    assert found.content == b'{"query":"SELECT 1"}'
    assert json.loads(found.wire()) == {"query": "SELECT 1", "useLegacySql": False}


def test_rows_go_as_they_came() -> None:
    data = b'{"rows": [{"json": {"n": 1.10000000000000000000001, "x": 1e2}}]}'
    found = ask("POST", f"{V2}/datasets/sales/tables/orders/insertAll", data)
    assert found.wire() == data
    assert found.object == "my-project.sales.orders"


# -- uploads --------------------------------------------------------------------------------------------

LOAD = {"configuration": {"load": {"destinationTable": TABLE, "sourceFormat": "CSV"}}}


def test_a_multipart_upload() -> None:
    data = json.dumps(LOAD).encode()
    body = b"--b\r\nContent-Type: application/json\r\n\r\n" + data + b"\r\n--b\r\nContent-Type: */*\r\n\r\n1,2\r\n--b--"
    found = read_request(
        RequestHead(
            "POST",
            "/upload/bigquery/v2/projects/my-project/jobs?uploadType=multipart",
            (("Content-Type", "multipart/related; boundary=b"),),
        ),
        body,
    )
    assert (found.line.upload, found.job, found.media) == ("multipart", "load", ("*/*", b"1,2"))
    assert found.destination == TableName("my-project", "sales", "orders")
    assert found.write == "WRITE_APPEND"


def test_a_resumable_upload() -> None:
    where = "/resumable/upload/bigquery/v2/projects/my-project/jobs?uploadType=resumable"
    found = ask("POST", where, LOAD, ("X-Upload-Content-Type", "*/*"))
    assert (found.line.upload, found.line.form, found.job) == ("resumable", "json", "load")
    assert found.target() == "/upload/bigquery/v2/projects/my-project/jobs?uploadType=resumable&prettyPrint=false"
    head = RequestHead("PUT", f"{where}&upload_id=AB-1_x", (("Content-Range", "bytes 0-9/10"),))
    assert read_line(head).form == "chunk"
    chunk = read_request(head, b"")
    assert (chunk.method.verb, chunk.upload_id, chunk.range) == ("upload", "AB-1_x", Range(0, 9, 10))
    assert ask("DELETE", f"{where}&upload_id=AB").method.name == "upload.cancel"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [("POST", "?uploadType=media", LOAD), ("POST", "", LOAD), ("PUT", "?uploadType=resumable", None),
     ("PUT", "?uploadType=resumable&upload_id=a%0Ab", None), ("PUT", "?upload_id=a", None),
     ("POST", "?uploadType=resumable", {"configuration": {"query": {"query": "SELECT 1"}}}),
     ("POST", "?uploadType=resumable", None)],
)  # fmt: skip
def test_other_uploads_are_refused(method: str, target: str, body: Any) -> None:
    assert refused(method, "/upload/bigquery/v2/projects/my-project/jobs" + target, body).status == 400


# -- what changes the meaning of a query ----------------------------------------------------------------


def test_legacy_sql_is_refused_and_silence_made_googlesql() -> None:
    found = query()
    assert found.body is not None
    assert found.body["configuration"]["query"]["useLegacySql"] is False
    assert "bq: --nouse_legacy_sql" in refused_query(useLegacySql=True)
    for text in (
        "#legacySQL\nSELECT 1",
        " \n# LEGACYSQL \nSELECT 1",
        "-- x\n#legacySQL\nSELECT 1",
        "/**/#LegacySql\n1",
    ):
        assert "legacy" in refused_query(query=text)
    assert query(query="#standardSQL\nSELECT 1").query is not None


def test_where_names_lead() -> None:
    found = query(
        defaultDataset={"projectId": "other-one", "datasetId": "d"},
        connectionProperties=[
            {"key": "dataset_project_id", "value": "third-one"},
            {"key": "session_id", "value": "s1"},
        ],
    ).query
    assert found is not None
    assert (found.project, found.dataset, found.session_id) == ("third-one", "other-one.d", "s1")
    for bad in ([{"key": "x", "value": "y"}], [{"key": "session_id", "value": "a"}] * 2, [{"value": "y"}],
                [{"key": "dataset_project_id", "value": "123"}]):  # fmt: skip
        assert refused_query(connectionProperties=bad)
    assert refused_query(defaultDataset={"datasetId": "a.b"})
    assert refused_query(defaultDataset={"projectId": "my-project"})


def test_where_rows_go() -> None:
    found = query(destinationTable={"datasetId": "d", "tableId": "t$2026"}, writeDisposition="WRITE_TRUNCATE")
    assert found.destination == TableName("my-project", "d", "t", "$2026")
    assert (str(found.destination), found.write, found.create) == (
        "my-project.d.t",
        "WRITE_TRUNCATE",
        "CREATE_IF_NEEDED",
    )
    assert query().write == "WRITE_EMPTY"
    assert refused_query(writeDisposition="WRITE_WILD")
    assert refused_query(createDisposition="CREATE_WILD")
    assert refused_query(schemaUpdateOptions=["ALLOW_WILD"])
    assert refused_query(destinationTable={"datasetId": "d", "tableId": "a.b"})


def test_what_comes_with_a_query() -> None:
    found = query(
        tableDefinitions={
            "ext": {"sourceUris": ["gs://b/x"], "connectionId": "c", "referenceFileSchemaUri": "gs://b/s"}
        },
        userDefinedFunctionResources=[{"resourceUri": "gs://b/f.js"}, {"inlineCode": "x"}],
    ).query
    assert found is not None
    assert found.tables == (External("ext", ("gs://b/x", "gs://b/s"), "c"),)
    assert found.code == ("gs://b/f.js", "inline")


def test_what_only_a_rule_may_allow() -> None:
    found = ask("POST", f"{V2}/jobs", {"configuration": {"reservation": "r", "query": {
        "query": "SELECT 1", "continuous": True, "createSession": True,
        "connectionProperties": [{"key": "service_account", "value": "x@y"}],
        "secureContext": {"secureParameterEntries": {"a": "b"}},
        "destinationEncryptionConfiguration": {"kmsKeyName": "k"}}}})  # fmt: skip
    assert set(found.special) == {
        "reservation", "continuous", "create_session", "secure_context", "service_account", "kms_key",
    }  # fmt: skip
    assert found.reservation == "r"
    assert query().special == ()
    assert ask("PATCH", f"{V2}/datasets/d/tables/t", {"encryptionConfiguration": {"kmsKeyName": "k"}}).special == (
        "kms_key",
    )


def test_queries_have_a_text_and_a_limit() -> None:
    assert query(query="x" * QUERY_LIMIT).query is not None
    assert refused_query(query="x" * (QUERY_LIMIT + 1))
    assert refused_query(query=" \n")
    assert refused_query(query=None)


# -- jobs and references --------------------------------------------------------------------------------


def test_copy_and_extract_have_sources() -> None:
    copy = {"sourceTables": [TABLE, {"datasetId": "d", "tableId": "t@-3600000"}], "destinationTable": TABLE}
    found = ask("POST", f"{V2}/jobs", {"configuration": {"jobType": "COPY", "copy": copy}})
    assert [str(each) for each in found.sources] == ["my-project.sales.orders", "my-project.d.t"]
    assert found.sources[1].decorator == "@-3600000"
    extract = {"sourceTable": TABLE, "destinationUris": ["gs://a"], "destinationUri": "gs://b"}
    found = ask("POST", f"{V2}/jobs", {"configuration": {"extract": extract}})
    assert (found.job, found.uris) == ("extract", ("gs://a", "gs://b"))
    model = {
        "sourceModel": {"projectId": "my-project", "datasetId": "d", "modelId": "m"},
        "destinationUris": ["gs://a"],
    }
    found = ask("POST", f"{V2}/jobs", {"configuration": {"extract": model}})
    assert str(found.sources[0]) == "my-project.d.m"


@pytest.mark.parametrize(
    "configuration",
    [{}, {"query": None}, {"query": {"query": "x"}, "load": {"destinationTable": TABLE}}, {"load": {}},
     {"jobType": "LOAD", "query": {"query": "x"}}, {"copy": {"destinationTable": TABLE}},
     {"copy": {"sourceTable": TABLE}},
     {"copy": {"sourceTable": TABLE, "sourceTables": [TABLE], "destinationTable": TABLE}}, {"extract": {}},
     {"extract": {"sourceTable": {"datasetId": "d"}}}, {"extract": {"sourceTable": {**TABLE, "projectId": "12345"}}},
     {"query": {"query": "x", "destinationTable": {**TABLE, "tableId": "events_*"}}}],
)  # fmt: skip
def test_a_job_is_one_whole_thing(configuration: dict[str, Any]) -> None:
    assert refused("POST", f"{V2}/jobs", {"configuration": configuration}).status == 400


def test_ids_in_the_body_are_those_of_the_path() -> None:
    job = {"configuration": {"query": {"query": "x"}}}
    for reference in ({"projectId": "other-one"}, {"jobId": "a/b"}, {"location": "E U"}):
        assert refused("POST", f"{V2}/jobs", {**job, "jobReference": reference}).status == 400
    tables = f"{V2}/datasets/sales/tables"
    assert ask("POST", tables, {"tableReference": TABLE}).object == "my-project.sales.orders"
    assert ask("POST", f"{V2}/datasets", {"datasetReference": {"datasetId": "new"}}).object == "my-project.new.*"
    assert ask("PATCH", f"{tables}/orders", {"description": "x"}).object == "my-project.sales.orders"
    for method, target, body in (
        ("POST", tables, {"tableReference": {**TABLE, "datasetId": "other"}}),
        ("POST", tables, {}),
        ("PUT", f"{tables}/orders", {"tableReference": {**TABLE, "tableId": "other"}}),
        ("PATCH", f"{V2}/datasets/sales", {"datasetReference": {"datasetId": "other"}}),
        ("POST", f"{V2}/datasets", {"datasetReference": {"datasetId": "new", "projectId": "other-one"}}),
    ):
        assert refused(method, target, body).status == 400


def test_sql_in_definitions_is_found() -> None:
    tables = f"{V2}/datasets/sales/tables"
    view = ask("POST", tables, {"tableReference": TABLE, "view": {"query": "SELECT 1"}})
    assert [(each.where, each.text, each.form) for each in view.sql] == [("view.query", "SELECT 1", "query")]
    assert view.body is not None
    assert view.body["view"]["useLegacySql"] is False
    assert "legacy" in refused("POST", tables, {"tableReference": TABLE, "view": {"useLegacySql": True}}).text
    fields = [{"name": "a", "fields": [{"name": "b", "defaultValueExpression": "f()"}]},
              {"generatedColumn": {"generatedExpressionInfo": {"generationExpression": "g()"}}}]  # fmt: skip
    body = {"materializedView": {"query": "SELECT 2"}, "schema": {"fields": fields}}
    assert [each.text for each in ask("PATCH", f"{tables}/orders", body).sql] == ["SELECT 2", "g()", "f()"]
    routine = ask("PUT", f"{V2}/datasets/sales/routines/f", {"definitionBody": "x + 1"})
    assert [each.form for each in routine.sql] == ["routine"]
    policy = {"filterPredicate": "TRUE", "grantees": ["user:a"], "rowAccessPolicyReference": {"policyId": "all"}}
    assert [each.form for each in ask("POST", f"{tables}/orders/rowAccessPolicies", policy).sql] == ["expression"]


# -- what is not served ---------------------------------------------------------------------------------


def test_batches_and_unknown_forms_are_refused() -> None:
    for target in ("/batch", "/batch/bigquery/v2", "/Batch/x"):
        found = refused("POST", target, {})
        assert (found.status, "batch requests" in found.text) == (404, True)
    assert refused("POST", f"{V2}/queries", b"<x/>", ("Content-Type", "text/xml")).status == 400
    with pytest.raises(BadRequest) as caught:
        read_request(RequestHead("POST", f"{V2}/queries", (("Content-Type", "application/x-protobuf"),)), b"x")
    assert caught.value.status == 415
    assert refused("GET", f"{V2}/jobs/j", {"a": 1}).status == 400
    assert refused("POST", f"{V2}/jobs/j/cancel", {"a": 1}).status == 400
    assert refused("GET", f"{V2}/jobs/j?access_token=x").status == 400
    assert refused("GET", f"{V2}/jobs/j", None, ("X-Goog-Api-Key", "x")).status == 400


_KEYS = (
    "query", "load", "copy", "destinationTable", "sourceTables", "projectId", "labels", "configuration", "jobReference",
    "datasetId", "tableId", "view", "schema", "fields", "connectionProperties", "access", "timePartitioning",
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(_JSON, st.sampled_from([("POST", "/jobs"), ("POST", "/queries"), ("PATCH", "/datasets/d/tables/t"),
                               ("PUT", "/datasets/d"), ("POST", "/datasets/d/routines")]))  # fmt: skip
def test_any_body_is_read_or_refused(value: Any, line: tuple[str, str]) -> None:
    method, path = line
    for body in (value, {"configuration": value}, {"configuration": {"query": value}}):
        try:
            found = ask(method, V2 + path, body)
        except BadRequest as bad:
            assert bad.status in (400, 413, 415)
        else:
            assert found.project == "my-project"
