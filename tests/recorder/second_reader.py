"""A second reader of tapes, written from the docstring of recorder/format.py alone.

It proves that the specification suffices: it imports nothing of ours, and shares no line with recorder/. It reads whole
files into memory, for the golden files are small, and checks every sentence that a file can break. Every fault is a
Refusal. What it cannot know (a crash may have cost the part of a record) it leaves out of what it yields.
"""

import hashlib
import hmac
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any  # what msgpack gives back

import msgpack
import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.recorder.second_hpke import expand, hpke_open

DATA, GAP, COMMANDS, INDEX, SEAL, CRASHSEAL = range(1, 7)
ZSTD, ENCRYPTED, DICTIONARY = 1, 2, 4
# What may be before a block of a type; a file begins as if behind DATA.
BEFORE = {
    **dict.fromkeys((DATA, GAP), (DATA, GAP)),
    COMMANDS: (DATA, GAP, COMMANDS),
    INDEX: (DATA, GAP, COMMANDS, INDEX),
    **dict.fromkeys((SEAL, CRASHSEAL), (INDEX,)),
}
HEADER_KEYS = {
    **dict.fromkeys(("sid", "track", "node", "boot", "protocol", "target", "run", "policy_rev", "mode"), str),
    **dict.fromkeys(("segment", "first_record", "wall0_ns", "mono0_ns"), int),
    **dict.fromkeys(("identity", "more"), dict),
    "prev": (bytes, type(None)),
}
OWN = ("segment", "prev", "first_record", "enc")  # what differs from segment to segment
ENC_KEYS = {"suite": str, "salt": bytes, "commit": bytes, "wraps": bytes}
SEAL_KEYS = {
    **dict.fromkeys(("sid", "track", "status", "reason"), str),
    **dict.fromkeys(("h0", "root", "head"), bytes),
    **dict.fromkeys(("segment", "blocks", "first_record", "records", "t_first", "t_last"), int),
    "commands": (int, type(None)),
    "gaps": list,
    "log": object,
}
Shape = dict[str, Any]
KINDS: dict[int, tuple[str, Shape, Shape]] = {  # kind: name, keys that must be there, keys that may
    2: (
        "COMMAND",
        {"verb": str, "kind": str, "text": str},
        {"objects": list, "exact": bool, "values": object, "flow": int},
    ),
    3: ("VERDICT", {"command": int, "verdict": str, "rule": str}, {"reason": str, "masks": list, "approval": str}),
    4: (
        "APPROVAL",
        {"command": int, "id": str, "state": str},
        {"rule": str, "approvers": list, "by": str, "reason": str},
    ),
    5: (
        "RESULT",
        {"command": int, "tag": str, "count": int, "bytes": int},
        {
            **{"columns": list, "rows": list, "error": dict, "flow": int, "exit": int, "signal": str, "sent": int},
            **{"how": str, "path": str, "direction": str, "size": int, "sha256": str, "in_order": bool},
            "complete": bool,
        },
    ),
    6: ("INTENT", {"text": str}, {}),
    8: ("MARK", {"label": str, "text": str}, {}),
    9: ("MASKMAP", {"command": int, "fields": list}, {"scanned": list}),
    10: ("CLOSE", {"status": str, "reason": str}, {}),
}
WIRE, COMMAND, VERDICT, RESIZE, CLOSE = 1, 2, 3, 7, 10
WORDS = {  # what a word may be, by kind and key
    (3, "verdict"): {"allow", "deny"},
    (4, "state"): {"pending", "approved", "denied", "expired", "withdrawn"},
    (10, "status"): {"closed", "failed"},
}


