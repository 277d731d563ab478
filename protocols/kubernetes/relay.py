"""An exec or attach that runs: events of two legs, each to its end of the waist.

One task reads from each side. What the user types passes as it is, or, on a terminal, through the reading of lines
(proxy/terminal): a line that is asked for is decided while its user waits, and what comes behind it waits in order,
bounded; Ctrl-C takes it back. Output passes the masks and the tape. The end is the target's Status, which goes to the
user last, after all that a mask held back.

What kubectl cp sends is looked into (copies.py): the tape has the names, sizes and digests of its files in the place of
their bytes, unless the target's record_contents says otherwise.

Specification: kubernetes note 3, 4, 6 and 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, assert_never

from protocols.kubernetes import status
from protocols.kubernetes.copies import Copy
from protocols.kubernetes.copying import Copying
from protocols.kubernetes.handshakes import FLOW, first
from protocols.kubernetes.streams import (
    STDERR,
    STDIN,
    STDOUT,
    Data,
    End,
    Event,
    Over,
    Reply,
    Size,
    Status,
    TargetLeg,
    UserLeg,
)
from proxy.core.errors import Refused, TargetPeerError, UserPeerError
from proxy.core.events import Chunk, Frame, Resize
from proxy.core.gate import Pending
from proxy.core.session import Input, Permit, Session
from proxy.core.stream import Stream
from proxy.core.writers import TargetWriter, UserWriter
from proxy.terminal.content import Ask, Broken, Content, Done, Dropped, Step, ToTarget, ToUser, Wake
from proxy.terminal.wording import gate_text

# More than a stream ever keeps (a delivery of the event loop above its mark): what is cut off would be copied, and come
# as a piece of a few bytes that costs as much as a large one.
READ_BYTES: Final = 1024 * 1024
WAITING_LIMIT: Final = 64 * 1024  # of a user's keys behind a line that is being decided; as proxy/terminal's queue
FLUSH_SECONDS: Final = 0.05  # how long a mask may keep a terminal's bytes, and a program's: protocols/ssh/relay.py
FLUSH_OUTPUT_SECONDS: Final = 2.0
PING_SECONDS: Final = 20.0  # note 8: every 15 to 30 s keeps balancers from ending a silent exec
STATUS_SECONDS: Final = 10.0  # servers allow as much for the Status after the last output; note 3
GOODBYE_SECONDS: Final = 5.0  # for a peer's own close; note 3
APART_BYTES: Final = 128 * 1024  # note 3: frames of 32 KiB; in bulk the next ones follow at once anyway
INTERRUPT: Final = b"\x03"
PLACE_FACTS: Final = (
    "api_group", "api_version", "resource", "subresource", "namespace", "name", "cluster_scoped", "container", "tty",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended. document: the Status for the user, b"" where its connection is gone; error: whose fault, if any."""

    document: bytes
    reason: str = ""
    failed: bool = False


