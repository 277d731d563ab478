"""What processes do beside their connections: when it begins, when again, and what becomes of a dead process's jobs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from structlog.testing import capture_logs

import protocols
from protocols import Protocol
from proxy.app import Gateway
from proxy.beside import Beside
from proxy.bigquery_files import Warehouse
from proxy.core.gate import Gate
from proxy.core.jobs import Entry, Key, Owner
from proxy.services import open_services
from proxy.store.database import Database
from proxy.store.jobs import JobStore
from proxy.workers.crew import CODE
from proxy.workers.supervisor import Supervisor
from tests import adopting, toy
from tests.test_app import CONFIG, PATIENCE, folder, until

__all__ = ["folder"]

ROOT = Path(__file__).parents[1]
KEY = Key("shelf", "job", "acme-prod", "job-1")
OWNER = Owner("ana@example.com")
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); import protocols; from tests import adopting;"
    "known = {**protocols.load(), 'toy': adopting.PROTOCOL}; protocols.load = lambda: known;" + CODE,
)


class Cold(Warehouse):
    """A reader of SQL that cannot be started, and counts the attempts."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__(dict)
        self.error = error
        self.warmed = 0

    async def warm(self) -> None:
        self.warmed += 1
        if self.error is not None:
            raise self.error


def protocol(name: str, background: Callable[[Gate], Awaitable[None]] | None) -> Protocol:
    return replace(toy.PROTOCOL, name=name, background=background)


def gate(name: str) -> Gate:
    return cast(Gate, name)  # which of several is asked for, no more


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_it_begins_when_users_can_be_served_and_again_when_it_has_returned() -> None:
    calls: list[str] = []
    ended: list[str] = []
    leave = asyncio.Event()

    async def background(of: Any) -> None:
        calls.append(of)
        try:
            await leave.wait()
        finally:
            ended.append(of)

    async def main() -> None:
        waiting = protocol("one", background)
        listeners = [(waiting, gate("first")), (waiting, gate("second")), (protocol("none", None), gate("third"))]
        beside, warehouse = Beside(lambda: listeners), Cold()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(beside.run(warehouse))
            beside.again()
            await settled()
            assert (calls, warehouse.warmed) == ([], 0), "before a worker is known nothing is taken over in its name"
            beside.begin()
            await settled()
            assert (calls, warehouse.warmed) == (["first"], 1)
            listeners[0] = (waiting, gate("reloaded"))
            beside.again()
            await settled()
            assert (calls, ended) == (["first"], []), "what still runs looks for itself"
            leave.set()
            await settled()
            assert ended == ["first"]
            leave.clear()
            beside.again()
            await settled()
            assert (calls, warehouse.warmed) == (["first", "reloaded"], 1)
            task.cancel()
        assert ended == ["first", "reloaded"]

    asyncio.run(main())


def test_what_fails_is_told_and_tried_again_and_ends_nothing_else() -> None:
    calls: list[str] = []

    async def failing(of: Any) -> None:
        calls.append(of)
        if len(calls) < 3:
            raise RuntimeError("canary")

    async def main() -> None:
        beside = Beside(lambda: [(protocol("one", failing), gate("g"))], retry=0)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(beside.run(Cold(TimeoutError())))
            beside.begin()
            await settled()
            assert len(calls) == 3
            assert not task.done()
            task.cancel()

    with capture_logs() as logs:
        asyncio.run(main())
    told = sorted((one["event"], one.get("protocol", ""), one["error"]) for one in logs)
    assert told == [
        ("background-failed", "one", "RuntimeError"),
        ("background-failed", "one", "RuntimeError"),
        ("sql-reader-not-started", "", "TimeoutError"),
    ]
    assert "canary" not in str(logs)


# -- jobs that processes leave ------------------------------------------------------------------------


async def leave(path: Path) -> None:
    """A gateway of before has left a job that waits for a human."""
    with closing(Database(path).open()) as database:
        store = JobStore(database)
        assert await store.claim(Entry(KEY, OWNER, digest="d")) is None
        changes: dict[str, Any] = {"rule": "r", "masks": (), "request": b"{}", "approval": "ap_1"}
        assert await store.settle(KEY, OWNER, "held", **changes) is not None


def notes(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_a_gateway_takes_what_the_one_before_has_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "notes"
    monkeypatch.setenv(adopting.NOTES_VARIABLE, str(path))
    known = {**protocols.load(), "toy": adopting.PROTOCOL}
    monkeypatch.setattr(protocols, "load", lambda: known)
    (folder / "gatecast.yaml").write_text(CONFIG)

    async def main(gateway: Gateway) -> None:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            group.create_task(gateway.run())
            try:
                await until(lambda: bool(notes(path)))
            finally:
                gateway.stop()
                gateway.stop()

    with open_services(folder / "gatecast.yaml") as services:
        asyncio.run(leave(folder / "state" / "gatecast.db"))
        asyncio.run(main(Gateway(services)))
    assert notes(path) == [[str(os.getpid()), "toy", "job-1", "held"]]


def test_another_worker_takes_what_a_dead_one_has_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "notes"
    monkeypatch.setenv(adopting.NOTES_VARIABLE, str(path))
    known = {**protocols.load(), "toy": adopting.PROTOCOL}
    monkeypatch.setattr(protocols, "load", lambda: known)
    (folder / "gatecast.yaml").write_text(CONFIG + "workers: 2\n")

    async def main(supervisor: Supervisor) -> None:
        started = asyncio.Event()
        async with asyncio.timeout(PATIENCE * 3), asyncio.TaskGroup() as group:
            group.create_task(supervisor.run(lambda _: started.set()))
            try:
                await started.wait()
                await until(lambda: bool(notes(path)))
                (first,) = notes(path)
                assert len({member.jobs for member in supervisor.crew.ready()} - {""}) == 2
                (victim,) = [one for one in supervisor.crew.ready() if str(one.process.pid) == first[0]]
                (other,) = [one for one in supervisor.crew.ready() if one is not victim]
                victim.kill()
                await until(lambda: len(notes(path)) == 2)
                assert notes(path)[1] == [str(other.process.pid), "toy", "job-1", "held"], "and no later than at once"
            finally:
                supervisor.stop()
                supervisor.stop()

    with open_services(folder / "gatecast.yaml") as services:
        asyncio.run(leave(folder / "state" / "gatecast.db"))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(Supervisor(services, COMMAND)))
    assert len(notes(path)) == 2
