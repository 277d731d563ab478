"""SCRAM on both sides: the RFC's example, PostgreSQL's own texts, attacks, and garbage."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import scramp  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.postgres import scram
from protocols.postgres.scram import MECHANISM, MECHANISM_PLUS, ScramClient, ScramServer
from proxy.core.errors import PeerError, TargetPeerError, UserPeerError
from tests.peers.certificates import Authority, KeyKind

KEY = b"the mock key of the tests"
CANARY = "canary-pässword"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Authority(tmp_path_factory.mktemp("scram")).issue("localhost").der


@pytest.fixture(scope="module")
def verifier() -> str:
    return scram.make_verifier(CANARY)


def exchange(client: ScramClient, server: ScramServer) -> bool:
    """Run a whole exchange; whether the server was satisfied."""
    challenge = server.begin(client.mechanism, client.first())
    outcome = server.finish(client.final(challenge))
    if outcome is not None:
        client.verify(outcome)
    return outcome is not None


def test_the_example_of_rfc_7677() -> None:
    client = ScramClient("pencil", nonce=b"rOprNGfwEbeRWgbNEkqO")
    assert client.first("user") == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert client.final(challenge) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    client.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert client.verified


def test_a_verifier_of_postgresql() -> None:
    text = (  # what PostgreSQL 15.18 stored for PASSWORD 'pencil'
        "SCRAM-SHA-256$4096:3xsd+JlNNFpHUOx9nXPGOw==$ocNE69PJuV0GSmswAtuqcqUL7gQOgTfW/SN1GYdMeVE=:"
        "CxYByc0q2nOlD+NUV+jnkbFYkAQgVZ4w3rme9i+Q5Ik="
    )
    parsed = scram.parse_verifier(text)
    assert scram.make_verifier("pencil", salt=parsed.salt) == text
    assert "CxYByc0q" not in repr(parsed)


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=40, deadline=None)
def test_only_the_right_password_opens(right: str, tried: str) -> None:
    verifier = scram.make_verifier(right)
    assert exchange(ScramClient(right), ScramServer("u", verifier, KEY))
    same = scram.prepare(right) == scram.prepare(tried)
    assert exchange(ScramClient(tried), ScramServer("u", verifier, KEY)) == same


def test_with_a_foreign_implementation(verifier: str) -> None:
    theirs = scramp.ScramClient(["SCRAM-SHA-256"], "u", "pencil")
    ours = ScramServer("u", scram.make_verifier("pencil"), KEY)
    challenge = ours.begin(MECHANISM, theirs.get_client_first().encode())
    theirs.set_server_first(challenge.decode())
    outcome = ours.finish(theirs.get_client_final().encode())
    assert outcome is not None
    theirs.set_server_final(outcome.decode())


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("pencil", b"pencil"),
        ("I\u00adX", b"IX"),  # RFC 4013 3: a soft hyphen is mapped to nothing
        ("\u00aa", b"a"),  # NFKC
        ("\u2168", b"IX"),
        ("a\u00a0b", b"a b"),  # a space that is not ASCII
        ("\u200b", b" "),  # a space, though RFC 3454 B.1 would map it to nothing
        ("\x07", b"\x07"),  # pure ASCII is left alone, as in PostgreSQL
        ("\u0627\u0031", "\u06271".encode()),  # bidi rules broken: as it is
        ("\u0221", "\u0221".encode()),  # unassigned in Unicode 3.2: as it is
        ("\u00ad", "\u00ad".encode()),  # nothing would be left: as it is
        ("\udcff", b"\xff"),  # not UTF-8: as it is
    ],
)
def test_saslprep(password: str, prepared: bytes) -> None:
    assert scram.prepare(password) == prepared


# -- channel binding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size"), [("rsa", 32), ("rsa-pss", 64), ("ecdsa", 32), ("ecdsa-sha384", 48), ("ed25519", None)]
)
def test_the_end_point_goes_by_the_signature(kind: KeyKind, size: int | None, tmp_path: Path) -> None:
    der = Authority(tmp_path, kind=kind).issue("localhost").der
    found = scram.end_point(der)
    assert (None if found is None else len(found)) == size
    if size is not None:
        assert found == hashlib.new({32: "sha256", 48: "sha384", 64: "sha512"}[size], der).digest()


def test_no_end_point_of_what_is_no_certificate() -> None:
    assert scram.end_point(None) is None and scram.end_point(b"junk") is None


def test_plus_with_the_same_and_with_another_certificate(certificate: bytes, verifier: str, tmp_path: Path) -> None:
    server = ScramServer("u", verifier, KEY, certificate=certificate)
    assert server.mechanisms == (MECHANISM_PLUS, MECHANISM)
    assert exchange(ScramClient(CANARY, binding=scram.end_point(certificate)), server)
    other = Authority(tmp_path).issue("localhost").der
    with pytest.raises(UserPeerError, match="channel binding check failed") as caught:
        exchange(
            ScramClient(CANARY, binding=scram.end_point(other)),
            ScramServer("u", verifier, KEY, certificate=certificate),
        )
    assert caught.value.code == "28000"


def test_a_stripped_offer_of_plus_is_noticed(certificate: bytes, verifier: str) -> None:
    with pytest.raises(UserPeerError, match="negotiation") as caught:
        exchange(ScramClient(CANARY, binding_possible=True), ScramServer("u", verifier, KEY, certificate=certificate))
    assert caught.value.code == "28000"
    # Without an offer the same flag is right; and who cannot bind may say so.
    assert exchange(ScramClient(CANARY, binding_possible=True), ScramServer("u", verifier, KEY))
    assert exchange(ScramClient(CANARY), ScramServer("u", verifier, KEY, certificate=certificate))


@pytest.mark.parametrize(
    ("mechanism", "first"),
    [
        (MECHANISM_PLUS, b"n,,n=,r=abc"),
        (MECHANISM_PLUS, b"y,,n=,r=abc"),
        (MECHANISM, b"p=tls-server-end-point,,n=,r=abc"),
        (MECHANISM_PLUS, b"p=tls-unique,,n=,r=abc"),
        ("SCRAM-SHA-1", b"n,,n=,r=abc"),
        (MECHANISM, b"x,,n=,r=abc"),
        (MECHANISM, b"nn,,n=,r=abc"),
        (MECHANISM, b"n,a=other,n=,r=abc"),
        (MECHANISM, b"n,,m=ext,n=,r=abc"),
        (MECHANISM, b"n,,r=abc,n="),
        (MECHANISM, b"n,,n="),
        (MECHANISM, b"n,,n=,r="),
        (MECHANISM, b"n,,n=,r=a\x7fb"),
        (MECHANISM, b"n,,n=,r=" + b"a" * (scram.NONCE_LIMIT + 1)),
        (MECHANISM, b""),
        (MECHANISM, None),
    ],
)
def test_a_wrong_first_message(certificate: bytes, verifier: str, mechanism: str, first: bytes | None) -> None:
    with pytest.raises(UserPeerError):
        ScramServer("u", verifier, KEY, certificate=certificate).begin(mechanism, first)


def test_the_limit_of_a_nonce(verifier: str) -> None:
    for size in (scram.NONCE_LIMIT - 1, scram.NONCE_LIMIT):
        nonce = b"a" * size
        challenge = ScramServer("u", verifier, KEY).begin(MECHANISM, b"n,,n=,r=" + nonce)
        assert challenge.startswith(b"r=" + nonce)


@pytest.mark.parametrize("change", ["nonce", "header", "proof", "short", "no proof"])
def test_a_wrong_final_message(verifier: str, change: str) -> None:
    client, server = ScramClient(CANARY), ScramServer("u", verifier, KEY)
    final = client.final(server.begin(MECHANISM, client.first()))
    match change:
        case "nonce":
            final = final.replace(b",r=", b",r=x")
        case "header":
            final = final.replace(b"c=biws", b"c=eSws")
        case "proof":
            other = ScramClient("other", nonce=client._nonce)
            other.first()
            final = other.final(server._challenge)
            assert server.finish(final) is None
            return
        case "short":
            final = final.rpartition(b",p=")[0] + b",p=AAAA"
        case "no proof":
            final = final.rpartition(b",p=")[0]
    with pytest.raises(UserPeerError):
        server.finish(final)


# -- who exists must not show ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "md5d41d8cd98f00b204e9800998ecf8427e", "SCRAM-SHA-256$4096:!!$AA==:AA=="])
def test_an_unknown_user_looks_like_one_with_a_wrong_password(verifier: str, text: str | None) -> None:
    def challenge(user: str, text: str | None) -> tuple[list[bytes], bool]:
        client, server = ScramClient("guess"), ScramServer(user, text, KEY)
        first = server.begin(MECHANISM, client.first())
        return first.split(b",")[1:], server.finish(client.final(first)) is None

    mock, refused = challenge("nobody", text)
    real, refused_too = challenge("somebody", verifier)
    assert refused and refused_too
    assert [len(part) for part in mock] == [len(part) for part in real]
    assert mock[1] == real[1] == b"i=4096"
    assert challenge("nobody", text)[0] == mock  # the same salt at every try
    assert challenge("other", text)[0] != mock
    assert ScramServer("nobody", text, b"other key").begin(MECHANISM, b"n,,n=,r=a").split(b",")[1] != mock[0]


# -- a target that cheats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "challenge",
    [
        b"r=OTHER+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=mine,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",  # adds nothing
        b"r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=0",
        b"r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=-1",
        b"r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=10000001",
        b"r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=99999999999999999999",
        b"r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096x",
        b"r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=",
        b"r=mine+more,s=,i=4096",
        b"r=mine+more,s=****,i=4096",
        b"r=mine+more,s=" + base64.b64encode(b"s" * (scram.SALT_LIMIT + 1)) + b",i=4096",
        b"m=ext,r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"s=W22ZaJ0SNY7soEsUEjb6gQ==,r=mine+more,i=4096",
        b"r=mine+more",
        b"",
        b"r=mine+" + b"x" * scram.SCRAM_MESSAGE_LIMIT,
    ],
)
def test_a_false_challenge(challenge: bytes) -> None:
    client = ScramClient(CANARY, nonce=b"mine")
    client.first()
    with pytest.raises(TargetPeerError) as caught:
        client.final(challenge)
    assert CANARY not in str(caught.value) and not client.verified


def test_the_limit_of_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scram, "ITERATIONS_LIMIT", 5000)
    for count, fits in ((4999, True), (5000, True), (5001, False)):
        client = ScramClient("x", nonce=b"mine")
        client.first()
        challenge = b"r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=%d" % count
        if fits:
            assert client.final(challenge).startswith(b"c=biws,r=mine+more,p=")
        else:
            with pytest.raises(TargetPeerError, match="iteration"):
                client.final(challenge)


@pytest.mark.parametrize("outcome", [b"v=" + base64.b64encode(b"x" * 32), b"v=", b"e=other-error", b"", b"x=1", b"v=!"])
def test_a_target_without_the_password(outcome: bytes) -> None:
    client = ScramClient(CANARY, nonce=b"mine")
    client.first()
    client.final(b"r=mine+more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    with pytest.raises(TargetPeerError):
        client.verify(outcome)
    assert not client.verified


def test_a_signature_before_the_challenge() -> None:
    client = ScramClient(CANARY)
    client.first()
    with pytest.raises(TargetPeerError):
        client.verify(b"v=" + base64.b64encode(b"x" * 32))


# -- garbage -----------------------------------------------------------------------------------------------

pieces = st.lists(
    st.sampled_from([b"r=", b"s=", b"i=", b"n=", b"p=", b"c=", b"v=", b"m=", b",", b"biws", b"AAAA", b"1", b"n", b"y"])
    | st.binary(max_size=6),
    max_size=12,
).map(b"".join)


@given(pieces)
@settings(deadline=None)
def test_garbage_raises_a_peer_error_and_nothing_else(data: bytes) -> None:
    client = ScramClient("x", nonce=b"r")
    client.first()
    server = ScramServer("u", None, KEY)
    started = ScramServer("u", None, KEY)
    started.begin(MECHANISM, b"n,,n=,r=abc")
    steps: tuple[Callable[[], object], ...] = (
        lambda: server.begin(MECHANISM, data),
        lambda: started.finish(data),
        lambda: client.verify(data),
        lambda: client.final(data),
    )
    for step in steps:
        try:
            found = step()
        except PeerError as error:
            assert str(error)
        else:
            assert found is None or isinstance(found, bytes)


@given(st.text(max_size=120))
def test_a_verifier_is_read_or_refused(text: str) -> None:
    for candidate in (text, f"SCRAM-SHA-256${text}"):
        with pytest.raises(ValueError, match=r"^not a SCRAM-SHA-256 verifier$"):
            scram.parse_verifier(candidate)
