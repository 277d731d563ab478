"""Rules about requests to Kubernetes: places that must not leak, discovery, verbs that must be named, conditions."""

from __future__ import annotations

import asyncio
import fnmatch
import itertools
from typing import Any

import pytest

from proxy.core.errors import ConfigError
from proxy.core.events import Command, Kind
from proxy.core.parties import Identity, Target
from proxy.core.verdict import Allow, Deny, Hold, Verdict
from proxy.policy.cases import KubeAsked, read_cases, run_cases
from proxy.policy.conditions import Scene, compile_condition
from proxy.policy.explain import explain_text
from proxy.policy.globs import Globs
from proxy.policy.places import Places
from proxy.policy.rules import RuleSet, load_rules
from proxy.policy.shell import read_shell

PROD = Target("prod", "kubernetes", labels={"env": "prod"})
SHOP = Target("shop", "postgres", database="shop")
ANA = Identity("ana@acme.com", frozenset({"staff"}))
BOB = Identity("bob@acme.com", frozenset({"guests"}))

KINDS: dict[str, Kind] = {
    "get": "read", "list": "read", "watch": "read", "log": "read", "discover": "read", "get-path": "read",
    "create": "write", "update": "write", "patch": "write", "delete": "delete", "deletecollection": "delete",
    "exec": "execute", "attach": "execute", "debug": "execute", "line": "execute", "copy-in": "transfer",
    "copy-out": "transfer", "portforward": "session", "connect": "transfer", "proxy": "admin", "impersonate": "admin",
    "path": "admin", "UNKNOWN": "unknown",
}  # fmt: skip
SUBRESOURCES = {"log": "log", "exec": "exec", "attach": "attach", "line": "exec", "copy-in": "exec", "copy-out": "exec"}
SUBRESOURCES |= {"debug": "ephemeralcontainers", "portforward": "portforward", "connect": "portforward"}
SUBRESOURCES |= {"proxy": "proxy"}
DEPLOY = "deployments.apps"
WEB = ("pods", "dev", "web")
CLUSTER = {"nodes", "clusterroles", "namespaces"}
VERBS = {"kubernetes": tuple(KINDS), "postgres": ("SELECT", "CONNECT"), "ssh": ("exec",)}


def rules(text: str) -> RuleSet:
    return load_rules("rules:\n" + text, "rules.yaml", [PROD, SHOP], verbs=VERBS, detectors=["email"])


def kube(verb: str, resource: str = "", namespace: str = "", name: str = "", **facts: Any) -> Command:
    """A Command as protocols/kubernetes/commands.py makes it."""
    plain, _, group = resource.partition(".")
    found: dict[str, Any] = {}
    if resource:
        found = {"api_group": group, "api_version": "v1", "resource": plain, "namespace": namespace, "name": name}
        found["subresource"] = SUBRESOURCES.get(verb, "")
        found["cluster_scoped"] = plain in CLUSTER
    if verb in ("proxy", "impersonate", "path"):
        found["opaque"] = True
    place = f"{namespace or '*'}/{resource}/{name or '*'}" if resource else str(facts.get("path", ""))
    text = f"kubectl {verb} {place}"
    return Command("kubernetes", verb, facts.pop("kind", KINDS[verb]), text, objects=(place,), facts=found | facts)


def run(line: str, **facts: Any) -> Command:
    """An exec of a command line in payments/api."""
    script = read_shell(line)
    return kube("exec", "pods", "payments", "api", shell=script, opaque=script.opaque, argv=("sh", "-c", line), **facts)


def verdict(text: str, command: Command, who: Identity = ANA) -> type[Verdict]:
    found = rules(text)
    answer = found.judge(who, PROD, command)
    outcomes = found.explain(who, PROD, command)
    if isinstance(answer, Allow):
        assert any(outcome.matched for outcome in outcomes), "the explanation is of the same code"
    return type(answer)


def allowed(commands: str, command: Command) -> bool:
    """Whether an allow of these commands is one of this."""
    return verdict(f"- {{name: a, commands: {{{commands}}}, allow: true}}\n", command) is Allow


