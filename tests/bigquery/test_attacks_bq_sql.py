"""Attacks on masks by SQL alone: values of a masked column brought to where no mask stands, or under another name.

Each text is read as the gateway reads it, from the request's body to the plan of its masks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from protocols.bigquery.commands import command_of, merged, texts_of
from protocols.bigquery.estimates import Estimate
from protocols.bigquery.lineage import _of_analysis
from protocols.bigquery.methods import VERBS
from protocols.bigquery.requests import Asked, read_request
from protocols.bigquery.schema import columns, read_schema
from proxy.core.events import Command
from proxy.core.http.heads import RequestHead
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Mask, Verdict
from proxy.core.warehouse import Analysis
from proxy.masking.masker import Masking
from proxy.policy.bigquery import analyse
from proxy.policy.rules import RuleSet, load_rules

MASKS = (Mask("hide", ("acme.crm.people.email",)),)
MASKING = Masking(b"k" * 32)
ONE = "DECLARE v STRING DEFAULT (SELECT email FROM crm.people LIMIT 1); "


def asked(body: object, path: str = "/bigquery/v2/projects/acme/jobs", method: str = "POST") -> Asked:
    """A request as the gateway has read it."""
    data = json.dumps(body).encode()
    head = RequestHead(method, path, (("Content-Type", "application/json"),), length=len(data))
    return read_request(head, data)


def command(request: Asked) -> tuple[Command, Analysis]:
    """What is decided on."""
    found = [analyse(*each) for each in texts_of(request)]
    analysis = merged(found) if found else Analysis()
    return command_of(request, analysis, Estimate(), 1, b""), analysis


def query(text: str) -> tuple[Command, Analysis]:
    """A query with crm as its default dataset."""
    settings = {"query": text, "useLegacySql": False, "defaultDataset": {"datasetId": "crm"}}
    return command(asked({"configuration": {"query": settings}}))


def hidden(text: str, names: Sequence[str]) -> set[str]:
    """Which columns of a result are masked; all of them where the text is refused."""
    made, analysis = query(text)
    if MASKING.guard(MASKS, made) is not None:
        return set(names)
    schema = read_schema({"fields": [{"name": name, "type": "STRING"} for name in names]})
    found = columns(schema, _of_analysis(analysis, {}, schema))
    plan = MASKING.plan(MASKS, made, found)
    return set() if plan is None else {column.name for column, cell in zip(found, plan.cells, strict=True) if cell}


LEFT, RIGHT = "SELECT name AS x, id AS y FROM people", "SELECT id AS y, email AS x FROM people"


@pytest.mark.parametrize(
    "operation",
    [
        "UNION ALL BY NAME",
        "UNION ALL BY NAME ON (x, y)",
        "UNION ALL CORRESPONDING",
        "UNION ALL STRICT CORRESPONDING",
        "UNION DISTINCT CORRESPONDING BY (x, y)",
        "INNER UNION ALL BY NAME",
        "LEFT UNION ALL BY NAME",
        "FULL OUTER UNION ALL BY NAME",
        "EXCEPT DISTINCT CORRESPONDING",
        "INTERSECT DISTINCT BY NAME",
    ],
)
def test_columns_that_meet_by_name_and_not_by_place(operation: str) -> None:
    """x is name or email there, and y is id alone: places would say that email is in y."""
    assert hidden(f"{LEFT} {operation} {RIGHT}", ["x", "y"]) == {"x"}
    within = f"WITH both AS ({LEFT} {operation} {RIGHT}) SELECT x, y FROM both"
    assert hidden(within, ["x", "y"]) == {"x"}


def test_columns_that_only_the_second_side_has() -> None:
    text = f"{LEFT} FULL OUTER UNION ALL BY NAME SELECT email AS z FROM people"
    assert hidden(text, ["x", "y", "z"]) == {"z"}


def test_columns_that_meet_by_name_in_a_chain_or_a_star() -> None:
    chain = f"{LEFT} UNION ALL BY NAME {RIGHT} UNION ALL BY NAME SELECT 1 AS y, 'a' AS x"
    assert hidden(chain, ["x", "y"]) == {"x"}
    assert "x" in hidden(f"SELECT * FROM people UNION ALL BY NAME {RIGHT}", ["id", "name", "x"])


@pytest.mark.parametrize("window", ["w AS (ORDER BY email)", "v AS (PARTITION BY email), w AS (v ORDER BY id)"])
def test_a_rank_by_a_window_that_has_a_name(window: str) -> None:
    """As where the window stands in OVER itself."""
    assert hidden("SELECT RANK() OVER (ORDER BY email) AS x FROM people", ["x"]) == {"x"}
    text = f"SELECT id AS n, RANK() OVER w AS x, SUM(1) OVER (w) AS y FROM people WINDOW {window}"
    assert hidden(text, ["n", "x", "y"]) == {"x", "y"}
    star = f"SELECT * REPLACE (RANK() OVER w AS name) FROM people WINDOW {window}"
    assert "name" in hidden(star, ["id", "name"])


KEPT = """
ALTER TABLE crm.t SET OPTIONS (description = v)
ALTER TABLE crm.t SET OPTIONS (labels = [('a', v)])
ALTER TABLE crm.t ALTER COLUMN a SET OPTIONS (description = v)
ALTER TABLE crm.t ALTER COLUMN a SET DEFAULT v
ALTER TABLE crm.t ALTER COLUMN a SET DEFAULT CONCAT('<', `V`, '>')
ALTER SCHEMA crm SET OPTIONS (description = v)
ALTER VIEW crm.w SET OPTIONS (description = v)
CREATE TABLE crm.t (a STRING) OPTIONS (description = v)
CREATE TABLE crm.t (a STRING OPTIONS (description = v))
CREATE TABLE crm.t (a STRING DEFAULT v)
CREATE TABLE crm.t OPTIONS (description = v) AS SELECT 1 AS x
CREATE TABLE crm.t AS SELECT v AS x
CREATE TEMP TABLE t OPTIONS (description = v) AS SELECT 1 AS x
CREATE VIEW crm.w OPTIONS (description = v) AS SELECT 1 AS x
CREATE SCHEMA x OPTIONS (description = v)
CREATE MODEL crm.m OPTIONS (model_type = 'linear_reg', description = v) AS SELECT 1 AS label
CREATE ROW ACCESS POLICY p ON crm.t GRANT TO ('user:ana@acme.com') FILTER USING (a = v)
EXPORT DATA OPTIONS (uri = v, format = 'CSV') AS SELECT 1 AS x
"""


@pytest.mark.parametrize("text", KEPT.strip().splitlines())
def test_a_value_that_a_variable_brings_into_a_definition(text: str) -> None:
    """tables.get shows descriptions and defaults, and no mask reads them."""
    made, _ = query(ONE + text)
    assert MASKING.guard(MASKS, made) is not None, text
    free, _ = query("DECLARE v STRING DEFAULT (SELECT name FROM crm.other LIMIT 1); " + text)
    assert MASKING.guard(MASKS, free) is None, text


@pytest.mark.parametrize(
    "text",
    [
        "FOR r IN (SELECT email FROM people) DO ALTER TABLE crm.t SET OPTIONS (description = r.email); END FOR",
        "BEGIN SELECT ERROR(email) FROM people; EXCEPTION WHEN ERROR THEN "
        "ALTER TABLE crm.t SET OPTIONS (description = @@error.message); END",
        "DECLARE v STRING; SET v = (SELECT email FROM people LIMIT 1); ALTER TABLE crm.t SET OPTIONS (description = v)",
    ],
)
def test_a_value_that_a_loop_or_an_error_brings_into_a_definition(text: str) -> None:
    made, _ = query(text)
    assert MASKING.guard(MASKS, made) is not None


@pytest.mark.parametrize(
    "text",
    [
        "DECLARE d DATE DEFAULT CURRENT_DATE(); CREATE TABLE crm.t OPTIONS (description = 'of today') AS "
        "SELECT name FROM people WHERE day = d",
        "DECLARE n INT64 DEFAULT 1; ALTER TABLE crm.t SET OPTIONS (description = 'n')",
        "DECLARE d DATE DEFAULT CURRENT_DATE(); ALTER TABLE crm.t SET OPTIONS (description = CAST(d AS STRING))",
    ],
)
def test_definitions_that_keep_no_masked_value(text: str) -> None:
    made, _ = query(text)
    assert MASKING.guard(MASKS, made) is None


# Results of which the text tells too little, or that are renamed on the way: the masked column is found in all.
RENAMED = """
SELECT x FROM (SELECT email FROM people) AS t(x)
SELECT STRUCT(email AS name).name AS x FROM people
SELECT (SELECT AS STRUCT email AS name).name AS x FROM people
SELECT IF(TRUE, STRUCT(name AS a), STRUCT(email AS b)).a AS x FROM people
SELECT [STRUCT(name AS a), STRUCT(email)][OFFSET(1)].a AS x FROM people
SELECT CAST(STRUCT(email AS a, name AS b) AS STRUCT<b STRING, a STRING>).b AS x FROM people
SELECT name AS x FROM (SELECT id, name FROM people) RIGHT JOIN (SELECT id, email AS name FROM people) USING (name)
WITH a AS (SELECT * FROM people), people AS (SELECT 'z' AS email) SELECT email AS x FROM a
WITH RECURSIVE r AS (SELECT name AS x, email AS e FROM people UNION ALL SELECT e, e FROM r) SELECT x FROM r
SELECT n AS x FROM people AS p, UNNEST(GENERATE_ARRAY(1, LENGTH(p.email))) AS n
SELECT o AS x FROM people AS p, UNNEST(SPLIT(p.email, '')) AS c WITH OFFSET AS o
SELECT JSON_VALUE(TO_JSON(people), '$.email') AS x FROM people
SELECT HLL_COUNT.EXTRACT(s) AS x FROM (SELECT HLL_COUNT.INIT(email) AS s FROM people)
CREATE TEMP FUNCTION f() AS ((SELECT ANY_VALUE(email) FROM crm.people)); SELECT f() AS x FROM other
EXECUTE IMMEDIATE 'SELECT ? AS x' USING (SELECT email FROM crm.people LIMIT 1)
BEGIN SELECT ERROR(email) FROM people; EXCEPTION WHEN ERROR THEN SELECT @@error.message AS x; END
FOR r IN (SELECT email AS x FROM people) DO SELECT 'a' AS x; END FOR
IF (SELECT email = 'a' FROM people LIMIT 1) THEN SELECT 'a' AS x; END IF
LOOP SELECT 'a' AS x; BREAK; END LOOP
SET @@dataset_id = 'crm'; SELECT email AS x FROM people
SELECT 1 /* /* */ AS y; SELECT email AS x FROM people -- */
"""


@pytest.mark.parametrize("text", RENAMED.strip().splitlines())
def test_a_masked_column_under_another_name(text: str) -> None:
    assert hidden(text, ["x"]) == {"x"}


# -- rules ----------------------------------------------------------------------------------------------

OF_PROJECTS = """
SELECT query FROM INFORMATION_SCHEMA.JOBS
SELECT query FROM information_schema.Jobs_By_Project
SELECT query FROM `INFORMATION_SCHEMA.JOBS`
SELECT query FROM crm.INFORMATION_SCHEMA.JOBS
SELECT query FROM acme.INFORMATION_SCHEMA.JOBS
SELECT query FROM `acme.INFORMATION_SCHEMA`.JOBS
SELECT query FROM `region-eu`.INFORMATION_SCHEMA.JOBS
SELECT query FROM acme.`region-eu`.INFORMATION_SCHEMA.JOBS_BY_FOLDER
SELECT * FROM INFORMATION_SCHEMA.SCHEMATA
SELECT * FROM acme.INFORMATION_SCHEMA.SCHEMATA
SELECT * FROM INFORMATION_SCHEMA.OBJECT_PRIVILEGES
SELECT * FROM INFORMATION_SCHEMA.A_VIEW_OF_TOMORROW
SET @@dataset_id = 'crm'; SELECT query FROM INFORMATION_SCHEMA.JOBS
"""


def rules(text: str) -> RuleSet:
    lake = Target("lake", "bigquery", database="acme")
    return load_rules("rules:\n" + text, "rules.yaml", [lake], verbs={"bigquery": VERBS}, detectors=())


def judged(text: str, made: Command) -> type[Verdict]:
    verdict = rules(text).judge(Identity("ana@acme.com"), Target("lake", "bigquery", database="acme"), made)
    return type(verdict)


@pytest.mark.parametrize("text", OF_PROJECTS.strip().splitlines())
def test_metadata_of_a_project_is_not_that_of_the_default_dataset(text: str) -> None:
    """INFORMATION_SCHEMA.JOBS shows everybody's SQL, with the values in it; a default dataset does not narrow it."""
    made, _ = query(text)
    own = '- {name: own, commands: {verbs: [read_rows, inspect, session], objects: ["acme.crm.*"]}, allow: true}\n'
    assert judged(own, made) is Deny
    but = '- {name: all, allow: true}\n- {name: but, commands: {objects: ["acme.hr.*"]}, deny: {reason: no}}\n'
    assert judged(but, made) is Deny


