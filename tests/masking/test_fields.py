"""Patterns of fields, what they do to values, and what they do not let anybody write back."""

from __future__ import annotations

import base64
import fnmatch
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.events import Command, FieldMask, Kind
from proxy.core.verdict import Mask
from proxy.masking import DETECTORS, Masking, check_mask
from proxy.masking import fields as fields_module
from proxy.masking.fields import compile_field
from proxy.masking.names import FIELD_LIMIT

MASKING = Masking(b"k" * 32, {"staff": r"^S-\d{6}$", "pin": r"pin\W+(\d{4})"})
GET = Command("kubernetes", "get", "read", "kubectl get")
LAST = "metadata.annotations.kubectl.kubernetes.io/last-applied-configuration"


def fields(*patterns: str, **more: Any) -> FieldMask:
    found = MASKING.fields((Mask("hide", fields=patterns, **more),), GET)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("pattern", "covered", "free"),
    [
        ("secrets:data.*", "secrets:data.a secrets:data.a.b secrets:stringData.a *:data.a", "secrets:type pods:data.a"),
        ("secrets:data", "secrets:data secrets:data.a secrets:data.a.b secrets:stringData.x", "secrets:database *:x"),
        ("configmaps:data.db-url", "configmaps:data.db-url", "configmaps:data.db-urls configmaps:stringData.db-url"),
        ("daemonsets:spec", "daemonsets.apps:spec.x daemonsets:spec daemonsets.apps/scale:spec.x", "daemon:spec"),
        ("daemonsets.apps:spec", "daemonsets.apps:spec daemonsets.apps/scale:spec.x", "daemonsets:spec x.apps:spec"),
        ("pods:spec.containers.env.DB_?", "pods:spec.containers.env.DB_A", "pods:spec.containers.env.DB_AB"),
        ("pods:s[tp]*.x", "pods:spec.x pods:status.a.x pods:spec.x.y", "pods:sxec.x pods:spec.xy"),
        ("*:*env.*PASSWORD*", "pods:spec.containers.env.PASSWORD a.b.c:env.X_PASSWORD_Y", "pods:spec.env.password"),
        ("serviceaccounts/token:status.token", "serviceaccounts/token:status.token", "serviceaccounts:status.token"),
        ("*.io:x", "a.io:x b.c.io:x", "a.ioo:x io:x"),
    ],
)  # fmt: skip
def test_what_a_pattern_covers(pattern: str, covered: str, free: str) -> None:
    found = fields(pattern)
    assert [name for name in covered.split() if found(name) is None] == []
    assert [name for name in free.split() if found(name) is not None] == []
    assert all(found.touches(name) for name in covered.split())


@pytest.mark.parametrize(
    ("pattern", "reached", "out_of_reach"),
    [
        ("secrets:data.*", "secrets: secrets:data *: *:data", "pods: secrets:metadata secrets:dat secrets:type"),
        ("pods:spec.containers.env.X", "pods:spec pods:spec.containers.env", "pods:status pods:spec.containers.image"),
        ("pods:spec.*env.*PASS*", "pods:spec pods:spec.nodeName pods:spec.a.env", "pods:metadata pods:specs"),
        ("pods:*", "pods: pods:x pods:x.y", "nodes: nodes:x"),
        ("pods:a?c.[xy]z", "pods:abc pods:abc.xz", "pods:ac pods:abc.wz"),
    ],
)
def test_what_lies_above_a_covered_field(pattern: str, reached: str, out_of_reach: str) -> None:
    found = fields(pattern)
    assert [name for name in reached.split() if not found.touches(name)] == []
    assert [name for name in out_of_reach.split() if found.touches(name)] == []


_path = st.text(alphabet="ab.", min_size=1, max_size=8).map(lambda text: text.strip(".") or "a")
_glob = st.text(alphabet="ab.*?", min_size=1, max_size=6)


@given(_glob, _path, _path)
def test_reach_is_exact(glob: str, path: str, below: str) -> None:
    """What is covered below a path is told above it; and what is not reached is never covered."""
    pattern = compile_field(f"pods:{glob}")
    whole = f"{path}.{below}"
    if fnmatch.fnmatchcase(whole, glob):
        assert pattern.covers(whole)
        assert pattern.reaches(path)
    if not pattern.covers(path) and not pattern.reaches(path):
        assert not pattern.covers(whole)
    prefixes = [whole[:at] for at in range(1, len(whole) + 1) if at == len(whole) or whole[at] == "."]
    assert pattern.covers(whole) == any(fnmatch.fnmatchcase(prefix, glob) for prefix in prefixes)


