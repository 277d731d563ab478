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

from recorder.escape import width
from recorder.tape import GATE, OUT, Kind
from tests.peers.postgres import PeerMissing, need
from tests.recorder.stories import one_of_everything
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

    def size(self, columns: int, rows: int) -> None:
        self.run("resize-window", "-x", str(columns), "-y", str(rows))

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

    def until_all(self, *texts: str) -> str:
        """Look until all of the texts are on the screen, wherever a line ends."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not all(text in (screen := self.screen()).replace("\n", "") for text in texts):
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


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40), (200, 60), (60, 14)])
def test_every_key_at_every_size(tmux: Tmux, tmp_path: Path, columns: int, rows: int) -> None:
    tmux.size(columns, rows)
    play(tmux, one_of_everything(tmp_path / "tapes"))
    tmux.until("Q1 of 4")
    tmux.press("Space")
    tmux.until("PAUSED")
    # What the status line has to say after each key, and what has to be on the screen.
    for key, status, shown in (
        ("}", "Q2 of 4", "[hold] rule=writes"),
        ("}", "Q2 of 4", '"ok #812"'),
        ("}", "Q3 of 4", "22012: division by zero"),
        ("}", "Q4 of 4", "[DENIED] rule=r1: not today"),
        ("{", "Q3 of 4", "22012: division by zero"),
        ("[", "Q2 of 4", "UPDATE orders"),
        ("[", "Q1 of 4", "SELECT id, name, email"),
        ("]", "Q2 of 4", "UPDATE orders"),
        ("G", "Q4 of 4", "session closed: user left"),
        ("5", "Q2 of 4", "[hold] rule=writes"),
        ("g", "Q0 of 4", "REC "),
        ("Right", "Q2 of 4", "[hold] rule=writes"),
    ):
        tmux.press(key)
        lines = tmux.until_all(status, shown).splitlines()
        assert len(lines) == rows
        assert status in lines[-1]
        assert sum("PAUSED" in line for line in lines) == 1, "no status line was left behind"
        tables = [line for line in lines if line.startswith("|")]
        assert len({width(line.rpartition("|")[0]) for line in tables}) <= 1, tables
        assert all(width(line) <= columns for line in lines)
    tmux.size(columns - 5, rows - 1)
    screen = tmux.until("PAUSED")
    while len(screen.splitlines()) != rows - 1 or "PAUSED" not in screen.splitlines()[-1]:
        screen = tmux.until("PAUSED")
    tmux.press("s")
    tmux.until("UPDATE", gone="PAUSED")
    tmux.press("s")
    tmux.until("PAUSED")
    tmux.press("q")
    tmux.until("$", gone="PAUSED")
    assert tmux.said("cursor_flag") == "1"
    assert tmux.said("wrap_flag") == "1"
    assert (tmux.said("scroll_region_upper"), tmux.said("scroll_region_lower")) == ("0", str(rows - 2))
    tmux.press("echo typed $((20 + 22))", "Enter")
    tmux.until("typed 42")


GATEWAY = """
import asyncio, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from recorder.cipher import AuditorKey
from tests.recorder.stories import one_of_everything
from tests.recorder.tapes import command, open_tape, recorder

async def main():
    key = AuditorKey(X25519PrivateKey.from_private_bytes(b"k" * 32))
    tape = open_tape(recorder(Path(sys.argv[1])), recipients=[key.recipient])
    print(tape.path, flush=True)
    i = 0
    while True:
        i += 1
        command(tape, f"SELECT {i}")
        await tape.written()
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""
FOLLOW = (
    "import sys; from pathlib import Path; from recorder.cli import replay_main; from recorder.replay import "
    "ReplayOptions; from recorder.cipher import AuditorKey; from cryptography.hazmat.primitives.asymmetric.x25519 "
    "import X25519PrivateKey; sys.exit(replay_main(Path(sys.argv[1]), ReplayOptions(follow=True), "
    "[AuditorKey(X25519PrivateKey.from_private_bytes(b'k' * 32))]))"
)


def test_a_gateway_that_is_killed_while_it_is_watched(tmux: Tmux, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, str(tmp_path / "tapes")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as gateway:
        try:
            assert gateway.stdin is not None
            assert gateway.stdout is not None
            path = gateway.stdout.readline().strip()
            tmux.press(f"cd {ROOT} && {shlex.join([sys.executable, '-c', FOLLOW, path])}", "Enter")
            tmux.until("SELECT 1")
            assert "LIVE" in tmux.until("LIVE").splitlines()[-1]
            gateway.stdin.write("\n")
            gateway.stdin.flush()
            tmux.until("SELECT 2")
            gateway.kill()
            screen = tmux.until("the gateway died", gone="LIVE")
        finally:
            gateway.kill()
    assert "SELECT 2" in screen
    tmux.press("echo typed $((20 + 22))", "Enter")
    tmux.until("typed 42")
