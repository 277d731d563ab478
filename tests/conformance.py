"""What the conformance suite (test_conformance.py) needs of a protocol, and the stage on which it plays.

A protocol takes part by one file, tests/<name>/conformance_adapter.py with ADAPTER, an Adapter: a target of its own
that answers a small vocabulary (WORDS) and notes what reaches it, and a user that can log in and say those words.
The stage puts real serve() between them, over a tape that knows at every moment what is durable; whatever reaches
the target or the user before the tape had it is written to stage.early, and every test ends by looking there.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import msgpack
import structlog
import uvloop

import protocols
from proxy.core.errors import TapeError
from proxy.core.gate import Gate
from proxy.core.parties import Target
from proxy.core.stream import MemoryStream
from proxy.masking.masker import Masking
from recorder.tape import ERR, GATE, OUT, Kind
from tests.fakes import TOKEN, FakeApprovals, FakeRecorder, FakeTape, Rule, allow_all, fake_gate

T = TypeVar("T")

# What a target answers to a command that holds one of these words; "read 7" and "write 7" are told apart by number.
WORDS = {
    "read": "one row: the number under id, CANARY under email",
    "write": "done, without a result",
    "error": "a failure whose text quotes CANARY",
    "secret": "a failure whose text quotes the password that the gate logged in with",
    "notice": "a remark that quotes CANARY, then done",
    "later": "done, and behind that a remark nobody asked for that quotes CANARY",
    "bulk": "three lines with CANARY in bulk (COPY), or rows where a protocol has no bulk",
    "flood": "rows of 1 KiB without end, FLOOD_BYTES in all",
    "fail": "a failure",
    "begin": "done; a transaction is open, in which a failure breaks everything up to 'end'",
    "end": "done; no transaction is open",
    "garbage": "a message that no specification has",
    "stall": "nothing: the target stops reading",
}
CANARY = "canary-4411@example.com"
FLOOD_BYTES = 64 * 1024 * 1024
WAIT_SECONDS = 20.0
TURNS = 40  # of the loop: enough for bytes to cross a loopback socket and a relay, if nothing keeps them


@dataclass
class Reply:
    """What a user read in answer to one command. state: the transaction's, as the protocol tells it."""

    cells: list[str] = field(default_factory=list)
    error: str = ""
    notes: list[str] = field(default_factory=list)
    state: str = ""
    ended: bool = False  # the connection is over
    raw: bytes = b""


class Caller(Protocol):
    """A user that has logged in."""

    sent: bytearray  # since the login
    heard: bytearray  # since the login
    on_heard: Any  # where adapter.streams: called with each piece as it arrives

    async def say(self, *words: str) -> None:
        """Send one command for each of the words, without waiting for anything."""

    async def hear(self) -> Reply:
        """Read up to the end of one command's answer, or of the connection."""

    async def violate(self) -> None:
        """Send a well-framed message that the protocol does not have: of a type that does not exist, as a rule."""

    async def note(self) -> str:
        """Read one remark that comes before its command's answer."""


class Backend(Protocol):
    """The target: target is how it is configured; commands are the words that reached it, in order."""

    target: Target
    commands: list[str]
    connections: int
    received: bytearray  # since the login
    sent: bytearray
    sent_bytes: int
    secret_seen: bool
    on_command: Any  # called with each word as it arrives


