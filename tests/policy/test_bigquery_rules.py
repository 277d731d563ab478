"""Rules about BigQuery: names with wildcards, effects one by one, polls, what must be asked for, the facts."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.bigquery.facts import FACTS
from protocols.bigquery.methods import KIND_OF, VERBS
from proxy.core.errors import ConfigError
from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Verdict
from proxy.policy.conditions import VARIABLES, ConditionError, Scene, compile_condition
from proxy.policy.globs import Globs
from proxy.policy.rules import RuleSet, is_session_business, load_rules
from proxy.policy.warehouse_objects import covered, touches
from tests.policy.rules_kit import NOON

LAKE = Target("lake", "bigquery", database="p")
SHOP = Target("shop", "postgres", database="shop")
ANA = Identity("ana@acme.com", frozenset({"staff"}))
PAGE = Path(__file__).parents[2] / "docs" / "policy.md"


def load(text: str, targets: Sequence[Target] = (LAKE, SHOP)) -> RuleSet:
    verbs = {"bigquery": VERBS, "postgres": ("SELECT", "CONNECT")}
    return load_rules("rules:\n" + text, "rules.yaml", targets, verbs=verbs, detectors=["email"], clock=lambda: NOON)


def effect(verb: str, *objects: str, **facts: Any) -> Command:
    """One effect of a request: a command, or a part of one."""
    known = {**FACTS, "tables_read": (), "tables_written": (), "beneath": (), "opaque": False, **facts}
    return Command("bigquery", verb, KIND_OF[verb], "", objects=objects, facts=known)


def several(*parts: Command) -> Command:
    facts = {**parts[0].facts, "tables_written": ("p.d.x",)}
    made = tuple(Command("bigquery", p.verb, p.kind, "", objects=p.objects, facts=facts) for p in parts)
    return Command("bigquery", parts[-1].verb, parts[-1].kind, "", facts=facts, parts=made)


def judged(rules: str, command: Command, identity: Identity = ANA) -> Verdict:
    return load(rules).judge(identity, LAKE, command)


def allows(glob: str, *objects: str, verb: str = "read_rows", **facts: Any) -> bool:
    rules = f'- {{name: a, commands: {{objects: ["{glob}"]}}, allow: true}}'
    return isinstance(judged(rules, effect(verb, *objects, **facts)), Allow)


def denies(glob: str, *objects: str, verb: str = "read_rows", **facts: Any) -> bool:
    rules = f'- {{name: a, allow: true}}\n- {{name: d, commands: {{objects: ["{glob}"]}}, deny: true}}'
    return isinstance(judged(rules, effect(verb, *objects, **facts)), Deny)


@pytest.mark.parametrize(
    ("glob", "name", "allowed", "denied"),
    [
        ("p.d.events_2026", "p.d.events_2026", True, True),
        ("p.d.events_2026", "p.d.events_*", False, True),
        ("p.d.events_2*", "p.d.events_*", False, True),
        ("p.d.events_*", "p.d.events_2*", True, True),
        ("p.d.events_*", "p.d.events_*", True, True),
        ("p.d.e*", "p.d.events_*", True, True),
        ("p.d.orders", "p.d.events_*", False, False),
        ("p.d.*_2026", "p.d.events_*", False, True),
        ("p.d.*events*", "p.d.events_*", True, True),
        ("p.d.?", "p.d.*", False, True),
        ("p.d.[*]", "p.d.*", False, True),
        ("p.d.???", "p.d.*", False, True),
        ("p.d.[ab]*", "p.d.a*", False, True),
        ("p.d.[ab]*", "p.d.c*", False, False),
        ("p.d.[!c]*", "p.d.c*", False, False),
        ("p.d.[ab]*", "p.d.abc", True, True),
        ("p.d.*", "p.d.*", True, True),
        ("p.d.t", "p.d.*", False, True),
        ("p.d.*", "p.*.*", False, True),
        ("p.*", "p.*.*", True, True),
        ("*.d.*", "p.*.*", False, True),
        ("p.d.*", "p.*.t", False, True),
        ("p.d.x", "p.*.t", False, False),
        ("q.*", "p.*.*", False, False),
        ("q.d.t", "*.*.*", False, True),
        ("*", "*.*.*", True, True),
        ("p.d.t", "p.d.t$20260101", True, True),
        ("p.d.t", "p.d.t@-3600000", True, True),
        ("p.d.t", "p.d.tt", False, False),
        ("p.d.t", "p.D.T", False, True),
        ("p.d.T", "p.d.t", False, True),
        ("p.d.t", "p.d.INFORMATION_SCHEMA.COLUMNS", False, True),
        ("p.e.t", "p.d.INFORMATION_SCHEMA.COLUMNS", False, False),
        ("p.d.*", "p.d.INFORMATION_SCHEMA.COLUMNS", True, True),
        ("p.d.t", "p.region-us.INFORMATION_SCHEMA.JOBS", False, True),
        ("q.d.t", "p.region-us.INFORMATION_SCHEMA.JOBS", False, False),
        ("p.*", "p.region-us.INFORMATION_SCHEMA.JOBS", True, True),
        ("p.d.t", "p.d.__TABLES__", False, True),
        ("p.d.t", "p._SESSION.t", False, False),
        ("p._SESSION.*", "p._SESSION.t", True, True),
        ("p.d.t", "p..t", False, True),
        ("ex.com:p.d.t", "ex.com:p.d.*", False, True),
        ("ex.com:p.d.t", "ex.com:p.d.INFORMATION_SCHEMA.TABLES", False, True),
        ("ex.com:p.e.t", "ex.com:p.d.INFORMATION_SCHEMA.TABLES", False, False),
        ("ex.com:p.*", "ex.com:p.*.*", True, True),
        ("p.d.events_20260101", "p.d.events_2026*", False, True),
        ("p.d.events_2025*", "p.d.events_2026*", False, False),
    ],
)  # fmt: skip
def test_names_that_stand_for_many(glob: str, name: str, allowed: bool, denied: bool) -> None:
    assert allows(glob, name) is allowed
    assert denies(glob, name) is denied


GLOB = st.text("ab*?.", max_size=6)
NAME = st.text("ab*.", max_size=5)


@given(GLOB, NAME)
@settings(max_examples=300, deadline=None)
def test_no_text_that_a_name_stands_for_escapes(glob: str, name: str) -> None:
    """Whatever stands for '*': an allow that covers the name matches it; a deny that matches it touches the name."""
    globs = Globs((glob,))
    command = Command("bigquery", "read_rows", "read", "", objects=(name,), facts={})
    for fillings in itertools.product(("", "a", "b", ".", "ab"), repeat=name.count("*")):
        plain = name.split("*")
        meant = "".join(itertools.chain(*zip(plain, (*fillings, ""), strict=True)))
        if covered(globs, name):
            assert globs.match(meant)
        if globs.match(meant):
            assert touches(globs, command)


def test_lists_of_a_project_pass_a_deny_of_one_of_its_datasets() -> None:
    assert not denies("p.pay.*", "p.*.*", verb="inspect")
    assert not denies("p.pay.*", "*.*.*", verb="inspect")
    assert denies("p.*", "p.*.*", verb="inspect")
    assert denies("p.pay.*", "p.pay.*", verb="inspect")
    assert denies("p.pay.t", "p.pay.*", verb="inspect")
    assert denies("p.pay.*", "p.*.*", verb="inspect", bq_asks_dry_run=True)
    assert denies("p.pay.*", "p.*.*", verb="grant")


def test_a_view_stands_for_the_tables_behind_it() -> None:
    assert denies("p.d.customers", "p.d.v", beneath=("p.d.customers",))
    assert denies("p.d.customers", "p.d.v", beneath=("p.d.CUSTOMERS",))
    assert not denies("p.d.customers", "p.d.v", beneath=("p.d.orders",))
    assert allows("p.d.v", "p.d.v", beneath=("p.d.customers",))


def test_what_nobody_can_read_is_met_by_every_deny_and_by_no_plain_allow() -> None:
    assert denies("q.d.t", "p.d.t", opaque=True)
    assert denies("q.d.t", verb="UNKNOWN")
    assert not allows("*", "p.d.t", opaque=True)
    said = "- {name: a, commands: {opaque: true}, allow: true}"
    assert isinstance(judged(said, effect("call", "p.d.f", opaque=True)), Allow)


def test_each_effect_is_judged_and_the_strictest_verdict_stands() -> None:
    rules = """
