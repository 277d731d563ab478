"""SPDY/3.1: frames and sessions, against the tests' own codec, cut anywhere, at every limit, and fuzzed."""

from __future__ import annotations

import hashlib
import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.kubernetes.spdy import Away, Opened, Received, Replied, Reply, Reset, Session, SessionEvent
from protocols.kubernetes.spdy_wire import (
    CANCEL,
    DICTIONARY,
    FIN,
    PIECE_BYTES,
    UNIDIRECTIONAL,
    Decoder,
    Encoder,
    Frame,
    Limits,
)
from proxy.core.errors import PeerError, TargetPeerError, UserPeerError
from tests.peers.kube.spdy import Codec

WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12).map(str.lower)
HEADERS = st.dictionaries(WORDS, st.text(st.characters(max_codepoint=0xFF), max_size=40), max_size=6)


def joined(frames: Iterable[Frame]) -> list[Frame]:
    """Frames with the pieces of data frames put together."""
    whole: list[Frame] = []
    open_piece = False
    for frame in frames:
        if frame.kind == 0 and open_piece and whole[-1].stream == frame.stream:
            whole[-1] = frame._replace(data=whole[-1].data + frame.data)
        else:
            whole.append(frame)
        open_piece = frame.kind == 0 and not frame.flags
    return whole


def control(kind: int, body: bytes, flags: int = 0, version: int = 3) -> bytes:
    return struct.pack("!HHI", 0x8000 | version, kind, flags << 24 | len(body)) + body


def block(raw: bytes) -> bytes:
    deflater = zlib.compressobj(zdict=DICTIONARY)
    return deflater.compress(raw) + deflater.flush(zlib.Z_SYNC_FLUSH)


def opened_pair() -> tuple[Session, Session, int]:
    """A user's end, the gate's, and a stream that is open between them."""
    user, gate = Session(server=False), Session(server=True)
    stream, wire = user.open({"streamtype": "data"})
    gate.receive(wire)
    user.receive(gate.reply(stream))
    return user, gate, stream


# -- frames -----------------------------------------------------------------------------------------------


def test_the_dictionary_is_that_of_spdy_3() -> None:
    assert len(DICTIONARY) == 1423
    assert hashlib.sha256(DICTIONARY).hexdigest().startswith("51d27341373f923f")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**31 - 1), HEADERS, st.booleans(), st.binary(max_size=300)), max_size=6),
       st.randoms(use_true_random=False))  # fmt: skip
def test_what_is_encoded_is_decoded_however_it_is_cut(
    given_frames: list[tuple[int, dict[str, str], bool, bytes]], chance: random.Random
) -> None:
    encoder, expected, wire = Encoder(), [], b""
    for stream, headers, fin, data in given_frames:
        flags = FIN if fin else 0
        wire += encoder.syn_stream(stream, headers, fin) + encoder.syn_reply(stream, headers, fin)
        wire += encoder.headers(stream, headers, fin) + encoder.ping(stream) + encoder.rst_stream(stream, CANCEL)
        wire += encoder.settings({4: 100}) + encoder.window_update(stream, 9) + encoder.goaway(stream, 2)
        wire += encoder.data(stream, data + b"x", fin=True)
        expected += [Frame(kind, stream, flags, headers=headers) for kind in (1, 2, 8)]
        expected += [Frame(6, value=stream), Frame(3, stream, value=CANCEL), Frame(4), Frame(9, stream)]
        expected += [Frame(7, stream, value=2), Frame(0, stream, FIN, data + b"x")]
    decoder, frames, at = Decoder(user=True), [], 0
    while at < len(wire):
        size = chance.choice((1, 2, 7, 8, 9, 50, 1000))
        frames += decoder.feed(wire[at : at + size])
        at += size
    assert joined(frames) == expected
    assert joined(Decoder(user=True).feed(wire)) == expected


def test_the_tests_own_codec_agrees_both_ways() -> None:
    ours, theirs = Encoder(), Codec()
    headers = [{"streamtype": kind, "port": "80", "requestid": str(n)} for n, kind in enumerate(("error", "data") * 20)]
    wire = b"".join(ours.syn_stream(2 * n + 1, each) + ours.syn_reply(2 * n + 1) for n, each in enumerate(headers))
    assert [frame.headers for frame in theirs.feed(wire) if frame.kind == 1] == headers
    decoder = Decoder(user=True)
    back = b"".join(theirs.syn_stream(2 * n + 1, each) + theirs.syn_reply(2 * n + 1) for n, each in enumerate(headers))
    assert [frame.headers for frame in decoder.feed(back) if frame.kind == 1] == headers


