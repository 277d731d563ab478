"""The messages of the login: exact bytes, round trips, limits, and garbage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.postgres import startup
from proxy.core.errors import PeerError, TargetPeerError, UserPeerError

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
names = texts.filter(lambda text: text != "" and not text.startswith("_pq_."))


def startup_body(*strings: bytes, version: int = startup.PROTOCOL_3_0, end: bytes = b"\0") -> bytes:
    return version.to_bytes(4, "big") + b"".join(string + b"\0" for string in strings) + end


@given(st.dictionaries(names, texts, max_size=8))
def test_startup_round_trip_keeps_the_order(parameters: dict[str, str]) -> None:
    wire = startup.encode_startup(parameters)
    assert int.from_bytes(wire[:4], "big") == len(wire)
    message = startup.parse_startup(wire[4:])
    assert list(message.parameters.items()) == list(parameters.items())
    assert message.version == startup.PROTOCOL_3_0 and message.unknown_protocol_options == ()


def test_startup_by_its_bytes() -> None:
    assert startup.encode_startup({"user": "a"}) == b"\x00\x00\x00\x10\x00\x03\x00\x00user\0a\0\0"
    body = startup_body(b"user", b"\xff\xfe", b"user", b"last", b"_pq_.two", b"1", b"_pq_.one", b"", version=0x0003270F)
    message = startup.parse_startup(body)
    assert message == startup.StartupMessage(0x0003270F, {"user": "last"}, ("_pq_.two", "_pq_.one"))
    odd = startup.parse_startup(startup_body(b"user", b"\xff"))
    assert startup.encode_startup(odd.parameters)[4:] == startup_body(b"user", b"\xff")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\x03\x00",
        b"\x00\x03\x00\x00",
        startup_body(b"user", b"a", end=b""),
        startup_body(b"user"),
        startup_body(b"", b"a"),
        startup_body(b"user", b"a") + b"x",
        startup_body(b"user", b"a") + b"\0",
        startup_body(b"user", b"a", end=b"user\0\0x"),
    ],
)
def test_a_broken_layout_is_a_protocol_violation(body: bytes) -> None:
    with pytest.raises(UserPeerError) as caught:
        startup.parse_startup(body)
    assert caught.value.code == "08P01"


@pytest.mark.parametrize("version", [0x00020000, 0x00040000, 0x00000000, 0x16030100])
def test_another_major_version_is_refused(version: int) -> None:
    with pytest.raises(UserPeerError) as caught:
        startup.parse_first(startup_body(b"user", b"a", version=version))
    assert caught.value.code == "0A000"


@pytest.mark.parametrize(("spare", "fits"), [(-1, True), (0, True), (1, False)])
def test_the_limit_of_a_startup_packet(spare: int, fits: bool) -> None:
    overhead = len(startup_body(b"user", b""))
    value = "x" * (startup.STARTUP_LIMIT - overhead + spare)
    body = startup_body(b"user", value.encode())
    if fits:
        assert startup.parse_first(body) == startup.StartupMessage(startup.PROTOCOL_3_0, {"user": value})
        assert startup.encode_startup({"user": value})[4:] == body
    else:
        with pytest.raises(UserPeerError):
            startup.parse_first(body)
        with pytest.raises(ValueError, match="too long"):
            startup.encode_startup({"user": value})


def test_a_nul_never_becomes_another_parameter() -> None:
    for parameters in ({"user": "a\0database\0b"}, {"us\0er": "a"}, {"": "a"}):
        with pytest.raises(ValueError):
            startup.encode_startup(parameters)


def test_requests_for_encryption() -> None:
    assert startup.encode_ssl_request() == bytes.fromhex("0000000804d2162f")
    assert startup.encode_gssenc_request() == bytes.fromhex("0000000804d21630")
    assert startup.parse_first(startup.encode_ssl_request()[4:]) == startup.SSLRequest()
    assert startup.parse_first(startup.encode_gssenc_request()[4:]) == startup.GSSENCRequest()
    with pytest.raises(UserPeerError):
        startup.parse_first(startup.encode_ssl_request()[4:] + b"x")


@pytest.mark.parametrize(("size", "fits"), [(3, False), (4, True), (5, True), (255, True), (256, True), (257, False)])
def test_the_limits_of_a_cancel_key(size: int, fits: bool) -> None:
    wire = startup.encode_cancel(4_000_000_000, b"k" * size)
    assert int.from_bytes(wire[:4], "big") == len(wire)
    key = startup.encode_backend_key(4_000_000_000, b"k" * size)
    if fits:
        assert startup.parse_first(wire[4:]) == startup.CancelRequest(4_000_000_000, b"k" * size)
        assert startup.parse_backend_key(key[5:]) == (4_000_000_000, b"k" * size)
    else:
        with pytest.raises(UserPeerError):
            startup.parse_first(wire[4:])
        with pytest.raises(TargetPeerError):
            startup.parse_backend_key(key[5:])


@given(st.dictionaries(st.sampled_from("SVCMDHPpqWstcdnFLR"), texts, max_size=8), st.sampled_from([b"E", b"N"]))
def test_error_round_trip(fields: dict[str, str], kind: bytes) -> None:
    wire = startup.encode_error(fields, kind)
    assert wire[:1] == kind and int.from_bytes(wire[1:5], "big") == len(wire) - 1
    assert startup.error_fields(wire[5:]) == fields


def test_odd_errors() -> None:
    assert startup.error_fields(b"\0") == {}
    assert startup.error_fields(b"SFATAL\0Mone\0Mtwo\0\0") == {"S": "FATAL", "M": "two"}
    assert startup.error_fields(startup.encode_error({"M": "a\0Cb\ud800"})[5:]) == {"M": "a\ufffdCb?"}
    for body in (b"", b"M", b"Mtext", b"Mtext\0", b"Mtext\0\0x"):
        with pytest.raises(UserPeerError):
            startup.error_fields(body, UserPeerError)


def test_negotiation_tells_the_whole_version() -> None:
    wire = startup.encode_negotiate(startup.PROTOCOL_3_2, ["_pq_.a", "_pq_.b"])
    assert wire == b"v\x00\x00\x00\x1a\x00\x03\x00\x02\x00\x00\x00\x02_pq_.a\0_pq_.b\0"


def test_authentication_messages() -> None:
    assert startup.encode_auth(startup.AUTH_OK) == b"R\x00\x00\x00\x08\x00\x00\x00\x00"
    wire = startup.encode_sasl_mechanisms(["A", "B"])
    code, data = startup.parse_auth(wire[5:])
    assert (code, startup.parse_sasl_mechanisms(data)) == (startup.AUTH_SASL, ("A", "B"))
    assert startup.parse_sasl_initial(startup.encode_sasl_initial("A", b"x\0y")[5:]) == ("A", b"x\0y")
    assert startup.parse_sasl_initial(startup.encode_sasl_initial("A", None)[5:]) == ("A", None)
    assert startup.parse_sasl_initial(startup.encode_sasl_initial("A", b"")[5:]) == ("A", b"")
    for body in (b"", b"A", b"A\0", b"A\0\0\0\0\5abc", b"A\0\xff\xff\xff\xffx", b"A\0\0\0\0\0x"):
        with pytest.raises(UserPeerError):
            startup.parse_sasl_initial(body)
    assert startup.parse_password(startup.encode_password(b"secret")[5:]) == b"secret"
    for body in (b"", b"secret", b"sec\0ret\0", b"secret\0\0", b"secret\0x"):
        with pytest.raises(UserPeerError):
            startup.parse_password(body)


def test_parameter_status() -> None:
    wire = startup.encode_parameter_status("TimeZone", "Etc/UTC")
    assert wire == b"S\x00\x00\x00\x15TimeZone\0Etc/UTC\0"
    assert startup.parse_parameter_status(wire[5:]) == ("TimeZone", "Etc/UTC")


DECODERS: tuple[Callable[[bytes], object], ...] = (
    startup.parse_first,
    startup.parse_startup,
    startup.parse_cancel,
    startup.parse_password,
    startup.parse_sasl_initial,
    startup.parse_auth,
    startup.parse_sasl_mechanisms,
    startup.parse_parameter_status,
    startup.parse_backend_key,
    startup.error_fields,
)


@given(st.binary(max_size=200), st.sampled_from(DECODERS), st.sampled_from([b"", b"\0\3\0\0", b"\x04\xd2\x16\x2e"]))
def test_garbage_raises_a_peer_error_and_nothing_else(
    body: bytes, decode: Callable[[bytes], object], head: bytes
) -> None:
    try:
        decode(head + body)
    except PeerError as error:
        assert str(error)
    else:
        assert decode(head + body) == decode(head + body)
