"""A request as the kubectl line that a person would have typed: what approvers read, and what tapes show.

The line says what was asked for, whoever asked: a library's request gets the line that would have made it. What is in a
body stands behind it in brackets: the object, its replicas, images and privileges. Words are quoted as a shell wants.

Values of Secrets are left out. What has no kubectl command is shown as ``kubectl get --raw`` and its like, or as method
and path. Source: kubectl reference 1.34.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Final

from protocols.kubernetes.bodies import Body, at
from protocols.kubernetes.request_info import RequestInfo
from protocols.kubernetes.verbs import is_cluster_scoped

PATCH_LIMIT: Final = 2048  # characters of a patch in the line; the body is on the tape whole. Ours
LIST_LIMIT: Final = 20  # images, privileges or keys that are named
_HIDDEN: Final = "..."
_PATCH_TYPES: Final = {"json-patch": "json", "merge-patch": "merge", "strategic-merge-patch": "strategic"}
_RAW: Final = {"get": "get", "head": "get", "post": "create", "put": "replace", "delete": "delete"}


def kubectl_line(info: RequestInfo, verb: str, method: str, facts: Mapping[str, Any], body: Body) -> str:
    """Return the line of a request. verb and facts are the command's own."""
    if not info.is_resource or verb == "proxy":
        return _raw_line(info, method)
    words = ["kubectl"]
    if info.namespace and info.resource_name != "namespaces":
        words += ["-n", info.namespace]
    match verb:
        case "get" | "list" | "watch":
            words += _get(info, verb)
        case "log":
            words += _log(info)
        case "exec" | "attach" | "copy-in" | "copy-out":
            words += _stream(info, verb, facts)
        case "portforward":
            words += ["port-forward", info.name]
        case "debug":
            words += ["debug", info.name]
        case "delete" | "deletecollection":
            words += _delete(info, verb, body)
        case _:
            words += _write(info, verb, facts, body)
    if verb in ("create", "update", "patch", "delete", "deletecollection", "debug") and facts.get("dry_run"):
        words.append("--dry-run=server")
    note = _note(info, facts, body) if verb in ("create", "update", "patch", "debug") else ""
    return shlex.join(words) + note


def _raw_line(info: RequestInfo, method: str) -> str:
    raw = shlex.quote(info.raw)
    word = _RAW.get(method.lower())
    if word is None or method == "HEAD":
        return f"{method} {raw}"
    return f"kubectl {word} --raw {raw}" + (" -f -" if word in ("create", "replace") else "")


def _target(info: RequestInfo, name: str = "") -> list[str]:
    found = [info.resource_name, *([info.name or name] if info.name or name else [])]
    if info.subresource:
        found.append("--subresource=" + "/".join(info.parts[2:]))
    return found


def _selectors(info: RequestInfo) -> list[str]:
    words = []
    if selector := info.get("labelSelector"):
        words += ["-l", selector]
    selector = info.get("fieldSelector")
    if selector and selector not in (f"metadata.name={info.name}", f"metadata.name=={info.name}"):
        words += ["--field-selector", selector]
    return words


def _everywhere(info: RequestInfo) -> list[str]:
    return ["-A"] if not info.namespace and not info.name and is_cluster_scoped(info) is False else []


def _get(info: RequestInfo, verb: str) -> list[str]:
    words = ["get", *_target(info), *_everywhere(info), *_selectors(info)]
    return [*words, "-w"] if verb == "watch" else words


def _log(info: RequestInfo) -> list[str]:
    words = ["logs", info.name]
    if container := info.get("container"):
        words += ["-c", container]
    for flag, option in (("follow", "-f"), ("previous", "--previous"), ("timestamps", "--timestamps")):
        if info.flag(flag):
            words.append(option)
    for name, option in (("tailLines", "--tail"), ("sinceTime", "--since-time"), ("limitBytes", "--limit-bytes")):
        if value := info.get(name):
            words.append(f"{option}={value}")
    if seconds := info.get("sinceSeconds"):
        words.append(f"--since={seconds}s")
    return words


def _stream(info: RequestInfo, verb: str, facts: Mapping[str, Any]) -> list[str]:
    container = ["-c", facts["container"]] if facts.get("container") else []
    if verb in ("copy-in", "copy-out"):
        place = f"{info.name}:{facts['transfer_path']}"
        return ["cp", *container, *(("-", place) if verb == "copy-in" else (place, "-"))]
    words = [verb, info.name, *container]
    words += [option for key, option in (("stdin", "-i"), ("tty", "-t")) if facts.get(key)]
    return [*words, "--", *facts["argv"]] if facts.get("argv") else words


