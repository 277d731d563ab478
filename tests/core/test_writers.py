"""The writers, and what the session tapes on their way: permits without bytes, streams of their own."""

from __future__ import annotations

import asyncio

from proxy.core.events import Chunk, Command
from proxy.core.parties import Target
from proxy.core.session import Session
from proxy.core.verdict import Allow, Mask
from proxy.core.writers import TargetWriter, UserWriter
from recorder.tape import OUT, USER
from tests.fakes import FakeIdentities, FakeMasker, FakeTape, fake_gate

MASKS = (Mask("secrets", detectors=("word",)),)


class Sink:
    """Notes every write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    async def write(self, data: bytes) -> None:
        self.writes.append(data)


def opened(word: bytes = b"") -> tuple[Session, FakeTape]:
    tape = FakeTape()
    masker = FakeMasker()
    masker.word = word
    gate = fake_gate(lambda _: Allow("all", MASKS if word else ()), masker=masker)
    identities = gate.identities
    assert isinstance(identities, FakeIdentities)
    return Session(gate, identities.identity, Target("box", "ssh"), tape), tape


async def nobody(_: object) -> None: ...


def test_a_permit_without_bytes_is_committed_and_not_written() -> None:
    async def body() -> None:
        session, tape = opened()
        sink = Sink()
        writer = TargetWriter(sink, session)
        writer.send(await session.decide(Command("ssh", "line", "execute", "x"), nobody))
        await writer.flush()
        assert sink.writes == [] and tape.journal == [("commit", 2)] and not writer.waiting
        writer.send(await session.decide(Command("ssh", "line", "execute", "x", b"wire"), nobody))
        await writer.flush()
        assert sink.writes == [b"wire"]

    asyncio.run(body())


def test_what_is_a_streams_own_is_taped_under_it_in_the_place_of_its_message() -> None:
    async def body() -> None:
        session, tape = opened()
        for data, taped in ((b"ls\r", b"ls\r"), (b"", b""), (None, b"")):
            tape.records.clear(), tape.places.clear()
            await session.decide(Command("ssh", "line", "execute", "ls", b"framed", flow=3, data=data), nobody)
            assert tape.stream(USER, 3) == taped
            assert tape.stream(USER, None) == (b"framed" if data is None else b"")
        session.ignored(b"gone", 3)
        session.ignored(b"message")
        assert tape.stream(USER, 3) == b"gone" and tape.stream(USER, None) == b"framedmessage"

    asyncio.run(body())


def test_a_chunk_that_no_mask_may_look_at() -> None:
    async def body() -> None:
        session, tape = opened(b"word")
        permit = await session.decide(Command("ssh", "exec", "execute", "x"), nobody)
        sink = Sink()
        writer = UserWriter(sink, session)

        def rewrap(data: bytes) -> bytes:
            return b"<" + data + b">"

        for masked, wanted in ((True, b"<a ****>"), (False, b"[a word]")):
            writer.send(permit, Chunk(0, "out", b"a word", b"[a word]", rewrap, masked=masked))
            await writer.flush()
            assert sink.writes.pop() == wanted
        assert tape.stream(OUT, 0) == b"a ****a word"

    asyncio.run(body())
