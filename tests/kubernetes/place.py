"""A Kubernetes gateway's folder: configured once, served as often as a test of promises under trouble needs it.

As tests/test_kill_ssh.py's Place: a real ``gatecast serve`` in a session of its own, so that its workers can be killed
with it. Clients are kubectl (Runner), and Api, a plain HTTPS client for what a kubectl a request would be too slow for.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proxy.identity.commands import token_issue
from recorder.format import ERR, OUT, USER, Kind, fields
from recorder.reader import TapeReader
from tests.kubernetes.gateway import ALLOW_ALL, TARGET, KubeGateway
from tests.kubernetes.running import NEWEST, Runner, Way
from tests.peers.certificates import Authority, Pair
from tests.peers.kubernetes import TOKEN, KubeServer, write_kubeconfig
from tests.peers.ssh import KeyPair
from tests.ssh.gateway import SUBJECT, environment
from tests.test_kill_psql import port_of

STOP_SECONDS: Final = 60.0
CONFIGMAPS: Final = "/api/v1/namespaces/default/configmaps"


@dataclass(slots=True)
class KubePlace:
    """A gateway's folder. token is ana's."""

    folder: Path
    server: KubeServer
    token: str = field(init=False)
    token_id: str = field(init=False)
    authority: Path = field(init=False)
    pair: Pair = field(init=False)

    def __post_init__(self) -> None:
        secret = self.folder / "target_token"
        secret.write_text(TOKEN + "\n")
        secret.chmod(0o600)
        (self.folder / "state").mkdir(mode=0o700, exist_ok=True)
        authority = Authority(self.folder, "gateway-ca")
        self.authority, self.pair = authority.ca_file, authority.issue("gateway")
        self.token, self.token_id = self.issue(SUBJECT)

    def issue(self, subject: str, group: str = "dev") -> tuple[str, str]:
        """Issue a token; returns it and its id."""
        issued = token_issue(self.folder / "state" / "gatecast.db", subject, groups=[group])
        return issued["token"], issued["id"]

    def configure(
        self,
        rules: str = ALLOW_ALL,
        *,
        workers: int = 1,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        recorder: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Write gatecast.yaml and rules.yaml. targets: by name, by what differs from the target "kube"."""
        base: dict[str, Any] = {
            "protocol": "kubernetes",
            "host": self.server.host,
            "port": self.server.port,
            "credential": {"token_file": "target_token"},
        }
        trusted = {"ca_file": str(self.server.authority.ca_file)}
        config = {
            "state": "state",
            "workers": workers,
            "node": {"name": "little"},
            "listeners": [{
                "name": "kubernetes", "protocol": "kubernetes", "address": "127.0.0.1:0",
                "tls": {"cert": str(self.pair.certificate_file), "key": str(self.pair.key_file)},
            }],
            "targets": [
                {"name": name, **base, **each, "kubernetes": {**trusted, **each.get("kubernetes", {})}}
                for name, each in (targets or {TARGET: {}}).items()
            ],
            "recorder": {"reserve": 0, "index": False, **(recorder or {})},
            "limits": {"drain_seconds": 0, **(limits or {})},
            "rules_file": "rules.yaml",
            **(more or {}),
        }  # fmt: skip
        (self.folder / "rules.yaml").write_text(rules)
        (self.folder / "gatecast.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML

    @contextmanager
    def serving(self, log: str = "log", more: Mapping[str, str] | None = None) -> Iterator[KubeGateway]:
        """Run the gateway. It may be killed meanwhile; if not, it must end by itself, and without a complaint."""
        path = self.folder / log
        with path.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "serve", "--log-json"],
                cwd=self.folder, env=environment() | dict(more or {}), stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        try:
            port = port_of(process, path)
            no_key = KeyPair(self.folder / "none")
            yield KubeGateway(self.folder, port, self.token, no_key, process, authority=self.authority)
        finally:
            killed = process.poll() is not None
            if not killed:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(STOP_SECONDS)
                    raise
        assert killed or process.returncode == 0, path.read_text()[-4000:]
        assert "Traceback" not in path.read_text(), path.read_text()[-6000:]

    def gatecast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line there."""
        return subprocess.run(
            [sys.executable, "-m", "proxy", *arguments],
            cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def verified(self) -> dict[str, Any]:
        """What verify says of the directory: never that something was altered, never that it cannot say."""
        done = self.gatecast("verify", "--json")
        assert done.returncode in (0, 2), (done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def tapes(self) -> list[Path]:
        """The tapes' first segments, the oldest first."""
        return sorted(self.folder.rglob("*.000.gct"))


