"""Conditions of rules: CEL expressions, type-checked when they are loaded, evaluated in microseconds.

How: cel-expr-python (Google's C++ implementation) compiles each against the closed list of VARIABLES below. They
are declared with dotted names, so that a misspelt field is an error at load and not a missing key at night.
A Scene holds what the conditions of one decision see; its activation is made once, of the variables that the
rules in question read, and only if a condition is reached. What a condition reads is taken from the reference
map of its checked form (cel.expr.CheckedExpr), never guessed from its text: the cache of decisions relies on it.

Fails closed: what does not evaluate to true or false raises ConditionError, and the decision is a Deny.
(The library returns an evaluation error as a value of type ERROR whose value() is a non-empty string.)

The variables:
  identity.subject, .issuer (string), .groups, .agents (list of strings; groups sorted, agents nearest last)
  target.name, .protocol, .database (string), .labels (map of strings)
  command.verb, .kind, .text (string), .objects (list of strings), .exact (bool)
  sql.tables_read, .tables_written, .tables, .beneath (tables behind views), .columns (those read), .columns_written,
    .functions, .kinds (every kind found in a statement; command.kind is the gravest) (lists of strings), .where
    (string: "none", "always_true", "present", or "" where the statement can have none), .where_missing (bool: an
    UPDATE or DELETE whose where is none or always true), .has_limit (bool), .limit (int, 0 without one), .multi
    (bool: one of several statements of a text), .control (bool: transaction control), .opaque (bool), .moves_data
    (bool), .setting, .setting_value (string: of SET and RESET)
  shell.programs (list of strings: every program of a command line; one outside of the system's folders is there twice,
    by its path and by its last part), .commands (list of strings: each simple command in one line, see
    proxy/core/script.py), .reads, .writes (lists of strings: files of redirections), .opaque (bool), .why (string)
  ssh.login (string: the name at the target), .host (string), .port (int), .path (string: of a forward, to a socket),
    .subsystem, .how (string: how a typed line was read: "both", "screen", "search", "guess", "app"; "" otherwise),
    .unsure, .hidden (bool: of a typed line), .decoded (string: "sftp" or "scp" where each file is decided by itself),
    .pty (bool), .env (map of strings)
  file.path (string: the first), .paths (list of strings), .via (string: "sftp" or "scp"), .flags (string)
  kube.group, .version, .resource, .subresource, .namespace, .name (string: "" where a request has none; the verb is
    command.verb), .scope (string: "namespace", "cluster", or "" where it is not known), .path (string: of what is no
    resource), .dry_run (bool), .field_manager, .label_selector, .field_selector, .content_type, .container (string),
    .argv (list of strings: of exec), .stdin, .tty (bool), .images, .privileges (lists of strings: of the pods that a
    create, update or patch makes), .opaque_body (bool: nobody can tell what it makes, so that images and privileges may
    be more than these), .fields_written (list of strings; empty also where it is the whole object), .port (int),
    .transfer (string: "in" or "out"), .transfer_path (string: of kubectl cp). An exec's command line is in shell.*
  bigquery.method, .job ("query", "load", "copy", "extract" or ""), .project (that is billed), .location, .destination,
    .write_disposition, .statement_type (strings), .projects, .datasets, .uris, .doors, .outside, .special, .routines
    (lists of strings), .bytes, .maximum_bytes (int), .price (double: US dollars), .dry_run (bool: the target was asked,
    so that bytes and price are known), .asks_dry_run, .session (bool), .labels (map of strings): see
    protocols/bigquery/facts.py, which has each by the key bq_<name>. The SQL of a request is in sql.*
  time.hour, .minute (int), .weekday (int: 1 = Monday .. 7 = Sunday), in the file's time zone; .unix (int),
    .now (timestamp), in whole seconds
A fact that a command does not have reads as its type's zero value. Functions: CEL's standard ones and the string
extension (lowerAscii, split, ...). Specification: github.com/google/cel-spec, doc/langdef.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any, Final, Protocol

from cel_expr_python import cel
from cel_expr_python.ext import ext_strings

from proxy.core.events import Command
from proxy.core.parties import Identity, Target
from proxy.core.script import Script
from proxy.core.statement import ColumnRef

# The source of one condition; a longer one is a rule file of its own.
CONDITION_LIMIT: Final = 4_096

_INT_LIMIT: Final = 2**63 - 1  # CEL's int


class ConditionError(Exception):
    """A condition could not be evaluated. code is CEL's status code; text may quote the command."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.code = text.partition(":")[0][:32] if text[:1].isupper() else "UNKNOWN"


