"""A BigQuery gateway's folder: configured once, served as often as a test of promises under trouble needs it.

As tests/kubernetes/place.py: a real ``gatecast serve`` from a configuration file, in a session of its own, so that its
workers can be killed with it. Clients are Api, plain HTTPS: real ones are in the scenarios.
"""

from __future__ import annotations

import getpass
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proxy.admin.client import AdminClient
from proxy.identity.commands import token_issue
from tests.bigquery.scripted_bq import PROJECT, TOKEN, Scripted
from tests.kubernetes.place import Tale, tales
from tests.peers.certificates import Authority, Pair
from tests.peers.ssh import KeyPair
from tests.ssh.gateway import SUBJECT, GatewayProcess, environment
from tests.ssh.running import until
from tests.test_kill_psql import port_of

STOP_SECONDS: Final = 60.0
TARGET: Final = "dwh"
UNIVERSE: Final = "gw.example"
HOSTS: Final = (f"*.{UNIVERSE}", "localhost", "127.0.0.1")
V2: Final = f"/bigquery/v2/projects/{PROJECT}"
ALLOW_ALL: Final = """\
rules:
  - name: all
    who: {groups: [dev]}
    commands: {kinds: [session, read, write, define, delete, execute, transfer], opaque: true}
    allow: true
"""
# What has this word in it waits for a human.
HOLDS: Final = f"""\
  - name: ask-first
    when: 'command.text.contains("ask_first")'
    hold: {{approvers: ["local:{getpass.getuser()}"], timeout: 10m, reason: it was marked}}
"""
MASK: Final = """\
  - name: addresses
    mask: [{columns: ["acme.crm.people.email"], action: redact}]
"""


@dataclass(slots=True)
class BqGateway(GatewayProcess):
    """A running gateway. authority: of the certificate that users see."""

    authority: Path = Path()

    def call(self, method: str, **params: Any) -> Any:
        """Call a function of the gateway, as its operator; without the time that a command line takes to start."""
        return AdminClient(self.folder / "state" / "admin.sock").call(method, **params)

    def held(self, word: str) -> str:
        """Wait until something with this word waits for a human; return the approval's id."""

        def look() -> str | None:
            rows = self.call("approvals.list", state="pending")
            return next((row["id"] for row in rows if word in json.dumps(row)), None)

        return str(until(look, "approval"))

    def approve(self, word: str) -> None:
        """Approve it, as the operator."""
        assert self.call("approvals.approve", id=self.held(word))["state"] == "approved"


@dataclass(slots=True)
class BqPlace:
    """A gateway's folder. token is ana's."""

    folder: Path
    service: Scripted
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
        self.authority, self.pair = authority.ca_file, authority.issue("gateway", HOSTS)
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
        """Write gatecast.yaml and rules.yaml. targets: by name, by what differs from the target "dwh"."""
        base: dict[str, Any] = {
            "protocol": "bigquery", "host": "localhost", "port": self.service.port, "database": PROJECT,
            "credential": {"token_file": "target_token"},
        }  # fmt: skip
        trusted = {"ca_file": str(self.service.authority.ca_file)}
        config = {
            "state": "state",
            "workers": workers,
            "node": {"name": "little"},
            "listeners": [{
                "name": "bigquery", "protocol": "bigquery", "address": "127.0.0.1:0",
                "bigquery": {"universe": UNIVERSE, "target": TARGET},
                "tls": {"cert": str(self.pair.certificate_file), "key": str(self.pair.key_file)},
            }],
            "targets": [
                {"name": name, **base, **each, "bigquery": {**trusted, **each.get("bigquery", {})}}
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
    def serving(self, log: str = "log", more: Mapping[str, str] | None = None) -> Iterator[BqGateway]:
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
            yield BqGateway(self.folder, port, self.token, no_key, process, authority=self.authority)
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

    def told(self) -> list[Tale]:
        """Every tape."""
        return tales(self.folder / "state" / "tapes")

    def closed(self) -> list[Tale]:
        """All tapes; each is sealed, and none failed."""
        found = self.told()
        assert {each.status for each in found} == {"closed"}, [(each.status, each.reason) for each in found]
        return found


def kill(gateway: BqGateway) -> None:
    """kill -9 of all of it."""
    os.killpg(gateway.process.pid, signal.SIGKILL)
    gateway.process.wait(30)


@dataclass(slots=True)
class Answer:
    """What a request got: nothing of it decoded."""

    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """What an error says."""
        assert "error" in self.json, self.body
        return str(self.json["error"]["message"])

    @property
    def reason(self) -> str:
        """The reason of an error."""
        return str(self.json["error"]["errors"][0]["reason"])


class Api:
    """One HTTPS connection to a gateway, requests one after another; it connects anew where it was closed."""

    def __init__(self, gateway: BqGateway, *, token: str = "", target: str = TARGET, timeout: float = 60) -> None:
        context = ssl.create_default_context(cafile=str(gateway.authority))
        self.connection = http.client.HTTPSConnection("localhost", gateway.port, context=context, timeout=timeout)
        self._path = f"/bq/{target}"
        self._headers = {"Authorization": f"Bearer {token or gateway.token}"}

    def send(self, method: str, path: str, value: Any = None, **headers: str) -> None:
        """Send a request. value: bytes as they are, else as JSON."""
        body = value if isinstance(value, bytes | None) else json.dumps(value).encode()
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        if body is not None:
            named.setdefault("Content-Type", "application/json")
        self.connection.request(method, self._path + path, body, {**self._headers, **named})

    def ask(self, method: str, path: str, value: Any = None, **headers: str) -> Answer:
        """Send a request and read its answer."""
        self.send(method, path, value, **headers)
        answer = self.connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())

    def get(self, path: str) -> Answer:
        """GET of a path below the project."""
        return self.ask("GET", V2 + path)

    def insert(self, name: str, text: str, **headers: str) -> Answer:
        """jobs.insert of a query."""
        return self.ask("POST", f"{V2}/jobs", job_of(name, text), **headers)

    def query(self, text: str, **more: Any) -> Answer:
        """jobs.query."""
        return self.ask("POST", f"{V2}/queries", {"query": text, "useLegacySql": False, **more})

    def add(self, word: str, table: str = "people") -> Answer:
        """tabledata.insertAll of a row."""
        rows = [{"insertId": word, "json": {"id": 1, "email": word}}]
        return self.ask("POST", f"{V2}/datasets/crm/tables/{table}/insertAll", {"rows": rows})

    def state(self, name: str) -> str:
        """The state of a job."""
        answer = self.get(f"/jobs/{name}")
        assert answer.code == 200, answer.body
        return str(answer.json["status"]["state"])

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def job_of(name: str, text: str) -> dict[str, Any]:
    """The body of jobs.insert."""
    query = {"query": text, "useLegacySql": False}
    return {"jobReference": {"projectId": PROJECT, "jobId": name, "location": "US"}, "configuration": {"query": query}}