def _delete(info: RequestInfo, verb: str, body: Body) -> list[str]:
    words = ["delete", *_target(info)]
    if verb == "deletecollection":
        words += [*_everywhere(info), *(_selectors(info) or ["--all"])]
    grace = at(body.value, "gracePeriodSeconds") if body.form != "none" else info.get("gracePeriodSeconds")
    if grace is not None:
        words.append(f"--grace-period={grace}")
    policy = at(body.value, "propagationPolicy") if body.form != "none" else info.get("propagationPolicy")
    if policy is not None and policy != "Background":  # kubectl's default, which it says
        words.append(f"--cascade={str(policy).lower()}")
    return words


def _write(info: RequestInfo, verb: str, facts: Mapping[str, Any], body: Body) -> list[str]:
    replicas = at(body.value, "spec", "replicas") if info.subresource == "scale" else None
    if replicas is not None and not body.opaque:
        return ["scale", info.resource_name, info.name, f"--replicas={replicas}"]
    if verb == "create":
        return _create(info, facts, body)
    if verb == "update":
        return ["replace", *_subresource(info), "-f", "-"]
    if body.form == "apply-patch":
        forced = ["--force-conflicts"] if info.flag("force") else []
        return ["apply", "--server-side", *forced, *_subresource(info), "-f", "-"]
    if facts.get("field_manager") == "kubectl-client-side-apply":
        return ["apply", *_subresource(info), "-f", "-"]
    kind = _PATCH_TYPES.get(body.form)
    return ["patch", *_target(info), *([f"--type={kind}"] if kind else []), "-p", _patch(info, body)]


def _create(info: RequestInfo, facts: Mapping[str, Any], body: Body) -> list[str]:
    if info.subresource == "token":
        return ["create", "token", info.name]
    if info.subresource:
        return ["create", "--raw", info.raw, "-f", "-"]
    if info.resource_name == "selfsubjectaccessreviews.authorization.k8s.io" and (asked := _can_i(body)):
        return ["auth", "can-i", *asked]
    if info.resource_name == "selfsubjectreviews.authentication.k8s.io":
        return ["auth", "whoami"]
    applied = facts.get("field_manager") == "kubectl-client-side-apply"
    return ["apply" if applied else "create", "-f", "-"]


def _can_i(body: Body) -> list[str]:
    asked = at(body.value, "spec", "resourceAttributes")
    if isinstance(asked, dict):
        resource = ".".join(str(asked[key]) for key in ("resource", "group") if asked.get(key))
        place = f"{resource}/{asked['name']}" if asked.get("name") else resource
        words = [str(asked.get("verb", "")), place]
        words += [f"--subresource={asked['subresource']}"] if asked.get("subresource") else []
        return words + (["-n", str(asked["namespace"])] if asked.get("namespace") else [])
    asked = at(body.value, "spec", "nonResourceAttributes")
    return [str(asked.get("verb", "")), str(asked.get("path", ""))] if isinstance(asked, dict) else []


def _subresource(info: RequestInfo) -> list[str]:
    return [f"--subresource={info.subresource}"] if info.subresource else []


def _patch(info: RequestInfo, body: Body) -> str:
    value = body.value
    if info.resource_name == "secrets":
        value = _without_values(value)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= PATCH_LIMIT else f"{text[:PATCH_LIMIT]}... ({len(text)} characters)"


def _without_values(value: Any) -> Any:
    """A Secret's patch without any of its texts: which field is which differs between the forms of patches."""
    if isinstance(value, dict):
        return {key: each if key in ("op", "path", "from") else _without_values(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_values(each) for each in value]
    return _HIDDEN if isinstance(value, str) else value


def _note(info: RequestInfo, facts: Mapping[str, Any], body: Body) -> str:
    """What is in the body, in brackets."""
    words = []
    kind, name = at(body.value, "kind"), facts.get("name")
    if body.patch and body.form != "apply-patch":
        kind = kind if facts.get("field_manager") == "kubectl-client-side-apply" else None
        name = name if kind else None
    if isinstance(kind, str) and kind:
        words.append(f"{kind.lower()} {name}" if name else kind.lower())
    elif name and not body.patch:
        words.append(f"{info.resource_name} {name}")
    if info.resource_name in ("secrets", "configmaps") and body.form != "json-patch":
        keys = [key for place in ("data", "stringData", "binaryData") for key in at(body.value, place) or ()]
        words += [f"keys {_listed(sorted(map(str, keys)))}"] if keys else []
    replicas = at(body.value, "spec", "replicas") if isinstance(body.value, dict) else None
    if isinstance(replicas, int) and info.subresource != "scale":
        words.append(f"replicas {replicas}")
    if images := facts.get("images"):
        words.append(f"{'image' if len(images) == 1 else 'images'} {_listed(images)}")
    if privileges := facts.get("privileges"):
        words.append(f"with {_listed(privileges)}")
    if facts.get("opaque_body"):
        words.append("some of it cannot be read")
    return f" ({'; '.join(words)})" if words else ""


def _listed(words: Any) -> str:
    found = list(words)
    more = f", and {len(found) - LIST_LIMIT} more" if len(found) > LIST_LIMIT else ""
    return ", ".join(found[:LIST_LIMIT]) + more
