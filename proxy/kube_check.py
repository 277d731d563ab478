"""``gatecast kube check``: see whether targets of Kubernetes can be reached, and what the gateway may do there.

The way there is the gateway's own: its credential (proxy/credentials), and a first connection by the dial of the
protocol, so that what is wrong with address, certificate or credential is told in the same words, with what to do. The
questions are then asked by the official client over the same TLS context: version, SelfSubjectReview,
SelfSubjectAccessReview for each right of proxy/kube_rights.py, SelfSubjectRulesReview. The client is imported here and
nowhere else, as it takes 59 MB; it follows no redirects, asks nothing twice and uses no proxy of the environment.

Exit codes: 0 all targets work; 1 one does not, or misses a right (with --strict: or has too many); 2 wrong arguments.
Left out: a try of exec itself, which would change something in the cluster. A namespace's own role bindings show only
where --namespace asks about it. Secrets are in no output: texts of the server are searched for the token.
Source: Kubernetes API, authentication.k8s.io/v1 and authorization.k8s.io/v1; kubernetes note 9.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from argparse import Namespace
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from protocols.kubernetes.dial import dial
from protocols.kubernetes.dial_settings import DialSettings, Impersonation, read_settings
from proxy.commands import CommandError, _print, config_path
from proxy.core.errors import GatecastError
from proxy.core.parties import Credential, Identity, Target
from proxy.core.text import fields, harmless
from proxy.credentials.static import StaticCredentials
from proxy.http.dialing import authorization, tls_context
from proxy.kube_rights import EVERYTHING, WEBSOCKET_EXEC, WEBSOCKET_FORWARD, Asked, needed, too_much
from proxy.kube_sections import KUBERNETES
from proxy.services import credentials_of
from proxy.snapshot import read_snapshot

READ_SECONDS: Final = 15.0  # for one answer: an authorizer that asks a webhook takes some
WORDS_LIMIT: Final = 300  # characters of what a server says of an error
GROUPS_SHOWN: Final = 8
_NUMBER: Final = re.compile(r"\d+")
_OPERATOR: Final = re.compile(r"; ask (?:its|the) operator")
_UNREACHED: Final = "look at the target's host and port, and at firewalls between; proxies are not used"
_WHO: Final = Identity("gatecast kube check")


class CheckFailed(GatecastError):
    """A target cannot be used. advice: what to do next."""

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.advice = advice


@dataclass(slots=True)
class Findings:
    """What a check found, filled as it goes on."""

    target: str
    address: str = ""
    version: str = ""
    platform: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    exec_by: str = ""
    forward_by: str = ""
    held: list[str] = field(default_factory=list)  # what is needed and there
    missing: list[tuple[str, str]] = field(default_factory=list)
    too_much: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    advice: str = ""

    def passes(self, strict: bool) -> bool:
        """Whether the target works; strict: and its account has no more rights than it needs."""
        return not self.error and not self.missing and not (strict and self.too_much)


def check(options: Namespace) -> int:
    """gatecast kube check."""
    snapshot = read_snapshot(config_path(options), secrets.token_bytes(32))
    known = {name: target for name, target in snapshot.targets.items() if target.protocol == KUBERNETES}
    wanted = list(dict.fromkeys(options.target or known))
    if not wanted:
        raise CommandError("no target of the configuration is of Kubernetes")
    for name in wanted:
        if name not in known:
            hint = f"those of Kubernetes are {', '.join(sorted(known))}" if known else "none is of Kubernetes"
            raise CommandError(f"{name}: is no target of Kubernetes; {hint}")
    credentials = StaticCredentials(credentials_of(snapshot))
    found = [look(known[name], credentials, options.namespace or "") for name in wanted]
    code = 0 if all(each.passes(options.strict) for each in found) else 1
    shown = [_json(each, options.strict) for each in found]
    return _print(options, {"ok": code == 0, "targets": shown}, "\n".join(_render(each) for each in found), code)


def look(target: Target, credentials: StaticCredentials, namespace: str = "") -> Findings:
    """Check one target; what is wrong with it is in the findings. namespace: where pods are; "" for all."""
    found = Findings(target.name)
    try:
        with _operators_words() as words:
            settings, credential = asyncio.run(_reached(target, credentials, found))
            with _Client(settings, credential) as client:
                _ask(client, found, settings.impersonate, namespace)
    except CheckFailed as error:
        found.error, found.advice = str(error), error.advice
    except GatecastError as error:
        # Users are told to ask the operator, for whose log the reason was: here the operator asks.
        found.error = _OPERATOR.sub("", str(error))
        told = "; ".join(words)  # a text about the certificate says itself what to do
        found.advice = told if told or "kubernetes." in found.error else _UNREACHED
    return found


@contextmanager
def _operators_words() -> Iterator[list[str]]:
    """Collect the reasons that the code of the gateway logs for its operator, in place of logging them."""
    words: list[str] = []

    def collect(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        words.extend(str(event[key]) for key in ("why", "reason", "hint") if event.get(key))
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[collect])
    try:
        yield words
    finally:
        structlog.configure(processors=before)


async def _reached(target: Target, credentials: StaticCredentials, found: Findings) -> tuple[DialSettings, Credential]:
    """Connect once as the gateway does. Raises GatecastError."""
    settings = read_settings(target)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    found.address = f"https://{host}:{settings.port}{settings.base_path}"
    credential = await credentials.get(_WHO, target)
    stream = await dial(target, credential)
    await stream.close()
    return settings, credential


# -- the questions ------------------------------------------------------------------------------------


class _Client:
    """The official client, over the context that the gateway's own connections have."""

    def __init__(self, settings: DialSettings, credential: Credential) -> None:
        import urllib3

        # It has no types of its own.
        from kubernetes import client  # type: ignore[import-untyped]

        self._api: Any = client
        self._secret = credential.secret
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        configuration = client.Configuration(host=f"https://{host}:{settings.port}{settings.base_path}")
        configuration.proxy = None  # it takes the environment's
        self._client: Any = client.ApiClient(configuration)
        self._client.user_agent = "gatecast-kube-check"
        for name, value in authorization(credential):
            self._client.set_default_header(name, value)
        timeout = urllib3.Timeout(connect=settings.connect_timeout_seconds, read=READ_SECONDS)
        # In place of the one that it made: that one knows files of certificates only, and repeats and redirects.
        self._client.rest_client.pool_manager = urllib3.PoolManager(
            ssl_context=tls_context(settings, credential),
            server_hostname=settings.server_name,
            assert_hostname=settings.server_name if settings.server_name != settings.host else None,
            retries=urllib3.Retry(total=0, redirect=False),
            timeout=timeout,
        )

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.rest_client.pool_manager.clear()
        self._client.close()

    def version(self) -> Any:
        """GET /version."""
        return self._call(self._api.VersionApi(self._client).get_code)

    def who(self) -> Any:
        """SelfSubjectReview: the user that the credential is, or None where the server does not say."""
        body = self._api.V1SelfSubjectReview()
        made = self._api.AuthenticationV1Api(self._client).create_self_subject_review
        answer = self._call(lambda: made(body), absent=True)
        return None if answer is None or answer.status is None else answer.status.user_info

    def may(self, asked: Asked) -> bool:
        """SelfSubjectAccessReview."""
        resource, _, subresource = asked.resource.partition("/")
        attributes = self._api.V1ResourceAttributes(
            verb=asked.verb, group=asked.group, resource=resource, subresource=subresource or None,
            namespace=asked.namespace or None, name=asked.name or None,
        )  # fmt: skip
        spec = self._api.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        body = self._api.V1SelfSubjectAccessReview(spec=spec)
        made = self._api.AuthorizationV1Api(self._client).create_self_subject_access_review
        answer = self._call(lambda: made(body))
        return bool(answer.status is not None and answer.status.allowed)

    def rules(self, namespace: str) -> Any:
        """SelfSubjectRulesReview, or None where the server does not say."""
        body = self._api.V1SelfSubjectRulesReview(spec=self._api.V1SelfSubjectRulesReviewSpec(namespace=namespace))
        made = self._api.AuthorizationV1Api(self._client).create_self_subject_rules_review
        answer = self._call(lambda: made(body), absent=True)
        return None if answer is None else answer.status

    def _call(self, call: Any, *, absent: bool = False) -> Any:
        """Ask. absent: None for what the server does not have, or does not tell this account."""
        import urllib3

        try:
            return call()
        except self._api.ApiException as error:
            if absent and error.status in (403, 404):
                return None
            raise self._explained(error) from None
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise CheckFailed(f"the API server does not answer: {self._clean(str(reason))}") from None
        except (ValueError, TypeError, AttributeError):  # what its generated code makes of an answer of another form
            advice = "look at what host and port lead to: perhaps it is a proxy, or another service"
            raise CheckFailed("what answers there is no API server of Kubernetes", advice) from None

    def _explained(self, error: Any) -> CheckFailed:
        status = int(error.status or 0)
        try:
            said = str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):
            said = str(error.reason or "")
        text = f"the API server answers {status}: {self._clean(said)}"
        if status == 401:
            advice = "it does not take the credential: expired, revoked, or another cluster's; issue a new one"
        elif status == 403:
            advice = "bind the role system:basic-user to the account: it lets accounts ask for their own rights"
        elif 300 <= status < 400:
            advice = "it sends elsewhere, where the gateway never follows: name the API server itself as host"
        elif status == 404:
            advice = "host, port or the path of the kubeconfig's server lead to no API server"
        else:
            advice = "the trouble is on the server's side; its own log knows"
        return CheckFailed(text, advice)

    def _clean(self, text: str) -> str:
        """A peer's text without our token, and not without end."""
        if self._secret is not None:
            text = text.replace(self._secret.reveal(), "[token]")
        return text if len(text) <= WORDS_LIMIT else text[:WORDS_LIMIT] + "..."


