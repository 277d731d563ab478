"""Texts made to be read in another way than the service reads them, and texts made to cost their reader too much."""

from __future__ import annotations

import asyncio
import random
import re

import pytest

from proxy.core.warehouse import Analysis
from proxy.policy.bigquery import analyse
from proxy.policy.bigquery_lex import Token, tokens_of
from proxy.policy.bigquery_workers import Analysts
from tests.policy.test_bigquery_corpus import FILES, lines, summary


def read(text: str, dataset: str | None = "main") -> Analysis:
    return analyse(text, "proj", dataset)


def reads(text: str, dataset: str | None = "main") -> list[str]:
    """The tables that the last statement of a text reads; it has to be read."""
    last = read(text, dataset).statements[-1]
    assert not last.opaque, last.why
    return [str(table) for table in last.tables_read]


# -- names ----------------------------------------------------------------------------------------------


def test_a_default_dataset_has_a_project_of_its_own() -> None:
    """A request's defaultDataset does not change what dataset.table means. Source: JobConfigurationQuery."""
    assert reads("SELECT * FROM t, d.t", "q.e") == ["q.e.t", "proj.d.t"]
    assert reads("SELECT * FROM t", "google.com:q.e") == ["google.com:q.e.t"]
    assert reads("SELECT * FROM INFORMATION_SCHEMA.TABLES", "q.e") == ["q.e.INFORMATION_SCHEMA.TABLES"]
    assert read("SELECT 1", "a.b.c").opaque


def test_a_default_that_nobody_can_tell_is_no_default() -> None:
    assert reads("SET @@dataset_id = 'f'; SELECT * FROM t") == ["proj.f.t"]
    assert reads("SET @@dataset_project_id = 'z'; SET @@dataset_id = 'f'; SELECT * FROM t", "q.e") == ["z.f.t"]
    assert reads("SET @@dataset_project_id = 'z'; SELECT * FROM d.t") == ["z.d.t"]
    for text in (
        "SET @@dataset_project_id = 'z'; SELECT * FROM t", "SET @@dataset_id = 'f.g'; SELECT * FROM t",
        "SET @@dataset_id = ''; SELECT * FROM t",
    ):  # fmt: skip
        assert read(text).statements[-1].opaque, text
    assert read("SET @@dataset_id = 'f'; SELECT * FROM t", "q.e").statements[-1].opaque
    assert read("SET @@dataset_project_id = 'z'; SELECT * FROM INFORMATION_SCHEMA.TABLES").statements[-1].opaque


@pytest.mark.parametrize("join", [", `x.secret` AS s", " JOIN `x.secret` AS s ON TRUE", " CROSS JOIN `x.secret` s"])
def test_a_name_in_one_pair_of_quotes_is_a_table_though_it_begins_with_an_alias(join: str) -> None:
    text = f"SELECT s.email FROM d.t AS x{join}"
    assert reads(text) == ["proj.d.t", "proj.x.secret"]
    outputs = read(text).statements[0].outputs
    assert outputs is not None
    (column,) = outputs.resolve(["email"])
    assert column.taint
    assert {str(origin.table) for origin in column.origins} == {"proj.d.t", "proj.x.secret"}
    assert reads("SELECT * FROM d.t AS x, `x`.secret") == ["proj.d.t"], "an array"


@pytest.mark.parametrize(
    "text",
    [
        "WITH `d.t` AS (SELECT email FROM users) SELECT * FROM `d.t`",
        "SELECT * FROM (SELECT * FROM users) AS `x.y`, `x.y`.z",
        "SELECT * FROM users AS `x.y`, `x.y`.z",
        "SELECT * FROM UNNEST([STRUCT([1] AS z)]) AS `x.y`, `x.y`.z",
    ],
)
def test_a_name_that_reads_like_a_path_is_opaque(text: str) -> None:
    """It would be taken for a table, and the masks of what it really shows would be lost."""
    assert read(text).opaque


# -- what is there when -----------------------------------------------------------------------------------


def test_a_temporary_table_that_is_gone_is_no_cover_for_a_table() -> None:
    made = "CREATE TEMP TABLE secret (a INT64); "
    assert reads(made + "SELECT * FROM secret") == ["proj._SESSION.secret"]
    assert reads(made + "DROP TABLE secret; SELECT * FROM secret") == ["proj.main.secret"]
    assert reads(made + "DROP TABLE _SESSION.SECRET; SELECT * FROM secret") == ["proj.main.secret"]
    for gone in ("ALTER TABLE secret RENAME TO other; ", "ROLLBACK; "):
        assert read(made + gone + "SELECT * FROM secret").statements[-1].opaque
    assert reads("CREATE PROCEDURE d.p() BEGIN SELECT * FROM secret; END") == ["proj.main.secret"]
    assert reads(made + "CREATE PROCEDURE d.p() BEGIN SELECT * FROM secret; END") == ["proj.main.secret"]


