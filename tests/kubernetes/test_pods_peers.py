"""The peers themselves: what the tests run against, and that the stand-in asks for a credential."""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.kubernetes.running import Runner, Way
from tests.peers.kubernetes import VIEWER, Kubectl, KubeServer, kube_server, need_kubectl, wait_for, write_kubeconfig
from tests.peers.kubernetes import without_containers as reason

pytestmark = pytest.mark.peer


def test_pods_are_containers(kube: KubeServer) -> None:
    """Skipped where they are local processes: exec, attach and port-forward are then the stand-in's own."""
    if not kube.containers:
        pytest.skip(f"PODS ARE LOCAL PROCESSES, NOT CONTAINERS: {reason()}")
    assert kube.backend.startswith("containers of containerd")


def test_generations_of_kubectl() -> None:
    versions = [need_kubectl("1.20").version, need_kubectl("1.37").version]
    assert versions[0] == (1, 20)
    assert versions[1] >= (1, 37)
    assert need_kubectl("system").version >= versions[0]


def _asks(kube: KubeServer, token: str = "", certificate: bool = False) -> tuple[int, dict[str, object]]:
    context = ssl.create_default_context(cafile=str(kube.authority.ca_file))
    if certificate:
        context.load_cert_chain(kube.client.certificate_file, kube.client.key_file)
    request = urllib.request.Request(f"{kube.url}/api/v1/namespaces/default/secrets")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_credential_is_asked_for(kube: KubeServer) -> None:
    assert _asks(kube)[0] == 401
    assert _asks(kube, "wrong")[1]["reason"] == "Unauthorized"
    status, body = _asks(kube, VIEWER)
    assert (status, body["reason"]) == (403, "Forbidden")
    assert _asks(kube, certificate=True)[0] == 200


def _kubectl(found: Kubectl, kubeconfig: Path, *arguments: str, **switches: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(kubeconfig.parent), "KUBECONFIG": str(kubeconfig), "PATH": "/usr/bin:/bin", **switches}
    argv = [str(found.path), *arguments]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_impersonation(kube: KubeServer, tmp_path: Path) -> None:
    """A master may, with every header; others may not."""
    found = need_kubectl("1.37")
    user = {"client-certificate": str(kube.client.certificate_file), "client-key": str(kube.client.key_file)}
    master = write_kubeconfig(tmp_path / "master", kube.url, kube.authority.ca_file, user)
    options = ["--as=bob", "--as-group=a", "--as-group=b", "--as-uid=7"]
    done = _kubectl(found, master, "auth", "whoami", "-o", "json", *options)
    assert json.loads(done.stdout)["status"]["userInfo"] == {
        "username": "bob", "uid": "7", "groups": ["a", "b", "system:authenticated"],
    }  # fmt: skip
    viewer = write_kubeconfig(tmp_path / "viewer", kube.url, kube.authority.ca_file, {"token": VIEWER})
    done = _kubectl(found, viewer, "get", "pods", "--as=bob")
    assert "(Forbidden)" in done.stderr


@pytest.mark.parametrize("websocket", ["v4.channel.k8s.io", ""])
def test_older_servers(websocket: str, tmp_path: Path) -> None:
    """An API server before 1.30 knows no WebSocket v5, and an older one none: kubectl falls back to SPDY."""
    with kube_server(websocket=websocket, forward_websocket=False, aggregated=False) as old:
        token = json.loads((old.folder / "settings.json").read_text())["settings"]["tokens"]
        user = {"token": next(iter(token))}
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", old.url, old.authority.ca_file, user)
        done = _kubectl(need_kubectl("1.37"), kubeconfig, "exec", "web-0", "-c", "main", "--", "echo", "hello")
        assert done.stdout == "hello\n", done.stderr
        asked = [each for each in old.requests() if each["path"].endswith("/exec")]
        assert [each["headers"]["upgrade"].lower() for each in asked] == ["websocket", "spdy/3.1"]


@pytest.mark.parametrize("run", [Way("direct", "1.37")], indirect=True, ids=["direct"])
def test_requests_are_told(run: Runner, kube: KubeServer) -> None:
    """What tests of the gateway look at: what the server was asked, and what its streams were."""
    mark = kube.mark()
    run.sh("cat; echo no >&2", "-i", input=b"12345")
    asked = [each for each in kube.requests(mark) if each["path"].endswith("/exec")]
    assert asked[0]["query"]["command"] == ["sh", "-c", "cat; echo no >&2"]
    assert asked[0]["user"]["username"] == "gate"
    told = wait_for(
        lambda: next((each for each in kube.streams(mark) if each.get("stream") == "exec"), None), "its end"
    )
    assert (told["in"], told["out"], told["err"], told["eof"]) == (5, 5, 3, True)
