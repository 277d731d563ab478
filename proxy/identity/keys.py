"""The public keys of an issuer: found by discovery, by URL or in a file, cached, and refreshed within bounds.

A key set is loaded at first use and again when it is FRESH_SECONDS old, or when a token names a key that is not
in it (the issuer has rotated its keys). Neither a token nor a broken issuer can make us load more often than
every REFRESH_SECONDS; while the issuer cannot be reached, the old keys hold for STALE_LIMIT_SECONDS. Redirects
are not followed, and only https is spoken, except to this machine. Loading blocks, so a thread does it, one at
a time for each issuer.

Specifications: OpenID Connect Discovery 1.0 section 4; RFC 7517 (JWK) sections 4 and 5; RFC 8725 (JWT best
current practices) 3.1, 3.5.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import structlog
from joserfc import jwk
from joserfc.errors import JoseError

from proxy.core.errors import GatecastError

# The largest public key sets (Microsoft's, with certificates) are about 20 KiB.
DOCUMENT_LIMIT: Final = 256 * 1024
KEYS_LIMIT: Final = 64
FETCH_LIMIT_SECONDS: Final = 10.0
FRESH_SECONDS: Final = 600.0
REFRESH_SECONDS: Final = 10.0
STALE_LIMIT_SECONDS: Final = 24 * 3600.0
FILE_FRESH_SECONDS: Final = 1.0
# NIST SP 800-131A: 2048 bits at least; above 8192 a check costs milliseconds of the event loop.
RSA_BITS_MIN: Final = 2048
RSA_BITS_LIMIT: Final = 8192

# Algorithm -> (kty, crv). What is not here cannot be configured: above all none, and HS* (RFC 8725 2.1).
ALGORITHMS: Final[Mapping[str, tuple[str, str]]] = {
    **{f"{family}{bits}": ("RSA", "") for family in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),
}
_PUBLIC_MEMBERS: Final = ("kty", "n", "e", "crv", "x", "y")

log = structlog.get_logger(__name__)


class KeysError(GatecastError):
    """An issuer's keys could not be loaded; the text is for the log."""


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """One public key, and what its issuer says it is for."""

    id: str | None
    kind: tuple[str, str]
    algorithm: str | None
    key: jwk.Key

    def fits(self, kid: str | None, algorithm: str) -> bool:
        """Tell whether a token with this header may have been signed by this key."""
        if ALGORITHMS[algorithm] != self.kind or (kid is not None and kid != self.id):
            return False
        # RFC 9864 gave EdDSA with this curve a second name, so a key and a token may differ in it.
        return self.algorithm in (None, algorithm) or self.kind[0] == "OKP"