def denied(commands: str, command: Command) -> bool:
    """Whether a deny of these commands takes this from somebody who may do everything."""
    verbs = ", ".join(KINDS)
    text = f"- {{name: all, commands: {{verbs: [{verbs}], opaque: true}}, allow: true}}\n"
    assert verdict(text, command) is Allow
    return verdict(text + f"- {{name: no, commands: {{{commands}}}, deny: true}}\n", command) is Deny


# -- resources --------------------------------------------------------------------------------------------------

SCALE = kube("patch", DEPLOY, "dev", "web", subresource="scale")
EVICT = kube("create", "pods", "dev", "web", subresource="eviction", kind="delete")


@pytest.mark.parametrize(
    ("entry", "command", "allows", "denies"),
    [
        ("pods", kube("get", "pods", "dev", "web"), True, True),
        ("pods", kube("list", "pods"), True, True),
        ("pods", kube("get", "podmonitors.monitoring.coreos.com", "dev", "web"), False, False),
        ("pods", kube("log", "pods", "dev", "web"), False, True),
        ("pods", kube("exec", "pods", "dev", "web"), False, True),
        ("pods", EVICT, False, True),
        ("pods/log", kube("log", "pods", "dev", "web"), True, True),
        ("pods/log", kube("get", "pods", "dev", "web"), False, False),
        ("pods/*", kube("log", "pods", "dev", "web"), True, True),
        ("pods/*", kube("get", "pods", "dev", "web"), False, False),
        ("po*", kube("exec", "pods", "dev", "web"), False, True),
        ("'*/scale'", SCALE, True, True),
        ("'*/log'", SCALE, False, False),
        ("deployments.apps", SCALE, False, True),
        ("deployments.apps/scale", SCALE, True, True),
        ("'*.apps'", kube("get", DEPLOY, "dev", "web"), True, True),
        ("'*'", kube("exec", "pods", "dev", "web"), True, True),
        ("secrets", kube("get", "secrets.example.com", "dev", "web"), False, True),
        ("secrets.example.com", kube("get", "secrets", "dev", "web"), False, False),
        ("events", kube("list", "events.events.k8s.io", "dev"), False, True),
    ],
)
def test_resources(entry: str, command: Command, allows: bool, denies: bool) -> None:
    assert allowed(f"resources: [{entry}]", command) is allows
    assert denied(f"resources: [{entry}]", command) is denies


def test_a_verb_that_is_made_for_a_subresource_says_it() -> None:
    for verb in ("log", "exec", "attach", "debug", "copy-in", "copy-out", "portforward", "connect", "line"):
        command = kube(verb, "pods", "dev", "web")
        assert allowed(f"verbs: [{verb}], resources: [pods]", command), verb
        assert not allowed(f"kinds: [{KINDS[verb]}], resources: [pods]", command), verb
    # Other subresources share their verb with the object itself, and are named with it.
    assert not allowed("verbs: [patch], resources: [deployments.apps]", SCALE)


def test_a_deny_of_a_name_without_its_group_is_one_in_any_group() -> None:
    assert denied("resources: [deployments]", kube("get", DEPLOY, "dev", "web"))
    assert denied("resources: [deployments/scale]", SCALE)
    assert not denied("resources: [deployments]", kube("get", "pods", "dev", "web"))


# -- namespaces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "command", "allows", "denies"),
    [
        ("dev", kube("get", "pods", "dev", "web"), True, True),
        ("dev", kube("get", "pods", "prod", "web"), False, False),
        ("'dev-*'", kube("get", "pods", "dev-1", "web"), True, True),
        ("dev", kube("list", "pods", "dev"), True, True),
        # Across all namespaces.
        ("dev", kube("list", "pods"), False, True),
        ("'d*'", kube("watch", "pods"), False, True),
        ("dev", kube("deletecollection", "pods"), False, True),
        ("'*'", kube("list", "pods"), True, True),
        # In none.
        ("dev", kube("get", "nodes", "", "n1"), False, False),
        ("'*'", kube("list", "nodes"), False, False),
        # Nobody knows whether they lie in one.
        ("dev", kube("list", "widgets.example.com", cluster_scoped=None), False, True),
        ("'*'", kube("list", "widgets.example.com", cluster_scoped=None), False, True),
        ("dev", kube("get", "widgets.example.com", "dev", "w", cluster_scoped=None), True, True),
        ("dev", kube("get", "widgets.example.com", "prod", "w", cluster_scoped=None), False, False),
        # A namespace itself: not in itself, but who deletes it deletes what is in it.
        ("dev", kube("get", "namespaces", "dev", "dev"), False, False),
        ("dev", kube("list", "namespaces"), False, False),
        ("dev", kube("delete", "namespaces", "dev", "dev"), False, True),
        ("dev", kube("patch", "namespaces", "dev", "dev"), False, True),
        ("dev", kube("delete", "namespaces", "prod", "prod"), False, False),
        ("dev", kube("deletecollection", "namespaces"), False, True),
        # What is no resource.
        ("dev", kube("get-path", path="/metrics"), False, False),
        ("'*'", kube("get-path", path="/metrics"), False, False),
    ],
)
def test_namespaces(entries: str, command: Command, allows: bool, denies: bool) -> None:
    assert allowed(f"namespaces: [{entries}]", command) is allows
    assert denied(f"namespaces: [{entries}]", command) is denies


