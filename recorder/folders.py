"""Where things lie below the directory of tapes: the day's directory, and the folders of write-ahead logs.

    <directory>/YYYY/MM/DD/<sid>.000.gct    tapes, by the UTC day on which the session begins
    <directory>/wal/<number>/               the log of one living process, or what a dead one left

A process holds its folder by a lock on the file "lock" in it, which the kernel lets go of however the process ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from recorder.disk import Disk
from recorder.walformat import WAL_SUFFIX

WAL_DIRECTORY: Final = "wal"
# Processes that record into one directory, the dead ones' leftovers among them. Ours; workers are at most 64.
FOLDERS_LIMIT: Final = 1024


def day_directory(directory: Path, wall_ns: int) -> Path:
    """The directory of the sessions that begin at that instant."""
    day = datetime.fromtimestamp(wall_ns / 1e9, UTC)
    return directory / f"{day:%Y}" / f"{day:%m}" / f"{day:%d}"


@dataclass(frozen=True, slots=True)
class LogFolder:
    """A folder that this process holds."""

    path: Path
    descriptor: int

    def left_over(self, disk: Disk) -> bool:
        """Whether there are log files in it."""
        return bool(disk.files(self.path, WAL_SUFFIX))

    def release(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            os.close(self.descriptor)


def take_folder(directory: Path, disk: Disk) -> LogFolder:
    """Take the first folder that nobody holds; make it, if there is none. Raises OSError."""
    for number in range(FOLDERS_LIMIT):
        path = directory / WAL_DIRECTORY / str(number)
        # Those that were there before, too: their own sync may have been what failed.
        for made in dict.fromkeys((*disk.make_directories(path), path.parent, directory)):
            disk.sync_directory(made)
        folder = _take(path)
        if folder is not None:
            return folder
    raise OSError(f"more than {FOLDERS_LIMIT} processes record here")


def dead_folders(directory: Path, disk: Disk) -> Iterator[LogFolder]:
    """Take each folder that nobody holds and that has log files; the caller releases it. Raises OSError."""
    parent = directory / WAL_DIRECTORY
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir()):
        folder = _take(path) if path.is_dir() else None
        if folder is None:
            continue
        if folder.left_over(disk):
            yield folder
        else:
            folder.release()


def _take(path: Path) -> LogFolder | None:
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return LogFolder(path, descriptor)
