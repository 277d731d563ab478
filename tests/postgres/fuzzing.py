"""Conversations without a loop, for properties and fuzzing: real Session, writers and Conversation, streams in memory.

Wired takes bytes of either side and returns what the other side is sent. Nothing in it ever waits, so that its
coroutines are driven by hand: a million messages take minutes. What it raises is what relay.py would see.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from protocols.postgres import wire
from protocols.postgres.answers import Ended, Fatal, NeedColumns, NeedCopy, Revealed, Status
from protocols.postgres.commands import Asked, Conversation, Ignored, Piece, Terminate
from protocols.postgres.reading import CommandReader
from proxy.core.errors import Refused
from proxy.core.events import CellMask, Column, Command, Frame, RemarkFields
from proxy.core.gate import Gate, Plan
from proxy.core.parties import Target
from proxy.core.session import Session
from proxy.core.verdict import Allow, Deny, Mask, Verdict
from proxy.core.writers import TargetWriter, UserWriter
from proxy.policy.sql import SqlReader
from recorder.tape import Kind
from tests.fakes import FakeIdentities, FakeMasker, FakePlan, FakeTape, fake_gate
from tests.playbook import FakeWorld

T = TypeVar("T")
RECORDS_KEPT = 4096
HIDE = Mask("hide", columns=("*.*.*",))


def step(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    work.close()
    raise AssertionError("it waited")


class Sink:
    """A stream that takes everything at once."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        self.data += data

    def taken(self) -> bytes:
        data = bytes(self.data)
        self.data.clear()
        return data


class CountingTape(FakeTape):
    """A tape that keeps the last records alone, so that a long run costs no memory."""

    def append(
        self,
        channel: int,
        kind: Kind,
        payload: bytes,
        entry: Mapping[str, Any] | None = None,
        flow: int | None = None,
    ) -> int:
        number = super().append(channel, kind, payload)
        if len(self.records) > RECORDS_KEPT:
            self.records.clear()
        return number

    async def written(self) -> None:
        pass

    async def commit(self) -> None:
        pass


class EveryCell(FakeMasker):
    """Masks every other cell: by a function in the first columns, by a constant and by NULL in later ones."""

    def plan(self, masks: tuple[Mask, ...], command: Command, columns: tuple[Column, ...]) -> Plan | None:
        choices: tuple[CellMask | None, ...] = (bytes.upper, b"x", None, lambda value: None)
        cells = [choices[i % 4] for i in range(len(columns))]
        return FakePlan(cells, {i: "hide" for i, cell in enumerate(cells) if cell is not None})

    def remark(self, masks: tuple[Mask, ...], fields: RemarkFields) -> RemarkFields:
        return {role: value.replace("a", "*") for role, value in fields.items()}


class Chance:
    """A policy that denies, masks or allows by the dice; the dice are the test's."""

    def __init__(self, dice: random.Random, denied: float = 0.1, masked: float = 0.3) -> None:
        self._dice = dice
        self._denied = denied
        self._masked = masked

    def __call__(self, command: Command) -> Verdict:
        throw = self._dice.random()
        if throw < self._denied:
            return Deny("dice", "not today")
        return Allow("dice", (HIDE,) if throw < self._denied + self._masked else ())


class Wired:
    """One session over sinks. sent and seen collect what reached the target and the user."""

    def __init__(self, gate: Gate | None = None, *, query_limit: int = wire.QUERY_LIMIT) -> None:
        self.gate = gate or fake_gate(reader=SqlReader(), masker=EveryCell())
        identities = self.gate.identities
        assert isinstance(identities, FakeIdentities)
        self.tape = CountingTape()
        self.session = Session(self.gate, identities.identity, Target("shop", "postgres"), self.tape)
        self._tokens = 0
        self.conversation = Conversation(
            self.gate.reader, CommandReader(FakeWorld()), self._token, query_limit=query_limit, search_path=("public",)
        )
        self._target, self._user = Sink(), Sink()
        self._to_target = TargetWriter(self._target, self.session)  # type: ignore[arg-type]  # only write() is used
        self._to_user = UserWriter(self._user, self.session)  # type: ignore[arg-type]
        self.over = False

    def _token(self) -> str:
        self._tokens += 1
        return f"token{self._tokens}"

    async def _on_hold(self, pending: Any) -> None:
        raise AssertionError("nothing is held here")

    def user(self, data: bytes) -> bytes:
        """The user sends data; returns what reaches the target. Raises UserPeerError."""
        session, conversation, writer = self.session, self.conversation, self._to_target
        for item in conversation.from_user(data):
            match item:
                case Asked():
                    try:
                        permit = step(session.decide(item.command, self._on_hold, item.follows))
                    except Refused as refused:
                        frame = conversation.refuse(refused)
                        if frame is not None:
                            writer.send(frame)
                    else:
                        for cargo in conversation.permitted(permit):
                            writer.send(cargo)
                case Frame():
                    writer.send(item)
                case Piece():
                    writer.send(conversation.part(item))
                case Ignored():
                    session.ignored(item.wire)
                case Terminate():
                    writer.send(Frame(item.wire))
                    self.over = True
        step(writer.flush())
        return self._target.taken()

    def target(self, data: bytes) -> bytes:
        """The target sends data; returns what reaches the user. Raises TargetPeerError."""
        conversation = self.conversation
        for answer in conversation.from_target(data):
            match answer:
                case Revealed():
                    seen = self._to_user.send(answer.permit, answer.event)
                    if answer.reply is not None:
                        conversation.answers.show(answer.reply, seen)
                case Ended():
                    self.session.result(answer.permit, answer.result)
                case NeedColumns():
                    answer.reply.columns = tuple(Column(field.name, None) for field in answer.fields)
                case NeedCopy():
                    answer.reply.columns = tuple(Column(f"c{i}", None) for i in range(answer.count))
                case Status():
                    conversation.setting(answer.name, answer.value)
                case Fatal():
                    self.over = True
        step(self._to_user.flush())
        return self._user.taken()


