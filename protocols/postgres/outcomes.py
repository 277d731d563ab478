"""What became of one message: a server's answers, from a tape or from a live connection, as one value.

Side reads the backend's messages of one conversation, one answer at a time: answer(question) takes everything up to
the message that ends the answer to one frontend message (ReadyForQuery for Query, FunctionCall and Sync, ParseComplete
for Parse, ...). Rows go into RowSets, so that memory does not grow with a result. The same code reads both sides of a
re-execution, so that what one side is blind to, the other is too.

Deliberately left out: notices and notifications (other sessions cause them), ParameterStatus but for remembering it.
Source: PostgreSQL 18 docs 54.2.2, 54.2.3, 54.2.6, 54.7.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from struct import error as StructError
from typing import Final, Literal

from protocols.postgres import wire
from protocols.postgres.rows import count_rows
from protocols.postgres.rowsets import RowSet
from protocols.postgres.startup import error_fields
from proxy.core.errors import TargetPeerError, UserPeerError

# The longest message that is held whole: as COPY under masks (copy.py), a row of 100 MB passes.
MESSAGE_LIMIT: Final = 128 * 1024 * 1024
# Results of one Query; a text of 16 MB could hold millions of empty ones.
RESULTS_LIMIT: Final = 10_000
# Statements and portals whose columns are remembered; a client that makes more without closing them is a leak.
NAMES_LIMIT: Final = 100_000

DATA_ROW: Final = ord("D")
COPY_DATA: Final = ord("d")
IDLE, IN_TRANSACTION, FAILED = b"ITE"
_FATAL: Final = ("FATAL", "PANIC")
_TO_READY: Final = frozenset((wire.QUERY, wire.FUNCTION_CALL, wire.SYNC))


@dataclass(slots=True)
class Result:
    """One result of a command. error: SQLSTATE, message, severity. masked: the rule that masks a column."""

    tag: str | None = None
    fields: tuple[wire.Field, ...] | None = None
    rows: RowSet | None = None
    copy: Literal["", "in", "out"] = ""
    copy_columns: int = 0
    error: Mapping[str, str] | None = None
    masked: Mapping[int, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The SQLSTATE of its error, '' where it has none."""
        return self.error["code"] if self.error is not None else ""


@dataclass(slots=True)
class Outcome:
    """The whole answer to one message. status: of ReadyForQuery, None where it has none. over: the connection ended
    before the answer did."""

    results: list[Result] = field(default_factory=list)
    status: int | None = None
    over: bool = False
    value: bytes | None = None  # of a FunctionCall

    @property
    def code(self) -> str:
        """The SQLSTATE that it failed with, '' if it did not."""
        return self.results[-1].code if self.results else ""


# Makes the RowSet of a result whose first rows are here: its number in the outcome, the result, how many columns its
# rows have, and the result before it.
RowSets = Callable[[int, Result, int, Result | None], RowSet]
Read = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Question:
    """A message that was sent: its type and bytes. copy_in is awaited when the server asks for COPY data."""

    kind: int
    message: bytes
    row_set: RowSets
    copy_in: Callable[[], Awaitable[None]] | None = None


class Messages:
    """Cuts a stream into messages; rows and COPY data come as stretches of whole messages."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._data = b""
        self._at = 0
        self._parts: list[bytes] = []
        self._have = 0

    async def next(self) -> tuple[int, bytes] | None:
        """Return the next message's type and bytes, None at the end. Raises TargetPeerError."""
        while True:
            need = 5
            data, at = self._data, self._at
            if len(data) - at >= 5:
                kind, length = wire.HEADER.unpack_from(data, at)
                if not 4 <= length <= MESSAGE_LIMIT:
                    raise TargetPeerError("a message of a length that cannot be, or is too long to compare", "08P01")
                end = _stretch(data, at, kind) if kind in (DATA_ROW, COPY_DATA) else at
                if end == at and at + 1 + length <= len(data):
                    end = at + 1 + length
                if end > at:
                    self._at = end
                    return kind, data[at:end]
                need = 1 + length
            if not await self._more(need):
                return None

    async def _more(self, need: int) -> bool:
        if not self._parts:
            self._parts, self._have = [self._data[self._at :]], len(self._data) - self._at
            self._data, self._at = b"", 0
        try:
            while self._have < need:
                data = await self._read()
                if not data:
                    return False
                self._parts.append(data)
                self._have += len(data)
        finally:  # also when a timeout takes the wait away: nothing that was read is lost
            self._data, self._at, self._parts = b"".join(self._parts), 0, []
        return True


def _stretch(data: bytes, at: int, kind: int) -> int:
    if kind == DATA_ROW:
        return count_rows(data, at)[0]
    while len(data) - at >= 5:
        letter, length = wire.HEADER.unpack_from(data, at)
        if letter != kind or length < 4 or at + 1 + length > len(data):
            break
        at += 1 + length
    return at


