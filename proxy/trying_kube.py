"""What somebody would ask of Kubernetes, made into the Command that the rules are asked about, without a connection.

Two ways to write it. A request line as it goes over the wire, ``GET /api/v1/namespaces/dev/pods?watch=1``; or, shorter,
``VERB PLACE`` with the place as in command.objects: ``get dev/pods/web``, ``list */secrets``, ``delete -/nodes/n1``,
``patch dev/deployments.apps/web/scale``, ``exec dev/pods/web -- ls -l``, ``connect dev/pods/db 5432``,
``copy-out dev/pods/web /etc/passwd``, ``discover /version``. Both become an HTTP request that the code of the protocol
reads, so that a case is decided as the real thing is. Left out: what only a conversation has (lines of a terminal are
taken as they are written, port-forwards are of one port).
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from typing import Final
from urllib.parse import quote, urlencode

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from protocols.kubernetes.commands import Conversation
from protocols.kubernetes.request_info import read_path
from protocols.kubernetes.verbs import VERBS
from proxy.core.errors import ConfigError
from proxy.core.events import Command
from proxy.core.http.heads import BadRequest, RequestHead
from proxy.core.parties import Target
from proxy.policy.cases import KubeAsked
from proxy.policy.shell import read_shell

_METHODS: Final = {
    "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETE",
    "debug": "PATCH",
}  # fmt: skip
# Verbs that are a subresource of a pod each.
_OF_PODS: Final = {
    "log": "log", "exec": "exec", "attach": "attach", "line": "exec", "copy-in": "exec", "copy-out": "exec",
    "portforward": "portforward", "connect": "portforward", "debug": "ephemeralcontainers",
}  # fmt: skip
_NAMELESS: Final = frozenset({"list", "watch", "deletecollection", "create"})
_REQUEST: Final = re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/\S*)")
_VERSIONED: Final = re.compile(r"([a-z0-9-]+)\.(v\d+(?:(?:alpha|beta)\d+)?)\.(.+)")
_VERSION: Final = "v1"  # of a group, where the resource does not name one (widgets.v1beta1.example.com)


def way_of(text: str) -> str:
    """How a text is written: as a request line, or as a verb and its place (KubeAsked.what)."""
    return "request" if _REQUEST.fullmatch(text.strip()) else "kube"


def kube_command(asked: KubeAsked, target: Target) -> Command:
    """Return the command of what is asked. Raises ConfigError where the gate itself would refuse it, or it is none."""
    if asked.what == "request":
        found = _REQUEST.fullmatch(asked.text.strip())
        if found is None:
            raise ConfigError(f"{asked.text}: write METHOD /path, like GET /api/v1/namespaces/dev/pods")
        return _read(found[1], found[2], asked, target, upgrade=False)
    verb, _, rest = asked.text.strip().partition(" ")
    if verb not in VERBS:
        known = sorted(VERBS - {"UNKNOWN"})
        raise ConfigError(f"{verb} is none of {', '.join(known)}")
    if rest.lstrip().startswith("/"):
        return _expected(verb, _read("POST" if verb == "path" else "GET", rest.strip(), asked, target, upgrade=False))
    return _of_place(verb, rest.strip(), asked, target)


def _of_place(verb: str, rest: str, asked: KubeAsked, target: Target) -> Command:
    head, dashes, line = rest.partition(" -- ")
    words = head.split()
    if not words or len(words) > 2:
        raise ConfigError(f"{asked.text}: write VERB NAMESPACE/RESOURCE/NAME, like get dev/pods/web or list */pods")
    path, extra = _path(verb, words[0], asked), (words[1] if len(words) == 2 else "")
    query: list[tuple[str, str]] = []
    if _OF_PODS.get(verb) in ("exec", "attach"):
        argv = _argv(verb, line, extra, asked)
        query = [("command", word) for word in argv]
        query += [("container", asked.container)] if asked.container else []
        stdin = asked.pty or verb in ("copy-in", "attach")
        query += [("stdin", "true")] if stdin else []
        query += [("stdout", "true"), *((("tty", "true"),) if asked.pty else (("stderr", "true"),))]
    elif dashes:
        raise ConfigError(f"{asked.text}: only exec has a command line")
    elif verb == "watch":
        query = [("watch", "true")]
    elif verb == "log" and asked.container:
        query = [("container", asked.container)]
    method = _METHODS.get(verb, "GET")
    upgrade = _OF_PODS.get(verb) in ("exec", "attach", "portforward")
    where = path + (f"?{urlencode(query)}" if query else "")
    if method in ("POST", "PUT", "PATCH") and not asked.body:
        asked = replace(asked, body=_smallest(words[0]))
    command = _read(method, where, asked, target, upgrade)
    match verb:
        case "line":
            script = read_shell(line)
            facts = {**command.facts, "shell": script, "opaque": script.opaque}
            return replace(command, verb="line", kind="execute", text=line, facts=facts, exact=False)
        case "connect":
            if not extra.isdecimal() or not 0 < int(extra) < 65_536:
                raise ConfigError(f"{asked.text}: write the port behind the pod, like connect dev/pods/db 5432")
            text = f"{command.text} {extra}"
            return replace(
                command, verb="connect", kind="transfer", text=text, facts={**command.facts, "port": int(extra)}
            )
    return _expected(verb, command)


def _path(verb: str, place: str, asked: KubeAsked) -> str:
    """The path of a place as command.objects write it, with the subresource of the verb."""
    namespace, _, rest = place.partition("/")
    resource, _, rest = rest.partition("/")
    name, _, subresource = rest.partition("/")
    if not namespace or not resource or "/" in subresource:
        raise ConfigError(f"{asked.text}: the place must be NAMESPACE/RESOURCE/NAME; '-' for no namespace, '*' for all")
    name = "" if name == "*" else name
    if not name and verb not in _NAMELESS:
        raise ConfigError(f"{asked.text}: {verb} needs a name")
    if name and not subresource and verb in _NAMELESS and verb != "create":
        raise ConfigError(f"{asked.text}: {verb} is of no name; a list of one name is: request: ...?fieldSelector=")
    subresource = subresource or _OF_PODS.get(verb, "") or ("proxy" if verb == "proxy" else "")
    versioned = _VERSIONED.fullmatch(resource)
    resource, version, group = (
        versioned.groups() if versioned else (resource.partition(".")[0], _VERSION, resource.partition(".")[2])
    )
    parts = ["apis", group, version] if group else ["api", version]
    parts += ["namespaces", namespace] if namespace not in ("-", "*") else []
    parts.append(resource)
    if name and (verb != "create" or subresource):
        parts.append(name)
    if subresource:
        parts.append(subresource)
    return "/" + "/".join(quote(part, safe=":") for part in parts)


def _argv(verb: str, line: str, extra: str, asked: KubeAsked) -> list[str]:
    match verb:
        case "copy-in" | "copy-out":
            if not extra.startswith("/"):
                raise ConfigError(f"{asked.text}: write the path behind the pod, like {verb} dev/pods/web /tmp")
            return ["tar", "cf", "-", extra] if verb == "copy-out" else ["tar", "-xmf", "-", "-C", extra]
        case "line":
            return ["sh"]
        case "attach":
            return []
    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"{asked.text}: {error}") from error
    if not argv:
        raise ConfigError(f"{asked.text}: write the command behind ' -- '")
    return argv


def _smallest(place: str) -> str:
    """The least that a body can be: an object of the name that the place tells."""
    parts = place.split("/")
    name = parts[2] if len(parts) > 2 and parts[2] != "*" else ""
    return json.dumps({"metadata": {"name": name}} if name else {"metadata": {"generateName": "new-"}})


def _read(method: str, path: str, asked: KubeAsked, target: Target, upgrade: bool) -> Command:
    """Read a request as the gate reads one."""
    body, content_type = _body(method, asked)
    fields: list[tuple[str, str]] = [("Host", "gateway"), ("Accept", "application/json")]
    if body:
        fields += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    if upgrade:
        protocol = (
            "SPDY/3.1+portforward.k8s.io" if path.partition("?")[0].endswith("portforward") else "v5.channel.k8s.io"
        )
        fields += [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Protocol", protocol)]
        fields += [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")]
    head = RequestHead(
        method, f"/k8s/{target.name}{path}", tuple(fields), length=len(body), upgrade="websocket" if upgrade else ""
    )
    try:
        return Conversation(target, 0, read_shell).from_user(head, read_path(path, method), body)
    except BadRequest as error:
        raise ConfigError(f"the gateway refuses this by itself: {error.text}") from error


def _body(method: str, asked: KubeAsked) -> tuple[bytes, str]:
    """The body in JSON, however the case writes it, and its type."""
    if not asked.body:
        return b"", ""
    content_type = asked.content_type or ("application/merge-patch+json" if method == "PATCH" else "application/json")
    if not content_type.endswith("json"):
        return asked.body.encode(), content_type
    try:
        value = YAML(typ="safe", pure=True).load(asked.body)
        return json.dumps(value).encode(), content_type
    except (YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError("the body is neither YAML nor JSON") from error


def _expected(verb: str, command: Command) -> Command:
    """What is asked for must be what it is read as: else the case would be about something else."""
    if command.verb != verb:
        raise ConfigError(f"the gateway takes this for {command.verb!r}, not for {verb!r}: {command.text[:200]}")
    return command
