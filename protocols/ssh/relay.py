"""The loop of one SSH connection: messages in, actions of the Conversation out, each to its end of the waist.

Two tasks read, one each leg; a command is decided in a task of its own, for a channel that waits keeps no other from
going on. What one direction causes in the other (a window to adjust, an answer of the gate) is written by a third
task, so that a leg that does not take what we write does not keep us from reading it; but one that asks for thousands
of answers and takes none is not read either. One task keeps the alarms.

Whatever fails ends all of them; the first failure is the reason. Deliberately left out: any knowledge of messages.
Source: ssh note 1; RFC 4254 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, assert_never

from protocols.ssh.actions import (
    Action,
    Alarm,
    Decide,
    Disconnect,
    Down,
    Forget,
    Ignored,
    Intent,
    Mark,
    Record,
    Up,
    Withdraw,
)
from protocols.ssh.commands import Conversation
from proxy.core.errors import Refused, TargetPeerError, UserPeerError
from proxy.core.events import Chunk, Command, Resize
from proxy.core.gate import Pending
from proxy.core.session import Session
from proxy.core.writers import TargetWriter, UserWriter

GOODBYE_SECONDS: Final = 15.0  # for what a user left behind on its way to the target; as in protocols/postgres/relay.py
# How long a mask may keep bytes that no line break follows. Of a terminal, and of a protocol (a subsystem, an upload),
# whose other end waits for them: less than a person notices. Of a program's output: longer than one that is at work
# rests in the middle of a value, and no longer than who waits for a prompt puts up with.
FLUSH_SECONDS: Final = 0.05
FLUSH_OUTPUT_SECONDS: Final = 2.0
DISCONNECT_BY_APPLICATION: Final = 11  # RFC 4253 11.1


class Leg(Protocol):
    """One side of the relay after its login; see transport.py."""

    async def read(self) -> list[bytes]:
        """Return the payloads of the next messages, [] at the end. Raises PeerError."""

    async def write(self, data: bytes) -> None:
        """Write framed messages; returns when few enough wait. Raises PeerError."""

    async def gone(self) -> None:
        """Return once the other side has ended or lost the connection, read or not."""

    def disconnect(self, code: int, reason: str) -> None:
        """Say DISCONNECT, and end."""

    async def close(self) -> None:
        """Write what is queued, close, and wait a bounded time. Never raises."""


class Over(Exception):
    """The connection is over; reason '' for a normal end."""

    def __init__(self, reason: str, code: int = DISCONNECT_BY_APPLICATION) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Relay:
    """One running connection."""

    def __init__(
        self,
        user: Leg,
        target: Leg,
        session: Session,
        conversation: Conversation,
        idle_seconds: float,
        log: Any,
        said: Sequence[bytes] = (),
    ) -> None:
        """said: what the user has said already."""
        self._user = user
        self._said = said
        self._target = target
        self._session = session
        self._conversation = conversation
        self._idle_seconds = idle_seconds
        self._log = log
        self._to_target = TargetWriter(target, session)
        self._to_user = UserWriter(user, session)
        self._kick_target = asyncio.Event()  # something waits for a writer whose own task may be asleep
        self._kick_user = asyncio.Event()
        self._pending: dict[int, Pending] = {}
        self._withdrawn: set[int] = set()
        self._undecided: set[int] = set()
        self._alarms: dict[tuple[str, int], float] = {}
        self._alarm_set = asyncio.Event()
        self._terminals: set[int] = set()
        self._active = time.monotonic()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> Over:
        """Relay until either side ends; returns why. Raises TapeError, PeerError."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._up())
                group.create_task(self._down())
                group.create_task(self._watch())
                group.create_task(_flush(self._to_target, self._kick_target))
                group.create_task(_flush(self._to_user, self._kick_user))
                group.create_task(self._keep_alarms())
                if self._idle_seconds:
                    group.create_task(self._end_idle())
        except BaseExceptionGroup as errors:
            error = _first(errors)  # one failure makes the others; the first is the cause
            if isinstance(error, Over):
                return error
            raise error from errors
        raise AssertionError("a relay ends by an exception")

    def finish(self) -> None:
        """Tape what was open when the connection ended. Raises TapeError."""
        now = time.monotonic()
        for action in self._conversation.gone(now):
            if isinstance(action, Record):  # what else there is to do has nobody left to do it for
                self._session.result(action.permit, action.result)
            elif isinstance(action, Ignored):
                self._session.ignored(action.data, action.flow)
            elif isinstance(action, Mark):
                self._session.mark(action.label, action.text)

    # -- the tasks ------------------------------------------------------------------------------------

    async def _up(self) -> None:
        while True:
            payloads = self._said or await self._user.read()
            self._said = ()
            if not payloads:
                raise Over("")
            now = self._active = time.monotonic()
            for payload in payloads:
                self._do(self._conversation.from_user(payload, now))
            if self._to_user.crowded:
                await self._to_user.flush()
            elif self._to_user.waiting:
                self._kick_user.set()
            await self._to_target.flush()

    async def _down(self) -> None:
        while True:
            payloads = await self._target.read()
            if not payloads:
                raise Over("the target closed the connection")
            now = self._active = time.monotonic()
            for payload in payloads:
                self._do(self._conversation.from_target(payload, now))
            if self._to_target.crowded:
                await self._to_target.flush()
            elif self._to_target.waiting:
                self._kick_target.set()
            await self._to_user.flush()

    async def _watch(self) -> None:
        """A user who leaves takes back what is held, and gets no answer to wait for."""
        await self._user.gone()
        for pending in tuple(self._pending.values()):
            pending.withdraw()
        await asyncio.sleep(GOODBYE_SECONDS)
        raise Over("the user went away")

    async def _end_idle(self) -> None:
        while True:
            left = self._active + self._idle_seconds - time.monotonic()
            if left <= 0 and not self._session.held:
                raise Over(f"idle for {self._idle_seconds:.0f} seconds")
            await asyncio.sleep(max(left, 1.0))

    # -- decisions ------------------------------------------------------------------------------------

    async def _decide(self, key: int, command: Command) -> None:
        async def on_hold(pending: Pending) -> None:
            self._pending[key] = pending
            if key in self._withdrawn:
                pending.withdraw()
                return
            self._log.info("command held", approval=pending.id, rule=pending.hold.rule)
            self._do(self._conversation.held(key, held_text(pending), time.monotonic()))
            await self._to_user.flush()

        try:
            permit = await self._session.decide(command, on_hold)
        except Refused as refused:
            actions = self._conversation.refused(key, refused, time.monotonic())
        else:
            actions = self._conversation.allowed(key, permit, time.monotonic())
        finally:
            self._pending.pop(key, None)
            self._undecided.discard(key)
            self._withdrawn.discard(key)
        self._do(actions)
        self._kick_user.set()
        await self._to_target.flush()

    # -- actions --------------------------------------------------------------------------------------

    def _do(self, actions: Iterable[Action]) -> None:
        """Carry actions out, and what becomes clear by that: how much of a piece a mask let go."""
        while actions:
            self._carry_out(actions)
            actions = self._conversation.settle()

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Down():
                    self._reveal(action)
                case Up():
                    self._to_target.send(action.cargo)
                case Ignored():
                    self._session.ignored(action.data, action.flow)
                case Decide():
                    assert self._group is not None
                    self._undecided.add(action.key)
                    self._group.create_task(self._decide(action.key, action.command))
                case Withdraw():
                    self._withdraw(action.key)
                case Record():
                    self._session.result(action.permit, action.result)
                case Alarm():
                    self._set_alarm("tick", action.flow, action.seconds)
                case Forget():
                    self._forget(action.flow)
                case Intent():
                    self._session.intent(action.text)
                case Mark():
                    self._session.mark(action.label, action.text)
                case Disconnect():
                    self._disconnect(action)
                case _:
                    assert_never(action)

    def _reveal(self, action: Down) -> None:
        event = action.event
        revealed = self._to_user.send(action.permit, event)
        if isinstance(event, Chunk):
            if event.data and not revealed:
                self._conversation.withheld(event)
            masked = event.masked and (action.permit is None or action.permit.masks)
            if masked and self._session.held_back(event.flow):
                self._set_alarm("flush", event.flow, self._patience(action))
        elif isinstance(event, Resize) and event.flow is not None:
            self._terminals.add(event.flow)

    def _patience(self, action: Down) -> float:
        """How long a mask may keep what it keeps of a stream."""
        command = action.permit.command if action.permit is not None else None
        if command is None or command.verb == "subsystem" or command.kind == "transfer":
            return FLUSH_SECONDS
        assert isinstance(action.event, Chunk)
        return FLUSH_SECONDS if action.event.flow in self._terminals else FLUSH_OUTPUT_SECONDS

    def _withdraw(self, key: int) -> None:
        if key in self._undecided:
            self._withdrawn.add(key)
        pending = self._pending.get(key)
        if pending is not None:
            pending.withdraw()

    def _forget(self, flow: int) -> None:
        self._session.forget_stream(flow)
        self._terminals.discard(flow)
        for kind in ("tick", "flush"):
            self._alarms.pop((kind, flow), None)

    def _disconnect(self, action: Disconnect) -> None:
        """End with the fault of one side. The other is told that the connection ends."""
        if action.blame == "target":
            raise TargetPeerError(action.reason, str(action.code))
        raise UserPeerError(action.reason, str(action.code))

    # -- beside the loops -----------------------------------------------------------------------------

    def _set_alarm(self, kind: str, flow: int, seconds: float) -> None:
        self._alarms[(kind, flow)] = time.monotonic() + seconds
        self._alarm_set.set()

    async def _keep_alarms(self) -> None:
        while True:
            now = time.monotonic()
            due = [place for place, when in self._alarms.items() if when <= now]
            for kind, flow in due:
                del self._alarms[(kind, flow)]
                self._do(self._conversation.tick(flow, now) if kind == "tick" else self._conversation.flush(flow))
            if due:
                self._kick_target.set()
                self._kick_user.set()
                continue
            self._alarm_set.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._alarms.values()) - now if self._alarms else None):
                    await self._alarm_set.wait()


async def _flush(writer: TargetWriter | UserWriter, kick: asyncio.Event) -> None:
    """Write what was caused by another task than the one that reads for this end."""
    while True:
        await kick.wait()
        kick.clear()
        await writer.flush()


def held_text(pending: Pending) -> str:
    text = f'held by rule "{pending.hold.rule}": approval {pending.id} is pending'
    if pending.hold.reason:
        text += f" ({pending.hold.reason})"
    return f"{text}: {pending.url}" if pending.url else text


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
