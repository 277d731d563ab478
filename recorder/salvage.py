"""What recovery knows of one segment: which of its blocks are good, and how it is ended without its writer.

scan() walks a segment file as far as header CRC, numbers and chain hold. The result is a Body, the DATA and GAP blocks,
which more blocks can be added to, and, if they are all there, a Tail: COMMANDS, INDEX and the seal. What is
neither is a torn end. crash_end() makes the INDEX, the CRASHSEAL and the trailer that end a Body for which no seal came
back. Nothing here is decrypted, and no byte of a block is changed: a seal covers what the writer wrote.

Memory: a window of the file, and some 130 bytes for each block. Left out: which bytes are right if log and file
differ, and everything about more than one segment (recover.py); the content of records (verify_tape.py).
Source: format.py, "Files", "GAP payload", "Hashes and seal"; recorder note, section 5.
"""

from __future__ import annotations

import copy
from hashlib import sha256
from typing import Final

import msgpack

from recorder.disk import Disk
from recorder.errors import FormatError
from recorder.format import (
    BLOCK_HEADER_BYTES,
    BLOCK_TARGET_BYTES,
    CHAIN_BYTES,
    Block,
    BlockType,
    Header,
    decode_block_header,
    encode_block_header,
    encode_trailer,
    restore,
    store,
)
from recorder.seal import SealKey, Tree, chain_hash, decode_seal, header_hash, leaf_hash

WINDOW_BYTES: Final = 1024 * 1024  # of the file in memory: three blocks of the usual size
REASON_LIMIT: Final = 1024  # characters in a seal, as of the writer's

_pack = msgpack.Packer(use_bin_type=True).pack
_GAP_BYTES: Final = BLOCK_HEADER_BYTES + CHAIN_BYTES

# Which types may follow, as in verify_tape.py: 0 data, 1 COMMANDS, 2 INDEX, 3 sealed.
_STAGES: Final = {
    (0, BlockType.COMMANDS): 1,
    (0, BlockType.INDEX): 2,
    (1, BlockType.COMMANDS): 1,
    (1, BlockType.INDEX): 2,
    (2, BlockType.INDEX): 2,
    (2, BlockType.SEAL): 3,
    (2, BlockType.CRASHSEAL): 3,
}
_SEALED: Final = 3


class Body:
    """The DATA and GAP blocks of a segment, as far as they are good."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.h0 = self.chain = header_hash(header.raw)
        self.tree = Tree()
        self.leaves: list[bytes] = []
        self.index: list[bytearray] = [bytearray()]  # the payloads of the INDEX blocks
        self.gaps: list[list[int | bytes]] = []  # as a seal has them: [seq, hash of the payload]
        self.next_record = header.first_record
        self.t_first_ns = self.t0_ns = 0
        self.end = len(header.raw)

    @property
    def count(self) -> int:
        """How many blocks these are: the seq of the next one."""
        return len(self.leaves)

    def fits(self, block: Block) -> bool:
        """Tell whether a DATA or GAP block may come next."""
        return (
            block.seq == len(self.leaves)
            and block.first_record == self.next_record
            and block.t0_ns >= self.t0_ns
            and block.n_records > 0
        )

    def add(self, block: Block, leaf: bytes, stored: bytes) -> bytes:
        """Take the next block, which fits; stored is looked at in a GAP. Returns the chain value behind it."""
        if not self.leaves:
            self.t_first_ns = block.t0_ns
        kind = int(block.type)
        entry = _pack((self.end, kind, block.seq, block.first_record, block.t0_ns, block.n_records, leaf))
        if len(self.index[-1]) + len(entry) > BLOCK_TARGET_BYTES:
            self.index.append(bytearray())
        self.index[-1] += entry
        if block.type is BlockType.GAP:
            self.gaps.append([block.seq, sha256(stored).digest()])
        self.leaves.append(leaf)
        self.tree.add(leaf)
        self.chain = chain_hash(self.chain, leaf)
        self.next_record = block.first_record + block.n_records
        self.t0_ns = block.t0_ns
        self.end += BLOCK_HEADER_BYTES + block.stored_len + CHAIN_BYTES
        return self.chain


class Tail:
    """COMMANDS, INDEX and the seal of a segment, block by block; sealed once they are all there and fit."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._tree = copy.deepcopy(body.tree)
        self._stage = 0
        self._seq = body.count
        self.leaves: list[bytes] = []
        self.chain = body.chain
        self.end = body.end
        self.index_offset = 0
        self.status = ""  # the seal's
        self.root = b""
        self.crashed = False  # it is a CRASHSEAL

    @property
    def sealed(self) -> bool:
        return self._stage == _SEALED

    def take(self, block: Block, head: bytes, stored: bytes) -> bool:
        """Take the next block; False if it does not fit, and this is no tail."""
        stage = _STAGES.get((self._stage, block.type))
        if stage is None or block.seq != self._seq or block.n_records:
            return False
        if block.first_record != self._body.next_record or block.t0_ns < self._body.t0_ns:
            return False
        if stage == _SEALED and not self._fits(block, stored):
            return False
        if block.type is BlockType.INDEX and not self.index_offset:
            self.index_offset = self.end
        leaf = leaf_hash(head, stored)
        self._stage = stage
        self._seq += 1
        self._tree.add(leaf)
        self.leaves.append(leaf)
        self.chain = chain_hash(self.chain, leaf)
        self.end += BLOCK_HEADER_BYTES + block.stored_len + CHAIN_BYTES
        return True

    def _fits(self, block: Block, stored: bytes) -> bool:
        """Tell whether the seal is about what is here."""
        try:
            said = decode_seal(restore(block, stored)).body
        except FormatError:
            return False
        self.crashed = block.type is BlockType.CRASHSEAL
        self.status = str(said.get("status"))
        self.root = self._tree.root()
        found = (self._body.h0, self.root, self.chain, self._seq, self._body.gaps)
        if found != tuple(said.get(name) for name in ("h0", "root", "head", "blocks", "gaps")):
            return False
        return self.crashed or not self._body.gaps


