"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides, as PostgreSQL speaks them.

ScramClient proves the gate's password to a target and checks the target's own proof. ScramServer checks the
proof of a locally defined user against a verifier, in the text form of pg_authid.rolpassword; a user without a
verifier gets a mock of one (salt derived from the name, proof never right), so that nobody can tell by the
dialogue who exists. Pure: no I/O, no clock; randomness comes in through the nonce argument where a test wants it.

Channel binding is tls-server-end-point alone (RFC 5929 4.1), as in PostgreSQL. A certificate whose signature has
no hash of its own (Ed25519, Ed448) has no such binding: end_point() is None, and PLUS is neither offered nor used.

Left out: authorization identities (a=), the user name inside SCRAM (PostgreSQL takes it from the start-up and
so do both sides here; ours is empty as libpq's is), mandatory extensions (m=), SCRAM-SHA-1, other bindings.

Source: RFC 5802, RFC 7677, RFC 5929 4, RFC 4013; PostgreSQL 18 documentation 54.3.1 and 54.3.1.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from proxy.core.errors import PeerError, TargetPeerError, UserPeerError

MECHANISM: Final = "SCRAM-SHA-256"
MECHANISM_PLUS: Final = "SCRAM-SHA-256-PLUS"
BINDING: Final = "tls-server-end-point"

ITERATIONS: Final = 4096  # PostgreSQL's scram_iterations by default, and RFC 7677's least
# PostgreSQL lets an administrator choose any int; ten million cost about 2 to 6 s of one thread, less than a
# login may take, and sixteen times OWASP's advice of 600,000. A target that asks for more is not waited for.
ITERATIONS_LIMIT: Final = 10_000_000
SCRAM_MESSAGE_LIMIT: Final = 2_000  # libpq takes an authentication request for garbage above it, fe-connect.c
NONCE_LIMIT: Final = 512  # PostgreSQL's is 24 characters, each side; no RFC bound, so one that fits the message
SALT_LIMIT: Final = 256  # bytes; PostgreSQL's salts have 16
SALT_BYTES: Final = 16  # SCRAM_DEFAULT_SALT_LEN, PostgreSQL src/include/common/scram-common.h
NONCE_BYTES: Final = 18  # SCRAM_RAW_NONCE_LEN, the same
KEY_BYTES: Final = 32

_VERIFIER = re.compile(r"SCRAM-SHA-256\$([0-9]{1,10}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
_NONCE = re.compile(rb"[\x21-\x2b\x2d-\x7e]+")  # printable ASCII but the comma, RFC 5802 7


# -- what both sides share --------------------------------------------------------------------------------


def prepare(password: str) -> bytes:
    """Return the password's bytes after SASLprep; unchanged where SASLprep would refuse it, as PostgreSQL does.

    Pure ASCII passes as it is, control characters included. Source: RFC 4013; PostgreSQL docs 54.3.1; its
    src/common/saslprep.c for what happens to text that is not UTF-8 or holds what is prohibited.
    """
    raw = password.encode("utf-8", "surrogateescape")
    if password.isascii():
        return raw
    # U+200B is in both tables; PostgreSQL asks first whether it is a space.
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else "" if stringprep.in_table_b1(char) else char for char in password
    )
    normal = unicodedata.normalize("NFKC", mapped)
    if not normal or any(map(_prohibited, mapped)) or not _bidi(mapped):
        return raw
    return normal.encode("utf-8")


def _prohibited(char: str) -> bool:
    return stringprep.in_table_a1(char) or any(table(char) for table in _PROHIBITED)


_PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def _bidi(text: str) -> bool:
    """Tell whether right-to-left text follows RFC 3454 6: no left-to-right in it, and RandAL at both ends."""
    if not any(map(stringprep.in_table_d1, text)):
        return True
    if any(map(stringprep.in_table_d2, text)):
        return False
    return stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])