class Keys:
    """The cached keys of one issuer. load blocks and returns the bytes of a JWK set, or raises KeysError."""

    def __init__(
        self,
        name: str,
        load: Callable[[], bytes],
        *,
        fresh_seconds: float = FRESH_SECONDS,
        refresh_seconds: float = REFRESH_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._load = load
        self._fresh_seconds = fresh_seconds
        self._refresh_seconds = refresh_seconds
        self._monotonic = monotonic
        self._keys: tuple[VerifyKey, ...] = ()
        self._loaded_at: float | None = None
        self._tried_at: float | None = None
        self._running: asyncio.Future[bytes] | None = None
        self._lock = asyncio.Lock()

    async def find(self, kid: str | None, algorithm: str) -> list[VerifyKey]:
        """Return the keys that may have signed such a token; loads them if need be and if it is allowed to."""
        age = self._age()
        if age is None or age >= self._fresh_seconds:
            await self._refresh()
        found = self._match(kid, algorithm)
        if not found and await self._refresh():
            found = self._match(kid, algorithm)
        return found

    def _match(self, kid: str | None, algorithm: str) -> list[VerifyKey]:
        age = self._age()
        if age is None or age > STALE_LIMIT_SECONDS:
            return []
        return [key for key in self._keys if key.fits(kid, algorithm)]

    def _age(self) -> float | None:
        return None if self._loaded_at is None else self._monotonic() - self._loaded_at

    async def _refresh(self) -> bool:
        """Load the keys unless that was tried a moment ago; True if they are new for the caller."""
        asked_at = self._monotonic()
        async with self._lock:
            if self._tried_at is not None:
                if self._tried_at > asked_at:
                    return self._loaded_at is not None and self._loaded_at > asked_at  # another caller just did it
                if self._monotonic() - self._tried_at < self._refresh_seconds:
                    return False
            if self._running is not None and not self._running.done():
                return False  # a thread is stuck with a slow issuer; a second one would be, too
            try:
                keys = read_keys(await self._loaded())
            except (KeysError, TimeoutError) as error:
                self._tried_at = self._monotonic()
                log.warning("issuer-keys-failed", issuer=self._name, error=str(error) or "timed out")
                return False
            self._keys = keys
            self._tried_at = self._loaded_at = self._monotonic()
            log.info("issuer-keys-loaded", issuer=self._name, keys=len(keys))
            return True

    async def _loaded(self) -> bytes:
        self._running = asyncio.get_running_loop().run_in_executor(None, self._load)
        async with asyncio.timeout(FETCH_LIMIT_SECONDS):
            return await asyncio.shield(self._running)


def read_keys(document: bytes) -> tuple[VerifyKey, ...]:
    """Read a JWK set; keys that cannot check a signature of ours are left out. Raises KeysError."""
    entries = _read_object(document, "the key set").get("keys")
    if not isinstance(entries, list):
        raise KeysError("the key set has no list of keys")
    if len(entries) > KEYS_LIMIT:
        raise KeysError(f"the key set has more than {KEYS_LIMIT} keys")
    keys = [key for entry in entries if isinstance(entry, dict) and (key := _read_key(entry)) is not None]
    if not keys:
        raise KeysError("the key set has no key that can check a signature")
    return tuple(keys)


def _read_key(entry: dict[str, Any]) -> VerifyKey | None:
    # Only public members go on, so that a private key somebody published is not kept, and symmetric ones are out.
    members = {name: entry[name] for name in _PUBLIC_MEMBERS if isinstance(entry.get(name), str)}
    kind = (members.get("kty", ""), members.get("crv", ""))
    operations = entry.get("key_ops")
    if kind not in ALGORITHMS.values() or entry.get("use", "sig") != "sig":
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    if kind[0] == "RSA" and not RSA_BITS_MIN <= len(members.get("n", "").rstrip("=")) * 6 < RSA_BITS_LIMIT + 12:
        return None
    kid, algorithm = entry.get("kid"), entry.get("alg")
    try:
        key = jwk.import_key(cast("Any", members))
    except (JoseError, ValueError, TypeError, KeyError):
        return None  # one key that we cannot read must not lock out the users of the others
    return VerifyKey(
        kid if isinstance(kid, str) else None, kind, algorithm if isinstance(algorithm, str) else None, key
    )


def _read_object(document: bytes, what: str) -> dict[str, Any]:
    if len(document) > DOCUMENT_LIMIT:
        raise KeysError(f"{what} is larger than {DOCUMENT_LIMIT} bytes")
    try:
        value = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise KeysError(f"{what} is no JSON") from error
    if not isinstance(value, dict):
        raise KeysError(f"{what} is no JSON object")
    return value


# -- where keys come from (blocking) --------------------------------------------------------------------


def by_file(path: Path) -> Callable[[], bytes]:
    """Return a loader of a key set in a file."""

    def load() -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(DOCUMENT_LIMIT + 1)
        except OSError as error:
            raise KeysError(f"{path}: {error.strerror}") from error

    return load


def by_url(url: str, ca_file: Path | None = None) -> Callable[[], bytes]:
    """Return a loader of a key set at a URL."""
    return lambda: fetch(url, ca_file)


def by_discovery(issuer: str, ca_file: Path | None = None) -> Callable[[], bytes]:
    """Return a loader that asks the issuer's discovery document where its keys are."""

    def load() -> bytes:
        document = _read_object(
            fetch(issuer.rstrip("/") + "/.well-known/openid-configuration", ca_file), "the discovery document"
        )
        # OpenID Connect Discovery 4.3: exactly the issuer that we asked, or it is somebody else's document.
        if document.get("issuer") != issuer:
            raise KeysError("the discovery document is of another issuer")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str):
            raise KeysError("the discovery document has no jwks_uri")
        return fetch(uri, ca_file)

    return load


def is_safe_url(url: str) -> bool:
    """Tell whether a URL is https, or http to this very machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.username is not None or not host:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None  # urllib then raises HTTPError with the 3xx


def fetch(url: str, ca_file: Path | None = None) -> bytes:
    """GET a small JSON document; bounded in size and time. Raises KeysError."""
    if not is_safe_url(url):
        raise KeysError("an issuer is reached by https, or by http on this machine")
    deadline = time.monotonic() + FETCH_LIMIT_SECONDS
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if _is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    parts: list[bytes] = []
    size = 0
    try:
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file)))
        request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "gatecast"})  # noqa: S310
        with urllib.request.build_opener(*handlers).open(request, timeout=FETCH_LIMIT_SECONDS / 2) as answer:
            while data := answer.read1(64 * 1024):
                size += len(data)
                if size > DOCUMENT_LIMIT:
                    raise KeysError(f"{url} is larger than {DOCUMENT_LIMIT} bytes")
                if time.monotonic() > deadline:
                    raise KeysError(f"{url} took longer than {FETCH_LIMIT_SECONDS:g} s")
                parts.append(data)
    except urllib.error.HTTPError as error:
        error.close()
        raise KeysError(f"{url} answers {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:  # URLError and SSLError are OSErrors
        raise KeysError(f"{url}: {error}") from error
    return b"".join(parts)
