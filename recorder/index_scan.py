"""Reading a tape for the index: block by block from a cursor on, over all its segments, up to what is complete.

Unlike reader.py it never walks what it has read: a cursor names the next block and the chain value before it, so that
going on with a live tape costs what is new. If the file does not have that chain value there any more (a tape cut by
recovery after a power cut, a file replaced), Changed says that the tape must be read from its beginning.

Every block is checked against the chain, and the last chain value against the seal's body; signatures are not
checked: that is verify.py's work, and nothing here calls a tape genuine. Blocks of an encrypted tape are counted and
passed over. A file whose header says that it is an original track is refused: its content was not masked.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from recorder.disk import is_live, open_regular
from recorder.errors import FormatError, Truncated
from recorder.format import (
    BLOCK_HEADER_BYTES,
    CHAIN_BYTES,
    ENCRYPTED,
    HEADER_LIMIT,
    TRAILER_BYTES,
    Block,
    BlockType,
    Header,
    Record,
    decode_block_header,
    decode_header,
    decode_records,
    decode_trailer,
    restore,
)
from recorder.seal import Seal, chain_hash, decode_seal, header_hash, leaf_hash

_INDEXES: Final = (BlockType.COMMANDS, BlockType.INDEX)


class Changed(Exception):
    """What was read before is not what is there now."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place of the next block: in which segment, where, its number, and the chain value before it.

    offset 0 is the segment's beginning; then seq is 0 and chain is empty.
    """

    segment: int = 0
    offset: int = 0
    seq: int = 0
    chain: bytes = b""


@dataclass(frozen=True, slots=True)
class Piece:
    """One block: its records (none of an encrypted one), how many it has, and the cursor behind it."""

    header: Header
    block: Block
    records: list[Record]
    count: int
    after: Cursor


class Scan:
    """The blocks of one tape from a cursor on.

    After pieces() has ended: seals are those of the segments that were read to their end; done tells that the last one
    is not "continued"; damage says what is wrong, "" if nothing is; cursor is where to go on.
    """

    def __init__(self, files: Mapping[int, Path], cursor: Cursor) -> None:
        self.files = files
        self.cursor = cursor
        self.seals: list[Seal] = []
        self.damage = ""
        self.done = False
        self.header: Header | None = None

    def pieces(self) -> Iterator[Piece]:
        """Yield the DATA and GAP blocks. Raises OSError, Changed, FormatError if a header cannot be read."""
        if self.cursor.segment not in self.files:
            later = [segment for segment in self.files if segment > self.cursor.segment]
            if not later:
                return
            self.cursor = Cursor(min(later))  # what lies between has left for the vault
        while self.cursor.segment in self.files:
            segment = self.cursor.segment
            sealed = yield from self._segment(self.files[segment])
            following = Cursor(segment + 1)
            if sealed is not None:
                self.seals.append(sealed)
                if sealed.body.get("status") != "continued":
                    self.done = True
                    return
            elif following.segment not in self.files or is_live(self.files[segment]):
                return
            else:
                self.damage = self.damage or f"segment {segment} has no seal"
            self.cursor = following

    def _segment(self, path: Path) -> Generator[Piece, None, Seal | None]:
        """Yield the segment's blocks; the value is its seal, None if it has none (yet)."""
        with open_regular(path, 0) as file:
            descriptor = file.fileno()
            header = self._header(descriptor)
            self.header = header
            size = os.fstat(descriptor).st_size
            while True:
                try:
                    block, whole = _whole_block(descriptor, self.cursor, size)
                    chain = _chain_behind(block, whole, self.cursor)
                    records = _records(block, whole)
                    after = Cursor(self.cursor.segment, block.end, block.seq + 1, chain)
                    if block.type in (BlockType.SEAL, BlockType.CRASHSEAL):
                        seal = decode_seal(restore(block, whole[BLOCK_HEADER_BYTES:-CHAIN_BYTES]))
                        if seal.body.get("head") != self.cursor.chain:
                            raise FormatError("the seal is not of this segment")
                        self.cursor = after
                        return seal
                except FormatError as error:
                    if _is_finished(descriptor, size) and not self.damage:
                        self.damage = f"segment {self.cursor.segment}, byte {self.cursor.offset}: {error.reason}"
                    return None
                self.cursor = after
                if block.type not in _INDEXES:
                    yield Piece(header, block, records, block.n_records, after)

    def _header(self, descriptor: int) -> Header:
        """Read the segment's header and see that it is still the one that the cursor speaks of."""
        header = decode_header(os.pread(descriptor, HEADER_LIMIT + 32, 0))
        if header.map_.get("track", "main") != "main":
            raise FormatError("an original track is not indexed")
        if header.segment != self.cursor.segment:
            raise FormatError(f"segment {header.segment} is in the place of segment {self.cursor.segment}")
        start, h0 = len(header.raw), header_hash(header.raw)
        if self.cursor.offset == 0:
            self.cursor = Cursor(self.cursor.segment, start, 0, h0)
            return header
        at = self.cursor.offset
        found = h0 if at == start else os.pread(descriptor, CHAIN_BYTES, at - CHAIN_BYTES)
        if found != self.cursor.chain:
            raise Changed
        return header


def _whole_block(descriptor: int, cursor: Cursor, size: int) -> tuple[Block, bytes]:
    block = decode_block_header(os.pread(descriptor, BLOCK_HEADER_BYTES, cursor.offset), cursor.offset)
    if block.end > size:
        raise Truncated("the file ends in a block")
    if block.seq != cursor.seq:
        raise FormatError(f"block {block.seq} is in the place of block {cursor.seq}")
    whole = os.pread(descriptor, block.end - block.offset, block.offset)
    if len(whole) < block.end - block.offset:
        raise Truncated("the file ends in a block")
    return block, whole


def _chain_behind(block: Block, whole: bytes, cursor: Cursor) -> bytes:
    head, stored, chain = whole[:BLOCK_HEADER_BYTES], whole[BLOCK_HEADER_BYTES:-CHAIN_BYTES], whole[-CHAIN_BYTES:]
    leaf = stored[-CHAIN_BYTES:] if block.type is BlockType.GAP else leaf_hash(head, stored)
    if chain_hash(cursor.chain, leaf) != chain:
        raise FormatError(f"block {block.seq}: the chain does not hold")
    return chain


def _records(block: Block, whole: bytes) -> list[Record]:
    if block.type is not BlockType.DATA or block.flags & ENCRYPTED:
        return []
    return decode_records(block, restore(block, whole[BLOCK_HEADER_BYTES:-CHAIN_BYTES]))


def _is_finished(descriptor: int, size: int) -> bool:
    """Tell whether the file ends as a sealed one: then what cannot be read is damage, and no torn end."""
    try:
        decode_trailer(os.pread(descriptor, TRAILER_BYTES, max(0, size - TRAILER_BYTES)))
    except FormatError:
        return False
    return True
