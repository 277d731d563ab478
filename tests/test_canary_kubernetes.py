"""Canaries with Kubernetes: credentials, the user's token and masked values are in no byte that a gateway leaves.

One real gateway with everything on: masks of fields, a detector, an original track for an auditor, encryption, two
workers, index, JSON log with stacks, impersonation, a token and a client certificate as the target's credentials. Real
kubectls and a plain client make it handle what must not be kept in every way that they have; an API server of the
test's own quotes masked values in errors and warnings. Then it is killed, so that its write-ahead logs stay. What is
searched: as in tests/test_canary_ssh.py, and exports as HAR.

The same search with the mask of fields taken out must find the value: a search that finds nothing may just be blind.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import socketserver
import ssl
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from proxy import cli
from recorder.cipher import AuditorKey
from recorder.format import KEYS_SUFFIX
from recorder.reader import TapeReader
from tests.kubernetes.gateway import KubeGateway
from tests.kubernetes.place import Api, KubePlace, kubectl
from tests.kubernetes.running import SPDY, Runner, connected, lines_of
from tests.peers.kubernetes import TOKEN, KubeServer, kube_server
from tests.ssh.running import until
from tests.test_canary_psql import Search, blocks, family, search_files

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

PART: Final = b"kanarienvogel"
VALUE: Final = 'kanarienvogel "auf" <voliere> & ast/zweig+ä'  # what JSON, Go and URLs each write in their own way
NUMBER: Final = "KV-kanarienvogel-471199"  # what the detector knows
WRONG: Final = b"gct_dompfaff-is-no-token"
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
SECRETS: Final = "/api/v1/namespaces/default/secrets"
FORMATS: Final = ("asciicast-v2", "asciicast-v3", "txt", "jsonl", "html", "har", "raw", "svg")
ALLOW: Final = """\
rules:
  - name: all
    who: {groups: [dev]}
    commands: {kinds: [session, read, write, define, delete, execute, transfer], opaque: true}
    allow: true
"""
FIELDS: Final = """\
  - name: values
    mask:
      - fields: ["secrets:data.*", "secrets:stringData.*", "configmaps:data.db-url", "*:*env.*PASSWORD*"]
        action: redact
"""
DETECTORS: Final = """\
  - {name: rings, mask: [{detectors: [ring], action: redact}]}
"""
BY_BYTE: Final = f"""\
#!{sys.executable}
import sys, time
stream = getattr(sys, sys.argv[1]).buffer
for byte in open(sys.argv[2], "rb").read():
    stream.write(bytes((byte,)))
    stream.flush()
    time.sleep(0.001)
"""


def encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


# -- an API server that quotes ---------------------------------------------------------------------------


class _Quoting(BaseHTTPRequestHandler):
    """Answers everything with a failure that quotes the value in every form."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        forms: tuple[str, ...] = (NUMBER,)  # what a detector knows, in whatever it is
        discovery = "/namespaces/" not in self.path
        if discovery:
            forms = ("?",)  # it is free of rules, and so of masks: it says what there is, never what that holds
        if "/secrets" in self.path:
            forms += (VALUE, encoded(VALUE), json.dumps(VALUE), urllib.parse.quote(VALUE))
        message = "; ".join(
            f'Secret "canary" is invalid: data.password: Invalid value: {json.dumps(one)}' for one in forms
        )
        causes = [
            {"reason": "FieldValueInvalid", "message": f'Invalid value: "{one}"', "field": "data.password"}
            for one in forms
        ]
        document = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422,
            "message": message, "details": {"name": "canary", "kind": "secrets", "causes": causes},
        }  # fmt: skip
        body = json.dumps(document).encode()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(422, "Unprocessable")
        self.send_header("Content-Type", "application/json")
        if not discovery:
            self.send_header("Warning", f'299 - "{PART.decode()} {NUMBER}"')
            self.send_header("X-Quoted", urllib.parse.quote(VALUE))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def quoting_server(server: KubeServer) -> Iterator[int]:
    """Run it with a certificate of the stand-in's authority; yields its port."""
    pair = server.authority.issue("quoting")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate_file, pair.key_file)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Quoting) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        with served(http):
            yield http.server_port


