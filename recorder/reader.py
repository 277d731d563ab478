"""Reading tapes: open by the trailer, seek by record, command or time, follow a live tape, survive a torn end.

A reader believes nothing that it does not have to: lengths are checked before anything is allocated, and every
block is checked against the chain values beside it when it is read. It is lenient only about the end: a
tape without a seal is readable up to its last complete block. Whether a tape is genuine is verify.py's question.

Memory: one block at a time, and 100 bytes or so for each block of the two segments used last.
Encrypted tapes: header, index, seal and GAPs are readable by anyone; what needs a key raises Unreadable without one
of the right auditors. The .keys file is looked for beside the segments.
Left out: dictionaries (format.py names them; this reader refuses such blocks).
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import msgpack

from recorder.cipher import KEYS_FILE_LIMIT, AuditorKey, SegmentCipher, unlock
from recorder.disk import open_regular
from recorder.errors import FormatError, Truncated, Unreadable
from recorder.format import (
    BLOCK_HEADER_BYTES,
    CHAIN_BYTES,
    ENCRYPTED,
    GATE,
    HEADER_LIMIT,
    SUFFIX,
    TABLE_LIMIT,
    TRAILER_BYTES,
    Block,
    BlockType,
    CommandEntry,
    Header,
    Joiner,
    Kind,
    Record,
    decode_block_header,
    decode_commands,
    decode_header,
    decode_records,
    decode_trailer,
    restore,
)
from recorder.places import Place, Places, last_before, last_with_record
from recorder.seal import Seal, chain_hash, decode_seal, header_hash, leaf_hash
from recorder.ulid import is_ulid

_NAME: Final = re.compile(r"([0-9A-Z]{26}(?:\.original)?)\.([0-9]{3,})" + re.escape(SUFFIX))


class Segment:
    """One segment file. Raises OSError and FormatError."""

    def __init__(self, path: Path, keys: Sequence[AuditorKey] = ()) -> None:
        self.path = path
        self._keys = keys
        self._cipher: SegmentCipher | None = None
        self.seal: Seal | None = None
        self._places: list[Place] = []  # what walking found
        self._indexed: Places | None = None  # what the INDEX says
        self._commands: list[int] = []
        self._index: list[int] = []  # INDEX blocks that were not looked into yet
        self._seq = 0
        # The file is opened for each use and never kept: a tape of a thousand segments needs no thousand handles.
        with open_regular(path, 0) as file:
            self.header: Header = decode_header(file.read(HEADER_LIMIT + 32))
            self._end = len(self.header.raw)
            self._h0 = header_hash(self.header.raw)
            if not self._open_by_trailer(file.fileno()):
                self._walk(file.fileno())

    @property
    def data(self) -> Sequence[Place]:
        """The places of the DATA and GAP blocks. The INDEX is read when this is first asked for, decoded as needed."""
        if self._index:
            with open_regular(self.path, 0) as file:
                try:
                    self._indexed = Places(self._tables(self._index, file.fileno()))
                    self._commands = self._indexed.commands
                except FormatError:  # the blocks are there all the same
                    self._places, self._commands, self.seal = [], [], None
                    self._walk(file.fileno())
            self._index = []
        return self._places if self._indexed is None else self._indexed

    @property
    def next_record(self) -> int:
        """The number behind the last record that is here."""
        count = self._sealed_number("records")
        if count is not None:
            return self.header.first_record + count
        return self.data[-1].first_record + self.data[-1].n_records if self.data else self.header.first_record

    def refresh(self) -> None:
        """Find the complete blocks that were written since; stops at what is not one (yet)."""
        if self.seal is None:
            with open_regular(self.path, 0) as file:
                self._walk(file.fileno())

    def _walk(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        while self.seal is None:
            try:
                block = _block_at(descriptor, self._end)
                if block.end > size or block.seq != self._seq:
                    return
                self._note(block, descriptor)
            except FormatError:
                return
            self._end = block.end
            self._seq += 1

    def read(self, offset: int, descriptor: int) -> tuple[Block, bytes]:
        """Return the block at the offset and its raw payload, checked against the chain. Raises FormatError."""
        block = _block_at(descriptor, offset)
        start = len(self.header.raw)
        previous = self._h0 if offset == start else os.pread(descriptor, CHAIN_BYTES, offset - CHAIN_BYTES)
        whole = os.pread(descriptor, block.end - offset, offset)
        if len(whole) < block.end - offset:
            raise Truncated("the file ends in a block")
        head, stored, chain = whole[:BLOCK_HEADER_BYTES], whole[BLOCK_HEADER_BYTES:-CHAIN_BYTES], whole[-CHAIN_BYTES:]
        leaf = stored[-CHAIN_BYTES:] if block.type is BlockType.GAP else leaf_hash(head, stored)
        if chain_hash(previous, leaf) != chain:
            raise FormatError(f"block {block.seq}: the chain does not hold")
        return block, restore(block, stored, head, self.cipher() if block.flags & ENCRYPTED else None)

    @property
    def encrypted(self) -> bool:
        return self.header.map_.get("enc") is not None

    def cipher(self) -> SegmentCipher:
        """Return what decrypts this segment. Raises Unreadable (it says whose key is needed), FormatError."""
        if self._cipher is None:
            self._cipher = unlock(self.header, read_keys_file(self.path, self.header), self._keys)
        return self._cipher

    def records(self, start: int) -> Iterator[Record]:
        """Yield the records from number start on, parts of long ones as they are; a GAP as a MARK "gap".

        Raises FormatError for damage in a sealed segment; in an unsealed one it is the torn end. Raises Unreadable for
        an encrypted block without a key for it.
        """
        first = max(0, last_with_record(self.data, start))
        with open_regular(self.path, 0) as file:  # once for all its blocks: 15 us each
            # By index: refresh() may append to the list while a caller iterates.
            for i in range(first, len(self.data)):
                place = self.data[i]
                if place.first_record + place.n_records <= start:
                    continue
                if place.type == BlockType.GAP:
                    text = f"{place.n_records} records were lost in a crash"
                    yield Record(place.first_record, place.t0_ns, GATE, Kind.MARK, _mark("gap", text))
                    continue
                if self.encrypted:
                    self.cipher()  # or it would pass for a torn end
                try:
                    found = decode_records(*self.read(place.offset, file.fileno()))
                except FormatError:
                    if self.seal is not None:
                        raise
                    return
                for record in found:
                    if record.n >= start:
                        yield record

    def commands(self) -> list[CommandEntry]:
        """Return the COMMANDS entries; of an unsealed segment []. Raises FormatError."""
        return [entry for piece in self.command_pieces() for entry in decode_commands(piece)]

    def command_pieces(self) -> list[bytes]:
        """Return the payloads of the COMMANDS blocks. Raises FormatError."""
        with open_regular(self.path, 0) as file:
            offsets = self._commands if self.data else ()  # which the INDEX tells
            return self._tables(offsets, file.fileno())

    def _tables(self, offsets: Sequence[int], descriptor: int) -> list[bytes]:
        """The payloads of INDEX or COMMANDS blocks, together within their limit. Raises FormatError."""
        pieces: list[bytes] = []
        size = 0
        for offset in offsets:
            pieces.append(self.read(offset, descriptor)[1])
            size += len(pieces[-1])
            if size > TABLE_LIMIT:
                raise FormatError("more commands or blocks than a segment can have")
        return pieces

    def last_ns(self) -> int:
        """The time of the last record."""
        sealed = self._sealed_number("t_last")
        if sealed is not None:
            return sealed
        try:
            return self._last_record_ns()
        except Unreadable:  # the beginning of its last block is in the clear
            return self.data[-1].t0_ns

    def _last_record_ns(self) -> int:
        return max((record.t_ns for record in self.records(self.data[-1].first_record if self.data else 0)), default=0)

    def _sealed_number(self, name: str) -> int | None:
        value = self.seal.body.get(name) if self.seal is not None else None
        return value if isinstance(value, int) else None

    def _note(self, block: Block, descriptor: int) -> None:
        if block.type in (BlockType.DATA, BlockType.GAP):
            self._places.append(Place(block.offset, block.type, block.first_record, block.t0_ns, block.n_records))
        elif block.type is BlockType.COMMANDS:
            self._commands.append(block.offset)
        elif block.type in (BlockType.SEAL, BlockType.CRASHSEAL):
            self.seal = decode_seal(self.read(block.offset, descriptor)[1])

    def _open_by_trailer(self, descriptor: int) -> bool:
        """Find INDEX and seal by the trailer; False if that does not work out (then the blocks are walked)."""
        try:
            size = os.fstat(descriptor).st_size
            offset = decode_trailer(os.pread(descriptor, TRAILER_BYTES, max(0, size - TRAILER_BYTES)))
            while self.seal is None and offset < size - TRAILER_BYTES:
                block = _block_at(descriptor, offset)
                if block.type is BlockType.INDEX:
                    self._index.append(offset)
                else:
                    self._note(block, descriptor)
                offset = block.end
        except FormatError:
            pass
        if self.seal is None or not self._index:
            self._places, self._commands, self._index, self.seal = [], [], [], None
        return self.seal is not None


class TapeReader:
    """All segments of one tape. Raises OSError and FormatError."""

    def __init__(self, path: Path, keys: Sequence[AuditorKey] = ()) -> None:
        """Open the tape that the segment file belongs to. keys: those that may be tried on an encrypted one."""
        self.path = path
        self._segment = lru_cache(maxsize=2)(partial(Segment, keys=tuple(keys)))
        self._firsts: dict[int, int] = {}  # by segment: number of its first record
        self._lasts: dict[int, int] = {}  # by sealed segment: time of its last record
        self.segments = segments_of(path)
        self.header = self.segment(0).header

    def segment(self, i: int) -> Segment:
        """Return segment i; the two used last are kept."""
        return self._segment(self.segments[i])

    @property
    def encrypted(self) -> bool:
        return self.segment(0).encrypted

    @property
    def last(self) -> Segment:
        return self.segment(len(self.segments) - 1)

    @property
    def status(self) -> str:
        """How the tape ended by its (unchecked) seal: closed, failed, crashed; "" if it has no such end."""
        seal = self.last.seal
        status = str(seal.body.get("status", "")) if seal is not None else ""
        return "" if status == "continued" else status

    @property
    def duration_ns(self) -> int:
        return self.last.last_ns()

    @property
    def next_record(self) -> int:
        return self.last.next_record

    def refresh(self) -> None:
        """Look for what was written since."""
        self.last.refresh()
        if self.last.seal is not None:
            self.segments = segments_of(self.path)
            self.last.refresh()

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield all records from number start on, long ones joined, up to the last complete block."""
        joiner = Joiner()
        for i in range(self._segment_with(start), len(self.segments)):
            for part in self.segment(i).records(start):  # a generator: an evicted segment lives on in it
                whole = joiner.feed(part)
                if whole is not None:
                    yield whole

    def commands(self) -> Iterator[CommandEntry]:
        """Yield an entry for every COMMAND: from the indexes, or from the records where there is no index yet."""
        for i in range(len(self.segments)):
            segment = self.segment(i)
            # A segment that was ended after a crash has no COMMANDS.
            listed = segment.seal is not None and segment.seal.body.get("commands") is not None
            if not listed:
                yield from self._walk_commands(segment)
                continue
            for piece in segment.command_pieces():
                yield from decode_commands(piece)

    def _walk_commands(self, segment: Segment) -> Iterator[CommandEntry]:
        from recorder.segment import CommandIndex  # the writer's own index, so that both say the same

        index, joiner = CommandIndex(), Joiner()
        for part in segment.records(segment.header.first_record):
            record = joiner.feed(part)
            if record is not None:
                index.note(record.n, record.t_ns, record.kind, record.payload)
                if index.size_bytes > TABLE_LIMIT:
                    raise FormatError("more commands than a segment can have")
        for piece in index.finish():
            yield from decode_commands(piece)

    def at_time(self, t_ns: int) -> int:
        """Return the number of a record at which to begin, so that nothing at or after t_ns is missed."""
        # By the seals first: only one segment's INDEX is read.
        i = bisect_left(range(len(self.segments)), True, key=lambda i: self._last_ns(i) >= t_ns)
        for segment in map(self.segment, range(min(i, len(self.segments) - 1), -1, -1)):
            place = last_before(segment.data, t_ns)
            if place >= 0:
                return segment.data[place].first_record
        return 0

    # Kept, so that a bisection over the segments does not throw the two that are in use out of memory.

    def _first_record(self, i: int) -> int:
        if i not in self._firsts:
            self._firsts[i] = self.segment(i).header.first_record
        return self._firsts[i]

    def _last_ns(self, i: int) -> int:
        if i in self._lasts:
            return self._lasts[i]
        segment = self.segment(i)
        last_ns = segment.last_ns()
        if segment.seal is not None:  # else it may grow
            self._lasts[i] = last_ns
        return last_ns

    def _segment_with(self, n: int) -> int:
        low, high = 0, len(self.segments) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._first_record(middle) <= n:
                low = middle
            else:
                high = middle - 1
        return low


