"""BigQuery in gatecast.yaml: what targets and listeners become, what is refused, whose credential a caller gets."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import protocols
from protocols import Protocol
from protocols.bigquery.dial_settings import MAXIMUM_BYTES_BILLED, read_settings
from protocols.bigquery.methods import VERBS
from protocols.bigquery.sts import Seal
from proxy import trying
from proxy.app import Gateway, fronts_of
from proxy.bigquery_files import KEY_NAME, Warehouse, uncovered
from proxy.bigquery_sections import (
    ACCOUNTS_LIMIT,
    UNIVERSE_LIMIT,
    AccountCredential,
    ListenerBigQuery,
    TargetBigQuery,
)
from proxy.certificates import self_signed
from proxy.checking import check_config, render_check
from proxy.config import ConfigErrors, json_schema
from proxy.core.errors import TargetPeerError
from proxy.core.gate import Gate
from proxy.core.parties import Identity, Secret, Target
from proxy.core.stream import Stream
from proxy.core.warehouse import AnalysisLimits
from proxy.credentials.gcp import GcpSource
from proxy.credentials.static import Account, StaticCredential, StaticCredentials
from proxy.policy.bigquery_workers import Analysts
from proxy.services import Services, credentials_of, open_services
from proxy.snapshot import Snapshot, read_snapshot
from tests.test_docs import blocks, write_config

CANARY = "canary-bq-config-77d1"
KEY = bytes(32)
LISTENER = """\
  - name: bq
    protocol: bigquery
    address: '127.0.0.1:0'
    tls: {cert: tls.crt, key: tls.key}
    bigquery: {universe: gw.example}
"""
GOOD = "    credential: {token_file: token}\n"


async def _serve(user: Stream, gate: Gate) -> None:
    raise AssertionError("nobody connects here")


@pytest.fixture(autouse=True)
def bigquery(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol is there, also before its folder says so."""
    mine = Protocol("bigquery", VERBS, 443, _serve, alpn=("h2", "http/1.1"), check=read_settings)
    known = {"bigquery": mine, **protocols.load()}
    monkeypatch.setattr(protocols, "load", lambda: known)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    self_signed(tmp_path, ["localhost", "*.gw.example"])
    shutil.copy(tmp_path / "tls.crt", tmp_path / "ca.crt")
    for name in ("token", "analysts.token"):
        (tmp_path / name).write_text(f"{CANARY}-{name}\n")
        (tmp_path / name).chmod(0o600)
    return tmp_path


def written(folder: Path, target: str, listeners: str = LISTENER) -> Path:
    path = folder / "gatecast.yaml"
    path.write_text(
        f"state: state\nlisteners:\n{listeners}targets:\n  - name: dwh\n    protocol: bigquery\n{target}rules: []\n"
    )
    return path


def snapshot(folder: Path, target: str) -> Snapshot:
    return read_snapshot(written(folder, target), KEY)


def dwh(folder: Path, target: str) -> tuple[Target, StaticCredential]:
    found = snapshot(folder, target)
    return found.targets["dwh"], credentials_of(found)["dwh"]


def problems(folder: Path, target: str, listeners: str = LISTENER) -> list[str]:
    path = written(folder, target, listeners)
    with pytest.raises(ConfigErrors) as caught:
        read_snapshot(path, KEY)
    assert CANARY not in str(caught.value)
    assert all(one.startswith(f"{path}:") for one in caught.value.problems)
    return [one.removeprefix(f"{path}:") for one in caught.value.problems]


# -- targets ------------------------------------------------------------------------------------------


def test_a_target_and_its_defaults(folder: Path) -> None:
    target, source = dwh(folder, GOOD)
    assert (target.host, target.port, target.database) == ("bigquery.googleapis.com", 443, "")
    settings = read_settings(target)
    assert (settings.storage_host, settings.storage_port) == ("bigquerystorage.googleapis.com", 443)
    assert (settings.maximum_bytes_billed, settings.price_per_tib, settings.dry_run) == (2**40, 6.25, True)
    assert settings.trusted_routines == frozenset()
    assert target.settings["session_idle"] == 300.0
    assert source == StaticCredential("", per_request=True, token_file=folder / "token")


