"""A local process with pipes or a terminal: how the stand-in runs commands where there is no container runtime."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

READ_BYTES: Final = 32768  # as much as kubelet sends in one piece
Send = Callable[[int, bytes], Awaitable[None]]  # 1 for stdout, 2 for stderr


class Process:
    """A running command. Raises OSError where it cannot be started."""

    def __init__(
        self, argv: Sequence[str], folder: Path, environment: Mapping[str, str], *, tty: bool, stdin: bool
    ) -> None:
        self.tty = tty
        self._input: int | None = None
        if tty:
            master, slave = pty.openpty()
            in_end = out_end = err_end = slave
            self._outputs = {1: master}
            self._input = master
        else:
            out, out_end = os.pipe()
            err, err_end = os.pipe()
            in_end, self._input = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), None)
            self._outputs = {1: out, 2: err}
        kept = [*self._outputs.values(), *([self._input] if self._input is not None and not tty else [])]

        def prepare() -> None:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):  # may be inherited as ignored
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            if tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        try:
            self._process = subprocess.Popen(
                argv, env=environment, cwd=folder, preexec_fn=prepare, stdin=in_end, stdout=out_end, stderr=err_end
            )
        except OSError:
            for number in kept:
                os.close(number)
            raise
        finally:
            for number in {in_end, out_end, err_end}:
                os.close(number)
        for number in kept:
            os.set_blocking(number, False)

    async def outputs(self, send: Send) -> None:
        """Send everything that it says, to the end of all of its outputs."""

        async def one(channel: int, number: int) -> None:
            while data := await self._read(number):
                await send(channel, data)
            if not self.tty:
                os.close(number)

        async with asyncio.TaskGroup() as group:
            for channel, number in self._outputs.items():
                group.create_task(one(channel, number))

    async def _read(self, number: int) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return os.read(number, READ_BYTES)
            except BlockingIOError:
                ready = asyncio.Event()
                loop.add_reader(number, ready.set)
                try:
                    await ready.wait()
                finally:
                    loop.remove_reader(number)
            except OSError:  # EIO: nobody has the terminal open any more
                return b""

    async def write(self, data: bytes) -> None:
        """Write to its stdin; what it no longer reads is dropped."""
        if self._input is None:
            return
        loop, rest = asyncio.get_running_loop(), memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._input, rest) :]
            except BlockingIOError:
                ready = asyncio.Event()
                loop.add_writer(self._input, ready.set)
                try:
                    await ready.wait()
                finally:
                    loop.remove_writer(self._input)
            except OSError:
                return

    def end_input(self) -> None:
        """Say that stdin is over."""
        if self._input is None:
            return
        if self.tty:
            with contextlib.suppress(OSError):
                os.write(self._input, b"\x04")
        else:
            os.close(self._input)
        self._input = None if not self.tty else self._input

    def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size."""
        if self.tty:
            fcntl.ioctl(self._outputs[1], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def wait(self) -> int:
        """Wait for its end; return the exit code as a shell would have it."""
        while (code := self._process.poll()) is None:
            await asyncio.sleep(0.005)
        if self.tty:
            os.close(self._outputs[1])
        elif self._input is not None:
            os.close(self._input)
        self._input = None
        return 128 - int(code) if code < 0 else int(code)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it and what it has started."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, number)
