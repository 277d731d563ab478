"""The writer of one segment file: blocks, hash chain, tree, the two indexes and the seal (format.py has the layout).

Bytes go to the kernel at once and in order, and an entry for each block to the write-ahead log; nothing is synced
here. The indexes grow packed as the blocks are written, so that sealing a full segment costs milliseconds, not a pass
over the file. The descriptor is closed by whoever takes the finished or failed segment over (upkeep.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgpack

from recorder.cipher import SegmentCipher
from recorder.disk import Disk
from recorder.errors import TapeError
from recorder.format import (
    BLOCK_HEADER_BYTES,
    BLOCK_TARGET_BYTES,
    CHAIN_BYTES,
    ENCRYPTED,
    BlockType,
    Kind,
    command_entry,
    encode_block_header,
    encode_header,
    encode_trailer,
    fields,
    looks_dense,
    store,
    verdict_word,
)
from recorder.seal import SealKey, Tree, chain_hash, header_hash, leaf_hash
from recorder.ulid import ulid_bytes
from recorder.wal import Wal
from recorder.walformat import TRACKS, encode_open

# Commands that wait for their verdict: a pipeline's worth. The oldest goes into the index without one.
UNDECIDED_LIMIT: Final = 4096
# Below this a block is joined for one write; above, the copy costs as much as it saves. Measured: 0.4 us a block.
JOIN_BELOW_BYTES: Final = 4096

# Bulk that did not compress (what is encrypted or packed already) is tried again only when a sample of it says so, or
# after so many blocks. Measured: 0.1 s of 1.2 s a GB in blocks of 256 KiB, 0.4 s of 1.7 in those of 32 KiB.
SAMPLED_FROM_BYTES: Final = 16 * 1024
DENSE_LIMIT: Final = 32

TAG_BYTES: Final = 16  # of AES-256-GCM

# As Session packs a command's text: what UTF-8 cannot hold becomes the same mark in both.
_pack = msgpack.Packer(use_bin_type=True, unicode_errors="replace").pack

# Plain numbers: to look a member of an enumeration up costs more than the comparison, and struct takes no shortcut.
_COMMAND: Final = int(Kind.COMMAND)
_VERDICT: Final = int(Kind.VERDICT)
_DATA: Final = int(BlockType.DATA)
_COMMANDS: Final = int(BlockType.COMMANDS)
_INDEX: Final = int(BlockType.INDEX)
_SECRET: Final = (_DATA, _COMMANDS)  # what an encrypted tape encrypts
_SEAL: Final = int(BlockType.SEAL)


class _Chunks:
    """Packed entries in pieces that fit into a block each."""

    __slots__ = ("_piece", "_room", "pieces", "size_bytes")

    def __init__(self) -> None:
        self.pieces: list[bytearray] = []
        self.size_bytes = 0
        self._piece = bytearray()  # the last of pieces
        self._room = 0

    def add(self, entry: object) -> None:
        packed = _pack(entry)
        size = len(packed)
        if size > self._room:
            self._piece = bytearray()
            self.pieces.append(self._piece)
            self._room = BLOCK_TARGET_BYTES
        self._piece += packed
        self._room -= size
        self.size_bytes += size


class CommandIndex:
    """Collects the COMMANDS entries of one segment from its records, in the order of their numbers."""

    def __init__(self) -> None:
        self._entries: dict[int, list[Any]] = {}  # in order; the head of it is final once it has a verdict
        self._done = _Chunks()
        self.count = 0

    def note(self, n: int, t_ns: int, kind: int, payload: bytes, entry: Mapping[str, Any] | None = None) -> None:
        """Take note of a record, if it is a COMMAND or a VERDICT. entry: the payload's map, where it is at hand."""
        if kind == _COMMAND:
            self._entries[n] = command_entry(n, t_ns, fields(payload) if entry is None else entry)
            self.count += 1
            if len(self._entries) > UNDECIDED_LIMIT:
                self._emit(next(iter(self._entries)))
        elif kind == _VERDICT:
            self._decide(fields(payload) if entry is None else entry)

    def _decide(self, said: Mapping[str, Any]) -> None:
        entries = self._entries
        number = said.get("command")
        found = entries.get(number) if isinstance(number, int) else None
        if found is None or found[4]:
            return
        found[4] = verdict_word(said)
        while entries:
            head = next(iter(entries))
            if not entries[head][4]:
                break
            self._emit(head)

    def _emit(self, n: int) -> None:
        self._done.add(self._entries.pop(n))

    @property
    def size_bytes(self) -> int:
        return self._done.size_bytes

    def finish(self) -> list[bytes]:
        """Return the payloads of the COMMANDS blocks."""
        for n in list(self._entries):
            self._emit(n)
        return [bytes(piece) for piece in self._done.pieces]


