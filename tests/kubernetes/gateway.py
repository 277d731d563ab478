"""``gatecast serve`` in a process of its own in front of the stand-in API server, for tests with real kubectls.

The configuration is an operator's own: a listener of Kubernetes with TLS, the target "kube" with a token as credential
and the authority of its certificate, rules in a file beside it. On leaving, tests/ssh/gateway.py looks at what is left:
the process ended cleanly, every tape verifies, no secret is on a tape or in the log, and there is no traceback.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from proxy.identity.commands import token_issue
from tests.peers.certificates import Authority
from tests.peers.kubernetes import TOKEN, KubeServer
from tests.peers.ssh import KeyPair
from tests.ssh.gateway import START_SECONDS, STOP_SECONDS, SUBJECT, GatewayProcess, environment, inspect

TARGET: Final = "kube"
# Everything but what is of kind admin: that needs a rule of its own.
ALLOW_ALL: Final = """\
rules:
  - name: all
    who: {groups: [dev]}
    commands: {kinds: [session, read, write, define, delete, execute, transfer], opaque: true}
    allow: true
"""


@dataclass(slots=True)
class KubeGateway(GatewayProcess):
    """A running gateway. authority: of the certificate that users see."""

    authority: Path = Path()

    def url(self, target: str = TARGET) -> str:
        """What a kubeconfig names as the server."""
        return f"https://127.0.0.1:{self.port}/k8s/{target}"


@contextlib.contextmanager
def kube_gateway(
    folder: Path,
    server: KubeServer,
    rules: str = ALLOW_ALL,
    *,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
    token: str = TOKEN,
) -> Iterator[KubeGateway]:
    """Run a gateway whose target "kube" is the server.

    targets: what differs of "kube", or further ones by what differs from it; more: further keys of the configuration;
    token: what the server knows the gateway by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    credential = folder / "target_token"
    credential.write_text(token + "\n")
    credential.chmod(0o600)
    (folder / "rules.yaml").write_text(rules)
    authority = Authority(folder, "gateway-ca")
    pair = authority.issue("gateway")
    base: dict[str, Any] = {
        "protocol": "kubernetes", "host": server.host, "port": server.port,
        "credential": {"token_file": "target_token"}, "recording": "written",
        "kubernetes": {"ca_file": str(server.authority.ca_file)},
    }  # fmt: skip
    config = {
        "state": "state",
        "listeners": [{
            "name": "kubernetes", "protocol": "kubernetes", "address": "127.0.0.1:0",
            "tls": {"cert": str(pair.certificate_file), "key": str(pair.key_file)},
        }],
        "targets": [
            {"name": name, **base, **each, "kubernetes": base["kubernetes"] | dict(each.get("kubernetes", {}))}
            for name, each in {TARGET: {}, **(targets or {})}.items()
        ],
        "limits": {"drain_seconds": 0, **(limits or {})},
        "rules_file": "rules.yaml",
        **(more or {}),
    }  # fmt: skip
    (folder / "gatecast.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML
    users = token_issue(state / "gatecast.db", SUBJECT, groups=["dev"])["token"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--log-json"], cwd=folder, env=environment(), stderr=log
        )
    try:
        port = _port(process, folder / "log")
        running = KubeGateway(folder, port, users, KeyPair(folder / "none"), process, authority=authority.ca_file)
        running.canaries += [users.encode(), token.encode()]
        yield running
    finally:
        process.terminate()
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"the gateway did not stop: {(folder / 'log').read_text()[-4000:]}")
    assert code == 0, running.log[-4000:]
    inspect(running)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the line that says where it listens, or for the end of the process."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"listening"' in line:
                return int(json.loads(line)["address"].rpartition(":")[2])
        time.sleep(0.05)
    pytest.fail(f"gatecast serve did not start: {log.read_text()[-4000:]}")
