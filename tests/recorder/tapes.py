"""What the recorder's tests share: disks that fail or count, clocks that stand still, and small tapes."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack

from recorder.disk import Disk
from recorder.seal import SealKey
from recorder.tape import GATE, OUT, USER, Kind, Recorder, Tape

KEY = SealKey.generate()
pack = msgpack.packb
made: list[Recorder] = []  # in the test that runs


class Clock:
    """A monotonic clock that advances only when told to."""

    def __init__(self) -> None:
        self.ns = 5_000_000_000

    def __call__(self) -> int:
        return self.ns

    def pass_ms(self, milliseconds: float) -> None:
        self.ns += int(milliseconds * 1e6)


class FaultyDisk(Disk):
    """Counts its calls by name; the one of the name numbered fail_at fails, a write after half of its bytes."""

    def __init__(self, name: str = "", fail_at: int = -1, code: int = errno.EIO) -> None:
        self.calls: Counter[str] = Counter()
        self.name = name
        self.fail_at = fail_at
        self.code = code
        self.failed = False
        self.open_descriptors: set[int] = set()

    def _count(self, name: str) -> bool:
        self.calls[name] += 1
        fails = name == self.name and self.calls[name] - 1 == self.fail_at
        self.failed = self.failed or fails
        return fails

    def _fail(self) -> None:
        raise OSError(self.code, os.strerror(self.code))

    def make_directories(self, path: Path) -> list[Path]:
        if self._count("make_directories"):
            self._fail()
        return super().make_directories(path)

    def create(self, path: Path) -> int:
        if self._count("create"):
            self._fail()
        descriptor = super().create(path)
        self.open_descriptors.add(descriptor)
        return descriptor

    def open_directory(self, path: Path) -> int:
        descriptor = super().open_directory(path)
        self.open_descriptors.add(descriptor)
        return descriptor

    def create_log(self, path: Path) -> int:
        if self._count("create_log"):
            self._fail()
        descriptor = super().create_log(path)
        self.open_descriptors.add(descriptor)
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes | memoryview]) -> None:
        if self._count("write"):
            data = b"".join(buffers)
            os.write(descriptor, data[: len(data) // 2])
            self._fail()
        super().write(descriptor, buffers)

    def write_through(self, descriptor: int, offset: int, data: bytes) -> None:
        if self._count("write_through"):
            os.pwrite(descriptor, data[: len(data) // 2], offset)
            self._fail()
        super().write_through(descriptor, offset, data)

    def sync(self, descriptor: int) -> None:
        if self._count("sync"):
            self._fail()
        super().sync(descriptor)

    def sync_directory(self, path: Path) -> None:
        if self._count("sync_directory"):
            self._fail()
        super().sync_directory(path)

    def close(self, descriptor: int) -> None:
        self.open_descriptors.discard(descriptor)
        super().close(descriptor)


def recorder(directory: Path, **more: Any) -> Recorder:
    """A Recorder with the tests' key; it is closed when the test ends (conftest.py)."""
    of = Recorder(directory, KEY, node="node-1", **more)
    made.append(of)
    return of


def open_tape(of: Recorder, mode: Any = "written", **more: Any) -> Tape:
    """A tape as PostgreSQL opens one."""
    fields: dict[str, Any] = {"protocol": "postgres", "identity": {"subject": "ana@acme"}, "target": "shop", **more}
    return of.open(mode=mode, **fields)


def command(tape: Tape, text: str, verb: str = "SELECT", verdict: str | None = "allow", **more: Any) -> int:
    """Append a COMMAND and, if given, its verdict."""
    n = tape.append(USER, Kind.COMMAND, pack({"verb": verb, "kind": "read", "text": text, **more}))
    if verdict is not None:
        reason = {"reason": "not today"} if verdict == "deny" else {}
        tape.append(GATE, Kind.VERDICT, pack({"command": n, "verdict": verdict, "rule": "r1", **reason}))
    return n


async def small_tape(of: Recorder, commands: int = 3, mode: Any = "written", close: bool = True) -> Path:
    """Write a tape of a few commands with answers; return its first segment."""
    tape = open_tape(of, mode)
    first = tape.path
    for i in range(commands):
        tape.append(USER, Kind.WIRE, b"Q%d" % i)
        n = command(tape, f"SELECT {i}")
        await tape.commit()
        tape.append(OUT, Kind.WIRE, b"row " * 50)
        tape.append(GATE, Kind.RESULT, pack({"command": n, "tag": "SELECT 1", "count": 1, "bytes": 200}))
        await tape.written()
    if close:
        await tape.close("closed", "bye")
    return first
