"""The entries of a node's log: their encoding, byte for byte. Pure.

An entry is one msgpack array (the 2013 specification, with bin and str apart), at most 65,535 bytes:

    [1, sid str, track int, h0 bin]                               OPEN: a tape was begun; h0 is that of segment 0
    [2, sid str, track int, segment int, seq int, chain bin]      HEAD: the chain value behind block seq of the segment,
                                                                  once that block was durable
    [3, sid str, track int, segment int, root bin, status str]    SEAL: the segment was sealed so (CRASHSEAL, too)
    [4, sid str, policy str, who str, when_ns int]                TOMBSTONE: the session's files were removed on purpose
                                                                  at when_ns, nanoseconds since 1970-01-01 UTC; a policy
                                                                  "erased: ..." is of its .keys file only
    [5, old bin, new bin]                                         KEYROTATE: the raw Ed25519 public keys (32 bytes each)
    [6, boot str, wall_ns int]                                    HEARTBEAT: the gateway lives, and records
    [7, boot str, version str]                                    START: a gateway began

    sid is the 26 characters of a ULID; track is 0 main, 1 original; h0, chain and root are 32 bytes, as format.py has
    them; status is that of the seal. Items after the last are ignored, as are entries of a kind above 7: later versions
    may add some. An entry of kinds 1 to 7 of any other form is a fault.

    OPEN and SEAL may be there several times (recovery repeats them), but never with other content. A key is valid by
    position: up to and with the KEYROTATE that names it as old, and from that one on which names it as new. The
    checkpoint that first covers a KEYROTATE is signed by both.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Final

import msgpack

from recorder.errors import FormatError
from recorder.merkle import HASH_BYTES
from recorder.ulid import is_ulid
from recorder.walformat import TRACKS

ENTRY_LIMIT: Final = 65_535  # C2SP tlog-tiles: the length in a bundle is a u16
TEXT_LIMIT: Final = 4096  # ours: of one text in an entry
ERASED: Final = "erased:"  # how the policy of a tombstone begins that does not account for the tape's own files
STATUS: Final = ("continued", "closed", "failed", "crashed")


@dataclass(frozen=True, slots=True)
class Open:
    """A tape was begun."""

    sid: str
    track: str
    h0: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The chain value behind a durable block of an open tape."""

    sid: str
    track: str
    segment: int
    seq: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment was sealed."""

    sid: str
    track: str
    segment: int
    root: bytes
    status: str


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A session's files were removed on purpose."""

    sid: str
    policy: str
    who: str
    when_ns: int


@dataclass(frozen=True, slots=True)
class KeyRotate:
    """The log and the tapes are signed by another key from here on; written by NodeLog.rotate only."""

    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The gateway lives."""

    boot: str
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Start:
    """A gateway began."""

    boot: str
    version: str


LogEntry = Open | Head | Sealed | Tombstone | KeyRotate | Heartbeat | Start
_KINDS: Final[dict[type, int]] = {Open: 1, Head: 2, Sealed: 3, Tombstone: 4, KeyRotate: 5, Heartbeat: 6, Start: 7}
_TRACKED: Final = (Open, Head, Sealed)


def encode_entry(entry: LogEntry) -> bytes:
    """Return the entry's bytes. Raises ValueError for one that no reader would accept."""
    items = list(astuple(entry))
    if isinstance(entry, _TRACKED):
        items[1] = TRACKS.index(entry.track)
    raw: bytes = msgpack.packb([_KINDS[type(entry)], *items], use_bin_type=True)
    try:
        if len(raw) > ENTRY_LIMIT or decode_entry(raw) != entry:
            raise ValueError("an entry that cannot be read back")
    except FormatError as error:
        raise ValueError(error.reason) from error
    return raw


def decode_entry(raw: bytes) -> LogEntry | None:
    """Decode one entry; None for a kind of a later version. Raises FormatError."""
    try:
        items = msgpack.unpackb(raw, raw=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError("not msgpack") from error
    if not isinstance(items, list) or any(isinstance(item, bool) for item in items[:6]):
        raise FormatError("of another form")  # bool is a kind of int in Python only
    entry: LogEntry
    match items:
        case [1, str(sid), int(track), bytes(h0), *_]:
            entry = Open(_sid(sid), _track(track), _hash(h0))
        case [2, str(sid), int(track), int(segment), int(seq), bytes(chain), *_]:
            entry = Head(_sid(sid), _track(track), _number(segment), _number(seq), _hash(chain))
        case [3, str(sid), int(track), int(segment), bytes(root), str(status), *_] if status in STATUS:
            entry = Sealed(_sid(sid), _track(track), _number(segment), _hash(root), status)
        case [4, str(sid), str(policy), str(who), int(when_ns), *_]:
            entry = Tombstone(_sid(sid), _text(policy), _text(who), _number(when_ns))
        case [5, bytes(old), bytes(new), *_]:
            entry = KeyRotate(_hash(old), _hash(new))
        case [6, str(boot), int(wall_ns), *_]:
            entry = Heartbeat(_text(boot), _number(wall_ns))
        case [7, str(boot), str(version), *_]:
            entry = Start(_text(boot), _text(version))
        case [int(kind), *_] if kind > max(_KINDS.values()):
            return None
        case _:
            raise FormatError("of another form")
    return entry


def pack_bundle(entries: list[bytes]) -> bytes:
    """Return a bundle: each entry after its length, u16 big-endian. Source: C2SP tlog-tiles."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unpack_bundle(raw: bytes, count: int) -> list[bytes]:
    """Return the first count entries of a bundle. Raises FormatError if it does not hold as many."""
    entries: list[bytes] = []
    at = 0
    while len(entries) < count:
        end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
        if at + 2 > len(raw) or end > len(raw):
            raise FormatError("a bundle that ends too early")
        entries.append(raw[at + 2 : end])
        at = end
    return entries


def _sid(text: str) -> str:
    if not is_ulid(text):
        raise FormatError("not a session's id")
    return text


def _track(number: int) -> str:
    if not 0 <= number < len(TRACKS):
        raise FormatError("an unknown track")
    return TRACKS[number]


def _hash(raw: bytes) -> bytes:
    if len(raw) != HASH_BYTES:
        raise FormatError("a hash or key that is not 32 bytes")
    return raw


def _number(value: int) -> int:
    if not 0 <= value < 2**63:
        raise FormatError("a number out of range")
    return value


def _text(text: str) -> str:
    if len(text.encode()) > TEXT_LIMIT:
        raise FormatError("a text above its limit")
    return text
