"""Properties of the codec and of the conversation: splits change nothing, garbage is a PeerError, memory is bounded."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Generator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.postgres import startup, wire
from protocols.postgres.copy import CopyMask
from protocols.postgres.scram import ScramClient, ScramServer, make_verifier
from proxy.core.errors import TargetPeerError, UserPeerError
from proxy.core.statement import Copy
from proxy.core.verdict import Allow
from recorder.tape import OUT, USER, Kind
from tests.fakes import allow_all, fake_gate
from tests.postgres.fuzzing import HIDE, Chance, EveryCell, Wired, step

name = st.binary(max_size=20).map(lambda data: data.replace(b"\0", b""))
text = st.sampled_from(
    [
        b"SELECT 1",
        b"SELECT email FROM t",
        b"INSERT INTO t VALUES (1)",
        b"",
        b";",
        b"nonsense",
        b"BEGIN",
        b"\xff\xfe",
        b"COPY t TO STDOUT",
        b"COPY t FROM STDIN",
        b"PREPARE p AS SELECT 1",
        b"EXECUTE p",
        b"SET client_encoding TO 'SJIS'",
        b"SELECT 1; DELETE FROM t",
    ]
)
value = st.one_of(st.none(), st.binary(max_size=50), st.just(b"v" * 70_000))


def bound(portal: bytes, statement: bytes, values: list[bytes | None], formats: list[int]) -> bytes:
    body = portal + b"\0" + statement + b"\0" + struct.pack(f">H{len(formats)}h", len(formats), *formats)
    body += struct.pack(">H", len(values))
    for each in values:
        body += struct.pack(">i", -1) if each is None else struct.pack(">i", len(each)) + each
    return wire.message(wire.BIND, body + b"\0\0")


asked = st.one_of(
    st.builds(wire.encode_query, text),
    st.builds(wire.encode_parse, name, text),
    st.builds(bound, name, name, st.lists(value, max_size=3), st.lists(st.integers(0, 1), max_size=2)),
    st.builds(wire.encode_execute, name),
    st.builds(wire.encode_named, st.sampled_from([wire.DESCRIBE, wire.CLOSE]), st.sampled_from(list(b"SP")), name),
    st.sampled_from([wire.message(kind, b"") for kind in (wire.SYNC, wire.FLUSH, wire.COPY_DONE)]),
    st.builds(
        lambda data: wire.message(wire.COPY_DATA, data), st.one_of(st.binary(max_size=60), st.just(b"d" * 90_000))
    ),
    st.builds(lambda data: wire.message(wire.FUNCTION_CALL, b"\0\0\x10\0" + data), st.binary(max_size=40)),
)


def rows(names: list[bytes], cells: list[list[bytes | None]]) -> bytes:
    head = struct.pack(">h", len(names))
    for each in names:
        head += each + b"\0" + wire.FIELD.pack(16400, 1, 25, -1, -1, 0)
    made = wire.message(ord("T"), head)
    for row in cells:
        body = struct.pack(">h", len(names))
        for i in range(len(names)):
            cell = row[i] if i < len(row) else None
            body += struct.pack(">i", -1) if cell is None else struct.pack(">i", len(cell)) + cell
        made += wire.message(ord("D"), body)
    return made + wire.message(ord("C"), b"SELECT 1\0")


READY = wire.message(ord("Z"), b"I")
told = st.one_of(
    st.builds(rows, st.lists(st.sampled_from([b"id", b"email"]), min_size=1, max_size=3),
              st.lists(st.lists(value, max_size=3), max_size=3)),
    st.just(wire.message(ord("I"), b"")),
    st.builds(lambda t: startup.encode_error({"S": "NOTICE", "C": "00000", "M": t}, b"N"), st.text(max_size=20)),
    st.builds(lambda n, p: wire.encode_notification(5, n, p), name, name),
    st.builds(lambda v: startup.encode_parameter_status("application_name", v.replace("\0", "")), st.text(max_size=20)),
)  # fmt: skip


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    cuts = sorted({each % (len(data) + 1) for each in at} | {0, len(data)})
    return [data[i:j] for i, j in pairwise(cuts)]


splits = st.lists(st.integers(0, 1 << 20), max_size=12)


@given(st.lists(asked, min_size=1, max_size=8), splits, st.integers(0, 1 << 16))
@settings(deadline=None, max_examples=150)
def test_any_split_of_what_a_user_sends_is_the_same(sent: list[bytes], at: list[int], seed: int) -> None:
    """The target gets the same bytes, the tape holds the user's own, whatever the reads were; refusals included."""
    data = b"".join(sent)

    def play(parts: list[bytes]) -> tuple[bytes, bytes, str]:
        wired = Wired(fake_gate(Chance(random.Random(seed)), masker=EveryCell()))
        out, error = b"", ""
        try:
            for part in parts:
                out += wired.user(part)
        except UserPeerError as caught:
            error = f"{caught.code} {caught}"
        return out, wired.tape.wire(USER), error

    whole, cut = play([data]), play(pieces(data, at))
    if not whole[2]:
        assert cut == whole
        assert whole[1] == data
    else:
        # The session ends at the same message; what came before it in one read may not have been flushed.
        assert cut[2] == whole[2] and cut[0].startswith(whole[0]) and cut[1] == whole[1]


