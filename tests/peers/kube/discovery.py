"""What the stand-in says of itself: resources, discovery documents old and new, OpenAPI v3 and v2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.peers.kube import protobuf
from tests.peers.kube.protobuf import Schema

VERSION: Final = {
    "major": "1", "minor": "32", "gitVersion": "v1.32.4-standin", "gitCommit": "0", "gitTreeState": "clean",
    "buildDate": "2025-01-01T00:00:00Z", "goVersion": "go1.23", "compiler": "gc", "platform": "linux/amd64",
}  # fmt: skip
ALL_VERBS: Final = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of a group and version, or a subresource of one ("pods/log")."""

    plural: str
    kind: str
    singular: str = ""
    namespaced: bool = True
    verbs: tuple[str, ...] = ALL_VERBS
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    description: str = field(default="", compare=False)


_STREAM: Final = ("create", "get")
RESOURCES: Final[Mapping[str, tuple[Resource, ...]]] = {
    "v1": (
        Resource("namespaces", "Namespace", "namespace", False, short=("ns",)),
        Resource("nodes", "Node", "node", False, short=("no",)),
        Resource("pods", "Pod", "pod", short=("po",), categories=("all",), description="A group of containers."),
        Resource("pods/exec", "PodExecOptions", verbs=_STREAM),
        Resource("pods/attach", "PodAttachOptions", verbs=_STREAM),
        Resource("pods/portforward", "PodPortForwardOptions", verbs=_STREAM),
        Resource("pods/log", "Pod", verbs=("get",)),
        Resource("pods/ephemeralcontainers", "Pod", verbs=("get", "patch", "update")),
        Resource("pods/eviction", "Eviction", verbs=("create",)),
        Resource("secrets", "Secret", "secret", description="Secret holds secret data of a certain type."),
        Resource("configmaps", "ConfigMap", "configmap", short=("cm",)),
        Resource("services", "Service", "service", short=("svc",), categories=("all",)),
        Resource("serviceaccounts", "ServiceAccount", "serviceaccount", short=("sa",)),
        Resource("events", "Event", "event", short=("ev",)),
    ),
    "apps/v1": (
        Resource("deployments", "Deployment", "deployment", short=("deploy",), categories=("all",)),
        Resource("deployments/scale", "Scale", verbs=("get", "patch", "update")),
        Resource("replicasets", "ReplicaSet", "replicaset", short=("rs",), categories=("all",)),
    ),
    "rbac.authorization.k8s.io/v1": (
        Resource("clusterrolebindings", "ClusterRoleBinding", "clusterrolebinding", False),
        Resource("rolebindings", "RoleBinding", "rolebinding"),
    ),
    "authorization.k8s.io/v1": (
        Resource("selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False, verbs=("create",)),
    ),
    "authentication.k8s.io/v1": (
        Resource("selfsubjectreviews", "SelfSubjectReview", namespaced=False, verbs=("create",)),
    ),
}  # fmt: skip


def split(group_version: str) -> tuple[str, str]:
    """Return the group ("" for the core) and the version."""
    group, _, version = group_version.rpartition("/")
    return group, version


def find(group_version: str, plural: str) -> Resource | None:
    """Return a resource by its name."""
    return next((each for each in RESOURCES.get(group_version, ()) if each.plural == plural), None)


def resource_list(group_version: str) -> dict[str, Any]:
    """The APIResourceList of a group and version."""
    return {
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": [
            {
                "name": each.plural, "singularName": each.singular, "namespaced": each.namespaced, "kind": each.kind,
                "verbs": list(each.verbs), "shortNames": list(each.short), "categories": list(each.categories),
            }
            for each in RESOURCES[group_version]
        ],
    }  # fmt: skip


