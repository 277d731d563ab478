"""The end of tapes: terms, legal holds, two people, the tombstone first, erasure; killed at each step."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from recorder.cipher import AuditorKey
from recorder.retention import DAY_SECONDS, Hold, Retention, SessionFacts, Term
from recorder.vault import VaultError
from recorder.vault_expiry import Expiry
from recorder.vault_state import State
from tests.vault.buckets import (
    Clock,
    FaultBucket,
    Killed,
    Stones,
    drain,
    local_files,
    open_expiry,
    open_vault,
    write_tape,
)

FACTS = SessionFacts(
    "01ARZ3NDEKTSV4RRFFQ69G5FAV", "postgres", "shop", "ana", 0.0, 10.0, {"env": "prod"}, frozenset({"allow"})
)
HOLD = Hold("", "case 7", "local:ana", 0.0)


# -- terms ------------------------------------------------------------------------------------------------


def test_the_longest_matching_term_wins_and_the_default_is_for_the_rest() -> None:
    terms = (Term(30, "short"), Term(2190, "shops", target=("sh*",)), Term(60, "denied", verdict=("deny",)))
    assert Retention(terms).term_of(FACTS) == (2190, "shops")
    assert Retention(terms).term_of(replace(FACTS, target="x")) == (30, "short")
    assert Retention(terms).term_of(replace(FACTS, target="x", verdicts=frozenset({"deny"}))) == (60, "denied")
    assert Retention(terms[1:]).term_of(replace(FACTS, target="x")) == (400, "default")
    assert Retention().expires_at(FACTS) == 10.0 + 400 * DAY_SECONDS


@pytest.mark.parametrize(
    ("term", "facts", "matches"),
    [
        (Term(1, verdict=("held",)), replace(FACTS, verdicts=frozenset({"held-deny"})), True),
        (Term(1, verdict=("held",)), FACTS, False),
        (Term(1, verdict=("deny",)), replace(FACTS, verdicts=None), True),  # cannot be told: kept
        (Term(1, labels={"env": "pr*"}), FACTS, True),
        (Term(1, labels={"env": "test"}), FACTS, False),
        (Term(1, labels={"env": "test"}), replace(FACTS, labels=None), True),  # cannot be told: kept
        (Term(1, labels={"team": "x"}), FACTS, False),
        (Term(1, protocol=("ssh", "post*"), subject=("ana",)), FACTS, True),
        (Term(1, protocol=("ssh",)), FACTS, False),
    ],
)
def test_terms_match(term: Term, facts: SessionFacts, matches: bool) -> None:
    assert term.matches(facts) is matches


@pytest.mark.parametrize(
    ("scope", "covers"),
    [
        ({}, True),
        ({"session": FACTS.sid}, True),
        ({"session": "01ARZ3NDEKTSV4RRFFQ69G5FAX"}, False),
        ({"target": "sh*", "subject": "ana"}, True),
        ({"target": "shop", "subject": "leo"}, False),
        ({"since": 10.0}, True),
        ({"since": 10.1}, False),
        ({"until": 0.0}, True),
        ({"until": -0.1}, False),
        ({"released_at": 5.0}, False),
    ],
)
def test_holds_cover(scope: dict[str, object], covers: bool) -> None:
    assert replace(HOLD, **scope).covers(FACTS) is covers  # type: ignore[arg-type]


# -- two people -------------------------------------------------------------------------------------------


def test_a_session_expires_by_two_people_after_its_tombstone(tmp_path: Path) -> None:
    tapes, clock, bucket, stones = tmp_path / "tapes", Clock(), FaultBucket(), Stones()

    def check(step: str, name: str) -> None:
        if step == "delete":
            assert stones.entries, "deleted before the tombstone"

    bucket.fault = check

    async def main() -> None:
        sid = await write_tape(tapes, clock, segments=2)
        other = await write_tape(tapes, clock, target="ledger")
        vault = open_vault(tapes, bucket, clock, cache=tmp_path / "cache")
        (tmp_path / "cache" / sid).mkdir(parents=True)
        expiry = open_expiry(vault, stones, terms=(Term(4000, "long", target=("ledger",)),))
        await drain(vault)
        assert await expiry.plan_expiry("ana") == ([], None)
        clock.now += 401 * DAY_SECONDS
        found, plan = await expiry.plan_expiry("ana")
        assert [(one.facts.sid, one.days, one.term) for one in found] == [(sid, 400, "default")]
        assert plan is not None
        before = len(local_files(tapes))
        with pytest.raises(VaultError, match="somebody else"):
            await expiry.confirm(plan.token, "ana")
        with pytest.raises(VaultError, match="no plan"):
            await expiry.confirm("all-1-2", "mia")
        await expiry.work()
        assert len(local_files(tapes)) == before
        assert [one.sid for one in await expiry.confirm(plan.token, "mia")] == [sid]
        with pytest.raises(VaultError, match="no plan"):
            await expiry.confirm(plan.token, "leo")
        assert len(local_files(tapes)) == before  # nothing yet
        assert {item.state for item in vault.state.of_session(sid)} == {State.EXPIRED}
        assert await expiry.work() == 1
        assert {item.state for item in vault.state.of_session(sid)} == {State.TOMBSTONED}
        assert all(sid not in name for name in bucket.objects)
        assert all(sid not in name for name in local_files(tapes))
        assert not (tmp_path / "cache" / sid).exists()
        assert any(other in name for name in bucket.objects)
        (stone,) = stones.entries
        assert (stone.sid, stone.policy) == (sid, "retention: 400 days (default)")
        assert stone.who == "asked by ana, confirmed by mia"
        assert stone.when_ns == round(clock.now * 1e9)
        assert await expiry.plan_expiry("ana") == ([], None)
        assert await expiry.work() == 0
        assert [one["action"] for one in vault.state.history()] == ["expire-done", "expire-confirmed", "expire-asked"]
        vault.close()

    asyncio.run(main())


def test_a_session_that_lasts_or_whose_end_is_missing_does_not_expire(tmp_path: Path) -> None:
    tapes, clock = tmp_path / "tapes", Clock()

    async def main() -> None:
        await write_tape(tapes, clock, segments=2, close=False)
        vault = open_vault(tapes, None, clock)
        expiry = open_expiry(vault, Stones())
        await vault.scan()
        clock.now += 5000 * DAY_SECONDS
        assert await expiry.plan_expiry("ana") == ([], None)
        vault.close()

    asyncio.run(main())


def test_without_a_node_log_nothing_goes(tmp_path: Path) -> None:
    tapes, clock = tmp_path / "tapes", Clock()

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, None, clock)
        expiry = open_expiry(vault)
        await vault.scan()
        clock.now += 500 * DAY_SECONDS
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        with pytest.raises(VaultError, match="no node log"):
            await expiry.confirm(plan.token, "mia")
        stones = Stones(fail=OSError("disk full"))
        expiry = open_expiry(vault, stones)
        await expiry.confirm(plan.token, "mia")
        with pytest.raises(OSError, match="disk full"):
            await expiry.work()
        assert len(local_files(tapes)) == 1
        stones.fail = None
        assert await expiry.work() == 1
        assert local_files(tapes) == []
        vault.close()

    asyncio.run(main())


def test_a_plan_is_void_after_a_day_and_the_terms_of_that_moment_count(tmp_path: Path) -> None:
    tapes, clock = tmp_path / "tapes", Clock()

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, None, clock)
        terms: list[Term] = []
        expiry = Expiry(vault, lambda: Retention(tuple(terms)), Stones())
        await vault.scan()
        clock.now += 500 * DAY_SECONDS
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        clock.now += DAY_SECONDS + 1
        with pytest.raises(VaultError, match="no plan"):
            await expiry.confirm(plan.token, "mia")
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        terms.append(Term(3650, "the law has changed"))
        assert await expiry.confirm(plan.token, "mia") == []
        vault.close()

    asyncio.run(main())


# -- holds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "planned", "confirmed"])
def test_a_hold_beats_expiry_up_to_the_tombstone(tmp_path: Path, moment: str) -> None:
    tapes, clock, bucket, stones = tmp_path / "tapes", Clock(), FaultBucket(), Stones()
    told: list[tuple[str, str]] = []

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        expiry = Expiry(vault, Retention, stones, lambda who, action, subject, detail: told.append((who, action)))
        await drain(vault)
        clock.now += 401 * DAY_SECONDS
        hold = await expiry.hold(HOLD) if moment == "before" else None
        found, plan = await expiry.plan_expiry("ana")
        assert (plan is None) is (moment == "before")
        assert (found[0].held is not None) is (moment == "before")
        if plan is not None:
            if moment == "planned":
                hold = await expiry.hold(HOLD)
            gone = await expiry.confirm(plan.token, "mia")
            assert bool(gone) is (moment == "confirmed")
            if moment == "confirmed":
                hold = await expiry.hold(HOLD)
        assert await expiry.work() == 0
        assert stones.entries == []
        assert [item.state for item in vault.state.of_session(sid)] == [State.UPLOADED]
        assert len(local_files(tapes)) == len(bucket.tapes()) == 1
        assert hold is not None
        released = await expiry.release(hold.id, "leo", "closed")
        assert released.released_by == "leo"
        with pytest.raises(VaultError, match="in force"):
            await expiry.release(hold.id, "leo", "again")
        assert (await expiry.plan_expiry("ana"))[1] is not None
        assert vault.state.holds() == []
        assert len(vault.state.holds(released=True)) == 1
        vault.close()

    asyncio.run(main())
    assert ("local:ana", "hold-added") in told
    assert ("leo", "hold-released") in told


def test_a_hold_that_comes_while_a_process_is_down_is_asked_before_the_tombstone(tmp_path: Path) -> None:
    """The hold is in vault.db, but the expiry was confirmed before: what counts is the moment of the tombstone."""
    tapes, clock, stones = tmp_path / "tapes", Clock(), Stones()

    async def main() -> None:
        await write_tape(tapes, clock)
        vault = open_vault(tapes, None, clock)
        expiry = open_expiry(vault, stones)
        await vault.scan()
        clock.now += 401 * DAY_SECONDS
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        await expiry.confirm(plan.token, "mia")
        with vault.state.transaction() as db:  # as if hold() had been killed before it spared anything
            db.execute("INSERT INTO holds VALUES ('hold_x', 'm', 'b', 0, '', '', '', NULL, NULL, '', NULL)")
        assert await expiry.work() == 0
        assert vault.state.removals() == []
        vault.close()

    asyncio.run(main())
    assert stones.entries == []
    assert len(local_files(tapes)) == 1


def test_a_hold_needs_a_matter(tmp_path: Path) -> None:
    async def main() -> None:
        vault = open_vault(tmp_path / "tapes", None, Clock())
        with pytest.raises(VaultError, match="matter"):
            await open_expiry(vault).hold(replace(HOLD, matter=" "))
        vault.close()

    asyncio.run(main())


# -- killed, locked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["stone", "delete", "deleted"])
def test_killed_on_the_way_the_rest_is_done_by_the_next_process(tmp_path: Path, when: str) -> None:
    tapes, clock, bucket, stones = tmp_path / "tapes", Clock(), FaultBucket(), Stones()

    def kill(step: str, name: str) -> None:
        if step == when:
            raise Killed

    async def first() -> None:
        await write_tape(tapes, clock, segments=2)
        vault = open_vault(tapes, bucket, clock)
        expiry = open_expiry(vault, stones)
        await drain(vault)
        clock.now += 401 * DAY_SECONDS
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        await expiry.confirm(plan.token, "mia")
        if when == "stone":
            stones.fail = Killed()
        bucket.fault = kill
        with pytest.raises(Killed):
            await expiry.work()
        assert bool(stones.entries) is (when != "stone")
        vault.close()

    async def second() -> None:
        bucket.fault, stones.fail = (lambda step, name: None), None
        vault = open_vault(tapes, bucket, clock)
        assert await open_expiry(vault, stones).work() == 1
        assert await open_expiry(vault, stones).work() == 0
        vault.close()

    asyncio.run(first())
    asyncio.run(second())
    assert local_files(tapes) == []
    assert not bucket.tapes()
    assert len(set(stones.entries)) == 1  # the same one may stand there twice


def test_a_store_that_locks_objects_is_asked_again_the_next_day(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket(keep=True)

    async def main() -> None:
        sid = await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock)
        expiry = open_expiry(vault, Stones())
        await drain(vault)
        clock.now += 401 * DAY_SECONDS
        _, plan = await expiry.plan_expiry("ana")
        assert plan is not None
        await expiry.confirm(plan.token, "mia")
        assert await expiry.work() == 0
        deletes = len([call for call in bucket.calls if call[0] == "delete"])
        assert await expiry.work() == 0
        assert len([call for call in bucket.calls if call[0] == "delete"]) == deletes == 1
        assert "still there" in vault.state.of_session(sid)[0].error
        bucket.keep = False
        clock.now += DAY_SECONDS + 1
        assert await expiry.work() == 1
        vault.close()

    asyncio.run(main())
    assert not bucket.tapes()


# -- erasure ----------------------------------------------------------------------------------------------


def test_erasure_destroys_the_keys_alone(tmp_path: Path) -> None:
    tapes, clock, bucket, keys, stones = tmp_path / "tapes", Clock(), FaultBucket(), FaultBucket(), Stones()

    async def main() -> None:
        auditor = AuditorKey.generate(tmp_path / "auditor.key")
        sid = await write_tape(tapes, clock, recipients=(auditor.recipient,))
        plain = await write_tape(tapes, clock)
        vault = open_vault(tapes, bucket, clock, keys=keys)
        expiry = open_expiry(vault, stones)
        await drain(vault)
        await drain(vault)
        assert [name for name in keys.objects if name.startswith("keys/")] == [
            f"keys/{item.path}" for item in vault.state.of_session(sid) if item.kind == "keys"
        ]
        assert vault.state.session(sid)[0].verdicts is None  # type: ignore[index]
        with pytest.raises(VaultError, match="not encrypted"):
            await expiry.plan_erasure(plain, "ana", "x")
        with pytest.raises(VaultError, match="reason"):
            await expiry.plan_erasure(sid, "ana", " ")
        with pytest.raises(VaultError, match="no session"):
            await expiry.plan_erasure("01ARZ3NDEKTSV4RRFFQ69G5FAV", "ana", "x")
        hold = await expiry.hold(replace(HOLD, session=sid))
        with pytest.raises(VaultError, match="held by"):
            await expiry.plan_erasure(sid, "ana", "GDPR 17")
        await expiry.release(hold.id, "leo", "over")
        plan = await expiry.plan_erasure(sid, "ana", "GDPR 17")
        with pytest.raises(VaultError, match="somebody else"):
            await expiry.confirm(plan.token, "ana")
        await expiry.confirm(plan.token, "mia")
        assert await expiry.work() == 1
        assert not [name for name in keys.objects if name.startswith("keys/")]
        assert not list(tapes.rglob("*.keys"))
        assert len(bucket.tapes()) == 2
        assert len(list(tapes.rglob("*.gct"))) == 2
        assert [(stone.sid, stone.policy) for stone in stones.entries] == [(sid, "erased: GDPR 17")]
        with pytest.raises(VaultError, match="erased already"):
            await expiry.plan_erasure(sid, "ana", "again")
        clock.now += 401 * DAY_SECONDS  # and its tape still expires in its time
        found, _ = await expiry.plan_expiry("ana")
        assert {one.facts.sid for one in found} == {sid, plain}
        vault.close()

    asyncio.run(main())


def test_keys_go_up_at_once_and_leave_the_disk_last(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        auditor = AuditorKey.generate(tmp_path / "auditor.key")
        sid = await write_tape(tapes, clock, segments=2, recipients=(auditor.recipient,))
        vault = open_vault(tapes, bucket, clock)
        await drain(vault)
        clock.now += 91 * DAY_SECONDS
        order = []
        while batch := await vault.purgeable(90, 1):
            order.append((await vault.purge(batch[0])).kind)
        assert order[-1] == "keys"
        assert order[:-1] == ["segment"] * (len(order) - 1) != []
        assert local_files(tapes) == []
        assert {item.state for item in vault.state.of_session(sid)} == {State.LOCAL_PURGED}
        vault.close()

    asyncio.run(main())


def test_a_keys_file_that_its_tape_does_not_name_is_not_uploaded(tmp_path: Path) -> None:
    tapes, clock, bucket = tmp_path / "tapes", Clock(), FaultBucket()

    async def main() -> None:
        auditor = AuditorKey.generate(tmp_path / "auditor.key")
        await write_tape(tapes, clock, recipients=(auditor.recipient,))
        (keys,) = tapes.rglob("*.keys")
        keys.write_bytes(keys.read_bytes()[:-1])  # torn
        vault = open_vault(tapes, bucket, clock)
        clock.now += 60
        await drain(vault)
        vault.close()

    asyncio.run(main())
    assert not [name for name in bucket.objects if name.startswith("keys/")]
