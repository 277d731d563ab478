"""The Python client: scenarios_python.py, each way."""

from __future__ import annotations

import pytest

from tests.kubernetes import scenarios_python
from tests.kubernetes.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_python), indirect=["run"])
def test_python(run: Runner, scenario: Scenario) -> None:
    scenario(run)
