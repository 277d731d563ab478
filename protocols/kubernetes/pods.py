"""What pods an object or a patch would make: their images, and what they may do beyond an ordinary pod.

Pods are looked for where the resource has them (a template's place), and wherever else something has a list of
containers, or asks for the host's namespaces: resources of others have templates too. Patches are read the same way, a
JSON patch as the objects that its operations build. A value of the wrong type counts as the dangerous one.

Left out: what a pod gets later (admission, defaults) and what the image itself says (its user).

Source: API reference 1.34, PodSpec and Container; Pod Security Standards; kubernetes note 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from protocols.kubernetes.bodies import Body, at, member

CONTAINERS: Final = ("initContainers", "containers", "ephemeralContainers")
WORD_LIMIT: Final = 1000  # images, or privileges, of one object; ours: more is told as opaque
_HOST: Final = ("hostNetwork", "hostPID", "hostIPC")
_SKIPPED: Final = frozenset({"managedFields", "status"})

_TEMPLATE: Final = ("spec", "template", "spec")
# Where a resource has its pods' spec.
SPEC_OF: Final = {
    "pods": ("spec",),
    "podtemplates": ("template", "spec"),
    "replicationcontrollers": _TEMPLATE,
    "deployments.apps": _TEMPLATE,
    "statefulsets.apps": _TEMPLATE,
    "daemonsets.apps": _TEMPLATE,
    "replicasets.apps": _TEMPLATE,
    "deployments.extensions": _TEMPLATE,
    "daemonsets.extensions": _TEMPLATE,
    "replicasets.extensions": _TEMPLATE,
    "jobs.batch": _TEMPLATE,
    "cronjobs.batch": ("spec", "jobTemplate", *_TEMPLATE),
}


@dataclass(frozen=True, slots=True)
class Pods:
    """What was found. opaque: there may be more that cannot be told."""

    images: tuple[str, ...] = ()
    privileges: tuple[str, ...] = ()
    opaque: bool = False


def read_pods(resource_name: str, body: Body) -> Pods:
    """Read the pods of a create, update or patch. Raises BadRequest for keys that are spelt in two ways."""
    images: dict[str, None] = {}
    privileges: dict[str, None] = {}
    opaque = body.opaque
    documents = [body.value]
    if body.form == "json-patch":
        documents = list(built(body.value))
        opaque = any(member(operation, "op") in ("copy", "move") for operation in body.value)
    seen: set[int] = set()
    for document in documents:
        for spec in _specs(resource_name, document):
            if id(spec) not in seen:  # an object that a YAML alias repeats, or that has both a place and containers
                seen.add(id(spec))
                images.update(dict.fromkeys(_images(spec)))
                privileges.update(dict.fromkeys(_privileges(spec)))
    opaque = opaque or len(images) > WORD_LIMIT or len(privileges) > WORD_LIMIT
    return Pods(tuple(images)[:WORD_LIMIT], tuple(privileges)[:WORD_LIMIT], opaque)


def pointer(text: str) -> list[str]:
    """Cut a JSON pointer. Source: RFC 6901 3 and 4."""
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def is_index(part: str) -> bool:
    """Tell whether a part of a pointer is a place in a list."""
    return part == "-" or (part.isascii() and part.isdecimal())


def built(operations: Any) -> Iterator[Any]:
    """Return, for each operation that sets a value, an object that has the value in its place."""
    for operation in operations:
        if member(operation, "op") in ("add", "replace"):
            value = member(operation, "value")
            for part in reversed(pointer(member(operation, "path") or "")):
                value = [value] if is_index(part) else {part: value}
            yield value


def _specs(resource_name: str, document: Any) -> Iterator[dict[str, Any]]:
    place = SPEC_OF.get(resource_name)
    if place is not None:
        items = member(document, "items")
        for each in (document, *(items if isinstance(items, list) else ())):
            found = at(each, *place)
            if isinstance(found, dict):
                yield found
    yield from _with_containers(document)


def _with_containers(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if any(isinstance(value.get(key), list) for key in CONTAINERS) or any(key in value for key in _HOST):
            yield value
        for key, child in value.items():
            if key not in _SKIPPED and isinstance(child, dict | list):
                yield from _with_containers(child)
    elif isinstance(value, list):
        for child in value:
            yield from _with_containers(child)


def _containers(spec: dict[str, Any]) -> Iterator[Any]:
    for key in CONTAINERS:
        yield from _list(member(spec, key))


def _list(value: Any) -> list[Any]:
    """The items of a list; a single object in its place counts as one."""
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def _images(spec: dict[str, Any]) -> Iterator[str]:
    for container in _containers(spec):
        if image := member(container, "image"):
            yield image if isinstance(image, str) else str(image)
    for volume in _list(member(spec, "volumes")):
        if reference := at(volume, "image", "reference"):  # an image that is mounted
            yield str(reference)


def _privileges(spec: dict[str, Any]) -> Iterator[str]:
    for key in _HOST:
        if _on(member(spec, key)):
            yield key
    account = member(spec, "serviceAccountName") or member(spec, "serviceAccount")
    if account:
        yield f"serviceAccount:{account}"
    if node := member(spec, "nodeName"):
        yield f"nodeName:{node}"
    for volume in _list(member(spec, "volumes")):
        host = member(volume, "hostPath")
        if host is not None:
            yield f"hostPath:{member(host, 'path') or '?'}"
    security = member(spec, "securityContext")
    yield from _of_security(security)
    for sysctl in _list(member(security, "sysctls")):
        yield f"sysctl:{member(sysctl, 'name')}"
    for container in _containers(spec):
        yield from _of_security(member(container, "securityContext"))
        for port in _list(member(container, "ports")):
            if number := member(port, "hostPort"):
                yield f"hostPort:{number}"


def _of_security(context: Any) -> Iterator[str]:
    """What a security context, of a pod or of a container, allows."""
    for key in ("privileged", "allowPrivilegeEscalation"):
        if _on(member(context, key)):
            yield key
    user = member(context, "runAsUser")
    if user is not None and not (type(user) is int and user > 0):
        yield "runAsUser:0"
    added = at(context, "capabilities", "add")
    for name in added if isinstance(added, list) else () if added is None else (added,):
        yield f"capabilities:{name}"
    if (mount := member(context, "procMount")) not in (None, "", "Default"):
        yield f"procMount:{mount}"
    for key in ("seccompProfile", "appArmorProfile"):
        if at(context, key, "type") == "Unconfined":
            yield f"{key}:Unconfined"
    if _on(at(context, "windowsOptions", "hostProcess")):
        yield "hostProcess"


def _on(value: Any) -> bool:
    return value is not None and value is not False
