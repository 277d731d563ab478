"""The player in a pseudo terminal: its keys, its timing, and a terminal that is always left as it was found.

No test sleeps: tapes have pauses of a thousand seconds, so whatever appears was asked for by a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from recorder.cipher import AuditorKey
from recorder.reader import TapeReader
from recorder.replay import BadOption, Player, ReplayOptions
from recorder.tape import GATE, OUT, Kind
from tests.recorder.tapes import Clock, command, open_tape, pack, recorder, small_tape

DEADLINE_SECONDS = 10.0
WHOLE_DAY_MS = 1_000_000.0


def make(directory: Path, gap_ms: float = WHOLE_DAY_MS, commands: int = 4, after_ms: float = 0.0) -> Path:
    """Commands a long time apart; after_ms: from a command to its verdict."""
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(directory, monotonic_ns=clock))
        for i in range(1, commands + 1):
            command(tape, f"SELECT {i}", verdict=None)
            clock.pass_ms(after_ms)
            tape.append(OUT, Kind.MARK, b"\x82\xa5label\xa4done\xa4text\xa1%d" % i)
            clock.pass_ms(gap_ms)
        await tape.close("closed")
        return tape.path

    return asyncio.run(scenario())


class Viewer:
    """A pseudo terminal with somebody at it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.found = termios.tcgetattr(self.slave)
        self.seen = ""
        self.errors: list[BaseException] = []
        self.thread: threading.Thread | None = None

    def watch(self, path: Path, keys: Sequence[AuditorKey] = (), **options: object) -> None:
        player = Player(
            TapeReader(path, keys),
            ReplayOptions(**options),  # type: ignore[arg-type]
            self.slave,
            self.slave,
            timed=True,
        )

        def run() -> None:
            try:
                player.play()
            except BaseException as error:
                self.errors.append(error)

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def until(self, text: str) -> str:
        """Read until the text was shown; return all that was shown before it, and forget both."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not shown, but {self.seen!r}"
            self.seen += os.read(self.master, 65536).decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def nothing_comes(self) -> None:
        ready, _, _ = select.select([self.master], [], [], 0.2)
        if ready:
            self.seen += os.read(self.master, 65536).decode()
        assert "SELECT" not in self.seen and "done" not in self.seen, self.seen

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def ends(self) -> None:
        assert self.thread is not None
        self.thread.join(DEADLINE_SECONDS)
        assert not self.thread.is_alive()
        assert termios.tcgetattr(self.slave) == self.found
        assert self.errors == []

    def close(self) -> None:
        if self.thread is not None and self.thread.is_alive():
            self.press("q")
            self.thread.join(DEADLINE_SECONDS)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    one = Viewer()
    yield one
    one.close()


SELECT = "\x1b[94mSELECT\x1b[0m "


def nth(i: int) -> str:
    return f"{SELECT}\x1b[36m{i}\x1b[0m"


def test_forward_and_back(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(make(tmp_path))
    assert "REC " in viewer.until(nth(1))
    viewer.until("done: 1")
    viewer.press("]")
    viewer.until(nth(2))
    viewer.until("done: 2")
    viewer.press("]")
    viewer.until("done: 3")
    viewer.press("[")
    before = viewer.until(nth(2))
    assert "\x1b[2J" in before
    assert nth(1) in before, "the state at that point is shown, not the command alone"
    assert nth(3) not in viewer.until("done: 2")
    viewer.press("g")
    assert "\x1b[2J" in viewer.until(nth(1))
    viewer.until("done: 1")
    viewer.press("]]]")  # in one go: one counts from the other
    viewer.until(nth(4))
    viewer.press("q")
    viewer.ends()


def test_times_and_tenths(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(make(tmp_path))  # 1000 s apart, 4000 s long
    viewer.until("done: 1")
    viewer.press("5")
    viewer.until("done: 3")
    viewer.until("33:20 / 1:06:40")
    viewer.press("\x1b[D")  # the arrow to the left: 5 s back, before the third
    before = viewer.until("33:15")
    assert nth(2) in before
    assert nth(3) not in before
    viewer.press("\x1bOC")  # and to the right
    viewer.until("done: 3")
    viewer.press("G")
    viewer.until("session closed")
    viewer.until("PAUSED")
    viewer.press("0 ")
    assert nth(2) not in viewer.until("done: 1")
    viewer.press("q")
    viewer.ends()


def test_step_shows_one_thing_at_a_time(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(make(tmp_path))
    viewer.until("done: 1")
    viewer.press(".")
    before = viewer.until(nth(2))
    assert "done" not in before
    assert "PAUSED" in before
    viewer.nothing_comes()  # at the same time on the tape, but it is paused
    viewer.press(".")
    viewer.until("done: 2")
    viewer.nothing_comes()
    viewer.press("..")
    viewer.until(nth(3))
    viewer.press(" ")
    viewer.until("done: 3")
    viewer.press("q")
    viewer.ends()


def story(directory: Path) -> Path:
    """A hold that is approved, a denial and an error, 1000 s apart, each behind a command of no interest."""
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(directory, monotonic_ns=clock))
        for i in range(3):
            clock.pass_ms(WHOLE_DAY_MS)
            command(tape, f"SELECT {i}")
            n = command(tape, f"DROP TABLE t{i}", verdict="deny" if i == 1 else None)
            if i == 0:
                tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", "state": "pending", "rule": "w"}))
                tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", "state": "approved", "by": "mia"}))
            if i == 2:
                error = {"code": "22012", "message": "division by zero"}
                tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "", "error": error}))
            await tape.written()
        clock.pass_ms(WHOLE_DAY_MS)
        await tape.close("closed")
        return tape.path

    return asyncio.run(scenario())


def test_markers_by_key(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(story(tmp_path))
    viewer.until("PLAY")
    viewer.press(" }")
    assert "[approved]" not in viewer.until("[hold]")
    viewer.press("}")
    viewer.until("[approved]")
    viewer.press("}")
    viewer.until("[DENIED]")
    viewer.press("}")
    viewer.until("22012")
    viewer.press("}")
    viewer.until("no marker after this")
    viewer.press("{")
    before = viewer.until("33:20")
    assert "[DENIED]" in before
    assert "22012" not in before
    viewer.press("{{")
    before = viewer.until("16:40")
    assert "[hold]" in before
    assert "[approved]" not in before
    viewer.press("{")
    viewer.until("no marker before this")
    viewer.press("q")
    viewer.ends()


def test_pausing_at_markers(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(story(tmp_path), pause_on_markers=True, idle_limit_seconds=0.0)
    viewer.until("[hold]")
    viewer.until("PAUSED")
    viewer.press(" ")
    viewer.until("[approved]")
    viewer.until("PAUSED")
    viewer.press("m ")
    viewer.until("session closed")
    viewer.ends()


def test_help_and_status(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(make(tmp_path))
    viewer.until("Q1 of 4   1x   ? help")
    viewer.press("?")
    viewer.until("previous command")
    viewer.press("x")
    viewer.until(nth(1))
    viewer.until("Q1 of 4")
    viewer.press("+")
    viewer.until("2x")
    viewer.press("<<")
    viewer.until("0.5x")
    viewer.press("s")
    viewer.until(nth(1))
    viewer.press("+ ")
    viewer.press("]")  # draws what comes, but no status
    assert "PAUSED" not in viewer.until(nth(2))
    viewer.press("q")
    viewer.ends()


def test_a_terminal_session_keeps_its_screen_and_the_sign_is_the_title(viewer: Viewer, tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> Path:
        tape = open_tape(recorder(tmp_path, monotonic_ns=clock), protocol="ssh", more={"tty": [80, 24]})
        tape.append(OUT, Kind.WIRE, b"login\r\n")
        clock.pass_ms(WHOLE_DAY_MS)
        tape.append(OUT, Kind.WIRE, b"\x1b[?1049h\x1b[2Jeditor\x1b]52;c;x\x07")
        clock.pass_ms(WHOLE_DAY_MS)
        tape.append(OUT, Kind.WIRE, b"typed")
        clock.pass_ms(WHOLE_DAY_MS)
        tape.append(OUT, Kind.WIRE, b"\x1b[?1049lbye")
        await tape.close("closed")
        return tape.path

    viewer.watch(asyncio.run(scenario()))
    before = viewer.until("login")
    assert "\x1b[22;2t" in before, "the title is kept"
    assert "\x1b[1;23r" not in before, "no row is taken from the session"
    viewer.press(" ")
    viewer.until("\x1b]2;gatecast replay: PAUSED")
    viewer.press("7")
    viewer.until("typed")
    viewer.press("G")
    viewer.until("bye")
    viewer.press("7")
    before = viewer.until("typed")
    assert "login\r\r\n\x1b[?1049h\x1b[2Jeditor" in before, "each on its own screen"
    assert "\x1b]52" not in before
    viewer.press("q")
    viewer.ends()
    viewer.until("\x1b[?1049l")
    viewer.until("\x1b[23;2t")


def test_pause_stops_and_keeps_the_time(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(make(tmp_path, gap_ms=400))
    viewer.until("done: 1")
    viewer.press(" ")
    viewer.nothing_comes()
    viewer.nothing_comes()
    viewer.nothing_comes()
    viewer.press(" ")
    viewer.until(nth(2))
    viewer.press("q")
    viewer.ends()


def test_speed(viewer: Viewer, tmp_path: Path) -> None:
    began = time.monotonic()
    viewer.watch(make(tmp_path, gap_ms=6_400))
    viewer.until("done: 1")
    viewer.press("++++++++")  # up to the limit, 64 times
    viewer.until("session closed")
    viewer.ends()
    assert time.monotonic() - began < 6.4


def test_slower(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(make(tmp_path, gap_ms=5_000), speed=32.0)
    viewer.until("done: 1")
    viewer.press("------------------")
    viewer.nothing_comes()
    viewer.press("q")
    viewer.ends()


def test_real_timing(viewer: Viewer, tmp_path: Path) -> None:
    began = time.monotonic()
    viewer.watch(make(tmp_path, gap_ms=100, commands=3))
    viewer.until("session closed")
    assert 0.28 <= time.monotonic() - began < 3


def test_idle_limit(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(make(tmp_path), idle_limit_seconds=0.01)
    viewer.until("session closed")
    viewer.ends()


def test_from_and_to(viewer: Viewer, tmp_path: Path) -> None:
    viewer.watch(make(tmp_path), start="41:40", stop="49:59", idle_limit_seconds=0.0)
    before = viewer.until(nth(3))
    assert "done: 2" in before, "what was on the screen then"
    viewer.until("done: 3")
    viewer.ends()
    assert nth(4) not in viewer.seen


def test_begin_with_a_command(viewer: Viewer, tmp_path: Path) -> None:
    path = make(tmp_path)
    viewer.watch(path, command=4)
    viewer.until(nth(4))
    viewer.until("Q4 of 4")
    viewer.press("q")
    viewer.ends()
    with pytest.raises(BadOption, match="no command 5; the tape has 4"):
        Player(TapeReader(path), ReplayOptions(command=5), viewer.slave, None, timed=False)


@pytest.mark.parametrize("keys", ["q", "Q", "\x04"])
def test_quit(viewer: Viewer, tmp_path: Path, keys: str) -> None:
    viewer.watch(make(tmp_path))
    viewer.until("done: 1")
    assert not termios.tcgetattr(viewer.slave)[3] & (termios.ECHO | termios.ICANON)
    viewer.press("xyz\x1b[5~" + keys)  # unknown keys do nothing
    viewer.ends()


def test_an_error_restores_the_terminal_too(viewer: Viewer, tmp_path: Path) -> None:
    path = make(tmp_path)
    viewer.watch(path)
    viewer.until("done: 1")
    data = bytearray(path.read_bytes())
    place = TapeReader(path).segment(0).data[0]
    data[place.offset + 60] ^= 1
    path.write_bytes(data)
    viewer.press("[")  # back to the start: the tape is damaged now
    assert viewer.thread is not None
    viewer.thread.join(DEADLINE_SECONDS)
    assert termios.tcgetattr(viewer.slave) == viewer.found
    assert [type(error).__name__ for error in viewer.errors] == ["FormatError"]


def test_follow_a_live_session(viewer: Viewer, tmp_path: Path) -> None:
    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path, segment_limit=1000))
        command(tape, "SELECT 1")
        await tape.written()
        viewer.watch(tape.path, follow=True, idle_limit_seconds=0.0)
        await asyncio.to_thread(viewer.until, nth(1))
        for i in range(2, 8):  # over several segments
            command(tape, f"SELECT {i}", values=["x" * 200])
            await tape.written()
            await asyncio.to_thread(viewer.until, nth(i))
        assert tape.path.name.split(".")[1] != "000"
        await tape.close("closed")
        await asyncio.to_thread(viewer.until, "session closed")

    asyncio.run(scenario())
    viewer.ends()


def test_follow_says_when_the_gateway_died(viewer: Viewer, tmp_path: Path) -> None:
    path = asyncio.run(small_tape(recorder(tmp_path), commands=2))
    whole = path.read_bytes()
    place = TapeReader(path).segment(0).data[-1]
    path.write_bytes(whole[: place.offset + 20])  # no seal, a torn end, and nobody holds its lock
    viewer.watch(path, follow=True, idle_limit_seconds=0.0)
    viewer.until("the gateway died")
    viewer.ends()


def test_a_long_record_that_comes_in_two_blocks_is_followed(viewer: Viewer, tmp_path: Path) -> None:
    async def scenario() -> None:
        tape = open_tape(recorder(tmp_path))
        viewer.watch(tape.path, follow=True, idle_limit_seconds=0.0)
        await asyncio.to_thread(viewer.until, "REC ")
        command(tape, "SELECT 1 /*" + "x" * 3_000_000 + "*/", verb="LONG")
        await tape.written()
        await asyncio.to_thread(viewer.until, "[allow]")
        await tape.close("closed")
        await asyncio.to_thread(viewer.until, "session closed")

    asyncio.run(scenario())
    viewer.ends()


def test_piped_it_prints_everything_at_once_and_plain(tmp_path: Path) -> None:
    path = make(tmp_path)
    out, write = os.pipe()
    Player(TapeReader(path), ReplayOptions(), write, None, timed=False).play()
    os.close(write)
    with os.fdopen(out, "rb") as file:
        text = file.read().decode()
    assert "\x1b" not in text
    assert "\r" not in text
    assert [f"SELECT {i}" in text for i in (1, 2, 3, 4)] == [True] * 4
    assert text.endswith("-- session closed\n")


SCRIPT = "import sys; from pathlib import Path; from recorder.cli import replay_main; from recorder.replay import \
ReplayOptions; sys.exit(replay_main(Path(sys.argv[1]), ReplayOptions()))"


@contextlib.contextmanager
def start(path: Path, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    # In a process group of its own: one whose parents are gone, as under setsid, takes no SIGTSTP (POSIX, 2.4.3).
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)], cwd=Path(__file__).parents[2], process_group=0, **streams
    )
    try:
        yield process
    finally:
        process.kill()  # it may wait for a terminal that nobody reads any more
        with process:  # waits, and closes its pipes
            pass


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (lambda process, viewer: process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
        (lambda process, viewer: process.send_signal(signal.SIGINT), 0),
        (lambda process, viewer: viewer.press("q"), 0),
    ],
    ids=["SIGTERM", "SIGINT", "q"],
)
def test_the_real_thing(
    viewer: Viewer, tmp_path: Path, stop: Callable[[subprocess.Popen[bytes], Viewer], None], code: int
) -> None:
    streams = {"stdin": viewer.slave, "stdout": viewer.slave, "stderr": viewer.slave}
    with start(make(tmp_path), **streams) as process:
        viewer.until("done: 1")
        stop(process, viewer)
        assert process.wait(DEADLINE_SECONDS) == code
    assert termios.tcgetattr(viewer.slave) == viewer.found
    viewer.until("\x1b[?25h")
    assert "Traceback" not in viewer.seen


def test_stopped_and_continued(viewer: Viewer, tmp_path: Path) -> None:
    streams = {"stdin": viewer.slave, "stdout": viewer.slave, "stderr": viewer.slave}
    with start(make(tmp_path), **streams) as process:
        viewer.until("done: 1")
        process.send_signal(signal.SIGTSTP)
        viewer.until("\x1b[?25h")
        assert os.waitpid(process.pid, os.WUNTRACED)[1] & 0xFF == 0x7F, "it is stopped"
        assert termios.tcgetattr(viewer.slave) == viewer.found, "and the shell has its terminal"
        process.send_signal(signal.SIGCONT)
        viewer.until("done: 1")
        assert not termios.tcgetattr(viewer.slave)[3] & termios.ECHO
        fcntl.ioctl(viewer.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
        process.send_signal(signal.SIGWINCH)
        viewer.until("\x1b[1;29r")
        viewer.until("done: 1")
        viewer.press("q")
        assert process.wait(DEADLINE_SECONDS) == 0
    assert termios.tcgetattr(viewer.slave) == viewer.found


def test_the_real_thing_into_a_pipe_that_closes(tmp_path: Path) -> None:
    path = make(tmp_path, commands=5000, gap_ms=1)
    with start(path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(3) == b"REC"
        process.stdout.close()
        assert process.wait(DEADLINE_SECONDS) == 0
        assert process.stderr.read() == b""
