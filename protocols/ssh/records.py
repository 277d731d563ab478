"""Packets of the transport layer, opened and sealed many at a time, in the place of asyncssh's cipher objects.

An opener stands where asyncssh keeps its receiving Encryption. It takes packets out of a buffer by position, without
slicing what follows; a packet that is asyncssh's to handle is handed to it already open, by way of the two methods
that asyncssh calls anyway, so that all of its own checks apply. GcmOpener does AES-GCM in one pass with one cipher
object for the life of the key; PlainOpener asks asyncssh's object for each packet (chacha20, AES-CTR).

GcmSealer is the same for sending: frames (u32 length || payload) in, packets out, in one buffer.

Source: RFC 4253 6 (binary packet), RFC 5647 and OpenSSH's PROTOCOL 1.6 (AES-GCM: the length is in the clear).
"""

from __future__ import annotations

import os
from typing import Final

from asyncssh.encryption import Encryption, GCMEncryption
from asyncssh.misc import MACError, ProtocolError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PACKET_LIMIT: Final = 256 * 1024  # OpenSSH's PACKET_MAX_SIZE (packet.c); asyncssh's own is the same
PADDING_LEAST: Final = 4  # RFC 4253 6
BLOCK: Final = 16
TAG: Final = 16
_COUNTER: Final = 0xFFFFFFFFFFFFFFFF


class _Gcm(Encryption):
    """One direction of AES-GCM: the cipher object, and the nonce of the next packet (RFC 5647 7.1)."""

    def __init__(self, replaced: GCMEncryption) -> None:
        cipher = replaced._cipher
        self._aes = AESGCM(cipher._key)
        self._fixed = cipher._iv[:4]
        self._counter = int.from_bytes(cipher._iv[4:], "big")

    def _nonce(self) -> bytes:
        counter = self._counter
        self._counter = (counter + 1) & _COUNTER
        return self._fixed + counter.to_bytes(8, "big")


class GcmOpener(_Gcm):
    """Opens packets of AES-GCM."""

    def __init__(self, replaced: GCMEncryption) -> None:
        super().__init__(replaced)
        self.handed: bytes | None = None

    def open(self, seq: int, data: memoryview, position: int) -> tuple[bytes, int] | None:
        """Return the plain packet (padding length, payload, padding) at position, and where the next one begins.

        None: it is not all there. Raises ProtocolError, MACError.
        """
        if len(data) - position < 4:
            return None
        head = data[position : position + 4]
        length = int.from_bytes(head, "big")
        if length > PACKET_LIMIT or length < BLOCK:
            raise ProtocolError("bad packet length")
        end = position + 4 + length + TAG
        if end > len(data):
            return None
        try:
            return self._aes.decrypt(self._nonce(), data[position + 4 : end], head), end
        except InvalidTag:
            raise MACError("MAC verification failed") from None

    def hand(self, packet: bytes) -> None:
        """Have asyncssh find this packet, already open, in its place."""
        self.handed = packet

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        """For asyncssh: the length is in the clear."""
        return first_block, first_block[:header_len]

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        """For asyncssh: the packet that was handed over."""
        packet, self.handed = self.handed, None
        return packet


class PlainOpener(Encryption):
    """Opens packets of any other cipher, with asyncssh's own object; block and mac: their sizes in bytes."""

    def __init__(self, inner: Encryption, block: int, mac: int) -> None:
        self._inner = inner
        self._block = block
        self._mac = mac
        self._first: bytes | None = None  # of a packet whose end has not come: a stream cipher reads it once only
        self._length = 0
        self.handed: bytes | None = None

    def open(self, seq: int, data: memoryview, position: int) -> tuple[bytes, int] | None:
        """As GcmOpener has it."""
        block = self._block
        if self._first is None:
            if len(data) - position < block:
                return None
            first, head = self._inner.decrypt_header(seq, bytes(data[position : position + block]), 4)
            length = int.from_bytes(head, "big")
            if length > PACKET_LIMIT or 4 + length < block:
                raise ProtocolError("bad packet length")
            self._first, self._length = first, length
        body = position + 4 + self._length
        end = body + self._mac
        if end > len(data):
            return None
        packet = self._inner.decrypt_packet(
            seq, self._first, bytes(data[position + block : body]), 4, bytes(data[body:end])
        )
        self._first = None
        if not packet:
            raise MACError("MAC verification failed")
        return packet, end

    def hand(self, packet: bytes) -> None:
        """As GcmOpener has it."""
        self.handed = packet

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        """For asyncssh: the length of the packet that was handed over."""
        assert self.handed is not None
        return first_block, len(self.handed).to_bytes(4, "big")

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        """For asyncssh: the packet that was handed over."""
        packet, self.handed = self.handed, None
        return packet


Opener = GcmOpener | PlainOpener


def payload_of(packet: bytes) -> bytes:
    """Take a plain packet's padding away. Raises ProtocolError."""
    padding = packet[0]
    size = len(packet) - padding
    if padding < PADDING_LEAST or size < 2:
        raise ProtocolError("bad padding length")
    return packet[1:size]


class GcmSealer(_Gcm):
    """Seals packets with AES-GCM."""

    def seal(self, frames: bytes) -> tuple[list[bytes], int]:
        """Make packets of frames (each u32 length || payload); returns their parts in order, and how many they are.

        They are left apart, for a transport sends them together without another copy.
        """
        view = memoryview(frames)
        total = len(frames)
        parts: list[bytes] = []
        position = count = 0
        while position < total:
            start = position + 4
            length = int.from_bytes(view[position:start], "big")
            position = start + length
            assert length and position <= total, "not a frame"
            padding = -(1 + length) % BLOCK
            if padding < PADDING_LEAST:
                padding += BLOCK
            head = (1 + length + padding).to_bytes(4, "big")
            plain = b"".join((padding.to_bytes(1, "big"), view[start:position], os.urandom(padding)))
            parts.append(head)
            parts.append(self._aes.encrypt(self._nonce(), plain, head))
            count += 1
        return parts, count

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        """For asyncssh: seal one packet of its own."""
        return header + self._aes.encrypt(self._nonce(), packet, header), b""
