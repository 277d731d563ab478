"""Kubernetes through the gateway beside going direct, and beside ``kubectl proxy``; as ratios.

    python -m benchmarks.bench_kubernetes [--quick] [--json] [--only exec,get,keys,masked,stalled] [--rounds N]

Interleaved: within a round every case is measured on every route in turn. The gateway records everything, on this
machine's disk, in mode durable, with TLS on both legs; kubectl proxy (Go, records nothing) has plain HTTP on one. Bulk
is the exec of a real kubectl; small requests, keystrokes and the reader that stops reading are raw clients of our own,
so that what is added is seen. A keystroke is typed on a terminal that echoes it; "line" is Enter behind ten of them,
which the gateway reads, decides and tapes before the pod gets it. CPU is that of the process in the middle.
--profile FILE runs the gateway under benchmarks/sampler.py and prints where its time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import profiling
from benchmarks.kubernetes_world import NAMESPACE, SECRETS, Route, World, world
from benchmarks.report import Sample, Samples, Spread
from tests.peers.ssh import resident_bytes

ROUTES: Final = ("direct", "kubectl proxy", "gatecast")
MASKED: Final = "gatecast masked"
SMALL: Final = "/api/v1/namespaces/default/configmaps/app"
LIST: Final = f"/api/v1/namespaces/{NAMESPACE}/secrets?limit=500"
EXEC: Final = "/api/v1/namespaces/default/pods/web-0/exec?container=main&stdout=true"
KEYS: Final = 400
LINES: Final = 40
STALL_SECONDS: Final = 4.0
MIB: Final = 1 << 20

Numbers = list[tuple[str, str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables; 0 if every bar that was measured holds, or with --quick."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_kubernetes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small transfers and one round: to see that it works")
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
    rounds = options.rounds or (1 if options.quick else 3)
    only, routes = options.only.split(","), options.routes.split(",")
    if unknown := ({*only} - {*_CASES}) | ({*routes} - {*ROUTES}):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    samples: list[Sample] = []
    profile = options.profile.absolute() if options.profile else None
    with world((64 if options.quick else 300) * MIB, profile, options.directory, options.mode) as place:
        for number in range(rounds):
            at = number % len(routes)
            for name, measure in _CASES.items():
                for route in (*routes[at:], *routes[:at]) if name in only else ():
                    samples += [Sample(case, route, number, metric, v) for case, metric, v in measure(place, route)]
                    print(f"round {number + 1}/{rounds}: {name} {route}", file=sys.stderr)
            place.drop_tapes()
    found = Samples(samples)
    print(
        json.dumps([[s.case, s.route, s.round, s.metric, s.value] for s in samples]) if options.json else report(found)
    )
    if profile is not None:
        print(profiling.table(profile.read_text()))
    return 0 if options.quick or all(holds for _, _, holds in bars(found)) else 1


# -- bulk, by kubectl -----------------------------------------------------------------------------------


def _exec(place: World, name: str) -> Numbers:
    """An exec that prints, and one that is fed: MB/s, and CPU seconds a GB."""
    route, size, found = place.routes[name], place.size, Numbers()
    pod = ("web-0", "-c", "main", "--")
    down = place.kubectl(name, "exec", *pod)
    up = place.kubectl(name, "exec", "-i", *pod, "wc", "-c")
    _run(place, [*down, "true"], None, b"")  # so that what is done once (discovery, modules) is done
    cases: dict[str, Callable[[], None]] = {
        "exec down": lambda: _run(place, [*down, "head", "-c", str(size), "/dev/zero"], None, None),
        "exec down, random": lambda: _run(place, [*down, "cat", str(place.file)], None, None),
        "exec up": lambda: _run(place, up, place.file, str(size).encode()),
    }
    for case, work in cases.items():
        cpu, start = route.cpu_seconds(), time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        found.append((case, "MB/s", size / seconds / 1e6))
        if route.pid:
            found.append((case, "CPU s/GB", (route.cpu_seconds() - cpu) / (size / 1e9)))
    return found


def _run(place: World, command: list[str], stdin: Path | None, says: bytes | None) -> None:
    """Run a kubectl. says: what it must print; None: nobody looks, and only that it ends well counts."""
    out = subprocess.DEVNULL if says is None else subprocess.PIPE
    with (stdin or Path(os.devnull)).open("rb") as source:
        done = subprocess.run(
            command, stdin=source, stdout=out, stderr=subprocess.PIPE, env=dict(place.environment), timeout=600,
            check=False,
        )  # fmt: skip
    if done.returncode or (says is not None and done.stdout.strip() != says):
        raise RuntimeError(f"{command!r}: {done.returncode} {done.stdout!r} {done.stderr.decode(errors='replace')}")


# -- small requests -------------------------------------------------------------------------------------


def _get(place: World, name: str) -> Numbers:
    """A small GET over kept connections, one and eight of them: p50, requests a second, CPU a request."""
    route, found = place.routes[name], Numbers()
    for clients, requests in ((1, 1500), (8, 3000)):
        uvloop.run(_gets(route, SMALL, clients, clients * 25))
        found += _timed(route, SMALL, f"GET, {clients} connection{'s' * (clients > 1)}", clients, requests)
    return found


def _masked(place: World, name: str) -> Numbers:
    """A list of 500 secrets, and on the gateway the same with their values masked."""
    case = f"list of {SECRETS} secrets"
    found = _timed(place.routes[name], LIST, case, 1, 20)
    if name == "gatecast":
        found += _timed(place.routes[MASKED], LIST, f"{case}, masked", 1, 20)
    return found


def _timed(route: Route, path: str, case: str, clients: int, requests: int) -> Numbers:
    cpu, start = route.cpu_seconds(), time.perf_counter()
    times = uvloop.run(_gets(route, path, clients, requests))
    seconds = time.perf_counter() - start
    found: Numbers = [
        (case, "p50 ms", statistics.median(times)),
        (case, "p99 ms", times[int(len(times) * 0.99)]),
        (case, "requests/s", requests / seconds),
    ]
    if route.pid:
        found.append((case, "CPU us/request", (route.cpu_seconds() - cpu) / requests * 1e6))
    return found


async def _gets(route: Route, path: str, clients: int, requests: int) -> list[float]:
    """Send requests over kept connections, one after another on each; returns the sorted times, in ms."""
    times: list[float] = []
    asked = route.head(path)

    async def client() -> None:
        name = "127.0.0.1" if route.context is not None else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", route.port, ssl=route.context, limit=MIB, server_hostname=name
        )
        for _ in range(requests // clients):
            start = time.perf_counter()
            writer.write(asked)
            await _answer(reader)
            times.append((time.perf_counter() - start) * 1000)
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return sorted(times)


async def _answer(reader: asyncio.StreamReader) -> None:
    """Read one answer. Raises RuntimeError where it is none of 200."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head[:16]:
        raise RuntimeError(f"the answer is {head!r}")
    _, found, rest = head.partition(b"content-length:")
    if found:
        await reader.readexactly(int(rest.partition(b"\r\n")[0]))
        return
    while size := int((await reader.readline()).partition(b";")[0], 16):
        await reader.readexactly(size + 2)
    await reader.readline()


