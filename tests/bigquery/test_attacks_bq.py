"""Attacks over the wire: a user who wants what is another's or masked, and a target that answers what it likes."""

from __future__ import annotations

import contextlib
import copy
import gzip
import http.client
import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocols.bigquery.commands import text_of
from protocols.bigquery.requests import read_request
from proxy.core.events import Command
from proxy.core.parties import Identity
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict
from tests.bigquery.gateway_bq import TARGET, Answer, Gateway, gateway
from tests.bigquery.hostile_bq import JOBS, PROJECT, QUERIES, Heard, Hostile, Said, hostile, job_of, rows_of
from tests.bigquery.people_bq import ANA, BOB, MIA, Loop
from tests.bigquery.test_attacks_bq_sql import asked

MASKS = (Mask("hide", ("acme.crm.people.email",)),)
PEOPLE = f"/projects/{PROJECT}/datasets/crm/tables/people"
UPLOAD = f"/bq/{TARGET}/upload/bigquery/v2"
LOAD: dict[str, Any] = {
    "configuration": {"load": {"destinationTable": {"projectId": PROJECT, "datasetId": "crm", "tableId": "t"}}}
}
HALF = "\ud800"


def bob_is_masked(identity: Identity, command: Command) -> Verdict:
    """Ana reads all, Bob under a mask."""
    return Allow("all", masks=MASKS if identity.subject == BOB.identity.subject else ())


@pytest.fixture(scope="module")
def bad() -> Iterator[Hostile]:
    with hostile() as target:
        yield target


@pytest.fixture(scope="module")
def gate(bq_loop: Loop, bad: Hostile) -> Iterator[Gateway]:
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        gateway(bq_loop, Path(folder), bad.target(), bob_is_masked) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def plain(bad: Hostile) -> None:
    bad.answer = lambda heard: None
    bad.heard.clear()


def inserted(name: str = "", location: str = "", text: str = "SELECT 'a' AS x", **query: object) -> dict[str, Any]:
    """The body of a jobs.insert."""
    reference = {"projectId": PROJECT} | ({"jobId": name} if name else {})
    reference |= {"location": location} if location else {}
    return {"configuration": {"query": {"query": text, "useLegacySql": False, **query}}, "jobReference": reference}


def only(place: str, said: Said, method: str = "") -> Callable[[Heard], Said]:
    """Answer so where an address ends so."""
    return lambda heard: said if heard.place.endswith(place) and heard.method == (method or heard.method) else None


# -- ids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", JOBS + "/{}"),
        ("GET", QUERIES + "/{}?fields=rows"),
        ("POST", JOBS + "/{}/cancel"),
        ("DELETE", JOBS + "/{}/delete"),
    ],
)
def test_a_job_of_the_same_id_elsewhere(gate: Gateway, bad: Hostile, method: str, path: str) -> None:
    """A job in EU is asked for in EU: without a place the service might take another's of that id, in the US."""
    name = f"elsewhere-{method}-{len(path)}"
    assert gate.ask("POST", JOBS, inserted(name, "EU")).code == 200
    for who in (ANA, BOB):
        bad.heard.clear()
        answer = gate.ask(method, path.format(name), who=who)
        if who is BOB:
            assert answer.code == 404 and not bad.heard
        else:
            assert [each.query.get("location") for each in bad.heard] == [["EU"]]
            break
    assert gate.ask(method, path.format(name) + ("&" if "?" in path else "?") + "location=US").code == 404


