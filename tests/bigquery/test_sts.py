"""The token endpoint: what it takes, what it says, and tokens that nobody can read, change, extend or carry over."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import timeit
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
from google.auth import identity_pool
from google.auth.exceptions import OAuthError
from hypothesis import given
from hypothesis import strategies as st

from protocols.bigquery import sts
from protocols.bigquery.sts import (
    ACCESS_TOKEN,
    BODY_LIMIT,
    FIELDS_LIMIT,
    GRANT,
    KEY_BYTES,
    LIFE_SECONDS,
    SUBJECT_LIMIT,
    TOKEN_LIMIT,
    Seal,
    StsError,
    read_exchange,
)
from proxy.core.parties import Identity
from proxy.identity.proof import PROOF_LIMIT

FORM = "application/x-www-form-urlencoded"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"
FIELDS = {
    "grant_type": GRANT,
    "audience": "//gatecast/warehouse",
    "scope": "https://www.googleapis.com/auth/bigquery",
    "requested_token_type": ACCESS_TOKEN,
    "subject_token": JWT,
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
}
NOW = 1_800_000_000.0
ALICE = Identity("alice@example.com", frozenset({"dba", "dev"}), ("claude", "sub"), "https://id", "ab" * 32, NOW + 7200)
SEAL = Seal([b"k" * KEY_BYTES])


def body(**changes: str | None) -> bytes:
    return urlencode({name: value for name, value in (FIELDS | changes).items() if value is not None}).encode()


def failure(content: bytes, content_type: str = FORM) -> tuple[str, str]:
    with pytest.raises(StsError) as caught:
        read_exchange(content_type, content)
    status, document = sts.error_answer(caught.value)
    said = json.loads(document)
    assert status == 400 and set(said) == {"error", "error_description"}
    assert JWT not in document.decode() and caught.value.__context__ is None
    return said["error"], said["error_description"]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n"])
def test_what_google_auth_sends(end: str) -> None:
    found = read_exchange(f"{FORM}; charset=utf-8", body(subject_token=JWT + end))
    assert (found.proof.reveal(), found.target) == (JWT, "warehouse")
    assert JWT not in repr(found)
    # Without what is optional, and with what we ignore.
    read_exchange(FORM.upper(), body(requested_token_type=None, scope=None, options='{"userProject":"x"}', empty=""))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("invalid_request", {"grant_type": None}),
        ("unsupported_grant_type", {"grant_type": "client_credentials"}),
        ("invalid_request", {"requested_token_type": "urn:ietf:params:oauth:token-type:jwt"}),
        ("invalid_request", {"actor_token": "x"}),
        ("invalid_request", {"subject_token_type": "urn:ietf:params:aws:token-type:aws4_request"}),
        ("invalid_request", {"subject_token_type": None}),
        ("invalid_request", {"subject_token": None}),
        ("invalid_request", {"subject_token": "\n"}),
        ("invalid_request", {"subject_token": "x" * (SUBJECT_LIMIT + 1)}),
        ("invalid_request", {"subject_token": "gca_" + "x" * 100}),
        ("invalid_target", {"audience": None}),
        ("invalid_target", {"audience": "//iam.googleapis.com/projects/1/x"}),
        ("invalid_target", {"audience": "//gatecast/"}),
        ("invalid_target", {"audience": "//gatecast/a/b"}),
        ("invalid_target", {"audience": "//gatecast/a\n"}),
        ("invalid_target", {"resource": "https://x"}),
    ],
)
def test_what_it_refuses(code: str, changes: dict[str, str | None]) -> None:
    assert failure(body(**changes))[0] == code


def test_forms_that_are_none() -> None:
    assert failure(body(), "application/json")[0] == "invalid_request"
    assert "twice" in failure(body() + b"&audience=%2F%2Fgatecast%2Fother")[1]
    assert "read" in failure(body() + b"&x=%ff")[1]
    assert "read" in failure(body() + b"&x=\xff")[1]
    assert "read" in failure(body() + b"&x=1" * FIELDS_LIMIT)[1]
    padding = BODY_LIMIT - len(body(pad=""))
    read_exchange(FORM, body(pad="x" * padding))
    assert "long" in failure(body(pad="x" * (padding + 1)))[1]
    assert PROOF_LIMIT == SUBJECT_LIMIT
    read_exchange(FORM, body(subject_token="x" * SUBJECT_LIMIT))


def test_a_token_says_who_and_where() -> None:
    token, seconds = SEAL.make(ALICE, "warehouse", NOW)
    document = json.loads(sts.answer(token, seconds))
    assert document == {
        "access_token": token.reveal(),
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": 3600,
    }
    bearer = SEAL.read(token.reveal(), NOW)
    assert bearer is not None
    assert (bearer.identity, bearer.target, bearer.expires_at) == (ALICE, "warehouse", NOW + LIFE_SECONDS)
    raw = base64.urlsafe_b64decode(token.reveal()[4:] + "==")
    assert not any(word in raw for word in (b"alice", b"dba", b"warehouse", b"id"))
    assert token.reveal() != SEAL.make(ALICE, "warehouse", NOW)[0].reveal()


def test_a_token_ends_with_its_proof() -> None:
    for left, seconds in ((7200.0, 3600), (100.7, 100), (1.0, 1)):
        identity = dataclasses.replace(ALICE, expires_at=NOW + left)
        token, told = SEAL.make(identity, "t", NOW)
        assert told == seconds
        end = NOW + min(left, LIFE_SECONDS)
        assert SEAL.read(token.reveal(), end - 0.01) is not None
        assert SEAL.read(token.reveal(), end) is None
    for left in (0.9, 0.0, -5.0):
        with pytest.raises(StsError):
            SEAL.make(dataclasses.replace(ALICE, expires_at=NOW + left), "t", NOW)
    assert SEAL.make(dataclasses.replace(ALICE, expires_at=None), "t", NOW)[1] == 3600


def test_keys_can_be_changed_and_others_make_nothing() -> None:
    token = SEAL.make(ALICE, "t", NOW)[0].reveal()
    assert Seal([b"n" * KEY_BYTES, b"k" * KEY_BYTES]).read(token, NOW) is not None
    assert Seal([b"n" * KEY_BYTES]).read(token, NOW) is None
    for keys in ([], [b"short"]):
        with pytest.raises(ValueError, match="32 bytes"):
            Seal(keys)


def test_every_bit_counts() -> None:
    token = SEAL.make(ALICE, "t", NOW)[0].reveal()
    raw = base64.urlsafe_b64decode(token[4:] + "=" * (-len(token[4:]) % 4))
    for place in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << place % 8
        text = "gca_" + base64.urlsafe_b64encode(changed).decode().rstrip("=")
        assert SEAL.read(text, NOW) is None, place
    for length in range(len(token)):
        assert SEAL.read(token[:length], NOW) is None, length
    for other in (token + "=", token + "A", f" {token}", token.replace("gca_", "gct_"), token + "\n", ""):
        assert SEAL.read(other, NOW) is None


@given(st.one_of(st.text(), st.text("abcXYZ_-019", max_size=300).map(lambda text: "gca_" + text)))
def test_garbage_is_nobodys(text: str) -> None:
    assert SEAL.read(text, NOW) is None


@given(st.binary(max_size=300))
def test_garbage_is_no_request(content: bytes) -> None:
    with pytest.raises(StsError):
        read_exchange(FORM, content)


def test_a_token_fits_into_the_metadata_of_grpc() -> None:
    many = frozenset(f"{number:032x}" for number in range(100))
    token = SEAL.make(dataclasses.replace(ALICE, groups=many), "t", NOW)[0].reveal()
    bearer = SEAL.read(token, NOW)
    assert len(token) <= TOKEN_LIMIT and bearer is not None and bearer.identity.groups == many
    too_many = frozenset(base64.b64encode(bytes([n % 256, n // 256]) * 90).decode()[n % 9 :] for n in range(9000))
    with pytest.raises(StsError, match="too many groups"):
        SEAL.make(dataclasses.replace(ALICE, groups=too_many), "t", NOW)


def test_reading_one_costs_less_than_50_microseconds() -> None:
    token = SEAL.make(ALICE, "t", NOW)[0].reveal()
    best = min(timeit.repeat(lambda: SEAL.read(token, NOW), number=200, repeat=5)) / 200
    assert best < 50e-6, f"{best * 1e6:.1f} us"


class Endpoint:
    """The token endpoint as google-auth's transport: what its client sends is read and answered by this module."""

    def __init__(self) -> None:
        self.failing: StsError | None = None

    def __call__(self, url: str, method: str, headers: dict[str, str], body: bytes, **_: object) -> SimpleNamespace:
        assert (url, method) == ("https://sts.gw.example/v1/token", "POST")
        fields = {name.lower(): value for name, value in headers.items()}
        asked = read_exchange(fields["content-type"], body)
        assert (asked.proof.reveal(), asked.target) == (JWT, "warehouse")
        if self.failing is not None:
            status, document = sts.error_answer(self.failing)
            return SimpleNamespace(status=status, data=document, headers={})
        return SimpleNamespace(status=200, data=sts.answer(*SEAL.make(ALICE, asked.target, NOW)), headers={})


def test_googles_own_client(tmp_path: Path) -> None:
    """The credentials file of the documentation, by google-auth; only the network is not there."""
    (tmp_path / "oidc.jwt").write_text(JWT + "\n")
    credentials = identity_pool.Credentials.from_info({  # type: ignore[no-untyped-call]  # google-auth has no types here
        "type": "external_account",
        "audience": "//gatecast/warehouse",
        "subject_token_type": FIELDS["subject_token_type"],
        "token_url": "https://sts.gw.example/v1/token",
        "credential_source": {"file": str(tmp_path / "oidc.jwt")},
        "universe_domain": "gw.example",
    }).with_scopes(["https://www.googleapis.com/auth/bigquery"])  # fmt: skip
    endpoint = Endpoint()
    credentials.refresh(endpoint)
    bearer = SEAL.read(credentials.token, NOW)
    assert bearer is not None and (bearer.identity, bearer.target) == (ALICE, "warehouse")
    for failing in (sts.refused(), sts.no_target()):
        endpoint.failing = failing
        with pytest.raises(OAuthError, match=f"{failing.code}: {re.escape(failing.text)}"):
            credentials.refresh(endpoint)
