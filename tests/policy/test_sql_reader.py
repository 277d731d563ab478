"""The reader as a whole: several statements, exact slices, what cannot be read, limits, the cache, properties."""

# ruff: noqa: SIM905 - lists of one word a line would be pages

from __future__ import annotations

import dataclasses
import re

import pgparse
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.statement import Statement
from proxy.policy import sql
from proxy.policy.sql import SqlReader, read_sql
from tests.policy.test_sql_lineage import ALWAYS_TRUE, EXACT, INEXACT, PRESENT
from tests.policy.test_sql_statements import TABLE

TEXTS = [line.rsplit("|", 4)[0].strip() for line in TABLE.strip().splitlines()]
TEXTS += [text for text, _ in (*EXACT, *INEXACT)]
TEXTS += [f"delete from t where {line}" for line in (ALWAYS_TRUE + PRESENT).split("\n") if line]
GOOD_TEXTS = [text for text in TEXTS if read_sql(text)[0].verb != "UNPARSABLE"]


def same_facts(one: Statement, two: Statement) -> bool:
    """Every field but text, key and the inner's text is equal."""
    for field in dataclasses.fields(Statement):
        if field.name in ("text", "key"):
            continue
        left, right = getattr(one, field.name), getattr(two, field.name)
        if field.name == "inner" and left is not None and right is not None:
            if not same_facts(left, right):
                return False
        elif left != right:
            return False
    return True


@pytest.mark.parametrize("text", ["", ";", " ;; ; ", "-- x", "/* /* x */ */", "/* x */;-- y\n;"])
def test_nothing(text: str) -> None:
    assert read_sql(text) == ()
    assert SqlReader()(text) == ()


