"""One worker: a gateway whose connections come from its supervisor, and whose administrator is the supervisor.

It has its own rules, identities, recorder (with a boot id of its own in every tape) and database connection, all of
the one state directory. It reads files when its supervisor tells it to, not by itself, so that all workers change
together. When its line ends, the supervisor is gone: it ends its sessions, seals their tapes and exits.

Signals: SIGTERM drains it (the supervisor then starts another); SIGINT and SIGHUP, which a terminal sends to every
process, are the supervisor's to hear.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from proxy import logging
from proxy.admin.wire import AdminError, Caller
from proxy.app import Gateway, prepare_process, settle_memory
from proxy.core.errors import GatecastError
from proxy.core.peers import Answer
from proxy.sections import Config
from proxy.services import Services, open_services
from proxy.watch import POLL_SECONDS
from proxy.workers.crew import ASK_SECONDS
from proxy.workers.line import Line, Params

READY_SECONDS: Final = 60.0  # the supervisor may have us read the configuration once more: seconds for 1,000 rules
PLACE_SECONDS: Final = 5.0
DOOR_LIMIT: Final = 32  # connections taken in at once, before the loop turns to those it has
MESSAGE_LIMIT_BYTES: Final = 1024  # the name of a listener (63 characters) and a boolean

log = structlog.get_logger(__name__)


class LinePeers:
    """The other workers (proxy.core.peers), through the supervisor."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self._answers: dict[str, Answer] = {}
        self._tickets = itertools.count(1)

    async def ask(self, topic: str, payload: bytes) -> bool:
        """See Peers."""
        assert self.line is not None
        try:
            asked = self.line.call("peers.ask", seconds=2 * ASK_SECONDS, topic=topic, payload=payload.hex())
            return (await asked) is True
        except AdminError:  # the line is over or the supervisor is stuck: nobody says yes
            return False

    def tell(self, topic: str, payload: bytes) -> None:
        """See Peers."""
        assert self.line is not None
        self.line.tell("peers.tell", topic=topic, payload=payload.hex())

    def answer(self, topic: str, handler: Answer) -> None:
        """See Peers."""
        self._answers[topic] = handler

    async def asked(self, params: Params) -> bool:
        """Another worker asks."""
        handler = self._answers.get(params["topic"])
        return handler is not None and await handler(bytes.fromhex(params["payload"]))

    @contextlib.asynccontextmanager
    async def place(self, name: str, limit: int | None) -> AsyncIterator[bool]:
        """See Peers. Where the supervisor does not answer, no place is free; without a limit nobody waits for it."""
        assert self.line is not None
        ticket = next(self._tickets)
        wanted: dict[str, Any] = {"name": name, "limit": limit, "ticket": ticket}
        try:
            if limit is None:
                self.line.tell("places.take", **wanted)
                free = True
            else:
                try:
                    free = (await self.line.call("places.take", seconds=PLACE_SECONDS, **wanted)) is True
                except AdminError as error:
                    log.error("no-place", name=name, why=str(error))
                    free = False
            yield free
        finally:
            self.line.tell("places.release", ticket=ticket)  # also what was taken while we gave up waiting


class Worker(Gateway):
    """See the module."""

    _warns = False

    def __init__(self, services: Services, line: socket.socket, door: socket.socket) -> None:
        peers = LinePeers()
        self._line = peers.line = Line(
            line,
            at_once={
                "stop": lambda _: self.stopping.set(),
                "hurry": lambda _: self.hurry.set(),
                "adopt": lambda _: self._beside.again(),
            },
            later={"admin": self._administer, "peers.asked": peers.asked},
        )
        self._door = door
        door.setblocking(False)
        super().__init__(services, peers)
        self._methods = self.methods()

    async def run(self, ready: Any = lambda gateway: None) -> None:
        """Serve what comes through the door until told to stop."""
        await self._line.open()
        await super().run(ready)

    @contextlib.asynccontextmanager
    async def _administered(self) -> AsyncIterator[None]:
        yield  # by the line; and what earlier processes left waiting was the supervisor's to end

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        yield

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        beside = self._beside.run(self.services.warehouse)
        return [self.services.identities.run(), beside, self._talk(), self._look()]

    def _accepting(self, group: asyncio.TaskGroup) -> list[Coroutine[Any, Any, None]]:
        return [self._attend(group)]

    async def _prepared(self) -> bool:
        try:
            names = {"approvals": self.services.approvals.process, "jobs": self.services.jobs.process}
            await self._line.call("ready", seconds=READY_SECONDS, **names)
        except AdminError as error:
            log.error("supervisor-gone", why=str(error))
            self.stopping.set()
            return False
        return True

    def _announce(self) -> None:
        log.info("worker-started", pid=os.getpid(), boot=self.services.recorder.boot)

    def _farewell(self) -> None:
        pass

    def _closed(self) -> None:
        self._line.tell("ended")

    async def _talk(self) -> None:
        await self._line.run()
        if not self.stopping.is_set():
            log.error("supervisor-gone", why="its line ended")
        self.stopping.set()
        self.hurry.set()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.end_invalid()
            self.services.approvals.expire_due()

    async def _administer(self, params: Params) -> Any:
        return await self._methods[params["method"]](Caller(*params["caller"]), params["params"])

    # -- the door -------------------------------------------------------------------------------------

    async def _attend(self, group: asyncio.TaskGroup) -> None:
        """Take connections in until cancelled, and then those that are still at the door: they were accepted."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._door.fileno(), self._take_in, group)
        try:
            await asyncio.Event().wait()
        finally:
            loop.remove_reader(self._door.fileno())
            while self._take_in(group):
                pass

    def _take_in(self, group: asyncio.TaskGroup) -> bool:
        """Take in what is at the door, up to a limit; False if nothing was."""
        for count in range(DOOR_LIMIT):
            try:
                message, descriptors, _, _ = socket.recv_fds(
                    self._door, MESSAGE_LIMIT_BYTES, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except OSError:  # EAGAIN; anything else ends the line, too
                return count > 0
            if not message:
                asyncio.get_running_loop().remove_reader(self._door.fileno())
                return False
            if not descriptors:  # MSG_CTRUNC: we may have no more of them
                log.error("accept-failed", error="too many open files")
                self._closed()
                continue
            listener, full = json.loads(message)
            sock = socket.socket(fileno=descriptors[0])
            front = self.fronts[listener]
            self.connections.admit(group, sock, listener, front.protocol, front.gate, full)
        return True


def main(begin: Mapping[str, Any]) -> None:
    """Be a worker. begin: what the supervisor says of it (proxy.workers.supervisor)."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.configure(begin["log_level"], as_json=begin["log_json"])
    structlog.contextvars.bind_contextvars(worker=begin["number"])
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"gatecast-{begin['number']}")
    prepare_process()
    try:
        with (
            open_services(Path(begin["config"]), Config.model_validate_json(begin["begun"])) as services,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_run(services, begin))
    except GatecastError as error:
        for problem in str(error).splitlines():
            log.error("worker-failed", problem=problem)
        sys.exit(1)


async def _run(services: Services, begin: Mapping[str, Any]) -> None:
    line, door = (socket.socket(fileno=begin[name]) for name in ("line", "door"))
    worker = Worker(services, line, door)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stopping.set)
    settle_memory()
    await worker.run()
