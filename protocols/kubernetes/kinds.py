"""Which resource an object is of: from its kind and apiVersion, as a document says them of itself.

The server's own kinds are listed, by group; their resource is the plural of the kind. Those that users define choose
their plural freely, and a document does not tell it: such an object is of the resource that was asked for if the groups
agree, else of one that nobody knows (UNKNOWN). Lists and tables are of what they hold.

Source: Kubernetes 1.32-1.34 API reference; k8s.io/apimachinery/pkg/api/meta, UnsafeGuessKindToResource.
"""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = "*"  # in the place of a resource: see FieldMask in proxy/core/events.py

# By group; "kind=resource" where the resource is not the kind's plural.
_CORE: Final = {
    "": "Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume"
    " PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount",
    "apps": "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet",
    "batch": "CronJob Job",
    "autoscaling": "HorizontalPodAutoscaler Scale",
    "policy": "Eviction PodDisruptionBudget",
    "extensions": "Ingress Deployment DaemonSet ReplicaSet",
    "networking.k8s.io": "IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR",
    "rbac.authorization.k8s.io": "ClusterRole ClusterRoleBinding Role RoleBinding",
    "storage.k8s.io": "CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass",
    "apiextensions.k8s.io": "CustomResourceDefinition",
    "apiregistration.k8s.io": "APIService",
    "admissionregistration.k8s.io": "MutatingAdmissionPolicy MutatingAdmissionPolicyBinding"
    " MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding"
    " ValidatingWebhookConfiguration",
    "authentication.k8s.io": "SelfSubjectReview TokenRequest=serviceaccounts/token TokenReview",
    "authorization.k8s.io": "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview"
    " SubjectAccessReview",
    "certificates.k8s.io": "CertificateSigningRequest ClusterTrustBundle PodCertificateRequest",
    "coordination.k8s.io": "Lease LeaseCandidate",
    "discovery.k8s.io": "EndpointSlice",
    "events.k8s.io": "Event",
    "flowcontrol.apiserver.k8s.io": "FlowSchema PriorityLevelConfiguration",
    "node.k8s.io": "RuntimeClass",
    "resource.k8s.io": "DeviceClass DeviceTaintRule ResourceClaim ResourceClaimTemplate ResourceSlice",
    "scheduling.k8s.io": "PriorityClass",
    "metrics.k8s.io": "NodeMetrics=nodes PodMetrics=pods",
}
# What stands for an object of any kind, or for several.
WRAPPERS: Final = frozenset({"List", "Table", "PartialObjectMetadata", "PartialObjectMetadataList", "WatchEvent"})


def plural(kind: str) -> str:
    """Return the plural of a kind in lower case, as kubectl guesses it."""
    name = kind.lower()
    if name.endswith("endpoints"):
        return name
    if name.endswith("s"):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") else name + "s"


def _table() -> dict[tuple[str, str], str]:
    found = {}
    for group, words in _CORE.items():
        for word in words.split():
            kind, _, resource = word.partition("=")
            name, slash, subresource = (resource or plural(kind)).partition("/")
            found[group, kind] = (f"{name}.{group}" if group and not slash else name) + slash + subresource
    return found


_RESOURCES: Final = _table()
_KINDS: Final = {resource: kind for (_, kind), resource in _RESOURCES.items()}


def kind_of(resource: str) -> str | None:
    """Return the kind of a resource of the server's own, None for others. "events" is that of all groups."""
    return _KINDS.get(resource)


def is_own(resource: str) -> bool:
    """Tell whether a resource is one of the server's own."""
    return resource.partition("/")[0] in _KINDS or resource in _KINDS


def group_of(api_version: str) -> str:
    """Return the group of an apiVersion: "apps" of "apps/v1", "" of "v1"."""
    group, slash, _ = api_version.partition("/")
    return group if slash else ""


def resources_of(kind: str, api_version: str, asked: str | None) -> tuple[str, ...]:
    """Return what an object is of, by all the names that masks may know it by; asked: what the request was about."""
    if not kind or kind in WRAPPERS:
        return (asked or UNKNOWN,)
    group = group_of(api_version)
    known = _RESOURCES.get((group, kind))
    if known is not None:
        # The scale of a deployment is a Scale, and something of deployments.
        return (known,) if asked is None or asked == known else (known, asked)
    if asked is not None and asked.partition("/")[0].partition(".")[2] == group and asked not in _KINDS:
        return (asked,)
    return (UNKNOWN,)
