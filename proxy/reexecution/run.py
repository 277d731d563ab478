"""Following a recording on a sandbox, message by message, and comparing what each command makes.

For each message that went to the target: read the recorded answer from the tape; send the message to the sandbox and
read its answer; compare. What the gate sent in place of a refused message is sent again, so that a transaction fails
where it failed; what the target skipped after a failure is not sent. Where the recording failed and the sandbox did
not, the sandbox's transaction (or batch) is made to fail too, and a statement that was cancelled or lost to other
sessions (deadlock, serialization) is not run but made to fail: so what comes later meets the state that it met then.

Left out: what other sessions did in between; two connections at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from protocols.postgres import wire
from protocols.postgres.outcomes import FAILED, IDLE, IN_TRANSACTION, Outcome, Question, Result, Side
from protocols.postgres.recorded import Ask, Recorded, RecordedAnswers, Script
from protocols.postgres.rowsets import RowSet
from protocols.postgres.sandbox import Sandbox, TooLong
from proxy.core.errors import TargetPeerError
from proxy.core.gate import Reader
from proxy.core.statement import Copy
from proxy.reexecution.compare import Entry, Sets, compare
from proxy.reexecution.statements import TEXT_LIMIT, Facts, read_facts

# Failures that come from time, other sessions or an operator; another run does not have them.
PASSING: Final = {
    "57014": "it was cancelled, or timed out",
    "57P01": "the connection was terminated",
    "57P02": "the server crashed",
    "57P03": "the server was not ready",
    "57P05": "the session was idle for too long",
    "25P03": "the transaction was idle for too long",
    "25P04": "the transaction took too long",
    "40001": "it could not be serialized with other sessions",
    "40P01": "it was part of a deadlock",
    "55P03": "a lock could not be had",
}
# What runs although it is in front of --from: what a session is later built on.
_SESSION_VERBS: Final = frozenset(
    (
        *("SET", "RESET", "DISCARD", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "ROLLBACK TO", "PREPARE"),
        *("DEALLOCATE", "SET CONSTRAINTS"),
    )
)
_RUNNING: Final = frozenset((wire.QUERY, wire.EXECUTE, wire.FUNCTION_CALL))
_DECIDED: Final = _RUNNING | {wire.PARSE, wire.BIND}
_COPY_KINDS: Final = frozenset((wire.COPY_DATA, wire.COPY_DONE, wire.COPY_FAIL))
_FIRST_USER_OID: Final = 16384
_TRANSACTION_FAILED: Final = "25P02"


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run. first and last: numbers of commands; key: of this run's hashes; ignored: names of columns."""

    key: bytes
    first: int = 1
    last: int | None = None
    ignored: frozenset[str] = frozenset()


class Log(Protocol):
    """Where the commands of a re-execution are recorded. Raises TapeError."""

    async def sending(self, command: Recorded | None, message: bytes) -> None: ...
    async def came(self, outcome: Outcome) -> None: ...


class Emulation(Protocol):
    """Stands in for transaction control where a run must not commit (emulate.py)."""

    def wants(self, ask: Ask) -> bool: ...
    async def control(self, ask: Ask) -> Outcome: ...
    async def before(self, sandbox: Sandbox) -> None: ...
    async def after(self, sandbox: Sandbox) -> None: ...
    def refuses(self, text: str) -> str: ...


