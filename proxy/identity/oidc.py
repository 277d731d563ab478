"""OIDC: a JWT of a configured issuer becomes an Identity, or is refused with a reason that only the log sees.

Order of the checks: size and shape, header (algorithm from the allow-list, typ, no crit), signature by a key of
the issuer, then the claims: iss, aud, exp, nbf, iat; last the names. Keys never come from the token itself (jwk,
jku and x5c in a header are ignored). Every audience must be ours or one that the operator trusts: a token made
for several services can be played to us by any of them.

agents: the ``act`` chain (RFC 8693 4.1), whose outermost entry is the current actor, so it is turned around:
nearest last. Where the operator says that azp or client_id name agents, that client stands behind the chain.

Left out: encrypted tokens, opaque tokens (introspection), sender-constrained ones (``cnf``: we cannot check the
binding here, so they are refused rather than taken for bearer tokens), the nonce (we start no login).

Specifications: RFC 7519 (JWT), RFC 7515 (JWS) 4.1, RFC 8725 (best current practices), RFC 9068 (at+jwt),
OpenID Connect Core 1.0 section 3.1.3.7.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwa import JWSAlgModel
from joserfc.jwt import JWTClaimsRegistry

from proxy.core.errors import ConfigError
from proxy.core.parties import Identity
from proxy.identity import keys
from proxy.identity.proof import (
    AGENTS_LIMIT,
    PROOF_LIMIT,
    ProofRefused,
    check_agents,
    check_groups,
    check_subject,
    fingerprint,
)

DEFAULT_ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
DEFAULT_LEEWAY_SECONDS: Final = 60.0
LEEWAY_LIMIT_SECONDS: Final = 300.0  # RFC 7519 4.1.4: usually no more than a few minutes
# A header with a certificate thumbprint has 200 bytes; chains of certificates in it are of no use to us.
HEADER_LIMIT: Final = 4096
# A signature of 8192 bits in base64.
SIGNATURE_LIMIT: Final = 1368
# RFC 8725 3.11: a token made for something else (logout+jwt, dpop+jwt, secevent+jwt) is no login.
TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/jwt", "application/at+jwt"})
TIME_LIMIT: Final = 1e12  # seconds since the epoch: far beyond any date, and a float


@dataclass(frozen=True, slots=True)
class Issuer:
    """A configured issuer. A claim is a top-level name, or a path with dots (realm_access.roles).

    trusted_audiences may stand beside ours in aud. agent_claims (azp, client_id) name a client that acts as an
    agent, unless it is one of people_clients.
    """

    issuer: str
    audiences: tuple[str, ...]
    jwks_file: Path | None = None
    jwks_uri: str | None = None
    ca_file: Path | None = None
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    subject_claim: str = "sub"
    groups_claims: tuple[str, ...] = ("groups",)
    agent_claims: tuple[str, ...] = ()
    people_clients: frozenset[str] = frozenset()
    trusted_audiences: tuple[str, ...] = ()
    leeway_seconds: float = DEFAULT_LEEWAY_SECONDS

    def __post_init__(self) -> None:
        if not self.issuer or not self.audiences or not all(self.audiences):
            raise ConfigError("an OIDC issuer needs its URL and at least one audience")
        if not self.algorithms or not set(self.algorithms) <= set(keys.ALGORITHMS):
            raise ConfigError(f"OIDC algorithms are {', '.join(keys.ALGORITHMS)}")
        if not 0 <= self.leeway_seconds <= LEEWAY_LIMIT_SECONDS:
            raise ConfigError(f"the leeway of an OIDC issuer is at most {LEEWAY_LIMIT_SECONDS:g} seconds")
        for url in (self.jwks_uri,) if self.jwks_uri else () if self.jwks_file else (self.issuer,):
            if not keys.is_safe_url(url):
                raise ConfigError("an OIDC issuer is reached by https, or by http on this machine")


class _Registry(jws.JWSRegistry):
    """joserfc's algorithms with our limits, and without its warning that EdDSA has a new name (RFC 9864)."""

    max_header_length = HEADER_LIMIT
    max_payload_length = PROOF_LIMIT
    max_signature_length = SIGNATURE_LIMIT

    def get_alg(self, name: str) -> JWSAlgModel:
        if not self.allowed or name not in self.allowed or name not in keys.ALGORITHMS:
            raise UnsupportedAlgorithmError("not allowed")
        return self.algorithms[name]


