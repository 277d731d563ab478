"""exec, attach, debug and cp through real kubectls: scenarios_exec.py, each way."""

from __future__ import annotations

import pytest

from tests.kubernetes import scenarios_exec
from tests.kubernetes.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_exec), indirect=["run"])
def test_streams(run: Runner, scenario: Scenario) -> None:
    scenario(run)
