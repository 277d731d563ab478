"""The token endpoint: a user's own proof (an OIDC token, a gateway token) for an access token of the gate's.

google-auth posts a form to token_url (RFC 8693), gets a bearer token and sends that with every request, over REST and
gRPC alike; so the token says who calls and which target is meant. It is sealed, not stored: AES-256-GCM under a key of
the state directory around identity, target and end, so that every worker can read it, a restart ends none, and nothing
of it can be read or changed by its bearer. It lives an hour at most and never longer than the proof. Whoever reads one
asks Identities.valid() as well: the proof that is named in it may have been revoked.

    gca_ | base64url( key id, 4 bytes | nonce, 12 | AES-256-GCM( zlib( JSON )), additional data: all before it )

Left out: refresh tokens, client authentication, actor tokens (the chain of agents is in the proof), scopes: rules say
what a caller may do. A gateway's own access token buys no other.
Source: RFC 8693 2.1 and 2.2, RFC 6749 3.1, 3.2 and 5.2, RFC 8707 2 (invalid_target); NIST SP 800-38D 8.3 (one key, at
most 2^32 random nonces); BigQuery note 2.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.bigquery.errors import token_error
from proxy.core.errors import GatecastError
from proxy.core.parties import Identity, Secret

PREFIX: Final = "gca_"
KEY_BYTES: Final = 32
BODY_LIMIT: Final = 128 * 1024  # a proof of 64 KiB (proxy/identity/proof.py), percent-encoded in part, and the rest
FIELDS_LIMIT: Final = 32  # RFC 8693 knows eleven
SUBJECT_LIMIT: Final = 65_535  # PROOF_LIMIT of proxy/identity/proof.py
# gRPC refuses a call whose metadata is over 8 KiB (GRPC_ARG_MAX_METADATA_SIZE); the rest of it takes about 1 KiB.
TOKEN_LIMIT: Final = 6 * 1024
LIFE_SECONDS: Final = 3600.0  # as Google's own access tokens

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  # a type's name
SUBJECT_TYPES: Final = frozenset({
    "urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token", ACCESS_TOKEN,
})  # fmt: skip
_AUDIENCE: Final = re.compile(r"//gatecast/([A-Za-z0-9][A-Za-z0-9._-]{0,252})")
_SHAPE: Final = re.compile(r"gca_[A-Za-z0-9_-]{43,}")
_HEAD_BYTES: Final = 4 + 12

ErrorCode = Literal["invalid_request", "unsupported_grant_type", "invalid_target"]


class StsError(GatecastError):
    """The exchange fails; text is what google-auth prints. Always HTTP 400: RFC 6749 5.2."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is asked for: a token for a target, by this proof."""

    proof: Secret
    target: str


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whose a token is, and for what. expires_at: the token's own end; the identity's is the proof's."""

    identity: Identity
    target: str
    expires_at: float