def test_patterns_cost_time_in_proportion() -> None:
    pattern = compile_field("pods:" + "*a" * 100 + "*b")
    assert not pattern.covers("a" * 4000)
    assert pattern.reaches("a" * 400)


@pytest.mark.parametrize(
    ("action", "more", "expected"),
    [
        ("redact", {}, "[redacted]"),
        ("redact", {"text": "<ü>"}, "<ü>"),
        ("constant", {"text": "none"}, "none"),
        ("null", {}, ""),
        ("partial", {"keep": 2}, "****üt"),
    ],
)
def test_what_a_value_becomes(action: str, more: dict[str, Any], expected: str) -> None:
    replace = fields("secrets:data.*", action=action, **more)("secrets:data.p")
    assert replace is not None
    assert replace("secrüt") == expected
    assert "\ud800" not in replace("\udcff\ud800 and more")


def test_hashes_are_equal_for_equal_values() -> None:
    replace = fields("secrets:data.*", action="hash")("secrets:data.p")
    assert replace is not None
    assert replace("a") == replace("a") != replace("b")


def test_the_first_mask_counts() -> None:
    found = MASKING.fields(
        (
            Mask("a", fields=("secrets:data.a",), action="constant", text="first"),
            Mask("b", fields=("secrets:data.*",), action="constant", text="second"),
        ),
        GET,
    )
    assert found is not None
    replaces = [found(f"secrets:data.{key}") for key in "ab"]
    assert [replace("x") for replace in replaces if replace is not None] == ["first", "second"]
    assert found.resources == ("secrets",)
    assert found.texts is None


def test_masks_of_columns_alone_leave_documents_alone() -> None:
    assert MASKING.fields((Mask("c", columns=("a.b.c",)),), GET) is None
    assert MASKING.fields((), GET) is None


def test_detectors_see_values_and_what_their_keys_tell() -> None:
    found = MASKING.fields((Mask("d", detectors=("email", "cloud_key", "staff", "pin")),), GET)
    assert found is not None
    assert found.texts is not None
    assert found.resources == ()
    assert found.texts("x", "to bob@example.com") == "to [redacted]"
    plain = "nothing to see"
    assert found.texts("x", plain) is plain
    assert found.texts("x", "S-123456") == "[redacted]"  # anchors are a value's own
    assert found.texts("pin", "1234") == "[redacted]"
    assert found.texts("", "1234") == "1234"
    key = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"
    assert found.texts("aws_secret_access_key", key) == "[redacted]"
    assert found.texts("x", key) == key
    assert found.texts("x", "y" * 2_000_000) == "[redacted]"  # too long to be read
    gone = MASKING.fields((Mask("d", detectors=("pin", "email"), action="null"),), GET)
    assert gone is not None and gone.texts is not None
    assert (gone.texts("pin", "1234"), gone.texts("", "a bob@example.com")) == ("", "")


def test_answers_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields_module, "ANSWERS_LIMIT", 10)
    found = fields("secrets:data.k1*", "pods:x")
    for number in range(40):
        assert (found(f"secrets:data.k{number}") is not None) == str(number).startswith("1")
        assert found.touches(f"secrets:data.k{number}") == str(number).startswith("1")
    assert isinstance(found, fields_module.Fields)
    assert len(found._answers) <= 10 and len(found._touched) <= 10


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("secrets", "not resource:path"),
        (":data", "not resource:path"),
        ("secrets:", "not resource:path"),
        ("Secrets:data.*", "lower case"),
        ("pods:spec.containers[0].env", "without the indexes"),
        ("pods:spec..x", "without the indexes"),
        ("pods:.spec", "without the indexes"),
        ("pods:spec.", "without the indexes"),
        ("pods:$.spec", "without the indexes"),
        ("pods:" + "x" * FIELD_LIMIT, "longer than"),
    ],
)
def test_wrong_patterns(pattern: str, problem: str) -> None:
    assert problem in (check_mask(Mask("r", fields=(pattern,)), DETECTORS) or "")


def test_right_patterns() -> None:
    for pattern in ("secrets:data.*", "*:*env.*[Pp]ASS*", "a.b.c:x", "secrets:" + "x" * (FIELD_LIMIT - 8), "*:*"):
        assert check_mask(Mask("r", fields=(pattern,)), DETECTORS) is None


# -- writing back -----------------------------------------------------------------------------------------------------

ENV = Mask("hide", fields=("*:*env.*PASSWORD*", "secrets:data.*"))
FIND = Mask("find", detectors=("email",))


