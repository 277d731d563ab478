"""exec over WebSocket: every trap of the kubernetes note's section 3, on the user's end and on the target's."""

from __future__ import annotations

import base64
import random
import struct

import pytest

from protocols.kubernetes.remote_ws import (
    FRAME_BYTES,
    PIECE_BYTES,
    STATUS_LIMIT,
    STATUS_PIECES_LIMIT,
    TEXT_LIMIT,
    V1,
    V1_BASE64,
    V4,
    V4_BASE64,
    V5,
    WebSocketTargetLeg,
    WebSocketUserLeg,
)
from protocols.kubernetes.sizes import CELLS_LIMIT, SIZE_LIMIT, Sizes, encode_size
from protocols.kubernetes.status import exit_document
from protocols.kubernetes.streams import (
    ERROR,
    STDERR,
    STDIN,
    STDOUT,
    Asked,
    Data,
    End,
    Event,
    Over,
    Reply,
    Size,
    Status,
)
from proxy.core.errors import TargetPeerError, UserPeerError
from proxy.core.http import websocket as ws
from tests.kubernetes.leg_peers import WsPeer

PLAIN = Asked(stdin=True, stdout=True, stderr=True, tty=False)
TTY = Asked(stdin=True, stdout=True, stderr=False, tty=True)


