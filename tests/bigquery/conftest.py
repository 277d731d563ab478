"""Fixtures of the BigQuery scenarios: one service for the whole run, a gateway before it, names, ways to both."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bigquery.gateway_bq import Gateway, gateway, target_of
from tests.bigquery.people_bq import Loop
from tests.bigquery.running_bq import Access
from tests.peers.bigquery import (
    SUBJECT,
    TOKEN,
    BigQueryServer,
    Environment,
    Names,
    bigquery_server,
    names,
    need_environment,
)


@pytest.fixture(scope="session")
def bq_environment() -> Environment:
    """The environments of the emulator and of the clients, made on first use."""
    return need_environment()


@pytest.fixture(scope="session")
def bq_service(bq_environment: Environment) -> Iterator[BigQueryServer]:
    """The emulator with the layer before it; see tests/peers/bigquery.py."""
    with bigquery_server(bq_environment) as server:
        yield server


@pytest.fixture(scope="session")
def bq_names(bq_service: BigQueryServer) -> Iterator[Names]:
    """What knows the universe's names, and what else clients dial."""
    with names(bq_service.universe) as running:
        yield running


@pytest.fixture(scope="session")
def by_endpoint(bq_service: BigQueryServer) -> Access:
    """Directly, by api_endpoint."""
    where = f"localhost:{bq_service.storage}"
    return Access("endpoint", bq_service.url, where, TOKEN, bq_service.authority.ca_file)


@pytest.fixture(scope="session")
def by_universe(bq_service: BigQueryServer, bq_names: Names) -> Access:
    """Directly, by the universe domain."""
    return Access("universe", bq_service.url, "", TOKEN, bq_service.authority.ca_file, SUBJECT, bq_names.url)


@pytest.fixture(scope="session")
def bq_loop() -> Iterator[Loop]:
    """The thread that gateways run in."""
    running = Loop()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def bq_gate(bq_loop: Loop, bq_service: BigQueryServer) -> Iterator[Gateway]:
    """A gateway before the service whose one rule allows everything."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        gateway(bq_loop, Path(folder), target_of(bq_service)) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def gate_names(bq_gate: Gateway) -> Iterator[Names]:
    """The universe's names, as the gateway's users know them."""
    with names(bq_gate.universe) as running:
        yield running
