"""Python's clients of BigQuery through the gateway: whatever passes directly (test_python_bq_peers.py) passes through.

By three ways: an API endpoint with an access token of the gateway's, the same with the user's own token (the path names
the target), and the universe domain. The service behind it sees the gateway's credential alone.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bigquery import scenarios_bq_python as scenarios
from tests.bigquery.gateway_bq import Gateway
from tests.bigquery.people_bq import ANA
from tests.bigquery.running_bq import Access, Worker, names_of, worker
from tests.peers.bigquery import TOKEN, UNIVERSE, BigQueryServer, Environment, Names

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
# By the user's own token, the Storage API cannot be reached: a gRPC call has no path that names a target.
OWN_TOKEN = ("query", "query_and_wait", "load_file", "metadata", "dataframe", "wrong_token")
# What differs by the universe domain, as in test_python_bq_peers.py; the rest is the same HTTP, and nightly.
UNIVERSAL = ("query", "query_and_wait", "load_file", "dataframe", "dataframe_storage", "pandas_gbq", "dbapi")
WAYS = [
    *(("endpoint", each) for each in names_of(scenarios)),
    *(("token", each) for each in OWN_TOKEN),
    *(("universe", each) for each in names_of(scenarios) if each != "wrong_token"),
]
CASES = [
    pytest.param(
        way, each, id=f"{way}-{each}",
        marks=[pytest.mark.nightly] if way == "universe" and each not in UNIVERSAL else [],
    )
    for way, each in WAYS
]  # fmt: skip


@dataclass(slots=True)
class Way:
    """A worker that goes one way, and the name of its dataset."""

    worker: Worker
    dataset: str


def accesses(gate: Gateway, proxy: str) -> dict[str, Access]:
    """The ways."""
    return {
        "endpoint": gate.access("endpoint"),
        "token": gate.access("endpoint", plain=True),
        "universe": gate.access("universe", proxy=proxy),
    }


@pytest.fixture(scope="module")
def ways(bq_environment: Environment, bq_gate: Gateway, gate_names: Names) -> Iterator[dict[str, Way]]:
    """A worker for each way."""
    with ExitStack() as stack:
        found = {}
        for name, access in accesses(bq_gate, gate_names.url).items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gc-bq-")))
            running = stack.enter_context(worker(bq_environment, access, scenarios, folder))
            found[name] = Way(running, f"{name[0]}{uuid.uuid4().hex[:8]}")
        yield found


@pytest.mark.parametrize(("way", "scenario"), CASES)
def test_through_the_gateway(
    ways: dict[str, Way], bq_gate: Gateway, bq_service: BigQueryServer, gate_names: Names, way: str, scenario: str
) -> None:
    running, dataset = ways[way].worker, ways[way].dataset
    since = bq_service.mark()
    (bq_service.bucket_root / f"exports-{dataset}").mkdir(exist_ok=True)
    running.run(scenario, dataset=dataset)
    asked = bq_service.requests(since)
    assert not [each for each in asked if each.get("failed")]
    assert asked or scenario == "wrong_token"
    for each in asked:
        shown = {**each.get("headers", {}), **each.get("metadata", {})}
        assert shown.get("authorization", f"Bearer {TOKEN}") == f"Bearer {TOKEN}"
        assert ANA.token not in json.dumps(each)
    if way == "universe":
        assert f"bigquery.{UNIVERSE}:443" in gate_names.dialled
    if scenario == "dataframe_storage":
        assert [each for each in asked if each.get("grpc", "").endswith("/ReadRows")]
    assert not gate_names.refused


def test_its_tape(ways: dict[str, Way], bq_gate: Gateway) -> None:
    """All of a caller's requests are on tapes of hers, decided one by one, with the SQL as it was asked."""
    dataset = ways["endpoint"].dataset
    ways["endpoint"].worker.run("query_and_wait", dataset=dataset)
    stories = bq_gate.stories(ANA)
    assert stories
    texts = [command["text"] for story in stories for command in story.commands]
    assert [text for text in texts if f"SELECT id FROM {dataset}.people WHERE id > 1 ORDER BY id" in text]
    for story in stories:
        assert len(story.verdicts) == len(story.commands)
