"""A recorded PostgreSQL session as a script and its answers: what its tape says was sent, and what came back.

Script reads the user's side: every message that the user sent, with its COMMAND and VERDICT, and the message that the
gate sent in the place of a refused one. RecordedAnswers reads the other side: the bytes that the user got, and which
columns of them are masked. Each walks the tape on its own, in constant memory, as the two sides of a long COPY or a
pipeline lie far from each other.

The records say it all: a message is one WIRE record of channel 1 (or several, where it is long), its COMMAND follows
it at once, then its VERDICT; a WIRE record of channel 0 is what stands in for it (see proxy/core/session.py). The
commands before the first message are the session's opening; its SETs are the start-up parameters.

Left out: replication. Where records were lost in a crash (GAP), both end: nobody knows what follows.
Source: recorder/format.py; PostgreSQL 18 docs 54.2.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from protocols.postgres import wire
from protocols.postgres.outcomes import MESSAGE_LIMIT
from recorder.format import GATE, OUT, USER, Kind, Record, fields

_STARTUP_SET: Final = re.compile(r"SET (\S+) = (['\"].*['\"])", re.DOTALL)
_DECIDED: Final = frozenset((wire.QUERY, wire.PARSE, wire.BIND, wire.EXECUTE, wire.FUNCTION_CALL))
_COPY_FRAMES: Final = frozenset((wire.COPY_DATA, wire.COPY_DONE, wire.COPY_FAIL))
START_PARAMETERS_LIMIT: Final = 1000  # a start-up packet has 10,000 bytes


@dataclass(slots=True)
class Recorded:
    """A COMMAND of the tape with its VERDICT. number counts the tape's commands from 1; verdict '' = it has none."""

    number: int
    record: int
    verb: str
    kind: str
    text: str
    verdict: str = ""
    rule: str = ""
    reason: str = ""
    approval: str = ""
    masks: tuple[str, ...] = ()


@dataclass(slots=True)
class Ask:
    """One message of the user. replacement: what the gate sent in its place. whole: False where its bytes are not all
    held (it is too long) or not all on the tape."""

    kind: int
    wire: bytes = b""
    command: Recorded | None = None
    replacement: bytes | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Opening:
    """How the session began: parameters of the start-up, the commands that were decided then."""

    parameters: Mapping[str, str]
    commands: tuple[Recorded, ...]

    @property
    def refused(self) -> Recorded | None:
        """The command that kept the session from opening."""
        return next((each for each in self.commands if each.verdict == "deny"), None)

    @property
    def replication(self) -> bool:
        return any(each.verb == "REPLICATION" for each in self.commands)


@dataclass(slots=True)
class _Open:
    """The message that is being read, and how many of its bytes are to come."""

    ask: Ask
    parts: list[bytes] = field(default_factory=list)
    have: int = 0
    need: int = 0


