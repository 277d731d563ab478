"""What is asked of Kubernetes in cases and explanations, as the gate itself reads it; the page's rules and cases."""

from __future__ import annotations

from typing import Any

import pytest

from protocols.kubernetes.verbs import KIND_OF, VERBS
from proxy.core.errors import ConfigError
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Verdict
from proxy.policy.cases import KubeAsked
from proxy.policy.places import NAMED_ONLY, SUBRESOURCE_VERBS
from proxy.policy.rules import load_rules
from proxy.trying_kube import kube_command, way_of

PROD = Target("prod", "kubernetes", host="api.internal", port=6443)
ANA = Identity("ana@acme.com", frozenset({"staff"}))
POD = """
apiVersion: v1
kind: Pod
metadata: {name: x}
spec:
  hostNetwork: true
  containers: [{name: x, image: r.acme/x, securityContext: {privileged: true}}]
"""


def read(text: str, **more: Any) -> Any:
    """The command of a text."""
    return kube_command(KubeAsked(way_of(text), text, **more), PROD)


def verdict(rules: str, text: str, **more: Any) -> type[Verdict]:
    found = load_rules("rules:\n" + rules, "rules.yaml", [PROD], verbs={"kubernetes": VERBS}, detectors=["email"])
    return type(found.judge(ANA, PROD, read(text, **more)))


@pytest.mark.parametrize(
    ("text", "verb", "place"),
    [
        ("get dev/pods/web", "get", "dev/pods/web"),
        ("list dev/pods", "list", "dev/pods/*"),
        ("list */secrets/*", "list", "*/secrets/*"),
        ("watch dev/pods", "watch", "dev/pods/*"),
        ("delete -/nodes/n1", "delete", "-/nodes/n1"),
        ("deletecollection dev/pods", "deletecollection", "dev/pods/*"),
        ("update dev/configmaps/c", "update", "dev/configmaps/c"),
        ("create dev/pods/x", "create", "dev/pods/x"),
        ("create dev/pods/web/eviction", "create", "dev/pods/web"),
        ("patch dev/deployments.apps/web/scale", "patch", "dev/deployments.apps/web"),
        ("get dev/widgets.v1beta1.example.com/w", "get", "dev/widgets.example.com/w"),
        ("log dev/pods/web", "log", "dev/pods/web"),
        ("exec dev/pods/web -- ls", "exec", "dev/pods/web"),
        ("line dev/pods/web -- ls", "line", "dev/pods/web"),
        ("attach dev/pods/web", "attach", "dev/pods/web"),
        ("copy-out dev/pods/web /etc/passwd", "copy-out", "dev/pods/web"),
        ("copy-in dev/pods/web /tmp", "copy-in", "dev/pods/web"),
        ("portforward dev/pods/db", "portforward", "dev/pods/db"),
        ("connect dev/pods/db 5432", "connect", "dev/pods/db"),
        ("debug dev/pods/web", "debug", "dev/pods/web"),
        ("proxy dev/services/web", "proxy", "dev/services/web"),
        ("discover /version", "discover", "/version"),
        ("get-path /metrics", "get-path", "/metrics"),
        ("path /x", "path", "/x"),
        ("GET /api/v1/namespaces/dev/pods?watch=true", "watch", "dev/pods/*"),
        ("DELETE /api/v1/namespaces/dev", "delete", "-/namespaces/dev"),
        ("GET /api/v1/pods?fieldSelector=metadata.name%3Dweb", "list", "*/pods/web"),
    ],
)
def test_what_is_asked(text: str, verb: str, place: str) -> None:
    command = read(text)
    assert (command.verb, command.objects) == (verb, (place,))
    assert command.protocol == "kubernetes" and (command.kind == KIND_OF[verb] or "eviction" in text)


def test_facts_are_those_of_the_gate() -> None:
    command = read("exec dev/pods/web -- sh -c 'ls; id'", container="main", pty=True)
    assert command.facts["argv"] == ("sh", "-c", "ls; id") and command.facts["container"] == "main"
    assert command.facts["shell"].names == ("sh", "ls", "id") and command.facts["tty"] and command.facts["stdin"]
    assert read("connect dev/pods/db 5432").facts["port"] == 5432
    assert read("copy-in dev/pods/web /tmp").facts["transfer_path"] == "/tmp"
    assert not read("line dev/pods/web -- sudo ls").exact
    assert read("line dev/pods/web -- $x").facts["opaque"] is True
    pod = read("create dev/pods/x", body=POD)
    assert pod.facts["images"] == ("r.acme/x",) and "hostNetwork" in pod.facts["privileges"]
    scale = read("patch dev/deployments.apps/web/scale", body="spec: {replicas: 3}")
    assert scale.facts["fields_written"] == ("deployments.apps:spec.replicas",)
    strategic = read("patch dev/pods/x", body=POD, content_type="application/strategic-merge-patch+json")
    assert strategic.facts["content_type"] == "application/strategic-merge-patch+json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frob dev/pods/web", "frob is none of"),
        ("get", "write VERB"),
        ("get dev/pods", "get needs a name"),
        ("get dev", "must be NAMESPACE/RESOURCE/NAME"),
        ("list dev/pods/web", "is of no name"),
        ("exec dev/pods/web", "behind ' -- '"),
        ("exec dev/pods/web -- 'ls", "closing quotation"),
        ("get dev/pods/web -- ls", "only exec has a command line"),
        ("connect dev/pods/db", "write the port"),
        ("connect dev/pods/db 70000", "write the port"),
        ("copy-out dev/pods/web etc", "write the path"),
        ("discover /metrics", "takes this for 'get-path'"),
        ("impersonate dev/pods/web", "takes this for 'get'"),
        ("GET /api/v1/namespaces/dev/secrets%2Fx", "refuses this by itself"),
        ("GET /api/v1/watch/pods", "refuses this by itself"),
    ],
)
def test_what_cannot_be_asked(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_bodies_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match="neither YAML nor JSON"):
        read("create dev/pods/x", body="{a: [")
    with pytest.raises(ConfigError, match="refuses this by itself"):
        read("create dev/pods/x", body="x", content_type="application/cbor")


