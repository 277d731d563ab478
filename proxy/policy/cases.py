"""``gatecast policy test FILE``: what the rules must say, written down as cases and checked.

::

    cases:
      - name: an agent reads the shop        # required, unique
        identity: {subject: bot@acme.com, groups: [agents], agents: [claude-code], issuer: ...}
        target: shop-db                      # a configured target
        database: shop                       # optional; the target's own without it
        sql: SELECT * FROM public.orders     # or connect: true, or command: {verb, kind, text, objects, opaque}
        at: 2026-01-05T09:00:00Z             # optional: the time for time.*
        expect: allow                        # allow | hold | deny
        rule: agents-read-shop               # optional: the rule that decides
        masks: [pii]                         # optional: exactly these rules mask, [] = none

Of a target of SSH, one of these stands in the place of sql (and login in that of database)::

        exec: ls -l /srv                     # a command line; pty: true beside it for one with a terminal
        line: sudo systemctl restart nginx   # the same, typed on a terminal
        shell: true                          # an interactive one, with a terminal
        subsystem: sftp
        file: {read: /etc/passwd}            # or write, list, stat, remove, mkdir, ...; rename: [/a, /b]
        forward: "db.internal:5432"          # or the path of a socket; listen: what the target is to listen on

Of a target of Kubernetes::

        kube: exec dev/pods/web -- ls -l     # VERB NAMESPACE/RESOURCE/NAME, as in command.objects; pty: true: with
                                             # a terminal; container: main. Of list and watch: dev/pods, */pods
        request: GET /api/v1/namespaces/dev/pods?watch=1      # or what goes over the wire
        body: |                              # beside either: YAML or JSON; content_type: for a patch that is no merge
          {apiVersion: v1, kind: Pod, ...}

Of a target of BigQuery::

        sql: SELECT name FROM shop.orders    # project and dataset complete its names; bytes: 5 GiB, what the dry run
                                             # would say; beneath: [p.d.t], the tables behind its views
        request: POST /bigquery/v2/projects/p/jobs            # or what goes over the wire, with its body

Each case is decided by RuleSet.judge, the code of the decision without its cache. Left out: results of a target; a
case tells which masks apply, not what a masked row looks like. A mistake in the file is a ConfigError with its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from ruamel.yaml.nodes import ScalarNode

from proxy.core.errors import ConfigError
from proxy.core.events import KINDS, Command
from proxy.core.parties import Identity, Target
from proxy.policy.explain import connect_command, explain_text, verdict_masks, verdict_word
from proxy.policy.nodes import Fields, Problems, compose, did_you_mean, entries
from proxy.policy.rules import RuleSet

# As many as the entries of any list (nodes.py): a longer suite is several files.
EXPECTATIONS: Final = ("allow", "hold", "deny")

_SSH_KEYS: Final = ("exec", "line", "shell", "subsystem", "file", "forward", "listen")
_FILE_KEYS: Final = (
    *("read", "write", "list", "stat", "readlink", "remove", "rmdir", "rename", "mkdir", "setstat", "link", "copy"),
    "statvfs",
)
_KUBE_KEYS: Final = ("kube", "request")
# What a case may ask, by protocol; SQL of all others.
_WAYS: Final = {
    "ssh": (*_SSH_KEYS, "connect", "command"),
    "kubernetes": (*_KUBE_KEYS, "command"),
    "bigquery": ("sql", "request", "command"),
}
_CASE_KEYS: Final = (
    *("name", "identity", "target", "database", "login", "sql", "connect", "command", "at", "expect", "rule", "masks"),
    *_SSH_KEYS,
    *_KUBE_KEYS,
    *("pty", "body", "container", "content_type"),
    *("project", "dataset", "bytes", "beneath"),
)
_SIZE: Final = re.compile(r"(\d{1,19}) ?([KMGTP]?)(i?)B?")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a case asks over SSH: exec, line, shell, subsystem, forward, listen or the verb of a file, and of what."""

    what: str
    text: str = ""
    paths: tuple[str, ...] = ()
    pty: bool = False