def _ask(client: _Client, found: Findings, impersonation: Impersonation | None, namespace: str) -> None:
    """Ask everything, in order. Raises CheckFailed."""
    version = client.version()
    found.version, found.platform = str(version.git_version), str(version.platform)
    number = _numbers(version.major, version.minor)
    found.exec_by = "WebSocket v5" if number >= WEBSOCKET_EXEC else "SPDY"
    found.forward_by = "WebSocket" if number >= WEBSOCKET_FORWARD else "SPDY"
    who = client.who()
    if who is None:
        found.notes.append("the server does not say who the gateway is there (SelfSubjectReview is of 1.28 and newer)")
    else:
        found.user, found.groups = str(who.username or ""), tuple(who.groups or ())
        if found.user == "system:anonymous":
            advice = "the credential is not shown, or not looked at: check what stands between"
            raise CheckFailed("the API server takes the gateway for nobody (system:anonymous)", advice)
    for asked in needed(impersonation, namespace):
        if client.may(asked):
            found.held.append(asked.text)
        elif asked.level == "missing":
            found.missing.append((asked.text, asked.why))
        else:
            found.notes.append(f"{asked.text}: no ({asked.why})")
    for asked in too_much(impersonation):
        if client.may(asked):
            found.too_much.append((asked.text, asked.why))
            if asked == EVERYTHING:
                break  # the others are parts of it
    _remark(client, found, impersonation, namespace)


