"""What load_rules refuses, and the line that it names."""

from __future__ import annotations

import re

import pytest

from proxy.core.errors import ConfigError
from proxy.core.verdict import Hold
from proxy.policy.conditions import CONDITION_LIMIT
from proxy.policy.nodes import ENTRIES_LIMIT, FILE_LIMIT, PROBLEMS_LIMIT, TEXT_LIMIT
from proxy.policy.rule_file import RULES_LIMIT, duration_seconds
from proxy.policy.rules import load_rules
from tests.policy.rules_kit import ANA, SHOP, rules, sql


def errors(text: str, **kwargs: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        rules(text, **kwargs)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


# Each: the text under 'rules:' (which is line 1), the line, a part of the message.
MISTAKES: list[tuple[str, int, str]] = [
    # shape
    ("- name: r\n  alow: true\n", 3, "unknown key 'alow' in the rule (did you mean 'allow'?)"),
    ("- name: r\n  allow: true\n  allow: true\n", 4, "there twice"),
    ("- name: r\n  allow: true\n- just text\n", 4, "must be a mapping"),
    ("- allow: true\n", 2, "the rule has no name"),
    ("- name: a b\n  allow: true\n", 2, "must be letters"),
    ("- name: ''\n  allow: true\n", 2, "is empty"),
    ("- name: policy-error\n  allow: true\n", 2, "the gate's own"),
    ("- {name: r, allow: true}\n- {name: r, who: {groups: [a]}, deny: true}\n", 3, "is taken by the rule in line 2"),
    ("- name: r\n", 2, "says none of allow"),
    ("- name: r\n  allow: true\n  deny: true\n", 2, "says allow and deny"),
    ("- name: r\n  allow: false\n", 3, "allow: false is no rule"),
    ("- name: r\n  allow: maybe\n", 3, "must be true or false"),
    ("- name: r\n  deny: false\n", 3, "deny: false is no rule"),
    ("- name: r\n  deny: {because: x}\n", 3, "unknown key 'because' in deny"),
    ("- name: r\n  deny: true\n  mask: [{detectors: [email]}]\n", 4, "a deny has nothing to mask"),
    # who, on
    ("- name: r\n  who: {group: [a]}\n  allow: true\n", 3, "unknown key 'group' in who (did you mean 'groups'?)"),
    ("- name: r\n  who: {}\n  allow: true\n", 3, "who is empty"),
    ("- name: r\n  who: {groups: []}\n  allow: true\n", 3, "empty list"),
    ("- name: r\n  who: {groups: a}\n  allow: true\n", 3, "must be a list"),
    ("- name: r\n  who:\n    groups:\n      - a\n      - a\n  allow: true\n", 6, "'a' is twice"),
    ("- name: r\n  who: {groups: [7]}\n  allow: true\n", 3, "must be text (quote it)"),
    (
        "- name: r\n  on:\n    targets:\n      - lab\n      - shopp\n  allow: true\n",
        6,
        "no configured target is called",
    ),
    ("- name: r\n  on: {protocols: [postgre]}\n  allow: true\n", 3, "unknown protocol 'postgre' (did you mean"),
    ("- name: r\n  on: {labels: {env: [prod, prod]}}\n  allow: true\n", 3, "is twice"),
    # commands
    ("- name: r\n  commands: {kinds: [reads]}\n  allow: true\n", 3, "unknown kind 'reads' (did you mean 'read'?)"),
    ("- name: r\n  commands: {verbs: [SELCT]}\n  allow: true\n", 3, "unknown verb 'SELCT' (did you mean 'SELECT'?)"),
    ("- name: r\n  on: {targets: [box]}\n  commands: {verbs: [SELECT]}\n  allow: true\n", 4, "unknown verb 'SELECT'"),
    ("- name: r\n  commands: {opaque: maybe}\n  allow: true\n", 3, "commands.opaque must be"),
    ("- name: r\n  commands: {opaque: true}\n  deny: true\n", 3, "a deny speaks of opaque commands anyway"),
    # hold
    ("- name: r\n  hold: {}\n", 3, "hold.approvers is missing"),
    ("- name: r\n  hold: {approvers: []}\n", 3, "empty list"),
    ("- name: r\n  hold: {approvers: ['group:']}\n", 3, "must be a subject or group:NAME"),
    ("- name: r\n  hold: {approvers: ['*@acme.com']}\n", 3, "must be a subject or group:NAME"),
    ("- name: r\n  hold:\n    approvers: [a]\n    timeout: ten\n", 5, "must be like 90s"),
    ("- name: r\n  hold: {approvers: [a], timeout: 10}\n", 3, "must be text"),
    ("- name: r\n  hold: {approvers: [a], timeout: 0s}\n", 3, "must be like 90s"),
    ("- name: r\n  hold: {approvers: [a], timeout: 24h1s}\n", 3, "must be like 90s"),
    # masks
    ("- {name: a, allow: true}\n- name: r\n  mask: []\n", 4, "empty list"),
    ("- {name: a, allow: true}\n- name: r\n  mask:\n    - {action: redact}\n", 5, "neither columns nor detectors"),
    (
        "- {name: a, allow: true}\n- name: r\n  mask: [{detectors: [mail]}]\n",
        4,
        "unknown detector 'mail' (did you mean",
    ),
    ("- {name: a, allow: true}\n- name: r\n  mask: [{detectors: [email], action: hide}]\n", 4, "unknown action 'hide'"),
    ("- {name: a, allow: true}\n- name: r\n  mask: [{columns: [t.email]}]\n", 4, "must be schema.table.column"),
    (
        "- {name: a, allow: true}\n- name: r\n  mask: [{detectors: [email], keep: 4}]\n",
        4,
        "keep is for the action partial",
    ),
    (
        "- {name: a, allow: true}\n- name: r\n  mask: [{detectors: [email], action: partial, keep: 65}]\n",
        4,
        "from 1 to 64",
    ),
    (
        "- {name: a, allow: true}\n- name: r\n  mask: [{detectors: [email], action: hash, text: x}]\n",
        4,
        "text is for the actions",
    ),
    # conditions
    ("- name: r\n  when: sql.has_limt\n  allow: true\n", 3, "condition: unknown name 'sql.has_limt'"),
    ("- name: r\n  when: identity.subject\n  allow: true\n", 3, "must be true or false, but this is of type string"),
    ("- name: r\n  when: time.hour == '8'\n  allow: true\n", 3, "no matching overload"),
    ("- name: r\n  when: |\n    sql.has_limit\n    && time.hour >\n  allow: true\n", 5, "mismatched input"),
    ("- name: r\n  when: |\n    sql.has_limit\n    && nobody\n  allow: true\n", 5, "unknown name 'nobody'"),
    ("- name: r\n  when: 'true'\n  allow: true\n", 3, "reads no variable"),
    ("- name: r\n  when: ''\n  allow: true\n", 3, "when must be a condition"),
    ("- name: r\n  when: [a]\n  allow: true\n", 3, "when must be a condition"),
    ("- name: r\n  when: 'sql.has_limit && command.text.matches(\"(\")'\n  allow: true\n", 3, "missing )"),
    ("- name: r\n  when: 'target.labels.env == \"prod\"'\n  allow: true\n", 3, "fails on target 'box'"),
    ("- name: r\n  when: 'sql.tables[0] == \"a\"'\n  allow: true\n", 3, "for a command without facts"),
    # rules without an effect
    ("- name: r\n  on: {targets: [box], labels: {env: prod}}\n  allow: true\n", 2, "'on' matches no configured target"),
    ("- {name: a, allow: true}\n- {name: b, allow: true}\n", 3, "it repeats 'a' of line 2"),
    ("- {name: a, allow: true}\n- {name: b, when: sql.has_limit, allow: true}\n", 3, "it repeats 'a' of line 2"),
    ("- {name: a, deny: true}\n- {name: b, who: {groups: [g]}, deny: {reason: x}}\n", 3, "'a' of line 2 denies all"),
    (
        "- {name: a, who: {groups: [g]}, on: {targets: [lab]}, allow: true}\n"
        "- {name: d, who: {groups: ['*']}, deny: true}",
        2,
        "'d' of line 3 denies all",
    ),
    (
        "- {name: x, commands: {kinds: [read]}, allow: true}\n"
        "- {name: a, commands: {kinds: [write], verbs: [UPDATE]}, hold: {approvers: [a]}}\n"
        "- {name: d, commands: {kinds: [write, delete]}, deny: true}",
        3,
        "'d' of line 4 denies all",
    ),
    ("- name: m\n  mask: [{detectors: [email]}]\n", 2, "no rule allows or holds anything where it masks"),
    (
        "- {name: a, on: {targets: [lab]}, allow: true}\n"
        "- {name: m, on: {targets: [box]}, mask: [{detectors: [email]}]}",
        3,
        "no rule allows or holds anything",
    ),
]


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES, ids=[f"{n}" for n in range(len(MISTAKES))])
def test_a_mistake_is_told_with_its_line(text: str, line: int, message: str) -> None:
    found = errors(text)
    assert any(error.startswith(f"rules.yaml:{line}: ") and message in error for error in found), found
    assert len(found) == 1, found


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "is empty"),
        ("timezone: UTC\n", 1, "the key 'rules' is missing"),
        ("rules: 7\n", 1, "must be a list"),
        ("rules:\n", 2, "must be a list"),  # where YAML says that the empty value stands
        ("rules: []\nrulez: []\n", 2, "unknown key 'rulez'"),
        ("rules: []\ntimezone: Mars/Olympus\n", 2, "unknown time zone"),
        ("rules: []\ntimezone: ../../etc/passwd\n", 2, "unknown time zone"),
        ("rules: [\n", 2, "expected the node content"),
        ("rules: []\n---\nrules: []\n", 2, "another document"),
        ("rules: !!python/object:os.system []\n", 1, None),
        ("rules: \x00\n", 1, "not YAML that can be read"),
        ("rules: " + "[" * 5000, 1, None),
    ],
)
def test_a_file_that_is_no_rule_file(text: str, line: int, message: str | None) -> None:
    if message is None:  # nothing is constructed from a tag, and depth is refused: never a crash
        try:
            load_rules(text, "rules.yaml", None, verbs={}, detectors=())
        except ConfigError as error:
            assert str(error).startswith("rules.yaml:")
        return
    with pytest.raises(ConfigError, match=rf"^rules\.yaml:{line}: .*{re.escape(message)}"):
        load_rules(text, "rules.yaml", None, verbs={}, detectors=())