class Adapter(Protocol):
    """One protocol's part. serve is in protocol.

    cut: how a caller tells of a connection that ended in an answer or behind it, where a protocol cannot say why any
    more; () where it can. streams: the connection is encrypted and holds several streams: what a caller has heard is
    what came in these, and is looked for on the tape in the records that have a flow; the callers tell of it by
    on_heard. A held command stops its own stream alone. transactions: whether there are any.
    """

    protocol: protocols.Protocol
    limit: int  # of a command's text in bytes: settings make it so
    streams: bool
    transactions: bool
    cut: tuple[str, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Listener settings."""

    def backend(self) -> AbstractAsyncContextManager[Backend]:
        """A fresh target that listens."""

    def prepare(self, gate: Gate) -> None:
        """Put into gate.shared what a protocol would else ask a real target for."""

    async def login(self, user: MemoryStream, token: str, target: str) -> Caller | str:
        """Log in; the text of the refusal where there is one."""

    def text(self, word: str) -> str:
        """The text of the command for a word, as a rule sees it."""

    def sized(self, size: int) -> str:
        """A word whose command measures exactly size against limit."""

    def own_words(self, data: bytes) -> bool:
        """Whether bytes for the user are the gate's own that need no tape: a login's, or a session's last word."""


def adapters() -> dict[str, Adapter]:
    """All protocols' adapters; one that is missing is an error."""
    names = ("echo", *protocols.load())
    return {name: importlib.import_module(f"tests.{name}.conformance_adapter").ADAPTER for name in names}


class WatchedTape(FakeTape):
    """A tape whose commit and written take a while, fail on demand, and tell how much is safe."""

    def __init__(self, sid: str, fail: tuple[str, int] | None) -> None:
        super().__init__(sid=sid)
        self.covered = 0  # records that the kernel has
        self.durable = 0
        self.may_write = asyncio.Event()
        self.may_commit = asyncio.Event()
        self.may_write.set()
        self.may_commit.set()
        self.calls = {"append": 0, "written": 0, "commit": 0}
        self.flows: list[int | None] = []
        self.failing = fail
        self.failed = False

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        if self.failed or self.failing == (name, self.calls[name]):
            self.failed = True
            raise TapeError("the disk is full")

    def append(
        self,
        channel: int,
        kind: Kind,
        payload: bytes,
        entry: Mapping[str, Any] | None = None,
        flow: int | None = None,
    ) -> int:
        self._called("append")
        self.flows.append(flow)
        return super().append(channel, kind, payload)

    async def written(self) -> None:
        self._called("written")
        count = len(self.records)
        await self.may_write.wait()
        await turns(3)
        self.covered = max(self.covered, count)

    async def commit(self) -> None:
        self._called("commit")
        count = len(self.records)
        await self.may_commit.wait()
        await turns(TURNS)
        self.covered = max(self.covered, count)
        self.durable = max(self.durable, count)

    def safe_command(self, text: str) -> bool:
        """Whether a COMMAND of this text and an allowing VERDICT on it are durable."""
        numbers = set()
        for number, (channel, kind, payload) in enumerate(self.records[: self.durable]):
            if kind == Kind.COMMAND and msgpack.unpackb(payload)["text"] == text:
                numbers.add(number)
            if kind == Kind.VERDICT and channel == GATE:
                verdict = msgpack.unpackb(payload)
                if verdict["command"] in numbers and verdict["verdict"] == "allow":
                    return True
        return False

    def safe_output(self, streams: bool = False) -> bytes:
        """What went to the user, or came to it in streams, as far as it is safe."""
        return b"".join(
            payload
            for (channel, kind, payload), flow in zip(self.records[: self.covered], self.flows, strict=False)
            if kind == Kind.WIRE and (channel in (OUT, ERR) and flow is not None if streams else channel == OUT)
        )

    def dump(self) -> bytes:
        """All that it holds."""
        return b"\n".join(payload for _, _, payload in self.records)


class WatchedRecorder(FakeRecorder):
    """Opens WatchedTapes; fail_next: (call, count) at which the next tape fails."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_next: tuple[str, int] | None = None

    def open(self, **more: Any) -> WatchedTape:
        if self.fail:
            raise TapeError("no room")
        tape = WatchedTape(f"01WATCHED{len(self.tapes):017d}", self.fail_next)
        self.tapes.append(tape)
        return tape


class GateEnd(MemoryStream):
    """The gate's end of a user's connection: what is written before the tape has it is told."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage
        self._shown = 0

    async def write(self, data: bytes) -> None:
        tape = self._stage.tape
        if not self._stage.adapter.own_words(data):
            safe = tape.safe_output() if tape is not None else b""
            if safe[self._shown : self._shown + len(data)] != data:
                self._stage.early.append(f"to the user: {data[:80]!r}")
            self._shown += len(data)
        await super().write(data)


@dataclass
class Stage:
    """One gate between one backend and any number of callers."""

    adapter: Adapter
    backend: Backend
    gate: Gate
    group: asyncio.TaskGroup
    early: list[str] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    ends: list[MemoryStream] = field(default_factory=list)
    watching: bool = True
    shown: int = 0

    @property
    def recorder(self) -> WatchedRecorder:
        recorder = self.gate.recorder
        assert isinstance(recorder, WatchedRecorder)
        return recorder

    @property
    def tape(self) -> WatchedTape | None:
        """The tape of the first session."""
        recorder = self.gate.recorder
        tapes = recorder.tapes if isinstance(recorder, WatchedRecorder) else []
        return tapes[0] if tapes else None  # type: ignore[return-value]  # a WatchedRecorder opens WatchedTapes

    @property
    def approvals(self) -> FakeApprovals:
        approvals = self.gate.approvals
        assert isinstance(approvals, FakeApprovals)
        return approvals

    async def connect(self, token: str, target: str = "shop") -> Caller | str:
        """Connect a user and log in."""
        end: MemoryStream = GateEnd(self) if self.watching and not self.tasks else MemoryStream()
        user = MemoryStream()
        end.other, user.other = user, end
        self.ends.append(user)
        self.tasks.append(self.group.create_task(self._serve(end)))
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.adapter.login(user, token, target)

    async def call(self) -> Caller:
        """Connect a user whose login holds."""
        caller = await self.connect(TOKEN)
        assert not isinstance(caller, str), caller
        if self.adapter.streams and self.watching and len(self.tasks) == 1:
            caller.on_heard = self._heard
        return caller

    def _heard(self, data: bytes) -> None:
        """The first caller has got this in a stream."""
        safe = self.tape.safe_output(streams=True) if self.tape is not None else b""
        if safe[self.shown : self.shown + len(data)] != data:
            self.early.append(f"to the user: {data[:80]!r}")
        self.shown += len(data)

    async def _serve(self, end: MemoryStream) -> None:
        try:
            await self.adapter.protocol.serve(end, self.gate)
        except Exception as error:  # as proxy/connections.py does: the connection ends, and only it
            self.logs.append({"event": "connection-failed", "error": type(error).__name__})
        finally:
            await end.close()

    def arrived(self, word: str) -> None:
        """A command has reached the target."""
        tape = self.tape
        if tape is not None and len(self.tasks) == 1 and not tape.safe_command(self.adapter.text(word)):
            self.early.append(f"to the target: {word}")

    async def ended(self) -> None:
        """Wait for all sessions to end."""
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*self.tasks)

    def everything(self) -> bytes:
        """All that was taped and logged."""
        tapes = b"".join(tape.dump() for tape in self.recorder.tapes)  # type: ignore[attr-defined]
        return tapes + repr(self.logs).encode() + repr([tape.closed for tape in self.recorder.tapes]).encode()


@contextlib.asynccontextmanager
async def stage(adapter: Adapter, rule: Rule = allow_all, **services: Any) -> AsyncIterator[Stage]:
    """Set the stage; on leaving, users hang up, every session ends, and nothing may have come early."""
    with _logs() as logs:
        async with adapter.backend() as backend, asyncio.TaskGroup() as group:
            target = replace(backend.target, name="shop")
            gate = fake_gate(
                rule,
                target,
                **{
                    "recorder": WatchedRecorder(),
                    "masker": Masking(b"k" * 32),
                    "settings": adapter.settings,
                    **services,
                },
            )
            adapter.prepare(gate)
            made = Stage(adapter, backend, gate, group, logs=logs)
            backend.on_command = made.arrived
            yield made
            for end in made.ends:
                await end.close()
            await made.ended()
    assert made.early == []


@contextlib.contextmanager
def _logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as found:
        yield found


def play(work: Coroutine[Any, Any, T]) -> T:
    """Run a test on the loop of the product."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_timed(work))


async def _timed(work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(2 * WAIT_SECONDS):
        return await work


async def turns(count: int = TURNS) -> None:
    """Let everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)