def versions() -> dict[str, Any]:
    """The answer of /api."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def groups() -> dict[str, Any]:
    """The answer of /apis."""
    found = []
    for each in RESOURCES:
        group, version = split(each)
        if group:
            named = {"groupVersion": each, "version": version}
            found.append({"name": group, "versions": [named], "preferredVersion": named})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


def aggregated(core: bool) -> dict[str, Any]:
    """The answer of /api or /apis in the form v2 of APIGroupDiscoveryList."""
    items = []
    for each in RESOURCES:
        group, version = split(each)
        if core != (group == ""):
            continue
        items.append(
            {
                "metadata": {"name": group, "creationTimestamp": None},
                "versions": [{"version": version, "resources": _discovered(each), "freshness": "Current"}],
            }
        )
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _discovered(group_version: str) -> list[dict[str, Any]]:
    group, version = split(group_version)
    found: dict[str, dict[str, Any]] = {}
    for each in RESOURCES[group_version]:
        kind = {"group": group, "version": version, "kind": each.kind}
        name, _, sub = each.plural.partition("/")
        if sub:
            entry = {"subresource": sub, "responseKind": kind, "verbs": list(each.verbs)}
            found[name].setdefault("subresources", []).append(entry)
            continue
        found[name] = {
            "resource": name, "responseKind": kind, "scope": "Namespaced" if each.namespaced else "Cluster",
            "singularResource": each.singular, "verbs": list(each.verbs), "shortNames": list(each.short),
            "categories": list(each.categories),
        }  # fmt: skip
    return list(found.values())


def openapi_v3_index() -> dict[str, Any]:
    """The answer of /openapi/v3."""
    places = {each: f"apis/{each}" if "/" in each else f"api/{each}" for each in RESOURCES}
    return {"paths": {at: {"serverRelativeURL": f"/openapi/v3/{at}?hash=1"} for at in places.values()}}


def openapi_v3(group_version: str) -> dict[str, Any]:
    """The OpenAPI v3 document of a group and version; its schemas take anything."""
    group, version = split(group_version)
    base = f"/apis/{group_version}" if group else f"/api/{version}"
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string"}}
        for name in ("dryRun", "fieldManager", "fieldValidation")
    ]
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for each in _whole(group_version):
        kind = {"group": group, "version": version, "kind": each.kind}
        at = f"{base}/namespaces/{{namespace}}/{each.plural}" if each.namespaced else f"{base}/{each.plural}"

        def does(action: str, kind: dict[str, str] = kind) -> dict[str, Any]:
            return {
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind, "parameters": parameters,
                "responses": {"200": {"description": "OK"}},
            }  # fmt: skip

        paths[at] = {"post": does("post")}
        paths[at + "/{name}"] = {"patch": does("patch"), "put": does("put")}
        schemas[f"standin.{each.kind}"] = {
            "type": "object", "description": each.description, "x-kubernetes-preserve-unknown-fields": True,
            "x-kubernetes-group-version-kind": [kind],
        }  # fmt: skip
    info = {"title": "standin", "version": "v1.32"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _whole(group_version: str) -> Iterator[Resource]:
    return (each for each in RESOURCES[group_version] if "/" not in each.plural)


# OpenAPI v2 as kubectl up to 1.28 reads it: in protobuf only. Source: gnostic's OpenAPIv2.proto.
_OPENAPI_V2: Final[Mapping[str, Schema]] = {
    "Document": {
        1: ("swagger", "str"), 2: ("info", "Info"), 8: ("paths", "Paths"), 9: ("definitions", "Definitions"),
    },
    "Info": {1: ("title", "str"), 2: ("version", "str")},
    "Paths": {2: ("path", ("list", "NamedPathItem"))},
    "NamedPathItem": {1: ("name", "str"), 2: ("value", "PathItem")},
    "PathItem": {8: ("patch", "Operation")},
    "Operation": {
        2: ("summary", "str"), 8: ("parameters", ("list", "ParametersItem")), 13: ("extensions", ("list", "NamedAny")),
    },
    "ParametersItem": {1: ("parameter", "Parameter")},
    "Parameter": {2: ("other", "NonBodyParameter")},
    "NonBodyParameter": {3: ("query", "QueryParameter")},
    "QueryParameter": {2: ("in", "str"), 4: ("name", "str"), 6: ("type", "str")},
    "Definitions": {1: ("additional_properties", ("list", "NamedSchema"))},
    "NamedSchema": {1: ("name", "str"), 2: ("value", "Schema")},
    "Schema": {4: ("description", "str"), 31: ("extensions", ("list", "NamedAny"))},
    "NamedAny": {1: ("name", "str"), 2: ("value", "Any")},
    "Any": {2: ("yaml", "str")},
}  # fmt: skip
OPENAPI_V2_MEDIA_TYPE: Final = (
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"  # with @, it is no media type
)
_KIND: Final = "x-kubernetes-group-version-kind"


def openapi_v2() -> bytes:
    """The OpenAPI v2 document: which kinds there are, that they take anything, and that PATCH knows dryRun."""
    definitions: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    query = [
        {"parameter": {"other": {"query": {"in": "query", "name": name, "type": "string"}}}}
        for name in ("dryRun", "fieldManager")
    ]
    for each in RESOURCES:
        group, version = split(each)
        for resource in _whole(each):
            named = f"group: '{group}'\nkind: {resource.kind}\nversion: {version}\n"
            listed = f"- group: '{group}'\n  kind: {resource.kind}\n  version: {version}\n"
            schema = {"description": resource.description, "extensions": [{"name": _KIND, "value": {"yaml": listed}}]}
            definitions.append({"name": f"standin.{group}.{version}.{resource.kind}", "value": schema})
            base = f"/apis/{each}" if group else f"/api/{version}"
            middle = "/namespaces/{namespace}" if resource.namespaced else ""
            patch = {"parameters": query, "extensions": [{"name": _KIND, "value": {"yaml": named}}]}
            paths.append({"name": f"{base}{middle}/{resource.plural}/{{name}}", "value": {"patch": patch}})
    document = {
        "swagger": "2.0", "info": {"title": "standin", "version": "v1.32"}, "paths": {"path": paths},
        "definitions": {"additional_properties": definitions},
    }  # fmt: skip
    return protobuf.encode(_OPENAPI_V2, "Document", document)
