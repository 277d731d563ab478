"""A container runtime's CRI v1 (RuntimeService), as a kubelet calls it: gRPC with messages encoded by tables.

The few fields that a pod on the host's network and its containers need. Source: k8s.io/cri-api runtime/v1 api.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc  # type: ignore[import-untyped]

from tests.peers.kube import protobuf
from tests.peers.kube.image import IMAGE
from tests.peers.kube.protobuf import Schema

CALL_SECONDS: Final = 30.0
_NODE: Final = 2  # NamespaceMode: the host's
_CONTAINER: Final = 1
_EXITED: Final = 2  # ContainerState
_SPACES: Final = {"network": _NODE, "pid": _CONTAINER}
CRI: Final[Mapping[str, Schema]] = {
    "Nothing": {},
    "VersionAnswer": {2: ("runtime_name", "str"), 3: ("runtime_version", "str")},
    "Namespaces": {1: ("network", "int"), 2: ("pid", "int"), 3: ("ipc", "int")},
    "PodMetadata": {1: ("name", "str"), 2: ("uid", "str"), 3: ("namespace", "str"), 4: ("attempt", "int")},
    "PodSecurity": {1: ("namespace_options", "Namespaces")},
    "PodLinux": {2: ("security_context", "PodSecurity")},
    "Pod": {1: ("metadata", "PodMetadata"), 3: ("log_directory", "str"), 8: ("linux", "PodLinux")},
    "RunPod": {1: ("config", "Pod")},
    "PodId": {1: ("pod_sandbox_id", "str")},
    "ContainerMetadata": {1: ("name", "str"), 2: ("attempt", "int")},
    "Image": {1: ("image", "str")},
    "Variable": {1: ("key", "str"), 2: ("value", "str")},
    "ContainerSecurity": {3: ("namespace_options", "Namespaces")},
    "ContainerLinux": {2: ("security_context", "ContainerSecurity")},
    "Container": {
        1: ("metadata", "ContainerMetadata"), 2: ("image", "Image"), 3: ("command", ("list", "str")),
        4: ("args", ("list", "str")), 6: ("envs", ("list", "Variable")), 11: ("log_path", "str"),
        12: ("stdin", "bool"), 13: ("stdin_once", "bool"),
        14: ("tty", "bool"), 15: ("linux", "ContainerLinux"),
    },
    "CreateContainer": {1: ("pod_sandbox_id", "str"), 2: ("config", "Container"), 3: ("sandbox_config", "Pod")},
    "ContainerId": {1: ("container_id", "str")},
    "StopContainer": {1: ("container_id", "str"), 2: ("timeout", "int")},
    "Exec": {
        1: ("container_id", "str"), 2: ("cmd", ("list", "str")), 3: ("tty", "bool"), 4: ("stdin", "bool"),
        5: ("stdout", "bool"), 6: ("stderr", "bool"),
    },
    "Attach": {
        1: ("container_id", "str"), 2: ("stdin", "bool"), 3: ("tty", "bool"), 4: ("stdout", "bool"),
        5: ("stderr", "bool"),
    },
    "StatusAnswer": {1: ("status", "Status")},
    "Status": {3: ("state", "int"), 7: ("exit_code", "int")},
    "Url": {1: ("url", "str")},
}  # fmt: skip


class CriError(Exception):
    """The runtime refused a call."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod that runs: its id, and what it was made from."""

    id: str
    config: Mapping[str, Any]


class Runtime:
    """The calls. All of them block. Raises CriError."""

    def __init__(self, socket: Path) -> None:
        # Without an authority of its own gRPC sends the socket's path, which containerd refuses.
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, name: str, asks: str, answers: str, value: Mapping[str, Any]) -> dict[str, Any]:
        call = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{name}",
            request_serializer=lambda each: protobuf.encode(CRI, asks, each),
            response_deserializer=lambda data: protobuf.decode(CRI, answers, data),
        )
        try:
            return dict(call(value, timeout=CALL_SECONDS))
        except grpc.RpcError as error:
            raise CriError(f"{name}: {error.details()}") from error

    def version(self) -> str:
        """The runtime's name and version."""
        answer = self._call("Version", "Nothing", "VersionAnswer", {})
        return f"{answer['runtime_name']} {answer['runtime_version']}"

    def run_pod(self, namespace: str, name: str, uid: str, logs: Path) -> Sandbox:
        """Start a pod's sandbox on the host's network."""
        config = {
            "metadata": {"name": name, "uid": uid, "namespace": namespace},
            "log_directory": str(logs),
            "linux": {"security_context": {"namespace_options": _SPACES}},
        }
        return Sandbox(self._call("RunPodSandbox", "RunPod", "PodId", {"config": config})["pod_sandbox_id"], config)

    def run_container(self, pod: Sandbox, spec: Mapping[str, Any], environment: Mapping[str, str]) -> str:
        """Create and start a container by its specification in the pod; return its id."""
        config = {
            "metadata": {"name": spec["name"]}, "image": {"image": IMAGE},
            "command": spec.get("command") or (None if spec.get("args") else ["sleep", "infinity"]),
            "args": spec.get("args") or [],
            "envs": [{"key": name, "value": value} for name, value in environment.items()],
            "log_path": f"{spec['name']}.log", "stdin": bool(spec.get("stdin")),
            "stdin_once": bool(spec.get("stdinOnce")), "tty": bool(spec.get("tty")),
            "linux": {"security_context": {"namespace_options": _SPACES}},
        }  # fmt: skip
        wanted = {"pod_sandbox_id": pod.id, "config": config, "sandbox_config": pod.config}
        made = self._call("CreateContainer", "CreateContainer", "ContainerId", wanted)
        self._call("StartContainer", "ContainerId", "Nothing", made)
        return str(made["container_id"])

    def stop(self, pod: Sandbox, containers: Sequence[str]) -> None:
        """Kill a pod's containers, and remove them and the pod."""
        for each in containers:
            self._call("StopContainer", "StopContainer", "Nothing", {"container_id": each, "timeout": 0})
            self._call("RemoveContainer", "ContainerId", "Nothing", {"container_id": each})
        self._call("StopPodSandbox", "PodId", "Nothing", {"pod_sandbox_id": pod.id})
        self._call("RemovePodSandbox", "PodId", "Nothing", {"pod_sandbox_id": pod.id})

    def exit_code(self, container: str) -> int | None:
        """The exit code of a container; None while it runs."""
        answer = self._call("ContainerStatus", "ContainerId", "StatusAnswer", {"container_id": container})["status"]
        return int(answer.get("exit_code", 0)) if answer.get("state") == _EXITED else None

    def exec_url(self, container: str, argv: Sequence[str], flags: Mapping[str, bool]) -> str:
        """Where the streams of a command are served."""
        return str(self._call("Exec", "Exec", "Url", {"container_id": container, "cmd": argv, **flags})["url"])

    def attach_url(self, container: str, flags: Mapping[str, bool]) -> str:
        """Where the streams of a container itself are served."""
        return str(self._call("Attach", "Attach", "Url", {"container_id": container, **flags})["url"])

    def forward_url(self, pod: Sandbox) -> str:
        """Where port-forwards of a pod are served."""
        return str(self._call("PortForward", "PodId", "Url", {"pod_sandbox_id": pod.id})["url"])