- {name: reads, commands: {verbs: [read_rows], objects: ["p.d.*"]}, allow: true}
- {name: writes, commands: {kinds: [write], objects: ["p.mine.*"]}, allow: true}
- {name: truncates, commands: {kinds: [delete], objects: ["p.mine.*"]}, hold: {approvers: [mia]}}
"""
    read, write = effect("read_rows", "p.d.t"), effect("write_rows", "p.mine.t")
    assert isinstance(judged(rules, several(read, write)), Allow)
    assert isinstance(judged(rules, several(read, write, effect("destroy", "p.mine.t"))), Hold)
    assert isinstance(judged(rules, several(read, effect("write_rows", "p.d.t"))), Deny)
    assert isinstance(judged(rules, several(read, effect("export", "p.d.t"))), Deny)
    # Parts that touch nothing, beside others that do.
    assert isinstance(judged(rules, several(effect("read_rows"), write)), Allow)
    assert isinstance(judged(rules, several(effect("session"), write)), Allow)
    assert isinstance(judged(rules, several(effect("export"), write)), Deny)


# -- polls ----------------------------------------------------------------------------------------------

WRITES = '- {name: writes, who: {groups: [staff]}, commands: {kinds: [write], objects: ["p.d.*"]}, allow: true}\n'


@pytest.mark.parametrize("verb", ["poll", "cancel", "upload", "discover"])
def test_whoever_may_do_anything_may_poll(verb: str) -> None:
    poll = effect(verb, bq_method="jobs.get")
    assert isinstance(judged(WRITES, poll), Allow)
    assert isinstance(judged(WRITES, poll, Identity("x@other.com")), Deny)
    assert isinstance(judged(WRITES + "- {name: no, when: 'time.hour == 12', deny: true}", poll), Deny)
    assert isinstance(judged(WRITES + "- {name: no, commands: {kinds: [delete]}, deny: true}", poll), Allow)
    assert isinstance(judged("- {name: h, commands: {kinds: [write]}, hold: {approvers: [mia]}}", poll), Allow)
    assert isinstance(judged(WRITES + f"- {{name: no, commands: {{verbs: [{verb}]}}, deny: true}}", poll), Deny)
    asked = load(WRITES).explain(ANA, LAKE, poll)
    assert [one.matched for one in asked] == [True] and "free to whoever" in asked[0].reason


def test_polls_are_business_whatever_facts_they_have_and_new_sessions_are_not() -> None:
    assert is_session_business(effect("poll", "p.d.t", opaque=True))
    assert is_session_business(effect("session", tables_written=("p.d.t",)))
    assert not is_session_business(effect("session", "p.*.*", bq_special=("create_session",)))
    assert not is_session_business(effect("session", opaque=True))
    assert not is_session_business(effect("read_rows"))


def test_polls_bring_the_masks_of_who_where_and_when_alone() -> None:
    rules = (
        WRITES
        + """