def test_a_request_that_nothing_is_known_of() -> None:
    command = Command("kubernetes", "get", "read", "kubectl get something")
    assert not allowed("namespaces: ['*']", command) and not allowed("resources: [pods]", command)
    assert denied("namespaces: [dev]", command) and denied("resources: [secrets]", command)


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "command", "allows", "denies"),
    [
        ("web", kube("get", "secrets", "dev", "web"), True, True),
        ("web", kube("get", "secrets", "dev", "db"), False, False),
        ("'web-*'", kube("delete", "pods", "dev", "web-7f6d"), True, True),
        ("web", kube("list", "secrets", "dev"), False, True),
        ("'w*'", kube("watch", "secrets", "dev"), False, True),
        ("web", kube("deletecollection", "secrets", "dev"), False, True),
        ("'*'", kube("list", "secrets", "dev"), True, True),
        # fieldSelector=metadata.name=web: the API server takes it for a name, and so does the reader of requests.
        ("web", kube("watch", "secrets", "dev", "web", field_selector="metadata.name=web"), True, True),
        # The server makes the name up.
        ("web", kube("create", "pods", "dev"), False, True),
    ],
)
def test_names(entries: str, command: Command, allows: bool, denies: bool) -> None:
    assert allowed(f"names: [{entries}]", command) is allows
    assert denied(f"names: [{entries}]", command) is denies


def test_holds_and_masks_are_as_wide_as_denies() -> None:
    text = "- {name: a, allow: true}\n"
    hold = "- {name: h, commands: {namespaces: [prod], names: [db]}, hold: {approvers: ['group:oncall']}}\n"
    mask = "- {name: m, commands: {resources: [pods], namespaces: [prod]}, mask: [{detectors: [email]}]}\n"
    assert verdict(text + hold, kube("list", "pods")) is Hold
    assert verdict(text + hold, kube("list", "pods", "dev")) is Allow
    found = rules(text + mask).judge(ANA, PROD, kube("log", "pods", "prod", "web"))
    assert isinstance(found, Allow) and [each.rule for each in found.masks] == ["m"]
    assert rules(text + mask).judge(ANA, PROD, kube("log", "pods", "dev", "web")) == Allow("a")


def test_all_keys_count() -> None:
    keys = "resources: [secrets], namespaces: [dev], names: [web]"
    assert allowed(keys, kube("get", "secrets", "dev", "web")) and denied(keys, kube("get", "secrets", "dev", "web"))
    for other in (("pods", "dev", "web"), ("secrets", "prod", "web"), ("secrets", "dev", "db")):
        assert not allowed(keys, kube("get", *other)) and not denied(keys, kube("get", *other)), other


