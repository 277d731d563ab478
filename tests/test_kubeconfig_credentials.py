"""Kubeconfig files, exec plugins, and credentials that change: what is read, when anew, and that no secret is told."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from proxy.core.errors import ConfigError
from proxy.credentials.kubeconfig import FILE_LIMIT_BYTES, read_cluster, read_user
from proxy.credentials.plugin import OUTPUT_LIMIT_BYTES, run_plugin
from proxy.credentials.renewal import Unusable
from tests.peers.certificates import Authority

CANARY = "canary-kube-a07c"
V1 = "client.authentication.k8s.io/v1"


def write(folder: Path, user: object, cluster: object = None, name: str = "config") -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u"}},
            {"name": "two", "context": {"cluster": "c2", "user": "u2"}},
        ],
        "clusters": [
            {"name": "c", "cluster": cluster or {"server": "https://api.example.com:6443"}},
            {"name": "c2", "cluster": {"server": "https://[2001:db8::1]/k8s/clusters/c-1/"}},
        ],
        "users": [{"name": "u", "user": user}, {"name": "u2", "user": {"token": "second"}}],
    }
    path = folder / name
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)
    return path


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def wrong(path: Path, context: str = "", read: Callable[..., object] = read_user) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, context)
    text = "".join(traceback.format_exception(caught.value))
    assert CANARY not in text
    assert str(caught.value).startswith(str(path.parent))
    return str(caught.value)


# -- the file -----------------------------------------------------------------------------------------


def test_contexts_choose_cluster_and_user(tmp_path: Path) -> None:
    path = write(tmp_path, {"token": "first"})
    assert read_user(path).token == "first"
    assert read_user(path, "two").token == "second"
    cluster = read_cluster(path)
    assert (cluster.host, cluster.port, cluster.base_path) == ("api.example.com", 6443, "")
    cluster = read_cluster(path, "two")
    assert (cluster.host, cluster.port, cluster.base_path) == ("2001:db8::1", 443, "/k8s/clusters/c-1")
    assert "has no context three; it has: one, two" in wrong(path, "three")


def test_data_wins_over_files_and_files_are_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "c.crt").write_text("file-crt")
    (tmp_path / "c.key").write_text("file-key")
    files = {"client-certificate": "c.crt", "client-key": "c.key"}
    user = read_user(write(tmp_path, files))
    assert (user.certificate, user.key, user.files) == (
        "file-crt",
        "file-key",
        (tmp_path / "c.crt", tmp_path / "c.key"),
    )
    data = {"client-certificate-data": b64("data-crt"), "client-key-data": b64("data-key")}
    user = read_user(write(tmp_path, {**files, **data}))
    assert (user.certificate, user.key, user.files) == ("data-crt", "data-key", ())
    cluster = {"server": "https://h", "certificate-authority": "ca.crt", "tls-server-name": "n"}
    found = read_cluster(write(tmp_path, {"token": "t"}, cluster))
    assert (found.ca_file, found.ca_data, found.server_name) == (tmp_path / "ca.crt", "", "n")
    found = read_cluster(write(tmp_path, {"token": "t"}, {**cluster, "certificate-authority-data": b64("ca")}))
    assert (found.ca_file, found.ca_data) == (None, "ca")


def test_the_kubernetes_package_reads_the_same(tmp_path: Path) -> None:
    """The library that the reading is not done with, as its oracle."""
    from kubernetes.config.kube_config import KubeConfigLoader  # type: ignore[import-untyped]

    pair = Authority(tmp_path).issue("gate", client=True)
    (tmp_path / "ca.crt").write_text("ca")
    (tmp_path / "token").write_text("by-file")
    server = {"server": "https://h:1/base", "certificate-authority": "ca.crt", "tls-server-name": "n"}
    users: list[dict[str, Any]] = [
        {"token": "t"},
        {"tokenFile": "token"},
        {"client-certificate": pair.certificate_file.name, "client-key": pair.key_file.name},
        {
            "client-certificate-data": b64(pair.certificate_file.read_text()),
            "client-key-data": b64(pair.key_file.read_text()),
            "token": "both",
        },
    ]
    for user in users:
        path = write(
            tmp_path, user, {**server, "certificate-authority-data": b64("data")} if "token" in user else server
        )
        theirs: Any = SimpleNamespace(api_key={}, cert_file=None, key_file=None)
        loader = KubeConfigLoader(yaml.safe_load(path.read_text()), config_base_path=str(tmp_path))
        loader.load_and_set(theirs)
        ours, cluster = read_user(path), read_cluster(path)
        base = f"https://{cluster.host}:{cluster.port}{cluster.base_path}"
        assert (base, cluster.server_name) == (theirs.host, theirs.tls_server_name)
        ca = cluster.ca_data or (cluster.ca_file or Path()).read_text()
        assert ca == Path(theirs.ssl_ca_cert).read_text()
        token = ours.token or (ours.token_file.read_text() if ours.token_file is not None else "")
        assert theirs.api_key.get("BearerToken", "Bearer ") == f"Bearer {token}"
        for mine, its in ((ours.certificate, theirs.cert_file), (ours.key, theirs.key_file)):
            assert mine == (Path(its).read_text() if its else "")


def test_what_would_be_another_credential_than_the_file_means_is_refused(tmp_path: Path) -> None:
    secret = {"token": CANARY}
    for user, why in [
        ({"auth-provider": {"name": "gcp", "config": {"access-token": CANARY}}}, "use exec, or credential: {gcp"),
        ({"username": "admin", "password": CANARY}, "take no passwords"),
        ({**secret, "as": "root"}, "kubernetes: {impersonate"),
        ({**secret, "as-groups": ["system:masters"]}, "kubernetes: {impersonate"),
        ({**secret, "as-user-extra": {"a": ["b"]}}, "kubernetes: {impersonate"),
        ({}, "has no token, tokenFile, client-certificate or exec"),
        ({"token": [CANARY]}, "token is a text"),
        ({"client-certificate-data": b64(CANARY)}, "go together"),
        ({"client-key-data": b64(CANARY)}, "go together"),
        ({"client-key-data": "*" + CANARY + "*"}, "is not base64 of PEM"),
        ({"client-certificate": "gone.crt", "client-key": "gone.key"}, "gone.crt: cannot be read"),
        ({"exec": CANARY}, "exec: is a mapping"),
        ({"exec": {"apiVersion": "client.authentication.k8s.io/v1alpha1", "command": "x"}}, "apiVersion is"),
        ({"exec": {"apiVersion": V1}}, "has a command"),
        ({"exec": {"apiVersion": V1, "command": "x", "args": CANARY}}, "args is a list"),
        ({"exec": {"apiVersion": V1, "command": "x", "env": [{"name": "A", "value": 3}]}}, "env is a list"),
        ({"exec": {"apiVersion": V1, "command": "x", "env": [{"name": "A=B", "value": CANARY}]}}, "env is a list"),
        ({"exec": {"apiVersion": V1, "command": "x", "interactiveMode": "Always"}}, "a person at a terminal"),
    ]:
        assert why in wrong(write(tmp_path, user)), user
    for cluster, why in [
        ({"server": "https://h", "insecure-skip-tls-verify": True}, "protects nothing"),
        ({"server": "https://h", "proxy-url": f"http://u:{CANARY}@p"}, "without a proxy"),
        ({"server": "http://h"}, "reached by https"),
        ({"server": f"https://u:{CANARY}@h"}, "https://host:port"),
        ({"server": "https://h:99999"}, "is no address"),
        ({"server": "https://h?x=1"}, "https://host:port"),
        ({"server": ""}, "reached by https"),
    ]:
        assert why in wrong(write(tmp_path, {"token": "t"}, cluster), read=read_cluster), cluster
    # What is said to be off is off.
    read_cluster(write(tmp_path, {"token": "t"}, {"server": "https://h", "insecure-skip-tls-verify": False}))


def test_files_that_are_no_kubeconfig(tmp_path: Path) -> None:
    path = tmp_path / "config"
    for text, why in [
        (f"a: [{CANARY}\nb: }}", ": is not YAML"),
        (f"- {CANARY}", "is no kubeconfig"),
        ("", "is no kubeconfig"),
        ("contexts: []", "has no current-context"),
        ("current-context: one\ncontexts: 3", "has no context one; it has: none"),
        ("current-context: one\ncontexts: [{name: one}]", "context one: is empty"),
        ("current-context: one\ncontexts: [{name: one}, {name: one}]", "has more than one context one"),
        ("!!python/object/apply:os.system [x]", "is not YAML"),
    ]:
        path.write_text(text)
        assert why in wrong(path)
    path.write_bytes(b"\xff" + CANARY.encode())
    assert "is not UTF-8" in wrong(path)
    path.write_text("#" * FILE_LIMIT_BYTES)
    assert "is no kubeconfig" in wrong(path)
    path.write_text("#" * (FILE_LIMIT_BYTES + 1))
    assert f"is longer than {FILE_LIMIT_BYTES} bytes" in wrong(path)
    path.unlink()
    assert "cannot be read" in wrong(path)


def test_what_was_read_does_not_show_itself(tmp_path: Path) -> None:
    assert CANARY not in repr(read_user(write(tmp_path, {"token": CANARY})))


# -- exec plugins -------------------------------------------------------------------------------------


def plugin(folder: Path, body: str, **more: Any) -> Path:
    """A kubeconfig whose plugin is a Python program."""
    script = folder / "plugin.py"
    script.write_text(f"#!{sys.executable} -I\nimport json, os, sys, time\n{body}\n")
    script.chmod(0o700)
    return write(folder, {"exec": {"apiVersion": V1, "command": "./plugin.py", "interactiveMode": "Never", **more}})


def answer(status: dict[str, Any], version: str = V1, kind: str = "ExecCredential") -> str:
    return f"print({json.dumps(json.dumps({'apiVersion': version, 'kind': kind, 'status': status}))})"


def run(path: Path, seconds: float = 30.0) -> Any:
    found = read_user(path).plugin
    assert found is not None
    return run_plugin(found, seconds)


def unusable(path: Path, seconds: float = 30.0) -> str:
    with capture_logs() as logs, pytest.raises(Unusable) as caught:
        run(path, seconds)
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(logs)
    return str(caught.value)


def test_a_plugin_says_a_token_and_until_when(tmp_path: Path) -> None:
    said = run(plugin(tmp_path, answer({"token": CANARY, "expirationTimestamp": "2030-01-01T00:00:00Z"})))
    assert (said.token, said.expires_at) == (CANARY, 1_893_456_000.0)
    assert CANARY not in repr(said)


def test_a_plugin_says_a_certificate(tmp_path: Path) -> None:
    said = run(plugin(tmp_path, answer({"clientCertificateData": "crt", "clientKeyData": "key"})))
    assert (said.token, said.certificate, said.key, said.expires_at) == ("", "crt", "key", None)


@contextlib.contextmanager
def standard_input(descriptor: int) -> Iterator[None]:
    kept = os.dup(0)
    os.dup2(descriptor, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_what_a_plugin_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "kept")
    told = (
        "info = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "seen = [info, os.environ['FROM_OUTSIDE'], os.environ['MORE'], sys.argv[1:], sys.stdin.read(), os.getcwd()]\n"
        "status = {'token': json.dumps(seen)}\n"
        f"print(json.dumps({{'apiVersion': '{V1}', 'kind': 'ExecCredential', 'status': status}}))"
    )
    path = plugin(tmp_path, told, args=["a b", "c"], env=[{"name": "MORE", "value": "m"}], provideClusterInfo=True)
    document = yaml.safe_load(path.read_text())
    document["clusters"][0]["cluster"] |= {
        "certificate-authority-data": b64("ca"),
        "tls-server-name": "n",
        "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}],
    }
    path.write_text(yaml.safe_dump(document))
    with (tmp_path / "typed").open("w+") as typed, standard_input(typed.fileno()):
        os.pwrite(typed.fileno(), b"what a person types", 0)
        info, outside, more, arguments, stdin, directory = json.loads(run(path).token)
    assert info == {
        "apiVersion": V1,
        "kind": "ExecCredential",
        "spec": {
            "interactive": False,
            "cluster": {
                "server": "https://api.example.com:6443",
                "certificate-authority-data": b64("ca"),
                "tls-server-name": "n",
                "config": {"audience": "x"},
            },
        },
    }
    assert (outside, more, arguments, stdin) == ("kept", "m", ["a b", "c"], "")
    assert Path(directory) == tmp_path


def test_a_plugin_that_fails_says_nothing_of_a_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    leak = f"print({CANARY!r}); print({CANARY!r}, file=sys.stderr); "
    for body, why in [
        (leak + "sys.exit(3)", "plugin.py ended with exit code 3; type its command"),
        (leak + "os.kill(os.getpid(), 9)", "was ended by signal 9"),
        (leak, "says what is not JSON"),
        ("print('[' * 100000)", "says what is not JSON"),
        (f"print({json.dumps(json.dumps({'secret': CANARY}))})", "is no ExecCredential"),
        (answer({"token": CANARY}, version="client.authentication.k8s.io/v1beta1"), "is not of client.auth"),
        (answer({}), "neither token nor clientCertificateData"),
        (answer({"token": 3}), "a status that is none"),
        (answer({"clientCertificateData": CANARY}), "go together"),
        (answer({"token": CANARY, "expirationTimestamp": "soon"}), "is no time"),
        (answer({"token": CANARY, "expirationTimestamp": "2030-01-01T00:00:00"}), "has no time zone"),
        (f"sys.stdout.write('x' * {OUTPUT_LIMIT_BYTES + 1})", f"says more than {OUTPUT_LIMIT_BYTES} bytes"),
    ]:
        assert why in unusable(plugin(tmp_path, body)), body
    assert CANARY not in "".join(capfd.readouterr())


def test_a_plugin_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"exec": {"apiVersion": V1, "command": "no-such-plugin", "installHint": "get it\nfrom somewhere"}}
    )
    assert unusable(path) == (
        "the credential plugin no-such-plugin cannot be started: No such file or directory (get it from somewhere)"
    )


def test_a_plugin_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    body = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)"
    )
    began = time.monotonic()
    assert "took too long" in unusable(plugin(tmp_path, body), seconds=2.0)
    assert time.monotonic() - began < 20
    for pid in (tmp_path / "pids").read_text().split():
        deadline = time.monotonic() + 10
        while _alive(int(pid)):
            assert time.monotonic() < deadline, "it outlived its time"
            os.sched_yield()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
