# rows of tables
"""Bodies of requests: what is read, and what is refused because two readers could read it differently."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.kubernetes.bodies import BODY_LIMIT, DEPTH_LIMIT, at, media_type, member, read_body, text_at
from protocols.kubernetes.written import FIELDS_LIMIT, fields_written
from protocols.kubernetes.yaml_reader import ALIAS_LIMIT, NODE_LIMIT, read_yaml, scalar
from proxy.core.http.heads import BadRequest

JSON = "application/json"
YAML = "application/yaml"
APPLY = "application/apply-patch+yaml"
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
OPERATIONS = "application/json-patch+json"


def refused(content_type: str, body: bytes) -> int:
    with pytest.raises(BadRequest) as raised:
        read_body(content_type, body)
    return raised.value.status


def test_forms() -> None:
    pod = {"kind": "Pod", "metadata": {"name": "web"}}
    data = json.dumps(pod).encode()
    for content_type, form in {
        "": "json",
        JSON: "json",
        "Application/JSON; charset=UTF-8": "json",
        YAML: "yaml",
        APPLY: "apply-patch",
        STRATEGIC: "strategic-merge-patch",
        MERGE: "merge-patch",
    }.items():
        body = read_body(content_type, data)
        assert (body.form, body.value, body.opaque) == (form, pod, False), content_type
    assert read_body(JSON, b'{"kind":"DeleteOptions"}').form == "delete-options"
    assert read_body(OPERATIONS, b'[{"op":"remove","path":"/a"}]').form == "json-patch"
    assert read_body("nonsense", b"").form == "none"
    assert [read_body(each, b"{}").patch for each in (JSON, MERGE, APPLY)] == [False, True, True]
    assert media_type(" Application/Json ;a=b") == JSON


def test_types_that_nobody_reads() -> None:
    for content_type in (
        "application/cbor", "application/apply-patch+cbor", "text/plain", "application/x-www-form-urlencoded",
        "application/json;stream=watch", "application/json; charset=utf-16", "application/json, application/yaml",
        "application/vnd.kubernetes.protobuf;type=x", "*/*",
    ):  # fmt: skip
        assert refused(content_type, b"{}") == 415, content_type


def test_the_size_has_a_limit() -> None:
    for size, fits in ((BODY_LIMIT - 1, True), (BODY_LIMIT, True), (BODY_LIMIT + 1, False)):
        data = b'{"a":"' + b"x" * (size - 8) + b'"}'
        assert len(data) == size
        if fits:
            assert read_body(JSON, data).value
        else:
            assert refused(JSON, data) == 413


def test_json_with_two_readings() -> None:
    for data in (
        b'{"kind":"Pod","kind":"Secret"}',
        b'{"a":{"b":1,"b":2}}',
        b'[{"a":1}]',
        b'"text"',
        b"null",
        b"{} {}",
        b"{}x",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1' + b"0" * 5000 + b"}",
        b'{"a":"\xff"}',
        b'{"a":"\xc0\xaf"}',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32"),
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":1}//x',
        b"a: 1",
    ):
        assert refused(JSON, data) == 400, data[:60]
        assert refused(MERGE, data) == 400, data[:60]
    assert read_body(JSON, b'{"a":"\\ud83d\\ude00"}').value == {"a": "\N{GRINNING FACE}"}


def test_json_has_a_depth() -> None:
    def deep(depth: int) -> bytes:
        return b'{"a":' * depth + b"1" + b"}" * depth

    for depth, fits in ((DEPTH_LIMIT - 2, True), (DEPTH_LIMIT - 1, True), (DEPTH_LIMIT, False), (100_000, False)):
        if fits:
            assert read_body(JSON, deep(depth)).value
        else:
            assert refused(JSON, deep(depth)) == 400
            assert refused(APPLY, deep(depth)) == 400


def test_keys_in_another_case_are_refused_where_they_are_read() -> None:
    value = {"Spec": {}, "metadata": {"labels": {"Name": "x", "name": "y"}, "name": "web"}}
    assert text_at(value, "metadata", "name") == "web"
    assert at(value, "metadata", "labels", "x") is None
    for keys in (("spec",), ("metadata", "labels", "name")):
        with pytest.raises(BadRequest):
            at(value, *keys)
    with pytest.raises(BadRequest):
        member({"\u212aind": 1, "KIND": 2}, "kind")
    with pytest.raises(BadRequest):
        text_at({"metadata": {"name": 1}}, "metadata", "name")


def test_operations_of_a_json_patch() -> None:
    for data in (
        b"{}", b"[1]", b'[{"path":"/a"}]', b'[{"op":"ADD","path":"/a"}]', b'[{"OP":"add","path":"/a"}]',
        b'[{"op":"add","path":"a"}]', b'[{"op":"add","Path":"/b","path":"/a"}]', b'[{"op":"add","path":1}]',
        b'[{"op":"copy","from":"a","path":"/a"}]', b'[{"op":"add","path":"/a","Value":1}]', b"",
    )[:-1]:  # fmt: skip
        assert refused(OPERATIONS, data) == 400, data


# -- YAML -----------------------------------------------------------------------------------------------


def test_yaml_is_read() -> None:
    text = """
