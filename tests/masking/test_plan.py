"""Which column of a result is masked: by origin, by lineage, and where neither tells, by what the statement touches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import ConfigError
from proxy.core.events import Column, Command
from proxy.core.statement import OutputColumn, Statement
from proxy.core.verdict import Mask
from proxy.masking import Masking
from proxy.masking.masker import ANSWERS_LIMIT, COMPILED_LIMIT, KEY_BYTES_LIMIT
from proxy.masking.names import compile_pattern
from tests.masking.world import sql

MASKING = Masking(b"k" * 32)
EMAIL = Mask("hide", columns=("public.cust.email",))


def masked(command: Command, *names: str, masks: tuple[Mask, ...] = (EMAIL,), **more: Any) -> list[str]:
    """The names of the result's columns that are masked, when their origins cannot be told."""
    columns = tuple(Column(name, None, "other", b"0", **more) for name in names)
    plan = MASKING.plan(masks, command, columns)
    return [] if plan is None else [columns[index].name for index in sorted(plan.rules)]


@pytest.mark.parametrize(
    ("pattern", "origins", "covered"),
    [
        ("public.cust.email", ("public.cust.email",), True),
        ("public.cust.email", ("public.cust.id", "public.cust.email"), True),
        ("public.cust.email", ("public.cust.id",), False),
        ("public.cust.email", ("crm.cust.email",), False),
        ("cust.email", ("crm.cust.email",), True),
        ("*.*.email", ("crm.people.email",), True),
        ("public.cust*.e*l", ("public.customers.email",), True),
        ("public.*.email", ("public.a.b.email",), True),
        ("public.cust.Email", ("public.cust.email",), False),
        ("public.cust.email", ("public.cust.email2",), False),
        ("public.cust.email", ("public.cust.*",), True),
        ("public.cust.email", (), False),
        ("public.cust.email", ("cust.email",), True),
        ("public.[ab]ust.email", ("public.bust.email",), True),
        # Names with dots read every way.
        ("public.a?b.email", ("public.a.b.email",), True),
    ],
)
def test_origins_decide_where_they_are_known(pattern: str, origins: tuple[str, ...], covered: bool) -> None:
    plan = MASKING.plan((Mask("r", columns=(pattern,)),), sql("select email from cust"), (Column("c", origins),))
    assert (plan is not None) == covered


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("select lower(email) e, id from cust", ["e", "id"], ["e"]),
        ("select count(*) n, sum(total) s, now() x from orders", ["n", "s", "x"], []),
        ("select count(*) n from cust where email like 'a%'", ["n"], []),
        ("select count(email) n, max(id) m from cust", ["n", "m"], ["n"]),
        ("select sum(total) from orders, cust where cust.email = 'x'", ["sum"], []),
        ("select coalesce(c.email, 'x') a, o.id b from cust c join orders o on true", ["a", "b"], ["a"]),
        ("select row_to_json(c) r from cust c", ["r"], ["r"]),
        ("select c from cust c", ["c"], ["c"]),
        ("select array_agg(email) from cust", ["a"], ["a"]),
        ("select id from orders union all select email from cust", ["id"], ["id"]),
        ("select (select email from cust limit 1) a, 1 b", ["a", "b"], ["a"]),
        ("with x as (select email e, id i from cust) select upper(e), i from x", ["u", "i"], ["u"]),
        ("select f_unknown() f, 1 one", ["f", "one"], ["f"]),
        ("select query_to_xml('select * from cust', true, true, '')", ["q"], ["q"]),
        ("values (1, 2)", ["a", "b"], []),
        ("select 1", ["a"], []),
        ("update cust set id = 1 returning id, email || ''", ["id", "e"], ["e"]),
        # Behind a view the names of columns say nothing, so any of them counts.
        ("select upper(nick) n, 1 one from v", ["n", "one"], ["n"]),
        ("select upper(nick) n from api.cust", ["n"], ["n"]),
        ("select upper(city) n from part_a", ["n"], ["n"]),
        ("select upper(city) n from cust", ["n"], []),
        ("select upper(city) n from either", ["n"], []),
        # A relation that nobody knows may be anything.
        ("select upper(city) n from nowhere", ["n"], ["n"]),
        ("select upper(city) n from hidden_view", ["n"], ["n"]),
        # Widths that the text cannot tell: the whole statement counts.
        ("select * from cust", ["id", "email"], ["id", "email"]),
        ("select * from orders", ["id", "total"], []),
        ("table cust", ["id", "email"], ["id", "email"]),
        ("select id from cust", ["id", "more"], ["id", "more"]),
        ("explain select email from cust", ["QUERY PLAN"], []),
        ("explain analyze select f_unknown()", ["QUERY PLAN"], ["QUERY PLAN"]),
        ("show all", ["name", "setting", "description"], []),
        ("show work_mem", ["work_mem"], []),
        ("execute p", ["a"], ["a"]),
        ("fetch c", ["a"], ["a"]),
        ("call p()", ["a"], ["a"]),
        ("selec nonsense", ["a"], ["a"]),
        ("copy (select email, id from cust) to stdout", ["email", "id"], ["email"]),
        ("copy cust(email, id) to stdout", ["email", "id"], ["email"]),
        # Several statements: a result may be that of any whose width fits.
        ("select id from cust; select email from cust", ["x"], ["x"]),
        ("select id from cust; select email, id from cust", ["x"], []),
        ("begin; select id from cust", ["x"], []),
    ],
)
def test_lineage_decides_where_origins_do_not(text: str, names: list[str], expected: list[str]) -> None:
    assert masked(sql(text), *names) == expected


