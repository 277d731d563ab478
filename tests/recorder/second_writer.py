"""A second writer of closed segments in the clear, from the docstring of recorder/format.py alone: for what ours never
writes, things from a later version of the format among them. Everything that it leaves out of its way is as it must be.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.recorder.second_reader import (
    COMMAND,
    COMMANDS,
    DATA,
    INDEX,
    SEAL,
    VERDICT,
    digest,
    key_id,
    merkle,
    short,
)

pack = msgpack.packb
SID = "01K0000000000000000000GCT2"
HEAD: Mapping[str, Any] = {
    "sid": SID,
    "segment": 0,
    "prev": None,
    "first_record": 0,
    "track": "main",
    "node": "n",
    "boot": "b",
    "wall0_ns": 1_790_000_000_000_000_000,
    "mono0_ns": 7,
    "protocol": "toy",
    "target": "shop",
    "identity": {"subject": "ana"},
    "run": "",
    "policy_rev": "",
    "mode": "durable",
    "more": {},
}


@dataclass
class Odd:
    """What is unlike the specification, in block number seq or in the header."""

    seq: int = 0
    type: int = DATA
    flags: int = 0
    zero: int = 0
    version: int = 1


def write_segment(
    key: Ed25519PrivateKey,
    blocks: Sequence[Sequence[list[Any]]],
    head: Mapping[str, Any] = HEAD,
    odd: Odd | None = None,
    body_more: Mapping[str, Any] | None = None,
) -> bytes:
    """Write a segment of blocks of records [dt_us, channel, kind, payload, meta?], one block a millisecond."""
    odd = odd or Odd(-1)
    packed = pack(head)
    data = b"\x89GCT\r\n\x1a\n" + struct.pack("<HI", odd.version, len(packed)) + packed
    data += struct.pack("<I", zlib.crc32(data))
    h0 = chain = digest(b"\x03", data)
    index: list[list[Any]] = []
    leaves: list[bytes] = []
    n = t0 = 0
    commands: dict[int, list[Any]] = {}

    def put(type_: int, raw: bytes, count: int = 0) -> None:
        nonlocal data, chain
        type_, flags, zero = (odd.type, odd.flags, odd.zero) if odd.seq == len(leaves) else (type_, 0, 0)
        header = struct.pack("<4sBBHQQQIII", b"GCTB", type_, flags, zero, len(leaves), n, t0, count, len(raw), len(raw))
        header += struct.pack("<I", zlib.crc32(header))
        leaf = digest(b"\x00", header, raw)
        chain = digest(b"\x02", chain, leaf)
        if type_ not in (INDEX, SEAL):
            index.append([len(data), type_, len(leaves), n, t0, count, leaf])
        leaves.append(leaf)
        data += header + raw + chain

    t_last = 0
    for number, records in enumerate(blocks):
        t0 = 1_000_000 * number
        raw = b""
        for i, (dt, channel, kind, payload, *meta) in enumerate(records, n):
            raw += pack([i, dt, channel, kind, payload, *meta])
            t_last = t0 + 1000 * dt
            if kind == COMMAND:
                said = msgpack.unpackb(payload, strict_map_key=False)
                commands[i] = [i, t_last, said["verb"], said["kind"], "", short(said["text"])]
            elif kind == VERDICT:
                said = msgpack.unpackb(payload, strict_map_key=False)
                commands[said["command"]][4] = commands[said["command"]][4] or said["verdict"]
        put(DATA, raw, len(records))
        n += len(records)
    put(COMMANDS, b"".join(pack(entry) for entry in commands.values()))
    index_offset = len(data)
    put(INDEX, b"".join(pack(entry) for entry in index))
    body = {name: head[name] for name in ("sid", "segment", "track", "first_record")} | {
        "h0": h0,
        "root": merkle(leaves),
        "head": chain,
        "blocks": len(leaves),
        "records": n,
        "commands": len(commands),
        "t_first": 0,
        "t_last": t_last,
        "status": "closed",
        "reason": "",
        "gaps": [],
        "log": None,
        **(body_more or {}),
    }
    signed = pack(body)
    signature = key.sign(b"gatecast tape seal v1\n" + signed)
    put(SEAL, pack([signed, [["ed25519", key_id(key.public_key().public_bytes_raw()), signature]]]))
    trailer = b"GCTT" + struct.pack("<Q", index_offset)
    data += trailer + struct.pack("<I", zlib.crc32(trailer))
    return bytes(data)