def test_a_target_with_everything(folder: Path) -> None:
    text = """\
    host: bq.internal
    port: 8443
    database: acme-billing
    credential: {token_env: TOKEN}
    connect_timeout: 3s
    limits: {max_connections: 7}
    labels: {env: prod}
    bigquery:
      ca_file: ca.crt
      server_name: bigquery
      storage: "[::1]:9060"
      storage_plain: true
      maximum_bytes_billed: 20GiB
      price_per_tib: 7.5
      dry_run: never
      rewrite: where-exact
      trusted_routines: acme-prod.fn.clean
      session_idle: 90s
"""
    target, source = dwh(folder, text)
    assert (target.host, target.port, target.database) == ("bq.internal", 8443, "acme-billing")
    assert target.settings == {
        "ca_file": str(folder / "ca.crt"),
        "server_name": "bigquery",
        "storage": "[::1]:9060",
        "storage_plain": True,
        "maximum_bytes_billed": 20 << 30,
        "price_per_tib": 7.5,
        "dry_run": "never",
        "rewrite": "where-exact",
        "trusted_routines": ("acme-prod.fn.clean",),
        "session_idle": 90.0,
        "connect_timeout_seconds": 3.0,
        "max_connections": 7,
    }
    settings = read_settings(target)
    assert (settings.storage_host, settings.storage_port, settings.storage_plain) == ("::1", 9060, True)
    assert not settings.dry_run
    assert settings.rewrite
    assert settings.trusted_routines == {"acme-prod.fn.clean"}
    assert source.token_env == "TOKEN"


@pytest.mark.parametrize(
    ("text", "size"), [("1TiB", 2**40), ("2 TB", 2**41), ("500MiB", 500 << 20), (10, 10), (str(2**63 - 1), 2**63 - 1)]
)
def test_sizes_of_warehouses_have_terabytes(folder: Path, text: object, size: int) -> None:
    target, _ = dwh(folder, f"{GOOD}    bigquery: {{maximum_bytes_billed: {text}}}\n")
    assert target.settings["maximum_bytes_billed"] == size


@pytest.mark.parametrize("text", ["0", "1PiB", "-5", "9223372036854775808", "8388608TiB", "1.5TiB"])
def test_sizes_that_mean_nothing(folder: Path, text: str) -> None:
    assert "maximum_bytes_billed" in problems(folder, f"{GOOD}    bigquery: {{maximum_bytes_billed: {text}}}\n")[0]


def test_credentials_of_google(folder: Path) -> None:
    text = "    credential: {gcp: {%s}}\n"
    assert dwh(folder, text % "key_file: sa.json")[1].gcp == GcpSource(folder / "sa.json")
    assert dwh(folder, text % "metadata: true")[1].gcp == GcpSource(None)
    assert "give key_file, or metadata: true" in problems(folder, text % "metadata: false")[0]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("    credential: {}\n", "11: targets[0].credential: give one of token_env, token_file or gcp"),
        ("    credential: {token_env: A, token_file: token}\n", "credential: give one of token_env"),
        ("    credential: {token_file: token, user: me}\n", "credential.user: means nothing to protocol bigquery"),
        (
            "    credential: {token_file: token, key_file: k}\n",
            "credential.key_file: means nothing to protocol bigquery",
        ),
        (
            "    credential: {token_file: token, kubeconfig: k}\n",
            "credential.kubeconfig: means nothing to protocol bigquery",
        ),
        (f"{GOOD}    sslmode: require\n", "sslmode: means nothing to protocol bigquery"),
        (f"{GOOD}    sandbox: true\n", "sandbox: means nothing to protocol bigquery"),
        (f"{GOOD}    kubernetes: {{}}\n", "kubernetes: means nothing to protocol bigquery"),
        (f"{GOOD}    database: 'a b'\n", "database: is the id of a project"),
        (f"{GOOD}    bigquery: {{storage: nowhere}}\n", "storage is host:port"),
        (f"{GOOD}    bigquery: {{storage: 'h:1', storage_plain: true}}\n", "storage_plain is true or false"),
        (f"{GOOD}    bigquery: {{trusted_routines: [clean]}}\n", "trusted_routines are of the form"),
        (f"{GOOD}    bigquery: {{dry_run: sometimes}}\n", "dry_run"),
        (f"{GOOD}    bigquery: {{ca_file: token}}\n", "holds no certificate in PEM form"),
        (f"{GOOD}    bigquery: {{maximum_bytes: 1}}\n", "unknown key; did you mean maximum_bytes_billed?"),
        ("", "targets[0].credential: is missing"),
        ("    bigquery: {accounts: []}\n", "targets[0].credential: is missing"),
        ("    bigquery: {accounts: [{groups: [], credential: {token_env: A}}]}\n", "accounts[0].groups"),
        ("    bigquery: {accounts: [{groups: a, credential: {}}]}\n", "give one of token_env, token_file or gcp"),
        ("    bigquery: {accounts: [{groups: a}]}\n", "accounts[0].credential: is missing"),
    ],
)
def test_what_is_wrong_with_a_target_has_its_line(folder: Path, target: str, told: str) -> None:
    found = problems(folder, target)
    assert told in found[0], found
    assert len(found) == 1


