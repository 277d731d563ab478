"""The closed set of verbs of Kubernetes' commands, and the kind of each: what a rule's ``verbs`` may name.

Most are the API server's own words (RBAC). Ours: log, exec, attach, debug, portforward and proxy name subresources that
are more than reading and writing, whatever the HTTP method; copy-in and copy-out are an exec of the tar of kubectl cp;
connect is one connection of a port-forward; line a line typed in an exec; discover the requests that every client
begins with; get-path and path are requests for what is no resource.

The kind of a write depends on what is written: what gives rights, or runs in front of all requests, is admin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from protocols.kubernetes.request_info import RequestInfo
from proxy.core.events import Kind

KIND_OF: Final[Mapping[str, Kind]] = {
    "get": "read",
    "list": "read",
    "watch": "read",
    "log": "read",
    "create": "write",
    "update": "write",
    "patch": "write",
    "delete": "delete",
    "deletecollection": "delete",
    "exec": "execute",
    "attach": "execute",
    "debug": "execute",
    "line": "execute",
    "copy-in": "transfer",
    "copy-out": "transfer",
    "portforward": "session",
    "connect": "transfer",
    "proxy": "admin",
    "impersonate": "admin",
    "discover": "read",
    "get-path": "read",
    "path": "admin",
    "UNKNOWN": "unknown",
}
VERBS: Final = frozenset(KIND_OF)

# Verbs whose content nobody here can judge: only a rule that names the verb allows them.
OPAQUE: Final = frozenset({"proxy", "path", "impersonate"})
# Verbs whose request bodies nobody looks into: they are passed piece by piece.
UNREAD: Final = frozenset({"proxy", "path"})
UPGRADED: Final = frozenset({"exec", "attach", "portforward"})  # verbs whose connection turns into streams

_BY_SUBRESOURCE: Final = {"exec": "exec", "attach": "attach", "portforward": "portforward", "proxy": "proxy"}
_WRITES: Final = frozenset({"create", "update", "patch"})
_ADMIN: Final = frozenset({
    "roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io",
    "clusterroles.rbac.authorization.k8s.io", "clusterrolebindings.rbac.authorization.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "mutatingadmissionpolicies.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
    "customresourcedefinitions.apiextensions.k8s.io", "apiservices.apiregistration.k8s.io", "nodes",
    "certificatesigningrequests.certificates.k8s.io", "clustertrustbundles.certificates.k8s.io",
})  # fmt: skip
_ADMIN_SUBRESOURCES: Final = frozenset({"approval", "token"})
# Questions in the form of objects: they are posted, answered and forgotten.
_REVIEWS: Final = frozenset({"authorization.k8s.io", "authentication.k8s.io"})

# Built-in resources that are in no namespace. Source: API reference 1.34, "kubectl api-resources --namespaced=false".
CLUSTER_SCOPED: Final = _ADMIN - {"roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io"} | {
    "componentstatuses", "namespaces", "persistentvolumes",
    "selfsubjectreviews.authentication.k8s.io", "tokenreviews.authentication.k8s.io",
    "selfsubjectaccessreviews.authorization.k8s.io", "selfsubjectrulesreviews.authorization.k8s.io",
    "subjectaccessreviews.authorization.k8s.io",
    "flowschemas.flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
    "ingressclasses.networking.k8s.io", "ipaddresses.networking.k8s.io", "servicecidrs.networking.k8s.io",
    "runtimeclasses.node.k8s.io", "deviceclasses.resource.k8s.io", "resourceslices.resource.k8s.io",
    "priorityclasses.scheduling.k8s.io", "csidrivers.storage.k8s.io", "csinodes.storage.k8s.io",
    "storageclasses.storage.k8s.io", "volumeattachments.storage.k8s.io", "volumeattributesclasses.storage.k8s.io",
    "storageversions.internal.apiserver.k8s.io", "storageversionmigrations.storagemigration.k8s.io",
    "nodes.metrics.k8s.io",
}  # fmt: skip
# Those that are in one: a request for them that names none is for all.
NAMESPACED: Final = frozenset({
    "bindings", "configmaps", "endpoints", "events", "limitranges", "persistentvolumeclaims", "pods", "podtemplates",
    "replicationcontrollers", "resourcequotas", "secrets", "serviceaccounts", "services",
    "controllerrevisions.apps", "daemonsets.apps", "deployments.apps", "replicasets.apps", "statefulsets.apps",
    "localsubjectaccessreviews.authorization.k8s.io", "horizontalpodautoscalers.autoscaling",
    "cronjobs.batch", "jobs.batch", "leases.coordination.k8s.io", "leasecandidates.coordination.k8s.io",
    "endpointslices.discovery.k8s.io", "events.events.k8s.io", "ingresses.networking.k8s.io",
    "networkpolicies.networking.k8s.io", "poddisruptionbudgets.policy", "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io", "resourceclaims.resource.k8s.io",
    "resourceclaimtemplates.resource.k8s.io", "csistoragecapacities.storage.k8s.io", "pods.metrics.k8s.io",
})  # fmt: skip


def verb_of(info: RequestInfo) -> str:
    """Return our verb of a request; that of an exec may still become a copy's, by its argv."""
    if not info.is_resource:
        if is_plumbing(info):
            return "discover"
        return "get-path" if info.verb in ("get", "head") else "path"
    if info.subresource in _BY_SUBRESOURCE:
        return _BY_SUBRESOURCE[info.subresource]
    if info.resource_name == "pods":
        if info.subresource == "log" and info.verb == "get":
            return "log"
        if info.subresource == "ephemeralcontainers" and info.verb in ("update", "patch"):
            return "debug"
    return info.verb if info.verb in VERBS else "UNKNOWN"


