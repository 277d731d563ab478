"""What is measured: PostgreSQL, and the ways to it: direct, pgbouncer, haproxy if there is one, and gatecast.

Every way is plain TCP on 127.0.0.1 with the same database behind it. gatecast is the real ``gatecast serve`` in a
process of its own (uvloop, token login, rules, masks, tapes on a disk) with four targets: each recording mode, with
and without one masked column; and once more with two worker processes. pgbouncer runs in session mode. haproxy
relays bytes and decodes nothing.

Everything is stopped by its own process id, and its files are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.identity.commands import token_issue
from tests.peers.postgres import PostgresServer, postgres_server

ROOT: Final = Path(__file__).parents[1]
DATABASE: Final = "bench"
SUBJECT: Final = "bench@example.com"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
# As many as an operator may have: what a command is matched against. The masks are for the masked targets alone.
RULES: Final = """\
timezone: Europe/Vienna
rules:
  - {name: no-roles, commands: {verbs: [CREATE ROLE, ALTER ROLE, DROP ROLE]}, deny: {reason: roles are made elsewhere}}
  - name: no-delete-without-where
    commands: {kinds: [delete, write]}
    when: "sql.where_missing"
    deny: {reason: "say which rows"}
  - {name: no-secrets, commands: {objects: ["vault.*"]}, deny: {reason: secrets stay where they are}}
  - {name: no-server-files, commands: {opaque: only}, deny: {reason: nobody can read that}}
  - name: developers-read
    who: {groups: [developers]}
    commands: {kinds: [read]}
    allow: true
  - name: developers-load
    who: {groups: [developers], subjects: ["*@example.com"]}
    commands: {kinds: [write, transfer], objects: ["public.people*"]}
    allow: true
  - name: agents-read-with-limits
    who: {agents: ["claude*", "codex*"]}
    commands: {kinds: [read]}
    when: "sql.has_limit && sql.limit <= 1000"
    allow: true
  - name: agents-changes-wait
    who: {agents: ["claude*", "codex*"]}
    on: {labels: {tier: gold}}
    commands: {kinds: [write, define, delete]}
    hold: {approvers: ["group:oncall"], timeout: 10m, reason: a human looks at every change}
  - name: deletes-wait
    commands: {kinds: [delete]}
    hold: {approvers: ["group:oncall"], timeout: 10m}
  - name: no-personal-data
    on: {targets: ["*-masked"]}
    mask:
      - {columns: [public.people.email], action: redact}
      - {columns: [public.pgbench_accounts.abalance], action: redact}
"""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to the database. pid is the process in between, None for none; tapes is where it records."""

    name: str
    port: int
    database: str = DATABASE
    user: str = "postgres"
    password: str = ""
    pid: int | None = None
    tapes: Path | None = None
    masked: bool = False
    host: str = "127.0.0.1"

    @property
    def environment(self) -> dict[str, str]:
        """The environment for libpq programs."""
        return {
            "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGHOST": self.host, "PGPORT": str(self.port),
            "PGUSER": self.user, "PGPASSWORD": self.password, "PGDATABASE": self.database, "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
        }  # fmt: skip

    def cpu_seconds(self) -> float:
        """CPU time that the process in between and its children have used so far; 0 where there is none."""
        return sum(map(_ticks, _tree(self.pid))) / TICKS_PER_SECOND if self.pid is not None else 0.0

    def drop_tapes(self) -> int:
        """Delete the tapes so far and return their size in bytes: a long run must not fill the disk."""
        size = 0
        for path in self.tapes.rglob("*.gct") if self.tapes is not None else ():
            size += path.stat().st_size
            path.unlink()
        return size


