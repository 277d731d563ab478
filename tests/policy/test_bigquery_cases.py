"""What is asked of BigQuery in cases and explanations, as the gate itself reads it; the page's rules and cases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from protocols.bigquery.methods import KIND_OF, VERBS
from proxy.core.errors import ConfigError
from proxy.core.events import Command
from proxy.core.parties import Target
from proxy.core.verdict import Mask
from proxy.masking import Masking
from proxy.policy.cases import BigQueryAsked, CaseResult, read_cases, run_cases
from proxy.policy.rules import load_rules
from proxy.trying import bigquery_command, way_to_bigquery

LAKE = Target("lake", "bigquery", database="acme")
SHOP = Target("shop", "postgres", database="shop")
ANYWHERE = Target("anywhere", "bigquery", settings={"trusted_routines": ("acme.lib.clean",), "price_per_tib": 8.0})
PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
ANA = "identity: {subject: ana}, target: lake"


def asked(text: str, target: Target = LAKE, **more: Any) -> Command:
    return bigquery_command(BigQueryAsked(way_to_bigquery(text), text, **more), target)


def results(rules: str, cases: str) -> list[CaseResult]:
    targets = (LAKE, SHOP, ANYWHERE)
    loaded = load_rules(rules, "rules.yaml", targets, verbs={"bigquery": VERBS, "postgres": ()}, detectors=())
    found = read_cases(cases, "cases.yaml", targets)
    return run_cases(
        found, loaded, lambda text: Command("postgres", "SELECT", "read", text), None, None, bigquery_command
    )


def effects(command: Command) -> list[tuple[str, tuple[str, ...]]]:
    return [(part.verb, part.objects) for part in command.parts or (command,)]


def test_the_page_s_rules_and_cases() -> None:
    (rules,) = re.findall(r"```yaml bigquery-rules\n(.*?)```", PAGE, re.DOTALL)
    (cases,) = re.findall(r"```yaml bigquery-cases\n(.*?)```", PAGE, re.DOTALL)
    found = results(rules, cases)
    assert len(found) == cases.count("- name: ") >= 4
    assert not [(one.case.name, one.problems, one.explanation) for one in found if not one.passed]


def test_the_page_names_every_verb_with_its_kind() -> None:
    table = PAGE[PAGE.index("| verb | its kind |") :].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?`) \| `(\w+)` \|", table, re.MULTILINE)
    told = {verb: kind for verbs, kind in rows for verb in re.findall(r"`(\w+)`", verbs)}
    assert told == {verb: kind for verb, kind in KIND_OF.items() if verb not in ("discover", "UNKNOWN")}


@pytest.mark.parametrize(
    ("text", "more", "wanted"),
    [
        ("select 1", {}, [("read_rows", ())]),
        ("select * from shop.orders", {}, [("read_rows", ("acme.shop.orders",))]),
        ("select * from orders", {"dataset": "shop"}, [("read_rows", ("acme.shop.orders",))]),
        ("select * from orders", {"dataset": "other.shop"}, [("read_rows", ("other.shop.orders",))]),
        ("select * from orders", {}, [("read_rows", ("acme.*.orders",))]),
        ("select * from shop.orders", {"project": "mine"}, [("read_rows", ("mine.shop.orders",))]),
        ("truncate table shop.t", {}, [("destroy", ("acme.shop.t",))]),
        ("GET /bigquery/v2/projects/acme/datasets", {}, [("inspect", ("acme.*.*",))]),
        ("GET /bigquery/v2/projects/acme/datasets/d/tables/t/data", {}, [("read_rows", ("acme.d.t",))]),
        ("DELETE /bigquery/v2/projects/acme/datasets/d", {}, [("destroy", ("acme.d.*",))]),
        ("GET /bigquery/v2/projects/acme/jobs/j", {}, [("poll", ())]),
        ("POST /bigquery/v2/projects/acme/jobs/j/cancel", {}, [("cancel", ())]),
        ("POST /bigquery/v2/projects/acme/queries", {"body": "{query: select 1, useLegacySql: false, dryRun: true}"},
         [("inspect", ())]),
        ("POST /bigquery/v2/projects/acme/datasets/d/tables",
         {"body": '{"tableReference": {"tableId": "v"}, "view": {"query": "select a from d.t"}}'},
         [("read_rows", ("acme.d.t",)), ("define", ("acme.d.v",))]),
        ("POST /bigquery/v2/projects/acme/jobs",
         {"body": "configuration: {copy: {sourceTable: {datasetId: d, tableId: a}, destinationTable: "
                  "{datasetId: d, tableId: b}, writeDisposition: WRITE_TRUNCATE}}"},
         [("read_rows", ("acme.d.a",)), ("write_rows", ("acme.d.b",)), ("destroy", ("acme.d.b",))]),
    ],
)  # fmt: skip
def test_requests_are_read_as_the_gate_reads_them(
    text: str, more: dict[str, Any], wanted: list[tuple[str, tuple[str, ...]]]
) -> None:
    command = asked(text, **more)
    assert effects(command) == wanted
    assert command.protocol == "bigquery" and command.facts["bq_method"]


def test_what_the_target_would_tell_is_the_case_s() -> None:
    command = asked("select * from d.v", bytes=2**40, beneath=("acme.d.customers",))
    assert command.facts["bq_bytes"] == 2**40 and command.facts["bq_price"] == 6.25 and command.facts["bq_dry_run"]
    assert command.facts["beneath"] == ("acme.d.customers",)
    settled = asked("select acme.lib.clean(a) from acme.d.t", ANYWHERE, project="acme", bytes=2**40)
    assert settled.facts["bq_price"] == 8.0 and not settled.facts["opaque"]
    assert asked("select acme.lib.clean(a) from acme.d.t").facts["opaque"]
    never = asked("select 1", Target("x", "bigquery", database="acme", settings={"dry_run": "never"}), bytes=5)
    assert never.facts["bq_bytes"] == 0 and not never.facts["bq_dry_run"]


@pytest.mark.parametrize(
    ("text", "target", "more", "message"),
    [
        ("select 1", ANYWHERE, {}, "say the project"),
        ("#legacySQL\nselect 1", LAKE, {}, "legacy SQL"),
        ("GET /bigquery/v2/projects/acme/nothing", LAKE, {}, "refuses this by itself"),
        ("POST /bigquery/v2/projects/acme/jobs", LAKE, {"body": "{a: [}"}, "neither YAML nor JSON"),
        ("POST /bigquery/v2/projects/acme/jobs", LAKE, {"body": "{nothing: 1}"}, "refuses this by itself"),
        ("select 1", LAKE, {"dataset": "no-dataset"}, "refuses this by itself"),
    ],
)
def test_what_cannot_be_asked_is_a_mistake_of_the_case(
    text: str, target: Target, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(text, target, **more)
    with pytest.raises(ConfigError, match="write METHOD"):
        bigquery_command(BigQueryAsked("request", "select 1"), LAKE)


@pytest.mark.parametrize(
    ("size", "expect"),
    [("1000", "allow"), ("1 KB", "allow"), ("1KiB", "deny"), ("2 GB", "deny"), ("1K", "allow"), ("0", "allow")],
)
def test_sizes(size: str, expect: str) -> None:
    rules = "rules: [{name: small, when: 'bigquery.bytes <= 1000', allow: true}]"
    (one,) = results(rules, f"cases: [{{name: a, {ANA}, sql: select 1, bytes: {size}, expect: {expect}}}]")
    assert one.passed, one.problems


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (f"{{name: a, {ANA}, sql: select 1, bytes: much, expect: allow}}", "bytes must be"),
        (f"{{name: a, {ANA}, connect: true, expect: allow}}", "needs one of sql, request, command"),
        (f"{{name: a, {ANA}, kube: get dev/pods/web, expect: allow}}", "needs one of sql, request, command"),
        ("{name: a, identity: {subject: ana}, target: shop, sql: select 1, bytes: 5, expect: allow}", "of BigQuery"),
    ],
)
def test_mistakes_in_cases_have_their_line(case: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"cases.yaml:1: .*{re.escape(message)}"):
        results("rules: [{name: a, allow: true}]", f"cases: [{case}]")


# -- the guard, on requests as the gate makes them -------------------------------------------------------

EMAIL = (Mask("hide", columns=("acme.d.customers.email",)),)
VIEW = '{"tableReference": {"tableId": "v"}, "view": {"query": "select %s from d.customers", "useLegacySql": false}}'
INTO = "{query: select %s from d.customers, useLegacySql: false, destinationTable: {datasetId: d, tableId: x}}"
COPY = "configuration: {copy: {sourceTable: {datasetId: d, tableId: %s}, destinationTable: {datasetId: d, tableId: b}}}"
LOAD = "configuration: {load: {destinationTable: {datasetId: d, tableId: b}, sourceUris: ['gs://b/x']}}"
FILES = "configuration: {extract: {sourceTable: {datasetId: d, tableId: %s}, destinationUris: ['gs://b/x']}}"
CODE = (
    "configuration: {query: {query: select 1, useLegacySql: false, userDefinedFunctionResources: "
    "[{resourceUri: 'gs://b/x.js'}]}}"
)
OUTSIDE = (
    "configuration: {query: {query: select * from t, useLegacySql: false, tableDefinitions: "
    "{t: {sourceUris: ['gs://b/x'], sourceFormat: CSV}}}}"
)
ROUTINE = (
    "{routineReference: {projectId: acme, datasetId: d, routineId: f}, routineType: SCALAR_FUNCTION, language: SQL, "
    "definitionBody: '1'}"
)
POLICY = (
    "{rowAccessPolicyReference: {projectId: acme, datasetId: d, tableId: customers, policyId: r}, "
    "filterPredicate: email = 'x'}"
)
COMPUTED = (
    "schema: {fields: [{name: e, type: STRING, generatedColumn: {generatedExpressionInfo: "
    "{generationExpression: '%s'}}}]}"
)
JOBS = "POST /bigquery/v2/projects/acme/jobs"
DATASET = "/bigquery/v2/projects/acme/datasets/d"


@pytest.mark.parametrize(
    ("line", "body", "refused"),
    [
        ("select email from d.customers", "", False),
        ("create table d.x as select email from d.customers", "", True),
        ("create table d.x as select id from d.customers", "", False),
        ("export data options (uri = 'gs://b/*', format = 'CSV') as select id from d.customers", "", False),
        ("export data options (uri = 'gs://b/*', format = 'CSV') as select email from d.customers", "", True),
        ("create table x as select email from customers", "", True),
        (f"POST {DATASET}/tables", VIEW % "email", True),
        (f"POST {DATASET}/tables", VIEW % "id", False),
        (f"PATCH {DATASET}/tables/customers", "{description: x}", False),
        (f"PATCH {DATASET}/tables/customers", COMPUTED % "upper(email)", True),
        (f"PATCH {DATASET}/tables/customers", COMPUTED % "generate_uuid()", False),
        (f"PATCH {DATASET}/tables/orders", COMPUTED % "upper(email)", False),
        (f"POST {DATASET}/routines", ROUTINE, True),
        (f"DELETE {DATASET}/routines/f", "", False),
        (f"POST {DATASET}/tables/customers/rowAccessPolicies", POLICY, False),
        (f"GET {DATASET}/tables/customers/data", "", False),
        (f"POST {DATASET}/tables/customers/insertAll", "{rows: [{json: {email: a}}]}", False),
        (JOBS, "configuration: {query: " + INTO % "email" + "}", True),
        (JOBS, "configuration: {query: " + INTO % "id" + "}", False),
        (JOBS, "configuration: {dryRun: true, query: " + INTO % "email" + "}", False),
        (JOBS, COPY % "customers", True),
        (JOBS, COPY % "orders", False),
        (JOBS, FILES % "customers", True),
        (JOBS, FILES % "orders", False),
        (JOBS, LOAD, True),
        (JOBS, CODE, True),
        (JOBS, OUTSIDE, True),
        ("GET /bigquery/v2/projects/acme/queries/j", "", False),
    ],
)
def test_laundering_by_any_request(line: str, body: str, refused: bool) -> None:
    denied = Masking(b"k" * 32).guard(EMAIL, asked(line, body=body))
    assert (denied is not None) is refused, denied