def test_what_belongs_to_bigquery_means_nothing_elsewhere(folder: Path) -> None:
    listeners = "  - {name: pg, protocol: postgres, address: '127.0.0.1:0', plain: true, bigquery: {}}\n"
    path = folder / "gatecast.yaml"
    target = "{name: pg, host: h, credential: {user: u, token_env: T}, bigquery: {dry_run: never}}"
    path.write_text(f"listeners:\n{listeners}targets: [{target}]\nrules: []\n")
    with pytest.raises(ConfigErrors) as caught:
        read_snapshot(path, KEY)
    assert [one.split(": ", 1)[1] for one in caught.value.problems] == [
        "targets[0].credential.token_env: means nothing to protocol postgres",
        "listeners[0].bigquery: means nothing to protocol postgres",
        "targets[0].bigquery: means nothing to protocol postgres",
    ]


# -- listeners ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listener", "told"),
    [
        ("address: '127.0.0.1:1'", "give tls: {cert, key}"),
        ("address: '127.0.0.1:1', plain: true", "needs tls: {cert, key}: Google's libraries"),
        ("address: '127.0.0.1:1', tls: {cert: tls.crt, key: tls.key}, login: oauth", "login"),
        ("address: '127.0.0.1:1', tls: {cert: tls.crt, key: tls.key}, bigquery: {universe: localhost}", "universe"),
        ("address: '127.0.0.1:1', tls: {cert: tls.crt, key: tls.key}, bigquery: {universe: a..b}", "universe"),
        ("address: '127.0.0.1:1', tls: {cert: tls.crt, key: tls.key}, bigquery: {universe: 'a.b/c'}", "universe"),
    ],
)
def test_what_is_wrong_with_a_listener(folder: Path, listener: str, told: str) -> None:
    assert told in problems(folder, GOOD, f"  - {{name: bq, protocol: bigquery, {listener}}}\n")[0]


@pytest.mark.parametrize(("length", "good"), [(-1, True), (0, True), (1, False)])
def test_the_longest_universe(folder: Path, length: int, good: bool) -> None:
    name = ".".join(["a" * 45] * 5)  # 229 characters
    universe = name + "b" * (UNIVERSE_LIMIT + length - len(name))
    assert len(universe) == UNIVERSE_LIMIT + length
    listener = LISTENER.replace("gw.example", universe)
    if good:
        assert read_snapshot(written(folder, GOOD, listener), KEY).targets
    else:
        assert "universe" in problems(folder, GOOD, listener)[0]


def opened(folder: Path) -> tuple[Services, Mapping[str, object]]:
    with open_services(written(folder, GOOD)) as services:
        gate = fronts_of(services.live.snapshot.loaded, services, Gateway(services)._gate)["bq"].gate
        assert gate.jobs is services.jobs
        assert gate.warehouse is services.warehouse
        return services, gate.settings["bigquery"]


