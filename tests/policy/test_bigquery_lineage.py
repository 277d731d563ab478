"""Where each column of a result comes from, and what is tainted: bigquery note 9."""

from __future__ import annotations

import pytest

from proxy.core.warehouse import Outputs, ResultColumn
from proxy.policy.bigquery import analyse


def outputs(text: str) -> Outputs:
    found = analyse(text, "p", "d").statements[-1].outputs
    assert found is not None
    return found


def paths(column: ResultColumn) -> set[str]:
    return {".".join([origin.table.table, *origin.path]) for origin in column.origins}


def resolved(text: str, name: str) -> ResultColumn:
    (column,) = outputs(text).resolve([name])
    return column


@pytest.mark.parametrize(
    ("text", "name", "expected", "bare"),
    [
        ("SELECT email FROM users", "email", {"users.email"}, True),
        ("SELECT u.email AS x FROM users u", "x", {"users.email"}, True),
        ("SELECT UPPER(email) FROM users", "f0_", {"users.email"}, False),
        ("SELECT * FROM users", "email", {"users.email"}, True),
        ("SELECT * FROM users", "EMAIL", {"users.email"}, True),
        ("SELECT * FROM a JOIN b USING (id)", "email", {"a.email", "b.email"}, True),
        ("SELECT * FROM a JOIN b USING (id)", "email_1", {"a.email", "b.email", "a.email_1", "b.email_1"}, True),
        ("SELECT x.* FROM (SELECT email, id FROM users) x", "email", {"users.email"}, True),
        ("WITH q AS (SELECT email AS e FROM users) SELECT e FROM q", "e", {"users.email"}, True),
        ("WITH q AS (SELECT * FROM users) SELECT * FROM q", "email", {"users.email"}, True),
        ("SELECT id FROM a UNION ALL SELECT email FROM b", "id", {"a.id", "b.email"}, True),
        ("SELECT id FROM a UNION ALL SELECT * FROM b", "id", {"a.id", "b"}, False),
        ("SELECT (SELECT MAX(email) FROM users) AS m", "m", {"users.email"}, False),
        ("SELECT e FROM users u, UNNEST(u.emails) AS e", "e", {"users.emails", "users.e"}, True),
        ("SELECT e.zip FROM users u, u.addrs AS e", "zip", {"users.addrs.zip"}, True),
        ("SELECT addr.zip FROM users", "zip", {"users.addr.zip"}, True),
        ("SELECT addrs[OFFSET(0)].zip FROM users", "zip", {"users.addrs.zip"}, True),
        ("SELECT * REPLACE (UPPER(email) AS email) FROM users", "email", {"users.email"}, False),
        ("SELECT ARRAY_AGG(email) AS es FROM users", "es", {"users.email"}, True),
        ("SELECT CASE WHEN id > 1 THEN email ELSE name END AS c FROM users", "c",
         {"users.id", "users.email", "users.name"}, False),
        ("SELECT 1 + 2 AS n FROM users", "n", set(), False),
        ("SELECT COUNT(*) AS n FROM users", "n", set(), False),
        ("INSERT INTO w (a) SELECT email FROM users", "email", {"users.email"}, True),
        ("CREATE TABLE w AS SELECT email FROM users", "email", {"users.email"}, True),
    ],
)  # fmt: skip
def test_a_column_has_its_origins(text: str, name: str, expected: set[str], bare: bool) -> None:
    column = resolved(text, name)
    assert (paths(column), column.bare, column.taint) == (expected, bare, "")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT u AS x FROM users u",
        "SELECT TO_JSON(u) AS x FROM users u",
        "SELECT TO_JSON_STRING(u) AS x FROM users u",
        "SELECT FORMAT('%t', u) AS x FROM users AS u",
        "SELECT ARRAY_AGG(u) AS x FROM users u",
        "SELECT AS STRUCT u.* FROM users u",
        "SELECT CONCAT(TO_JSON_STRING((SELECT AS STRUCT u.*))) AS x FROM users u",
    ],
)
def test_a_whole_row_is_the_whole_row(text: str) -> None:
    columns = outputs(text).columns
    assert any(origin.path == () for column in columns for origin in column.origins) or outputs(text).stars


