"""bq and Google's client for Node.js directly, and the layer's own answers that no client shows."""

from __future__ import annotations

import gzip
import json
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from tests.bigquery.running_bq import Access, bq, node
from tests.peers.bigquery import OTHER_TOKEN, PROJECT, TOKEN, BigQueryServer, Environment, Names
from tests.peers.bq.gaps import FILLED, OPEN
from tests.peers.postgres import PeerMissing, need

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
ROWS = [{"id": 1, "email": "a@example.org"}, {"id": 2, "email": "b@example.org"}]


def _bq(access: Access, folder: Path, *arguments: str) -> tuple[int, str]:
    try:
        return bq(access, folder, *arguments)
    except PeerMissing as missing:
        need(missing, optional=True)  # it comes from Google's own packages alone
        raise AssertionError from missing


@pytest.fixture
def people(bq_service: BigQueryServer) -> str:
    """A dataset with people(id, email): two rows."""
    name = f"t{uuid.uuid4().hex[:8]}"
    value = {"datasetReference": {"projectId": PROJECT, "datasetId": name}}
    assert bq_service.api("POST", f"/projects/{PROJECT}/datasets", value)[0] == 200
    bq_service.sql(f"CREATE TABLE {name}.people AS SELECT 1 AS id, 'a@example.org' AS email UNION ALL SELECT 2, 'b'")
    return name


@pytest.mark.parametrize("door", ["by_endpoint", "by_universe"])
def test_bq(
    request: pytest.FixtureRequest,
    bq_service: BigQueryServer,
    bq_names: Names,
    people: str,
    tmp_path: Path,
    door: str,
) -> None:
    """A query as JSON, a dry run, an error told whole; discovery is fetched by endpoint only."""
    access: Access = request.getfixturevalue(door)
    since = bq_service.mark()
    text = f"SELECT id, email FROM {people}.people ORDER BY id"
    status, said = _bq(access, tmp_path, "--format=json", "query", "--nouse_legacy_sql", text)
    assert status == 0, said
    assert [row["id"] for row in json.loads(said[said.index("[{") :])] == ["1", "2"]
    asked = [each["path"] for each in bq_service.requests(since) if "path" in each]
    assert any("discovery" in path for path in asked) == (door == "by_endpoint")
    status, said = _bq(access, tmp_path, "query", "--nouse_legacy_sql", "--dry_run", text)
    assert status == 0, said
    assert "56 bytes" in said
    status, said = _bq(access, tmp_path, "query", "--nouse_legacy_sql", f"SELECT nope FROM {people}.people")
    assert status != 0
    assert "nope" in said
    assert not bq_names.refused


@pytest.mark.parametrize("door", ["by_endpoint", "by_universe"])
def test_node(
    request: pytest.FixtureRequest, bq_environment: Environment, bq_names: Names, tmp_path: Path, door: str
) -> None:
    done = node(bq_environment, request.getfixturevalue(door), tmp_path)
    said = {line["name"]: line.get("result", line.get("error")) for line in map(json.loads, done.stdout.splitlines())}
    assert said == {
        "create": "people", "query": ROWS, "job": "2026-01-02T03:04:05.000Z", "rows": 2,
        "failing": {"code": 400, "reason": "invalidQuery"},
    }, done.stderr  # fmt: skip
    assert not bq_names.refused


def test_tokens(bq_service: BigQueryServer) -> None:
    """401 for a token that nobody has; a job says whose it is."""
    code, value = bq_service.api("GET", f"/projects/{PROJECT}/datasets", token="nobodys")
    assert (code, value["error"]["errors"][0]["reason"]) == (401, "authError")
    body = {"configuration": {"query": {"query": "SELECT 1", "useLegacySql": False}}}
    mine = bq_service.api("POST", f"/projects/{PROJECT}/jobs", body, TOKEN)[1]["user_email"]
    others = bq_service.api("POST", f"/projects/{PROJECT}/jobs", body, OTHER_TOKEN)[1]["user_email"]
    assert mine != others


def test_override_fields_and_batch(bq_service: BigQueryServer, people: str) -> None:
    """A long GET comes as a POST; answers are cut to fields; there is no /batch."""
    root = f"http://127.0.0.1:{bq_service.plain}"
    headers = {
        "Authorization": f"Bearer {TOKEN}", "X-HTTP-Method-Override": "GET",
        "Content-Type": "application/x-www-form-urlencoded",
    }  # fmt: skip
    where = f"{root}/bigquery/v2/projects/{PROJECT}/datasets/{people}/tables/people/data"
    request = urllib.request.Request(where, data=b"fields=totalRows,rows(f)", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert set(json.loads(answer.read())) == {"totalRows", "rows"}
    batch = urllib.request.Request(f"{root}/batch/bigquery/v2", data=b"", headers={"Authorization": f"Bearer {TOKEN}"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(batch, timeout=30)
    refused.value.close()
    assert refused.value.code == 404


def test_bare_paths_discovery_and_gzip(bq_service: BigQueryServer, people: str) -> None:
    """node's BIGQUERY_EMULATOR_HOST drops /bigquery/v2; discovery needs no token and names this host."""
    root = f"http://127.0.0.1:{bq_service.plain}"
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept-Encoding": "gzip", "User-Agent": "test (gzip)"}
    where = f"{root}/projects/{PROJECT}/datasets/{people}/tables/people"
    with urllib.request.urlopen(urllib.request.Request(where, headers=headers), timeout=30) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert json.loads(gzip.decompress(answer.read()))["numRows"] == "2"
    with urllib.request.urlopen(f"{root}/$discovery/rest?version=v2", timeout=30) as answer:
        document = json.loads(answer.read())
    assert document["rootUrl"] == f"{root}/"
    assert {"datasets", "jobs", "tabledata"} <= set(document["resources"])


def test_declared_sizes(bq_service: BigQueryServer, people: str) -> None:
    """A table can be as large as a test of cost needs it."""
    bq_service.declare(**{f"{people}__people": 5 << 40})
    body = {"query": f"SELECT id FROM {people}.people", "useLegacySql": False, "dryRun": True}
    code, value = bq_service.api("POST", f"/projects/{PROJECT}/queries", body)
    assert (code, value["totalBytesProcessed"]) == (200, str(5 << 40))


def test_request_id(bq_service: BigQueryServer, people: str) -> None:
    """The same requestId is the same query: it runs once."""
    body = {
        "query": f"INSERT INTO {people}.people VALUES (3, 'c')",
        "useLegacySql": False,
        "requestId": uuid.uuid4().hex,
    }
    first = bq_service.api("POST", f"/projects/{PROJECT}/queries", body)
    assert bq_service.api("POST", f"/projects/{PROJECT}/queries", body) == first
    assert bq_service.sql(f"SELECT COUNT(*) AS n FROM {people}.people") == [["3"]]


def test_gaps_are_documented() -> None:
    """Every gap has a name of its own and a public page."""
    names = [gap.name for gap in (*FILLED, *OPEN)]
    assert len(names) == len(set(names))
    assert all(gap.documentation.startswith("https://") and gap.what for gap in (*FILLED, *OPEN))
