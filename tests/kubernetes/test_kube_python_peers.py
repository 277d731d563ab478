"""The Python client: scenarios_python.py, each way."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.kubernetes import scenarios_python
from tests.kubernetes.running import Runner, Scenario, cases

# The client leaves its sockets to the garbage collector.
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What the client left behind is collected here, and not in the middle of another's test."""
    yield
    gc.collect()


@pytest.mark.parametrize(("run", "scenario"), cases(scenarios_python), indirect=["run"])
def test_python(run: Runner, scenario: Scenario) -> None:
    scenario(run)
