"""The cache of decisions: what differs in anything that a rule can see is never answered from it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest

from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Verdict
from proxy.policy.rules import DECISIONS_LIMIT, KEY_TEXT_LIMIT, SCOPES_LIMIT, RuleSet
from tests.policy.rules_kit import ANA, BOT, LAB, NOON, SHOP, rules, several, sql


def decide(ruleset: RuleSet, command: Command, identity: Identity = ANA, target: Target = SHOP) -> Verdict:
    return asyncio.run(_await(ruleset, command, identity, target))


async def _await(ruleset: RuleSet, command: Command, identity: Identity, target: Target) -> Verdict:
    return await ruleset.decide(identity, target, command)


def kept(ruleset: RuleSet) -> int:
    return len(ruleset._decisions)


def test_the_same_command_is_answered_from_the_cache() -> None:
    ruleset = rules("- {name: r, when: 'sql.limit < 5', allow: true}")
    first = decide(ruleset, sql("SELECT", "public.a", limit=3))
    assert first == Allow("r")
    assert decide(ruleset, sql("SELECT", "public.a", limit=3, text="another text")) is first
    assert kept(ruleset) == 1


def test_another_group_target_database_or_label_is_decided_afresh() -> None:
    ruleset = rules(
        "- {name: r, who: {groups: [dba]}, on: {labels: {env: prod}, databases: [shop]}, "
        "when: '!(\"out\" in identity.groups)', allow: true}"
    )
    command = sql("SELECT", "public.a", cache_key="same")
    assert decide(ruleset, command) == Allow("r")
    others: list[tuple[Identity, Target]] = [
        (dataclasses.replace(ANA, groups=frozenset({"staff"})), SHOP),
        (dataclasses.replace(ANA, groups=frozenset({"dba", "out"})), SHOP),
        (BOT, SHOP),
        (ANA, LAB),
        (ANA, dataclasses.replace(SHOP, database="other")),
        (ANA, dataclasses.replace(SHOP, labels={"env": "test"})),  # reloaded under the same name
    ]
    for identity, target in others:
        assert isinstance(decide(ruleset, command, identity, target), Deny)
    assert decide(ruleset, command, dataclasses.replace(ANA), dataclasses.replace(SHOP)) == Allow("r")


def test_another_agent_or_issuer_is_decided_afresh() -> None:
    ruleset = rules("- {name: r, who: {agents: ['claude*'], issuers: ['https://id*']}, allow: true}")
    command = sql("SELECT")
    bot = dataclasses.replace(BOT, issuer="https://id.acme.com")
    assert decide(ruleset, command, bot) == Allow("r")
    assert isinstance(decide(ruleset, command, dataclasses.replace(bot, agents=("other",))), Deny)
    assert isinstance(decide(ruleset, command, dataclasses.replace(bot, issuer="https://evil")), Deny)


@pytest.mark.parametrize(
    "facts",
    [
        {"limit": 7},
        {"where": "none"},
        {"functions": ("now",)},
        {"columns": ["a.b"]},
        {"opaque": True},
        {"moves_data": True},
        {"setting": "role"},
        {"multi": True},
        {"tables_written": ("public.b",)},
        {"has_limit": True},
        {"where_missing": True},
        {"control": True},
    ],
)
def test_every_fact_that_a_rule_can_read_is_part_of_the_key(facts: dict[str, Any]) -> None:
    ruleset = rules("- {name: r, commands: {opaque: true}, allow: true}")
    decide(ruleset, sql("SELECT", "public.a"))
    decide(ruleset, sql("SELECT", "public.a", **facts))
    assert kept(ruleset) == 2


def test_verb_kind_objects_exact_and_opaque_count_beside_a_cache_key_of_the_protocol() -> None:
    ruleset = rules("- {name: r, allow: true}")
    command = sql("SELECT", "public.a", cache_key="k")
    for other in (
        command,
        dataclasses.replace(command, verb="INSERT"),
        dataclasses.replace(command, kind="write"),
        dataclasses.replace(command, objects=("public.b",)),
        dataclasses.replace(command, exact=False),
        dataclasses.replace(command, facts={**command.facts, "opaque": True}),
        dataclasses.replace(command, facts={**command.facts, "cache_key": "l"}),
    ):
        decide(ruleset, other)
    assert kept(ruleset) == 7


def test_one_of_several_is_not_answered_as_one_alone() -> None:
    ruleset = rules("- {name: r, allow: true}\n- {name: d, commands: {kinds: [read]}, when: sql.multi, deny: true}")
    select = sql("SELECT", cache_key="k")
    assert decide(ruleset, select) == Allow("r")
    assert decide(ruleset, several(select, select)).rule == "d"
    assert decide(ruleset, select) == Allow("r")


def test_a_condition_on_the_text_makes_the_text_part_of_the_key() -> None:
    ruleset = rules("- {name: r, when: 'command.text.contains(\"please\")', allow: true}")
    assert decide(ruleset, sql("SELECT", text="select 1 -- please", cache_key="k")) == Allow("r")
    assert isinstance(decide(ruleset, sql("SELECT", text="select 1", cache_key="k")), Deny)
    assert kept(ruleset) == 2
    decide(ruleset, sql("SELECT", text="x" * (KEY_TEXT_LIMIT + 1)))
    assert kept(ruleset) == 2
    decide(ruleset, sql("SELECT", text="x" * KEY_TEXT_LIMIT))
    assert kept(ruleset) == 3


@pytest.mark.parametrize(
    ("when", "later"),
    [
        ("time.hour < 13", 3600.0),
        ("time.minute < 1", 60.0),
        ("time.weekday == 1", 86400.0),
        (f"time.unix <= {int(NOON)}", 1.0),
        ("time.now <= timestamp('2026-01-05T12:00:00Z')", 1.0),
    ],
)
def test_a_condition_on_the_time_is_asked_again_in_time(when: str, later: float) -> None:
    now = [NOON]
    ruleset = rules(f'- {{name: r, when: "{when}", allow: true}}', clock=lambda: now[0])
    command = sql("SELECT", cache_key="k")
    first = decide(ruleset, command)
    assert first == Allow("r") and decide(ruleset, command) is first
    now[0] += later
    assert isinstance(decide(ruleset, command), Deny)
    now[0] -= later
    assert decide(ruleset, command) is first


def test_the_time_is_that_of_the_files_time_zone() -> None:
    text = "rules: [{name: r, when: 'time.hour == 13 && time.weekday == 1', allow: true}]"
    assert isinstance(decide(rules(text), sql("SELECT")), Deny)
    assert decide(rules("timezone: Europe/Vienna\n" + text), sql("SELECT")) == Allow("r")


def test_a_failed_condition_is_not_kept() -> None:
    ruleset = rules("- {name: r, when: 'sql.tables.size() < 2 || sql.tables[5] == \"x\"', allow: true}")
    assert decide(ruleset, sql("SELECT", "public.a", "public.b")).rule == "policy-error"
    assert kept(ruleset) == 0


def test_facts_that_cannot_be_hashed_are_decided_afresh() -> None:
    ruleset = rules("- {name: r, allow: true}")
    assert decide(ruleset, sql("SELECT", cache_key=["k"])) == Allow("r")
    assert decide(ruleset, sql("SELECT", columns=[["k"]])) == Allow("r")
    assert kept(ruleset) == 0


def test_the_cache_is_bounded_and_forgets_what_was_not_asked_for_longest() -> None:
    ruleset = rules("- {name: r, allow: true}")
    first = decide(ruleset, sql("SELECT", cache_key=-1))

    async def fill() -> None:
        for number in range(DECISIONS_LIMIT + 10):
            await ruleset.decide(ANA, SHOP, sql("SELECT", cache_key=number))
            if number % 100 == 0:
                assert await ruleset.decide(ANA, SHOP, sql("SELECT", cache_key=-1)) is first

    asyncio.run(fill())
    assert kept(ruleset) == DECISIONS_LIMIT
    assert decide(ruleset, sql("SELECT", cache_key=-1)) is first


def test_the_choices_of_rules_are_bounded() -> None:
    ruleset = rules("- {name: r, who: {groups: [dba]}, allow: true}")

    async def fill() -> None:
        for number in range(SCOPES_LIMIT + 10):
            identity = Identity(f"u{number}", frozenset({"dba"} if number % 2 else ()))
            verdict = await ruleset.decide(identity, SHOP, sql("SELECT"))
            assert isinstance(verdict, Allow) is bool(number % 2)

    asyncio.run(fill())
    assert len(ruleset._scopes) == len(ruleset._near) == SCOPES_LIMIT


def test_the_cache_never_says_anything_else_than_the_rules() -> None:
    text = (
        "- {name: a, commands: {kinds: [read], objects: ['public.*']}, allow: true}\n"
        "- {name: h, commands: {verbs: [UPDATE]}, when: 'sql.where_missing', hold: {approvers: [eve]}}\n"
        "- {name: m, commands: {objects: [public.b]}, mask: [{detectors: [email]}]}"
    )
    ruleset = rules(text)
    commands = [
        sql(verb, *tables, where=where)
        for verb in ("SELECT", "UPDATE", "BEGIN", "DO")
        for tables in ((), ("public.a",), ("public.a", "public.b"), ("hr.pay",))
        for where in ("", "none", "present")
    ]
    for _ in range(2):
        for command in commands:
            assert decide(ruleset, command) == ruleset.judge(ANA, SHOP, command)
    assert {type(ruleset.judge(ANA, SHOP, command)) for command in commands} == {Allow, Hold, Deny}


def test_a_decision_from_the_cache_costs_microseconds() -> None:
    ruleset = rules("- {name: r, when: 'time.hour < 13 && sql.limit == 0', allow: true}")
    command = sql("SELECT", "public.a", cache_key=("fingerprint", None, 3))

    async def best() -> float:
        best_seconds = 1.0
        await ruleset.decide(ANA, SHOP, command)
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(500):
                await ruleset.decide(ANA, SHOP, command)
            best_seconds = min(best_seconds, (time.perf_counter() - start) / 500)
        return best_seconds

    # 1.3 microseconds were measured; the bar is the issue's, with room for a busy machine.
    assert asyncio.run(best()) < 5e-6
