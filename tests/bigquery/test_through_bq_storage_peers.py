"""The Storage API through the gateway by Google's own client: masks, whose a stream is, and nothing dialled outside."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.core.events import Command
from proxy.core.parties import Identity
from proxy.core.verdict import Allow, Mask, Verdict
from recorder.format import USER
from tests.bigquery import scenarios_bq_storage as scenarios
from tests.bigquery.gateway_bq import Gateway, gateway, target_of
from tests.bigquery.people_bq import ANA, BOB, Loop
from tests.bigquery.running_bq import Worker, worker
from tests.peers.bigquery import UNIVERSE, BigQueryServer, Environment, Names, names

# The environments are made by the first test that wants them, which may take minutes: they have their own limit.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(90, func_only=True)]
MASK = Mask("hide-email", columns=("*.people.email",))
SECRETS = (b"p1@example.org", b"P1@EXAMPLE.ORG")


def rule(identity: Identity, command: Command) -> Verdict:
    """Reading, under masks; and all else."""
    return Allow("masked", (MASK,) if command.verb == "read_rows" else ())


@dataclass(slots=True)
class Two:
    """Ana comes by the universe domain, Bob by an endpoint."""

    gate: Gateway
    known: Names
    ana: Worker
    bob: Worker
    dataset: str
    place: Path


@pytest.fixture(scope="module")
def two_clients(bq_loop: Loop, bq_service: BigQueryServer, bq_environment: Environment) -> Iterator[Two]:
    """Two users' clients."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gc-bq-"))) for _ in range(3)]
        gate = stack.enter_context(gateway(bq_loop, folders[0], target_of(bq_service), rule))
        known = stack.enter_context(names(gate.universe))
        ana = gate.access("universe", ANA, known.url)
        bob = gate.access("endpoint", BOB)
        workers = [
            stack.enter_context(worker(bq_environment, access, scenarios, folder))
            for access, folder in ((ana, folders[1]), (bob, folders[2]))
        ]
        yield Two(gate, known, workers[0], workers[1], f"s{uuid.uuid4().hex[:8]}", folders[0] / "place.json")


def test_frames_are_masked(two_clients: Two, bq_service: BigQueryServer) -> None:
    """Rows came over gRPC, not over REST; and no other host was dialled."""
    since = bq_service.mark()
    two_clients.ana.run("frames", dataset=two_clients.dataset)
    asked = bq_service.requests(since)
    assert len([each for each in asked if each.get("grpc", "").endswith("/ReadRows")]) == 3
    assert f"bigquerystorage.{UNIVERSE}:443" in two_clients.known.dialled
    assert not two_clients.known.refused


def test_a_filter_is_no_oracle(two_clients: Two) -> None:
    two_clients.ana.run("oracles", dataset=two_clients.dataset)


def test_a_read_session_is_its_makers(two_clients: Two) -> None:
    two_clients.ana.run("makes", dataset=two_clients.dataset, place=str(two_clients.place))
    two_clients.bob.run("reads_anothers", place=str(two_clients.place))
    two_clients.ana.run("reads", place=str(two_clients.place))


def test_no_tape_has_what_was_hidden(two_clients: Two) -> None:
    """The last test here. What was inserted and asked for is on the tape as it was; what came back is masked."""
    two_clients.gate.idle()
    for tape in two_clients.gate.tapes():
        shown = b"".join(bytes(record.payload) for record in tape.records() if record.channel != USER)
        assert not [each for each in SECRETS if each in shown]