@dataclass(frozen=True, slots=True)
class KubeAsked:
    """What a case asks of Kubernetes. what: "kube" or "request", and text as the case has it."""

    what: str
    text: str
    body: str = ""
    container: str = ""
    content_type: str = ""
    pty: bool = False


@dataclass(frozen=True, slots=True)
class BigQueryAsked:
    """What a case asks of BigQuery. what: "sql" or "request", and text as the case has it.

    project, dataset ("dataset" or "project.dataset"): of names without one. bytes, beneath: as the target would tell.
    """

    what: str
    text: str
    body: str = ""
    project: str = ""
    dataset: str = ""
    bytes: int = 0
    beneath: tuple[str, ...] = ()


SshReader = Callable[[Asked, Target], Command]
KubeReader = Callable[[KubeAsked, Target], Command]
BigQueryReader = Callable[[BigQueryAsked, Target], Command]


@dataclass(frozen=True, slots=True)
class Case:
    """One case. command is None where sql, or what is asked over SSH or of Kubernetes, is to be read."""

    name: str
    line: int
    identity: Identity
    target: Target
    expect: str
    sql: str = ""
    command: Command | None = None
    asked: Asked | KubeAsked | BigQueryAsked | None = None
    at: float | None = None
    rule: str | None = None
    masks: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How a case went: problems is empty where it passed; explanation is filled where it did not."""

    case: Case
    verdict: str
    rule: str
    problems: tuple[str, ...] = ()
    explanation: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything was as expected."""
        return not self.problems


def read_cases(text: str, source_name: str, targets: Collection[Target]) -> tuple[Case, ...]:
    """Read a file of cases. Raises ConfigError with a line for each mistake."""
    problems = Problems(source_name)
    root = compose(text, source_name)
    if root is None:
        problems.add(1, "the file is empty")
        problems.raise_if_any()
        return ()
    top = Fields(root, problems, "the case file", ("cases",))
    if "cases" not in top:
        problems.add(top.line, "the key 'cases' is missing")
    by_name = {target.name: target for target in targets}
    cases: list[Case] = []
    names: set[str] = set()
    for node in entries(top.nodes["cases"], problems, "cases") if "cases" in top else []:
        fields = Fields(node, problems, "the case", _CASE_KEYS)
        case = _case(fields, problems, by_name)
        if case.name in names:
            problems.add(fields.line, f"the name {case.name!r} is there twice")
        names.add(case.name)
        cases.append(case)
    problems.raise_if_any()
    return tuple(cases)


def _case(fields: Fields, problems: Problems, targets: dict[str, Target]) -> Case:
    for key in ("name", "identity", "target", "expect"):
        if key not in fields:
            problems.add(fields.line, f"the case has no {key}")
    target = _target(fields, problems, targets)
    ways = _WAYS.get(target.protocol, ("sql", "connect", "command"))
    found = [key for key in (*_SSH_KEYS, *_KUBE_KEYS, "sql", "connect", "command") if key in fields]
    if len(found) != 1 or (target.protocol and found[0] not in ways):
        problems.add(fields.line, f"the case needs one of {', '.join(ways).replace('connect', 'connect: true')}")
    command: Command | None = None
    if "command" in fields:
        command = _command(fields, problems, target)
    elif fields.flag("connect"):
        command = connect_command(target)
    elif "connect" in fields:
        problems.add(fields.line_of("connect"), "connect: false is no case")
    expect = fields.text("expect")
    if expect and expect not in EXPECTATIONS:
        problems.add(fields.line_of("expect"), f"unknown verdict {expect!r}{did_you_mean(expect, EXPECTATIONS)}")
    return Case(
        name=fields.text("name"),
        line=fields.line,
        identity=_identity(fields, problems),
        target=target,
        expect=expect,
        sql=fields.text("sql"),
        command=command,
        asked=_asked(fields, problems, found[0], target) if found else None,
        at=_at(fields, problems),
        rule=fields.text("rule") if "rule" in fields else None,
        masks=_masks(fields),
    )


