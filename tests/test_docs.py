"""The documentation as a test: runnable blocks run, commands and files that are named exist."""

from __future__ import annotations

import ast
import asyncio
import base64
import os
import re
import shlex
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from proxy import cli, trying
from proxy.certificates import self_signed
from proxy.checking import check_config
from proxy.core.events import KINDS
from proxy.demo.house import House, open_house
from proxy.demo.shop import open_shop
from proxy.masking import ACTIONS, DETECTORS
from proxy.policy.conditions import VARIABLES
from proxy.sections import Target
from proxy.ssh_sections import IdentitySsh, ListenerSsh, TargetSsh
from proxy.store.approvals import State
from tests.test_cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    return [(found[1], found[2].strip(), found[3]) for found in BLOCK.finditer(page.read_text())]


RUNNABLE = [
    pytest.param(page, text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, mark, text) in enumerate(blocks(page))
    if language in ("sh", "bash") and "runnable" in mark.split()
]


def test_there_are_pages_and_runnable_blocks() -> None:
    assert {
        "README.md",
        "CHANGELOG.md",
        "operations.md",
        "policy.md",
        "masking.md",
        "postgres.md",
        "ssh.md",
        "tape.md",
    } <= {page.name for page in PAGES}
    assert RUNNABLE


@pytest.mark.parametrize(("page", "text"), RUNNABLE)
def test_runnable_blocks_run(page: Path, text: str, tmp_path: Path) -> None:
    scripts = tmp_path / "bin"
    scripts.mkdir()
    command = scripts / "gatecast"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m proxy "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{text}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_named_exist(page: Path) -> None:
    known = {" ".join(path) for path in COMMANDS}
    groups = {path[0] for path in COMMANDS if len(path) == 2}
    wrong = []
    for found in re.finditer(r"gatecast ([a-z]+)(?: ([a-z][a-z-]*(?:\|[a-z]+)*))?", "\n".join(code(page))):
        command, rest = found[1], found[2]
        if command not in known:
            wrong.append(found[0])
        elif command in groups and rest:
            wrong += [found[0] for word in rest.split("|") if f"{command} {word}" not in known]
    assert not wrong


