"""The tape's file format, version 1: its specification, and the pure encoding and decoding of its parts.

This text is the specification; it is meant to suffice for writing a reader without seeing the code.

Conventions. Integers outside msgpack are little-endian and unsigned. ``||`` joins bytes. "map", "array", "bin",
"str", "int" and "nil" are msgpack's (the 2013 specification, with bin and str apart). CRC32 is that of zlib and
IEEE 802.3. H(x) is SHA-256. Times are nanoseconds on a monotonic clock that reads 0 when the tape was opened;
the wall time of an instant t is ``wall0_ns + t`` (nanoseconds since 1970-01-01 UTC).

Files. One session is one tape; a tape is one or more segment files ``<sid>.<segment, 3 or more digits>.gct`` in one
directory, numbered from 000 without a hole. A session may have a second tape, of its original (unmasked) track:
``<sid>.original.<segment>.gct``. Beside an encrypted tape lies ``<sid>.keys`` (or ``<sid>.original.keys``), see Encryption.
A segment is written once, front to back, and never changed:

    segment = header | (DATA | GAP)* | COMMANDS* | INDEX+ | SEAL | trailer            and nothing after it

A session that is live, or that died, lacks the tail of this; every complete block is readable all the same.
After a crash, recovery (recover.py) cuts a torn end off, restores from the log what the log has, puts a GAP for each
block that only its hash is left of, and ends the segment with INDEX+ | CRASHSEAL | trailer, without COMMANDS.

Header (22 bytes and more)

    magic 89 47 43 54 0D 0A 1A 0A | version u16 = 1 | map_len u32 (<= 65,536) | map | crc32 u32 of all before it

    The map, in the clear (it holds no command, intent or token). Keys that a reader does not know are ignored:
    sid str (ULID, 26 characters)   segment int   prev nil or bin (the chain value behind the last DATA or GAP block of
    the segment before, its h0 if it has none: the same whether or not that segment was recovered)
    first_record int (number of this segment's first record)   track str ("main" | "original")   node str   boot str
    wall0_ns int   mono0_ns int (the clock's own reading at time 0)   protocol str   target str   identity map
    (subject str, and what the gate knows: groups, agents, issuer, proof = hex of a hash of the proof)
    run str   policy_rev str   mode str ("durable" | "written" | "strict")   more map (the protocol's own remarks;
    "tty": [columns, rows] says that channels out and err carry terminal bytes as they are)
    enc map (only of an encrypted tape, see Encryption): suite str, salt bin (24), commit bin (32), wraps bin (32)

Block = block header (48 bytes) | stored payload (stored_len bytes) | chain value (32 bytes)

    offset  0 "GCTB"          4 bytes       offset 24 t0_ns        u64  time of the block's first record
            4 type            u8                   32 n_records    u32
            5 flags           u8                   36 raw_len      u32  (<= 1,048,576)
            6 0               u16                  40 stored_len   u32  (<= 1,048,592)
            8 seq             u64                  44 crc32        u32  of the 44 bytes before it
           16 first_record    u64

    type: 1 DATA  2 GAP  3 COMMANDS  4 INDEX  5 SEAL  6 CRASHSEAL. Any other is refused.
    flags: 1 the payload is one zstd frame that states its content size, which is raw_len; 2 encrypted (AES-256-GCM,
    a 16-byte tag after the data); 4 compressed with the dictionary that the header names. Other bits are refused.
    Without flags, stored_len = raw_len. Compression comes before encryption. Flag 4 is not written yet. A reader without
    key or dictionary can check such a block, but not look into it. In an encrypted tape every DATA and COMMANDS block is
    encrypted; GAP, INDEX, SEAL and CRASHSEAL never are.
    seq counts all blocks of the segment from 0. first_record: the number of the first record in this block, or that the
    next record will have; n_records is 0 except in DATA and GAP, so first_record + n_records is always the next
    block's first_record. Records are numbered from 0 over the whole tape. t0_ns never goes back in a segment (0 in one
    without DATA or GAP), and that of DATA and GAP not over the whole tape.

DATA payload: n_records records, one after the other, each an array

    [n, dt_us, channel, kind, payload bin (<= 262,144 bytes), meta map (may be absent)]

    n = first_record, first_record + 1, ...; dt_us = microseconds since t0_ns, never going back; channel: 0 the gate,
    1 from the user, 2 to the user (out), 3 to the user (err). meta {"part": i, "more": k}: part i (from 0) of a long
    payload, of which k parts follow in the next records, of the same channel and kind; the joined record bears the
    number and time of part 0. (Only kinds other than WIRE; longer WIRE is simply several records.) Unknown kinds and
    meta keys are skipped.

    kind  payload (maps; keys in brackets may be absent; unknown keys are ignored)
     1 WIRE      raw bytes as they passed, after masking; channel 0: made by the gate for the target
     2 COMMAND   verb str, kind str, text str, [objects array of str], [exact false: the text is a reconstruction],
                 [values: the bind values]
     3 VERDICT   command int (number of the COMMAND), verdict "allow" | "deny", rule str, [reason str],
                 [masks array of rule names], [approval str: id of the approval that it waited for]
     4 APPROVAL  command int, id str, state "pending" | "approved" | "denied" | "expired" | "withdrawn",
                 [rule str, approvers array of str] with pending, [by str, reason str] with the others
     5 RESULT    command int, tag str, [columns array of str, rows array of arrays of str or nil: the first rows, as the
                 user saw them], count int (all rows), bytes int,
                 [error map of str: severity, code, message, detail, hint, ...]
     6 INTENT    text str: why the user says it does this
     7 RESIZE    an array [columns, rows] of character cells
     8 MARK      label str, text str: a remark of the gate
     9 MASKMAP   command int, fields array of [column name, column number from 0, rule]: what is masked in the
                 command's RESULT, [scanned array of those column numbers that only value detectors looked at: their
                 cells are as they were but for what was found in them]
    10 CLOSE     status "closed" | "failed", reason str: the last record of a tape that was closed

    COMMAND, VERDICT, APPROVAL, INTENT and CLOSE are durable (or with the kernel, by mode) before what they gate goes
    on.

GAP payload (a block that a crash lost, pinned by the log): the lost block's header (48 bytes) || its leaf (32). A GAP
    has the seq, first_record, t0_ns and n_records of the lost block and no flags; its leaf is the pinned one. It is
    valid only if the CRASHSEAL lists its seq.

COMMANDS payload: entries [n, t_ns, verb, kind, verdict, short text], one after the other: every COMMAND record of this
    segment, in the order of n; t_ns is the record's t0_ns + 1000 * dt_us; verdict is "allow", "deny", the same
    with "held-" before it if an approval was waited for, or "" if this segment has no VERDICT of it. The short text is
    the first 120 characters after runs of white space in the first 480 became one space each.

INDEX payload: entries [offset, type, seq, first_record, t0_ns, n_records, leaf bin], one for each block before the
    first INDEX, in order; offset is that of the block header in the file. COMMANDS and INDEX are cut at entries into as
    many blocks as they need.

trailer = "GCTT" | offset u64 of the first INDEX block | crc32 u32 of the 12 bytes before it        (16 bytes)

Hashes and seal
    h0 = H(03 || header, whole)    leaf_i = H(00 || block header || stored payload)    h_i+1 = H(02 || h_i || leaf_i)
    The chain value behind block i is h_i+1 (for GAP: with the pinned leaf). root = the Merkle tree hash of RFC 6962 2.1
    over the leaves of all blocks before the seal (nodes H(01 || left || right), split at the largest power of two
    below n). SEAL payload: [body bin, [[alg str, key id str, signature bin], ...]]. The signature, alg "ed25519", is
    over "gatecast tape seal v1\\n" || body. The key id is the first 16 hex digits of H(public key, 32 bytes).
    body: a map sid, segment, track, h0 bin, root bin, head bin (the last chain value before the seal), blocks int (all
    before the seal), first_record int, records int, commands int, t_first int, t_last int (t0_ns of the first block,
    and time of the last record; 0 in an empty segment), status "continued" (another segment follows) | "closed" |
    "failed", reason str, gaps array (empty), log nil.
    CRASHSEAL has the same payload, but status is "crashed", or "continued" if the next segment was begun before the
    crash; gaps lists the seq of the GAP blocks; t_last is the t0_ns of the last DATA or GAP block; commands is nil, for
    whoever recovers may not be able to read; and reason says what ended it. A tape with a CRASHSEAL is incomplete.

Encryption (AES-256-GCM; RFC 5869, RFC 9180). Each tape has a random data key, DEK, of 32 bytes, and each segment a
random salt: key (32) || commit (32) = HKDF-Expand-SHA256(DEK, "gatecast tape v1" || 00 || suite || 00 || sid (26
characters) || 00 || track || 00 || segment u32 || salt (24), 64 bytes). suite is "AES-256-GCM". The header has suite, salt
and commit; a reader compares commit before it decrypts anything, for GCM does not commit to its key. The nonce of a
block is 00 00 00 00 || seq u64; the associated data are its 48 bytes of block header, in which stored_len counts the
tag. A block once encrypted is written or the tape ends: no seq is ever encrypted twice.
    The .keys file, a map: v int = 1, sid str, track str, wraps array of [suite str, key id str, enc bin, wrapped bin]. The
    header's wraps is H(that file), so it can be destroyed (which erases the content for good) and not replaced. suite
    "hpke-x25519-sha256-aes256gcm": HPKE base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, one seal;
    info "gatecast tape key v1" || 00 || sid || 00 || track, no associated data, plain text DEK. key id: the first 16 hex
    digits of H(recipient's public key, 32 bytes).

A reader refuses an unknown version, block type, flag or reserved bit, and a length above its limit before it allocates.
Left out here: hashing and signing (seal.py), keys (cipher.py), files (segment.py, reader.py), the write-ahead log
(walformat.py), the checks over a whole tape (verify.py).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
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
    """One item on a tape; t_ns is nanoseconds since the tape was opened. kind may be one that we do not know."""

    n: int
    t_ns: int
    channel: int
    kind: int
    payload: bytes
    part: int = 0
    more: int = 0


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
    """Return the bytes of a segment's header. Raises ValueError above HEADER_LIMIT, TypeError for foreign objects."""
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


