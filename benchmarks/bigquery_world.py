"""What bench_bigquery.py measures on: stand-ins of BigQuery, and the ways to them: direct, nginx, gatecast.

The stand-ins (bigquery_standin.py), nginx and the gateway have processes of their own; TLS is on every leg. nginx has
one worker, as the gateway has, puts in the same token and records nothing. The gateway is the real ``gatecast serve``
with everything on tape, and a second target of it is the same under a mask on people.email. Where there is no nginx,
its route is left out. Everything is stopped by its own process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.bigquery_standin import PROJECT, TABLE, TOKEN
from proxy.bigquery_commands import Door, exchange
from proxy.identity.commands import token_issue
from recorder.reader import TapeReader
from tests.peers.certificates import Authority

ROOT: Final = Path(__file__).parents[1]
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
UNIVERSE: Final = "bench.test"  # a name that no resolver knows (RFC 6761 6.2)
PLAIN, MASKED = "plain", "masked"  # targets
RULES: Final = f"""\
rules:
  - name: all
    who: {{groups: [dev]}}
    commands: {{kinds: [session, read]}}
    allow: true
  - name: no-emails
    on: {{targets: [{MASKED}]}}
    mask:
      - {{columns: ["{TABLE}.email"], action: hash}}
"""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to the stand-ins. prefix: of every path; storage_token: of the Storage API; pid: in the middle, or 0."""

    name: str
    port: int
    storage_port: int
    authority: Path
    token: str
    storage_token: str
    prefix: str = ""
    pid: int = 0

    def request(self, method: str, path: str, value: Any = None) -> bytes:
        """A request, as it goes over the wire."""
        body = b"" if value is None else json.dumps(value, separators=(",", ":")).encode()
        lines = [
            f"{method} {self.prefix}/bigquery/v2/projects/{PROJECT}/{path} HTTP/1.1",
            "Host: localhost", "Accept: application/json", f"Authorization: Bearer {self.token}",
        ]  # fmt: skip
        if value is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body

    def context(self) -> ssl.SSLContext:
        """Trusts the route's certificate."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.set_alpn_protocols(["http/1.1"])
        return context

    def connect(self) -> socket.socket:
        """Connect, past TLS."""
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context().wrap_socket(raw, server_hostname="localhost")

    def cpu_seconds(self) -> float:
        """CPU time so far of what stands in the middle, with the processes that it runs."""
        return sum(map(_cpu_seconds, _family(self.pid))) if self.pid else 0.0


def _cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # proc(5): utime, stime, and the same of children that have ended: readers of SQL are replaced now and then.
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    """A process, and all that it has started: workers of nginx, readers of SQL."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread, or a child, has ended meanwhile
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


@dataclass(frozen=True, slots=True)
class World:
    """All that runs. folder: of what the run keeps; state: where the gateway has its tapes."""

    folder: Path
    routes: Mapping[str, Route]
    state: Path

    def drop_tapes(self) -> None:
        """Delete the tapes that are sealed: a long run must not fill the disk, and the open ones are in use."""
        for first in self.state.rglob("*.000.gct"):
            if TapeReader(first).status:
                for path in first.parent.glob(f"{first.name.partition('.')[0]}.*"):
                    path.unlink()


@contextlib.contextmanager
def world(profile: Path | None = None, directory: Path | None = None, mode: str = "durable") -> Iterator[World]:
    """Start everything. profile: run gatecast under the sampler; directory: of the tapes; mode: of recording.

    Raises RuntimeError.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gatecast-bench-", dir=directory)))
        authority = Authority(folder, "bench-ca")
        pair = authority.issue("bench", ("localhost", "127.0.0.1", f"sts.{UNIVERSE}"))
        files = (pair.certificate_file, pair.key_file)
        ports = [stack.enter_context(_standin(kind, files, folder)) for kind in ("rest", "storage")]
        routes = [Route("direct", ports[0], ports[1], authority.ca_file, TOKEN, TOKEN)]
        if nginx := shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
            routes.append(stack.enter_context(_nginx(nginx, routes[0], files, folder / "nginx")))
        routes += stack.enter_context(_gatecast(routes[0], files, folder / "gatecast", profile, mode))
        yield World(folder, {each.name: each for each in routes}, folder / "gatecast" / "state")


@contextlib.contextmanager
def _running(command: list[str], log: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **more)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _said(process: subprocess.Popen[bytes], log: Path, word: str) -> str:
    """Wait for the line that has the word."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines(keepends=True):
            if word in line and line.endswith("\n"):
                return line
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def _standin(kind: str, files: tuple[Path, Path], folder: Path) -> Iterator[int]:
    log = folder / f"{kind}.log"
    command = [sys.executable, "-m", "benchmarks.bigquery_standin", kind, *map(str, files)]
    with _running(command, log, cwd=ROOT) as process:
        yield int(_said(process, log, ""))


