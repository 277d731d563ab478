"""A person at a terminal: tmux on this machine, in which ssh runs, and what is on its screen."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Final

from tests.peers.ssh import program
from tests.ssh.running import Argument, Runner

DEADLINE_SECONDS: Final = 20.0


class Terminal:
    """A tmux server of its own with one pane, in which the way's ssh runs; a line "ENDED n" follows its exit."""

    def __init__(self, run: Runner, argv: list[Argument], columns: int = 80, rows: int = 24) -> None:
        self._call = [program("tmux"), "-S", str(run.folder / "tmux"), "-f", "/dev/null"]
        self._environment = run.environment
        command = shlex.join(str(word) for word in argv)
        # Not exec: what is on the screen at the end is read after it.
        script = f"{command}; echo ENDED $?; exec cat"
        self.tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), "sh", "-c", script)

    def tmux(self, *arguments: str) -> str:
        """Run a command of tmux."""
        done = subprocess.run(
            [*self._call, *arguments], check=True, capture_output=True, text=True, env=self._environment, timeout=30
        )
        return done.stdout

    def size(self, columns: int, rows: int) -> None:
        """Give the window another size."""
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names: Enter, C-c, Escape."""
        self.tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type text as it is."""
        self.tmux("send-keys", "-l", text)

    def line(self, text: str) -> None:
        """Type a line and press Enter."""
        self.type(text)
        self.press("Enter")

    def screen(self) -> str:
        """What is on the screen, without blanks at the ends of lines."""
        return self.tmux("capture-pane", "-p")

    def until(self, text: str, gone: str = "") -> str:
        """Look until the text is on the screen, and the other one is not."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in (screen := self.screen()) or (gone and gone in screen):
            assert time.monotonic() < deadline, f"no {text!r} (or still {gone!r}):\n{screen}"
            time.sleep(0.02)
        return screen

    def until_count(self, text: str, count: int) -> str:
        """Look until the text is on the screen so many times."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (screen := self.screen()).count(text) != count:
            assert time.monotonic() < deadline, f"not {count} times {text!r}:\n{screen}"
            time.sleep(0.02)
        return screen

    def until_line(self, line: str) -> str:
        """Look until a line of the screen is this one."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while line not in (screen := self.screen()).splitlines():
            assert time.monotonic() < deadline, f"no line {line!r}:\n{screen}"
            time.sleep(0.02)
        return screen


@contextlib.contextmanager
def terminal(run: Runner, *arguments: Argument, columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    """Run ssh in a terminal. arguments: options, the host, and a command if any."""
    found = Terminal(run, run.argv(*arguments), columns, rows)
    try:
        yield found
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            found.tmux("kill-server")
