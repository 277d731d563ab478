"""Shared by tests: a store in a temporary directory, a clock that tests move, and JWTs of a make-believe issuer."""

from __future__ import annotations

import contextlib
import json
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from joserfc import jwk, jws
from joserfc.errors import SecurityWarning

from proxy.store.database import Database


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """Open a store for the length of a with statement."""
    database = Database(path).open()
    try:
        yield database
    finally:
        database.close()


def make_key(kind: str = "RSA", kid: str | None = "k1", **parameters: str) -> jwk.Key:
    """Make a private key: RSA, EC (P-256) or OKP (Ed25519)."""
    more: Any = {**({} if kid is None else {"kid": kid}), **parameters}
    if kind == "RSA":
        return jwk.RSAKey.generate_key(2048, more)
    if kind == "EC":
        return jwk.ECKey.generate_key("P-256", more)
    return jwk.OKPKey.generate_key("Ed25519", more)


def public_set(*keys: jwk.Key) -> dict[str, Any]:
    """Return the key set that an issuer would publish."""
    return {"keys": [key.as_dict(private=False) for key in keys]}


def sign(claims: dict[str, Any] | bytes, key: jwk.Key, algorithm: str = "RS256", **header: Any) -> str:
    """Sign a JWT; claims as bytes are signed as they are."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    head = {"alg": algorithm, **({"kid": key.kid} if key.kid else {}), **header}
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # that EdDSA has a new name
        return jws.serialize_compact({k: v for k, v in head.items() if v is not None}, payload, key, registry=registry)


@dataclass
class FakeIssuer:
    """An issuer's discovery document and keys over HTTP on this machine; counts what is asked."""

    url: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    status: int = 200
    location: str | None = None
    document: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def fake_issuer(*keys: jwk.Key, tls: ssl.SSLContext | None = None) -> Iterator[FakeIssuer]:
    """Run an issuer on a free port, in the clear or in TLS."""
    issuer = FakeIssuer(keys=public_set(*keys))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            if self.path == "/.well-known/openid-configuration":
                body = json.dumps({"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks", **issuer.document}).encode()
                status = 200
            else:
                body = json.dumps(issuer.keys).encode() if issuer.body is None else issuer.body
                status = issuer.status
            self.send_response(status)
            if issuer.location is not None and self.path == "/jwks":
                self.send_header("Location", issuer.location)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader may have had enough
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # handshakes fail on purpose
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    issuer.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
