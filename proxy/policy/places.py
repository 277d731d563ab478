"""What ``resources``, ``namespaces`` and ``names`` of a rule say of a request to Kubernetes.

A rule must not leak either way. An *allow* speaks of a request only if everything that the request touches is covered;
a *deny*, *hold* or *mask* as soon as something that it may touch is (they are the *wide* ones here):

resources. Written as kubectl names them, with the group where there is one: ``pods``, ``deployments.apps``.
    ``pods/log`` is a subresource, ``pods/*`` is all of them and not the pods themselves, ``*/scale`` is that of any
    resource, and ``*`` alone is all there is. ``pods`` is no subresource for an allow, unless the rule names a verb
    that is made for one (SUBRESOURCE_VERBS: ``verbs: [exec], resources: [pods]``). To a wide rule ``pods`` is all that
    belongs to pods (a deny of deleting them is one of evicting them), and a name without a group that in any group.
namespaces. A list, watch or deletecollection across all namespaces is covered by ``*`` alone, and touches them all.
    What lies in no namespace (nodes, clusterroles) is nothing that such rules speak of; but whoever changes or deletes
    a Namespace itself touches what is in it, to a wide rule. Where it is not known whether a resource lies in
    namespaces (one that users defined, asked for without one), an allow is silent and a wide rule speaks.
names. A list, watch or deletecollection without a name (and a create whose name the server makes up) is covered by
    ``*`` alone, and touches all names.

Dark commands (see rules.py) that lie in no namespace, as what is sent through a node's proxy, may touch anything: wide
rules speak of them. Discovery lies nowhere; a rule that names its verb has said what it means. The facts are those of
protocols/kubernetes/commands.py. Left out: label and other field selectors (kube.* in conditions).
Source: kubernetes note 2; k8s.io/apiserver/pkg/endpoints/request/requestinfo.go for what a name is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from proxy.core.events import Command
from proxy.policy.globs import Globs

PROTOCOL: Final = "kubernetes"
# Plumbing of every client: the lists of what an API server serves, its version and health. See rules.py, 8.
DISCOVER: Final = "discover"
# What nobody can look into even in principle, or what changes who one is: an allow must name these verbs.
NAMED_ONLY: Final = frozenset({"proxy", "impersonate", "path"})
# Verbs that stand for one subresource, so that naming the verb says as much as naming that.
SUBRESOURCE_VERBS: Final = frozenset(
    {"log", "exec", "attach", "debug", "line", "copy-in", "copy-out", "portforward", "connect", "proxy"}
)

# The resources that people write by another name, and the name that requests bear. Source: `kubectl api-resources`.
_WRITTEN: Final = {
    "pods": "po pod", "services": "svc service", "configmaps": "cm configmap", "secrets": "secret",
    "namespaces": "ns namespace", "nodes": "no node", "serviceaccounts": "sa serviceaccount", "events": "ev event",
    "persistentvolumes": "pv persistentvolume", "persistentvolumeclaims": "pvc persistentvolumeclaim",
    "endpoints": "ep", "replicationcontrollers": "rc", "resourcequotas": "quota", "limitranges": "limits",
    "deployments.apps": "deployments deploy deployment", "replicasets.apps": "replicasets rs replicaset",
    "statefulsets.apps": "statefulsets sts statefulset", "daemonsets.apps": "daemonsets ds daemonset",
    "jobs.batch": "jobs job", "cronjobs.batch": "cronjobs cj cronjob",
    "ingresses.networking.k8s.io": "ingresses ing ingress",
    "networkpolicies.networking.k8s.io": "networkpolicies netpol networkpolicy",
    "horizontalpodautoscalers.autoscaling": "horizontalpodautoscalers hpa horizontalpodautoscaler",
    "poddisruptionbudgets.policy": "poddisruptionbudgets pdb poddisruptionbudget",
    "roles.rbac.authorization.k8s.io": "roles role",
    "rolebindings.rbac.authorization.k8s.io": "rolebindings rolebinding",
    "clusterroles.rbac.authorization.k8s.io": "clusterroles clusterrole",
    "clusterrolebindings.rbac.authorization.k8s.io": "clusterrolebindings clusterrolebinding",
    "storageclasses.storage.k8s.io": "storageclasses sc storageclass",
    "customresourcedefinitions.apiextensions.k8s.io": "customresourcedefinitions crd crds",
}  # fmt: skip
_REAL_NAME: Final = {written: real for real, words in _WRITTEN.items() for written in words.split()}


def resource_problem(text: str, allows: bool) -> str | None:
    """What is wrong with an entry of resources, None if nothing is. allows: it stands in an allow."""
    resource, slash, subresource = text.partition("/")
    if not resource or (slash and not subresource) or "/" in subresource or resource != resource.lower():
        return f"the resource {text!r} must be like pods, deployments.apps, pods/log or pods/*"
    real = _REAL_NAME.get(resource)
    if real is None or (not allows and resource == real.partition(".")[0]):
        return None  # a wide rule takes the name in any group
    return f"no request bears the resource {resource!r}; write {real + slash + subresource!r}"


@dataclass(frozen=True)  # no slots: cached_property
class Places:
    """The places in a cluster that a rule speaks of: any entry within a key, all keys. None = wherever."""

    resources: Globs | None = None
    namespaces: Globs | None = None
    names: Globs | None = None

    def mismatch(self, command: Command, wide: bool, named: bool) -> str | None:
        """Why the rule does not speak of the command's place, None if it does.

        wide: the rule is no allow. named: it names the command's verb.
        """
        if command.protocol != PROTOCOL:
            return "commands.resources, namespaces and names are of Kubernetes"
        if command.verb == DISCOVER and named:
            return None
        facts = command.facts
        if wide and _nowhere(command):
            return None
        if not facts.get("resource"):
            # Neither a resource nor a path: nothing is known of it.
            return None if wide and "path" not in facts else f"it is about no resource, and the rule is about {self}"
        return self._resource(command, wide, named) or self._namespace(command, wide) or self._name(command, wide)

    # -- resources ------------------------------------------------------------------------------------

    @cached_property
    def _whole(self) -> Globs:
        return Globs(tuple(text for text in self.resources.texts if "/" not in text) if self.resources else ())

    @cached_property
    def _parts(self) -> Globs:
        return Globs(tuple(text for text in self.resources.texts if "/" in text) if self.resources else ())

    def _resource(self, command: Command, wide: bool, named: bool) -> str | None:
        if self.resources is None or self.resources.everything:
            return None
        resource, subresource = str(command.facts["resource"]), str(command.facts.get("subresource") or "")
        group = str(command.facts.get("api_group") or "")
        full = f"{resource}.{group}" if group and not resource.endswith(f".{group}") else resource
        called = (full, full.partition(".")[0]) if wide else (full,)
        said = named and command.verb in SUBRESOURCE_VERBS
        if (wide or said or not subresource) and self._whole.any(called):
            return None
        if subresource and self._parts.any(f"{name}/{subresource}" for name in called):
            return None
        shown = f"{full}/{subresource}" if subresource else full
        return f"commands.resources: {shown!r} is not {self.resources}"

    # -- namespaces -----------------------------------------------------------------------------------

    def _namespace(self, command: Command, wide: bool) -> str | None:
        if self.namespaces is None:
            return None
        facts = command.facts
        scoped, namespace = facts.get("cluster_scoped"), str(facts.get("namespace") or "")
        if facts["resource"] == "namespaces" and not facts.get("api_group"):
            return self._namespace_itself(command, wide)
        if scoped is True:
            return "commands.namespaces: it lies in no namespace"
        if namespace:
            if self.namespaces.match(namespace):
                return None
            return f"commands.namespaces: {namespace!r} is not {self.namespaces}"
        if wide:
            return None
        if scoped is None:
            return "commands.namespaces: it is not known whether it lies in a namespace"
        if self.namespaces.everything:
            return None
        return f"commands.namespaces: it is about all namespaces, and the rule about {self.namespaces}"

    def _namespace_itself(self, command: Command, wide: bool) -> str | None:
        """A Namespace lies in none; who changes or deletes it changes or deletes what is in it."""
        name = str(command.facts.get("name") or "")
        touched = wide and command.kind != "read"
        if touched and self.namespaces is not None and (not name or self.namespaces.match(name)):
            return None
        return "commands.namespaces: a namespace itself lies in no namespace"

    # -- names ----------------------------------------------------------------------------------------

    def _name(self, command: Command, wide: bool) -> str | None:
        if self.names is None:
            return None
        name = str(command.facts.get("name") or "")
        if not name:
            if wide or self.names.everything:
                return None
            return f"commands.names: it is about all names, and the rule about {self.names}"
        return None if self.names.match(name) else f"commands.names: {name!r} is not {self.names}"

    def __str__(self) -> str:
        keys = (("resources", self.resources), ("namespaces", self.namespaces), ("names", self.names))
        return "; ".join(f"{key} {globs}" for key, globs in keys if globs is not None)


def _nowhere(command: Command) -> bool:
    """Whether nobody knows what the command does, and where it does it is not bounded by a namespace either."""
    dark = command.kind == "unknown" or bool(command.facts.get("opaque"))
    return dark and (command.kind == "unknown" or not command.facts.get("namespace"))
