"""bq and Google's client for Node.js through the gateway; see test_tools_bq_peers.py for the same directly."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from tests.bigquery.gateway_bq import Gateway
from tests.bigquery.running_bq import Door, bq, node
from tests.peers.bigquery import PROJECT, BigQueryServer, Environment, Names
from tests.peers.postgres import PeerMissing, need

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
ROWS = [{"id": 1, "email": "a@example.org"}, {"id": 2, "email": "b@example.org"}]
DOORS: list[Door] = ["endpoint", "universe"]


@pytest.fixture
def people(bq_service: BigQueryServer) -> str:
    """A dataset with people(id, email): two rows."""
    name = f"g{uuid.uuid4().hex[:8]}"
    value = {"datasetReference": {"projectId": PROJECT, "datasetId": name}}
    assert bq_service.api("POST", f"/projects/{PROJECT}/datasets", value)[0] == 200
    bq_service.sql(f"CREATE TABLE {name}.people AS SELECT 1 AS id, 'a@example.org' AS email UNION ALL SELECT 2, 'b'")
    return name


@pytest.mark.parametrize("door", DOORS)
def test_bq_through_the_gateway(bq_gate: Gateway, gate_names: Names, people: str, tmp_path: Path, door: Door) -> None:
    """A query as JSON, a dry run, an error told whole."""
    access = bq_gate.access(door, proxy=gate_names.url if door == "universe" else "")
    text = f"SELECT id, email FROM {people}.people ORDER BY id"
    try:
        status, said = bq(access, tmp_path, "--format=json", "query", "--nouse_legacy_sql", text)
    except PeerMissing as missing:
        need(missing, optional=True)  # it comes from Google's own packages alone
        raise AssertionError from missing
    assert status == 0, said
    assert [row["id"] for row in json.loads(said[said.index("[{") :])] == ["1", "2"]
    status, said = bq(access, tmp_path, "query", "--nouse_legacy_sql", "--dry_run", text)
    assert status == 0, said
    assert "56 bytes" in said
    status, said = bq(access, tmp_path, "query", "--nouse_legacy_sql", f"SELECT nope FROM {people}.people")
    assert status != 0
    assert "nope" in said
    status, said = bq(access, tmp_path, "ls", f"{PROJECT}:{people}")
    assert status == 0, said
    assert "people" in said
    assert not gate_names.refused


@pytest.mark.parametrize("door", DOORS)
def test_node_through_the_gateway(
    bq_environment: Environment, bq_gate: Gateway, gate_names: Names, tmp_path: Path, door: Door
) -> None:
    access = bq_gate.access(door, proxy=gate_names.url if door == "universe" else "")
    done = node(bq_environment, access, tmp_path)
    said = {line["name"]: line.get("result", line.get("error")) for line in map(json.loads, done.stdout.splitlines())}
    assert said == {
        "create": "people", "query": ROWS, "job": "2026-01-02T03:04:05.000Z", "rows": 2,
        "failing": {"code": 400, "reason": "invalidQuery"},
    }, done.stderr  # fmt: skip
    assert not gate_names.refused
