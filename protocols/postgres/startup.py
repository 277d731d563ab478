"""The messages of PostgreSQL's login: start-up packets, authentication, errors, and what precedes ReadyForQuery.

Pure functions between bytes and values, for both sides: serve.py reads the user's packets with them, dial.py
writes the gate's own. A body is what follows the length field (and, after the start-up, the type byte). Text is
UTF-8 with surrogateescape, so that names in any encoding go through unchanged.

Each decoder takes the error class to raise, for the one who sent the bytes is at fault: UserPeerError for what
users send, TargetPeerError for what targets send.

Left out: reading from a stream (serve.py, dial.py), the SCRAM texts inside SASL messages (scram.py), protocol 2,
and every message after the login (wire.py).

Source: PostgreSQL 18 documentation 54.2.1 (Start-up), 54.7 (Message Formats), 54.8 (Error and Notice Fields).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.core.errors import PeerError, TargetPeerError, UserPeerError

PROTOCOL_3_0: Final = 0x00030000
PROTOCOL_3_2: Final = 0x00030002
CANCEL_CODE: Final = 80877102  # 1234.5678, PostgreSQL src/include/libpq/pqcomm.h
SSL_CODE: Final = 80877103  # 1234.5679
GSSENC_CODE: Final = 80877104  # 1234.5680

STARTUP_LIMIT: Final = 10_000  # bytes of a start-up packet's body: MAX_STARTUP_PACKET_LENGTH, pqcomm.h
PASSWORD_LIMIT: Final = 65_535  # PG_MAX_AUTH_TOKEN_LENGTH, PostgreSQL src/include/libpq/auth.h
SASL_LIMIT: Final = 65_535  # the same since PostgreSQL 18 (1024 before): bearer tokens travel in it
AUTH_LIMIT: Final = 2_000  # libpq takes an authentication request for garbage above it, fe-connect.c
LOGIN_MESSAGE_LIMIT: Final = 30_000  # MAX_ERRLEN in libpq's fe-connect.c; no message of a login is longer
SECRET_MIN_BYTES: Final = 4  # protocol 3.0: exactly this
SECRET_LIMIT: Final = 256  # protocol 3.2: MAX_CANCEL_KEY_LENGTH, PostgreSQL docs 54.7 BackendKeyData

AUTH_OK: Final = 0
AUTH_CLEARTEXT: Final = 3
AUTH_MD5: Final = 5
AUTH_GSS: Final = 7
AUTH_GSS_CONTINUE: Final = 8
AUTH_SSPI: Final = 9
AUTH_SASL: Final = 10
AUTH_SASL_CONTINUE: Final = 11
AUTH_SASL_FINAL: Final = 12

PROTOCOL_VIOLATION: Final = "08P01"
_OPTION_PREFIX: Final = "_pq_."

_INT: Final = struct.Struct("!I")
_TWO_INTS: Final = struct.Struct("!II")


# -- what opens a connection ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """The user asks for TLS; the answer is one byte, S or N."""


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """The user asks for GSSAPI encryption; the answer is one byte, G or N."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """The user asks, on a connection of its own, that a backend's statement be cancelled; it has no answer."""

    pid: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """Who wants what: parameters in the order they came, without the _pq_. options, which are listed by name."""

    version: int
    parameters: Mapping[str, str]
    unknown_protocol_options: tuple[str, ...] = ()


FirstMessage = SSLRequest | GSSENCRequest | CancelRequest | StartupMessage


def parse_first(body: bytes) -> FirstMessage:
    """Decode any packet that may open a connection. Raises UserPeerError."""
    if not _INT.size <= len(body) <= STARTUP_LIMIT:
        raise UserPeerError("invalid length of startup packet", PROTOCOL_VIOLATION)
    (code,) = _INT.unpack_from(body)
    if code == CANCEL_CODE:
        return parse_cancel(body)
    if code in (SSL_CODE, GSSENC_CODE):
        if len(body) != _INT.size:
            raise UserPeerError("invalid length of encryption request", PROTOCOL_VIOLATION)
        return SSLRequest() if code == SSL_CODE else GSSENCRequest()
    return parse_startup(body)