class _Telling(socketserver.BaseRequestHandler):
    """Tells the number behind a port, with no line break at the end, and waits."""

    def handle(self) -> None:
        self.request.sendall(f"ring {NUMBER} end\nand {NUMBER} again".encode())
        self.request.recv(100)


@contextlib.contextmanager
def served(server: socketserver.TCPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


# -- the gateway and its clients -------------------------------------------------------------------------


@dataclass(slots=True)
class World:
    """A gateway's folder and what its clients do. seen: what clients showed, by what they did."""

    place: KubePlace
    reader: AuditorKey
    auditor: AuditorKey
    telling: int
    seen: dict[str, bytes] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.place.folder

    def shared(self, sid: str) -> bool:
        """Whether a tape is one of plain requests."""
        (path,) = (self.folder / "state" / "tapes").rglob(f"{sid}.000.gct")
        return TapeReader(path).header.map_.get("more", {}).get("http") is True

    def use(self, gateway: KubeGateway, target: str, far: Path) -> None:
        """Have the values shown in every way."""
        server = self.place.server
        with (
            kubectl(gateway, server, target=target) as run,
            kubectl(gateway, server, target=target, switches=SPDY) as old,
        ):
            self.read(run, target)
            self.watch(run, target)
            self.streams(run, target, far)
            done = old.sh(f"cat {far}/data; cat {far}/data >&2")
            self.seen[f"{target} by SPDY"] = done.stdout + done.stderr
            self.copy(run, target, far)
            self.forward(run, target)
        self.log_in(gateway, target)

    def read(self, run: Runner, target: str) -> None:
        """Objects in every form, echoes of writes."""
        forms = (
            ("get", "secrets"), ("get", "secret", "canary", "-o", "yaml"), ("get", "secrets", "-o", "json"),
            ("get", "secret", "canary", "-o", "jsonpath={.data.password}"), ("describe", "secret", "canary"),
            ("get", "--raw", f"{SECRETS}/canary"), ("get", "--raw", f"{SECRETS}?watch=true&timeoutSeconds=1"),
            ("get", "cm,pods,deploy", "-o", "yaml"), ("describe", "cm", "canary"), ("describe", "pod", "canary"),
            ("get", "secrets", "-A", "--show-labels", "-o", "wide"), ("get", "cm", "canary", "-o", "json"),
            ("label", "secret", "canary", "seen=yes", "--overwrite", "-o", "yaml"),
            ("annotate", "cm", "canary", "seen=yes", "--overwrite", "-o", "json"),
            ("logs", "canary", "-c", "main", "--tail=5"), ("get", "secret", "nobody", "-o", "yaml"),
        )  # fmt: skip
        for words in forms:
            done = run.do(*words)
            self.seen[f"{target} {' '.join(words)}"] = done.stdout + done.stderr
        api = Api(_gateway(run), target=target)
        for accept in (
            "application/json;as=Table;v=v1;g=meta.k8s.io",
            "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
            "application/vnd.kubernetes.protobuf", "application/yaml", "application/json",
        ):  # fmt: skip
            for path in (f"{SECRETS}/canary?includeObject=Object", f"{SECRETS}?includeObject=Object"):
                answer = api.get(path, Accept=accept, Accept_Encoding="gzip")
                self.seen[f"{target} {accept} {path}"] = str(answer.headers).encode() + answer.body
        api.close()
        assert b"canary" in self.seen[f"{target} get secret canary -o yaml"]
        assert b"log of" in self.seen[f"{target} logs canary -c main --tail=5"]

    def watch(self, run: Runner, target: str) -> None:
        """Events, and a log that is followed."""
        for words in (("get", "secrets", "-w", "-o", "json"), ("logs", "-f", "canary", "-c", "main")):
            with run.started(*run.argv(*words)) as process:
                self.seen[f"{target} {words}"] = "".join(
                    lines_of(process.stdout, lambda line: "canary" in line or "log of" in line)
                ).encode()

    def streams(self, run: Runner, label: str, far: Path) -> None:
        """exec, with values in output and errors, whole and by single bytes."""
        scripts = {
            "out": f"cat {far}/data", "err": f"cat {far}/data >&2", "bytes": f"{far}/by_byte stdout {far}/data",
            "err bytes": f"{far}/by_byte stderr {far}/data", "error text": f"cd {far}/names; cat *",
            "environment": "env | grep -v PASSWORD", "exit": f"cat {far}/data; exit 3",
        }  # fmt: skip
        for name, script in scripts.items():
            done = run.sh(script)
            self.seen[f"{label} {name}"] = done.stdout + done.stderr
        assert b"mail" in self.seen[f"{label} out"]
        with run.terminal("exec", "-it", "web-0", "-c", "main", "--", "sh") as seat:
            until(lambda: seat.screen().strip(), "prompt")
            seat.line(f"cat {far}/data | cut -c -60; echo se''en")
            seat.until_line("seen")
            self.seen[f"{label} terminal"] = seat.screen().encode()
            seat.line("exit")
            seat.until("ENDED")

    def copy(self, run: Runner, target: str, far: Path) -> None:
        """kubectl cp of a file with the number in it."""
        done = run.do("cp", f"web-0:{far}/data", "copied", "-c", "main")
        self.seen[f"{target} cp"] = done.stdout + done.stderr

    def forward(self, run: Runner, target: str) -> None:
        """The number through a port-forward: there is none where a detector would have to look into it."""
        words = ("port-forward", "pod/web-0", f":{self.telling}", "--address", "127.0.0.1")
        with run.started(*run.argv(*words)) as process:
            assert process.stdout is not None and process.stderr is not None
            said = process.stdout.readline()
            if not said:
                self.seen[f"{target} forward"] = process.stderr.read()
                assert b"a forwarded connection cannot be masked" in self.seen[f"{target} forward"]
                return
            with connected(int(said.decode().partition("127.0.0.1:")[2].partition(" ")[0])) as wire:
                found = b""
                while not found.endswith(b" again") and (piece := wire.recv(4096)):
                    found += piece
                self.seen[f"{target} forward"] = found
                assert found.startswith(b"ring ") and found.endswith(b" again"), found

    def log_in(self, gateway: KubeGateway, target: str) -> None:
        """Show the token in each way, and a wrong one."""
        for token in (self.place.token.encode(), WRONG):
            said = raw_exec(gateway, target, token)
            assert said.startswith(b"HTTP/1.1 101" if token != WRONG else b"HTTP/1.1 401"), said
            self.seen[f"{target} subprotocol"] = said
            api = Api(gateway, token=token.decode(), target=target)
            for headers in ({}, {"Cookie": f"token={self.place.token}"}, {"X_Forwarded_For": "1.2.3.4"}):
                answer = api.get("/api/v1/pods?limit=1", Proxy_Authorization=f"Bearer {self.place.token}", **headers)
                self.seen[f"{target} {token == WRONG} {headers}"] = str(answer.headers).encode() + answer.body
            api.close()

    def read_imitated(self, run: Runner) -> None:
        """Requests that are made as the caller: who it is is no secret, what makes them so is."""
        for words in (("auth", "whoami", "-o", "yaml"), ("get", "pods"), ("get", "secrets")):
            done = run.do(*words)
            self.seen[f"imitated {words}"] = done.stdout + done.stderr
        assert b"ana@example.com" in self.seen[f"imitated {('auth', 'whoami', '-o', 'yaml')}"]
        assert b"Forbidden" in self.seen[f"imitated {('get', 'secrets')}"]

    def read_quoted(self, gateway: KubeGateway) -> None:
        """Failures that quote masked values."""
        api = Api(gateway, target="quoting")
        for path in (
            SECRETS,
            f"{SECRETS}/canary",
            f"{SECRETS}?watch=true",
            "/api/v1/namespaces/default/pods/canary/log",
        ):
            answer = api.get(path)
            assert answer.status == 422, answer
            self.seen[f"quoting {path}"] = str(answer.headers).encode() + answer.body
        for method, path in (("POST", SECRETS), ("DELETE", f"{SECRETS}/canary")):
            body = json.dumps({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "canary"}}).encode()
            answer = api.ask(method, path, body if method == "POST" else None)
            self.seen[f"quoting {method}"] = str(answer.headers).encode() + answer.body
        api.close()
        said = raw_exec(gateway, "quoting", self.place.token.encode())
        assert b"is invalid" in said, said
        self.seen["quoting exec itself"] = said
        with kubectl(gateway, self.place.server, target="quoting") as run:
            for words in (("exec", "web-0", "--", "true"), ("port-forward", "pod/web-0", ":80"), ("get", "secrets")):
                done = run.do(*words)
                assert done.returncode == 1
                self.seen[f"quoting {words[0]}"] = done.stdout + done.stderr

    @contextlib.contextmanager
    def hanging(self, gateway: KubeGateway, target: str, far: Path) -> Iterator[None]:
        """A watch and an exec that are open when the gateway is killed."""
        with kubectl(gateway, self.place.server, target=target) as run:
            words = ("exec", "web-0", "-c", "main", "--", "sh", "-c", f"cat {far}/data; echo; echo begun; sleep 60")
            with (
                run.started(*run.argv(*words)) as process,
                run.started(*run.argv("get", "secrets", "-w", "-o", "yaml")) as watch,
            ):
                lines_of(process.stdout, lambda line: line == "begun\n")
                lines_of(watch.stdout, lambda line: "name: canary" in line)
                yield


