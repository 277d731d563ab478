"""SSH through the gateway beside going direct, and beside ``ssh -J`` through a second sshd; as ratios.

    python -m benchmarks.bench_ssh [--quick] [--json] [--only bulk,keys,connect,many] [--profile]

All with the system's OpenSSH client and server, interleaved: within a round every case is measured on every route in
turn. The gateway records everything, on this machine's disk, in mode durable. Bulk is random bytes, so that nothing
gains by compression; each side's checksum is compared. CPU is that of the process in the middle (the gateway; the
second sshd with its children). A keystroke is typed into ``cat`` on a terminal in raw mode, and timed to its echo.
"Many" are interactive sessions at once, each typing five keys a second, the gateway held to one core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Sample, Samples
from tests.peers.ssh import SshServer, client_environment, descendants, program, ssh_server, write_config
from tests.ssh.gateway import GatewayProcess, ssh_gateway

ROUTES: Final = ("direct", "jump", "gatecast")
KEYS: Final = 400
CONNECTS: Final = 8
MANY: Final = 100
KEY_PERIOD_SECONDS: Final = 0.2
RULES: Final = "rules:\n  - {name: all, who: {groups: [dev]}, allow: true}\n"


@dataclass(frozen=True, slots=True)
class World:
    """The places, and how to reach the target on each route."""

    folder: Path
    server: SshServer
    jump: SshServer
    gateway: GatewayProcess
    config: Path
    file: Path
    size: int

    def ssh(self, route: str, *words: str) -> list[str]:
        """The command line of ssh on a route."""
        return [program("ssh"), "-F", str(self.config), route, *words]

    def cpu(self, route: str) -> float:
        """CPU seconds so far of what stands in the middle."""
        if route == "gatecast":
            return _cpu(self.gateway.process.pid, *descendants(self.gateway.process.pid))
        if route == "jump":
            return _cpu(self.jump.process.pid, *descendants(self.jump.process.pid))
        return 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables; 0 if every bar that was measured holds, or with --quick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_ssh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small files and one round: to see that it works")
    parser.add_argument("--json", action="store_true", help="print the samples as JSON")
    parser.add_argument("--only", default="bulk,keys,connect,many", help="which cases (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=0)
    options = parser.parse_args(arguments)
    rounds = options.rounds or (1 if options.quick else 3)
    size = (64 if options.quick else 400) << 20
    only = options.only.split(",")
    with _world(size) as world:
        samples: list[Sample] = []
        for number in range(rounds):
            order = ROUTES[number % 3 :] + ROUTES[: number % 3]
            for name, measure in _CASES.items():
                if name in only:
                    for route in order:
                        samples += [Sample(case, route, number, metric, v) for case, metric, v in measure(world, route)]
                        print(f"round {number + 1}/{rounds}: {name} {route}", file=sys.stderr)
    found = Samples(samples)
    if options.json:
        print(json.dumps([[s.case, s.route, s.round, s.metric, s.value] for s in samples]))
    else:
        print(_report(found))
    return 0 if options.quick or all(holds is not False for _, _, holds in _bars(found)) else 1


@contextlib.contextmanager
def _world(size: int) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gatecast-bench-")))
        server, jump = stack.enter_context(ssh_server()), stack.enter_context(ssh_server())
        durable = {"box": {"recording": "durable"}}
        gateway = stack.enter_context(ssh_gateway(folder / "gateway", server, RULES, targets=durable))
        known = folder / "known_hosts"
        known.write_text(server.known_hosts("box") + jump.known_hosts("middle") + f"gatecast {gateway.host_key}\n")
        near = {"HostName": "127.0.0.1", "UserKnownHostsFile": known}
        direct = {**near, "Port": server.port, "User": server.user, "HostKeyAlias": "box"}
        config = write_config(
            folder / "config",
            {
                "direct": {**direct, "IdentityFile": server.login.file},
                "jump": {**direct, "IdentityFile": server.login.file, "ProxyJump": "middle"},
                "middle": {
                    **near, "Port": jump.port, "User": jump.user, "HostKeyAlias": "middle",
                    "IdentityFile": jump.login.file,
                },
                "gatecast": {
                    **near, "Port": gateway.port, "User": f"{server.user}:box", "HostKeyAlias": "gatecast",
                    "IdentityFile": gateway.user_key.file,
                },
            },
        )  # fmt: skip
        file = folder / "bulk"
        with file.open("wb") as out:
            for _ in range(size >> 20):
                out.write(os.urandom(1 << 20))
        yield World(folder, server, jump, gateway, config, file, size)


def _cpu(*pids: int) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])  # proc(5): utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


Numbers = list[tuple[str, str, float]]


def _bulk(world: World, route: str) -> Numbers:
    """Both ways by exec and by sftp: MB/s, and CPU seconds a GB."""
    copy = world.folder / "copy"
    file, size = world.file, world.size
    sftp = [program("sftp"), "-q", "-F", str(world.config), "-b", "-", route]
    found: Numbers = []
    cases: dict[str, Callable[[], None]] = {
        "exec down": lambda: _run(world.ssh(route, f"cat {file}"), stdout=copy),
        "exec up": lambda: _run(world.ssh(route, f"cat > {copy}"), stdin=file),
        "sftp down": lambda: _run(sftp, text=f"get {file} {copy}\n"),
        "sftp up": lambda: _run(sftp, text=f"put {file} {copy}\n"),
    }
    for case, work in cases.items():
        copy.unlink(missing_ok=True)
        cpu, start = world.cpu(route), time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        assert copy.stat().st_size == size and not subprocess.call(["cmp", "-s", str(file), str(copy)]), case
        found.append((case, "MB/s", size / seconds / 1e6))
        if route == "gatecast":
            found.append((case, "CPU s/GB", (world.cpu(route) - cpu) / (size / 1e9)))
    return found


def _run(command: list[str], stdin: Path | None = None, stdout: Path | None = None, text: str = "") -> None:
    with contextlib.ExitStack() as stack:
        into = stack.enter_context(stdout.open("wb")) if stdout else subprocess.DEVNULL
        source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.PIPE if text else subprocess.DEVNULL
        environment = client_environment(Path("/"))
        done = subprocess.Popen(command, stdin=source, stdout=into, stderr=subprocess.PIPE, env=environment)
        _, err = done.communicate(text.encode() if text else None, timeout=600)
        assert done.returncode == 0, err.decode(errors="replace")


class Keyboard:
    """A person at a terminal whose remote end echoes every byte at once."""

    def __init__(self, world: World, route: str) -> None:
        pid, self.descriptor = pty.fork()
        if pid == 0:
            command = world.ssh(route, "-tt", "stty raw -echo; echo ready; exec cat")
            os.execve(program("ssh"), command, client_environment(Path("/")))
        self.pid = pid
        tty.setraw(self.descriptor, termios.TCSANOW)
        seen = b""
        while b"ready" not in seen:
            seen += os.read(self.descriptor, 4096)
        time.sleep(0.2)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)

    def press(self) -> float:
        """Type one key; return the seconds to its echo."""
        start = time.perf_counter()
        os.write(self.descriptor, b"x")
        select.select([self.descriptor], [], [], 30)
        os.read(self.descriptor, 4096)
        return time.perf_counter() - start

    def close(self) -> None:
        """Hang up."""
        os.close(self.descriptor)
        os.waitpid(self.pid, 0)


def _keys(world: World, route: str) -> Numbers:
    """The echo of a keystroke, in ms."""
    keyboard = Keyboard(world, route)
    times = []
    for _ in range(KEYS):
        times.append(keyboard.press() * 1000)
        time.sleep(0.003)
    keyboard.close()
    times.sort()
    return [("keystroke", "p50 ms", statistics.median(times)), ("keystroke", "p95 ms", times[int(len(times) * 0.95)])]


def _connect(world: World, route: str) -> Numbers:
    """From the start of ssh to the end of ``true``, in ms."""
    times = []
    for _ in range(CONNECTS):
        start = time.perf_counter()
        _run(world.ssh(route, "true"))
        times.append((time.perf_counter() - start) * 1000)
    return [("connect", "p50 ms", statistics.median(times))]


def _many(world: World, route: str) -> Numbers:
    """A hundred people at once; the gateway on one core."""
    if route == "jump":
        return []
    if route == "gatecast":
        _hold(world.gateway.process.pid, {0})
    keyboards = [Keyboard(world, route) for _ in range(MANY)]
    try:
        times = asyncio.run(_type(keyboards))
    finally:
        for keyboard in keyboards:
            keyboard.close()
        if route == "gatecast":
            _hold(world.gateway.process.pid, set(range(os.cpu_count() or 1)))
    times.sort()
    found = [("100 sessions", "p50 ms", statistics.median(times))]
    return [*found, ("100 sessions", "p99 ms", times[int(len(times) * 0.99)])]


def _hold(pid: int, cores: set[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)


async def _type(keyboards: Sequence[Keyboard], seconds: float = 6.0) -> list[float]:
    """Let every session type at its own times; returns the seconds to each echo, in ms."""
    loop = asyncio.get_running_loop()
    sent: dict[int, float] = {}
    times: list[float] = []

    def heard(descriptor: int) -> None:
        os.read(descriptor, 4096)
        times.append((time.perf_counter() - sent.pop(descriptor)) * 1000)

    for keyboard in keyboards:
        loop.add_reader(keyboard.descriptor, heard, keyboard.descriptor)

    async def typist(number: int, keyboard: Keyboard) -> None:
        await asyncio.sleep(KEY_PERIOD_SECONDS * number / len(keyboards))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if keyboard.descriptor not in sent:
                sent[keyboard.descriptor] = time.perf_counter()
                os.write(keyboard.descriptor, b"x")
            await asyncio.sleep(KEY_PERIOD_SECONDS)

    async with asyncio.TaskGroup() as group:
        for number, keyboard in enumerate(keyboards):
            group.create_task(typist(number, keyboard))
    for keyboard in keyboards:
        loop.remove_reader(keyboard.descriptor)
    return times


_CASES: Final[dict[str, Callable[[World, str], Numbers]]] = {
    "bulk": _bulk, "keys": _keys, "connect": _connect, "many": _many,
}  # fmt: skip


def _bars(samples: Samples) -> list[tuple[str, str, bool | None]]:
    """The bars of the project: what, what was found, whether it holds."""
    found: list[tuple[str, str, bool | None]] = []

    def bar(text: str, spread: Any, limit: float, at_most: bool) -> None:
        if spread is not None:
            good = spread.median <= limit if at_most else spread.median >= limit
            found.append((text, spread.show(), good))

    for case in ("exec down", "exec up", "sftp down", "sftp up"):
        bar(f"{case}: MB/s of direct, >= 1.0", samples.ratio(case, "gatecast", "direct", "MB/s"), 1.0, False)
        bar(f"{case}: CPU s/GB, <= 2.5", samples.values(case, "gatecast", "CPU s/GB"), 2.5, True)
    beyond = samples.difference("keystroke", "gatecast", "direct", "p50 ms")
    bar("keystroke: p50 beyond direct, <= 0.3 ms", beyond, 0.3, True)
    bar("connect: of direct, <= 1.0", samples.ratio("connect", "gatecast", "direct", "p50 ms"), 1.0, True)
    bar("100 sessions on one core: p99, < 10 ms", samples.values("100 sessions", "gatecast", "p99 ms"), 10.0, True)
    return found


def _report(samples: Samples) -> str:
    lines = ["| case | " + " | ".join(ROUTES) + " |", "|---|" + "---|" * len(ROUTES)]
    metrics = dict.fromkeys((s.case, s.metric) for s in samples.samples)
    for case, metric in metrics:
        cells = []
        for route in ROUTES:
            spread = samples.values(case, route, metric)
            cells.append("" if spread is None else spread.show())
        lines.append(f"| {case}, {metric} | " + " | ".join(cells) + " |")
    lines += ["", "| bar | found | holds |", "|---|---|---|"]
    words = {True: "yes", False: "**no**", None: "?"}
    lines += [f"| {text} | {shown} | {words[holds]} |" for text, shown, holds in _bars(samples)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
