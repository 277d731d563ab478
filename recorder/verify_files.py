"""Which tapes there are below a directory, for verify: whatever may lie there, each is named or said to be unreadable.

A directory that is judged may have been made by whoever has something to hide. So nothing is passed over in silence: a
folder that cannot be listed and a link to one (links are not followed: they may lead in circles, or out of what is
judged) are told. What is no regular file is told when it is opened (disk.open_regular).

Left out: which of the names are tapes of one session in two places (verify.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recorder.format import SUFFIX
from recorder.nodelog import LOGS
from recorder.reader import name_of, segments_of


@dataclass(frozen=True, slots=True)
class Found:
    """The segment files of one tape, in order, and their size in bytes; or a place that could not be looked into."""

    files: list[Path]
    size_bytes: int
    problem: str = ""


def tapes_below(path: Path) -> Iterator[Found]:
    """Yield each tape, or the one that a file belongs to; one folder's names are in memory at a time."""
    if not path.is_dir():
        files = segments_of(path)
        yield Found(files, sum(file.stat().st_size for file in files))
        return
    waiting = [path]
    while waiting:  # not by recursion: how deep it goes, others decide
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                found = [(entry.name, _kind(entry)) for entry in entries]
        except OSError as error:
            yield Found([folder], 0, f"cannot be listed: {error.strerror}")
            continue
        # A log that is linked to is read by verify_log.py.
        links = sorted(name for name, kind in found if kind == "link" and (folder != path or name != LOGS))
        for name in links:
            yield Found([folder / name], 0, "a link to a directory, which is not followed")
        waiting += [folder / name for name in sorted((name for name, kind in found if kind == "folder"), reverse=True)]
        yield from _tapes_in(folder, [name for name, kind in found if kind == "file"])


def _tapes_in(folder: Path, names: list[str]) -> Iterator[Found]:
    tapes: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if name.endswith(SUFFIX):
            said = name_of(Path(name))
            tapes.setdefault(said[0] if said else name, []).append((said[1] if said else 0, name))
    for _, found in sorted(tapes.items()):
        files = [folder / name for _, name in sorted(found)]
        yield Found(files, sum(map(_size, files)))


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "link" if entry.is_symlink() and entry.is_dir() else "file"
    except OSError:  # a link that leads to itself
        return "file"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a link that leads nowhere: told when it is opened
        return 0
