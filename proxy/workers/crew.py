"""The workers as the supervisor sees them: started, given connections, asked, restarted, stopped.

A worker is started anew (no fork: threads run here, and a fork would copy their locks), with two sockets and the
descriptor that locks the state directory; what it needs to know comes as JSON on its standard input. A connection
goes to the worker that has the fewest; who has how many is counted here, so that limits hold over all of them. A
worker that dies is logged, and started again after a while that doubles each time.

Deliberately left out: taking connections back, and moving them.
Source: unix(7) (SCM_RIGHTS, SOCK_SEQPACKET).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog

from proxy.admin.wire import AdminError
from proxy.logging import describe
from proxy.workers.line import Line, Params

RESTART_SECONDS: Final = 0.25  # the first restart: a crash is over, a broken configuration is not worth a busy loop
RESTART_LIMIT_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0  # a worker that lived so long starts a new count
EXIT_SECONDS: Final = 10.0  # from the end of its line to the end of the process: sealing is over by then
ASK_SECONDS: Final = 5.0  # a cancel is forwarded to the target before its worker says yes

# The paths are those of this process, so that a worker is of the same installation and finds no module elsewhere
# (-P: not in the current directory, which is whoever's).
CODE: Final = (
    "import json, sys; begin = json.load(sys.stdin); sys.path[:] = begin['paths'];"
    " from proxy.workers.worker import main; main(begin)"
)

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Member:
    """One worker process."""

    number: int
    door: socket.socket
    generation: int  # of the configuration that it has
    started: float
    restarts: int
    process: asyncio.subprocess.Process
    line: Line = field(init=False)
    ready: bool = False
    approvals: str = ""  # how the rows of approvals name it
    jobs: str = ""  # and those of jobs
    connections: int = 0
    turn: int = 0
    places: dict[int, str] = field(default_factory=dict)

    def kill(self) -> None:
        """End the process at once; its tapes stay unsealed."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


@dataclass(frozen=True, slots=True)
class Care:
    """What the supervisor does for the crew. begin: what a worker needs to know; taken up: it has said "ready"."""

    begin: Callable[[int], Mapping[str, Any]]
    generation: Callable[[], int]
    taken_up: Callable[[Member], Awaitable[None]]
    gone: Callable[[Member], Awaitable[None]]
    descriptors: tuple[int, ...] = ()


