"""Things that go wrong between real peers: scenarios_failures.py, each way."""

from __future__ import annotations

import pytest

from tests.ssh import scenarios_failures
from tests.ssh.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_failures), indirect=["run"])
def test_failures(run: Runner, scenario: Scenario) -> None:
    scenario(run)
