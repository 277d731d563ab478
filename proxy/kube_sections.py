"""The sections of gatecast.yaml that only Kubernetes has, and which keys mean nothing to a protocol.

What a target's ``kubernetes:`` says reaches protocols/kubernetes as Target.settings, under these names
(proxy/kube_files.py; protocols/kubernetes/dial_settings.py checks them):

- "ca" ("system"), "ca_file" or "ca_data" (str): one of the three; "server_name", "base_path" (str).
- "impersonate" (a mapping: user, user_prefix, groups, group_prefix, extra, uid), where it is configured.
- "session_idle" (seconds); "record_contents" (a tuple of globs, as fnmatch has them).
- "exec_only", "hold_when_unsure" (bool).
- "connect_timeout_seconds" (float), "max_connections" (int, where it is limited): as for every protocol.

host and port are the target's, or those of its kubeconfig, or those of the cluster that the gateway itself runs in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from proxy.lines import Place
from proxy.values import Duration, Section, Words, parse_address

if TYPE_CHECKING:
    from proxy.sections import Config, CredentialSource, Listener, Target

KUBERNETES: Final = "kubernetes"  # the protocol's name
BIGQUERY: Final = "bigquery"  # whose credentials are shown as these are
SESSION_IDLE_SECONDS: Final = 300.0  # five minutes without a request: a person's pause within one task
SESSION_IDLE_LIMIT_SECONDS: Final = 86_400.0  # as protocols/kubernetes/dial_settings.py
# Kubernetes' own users and groups; whoever is called so by a login of ours is somebody else.
RESERVED: Final = "system:"


class GcpSection(Section):
    """Access tokens of Google Cloud."""

    key_file: Path | None = None
    """The key of a service account (JSON); mode 0600."""
    metadata: bool = False
    """The account that this machine, or pod with workload identity, has."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.key_file is None) != self.metadata:
            raise ValueError("give key_file, or metadata: true")
        return self


class RequestCredential(Section):
    """What is shown to a target of HTTP: a part of credential."""

    token_env: str | None = None
    """Kubernetes, BigQuery: the environment variable that holds the token."""
    token_file: Path | None = None
    """Kubernetes, BigQuery: the file that holds the token; mode 0600. A new one counts within a second."""
    kubeconfig: Path | None = None
    """Kubernetes: the file that says the server, its authority and the credential, exec plugins included."""
    context: str = ""
    """Kubernetes: the context of the kubeconfig; its current one where none is named."""
    in_cluster: bool = False
    """Kubernetes: the cluster that the gateway itself runs in, as its pod's service account."""
    gcp: GcpSection | None = None
    """Kubernetes, BigQuery: access tokens of Google Cloud."""


class ImpersonateSection(Section):
    """Who the API server takes the user for. The credential's account needs the right to impersonate."""

    user: Literal["subject", "issuer-subject"] = "subject"
    """The login's subject; or issuer#subject, as API servers call users of an OIDC issuer by default."""
    user_prefix: str = ""
    """What is put before every user: "oidc:"."""
    groups: Words = ("*",)
    """The groups that go along, as patterns; [] for none."""
    group_prefix: str = ""
    """What is put before every group."""
    extra: bool = False
    """Agents and issuer go along, as extras gatecast/agent and gatecast/issuer; audit logs show them."""
    uid: bool = False
    """issuer#subject goes along as the uid."""

    @model_validator(mode="after")
    def _check_prefixes(self) -> Self:
        for prefix in (self.user_prefix, self.group_prefix):
            if prefix.startswith(RESERVED) or not prefix.isprintable() or prefix != prefix.strip():
                raise ValueError("a prefix is a word, and not system:, which is Kubernetes' own")
        return self


