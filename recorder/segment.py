"""The writer of one segment file: blocks, hash chain, tree, the two indexes and the seal (format.py has the layout).

Bytes go to the kernel at once and in order; nothing is synced here. The indexes grow packed as the blocks are
written, so that sealing a full segment costs milliseconds, not a pass over the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgpack

from recorder.disk import Disk
from recorder.format import (
    BLOCK_HEADER_BYTES,
    BLOCK_TARGET_BYTES,
    CHAIN_BYTES,
    BlockType,
    Kind,
    command_entry,
    encode_block_header,
    encode_header,
    encode_trailer,
    fields,
    store,
    verdict_word,
)
from recorder.seal import SealKey, Tree, chain_hash, header_hash, leaf_hash

# Commands that wait for their verdict: a pipeline's worth. The oldest goes into the index without one.
UNDECIDED_LIMIT: Final = 4096
# Below this a block is joined for one write; above, the copy costs as much as it saves. Measured: 0.4 us a block.
JOIN_BELOW_BYTES: Final = 4096

_pack = msgpack.Packer(use_bin_type=True).pack

# Plain numbers: to look a member of an enumeration up costs more than the comparison, and struct takes no shortcut.
_COMMAND: Final = int(Kind.COMMAND)
_VERDICT: Final = int(Kind.VERDICT)
_DATA: Final = int(BlockType.DATA)
_COMMANDS: Final = int(BlockType.COMMANDS)
_INDEX: Final = int(BlockType.INDEX)
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

    def note(self, n: int, t_ns: int, kind: int, payload: bytes) -> None:
        """Take note of a record, if it is a COMMAND or a VERDICT."""
        entries = self._entries
        if kind == _COMMAND:
            entries[n] = command_entry(n, t_ns, payload)
            self.count += 1
            if len(entries) > UNDECIDED_LIMIT:
                self._emit(next(iter(entries)))
        elif kind == _VERDICT:
            said = fields(payload)
            number = said.get("command")
            entry = entries.get(number) if isinstance(number, int) else None
            if entry is None or entry[4]:
                return
            entry[4] = verdict_word(said)
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
    """One open segment file. Raises OSError from every method that writes."""

    def __init__(self, disk: Disk, path: Path, header: Mapping[str, Any]) -> None:
        raw = encode_header(header)
        self.path = path
        self.header = header
        self.commands = CommandIndex()
        self.next_record: int = header["first_record"]
        self.size_bytes = len(raw)
        self.blocks = 0
        self._disk = disk
        self._h0 = self._chain = header_hash(raw)
        self._tree = Tree()
        self._index = _Chunks()
        self._first_ns = self._last_ns = self._t0_ns = 0
        self.descriptor = disk.create(path)
        try:
            disk.write(self.descriptor, [raw])
        except OSError:
            disk.close(self.descriptor)
            raise

    def data(self, raw: bytes | memoryview, t0_ns: int, last_ns: int, n_records: int) -> None:
        """Write a DATA block of n_records records, the first at t0_ns, the last at last_ns."""
        if not self.blocks:
            self._first_ns = t0_ns
        self._last_ns = last_ns
        self._block(_DATA, raw, t0_ns, n_records)

    def _block(self, kind: int, raw: bytes | memoryview, t0_ns: int, n_records: int = 0) -> None:
        flags, stored = store(raw)
        first = self.next_record
        size = len(stored)
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

    def finish(self, status: str, reason: str, key: SealKey) -> bytes:
        """Write the indexes, the seal and the trailer; return the root. The file stays open, to be synced."""
        for piece in self.commands.finish():
            self._block(_COMMANDS, piece, self._t0_ns)
        index_offset = self.size_bytes
        for index in self._index.pieces or [bytearray()]:
            self._block(_INDEX, bytes(index), self._t0_ns)
        root = self._tree.root()
        first = self.header["first_record"]
        body = {
            "sid": self.header["sid"],
            "segment": self.header["segment"],
            "track": self.header["track"],
            "h0": self._h0,
            "root": root,
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
        return root
