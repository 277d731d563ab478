"""Much data through a real kubectl: scenarios_bulk.py, each way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kubernetes import scenarios_bulk
from tests.kubernetes.gateway import kube_gateway
from tests.kubernetes.running import Runner, Scenario, Way, cases
from tests.peers.kubernetes import kube_server

pytestmark = pytest.mark.peer


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_many_execs(tmp_path: Path) -> None:
    with kube_server(local=True) as server, kube_gateway(tmp_path / "gw", server) as gateway:
        runner = Runner(Way("gateway", "1.37"), server, gateway, tmp_path)
        try:
            scenarios_bulk.many_execs(runner)
        finally:
            runner.close()


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_bulk), indirect=["run"])
def test_bulk(run: Runner, scenario: Scenario) -> None:
    scenario(run)