def test_no_allow_leaks_and_no_deny_can_be_gone_around() -> None:
    """Against a model: what a request touches in a small cluster, and what a rule covers of it."""
    cluster = [
        (kind, space, name) for kind in ("pods", "secrets") for space in ("dev", "prod") for name in ("web", "db")
    ]
    cluster += [("nodes", "", name) for name in ("web", "db")]
    entries = [None, ("dev",), ("d*",), ("dev", "prod"), ("*",), ("web",)]

    def covers(globs: tuple[str, ...] | None, value: str) -> bool:
        return globs is None or any(fnmatch.fnmatchcase(value, glob) for glob in globs)

    count = 0
    for resource, namespace, name in itertools.product(("pods", "nodes"), ("", "dev", "prod"), ("", "web", "db")):
        if resource == "nodes" and namespace:
            continue
        command = kube("list" if not name else "get", resource, namespace, name)
        touched = [one for one in cluster if one[0] == resource and namespace in ("", one[1]) and name in ("", one[2])]
        for resources, namespaces, names in itertools.product([None, ("pods",), ("*",), ("nodes",)], entries, entries):
            covered = [
                covers(resources, kind)
                and covers(names, called)
                and (namespaces is None or bool(space and covers(namespaces, space)))
                for kind, space, called in touched
            ]
            places = Places(*(Globs(each) if each else None for each in (resources, namespaces, names)))
            narrow, wide = (places.mismatch(command, each, False) is None for each in (False, True))
            count += narrow
            assert not narrow or all(covered), (command, places)
            assert wide or not any(covered), (command, places)
            assert wide or not narrow, "an allow is never wider than the deny of the same words"
            if name and (namespace or resource == "nodes"):
                assert narrow is wide is all(covered), "of one object both say the same"
    assert count > 100


# -- verbs that must be named, and what nobody can look into ----------------------------------------------------

SERVICE = kube("proxy", "services", "dev", "web")
NODE = kube("proxy", "nodes", "", "n1")


@pytest.mark.parametrize("command", [SERVICE, NODE, kube("impersonate"), kube("path", path="/x")])
def test_what_nobody_can_look_into_must_be_named(command: Command) -> None:
    assert not allowed("opaque: true", command)
    assert not allowed("kinds: [admin], opaque: true", command)
    assert not allowed(f"verbs: [{command.verb}]", command)
    assert allowed(f"verbs: [{command.verb}], opaque: true", command)


def test_denies_of_places_speak_of_what_may_be_anywhere() -> None:
    assert denied("resources: [secrets], namespaces: [prod]", NODE)
    assert denied("namespaces: [prod]", kube("path", path="/x"))
    assert not denied("namespaces: [prod]", SERVICE)  # it goes to a service of another namespace
    assert not denied("namespaces: [prod], opaque: false", NODE)
    unknown = Command("kubernetes", "UNKNOWN", "unknown", "?", facts={"opaque": True})
    assert denied("namespaces: [prod]", unknown)


def test_an_exec_that_nobody_can_read_is_bound_to_its_pod() -> None:
    assert not denied("namespaces: [prod]", run("$x"))
    assert denied("namespaces: [payments]", run("$x"))
    assert allowed("verbs: [exec], namespaces: [payments], opaque: true", run("$x"))
    assert not allowed("verbs: [exec], namespaces: [payments]", run("$x"))


# -- programs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "allows", "denies"),
    [
        ("ls -l", True, False), ("ls | wc", True, False), ("ls; rm x", False, True), ("/tmp/ls", False, False),
        ("$x", False, True), ("sudo rm x", False, True), ("", False, False),
    ],
)  # fmt: skip
def test_programs_of_an_exec(line: str, allows: bool, denies: bool) -> None:
    assert allowed("programs: [ls, wc]", run(line)) is allows
    assert denied("programs: [rm]", run(line)) is denies


def test_programs_are_of_command_lines_only() -> None:
    assert not allowed("programs: ['*']", kube("get", "pods", "dev", "web"))
    assert not allowed("programs: ['*'], verbs: [attach]", kube("attach", "pods", "dev", "web"))
    assert not denied("programs: ['*']", kube("get", "pods", "dev", "web"))
    # A script that is opaque makes the line unread, even where the command does not say so.
    unsaid = kube("exec", "pods", "dev", "web", shell=read_shell("ls $(x"))
    assert not allowed("programs: ['*']", unsaid) and denied("programs: [rm]", unsaid)


# -- discovery --------------------------------------------------------------------------------------------------

VERSION = kube("discover", path="/version")