def code(page: Path) -> list[str]:
    """The code of a page: its blocks, and what stands between single backticks."""
    text = page.read_text()
    return [*(block for _, _, block in blocks(page)), *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = {
        word
        for text in code(page)
        for word in re.findall(r"(?<![\w/.-])(?:proxy|protocols|recorder|tests|deploy|docs|benchmarks)/[\w/.-]+", text)
    }
    missing = sorted(name for name in named if not (ROOT / name.rstrip("/.")).exists())
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_settings_that_operations_names_exist() -> None:
    from proxy.config import json_schema

    text = str(json_schema())
    page = (ROOT / "docs" / "operations.md").read_text()
    for name in re.findall(r"`(limits|identity)\.(\w+)`", page):
        assert f"'{name[1]}'" in text, name


def test_help_names_the_environment() -> None:
    text = cli.parser().format_help()
    for name in re.findall(r"\bGATECAST_[A-Z]+\b", (ROOT / "docs" / "operations.md").read_text()):
        assert name in text


# -- log events -------------------------------------------------------------------------------------------

LEVELS = {"info", "warning", "error", "exception", "critical"}
# Names that are put together where they are logged, by the text of the call's first argument.
MADE_UP = {
    "f'approval-{record.state}'": {f"approval-{state}" for state in get_args(State)},
    "f'{what}-failed'": {"anchor-failed", "witness-failed"},
    "f'{what}-{event}'": {"anchor-alarm", "witness-alarm", "witness-fork"},
    "f'{what}-works-again'": {"anchor-works-again", "witness-works-again"},
    "f'vault-{action}'": {"vault-hold-added", "vault-hold-released", "vault-expire-confirmed", "vault-erase-confirmed"},
    "event": {"vault-unreachable", "vault-still-unreachable"},  # proxy/vault/task.py; services.py hands on recorder's
}
NOTARY = {"anchor.py", "witness.py"}  # theirs are named by proxy/notary.py


def test_the_events_that_operations_names_are_all_there_are() -> None:
    logged: set[str] = set()
    for path in [file for top in ("proxy", "protocols", "recorder") for file in (ROOT / top).rglob("*.py")]:
        for name in events_of(ast.parse(path.read_text()), of_recorder=path.parent.name == "recorder"):
            if path.name not in NOTARY or path.parent.name != "recorder":
                logged |= MADE_UP[ast.unparse(name)] if not isinstance(name, ast.Constant) else {str(name.value)}
    page = (ROOT / "docs" / "operations.md").read_text()
    tables, ordinary = page[page.index("\n## Logs") :].split("The ordinary course:")
    cells = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([^`]+)`", "\n".join([*cells, ordinary]))
    assert sorted(named) == sorted(logged)


def events_of(tree: ast.AST, of_recorder: bool) -> Iterator[ast.expr]:
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args:
            loggers = ("log", "_log", "self._log")
            if (call.func.attr in LEVELS and ast.unparse(call.func.value) in loggers) or (
                of_recorder and call.func.attr in ("on_event", "_on_event")
            ):
                yield call.args[0]


# -- rules, configurations and cases in the pages ---------------------------------------------------------

TARGETS = """\
targets:
  - {name: shop, host: 127.0.0.1, database: shop, credential: {user: x}, labels: {env: prod}}
  - {name: shop-test, host: 127.0.0.1, database: shop, credential: {user: x}, labels: {env: staging}}
  - {name: web, protocol: ssh, host: 127.0.0.1, credential: {user: deploy, password_file: shop.password},
     ssh: {known_hosts: known_hosts}, labels: {env: prod}}
  - {name: cluster, protocol: kubernetes, host: 127.0.0.1, credential: {token_file: cluster.token},
     kubernetes: {ca_file: ca.crt}, labels: {env: prod}}
"""
LISTENERS = "listeners: [{name: pg, protocol: postgres, address: '127.0.0.1:0', plain: true}]\n"


def marked(language: str, mark: str) -> list[Any]:
    """The blocks of one language that bear a mark, as parameters (page, text)."""
    return [
        pytest.param(page, text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, (found, marks, text) in enumerate(blocks(page))
        if found == language and mark in marks.split()
    ]


def test_every_kind_of_block_is_there() -> None:
    for language, mark in (("yaml", "rules"), ("yaml", "config"), ("yaml", "cases"), ("sh", "gateway")):
        assert marked(language, mark), (language, mark)
    assert len(marked("python", "gateway")) == 2


def write_config(folder: Path, text: str, rules: str = "rules: []\n") -> Path:
    """A configuration of the text, with all that it names and whatever a whole one needs besides."""
    self_signed(folder, ["localhost"])
    (folder / "shop.password").write_text("x\n")
    (folder / "shop.password").chmod(0o600)
    (folder / "cluster.token").write_text("x\n")
    (folder / "cluster.token").chmod(0o600)
    (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())
    (folder / "web.key").write_bytes((folder / "tls.key").read_bytes())
    (folder / "web.key").chmod(0o600)
    key = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(range(32))).decode()
    (folder / "known_hosts").write_text(f"127.0.0.1,web.internal ssh-ed25519 {key}\n")
    (folder / "rules.yaml").write_text(rules)
    keys = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    parts = [text]
    parts += [part for part in (LISTENERS, TARGETS) if part.partition(":")[0] not in keys]
    path = folder / "gatecast.yaml"
    path.write_text("".join(parts) + "rules_file: rules.yaml\n")
    return path


@pytest.mark.parametrize(("page", "text"), marked("yaml", "config"))
def test_configurations_are_good(page: Path, text: str, tmp_path: Path) -> None:
    found = check_config(write_config(tmp_path, text))
    assert not [warning for warning in found["warnings"] if "durable" not in warning]


@pytest.mark.parametrize(("page", "text"), marked("yaml", "rules"))
def test_rules_load(page: Path, text: str, tmp_path: Path) -> None:
    found = check_config(write_config(tmp_path, "", text))
    assert found["rules"]["count"] == text.count("- name: ")


@pytest.mark.parametrize(("page", "text"), marked("yaml", "cases"))
def test_cases_pass_on_their_page_s_rules(page: Path, text: str, tmp_path: Path) -> None:
    rules = [rules for language, mark, rules in blocks(page) if (language, mark) == ("yaml", "rules")]
    path = write_config(tmp_path, "", rules[-1])
    (tmp_path / "cases.yaml").write_text(text)
    data, shown, code = trying.test(path, tmp_path / "cases.yaml")
    assert code == 0, shown
    assert len(data["cases"]) == text.count("- name: ")


def table_rows(page: str, first: str) -> dict[str, str]:
    """The rows of a table by their first cell, found by its head."""
    text = (ROOT / "docs" / page).read_text()
    body = text[text.index(f"| {first} |") :].split("\n\n")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines()[2:]]
    return {row[0].strip(): row[1].strip() for row in rows}


def test_kinds_are_what_the_page_says() -> None:
    rows = table_rows("policy.md", "kind")
    assert {kind.strip("`") for kind in rows} == set(KINDS)
    read = trying.to_command()
    wrong = [
        (text, kind, read(text).kind)
        for kind, cell in rows.items()
        for text in re.findall(r"`([^`]+)`", cell)
        if read(text).kind != kind.strip("`")
    ]
    assert not wrong


def test_the_page_names_all_variables_kinds_actions_and_detectors() -> None:
    shown = "\n".join(table_rows("policy.md", "variable"))
    assert set(re.findall(r"`(\w+\.\w+)`", shown)) == set(VARIABLES)
    masking = (ROOT / "docs" / "masking.md").read_text()
    assert {cell.partition("`")[2].partition("`")[0] for cell in table_rows("masking.md", "action")} == set(ACTIONS)
    assert not [name for name in DETECTORS if f"`{name}`" not in masking]


def test_settings_of_the_gateway_s_own_are_all_there() -> None:
    used = set(re.findall(r'"(gatecast\.\w+)"', (ROOT / "protocols" / "postgres" / "serve.py").read_text()))
    assert {name.strip("`") for name in table_rows("postgres.md", "setting")} == used


def test_fields_of_targets_are_all_there() -> None:
    page = (ROOT / "docs" / "postgres.md").read_text()
    assert not [name for name in Target.model_fields if not re.search(rf"\b{name}\b", page)]


def test_fields_of_ssh_are_all_there() -> None:
    page = (ROOT / "docs" / "ssh.md").read_text()
    fields = [*TargetSsh.model_fields, *ListenerSsh.model_fields, *IdentitySsh.model_fields]
    assert not [name for name in fields if not re.search(rf"\b{name}\b", page)]


# -- blocks marked gateway, in the demo's folder with the agent's token ------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_shop() as shop, open_house(tmp_path_factory.mktemp("docs"), shop) as house:
        yield house


@pytest.mark.peer
@pytest.mark.parametrize(("page", "text"), marked("sh", "gateway"))
def test_shell_blocks_work_on_a_gateway(house: House, page: Path, text: str) -> None:
    run_block(house, ["bash", "-euo", "pipefail", "-c"], text)


@pytest.mark.peer
@pytest.mark.parametrize(("page", "text"), marked("python", "gateway"))
def test_python_blocks_work_on_a_gateway(house: House, page: Path, text: str) -> None:
    assert "desk lamp" in run_block(house, [sys.executable, "-c"], text)


def run_block(house: House, command: list[str], text: str) -> str:
    """Run a block; 6432 stands for the port that the gateway has."""
    done = subprocess.run(
        [*command, re.sub(r"\b6432\b", str(house.tls_port), text)],
        cwd=house.folder,
        env=house.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.peer
def test_logins_fail_with_the_states_that_the_page_names(house: House) -> None:
    rows = table_rows("postgres.md", "what")
    good = {"host": "localhost", "port": str(house.tls_port), "dbname": "shop", "user": "ana"}
    good |= {"password": house.agent_token, "sslmode": "verify-full", "sslrootcert": str(house.folder / "tls.crt")}
    for what, wrong in (
        ("wrong, expired or revoked token", {"password": "gct_wrong"}),
        ("no TLS where it is needed; connecting is denied", {"sslmode": "disable"}),
        ("no such target", {"dbname": "nothing"}),
    ):
        assert rows[what] == sqlstate(house, {**good, **wrong}), what


def sqlstate(house: House, parameters: dict[str, str]) -> str:
    """The SQLSTATE of a failing login: libpq tells no client of it, asyncpg does."""
    import asyncpg

    async def connect() -> str:
        tls = (
            False if parameters["sslmode"] == "disable" else ssl.create_default_context(cafile=house.folder / "tls.crt")
        )
        try:
            await asyncpg.connect(
                host=parameters["host"],
                port=int(parameters["port"]),
                database=parameters["dbname"],
                user=parameters["user"],
                password=parameters["password"],
                ssl=tls,
            )
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        return "none"

    return asyncio.run(connect())