def test_all_mistakes_are_told_at_once_in_the_order_of_the_lines() -> None:
    found = errors("- name: a\n  allow: false\n- name: b\n  when: nobody\n  allow: true\n- allow: true\n")
    assert [error.split(":")[1] for error in found] == ["3", "5", "7"]
    many = errors("".join(f"- name: r{n}\n" for n in range(PROBLEMS_LIMIT + 5)))
    assert len(many) == PROBLEMS_LIMIT + 1 and many[-1].endswith("and 5 more")


def test_without_targets_what_depends_on_them_is_not_checked() -> None:
    text = "- {name: r, on: {targets: [nowhere]}, when: 'target.labels.env == \"x\"', allow: true}"
    assert rules(text, targets=None).rules[0].name == "r"
    assert len(errors("- {name: a, allow: true}\n- {name: b, allow: true}", targets=None)) == 1


def test_a_rule_with_objects_is_not_called_dead_by_a_deny_with_objects() -> None:
    # Reads of no table at all still pass the allow.
    text = (
        "- {name: a, commands: {objects: ['public.*']}, allow: true}\n"
        "- {name: d, commands: {objects: ['*']}, deny: true}"
    )
    assert len(rules(text).rules) == 2


@pytest.mark.parametrize(
    ("wide", "narrow", "dead"),
    [
        ("a*", "ab", True),
        ("a*", "a?", True),
        ("a*", "a*b", True),
        ("a?", "a*", False),
        ("a?", "ab", False),  # true, but not proved: '?' and '[' of the wide side prove nothing
        ("[ab]", "[ab]", True),
        ("a*b", "a*", False),
    ],
)
def test_globs_are_compared_conservatively(wide: str, narrow: str, dead: bool) -> None:
    text = f"- {{name: a, who: {{groups: ['{narrow}']}}, allow: true}}\n"
    text += f"- {{name: d, who: {{groups: ['{wide}']}}, deny: true}}"
    if dead:
        assert "denies all it speaks of" in errors(text)[0]
    else:
        assert len(rules(text).rules) == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1d", 86400), ("0s", 0), ("", None), ("10", None), ("1m1h", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert duration_seconds(text) == seconds