def segments_of(path: Path) -> list[Path]:
    """Return the segment files of the tape that the file belongs to, in order; a file of another name stands alone."""
    name = _NAME.fullmatch(path.name)
    if name is None:
        return [path]
    others = path.parent.glob(f"{name[1]}.*{SUFFIX}")
    # Of this track alone: the pattern finds the original's segments beside the main one's.
    named = [(match, other) for other in others if (match := _NAME.fullmatch(other.name))]
    found = [(int(match[2]), other) for match, other in named if match[1] == name[1]]
    return [other for _, other in sorted(found)] or [path]


def stem_of(header: Header) -> str:
    """How the names of a tape's files begin: with the session id, and ".original" if it is the original track."""
    return f"{header.sid}.original" if header.map_.get("track") == "original" else header.sid


def keys_path(path: Path, header: Header) -> Path:
    """Where the .keys file of an encrypted tape lies: beside its segments. Raises FormatError."""
    if not is_ulid(header.sid):  # what a file says of itself leads nowhere else
        raise FormatError("header: sid is not of its form")
    return path.with_name(f"{stem_of(header)}.keys")


def read_keys_file(path: Path, header: Header) -> bytes | None:
    """Return the content of a tape's .keys file, at most a byte more than it may have; None if there is none."""
    try:
        with open_regular(keys_path(path, header)) as file:
            return file.read(KEYS_FILE_LIMIT + 1)
    except FileNotFoundError:
        return None


def name_of(path: Path) -> tuple[str, int] | None:
    """Return (tape, segment number) from a file's name, None if it is not a tape's. tape: see stem_of."""
    name = _NAME.fullmatch(path.name)
    return (name[1], int(name[2])) if name else None


def _mark(label: str, text: str) -> bytes:
    packed: bytes = msgpack.packb({"label": label, "text": text})
    return packed


def _block_at(descriptor: int, offset: int) -> Block:
    return decode_block_header(os.pread(descriptor, BLOCK_HEADER_BYTES, offset), offset)
