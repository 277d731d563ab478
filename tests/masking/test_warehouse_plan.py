"""Rules that are shared by databases and warehouses: which patterns speak of which, in results, errors and refusals."""

from __future__ import annotations

import pytest

from proxy.core.events import Column, Command
from proxy.core.verdict import Mask
from proxy.masking import Masking
from proxy.policy.bigquery import analyse
from tests.masking.world import sql

MASKING = Masking(b"k" * 32)
SHORT = Mask("short", columns=("cust.email",))
NAMED = Mask("named", columns=("public.cust.email",))
PATH = Mask("path", columns=("p.public.cust.email",))
BELOW = Mask("below", columns=("p.public.people.home.*",))
MIXED = Mask("mixed", columns=("p.hr.staff.name", "public.orders.total"))
ALL = (SHORT, NAMED, PATH, BELOW, MIXED)

QUERY = Command("bigquery", "poll", "session", "")
SELECT = Command("postgres", "SELECT", "read", "")


def masked_by(masks: tuple[Mask, ...], command: Command, *origins: str) -> str | None:
    plan = MASKING.plan(masks, command, (Column("c", origins),))
    return None if plan is None else plan.rules[0]


@pytest.mark.parametrize(
    ("origin", "rule"),
    [
        ("p.public.cust.email", "short"),
        ("q.other.cust.email", "short"),
        ("q.other.Cust.EMAIL", "short"),
        ("p.public.cust.email.*", "short"),
        ("p.public.cust.*", "short"),
        ("p.public.cust.name", None),
        ("p.public.people.home.street", "below"),
        ("p.public.people.home.geo.lat", "below"),
        ("p.public.people.*", "below"),
        ("p.public.people.home.*", "below"),
        ("p.public.people.age", None),
        ("q.public.people.home.street", None),
        ("p.hr.staff.name", "mixed"),
        ("q.hr.staff.name", None),
        ("q.public.orders.total", "mixed"),
        ("p.public.cus*.email", "short"),
        ("p..cust.email", "short"),
    ],
)
def test_of_a_warehouse_all_patterns_speak(origin: str, rule: str | None) -> None:
    assert masked_by(ALL, QUERY, origin) == rule


@pytest.mark.parametrize(
    ("origin", "rule"),
    [
        ("public.cust.email", "short"),
        ("other.cust.email", "short"),
        ("public.orders.total", "mixed"),
        ("hr.staff.name", None),
        ("public.people.home", None),
        ("p.public.cust", None),
    ],
)
def test_of_a_database_those_with_its_parts(origin: str, rule: str | None) -> None:
    assert masked_by(ALL, SELECT, origin) == rule


def test_what_nobody_can_tell_is_masked_where_a_pattern_may_speak_of_it() -> None:
    column = (Column("c", None),)
    for command, masks, rule in [
        (QUERY, (PATH,), "path"),
        (QUERY, (NAMED,), "named"),
        (SELECT, (NAMED,), "named"),
        (SELECT, (PATH, NAMED), "named"),
    ]:
        plan = MASKING.plan(masks, command, column)
        assert plan is not None and plan.rules == {0: rule}
    assert MASKING.plan((PATH, BELOW), SELECT, column) is None  # no database has such a column
    detecting = Mask("find", detectors=("email",))
    assert MASKING.plan((detecting,), QUERY, column) is not None


def test_the_first_rule_of_several_masks() -> None:
    assert masked_by((PATH, SHORT), QUERY, "p.public.cust.email") == "path"
    assert masked_by((SHORT, PATH), QUERY, "p.public.cust.email") == "short"


def test_refusals_go_by_the_protocol_of_the_command() -> None:
    text = "create table public.x as select email from public.cust"
    read = analyse(text, "p", None)
    lake = Command("bigquery", "define", "define", text, facts={"warehouse": read.statements})
    shop = sql("create table x as select email from cust")
    for masks, of_lake, of_shop in [((PATH,), True, False), ((NAMED,), True, True), ((BELOW,), False, False)]:
        assert (MASKING.guard(masks, lake) is not None) is of_lake
        assert (MASKING.guard(masks, shop) is not None) is of_shop


def test_a_request_without_sql_passes_under_masks() -> None:
    for verb in ("inspect", "poll", "cancel", "destroy", "session", "upload"):
        command = Command("bigquery", verb, "read", "", objects=("p.public.cust",), facts={"warehouse": ()})
        assert MASKING.guard(ALL, command) is None


def test_answers_are_not_kept_across_parts() -> None:
    facts = {"cache_key": 1, "warehouse": (), "bq_job": "copy"}

    def copy(source: str) -> Command:
        read = Command("bigquery", "read_rows", "read", "", objects=(source,), facts=facts)
        write = Command("bigquery", "write_rows", "write", "", objects=("p.d.x",), facts=facts)
        return Command("bigquery", "write_rows", "write", "", facts=facts, parts=(read, write))

    assert MASKING.guard((PATH,), copy("p.public.orders")) is None
    assert MASKING.guard((PATH,), copy("p.public.cust")) is not None


def test_errors_of_either_are_masked_under_columns() -> None:
    fields = {"severity": "ERROR", "code": "22P02", "message": 'invalid value: "a@b.c"'}
    for mask in (PATH, NAMED):
        assert "a@b.c" not in MASKING.remark((mask,), fields)["message"]
