"""A second reader of a node's log, from the docstrings of nodelog.py, logentry.py, checkpoint.py and C2SP alone.

It reads a whole log directory, checks the signature of its head, every tile, every entry, older heads that witnesses
cosigned, and what the log says of the tapes beside it. Whatever does not hold is a Refusal.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.recorder.second_reader import Refusal, Segment, check, digest, merkle, unpack

OPEN, HEAD, SEALED, TOMBSTONE, KEYROTATE, HEARTBEAT, START = range(1, 8)
FORMS: dict[int, list[type]] = {
    OPEN: [str, int, bytes],
    HEAD: [str, int, int, int, bytes],
    SEALED: [str, int, int, bytes, str],
    TOMBSTONE: [str, str, str, int],
    KEYROTATE: [bytes, bytes],
    HEARTBEAT: [str, int],
    START: [str, str],
}
ED25519, COSIGNATURE = b"\x01", b"\x04"


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint: its lines, what is signed of it, and (name, key id, signature) of each signature."""

    origin: str
    size: int
    root: bytes
    text: bytes
    signatures: list[tuple[str, bytes, bytes]]

    def signed_by(self, name: str, type_: bytes, key: Ed25519PublicKey) -> bool:
        """Whether that key signed; Refusal if a signature that says so does not hold."""
        raw = key.public_bytes_raw()
        key_id = digest(name.encode() + b"\n" + type_ + raw)[:4]
        found = False
        for who, number, value in self.signatures:
            if (who, number) != (name, key_id):
                continue
            message = self.text
            if type_ == COSIGNATURE:
                message = b"cosignature/v1\ntime %d\n" % int.from_bytes(value[:8], "big") + self.text
                value = value[8:]
            try:
                key.verify(value, message)
            except InvalidSignature as error:
                raise Refusal(f"note: the signature of {name}") from error
            found = True
        return found