# -- streams --------------------------------------------------------------------------------------------


class Typist:
    """A WebSocket of v5.channel.k8s.io, and whoever sits at it. Frames to the server are masked with zeroes."""

    def __init__(self, route: Route, query: str, receive_bytes: int = 0) -> None:
        fields = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
            "Sec-WebSocket-Protocol": "v5.channel.k8s.io",
        }  # fmt: skip
        self.socket = route.connect(receive_bytes)
        self.socket.sendall(route.head(EXEC + query, fields))
        self._data = b""
        while b"\r\n\r\n" not in self._data:
            self._data += self._more()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        if b" 101 " not in head[:16]:
            raise RuntimeError(f"no exec: {head!r}")

    def _more(self) -> bytes:
        data = self.socket.recv(MIB)
        if not data:
            raise RuntimeError("the exec ended")
        return data

    def type(self, data: bytes) -> None:
        """Send on stdin: at most 124 bytes."""
        self.socket.sendall(bytes((0x82, 0x81 + len(data), 0, 0, 0, 0, 0)) + data)

    def hear(self) -> bytes:
        """Return what the next message says on stdout."""
        while True:
            size, at = (self._data[1] & 0x7F, 2) if len(self._data) > 1 else (-1, 0)
            if size == 126 and len(self._data) > 3:
                size, at = int.from_bytes(self._data[2:4], "big"), 4
            if 0 <= size != 126 and len(self._data) >= at + size:
                message, self._data = self._data[at : at + size], self._data[at + size :]
                if message[:1] == b"\x01" and len(message) > 1:
                    return message[1:]
                continue
            self._data += self._more()

    def hear_all(self, wanted: bytes) -> None:
        """Listen until the bytes have come."""
        heard = b""
        while wanted not in heard:
            heard += self.hear()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


