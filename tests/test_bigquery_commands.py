"""``gatecast bigquery config`` and ``token``: Google's own libraries read what they write, and it holds no secret."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocols.bigquery.sts import read_exchange
from proxy import cli
from proxy.bigquery_commands import ANSWER_LIMIT_BYTES
from tests.peers.certificates import Authority

CANARY = "gct_canary-bq-commands-7712"
ACCESS = "gca_canary-bq-access-0b14"
UNIVERSE = ("--universe", "gw.example")


@dataclass
class Gate:
    """The gateway's two doors, as much of them as a client sees here."""

    status: int = 200
    answer: bytes = json.dumps({"access_token": ACCESS, "expires_in": 3600, "token_type": "Bearer"}).encode()
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@pytest.fixture
def gate(authority: Authority) -> Iterator[Gate]:
    made = Gate()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            made.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(made.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(made.answer)))
            self.end_headers()
            self.wfile.write(made.answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    class Listening(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A handshake that a client gave up is the test's subject, not its trouble."""

    pair = authority.issue("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    listening = Listening(("127.0.0.1", 0), Handler)
    listening.socket = context.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
    made.port = listening.server_address[1]
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there: whoever uses it fails
    (tmp_path / "token").write_text(f"{CANARY}\n")
    return tmp_path


def made(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["bigquery", "config", "dwh", "--token-file", "token", "--json", *arguments]) == 0
    told = capsys.readouterr()
    assert CANARY not in told.out + told.err
    found: dict[str, Any] = json.loads(told.out)
    return found


def sourced(path: Path) -> dict[str, str]:
    """What a shell has of the file."""
    script = f". {shlex.quote(str(path.absolute()))}; env -0"
    done = subprocess.run(["/bin/sh", "-euc", script], env={}, capture_output=True, text=True, check=True)
    return dict(each.split("=", 1) for each in done.stdout.split("\0") if each)


def test_a_universe(capsys: pytest.CaptureFixture[str], folder: Path, authority: Authority) -> None:
    found = made(capsys, *UNIVERSE, "--project", "acme-prod", "--ca", str(authority.ca_file), "--out", "my dwh")
    place = folder / "my dwh"
    assert found["directory"] == str(place)
    files = {path.name for path in place.iterdir()}
    assert files == {"environment.sh", "credential.json", "python.py", "node.mjs", "profiles.yml", "ca-bundle.pem"}
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
    assert place.stat().st_mode & 0o777 == 0o700
    assert not [path for path in place.iterdir() if CANARY in path.read_text()]
    bundle = str(place / "ca-bundle.pem")
    environment = sourced(place / "environment.sh")
    assert {name: environment[name] for name in found["environment"]} == {
        "GOOGLE_CLOUD_PROJECT": "acme-prod",
        "CLOUDSDK_CORE_PROJECT": "acme-prod",
        "GOOGLE_APPLICATION_CREDENTIALS": str(place / "credential.json"),
        "GOOGLE_CLOUD_UNIVERSE_DOMAIN": "gw.example",
        "CLOUDSDK_CORE_UNIVERSE_DOMAIN": "gw.example",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(folder / "token"),
        "REQUESTS_CA_BUNDLE": bundle,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": bundle,
        "SSL_CERT_FILE": bundle,
        "NODE_EXTRA_CA_CERTS": bundle,
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": bundle,
    }
    text = Path(bundle).read_text()
    assert Path(authority.ca_file).read_text().strip() in text
    assert len(ssl.create_default_context(cafile=bundle).get_ca_certs()) > 20, "the public authorities are there, too"
    assert yaml.safe_load((place / "profiles.yml").read_text())["gatecast"]["outputs"]["dev"]["method"] == "oauth"


def test_google_s_library_takes_the_credential_and_exchanges_it_as_the_gateway_reads_it(
    capsys: pytest.CaptureFixture[str], gate: Gate, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.auth import identity_pool
    from google.auth.transport.requests import Request

    made(capsys, *UNIVERSE, "--ca", str(authority.ca_file), "--out", "out")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Path("out/ca-bundle.pem").absolute()))
    monkeypatch.setenv("NO_PROXY", "localhost")
    path = Path("out/credential.json")
    document = json.loads(path.read_text())
    assert document["token_url"] == "https://sts.gw.example/v1/token"
    path.write_text(json.dumps({**document, "token_url": f"{gate.url}/v1/token"}))  # no resolver knows gw.example
    credentials = identity_pool.Credentials.from_file(str(path), scopes=["x"])
    assert credentials.universe_domain == "gw.example"
    credentials.refresh(Request())
    assert credentials.token == ACCESS
    ((asked, fields, body),) = gate.asked
    assert asked == "/v1/token"
    exchange = read_exchange(fields["content-type"], body)
    assert (exchange.proof.reveal(), exchange.target) == (CANARY, "dwh")


def test_an_endpoint(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    found = made(capsys, "--endpoint", "https://gate:8443/", "--project", "acme-prod")
    assert "credential.json" not in found["files"]
    assert found["environment"] == {
        "GOOGLE_CLOUD_PROJECT": "acme-prod",
        "CLOUDSDK_CORE_PROJECT": "acme-prod",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_BIGQUERY": "https://gate:8443/bq/dwh/",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(folder / "token"),
    }
    (folder / "environment.sh").write_text(found["files"]["environment.sh"])
    assert sourced(Path("environment.sh"))["DBT_ENV_SECRET_GATECAST_TOKEN"] == CANARY
    profile = yaml.safe_load(found["files"]["profiles.yml"])["gatecast"]["outputs"]["dev"]
    assert profile["api_endpoint"] == "https://gate:8443/bq/dwh"
    assert profile["token"] == "{{ env_var('DBT_ENV_SECRET_GATECAST_TOKEN') }}"
    assert "leaves for Google" in found["files"]["environment.sh"]
    assert '"https://gate:8443/bq/dwh"' in found["files"]["node.mjs"]
    assert cli.main(["bigquery", "config", "dwh", *UNIVERSE, "--token-file", "token"]) == 0
    told = capsys.readouterr().out
    assert "# export GOOGLE_CLOUD_PROJECT=" in told
    assert str(folder / "credential.json") in told


def test_the_python_of_an_endpoint_runs(capsys: pytest.CaptureFixture[str], gate: Gate, authority: Authority) -> None:
    gate.answer = json.dumps({
        "jobComplete": True, "jobReference": {"projectId": "acme-prod", "jobId": "j", "location": "EU"},
        "schema": {"fields": [{"name": "one", "type": "INTEGER"}]}, "rows": [{"f": [{"v": "1"}]}], "totalRows": "1",
    }).encode()  # fmt: skip
    made(capsys, "--endpoint", gate.url, "--project", "acme-prod", "--ca", str(authority.ca_file), "--out", "out")
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "out/python.py"],
        env={**kept, **sourced(Path("out/environment.sh"))}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Row((1,)" in done.stdout, done.stderr
    ((path, fields, _),) = gate.asked
    assert path.startswith("/bq/dwh/bigquery/v2/projects/acme-prod/queries")
    assert fields["authorization"] == f"Bearer {CANARY}"


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    made(capsys, *UNIVERSE, "--out", "out")
    before = {path: path.read_bytes() for path in (folder / "out").iterdir()}
    assert cli.main(["bigquery", "config", "dwh", *UNIVERSE, "--token-file", "token", "--out", "out"]) == 1
    assert "is there already, and is not overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("dwh", "--universe", "localhost", "--token-file", "token"), "--universe is a domain"),
        (("dwh", "--universe", "a b.c", "--token-file", "token"), "--universe is a domain"),
        (("dwh", "--universe", "a." + "b" * 230, "--token-file", "token"), "--universe is a domain"),
        (("d/wh", *UNIVERSE, "--token-file", "token"), "d/wh: a target is called so nowhere"),
        (("dwh", *UNIVERSE, "--token-file", "nowhere"), "is not there; gatecast token issue"),
        (("dwh", *UNIVERSE, "--token-file", "token", "--project", "A B"), "is no id of a project"),
        (("dwh", *UNIVERSE, "--token-file", "token", "--ca", "token"), "holds no certificate in PEM form"),
        (("dwh", "--endpoint", "http://gate", "--token-file", "token"), "--endpoint is https://host:port"),
        (("dwh", "--endpoint", "https://gate/bq/dwh", "--token-file", "token"), "the path is ours"),
        (("dwh", "--endpoint", "https://me@gate", "--token-file", "token"), "--endpoint is https://host:port"),
        (("dwh", "--endpoint", "https://gate:x", "--token-file", "token"), "--endpoint is https://host:port"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bigquery", "config", *arguments, "--out", "out"]) == 1
    assert told in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_private_key_is_no_authority(capsys: pytest.CaptureFixture[str], authority: Authority) -> None:
    key = authority.issue("x").key_file
    assert cli.main(["bigquery", "config", "dwh", *UNIVERSE, "--token-file", "token", "--ca", str(key)]) == 1
    assert "holds a private key" in capsys.readouterr().err


# -- token --------------------------------------------------------------------------------------------


def token(gate: Gate, authority: Authority, *more: str) -> int:
    arguments = ["--endpoint", gate.url, "--token-file", "token", "--ca", str(authority.ca_file), *more]
    return cli.main(["bigquery", "token", "dwh", *arguments])


def test_a_token_is_exchanged_and_replaced(
    capsys: pytest.CaptureFixture[str], gate: Gate, authority: Authority, folder: Path
) -> None:
    assert token(gate, authority) == 0
    assert capsys.readouterr().out == f"{ACCESS}\n"
    (folder / "dwh.token").write_text("old")
    for _ in range(2):
        assert token(gate, authority, "--output", "dwh.token") == 0
        assert (folder / "dwh.token").read_text() == f"{ACCESS}\n"
    assert (folder / "dwh.token").stat().st_mode & 0o777 == 0o600
    told = capsys.readouterr().out
    assert "it holds for 60 minutes" in told
    assert ACCESS not in told
    path, fields, body = gate.asked[0]
    assert path == "/v1/token"
    exchange = read_exchange(fields["content-type"], body)
    assert (exchange.proof.reveal(), exchange.target) == (CANARY, "dwh")
    assert sorted(path.name for path in folder.glob("*token*")) == ["dwh.token", "token"]


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (400, b'{"error": "invalid_target", "error_description": "there is no such target"}', "no such target"),
        (400, b'{"error": "invalid_request"}', "invalid_request"),
        (200, b'{"access_token": ""}', "the exchange failed"),
        (200, b'{"access_token": "x", "expires_in": "soon"}', "the exchange failed"),
        (302, b"{}", "the exchange failed"),
        (404, b"<html>", "what answers there (404) is no gatecast"),
        (200, b"[]", "is no gatecast"),
        (200, b'"' + b"x" * ANSWER_LIMIT_BYTES + b'"', "is no gatecast"),
    ],
)
def test_an_exchange_that_fails(
    status: int,
    answer: bytes,
    told: str,
    capsys: pytest.CaptureFixture[str],
    gate: Gate,
    authority: Authority,
    folder: Path,
) -> None:
    gate.status, gate.answer = status, answer
    (folder / "dwh.token").write_text("old")
    assert token(gate, authority, "--output", "dwh.token") == 1
    said = capsys.readouterr()
    assert told in said.err
    assert CANARY not in said.out + said.err
    assert (folder / "dwh.token").read_text() == "old"


def test_a_gateway_of_another_authority_sees_no_token(
    capsys: pytest.CaptureFixture[str], gate: Gate, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert token(gate, Authority(tmp_path / "elsewhere", "stranger")) == 1
    assert "--ca names it" in capsys.readouterr().err
    assert not gate.asked