@pytest.mark.parametrize("door", ["insert", "upload"])
def test_who_is_denied_does_not_learn_whether_an_id_is_taken(bq_loop: Loop, bad: Hostile, door: str) -> None:
    def rule(identity: Identity, command: Command) -> Verdict:
        return Allow("ana") if identity.subject == ANA.identity.subject else Deny("not-bob", "no jobs for Bob")

    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        gateway(bq_loop, Path(folder), bad.target(), rule) as gate,
    ):
        assert gate.ask("POST", JOBS, inserted("taken")).code == 200
        bad.heard.clear()
        told = []
        for name in ("taken", "free-name"):
            if door == "insert":
                told.append(gate.ask("POST", JOBS, inserted(name), who=BOB))
            else:
                body = {**LOAD, "jobReference": {"projectId": PROJECT, "jobId": name}}
                told.append(gate.ask("POST", JOBS + "?uploadType=resumable", body, who=BOB, prefix=UPLOAD))
        assert {(each.code, each.body) for each in told} == {(403, told[0].body)}
        assert not bad.heard


@pytest.mark.parametrize("door", ["insert", "multipart"])
def test_a_job_whose_answer_was_broken_is_looked_for(gate: Gateway, bad: Hostile, door: str) -> None:
    """Nobody waits for an answer that nobody awaits: the job is there, or its id is free again."""
    name = f"broken-{door}"
    missing = {"error": {"code": 404, "message": "Not found", "errors": [{"reason": "notFound"}]}}

    def broken(heard: Heard) -> Said:
        if heard.method == "GET":
            return 404, {}, missing
        return None if heard.dry else (200, {"Transfer-Encoding": "chunked"}, b"nonsense")

    def ask() -> Answer:
        if door == "insert":
            return gate.ask("POST", JOBS, inserted(name))
        load = json.dumps({**LOAD, "jobReference": {"projectId": PROJECT, "jobId": name}})
        body = f"--b\r\nContent-Type: application/json\r\n\r\n{load}\r\n--b\r\nContent-Type: */*\r\n\r\n1\r\n--b--\r\n"
        headers = {"Content-Type": "multipart/related; boundary=b"}
        return gate.ask("POST", JOBS + "?uploadType=multipart", body.encode(), headers=headers, prefix=UPLOAD)

    bad.answer = broken
    assert ask().code == 503
    assert gate.ask("GET", f"{JOBS}/{name}").code == 404
    bad.answer = lambda heard: None if door == "insert" else bad_job(name)
    assert ask().code == 200


def bad_job(name: str) -> Said:
    """A job, whatever was asked."""
    return 200, {}, {"jobReference": {"projectId": PROJECT, "jobId": name, "location": "US"}}


def test_what_a_released_job_fails_of_is_masked_on_the_tape(bq_loop: Loop, bad: Hostile) -> None:
    def rule(identity: Identity, command: Command) -> Verdict:
        if command.kind == "session":
            return Allow("rest")
        return Hold("ask", (MIA.identity.subject,), 60.0, masks=MASKS)

    error = {"message": "Bad value: ann@example.org", "reason": "invalidQuery"}

    def failing(heard: Heard) -> Said:
        if heard.method != "POST" or heard.dry:
            return None
        return 400, {}, {"error": {"code": 400, "message": error["message"], "errors": [error]}}

    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        gateway(bq_loop, Path(folder), bad.target(), rule) as gate,
    ):
        gate.canaries.append(b"ann@example.org")  # on leaving, no tape and no log has it
        bad.answer = failing
        assert gate.ask("POST", JOBS, inserted("fails")).json["status"]["state"] == "PENDING"
        gate.decide(gate.held().id)
        answer = gate.ask("GET", f"{QUERIES}/fails?timeoutMs=20000")
        assert (answer.code, answer.reason) == (400, "invalidQuery")
        assert b"ann@example.org" not in answer.body


def test_a_list_has_no_job_of_the_same_id_elsewhere(gate: Gateway, bad: Hostile) -> None:
    assert gate.ask("POST", JOBS, inserted("listed", "EU")).code == 200

    def job(location: Any, name: Any = "listed", text: str = "of another") -> dict[str, Any]:
        reference = {"projectId": PROJECT, "jobId": name, "location": location}
        return {"jobReference": reference, "configuration": {"query": {"query": text}}}

    jobs = [job("US"), job("eu", text="mine"), job(["EU"]), job("EU", ["listed"]), job("EU", {}), 3, {}]
    bad.answer = only("/jobs", (200, {}, {"jobs": jobs}), "GET")
    answer = gate.ask("GET", JOBS)
    assert answer.code == 200 and b"of another" not in answer.body
    assert [each["configuration"]["query"]["query"] for each in answer.json["jobs"]] == ["mine"]


