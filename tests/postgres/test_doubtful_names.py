"""Names whose meaning depends on answers that are still owed: nothing is decided on them before."""

from __future__ import annotations

import pytest

from protocols.postgres import wire
from protocols.postgres.startup import encode_error
from proxy.core.events import Command
from proxy.core.verdict import Allow, Deny, Verdict
from tests.fakes import fake_gate
from tests.playbook import Play
from tests.postgres.test_conversation import PARSED, SYNC, Z, bind, execute, parse, play, query, tag


def failed(code: str) -> bytes:
    return encode_error({"S": "ERROR", "V": "ERROR", "C": code, "M": "no"})


def test_name_that_a_failed_batch_did_not_change_is_decided_as_what_it_still_is() -> None:
    """A pipelining user lets a batch fail that would have given a held statement's name to a harmless one."""

    async def run() -> None:
        def rule(command: Command) -> Verdict:
            return Deny("no", "no") if "DELETE" in command.text and not command.prepares else Allow("yes")

        session = Play(fake_gate(rule))
        await session.user(parse("s", "DELETE FROM t") + SYNC)
        await session.target(PARSED + Z)
        close = wire.encode_named(wire.CLOSE, ord("S"), b"s")
        fails = parse("x", "SELECT nothere") + close + parse("s", "SELECT 1") + SYNC
        sent = await session.user(fails + bind("", "s") + execute("") + SYNC)
        assert sent == fails + wire.message(wire.FLUSH, b"")
        await session.target(failed("42703") + Z)
        sent = await session.user(b"")
        assert sent.endswith(SYNC) and bind("", "s") not in sent and b"token" in sent
        # A batch that does what it says is not in the way.
        works = close + parse("s", "SELECT 1") + SYNC
        await session.target(failed("34000") + Z)
        assert await session.user(works + bind("", "s") + execute("") + SYNC) == works + wire.message(wire.FLUSH, b"")
        await session.target(wire.message(ord("3"), b"") + PARSED + Z)
        assert await session.user(b"") == bind("", "s") + execute("") + SYNC

    play(run)


@pytest.mark.parametrize("again", [parse("s", "DELETE FROM t"), query("EXECUTE s")])
def test_name_that_sql_in_flight_makes_waits_for_it(again: bytes) -> None:
    async def run() -> None:
        session = Play(fake_gate())
        prepare = query("PREPARE s AS SELECT 1")
        assert await session.user(prepare + again) == prepare + wire.message(wire.FLUSH, b"")
        await session.target(tag("PREPARE") + Z)
        assert await session.user(b"") == again

    play(run)


def test_nobody_is_asked_about_what_a_refusal_has_skipped() -> None:
    """The Execute behind a denied Bind would be held once more, for a human who has just said no."""
    asked: list[str] = []

    def rule(command: Command) -> Verdict:
        asked.append(command.text)
        return Deny("no", "no") if "DELETE" in command.text and not command.prepares else Allow("yes")

    async def run() -> None:
        session = Play(fake_gate(rule))
        await session.user(parse("s", "DELETE FROM t") + SYNC)
        await session.target(PARSED + Z)
        sent = await session.user(bind("p", "s") + execute("p") + parse("", "SELECT 1") + query("SELECT 2") + SYNC)
        assert sent == bind("p", "token1") + SYNC
        assert asked == ["DELETE FROM t", "DELETE FROM t"]
        await session.target(failed("26000") + Z)
        assert await session.user(query("SELECT 3")) == query("SELECT 3")
        # A name that nobody knows is as certain an error.
        assert await session.user(bind("p", "nope") + execute("p") + SYNC) == bind("p", "token2") + SYNC
        assert asked[2:] == ["SELECT 3"]

    play(run)