def _remark(client: _Client, found: Findings, impersonation: Impersonation | None, namespace: str) -> None:
    """Say what makes the answers less than certain."""
    rules = client.rules(namespace or "default")
    limited = {
        f"{verb} {resource}": sorted(rule.resource_names)
        for rule in (rules.resource_rules if rules is not None else None) or ()
        if rule.resource_names
        for verb in rule.verbs or ()
        for resource in rule.resources or ()
    }
    for right, why in list(found.missing):
        names = limited.get(right)
        if names is not None and impersonation is not None:  # as Kubernetes' documentation recommends
            found.missing.remove((right, why))
            found.held.append(right)
            found.notes.append(f"{right}: for {', '.join(names[:GROUPS_SHOWN])} only; all others are refused there")
    if found.missing and impersonation is None and not namespace:
        found.notes.append("asked for all namespaces at once; --namespace NAME asks about the rights in one")
    if rules is not None and rules.incomplete:
        found.notes.append("an authorizer of the server does not list its rules (IAM, a webhook): names may differ")


def _numbers(major: object, minor: object) -> tuple[int, int]:
    """A version's numbers; GKE and EKS write a plus behind the minor one. (0, 0) where there are none."""
    found = [_NUMBER.match(str(part)) for part in (major, minor)]
    return (int(found[0][0]), int(found[1][0])) if found[0] and found[1] else (0, 0)


# -- what is printed ----------------------------------------------------------------------------------


def _json(found: Findings, strict: bool) -> dict[str, Any]:
    def pairs(those: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"right": right, "why": why} for right, why in those]

    return {
        "target": found.target,
        "ok": found.passes(strict),
        "address": found.address,
        "version": found.version,
        "platform": found.platform,
        "user": found.user,
        "groups": list(found.groups),
        "exec": found.exec_by,
        "port_forward": found.forward_by,
        "held": found.held,
        "missing": pairs(found.missing),
        "too_much": pairs(found.too_much),
        "notes": found.notes,
        "error": found.error,
        "advice": found.advice,
    }


def _render(found: Findings) -> str:
    more = f", and {len(found.groups) - GROUPS_SHOWN} more" if len(found.groups) > GROUPS_SHOWN else ""
    groups = f" ({', '.join(found.groups[:GROUPS_SHOWN])}{more})" if found.groups else ""
    streams = f"{found.exec_by} for exec, {found.forward_by} for port-forward, by its version" if found.exec_by else ""
    lines = [("target", found.target), ("address", found.address)]
    if found.version:
        lines.append(("server", f"{found.version}, {found.platform}"))
    lines += [("we are", f"{found.user}{groups}" if found.user else ""), ("streams", streams)]
    lines += [("has", ", ".join(found.held))]
    lines += [("MISSING", f"{right}: {why}") for right, why in found.missing]
    lines += [("TOO MUCH", f"{right}: {why}") for right, why in found.too_much]
    lines += [("note", note) for note in found.notes]
    if found.error:
        lines += [("FAILED", found.error), ("next", found.advice)]
    return harmless(fields(lines), lines=True)
