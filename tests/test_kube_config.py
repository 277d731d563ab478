"""Kubernetes in gatecast.yaml: what targets and listeners become, what is refused, and ``gatecast kubeconfig``."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocols.kubernetes.dial_settings import read_settings
from proxy import cli
from proxy.certificates import self_signed
from proxy.checking import check_config
from proxy.config import ConfigErrors, json_schema
from proxy.core.parties import Target
from proxy.credentials.gcp import GcpSource
from proxy.credentials.static import StaticCredential
from proxy.kube_files import SERVICE_ACCOUNT
from proxy.services import credentials_of
from proxy.snapshot import Snapshot, read_snapshot

CANARY = "canary-config-2b90"
LISTENER = "  - {name: kube, protocol: kubernetes, address: '127.0.0.1:8443', tls: {cert: tls.crt, key: tls.key}}\n"
KEY = bytes(32)


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine outside of any cluster."""
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    self_signed(tmp_path, ["localhost"])
    shutil.copy(tmp_path / "tls.crt", tmp_path / "ca.crt")
    (tmp_path / "token").write_text(CANARY)
    (tmp_path / "token").chmod(0o600)
    return tmp_path


def written(folder: Path, target: str, listeners: str = LISTENER) -> Path:
    path = folder / "gatecast.yaml"
    path.write_text(f"listeners:\n{listeners}targets:\n  - name: prod\n    protocol: kubernetes\n{target}rules: []\n")
    return path


def snapshot(folder: Path, target: str) -> Snapshot:
    return read_snapshot(written(folder, target), KEY)


def prod(folder: Path, target: str) -> tuple[Target, StaticCredential]:
    found = snapshot(folder, target)
    return found.targets["prod"], credentials_of(found)["prod"]


def problems(folder: Path, target: str, listeners: str = LISTENER) -> list[str]:
    path = written(folder, target, listeners)
    with pytest.raises(ConfigErrors) as caught:
        read_snapshot(path, KEY)
    assert CANARY not in str(caught.value)
    assert all(one.startswith(f"{path}:") for one in caught.value.problems)
    return [one.removeprefix(f"{path}:") for one in caught.value.problems]


GOOD = "    host: api.internal\n    credential: {token_file: token}\n    kubernetes: {ca_file: ca.crt}\n"


def kubeconfig(folder: Path, cluster: dict[str, Any], user: dict[str, Any] | None = None) -> Path:
    path = folder / "kubeconfig"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "c", "user": user or {"token": CANARY}}],
    }
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)
    return path


# -- targets ------------------------------------------------------------------------------------------


def test_a_target_and_its_defaults(folder: Path) -> None:
    target, source = prod(folder, GOOD)
    assert (target.host, target.port, target.database) == ("api.internal", 443, "")
    assert target.settings == {
        "server_name": "",
        "ca_file": str(folder / "ca.crt"),
        "session_idle": 300.0,
        "record_contents": (),
        "exec_only": False,
        "hold_when_unsure": False,
        "connect_timeout_seconds": 15.0,
    }
    assert source == StaticCredential("", per_request=True, token_file=folder / "token")


def test_a_target_with_everything(folder: Path) -> None:
    text = """\
    host: 10.0.0.1
    port: 6443
    credential: {token_env: TOKEN}
    connect_timeout: 3s
    limits: {max_connections: 7}
    labels: {env: prod}
    kubernetes:
      ca: system
      server_name: kubernetes
      session_idle: 90s
      record_contents: ["/etc/*"]
      exec_only: true
      hold_when_unsure: true
      impersonate: {user: issuer-subject, user_prefix: "oidc:", groups: dev, group_prefix: "g:", extra: true, uid: true}
"""
    target, source = prod(folder, text)
    assert (target.host, target.port) == ("10.0.0.1", 6443)
    assert target.settings == {
        "ca": "system",
        "server_name": "kubernetes",
        "session_idle": 90.0,
        "record_contents": ("/etc/*",),
        "exec_only": True,
        "hold_when_unsure": True,
        "connect_timeout_seconds": 3.0,
        "max_connections": 7,
        "impersonate": {
            "user": "issuer-subject",
            "user_prefix": "oidc:",
            "groups": ("dev",),
            "group_prefix": "g:",
            "extra": True,
            "uid": True,
        },
    }
    impersonation = read_settings(target).impersonate
    assert impersonation is not None
    assert (impersonation.user, impersonation.groups) == ("issuer-subject", ("dev",))
    assert source.token_env == "TOKEN"


