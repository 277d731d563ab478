"""Masked columns by every way to ask for rows: no ``fields``, page, order, method or form of a query shows a value."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from proxy.core.events import Command
from proxy.core.parties import Identity
from proxy.core.verdict import Allow, Mask, Verdict
from tests.bigquery.gateway_bq import Answer, Gateway, gateway, target_of
from tests.bigquery.people_bq import Loop
from tests.peers.bigquery import PROJECT, BigQueryServer

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
MASK = Mask("hide-email", columns=("*.people.email", "*.*.people.addr.zip"))
SECRETS = (b"p1@example.org", b"p2@example.org", b"zip1", b"zip2")
QUERIES = f"/projects/{PROJECT}/queries"


def masked(identity: Identity, command: Command) -> Verdict:
    """Everything, under masks."""
    return Allow("masked", (MASK,))


@pytest.fixture(scope="module")
def mask_gate(bq_loop: Loop, bq_service: BigQueryServer) -> Iterator[Gateway]:
    """A gateway with that rule."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        gateway(bq_loop, Path(folder), target_of(bq_service), masked) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def people(bq_service: BigQueryServer) -> str:
    """A dataset with people(id, email, addr.zip, tags)."""
    name = f"m{uuid.uuid4().hex[:8]}"
    value = {"datasetReference": {"projectId": PROJECT, "datasetId": name}}
    assert bq_service.api("POST", f"/projects/{PROJECT}/datasets", value)[0] == 200
    bq_service.sql(
        f"CREATE TABLE {name}.people AS SELECT 1 AS id, 'p1@example.org' AS email, STRUCT('zip1' AS zip) AS addr, "
        "['a'] AS tags UNION ALL SELECT 2, 'p2@example.org', STRUCT('zip2'), ['b']"
    )
    return name


@pytest.fixture(scope="module")
def job(mask_gate: Gateway, people: str) -> str:
    """A job that has read it."""
    name = uuid.uuid4().hex
    query = {"query": f"SELECT * FROM {people}.people ORDER BY id", "useLegacySql": False}
    body = {"jobReference": {"projectId": PROJECT, "jobId": name}, "configuration": {"query": query}}
    answer = mask_gate.ask("POST", f"/projects/{PROJECT}/jobs", body)
    assert answer.code == 200, answer.body
    return name


def hidden(answer: Answer) -> Answer:
    """Nothing of it is shown."""
    assert not [each for each in SECRETS if each in answer.body], answer.body
    return answer


def cells(answer: Answer) -> list[list[Any]]:
    """The rows of an answer."""
    assert answer.code == 200, answer.body
    return [[cell["v"] for cell in row["f"]] for row in answer.json["rows"]]


PLAIN = [
    "", "maxResults=1", "startIndex=1", "maxResults=1&startIndex=1", "formatOptions.useInt64Timestamp=true",
    "prettyPrint=false", "timeoutMs=0", "location=US", "alt=json", "quotaUser=x",
]  # fmt: skip
FIELDS = [
    "rows", "rows(f)", "rows(f(v))", "rows/f/v", "rows/f(v)", "rows,schema", "jobReference,rows", "*", "rows/*",
    "rows(f/v)", "totalRows,rows", "jobReference,totalRows,pageToken,rows", "schema", "schema(fields(name)),rows",
    "schema/fields/type,rows", "rows/f", "kind,rows,jobComplete", "kind",
]  # fmt: skip
REFUSED = ["alt=media", "alt=proto", "callback=f", "access_token=x", "key=x", "nothing=1", "fields=rows&fields=schema",
           "fields=rows&$fields=schema", "alt=csv"]  # fmt: skip


@pytest.mark.parametrize("query", PLAIN)
def test_a_page_of_results(mask_gate: Gateway, job: str, query: str) -> None:
    rows = cells(hidden(mask_gate.ask("GET", f"{QUERIES}/{job}?{query}")))
    assert rows
    assert {row[0] for row in rows} <= {"1", "2"}
    assert all(row[3] in ([{"v": "a"}], [{"v": "b"}]) for row in rows)  # what no mask names is shown


@pytest.mark.parametrize("name", ["fields", "$fields", "%66ields"])
@pytest.mark.parametrize("fields", FIELDS)
def test_fields_of_a_page(mask_gate: Gateway, job: str, name: str, fields: str) -> None:
    answer = hidden(mask_gate.ask("GET", f"{QUERIES}/{job}?{name}={quote(fields, safe='')}"))
    assert answer.code in (200, 400), answer.body
    if answer.code == 200 and "rows" in answer.json:
        assert len(answer.json["rows"]) == 2


@pytest.mark.parametrize("query", REFUSED)
def test_forms_of_a_page(mask_gate: Gateway, job: str, query: str) -> None:
    assert hidden(mask_gate.ask("GET", f"{QUERIES}/{job}?{query}")).code == 400


@pytest.mark.parametrize("query", [*PLAIN[:4], "selectedFields=email", "selectedFields=email,tags", "selectedFields=id",
                                   "selectedFields=id,addr", "selectedFields=addr"])  # fmt: skip
def test_a_page_of_a_table(mask_gate: Gateway, people: str, query: str) -> None:
    where = f"/projects/{PROJECT}/datasets/{people}/tables/people/data"
    rows = cells(hidden(mask_gate.ask("GET", f"{where}?{query}")))
    assert rows


@pytest.mark.parametrize("selected", ["tags,email", "email,id", "addr.zip,id", "EMAIL", "email,email", "nope", "*"])
def test_strange_selections(mask_gate: Gateway, people: str, selected: str) -> None:
    """In another order, nested, twice: whatever is shown is masked."""
    where = f"/projects/{PROJECT}/datasets/{people}/tables/people/data"
    answer = hidden(mask_gate.ask("GET", f"{where}?selectedFields={quote(selected, safe='')}"))
    assert answer.code != 200 or cells(answer)


