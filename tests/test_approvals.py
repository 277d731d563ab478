"""Approvals: persisted before anybody hears of them, decided by others only, and ended in every other case."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy import approvals as module
from proxy.approvals import INTENT_LIMIT, TEXT_HEAD_LIMIT, TEXT_TAIL_LIMIT, ApprovalError, Approvals, Request, cut
from proxy.core import gate
from proxy.core.events import Command
from proxy.core.gate import Decision
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Hold
from proxy.store.approvals import Record
from proxy.store.database import Database, StoreError
from tests.identity.stores import Clock, opened

ALICE = Identity("alice@example.com", frozenset({"dba"}), ("claude",))
BOB = Identity("bob@example.com", frozenset({"dba"}))
EVE = Identity("eve@example.com", frozenset({"dev"}))
PG = Target("orders", "postgres")
DROP = Command("postgres", "DROP TABLE", "define", "DROP TABLE t", b"Q\0\0\0\x11DROP TABLE t\0", ("public.t",))
HOLD = Hold("ddl-needs-a-human", ("group:dba", "carol@example.com"), 60.0, "changes the schema")


class Desk:
    """Approvals on a store, with a clock that tests move."""

    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        self.clock = Clock()
        self.events: list[tuple[str, str]] = []
        self.approvals = Approvals(database, clock=self.clock, on_event=self.note, **settings)

    def note(self, record: Record) -> None:
        self.events.append((record.id, record.state))

    async def open(self, session: str = "s1", who: Identity = ALICE, hold: Hold = HOLD, text: str = "") -> Request:
        command = dataclasses.replace(DROP, text=text) if text else DROP
        return await self.approvals.open(session, who, PG, command, hold)

    async def state(self, request: Request) -> str:
        return (await self.approvals.find(request.id)).state


@asynccontextmanager
async def desk(directory: Path, **settings: Any) -> AsyncIterator[Desk]:
    with opened(directory / "g.db") as database:
        found = Desk(database, **settings)
        await found.approvals.start()
        async with asyncio.timeout(20):
            yield found


def run(directory: Path, story: Callable[[Desk], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with desk(directory, **settings) as found:
            await story(found)

    asyncio.run(main())


async def refused(awaited: Awaitable[object]) -> str:
    with pytest.raises(ApprovalError) as caught:
        await awaited
    return caught.value.code


async def waits(request: Request) -> asyncio.Task[Decision]:
    """Start to wait, and return once it does."""
    task = asyncio.get_running_loop().create_task(request.wait())
    await asyncio.sleep(0)
    assert not task.done()
    return task


def test_it_is_what_a_gate_asks_for(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        service: gate.Approvals = desk.approvals
        pending: gate.Pending = await service.open("s1", ALICE, PG, DROP, HOLD)
        assert pending.hold is HOLD
        assert pending.url == f"https://gate.example/a/{pending.id}"

    run(tmp_path, story, url="https://gate.example/a/{id}")


def test_it_is_on_the_disk_before_open_returns(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        with sqlite3.connect(tmp_path / "g.db") as other:  # another connection sees committed rows only
            row = other.execute("SELECT id, state, text, text_bytes FROM approvals").fetchone()
        other.close()
        assert row == (request.id, "pending", "DROP TABLE t", 12)
        record = await desk.approvals.find(request.id)
        assert (record.subject, record.agents, record.target) == (ALICE.subject, ("claude",), "orders")
        assert record.approvers == HOLD.approvers
        assert record.text_sha256 == hashlib.sha256(b"DROP TABLE t").hexdigest()
        assert record.wire_sha256 == hashlib.sha256(DROP.wire).hexdigest()
        assert record.expires == record.created + 60

    run(tmp_path, story)


@pytest.mark.parametrize("approve", [True, False])
def test_a_decision_wakes_its_session_at_once(tmp_path: Path, approve: bool) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        waiting = await waits(request)
        record = await desk.approvals.decide(request.id, BOB, approve, "looks\nfine\x1b[2J ")
        state = "approved" if approve else "denied"
        decision = await waiting
        assert (decision.outcome, decision.by, decision.reason) == (state, BOB.subject, "looks fine [2J")
        assert (record.state, record.decided_by, record.decided_as) == (state, BOB.subject, "group:dba")
        assert await desk.approvals.find(request.id) == record
        assert desk.events == [(request.id, "pending"), (request.id, state)]
        assert desk.approvals.waiting == 0
        assert await request.wait() == await request.wait()

    run(tmp_path, story)


def test_who_may_decide(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        decide = desk.approvals.decide
        assert await refused(decide(request.id, EVE, True)) == "not-approver"
        assert await refused(decide(request.id, Identity("dba"), True)) == "not-approver"
        assert await refused(decide(request.id, Identity("group:dba"), True)) == "not-approver"
        assert await refused(decide(request.id, Identity("x", frozenset({"DBA", "group:dba", "*"})), True)) == (
            "not-approver"
        )
        assert await refused(decide(request.id, dataclasses.replace(BOB, agents=("claude2",)), True)) == "agent"
        assert await desk.state(request) == "pending"
        assert (await decide(request.id, Identity("carol@example.com"), True)).decided_as == "carol@example.com"

    run(tmp_path, story)


@pytest.mark.parametrize("subject", ["alice@example.com", "ALICE@Example.com", "\uff41lice@example.com", "claude"])
@pytest.mark.parametrize("approve", [True, False])
def test_never_the_requester_whatever_the_role(tmp_path: Path, subject: str, approve: bool) -> None:
    async def story(desk: Desk) -> None:
        everybody = Hold("r", (subject, "alice@example.com", "group:dba", "group:admin"), 60.0)
        request = await desk.open(hold=everybody)
        me = Identity(subject, frozenset({"dba", "admin"}))
        assert await refused(desk.approvals.decide(request.id, me, approve)) == "own-request"
        assert await desk.state(request) == "pending"

    run(tmp_path, story)


def test_nobody_when_there_are_no_approvers_and_no_patterns(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        for session, approvers in enumerate([(), ("*",), ("group:*",), ("bob*",), ("group:",)]):
            request = await desk.open(str(session), hold=Hold("r", approvers, 60.0))
            assert await refused(desk.approvals.decide(request.id, BOB, True)) == "not-approver"

    run(tmp_path, story)


def test_one_decision_only(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        decide = desk.approvals.decide
        carol = Identity("carol@example.com")
        results = await asyncio.gather(
            decide(request.id, BOB, True), decide(request.id, carol, False), return_exceptions=True
        )
        assert [type(result) for result in results] == [Record, ApprovalError]
        assert (await request.wait()).outcome == "approved"
        with pytest.raises(ApprovalError, match=r"was approved by bob@example\.com already"):
            await decide(request.id, carol, False)
        assert await desk.state(request) == "approved"
        assert await refused(decide("ap_unknown", BOB, True)) == "unknown"
        assert await refused(desk.approvals.find("ap_unknown")) == "unknown"

    run(tmp_path, story)


def test_it_expires_by_the_clock(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        waiting = await waits(request)
        desk.clock.advance(59.9)
        desk.approvals.tick()
        await asyncio.sleep(0)
        assert not waiting.done()
        desk.clock.advance(0.1)
        desk.approvals.tick()
        assert await waiting == Decision("expired")
        assert await desk.state(request) == "expired"
        with pytest.raises(ApprovalError, match="was expired already"):
            await desk.approvals.decide(request.id, BOB, True)

    run(tmp_path, story)


def test_it_expires_by_its_own_timer(tmp_path: Path) -> None:
    async def main() -> None:
        with opened(tmp_path / "g.db") as database:
            loop = asyncio.get_running_loop()
            approvals = Approvals(database, clock=loop.time)
            request = await approvals.open("s1", ALICE, PG, DROP, dataclasses.replace(HOLD, timeout_seconds=0.05))
            async with asyncio.timeout(20):
                assert await request.wait() == Decision("expired")
            assert (await approvals.find(request.id)).state == "expired"

    asyncio.run(main())


def test_an_expired_one_that_nobody_waits_for(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        desk.clock.advance(60)
        assert await refused(desk.approvals.decide(request.id, BOB, True)) == "ended"
        assert (await request.wait()).outcome == "expired"
        again = await desk.open("s2")
        desk.clock.advance(60)
        assert [record.state for record in await desk.approvals.listing()] == ["expired", "expired"]
        assert (await again.wait()).outcome == "expired"

    run(tmp_path, story)


def test_the_default_and_the_longest_timeout(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        for session, (given, kept) in enumerate([(0.0, 600.0), (-1.0, 600.0), (1e9, module.TIMEOUT_LIMIT_SECONDS)]):
            request = await desk.open(str(session), hold=dataclasses.replace(HOLD, timeout_seconds=given))
            assert request.record.expires - request.record.created == kept

    run(tmp_path, story)


def test_withdrawn_by_its_user(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        waiting = await waits(request)
        request.withdraw()
        assert await waiting == Decision("withdrawn")
        request.withdraw()
        assert await desk.state(request) == "withdrawn"
        assert await refused(desk.approvals.decide(request.id, BOB, True)) == "ended"
        decided = await desk.open()
        await desk.approvals.decide(decided.id, BOB, True)
        decided.withdraw()
        assert (await decided.wait()).outcome == "approved"
        assert await desk.state(decided) == "approved"

    run(tmp_path, story)


def test_cancelling_the_wait_withdraws(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        waiting = await waits(request)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await desk.state(request) == "withdrawn"
        assert desk.approvals.waiting == 0

    run(tmp_path, story)


def test_cancelling_open_withdraws(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        opening = asyncio.get_running_loop().create_task(desk.open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert [record.state for record in await desk.approvals.listing()] == ["withdrawn"]
        assert desk.approvals.waiting == 0

    run(tmp_path, story)


def test_withdrawn_while_a_decision_is_being_written(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        waiting = await waits(request)
        deciding = asyncio.get_running_loop().create_task(desk.approvals.decide(request.id, BOB, True))
        while not request.settling:
            await asyncio.sleep(0)
        request.withdraw()
        assert (await waiting).outcome == "withdrawn"
        assert await refused(deciding) == "ended"
        assert await desk.state(request) == "withdrawn"

    run(tmp_path, story)


def test_an_approver_who_hangs_up_leaves_a_whole_decision(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        waiting = await waits(request)
        deciding = asyncio.get_running_loop().create_task(desk.approvals.decide(request.id, BOB, True))
        while not request.settling:
            await asyncio.sleep(0)
        deciding.cancel()
        assert (await waiting).outcome == "approved"
        assert await desk.state(request) == "approved"

    run(tmp_path, story)


def test_a_decision_in_time_is_not_overtaken_by_the_clock(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        waiting = await waits(request)
        deciding = asyncio.get_running_loop().create_task(desk.approvals.decide(request.id, BOB, True))
        while not request.settling:
            await asyncio.sleep(0)
        desk.clock.advance(1000)
        desk.approvals.tick()
        await deciding
        assert (await waiting).outcome == "approved"

    run(tmp_path, story)


def test_a_decision_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        await desk.database.run(lambda c: c.execute("ALTER TABLE approvals RENAME TO away") and None)
        with pytest.raises(StoreError):
            await desk.approvals.decide(request.id, BOB, True)
        waiting = await waits(request)
        await desk.database.run(lambda c: c.execute("ALTER TABLE away RENAME TO approvals") and None)
        await desk.approvals.decide(request.id, BOB, False)
        assert (await waiting).outcome == "denied"

    run(tmp_path, story)


def test_a_row_that_somebody_changed_by_hand(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        await desk.database.run(lambda c: c.execute("UPDATE approvals SET state = 'denied'") and None)
        assert await refused(desk.approvals.decide(request.id, BOB, True)) == "ended"
        assert (await request.wait()).outcome == "withdrawn"

    run(tmp_path, story)


def test_one_that_cannot_be_stored_comes_back_denied(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        await desk.database.run(lambda c: c.execute("DROP TABLE approvals") and None)
        request = await desk.open()
        decision = await request.wait()
        assert (decision.outcome, decision.by) == ("denied", "gatecast")
        assert "g.db" not in decision.reason
        assert desk.approvals.waiting == 0

    run(tmp_path, story)


def test_the_next_process_ends_what_was_left(tmp_path: Path) -> None:
    async def first(desk: Desk) -> None:
        await desk.open("s1")
        await desk.open("s2", hold=dataclasses.replace(HOLD, timeout_seconds=3600.0))
        decided = await desk.open("s3")
        await desk.approvals.decide(decided.id, BOB, True)

    async def second() -> None:
        with opened(tmp_path / "g.db") as database:
            found = Desk(database)
            found.clock.advance(100)
            assert await found.approvals.start() == 2
            mine = await found.open("s1")
            assert await found.approvals.start() == 0, "its own are left alone"
            states = {
                record.session: record.state for record in await found.approvals.listing() if record.id != mine.id
            }
            assert states == {"s1": "expired", "s2": "withdrawn", "s3": "approved"}
            old = next(record for record in await found.approvals.listing("withdrawn"))
            assert old.decided_why == "the gateway was restarted"
            assert await refused(found.approvals.decide(old.id, BOB, True)) == "ended"

    run(tmp_path, first)
    asyncio.run(second())


def test_close_withdraws(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        request = await desk.open()
        waiting = await waits(request)
        desk.approvals.close()
        assert (await waiting).outcome == "withdrawn"
        assert await desk.state(request) == "withdrawn"

    run(tmp_path, story)


def test_the_limits(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        async def outcome(session: str, who: Identity) -> str:
            request = await desk.open(session, who)
            return "waits" if request.decision is None else request.decision.reason

        assert await outcome("s1", ALICE) == "waits"
        assert "this session" in await outcome("s1", ALICE)
        assert await outcome("s2", ALICE) == "waits"
        assert "2 commands of alice@example.com" in await outcome("s3", ALICE)
        assert await outcome("s4", BOB) == "waits"
        assert "too many" in await outcome("s5", EVE)
        desk.approvals.close()
        assert await outcome("s5", EVE) == "waits"
        assert len(await desk.approvals.listing()) == 4, "what was turned away is not stored"

    run(tmp_path, story, session_limit=1, subject_limit=2, gateway_limit=3)


def test_lists_and_filters(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        one = await desk.open("s1", ALICE)
        desk.clock.advance(1)
        two = await desk.open("s2", BOB)
        two.withdraw()
        listing = desk.approvals.listing
        assert [record.id for record in await listing()] == [two.id, one.id]
        assert [record.id for record in await listing("pending")] == [one.id]
        assert [record.id for record in await listing(subject=BOB.subject)] == [two.id]
        assert await listing(target="other") == []
        assert [record.id for record in await listing(limit=1)] == [two.id]

    run(tmp_path, story)


def test_old_ones_are_forgotten(tmp_path: Path) -> None:
    async def first(desk: Desk) -> None:
        (await desk.open()).withdraw()

    async def later() -> None:
        with opened(tmp_path / "g.db") as database:
            found = Desk(database)
            found.clock.advance(module.KEEP_SECONDS)
            await found.approvals.start()
            assert len(await found.approvals.listing()) == 1
            found.clock.advance(1)
            await found.approvals.start()
            assert await found.approvals.listing() == []

    run(tmp_path, first)
    asyncio.run(later())


def test_a_long_text_keeps_both_ends(tmp_path: Path) -> None:
    fits = "x" * (TEXT_HEAD_LIMIT + TEXT_TAIL_LIMIT)
    assert cut(fits) == fits
    assert "1 characters are left out" in cut(fits + "y")

    async def story(desk: Desk) -> None:
        text = "/*" + " " * 1_000_000 + "*/ DROP TABLE t"
        request = await desk.open(text=text)
        record = await desk.approvals.find(request.id)
        assert record.text.endswith("DROP TABLE t")
        assert "are left out here" in record.text
        assert record.text_bytes == len(text)
        odd = await desk.open("s2", text="\udcff\ud800 x\0y")
        assert (await desk.approvals.find(odd.id)).text == "\\udcff\\ud800 x\0y"

    run(tmp_path, story)


def test_a_listener_that_fails_is_not_in_the_way(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        def broken(record: Record) -> None:
            raise RuntimeError("no chat today")

        desk.approvals._on_event = broken
        with capture_logs() as logs:
            request = await desk.open()
            await desk.approvals.decide(request.id, BOB, True)
        assert (await request.wait()).outcome == "approved"
        assert [entry["event"] for entry in logs].count("approval-listener-failed") == 2

    run(tmp_path, story)


def test_the_log_has_no_command(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        with capture_logs() as logs:
            request = await desk.open(text="ALTER ROLE x PASSWORD 'canary-7f3a'")
            await desk.approvals.decide(request.id, BOB, False)
        assert [entry["event"] for entry in logs] == ["approval-pending", "approval-denied"]
        assert "canary-7f3a" not in repr(logs)

    run(tmp_path, story)


async def _shown(directory: Path, **facts: Any) -> str:
    async with desk(directory) as d:
        command = dataclasses.replace(DROP, text="DELETE FROM t WHERE id = $1", facts=facts)
        request = await d.approvals.open("s1", ALICE, PG, command, HOLD)
        return (await d.approvals.find(request.id)).text


def test_an_approver_sees_what_the_parameters_are(tmp_path: Path) -> None:
    plain = "DELETE FROM t WHERE id = $1"
    assert asyncio.run(_shown(tmp_path / "a", values=())) == plain
    shown = asyncio.run(_shown(tmp_path / "b", values=("7", None, "x\n-- $1 = '8'")))
    assert shown == plain + "\n-- with 3 parameters:\n-- $1 = '7'\n-- $2 = NULL\n-- $3 = 'x\\n-- $1 = '8''"


def test_an_approver_sees_why_as_one_line_last(tmp_path: Path) -> None:
    shown = asyncio.run(_shown(tmp_path / "a", values=("7",), intent="a refund\n-- $2 = 'y'" + "z" * INTENT_LIMIT))
    why = shown.removeprefix("DELETE FROM t WHERE id = $1\n-- with 1 parameters:\n-- $1 = '7'\n-- intent: ")
    assert why == "a refund\\n-- $2 = 'y'" + "z" * (INTENT_LIMIT - 20)
    assert asyncio.run(_shown(tmp_path / "b", intent=["no text"])) == "DELETE FROM t WHERE id = $1"


def test_an_approver_sees_what_it_will_cost(tmp_path: Path) -> None:
    shown = asyncio.run(_shown(tmp_path, estimate=(2 << 40, 12.5), intent="a report"))
    assert shown == "DELETE FROM t WHERE id = $1\n-- estimate: 2.0 TiB, price 12.50\n-- intent: a report"


def test_an_approver_sees_the_login_and_what_a_place_is_for() -> None:
    from proxy.admin.commands import render_approval, render_approvals
    from proxy.admin.text import iso

    entry = {
        "id": "ap_1", "state": "pending", "subject": "ana", "agents": [], "issuer": "gatecast", "target": "web",
        "protocol": "ssh", "database": "root", "verb": "direct-tcpip", "kind": "transfer", "objects": ["db:5432"],
        "exact": True, "text": "db:5432", "text_bytes": 7, "text_sha256": "", "wire_sha256": "", "rule": "ask",
        "reason": "", "approvers": ["group:oncall"], "created": iso(0.0), "expires": iso(600.0), "expires_at": 600.0,
        "session": "01",
        "decided": None, "decided_by": "", "decided_why": "",
    }  # fmt: skip
    listed = render_approvals([entry], now=1.0)
    assert "web/root" in listed
    assert "direct-tcpip db:5432" in listed
    assert "login         root" in render_approval(entry, now=1.0)
    postgres = {**entry, "protocol": "postgres", "verb": "DELETE", "text": "DELETE FROM t", "database": "shop"}
    assert "web/" not in render_approvals([postgres], now=1.0)
    assert "database      shop" in render_approval(postgres, now=1.0)