class Refusal(Exception):
    """The bytes break a sentence of the specification."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block, its header's fields, and the leaf and chain value that were computed for it."""

    offset: int
    type: int
    flags: int
    seq: int
    first_record: int
    t0_ns: int
    n_records: int
    raw_len: int
    header: bytes
    stored: bytes
    leaf: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One record, joined of its parts; payload is the bytes of WIRE, and the map or array of the other kinds."""

    n: int
    t_ns: int
    channel: int
    kind: int
    payload: Any
    parts: int = 1
    flow: int | None = None  # its meta


@dataclass(slots=True)
class Segment:
    """One segment file: its header's map, its blocks, and its seal's body if it has one."""

    head: dict[str, Any]
    h0: bytes
    blocks: list[Block] = field(default_factory=list)
    seal_type: int = 0
    seal: dict[str, Any] | None = None
    signatures: list[list[Any]] = field(default_factory=list)
    signed: bytes = b""
    key: bytes | None = None  # of an encrypted tape, if it was unwrapped
    torn: int = 0  # bytes behind the last complete block of a segment without a trailer

    @property
    def readable(self) -> bool:
        return "enc" not in self.head or self.key is not None

    @property
    def content(self) -> list[Block]:
        return [block for block in self.blocks if block.type in (DATA, GAP)]

    @property
    def next_record(self) -> int:
        return int(self.head["first_record"]) + sum(block.n_records for block in self.blocks)


def check(truth: object, what: str) -> None:
    if not truth:
        raise Refusal(what)


def digest(*parts: bytes) -> bytes:
    """H"""
    return hashlib.sha256(b"".join(parts)).digest()


def key_id(public: bytes) -> str:
    return digest(public).hex()[:16]


def unpack_all(data: bytes) -> list[Any]:
    """Unpack msgpack objects, one after the other, to the last byte."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    try:
        values = list(unpacker)
    except (ValueError, msgpack.UnpackException) as error:
        raise Refusal(f"msgpack: {error}") from error
    check(unpacker.tell() == len(data), "msgpack: an object is cut off")
    return values


def unpack(data: bytes) -> Any:
    values = unpack_all(data)
    check(len(values) == 1, "msgpack: not one object")
    return values[0]


def shaped(value: Any, must: Mapping[str, Any], may: Mapping[str, Any], what: str) -> None:
    check(isinstance(value, dict), f"{what}: not a map")
    for name, type_ in must.items():
        check(name in value and isinstance(value[name], type_), f"{what}: {name}")
    for name, type_ in may.items():
        check(name not in value or isinstance(value[name], type_), f"{what}: {name}")


