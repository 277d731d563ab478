"""The registry of ids: whose they are, the life of a held job, several processes, restarts and the clock."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from proxy.approvals import Approvals, Request
from proxy.core.events import Command
from proxy.core.jobs import (
    DAY_SECONDS,
    ENDED_SECONDS,
    ID_LIMIT,
    LIFE_SECONDS,
    NEXT,
    REQUEST_LIMIT,
    SCHEMA_LIMIT,
    UNSETTLED,
    Entry,
    IdKind,
    Jobs,
    Key,
    Owner,
    State,
    owner_of,
)
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Hold, Mask
from proxy.store import jobs as module
from proxy.store.database import Database, StoreError
from proxy.store.job_rows import LIST_LIMIT
from proxy.store.jobs import ADD_LIMIT, CACHE_SECONDS, JobStore
from tests.identity.stores import Clock, opened

ALICE = Owner("alice@example.com", "https://id.example.com", ("claude",))
BOB = Owner("bob@example.com", "https://id.example.com")
KEY = Key("warehouse", "job", "acme", "job-1", "EU")
MASK = Mask("pii", ("acme.shop.*.email",), action="partial", keep=2)
ENTRY = Entry(KEY, ALICE, digest="d1")
PERMIT: dict[str, Any] = {"rule": "r", "masks": (MASK,)}


class Place:
    """Two processes of one gateway on one file, with clocks that tests move."""

    def __init__(self, first: Database, second: Database, **settings: Any) -> None:
        self.path = first.path
        self.clock, self.tick = Clock(), Clock(1000.0)
        self.settings = settings
        self.one, self.two = self.store(first), self.store(second)
        self.first = first

    def store(self, database: Database) -> JobStore:
        return JobStore(database, clock=self.clock, monotonic=self.tick, **self.settings)

    async def held(self, key: Key = KEY, owner: Owner = ALICE, **changes: Any) -> Entry:
        assert await self.one.claim(Entry(key, owner, digest="d1")) is None
        values: dict[str, Any] = {"request": b'{"configuration":{}}', "approval": "ap_1"} | PERMIT | changes
        values.setdefault("deadline", self.clock() + 600)
        found = await self.one.settle(key, owner, "held", **values)
        assert found is not None
        return found


@asynccontextmanager
async def place(directory: Path, **settings: Any) -> AsyncIterator[Place]:
    with opened(directory / "g.db") as first, opened(directory / "g.db") as second:
        async with asyncio.timeout(20):
            yield Place(first, second, **settings)


def run(directory: Path, story: Callable[[Place], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with place(directory, **settings) as found:
            await story(found)

    asyncio.run(main())


def test_the_table_of_states_is_whole() -> None:
    assert set(NEXT) == set(get_args(State))
    assert {state for after in NEXT.values() for state in after} == set(NEXT) - {"claimed"}
    assert set(LIFE_SECONDS) == set(get_args(IdKind))


def test_an_owner_is_no_proof() -> None:
    old = Identity("a", frozenset({"x"}), ("c",), "i", "proof-1", 10.0)
    new = dataclasses.replace(old, groups=frozenset(), proof="proof-2", expires_at=None)
    assert owner_of(old) == owner_of(new) == Owner("a", "i", ("c",))
    assert owner_of(old) != owner_of(dataclasses.replace(old, agents=()))
    assert owner_of(old) != owner_of(dataclasses.replace(old, issuer="j"))


def test_what_is_settled_is_what_comes_back(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        jobs: Jobs = place.one
        assert await jobs.claim(ENTRY) is None
        claimed = await jobs.find(KEY, ALICE)
        assert claimed is not None
        assert (claimed.state, claimed.digest, claimed.process) == ("claimed", "d1", place.one.process)
        assert (claimed.created, claimed.expires) == (place.clock(), place.clock() + LIFE_SECONDS["job"])
        assert len(claimed.mark) == 32
        schema = {"fields": [{"name": "e\ud800", "type": "STRING"}]}
        facts = {"tables": ["acme.shop.users"], "bytes": 12}
        assert await jobs.settle(KEY, ALICE, "sent", **PERMIT) is not None
        done = await jobs.settle(KEY, ALICE, "open", schema=schema, facts=facts, destination="acme._x.anon1")
        assert done is not None and done.state == "open" and done.masks == (MASK,) and done.schema == schema
        assert (done.facts, done.destination, done.process) == (facts, "acme._x.anon1", "")
        assert await jobs.find(KEY, ALICE) == done
        assert await place.two.find(KEY, ALICE) == done, "another process sees the same"
        assert (await jobs.find(KEY, ALICE)) is (await jobs.find(KEY, ALICE)), "from memory"
        await jobs.forget(KEY, ALICE)
        assert await jobs.find(KEY, ALICE) is None

    run(tmp_path, story)


def near_to(name: str) -> Key:
    changed: dict[str, Any] = {name: "x"}
    return dataclasses.replace(KEY, **changed)


def test_anothers_id_is_an_unknown_one(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.one.claim(ENTRY)
        await place.one.settle(KEY, ALICE, "sent", **PERMIT)
        await place.one.settle(KEY, ALICE, "open")
        await place.one.find(KEY, ALICE)
        for other in (BOB, dataclasses.replace(ALICE, agents=()), dataclasses.replace(ALICE, issuer="x")):
            assert await place.one.find(KEY, other) is None
            assert await place.one.settle(KEY, other, "failed") is None
            assert await place.one.amend(KEY, other, schema={}) is None
            await place.one.forget(KEY, other)
            assert await place.one.waiting(other, KEY.target, KEY.project) == []
            assert await place.one.owned(other, KEY.target, KEY.project, ["job-1"]) == {}
        for near in ("target", "project", "id", "location"):
            assert await place.one.find(near_to(near), ALICE) is None, near
        assert await place.one.find(dataclasses.replace(KEY, kind="query"), ALICE) is None
        for location in ("", "eu", "EU"):
            assert await place.one.find(dataclasses.replace(KEY, location=location), ALICE) is not None
        owned = await place.one.owned(ALICE, KEY.target, KEY.project, ["job-1", "job-2", "\ud800"])
        assert owned == {"job-1": KEY.location}

    run(tmp_path, story)


def test_a_repeated_claim_gets_what_is_there(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        answers = await asyncio.gather(*(store.claim(ENTRY) for store in (place.one, place.two) for _ in range(3)))
        assert answers.count(None) == 1, "of six at once, in two processes, one has it"
        assert {answer.owner for answer in answers if answer is not None} == {ALICE}
        taken = await place.two.claim(dataclasses.replace(ENTRY, owner=BOB))
        assert taken is not None and taken.owner == ALICE
        place.clock.advance(LIFE_SECONDS["job"])
        assert await place.two.claim(dataclasses.replace(ENTRY, owner=BOB)) is None, "an id that has expired is free"

    run(tmp_path, story)


def test_a_job_moves_along_the_table_alone(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        states: tuple[State, ...] = get_args(State)
        await place.one.claim(ENTRY)
        for was, state in itertools.product(states, states):
            await place.first.run(set_state(was, place.one.process), durable=False)
            moved = await place.two.settle(KEY, ALICE, state, **PERMIT)
            await place.first.run(lambda at: at.execute("UPDATE jobs SET expires = 9e9").rowcount, durable=False)
            found = await place.one.find(KEY, ALICE)
            place.tick.advance(CACHE_SECONDS)
            assert found is not None and found.state == (state if state in NEXT[was] else was), (was, state)
            assert (moved is not None) == (state in NEXT[was])
            assert moved is None or moved.process == (place.one.process if state in UNSETTLED else "")

    run(tmp_path, story)


def set_state(state: State, process: str) -> Callable[[sqlite3.Connection], int]:
    return lambda at: at.execute("UPDATE jobs SET state = ?, process = ?", (state, process)).rowcount


def test_of_two_ends_one_stands(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.held()
        ends = await asyncio.gather(
            place.one.settle(KEY, ALICE, "approved"), place.two.settle(KEY, ALICE, "stopped", reason="taken back")
        )
        assert sum(end is not None for end in ends) >= 1
        found = await place.one.find(KEY, ALICE)
        assert found is not None
        if found.state == "stopped":  # what was stopped in time is not sent
            assert await place.one.settle(KEY, ALICE, "sent", **PERMIT) is None
        else:
            assert found.state == "approved" and ends[1] is None

    run(tmp_path, story)


def test_a_poll_in_another_worker_sees_the_end(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.held()
        still = await place.two.wait(KEY, ALICE, 0.0)
        assert still is not None and still.state == "held" and still.request
        assert await place.two.wait(KEY, BOB, 600.0) is None, "nobody waits for another's"
        async with asyncio.TaskGroup() as group:
            here = group.create_task(place.one.wait(KEY, ALICE, 600.0))
            there = group.create_task(place.two.wait(KEY, ALICE, 600.0))
            await asyncio.sleep(0)
            await place.one.settle(KEY, ALICE, "denied", reason="denied by bob: no")
        for seen in (here.result(), there.result()):
            assert seen is not None and (seen.state, seen.reason) == ("denied", "denied by bob: no")
            assert seen.request, "the job is still shown with its configuration"
            assert seen.expires == place.clock() + ENDED_SECONDS
        assert not place.one._wakes and not place.two._wakes

    run(tmp_path, story)


HOLD = Hold("writes", ("group:dba",), 600.0)
ASKED = Command("bigquery", "write_rows", "write", "DELETE FROM t WHERE TRUE")
APPROVER = Identity("bob@example.com", frozenset({"dba"}))


class Restarting:
    """A gateway with approvals and jobs; again() is the same gateway after it was killed."""

    def __init__(self, place: Place, database: Database) -> None:
        self.place, self.database = place, database
        self.begin()

    def begin(self) -> None:
        self.approvals = Approvals(self.database, clock=self.place.clock)
        self.jobs = self.place.store(self.database)

    async def again(self) -> None:
        self.begin()
        await self.approvals.start()
        await self.jobs.start()

    async def hold(self, **changes: Any) -> Request:
        who = Identity(ALICE.subject, agents=ALICE.agents, issuer=ALICE.issuer)
        request = await self.approvals.open("s", who, Target("warehouse", "bigquery"), ASKED, HOLD)
        await self.jobs.claim(ENTRY)
        values = {"request": b"{}", "approval": request.id, "deadline": self.place.clock() + 600} | PERMIT | changes
        assert await self.jobs.settle(KEY, ALICE, "held", **values) is not None
        return request

    async def seen(self) -> Entry:
        found = await self.jobs.find(KEY, ALICE)
        assert found is not None
        return found


def test_a_hold_survives_a_restart(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        gate = Restarting(place, place.first)
        await gate.hold()
        place.clock.advance(599)
        await gate.again()
        held = await gate.seen()
        assert (held.state, held.process, held.request, held.digest) == ("held", "", b"{}", "d1")
        adopted = await asyncio.gather(gate.jobs.adopt(10), place.two.adopt(10))
        assert sorted(len(each) for each in adopted) == [0, 1], "one process alone goes on with it"
        assert held.deadline == place.clock() + 1, "and no longer than was said"
        assert await gate.jobs.adopt(10) == []
        place.clock.advance(1)
        await gate.again()
        assert ((await gate.seen()).state, (await gate.seen()).reason) == ("expired", "nobody approved it in time")

    run(tmp_path, story)


@pytest.mark.parametrize("approve", [True, False])
def test_a_decision_that_nobody_heard_counts_after_a_restart(tmp_path: Path, approve: bool) -> None:
    async def story(place: Place) -> None:
        gate = Restarting(place, place.first)
        request = await gate.hold()
        await gate.approvals.decide(request.id, APPROVER, approve, "as agreed")
        await gate.again()
        entry = await gate.seen()
        if approve:
            assert (entry.state, entry.approval) == ("approved", request.id)
            assert [each.state for each in await gate.jobs.adopt(10)] == ["approved"]
        else:
            assert (entry.state, entry.reason) == ("denied", "denied by bob@example.com: as agreed")
            assert await gate.jobs.adopt(10) == []

    run(tmp_path, story)


def test_an_approval_is_not_sent_after_its_time(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        gate = Restarting(place, place.first)
        request = await gate.hold()
        await gate.approvals.decide(request.id, APPROVER, True)
        place.clock.advance(600)
        await gate.again()
        assert (await gate.seen()).state == "expired"

    run(tmp_path, story)


def test_a_stop_of_the_gateway_ends_no_hold_but_its_owner_does(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        gate = Restarting(place, place.first)
        await gate.hold()
        gate.approvals.close()  # an orderly stop: the approval is withdrawn
        await gate.again()
        assert (await gate.seen()).state == "held"
        assert await gate.jobs.settle(KEY, ALICE, "stopped", reason="taken back") is not None
        await gate.again()
        assert (await gate.seen()).state == "stopped"
        assert await gate.jobs.adopt(10) == []

    run(tmp_path, story)


def test_a_dead_worker_leaves_its_jobs_to_others(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.held()
        await place.one.claim(dataclasses.replace(ENTRY, key=dataclasses.replace(KEY, id="flying")))
        mine = Key("warehouse", "job", "acme", "mine")
        await place.two.claim(Entry(mine, BOB))
        left = dataclasses.replace(KEY, id="left")
        await place.one.claim(dataclasses.replace(ENTRY, key=left))
        await place.one.settle(left, ALICE, "sent", **PERMIT)
        assert await place.two.abandon(place.one.process) == 3
        assert [entry.key for entry in await place.two.adopt(10)] == [KEY]
        assert await place.two.find(dataclasses.replace(KEY, id="flying"), ALICE) is None, "it had no permit"
        gone = await place.two.find(left, ALICE)
        assert gone is not None and (gone.state, gone.process) == ("sent", ""), "nobody knows what became of it"
        assert (gone.masks, gone.rule) == ((MASK,), "r"), "but what its answers must pass"
        kept = await place.two.find(mine, BOB)
        assert kept is not None and (kept.state, kept.process) == ("claimed", place.two.process)

    run(tmp_path, story)


def test_a_table_of_the_cache_has_every_owner_and_all_masks(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        table = Key("warehouse", "table", "acme", "_ab.anon1")
        other = Mask("cards", ("acme.shop.*.card",))
        schema: dict[str, Any] = {"fields": []}
        await place.one.add([Entry(table, ALICE, masks=(MASK,), schema=schema), Entry(table, BOB)])
        await place.two.add([Entry(table, ALICE, masks=(other,))])
        alice, bob = await place.one.find(table, ALICE), await place.one.find(table, BOB)
        assert alice is not None and bob is not None
        assert (alice.masks, alice.schema, bob.masks) == ((MASK, other), schema, ())
        place.clock.advance(LIFE_SECONDS["table"] - 1)
        assert await place.one.find(table, ALICE) is not None
        place.clock.advance(1)
        assert await place.one.find(table, ALICE) is None, "also from memory"

    run(tmp_path, story)


def test_an_answer_opens_no_job_that_is_held(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.held()
        await place.one.add([Entry(KEY, ALICE)])
        found = await place.one.find(KEY, ALICE)
        assert found is not None and found.state == "held"

    run(tmp_path, story)


def test_what_another_process_changes_shows_within_the_cache(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.one.add([Entry(KEY, ALICE)])
        assert (await place.two.find(KEY, ALICE) or ENTRY).schema is None
        await place.one.amend(KEY, ALICE, schema={"fields": [1]})
        assert (await place.one.find(KEY, ALICE) or ENTRY).schema == {"fields": [1]}
        place.tick.advance(CACHE_SECONDS)
        assert (await place.two.find(KEY, ALICE) or ENTRY).schema == {"fields": [1]}

    run(tmp_path, story)


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(place: Place) -> None:
        keys = [dataclasses.replace(KEY, id=f"j{number}") for number in range(6)]
        await place.one.add([Entry(key, ALICE, schema={"fields": ["x" * 1000]}) for key in keys])
        monkeypatch.setattr(module, "CACHE_ENTRIES_LIMIT", 4)
        for key in keys:
            assert await place.one.find(key, ALICE) is not None
        assert len(place.one._cache) == 4
        assert place.one._cached_bytes == sum(each[2] for each in place.one._cache.values()) > 4000
        monkeypatch.setattr(module, "CACHE_BYTES_LIMIT", 4000)
        await place.one.amend(keys[0], ALICE, rule="r")
        assert await place.one.find(keys[0], ALICE) is not None
        assert len(place.one._cache) == 2

    run(tmp_path, story)


def test_what_is_over_is_forgotten_and_the_waiting_is_not(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.held()
        for number in range(5):
            place.clock.advance(1)
            await place.one.add([Entry(dataclasses.replace(KEY, id=f"j{number}"), ALICE)])
        await place.one.add([Entry(KEY, BOB)])
        assert await place.one.prune() == 2, "the oldest, but the held one"
        left = await place.one.owned(ALICE, "warehouse", "acme", ["job-1", *(f"j{number}" for number in range(5))])
        assert set(left) == {"job-1", "j2", "j3", "j4"}
        place.clock.advance(30 * DAY_SECONDS)
        assert await place.one.prune() == 5

    run(tmp_path, story, owner_limit=3)


@pytest.mark.parametrize("name", ["", "a\nb", "\ud800", "x" * (ID_LIMIT + 1)])
def test_what_cannot_be_an_id_is_unknown(tmp_path: Path, name: str) -> None:
    async def story(place: Place) -> None:
        key = dataclasses.replace(KEY, id=name)
        assert await place.one.find(key, ALICE) is None
        assert await place.one.amend(key, ALICE, rule="x") is None
        await place.one.forget(key, ALICE)
        with pytest.raises(StoreError, match="cannot be the id"):
            await place.one.claim(Entry(key, ALICE))
        with pytest.raises(StoreError, match="cannot be the id"):
            await place.one.add([Entry(key, ALICE)])

    run(tmp_path, story)


def test_limits(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        longest = dataclasses.replace(KEY, id="x" * ID_LIMIT)
        await place.held(longest, request=b"x" * REQUEST_LIMIT)
        await place.one.claim(ENTRY)
        with pytest.raises(StoreError, match="cannot be held"):
            await place.one.settle(KEY, ALICE, "held", request=b"x" * (REQUEST_LIMIT + 1), **PERMIT)
        for state in ("held", "sent"):
            with pytest.raises(ValueError, match="without rule and masks"):
                await place.one.settle(KEY, ALICE, state, rule="r")
        found = await place.one.find(KEY, ALICE)
        assert found is not None and found.state == "claimed", "what cannot be kept is not held"
        with pytest.raises(StoreError, match="schema of a job"):
            await place.one.amend(KEY, ALICE, schema={"x": "y" * SCHEMA_LIMIT})
        with pytest.raises(ValueError, match="state is not changed so"):
            await place.one.amend(KEY, ALICE, state="open")
        with pytest.raises(StoreError, match="in one answer"):
            await place.one.add([ENTRY] * (ADD_LIMIT + 1))
        with pytest.raises(StoreError, match="in one list"):
            await place.one.owned(ALICE, "t", "p", ["x"] * (LIST_LIMIT + 1))

    run(tmp_path, story)


def test_a_row_that_cannot_be_read_is_no_entry(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.one.add([Entry(KEY, ALICE, masks=(MASK,))])
        with sqlite3.connect(place.path) as other:
            other.execute("UPDATE jobs SET masks = replace(masks, 'columns', 'colour')")
        other.close()
        with pytest.raises(StoreError, match="cannot be read"):
            await place.one.find(KEY, ALICE)

    run(tmp_path, story)


def test_the_owner_lists_what_the_target_does_not_know(tmp_path: Path) -> None:
    async def story(place: Place) -> None:
        await place.held()
        place.clock.advance(1)
        second = dataclasses.replace(KEY, id="job-2")
        await place.held(second)
        await place.held(dataclasses.replace(KEY, id="job-3"), BOB)
        assert [entry.key for entry in await place.two.waiting(ALICE, "warehouse", "acme")] == [second, KEY]
        await place.one.settle(KEY, ALICE, "approved")
        await place.one.settle(KEY, ALICE, "sent", **PERMIT)
        await place.one.settle(KEY, ALICE, "open")
        assert [entry.key for entry in await place.two.waiting(ALICE, "warehouse", "acme")] == [second]
        assert await place.two.waiting(ALICE, "warehouse", "other") == []
        gone = await place.two.find(KEY, ALICE)
        assert gone is not None and gone.request == b"", "what the target has is not kept twice"

    run(tmp_path, story)
