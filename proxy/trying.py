"""``gatecast policy explain`` and ``policy test``: the rules of a configuration, asked without a target.

SQL is read as the gateway reads it, by the code that it decides with, but without the target's catalogue: a name
without a schema is taken for one in public (pg_...: in pg_catalog), and a view for a table.

SQL for BigQuery is put into the request that a client would send (jobs.query); anything else of it is a request line as
it goes over the wire, ``POST /bigquery/v2/projects/p/jobs``, with its body. What only the target can tell is taken from
the case: how many bytes a query reads, and the tables behind its views. Left out there: whose an id is, so that a job
or a session is taken for one's own; the Storage API; data of uploads. The text is read in this process, not in another.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from protocols.bigquery import commands as bigquery
from protocols.bigquery.dial_settings import Settings, read_settings
from protocols.bigquery.estimates import Estimate
from protocols.bigquery.requests import Asked as Request
from protocols.bigquery.requests import read_request
from protocols.postgres.meaning import Known
from protocols.postgres.reading import CommandReader
from protocols.ssh.verbs import VERBS
from proxy.core.errors import ConfigError
from proxy.core.events import Command
from proxy.core.http.heads import BadRequest, RequestHead
from proxy.core.parties import Identity, Target
from proxy.core.statement import Statement
from proxy.core.warehouse import Analysis, AnalysisLimits
from proxy.policy.bigquery import analyse
from proxy.policy.cases import Asked, BigQueryAsked, KubeAsked, exit_code, read_cases, render_results, run_cases
from proxy.policy.explain import explain_json, explain_text
from proxy.policy.sql import read_sql
from proxy.snapshot import Snapshot, read_snapshot
from proxy.trying_kube import kube_command, way_of
from proxy.trying_ssh import ssh_command

CASES_LIMIT_BYTES: Final = 1 << 20  # as for a rule file
# How `policy explain` takes its text where the target is one of SSH.
WAYS: Final = ("exec", "line", "shell", "subsystem", "forward", "listen", *sorted(v for v in VERBS if v[:5] == "file-"))
NOTE: Final = "(read without the target's catalogue: names without a schema are taken for public's, views for tables)\n"
UNASKED: Final = "(the target was not asked: views are taken for tables, and a query for one that reads no bytes)\n"
# Protocols whose commands are read without a target, as the gateway reads them.
_READ_WHOLE: Final = ("ssh", "kubernetes", "bigquery")

_REQUEST: Final = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/\S*)")
_POLLS: Final = {"jobs.get": "poll", "jobs.getQueryResults": "poll", "jobs.cancel": "cancel", "jobs.delete": "destroy"}
_TIB: Final = 2**40


class Offline:
    """A target's catalogue where no target is asked (protocols.postgres.reading.World)."""

    version = 0

    def resolve(self, name: str, search_path: tuple[str, ...] | None) -> tuple[str, ...]:
        """The relation that a written name most likely means."""
        if "." in name:
            return (name,)
        return (f"pg_catalog.{name}" if name.startswith("pg_") else f"public.{name}",)

    def bases(self, name: str) -> frozenset[str]:
        """A table is its own base; so is what we know nothing of."""
        return frozenset({name})

    def known(self, name: str) -> Known:
        """Its columns are not known."""
        return Known(None)

    def hides(self, name: str) -> bool:
        """Not known; NOTE says that views are taken for tables."""
        return False

    def function_name(self, oid: int) -> str | None:
        """Nothing is known by its oid."""
        return None


def to_command() -> Callable[[str], Command]:
    """Return what reads SQL into the Command that the rules are asked about."""
    reader = CommandReader(Offline())

    def unknown(verb: str, name: str) -> Sequence[Statement] | None:
        return None

    def read(text: str) -> Command:
        return reader.command(read_sql(text), text, b"", unknown, None)

    return read


