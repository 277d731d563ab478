"""HKDF-Expand (RFC 5869) and the opening half of HPKE (RFC 9180), written out: no library that the recorder uses."""

import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def expand(secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand of RFC 5869 with SHA-256."""
    out, last = b"", b""
    for i in range(1, (length + 31) // 32 + 1):
        last = hmac.digest(secret, last + info + bytes([i]), "sha256")
        out += last
    return out[:length]


def hpke_open(private: X25519PrivateKey, enc: bytes, info: bytes, sealed: bytes) -> bytes:
    """RFC 9180 5.1.1 and 5.2: base mode, DHKEM(X25519, HKDF-SHA256) 0x20, HKDF-SHA256 1, AES-256-GCM 2.

    Raises InvalidTag.
    """

    def extract(suite: bytes, label: bytes, ikm: bytes, salt: bytes = b"") -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")

    def labeled(suite: bytes, secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
        return expand(secret, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context, length)

    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    kem_context = enc + private.public_key().public_bytes_raw()
    secret = labeled(kem, extract(kem, b"eae_prk", shared), b"shared_secret", kem_context, 32)
    context = b"\x00" + extract(suite, b"psk_id_hash", b"") + extract(suite, b"info_hash", info)
    secret = extract(suite, b"secret", b"", secret)
    key, nonce = labeled(suite, secret, b"key", context, 32), labeled(suite, secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, sealed, b"")