def test_slices_are_exact_and_in_bytes() -> None:
    text = " select 'é;' as ü ; /* ö */ delete from y;; insert into z values ($$;$$) -- ß"
    assert [statement.text for statement in read_sql(text)] == [
        "select 'é;' as ü",
        "/* ö */ delete from y",
        "insert into z values ($$;$$) -- ß",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "not sql",
        "select '",
        "select 1; not sql",
        "select 1 /* ",
        "select $$x",
        "select 1\0; drop table t",
        "\0",
        "select '\ud800'",
        "create table t (a int, b int generated always as (a) virtual)",  # PostgreSQL 18
        "select " + "(" * 10_000 + "1" + ")" * 10_000,
        "select 1" + "+1" * 20_000,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_unparsable(text: str) -> None:
    for (statement,) in (read_sql(text), SqlReader()(text)):
        assert (statement.verb, statement.kind, statement.opaque) == ("UNPARSABLE", "unknown", True)
        assert statement.error
        assert statement.text == text
        assert not statement.literal_free


def test_deep_nesting_is_unknown_and_never_an_error() -> None:
    def nested(depth: int) -> str:
        return "select " + "coalesce(1, " * depth + "a" + ")" * depth + " from t"

    found = {depth: read_sql(nested(depth))[0] for depth in range(20, 1000, 20)}
    assert found[20].kind == "read"
    assert {statement.kind for statement in found.values()} == {"read", "unknown"}
    assert all(statement.opaque for statement in found.values() if statement.kind == "unknown")


def test_a_tree_that_breaks_the_walker_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    for broken in (
        [{"stmt": {"SelectStmt": {"targetList": [{"Nope": 1}]}}}],
        [{"stmt": {}}],
        [{"stmt": {"NewStmt": {}}}],
    ):
        monkeypatch.setattr(pgparse, "parse", lambda text, broken=broken: broken)
        (statement,) = read_sql("select 1")
        assert (statement.verb, statement.kind, statement.opaque) == ("UNKNOWN", "unknown", True)


def test_a_node_of_an_expression_that_is_not_listed_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = [{"stmt": {"SelectStmt": {"targetList": [{"ResTarget": {"val": {"GraphTable": {"x": 1}}}}]}}}]
    monkeypatch.setattr(pgparse, "parse", lambda text: tree)
    (statement,) = read_sql("select 1")
    assert (statement.verb, statement.kind, statement.opaque) == ("SELECT", "unknown", True)


def test_structure_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "select a from t where b = 1"
    monkeypatch.setattr(sql, "STRUCTURE_LIMIT", len(text) + 1)
    assert read_sql(text + " ")[0].verb == "SELECT"
    assert read_sql(text + "  ")[0].verb == "UNPARSABLE"
    # A long literal is no structure.
    assert read_sql(f"select a from t where b = '{'x' * 10_000}'")[0].verb == "SELECT"


def test_a_10_mb_literal_is_read() -> None:
    (statement,) = read_sql(f"insert into t values ('{'x' * 10_000_000}')")
    assert (statement.verb, statement.tables_written) == ("INSERT", ("t",))


# -- the cache ----------------------------------------------------------------------------------------


def test_same_text_gives_the_same_objects() -> None:
    reader = SqlReader()
    assert reader("select a from t") is reader("select a from t")


@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_reader_equals_read_sql(text: str) -> None:
    reader = SqlReader()
    for _ in range(2):
        found, expected = reader(text), read_sql(text)
        assert len(found) == len(expected)
        assert all(same_facts(one, two) and one.text == two.text for one, two in zip(found, expected, strict=True))


def test_a_template_serves_other_literals_with_their_own_text() -> None:
    reader = SqlReader()
    (first,) = reader("  /* é */ select a from t where b = 1 ; /* x */")
    (second,) = reader("  /* é */ select a from t where b = 'a longer one' ; /* x */")
    (other,) = reader("  /* é */ select a from t where c = 1 ; /* x */")
    assert second.text == "/* é */ select a from t where b = 'a longer one'"
    assert same_facts(first, second)
    assert first.key == second.key != 0
    assert other.key not in (0, first.key)


def test_a_comment_that_quotes_the_statement_does_not_move_its_text() -> None:
    reader = SqlReader()
    reader("select 1; -- select 1")
    reader(";/* select a from t where b = 1 */; select a from t where b = 1")
    (statement,) = reader(";/* select a from t where b = 1 */; select a from t where b = 23")
    assert statement.text.endswith("select a from t where b = 23")


@pytest.mark.parametrize("text", ["select -(1)", "select - (-1)", "select - - 1", "select -/* x */ 1", "select 1 -- x"])
def test_what_is_normalised_wrongly_is_kept_by_text_alone(text: str) -> None:
    reader = SqlReader()
    reader(text)
    assert reader._templates == {}
    assert text in reader._texts
    reader("select a -1, b->'c', -1 from t where d = '-'")
    assert len(reader._templates) == 1


# Whatever a text of the same normal form may have in the place of a constant.
SUBSTITUTES = (
    "0",
    "1",
    "2",
    "'a'",
    "'1'",
    "'%'",
    "'true'",
    "true",
    "false",
    "null",
    "1.5",
    "$9",
    "'x''y'",
    "-'x'",
    "- 1",
)


@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_literal_free_means_it(text: str) -> None:
    """For each statement that claims it, other constants give other texts with the same facts."""
    (statement, *more) = read_sql(text)
    if more or not statement.literal_free:
        return
    constants = list(re.finditer(r"-?'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b|\btrue\b|\bfalse\b|\bnull\b", text))
    for constant in constants:
        for substitute in SUBSTITUTES:
            other = text[: constant.start()] + substitute + text[constant.end() :]
            (found, *rest) = read_sql(other)
            if rest or found.verb == "UNPARSABLE" or pgparse.normalize(other) != pgparse.normalize(text):
                continue
            assert same_facts(statement, found), other


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("select a, b from t", "select b, a from t"),
        ("select x.a from t x, u y", "select x.a from t y, u x"),
        ("select a as q from t", "select a as r from t"),
        ("select a.x from t as a (x, y)", "select a.x from t as a (y, x)"),
        ("insert into t (a, b) values (1, 2)", "insert into t (b, a) values (1, 2)"),
        ("prepare a as select 1", "prepare b as select 1"),
        ("declare a cursor for select 1", "declare b cursor for select 1"),
        ("fetch 1 from a", "fetch 1 from b"),
        ("execute a", "execute b"),
        ("savepoint a", "savepoint b"),
        ("listen a", "listen b"),
        ("set a = 1", "set a = 2"),
        ("do 'x'", "do 'y'"),
        ("select a from t limit 1", "select a from t limit 2"),
        ("delete from t where 1 = 1", "delete from t where 1 = 2"),
        ("delete from t where b like '%'", "delete from t where b like 'a'"),
        ("select set_config('a', 'x', true)", "select set_config('b', 'x', true)"),
    ],
)
def test_what_a_fingerprint_would_confuse(one: str, two: str) -> None:
    assert pgparse.fingerprint(one) == pgparse.fingerprint(two)
    reader = SqlReader()
    reader(one)
    (found,) = reader(two)
    assert same_facts(found, read_sql(two)[0])
    assert found.text == two


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "CACHED_TEXTS_LIMIT", 3)
    monkeypatch.setattr(sql, "CACHED_CHARACTERS_LIMIT", 100)
    reader = SqlReader()
    texts = [f"select a{number} from t" for number in range(4)]
    first = reader(texts[0])
    for text in texts[1:3]:
        reader(text)
    assert reader(texts[0]) is first  # used again: it is now the youngest
    reader(texts[3])
    assert reader(texts[0]) is first
    assert len(reader._texts) == 3
    assert len(reader._templates) == 3
    assert texts[1] not in reader._texts
    reader(f"select {'a' * 90} from t")
    assert reader._characters <= 100
    assert reader._characters == sum(map(len, reader._texts))


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_long_texts_are_read_and_not_kept(over: int) -> None:
    text = "select a from t where b = '"
    text += "x" * (sql.CACHED_TEXT_LIMIT + over - len(text) - 1) + "'"
    reader = SqlReader()
    assert reader(text)[0].verb == "SELECT"
    assert (text in reader._texts) is (over <= 0)


# -- properties ---------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(GOOD_TEXTS), min_size=1, max_size=4))
def test_statements_are_read_alike_alone_and_together(texts: list[str]) -> None:
    found = read_sql(" ;\n".join(texts))
    assert len(found) == len(texts)
    for statement, text in zip(found, texts, strict=True):
        assert statement.text == text
        assert same_facts(statement, read_sql(text)[0])


WORDS = st.sampled_from(
    """select from where with recursive as ( ) , ; * t u a.b $1 1 'x' union join on using lateral insert into values
    update set delete returning merge copy to stdout create table view explain analyze prepare execute declare cursor
    for fetch c do call set role begin commit = + || :: int [ ] . and or not null in exists case when then end over
    order by group limit /* */ -- $$ e' " é \\ natural row array filter within partition of default""".split(" ")
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(), st.lists(WORDS, max_size=25).map(" ".join)))
def test_garbage_never_raises_and_never_reads(text: str) -> None:
    for statement in (*read_sql(text), *SqlReader()(text)):
        assert statement.text in text
        if statement.kind == "unknown":
            assert statement.opaque
        if statement.verb == "UNPARSABLE":
            assert statement.kind == "unknown"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD_TEXTS), st.data())
def test_a_text_with_a_piece_cut_out_never_raises(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    for statement in read_sql(text[:start] + text[end:]):
        assert statement.kind != "unknown" or statement.opaque
