"""``gatecast policy explain`` and ``gatecast policy test``."""

from __future__ import annotations

import json

import pytest

from proxy.core.errors import ConfigError
from proxy.core.events import Command
from proxy.policy.cases import CaseResult, exit_code, read_cases, render_results, run_cases
from proxy.policy.explain import explain_json, explain_sql, explain_text
from tests.policy.rules_kit import ANA, BOT, CONNECT, NOON, SHOP, TARGETS, rules, several, sql

RULES = """
- name: readers
  who: {groups: [dba]}
  commands: {kinds: [read], objects: ['public.*']}
  allow: true
- name: writers
  commands: {verbs: [UPDATE]}
  when: '!sql.where_missing && time.hour >= 8'
  hold: {approvers: ['group:oncall'], timeout: 5m, reason: two pairs of eyes}
- {name: lab-only, on: {targets: [lab]}, deny: true}
- {name: pii, mask: [{columns: [public.customers.email], action: partial}]}
"""


def read(text: str) -> Command:
    """SQL as a protocol would read it, for the few texts of these tests."""
    words = text.split()
    tables = (words[-1],) if len(words) > 1 else ()
    return sql(words[0].upper(), *tables, text=text, where="none")


def reasons(command: Command, at: float = NOON) -> dict[str, tuple[bool, str]]:
    outcomes = rules(RULES).explain(ANA, SHOP, command, at)
    return {outcome.rule: (outcome.matched, outcome.reason) for outcome in outcomes}


def test_every_rule_is_listed_with_why_it_did_or_did_not_match() -> None:
    found = reasons(sql("SELECT", "public.customers"))
    assert list(found) == ["readers", "writers", "lab-only", "pii"]
    assert found["readers"] == (True, "all parts match")
    assert found["writers"] == (False, "commands.verbs: 'SELECT' is not UPDATE")
    assert found["lab-only"] == (False, "on.targets: 'shop-prod' is not lab")
    assert found["pii"] == (True, "all parts match")


def test_a_false_condition_is_shown_with_the_values_that_it_read() -> None:
    matched, reason = reasons(sql("UPDATE", "public.a", where="none"))["writers"]
    assert not matched
    assert "the condition is false" in reason
    assert "sql.where_missing = 'True'" in reason and "time.hour = '12'" in reason


def test_the_time_can_be_chosen() -> None:
    update = sql("UPDATE", "public.a", where="present")
    assert reasons(update, NOON)["writers"][0]
    assert not reasons(update, NOON - 6 * 3600)["writers"][0]


def test_dark_commands_and_session_business_are_explained() -> None:
    matched, reason = reasons(sql("UNPARSABLE"))["readers"]
    assert not matched and reason == "commands.kinds: 'unknown' is not read"
    (outcome,) = rules("- {name: r, allow: true}").explain(ANA, SHOP, sql("DO"))
    assert not outcome.matched and "does not say opaque: true" in outcome.reason
    found = reasons(CONNECT)
    assert found["readers"][0] and "session business" in found["readers"][1]
    assert found["writers"][0]


def test_a_condition_that_fails_says_so_and_how() -> None:
    ruleset = rules("- {name: r, when: 'sql.tables.size() == 0 || sql.tables[5] == \"x\"', allow: true}")
    (outcome,) = ruleset.explain(ANA, SHOP, sql("SELECT", "public.a"))
    assert not outcome.matched and "the whole decision is a deny" in outcome.reason and "index=5" in outcome.reason


def test_text_shows_the_rules_the_verdict_and_the_rule_that_decided() -> None:
    text = explain_text(rules(RULES), ANA, SHOP, sql("SELECT", "public.customers"))
    assert "ana@acme.com on shop-prod/shop (postgres)" in text
    assert "+ readers" in text and "- writers" in text
    assert text.splitlines()[-2:] == ["verdict: allow by readers", "  masked by pii: public.customers.email (partial)"]
    held = explain_text(rules(RULES), BOT, SHOP, sql("UPDATE", "public.a"))
    assert "verdict: hold by writers: two pairs of eyes\n  any of group:oncall within 300 s" in held
    denied = explain_sql(rules(RULES), BOT, SHOP, "INSERT public.a", read)
    assert denied.endswith("verdict: deny by default-deny: no rule allows this command\n")


def test_text_counts_the_statements_of_several() -> None:
    text = explain_text(rules(RULES), ANA, SHOP, several(sql("SELECT", "public.a"), sql("INSERT", "public.a")))
    assert "[1/2] SELECT" in text and "[2/2] INSERT" in text and "verdict: deny by default-deny" in text


def test_text_carries_no_control_characters_of_a_command() -> None:
    text = explain_text(rules(RULES), ANA, SHOP, sql("SELECT", text="select '\x1b[2J\x07'\n" + "x" * 5000))
    assert all(c.isprintable() or c == "\n" for c in text) and len(text) < 2000


