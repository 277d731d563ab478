# ruff: noqa: E501  # rows of tables
"""Images and privileges of what a request would make, in every form that it can come in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocols.kubernetes.bodies import read_body
from protocols.kubernetes.pods import SPEC_OF, WORD_LIMIT, Pods, built, pointer, read_pods
from proxy.core.http.heads import BadRequest

JSON = "application/json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
OPERATIONS = "application/json-patch+json"
YAML = "application/apply-patch+yaml"

SPEC: dict[str, Any] = {
    "hostNetwork": True,
    "hostPID": False,
    "serviceAccountName": "deployer",
    "containers": [{"name": "a", "image": "a:1", "securityContext": {"privileged": True}}],
    "initContainers": [{"name": "b", "image": "b:1"}],
}
FOUND = Pods(("b:1", "a:1"), ("hostNetwork", "serviceAccount:deployer", "privileged"))


def pods(value: object, resource: str = "pods", content_type: str = JSON) -> Pods:
    return read_pods(resource, read_body(content_type, json.dumps(value).encode()))


def of_container(**more: object) -> set[str]:
    return set(pods({"spec": {"containers": [{"image": "x", **more}]}}).privileges)


def of_security(**context: object) -> set[str]:
    return of_container(securityContext=context)


def test_pods_are_found_at_the_place_of_every_resource() -> None:
    for resource, place in SPEC_OF.items():
        value: Any = SPEC
        for key in reversed(place):
            value = {key: value}
        for content_type in (JSON, MERGE, STRATEGIC, YAML):
            assert pods(value, resource, content_type) == FOUND, (resource, content_type)
        assert pods({"items": [value]}, resource) == FOUND
        only: Any = {"hostNetwork": True, "nodeName": "n1"}  # no containers: a patch
        for key in reversed(place):
            only = {key: only}
        assert pods(only, resource, MERGE).privileges == ("hostNetwork", "nodeName:n1")


def test_pods_are_found_in_resources_of_others() -> None:
    assert pods({"spec": {"template": {"spec": SPEC}}}, "rollouts.argoproj.io") == FOUND
    assert pods({"spec": {"workers": [{"pod": SPEC}]}}, "clusters.example.com") == FOUND
    assert pods({"spec": {"x": {"hostPID": True}}}, "things.example.com", MERGE).privileges == ("hostPID",)
    assert pods({"spec": {"schema": {"containers": {"type": "array"}}}}, "things.example.com") == Pods()
    assert pods({"status": {"containers": [{"image": "x"}]}}) == Pods()


def test_privileges_of_a_pod() -> None:
    for spec, expected in (
        ({"hostPID": True, "hostIPC": True}, {"hostPID", "hostIPC"}),
        ({"hostNetwork": False, "hostPID": None}, set()),
        ({"hostNetwork": "y"}, {"hostNetwork"}),
        ({"hostNetwork": 1}, {"hostNetwork"}),
        ({"serviceAccount": "old"}, {"serviceAccount:old"}),
        ({"nodeName": "n1"}, {"nodeName:n1"}),
        ({"volumes": [{"hostPath": {"path": "/var/run"}}, {"emptyDir": {}}]}, {"hostPath:/var/run"}),
        ({"volumes": [{"hostPath": {}}]}, {"hostPath:?"}),
        ({"volumes": {"hostPath": {"path": "/"}}}, {"hostPath:/"}),
        ({"securityContext": {"runAsUser": 0, "seccompProfile": {"type": "Unconfined"}}}, {"runAsUser:0", "seccompProfile:Unconfined"}),
        ({"securityContext": {"runAsUser": 1000, "sysctls": [{"name": "kernel.msgmax"}]}}, {"sysctl:kernel.msgmax"}),
        ({"securityContext": {"windowsOptions": {"hostProcess": True}}}, {"hostProcess"}),
    ):  # fmt: skip
        assert set(pods({"spec": spec}).privileges) == expected, spec


def test_privileges_of_a_container() -> None:
    assert of_container() == set()
    assert of_security(privileged=True) == {"privileged"}
    assert of_security(privileged=False, allowPrivilegeEscalation=False, runAsUser=1) == set()
    assert of_security(allowPrivilegeEscalation=True) == {"allowPrivilegeEscalation"}
    assert of_security(capabilities={"add": ["SYS_ADMIN", "NET_RAW"], "drop": ["ALL"]}) == {
        "capabilities:SYS_ADMIN", "capabilities:NET_RAW",
    }  # fmt: skip
    for user in (0, -1, "0", "root", False, 0.0, {}):
        assert of_security(runAsUser=user) == {"runAsUser:0"}, user
    assert of_security(procMount="Unmasked") == {"procMount:Unmasked"}
    assert of_security(procMount="Default") == set()
    assert of_container(ports=[{"hostPort": 80}, {"containerPort": 81}, {"hostPort": 0}]) == {"hostPort:80"}


def test_ephemeral_containers_and_mounted_images() -> None:
    patch = {
        "spec": {"ephemeralContainers": [{"name": "d", "image": "busybox", "securityContext": {"privileged": True}}]}
    }
    assert pods(patch, "pods", STRATEGIC) == Pods(("busybox",), ("privileged",))
    assert pods({"spec": {"volumes": [{"image": {"reference": "data:1"}}]}}).images == ("data:1",)


def test_a_json_patch_is_read_as_what_it_builds() -> None:
    for place, value, expected in (
        ("/spec/template/spec/containers/0/image", "evil:1", Pods(("evil:1",))),
        ("/spec/template/spec/containers/-", {"image": "c:1"}, Pods(("c:1",))),
        ("/spec/template/spec/containers/0/securityContext/privileged", True, Pods((), ("privileged",))),
        ("/spec/template/spec/containers/0/securityContext/capabilities/add/-", "SYS_ADMIN", Pods((), ("capabilities:SYS_ADMIN",))),
        ("/spec/template/spec/hostNetwork", True, Pods((), ("hostNetwork",))),
        ("/spec/template/spec/volumes/1", {"hostPath": {"path": "/"}}, Pods((), ("hostPath:/",))),
        ("/spec/template/spec/volumes/0/hostPath/path", "/etc", Pods((), ("hostPath:/etc",))),
        ("/spec/template/spec", SPEC, FOUND),
        ("/spec", {"template": {"spec": SPEC}}, FOUND),
        ("", {"spec": {"template": {"spec": SPEC}}}, FOUND),
        ("/metadata/annotations/a~1b", "x", Pods()),
    ):  # fmt: skip
        for op in ("add", "replace"):
            found = pods([{"op": op, "path": place, "value": value}], "deployments.apps", OPERATIONS)
            assert found == expected, place
        assert pods([{"op": "test", "path": place, "value": value}], "deployments.apps", OPERATIONS) == Pods()
    assert pods(
        [{"op": "copy", "from": "/metadata/labels/x", "path": "/spec/containers/0/image"}], "pods", OPERATIONS
    ).opaque
    assert pods([{"op": "move", "from": "/a", "path": "/b"}], "pods", OPERATIONS).opaque


def test_pointers() -> None:
    assert pointer("") == []
    assert pointer("/") == [""]
    assert pointer("/a~1b/~01/-") == ["a/b", "~1", "-"]
    assert list(built([{"op": "add", "path": "/a/0/b", "value": 1}])) == [{"a": [{"b": 1}]}]


def test_keys_in_another_case_are_refused() -> None:
    for value in (
        {"Spec": {"hostNetwork": True}},
        {"spec": {"HostNetwork": True}},
        {"spec": {"containers": [{"Image": "x"}]}},
        {"spec": {"containers": [{"image": "x", "IMAGE": "y"}]}},
        {"spec": {"containers": [{"securitycontext": {"privileged": True}}]}},
        {"spec": {"containers": [{"securityContext": {"Privileged": True}}]}},
        {"spec": {"Containers": [{"image": "x"}]}},
    ):
        with pytest.raises(BadRequest):
            pods(value)


def test_yaml_with_the_truths_of_go() -> None:
    text = (
        "spec:\n  hostNetwork: y\n  containers:\n  - image: x\n    securityContext: {privileged: on, runAsUser: 0x0}\n"
    )
    found = read_pods("pods", read_body("application/yaml", text.encode()))
    assert set(found.privileges) == {"hostNetwork", "privileged", "runAsUser:0"}


def test_too_much_is_told() -> None:
    for count, opaque in ((WORD_LIMIT - 1, False), (WORD_LIMIT, False), (WORD_LIMIT + 1, True)):
        found = pods({"spec": {"containers": [{"image": f"i{number}"} for number in range(count)]}})
        assert (len(found.images), found.opaque) == (min(count, WORD_LIMIT), opaque)
