"""The same scenarios against a real API server: k3s in a container, where there is a Docker engine.

What the stand-in leaves out is there: real authentication, RBAC, admission, field ownership, kubelet and all. The pods
of the scenarios (web-0, web-1 and prod/db-0) are made first, of the image that k3s brings along.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from tests.kubernetes import scenarios, scenarios_exec
from tests.kubernetes.gateway import KubeGateway, kube_gateway
from tests.kubernetes.running import Runner, Scenario, Way
from tests.peers.kube.seed import pod
from tests.peers.kubernetes import KubeServer, need_kubectl
from tests.ssh.running import until

pytestmark = [pytest.mark.peer, pytest.mark.container, pytest.mark.timeout(600)]

IMAGE = "rancher/k3s:v1.32.4-k3s1"
POD_IMAGE = "rancher/mirrored-library-busybox:1.36.1"
TRIED: tuple[Scenario, ...] = (
    scenarios.what_there_is_not, scenarios.watch, scenarios.create, scenarios.apply, scenarios.logs,
    scenarios_exec.streams, scenarios_exec.piped_input, scenarios_exec.terminal, scenarios_exec.copy,
    scenarios_exec.attach, scenarios_exec.killed,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Authority:
    ca_file: Path


@dataclass(frozen=True, slots=True)
class K3s:
    """A real cluster, as far as scenarios look at it. token: of a service account that may do everything."""

    port: int
    authority: _Authority
    token: str
    host: str = "127.0.0.1"
    containers: bool = True

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://{self.host}:{self.port}"


@pytest.fixture(scope="module")
def k3s() -> Iterator[K3s]:
    """A cluster with the scenarios' pods. Skipped without an engine: no machine of ours promises one."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine: the scenarios were not tried against k3s")
    from testcontainers.k3s import K3SContainer

    with K3SContainer(IMAGE) as container, tempfile.TemporaryDirectory() as folder:
        config = yaml.safe_load(container.config_yaml())
        cluster = config["clusters"][0]["cluster"]
        kubeconfig = Path(folder) / "kubeconfig"
        kubeconfig.write_text(json.dumps(config))
        authority = Path(folder) / "ca.crt"
        authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))

        def kubectl(*arguments: str, given: Any = None) -> str:
            done = subprocess.run(
                [need_kubectl("1.37").path, "--kubeconfig", kubeconfig, *arguments],
                input=json.dumps(given) if given else None, env={**os.environ, "HOME": folder},
                capture_output=True, text=True, timeout=300, check=True,
            )  # fmt: skip
            return done.stdout

        kubectl("create", "namespace", "prod")
        kubectl("create", "serviceaccount", "gate", "-n", "default")
        kubectl("create", "clusterrolebinding", "gate", "--clusterrole=cluster-admin", "--serviceaccount=default:gate")
        kubectl("create", "configmap", "app", "--from-literal=mode=test")
        until(lambda: kubectl("get", "serviceaccount", "default", "-n", "prod", "-o", "name"), "account", 60)
        for namespace, name in (("default", "web-0"), ("default", "web-1"), ("prod", "db-0")):
            kubectl("create", "secret", "generic", f"{name}-db", "-n", namespace, "--from-literal=password=s3cr3t")
            made = pod(namespace, name)
            del made["spec"]["nodeName"]
            for each in made["spec"]["containers"]:
                each["image"] = POD_IMAGE
            kubectl("create", "-f", "-", given=made)
        for namespace in ("default", "prod"):
            kubectl("wait", "--for=condition=Ready", "pod", "--all", "-n", namespace, "--timeout=240s")
        token = kubectl("create", "token", "gate", "--duration=2h").strip()
        port = int(cluster["server"].rpartition(":")[2])
        yield K3s(port, _Authority(authority), token)


@pytest.fixture(scope="module")
def k3s_gate(k3s: K3s) -> Iterator[KubeGateway]:
    """A gateway in front of it."""
    with tempfile.TemporaryDirectory(prefix="gatecast-") as folder:
        held = Path(folder) / "gw"
        with kube_gateway(held, cast("KubeServer", k3s), token=k3s.token) as gateway:
            yield gateway


@pytest.mark.parametrize("scenario", TRIED, ids=lambda each: each.__name__)
def test_k3s(k3s: K3s, k3s_gate: KubeGateway, scenario: Scenario) -> None:
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        runner = Runner(Way("gateway", "1.37"), cast("KubeServer", k3s), k3s_gate, Path(folder))
        try:
            scenario(runner)
        finally:
            runner.close()
