"""The tape's file format, version 1: its specification, and the pure encoding and decoding of its parts.

This text is the specification; it is meant to suffice for writing a reader without seeing the code.

Conventions. Integers outside msgpack are little-endian and unsigned. ``||`` joins bytes. "map", "array", "bin",
"str", "int" and "nil" are msgpack's (the 2013 specification, with bin and str apart). CRC32 is that of zlib and
IEEE 802.3. H(x) is SHA-256. Times are nanoseconds on a monotonic clock that reads 0 when the tape was opened;
the wall time of an instant t is ``wall0_ns + t`` (nanoseconds since 1970-01-01 UTC).

Files. One session is one tape; a tape is one or more segment files ``<sid>.<segment, 3 or more digits>.gct`` in one
directory, numbered from 000 without a hole. A session may have a second tape, of its original (unmasked) track, see
there: ``<sid>.original.<segment>.gct``. Beside an encrypted tape lies ``<sid>.keys`` (or ``<sid>.original.keys``), see
Encryption.
A segment is written once, front to back, and never changed:

    segment = header | (DATA | GAP)* | COMMANDS* | INDEX+ | SEAL | trailer            and nothing after it

A session that is live, or that died, lacks the tail of this; every complete block is readable all the same, up to the
first that is cut off or damaged: a power cut may leave anything there. The file's name says what its header says.
After a crash, recovery (recover.py) cuts a torn end off, restores from the log what the log has, puts a GAP for each
block that only its hash is left of, and ends the segment with INDEX+ | CRASHSEAL | trailer, without COMMANDS.

Header (18 bytes and the map)

    magic 89 47 43 54 0D 0A 1A 0A | version u16 = 1 | map_len u32 (<= 65,536) | map | crc32 u32 of all before it

    The map, in the clear (it holds no command, intent or token; like every map here it is nested 64 deep at most). Keys
    that a reader does not know are ignored:
    sid str (ULID, 26 characters)   segment int   prev nil or bin (the chain value behind the last DATA or GAP block of
    the segment before, its h0 if it has none: the same whether or not that segment was recovered)
    first_record int (number of this segment's first record)   track str ("main" | "original")   node str   boot str
    wall0_ns int   mono0_ns int (the clock's own reading at time 0)   protocol str   target str   identity map
    (subject str, and what the gate knows: groups, agents, issuer, proof = hex of a hash of the proof)
    run str   policy_rev str   mode str ("durable" | "written" | "strict")   more map (the protocol's own remarks;
    "tty": [columns, rows] says that channels out and err carry terminal bytes as they are; "http": true says that each
    flow is one exchange of HTTP, see Flows)
    log str (the origin of the node's log that tells of this tape; absent where none is kept. Whoever has the tape
    without that log cannot see what else is missing)
    enc map (only of an encrypted tape, see Encryption): suite str, salt bin (24), commit bin (32), wraps bin (32)
    All but segment, prev, first_record and enc's salt and commit are the same in all segments of a tape.

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
    Without flags, stored_len = raw_len. Compression comes before encryption. Flag 4 is not written yet. A reader
    without key or dictionary can check such a block, but not look into it. In an encrypted tape every DATA and COMMANDS
    block is encrypted; GAP, INDEX, SEAL and CRASHSEAL never are.
    seq counts all blocks of the segment from 0. first_record: the number of the first record in this block, or that the
    next record will have; n_records is 1 or more in DATA and GAP, else 0, so first_record + n_records is always the
    next block's first_record. Records are numbered from 0 over the whole tape. t0_ns never goes back in a segment (0 in
    one without DATA or GAP), and that of DATA and GAP not over the whole tape.

DATA payload: n_records records, one after the other, each an array

    [n, dt_us, channel, kind, payload bin (<= 262,144 bytes), meta map (may be absent)]

    n = first_record, first_record + 1, ...; dt_us = microseconds since t0_ns, from 0, never going back; channel: 0 the
    gate, 1 from the user, 2 to the user (out), 3 to the user (err). meta {"part": i, "more": k}: part i (from 0) of a
    long payload, of which k parts follow in the next records, of the same segment, channel and kind; the joined record
    (<= 33,554,432 bytes) bears the number and time of part 0; what lacks a part because of a GAP or a torn end is
    skipped. (Only kinds other than WIRE; longer WIRE is simply several records.) meta {"flow": f}, f int from 0, of
    WIRE and RESIZE: see Flows. Unknown kinds and meta keys are skipped.

    kind  payload (maps; keys in brackets may be absent; unknown keys are ignored)
     1 WIRE      raw bytes as they passed, after masking; channel 0: made by the gate for the target
     2 COMMAND   verb str, kind str, text str, [objects array of str], [exact false: the text is a reconstruction],
                 [values: the bind values], [flow int: see Flows], [estimate array [int, float]: the bytes that the
                 target has said it will process, and what they cost]
     3 VERDICT   command int (number of the COMMAND), verdict "allow" | "deny", rule str, [reason str],
                 [masks array of rule names], [approval str: id of the approval that it waited for]
     4 APPROVAL  command int, id str, state "pending" | "approved" | "denied" | "expired" | "withdrawn",
                 [rule str, approvers array of str] with pending, [by str, reason str] with the others
     5 RESULT    command int, tag str, [columns array of str, rows array of arrays of str or nil: the first rows, as the
                 user saw them], count int (all rows), bytes int,
                 [error map of str: severity, code, message, detail, hint, ...]; of a command with a flow also:
                 [flow int], [exit int: its exit status], [signal str: what ended it, "TERM"], [sent int: bytes from
                 the user; count is 0 and bytes what went towards the user], [how str: how the text was read]; of the
                 transfer of a file: [path str, direction "upload" | "download", size int: bytes of content that
                 passed, sha256 str: 64 hex digits, of the whole content; absent where it did not pass in_order bool,
                 from the first byte to the last, complete bool: it was ended by its user]; of an exchange of HTTP:
                 [status int, content_type str, sent int: bytes of the request's body; bytes are those of the answer's];
                 of bigquery also: [job str: "project:LOCATION.id", "project:id", state "PENDING" | "RUNNING" | "DONE",
                 job_type "query" | "load" | "copy" | "extract", statement str: the statement's type, dry_run
                 true, processed int, billed int: bytes, slot_ms int, cache_hit bool, affected int: rows written or
                 deleted, destination str: a table, total_rows int: of the whole result, where count is of this page,
                 partial true: there are more rows than count on this page, rpc str: the name of a call of the Storage
                 API; a flow of such a call has no messages of HTTP and its RESULT no status]; of an upload the keys of
                 a transfer, without path. An error's reason is Google's word for it, its code that or a number.
     6 INTENT    text str: why the user says it does this; [flow int: only the next COMMAND of that flow]
     7 RESIZE    an array [columns, rows] of character cells
     8 MARK      label str, text str: a remark of the gate
     9 MASKMAP   command int, fields array of [column name, column number from 0, rule]: what is masked in the
                 command's RESULT, [scanned array of those column numbers that only value detectors looked at: their
                 cells are as they were but for what was found in them]
    10 CLOSE     status "closed" | "failed", reason str: the last record of a tape that was closed

    COMMAND, VERDICT, APPROVAL, INTENT and CLOSE are durable (or with the kernel, by mode) before what they gate goes
    on.

Flows. A session of some protocols (ssh) is several streams at once. Each has a number, its flow, counted from 0 over
    the tape and never used twice. A WIRE record with a flow is a piece of that stream without the protocol's framing:
    channel 1 what its user sent, 2 what went to him (stdout), 3 the same as err (stderr); pieces of one flow and
    channel are joined in the order of the records. Where a target's rules say that the contents of transfers are not
    kept, their bytes are not there, and only RESULT tells of them (size, sha256). A WIRE record without a flow holds
    the protocol's own messages, in ssh: u32 length (big-endian) || payload, as RFC 4254 has it, one after the other;
    WINDOW_ADJUST is left out, and so are the messages that carry what is in the flows (DATA, EXTENDED_DATA). A COMMAND
    with a flow asks for that stream, or belongs to it; the first that is allowed and is no request about the stream
    (verbs pty, env, signal, break, window, x11, auth-agent, line) is what runs on it, and its RESULT, which has the
    flow, is the stream's end. A RESIZE with a flow says that it is shown on a terminal, of that size from then on.

    HTTP (kubernetes, bigquery). Where the header's more has {"http": true}, each flow is one exchange: channel 1 the
    request as one message of HTTP/1.1 (RFC 9112: request line, fields, empty line, body), with the fields that go to
    the target, but without any that bears a credential; channel 2 its answer as the user saw it (status line, fields,
    empty line, body). Transfer codings are taken off and the fields about them left out, so a body reaches to the
    end of its flow, and Content-Length may tell another length where a mask changed the body; bodies are as their
    Content-Encoding says. The beginning of the request stands before its COMMAND, and all of it unless it was passed
    on piece by piece; there is one COMMAND with that flow, and one RESULT, unless it was denied or the target failed:
    then the answer is the gate's own, and there is none. What a watch or a followed log brings is on the tape piece by
    piece, when it came. Exchanges may overlap.
    A stream of Kubernetes has a tape to itself, without "http": exec and attach are flow 0, channels 1 to 3 its
    stdin, stdout and stderr, as an exec of ssh, but the RESIZE of a terminal may come behind the COMMAND, whose verb
    is exec, attach, debug, copy-in or copy-out. The files that such a stream carries (kubectl cp) have a RESULT each,
    of the stream's COMMAND, with path and direction and without a flow, so they do not end it; then its bytes are left
    out as said above. A port-forward is a COMMAND without a flow (portforward), and one with a flow (connect) for each
    connection through it, whose bytes are those of the flow.

GAP payload (a DATA block that a crash lost, pinned by the log): the lost block's header (48 bytes) || its leaf (32). A
    GAP has the seq, first_record, t0_ns and n_records of the lost block and no flags; its leaf is the pinned one. It is
    valid only if the CRASHSEAL lists its seq with the hash of this payload.

COMMANDS payload: entries [n, t_ns, verb, kind, verdict, short text], one after the other: every COMMAND record of this
    segment, in the order of n; t_ns is the record's t0_ns + 1000 * dt_us; verdict is that of its first VERDICT in this
    segment: "allow", "deny", the same with "held-" before it if an approval was waited for; or "" if there is none, or
    4,096 further COMMANDs come before it. The short text is the first 120 characters (code points) of the words in the
    text's first 480, one space between them; words are parted by Unicode's White_Space and U+001C to U+001F.

INDEX payload: entries [offset, type, seq, first_record, t0_ns, n_records, leaf bin], one for each block before the
    first INDEX, in order; offset is that of the block header in the file. COMMANDS and INDEX are cut at entries into as
    many blocks as they need; of each, a segment has at most 16 MiB (raw_len, all together).

trailer = "GCTT" | offset u64 of the first INDEX block | crc32 u32 of the 12 bytes before it        (16 bytes)

Hashes and seal
    h0 = H(03 || header, whole)    leaf_i = H(00 || block header || stored payload)    h_i+1 = H(02 || h_i || leaf_i)
    The chain value behind block i is h_i+1 (for GAP: with the pinned leaf). root = the Merkle tree hash of RFC 6962 2.1
    over the leaves of all blocks before the seal (nodes H(01 || left || right), split at the largest power of two
    below n). SEAL payload: [body bin, [[alg str, key id str, signature bin], ...]]. The signature, alg "ed25519", is
    over "gatecast tape seal v1\\n" || body. The key id is the first 16 hex digits of H(public key, 32 bytes). A seal
    holds if a key that the reader knows signed it and no signature of such a key is wrong; the others are skipped.
    body: a map sid, segment, track, h0 bin, root bin, head bin (the last chain value before the seal), blocks int (all
    before the seal), first_record int, records int, commands int, t_first int, t_last int (t0_ns of the first block,
    and time of the last record; 0 in an empty segment), status "continued" (another segment follows) | "closed" |
    "failed" (as in CLOSE), reason str, gaps array (empty), log nil. Unknown keys are ignored.
    CRASHSEAL has the same payload, but status is "crashed", or "continued" if the next segment was begun before the
    crash; gaps lists [seq, H(payload)] of the GAP blocks; t_last is the t0_ns of the last DATA or GAP block; commands
    is nil, for whoever recovers may not be able to read; and reason says what ended it. A tape with a CRASHSEAL is
    incomplete.

Encryption (AES-256-GCM; RFC 5869, RFC 9180). Each tape has a random data key, DEK, of 32 bytes, and each segment a
random salt: key (32) || commit (32) = HKDF-Expand-SHA256(DEK, "gatecast tape v1" || 00 || suite || 00 || sid (26
characters) || 00 || track || 00 || segment u32 || salt (24), 64 bytes). suite is "AES-256-GCM". The header has suite,
salt and commit; a reader compares commit before it decrypts anything, for GCM does not commit to its key. The nonce of
a block is 00 00 00 00 || seq u64; the associated data are its 48 bytes of block header, in which stored_len counts the
tag. A block once encrypted is written or the tape ends: no seq is ever encrypted twice.
    The .keys file (<= 65,536 bytes), a map: v int = 1, sid str, track str, wraps array of [suite str, key id str, enc
    bin (32), wrapped bin (48)]. The header's wraps is H(that file), so it can be destroyed (which erases the content
    for good) and not replaced. suite "hpke-x25519-sha256-aes256gcm": HPKE base mode, DHKEM(X25519, HKDF-SHA256),
    HKDF-SHA256, AES-256-GCM, one seal; info "gatecast tape key v1" || 00 || sid || 00 || track, no associated data,
    plain text DEK. key id: the first 16 hex digits of H(recipient's public key, 32 bytes).

Original track. What a mask changed, as it came from the target; always encrypted, to recipients of its own. Its header
has the sid, clock and times of the main tape, so that equal times are equal instants. Records: for each such event a
MARK with label "original", [record int, records int: the main tape's WIRE records that the user saw in its place, from
the first on], [command int: the main tape's COMMAND that it answers], then its bytes as WIRE records of channel 2 up to
the next MARK or CLOSE; CLOSE last. The main tape has a MARK "original" where the first of them was made.

A reader refuses an unknown version, block type, flag or reserved bit, and a length above its limit before it allocates.
Left out here: hashing and signing (seal.py), keys (cipher.py), files (segment.py, reader.py), the write-ahead log
(walformat.py), the checks over a whole tape (verify.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgpack

from recorder.errors import FormatError
from recorder.layout import BLOCK_HEADER_BYTES as BLOCK_HEADER_BYTES
from recorder.layout import BLOCK_TARGET_BYTES as BLOCK_TARGET_BYTES
from recorder.layout import CHAIN_BYTES as CHAIN_BYTES
from recorder.layout import DEPTH_LIMIT as DEPTH_LIMIT
from recorder.layout import DICTIONARY as DICTIONARY
from recorder.layout import ENCRYPTED as ENCRYPTED
from recorder.layout import ERR as ERR
from recorder.layout import GATE as GATE
from recorder.layout import HEADER_LIMIT as HEADER_LIMIT
from recorder.layout import JOINED_LIMIT as JOINED_LIMIT
from recorder.layout import KEYS_SUFFIX as KEYS_SUFFIX
from recorder.layout import MAGIC as MAGIC
from recorder.layout import OUT as OUT
from recorder.layout import PAYLOAD_LIMIT as PAYLOAD_LIMIT
from recorder.layout import RAW_BELOW_BYTES as RAW_BELOW_BYTES
from recorder.layout import RAW_LIMIT as RAW_LIMIT
from recorder.layout import SHORT_TEXT_LIMIT as SHORT_TEXT_LIMIT
from recorder.layout import STORED_LIMIT as STORED_LIMIT
from recorder.layout import SUFFIX as SUFFIX
from recorder.layout import TABLE_LIMIT as TABLE_LIMIT
from recorder.layout import TRAILER_BYTES as TRAILER_BYTES
from recorder.layout import USER as USER
from recorder.layout import VERSION as VERSION
from recorder.layout import ZSTD as ZSTD
from recorder.layout import Block as Block
from recorder.layout import BlockType as BlockType
from recorder.layout import CommandEntry as CommandEntry
from recorder.layout import Header as Header
from recorder.layout import Kind as Kind
from recorder.layout import Opener as Opener
from recorder.layout import Record as Record
from recorder.layout import decode_block_header as decode_block_header
from recorder.layout import decode_header as decode_header
from recorder.layout import decode_trailer as decode_trailer
from recorder.layout import encode_block_header as encode_block_header
from recorder.layout import encode_header as encode_header
from recorder.layout import encode_trailer as encode_trailer
from recorder.layout import is_shallow as is_shallow
from recorder.layout import looks_dense as looks_dense
from recorder.layout import restore as restore
from recorder.layout import store as store

# All bytes but fixmap and fixarray (80 to 9f) and array and map (dc to df).
_NO_OPENERS: Final = bytes(byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF))


def decode_records(block: Block, raw: bytes) -> list[Record]:
    """Decode the records of a DATA block. Raises FormatError for anything but n_records well-formed records."""
    records: list[Record] = []
    previous = 0
    for item in _entries(raw, "record"):
        match item:
            case [int(n), int(dt), int(channel), int(kind), bytes(payload)]:
                part, more, flow = 0, 0, None
            case [int(n), int(dt), int(channel), int(kind), bytes(payload), dict(meta)]:
                part, more, flow = meta.get("part", 0), meta.get("more", 0), meta.get("flow")
            case _:
                raise FormatError("record: not of the form [n, dt, channel, kind, payload]")
        if n != block.first_record + len(records):
            raise FormatError(f"record {n}: numbers are not contiguous")
        if dt < previous:
            raise FormatError(f"record {n}: time goes back")
        if not 0 <= channel <= ERR or type(part) is not int or type(more) is not int or len(payload) > PAYLOAD_LIMIT:
            raise FormatError(f"record {n}: channel, meta or length is out of range")
        if flow is not None and (type(flow) is not int or flow < 0):
            raise FormatError(f"record {n}: flow is no number")
        previous = dt
        records.append(Record(n, block.t0_ns + dt * 1000, channel, kind, payload, part, more, flow))
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
            if first is not None and record.kind == Kind.MARK:
                self._first = None  # a reader's word for a GAP: the rest of the long record is lost
            elif first is not None:
                raise FormatError(f"record {record.n}: the rest of record {first.n} is missing")
            return record
        if not record.part:
            if first is not None:
                raise FormatError(f"record {record.n}: the rest of record {first.n} is missing")
            first, self._first, self._parts, self._size = record, record, [], 0
        elif first is None:
            return None
        elif (record.part, record.more, record.kind, record.channel) != (
            last.part + 1,
            last.more - 1,
            first.kind,
            first.channel,
        ):
            raise FormatError(f"record {record.n}: not the continuation of record {first.n}")
        self._last = record
        self._parts.append(record.payload)
        self._size += len(record.payload)
        if self._size > JOINED_LIMIT:
            raise FormatError(f"record {first.n}: longer than its limit")
        if record.more:
            return None
        self._first = None
        return Record(first.n, first.t_ns, first.channel, first.kind, b"".join(self._parts), flow=first.flow)


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
    if not isinstance(entry, dict):
        return {}
    # Nesting takes a byte that opens an array or a map each time: most payloads have no 64 of them, and need no look.
    deep = len(payload.translate(None, _NO_OPENERS)) > DEPTH_LIMIT and not is_shallow(entry)
    return {} if deep else entry


def _entries(raw: bytes, what: str) -> Iterator[Any]:
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=RAW_LIMIT)
    unpacker.feed(raw)
    end = 0
    try:
        for item in unpacker:
            end = unpacker.tell()  # of whole objects: at the end it also counts one that is cut off
            yield item
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError(f"{what}: not msgpack") from error
    if end != len(raw):
        raise FormatError(f"{what}: bytes are left over")
