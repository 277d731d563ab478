"""The structures of a tape's file: numbers and limits, header, block header, trailer, and how a payload is stored.

format.py is the specification and the door: it has all of this, and the records; import from there. Pure.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Protocol

import msgpack
import zstandard

from recorder.errors import FormatError, NotATape, Truncated, UnknownVersion, Unreadable

MAGIC: Final = b"\x89GCT\r\n\x1a\n"  # as PNG's: a cut or a text-mode copy shows at once
VERSION: Final = 1
SUFFIX: Final = ".gct"
KEYS_SUFFIX: Final = ".keys"

GATE: Final = 0  # channels
USER: Final = 1
OUT: Final = 2
ERR: Final = 3

HEADER_LIMIT: Final = 64 * 1024  # ours: identity with a few hundred groups fits
PAYLOAD_LIMIT: Final = 256 * 1024  # recorder note, section 3
JOINED_LIMIT: Final = 32 * 1024 * 1024  # ours: a long statement with its bind values; bounds a reader's memory
BLOCK_TARGET_BYTES: Final = 256 * 1024  # recorder note, section 2: 64 KiB blocks lose up to 3 % of the ratio
RAW_LIMIT: Final = 1024 * 1024  # recorder note, section 3
STORED_LIMIT: Final = RAW_LIMIT + 16  # the tag of AES-256-GCM
# Less is stored as it is: zstd takes 4 us whatever the size, a third of the CPU of a small command's two blocks, and
# would save a seventh of the file (benchmarks/tape.py: 590 in place of 685 bytes a transaction).
RAW_BELOW_BYTES: Final = 512
# Enough for zstd to find that base64 or text is none of these: measured. Smaller samples cost as much for each byte.
SAMPLE_BYTES: Final = 1024
# Raw bytes of all COMMANDS blocks of a segment, or of all its INDEX blocks. Writers begin another segment after 4 MiB
# of commands or 64 Ki blocks (tape.py); a reader that took more would let a small file fill its memory.
TABLE_LIMIT: Final = 16 * 1024 * 1024
# How deep maps and arrays may lie in each other. msgpack takes 1,024; Python's own recursion ends a little earlier, and
# with it whatever compares, prints or exports what was read. Ours: bind values and errors take four.
DEPTH_LIMIT: Final = 64
SHORT_TEXT_LIMIT: Final = 120  # one line of a wide terminal

ZSTD: Final = 1
ENCRYPTED: Final = 2
DICTIONARY: Final = 4
_FLAGS: Final = ZSTD | ENCRYPTED | DICTIONARY

_PROLOGUE = struct.Struct("<8sHI")
_BLOCK = struct.Struct("<4sBBHQQQIII")
_BLOCK_CRC = struct.Struct("<4sBBHQQQIIII")
_TRAILER = struct.Struct("<4sQ")
_CRC = struct.Struct("<I")
BLOCK_HEADER_BYTES: Final = 48
CHAIN_BYTES: Final = 32
TRAILER_BYTES: Final = 16


class Kind(IntEnum):
    """What a record holds; WIRE's payload is raw bytes, every other kind's is msgpack."""

    WIRE = 1
    COMMAND = 2
    VERDICT = 3
    APPROVAL = 4
    RESULT = 5
    INTENT = 6
    RESIZE = 7
    MARK = 8
    MASKMAP = 9
    CLOSE = 10


class BlockType(IntEnum):
    """What a block holds."""

    DATA = 1
    GAP = 2
    COMMANDS = 3
    INDEX = 4
    SEAL = 5
    CRASHSEAL = 6


@dataclass(frozen=True, slots=True)
class Header:
    """A segment's header. raw is the whole of it, as hashed; map_ is what it says."""

    raw: bytes
    map_: Mapping[str, Any]

    @property
    def sid(self) -> str:
        return str(self.map_["sid"])

    @property
    def segment(self) -> int:
        return int(self.map_["segment"])

    @property
    def first_record(self) -> int:
        return int(self.map_["first_record"])

    @property
    def wall0_ns(self) -> int:
        return int(self.map_["wall0_ns"])