def test_tokens_outlive_a_restart_and_are_everybodys_in_one_state_directory(folder: Path) -> None:
    _, door = opened(folder)
    assert set(door) == {"universe", "seal"}
    assert door["universe"] == "gw.example"
    seal = door["seal"]
    assert isinstance(seal, Seal)
    token, _ = seal.make(Identity("ana"), "dwh", 1000.0)
    assert (folder / "state" / KEY_NAME).stat().st_mode & 0o777 == 0o600
    again = opened(folder)[1]["seal"]
    assert isinstance(again, Seal)
    bearer = again.read(token.reveal(), 1001.0)
    assert bearer is not None
    assert (bearer.identity.subject, bearer.target) == ("ana", "dwh")
    (folder / "state" / KEY_NAME).unlink()
    other = opened(folder)[1]["seal"]
    assert isinstance(other, Seal)
    assert other.read(token.reveal(), 1001.0) is None


def test_the_default_target_of_a_listener(folder: Path) -> None:
    listener = LISTENER.replace("gw.example", "gw.example, target: dwh")
    with open_services(written(folder, GOOD, listener)) as services:
        front = fronts_of(services.live.snapshot.loaded, services, Gateway(services)._gate)["bq"]
    assert front.gate.settings["bigquery"]["target"] == "dwh"
    found = problems(folder, GOOD, LISTENER.replace("gw.example", "gw.example, target: other"))
    assert found == ["7: listeners[0].bigquery.target: there is no target other of protocol bigquery"]


def test_a_gateway_without_bigquery_makes_no_key(folder: Path) -> None:
    listener = "  - {name: pg, protocol: postgres, address: '127.0.0.1:0', plain: true}\n"
    with open_services(written(folder, GOOD, listener)) as services:
        front = fronts_of(services.live.snapshot.loaded, services, Gateway(services)._gate)["pg"]
    assert "bigquery" not in front.gate.settings
    assert not (folder / "state" / KEY_NAME).exists()


def test_the_check_says_what_is_served_and_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """\
    credential: {token_env: NOT_THERE}
    bigquery:
      accounts:
        - {groups: analysts, credential: {token_file: nowhere}}
        - {groups: [ops], credential: {gcp: {key_file: sa.json}}}
"""
    monkeypatch.delenv("NOT_THERE", raising=False)
    found = check_config(written(folder, text))
    assert found["listeners"][0]["universe"] == "gw.example"
    assert "127.0.0.1:0, gw.example" in render_check(found)
    told = [warning.split(": ", 1)[1] for warning in found["warnings"]]
    assert "targets[0].credential: the environment variable NOT_THERE is not set here" in told
    assert f"targets[0].bigquery.accounts[0].credential: {folder}/nowhere cannot be read here" in told
    assert f"targets[0].bigquery.accounts[1].credential: {folder}/sa.json cannot be read here" in told
    for name in ("tls.crt", "tls.key"):
        (folder / name).unlink()
    self_signed(folder, ["bigquery.gw.example", "localhost"])
    found = check_config(written(folder, GOOD))
    assert any(
        "the certificate is not for bigquerystorage.gw.example, sts.gw.example" in text for text in found["warnings"]
    )


def test_which_certificates_are_for_a_universe(folder: Path) -> None:
    listener = snapshot(folder, GOOD).loaded.config.listeners[0]
    assert not uncovered(listener, ["*.GW.example"])
    assert not uncovered(listener, [f"{name}.gw.example" for name in ("bigquery", "bigquerystorage", "sts")])
    assert uncovered(listener, ["*.example", "gw.example"]) == [
        "bigquery.gw.example",
        "bigquerystorage.gw.example",
        "sts.gw.example",
    ]


def test_the_schema_lets_out_what_bigquery_has_not() -> None:
    schema = json_schema()
    assert schema["$defs"]["Target"]["required"] == ["name"]
    billed = schema["$defs"]["TargetBigQuery"]["properties"]["maximum_bytes_billed"]
    assert "[KMGT]iB" in json.dumps(billed)
    accounts = schema["$defs"]["TargetBigQuery"]["properties"]["accounts"]
    assert accounts["maxItems"] == ACCOUNTS_LIMIT
    assert MAXIMUM_BYTES_BILLED == 2**40  # what the description says