@pytest.mark.parametrize(
    "facts",
    [{}, {"statements": ()}, {"statements": (Statement("SELECT", "read", "x", ("cust",)),)}],
)
def test_missing_facts_mask_everything(facts: dict[str, Any]) -> None:
    command = Command("postgres", "SELECT", "read", "select 1", facts=facts)
    assert masked(command, "a", "b") == ["a", "b"]


def test_missing_names_mask_what_could_come_from_any_table() -> None:
    command = sql("select upper(id), 1 from cust", resolved={})
    assert masked(command, "a", "b") == ["a"]


def test_an_opaque_output_is_masked_though_its_sources_are_not() -> None:
    statement = Statement(
        "SELECT", "read", "x", outputs=(OutputColumn("a", (), opaque=True), OutputColumn("b", ())), outputs_exact=True
    )
    assert masked(Command("p", "SELECT", "read", "x", facts={"statements": (statement,)}), "a", "b") == ["a"]


def test_no_mask_and_no_match_make_no_plan() -> None:
    assert MASKING.plan((), sql("select 1"), (Column("a", None),)) is None
    assert MASKING.plan((EMAIL,), sql("select 1"), ()) is None


def test_a_column_mask_beats_detectors_and_the_first_rule_wins() -> None:
    masks = (
        Mask("find", detectors=("email",), text="found"),
        Mask("one", columns=("cust.email",), text="one"),
        Mask("two", columns=("*.cust.*",), detectors=("email",), text="two"),
    )
    columns = (Column("email", ("public.cust.email",)), Column("x", ("public.cust.x",)), Column("y", ()))
    plan = MASKING.plan(masks, sql("select 1"), columns)
    assert plan is not None
    assert plan.cells[:2] == (b"one", b"two")
    assert dict(plan.rules) == {0: "one", 1: "two", 2: "find"}
    assert plan.scanned == {2}
    detect = plan.cells[2]
    assert callable(detect)
    assert detect(b"bob@example.com") == b"found"


def test_detectors_compose_each_with_its_own_action() -> None:
    masks = (Mask("a", detectors=("email",), text="M"), Mask("b", detectors=("card", "email"), action="partial"))
    plan = MASKING.plan(masks, sql("select 1"), (Column("c", ()),))
    assert plan is not None
    detect = plan.cells[0]
    assert callable(detect)
    assert detect(b"bob@example.com 4111111111111111") == b"M ************1111"


def test_a_mask_that_the_loader_would_refuse_lets_nothing_pass() -> None:
    with pytest.raises(ConfigError, match="unknown detector"):
        MASKING.plan((Mask("r", detectors=("nonsense",)),), sql("select 1"), (Column("a", ()),))


@pytest.mark.parametrize("size", [KEY_BYTES_LIMIT - 1, 0])
def test_a_short_key_fails_the_load(size: int) -> None:
    with pytest.raises(ConfigError, match="masking key"):
        Masking(b"x" * size)
    assert Masking(b"x" * KEY_BYTES_LIMIT).detectors


def test_answers_are_kept_by_equal_facts_and_for_the_very_columns() -> None:
    one, two = (Column("a", ("public.cust.email",)),), (Column("a", ("public.cust.id",)),)
    first = MASKING.plan((EMAIL,), sql("select 1", cache_key="k"), one)
    assert first is not None
    assert MASKING.plan((EMAIL,), sql("select 1", cache_key="k"), one) is first
    assert MASKING.plan((EMAIL,), sql("select 1", cache_key="k"), two) is None
    assert MASKING.guard((EMAIL,), sql("create table x as select email from cust", cache_key="g")) is not None
    assert MASKING.guard((EMAIL,), sql("select 1", cache_key="h")) is None


def test_what_is_kept_is_bounded() -> None:
    masking = Masking()
    for number in range(COMPILED_LIMIT + 2):
        masking.guard((Mask(f"r{number}", columns=("a.b",)),), sql("select 1"))
    assert len(masking._compiled) == 2
    for number in range(ANSWERS_LIMIT + 2):
        columns = (Column("a", ()),)
        command = Command("p", "SELECT", "read", "", facts={"cache_key": number, "statements": ()})
        masking.plan((EMAIL,), command, columns)
        masking.guard((EMAIL,), command)
    (compiled,) = [each for masks, each in masking._compiled.items() if masks == (EMAIL,)]
    assert len(compiled.plans) == len(compiled.guards) == 2


@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=3, max_size=6))
def test_a_pattern_of_stars_covers_every_origin_and_its_own_text_covers_itself(parts: list[str]) -> None:
    origin = ".".join(parts)
    assert compile_pattern("*.*.*").covers(origin)
    assert compile_pattern(".".join(parts[:3])).covers(".".join(parts[:3]))
    assert not compile_pattern("*.*.z").covers(origin)


def test_random_keys_differ() -> None:
    mask = Mask("r", columns=("*.t.c",), action="hash")
    cells = []
    for masking in (Masking(), Masking()):
        plan = masking.plan((mask,), sql("select 1"), (Column("c", ("s.t.c",)),))
        assert plan is not None
        cell = plan.cells[0]
        assert callable(cell)
        cells.append(cell(b"value"))
    assert cells[0] != cells[1]
