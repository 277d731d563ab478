"""Rewritten queries on the emulator: masked columns hold masked values alone, and all else is as it was."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

import pytest

from protocols.bigquery.schema import Schema, read_schema
from proxy.core.verdict import Mask
from proxy.masking.warehouse_scan import replacements
from proxy.policy.bigquery_rewrite import rewrite
from tests.peers.bigquery import PROJECT, BigQueryServer

pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
REDACTED = "[redacted]"
SECRETS = ("p1@example.org", "p2@example.org", "p3@example.org", "p4@example.org", "zip1", "zip2", "zip3", "loft1",
           "loft2", "loft3", "nick1", "nick2", "nick3")  # fmt: skip
MASK = Mask("hide", columns=("*.*.people.email", "*.*.people.addr.zip", "*.*.people.homes.door", "*.*.people.nicks"))
ROWS = """
SELECT 1 AS id, 'p1@example.org' AS email, 'Ann' AS name, 30 AS age, STRUCT('zip1' AS zip, 'Ulm' AS city) AS addr,
  [STRUCT('loft1' AS door, 1 AS floor), STRUCT('loft2' AS door, 2 AS floor)] AS homes, ['nick1', 'nick2'] AS nicks
UNION ALL SELECT 2, 'p2@example.org', 'Bob', 40, STRUCT('zip2', 'Bonn'), [STRUCT('loft3', 3)], ['nick3']
UNION ALL SELECT 3, 'p3@example.org', 'Cid', 30, STRUCT('zip3', 'Ulm'), [], []
UNION ALL SELECT 4, 'p4@example.org', 'Dee', NULL, NULL, [], []
"""


@dataclass(frozen=True)
class World:
    """A dataset with people and pets, and what columns of people are to be shown as."""

    service: BigQueryServer
    name: str
    schema: Schema

    def run(self, text: str) -> list[str]:
        """The rows of a query, each as JSON, sorted."""
        return sorted(json.dumps(row) for row in self.service.sql(text))

    def both(self, text: str, new: str) -> tuple[list[str], list[str]]:
        """The rows of two queries; one behind the other, as the emulator mixes up what comes at once."""
        return self.run(text), self.run(new)

    def rewritten(self, text: str, mask: Mask = MASK) -> tuple[str, str]:
        """A query with its names put in, and the same as it runs under a mask."""
        text = text.replace("$", self.name).replace("#P", PROJECT)
        table = f"{PROJECT}.{self.name}.people"
        shown = replacements((mask,), table, self.schema)
        assert shown is not None
        found = rewrite(text, PROJECT, self.name, {table: shown})
        assert found.tables == (table,), found.why
        return text, found.text


@pytest.fixture(scope="module")
def world(bq_service: BigQueryServer) -> World:
    name = f"r{uuid.uuid4().hex[:8]}"
    value = {"datasetReference": {"projectId": PROJECT, "datasetId": name}}
    assert bq_service.api("POST", f"/projects/{PROJECT}/datasets", value)[0] == 200
    bq_service.sql(f"CREATE TABLE {name}.people AS {ROWS}")
    bq_service.sql(f"CREATE TABLE {name}.pets AS SELECT 1 AS owner, 'Rex' AS pet UNION ALL SELECT 1, 'Tom' "
                   "UNION ALL SELECT 2, 'Kit'")  # fmt: skip
    code, found = bq_service.api("GET", f"/projects/{PROJECT}/datasets/{name}/tables/people")
    assert code == 200, found
    return World(bq_service, name, read_schema(found["schema"]))


SHAPES = [
    "SELECT * FROM $.people",
    "SELECT id, email FROM $.people",
    "SELECT people.email, people.id FROM $.people",
    "SELECT p.* FROM $.people AS p",
    "SELECT * EXCEPT (email) FROM $.people",
    "SELECT * REPLACE (id + 1 AS id) FROM $.people",
    "SELECT * FROM `#P.$.people`",
    "SELECT email FROM `#P`.`$`.`people` AS `order`",
    "SELECT `select`.email FROM $.people AS `select`",
    "SELECT /* a */ email -- b\n FROM /* c */ $ /* d */ . /* e */ people -- f\n WHERE id > 0 /* g */",
    "SELECT email FROM $.people--x\n",
    "select Email from $.people where Age = 30 order by ID",
    "SELECT pet, email FROM $.people JOIN $.pets ON id = owner",
    "SELECT a.email, b.email FROM $.people a JOIN $.people b USING (id)",
    "SELECT p.email, q.pet FROM $.people p, $.pets q WHERE p.id = q.owner",
    "SELECT people.email, pets.pet FROM $.pets FULL JOIN $.people ON people.id = pets.owner",
    "WITH q AS (SELECT * FROM $.people), r AS (SELECT id, email FROM q WHERE age = 30) SELECT * FROM r",
    "WITH people AS (SELECT * FROM $.people WHERE id = 1) SELECT email FROM people",
    "SELECT x.e FROM (SELECT email AS e, id FROM $.people WHERE id < 3) AS x",
    "SELECT id, (SELECT MAX(p.email) FROM $.people p WHERE p.id = owner) FROM (SELECT 1 AS id, 2 AS owner)",
    "SELECT pet FROM $.pets WHERE EXISTS (SELECT 1 FROM $.people p WHERE p.id = owner AND p.age = 40)",
    "SELECT pet FROM $.pets WHERE owner IN (SELECT id FROM $.people WHERE name = 'Ann')",
    "SELECT pet, (SELECT name FROM $.people WHERE id = owner) AS name FROM $.pets",
    "SELECT email FROM $.people UNION ALL SELECT pet FROM $.pets",
    "SELECT id FROM $.people WHERE id < 3 EXCEPT DISTINCT SELECT owner FROM $.pets WHERE pet = 'Kit'",
    "SELECT id, email, ROW_NUMBER() OVER (PARTITION BY age ORDER BY id) AS n FROM $.people",
    "SELECT id, LAG(email) OVER (ORDER BY id) AS l FROM $.people",
    "SELECT email, id FROM $.people QUALIFY ROW_NUMBER() OVER (PARTITION BY age ORDER BY id) = 1",
    "SELECT age, COUNT(*) AS n, COUNT(email) AS e FROM $.people GROUP BY age HAVING COUNT(*) > 0",
    "SELECT CASE WHEN age > 35 THEN email ELSE name END AS c FROM $.people",
    "SELECT ARRAY_AGG(email ORDER BY id) AS es FROM $.people",
    "SELECT STRUCT(email AS e, id) AS s FROM $.people",
    "SELECT TO_JSON_STRING(STRUCT(email, id)) AS j FROM $.people",
    "SELECT id, addr.zip, addr.city FROM $.people",
    "SELECT id FROM $.people WHERE addr IS NULL",
    "SELECT p.id, n FROM $.people p, UNNEST(p.nicks) AS n",
    "SELECT p.id, n FROM $.people p, p.nicks AS n",
    "SELECT p.id, h.door, h.floor FROM $.people p, UNNEST(p.homes) AS h",
    "SELECT id, homes FROM $.people",
    "SELECT id, nicks[OFFSET(0)] AS first FROM $.people WHERE ARRAY_LENGTH(nicks) > 0",
    "SELECT DISTINCT age FROM $.people",
    "SELECT a.email FROM ($.people a JOIN $.pets ON id = owner)",
]


@pytest.mark.parametrize("text", SHAPES)
def test_rows_are_what_they_were_but_for_masked_values(world: World, text: str) -> None:
    text, new = world.rewritten(text)
    expected, found = world.both(text, new)
    for secret in SECRETS:
        expected = [row.replace(f'"{secret}"', f'"{REDACTED}"').replace(f'"{secret}\\"', f'"{REDACTED}\\"')
                    for row in expected]  # fmt: skip
    assert found == sorted(expected)


@pytest.mark.parametrize("text", [
    "SELECT p FROM $.people p",
    "SELECT TO_JSON_STRING(p) AS j FROM $.people p",
    "SELECT TO_JSON(people) AS j FROM $.people",
    "SELECT ANY_VALUE(p).email AS e FROM $.people p",
    "SELECT ARRAY_AGG(p) AS all_of_them FROM $.people p",
    "SELECT v, n FROM (SELECT email, name FROM $.people) UNPIVOT (v FOR n IN (email, name))",
])  # fmt: skip
def test_whole_rows_hold_no_masked_value(world: World, text: str) -> None:
    text, new = world.rewritten(text)
    before, after = world.both(text, new)
    assert len(before) == len(after)
    assert any(secret in row for row in before for secret in SECRETS)
    assert not [row for row in after for secret in SECRETS if secret in row]


@pytest.mark.parametrize("text", [
    "SELECT id FROM $.people WHERE email = 'p1@example.org'",
    "SELECT id FROM $.people WHERE email LIKE 'p%'",
    "SELECT id FROM $.people p WHERE p.addr.zip = 'zip1'",
    "SELECT a.id FROM $.people a JOIN (SELECT 'p1@example.org' AS e) ON e = email",
])  # fmt: skip
def test_filters_ask_masked_values(world: World, text: str) -> None:
    text, new = world.rewritten(text)
    before, after = world.both(text, new)
    assert before
    assert after == []


def test_what_is_stored_is_masked(world: World) -> None:
    _, new = world.rewritten("CREATE TABLE $.copied AS SELECT * FROM $.people")
    world.run(new)
    _, new = world.rewritten("INSERT INTO $.copied SELECT * FROM $.people WHERE id = 1")
    world.run(new)
    stored = world.run(f"SELECT * FROM {world.name}.copied")
    assert len(stored) == 5
    assert not [row for row in stored for secret in SECRETS if secret in row]


def test_a_script_reads_masked_values(world: World) -> None:
    text = "DECLARE n STRING DEFAULT (SELECT email FROM $.people WHERE id = 1); SELECT n AS x"
    text, new = world.rewritten(text)
    assert world.run(text) == ['["p1@example.org"]']
    assert world.run(new) == [f'["{REDACTED}"]']


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (Mask("m", columns=("people.name",), action="null"), [None] * 4),
        (Mask("m", columns=("people.age",)), [None] * 4),
        (Mask("m", columns=("people.name",), action="constant", text="it's \\ \u00e9 \" `x` ? @y"),
         ["it's \\ \u00e9 \" `x` ? @y"] * 4),
        (Mask("m", columns=("people.name",), action="partial", keep=1), ["**b", "**d", "**e", "**n"]),
        (Mask("m", columns=("people.email",), action="partial", keep=4), ["**********.org"] * 4),
        (Mask("m", columns=("people.email",), action="partial", keep=8), ["*" * 14] * 4),
    ],
)  # fmt: skip
def test_actions_are_those_of_results(world: World, mask: Mask, shown: list[str | None]) -> None:
    column = mask.columns[0].rpartition(".")[2]
    _, new = world.rewritten(f"SELECT {column} FROM $.people", mask)
    assert [json.loads(row)[0] for row in world.run(new)] == shown
