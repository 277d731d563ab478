"""The single measurements: each takes a route and returns numbers; the caller interleaves them.

Times are wall times. cpu_us is the CPU time of the process in between, user and system, per transaction or
connection: on a machine with other work it is the steadier figure.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.client import RawClient
from benchmarks.world import Route

Numbers = dict[str, float]

PEOPLE: Final = "SELECT id, email, name, score FROM people"
CHUNK: Final = 50  # one-row queries on one route before it is the next one's turn
PROGRAM_SECONDS: Final = 300.0
_TPS: Final = re.compile(r"^tps = ([0-9.]+) \(without initial connection time\)", re.MULTILINE)
_DONE: Final = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_FAILED: Final = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)


def pgbench(route: Route, mode: str, clients: int, seconds: int) -> Numbers:
    """Run pgbench -S. Raises RuntimeError if any of its transactions failed."""
    command = ["pgbench", "-n", "-S", "-M", mode, "-c", str(clients), "-j", str(min(2, clients)), "-T", str(seconds)]
    before = route.cpu_seconds()
    text = _run(command, route)
    used = route.cpu_seconds() - before
    return parse_pgbench(text, used)


def parse_pgbench(text: str, cpu_seconds: float) -> Numbers:
    """Read what pgbench printed. Raises RuntimeError."""
    tps, done, failed = _TPS.search(text), _DONE.search(text), _FAILED.search(text)
    if tps is None or done is None or (failed is not None and int(failed[1])) or not int(done[1]):
        raise RuntimeError(f"pgbench did not do what it should: {text[-1000:]}")
    numbers = {"tps": float(tps[1]), "transactions": float(done[1])}
    if cpu_seconds:
        numbers["cpu_us"] = cpu_seconds / int(done[1]) * 1e6
    return numbers


def select_rows(route: Route, rows: int) -> Numbers:
    """SELECT many rows into nothing."""
    client = RawClient(route)
    before = route.cpu_seconds()
    started = time.perf_counter()
    size = client.query(f"{PEOPLE} WHERE id <= {rows}")
    seconds = time.perf_counter() - started
    client.close()
    return _bulk(rows, seconds, route.cpu_seconds() - before) | {"mb_per_s": size / seconds / 1e6}


def copy_out(route: Route, rows: int) -> Numbers:
    """COPY many rows out with psql, into nothing."""
    before = route.cpu_seconds()
    started = time.perf_counter()
    command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c"]
    _run([*command, f"COPY ({PEOPLE} WHERE id <= {rows}) TO STDOUT"], route, discard=True)
    seconds = time.perf_counter() - started
    return _bulk(rows, seconds, route.cpu_seconds() - before)


def copy_in(route: Route, rows: int, file: Path, admin: RawClient) -> Numbers:
    """COPY the rows of a file in with psql; the table is emptied before, over another connection."""
    admin.query("TRUNCATE people_copy")
    before = route.cpu_seconds()
    started = time.perf_counter()
    command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", "COPY people_copy FROM STDIN"]
    with file.open("rb") as source:
        _run(command, route, source=source.fileno())
    seconds = time.perf_counter() - started
    return _bulk(rows, seconds, route.cpu_seconds() - before)


def one_row(routes: Sequence[Route], keys: int, count: int) -> Iterator[tuple[Route, Numbers]]:
    """Time count one-row queries on each route, in turns of CHUNK, every query with another literal."""
    clients = {route.name: RawClient(route) for route in routes}
    times: dict[str, list[float]] = {route.name: [] for route in routes}
    clock = time.perf_counter
    key = 1
    for turn in range(-1, max(1, count // CHUNK)):  # the first turn warms every route up
        for route in routes:
            client, taken = clients[route.name], []
            for _ in range(CHUNK):
                key = key * 7919 % keys + 1
                text = f"SELECT abalance FROM pgbench_accounts WHERE aid = {key}"
                started = clock()
                client.query(text)
                taken.append(clock() - started)
            if turn >= 0:
                times[route.name] += taken
    for route in routes:
        clients[route.name].close()
        taken = sorted(times[route.name])
        yield route, {"p50_ms": statistics.median(taken) * 1e3, "p99_ms": taken[int(len(taken) * 0.99)] * 1e3}


def connections(route: Route, count: int) -> Numbers:
    """Connect, log in and leave, one after the other."""
    before = route.cpu_seconds()
    started = time.perf_counter()
    for _ in range(count):
        RawClient(route, 8192).close()
    seconds = time.perf_counter() - started
    numbers = {"per_s": count / seconds, "ms": seconds / count * 1e3}
    used = route.cpu_seconds() - before
    return numbers | ({"cpu_us": used / count * 1e6} if used else {})


def _bulk(rows: int, seconds: float, cpu_seconds: float) -> Numbers:
    numbers = {"rows_per_s": rows / seconds, "seconds": seconds}
    if cpu_seconds:
        numbers["cpu_ns_per_row"] = cpu_seconds / rows * 1e9
    return numbers


def _run(command: list[str], route: Route, discard: bool = False, source: int = subprocess.DEVNULL) -> str:
    done = subprocess.run(
        command,
        env=route.environment,
        stdin=source,
        stdout=subprocess.DEVNULL if discard else subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    errors = done.stderr.decode("utf-8", "replace")
    if done.returncode:
        raise RuntimeError(f"{command[0]} by {route.name} failed: {errors[-1000:]}")
    return "" if discard else done.stdout.decode()
