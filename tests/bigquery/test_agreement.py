"""What a dry run names must be explained by the text: by names, views, wildcards, temporary tables; or it is opaque."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.bigquery.agreement import (
    REFERENCED_LIMIT,
    Agreement,
    Behind,
    Said,
    Shape,
    agree,
    error_result,
    looked_at,
    read_dry_run,
    read_table,
    unseen,
)
from proxy.policy.bigquery import analyse


def compared(
    text: str, *referenced: str, type_: str = "SELECT", dataset: str | None = "main", **more: Any
) -> Agreement:
    views = more.pop("views", {})
    trusted = more.pop("trusted", ())
    return agree(analyse(text, "p", dataset), Said(type_, tuple(referenced), **more), views, trusted)


@pytest.mark.parametrize(
    ("text", "referenced"),
    [
        ("SELECT * FROM d.t", ["p.d.t"]),
        ("SELECT * FROM t", ["p.main.t"]),
        ("SELECT * FROM `q.d.t`, d.u", ["q.d.t", "p.d.u"]),
        ("SELECT * FROM `my-project`.d.t", ["my-project.d.t"]),
        ("SELECT * FROM `d.t$20260101`", ["p.d.t"]),
        ("SELECT * FROM d.`events_*` WHERE _TABLE_SUFFIX > '1'", ["p.d.events_1", "p.d.events_2"]),
        ("SELECT * FROM d.`events_*`", ["p.d.events_*"]),
        ("SELECT * FROM d.t WHERE FALSE", []),
        ("SELECT * FROM `region-us`.INFORMATION_SCHEMA.JOBS", ["p.region-us.INFORMATION_SCHEMA.JOBS"]),
        ("SELECT * FROM `region-us`.INFORMATION_SCHEMA.JOBS", ["region-us.INFORMATION_SCHEMA.JOBS"]),
        ("SELECT * FROM _SESSION.q", ["p._5f3a.q"]),
        ("WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a", ["p.main.b"]),
        ("SELECT * FROM EXTERNAL_QUERY('us.c', 'SELECT 1')", []),
    ],
)
def test_what_the_text_names_is_explained(text: str, referenced: list[str]) -> None:
    assert compared(text, *referenced) == Agreement("", {})


@pytest.mark.parametrize(
    ("text", "referenced"),
    [
        ("SELECT * FROM d.t", ["p.d.t", "p.d.secret"]),
        ("SELECT * FROM d.t", ["q.d.t"]),
        ("SELECT * FROM d.t", ["p.d.T"]),
        ("SELECT * FROM t", ["p.other.t"]),
        ("SELECT * FROM d.`events_*`", ["p.d.eventual"]),
        ("SELECT * FROM d.`events_*`", ["p.e.events_1"]),
        ("SELECT * FROM d.`*`", ["p.d.INFORMATION_SCHEMA.TABLES"]),
        ("SELECT * FROM d.t", ["p._5f3a.anon77"]),
        ("SELECT * FROM d.t", ["p.d.INFORMATION_SCHEMA.TABLES"]),
        ("SELECT * FROM d.INFORMATION_SCHEMA.TABLES", ["p.d.INFORMATION_SCHEMA.COLUMNS"]),
        ("WITH a AS (SELECT 1) SELECT * FROM a", ["p.main.a"]),
        ("CREATE TEMP FUNCTION f() AS (1); SELECT f() FROM d.t", ["p.d.secret"]),
    ],
)
def test_what_the_text_does_not_name_is_opaque(text: str, referenced: list[str]) -> None:
    why = compared(text, *referenced).opaque
    assert why == f"the target's dry run reads {referenced[-1]}, which the text does not name"


def test_a_dataset_that_a_statement_is_about_explains_no_reads() -> None:
    assert compared("GRANT `r` ON SCHEMA d TO 'user:a@b.c'; SELECT 1", "p.d.secret", type_="SCRIPT").opaque


def test_a_temporary_table_that_the_text_takes_for_another_is_opaque() -> None:
    """Lineage follows main.q there, and its masks; nobody follows a session's table."""
    assert "temporary table of the session" in compared("SELECT * FROM q", "p._5f3a.q").opaque
    assert not compared("SELECT * FROM q", "p._5f3a.q", dataset=None).opaque
    found = compared("CREATE TEMP TABLE q AS SELECT 1; SELECT * FROM q", "p._script9.q", type_="SCRIPT")
    assert not found.opaque


def test_a_view_whose_text_was_read_explains_what_it_names() -> None:
    views = {"p.d.V": Behind(("p.x.t", "p.x.events_*"))}
    found = compared("SELECT * FROM d.V", "p.d.V", "p.x.t", "p.x.events_7", views=views)
    assert found == Agreement("", {"p.d.v": ("p.x.t", "p.x.events_*", "p.x.events_7")})
    assert "p.x.secret" in compared("SELECT * FROM d.V", "p.x.t", "p.x.secret", views=views).opaque


