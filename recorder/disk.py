"""The few calls that a writer makes to the operating system, in one place, so that tests can make each one fail."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

_CREATE_ATTEMPTS: Final = 1000  # some milliseconds
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# Linux: UIO_MAXIOV. More buffers in one writev are EINVAL.
VECTOR_LIMIT: Final = 1024
# Together half a second: a process that only asks whether a tape is live lets go at once; a writer does not.
_LOCK_ATTEMPTS: Final = 50
_LOCK_PAUSE_SECONDS: Final = 0.01


class Disk:
    """The real disk. Every method raises OSError and is tried once: a failed fsync is never repeated."""

    def make_directories(self, path: Path) -> list[Path]:
        """Create the directory and its parents (0700); return the directories whose entries changed."""
        missing: list[Path] = []
        while not path.exists():
            missing.append(path)
            path = path.parent
        for directory in reversed(missing):  # mkdir gives a mode to the last one only, to the others what umask leaves
            directory.mkdir(mode=0o700, exist_ok=True)
        return [directory.parent for directory in missing]

    def create(self, path: Path) -> int:
        """Create a file that did not exist, mode 0600, locked so that others can tell a live tape from a dead one."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for attempt in range(_CREATE_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt == _CREATE_ATTEMPTS - 1:  # fails closed: what is not locked looks dead, and could be ended
                    os.close(descriptor)
                    raise
                os.sched_yield()  # is_live() of another process holds it for microseconds
            except OSError:  # a file system without locks
                break
            else:
                break
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all of the buffers; a short write goes on where it stopped."""
        if len(buffers) <= VECTOR_LIMIT:
            done = os.writev(descriptor, buffers) if len(buffers) > 1 else os.write(descriptor, buffers[0])
            if done != sum(map(len, buffers)):
                self._write_rest(descriptor, buffers, done)
            return
        for start in range(0, len(buffers), VECTOR_LIMIT):
            self.write(descriptor, buffers[start : start + VECTOR_LIMIT])

    def _write_rest(self, descriptor: int, buffers: Sequence[bytes | memoryview], done: int) -> None:
        rest = memoryview(b"".join(buffers))[done:]
        while rest:
            done = os.write(descriptor, rest)
            if not done:
                raise OSError("the file takes no more bytes")
            rest = rest[done:]

    def create_log(self, path: Path) -> int:
        """Create a file of the write-ahead log, mode 0600; one of that name is emptied."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write_through(self, descriptor: int, offset: int, data: bytes) -> None:
        """Write at the offset; the data is durable when this returns. One system call: a thread pays the GIL once."""
        rest = memoryview(data)
        while rest:
            done = os.pwritev(descriptor, (rest,), offset, os.RWF_DSYNC)
            if not done:
                raise OSError("the file takes no more bytes")
            rest = rest[done:]
            offset += done

    def sync_path(self, path: Path) -> None:
        """Make a file durable that is not open here."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def open_directory(self, path: Path) -> int:
        """Open a directory, to sync its file system by."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync_file_system(self, descriptor: int) -> None:
        """Make everything durable that is on the file system of an open directory: one call for many files.

        Linux 5.8 and later tell of write errors since the directory was opened, each once for each descriptor: it has
        to be open before what is to be synced is written, and not be shared.
        """
        if _LIBC.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "syncfs failed")

    def free_bytes(self, path: Path) -> int:
        """What an ordinary user may still write on the path's file system."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def removed(self, descriptor: int) -> bool:
        """Whether the file has no name any more: what is written to it is gone when it is closed."""
        return not os.fstat(descriptor).st_nlink

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

    # -- what recovery does beside that ---------------------------------------------------------------

    def files(self, path: Path, suffix: str) -> list[Path]:
        """List the directory's files whose names end so, sorted; none if there is no such directory."""
        return sorted(file for file in path.glob(f"*{suffix}") if file.is_file())

    def open_read(self, path: Path) -> int:
        """Open a file to be read."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def open_existing(self, path: Path) -> int:
        """Open a dead writer's file to be finished, and lock it. Raises BlockingIOError if the writer lives.

        A link is refused (OSError): what is written to follows no name that somebody else may have put there.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt == _LOCK_ATTEMPTS - 1:
                    os.close(descriptor)
                    raise
                time.sleep(_LOCK_PAUSE_SECONDS)  # is_live() of another process holds it for microseconds
            except OSError:  # a file system without locks
                break
            else:
                break
        return descriptor

    def size(self, descriptor: int) -> int:
        """The file's size in bytes."""
        return os.fstat(descriptor).st_size

    def read_at(self, descriptor: int, size: int, offset: int) -> bytes:
        """Read size bytes at the offset; fewer only at the end of the file."""
        data = os.pread(descriptor, size, offset)
        if len(data) == size or not data:
            return data
        pieces = [data]
        done = len(data)
        while done < size and (data := os.pread(descriptor, size - done, offset + done)):
            pieces.append(data)
            done += len(data)
        return b"".join(pieces)

    def write_at(self, descriptor: int, data: bytes | bytearray, offset: int) -> None:
        """Write all of the data at the offset of a file from open_existing."""
        done = os.pwrite(descriptor, data, offset)
        with memoryview(data) as rest:
            while done < len(rest):
                more = os.pwrite(descriptor, rest[done:], offset + done)
                if not more:
                    raise OSError("the file takes no more bytes")
                done += more

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file off behind size bytes; sync_all makes that durable."""
        os.ftruncate(descriptor, size)

    def sync_all(self, descriptor: int) -> None:
        """Make the file's data and length durable, a shorter one as well: fdatasync does not promise that."""
        os.fsync(descriptor)

    def remove(self, path: Path) -> None:
        """Remove the file's name."""
        path.unlink()

    def rename(self, path: Path, to: Path) -> None:
        """Give the file another name; a file of that name is replaced."""
        path.replace(to)


def open_regular(path: Path, buffering: int = -1) -> BinaryIO:
    """Open a file to be read that somebody else may have put there: a pipe or a device would never end, or not begin.

    Raises OSError; of those, too.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb", buffering)
    except BaseException:
        os.close(descriptor)
        raise


def is_live(path: Path) -> bool:
    """Tell whether a writer holds the file open now. False where that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is no tape: do not wait for it
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
