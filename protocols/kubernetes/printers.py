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

# Field paths; with ".*" at the end: some of what is below. None at all: a count, or what tells nothing of a value.
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
    "status": ("status.*", "spec.unschedulable"),
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
    "external-ip": ("spec.externalIPs", "spec.externalName", "status.loadBalancer.*", "status.addresses.*"),
    "internal-ip": ("status.addresses.*",),
    "port(s)": ("spec.ports.*",),
    "ports": ("spec.tls.*", "ports.*"),
    "class": ("spec.ingressClassName",),
    "hosts": ("spec.rules.host",),
    "address": ("status.loadBalancer.*",),
    "endpoints": ("subsets.*", "endpoints.*"),
    "addresstype": ("addressType",),
    "version": ("status.nodeInfo.kubeletVersion",),
    "os-image": ("status.nodeInfo.osImage",),
    "kernel-version": ("status.nodeInfo.kernelVersion",),
    "container-runtime": ("status.nodeInfo.containerRuntimeVersion",),
    "reason": ("reason", "status.reason"),
    "object": ("involvedObject.*", "regarding.*"),
    "subobject": ("involvedObject.fieldPath", "regarding.fieldPath"),
    "source": ("source.*", "deprecatedSource.*", "reportingComponent"),
    "message": ("message", "note", "conditions.message"),
    "capacity": ("spec.capacity.*", "status.capacity.*"),
    "access modes": ("spec.accessModes", "status.accessModes"),
    "reclaim policy": ("spec.persistentVolumeReclaimPolicy",),
    "claim": ("spec.claimRef.*",),
    "storageclass": ("spec.storageClassName",),
    "volumeattributesclass": ("spec.volumeAttributesClassName",),
    "volume": ("spec.volumeName",),
    "volumemode": ("spec.volumeMode",),
    "reference": ("spec.scaleTargetRef.*",),
    "targets": ("spec.metrics.*", "status.currentMetrics.*"),
    "minpods": ("spec.minReplicas",),
    "maxpods": ("spec.maxReplicas",),
    "replicas": ("spec.replicas", "status.currentReplicas"),
    "min available": ("spec.minAvailable",),
    "max unavailable": ("spec.maxUnavailable",),
    "role": ("roleRef.*",),
    "users": ("subjects.*",),
    "groups": ("subjects.*",),
    "serviceaccounts": ("subjects.*",),
    "signername": ("spec.signerName",),
    "requestor": ("spec.username",),
    "requestedduration": ("spec.expirationSeconds",),
    "condition": ("status.*",),
    "holder": ("spec.holderIdentity",),
    "provisioner": ("provisioner",),
    "reclaimpolicy": ("reclaimPolicy",),
    "volumebindingmode": ("volumeBindingMode",),
    "allowvolumeexpansion": ("allowVolumeExpansion",),
    "controller": ("metadata.ownerReferences.*", "spec.controller"),
    "parameters": ("spec.parameters.*",),
    "revision": ("revision",),
    "request": ("spec.hard.*", "status.*"),
    "limit": ("spec.hard.*", "status.*"),
    "value": ("value",),
    "global-default": ("globalDefault",),
    "preemptionpolicy": ("preemptionPolicy",),
    "handler": ("handler",),
    "attacher": ("spec.attacher",),
    "pv": ("spec.source.persistentVolumeName",),
    "attached": ("status.attached",),
    "service": ("spec.service.*",),
}
