"""Attacks that need no gateway: lists without end, and a discovery document that leads elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from protocols.bigquery.body_schemas import ITEMS_LIMIT, ITEMS_LIMITS
from protocols.bigquery.discovery import rewritten
from proxy.core.http.heads import BadRequest
from tests.bigquery.test_attacks_bq_sql import asked

TABLE = {"datasetId": "crm", "tableId": "t"}


def copied(count: int) -> object:
    return {"configuration": {"copy": {"sourceTables": [TABLE] * count, "destinationTable": TABLE}}}


def loaded(count: int) -> object:
    return {"configuration": {"load": {"destinationTable": TABLE, "sourceUris": ["gs://b/o"] * count}}}


def labelled(count: int) -> object:
    query = {"query": "SELECT 1", "useLegacySql": False}
    return {"configuration": {"query": query, "labels": {f"k{number}": "v" for number in range(count)}}}


@pytest.mark.parametrize(
    ("made", "limit"),
    [
        (copied, ITEMS_LIMITS["[TableReference]"]),
        (loaded, ITEMS_LIMIT),
        (labelled, ITEMS_LIMIT),
    ],
)
def test_lists_have_a_limit(made: Callable[[int], object], limit: int) -> None:
    """Of a million small things each step behind the reading would take seconds."""
    for count in (limit - 1, limit):
        assert asked(made(count)).job
    with pytest.raises(BadRequest, match=f"more than {limit}"):
        asked(made(limit + 1))


def test_rows_have_a_limit() -> None:
    limit = ITEMS_LIMITS["[InsertRow]"]
    path = "/bigquery/v2/projects/acme/datasets/crm/tables/people/insertAll"
    for count in (limit - 1, limit):
        assert asked({"rows": [{"json": {}}] * count}, path).method.name == "tabledata.insertAll"
    with pytest.raises(BadRequest, match=f"more than {limit}"):
        asked({"rows": [{"json": {}}] * (limit + 1)}, path)


# -- discovery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("path", "https://evil.example/projects"),
        ("path", "//evil.example/projects"),
        ("path", "projects/../../../steal"),
        ("path", "projects/a//b"),
        ("path", "steal"),
        ("path", 3),
        ("flatPath", "http://evil.example/"),
        ("mediaUpload", {"protocols": {"simple": {"path": "https://evil.example/upload"}}}),
        ("mediaUpload", {"protocols": {"resumable": {"path": "/steal/projects"}}}),
        ("mediaUpload", {"protocols": {"resumable": {}}}),
    ],
)
def test_a_method_whose_address_is_not_the_gates(key: str, path: Any) -> None:
    """googleapiclient takes a path that is an address for one, and shows the user's token there."""
    get = {"id": "bigquery.jobs.get", "path": "projects/{+projectId}/jobs/{+jobId}"}
    good = {"resumable": {"path": "/resumable/upload/bigquery/v2/projects/{+projectId}/jobs"}}
    methods = {
        "get": {**get, key: path},
        "list": {"id": "bigquery.jobs.list", "path": "projects/{+projectId}/jobs"},
        "policy": {"id": "bigquery.tables.getIamPolicy", "path": "{+resource}:getIamPolicy"},
        "insert": {
            "id": "bigquery.jobs.insert",
            "path": "projects/{+projectId}/jobs",
            "mediaUpload": {"protocols": good},
        },
    }
    document = {"name": "bigquery", "version": "v2", "resources": {"jobs": {"methods": methods}}}
    found = rewritten(document, "https://gw.example")["resources"]["jobs"]["methods"]
    assert sorted(found) == ["insert", "list", "policy"]
    assert "evil" not in json.dumps(found)
