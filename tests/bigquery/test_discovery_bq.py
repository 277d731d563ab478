"""The discovery document: no address in it leads past the gate."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocols.bigquery.discovery import encoded, is_discovery, rewritten

# In the shape of the public one, with one method that the gate does not have.
DOCUMENT: dict[str, Any] = {
    "name": "bigquery",
    "version": "v2",
    "rootUrl": "https://bigquery.googleapis.com/",
    "mtlsRootUrl": "https://bigquery.mtls.googleapis.com/",
    "baseUrl": "https://bigquery.googleapis.com/bigquery/v2/",
    "basePath": "/bigquery/v2/",
    "servicePath": "bigquery/v2/",
    "batchPath": "batch/bigquery/v2",
    "endpoints": [{"endpointUrl": "https://bigquery.europe-west3.rep.googleapis.com/", "location": "europe-west3"}],
    "icons": {"x16": "https://www.gstatic.com/x.png"},
    "schemas": {"Job": {"id": "Job"}},
    "parameters": {"alt": {"type": "string"}},
    "resources": {
        "jobs": {
            "methods": {
                "get": {"id": "bigquery.jobs.get", "path": "projects/{+projectId}/jobs/{+jobId}"},
                "steal": {"id": "bigquery.jobs.steal", "path": "steal"},
            },
            "resources": {"inner": {"methods": {"get": {"id": "bigquery.models.get"}}}},
        }
    },
}


@pytest.mark.parametrize("root", ["https://gw.example/bq/warehouse", "https://bigquery.gw.example/"])
def test_every_address_is_the_gates(root: str) -> None:
    found = rewritten(DOCUMENT, root)
    root = root.rstrip("/") + "/"
    assert found["rootUrl"] == found["mtlsRootUrl"] == root
    assert found["baseUrl"] == root + "bigquery/v2/"
    assert (found["servicePath"], found["basePath"]) == ("bigquery/v2/", "/bigquery/v2/")
    text = encoded(found).decode()
    assert "googleapis" not in text
    assert "gstatic" not in text
    assert "batch" not in text
    assert json.loads(text) == found


def test_only_methods_of_the_gate_are_offered() -> None:
    jobs = rewritten(DOCUMENT, "https://gw")["resources"]["jobs"]
    assert list(jobs["methods"]) == ["get"]
    assert list(jobs["resources"]["inner"]["methods"]) == ["get"]
    assert "steal" in DOCUMENT["resources"]["jobs"]["methods"], "the document that was given stays as it was"


@pytest.mark.parametrize(
    "change",
    [{"name": "storage"}, {"version": "v1"}, {"resources": None}, {"resources": {"jobs": 1}},
     {"resources": {"jobs": {"methods": [1]}}}, {"resources": {"jobs": {"methods": {"get": 1}}}}],
)  # fmt: skip
def test_another_document_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="discovery document"):
        rewritten(DOCUMENT | change, "https://gw")


def test_what_is_nested_without_end_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"resources": {"a": deep}}
    with pytest.raises(ValueError, match="deeply"):
        rewritten(DOCUMENT | deep, "https://gw")


def test_where_clients_ask_for_it() -> None:
    for target in (
        "/$discovery/rest?version=v2",
        "/%24discovery/rest?version=v2&prettyPrint=false",
        "/discovery/v1/apis/bigquery/v2/rest",
    ):
        assert is_discovery("GET", target)
    for target in ("/$discovery/rest?version=v1", "/$discovery/rest/x", "/discovery/v1/apis/storage/v1/rest", "/"):
        assert not is_discovery("GET", target)
    assert not is_discovery("POST", "/$discovery/rest?version=v2")