def read_header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header's map, and the header's length."""
    check(data[:8] == bytes.fromhex("89474354 0D0A1A0A"), "header: magic")
    check(len(data) >= 18, "header: cut off")
    version, length = struct.unpack_from("<HI", data, 8)
    check(version == 1, "header: version")
    check(length <= 65_536, "header: map_len")
    check(len(data) >= 18 + length, "header: cut off")
    (crc,) = struct.unpack_from("<I", data, 14 + length)
    check(crc == zlib.crc32(data[: 14 + length]), "header: crc32")
    head = unpack(data[14 : 14 + length])
    shaped(head, HEADER_KEYS, {"enc": dict}, "header")
    check(re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", head["sid"]), "header: sid")
    check(head["track"] in ("main", "original"), "header: track")
    check(head["mode"] in ("durable", "written", "strict"), "header: mode")
    check((head["prev"] is None) == (head["segment"] == 0), "header: prev")
    if "enc" in head:
        shaped(head["enc"], ENC_KEYS, {}, "header: enc")
        check(head["enc"]["suite"] == "AES-256-GCM", "header: suite")
        check([len(head["enc"][name]) for name in ("salt", "commit", "wraps")] == [24, 32, 32], "header: enc lengths")
    check(head["track"] == "main" or "enc" in head, "header: an original track in the clear")
    return head, 18 + length


def read_block_header(header: bytes) -> tuple[int, ...]:
    """(type, flags, seq, first_record, t0_ns, n_records, raw_len, stored_len)"""
    check(len(header) == 48, "block: cut off")
    magic, *fields, crc = struct.unpack("<4sBBHQQQIIII", header)
    type_, flags, zero, _, _, _, n_records, raw_len, stored_len = fields
    check(magic == b"GCTB", "block: magic")
    check(crc == zlib.crc32(header[:44]), "block: crc32")
    check(DATA <= type_ <= CRASHSEAL, "block: type")
    check(not flags & ~7, "block: flags")
    check(zero == 0, "block: reserved bits")
    check(raw_len <= 1_048_576 and stored_len <= 1_048_592, "block: length")
    check((type_ in (DATA, GAP)) == (n_records > 0), "block: n_records")
    check(type_ in (DATA, COMMANDS) or not flags & ENCRYPTED, "block: encrypted")
    tag = 16 if flags & ENCRYPTED else 0
    check(flags & (ZSTD | DICTIONARY) or stored_len == raw_len + tag, "block: raw_len")
    return type_, flags, *(int(value) for value in fields[3:])


def read_segment(data: bytes) -> Segment:
    """Read one segment file, sealed or not: its blocks, chain, index, seal and trailer, but no signature."""
    head, at = read_header(data)
    segment = Segment(head, digest(b"\x03", data[:at]))
    finished = data[-16:-12] == b"GCTT"
    last_type, chain, expected, t0_ns = DATA, segment.h0, head["first_record"], 0
    while last_type < SEAL:
        header = data[at : at + 48]
        try:
            type_, flags, seq, first_record, t0, n_records, raw_len, stored_len = read_block_header(header)
            stored = data[at + 48 : at + 48 + stored_len]
            end = at + 80 + stored_len
            check(len(data) >= end, "block: cut off")
        except Refusal:
            if finished:
                raise
            break
        check(last_type in BEFORE[type_], "order of blocks")
        check(type_ not in (DATA, COMMANDS) or bool(flags & ENCRYPTED) == ("enc" in head), "in the clear, or not")
        check((seq, first_record) == (len(segment.blocks), expected), "block: seq or first_record")
        check(t0 >= t0_ns, "block: t0_ns goes back")
        leaf = digest(b"\x00", header, stored)
        if type_ == GAP:
            leaf = read_gap(header, stored)
        chain = digest(b"\x02", chain, leaf)
        check(data[end - 32 : end] == chain, "chain")
        segment.blocks.append(
            Block(at, type_, flags, seq, first_record, t0, n_records, raw_len, header, stored, leaf, chain)
        )
        at, last_type, expected, t0_ns = end, type_, first_record + n_records, t0
    if not segment.content:
        check(t0_ns == 0, "t0_ns without DATA or GAP")
    if last_type < SEAL or len(data) < at + 16:  # a live segment, or one that died
        segment.torn = len(data) - at
        return segment
    check(len(data) == at + 16, "bytes after the trailer")
    check_index(segment, data[at:])
    read_seal(segment)
    return segment


def read_gap(header: bytes, stored: bytes) -> bytes:
    """Check a GAP against the header of the block that it stands for; returns the pinned leaf."""
    check(len(stored) == 80 and header[5] == 0, "GAP: length or flags")
    lost = read_block_header(stored[:48])
    check(lost[0] == DATA, "GAP: of no DATA")
    check(header[8:36] == stored[8:36], "GAP: unlike the lost block")
    return stored[48:]


def open_block(block: Block, key: bytes | None) -> bytes:
    """Decrypt and decompress a block's payload."""
    data = block.stored
    check(not block.flags & DICTIONARY, "a dictionary that is not there")
    if block.flags & ENCRYPTED:
        check(key is not None, "no key")
        try:
            data = AESGCM(key or b"").decrypt(struct.pack("<IQ", 0, block.seq), data, block.header)
        except InvalidTag as error:
            raise Refusal("the tag is wrong") from error
    if block.flags & ZSTD:
        try:
            check(zstandard.frame_content_size(data) == block.raw_len, "zstd: content size")
            data = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Refusal(f"zstd: {error}") from error
    check(len(data) == block.raw_len, "raw_len")
    return data


