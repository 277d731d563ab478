"""Kubernetes' protobuf: bytes of the API's own encoder, round trips, broken and hostile messages.

GOLDEN was written by Go's generated code (k8s.io/api v0.32.0, k8s.io/apimachinery v0.32.0).
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.kubernetes import protobuf
from protocols.kubernetes.bodies import read_body
from protocols.kubernetes.pods import read_pods
from protocols.kubernetes.protobuf import MAGIC, decode, encode, encode_message
from protocols.kubernetes.protobuf_data import KINDS, MESSAGES
from proxy.core.http.heads import BadRequest

PROTOBUF = "application/vnd.kubernetes.protobuf"
GOLDEN = {
    "Pod": (
        "azhzAAoJCgJ2MRIDUG9kEoIDCicKA3dlYhIAGgAiACoAMgA4AEIICKXr3MoGEABaCgoDYXBwEgN3ZWISxAIKEQoBaBIMCgoKCC92YXIv"
        "cnVuChAKAWUSCxIJCgASBQoDMUdpEp8BCgNhcHASFnJlZ2lzdHJ5LmV4YW1wbGUvYXBwOjEaAnNoKgAyCwoAEJA/GFAiACoAOhAKC0RC"
        "X1BBU1NXT1JEEgF4OhIKAUsSABoLIgkKBAoCZGISAWtCAFIiChYSFAoCL3gSCggBEAAaBGh0dHAaACIAEAAYACADKAAwAGoAcgB6EQoL"
        "CglTWVNfQURNSU4QASAAgAEAiAEAkAEAogEAGgAyAEIIZGVwbG95ZXJKAFICbjFYAWAAaACCAQCKAQCaAQCiASYKBGluaXQSBmluaXQ6"
        "MioAQgBqAHIAegI4AIABAIgBAJABAKIBAMIBAJICKwokCgVkZWJ1ZxIHYnVzeWJveCoAQgBqAHIAgAEAiAEAkAEAogEAEgNhcHAaEAoA"
        "GgAiACoAMgBKAFoAcgAaACIA"
    ),
    "Deployment": (
        "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50EqEDChMKA2FwaRIAGgAiACoAMgA4AEIAEvsCCAMa2QIKEAoAEgAaACIAKgAyADgAQgAS"
        "xAIKEQoBaBIMCgoKCC92YXIvcnVuChAKAWUSCxIJCgASBQoDMUdpEp8BCgNhcHASFnJlZ2lzdHJ5LmV4YW1wbGUvYXBwOjEaAnNoKgAy"
        "CwoAEJA/GFAiACoAOhAKC0RCX1BBU1NXT1JEEgF4OhIKAUsSABoLIgkKBAoCZGISAWtCAFIiChYSFAoCL3gSCggBEAAaBGh0dHAaACIA"
        "EAAYACADKAAwAGoAcgB6EQoLCglTWVNfQURNSU4QASAAgAEAiAEAkAEAogEAGgAyAEIIZGVwbG95ZXJKAFICbjFYAWAAaACCAQCKAQCa"
        "AQCiASYKBGluaXQSBmluaXQ6MioAQgBqAHIAegI4AIABAIgBAJABAKIBAMIBAJICKwokCgVkZWJ1ZxIHYnVzeWJveCoAQgBqAHIAgAEA"
        "iAEAkAEAogEAEgNhcHAiFwoAEhMKBggAEAEaABIJCAEQABoDMjUlKAA4ABoMCAAQABgAIAAoADgAGgAiAA=="
    ),
    "CronJob": (
        "azhzAAoTCghiYXRjaC92MRIHQ3JvbkpvYhKcAwoXCgduaWdodGx5EgAaACIAKgAyADgAQgAS/gIKBkBkYWlseRoAKvECChAKABIAGgAi"
        "ACoAMgA4AEIAEtwCMtkCChAKABIAGgAiACoAMgA4AEIAEsQCChEKAWgSDAoKCggvdmFyL3J1bgoQCgFlEgsSCQoAEgUKAzFHaRKfAQoD"
        "YXBwEhZyZWdpc3RyeS5leGFtcGxlL2FwcDoxGgJzaCoAMgsKABCQPxhQIgAqADoQCgtEQl9QQVNTV09SRBIBeDoSCgFLEgAaCyIJCgQK"
        "AmRiEgFrQgBSIgoWEhQKAi94EgoIARAAGgRodHRwGgAiABAAGAAgAygAMABqAHIAehEKCwoJU1lTX0FETUlOEAEgAIABAIgBAJABAKIB"
        "ABoAMgBCCGRlcGxveWVySgBSAm4xWAFgAGgAggEAigEAmgEAogEmCgRpbml0EgZpbml0OjIqAEIAagByAHoCOACAAQCIAQCQAQCiAQDC"
        "AQCSAisKJAoFZGVidWcSB2J1c3lib3gqAEIAagByAIABAIgBAJABAKIBABIDYXBwGgAaACIA"
    ),
    "Secret": ("azhzAAoMCgJ2MRIGU2VjcmV0EjEKEgoCZGISABoAIgAqADIAOABCABITCghwYXNzd29yZBIHaHVudGVyMhoGT3BhcXVlGgAiAA=="),
}
IMAGES = ("init:2", "registry.example/app:1", "busybox")
PRIVILEGES = {
    "hostNetwork", "serviceAccount:deployer", "nodeName:n1", "hostPath:/var/run", "privileged", "runAsUser:0",
    "capabilities:SYS_ADMIN", "hostPort:8080",
}  # fmt: skip


def golden(kind: str) -> bytes:
    return base64.b64decode(GOLDEN[kind])


def test_a_pod_of_go_is_read() -> None:
    found = decode(golden("Pod"))
    assert found.whole
    value = found.value
    assert (value["apiVersion"], value["kind"]) == ("v1", "Pod")
    assert value["metadata"] == {
        "name": "web", "generation": 0, "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"app": "web"},
    }  # fmt: skip
    container = value["spec"]["containers"][0]
    assert (container["name"], container["image"], container["command"]) == ("app", "registry.example/app:1", ["sh"])
    assert container["env"] == [
        {"name": "DB_PASSWORD", "value": "x"},
        {"name": "K", "valueFrom": {"secretKeyRef": {"name": "db", "key": "k"}}},
    ]
    assert container["livenessProbe"]["httpGet"]["port"] == "http"
    assert container["livenessProbe"]["periodSeconds"] == 3
    assert value["spec"]["ephemeralContainers"][0]["targetContainerName"] == "app"
    assert value["spec"]["ephemeralContainers"][0]["image"] == "busybox"
    assert value["spec"]["volumes"][0]["hostPath"]["path"] == "/var/run"
    assert value["spec"]["volumes"][1]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert value["spec"]["initContainers"][0]["securityContext"] == {"allowPrivilegeEscalation": False}


def test_pods_are_found_in_what_go_encodes() -> None:
    for kind, resource in (("Pod", "pods"), ("Deployment", "deployments.apps"), ("CronJob", "cronjobs.batch")):
        pods = read_pods(resource, read_body(PROTOBUF, golden(kind)))
        assert (pods.images, set(pods.privileges), pods.opaque) == (IMAGES, PRIVILEGES, False), kind
    strategy = decode(golden("Deployment")).value["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": "25%", "maxUnavailable": 1}
    secret = decode(golden("Secret")).value
    assert secret["data"] == {"password": base64.b64encode(b"hunter2").decode()}
    assert secret["type"] == "Opaque"


def test_what_go_encodes_comes_back_the_same() -> None:
    for kind in GOLDEN:
        value = decode(golden(kind)).value
        assert decode(encode(value)).value == value, kind


def test_every_kind_and_every_message_of_the_tables_is_there() -> None:
    assert set(KINDS.values()) <= set(MESSAGES)
    scalars = {"string", "bytes", "int", "bool", "double", "time", "quantity", "int-or-string", "raw", "skip", "other"}
    for name, fields in protobuf._SCHEMA.items():
        numbers = [field.number for field in fields]
        assert len(numbers) == len(set(numbers)), name
        for field in fields:
            assert field.type in scalars or field.type in MESSAGES, (name, field)
    for group, kind in KINDS:
        value = {"apiVersion": f"{group}/v1".lstrip("/"), "kind": kind, "metadata": {"name": "x"}}
        assert decode(encode(value)).value["metadata"] == {"name": "x"}


def envelope(api_version: str, kind: str, raw: bytes, *more: bytes) -> bytes:
    framed = protobuf._framed
    meta = framed(1, api_version.encode()) + framed(2, kind.encode())
    return MAGIC + framed(1, meta) + framed(2, raw) + b"".join(more)


def test_an_unknown_kind_has_its_metadata_and_is_told() -> None:
    raw = protobuf._framed(1, encode_message("ObjectMeta", {"name": "x"})) + protobuf._framed(2, b"\x08\x01")
    for api_version, kind in (("v1", "Gadget"), ("example.com/v1", "Pod"), ("apps/v1beta1", "Deployment"), ("", "")):
        found = decode(envelope(api_version, kind, raw))
        assert not found.whole
        assert found.value == {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}}
        body = read_body(PROTOBUF, envelope(api_version, kind, raw))
        assert body.opaque
        assert read_pods("pods", body).opaque
    assert decode(envelope("v1", "Gadget", b"\x0a\xff")).value == {"apiVersion": "v1", "kind": "Gadget"}
    assert decode(envelope("apps/v1", "DeleteOptions", b"")).whole


def test_an_unknown_field_of_a_known_kind_is_told() -> None:
    raw = encode_message("Pod", {"metadata": {"name": "x"}})
    assert decode(envelope("v1", "Pod", raw)).whole
    for more in (protobuf._framed(999, b"x"), protobuf._framed(2, protobuf._framed(999, b""))):
        assert not decode(envelope("v1", "Pod", raw + more)).whole
    status = decode(envelope("v1", "Pod", raw + protobuf._framed(3, b"\xff")))
    assert status.whole
    assert "status" not in status.value


def test_fields_that_come_again_merge_as_in_go() -> None:
    def spec(value: dict[str, Any]) -> bytes:
        return protobuf._framed(2, encode_message("PodSpec", value))

    raw = spec({"hostNetwork": True, "containers": [{"image": "a"}], "securityContext": {"runAsUser": 0}})
    raw += spec({"hostPID": True, "containers": [{"image": "b"}], "securityContext": {"runAsGroup": 1}})
    found = decode(envelope("v1", "Pod", raw)).value["spec"]
    assert (found["hostNetwork"], found["hostPID"]) == (True, True)
    assert [container["image"] for container in found["containers"]] == ["a", "b"]
    assert found["securityContext"] == {"runAsUser": 0, "runAsGroup": 1}
    again = spec({"hostNetwork": True}) + spec({"hostNetwork": False})
    assert decode(envelope("v1", "Pod", again)).value["spec"] == {"hostNetwork": False}
    # The envelope's raw is replaced, its type merges.
    first = encode_message("Pod", {"spec": {"hostPID": True}})
    second = encode_message("Pod", {"spec": {"hostIPC": True}})
    twice = envelope(
        "v1", "Secret", first, protobuf._framed(1, protobuf._framed(2, b"Pod")), protobuf._framed(2, second)
    )
    assert decode(twice).value == {"apiVersion": "v1", "kind": "Pod", "spec": {"hostIPC": True}}


def test_numbers() -> None:
    for seconds in (0, 1, -1, 2**31, 2**63 - 1, -(2**63)):
        raw = encode_message("DeleteOptions", {"gracePeriodSeconds": seconds})
        assert decode(envelope("v1", "DeleteOptions", raw)).value["gracePeriodSeconds"] == seconds
    packed = protobuf._framed(4, b"\x01\x02") + protobuf._number(4 << 3) + b"\x03"
    context = {field.name: field for field in protobuf._SCHEMA["PodSecurityContext"]}["supplementalGroups"]
    assert context.number == 4
    raw = protobuf._framed(2, protobuf._framed(14, packed))
    found = decode(envelope("v1", "Pod", raw)).value
    assert found["spec"]["securityContext"]["supplementalGroups"] == [1, 2, 3]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"k8s",
        b"{}",
        b"K8S\0",
        MAGIC + b"\x0a",
        MAGIC + b"\x0a\x05ab",
        MAGIC + b"\x0b\x0c",  # a group
        MAGIC + b"\x02\x00",  # field 0
        MAGIC + b"\x80" * 11,
        MAGIC + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        MAGIC + b"\x08\x01",  # TypeMeta as a number
        MAGIC + b"\x0a\x02\x0a\x00" + b"\x1a\x04gzip",
        MAGIC + b"\x0a\x02\x0a\x00" + b"\x22\x10application/json",
        envelope("v1", "Pod", b"\x0a\x05\x0a\x03\xff\xfe\xfd"),  # a name that is not UTF-8
        envelope("v1", "Pod", b"\x0a\x02\x08\x01"),  # a name that is a number
        envelope("v1", "Pod", b"\x12\x02\x5a\x00"),  # hostNetwork with a length
        envelope("v1", "Pod", protobuf._framed(1, protobuf._framed(8, b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))),
    ],
)
def test_what_is_malformed_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as raised:
        decode(body)
    assert raised.value.status == 400


def test_depth_is_bounded() -> None:
    # No message of the tables holds itself but through their schemas; a deep one is made by hand.
    deep = b""
    for _ in range(200):
        deep = protobuf._framed(1, deep)
    reader = protobuf._Reader()
    with pytest.raises(protobuf._Malformed):
        reader.message("Pod", b"", {}, protobuf.DEPTH_LIMIT + 1)
    assert reader.message("Pod", b"", {}, protobuf.DEPTH_LIMIT) == {}
    with pytest.raises(BadRequest):
        decode(envelope("v1", "Pod", protobuf._framed(1, protobuf._framed(12, deep + b"\xff"))))


def test_the_writer_refuses_what_the_tables_do_not_have() -> None:
    with pytest.raises(ValueError, match="not in the tables"):
        encode({"apiVersion": "v1", "kind": "Gadget"})
    with pytest.raises(ValueError, match="colour"):
        encode({"apiVersion": "v1", "kind": "Pod", "colour": "red"})
    with pytest.raises(ValueError, match="base64"):
        encode({"apiVersion": "v1", "kind": "Secret", "data": {"a": "?"}})


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10)
CONTAINER = st.fixed_dictionaries(
    {"name": TEXT, "image": TEXT},
    optional={
        "env": st.lists(st.fixed_dictionaries({"name": TEXT}, optional={"value": TEXT}), min_size=1, max_size=3),
        "securityContext": st.fixed_dictionaries(
            {}, optional={"privileged": st.booleans(), "runAsUser": st.integers(-(2**63), 2**63 - 1)}
        ),
        "command": st.lists(TEXT, min_size=1, max_size=3),
    },
)
PODS = st.fixed_dictionaries(
    {
        "apiVersion": st.just("v1"),
        "kind": st.just("Pod"),
        "metadata": st.fixed_dictionaries(
            {"name": TEXT}, optional={"labels": st.dictionaries(TEXT, TEXT, min_size=1, max_size=3)}
        ),
        "spec": st.fixed_dictionaries(
            {"containers": st.lists(CONTAINER, min_size=1, max_size=3)}, optional={"hostPID": st.booleans()}
        ),
    }
)


@given(PODS)
def test_what_is_encoded_decodes_to_the_same(value: dict[str, Any]) -> None:
    found = decode(encode(value))
    assert found.whole
    assert found.value == value


@given(PODS, st.data())
def test_a_cut_or_changed_message_is_another_or_malformed(value: dict[str, Any], data: st.DataObject) -> None:
    body = bytearray(encode(value))
    place = data.draw(st.integers(len(MAGIC), len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    for candidate in (bytes(body), bytes(body[:place])):
        try:
            decode(candidate)
        except BadRequest as bad:
            assert bad.status == 400
