"""Why somebody does something: on the tape once, before the command that it is of, and before who approves it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from proxy.core.events import ESTIMATE_FACT, INTENT_FACT, Command
from proxy.core.gate import Pending
from proxy.core.parties import Target
from proxy.core.session import Session
from proxy.core.verdict import Allow, Hold, Verdict
from recorder.format import Kind
from tests.fakes import FakeApprovals, FakeIdentities, FakePending, FakeTape, fake_gate

SELECT = Command("bigquery", "read_rows", "read", "SELECT 1", facts={INTENT_FACT: "a report"}, flow=4, data=b"GET")


def opened(verdict: Verdict) -> tuple[Session, FakeTape, FakeApprovals]:
    tape = FakeTape()
    gate = fake_gate(lambda _: verdict)
    assert isinstance(gate.identities, FakeIdentities)
    assert isinstance(gate.approvals, FakeApprovals)
    return Session(gate, gate.identities.identity, Target("lake", "bigquery"), tape), tape, gate.approvals


async def nobody(_: object) -> None: ...


def test_the_reason_of_a_command_is_taped_before_it() -> None:
    async def body() -> None:
        session, tape, _ = opened(Allow("all", ()))
        other = replace(SELECT, facts={INTENT_FACT: "another"}, flow=6)
        for command in (SELECT, replace(SELECT, flow=5), other, replace(other, facts={}), SELECT):
            await session.decide(command, nobody)
        assert tape.of(Kind.INTENT) == [
            {"text": "a report", "flow": 4}, {"text": "a report", "flow": 5}, {"text": "another", "flow": 6},
            {"text": "a report", "flow": 4},
        ]  # fmt: skip
        kinds = [kind for _, kind, _ in tape.records]
        assert kinds[: kinds.index(Kind.COMMAND)] == [Kind.INTENT, Kind.WIRE]

    asyncio.run(body())


def test_a_reason_that_is_no_text_is_none() -> None:
    async def body() -> None:
        session, tape, _ = opened(Allow("all", ()))
        await session.decide(replace(SELECT, facts={INTENT_FACT: ["a"]}), nobody)
        assert tape.of(Kind.INTENT) == []

    asyncio.run(body())


def test_approvers_are_shown_what_the_session_is_for_and_what_the_command_is_for() -> None:
    async def ask(said: str, command: Command) -> str:
        session, tape, approvals = opened(Hold("look", ("group:leads",), 60.0))
        if said:
            session.intent(said)

        async def approve(pending: Pending) -> None:
            assert isinstance(pending, FakePending)
            pending.decide("approved", "mia@example.com")

        permit = await session.decide(command, approve)
        assert permit.command is command  # what leaves, and what rules are asked about, is as it was
        assert [entry["text"] for entry in tape.of(Kind.INTENT)] == [each for each in (said, command.why) if each]
        (asked,) = approvals.asked
        return asked.why

    async def body() -> None:
        bare = replace(SELECT, facts={})
        assert await ask("", bare) == ""
        assert await ask("", SELECT) == "a report"
        assert await ask("ticket 7", bare) == "ticket 7"
        assert await ask("ticket 7", SELECT) == "ticket 7; a report"

    asyncio.run(body())


def test_what_the_target_expects_to_read_is_taped_with_the_command() -> None:
    async def body() -> None:
        session, tape, _ = opened(Allow("all", ()))
        await session.decide(replace(SELECT, facts={ESTIMATE_FACT: (2 << 40, 12.5)}), nobody)
        await session.decide(SELECT, nobody)
        assert [entry.get("estimate") for entry in tape.of(Kind.COMMAND)] == [[2 << 40, 12.5], None]

    asyncio.run(body())
