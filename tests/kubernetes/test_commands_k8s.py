# ruff: noqa: E501  # rows of tables
"""Requests as Commands: verbs, objects, facts, the line that approvers read, the head for the target, the answer."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.kubernetes.bodies import BODY_LIMIT
from protocols.kubernetes.commands import (
    TOKEN_PROTOCOL,
    VERBS,
    BadGateway,
    Conversation,
    check_fields,
    json_alternatives,
    token_of,
)
from protocols.kubernetes.protobuf import encode
from protocols.kubernetes.request_info import read_path
from proxy.core.errors import Refused
from proxy.core.events import Command
from proxy.core.http.heads import BadRequest, Fields, RequestHead, ResponseHead
from proxy.core.parties import Target
from proxy.core.verdict import Deny
from proxy.policy.shell import read_shell

NS = "/api/v1/namespaces/pay"
APPS = "/apis/apps/v1/namespaces/pay"
TARGET = Target("shop", "kubernetes", host="10.0.0.1", port=6443)
APPLY = "application/apply-patch+yaml"
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
OPERATIONS = "application/json-patch+json"
PROTOBUF = "application/vnd.kubernetes.protobuf"

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "api"},
    "spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "api", "image": "r.io/api:2"}]}}},
}
DEBUG = {"spec": {"ephemeralContainers": [{"name": "debugger-x", "image": "busybox", "stdin": True, "tty": True}]}}


class Asked:
    """One request, read."""

    def __init__(
        self, method: str, target: str, body: object = None, content_type: str = "application/json",
        fields: Fields = (), upgrade: str = "",
    ) -> None:  # fmt: skip
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        own = (("Content-Type", content_type),) if data else ()
        self.head = RequestHead(method, target, (*own, *fields), length=len(data), upgrade=upgrade)
        self.info = read_path(target, method)
        self.conversation = Conversation(TARGET, 3, read_shell)
        self.command: Command = self.conversation.from_user(self.head, self.info, data)

    def upstream(self, masked: bool = False, extra: Fields = ()) -> tuple[str, str, Fields]:
        return self.conversation.upstream(self.head, self.info, masked, extra)


def refused(method: str, target: str, *more: Any, **named: Any) -> int:
    with pytest.raises(BadRequest) as raised:
        Asked(method, target, *more, **named)
    return raised.value.status


# -- what kubectl asks, as the line that a person would have typed ---------------------------------------

LINES: list[tuple[tuple[Any, ...], str, str, str]] = [
    (("GET", f"{NS}/pods?limit=500"), "list", "pay/pods/*", "kubectl -n pay get pods"),
    (("GET", f"{NS}/pods?labelSelector=app%3Dapi&limit=500"), "list", "pay/pods/*", "kubectl -n pay get pods -l app=api"),
    (("GET", f"{NS}/pods?labelSelector=app+in+%28a%2Cb%29"), "list", "pay/pods/*", "kubectl -n pay get pods -l 'app in (a,b)'"),
    (("GET", f"{NS}/pods?fieldSelector=status.phase%3DFailed"), "list", "pay/pods/*", "kubectl -n pay get pods --field-selector status.phase=Failed"),
    (("GET", f"{NS}/pods?fieldSelector=metadata.name%3Dweb&watch=true"), "watch", "pay/pods/web", "kubectl -n pay get pods web -w"),
    (("GET", "/api/v1/pods?limit=500"), "list", "*/pods/*", "kubectl get pods -A"),
    (("GET", f"{APPS}/deployments/api"), "get", "pay/deployments.apps/api", "kubectl -n pay get deployments.apps api"),
    (("GET", f"{NS}/pods/web/status"), "get", "pay/pods/web", "kubectl -n pay get pods web --subresource=status"),
    (("GET", "/api/v1/nodes"), "list", "-/nodes/*", "kubectl get nodes"),
    (("GET", NS), "get", "-/namespaces/pay", "kubectl get namespaces pay"),
    (("GET", f"{NS}/pods/web/log?container=c&follow=true&tailLines=5&sinceSeconds=60"), "log", "pay/pods/web", "kubectl -n pay logs web -c c -f --tail=5 --since=60s"),
    (("GET", f"{NS}/pods/web/log?previous=true"), "log", "pay/pods/web", "kubectl -n pay logs web --previous"),
    (("POST", f"{APPS}/deployments?fieldManager=kubectl-create", DEPLOYMENT), "create", "pay/deployments.apps/api", "kubectl -n pay create -f - (deployment api; replicas 3; image r.io/api:2)"),
    (("POST", f"{APPS}/deployments?fieldManager=kubectl-client-side-apply", DEPLOYMENT), "create", "pay/deployments.apps/api", "kubectl -n pay apply -f - (deployment api; replicas 3; image r.io/api:2)"),
    (("PATCH", f"{APPS}/deployments/api?fieldManager=kubectl&force=true", DEPLOYMENT, APPLY), "patch", "pay/deployments.apps/api", "kubectl -n pay apply --server-side --force-conflicts -f - (deployment api; replicas 3; image r.io/api:2)"),
    (("PATCH", f"{APPS}/deployments/api?fieldManager=kubectl-client-side-apply", {"spec": {"replicas": 1}}, STRATEGIC), "patch", "pay/deployments.apps/api", "kubectl -n pay apply -f - (replicas 1)"),
    (("PUT", f"{APPS}/deployments/api", DEPLOYMENT), "update", "pay/deployments.apps/api", "kubectl -n pay replace -f - (deployment api; replicas 3; image r.io/api:2)"),
    (("PATCH", f"{APPS}/deployments/api", {"spec": {"paused": True}}, STRATEGIC), "patch", "pay/deployments.apps/api", """kubectl -n pay patch deployments.apps api --type=strategic -p '{"spec":{"paused":true}}'"""),
    (("PATCH", f"{APPS}/deployments/api", [{"op": "remove", "path": "/spec/x"}], OPERATIONS), "patch", "pay/deployments.apps/api", """kubectl -n pay patch deployments.apps api --type=json -p '[{"op":"remove","path":"/spec/x"}]'"""),
    (("PATCH", f"{APPS}/deployments/api/scale", {"spec": {"replicas": 5}}, MERGE), "patch", "pay/deployments.apps/api", "kubectl -n pay scale deployments.apps api --replicas=5"),
    (("PUT", f"{APPS}/deployments/api/scale", {"kind": "Scale", "spec": {"replicas": 0}}), "update", "pay/deployments.apps/api", "kubectl -n pay scale deployments.apps api --replicas=0 (scale api)"),
    (("DELETE", f"{NS}/pods/web", {"kind": "DeleteOptions", "propagationPolicy": "Background"}), "delete", "pay/pods/web", "kubectl -n pay delete pods web"),
    (("DELETE", f"{NS}/pods/web", {"gracePeriodSeconds": 0, "propagationPolicy": "Orphan"}), "delete", "pay/pods/web", "kubectl -n pay delete pods web --grace-period=0 --cascade=orphan"),
    (("DELETE", f"{NS}/pods/web?gracePeriodSeconds=5"), "delete", "pay/pods/web", "kubectl -n pay delete pods web --grace-period=5"),
    (("DELETE", f"{NS}/pods"), "deletecollection", "pay/pods/*", "kubectl -n pay delete pods --all"),
    (("DELETE", f"{NS}/pods?labelSelector=app%3Dx"), "deletecollection", "pay/pods/*", "kubectl -n pay delete pods -l app=x"),
    (("DELETE", f"{NS}/pods/web?dryRun=All"), "delete", "pay/pods/web", "kubectl -n pay delete pods web --dry-run=server"),
    (("POST", f"{NS}/pods/web/eviction", {"kind": "Eviction", "metadata": {"name": "web"}}), "create", "pay/pods/web", f"kubectl -n pay create --raw {NS}/pods/web/eviction -f - (eviction web)"),
    (("POST", f"{NS}/serviceaccounts/sa/token", {"kind": "TokenRequest"}), "create", "pay/serviceaccounts/sa", "kubectl -n pay create token sa (tokenrequest sa)"),
    (("PATCH", f"{NS}/pods/web/ephemeralcontainers", DEBUG, STRATEGIC), "debug", "pay/pods/web", "kubectl -n pay debug web (image busybox)"),
    (("POST", f"{NS}/pods", {"metadata": {"generateName": "job-"}}), "create", "pay/pods/job-*", "kubectl -n pay create -f -"),
    (("POST", "/api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": "new"}}), "create", "-/namespaces/new", "kubectl create -f - (namespace new)"),
    (("POST", f"{NS}/configmaps", {"kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"b": "1", "a": "2"}}), "create", "pay/configmaps/cm", "kubectl -n pay create -f - (configmap cm; keys a, b)"),
    (("GET", "/version?timeout=5s"), "discover", "/version", "kubectl get --raw '/version?timeout=5s'"),
    (("GET", "/metrics"), "get-path", "/metrics", "kubectl get --raw /metrics"),
    (("POST", "/x?a=$b"), "path", "/x", "kubectl create --raw '/x?a=$b' -f -"),
    (("DELETE", "/x"), "path", "/x", "kubectl delete --raw /x"),
    (("OPTIONS", "/x"), "path", "/x", "OPTIONS /x"),
    (("GET", f"{NS}/services/web:80/proxy/admin?x=1"), "proxy", "pay/services/web:80", f"kubectl get --raw '{NS}/services/web:80/proxy/admin?x=1'"),
]  # fmt: skip


def test_lines() -> None:
    for ask, verb, place, text in LINES:
        command = Asked(*ask).command
        assert (command.verb, command.objects, command.text) == (verb, (place,), text)
        assert command.verb in VERBS
        assert (command.protocol, command.flow, command.wire, command.exact) == ("kubernetes", 3, b"", True)


STREAMS: list[tuple[str, str, str]] = [
    ("exec?command=id&stdout=true&stderr=true", "exec", "kubectl -n pay exec web -- id"),
    ("exec?command=sh&command=-c&command=id+-u&container=api&stdin=true&stdout=true&tty=true", "exec", "kubectl -n pay exec web -c api -i -t -- sh -c 'id -u'"),
    ("exec?command=rm&command=-rf&command=%2F%3B+x&stdout=true", "exec", "kubectl -n pay exec web -- rm -rf '/; x'"),
    ("exec?stdin=true", "exec", "kubectl -n pay exec web -i"),
    ("exec?command=--&command=x&stdin=0&tty=false", "exec", "kubectl -n pay exec web -- -- x"),
    ("attach?container=api&stdin=true&tty=true&stdout=true", "attach", "kubectl -n pay attach web -c api -i -t"),
    ("portforward", "portforward", "kubectl -n pay port-forward web"),
    ("exec?command=tar&command=cf&command=-&command=/var/log&stdout=true", "copy-out", "kubectl -n pay cp web:/var/log -"),
    ("exec?command=tar&command=-xmf&command=-&command=-C&command=/tmp&stdin=true&container=c", "copy-in", "kubectl -n pay cp -c c - web:/tmp"),
    ("exec?command=tar&command=--no-same-permissions&command=--no-same-owner&command=-xmf&command=-&stdin=true", "copy-in", "kubectl -n pay cp - web:."),
    ("exec?command=tar&command=cf&command=-&command=--checkpoint-action%3Dexec%3Dsh&stdout=true", "exec", "kubectl -n pay exec web -- tar cf - --checkpoint-action=exec=sh"),
    ("exec?command=tar&command=cf&command=-&command=/a&command=/b&stdout=true", "exec", "kubectl -n pay exec web -- tar cf - /a /b"),
    ("exec?command=tar&command=cf&command=-&command=/a&stdin=true", "exec", "kubectl -n pay exec web -i -- tar cf - /a"),
    ("exec?command=tar&command=cf&command=-&command=/a&tty=true", "exec", "kubectl -n pay exec web -t -- tar cf - /a"),
    ("exec?command=tar&command=-xmf&command=-&command=-C&command=/tmp", "exec", "kubectl -n pay exec web -- tar -xmf - -C /tmp"),
    ("exec?command=tar&command=-xmf&command=-&command=-C&command=/tmp&command=-Ish&stdin=true", "exec", "kubectl -n pay exec web -i -- tar -xmf - -C /tmp -Ish"),
    ("exec?command=tar&command=-xmf&command=-&command=-C&command=--to-command&stdin=true", "exec", "kubectl -n pay exec web -i -- tar -xmf - -C --to-command"),
]  # fmt: skip


def test_streams() -> None:
    for query, verb, text in STREAMS:
        for method in ("GET", "POST"):
            asked = Asked(method, f"{NS}/pods/web/{query}", upgrade="websocket" if method == "GET" else "spdy/3.1")
            assert (asked.command.verb, asked.command.text) == (verb, text)
            assert asked.command.objects == ("pay/pods/web",)
            assert asked.command.data == b""  # the flow is the program's


def test_facts_of_an_exec() -> None:
    query = "exec?command=sh&command=-c&command=rm+-rf+/x&container=api&stdin=false&tty=1"
    facts = Asked("GET", f"{NS}/pods/web/{query}", upgrade="websocket").command.facts
    assert facts["argv"] == ("sh", "-c", "rm -rf /x")
    assert (facts["stdin"], facts["tty"], facts["container"], facts["opaque"]) == (False, True, "api", False)
    assert "rm" in facts["shell"].programs
    assert (facts["namespace"], facts["name"], facts["subresource"]) == ("pay", "web", "exec")
    dark = Asked("GET", f"{NS}/pods/web/exec?command=sh&command=-c&command=$X", upgrade="websocket").command.facts
    assert dark["opaque"]
    copy = Asked(
        "GET", f"{NS}/pods/web/exec?command=tar&command=cf&command=-&command=/etc", upgrade="websocket"
    ).command
    assert (copy.kind, copy.facts["transfer"], copy.facts["transfer_path"]) == ("transfer", "out", "/etc")


def test_facts_of_a_read() -> None:
    facts = Asked("GET", f"{NS}/pods?labelSelector=a%3Db&fieldSelector=metadata.name%3Dweb").command.facts
    assert facts == {
        "api_group": "", "api_version": "v1", "resource": "pods", "subresource": "", "namespace": "pay", "name": "web",
        "cluster_scoped": False, "label_selector": "a=b", "field_selector": "metadata.name=web",
    }  # fmt: skip
    assert Asked("GET", "/healthz").command.facts == {"path": "/healthz"}
    assert Asked("GET", f"{NS}/pods/web/log?container=c").command.facts["container"] == "c"
    for target in (f"{NS}/services/web/proxy/x", "/api/v1/nodes/n1/proxy/run"):
        assert Asked("GET", target).command.facts["opaque"] is True
    assert Asked("PUT", "/x").command.facts == {"opaque": True, "path": "/x"}


def test_facts_of_a_write() -> None:
    command = Asked("POST", f"{APPS}/deployments?fieldManager=me&dryRun=All", DEPLOYMENT).command
    facts = command.facts
    assert (facts["name"], facts["field_manager"], facts["content_type"]) == ("api", "me", "application/json")
    assert (facts["dry_run"], facts["images"], facts["privileges"]) == (True, ("r.io/api:2",), ())
    assert "deployments.apps:spec.template.spec.containers.image" in facts["fields_written"]
    assert "opaque_body" not in facts
    assert command.text.startswith("kubectl -n pay create -f - --dry-run=server (deployment api")
    put = Asked("PUT", f"{APPS}/deployments/api", DEPLOYMENT).command.facts
    assert put["fields_written"] is None
    assert put["images"] == ("r.io/api:2",)


def test_a_secret_written_by_protobuf_is_read_and_its_values_are_not_shown() -> None:
    value = base64.b64encode(b"hunter2").decode()
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "data": {"password": value}}
    for body, content_type in ((encode(secret), PROTOBUF), (json.dumps(secret).encode(), "application/json")):
        command = Asked("POST", f"{NS}/secrets?fieldManager=kubectl-create", body, content_type).command
        assert command.text == "kubectl -n pay create -f - (secret db; keys password)"
        assert command.objects == ("pay/secrets/db",)
        assert "secrets:data.password" in command.facts["fields_written"]
    for body, content_type in (
        ({"data": {"password": value}, "stringData": {"other": "hunter2"}}, MERGE),
        ([{"op": "add", "path": "/data/password", "value": value}], OPERATIONS),
        ({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hunter2"}}}, STRATEGIC),
    ):
        command = Asked("PATCH", f"{NS}/secrets/db", body, content_type).command
        assert "hunter2" not in command.text
        assert value not in command.text
        assert value.encode() in (command.data or b"") or b"hunter2" in (command.data or b"")


def test_a_body_that_cannot_be_read_whole_is_told() -> None:
    body = encode({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}).replace(b"Pod", b"Pox")
    command = Asked("POST", f"{NS}/pods", body, PROTOBUF).command
    assert command.facts["opaque_body"] is True
    assert command.facts["fields_written"] is None
    assert "some of it cannot be read" in command.text


def test_can_i() -> None:
    spec = {
        "resourceAttributes": {
            "verb": "get",
            "resource": "deployments",
            "group": "apps",
            "namespace": "pay",
            "name": "x",
        }
    }
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    command = Asked("POST", path, encode(review), PROTOBUF).command
    assert command.text.startswith("kubectl auth can-i get deployments.apps/x -n pay")
    assert (command.verb, command.kind) == ("create", "read")


def test_dry_runs() -> None:
    for method, query, body, content_type, expected in (
        ("POST", "?dryRun=All", {"kind": "Pod"}, "application/json", True),
        ("POST", "", {"kind": "Pod"}, "application/json", False),
        ("POST", "?dryRun=all", {"kind": "Pod"}, "application/json", False),
        ("POST", "?dryRun=All&dryRun=None", {"kind": "Pod"}, "application/json", False),
        ("POST", "?DryRun=All", {"kind": "Pod"}, "application/json", False),
        ("POST", "", {"kind": "Pod", "dryRun": ["All"]}, "application/json", False),
        # The server takes the options of a delete from its body, if there is one, and does not look at the query.
        ("DELETE", "?dryRun=All", {"kind": "DeleteOptions"}, "application/json", False),
        ("DELETE", "", {"kind": "DeleteOptions", "dryRun": ["All"]}, "application/json", True),
        ("DELETE", "?dryRun=All", None, "application/json", True),
        ("DELETE", "?dryRun=All", encode({"apiVersion": "v1", "kind": "DeleteOptions"}), PROTOBUF, False),
        ("DELETE", "", encode({"apiVersion": "v1", "kind": "DeleteOptions", "dryRun": ["All"]}), PROTOBUF, True),
    ):  # fmt: skip
        facts = Asked(method, f"{NS}/pods{query}", body, content_type).command.facts
        assert facts["dry_run"] is expected, (method, query, body)


def test_long_patches_are_cut_in_the_line_only() -> None:
    body = {"metadata": {"annotations": {"x": "y" * 5000}}, "spec": {"containers": [{"image": "last:1"}]}}
    command = Asked("PATCH", f"{NS}/pods/web", body, MERGE).command
    assert len(command.text) < 3000
    assert "characters" in command.text
    assert command.text.endswith("(image last:1)")
    assert json.dumps(body).encode() in (command.data or b"")


# -- what is refused ------------------------------------------------------------------------------------


def test_requests_that_are_refused() -> None:
    pod = {"kind": "Pod"}
    assert refused("GET", f"{NS}/pods", pod) == 400
    assert refused("POST", f"{NS}/pods/web/exec?command=id", pod) == 400
    assert refused("POST", f"{NS}/pods", pod, "text/plain") == 415
    assert refused("POST", f"{NS}/pods", pod, MERGE) == 415
    assert refused("PATCH", f"{NS}/pods/web", pod, "application/json") == 415
    assert refused("PATCH", f"{NS}/pods/web", b"a1", "application/apply-patch+cbor") == 415
    assert refused("POST", f"{NS}/pods", b"{") == 400
    assert refused("POST", f"{NS}/pods", b" " * (BODY_LIMIT + 1)) == 413
    assert refused("POST", f"{NS}/pods", {"metadata": {"name": 7}}) == 400
    assert refused("POST", f"{NS}/pods", {"Metadata": {"name": "x"}}) == 400
    for path in (f"{NS}/pods?watch=1", f"{NS}/pods/web/log", "/version", f"{NS}/pods/web/proxy"):
        assert refused("GET", path, upgrade="websocket") == 400


def test_fields_that_speak_for_others_are_refused() -> None:
    for name in (
        "Impersonate-User", "impersonate-group", "IMPERSONATE-UID", "Impersonate-Extra-Scopes", "Impersonate_User",
        "Impersonate-Anything", "X-Remote-User", "x-remote-group", "X_Remote_Extra-A",
    ):  # fmt: skip
        assert refused("GET", f"{NS}/pods", fields=((name, "x"),)) == 403, name
    for fields in (
        (("Authorization", "Bearer a"), ("authorization", "Bearer b")),
        (("Content-Type", "application/json"), ("content-type", "application/yaml")),
        (("Host", "a"), ("Host", "b")),
        (("Connection", "Impersonate-User"),),
        (("Connection", "close, authorization"),),
        (("Connection", "keep-alive"), ("Connection", "Accept")),
    ):
        assert refused("GET", f"{NS}/pods", fields=fields) == 400, fields
    assert refused("GET", f"{NS}/pods", fields=(("Content-Encoding", "gzip"),)) == 415
    check_fields(RequestHead("GET", "/", (("Connection", "Upgrade, keep-alive"), ("Content-Encoding", "identity"))))


def test_tokens() -> None:
    def token(*fields: tuple[str, str]) -> str | None:
        return token_of(RequestHead("GET", "/", fields))

    encoded = base64.urlsafe_b64encode(b"t\xc3\xb6ken~").decode().rstrip("=")
    assert token() is None
    assert token(("Authorization", "Bearer abc.DEF")) == "abc.DEF"
    assert token(("authorization", "bearer  x ")) == "x"
    assert token(("Authorization", "Basic abc")) is None
    assert token(("Authorization", "Bearer")) is None
    assert token(("Sec-WebSocket-Protocol", f"v5.channel.k8s.io, {TOKEN_PROTOCOL}{encoded}")) == "t\u00f6ken~"
    assert token(("Sec-WebSocket-Protocol", "v5.channel.k8s.io")) is None
    for fields in (
        (("Authorization", "Bearer a"), ("Authorization", "Bearer a")),
        (("Sec-WebSocket-Protocol", f"{TOKEN_PROTOCOL}{encoded}"),),
        (("Sec-WebSocket-Protocol", f"a, {TOKEN_PROTOCOL}{encoded}, {TOKEN_PROTOCOL}{encoded}"),),
        (("Sec-WebSocket-Protocol", f"a, {TOKEN_PROTOCOL}"),),
        (("Sec-WebSocket-Protocol", f"a, {TOKEN_PROTOCOL}%%"),),
        (("Sec-WebSocket-Protocol", f"a, {TOKEN_PROTOCOL}YQ=="),),
        (("Sec-WebSocket-Protocol", f"a, {TOKEN_PROTOCOL}_w"),),
        (("Authorization", "Bearer a"), ("Sec-WebSocket-Protocol", f"a, {TOKEN_PROTOCOL}{encoded}")),
    ):
        with pytest.raises(BadRequest):
            token(*fields)


# -- towards the target ---------------------------------------------------------------------------------

USERS: Fields = (
    ("Host", "gateway:443"), ("Authorization", "Bearer canary"), ("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
    ("Accept", "application/vnd.kubernetes.protobuf"), ("Accept-Encoding", "gzip"), ("User-Agent", "kubectl/1.37"),
    ("Kubectl-Command", "kubectl get"), ("Kubectl-Session", "1"), ("Cookie", "canary"), ("X-Forwarded-For", "canary"),
    ("Proxy-Authorization", "canary"), ("Gatecast-Intent", "canary"), ("TE", "trailers"), ("Connection", "keep-alive"),
    ("X-Http-Method-Override", "DELETE"), ("Forwarded", "canary"), ("If-None-Match", '"e"'), ("Upgrade-Insecure-Requests", "1"),
)  # fmt: skip


def test_only_chosen_fields_go_to_the_target() -> None:
    asked = Asked("GET", f"{NS}/pods?limit=5", fields=USERS)
    method, target, fields = asked.upstream(extra=(("Authorization", "Bearer ours"),))
    assert (method, target) == ("GET", f"{NS}/pods?limit=5")
    assert fields == (
        ("Host", "10.0.0.1:6443"),
        ("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
        ("Accept", "application/vnd.kubernetes.protobuf"),
        ("Accept-Encoding", "gzip"),
        ("User-Agent", "kubectl/1.37"),
        ("Kubectl-Command", "kubectl get"),
        ("Kubectl-Session", "1"),
        ("If-None-Match", '"e"'),
        ("Authorization", "Bearer ours"),
    )
    taped = asked.command.data or b""
    assert taped.startswith(f"GET {NS}/pods?limit=5 HTTP/1.1\r\nHost: 10.0.0.1:6443\r\n".encode())
    assert taped.endswith(b"\r\n\r\n")
    assert b"canary" not in taped
    assert b"uthorization" not in taped


def test_under_masks_the_answer_is_asked_for_as_json() -> None:
    fields = dict(Asked("GET", f"{NS}/secrets", fields=USERS).upstream(masked=True)[2])
    assert fields["Accept"] == "application/json;as=Table;v=v1;g=meta.k8s.io, application/json"
    assert "Accept-Encoding" not in fields
    for path in ("/openapi/v2", "/metrics", f"{NS}/services/a/proxy/"):
        found = Asked("GET", path, fields=(("Accept", "application/x"), ("Accept-Encoding", "gzip"))).upstream(
            masked=True
        )[2]
        assert ("Accept", "application/x") in found
        assert "Accept-Encoding" not in dict(found)


def test_accept_is_cut_down_to_json() -> None:
    for accepts, expected in (
        ([], "application/json"),
        (["*/*"], "application/json"),
        (["application/vnd.kubernetes.protobuf,application/json"], "application/json"),
        (["application/yaml", "application/cbor"], "application/json"),
        (["application/json;q=0.5, application/cbor;q=0.9"], "application/json;q=0.5"),
        (["application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io, application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"], "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"),
    ):  # fmt: skip
        assert json_alternatives(accepts) == expected


def test_the_body_is_framed_anew() -> None:
    def framing(head: RequestHead, body: bytes | None) -> dict[str, str]:
        conversation = Conversation(TARGET, 0, read_shell)
        info = read_path(head.target, head.method)
        conversation.from_user(head, info, body)
        _, _, fields = conversation.upstream(head, info, masked=False)
        return {name: value for name, value in fields if name in ("Content-Length", "Transfer-Encoding")}

    json_type = (("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"))
    assert framing(RequestHead("POST", f"{NS}/pods", json_type, length=None), b"{}") == {"Content-Length": "2"}
    assert framing(RequestHead("POST", f"{NS}/pods", (), length=0), b"") == {"Content-Length": "0"}
    assert framing(RequestHead("DELETE", f"{NS}/pods/x", (), length=0), b"") == {}
    assert framing(RequestHead("GET", f"{NS}/pods", (), length=0), b"") == {}
    assert framing(RequestHead("POST", "/x", (), length=None), None) == {"Transfer-Encoding": "chunked"}
    assert framing(RequestHead("POST", f"{NS}/pods/a/proxy", (), length=None), None) == {"Transfer-Encoding": "chunked"}
    assert framing(RequestHead("POST", "/x", (), length=7), None) == {"Content-Length": "7"}


def test_the_query_of_a_stream_goes_as_it_was_read() -> None:
    query = "exec?stdin&stdout=no&tty=FALSE&command=a+b&command=%26c&container=x&pretty=1&stderr=0&Command=evil"
    asked = Asked("GET", f"{NS}/pods/web/{query}", fields=USERS, upgrade="websocket")
    method, target, fields = asked.upstream(masked=True)
    assert method == "GET"
    assert target == (
        f"{NS}/pods/web/exec?stdin=true&stdout=true&stderr=false&tty=false&container=x&command=a%20b&command=%26c"
    )
    again = read_path(target, "GET")
    assert (again.values("command"), again.flag("stdin"), again.flag("tty")) == (("a b", "&c"), True, False)
    assert not {"Content-Length", "Accept-Encoding", "Upgrade", "Connection"} & {name for name, _ in fields}
    forward = Asked("POST", f"{NS}/pods/web/portforward?x=1", upgrade="spdy/3.1")
    assert forward.upstream()[:2] == ("POST", f"{NS}/pods/web/portforward")
    assert refused("GET", f"{NS}/pods/web/portforward?ports=80", upgrade="websocket") == 400


def test_the_paths_bytes_are_forwarded_unchanged() -> None:
    for target in (f"{NS}/pods/a%2Db", "/%61pi/v1/pods?x=%41", f"{NS}/pods/web/proxy/a%20b?c=d%2Fe"):
        assert Asked("GET", target).upstream()[1] == target


def test_the_host_is_the_targets() -> None:
    for host, port, expected in (
        ("k.example", 443, "k.example"),
        ("::1", 6443, "[::1]:6443"),
        ("10.0.0.1", 0, "10.0.0.1"),
    ):
        conversation = Conversation(Target("t", "kubernetes", host=host, port=port), 0, read_shell)
        info = read_path("/version", "GET")
        head = RequestHead("GET", "/version", (("Host", "evil"),))
        conversation.from_user(head, info, b"")
        assert conversation.upstream(head, info, masked=False)[2][0] == ("Host", expected)


# -- the answer -----------------------------------------------------------------------------------------


def answer(
    content_type: str = "application/json", status: int = 200, length: int | None = None, *more: tuple[str, str]
) -> ResponseHead:
    return ResponseHead(status, "", (("Content-Type", content_type), *more), length=length)


def test_treatments_under_masks() -> None:
    for target, response, expected in (
        (f"{NS}/secrets", answer(), "document"),
        (f"{NS}/secrets/db", answer("application/json;charset=utf-8"), "document"),
        (f"{NS}/secrets?watch=1", answer("application/json;stream=watch"), "lines"),
        (f"{NS}/secrets?watch=1", answer(status=403), "document"),
        (f"{NS}/pods/web/log?follow=1", answer("text/plain"), "text"),
        (f"{NS}/pods/web/log", answer("application/octet-stream"), "text"),
        (f"{NS}/pods/web/log", answer(status=404), "document"),
        (f"{NS}/pods", answer("text/plain", 502), "text"),
        (f"{NS}/secrets", answer(status=304, length=0), "pass"),
        (f"{NS}/secrets", answer(length=0), "pass"),
        ("/openapi/v2", answer("application/x-protobuf"), "pass"),
        ("/metrics", answer("text/plain; version=0.0.4"), "text"),
        (f"{NS}/pods/a/proxy/", answer("text/html"), "text"),
        (f"{NS}/pods/a/proxy/", answer(), "text"),
    ):
        conversation = Asked("GET", target).conversation
        assert conversation.treatment(response, masked=True) == expected, target
        assert conversation.treatment(response, masked=False) == "pass"


def test_what_cannot_be_masked_is_no_answer() -> None:
    for target, response in (
        (f"{NS}/secrets", answer("application/vnd.kubernetes.protobuf")),
        (f"{NS}/secrets", answer("application/yaml")),
        (f"{NS}/secrets?watch=1", answer("application/vnd.kubernetes.protobuf;stream=watch")),
        (f"{NS}/secrets", ResponseHead(200, "OK", (), length=None)),
        (f"{NS}/secrets", answer("application/json", 200, None, ("Content-Encoding", "gzip"))),
        (f"{NS}/pods/web/log", answer("text/plain", 200, None, ("Content-Encoding", "gzip"))),
        (f"{NS}/pods/a/proxy/", answer("image/png")),
    ):
        conversation = Asked("GET", target).conversation
        assert isinstance(conversation.treatment(response, masked=True), BadGateway), target
        assert conversation.treatment(response, masked=False) == "pass"


def test_results() -> None:
    shown = json.dumps({"kind": "PodList", "items": [{"metadata": {"namespace": "pay", "name": "web"}}]}).encode()
    conversation = Asked("GET", f"{NS}/pods").conversation
    result = conversation.result(answer(), shown, len(shown), 0)
    assert result.tag == "200 OK"
    assert result.details == {"flow": 3, "status": 200, "sent": 0, "content_type": "application/json"}
    assert (result.columns, result.rows) == (("NAMESPACE", "NAME", "CREATED"), (("pay", "web", None),))
    assert (result.row_count, result.size_bytes, result.error) == (1, len(shown), None)
    part = conversation.result(answer(), shown, len(shown) + 1, 0)
    assert (part.columns, part.size_bytes) == ((), len(shown) + 1)
    failed = json.dumps(
        {"kind": "Status", "status": "Failure", "code": 409, "message": "no", "reason": "Conflict"}
    ).encode()
    made = Asked("POST", f"{NS}/pods", {"kind": "Pod"}).conversation.result(answer(status=409), failed, len(failed), 14)
    assert (made.tag, made.error) == ("409 Conflict", {"code": "409", "message": "no", "reason": "Conflict"})
    assert made.details["sent"] == 14
    bare = conversation.result(ResponseHead(204, "", (), length=0), b"", 0, 0)
    assert (bare.tag, bare.details) == ("204 No Content", {"flow": 3, "status": 204, "sent": 0})


def test_a_refusal_is_a_status() -> None:
    code, document = Asked("GET", f"{NS}/pods").conversation.refuse(Refused(Deny("r", "no")))
    assert code == 403
    assert json.loads(document)["message"] == 'gatecast: denied by rule "r": no'


PIECES = st.sampled_from(
    ["pods", "secrets", "exec", "log", "proxy", "status", "web", "ephemeralcontainers", "%2F", "x"]
)


@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"]),
    st.lists(PIECES, max_size=4),
    st.sampled_from(["", "?watch=1", "?command=a&tty=1", "?fieldSelector=metadata.name=x", "?dryRun=All"]),
    st.binary(max_size=30)
    | st.sampled_from([b"{}", b'[{"op":"add","path":"/a","value":{}}]', b'{"spec":{"containers":[7]}}']),
    st.sampled_from(["application/json", MERGE, STRATEGIC, OPERATIONS, APPLY, PROTOBUF, "x"]),
)
def test_any_request_is_a_command_or_a_bad_request(
    method: str, pieces: list[str], query: str, body: bytes, content_type: str
) -> None:
    for prefix in (NS, "/api/v1", "/apis/a.b/v1", ""):
        try:
            asked = Asked(method, f"{prefix}/{'/'.join(pieces)}{query}", body, content_type)
        except BadRequest as bad:
            assert 400 <= bad.status < 500
        else:
            assert asked.command.verb in VERBS
            assert asked.command.text
            assert asked.command.objects
            asked.upstream()
            asked.upstream(masked=True)
