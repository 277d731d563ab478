"""BigQuery through the gateway beside going direct, and beside nginx as a reverse proxy; as ratios.

    python -m benchmarks.bench_bigquery [--quick] [--json] [--only query,job,page,storage,clients] [--rounds N]

Interleaved: within a round every case is measured on every route in turn. The gateway records everything, on this
machine's disk, in mode durable; TLS is on both legs of both proxies; "gatecast masked" is the same under a mask on one
column. Clients are raw and keep their connections: REST over TLS sockets, Storage by gRPC's own library, as bytes. A
"query" is a jobs.query of ten rows; of a new text the gateway reads the SQL and asks for a dry run besides. How long
the reading alone takes is measured beside it, by the gateway's own readers (Analysts). "clients" are 200 connections of
two processes at once. CPU is that of the process in the middle and of those that it runs.
--profile FILE runs the gateway under benchmarks/sampler.py and prints where its time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks import profiling
from benchmarks.bigquery_standin import PAGE, PAGE_BYTES, PROJECT, SERVICE, TABLE, read_session_request, stream_of
from benchmarks.bigquery_world import Route, World, world
from benchmarks.report import Sample, Samples, Spread
from proxy.policy.bigquery_workers import Analysts
from tests.peers.ssh import resident_bytes

DIRECT, NGINX, GATECAST, MASKED = ROUTES = ("direct", "nginx", "gatecast", "gatecast masked")
SMALL: Final = f"SELECT id, name, email FROM `{TABLE}` WHERE id = %d"
NESTED: Final = f"SELECT id, name, email, address, orders FROM `{TABLE}`"
KNOWN: Final = -1  # the number of the text that is asked for again and again
WARM: Final = 30
CONNECTIONS: Final = 200
PROCESSES: Final = 2
MIB: Final = 1 << 20

Numbers = list[tuple[str, str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables; 0 if every bar that was measured holds, or with --quick."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_bigquery", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="few requests and one round: to see that it works")
    parser.add_argument("--json", action="store_true", help="print the samples as JSON")
    parser.add_argument("--only", default=",".join(_CASES), help="which cases (default: %(default)s)")
    parser.add_argument("--routes", default=",".join(ROUTES), help="which routes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--profile", type=Path, help="where to put the gateway's stacks; measures are slower with it")
    parser.add_argument("--directory", type=Path, help="where tapes go (a real disk)")
    parser.add_argument(
        "--mode", default="durable", help="of recording: durable, written, strict (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    rounds = options.rounds or (1 if options.quick else 5)
    only, routes = options.only.split(","), options.routes.split(",")
    if unknown := ({*only} - {*_CASES}) | ({*routes} - {*ROUTES}):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    samples: list[Sample] = []
    profile = options.profile.absolute() if options.profile else None
    with world(profile, options.directory, options.mode) as place:
        routes = [each for each in routes if each in place.routes]
        for number in range(rounds):
            at = number % len(routes)
            for name, measure in _CASES.items():
                for route in (*routes[at:], *routes[:at]) if name in only else ():
                    values = measure(place, place.routes[route], 10 if options.quick else 1)
                    samples += [Sample(case, route, number, metric, value) for case, metric, value in values]
                    load = os.getloadavg()[0]
                    print(f"round {number + 1}/{rounds}: {name} {route} (load {load:.1f})", file=sys.stderr)
            place.drop_tapes()
    found = Samples(samples)
    print(
        json.dumps([[s.case, s.route, s.round, s.metric, s.value] for s in samples]) if options.json else report(found)
    )
    if profile is not None:
        print(profiling.table(profile.read_text()))
    return 0 if options.quick or all(holds for _, _, holds in bars(found)) else 1


# -- a client -------------------------------------------------------------------------------------------


class Client:
    """One kept connection of REST."""

    def __init__(self, route: Route) -> None:
        self._socket = route.connect()
        self._incoming = self._socket.makefile("rb", 256 * 1024)
        self._route = route

    def ask(self, method: str, path: str, value: Any = None) -> bytes:
        """Ask, and return the answer's body. Raises RuntimeError where it is none of 200."""
        self._socket.sendall(self._route.request(method, path, value))
        return read_answer(self._incoming)

    def close(self) -> None:
        """Hang up."""
        self._incoming.close()
        self._socket.close()