def explain(
    path: Path,
    target: str,
    text: str,
    subject: str,
    groups: Sequence[str],
    agents: Sequence[str],
    at: str | None,
    way: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Explain the decision on a statement, a request over HTTP or, as way says, something of SSH: JSON and text.

    Raises ConfigError.
    """
    snapshot = read_snapshot(path, secrets.token_bytes(32))
    place = _target(snapshot, target)
    identity = Identity(subject, frozenset(groups), tuple(agents))
    moment = None if at is None else _moment(at)
    ssh = place.protocol == "ssh"
    if way is not None and not ssh:
        raise ConfigError(f"--as is for targets of SSH, and {place.name} is none")
    match place.protocol:
        case "ssh":
            command = _asked(way or "exec", text, place)
        case "bigquery":
            command = bigquery_command(BigQueryAsked(way_to_bigquery(text), text), place)
        case "kubernetes":
            command = kube_command(KubeAsked(way_of(text), text), place)
        case _:
            command = to_command()(text)
    data = explain_json(snapshot.rules, identity, place, command, moment)
    shown = explain_text(snapshot.rules, identity, place, command, moment)
    note = UNASKED if place.protocol == "bigquery" else "" if place.protocol in _READ_WHOLE else NOTE
    return data, shown + note


def _asked(way: str, text: str, target: Target) -> Command:
    paths = tuple(text.split(" -> ")) if way.startswith("file-") else ()
    if not all(path.startswith("/") for path in paths):
        raise ConfigError(f"{text}: write an absolute path, or two with ' -> ' between them")
    return ssh_command(Asked(way, text, paths, pty=way == "shell"), target)


def test(path: Path, cases: Path) -> tuple[dict[str, Any], str, int]:
    """Check the rules against a file of cases: JSON values, text, exit code. Raises ConfigError."""
    snapshot = read_snapshot(path, secrets.token_bytes(32))
    try:
        with cases.open(encoding="utf-8") as file:
            text = file.read(CASES_LIMIT_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{cases}: cannot be read") from error
    if len(text) > CASES_LIMIT_BYTES:
        raise ConfigError(f"{cases}: is longer than {CASES_LIMIT_BYTES} bytes")
    found = read_cases(text, str(cases), tuple(snapshot.targets.values()))
    results = run_cases(found, snapshot.rules, to_command(), ssh_command, kube_command, bigquery_command)
    rows = [
        {"name": one.case.name, "line": one.case.line, "passed": one.passed, "problems": list(one.problems)}
        | {"verdict": one.verdict, "rule": one.rule}
        for one in results
    ]
    return {"rules": snapshot.rules.revision, "cases": rows}, render_results(results, str(cases)), exit_code(results)


def _target(snapshot: Snapshot, text: str) -> Target:
    name, _, database = text.partition("/")
    target = snapshot.targets.get(name)
    if target is None:
        known = ", ".join(sorted(snapshot.targets)) or "none"
        raise ConfigError(f"there is no target {name}; configured: {known}")
    return replace(target, database=database or target.database or ("" if target.protocol in _READ_WHOLE else name))


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{text}: write a time like 2026-01-05T09:00:00Z") from error
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


# -- BigQuery ---------------------------------------------------------------------------------------------


def way_to_bigquery(text: str) -> str:
    """How a text is written: as a request line, or as SQL (BigQueryAsked.what)."""
    return "request" if _REQUEST.fullmatch(text.strip()) else "sql"


def bigquery_command(asked: BigQueryAsked, target: Target) -> Command:
    """Return the command of what is asked. Raises ConfigError where the gate itself would refuse it, or it is none."""
    settings = read_settings(target)
    try:
        request = _bigquery_read(*_bigquery_line(asked, target))
    except BadRequest as error:
        raise ConfigError(f"the gateway refuses this by itself: {error.text}") from error
    name = request.method.name
    if name in _POLLS:
        return bigquery.poll_of(request, f"{request.project}:{request.id('job')}", 0, b"", _POLLS[name])
    limits = AnalysisLimits(trusted_routines=settings.trusted_routines)
    read = [analyse(*each, limits) for each in bigquery.texts_of(request)]
    return bigquery.command_of(
        request, bigquery.merged(read) if read else Analysis(), _estimate(asked, request, settings), 0, b""
    )


def _bigquery_line(asked: BigQueryAsked, target: Target) -> tuple[str, str, bytes]:
    """Return method, path and body of the request."""
    if asked.what == "request":
        found = _REQUEST.fullmatch(asked.text.strip())
        if found is None:
            raise ConfigError(f"{asked.text}: write METHOD /path, like GET /bigquery/v2/projects/p/datasets")
        return found[1], found[2], _bigquery_body(asked.body)
    project = asked.project or target.database
    if not project:
        raise ConfigError(f"say the project: the target {target.name} has none of its own")
    query: dict[str, object] = {"query": asked.text, "useLegacySql": False}
    if asked.dataset:
        owner, _, dataset = asked.dataset.rpartition(".")
        query["defaultDataset"] = {"projectId": owner or project, "datasetId": dataset}
    return "POST", f"/bigquery/v2/projects/{project}/queries", json.dumps(query).encode()


def _bigquery_body(text: str) -> bytes:
    """The body in JSON, whether the case writes YAML or JSON."""
    if not text:
        return b""
    try:
        return json.dumps(YAML(typ="safe", pure=True).load(text)).encode()
    except (YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError("the body is neither YAML nor JSON") from error


def _bigquery_read(method: str, path: str, body: bytes) -> Request:
    """Read a request as the gate reads one. Raises BadRequest."""
    fields: tuple[tuple[str, str], ...] = (("Host", "gateway"), ("Accept", "application/json"))
    if body:
        fields += (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
    return read_request(RequestHead(method, path, fields, length=len(body)), body)


def _estimate(asked: BigQueryAsked, request: Request, settings: Settings) -> Estimate:
    """What the target's dry run would tell: what the case says of it."""
    if request.query is None or request.dry_run or not settings.dry_run:
        return Estimate()
    behind = {"": asked.beneath} if asked.beneath else {}
    return Estimate(True, asked.bytes, asked.bytes / _TIB * settings.price_per_tib, behind=behind)