class Window:
    """Reads a file front to back with few calls."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._start = 0
        self._data = b""

    def read(self, size: int, offset: int) -> bytes:
        """Return size bytes at the offset; fewer at the end of the file."""
        at = offset - self._start
        if at < 0 or at + size > len(self._data):
            self._data = self._disk.read_at(self._descriptor, max(size, WINDOW_BYTES), offset)
            self._start, at = offset, 0
        return self._data[at : at + size]

    def block(self, offset: int) -> tuple[Block, bytes, bytes, bytes] | None:
        """Return (block, header, stored payload, chain value) if a whole block is there; the chain is not checked."""
        head = self.read(BLOCK_HEADER_BYTES, offset)
        try:
            block = decode_block_header(head, offset)
        except FormatError:
            return None
        size = block.stored_len
        rest = self.read(size + CHAIN_BYTES, offset + BLOCK_HEADER_BYTES)
        if len(rest) < size + CHAIN_BYTES:
            return None
        return block, head, rest[:size], rest[size:]


def scan(disk: Disk, descriptor: int, header: Header) -> tuple[Body, Tail | None]:
    """Return what is good in a segment file that begins with the header, and its tail if that is complete."""
    window = Window(disk, descriptor)
    body = Body(header)
    found = window.block(body.end)
    while found is not None and found[0].type in (BlockType.DATA, BlockType.GAP):
        block, head, stored, chain = found
        leaf = leaf_hash(head, stored) if block.type is BlockType.DATA else gap_leaf(block, stored)
        if leaf is None or not body.fits(block) or chain_hash(body.chain, leaf) != chain:
            return body, None
        body.add(block, leaf, stored)
        found = window.block(body.end)
    tail = Tail(body)
    while found is not None and not tail.sealed:
        block, head, stored, chain = found
        if not tail.take(block, head, stored) or tail.chain != chain:
            return body, None
        found = window.block(tail.end)
    return body, tail if tail.sealed else None


def gap_leaf(block: Block, stored: bytes) -> bytes | None:
    """Return the leaf that a GAP block pins, None if it is not well formed."""
    if block.flags or len(stored) != _GAP_BYTES:
        return None
    try:
        lost = decode_block_header(stored[:BLOCK_HEADER_BYTES], block.offset)
    except FormatError:
        return None
    same = (lost.seq, lost.first_record, lost.t0_ns, lost.n_records)
    if lost.type is not BlockType.DATA or same != (block.seq, block.first_record, block.t0_ns, block.n_records):
        return None
    return stored[BLOCK_HEADER_BYTES:]


def make_gap(body: Body, lost: Block, head: bytes, leaf: bytes) -> bytes:
    """Add a GAP to the body in the place of the lost DATA block, which fits; returns the whole GAP block."""
    first, t0, count = lost.first_record, lost.t0_ns, lost.n_records
    own = encode_block_header(int(BlockType.GAP), 0, lost.seq, first, t0, count, _GAP_BYTES, _GAP_BYTES)
    chain = body.add(decode_block_header(own, body.end), leaf, head + leaf)
    return own + head + leaf + chain


def crash_end(body: Body, key: SealKey, status: str, reason: str) -> tuple[bytes, bytes]:
    """Return (INDEX, CRASHSEAL and trailer for the body, to be written at its end; the tree's root)."""
    header, out = body.header.map_, bytearray()
    tree, chain, seq = copy.deepcopy(body.tree), body.chain, body.count

    def block(kind: BlockType, raw: bytes) -> bytes:
        flags, stored = store(raw)
        head = encode_block_header(int(kind), flags, seq, body.next_record, body.t0_ns, 0, len(raw), len(stored))
        leaf = leaf_hash(head, stored)
        tree.add(leaf)
        following = chain_hash(chain, leaf)
        out.extend(head + stored + following)
        return following

    for piece in body.index:
        chain = block(BlockType.INDEX, bytes(piece))
        seq += 1
    root = tree.root()
    said = {
        "sid": body.header.sid,
        "segment": body.header.segment,
        "track": header.get("track"),
        "h0": body.h0,
        "root": root,
        "head": chain,
        "blocks": seq,
        "first_record": body.header.first_record,
        "records": body.next_record - body.header.first_record,
        "commands": None,
        "t_first": body.t_first_ns,
        "t_last": body.t0_ns,
        "status": status,
        "reason": reason[:REASON_LIMIT],
        "gaps": body.gaps,
        "log": None,
    }
    block(BlockType.CRASHSEAL, key.seal(said))
    return bytes(out) + encode_trailer(body.end), root