def read_answer(incoming: Any) -> bytes:
    """Read one answer from a buffered file, to its end and no further."""
    status = incoming.readline()
    length = -1
    while (line := incoming.readline().lower()) not in (b"\r\n", b""):
        if line.startswith(b"content-length:"):
            length = int(line[15:])
    if b" 200 " not in status:
        raise RuntimeError(f"the answer is {status!r} {incoming.read(max(length, 0))[:500]!r}")
    if length >= 0:
        return bytes(incoming.read(length))
    pieces = []
    while size := int(incoming.readline().partition(b";")[0], 16):
        pieces.append(incoming.read(size))
        incoming.readline()
    incoming.readline()
    return b"".join(pieces)


@contextmanager
def _client(route: Route) -> Iterator[Client]:
    client = Client(route)
    try:
        yield client
    finally:
        client.close()


_texts = iter(range(1, sys.maxsize))


def query(text: str) -> dict[str, Any]:
    """The body of a jobs.query, as Google's client for Python makes one."""
    options = {"useInt64Timestamp": True}
    return {"query": text, "useLegacySql": False, "formatOptions": options, "requestId": str(uuid.uuid4())}


def _timed(work: Callable[[], object], count: int) -> list[float]:
    """How long each took, in ms, sorted."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return sorted(times)


def _quantiles(case: str, times: Sequence[float]) -> Numbers:
    return [(case, "p50 ms", statistics.median(times)), (case, "p99 ms", times[int(len(times) * 0.99)])]


# -- the cases ------------------------------------------------------------------------------------------


def _query(place: World, route: Route, part: int) -> Numbers:
    """Small queries over one connection: of new texts, and of one that is known."""
    found, count = Numbers(), 400 // part
    with _client(route) as client:
        for case, number in (("query, new text", 0), ("query, known text", KNOWN)):

            def ask(number: int = number) -> None:
                client.ask("POST", "queries?prettyPrint=false", query(SMALL % (number or next(_texts))))

            _timed(ask, WARM)
            cpu = route.cpu_seconds()
            times = _timed(ask, count)
            found += _quantiles(case, times)
            read = uvloop.run(_reading(count, known=bool(number))) if route.pid and route.name != NGINX else 0.0
            found.append((case, "p50 ms less the reading", statistics.median(times) - read))
            if read:
                found.append((case, "reading, p50 ms", read))
            if route.pid:
                found.append((case, "CPU us/request", (route.cpu_seconds() - cpu) / count * 1e6))
    return found


async def _reading(count: int, *, known: bool) -> float:
    """How long the reading of a text takes the gateway's readers, in ms: the median."""
    readers = Analysts(workers=1)
    times = []
    try:
        for number in range(-WARM, count):
            text = SMALL % (KNOWN if known else next(_texts))
            start = time.perf_counter()
            analysis = await readers.read(text, PROJECT, None)
            times += [(time.perf_counter() - start) * 1000] if number >= 0 else []
            if analysis.opaque:
                raise RuntimeError(f"the text cannot be read: {analysis.opaque}")
    finally:
        await readers.close()
    return statistics.median(times)


