"""Answers of an API server as it makes them, with values that must not be seen: for the tests of masks."""

from __future__ import annotations

import base64
import json
from typing import Any

CANARY = 'hunter2-ünseen "quoted" \\ <&>'
OTHER = "plainly-visible"
LAST = "kubectl.kubernetes.io/last-applied-configuration"

Doc = dict[str, Any]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def metadata(name: str, applied: Doc | None = None, **more: Any) -> Doc:
    found: Doc = {
        "name": name,
        "namespace": "payments",
        "uid": "0f9ad0ec-7a7c-4b4e-8f4a-63b4f1a0c001",
        "resourceVersion": "123456",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"app": "api"},
        **more,
    }
    if applied is not None:
        found["annotations"] = {LAST: json.dumps(applied, separators=(",", ":")) + "\n", "note": OTHER}
    return found


def secret(name: str = "db", *, typed: bool = True) -> Doc:
    applied = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"annotations": {}, "name": name},
        "stringData": {"password": CANARY},
        "data": {"token": encoded(CANARY)},
    }
    head = {"kind": "Secret", "apiVersion": "v1"} if typed else {}
    owned = {"f:data": {".": {}, "f:password": {}}, "f:type": {}}
    managed = [{"manager": "kubectl", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": owned}]
    return {
        **head,
        "metadata": metadata(name, applied, managedFields=managed),
        "data": {"password": encoded(CANARY), "tls.crt": encoded(CANARY * 3), "empty": ""},
        "type": "Opaque",
    }


def config_map() -> Doc:
    applied = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"db-url": CANARY, "mode": OTHER}}
    return {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": metadata("settings", applied),
        "data": {"db-url": CANARY, "mode": OTHER},
        "binaryData": {"key": encoded(CANARY)},
    }


def pod_spec() -> Doc:
    env = [
        {"name": "LOG_LEVEL", "value": OTHER},
        {"name": "DB_PASSWORD", "value": CANARY},
        {"name": "DB_USER", "valueFrom": {"secretKeyRef": {"name": "db", "key": "user"}}},
    ]
    return {"containers": [{"name": "c", "image": "api:1", "env": env}], "nodeName": "n1"}


def pod(name: str = "api-7f6d", *, typed: bool = True) -> Doc:
    head = {"kind": "Pod", "apiVersion": "v1"} if typed else {}
    owner = [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "api", "uid": "1", "controller": True}]
    return {
        **head,
        "metadata": metadata(name, ownerReferences=owner),
        "spec": pod_spec(),
        "status": {"phase": "Running"},
    }


def deployment() -> Doc:
    spec = {"replicas": 2, "template": {"metadata": {"labels": {"app": "api"}}, "spec": pod_spec()}}
    applied = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "api"}, "spec": spec}
    return {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": metadata("api", applied), "spec": spec}


def custom() -> Doc:
    """An object of a resource that users defined, with a set, whose values stand in managedFields."""
    owned = {"f:spec": {"f:passwords": {".": {}, f"v:{json.dumps(CANARY)}": {}}, "f:size": {}}}
    managed = [{"manager": "op", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": owned}]
    spec = {"passwords": [CANARY], "size": 3, "ratio": 1.50, "admin": {"pin": 1234, "on": True}}
    applied = {"apiVersion": "example.com/v1", "kind": "Database", "spec": spec}
    meta = metadata("main", applied, managedFields=managed)
    return {"apiVersion": "example.com/v1", "kind": "Database", "metadata": meta, "spec": spec}


def listed(kind: str, *items: Doc, version: str = "v1") -> Doc:
    return {"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "9"}, "items": list(items)}


def partial(thing: Doc) -> Doc:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": thing["metadata"]}


def table(columns: list[Doc] | None, *rows: tuple[list[Any], Doc | None]) -> Doc:
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": "9"},
        "columnDefinitions": columns,
        "rows": [{"cells": cells, "object": thing} for cells, thing in rows],
    }


def column(name: str, type_name: str = "string", form: str = "") -> Doc:
    return {"name": name, "type": type_name, "format": form, "description": name, "priority": 0}


def event(kind: str, thing: Doc) -> Doc:
    return {"type": kind, "object": thing}


def compact(document: Any) -> bytes:
    """As Go writes it: no spaces, <, > and & escaped, a line break at the end."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode() + b"\n"


def shows(data: bytes, secret_text: str = CANARY) -> bool:
    """Tell whether a text is somewhere in an answer: plain, in base64, in JSON, in texts of texts."""
    return any(secret_text in text for text in _texts(json.loads(data)))


def _texts(value: Any, depth: int = 0) -> list[str]:
    if isinstance(value, dict):
        return [text for key, each in value.items() for text in (*_texts(key, depth), *_texts(each, depth))]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each, depth)]
    if not isinstance(value, str) or depth > 4:
        return [str(value)]
    found = [value]
    for decode in (lambda text: base64.b64decode(text, validate=True).decode(), json.loads):
        try:
            inner = decode(value)
        except ValueError:
            continue
        found += _texts(inner, depth + 1)
    if value[:2] in ("v:", "k:"):
        found += _texts(value[2:], depth + 1)
    return found