NGINX: Final = """\
daemon off;
worker_processes 1;
pid {home}/pid;
error_log {home}/error.log warn;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  ssl_certificate {certificate}; ssl_certificate_key {key};
  keepalive_requests 1000000000; client_max_body_size 0; grpc_read_timeout 600s;
  upstream rest {{ server 127.0.0.1:{rest}; keepalive 512; keepalive_requests 1000000000; }}
  upstream storage {{ server 127.0.0.1:{storage}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port} ssl backlog=1024;
    location / {{
      proxy_pass https://rest; proxy_http_version 1.1;
      proxy_ssl_trusted_certificate {ca}; proxy_ssl_verify on; proxy_ssl_name localhost;
      proxy_set_header Connection ""; proxy_set_header Host localhost;
      proxy_set_header Authorization "Bearer {token}";
      proxy_buffers 32 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 256k; proxy_max_temp_file_size 0;
    }}
  }}
  server {{
    listen 127.0.0.1:{grpc} ssl http2;
    location / {{
      grpc_pass grpcs://storage;
      grpc_ssl_trusted_certificate {ca}; grpc_ssl_verify on; grpc_ssl_name localhost;
      grpc_set_header Authorization "Bearer {token}";
      grpc_buffer_size 256k;
    }}
  }}
}}
"""


@contextlib.contextmanager
def _nginx(program: str, direct: Route, files: tuple[Path, Path], home: Path) -> Iterator[Route]:
    """Run nginx as a reverse proxy of both stand-ins."""
    home.mkdir()
    port, grpc = _free(), _free()
    config = NGINX.format(
        home=home, certificate=files[0], key=files[1], ca=direct.authority, token=TOKEN, rest=direct.port,
        storage=direct.storage_port, port=port, grpc=grpc,
    )  # fmt: skip
    if os.getuid() == 0:
        config = f"user root;\n{config}"
    (home / "nginx.conf").write_text(config)
    log = home / "log"
    with _running([program, "-c", str(home / "nginx.conf"), "-p", str(home), "-e", str(log)], log) as process:
        route = Route("nginx", port, grpc, direct.authority, "user", "user", pid=process.pid)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                route.connect().close()
            except ConnectionRefusedError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"nginx did not start: {log.read_text()}") from None
                time.sleep(0.05)
            else:
                break
        yield route


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def _gatecast(
    direct: Route, files: tuple[Path, Path], home: Path, profile: Path | None, mode: str
) -> Iterator[tuple[Route, Route]]:
    """Run gatecast serve with a target, and the same once more under a mask."""
    home.mkdir(mode=0o700)
    (home / "state").mkdir(mode=0o700)
    token = token_issue(home / "state" / "gatecast.db", "bench@example.com", groups=["dev"])["token"]
    for name, secret in (("token", TOKEN), ("user", token)):
        (home / name).touch(mode=0o600)
        (home / name).write_text(secret + "\n")
    (home / "rules.yaml").write_text(RULES)
    target = {
        "protocol": "bigquery", "host": "localhost", "port": direct.port, "recording": mode, "database": PROJECT,
        "credential": {"token_file": "token"},
        "bigquery": {"ca_file": str(direct.authority), "storage": f"localhost:{direct.storage_port}"},
    }  # fmt: skip
    config = {
        "state": "state",
        "listeners": [{
            "name": "bigquery", "protocol": "bigquery", "address": "127.0.0.1:0",
            "tls": {"cert": str(files[0]), "key": str(files[1])}, "bigquery": {"universe": UNIVERSE},
        }],
        "targets": [{"name": PLAIN, **target}, {"name": MASKED, **target}],
        "limits": {"drain_seconds": 0},
        "rules_file": "rules.yaml",
    }  # fmt: skip
    (home / "gatecast.yaml").write_text(json.dumps(config))  # JSON is YAML
    program = ["benchmarks.sampler", str(profile)] if profile is not None else ["proxy"]
    command = [sys.executable, "-m", *program, "serve", "--log-json"]
    log = home / "log"
    with _running(command, log, cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        port = int(json.loads(_said(process, log, '"listening"'))["address"].rpartition(":")[2])

        def route(name: str, place: str) -> Route:
            door = Door(place, "", f"https://localhost:{port}", home / "user", direct.authority, PROJECT, home)
            bearer, _ = exchange(door)
            return Route(name, port, port, direct.authority, token, bearer, f"/bq/{place}", process.pid)

        yield route("gatecast", PLAIN), route("gatecast masked", MASKED)
