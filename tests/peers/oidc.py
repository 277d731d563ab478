"""A real OpenID Provider as a peer: node-oidc-provider, certified by the OpenID Foundation, run by node.

It issues JWT access tokens (client credentials, RFC 9068) and ID tokens (authorization code with PKCE, with its
own login and consent pages, which log_in() fills in).
"""

from __future__ import annotations

import base64
import hashlib
import http.cookiejar
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwk

FOLDER = Path(__file__).parent / "node"
SECRET = "a client secret for tests"
REDIRECT = "https://app.example.com/callback"


class Provider:
    """A running provider."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer

    def access_token(self, client: str, algorithm: str) -> str:
        """Return a JWT access token of a client that acts for itself (RFC 6749 4.4)."""
        form = {"grant_type": "client_credentials", "resource": f"https://gatecast.example/{algorithm}"}
        return str(self._token(client, form)["access_token"])

    def log_in(self, user: str, client: str) -> str:
        """Log a user in with the browser's part played here; return the ID token."""
        verifier = "v" * 64
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "client_id": client,
            "response_type": "code",
            "scope": "openid",
            "redirect_uri": REDIRECT,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        browser = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
            _StopAtCallback(),
        )
        page = browser.open(f"{self.issuer}/auth?{urllib.parse.urlencode(query)}", timeout=20)
        for form in ({"prompt": "login", "login": user, "password": "any"}, {"prompt": "consent"}):
            action = re.search(r'<form[^>]* action="([^"]+)"', page.read().decode())
            assert action is not None
            data = urllib.parse.urlencode(form).encode()
            page = browser.open(urllib.parse.urljoin(self.issuer, action[1]), data, timeout=20)
        callback = urllib.parse.urlsplit(page.headers["Location"])
        code = urllib.parse.parse_qs(callback.query)["code"][0]
        more = {"code": code, "redirect_uri": REDIRECT, "code_verifier": verifier}
        return str(self._token(client, {"grant_type": "authorization_code", **more})["id_token"])

    def _token(self, client: str, form: dict[str, str]) -> dict[str, Any]:
        basic = base64.b64encode(f"{urllib.parse.quote(client)}:{urllib.parse.quote(SECRET)}".encode()).decode()
        request = urllib.request.Request(
            f"{self.issuer}/token", urllib.parse.urlencode(form).encode(), {"Authorization": f"Basic {basic}"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


class _StopAtCallback(urllib.request.HTTPRedirectHandler):
    """Follow redirects like a browser, up to the application's own address."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if newurl.startswith(REDIRECT):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_303(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        if headers["Location"].startswith(REDIRECT):
            return fp
        return super().http_error_302(req, fp, code, msg, headers)


def client(name: str, algorithm: str = "RS256") -> dict[str, object]:
    """Return the settings of a client whose ID tokens are signed with an algorithm."""
    return {
        "client_id": name,
        "client_secret": SECRET,
        "grant_types": ["client_credentials", "authorization_code"],
        "response_types": ["code"],
        "redirect_uris": [REDIRECT],
        "id_token_signed_response_alg": algorithm,
    }


@contextmanager
def running(
    keys: Sequence[jwk.Key],
    clients: Sequence[dict[str, object]],
    *,
    groups: dict[str, list[str]] | None = None,
    extra: dict[str, dict[str, object]] | None = None,
    port: int = 0,
) -> Iterator[Provider]:
    """Run the provider. extra: claims of a client's access tokens. Skips where node or the package is missing."""
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules" / "oidc-provider").is_dir():
        if os.environ.get("CI"):
            pytest.fail("node and tests/peers/node/node_modules are needed: make test")
        pytest.skip("needs node and npm install in tests/peers/node (make test does it)")
    settings = {
        "port": port,
        "keys": [key.as_dict(private=True) for key in keys],
        "clients": list(clients),
        "groups": groups or {},
        "extra": extra or {},
    }
    with subprocess.Popen(
        [node, "oidc_provider.mjs"], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, "the provider did not start"
            yield Provider(json.loads(line)["issuer"])
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
