"""Real shells on local ptys behind a Content: what was asked for beside what was typed.

Each case is typed the way a person types (some milliseconds a key), several cases at a time. The driver carries the
steps out as the relay would, except that it decides by itself.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from proxy.core.errors import Refused
from proxy.core.script import Invocation, Script
from proxy.core.session import Permit
from proxy.core.verdict import Deny
from proxy.terminal.content import Ask, Broken, Content, Done, Dropped, Settings, Step, ToTarget, ToUser, Wake
from proxy.terminal.terminal import terminal_content

UP, DOWN, LEFT, RIGHT = "\x1b[A", "\x1b[B", "\x1b[D", "\x1b[C"
KEY_GAP_SECONDS: Final = 0.006
PROMPT: Final = "P> "
LONG: Final = "echo " + " ".join(f"word{number:02}" for number in range(30))
EXACT: Final = "echo " + "e" * (80 - 5 - len(PROMPT))


@dataclass(frozen=True)
class Burst:
    """Keys that come in one read."""

    keys: str


@dataclass(frozen=True)
class Resize:
    """The terminal becomes 100 x 30."""


Part = str | float | Burst | Resize


@dataclass(frozen=True)
class Case:
    """What is typed, and the lines that are to be asked for (those typed into programs apart)."""

    name: str
    parts: tuple[Part, ...]
    lines: tuple[str, ...]


def _case(name: str, parts: Sequence[Part], lines: Sequence[str]) -> Case:
    return Case(name, tuple(parts), tuple(lines))


CASES: Final = (
    _case("simple", ["echo one\r"], ["echo one"]),
    _case("backspace", ["echo twoX\x7f\x7fO\r"], ["echo twO"]),
    _case("left-insert", ["eho three", LEFT * 8, "c", "\r"], ["echo three"]),
    _case("ctrl-a/e/k/y", ["two echo", "\x01", RIGHT * 4, "\x0b", "\x01\x19 \x05\x7f", "\r"], ["echo two"]),
    _case("ctrl-w/u", ["garbage line\x15echo foo bar\x17baz\r"], ["echo foo baz"]),
    _case("alt-b/d", ["echo aaa bbb", "\x1bb\x1bd", "ccc\r"], ["echo aaa ccc"]),
    _case("tab-unique", ["cat capx/uniq", "\t", 0.2, "\r"], ["cat capx/uniquefile.txt"]),
    _case("tab-list", ["ls capx/am", "\t\t", 0.3, "2", "\t", 0.2, "\r"], ["ls capx/ambig2"]),
    _case("history-up", ["echo h1\r", 0.2, UP, 0.1, "\r"], ["echo h1", "echo h1"]),
    _case("history-edit", ["echo old tail\r", 0.2, UP, 0.1, "\x7f" * 4, "new\r"], ["echo old tail", "echo old new"]),
    _case(
        "history-2up-down",
        ["echo a1\r", 0.2, "echo a2\r", 0.2, UP, UP, DOWN, 0.1, "\r"],
        ["echo a1", "echo a2", "echo a2"],
    ),
    _case(
        "ctrl-r",
        ["echo needle99\r", 0.2, "echo x\r", 0.2, "\x12", "needle", 0.2, "\r"],
        ["echo needle99", "echo x", "echo needle99"],
    ),
    _case(
        "ctrl-r-edit",
        ["echo needle98\r", 0.2, "\x12", "needle", 0.2, "\x05", "-z\r"],
        ["echo needle98", "echo needle98-z"],
    ),
    _case("backslash-cont", ["echo a \\\r", 0.1, "b\r"], ["echo a \\", "b"]),
    _case(
        "for-loop",
        ["for i in 1 2; do\r", 0.1, "echo $i\r", 0.1, "done\r"],
        ["for i in 1 2; do", "echo $i", "done"],
    ),
    _case("quote-multi", ["echo 'l1\r", 0.1, "l2'\r"], ["echo 'l1", "l2'"]),
    _case("heredoc", ["cat <<E\r", 0.1, "body $x\r", 0.1, "E\r"], ["cat <<E", "body $x", "E"]),
    _case("wrap-200", [LONG + "\r"], [LONG]),
    _case("wrap-edit-mid", [LONG, LEFT * 100, "ZZ", "\r"], [LONG[:-100] + "ZZ" + LONG[-100:]]),
    _case("wrap-exact-80", [EXACT + "\r"], [EXACT]),
    _case("bracketed-paste-2", [Burst("\x1b[200~echo p1\necho p2\x1b[201~"), 0.2, "\r"], ["echo p1\necho p2"]),
    _case("raw-paste-cr", [Burst("echo q1\r")], ["echo q1"]),
    _case("raw-paste-2", [Burst("echo q2\recho q3\r")], ["echo q2", "echo q3"]),
    _case("type-ahead", ["sleep 0.7\r", "echo ahead", 1.0, "\r"], ["sleep 0.7", "echo ahead"]),
    _case("wide", ["echo 世界 é 😀 end\r"], ["echo 世界 é 😀 end"]),
    _case("ctrl-c-then", ["rm -rf nothing\x03", 0.2, "echo after\r"], ["echo after"]),
    _case("ctrl-l", ["echo be", "\x0c", 0.2, "fore\r"], ["echo before"]),
    _case("bang-bang", ["echo bb\r", 0.2, "!!\r"], ["echo bb", "!!"]),
    _case("resize", [LONG[:120], Resize(), "\r"], [LONG[:120]]),
    _case("ctrl-o", ["echo o1\r", 0.2, UP, 0.1, "\x0f", 0.3, "\x03"], ["echo o1", "echo o1"]),
    _case("lf", ["echo lf", "\n"], ["echo lf"]),
    _case("empty", ["\r", 0.1, "   \r"], []),
    _case(
        "read-s",
        ["stty -echo; read x; stty echo\r", 0.2, "hunter2\r", 0.3, "echo ok\r"],
        ["stty -echo; read x; stty echo", "echo ok"],
    ),
    _case("leading-#", ["echo a # b > c $ d\r"], ["echo a # b > c $ d"]),
    _case("prompt-like", ["echo P> echo x\r"], ["echo P> echo x"]),
    _case(
        "vim",
        ["vim -u NONE capx/v\r", 0.7, "iecho in vim\r", "x\x1b:q!\r", 0.4, "echo back\r"],
        ["vim -u NONE capx/v", "echo back"],
    ),
    _case("less", ["seq 500 | less\r", 0.5, "q", 0.3, "echo back2\r"], ["seq 500 | less", "echo back2"]),
)
_DASH: Final = frozenset(
    {
        "simple",
        "backspace",
        "ctrl-w/u",
        "backslash-cont",
        "for-loop",
        "quote-multi",
        "heredoc",
        "wrap-200",
        "raw-paste-cr",
    }
    | {"raw-paste-2", "type-ahead", "wide", "ctrl-c-then", "lf", "empty", "leading-#", "prompt-like", "less"}
)


@dataclass(frozen=True)
class Shell:
    """A shell: how it is started, what is typed before the cases, and how many of its cases are read right at least."""

    name: str
    argv: tuple[str, ...]
    setup: tuple[str, ...]
    least: int
    skip: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()
    env: Mapping[str, str] = field(default_factory=dict)

    def cases(self) -> list[Case]:
        """Those that this shell can do."""
        return [case for case in CASES if case.name not in self.skip and (not self.only or case.name in self.only)]


_BASH: Final = ("bash", "--norc", "--noprofile", "-i")
_NO_PASTE: Final = frozenset({"bracketed-paste-2"})
# The least numbers are those of the note on SSH, section 7.
SHELLS: Final = (
    Shell("bash", _BASH, (f"PS1='{PROMPT}'",), 37),
    Shell("bash-colour", _BASH, (r"PS1='\[\e[32m\]\u@\h\[\e[0m\]:\[\e[34m\]\w\[\e[0m\]\$ '",), 36),
    Shell("bash-two-lines", _BASH, (r"PS1='\n[\t] \w\n\$ '",), 36),
    Shell("bash-no-paste", _BASH, (f"PS1='{PROMPT}'",), 35, skip=_NO_PASTE, env={"INPUTRC": "capx/inputrc"}),
    Shell("bash-vi", _BASH, ("set -o vi", f"PS1='{PROMPT}'"), 32),
    Shell("zsh", ("zsh", "-f", "-i"), (f"PS1='{PROMPT}'",), 33),
    Shell("zsh-right-prompt", ("zsh", "-f", "-i"), (f"PS1='{PROMPT}'; RPROMPT='[right]'",), 33),
    Shell("fish", ("fish", "--no-config"), (), 24),
    Shell("dash", ("dash", "-i"), (f"PS1='{PROMPT}'",), 18, only=_DASH),
    Shell("busybox", ("busybox", "sh"), (f"PS1='{PROMPT}'",), 30, skip=_NO_PASTE),
)


def programs(text: str) -> Script:
    """A shell reader for tests: the first word of what separators part."""
    parts = [part.split() for part in re.split(r"[;|&\n]+", text)]
    return Script(tuple(Invocation(tuple(words)) for words in parts if words), opaque="$" in text)


def permit_for(ask: Ask) -> Permit:
    """What stands for a permit here: only its identity counts."""
    return cast(Permit, _FakePermit(ask.command.text))


@dataclass(eq=False)
class _FakePermit:
    text: str


def folder(path: Path) -> Path:
    """Make the files that the cases speak of."""
    (path / "capx").mkdir()
    for name in ("uniquefile.txt", "ambig1", "ambig2"):
        (path / "capx" / name).write_text("x\n")
    (path / "capx" / "inputrc").write_text("set enable-bracketed-paste off\n")
    return path


class Driver:
    """A shell on a pty, a Content before it, and a person who types."""

    def __init__(
        self,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        deny: str | None = None,
        **settings: Any,
    ) -> None:
        self.content: Content = terminal_content(Settings(flow=0, columns=80, rows=24, **settings), programs)
        self.asks: list[Ask] = []
        self.done: list[Done] = []
        self.shown = b""
        self.sent: list[ToTarget] = []
        self.deny = deny
        self.last_output = time.monotonic()
        self._wake: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            home = {"HOME": str(cwd), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "HISTFILE": "/dev/null"}
            os.execvpe(argv[0], list(argv), {"PATH": os.environ["PATH"], **home, **(env or {})})
        self._size(80, 24)
        os.set_blocking(self.fd, False)
        self._loop.add_reader(self.fd, self._read)

    def _size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self.content.resized(columns, rows)
        self._size(columns, rows)

    def _read(self) -> None:
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self.fd)
            return
        self.last_output = time.monotonic()
        self.carry_out(self.content.from_target("out", data, self.last_output))

    def carry_out(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case ToTarget():
                    self.sent.append(step)
                    self.write(step.data)
                case ToUser():
                    self.shown += step.data
                case Ask():
                    self._decide(step)
                case Done():
                    self.done.append(step)
                case Wake():
                    if self._wake is not None:
                        self._wake.cancel()
                    self._wake = self._loop.call_later(step.seconds, self._tick)
                case Broken():
                    raise AssertionError(step.text)

    def _decide(self, ask: Ask) -> None:
        self.asks.append(ask)
        now = time.monotonic()
        if self.deny and re.search(self.deny, ask.command.text):
            self.carry_out(self.content.refused(ask, Refused(Deny("x", "not here")), now))
            return
        self.write(ask.data)
        self.carry_out(self.content.allowed(ask, permit_for(ask), now))

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data) :]

    def _tick(self) -> None:
        self.carry_out(self.content.tick(time.monotonic()))

    def keys(self, data: bytes) -> None:
        self.carry_out(self.content.from_user(data, time.monotonic()))

    async def type(self, *parts: Part) -> None:
        """One key, or one escape sequence, at a time; a number is a pause."""
        for part in parts:
            match part:
                case float() | int():
                    await asyncio.sleep(part)
                case Burst(keys):
                    self.keys(keys.encode())
                    await asyncio.sleep(0.02)
                case Resize():
                    self.resize(100, 30)
                    await asyncio.sleep(0.3)
                case str():
                    for key in re.findall(r"\x1b\[[0-9;]*[A-Za-z~]|\x1b.|.", part, re.DOTALL):
                        self.keys(key.encode())
                        await asyncio.sleep(KEY_GAP_SECONDS)

    async def quiet(self, seconds: float = 0.25, limit: float = 6.0) -> None:
        """Wait until the target has been silent for so long."""
        end = time.monotonic() + limit
        await asyncio.sleep(0.05)
        while time.monotonic() - self.last_output < seconds and time.monotonic() < end:
            await asyncio.sleep(0.02)

    async def until(self, true: Callable[[], bool], limit: float = 6.0) -> None:
        """Wait for something to come true."""
        async with asyncio.timeout(limit):
            while not true():
                await asyncio.sleep(0.01)

    def lines(self) -> list[tuple[str, str]]:
        return [(ask.command.text, str(ask.command.facts["how"])) for ask in self.asks]

    def close(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._loop.remove_reader(self.fd)
        os.close(self.fd)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


async def start(shell: Shell, cwd: Path, **more: Any) -> Driver:
    """A shell at its prompt."""
    driver = Driver(shell.argv, cwd, shell.env, **more)
    await asyncio.sleep(0.3)
    await driver.quiet(0.3)
    for line in shell.setup:
        driver.write(line.encode() + b"\r")
        await driver.quiet(0.25)
    driver.asks.clear()
    return driver


async def run_case(shell: Shell, case: Case, cwd: Path) -> list[tuple[str, str]]:
    """Type a case; return what was asked for, and how it was read."""
    driver = await start(shell, cwd)
    try:
        await driver.type(*case.parts)
        await driver.quiet()
        return driver.lines()
    finally:
        driver.close()


class Desk:
    """A Content without any I/O: a pretended target answers at once, and time passes only while somebody waits."""

    def __init__(
        self,
        answer: Callable[[bytes], bytes] = lambda data: b"",
        deny: Callable[[Ask], bool] = lambda ask: False,
        answering: bool = True,
        **settings: Any,
    ) -> None:
        self.content: Content = terminal_content(Settings(flow=7, login="root", **settings), programs)
        self.now = 100.0
        self.answer = answer
        self.deny = deny
        self.answering = answering  # decide at once
        self.asks: list[Ask] = []
        self.open: Ask | None = None
        self.done: list[Done] = []
        self.sent = self.untaped = self.dropped = b""  # of the user's keys
        self.taken = b""  # those sent, asked for or dropped, in this order
        self.shown = b""
        self.cleared = self.told = b""  # by the gate
        self.wake: float | None = None

    def out(self, data: bytes) -> None:
        """The target says something."""
        self.carry_out(self.content.from_target("out", data, self.now))

    def keys(self, data: bytes, settle: bool = True) -> None:
        """The user presses keys; settle: and waits for what comes of it."""
        self.carry_out(self.content.from_user(data, self.now))
        if settle:
            self.settle()

    def settle(self) -> None:
        """Let the time pass that the Content waits for."""
        for _ in range(100_000):
            if self.wake is None:
                return
            self.now, self.wake = max(self.now, self.wake), None
            self.carry_out(self.content.tick(self.now))
        raise AssertionError("it never comes to rest")

    def decide(self, ask: Ask) -> None:
        """Allow or deny it, as deny says."""
        self.open = None
        if self.deny(ask):
            self.carry_out(self.content.refused(ask, Refused(Deny("x", "not here")), self.now))
            return
        self.sent += ask.data
        said = self.answer(ask.data)
        self.carry_out(self.content.allowed(ask, permit_for(ask), self.now))
        if said:
            self.out(said)

    def carry_out(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case ToTarget():
                    if step.by_gate:
                        self.cleared += step.data
                    else:
                        self.sent += step.data
                        self.taken += step.data
                    if not step.taped:
                        self.untaped += step.data
                    if said := self.answer(step.data):
                        self.out(said)
                case ToUser():
                    if step.by_gate:
                        self.told += step.data
                    else:
                        self.shown += step.data
                case Ask():
                    assert self.open is None, "two questions at once"
                    self.asks.append(step)
                    self.taken += step.data
                    self.open = step
                case Dropped():
                    self.dropped += step.data
                    self.taken += step.data
                case Done():
                    self.done.append(step)
                case Wake():
                    assert step.seconds > 0
                    self.wake = self.now + step.seconds
                case Broken():
                    raise AssertionError(step.text)
        if self.open is not None and self.answering:
            self.decide(self.open)

    def texts(self) -> list[str]:
        return [ask.command.text for ask in self.asks]

    def hows(self) -> list[str]:
        return [str(ask.command.facts["how"]) for ask in self.asks]


class Bash:
    """What bash would send, as far as plain typing goes; cues False: a shell without them. ran: what it ran."""

    def __init__(self, cues: bool = True, echo: bool = True) -> None:
        self.cues, self.echo = cues, echo
        self.line = ""
        self.ran: list[str] = []
        self.output: Callable[[str], bytes] = lambda line: b""
        self._escape = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def prompt(self) -> bytes:
        return (b"\x1b[?2004h" if self.cues else b"") + PROMPT.encode()

    def __call__(self, data: bytes) -> bytes:
        said = b""
        for char in self._decoder.decode(data):  # a character is erased as one cell: a cell a byte eats the prompt
            said += self._key(char)
        return said

    def _key(self, char: str) -> bytes:
        if self._escape or char == "\x1b":
            self._escape += char.encode()
            if len(self._escape) > 2 and "@" <= char <= "~":
                self._escape = b""
            return b""
        off = b"\x1b[?2004l\r" if self.cues else b""
        match char:
            case "\r" | "\n":
                line, self.line = self.line, ""
                self.ran.append(line)
                return b"\r\n" + off + self.output(line) + self.prompt()
            case "\x7f":
                erased, self.line = self.line[-1:], self.line[:-1]
                return b"\b \b" if erased and self.echo else b""
            case "\x15":
                count, self.line = len(self.line), ""
                return (b"\b" * count + b"\x1b[K") if self.echo else b""
            case "\x03":
                self.line = ""
                return b"^C\r\n" + off + self.prompt()
            case _ if char >= " ":
                self.line += char
                return char.encode() if self.echo else b""
            case _:
                return b""