def _keys(place: World, name: str) -> Numbers:
    """The echo of a key on a terminal, and of a line, in ms."""
    typist = Typist(place.routes[name], "&stdin=true&tty=true&command=cat")
    keys: list[float] = []
    lines: list[float] = []
    try:
        for number in range(KEYS + LINES):
            last = number % (KEYS // LINES + 1) == KEYS // LINES
            start = time.perf_counter()
            typist.type(b"\r" if last else b"x")
            typist.hear_all(b"x\r\n" if last else b"x")
            (lines if last else keys).append((time.perf_counter() - start) * 1000)
            time.sleep(0.003)
    finally:
        typist.close()
    keys.sort()
    return [
        ("keystroke", "p50 ms", statistics.median(keys)),
        ("keystroke", "p95 ms", keys[int(len(keys) * 0.95)]),
        ("line", "p50 ms", statistics.median(lines)),
    ]


def _stalled(place: World, name: str) -> Numbers:
    """How much memory the middle takes for a user who stops reading 300 MB, in MiB."""
    route = place.routes[name]
    if not route.pid:
        return []
    query = f"&command=head&command=-c&command={place.size}&command=/dev/zero"
    _read_some(route, "&command=true", 1)  # so that what is done once is done
    before = most = resident_bytes(route.pid)
    typist = Typist(route, query, receive_bytes=64 * 1024)
    try:
        deadline = time.monotonic() + STALL_SECONDS
        while time.monotonic() < deadline:
            most = max(most, resident_bytes(route.pid))
            time.sleep(0.02)
    finally:
        typist.close()
    return [("stalled reader", "RSS growth MiB", (most - before) / MIB)]


def _read_some(route: Route, query: str, size: int) -> None:
    """Read the beginning of an exec, and hang up."""
    typist = Typist(route, query)
    try:
        while size > 0:
            size -= len(typist.socket.recv(MIB))
    finally:
        typist.close()


_CASES: Final[dict[str, Callable[[World, str], Numbers]]] = {
    "exec": _exec, "get": _get, "keys": _keys, "masked": _masked, "stalled": _stalled,
}  # fmt: skip


# -- the report -----------------------------------------------------------------------------------------


def bars(samples: Samples) -> list[tuple[str, str, bool]]:
    """The bars of the project that were measured: what, what was found, whether it holds."""
    found: list[tuple[str, str, bool]] = []

    def bar(text: str, spread: Spread | None, limit: float, at_most: bool) -> None:
        if spread is not None:
            good = spread.median < limit if at_most else spread.median >= limit
            found.append((text, spread.show(), good))

    for case in ("exec down", "exec up"):
        bar(f"{case}: MB/s of direct, >= 0.55", samples.ratio(case, "gatecast", "direct", "MB/s"), 0.55, False)
    for case, text, limit in (("GET, 1 connection", "small GET", 1.5), ("keystroke", "keystroke", 1.0)):
        beyond = samples.difference(case, "gatecast", "direct", "p50 ms")
        bar(f"{text}: p50 beyond direct, < {limit:g} ms", beyond, limit, True)
    growth = samples.values("stalled reader", "gatecast", "RSS growth MiB")
    bar("stalled reader: growth of RSS, < 8 MiB", growth, 8.0, True)
    return found


def report(samples: Samples) -> str:
    """The tables, in Markdown."""
    lines = ["| case | " + " | ".join(ROUTES) + " |", "|---|" + "---|" * len(ROUTES)]
    for case, metric in dict.fromkeys((s.case, s.metric) for s in samples.samples):
        spreads = (samples.values(case, route, metric) for route in ROUTES)
        lines.append(f"| {case}, {metric} | " + " | ".join("" if s is None else s.show() for s in spreads) + " |")
    lines += ["", "| MB/s, as a ratio | of direct | of kubectl proxy |", "|---|---|---|"]
    for case in samples.cases:
        ratios = [samples.ratio(case, "gatecast", base, "MB/s") for base in ROUTES[:2]]
        if any(ratios):
            lines.append(f"| {case} | " + " | ".join("" if s is None else s.show() for s in ratios) + " |")
    lines += ["", "| bar | found | holds |", "|---|---|---|"]
    lines += [f"| {text} | {shown} | {'yes' if holds else '**no**'} |" for text, shown, holds in bars(samples)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