def decode_records(block: Block, raw: bytes) -> list[Record]:
    """Decode the records of a DATA block. Raises FormatError for anything but n_records well-formed records."""
    records: list[Record] = []
    previous = 0
    for item in _entries(raw, "record"):
        match item:
            case [int(n), int(dt), int(channel), int(kind), bytes(payload)]:
                part = more = 0
            case [int(n), int(dt), int(channel), int(kind), bytes(payload), dict(meta)]:
                part, more = meta.get("part", 0), meta.get("more", 0)
            case _:
                raise FormatError("record: not of the form [n, dt, channel, kind, payload]")
        if n != block.first_record + len(records):
            raise FormatError(f"record {n}: numbers are not contiguous")
        if dt < previous:
            raise FormatError(f"record {n}: time goes back")
        if not 0 <= channel <= ERR or type(part) is not int or type(more) is not int or len(payload) > PAYLOAD_LIMIT:
            raise FormatError(f"record {n}: channel, meta or length is out of range")
        previous = dt
        records.append(Record(n, block.t0_ns + dt * 1000, channel, kind, payload, part, more))
    if len(records) != block.n_records:
        raise FormatError(f"block {block.seq}: {len(records)} records, {block.n_records} announced")
    return records


class Joiner:
    """Joins the parts of long records; parts whose beginning it has not seen are skipped."""

    def __init__(self) -> None:
        self._first: Record | None = None
        self._last = Record(0, 0, 0, 0, b"")
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, record: Record) -> Record | None:
        """Return the record that is now whole, if any. Raises FormatError if parts do not belong together."""
        first, last = self._first, self._last
        if not record.part and not record.more:
            if first is not None:
                raise FormatError(f"record {record.n}: the rest of record {first.n} is missing")
            return record
        if not record.part:
            first, self._first, self._parts, self._size = record, record, [], 0
        elif first is None:
            return None
        elif (record.part, record.more, record.kind) != (last.part + 1, last.more - 1, first.kind):
            raise FormatError(f"record {record.n}: not the continuation of record {first.n}")
        self._last = record
        self._parts.append(record.payload)
        self._size += len(record.payload)
        if self._size > JOINED_LIMIT:
            raise FormatError(f"record {first.n}: longer than its limit")
        if record.more:
            return None
        self._first = None
        return Record(first.n, first.t_ns, first.channel, first.kind, b"".join(self._parts))