def test_discovery_is_free_to_whoever_may_do_anything() -> None:
    may = "- {name: a, who: {groups: [staff]}, on: {targets: [prod]}, commands: {verbs: [get], namespaces: [dev]}, "
    for effect in ("allow: true", "hold: {approvers: [mia@acme.com]}"):
        assert verdict(may + effect + "}\n", VERSION) is Allow
        assert verdict(may + effect + "}\n", VERSION, BOB) is Deny
    elsewhere = "- {name: a, on: {targets: [shop]}, allow: true}\n"
    assert verdict(elsewhere, VERSION) is Deny
    assert verdict(elsewhere + "- {name: m, on: {targets: [shop]}, mask: [{detectors: [email]}]}\n", VERSION) is Deny


def test_a_mask_alone_lets_nobody_discover_and_masks_no_discovery() -> None:
    text = "- {name: a, who: {groups: [staff]}, allow: true}\n- {name: m, mask: [{detectors: [email]}]}\n"
    assert verdict(text, VERSION, BOB) is Deny
    assert rules(text).judge(ANA, PROD, VERSION) == Allow("a")


def test_denies_of_discovery() -> None:
    allow = "- {name: a, allow: true}\n"
    assert verdict(allow + "- {name: n, commands: {verbs: [discover]}, deny: true}\n", VERSION) is Deny
    assert verdict(allow + "- {name: n, who: {groups: [staff]}, deny: true}\n", VERSION) is Deny
    assert verdict(allow + "- {name: n, when: 'time.hour >= 0', deny: true}\n", VERSION) is Deny
    for other in ("kinds: [read]", "verbs: [get]", "namespaces: [dev]", "objects: ['*']", "resources: ['*']"):
        assert verdict(allow + f"- {{name: n, commands: {{{other}}}, deny: true}}\n", VERSION) is Allow, other
    assert verdict(allow + "- {name: n, when: \"kube.path == '/version'\", deny: true}\n", VERSION) is Allow
    assert (
        verdict(allow + "- {name: n, commands: {verbs: [discover], namespaces: [dev]}, deny: true}\n", VERSION) is Deny
    )


def test_a_rule_that_names_discovery_is_decided_as_a_whole() -> None:
    one = "- {name: a, commands: {verbs: [discover, get], namespaces: [dev]}"
    assert verdict(one + ", allow: true}\n", VERSION) is Allow
    assert verdict(one + ", when: \"kube.path == '/api'\", allow: true}\n", VERSION) is Deny
    assert verdict(one + ", hold: {approvers: [mia@acme.com]}}\n", VERSION) is Hold


def test_only_the_reading_kind_is_free() -> None:
    text = "- {name: a, commands: {verbs: [get]}, allow: true}\n"
    assert verdict(text, kube("discover", path="/version", kind="admin")) is Deny
    assert verdict(text, kube("discover", path="/version", opaque=True)) is Deny
    assert verdict(text, kube("get-path", path="/metrics")) is Deny


def test_a_port_forward_is_no_session_business() -> None:
    forward = kube("portforward", "pods", "dev", "web")
    text = "- {name: a, commands: {verbs: [get]}, allow: true}\n"
    assert verdict(text, forward) is Deny
    assert type(rules(text).judge(ANA, PROD, Command("kubernetes", "portforward", "session", "x"))) is Deny
    assert allowed("verbs: [portforward], namespaces: [dev]", forward)


# -- conditions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("kube.group == 'apps' && kube.version == 'v1'", kube("get", DEPLOY, "d", "w")),
        ("kube.resource == 'deployments' && kube.subresource == ''", kube("get", DEPLOY, "d", "w")),
        ("kube.subresource == 'scale' && kube.namespace == 'dev' && kube.name == 'web'", SCALE),
        ("kube.scope == 'cluster'", kube("get", "nodes", "", "n1")),
        ("kube.scope == 'namespace' && kube.path == ''", kube("list", "pods")),
        ("kube.scope == '' && kube.path == '/metrics'", kube("get-path", path="/metrics")),
        ("kube.dry_run && kube.field_manager == 'k'", kube("patch", *WEB, dry_run=True, field_manager="k")),
        ("kube.label_selector == 'app=x'", kube("list", "pods", "d", label_selector="app=x")),
        ("kube.field_selector == 'a=b'", kube("list", "pods", "d", field_selector="a=b")),
        ("kube.content_type == 'application/json'", kube("create", "pods", "d", content_type="application/json")),
        ("kube.argv == ['sh', '-c', 'ls; id'] && shell.programs == ['ls', 'id']", run("ls; id")),
        ("kube.container == 'main' && kube.stdin && kube.tty", run("ls", container="main", stdin=True, tty=True)),
        ("kube.images.all(i, i.startsWith('r/')) && kube.privileges == []", kube("create", *WEB, images=("r/x",))),
        ("'hostNetwork' in kube.privileges", kube("create", "pods", "d", privileges=("privileged", "hostNetwork"))),
        ("kube.fields_written == ['spec.x']", kube("patch", *WEB, fields_written=("spec.x",))),
        ("kube.fields_written == [] && kube.opaque_body", kube("update", *WEB, fields_written=None, opaque_body=True)),
        ("kube.port == 5432 && ssh.port == 0", kube("connect", "pods", "d", "w", port=5432)),
        ("kube.path == '/x' && ssh.path == '' && file.path == ''", kube("path", path="/x")),
        ("kube.transfer == 'in' && kube.transfer_path == '/x'", kube("exec", *WEB, transfer="in", transfer_path="/x")),
    ],
)  # fmt: skip
def test_what_conditions_see(source: str, command: Command) -> None:
    scene = Scene(ANA, PROD, command, 0.0)
    assert compile_condition(source).holds(scene)
    assert not compile_condition(f"!({source})").holds(scene)


