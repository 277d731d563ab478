"""Properties of the rules: more denies never let more through, the order of the file never does, masks only add up."""

from __future__ import annotations

import asyncio
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict, combine
from proxy.policy.conditions import compile_condition
from proxy.policy.rule import Commands, Globs, On, Opaque, Rule, Who
from proxy.policy.rules import RuleSet
from tests.policy.rules_kit import ANA, BOT, CONNECT, LAB, NOON, SHOP, several, sql

CONDITIONS = [
    None,
    *map(
        compile_condition,
        (
            "sql.where_missing",
            "!sql.has_limit",
            "'dba' in identity.groups",
            "time.hour < 8",
            "target.labels.env == 'prod' && sql.tables[1] != ''",  # fails on fewer than two tables
        ),
    ),
]

globs = st.sampled_from(["*", "public.*", "public.a", "hr.pay", "pay"]).map(lambda text: Globs((text,)))
kinds = st.none() | st.frozensets(st.sampled_from(["read", "write", "session", "execute", "unknown"]), min_size=1)
verbs = st.none() | st.frozensets(st.sampled_from(["SELECT", "UPDATE", "CONNECT", "SET"]), min_size=1)


@st.composite
def a_rule(draw: st.DrawFn, effect: str | None = None) -> Rule:
    chosen = effect or draw(st.sampled_from(["allow", "hold", "deny", "mask"]))
    name = draw(st.text("abcdefgh", min_size=1, max_size=3))
    masks = (
        (Mask(name, detectors=("email",)),) if chosen == "mask" or (chosen != "deny" and draw(st.booleans())) else ()
    )
    verdicts: dict[str, Allow | Hold | Deny | None] = {
        "allow": Allow(name),
        "hold": Hold(name, ("eve",), draw(st.sampled_from([60.0, 600.0]))),
        "deny": Deny(name, "no"),
        "mask": None,
    }
    who = draw(st.sampled_from([Who(), Who(groups=Globs(("dba",))), Who(agents=Globs(("claude*",)))]))
    on = draw(st.sampled_from([On(), On(targets=Globs(("shop-*",))), On(labels=(("env", Globs(("test",))),))]))
    opaque: Opaque = draw(st.sampled_from(get_args(Opaque)))
    commands = Commands(draw(kinds), draw(verbs), draw(st.none() | globs), opaque)
    return Rule(name, 1, chosen, who, on, commands, draw(st.sampled_from(CONDITIONS)), verdicts[chosen], masks)  # type: ignore[arg-type]


singles = st.builds(
    lambda verb, tables, where, limit: sql(verb, *tables, where=where, **limit),
    st.sampled_from(["SELECT", "UPDATE", "SET", "BEGIN", "DO", "UNPARSABLE", "CONNECT"]),
    st.sampled_from([(), ("public.a",), ("public.a", "hr.pay"), ("pay",)]),
    st.sampled_from(["", "none", "present"]),
    st.sampled_from([{}, {"limit": 5}, {"setting": "role"}]),
)
commands = singles | st.just(CONNECT) | st.lists(singles, min_size=1, max_size=3).map(lambda parts: several(*parts))
sessions = st.tuples(st.sampled_from([ANA, BOT]), st.sampled_from([SHOP, LAB]))
rule_lists = st.lists(a_rule(), max_size=6)
RANK = {Deny: 0, Hold: 1, Allow: 2}


def judged(rules: list[Rule], session: tuple[Identity, Target], command: Command) -> Verdict:
    return RuleSet(rules, "r", clock=lambda: NOON).judge(*session, command)


def masks(verdict: Verdict) -> set[Mask]:
    return set() if isinstance(verdict, Deny) else set(verdict.masks)


@settings(max_examples=200, deadline=None)
@given(rule_lists, a_rule(effect="deny"), st.integers(0, 6), sessions, commands)
def test_one_more_deny_never_lets_more_through(
    rules: list[Rule], deny: Rule, place: int, session: tuple[Identity, Target], command: Command
) -> None:
    before = judged(rules, session, command)
    after = judged([*rules[:place], deny, *rules[place:]], session, command)
    assert RANK[type(after)] <= RANK[type(before)]
    assert isinstance(after, Deny) or masks(after) == masks(before)


@settings(max_examples=200, deadline=None)
@given(rule_lists, a_rule(effect="mask"), st.integers(0, 6), sessions, commands)
def test_one_more_mask_never_lets_more_through_and_takes_no_mask_away(
    rules: list[Rule], mask: Rule, place: int, session: tuple[Identity, Target], command: Command
) -> None:
    before = judged(rules, session, command)
    after = judged([*rules[:place], mask, *rules[place:]], session, command)
    # The mask's own condition may fail: then it is a Deny, never more.
    assert isinstance(after, Deny) or (type(after) is type(before) and masks(after) >= masks(before))


@settings(max_examples=200, deadline=None)
@given(st.data(), rule_lists, sessions, commands)
def test_the_order_of_the_rules_never_decides_what_passes(
    data: st.DataObject, rules: list[Rule], session: tuple[Identity, Target], command: Command
) -> None:
    shuffled = data.draw(st.permutations(rules))
    one, two = judged(rules, session, command), judged(shuffled, session, command)
    assert type(one) is type(two) and masks(one) == masks(two)


@settings(max_examples=200, deadline=None)
@given(rule_lists, sessions, st.lists(commands, min_size=1, max_size=4))
def test_the_cached_decision_is_the_decision(
    rules: list[Rule], session: tuple[Identity, Target], asked: list[Command]
) -> None:
    ruleset = RuleSet(rules, "r", clock=lambda: NOON)

    async def ask() -> None:
        for command in (*asked, *asked):
            verdict, expected = await ruleset.decide(*session, command), ruleset.judge(*session, command)
            assert verdict == expected

    asyncio.run(ask())


@settings(max_examples=200, deadline=None)
@given(rule_lists, sessions, commands)
def test_nothing_passes_without_a_rule_that_permits_and_matches(
    rules: list[Rule], session: tuple[Identity, Target], command: Command
) -> None:
    ruleset = RuleSet(rules, "r", clock=lambda: NOON)
    verdict = ruleset.judge(*session, command)
    outcomes = ruleset.explain(*session, command)
    for part in range(len(ruleset.statements(command))):
        matched = {outcome.effect for outcome in outcomes if outcome.part == part and outcome.matched}
        if not isinstance(verdict, Deny):
            assert matched & {"allow", "hold"} and "deny" not in matched
        if isinstance(verdict, Allow):
            assert "allow" in matched or command.kind == "session" or command.parts


verdicts = st.one_of(
    st.builds(Allow, st.sampled_from("ab"), st.sampled_from([(), (Mask("a", detectors=("email",)),)])),
    st.builds(Hold, st.sampled_from("ab"), st.just(("eve",)), st.sampled_from([1.0, 2.0])),
    st.builds(Deny, st.sampled_from("ab"), st.just("no")),
)


@given(st.lists(verdicts), verdicts)
def test_combine_grows_only_stricter(found: list[Verdict], more: Verdict) -> None:
    if found:
        assert RANK[type(combine([*found, more]))] <= RANK[type(combine(found))]
    assert combine([*found, Deny("d", "no")]) == next((v for v in found if isinstance(v, Deny)), Deny("d", "no"))
