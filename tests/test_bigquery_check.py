"""``gatecast bigquery check`` against a BigQuery of a few lines, over TLS, whose answers each test says.

The client is Google's own; what Google itself would answer is as in its documentation, and not tested here.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import protocols
from protocols import Protocol
from protocols.bigquery.dial_settings import read_settings
from proxy import bigquery_check, cli
from proxy.bigquery_check import PROJECT_NEEDED, READ, RESOURCE_MANAGER
from tests.peers.certificates import Authority

CANARY = "canary-bq-check-91ab"
OTHER = "canary-bq-check-other-5d"
JOBS = "/bigquery/v2/projects/acme-prod/jobs"
DATASETS = "/bigquery/v2/projects/acme-prod/datasets"
TABLE = f"{DATASETS}/crm/tables/people"
PROJECT = "/v1/projects/acme-prod:testIamPermissions"
TAXONOMY = "projects/p/locations/eu/taxonomies/1/policyTags"
COLUMNS = [
    {"name": "id", "type": "INTEGER"},
    {"name": "email", "type": "STRING", "policyTags": {"names": [f"{TAXONOMY}/2"]}},
    {
        "name": "addr",
        "type": "RECORD",
        "fields": [{"name": "zip", "type": "STRING", "policyTags": {"names": [f"{TAXONOMY}/3"]}}],
    },
]  # fmt: skip

Answer = tuple[int, Mapping[str, Any]]


def failed(status: int, reason: str, message: str) -> Answer:
    return status, {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}}


@dataclass
class Server:
    """The service. rights: what the account has on tables; at: on the project. answers: in place of the usual ones."""

    rights: frozenset[str] = frozenset({READ})
    at: frozenset[str] = frozenset(PROJECT_NEEDED)
    datasets: tuple[str, ...] = ("crm",)
    columns: list[dict[str, Any]] = field(default_factory=lambda: COLUMNS[:1])
    keeps_tagged: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)
    redirect: str = ""
    asked: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    port: int = 0

    def answer(self, method: str, path: str, body: Mapping[str, Any]) -> Answer:
        if path in self.answers:
            return self.answers[path]
        if (method, path) == ("POST", JOBS):
            return self._job(body)
        if path == DATASETS:
            named = [{"datasetReference": {"projectId": "acme-prod", "datasetId": name}} for name in self.datasets]
            return 200, {"datasets": named}
        if path == f"{DATASETS}/crm/tables":
            reference = {"projectId": "acme-prod", "datasetId": "crm", "tableId": "people"}
            return 200, {"tables": [{"tableReference": reference, "type": "TABLE"}]}
        if path == TABLE:
            reference = {"projectId": "acme-prod", "datasetId": "crm", "tableId": "people"}
            return 200, {"tableReference": reference, "type": "TABLE", "schema": {"fields": self.columns}}
        if path == f"{TABLE}:testIamPermissions":
            return 200, {"permissions": sorted(self.rights & set(body["permissions"]))}
        if path == PROJECT:
            return 200, {"permissions": sorted(self.at & set(body["permissions"]))}
        if path == "/bigquery/v2/projects":
            return 200, {"projects": [{"id": "acme-prod", "numericId": "1", "friendlyName": "x"}]}
        return failed(404, "notFound", f"Not found: {path}")

    def _job(self, body: Mapping[str, Any]) -> Answer:
        configuration = body["configuration"]
        assert configuration["dryRun"] is True
        assert configuration["query"]["useLegacySql"] is False
        if self.keeps_tagged and "email" in configuration["query"]["query"]:
            return failed(403, "accessDenied", "Access Denied: the columns have policy tags")
        job = {"jobReference": {"projectId": "acme-prod", "jobId": "j", "location": "EU"}, "status": {"state": "DONE"}}
        statistics = {"query": {"totalBytesProcessed": "0"}}
        return 200, {**body, **job, "statistics": statistics, "user_email": "gate@acme.iam.gserviceaccount.com"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@pytest.fixture
def server(authority: Authority) -> Iterator[Server]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one segment for head and body

        def do_GET(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            path = self.path.partition("?")[0]
            made.asked.append((self.command, path, body))
            made.tokens.add(self.headers.get("Authorization", ""))
            status, value = (302, {}) if made.redirect else made.answer(self.command, path, body)
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
    context.set_alpn_protocols(["h2", "http/1.1"])  # of the Storage API no more than the handshake is asked
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


Check = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def check(
    tmp_path: Path,
    server: Server,
    authority: Authority,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Check:
    """Run the command with --json on one target; no canary is in what it says."""
    mine = Protocol("bigquery", frozenset({"read_rows"}), 443, _nobody, check=read_settings)
    known = {"bigquery": mine, **protocols.load()}
    monkeypatch.setattr(protocols, "load", lambda: known)
    monkeypatch.chdir(tmp_path)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there: whoever uses it fails
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    for name, text in (("token", CANARY), ("other", OTHER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)

    def run(
        *arguments: str,
        section: str = "",
        port: int = 0,
        database: str = "acme-prod",
        credential: str = "credential: {token_file: token}, ",
        ca: str = "",
        storage: str = "",
    ) -> tuple[int, list[dict[str, Any]]]:
        storage = storage or f"storage: '127.0.0.1:{server.port}'"
        keys = f"ca_file: {ca or authority.ca_file}, {storage}" + (f", {section}" if section else "")
        (tmp_path / "gatecast.yaml").write_text(
            "listeners: [{name: bq, protocol: bigquery, address: '127.0.0.1:0', tls: {cert: a, key: b}}]\n"
            f"targets:\n  - {{name: dwh, protocol: bigquery, host: 127.0.0.1, port: {port or server.port},\n"
            f"     database: '{database}', {credential}bigquery: {{{keys}}}}}\nrules: []\n"
        )
        plain = cli.main(["bigquery", "check", "dwh", *arguments])
        told = capsys.readouterr()
        code = cli.main(["bigquery", "check", "--json", *arguments])
        shown = capsys.readouterr()
        assert code == plain
        for canary in (CANARY, OTHER):
            assert canary not in told.out + told.err + shown.out + shown.err
        results = json.loads(shown.out)["targets"]
        for result in results:
            for words in (result["error"], result["advice"], *result["notes"]):
                assert words in told.out
        return code, results

    return run


async def _nobody(*_: object) -> None:
    raise AssertionError("nobody connects here")


def test_a_good_target(check: Check, server: Server) -> None:
    code, (found,) = check()
    assert code == 0, found["error"]
    assert found["address"] == f"https://127.0.0.1:{server.port}"
    assert found["storage"] == f"127.0.0.1:{server.port}"
    assert (found["user"], found["project"]) == ("gate@acme.iam.gserviceaccount.com", "acme-prod")
    assert found["datasets"] == ["acme-prod.crm"]
    assert found["held"] == ["bigquery.jobs.create", READ]
    assert not any(found[key] for key in ("missing", "too_much", "notes", "tagged", "error"))
    assert server.tokens == {f"Bearer {CANARY}"}
    assert not [path for _, path, _ in server.asked if path == PROJECT], "only Google's own Resource Manager is asked"
    assert {method for method, _, _ in server.asked} == {"GET", "POST"}


def test_policy_tags_of_columns(check: Check, server: Server) -> None:
    server.columns = COLUMNS
    _, (found,) = check()
    assert found["tagged"] == ["acme-prod.crm.people.email", "acme-prod.crm.people.addr.zip"]
    assert "the account may ask for columns with policy tags" in found["notes"][0]
    texts = [body["configuration"]["query"]["query"] for _, path, body in server.asked if path == JOBS]
    assert "SELECT `email` FROM `acme-prod.crm.people`" in texts
    server.keeps_tagged = True
    code, (found,) = check()
    assert code == 0
    assert "BigQuery keeps tagged columns from this account" in found["notes"][0]


def test_rights_that_are_missing_or_too_much(check: Check, server: Server) -> None:
    server.rights = frozenset({"bigquery.tables.setIamPolicy", "bigquery.tables.updateData", "bigquery.tables.delete"})
    code, (found,) = check()
    assert code == 1
    assert [each["right"] for each in found["missing"]] == [READ]
    assert [each["right"] for each in found["too_much"]] == ["bigquery.tables.setIamPolicy"]
    assert found["notes"] == ["the account may write and delete: so may whom the rules allow it"]
    server.rights |= {READ}
    assert check()[0] == 0
    assert check("--strict")[0] == 1


def test_the_projects_rights_are_asked_of_google_s_resource_manager(
    check: Check, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bigquery_check, "API_HOST", "127.0.0.1")
    assert RESOURCE_MANAGER == "https://cloudresourcemanager.googleapis.com"
    monkeypatch.setattr(bigquery_check, "RESOURCE_MANAGER", f"https://127.0.0.1:{server.port}")
    server.at = frozenset({"bigquery.jobs.create", "bigquery.readsessions.create", "bigquery.jobs.listAll"})
    code, (found,) = check()
    assert code == 1
    assert [each["right"] for each in found["missing"]] == ["bigquery.readsessions.getData"]
    assert [each["right"] for each in found["too_much"]] == ["bigquery.jobs.listAll"]
    assert found["held"] == ["bigquery.jobs.create", READ, "bigquery.readsessions.create"]
    server.answers[PROJECT] = failed(403, "forbidden", f"the API is turned off {CANARY}")
    code, (found,) = check()
    assert code == 0
    assert "the project's rights cannot be asked for: BigQuery answers 403: the API is turned off [token]" in str(found)


def test_each_account_is_checked(check: Check, server: Server) -> None:
    accounts = "accounts: [{groups: [analysts, ops], credential: {token_file: other}}]"
    code, found = check(section=accounts)
    assert code == 0
    assert [each["account"] for each in found] == ["", "analysts, ops"]
    assert server.tokens == {f"Bearer {CANARY}", f"Bearer {OTHER}"}
    server.tokens.clear()
    _, found = check(section=accounts, credential="")
    assert [each["account"] for each in found] == ["analysts, ops"]
    assert server.tokens == {f"Bearer {OTHER}"}
    code, found = check(section=accounts.replace("other", "missing"))
    assert code == 1
    assert [each["ok"] for each in found] == [True, False]
    assert "cannot be read" in found[1]["advice"] or "No such file" in found[1]["advice"]


def test_a_target_that_names_no_project(check: Check, server: Server) -> None:
    code, (found,) = check(database="")
    assert (code, found["project"]) == (0, "acme-prod")
    assert "database: names no project" in found["notes"][0]
    server.answers["/bigquery/v2/projects"] = 200, {"projects": []}
    code, (found,) = check(database="")
    assert code == 1
    assert found["advice"] == "say which one is billed: database: PROJECT"


def test_nothing_is_visible_or_a_dataset_is_not(check: Check, server: Server) -> None:
    server.answers[f"{DATASETS}/crm/tables"] = failed(403, "accessDenied", "Access Denied: Dataset acme-prod:crm")
    code, (found,) = check()
    assert code == 0
    assert "acme-prod.crm: BigQuery answers 403" in found["notes"][0]
    server.datasets = ()
    assert "no dataset of acme-prod is visible" in check()[1][0]["notes"][0]


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "it does not take the credential"),
        (403, "roles/bigquery.jobUser"),
        (404, "database: names a project that is not there"),
        (500, "the trouble is on the service's side"),
        (503, "the trouble is on the service's side"),
    ],
)
def test_what_the_service_refuses(check: Check, server: Server, status: int, advice: str) -> None:
    server.answers[JOBS] = failed(status, "rateLimitExceeded", f"no {CANARY} " + "x" * 5000)
    code, (found,) = check()
    assert code == 1
    assert f"BigQuery answers {status}: " in found["error"]
    assert "[token]" in found["error"]
    assert len(found["error"]) < 400
    assert advice in found["advice"]
    assert len([path for _, path, _ in server.asked if path == JOBS]) == 2, "each run asks once, retryable or not"


def test_it_follows_no_redirects(check: Check, server: Server) -> None:
    server.redirect = "https://127.0.0.1:9/elsewhere"
    code, (found,) = check()
    assert code == 1
    assert "BigQuery answers 302" in found["error"]
    assert "never follows" in found["advice"]


def test_what_answers_is_something_else(check: Check, server: Server) -> None:
    server.answers[JOBS] = 200, {"hello": "world"}
    server.answers[DATASETS] = 200, {"datasets": [{"x": 1}]}
    code, (found,) = check()
    assert code == 1
    assert found["error"] == "what answers there is no BigQuery"


def test_an_unknown_authority_and_a_wrong_name(check: Check, server: Server, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    stranger = Authority(tmp_path / "elsewhere", "stranger")
    code, (found,) = check(ca=str(stranger.ca_file))
    assert code == 1
    assert "bigquery.ca_file" in found["error"] + found["advice"]
    assert not server.asked, "nothing is shown to a stranger"
    code, (found,) = check(section="server_name: elsewhere.example")
    assert code == 1
    assert "bigquery.server_name" in found["error"] + found["advice"]
    assert not server.asked


def test_the_storage_api_is_not_there(check: Check) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        code, (found,) = check(storage=f"storage: '{place}'")
    assert code == 1
    assert f"{place}: the Storage API does not answer" in found["error"]
    assert "storage: host:port" in found["advice"]


def test_the_storage_api_speaks_something_else(check: Check, authority: Authority) -> None:
    pair = authority.issue("old")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_file, pair.key_file)

    def greet(listening: socket.socket) -> None:
        for _ in range(2):
            sock, _ = listening.accept()
            with context.wrap_socket(sock, server_side=True) as tls:
                tls.recv(1)  # the client has seen enough, and closes

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=greet, args=(listening,))
        thread.start()
        code, (found,) = check(storage=f"storage: '127.0.0.1:{listening.getsockname()[1]}'")
        thread.join()
    assert code == 1
    assert "speaks no HTTP/2" in found["error"]


def test_a_storage_api_without_tls_on_this_machine(check: Check) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        code, (found,) = check(storage=f"storage: '{place}', storage_plain: true")
    assert (code, found["storage"]) == (0, f"{place}, without TLS")


def test_only_targets_of_bigquery(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    check()
    assert cli.main(["bigquery", "check", "nothing"]) == 1
    assert "nothing: is no target of BigQuery; those of BigQuery are dwh" in capsys.readouterr().err
