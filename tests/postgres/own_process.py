"""A gateway in a process of its own as a context manager, and what drivers of other languages need to reach it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.fakes import TOKEN
from tests.peers.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 30.0


@contextlib.contextmanager
def own_gateway(server: PostgresServer) -> Iterator[int]:
    """Run tests.postgres.run_gateway before the server; yields its port, and insists that every tape verifies."""
    command = [sys.executable, "-m", "tests.postgres.run_gateway", "--target-port", str(server.port)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            port = 0
            for line in process.stdout:
                if line.startswith("port "):
                    port = int(line.split()[1])
                    break
            assert port, "the gateway did not start"
            yield port
        except BaseException:
            process.kill()
            raise
        out, _ = process.communicate(timeout=STOP_SECONDS)  # the end of its input stops it
        assert process.returncode == 0, out
        tapes = next(line for line in out.splitlines() if line.startswith("tapes "))
        assert int(tapes.split()[1]) > 0


def environment(port: int, database: str) -> dict[str, str]:
    """The PG* variables of a connection; the token does no harm where the server trusts."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "JAVA_HOME") if name in os.environ}
    return {
        **kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres",
        "PGPASSWORD": TOKEN, "PGDATABASE": database,
    }  # fmt: skip