class Script:
    """The user's messages, in order. after a GAP, lost says so."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = iter(records)
        self._number = 0
        self._commands: dict[int, Recorded] = {}
        self._opening: list[Recorded] = []
        self.lost = ""
        self._asks = self._read()
        self._next: Ask | None = next(self._asks, None)

    @property
    def opening(self) -> Opening:
        """How the session began."""
        settings: dict[str, str] = {}
        for each in self._opening[:START_PARAMETERS_LIMIT]:
            found = _STARTUP_SET.fullmatch(each.text) if each.verb == "SET" else None
            if found is not None:
                with contextlib.suppress(ValueError, SyntaxError):  # a tape may hold anything
                    settings[found[1]] = str(ast.literal_eval(found[2]))
        return Opening(settings, tuple(self._opening))

    def take(self) -> Ask | None:
        """Return the next message, None at the end."""
        ask = self._next
        if ask is not None:
            self._next = next(self._asks, None)
        return ask

    def copy_frames(self) -> Iterator[bytes]:
        """Yield the COPY messages that come next; the last is CopyDone or CopyFail, unless the user sent none.

        Flush and Sync among them count for nothing, as for the server.
        """
        while self._next is not None and self._next.kind in _COPY_FRAMES | {wire.SYNC, wire.FLUSH}:
            ask = self.take()
            assert ask is not None
            if ask.kind in (wire.SYNC, wire.FLUSH):
                continue
            if not ask.whole:
                return
            yield ask.wire
            if ask.kind != wire.COPY_DATA:
                return

    def _read(self) -> Iterator[Ask]:
        message: _Open | None = None
        for record in self._records:
            match record.kind:
                case Kind.WIRE if record.channel == USER:
                    for done in self._cut(message, record.payload):
                        if message is not None and done is not message:
                            yield _finished(message)
                        message = done
                case Kind.WIRE if record.channel == GATE and message is not None:
                    if record.payload[0] in _DECIDED and message.ask.kind in _DECIDED:
                        message.ask.replacement = record.payload
                case Kind.COMMAND:
                    self._command(record, message)
                case Kind.VERDICT:
                    self._verdict(record.payload)
                case Kind.MARK if record.channel == GATE and fields(record.payload).get("label") == "gap":
                    self.lost = f"records were lost in a crash, from record {record.n} on"
                    break
        if message is not None:
            yield _finished(message)

    @staticmethod
    def _cut(message: _Open | None, payload: bytes) -> Iterator[_Open]:
        """Yield the message that the bytes belong to, and those that begin in them."""
        at = 0
        while at < len(payload):
            if message is None or message.have >= message.need > 0:
                message = _Open(Ask(payload[at]))
            if not message.need:
                head = (b"".join(message.parts) + payload[at : at + 5])[:5]
                if len(head) == 5:
                    message.need = 1 + max(4, wire.HEADER.unpack(head)[1])
            piece = payload[at : at + (message.need or 5) - message.have]
            message.have += len(piece)
            at += len(piece)
            if message.have <= MESSAGE_LIMIT:
                message.parts.append(piece)
            else:
                message.ask.whole = False
                message.parts.clear()
            yield message

    def _command(self, record: Record, message: _Open | None) -> None:
        said = fields(record.payload)
        self._number += 1
        command = Recorded(
            self._number,
            record.n,
            str(said.get("verb", "")),
            str(said.get("kind", "")),
            str(said.get("text", "")),
        )
        self._commands = {record.n: command}  # the way up stops until it has its verdict
        if message is None:
            self._opening.append(command)
        elif message.ask.kind in _DECIDED and message.ask.command is None:
            message.ask.command = command

    def _verdict(self, payload: bytes) -> None:
        said = fields(payload)
        command = self._commands.pop(said.get("command", -1), None)
        if command is not None:
            command.verdict = str(said.get("verdict", ""))
            command.rule = str(said.get("rule", ""))
            command.reason = str(said.get("reason", ""))
            command.approval = str(said.get("approval", "") or "")
            command.masks = tuple(str(mask) for mask in said.get("masks") or ())


def _finished(message: _Open) -> Ask:
    ask = message.ask
    ask.wire = b"".join(message.parts)
    ask.whole = ask.whole and len(ask.wire) == message.need
    return ask


class RecordedAnswers:
    """What the user got, as a stream: read() for a Side. masked: the columns of the result whose rows come next."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = iter(records)
        self._masked: dict[int, str] | None = None
        self.closed = ""

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        for record in self._records:
            if record.kind == Kind.WIRE and record.channel == OUT and record.payload:
                return record.payload
            if record.kind == Kind.MASKMAP:
                said = fields(record.payload).get("fields") or ()
                self._masked = dict(_mask(each) for each in said if isinstance(each, list))
            elif record.kind == Kind.CLOSE:
                self.closed = str(fields(record.payload).get("reason", ""))
            elif record.kind == Kind.MARK and fields(record.payload).get("label") == "gap":
                break
        self._records = iter(())
        return b""

    def take_masked(self) -> dict[int, str]:
        """The masks of the result that begins now; they hold for this one result."""
        masked, self._masked = self._masked, None
        return {column: rule for column, rule in (masked or {}).items() if column >= 0}


def _mask(said: list[object]) -> tuple[int, str]:
    """An entry of a MASKMAP; an odd one is of no column."""
    match said:
        case [str(), int(column), str(rule)]:
            return column, rule
        case _:
            return -1, ""