class Run:
    """One re-execution. Without connect() it is a dry run, which says what would run."""

    def __init__(
        self,
        script: Script,
        answers: RecordedAnswers,
        reader: Reader,
        plan: Plan,
    ) -> None:
        self._script = script
        self._answers = answers
        self._side = Side(answers.read)
        self._sandbox: Sandbox | None = None
        self._reader = reader
        self._plan = plan
        self._log: Log | None = None
        self._emulation: Emulation | None = None
        self._recorded_failed = False  # its batch failed: up to the next Sync nothing ran
        self._sandbox_failed = 0  # the number of the command whose failure has the sandbox skip up to the next Sync
        self._sandbox_skips = False  # whether it does, for whatever reason
        self._ended = ""  # the SQLSTATE that the sandbox ended the connection with
        self._copying = False  # the recording takes COPY data: Syncs count for nothing
        self._broken_by = 0  # the command whose failure has failed the sandbox's open transaction
        self._last: Recorded | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """The recorded server's reports, once started."""
        return self._side.parameters

    async def start(self) -> bool:
        """Read the recording up to its first ReadyForQuery; False if it never got there."""
        outcome = await self._side.answer(Question(wire.SYNC, b"", self._no_rows))
        return outcome.status is not None

    def connect(self, sandbox: Sandbox, log: Log | None = None, emulation: Emulation | None = None) -> None:
        """Take the sandbox that was opened with what the start told."""
        self._sandbox = sandbox
        self._log = log
        self._emulation = emulation

    async def entries(self) -> AsyncGenerator[Entry, None]:
        """Run it all; yield an entry for each command. Raises TargetPeerError, TapeError, OSError, FormatError."""
        while (ask := self._script.take()) is not None:
            if ask.kind == wire.TERMINATE:
                break
            last = self._plan.last
            if last is not None and ask.command is not None and ask.command.number > last:
                break
            if ask.kind == wire.SYNC:
                if not self._copying:
                    async for entry in self._sync():
                        yield entry
            elif ask.kind in _COPY_KINDS:
                self._copying = self._copying and ask.kind == wire.COPY_DATA
            elif ask.kind != wire.FLUSH:
                made = await self._message(ask)
                if made is not None and self._in_range(made):
                    yield made
            if self._ended:
                raise TargetPeerError(f"the sandbox ended the connection ({self._ended})", self._ended)
        if self._script.lost:
            command = Recorded(0, 0, "", "", "the rest of the session")
            yield Entry(command, "not-replayable", self._script.lost)

    # -- one message ----------------------------------------------------------------------------------

    async def _message(self, ask: Ask) -> Entry | None:
        command = ask.command
        if self._recorded_failed:
            return self._skipped(ask, "a command before it failed, so the target skipped it")
        if ask.kind in _DECIDED and ask.replacement is None and (command is None or command.verdict != "allow"):
            # It never left: the target would have skipped it, or the session ended first.
            reason = "it was not decided when the session ended" if command is not None and not command.verdict else ""
            return self._skipped(ask, reason)
        sets = self._sets(command)
        message = ask.replacement or ask.wire
        recorded = await self._side.answer(Question(_kind(message), message, self._recorded_rows(sets)))
        if recorded.code and ask.kind not in (wire.QUERY, wire.FUNCTION_CALL):
            self._recorded_failed = True
        self._copying = ask.kind == wire.EXECUTE and any(each.copy == "in" for each in recorded.results)
        if ask.kind in _RUNNING and command is not None:
            self._last = command
        entry = await self._again(ask, message, recorded, sets)
        await self._align(ask, recorded)
        return entry

    async def _again(self, ask: Ask, message: bytes, recorded: Outcome, sets: Sets) -> Entry | None:
        """Do on the sandbox what the recording did, and compare."""
        command = ask.command
        reason = self._why_not(ask, recorded)
        if self._sandbox is None:
            if command is None or ask.kind not in _RUNNING:
                return None if ask.replacement is None or command is None else self._skipped(ask, "")
            if ask.replacement is not None:
                return self._skipped(ask, "")
            return Entry(command, "not-replayable" if reason else "would-run", reason)
        if self._sandbox_failed:
            if command is None or ask.kind not in _RUNNING:
                return None
            return Entry(
                command, "not-replayable", f"the sandbox skips it: command {self._sandbox_failed} of its batch failed"
            )
        if ask.replacement is not None:
            await self._ask(None, message, sets, recorded)
            return self._skipped(ask, "")
        if self._too_early(ask):
            return None
        if not reason and self._emulation is not None and command is not None and ask.kind in _RUNNING:
            reason = self._emulation.refuses(command.text)
        if reason:
            if recorded.code and not recorded.over:
                await self._fail(extended=ask.kind != wire.QUERY)
            return Entry(command, "not-replayable", reason) if command is not None and ask.kind in _RUNNING else None
        return await self._compared(ask, message, recorded, sets)

    async def _compared(self, ask: Ask, message: bytes, recorded: Outcome, sets: Sets) -> Entry | None:
        assert self._sandbox is not None
        command = ask.command
        broken = self._broken_by if self._sandbox.status == FAILED else 0
        emulated = self._emulation is not None and self._emulation.wants(ask)
        try:
            if emulated and self._emulation is not None:
                outcome = await self._emulation.control(ask)
            else:
                outcome = await self._ask(command, message, sets, recorded)
        except TooLong:
            self._sandbox_skips = ask.kind not in (wire.QUERY, wire.FUNCTION_CALL)
            if self._emulation is not None and not self._sandbox_skips:
                await self._emulation.after(self._sandbox)
            self._failed_on_sandbox(ask, command)
            return Entry(command, "not-replayable", "the sandbox took too long") if command is not None else None
        if outcome.code:
            self._failed_on_sandbox(ask, command)
        if command is None or (ask.kind not in _RUNNING and not outcome.code and not recorded.code):
            return None
        if emulated:
            return Entry(command, "same", notes=["transaction control is emulated (--rollback)"])
        entry = compare(recorded, outcome, command, sets.facts)
        if entry.state == "different" and broken and outcome.code == _TRANSACTION_FAILED:
            entry.notes.append(f"follows from command {broken}, whose failure ended the transaction")
        return entry

    def _failed_on_sandbox(self, ask: Ask, command: Recorded | None) -> None:
        number = command.number if command is not None else 0
        if ask.kind not in (wire.QUERY, wire.FUNCTION_CALL):
            self._sandbox_failed = number or (self._last.number if self._last is not None else 1)
        if not self._broken_by:
            self._broken_by = number

    async def _ask(self, command: Recorded | None, message: bytes, sets: Sets, recorded: Outcome) -> Outcome:
        assert self._sandbox is not None
        if self._log is not None:
            await self._log.sending(command, message)
        if self._emulation is not None and _kind(message) in (wire.QUERY, wire.PARSE, wire.BIND):
            await self._emulation.before(self._sandbox)
        kind = _kind(message)
        frames = self._copy_frames(recorded) if kind in (wire.QUERY, wire.EXECUTE) else None
        outcome = await self._sandbox.ask(kind, message, self._sandbox_rows(sets, recorded.results), frames)
        if self._log is not None:
            await self._log.came(outcome)
        if self._emulation is not None and outcome.status is not None:
            await self._emulation.after(self._sandbox)
        if outcome.code and kind not in (wire.QUERY, wire.FUNCTION_CALL, wire.SYNC):
            self._sandbox_skips = True
        if outcome.over:
            self._ended = outcome.code or "no reason given"
        if outcome.status in (IDLE, IN_TRANSACTION):
            self._broken_by = 0
        return outcome

    def _copy_frames(self, recorded: Outcome) -> Iterator[bytes]:
        """What the user sent for a COPY; nothing if the recording never got to one."""
        if any(each.copy == "in" for each in recorded.results):
            yield from self._script.copy_frames()
            self._copying = False

    async def _align(self, ask: Ask, recorded: Outcome) -> None:
        """Make the sandbox's transaction fail where the recording's did."""
        if self._sandbox is None or recorded.over:
            return
        if recorded.status == FAILED and self._sandbox.status == IN_TRANSACTION:
            await self._fail(extended=False)

    async def _fail(self, extended: bool) -> None:
        assert self._sandbox is not None
        await self._sandbox.fail(extended)
        self._sandbox_skips = extended

    async def _sync(self) -> AsyncIterator[Entry]:
        """The end of a batch: both sides commit or roll back what was not in a transaction block."""
        sync = wire.message(wire.SYNC, b"")
        recorded = await self._side.answer(Question(wire.SYNC, sync, self._no_rows))
        failed, self._recorded_failed, self._copying = self._recorded_failed, False, False
        if self._sandbox is None:
            return
        if failed and not self._sandbox_skips:
            await self._fail(extended=True)
        sandbox_failed, self._sandbox_failed, self._sandbox_skips = self._sandbox_failed, 0, False
        outcome = await self._ask(None, sync, self._sets(None), recorded)
        if self._last is not None and not failed and not sandbox_failed and recorded.code != outcome.code:
            entry = compare(recorded, outcome, self._last, ())
            entry.notes.append("at the end of its batch, when it was committed")
            yield entry
        await self._align(Ask(wire.SYNC), recorded)

    # -- what to do with it ---------------------------------------------------------------------------

    def _in_range(self, entry: Entry) -> bool:
        """Whether it is reported: of what runs in front of --from for the rest's sake, only if it differs."""
        command = entry.command
        differs = entry.state == "different" and command.verb in _SESSION_VERBS
        return not 0 < command.number < self._plan.first or differs

    def _too_early(self, ask: Ask) -> bool:
        """Whether a message is in front of --from, and nothing behind it is built on it (as on what is prepared)."""
        command = ask.command
        if command is None or ask.kind not in _RUNNING or command.verb in _SESSION_VERBS:
            return False
        return command.number < self._plan.first

    def _skipped(self, ask: Ask, reason: str) -> Entry | None:
        command = ask.command
        if command is None:
            return None
        if command.verdict == "deny":
            why = f"denied by {command.rule}" + (f": {command.reason}" if command.reason else "")
            return Entry(command, "skipped", why)
        return Entry(command, "skipped", reason) if reason and ask.kind in _RUNNING else None

    def _why_not(self, ask: Ask, recorded: Outcome) -> str:
        if recorded.code in PASSING and not recorded.over:
            return f"in the recording {PASSING[recorded.code]} ({recorded.code})"
        if recorded.over:
            return "the recording ends before its answer" + (f" ({recorded.code})" if recorded.code else "")
        if not ask.whole:
            return "its bytes are not all on the tape, or too many to hold"
        if ask.kind == wire.FUNCTION_CALL and wire.parse_function_oid(ask.wire) >= _FIRST_USER_OID:
            return "a fast-path call of a function by its oid, which is each database's own"
        return ""

    def _sets(self, command: Recorded | None) -> Sets:
        if command is None:
            return Sets(self._plan.key, ())
        facts: tuple[Facts, ...] = read_facts(command.text)
        copy: Copy | None = None
        if any(fact.verb == "CopyStmt" for fact in facts) and len(command.text) < TEXT_LIMIT:
            copy = next((each.copy for each in self._reader(command.text) if each.copy is not None), None)
        return Sets(self._plan.key, facts, self._plan.ignored, copy, bool(command.masks))

    def _recorded_rows(self, sets: Sets) -> Callable[[int, Result, int, Result | None], RowSet]:
        def make(number: int, result: Result, columns: int, before: Result | None) -> RowSet:
            masked = self._answers.take_masked()
            return sets.recorded(number, result, columns, before, masked, self._encoding(self._side))

        return make

    def _sandbox_rows(self, sets: Sets, theirs: list[Result]) -> Callable[[int, Result, int, Result | None], RowSet]:
        def make(number: int, result: Result, columns: int, before: Result | None) -> RowSet:
            return sets.sandbox(number, result, columns, theirs, self._encoding(self._side))

        return make

    @staticmethod
    def _encoding(side: Side) -> str:
        return side.parameters.get("client_encoding", "UTF8")

    def _no_rows(self, number: int, result: Result, columns: int, before: Result | None) -> RowSet:
        return RowSet(self._plan.key, columns)


def _kind(message: bytes) -> int:
    return message[0]
