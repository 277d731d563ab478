"""``gatecast kube check`` against an API server of a few lines, over TLS, whose answers each test says."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from proxy import cli
from tests.peers.certificates import Authority

CANARY = "canary-kube-check-4f17"
RULES = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
ACCESS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
SELF = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
POD_RIGHTS = frozenset({
    "get pods", "list pods", "watch pods", "get pods/log", "get pods/exec", "create pods/exec", "get pods/attach",
    "create pods/attach", "get pods/portforward", "create pods/portforward", "patch pods/ephemeralcontainers",
})  # fmt: skip
IMPERSONATE = "impersonate: {extra: true, uid: true}"


@dataclass
class Server:
    """The API server. may: which rights the account has, "verb resource[/subresource][ in ns][ name]"."""

    may: Callable[[str], bool] = lambda right: right in POD_RIGHTS
    minor: str = "32"
    answers: dict[str, tuple[int, Mapping[str, Any]]] = field(default_factory=dict)  # in place of the usual ones
    rules: list[Mapping[str, Any]] = field(default_factory=list)
    incomplete: bool = False
    redirect: str = ""
    asked: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    port: int = 0

    def answer(self, method: str, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        if path in self.answers:
            return self.answers[path]
        spec = body.get("spec", {})
        match path:
            case "/version":
                more = {"gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "gc"}
                version = f"v1.{self.minor}.4"
                return 200, {
                    "major": "1", "minor": self.minor, "gitVersion": version, "platform": "linux/arm64", **more
                }  # fmt: skip
            case _ if path == SELF:
                return 201, {"status": {"userInfo": {"username": "gate", "groups": ["gates"]}}}
            case _ if path == ACCESS:
                return 201, {**body, "status": {"allowed": self.may(right_of(spec["resourceAttributes"]))}}
            case _ if path == RULES:
                status = {"resourceRules": self.rules, "nonResourceRules": [], "incomplete": self.incomplete}
                return 201, {**body, "status": status}
        return 404, {"message": "the server could not find the requested resource"}


def right_of(attributes: Mapping[str, str]) -> str:
    below = f"/{attributes['subresource']}" if attributes.get("subresource") else ""
    place = f" in {attributes['namespace']}" if attributes.get("namespace") else ""
    name = f" {attributes['name']}" if attributes.get("name") else ""
    return f"{attributes['verb']} {attributes['resource']}{below}{name}{place}"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[Server]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one segment for head and body: two wait for each other (Nagle), 40 ms a request

        def do_GET(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            path = self.path.rstrip("/")  # the client asks for /version/
            made.asked.append((self.command, path, {**self.headers, "body": body}))
            status, value = made.answer(self.command, path, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            if made.redirect:
                self.send_header("Location", made.redirect)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Listening(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A handshake that a client gave up is the test's subject, not its trouble."""

    pair = authority.issue("api")
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


Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(
    tmp_path: Path,
    server: Server,
    authority: Authority,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Check:
    """Run the command with --json on one target; no canary is in what it says."""
    monkeypatch.chdir(tmp_path)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there: whoever uses it fails
    (tmp_path / "token").write_text(CANARY)
    (tmp_path / "token").chmod(0o600)

    def run(
        *arguments: str, kubernetes: str = "", port: int = 0, credential: str = "token_file: token", ca: str = ""
    ) -> tuple[int, dict[str, Any]]:
        section = f"ca_file: {ca or authority.ca_file}" + (f", {kubernetes}" if kubernetes else "")
        (tmp_path / "gatecast.yaml").write_text(
            "listeners: [{name: kube, protocol: kubernetes, address: '127.0.0.1:0', tls: {cert: a, key: b}}]\n"
            f"targets:\n  - {{name: prod, protocol: kubernetes, host: 127.0.0.1, port: {port or server.port},\n"
            f"     credential: {{{credential}}}, kubernetes: {{{section}}}}}\nrules: []\n"
        )
        plain = cli.main(["kube", "check", "prod", *arguments])
        told = capsys.readouterr()
        code = cli.main(["kube", "check", "prod", "--json", *arguments])
        shown = capsys.readouterr()
        assert code == plain
        assert CANARY not in told.out + told.err + shown.out + shown.err
        result = json.loads(shown.out)["targets"][0]
        for words in (result["error"], result["advice"], *result["notes"]):
            assert words in told.out
        return code, result

    return run


def test_a_good_target(check: Check, server: Server) -> None:
    code, found = check()
    assert code == 0, found["error"]
    assert (found["version"], found["platform"], found["user"]) == ("v1.32.4", "linux/arm64", "gate")
    assert (found["exec"], found["port_forward"]) == ("WebSocket v5", "WebSocket")
    assert set(found["held"]) == POD_RIGHTS
    assert not found["missing"] and not found["too_much"] and not found["notes"]
    assert {fields["Authorization"] for _, _, fields in server.asked} == {f"Bearer {CANARY}"}


@pytest.mark.parametrize(
    ("minor", "exec_by", "forward_by"),
    [
        ("29+", "SPDY", "SPDY"),
        ("30+", "WebSocket v5", "SPDY"),
        ("31", "WebSocket v5", "WebSocket"),
        ("", "SPDY", "SPDY"),
    ],
)
def test_the_version_says_how_streams_go(
    check: Check, server: Server, minor: str, exec_by: str, forward_by: str
) -> None:
    server.minor = minor
    found = check()[1]
    assert (found["exec"], found["port_forward"]) == (exec_by, forward_by)


def test_a_missing_right_fails_and_says_what_it_is_for(check: Check, server: Server) -> None:
    server.may = lambda right: right in POD_RIGHTS - {"create pods/exec", "patch pods/ephemeralcontainers"}
    code, found = check()
    assert code == 1 and not found["ok"]
    assert [each["right"] for each in found["missing"]] == ["create pods/exec"]
    assert any("kubectl debug" in note for note in found["notes"])
    assert any("--namespace" in note for note in found["notes"])


def test_the_rights_in_one_namespace(check: Check, server: Server) -> None:
    server.may = lambda right: right.endswith(" in dev")
    assert check()[0] == 1
    code, found = check("--namespace", "dev")
    assert code == 0, found["error"]
    assert "get pods/exec in dev" in found["held"]


def test_too_much_is_told_and_fails_where_it_is_strict(check: Check, server: Server) -> None:
    server.may = lambda right: (
        right in POD_RIGHTS | {"get secrets in kube-system", "get nodes/proxy", "impersonate users"}
    )
    code, found = check()
    assert code == 0, found["error"]
    rights = [each["right"] for each in found["too_much"]]
    assert rights == ["get secrets in kube-system", "get nodes/proxy", "impersonate users"]
    assert check("--strict")[0] == 1


def test_an_administrator_is_told_once(check: Check, server: Server) -> None:
    server.may = lambda right: True
    assert [each["right"] for each in check()[1]["too_much"]] == ["everything"]


def test_impersonation_needs_its_rights_and_no_others(check: Check, server: Server) -> None:
    server.may = lambda right: right in {"impersonate users", "impersonate userextras/gatecast/agent"}
    code, found = check(kubernetes=IMPERSONATE)
    assert code == 1
    assert found["held"] == ["impersonate users", "impersonate userextras.authentication.k8s.io/gatecast/agent"]
    assert [each["right"] for each in found["missing"]] == [
        "impersonate groups",
        "impersonate userextras.authentication.k8s.io/gatecast/issuer",
        "impersonate uids.authentication.k8s.io",
    ]
    server.may = lambda right: right.startswith("impersonate ") or right == "list secrets"
    code, found = check(kubernetes=IMPERSONATE)
    assert code == 0, found["error"]
    rights = [each["right"] for each in found["too_much"]]
    assert rights == ["impersonate groups system:masters", "impersonate serviceaccounts", "list secrets"]


def test_groups_that_the_role_names_are_no_missing_right(check: Check, server: Server) -> None:
    server.may = lambda right: right == "impersonate users"
    server.rules = [
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev", "ops"]}
    ]
    code, found = check(kubernetes="impersonate: {}")
    assert code == 0, found["error"]
    assert any("dev, ops only" in note for note in found["notes"])


def test_rules_that_are_not_all(check: Check, server: Server) -> None:
    server.incomplete = True
    assert any("does not list its rules" in note for note in check()[1]["notes"])


def test_an_old_server_does_not_say_who_we_are(check: Check, server: Server) -> None:
    server.answers[SELF] = server.answers[RULES] = (404, {"message": "not found"})
    code, found = check()
    assert code == 0 and found["user"] == ""
    assert any("1.28" in note for note in found["notes"])


def test_a_credential_that_is_not_taken(check: Check, server: Server) -> None:
    server.answers["/version"] = (401, {"message": f"bad token {CANARY}"})  # a server that repeats it
    code, found = check()
    assert code == 1
    assert found["error"] == "the API server answers 401: bad token [token]"
    assert "expired" in found["advice"]


def test_a_request_that_is_answered_as_nobodys(check: Check, server: Server) -> None:
    server.answers[SELF] = (201, {"status": {"userInfo": {"username": "system:anonymous"}}})
    assert check()[0] == 1


def test_reviews_that_are_forbidden(check: Check, server: Server) -> None:
    server.answers[ACCESS] = (403, {"message": "selfsubjectaccessreviews is forbidden"})
    code, found = check()
    assert code == 1
    assert "system:basic-user" in found["advice"]


def test_nothing_is_followed_elsewhere(check: Check, server: Server) -> None:
    server.answers["/version"] = (302, {})
    server.redirect = f"https://127.0.0.1:{server.port}/elsewhere"
    code, found = check()
    assert code == 1
    assert "302" in found["error"]
    assert {path for _, path, _ in server.asked} == {"/version"}


def test_what_is_no_api_server(check: Check, server: Server) -> None:
    server.answers["/version"] = (200, {"hello": "world"})
    code, found = check()
    assert code == 1
    assert "no API server" in found["error"]


def test_another_authority(check: Check, server: Server, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other-ca")
    code, found = check(ca=str(other.ca_file))
    assert code == 1
    assert "kubernetes.ca_file names another authority" in found["error"]
    assert not server.asked


def test_another_name(check: Check, server: Server) -> None:
    code, found = check(kubernetes="server_name: api.example.com")
    assert code == 1
    assert "kubernetes.server_name" in found["error"]
    assert not server.asked


def test_the_name_of_the_certificate(check: Check) -> None:
    assert check(kubernetes="server_name: localhost")[0] == 0


def test_nobody_there(check: Check, server: Server) -> None:
    code, found = check(port=1)
    assert code == 1
    assert "Connection refused" in found["error"]
    assert "firewalls" in found["advice"]


def test_a_credential_that_is_missing(check: Check) -> None:
    code, found = check(credential="token_env: NO_SUCH_TOKEN")
    assert code == 1
    assert "NO_SUCH_TOKEN" in found["advice"]
    assert "ask" not in found["error"]


def test_a_target_that_is_not_there(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    check()
    assert cli.main(["kube", "check", "nowhere"]) == 1
    assert "those of Kubernetes are prod" in capsys.readouterr().err


def test_the_client_is_loaded_here_alone() -> None:
    import subprocess
    import sys

    script = (
        "import sys, proxy.app, proxy.kube_check; print([n for n in sys.modules if n.split('.')[0] == 'kubernetes'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