def test_a_data_frame_of_16_mib_is_given_on_as_it_comes_and_not_held() -> None:
    decoder = Decoder(user=True)
    assert decoder.feed(struct.pack("!II", 5, FIN << 24 | 0xFFFFFF)) == []
    pieces = [decoder.feed(bytes(65536)) for _ in range(255)]
    assert all(len(piece) == 1 and piece[0] == Frame(0, 5, 0, bytes(65536)) for piece in pieces)
    assert decoder.feed(bytes(65535) + Encoder().ping(1)) == [Frame(0, 5, FIN, bytes(65535)), Frame(6, value=1)]


def test_data_is_sent_in_pieces_and_fin_is_on_the_last() -> None:
    data = random.Random(1).randbytes(2 * PIECE_BYTES + 1)
    frames = Codec().feed(Encoder().data(3, data, fin=True))
    assert [(len(frame.data), frame.flags) for frame in frames] == [(PIECE_BYTES, 0), (PIECE_BYTES, 0), (1, FIN)]
    assert b"".join(frame.data for frame in frames) == data
    assert [frame.flags for frame in Codec().feed(Encoder().data(3, data[: 2 * PIECE_BYTES], True))] == [0, FIN]
    assert Encoder().data(3, b"") == b"" and Codec().feed(Encoder().data(3, b"", True))[0].flags == FIN


# -- limits and malformed frames ----------------------------------------------------------------------------


def test_a_header_block_is_bounded_when_inflated() -> None:
    def syn(size: int) -> bytes:
        raw = struct.pack("!II", 1, 1) + b"n" + struct.pack("!I", size - 13) + bytes(size - 13)
        return control(1, struct.pack("!IIH", 1, 0, 0) + block(raw))

    for size in (999, 1000):
        assert Decoder(True, Limits(block_bytes=1000)).feed(syn(size))[0].headers == {"n": "\0" * (size - 13)}
    with pytest.raises(UserPeerError, match="more than 1000 bytes"):
        Decoder(True, Limits(block_bytes=1000)).feed(syn(1001))


def test_an_inflate_bomb_is_not_inflated() -> None:
    frame = control(1, struct.pack("!IIH", 1, 0, 0) + block(bytes(60_000_000)))
    decoder = Decoder(user=False)
    tracemalloc.start()
    try:
        with pytest.raises(TargetPeerError, match="more than 65536 bytes"):
            decoder.feed(frame)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_headers_are_counted() -> None:
    for count in (255, 256):
        headers = {f"n{n}": "" for n in range(count)}
        assert Decoder(True).feed(Encoder().syn_stream(1, headers))[0].headers == headers
    with pytest.raises(UserPeerError, match="more than 256 headers"):
        Decoder(True).feed(Encoder().syn_stream(1, {f"n{n}": "" for n in range(257)}))


def test_a_control_frame_is_bounded_before_it_is_collected() -> None:
    decoder = Decoder(True, Limits(control_bytes=100))
    assert decoder.feed(control(1, bytes(100))[:-1]) == []
    with pytest.raises(UserPeerError, match="more than 100 bytes"):
        Decoder(True, Limits(control_bytes=100)).feed(control(1, bytes(101))[:8])


MALFORMED = {
    "version 2": control(6, bytes(4), version=2),
    "type 5": control(5, b""),
    "type 10": control(10, bytes(8)),
    "type 65535": control(65535, bytes(8)),
    "a short ping": control(6, bytes(3)),
    "a long ping": control(6, bytes(5)),
    "a short reset": control(3, bytes(4)),
    "a short goaway": control(7, bytes(4)),
    "a short open": control(1, bytes(9)),
    "settings of another length": control(4, struct.pack("!I", 2) + bytes(8)),
    "a window of another length": control(9, bytes(4)),
    "no zlib stream": control(1, bytes(10) + b"garbage"),
    "another dictionary": control(1, bytes(10) + zlib.compress(bytes(4))),
    "an empty block": control(1, bytes(10)),
    "a block that is cut off": control(1, bytes(10) + block(struct.pack("!II", 1, 5) + b"ab")),
    "a name without a value": control(1, bytes(10) + block(struct.pack("!II", 1, 2) + b"ab")),
    "something behind the headers": control(1, bytes(10) + block(struct.pack("!I", 0) + b"x")),
    "a length of 4 GiB": control(1, bytes(10) + block(struct.pack("!II", 1, 0xFFFFFFFF) + b"ab")),
    "capitals": control(1, bytes(10) + block(struct.pack("!II2sI", 1, 2, b"Ab", 0))),
    "no name": control(1, bytes(10) + block(struct.pack("!III", 1, 0, 0))),
    "a header twice": control(1, bytes(10) + block(struct.pack("!I", 2) + struct.pack("!I2sI", 2, b"ab", 0) * 2)),
    "an ended zlib stream": control(
        1, bytes(10) + (lambda z: z.compress(bytes(4)) + z.flush())(zlib.compressobj(zdict=DICTIONARY))
    ),
}