def raw_exec(gateway: KubeGateway, target: str, token: bytes) -> bytes:
    """An exec whose token is a subprotocol, as browsers have it; returns all that is said, up to a Status."""
    context = ssl.create_default_context(cafile=str(gateway.authority))
    bearer = base64.urlsafe_b64encode(token).rstrip(b"=").decode()
    head = (
        f"GET /k8s/{target}/api/v1/namespaces/default/pods/web-0/exec?command=true&stdout=true HTTP/1.1\r\n"
        "Host: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n"
        f"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{bearer}, v4.channel.k8s.io\r\n\r\n"
    )
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wire,
    ):
        wire.sendall(head.encode())
        said = b""
        while b'"status"' not in said and (piece := wire.recv(16384)):
            said += piece
        return said


def _gateway(run: Runner) -> KubeGateway:
    assert run.gateway is not None
    return run.gateway


def put_canaries(server: KubeServer, far: Path) -> None:
    """Objects and files with the values."""
    (far / "data").write_text(f"id {NUMBER} mail {NUMBER} end\n" + "x" * 200 + f" {NUMBER}\n")
    (far / "by_byte").write_text(BY_BYTE)
    (far / "by_byte").chmod(0o700)
    (far / "names").mkdir()
    (far / "names" / NUMBER).mkdir()
    last = {"kind": "Secret", "data": {"password": encoded(VALUE)}, "stringData": {"plain": VALUE}}
    objects: list[tuple[str, dict[str, Any]]] = [
        ("secrets", {
            "kind": "Secret", "apiVersion": "v1", "type": "Opaque",
            "metadata": {"name": "canary", "annotations": {LAST_APPLIED: json.dumps(last)}},
            "data": {"password": encoded(VALUE), "again": encoded(encoded(VALUE))},
        }),
        ("configmaps", {
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "canary", "annotations": {LAST_APPLIED: json.dumps(
                {"kind": "ConfigMap", "apiVersion": "v1", "data": {"db-url": VALUE}}
            )}},
            "data": {"db-url": VALUE, "mode": f"log of {NUMBER}"},
        }),
        ("pods", {
            "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "canary"},
            "spec": {"containers": [{
                "name": "main", "image": "busybox", "env": [{"name": "API_PASSWORD", "value": VALUE}],
                "command": ["sh", "-c", f"while true; do echo log of $(cat {far}/data); sleep 0.2; done"],
            }]},
        }),
    ]  # fmt: skip
    context = ssl.create_default_context(cafile=str(server.authority.ca_file))
    for plural, value in objects:
        connection = http.client.HTTPSConnection(server.host, server.port, context=context, timeout=30)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request("POST", f"/api/v1/namespaces/default/{plural}", json.dumps(value), headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        answer.read()
        connection.close()


def make_world(folder: Path, own: Path, server: KubeServer, quoting: int, telling: int, rules: str) -> World:
    reader, auditor = AuditorKey.generate(folder / "reader.key"), AuditorKey.generate(folder / "auditor.key")
    world = World(KubePlace(folder, server), reader, auditor, telling)
    (folder / "reader.pub").write_bytes(reader.public_pem())
    (folder / "auditor.pub").write_bytes(auditor.public_pem())
    (folder / "target_token").rename(own / "target_token")
    (own / "client.key").write_bytes(server.client.key_file.read_bytes())
    (own / "client.key").chmod(0o600)
    for name in ("tmp", "exports"):
        (folder / name).mkdir()
    by_token = {"token_file": str(own / "target_token")}
    by_certificate = {
        "certificate_file": str(server.client.certificate_file), "key_file": str(own / "client.key"),
    }  # fmt: skip
    world.place.configure(
        rules,
        workers=2,
        targets={
            "watched": {"credential": by_token, "original_to": ["auditor.pub"]},
            "locked": {"credential": by_certificate, "recording": "strict", "encrypt_to": ["reader.pub"]},
            "imitated": {
                "credential": by_token,
                "kubernetes": {"impersonate": {"user": "subject", "extra": True, "uid": True}},
            },
            "quoting": {"port": quoting, "credential": by_token},
        },
        recorder={"index": True},
        more={"masking": {"detectors": [{"name": "ring", "regex": r"KV-[a-z]+-\d{6}"}]}},
    )
    return world


# -- the search ------------------------------------------------------------------------------------------


def commands_output(
    world: World, capfdbinary: pytest.CaptureFixture[bytes], exports: bool
) -> Iterator[tuple[str, bytes]]:
    """Run every command that shows or exports sessions; yield its name and what it printed, its errors too."""
    identity = str(world.folder / "reader.key")
    sids = dict.fromkeys(path.name[:26] for path in sorted((world.folder / "state" / "tapes").rglob("*.000.gct")))
    lines: list[tuple[str, list[str]]] = [
        ("sessions reindex", ["sessions", "reindex"]),
        ("sessions list", ["sessions", "list", "--json"]),
        ("verify", ["verify", "--json", "--identity", identity]),
        ("token list", ["token", "list", "--json"]),
        ("config", ["config", "check"]),
    ]
    lines += [("sessions search", ["sessions", "search", word, "--json"]) for word in ("secret", "get", "kan*", "kv*")]
    for number, sid in enumerate(sids):
        # Each of many streams is a tape: one in four is shown in every way, and all of them in the plainest.
        if number % 4 and not world.shared(sid):
            lines.append(("replay", ["replay", sid, "--plain", "--identity", identity]))
            continue
        lines.append(("sessions show", ["sessions", "show", sid, "--json", "--identity", identity]))
        lines.append(("replay", ["replay", sid, "--plain", "--raw", "--identity", identity]))
        lines.append(("replay", ["replay", sid, "--plain", "--identity", identity]))
        for form in FORMATS if exports else ():
            out = world.folder / "exports" / f"{sid}.{form}"
            more = ["--keys", "--raw"] if "cast" in form else ["--direction", "all"] if form == "raw" else []
            lines.append((form, ["export", sid, "--format", form, "-o", str(out), "--identity", identity, *more]))
    capfdbinary.readouterr()
    for name, line in lines:
        with contextlib.suppress(SystemExit):
            assert cli.main(line) in (0, 1, 2), line
        said = capfdbinary.readouterr()
        yield name, said.out + said.err


def run_world(
    world: World, far: Path, search: Search, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Use a gateway, kill it, and look everywhere; start it again, and look once more."""
    folder, keys = world.folder, [world.reader]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    more = {"TMPDIR": str(folder / "tmp"), "GATECAST_DEBUG": "1"}
    put_canaries(world.place.server, far)
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(world.place.serving("log-1", more))
        for target in ("watched", "locked"):
            world.use(gateway, target, far)
        with kubectl(gateway, world.place.server, target="imitated") as run:
            world.read_imitated(run)
        world.read_quoted(gateway)
        for target in ("watched", "locked"):
            stack.enter_context(world.hanging(gateway, target, far))
        for pid in family(gateway.process.pid):
            search.look("environment", Path(f"/proc/{pid}/environ").read_bytes())
            search.look("environment", Path(f"/proc/{pid}/cmdline").read_bytes())
        for line in (("status",), ("sessions", "live"), ("approvals", "list")):
            search.look("admin", gateway.gatecast(*line, "--json").stdout.encode())
        for pid in reversed(family(gateway.process.pid)):
            os.kill(pid, signal.SIGKILL)
        gateway.process.wait(30)
    for name, said in world.seen.items():
        search.look(f"client: {name}", said)
    assert list((folder / "state").rglob("*.wal"))
    search_files(search, folder, keys)
    for name, said in commands_output(world, capfdbinary, exports=False):
        search.look(name, said)
    with world.place.serving("log-2", more):
        pass  # recovers
    for name, said in commands_output(world, capfdbinary, exports=True):
        search.look(name, said)
    search_files(search, folder, keys)


@pytest.fixture
def local_kube() -> Iterator[KubeServer]:
    with kube_server(local=True) as server:
        yield server


@contextlib.contextmanager
def world_of(tmp_path: Path, server: KubeServer, rules: str) -> Iterator[tuple[World, Path]]:
    """A world in a folder, the credentials and the pods' files in others."""
    for name in ("gw", "own", "far"):
        (tmp_path / name).mkdir()
    with quoting_server(server) as quoting, socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Telling) as telling:
        telling.daemon_threads = True
        with served(telling):
            port = int(telling.server_address[1])
            yield make_world(tmp_path / "gw", tmp_path / "own", server, quoting, port, rules), tmp_path / "far"


def test_nothing_that_is_masked_or_secret_is_anywhere(
    tmp_path: Path,
    local_kube: KubeServer,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with world_of(tmp_path, local_kube, ALLOW + FIELDS + DETECTORS) as (world, far):
        token = world.place.token.encode()
        lines = [line for line in local_kube.client.key_file.read_bytes().splitlines()[1:-1] if len(line) >= 20]
        assert lines
        search = Search((PART, WRONG, token, token[-24:], TOKEN.encode(), b"s3cr3t", *lines))
        run_world(world, far, search, monkeypatch, capfdbinary)
    leaks = {name: said for name, said in world.seen.items() if PART in said}
    assert not search.found, (leaks, sorted(search.found)[:20])
    for place in ("tape, inside", "wal, inside", "state", "log-1", "export", "replay", "sessions search", "admin"):
        assert search.searched.get(place, 0) > 100, (place, search.searched)

    originals = sorted((world.folder / "state" / "tapes").rglob("*.original.000.gct"))
    found = b""
    for path in originals:
        data, keys_file = path.read_bytes(), path.with_name(f"{path.name[:26]}.original{KEYS_SUFFIX}").read_bytes()
        assert b"".join(blocks(data, keys_file, [world.auditor])), path
        found += b"".join(record.payload for record in TapeReader(path, [world.auditor]).records())
    assert found.count(encoded(VALUE).encode()) > 10  # of Secrets
    assert found.count(NUMBER.encode()) > 10  # of streams
    for secret in (WRONG, token, TOKEN.encode(), *lines):
        assert secret not in found


@pytest.mark.nightly  # the other one checks that each place was looked at
@pytest.mark.parametrize("missing", [FIELDS, DETECTORS])
def test_the_search_sees_a_mask_that_is_missing(
    tmp_path: Path,
    local_kube: KubeServer,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    missing: str,
) -> None:
    with world_of(tmp_path, local_kube, (ALLOW + FIELDS + DETECTORS).replace(missing, "")) as (world, far):
        search = Search((PART, WRONG, world.place.token.encode(), TOKEN.encode()))
        run_world(world, far, search, monkeypatch, capfdbinary)
    places = {place for place, canary, _ in search.found if canary == PART}
    assert {"tape, inside", "wal, inside", "export", "replay"} <= places, places
    shown = {place.removeprefix("client: watched ") for place in places if place.startswith("client: watched ")}
    if missing == FIELDS:
        assert {"get secret canary -o yaml", "get cm canary -o json", "describe pod canary"} <= shown, shown
    else:
        assert {"out", "err bytes", "terminal", "forward", "logs canary -c main --tail=5"} <= shown, shown
    assert {canary for _, canary, _ in search.found} == {PART}
