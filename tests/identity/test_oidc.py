"""OIDC: what a JWT has to be, and every way in which it is not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk
from structlog.testing import capture_logs

from proxy.core.errors import ConfigError
from proxy.core.parties import Identity
from proxy.identity import keys
from proxy.identity.oidc import HEADER_LIMIT, Issuer, Verifier, looks_like_jwt, peek_issuer
from proxy.identity.proof import PROOF_LIMIT, ProofRefused
from tests.identity.stores import Clock, fake_issuer, make_key, public_set, sign
from tests.peers.certificates import Authority

NOW = 1_800_000_000
URL = "https://id.example.com"
RSA = make_key("RSA", "rsa")
EC = make_key("EC", "ec")
ED = make_key("OKP", "ed")
STRANGER = make_key("RSA", "rsa")


def claims(**more: Any) -> dict[str, Any]:
    base = {"iss": URL, "aud": "gatecast", "sub": "alice", "iat": NOW - 10, "exp": NOW + 600}
    return {key: value for key, value in {**base, **more}.items() if value is not ...}


@pytest.fixture
def verifier(tmp_path: Path) -> Callable[..., Verifier]:
    def make(**settings: Any) -> Verifier:
        file = tmp_path / "jwks.json"
        file.write_text(json.dumps(public_set(RSA, EC, ED)))
        return Verifier(Issuer(URL, ("gatecast",), jwks_file=file, **settings), clock=Clock(NOW))

    return make


def check(verifier: Verifier, token: str) -> Identity:
    return asyncio.run(verifier.check(token))


def why(verifier: Verifier, token: str) -> str:
    with pytest.raises(ProofRefused) as caught:
        asyncio.run(verifier.check(token))
    return caught.value.why


def encode(part: object) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA, "RS256"), (RSA, "PS256"), (EC, "ES256"), (ED, "EdDSA"), (ED, "Ed25519")]
)
@pytest.mark.parametrize("kid", ["named", None])
def test_good_tokens(verifier: Callable[..., Verifier], key: jwk.Key, algorithm: str, kid: str | None) -> None:
    more = {} if kid else {"kid": None}
    found = check(verifier(), sign(claims(groups=["dba", "dev"]), key, algorithm, **more))
    assert (found.subject, found.agents, found.issuer) == ("alice", (), URL)
    assert found.groups == {"dba", "dev"}
    assert found.expires_at == NOW + 600 + 60
    assert len(found.proof) == 64


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_types_of_logins(verifier: Callable[..., Verifier], kind: str) -> None:
    assert check(verifier(), sign(claims(), RSA, typ=kind)).subject == "alice"


@pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", "secevent+jwt", 7])
def test_types_of_other_things(verifier: Callable[..., Verifier], kind: object) -> None:
    header = encode({"alg": "RS256", "kid": "rsa", "typ": kind})
    token = sign(claims(), RSA) if kind == 7 else sign(claims(), RSA, typ=kind)
    if kind == 7:
        token = f"{header}.{token.split('.', 1)[1]}"
    assert why(verifier(), token) in {"type", "malformed-jwt"}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"aud": "other"}, "invalid_claim"),
        ({"aud": []}, "invalid_claim"),
        ({"aud": ...}, "missing_claim"),
        ({"aud": ["gatecast", "other"]}, "invalid_claim"),
        ({"aud": {"gatecast": 1}}, "invalid_claim"),
        ({"aud": "gatecast2"}, "invalid_claim"),
        ({"iss": URL + "/"}, "invalid_claim"),
        ({"iss": ...}, "missing_claim"),
        ({"exp": ...}, "missing_claim"),
        ({"exp": NOW - 60}, "expired_token"),
        ({"exp": str(NOW + 600)}, "invalid_claim"),
        ({"exp": True}, "invalid_claim"),
        ({"exp": None}, "missing_claim"),
        ({"nbf": NOW + 61}, "invalid_claim"),
        ({"nbf": "soon"}, "invalid_claim"),
        ({"iat": NOW + 61}, "invalid_claim"),
        ({"sub": ...}, "bad-subject"),
        ({"sub": ""}, "bad-subject"),
        ({"sub": 7}, "invalid_claim"),
        ({"sub": "a\u202eb"}, "bad-subject"),
        ({"sub": "local:root"}, "bad-subject"),
        ({"sub": "group:dba"}, "bad-subject"),
        ({"groups": {"dba": True}}, "bad-group"),
        ({"groups": ["dba", 7]}, "bad-group"),
        ({"groups": [str(n) for n in range(1001)]}, "bad-group"),
        ({"act": "claude"}, "bad-agent"),
        ({"act": {"sub": 7}}, "bad-agent"),
        ({"act": {}}, "bad-agent"),
        ({"cnf": {"jkt": "x"}}, "sender-constrained"),
    ],
)
def test_claims_that_do_not_hold(verifier: Callable[..., Verifier], more: dict[str, Any], reason: str) -> None:
    assert why(verifier(), sign(claims(**more), RSA)) == reason


@pytest.mark.parametrize("more", [{"exp": NOW - 59}, {"nbf": NOW + 60}, {"iat": NOW + 60}, {"iat": ...}])
def test_the_leeway(verifier: Callable[..., Verifier], more: dict[str, Any]) -> None:
    found = check(verifier(), sign(claims(**more), RSA))
    assert found.expires_at is not None
    assert found.expires_at > NOW, "a session is not over the moment it begins"


def test_algorithm_none(verifier: Callable[..., Verifier]) -> None:
    for name in ("none", "None", "NONE"):
        token = f"{encode({'alg': name})}.{encode(claims())}."
        assert why(verifier(), token) == "algorithm"
    good = sign(claims(), RSA)
    assert why(verifier(), good.rpartition(".")[0] + ".") == "bad-signature"


def test_hs256_with_the_public_key_as_secret(verifier: Callable[..., Verifier]) -> None:
    assert isinstance(RSA, jwk.RSAKey)
    for form in (RSA.as_pem(private=False), RSA.as_der(private=False), json.dumps(RSA.as_dict(private=False)).encode()):
        signed = f"{encode({'alg': 'HS256', 'kid': 'rsa'})}.{encode(claims())}"
        token = f"{signed}.{encode(hmac.digest(form, signed.encode(), hashlib.sha256))}"
        assert why(verifier(), token) == "algorithm"


def test_algorithms_that_are_not_configured(verifier: Callable[..., Verifier]) -> None:
    only = verifier(algorithms=("ES256",))
    assert check(only, sign(claims(), EC, "ES256")).subject == "alice"
    assert why(only, sign(claims(), RSA)) == "algorithm"
    for bad in (("none",), ("HS256",), ("RS256", "HS512"), ()):
        with pytest.raises(ConfigError):
            Issuer(URL, ("gatecast",), algorithms=bad)


def test_a_key_of_another_kind_under_the_same_id(verifier: Callable[..., Verifier]) -> None:
    assert why(verifier(), sign(claims(), EC, "ES256", kid="rsa")) == "unknown-key"


def test_a_stranger_who_uses_the_same_key_id(verifier: Callable[..., Verifier]) -> None:
    assert why(verifier(), sign(claims(), STRANGER)) == "bad-signature"
    assert why(verifier(), sign(claims(), STRANGER, kid=None)) == "bad-signature"


def test_keys_in_the_token_are_ignored(verifier: Callable[..., Verifier]) -> None:
    own = {name: STRANGER.as_dict(private=False)[name] for name in ("kty", "n", "e")}
    assert why(verifier(), sign(claims(), STRANGER, jwk=own)) == "bad-signature"
    assert why(verifier(), sign(claims(), STRANGER, jku="http://127.0.0.1:1/")) == "bad-signature"


def test_crit_and_b64(verifier: Callable[..., Verifier]) -> None:
    body = sign(claims(), RSA).split(".", 1)[1]
    headers: list[dict[str, Any]] = [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"b64": False, "crit": ["b64"]}]
    for more in [*headers, {"b64": False}]:
        assert why(verifier(), f"{encode({'alg': 'RS256', 'kid': 'rsa', **more})}.{body}") == "malformed-jwt"


def test_changed_by_one_byte_anywhere(verifier: Callable[..., Verifier]) -> None:
    checker = verifier()
    token = sign(claims(), EC, "ES256")
    # The last character of a part holds bits that base64 does not use; what they say changes nothing.
    ends = {len(token) - 1, *(i - 1 for i, char in enumerate(token) if char == ".")}
    for index in range(0, len(token), 7):
        if index not in ends and token[index] != ".":
            with pytest.raises(ProofRefused):
                check(checker, token[:index] + ("A" if token[index] != "A" else "B") + token[index + 1 :])


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"iss":"%b","aud":"gatecast","sub":"alice","sub":"root","exp":1800000600}' % URL.encode(),
        b'{"iss":"%b","aud":"gatecast","sub":"alice","exp":NaN}' % URL.encode(),
        b'{"iss":"%b","aud":"gatecast","sub":"alice","exp":Infinity}' % URL.encode(),
        b'{"a":' + b"[" * 40_000 + b"]" * 2,
    ],
)
def test_payloads_that_are_no_claims(verifier: Callable[..., Verifier], payload: bytes) -> None:
    assert why(verifier(), sign(payload, RSA)) == "malformed-jwt"


def test_odd_tokens(verifier: Callable[..., Verifier]) -> None:
    checker = verifier()
    good = sign(claims(), RSA)
    for bad in ("", "..", "a.b.c", "eyJ.eyJ.", good + ".x", good + "\n", " " + good, encode([]) + ".e30.e30"):
        assert why(checker, bad) in {"malformed-jwt", "bad-signature"}, bad
    for head in (b"[" * 2000, b'["alg"]', b'"alg"', b'{"alg":["RS256"]}', b'{"alg":{}}', b'{"alg":null}'):
        assert why(checker, f"{encode(head)}.{encode(claims())}.e30") in {"malformed-jwt", "algorithm"}
    assert why(checker, "eyJ\udcff.e30.e30") == "not-utf8"
    assert why(checker, "eyJé.e30.e30") == "malformed-jwt"
    assert why(checker, sign(claims(), RSA, extra="x" * HEADER_LIMIT)) == "malformed-jwt"


def test_a_token_as_long_as_postgresql_allows(verifier: Callable[..., Verifier]) -> None:
    def of_length(size: int) -> str:
        token = sign(claims(pad=""), RSA)
        pad = (size - len(token)) * 3 // 4
        while len(token) < size:
            token = sign(claims(pad="x" * pad), RSA)
            pad += 1
        return token

    long = of_length(PROOF_LIMIT - 3)
    assert PROOF_LIMIT - 3 <= len(long) <= PROOF_LIMIT
    assert check(verifier(), long).subject == "alice"


def test_where_names_come_from(verifier: Callable[..., Verifier]) -> None:
    checker = verifier(
        subject_claim="email",
        groups_claims=("realm_access.roles", "https://example.com/groups", "team", "missing.path"),
    )
    token = claims(
        email="Alice@example.com",
        realm_access={"roles": ["dba"]},
        team="blue",
        missing="no path",
        **{"https://example.com/groups": ["dev"]},
    )
    found = check(checker, sign(token, RSA))
    assert found.subject == "Alice@example.com"
    assert found.groups == {"dba", "dev", "blue"}
    assert check(checker, sign(token | {"email_verified": True}, RSA)).subject == "Alice@example.com"
    assert why(checker, sign(token | {"email_verified": False}, RSA)) == "unverified-email"


def test_the_chain_of_agents_is_nearest_last(verifier: Callable[..., Verifier]) -> None:
    # RFC 8693 4.1: the outermost act is the current actor, the nested ones came before it.
    act = {"sub": "tool", "act": {"sub": "claude", "act": {"sub": "orchestrator"}}}
    assert check(verifier(), sign(claims(act=act), RSA)).agents == ("orchestrator", "claude", "tool")
    deep: dict[str, Any] = {"sub": "a"}
    for _ in range(7):
        deep = {"sub": "a", "act": deep}
    assert len(check(verifier(), sign(claims(act=deep), RSA)).agents) == 8
    assert why(verifier(), sign(claims(act={"sub": "a", "act": deep}), RSA)) == "bad-agent"


def test_a_client_as_agent(verifier: Callable[..., Verifier]) -> None:
    checker = verifier(agent_claims=("azp", "client_id"), people_clients=frozenset({"gatecast-cli"}))
    assert check(checker, sign(claims(azp="claude", client_id="claude"), RSA)).agents == ("claude",)
    assert check(checker, sign(claims(azp="gatecast-cli"), RSA)).agents == ()
    assert check(checker, sign(claims(azp="alice"), RSA)).agents == (), "a machine that is its own subject"
    assert check(checker, sign(claims(azp="tool", act={"sub": "claude"}), RSA)).agents == ("claude", "tool")
    assert why(checker, sign(claims(azp=["claude"]), RSA)) == "bad-agent"
    assert check(verifier(), sign(claims(azp="claude"), RSA)).agents == ()


def test_trusted_audiences(verifier: Callable[..., Verifier]) -> None:
    checker = verifier(trusted_audiences=("account",))
    assert check(checker, sign(claims(aud=["account", "gatecast"]), RSA)).subject == "alice"
    assert why(checker, sign(claims(aud=["account"]), RSA)) == "invalid_claim"


def test_discovery_then_rotation_with_one_refresh_only() -> None:
    with fake_issuer(RSA) as server:
        tick = Clock(1000.0)
        checker = Verifier(Issuer(server.url, ("gatecast",)), clock=Clock(NOW), monotonic=tick)
        body = claims(iss=server.url)
        assert check(checker, sign(body, RSA)).subject == "alice"
        assert server.asked == ["/.well-known/openid-configuration", "/jwks"]
        check(checker, sign(body, RSA))
        assert len(server.asked) == 2, "cached"

        new = make_key("EC", "next")
        server.keys = public_set(new)
        assert why(checker, sign(body, new, "ES256")) == "unknown-key"
        assert len(server.asked) == 2, "a moment ago they were loaded"
        tick.advance(keys.REFRESH_SECONDS)
        assert check(checker, sign(body, new, "ES256")).subject == "alice"
        assert len(server.asked) == 4
        assert why(checker, sign(body, RSA)) == "unknown-key", "the old key is gone"
        for number in range(20):
            assert why(checker, sign(body, RSA, kid=f"made-up-{number}")) == "unknown-key"
        assert len(server.asked) == 4, "made-up key ids load nothing"


def test_many_logins_at_once_load_the_keys_once() -> None:
    with fake_issuer(RSA) as server:
        checker = Verifier(Issuer(server.url, ("gatecast",)), clock=Clock(NOW))
        token = sign(claims(iss=server.url), RSA)

        async def many() -> list[Identity]:
            return await asyncio.gather(*(checker.check(token) for _ in range(20)))

        assert len(asyncio.run(many())) == 20
        assert len(server.asked) == 2


def test_an_issuer_that_is_down_keeps_its_keys_for_a_day() -> None:
    tick = Clock(1000.0)
    with fake_issuer(RSA) as server:
        checker = Verifier(Issuer(server.url, ("gatecast",)), clock=Clock(NOW), monotonic=tick)
        token = sign(claims(iss=server.url), RSA)
        check(checker, token)
    tick.advance(keys.FRESH_SECONDS)
    with capture_logs() as logs:
        assert check(checker, token).subject == "alice"
    assert [entry["event"] for entry in logs] == ["issuer-keys-failed"]
    tick.advance(keys.STALE_LIMIT_SECONDS)
    assert why(checker, token) == "unknown-key"


def test_an_issuer_in_tls_is_verified(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("localhost")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pair.certificate_file, pair.key_file)
    with fake_issuer(RSA, tls=tls) as server:
        token = sign(claims(iss=server.url), RSA)
        trusting = Verifier(Issuer(server.url, ("gatecast",), ca_file=authority.ca_file), clock=Clock(NOW))
        assert check(trusting, token).subject == "alice"
        strict = Verifier(Issuer(server.url, ("gatecast",)), clock=Clock(NOW))
        with capture_logs() as logs:
            assert why(strict, token) == "unknown-key"
        assert "certificate verify failed" in logs[0]["error"]


def test_an_issuer_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FETCH_LIMIT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(keys.KeysError, match="timed out"):
        keys.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/jwks")


def test_a_stuck_issuer_holds_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FETCH_LIMIT_SECONDS", 0.02)
    tick = Clock(0.0)
    release, loads = threading.Event(), []

    def load() -> bytes:
        loads.append(1)
        release.wait(20)
        return json.dumps(public_set(RSA)).encode()

    async def story() -> None:
        cache = keys.Keys("stuck", load, monotonic=tick)
        for _ in range(5):
            assert await cache.find("rsa", "RS256") == []
            tick.advance(keys.REFRESH_SECONDS)
        assert len(loads) == 1
        release.set()
        while not (cache._running and cache._running.done()):
            await asyncio.sleep(0)
        assert len(await cache.find("rsa", "RS256")) == 1

    asyncio.run(story())
    assert len(loads) == 2


def broken(server: Any, why: str) -> None:
    match why:
        case "huge":
            server.body = b'{"keys":[' + b" " * keys.DOCUMENT_LIMIT + b"]}"
        case "deep":
            server.body = b"[" * 100_000
        case "no-json":
            server.body = b"<html>"
        case "no-list":
            server.body = b'{"keys":{}}'
        case "many":
            server.keys = {"keys": [RSA.as_dict(private=False)] * (keys.KEYS_LIMIT + 1)}
        case "symmetric":
            server.keys = {"keys": [{"kty": "oct", "k": "AAAA", "kid": "rsa"}]}
        case "encryption":
            server.keys = {"keys": [RSA.as_dict(private=False) | {"use": "enc"}]}
        case "sign-only":
            server.keys = {"keys": [RSA.as_dict(private=False) | {"key_ops": ["sign"]}]}
        case "weak":
            server.keys = {"keys": [RSA.as_dict(private=False) | {"n": RSA.as_dict(private=False)["n"][:170]}]}
        case "giant":
            server.keys = {"keys": [RSA.as_dict(private=False) | {"n": "A" * 2000}]}
        case "off-curve":
            server.keys = {"keys": [EC.as_dict(private=False) | {"x": EC.as_dict(private=False)["y"]}]}
        case "error":
            server.status = 500
        case "redirect":
            server.status, server.location = 302, server.url + "/other"
        case "other-issuer":
            server.document = {"issuer": "https://evil.example"}
        case "clear-uri":
            server.document = {"jwks_uri": "http://192.0.2.1/jwks"}
        case "file-uri":
            server.document = {"jwks_uri": "file:///etc/passwd"}
        case "no-uri":
            server.document = {"jwks_uri": None}


@pytest.mark.parametrize(
    "what",
    [
        "huge",
        "deep",
        "no-json",
        "no-list",
        "many",
        "symmetric",
        "encryption",
        "sign-only",
        "weak",
        "giant",
        "off-curve",
        "error",
        "redirect",
        "other-issuer",
        "clear-uri",
        "file-uri",
        "no-uri",
    ],
)
def test_key_sets_that_do_not_load(what: str) -> None:
    with fake_issuer(RSA) as server:
        broken(server, what)
        checker = Verifier(Issuer(server.url, ("gatecast",)), clock=Clock(NOW))
        with capture_logs() as logs:
            assert why(checker, sign(claims(iss=server.url), RSA)) == "unknown-key"
        assert [entry["event"] for entry in logs] == ["issuer-keys-failed"]
        assert "/other" not in server.asked


def test_one_odd_key_does_not_spoil_the_others() -> None:
    odd: list[Any] = ["key", {"kty": "AKP"}, {"kty": "EC", "crv": "P-256", "x": "!", "y": "!"}, {"kty": "RSA"}]
    document = {"keys": [*odd, RSA.as_dict(private=True)]}
    found = keys.read_keys(json.dumps(document).encode())
    assert [key.id for key in found] == ["rsa"]
    assert not found[0].key.is_private, "a private key somebody published is not kept"


def test_a_key_for_one_algorithm_only() -> None:
    document = {"keys": [RSA.as_dict(private=False) | {"alg": "PS256"}]}
    (key,) = keys.read_keys(json.dumps(document).encode())
    assert key.fits("rsa", "PS256")
    assert not key.fits("rsa", "RS256")


def test_a_file_of_keys_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    tick = Clock(0.0)
    checker = Verifier(Issuer(URL, ("gatecast",), jwks_file=file), clock=Clock(NOW), monotonic=tick)
    assert why(checker, sign(claims(), RSA)) == "unknown-key"
    file.write_text(json.dumps(public_set(RSA)))
    tick.advance(1)
    assert check(checker, sign(claims(), RSA)).subject == "alice"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://id.example.com", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://localhost:8080", True),
        ("http://[::1]:80", True),
        ("http://id.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://localhost.example.com", False),
        ("https://user:pw@id.example.com", False),
        ("file:///etc/passwd", False),
        ("ftp://127.0.0.1", False),
        ("https://", False),
        ("https://[", False),
    ],
)
def test_urls(url: str, safe: bool) -> None:
    assert keys.is_safe_url(url) is safe
    if not safe:
        with pytest.raises(ConfigError):
            Issuer(url, ("gatecast",))


def test_shapes() -> None:
    token = sign(claims(), RSA)
    assert looks_like_jwt(token)
    assert peek_issuer(token) == URL
    assert not looks_like_jwt("gct_a_b")
    for bad in ("", "a", "a.!.c", "a.é.c", "a.e30.c", "a.W10.c"):
        with pytest.raises(ProofRefused):
            peek_issuer(bad)


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_garbage_is_refused_and_nothing_else(head: str, body: str, tail: str) -> None:
    checker = Verifier(Issuer(URL, ("gatecast",), jwks_file=Path("/nonexistent")), clock=Clock(NOW))
    for token in (f"{head}.{body}.{tail}", f"{encode(head.encode('utf-8', 'replace'))}.{body}.{tail}"):
        with pytest.raises(ProofRefused):
            check(checker, token)
        with pytest.raises(ProofRefused):
            peek_issuer(token)
