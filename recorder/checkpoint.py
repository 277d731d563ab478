"""Signed notes and checkpoints: what a log's head looks like, who signed it, who else saw it. Pure.

A checkpoint is a note of three lines, signed:

    <origin>                                    which log: a schema-less URL; its last element is the node's name
    <tree size, decimal>
    <root, base64>
    <empty line>
    \u2014 <key name> <base64 of key id (4 bytes) || signature>          one line for each signature

Base64 is the standard one with padding, in its one canonical form; the size has no leading zero.

The log's key name is the origin, its algorithm Ed25519 (type 01) over the three lines, by the key that seals the
tapes. That is safe: a seal's message begins "gatecast tape seal v1\\n", and no origin may be that line. A witness adds
a cosignature (type 04): time u64 big-endian || Ed25519 over "cosignature/v1\\ntime <seconds>\\n" || the three lines.
A public key is written as a vkey: <name>+<key id, 8 hex digits>+<base64 of type || public key>, where
key id = H(name || 0A || type || public key)[:4].

Left out: ML-DSA-44 cosignatures (type 06; this version of the cryptography library need not have it), extension lines
(a checkpoint that has some is read, and they are covered by the signatures; we write none).
Sources: C2SP signed-note, tlog-checkpoint, tlog-cosignature; golang.org/x/mod/sumdb/note (vkeys).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from recorder.errors import FormatError
from recorder.merkle import HASH_BYTES
from recorder.seal import PublicKeys, SealKey

ED25519: Final = 1  # signature types of C2SP signed-note
COSIGNATURE: Final = 4
NOTE_LIMIT: Final = 128 * 1024  # C2SP signed-note asks for 16 signatures of up to 5 kB at least
SIGNATURES_LIMIT: Final = 100  # that of x/mod/sumdb/note
SIZE_LIMIT: Final = 2**63 - 1
NAME_LIMIT: Final = 255  # C2SP tlog-cosignature: opaque log_origin<1..2^8-1>

_DASH: Final = "\u2014 "
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE_BYTES: Final = 64
_SEAL_LINE: Final = "gatecast tape seal v1"


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A public key with its name and what it signs: a log's own signatures, or a witness's cosignatures."""

    name: str
    algorithm: int
    public: Ed25519PublicKey

    @property
    def id(self) -> bytes:
        return _key_id(self.name, self.algorithm, _raw(self.public))

    @property
    def vkey(self) -> str:
        """The key as a line of text."""
        material = b64encode(bytes([self.algorithm]) + _raw(self.public)).decode()
        return f"{self.name}+{self.id.hex()}+{material}"


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line of a note."""

    name: str
    key_id: bytes
    value: bytes

    def line(self) -> str:
        return f"{_DASH}{self.name} {b64encode(self.key_id + self.value).decode()}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's head: size and root, the text that was signed, and its signatures."""

    origin: str
    size: int
    root: bytes
    text: str
    signatures: tuple[NoteSignature, ...] = ()

    def encode(self) -> bytes:
        """The whole note."""
        return f"{self.text}\n{''.join(signature.line() for signature in self.signatures)}".encode()

    def with_signatures(self, more: Iterable[NoteSignature]) -> Checkpoint:
        """The same checkpoint with these signatures too, each once."""
        return replace(self, signatures=tuple(dict.fromkeys((*self.signatures, *more))))

    def signers(self, keys: PublicKeys) -> list[str]:
        """The ids of the known keys that signed as the log. Raises FormatError if one of them did not."""
        known = {_key_id(self.origin, ED25519, _raw(key)): (name, key) for name, key in keys.items()}
        found: list[str] = []
        for signature in self.signatures:
            entry = known.get(signature.key_id) if signature.name == self.origin else None
            if entry is None:
                continue
            try:
                entry[1].verify(signature.value, self.text.encode())
            except InvalidSignature as error:
                raise FormatError(f"checkpoint: the signature of key {entry[0]} does not hold") from error
            found.append(entry[0])
        return found

    def cosigned(self, witness: NoteKey) -> int | None:
        """When the witness cosigned, in seconds since the epoch; None if it did not. Raises FormatError."""
        latest: int | None = None
        for signature in self.signatures:
            if (signature.name, signature.key_id) != (witness.name, witness.id):
                continue
            if len(signature.value) != 8 + _SIGNATURE_BYTES:
                raise FormatError(f"checkpoint: the cosignature of {witness.name} is of another form")
            seconds = int.from_bytes(signature.value[:8], "big")
            try:
                witness.public.verify(signature.value[8:], cosigned_text(seconds, self.text))
            except InvalidSignature as error:
                raise FormatError(f"checkpoint: the cosignature of {witness.name} does not hold") from error
            latest = seconds if latest is None else max(latest, seconds)
        return latest


