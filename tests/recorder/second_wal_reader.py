"""A second reader of the write-ahead log, written from the docstring of recorder/walformat.py alone.

It imports nothing of ours but the other second reader. Faults within an entry whose CRC is right are Refusals.
"""

import struct
import zlib
from dataclasses import dataclass

from tests.recorder.second_reader import check, read_block_header, read_header, unpack

BODY_LIMIT = 48 + 1_048_592


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a write-ahead log: header and keys of OPEN, (block header, payload or leaf) of FULL and DIGEST."""

    kind: str
    sid: str
    track: str
    segment: int
    generation: int
    header: bytes = b""
    keys: bytes | None = None
    blocks: tuple[tuple[bytes, bytes], ...] = ()


def read_log(data: bytes) -> tuple[list[Entry], int]:
    """The entries of one file of a log, and where they end."""
    entries: list[Entry] = []
    at = 0
    while at + 44 <= len(data):
        magic, kind, track, zero, segment, generation, sid, length, crc = struct.unpack_from("<4sBBHIQ16sII", data, at)
        body = data[at + 44 : at + 44 + length]
        if magic != b"GCTW" or kind not in (1, 2, 3, 4) or track > 1 or zero or not len(body) == length <= BODY_LIMIT:
            break
        if crc != zlib.crc32(body, zlib.crc32(data[at : at + 40])) or (entries and entries[0].generation != generation):
            break
        name = crockford(int.from_bytes(sid, "big"))
        entry = (("OPEN", "FULL", "DIGEST", "DONE")[kind - 1], name, ("main", "original")[track], segment, generation)
        if kind == 1:
            header, keys = unpack(body)
            check(read_header(header)[1] == len(header), "OPEN: header")
            entries.append(Entry(*entry, header, keys))
        elif kind == 2:
            check(read_block_header(body[:48])[-1] == length - 48, "FULL: stored_len")
            entries.append(Entry(*entry, blocks=((body[:48], body[48:]),)))
        elif kind == 3:
            check(length and length % 80 == 0, "DIGEST: length")
            pairs = [(body[i : i + 48], body[i + 48 : i + 80]) for i in range(0, length, 80)]
            seqs = [read_block_header(header)[2] for header, _ in pairs]
            check(seqs == list(range(seqs[0], seqs[0] + len(seqs))), "DIGEST: seq")
            entries.append(Entry(*entry, blocks=tuple(pairs)))
        else:
            check(length == 0, "DONE: length")
            entries.append(Entry(*entry))
        at += 44 + length
    return entries, at


def crockford(number: int) -> str:
    """A ULID's 26 characters."""
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[number >> shift & 31] for shift in range(125, -1, -5))
