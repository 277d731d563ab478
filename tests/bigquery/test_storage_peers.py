"""Google's client of the Storage API through a gateway: in the clear, and under a mask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.core.events import Command
from proxy.core.parties import Identity
from proxy.core.verdict import Allow, Mask, Verdict
from tests.bigquery import scenarios_bq_storage_read as scenarios
from tests.bigquery.gateway_bq import Gateway, gateway, target_of
from tests.bigquery.people_bq import Loop
from tests.bigquery.running_bq import Worker, names_of, worker
from tests.peers.bigquery import TOKEN, BigQueryServer, Environment

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
MASKS = {"plain": (), "[redacted]": (Mask("hide-email", columns=("*.synthetic.*.email",)),)}


@pytest.fixture(scope="module")
def storage_gates(bq_loop: Loop, bq_service: BigQueryServer) -> Iterator[Gateway]:
    """A gateway whose rule a test sets."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        gateway(bq_loop, Path(folder), target_of(bq_service)) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def storage_worker(bq_environment: Environment, storage_gates: Gateway) -> Iterator[Worker]:
    """Google's client, which has the gateway for the service."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        worker(bq_environment, storage_gates.access("endpoint"), scenarios, Path(folder)) as running,
    ):
        yield running


@pytest.mark.parametrize("email", MASKS)
@pytest.mark.parametrize("scenario", names_of(scenarios))
def test_storage_clients(
    storage_gates: Gateway, storage_worker: Worker, bq_service: BigQueryServer, scenario: str, email: str
) -> None:
    def rule(identity: Identity, command: Command) -> Verdict:
        return Allow("r", MASKS[email])

    storage_gates.rule = rule
    since = bq_service.mark()
    storage_worker.run(scenario, email=email)
    asked = bq_service.requests(since)
    assert all(each["metadata"]["authorization"] == f"Bearer {TOKEN}" for each in asked if "grpc" in each)
    told = storage_gates.stories()[-1]
    assert told.commands or scenario == "writes"
    if email != "plain":
        assert not [data for data in told.flows.values() if b"@example.org" in data]