@pytest.mark.parametrize("change", ["CREATE TEMP TABLE secret (a INT64)", "SET @@dataset_id = 'e'",
                                    "EXECUTE IMMEDIATE 'CREATE TEMP TABLE secret (a INT64)'"])  # fmt: skip
@pytest.mark.parametrize(
    "frame",
    [
        "x: BEGIN LEAVE x; {}; END x; ", "BEGIN SELECT ERROR('x'); {}; EXCEPTION WHEN ERROR THEN SELECT 1; END; ",
        "BEGIN BEGIN SELECT ERROR('x'); {}; END; EXCEPTION WHEN ERROR THEN SELECT 1; END; ",
        "x: BEGIN LOOP LEAVE x; END LOOP; {}; END x; ", "IF FALSE THEN {}; END IF; ", "LOOP BREAK; {}; END LOOP; ",
        "WHILE FALSE DO {}; END WHILE; ", "FOR r IN (SELECT 1 LIMIT 0) DO {}; END FOR; ",
        "CASE WHEN FALSE THEN {}; END CASE; ", "REPEAT BREAK; {}; UNTIL TRUE END REPEAT; ",
        "CREATE PROCEDURE d.p() BEGIN {}; END; ",
    ],
)  # fmt: skip
def test_what_may_not_have_run_decides_nothing(change: str, frame: str) -> None:
    found = read(frame.format(change) + "SELECT * FROM secret")
    assert found.statements[-1].opaque


@pytest.mark.parametrize("change", ["CREATE TEMP TABLE secret (a INT64)", "SET @@dataset_id = 'e'"])
@pytest.mark.parametrize("loop", ["LOOP {} END LOOP", "WHILE TRUE DO {} END WHILE", "REPEAT {} UNTIL FALSE END REPEAT",
                                  "FOR r IN (SELECT 1) DO {} END FOR", "LOOP BEGIN {} END; END LOOP"])  # fmt: skip
def test_a_loop_that_changes_names_changes_them_for_its_beginning(change: str, loop: str) -> None:
    assert read(loop.format(f"SELECT * FROM secret; {change};")).opaque


def test_what_runs_for_certain_decides() -> None:
    made = "CREATE TEMP TABLE q AS SELECT 1 AS a"
    assert reads(f"BEGIN {made}; END; SELECT * FROM q") == ["proj._SESSION.q"]
    found = read(f"BEGIN {made}; SELECT * FROM q; EXCEPTION WHEN ERROR THEN ROLLBACK; RAISE; END")
    assert not found.opaque
    assert [str(table) for table in found.tables_read] == ["proj._SESSION.q"]


# -- mutations ------------------------------------------------------------------------------------------


def corpus(step: int) -> list[str]:
    every = [text.replace("\\n", "\n") for name in FILES for *_, text in lines(name)]
    return every[::step]


def tokens(text: str) -> list[Token] | None:
    try:
        return tokens_of(text, 10_000, 64)
    except Exception:  # what has no tokens is opaque, and not of interest here
        return None


def spaced(text: str, found: list[Token], between: str) -> str:
    """The same tokens, with something else where there was space; dashes in names stay where they are."""
    parts, at = [], 0
    for token in found:
        gap = text[at : token.start]
        parts += [between if gap.strip(" \t\r\n\f\v") == "" and gap else gap, text[token.start : token.end]]
        at = token.end
    return "".join(parts)


@pytest.mark.parametrize("between", ["\n", "\t \r\n", " /* ; DROP TABLE d.x; */ ", " -- '\n", ' # "\n', "/**/ /***/"])
def test_space_and_comments_change_nothing(between: str) -> None:
    wrong = []
    for text in corpus(11):
        found = tokens(text)
        if found is None or any(part in text.upper() for part in ("LEGACYSQL", "EXECUTE")):
            continue
        changed = spaced(text, found, between)
        if summary(read(changed)) != summary(read(text)):
            wrong.append(changed)
    assert not wrong, wrong[:5]