def parse_startup(body: bytes) -> StartupMessage:
    """Decode a StartupMessage: Int32 version, then name and value as strings, then one NUL as the last byte.

    Of a parameter that comes twice the last value counts, as in PostgreSQL. Raises UserPeerError: 0A000 for a
    major version other than 3, 08P01 for a layout PostgreSQL would not take.
    """
    if not _INT.size <= len(body) <= STARTUP_LIMIT:
        raise UserPeerError("invalid length of startup packet", PROTOCOL_VIOLATION)
    (version,) = _INT.unpack_from(body)
    if version >> 16 != 3:
        raise UserPeerError(
            f"unsupported frontend protocol {version >> 16}.{version & 0xFFFF}: server supports 3.0 to 3.2", "0A000"
        )
    if body[-1:] != b"\0" or len(body) == _INT.size:
        raise UserPeerError("invalid startup packet layout: expected terminator as last byte", PROTOCOL_VIOLATION)
    parameters: dict[str, str] = {}
    options: dict[str, None] = {}
    # Everything before the terminator is strings that each end in NUL, so a split leaves one empty piece behind
    # them; with no strings at all there is nothing to split.
    pieces = body[_INT.size : -1].split(b"\0")
    strings = pieces[:-1]
    if pieces[-1] or len(strings) % 2 or b"" in strings[::2]:
        raise UserPeerError("invalid startup packet layout: expected terminator as last byte", PROTOCOL_VIOLATION)
    for name, value in zip(strings[::2], strings[1::2], strict=True):
        text = _text(name)
        if text.startswith(_OPTION_PREFIX):
            options[text] = None
        else:
            parameters[text] = _text(value)
    return StartupMessage(version, parameters, tuple(options))


def parse_cancel(body: bytes) -> CancelRequest:
    """Decode a CancelRequest. Raises UserPeerError where the key is shorter than 4 or longer than 256 bytes."""
    secret = body[8:]
    if body[:4] != _INT.pack(CANCEL_CODE) or not SECRET_MIN_BYTES <= len(secret) <= SECRET_LIMIT:
        raise UserPeerError("invalid length of cancel request", PROTOCOL_VIOLATION)
    (pid,) = _INT.unpack_from(body, 4)
    return CancelRequest(pid, secret)


def encode_startup(parameters: Mapping[str, str], version: int = PROTOCOL_3_0) -> bytes:
    """Encode a StartupMessage, length included. Raises ValueError for a NUL, an empty name or over STARTUP_LIMIT."""
    body = bytearray(_INT.pack(version))
    for name, value in parameters.items():
        if not name:
            raise ValueError("a start-up parameter without a name")
        body += _string(name) + _string(value)
    body += b"\0"
    if len(body) > STARTUP_LIMIT:
        raise ValueError("the start-up parameters are too long")
    return _INT.pack(len(body) + 4) + bytes(body)


def encode_cancel(pid: int, secret: bytes) -> bytes:
    """Encode a CancelRequest, length included."""
    return _INT.pack(12 + len(secret)) + _TWO_INTS.pack(CANCEL_CODE, pid) + secret


def encode_ssl_request() -> bytes:
    """Encode an SSLRequest, length included."""
    return _TWO_INTS.pack(8, SSL_CODE)


def encode_gssenc_request() -> bytes:
    """Encode a GSSENCRequest, length included."""
    return _TWO_INTS.pack(8, GSSENC_CODE)


# -- authentication ---------------------------------------------------------------------------------------


def encode_auth(code: int, data: bytes = b"") -> bytes:
    """Encode an Authentication message ('R')."""
    return encode_message(b"R", _INT.pack(code) + data)


def encode_sasl_mechanisms(names: Sequence[str]) -> bytes:
    """Encode AuthenticationSASL with the mechanisms, best first."""
    return encode_auth(AUTH_SASL, b"".join(map(_string, names)) + b"\0")


def parse_auth(body: bytes, error: type[PeerError] = TargetPeerError) -> tuple[int, bytes]:
    """Return the code of an Authentication message and what follows it."""
    if len(body) < _INT.size:
        raise error("an authentication request without a code")
    return _INT.unpack_from(body)[0], body[_INT.size :]


def parse_sasl_mechanisms(data: bytes, error: type[PeerError] = TargetPeerError) -> tuple[str, ...]:
    """Return the mechanisms of AuthenticationSASL: strings that end in NUL, then one NUL."""
    names = data.split(b"\0")
    if len(names) < 2 or names[-2:] != [b"", b""]:
        raise error("a malformed list of SASL mechanisms")
    return tuple(_text(name) for name in names[:-2])


def encode_password(password: bytes) -> bytes:
    """Encode a PasswordMessage ('p'). Raises ValueError for a NUL inside."""
    if b"\0" in password:
        raise ValueError("a password with a NUL")
    return encode_message(b"p", password + b"\0")


def parse_password(body: bytes) -> bytes:
    """Return the password of a PasswordMessage: exactly one NUL, at the end. Raises UserPeerError."""
    if body.find(b"\0") != len(body) - 1 or not body:
        raise UserPeerError("invalid password packet size", PROTOCOL_VIOLATION)
    return body[:-1]


