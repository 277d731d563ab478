"""Fixtures that every area may use: one real server of each version for the whole run."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.peers.postgres import PeerMissing, PostgresServer, Version, need, postgres_server

# A shell starts its background jobs with SIGINT ignored, and children inherit that: no test could interrupt one.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests take longest: begun first, so that no process is left with them in the end.
LONGEST = (
    "test_disk_full_", "test_kill_", "test_canary_", "test_demo", "test_lifecycle_", "test_terminal_peers",
    "test_kube_", "test_plain_peers", "test_pods_peers", "test_concurrency_peers", "test_jdbc_peers",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.name.startswith(LONGEST))  # stable: the rest stays in its order


def _served(version: Version) -> Iterator[PostgresServer]:
    try:
        with postgres_server(version) as server:
            yield server
    except PeerMissing as missing:
        need(missing, optional=version == "18tls")


@pytest.fixture(scope="session")
def postgres15() -> Iterator[PostgresServer]:
    """PostgreSQL 15 (Debian), with TLS; see tests/peers/postgres.py for its users."""
    yield from _served("15")


@pytest.fixture(scope="session")
def postgres18() -> Iterator[PostgresServer]:
    """PostgreSQL 18 (wheel), without TLS."""
    yield from _served("18")


@pytest.fixture(scope="session")
def postgres18tls() -> Iterator[PostgresServer]:
    """PostgreSQL 18 with TLS, where GATECAST_POSTGRES18_TLS names one."""
    yield from _served("18tls")
