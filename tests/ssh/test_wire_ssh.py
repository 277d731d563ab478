"""The codec of the connection protocol: round trips, bytes of the specification, garbage, limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ssh import wire, wire_bodies
from proxy.core.errors import TargetPeerError, UserPeerError

U32 = st.integers(0, 2**32 - 1)
TEXT = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
BYTES = st.binary(max_size=200)

MESSAGES = st.one_of(
    st.builds(wire.GlobalRequest, TEXT, st.booleans(), BYTES),
    st.builds(wire.RequestSuccess, BYTES),
    st.builds(wire.RequestFailure),
    st.builds(wire.ChannelOpen, TEXT, U32, U32, U32, BYTES),
    st.builds(wire.OpenConfirmation, U32, U32, U32, U32, BYTES),
    st.builds(wire.OpenFailure, U32, U32, TEXT, TEXT),
    st.builds(wire.WindowAdjust, U32, U32),
    st.builds(wire.Data, U32, BYTES),
    st.builds(wire.ExtendedData, U32, U32, BYTES),
    st.builds(wire.Eof, U32),
    st.builds(wire.Close, U32),
    st.builds(wire.ChannelRequest, U32, TEXT, st.booleans(), BYTES),
    st.builds(wire.ChannelSuccess, U32),
    st.builds(wire.ChannelFailure, U32),
)
BODIES = st.one_of(
    st.builds(wire_bodies.Pty, TEXT, U32, U32, U32, U32, BYTES),
    st.builds(wire_bodies.WindowChange, U32, U32, U32, U32),
    st.builds(wire_bodies.Env, TEXT, TEXT),
    st.builds(wire_bodies.Word, TEXT),
    st.builds(wire_bodies.Number, U32),
    st.builds(wire_bodies.Flag, st.booleans()),
    st.builds(wire_bodies.ExitSignal, TEXT, st.booleans(), TEXT, TEXT),
    st.builds(wire_bodies.X11Request, st.booleans(), TEXT, TEXT, U32),
    st.builds(wire_bodies.Tcpip, TEXT, U32, TEXT, U32),
    st.builds(wire_bodies.DirectStreamlocal, TEXT, TEXT, U32),
    st.builds(wire_bodies.ForwardedStreamlocal, TEXT, TEXT),
    st.builds(wire_bodies.Origin, TEXT, U32),
    st.builds(wire_bodies.Tun, U32, U32),
    st.builds(wire_bodies.Listen, TEXT, U32),
)


@given(MESSAGES)
def test_what_is_encoded_decodes_to_the_same(message: wire.Message) -> None:
    assert wire.decode(message.encode(), UserPeerError) == message


@given(MESSAGES, st.data())
def test_a_cut_message_is_malformed_or_another(message: wire.Message, data: st.DataObject) -> None:
    payload = message.encode()
    cut = payload[: data.draw(st.integers(0, len(payload) - 1))]
    try:
        found = wire.decode(cut, TargetPeerError)
    except TargetPeerError:
        return
    assert found.encode()[: len(cut)] == cut or isinstance(found, wire.OpenFailure)


@given(st.binary(max_size=300))
def test_garbage_raises_the_callers_error_and_nothing_else(payload: bytes) -> None:
    try:
        wire.decode(payload, UserPeerError)
    except UserPeerError as error:
        assert str(error)


@pytest.mark.parametrize("number", [93, 94, 95, 96, 97, 99, 100, 82])
def test_nothing_follows_the_end_of_a_message(number: int) -> None:
    payload = bytes((number,)) + b"\0" * {82: 0, 93: 8, 94: 8, 95: 12}.get(number, 4)
    wire.decode(payload, UserPeerError)
    with pytest.raises(UserPeerError, match="behind its end"):
        wire.decode(payload + b"x", UserPeerError)


@given(BODIES)
def test_bodies_decode_to_the_same(
    body: wire_bodies.RequestBody | wire_bodies.OpenBody | wire_bodies.GlobalBody,
) -> None:
    assert type(body).read(body.encode(), UserPeerError) == body
    with pytest.raises(UserPeerError):
        type(body).read(body.encode() + b"x", UserPeerError)
    with pytest.raises(UserPeerError):
        type(body).read(body.encode()[:-1], UserPeerError)


def test_bytes_of_the_specification() -> None:
    """RFC 4254 6.5 and 6.10, by hand."""
    payload = bytes.fromhex("62 00000007 00000004 65786563 01 00000002 6c73")
    assert wire.decode(payload, UserPeerError) == wire.ChannelRequest(7, "exec", True, wire.string("ls"))
    opened = bytes.fromhex("5a 00000007") + b"session" + bytes.fromhex("00000003 00200000 00008000")
    assert wire.decode(opened, UserPeerError) == wire.ChannelOpen("session", 3, 2 * 1024 * 1024, 32_768)
    assert wire.Data(1, b"ab").encode() == bytes.fromhex("5e 00000001 00000002 6162")
    assert wire.WindowAdjust(1, 2).encode() == bytes.fromhex("5d 00000001 00000002")


def test_the_texts_of_a_failure_may_be_missing() -> None:
    payload = bytes((92,)) + wire.u32(4) + wire.u32(1)
    assert wire.decode(payload, UserPeerError) == wire.OpenFailure(4, 1)
    assert wire.decode(payload + wire.string("no"), UserPeerError) == wire.OpenFailure(4, 1, "no")


def test_a_message_of_an_unknown_number_is_no_error() -> None:
    assert wire.decode(b"\x7fabc", UserPeerError) == wire.UnknownMessage(127)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_size_of_a_message_is_limited(more: int) -> None:
    payload = b"Q" + b"x" * (wire.PAYLOAD_LIMIT - 1 + more)
    if more > 0:
        with pytest.raises(UserPeerError, match="are allowed"):
            wire.decode(payload, UserPeerError)
    else:
        assert wire.decode(payload, UserPeerError) == wire.RequestSuccess(payload[1:])


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8))
def test_frames_are_taken_apart(payloads: list[bytes]) -> None:
    assert wire.unframe(b"".join(map(wire.frame, payloads)), UserPeerError) == payloads


@pytest.mark.parametrize("data", [b"\0\0\0", b"\0\0\0\0", b"\0\0\0\2a", b"\xff\xff\xff\xffa"])
def test_a_malformed_frame_is_an_error(data: bytes) -> None:
    with pytest.raises(TargetPeerError):
        wire.unframe(data, TargetPeerError)


@given(st.binary(max_size=500), st.integers(1, 200), st.sampled_from([None, 1]))
def test_data_come_in_pieces_of_the_largest_packet(data: bytes, packet: int, code: int | None) -> None:
    frames = wire.unframe(wire.data_frames(9, data, packet, code), UserPeerError)
    messages = [wire.decode(each, UserPeerError) for each in frames]
    assert all(isinstance(each, wire.ExtendedData if code else wire.Data) for each in messages)
    pieces = [each.data for each in messages if isinstance(each, wire.Data | wire.ExtendedData)]
    assert b"".join(pieces) == data
    assert all(len(piece) <= packet for piece in pieces)


def test_pieces_are_never_larger_than_everybody_takes() -> None:
    frames = wire.unframe(wire.data_frames(0, bytes(100_000), 2**32 - 1), UserPeerError)
    assert [len(each) - wire.DATA_HEAD_BYTES for each in frames] == [32_768, 32_768, 32_768, 1696]


def test_terminal_modes() -> None:
    modes = {53: 1, 128: 38_400}
    assert wire_bodies.terminal_modes(wire_bodies.encode_modes(modes), UserPeerError) == modes
    assert wire_bodies.terminal_modes(b"\x35\0\0\0\1\xa0rest", UserPeerError) == {53: 1}
    assert wire_bodies.terminal_modes(b"", UserPeerError) == {}
    with pytest.raises(UserPeerError):
        wire_bodies.terminal_modes(b"\x35\0\0", UserPeerError)
