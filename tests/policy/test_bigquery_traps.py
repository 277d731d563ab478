"""The traps of the bigquery note, sections 11 and 12: each is a test with its name."""

# ruff: noqa: SIM905 - a list of one word a line would be a page

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.core.warehouse import Analysis, AnalysisLimits, Statement
from proxy.policy.bigquery import analyse

PIECES = (
    "SELECT FROM WHERE BEGIN END IF THEN ELSE CASE WHEN ; ; ( ) , . * ' ` \" -- /* */ # \n d.t x 1 = DELETE INTO DROP "
    "TABLE CREATE OR REPLACE AS MERGE ON USING @ @@ SET |> UNNEST [ ] < > AND NOT é"
).split(" ")


def read(text: str, dataset: str | None = "main", limits: AnalysisLimits | None = None) -> Analysis:
    return analyse(text, "proj", dataset, limits or AnalysisLimits())


def only(text: str) -> Statement:
    (statement,) = read(text).statements
    return statement


def words(text: str) -> list[str]:
    return [statement.word for statement in read(text).statements]


def test_nested_comments_end_where_bigquery_ends_them() -> None:
    found = read("SELECT 1 /* /* */ ; DROP TABLE d.t; -- */")
    assert [statement.verb for statement in found.statements] == ["read_rows", "destroy"]
    assert [str(table) for table in found.tables_written] == ["proj.d.t"]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_line_comment_ends_at_every_line_end(end: str) -> None:
    assert words(f"SELECT 1 -- x{end}; DROP TABLE d.t") == ["SELECT", "DROP TABLE"]
    assert words(f"SELECT 1 # x{end}; DROP TABLE d.t") == ["SELECT", "DROP TABLE"]


@pytest.mark.parametrize(
    "literal", ["'a;b'", '"a;b"', "'''a';b'''", '"""a";b"""', r"'a\';b'", r"r'\d;'", "`a;b`", "b';'"]
)
def test_a_semicolon_in_a_literal_ends_nothing(literal: str) -> None:
    assert words(f"SELECT {literal} FROM d.t; DROP TABLE d.t") == ["SELECT", "DROP TABLE"]


def test_a_space_outside_of_ascii_is_no_space() -> None:
    assert read("DELETE\u00a0FROM d.t WHERE TRUE").why == "the character U+00A0 is outside of any literal"
    assert not read("SELECT '\u00a0'").opaque


def test_a_literal_that_the_parser_reads_in_another_way_is_opaque() -> None:
    """The parser knows no rb'...': it would take rb for a name, and the backslash for an escape."""
    found = read("SELECT rb'\\' , d.f(1), '")
    assert found.opaque
    assert read("SELECT rb'x'").why == "the parser reads the text's tokens in another way"


def test_begin_end_hides_no_delete() -> None:
    found = read("BEGIN DELETE FROM d.t WHERE TRUE; SELECT 1; END")
    assert [(s.verb, s.where) for s in found.statements] == [("destroy", "always_true"), ("read_rows", None)]
    assert found.control == ("BEGIN",)


def test_exception_hides_no_drop() -> None:
    assert words("BEGIN SELECT 1; EXCEPTION WHEN ERROR THEN DROP TABLE d.t; END") == ["SELECT", "DROP TABLE"]


def test_a_condition_is_read() -> None:
    found = read("IF (SELECT COUNT(*) FROM d.secret) > 1 THEN SELECT 1; END IF")
    assert [str(table) for table in found.statements[0].tables_read] == ["proj.d.secret"]


def test_case_and_repeat_are_statements() -> None:
    assert words("CASE WHEN TRUE THEN DROP TABLE d.a; ELSE DROP TABLE d.b; END CASE")[1:] == ["DROP TABLE"] * 2
    assert words("REPEAT DROP TABLE d.a; UNTIL TRUE END REPEAT") == ["DROP TABLE", "REPEAT"]


def test_begin_before_a_semicolon_is_a_transaction() -> None:
    assert words("BEGIN; DROP TABLE d.t; COMMIT") == ["BEGIN", "DROP TABLE", "COMMIT"]


def test_a_keyword_behind_a_dot_is_a_field() -> None:
    assert words("IF x.then THEN SELECT x.end FROM d.t; END IF") == ["IF", "SELECT"]


def test_procedures_with_in_and_out_are_read() -> None:
    found = read("CREATE OR REPLACE PROCEDURE d.p(IN a INT64, OUT b STRING) BEGIN DELETE FROM d.t WHERE id = a; END")
    assert [(s.word, s.declared) for s in found.statements] == [("CREATE PROCEDURE", False), ("DELETE", True)]


