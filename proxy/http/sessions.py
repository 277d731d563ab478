"""Sessions of plain requests: those of one caller at one target share one, and its tape, until they have been idle.

kubectl and bq open a connection for each command, and a program sends thousands of requests: a tape each would say
little. A shared session is a resident (proxy/core/residents.py): it outlives the connections that use it, an
administrator ends it by its id, and it ends by itself after session_idle seconds without a request, or when the gateway
stops. Each request is a flow of its tape. Whoever uses it holds a lease; when it is over, so are the requests that run
in it.

A caller is a proof (a token), not a name: two agents of one person are two sessions. So are two runs (GATECAST_RUN).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from proxy.core.errors import TapeError
from proxy.core.gate import Gate
from proxy.core.parties import Identity, Target
from proxy.core.session import Session

SESSION_IDLE_SECONDS: Final = 300.0  # where the target does not say; issue 5 leaves it open, ours
LOOK_SECONDS: Final = 0.05  # while requests run, the least time between two looks at whether it is idle
RUNS_LIMIT: Final = 32  # sessions of one caller at one target: each is an open tape. Traced programs name many. Ours
LEASES_SECONDS: Final = 5.0  # for requests to say their last word when a session ends under them
CLOSE_SECONDS: Final = 10.0
_PLACE: Final = "http/sessions"

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose requests share a session."""

    identity: Identity
    run: str = ""
    peer: str = ""
    client: str = ""
    listener: str = ""

    def key(self, target: Target) -> tuple[str, str, str, str]:
        """What the requests of one session have in common."""
        return (self.identity.proof, self.identity.subject, target.name, self.run)


