"""What the demo shows: narration, commands as they were typed, their real output; and psql on a terminal of its own.

psql runs on a pseudo-terminal, so that it is as interactive as under a person's hands: it shows its prompt, waits
in a held statement, and Ctrl-C reaches it as a signal. What it writes is shown as it comes.

Left out: line editing (psql -n), so that nothing but the text itself is on the screen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from proxy.core.text import harmless

COMMAND_SECONDS: Final = 30.0
END_SECONDS: Final = 10.0
READ_BYTES: Final = 65_536
COLUMNS: Final = 100
ROWS: Final = 40
_INDENT: Final = " " * 10

_BOLD, _CYAN, _GREEN, _RED, _DIM = "1", "36", "32", "31", "2"


class StepError(Exception):
    """A step did not give what it should; the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended: what it wrote (both streams, in order) and its exit code."""

    output: str
    code: int


class Console:
    """Writes to one stream; color only where it is a terminal, and nothing at all where out is None."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = out
        self._color = out is not None and out.isatty() and "NO_COLOR" not in os.environ

    def step(self, number: int, count: int, title: str) -> None:
        """Begin a step."""
        self._write("\n" + self._paint(f"[{number}/{count}] {title}", _BOLD, _CYAN) + "\n")

    def say(self, text: str) -> None:
        """Say in a line or two what happened."""
        self._write("".join(self._paint(f"  {line}", _CYAN) + "\n" for line in text.splitlines()))

    def good(self, text: str) -> None:
        """Say what was checked and found."""
        self._write(self._paint(f"  ok: {text}", _GREEN) + "\n")

    def bad(self, text: str) -> None:
        """Say what went wrong."""
        self._write("".join(self._paint(f"  FAILED: {line}", _RED, _BOLD) + "\n" for line in text.splitlines()))

    def begin(self, text: str) -> None:
        """Say what is being done, before it is; the line is ended by end()."""
        self._write(self._paint(f"  {text} ... ", _DIM))

    def end(self, text: str) -> None:
        """End the line of begin()."""
        self._write(text + "\n")

    def typed(self, line: str, where: str = "$") -> None:
        """Show a command as it is typed."""
        self._write(self._paint(f"{where} {line}", _BOLD) + "\n")

    def raw(self, text: str) -> None:
        """Show output of a command."""
        self._write(text)

    def _write(self, text: str) -> None:
        if self._out is not None:
            self._out.write(text)
            self._out.flush()

    def _paint(self, text: str, *sgr: str) -> str:
        return f"\x1b[{';'.join(sgr)}m{text}\x1b[0m" if self._color else text


def run_line(console: Console, line: str, folder: Path, environment: Mapping[str, str], shown: str = "") -> Done:
    """Run a shell line in the folder, and show it with its output. shown: in place of the line. Raises StepError."""
    console.typed(shown or line)
    try:
        done = subprocess.run(  # noqa: S603  # the demo's own text
            ["/bin/sh", "-c", line],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"this took longer than {COMMAND_SECONDS:.0f} s: {line}") from error
    console.raw("".join(_folded(line) + "\n" for line in done.stdout.splitlines()))
    return Done(done.stdout, done.returncode)


def _folded(line: str) -> str:
    """A line as a terminal of COLUMNS shows it; what does not fit is on lines of its own, and indented."""
    if len(line) <= COLUMNS:
        return line
    return "\n".join(textwrap.wrap(line, COLUMNS, subsequent_indent=_INDENT, break_on_hyphens=False))


class Terminal:
    """A program on a terminal: type into it, and read until it has written what is waited for."""

    def __init__(self, console: Console, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._console = console
        self._unread = ""
        self._unshown = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        try:
            self._process = subprocess.Popen(  # noqa: S603  # psql, as it was found
                list(command),
                cwd=folder,
                env=dict(environment),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                # A session of its own whose terminal this is: Ctrl-C typed into it reaches psql, and psql alone.
                preexec_fn=_take_terminal,  # this process has no threads
            )
        finally:
            os.close(slave)

    def type(self, text: str, end: str = "\n") -> None:
        """Type text and the return key."""
        os.write(self._master, (text + end).encode())

    def until(self, pattern: str, seconds: float = COMMAND_SECONDS) -> str:
        """Read and show until the pattern is in what was written; returns all up to its end. Raises StepError."""
        deadline = time.monotonic() + seconds
        wanted = re.compile(pattern)
        while (found := wanted.search(self._unread)) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise StepError(f"psql did not write {pattern!r}, but: {self._unread.strip()[-400:] or 'nothing'}")
        text, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return text

    def end(self) -> int:
        """Wait for the program's end and return its exit code. Raises StepError."""
        while self._read(END_SECONDS):
            pass
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise StepError("psql did not end") from error

    def close(self) -> None:
        """End the program, however it is, and give the terminal back."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(END_SECONDS)
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        """Read once; False at the end or when nothing came in time."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self._master, READ_BYTES)
        except OSError:  # EIO: Linux's way to say that nobody has the other side open
            return False
        # All of the demo's text is ASCII; a character split between two reads would show as U+FFFD.
        text = data.decode("utf-8", "replace").replace("\r\n", "\n")
        self._unread += text
        # Whole lines only: a prompt is shown with what is typed behind it, and not ahead of the narration.
        whole, newline, self._unshown = (self._unshown + text).rpartition("\n")
        self._console.raw(harmless(whole + newline, lines=True))
        return bool(data)


@contextlib.contextmanager
def terminal(
    console: Console, command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[Terminal]:
    """A Terminal that is closed in the end."""
    opened = Terminal(console, command, folder, environment)
    try:
        yield opened
    finally:
        opened.close()


def _take_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
