"""Commands and their streams through real peers: scenarios.py, each way."""

from __future__ import annotations

import pytest

from tests.ssh import scenarios
from tests.ssh.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios), indirect=["run"])
def test_exec(run: Runner, scenario: Scenario) -> None:
    scenario(run)