class Verifier:
    """Checks the tokens of one issuer."""

    def __init__(
        self,
        issuer: Issuer,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._clock = clock
        self._keys = _keys_of(issuer, monotonic)
        self._registry = _Registry(algorithms=issuer.algorithms, strict_check_header=False)

    async def check(self, token: str) -> Identity:
        """Return the identity that a token proves. Raises ProofRefused."""
        proof = fingerprint(token)
        claims = _parse(await self._verify(token.encode()))
        self._check_claims(claims)
        if "cnf" in claims:
            raise ProofRefused("sender-constrained", "cnf")
        return Identity(
            subject=self._subject(claims),
            groups=check_groups(self._groups(claims)),
            agents=self._agents(claims),
            issuer=self.issuer.issuer,
            proof=proof,
            # The same leeway as at the door, or a session could be over the moment it begins.
            expires_at=min(claims["exp"], TIME_LIMIT) + self.issuer.leeway_seconds,
        )

    async def _verify(self, token: bytes) -> bytes:
        """Return the payload of a token whose signature is right."""
        try:
            parts = jws.extract_compact(token, registry=self._registry)
            header: object = parts.headers()
            if not isinstance(header, dict):
                raise ProofRefused("malformed-jwt", "header")
            self._check_header(header)
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ProofRefused("malformed-jwt", type(error).__name__) from error
        found = await self._keys.find(header.get("kid"), header["alg"])
        if not found:
            raise ProofRefused("unknown-key")
        for key in found:
            try:
                if jws.validate_compact(parts, key.key, registry=self._registry):
                    return parts.payload
            except (JoseError, ValueError, TypeError) as error:
                raise ProofRefused("bad-signature", type(error).__name__) from error
        raise ProofRefused("bad-signature")

    def _check_header(self, header: Mapping[str, Any]) -> None:
        if header.get("alg") not in self.issuer.algorithms:
            raise ProofRefused("algorithm", "not allowed")
        if "crit" in header or "b64" in header:
            raise ProofRefused("malformed-jwt", "crit")
        kind = header.get("typ", "")
        if not isinstance(kind, str) or kind.lower() not in TYPES:
            raise ProofRefused("type")
        if not isinstance(header.get("kid"), str | None):
            raise ProofRefused("malformed-jwt", "kid")

    def _check_claims(self, claims: dict[str, Any]) -> None:
        issuer = self.issuer
        registry = JWTClaimsRegistry(
            now=int(self._clock()),
            leeway=int(issuer.leeway_seconds),
            iss={"essential": True, "value": issuer.issuer},
            aud={"essential": True, "values": list(issuer.audiences)},
            exp={"essential": True},
        )
        try:
            registry.validate(claims)
        except JoseError as error:
            raise ProofRefused(error.error, error.description) from error
        audiences = {claims["aud"]} if isinstance(claims["aud"], str) else set(claims["aud"])
        if not audiences <= {*issuer.audiences, *issuer.trusted_audiences}:
            raise ProofRefused("invalid_claim", "an audience that is not trusted")

    def _subject(self, claims: Mapping[str, Any]) -> str:
        # An address that its owner never confirmed is a claim of the user, not of the issuer.
        if self.issuer.subject_claim == "email" and claims.get("email_verified", True) not in (True, "true"):
            raise ProofRefused("unverified-email")
        return check_subject(_claim(claims, self.issuer.subject_claim))

    def _groups(self, claims: Mapping[str, Any]) -> Iterable[object]:
        for path in self.issuer.groups_claims:
            value = _claim(claims, path)
            match value:
                case None:
                    continue
                case str():
                    yield value
                case list():
                    yield from value
                case _:
                    raise ProofRefused("bad-group", "neither a list nor a name")

    def _agents(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        chain: list[object] = []
        actor = claims.get("act")
        while actor is not None:
            if not isinstance(actor, dict) or len(chain) == AGENTS_LIMIT:
                raise ProofRefused("bad-agent", "act")
            chain.insert(0, actor.get("sub"))
            actor = actor.get("act")
        for name in self.issuer.agent_claims:
            client = _claim(claims, name)
            if client is None or client in chain or client == _claim(claims, self.issuer.subject_claim):
                continue
            if not isinstance(client, str) or client not in self.issuer.people_clients:
                chain.append(client)  # what is no name at all, check_agents refuses
        return check_agents(chain)


def looks_like_jwt(text: str) -> bool:
    """Tell a compact JWS from any other proof: three parts, the first a JSON object in base64url."""
    return text.startswith("eyJ") and text.count(".") == 2


def peek_issuer(token: str) -> str:
    """Return the issuer that a token names, before anything is checked: only to choose who checks it."""
    try:
        part = token.split(".")[1]
        claims = _parse(base64.b64decode(part.encode("ascii") + b"=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except (IndexError, UnicodeEncodeError, binascii.Error) as error:
        raise ProofRefused("malformed-jwt", "payload") from error
    issuer = claims.get("iss")
    if not isinstance(issuer, str):
        raise ProofRefused("unknown-issuer")
    return issuer


def _keys_of(issuer: Issuer, monotonic: Callable[[], float]) -> keys.Keys:
    if issuer.jwks_file is not None:
        return keys.Keys(
            issuer.issuer,
            keys.by_file(issuer.jwks_file),
            fresh_seconds=keys.FILE_FRESH_SECONDS,
            refresh_seconds=keys.FILE_FRESH_SECONDS,
            monotonic=monotonic,
        )
    load = (
        keys.by_url(issuer.jwks_uri, issuer.ca_file)
        if issuer.jwks_uri is not None
        else keys.by_discovery(issuer.issuer, issuer.ca_file)
    )
    return keys.Keys(issuer.issuer, load, monotonic=monotonic)


def _parse(payload: bytes) -> dict[str, Any]:
    """Read claims strictly: one object, no name twice (RFC 7519 4), no NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a name twice")
        return value

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        claims = json.loads(payload, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise ProofRefused("malformed-jwt", "payload") from error
    if not isinstance(claims, dict):
        raise ProofRefused("malformed-jwt", "payload")
    return claims


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim by its name (which may itself have dots, as URLs do) or by its path; None if there is none."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value
