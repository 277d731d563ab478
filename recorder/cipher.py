"""Encryption at rest: a tape's data key, the keys of those who may read it, and the cipher of one segment.

How: each tape has a random data key (DEK) that lives in memory while the tape is written, and on the disk only in
the tape's .keys file, wrapped to each recipient's X25519 public key (HPKE). Every segment derives a key of its own
from it, and a commitment to that key which its header shows. The gateway holds public keys only: it can write what
it cannot read, and whoever steals its disk has nothing. Destroying the .keys files erases the content, and leaves
header, order and seal verifiable: what is hashed and sealed is the cipher text.

An auditor's key is a pair of PEM files, as a seal key is: the private half mode 0600, and ``<file>.pub``, which the
gateway's configuration names. Recipients' files may hold several public keys, one after the other.

Left out: keys in a KMS or on a smart card (AuditorKey would get a second source of ``open_wrap``), post-quantum suites
(``suite`` names each wrap's), and compressed lengths, which show how well a block compresses.
Specification: format.py, "Encryption"; RFC 9180 (HPKE), RFC 5869 (HKDF), NIST SP 800-38D (GCM), RFC 7748 (X25519).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from recorder.errors import FormatError, KeyFileError, Unreadable
from recorder.format import Header

SUITE: Final = "AES-256-GCM"
WRAP_SUITE: Final = "hpke-x25519-sha256-aes256gcm"
TAG_BYTES: Final = 16
RECIPIENTS_LIMIT: Final = 256  # ours: 135 bytes each, so that a .keys file fits into the log's OPEN entry (64 KiB)
KEYS_FILE_LIMIT: Final = 64 * 1024  # walformat.KEYS_LIMIT
PEM_FILE_LIMIT: Final = 64 * 1024  # seal.KEY_FILE_LIMIT: several hundred public keys
# GCM: 2^32 uses of a key are safe with any nonces (SP 800-38D 8.3); ours are counters, and a segment has 64 Ki blocks.
SEQ_LIMIT: Final = 1 << 32

_DEK_BYTES: Final = 32
_SALT_BYTES: Final = 24
_COMMIT_BYTES: Final = 32
_ENC_BYTES: Final = 32  # an X25519 public key: RFC 9180 7.1, Nenc of DHKEM(X25519)
_SEGMENT_CONTEXT: Final = b"gatecast tape v1\0"
_WRAP_CONTEXT: Final = b"gatecast tape key v1\0"

_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")  # it is in messages: no other text gets there
_hpke: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class SegmentCipher:
    """The key of one segment. A block is sealed once: a seq that is not above the last one raises ValueError."""

    __slots__ = ("_aead", "_next")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._next = 0

    def seal(self, block_header: bytes, seq: int, stored: bytes | memoryview) -> bytes:
        """Return the encrypted payload with its tag; block_header is the final 48 bytes, whose stored_len counts it."""
        if not self._next <= seq < SEQ_LIMIT:
            raise ValueError("a block number is encrypted twice")  # the end of GCM's secrecy; our own bug, fails closed
        self._next = seq + 1
        return self._aead.encrypt(_nonce(seq), stored, block_header)

    def open(self, block_header: bytes, seq: int, sealed: bytes) -> bytes:
        """Return the payload. Raises FormatError if it, its header or its number is not what was sealed."""
        try:
            return self._aead.decrypt(_nonce(seq), sealed, block_header)
        except (InvalidTag, ValueError) as error:
            raise FormatError(f"block {seq}: it does not decrypt: it was changed, or belongs elsewhere") from error


@dataclass(frozen=True, slots=True)
class Recipient:
    """A public key that tapes are encrypted to; id is what .keys files and messages call it."""

    public: bytes  # 32 bytes, RFC 7748
    id: str

    @classmethod
    def of(cls, key: X25519PublicKey) -> Recipient:
        """Take a key. Raises ValueError for one that no secret can be agreed on with (RFC 9180 7.1.4)."""
        try:
            _hpke.encrypt(b"", key)
        except Exception as error:  # fails closed: whatever the library calls it, it must not fail at a session's begin
            raise ValueError("a public key that cannot be encrypted to") from error
        public = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(public, _key_id(public))

    @classmethod
    def load(cls, path: Path) -> list[Recipient]:
        """Read one or more PEM public keys; each once, in the file's order. Raises KeyFileError."""
        data = _read(path)
        if b"PRIVATE KEY-----" in data:
            raise KeyFileError(f"{path}: holds a private key, which stays with its owner; give the .pub file")
        found: dict[str, Recipient] = {}
        for pem in re.findall(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----\n?", data, re.DOTALL):
            try:
                key = load_pem_public_key(pem)
                if not isinstance(key, X25519PublicKey):
                    raise KeyFileError(f"{path}: holds a key that is not X25519; `gatecast keys generate` makes one")
                recipient = cls.of(key)
            except ValueError as error:
                raise KeyFileError(f"{path}: holds a public key that cannot be used") from error
            found[recipient.id] = recipient
        if not found:
            raise KeyFileError(f"{path}: holds no public key (PEM)")
        if len(found) > RECIPIENTS_LIMIT:
            raise KeyFileError(f"{path}: holds more than {RECIPIENTS_LIMIT} keys")
        return list(found.values())


class AuditorKey:
    """The private half, which opens the tapes that were encrypted to it. It never is on a gateway."""

    __slots__ = ("_private", "id")

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.id = Recipient.of(private.public_key()).id

    @classmethod
    def generate(cls, path: Path) -> AuditorKey:
        """Make a pair: path (0600) and ``<path>.pub``. Raises KeyFileError if one of them is there already."""
        private = X25519PrivateKey.generate()
        key = cls(private)
        public = path.with_name(path.name + ".pub")
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            if public.exists():
                raise FileExistsError(public)
            _write_new(path, pem, 0o600)
            _write_new(public, key.public_pem(), 0o644)
        except FileExistsError as error:
            raise KeyFileError(f"{path}: there is a key already, or {public.name}; choose another name") from error
        except OSError as error:
            raise KeyFileError(f"{path}: cannot write the key: {error.strerror}") from error
        return key

    @classmethod
    def load(cls, path: Path) -> AuditorKey:
        """Read a key from a PEM file that only its owner may read. Raises KeyFileError."""
        try:
            private = load_pem_private_key(_read(path, private=True), None)
        except (ValueError, TypeError) as error:
            raise KeyFileError(f"{path}: cannot read the key: {type(error).__name__}") from error
        if not isinstance(private, X25519PrivateKey):
            raise KeyFileError(f"{path}: not an X25519 key; `gatecast keys generate` makes one")
        return cls(private)

    @property
    def recipient(self) -> Recipient:
        """The public half."""
        return Recipient.of(self._private.public_key())

    def public_pem(self) -> bytes:
        """The public half as PEM."""
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def open_wrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Undo one HPKE seal (enc || cipher text). Raises FormatError."""
        try:
            return _hpke.decrypt(wrapped, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise FormatError(f"the data key that is wrapped to key {self.id} does not open") from error


class TapeKey:
    """The data key of one tape, while it is written; keys_file is what goes into its .keys file."""

    __slots__ = ("_dek", "_sid", "_track", "_wraps_hash", "keys_file")

    def __init__(self, sid: str, track: str, recipients: Sequence[Recipient], dek: bytes) -> None:
        if not 0 < len(recipients) <= RECIPIENTS_LIMIT:
            raise ValueError("a tape is encrypted to one recipient at least, and no more than its limit")
        self._dek = dek
        self._sid = sid
        self._track = track
        self.keys_file: bytes = msgpack.packb(
            {"v": 1, "sid": sid, "track": track, "wraps": [_wrap(dek, one, sid, track) for one in recipients]},
            use_bin_type=True,
        )
        self._wraps_hash = sha256(self.keys_file).digest()

    @classmethod
    def generate(cls, sid: str, track: str, recipients: Sequence[Recipient]) -> TapeKey:
        """Make the key of a new tape. Raises ValueError for no or too many recipients."""
        return cls(sid, track, recipients, secrets.token_bytes(_DEK_BYTES))

    def segment(self, number: int) -> tuple[dict[str, Any], SegmentCipher]:
        """Return the ``enc`` map of a segment's header, with a fresh salt, and the segment's cipher."""
        salt = secrets.token_bytes(_SALT_BYTES)
        key, commit = _derive(self._dek, self._sid, self._track, number, salt)
        return {"suite": SUITE, "salt": salt, "commit": commit, "wraps": self._wraps_hash}, SegmentCipher(key)


@dataclass(frozen=True, slots=True)
class Wrap:
    """A data key as it is in a .keys file: for whom, and the HPKE seal (enc || cipher text)."""

    suite: str
    key_id: str
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class KeysFile:
    """A decoded .keys file."""

    sid: str
    track: str
    wraps: tuple[Wrap, ...]


def decode_keys_file(data: bytes) -> KeysFile:
    """Decode a .keys file. Raises FormatError; Unreadable for a later version of it."""
    if len(data) > KEYS_FILE_LIMIT:
        raise FormatError("keys: longer than its limit")
    try:
        match msgpack.unpackb(data, raw=False):
            case {"v": 1 as v, "sid": str(sid), "track": str(track), "wraps": [*items]} if v is not True:
                wraps = tuple(_read_wrap(item) for item in items)
            case {"v": int(version)} if version != 1:
                raise Unreadable(f"keys: version {version} is not known here")
            case _:
                raise FormatError("keys: of another form")
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError("keys: of another form") from error
    return KeysFile(sid, track, wraps)


def unlock(header: Header, keys_file: bytes | None, keys: Sequence[AuditorKey]) -> SegmentCipher:
    """Return the cipher of an encrypted segment.

    keys_file is the content of the tape's .keys file, None where there is none. Raises Unreadable, with a text that
    says whose key is needed; FormatError where header and .keys file do not belong together or were changed.
    """
    enc = header.map_.get("enc")
    match enc:
        case {"suite": str(suite), "salt": bytes(salt), "commit": bytes(commit), "wraps": bytes(pinned)}:
            pass
        case _:
            raise FormatError("header: enc is missing, or of another form")
    if suite != SUITE:
        raise Unreadable(f"the tape is encrypted by a suite that is not known here: {suite[:40]!r}")
    if len(salt) != _SALT_BYTES or len(commit) != _COMMIT_BYTES or not 0 <= header.segment < 1 << 32:
        raise FormatError("header: enc is missing, or of another form")
    if keys_file is None:
        raise Unreadable("the tape is encrypted, and its .keys file is not here: the content was erased, or not copied")
    if not compare_digest(sha256(keys_file).digest(), pinned):
        raise FormatError("the .keys file is not the one that the header names")
    said = decode_keys_file(keys_file)
    track = str(header.map_.get("track"))
    if (said.sid, said.track) != (header.sid, track):
        raise FormatError("the .keys file is that of another tape")
    dek = _unwrap(said, keys)
    key, committed = _derive(dek, header.sid, track, header.segment, salt)
    if not compare_digest(committed, commit):
        raise FormatError("header: the key's commitment does not hold")
    return SegmentCipher(key)


def _unwrap(said: KeysFile, keys: Sequence[AuditorKey]) -> bytes:
    by_id = {key.id: key for key in keys}
    for wrap in said.wraps:
        key = by_id.get(wrap.key_id)
        if key is None or wrap.suite != WRAP_SUITE:
            continue
        dek = key.open_wrap(wrap.wrapped, _wrap_info(said.sid, said.track))
        if len(dek) != _DEK_BYTES:
            raise FormatError("keys: a data key of another length")
        return dek
    ids = [wrap.key_id for wrap in said.wraps]
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    whose = ("key " if len(ids) == 1 else "one of the keys ") + ", ".join(ids[:3]) + more
    raise Unreadable(f"encrypted to {whose}; give --identity FILE with {'it' if len(ids) == 1 else 'one of them'}")


def _read_wrap(item: object) -> Wrap:
    match item:
        case [str(suite), str(key_id), bytes(enc), bytes(wrapped)] if _KEY_ID.fullmatch(key_id):
            return Wrap(suite, key_id, enc + wrapped)
    raise FormatError("keys: a wrap of another form")


def _wrap(dek: bytes, recipient: Recipient, sid: str, track: str) -> list[str | bytes]:
    sealed = _hpke.encrypt(dek, X25519PublicKey.from_public_bytes(recipient.public), _wrap_info(sid, track))
    return [WRAP_SUITE, recipient.id, sealed[:_ENC_BYTES], sealed[_ENC_BYTES:]]


def _wrap_info(sid: str, track: str) -> bytes:
    return _WRAP_CONTEXT + sid.encode() + b"\0" + track.encode()


def _derive(dek: bytes, sid: str, track: str, segment: int, salt: bytes) -> tuple[bytes, bytes]:
    """Return (key, commitment) of a segment."""
    info = b"\0".join((_SEGMENT_CONTEXT + SUITE.encode(), sid.encode(), track.encode()))
    info += b"\0" + segment.to_bytes(4, "little") + salt
    okm = HKDFExpand(SHA256(), 32 + _COMMIT_BYTES, info).derive(dek)
    return okm[:32], okm[32:]


def _nonce(seq: int) -> bytes:
    return b"\0\0\0\0" + seq.to_bytes(8, "little")


def _key_id(public: bytes) -> str:
    return sha256(public).hexdigest()[:16]


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor: the mode is that of what we read
            if private and os.fstat(descriptor).st_mode & 0o077:
                raise KeyFileError(f"{path}: others may read the key; make it mode 0600")
            data = file.read(PEM_FILE_LIMIT + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot read the key: {error.strerror}") from error
    if len(data) > PEM_FILE_LIMIT:
        raise KeyFileError(f"{path}: is longer than {PEM_FILE_LIMIT} bytes")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Make a file that was not there, whole and synced. Raises FileExistsError, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