def test_a_kubeconfig_says_where_it_is_and_a_change_is_a_reload(folder: Path) -> None:
    data = base64.b64encode((folder / "ca.crt").read_bytes()).decode()
    path = kubeconfig(
        folder, {"server": "https://h:6443/base", "certificate-authority-data": data, "tls-server-name": "n"}
    )
    text = "    credential: {kubeconfig: kubeconfig, context: c}\n    kubernetes: {session_idle: 0}\n"
    found = snapshot(folder, text)
    target = found.targets["prod"]
    assert (target.host, target.port) == ("h", 6443)
    settings = read_settings(target)
    assert (settings.base_path, settings.server_name, settings.ca_file) == ("/base", "n", "")
    assert settings.ca_data == (folder / "ca.crt").read_text()
    assert path in found.files
    source = credentials_of(found)["prod"]
    assert source == StaticCredential("", per_request=True, kubeconfig=path, context="c")
    kubeconfig(folder, {"server": "https://h", "certificate-authority": "ca.crt"})
    assert prod(folder, text)[0].settings["ca_file"] == str(folder / "ca.crt")
    kubeconfig(folder, {"server": "https://h"})
    assert prod(folder, text)[0].settings["ca"] == "system"
    kubeconfig(folder, {"server": "https://h", "insecure-skip-tls-verify": True})
    assert f"4: targets[0]: {path}: cluster c: insecure-skip-tls-verify" in problems(folder, text)[0]
    kubeconfig(folder, {"server": "https://h"}, {"password": CANARY})
    assert "take no passwords" in problems(folder, text)[0]


def test_in_cluster_is_read_where_it_is_and_checked_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, source = prod(folder, "    credential: {in_cluster: true}\n")
    assert (target.host, target.port) == ("kubernetes.default.svc", 443)
    assert target.settings["ca_file"] == str(SERVICE_ACCOUNT / "ca.crt")
    assert source == StaticCredential("", per_request=True, token_file=SERVICE_ACCOUNT / "token", foreign_file=True)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    target, _ = prod(folder, "    credential: {in_cluster: true}\n")
    assert (target.host, target.port) == ("10.96.0.1", 6443)


def test_gke(folder: Path) -> None:
    text = "    host: gke-1.europe-west1.gke.goog\n    credential: {gcp: {%s}}\n    kubernetes: {ca: system}\n"
    assert prod(folder, text % "key_file: sa.json")[1].gcp == GcpSource(folder / "sa.json")
    assert prod(folder, text % "metadata: true")[1].gcp == GcpSource(None)
    for wrong in ("", "metadata: false", "key_file: sa.json, metadata: true"):
        assert "give key_file, or metadata: true" in problems(folder, text % wrong)[0]


def test_a_client_certificate(folder: Path) -> None:
    text = GOOD.replace("token_file: token", "certificate_file: tls.crt, key_file: tls.key")
    source = prod(folder, text)[1]
    assert (source.certificate_file, source.key_file) == (folder / "tls.crt", folder / "tls.key")


