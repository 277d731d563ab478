"""Port-forwards through real kubectls: scenarios_forward.py, each way."""

from __future__ import annotations

import pytest

from tests.kubernetes import scenarios_forward
from tests.kubernetes.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_forward), indirect=["run"])
def test_forward(run: Runner, scenario: Scenario) -> None:
    scenario(run)
