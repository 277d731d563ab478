"""The terminal that a tape is played on: keys as they come, its size, signals, and everything put back at the end.

While it is entered, keys arrive one by one and unechoed. The terminal is left as it was found whatever happens: at the
end, on an error, on SIGTERM, SIGHUP and SIGQUIT, and while the player is stopped (Ctrl-Z), from which it comes back
with a fresh picture. Typed-ahead keys are thrown away at the end: a shell must not run what was meant for the player.

Signals are for the main thread only; elsewhere (tests) the keys work and the signals are not ours. They wake select()
through the wake-up descriptor, so none gets lost between a check and the wait.

Left out: asking the terminal anything (its size is the kernel's word), terminfo. Source: POSIX termios, ECMA-48.
"""

from __future__ import annotations

import os
import re
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Final

_KEYS_BYTES: Final = 256
_ESCAPE_SECONDS: Final = 0.05  # for the rest of a key's sequence that came in two pieces
_KEY: Final = re.compile(rb"\x1b[\[O][0-9;]*[@-~]|\x1b.?|.", re.DOTALL)
_UNFINISHED: Final = re.compile(rb"\x1b([\[O][0-9;]*)?\Z")
_SIZE: Final = (80, 24)  # of a terminal that does not know its own


class Quit(Exception):
    """The viewer has seen enough."""


class Terminal:
    """out is written to; keys are read from a descriptor, None: there are none."""

    def __init__(self, out: int, keys: int | None) -> None:
        self._out = out
        self._keys = keys
        self._found: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._wake: tuple[int, int] | None = None
        self._old_wake = -1
        self._stop_asked = False
        self.fresh_wanted = False  # the picture is wrong: another size, or others wrote on it
        self.on_stop: Callable[[], None] = lambda: None  # called before the player is stopped

    @property
    def has_keys(self) -> bool:
        """Whether there is somebody to press any."""
        return self._keys is not None

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, rows = os.get_terminal_size(self._out)
        except OSError:
            return _SIZE
        return columns or _SIZE[0], rows or _SIZE[1]

    def write(self, text: str) -> None:
        """Write all of it. Raises OSError."""
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:  # somebody made our terminal non-blocking, ssh for one
                select.select([], [self._out], [])

    def wait(self, seconds: float | None) -> list[bytes]:
        """Wait so long (None: for ever) for keys; return them. Raises Quit when no key can ever come."""
        watched = [descriptor for descriptor in (self._keys, self._wake and self._wake[0]) if descriptor is not None]
        if self._keys is None and seconds is None:
            raise Quit
        if not watched:
            time.sleep(seconds or 0)
            return []
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._wake is not None and self._wake[0] in ready:
            with suppress(BlockingIOError):
                os.read(self._wake[0], _KEYS_BYTES)
            if self._stop_asked:
                self._stop()
        if self._keys is None or self._keys not in ready:
            return []
        return [bytes(key) for key in _KEY.findall(self._read())]

    def _read(self) -> bytes:
        assert self._keys is not None
        try:
            data = os.read(self._keys, _KEYS_BYTES)
            if data and _UNFINISHED.search(data) and select.select([self._keys], [], [], _ESCAPE_SECONDS)[0]:
                data += os.read(self._keys, _KEYS_BYTES)
        except OSError:  # the terminal is gone
            data = b""
        if not data:
            raise Quit
        return data

    # -- entering and leaving -------------------------------------------------------------------------

    def __enter__(self) -> Terminal:
        if self._keys is not None and os.isatty(self._keys):
            self._found = termios.tcgetattr(self._keys)
        try:
            if threading.current_thread() is threading.main_thread():
                self._take_signals()
            self._unecho()
        except BaseException:
            self._put_back()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._put_back()

    def _put_back(self) -> None:
        if self._found is not None and self._keys is not None:
            with suppress(termios.error, OSError):  # a terminal that is gone needs nothing
                termios.tcflush(self._keys, termios.TCIFLUSH)
                termios.tcsetattr(self._keys, termios.TCSANOW, self._found)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._wake is not None:
            signal.set_wakeup_fd(self._old_wake)
            for descriptor in self._wake:
                os.close(descriptor)
            self._wake = None

    def _unecho(self) -> None:
        if self._found is not None and self._keys is not None:
            tty.setcbreak(self._keys, termios.TCSANOW)

    def _take_signals(self) -> None:
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_wake = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        wanted: list[tuple[int, Any]] = [(number, _end) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
        wanted += [(signal.SIGWINCH, self._on_change), (signal.SIGCONT, self._on_continue)]
        # A shell without job control starts its children with SIGTSTP ignored; then it stays so.
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            wanted.append((signal.SIGTSTP, self._on_stop))
        for number, handler in wanted:
            self._handlers[number] = signal.signal(number, handler)

    def _on_change(self, _number: int, _frame: FrameType | None) -> None:
        self.fresh_wanted = True

    def _on_continue(self, _number: int, _frame: FrameType | None) -> None:
        with suppress(termios.error):  # in the background again already; the next SIGCONT comes
            self._unecho()
        self.fresh_wanted = True

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_asked = True  # done in wait(): never in the middle of a write

    def _stop(self) -> None:
        """Give the terminal back, stop, and take it again when continued."""
        self._stop_asked = False
        self.on_stop()
        if self._found is not None and self._keys is not None:
            termios.tcsetattr(self._keys, termios.TCSANOW, self._found)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # returns when continued
        signal.signal(signal.SIGTSTP, self._on_stop)
        self._unecho()
        self.fresh_wanted = True


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