@dataclass(frozen=True, slots=True)
class Block:
    """A block's header, decoded; offset is where it begins in the file."""

    offset: int
    type: BlockType
    flags: int
    seq: int
    first_record: int
    t0_ns: int
    n_records: int
    raw_len: int
    stored_len: int

    @property
    def end(self) -> int:
        """The offset behind the block's chain value."""
        return self.offset + BLOCK_HEADER_BYTES + self.stored_len + CHAIN_BYTES

    @property
    def next_record(self) -> int:
        return self.first_record + self.n_records


@dataclass(frozen=True, slots=True)
class Record:
    """One item on a tape; t_ns is nanoseconds since the tape was opened. kind may be one that we do not know.

    flow: the stream of the session that a WIRE or RESIZE record belongs to; None: to none, or of another kind.
    """

    n: int
    t_ns: int
    channel: int
    kind: int
    payload: bytes
    part: int = 0
    more: int = 0
    flow: int | None = None


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """One line of the COMMANDS index."""

    n: int
    t_ns: int
    verb: str
    kind: str
    verdict: str
    text: str


def encode_header(fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a segment's header. Raises ValueError above a limit, TypeError for foreign objects."""
    if not is_shallow(fields):
        raise ValueError("the header is nested too deeply")
    body = msgpack.packb(fields, use_bin_type=True, default=_plain)
    if len(body) > HEADER_LIMIT:
        raise ValueError("the header is larger than 64 KiB")
    raw: bytes = _PROLOGUE.pack(MAGIC, VERSION, len(body)) + body
    return raw + _CRC.pack(zlib.crc32(raw))


def decode_header(data: bytes) -> Header:
    """Decode the header at the start of data. Raises Truncated, NotATape, UnknownVersion, FormatError."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise NotATape("not a tape: wrong magic")
    if len(data) < _PROLOGUE.size:
        raise Truncated("the file ends in its header")
    _, version, length = _PROLOGUE.unpack_from(data)
    if version != VERSION:
        raise UnknownVersion(f"format version {version} is not known here")
    if length > HEADER_LIMIT:
        raise FormatError("the header's length is above its limit")
    end = _PROLOGUE.size + length
    if len(data) < end + _CRC.size:
        raise Truncated("the file ends in its header")
    if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        raise FormatError("header: wrong CRC")
    fields = _unpack(data[_PROLOGUE.size : end], "header")
    if not isinstance(fields, dict):
        raise FormatError("header: not a map")
    if not is_shallow(fields):
        raise FormatError("header: nested too deeply")
    for key, kind in (("sid", str), ("segment", int), ("first_record", int), ("wall0_ns", int)):
        if not isinstance(fields.get(key), kind):
            raise FormatError(f"header: {key} is missing")
    return Header(data[: end + _CRC.size], fields)


def encode_block_header(
    kind: int, flags: int, seq: int, first_record: int, t0_ns: int, n_records: int, raw_len: int, stored_len: int
) -> bytes:
    """Return the 48 bytes of a block header."""
    head = _BLOCK.pack(b"GCTB", kind, flags, 0, seq, first_record, t0_ns, n_records, raw_len, stored_len)
    return head + _CRC.pack(zlib.crc32(head))


def decode_block_header(data: bytes, offset: int) -> Block:
    """Decode 48 bytes that stand at offset in the file. Raises Truncated, FormatError."""
    if len(data) < BLOCK_HEADER_BYTES:
        raise Truncated("the file ends in a block header")
    magic, kind, flags, zero, seq, first, t0, count, raw_len, stored_len, crc = _BLOCK_CRC.unpack(data)
    if magic != b"GCTB":
        raise FormatError("block: wrong magic")
    if crc != zlib.crc32(data[:-4]):
        raise FormatError("block header: wrong CRC")
    if not 1 <= kind <= 6:
        raise FormatError(f"block: unknown type {kind}")
    if flags & ~_FLAGS or zero:
        raise FormatError("block: unknown flags or reserved bits")
    if raw_len > RAW_LIMIT or stored_len > STORED_LIMIT:
        raise FormatError("block: a length above its limit")
    if not flags and raw_len != stored_len:
        raise FormatError("block: stored as it is, but with another length")
    return Block(offset, BlockType(kind), flags, seq, first, t0, count, raw_len, stored_len)


def encode_trailer(index_offset: int) -> bytes:
    """Return the 16 bytes that end a finished segment."""
    head = _TRAILER.pack(b"GCTT", index_offset)
    return head + _CRC.pack(zlib.crc32(head))


def decode_trailer(data: bytes) -> int:
    """Return the offset of the first INDEX block. Raises FormatError if these are not a trailer's 16 bytes."""
    if len(data) != TRAILER_BYTES or data[:4] != b"GCTT":
        raise FormatError("no trailer")
    if _CRC.unpack_from(data, 12)[0] != zlib.crc32(data[:12]):
        raise FormatError("trailer: wrong CRC")
    return int(_TRAILER.unpack_from(data)[1])


_compress = zstandard.ZstdCompressor(level=1, write_content_size=True, write_checksum=False).compress
_decompressor = zstandard.ZstdDecompressor()


def store(raw: bytes | memoryview) -> tuple[int, bytes]:
    """Return (flags, stored payload): compressed if that saves at least 1/16, else as it is."""
    size = len(raw)
    if size >= RAW_BELOW_BYTES:
        packed: bytes = _compress(raw)
        if len(packed) <= size - (size >> 4):
            return ZSTD, packed
    return 0, bytes(raw)


def looks_dense(raw: bytes | memoryview) -> bool:
    """Tell by two samples whether it is not worth trying to compress it. 4 us; the try takes 15 us at 32 KiB."""
    for start in (len(raw) // 4, len(raw) // 2):
        sample = raw[start : start + SAMPLE_BYTES]
        if len(_compress(sample)) <= len(sample) - (len(sample) >> 4):
            return False
    return True


class Opener(Protocol):
    """What decrypts the blocks of a segment: cipher.SegmentCipher."""

    def open(self, block_header: bytes, seq: int, sealed: bytes) -> bytes:
        """Raises FormatError if the block is not what was sealed."""


def restore(block: Block, stored: bytes, head: bytes = b"", cipher: Opener | None = None) -> bytes:
    """Return the raw payload of a block. An encrypted one takes its 48 bytes of header, and its segment's cipher.

    Raises FormatError, Unreadable.
    """
    if block.flags & DICTIONARY:
        raise Unreadable("the block needs a dictionary")
    if block.flags & ENCRYPTED:
        if cipher is None:
            raise Unreadable("the block is encrypted")
        stored = cipher.open(head, block.seq, stored)
    if not block.flags & ZSTD:
        if len(stored) != block.raw_len:
            raise FormatError("block: its content is not raw_len bytes")
        return stored
    try:
        if zstandard.frame_content_size(stored) != block.raw_len:
            raise FormatError("block: its content size is not raw_len")
        # The content size was checked first, as the library allocates what the frame announces.
        raw = _decompressor.decompress(stored, max_output_size=block.raw_len, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"block: not a zstd frame ({error})") from error
    if len(raw) != block.raw_len:
        raise FormatError("block: its content is not raw_len bytes")
    return raw


def _unpack(data: bytes, what: str) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError(f"{what}: not msgpack") from error


def is_shallow(value: object) -> bool:
    """Tell whether maps and arrays lie no deeper in each other than their limit."""
    level: list[Any] = [value] if isinstance(value, list | dict) else []
    for _ in range(DEPTH_LIMIT):
        if not level:
            return True
        level = [
            item
            for outer in level
            for item in (outer.values() if type(outer) is dict else outer)
            if type(item) is list or type(item) is dict
        ]
    return not level


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot go on a tape")