def masked(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A frame of a user."""
    return ws.encode(opcode, payload, mask=True, fin=fin)


def message(channel: int, payload: bytes = b"") -> bytes:
    """A message of a user."""
    return masked(ws.BINARY, bytes((channel,)) + payload)


def said(channel: int, payload: bytes = b"") -> bytes:
    """A message of a target."""
    return ws.encode(ws.BINARY, bytes((channel,)) + payload)


def joined(events: list[Event]) -> list[Event]:
    """Events with neighbouring pieces of one stream put together, without their frames."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, Data):
            last = found[-1] if found else None
            if isinstance(last, Data) and last.stream == event.stream:
                found[-1] = Data(event.stream, last.data + event.data)
                continue
            event = Data(event.stream, event.data)
        found.append(event)
    return found


# -- from the user ----------------------------------------------------------------------------------------


def test_several_frames_of_one_read_are_several_events_in_order() -> None:
    leg = WebSocketUserLeg(V5, TTY)
    wire = message(0, b"l") + message(4, b'{"Width":80,"Height":24}\n') + masked(ws.PING, b"p") + message(0, b"s")
    assert leg.receive(wire + message(255, b"\0")) == [
        Data(STDIN, b"l", message(0, b"l")),
        Size(80, 24),
        Reply(ws.encode(ws.PONG, b"p")),
        Data(STDIN, b"s", message(0, b"s")),
        End(STDIN),
    ]


def test_any_cut_of_the_bytes_gives_the_same_events() -> None:
    wire = (
        message(0, b"one") + masked(ws.PING, b"x") + masked(ws.BINARY, b"\0tw", fin=False) + masked(ws.PING, b"y")
        + masked(ws.CONTINUATION, b"o", fin=False) + masked(ws.CONTINUATION, b"", fin=True)
        + message(4, b'{"Width":1,"Height":2}') + message(0, bytes(70_000)) + message(255, b"\0")
        + masked(ws.CLOSE, b"")
    )  # fmt: skip
    whole = joined(WebSocketUserLeg(V5, TTY).receive(wire))
    assert len(whole) == 10 and whole[-1] == Over("")
    for seed in range(60):
        chance, leg, events, at = random.Random(seed), WebSocketUserLeg(V5, TTY), list[Event](), 0
        while at < len(wire):
            size = 1 if seed == 0 else chance.choice((1, 2, 3, 5, 1000, 30_000))
            events += leg.receive(wire[at : at + size])
            at += size
        assert joined(events) == whole


def test_v5_half_closes_stdin_and_only_v5() -> None:
    for protocol in (V4, V1):
        with pytest.raises(UserPeerError, match="channel 255"):
            WebSocketUserLeg(protocol, PLAIN).receive(message(255, b"\0"))
    leg = WebSocketUserLeg(V5, PLAIN)
    assert leg.receive(message(255, b"\0")) == [End(STDIN)]
    assert leg.receive(message(255, b"\0")) == [], "twice says nothing more"
    with pytest.raises(UserPeerError, match="behind its end"):
        leg.receive(message(0, b"x"))
    assert WebSocketUserLeg(V5, PLAIN).receive(message(255, b"\1")) == [], "the user listens to stdout no more"
    for payload in (b"", b"\0\0", b"\5", b"\xff"):
        with pytest.raises(UserPeerError, match="half-close"):
            WebSocketUserLeg(V5, PLAIN).receive(message(255, payload))


def test_the_channel_is_in_the_first_fragment_alone() -> None:
    leg = WebSocketUserLeg(V5, PLAIN)
    assert leg.receive(masked(ws.BINARY, b"\0ab", fin=False)) == [Data(STDIN, b"ab")]
    assert leg.receive(masked(ws.CONTINUATION, b"\1c", fin=False)) == [Data(STDIN, b"\1c")]
    assert leg.receive(masked(ws.CONTINUATION, b"\xff\0")) == [Data(STDIN, b"\xff\0")]
    assert leg.receive(message(0, b"d")) == [Data(STDIN, b"d", message(0, b"d"))]
    assert leg.receive(masked(ws.BINARY, b"", fin=False) + masked(ws.CONTINUATION, b"\0late")) == [Data(STDIN, b"late")]
    assert leg.receive(masked(ws.BINARY, b"\xff", fin=False) + masked(ws.CONTINUATION, b"\0")) == [End(STDIN)]


def test_fragments_are_given_without_their_frames() -> None:
    """What a relay puts between two of them (a size, an approval's text) would break the message."""
    leg = WebSocketUserLeg(V5, PLAIN)
    events = leg.receive(masked(ws.BINARY, b"\0ab", fin=False) + masked(ws.CONTINUATION, b"cd"))
    assert [event.wire for event in events if isinstance(event, Data)] == [b"", b""]


def test_a_large_frame_is_given_on_as_it_comes() -> None:
    """The Python client sends a whole tar archive as one frame; the API server takes 32 MiB, and so do we, and more."""
    data = random.Random(4).randbytes(3 * 1024 * 1024)
    peer, leg = WsPeer(V5, user=True), WebSocketUserLeg(V5, PLAIN)
    wire = peer.say(0, data)
    came = b""
    for at in range(0, len(wire), 65_536):
        events = leg.receive(wire[at : at + 65_536])
        assert all(isinstance(event, Data) and event.wire == b"" for event in events)
        piece = b"".join(event.data for event in events if isinstance(event, Data))
        came += piece
        assert len(came) >= min(at + 65_536, len(wire)) - 32, "held back"
    assert came == data
    following = peer.say(0, b"next")
    assert leg.receive(following) == [Data(STDIN, b"next", following)]


def test_a_large_fragment_is_given_on_and_its_message_goes_on() -> None:
    leg, data = WebSocketUserLeg(V5, PLAIN), bytes(PIECE_BYTES)
    large = masked(ws.BINARY, b"\0" + data, fin=False)
    assert joined(leg.receive(large[:100]) + leg.receive(large[100:])) == [Data(STDIN, data)]
    assert leg.receive(masked(ws.CONTINUATION, b"\0rest") + message(0, b"x")) == [
        Data(STDIN, b"\0rest"),
        Data(STDIN, b"x", message(0, b"x")),
    ]
    leg.receive(large[:100])
    leg.receive(large[100:])
    with pytest.raises(UserPeerError, match="out of order"):
        leg.receive(message(0, b"x"))


def test_a_frame_at_the_limit_is_still_given_whole() -> None:
    for size in (PIECE_BYTES - 2, PIECE_BYTES - 1):
        wire, leg = message(0, bytes(size)), WebSocketUserLeg(V5, PLAIN)
        assert leg.receive(wire[:-1]) == []
        assert leg.receive(wire[-1:]) == [Data(STDIN, bytes(size), wire)]
    wire, leg = message(0, bytes(PIECE_BYTES)), WebSocketUserLeg(V5, PLAIN)
    assert leg.receive(wire[:-1]) == [Data(STDIN, bytes(PIECE_BYTES - 1))]
    assert leg.receive(wire[-1:]) == [Data(STDIN, b"\0")]


def test_text_where_binary_is_due_is_taken_and_framed_anew() -> None:
    """The Python client sends str so."""
    assert WebSocketUserLeg(V4, PLAIN).receive(masked(ws.TEXT, b"\0ls\n")) == [Data(STDIN, b"ls\n")]


def test_streams_that_were_not_asked_for_are_dropped() -> None:
    leg = WebSocketUserLeg(V5, Asked(stdin=False, stdout=True, stderr=True, tty=False))
    assert leg.receive(message(0, b"x") + message(4, b'{"Width":1,"Height":1}') + message(255, b"\0")) == []


def test_what_a_user_must_not_send_is_refused() -> None:
    wrong = {
        "a server's channel": message(1, b"x"),
        "the Status": message(3, b"{}"),
        "an unknown channel": message(5, b""),
        "an unmasked frame": ws.encode(ws.BINARY, b"\0x"),
        "a reserved bit": b"\xc2" + message(0, b"x")[1:],
        "an unknown opcode": b"\x83" + message(0, b"x")[1:],
        "a fragmented ping": b"\x09" + masked(ws.PING, b"x")[1:],
        "a long ping": b"\x89\xfe" + struct.pack("!H", 126) + bytes(130),
        "a continuation of nothing": masked(ws.CONTINUATION, b"x"),
        "a message within a message": masked(ws.BINARY, b"\0x", fin=False) + message(0, b"y"),
        "a length with its first bit set": b"\x82\xff" + struct.pack("!Q", 1 << 63),
        "a size that is none": message(4, b"nonsense"),
    }
    for name, wire in wrong.items():
        leg = WebSocketUserLeg(V5, TTY)
        try:
            leg.receive(wire)
        except UserPeerError as error:
            answer = WsPeer(V5, user=True)
            answer.receive(leg.refuse(error))
            assert answer.closed and answer.code in (1002, 1009), name
            assert leg.refuse(error) == b"" == leg.finish(b"{}")
        else:
            pytest.fail(name)


def test_base64_is_a_digit_and_base64_in_text() -> None:
    for protocol in (V4_BASE64, V1_BASE64):
        leg = WebSocketUserLeg(protocol, TTY)
        text = b"0" + base64.b64encode(b"ls\n\xff")
        assert leg.receive(masked(ws.TEXT, text)) == [Data(STDIN, b"ls\n\xff")]
        assert leg.receive(masked(ws.TEXT, text[:3], fin=False)) == []
        assert leg.receive(masked(ws.CONTINUATION, text[3:])) == [Data(STDIN, b"ls\n\xff")]
        assert leg.receive(masked(ws.TEXT, b"4" + base64.b64encode(b'{"Width":7,"Height":8}'))) == [Size(7, 8)]
        assert leg.receive(masked(ws.TEXT, b"")) == leg.receive(masked(ws.TEXT, b"0")) == []
        assert leg.data(STDOUT, b"hi") == ws.encode(ws.TEXT, b"1aGk=")
        assert leg.start() == ws.encode(ws.TEXT, b"1")
        for wrong in (b"0bGk", b"0!!!!", b"1aGk=", b"\0aGk=", b"0aGk=aGk="):
            with pytest.raises(UserPeerError):
                WebSocketUserLeg(protocol, TTY).receive(masked(ws.TEXT, wrong))


def test_a_message_in_base64_is_bounded() -> None:
    leg = WebSocketUserLeg(V4_BASE64, PLAIN)
    fragment = b"0" + b"A" * (TEXT_LIMIT // 4 - 1)
    for opcode in (ws.TEXT, *[ws.CONTINUATION] * 3):
        assert leg.receive(masked(opcode, fragment, fin=False)) == []
    with pytest.raises(UserPeerError, match=f"more than {TEXT_LIMIT}"):
        leg.receive(masked(ws.CONTINUATION, b"A"))


# -- to the user ------------------------------------------------------------------------------------------


def test_the_first_message_is_empty_and_on_the_lowest_output() -> None:
    for stdout, stderr, channel in ((True, True, 1), (False, True, 2), (False, False, 3)):
        asked = Asked(stdin=True, stdout=stdout, stderr=stderr, tty=False)
        assert WebSocketUserLeg(V4, asked).start() == said(channel)
    assert WebSocketTargetLeg(V5, PLAIN).start() == b""


def test_output_is_in_frames_of_32_kib() -> None:
    data = random.Random(2).randbytes(100_000)
    for protocol, size in ((V5, FRAME_BYTES), (V4_BASE64, FRAME_BYTES)):
        leg, peer = WebSocketUserLeg(protocol, PLAIN), WsPeer(protocol, user=True)
        peer.receive(leg.data(STDOUT, data))
        assert peer.heard[1] == data and max(map(len, peer.messages)) <= size
        assert leg.data(STDERR, b"") == b"", "an empty message is the first one only"


def test_the_status_then_the_close_then_the_peers_close() -> None:
    leg, peer = WebSocketUserLeg(V5, PLAIN), WsPeer(V5, user=True)
    wire = leg.finish(exit_document(7))
    assert wire == said(3, exit_document(7)) + ws.encode_close(1000)
    late = peer.say(0, b"on its way") + peer.ping(b"late")
    answer = peer.receive(wire)
    assert leg.receive(late) == [], "dropped, and nothing is said behind a Close"
    assert leg.receive(answer) == [Over("")]
    assert leg.data(STDOUT, b"x") == leg.ping() == leg.finish(b"{}") == b"" and leg.receive(b"anything") == []


def test_a_users_close_is_answered_with_its_code() -> None:
    for payload, reason in ((b"\3\xe8", ""), (b"", ""), (b"\3\xe9bye", ""), (b"\3\xf3odd\nthing", "close 1011 odd")):
        leg = WebSocketUserLeg(V5, PLAIN)
        reply, over = leg.receive(masked(ws.CLOSE, payload))
        assert reply == Reply(ws.encode(ws.CLOSE, payload[:2]))
        assert isinstance(over, Over) and over.reason.startswith(reason) and "\n" not in over.reason
        assert bool(over.reason) is bool(reason)
        assert leg.finish(exit_document(0)) == b""


def test_before_v4_the_status_is_text_and_success_is_silence() -> None:
    for protocol in (V1, V1_BASE64):
        peer = WsPeer(protocol, user=True)
        peer.receive(WebSocketUserLeg(protocol, PLAIN).finish(exit_document(7)))
        assert peer.heard[3] == b"command terminated with non-zero exit code: exit status 7" and peer.code == 1000
        assert WebSocketUserLeg(protocol, PLAIN).finish(exit_document(0)) == ws.encode_close(1000)


def test_without_a_status_there_is_a_close() -> None:
    assert WebSocketUserLeg(V5, PLAIN).finish(b"") == ws.encode_close(1000)


# -- the target -------------------------------------------------------------------------------------------


def test_frames_to_a_target_are_masked() -> None:
    leg = WebSocketTargetLeg(V5, TTY)
    close = WebSocketTargetLeg(V5, TTY).refuse(TargetPeerError("no"))
    for wire in (leg.data(STDIN, b"x"), leg.end(STDIN), leg.resize(80, 24), leg.ping(), leg.finish(), close):
        assert wire and wire[1] & 0x80
        assert ws.Decoder(masked=True).feed(wire)


def test_the_end_of_stdin_is_said_once_and_not_in_v4() -> None:
    leg = WebSocketTargetLeg(V5, PLAIN)
    assert leg.end(STDIN) == masked(ws.BINARY, b"\xff\0") and leg.end(STDIN) == b""
    assert WebSocketTargetLeg(V4, PLAIN).end(STDIN) == b""


def test_the_empty_first_message_is_no_event() -> None:
    for channel in (1, 2, 3):
        assert WebSocketTargetLeg(V5, Asked(True, False, False, False)).receive(said(channel)) == []


def test_output_and_status_of_one_read_come_in_order() -> None:
    leg = WebSocketTargetLeg(V5, PLAIN)
    wire = said(1) + said(1, b"out") + said(2, b"err") + said(3, exit_document(0)) + ws.encode_close(1000)
    assert leg.receive(wire) == [
        Data(STDOUT, b"out", said(1, b"out")),
        Data(STDERR, b"err", said(2, b"err")),
        Status(exit_document(0)),
        Reply(ws.encode_close(1000, mask=True)),
        Over(""),
    ]
    assert leg.finish() == b"", "the close was answered"


def test_a_status_in_fragments_and_messages_is_one_status() -> None:
    document = exit_document(7)
    first = ws.encode(ws.BINARY, b"\3" + document[:9], fin=False) + ws.encode(ws.CONTINUATION, document[9:20])
    leg = WebSocketTargetLeg(V5, PLAIN)
    assert leg.receive(first) == []
    assert leg.receive(said(3, document[20:])) == [Status(document)]
    assert leg.receive(said(3, b"\n")) == []
    with pytest.raises(TargetPeerError, match="more than one"):
        leg.receive(said(3, document))


def test_a_status_that_is_text_is_said_with_the_close() -> None:
    leg = WebSocketTargetLeg(V4, PLAIN)
    assert leg.receive(said(3, b"container not found")) == []
    assert leg.receive(ws.encode_close(1000))[0] == Status(b"container not found")


def test_a_status_is_bounded_in_size_and_pieces() -> None:
    leg = WebSocketTargetLeg(V4, PLAIN)
    assert leg.receive(said(3, b"x" * STATUS_LIMIT)) == []
    with pytest.raises(TargetPeerError, match="too long"):
        leg.receive(said(3, b"x"))
    leg = WebSocketTargetLeg(V4, PLAIN)
    assert leg.receive(said(3, b"x") * STATUS_PIECES_LIMIT) == []
    with pytest.raises(TargetPeerError, match="too many pieces"):
        leg.receive(said(3, b"x"))


def test_what_a_target_must_not_send_is_refused() -> None:
    wrong = {
        "stdin": said(0, b"x"),
        "a size": said(4, b"{}"),
        "an unknown channel": said(6),
        "a masked frame": message(1, b"x"),
        "half a half-close": said(255),
        "stderr of a terminal": said(2, b"x"),
    }
    for name, wire in wrong.items():
        with pytest.raises(TargetPeerError):
            WebSocketTargetLeg(V5, TTY).receive(wire)
            pytest.fail(name)
    with pytest.raises(TargetPeerError, match="channel 255"):
        WebSocketTargetLeg(V4, PLAIN).receive(said(255, b"\1"))


def test_a_target_may_half_close_its_output() -> None:
    assert WebSocketTargetLeg(V5, PLAIN).receive(said(255, b"\1") + said(255, b"\2")) == [End(STDOUT), End(STDERR)]


def test_a_close_without_a_status_says_why() -> None:
    leg = WebSocketTargetLeg(V5, PLAIN)
    assert leg.receive(ws.encode_close(1011, "broken"))[-1] == Over("close 1011 broken")


def test_a_size_for_no_terminal_is_not_sent() -> None:
    assert WebSocketTargetLeg(V5, PLAIN).resize(80, 24) == b""
    assert WebSocketTargetLeg(V5, TTY).resize(80, 24) == masked(ws.BINARY, b'\4{"Width":80,"Height":24}\n')


# -- sizes ------------------------------------------------------------------------------------------------


def test_sizes_are_a_stream_of_objects() -> None:
    wire = b'{"Width":101,"Height":33}\n{"height":5,"WIDTH":7,"more":[1]}  {"Width":0,"Height":3}\n{"Width":1}'
    wire += encode_size(65_535, 1) + encode_size(70_000, 2)
    expected = [Size(101, 33), Size(7, 5), Size(65_535, 1), Size(65_535, 2)]
    assert Sizes().feed(wire) == expected, "what has a zero is no size"
    by_byte = Sizes()
    assert [size for at in range(len(wire)) for size in by_byte.feed(wire[at : at + 1])] == expected


def test_sizes_are_bounded() -> None:
    for wrong in (
        b"x", b"[]", b'{"Width":1.5}', b'{"Width":"1"}', b'{"Width":-1}', b'{"Width":true}', b"{}}", b"{{}",
        b'{"Width":%d}' % (CELLS_LIMIT + 1), b"{" + b" " * SIZE_LIMIT, b"{\xff}", b'{"Width":null,"Height":1}',
    ):  # fmt: skip
        with pytest.raises(UserPeerError):
            Sizes().feed(wrong)
            pytest.fail(repr(wrong))
    assert Sizes().feed(b'{"Width":%d,"Height":1}' % CELLS_LIMIT) == [Size(CELLS_LIMIT, 1)]
    assert Sizes().feed(b"{" + b" " * (SIZE_LIMIT - 1)) == []


# -- fuzz -------------------------------------------------------------------------------------------------


def user_says(protocol: str) -> bytes:
    peer = WsPeer(protocol, user=True)
    wire = peer.say(0, b"echo hello\n") + peer.say(4, b'{"Width":80,"Height":24}\n') + peer.ping(b"p")
    return wire + peer.say(0, b"x" * 200) + peer.end(0) + peer.leave()


def target_says(protocol: str) -> bytes:
    peer = WsPeer(protocol, user=False)
    wire = peer.start() + peer.say(1, b"hello\n") + peer.say(2, b"x" * 200) + peer.ping(b"p")
    return wire + peer.finish(exit_document(7))


def mutated(wire: bytes, chance: random.Random) -> bytes:
    changed = bytearray(wire)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                del changed[at : at + chance.randint(1, 4)]
            case _:
                changed[at:at] = chance.randbytes(chance.randint(1, 4))
    return bytes(changed)


def test_20000_mutations_raise_nothing_but_peer_errors() -> None:
    chance, refused = random.Random(77), 0
    users = {protocol: user_says(protocol) for protocol in (V5, V4, V1, V4_BASE64, V1_BASE64)}
    targets = {protocol: target_says(protocol) for protocol in (V5, V4)}
    for number in range(20_000):
        if number % 2:
            protocol = chance.choice(list(users))
            leg: WebSocketUserLeg | WebSocketTargetLeg = WebSocketUserLeg(protocol, TTY)
            error: type[Exception] = UserPeerError
            wire = mutated(users[protocol], chance)
        else:
            protocol = chance.choice(list(targets))
            leg, error = WebSocketTargetLeg(protocol, PLAIN), TargetPeerError
            wire = mutated(targets[protocol], chance)
        cut = chance.randrange(len(wire))
        try:
            leg.receive(wire[:cut])
            leg.receive(wire[cut:])
        except error as raised:
            assert isinstance(raised, UserPeerError | TargetPeerError)
            assert ws.Decoder(masked=isinstance(leg, WebSocketTargetLeg)).feed(leg.refuse(raised)) is not None
            refused += 1
    assert 5_000 < refused < 19_000, "the mutations reach both ends"


def test_the_error_stream_is_always_there() -> None:
    assert Asked(False, False, False, False).streams == (ERROR,)
