"""A gateway that puts masks into queries: filters ask masked values, whole rows are exact, copies may be made."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.core.events import Command
from proxy.core.parties import Identity
from proxy.core.verdict import Allow, Mask, Verdict
from tests.bigquery.gateway_bq import Gateway, gateway, target_of
from tests.bigquery.people_bq import Loop
from tests.peers.bigquery import PROJECT, BigQueryServer

pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
MASK = Mask("hide-email", columns=("*.people.email", "*.*.people.addr.zip"))
SECRETS = (b"p1@example.org", b"p2@example.org", b"zip1", b"zip2")


def masked(identity: Identity, command: Command) -> Verdict:
    """Everything, under masks."""
    return Allow("masked", (MASK,))


@pytest.fixture(scope="module")
def rewriting_gate(bq_loop: Loop, bq_service: BigQueryServer) -> Iterator[Gateway]:
    """A gateway with that rule, whose target's setting is on."""
    target = target_of(bq_service, rewrite="where-exact")
    with tempfile.TemporaryDirectory(prefix="gc-bq-") as folder, gateway(bq_loop, Path(folder), target, masked) as made:
        yield made


@pytest.fixture(scope="module")
def people(bq_service: BigQueryServer) -> str:
    """A dataset with people(id, email, addr.zip, addr.city)."""
    name = f"w{uuid.uuid4().hex[:8]}"
    value = {"datasetReference": {"projectId": PROJECT, "datasetId": name}}
    assert bq_service.api("POST", f"/projects/{PROJECT}/datasets", value)[0] == 200
    bq_service.sql(
        f"CREATE TABLE {name}.people AS SELECT 1 AS id, 'p1@example.org' AS email, STRUCT('zip1' AS zip, 'Ulm' AS city)"
        " AS addr UNION ALL SELECT 2, 'p2@example.org', STRUCT('zip2', 'Bonn')"
    )
    return name


def rows(gate: Gateway, text: str) -> list[list[Any]]:
    body = {"query": text, "useLegacySql": False}
    answer = gate.ask("POST", f"/projects/{PROJECT}/queries", body)
    assert answer.code == 200, answer.body
    assert not [each for each in SECRETS if each in answer.body]
    return [[cell["v"] for cell in row["f"]] for row in answer.json.get("rows", [])]


def test_a_filter_asks_masked_values(rewriting_gate: Gateway, people: str) -> None:
    assert rows(rewriting_gate, f"SELECT id FROM {people}.people WHERE email = 'p1@example.org'") == []
    assert rows(rewriting_gate, f"SELECT id FROM {people}.people WHERE addr.city = 'Ulm'") == [["1"]]


def test_whole_rows_show_what_no_mask_names(rewriting_gate: Gateway, people: str) -> None:
    found = rows(rewriting_gate, f"SELECT TO_JSON_STRING(p) AS j FROM {people}.people p WHERE id = 1")
    assert found == [['{"id":1,"email":"[redacted]","addr":{"zip":"[redacted]","city":"Ulm"}}']]


def test_a_copy_holds_masked_values(rewriting_gate: Gateway, bq_service: BigQueryServer, people: str) -> None:
    rows(rewriting_gate, f"CREATE TABLE {people}.copied AS SELECT * FROM {people}.people")
    assert sorted(row[1] for row in bq_service.sql(f"SELECT * FROM {people}.copied")) == ["[redacted]"] * 2
