"""kill -9 with BigQuery: what the target got is on a tape that verifies; held jobs wait on and run once.

A real gateway in a process of its own (with workers, in several) before the stand-in that tests tell what to do, which
notes each request before it answers. Plain clients load it with queries, jobs and insertAll; as
tests/test_kill_kubernetes.py, which says what such a kill does not test.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import pytest

from tests.bigquery.place_bq import ALLOW_ALL, HOLDS, V2, Api, BqGateway, BqPlace, job_of, kill
from tests.bigquery.scripted_bq import Asked, Handler, Scripted, scripted
from tests.kubernetes.place import Tale, tales
from tests.peers.ssh import children
from tests.ssh.running import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]
NIGHTLY: Final = pytest.mark.nightly
MODES: Final = [("durable", 1), ("durable", 2), ("written", 1)]
WAYS: Final = ("insert", "query", "add", "anew")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Scripted]:
    with scripted(tmp_path / "service") as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, service: Scripted) -> BqPlace:
    (tmp_path / "gw").mkdir()
    return BqPlace(tmp_path / "gw", service)


class Load(threading.Thread):
    """A client that asks for one thing after the other until it is cut off. answers: by its words."""

    def __init__(self, way: str, mark: str, gateway: BqGateway, pause: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.way, self.label = way, f"{mark}{way}"
        self.answers: dict[str, bytes] = {}
        self.failure: object = None
        self.enough = threading.Event()
        self.told: list[tuple[int, bytes]] = []  # refusals
        self._api = Api(gateway)

    def run(self) -> None:
        try:
            while not self.enough.is_set():
                word = f"{self.label}_{len(self.answers)}_"
                answer = self._ask(word)
                if answer.code != 200:
                    self.told.append((answer.code, answer.body))
                    return
                self.answers[word] = answer.body
        except (OSError, HTTPException) as error:  # cut off
            self.failure = error
        finally:
            self._api.close()

    def _ask(self, word: str) -> Any:
        match self.way:
            case "insert":
                return self._api.insert(word, f"INSERT INTO crm.people (email) VALUES ('{word}')")
            case "add":
                return self._api.add(word)
            case "anew":
                self._api.close()
        return self._api.query(f"SELECT id, email FROM crm.people WHERE email = '{word}'")

    def check(self, service: Scripted, told: list[Tale]) -> None:
        """Whatever it did, and whatever it was told, is on the tapes."""
        reached = {text for _, text in service.ran if self.label in text}
        assert len(reached) >= len(self.answers) > 2, (self.label, len(self.answers), len(reached))
        asked: list[bytes] = []
        said: dict[bytes, bytes] = {}
        for each in told:
            for flow in each.allowed:
                body = each.bytes_of(flow, "user").partition(b"\r\n\r\n")[2]
                if self.label.encode() in body:
                    asked.append(body)
                    said[body] = each.bytes_of(flow, "out").partition(b"\r\n\r\n")[2]
        for text in reached:
            word = next(part for part in text.replace('"', "'").split("'") if self.label in part)
            assert sum(word.encode() in body for body in asked) == 1, word
        answered = {word: next((said[body] for body in asked if word.encode() in body), None) for word in self.answers}
        assert answered == self.answers, self.label


def loads(gateway: BqGateway, mark: str) -> list[Load]:
    """Every sort of client, at work."""
    every = [Load(way, mark, gateway) for way in WAYS]
    for one in every:
        one.start()
    until(lambda: all(len(one.answers) > 2 for one in every) or not all(map(threading.Thread.is_alive, every)), "work")
    assert all(len(one.answers) > 2 for one in every), [(one.label, one.told, one.failure) for one in every]
    return every


def ended(every: list[Load]) -> None:
    for one in every:
        one.join(30)
        assert not one.is_alive(), one.label


def killed_often(place: BqPlace, recording: str, workers: int, times: int) -> None:
    place.configure(workers=workers, targets={"dwh": {"recording": recording}})
    every: list[Load] = []
    for number in range(times):
        with place.serving() as gateway:
            found = loads(gateway, f"{recording}{workers}r{number}")
            time.sleep(0.03 + 0.07 * (number % 7))  # the moment of the kill is to be any
            kill(gateway)
            ended(found)
        every += found
    with place.serving():  # recovers the last crash
        pass
    tapes = place.verified()["tapes"]
    told = place.told()
    for one in every:
        one.check(place.service, told)
    assert {tape["status"] for tape in tapes} <= {"verified", "incomplete"}
    broken = [tape for tape in tapes if tape["status"] == "incomplete"]
    assert len(broken) >= times
    assert all("crash" in tape["fault"]["reason"] for tape in broken), broken
    assert not list((place.folder / "state" / "tapes").rglob("*.gct.*"))  # nothing was set aside


@pytest.mark.parametrize(
    ("recording", "workers"), [("durable", 1), *(pytest.param(*each, marks=NIGHTLY) for each in MODES[1:])]
)
def test_what_was_done_is_on_a_tape(place: BqPlace, recording: str, workers: int) -> None:
    killed_often(place, recording, workers, 1)


@NIGHTLY
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("recording", "workers"), MODES)
def test_twenty_kills_of_queries(place: BqPlace, recording: str, workers: int) -> None:
    killed_often(place, recording, workers, 20)


# -- held jobs ---------------------------------------------------------------------------------------------

TEXT: Final = "SELECT id, email FROM crm.people /* ask_first {} */"


def hold(gateway: BqGateway, name: str) -> None:
    """Insert a job that waits for a human."""
    api = Api(gateway)
    answer = api.insert(name, TEXT.format(name))
    assert answer.code == 200, answer.body
    assert answer.json["status"]["state"] == "PENDING"
    api.close()


def waits(gateway: BqGateway, service: Scripted, name: str) -> None:
    """Polls say PENDING under its own id, its result is not there yet, a second insert changes nothing."""
    api = Api(gateway)
    assert api.state(name) == "PENDING"
    page = api.get(f"/queries/{name}?timeoutMs=0").json
    assert (page["jobComplete"], page["jobReference"]["jobId"]) == (False, name)
    again = api.insert(name, TEXT.format(name))
    assert (again.code, again.reason) == (409, "duplicate")
    assert service.runs(name) == 0
    api.close()


def runs_once(gateway: BqGateway, service: Scripted, name: str) -> None:
    """Approved, it runs, and is polled to its rows."""
    gateway.approve(name)
    done(gateway, service, name)


def done(gateway: BqGateway, service: Scripted, name: str) -> None:
    """It has run once, under its own id, and its rows are there."""
    api = Api(gateway)
    until(lambda: api.state(name) == "DONE", "job")
    page = api.get(f"/queries/{name}?timeoutMs=0").json
    assert page["totalRows"] == "2"
    assert [each for each, _ in service.ran].count(name) == 1
    api.close()


@pytest.mark.parametrize(
    ("how", "workers"), [("kill", 1), pytest.param("kill", 2, marks=NIGHTLY), pytest.param("term", 1, marks=NIGHTLY)]
)
def test_what_is_held_waits_on_and_runs_exactly_once(place: BqPlace, service: Scripted, how: str, workers: int) -> None:
    place.configure(ALLOW_ALL + HOLDS, workers=workers)
    with place.serving() as gateway:
        hold(gateway, "held1")
        hold(gateway, "held2")
        api = Api(gateway)
        answer = api.query(TEXT.format("by_query"), timeoutMs=1)
        assert answer.json["jobComplete"] is False
        named = answer.json["jobReference"]["jobId"]
        waits(gateway, service, "held1")
        first = gateway.held("held1")
        if how == "kill":
            kill(gateway)
        api.close()
    with place.serving("log-2") as gateway:
        waits(gateway, service, "held1")
        assert gateway.held("held1") != first  # it is asked for anew
        runs_once(gateway, service, "held1")
        gateway.approve("by_query")
        done(gateway, service, named)
        denied = gateway.gatecast("approvals", "deny", gateway.held("held2"), "--reason", "not today")
        assert denied.returncode == 0, denied.stderr
        api = Api(gateway)
        until(lambda: api.state("held2") == "DONE", "denial")
        refused = api.get("/queries/held2")
        assert (refused.code, refused.reason) == (403, "accessDenied")
        assert "not today" in refused.message
        assert service.runs("held2") == 0
        api.close()
    statuses = {tape["status"] for tape in place.verified()["tapes"]}
    assert statuses == ({"verified", "incomplete"} if how == "kill" else {"verified"})
    asked = [command for each in place.told() for command in each.commands if "held1" in command["text"]]
    assert len([each for each in asked if each["kind"] != "session"]) == 2  # before, and after


def dying(service: Scripted, word: str, begun: bool) -> tuple[threading.Event, threading.Event]:
    """Leave the insert with a word without an answer: when it has come, and what ends its connection.

    begun: the job has run by then.
    """
    reached, on = threading.Event(), threading.Event()

    def stand(handler: Handler, asked: Asked) -> None:
        if asked.method != "POST" or not asked.path.endswith("/jobs"):
            return handler.served(asked)
        value = json.loads(asked.body)
        if begun:
            service.begin(value["jobReference"]["jobId"], value, word)
        reached.set()
        on.wait(30)
        return handler.die()

    service.scripts[word] = stand
    return reached, on


@pytest.mark.parametrize(
    ("begun", "polls"),
    [(True, True), pytest.param(False, True, marks=NIGHTLY), pytest.param(True, False, marks=NIGHTLY)],
)
def test_an_approved_job_whose_process_dies_runs_at_most_once(
    place: BqPlace, service: Scripted, begun: bool, polls: bool
) -> None:
    """It dies while the insert is on its way: whether it was begun tells the mark alone."""
    name = "dying1"
    reached, on = dying(service, TEXT.format(name), begun)
    place.configure(ALLOW_ALL + HOLDS)
    with place.serving() as gateway:
        hold(gateway, name)
        gateway.approve(name)
        assert reached.wait(30)
        kill(gateway)
    service.scripts.clear()
    with place.serving("log-2") as gateway:
        api = Api(gateway)
        # Its owner polls, or sends it once more, as clients do that got no answer.
        if not begun:  # it is nobody's, so it is another command that waits
            assert (api.get(f"/jobs/{name}").code, service.runs(name)) == (404, 0)
            assert api.insert(name, TEXT.format(name)).json["status"]["state"] == "PENDING"
            runs_once(gateway, service, name)
        elif polls:
            assert api.state(name) == "DONE"
        else:
            assert api.insert(name, TEXT.format(name)).code == 409
        done(gateway, service, name)
        assert [each for each, _ in service.ran].count(name) == 1
        (job,) = [each for each in service.jobs.values() if each["jobReference"]["jobId"] == name]
        assert job["configuration"]["labels"]
        api.close()
        on.set()
    place.verified()


def test_an_insert_whose_process_died_is_found_by_its_mark(place: BqPlace, service: Scripted) -> None:
    """The same of a job that nobody had to approve; another job of its id is nobody's."""
    place.configure()
    name, other = "lost1", "lost2"
    text = "INSERT INTO crm.people (email) VALUES ('{}')"
    with place.serving() as gateway:
        apis = [Api(gateway), Api(gateway)]
        for api, each in zip(apis, (name, other), strict=True):
            reached, _ = dying(service, text.format(each), each == name)
            api.send("POST", f"{V2}/jobs", job_of(each, text.format(each)))
            assert reached.wait(30)
        kill(gateway)
        for api in apis:
            api.close()
    service.scripts.clear()
    stranger = service.begin(other, job_of(other, "SELECT 'a stranger'"), "SELECT 'a stranger'")
    assert "labels" not in stranger["configuration"]
    with place.serving("log-2") as gateway:
        api = Api(gateway)
        assert api.state(name) == "DONE"
        assert api.insert(name, text.format(name)).code == 409
        assert service.runs(name) == 1
        refused = api.insert(other, text.format(other))
        assert (refused.code, refused.reason) == (400, "invalid")  # never 409, by which clients take it for theirs
        assert api.get(f"/jobs/{other}").code == 404  # not this caller's
        api.close()