# -- whose credential ---------------------------------------------------------------------------------

ACCOUNTS = """\
    credential: {token_file: token}
    bigquery:
      accounts:
        - {groups: [analysts, "finance-*"], credential: {token_file: analysts.token}}
        - {groups: [ops, analysts], credential: {token_env: OPS}}
"""


def shown(credentials: StaticCredentials, target: Target, *groups: str) -> str:
    secret = asyncio.run(credentials.get(Identity("ana", groups=frozenset(groups)), target)).secret
    assert secret is not None
    return secret.reveal()


def test_the_first_account_of_the_callers_groups_counts(folder: Path) -> None:
    found = snapshot(folder, ACCOUNTS)
    target, credentials = found.targets["dwh"], StaticCredentials(credentials_of(found), {"OPS": f"{CANARY}-ops"})
    analysts = f"{CANARY}-analysts.token"
    assert shown(credentials, target, "analysts") == analysts
    assert shown(credentials, target, "ops") == f"{CANARY}-ops"
    assert shown(credentials, target, "ops", "analysts") == analysts
    assert shown(credentials, target, "finance-emea") == analysts
    assert shown(credentials, target, "Analysts") == f"{CANARY}-token"
    assert shown(credentials, target) == f"{CANARY}-token"
    (folder / "analysts.token").write_text("new")
    credentials.configure(credentials_of(found))
    assert shown(credentials, target, "analysts") == "new"
    assert shown(credentials, target) == f"{CANARY}-token"


def test_whoever_is_in_no_group_gets_nothing_where_there_is_nothing_else(folder: Path) -> None:
    text = ACCOUNTS.replace("    credential: {token_file: token}\n", "")
    found = snapshot(folder, text)
    source = credentials_of(found)["dwh"]
    assert source.absent
    assert source.accounts[0] == Account(
        ("analysts", "finance-*"), StaticCredential("", per_request=True, token_file=folder / "analysts.token")
    )
    credentials = StaticCredentials({"dwh": source}, {"OPS": "x"})
    target = found.targets["dwh"]
    assert shown(credentials, target, "ops") == "x"
    for groups in ((), ("people",), ("analyst",)):
        with capture_logs() as logs, pytest.raises(TargetPeerError, match="no usable credential for target dwh"):
            shown(credentials, target, *groups)
        assert logs[0]["event"] == "credential-missing"
        assert logs[0]["why"] == "none of its accounts is for the caller's groups"


@pytest.mark.parametrize(("count", "good"), [(ACCOUNTS_LIMIT, True), (ACCOUNTS_LIMIT + 1, False)])
def test_the_most_accounts(folder: Path, count: int, good: bool) -> None:
    entries = ", ".join(f"{{groups: g{number}, credential: {{token_env: T{number}}}}}" for number in range(count))
    text = f"    bigquery: {{accounts: [{entries}]}}\n"
    if not good:
        assert "accounts" in problems(folder, text)[0]
        return
    found = snapshot(folder, text)
    credentials = StaticCredentials(credentials_of(found), {f"T{count - 1}": "last"})
    assert shown(credentials, found.targets["dwh"], f"g{count - 1}") == "last"


def test_a_caller_s_token_is_not_anothers_after_a_fetch(folder: Path) -> None:
    """Credentials of accounts are kept apart while they are kept."""
    found = snapshot(folder, ACCOUNTS)
    target, credentials = found.targets["dwh"], StaticCredentials(credentials_of(found), {"OPS": "o"})

    async def together() -> list[Secret | None]:
        callers = [
            Identity("a", groups=frozenset({"analysts"})),
            Identity("b", groups=frozenset({"ops"})),
            Identity("c"),
        ]
        return [(await credentials.get(caller, target)).secret for caller in (*callers, *callers)]

    first = [Secret(f"{CANARY}-analysts.token"), Secret("o"), Secret(f"{CANARY}-token")]
    assert asyncio.run(together()) == first + first


# -- the reader of SQL --------------------------------------------------------------------------------


