"""What the gateway's account at an API server should be able to do, and what it had better not: tables and words.

An Asked is one question of SelfSubjectAccessReview. Which rights are needed depends on who acts there: with
``impersonate`` each request is made with its user's rights, and the gateway's account needs to impersonate and nothing
else; without it, what the gateway's account may not do, no user can. Rights that are too much are those by which
whoever gets hold of the credential, or of a rule that is too wide, gets the cluster.

Left out: rights on custom resources, and what a webhook or Google's IAM makes of names that nobody asked about.
Source: Kubernetes' documentation, "Using RBAC Authorization", "RBAC good practices", "User impersonation"; k8s #136550
(nodes/proxy); kubernetes note 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from protocols.kubernetes.dial_settings import Impersonation

Level = Literal["missing", "advice", "too-much"]
WEBSOCKET_EXEC: Final = (1, 30)  # TranslateStreamCloseWebsocketRequests is on from there
WEBSOCKET_FORWARD: Final = (1, 31)  # PortForwardWebsockets
_AUTHENTICATION: Final = "authentication.k8s.io"
_RBAC: Final = "rbac.authorization.k8s.io"
SYSTEM: Final = "kube-system"


@dataclass(frozen=True, slots=True)
class Asked:
    """One right. resource may have a subresource behind a slash; namespace "": all of them, or none where it has none.

    level: what it is when the answer is not the one that is wanted: "too-much" wants a no, the others a yes.
    """

    verb: str
    resource: str
    group: str = ""
    namespace: str = ""
    name: str = ""
    level: Level = "missing"
    why: str = ""

    @property
    def text(self) -> str:
        """The right, as kubectl auth can-i has it."""
        full = f"{self.resource}.{self.group}" if self.group and self.group != "*" else self.resource
        if self.group and "/" in self.resource:
            resource, _, below = self.resource.partition("/")
            full = f"{resource}.{self.group}/{below}"
        if self.verb == self.resource == "*":
            return "everything"
        name = f" {self.name}" if self.name else ""
        return f"{self.verb} {full}{name}{f' in {self.namespace}' if self.namespace else ''}"


EVERYTHING: Final = Asked(
    "*", "*", "*", level="too-much", why="the account is an administrator: give it a role with what its users need"
)


def needed(impersonation: Impersonation | None, namespace: str) -> tuple[Asked, ...]:
    """What the account should be able to do."""
    if impersonation is None:
        return _own_account(namespace)
    found = [
        Asked("impersonate", "users", why="without it no request can be made as its user"),
        Asked("impersonate", "groups", why="without it users come without their groups, or not at all"),
    ]
    if not impersonation.groups:
        found.pop()
    if impersonation.extra:
        found += [
            Asked("impersonate", f"userextras/gatecast/{key}", _AUTHENTICATION, why="impersonate.extra sends it")
            for key in ("agent", "issuer")
        ]
    if impersonation.uid:
        found.append(Asked("impersonate", "uids", _AUTHENTICATION, why="impersonate.uid sends it"))
    return tuple(found)


def _own_account(namespace: str) -> tuple[Asked, ...]:
    told = "no user can do it through the gateway"
    streams = {"exec": "exec and cp", "attach": "attach", "portforward": "port-forward"}
    return (
        *(Asked(verb, "pods", namespace=namespace, why=told) for verb in ("get", "list", "watch")),
        Asked("get", "pods/log", namespace=namespace, why="no logs through the gateway"),
        *(
            # By WebSocket it is a get before 1.35, and both from then on; by SPDY a create.
            Asked(verb, f"pods/{what}", namespace=namespace, why=f"no {words} {way}")
            for what, words in streams.items()
            for verb, way in (("get", "over WebSocket"), ("create", "over SPDY, and none at all from 1.35 on"))
        ),
        Asked("patch", "pods/ephemeralcontainers", namespace=namespace, level="advice", why="no kubectl debug"),
    )


def too_much(impersonation: Impersonation | None) -> tuple[Asked, ...]:
    """What the account had better not be able to do."""

    def asked(verb: str, resource: str, why: str, group: str = "", namespace: str = "", name: str = "") -> Asked:
        return Asked(verb, resource, group, namespace, name, "too-much", why)

    takes_over = "whoever has the credential can take over the cluster by it"
    found = [
        EVERYTHING,
        asked("get", "secrets", "the keys of the cluster's own parts lie there", namespace=SYSTEM),
        asked("create", "pods", "pods there may run as the cluster's own parts", namespace=SYSTEM),
        asked("create", "serviceaccounts/token", "tokens of the cluster's own parts", namespace=SYSTEM),
        asked("escalate", "clusterroles", takes_over, _RBAC),
        asked("bind", "clusterroles", takes_over, _RBAC),
        asked("get", "nodes/proxy", "it runs commands in every pod of a node, unseen by the API server's audit log"),
        asked("update", "certificatesigningrequests/approval", takes_over, "certificates.k8s.io"),
    ]
    if impersonation is None:
        no_need = "impersonate is not configured for this target"
        found += [asked("impersonate", what, no_need) for what in ("users", "groups", "serviceaccounts")]
    else:
        masters = "resourceNames of the role can name the groups that users have, and leave this one out"
        found += [
            asked("impersonate", "groups", masters, name="system:masters"),
            asked("impersonate", "serviceaccounts", "the gateway impersonates users and groups alone"),
            asked("list", "secrets", "with impersonate the account needs no rights of its own"),
            asked("create", "pods/exec", "with impersonate the account needs no rights of its own"),
        ]
    return tuple(found)
