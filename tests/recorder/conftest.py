"""For the recorder's tests: the environment of a terminal, and recorders that end with their test.

A recorder that is not closed has threads that go on writing and opening files while the next test counts them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.recorder import tapes


@pytest.fixture(autouse=True)
def ending_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No colours are asked away, the terminal can do all, and what was made by tapes.recorder() is closed."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    tapes.made.clear()
    yield
    for recorder in tapes.made:
        recorder.close()
    tapes.made.clear()