def test_facts_of_a_wrong_type_deny() -> None:
    text = "- {name: a, when: 'kube.port < 1024', allow: true}\n"
    assert rules(text).judge(ANA, PROD, kube("connect", "pods", "d", "w", port="80")).rule == "policy-error"
    text = "- {name: a, when: 'kube.images == []', allow: true}\n"
    assert rules(text).judge(ANA, PROD, kube("create", "pods", "d", images="x")).rule == "policy-error"


def test_facts_of_kubernetes_are_of_no_other_protocol() -> None:
    file = Command("ssh", "file-read", "read", "x", facts={"path": "/etc/passwd", "port": 22})
    scene = Scene(ANA, Target("box", "ssh"), file, 0.0)
    assert compile_condition("kube.path == '' && kube.port == 0 && ssh.port == 22 && file.path != ''").holds(scene)
    select = Command("postgres", "SELECT", "unknown", "x", facts={"opaque": True})
    text = "- {name: a, commands: {kinds: [unknown]}, allow: true}\n"
    text += "- {name: n, commands: {resources: [secrets]}, deny: true}\n"
    assert type(rules(text).judge(ANA, SHOP, select)) is Allow


async def _decide(found: RuleSet, command: Command) -> Verdict:
    return await found.decide(ANA, PROD, command)


def test_the_cache_tells_places_apart() -> None:
    text = "- {name: a, commands: {resources: [pods], namespaces: [dev], names: [web]}, allow: true}\n"
    text += "- {name: n, when: 'kube.tty || kube.dry_run', deny: true}\n"
    found = rules(text)
    good = kube("get", "pods", "dev", "web")
    others = [
        kube("get", "secrets", "dev", "web"), kube("get", "pods", "prod", "web"), kube("get", "pods", "dev", "db"),
        kube("get", "pods", "dev", "web", tty=True), kube("get", "pods", "dev", "web", dry_run=True),
        kube("get", "pods", "dev", "web", subresource="status"), kube("get", "pods", "", "web", cluster_scoped=None),
    ]  # fmt: skip

    def alike(command: Command) -> Command:
        return Command("kubernetes", "get", "read", "x", objects=("x",), facts=command.facts)

    for command in [good, *others, good]:
        expected = Allow if command is good else Deny
        assert type(asyncio.run(_decide(found, alike(command)))) is expected, command.facts


