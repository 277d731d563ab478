"""node-postgres with cursors, query streams and COPY streams: the same lines through the gateway as directly."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.peers.postgres import PeerMissing, PostgresServer, need
from tests.postgres.own_process import ROOT, environment, own_gateway

pytestmark = pytest.mark.peer

FOLDER = ROOT / "tests" / "peers" / "node"
RUN_SECONDS = 60.0
# What was tried and has to have worked, lest two failures look like agreement.
EXPECTED = {
    "many parameters": [{"sum": 499500}],
    "rolled back": "ROLLBACK",
    "committed": ["COMMIT", [{"id": 1}, {"id": 6}]],
    "queued": 19900,
    "stream": [5000, 12502500],
    "copy in": 50000,
    "after copies": [{"n": 50000}],
    "heard": [["news", "first", True], ["news", "", True], ["news", "last", True]],
    "own pid": True,
    "after cancel": [{"one": 1}],
    "terminated": ["57P01", "FATAL"],
    "pool": 9900,
    "end": True,
}


def lines(node: str, port: int) -> list[tuple[str, Any]]:
    done = subprocess.run(
        [node, "--no-deprecation", "postgres_client.mjs"],
        cwd=FOLDER, env=environment(port, "node_peers"), capture_output=True, text=True, timeout=RUN_SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return [(what, value) for what, value in map(json.loads, done.stdout.splitlines())]


def test_node_postgres_sees_the_same(postgres15: PostgresServer) -> None:
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules" / "pg-query-stream").is_dir():
        need(PeerMissing("node and npm install in tests/peers/node are needed (make test does it)"))
    assert node is not None
    with postgres15.database("node_peers"):
        direct = lines(node, postgres15.port)
        with own_gateway(postgres15) as port:
            gated = lines(node, port)
    assert gated == direct
    found = dict(direct)
    assert {what: found[what] for what in EXPECTED} == EXPECTED
    assert found["cancelled"]["code"] == "57014"