def kind_of(info: RequestInfo, verb: str) -> Kind:
    """Return the kind of a request with our verb."""
    kind = KIND_OF[verb]
    if verb not in _WRITES:
        return kind
    if info.subresource == "eviction":
        return "delete"
    if info.subresource in _ADMIN_SUBRESOURCES or info.resource_name in _ADMIN:
        return "admin"
    if info.resource.endswith("reviews") and info.api_group in _REVIEWS:
        return "read"
    return kind


def is_plumbing(info: RequestInfo) -> bool:
    """Tell whether this is what every client asks before it asks for anything: what there is, and is it well.

    Source: kubernetes note 2, "Plumbing".
    """
    if info.is_resource or info.verb not in ("get", "head"):
        return False
    match info.parts:
        case ["version"] | ["api"] | ["api", _] | ["apis"] | ["apis", _] | ["apis", _, _]:
            return True
        case ["openapi", "v2"] | ["openapi", "v3", *_]:
            return True
        case ["healthz" | "readyz" | "livez", *_]:
            return True
        case _:
            return False


def is_cluster_scoped(info: RequestInfo) -> bool | None:
    """Tell whether what is asked for is in no namespace; None: nobody knows (a list of an unknown resource)."""
    if info.resource_name == "namespaces" or info.resource_name in CLUSTER_SCOPED:
        return True
    if info.namespace or info.resource_name in NAMESPACED:
        return False
    return True if info.name and info.verb not in ("list", "watch") else None


def object_of(info: RequestInfo, name: str | None = None) -> str:
    """Return what is touched: "payments/pods/api", "-/nodes/n1", "*/pods/*"; of no resource the path.

    name: that of the object in the body, where the path has none.
    """
    if not info.is_resource:
        return info.path
    scope = "-" if (clustered := is_cluster_scoped(info)) else info.namespace or "*"
    if clustered is None and info.verb == "create":
        scope = "-"  # what is in a namespace is created in one
    return f"{scope}/{info.resource_name}/{info.name or name or '*'}"