@pytest.mark.parametrize(
    ("text", "verb"),
    [
        ("CREATE SNAPSHOT TABLE d.s CLONE d.t", "define"),
        ("CREATE AGGREGATE FUNCTION d.f(x INT64) RETURNS INT64 AS (SUM(x))", "define"),
        ("CREATE ROW ACCESS POLICY p ON d.t GRANT TO ('a') FILTER USING (a IN (SELECT a FROM d.u))", "grant"),
        ("CREATE SEARCH INDEX i ON d.t(a)", "define"),
        ("CREATE CAPACITY `p.region-us.x` OPTIONS (slot_count = 1)", "grant"),
        ("DROP TABLE FUNCTION d.f", "destroy"),
        ("UNDROP SCHEMA d", "define"),
    ],
)
def test_what_the_parser_does_not_know_is_read_by_its_words(text: str, verb: str) -> None:
    found = only(text)
    assert (found.verb, found.opaque) == (verb, False)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM APPENDS(TABLE d.t, NULL)",
        "SELECT * FROM GRAPH_TABLE(d.g MATCH (a) RETURN a.id)",
        "SELECT WITH DIFFERENTIAL_PRIVACY COUNT(*) FROM d.t",
        "SELECT * FROM d.t MATCH_RECOGNIZE (ORDER BY a PATTERN (x) DEFINE x AS TRUE)",
        "CALL d.p()",
        "EXECUTE IMMEDIATE 'DROP ' || 'TABLE d.t'",
        "EXECUTE IMMEDIATE b'DROP TABLE d.t'",
        "EXECUTE IMMEDIATE 'DR\\x4fP TABLE d.t'",
        "SELECT * FROM d.t; GIBBERISH",
        "",
        ";",
    ],
)
def test_what_cannot_be_read_is_opaque_and_says_why(text: str) -> None:
    found = read(text)
    assert found.opaque
    assert found.why
    hidden = {statement.verb for statement in found.statements if statement.opaque}
    assert hidden <= {"UNKNOWN", "call"}, "opaque never counts as a read"


def test_execute_immediate_of_a_plain_string_is_read() -> None:
    found = read("EXECUTE IMMEDIATE 'DELETE FROM d.t WHERE 1=1; SELECT \"it\\'s\"'")
    assert [s.verb for s in found.statements] == ["call", "destroy", "read_rows"]
    assert not found.opaque


def test_assert_reads_rows() -> None:
    assert only("ASSERT EXISTS (SELECT 1 FROM d.t WHERE ssn = '1') AS 'no'").verb == "read_rows"
    assert [str(t) for t in read("ASSERT (SELECT COUNT(*) FROM d.t) > 5").tables_read] == ["proj.d.t"]


def test_legacy_sql_is_refused() -> None:
    for text in ("#legacySQL\nSELECT 1", "  # LegacySQL\nSELECT 1", "#legacysql"):
        assert "legacy" in read(text).why
    assert not read("#standardSQL\nSELECT 1").opaque


def test_names_that_pipes_make_up_are_refused() -> None:
    assert read("FROM d.t |> WHERE a > 1 |> JOIN __tmp1 USING (a)").opaque
    assert not read("FROM d.t |> WHERE a > 1").opaque


def test_a_changed_default_dataset_is_followed() -> None:
    found = read("SET @@dataset_id = 'other'; SELECT * FROM t")
    assert [str(table) for table in found.tables_read] == ["proj.other.t"]
    for hidden in ("SET @@dataset_id = CONCAT('o', 'ther'); SELECT * FROM t",
                   "IF RAND() > 0.5 THEN SET @@dataset_id = 'other'; END IF; SELECT * FROM t",
                   "SET @@no_such_variable = 1; SELECT * FROM t"):  # fmt: skip
        assert read(hidden).statements[-1].opaque


def test_a_name_without_a_dataset_is_told() -> None:
    (statement,) = read("SELECT * FROM t", None).statements
    assert (str(statement.tables_read[0]), statement.bare_tables) == ("proj..t", ("t",))


def test_trusted_routines_are_not_opaque() -> None:
    limits = AnalysisLimits(trusted_routines=frozenset({"proj.d.f", "proj.d.p"}))
    assert read("SELECT d.f(a) FROM d.t", limits=limits).opaque is False
    assert read("CALL d.p()", limits=limits).opaque is False
    assert read("SELECT d.g(a) FROM d.t", limits=limits).opaque


def test_merge_that_looks_at_its_source_only_takes_every_row() -> None:
    assert only("MERGE d.t x USING d.s s ON s.a = 1 WHEN MATCHED AND s.b > 1 THEN DELETE").where == "always_true"
    assert only("MERGE d.t x USING d.s s ON s.a = x.a WHEN MATCHED AND s.b > 1 THEN DELETE").where == "present"


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        (AnalysisLimits(bracket_depth=3), "SELECT (((1)))", "SELECT ((((1))))"),
        (AnalysisLimits(text_bytes=8), "SELECT 1", "SELECT 12"),
        (AnalysisLimits(tokens=2), "SELECT 1", "SELECT 1;"),
        (AnalysisLimits(statements=2), "SELECT 1; SELECT 2", "SELECT 1; SELECT 2; SELECT 3"),
        (AnalysisLimits(), "BEGIN " * 50 + "SELECT 1;" + " END;" * 50, "BEGIN " * 51 + "SELECT 1;" + " END;" * 51),
    ],
)
def test_limits_hold_to_the_last_unit(limits: AnalysisLimits, good: str, bad: str) -> None:
    assert not read(good, limits=limits).opaque
    assert read(bad, limits=limits).opaque
    assert read(bad, limits=limits).statements[0].verb == "UNKNOWN"


def test_nothing_takes_longer_than_its_length_allows() -> None:
    began = time.perf_counter()
    assert read("/*" + "*" * 100_000).opaque
    assert read("'" + "\\'" * 50_000).opaque
    assert read("SELECT '''" + "''" * 50_000).opaque
    assert time.perf_counter() - began < 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(PIECES),
        max_size=30,
    )
)
def test_whatever_the_text_there_is_an_answer(parts: list[str]) -> None:
    found = read(" ".join(parts))
    assert found.statements
    assert found.opaque == any(statement.opaque for statement in found.statements)
    assert all(statement.why for statement in found.statements if statement.opaque)
