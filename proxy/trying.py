"""``gatecast policy explain`` and ``policy test``: the rules of a configuration, asked without a target.

SQL is read as the gateway reads it, by the code that it decides with, but without the target's catalogue: a name
without a schema is taken for one in public (pg_...: in pg_catalog), and a view for a table.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from protocols.postgres.meaning import Known
from protocols.postgres.reading import CommandReader
from protocols.ssh.verbs import VERBS
from proxy.core.errors import ConfigError
from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.statement import Statement
from proxy.policy.cases import Asked, KubeAsked, exit_code, read_cases, render_results, run_cases
from proxy.policy.explain import explain_json, explain_text
from proxy.policy.sql import read_sql
from proxy.snapshot import Snapshot, read_snapshot
from proxy.trying_kube import kube_command, way_of
from proxy.trying_ssh import ssh_command

CASES_LIMIT_BYTES: Final = 1 << 20  # as for a rule file
# How `policy explain` takes its text where the target is one of SSH.
WAYS: Final = ("exec", "line", "shell", "subsystem", "forward", "listen", *sorted(v for v in VERBS if v[:5] == "file-"))
NOTE: Final = "(read without the target's catalogue: names without a schema are taken for public's, views for tables)\n"
# Protocols whose commands are read without a target, as the gateway reads them.
_READ_WHOLE: Final = ("ssh", "kubernetes")


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
    """Explain the decision on a statement, a request to Kubernetes or, as way says, something of SSH: JSON and text.

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
        case "kubernetes":
            command = kube_command(KubeAsked(way_of(text), text), place)
        case _:
            command = to_command()(text)
    data = explain_json(snapshot.rules, identity, place, command, moment)
    shown = explain_text(snapshot.rules, identity, place, command, moment)
    return data, shown + ("" if place.protocol in _READ_WHOLE else NOTE)


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
    results = run_cases(found, snapshot.rules, to_command(), ssh_command, kube_command)
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