- {name: everybody, mask: [{detectors: [email]}]}
- {name: noon, when: 'time.hour == 12', mask: [{columns: ["*.*.*.a"]}]}
- {name: night, when: 'time.hour == 2', mask: [{columns: ["*.*.*.b"]}]}
- {name: others, who: {groups: [guests]}, mask: [{columns: ["*.*.*.c"]}]}
- {name: hr, commands: {objects: ["p.hr.*"]}, mask: [{columns: ["*.*.*.d"]}]}
- {name: named, commands: {verbs: [poll]}, mask: [{columns: ["*.*.*.e"]}]}
"""
    )
    verdict = judged(rules, effect("poll"))
    assert isinstance(verdict, Allow)
    assert [mask.rule for mask in verdict.masks] == ["everybody", "noon", "named"]
    begun = judged(rules, several(effect("session"), effect("write_rows", "p.d.t")))
    assert isinstance(begun, Allow) and {mask.rule for mask in begun.masks} == {"everybody", "noon"}


# -- what must be asked for -----------------------------------------------------------------------------


def test_an_allow_of_something_special_must_ask_for_it() -> None:
    plain = "- {name: a, allow: true}"
    asking = """- {name: a, when: "bigquery.special.all(s, s == 'reservation')", allow: true}"""
    held = "- {name: h, hold: {approvers: [mia]}}"
    for rules, special, wanted in [
        (plain, (), Allow),
        (plain, ("reservation",), Deny),
        (asking, ("reservation",), Allow),
        (asking, (), Allow),
        (asking, ("reservation", "service_account"), Deny),
        (held, ("service_account",), Hold),
    ]:
        assert isinstance(judged(rules, effect("read_rows", "p.d.t", bq_special=special)), wanted), (rules, special)


# -- facts ----------------------------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "bq_method": "jobs.insert", "bq_job": "query", "bq_project": "p", "bq_projects": ("p", "q"),
    "bq_datasets": ("p.d",), "bq_bytes": 2**40, "bq_price": 6.25, "bq_dry_run": True, "bq_location": "EU",
    "bq_destination": "p.d.x", "bq_write_disposition": "WRITE_TRUNCATE", "bq_uris": ("gs://b/x",),
    "bq_doors": ("EXPORT DATA",), "bq_outside": ("user:a",), "bq_labels": {"team": "x"}, "bq_special": ("kms_key",),
    "bq_routines": ("p.d.f",), "bq_statement_type": "SELECT", "bq_session": True, "bq_asks_dry_run": True,
    "bq_maximum_bytes": 5,
}  # fmt: skip


def test_every_fact_is_a_variable_of_its_type() -> None:
    names = {name.partition(".")[2] for name in VARIABLES if name.startswith("bigquery.")}
    assert names == {key.removeprefix("bq_") for key in FACTS} and set(FULL) == set(FACTS)
    for key, zero in FACTS.items():
        empty = Scene(ANA, LAKE, effect("read_rows"), NOON).value(f"bigquery.{key.removeprefix('bq_')}")
        value = Scene(ANA, LAKE, effect("read_rows", **FULL), NOON).value(f"bigquery.{key.removeprefix('bq_')}")
        given = FULL[key]
        assert value == (list(given) if isinstance(given, tuple) else given)
        assert empty == (list(zero) if isinstance(zero, tuple) else zero)
        assert type(value) is type(empty)


@pytest.mark.parametrize(
    "source",
    [
        "bigquery.bytes > 10 * 1073741824 && bigquery.price >= 6.25 && bigquery.dry_run",
        "bigquery.labels.team == 'x' && bigquery.projects.exists(p, p == 'q')",
        "bigquery.uris.all(u, u.startsWith('gs://b/')) && 'EXPORT DATA' in bigquery.doors",
        "bigquery.write_disposition == 'WRITE_TRUNCATE' && bigquery.destination == 'p.d.x' && bigquery.session",
        "bigquery.maximum_bytes == 5 && bigquery.location == 'EU' && bigquery.statement_type == 'SELECT'",
    ],
)
def test_conditions_on_facts(source: str) -> None:
    condition = compile_condition(source)
    assert condition.holds(Scene(ANA, LAKE, effect("read_rows", **FULL), NOON))
    elsewhere = Command("postgres", "SELECT", "read", "", facts=FULL)
    if "labels" not in source:
        assert not condition.holds(Scene(ANA, SHOP, elsewhere, NOON))


@pytest.mark.parametrize(
    ("key", "wrong", "source"),
    [
        ("bq_bytes", "much", "bigquery.bytes == 0"),
        ("bq_labels", {"a": 1}, "bigquery.labels == {}"),
        ("bq_uris", "gs://b", "bigquery.uris == []"),
        ("bq_session", 1, "bigquery.session"),
    ],
)
def test_a_fact_of_another_type_decides_nothing(key: str, wrong: object, source: str) -> None:
    with pytest.raises(ConditionError):
        compile_condition(source).holds(Scene(ANA, LAKE, effect("read_rows", **{key: wrong}), NOON))


def test_decisions_are_kept_apart_by_facts() -> None:
    rules = load("- {name: cheap, when: 'bigquery.bytes < 10', allow: true}")

    async def twice() -> None:
        for _ in range(2):
            assert isinstance(await rules.decide(ANA, LAKE, effect("read_rows", "p.d.t", bq_bytes=5)), Allow)
            assert isinstance(await rules.decide(ANA, LAKE, effect("read_rows", "p.d.t", bq_bytes=50)), Deny)

    asyncio.run(twice())


# -- load -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("- {name: a, on: {protocols: [bigquery]}, commands: {verbs: [read_row]}, allow: true}", "read_row"),
        ("- {name: a, on: {protocols: [bigquery]}, commands: {verbs: [SELECT]}, allow: true}", "SELECT"),
        ("- {name: a, when: 'bigquery.byte > 3', allow: true}", "unknown name 'bigquery.byte'"),
        ("- {name: a, when: \"bigquery.bytes > '3'\", allow: true}", "condition"),
        ("- {name: a, on: {protocols: [postgres]}, allow: true, mask: [{columns: [p.d.t.email]}]}", "of BigQuery"),
        ("- {name: a, on: {targets: [shop]}, allow: true, mask: [{columns: ['*.*.*.email']}]}", "of BigQuery"),
    ],
)
def test_mistakes_are_told_when_rules_are_read(rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(rule)


def test_patterns_of_three_parts_are_for_both() -> None:
    rules = load("- {name: a, allow: true, mask: [{columns: [p.d.t.email, sales.orders.card]}]}")
    assert rules.rules[0].masks[0].columns == ("p.d.t.email", "sales.orders.card")
