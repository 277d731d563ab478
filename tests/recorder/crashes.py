"""A disk that remembers what would survive a power cut, and makes the directories that a crash could leave.

CrashDisk does everything on real files and writes down each operation. World steps through those operations and knows,
at each point, what was synced and what was not; image() builds one directory that a crash at that point may leave:

    nothing   only what was synced
    all       everything that the kernel had: a kill, or a lucky power cut; the last write may be torn
    prefix    of each file the first so many operations after its last sync, the last of them torn
    pages     of each 4 KiB page of each write by itself: written, lost, torn, zeros or garbage; any length
    names     as pages; and each creation, renaming and removal that was not synced came through or not

In all but "all", names that were not synced are lost or kept at random, too. What is assumed of disks: a write damages
no byte outside its own range (SQLite's "powersafe overwrite"), and a synced byte stays.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from recorder.disk import Disk

PAGE: Final = 4096
SECTOR: Final = 512
POLICIES: Final = ("nothing", "all", "prefix", "pages", "names")

Op = tuple[Any, ...]


class CrashDisk(Disk):
    """Executes on real files and keeps the operations in ops; files are numbers there, whatever their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ops: list[Op] = []
        self._lock = threading.RLock()
        self._open: dict[int, int] = {}
        self._names: dict[Path, int] = {}
        self._count = 0
        for path in sorted(root.rglob("*")):
            if path.is_file():
                self._names[path] = self._count
                self._count += 1
        self.initial = dict(self._names)

    def note(self, *words: Any) -> None:
        """Write down something that is not an operation: what was acknowledged."""
        with self._lock:
            self.ops.append(("note", *words))

    def _faulty(self, name: str) -> None:
        """Raise what a broken disk would, if this is the call that is to fail; see FaultyCrashDisk."""

    def make_directories(self, path: Path) -> list[Path]:
        with self._lock:
            self._faulty("make_directories")
            missing = [one for one in (path, *path.parents) if not one.exists()]
            changed = super().make_directories(path)
            self.ops += [("mkdir", one) for one in reversed(missing)]
            return changed

    def _made(self, path: Path, descriptor: int) -> int:
        self._count += 1
        self._names[path] = self._open[descriptor] = self._count
        self.ops.append(("create", path, self._count))
        return descriptor

    def create(self, path: Path) -> int:
        with self._lock:
            self._faulty("create")
            return self._made(path, super().create(path))

    def create_log(self, path: Path) -> int:
        with self._lock:
            self._faulty("create_log")
            if path not in self._names:
                return self._made(path, super().create_log(path))
            descriptor = super().create_log(path)
            self._open[descriptor] = self._names[path]
            self.ops.append(("truncate", self._names[path], 0))
            return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes]) -> None:
        with self._lock:
            data = b"".join(buffers)
            try:
                self._faulty("write")
            except OSError:
                self.ops.append(("write", self._open[descriptor], self.size(descriptor), data[: len(data) // 2]))
                super().write(descriptor, (data[: len(data) // 2],))
                raise
            self.ops.append(("write", self._open[descriptor], self.size(descriptor), data))
            super().write(descriptor, buffers)

    def write_at(self, descriptor: int, data: bytes | bytearray, offset: int) -> None:
        with self._lock:
            self.ops.append(("write", self._open[descriptor], offset, bytes(data)))
            super().write_at(descriptor, data, offset)

    def write_through(self, descriptor: int, offset: int, data: bytes) -> None:
        with self._lock:
            try:
                self._faulty("write_through")
            except OSError:
                self.ops.append(("write", self._open[descriptor], offset, bytes(data[: len(data) // 2])))
                super().write_through(descriptor, offset, data[: len(data) // 2])
                self.ops.append(("syncfail", self._open[descriptor]))
                raise
            self.ops.append(("write", self._open[descriptor], offset, bytes(data)))
            super().write_through(descriptor, offset, data)
            self.ops.append(("sync", self._open[descriptor]))

    def truncate(self, descriptor: int, size: int) -> None:
        with self._lock:
            self.ops.append(("truncate", self._open[descriptor], size))
            super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        with self._lock:  # the files are in memory: what the real call would do is the model's part
            try:
                self._faulty("sync")
            except OSError:
                self.ops.append(("syncfail", self._open[descriptor]))
                raise
            self.ops.append(("sync", self._open[descriptor]))

    sync_all = sync

    def sync_path(self, path: Path) -> None:
        with self._lock:
            self.ops.append(("sync", self._names[path]))

    def sync_file_system(self, descriptor: int) -> None:
        with self._lock:
            self.ops.append(("syncfs",))

    def sync_directory(self, path: Path) -> None:
        with self._lock:
            self._faulty("sync_directory")
            self.ops.append(("syncdir", path))

    def open_read(self, path: Path) -> int:
        with self._lock:
            descriptor = super().open_read(path)
            self._open[descriptor] = self._names[path]
            return descriptor

    def open_existing(self, path: Path) -> int:
        with self._lock:
            descriptor = super().open_existing(path)
            self._open[descriptor] = self._names[path]
            return descriptor

    def close(self, descriptor: int) -> None:
        with self._lock:
            self._open.pop(descriptor, None)
            super().close(descriptor)

    def remove(self, path: Path) -> None:
        with self._lock:
            super().remove(path)
            del self._names[path]
            self.ops.append(("remove", path))

    def rename(self, path: Path, to: Path) -> None:
        with self._lock:
            super().rename(path, to)
            self._names[to] = self._names.pop(path)
            self.ops.append(("rename", path, to))


class FaultyCrashDisk(CrashDisk):
    """The calls of one name fail from the fail_at-th on, count times: half of a write is done, nothing of a sync."""

    def __init__(self, root: Path, name: str, fail_at: int, count: int, code: int) -> None:
        super().__init__(root)
        self.name, self.fail_at, self.count, self.code = name, fail_at, count, code
        self.calls = 0

    def _faulty(self, name: str) -> None:
        if name == self.name:
            self.calls += 1
            if self.fail_at < self.calls <= self.fail_at + self.count:
                raise OSError(self.code, os.strerror(self.code))


@dataclass(slots=True)
class _File:
    """One file's bytes: what is durable, and what was done since. None stands for a truncation."""

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    lost: list[tuple[int, bytes | None]] = field(default_factory=list)  # by a failed sync; programs still see it

    def current(self) -> bytes:
        return self._after([*self.lost, *self.pending])

    def sync(self) -> None:
        if self.pending:
            self.durable = self._after(self.pending)
            self.pending = []

    def fail_sync(self) -> None:
        """As Linux does: what could not be written counts as clean from now on, and no later sync will write it."""
        self.lost += self.pending
        self.pending = []

    def _after(self, pieces: list[tuple[int, bytes | None]]) -> bytes:
        data = bytearray(self.durable)
        for offset, piece in pieces:
            _apply(data, offset, piece)
        return bytes(data)


class World:
    """What is durable at one point of a list of operations."""

    def __init__(self, disk: CrashDisk, initial: Path | None = None) -> None:
        """initial: a directory with what was there, durably, before the first operation."""
        self._root = disk.root
        self._ops = disk.ops
        self.at = 0
        self._files: dict[int, _File] = {}
        self._names: dict[Path, int | None] = {}  # None: a directory
        self._pending: list[Op] = []  # name operations, by directory of their (first) path
        if initial is not None:
            for path in initial.rglob("*"):
                self._names[disk.root / path.relative_to(initial)] = None
            for path, number in disk.initial.items():
                self._files[number] = _File((initial / path.relative_to(disk.root)).read_bytes())
                self._names[path] = number

    def step(self) -> Op:
        """Do one operation and return it."""
        op = self._ops[self.at]
        self.at += 1
        match op:
            case ("write", number, offset, data):
                self._files[number].pending.append((offset, data))
            case ("truncate", number, size):
                self._files[number].pending.append((size, None))
            case ("sync", number):
                self._files[number].sync()
            case ("syncfail", number):
                self._files[number].fail_sync()
            case ("syncfs",):
                for file in self._files.values():
                    file.sync()
                for name in self._pending:
                    _name(self._names, name)
                self._pending = []
            case ("syncdir", path):
                for name in self._pending:
                    if name[1].parent == path:
                        _name(self._names, name)
                self._pending = [name for name in self._pending if name[1].parent != path]
            case ("create", _, number):
                self._files[number] = _File()
                self._pending.append(op)
            case ("mkdir" | "remove" | "rename", *_):
                self._pending.append(op)
        return op

    def image(self, rng: random.Random, policy: str, target: Path) -> None:
        """Build in the directory target, which is empty, what a crash now may leave."""
        names = dict(self._names)
        kept = len(self._pending) if policy == "all" else rng.choice((0, len(self._pending), -1))
        for i, op in enumerate(self._pending):
            if rng.random() < 0.5 if policy == "names" or kept < 0 else i < kept:
                _name(names, op)
        last = self._ops[self.at - 1] if self.at else ("",)
        for path in sorted(names):
            if any(parent not in names for parent in path.parents if self._root in parent.parents):
                continue
            place = target / path.relative_to(self._root)
            number = names[path]
            if number is None:
                place.mkdir(exist_ok=True)
                continue
            file = self._files[number]
            torn = policy == "all" and last[0] == "write" and last[1] == number
            place.write_bytes(_content(rng, policy, file, torn))


def _name(names: dict[Path, int | None], op: Op) -> None:
    match op:
        case ("mkdir", path):
            names[path] = None
        case ("create", path, number):
            names[path] = number
        case ("remove", path):
            names.pop(path, None)
        case ("rename", path, to):
            if path in names:
                names[to] = names.pop(path)


def _apply(data: bytearray, offset: int, piece: bytes | None) -> None:
    if piece is None:
        del data[offset:]
        data.extend(bytes(max(0, offset - len(data))))
    else:
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + len(piece)] = piece


def _content(rng: random.Random, policy: str, file: _File, torn: bool) -> bytes:
    if policy == "all" and not torn:
        return file.current()
    if not file.pending or policy == "nothing":
        return file.durable
    if policy in ("all", "prefix"):
        data = bytearray(file.durable)
        count = len(file.pending) - 1 if policy == "all" else rng.randrange(len(file.pending) + 1)
        for offset, piece in file.pending[:count]:
            _apply(data, offset, piece)
        if count < len(file.pending) and (piece := file.pending[count][1]):
            _apply(data, file.pending[count][0], piece[: rng.randrange(len(piece) + 1)])
        return bytes(data)
    return _pages(rng, file)


def _pages(rng: random.Random, file: _File) -> bytes:
    """Anything may have happened to each page that was written since the last sync, and to the length."""
    data = bytearray(file.durable)
    sizes = [len(data)]
    end = len(data)
    for offset, piece in file.pending:
        if piece is None:
            end = offset
            if rng.random() < 0.5:  # else the old bytes show again if the file becomes longer
                data[offset:] = bytes(max(0, len(data) - offset))
        else:
            end = max(end, offset + len(piece))
            for start, part in _split(offset, piece):
                _damage(rng, data, start, part)
        sizes.append(end)
    size = rng.choice(sizes) if rng.random() < 0.5 else rng.randint(min(sizes), max(sizes))
    size = max(size, min(sizes))
    return bytes(data[:size]) + bytes(max(0, size - len(data)))


def _split(offset: int, piece: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(piece):
        stop = min(len(piece), start + PAGE - (offset + start) % PAGE)
        yield offset + start, piece[start:stop]
        start = stop


def _damage(rng: random.Random, data: bytearray, start: int, part: bytes) -> None:
    match rng.choice(("written", "written", "lost", "torn", "sectors", "zeros", "garbage")):
        case "written":
            _apply(data, start, part)
        case "torn":
            _apply(data, start, part[: rng.randrange(len(part))])
        case "sectors":
            for i in range(0, len(part), SECTOR):
                if rng.random() < 0.5:
                    _apply(data, start + i, part[i : i + SECTOR])
        case "zeros":
            _apply(data, start, bytes(len(part)))
        case "garbage":
            _apply(data, start, rng.randbytes(len(part)))
        case _:
            pass