def test_the_longest_hold_is_a_day_and_the_default_ten_minutes() -> None:
    def timeout(text: str) -> float:
        verdict = rules(f"- {{name: h, hold: {{approvers: [a]{text}}}}}").judge(ANA, SHOP, sql("SELECT"))
        assert isinstance(verdict, Hold)
        return verdict.timeout_seconds

    assert timeout(", timeout: 24h") == 86400
    assert timeout("") == 600


# -- limits: at the limit, and one more ------------------------------------------------------------------


def test_file_limit() -> None:
    text = "rules: []\n#"
    assert rules(text + "x" * (FILE_LIMIT - len(text))).rules == ()
    assert "larger than" in errors(text + "x" * (FILE_LIMIT - len(text) + 1))[0]


def test_rules_limit() -> None:
    text = "rules:\n" + "".join(f"- {{name: r{n}, who: {{groups: [g{n}]}}, allow: true}}\n" for n in range(RULES_LIMIT))
    assert len(rules(text).rules) == RULES_LIMIT
    assert "more than" in errors(text + "- {name: more, who: {groups: [more]}, allow: true}\n")[0]


def test_entries_and_text_limits() -> None:
    names = [f"g{n}" for n in range(ENTRIES_LIMIT)]
    assert rules(f"- {{name: r, who: {{groups: [{', '.join(names)}]}}, allow: true}}").rules
    assert "more than" in errors(f"- {{name: r, who: {{groups: [more, {', '.join(names)}]}}, allow: true}}")[0]
    assert rules(f"- {{name: r, who: {{groups: [{'g' * TEXT_LIMIT}]}}, allow: true}}").rules
    assert "longer than" in errors(f"- {{name: r, who: {{groups: [{'g' * (TEXT_LIMIT + 1)}]}}, allow: true}}")[0]


