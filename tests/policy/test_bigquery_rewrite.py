"""Scans of masked tables are replaced in the text where that is exact; all else of it stays, and says why."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.warehouse import Analysis, AnalysisLimits, Outputs, Replacement, ResultColumn, Rewritten
from proxy.policy.bigquery import analyse
from proxy.policy.bigquery_rewrite import SCANS_LIMIT, rewrite
from proxy.policy.bigquery_workers import Analysts
from tests.policy.test_bigquery_corpus import FILES, lines

USERS = "p.d.users"
COLUMNS = (Replacement("id"), Replacement("email", "'[redacted]'"), Replacement("tags"), Replacement("u"))
SCANS = {USERS: COLUMNS}
QUERY = (
    "(SELECT gatecast_row.`id`, '[redacted]' AS `email`, gatecast_row.`tags`, gatecast_row.`u` FROM {} AS gatecast_row)"
)


def done(text: str) -> Rewritten:
    return rewrite(text, "p", "d", SCANS)


def paths(column: ResultColumn) -> set[str]:
    below = {path for field in column.fields for path in paths(field)}
    return below | {".".join([origin.table.table, *origin.path]) for origin in column.origins}


def shown(outputs: Outputs) -> set[str]:
    """All places that a result may hold values of."""
    found = {path for column in outputs.columns for path in paths(column)}
    found |= {".".join([star.table.table, *star.path, "*"]) for star in outputs.stars}
    return found | {".".join([origin.table.table, *origin.path]) for origin in outputs.also}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM d.users", "SELECT * FROM {d.users} AS `users`"),
        ("SELECT * FROM users", "SELECT * FROM {users} AS `users`"),
        ("SELECT * FROM `p.d.users`", "SELECT * FROM {`p.d.users`} AS `users`"),
        ("SELECT * FROM `p.d`.users", "SELECT * FROM {`p.d`.users} AS `users`"),
        ("SELECT * FROM p . d\n. users", "SELECT * FROM {p . d\n. users} AS `users`"),
        ("SELECT u.email FROM d.users u", "SELECT u.email FROM {d.users} u"),
        ("SELECT u FROM d.users AS u", "SELECT u FROM {d.users} AS u"),
        ("SELECT 1 FROM d.users AS `from`", "SELECT 1 FROM {d.users} AS `from`"),
        ("SELECT 1 FROM d.users-- a\n, d.other", "SELECT 1 FROM {d.users} AS `users`-- a\n, d.other"),
        ("/* FROM d.users */ SELECT 'FROM d.users' FROM /* x */ d /* y */ . /* z */ users # w",
         "/* FROM d.users */ SELECT 'FROM d.users' FROM /* x */ {d /* y */ . /* z */ users} AS `users` # w"),
        ("SELECT 1 FROM d.users u JOIN d.users v USING (id)", "SELECT 1 FROM {d.users} u JOIN {d.users} v USING (id)"),
        ("SELECT 1 FROM (d.users JOIN d.o USING (id))", "SELECT 1 FROM ({d.users} AS `users` JOIN d.o USING (id))"),
        ("SELECT t FROM d.users, users.tags AS t", "SELECT t FROM {d.users} AS `users`, users.tags AS t"),
        ("SELECT t FROM d.users x, UNNEST(x.tags) t", "SELECT t FROM {d.users} x, UNNEST(x.tags) t"),
        ("WITH users AS (SELECT * FROM users) SELECT * FROM users",
         "WITH users AS (SELECT * FROM {users} AS `users`) SELECT * FROM users"),
        ("WITH a AS (SELECT 1 FROM b), b AS (SELECT * FROM d.users) SELECT * FROM a, b",
         "WITH a AS (SELECT 1 FROM b), b AS (SELECT * FROM {d.users} AS `users`) SELECT * FROM a, b"),
        ("WITH RECURSIVE r AS (SELECT id FROM users UNION ALL SELECT r.id + 1 FROM r JOIN d.users u ON u.id = r.id) "
         "SELECT * FROM r",
         "WITH RECURSIVE r AS (SELECT id FROM {users} AS `users` UNION ALL SELECT r.id + 1 FROM r "
         "JOIN {d.users} u ON u.id = r.id) SELECT * FROM r"),
        ("SELECT (SELECT MAX(email) FROM users WHERE id = o.id) FROM d.o o",
         "SELECT (SELECT MAX(email) FROM {users} AS `users` WHERE id = o.id) FROM d.o o"),
        ("SELECT 1 FROM d.o WHERE EXISTS (SELECT 1 FROM d.users x WHERE x.id = o.id)",
         "SELECT 1 FROM d.o WHERE EXISTS (SELECT 1 FROM {d.users} x WHERE x.id = o.id)"),
        ("SELECT id FROM d.users UNION ALL (SELECT id FROM users)",
         "SELECT id FROM {d.users} AS `users` UNION ALL (SELECT id FROM {users} AS `users`)"),
        ("INSERT INTO d.w (a) SELECT email FROM d.users", "INSERT INTO d.w (a) SELECT email FROM {d.users} AS `users`"),
        ("CREATE TABLE d.w AS SELECT * FROM d.users", "CREATE TABLE d.w AS SELECT * FROM {d.users} AS `users`"),
        ("EXPORT DATA OPTIONS (uri = 'gs://b/*', format = 'CSV') AS SELECT * FROM d.users",
         "EXPORT DATA OPTIONS (uri = 'gs://b/*', format = 'CSV') AS SELECT * FROM {d.users} AS `users`"),
        ("SELECT * FROM ML.PREDICT(MODEL d.m, (SELECT * FROM d.users))",
         "SELECT * FROM ML.PREDICT(MODEL d.m, (SELECT * FROM {d.users} AS `users`))"),
        ("DECLARE x STRING DEFAULT (SELECT MAX(email) FROM users); SELECT x",
         "DECLARE x STRING DEFAULT (SELECT MAX(email) FROM {users} AS `users`); SELECT x"),
        ("SELECT 'é\U0001f600'; SELECT 1 FROM users; SELECT 1 FROM d.users u",
         "SELECT 'é\U0001f600'; SELECT 1 FROM {users} AS `users`; SELECT 1 FROM {d.users} u"),
        ("IF (SELECT COUNT(*) > 1 FROM users) THEN SELECT 1; ELSE SELECT 1 FROM users; END IF",
         "IF (SELECT COUNT(*) > 1 FROM {users} AS `users`) THEN SELECT 1; ELSE SELECT 1 FROM {users} AS `users`; "
         "END IF"),
        ("CREATE TEMP TABLE users AS SELECT id FROM users; SELECT * FROM users; SELECT * FROM d.users",
         "CREATE TEMP TABLE users AS SELECT id FROM {users} AS `users`; SELECT * FROM users; "
         "SELECT * FROM {d.users} AS `users`"),
    ],
)  # fmt: skip
def test_scans_are_replaced_and_nothing_else(text: str, expected: str) -> None:
    found = done(text)
    assert found.text == re.sub(r"\{(.*?)\}", lambda name: QUERY.format(name[1]), expected, flags=re.DOTALL)
    assert (found.tables, found.why) == ((USERS,), "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT * FROM users FOR SYSTEM_TIME AS OF '2026-01-01'", "only a table may have (version)"),
        ("SELECT * FROM users TABLESAMPLE SYSTEM (10 PERCENT)", "only a table may have (sample)"),
        ("SELECT * FROM users UNPIVOT (v FOR n IN (email, u))", "only a table may have (pivots)"),
        ("SELECT * FROM users PIVOT (COUNT(id) FOR email IN ('a'))", "only a table may have (pivots)"),
        ("FROM users |> SELECT email", "pipes"),
        ("SELECT * FROM (FROM users |> WHERE id = 1)", "pipes"),
        ("SELECT * FROM VECTOR_SEARCH((SELECT * FROM users), 'v', (SELECT 1 AS v))", "VECTOR_SEARCH takes"),
        ("SELECT * FROM ML.PREDICT(MODEL d.m, TABLE d.users)", "the table is an argument"),
        ("SELECT d.users.email FROM d.users", "its full name"),
        ("SELECT p.d.users.email FROM p.d.users", "its full name"),
        ("SELECT `d.users`.email FROM d.users", "its full name"),
        ("SELECT d.users.* FROM d.users", "its full name"),
        ("SELECT _PARTITIONTIME, * FROM users", "_PARTITIONTIME is a column of tables alone"),
        ("SELECT * FROM users WHERE users.`_partitiondate` = '2026-01-01'", "is a column of tables alone"),
        ("SELECT * FROM `p.d.users$20260101`", "decorator"),
        ("DELETE FROM d.w WHERE id IN (SELECT id FROM users)", "DELETE could change"),
        ("DELETE FROM users WHERE email = 'x'", "DELETE could change"),
        ("UPDATE d.w SET a = u.email FROM users u WHERE w.id = u.id", "UPDATE could change"),
        ("MERGE d.w USING d.users u ON w.id = u.id WHEN MATCHED THEN DELETE", "MERGE could change"),
        ("SELECT 1 FROM users; TRUNCATE TABLE d.w", "TRUNCATE TABLE could change"),
        ("IF EXISTS (SELECT 1 FROM users WHERE email = 'x') THEN DROP TABLE d.w; END IF", "DROP TABLE could change"),
        ("CREATE VIEW d.v AS SELECT * FROM users", "CREATE VIEW could change"),
        ("CREATE PROCEDURE d.f() BEGIN SELECT * FROM d.users; END", "CREATE PROCEDURE could change"),
        ("EXECUTE IMMEDIATE 'SELECT * FROM d.users'", "EXECUTE IMMEDIATE could change"),
        ("CREATE OR REPLACE TABLE users AS SELECT * FROM users", "p.d.users is written"),
        ("INSERT INTO d.Users SELECT * FROM users", "p.d.Users is written"),
        ("CREATE TEMP FUNCTION f() AS ((SELECT id FROM users)); SELECT f()", "CREATE FUNCTION is not entered"),
        ("SELECT (", "cannot be read"),
        ("SELECT d.f(id) FROM users", "cannot be read"),
        ("SELECT * FROM users; CALL d.f()", "cannot be read"),
        ("SELECT 1 FROM " + ", ".join(f"users u{n}" for n in range(SCANS_LIMIT + 1)), f"more than {SCANS_LIMIT} scans"),
    ],
)  # fmt: skip
def test_what_cannot_be_replaced_is_left_and_says_why(text: str, why: str) -> None:
    found = done(text)
    assert why in found.why
    if not found.why.endswith("scans"):
        assert (found.text, found.tables) == (text, ())


def test_a_scan_that_is_left_leaves_others_alone() -> None:
    found = done("SELECT * FROM users u JOIN users FOR SYSTEM_TIME AS OF '2026-01-01' USING (id)")
    assert found.text.count("[redacted]") == 1
    assert (found.tables, found.why) == ((USERS,), "p.d.users: the scan has what only a table may have (version)")


@pytest.mark.parametrize("text", ["SELECT 1", "SELECT * FROM other", "SELECT * FROM x.users", "SELECT * FROM `users*`",
                                  "SELECT * FROM d.o users, users.tags", "SELECT * FROM d.Users",
                                  "WITH users AS (SELECT 1) SELECT * FROM users",
                                  "CREATE TABLE d.w CLONE d.users",
                                  "SELECT * FROM d.INFORMATION_SCHEMA.COLUMNS"])  # fmt: skip
def test_other_tables_are_left_alone(text: str) -> None:
    assert done(text) == Rewritten(text)


@pytest.mark.parametrize("text", [
    "SELECT * FROM users", "SELECT u FROM users u", "SELECT TO_JSON(u) AS j FROM users u", "SELECT email FROM users",
    "SELECT FORMAT('%t', u) FROM users u", "SELECT ANY_VALUE(u).email FROM users u", "SELECT ARRAY_AGG(u) FROM users u",
    "SELECT AS STRUCT * FROM users", "SELECT UPPER(email) AS e FROM users",
    "SELECT id FROM users UNION ALL SELECT email FROM users", "SELECT * FROM users a JOIN users b USING (id)",
    "WITH q AS (SELECT * FROM users) SELECT q FROM q", "CREATE TABLE d.w AS SELECT * FROM users",
    "INSERT INTO d.w SELECT * FROM users",
])  # fmt: skip
def test_nothing_of_a_replaced_column_is_left_in_the_result(text: str) -> None:
    before, after = (analyse(each, "p", "d").statements[-1].outputs for each in (text, done(text).text))
    assert before is not None
    assert after is not None
    assert shown(before) & {"users.email", "users", "users.*"}
    assert shown(after) <= {"users.id", "users.tags", "users.u"}
    assert not after.taint
    assert not [column for column in after.columns if column.taint]


def test_filters_are_none_on_a_replaced_column() -> None:
    (statement,) = analyse(done("SELECT id FROM users WHERE email = 'x' ORDER BY id").text, "p", "d").statements
    assert {".".join(origin.path) for origin in statement.filters} == {"id"}


@pytest.mark.parametrize("name", ["a`b", "a\\b", "", "a\nb"])
def test_a_name_that_cannot_be_quoted_leaves_the_text(name: str) -> None:
    scans = {USERS: (Replacement(name),)}
    assert rewrite("SELECT * FROM users", "p", "d", scans) == Rewritten(
        "SELECT * FROM users", why="a name cannot be quoted"
    )


@pytest.mark.parametrize("expression", [
    "1 FROM d.other --", "(SELECT 1 FROM d.other)", "1)) ; DROP TABLE d.other --", "f(", "d.f(1)", "'", "/*",
    "NET.HOST('x') FROM d.users) AS users; SELECT (1",
])  # fmt: skip
def test_a_text_that_would_do_something_else_is_not_used(expression: str) -> None:
    text = "SELECT * FROM users"
    found = rewrite(text, "p", "d", {USERS: (Replacement("id", expression),)})
    assert (found.text, found.tables) == (text, ())
    assert found.why


def test_limits_hold_for_the_new_text_as_well() -> None:
    text = "SELECT * FROM users"
    size = len(done(text).text)
    for most, tables in ((size, (USERS,)), (size - 1, ())):
        assert rewrite(text, "p", "d", SCANS, AnalysisLimits(text_bytes=most)).tables == tables


def test_a_text_grows_so_far_and_no_further() -> None:
    """Many scans of a wide table would be gigabytes before anybody counted."""
    wide = tuple(Replacement(f"column_{n}", "'x'") for n in range(1_000))
    text = "; ".join(["SELECT 1 FROM users"] * 1_900)
    assert rewrite(text, "p", "d", {USERS: wide}) == Rewritten(text, why="the rewritten text would be too long")


@pytest.mark.parametrize("name", FILES)
def test_the_corpus_does_the_same_when_rewritten(name: str) -> None:
    """Every table of every statement has columns id and email: what is rewritten reads and writes what it did."""
    count = 0
    for *_, line in lines(name):
        text = line.replace("\\n", "\n")
        before = analyse(text, "proj", "main")
        scans = {str(table): COLUMNS[:2] for table in before.tables_read}
        found = rewrite(text, "proj", "main", scans)
        if not found.tables:
            assert found.text == text
            continue
        count += 1
        after = analyse(found.text, "proj", "main")
        assert set(map(str, after.tables_read)) == set(map(str, before.tables_read))
        assert after.tables_written == before.tables_written
        assert [each.verb for each in after.statements] == [each.verb for each in before.statements]
        assert undone(found.text) == text
    assert count > 20


SCAN = re.compile(
    r"\(SELECT gatecast_row\.`id`, '\[redacted\]' AS `email` FROM ((?:[^()]|/\*.*?\*/)*?) AS gatecast_row\)"
    r"( AS `([^`]*)`)?"
)


def undone(text: str) -> str:
    """The text before: what rewriting puts in is taken out again."""

    def given(found: re.Match[str]) -> str:
        own = found[2] is None or found[1].rstrip("`").endswith(found[3])
        return found[1] if own else found[1] + found[2]

    return SCAN.sub(given, text)


PIECES = st.lists(
    st.sampled_from(["SELECT", "*", "FROM", "users", "d.users", "`p.d.users`", ",", "(", ")", "JOIN", "ON", "u", "AS",
                     "email", "id", "=", "1", "'x'", "WITH", "q", "UNION ALL", "WHERE", ".", "/*c*/", "--c\n", ";",
                     "USING (id)", "UNNEST(u.tags)", "-", "`", "t", "EXISTS", "IN"]), max_size=14,
).map(" ".join)  # fmt: skip


@given(PIECES)
def test_whatever_comes_does_the_same_afterwards(text: str) -> None:
    text = f"SELECT * FROM users {text}"
    found = done(text)
    before, after = analyse(text, "p", "d"), analyse(found.text, "p", "d")
    assert before.opaque == after.opaque
    assert set(before.tables_read) == set(after.tables_read)
    assert before.effects == after.effects
    assert bool(found.tables) == (found.text != text)


# -- in a process of its own ----------------------------------------------------------------------------


def test_a_worker_rewrites_what_the_process_would() -> None:
    async def main() -> None:
        analysts = Analysts()
        try:
            for text in ("SELECT * FROM users", "SELECT 'é' FROM d.users u", "SELECT (", "SELECT 1"):
                assert await analysts.rewrite(text, "p", "d", SCANS) == done(text)
                assert await analysts.read(text, "p", "d") == analyse(text, "p", "d")
            kept = await analysts.rewrite("SELECT * FROM users", "p", "d", SCANS)
            assert await analysts.rewrite("SELECT * FROM users", "p", "d", SCANS) is kept
            other = {USERS: (Replacement("id"),)}
            assert (await analysts.rewrite("SELECT * FROM users", "p", "d", other)).text != kept.text
            assert (await analysts.rewrite("SELECT * FROM users", "p", "e", SCANS)).tables == ()
            assert isinstance(await analysts.read("SELECT * FROM users", "p", "d"), Analysis)
            long = "SELECT " + "1" * 300_000
            assert await analysts.rewrite(long, "p", "d", SCANS) == Rewritten(
                long, why="the text is longer than 262144 bytes"
            )
        finally:
            await analysts.close()
        found = await analysts.rewrite("SELECT 2 FROM users", "p", "d", SCANS)
        assert found == Rewritten("SELECT 2 FROM users", why="the text took too long or too much to be read")

    asyncio.run(main())
