"""Plain requests through real kubectls: scenarios.py, each way."""

from __future__ import annotations

import pytest

from tests.kubernetes import scenarios
from tests.kubernetes.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios), indirect=["run"])
def test_plain(run: Runner, scenario: Scenario) -> None:
    scenario(run)
