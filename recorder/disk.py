"""The few calls that a writer makes to the operating system, in one place, so that tests can make each one fail."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

# Linux: UIO_MAXIOV. More buffers in one writev are EINVAL.
VECTOR_LIMIT: Final = 1024


class Disk:
    """The real disk. Every method raises OSError and is tried once: a failed fsync is never repeated."""

    def make_directories(self, path: Path) -> list[Path]:
        """Create the directory and its parents (0700); return the directories whose entries changed."""
        changed: list[Path] = []
        missing = path
        while not missing.exists():
            changed.append(missing.parent)
            missing = missing.parent
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return changed

    def create(self, path: Path) -> int:
        """Create a file that did not exist, mode 0600, locked so that others can tell a live tape from a dead one."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # file systems without locks: liveness is a help for listings, no promise
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes]) -> None:
        """Write all of the buffers; a short write goes on where it stopped."""
        if len(buffers) <= VECTOR_LIMIT:
            done = os.writev(descriptor, buffers) if len(buffers) > 1 else os.write(descriptor, buffers[0])
            if done != sum(map(len, buffers)):
                self._write_rest(descriptor, buffers, done)
            return
        for start in range(0, len(buffers), VECTOR_LIMIT):
            self.write(descriptor, buffers[start : start + VECTOR_LIMIT])

    def _write_rest(self, descriptor: int, buffers: Sequence[bytes], done: int) -> None:
        rest = memoryview(b"".join(buffers))[done:]
        while rest:
            done = os.write(descriptor, rest)
            if not done:
                raise OSError("the file takes no more bytes")
            rest = rest[done:]

    def sync(self, descriptor: int) -> None:
        """Make the file's data durable."""
        os.fdatasync(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Make the directory's entries durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self, descriptor: int) -> None:
        """Close the file."""
        os.close(descriptor)


def is_live(path: Path) -> bool:
    """Tell whether a writer holds the file open now. False where that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
