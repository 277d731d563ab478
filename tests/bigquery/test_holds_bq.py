"""A held job as its user sees it, and what an approval is bound to; over the registry, with a restart in the middle."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from protocols.bigquery import holds
from protocols.bigquery.body_schemas import check
from protocols.bigquery.holds import Kept, Reply
from protocols.bigquery.ownership import MARK_LABEL, Failure, job_key, repeat
from proxy.core.http.heads import BadRequest
from proxy.core.jobs import NEXT, Entry, Owner, State
from proxy.store.jobs import JobStore
from tests.identity.stores import Clock, opened

ALICE = Owner("alice@example.com", "https://id", ("claude",))
KEY = job_key("warehouse", "acme", "job-1", "EU")
QUERY: dict[str, Any] = {"query": "DELETE FROM s.t WHERE id = @id", "useLegacySql": False, "parameterMode": "NAMED"}
BODY: dict[str, Any] = {
    "configuration": {"query": QUERY, "labels": {"team": "x"}},
    "jobReference": {"projectId": "acme", "jobId": "job-1", "location": "EU"},
}
DIGEST = holds.digest("warehouse", "acme", "EU", BODY)
HELD = Entry(
    KEY,
    ALICE,
    "held",
    created=1_800_000_000.5,
    changed=1_800_000_060.0,
    rule="writes",
    digest=DIGEST,
    mark="m" * 32,
    request=json.dumps(BODY).encode(),
    approval="ap_1",
)


def at(state: State, **changes: Any) -> Entry:
    return dataclasses.replace(HELD, state=state, **changes)


@pytest.mark.parametrize("state", ["claimed", "held", "approved", "sent"])
def test_a_job_that_waits_is_pending(state: State) -> None:
    entry = at(state)
    found = holds.get_job(entry)
    assert isinstance(found, Reply) and found.status == 200 and found == holds.insert(entry)
    assert found.document == {
        "kind": "bigquery#job",
        "id": "acme:EU.job-1",
        "user_email": "alice@example.com",
        "jobReference": BODY["jobReference"],
        "configuration": {**BODY["configuration"], "jobType": "QUERY"},
        "status": {"state": "PENDING"},
        "statistics": {"creationTime": "1800000000500"},
    }
    results, query = holds.get_results(entry), holds.query(entry)
    assert isinstance(results, Reply) and isinstance(query, Reply)
    assert results.document == {
        "kind": "bigquery#getQueryResultsResponse", "jobReference": BODY["jobReference"], "jobComplete": False
    }  # fmt: skip
    assert query.document == {**results.document, "kind": "bigquery#queryResponse"}
    assert isinstance(holds.delete(entry), Failure)
    again = holds.insert(entry, repeated=True)
    assert again == Failure(409, "duplicate", "Already Exists: Job acme:EU.job-1")


@pytest.mark.parametrize("state", ["denied", "expired"])
def test_a_job_that_was_not_approved_is_done_and_denied(state: State) -> None:
    entry = at(state, reason="denied by bob: no\x1b[2J")
    text = 'Access Denied: gatecast: denied by rule "writes": denied by bob: no\\x1b[2J (approval ap_1)'
    error = {"reason": "accessDenied", "message": text}
    found = holds.get_job(entry)
    assert isinstance(found, Reply)
    assert found.document["status"] == {"state": "DONE", "errorResult": error, "errors": [error]}
    assert found.document["statistics"]["endTime"] == "1800000060000"
    assert holds.get_results(entry) == holds.query(entry) == Failure(403, "accessDenied", text)
    cancelled = holds.cancel(entry)
    assert isinstance(cancelled, Reply) and cancelled.document["job"] == found.document, "too late, and no error"
    assert holds.delete(entry) == Reply(200, {})


def test_a_job_that_was_taken_back_is_stopped() -> None:
    found = holds.cancel(at("stopped"))
    assert isinstance(found, Reply) and found.document["kind"] == "bigquery#jobCancelResponse"
    status = found.document["job"]["status"]
    assert (status["state"], status["errorResult"]["reason"]) == ("DONE", "stopped")
    assert "User requested cancellation" in status["errorResult"]["message"]
    results = holds.get_results(at("stopped", reason="Job timed out"))
    assert isinstance(results, Failure) and (results.status, results.reason) == (400, "stopped")
    assert results.message == "Job execution was cancelled: Job timed out (approval ap_1)"


def test_the_target_answers_for_what_it_has_and_what_it_refused() -> None:
    for answer in (holds.get_job, holds.get_results, holds.query, holds.cancel, holds.delete, holds.insert):
        assert answer(at("open")) is None
    failed = at("failed", reply_status=400, reply=b'{"error":{}}')
    for answer in (holds.get_job, holds.get_results, holds.query, holds.cancel):
        assert answer(failed) == Kept(400, b'{"error":{}}')
    assert holds.delete(failed) == Reply(200, {})


def test_every_state_has_an_answer() -> None:
    for state in NEXT:
        assert (holds.get_job(at(state)) is None) == (state == "open")
        assert not isinstance(holds.get_results(at(state)), Kept) or state == "failed"


def test_a_query_becomes_an_insert() -> None:
    body = {
        **QUERY, "maximumBytesBilled": "7", "defaultDataset": {"datasetId": "s"}, "labels": {"a": "1"},
        "jobTimeoutMs": "9", "timeoutMs": 10, "maxResults": 5, "requestId": "r", "formatOptions": {}, "location": "EU",
        "jobCreationMode": "JOB_CREATION_OPTIONAL", "kind": "bigquery#queryRequest",
    }  # fmt: skip
    made = holds.inserted(body, "acme", "job-1", "EU")
    assert made == {
        "configuration": {
            "query": {**QUERY, "maximumBytesBilled": "7", "defaultDataset": {"datasetId": "s"}},
            "labels": {"a": "1"},
            "jobTimeoutMs": "9",
        },
        "jobReference": BODY["jobReference"],
    }
    for key in ("priority", "destinationTable", "newKey"):
        with pytest.raises(BadRequest, match=key):
            holds.inserted({**body, key: "x"}, "acme", "j")


def test_every_key_of_a_query_has_a_place_and_the_insert_is_one_that_the_table_knows() -> None:
    values: dict[str, Any] = {name: {} for name in ("defaultDataset", "destinationEncryptionConfiguration")}
    values |= {"secureContext": {}, "labels": {}, "connectionProperties": [], "queryParameters": []}
    values |= dict.fromkeys(("maximumBytesBilled", "jobTimeoutMs", "maxSlots"), "1")
    values |= dict.fromkeys(("parameterMode", "query", "reservation"), "x")
    for name in sorted(holds._OF_QUERY | holds._OF_JOB):
        values.setdefault(name, True)
    check("QueryRequest", values)
    check("Job", holds.inserted(values, "acme", "j", "EU"))


@pytest.mark.parametrize(
    "change",
    [
        {"query": QUERY["query"] + " OR TRUE"},
        {"queryParameters": [{"name": "id", "parameterValue": {"value": "2"}}]},
        {"defaultDataset": {"datasetId": "prod"}},
        {"destinationTable": {"datasetId": "s", "tableId": "t"}},
        {"writeDisposition": "WRITE_TRUNCATE"},
        {"connectionProperties": [{"key": "session_id", "value": "x"}]},
        {"tableDefinitions": {"x": {}}},
        {"maximumBytesBilled": "9"},
    ],
)
def test_an_approval_is_bound_to_what_the_job_does(change: dict[str, Any]) -> None:
    other = {**BODY, "configuration": {**BODY["configuration"], "query": {**QUERY, **change}}}
    assert holds.digest("warehouse", "acme", "EU", other) != DIGEST
    approved = at("approved", request=json.dumps(other).encode())
    assert holds.released(approved) is None, "a stored request that was changed does not leave"


def test_labels_and_the_order_of_keys_are_not_what_it_does() -> None:
    query = dict(reversed(QUERY.items()))
    other = {"jobReference": {}, "configuration": {"labels": {"b": "2"}, "query": query, "jobType": "QUERY"}}
    assert holds.digest("warehouse", "acme", "eu", other) == DIGEST
    assert holds.digest("warehouse", "acme", "US", other) != DIGEST
    assert holds.digest("other", "acme", "EU", other) != DIGEST
    assert holds.digest("warehouse", "other", "EU", other) != DIGEST
    assert (
        holds.digest("warehouse", "acme", "EU", {**other, "configuration": {"dryRun": True, "query": query}}) != DIGEST
    )


def test_what_is_released_is_what_was_asked_with_our_mark() -> None:
    body = holds.released(at("approved"), {"gatecast-session": "s"})
    assert body is not None
    labels = {"team": "x", MARK_LABEL: "m" * 32, "gatecast-session": "s"}
    assert body == {**BODY, "configuration": {"query": QUERY, "labels": labels}}
    for state in set(NEXT) - {"approved"}:
        assert holds.released(at(state)) is None, state
    for request in (b"", b"{", b"[]", b'{"jobReference":{"location":7}}'):
        assert holds.released(at("approved", request=request)) is None
        assert holds.get_job(at("held", request=request)) is not None
    elsewhere = {**BODY, "jobReference": {"projectId": "other", "jobId": "x", "location": "EU"}}
    sent = holds.released(at("approved", request=json.dumps(elsewhere).encode()))
    assert sent is not None and sent["jobReference"] == BODY["jobReference"], "under the id that the registry has"


def test_who_is_unsure() -> None:
    assert holds.unsure(at("sent")) and not holds.unsure(at("sent", process="p")) and not holds.unsure(at("held"))


def test_the_same_request_gets_the_same_job() -> None:
    name = holds.job_name(ALICE, "r-1", DIGEST, "0" * 32)
    assert name == holds.job_name(ALICE, "r-1", DIGEST, "1" * 32) and name.startswith("gw_") and len(name) == 35
    others = {
        holds.job_name(ALICE, "r-2", DIGEST, ""),
        holds.job_name(ALICE, "r-1", "d", ""),
        holds.job_name(Owner("bob"), "r-1", DIGEST, ""),
    }
    assert name not in others and len(others) == 3
    assert holds.job_name(ALICE, "", DIGEST, "1" * 32) == "gw_" + "1" * 32


@pytest.mark.parametrize(("asked", "seconds"), [(None, 10), (0, 0), (-5, 0), (199_999, 199.999), (200_001, 200)])
def test_how_long_a_poll_is(asked: int | None, seconds: float) -> None:
    assert holds.poll_seconds(asked) == seconds


def test_a_hold_ends_with_the_jobs_own_time() -> None:
    assert holds.deadline(100.0, 600.0, None) == holds.deadline(100.0, 600.0, 0) == 700.0
    assert holds.deadline(100.0, 600.0, 5000) == 105.0
    assert holds.deadline(100.0, 600.0, 700_000) == 700.0


def test_a_restart_in_the_middle_of_a_hold(tmp_path: Path) -> None:
    """Held, the gateway is killed, polled in the next one, approved there, and sent as it was asked for."""

    async def main() -> None:
        clock = Clock()
        with opened(tmp_path / "g.db") as database:
            first = JobStore(database, clock=clock)
            assert await first.claim(Entry(KEY, ALICE, digest=DIGEST)) is None
            end = holds.deadline(clock(), 600.0, None)
            await first.settle(
                KEY, ALICE, "held", request=HELD.request, rule="writes", masks=(), approval="ap_1", deadline=end
            )
        with opened(tmp_path / "g.db") as database, opened(tmp_path / "g.db") as second:
            jobs, other = JobStore(database, clock=clock), JobStore(second, clock=clock)
            assert await jobs.start() == 1
            known = await other.claim(Entry(KEY, ALICE, digest=DIGEST))
            assert known is not None and repeat(known, ALICE, DIGEST) == "same", "sent again, it is the same command"
            polled = holds.get_results(known)
            assert isinstance(polled, Reply) and polled.document["jobComplete"] is False
            (adopted,) = await jobs.adopt(10)
            approved = await jobs.settle(adopted.key, adopted.owner, "approved", approval="ap_2")
            assert approved is not None
            body = holds.released(approved)
            assert body is not None and body["configuration"]["query"] == QUERY
            assert body["configuration"]["labels"][MARK_LABEL] == known.mark, "the mark is that of the claim"
            assert await jobs.settle(KEY, ALICE, "sent", rule="writes", masks=()) is not None
            assert await other.settle(KEY, ALICE, "stopped") is None, "what has left is the target's to cancel"
            assert await jobs.settle(KEY, ALICE, "open") is not None
            seen = await other.wait(KEY, ALICE, 5.0)
            assert seen is not None and holds.get_job(seen) is None

    asyncio.run(main())
