"""Hashes, the Merkle tree, Ed25519 seals and their key files (format.py, "Hashes and seal").

A seal binds one finished segment: header, every block, their order and number. It is made with a key that only the
gateway holds; the public key lies beside it (``<key file>.pub``) and is all that a stranger needs. Whoever holds the
private key can forge a tape: the node's log and its witness (the next part of the recorder) answer that.

Left out: the node's log, KMS and TPM keys, second (post-quantum) signatures; the seal has room for them.
Sources: RFC 6962 2.1 (tree hash), RFC 8032 (Ed25519), recorder note section 7.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from recorder.errors import FormatError, KeyFileError
from recorder.layout import is_shallow

_CONTEXT: Final = b"gatecast tape seal v1\n"
_ALGORITHM: Final = "ed25519"
KEY_FILE_LIMIT: Final = 64 * 1024  # ours: several hundred PEM public keys, for rotation
SIGNATURES_LIMIT: Final = 8  # ours: one now, a second algorithm later

PublicKeys = Mapping[str, Ed25519PublicKey]


def header_hash(header: bytes) -> bytes:
    """h0 of a segment."""
    return sha256(b"\x03" + header).digest()


def leaf_hash(block_header: bytes, stored: bytes | memoryview) -> bytes:
    """The leaf of a block."""
    if len(stored) < 4096:
        return sha256(b"\x00" + block_header + stored).digest()
    state = sha256(b"\x00" + block_header)
    state.update(stored)
    return state.digest()


def chain_hash(previous: bytes, leaf: bytes) -> bytes:
    """The chain value behind a block."""
    return sha256(b"\x02" + previous + leaf).digest()


class Tree:
    """The Merkle tree hash of RFC 6962, grown leaf by leaf; it keeps one hash per level."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self._peaks: list[bytes] = []
        self.size = 0

    def add(self, leaf: bytes) -> None:
        """Append a leaf (already hashed)."""
        count = self.size = self.size + 1
        peaks = self._peaks
        while not count & 1:  # each trailing zero bit completes a subtree
            leaf = sha256(b"\x01" + peaks.pop() + leaf).digest()
            count >>= 1
        peaks.append(leaf)

    def root(self) -> bytes:
        """The root over all leaves so far; of none, the hash of nothing."""
        if not self._peaks:
            return sha256(b"").digest()
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = sha256(b"\x01" + peak + node).digest()
        return node


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of a seal."""

    algorithm: str
    key_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """A decoded seal: the signed bytes, what they say, and who signed."""

    signed: bytes
    body: Mapping[str, Any]
    signatures: tuple[Signature, ...]

    def check(self, keys: PublicKeys) -> str | None:
        """Return the id of a known key whose signature holds, None if no known key signed.

        Raises FormatError if a signature of a known key does not hold.
        """
        verified: str | None = None
        for signature in self.signatures:
            key = keys.get(signature.key_id)
            if key is None or signature.algorithm != _ALGORITHM:
                continue
            try:
                key.verify(signature.value, _CONTEXT + self.signed)
            except InvalidSignature as error:
                raise FormatError(f"seal: the signature of key {signature.key_id} does not hold") from error
            verified = signature.key_id
        return verified


def decode_seal(raw: bytes) -> Seal:
    """Decode the payload of a SEAL or CRASHSEAL block. Raises FormatError."""
    try:
        outer = msgpack.unpackb(raw, raw=False)
        match outer:
            case [bytes(signed), [*items]] if 0 < len(items) <= SIGNATURES_LIMIT:
                body = msgpack.unpackb(signed, raw=False)
                signatures = tuple(Signature(str(a), str(k), bytes(v)) for a, k, v in items)
            case _:
                raise FormatError("seal: of another form")
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError("seal: of another form") from error
    if not isinstance(body, dict) or not is_shallow(body):
        raise FormatError("seal: of another form")
    return Seal(signed, body, signatures)


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the key's hash."""
    return sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


class SealKey:
    """The key that a gateway seals its tapes with."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.id = key_id(private.public_key())

    @classmethod
    def generate(cls) -> SealKey:
        """Make a key that lives in memory only."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, *, create: bool = True) -> SealKey:
        """Read the key from a PEM file; make it (0600) and ``<path>.pub`` if there is none. Raises KeyFileError."""
        try:
            if create and not path.exists():
                _create(path)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor: the mode is that of what we read
                if os.fstat(descriptor).st_mode & 0o077:
                    raise KeyFileError(f"{path}: others may read the key; make it mode 0600")
                private = load_pem_private_key(file.read(KEY_FILE_LIMIT), None)
        except (OSError, ValueError, TypeError) as error:
            raise KeyFileError(f"{path}: cannot read the key: {type(error).__name__}") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(f"{path}: not an Ed25519 key")
        key = cls(private)
        public = public_path(path)
        if create and not public.exists():
            with contextlib.suppress(OSError):  # a convenience: a read-only key directory is fine
                public.write_bytes(key.public_pem())
        return key

    def public_keys(self) -> PublicKeys:
        """This key alone, for verification."""
        return {self.id: self._private.public_key()}

    def public_pem(self) -> bytes:
        """The public key as PEM."""
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def seal(self, body: Mapping[str, Any]) -> bytes:
        """Return the payload of a SEAL block."""
        signed: bytes = msgpack.packb(body, use_bin_type=True)
        signature = self._private.sign(_CONTEXT + signed)
        sealed: bytes = msgpack.packb([signed, [[_ALGORITHM, self.id, signature]]], use_bin_type=True)
        return sealed

    def sign_note(self, text: bytes) -> bytes:
        """Sign the text of a note (checkpoint.py). Raises ValueError for a text that could pass for a seal."""
        if text.startswith(_CONTEXT):
            raise ValueError("this text is not a note's")
        return self._private.sign(text)


def public_path(path: Path) -> Path:
    """Where the public key of a key file lies."""
    return path.with_name(path.name + ".pub")


def load_public_keys(path: Path) -> PublicKeys:
    """Read one or more PEM public keys (old ones stay in the file after a rotation). Raises KeyFileError."""
    try:
        with path.open("rb") as file:
            data = file.read(KEY_FILE_LIMIT)
        keys = [
            load_pem_public_key(pem)
            for pem in re.findall(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----\n?", data, re.DOTALL)
        ]
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path}: cannot read the public key: {type(error).__name__}") from error
    if not keys:
        raise KeyFileError(f"{path}: holds no public key (PEM)")
    found: dict[str, Ed25519PublicKey] = {}
    for key in keys:
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFileError(f"{path}: holds a key that is not Ed25519")
        found[key_id(key)] = key
    return found


def _create(path: Path) -> None:
    """Make a key file so that no reader ever sees half of one, and of two makers one wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123
            file.write(pem)
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
