"""The rules on commands as PostgreSQL's protocol really reads them: text in, verdict out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from protocols.postgres.meaning import Known
from protocols.postgres.reading import CommandReader
from protocols.postgres.verbs import VERBS
from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.statement import Statement
from proxy.policy.conditions import Scene, compile_condition
from proxy.policy.rules import RuleSet, load_rules
from proxy.policy.sql import read_sql

SHOP = Target("shop", "postgres", database="shop")
BOT = Identity("bob@acme.com", frozenset({"agents"}))

RULES = """
rules:
  - name: read
    who: {groups: [agents]}
    commands: {kinds: [read], objects: ["public.*"]}
    allow: true
  - name: update
    commands: {verbs: [UPDATE]}
    when: '!sql.where_missing'
    hold: {approvers: [ana@acme.com]}
  - name: no-where
    commands: {verbs: [UPDATE, DELETE]}
    when: sql.where_missing
    deny: {reason: "every row? name the ones you mean"}
  - name: no-salaries
    commands: {kinds: [read]}
    when: 'sql.columns.exists(c, c.endsWith(".salary"))'
    deny: true
"""


class World:
    """A catalogue in which every bare name is a table of public."""

    version = 1

    def resolve(self, name: str, search_path: tuple[str, ...] | None) -> tuple[str, ...]:
        return (name,) if "." in name else (f"public.{name}",)

    def bases(self, name: str) -> frozenset[str]:
        return frozenset()

    def known(self, name: str) -> Known:
        return Known(None)

    def hides(self, name: str) -> bool:
        return False

    def function_name(self, oid: int) -> str | None:
        return None


def to_command(text: str) -> Command:
    def lookup(verb: str, name: str) -> Sequence[Statement] | None:
        return None

    return CommandReader(World()).command(read_sql(text), text, b"", lookup, None)


@pytest.fixture(scope="module")
def ruleset() -> RuleSet:
    return load_rules(RULES, "rules.yaml", [SHOP], verbs={"postgres": VERBS}, detectors=())


@pytest.mark.parametrize(
    ("text", "verdict", "rule"),
    [
        ("select * from customers", "Allow", "read"),
        ("select 1", "Allow", "read"),
        ("explain select * from customers", "Allow", "read"),
        ("select * from customers join hr.pay using (id)", "Deny", "default-deny"),
        ("select e.salary from emp e", "Deny", "no-salaries"),
        ("select nobody_knows()", "Deny", "default-deny"),
        ("update customers set a = 1 where id = 2", "Hold", "update"),
        ("update customers set a = 1 where 1 = 1", "Deny", "no-where"),
        ("delete from customers", "Deny", "no-where"),
        ("do $$ begin end $$", "Deny", "default-deny"),
        ("selec 1", "Deny", "default-deny"),
        ("copy customers to stdout", "Deny", "default-deny"),
        ("prepare x as select * from hr.pay", "Deny", "default-deny"),
        ("execute x", "Deny", "default-deny"),
        ("select 1; update customers set a = 1 where id = 2", "Hold", "update"),
        ("begin; select 1; select * from hr.pay; commit", "Deny", "default-deny"),
        # session business: what every driver and pg_dump send
        ("", "Allow", "read"),
        ("begin", "Allow", "read"),
        ("set work_mem = '4MB'", "Allow", "read"),
        ("set row_security = off", "Allow", "read"),
        ("select pg_catalog.set_config('search_path', '', false)", "Allow", "read"),
        ("discard all", "Allow", "read"),
        # and what only looks like it
        ("set role admin", "Deny", "default-deny"),
        ("set session authorization admin", "Deny", "default-deny"),
        ("select set_config('role', 'admin', false)", "Deny", "default-deny"),
        ("set standard_conforming_strings = off", "Deny", "default-deny"),
        ("select email, set_config('a.b', 'c', false) from hr.pay", "Deny", "default-deny"),
        ("select set_config('a.b', (select email from hr.pay), false)", "Deny", "default-deny"),
    ],
)
def test_a_text_is_decided(ruleset: RuleSet, text: str, verdict: str, rule: str) -> None:
    found = ruleset.judge(BOT, SHOP, to_command(text))
    assert (type(found).__name__, found.rule) == (verdict, rule)


@pytest.mark.parametrize(
    ("text", "limited"),
    [("SELECT * FROM t", False), ("SELECT * FROM t LIMIT 5", True), ("SELECT * FROM t LIMIT 0", True)],
)
def test_a_statement_has_a_limit_only_if_it_says_so(text: str, limited: bool) -> None:
    condition = compile_condition("sql.has_limit")
    assert condition.holds(Scene(BOT, SHOP, to_command(text), 0.0)) is limited