class Counted(Analysts):
    """Analysts that are counted; they start no process until they are asked."""

    made: list[Counted]

    def __init__(self, limits: AnalysisLimits) -> None:
        super().__init__(limits, workers=1)
        self.trusted = limits.trusted_routines
        self.closed = False
        self.hold: asyncio.Event | None = None
        self.started = asyncio.Event()
        type(self).made.append(self)

    async def read(self, text: str, project: str, dataset: str | None) -> object:  # type: ignore[override]
        self.started.set()
        if self.hold is not None:
            await self.hold.wait()
        return ("read", self.trusted, self.closed)

    async def close(self) -> None:
        self.closed = True
        await super().close()


def warehouse_target(*routines: str) -> dict[str, Target]:
    return {"dwh": Target("dwh", "bigquery", settings={"trusted_routines": routines})}


def test_the_reader_follows_a_reload_and_lets_texts_be_read_to_their_end() -> None:
    Counted.made = []
    targets = warehouse_target("p.d.f")

    async def main() -> None:
        nonlocal targets
        warehouse = Warehouse(lambda: targets, Counted)
        assert not Counted.made
        assert await warehouse.read("SELECT 1", "p", None) == ("read", frozenset({"p.d.f"}), False)
        targets = warehouse_target("p.d.f")  # a reload that changes nothing here
        await warehouse.read("SELECT 1", "p", None)
        assert len(Counted.made) == 1
        first = Counted.made[0]
        first.hold = asyncio.Event()
        first.started.clear()
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(warehouse.read("SELECT 2", "p", None))
            await first.started.wait()
            targets = warehouse_target("p.d.g")
            assert await warehouse.read("SELECT 3", "p", None) == ("read", frozenset({"p.d.g"}), False)
            assert not first.closed
            first.hold.set()
        assert slow.result() == ("read", frozenset({"p.d.f"}), False)
        assert first.closed
        assert not Counted.made[1].closed
        await warehouse.close()
        assert Counted.made[1].closed
        assert (await warehouse.read("SELECT 4", "p", None)).opaque
        assert len(Counted.made) == 2

    asyncio.run(main())


def test_only_a_target_of_bigquery_starts_a_process() -> None:
    async def processes(targets: dict[str, Target]) -> int:
        warehouse = Warehouse(lambda: targets)
        try:
            await warehouse.warm()
            return len(warehouse.processes)
        finally:
            await warehouse.close()
            assert not warehouse.processes

    assert asyncio.run(processes({"pg": Target("pg", "postgres")})) == 0
    assert asyncio.run(processes(warehouse_target())) == 1


# -- docs/bigquery.md ---------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "bigquery.md"


def of_page(mark: str) -> list[str]:
    return [text for language, marks, text in blocks(PAGE) if (language, marks) == ("yaml", mark)]


@pytest.mark.parametrize("text", of_page("bigquery-config"))
def test_the_page_s_configurations_are_good(text: str, tmp_path: Path) -> None:
    found = check_config(write_config(tmp_path, text))
    assert [target["host"] for target in found["targets"]] == ["bigquery.googleapis.com"]
    expected = ("durable", "cannot be read here", "the certificate is not for bigquery.gw.example")
    assert not [one for one in found["warnings"] if not any(words in one for words in expected)]


def test_the_page_s_cases_pass_on_its_rules(tmp_path: Path) -> None:
    configuration, _ = of_page("bigquery-config")
    (rules,), (cases,) = of_page("bigquery-rules"), of_page("bigquery-cases")
    path = write_config(tmp_path, configuration, rules)
    assert check_config(path)["rules"]["count"] == rules.count("- name: ") == 7
    (tmp_path / "cases.yaml").write_text(cases)
    data, shown, code = trying.test(path, tmp_path / "cases.yaml")
    assert code == 0, shown
    assert len(data["cases"]) == cases.count("- name: ") == 5


def test_the_page_names_all_keys() -> None:
    page = PAGE.read_text()
    keys = [*TargetBigQuery.model_fields, *ListenerBigQuery.model_fields, *AccountCredential.model_fields]
    assert not [name for name in keys if not re.search(rf"\b{name}\b", page)]
