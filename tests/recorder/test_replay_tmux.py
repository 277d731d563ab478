"""The player in a real terminal (tmux): what a person sees on the screen, read back from it."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder.tape import GATE, OUT, Kind
from tests.peers.postgres import PeerMissing, need
from tests.recorder.tapes import Clock, command, open_tape, pack, recorder

DEADLINE_SECONDS = 20.0
ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from pathlib import Path; from recorder.cli import replay_main; from recorder.replay import \
ReplayOptions; sys.exit(replay_main(Path(sys.argv[1]), ReplayOptions()))"

pytestmark = pytest.mark.peer


class Tmux:
    """A server of its own with one pane of 70 x 12 cells."""

    def __init__(self, folder: Path) -> None:
        self._call = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
        self.run("new-session", "-d", "-x", "70", "-y", "12", "env", "PS1=$ ", "sh")

    def run(self, *arguments: str) -> str:
        return subprocess.run([*self._call, *arguments], check=True, capture_output=True, text=True).stdout

    def press(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def screen(self) -> str:
        return self.run("capture-pane", "-p")

    def said(self, name: str) -> str:
        return self.run("display-message", "-p", f"#{{{name}}}").strip()

    def until(self, text: str, gone: str = "") -> str:
        """Look until the text is on the screen, and the other one is not."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in (screen := self.screen()) or (gone and gone in screen):
            assert time.monotonic() < deadline, screen
        return screen


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        need(PeerMissing("tmux is missing: apt-get install tmux"))
    found = Tmux(tmp_path)
    yield found
    found.run("kill-server")


def play(tmux: Tmux, path: Path) -> None:
    tmux.press(f"cd {ROOT} && {shlex.join([sys.executable, '-c', SCRIPT, str(path)])}", "Enter")


def sql_tape(directory: Path) -> Path:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(directory, monotonic_ns=clock))
        for i in range(1, 11):
            n = command(tape, f"SELECT {i}", verdict="deny" if i == 6 else "allow")
            rows = [["李雷", "e\u0301te\u0301"], ["b", None]]
            result = {"columns": ["wide", "combining"], "rows": rows, "count": 200, "bytes": 18842}
            tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "SELECT 200", **result}))
            await tape.written()
            clock.pass_ms(1_000_000)
        await tape.close("closed")
        return tape.path

    return asyncio.run(scenario())


def test_a_sql_session(tmux: Tmux, tmp_path: Path) -> None:
    play(tmux, sql_tape(tmp_path / "tapes"))
    tmux.until("Q1 of 10")
    tmux.press("Space", "]")
    screen = tmux.until("Q2 of 10")
    assert "PAUSED  16:40 / 2:46:40" in screen.splitlines()[-1]
    assert "shop=> SELECT 2" in screen
    tmux.press(".", ".")
    lines = tmux.until("198 more rows recorded (200 rows, 18.4 KiB)", gone="SELECT 1").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[-3:] == [
        "| wide | combining |",
        "| 李雷 | été       |".replace("é", "e\u0301"),
        "| b    | NULL      |",
    ]
    tmux.press("5")
    screen = tmux.until("Q6 of 10")
    assert "[DENIED] rule=r1: not today - not forwarded" in screen
    tmux.press("?")
    tmux.until("Any key goes back")
    tmux.press("x")
    tmux.until("Q6 of 10", gone="Any key goes back")
    tmux.press("[")
    screen = tmux.until("Q5 of 10")
    assert "SELECT 5" in screen
    assert "SELECT 6" not in screen
    tmux.press("q")
    screen = tmux.until("$", gone="PAUSED")
    tmux.press("echo typed $((20 + 22))", "Enter")
    tmux.until("typed 42")  # the shell has its keys and its echo back
    assert "SELECT 5" in tmux.screen(), "and what was shown is still there"


def test_a_full_screen_program(tmux: Tmux, tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path / "t", monotonic_ns=clock), protocol="ssh", more={"tty": [70, 12]})
        for data in (
            b"login\r\n",
            b"\x1b[?1049h\x1b[2J\x1b[2;3Heditor\x1b]2;evil\x07",
            b"\x1b[3;5Htext",
            b"\x1b[?1049l",
        ):
            tape.append(OUT, Kind.WIRE, data)
            clock.pass_ms(1_000_000)
        tape.append(OUT, Kind.WIRE, b"bye\r\n")
        await tape.close("closed")
        return tape.path

    play(tmux, asyncio.run(scenario()))
    tmux.until("login")
    tmux.press("Space", "5")
    assert tmux.until("text", gone="login").splitlines()[1:3] == ["  editor", "    text"]
    assert tmux.said("alternate_on") == "1"
    assert tmux.said("pane_title").startswith("gatecast replay: PAUSED  33:20 / 1:06:40")
    tmux.press("[")
    tmux.press("8")
    assert "text" not in tmux.until("login")
    tmux.press("4")
    tmux.until("editor", gone="text")
    tmux.press("C-z")
    tmux.until("Stopped", gone="editor")
    assert tmux.said("alternate_on") == "0"
    tmux.press("fg", "Enter")
    tmux.until("editor")
    tmux.press("s")
    assert "PAUSED  26:40" in tmux.until("PAUSED").splitlines()[-1]
    tmux.run("resize-window", "-x", "60", "-y", "10")
    tmux.until("editor")
    tmux.press("q")
    tmux.until("$", gone="PAUSED")
    assert tmux.said("alternate_on") == "0"
    assert "evil" not in tmux.said("pane_title")