def cosigned_text(seconds: int, text: str) -> bytes:
    """What a witness signs. Source: C2SP tlog-cosignature."""
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    """The three lines. Raises ValueError for an origin that cannot be one."""
    check_name(origin)
    return f"{origin}\n{size}\n{b64encode(root).decode()}\n"


def check_name(name: str) -> None:
    """Raise ValueError if the text cannot be an origin or the name of a key."""
    if not name or len(name.encode()) > NAME_LIMIT or "+" in name or name == _SEAL_LINE:
        raise ValueError("an origin is 1 to 255 bytes without + and spaces")
    if any(character.isspace() or ord(character) < 32 for character in name):
        raise ValueError("an origin is 1 to 255 bytes without + and spaces")


def sign_checkpoint(origin: str, size: int, root: bytes, keys: Sequence[SealKey]) -> Checkpoint:
    """Make a checkpoint that each of the keys signs (two of them where one takes over from the other)."""
    text = checkpoint_text(origin, size, root)
    signatures = []
    for key in keys:
        public = key.public_keys()[key.id]
        signatures.append(NoteSignature(origin, log_key(origin, public).id, key.sign_note(text.encode())))
    return Checkpoint(origin, size, root, text, tuple(signatures))


def log_key(origin: str, public: Ed25519PublicKey) -> NoteKey:
    """A log's public key as a note key; its vkey is what a witness is configured with."""
    return NoteKey(origin, ED25519, public)


def decode_checkpoint(raw: bytes) -> Checkpoint:
    """Decode a checkpoint; no signature is checked. Raises FormatError."""
    if len(raw) > NOTE_LIMIT:
        raise FormatError("checkpoint: longer than its limit")
    try:
        note = raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError("checkpoint: not UTF-8") from error
    if any(ord(character) < 32 and character != "\n" for character in note):
        raise FormatError("checkpoint: control characters")
    body, mark, tail = note.rpartition("\n\n")
    if not mark:
        raise FormatError("checkpoint: not signed")
    signatures = decode_signatures(tail)
    lines = body.split("\n")
    if len(lines) < 3 or not all(lines) or not _NUMBER.fullmatch(lines[1]) or int(lines[1]) > SIZE_LIMIT:
        raise FormatError("checkpoint: not origin, size and root")
    root = _decode64(lines[2])
    if len(root) != HASH_BYTES:
        raise FormatError("checkpoint: the root is not 32 bytes")
    return Checkpoint(lines[0], int(lines[1]), root, body + "\n", tuple(signatures))


def decode_signatures(text: str) -> list[NoteSignature]:
    """Decode signature lines. Raises FormatError if there is none or one of another form."""
    if not text.endswith("\n") or text.count("\n") > SIGNATURES_LIMIT:
        raise FormatError("note: no signatures, or too many")
    found: list[NoteSignature] = []
    for line in text[:-1].split("\n"):
        name, mark, encoded = line.removeprefix(_DASH).partition(" ")
        value = _decode64(encoded)
        if not line.startswith(_DASH) or not name or not mark or "+" in name or len(value) < 5:
            raise FormatError("note: a signature of another form")
        found.append(NoteSignature(name, value[:4], value[4:]))
    return found


def decode_vkey(text: str) -> NoteKey:
    """Decode a public key of a log (type 01) or of a witness (type 04). Raises FormatError."""
    name, _, rest = text.strip().partition("+")
    digits, _, encoded = rest.partition("+")
    material = _decode64(encoded)
    if len(material) != 1 + HASH_BYTES or material[0] not in (ED25519, COSIGNATURE):
        raise FormatError("vkey: not an Ed25519 key of a log or of a witness")
    try:
        check_name(name)
    except ValueError as error:
        raise FormatError("vkey: no name") from error
    key = NoteKey(name, material[0], Ed25519PublicKey.from_public_bytes(material[1:]))
    if digits != key.id.hex():
        raise FormatError("vkey: its id is not that of its key")
    return key


def _key_id(name: str, algorithm: int, raw: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + bytes([algorithm]) + raw).digest()[:4]


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _decode64(text: str) -> bytes:
    try:
        raw = b64decode(text, validate=True)
    except (Base64Error, ValueError) as error:
        raise FormatError("note: not base64") from error
    if b64encode(raw).decode() != text:  # one encoding only: nothing may change unseen
        raise FormatError("note: not base64")
    return raw
