"""Real clients whose query waits for a human, who decides in another process: allowed, denied, cancelled, restarted."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from proxy.core.events import Command
from proxy.core.parties import Identity
from proxy.core.verdict import Allow, Hold, Verdict
from tests.bigquery import scenarios_bq_held as scenarios
from tests.bigquery.gateway_bq import Gateway, gateway, target_of
from tests.bigquery.people_bq import MIA, Loop
from tests.bigquery.running_bq import Worker, bq_command, node_command, said, started, worker
from tests.peers.bigquery import PROJECT, BigQueryServer, Environment
from tests.peers.postgres import PeerMissing, need

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
Ending = Literal["approved", "denied", "cancelled", "restarted"]
ENDINGS: list[Ending] = ["approved", "denied", "cancelled", "restarted"]
PYTHON = ("result", "query_and_wait", "dbapi", "pandas_gbq", "sqlalchemy")
WORDS = "not on a Friday"
EXPECTED = {
    "approved": ("rows", ""),
    "denied": ("denied", WORDS),
    "cancelled": ("stopped", ""),
    "restarted": ("rows", ""),
}


def rule(identity: Identity, command: Command) -> Verdict:
    """What is marked so waits for Mia."""
    if command.kind != "session" and "/* ask */" in command.text:
        return Hold("ask-mia", (MIA.identity.subject,), 60.0, "it was marked")
    return Allow("rest")


@pytest.fixture(scope="module")
def held_gate(bq_loop: Loop, bq_service: BigQueryServer) -> Iterator[Gateway]:
    """A gateway with that rule."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        gateway(bq_loop, Path(folder), target_of(bq_service), rule) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def held_worker(bq_environment: Environment, held_gate: Gateway) -> Iterator[Worker]:
    """A worker that goes through it."""
    with (
        tempfile.TemporaryDirectory(prefix="gc-bq-") as folder,
        worker(bq_environment, held_gate.access("endpoint"), scenarios, Path(folder)) as running,
    ):
        yield running


def text() -> str:
    """A query that waits, and that no other test has asked."""
    return f"SELECT 1 AS n /* ask */ /* {uuid.uuid4().hex} */"


def runs(service: BigQueryServer, asked: str) -> int:
    """How often a query has reached the service, apart from dry runs."""
    found = [json.loads(each["body"]) for each in service.requests(about=asked) if "body" in each]
    return sum(not (each.get("dryRun") or each.get("configuration", {}).get("dryRun")) for each in found)


def pending(gate: Gateway, asked: str) -> str:
    """The id of the job that waits, as its owner sees it in her list once it is written down."""
    for _ in range(500):
        listed = gate.ask("GET", f"/projects/{PROJECT}/jobs?projection=full&stateFilter=pending").json.get("jobs", [])
        for each in listed:
            if each["configuration"]["query"]["query"] == asked:
                assert each["state"] == "PENDING"
                name: str = each["jobReference"]["jobId"]
                return name
    raise AssertionError("it does not wait")


def end(gate: Gateway, service: BigQueryServer, ending: Ending, asked: str, number: int) -> None:
    """Decide on the query that waits, once a human has been asked; before that it is nowhere else."""
    record = gate.held(number, asked)
    assert runs(service, asked) == 0
    match ending:
        case "approved":
            gate.decide_elsewhere(record.id)
        case "denied":
            gate.decide_elsewhere(record.id, False, WORDS)
        case "cancelled":
            name = pending(gate, asked)
            assert gate.ask("POST", f"/projects/{PROJECT}/jobs/{name}/cancel").code == 200
        case "restarted":
            pending(gate, asked)
            before = gate.asked
            gate.restart(killed=True)
            again = gate.held(before, asked)
            gate.decide_elsewhere(again.id)


def cases(ways: tuple[str, ...], often: int) -> list[Any]:
    """Each way with each ending; of the ways behind the first few, what takes long is nightly."""
    return [
        pytest.param(
            way, ending, id=f"{way}-{ending}",
            marks=[pytest.mark.nightly] if place >= often and ending in ("cancelled", "restarted") else [],
        )
        for place, way in enumerate(ways) for ending in ENDINGS
    ]  # fmt: skip


@pytest.mark.parametrize(("way", "ending"), cases(PYTHON, 2))
def test_python_waits(
    held_gate: Gateway, held_worker: Worker, bq_service: BigQueryServer, way: str, ending: Ending
) -> None:
    asked, number = text(), held_gate.asked
    expects, says = EXPECTED[ending]
    held_worker.begin(way, text=asked, expects=expects, says=says)
    end(held_gate, bq_service, ending, asked, number)
    held_worker.finish()
    assert runs(bq_service, asked) == (expects == "rows")


# It takes the 10 s of one poll.
@pytest.mark.parametrize("way", [pytest.param("times_out", marks=pytest.mark.nightly), "cancels"])
def test_python_does_not_wait(held_gate: Gateway, held_worker: Worker, bq_service: BigQueryServer, way: str) -> None:
    asked = text()
    held_worker.run(way, text=asked, expects="", says="")
    assert runs(bq_service, asked) == 0


@pytest.mark.parametrize(("way", "ending"), cases(("query",), 0))
def test_bq_waits(held_gate: Gateway, bq_service: BigQueryServer, tmp_path: Path, way: str, ending: Ending) -> None:
    asked, number = text(), held_gate.asked
    try:
        command = bq_command("--format=json", way, "--nouse_legacy_sql", asked)
    except PeerMissing as missing:
        need(missing, optional=True)  # it comes from Google's own packages alone
        raise AssertionError from missing
    with started(held_gate.access("endpoint"), tmp_path, command) as process:
        end(held_gate, bq_service, ending, asked, number)
        status, told = said(process)
    expects, says = EXPECTED[ending]
    assert (status == 0) == (expects == "rows"), told
    assert ('[{"n":"1"}]' if expects == "rows" else says) in told
    assert runs(bq_service, asked) == (expects == "rows")


@pytest.mark.parametrize(("way", "ending"), cases(("query", "job", "promise"), 1))
def test_node_waits(
    held_gate: Gateway, bq_service: BigQueryServer, bq_environment: Environment, tmp_path: Path, way: str,
    ending: Ending,
) -> None:  # fmt: skip
    asked, number = text(), held_gate.asked
    more = {"BQ_NODE": str(bq_environment.node), "BQ_SQL": asked, "BQ_WAY": way}
    with started(held_gate.access("endpoint"), tmp_path, node_command("node_held.mjs"), more) as process:
        end(held_gate, bq_service, ending, asked, number)
        _, told = said(process)
    answer = json.loads(told.splitlines()[-1])
    expects, says = EXPECTED[ending]
    if expects == "rows":
        assert answer == {"rows": [{"n": 1}]}
    else:
        assert says in answer["message"]
        assert answer.get("reason", expects) in ("accessDenied", "stopped", expects)
    assert runs(bq_service, asked) == (expects == "rows")
