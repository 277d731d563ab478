"""The write-ahead log's file format: entries, encoded and decoded. wal.py writes it, recover.py reads it.

Why: one log for all tapes of a process makes one disk flush serve every session that waits (group commit). Tapes are
written beside it and synced later; what they lack after a power cut is restored from here, or pinned by its hash.

A log is the files ``<any name>.wal`` of one directory; each is entries, one after the other from offset 0. Integers
are little-endian; "block header", "leaf", "stored payload" are those of format.py.

    entry = "GCTW" | kind u8 | track u8 | 0 u16 | segment u32 | generation u64 | sid (16) | body_len u32 | crc u32
            | body (<= 1,048,640 bytes)

    sid is the ULID as a big-endian number; track is 0 main, 1 original; crc is the CRC32 of the 40 bytes before it and
    of the body. kind:
    1 OPEN    body = msgpack [segment header bin, .keys file bin or nil]: a segment that is now being written. Repeated
              at the head of each generation for every segment that is still open
    2 FULL    body = block header (48) || stored payload
    3 DIGEST  body = (block header (48) || leaf (32)), once or more, in the order of seq: of blocks whose content may be
              lost, and the fact of them not
    4 DONE    body empty: the segment file is complete, sealed and on the disk; whatever the log says of it is history

    Every block of a segment is in the log, in the order of seq, as FULL or DIGEST; INDEX, COMMANDS and SEAL blocks too.
    A file has one generation, that of its first entry; the log's files, by generation, are one sequence. A file ends at
    the first entry with a wrong magic, kind, track, reserved byte, length, CRC or generation: files are zeroed before
    they are used and used again under a higher generation, so valid entries of an earlier use may follow. No generation
    is ever used twice. A file is used again only when every segment that has entries in it is synced.

Pure: no files, no clock.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgpack

from recorder.errors import FormatError
from recorder.format import BLOCK_HEADER_BYTES, HEADER_LIMIT, STORED_LIMIT

WAL_SUFFIX: Final = ".wal"
TRACKS: Final = ("main", "original")  # by number
KEYS_LIMIT: Final = 64 * 1024  # ours: a .keys file with some hundred recipients
_OPEN_LIMIT: Final = HEADER_LIMIT + KEYS_LIMIT + 64
PIN_BYTES: Final = BLOCK_HEADER_BYTES + 32
BODY_LIMIT: Final = BLOCK_HEADER_BYTES + STORED_LIMIT  # of a FULL entry; an OPEN is always shorter

_HEAD: Final = struct.Struct("<4sBBHIQ16sI")
_CRC: Final = struct.Struct("<I")
ENTRY_HEADER_BYTES: Final = _HEAD.size + _CRC.size  # 44


class EntryKind(IntEnum):
    """What an entry says."""

    OPEN = 1
    FULL = 2
    DIGEST = 3
    DONE = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; offset is where its body begins in the data that was read, sid the 26 characters."""

    kind: EntryKind
    track: int
    segment: int
    generation: int
    sid: bytes
    body: bytes


def encode_entry_header(kind: int, track: int, segment: int, generation: int, sid: bytes, *body: bytes) -> bytes:
    """Return the 44 bytes that go before the body; sid is 16 bytes, body the pieces that will follow."""
    size = 0
    for piece in body:
        size += len(piece)
    head = _HEAD.pack(b"GCTW", kind, track, 0, segment, generation, sid, size)
    crc = zlib.crc32(head)
    for piece in body:
        crc = zlib.crc32(piece, crc)
    return head + _CRC.pack(crc)


def encode_open(header: bytes, keys: bytes | None) -> bytes:
    """Return the body of an OPEN entry."""
    body: bytes = msgpack.packb([header, keys], use_bin_type=True)
    return body


def decode_open(body: bytes) -> tuple[bytes, bytes | None]:
    """Return (segment header, .keys file or None) from an OPEN's body. Raises FormatError."""
    try:
        match msgpack.unpackb(body, raw=False):
            case [bytes(header), None]:
                return header, None
            case [bytes(header), bytes(keys)]:
                return header, keys
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError("OPEN: not msgpack") from error
    raise FormatError("OPEN: of another form")


def read_entries(data: bytes | memoryview) -> Iterator[Entry]:
    """Yield the entries of one log file up to the first that is not valid."""
    view = memoryview(data)
    offset, generation = 0, None
    while offset + ENTRY_HEADER_BYTES <= len(view):
        magic, kind, track, zero, segment, own, sid, size = _HEAD.unpack_from(view, offset)
        start = offset + ENTRY_HEADER_BYTES
        if magic != b"GCTW" or zero or not 1 <= kind <= 4 or track >= len(TRACKS):
            return
        if size > BODY_LIMIT or start + size > len(view) or (generation is not None and own != generation):
            return
        crc = zlib.crc32(view[start : start + size], zlib.crc32(view[offset : offset + _HEAD.size]))
        if crc != _CRC.unpack_from(view, offset + _HEAD.size)[0]:
            return
        generation = own
        yield Entry(EntryKind(kind), track, segment, own, sid, bytes(view[start : start + size]))
        offset = start + size