def test_the_request_id_of_another(gate: Gateway, bad: Hostile) -> None:
    """No requestId goes on as it came, not even of a dry run: the service would take it for another user's request."""
    for dry in (False, True):
        body = {"query": "SELECT 'a' AS x", "useLegacySql": False, "requestId": "known-to-bob", "dryRun": dry}
        for who in (ANA, BOB):
            gate.ask("POST", QUERIES, body, who=who)
    sent = [each.json["requestId"] for each in bad.heard if each.place.endswith("/queries")]
    assert len(sent) == 4 and len(set(sent)) == 2 and "known-to-bob" not in sent


@pytest.mark.parametrize(
    "body",
    [
        {"tableReplicationInfo": {"sourceTable": {"projectId": PROJECT, "datasetId": "_of_ana", "tableId": "anon1"}}},
        {"view": {"query": "SELECT * FROM acme._of_ana.anon1"}},
        {"view": {"query": "SELECT * FROM `acme._of_ana.anon*`"}},
        {"materializedView": {"query": "SELECT * FROM _of_ana.anon1"}},
    ],
)
def test_a_definition_over_the_result_of_another(gate: Gateway, bad: Hostile, body: dict[str, Any]) -> None:
    reference = {"projectId": PROJECT, "datasetId": "crm", "tableId": "mine"}
    answer = gate.ask("POST", f"/projects/{PROJECT}/datasets/crm/tables", {**body, "tableReference": reference})
    assert answer.code == 404 and not bad.ran()


def test_a_dataset_that_links_to_the_results_of_another(gate: Gateway, bad: Hostile) -> None:
    body = {
        "datasetReference": {"projectId": PROJECT, "datasetId": "mine"},
        "linkedDatasetSource": {"sourceDataset": {"projectId": PROJECT, "datasetId": "_of_ana"}},
    }
    assert gate.ask("POST", f"/projects/{PROJECT}/datasets", body).code == 404 and not bad.ran()


