"""Other clients, and odd options: scenarios_clients.py, each way."""

from __future__ import annotations

import pytest

from tests.ssh import scenarios_clients
from tests.ssh.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_clients), indirect=["run"])
def test_other_clients(run: Runner, scenario: Scenario) -> None:
    scenario(run)