def _job(place: World, route: Route, part: int) -> Numbers:
    """What the libraries do for a query that takes longer: insert, look, get the result."""
    found, count = Numbers(), 200 // part
    times: dict[str, list[float]] = {"jobs.insert": [], "jobs.get": [], "getQueryResults": []}
    with _client(route) as client:
        cpu = 0.0
        for number in range(-WARM // 3, count):
            cpu = route.cpu_seconds() if number == 0 else cpu
            name = f"bench_{uuid.uuid4().hex}"
            job: dict[str, Any] = {"jobReference": {"projectId": PROJECT, "jobId": name, "location": "US"}}
            job |= {"configuration": {"query": {"query": SMALL % KNOWN, "useLegacySql": False}}}
            asked: dict[str, tuple[str, str, Any]] = {
                "jobs.insert": ("POST", "jobs?prettyPrint=false", job),
                "jobs.get": ("GET", f"jobs/{name}?projection=full&prettyPrint=false&location=US", None),
                "getQueryResults": ("GET", f"queries/{name}?location=US&prettyPrint=false", None),
            }
            for case, (method, path, value) in asked.items():
                start = time.perf_counter()
                client.ask(method, path, value)
                times[case] += [(time.perf_counter() - start) * 1000] if number >= 0 else []
        for case, each in times.items():
            found += _quantiles(case, sorted(each))
        if route.pid:
            found.append(("job of three requests", "CPU us", (route.cpu_seconds() - cpu) / count * 1e6))
    return found


def _page(place: World, route: Route, part: int) -> Numbers:
    """Pages of 10 MB of nested rows."""
    count, case = max(2, 20 // part), "page of 10 MB"
    with _client(route) as client:
        job = json.loads(client.ask("POST", "queries?prettyPrint=false", query(NESTED)))["jobReference"]["jobId"]
        path = f"queries/{job}?pageToken={PAGE}&location=US&prettyPrint=false"
        size = len(client.ask("GET", path))
        if size < PAGE_BYTES * 0.9:  # a hash may be shorter than what it stands for
            raise RuntimeError(f"the page has {size} bytes")
        cpu, start = route.cpu_seconds(), time.perf_counter()
        for _ in range(count):
            client.ask("GET", path)
        seconds = time.perf_counter() - start
    found: Numbers = [(case, "MB/s", PAGE_BYTES * count / seconds / 1e6)]
    if route.pid:
        found.append((case, "CPU s/GB", (route.cpu_seconds() - cpu) / (PAGE_BYTES * count / 1e9)))
    return found


def _storage(place: World, route: Route, part: int) -> Numbers:
    """ReadRows of one stream, Arrow, 4 MB a message."""
    import grpc  # type: ignore[import-untyped, unused-ignore]

    credentials = grpc.ssl_channel_credentials(route.authority.read_bytes())
    options = (("grpc.max_receive_message_length", -1), ("grpc.ssl_target_name_override", "localhost"))
    metadata = (("authorization", f"Bearer {route.storage_token}"),)
    case, size, seconds, cpu = "Storage Read", 0, 0.0, 0.0
    with grpc.secure_channel(f"127.0.0.1:{route.storage_port}", credentials, options) as channel:
        for warm in (True, False):
            answer = channel.unary_unary(f"{SERVICE}CreateReadSession")(
                read_session_request(TABLE), metadata=metadata, timeout=60
            )
            stream = stream_of(answer)
            request = bytes((1 << 3 | 2, len(stream))) + stream
            size, cpu, start = 0, route.cpu_seconds(), time.perf_counter()
            for message in channel.unary_stream(f"{SERVICE}ReadRows")(request, metadata=metadata, timeout=300):
                size += len(message)
                if warm or (part > 1 and size > PAGE_BYTES):
                    break
            seconds = time.perf_counter() - start
    found: Numbers = [(case, "MB/s", size / seconds / 1e6)]
    if route.pid:
        found.append((case, "CPU s/GB", (route.cpu_seconds() - cpu) / (size / 1e9)))
    return found


def _clients(place: World, route: Route, part: int) -> Numbers:
    """200 connections at once, and what they do to the memory of the middle."""
    if route.name == MASKED:
        return []
    case, each = f"{CONNECTIONS} clients", 20 // min(part, 4)
    before = resident_bytes(route.pid) if route.pid else 0
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool, _Watch(route.pid) as watch:
        _crowd(pool, route, each)  # connections, caches, buffers: what is there once is there
        between = watch.now()
        cpu, start = route.cpu_seconds(), time.perf_counter()
        times = _crowd(pool, route, each)
        seconds = time.perf_counter() - start
        cpu, after = route.cpu_seconds() - cpu, watch.now()
    found = [*_quantiles(case, times), (case, "requests/s", len(times) / seconds)]
    if route.pid:
        found += [
            (case, "CPU us/request", cpu / len(times) * 1e6),
            (case, "RSS before MiB", before / MIB),
            (case, "RSS peak MiB", watch.most / MIB),
            (case, "RSS growth MiB", (after - between) / MIB),
        ]
    return found


class _Watch:
    """Looks at the memory of a process while the block runs. most: what it has had."""

    def __init__(self, pid: int) -> None:
        self._pid, self.most = pid, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def now(self) -> int:
        """What it has."""
        found = resident_bytes(self._pid) if self._pid else 0
        self.most = max(self.most, found)
        return found

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self.now()

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _crowd(pool: ProcessPoolExecutor, route: Route, each: int) -> list[float]:
    """Let all clients ask so many times each; returns the sorted times, in ms."""
    share = CONNECTIONS // PROCESSES
    parts = [pool.submit(crowd, route, share, each) for _ in range(PROCESSES)]
    return sorted(one for part in parts for one in part.result())


def crowd(route: Route, connections: int, each: int) -> list[float]:
    """The clients of one process; all connect before the first asks."""
    return uvloop.run(_crowded(route, connections, each))


async def _crowded(route: Route, connections: int, each: int) -> list[float]:
    times: list[float] = []
    context = route.context()
    gate = asyncio.Barrier(connections)

    async def client() -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", route.port, ssl=context, limit=MIB, server_hostname="localhost", ssl_handshake_timeout=120
        )
        await gate.wait()
        for _ in range(each):
            asked = route.request("POST", "queries?prettyPrint=false", query(SMALL % KNOWN))
            start = time.perf_counter()
            writer.write(asked)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 200 " not in head[:16]:
                raise RuntimeError(f"the answer is {head!r}")
            await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
            times.append((time.perf_counter() - start) * 1000)
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(client())
    return times


_CASES: Final[dict[str, Callable[[World, Route, int], Numbers]]] = {
    "query": _query, "job": _job, "page": _page, "storage": _storage, "clients": _clients,
}  # fmt: skip


# -- the report -----------------------------------------------------------------------------------------


def bars(samples: Samples) -> list[tuple[str, str, bool]]:
    """The bars of the project that were measured: what, what was found, whether it holds."""
    found: list[tuple[str, str, bool]] = []

    def bar(text: str, spread: Spread | None, limit: float, at_most: bool) -> None:
        if spread is not None:
            good = spread.median < limit if at_most else spread.median >= limit
            found.append((text, spread.show("{:.4f}" if limit < 0.4 else "{:.2f}"), good))

    added = samples.difference("query, new text", GATECAST, DIRECT, "p50 ms less the reading")
    bar("query, new text: p50 beyond direct and the reading of the SQL, < 3 ms", added, 3.0, True)
    known = samples.values("query, known text", GATECAST, "reading, p50 ms")
    bar("query, known text: the reading of the SQL, < 0.2 ms", known, 0.2, True)
    page = "page of 10 MB"
    bar(f"{page}: MB/s of direct, >= 0.8", samples.ratio(page, GATECAST, DIRECT, "MB/s"), 0.8, False)
    bar(f"{page}, one masked column: of direct, >= 0.4", samples.ratio(page, MASKED, DIRECT, "MB/s"), 0.4, False)
    read = "Storage Read"
    bar(f"{read}: MB/s of direct, >= 0.6", samples.ratio(read, GATECAST, DIRECT, "MB/s"), 0.6, False)
    growth = samples.values(f"{CONNECTIONS} clients", GATECAST, "RSS growth MiB")
    bar(f"{CONNECTIONS} clients: growth of RSS over 4,000 queries, < 8 MiB", growth, 8.0, True)
    return found


def report(samples: Samples) -> str:
    """The tables, in Markdown."""
    lines = ["| case | " + " | ".join(ROUTES) + " |", "|---|" + "---|" * len(ROUTES)]
    for case, metric in dict.fromkeys((s.case, s.metric) for s in samples.samples):
        spreads = (samples.values(case, route, metric) for route in ROUTES)
        form = "{:.0f}" if metric.startswith("CPU us") else "{:.2f}"
        lines.append(f"| {case}, {metric} | " + " | ".join("" if s is None else s.show(form) for s in spreads) + " |")
    lines += ["", "| MB/s, as a ratio to direct | nginx | gatecast | gatecast masked |", "|---|---|---|---|"]
    for case in samples.cases:
        ratios = [samples.ratio(case, route, DIRECT, "MB/s") for route in ROUTES[1:]]
        if any(ratios):
            lines.append(f"| {case} | " + " | ".join("" if s is None else s.show() for s in ratios) + " |")
    lines += ["", "| p50 ms beyond direct | nginx | gatecast | gatecast masked |", "|---|---|---|---|"]
    for case in samples.cases:
        added = [samples.difference(case, route, DIRECT, "p50 ms") for route in ROUTES[1:]]
        if any(added):
            lines.append(f"| {case} | " + " | ".join("" if s is None else s.show() for s in added) + " |")
    lines += ["", "| bar | found | holds |", "|---|---|---|"]
    lines += [f"| {text} | {shown} | {'yes' if holds else '**no**'} |" for text, shown, holds in bars(samples)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
