"""What patches write, in the names that masks have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.kubernetes.patches import WRITTEN_LIMIT, fields_of

CASES: list[tuple[str, Any, set[str]]] = [
    ("merge-patch", {"spec": {"replicas": 3}}, {"spec.replicas"}),
    ("merge-patch", {"metadata": {"labels": {"a": None}}}, {"metadata.labels.a", "metadata.labels.a.*"}),
    ("merge-patch", {"spec": {"l": [1]}}, {"spec.l", "spec.l.*"}),
    ("merge-patch", {"spec": {"l": [{"a": 1}]}}, {"spec.l.*", "spec.l.a"}),
    ("merge-patch", {"spec": {}}, {"spec"}),
    ("merge-patch", {"kind": "Pod", "apiVersion": "v1", "data": {"tls.crt": "x"}}, {"data.tls.crt"}),
    ("merge-patch", {"spec": {"kind": "x", "$patch": "y"}}, {"spec.kind", "spec.$patch"}),
    (
        "strategic-merge-patch",
        {"spec": {"$setElementOrder/containers": [{"name": "c"}], "containers": [{"name": "c", "image": "i"}]}},
        {"spec.containers.name", "spec.containers.image"},
    ),
    (
        "strategic-merge-patch",
        {"env": [{"name": "A", "value": "x"}, {"name": "B", "valueFrom": {"k": "v"}}]},
        {"env.A", "env.name", "env.value", "env.valueFrom.k"},
    ),
    ("strategic-merge-patch", {"spec": {"$patch": "replace", "a": 1}}, {"spec.*", "spec.a"}),
    ("strategic-merge-patch", {"spec": {"$retainKeys": ["a"], "a": 1}}, {"spec.*", "spec.a"}),
    ("strategic-merge-patch", {"env": [{"$patch": "delete", "name": "A"}]}, {"env.*", "env.name"}),
    ("strategic-merge-patch", {"m": {"$deleteFromPrimitiveList/finalizers": ["x"]}}, {"m.finalizers"}),
    ("apply-patch", {"apiVersion": "v1", "kind": "Secret", "data": {"p": "x"}}, {"data.p"}),
    ("json-patch", [{"op": "replace", "path": "/spec/replicas", "value": 2}], {"spec.replicas"}),
    ("json-patch", [{"op": "add", "path": "/metadata/labels/a~1b~0c", "value": ""}], {"metadata.labels.a/b~c"}),
    ("json-patch", [{"op": "remove", "path": "/data"}], {"data", "data.*"}),
    ("json-patch", [{"op": "test", "path": "/data/p", "value": "x"}], {"data.p"}),
    ("json-patch", [{"op": "test", "path": "/data", "value": {"p": "x"}}], {"data", "data.*", "data.p"}),
    ("json-patch", [{"op": "copy", "from": "/data/p", "path": "/metadata/labels/x"}],
     {"metadata.labels.x", "metadata.labels.x.*", "data.p", "data.p.*"}),
    ("json-patch", [{"op": "add", "path": "/spec/containers/0/env/-", "value": {"name": "A", "value": "x"}}],
     {"spec.containers.env", "spec.containers.env.*", "spec.containers.env.A", "spec.containers.env.name",
      "spec.containers.env.value"}),
    ("json-patch", [{"op": "replace", "path": "/spec/containers/0/env/3/value", "value": "x"}],
     {"spec.containers.env.*", "spec.containers.env.value"}),
    ("json-patch", [{"op": "replace", "path": "/spec/containers/0/image", "value": "x"}], {"spec.containers.image"}),
]  # fmt: skip


@pytest.mark.parametrize(("form", "patch", "expected"), CASES)
def test_fields_of_patches(form: str, patch: Any, expected: set[str]) -> None:
    found = fields_of(patch, "things.x.io", form)
    assert found is not None
    assert set(found) == {f"things.x.io:{each}" for each in expected}
    unknown = fields_of(patch, None, form)
    assert unknown is not None
    assert set(unknown) == {f"*:{each}" for each in expected}


@pytest.mark.parametrize(
    ("form", "patch"),
    [
        ("json", {"spec": {}}),
        ("yaml", {"spec": {}}),
        ("protobuf", {"spec": {}}),
        ("none", None),
        ("merge-patch", None),
        ("merge-patch", []),
        ("json-patch", {"op": "add"}),
        ("json-patch", [{"op": "add"}]),
        ("json-patch", [{"op": "replace", "path": "", "value": {}}]),
        ("json-patch", [{"op": "replace", "path": "spec", "value": {}}]),
        ("json-patch", [{"op": "copy", "path": "/a", "from": 1}]),
        ("json-patch", [{"op": "copy", "path": "/a", "from": ""}]),
        ("json-patch", ["x"]),
        ("strategic-merge-patch", {"$patch": "replace", "spec": {}}),
        ("merge-patch", {"": 1}),
        ("merge-patch", {f"k{number}": 1 for number in range(WRITTEN_LIMIT + 1)}),
    ],
)
def test_whole_objects_and_what_is_no_patch(form: str, patch: Any) -> None:
    assert fields_of(patch, "pods", form) is None


def test_as_many_fields_as_the_limit_are_told() -> None:
    found = fields_of({f"k{number}": 1 for number in range(WRITTEN_LIMIT)}, "pods", "merge-patch")
    assert found is not None and len(found) == WRITTEN_LIMIT


def test_depth_is_bounded() -> None:
    deep: Any = 1
    for _ in range(3000):
        deep = {"a": deep}
    assert fields_of(deep, "pods", "merge-patch") is None


_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(_values, st.sampled_from(["json-patch", "merge-patch", "strategic-merge-patch", "apply-patch", "json"]))
def test_any_value_is_told_or_not_known(value: Any, form: str) -> None:
    found = fields_of(value, "pods", form)
    assert found is None or all(name.startswith("pods:") and len(name) > 5 for name in found)