def _asked(fields: Fields, problems: Problems, key: str, target: Target) -> Asked | KubeAsked | BigQueryAsked | None:
    if target.protocol == "bigquery":
        return None if key == "command" else _of_bigquery(fields, problems, key)
    for alien in ("project", "dataset", "bytes", "beneath"):
        if alien in fields and target.protocol:
            problems.add(fields.line_of(alien), f"{alien} is for targets of BigQuery")
    pty = fields.flag("pty") is True
    match key:
        case "sql" | "connect" | "command":
            return None
        case "kube" | "request":
            more = (fields.text("body"), fields.text("container"), fields.text("content_type"))
            return KubeAsked(key, fields.text(key), *more, pty)
        case "shell":
            if fields.flag("shell") is False:
                problems.add(fields.line_of("shell"), "shell: false is no case")
            return Asked("shell", pty=fields.flag("pty") is not False)
        case "file":
            part = Fields(fields.nodes["file"], problems, "file", _FILE_KEYS)
            if len(part.nodes) != 1:
                problems.add(part.line, "file needs one of read, write, ...: and the path, or [path, path]")
                return Asked("file-read", paths=("/",))
            (name, node) = next(iter(part.nodes.items()))
            paths = (part.text(name),) if isinstance(node, ScalarNode) else part.texts(name) or ("",)
            for path in paths:
                if not path.startswith("/"):
                    problems.add(node, f"the path {path!r} must be absolute")
            return Asked(f"file-{name}", paths=paths)
        case _:
            return Asked(key, fields.text(key), pty=pty)


def _of_bigquery(fields: Fields, problems: Problems, key: str) -> BigQueryAsked:
    size = 0
    if "bytes" in fields:
        node = fields.nodes["bytes"]
        found = _SIZE.fullmatch(str(node.value)) if isinstance(node, ScalarNode) else None
        if found is None:
            problems.add(node, "bytes must be a number of bytes, like 5000000, 5 MB or 5 GiB")
        else:
            size = int(found[1]) * (1024 if found[3] else 1000) ** " KMGTP".index(found[2] or " ")
    return BigQueryAsked(
        key,
        fields.text(key),
        fields.text("body"),
        fields.text("project"),
        fields.text("dataset"),
        size,
        (fields.texts("beneath") or ()) if "beneath" in fields else (),
    )


def _masks(fields: Fields) -> frozenset[str] | None:
    node = fields.nodes.get("masks")
    if node is None:
        return None
    if not node.value:
        return frozenset()  # masks: [] asks for none
    return frozenset(fields.texts("masks") or ())


def _target(fields: Fields, problems: Problems, targets: dict[str, Target]) -> Target:
    name = fields.text("target")
    target = targets.get(name)
    if target is None:
        if name:
            problems.add(fields.line_of("target"), f"unknown target {name!r}{did_you_mean(name, targets.keys())}")
        return Target(name, "")
    if "login" in fields and "database" in fields:
        problems.add(fields.line_of("login"), "login is another word for database; say one of them")
    key = "login" if "login" in fields else "database"
    return replace(target, database=fields.text(key)) if key in fields else target


def _identity(fields: Fields, problems: Problems) -> Identity:
    if "identity" not in fields:
        return Identity("")
    part = Fields(fields.nodes["identity"], problems, "identity", ("subject", "groups", "agents", "issuer"))
    if "subject" not in part:
        problems.add(part.line, "the identity has no subject")
    return Identity(
        part.text("subject"),
        frozenset(part.texts("groups") or ()),
        part.texts("agents") or (),
        part.text("issuer"),
    )


