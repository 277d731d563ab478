"""Objects as the server-side Table that kubectl get prints (meta.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

Object = dict[str, Any]
COLUMNS: Final = {
    "pods": ("Name", "Ready", "Status", "Restarts", "Age"),
    "secrets": ("Name", "Type", "Data", "Age"),
    "configmaps": ("Name", "Data", "Age"),
    "namespaces": ("Name", "Status", "Age"),
    "deployments": ("Name", "Ready", "Up-to-date", "Available", "Age"),
}


def cells(plural: str, item: Object) -> list[Any]:
    """The cells of a row."""
    name, status = item["metadata"]["name"], item.get("status", {})
    match plural:
        case "pods":
            containers = status.get("containerStatuses", [])
            ready = sum(bool(each["ready"]) for each in containers)
            return [name, f"{ready}/{len(containers)}", status.get("phase", ""), 0, "1m"]
        case "secrets":
            return [name, item.get("type", "Opaque"), len(item.get("data") or {}), "1m"]
        case "configmaps":
            return [name, len(item.get("data") or {}), "1m"]
        case "namespaces":
            return [name, status.get("phase", ""), "1m"]
        case "deployments":
            ready, wanted = status.get("readyReplicas", 0), item.get("spec", {}).get("replicas", 0)
            return [name, f"{ready}/{wanted}", wanted, status.get("availableReplicas", 0), "1m"]
        case _:
            return [name, "1m"]


def table(plural: str, items: Sequence[Object], version: str, include: str, *, head: bool = True) -> Object:
    """Return the Table. include: None, Metadata or Object; head: with column definitions."""
    columns = [
        {"name": name, "type": "string", "format": "name" if name == "Name" else "", "description": name, "priority": 0}
        for name in COLUMNS.get(plural, ("Name", "Age"))
    ]
    return {
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version},
        "columnDefinitions": columns if head else None,
        "rows": [{"cells": cells(plural, each), "object": _object(each, include)} for each in items],
    }  # fmt: skip


def _object(item: Object, include: str) -> Object | None:
    if include == "None":
        return None
    if include == "Object":
        return item
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}