def _tree(pid: int) -> list[int]:
    """A process and its living descendants (proc(5): task/TID/children)."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _ticks(pid: int) -> int:
    # proc(5): the name in parentheses may hold blanks; utime and stime are fields 14 and 15.
    after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after[11]) + int(after[12])


@dataclass(frozen=True, slots=True)
class World:
    """All that runs."""

    server: PostgresServer
    routes: tuple[Route, ...]

    def route(self, name: str) -> Route:
        return next(route for route in self.routes if route.name == name)


@contextlib.contextmanager
def world(directory: Path | None, scale: int, rows: int, profile: Path | None = None) -> Iterator[World]:
    """Start everything. directory: where tapes go (a real disk). profile: run gatecast under the sampler.

    Raises PeerMissing, RuntimeError.
    """
    settings = {"shared_buffers": "512MB", "max_connections": "300", "max_wal_size": "8GB", "wal_level": "minimal"}
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="gatecast-bench-", dir=directory))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # pgbouncer reads its configuration there as somebody else
        server = stack.enter_context(
            postgres_server(
                "15", tls=False, settings={**settings, "max_wal_senders": "0", "client_min_messages": "error"}
            )
        )
        _fill(server, scale, rows)
        routes = [Route("direct", server.port)]
        if shutil.which("pgbouncer", path=PROGRAMS):
            routes.append(stack.enter_context(_pgbouncer(server, folder)))
        if shutil.which("haproxy", path=PROGRAMS):
            routes.append(stack.enter_context(_haproxy(server, folder)))
        routes += stack.enter_context(_gatecast(server, folder / "one", NAMES, workers=1, profile=profile))
        if profile is None:  # the sampler follows one process
            more = _gatecast(server, folder / "two", {"written-2-workers": "written"}, workers=2)
            routes += stack.enter_context(more)
        yield World(server, tuple(routes))


# Route -> target: with one worker, each recording mode with and without a mask.
NAMES: Final = {name: name for name in ("written", "written-masked", "durable", "durable-masked")}
PROGRAMS: Final = "/usr/bin:/bin:/usr/sbin:/sbin"


def _fill(server: PostgresServer, scale: int, rows: int) -> None:
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}".encode())
    server.run(
        "CREATE TABLE people AS SELECT g AS id, 'user' || g || '@example.com' AS email,"
        " 'some name ' || g % 977 AS name, g % 100 AS score"
        f" FROM generate_series(1, {rows}) g; CREATE TABLE people_copy (LIKE people); ANALYZE",
        dbname=DATABASE,
    )
    environment = Route("direct", server.port).environment
    subprocess.run(
        ["pgbench", "-i", "-q", "-s", str(scale)], env=environment, check=True, capture_output=True, timeout=600
    )


@contextlib.contextmanager
def _running(command: list[str], log: Path, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **more)  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def _pgbouncer(server: PostgresServer, folder: Path) -> Iterator[Route]:
    port = _free_port()
    (folder / "userlist.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{DATABASE} = host=127.0.0.1 port={server.port} dbname={DATABASE} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder}/userlist.txt\npool_mode = session\ndefault_pool_size = 100\nmax_client_conn = 1000\n"
        "ignore_startup_parameters = extra_float_digits\nlog_connections = 0\nlog_disconnections = 0\n"
    )
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # it refuses root
    more = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    program = shutil.which("pgbouncer", path=PROGRAMS)
    with _running([str(program), str(folder / "pgbouncer.ini")], folder / "pgbouncer.log", **more) as process:
        _wait_for(port, process, folder / "pgbouncer.log")
        yield Route("pgbouncer", port, pid=process.pid)


@contextlib.contextmanager
def _haproxy(server: PostgresServer, folder: Path) -> Iterator[Route]:
    port = _free_port()
    (folder / "haproxy.cfg").write_text(
        "global\n nbthread 1\n maxconn 1000\ndefaults\n mode tcp\n timeout connect 10s\n timeout client 1h\n"
        f" timeout server 1h\nfrontend f\n bind 127.0.0.1:{port}\n default_backend b\n"
        f"backend b\n server s 127.0.0.1:{server.port}\n"
    )
    program = shutil.which("haproxy", path=PROGRAMS)
    command = [str(program), "-db", "-f", str(folder / "haproxy.cfg")]
    with _running(command, folder / "haproxy.log") as process:
        _wait_for(port, process, folder / "haproxy.log")
        yield Route("haproxy", port, pid=process.pid)


@contextlib.contextmanager
def _gatecast(
    server: PostgresServer, home: Path, names: Mapping[str, str], workers: int, profile: Path | None = None
) -> Iterator[list[Route]]:
    """Run gatecast serve with all targets; names: route -> target, of those that are measured."""
    home.mkdir(mode=0o700)
    targets = "".join(
        f"  - {{name: {name}, host: 127.0.0.1, port: {server.port}, database: {DATABASE}, sslmode: disable,"
        f" recording: {name.partition('-')[0]}, labels: {{env: dev, tier: gold}}, credential: {{user: postgres}}}}\n"
        for name in NAMES.values()
    )
    (home / "gatecast.yaml").write_text(
        f"state: state\nworkers: {workers}\n"
        "listeners: [{name: pg, protocol: postgres, address: '127.0.0.1:0', plain: true}]\n"
        f"targets:\n{targets}limits: {{drain_seconds: 0}}\nrules_file: rules.yaml\n"
    )
    (home / "rules.yaml").write_text(RULES)
    (home / "state").mkdir(mode=0o700)
    token = token_issue(home / "state" / "gatecast.db", SUBJECT, groups=["developers", "staff"])["token"]
    command = [sys.executable, "-m", *(["benchmarks.sampler", str(profile)] if profile else ["proxy"])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = home / "log"
    with _running([*command, "serve", "--log-json"], log, cwd=home, env=environment) as process:
        port = _listening(process, log)
        yield [
            Route(name, port, target, "bench", token, process.pid, home / "state" / "tapes", target.endswith("-masked"))
            for name, target in names.items()
        ]


def _listening(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the line that says where gatecast listens."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"listening"' in line:
                return int(json.loads(line)["address"].rpartition(":")[2])
        time.sleep(0.05)
    raise RuntimeError(f"gatecast did not start: {log.read_text(errors='replace')[-2000:]}")