def test_what_a_worker_held_that_died_alone_is_taken_over(place: BqPlace, service: Scripted) -> None:
    place.configure(ALLOW_ALL + HOLDS, workers=2)
    with place.serving() as gateway:
        names: list[str] = []
        while len({row["worker"] for row in gateway.call("sessions.live")}) < 2 or len(names) < 4:
            names.append(f"taken{len(names)}")
            hold(gateway, names[-1])  # over a connection of its own: either worker may get it
        before = {name: gateway.held(f"ask_first {name} ") for name in names}
        dead = workers_of(gateway)[0]
        os.kill(dead, signal.SIGKILL)
        until(lambda: dead not in workers_of(gateway) and len(workers_of(gateway)) == 2, "new worker")

        def asked_again() -> bool:
            rows = gateway.call("approvals.list", state="pending")
            return all(any(f"ask_first {name} " in json.dumps(row) for row in rows) for name in names)

        until(asked_again, "approvals")
        after = {name: gateway.held(f"ask_first {name} ") for name in names}
        assert 0 < sum(after[name] != before[name] for name in names) < len(names)  # those of the dead one alone
        for name in names:
            waits(gateway, service, name)
            runs_once(gateway, service, name)
    assert not [tape for tape in place.verified()["tapes"] if tape["status"] == "altered"]
    assert len(tales(place.folder / "state" / "tapes")) >= 2


def workers_of(gateway: BqGateway) -> list[int]:
    """The processes that serve."""
    return children(gateway.process.pid)
