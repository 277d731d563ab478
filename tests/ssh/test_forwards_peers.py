"""Forwards and shared connections through real peers: scenarios_forwards.py, each way."""

from __future__ import annotations

import pytest

from tests.ssh import scenarios_forwards
from tests.ssh.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_forwards), indirect=["run"])
def test_forwards(run: Runner, scenario: Scenario) -> None:
    scenario(run)