@given(st.lists(told, min_size=1, max_size=5), splits, st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_split_of_what_a_target_sends_is_the_same(answers: list[bytes], at: list[int], masked: bool) -> None:
    """The user sees the same bytes, which are those on the tape; without masks they are the target's own."""
    data = b"".join(answers) + READY

    def play(parts: list[bytes]) -> bytes:
        wired = Wired(fake_gate(lambda command: Allow("x", (HIDE,) if masked else ()), masker=EveryCell()))
        wired.user(wire.encode_query(b"SELECT 1"))
        seen = b"".join(wired.target(part) for part in parts)
        assert wired.tape.wire(OUT) == seen
        assert wired.conversation.pipeline.peek() is None
        return seen

    whole = play([data])
    assert play(pieces(data, at)) == whole
    assert play([data[i : i + 1] for i in range(min(len(data), 300))] + [data[300:]]) == whole
    if not masked:
        assert whole == data


garbage = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda kind, length, body: bytes((kind,)) + struct.pack(">I", length) + body,
        st.sampled_from(sorted(wire.USER_TYPES | frozenset(b"RSKZTDCENAnt123GHWcdIsVv"))),
        st.one_of(st.integers(0, 80), st.integers(0, 0xFFFFFFFF)),
        st.binary(max_size=100),
    ),
)


@given(st.lists(garbage, min_size=1, max_size=6))
@settings(deadline=None, max_examples=400)
def test_garbage_from_a_user_is_the_users_error(sent: list[bytes]) -> None:
    wired = Wired(fake_gate(masker=EveryCell()))
    wired.user(wire.encode_parse(b"s", b"SELECT 1"))
    for data in sent:
        try:
            wired.user(data)
        except UserPeerError as error:
            assert error.code in ("08P01", "54000")
            return


@given(st.lists(garbage, min_size=1, max_size=6), st.booleans())
@settings(deadline=None, max_examples=400)
def test_garbage_from_a_target_is_the_targets_error(sent: list[bytes], masked: bool) -> None:
    wired = Wired(fake_gate(lambda command: Allow("x", (HIDE,) if masked else ()), masker=EveryCell()))
    wired.user(wire.encode_query(b"COPY t TO STDOUT") + wire.encode_query(b"SELECT 1"))
    for data in sent:
        try:
            wired.target(data)
        except TargetPeerError:
            return