def end_point(certificate: bytes | None) -> bytes | None:
    """Return tls-server-end-point of a DER certificate, None where it has none.

    It is the certificate's hash by the hash of its own signature, SHA-256 in place of MD5 and SHA-1.
    Source: RFC 5929 4.1; Ed25519 has no hash (pgjdbc GHSA-j92g-9f8w-j867).
    """
    if certificate is None:
        return None
    try:
        algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return None
    if algorithm is None:
        return None
    name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name
    try:
        return hashlib.new(name.replace("sha3-", "sha3_"), certificate).digest()
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Verifier:
    """What proves a password without holding it."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return f"Verifier(iterations={self.iterations}, ***)"


def parse_verifier(text: str) -> Verifier:
    """Read ``SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>``. Raises ValueError, naming none of it."""
    found = _VERIFIER.fullmatch(text)
    if found is None:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    try:
        salt, stored, server = (base64.b64decode(part, validate=True) for part in found.groups()[1:])
    except binascii.Error:
        raise ValueError("not a SCRAM-SHA-256 verifier") from None
    iterations = int(found[1])
    sizes_fit = 0 < len(salt) <= SALT_LIMIT and len(stored) == len(server) == KEY_BYTES
    if not sizes_fit or not 1 <= iterations <= ITERATIONS_LIMIT:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    return Verifier(iterations, salt, stored, server)


def make_verifier(password: str, iterations: int = ITERATIONS, salt: bytes | None = None) -> str:
    """Return the verifier text of a password, with a random salt unless one is given."""
    if not ITERATIONS <= iterations <= ITERATIONS_LIMIT:
        raise ValueError(f"iterations must be {ITERATIONS} to {ITERATIONS_LIMIT}")
    salt = salt if salt is not None else secrets.token_bytes(SALT_BYTES)
    stored, server = _keys(prepare(password), salt, iterations)[1:]
    return f"{MECHANISM}${iterations}:{_b64(salt)}${_b64(stored)}:{_b64(server)}"


def _keys(password: bytes, salt: bytes, iterations: int) -> tuple[bytes, bytes, bytes]:
    """Return ClientKey, StoredKey and ServerKey (RFC 5802 3)."""
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, iterations)
    client = _mac(salted, b"Client Key")
    return client, hashlib.sha256(client).digest(), _mac(salted, b"Server Key")


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _xor(one: bytes, two: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, two, strict=True))


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def make_nonce() -> bytes:
    """Return a fresh nonce: base64, so printable and without a comma."""
    return base64.b64encode(secrets.token_bytes(NONCE_BYTES))


def _attributes(message: bytes, error: type[PeerError]) -> list[tuple[bytes, bytes]]:
    """Split a SCRAM message into its attributes (a=value, ...), in order. Raises error."""
    if len(message) > SCRAM_MESSAGE_LIMIT:
        raise error("a SCRAM message is too long", "08P01")
    found = []
    for piece in message.split(b","):
        if len(piece) < 2 or piece[1:2] != b"=" or not piece[:1].isalpha() or b"\0" in piece:
            raise error("a malformed SCRAM message", "08P01")
        found.append((piece[:1], piece[2:]))
    if found[0][0] == b"m":
        raise error("a SCRAM message demands an extension that is not supported", "0A000")
    return found


def _unbase64(data: bytes, limit: int, error: type[PeerError]) -> bytes:
    try:
        value = base64.b64decode(data, validate=True)
    except binascii.Error:
        raise error("a malformed SCRAM message", "08P01") from None
    if not 0 < len(value) <= limit:
        raise error("a malformed SCRAM message", "08P01")
    return value


def _check_nonce(nonce: bytes, error: type[PeerError]) -> None:
    if len(nonce) > NONCE_LIMIT or not _NONCE.fullmatch(nonce):
        raise error("a malformed SCRAM nonce", "08P01")


# -- the gate as a target's client ------------------------------------------------------------------------


class ScramClient:
    """One exchange with a target: first() -> final(challenge) -> verify(outcome).

    binding is the target's end_point() where PLUS is spoken, else None. binding_possible tells that the gate
    could have bound but the target did not offer it (flag y), which lets the target notice a stripped offer.
    All failures are TargetPeerError; none of their texts holds anything of the password or of the messages.
    """

    def __init__(
        self, password: str, *, binding: bytes | None = None, binding_possible: bool = False, nonce: bytes | None = None
    ) -> None:
        self._password = prepare(password)
        self._binding = binding or b""
        self._header = f"p={BINDING},,".encode() if binding else b"y,," if binding_possible else b"n,,"
        self._nonce = nonce or make_nonce()
        self._expected: bytes | None = None
        self.mechanism = MECHANISM_PLUS if binding else MECHANISM
        self.verified = False

    def first(self, user: str = "") -> bytes:
        """Return client-first-message. user is for RFC 7677's example only: PostgreSQL ignores it."""
        self._bare = b"n=" + user.encode() + b",r=" + self._nonce
        return self._header + self._bare

    def final(self, challenge: bytes) -> bytes:
        """Answer server-first-message with client-final-message. Costs up to ITERATIONS_LIMIT hashes: use a thread."""
        if self._expected is not None:
            raise TargetPeerError("the target sent a second SCRAM challenge")
        attributes = _attributes(challenge, TargetPeerError)
        if [name for name, _ in attributes[:3]] != [b"r", b"s", b"i"]:
            raise TargetPeerError("the target sent a malformed SCRAM message")
        nonce, salt_text, count = (value for _, value in attributes[:3])
        _check_nonce(nonce, TargetPeerError)
        # A nonce that adds nothing is a replay of ours (RFC 5802 5.1).
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise TargetPeerError("the target's SCRAM nonce does not continue the gateway's")
        if not count.isdigit() or not 1 <= len(count) <= 10 or not 1 <= int(count) <= ITERATIONS_LIMIT:
            raise TargetPeerError(f"the target's SCRAM iteration count is not within 1 to {ITERATIONS_LIMIT}")
        salt = _unbase64(salt_text, SALT_LIMIT, TargetPeerError)
        without_proof = b"c=" + base64.b64encode(self._header + self._binding) + b",r=" + nonce
        signed = self._bare + b"," + challenge + b"," + without_proof
        client_key, stored_key, server_key = _keys(self._password, salt, int(count))
        self._expected = _mac(server_key, signed)
        proof = _xor(client_key, _mac(stored_key, signed))
        return without_proof + b",p=" + base64.b64encode(proof)

    def verify(self, outcome: bytes) -> None:
        """Check server-final-message: the target has to prove that it knows the password too."""
        name, value = _attributes(outcome, TargetPeerError)[0]
        if name == b"e":
            raise TargetPeerError("the target refused the SCRAM exchange")
        if name != b"v" or self._expected is None:
            raise TargetPeerError("the target sent a malformed SCRAM message")
        if not hmac.compare_digest(_unbase64(value, KEY_BYTES, TargetPeerError), self._expected):
            raise TargetPeerError("the target does not know the password: its SCRAM signature is wrong")
        self.verified = True


