"""The toy protocol with a background that takes over held jobs, for tests of several processes (test_beside.py)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from proxy.core.gate import Gate
from tests import toy

NOTES_VARIABLE: Final = "TEST_ADOPTING_NOTES"


async def adopt(gate: Gate) -> None:
    """Note which jobs this process was given."""
    assert gate.jobs is not None
    for entry in await gate.jobs.adopt(10):
        with Path(os.environ[NOTES_VARIABLE]).open("a") as file:  # one short line
            file.write(f"{os.getpid()} {gate.settings['listener']} {entry.key.id} {entry.state}\n")


PROTOCOL = replace(toy.PROTOCOL, background=adopt)