def test_malformed_frames_are_refused_and_the_decoder_stays_broken() -> None:
    for name, wire in MALFORMED.items():
        for user, error in ((True, UserPeerError), (False, TargetPeerError)):
            decoder = Decoder(user)
            with pytest.raises(error, match="SPDY"):
                decoder.feed(wire)
                pytest.fail(name)
            with pytest.raises(error):
                decoder.feed(Encoder().ping(1))


# -- sessions -----------------------------------------------------------------------------------------------


def test_a_stream_lives_from_open_to_both_fins() -> None:
    user, gate = Session(server=False), Session(server=True)
    stream, wire = user.open({"streamtype": "data", "port": "80"})
    assert stream == 1 and gate.receive(wire) == [Opened(1, {"streamtype": "data", "port": "80"}, False)]
    assert user.receive(gate.reply(1)) == [Replied(1, {})]
    assert gate.reply(1) == b"", "answered twice"
    assert gate.receive(user.data(1, b"up", fin=True)) == [Received(1, b"up", True)]
    assert user.data(1, b"more") == b"" and gate.streams == user.streams == (1,)
    assert user.receive(gate.data(1, b"down") + gate.data(1, b"", fin=True)) == [
        Received(1, b"down", False),
        Received(1, b"", True),
    ]
    assert gate.streams == user.streams == ()
    assert gate.data(1, b"late") == gate.reset(1) == b"", "said to a stream that is gone"


def test_the_opener_has_odd_ids_one_after_another() -> None:
    user, gate = Session(server=False), Session(server=True)
    assert [user.open({})[0] for _ in range(3)] == [1, 3, 5]
    assert [gate.open({})[0] for _ in range(3)] == [2, 4, 6]
    for ids in ((2,), (0,), (3, 1), (5, 5)):
        encoder, receiver = Encoder(), Session(server=True)
        with pytest.raises(UserPeerError, match="not the next one"):
            receiver.receive(b"".join(encoder.syn_stream(each, {}) for each in ids))


def test_open_with_fin_half_closes_at_once() -> None:
    user, gate = Session(server=False), Session(server=True)
    stream, wire = user.open({"streamtype": "error"}, fin=True)
    assert gate.receive(wire) == [Opened(1, {"streamtype": "error"}, True)]
    assert user.data(stream, b"x") == b""
    user.receive(gate.reply(stream))
    assert user.receive(gate.data(stream, b"no", fin=True)) == [Received(1, b"no", True)] and gate.streams == ()


def test_the_peers_ping_is_echoed_and_the_echo_of_ours_is_not() -> None:
    user, gate = Session(server=False), Session(server=True)
    ping = user.ping()
    assert ping == control(6, struct.pack("!I", 1)), "odd ids are the opener's"
    assert gate.receive(ping) == [Reply(ping)]
    assert user.receive(ping) == []
    ours = gate.ping()
    assert ours == control(6, struct.pack("!I", 2)) and user.receive(ours) == [Reply(ours)] and gate.receive(ours) == []


def test_a_reset_ends_both_directions_and_what_was_on_its_way_is_dropped() -> None:
    user, gate, stream = opened_pair()
    late = user.data(stream, b"late", fin=True)
    assert user.receive(gate.reset(stream)) == [Reset(stream, CANCEL)]
    assert gate.receive(late) == [] and gate.streams == user.streams == ()
    assert user.data(stream, b"x") == user.reset(stream) == b""
    assert gate.receive(Encoder().rst_stream(stream, CANCEL)) == [], "a reset that crossed ours"


def test_data_behind_fin_is_dropped() -> None:
    user, gate, stream = opened_pair()
    assert gate.receive(user.data(stream, b"x", fin=True)) == [Received(stream, b"x", True)]
    assert gate.receive(Encoder().data(stream, b"more") + Encoder().data(stream, b"", True)) == []
    assert gate.streams == (stream,)


def test_a_frame_of_a_stream_that_never_was_is_refused() -> None:
    for wire in (
        Encoder().data(3, b"x"), Encoder().data(2, b"x"), Encoder().data(0, b"x"), Encoder().rst_stream(3, 5),
        Encoder().headers(3, {}), Encoder().syn_reply(2), Encoder().syn_reply(1),
    ):  # fmt: skip
        _, gate, _ = opened_pair()
        with pytest.raises(UserPeerError):
            gate.receive(wire)


def test_data_before_the_reply_is_refused_from_who_has_to_reply() -> None:
    user, gate = Session(server=False), Session(server=True)
    stream, wire = user.open({})
    assert gate.receive(wire + user.data(stream, b"early"))[1] == Received(stream, b"early", False)
    with pytest.raises(TargetPeerError, match="before its SYN_REPLY"):
        user.receive(gate.data(stream, b"x"))