def read_exchange(content_type: str, body: bytes) -> Exchange:
    """Read the form of a request. Raises StsError; no text of it holds a piece of the proof."""
    if content_type.split(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise StsError("invalid_request", "a token request is a form (application/x-www-form-urlencoded)")
    form = _form(body)
    if form.get("grant_type") != GRANT:
        code: ErrorCode = "unsupported_grant_type" if form.get("grant_type") else "invalid_request"
        raise StsError(code, f"grant_type is {GRANT}")
    if form.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
        raise StsError("invalid_request", f"requested_token_type is {ACCESS_TOKEN}")
    if "actor_token" in form or "actor_token_type" in form:
        raise StsError("invalid_request", "an actor token is not taken; agents are named in the subject token")
    if form.get("subject_token_type") not in SUBJECT_TYPES:
        raise StsError("invalid_request", "subject_token_type is one of jwt, id_token and access_token")
    # Python and node send the file as it is, with the newline that an editor has put at its end.
    proof = form.get("subject_token", "").strip("\r\n\t ")
    if not proof or len(proof) > SUBJECT_LIMIT:
        raise StsError("invalid_request", "a subject_token is needed" if not proof else "the subject_token is too long")
    if looks_like_token(proof):
        raise refused()
    if "resource" in form:
        raise StsError("invalid_target", "name the target in audience, not in resource")
    found = _AUDIENCE.fullmatch(form.get("audience", ""))
    if found is None:
        raise StsError("invalid_target", "the audience is //gatecast/<target>")
    return Exchange(Secret(proof), found[1])


def refused() -> StsError:
    """What a proof that does not hold gets, whatever is wrong with it. Source: RFC 8693 2.2.2."""
    return StsError("invalid_request", "gatecast: the login was refused; is the subject token still good?")


def no_target() -> StsError:
    """What a caller gets who names a target that is not there, is no BigQuery, or is not theirs."""
    return StsError("invalid_target", "gatecast: there is no such target for this login")


def error_answer(error: StsError) -> tuple[int, bytes]:
    """Return status and document of a failure."""
    return token_error(error.code, error.text)


def answer(token: Secret, seconds: int) -> bytes:
    """Return the document of a success; it goes out with Cache-Control: no-store (RFC 6749 5.1), and on no tape."""
    document = {
        "access_token": token.reveal(),
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": seconds,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def looks_like_token(text: str) -> bool:
    """Whether this has the shape of a token of ours; it proves nothing."""
    return text.startswith(PREFIX)


class Seal:
    """Makes tokens, and reads them. keys: 32 bytes each; the first makes new ones, all are read (for a new key)."""

    def __init__(self, keys: Sequence[bytes], life_seconds: float = LIFE_SECONDS) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"a key of {KEY_BYTES} bytes is needed")
        self._life_seconds = life_seconds
        self._keys = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0])

    def make(self, identity: Identity, target: str, now: float) -> tuple[Secret, int]:
        """Return a token and for how many whole seconds it holds. Raises StsError."""
        end = now + self._life_seconds
        if identity.expires_at is not None:
            end = min(end, identity.expires_at)
        seconds = math.floor(end - now)
        if seconds < 1:
            raise refused()
        content = json.dumps(
            [
                target,
                end,
                identity.subject,
                identity.issuer,
                identity.agents,
                sorted(identity.groups),
                identity.proof,
                identity.expires_at,
            ],
            separators=(",", ":"),
        )
        # Compressed: the groups of one directory share most of their names, and the whole must fit into a header.
        head = self._first + secrets.token_bytes(_HEAD_BYTES - len(self._first))
        sealed = self._keys[self._first].encrypt(head[4:], zlib.compress(content.encode()), head)
        token = PREFIX + base64.urlsafe_b64encode(head + sealed).decode().rstrip("=")
        if len(token) > TOKEN_LIMIT:
            raise StsError("invalid_request", "gatecast: the login has too many groups for an access token")
        return Secret(token), seconds

    def read(self, token: str, now: float) -> Bearer | None:
        """Return whose token it is; None if it is not one of ours, was changed, or is over. Never raises."""
        if len(token) > TOKEN_LIMIT or not _SHAPE.fullmatch(token):
            return None
        text = token[len(PREFIX) :]
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) % 4 != 1 else b""
        key = self._keys.get(data[:4])
        if key is None:
            return None
        head = data[:_HEAD_BYTES]
        try:
            content = key.decrypt(head[4:], data[_HEAD_BYTES:], head)
        except (InvalidTag, ValueError):
            return None
        # Nobody else can have made it, so what is in it needs no second look.
        target, end, subject, issuer, agents, groups, proof, expires_at = json.loads(zlib.decompress(content))
        if now >= end:
            return None
        return Bearer(Identity(subject, frozenset(groups), tuple(agents), issuer, proof, expires_at), target, end)


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"gatecast sts key id" + key).digest()[:4]


def _form(body: bytes) -> dict[str, str]:
    """Return the fields that have a value; one that comes twice is an error (RFC 6749 3.2)."""
    if len(body) > BODY_LIMIT:
        raise StsError("invalid_request", "the request is too long")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_LIMIT)
    except ValueError:  # UnicodeDecodeError is one too; the text of either could quote the proof
        pairs = None
    if pairs is None:
        raise StsError("invalid_request", "the form cannot be read")
    form = dict(pairs)
    if len(form) != len(pairs):
        raise StsError("invalid_request", "a field comes twice")
    return {name: value for name, value in form.items() if value}