class ConditionSyntaxError(Exception):
    """A condition does not compile. line and column are within its source, from 1."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


class _Expression(Protocol):
    def eval(self, activation: object) -> Any: ...  # a cel.Value; its value() is of any Python type
    def return_type(self) -> Any: ...  # a cel.Type
    def serialize(self) -> bytes: ...


class Scene:
    """What the conditions of one decision see: who, where, what and when (seconds since the epoch)."""

    __slots__ = ("_activation", "_local", "command", "identity", "multi", "now", "reads", "target", "zone")

    def __init__(
        self,
        identity: Identity,
        target: Target,
        command: Command,
        now: float,
        zone: tzinfo = UTC,
        multi: bool = False,
        reads: Iterable[str] | None = None,
    ) -> None:
        self.identity = identity
        self.target = target
        self.command = command
        self.now = now
        self.zone = zone
        self.multi = multi
        self.reads = reads if reads is not None else VARIABLES
        self._activation: object = None
        self._local: datetime | None = None

    @property
    def local(self) -> datetime:
        """The time in the file's time zone."""
        if self._local is None:
            self._local = datetime.fromtimestamp(self.now, self.zone)
        return self._local

    @property
    def activation(self) -> object:
        """The variables in CEL's form. Raises ConditionError where a fact is not of its type."""
        if self._activation is None:
            try:
                data = {name: VARIABLES[name][1](self) for name in self.reads}
                self._activation = _environment().Activation(data)
            except Exception as error:  # fails closed: facts of a wrong shape allow nothing
                raise ConditionError(f"FACTS: {error}") from error
        return self._activation

    def value(self, name: str) -> object:
        """The value of one variable, for explanations."""
        return VARIABLES[name][1](self)


