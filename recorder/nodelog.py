"""The node's log: what makes a deleted, replaced or rewritten tape show. One per gateway node, for all its workers.

It is a C2SP tiled transparency log in static files, so any tool for such logs can read, mirror and witness it:

    <tapes>/log/<node>/checkpoint                     the signed head (checkpoint.py)
    <tapes>/log/<node>/tile/<L>/<N>[.p/<W>]           hashes (merkle.py)
    <tapes>/log/<node>/tile/entries/<N>[.p/<W>]       bundles of entries: u16 big-endian length, entry (logentry.py)
    <tapes>/log/<node>/checkpoint.cosigned            the last head that a witness cosigned
    <tapes>/log/<node>/cosigned/<YYYY-MM-DD>.jsonl    all that were cosigned, a line each as in anchor.py
    <tapes>/log/<node>/lock                           locked by whoever appends

The origin's last path element is the node's name, which is the directory's name; tapes name their node, too.

append: entries and tiles beyond the checkpoint are written and synced, then the new checkpoint takes the old one's
place in one step (rename, directory synced): a crash at any point leaves the old head with all it needs, or the new.
What a crash left beyond the head was never signed; it is replaced, never adopted: whoever can write files there must
not get them signed. A full tile that a crash left and that would now differ is put aside as <tile>.orphan, not
overwritten. A node's first act is the checkpoint of the empty log, so tiles without a checkpoint mean that somebody
took it away. Each append checks that the head on the disk is signed by our key, has the root that its tiles
give, and extends the head that this process saw last; if not, NodeLogError, and nothing is ever appended.

Blocking; call it from a maintenance thread. Left out: pruning (the log stays for ever), serving it over HTTP (any
static file server does), publishing to anchors and witnesses (anchor.py, witness.py).
Sources: C2SP tlog-tiles, tlog-checkpoint; recorder note, section 7.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from recorder.checkpoint import NOTE_LIMIT, Checkpoint, check_name, decode_checkpoint, sign_checkpoint
from recorder.disk import Disk, open_regular
from recorder.errors import FormatError
from recorder.logentry import (
    ENTRY_LIMIT,
    Head,
    Heartbeat,
    KeyRotate,
    LogEntry,
    Open,
    Sealed,
    Start,
    Tombstone,
    encode_entry,
    pack_bundle,
    unpack_bundle,
)
from recorder.merkle import (
    EMPTY_ROOT,
    HASH_BYTES,
    TILE_WIDTH,
    Edge,
    consistency_proof,
    entry_hash,
    inclusion_proof,
    root_at,
    tile_path,
    widths,
)
from recorder.seal import SealKey

__all__ = [
    "Head",
    "Heartbeat",
    "KeyRotate",
    "LogEntry",
    "LogFiles",
    "NodeLog",
    "NodeLogError",
    "Open",
    "Sealed",
    "Start",
    "Tombstone",
    "log_directory",
]

CHECKPOINT: Final = "checkpoint"
COSIGNED: Final = "checkpoint.cosigned"
LOGS: Final = "log"  # the directory of the logs, beside the tapes' years
# An append takes 170 ms at most (ledger.py), and there may be some workers; what waits longer is tried again. Ours.
LOCK_SECONDS: Final = 5.0
_LOCK_PAUSE_SECONDS: Final = 0.005
_BUNDLE_LIMIT: Final = TILE_WIDTH * (2 + ENTRY_LIMIT)


class NodeLogError(Exception):
    """The log on the disk is not the one that this node wrote; nothing is appended to it. A person has to look."""


def log_directory(tapes: Path, node: str) -> Path:
    """Where a node's log lies. Raises ValueError for a name that cannot be a directory's."""
    if not node or node in (".", "..") or "/" in node or "\0" in node:
        raise ValueError("a node's name has to be a file's name")
    return tapes / LOGS / node


class LogFiles:
    """The files of a log, read; nothing is believed: whoever reads compares with a checkpoint's root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def checkpoint(self, name: str = CHECKPOINT) -> bytes:
        """The bytes of the checkpoint. Raises OSError."""
        with open_regular(self.directory / name) as file:
            return file.read(NOTE_LIMIT + 1)

    def tile(self, level: int, index: int, width: int) -> bytes:
        """The first width hashes of a tile, joined. Raises FormatError if they are not there, OSError."""
        raw = self._read(level, index, width, TILE_WIDTH * HASH_BYTES)[: width * HASH_BYTES]
        if len(raw) < width * HASH_BYTES:
            raise FormatError(f"{tile_path(level, index, width)}: shorter than it has to be")
        return raw

    def bundle(self, index: int, width: int) -> list[bytes]:
        """The first width entries of a bundle. Raises FormatError, OSError."""
        try:
            return unpack_bundle(self._read(None, index, width, _BUNDLE_LIMIT), width)
        except FormatError as error:
            raise FormatError(f"{tile_path(None, index, width)}: {error.reason}") from error

    def entries(self, size: int) -> Iterator[bytes]:
        """Yield the entries of the log of this size. Raises FormatError, OSError."""
        for index in range(0, -(-size // TILE_WIDTH)):
            yield from self.bundle(index, min(TILE_WIDTH, size - index * TILE_WIDTH))

    def hashes(self, size: int) -> _Hashes:
        """A merkle.Reader over the tiles of the log of this size."""
        return _Hashes(self, size)

    def _read(self, level: int | None, index: int, width: int, limit: int) -> bytes:
        """Read a tile: the one of this width, or the full one, as a partial one may be removed once that is there."""
        try:
            with open_regular(self.directory / tile_path(level, index, width)) as file:
                return file.read(limit)
        except FileNotFoundError as missing:
            try:
                with open_regular(self.directory / tile_path(level, index)) as file:
                    return file.read(limit)
            except FileNotFoundError:
                raise FormatError(f"{tile_path(level, index, width)} is missing") from missing


class _Hashes:
    """Reads hashes of a level out of tiles."""

    def __init__(self, files: LogFiles, size: int) -> None:
        self._files, self._size = files, size

    def __call__(self, level: int, start: int, count: int) -> list[bytes]:
        index, first = divmod(start, TILE_WIDTH)  # a complete subtree never crosses a tile's border
        width = min(TILE_WIDTH, (self._size >> 8 * level) - index * TILE_WIDTH)
        raw = self._files.tile(level, index, width)
        return [raw[i * HASH_BYTES : (i + 1) * HASH_BYTES] for i in range(first, first + count)]


class _State:
    """What appending needs in memory: the head, the tree's right edge and the last bundle's entries."""

    def __init__(self, raw: bytes, head: Checkpoint, edge: Edge, tail: list[bytes]) -> None:
        self.raw, self.head, self.edge, self.tail = raw, head, edge, tail


class NodeLog:
    """Appends to a node's log. Any number of processes may have one open; each thread may call."""

    def __init__(self, directory: Path, key: SealKey, origin: str, *, disk: Disk | None = None) -> None:
        """Nothing is read or written before the first append. Raises ValueError if origin and directory differ."""
        check_name(origin)
        if origin.rsplit("/", 1)[-1] != directory.name:
            raise ValueError("the origin's last part has to be the name of the log's directory")
        self.directory = directory
        self.origin = origin
        self.files = LogFiles(directory)
        self._key = key
        self._disk = disk or Disk()
        self._mutex = Lock()
        self._state: _State | None = None
        self._seen: Checkpoint | None = None  # the latest head that this process wrote or read

    def append(self, entries: Sequence[LogEntry]) -> Checkpoint:
        """Append the entries, durably, and return the checkpoint that covers them.

        Raises NodeLogError, ValueError; OSError: the entries may be there or not, all of them; calling again is right,
        as repeated entries are.
        """
        if any(isinstance(entry, KeyRotate) for entry in entries):
            raise ValueError("a key is rotated by rotate()")
        raw = [encode_entry(entry) for entry in entries]
        with self._mutex, self._locked():
            return self._extend(self._load(), raw, [self._key]).head

    def rotate(self, key: SealKey) -> Checkpoint:
        """Let another key sign from here on. Tapes that the old key seals later are faults. Raises as append does."""
        with self._mutex, self._locked():
            state = self._load()
            entry = encode_entry(KeyRotate(_raw_public(self._key), _raw_public(key)))
            state = self._extend(state, [entry], [self._key, key])
            self._key = key
            return state.head

    def checkpoint(self) -> Checkpoint:
        """The head as it is now, checked. Raises NodeLogError, OSError."""
        with self._mutex, self._locked():
            return self._load().head

    def consistency(self, old: int, head: Checkpoint) -> list[bytes]:
        """The proof that the log of old entries is the beginning of head. Raises ValueError, FormatError, OSError."""
        return consistency_proof(old, head.size, self.files.hashes(head.size))

    def inclusion(self, index: int, head: Checkpoint) -> list[bytes]:
        """The proof that entry index is covered by this head. Raises ValueError, FormatError, OSError."""
        return inclusion_proof(index, head.size, self.files.hashes(head.size))

    # -- reading --------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the log's lock, over all processes."""
        for changed in self._disk.make_directories(self.directory):
            self._disk.sync_directory(changed)
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _take_lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _load(self) -> _State:
        """Return the state; read it anew if another process was there, or if the last append failed."""
        try:
            raw = self.files.checkpoint()
        except FileNotFoundError:
            return self._begin()
        state = self._state
        if state is None or state.raw != raw:
            try:
                state = self._read_state(raw)
            except FormatError as error:
                raise NodeLogError(f"the node's log is damaged: {error.reason}") from error
            self._state, self._seen = state, state.head
        return state

    def _begin(self) -> _State:
        """Make the checkpoint of an empty log."""
        if self._seen is not None or (self.directory / "tile").exists():
            raise NodeLogError("the node's log has lost its checkpoint")
        head = sign_checkpoint(self.origin, 0, EMPTY_ROOT, [self._key])
        self._publish(head)
        self._state, self._seen = _State(head.encode(), head, Edge(), []), head
        return self._state

    def _read_state(self, raw: bytes) -> _State:
        """Check the head on the disk and read what it needs. Raises FormatError, NodeLogError, OSError."""
        head = decode_checkpoint(raw)
        if head.origin != self.origin:
            raise NodeLogError("this is the log of another node")
        if self._key.id not in head.signers(self._key.public_keys()):
            raise NodeLogError("the node's log is signed by another key; rotate it, or give the key that it has")
        seen = self._seen
        if seen is not None and head.size < seen.size:
            raise NodeLogError("the node's log was rolled back")
        levels: list[list[bytes]] = []
        for level, index, width in widths(head.size):
            tile = self.files.tile(level, index, width)
            levels += [[] for _ in range(level - len(levels))]
            levels.append([tile[i : i + HASH_BYTES] for i in range(0, len(tile), HASH_BYTES)])
        edge = Edge(head.size, levels)
        if edge.root() != head.root:
            raise FormatError("its tiles are not those of its checkpoint")
        if seen is not None and root_at(seen.size, self.files.hashes(head.size)) != seen.root:
            raise NodeLogError("the node's log was rewritten")
        count = head.size % TILE_WIDTH
        tail = self.files.bundle(head.size // TILE_WIDTH, count) if count else []
        if [entry_hash(entry) for entry in tail] != (levels[0] if count else []):
            raise FormatError("its entries are not those of its tiles")
        return _State(raw, head, edge, tail)

    # -- writing --------------------------------------------------------------------------------------

    def _extend(self, state: _State, entries: list[bytes], keys: list[SealKey]) -> _State:
        """Write the entries, the tiles, then the checkpoint. Raises OSError."""
        if not entries:
            return state
        self._state = None  # if anything fails below: what is on the disk counts
        edge, tail = state.edge.copy(), list(state.tail)
        old = edge.size
        files: dict[str, bytes] = {}
        for entry in entries:
            tail.append(entry)
            full = edge.add(entry_hash(entry))
            if full:
                files[tile_path(None, edge.size // TILE_WIDTH - 1)] = pack_bundle(tail)
                tail.clear()
            for level, index, tile in full:
                files[tile_path(level, index)] = tile
        for level, index, width in widths(edge.size):
            if edge.size >> 8 * level != old >> 8 * level:
                files[tile_path(level, index, width)] = b"".join(edge.levels[level])
                if not level:
                    files[tile_path(None, index, width)] = pack_bundle(tail)
        self._write_tiles(files)
        head = sign_checkpoint(self.origin, edge.size, edge.root(), keys)
        self._publish(head)
        self._state, self._seen = _State(head.encode(), head, edge, tail), head
        self._tidy(files)
        return self._state

    def _write_tiles(self, files: dict[str, bytes]) -> None:
        """Write and sync files beyond the checkpoint; what a crash left in their place goes."""
        changed: dict[Path, None] = {}
        for name, data in files.items():
            path = self.directory / name
            for parent in (*self._disk.make_directories(path.parent), path.parent):
                changed[parent] = None
            with suppress(FileNotFoundError):
                if ".p/" in name or path.read_bytes() == data:
                    path.unlink()
                else:
                    path.replace(path.with_name(path.name + ".orphan"))
            self._write(path, data)
        for parent in changed:
            self._disk.sync_directory(parent)

    def _publish(self, head: Checkpoint) -> None:
        """Put the checkpoint in the old one's place."""
        write_file(self._disk, self.directory / CHECKPOINT, head.encode())

    def _write(self, path: Path, data: bytes) -> None:
        _write_new(self._disk, path, data)

    def _tidy(self, files: dict[str, bytes]) -> None:
        """Remove the partial tiles of the full ones that were written. Not being able to is no fault."""
        for name in files:
            if ".p/" not in name:
                shutil.rmtree(self.directory / f"{name}.p", ignore_errors=True)


def _take_lock(descriptor: int) -> None:
    """Lock the log, in bounded time: a process that was stopped with it must not stop the others. Raises OSError."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OSError(errno.EAGAIN, "another process holds the node's log") from error
            time.sleep(_LOCK_PAUSE_SECONDS)


def write_file(disk: Disk, path: Path, data: bytes) -> None:
    """Put a whole file in another's place, durably, in one step. Raises OSError."""
    draft = path.with_name(f".{path.name}.draft")
    with suppress(FileNotFoundError):
        draft.unlink()
    _write_new(disk, draft, data)
    disk.rename(draft, path)
    disk.sync_directory(path.parent)


def _write_new(disk: Disk, path: Path, data: bytes) -> None:
    descriptor = disk.create(path)
    try:
        disk.write(descriptor, (data,))
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def _raw_public(key: SealKey) -> bytes:
    return key.public_keys()[key.id].public_bytes(Encoding.Raw, PublicFormat.Raw)