class TargetKubernetes(Section):
    """What only targets of Kubernetes have. The server's certificate is always checked."""

    ca_file: Path | None = None
    """The authority of the API server's certificate (PEM); a new one counts at the next connection."""
    ca: Literal["system"] | None = None
    """system: its certificate is of a public authority, as that of GKE's DNS endpoint."""
    server_name: str = ""
    """The name in the certificate, where it is not host."""
    impersonate: ImpersonateSection | None = None
    """Who the API server takes the user for; without it, the gateway's own account does everything."""
    session_idle: Annotated[Duration, Field(le=SESSION_IDLE_LIMIT_SECONDS)] = SESSION_IDLE_SECONDS
    """Plain requests of one login share a tape, which is sealed after so long without one."""
    record_contents: Words = ()
    """Paths whose files are on the tape whole when kubectl cp copies them, as patterns."""
    exec_only: bool = False
    """Refuse interactive shells: what is typed on a terminal can only be reconstructed."""
    hold_when_unsure: bool = False
    """A line typed on a terminal that cannot be read for certain waits for a human."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.ca_file is not None and self.ca is not None:
            raise ValueError("give ca_file or ca: system, not both")
        return self


_SQL_KEYS: Final = (
    "conninfo", "database", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation", "channel_binding",
    "hostaddr", "require_auth", "sandbox",
)  # fmt: skip
_PASSWORD_KEYS: Final = ("user", "password_env", "password_file", "passphrase_env", "passphrase_file")
_WAYS: Final = "token_env, token_file, certificate_file with key_file, kubeconfig, in_cluster or gcp"


def filled(data: Any) -> Any:
    """A target's keys as they came, with what Kubernetes alone may leave out: host, and the credential's user."""
    if not isinstance(data, dict) or data.get("protocol") != KUBERNETES:
        return data
    made = {"host": "", **data}
    if isinstance(data.get("credential"), dict):
        made["credential"] = {"user": "", **data["credential"]}
    return made


def optional(*names: str) -> Callable[[dict[str, Any]], None]:
    """What makes keys optional in the JSON schema: the models ask for them wherever it is not Kubernetes."""

    def changed(schema: dict[str, Any]) -> None:
        schema["required"] = [name for name in schema.get("required", ()) if name not in names]

    return changed


def misplaced_kubernetes(config: Config) -> list[tuple[Place, str]]:
    """What stands at a listener or target of a protocol to which it means nothing, and what Kubernetes misses."""
    found: list[tuple[Place, str]] = []
    for index, listener in enumerate(config.listeners):
        if listener.protocol == KUBERNETES:
            found += _at_listener(("listeners", index), listener)
    for index, target in enumerate(config.targets):
        where: Place = ("targets", index)
        if target.protocol == KUBERNETES:
            found += _at_target(where, target)
            continue
        if target.kubernetes is not None:
            found.append(((*where, "kubernetes"), f"means nothing to protocol {target.protocol}"))
        if target.protocol == BIGQUERY:  # which has its own say (proxy/bigquery_sections.py)
            continue
        found += [
            ((*where, "credential", key), f"means nothing to protocol {target.protocol}")
            for key in RequestCredential.model_fields
            if key in target.credential.model_fields_set
        ]
    return found


def _at_listener(where: Place, listener: Listener) -> list[tuple[Place, str]]:
    found: list[tuple[Place, str]] = []
    if listener.tls is None:
        found.append((where, "needs tls: {cert, key}: kubectl sends no token without TLS"))
    if isinstance(parse_address(listener.address), Path):
        found.append(((*where, "address"), "is host:port: kubectl knows no Unix sockets"))
    found += [
        ((*where, key), "means nothing to protocol kubernetes")
        for key in ("plain", "login")
        if key in listener.model_fields_set
    ]
    return found


def _at_target(where: Place, target: Target) -> list[tuple[Place, str]]:
    source, section = target.credential, target.kubernetes or TargetKubernetes()
    # What conninfo filled in has no line of its own; conninfo itself is told.
    given = target.model_fields_set if target.conninfo is None else {"conninfo"}
    found: list[tuple[Place, str]] = [
        ((*where, key), "means nothing to protocol kubernetes") for key in _SQL_KEYS if key in given
    ]
    found += [
        ((*where, "credential", key), "means nothing to protocol kubernetes")
        for key in _PASSWORD_KEYS
        if getattr(source, key)
    ]
    found += [((*where, "credential"), problem) for problem in _of_source(source)]
    told = "kubeconfig" if source.kubeconfig is not None else "in_cluster" if source.in_cluster else ""
    if told:  # both say where the API server is, and by whom it is certified
        found += [((*where, key), f"{told} says it") for key in ("host", "port") if getattr(target, key)]
        found += [
            ((*where, "kubernetes", key), f"{told} says it")
            for key in ("ca", "ca_file", "server_name")
            if getattr(section, key)
        ]
        return found
    if not target.host:
        found.append(((*where, "host"), "is missing"))
    if section.ca_file is None and section.ca is None:
        text = "needs kubernetes: {ca_file: FILE}, or {ca: system} for a certificate of a public authority"
        found.append((where, text))
    return found


def _of_source(source: CredentialSource) -> list[str]:
    """What is wrong with a credential as such."""
    problems = []
    ways = (
        source.token_env, source.token_file, source.certificate_file or source.key_file, source.kubeconfig,
        source.in_cluster, source.gcp,
    )  # fmt: skip
    if sum(bool(way) for way in ways) != 1:
        problems.append(f"give one of {_WAYS}")
    elif (source.certificate_file is None) != (source.key_file is None):
        problems.append("certificate_file and key_file go together")
    if source.context and source.kubeconfig is None:
        problems.append("context goes with kubeconfig")
    return problems
