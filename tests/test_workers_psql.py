"""``gatecast serve`` with two workers, in front of a real PostgreSQL: what sessions of different workers share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy.identity.commands import token_issue
from tests.peers.postgres import PostgresServer

pytestmark = pytest.mark.peer
ROOT = Path(__file__).parents[1]
CONFIG = """\
state: state
workers: 2
listeners:
  - {name: pg, protocol: postgres, address: "127.0.0.1:0", plain: true}
targets:
  - {name: shop, host: 127.0.0.1, port: PORT, database: postgres, sslmode: disable, credential: {user: postgres},
     recording: written, limits: {max_connections: 3}}
limits: {drain_seconds: 0}
rules:
  - {name: all, allow: true}
"""
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway with two workers."""

    folder: Path
    port: int
    token: str

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="x", password=self.token, dbname="shop", sslmode="disable",
            gssencmode="disable", autocommit=True,
        )  # fmt: skip

    def verify(self) -> subprocess.CompletedProcess[str]:
        """gatecast verify, once the session that just ended is sealed and in the node's log: a second or two."""
        deadline = time.monotonic() + 20
        while (done := self.gatecast("verify")).returncode == 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        return done

    def gatecast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "proxy", *arguments],
            env=environment(), cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "GATECAST_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def gateway(tmp_path: Path, postgres15: PostgresServer) -> Iterator[Running]:
    (tmp_path / "gatecast.yaml").write_text(CONFIG.replace("PORT", str(postgres15.port)))
    (tmp_path / "state").mkdir(mode=0o700)
    token = token_issue(tmp_path / "state" / "gatecast.db", "ana@example.com")["token"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--log-json"], env=environment(), cwd=tmp_path, stderr=log
        )
    try:
        running = Running(tmp_path, 0, token)
        until(lambda: process.poll() is not None or bool(running.logged("started")))
        assert process.poll() is None, (tmp_path / "log").read_text()
        port = int(running.logged("listening")[0]["address"].rpartition(":")[2])
        yield Running(tmp_path, port, token)
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


def until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_cancel_request_finds_the_session_of_another_worker(gateway: Running) -> None:
    with gateway.connect() as one, gateway.connect() as two, ThreadPoolExecutor() as threads:
        live = json.loads(gateway.gatecast("sessions", "live", "--json").stdout)
        assert sorted(row["worker"] for row in live) == [1, 2]
        for connection, other in ((one, two), (one, two), (two, one), (two, one)):
            sleeping = threads.submit(connection.execute, "SELECT pg_sleep(60)")
            while active(other) != 1:
                time.sleep(0.01)
            connection.cancel_safe(timeout=10)
            with pytest.raises(psycopg.errors.QueryCanceled):
                sleeping.result(PATIENCE_SECONDS)
        # Connections take turns where workers have as many, so of two cancels one was heard by the other worker.
        heard = gateway.logged("cancel request")
        assert [entry["known"] for entry in heard] == [True] * 4
        assert [entry["worker"] for entry in heard[:2]] in ([1, 2], [2, 1])
        assert [entry["worker"] for entry in heard[2:]] in ([1, 2], [2, 1])


def active(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_targets_limit_counts_the_sessions_of_all_workers(gateway: Running) -> None:
    with gateway.connect(), gateway.connect():
        third = gateway.connect()
        with pytest.raises(psycopg.OperationalError, match='too many connections to "shop"'):
            gateway.connect()
        third.close()
        until(lambda: len(json.loads(gateway.gatecast("sessions", "live", "--json").stdout)) == 2)
        with gateway.connect() as again:
            assert again.execute("SELECT 1").fetchone() == (1,)


def test_the_command_line_shows_the_workers(gateway: Running) -> None:
    with gateway.connect():
        status = json.loads(gateway.gatecast("status", "--json").stdout)
        assert [(row["worker"], row["state"], row["restarts"]) for row in status["workers"]] == [
            (1, "serving", 0),
            (2, "serving", 0),
        ]
        assert sorted(row["connections"] for row in status["workers"]) == [0, 1]
        shown = gateway.gatecast("status").stdout
        assert "worker 1, state serving" in shown
        assert gateway.gatecast("reload").stdout == f"Reloaded: rules {status['rules']}.\n"
    verified = gateway.verify()
    assert (verified.returncode, verified.stdout.splitlines()[-1][:16]) == (0, "verified: 1 tape")