@pytest.mark.parametrize("view", ["TABLES", "COLUMNS", "PARTITIONS", "ROUTINES", "VIEWS"])
@pytest.mark.parametrize("before", ["", "crm.", "acme.crm."])
def test_metadata_of_a_dataset(view: str, before: str) -> None:
    made, _ = query(f"SELECT * FROM {before}INFORMATION_SCHEMA.{view}")
    own = '- {name: own, commands: {verbs: [inspect], objects: ["acme.crm.*"]}, allow: true}\n'
    assert judged(own, made) is Allow


def test_a_linked_dataset_reads_the_one_that_it_links_to() -> None:
    """Its tables have the names of the new dataset; a rule for the old one would not speak of them."""
    body = {
        "datasetReference": {"datasetId": "mine"},
        "linkedDatasetSource": {"sourceDataset": {"projectId": "acme", "datasetId": "hr"}},
    }
    made, _ = command(asked(body, "/bigquery/v2/projects/acme/datasets"))
    but = '- {name: all, allow: true}\n- {name: but, commands: {objects: ["acme.hr.pay"]}, deny: {reason: no}}\n'
    assert judged(but, made) is Deny
    other = '- {name: all, allow: true}\n- {name: but, commands: {objects: ["acme.pr.*"]}, deny: {reason: no}}\n'
    assert judged(other, made) is Allow