def test_a_row_passes_its_fields_on() -> None:
    assert paths(resolved("SELECT u FROM users u", "u").field("email")) == {"users.email", "users.u.email"}
    assert "users.email" in paths(resolved("SELECT ANY_VALUE(u).email FROM users u", "email"))


def test_a_struct_keeps_its_fields_apart() -> None:
    column = resolved("SELECT STRUCT(email AS e, id) AS s FROM users", "s")
    assert paths(column.field("e")) == {"users.email"}
    assert paths(column.field("ID")) == {"users.id"}
    assert paths(column.field("nothing")) == {"users.email", "users.id"}


@pytest.mark.parametrize(
    "text",
    [
        "SELECT v AS x FROM users UNPIVOT (v FOR n IN (email, name))",
        "SELECT x FROM users PIVOT (ANY_VALUE(email) FOR id IN (1 AS x))",
        "SELECT x FROM tvf(TABLE users)",
        "SELECT x FROM EXTERNAL_QUERY('c', 'select 1')",
        "SELECT d.f(id) AS x FROM users",
        "DECLARE x STRING DEFAULT (SELECT email FROM users LIMIT 1); SELECT x",
        "DECLARE x STRING DEFAULT (SELECT email FROM users LIMIT 1); SELECT x FROM other",
        "FOR r IN (SELECT email FROM users) DO SELECT r.email AS x; END FOR",
        "CREATE TEMP FUNCTION f() AS ((SELECT MAX(email) FROM users)); SELECT f() AS x",
        "CREATE TEMP TABLE q AS SELECT email AS x FROM users; SELECT x FROM q",
        "BEGIN SELECT ERROR(email) FROM users; EXCEPTION WHEN ERROR THEN SELECT @@error.message AS x; END",
        "WITH RECURSIVE r AS (SELECT email AS x FROM users UNION ALL SELECT x FROM r) SELECT x FROM r",
        "FROM users |> SELECT email AS x",
        "SELECT x FROM _SESSION.earlier",
        "CREATE PROCEDURE pr(IN x STRING) BEGIN SELECT x; END",
    ],
)
def test_what_is_not_followed_is_tainted(text: str) -> None:
    assert resolved(text, "x").taint


def test_a_name_that_nothing_explains_is_tainted() -> None:
    assert resolved("SELECT email FROM users", "other").taint


def test_filters_are_told() -> None:
    statement = analyse("SELECT id FROM users u WHERE email = 'x' ORDER BY name", "p", "d").statements[0]
    assert {".".join(origin.path) for origin in statement.filters} == {"email", "name"}


def test_writes_that_store_what_they_read_say_so() -> None:
    for text in ("INSERT INTO w SELECT email FROM users", "CREATE TABLE w AS SELECT email FROM users",
                 "CREATE TABLE w CLONE users", "UPDATE w SET a = u.email FROM users u WHERE w.id = u.id",
                 "MERGE w USING users u ON w.id = u.id WHEN MATCHED THEN UPDATE SET a = u.email",
                 "EXPORT DATA OPTIONS (uri = 'gs://b/*') AS SELECT email FROM users",
                 "CREATE VIEW w AS SELECT email FROM users"):  # fmt: skip
        statement = analyse(text, "p", "d").statements[0]
        assert statement.moves_data, text
        found = statement.outputs
        assert found is not None
        assert found.taint or "email" in {
            o.path[-1] for o in (*found.also, *(o for c in found.columns for o in c.origins))
        }
    assert not analyse("INSERT INTO w VALUES (1, 'x')", "p", "d").statements[0].moves_data
