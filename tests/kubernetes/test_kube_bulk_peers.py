"""Much data through a real kubectl: scenarios_bulk.py, each way."""

from __future__ import annotations

import pytest

from tests.kubernetes import scenarios_bulk
from tests.kubernetes.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_bulk), indirect=["run"])
def test_bulk(run: Runner, scenario: Scenario) -> None:
    scenario(run)