def test_a_view_of_which_nothing_is_known_shows_all_that_is_read() -> None:
    views = {"p.d.v": Behind(("p.x.a",), whole=False)}
    found = compared("SELECT * FROM d.v JOIN d.t USING (id)", "p.d.v", "p.d.t", "p.x.b", views=views)
    assert found == Agreement("", {"p.d.v": ("p.x.a", "p.d.t", "p.x.b")})


def test_a_view_needs_something_that_tells_what_is_behind_it() -> None:
    dark = {"p.d.v": Behind((), whole=False)}
    for found in (
        compared("SELECT * FROM d.v", views=dark),
        compared("SELECT * FROM d.v", "p.d.v", views=dark),
        compared("SELECT 1; SELECT * FROM d.v", "p.d.v", type_="SCRIPT", views=dark),
        unseen(dark),
    ):
        assert found.opaque == "nothing tells which tables are behind p.d.v"
    both = unseen({"p.d.V": Behind(("p.x.t",)), "p.d.v": Behind(("p.x.u",))})
    assert both == Agreement("", {"p.d.v": ("p.x.t", "p.x.u")})


def test_a_list_that_may_not_be_whole_explains_no_views() -> None:
    names = [f"p.d.t{n}" for n in range(REFERENCED_LIMIT)]
    text = "SELECT * FROM " + ", ".join(f"d.t{n}" for n in range(REFERENCED_LIMIT))
    assert not compared(text, *names).opaque
    views = {"p.d.t0": Behind(("p.x.t",))}
    assert not compared(text, *names[1:], views=views).opaque
    assert "may leave out others" in compared(text, *names, views=views).opaque
    assert "p.d.more" in compared(text + ", d.more", *names).opaque


def test_a_routine_must_be_named_or_vouched_for() -> None:
    assert "p.d.f" in compared("SELECT 1", routines=("p.d.f",)).opaque
    assert not compared("SELECT 1", routines=("p.d.f",), trusted=frozenset({"p.d.f"})).opaque
    assert not compared("SELECT d.f(1)", routines=("p.d.f",)).opaque, "the analysis itself is opaque by it"
    assert "q.d.f" in compared("SELECT d.f(1)", routines=("q.d.f",)).opaque
    assert not compared("SELECT * FROM d.f(1)", "p.x.t", routines=("p.d.f",)).opaque


def test_ddl_makes_what_the_text_says() -> None:
    for text, type_, target in (
        ("CREATE TABLE d.t AS SELECT 1", "CREATE_TABLE_AS_SELECT", "p.d.t"),
        ("DROP SCHEMA d", "DROP_SCHEMA", "p.d.*"),
        ("CREATE FUNCTION d.f() AS (1)", "CREATE_FUNCTION", "p.d.f"),
        ("CREATE TEMP TABLE q (a INT64)", "CREATE_TABLE", "p._5f3a.q"),
    ):
        assert not compared(text, type_=type_, targets=(target,)).opaque, text
        assert "makes, changes or drops" in compared(text, type_=type_, targets=("p.other.t",)).opaque


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("FROM d.t", "SELECT"), ("(SELECT 1)", "SELECT"), ("INSERT d.t VALUES (1)", "INSERT"),
        ("TRUNCATE TABLE d.t", "TRUNCATE_TABLE"), ("CREATE VIEW d.v AS SELECT 1", "CREATE_VIEW"),
        ("ALTER TABLE d.t ADD COLUMN a INT64", "ALTER_TABLE"), ("ASSERT TRUE", "ASSERT"), ("CALL d.p()", "SCRIPT"),
        ("CALL d.p()", "CALL"), ("SELECT 1; SELECT 2", "SCRIPT"), ("BEGIN SELECT 1; END", "SCRIPT"),
        ("DECLARE a INT64", "SCRIPT"), ("EXECUTE IMMEDIATE 'SELECT 1'", "SCRIPT"),
        ("CREATE TEMP FUNCTION f() AS (1); SELECT f()", "SELECT"),
        ("EXPORT DATA OPTIONS (uri = 'gs://b/*') AS SELECT 1", "EXPORT_DATA"),
        ("CREATE PROCEDURE d.p() BEGIN SELECT 1; END", "CREATE_PROCEDURE"),
        ("BEGIN TRANSACTION", "BEGIN_TRANSACTION"), ("BEGIN TRANSACTION", "SCRIPT"),
    ],
)  # fmt: skip
def test_the_type_is_that_of_the_words(text: str, type_: str) -> None:
    assert compared(text, type_=type_).opaque == ""


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("SELECT 1", "INSERT"), ("SELECT 1", "SCRIPT"), ("SELECT 1", "CREATE_TABLE_AS_SELECT"), ("SELECT 1", ""),
        ("INSERT d.t SELECT 1", "SELECT"), ("UPDATE d.t SET a = 1 WHERE TRUE", "DELETE"),
        ("SELECT 1; SELECT 2", "SELECT"),
        ("BEGIN SELECT 1; END", "SELECT"), ("CREATE TEMP FUNCTION f() AS (1); SELECT f()", "DELETE"),
        ("CREATE TABLE d.t (a INT64)", "DROP_TABLE"), ("DROP TABLE d.t; SELECT 1", "SELECT"),
    ],
)  # fmt: skip
def test_a_type_that_the_words_are_not_is_opaque(text: str, type_: str) -> None:
    assert "the target's dry run" in compared(text, type_=type_).opaque


