"""WebSocket frames of both sides: what is taken, what is refused, where its limits are; wsproto is the oracle."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from proxy.core.errors import PeerError, TargetPeerError, UserPeerError
from proxy.core.http import websocket as ws
from proxy.core.http.heads import RequestHead, ResponseHead
from proxy.core.http.parser import RequestParser
from proxy.core.http.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Decoder, Frame, Messages, encode
from tests.core.http.messages import cuts, request

KEY = b"\x37\xfa\x21\x3d"


def masked(opcode: int, payload: bytes, fin: bool = True, key: bytes = KEY) -> bytes:
    """A frame as a browser sends it; encode() itself only knows a key of zeros."""
    clear = encode(opcode, payload, mask=True, fin=fin)
    head = len(clear) - len(payload)
    return clear[: head - 4] + key + ws.apply_mask_slowly(payload, key)


def decoded(data: bytes, of_user: bool, limit: int = 1 << 20) -> list[Frame]:
    """The frames of data, the same however it is cut. Raises what the decoder raises, the same however it is cut."""
    outcomes: list[tuple[list[Frame], str]] = []
    failure: PeerError | None = None
    for pieces in cuts(data):
        decoder = Decoder(of_user, limit)
        frames: list[Frame] = []
        text = ""
        try:
            for piece in pieces:
                frames += decoder.feed(piece)
        except PeerError as error:
            failure, text = error, str(error)
            with pytest.raises(type(error)):
                decoder.feed(b"\x82\x00")  # once broken, for ever
        outcomes.append((frames if not text else [], text))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    if failure is not None:
        raise failure
    return outcomes[0][0]


def test_frames_of_the_specification() -> None:
    """RFC 6455 5.7."""
    assert decoded(bytes.fromhex("810548656c6c6f"), False) == [Frame(TEXT, True, b"Hello", b"\x81\x05Hello")]
    wire = bytes.fromhex("818537fa213d7f9f4d5158")
    assert decoded(wire, True) == [Frame(TEXT, True, b"Hello", wire)]
    parts = decoded(bytes.fromhex("010348656c") + bytes.fromhex("80026c6f"), False)
    assert [(frame.opcode, frame.fin, frame.payload) for frame in parts] == [
        (TEXT, False, b"Hel"), (CONTINUATION, True, b"lo"),
    ]  # fmt: skip
    assert encode(TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")


def test_every_length_there_and_back() -> None:
    for size in (0, 1, 125, 126, 127, 65535, 65536, 70000):
        payload = os.urandom(size)
        for of_user in (False, True):
            for wire in {encode(BINARY, payload, mask=of_user), masked(BINARY, payload) if of_user else b""} - {b""}:
                # In three pieces and with a tail; bytewise is done with short ones.
                decoder = Decoder(of_user)
                frames = [*decoder.feed(wire[:1]), *decoder.feed(wire[1:-1]), *decoder.feed(wire[-1:] + wire)]
                assert frames == [Frame(BINARY, True, payload, wire)] * 2
                assert decoder.between


def test_the_limit_is_judged_by_the_head_alone() -> None:
    for limit in (100, 1000, 100_000):
        for size, fits in [(limit - 1, True), (limit, True), (limit + 1, False)]:
            head = encode(BINARY, bytes(size))[: -size or None]
            decoder = Decoder(False, limit)
            if fits:
                assert decoder.feed(head) == []
                assert len(decoder.feed(bytes(size))) == 1
            else:
                with pytest.raises(TargetPeerError) as caught:
                    decoder.feed(head)
                assert caught.value.code == "1009"
    # A length of 63 bits is refused before anything is collected.
    with pytest.raises(UserPeerError):
        Decoder(True).feed(b"\x82\xff" + b"\x7f" + b"\xff" * 7)


def test_what_a_peer_may_not_send() -> None:
    for name, frame, code in [
        ("RSV1", b"\xc2\x00", "1002"),
        ("RSV2", b"\xa2\x00", "1002"),
        ("RSV3", b"\x92\x00", "1002"),
        ("a reserved data opcode", b"\x83\x00", "1002"),
        ("a reserved control opcode", b"\x8b\x00", "1002"),
        ("a fragmented ping", b"\x09\x00", "1002"),
        ("a fragmented close", b"\x08\x00", "1002"),
        ("a long ping, by its head alone", b"\x89\x7e\x00\x7e", "1002"),
        ("a continuation of nothing", b"\x80\x00", "1002"),
        ("a message inside a message", b"\x02\x00\x82\x00", "1002"),
        ("a length in two bytes for no reason", b"\x82\x7e\x00\x7d" + bytes(125), "1002"),
        ("a length in eight bytes for no reason", b"\x82\x7f" + struct.pack("!Q", 65535) + bytes(65535), "1002"),
        ("a length with its top bit set", b"\x82\x7f\x80" + bytes(7), "1009"),
        ("a close of one byte", b"\x88\x01\x03", "1002"),
        ("a close reason that is not UTF-8", b"\x88\x03\x03\xe8\xff", "1007"),
        *((f"close code {code}", b"\x88\x02" + struct.pack("!H", code), "1002")
          for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)),
    ]:  # fmt: skip
        if len(frame) < 1000:
            with pytest.raises(TargetPeerError) as caught:
                decoded(frame, False)
        else:
            with pytest.raises(TargetPeerError) as caught:
                Decoder(False).feed(frame)
        assert caught.value.code == code, name


def test_masks_are_the_users_alone() -> None:
    with pytest.raises(UserPeerError):
        decoded(encode(BINARY, b"abc"), True)
    with pytest.raises(TargetPeerError):
        decoded(encode(BINARY, b"abc", mask=True), False)


def test_close_ends_it() -> None:
    for code in (1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999):
        wire = ws.encode_close(code, "bye")
        decoder = Decoder(False)
        (frame,) = decoder.feed(wire + b"\xff" * 100)
        assert ws.decode_close(frame.payload) == (code, "bye")
        assert decoder.closed
        assert decoder.feed(b"\xff" * 100) == []
    assert ws.decode_close(b"") == (1005, "")
    long = decoded(ws.encode_close(1000, "é" * 100), False)[0]
    assert ws.decode_close(long.payload) == (1000, "é" * 61)
    with pytest.raises(AssertionError):
        ws.encode_close(1006)
    with pytest.raises(AssertionError):
        encode(PING, bytes(126))


def test_control_frames_come_between_fragments() -> None:
    data = encode(TEXT, b"a\xc3", fin=False) + encode(PING, b"p") + encode(CONTINUATION, b"", fin=False)
    data += encode(PONG, b"q") + encode(CONTINUATION, b"\xa9") + encode(BINARY, b"\xff") + ws.encode_close(1000)
    found = Messages(False).feed(decoded(data, False))
    assert [(message.opcode, message.payload) for message in found] == [
        (PING, b"p"), (PONG, b"q"), (TEXT, "aé".encode()), (BINARY, b"\xff"), (CLOSE, b"\x03\xe8"),
    ]  # fmt: skip


def test_messages_are_bounded_and_text_is_text() -> None:
    for size, fits in [(9, True), (10, True), (11, False)]:
        frames = [Frame(BINARY, False, b"12345", b""), Frame(CONTINUATION, True, b"x" * (size - 5), b"")]
        if fits:
            assert len(Messages(True, limit=10).feed(frames)) == 1
        else:
            with pytest.raises(UserPeerError) as caught:
                Messages(True, limit=10).feed(frames)
            assert caught.value.code == "1009"
    with pytest.raises(TargetPeerError) as fault:
        Messages(False).feed([Frame(TEXT, True, b"\xff", b"")])
    assert fault.value.code == "1007"


def test_both_ways_to_unmask_are_one() -> None:
    for size in (0, 1, 3, 4, 5, 100, 1001):
        data, key = os.urandom(size), os.urandom(4)
        expected = bytes(byte ^ key[i % 4] for i, byte in enumerate(data))
        assert ws.apply_mask_slowly(data, key) == expected
        assert ws._apply_mask(data, key) == expected
    assert ws._apply_mask is not ws.apply_mask_slowly, "websockets' C function is missing"


# -- wsproto as the second opinion --------------------------------------------------------------------

CONTROL = st.binary(max_size=125)
EVENTS = st.lists(
    st.one_of(
        st.builds(BytesMessage, data=st.binary(max_size=300), message_finished=st.just(True)),
        st.builds(TextMessage, data=st.text(max_size=100), message_finished=st.just(True)),
        st.builds(Ping, payload=CONTROL),
        st.builds(Pong, payload=CONTROL),
        st.tuples(st.binary(max_size=200), st.binary(max_size=200), CONTROL),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.booleans(), st.text(max_size=20))
def test_what_wsproto_says_is_what_it_meant(
    events: list[Event | tuple[bytes, bytes, bytes]], of_user: bool, reason: str
) -> None:
    peer = Connection(ConnectionType.CLIENT if of_user else ConnectionType.SERVER)
    data = b""
    meant: list[tuple[int, bytes]] = []
    for event in events:
        match event:
            case BytesMessage():
                meant.append((BINARY, bytes(event.data)))
            case TextMessage():
                meant.append((TEXT, event.data.encode()))
            case Ping():
                meant.append((PING, bytes(event.payload)))
            case Pong():
                meant.append((PONG, bytes(event.payload)))
            case (one, two, ping):
                data += peer.send(BytesMessage(data=one, message_finished=False))
                data += peer.send(Ping(payload=ping))
                data += peer.send(BytesMessage(data=two, message_finished=True))
                meant += [(PING, ping), (BINARY, one + two)]
                continue
        data += peer.send(event)
    data += peer.send(CloseConnection(code=1000, reason=reason))
    meant.append((CLOSE, b"\x03\xe8" + reason.encode()))
    frames = decoded(data, of_user)
    assert b"".join(frame.wire for frame in frames) == data
    assert [(message.opcode, message.payload) for message in Messages(of_user).feed(frames)] == meant


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([BINARY, TEXT, PING, PONG]), st.binary(max_size=125)), max_size=6),
    st.booleans(),
)
def test_wsproto_reads_what_we_say(said: list[tuple[int, bytes]], to_target: bool) -> None:
    peer = Connection(ConnectionType.SERVER if to_target else ConnectionType.CLIENT)
    said = [(opcode, payload.hex().encode()[:125] if opcode == TEXT else payload) for opcode, payload in said]
    data = b"".join(encode(opcode, payload, mask=to_target) for opcode, payload in said)
    peer.receive_data(data + ws.encode_close(1001, "away", mask=to_target))
    heard: list[tuple[int, bytes]] = []
    for event in peer.events():
        match event:
            case BytesMessage():
                heard.append((BINARY, bytes(event.data)))
            case TextMessage():
                heard.append((TEXT, event.data.encode()))
            case Ping():
                heard.append((PING, bytes(event.payload)))
            case Pong():
                heard.append((PONG, bytes(event.payload)))
            case CloseConnection():
                heard.append((CLOSE, str(event.reason).encode()))
    assert heard == [*said, (CLOSE, b"away")]


SEEDS = [
    masked(BINARY, b"\x00abc") + masked(PING, b"x") + masked(CLOSE, b"\x03\xe8bye"),
    masked(TEXT, b"a", fin=False) + masked(CONTINUATION, b"b" * 200),
    encode(BINARY, b"abc") + encode(PING, b"x") + ws.encode_close(1000),
    encode(BINARY, b"abc" * 100, fin=False) + encode(CONTINUATION, b"x"),
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    st.binary(max_size=40),
    st.booleans(),
)
def test_garbage_is_a_peer_error_and_nothing_else(
    seed: bytes, edits: list[tuple[int, int]], tail: bytes, of_user: bool
) -> None:
    data = bytearray(seed)
    for place, value in edits:
        data[place % len(data)] = value
    try:
        frames = decoded(bytes(data) + tail, of_user, limit=2000)
        Messages(of_user, limit=4000).feed(frames)
    except PeerError as error:
        assert error.code in ("1002", "1007", "1009")
        assert isinstance(error, UserPeerError) is of_user
    else:
        assert (bytes(data) + tail).startswith(b"".join(frame.wire for frame in frames))


# -- the handshake ------------------------------------------------------------------------------------

GOOD = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
KEY_FIELD = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="


def asked(*fields: str, line: str = "GET / HTTP/1.1") -> RequestHead:
    head = RequestParser().feed(request(line, *fields))[0]
    assert isinstance(head, RequestHead)
    return head


def test_the_key_of_the_specification() -> None:
    assert ws.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_handshakes_of_users() -> None:
    assert ws.handshake_problem(asked(*GOOD, KEY_FIELD)) is None
    assert ws.handshake_problem(asked(*GOOD, KEY_FIELD, "Sec-WebSocket-Extensions: permessage-deflate")) is None
    for head in [
        asked(*GOOD),
        asked(*GOOD, KEY_FIELD, KEY_FIELD),
        asked(*GOOD, "Sec-WebSocket-Key: c2hvcnQ="),
        asked(*GOOD, "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="),
        asked(*GOOD, KEY_FIELD, line="POST / HTTP/1.1"),
        asked(*GOOD, KEY_FIELD, line="GET / HTTP/1.0"),
        asked(*GOOD, KEY_FIELD, "Content-Length: 1"),
        asked(*GOOD, KEY_FIELD, "Transfer-Encoding: chunked"),
        asked(*GOOD, KEY_FIELD, "Upgrade: h2c"),
        asked(*GOOD[:2], KEY_FIELD),
        asked(*GOOD[:2], "Sec-WebSocket-Version: 8", KEY_FIELD),
        asked(*GOOD[1:], KEY_FIELD),
        asked("Connection: Upgrade", "Sec-WebSocket-Version: 13", KEY_FIELD),
    ]:
        assert ws.handshake_problem(head), head


def test_answers_of_targets() -> None:
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    good = (("Upgrade", "WebSocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ws.accept_key(key)))
    assert ws.answer_problem(ResponseHead(101, "", good), key) is None
    for head in [
        ResponseHead(403, "", good),
        ResponseHead(101, "", good[1:]),
        ResponseHead(101, "", (good[0], good[2])),
        ResponseHead(101, "", good[:2]),
        ResponseHead(101, "", (*good[:2], ("Sec-WebSocket-Accept", ws.accept_key("x")))),
        ResponseHead(101, "", (*good, ("Sec-WebSocket-Extensions", "permessage-deflate"))),
    ]:
        assert ws.answer_problem(head, key), head