def test_condition_limit() -> None:
    start = "sql.has_limit || command.text == "
    for size, good in ((CONDITION_LIMIT, True), (CONDITION_LIMIT + 1, False)):
        text = f'- name: r\n  when: {start}"{"x" * (size - len(start) - 2)}"\n  allow: true\n'
        if good:
            assert rules(text).rules
        else:
            assert "longer than" in errors(text)[0]


# -- the revision ----------------------------------------------------------------------------------------


def test_the_revision_names_what_the_rules_say_and_not_how_they_are_written() -> None:
    one = rules("- {name: r, who: {groups: [a, b]}, allow: true}").revision
    assert re.fullmatch(r"[0-9a-f]{16}", one)
    assert rules("# a comment\n- name: 'r'\n  allow: true\n  who:\n    groups: [a, \"b\"]\n").revision == one
    for other in (
        "- {name: s, who: {groups: [a, b]}, allow: true}",
        "- {name: r, who: {groups: [a]}, allow: true}",
        "- {name: r, who: {groups: [a, b]}, deny: true}",
        "- {name: r, who: {groups: [a, b]}, when: sql.has_limit, allow: true}",
        "timezone: Europe/Vienna\nrules:\n- {name: r, who: {groups: [a, b]}, allow: true}",
    ):
        assert rules(other).revision != one