def test_views_are_looked_for_among_what_lies_in_datasets_of_users() -> None:
    text = (
        "SELECT * FROM d.t, d.`e_*`, d.INFORMATION_SCHEMA.TABLES, _SESSION.q, _0a.anon1, ext, INFORMATION_SCHEMA.X, u"
    )
    assert [str(each) for each in looked_at(analyse(text, "p", "main"), {"ext"})] == ["p.d.t", "p.main.u"]
    assert [str(each) for each in looked_at(analyse("SELECT * FROM d.ext", "p", "main"), {"ext"})] == ["p.d.ext"]


# -- what the target says -------------------------------------------------------------------------------


def job(**query: Any) -> bytes:
    return json.dumps(
        {"status": {"state": "DONE"}, "statistics": {"query": {"statementType": "SELECT", **query}}}
    ).encode()


def test_a_dry_run_is_read() -> None:
    table = {"projectId": "p", "datasetId": "d", "tableId": "t$20260101"}
    routine = {"projectId": "p", "datasetId": "d", "routineId": "f"}
    found = read_dry_run(
        job(
            referencedTables=[table, table], referencedRoutines=[routine], totalBytesProcessed="12",
            totalBytesProcessedAccuracy="PRECISE", schema={"fields": []},
            ddlTargetTable={**table, "tableId": "u"}, ddlTargetDataset={"projectId": "p", "datasetId": "d"},
        )
    )  # fmt: skip
    assert found == Said("SELECT", ("p.d.t",), ("p.d.f",), ("p.d.u", "p.d.*"), 12, "PRECISE", {"fields": []})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b"nonsense", b"[" * 100_000,
        b'{"status": {"state": "RUNNING"}, "statistics": {"query": {"a": 1}}}',
        job(referencedTables=[{"projectId": "p", "datasetId": "d"}]), job(referencedTables={}),
        job(referencedRoutines=["p.d.f"]), job(ddlTargetTable={"projectId": "p"}), job(referencedTables=[None]),
    ],
)  # fmt: skip
def test_what_is_no_answer_tells_nothing(body: bytes) -> None:
    assert read_dry_run(body) is None


@pytest.mark.parametrize("size", [None, "", "-1", "1e3", 1.5, True, [], "9" * 20])
def test_bytes_that_are_no_number_are_not_told(size: object) -> None:
    found = read_dry_run(job(totalBytesProcessed=size))
    assert found is not None
    assert found.processed is None


KEYS = st.sampled_from(["status", "statistics", "query", "referencedTables", "state", "errorResult", "view", "type"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)
)


@settings(max_examples=60)
@given(JSON)
def test_no_answer_is_too_strange(value: object) -> None:
    body = json.dumps(value).encode()
    assert read_dry_run(body) is None or isinstance(value, dict)
    assert error_result(body) is None or isinstance(value, dict)
    assert read_table(body).type != ""


def test_tables_are_read() -> None:
    assert read_table(b'{"type": "TABLE"}') == Shape("TABLE")
    assert read_table(b'{"type": "VIEW", "view": {"query": "SELECT 1"}}') == Shape("VIEW", "SELECT 1")
    assert read_table(b'{"type": "VIEW", "view": {"query": "SELECT 1", "useLegacySql": true}}') == Shape("VIEW")
    assert read_table(b'{"type": "MATERIALIZED_VIEW", "materializedView": {"query": "SELECT 2"}}').query == "SELECT 2"
    assert read_table(b"{}").is_view, "a type that nobody knows may show other tables"
    assert not Shape("").is_view
    assert error_result(b'{"status": {"errorResult": {"reason": "invalidQuery", "message": "m"}}}') == (
        "invalidQuery",
        "m",
    )
