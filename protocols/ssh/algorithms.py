"""Which algorithms the gate offers in SSH, every list in full: nothing is left to a library's defaults.

The order is ours where we are the client; at our own server the user's order counts (RFC 4253 7.1). AES-GCM comes
first, for it is the fastest here (ssh note 2); AES-CTR stays for dropbear, which knows only that and chacha20.
Curve25519 stands before the post-quantum exchanges towards targets: it costs a third of them, and a target's traffic
is not worth recording for a quantum computer more than the user's own. A user who prefers ML-KEM gets it.

Left out: CBC, arcfour, DSA, ssh-rsa (SHA-1), 3DES, compression (CRIME; and the recorder
compresses better), GSSAPI, X.509. Source: RFC 9142, RFC 8332, draft-ietf-sshm-mlkem-hybrid-kex, OpenSSH 10's defaults.
"""

from __future__ import annotations

from typing import Final

from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_certificate_algs, get_public_key_algs


def _known(wanted: tuple[str, ...], known: list[bytes]) -> tuple[str, ...]:
    """Leave out what the library has not: OpenSSL may lack one, and sntrup761 wants liboqs."""
    return tuple(name for name in wanted if name.encode() in known)


KEX: Final = _known(
    (
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "mlkem768x25519-sha256",
        "sntrup761x25519-sha512",
        "sntrup761x25519-sha512@openssh.com",
        "ecdh-sha2-nistp256",
        "ecdh-sha2-nistp384",
        "ecdh-sha2-nistp521",
        "diffie-hellman-group16-sha512",
        "diffie-hellman-group14-sha256",
    ),
    get_kex_algs(),
)

GCM: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
CIPHERS: Final = _known(
    (*GCM, "chacha20-poly1305@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr"), get_encryption_algs()
)

# Used with AES-CTR only; the SHA-1 one is for dropbear and old appliances, where HMAC-SHA-1 is not broken.
MACS: Final = _known(
    (
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
        "hmac-sha1-etm@openssh.com",
        "hmac-sha1",
    ),
    get_mac_algs(),
)

COMPRESSION: Final = ("none",)

# Signatures by users' keys, by hosts' keys and by authorities of certificates.
SIGNATURES: Final = _known(
    (
        "ssh-ed25519",
        "sk-ssh-ed25519@openssh.com",
        "ecdsa-sha2-nistp256",
        "sk-ecdsa-sha2-nistp256@openssh.com",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "rsa-sha2-512",
        "rsa-sha2-256",
    ),
    get_public_key_algs(),
)

HOST_CERTIFICATES: Final = _known(
    (
        "ssh-ed25519-cert-v01@openssh.com",
        "ecdsa-sha2-nistp256-cert-v01@openssh.com",
        "ecdsa-sha2-nistp384-cert-v01@openssh.com",
        "ecdsa-sha2-nistp521-cert-v01@openssh.com",
        "rsa-sha2-512-cert-v01@openssh.com",
        "rsa-sha2-256-cert-v01@openssh.com",
    ),
    get_certificate_algs(),
)
HOST_KEYS: Final = HOST_CERTIFICATES + SIGNATURES
