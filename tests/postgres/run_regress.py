"""PostgreSQL's own regression and isolation suites, directly and through the gateway, and what differs.

``python -m tests.postgres.run_regress SOURCE`` wants the unpacked and built source of PostgreSQL 15 (docs/
compatibility.md says how it is got; ``src/test/regress`` and ``src/test/isolation`` have to be built). A server of its
own is started from the installed programs; each suite runs against it and then through a gateway of its own process
(run_gateway.py). What counts is not what the suites call right but that both runs print the same: the files of results
are compared byte by byte. Exits with 1 if any differs. Takes minutes, so it is no test that pytest runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fakes import TOKEN
from tests.peers.postgres import PostgresServer, postgres_server
from tests.postgres.own_process import own_gateway

SUITES: Final = {
    "regress": ("src/test/regress", "pg_regress", "parallel_schedule", ("--dlpath=.", "--max-concurrent-tests=20")),
    "isolation": ("src/test/isolation", "pg_isolation_regress", "isolation_schedule", ()),
}
RUN_SECONDS: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one suite: its results, how long it took, how many tests it called right and wrong."""

    results: dict[str, bytes]
    seconds: float
    right: int
    wrong: tuple[str, ...]


def run(source: Path, suite: str, server: PostgresServer, port: int) -> Run:
    """Run a suite against a port."""
    folder, program, schedule, options = SUITES[suite]
    with tempfile.TemporaryDirectory(prefix="gatecast-regress-") as place:
        Path(place).chmod(0o777)  # the server writes files of COPY there
        began = time.monotonic()
        done = subprocess.run(
            [f"./{program}", "--inputdir=.", f"--outputdir={place}", f"--bindir={server.bin}", f"--schedule={schedule}",
             "--host=127.0.0.1", f"--port={port}", f"--user={server.user}", *options],
            cwd=source / folder, env={**os.environ, "PGPASSWORD": TOKEN, "PGSSLMODE": "disable"}, umask=0,
            capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - began
        results = {path.name: _placed(path, place) for path in sorted((Path(place) / "results").glob("*.out"))}
    lines = [line for line in done.stdout.splitlines() if " ... " in line]
    wrong = tuple(line.split(" ... ")[0].removeprefix("test ").strip() for line in lines if "FAILED" in line)
    if not results:
        raise SystemExit(f"{suite} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Run(results, seconds, sum(" ok " in line for line in lines), wrong)


def _placed(path: Path, place: str) -> bytes:
    """A result without the name of this run's folder."""
    return path.read_bytes().replace(place.encode(), b"PLACE")


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.postgres.run_regress", description=__doc__)
    parser.add_argument("source", type=Path, help="the built source of PostgreSQL 15")
    parser.add_argument("--suite", choices=tuple(SUITES), action="append", help="all unless told")
    options = parser.parse_args()
    differ = False
    with postgres_server("15") as server:
        for suite in options.suite or SUITES:
            direct = run(options.source, suite, server, server.port)
            with own_gateway(server) as port:
                gated = run(options.source, suite, server, port)
            found = [name for name in direct.results | gated.results
                     if direct.results.get(name) != gated.results.get(name)]  # fmt: skip
            differ |= bool(found)
            for name, each in (("direct", direct), ("gated", gated)):
                print(
                    f"{suite} {name}: {len(each.results)} results, {each.right} right, {each.seconds:.0f} s",
                    *each.wrong,
                )
            print(f"{suite}: {len(found)} differ", *found)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