@pytest.mark.parametrize("kind", sorted(wire.USER_TYPES))
def test_every_body_of_every_type_of_a_user(kind: int) -> None:
    """All bodies of up to two bytes, and a few hundred longer ones: the message is taken, or is the user's error."""
    dice = random.Random(kind)
    bodies = [
        b"",
        *(bytes((i,)) for i in range(256)),
        *(bytes((i, j)) for i in range(0, 256, 5) for j in (0, 1, 80, 255)),
    ]
    bodies += [dice.randbytes(dice.randrange(3, 40)).replace(b"\x80", b"\0") for _ in range(300)]
    taken = 0
    for body in bodies:
        wired = Wired(fake_gate())
        try:
            wired.user(wire.message(kind, body))
            taken += 1
        except UserPeerError as error:
            assert error.code == "08P01"
    assert taken < len(bodies) or kind in (wire.COPY_DATA, wire.COPY_DONE, wire.COPY_FAIL, wire.SYNC, wire.FLUSH,
                                           wire.TERMINATE, wire.PASSWORD)  # fmt: skip


body = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda parts: b"\0".join(parts), st.lists(st.binary(max_size=12), max_size=8)),
    st.builds(lambda code, rest: struct.pack(">I", code) + rest,
              st.sampled_from([startup.CANCEL_CODE, startup.SSL_CODE, startup.GSSENC_CODE, 0x30000, 0x20000, 10]),
              st.binary(max_size=60)),
)  # fmt: skip


@given(body)
@settings(deadline=None, max_examples=500)
def test_garbage_in_a_login_is_its_senders_error(data: bytes) -> None:
    users: list[Callable[[bytes], object]] = [
        startup.parse_first, startup.parse_startup, startup.parse_cancel, startup.parse_password,
        startup.parse_sasl_initial,
    ]  # fmt: skip
    targets: list[Callable[[bytes], object]] = [
        startup.parse_auth, startup.parse_sasl_mechanisms, startup.error_fields, startup.parse_parameter_status,
        startup.parse_backend_key,
    ]  # fmt: skip
    for parsers, error in ((users, UserPeerError), (targets, TargetPeerError)):
        for parse in parsers:
            try:
                parse(data)
            except error:
                continue


VERIFIER = make_verifier("secret", salt=b"s" * 16)


@given(st.one_of(st.binary(max_size=120), st.text("nyp,=abcrspvim+/0123456789", max_size=120).map(str.encode)))
@settings(deadline=None, max_examples=300)
def test_garbage_in_scram_is_its_senders_error(data: bytes) -> None:
    for begun in (False, True):
        server = ScramServer("u", VERIFIER, b"k" * 32)
        try:
            if begun:
                server.begin("SCRAM-SHA-256", b"n,,n=,r=abcdefgh")
                assert server.finish(data) is None
            else:
                server.begin("SCRAM-SHA-256", data)
        except UserPeerError:
            continue
    client = ScramClient("secret", nonce=b"fixed")
    client.first()
    with pytest.raises(TargetPeerError):
        client.final(data)
        client.verify(data)


@given(
    st.sampled_from(["text", "csv", "binary"]),
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from([b"a,b\n", b"a\tb\n", b'"', b"PGCOPY\n\xff\r\n\0"])),
        max_size=8,
    ),
)
@settings(deadline=None, max_examples=300)
def test_garbage_in_copy_data_is_the_targets_error(form: str, sent: list[bytes]) -> None:
    delimiter = "," if form == "csv" else "\t"
    copy = Copy("out", "t", (), "client", form, delimiter, "\\N", False, '"', '"', False, None)  # type: ignore[arg-type]
    mask = CopyMask(copy, [b"x", bytes.upper], 2, "UTF8")
    try:
        for data in sent:
            mask.feed_messages(wire.message(wire.COPY_DATA, data))
        mask.finish()
    except TargetPeerError:
        return