Dialogue = Sequence[tuple[bool, bytes]]  # (from the user, one whole message)


def messages(data: bytes) -> list[bytes]:
    """Cut whole messages of a recorded side apart."""
    found, pos = [], 0
    while pos < len(data):
        end = pos + 1 + wire.U32.unpack_from(data, pos + 1)[0]
        found.append(data[pos:end])
        pos = end
    assert pos == len(data), "the recording ends inside a message"
    return found


_TYPES = bytes(sorted(wire.USER_TYPES)) + b"RSKZTDCENAnt123GHWcdIsVv\0\xff"
_NUMBERS = (0, 1, 3, 4, 5, 0x7FFF, 0xFFFF, 10_000, 10_001, 0x10000, 0x1000000, 0x3FFFFFFE, 0x7FFFFFFF, 0xFFFFFFFF)


class Mutator:
    """Changes recorded dialogues: bytes, lengths, types, order; and makes messages up."""

    def __init__(self, dice: random.Random, corpus: Sequence[Dialogue]) -> None:
        self._dice = dice
        self._corpus = corpus
        self._pool = [message for dialogue in corpus for _, message in dialogue if len(message) < 4096]

    def dialogue(self) -> list[tuple[bool, bytes]]:
        """A dialogue with up to three changes; sometimes none, so that later ones meet a session with a past."""
        dice = self._dice
        found = list(dice.choice(self._corpus))
        for _ in range(dice.choice((0, 0, 1, 1, 2, 3))):
            index = dice.randrange(len(found))
            side, message = found[index]
            match dice.randrange(8):
                case 0:
                    found.insert(index, (dice.random() < 0.5, dice.choice(self._pool)))
                case 1:
                    found.insert(index, (side, message))
                case 2:
                    del found[index]
                case 3:
                    other = dice.randrange(len(found))
                    found[index], found[other] = found[other], found[index]
                case 4:
                    found.insert(index, (side, self.made_up()))
                case _:
                    found[index] = (side, self.mutated(message))
            if not found:
                return [(True, self.made_up())]
        return found

    def mutated(self, message: bytes) -> bytes:
        """One message with bytes, its length, its type or a number in it changed."""
        dice = self._dice
        data = bytearray(message)
        match dice.randrange(7):
            case 0:
                data[0] = dice.choice(_TYPES)
            case 1:
                data[1:5] = wire.U32.pack(dice.choice((*_NUMBERS, len(data) - 2, len(data), len(data) + 40)))
            case 2 if len(data) > 5:
                for _ in range(dice.randint(1, 4)):
                    data[dice.randrange(5, len(data))] = dice.choice(
                        (0, 1, 0x27, 0x5C, 0x7F, 0xFF, dice.randrange(256))
                    )
            case 3 if len(data) > 9:
                at = dice.randrange(5, len(data) - 3)
                data[at : at + 4] = wire.U32.pack(dice.choice(_NUMBERS))
            case 4 if len(data) > 6:  # cut, with a length that fits
                del data[dice.randrange(5, len(data)) :]
                data[1:5] = wire.U32.pack(len(data) - 1)
            case 5:  # more, with a length that fits
                data += dice.randbytes(dice.randint(1, 40))
                data[1:5] = wire.U32.pack(len(data) - 1)
            case _ if len(data) > 6:
                at = dice.randrange(5, len(data))
                data[at:at] = data[5:at][-dice.randint(1, 30) :]
                data[1:5] = wire.U32.pack(len(data) - 1)
        return bytes(data)

    def made_up(self) -> bytes:
        """A message of a known or unknown type with a random body."""
        dice = self._dice
        body = dice.randbytes(dice.choice((0, 1, 2, 4, 5, 8, 17, 300)))
        if dice.random() < 0.5:
            body = bytes(byte if byte > 100 else byte % 4 for byte in body) + b"\0"
        return wire.message(dice.choice(_TYPES), body)

    def cut(self, data: bytes) -> list[bytes]:
        """Cut bytes into reads: whole mostly, else anywhere."""
        dice = self._dice
        if dice.random() < 0.7 or len(data) < 2:
            return [data]
        at = sorted(dice.randrange(1, len(data)) for _ in range(dice.randint(1, 3)))
        return [data[i:j] for i, j in zip([0, *at], [*at, len(data)], strict=True) if j > i]
