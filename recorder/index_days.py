"""Which tapes an update has to look at: days whose directory has changed, files that are new, gone or replaced.

A directory's mtime changes when a file in it is made, renamed or removed, not when one grows: what grows are the
tapes without an end, and the index knows these. An mtime of the last moment is not yet believed: a file that comes
within the same tick of the file system's clock would not change it.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from recorder.format import SUFFIX

# Coarse clocks: 4 ms for ext4 and XFS, 1 s for some network file systems, 2 s for FAT.
SETTLED_NS: Final = 3_000_000_000
# What says of one file that it is none that can be read, and nothing of the disk: moved, a pipe, a link to itself, a
# folder. It must not keep the other tapes from being found.
NO_FILE: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.EISDIR})
# Main tracks only: "<sid>.original.<n>.gct" holds what the masks hid.
_FILE: Final = re.compile(r"([0-9A-Z]{26})\.([0-9]{3,9})" + re.escape(SUFFIX))


@dataclass(frozen=True, slots=True)
class Day:
    """One day's directory as it was when it was looked at; mtime_ns 0: it is gone."""

    name: str  # "2026/11/21"
    path: Path
    mtime_ns: int
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Known:
    """What the index knows of a session's files."""

    key: str
    place: str


@dataclass(frozen=True, slots=True)
class Work:
    """A tape that is to be read: its files by segment. key is these with their inodes, as the index keeps it."""

    sid: str
    day: str
    files: Mapping[int, Path]
    key: str
    size_bytes: int
    mtime_ns: int  # of the last segment

    @property
    def inodes(self) -> dict[int, int]:
        return inodes_of(self.key)

    @classmethod
    def of(cls, directory: Path, day: str, sid: str, key: str) -> Work | None:
        """Look at the files of a known session; None if one is gone (then the day's mtime has changed, too)."""
        files = {segment: directory / day / f"{sid}.{segment:03d}{SUFFIX}" for segment in inodes_of(key)}
        return _sized(sid, day, files, key) if files else None


def inodes_of(key: str) -> dict[int, int]:
    """Take a key apart: inode by segment."""
    return {int(segment): int(inode) for segment, _, inode in (item.partition(":") for item in key.split())}


def day_directories(directory: Path) -> Iterator[Day]:
    """Yield the days, the newest first."""
    for year in _descending(directory):
        for month in _descending(year):
            for day in _descending(month):
                with suppress(FileNotFoundError):
                    mtime_ns = day.stat().st_mtime_ns
                    settled = time.time_ns() - mtime_ns > SETTLED_NS
                    yield Day(f"{year.name}/{month.name}/{day.name}", day, mtime_ns, settled)


def _descending(directory: Path) -> list[Path]:
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.isdigit() and entry.is_dir()]
    return [directory / name for name in sorted(names, reverse=True)]


def find_work(day: Day, known: Mapping[str, Known]) -> tuple[list[Work], list[str]]:
    """Return the day's tapes that are not as they are known, the newest first, and the sessions without a file."""
    found = _tapes(day)
    works = []
    for sid in sorted(found, reverse=True):
        inodes = found[sid]
        key = " ".join(f"{segment}:{inodes[segment]}" for segment in sorted(inodes))
        if sid not in known or known[sid].key != key:
            files = {segment: day.path / f"{sid}.{segment:03d}{SUFFIX}" for segment in sorted(inodes)}
            work = _sized(sid, day.name, files, key)
            if work is not None:
                works.append(work)
    return works, [sid for sid, was in known.items() if sid not in found and was.place != "vault"]


def _tapes(day: Day) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    with suppress(FileNotFoundError), os.scandir(day.path) as entries:
        for entry in entries:
            name = _FILE.fullmatch(entry.name)
            if name is not None:
                found.setdefault(name[1], {})[int(name[2])] = entry.inode()
    return found


def _sized(sid: str, day: str, files: Mapping[int, Path], key: str) -> Work | None:
    size, mtime_ns = 0, 0
    for path in files.values():
        try:
            state = path.stat()
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            return None
        size, mtime_ns = size + state.st_size, state.st_mtime_ns
    return Work(sid, day, files, key, size, mtime_ns)