def unbase64(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    check(base64.b64encode(raw).decode() == text, "base64: not as it is written")
    return raw


def read_note(data: bytes) -> Note:
    text, empty, rest = data.decode().rpartition("\n\n")
    check(empty and rest.endswith("\n"), "note: form")
    origin, size, root, *_ = text.split("\n")
    check(size == str(int(size)), "note: size")
    signatures = []
    for line in rest.splitlines():
        dash, name, value = line.split(" ")
        check(dash == "\u2014", "note: a signature's form")
        raw = unbase64(value)
        signatures.append((name, raw[:4], raw[4:]))
    return Note(origin, int(size), unbase64(root), text.encode() + b"\n", signatures)


def read_vkey(vkey: str) -> tuple[str, Ed25519PublicKey]:
    """A witness's name and key."""
    name, key_id, value = vkey.split("+", 2)
    raw = unbase64(value)
    check(raw[:1] == COSIGNATURE, "vkey: type")
    check(key_id == digest(name.encode() + b"\n" + raw)[:4].hex(), "vkey: key id")
    return name, Ed25519PublicKey.from_public_bytes(raw[1:])


def tile(directory: Path, level: str, n: int, width: int) -> bytes:
    """A tile or bundle, by the path of C2SP tlog-tiles: groups of three digits, all but the last behind an x."""
    digits = f"{n:03d}".zfill(-(-len(str(n)) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    path = directory / "tile" / level / "/".join([*("x" + group for group in groups[:-1]), groups[-1]])
    if width < 256:
        path = path.with_name(f"{path.name}.p") / str(width)
    check(path.is_file(), f"missing: {path.relative_to(directory)}")
    return path.read_bytes()


def read_entries(directory: Path, size: int) -> list[bytes]:
    """The first size entries, from their bundles."""
    entries: list[bytes] = []
    for n in range(-(-size // 256)):
        width = min(256, size - 256 * n)
        data, at = tile(directory, "entries", n, width), 0
        for _ in range(width):
            length = int.from_bytes(data[at : at + 2], "big")
            entries.append(data[at + 2 : at + 2 + length])
            at += 2 + length
        check(at == len(data), f"bundle {n}: length")
    return entries


def check_tiles(directory: Path, leaves: Sequence[bytes]) -> None:
    """Every tile of every level holds the hashes of its subtrees."""
    level, hashes = 0, list(leaves)
    while hashes:
        for n in range(-(-len(hashes) // 256)):
            part = hashes[256 * n : 256 * n + 256]
            check(tile(directory, str(level), n, len(part)) == b"".join(part), f"tile {level}/{n}")
        whole = len(hashes) // 256
        hashes = [merkle(hashes[256 * n : 256 * n + 256]) for n in range(whole)]
        level += 1


def decode(raw: bytes) -> list[Any] | None:
    """One entry, checked; None for a kind of a later version."""
    entry = unpack(raw)
    check(isinstance(entry, list) and entry and isinstance(entry[0], int), "entry: form")
    form = FORMS.get(entry[0])
    if form is None:
        check(entry[0] > 7, "entry: kind")
        return None
    check(len(entry) > len(form), "entry: items")
    items = list(entry[: len(form) + 1])
    check(all(isinstance(item, type_) for item, type_ in zip(items[1:], form, strict=True)), "entry: types")
    check(all(len(item) == 32 for item in items if isinstance(item, bytes)), "entry: hashes")
    check(items[0] not in (OPEN, HEAD, SEALED) or items[2] in (0, 1), "entry: track")
    return items


def cosigned(directory: Path) -> Iterator[bytes]:
    """The heads that witnesses cosigned."""
    latest = directory / "checkpoint.cosigned"
    if latest.is_file():
        yield latest.read_bytes()
    for path in sorted((directory / "cosigned").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield json.loads(line)["checkpoint"].encode()


def read_log_directory(
    directory: Path,
    keys: Sequence[Ed25519PublicKey],
    vkeys: Sequence[str] = (),
) -> tuple[Note, list[list[Any] | None]]:
    """The log's head and entries.

    keys: those that sealed and signed, from the first; the head needs the last's. vkeys: of witnesses.
    """
    witnesses = [read_vkey(vkey) for vkey in vkeys]
    note = read_note((directory / "checkpoint").read_bytes())
    check(note.origin.rsplit("/", 1)[-1] == directory.name, "origin: not this node's")
    raw = read_entries(directory, note.size)
    leaves = [digest(b"\x00", entry) for entry in raw]
    check(merkle(leaves) == note.root, "root")
    check_tiles(directory, leaves)
    entries = [decode(entry) for entry in raw]
    valid = keys[0].public_bytes_raw()
    said: dict[tuple[Any, ...], list[Any]] = {}
    for entry in entries:
        if entry is not None and entry[0] == KEYROTATE:
            check(entry[1] == valid, "KEYROTATE: from another key")
            valid = entry[2]
        if entry is not None and entry[0] in (OPEN, SEALED):
            name = (entry[0], *entry[1 : 3 if entry[0] == OPEN else 4])
            check(said.setdefault(name, entry) == entry, "two words on one thing")
    signer = next((key for key in keys if key.public_bytes_raw() == valid), None)
    check(signer is not None and note.signed_by(note.origin, ED25519, signer), "head: not signed by the valid key")
    for data in cosigned(directory):
        older = read_note(data)
        check(older.origin == note.origin and older.size <= note.size, "cosigned: of another log, or longer")
        check(merkle(leaves[: older.size]) == older.root, "cosigned: the log was rewritten since")
        names = [name for name, key in witnesses if older.signed_by(name, COSIGNATURE, key)]
        check(names or not witnesses, "cosigned by no witness")
    return note, entries


def compare(entries: Sequence[list[Any] | None], segments: Sequence[Segment]) -> int:
    """Compare a tape with what the log says of it; returns how many entries speak of it."""
    head = segments[0].head
    track, count = ("main", "original").index(head["track"]), 0
    for entry in entries:
        if entry is None or entry[0] not in (OPEN, HEAD, SEALED) or entry[1:3] != [head["sid"], track]:
            continue
        count += 1
        if entry[0] == OPEN:
            check(entry[3] == segments[0].h0, "OPEN: another tape")
            continue
        check(entry[3] < len(segments), "a segment is missing")
        segment = segments[entry[3]]
        if entry[0] == HEAD:
            check(entry[4] < len(segment.blocks) and segment.blocks[entry[4]].chain == entry[5], "HEAD: not the block")
        else:
            seal = segment.seal or {}
            check((seal.get("root"), seal.get("status")) == (entry[4], entry[5]), "SEAL: another one")
    return count