def _command(fields: Fields, problems: Problems, target: Target) -> Command:
    part = Fields(fields.nodes["command"], problems, "command", ("verb", "kind", "text", "objects", "opaque", "exact"))
    word = part.text("kind")
    kind = next((known for known in KINDS if known == word), None)
    if kind is None:
        problems.add(part.line_of("kind"), f"unknown kind {word!r}{did_you_mean(word, KINDS)}")
    if "verb" not in part:
        problems.add(part.line, "the command has no verb")
    return Command(
        target.protocol,
        part.text("verb"),
        kind or "unknown",
        part.text("text"),
        objects=part.texts("objects") or (),
        facts={"opaque": True} if part.flag("opaque") else {},
        exact=part.flag("exact") is not False,
    )


def _at(fields: Fields, problems: Problems) -> float | None:
    node = fields.nodes.get("at")
    if node is None:
        return None
    try:
        moment = datetime.fromisoformat(str(node.value) if isinstance(node, ScalarNode) else "")
    except ValueError:
        problems.add(node, "at must be a time like 2026-01-05T09:00:00Z")
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def run_cases(
    cases: Sequence[Case],
    rules: RuleSet,
    to_command: Callable[[str], Command],
    to_ssh: SshReader | None = None,
    to_kube: KubeReader | None = None,
    to_bigquery: BigQueryReader | None = None,
) -> list[CaseResult]:
    """Decide every case; to_command reads SQL as PostgreSQL's protocol does, the others what is asked of theirs.

    Raises ConfigError where a case asks for what cannot be asked.
    """
    return [_run(case, rules, _command_of(case, to_command, to_ssh, to_kube, to_bigquery)) for case in cases]


def _command_of(
    case: Case,
    to_command: Callable[[str], Command],
    to_ssh: SshReader | None,
    to_kube: KubeReader | None,
    to_bigquery: BigQueryReader | None,
) -> Command:
    if case.command is not None:
        return case.command
    try:
        match case.asked:
            case None:
                return to_command(case.sql)
            case Asked() if to_ssh is not None:
                return to_ssh(case.asked, case.target)
            case KubeAsked() if to_kube is not None:
                return to_kube(case.asked, case.target)
            case BigQueryAsked() if to_bigquery is not None:
                return to_bigquery(case.asked, case.target)
            case _:
                raise ConfigError(f"nothing here knows the protocol {case.target.protocol}")
    except ConfigError as error:
        raise ConfigError(f"{case.name}: {error}") from error


def _run(case: Case, rules: RuleSet, command: Command) -> CaseResult:
    verdict = rules.judge(case.identity, case.target, command, case.at)
    word = verdict_word(verdict)
    problems: list[str] = []
    if word != case.expect:
        problems.append(f"expected {case.expect}, got {word}")
    if case.rule is not None and verdict.rule != case.rule:
        problems.append(f"expected the rule {case.rule}, got {verdict.rule}")
    masks = frozenset(mask.rule for mask in verdict_masks(verdict))
    if case.masks is not None and masks != case.masks:
        shown = (", ".join(sorted(names)) or "none" for names in (case.masks, masks))
        problems.append("expected masks of {}, got {}".format(*shown))
    explanation = explain_text(rules, case.identity, case.target, command, case.at) if problems else ""
    return CaseResult(case, word, verdict.rule, tuple(problems), explanation)


def render_results(results: Sequence[CaseResult], source_name: str) -> str:
    """A table of the results, with the explanation of every case that failed."""
    width = max((len(result.case.name) for result in results), default=0)
    lines: list[str] = []
    for result in results:
        mark = "ok  " if result.passed else "FAIL"
        lines.append(f"{mark}  {result.case.name:<{width}}  {result.verdict:<5}  {result.rule}")
    for result in results:
        if not result.passed:
            lines += ["", f"{source_name}:{result.case.line}: {result.case.name}: {'; '.join(result.problems)}"]
            lines += ["    " + line if line else "" for line in result.explanation.splitlines()]
    failed = sum(not result.passed for result in results)
    lines += ["", f"{len(results)} cases, {failed} failed" if failed else f"{len(results)} cases, all as expected"]
    return "\n".join(lines) + "\n"


def exit_code(results: Sequence[CaseResult]) -> int:
    """0 where every case passed and there was one at all, 1 otherwise."""
    return 0 if results and all(result.passed for result in results) else 1