def encode_sasl_initial(mechanism: str, data: bytes | None) -> bytes:
    """Encode a SASLInitialResponse ('p'); None is no initial response at all (length -1)."""
    size = _INT.pack(0xFFFFFFFF if data is None else len(data))
    return encode_message(b"p", _string(mechanism) + size + (data or b""))


def parse_sasl_initial(body: bytes) -> tuple[str, bytes | None]:
    """Return the mechanism and the initial response of a SASLInitialResponse. Raises UserPeerError."""
    name, nul, rest = body.partition(b"\0")
    if not nul or len(rest) < _INT.size:
        raise UserPeerError("malformed SASL message", PROTOCOL_VIOLATION)
    (size,) = _INT.unpack_from(rest)
    data = rest[_INT.size :]
    if size == 0xFFFFFFFF and not data:
        return _text(name), None
    if size != len(data):
        raise UserPeerError("malformed SASL message", PROTOCOL_VIOLATION)
    return _text(name), data


def encode_sasl_response(data: bytes) -> bytes:
    """Encode a SASLResponse ('p'); its body is the mechanism's own bytes."""
    return encode_message(b"p", data)


# -- errors and what precedes ReadyForQuery ---------------------------------------------------------------


def error_fields(body: bytes, error: type[PeerError] = TargetPeerError) -> dict[str, str]:
    """Return the fields of an ErrorResponse or NoticeResponse by their one-letter keys, in the order they came.

    A field that comes twice has its last value, as in libpq; a missing SQLSTATE is the reader's to bear
    (pgbouncer CVE-2026-6666). Source: 54.8.
    """
    fields: dict[str, str] = {}
    position = 0
    while position < len(body) and body[position] != 0:
        end = body.find(b"\0", position + 1)
        if end < 0:
            raise error("a malformed error message", PROTOCOL_VIOLATION)
        # A key is one byte; latin-1 keeps each byte one character whatever it is.
        fields[body[position : position + 1].decode("latin-1")] = _text(body[position + 1 : end])
        position = end + 1
    if position != len(body) - 1:
        raise error("a malformed error message", PROTOCOL_VIOLATION)
    return fields


def encode_error(fields: Mapping[str, str], kind: bytes = b"E") -> bytes:
    """Encode an ErrorResponse ('E') or a NoticeResponse ('N') from fields by one-letter keys.

    A NUL in a value would end the field early, so it is written as U+FFFD, as is what UTF-8 cannot hold.
    """
    body = b"".join(key.encode("latin-1") + _free_text(value) + b"\0" for key, value in fields.items())
    return encode_message(kind, body + b"\0")


def encode_negotiate(version: int, options: Sequence[str]) -> bytes:
    """Encode NegotiateProtocolVersion ('v'): the full 32-bit version, then every unknown _pq_. option's name.

    Only for a user that asked for more than version or named options: libpq 18 rejects one that changes nothing.
    """
    return encode_message(b"v", _TWO_INTS.pack(version, len(options)) + b"".join(map(_string, options)))


def encode_parameter_status(name: str, value: str) -> bytes:
    """Encode a ParameterStatus ('S')."""
    return encode_message(b"S", _string(name) + _string(value))


def parse_parameter_status(body: bytes, error: type[PeerError] = TargetPeerError) -> tuple[str, str]:
    """Return the name and the value of a ParameterStatus."""
    strings = body.split(b"\0")
    if len(strings) != 3 or strings[2]:
        raise error("a malformed parameter status")
    return _text(strings[0]), _text(strings[1])


def encode_backend_key(pid: int, secret: bytes) -> bytes:
    """Encode a BackendKeyData ('K'); 4 bytes of secret in protocol 3.0, up to 256 in 3.2."""
    return encode_message(b"K", _INT.pack(pid) + secret)


def parse_backend_key(body: bytes, error: type[PeerError] = TargetPeerError) -> tuple[int, bytes]:
    """Return the process id (unsigned, so that its bytes survive) and the secret of a BackendKeyData."""
    if not _INT.size + SECRET_MIN_BYTES <= len(body) <= _INT.size + SECRET_LIMIT:
        raise error("a malformed cancel key")
    return _INT.unpack_from(body)[0], body[_INT.size :]


def encode_message(kind: bytes, body: bytes) -> bytes:
    """Encode a message: type byte, Int32 length that counts itself, body."""
    return kind + _INT.pack(len(body) + 4) + body


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("a NUL in a string of the protocol")
    return data + b"\0"


def _free_text(text: str) -> bytes:
    text = text.replace("\0", "\ufffd")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate out of a YAML or JSON escape: a reason must still reach its reader
        return text.encode("utf-8", "replace")
