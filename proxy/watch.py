"""Tells when files change, by looking at them once a second.

A look is a stat() of each file in a thread: no inotify, which misses bind mounts, NFS and the symlink swaps by which
Kubernetes updates a mounted secret. Deliberately left out: debouncing. A half-written file is a bad file, keeps the
old configuration, and is read again when its writer is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

POLL_SECONDS: Final = 1.0

Stamp = tuple[int, int, int] | None


def stamp(path: Path) -> Stamp:
    """What changes with a file: its time, size and inode; None where it cannot be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def stamps(files: Iterable[Path]) -> dict[Path, Stamp]:
    """The stamps of several files. Blocks."""
    return {path: stamp(path) for path in files}


class Watch:
    """Compares a changing set of files with how they were when last asked."""

    def __init__(self, files: Callable[[], Iterable[Path]]) -> None:
        self._files = files
        self._seen = stamps(files())

    async def changed(self) -> frozenset[Path]:
        """Return which files look different from the last time; a file that is new to the set does not count."""
        now = await asyncio.to_thread(stamps, tuple(self._files()))
        different = frozenset(path for path, mark in now.items() if self._seen.get(path, mark) != mark)
        self._seen = now
        return different