def write(verb: str, resource: str, *written: str, data: bytes = b"", kind: Kind = "write", **facts: Any) -> Command:
    name, _, group = resource.partition(".")
    names = None if written == ("?",) else tuple(f"{resource}:{each}" for each in written)
    known = {"resource": name, "api_group": group, "subresource": "", "fields_written": names}
    return Command("kubernetes", verb, kind, "kubectl", facts=known | facts, data=data)


SHOWN = base64.b64encode(b"[redacted]")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (write("update", "secrets", "?"), "whole object"),
        (write("update", "secrets", "type"), "whole object"),
        (write("patch", "secrets", "?"), "whole object"),
        (write("patch", "secrets", "data.password"), "data.password"),
        (write("patch", "secrets", "stringData.password"), "stringData.password"),
        (write("patch", "secrets", "data"), "data is one of them"),
        (write("patch", "secrets", "data.*"), "data is one of them"),
        (write("patch", "secrets", LAST), "last-applied"),
        (write("patch", "deployments.apps", "spec.template.spec.containers.env.DB_PASSWORD"), "DB_PASSWORD"),
        (write("patch", "deployments.apps", "spec.template.*"), "spec.template"),
        (write("patch", "deployments.apps", LAST), "last-applied"),
        (write("update", "deployments.apps", "?", subresource="status"), "whole object"),
        (write("debug", "pods", "?", subresource="ephemeralcontainers", kind="execute"), "whole object"),
        (write("create", "secrets", "?", data=b'{"data":{"a":"' + SHOWN + b'"}}'), "'[redacted]'"),
        (write("create", "secrets", "?", data=b"k8s\x00\x12[redacted]"), "'[redacted]'"),
        (write("patch", "secrets", "metadata.labels.a", data=b'{"a":"[redacted]"}'), "'[redacted]'"),
    ],
)
def test_masks_are_not_written_back(command: Command, says: str) -> None:
    denied = MASKING.guard((FIND, ENV), command)
    assert denied is not None
    assert (denied.rule, says in denied.reason) == ("hide" if "store" not in denied.reason else denied.rule, True)
    assert MASKING.guard((Mask("other", fields=("leases:spec",)),), command) is None


@pytest.mark.parametrize(
    "command",
    [
        write("patch", "deployments.apps", "metadata.labels.x"),
        write("patch", "deployments.apps", "metadata.annotations.x"),
        write("patch", "deployments.apps", "spec.replicas", subresource="scale"),
        write("update", "deployments.apps", "?", subresource="scale"),
        write("patch", "deployments.apps", "spec.template.spec.containers.image", "spec.template.spec.containers.name"),
        write("patch", "secrets", "type", "metadata.labels.a"),
        write("create", "secrets", "?", data=b'{"data":{"a":"aHVudGVy"}}'),
        write("create", "deployments.apps", "spec.template.spec.containers.env.DB_PASSWORD"),
        write("delete", "secrets", "?", kind="delete"),
        write("get", "secrets", "?", kind="read"),
        write("exec", "pods", "?", subresource="exec", kind="execute"),
        write("portforward", "pods", "?", kind="session"),
        write("proxy", "services", "?", kind="admin"),
    ],
)
def test_what_passes_under_masks_of_fields(command: Command) -> None:
    assert MASKING.guard((ENV,), command) is None


def test_marks_of_detectors_are_not_stored() -> None:
    body = b'{"data":{"mail":"to [redacted] now"}}'
    for verb in ("create", "update", "patch"):
        assert MASKING.guard((FIND,), write(verb, "configmaps", "?", data=body)) is not None
        assert MASKING.guard((FIND,), write(verb, "configmaps", "?", data=b"{}")) is None
    short = Mask("short", detectors=("email",), action="constant", text="none!")
    long = Mask("long", detectors=("email",), action="constant", text='no "q"')
    assert MASKING.guard((short,), write("create", "configmaps", "?", data=b'{"a":"none!"}')) is None
    assert MASKING.guard((long,), write("create", "configmaps", "?", data=b'{"a":"no \\"q\\""}')) is not None
    hashed = Mask("hash", fields=("*:data",), action="hash")
    assert MASKING.guard((hashed,), write("create", "configmaps", "?", data=b"[redacted]")) is None


@pytest.mark.parametrize("verb", ["copy-out", "portforward", "connect"])
def test_detectors_refuse_what_they_cannot_look_into(verb: str) -> None:
    command = Command("kubernetes", verb, "transfer", "x", facts={"resource": "pods"})
    denied = MASKING.guard((FIND,), command)
    assert denied is not None and "cannot be masked" in denied.reason
    assert MASKING.guard((ENV,), command) is None
    assert MASKING.guard((FIND,), Command("kubernetes", "exec", "execute", "x", facts={"resource": "pods"})) is None