# -- the gate as a user's server --------------------------------------------------------------------------


class ScramServer:
    """One exchange with a user: mechanisms -> begin(mechanism, first) -> finish(final).

    verifier is None for a user that does not exist or has none; mock_key (secret, constant over restarts) makes
    the salt that such a user is shown, so that it is the same at every try. certificate is the gate's own, in DER, of
    the TLS that the user is on; without it, or where it has no end_point(), PLUS is not offered.
    """

    def __init__(
        self,
        user: str,
        verifier: str | None,
        mock_key: bytes,
        *,
        certificate: bytes | None = None,
        mock_iterations: int = ITERATIONS,
        nonce: bytes | None = None,
    ) -> None:
        self._binding = end_point(certificate)
        self._nonce = nonce or make_nonce()
        self._state: Literal["begin", "finish", "done"] = "begin"
        mock = _mock(user, mock_key, mock_iterations)
        try:
            # What cannot be read proves nobody, and looks like a user who does not exist (PostgreSQL does the same).
            self._verifier = parse_verifier(verifier) if verifier is not None else mock
        except ValueError:
            self._verifier = mock
        self._doomed = self._verifier is mock

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """What to offer, best first."""
        return (MECHANISM_PLUS, MECHANISM) if self._binding is not None else (MECHANISM,)

    def begin(self, mechanism: str, first: bytes | None) -> bytes:
        """Answer client-first-message with server-first-message. Raises UserPeerError (08P01, 28000, 0A000)."""
        assert self._state == "begin", "begin() is called once"
        if mechanism not in self.mechanisms:
            raise UserPeerError("client selected an invalid SASL authentication mechanism", "08P01")
        if first is None or len(first) > SCRAM_MESSAGE_LIMIT:
            raise UserPeerError("malformed SCRAM message", "08P01")
        pieces = first.split(b",", 2)
        if len(pieces) != 3:
            raise UserPeerError("malformed SCRAM message", "08P01")
        flag, authzid, self._bare = pieces
        self._check_flag(mechanism, flag)
        if authzid:
            raise UserPeerError("client uses authorization identity, but it is not supported", "0A000")
        attributes = _attributes(self._bare, UserPeerError)
        if [name for name, _ in attributes[:2]] != [b"n", b"r"]:
            raise UserPeerError("malformed SCRAM message", "08P01")
        _check_nonce(attributes[1][1], UserPeerError)
        self._header = flag + b",,"
        self._nonce = attributes[1][1] + self._nonce
        known = self._verifier
        self._challenge = b"r=" + self._nonce + f",s={_b64(known.salt)},i={known.iterations}".encode()
        self._state = "finish"
        return self._challenge

    def _check_flag(self, mechanism: str, flag: bytes) -> None:
        """Check the GS2 flag against the mechanism (RFC 5802 6): p with PLUS only, y only where it was not offered."""
        if (flag[:2] == b"p=") != (mechanism == MECHANISM_PLUS) or flag[:1] not in (b"n", b"y", b"p"):
            raise UserPeerError("malformed SCRAM message: wrong channel-binding flag", "08P01")
        if flag[:1] == b"p":
            if flag != f"p={BINDING}".encode():
                raise UserPeerError("unsupported SCRAM channel-binding type", "08P01")
        elif len(flag) != 1:
            raise UserPeerError("malformed SCRAM message", "08P01")
        elif flag == b"y" and self._binding is not None:
            # The user did not see our offer of PLUS: somebody between took it away.
            raise UserPeerError("SCRAM channel binding negotiation error", "28000")

    def finish(self, final: bytes) -> bytes | None:
        """Return server-final-message, or None where the proof is wrong (or the user does not exist).

        Raises UserPeerError: 08P01 for what is malformed, 28000 for a binding to another certificate.
        """
        assert self._state == "finish", "finish() follows begin(), once"
        self._state = "done"
        without_proof, comma, proof_text = final.rpartition(b",p=")
        attributes = _attributes(without_proof, UserPeerError)
        if not comma or [name for name, _ in attributes[:2]] != [b"c", b"r"]:
            raise UserPeerError("malformed SCRAM message", "08P01")
        plus = self._header[:1] == b"p"
        bound = self._header + (self._binding or b"" if plus else b"")
        if not hmac.compare_digest(attributes[0][1], base64.b64encode(bound)):
            if plus:
                raise UserPeerError("SCRAM channel binding check failed", "28000")
            raise UserPeerError("unexpected SCRAM channel-binding attribute in client-final-message", "08P01")
        if not hmac.compare_digest(attributes[1][1], self._nonce):
            raise UserPeerError("invalid SCRAM response: nonce does not match", "08P01")
        proof = _unbase64(proof_text, KEY_BYTES, UserPeerError)
        if len(proof) != KEY_BYTES:
            raise UserPeerError("malformed SCRAM message", "08P01")
        signed = self._bare + b"," + self._challenge + b"," + without_proof
        client_key = _xor(proof, _mac(self._verifier.stored_key, signed))
        right = hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key)
        if not right or self._doomed:
            return None
        return b"v=" + base64.b64encode(_mac(self._verifier.server_key, signed))


def _mock(user: str, mock_key: bytes, iterations: int) -> Verifier:
    """Return a verifier that nothing proves, with a salt that stays the same for this name."""
    salt = _mac(mock_key, user.encode("utf-8", "surrogateescape"))[:SALT_BYTES]
    return Verifier(iterations, salt, secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES))