def test_words_of_the_rules_are_words_of_the_protocol() -> None:
    assert NAMED_ONLY <= VERBS and SUBRESOURCE_VERBS <= VERBS


ALL = "- {name: all, commands: {opaque: true}, allow: true}\n"


@pytest.mark.parametrize(
    ("commands", "text"),
    [
        # Each is another way to ask for what the deny speaks of.
        ("resources: [secrets]", "GET /api/v1/secrets?limit=1"),
        ("resources: [secrets]", "GET /api/v1/namespaces/dev/secrets?watch"),
        ("resources: [secrets], names: [db]", "GET /api/v1/namespaces/dev/secrets?labelSelector=a%3Db"),
        ("resources: [secrets], names: [db]", "GET /api/v1/namespaces/dev/secrets?fieldSelector=metadata.name!%3Dx"),
        ("resources: [secrets], names: [db]", "GET /api/v1/namespaces/dev/secrets?fieldSelector=metadata.name%3Ddb"),
        ("namespaces: [prod]", "GET /api/v1/pods?fieldSelector=metadata.namespace%3Ddev"),
        ("namespaces: [prod], kinds: [delete]", "DELETE /api/v1/namespaces/prod"),
        ("kinds: [delete], resources: [pods], namespaces: [dev]", "create dev/pods/web/eviction"),
        ("resources: [deployments]", "GET /apis/apps/v1/namespaces/dev/deployments/web"),
        ("resources: [events]", "GET /apis/events.k8s.io/v1/namespaces/dev/events"),
        ("namespaces: [prod]", "GET /apis/example.com/v1/widgets"),
        ("verbs: [exec], resources: [pods]", "GET /api/v1/namespaces/dev/pods/web/exec?command=ls&stdout=true"),
        ("programs: [rm]", "exec dev/pods/web -- sh -c 'rm x'"),
        ("programs: [rm]", "exec dev/pods/web -- sh -c '$x'"),
    ],
)
def test_no_deny_can_be_gone_around_on_the_wire(commands: str, text: str) -> None:
    assert verdict(ALL, text) is Allow
    assert verdict(ALL + f"- {{name: no, commands: {{{commands}}}, deny: true}}\n", text) is Deny


@pytest.mark.parametrize(
    ("commands", "text"),
    [
        ("resources: [pods], namespaces: [dev]", "GET /api/v1/pods?fieldSelector=metadata.namespace%3Ddev"),
        ("resources: [pods], namespaces: [dev]", "GET /api/v1/namespaces/dev/pods/web/exec?command=ls&stdout=true"),
        ("resources: [pods], namespaces: [dev]", "GET /api/v1/namespaces/dev/pods/web/proxy/x"),
        ("resources: [pods]", "GET /apis/example.com/v1/namespaces/dev/pods/web"),
        ("names: [web]", "GET /api/v1/namespaces/dev/pods?fieldSelector=metadata.name!%3Dweb"),
        ("names: [web]", "GET /api/v1/namespaces/dev/pods?labelSelector=app%3Dweb"),
        ("names: [web]", "DELETE /api/v1/namespaces/dev/pods?fieldSelector=metadata.name%3Dweb"),
        ("names: [web]", "create dev/pods"),
        ("namespaces: [dev]", "DELETE /api/v1/namespaces/dev"),
        ("namespaces: ['*']", "GET /api/v1/nodes"),
        ("namespaces: ['*']", "GET /metrics"),
        ("programs: [sh, ls]", "exec dev/pods/web -- sh"),
        ("resources: ['*'], opaque: true", "GET /api/v1/nodes/n1/proxy/run"),
    ],
)
def test_no_allow_leaks_on_the_wire(commands: str, text: str) -> None:
    assert verdict(f"- {{name: a, commands: {{{commands}}}, allow: true}}\n", text) is Deny
