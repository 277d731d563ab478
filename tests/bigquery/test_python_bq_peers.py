"""Python's clients of BigQuery directly: scenarios_bq_python.py by endpoint and by universe domain."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bigquery import scenarios_bq_python as scenarios
from tests.bigquery.running_bq import Access, Worker, names_of, worker
from tests.peers.bigquery import UNIVERSE, BigQueryServer, Environment, Names

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
# What differs by the universe domain: credentials, hosts, the Storage API; the rest is the same HTTP.
UNIVERSAL = ("query", "query_and_wait", "load_file", "dataframe", "dataframe_storage", "pandas_gbq", "dbapi")


@pytest.fixture(scope="module")
def endpoint_worker(bq_environment: Environment, by_endpoint: Access) -> Iterator[tuple[Worker, str]]:
    """A worker by endpoint, and the name of its dataset."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        worker(bq_environment, by_endpoint, scenarios, Path(folder)) as running,
    ):
        yield running, f"d{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def universe_worker(bq_environment: Environment, by_universe: Access) -> Iterator[tuple[Worker, str]]:
    """A worker by universe domain, and the name of its dataset."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        worker(bq_environment, by_universe, scenarios, Path(folder)) as running,
    ):
        yield running, f"u{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize("scenario", names_of(scenarios))
def test_by_endpoint(endpoint_worker: tuple[Worker, str], bq_service: BigQueryServer, scenario: str) -> None:
    running, dataset = endpoint_worker
    since = bq_service.mark()
    (bq_service.bucket_root / f"exports-{dataset}").mkdir(exist_ok=True)
    running.run(scenario, dataset=dataset)
    asked = bq_service.requests(since)
    assert asked
    assert not [each for each in asked if each.get("failed")]


@pytest.mark.parametrize("scenario", UNIVERSAL)
def test_by_universe(
    universe_worker: tuple[Worker, str], bq_service: BigQueryServer, bq_names: Names, scenario: str
) -> None:
    """The universe's hosts are dialled, and no other."""
    running, dataset = universe_worker
    since = bq_service.mark()
    running.run(scenario, dataset=dataset)
    asked = bq_service.requests(since)
    assert {each["host"] for each in asked if "host" in each} <= {f"bigquery.{UNIVERSE}", f"sts.{UNIVERSE}"}
    if scenario == "dataframe_storage":
        assert [each for each in asked if each.get("grpc", "").endswith("/ReadRows")]
    assert bq_names.dialled
    assert not bq_names.refused