DOORS: dict[str, dict[str, Any]] = {
    "copy": {"copy": {"sourceTable": {"datasetId": "_of_ana", "tableId": "a"},
                      "destinationTable": {"datasetId": "crm", "tableId": "t"}}},
    "copies": {"copy": {"sourceTables": [{"datasetId": "crm", "tableId": "t"},
                                         {"datasetId": "_of_ana", "tableId": "a"}],
                        "destinationTable": {"datasetId": "crm", "tableId": "t"}}},
    "partition": {"copy": {"sourceTable": {"datasetId": "_of_ana", "tableId": "a$20260101"},
                           "destinationTable": {"datasetId": "crm", "tableId": "t"}}},
    "extract": {"extract": {"sourceTable": {"datasetId": "_of_ana", "tableId": "a"}, "destinationUris": ["gs://b/o"]}},
    "default": {"query": {"query": "SELECT * FROM a", "defaultDataset": {"datasetId": "_of_ana"}}},
    "into": {"query": {"query": "SELECT 1 AS x", "destinationTable": {"datasetId": "_of_ana", "tableId": "a"}}},
    "session": {"query": {"query": "SELECT 1", "connectionProperties": [{"key": "session_id", "value": "of-ana"}]}},
    "load": {"load": {"sourceUris": ["gs://b/o"], "destinationTable": {"datasetId": "crm", "tableId": "t"},
                      "connectionProperties": [{"key": "session_id", "value": "of-ana"}]}},
    "script": {"query": {"query": "BEGIN IF TRUE THEN DROP TABLE _of_ana.a; END IF; END"}},
    "clone": {"query": {"query": "CREATE TABLE crm.t CLONE `acme._of_ana.a`"}},
    "metadata": {"query": {"query": "SELECT * FROM _of_ana.INFORMATION_SCHEMA.TABLES"}},
    "text": {"query": {"query": "EXECUTE IMMEDIATE 'SELECT * FROM _of_ana.a'"}},
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_door_to_the_result_of_another(gate: Gateway, bad: Hostile, door: str) -> None:
    answer = gate.ask("POST", JOBS, {"configuration": DOORS[door]}, who=BOB)
    assert answer.code == 404, answer.body
    assert not bad.heard, "the target has heard of it"


@pytest.mark.parametrize("key", ["service_account", "dataset_project_id", "query_label", "Session_Id"])
def test_a_load_in_the_name_of_another(gate: Gateway, bad: Hostile, key: str) -> None:
    settings = {**LOAD["configuration"]["load"], "sourceUris": ["gs://b/o"],
                "connectionProperties": [{"key": key, "value": "other"}]}  # fmt: skip
    assert gate.ask("POST", JOBS, {"configuration": {"load": settings}}).code == 400 and not bad.heard


# -- requests that cost more than they are worth -----------------------------------------------------------


@pytest.mark.parametrize(("packed", "rows", "beside"), [(False, 1, False), (False, 30_000, True), (True, 1, True)])
def test_large_bodies_are_read_beside_the_loop(
    gate: Gateway, bad: Hostile, monkeypatch: pytest.MonkeyPatch, packed: bool, rows: int, beside: bool
) -> None:
    """Ten megabytes take seconds, in which nobody else would be served; packed, they come in few bytes."""
    seen: list[str] = []

    def reading(*given: Any) -> Any:
        seen.append(threading.current_thread().name)
        return read_request(*given)

    monkeypatch.setattr("protocols.bigquery.exchange.read_request", reading)
    body = json.dumps({"rows": [{"json": {}}] * rows}).encode()
    headers = {"Content-Encoding": "gzip"} if packed else {}
    answer = gate.ask("POST", f"{PEOPLE}/insertAll", gzip.compress(body) if packed else body, headers=headers)
    assert answer.code == 200, answer.body
    assert [name != "gateway" for name in seen] == [beside]


# -- names that two readers may read differently ----------------------------------------------------------


def test_a_default_dataset_leaves_with_its_project(gate: Gateway, bad: Hostile) -> None:
    """dataset_project_id is another default: of names that have a dataset, and of none that the gate has completed."""
    names = {
        "defaultDataset": {"datasetId": "crm"},
        "connectionProperties": [{"key": "dataset_project_id", "value": "other"}],
    }
    body = {"query": "SELECT 'a' AS x", "useLegacySql": False, **names}
    assert gate.ask("POST", QUERIES, body).code == 200
    assert gate.ask("POST", JOBS, inserted("two-projects", **names)).code == 200
    sent = [each.json for each in bad.heard]
    found = [each.get("configuration", {}).get("query", each)["defaultDataset"] for each in sent]
    assert found and all(each == {"projectId": PROJECT, "datasetId": "crm"} for each in found)


def test_what_an_approver_reads_has_one_line_for_each_setting(gate: Gateway, bad: Hostile) -> None:
    settings = {
        "query": "SELECT 1 AS x", "useLegacySql": False, "schemaUpdateOptions": ["ALLOW_FIELD_RELAXATION"],
        "destinationTable": {"projectId": PROJECT, "datasetId": "crm", "tableId": "t"},
        "writeDisposition": "WRITE_TRUNCATE", "continuous": True,
        "connectionProperties": [{"key": "time_zone", "value": "UTC\n-- into acme.crm.nothing (WRITE_EMPTY)\u202e"}],
    }  # fmt: skip
    lines = text_of(asked({"configuration": {"query": settings, "reservation": "r"}})).splitlines()
    assert lines[0] == "SELECT 1 AS x" and all(line.startswith("-- ") for line in lines[1:])
    assert [line for line in lines if line.startswith("-- into")] == ["-- into acme.crm.t (WRITE_TRUNCATE)"]
    for word in ("ALLOW_FIELD_RELAXATION", "reservation", "continuous"):
        assert any(word in line for line in lines), word
    assert "\u202e" not in "".join(lines)


# -- masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decorator", ["@-3600000", "@0", "@-7200000-", "$__PARTITIONS_SUMMARY__", "$__X"])
def test_rows_of_another_time_under_the_columns_of_now(gate: Gateway, bad: Hostile, decorator: str) -> None:
    """The table had other columns then, so that the masks of now would be on the wrong ones."""
    schema = {"fields": [{"name": "id", "type": "STRING"}, {"name": "note", "type": "STRING"}]}

    def answer(heard: Heard) -> Said:
        if heard.place.endswith("/data"):
            return 200, {}, {"totalRows": "1", "rows": [{"f": [{"v": "1"}, {"v": "secret@acme.com"}]}]}
        return (200, {}, {"type": "TABLE", "schema": schema}) if heard.method == "GET" else None

    bad.answer = answer
    path = f"{PEOPLE}{decorator}/data"
    assert b"secret@" in gate.ask("GET", path).body
    refused = gate.ask("GET", path, who=BOB)
    assert refused.code == 503 and b"secret@" not in refused.body
    for partition in ("", "$20260101", "$__NULL__", "$__UNPARTITIONED__"):
        assert gate.ask("GET", f"{PEOPLE}{partition}/data", who=BOB).code == 200


@pytest.mark.parametrize("reason", ["notFound", "invalidQuery", ["notFound"], {}, None, 7, HALF])
def test_an_error_quotes_a_masked_value(gate: Gateway, bad: Hostile, reason: Any) -> None:
    """Messages pass whose reason says that they name things; whatever else a reason is, they do not."""
    message = {"message": "Bad value: secret@acme.com", "reason": reason}
    document = {"error": {"code": 400, "message": message["message"], "errors": [message]}}
    bad.answer = lambda heard: None if heard.dry else (400, {}, document)
    answer = gate.ask("POST", QUERIES, {"query": "SELECT 'a' AS x", "useLegacySql": False}, who=BOB)
    if reason == HALF:
        assert answer.code in (400, 503) and b"secret@" not in answer.body
    else:
        assert answer.code == 400
        assert (b"secret@" in answer.body) == (reason == "notFound")


@pytest.mark.parametrize(
    "page",
    [
        {"schema": {"fields": [{"name": "x", "type": "STRING"}] * 2}},
        {"schema": {"fields": [{"name": "y", "type": "STRING"}, {"name": "z", "type": "STRING"}]}},
        {"schema": None},
        {"schema": {"fields": [{"name": "x", "type": "RECORD", "fields": [{"name": "a", "type": "STRING"}]}]}},
        {"rows": [{"f": [{"v": {"f": [{"v": "secret@acme.com"}]}}]}]},
        {"rows": [{"f": [{"v": "secret@acme.com"}, {"v": "secret@acme.com"}]}]},
        {"rows": [{"f": [{"w": "secret@acme.com"}]}]},
        {"rows": [{"f": [{"v": "b"}], "g": "secret@acme.com"}]},
        {"rows": {"f": "secret@acme.com"}},
        {"arrowRecordBatch": {"serializedRecordBatch": "secret@acme.com"}},
        {"extra": "secret@acme.com"},
        {"jobReference": {"projectId": PROJECT, "jobId": "of-ana", "location": "US"}},
    ],
)
def test_a_page_whose_schema_lies(gate: Gateway, bad: Hostile, page: dict[str, Any]) -> None:
    found = {**rows_of("secret@acme.com"), **page}
    bad.answer = lambda heard: None if heard.dry or "/queries" not in heard.place else (200, {}, found)
    text = "SELECT email AS x FROM crm.people"
    answer = gate.ask("POST", QUERIES, {"query": text, "useLegacySql": False}, who=BOB)
    assert b"secret@" not in answer.body
    assert answer.code in (200, 503)


def test_queries_of_masked_columns_by_jobs_and_by_requests(gate: Gateway, bad: Hostile) -> None:
    """The same rows by every way to them; and Ana, who has no masks, reads them."""
    bad.answer = only("/queries/paged", (200, {}, rows_of("secret@acme.com", job="paged")))
    text = "SELECT email AS x FROM crm.people"
    for who, sees in ((ANA, True), (BOB, False)):
        name = "paged" if who is ANA else "paged-2"
        bad.answer = only(f"/queries/{name}", (200, {}, rows_of("secret@acme.com", job=name)))
        assert gate.ask("POST", JOBS, inserted(name, text=text), who=who).code == 200
        for more in ("", "?fields=rows", "?fields=rows(f/v)", "?fields=*", "?maxResults=1&startIndex=0", "?alt=json"):
            answer = gate.ask("GET", f"{QUERIES}/{name}{more}", who=who)
            assert answer.code == 200 and (b"secret@" in answer.body) == sees, (more, answer.body)


# -- a target that answers anything -----------------------------------------------------------------------

WEIRD: tuple[Any, ...] = (None, True, -1, 1e300, 10**30, "", HALF, [], [[]], [None], {}, {"jobId": []}, ["a"])


def changed(shape: Any, at: tuple[Any, ...], value: Any) -> Any:
    found = copy.deepcopy(shape)
    inner = found
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return found


def places(shape: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = shape.items() if isinstance(shape, dict) else enumerate(shape) if isinstance(shape, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


PROTO = {"reason": "invalidQuery", "message": "m", "location": "l"}
JOB: dict[str, Any] = {
    "id": "acme:US.j", "jobReference": {"projectId": PROJECT, "jobId": "own", "location": "US"},
    "user_email": "gate@acme.iam", "status": {"state": "DONE", "errorResult": PROTO, "errors": [PROTO]},
    "configuration": {"labels": {"gatecast-mark": "m", "a": "b"}, "query": {
        "query": "q", "destinationTable": {"projectId": PROJECT, "datasetId": "_a", "tableId": "anon"}}},
    "statistics": {"sessionInfo": {"sessionId": "s"},
                   "query": {"schema": {"fields": [{"name": "x", "type": "STRING"}]}}},
}  # fmt: skip


class Bob:
    """Bob's requests, on one connection."""

    def __init__(self, gate: Gateway) -> None:
        context = ssl.create_default_context(cafile=str(gate.authority))
        self._connection = http.client.HTTPSConnection("127.0.0.1", gate.port, context=context, timeout=30)

    def ask(self, method: str, path: str, value: object = None) -> Answer:
        fields = {"Authorization": f"Bearer {BOB.token}", "Content-Type": "application/json"}
        body = None if value is None else json.dumps(value)
        self._connection.request(method, f"/bq/{TARGET}/bigquery/v2{path}", body, fields)
        answer = self._connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())

    def close(self) -> None:
        self._connection.close()


SHAPES: dict[str, tuple[Any, int, Callable[[Bob, str], Answer], Callable[[Heard], bool]]] = {
    "get": (JOB, 200, lambda g, j: g.ask("GET", f"{JOBS}/own"), lambda h: "/jobs/" in h.place),
    "insert": (JOB, 200, lambda g, j: g.ask("POST", JOBS, inserted(j)),
               lambda h: h.place.endswith("/jobs") and not h.dry),
    "list": ({"jobs": [JOB]}, 200, lambda g, j: g.ask("GET", JOBS), lambda h: h.place.endswith("/jobs")),
    "children": ({"jobs": [JOB]}, 200, lambda g, j: g.ask("GET", f"{JOBS}?parentJobId=own"),
                 lambda h: h.place.endswith("/jobs")),
    "results": ({**rows_of("v"), "errors": [PROTO]}, 200, lambda g, j: g.ask("GET", f"{QUERIES}/own"),
                lambda h: "/queries/" in h.place),
    "error": ({"error": {"code": 400, "message": "m", "errors": [PROTO]}}, 400,
              lambda g, j: g.ask("GET", f"{QUERIES}/own"), lambda h: "/queries/" in h.place),
    "table": ({"type": "TABLE", "schema": {"fields": [{"name": "x", "type": "STRING"}]}}, 200,
              lambda g, j: g.ask("GET", f"{PEOPLE}/data"), lambda h: h.place.endswith("/people")),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_answers_of_any_shape_are_answered(gate: Gateway, bad: Hostile, kind: str) -> None:
    """Whatever stands in the place of a member, the user gets an answer, and the connection lives."""
    shape, status, ask, match = SHAPES[kind]
    bad.answer = lambda heard: None
    gate.ask("POST", JOBS, inserted("own", "US"), who=BOB)
    with contextlib.closing(Bob(gate)) as bob:
        for number, at in enumerate(places(shape)):
            for place, value in enumerate(WEIRD):
                if place % 3 == number % 3:  # each place gets some of them
                    bad.answer = _answering(match, status, changed(shape, at, value))
                    answer = ask(bob, f"weird-{kind}-{number}-{place}")
                    assert answer.code in (200, 400, 403, 404, 409, 503), (at, value, answer.body)


def _answering(match: Callable[[Heard], bool], status: int, value: Any) -> Callable[[Heard], Said]:
    said = json.dumps(value).encode()
    return lambda heard: (status, {}, said) if match(heard) else None


@pytest.mark.parametrize("value", [HALF, f"a{HALF}b"])
def test_half_a_surrogate_pair_goes_on_as_it_came(gate: Gateway, bad: Hostile, value: str) -> None:
    said = job_of(Heard("POST", JOBS, {}, json.dumps(inserted(f"halved-{len(value)}", text=value)).encode()))
    bad.answer = lambda heard: None if heard.dry else (200, {}, json.dumps(said).encode())
    answer = gate.ask("POST", JOBS, inserted(f"halved-{len(value)}"))
    assert answer.code == 200 and answer.json["configuration"]["query"]["query"] == value


@pytest.mark.parametrize(
    "location",
    [
        "", "http://[x", "//", "https://evil.example/", "https://evil.example/?upload_id=", "?upload_id=%00",
        "https://evil.example/?upload_id=" + "a" * 2000,
    ],
)  # fmt: skip
def test_an_upload_whose_address_is_none(gate: Gateway, bad: Hostile, location: str) -> None:
    bad.answer = lambda heard: (200, {"Location": location}, b"") if "upload" in heard.place else None
    answer = gate.ask("POST", f"{JOBS}?uploadType=resumable", LOAD, prefix=UPLOAD)
    assert answer.code == 503 and answer.headers["Location"] is None


def test_an_address_for_an_upload_elsewhere(gate: Gateway, bad: Hostile) -> None:
    """Pieces, and the user's token, come to the gate wherever the target says that they should go."""
    evil = "https://evil.example/steal?upload_id=one&x=https://evil.example"
    bad.answer = lambda heard: (200, {"Location": evil, "Set-Cookie": "a=b"}, b"") if "upload" in heard.place else None
    answer = gate.ask("POST", f"{JOBS}?uploadType=resumable", LOAD, prefix=UPLOAD)
    assert answer.code == 200 and "evil" not in str(answer.headers) and answer.headers["Set-Cookie"] is None
    assert answer.headers["Location"].startswith(f"https://127.0.0.1:{gate.port}/bq/{TARGET}/upload/")
    chunk = f"{JOBS}?uploadType=resumable&upload_id=one"
    assert gate.ask("PUT", chunk, b"a", prefix=UPLOAD, who=BOB).code == 404


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_leads_nowhere(gate: Gateway, bad: Hostile, status: int) -> None:
    fields = {
        "Location": "https://evil.example/",
        "Refresh": "0; https://evil.example/",
        "Link": "<https://evil.example/>",
    }
    bad.answer = lambda heard: (status, fields, {})
    answer = gate.ask("GET", PEOPLE)
    assert answer.code == status and "evil" not in str(answer.headers)
