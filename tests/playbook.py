"""Conversations as tests: what the user sends, what reaches the target, what the target answers, what the user sees.

A Play holds a real Session over fakes, and a Conversation of the protocol under test; no sockets, no tasks but
the test's own. Each step may be given whole, byte by byte, or with a tail: see ``cuts``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from protocols.postgres import wire
from protocols.postgres.answers import Ended, Fatal, NeedColumns, NeedCopy, Revealed, Status
from protocols.postgres.commands import Asked, Conversation, Ignored, Piece, Settle, Terminate, UserItem
from protocols.postgres.meaning import Known
from protocols.postgres.reading import CommandReader
from proxy.core.errors import Refused
from proxy.core.events import Column, Frame, Result
from proxy.core.gate import Gate, Pending
from proxy.core.parties import Target
from proxy.core.session import Session
from proxy.core.stream import MemoryStream, memory_pair
from proxy.core.writers import TargetWriter, UserWriter
from recorder.tape import Tape
from tests.fakes import FakeIdentities, FakeTape, fake_gate


class FakeWorld:
    """A catalogue where every name is in public and every oid above 10000 is a column of public.people."""

    version = 1

    def resolve(self, name: str, search_path: tuple[str, ...] | None) -> tuple[str, ...]:
        return (name if "." in name else f"public.{name}",)

    def bases(self, name: str) -> frozenset[str]:
        return frozenset((name,))

    def known(self, name: str) -> Known:
        return Known(None)

    def hides(self, name: str) -> bool:
        return False

    def function_name(self, oid: int) -> str | None:
        return f"pg_catalog.f{oid}"


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes whole, byte by byte, and cut in the middle."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    yield [data[: len(data) // 2], data[len(data) // 2 :]]


class Play:
    """One session of PostgreSQL, played."""

    def __init__(self, gate: Gate | None = None, *, replication: bool = False) -> None:
        self.gate = gate or fake_gate()
        self.tape: Tape = FakeTape()
        identities = self.gate.identities
        assert isinstance(identities, FakeIdentities)
        self.session = Session(self.gate, identities.identity, Target("shop", "postgres"), self.tape)
        self.tokens = 0
        self.conversation = Conversation(
            self.gate.reader, CommandReader(FakeWorld()), self._token, replication=replication, search_path=("public",)
        )
        gate_user, self._user = memory_pair()
        gate_target, self._target = memory_pair()
        self._to_user = UserWriter(gate_user, self.session)
        self._to_target = TargetWriter(gate_target, self.session)
        self.results: list[Result] = []
        self.fatal = False
        self._waiting: Iterator[UserItem] = iter(())
        self.terminated = False
        self.held: list[Pending] = []

    def _token(self) -> str:
        self.tokens += 1
        return f"token{self.tokens}"

    async def _on_hold(self, pending: Pending) -> None:
        await self._to_target.flush()
        self.held.append(pending)

    async def user(self, data: bytes) -> bytes:
        """The user sends data; returns what reaches the target.

        Where answers decide what comes next, the rest waits: user(b"") goes on once the target has given them.
        """
        self._waiting = chain(self._waiting, self.conversation.from_user(data)) if data else self._waiting
        for item in self._waiting:
            match item:
                case Settle():
                    assert not item.done()
                    self._to_target.send(Frame(wire.message(wire.FLUSH, b""), by_gate=True))
                    break
                case Asked():
                    try:
                        permit = await self.session.decide(item.command, self._on_hold, item.follows)
                    except Refused as refused:
                        frame = self.conversation.refuse(refused)
                        if frame is not None:
                            self._to_target.send(frame)
                    else:
                        for cargo in self.conversation.permitted(permit):
                            self._to_target.send(cargo)
                case Frame():
                    self._to_target.send(item)
                case Piece():
                    self._to_target.send(self.conversation.part(item))
                case Ignored():
                    self.session.ignored(item.wire)
                case Terminate():
                    self.terminated = True
        await self._to_target.flush()
        return await _taken(self._target)

    async def target(self, data: bytes) -> bytes:
        """The target sends data; returns what reaches the user."""
        for answer in self.conversation.from_target(data):
            match answer:
                case Revealed():
                    seen = self._to_user.send(answer.permit, answer.event)
                    if answer.reply is not None:
                        self.conversation.answers.show(answer.reply, seen)
                case Ended():
                    self.results.append(answer.result)
                    self.session.result(answer.permit, answer.result)
                case NeedColumns():
                    answer.reply.columns = tuple(Column(field.name, None) for field in answer.fields)
                case NeedCopy():
                    answer.reply.columns = tuple(Column(f"c{i}", None) for i in range(answer.count))
                case Status():
                    self.conversation.setting(answer.name, answer.value)
                case Fatal():
                    self.fatal = True
        await self._to_user.flush()
        return await _taken(self._user)


async def _taken(stream: MemoryStream) -> bytes:
    return bytes(stream._buffer) and await stream.read(1 << 30)