# -- mistakes in rule files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("commands: {resources: [deployments]}, allow: true", "write 'deployments.apps'"),
        ("commands: {resources: [deploy/scale]}, deny: true", "write 'deployments.apps/scale'"),
        ("commands: {resources: [secret]}, deny: true", "write 'secrets'"),
        ("commands: {resources: [Pods]}, allow: true", "must be like pods"),
        ("commands: {resources: [pods/]}, allow: true", "must be like pods"),
        ("commands: {resources: [a/b/c]}, allow: true", "must be like pods"),
        ("commands: {resource: [pods]}, allow: true", "did you mean 'resources'"),
        ("commands: {namespaces: []}, allow: true", "empty list"),
        ("on: {targets: [shop]}, commands: {namespaces: [dev]}, allow: true", "is of Kubernetes"),
        ("on: {protocols: [postgres]}, commands: {names: [dev]}, deny: true", "is of Kubernetes"),
        ("when: 'kube.verb == 1', allow: true", "unknown name 'kube.verb'"),
        ("when: 'kube.images == 1', allow: true", "no matching overload"),
    ],
)
def test_mistakes_are_told(rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules(f"- {{name: a, {rule}}}\n- {{name: all, allow: true}}\n")


def test_what_is_no_mistake() -> None:
    assert rules(
        "- {name: all, allow: true}\n- {name: a, commands: {resources: [deployments, jobs/status]}, deny: true}\n"
    )


def test_rules_that_repeat_and_rules_that_are_taken_away() -> None:
    place = "commands: {verbs: [get], resources: [pods], namespaces: [dev]}"
    with pytest.raises(ConfigError, match="repeats 'a'"):
        rules(f"- {{name: a, {place}, allow: true}}\n- {{name: b, {place}, allow: true}}\n")
    other = place.replace("dev", "prod")
    assert rules(f"- {{name: a, {place}, allow: true}}\n- {{name: b, {other}, allow: true}}\n")
    with pytest.raises(ConfigError, match="denies all it speaks of"):
        rules(f"- {{name: a, {place}, allow: true}}\n- {{name: n, commands: {{verbs: [get]}}, deny: true}}\n")
    # A deny of places is none of discovery, which the allow lets through.
    assert rules(f"- {{name: a, {place}, allow: true}}\n- {{name: n, {place}, deny: true}}\n")
    programs = "commands: {verbs: [exec], programs: [ls]}"
    assert rules(f"- {{name: a, {programs}, allow: true}}\n- {{name: n, {programs}, deny: true}}\n")


# -- cases ------------------------------------------------------------------------------------------------------

CASE = "name: {name}, identity: {{subject: ana@acme.com, groups: [staff]}}, target: prod, expect: {expect}"


def cases(*found: tuple[str, str]) -> str:
    """A case file: what each case asks, and what it expects."""
    lines = [
        f"- {{{CASE.format(name=f'c{number}', expect=expect)}, {asked}}}"
        for number, (asked, expect) in enumerate(found)
    ]
    return "cases:\n" + "\n".join(lines) + "\n"


def test_cases_are_handed_to_the_reader_of_kubernetes() -> None:
    seen: list[KubeAsked] = []

    def read(asked: KubeAsked, target: Target) -> Command:
        seen.append(asked)
        return kube("get", "pods", "dev", "web")

    def nothing(text: str) -> Command:
        raise AssertionError(text)

    text = cases(("kube: get dev/pods/web", "allow"), ("request: GET /api, body: x, pty: true, container: c", "deny"))
    found = rules("- {name: a, commands: {namespaces: [dev]}, allow: true}\n")
    results = run_cases(read_cases(text, "cases.yaml", [PROD]), found, nothing, None, read)
    assert [result.passed for result in results] == [True, False]
    assert seen == [
        KubeAsked("kube", "get dev/pods/web"),
        KubeAsked("request", "GET /api", body="x", container="c", pty=True),
    ]
    with pytest.raises(ConfigError, match="c0: nothing here knows the protocol kubernetes"):
        run_cases(read_cases(text, "cases.yaml", [PROD]), found, nothing)


@pytest.mark.parametrize(
    "asked", ["sql: SELECT 1", "exec: ls", "connect: true", "kube: get a, request: GET /", "pty: true"]
)
def test_cases_that_ask_something_else(asked: str) -> None:
    with pytest.raises(ConfigError, match="the case needs one of kube, request, command"):
        read_cases(cases((asked, "allow")), "cases.yaml", [PROD])


def test_the_fields_that_a_mask_hides_are_told() -> None:
    ruleset = rules("""
  - {name: r, commands: {kinds: [read]}, allow: true}
  - {name: pii, on: {targets: [prod]}, mask: [{fields: ["secrets:data.*"], detectors: [email]}]}
""")
    text = explain_text(ruleset, ANA, PROD, kube("get", *WEB))
    assert text.splitlines()[-1] == "  masked by pii: secrets:data.*, email (redact)"