@pytest.mark.parametrize("fields", FIELDS)
def test_fields_of_a_table(mask_gate: Gateway, people: str, fields: str) -> None:
    where = f"/projects/{PROJECT}/datasets/{people}/tables/people/data"
    answer = hidden(mask_gate.ask("GET", f"{where}?fields={quote(fields, safe='')}"))
    assert answer.code in (200, 400), answer.body


@pytest.mark.parametrize("fields", FIELDS)
def test_fields_of_a_query(mask_gate: Gateway, people: str, fields: str) -> None:
    body = {"query": f"SELECT * FROM {people}.people", "useLegacySql": False}
    answer = hidden(mask_gate.ask("POST", f"{QUERIES}?fields={quote(fields, safe='')}", body))
    assert answer.code in (200, 400), answer.body


@pytest.mark.parametrize("more", [
    {"queryResultsFormat": "ARROW"}, {"arrowSerializationOptions": {"bufferCompression": "ZSTD"}},
    {"formatOptions": {"useInt64Timestamp": True}}, {"jobCreationMode": "JOB_CREATION_OPTIONAL"}, {"maxResults": 1},
])  # fmt: skip
def test_forms_of_a_query(mask_gate: Gateway, people: str, more: dict[str, Any]) -> None:
    body = {"query": f"SELECT * FROM {people}.people", "useLegacySql": False, **more}
    answer = hidden(mask_gate.ask("POST", QUERIES, body))
    assert answer.code in (200, 400), answer.body


@pytest.mark.parametrize("headers", [
    {"X-Goog-FieldMask": "rows"}, {"X-HTTP-Method-Override": "DELETE"}, {"Accept-Encoding": "gzip"},
    {"If-None-Match": "*"}, {"Range": "bytes=0-10"},
])  # fmt: skip
def test_headers_of_a_page(mask_gate: Gateway, job: str, headers: dict[str, str]) -> None:
    answer = hidden(mask_gate.ask("GET", f"{QUERIES}/{job}", headers={**headers, "User-Agent": "test (gzip)"}))
    assert answer.code in (200, 400), answer.body


def test_a_page_by_an_overridden_post(mask_gate: Gateway, job: str) -> None:
    headers = {"X-HTTP-Method-Override": "GET", "Content-Type": "application/x-www-form-urlencoded"}
    answer = hidden(mask_gate.ask("POST", f"{QUERIES}/{job}", b"fields=rows&maxResults=1", headers=headers))
    assert len(cells(answer)) == 1


TEXTS = [
    "SELECT email FROM {}.people", "SELECT UPPER(email) AS id FROM {}.people", "SELECT p FROM {}.people AS p",
    "SELECT TO_JSON_STRING(p) FROM {}.people AS p", "SELECT ARRAY_AGG(email) FROM {}.people",
    "SELECT e FROM (SELECT email AS e FROM {}.people)", "WITH w AS (SELECT * FROM {}.people) SELECT addr FROM w",
    "SELECT SUBSTR(email, 1, 14) AS s FROM {}.people", "SELECT addr.zip AS z FROM {}.people",
    "SELECT CONCAT('x', email) FROM {}.people", "SELECT CASE WHEN id = 1 THEN email ELSE '' END FROM {}.people",
    "SELECT STRUCT(email AS e, id AS i) AS s FROM {}.people", "SELECT * EXCEPT (id) FROM {}.people",
    "SELECT ERROR(email) FROM {}.people", "SELECT CAST(email AS INT64) FROM {}.people",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("by", ["insert", "query"])
def test_columns_under_other_names(mask_gate: Gateway, people: str, text: str, by: str) -> None:
    query = {"query": text.format(people), "useLegacySql": False}
    if by == "query":
        hidden(mask_gate.ask("POST", QUERIES, query))
        return
    name = uuid.uuid4().hex
    body = {"jobReference": {"projectId": PROJECT, "jobId": name}, "configuration": {"query": query}}
    hidden(mask_gate.ask("POST", f"/projects/{PROJECT}/jobs", body))
    hidden(mask_gate.ask("GET", f"/projects/{PROJECT}/jobs/{name}"))
    hidden(mask_gate.ask("GET", f"{QUERIES}/{name}"))


def test_the_table_of_a_result_under_masks(mask_gate: Gateway, people: str, job: str) -> None:
    """Its columns are named by nobody: they are what the job has read."""
    table = mask_gate.ask("GET", f"/projects/{PROJECT}/jobs/{job}").json["configuration"]["query"]["destinationTable"]
    where = f"/projects/{PROJECT}/datasets/{table['datasetId']}/tables/{table['tableId']}"
    hidden(mask_gate.ask("GET", f"{where}/data"))
    hidden(mask_gate.ask("GET", f"{where}/data?selectedFields=email"))
    text = f"SELECT * FROM `{PROJECT}.{table['datasetId']}.{table['tableId']}`"
    hidden(mask_gate.ask("POST", QUERIES, {"query": text, "useLegacySql": False}))


def test_nothing_is_on_its_tapes(mask_gate: Gateway, people: str) -> None:
    """The last test here: what was not shown is not on a tape, and what was is."""
    cells(hidden(mask_gate.ask("POST", QUERIES, {"query": f"SELECT * FROM {people}.people", "useLegacySql": False})))
    mask_gate.idle()
    payloads = [bytes(record.payload) for tape in mask_gate.tapes() for record in tape.records()]
    assert any(b'"v"' in each for each in payloads)
    assert not [each for each in payloads if any(secret in each for secret in SECRETS)]