def _grown(work: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read_bytes", [2, 1000])
def test_memory_for_a_long_text_is_a_few_times_its_size(read_bytes: int) -> None:
    """However small the reads are: a kibibyte in reads of two bytes must not cost dozens of kibibytes."""
    size = 400_000
    data = wire.encode_query(b"S" * (size - 6))
    wired = Wired(fake_gate(reader=lambda text: ()), query_limit=size)

    def feed() -> None:
        for start in range(0, len(data) - read_bytes, read_bytes):
            assert wired.user(bytes(data[start : start + read_bytes])) == b""

    assert _grown(feed) < 4 * size


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("read_bytes", [2, 1000])
def test_memory_for_a_long_answer_is_a_few_times_its_size(read_bytes: int, masked: bool) -> None:
    size = 400_000
    data = rows([b"email"], [[b"e" * size]])
    wired = Wired(fake_gate(lambda command: Allow("x", (HIDE,) if masked else ()), masker=EveryCell()))
    wired.user(wire.encode_query(b"SELECT 1"))

    def feed() -> None:
        for start in range(0, size, read_bytes):
            wired.target(bytes(data[start : start + read_bytes]))

    if not masked:
        wired.tape.append = lambda *_, **__: 0  # type: ignore[method-assign]  # the fake one keeps everything
    assert _grown(feed) < 4 * size


def test_a_length_allocates_nothing() -> None:
    """Declared lengths are believed only as the bytes come (pgbouncer CVE-2026-6664)."""

    def feed() -> None:
        for kind in (wire.BIND, wire.COPY_DATA, wire.FUNCTION_CALL, wire.QUERY):
            length = wire.QUERY_LIMIT if kind == wire.QUERY else wire.LONG_MESSAGE_LIMIT
            Wired(fake_gate()).user(bytes((kind,)) + struct.pack(">I", length))
        wired = Wired(fake_gate(allow_all))
        wired.user(wire.encode_query(b"SELECT 1"))
        for kind in b"DTE":
            wired = Wired(fake_gate(allow_all))
            wired.user(wire.encode_query(b"SELECT 1"))
            wired.target(bytes((kind,)) + struct.pack(">I", wire.TARGET_MESSAGE_LIMIT))

    assert _grown(feed) < 1_000_000


@pytest.mark.parametrize(
    ("kind", "limit", "code"),
    [(wire.QUERY, 1000, "54000"), (wire.PARSE, 1000, "54000"), (wire.EXECUTE, wire.SHORT_MESSAGE_LIMIT, "08P01"),
     (wire.SYNC, wire.SHORT_MESSAGE_LIMIT, "08P01"), (wire.BIND, wire.LONG_MESSAGE_LIMIT, "08P01"),
     (wire.COPY_DATA, wire.LONG_MESSAGE_LIMIT, "08P01")],
)  # fmt: skip
def test_message_lengths_at_their_limits(kind: int, limit: int, code: str) -> None:
    for length in (limit - 1, limit, limit + 1):
        head = bytes((kind,)) + struct.pack(">I", length)
        reader = wire.UserMessages(1000)
        if length <= limit:
            assert list(reader.feed(head)) == []
        else:
            with pytest.raises(UserPeerError) as caught:
                list(reader.feed(head))
            assert caught.value.code == code


def test_copy_data_behind_described_rows_is_the_targets_error() -> None:
    wired = Wired(fake_gate(lambda command: Allow("x", (HIDE,)), masker=EveryCell()))
    wired.user(wire.encode_query(b"SELECT email FROM t"))
    wired.target(rows([b"email"], [[b"ana@acme.com"]])[: -len(wire.message(ord("C"), b"SELECT 1\0"))])
    with pytest.raises(TargetPeerError, match="no mask"):
        wired.target(wire.message(wire.COPY_DATA, b"ana@acme.com\n"))


def test_wired_itself_waits_for_nothing() -> None:
    class Never:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def waits() -> None:
        await Never()

    with pytest.raises(AssertionError, match="waited"):
        step(waits())


def test_an_error_that_is_not_utf_8_is_taped_in_the_sessions_encoding() -> None:
    wired = Wired(fake_gate())
    wired.user(wire.encode_query(b"SELECT nothing"))
    wired.target(startup.encode_parameter_status("client_encoding", "LATIN1"))
    error = wire.message(ord("E"), b"SERROR\0C42703\0Mcolumn \xe9t\xe9\0\0")
    assert wired.target(error + READY) == error + READY
    assert wired.tape.of(Kind.RESULT)[0]["error"]["message"] == "column été"