def test_a_second_reply_is_refused() -> None:
    user, gate, stream = opened_pair()
    with pytest.raises(TargetPeerError, match="second"):
        user.receive(gate._encoder.syn_reply(stream))


def test_a_reply_may_end_the_stream() -> None:
    user = Session(server=False)
    stream, _ = user.open({})
    assert user.receive(Encoder().syn_reply(stream, {}, fin=True)) == [
        Replied(stream, {}),
        Received(stream, b"", True),
    ]


def test_streams_of_one_direction_are_refused() -> None:
    wire = bytearray(Encoder().syn_stream(1, {}))
    wire[4] = UNIDIRECTIONAL
    with pytest.raises(UserPeerError, match="one direction"):
        Session(server=True).receive(bytes(wire))


def test_streams_are_counted_while_they_are_open() -> None:
    user, gate = Session(server=False), Session(True, Limits(streams=3))
    for _ in range(3):
        gate.receive(user.open({})[1])
    gate.receive(user.reset(1))
    gate.receive(user.open({})[1])
    assert gate.streams == (3, 5, 7)
    with pytest.raises(UserPeerError, match="more than 3 streams"):
        gate.receive(user.open({})[1])
    ours = Session(False, Limits(streams=1))
    ours.open({})
    with pytest.raises(TargetPeerError, match="too many streams"):
        ours.open({})


def test_header_blocks_of_streams_that_are_gone_keep_zlib_in_step() -> None:
    user, gate = Session(server=False), Session(server=True)
    first, wire = user.open({"streamtype": "error", "requestid": "17"})
    gate.receive(wire)
    gate.receive(user.reset(first))
    gate.receive(user._encoder.headers(first, {"late": "header"}))
    second, wire = user.open({"streamtype": "data", "requestid": "17"})
    assert gate.receive(wire) == [Opened(second, {"streamtype": "data", "requestid": "17"}, False)]


def test_goaway_is_said_once_and_takes_no_more_streams() -> None:
    user, gate, stream = opened_pair()
    wire = gate.goaway(2)
    assert wire == control(7, struct.pack("!II", stream, 2)) and gate.goaway() == b""
    assert user.receive(wire) == [Away(2)]
    late, opening = user.open({})
    assert gate.receive(opening + user.data(late, b"x")) == []
    assert gate.receive(user.data(stream, b"old")) == [Received(stream, b"old", False)]


def test_windows_and_settings_say_nothing() -> None:
    _, gate, stream = opened_pair()
    assert gate.receive(Encoder().settings({7: 65536}) + Encoder().window_update(stream, 1)) == []


def test_port_forward_in_long_runs_leaves_nothing_behind() -> None:
    user, gate = Session(server=False), Session(server=True)
    for number in range(3000):
        error, wire = user.open({"streamtype": "error", "port": "80", "requestid": str(number)}, fin=True)
        data, more = user.open({"streamtype": "data", "port": "80", "requestid": str(number)})
        assert len(gate.receive(wire + more)) == 2
        user.receive(gate.reply(error) + gate.reply(data) + gate.data(error, b"", True) + gate.data(data, b"x", True))
        gate.receive(user.data(data, b"y", fin=True))
    assert gate.streams == user.streams == ()


# -- fuzz ---------------------------------------------------------------------------------------------------


def conversation() -> bytes:
    user = Session(server=False)
    wire = b"".join(user.open({"streamtype": kind})[1] for kind in ("error", "stdin", "stdout", "resize"))
    wire += user.data(3, b"hello" * 20) + user.ping() + user.data(7, b'{"Width":80,"Height":24}\n')
    return wire + user.data(3, b"", fin=True) + user.reset(5) + user.goaway()


def mutated(wire: bytes, chance: random.Random) -> bytes:
    changed = bytearray(wire)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                del changed[at : at + chance.randint(1, 8)]
            case _:
                changed[at:at] = chance.randbytes(chance.randint(1, 8))
        if not changed:
            changed += b"\0"
    return bytes(changed)


def test_20000_mutations_raise_nothing_but_peer_errors() -> None:
    chance, wire, refused = random.Random(20260101), conversation(), 0
    for number in range(20_000):
        server = number % 2 == 0
        session = Session(server)
        error: type[PeerError] = UserPeerError if server else TargetPeerError
        if not server:
            session.open({"streamtype": "error"})
        text = mutated(wire, chance)
        cut = chance.randrange(len(text))
        try:
            events: list[SessionEvent] = session.receive(text[:cut]) + session.receive(text[cut:])
            for event in events:
                if isinstance(event, Opened):
                    session.reply(event.stream)
        except error:
            refused += 1
    assert 5_000 < refused < 19_900, "the mutations reach both ends"
