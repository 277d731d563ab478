"""What a line typed before its prompt is taken to be."""

from __future__ import annotations

import pytest

from proxy.terminal.reading import judge
from proxy.terminal.typed import Typed


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("rm x; echo y", "rm x; echo y"),
        ("; echo y", "rm x; echo y"),  # the screen's row began in the middle of it
        ("", "rm x; echo y"),
        ("ls", "ls"),  # a program took what was typed, and the shell completed something else
    ],
)
def test_a_line_typed_ahead_is_not_told_by_its_shown_end(shown: str, text: str) -> None:
    keys = Typed()
    for key in b"rm x; echo y":
        keys.take("text", bytes([key]))
    keys.answer(b"rm x; echo y")
    reading = judge(keys, shown, "screen", True, plain=True, ahead=True, secret=False)
    assert reading.text == text