class Side:
    """One side of a comparison: reads answers, and remembers what names stand for."""

    def __init__(self, read: Read) -> None:
        self.messages = Messages(read)
        self.parameters: dict[str, str] = {}
        self.status = IDLE
        self._described: dict[tuple[int, bytes], tuple[wire.Field, ...]] = {}

    async def answer(self, question: Question) -> Outcome:
        """Read the answer to a message. Raises TargetPeerError."""
        try:
            return await self._answer(question)
        except (IndexError, StructError) as error:
            raise TargetPeerError("a message that is shorter than its parts", "08P01") from error

    async def _answer(self, question: Question) -> Outcome:
        outcome = Outcome()
        result = Result(fields=self._known(question))
        to_ready = question.kind in _TO_READY
        while True:
            message = await self.messages.next()
            if message is None:
                outcome.over = True
                break
            kind, data = message
            if kind == ord("S"):
                name, value = wire.parse_parameter_status(data)
                self.parameters[name] = value
            elif kind == ord("Z"):
                self.status = outcome.status = data[5]
                if to_ready:
                    break
            elif kind == ord("E"):
                result.error = _error(data)
                outcome.results.append(result)
                if result.error["severity"] in _FATAL:
                    outcome.over = True
                    break
                result = Result()
                if not to_ready:
                    break
            elif await self._take(kind, data, question, outcome, result):
                if not to_ready:
                    break
                result = Result()
        if not outcome.over and not outcome.code:
            self._note(question, outcome)
        return outcome

    async def _take(self, kind: int, data: bytes, question: Question, outcome: Outcome, result: Result) -> bool:
        """Take one message; True if it ends a result, or the whole answer where that has no ReadyForQuery."""
        match kind:
            case 68 | 100:  # D DataRow, d CopyData
                if result.rows is None:
                    columns = wire.U16.unpack_from(data, 5)[0] if kind == DATA_ROW else result.copy_columns
                    before = outcome.results[-1] if outcome.results else None
                    result.rows = question.row_set(len(outcome.results), result, columns, before)
                result.rows.add(data)
                return False
            case 84:  # T RowDescription
                result.fields = wire.parse_row_description(data)
                return self._described_now(question, outcome, result)
            case 110:  # n NoData
                result.fields = ()
                return self._described_now(question, outcome, result)
            case 71:  # G CopyInResponse
                result.copy = "in"
                if question.copy_in is not None:
                    await question.copy_in()
                return False
            case 72:  # H CopyOutResponse
                result.copy = "out"
                _, formats = wire.parse_copy_response(data)
                result.copy_columns = len(formats)
                return False
            case 67 | 73 | 115:  # C CommandComplete, I EmptyQueryResponse, s PortalSuspended
                if question.kind not in (wire.QUERY, wire.EXECUTE):
                    raise TargetPeerError("an answer to what was not asked", "08P01")
                result.tag = wire.command_tag(data) if kind == 67 else "" if kind == 73 else "SUSPENDED"
                if len(outcome.results) >= RESULTS_LIMIT:
                    raise TargetPeerError(f"more than {RESULTS_LIMIT} results of one command", "54000")
                outcome.results.append(result)
                return True
            case 49 | 50 | 51:  # 1 ParseComplete, 2 BindComplete, 3 CloseComplete
                if question.kind != (wire.PARSE, wire.BIND, wire.CLOSE)[kind - 49]:
                    raise TargetPeerError("an answer to what was not asked", "08P01")
                return True
            case 86:  # V FunctionCallResponse
                outcome.value = data[5:]
                return False
            case 116 | 78 | 65 | 99 | 75:  # t ParameterDescription, N Notice, A Notification, c CopyDone, K BackendKey
                return False
            case _:
                raise TargetPeerError(f"a message of type {kind} that has no place here", "08P01")

    def _described_now(self, question: Question, outcome: Outcome, result: Result) -> bool:
        if question.kind != wire.DESCRIBE:
            return False
        outcome.results.append(result)
        return True

    def _known(self, question: Question) -> tuple[wire.Field, ...] | None:
        if question.kind != wire.EXECUTE:
            return None
        name, _ = wire.parse_execute(question.message)
        return self._described.get((ord("P"), name))

    def _note(self, question: Question, outcome: Outcome) -> None:
        """Remember the columns of what a message made or described."""
        described, message = self._described, question.message
        if len(described) > NAMES_LIMIT:
            described.clear()
        try:
            match question.kind:
                case wire.QUERY:
                    described.pop((ord("S"), b""), None)
                case wire.PARSE:
                    described.pop((ord("S"), wire.parse_parse(message)[0]), None)
                case wire.BIND:
                    bind = wire.parse_bind(message, 0)
                    fields = described.get((ord("S"), bind.statement))
                    described.pop((ord("P"), bind.portal), None)
                    if fields is not None:
                        described[ord("P"), bind.portal] = _in_formats(fields, bind.result_formats or ())
                case wire.DESCRIBE:
                    described[wire.parse_named(message)] = outcome.results[-1].fields or ()
                case wire.CLOSE:
                    described.pop(wire.parse_named(message), None)
        except UserPeerError:
            pass  # what the server took is no business of ours


def _in_formats(fields: tuple[wire.Field, ...], formats: tuple[int, ...]) -> tuple[wire.Field, ...]:
    return tuple(replace(each, format=wire.format_of(formats, index)) for index, each in enumerate(fields))


def _error(data: bytes) -> Mapping[str, str]:
    fields = error_fields(data[5:])
    severity = fields.get("V", fields.get("S", "ERROR"))
    message = fields.get("M", "").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return {"severity": severity, "code": fields.get("C", "") or "XX000", "message": message}
