"""Conditions: what each variable is made of, and that whatever fails is an error and never an answer."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.statement import ColumnRef
from proxy.policy.conditions import (
    FACT_KEYS,
    VARIABLES,
    Condition,
    ConditionError,
    ConditionSyntaxError,
    Scene,
    compile_condition,
    dry_run,
)
from tests.policy.rules_kit import ANA, BOT, NOON, SHOP, sql


def holds(source: str, command: Command | None = None, identity: Identity = ANA, target: Target = SHOP) -> bool:
    condition = compile_condition(source)
    return condition.holds(Scene(identity, target, command or sql("SELECT", "public.a"), NOON))


UPDATE: dict[str, Any] = {"where": "always_true"}


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("identity.subject == 'ana@acme.com' && identity.issuer == 'https://id.acme.com'", None),
        ("identity.groups == ['dba', 'staff'] && identity.agents == []", None),
        ("target.name == 'shop-prod' && target.protocol == 'postgres' && target.database == 'shop'", None),
        ("target.labels == {'env': 'prod'} && target.labels.env == 'prod' && !has(target.labels.tier)", None),
        ("command.verb == 'SELECT' && command.kind == 'read' && command.exact", None),
        ("command.text.lowerAscii().matches('^select\\\\b') && command.objects == ['public.a']", None),
        ("sql.tables_read == ['public.a'] && sql.tables_written == [] && sql.tables == ['public.a']", None),
        ("sql.columns == ['a.x', '?.y', 'z']", sql("SELECT", columns=(ColumnRef("a", "x"), ColumnRef(None, "y"), "z"))),
        ("'now' in sql.functions", sql("SELECT", functions=("now",))),
        ("sql.where == 'always_true' && sql.where_missing", sql("UPDATE", "public.a", **UPDATE)),
        ("sql.where == 'none' && !sql.where_missing", sql("SELECT", "public.a", where="none")),
        ("sql.where == '' && !sql.where_missing", sql("SELECT", where=None)),
        ("sql.where_missing", sql("SELECT", where_missing=True)),
        ("sql.has_limit && sql.limit == 5", sql("SELECT", limit=5)),
        ("sql.limit == 9223372036854775807", sql("SELECT", limit=10**30)),
        ("!sql.has_limit && sql.limit == 0", sql("SELECT", limit=None)),
        ("!sql.multi && !sql.control && !sql.opaque && !sql.moves_data", None),
        ("sql.multi && sql.control && sql.opaque && sql.moves_data",
         sql("SELECT", multi=True, control="begin", opaque=True, moves_data=True)),
        ("sql.setting == 'role' && sql.setting_value == 'root'", sql("SET", setting=("ROLE", "root"))),
        ("sql.setting == 'role' && sql.setting_value == ''", sql("SET", setting="role")),
        ("sql.setting == '' && sql.setting_value == ''", None),
        ("time.hour == 12 && time.minute == 0 && time.weekday == 1 && time.unix == 1767614400", None),
        ("time.now == timestamp('2026-01-05T12:00:00Z') && time.now.getHours('Europe/Vienna') == 13", None),
    ],
)  # fmt: skip
def test_what_the_variables_are_made_of(source: str, command: Command | None) -> None:
    assert holds(source, command)
    assert not holds(f"!({source})", command)


def test_the_chain_of_agents_is_in_order() -> None:
    assert holds("identity.agents == ['planner', 'claude-code']", identity=BOT)


def test_a_command_without_facts_reads_as_zero_values() -> None:
    bare = Command("ssh", "EXEC", "execute", "ls", exact=False)
    assert holds(
        "sql.tables == [] && sql.columns == [] && sql.where == '' && sql.limit == 0 && !sql.opaque && !command.exact",
        bare,
    )


def test_every_variable_can_be_read_and_is_reported_as_read() -> None:
    scene = Scene(ANA, SHOP, sql("SELECT", "public.a"), NOON)
    for name in VARIABLES:
        condition = compile_condition(f"[{name}] == [{name}]")
        assert condition.holds(scene) and condition.reads == {name}


def test_every_fact_of_a_variable_is_in_the_keys_of_the_cache() -> None:
    class Watched(dict[str, object]):
        seen: set[str] = set()  # noqa: RUF012 - one test

        def get(self, key: str, default: object = None) -> object:
            self.seen.add(key)
            return super().get(key, default)

        def __contains__(self, key: object) -> bool:
            self.seen.add(str(key))
            return super().__contains__(key)

    scene = Scene(ANA, SHOP, Command("postgres", "UPDATE", "write", "", facts=Watched()), NOON)
    for name in VARIABLES:
        scene.value(name)
    assert Watched.seen == set(FACT_KEYS)


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("identity // who\n  .groups.size() == 0", {"identity.groups"}),
        ("sql.tables.all(time, time != '')", {"sql.tables"}),
        ("sql.tables_read.size() == 0", {"sql.tables_read"}),
        ("command.text == 'x' || time . hour > 3", {"command.text", "time.hour"}),
    ],
)
def test_what_is_read_is_taken_from_the_checked_form(source: str, reads: set[str]) -> None:
    assert compile_condition(source).reads == reads


@pytest.mark.parametrize("source", ["sql", "sql.table", "Sql.tables == []", "request.auth", "facts.tables == []"])
def test_an_unknown_name_is_an_error_at_load(source: str) -> None:
    with pytest.raises(ConditionSyntaxError, match="unknown name"):
        compile_condition(source)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("target.labels.tier == 'gold'", "NOT_FOUND"),
        ("sql.tables[9] == 'x'", "UNKNOWN"),
        ("1 / time.minute == 1", "INVALID_ARGUMENT"),
        ("command.text.matches(command.verb + '(')", "INVALID_ARGUMENT"),
        ("dyn(command.text)", None),
    ],
)
def test_what_does_not_evaluate_is_an_error_and_no_answer(source: str, code: str | None) -> None:
    if code is None:
        with pytest.raises(ConditionSyntaxError):
            compile_condition(source)
        return
    with pytest.raises(ConditionError) as caught:
        holds(source)
    assert caught.value.code == code


def test_an_error_on_one_side_of_an_or_does_not_hide_the_other() -> None:
    # CEL's own logic: true || error is true, whatever the order.
    assert holds("sql.tables[9] == 'x' || command.verb == 'SELECT'")


def test_text_that_is_no_text_is_an_error() -> None:
    with pytest.raises(ConditionError):
        holds("command.text == 'x'", sql("SELECT", text="\udcff"))


def test_a_dry_run_finds_what_would_fail_on_a_command_without_facts() -> None:
    def run(source: str) -> str | None:
        condition: Condition = compile_condition(source)
        return dry_run(condition, SHOP)

    assert run("sql.tables.size() == 0 || sql.tables[0] == 'x'") is None
    assert "index" in str(run("sql.tables[0] == 'x'"))
    assert "tier" in str(run("target.labels.tier == 'x'"))
