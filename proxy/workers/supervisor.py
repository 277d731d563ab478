"""The supervisor: a gateway that accepts connections and gives them away.

It reads and checks everything that a gateway of one process would, takes the state directory, ends what earlier
processes left, listens, and starts the workers. Administrators talk to it: approvals are listed from the database
and decided by the worker that waits for them, sessions are those of all workers.

A reload is read here first: a bad file goes no further, and all keep the old one. A good one is then read by every
worker; one that cannot (the file changed again in that moment) is asked once a second, and replaced if it stays
behind for long: no worker goes on by rules that the others have left. A worker that starts while the file is bad
does not come up until it is mended.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import structlog

from proxy.admin.server import Handler
from proxy.admin.text import iso
from proxy.admin.wire import AdminError, Caller
from proxy.app import Gateway, NotEverywhere, worker_count
from proxy.connections import FAREWELL_SECONDS, REFUSED_LIMIT, SEAL_SECONDS, next_connection
from proxy.core.errors import ConfigError
from proxy.logging import settings as log_settings
from proxy.sections import Config
from proxy.services import Services
from proxy.store.database import StoreError
from proxy.workers.crew import Care, Crew, Member

# What an administrator waits for at most: below the admin socket's own limit, so that the answer says which worker.
ANSWER_SECONDS: Final = 20.0
STATUS_SECONDS: Final = 5.0
LEVEL_SECONDS: Final = 1.0  # between two looks whether a worker stays behind
BEHIND_LIMIT_SECONDS: Final = 30.0  # as long as an operator waits for a reload
STOP_MARGIN_SECONDS: Final = FAREWELL_SECONDS + SEAL_SECONDS + 10.0  # beyond drain_seconds, before a worker is killed
FULL_DOORS_SECONDS: Final = 0.01  # all workers have 200 connections waiting at their doors: the kernel queues the rest

log = structlog.get_logger(__name__)


class Supervisor(Gateway):
    """See the module. command: what starts a worker, for tests."""

    def __init__(self, services: Services, command: Sequence[str] | None = None) -> None:
        super().__init__(services)
        config = services.live.snapshot.loaded.config
        self._begun = config
        self._generation = 0
        self._behind: dict[Member, float] = {}
        self._accepted = 0
        self._refused = 0
        self._failure: ConfigError | None = None
        care = Care(
            begin=self._begin,
            generation=lambda: self._generation,
            taken_up=self._taken_up,
            gone=self._gone,
            descriptors=(services.lock,) if services.lock is not None else (),
        )
        self.crew = Crew(worker_count(config), care, command)

    async def run(self, ready: Callable[[Gateway], None] = lambda gateway: None) -> None:
        """See Gateway. Raises ConfigError also where a worker does not start."""
        await super().run(ready)
        if self._failure is not None:
            raise self._failure

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        return [
            self.crew.run(),
            self._watch_files(),
            self._watch_certificates(),
            self._reload_on_hangup(),
            self._keep_level(),
            *self._vaulting(),
            *self._indexing(),
        ]

    async def _prepared(self) -> bool:
        """Wait for all workers; one that fails now would fail again: better to end with an error."""
        async with asyncio.TaskGroup() as group:
            events = (self.crew.complete, self.crew.failed, self.stopping)
            waits = [group.create_task(event.wait()) for event in events]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self.crew.failed.is_set() and not self.crew.complete.is_set() and not self.stopping.is_set():
            self._failure = ConfigError("a worker process did not start; the log says why")
            self.stopping.set()
        return not self.stopping.is_set()

    async def _accept(self, group: asyncio.TaskGroup, name: str, sock: Any) -> None:
        """Accept for ever; while no worker is there, the kernel's queue waits."""
        while True:
            await self.crew.available.wait()
            connection = await next_connection(sock, name)
            with connection:
                limit = self.connections.limit
                full = self.crew.connections >= limit
                if full:
                    self._refused += 1
                    log.warning("too-many-connections", listener=name, limit=limit)
                    if self.crew.connections >= limit + REFUSED_LIMIT:
                        continue
                while not self.crew.hand(connection, name, full):
                    await self.crew.available.wait()
                    await asyncio.sleep(FULL_DOORS_SECONDS)
                self._accepted += 1

    async def _drain(self) -> None:
        self._close_sockets()
        seconds = self.services.live.snapshot.loaded.config.limits.drain_seconds
        await self.crew.stop(seconds + STOP_MARGIN_SECONDS, self.hurry)

    # -- workers come and go --------------------------------------------------------------------------

    def _begin(self, number: int) -> Mapping[str, Any]:
        level, as_json = log_settings()
        begun: Config = self._begun.model_copy(update={"rules": [], "rules_file": None, "timezone": "UTC"})
        return {
            "config": str(self.services.live.snapshot.loaded.path),
            "begun": begun.model_dump_json(),
            "log_level": level,
            "log_json": as_json,
        }

    async def _taken_up(self, member: Member) -> None:
        """A worker has read its files; if they changed meanwhile, it reads them again before it is of use."""
        if member.generation != self._generation:
            problem = await self._level(member)
            if problem:
                member.kill()
                raise AdminError("behind", problem)

    async def _gone(self, member: Member) -> None:
        self._behind.pop(member, None)
        if member.approvals:
            try:
                await self.services.approvals.abandon(member.approvals)
            except StoreError as error:  # start() of the next gateway ends the rows; nothing waits for them
                log.error("approvals-not-ended", worker=member.number, error=str(error))
        if member.jobs:
            try:
                left = await self.services.jobs.abandon(member.jobs)
            except StoreError as error:  # start() of the next gateway takes the rows; until then they stay held
                log.error("jobs-not-taken", worker=member.number, error=str(error))
                return
            for other in self.crew.ready() if left else ():
                other.line.tell("adopt")

    # -- reload ---------------------------------------------------------------------------------------

    async def reload(self) -> str:
        """See Gateway. Raises NotEverywhere where a worker stays behind for now."""
        revision = await super().reload()
        self._generation += 1
        members = self.crew.ready()
        found = await asyncio.gather(*(self._level(member) for member in members))
        problems = [f"worker {member.number}: {text}" for member, text in zip(members, found, strict=True) if text]
        if problems:
            raise NotEverywhere("\n".join(problems))
        return revision

    async def _level(self, member: Member) -> str:
        """Have a worker read the configuration of this moment; return what is wrong, or ''."""
        generation = self._generation
        self._behind.setdefault(member, time.monotonic())
        try:
            answer = await self._administer(member, "config.reload", {}, _OURSELVES)
        except AdminError as error:
            log.error("worker-reload-failed", worker=member.number, problem=str(error))
            return str(error)
        if answer["rules"] != self.services.live.snapshot.rules.revision:
            return "it has read other rules: the file has changed meanwhile"
        member.generation = generation
        if generation == self._generation:
            self._behind.pop(member, None)
        log.info("worker-reloaded", worker=member.number, rules=answer["rules"])
        return ""

    async def _keep_level(self) -> None:
        while True:
            await asyncio.sleep(LEVEL_SECONDS)
            for member in self.crew.ready():
                if member.generation == self._generation:
                    continue
                problem = await self._level(member)
                since = self._behind.get(member, time.monotonic())
                if problem and time.monotonic() - since > BEHIND_LIMIT_SECONDS:
                    log.error("worker-replaced", worker=member.number, why=problem)
                    member.ready = False
                    member.line.tell("stop")

    # -- administrators -------------------------------------------------------------------------------

    def methods(self) -> dict[str, Handler]:
        """What the admin socket answers: of all workers."""
        return {
            **super().methods(),
            "approvals.approve": lambda caller, params: self._decide("approvals.approve", caller, params),
            "approvals.deny": lambda caller, params: self._decide("approvals.deny", caller, params),
            "sessions.live": self._live,
            "sessions.kill": self._kill,
            "status": self._status,
        }

    async def _administer(self, member: Member, method: str, params: Mapping[str, Any], caller: Caller) -> Any:
        return await member.line.call("admin", seconds=ANSWER_SECONDS, **_request(method, params, caller))

    async def _decide(self, method: str, caller: Caller, params: Mapping[str, Any]) -> Any:
        """Pass a decision on to the worker whose session waits; any other can say why there is nothing to decide."""
        approval = params.get("id")
        owner = ""
        if isinstance(approval, str) and approval:
            owner = (await self.services.approvals.find(approval)).process
        members = self.crew.ready()
        for member in [*(one for one in members if one.approvals == owner), *members]:
            return await self._administer(member, method, params, caller)
        raise AdminError("unreachable", "no worker process runs; the log says why")

    async def _live(self, caller: Caller, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        answers = await self._all("sessions.live", params, caller)
        rows = []
        for number, answer in answers.items():
            if isinstance(answer, AdminError):
                raise AdminError(answer.code, f"worker {number}: {answer}")
            rows += [{**row, "worker": number} for row in answer]
        return sorted(rows, key=lambda row: float(row["started"]))

    async def _kill(self, caller: Caller, params: Mapping[str, Any]) -> Any:
        answers = await self._all("sessions.kill", params, caller)
        errors = []
        for answer in answers.values():
            if not isinstance(answer, AdminError):
                return answer
            errors.append(answer)
        for error in sorted(errors, key=lambda one: one.code == "unknown"):  # who did not answer may have it
            raise error
        raise AdminError("unreachable", "no worker process runs; the log says why")

    async def _status(self, caller: Caller, params: Mapping[str, Any]) -> dict[str, Any]:
        answers = await self._all("status", params, caller, seconds=STATUS_SECONDS)
        workers, waiting = [], 0
        for number in range(1, self.crew.count + 1):
            member, answer = self.crew.members.get(number), answers.get(number)
            row: dict[str, Any] = {"worker": number, "state": "serving"}
            if member is not None:
                row |= {"pid": member.process.pid, "started": iso(member.started), "restarts": member.restarts}
                row |= {"connections": member.connections}
            if answer is None:
                row["state"] = "starting" if member is not None else "waiting to be started"
            elif isinstance(answer, AdminError):
                row["state"] = f"silent: {answer}"
            else:
                row["rules"] = answer["rules"]
                waiting += answer["approvals_waiting"]
            workers.append(row)
        return {**self.status(), "approvals_waiting": waiting, "workers": workers}

    async def _all(
        self, method: str, params: Mapping[str, Any], caller: Caller, seconds: float = ANSWER_SECONDS
    ) -> dict[int, Any]:
        return await self.crew.call_all("admin", seconds=seconds, **_request(method, params, caller))

    @property
    def accepted(self) -> int:
        """How many connections were handed to workers."""
        return self._accepted

    def status(self) -> dict[str, object]:
        """See Gateway: of all workers together."""
        return {**super().status(), "connections": self.crew.connections, "refused": self._refused}


_OURSELVES: Final = Caller(os.geteuid(), os.getpid(), "gatecast")


def _request(method: str, params: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return {"method": method, "params": dict(params), "caller": [caller.uid, caller.pid, caller.user]}
