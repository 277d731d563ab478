"""Masked Kubernetes documents: no masked value is left in any form, and nothing else changes by a byte."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.kubernetes.documents import rewrite, rewrite_line
from protocols.kubernetes.kinds import group_of, is_own, kind_of, plural, resources_of
from protocols.kubernetes.masked_values import NESTED_LIMIT
from protocols.kubernetes.splicing import Cursor, Unreadable, json_text
from proxy.core.errors import TargetPeerError
from proxy.core.events import Command, FieldMask
from proxy.core.verdict import Mask
from proxy.masking import DETECTORS, Masking
from tests.kubernetes.answers import (
    CANARY,
    LAST,
    OTHER,
    Doc,
    column,
    compact,
    config_map,
    custom,
    deployment,
    encoded,
    event,
    listed,
    metadata,
    partial,
    pod,
    secret,
    shows,
    table,
)

MASKING = Masking(b"k" * 32, {"canary": "hunter2[^ ]*"})
COMMAND = Command("kubernetes", "get", "read", "kubectl get")
REDACTED = encoded("[redacted]")


def by_name(*fields: str, **more: Any) -> FieldMask:
    found = MASKING.fields((Mask("r", fields=fields, **more),), COMMAND)
    assert found is not None
    return found


def by_detectors(*names: str, **more: Any) -> FieldMask:
    found = MASKING.fields((Mask("r", detectors=names, **more),), COMMAND)
    assert found is not None
    return found


SECRETS = by_name("secrets:data.*")
ENV = by_name("*:*env.*PASSWORD*")
CUSTOM = by_name("databases.example.com:spec.passwords", "databases.example.com:spec.admin")
CONFIG = by_name("configmaps:data.db-url", "configmaps:binaryData.*")
ALL = MASKING.fields(
    (
        Mask("s", fields=("secrets:data.*",)),
        Mask("e", fields=("*:*env.*PASSWORD*",), action="hash"),
        Mask("d", detectors=tuple(sorted(DETECTORS)), action="partial"),
    ),
    COMMAND,
)

NAME = column("Name", form="name")
CRD_COLUMNS = [NAME, column("Passwords"), column("Size", "integer"), column("Age", "date")]
SECRET_COLUMNS = [NAME, column("Type"), column("Data"), column("Age")]
BARE = {"apiVersion": "work.io/v1", "kind": "ManifestWork", "metadata": {"name": "w"}}
UNTYPED = {key: each for key, each in custom().items() if key not in ("kind", "apiVersion")}

# What is asked for, the masks, and the answer: in all of them the canary is somewhere.
LEAKS: list[tuple[str, FieldMask, Doc]] = [
    ("secrets", SECRETS, secret()),
    ("secrets", SECRETS, listed("SecretList", secret(typed=False), secret("b", typed=False))),
    ("secrets", SECRETS, listed("SecretList", secret())),
    ("secrets", SECRETS, {"apiVersion": "v1", "items": [secret(typed=False)], "kind": "SecretList", "metadata": {}}),
    ("secrets", SECRETS, {"items": [secret(typed=False)]}),
    ("secrets", SECRETS, listed("List", secret(), event("x", {}))),
    ("secrets", SECRETS, partial(secret())),
    ("secrets", SECRETS, listed("PartialObjectMetadataList", partial(secret()), version="meta.k8s.io/v1")),
    ("secrets", SECRETS, table(SECRET_COLUMNS, (["db", "Opaque", 3, "5d"], partial(secret())))),
    ("secrets", SECRETS, table(SECRET_COLUMNS, (["db", "Opaque", 3, "5d"], secret()))),
    ("secrets", SECRETS, {**table(SECRET_COLUMNS), "rows": [{"cells": [], "object": secret()}], "zz": {}}),
    ("pods", SECRETS, listed("List", BARE, secret())),
    ("manifestworks.work.io", SECRETS, {**BARE, "spec": {"workload": {"manifests": [secret()]}}}),
    ("configmaps", CONFIG, config_map()),
    ("pods", ENV, pod()),
    ("pods", ENV, listed("PodList", pod(typed=False), pod("b", typed=False))),
    ("deployments.apps", ENV, deployment()),
    ("deployments.apps", by_name("deployments:spec.template.spec.containers.env.DB_PASSWORD"), deployment()),
    ("databases.example.com", CUSTOM, custom()),
    ("databases.example.com", CUSTOM, listed("DatabaseList", custom(), version="example.com/v1")),
    ("databases.example.com", CUSTOM, listed("Databases", custom(), version="example.com/v1")),
    ("databases.example.com", CUSTOM, UNTYPED),
    ("databases.example.com", CUSTOM, table(CRD_COLUMNS, (["main", CANARY, 3, "5d"], partial(custom())))),
    ("databases.example.com", CUSTOM, table(None, (["main", CANARY, 3, "5d"], custom()))),
    ("things.other.io", by_name("databases.example.com:spec.passwords"), custom()),
    ("serviceaccounts", by_name("serviceaccounts/token:status.token"), {
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "status": {"token": CANARY}, "spec": {}
    }),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "fields", "document"), LEAKS)
def test_no_masked_value_is_left(asked: str, fields: FieldMask, document: Doc) -> None:
    data = compact(document)
    assert shows(data)
    masked = rewrite(data, fields, asked)
    assert not shows(masked)
    assert not shows(rewrite(json.dumps(document, indent=2).encode(), fields, asked))
    assert json.loads(masked).keys() == document.keys()
    line = rewrite_line(compact(event("MODIFIED", document)), fields, asked)
    assert not shows(line)
    assert line.endswith(b"\n")


@pytest.mark.parametrize(("asked", "fields", "document"), LEAKS)
def test_without_a_mask_that_matches_not_a_byte_changes(asked: str, fields: FieldMask, document: Doc) -> None:
    for style in (compact(document), json.dumps(document, indent=1).encode(), json.dumps(document).encode()):
        for none in (by_name("leases:spec.holderIdentity"), by_name("*:spec.nowhere"), by_detectors("iban")):
            if document.get("kind") != "Table" or is_own(asked) or not none.touches(f"{asked}:"):
                assert rewrite(style, none, asked) is style


def test_what_is_beside_a_masked_value_stays_as_it_was() -> None:
    text = (
        b'{ "kind":"Secret","apiVersion":"v1",\n "big":123456789012345678901234567890, "f":1.50e+3,'
        b' "esc":"\\u003ca\\/", "data":{"b":"'
    ) + f'{encoded(CANARY)}" , "a" : null}},"metadata":{{"name":"x"}} }}\n'.encode()
    expected = text.replace(encoded(CANARY).encode(), REDACTED.encode())
    assert rewrite(text, SECRETS, "secrets") == expected


def test_values_of_secrets_still_decode() -> None:
    for action, expected in (("redact", b"[redacted]"), ("null", b""), ("partial", b"*")):
        masked = json.loads(rewrite(compact(secret()), by_name("secrets:data.password", action=action), "secrets"))
        assert base64.b64decode(masked["data"]["password"]).startswith(expected)
        assert CANARY not in base64.b64decode(masked["data"]["password"]).decode()
        assert base64.b64decode(masked["data"]["tls.crt"]).decode() == CANARY * 3
        assert json.loads(masked["metadata"]["annotations"][LAST])["metadata"] == {"annotations": {}, "name": "db"}
    same = [json.loads(rewrite(compact(secret()), by_name("secrets:data.*", action="hash"), "secrets")) for _ in "12"]
    assert same[0] == same[1]


def test_values_keep_their_kind() -> None:
    spec = {
        "n": 5,
        "f": 1.5,
        "b": True,
        "z": None,
        "t": "2026-01-02T03:04:05Z",
        "l": ["a", 1],
        "o": {"k": "v"},
        "no": False,
    }
    document = {"kind": "Database", "apiVersion": "example.com/v1", "spec": spec}
    masked = json.loads(rewrite(compact(document), by_name("databases.example.com:spec"), "databases.example.com"))
    assert masked["spec"] == {
        "n": 0, "f": 0, "b": False, "z": None, "t": "1970-01-01T00:00:00Z", "l": ["[redacted]", 0],
        "o": {"k": "[redacted]"}, "no": False,
    }  # fmt: skip


def test_an_object_stays_readable_under_a_mask_of_all_its_fields() -> None:
    masked = json.loads(rewrite(compact(secret()), by_name("secrets:*"), "secrets"))
    assert (masked["kind"], masked["apiVersion"]) == ("Secret", "v1")
    for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp"):
        assert masked["metadata"][key] == secret()["metadata"][key]
    assert masked["metadata"]["labels"] == {"app": "[redacted]"}


def test_env_values_are_known_by_name_and_references_stay() -> None:
    masked = json.loads(rewrite(compact(pod()), ENV, "pods"))
    env = masked["spec"]["containers"][0]["env"]
    assert env[1] == {"name": "DB_PASSWORD", "value": "[redacted]"}
    assert (env[0], env[2]) == tuple(pod()["spec"]["containers"][0]["env"][index] for index in (0, 2))


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"a":1,"a":2}', "{} x", "null", '{"data":NaN}'])
def test_an_applied_configuration_that_cannot_be_read_is_emptied(text: str) -> None:
    document = {**secret(), "metadata": {"name": "x", "annotations": {LAST: text}}}
    masked = json.loads(rewrite(compact(document), SECRETS, "secrets"))
    assert masked["metadata"]["annotations"] == {LAST: ""}


def test_an_applied_configuration_is_of_the_object_that_bears_it_too() -> None:
    applied = json.dumps({"kind": "ConfigMap", "apiVersion": "v1", "data": {"p": encoded(CANARY)}})
    document = {**secret(), "metadata": {"name": "x", "annotations": {LAST: applied}}}
    for asked in ("secrets", "pods", None):
        assert not shows(rewrite(compact(document), SECRETS, asked))
    deep: Doc = secret()
    for _ in range(4):
        deep = {**secret(), "metadata": {"name": "x", "annotations": {LAST: json.dumps(deep)}}}
    inner = json.loads(rewrite(compact(deep), SECRETS, "secrets"))
    for _ in range(NESTED_LIMIT):
        inner = json.loads(inner["metadata"]["annotations"][LAST])
        assert inner["data"]["password"] == REDACTED
    assert inner["metadata"]["annotations"][LAST] == ""


# -- tables -----------------------------------------------------------------------------------------------------------


def cells_of(document: Doc, fields: FieldMask, asked: str) -> list[Any]:
    found: list[Any] = json.loads(rewrite(compact(document), fields, asked))["rows"][0]["cells"]
    return found


def test_cells_of_the_servers_own_tables_are_known() -> None:
    cells = ["api", "1/1", "Running", 0, "5d", "10.0.0.7", "n1"]
    names = ("Name", "Ready", "Status", "Restarts", "Age", "IP", "Node")
    document = table([column(name) for name in names], (cells, None))
    assert cells_of(document, ENV, "pods") == cells
    assert cells_of(document, by_name("pods:status.podIP"), "pods") == [*cells[:5], "[redacted]", "n1"]
    assert cells_of(document, by_name("pods:status.containerStatuses.state"), "pods")[2] == "[redacted]"
    strange = table([NAME, column("Surprise")], (["api", CANARY], None))
    assert cells_of(strange, ENV, "pods") == ["api", "[redacted]"]
    assert cells_of(strange, SECRETS, "pods") == ["api", CANARY]
    images = table([NAME, column("Images")], (["api", "api:1"], None))
    assert cells_of(images, ENV, "deployments.apps") == ["api", "api:1"]
    assert cells_of(images, by_name("deployments:*.image"), "deployments.apps") == ["api", "[redacted]"]


def test_cells_of_custom_tables_show_names_and_dates_only() -> None:
    document = table(CRD_COLUMNS, (["main", CANARY, None, "5d"], None))
    assert cells_of(document, CUSTOM, "databases.example.com") == ["main", "[redacted]", None, "5d"]
    longer = table(CRD_COLUMNS, (["main", CANARY, 3, "5d", CANARY], None))
    assert cells_of(longer, CUSTOM, "databases.example.com") == ["main", "[redacted]", "[redacted]", "5d", "[redacted]"]
    assert cells_of(document, SECRETS, "databases.example.com")[1] == CANARY
    fake = table([NAME, column("Age"), column("Name")], (["main", CANARY, CANARY], None))
    assert cells_of(fake, CUSTOM, "databases.example.com") == ["main", "[redacted]", "[redacted]"]


def test_later_events_of_a_watch_have_no_columns() -> None:
    later = event("MODIFIED", table(None, (["api", "1/1", "Running"], partial(pod()))))
    assert rewrite_line(compact(later), ENV, "pods") == compact(later)
    shown = json.loads(rewrite_line(compact(later), by_name("pods:status.phase"), "pods"))
    assert shown["object"]["rows"][0]["cells"] == ["api", "[redacted]", "[redacted]"]


# -- events and errors ------------------------------------------------------------------------------------------------


def test_bookmarks_and_errors_of_a_watch_pass() -> None:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
              "message": 'too old resource version: "1" (2)'}  # fmt: skip
    bookmark = {"kind": "Secret", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}}
    for thing, kind in ((status, "ERROR"), (bookmark, "BOOKMARK")):
        line = compact(event(kind, thing))
        assert rewrite_line(line, SECRETS, "secrets") == line
        assert rewrite_line(line.rstrip(), SECRETS, "secrets") == line.rstrip()
    assert rewrite_line(b"\n", SECRETS, "secrets") == b"\n"


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("NotFound", 'secrets "db" not found', 'secrets "db" not found'),
        ("Forbidden", 'secrets "db" is forbidden: no', 'secrets "db" is forbidden: no'),
        ("Forbidden", f'admission webhook "x" denied the request: {CANARY}',
         'admission webhook "?" denied the request: [redacted]'),
        ("Invalid", f'Secret "db" is invalid: data[p]: Invalid value: "{CANARY}": no',
         'Secret "?" is invalid: data[p]: Invalid value: [redacted]'),
        ("Invalid", f"Pod x is invalid: spec: Forbidden: may not change {CANARY}",
         "Pod x is invalid: spec: Forbidden: [redacted]"),
        ("BadRequest", "json: cannot read 'hunter2' here", 'json: cannot read "?" here'),
        ("", "it quotes \"hunter2", 'it quotes "?"'),
    ],
)  # fmt: skip
def test_messages_of_failures_quote_no_values(reason: str, message: str, expected: str) -> None:
    causes = [{"reason": "FieldValueInvalid", "message": f'Invalid value: "{CANARY}"', "field": "data[p]"}]
    status: Doc = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
    status["details"] = {"name": "db", "kind": "secrets", "causes": causes}
    masked = json.loads(rewrite(compact(status), SECRETS, "secrets"))
    assert masked["message"] == expected
    assert masked["details"]["causes"][0] == {**causes[0], "message": "Invalid value: [redacted]"}
    assert rewrite(compact(status), by_name("leases:spec.x"), "secrets") == compact(status)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[1", b'{"kind":"Secret","data":{"a":1,"a":2}}', b'{"data":{},"kind":"x","data":{}}', b"{} {}",
        b"\xff", b'{"a":NaN}', b'{"a":"\n"}', b'{"a" 1}', b"{1:2}",
        b'{"items":[1,],"kind":"SecretList","metadata":{}}',
        b'{"a":1 "b":2}', b'{"kind":"SecretList","metadata":{},"items":[{"data":{"a":"x","a":"y"}}]}', b'{"a":' * 3000,
        b"[" * 100_000, b'{"items":' + b"[" * 100_000, b"k8s\x00\n\x0c",
        b'\xef\xbb\xbf{"kind":"Secret"}', b'{"a":1' + b"0" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_not_let_through(data: bytes) -> None:
    with pytest.raises(TargetPeerError):
        rewrite(data, SECRETS, "secrets")
    with pytest.raises(TargetPeerError):
        rewrite_line(b'{"type":"ADDED","object":' + data + b"}\n", SECRETS, "secrets")


@pytest.mark.parametrize("line", [b"{}\n", b'{"type":"ADDED"}\n', b'{"type":"ADDED","object":[],"x":1}\n', b"[]\n"])
def test_what_is_no_event_is_not_let_through(line: bytes) -> None:
    with pytest.raises(TargetPeerError):
        rewrite_line(line, SECRETS, "secrets")


def test_a_kind_hidden_behind_escapes_is_found() -> None:
    data = (
        compact(listed("List", secret())).replace(b'"Secret"', b'"\\u0053ecret"').replace(b'\\"Secret\\"', b'\\"x\\"')
    )
    assert shows(data)
    assert not shows(rewrite(data, SECRETS, "pods"))


# -- detectors --------------------------------------------------------------------------------------------------------


def test_detectors_look_everywhere() -> None:
    canary = "hunter2xyz"
    document = config_map()
    document["data"] = {"a": f"say {canary} now", canary: "key", "n": 5}
    document["binaryData"] = {"b": encoded(f"b {canary}")}
    document["metadata"]["annotations"] = {LAST: json.dumps({"data": {"x": canary}}), "y": canary}
    document["metadata"]["managedFields"] = [{"fieldsV1": {"f:x": {f'v:"{canary}"': {}}}, "manager": "m"}]
    fields = by_detectors("canary")
    thing = secret()
    thing["data"] = {"p": encoded(canary), "raw": base64.b64encode(b"\xff\xfe hunter2!").decode()}
    for each in (
        document, listed("ConfigMapList", document), thing, table(SECRET_COLUMNS, ([canary, 1], document)),
        {"kind": "Status", "apiVersion": "v1", "message": f"no {canary}", "status": "Success"},
        {"major": "1", "x": [canary]},
    ):  # fmt: skip
        masked = rewrite(compact(each), fields, "configmaps")
        assert shows(compact(each), "hunter2")
        assert not shows(masked, "hunter2")
        assert not shows(rewrite_line(compact(event("ADDED", each)), fields, "configmaps"), "hunter2")
    masked = json.loads(rewrite(compact(document), fields, "configmaps"))
    assert masked["data"]["a"] == "say [redacted] now"
    assert base64.b64decode(masked["binaryData"]["b"]) == b"b [redacted]"
    assert masked["metadata"]["managedFields"] == [{"fieldsV1": {}, "manager": "m"}]


def test_detectors_read_keys_and_names_beside_values() -> None:
    key = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"
    document = pod()
    document["spec"]["containers"][0]["env"] = [{"name": "AWS_SECRET_ACCESS_KEY", "value": key}]
    document["spec"]["extra"] = {"aws_secret_access_key": key, "plain": key}
    masked = json.loads(rewrite(compact(document), by_detectors("cloud_key"), "pods"))
    assert masked["spec"]["containers"][0]["env"][0]["value"] == "[redacted]"
    assert masked["spec"]["extra"] == {"aws_secret_access_key": "[redacted]", "plain": key}


def test_numbers_that_detectors_find_become_zero() -> None:
    document = {
        "kind": "Database",
        "apiVersion": "example.com/v1",
        "spec": {"c": 4111111111111111, "d": 4111111111111112},
    }
    masked = json.loads(rewrite(compact(document), by_detectors("card"), "databases.example.com"))
    assert masked["spec"] == {"c": 0, "d": 4111111111111112}


def test_names_come_before_detectors_and_both_apply() -> None:
    document = config_map()
    document["data"] = {"db-url": "x hunter2", "other": "y hunter2"}
    fields = MASKING.fields(
        (Mask("a", detectors=("canary",)), Mask("b", fields=("configmaps:data.db-url",), action="constant", text="C")),
        COMMAND,
    )
    assert fields is not None
    masked = json.loads(rewrite(compact(document), fields, "configmaps"))
    assert masked["data"] == {"db-url": "C", "other": "y [redacted]"}


# -- properties -------------------------------------------------------------------------------------------------------

_names = st.sampled_from(
    ["data", "spec", "kind", "metadata", "name", "value", "env", "items", "rows", "a.b", "ü", LAST]
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
    | st.sampled_from([CANARY, "Secret", "v1", "List", "Table", encoded(CANARY), json.dumps({"data": {"a": CANARY}})]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names | st.text(max_size=3), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip
_kinds = st.sampled_from(["Secret v1", "SecretList v1", "List v1", "Pod v1", "Foo a.io/v1", "Status v1"])


@given(_json, st.booleans())
def test_any_json_is_unchanged_where_nothing_matches(value: Any, ascii_only: bool) -> None:
    data = json.dumps({"metadata": {}, "x": value}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    detecting = () if LAST in data.decode() else (by_detectors("iban"),)  # what of it is no JSON is emptied
    for none in (by_name("nothings:*"), by_name("pods:spec.nowhere.x*"), *detecting):
        assert rewrite(data, none, "secrets") == data


@given(_json, _kinds, st.sampled_from(["data", "stringData"]), st.sampled_from(["secrets", "pods", None]))
def test_a_masked_value_never_gets_through(value: Any, kind: str, key: str, asked: str | None) -> None:
    thing = {
        "kind": "Secret",
        "apiVersion": "v1",
        "metadata": {"name": "x", "more": value},
        key: {"p": encoded("hush-hush")},
    }
    head = dict(zip(("kind", "apiVersion"), kind.split(), strict=True))
    for document in (thing, {**head, "items": [thing]}, {**head, "spec": {"deep": [thing, value]}, "z": value}):
        masked = rewrite(json.dumps(document).encode(), SECRETS, asked)
        assert b"hush" not in masked
        assert encoded("hush-hush").encode() not in masked


@given(_json)
def test_what_comes_out_is_json_of_the_same_shape(value: Any) -> None:
    document = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "x"}, "data": value}
    masked = json.loads(rewrite(json.dumps(document).encode(), by_name("secrets:data", action="null"), "secrets"))
    assert masked.keys() == document.keys()
    assert _shape(masked["data"]) == _shape(value)


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in value.items()}
    return [_shape(each) for each in value] if isinstance(value, list) else type(value) in (int, float) or type(value)


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:\\ulnt0123 ').map(str.encode))
def test_garbage_is_read_or_refused(data: bytes) -> None:
    for read in (rewrite, rewrite_line):
        try:
            read(data, ALL or SECRETS, None)
        except TargetPeerError:
            continue


# -- kinds, texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "version", "asked", "expected"),
    [
        ("Secret", "v1", "secrets", ("secrets",)),
        ("Deployment", "apps/v1", None, ("deployments.apps",)),
        ("Scale", "autoscaling/v1", "deployments.apps", ("scales.autoscaling", "deployments.apps")),
        ("Database", "example.com/v1", "databases.example.com", ("databases.example.com",)),
        ("Oddity", "example.com/v1", "weirdies.example.com", ("weirdies.example.com",)),
        ("Secret", "vault.io/v1", "secrets", ("*",)),
        ("Secret", "vault.io/v1", None, ("*",)),
        ("", "", "secrets", ("secrets",)),
        ("", "", None, ("*",)),
        ("PartialObjectMetadata", "meta.k8s.io/v1", "pods", ("pods",)),
        ("TokenRequest", "authentication.k8s.io/v1", "serviceaccounts", ("serviceaccounts/token", "serviceaccounts")),
        ("PodMetrics", "metrics.k8s.io/v1beta1", "pods.metrics.k8s.io", ("pods.metrics.k8s.io",)),
    ],
)
def test_resources_of_kinds(kind: str, version: str, asked: str | None, expected: tuple[str, ...]) -> None:
    assert resources_of(kind, version, asked) == expected


def test_kinds_and_plurals() -> None:
    words = {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies", "Endpoints": "endpoints", "Pod": "pods"}
    assert {kind: plural(kind) for kind in words} == words
    assert (kind_of("ingresses.networking.k8s.io"), kind_of("databases.example.com")) == ("Ingress", None)
    assert is_own("pods/log") and is_own("serviceaccounts/token") and not is_own("databases.example.com")
    assert (group_of("apps/v1"), group_of("v1")) == ("apps", "")


def test_json_texts() -> None:
    assert json_text('ü"\\') == '"ü\\"\\\\"'
    assert json_text("\ud800") == '"\\ud800"'
    with pytest.raises(Unreadable):
        list(Cursor("{").members())
    assert OTHER in rewrite(compact(config_map()), CONFIG, "configmaps").decode()
    assert metadata("x")["name"] == "x"