def _strings(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError("a fact that should be a list of texts is not")
    return [_string(entry) for entry in value]


def _string(entry: object) -> str:
    if isinstance(entry, ColumnRef):
        return f"{entry.table or '?'}.{entry.name}"
    if not isinstance(entry, str):
        raise TypeError("an entry of a list of texts is no text")
    return entry


def sql_where_missing(command: Command) -> bool:
    """Tell whether the command is an UPDATE or DELETE of every row."""
    if "where_missing" in command.facts:
        return bool(command.facts["where_missing"])
    return command.verb in ("UPDATE", "DELETE") and command.facts.get("where") in ("none", "always_true")


def setting_of(command: Command) -> tuple[str, str]:
    """The setting that a command changes, lower-cased, and its new value; ('', '') for none."""
    setting = command.facts.get("setting")
    if isinstance(setting, str):
        return setting.lower(), ""
    if isinstance(setting, tuple | list) and setting:
        value = setting[1] if len(setting) > 1 else None
        return str(setting[0]).lower(), "" if value is None else str(value)
    return "", ""


def _tables(scene: Scene) -> list[str]:
    facts = scene.command.facts
    if facts.get("tables") is not None:
        return _strings(facts["tables"])
    return list(dict.fromkeys(_strings(facts.get("tables_read")) + _strings(facts.get("tables_written"))))


def _limit(scene: Scene) -> int:
    limit = scene.command.facts.get("limit")
    return 0 if limit is None else max(-_INT_LIMIT, min(int(limit), _INT_LIMIT))


def _fact_strings(key: str) -> Callable[[Scene], object]:
    return lambda scene: _strings(scene.command.facts.get(key))


def _fact_flag(key: str) -> Callable[[Scene], object]:
    return lambda scene: bool(scene.command.facts.get(key))


def _fact_text(key: str) -> Callable[[Scene], object]:
    return lambda scene: _string(scene.command.facts.get(key) or "")


_NO_SCRIPT: Final = Script()


def script_of(command: Command) -> Script:
    """The command line that a command is, an empty one where it is none."""
    script = command.facts.get("shell")
    if script is None:
        return _NO_SCRIPT
    if not isinstance(script, Script):
        raise TypeError("a fact that should be a command line is not")
    return script


def _of_script(take: Callable[[Script], object]) -> Callable[[Scene], object]:
    return lambda scene: take(script_of(scene.command))


def _path(scene: Scene) -> str:
    """The path of a file's command, or of a forward's socket: the verb tells which."""
    return _string(scene.command.facts.get("path") or "")


def _of_file(scene: Scene) -> bool:
    return scene.command.verb.startswith("file-")


def _env(scene: Scene) -> dict[str, str]:
    found = scene.command.facts.get("env") or {}
    return {_string(name): _string(value) for name, value in found.items()}


def _of_ssh(take: Callable[[Scene], object], otherwise: object) -> Callable[[Scene], object]:
    """Facts that other protocols have by the same keys (port, path) are not SSH's."""
    return lambda scene: otherwise if scene.command.protocol == "kubernetes" else take(scene)


def _kube(key: str, otherwise: object) -> Callable[[Scene], object]:
    """A fact of a request to Kubernetes, of the type of what stands for none."""
    return _only_of("kubernetes", key, otherwise)


def _only_of(protocol: str, key: str, otherwise: object) -> Callable[[Scene], object]:
    """A fact of one protocol, of the type of what stands for none."""

    def take(scene: Scene) -> object:
        found = scene.command.facts.get(key)
        if scene.command.protocol != protocol:
            found = None
        if isinstance(otherwise, list):
            return _strings(found)
        if found is None:
            return otherwise
        if isinstance(otherwise, dict):
            return {_string(name): _string(value) for name, value in found.items()}
        if isinstance(otherwise, float) and type(found) is int:
            return float(found)
        if type(found) is not type(otherwise):
            raise TypeError(f"the fact {key} is not of its type")
        return found

    return take


def _scope(scene: Scene) -> str:
    """Where the resource of a request lies: a namespace, the cluster, or it is not known."""
    scoped = scene.command.facts.get("cluster_scoped")
    return "" if scoped is None else "cluster" if scoped else "namespace"


_T: Final = cel.Type
_LIST: Final = _T.List(_T.STRING)

# name -> what stands for none: bigquery.<name>, of the fact bq_<name>.
_BIGQUERY: Final[Mapping[str, object]] = {
    "method": "", "job": "", "project": "", "projects": [], "datasets": [], "bytes": 0, "price": 0.0, "dry_run": False,
    "location": "", "destination": "", "write_disposition": "", "uris": [], "doors": [], "outside": [], "labels": {},
    "special": [], "routines": [], "statement_type": "", "session": False, "asks_dry_run": False, "maximum_bytes": 0,
}  # fmt: skip
_TYPES: Final[Mapping[type, Any]] = {  # cel.Type is untyped
    str: _T.STRING, list: _LIST, int: _T.INT, float: _T.DOUBLE, bool: _T.BOOL, dict: _T.Map(_T.STRING, _T.STRING),
}  # fmt: skip

# name -> its CEL type, and how it is taken from a Scene.
VARIABLES: Final[Mapping[str, tuple[Any, Callable[[Scene], object]]]] = {  # cel.Type is untyped
    "identity.subject": (_T.STRING, lambda scene: scene.identity.subject),
    "identity.issuer": (_T.STRING, lambda scene: scene.identity.issuer),
    "identity.groups": (_LIST, lambda scene: sorted(scene.identity.groups)),
    "identity.agents": (_LIST, lambda scene: list(scene.identity.agents)),
    "target.name": (_T.STRING, lambda scene: scene.target.name),
    "target.protocol": (_T.STRING, lambda scene: scene.target.protocol),
    "target.database": (_T.STRING, lambda scene: scene.target.database),
    "target.labels": (_T.Map(_T.STRING, _T.STRING), lambda scene: dict(scene.target.labels)),
    "command.verb": (_T.STRING, lambda scene: scene.command.verb),
    "command.kind": (_T.STRING, lambda scene: scene.command.kind),
    "command.text": (_T.STRING, lambda scene: scene.command.text),
    "command.objects": (_LIST, lambda scene: list(scene.command.objects)),
    "command.exact": (_T.BOOL, lambda scene: scene.command.exact),
    "sql.tables_read": (_LIST, _fact_strings("tables_read")),
    "sql.tables_written": (_LIST, _fact_strings("tables_written")),
    "sql.tables": (_LIST, _tables),
    "sql.columns": (_LIST, _fact_strings("columns")),
    "sql.functions": (_LIST, _fact_strings("functions")),
    "sql.beneath": (_LIST, _fact_strings("beneath")),
    "sql.kinds": (_LIST, _fact_strings("kinds")),
    "sql.columns_written": (_LIST, _fact_strings("columns_written")),
    "sql.where": (_T.STRING, lambda scene: scene.command.facts.get("where") or ""),
    "sql.where_missing": (_T.BOOL, lambda scene: sql_where_missing(scene.command)),
    "sql.has_limit": (
        _T.BOOL,
        # Who tells both says limit 0 where there is none.
        lambda scene: bool(scene.command.facts.get("has_limit", scene.command.facts.get("limit") is not None)),
    ),
    "sql.limit": (_T.INT, _limit),
    "sql.multi": (_T.BOOL, lambda scene: scene.multi or bool(scene.command.facts.get("multi"))),
    "sql.control": (_T.BOOL, _fact_flag("control")),
    "sql.opaque": (_T.BOOL, _fact_flag("opaque")),
    "sql.moves_data": (_T.BOOL, _fact_flag("moves_data")),
    "sql.setting": (_T.STRING, lambda scene: setting_of(scene.command)[0]),
    "sql.setting_value": (_T.STRING, lambda scene: setting_of(scene.command)[1]),
    "shell.programs": (_LIST, _of_script(lambda script: list(script.names))),
    "shell.commands": (_LIST, _of_script(lambda script: list(script.commands))),
    "shell.reads": (_LIST, _of_script(lambda script: list(script.reads))),
    "shell.writes": (_LIST, _of_script(lambda script: list(script.writes))),
    "shell.opaque": (_T.BOOL, _of_script(lambda script: script.opaque)),
    "shell.why": (_T.STRING, _of_script(lambda script: script.why)),
    "ssh.login": (_T.STRING, lambda scene: scene.target.database if scene.target.protocol == "ssh" else ""),
    "ssh.host": (_T.STRING, _fact_text("host")),
    "ssh.port": (_T.INT, _of_ssh(lambda scene: int(scene.command.facts.get("port") or 0), 0)),
    "ssh.path": (_T.STRING, _of_ssh(lambda scene: "" if _of_file(scene) else _path(scene), "")),
    "ssh.subsystem": (_T.STRING, _fact_text("subsystem")),
    "ssh.how": (_T.STRING, _fact_text("how")),
    "ssh.unsure": (_T.BOOL, _fact_flag("unsure")),
    "ssh.hidden": (_T.BOOL, _fact_flag("hidden")),
    "ssh.decoded": (_T.STRING, _fact_text("decoded")),
    "ssh.pty": (_T.BOOL, _fact_flag("pty")),
    "ssh.env": (_T.Map(_T.STRING, _T.STRING), _env),
    "file.path": (_T.STRING, lambda scene: _path(scene) if _of_file(scene) else ""),
    "file.paths": (_LIST, _fact_strings("paths")),
    "file.via": (_T.STRING, _fact_text("via")),
    "file.flags": (_T.STRING, _fact_text("flags")),
    "kube.group": (_T.STRING, _kube("api_group", "")),
    "kube.version": (_T.STRING, _kube("api_version", "")),
    "kube.resource": (_T.STRING, _kube("resource", "")),
    "kube.subresource": (_T.STRING, _kube("subresource", "")),
    "kube.namespace": (_T.STRING, _kube("namespace", "")),
    "kube.name": (_T.STRING, _kube("name", "")),
    "kube.scope": (_T.STRING, _scope),
    "kube.path": (_T.STRING, _kube("path", "")),
    "kube.dry_run": (_T.BOOL, _kube("dry_run", False)),
    "kube.field_manager": (_T.STRING, _kube("field_manager", "")),
    "kube.label_selector": (_T.STRING, _kube("label_selector", "")),
    "kube.field_selector": (_T.STRING, _kube("field_selector", "")),
    "kube.content_type": (_T.STRING, _kube("content_type", "")),
    "kube.container": (_T.STRING, _kube("container", "")),
    "kube.argv": (_LIST, _kube("argv", [])),
    "kube.stdin": (_T.BOOL, _kube("stdin", False)),
    "kube.tty": (_T.BOOL, _kube("tty", False)),
    "kube.images": (_LIST, _kube("images", [])),
    "kube.privileges": (_LIST, _kube("privileges", [])),
    "kube.fields_written": (_LIST, _kube("fields_written", [])),
    "kube.port": (_T.INT, _kube("port", 0)),
    "kube.transfer": (_T.STRING, _kube("transfer", "")),
    "kube.transfer_path": (_T.STRING, _kube("transfer_path", "")),
    "kube.opaque_body": (_T.BOOL, _kube("opaque_body", False)),
    **{
        f"bigquery.{name}": (_TYPES[type(otherwise)], _only_of("bigquery", f"bq_{name}", otherwise))
        for name, otherwise in _BIGQUERY.items()
    },
    "time.hour": (_T.INT, lambda scene: scene.local.hour),
    "time.minute": (_T.INT, lambda scene: scene.local.minute),
    "time.weekday": (_T.INT, lambda scene: scene.local.isoweekday()),
    "time.unix": (_T.INT, lambda scene: int(scene.now)),
    "time.now": (_T.TIMESTAMP, lambda scene: datetime.fromtimestamp(int(scene.now), UTC)),
}

# The keys of facts that some variable is made of: together with the fields of the Command, all that a rule can see.
FACT_KEYS: Final = (
    *("tables_read", "tables_written", "tables", "columns", "functions", "where", "where_missing", "has_limit"),
    *("limit", "multi", "control", "opaque", "moves_data", "setting", "kinds", "columns_written", "beneath"),
    *("shell", "host", "port", "path", "paths", "subsystem", "how", "pty", "env", "via", "flags"),
    *("unsure", "hidden", "decoded"),
    *("api_group", "api_version", "resource", "subresource", "namespace", "name", "cluster_scoped", "dry_run"),
    *("field_manager", "label_selector", "field_selector", "content_type", "container", "argv", "stdin", "tty"),
    *("images", "privileges", "fields_written", "transfer", "transfer_path", "opaque_body"),
    *(f"bq_{name}" for name in _BIGQUERY),
)


class Condition:
    """One compiled condition. reads are the variables that it refers to."""

    __slots__ = ("_expression", "reads", "source")

    def __init__(self, source: str, expression: _Expression) -> None:
        self.source = source
        self._expression = expression
        checked = expression.serialize()
        # A reference's name is a length-delimited string in CheckedExpr; a text of the same bytes can only add to it.
        self.reads = frozenset(n for n in VARIABLES if b"\x0a" + bytes([len(n)]) + n.encode() in checked)

    def holds(self, scene: Scene) -> bool:
        """Evaluate. Raises ConditionError; never answers for an expression that failed."""
        activation = scene.activation
        try:
            result = self._expression.eval(activation).value()
        except Exception as error:  # fails closed: whatever the library raises is no answer
            raise ConditionError(str(error)) from error
        if result is True or result is False:
            return result
        raise ConditionError(str(result))

    def reads_any(self, *prefixes: str) -> bool:
        """Tell whether some variable that it reads starts with one of the prefixes."""
        return any(name.startswith(prefixes) for name in self.reads)


def compile_condition(source: str) -> Condition:
    """Compile and type-check a condition. Raises ConditionSyntaxError with the place in the source."""
    if len(source) > CONDITION_LIMIT:
        raise ConditionSyntaxError(f"the condition is longer than {CONDITION_LIMIT} characters")
    try:
        expression: _Expression = _environment().compile(source)
    except Exception as error:  # the library raises RuntimeError with all messages in one text
        raise _syntax_error(str(error)) from error
    if expression.return_type() != _T.BOOL:
        name = expression.return_type().name().lower()
        raise ConditionSyntaxError(f"the condition must be true or false, but this is of type {name}")
    _check_regexes(source)
    condition = Condition(source, expression)
    if not condition.reads:
        raise ConditionSyntaxError("the condition reads no variable: it is always the same")
    return condition


def dry_run(condition: Condition, target: Target) -> str | None:
    """Evaluate on a command without any fact; return what goes wrong, None if nothing does.

    An expression that fails here (a label that the target does not have, the first entry of an empty list) would
    fail, and so deny, on real commands too.
    """
    nothing = Command(target.protocol, "", "read", "")
    try:
        condition.holds(Scene(Identity(""), target, nothing, 0.0, reads=condition.reads))
    except ConditionError as error:
        return error.text
    return None


@cache
def _environment() -> Any:  # cel.Env is untyped
    types = {name: kind for name, (kind, _) in VARIABLES.items()}
    return cel.NewEnv(variables=types, extensions=[ext_strings.ExtStrings()])


_MESSAGE: Final = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")
_UNKNOWN: Final = re.compile(r"undeclared reference to '([^']*)'.*")


def _syntax_error(text: str) -> ConditionSyntaxError:
    match = _MESSAGE.search(text)
    if match is None:
        return ConditionSyntaxError("the condition does not compile: " + text.partition("\n")[0][:200])
    message = match[3].removesuffix(" [INVALID_ARGUMENT]").removeprefix("Syntax error: ")
    unknown = _UNKNOWN.match(message)
    if unknown:
        message = f"unknown name {unknown[1]!r}"
    return ConditionSyntaxError(f"condition: {message[:200]}", int(match[1]), int(match[2]))


_REGEX: Final = re.compile(r"""\bmatches\s*\(\s*([rR]?(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))\s*\)""")


def _check_regexes(source: str) -> None:
    """Find regular expressions that RE2 refuses. Only literal arguments can be checked before evaluation."""
    for match in _REGEX.finditer(source):
        try:
            result = _environment().compile(f'"".matches({match[1]})').eval(_environment().Activation({})).value()
        except Exception as error:  # the whole condition did compile, so that this is text inside of a string
            result = bool(error)
        if not isinstance(result, bool):
            line = source.count("\n", 0, match.start()) + 1
            raise ConditionSyntaxError(f"condition: {str(result).partition(': ')[2][:200]}", line)