def test_what_is_wrong_with_a_target_has_its_line(folder: Path) -> None:
    ways = "give one of token_env, token_file, certificate_file with key_file, kubeconfig, in_cluster or gcp"
    for old, new, expected in [
        ("{ca_file: ca.crt}", "{}", "4: targets[0]: needs kubernetes: {ca_file: FILE}, or {ca: system}"),
        ("    kubernetes: {ca_file: ca.crt}\n", "", "4: targets[0]: needs kubernetes: {ca_file: FILE}"),
        ("{ca_file: ca.crt}", "{ca_file: ca.crt, ca: system}", "8: targets[0].kubernetes: give ca_file or ca: system"),
        ("{ca_file: ca.crt}", "{ca: none}", "8: targets[0].kubernetes.ca: should be 'system'"),
        ("{ca_file: ca.crt}", "{insecure-skip-tls-verify: true}", "kubernetes.insecure-skip-tls-verify: unknown key"),
        ("ca.crt", "gone.crt", f"4: targets[0]: {folder / 'gone.crt'}: cannot be read"),
        ("ca.crt", "token", f"4: targets[0]: {folder / 'token'}: holds no certificate"),
        ("    host: api.internal\n", "", "4: targets[0].host: is missing"),
        ("{token_file: token}", "{}", f"7: targets[0].credential: {ways}"),
        ("{token_file: token}", "{token_file: token, token_env: X}", f"7: targets[0].credential: {ways}"),
        (
            "{token_file: token}",
            "{token_file: token, user: x}",
            "credential.user: means nothing to protocol kubernetes",
        ),
        ("{token_file: token}", "{token_file: token, password_env: X}", "credential.password_env: means nothing to"),
        ("{token_file: token}", "{key_file: token}", "certificate_file and key_file go together"),
        ("{token_file: token}", "{token_file: token, context: c}", "context goes with kubeconfig"),
        ("    host:", "    sslmode: require\n    host:", "6: targets[0].sslmode: means nothing to protocol kubernetes"),
        (
            "{ca_file: ca.crt}",
            "{ca_file: ca.crt, impersonate: {user: email}}",
            "8: targets[0].kubernetes.impersonate.user",
        ),
        ("{ca_file: ca.crt}", "{ca_file: ca.crt, impersonate: {group_prefix: 'system:'}}", "which is Kubernetes' own"),
        ("{ca_file: ca.crt}", "{ca_file: ca.crt, session_idle: 25h}", "8: targets[0].kubernetes.session_idle"),
        ("{ca_file: ca.crt}", "{known_hosts: x}", "8: targets[0].kubernetes.known_hosts: unknown key"),
    ]:
        assert old in GOOD
        found = problems(folder, GOOD.replace(old, new))
        assert any(expected in one for one in found), (new, found)


def test_what_a_kubeconfig_says_is_not_said_twice(folder: Path) -> None:
    kubeconfig(folder, {"server": "https://h"})
    text = "    credential: {kubeconfig: kubeconfig}\n    host: h\n    port: 1\n    kubernetes: {ca: system}\n"
    assert [one.split(": ", 1)[1] for one in problems(folder, text)] == [
        "targets[0].host: kubeconfig says it",
        "targets[0].port: kubeconfig says it",
        "targets[0].kubernetes.ca: kubeconfig says it",
    ]


def test_other_protocols_have_none_of_it(folder: Path) -> None:
    text = GOOD.replace("kubernetes: {ca_file", "kubernetes: {session_idle: 1m, ca_file")
    path = written(folder, text)
    path.write_text(path.read_text().replace("protocol: kubernetes\n    host", "protocol: postgres\n    host"))
    with pytest.raises(ConfigErrors) as caught:
        read_snapshot(path, KEY)
    found = str(caught.value)
    assert "targets[0].credential.user: is missing" in found
    path.write_text(path.read_text().replace("{token_file", "{user: u, token_file"))
    with pytest.raises(ConfigErrors) as caught:
        read_snapshot(path, KEY)
    found = str(caught.value)
    assert "targets[0].kubernetes: means nothing to protocol postgres" in found
    assert "targets[0].credential.token_file: means nothing to protocol postgres" in found


def test_the_schema_asks_for_host_and_user_of_nobody_who_has_none() -> None:
    schema = json_schema()
    assert "host" not in schema["$defs"]["Target"]["required"]
    assert "user" not in schema["$defs"]["CredentialSource"]["required"]
    assert "ca_file" in schema["$defs"]["TargetKubernetes"]["properties"]


# -- listeners ----------------------------------------------------------------------------------------


def test_a_listener_needs_tls(folder: Path) -> None:
    name = "  - {name: kube, protocol: kubernetes, address: '127.0.0.1:8443'"
    tls = ", tls: {cert: tls.crt, key: tls.key}"
    assert "listeners[0]: needs tls" in problems(folder, GOOD, f"{name}, plain: true}}\n")[0]
    assert "plain: means nothing" in problems(folder, GOOD, f"{name}{tls}, plain: true}}\n")[0]
    assert "login: means nothing" in problems(folder, GOOD, f"{name}{tls}, login: token}}\n")[0]
    assert "ssh: means nothing" in problems(folder, GOOD, f"{name}{tls}, ssh: {{}}}}\n")[0]
    unix = "  - {name: kube, protocol: kubernetes, address: 'unix:/x'}\n"
    assert any("kubectl knows no Unix sockets" in one for one in problems(folder, GOOD, unix))


