"""A full disk under BigQuery: 503 says why, nothing passes unrecorded, and with room the same gateway serves again.

The tapes are on a file system of some MiB, as in tests/test_disk_full_kubernetes.py: tmpfs, which has no room once
it is full, and ext4, which promises room first and allocates it later. So is the state with the registry of jobs in a
test of its own. Needs root, to mount.
"""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from proxy.http.serving import NOT_SERVED, NOT_SHOWN
from tests.bigquery.place_bq import Answer, Api, BqGateway, BqPlace
from tests.bigquery.scripted_bq import Asked, Handler, Scripted, scripted
from tests.kubernetes.place import tales
from tests.ssh.running import until
from tests.test_disk_full_psql import BACK_SECONDS, SmallDisk, all_sealed, events, small_disk
from tests.test_kill_bigquery import ended, loads

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]
SELECT: Final = "SELECT id, email FROM crm.people WHERE email = '{}'"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Scripted]:
    with scripted(tmp_path / "service") as running:
        yield running


def place_on(disk: SmallDisk, folder: Path, service: Scripted, recording: str = "durable", workers: int = 1) -> BqPlace:
    (folder / "gw").mkdir()
    place = BqPlace(folder / "gw", service)
    place.configure(
        workers=workers,
        targets={"dwh": {"recording": recording}},
        recorder={"directory": str(disk.path / "tapes")},
    )
    return place


def refused(disk: SmallDisk, ask: Callable[[], Answer]) -> Answer:
    """Ask until it is not served: what broke gives room back when it is sealed."""

    def attempt() -> Answer | None:
        disk.fill()
        try:
            answer = ask()
        except (http.client.HTTPException, OSError):  # an answer that was broken off
            return None
        return answer if answer.code >= 500 else None

    found = until(attempt, "refusal")
    assert isinstance(found, Answer)
    return found


def works(gateway: BqGateway) -> bool:
    """Whether a query is served."""
    api = Api(gateway)
    try:
        return api.query(SELECT.format("works")).code == 200
    except (http.client.HTTPException, OSError):
        return False
    finally:
        api.close()


@pytest.mark.parametrize(
    ("kind", "recording", "workers"),
    [
        ("tmpfs", "durable", 1),
        pytest.param("ext4", "durable", 2, marks=pytest.mark.nightly),
        pytest.param("ext4", "written", 1, marks=pytest.mark.nightly),
    ],
)
def test_requests_are_refused_and_with_room_it_serves_again(
    tmp_path: Path, service: Scripted, kind: str, recording: str, workers: int
) -> None:
    with small_disk(kind, tmp_path) as disk:
        place = place_on(disk, tmp_path, service, recording, workers)
        with place.serving() as gateway:
            every = loads(gateway, f"{kind}{recording}")
            disk.fill()
            ended(every)
            for one in every:
                # A refusal, or the end of the connection in the middle of an answer.
                assert one.told or one.failure, one.label
                assert all(code == 503 and b"cannot be recorded" in body for code, body in one.told), one.told
            api = Api(gateway)
            for ask in (
                lambda: api.query(SELECT.format("unrecorded")), lambda: api.get("/jobs/nobody"),
                lambda: api.insert("unrecorded", SELECT.format("unrecorded")), lambda: api.add("unrecorded"),
            ):  # fmt: skip
                answer = refused(disk, ask)
                assert answer.code == 503
                assert answer.message in (NOT_SERVED, NOT_SHOWN)
            api.close()
            told = tales(disk.path)
            taped = [flow for each in told for flow in each.allowed if b"unrecorded" in each.bytes_of(flow, "user")]
            assert service.runs("unrecorded") <= len(taped)
            for one in every:
                one.check(service, told)
            assert not [tape for tape in place.verified()["tapes"] if tape["status"] in ("altered", "unknown")]

            disk.free()
            until(lambda: works(gateway), "request that works", BACK_SECONDS)
            # All but the session of the requests, one a worker.
            until(lambda: all_sealed(disk.path, workers), "seal of what broke", BACK_SECONDS)
        for one in every:
            one.check(service, tales(disk.path))
        assert {tape["status"] for tape in place.verified()["tapes"]} <= {"verified", "incomplete"}
        assert not list(disk.path.rglob("*.wal"))


def test_the_job_of_a_request_that_got_no_answer_is_found(tmp_path: Path, service: Scripted) -> None:
    """It left while there was room, and its answer could not be recorded: its owner finds it, and it runs once."""
    reached, on = threading.Event(), threading.Event()

    def stand(handler: Handler, asked: Asked) -> None:
        if asked.method == "POST" and asked.path.endswith("/jobs"):
            reached.set()
            on.wait(30)
        handler.served(asked)

    service.scripts["no_answer"] = stand
    with small_disk("tmpfs", tmp_path) as disk:
        place = place_on(disk, tmp_path, service)
        with place.serving() as gateway:
            api = Api(gateway)
            said: list[Answer] = []
            # What a file of the tape has room for is written there: the answer is larger.
            service.padding = os.urandom(2_000_000).hex()
            text = SELECT.format("no_answer")
            asking = threading.Thread(target=lambda: said.append(api.insert("lost", text)))
            asking.start()
            assert reached.wait(30)
            disk.fill()
            on.set()
            asking.join(30)
            service.padding = ""
            (answer,) = said
            assert (answer.code, answer.message) == (503, NOT_SHOWN)
            assert answer.reason not in ("backendError", "internalError", "rateLimitExceeded")  # no client repeats it
            disk.free()
            until(lambda: works(gateway), "request that works", BACK_SECONDS)
            assert api.state("lost") == "DONE"
            assert api.get("/queries/lost").json["totalRows"] == "2"
            again = api.insert("lost", text)
            assert (again.code, again.reason) == (409, "duplicate")
            assert [name for name, _ in service.ran].count("lost") == 1
            api.close()


def test_without_room_for_the_registry_nothing_is_sent(tmp_path: Path, service: Scripted) -> None:
    """Who owns a job has to be written down before it leaves."""
    with small_disk("tmpfs", tmp_path) as disk:
        (tmp_path / "gw").mkdir()
        (tmp_path / "gw" / "state").symlink_to(disk.path / "state")
        (disk.path / "state").mkdir(mode=0o700)
        tapes = tmp_path / "tapes"
        place = BqPlace(tmp_path / "gw", service)
        place.configure(recorder={"directory": str(tapes)})
        with place.serving() as gateway:
            assert works(gateway)
            api, count = Api(gateway), iter(range(10_000))

            def insert() -> Answer:
                number = next(count)
                return api.insert(f"full{number}", SELECT.format(f"full{number}_"))

            for _ in range(3):
                answer = refused(disk, insert)
                assert (answer.code, answer.message) == (503, NOT_SERVED), answer.body
            names = {name for name, _ in service.ran if name.startswith("full")}
            owned = {f"full{number}" for number in range(next(count))}
            assert names <= owned
            disk.free()
            until(lambda: works(gateway), "request that works", BACK_SECONDS)
            assert insert().code == 200
            for name in names:
                assert api.state(name) == "DONE"  # whatever was sent is its owner's
            api.close()
        assert not [each for each in told_of(tmp_path / "gw") if each == "connection-failed"]
        assert {each.status for each in tales(tapes)} <= {"closed", "failed"}


def told_of(folder: Path) -> list[Any]:
    """The events of a gateway's log."""
    return [event["event"] for event in events(folder)]