@dataclass(slots=True)
class Shared:
    """One session, from the first request on. over: it ends, and reason says why."""

    caller: Caller
    target: Target
    gate: Gate
    ready: asyncio.Future[Session]
    over: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    failed: bool = False
    _leases: int = 0
    _free: float = 0.0  # since when nobody has a lease
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _flows: Iterator[int] = field(default_factory=itertools.count)
    _intent: str = ""
    _group: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    _works: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def quiet(self) -> bool:
        """Whether no request runs in it."""
        return not self._leases

    def flow(self) -> int:
        """The number of the next exchange on the tape."""
        return next(self._flows)

    def intent(self, session: Session, text: str) -> None:
        """Tape why the caller does this, where it says something new."""
        if text and text != self._intent:
            self._intent = text
            session.intent(text)

    def end(self, reason: str, failed: bool = False) -> None:
        """No new request gets in, and those that run are told."""
        if not self.over.is_set():
            self.reason, self.failed = reason, failed
            self.over.set()
            self._changed.set()

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the session open while a request runs."""
        self._leases += 1
        try:
            yield
        finally:
            self._leases -= 1
            if not self._leases:
                self._free = asyncio.get_running_loop().time()
                self._changed.set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run work that may outlive its request (a held job): it keeps the session from being idle, and ends with it.

        It is not waited for when the gateway stops: what must not be cut off takes a lease. Errors are its own to
        handle. Raises TapeError where the session has ended.
        """
        if self.over.is_set():
            work.close()
            raise TapeError(f"the session has ended: {self.reason}")
        task = self._group.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        return task

    async def work(self) -> None:
        """The resident: opens the tape, waits, closes it."""
        try:
            session = Session(self.gate, self.caller.identity, self.target, self._open())
        except TapeError as error:
            self.end(f"no tape: {error}", failed=True)
            self.ready.set_exception(error)
            self.ready.exception()  # whoever waits for it hears of it; nobody may
            return
        self.ready.set_result(session)
        log = _log.bind(session=session.id, identity=self.caller.identity.display, target=self.target.name)
        log.info("session opened")
        try:
            async with self._group:
                try:
                    await self._until_idle()
                except asyncio.CancelledError as cancelled:
                    # Before the group ends its works: what is held is told why.
                    reason = f"terminated: {cancelled.args[0]}" if cancelled.args else "terminated by the administrator"
                    self.end(reason)
                    raise
                for each in tuple(self._works):
                    each.cancel()
        finally:
            await asyncio.shield(self._close(session, log))

    def _open(self) -> Any:
        identity = self.caller.identity
        return self.gate.recorder.open(
            protocol=self.target.protocol,
            identity=identity_map(identity),
            target=self.target.name,
            mode=self.target.recording,
            run=self.caller.run,
            more={"http": True, "peer": self.caller.peer, "client": self.caller.client},
            recipients=self.target.encrypt_to,
        )

    async def _until_idle(self) -> None:
        """Wait for the end. A request only notes when it ends: to be woken by each would cost more than its tape."""
        idle = self.target.settings.get("session_idle")
        seconds = float(idle) if isinstance(idle, int | float) else SESSION_IDLE_SECONDS
        stopping, clock = self.gate.residents.stopping, asyncio.get_running_loop().time
        self._free = clock()
        async with asyncio.TaskGroup() as group:
            waits = {group.create_task(stopping.wait()), group.create_task(self.over.wait())}
            left = seconds
            while not self.over.is_set() and not stopping.is_set():
                await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                left = max(seconds, LOOK_SECONDS) if self._leases or self._works else self._free + seconds - clock()
                if left <= 0:
                    self.end("idle")
            for each in waits:
                each.cancel()
        while self._leases and not self.over.is_set():
            self._changed.clear()
            await self._changed.wait()
        self.end("the gateway stops")

    async def _close(self, session: Session, log: Any) -> None:
        """Let the requests that run say their last word, then seal the tape."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEASES_SECONDS):
                while self._leases:
                    self._changed.clear()
                    await self._changed.wait()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await session.close("failed" if self.failed else "closed", self.reason)
        except (TapeError, TimeoutError) as error:
            log.error("the tape could not be closed", error=str(error))
        log.info("session closed", reason=self.reason)


class Sessions:
    """The shared sessions of a process, by their callers and targets."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, str, str], Shared] = {}

    @contextlib.asynccontextmanager
    async def lease(self, caller: Caller, target: Target, gate: Gate) -> AsyncIterator[tuple[Shared, Session]]:
        """Enter the caller's session at a target; it is opened if there is none. Raises TapeError."""
        key = caller.key(target)
        shared = self._open.get(key)
        # A target that was configured anew (recording, recipients) gets a tape of its own.
        if shared is None or shared.over.is_set() or shared.target != target:
            if shared is not None:
                shared.end("the target was configured anew")
            self._make_room(key)
            ready: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
            shared = Shared(caller, target, gate, ready)
            task = gate.residents.start(target.protocol, caller.listener, caller.identity, shared.work)
            self._open[key] = shared  # not before it has begun: who finds one waits for it to be ready
            task.add_done_callback(partial(self._forget, key, shared))
        with shared.lease():
            yield shared, await asyncio.shield(shared.ready)

    def _make_room(self, key: tuple[str, str, str, str]) -> None:
        """End the oldest of a caller's quiet sessions, where it has opened too many: a run is the caller's own word."""
        mine = [each for other, each in self._open.items() if other[:3] == key[:3] and not each.over.is_set()]
        if len(mine) >= RUNS_LIMIT:
            oldest = next((each for each in mine if each.quiet), None)
            if oldest is not None:
                oldest.end(f"idle, and its caller has {RUNS_LIMIT} younger ones")

    def _forget(self, key: tuple[str, str, str, str], shared: Shared, _task: asyncio.Task[None]) -> None:
        if not shared.ready.done():
            shared.ready.set_exception(TapeError("the session ended before it began"))
            shared.ready.exception()
        if self._open.get(key) is shared:
            del self._open[key]


def sessions_of(shared: MutableMapping[str, Any]) -> Sessions:
    """The sessions that Gate.shared holds."""
    found: Sessions = shared.setdefault(_PLACE, Sessions())
    return found


def identity_map(identity: Identity) -> Mapping[str, Any]:
    """The identity as a tape's header has it."""
    return {
        "subject": identity.subject,
        "agents": list(identity.agents),
        "groups": sorted(identity.groups),
        "issuer": identity.issuer,
        "proof": identity.proof,
    }