def test_json_is_json_and_says_the_same() -> None:
    explained = json.loads(json.dumps(explain_json(rules(RULES), ANA, SHOP, sql("SELECT", "public.customers"))))
    assert (explained["verdict"], explained["rule"]) == ("allow", "readers")
    assert explained["masks"][0]["columns"] == ["public.customers.email"]
    assert [outcome["matched"] for outcome in explained["outcomes"]] == [True, False, False, True]
    assert explained["statements"][0]["verb"] == "SELECT"
    held = explain_json(rules(RULES), BOT, SHOP, sql("UPDATE", "public.a"))
    assert (held["verdict"], held["approvers"], held["timeout_seconds"]) == ("hold", ["group:oncall"], 300.0)
    denied = explain_json(rules(RULES), BOT, SHOP, sql("INSERT", "public.a"))
    assert (denied["verdict"], denied["rule"], denied["masks"]) == ("deny", "default-deny", [])


CASES = """
cases:
  - name: a dba reads
    identity: {subject: ana@acme.com, groups: [dba]}
    target: shop-prod
    sql: SELECT public.customers
    expect: allow
    rule: readers
    masks: [pii]
  - name: an agent may not
    identity: {subject: bob@acme.com, agents: [claude-code]}
    target: shop-prod
    database: shop
    sql: SELECT public.customers
    expect: deny
  - name: connecting is free
    identity: {subject: bob@acme.com}
    target: shop-prod
    connect: true
    expect: allow
    masks: [pii]
  - name: a held update at night
    identity: {subject: bob@acme.com}
    target: shop-prod
    command: {verb: UPDATE, kind: write, text: update x, objects: [public.a]}
    at: 2026-01-05T03:00:00Z
    expect: deny
  - name: a held update by day
    identity: {subject: bob@acme.com}
    target: shop-prod
    command: {verb: UPDATE, kind: write, text: update x, objects: [public.a]}
    at: 2026-01-05T09:00:00+01:00
    expect: hold
    rule: writers
"""


def ran(text: str) -> list[CaseResult]:
    return run_cases(read_cases(text, "cases.yaml", TARGETS), rules(RULES), read)


def test_cases_that_hold() -> None:
    results = ran(CASES)
    assert [(result.case.name, result.problems) for result in results[:4]] == [
        ("a dba reads", ()),
        ("an agent may not", ()),
        ("connecting is free", ()),
        ("a held update at night", ()),
    ]
    # 09:00 in Vienna is 08:00 UTC, which is the rules' time zone.
    assert results[4].passed and results[4].verdict == "hold"
    assert exit_code(results) == 0
    assert render_results(results, "cases.yaml").endswith("5 cases, all as expected\n")


def test_cases_that_do_not_hold_are_explained() -> None:
    text = CASES.replace("rule: readers", "rule: writers").replace("masks: [pii]", "masks: []", 1)
    text = text.replace("expect: deny", "expect: allow", 1)
    results = ran(text)
    assert results[0].problems == ("expected the rule writers, got readers", "expected masks of none, got pii")
    assert results[1].problems == ("expected allow, got deny",)
    assert exit_code(results) == 1
    table = render_results(results, "cases.yaml")
    assert "FAIL  a dba reads" in table and "ok    connecting is free" in table
    assert "cases.yaml:3: a dba reads: expected the rule writers" in table
    assert "- readers   allow  who.groups: none of the caller's groups is dba" in table
    assert table.endswith("5 cases, 2 failed\n")


def test_no_cases_at_all_are_a_failure() -> None:
    assert exit_code([]) == 1


GOOD = "name: c, identity: {subject: a}, target: lab, sql: SELECT, expect: allow"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "empty"),
        ("case: []", 1, "unknown key 'case'"),
        ("cases: []", 1, "empty list"),
        ("cases:\n- {identity: {subject: a}, target: lab, sql: SELECT, expect: allow}", 2, "the case has no name"),
        ("cases:\n- {name: c, identity: {}, target: lab, sql: SELECT, expect: allow}", 2, "has no subject"),
        (f"cases:\n- {{{GOOD}, verdict: allow}}", 2, "unknown key 'verdict'"),
        (f"cases:\n- {{{GOOD}}}\n- {{{GOOD}}}", 3, "there twice"),
        (f"cases:\n- {{{GOOD}, connect: true}}", 2, "one of sql, connect"),
        ("cases:\n- {" + GOOD.replace("lab", "labb") + "}", 2, "unknown target 'labb' (did you mean 'lab'?)"),
        ("cases:\n- {" + GOOD.replace("allow", "alow") + "}", 2, "unknown verdict 'alow'"),
        (f"cases:\n- {{{GOOD}, at: yesterday}}", 2, "at must be a time"),
        (
            "cases:\n- {name: c, identity: {subject: a}, target: lab, command: {verb: X, kind: red}, expect: allow}",
            2,
            "unknown kind 'red'",
        ),
    ],
)
def test_a_mistake_in_the_cases_is_told_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_cases(text, "cases.yaml", TARGETS)
    assert any(e.startswith(f"cases.yaml:{line}: ") and message in e for e in str(caught.value).splitlines()), caught
