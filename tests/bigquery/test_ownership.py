"""Whose ids are whose: keys, what answers name, what an owner sees, and that another's id reads as an unknown one."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from protocols.bigquery import ownership
from protocols.bigquery.ownership import CHOSEN, MARK_LABEL, Failure
from proxy.core.jobs import ID_LIMIT, Entry, Key, Owner
from proxy.core.verdict import Mask
from proxy.store.jobs import JobStore
from tests.identity.stores import Clock, opened

ALICE = Owner("alice@example.com", "https://id", ("claude",))
BOB = Owner("bob@example.com", "https://id")
MASKS = (Mask("pii", ("acme.*.*.email",)),)
SCHEMA = {"fields": [{"name": "email", "type": "STRING"}]}
ENTRY = Entry(
    ownership.job_key("warehouse", "acme", "job-1", "EU"),
    ALICE,
    rule="r",
    masks=MASKS,
    digest="d1",
    mark="ab" * 16,
    schema=SCHEMA,
    session="01TAPE",
)
ANONYMOUS = {"projectId": "acme", "datasetId": "_5a1e", "tableId": "anon77"}


def job(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "bigquery#job",
        "jobReference": {"projectId": "acme", "jobId": "job-1", "location": "EU"},
        "user_email": "gate@sa.example",
        "principal_subject": "serviceAccount:gate@sa.example",
        "configuration": {
            "labels": {MARK_LABEL: "ab" * 16, "team": "x"},
            "query": {"query": "SELECT 1", "destinationTable": ANONYMOUS},
        },
        **changes,
    }


def test_names_of_the_storage_api() -> None:
    session = "projects/acme/locations/eu/sessions/CAIS"
    key = Key("w", "read_session", "acme", session, "eu")
    assert ownership.stream_key("w", session) == ownership.stream_key("w", f"{session}/streams/GgJ") == key
    by_job = ownership.stream_key("w", "projects/acme/locations/EU/jobs/job-1/streams/_default")
    assert by_job == ownership.job_key("w", "acme", "job-1", "EU")
    for name in ("", "projects/acme", f"{session}/", f"{session}/streams/", f"{session}/streams/a/b", session + "\n",
                 "projects/acme/locations/EU/jobs/job-1", "x" * (2 * ID_LIMIT + 1)):  # fmt: skip
        assert ownership.stream_key("w", name) is None, name


def test_what_is_hidden() -> None:
    assert ownership.hidden("_5a1e") and ownership.hidden("_script12") and ownership.hidden("_SESSION")
    assert not ownership.hidden("shop")


def test_a_request_id_is_each_owners_own() -> None:
    made = ownership.request_id(ALICE, "r-1")
    assert made == ownership.request_id(ALICE, "r-1") and len(made) == 36 and made.isascii()
    others = (dataclasses.replace(ALICE, agents=()), dataclasses.replace(ALICE, issuer=""), BOB)
    assert made not in {ownership.request_id(owner, "r-1") for owner in others}
    assert ownership.request_id(ALICE, "\ud800")


def test_what_a_repeated_id_means() -> None:
    assert ownership.repeat(ENTRY, ALICE, "d1") == "same"
    assert ownership.repeat(ENTRY, ALICE, "d2") == "changed"
    assert ownership.repeat(ENTRY, BOB, "d1") == "taken"
    assert ownership.refusal("same", "acme", "j", "EU") == Failure(409, "duplicate", "Already Exists: Job acme:EU.j")
    taken = ownership.refusal("taken", "acme", "j", "EU")
    # Python polls a job after a 409, through 404s; and sends anew after a 404 that speaks of a job.
    assert (taken.status, taken.reason) == (400, "invalid")


def test_our_labels_win() -> None:
    body: dict[str, Any] = {
        "configuration": {"labels": {"a": "1", MARK_LABEL: "forged"}, "query": {}},
        "jobReference": {},
    }
    sent = ownership.marked(body, "m" * 32, {"gatecast-session": "s"})
    assert sent["configuration"]["labels"] == {"a": "1", MARK_LABEL: "m" * 32, "gatecast-session": "s"}
    assert body["configuration"]["labels"][MARK_LABEL] == "forged"  # not changed in place
    assert ownership.marked({"query": "SELECT 1", "labels": None}, "m")["labels"] == {MARK_LABEL: "m"}


def test_only_the_mark_makes_a_job_ours() -> None:
    assert ownership.ours(job(), ENTRY)
    assert not ownership.ours(job(), dataclasses.replace(ENTRY, mark="cd" * 16))
    assert not ownership.ours(job(), dataclasses.replace(ENTRY, mark=""))
    assert not ownership.ours(job(jobReference={"projectId": "acme", "jobId": "job-2"}), ENTRY)
    assert not ownership.ours(job(jobReference={"projectId": "other", "jobId": "job-1"}), ENTRY)
    odds: list[Any] = [{}, {"labels": None}, {"labels": {MARK_LABEL: 7}}, {"labels": {MARK_LABEL: "é\ud800"}}, []]
    for odd in odds:
        assert not ownership.ours(job(configuration=odd), ENTRY)
    empty = dataclasses.replace(ENTRY, mark="")
    assert not ownership.ours(job(configuration={"labels": {MARK_LABEL: ""}}), empty)


def test_what_an_answer_says_of_its_job() -> None:
    assert ownership.learned(job()) == {"location": "EU", "destination": "acme._5a1e.anon77"}
    answer = {"schema": SCHEMA, "location": "US", "queryId": "q-1", "sessionInfo": {"sessionId": "s-1"}}
    assert ownership.learned(answer) == {"location": "US", "schema": SCHEMA}
    assert ownership.learned({"schema": {}, "location": 7, "configuration": "x"}) == {}


def test_ids_beside_a_job_are_its_owners_under_its_permit() -> None:
    answer = job(statistics={"sessionInfo": {"sessionId": "s-1"}}, queryId="q-1")
    found = {entry.key.kind: entry for entry in ownership.named(answer, ENTRY)}
    assert {kind: entry.key.id for kind, entry in found.items()} == {
        "query": "q-1", "session": "s-1", "table": "_5a1e.anon77"
    }  # fmt: skip
    for entry in found.values():
        assert (entry.owner, entry.masks, entry.rule, entry.parent) == (ALICE, MASKS, "r", "job-1")
        assert (entry.digest, entry.mark, entry.request) == ("", "", b"")
    assert found["table"].schema == SCHEMA and found["session"].schema is None
    assert ownership.named({"queryId": "", "sessionInfo": {"sessionId": 5}}, ENTRY) == ()
    assert ownership.named({"queryId": "x" * (ID_LIMIT + 1)}, ENTRY) == ()


def test_a_result_cannot_be_taken_by_naming_it() -> None:
    asked = dataclasses.replace(ENTRY, facts={CHOSEN: True})
    assert ownership.named(job(), asked) == ()
    own = {"configuration": {"query": {"destinationTable": {**ANONYMOUS, "datasetId": "shop"}}}}
    assert ownership.named(own, ENTRY) == (), "a table of a named dataset is nobody's own: rules speak of it"


def test_children_of_a_script() -> None:
    def child(name: object, parent: str, project: str = "acme") -> dict[str, Any]:
        reference = {"projectId": project, "jobId": name, "location": "EU"}
        return {"jobReference": reference, "statistics": {"parentJobId": parent}}

    jobs = [child("c-1", "job-1"), child("c-2", "other"), child("c-3", "job-1", "other"), child(4, "job-1"),
            child("job-1", "job-1"), "x", {}]  # fmt: skip
    found = ownership.children({"jobs": jobs}, ENTRY)
    assert [entry.key for entry in found] == [ownership.job_key("warehouse", "acme", "c-1", "EU")]
    assert found[0].masks == MASKS and found[0].parent == "job-1"
    assert ownership.children({"jobs": None}, ENTRY) == ()


def test_a_list_shows_own_jobs_as_the_owners() -> None:
    other = job(jobReference={"projectId": "acme", "jobId": "job-2"})
    answer = {"kind": "bigquery#jobList", "jobs": [job(), other, {}], "nextPageToken": "t"}
    assert ownership.listed(answer) == {"job-1", "job-2"}
    held = {"jobReference": {"jobId": "held"}}
    own = ownership.own_list(answer, {"job-1": ""}, ALICE, [held])
    assert own["nextPageToken"] == "t" and own["jobs"][0] == held and len(own["jobs"]) == 2
    text = repr(own)
    assert "job-2" not in text and "sa.example" not in text and MARK_LABEL not in text
    assert own["jobs"][1]["user_email"] == ALICE.subject
    assert own["jobs"][1]["configuration"]["labels"] == {"team": "x"}
    assert "labels" not in ownership.shown({"configuration": {"labels": {MARK_LABEL: "m"}}}, ALICE)["configuration"]
    assert ownership.own_list({}, {}, ALICE) == {"jobs": []}


@pytest.mark.parametrize("location", ["", "EU", "eu"])
def test_anothers_id_reads_as_an_unknown_one(tmp_path: Path, location: str) -> None:
    """To the byte: one answer for what is not there, and for what is somebody else's."""

    async def main() -> None:
        with opened(tmp_path / "g.db") as database:
            jobs = JobStore(database, clock=Clock())
            await jobs.claim(ENTRY)
            await jobs.settle(ENTRY.key, ALICE, "sent", rule="r", masks=MASKS)
            await jobs.settle(ENTRY.key, ALICE, "open")
            await jobs.add(ownership.named(job(queryId="q-1", sessionInfo={"sessionId": "s-1"}), ENTRY))
            keys = [ownership.job_key("warehouse", "acme", "job-1", location)]
            keys += [entry.key for entry in ownership.named(job(queryId="q-1", sessionInfo={"sessionId": "s"}), ENTRY)]
            for key in keys[:3]:
                assert await jobs.find(key, BOB) is None, key
            assert await jobs.find(keys[0], ALICE) is not None

    asyncio.run(main())
    shown = "acme:" + (f"{location}." if location else "") + "job-1"
    assert ownership.not_found("Job", "acme", "job-1", location) == Failure(404, "notFound", f"Not found: Job {shown}")