class _Done(Exception):
    """The relay is over."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


@dataclass(slots=True)
class Ends:
    """The two connections of a stream, and what is already read of each."""

    user: Stream
    user_leg: UserLeg
    target: Stream
    target_leg: TargetLeg
    from_user: bytes = b""
    from_target: bytes = b""
    stashed: tuple[Event, ...] = ()  # of the user, from before the target was there
    said: tuple[Event, ...] = ()  # of the target, in the read with which its streams were open
    outputs: frozenset[int] = frozenset()  # the target's streams that say when they end (SPDY)


class Relay:
    """One running stream session."""

    def __init__(
        self,
        ends: Ends,
        session: Session,
        permit: Permit,
        content: Content | None,
        copy: Copy | None,
        idle_seconds: float,
        log: Any,
    ) -> None:
        self._ends = ends
        self._session = session
        self._permit = permit
        self._answer = permit  # under which output comes back
        self._content = content
        self._log = log
        self._idle_seconds = idle_seconds
        self._to_user = UserWriter(ends.user, session, apart_bytes=APART_BYTES)
        self._to_target = TargetWriter(ends.target, session)
        same = ends.user_leg.codec == ends.target_leg.codec
        self._same = same and ends.user_leg.codec != ""
        self._copying = Copying(session, permit, copy, self._to_user) if copy is not None else None
        self._asked: Ask | None = None
        self._pending: Pending | None = None
        self._withdrawn = False
        self._waiting = bytearray()
        self._decided = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._ended_input = False
        self._active = time.monotonic()
        self._alarms: dict[str, float] = {}
        self._alarm_set = asyncio.Event()
        self._status: bytes | None = None
        self._awaited = set(ends.outputs)  # outputs that end by themselves, perhaps behind the Status
        self.sent = 0
        self.bytes = 0

    async def run(self) -> Ending:
        """Relay until it is over. Raises TapeError, PeerError."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._down())
                group.create_task(self._up())
                group.create_task(self._keep_alive())
                group.create_task(self._keep_alarms())
        except BaseExceptionGroup as errors:
            error = first(errors)
            if isinstance(error, _Done):
                return error.ending
            raise error from error.__cause__
        raise AssertionError("a relay ends by an exception")

    # -- from the user --------------------------------------------------------------------------------

    async def _up(self) -> None:
        ends = self._ends
        for event in ends.stashed:
            self._from_user(event)
        data, ends.from_user = ends.from_user, b""
        while True:
            if data:
                for event in ends.user_leg.receive(data):
                    self._from_user(event)
            await self._to_target.flush()
            if self._to_user.waiting:
                await self._to_user.flush()
            while len(self._waiting) > WAITING_LIMIT:
                self._decided.clear()
                await self._decided.wait()
            data = await ends.user.read(READ_BYTES)
            if not data:
                self._user_left("")
            self._active = time.monotonic()

    def _from_user(self, event: Event) -> None:
        match event:
            case Data(stream=stream, data=data):
                if stream != STDIN:
                    raise UserPeerError("the user sent on a stream of the target")
                self._input(data, event.wire)
            case End():
                self._ended_input = True
                if self._asked is None:
                    self._end_input()
            case Size(columns=columns, rows=rows):
                self._to_user.send(None, Resize(columns, rows, FLOW))
                if self._content is not None:
                    self._content.resized(columns, rows)
                self._to_target.send(Frame(self._ends.target_leg.resize(columns, rows), taped=False))
            case Reply(wire=wire):
                self._to_user.send(None, Frame(wire, by_gate=True, taped=False))
            case Over(reason=reason):
                self._user_left(reason)
            case Status():
                raise UserPeerError("the user sent a Status")
            case _:
                assert_never(event)

    def _user_left(self, reason: str) -> None:
        if self._pending is not None:
            self._pending.withdraw()
        raise _Done(Ending(b"", reason or "the user went away"))

    def _input(self, data: bytes, wire: bytes) -> None:
        self.sent += len(data)
        if self._ended_input and data:
            raise UserPeerError("input behind its end")
        if self._content is None:
            framed = wire if wire and self._same else self._ends.target_leg.data(STDIN, data)
            taped = self._copying is None or self._copying.watch(data, "in")
            self._to_target.send(Input(self._permit, FLOW, data if taped else b"", framed))
            return
        if self._asked is None:
            self._carry(self._content.from_user(data, time.monotonic()))
            return
        if INTERRUPT in data and self._pending is not None and not self._withdrawn:
            # As a terminal does on an interrupt: what was typed ahead of it is gone.
            end = data.rindex(INTERRUPT) + 1
            self._session.ignored(bytes(self._waiting) + data[:end], FLOW)
            self._waiting.clear()
            data = data[end:]
            self._withdrawn = True
            self._pending.withdraw()
        self._waiting += data

    def _end_input(self) -> None:
        if self._content is not None:
            self._carry(self._content.user_eof(time.monotonic()))
            if self._asked is not None:
                return
        self._finish_files("in")
        end = self._ends.target_leg.end(STDIN)
        if end:
            self._to_target.send(Frame(end, taped=False))

    # -- lines of a terminal --------------------------------------------------------------------------

    def _carry(self, steps: Iterable[Step]) -> None:
        leg = self._ends.target_leg
        for step in steps:
            match step:
                case ToTarget(data=data, by_gate=by_gate, taped=taped):
                    if data and (by_gate or not taped):
                        self._to_target.send(Frame(leg.data(STDIN, data), by_gate, taped))
                    elif data:
                        self._to_target.send(Input(self._permit, FLOW, data, leg.data(STDIN, data)))
                case Dropped(data=data):
                    if data:
                        self._session.ignored(data, FLOW)
                case ToUser(data=data, stream=stream, taped=taped, masked=masked):
                    if data:
                        self._output(stream, data, b"", taped=taped, masked=masked)
                case Ask():
                    assert self._asked is None and self._group is not None, "one question at a time"
                    self._asked = step
                    self._group.create_task(self._decide(step))
                case Done(permit=permit, result=result):
                    self._session.result(permit, result)
                case Wake(seconds=seconds):
                    self._set_alarm("tick", seconds)
                case Broken(text=text):
                    raise _Done(Ending(status.failure_document(gate_text(text)), text, failed=True))
                case _:
                    assert_never(step)

    async def _decide(self, ask: Ask) -> None:
        content = self._content
        assert content is not None

        async def on_hold(pending: Pending) -> None:
            self._pending = pending
            self._log.info("line held", approval=pending.id, rule=pending.hold.rule)
            self._carry(content.waiting(ask, gate_text(held_text(pending))))
            await self._to_user.flush()

        wire = self._ends.target_leg.data(STDIN, ask.data) if ask.data else b""
        # A line is typed in a place, which rules speak of: that of the exec.
        outer = self._permit.command
        facts = {**{key: outer.facts[key] for key in PLACE_FACTS if key in outer.facts}, **ask.command.facts}
        command = replace(ask.command, wire=wire, flow=FLOW, data=ask.data, facts=facts)
        try:
            permit = await self._session.decide(command, on_hold)
        except Refused as refused:
            self._settled()
            self._carry(content.refused(ask, refused, time.monotonic()))
        else:
            self._settled()
            self._to_target.send(permit)
            self._answer = permit
            self._carry(content.allowed(ask, permit, time.monotonic()))
        self._resume()
        self._decided.set()
        await self._to_target.flush()
        await self._to_user.flush()

    def _settled(self) -> None:
        self._asked = self._pending = None
        self._withdrawn = False

    def _resume(self) -> None:
        """Take up what the user typed meanwhile."""
        content = self._content
        assert content is not None
        if self._waiting and self._asked is None:
            data = bytes(self._waiting)
            self._waiting.clear()
            self._carry(content.from_user(data, time.monotonic()))
        if self._ended_input and self._asked is None and not self._waiting:
            self._end_input()

    # -- from the target ------------------------------------------------------------------------------

    async def _down(self) -> None:
        ends = self._ends
        for event in ends.said:
            self._from_target(event)
        data, ends.from_target = ends.from_target, b""
        while True:
            if data:
                for event in ends.target_leg.receive(data):
                    self._from_target(event)
            await self._to_user.flush()
            if self._to_target.waiting:
                await self._to_target.flush()
            if self._status is not None and not self._awaited:
                self._end(self._status)
            data = await self._read_target()
            if not data:
                if self._status is not None:
                    self._end(self._status)
                raise TargetPeerError("the target closed the connection before it said how the command ended")
            self._active = time.monotonic()

    async def _read_target(self) -> bytes:
        """Read on. Behind the Status only what streams of their own (SPDY) still bring, and not for ever."""
        if self._status is None:
            return await self._ends.target.read(READ_BYTES)
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                return await self._ends.target.read(READ_BYTES)
        except TimeoutError:
            return b""

    def _from_target(self, event: Event) -> None:
        match event:
            case Data(stream=stream, data=data, wire=wire):
                if stream == STDIN or (self._status is not None and not self._awaited):
                    raise TargetPeerError("output where none can be")
                name: Literal["out", "err"] = "out" if stream == STDOUT else "err"
                if self._content is not None:
                    self._carry(self._content.from_target(name, data, time.monotonic()))
                else:
                    taped = stream != STDOUT or self._copying is None or self._copying.watch(data, "out")
                    self._output(name, data, wire if self._same else b"", taped=taped)
            case End(stream=stream):
                self._awaited.discard(stream)
                if stream == STDOUT:
                    self._finish_files("out")
            case Status(document=document):
                self._status = document
            case Reply(wire=wire):
                self._to_target.send(Frame(wire, by_gate=True, taped=False))
            case Over(reason=reason):
                self._awaited.clear()
                if self._status is None:
                    raise TargetPeerError(f"the target ended the stream{': ' if reason else ''}{reason}")
            case Size():
                raise TargetPeerError("the target sent a size")
            case _:
                assert_never(event)

    def _output(
        self,
        stream: Literal["out", "err"],
        data: bytes,
        wire: bytes,
        *,
        taped: bool = True,
        masked: bool = True,
        flush: bool = False,
    ) -> None:
        leg, channel = self._ends.user_leg, STDOUT if stream == "out" else STDERR
        self.bytes += len(data)

        def rewrap(masked: bytes) -> bytes:
            return leg.data(channel, masked)

        event = Chunk(FLOW, stream, data, wire or rewrap(data) if data else b"", rewrap, flush, taped, masked)
        self._to_user.send(self._answer, event)
        if masked and self._answer.masks and not flush and self._session.held_back(FLOW):
            self._set_alarm("flush", FLUSH_SECONDS if self._content is not None else FLUSH_OUTPUT_SECONDS)

    def _flush_masks(self) -> None:
        if self._answer.masks:
            self._output("out", b"", b"", flush=True)
            self._output("err", b"", b"", flush=True)

    def _end(self, document: bytes) -> None:
        if self._content is not None:
            now = time.monotonic()
            self._carry([*self._content.target_eof(now), *self._content.ended(now)])
        self._finish_files("out")
        self._flush_masks()
        raise _Done(Ending(document))

    def _finish_files(self, *directions: Literal["in", "out"]) -> None:
        if self._copying is not None:
            for direction in directions or ("in", "out"):
                self._copying.finish(direction)

    # -- beside the streams ---------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            idle = time.monotonic() - self._active
            if self._idle_seconds and idle >= self._idle_seconds and not self._session.held:
                text = f"idle for {self._idle_seconds:.0f} seconds"
                raise _Done(Ending(status.failure_document(gate_text(text)), text))
            self._to_user.send(None, Frame(self._ends.user_leg.ping(), by_gate=True, taped=False))
            self._to_target.send(Frame(self._ends.target_leg.ping(), by_gate=True, taped=False))
            await self._to_user.flush()
            await self._to_target.flush()

    def _set_alarm(self, kind: str, seconds: float) -> None:
        self._alarms[kind] = time.monotonic() + seconds
        self._alarm_set.set()

    async def _keep_alarms(self) -> None:
        ring: dict[str, Callable[[], None]] = {"tick": self._tick, "flush": self._flush_masks}
        while True:
            now = time.monotonic()
            due = [kind for kind, when in self._alarms.items() if when <= now]
            for kind in due:
                del self._alarms[kind]
                ring[kind]()
            if due:
                await self._to_target.flush()
                await self._to_user.flush()
                continue
            self._alarm_set.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._alarms.values()) - now if self._alarms else None):
                    await self._alarm_set.wait()

    def _tick(self) -> None:
        if self._content is not None:
            self._carry(self._content.tick(time.monotonic()))

    def finish(self) -> None:
        """Tape what was open when it ended otherwise. Raises TapeError."""
        if self._waiting:
            self._session.ignored(bytes(self._waiting), FLOW)
            self._waiting.clear()
        if self._content is not None:
            for step in self._content.ended(time.monotonic()):
                if isinstance(step, Done):
                    self._session.result(step.permit, step.result)
                elif isinstance(step, Dropped) and step.data:
                    self._session.ignored(step.data, FLOW)
        self._finish_files()


def held_text(pending: Pending) -> str:
    """What a user is told while a command waits for a human."""
    text = f'waiting for approval {pending.id}, asked for by rule "{pending.hold.rule}"'
    if pending.hold.reason:
        text += f" ({pending.hold.reason})"
    return f"{text}: {pending.url}" if pending.url else text