def command_entry(n: int, t_ns: int, entry: Mapping[str, Any]) -> list[Any]:
    """Make the index entry of a COMMAND record from its payload's map, the verdict still empty."""
    text = entry.get("text")
    short = " ".join(text[: 4 * SHORT_TEXT_LIMIT].split())[:SHORT_TEXT_LIMIT] if isinstance(text, str) else ""
    return [n, t_ns, str(entry.get("verb", "")), str(entry.get("kind", "")), "", short]


def verdict_word(entry: Mapping[str, Any]) -> str:
    """Return the word that the index has for a VERDICT's map."""
    word = str(entry.get("verdict", ""))
    return f"held-{word}" if entry.get("approval") else word


def decode_commands(raw: bytes) -> list[CommandEntry]:
    """Decode the payload of a COMMANDS block. Raises FormatError."""
    entries: list[CommandEntry] = []
    for item in _entries(raw, "COMMANDS"):
        match item:
            case [int(n), int(t), str(verb), str(kind), str(verdict), str(text)]:
                entries.append(CommandEntry(n, t, verb, kind, verdict, text))
            case _:
                raise FormatError("COMMANDS: an entry of another form")
    return entries


def decode_index(raw: bytes) -> list[tuple[int, int, int, int, int, int, bytes]]:
    """Decode the payload of an INDEX block. Raises FormatError."""
    entries: list[tuple[int, int, int, int, int, int, bytes]] = []
    for item in _entries(raw, "INDEX"):
        match item:
            case [int(offset), int(kind), int(seq), int(first), int(t0), int(count), bytes(leaf)]:
                entries.append((offset, kind, seq, first, t0, count, leaf))
            case _:
                raise FormatError("INDEX: an entry of another form")
    return entries


def fields(payload: bytes) -> dict[str, Any]:
    """Return the map of a record's payload, or {} if it is none: what renders a tape must survive any tape."""
    try:
        entry = msgpack.unpackb(payload, raw=False, strict_map_key=False, unicode_errors="replace")
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        return {}
    return entry if isinstance(entry, dict) else {}


def _entries(raw: bytes, what: str) -> Iterator[Any]:
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=RAW_LIMIT)
    unpacker.feed(raw)
    try:
        yield from unpacker
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError(f"{what}: not msgpack") from error
    if unpacker.tell() != len(raw):
        raise FormatError(f"{what}: bytes are left over")


def _unpack(data: bytes, what: str) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError(f"{what}: not msgpack") from error


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot go on a tape")