class SegmentWriter:
    """One open segment file. Raises OSError and TapeError from every method that writes."""

    def __init__(
        self,
        disk: Disk,
        path: Path,
        header: Mapping[str, Any],
        wal: Wal,
        *,
        keys: bytes | None = None,
        keys_path: Path | None = None,
        cipher: SegmentCipher | None = None,
        on_fail: Callable[[TapeError], None] = lambda error: None,
    ) -> None:
        """Create the file. keys: the content of the tape's .keys file. on_fail: called from another thread."""
        raw = encode_header(header)
        self.path = path
        self.header = header
        self.sid = ulid_bytes(header["sid"])
        self.track = TRACKS.index(header["track"])
        self.number: int = header["segment"]
        self.opening = encode_open(raw, keys)
        self.pins: list[bytes] = []
        self.data_blocks = 0  # those that the kernel took
        self.error: TapeError | None = None  # the log's: its entries are lost
        self.keys_path = keys_path
        self.synced = False  # for upkeep.py: nothing of it depends on the log any more
        self.commands = CommandIndex()
        self.next_record: int = header["first_record"]
        self.size_bytes = len(raw)
        self.blocks = 0
        self._disk = disk
        self._wal = wal
        self._cipher = cipher
        self._dense = 0  # blocks since one that did not compress, which are like it
        self._on_fail = on_fail
        self.h0 = self._chain = header_hash(raw)
        self._tree = Tree()
        self._index = _Chunks()
        self.data_head = self.root = b""  # the chain value behind the data, and the tree's root, once it is finished
        self._first_ns = self._last_ns = self._t0_ns = 0
        self.descriptor = disk.create(path)
        try:
            disk.write(self.descriptor, [raw])
        except OSError:
            disk.close(self.descriptor)
            with suppress(OSError):  # not even a header: nobody could read it
                disk.remove(path)
            raise
        try:
            self.batch = wal.open(self)
        except TapeError:
            disk.close(self.descriptor)
            raise
        self.head = (0, self.h0)  # blocks and the chain value behind them, in one piece for other threads

    def fail(self, error: TapeError) -> None:
        """The log lost entries of this segment. Called from the log's thread."""
        self.error = error
        self._on_fail(error)

    def data(self, raw: bytes | memoryview, t0_ns: int, last_ns: int, n_records: int, full: bool) -> int:
        """Write a DATA block of n_records records, the first at t0_ns, the last at last_ns.

        full: its content goes to the log, too. Returns the number of the log's batch that has the last such block.
        """
        if not self.blocks:
            self._first_ns = t0_ns
        self._last_ns = last_ns
        batch = self._block(_DATA, raw, t0_ns, n_records, full)
        self.data_blocks += 1
        return batch

    def _block(self, kind: int, raw: bytes | memoryview, t0_ns: int, n_records: int = 0, full: bool = True) -> int:
        flags, stored = self._stored(raw, full)
        first = self.next_record
        size = len(stored)
        if self._cipher is not None and kind in _SECRET:
            size += TAG_BYTES
            head = encode_block_header(kind, flags | ENCRYPTED, self.blocks, first, t0_ns, n_records, len(raw), size)
            stored = self._cipher.seal(head, self.blocks, stored)
        else:
            head = encode_block_header(kind, flags, self.blocks, first, t0_ns, n_records, len(raw), size)
        leaf = leaf_hash(head, stored)
        chain = self._chain = chain_hash(self._chain, leaf)
        # Three small buffers cost the kernel's interface more than their copy costs us.
        self._disk.write(
            self.descriptor, (head + stored + chain,) if size < JOIN_BELOW_BYTES else (head, stored, chain)
        )
        self._tree.add(leaf)
        if kind != _INDEX:
            self._index.add((self.size_bytes, kind, self.blocks, first, t0_ns, n_records, leaf))
        self._t0_ns = t0_ns
        self.size_bytes += BLOCK_HEADER_BYTES + size + CHAIN_BYTES
        self.blocks += 1
        self.next_record = first + n_records
        if full:
            self.batch = self._wal.add(self, head, bytes(stored))
        else:
            self._wal.pin(self, head, leaf)
        self.head = (self.blocks, chain)
        return self.batch

    def _stored(self, raw: bytes | memoryview, full: bool) -> tuple[int, bytes | memoryview]:
        """Flags and stored payload; a view of raw itself where nobody keeps it: full says that the log does."""
        if len(raw) < SAMPLED_FROM_BYTES:
            return store(raw)
        if 0 < self._dense < DENSE_LIMIT and looks_dense(raw):
            self._dense += 1
            return 0, bytes(raw) if full else raw
        flags, stored = store(raw)
        self._dense = 0 if flags else 1
        return flags, stored

    def finish(self, status: str, reason: str, key: SealKey) -> None:
        """Write the indexes, the seal and the trailer. The file stays open, to be synced."""
        self.data_head = self._chain
        for piece in self.commands.finish():
            self._block(_COMMANDS, piece, self._t0_ns)
        index_offset = self.size_bytes
        for index in self._index.pieces or [bytearray()]:
            self._block(_INDEX, bytes(index), self._t0_ns)
        self.root = self._tree.root()
        first = self.header["first_record"]
        body = {
            "sid": self.header["sid"],
            "segment": self.header["segment"],
            "track": self.header["track"],
            "h0": self.h0,
            "root": self.root,
            "head": self._chain,
            "blocks": self.blocks,
            "first_record": first,
            "records": self.next_record - first,
            "commands": self.commands.count,
            "t_first": self._first_ns,
            "t_last": self._last_ns,
            "status": status,
            "reason": reason,
            "gaps": [],
            "log": None,
        }
        self._block(_SEAL, key.seal(body), self._t0_ns)
        trailer = encode_trailer(index_offset)
        self._disk.write(self.descriptor, [trailer])
        self.size_bytes += len(trailer)
        self._wal.sealed(self)