def test_config_check_shows_the_target_and_warns_of_what_is_not_here(folder: Path) -> None:
    found = check_config(written(folder, GOOD))
    assert found["targets"][0] | {"recording": ""} == {
        "name": "prod", "protocol": "kubernetes", "host": "api.internal", "port": 443, "recording": "",
        "encrypt_to": [], "original_to": [],
    }  # fmt: skip
    assert not [one for one in found["warnings"] if "durable" not in one]
    for credential, why in [
        ("{token_env: NOT_SET_ANYWHERE}", "the environment variable NOT_SET_ANYWHERE is not set here"),
        ("{token_file: gone}", f"{folder / 'gone'} cannot be read here"),
        ("{gcp: {key_file: gone.json}}", f"{folder / 'gone.json'} cannot be read here"),
        ("{certificate_file: tls.crt, key_file: gone.key}", f"{folder / 'gone.key'} cannot be read here"),
    ]:
        warnings = check_config(written(folder, GOOD.replace("{token_file: token}", credential)))["warnings"]
        assert [one for one in warnings if f"7: targets[0].credential: {why}" in one], warnings


# -- gatecast kubeconfig ------------------------------------------------------------------------------


def asked(*arguments: str) -> list[str]:
    return ["kubeconfig", "--server", "https://gate:8443", "--token-file", "token", *arguments]


def test_kubeconfig_is_written_for_one_and_for_several(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(asked("--target", "prod", "--ca", "ca.crt")) == 0
    text = capsys.readouterr().out
    assert CANARY not in text
    assert yaml.safe_load(text) == {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "prod",
                "cluster": {
                    "server": "https://gate:8443/k8s/prod",
                    "certificate-authority-data": base64.b64encode((folder / "ca.crt").read_bytes()).decode(),
                },
            }
        ],
        "users": [{"name": "prod", "user": {"tokenFile": str(folder / "token")}}],
        "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "prod"}}],
        "current-context": "prod",
    }
    more = ("--target", "a", "--target", "b", "--target", "a", "--namespace", "dev", "--output", "made", "--json")
    assert cli.main(asked(*more)) == 0
    said = json.loads(capsys.readouterr().out)
    made = yaml.safe_load((folder / "made").read_text())
    assert (said["file"], said["contexts"], said["kubeconfig"]) == ("made", ["a", "b"], made)
    assert (folder / "made").stat().st_mode & 0o777 == 0o600
    assert made["contexts"][1] == {"name": "b", "context": {"cluster": "b", "user": "b", "namespace": "dev"}}
    assert "certificate-authority-data" not in made["clusters"][0]["cluster"]
    assert cli.main(asked("--target", "a", "--output", "made")) == 1
    assert "is not overwritten" in capsys.readouterr().err
    assert yaml.safe_load((folder / "made").read_text()) == made


def test_kubeconfig_says_what_is_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for arguments, why in [
        (("--target", "a/b"), "--target a/b"),
        (("--target", "a", "--token-file", "gone"), "gatecast token issue"),
        (("--target", "a", "--server", "http://gate"), "--server is https://host:port"),
        (("--target", "a", "--server", "gate:8443"), "--server is https://host:port"),
        (("--target", "a", "--server", "https://gate/k8s/a"), "the path is ours"),
        (("--target", "a", "--server", "https://u:p@gate"), "--server is"),
        (("--target", "a", "--server", "https://gate:x"), "--server is"),
        (("--target", "a", "--ca", "gone.crt"), "gone.crt: No such file"),
        (("--target", "a", "--ca", "token"), "token: holds no certificate"),
        (("--target", "a", "--ca", "tls.key"), "holds a private key"),
    ]:
        assert cli.main(asked(*arguments)) == 1
        said = capsys.readouterr()
        assert why in said.err, (arguments, said.err)
        assert said.out == ""


@pytest.mark.peer
def test_kubectl_reads_what_was_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    kubectl = shutil.which("kubectl")
    assert kubectl is not None, "install kubectl"
    assert cli.main(asked("--target", "prod", "--ca", "ca.crt", "--output", "made", "--namespace", "dev")) == 0
    done = subprocess.run(
        [kubectl, "--kubeconfig", "made", "config", "view", "--minify", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "HOME": str(folder)},
    )
    seen = json.loads(done.stdout)
    assert seen["clusters"][0]["cluster"]["server"] == "https://gate:8443/k8s/prod"
    assert seen["users"][0]["user"]["tokenFile"] == str(folder / "token")
