"""What bench_kubernetes.py measures on: the stand-in API server, and the ways to it: direct, kubectl proxy, gatecast.

The server (tests/peers/kube, uvloop, TLS, pods as local processes) has a process of its own, and so has the gateway:
the real ``gatecast serve``, TLS on both legs, everything on tape. kubectl proxy is Go, holds the server's credential,
and speaks plain HTTP to its user, so that it has one leg of TLS less. Everything is stopped by its own process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proxy.identity.commands import token_issue
from recorder.reader import TapeReader
from tests.peers.certificates import Authority
from tests.peers.kubernetes import TOKEN, KubeServer, kube_server, kubectl, write_kubeconfig

ROOT: Final = Path(__file__).parents[1]
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0
SECRETS: Final = 500
NAMESPACE: Final = "bench"
# Two targets of one server: what a rule costs, and what a mask costs beside it.
RULES: Final = """\
rules:
  - name: all
    who: {groups: [dev]}
    commands: {kinds: [session, read, write, define, delete, execute, transfer], opaque: true}
    allow: true
  - name: no-values
    on: {targets: [masked]}
    mask:
      - {fields: ["secrets:data.*"], action: redact}
"""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to the server. prefix: of every path; pid: of the process in the middle, 0 for none."""

    name: str
    port: int
    kubeconfig: Path
    context: ssl.SSLContext | None
    prefix: str = ""
    token: str = ""
    pid: int = 0

    def head(self, path: str, fields: Mapping[str, str] | None = None) -> bytes:
        """A GET of a path."""
        lines = [f"GET {self.prefix}{path} HTTP/1.1", "Host: 127.0.0.1", "Accept: application/json"]
        if self.token:
            lines.append(f"Authorization: Bearer {self.token}")
        lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def connect(self, receive_bytes: int = 0) -> socket.socket:
        """Connect; receive_bytes: of the kernel's buffer, 0 for its own choice."""
        raw = socket.socket()
        if receive_bytes:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.settimeout(60)
        raw.connect(("127.0.0.1", self.port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return raw if self.context is None else self.context.wrap_socket(raw, server_hostname="127.0.0.1")

    def cpu_seconds(self) -> float:
        """CPU time so far of what stands in the middle."""
        if not self.pid:
            return 0.0
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime


@dataclass(frozen=True, slots=True)
class World:
    """All that runs. file: random bytes, of the size of a bulk transfer; state: where the gateway has its tapes."""

    folder: Path
    routes: Mapping[str, Route]
    file: Path
    size: int
    state: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def kubectl(self, route: str, *words: str) -> list[str]:
        """The command line of kubectl on a route."""
        return [str(kubectl("1.37").path), f"--kubeconfig={self.routes[route].kubeconfig}", *words]

    def drop_tapes(self) -> None:
        """Delete the tapes that are sealed: a long run must not fill the disk, and the open ones are in use."""
        for first in self.state.rglob("*.000.gct"):
            if TapeReader(first).status:
                for path in first.parent.glob(f"{first.name.partition('.')[0]}.*"):
                    path.unlink()


@contextlib.contextmanager
def world(
    size: int, profile: Path | None = None, directory: Path | None = None, mode: str = "durable"
) -> Iterator[World]:
    """Start everything. size: of bulk, in bytes; profile: run gatecast under the sampler; directory: of the tapes;
    mode: of recording.

    Raises PeerMissing, RuntimeError.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gatecast-bench-", dir=directory)))
        file = folder / "bulk"
        with file.open("wb") as out:
            for _ in range(size >> 20):
                out.write(os.urandom(1 << 20))
        server = stack.enter_context(kube_server(local=True))
        direct = Route(
            "direct", server.port,
            write_kubeconfig(folder / "direct", server.url, server.authority.ca_file, {"token": TOKEN}),
            _trusting(server.authority), token=TOKEN,
        )  # fmt: skip
        _fill(direct)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LC_ALL": "C.UTF-8"}
        proxy = stack.enter_context(_kubectl_proxy(direct, folder, environment))
        gatecast, masked = stack.enter_context(_gatecast(server, folder / "gatecast", profile, mode))
        routes = {each.name: each for each in (direct, proxy, gatecast, masked)}
        yield World(folder, routes, file, size, folder / "gatecast" / "state", environment)


def _trusting(authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    context.set_alpn_protocols(["http/1.1"])
    return context


def _fill(route: Route) -> None:
    """Make the secrets that are listed."""
    with route.connect() as connection:
        incoming = connection.makefile("rb")
        _post(connection, incoming, route, "namespaces", {"kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for number in range(SECRETS):
            data = {"username": "YXBw", "password": "czNjcjN0LWJlbmNo" * 2, "note": "bm90aGluZyB0byBzZWU="}
            secret = {"kind": "Secret", "metadata": {"name": f"s-{number:03}", "namespace": NAMESPACE}, "data": data}
            _post(connection, incoming, route, f"namespaces/{NAMESPACE}/secrets", secret)


def _post(connection: socket.socket, incoming: Any, route: Route, place: str, value: dict[str, Any]) -> None:
    body = json.dumps({"apiVersion": "v1", **value}).encode()
    head = route.head(f"/api/v1/{place}", {"Content-Type": "application/json", "Content-Length": str(len(body))})
    connection.sendall(head.replace(b"GET", b"POST", 1) + body)
    status = incoming.readline()
    length = 0
    while (line := incoming.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line[15:])
    answer = incoming.read(length)
    if b" 201 " not in status:
        raise RuntimeError(f"the server did not take {place}: {status!r} {answer[:300]!r}")


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
        for line in log.read_text(errors="replace").splitlines():
            if word in line:
                return line
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def _kubectl_proxy(direct: Route, folder: Path, environment: Mapping[str, str]) -> Iterator[Route]:
    """Run kubectl proxy, which by default refuses exec and attach."""
    log = folder / "kubectl-proxy.log"
    command = [str(kubectl("1.37").path), f"--kubeconfig={direct.kubeconfig}", "proxy", "--port=0"]
    with _running([*command, "--reject-paths=^/nothing$"], log, env=environment) as process:
        port = int(_said(process, log, "Starting to serve on").rpartition(":")[2])
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "default"}}],
        }  # fmt: skip
        kubeconfig = folder / "proxied"
        kubeconfig.write_text(json.dumps(config))
        kubeconfig.chmod(0o600)
        yield Route("kubectl proxy", port, kubeconfig, None, pid=process.pid)


@contextlib.contextmanager
def _gatecast(server: KubeServer, home: Path, profile: Path | None, mode: str) -> Iterator[tuple[Route, Route]]:
    """Run gatecast serve with a target, and the same once more under a mask."""
    home.mkdir(mode=0o700)
    (home / "state").mkdir(mode=0o700)
    credential = home / "token"
    credential.write_text(TOKEN + "\n")
    credential.chmod(0o600)
    (home / "rules.yaml").write_text(RULES)
    authority = Authority(home, "gateway-ca")
    pair = authority.issue("gateway")
    target = {
        "protocol": "kubernetes", "host": server.host, "port": server.port, "recording": mode,
        "credential": {"token_file": "token"}, "kubernetes": {"ca_file": str(server.authority.ca_file)},
    }  # fmt: skip
    config = {
        "state": "state",
        "listeners": [{
            "name": "kubernetes", "protocol": "kubernetes", "address": "127.0.0.1:0",
            "tls": {"cert": str(pair.certificate_file), "key": str(pair.key_file)},
        }],
        "targets": [{"name": "plain", **target}, {"name": "masked", **target}],
        "limits": {"drain_seconds": 0},
        "rules_file": "rules.yaml",
    }  # fmt: skip
    (home / "gatecast.yaml").write_text(json.dumps(config))  # JSON is YAML
    token = token_issue(home / "state" / "gatecast.db", "bench@example.com", groups=["dev"])["token"]
    program = ["benchmarks.sampler", str(profile)] if profile is not None else ["proxy"]
    command = [sys.executable, "-m", *program, "serve", "--log-json"]
    log = home / "log"
    with _running(command, log, cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        port = int(json.loads(_said(process, log, '"listening"'))["address"].rpartition(":")[2])
        context = _trusting(authority)

        def route(name: str, place: str) -> Route:
            url = f"https://127.0.0.1:{port}/k8s/{place}"
            kubeconfig = write_kubeconfig(home / f"config-{place}", url, authority.ca_file, {"token": token})
            return Route(name, port, kubeconfig, context, f"/k8s/{place}", token, process.pid)

        yield route("gatecast", "plain"), route("gatecast masked", "masked")
