"""A person at a terminal, through real peers: scenarios_terminal.py, each way."""

from __future__ import annotations

import pytest

from tests.ssh import scenarios_terminal
from tests.ssh.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_terminal), indirect=["run"])
def test_terminal(run: Runner, scenario: Scenario) -> None:
    scenario(run)
