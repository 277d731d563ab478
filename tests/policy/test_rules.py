"""What rules mean: each sentence of proxy/policy/rules.py, 'What rules mean', as a test."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.verdict import NO_RULE, Allow, Deny, Hold, Verdict
from proxy.policy.rules import POLICY_ERROR, SETTINGS_UNDER_RULES, RuleSet, is_session_business
from tests.policy.rules_kit import ANA, BOT, BOX, CONNECT, LAB, NOON, SHOP, rules, several, sql


def word(verdict: Verdict) -> str:
    return type(verdict).__name__.lower()


def asked(ruleset: RuleSet, command: Command, identity: Identity = ANA, target: Target = SHOP) -> tuple[str, str]:
    verdict = ruleset.judge(identity, target, command)
    return word(verdict), verdict.rule


DEFAULT = ("deny", NO_RULE)


# -- who and on ------------------------------------------------------------------------------------------


def test_no_rules_at_all_deny_everything() -> None:
    ruleset = rules("rules: []")
    assert asked(ruleset, sql("SELECT", "public.a")) == DEFAULT
    assert asked(ruleset, CONNECT) == DEFAULT


@pytest.mark.parametrize(
    ("who", "matches"),
    [
        ("{groups: [dba]}", True),
        ("{groups: [nobody, db*]}", True),
        ("{groups: [DBA]}", False),
        ("{subjects: ['*@acme.com']}", True),
        ("{subjects: ['*@acme']}", False),
        ("{issuers: ['https://id.acme.com']}", True),
        ("{issuers: ['https://evil/*']}", False),
        ("{agents: ['*']}", False),
        ("{groups: [dba], subjects: ['eve@*']}", False),
        ("{groups: [dba], subjects: ['eve@*', 'ana@*']}", True),
    ],
)
def test_who_is_any_of_within_a_key_and_all_of_over_keys(who: str, matches: bool) -> None:
    ruleset = rules(f"- {{name: r, who: {who}, allow: true}}")
    assert asked(ruleset, sql("SELECT", "public.a")) == (("allow", "r") if matches else DEFAULT)


def test_agents_match_any_of_the_chain() -> None:
    ruleset = rules("- {name: r, who: {agents: ['claude*']}, allow: true}")
    assert asked(ruleset, sql("SELECT"), BOT) == ("allow", "r")
    assert asked(ruleset, sql("SELECT"), ANA) == DEFAULT


@pytest.mark.parametrize(
    ("on", "target", "matches"),
    [
        ("{targets: ['shop-*']}", SHOP, True),
        ("{targets: ['shop-*']}", LAB, False),
        ("{protocols: [ssh]}", BOX, True),
        ("{protocols: [ssh]}", SHOP, False),
        ("{databases: [shop]}", SHOP, True),
        ("{databases: [other]}", SHOP, False),
        ("{labels: {env: prod}}", SHOP, True),
        ("{labels: {env: [stage, 'pro?']}}", SHOP, True),
        ("{labels: {env: prod}}", LAB, False),
        ("{labels: {env: prod}}", BOX, False),
    ],
)
def test_on_is_matched_by_name_protocol_database_and_labels(on: str, target: Target, matches: bool) -> None:
    ruleset = rules(f"- {{name: r, on: {on}, allow: true}}")
    assert asked(ruleset, sql("SELECT"), target=target) == (("allow", "r") if matches else DEFAULT)


# -- commands --------------------------------------------------------------------------------------------


def test_kinds_and_verbs_must_both_match() -> None:
    ruleset = rules("- {name: r, commands: {kinds: [read, delete], verbs: [SELECT, UPDATE]}, allow: true}")
    assert asked(ruleset, sql("SELECT", "public.a")) == ("allow", "r")
    assert asked(ruleset, sql("DELETE", "public.a")) == DEFAULT
    assert asked(ruleset, sql("UPDATE", "public.a")) == DEFAULT


def test_an_allow_needs_all_objects() -> None:
    ruleset = rules("- {name: r, commands: {objects: ['public.*']}, allow: true}")
    assert asked(ruleset, sql("SELECT", "public.a", "public.b")) == ("allow", "r")
    assert asked(ruleset, sql("SELECT", "public.a", "hr.pay")) == DEFAULT


def test_an_allow_with_objects_takes_a_read_of_no_table_but_nothing_unknown() -> None:
    ruleset = rules("- {name: r, commands: {objects: ['public.*']}, allow: true}")
    assert asked(ruleset, sql("SELECT")) == ("allow", "r")
    # Neither a command of a protocol that names no objects, nor what only does not read.
    assert asked(ruleset, Command("ssh", "EXEC", "execute", "rm -rf /"), target=BOX) == DEFAULT
    assert asked(ruleset, Command("ssh", "EXEC", "read", "cat x"), target=BOX) == DEFAULT
    assert asked(ruleset, sql("DROP TABLE")) == DEFAULT


@pytest.mark.parametrize("says", ["deny: true", "hold: {approvers: [eve]}"])
def test_a_deny_or_hold_is_satisfied_with_any_object(says: str) -> None:
    ruleset = rules(f"- {{name: all, allow: true}}\n- {{name: r, commands: {{objects: ['hr.*']}}, {says}}}")
    assert asked(ruleset, sql("SELECT", "public.a", "hr.pay"))[1] == "r"
    assert asked(ruleset, sql("SELECT", "public.a")) == ("allow", "all")
    assert asked(ruleset, sql("SELECT")) == ("allow", "all")


def test_a_mask_is_satisfied_with_any_object_so_that_a_join_is_masked() -> None:
    ruleset = rules(
        "- {name: all, allow: true}\n- {name: m, commands: {objects: [hr.pay]}, mask: [{detectors: [email]}]}"
    )
    verdict = ruleset.judge(ANA, SHOP, sql("SELECT", "public.a", "hr.pay"))
    assert isinstance(verdict, Allow) and [mask.rule for mask in verdict.masks] == ["m"]
    assert ruleset.judge(ANA, SHOP, sql("SELECT", "public.a")) == Allow("all")


def test_an_unqualified_name_counts_as_the_denied_one_but_not_as_the_allowed_one() -> None:
    ruleset = rules("- {name: all, allow: true}\n- {name: r, commands: {objects: [hr.pay]}, deny: true}")
    assert asked(ruleset, sql("SELECT", "pay")) == ("deny", "r")
    assert asked(ruleset, sql("SELECT", "payments")) == ("allow", "all")
    assert asked(rules("- {name: r, commands: {objects: [hr.pay]}, allow: true}"), sql("SELECT", "pay")) == DEFAULT


# -- what nobody can read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "unparsable", "opaque"),
    [
        ("", False, False),
        ("commands: {kinds: [read, execute]}, ", False, False),
        ("commands: {kinds: [unknown]}, ", True, False),
        ("commands: {kinds: [execute], opaque: true}, ", False, True),
        ("commands: {opaque: true}, ", True, True),
        ("commands: {opaque: only}, ", True, True),
        ("commands: {opaque: false}, ", False, False),
    ],
)
def test_an_allow_speaks_of_dark_commands_only_if_it_says_so(commands: str, unparsable: bool, opaque: bool) -> None:
    ruleset = rules(f"- {{name: r, {commands}allow: true}}")
    assert asked(ruleset, sql("UNPARSABLE")) == (("allow", "r") if unparsable else DEFAULT)
    assert asked(ruleset, sql("DO")) == (("allow", "r") if opaque else DEFAULT)


def test_opaque_only_is_no_leave_for_what_can_be_read() -> None:
    assert asked(rules("- {name: r, commands: {opaque: only}, allow: true}"), sql("SELECT", "public.a")) == DEFAULT
    assert asked(rules("- {name: r, commands: {opaque: true}, allow: true}"), sql("SELECT", "public.a"))[0] == "allow"


@pytest.mark.parametrize("says", ["deny: true", "hold: {approvers: [eve]}"])
def test_deny_and_hold_speak_of_dark_commands_unless_they_say_no(says: str) -> None:
    free = "- {name: all, commands: {opaque: true}, allow: true}\n"
    for commands in ("", "commands: {objects: [hr.pay]}, ", "commands: {opaque: only}, "):
        ruleset = rules(f"{free}- {{name: r, when: 'command.verb != \"\"', {commands}{says}}}")
        assert asked(ruleset, sql("UNPARSABLE"))[1] == "r", commands
        assert asked(ruleset, sql("DO"))[1] == "r", commands
    ruleset = rules(f"{free}- {{name: r, commands: {{objects: [hr.pay], opaque: false}}, {says}}}")
    assert asked(ruleset, sql("DO")) == ("allow", "all")


def test_a_mask_is_put_on_opaque_commands() -> None:
    ruleset = rules(
        "- {name: all, commands: {opaque: true}, allow: true}\n"
        "- {name: m, commands: {objects: [hr.pay]}, mask: [{detectors: [email]}]}"
    )
    verdict = ruleset.judge(ANA, SHOP, sql("DO"))
    assert isinstance(verdict, Allow) and len(verdict.masks) == 1


# -- all rules count -------------------------------------------------------------------------------------


def test_deny_over_hold_over_allow_whatever_the_order() -> None:
    allow = "- {name: a, allow: true}\n"
    hold = "- {name: h, commands: {verbs: [UPDATE, DELETE]}, hold: {approvers: [eve]}}\n"
    deny = "- {name: d, commands: {verbs: [DELETE]}, deny: {reason: never}}\n"
    for text in (allow + hold + deny, deny + hold + allow, hold + allow + deny):
        ruleset = rules(text)
        assert asked(ruleset, sql("SELECT", "public.a")) == ("allow", "a")
        assert asked(ruleset, sql("UPDATE", "public.a")) == ("hold", "h")
        assert ruleset.judge(ANA, SHOP, sql("DELETE", "public.a")) == Deny("d", "never")


def test_a_hold_carries_approvers_timeout_and_reason() -> None:
    ruleset = rules(
        "- {name: h, hold: {approvers: ['group:oncall', ana@acme.com], timeout: 1h30m, reason: writes are seen by two}}"
    )
    verdict = ruleset.judge(BOT, SHOP, sql("UPDATE", "public.a"))
    assert verdict == Hold("h", ("group:oncall", "ana@acme.com"), 5400.0, "writes are seen by two")


def test_a_mask_rule_allows_nothing() -> None:
    ruleset = rules(
        "- {name: m, mask: [{detectors: [email]}]}\n- {name: r, commands: {kinds: [read]}, allow: true}\n"
        "- {name: h, commands: {verbs: [UPDATE]}, hold: {approvers: [eve]}}"
    )
    assert asked(ruleset, sql("INSERT", "public.a")) == DEFAULT
    read = ruleset.judge(ANA, SHOP, sql("SELECT", "public.a"))
    held = ruleset.judge(ANA, SHOP, sql("UPDATE", "public.a"))
    assert isinstance(read, Allow) and [mask.rule for mask in read.masks] == ["m"]
    assert isinstance(held, Hold) and [mask.rule for mask in held.masks] == ["m"]


def test_masks_of_allows_and_mask_rules_add_up_in_the_order_of_the_file() -> None:
    ruleset = rules(
        "- {name: one, mask: [{columns: [public.a.x], action: partial, keep: 2}]}\n"
        "- {name: two, allow: true, mask: [{detectors: [card], action: null}, {detectors: [email], text: '-'}]}\n"
        "- {name: three, who: {groups: [agents]}, mask: [{detectors: [email]}]}"
    )
    verdict = ruleset.judge(ANA, SHOP, sql("SELECT", "public.a"))
    assert isinstance(verdict, Allow)
    assert [(mask.rule, mask.action, mask.keep, mask.text) for mask in verdict.masks] == [
        ("one", "partial", 2, None),
        ("two", "null", 4, None),
        ("two", "redact", 4, "-"),
    ]


# -- session business ------------------------------------------------------------------------------------


def test_whoever_a_permit_speaks_of_may_connect_and_do_session_business() -> None:
    ruleset = rules(
        "- {name: r, on: {targets: [lab]}, commands: {kinds: [read]}, when: sql.has_limit, allow: true}\n"
        "- {name: h, on: {targets: [shop-prod]}, commands: {verbs: [UPDATE]}, hold: {approvers: [eve]}}"
    )
    for command in (CONNECT, sql("BEGIN", control=True), sql("SET", setting="search_path"), sql("COMMIT")):
        assert asked(ruleset, command, target=LAB) == ("allow", "r")
        assert asked(ruleset, command, target=SHOP) == ("allow", "h")
        assert asked(ruleset, command, target=BOX) == DEFAULT
    assert asked(ruleset, sql("SELECT", "public.a"), target=LAB) == DEFAULT


@pytest.mark.parametrize("names", ["verbs: [CONNECT]", "kinds: [session]"])
def test_a_deny_that_names_it_keeps_people_out(names: str) -> None:
    ruleset = rules(
        f"- {{name: all, allow: true}}\n- {{name: d, who: {{groups: [dba]}}, commands: {{{names}}}, deny: true}}"
    )
    assert asked(ruleset, CONNECT, ANA) == ("deny", "d")
    assert asked(ruleset, CONNECT, BOT) == ("allow", "all")
    assert asked(ruleset, sql("BEGIN"), ANA) == (("deny", "d") if "kinds" in names else ("allow", "all"))


def test_a_hold_that_names_connecting_holds_it() -> None:
    ruleset = rules("- {name: all, allow: true}\n- {name: h, commands: {verbs: [CONNECT]}, hold: {approvers: [eve]}}")
    assert asked(ruleset, CONNECT) == ("hold", "h")
    assert asked(ruleset, sql("BEGIN")) == ("allow", "all")


def test_a_permit_that_names_session_business_lets_nobody_in_by_who_and_on_alone() -> None:
    ruleset = rules("- {name: day, commands: {kinds: [session, read]}, when: time.hour < 18, allow: true}")
    assert asked(ruleset, CONNECT) == ("allow", "day")
    assert word(ruleset.judge(ANA, SHOP, CONNECT, NOON + 8 * 3600)) == "deny"


def test_a_deny_of_who_where_and_when_alone_denies_connecting_too() -> None:
    ruleset = rules("- {name: all, allow: true}\n- {name: night, when: 'time.hour < 8', deny: {reason: come by day}}")
    assert asked(ruleset, CONNECT) == ("allow", "all")
    assert ruleset.judge(ANA, SHOP, CONNECT, NOON - 6 * 3600) == Deny("night", "come by day")
    assert word(ruleset.judge(ANA, SHOP, sql("COMMIT"), NOON - 6 * 3600)) == "deny"


@pytest.mark.parametrize("when", ["!sql.has_limit", "command.kind != 'read'"])
def test_a_deny_about_commands_does_not_deny_connecting_by_accident(when: str) -> None:
    ruleset = rules(f'- {{name: all, allow: true}}\n- {{name: d, when: "{when}", deny: true}}')
    assert asked(ruleset, CONNECT) == ("allow", "all")
    assert asked(ruleset, sql("UPDATE", "public.a")) == ("deny", "d")


def test_session_business_carries_every_mask_of_the_session() -> None:
    ruleset = rules(
        "- {name: r, commands: {kinds: [read]}, allow: true}\n"
        "- {name: m, commands: {objects: [hr.pay]}, mask: [{detectors: [email]}]}\n"
        "- {name: n, on: {targets: [lab]}, mask: [{detectors: [card]}]}"
    )
    verdict = ruleset.judge(ANA, SHOP, sql("COMMIT"))
    assert isinstance(verdict, Allow) and [mask.rule for mask in verdict.masks] == ["m"]


@pytest.mark.parametrize("setting", ["role", "SESSION_AUTHORIZATION", "standard_conforming_strings", "pgaudit.log"])
def test_a_dangerous_setting_stays_under_the_rules(setting: str) -> None:
    readers = rules("- {name: r, commands: {kinds: [read]}, allow: true}")
    setters = rules("- {name: r, commands: {kinds: [session]}, when: 'sql.setting == \"role\"', allow: true}")
    assert asked(readers, sql("SET", setting="work_mem")) == ("allow", "r")
    assert asked(readers, sql("SET", setting=setting)) == DEFAULT
    assert asked(readers, sql("SET", setting=(setting, "x"))) == DEFAULT
    assert asked(setters, sql("SET", setting=setting)) == (("allow", "r") if setting == "role" else DEFAULT)


def test_settings_are_listed_in_lower_case() -> None:
    assert {name.lower() for name in SETTINGS_UNDER_RULES} == SETTINGS_UNDER_RULES


@pytest.mark.parametrize(
    "facts",
    [
        {"tables_read": ("hr.pay",)},
        {"tables_written": ("hr.pay",)},
        {"tables": ("hr.pay",)},
        {"opaque": True},
        {"moves_data": True},
    ],
)
def test_a_select_of_kind_session_is_not_free(facts: Mapping[str, object]) -> None:
    # SELECT email, set_config('a.b', 'c', false) FROM hr.pay is of kind session.
    command = Command("postgres", "SELECT", "session", "...", facts=facts)
    assert not is_session_business(command)
    ruleset = rules("- {name: r, commands: {kinds: [read], objects: ['public.*']}, allow: true}")
    assert asked(ruleset, command) == DEFAULT
    assert not is_session_business(Command("postgres", "SELECT", "session", "...", objects=("hr.pay",)))


# -- parts -----------------------------------------------------------------------------------------------


def test_parts_are_decided_one_by_one_and_the_strictest_stands() -> None:
    ruleset = rules(
        "- {name: r, commands: {kinds: [read]}, allow: true}\n"
        "- {name: h, commands: {verbs: [UPDATE]}, hold: {approvers: [eve]}}\n"
        "- {name: d, commands: {verbs: [DROP TABLE]}, deny: true}\n"
        "- {name: m, commands: {objects: [public.a]}, mask: [{detectors: [email]}]}"
    )
    select, update, drop = sql("SELECT", "public.a"), sql("UPDATE", "public.b"), sql("DROP TABLE", "public.c")
    assert asked(ruleset, several(select, sql("SELECT"))) == ("allow", "r")
    held = ruleset.judge(ANA, SHOP, several(sql("BEGIN"), select, update))
    assert isinstance(held, Hold) and held.rule == "h" and [mask.rule for mask in held.masks] == ["m"]
    assert asked(ruleset, several(select, update, drop)) == ("deny", "d")
    assert asked(ruleset, several(select, sql("INSERT", "public.a"))) == DEFAULT
    assert asked(ruleset, several(select, several(select, drop))) == ("deny", "d")


def test_multi_is_true_for_each_of_several_parts() -> None:
    ruleset = rules("- {name: r, allow: true}\n- {name: d, commands: {kinds: [read]}, when: sql.multi, deny: true}")
    assert asked(ruleset, sql("SELECT")) == ("allow", "r")
    assert asked(ruleset, several(sql("SELECT"))) == ("allow", "r")
    assert asked(ruleset, several(sql("SELECT"), sql("SELECT"))) == ("deny", "d")


# -- conditions that fail --------------------------------------------------------------------------------

FAILS = "when: 'sql.tables.size() < 2 || sql.tables[5] == \"x\"'"


@pytest.mark.parametrize(
    "says", ["allow: true", "deny: true", "hold: {approvers: [eve]}", "mask: [{detectors: [email]}]"]
)
def test_a_condition_that_fails_denies_the_whole_decision(says: str) -> None:
    ruleset = rules(f"- {{name: all, who: {{groups: [dba]}}, allow: true}}\n- {{name: r, {FAILS}, {says}}}")
    verdict = ruleset.judge(ANA, SHOP, sql("SELECT", "public.a", "public.b"))
    assert isinstance(verdict, Deny) and verdict.rule == POLICY_ERROR and "rule r " in verdict.reason


def test_a_condition_is_not_reached_where_the_rest_of_the_rule_does_not_match() -> None:
    ruleset = rules(f"- {{name: all, allow: true}}\n- {{name: r, commands: {{verbs: [UPDATE]}}, {FAILS}, deny: true}}")
    assert asked(ruleset, sql("SELECT", "public.a", "public.b")) == ("allow", "all")
    assert asked(ruleset, sql("UPDATE", "public.a", "public.b")) == ("deny", POLICY_ERROR)


def test_facts_of_a_wrong_type_deny() -> None:
    ruleset = rules("- {name: r, when: 'sql.functions.size() == 0', allow: true}")
    assert asked(ruleset, sql("SELECT")) == ("allow", "r")
    assert asked(ruleset, sql("SELECT", functions="now")) == ("deny", POLICY_ERROR)
    assert asked(ruleset, sql("SELECT", functions=(1,))) == ("deny", POLICY_ERROR)