@contextmanager
def kubectl(
    gateway: KubeGateway, server: KubeServer, *, token: str = "", target: str = TARGET, switches: Any = None
) -> Iterator[Runner]:
    """The newest kubectl with a folder and a kubeconfig of its own. token: the gateway's own where there is none."""
    with tempfile.TemporaryDirectory(prefix="gc-") as name:
        runner = Runner(Way("gateway", NEWEST, switches or {}), server, gateway, Path(name))
        write_kubeconfig(runner.kubeconfig, gateway.url(target), gateway.authority, {"token": token or gateway.token})
        try:
            yield runner
        finally:
            runner.close()


@dataclass(slots=True)
class Answer:
    """What a request got: nothing of it decoded."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """What a Status says."""
        assert self.json["kind"] == "Status", self.body
        return str(self.json["message"])


class Api:
    """One HTTPS connection to a gateway, requests one after another; it connects anew where it was closed."""

    def __init__(self, gateway: KubeGateway, *, token: str = "", target: str = TARGET, timeout: float = 60) -> None:
        context = ssl.create_default_context(cafile=str(gateway.authority))
        self.connection = http.client.HTTPSConnection("127.0.0.1", gateway.port, context=context, timeout=timeout)
        self._path = f"/k8s/{target}"
        self._headers = {"Authorization": f"Bearer {token or gateway.token}"}

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        """Send a request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, self._path + path, body, {**self._headers, **named})

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a request and read its answer."""
        if body is not None:
            headers.setdefault("Content_Type", "application/json")
        self.send(method, path, body, **headers)
        answer = self.connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())

    def get(self, path: str, **headers: str) -> Answer:
        """GET."""
        return self.ask("GET", path, None, **headers)

    def create(self, name: str, **data: str) -> Answer:
        """Create a ConfigMap."""
        return self.ask("POST", CONFIGMAPS, configmap(name, **data))

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def configmap(name: str, **data: str) -> bytes:
    """A ConfigMap as JSON."""
    return json.dumps(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data}
    ).encode()


# -- what tapes say -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tale:
    """What one tape says. flows: the bytes by flow and channel ("user", "out", "err")."""

    path: Path
    status: str | None
    http: bool
    commands: list[dict[str, Any]] = field(default_factory=list)
    allowed: set[int] = field(default_factory=set)  # flows
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    flows: dict[tuple[int, str], bytearray] = field(default_factory=dict)
    reason: str = ""

    def of(self, verb: str) -> list[dict[str, Any]]:
        """The commands of one verb."""
        return [command for command in self.commands if command["verb"] == verb]

    def bytes_of(self, flow: int, channel: str) -> bytes:
        """What passed there."""
        return bytes(self.flows.get((flow, channel), b""))


def tale(path: Path) -> Tale:
    """Read a tape."""
    reader = TapeReader(path)
    told = Tale(path, reader.status, reader.header.map_.get("more", {}).get("http") is True)
    flows: dict[int, int | None] = {}
    names = {USER: "user", OUT: "out", ERR: "err"}
    for record in reader.records():
        match record.kind:
            case Kind.COMMAND:
                found = fields(record.payload)
                flows[record.n] = found.get("flow")
                told.commands.append(found)
            case Kind.VERDICT:
                found = fields(record.payload)
                told.verdicts.append(found)
                flow = flows[found["command"]]
                if found["verdict"] == "allow" and flow is not None:
                    told.allowed.add(flow)
            case Kind.RESULT:
                told.results.append(fields(record.payload))
            case Kind.MARK:
                told.marks.append(fields(record.payload)["text"])
            case Kind.CLOSE:
                told.reason = fields(record.payload)["reason"]
            case Kind.WIRE if record.flow is not None:
                told.flows.setdefault((record.flow, names[record.channel]), bytearray()).extend(record.payload)
            case _:
                pass
    return told


def tales(folder: Path) -> list[Tale]:
    """Read every tape below a folder."""
    return [tale(path) for path in sorted(folder.rglob("*.000.gct")) if ".original." not in path.name]