def check_index(segment: Segment, trailer: bytes) -> None:
    """The trailer leads to the first INDEX, and the INDEX says what was found."""
    magic, offset, crc = struct.unpack("<4sQI", trailer)
    check(magic == b"GCTT" and crc == zlib.crc32(trailer[:12]), "trailer")
    indexes = [block for block in segment.blocks if block.type == INDEX]
    check(offset == indexes[0].offset, "trailer: offset")
    for type_ in (COMMANDS, INDEX):
        check(sum(b.raw_len for b in segment.blocks if b.type == type_) <= 16_777_216, "COMMANDS or INDEX: length")
    found = [entry for block in indexes for entry in unpack_all(open_block(block, None))]
    before = [block for block in segment.blocks if block.type < INDEX]
    check(found == [[b.offset, b.type, b.seq, b.first_record, b.t0_ns, b.n_records, b.leaf] for b in before], "INDEX")


def merkle(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 2.1, of leaves that are hashed already."""
    if len(leaves) < 2:
        return leaves[0] if leaves else digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return digest(b"\x01", merkle(leaves[:split]), merkle(leaves[split:]))


def read_seal(segment: Segment) -> None:
    """Check the seal's body against all that was read."""
    block, before = segment.blocks[-1], segment.blocks[:-1]
    value = unpack(open_block(block, None))
    check(isinstance(value, list) and len(value) == 2, "seal: not two parts")
    segment.signed, segment.signatures, segment.seal_type = value[0], value[1], block.type
    body = segment.seal = unpack(segment.signed)
    shaped(body, SEAL_KEYS, {}, "seal")
    content, crashed = segment.content, block.type == CRASHSEAL
    gaps = [[b.seq, hashlib.sha256(b.stored).digest()] for b in content if b.type == GAP]
    wanted = {
        **{name: segment.head[name] for name in ("sid", "segment", "track", "first_record")},
        "h0": segment.h0,
        "root": merkle([b.leaf for b in before]),
        "head": before[-1].chain,
        "blocks": len(before),
        "records": segment.next_record - segment.head["first_record"],
        "t_first": content[0].t0_ns if content else 0,
        "gaps": gaps,
        "log": None,
    }
    for name, want in wanted.items():
        check(body[name] == want, f"seal: {name}")
    check(crashed or not gaps, "a GAP without a CRASHSEAL")
    check(body["status"] in ("continued", *(("crashed",) if crashed else ("closed", "failed"))), "seal: status")
    check((body["commands"] is None) == crashed, "seal: commands")
    check(not crashed or not any(b.type == COMMANDS for b in before), "COMMANDS before a CRASHSEAL")
    if crashed or not content:
        check(body["t_last"] == (content[-1].t0_ns if content else 0), "seal: t_last")


def check_signature(segment: Segment, keys: Mapping[str, Ed25519PublicKey]) -> str:
    """Check that one of the keys signed the seal, and that none of theirs is wrong; returns the key's id."""
    signed_by = ""
    for alg, name, signature in segment.signatures:
        if alg == "ed25519" and name in keys:
            check(key_id(keys[name].public_bytes_raw()) == name, "seal: key id")
            try:
                keys[name].verify(signature, b"gatecast tape seal v1\n" + segment.signed)
            except InvalidSignature as error:
                raise Refusal("seal: signature") from error
            signed_by = name
    check(signed_by, "seal: no known key signed it")
    return signed_by


def unlock(segment: Segment, keys_file: bytes, private: X25519PrivateKey) -> None:
    """Unwrap the data key for this recipient and set the segment's key, once the commitment is as the header says."""
    head, enc = segment.head, segment.head["enc"]
    check(digest(keys_file) == enc["wraps"], ".keys: not the header's")
    file = unpack(keys_file)
    shaped(file, {"v": int, "sid": str, "track": str, "wraps": list}, {}, ".keys")
    check((file["v"], file["sid"], file["track"]) == (1, head["sid"], head["track"]), ".keys: of another tape")
    mine = key_id(private.public_key().public_bytes_raw())
    for suite, name, encapsulated, wrapped in file["wraps"]:
        if (suite, name) == ("hpke-x25519-sha256-aes256gcm", mine):
            info = b"\x00".join((b"gatecast tape key v1", head["sid"].encode(), head["track"].encode()))
            try:
                dek = hpke_open(private, encapsulated, info, wrapped)
            except InvalidTag as error:
                raise Refusal(".keys: the tag is wrong") from error
            break
    else:
        raise Refusal(".keys: not for this recipient")
    names = (b"gatecast tape v1", enc["suite"].encode(), head["sid"].encode(), head["track"].encode())
    both = expand(dek, b"\x00".join(names) + b"\x00" + struct.pack("<I", head["segment"]) + enc["salt"], 64)
    check(hmac.compare_digest(both[32:], enc["commit"]), "enc: commit")
    segment.key = both[:32]


def records_of(segment: Segment) -> Iterator[tuple[int, int, int, int, bytes, dict[str, Any]]]:
    """(n, t_ns, channel, kind, payload, meta) of every record as it was stored, parts apart."""
    for block in segment.content:
        if block.type == GAP:
            continue
        values, dt_last = unpack_all(open_block(block, segment.key)), 0
        check(len(values) == block.n_records, "n_records")
        for n, value in enumerate(values, block.first_record):
            check(isinstance(value, list) and len(value) in (5, 6), "record: not five or six")
            number, dt_us, channel, kind, payload, meta = (*value, {})[:6]
            check(number == n, "record: n")
            check(isinstance(dt_us, int) and dt_us >= dt_last, "record: dt_us goes back")
            check(n > block.first_record or dt_us == 0, "t0_ns is not the time of the first record")
            check(channel in (0, 1, 2, 3), "record: channel")
            check(isinstance(kind, int) and isinstance(meta, dict), "record: kind or meta")
            flow = meta.get("flow", 0)
            check(type(flow) is int and flow >= 0, "record: flow")
            check("flow" not in meta or kind in (WIRE, RESIZE), "record: a flow of another kind")
            check(isinstance(payload, bytes) and len(payload) <= 262_144, "record: payload")
            dt_last = dt_us
            yield n, block.t0_ns + 1000 * dt_us, channel, kind, payload, meta


def decode(kind: int, payload: bytes) -> Any:
    """The payload of a kind that is known, checked."""
    if kind == WIRE:
        return payload
    value = unpack(payload)
    if kind == RESIZE:
        check(isinstance(value, list) and [type(v) for v in value] == [int, int], "RESIZE")
        return value
    name, must, may = KINDS[kind]
    shaped(value, must, may, name)
    for (of, key), words in WORDS.items():
        check(of != kind or value[key] in words, f"{name}: {key}")
    return value


def join(segment: Segment) -> Iterator[Record]:
    """The records of a segment, parts joined; unknown kinds are left out, and what lost a part with a GAP."""
    held: Record | None = None  # part 0 of one whose parts are coming
    pieces: list[bytes] = []
    gaps = [block.first_record for block in segment.blocks if block.type == GAP]
    for n, t_ns, channel, kind, payload, meta in records_of(segment):
        part, more = meta.get("part", 0), meta.get("more", 0)
        if held is not None and any(held.n < gap < n for gap in gaps):
            held = None
        if part == 0:
            check(held is None, "parts: the rest is missing")
            held, pieces = Record(n, t_ns, channel, kind, b"", more + 1, meta.get("flow")), []
        if held is None:
            check(any(gap < n for gap in gaps), "parts: the first is missing")
            continue
        check((n, more) == (held.n + part, held.parts - 1 - part), "parts: not in order")
        check((channel, kind) == (held.channel, held.kind), "parts: of another channel or kind")
        pieces.append(payload)
        check(sum(map(len, pieces)) <= 33_554_432, "parts: length")
        if more == 0:
            if kind in (WIRE, RESIZE) or kind in KINDS:
                yield Record(held.n, held.t_ns, channel, kind, decode(kind, b"".join(pieces)), held.parts, held.flow)
            held = None
    check(held is None or segment.seal_type != SEAL, "parts: the rest is missing")


def short(text: str) -> str:
    return " ".join(text[:480].split())[:120]


def entries_of(records: Sequence[Record]) -> list[list[Any]]:
    """What COMMANDS should say of these records."""
    entries: dict[int, list[Any]] = {}
    for r in records:
        if r.kind == COMMAND:
            entries[r.n] = [r.n, r.t_ns, r.payload["verb"], r.payload["kind"], "", short(r.payload["text"])]
        elif r.kind == VERDICT and r.payload["command"] in entries:
            entry = entries[r.payload["command"]]
            late = sum(n > entry[0] for n in entries) >= 4096
            if not entry[4] and not late:
                entry[4] = ("held-" if r.payload.get("approval") else "") + r.payload["verdict"]
    return list(entries.values())


def check_content(segments: Sequence[Segment]) -> list[Record]:
    """Check what only a reader with the key can; returns the records."""
    records: list[Record] = []
    for segment in segments:
        own = list(join(segment))
        records += own
        check(CLOSE not in [r.kind for r in records[:-1]], "a record after CLOSE")
        if segment.seal is None or segment.seal_type == CRASHSEAL:
            continue
        entries = entries_of(own)
        blocks = [block for block in segment.blocks if block.type == COMMANDS]
        stored = [entry for block in blocks for entry in unpack_all(open_block(block, segment.key))]
        check(stored == entries, "COMMANDS")
        check(segment.seal["commands"] == len(entries), "seal: commands")
        times = [t_ns for _, t_ns, *_ in records_of(segment)]
        check(segment.seal["t_last"] == (times[-1] if times else 0), "seal: t_last")
        if segment.seal["status"] != "continued":
            check(own and own[-1].kind == CLOSE, "CLOSE is not the last record")
            check(own[-1].payload["status"] == segment.seal["status"], "CLOSE unlike the seal")
    if not any(block.type == GAP for segment in segments for block in segment.blocks):
        commands = {record.n for record in records if record.kind == COMMAND}
        for record in records:
            if record.kind in (3, 4, 5, 9):
                check(record.payload["command"] in commands, "a number that is no COMMAND's")
    return records


def constant(head: Mapping[str, Any]) -> dict[str, Any]:
    enc = head.get("enc", {})
    return {k: v for k, v in head.items() if k not in OWN} | {"enc": [enc.get("suite"), enc.get("wraps")]}


def read_tape(
    files: Sequence[bytes],
    signers: Sequence[Ed25519PublicKey] = (),
    keys_file: bytes | None = None,
    private: X25519PrivateKey | None = None,
) -> tuple[list[Segment], list[Record] | None]:
    """Read all segments of a tape, in order; returns them and the records, None if there is no key to read them.

    A segment without a seal is a live one and can only be the last. With signers, every seal must be one of theirs.
    """
    segments = [read_segment(data) for data in files]
    keys = {key_id(signer.public_bytes_raw()): signer for signer in signers}
    last: Segment | None = None
    for number, segment in enumerate(segments):
        head = segment.head
        check(head["segment"] == number, "a segment is missing")
        if segment.seal is not None and signers:
            check_signature(segment, keys)
        status = segment.seal["status"] if segment.seal else "open"
        check((status == "continued") == (number < len(segments) - 1), "continued, or not")
        if last is not None:
            check(constant(head) == constant(last.head), "segments of several tapes")
            check(head["prev"] == (last.content[-1].chain if last.content else last.h0), "prev")
            check(head["first_record"] == last.next_record, "first_record of a segment")
            before = [b.t0_ns for s in segments[:number] for b in s.content]
            check(not segment.content or not before or segment.content[0].t0_ns >= before[-1], "t0_ns over segments")
        else:
            check(head["first_record"] == 0, "the first record")
        if keys_file is not None and private is not None and "enc" in head:
            unlock(segment, keys_file, private)
        last = segment
    return segments, check_content(segments) if all(segment.readable for segment in segments) else None