def test_the_case_of_words_changes_nothing_but_names() -> None:
    words = re.compile(
        r"\b(SELECT|FROM|WHERE|JOIN|DELETE|INSERT|INTO|DROP|TABLE|CREATE|BEGIN|END|WITH|AS|MERGE|USING)\b"
    )
    wrong = []
    for text in corpus(5):
        if "'" in text or '"' in text or "`" in text:
            continue
        changed = words.sub(lambda found: found[0].swapcase() if len(found[0]) % 2 else found[0].capitalize(), text)
        if summary(read(changed)) != summary(read(text)):
            wrong.append(changed)
    assert not wrong, wrong[:5]


def test_nothing_before_or_behind_hides_an_effect() -> None:
    for text in corpus(13):
        alone = read(text)
        if alone.control or text.startswith(("BEGIN", "DECLARE", "COMMIT", "ROLLBACK")) or not tokens(text):
            continue
        for frame in ("SELECT 1; {}", "SELECT ';' /* ; */; {}", "{}\n; SELECT '--'", "SELECT 1 # '\n; {}", ";;{}\n;;"):
            framed = read(frame.format(text))
            assert framed.opaque or set(alone.effects) <= set(framed.effects), frame.format(text)
            assert framed.opaque or not alone.opaque, frame.format(text)


def test_texts_with_a_token_more_or_less_are_read_or_refused() -> None:
    """Never an exception, and what is opaque says why and is no read."""
    rng = random.Random(20261121)  # the same texts in every run
    pool = [token.text for text in corpus(37) for token in tokens(text) or ()]
    for text in corpus(9):
        found = tokens(text)
        if not found:
            continue
        words = [token.text for token in found]
        at = rng.randrange(len(words))
        for changed in (
            [*words[:at], *words[at + 1 :]], [*words[:at], rng.choice(pool), *words[at:]],
            [*words[:at], words[at], *words[at:]], [*words[:at], rng.choice(pool), *words[at + 1 :]],
        ):  # fmt: skip
            analysis = read(" ".join(changed))
            assert analysis.statements
            for statement in analysis.statements:
                assert not statement.opaque or (statement.why and statement.verb in ("UNKNOWN", "call", "grant"))


# -- depth and length -------------------------------------------------------------------------------------

DEEP = {
    "not": "SELECT " + "NOT " * 10_000 + "TRUE",
    "minus": "SELECT " + "- " * 10_000 + "1",
    "case": "SELECT " + "CASE WHEN a THEN " * 2_000 + "1" + " END" * 2_000,
    "open case": "SELECT " + "CASE " * 8_000,
    "types": "SELECT CAST(x AS " + "ARRAY<STRUCT<a " * 2_000 + "INT64" + ">>" * 2_000 + ")",
    "joins": "SELECT * FROM " + "d.t JOIN " * 3_000 + "d.u" + " ON TRUE" * 3_000,
    "indexes": "SELECT a" + "[0]" * 8_000,
    "is": "SELECT a " + "IS NOT NULL " * 8_000,
    "interval": "SELECT " + "INTERVAL " * 8_000 + "1 DAY",
    "blocks": "IF TRUE THEN " * 51 + "SELECT 1;" + " END IF;" * 51,
    "selects": "SELECT " * 10_000,
    "withs": "WITH " * 10_000,
}
LONG = {
    "union": "SELECT 1 " + "UNION ALL SELECT 1 " * 4_000,
    "and": "SELECT * FROM d.t WHERE " + "a AND " * 10_000 + "b",
    "values": "INSERT d.t VALUES " + "(1)," * 8_000 + "(1)",
    "with": "WITH a0 AS (SELECT a, b FROM d.t)"
    + "".join(f", a{n} AS (SELECT x.a, y.b FROM a{n - 1} x, a{n - 1} y)" for n in range(1, 600))
    + " SELECT * FROM a599",
    "struct": "WITH a0 AS (SELECT a FROM d.t)"
    + "".join(f", a{n} AS (SELECT STRUCT(x AS a, x AS b) AS s FROM a{n - 1} x)" for n in range(1, 40))
    + " SELECT * FROM a39",
}


def test_depth_without_brackets_costs_its_sender_an_error() -> None:
    async def main() -> None:
        analysts = Analysts(workers=1)
        try:
            for name, text in DEEP.items():
                found = await analysts.read(text, "p", "d")
                assert found.opaque, name
                assert all(statement.verb == "UNKNOWN" for statement in found.statements if statement.opaque), name
                assert not (await analysts.read(f"SELECT '{name}'", "p", "d")).opaque
        finally:
            await analysts.close()

    asyncio.run(main())


@pytest.mark.parametrize("name", LONG)
def test_length_alone_is_no_reason_to_refuse(name: str) -> None:
    found = read(LONG[name])
    assert not found.opaque, found.why