class Crew:
    """Keeps count workers alive, and gives them connections."""

    def __init__(self, count: int, care: Care, command: Sequence[str] | None = None) -> None:
        self.count = count
        self.members: dict[int, Member] = {}
        self.available = asyncio.Event()  # at least one takes connections
        self.complete = asyncio.Event()  # all did, once
        self.failed = asyncio.Event()  # one ended before that
        self._care = care
        self._command = tuple(command or (sys.executable, "-P", "-c", CODE))
        self._stopping = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._places: Counter[str] = Counter()
        self._turn = 0
        self._restarts: Counter[int] = Counter()

    def ready(self) -> list[Member]:
        """Those that take connections."""
        return [member for member in self.members.values() if member.ready]

    @property
    def connections(self) -> int:
        """How many connections all of them have."""
        return sum(member.connections for member in self.members.values())

    # -- life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workers alive until stop() has ended them all."""
        async with asyncio.TaskGroup() as group:
            for number in range(1, self.count + 1):
                group.create_task(self._keep(number))

    async def stop(self, seconds: float, hurry: asyncio.Event) -> None:
        """Let all workers end their sessions; kill what is left after so long. hurry: as for the gateway."""
        self._stopping.set()
        for member in self.members.values():
            if member.ready:
                member.line.tell("stop")
            else:
                member.kill()
        async with asyncio.TaskGroup() as group:
            hurrying = group.create_task(self._pass_on(hurry))
            try:
                async with asyncio.timeout(seconds):
                    await self._empty.wait()
            except TimeoutError:
                for member in self.members.values():
                    log.error("worker-killed", worker=member.number, pid=member.process.pid, why="it did not stop")
                    member.kill()
                await self._empty.wait()
            hurrying.cancel()

    async def _pass_on(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        for member in self.members.values():
            member.line.tell("hurry")

    async def _keep(self, number: int) -> None:
        delay = RESTART_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._live(number)
            except Exception as error:  # fails closed: this worker is not there; the others go on
                log.error("worker-not-started", worker=number, **describe(error))
            if not self.complete.is_set():
                self.failed.set()
            if self._stopping.is_set():
                return
            delay = RESTART_SECONDS if time.monotonic() - began > STEADY_SECONDS else delay
            log.error("worker-restarts", worker=number, seconds=delay)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            delay = min(2 * delay, RESTART_LIMIT_SECONDS)
            self._restarts[number] += 1

    async def _live(self, number: int) -> None:
        """One life of a worker, from its start to its end."""
        with contextlib.ExitStack() as stack:
            line, theirs_line = _pair(stack, socket.SOCK_STREAM)
            door, theirs_door = _pair(stack, socket.SOCK_SEQPACKET)
            stack.callback(door.close)
            generation = self._care.generation()  # before the worker reads any file
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    f"gatecast-worker-{number}",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs_line.fileno(), theirs_door.fileno(), *self._care.descriptors),
                    env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
                )
            except BaseException:
                line.close()
                raise
            descriptors = {"line": theirs_line.fileno(), "door": theirs_door.fileno()}
            member = Member(number, door, generation, time.time(), self._restarts[number], process)
            member.line = Line(line, at_once=self._at_once(member), later=self._later(member))
            self.members[number] = member
            self._empty.clear()
            try:
                theirs_line.close()
                theirs_door.close()
                await member.line.open()
                await self._tell(process, {"number": number, **descriptors, **self._care.begin(number)})
                await member.line.run()
            except BaseException:
                member.kill()
                raise
            finally:
                await asyncio.shield(self._end(member))
                await member.line.close()

    async def _tell(self, process: asyncio.subprocess.Process, begin: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        paths = [path or str(os.getcwd()) for path in sys.path]  # noqa: PTH109  # as sys.path has it, a text
        # An error: it died already, and its line says so, too. RuntimeError is uvloop's for a pipe that it closed.
        with contextlib.suppress(OSError, RuntimeError):
            process.stdin.write(json.dumps({**begin, "paths": paths}).encode())
            process.stdin.close()
            await process.stdin.wait_closed()

    async def _end(self, member: Member) -> None:
        """The line is over: wait for the process, and forget what it had."""
        member.ready = False
        if not self.ready():
            self.available.clear()
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                code = await member.process.wait()
        except TimeoutError:
            member.kill()
            code = await member.process.wait()
        for name in member.places.values():
            self._places[name] -= 1
        lost = member.connections
        if code != 0 or not self._stopping.is_set():
            log.error("worker-died", worker=member.number, pid=member.process.pid, status=_status(code), sessions=lost)
        await self._care.gone(member)
        del self.members[member.number]
        if not self.members:
            self._empty.set()

    # -- connections ----------------------------------------------------------------------------------

    def hand(self, sock: socket.socket, listener: str, full: bool) -> bool:
        """Give a connection to the worker with the fewest; False if no worker can take it now."""
        message = json.dumps([listener, full]).encode()
        for member in sorted(self.ready(), key=lambda one: (one.connections, one.turn)):
            try:
                socket.send_fds(member.door, [message], [sock.fileno()], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:  # its queue is full (EAGAIN), or it is dying (EPIPE)
                continue
            member.connections += 1
            self._turn += 1
            member.turn = self._turn
            return True
        return False

    # -- what workers are asked, and ask --------------------------------------------------------------

    async def call_all(
        self, method: str, /, *, seconds: float, besides: Member | None = None, **params: Any
    ) -> dict[int, Any]:
        """Ask all that are ready at once; an answer is its result, or the AdminError."""
        asked = [member for member in self.ready() if member is not besides]

        async def ask(member: Member) -> Any:
            try:
                return await member.line.call(method, seconds=seconds, **params)
            except AdminError as error:
                return error

        answers = await asyncio.gather(*(ask(member) for member in asked))
        return {member.number: answer for member, answer in zip(asked, answers, strict=True)}

    def _at_once(self, member: Member) -> dict[str, Callable[[Params], Any]]:
        return {
            "ended": partial(self._ended, member),
            "peers.tell": partial(self._told, member),
            "places.take": partial(self._take, member),
            "places.release": partial(self._release, member),
        }

    def _later(self, member: Member) -> dict[str, Callable[[Params], Awaitable[Any]]]:
        return {"ready": partial(self._ready, member), "peers.ask": partial(self._asked, member)}

    async def _ready(self, member: Member, params: Params) -> None:
        member.approvals, member.jobs = params["approvals"], params["jobs"]
        await self._care.taken_up(member)
        if self._stopping.is_set():
            member.line.tell("stop")
            return
        member.ready = True
        self.available.set()
        if len(self.ready()) == self.count:
            self.complete.set()

    def _ended(self, member: Member, params: Params) -> None:
        member.connections -= 1

    async def _asked(self, member: Member, params: Params) -> bool:
        answers = await self.call_all(
            "peers.asked", seconds=ASK_SECONDS, besides=member, topic=params["topic"], payload=params["payload"]
        )
        return any(answer is True for answer in answers.values())

    def _told(self, member: Member, params: Params) -> None:
        for other in self.ready():
            if other is not member:
                other.line.tell("peers.asked", topic=params["topic"], payload=params["payload"])

    def _take(self, member: Member, params: Params) -> bool:
        name, limit = params["name"], params["limit"]
        if limit is not None and self._places[name] >= limit:
            return False
        self._places[name] += 1
        member.places[params["ticket"]] = name
        return True

    def _release(self, member: Member, params: Params) -> None:
        name = member.places.pop(params["ticket"], None)
        if name is not None:
            self._places[name] -= 1
            if not self._places[name]:
                del self._places[name]


def _pair(stack: contextlib.ExitStack, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """Make a pair; the stack closes their end, which the worker has by then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    stack.callback(theirs.close)
    ours.setblocking(False)
    return ours, theirs


def _status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
