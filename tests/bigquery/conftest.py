"""Fixtures of the BigQuery scenarios: one service for the whole run, names of its universe, ways to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