kind: Deployment
metadata: &meta {name: "api", 'labels': {app: api}}
spec:
  replicas: 3
  on: yes
  text: !  yes
  list:
  - a
  - *meta
  block: |
    one
    two
"""
    assert read_body(YAML, text.encode()).value == {
        "kind": "Deployment",
        "metadata": {"name": "api", "labels": {"app": "api"}},
        "spec": {
            "replicas": 3,
            "true": True,
            "text": "yes",
            "list": ["a", {"name": "api", "labels": {"app": "api"}}],
            "block": "one\ntwo\n",
        },
    }
    assert read_body(YAML, b"# nothing\n").value == {}
    assert read_body(APPLY, b"a: 1").value == {"a": 1}


def test_scalars_are_those_of_go() -> None:
    for text, value in {
        "y": True, "Yes": True, "on": True, "n": False, "OFF": False, "yEs": "yEs", "": None, "~": None, "null": None,
        "nUll": "nUll", "12": 12, "-7": -7, "+7": 7, "0x1F": 31, "0o17": 15, "017": 15, "0b11": 3, "-0x10": -16,
        "1_000": 1000, "0": 0, "00": 0, "08": 8.0, "1.5": 1.5, "1e3": 1000.0, ".5": 0.5, "1.": 1.0, "1:30": "1:30",
        "2026-01-02": "2026-01-02", "v1": "v1", "1.2.3": "1.2.3", "_1": "_1", "=": "=", "-": "-",
    }.items():  # fmt: skip
        found = scalar(text)
        assert found == value, text
        assert type(found) is type(value), text


def test_yaml_with_two_readings() -> None:
    for text in (
        "a: 1\na: 2",
        "a: 1\n'a': 2",
        "1: a\n'1': b",
        "yes: a\ntrue: b",
        "a: 1\n---\nb: 2",
        "base: &b {x: 1}\nspec:\n  <<: *b\n  y: 2",
        "'<<': {x: 1}",
        "a: !!python/object/apply:os.system ['id']",
        "a: !!binary aGk=",
        "a: !!str 1",
        "a: !custom x",
        "!!map {a: 1}",
        "? [a]\n: 1",
        "? {a: 1}\n: 1",
        "&k a: 1",
        "~: 1",
        "1.5: a",
        "a: *missing",
        "a: &a [*a]",
        "a: .inf",
        "a: .NaN",
        "- a",
        "text",
        "a: [1",
        "a: \tb: c",
        "%YAML 1.1\n%YAML 1.1\n---\na: 1",
        "a: \x00",
    ):
        assert refused(YAML, text.encode()) == 400, text
        assert refused(APPLY, text.encode()) == 400, text


def test_a_json_patch_in_an_apply_patch_is_read_as_yaml_where_they_differ() -> None:
    assert read_body(APPLY, b'{"a": 1}').value == {"a": 1}
    assert read_body(APPLY, b"{a: yes}").value == {"a": True}
    assert refused(APPLY, b'{"a": {"<<": {"b": 1}}}') == 400


def test_yaml_bombs() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    assert refused(YAML, "\n".join(lines).encode()) == 400
    chain = ["a0: &a0 [x]"] + [f"a{level}: &a{level} [[[*a{level - 1}]]]" for level in range(1, 99)]
    assert refused(YAML, "\n".join(chain).encode()) == 400  # deeper than it looks


def test_aliases_have_a_limit() -> None:
    for count, fits in ((ALIAS_LIMIT - 1, True), (ALIAS_LIMIT, True), (ALIAS_LIMIT + 1, False)):
        text = "a: &a x\nb: [" + ", ".join(["*a"] * count) + "]"
        if fits:
            assert len(read_yaml(text, 10)["b"]) == count
        else:
            with pytest.raises(BadRequest):
                read_yaml(text, 10)


def test_what_yaml_unfolds_to_has_a_limit() -> None:
    size = NODE_LIMIT // 100
    head = "a: &a [" + ",".join(["x"] * (size - 1)) + "]\n"  # with the list itself: size nodes
    spare = NODE_LIMIT - 98 * size - size - 4  # the mapping, its two keys, the second list
    for more, fits in ((spare - 1, True), (spare, True), (spare + 1, False)):
        text = head + "b: [" + ",".join(["*a"] * 98 + ["x"] * more) + "]"
        if fits:
            assert read_yaml(text, 10)
        else:
            with pytest.raises(BadRequest):
                read_yaml(text, 10)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_json_reads_alike_as_json_and_as_an_apply_patch(value: dict[str, object]) -> None:
    data = json.dumps(value).encode()
    try:
        expected = read_body(MERGE, data).value
    except BadRequest:
        return
    assert expected == value
    if "<<" not in data.decode():
        assert read_body(APPLY, data).value == value


@given(
    st.binary(max_size=80),
    st.sampled_from([JSON, YAML, APPLY, MERGE, OPERATIONS, "application/vnd.kubernetes.protobuf"]),
)
def test_garbage_is_a_body_or_a_bad_request(data: bytes, content_type: str) -> None:
    for body in (data, b'{"a":' + data, b"a: " + data, b"k8s\0" + data):
        try:
            read_body(content_type, body)
        except BadRequest as bad:
            assert bad.status in (400, 413, 415)


# -- which fields are written ---------------------------------------------------------------------------


def written(content_type: str, text: str, verb: str = "patch", resource: str = "pods") -> tuple[str, ...] | None:
    return fields_written(resource, verb, read_body(content_type, text.encode()))


def test_fields_of_a_patch_are_told_by_its_form() -> None:
    """test_patches.py has the forms; here they are asked for."""
    assert written(MERGE, '{"data":{"password":"x"}}') == ("pods:data.password",)
    guess = written(OPERATIONS, '[{"op":"test","path":"/data/password","value":"guess"}]')
    copied = written(OPERATIONS, '[{"op":"copy","from":"/data/password","path":"/metadata/annotations/x"}]')
    for found in (guess, copied):
        assert found is not None and "pods:data.password" in found
    assert written(OPERATIONS, '[{"op":"remove","path":""}]') is None
    assert written(APPLY, "metadata: {name: x}\ndata: {k: v}") == ("pods:metadata.name", "pods:data.k")


def test_fields_of_a_new_object() -> None:
    env = '{"spec":{"containers":[{"env":[{"name":"DB_PASSWORD","value":"x"}]}]}}'
    assert written(JSON, env, "create") == ("pods:spec.containers.env.DB_PASSWORD",)
    assert written(JSON, '{"kind":"Secret","data":{"a":"b"}}', "create", "secrets") == ("secrets:data.a",)


def test_fields_that_are_not_known() -> None:
    assert written(JSON, '{"data":{"a":"b"}}', "update") is None
    assert written(JSON, "", "create") is None


def test_fields_have_a_limit() -> None:
    for count, known in ((FIELDS_LIMIT - 1, True), (FIELDS_LIMIT, True), (FIELDS_LIMIT + 1, False)):
        found = written(JSON, json.dumps({"data": {f"k{number}": "x" for number in range(count)}}), "create")
        assert (found is not None) == known
