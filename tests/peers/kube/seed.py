"""What is in the cluster when it starts. The values that begin with "s3cr3t" are canaries for tests."""

from __future__ import annotations

from typing import Any, Final

from tests.peers.kube.store import Store, base64_text, now
from tests.peers.kube.tables import Object

IMAGE: Final = "localhost/busybox:1"
# A container's life: a line every fifth of a second, and whatever comes on stdin said again.
TALKER: Final = (
    "n=0; (while true; do echo line $n; n=$((n+1)); sleep 0.2; done) & "
    'while read -r said; do echo "attached: $said"; done; wait'
)
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


def pod(namespace: str, name: str) -> Object:
    """Return a pod of two containers, with a password in its environment."""
    secret = {"secretKeyRef": {"name": f"{name}-db", "key": "password"}}
    return {
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name.split("-")[0]}},
        "spec": {
            "nodeName": "node-1", "restartPolicy": "Always",
            "containers": [
                {
                    "name": "main", "image": IMAGE, "stdin": True, "tty": False, "command": ["sh", "-c", TALKER],
                    "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                    "env": [
                        {"name": "DB_HOST", "value": "db.internal"},
                        {"name": "API_PASSWORD", "value": f"s3cr3t-env-{name}"},
                        {"name": "DB_PASSWORD", "valueFrom": secret},
                    ],
                },
                {"name": "sidecar", "image": IMAGE, "command": ["sleep", "infinity"]},
            ],
        },
    }  # fmt: skip


def running(item: Object) -> Object:
    """Give a pod the status of one that runs."""
    item["spec"].setdefault("securityContext", {})  # kube-apiserver's defaults: kubectl debug relies on it
    item["spec"].setdefault("terminationGracePeriodSeconds", 30)
    statuses: dict[str, list[dict[str, Any]]] = {}
    for field, status in (("containers", "containerStatuses"), ("ephemeralContainers", "ephemeralContainerStatuses")):
        statuses[status] = [
            {
                "name": each["name"], "ready": True, "restartCount": 0, "image": each["image"], "imageID": "",
                "state": {"running": {"startedAt": now()}},
            }
            for each in item["spec"].get(field) or []
        ]  # fmt: skip
    ready = [{"type": "Ready", "status": "True"}]
    item["status"] = {"phase": "Running", "podIP": "127.0.0.1", "conditions": ready, **statuses}
    return item


def ended(item: Object, code: int) -> Object:
    """Give a pod the status of one whose containers have ended."""
    for each in item["status"]["containerStatuses"]:
        times = {"startedAt": now(), "finishedAt": now(), "reason": "Completed" if code == 0 else "Error"}
        each |= {"ready": False, "state": {"terminated": {"exitCode": code, **times}}}
    item["status"]["phase"] = "Succeeded" if code == 0 else "Failed"
    return item


def seed(store: Store) -> None:
    """Put everything there."""
    for name in ("default", "kube-system", "prod"):
        item: Object = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}}
        store.put("namespaces", {**item, "status": {"phase": "Active"}}, "ADDED")
    store.put("nodes", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node-1"}, "status": {}}, "ADDED")
    for namespace, name in (("default", "web-0"), ("default", "web-1"), ("prod", "db-0")):
        store.put("pods", running(pod(namespace, name)), "ADDED")
        password = base64_text(f"s3cr3t-{name}")
        metadata = {
            "name": f"{name}-db", "namespace": namespace,
            "annotations": {LAST_APPLIED: f'{{"data":{{"password":"{password}"}}}}'},
        }  # fmt: skip
        data = {"username": base64_text("app"), "password": password}
        secret = {"kind": "Secret", "apiVersion": "v1", "type": "Opaque", "metadata": metadata, "data": data}
        store.put("secrets", secret, "ADDED")
    app = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "app", "namespace": "default"}}
    store.put("configmaps", {**app, "data": {"mode": "test", "db-url": "postgres://app:s3cr3t-cm@db/app"}}, "ADDED")
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": IMAGE}]}}
    deployment = {
        "kind": "Deployment", "apiVersion": "apps/v1",
        "metadata": {"name": "web", "namespace": "default", "labels": labels},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
        "status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2},
    }  # fmt: skip
    store.put("deployments", deployment, "ADDED")
