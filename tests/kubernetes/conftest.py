"""Fixtures of the Kubernetes scenarios: one API server for the whole run, one gateway a module, a way for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.gateway import KubeGateway, kube_gateway
from tests.kubernetes.running import Runner, Way
from tests.peers.kubernetes import KubeServer, kube_server, stop_containers, without_containers


@pytest.fixture(scope="session")
def kube() -> Iterator[KubeServer]:
    """The stand-in API server, with real containers where they can run; see tests/peers/kubernetes.py."""
    try:
        with kube_server() as server:
            yield server
    finally:
        stop_containers()


@pytest.fixture(scope="module")
def kube_gate(kube: KubeServer) -> Iterator[KubeGateway]:
    """A gateway in front of it whose one rule allows everything that is not of kind admin to ana's group."""
    with tempfile.TemporaryDirectory(prefix="gatecast-") as folder, kube_gateway(Path(folder) / "gw", kube) as gateway:
        yield gateway


@pytest.fixture
def run(request: pytest.FixtureRequest, kube: KubeServer) -> Iterator[Runner]:
    """The way that the test's parameter names."""
    way: Way = request.param
    gateway = None if way.via == "direct" else request.getfixturevalue("kube_gate")
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:  # short: tmux's socket lies there
        runner = Runner(way, kube, gateway, Path(folder))
        try:
            yield runner
        finally:
            runner.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly that pods were no containers (test_pods_peers.py says it where tests run in several processes)."""
    if reason := without_containers():
        terminalreporter.section("Kubernetes", sep="!", red=True, bold=True)
        terminalreporter.line(f"The pods of the tests were LOCAL PROCESSES, not containers: {reason}", yellow=True)
