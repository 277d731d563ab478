"""The reading of a whole write-ahead log: which segments it names, and where in it their entries are (walformat.py).

Memory: one of the log's files at a time, then 16 bytes for each entry. The entries of one segment are read again when
they are asked for, in order. A file that is damaged ends there; whoever follows a segment's numbers sees the hole.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from recorder.disk import Disk
from recorder.format import BLOCK_HEADER_BYTES
from recorder.walformat import ENTRY_HEADER_BYTES, PIN_BYTES, WAL_SUFFIX, EntryKind, read_entries


@dataclass(slots=True)
class Named:
    """A segment that the log names. entries, two numbers each: file << 48 | offset, and kind << 32 | body size."""

    opening: bytes = b""
    entries: array[int] = field(default_factory=lambda: array("Q"))


Key = tuple[bytes, int, int]  # sid, track, segment


class Log:
    """The log's files and where in them each segment's entries are."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        """Read the log. Raises OSError."""
        self._disk = disk
        self.descriptors: list[int] = []
        self.paths: list[Path] = []
        self.named: dict[Key, Named] = {}
        self.done: set[Key] = set()
        self.generation = 0
        heads: list[tuple[int, Path]] = []
        for path in disk.files(directory, WAL_SUFFIX):
            descriptor = disk.open_read(path)
            try:
                first = disk.read_at(descriptor, ENTRY_HEADER_BYTES, 0)
            finally:
                disk.close(descriptor)
            # An entry of generation 0 is as good as none; a damaged one is seen when the file is read.
            heads.append((int.from_bytes(first[12:20], "little"), path))
        try:
            for _, path in sorted(heads):
                self._read(path)
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path) -> None:
        descriptor = self._disk.open_read(path)
        self.descriptors.append(descriptor)
        self.paths.append(path)
        data = self._disk.read_at(descriptor, self._disk.size(descriptor), 0)
        place = len(self.descriptors) - 1 << 48
        for entry in read_entries(data):
            self.generation = max(self.generation, entry.generation)
            key = (entry.sid, entry.track, entry.segment)
            kind, size = entry.kind, len(entry.body)
            if kind is EntryKind.DONE:
                self.done.add(key)
            else:
                named = self.named.get(key)
                if named is None:
                    named = self.named[key] = Named()
                if kind is not EntryKind.OPEN:
                    named.entries.append(place)
                    named.entries.append(int(kind) << 32 | size)
                elif not named.opening:
                    named.opening = entry.body
            place += ENTRY_HEADER_BYTES + size

    def entries(self, named: Named) -> Iterator[tuple[bool, bytes, bytes]]:
        """Yield (full, block header, stored payload or leaf) in order."""
        items = iter(named.entries)
        for place, what in zip(items, items, strict=True):
            offset = (place & (1 << 48) - 1) + ENTRY_HEADER_BYTES
            body = self._disk.read_at(self.descriptors[place >> 48], what & 0xFFFFFFFF, offset)
            if what >> 32 == EntryKind.FULL:
                yield True, body[:BLOCK_HEADER_BYTES], body[BLOCK_HEADER_BYTES:]
                continue
            for start in range(0, len(body), PIN_BYTES):
                pin = body[start : start + PIN_BYTES]
                yield False, pin[:BLOCK_HEADER_BYTES], pin[BLOCK_HEADER_BYTES:]

    def close(self) -> None:
        for descriptor in self.descriptors:
            self._disk.close(descriptor)
        self.descriptors = []
