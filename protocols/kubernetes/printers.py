"""What the columns of the server's own tables show: by the column's name, the fields that its cells are made of.

``kubectl get`` asks for tables: the server makes their cells, and a masked field may be in one. Of the server's own
resources the columns are code, listed here; a column that is not listed may show anything. Columns of custom resources
are whatever their author wrote (additionalPrinterColumns), under any name: only the object's name and dates are known.

Source: Kubernetes 1.34, pkg/printers/internalversion/printers.go; apiextensions-apiserver pkg/registry/customresource/
tableconvertor.go.
"""

from __future__ import annotations

from typing import Final

_CONTAINERS: Final = tuple(
    f"{where}.containers"
    for where in ("spec", "spec.template.spec", "spec.jobTemplate.spec.template.spec", "template.spec")
)

_STATES: Final = tuple(
    f"status.{which}.state.{state}.{field}"
    for which in ("containerStatuses", "initContainerStatuses")
    for state in ("waiting", "terminated")
    for field in ("reason", "exitCode", "signal")
)

_QUOTA: Final = ("spec.hard.*", "status.hard.*", "status.used.*")

# Field paths; with ".*" at the end: a map, whose cell is like key=value,key=value. None at all: a count, or what tells
# nothing.
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        (
            *("name", "namespace", "age", "created at", "ready", "restarts", "data", "secrets", "desired", "current"),
            *("up-to-date", "available", "duration", "active", "webhooks", "completions", "allowed disruptions"),
            *("readiness gates", "drivers", "missingpl", "first seen", "last seen", "count", "roles"),
        ),
        (),
    ),
    "type": ("type", "spec.type"),
    "status": ("status.phase", "status.reason", *_STATES, "status.conditions.type", "spec.unschedulable"),
    "ip": ("status.podIP", "status.podIPs.ip"),
    "node": ("spec.nodeName",),
    "nominated node": ("status.nominatedNodeName",),
    "containers": tuple(f"{where}.name" for where in _CONTAINERS),
    "images": tuple(f"{where}.image" for where in _CONTAINERS),
    "pod labels": ("template.metadata.labels.*",),
    "selector": ("spec.selector.*",),
    "pod-selector": ("spec.podSelector.*",),
    "node selector": ("spec.template.spec.nodeSelector.*",),
    "schedule": ("spec.schedule",),
    "timezone": ("spec.timeZone",),
    "suspend": ("spec.suspend",),
    "last schedule": ("status.lastScheduleTime",),
    "cluster-ip": ("spec.clusterIP", "spec.clusterIPs"),
    "external-ip": (
        *("spec.externalIPs", "spec.externalName", "status.addresses.address"),
        *("status.loadBalancer.ingress.ip", "status.loadBalancer.ingress.hostname"),
    ),
    "internal-ip": ("status.addresses.address",),
    "port(s)": ("spec.ports.port", "spec.ports.nodePort", "spec.ports.protocol"),
    "ports": ("spec.tls", "ports.port"),
    "class": ("spec.ingressClassName",),
    "hosts": ("spec.rules.host",),
    "address": ("status.loadBalancer.ingress.ip", "status.loadBalancer.ingress.hostname"),
    "endpoints": ("subsets.addresses.ip", "subsets.ports.port", "endpoints.addresses"),
    "addresstype": ("addressType",),
    "version": ("status.nodeInfo.kubeletVersion",),
    "os-image": ("status.nodeInfo.osImage",),
    "kernel-version": ("status.nodeInfo.kernelVersion",),
    "container-runtime": ("status.nodeInfo.containerRuntimeVersion",),
    "reason": ("reason", "status.reason"),
    "object": ("involvedObject.name", "involvedObject.kind", "regarding.name", "regarding.kind"),
    "subobject": ("involvedObject.fieldPath", "regarding.fieldPath"),
    "source": (
        *("source.component", "source.host", "deprecatedSource.component", "deprecatedSource.host"),
        *("reportingComponent", "reportingController", "reportingInstance"),
    ),
    "message": ("message", "note", "conditions.message"),
    "capacity": ("spec.capacity.storage", "status.capacity.storage"),
    "access modes": ("spec.accessModes", "status.accessModes"),
    "reclaim policy": ("spec.persistentVolumeReclaimPolicy",),
    "claim": ("spec.claimRef.namespace", "spec.claimRef.name"),
    "storageclass": ("spec.storageClassName",),
    "volumeattributesclass": ("spec.volumeAttributesClassName",),
    "volume": ("spec.volumeName",),
    "volumemode": ("spec.volumeMode",),
    "reference": ("spec.scaleTargetRef.kind", "spec.scaleTargetRef.name"),
    "targets": tuple(
        f"{where}.{kind}.{part}.{value}"
        for where, part in (("spec.metrics", "target"), ("status.currentMetrics", "current"))
        for kind in ("resource", "containerResource", "pods", "object", "external")
        for value in ("value", "averageValue", "averageUtilization")
    ),
    "minpods": ("spec.minReplicas",),
    "maxpods": ("spec.maxReplicas",),
    "replicas": ("spec.replicas", "status.currentReplicas"),
    "min available": ("spec.minAvailable",),
    "max unavailable": ("spec.maxUnavailable",),
    "role": ("roleRef.kind", "roleRef.name"),
    "users": ("subjects.name",),
    "groups": ("subjects.name",),
    "serviceaccounts": ("subjects.name", "subjects.namespace"),
    "signername": ("spec.signerName",),
    "requestor": ("spec.username",),
    "requestedduration": ("spec.expirationSeconds",),
    "condition": ("status.conditions.type",),
    "holder": ("spec.holderIdentity",),
    "provisioner": ("provisioner",),
    "reclaimpolicy": ("reclaimPolicy",),
    "volumebindingmode": ("volumeBindingMode",),
    "allowvolumeexpansion": ("allowVolumeExpansion",),
    "controller": ("metadata.ownerReferences.kind", "metadata.ownerReferences.name", "spec.controller"),
    "parameters": ("spec.parameters.kind", "spec.parameters.name", "spec.parameters.apiGroup"),
    "revision": ("revision",),
    "request": _QUOTA,
    "limit": _QUOTA,
    "value": ("value",),
    "global-default": ("globalDefault",),
    "preemptionpolicy": ("preemptionPolicy",),
    "handler": ("handler",),
    "attacher": ("spec.attacher",),
    "pv": ("spec.source.persistentVolumeName",),
    "attached": ("status.attached",),
    "service": ("spec.service.namespace", "spec.service.name"),
}
