"""Access tokens of Google Cloud, against a stand-in of its token endpoint and of the metadata server, on loopback.

The stand-in checks the assertion (RFC 7523) with the public key of the account, as Google does; what Google itself
would answer to a real account is not tested here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from structlog.testing import capture_logs

from proxy.core.errors import TargetPeerError
from proxy.core.parties import Identity, Target
from proxy.credentials.gcp import EARLY_SECONDS, KEY_LIMIT_BYTES, SCOPES, GcpSource, GcpTokens
from proxy.credentials.renewal import Unusable
from proxy.credentials.static import StaticCredential, StaticCredentials

CANARY = "canary-gcp-c4fe"
EMAIL = "gate@project.iam.gserviceaccount.com"
ROOT = Path(__file__).parents[1]


@dataclass
class Endpoint:
    """What the stand-in answers, and what it was asked."""

    url: str
    status: int = 200
    answer: bytes = b""
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def grants(self, token: str, seconds: int = 3600) -> None:
        self.status = 200
        # The metadata server has another document of the account itself; one that says both serves for either.
        said = {"access_token": token, "expires_in": seconds, "token_type": "Bearer", "email": EMAIL, "scopes": []}
        self.answer = json.dumps(said).encode()

    def refuses(self, status: int, answer: object) -> None:
        self.status, self.answer = status, json.dumps(answer).encode()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            made.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(made.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Length", str(len(made.answer)))
            self.end_headers()
            self.wfile.write(made.answer)

        do_GET = do_POST = _serve

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Endpoint(f"http://127.0.0.1:{server.server_port}/token")
    made.grants(CANARY)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey) -> str:
    made = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.decode()


def key_file(folder: Path, key: rsa.RSAPrivateKey, url: str, **changes: object) -> Path:
    path = folder / "sa.json"
    document = {
        "type": "service_account", "project_id": "project", "private_key_id": "1", "private_key": pem(key),
        "client_email": EMAIL, "token_uri": url, **changes,
    }  # fmt: skip
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def unusable(source: GcpSource, private: str = CANARY) -> str:
    with capture_logs() as logs, pytest.raises(Unusable) as caught:
        GcpTokens(source).fetch()
    everything = "".join(traceback.format_exception(caught.value)) + repr(logs)
    assert CANARY not in everything
    assert private not in everything
    return str(caught.value)


def test_an_account_s_key_gets_a_token(tmp_path: Path, key: rsa.RSAPrivateKey, endpoint: Endpoint) -> None:
    fetched = GcpTokens(GcpSource(key_file(tmp_path, key, endpoint.url))).fetch()
    found = fetched.credential
    assert found.secret is not None
    assert (found.secret.reveal(), found.user) == (CANARY, EMAIL)
    assert CANARY not in repr(fetched)
    assert found.expires_at is not None
    assert 0 < found.expires_at - fetched.hard < found.expires_at - fetched.soft == EARLY_SECONDS
    [(path, _, body)] = endpoint.asked
    asked = parse_qs(body.decode())
    assert (path, asked["grant_type"]) == ("/token", ["urn:ietf:params:oauth:grant-type:jwt-bearer"])
    head, claims, signature = asked["assertion"][0].split(".")
    key.public_key().verify(decoded(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
    said = json.loads(decoded(claims))
    assert (said["iss"], said["scope"].split()) == (EMAIL, list(SCOPES))


def test_the_service_keeps_a_token_and_fetches_the_next_beside_the_old(
    tmp_path: Path, key: rsa.RSAPrivateKey, endpoint: Endpoint
) -> None:
    import time

    clock = [time.time()]
    source = StaticCredential("", per_request=True, gcp=GcpSource(key_file(tmp_path, key, endpoint.url)))
    credentials = StaticCredentials({"gke": source}, {}, lambda: clock[0])
    target, ana = Target("gke", "kubernetes"), Identity("ana")

    async def token() -> str:
        found = await credentials.get(ana, target)
        assert found.secret is not None
        return found.secret.reveal()

    async def body() -> None:
        assert [await token() for _ in range(5)] == [CANARY] * 5
        assert len(endpoint.asked) == 1
        endpoint.grants("next")
        clock[0] += 3600 - EARLY_SECONDS + 5
        assert await token() == CANARY  # which holds a while yet
        running = credentials._renewed["gke"]._running
        assert running is not None
        await asyncio.wait({running})
        assert await token() == "next"
        endpoint.refuses(400, {"error": "invalid_grant", "error_description": f"{CANARY} is revoked"})
        clock[0] += 2 * 3600
        with capture_logs() as logs, pytest.raises(TargetPeerError) as caught:
            await token()
        assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(logs)
        assert logs[-1]["why"].endswith("sa.json: the token endpoint refuses it (invalid_grant)")

    asyncio.run(body())


def test_an_endpoint_that_fails_is_told_without_its_words(
    tmp_path: Path, key: rsa.RSAPrivateKey, endpoint: Endpoint
) -> None:
    source = GcpSource(key_file(tmp_path, key, endpoint.url))
    private = pem(key).splitlines()[1]
    endpoint.refuses(401, {"error": CANARY, "error_description": CANARY})
    assert unusable(source, private).endswith("the token endpoint refuses it")
    endpoint.refuses(400, {"error": "invalid_scope"})
    assert unusable(source, private).endswith("the token endpoint refuses it (invalid_scope)")
    endpoint.status, endpoint.answer = 403, CANARY.encode()
    assert unusable(source, private).endswith("the token endpoint refuses it")
    endpoint.status, endpoint.answer = 200, json.dumps({"id_token": CANARY}).encode()
    assert "sa.json" in unusable(source, private)


def test_an_endpoint_that_is_not_there(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/token"
        assert unusable(GcpSource(key_file(tmp_path, key, url))).endswith("the token endpoint cannot be reached")


def test_files_that_are_no_key(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    path = tmp_path / "sa.json"
    for text in (CANARY, "{}", "[]", "", json.dumps({"type": "authorized_user", "refresh_token": CANARY})):
        path.write_text(text)
        assert unusable(GcpSource(path)) == f"{path}: is no key file of a service account (JSON)"
    path.write_text(" " * (KEY_LIMIT_BYTES + 1))
    assert "is no key file" in unusable(GcpSource(path))
    for changes in ({"private_key": CANARY}, {"client_email": None}, {"token_uri": None}, {"private_key": 3}):
        made = key_file(tmp_path, key, "http://127.0.0.1:1/", **changes)
        assert str(made) in unusable(GcpSource(made), pem(key).splitlines()[1])
    path.unlink()
    assert unusable(GcpSource(path)) == f"{path}: cannot be read: No such file or directory"


def test_the_machine_s_own_account(endpoint: Endpoint) -> None:
    """In a process of its own, as google-auth learns once where the metadata server is."""
    program = (
        "from proxy.credentials.gcp import GcpSource, GcpTokens\n"
        "found = GcpTokens(GcpSource()).fetch().credential\n"
        "print(found.secret.reveal())"
    )
    place = endpoint.url.removeprefix("http://").removesuffix("/token")
    environment = {
        **os.environ, "GCE_METADATA_HOST": place, "GCE_METADATA_ROOT": place, "GCE_METADATA_IP": place,
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, CANARY), done.stderr
    tokens = [headers for path, headers, _ in endpoint.asked if "/service-accounts/" in path and "token" in path]
    assert tokens
    assert all(headers["metadata-flavor"] == "Google" for headers in tokens)
