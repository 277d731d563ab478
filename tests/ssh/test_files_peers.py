"""Files through real peers (sftp, scp, rsync, git): scenarios_files.py, each way."""

from __future__ import annotations

import pytest

from tests.ssh import scenarios_files
from tests.ssh.running import Runner, Scenario, cases

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_files), indirect=["run"])
def test_files(run: Runner, scenario: Scenario) -> None:
    scenario(run)
