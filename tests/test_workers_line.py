"""What the worker processes of a gateway say to each other: the line, peers, cancel keys, limits in the store."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from protocols.postgres.cancels import WRONG_KEYS_LIMIT, CancelKeys, cancel_keys
from proxy import logging
from proxy.admin.wire import AdminError
from proxy.approvals import Approvals
from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.peers import Alone, Answer, peers_of
from proxy.core.verdict import Hold
from proxy.workers import line as module
from proxy.workers.line import Line, Params
from tests.identity.stores import Clock, opened

SECONDS = 10.0


@pytest.fixture(autouse=True)
def logs() -> StringIO:
    stream = StringIO()
    logging.configure("info", stream, as_json=True)
    return stream


@asynccontextmanager
async def lines(**answers: Any) -> AsyncIterator[tuple[Line, Line]]:
    """A line whose far end answers."""
    ours, theirs = socket.socketpair()
    near, far = Line(ours), Line(theirs, **answers)
    await near.open()
    await far.open()
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(one.run()) for one in (near, far)]
        yield near, far
        for task in running:
            task.cancel()


def test_a_line_answers() -> None:
    async def greet(params: Params) -> str:
        await asyncio.sleep(0)
        return f"hello {params['name']}"

    async def fail(params: Params) -> None:
        raise AdminError("own-request", "no")

    async def break_down(params: Params) -> None:
        raise RuntimeError("CANARY")

    async def body() -> None:
        async with lines(later={"greet": greet, "fail": fail, "break": break_down}) as (near, _):
            said = await asyncio.gather(*(near.call("greet", seconds=SECONDS, name=str(n)) for n in range(50)))
            assert said == [f"hello {n}" for n in range(50)]
            for method, code, text in (
                ("fail", "own-request", "no"),
                ("break", "internal", "log"),
                ("x", "unknown-", "x"),
            ):
                with pytest.raises(AdminError, match=text) as caught:
                    await near.call(method, seconds=SECONDS)
                assert caught.value.code.startswith(code)
                assert "CANARY" not in str(caught.value)

    asyncio.run(body())


def test_what_is_done_at_once_is_done_in_order() -> None:
    seen: list[int] = []

    async def slow(params: Params) -> int:
        return len(seen)

    async def body() -> None:
        at_once = {"take": lambda params: seen.append(params["n"]), "release": lambda params: seen.remove(params["n"])}
        async with lines(at_once=at_once, later={"slow": slow}) as (near, _):
            for n in range(100):
                near.tell("take", n=n)
                near.tell("release", n=n)
            near.tell("take", n=1000)
            assert await near.call("slow", seconds=SECONDS) == 1

    asyncio.run(body())
    assert seen == [1000]


def test_the_end_of_a_process_is_the_end_of_its_answers() -> None:
    async def never(params: Params) -> None:
        await asyncio.Event().wait()

    async def body() -> None:
        async with lines(later={"never": never}) as (near, far):
            with pytest.raises(AdminError, match="did not answer"):
                await near.call("never", seconds=0.01)
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(refused(near))
                await asyncio.sleep(0)
                assert far._writer is not None
                far._writer.transport.abort()
                assert await waiting == "unreachable"
            assert await refused(near) == "unreachable"  # and from then on at once
            near.tell("never")

    async def refused(near: Line) -> str:
        with pytest.raises(AdminError) as caught:
            await near.call("never", seconds=SECONDS)
        return caught.value.code

    asyncio.run(body())


def test_the_limit_of_what_waits_at_one_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASKS_LIMIT", 3)
    release = asyncio.Event()

    async def wait(params: Params) -> bool:
        return await release.wait()

    async def body() -> None:
        async with lines(later={"wait": wait}) as (near, far), asyncio.TaskGroup() as group:
            waiting = [group.create_task(near.call("wait", seconds=SECONDS)) for _ in range(3)]
            while len(far._tasks) < 3:
                await asyncio.sleep(0)
            with pytest.raises(AdminError, match="cannot do wait now"):
                await near.call("wait", seconds=SECONDS)
            release.set()
            assert await asyncio.gather(*waiting) == [True] * 3

    asyncio.run(body())


def test_a_process_that_does_not_read_loses_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSENT_LIMIT", 1 << 20)

    async def body() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            near = Line(ours)
            await near.open()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(near.run())
                while not running.done():
                    near.tell("ended", what="x" * 100_000)
                    await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(body(), SECONDS))


def test_places_of_one_process() -> None:
    async def body() -> None:
        peers = peers_of({})
        async with (
            peers.place("a", 2) as one,
            peers.place("a", 2) as two,
            peers.place("b", 1) as other,
            peers.place("a", 2) as three,
        ):
            assert (one, two, other, three) == (True, True, True, False)
        async with peers.place("a", 1) as again, peers.place("a", None) as unlimited:
            assert (again, unlimited) == (True, True)
        assert isinstance(peers, Alone)
        assert not peers._places

    asyncio.run(body())


class Other(Alone):
    """The peers of a process with one other, which knows one key."""

    def __init__(self, known: bytes = b"") -> None:
        super().__init__()
        self.known = known
        self.asked = 0
        self.answers: dict[str, Answer] = {}

    async def ask(self, topic: str, payload: bytes) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        return bool(self.known) and payload == self.known

    def answer(self, topic: str, handler: Answer) -> None:
        self.answers[topic] = handler


def test_a_cancel_key_of_another_process() -> None:
    cancelled: list[str] = []

    async def cancel() -> None:
        cancelled.append("here")

    async def body() -> None:
        peers = Other((-7).to_bytes(4, "big", signed=True) + b"long secret of 3.2")
        shared: dict[str, Any] = {"peers": peers}
        keys = cancel_keys(shared, Clock())
        assert cancel_keys(shared, Clock()) is keys
        secret = keys.add(42, cancel)
        assert await keys.cancel(42, secret, "10.0.0.1:1")
        assert (cancelled, peers.asked) == (["here"], 0)  # one's own is nobody else's business
        for _ in range(2 * WRONG_KEYS_LIMIT):  # honest ones never count as guesses
            assert await keys.cancel(-7, b"long secret of 3.2", "10.0.0.1:1")
        assert await peers.answers["postgres.cancel"]((42).to_bytes(4, "big") + secret)
        assert not await peers.answers["postgres.cancel"]((42).to_bytes(4, "big") + b"nope")
        assert cancelled == ["here"] * 2

    asyncio.run(body())


def test_wrong_cancel_keys_are_counted_before_others_are_asked() -> None:
    async def body() -> None:
        peers = Other()
        keys = cancel_keys({"peers": peers}, Clock())
        burst = (keys.cancel(1, b"nope", f"10.0.0.1:{port}") for port in range(100))
        assert not any(await asyncio.gather(*burst))
        assert peers.asked == WRONG_KEYS_LIMIT
        alone = CancelKeys(Clock())
        assert not await alone.cancel(1, b"nope", "10.0.0.1:1")

    asyncio.run(body())


def test_limits_of_what_waits_hold_over_all_processes(tmp_path: Path) -> None:
    ana, bob = Identity("ana@example.com"), Identity("bob@example.com")
    command = Command("postgres", "DROP TABLE", "define", "DROP TABLE t", b"wire")
    hold = Hold("ddl", ("carol",), 60.0)
    clock = Clock()

    async def body() -> None:
        with opened(tmp_path / "g.db") as first, opened(tmp_path / "g.db") as second:
            one, two = (Approvals(db, clock=clock, subject_limit=2, gateway_limit=3) for db in (first, second))

            async def ask(approvals: Approvals, session: str, who: Identity) -> Any:
                return await approvals.open(session, who, Target("shop", "postgres"), command, hold)

            a, b = await ask(one, "s1", ana), await ask(two, "s2", ana)
            assert (a.decision, b.decision) == (None, None)
            third = await ask(one, "s3", ana)
            assert third.decision.reason == "2 commands of ana@example.com wait for approval already"
            assert (await ask(two, "s4", bob)).decision is None
            assert (await ask(one, "s5", bob)).decision.reason == "too many commands wait for approval at this gateway"
            assert (one.waiting, two.waiting) == (1, 2)
            await one.abandon(two.process)
            assert (await ask(one, "s6", ana)).decision is None
            states = {record.session: record.state for record in await one.listing()}
            assert states == {"s1": "pending", "s2": "withdrawn", "s4": "withdrawn", "s6": "pending"}
            one.close()
            two.close()

    asyncio.run(body())


def test_a_log_line_is_one_write() -> None:
    """Workers share one stderr: a line that came in two pieces would be cut by the lines of others."""
    pieces: list[str] = []

    class Stream(StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    logging.configure("info", Stream(), as_json=True)
    module.log.info("one")
    assert [piece[-2:] for piece in pieces] == ["}\n"]
