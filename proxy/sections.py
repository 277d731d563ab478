"""The sections of gatecast.yaml as frozen models: names, types, defaults, and what a section alone can check.

The docstring below a field is its description in the JSON schema. proxy/config.py reads the file into these.
Deliberately left out: interpolation of environment variables. A secret comes from a ``*_env`` or ``*_file`` key,
so that the file itself can be shown to anyone. Rules are kept as text; proxy/policy/rules.py reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from proxy.bigquery_sections import ListenerBigQuery, TargetBigQuery, filled_bigquery
from proxy.conninfo import with_conninfo
from proxy.kube_sections import RequestCredential, TargetKubernetes, filled, optional
from proxy.ssh_sections import SSH, IdentitySsh, ListenerSsh, TargetSsh
from proxy.values import (
    NAME_PATTERN as NAME_PATTERN,
)
from proxy.values import (
    Address as Address,
)
from proxy.values import (
    Duration as Duration,
)
from proxy.values import (
    Files as Files,
)
from proxy.values import (
    Name as Name,
)
from proxy.values import (
    Port as Port,
)
from proxy.values import (
    Section as Section,
)
from proxy.values import (
    Size as Size,
)
from proxy.values import (
    Words as Words,
)
from proxy.values import (
    is_loopback as is_loopback,
)
from proxy.values import (
    parse_address as parse_address,
)
from proxy.values import (
    parse_seconds as parse_seconds,
)

MESSAGE_LIMIT: Final = 0x40000000 - 1  # PostgreSQL's MaxAllocSize, 1 GiB - 1: no server takes a longer message
WORKERS_LIMIT: Final = 64  # each has a core's worth of work, 60 MB, and asks all others about a cancel key
CONNECTIONS_LIMIT: Final = 100_000  # two descriptors a connection, and Linux's default hard limit is 524,288


class Node(Section):
    """This gateway."""

    name: Name | None = None
    """How tapes name this gateway; the host's name where it is not given."""


class ListenerTls(Section):
    """The certificate that users see. Reloaded when the files change."""

    cert: Path
    """PEM file: the certificate, then its intermediates."""
    key: Path
    """PEM file: the private key of the certificate; mode 0600."""
    client_ca: Path | None = None
    """PEM file: only users with a client certificate of this authority get as far as the login."""


class Listener(Section):
    """One address that users connect to."""

    name: Name
    protocol: str
    address: Address
    """host:port, [::]:port, *:port (every IPv4 and IPv6 address) or unix:/path."""
    tls: ListenerTls | None = None
    plain: Literal[True, False, "allow-remote"] = False
    """true: connections without TLS are accepted, on loopback addresses only. allow-remote: from anywhere."""
    login: Literal["token", "scram", "oauth"] = "token"
    """How a PostgreSQL user proves who it is: a gateway token or JWT as password, SCRAM-SHA-256, OAUTHBEARER."""
    ssh: ListenerSsh | None = None
    """Host keys, authorities and logins of a listener of protocol ssh; it has no tls and no plain."""
    bigquery: ListenerBigQuery | None = None
    """The universe of a listener of protocol bigquery."""

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        if self.protocol == SSH:
            return self  # it brings its own encryption; what else is given is told by ssh_sections.misplaced()
        if isinstance(parse_address(self.address), Path):
            if self.tls is not None:
                raise ValueError("a Unix socket has no TLS; leave tls out")
            return self
        if self.tls is None and not self.plain:
            raise ValueError("give tls: {cert, key}, or plain: true for a loopback listener without TLS")
        if self.plain is True and not is_loopback(self.address):
            raise ValueError(
                "plain: true is for loopback addresses; tokens would cross the network in the clear"
                " (plain: allow-remote insists)"
            )
        return self


class CredentialSource(RequestCredential):
    """What the gateway logs in to a target with; the user never sees it."""

    model_config = ConfigDict(json_schema_extra=optional("user"))

    user: str
    """The login at the target; Kubernetes and BigQuery have none."""
    password_env: str | None = None
    """The environment variable that holds the password."""
    password_file: Path | None = None
    """The file that holds the password; its last newline is cut; mode 0600."""
    key_file: Path | None = None
    """SSH, Kubernetes: the private key, mode 0600. A password beside it is for hosts that ask for both, or either."""
    certificate_file: Path | None = None
    """The certificate of the key. SSH: ...-cert.pub; Kubernetes: PEM."""
    passphrase_env: str | None = None
    """SSH: the environment variable that holds the key's passphrase."""
    passphrase_file: Path | None = None
    """SSH: the file that holds the key's passphrase; mode 0600."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.password_env is not None and self.password_file is not None:
            raise ValueError("give password_env or password_file, not both")
        if self.passphrase_env is not None and self.passphrase_file is not None:
            raise ValueError("give passphrase_env or passphrase_file, not both")
        for name in ("certificate_file", "passphrase_env", "passphrase_file"):
            if self.key_file is None and getattr(self, name) is not None:
                raise ValueError(f"{name} goes with key_file")
        return self


class TargetLimits(Section):
    """Limits of one target."""

    max_connections: Annotated[int, Field(ge=1, le=CONNECTIONS_LIMIT)] | None = None


class Target(Section):
    """A server that commands go to: PostgreSQL; protocol: ssh: a machine; kubernetes: a cluster; bigquery: projects."""

    model_config = ConfigDict(json_schema_extra=optional("host", "credential"))

    name: Name
    protocol: str = "postgres"
    conninfo: str | None = None
    """A libpq connection string or URI instead of host, port, database and the TLS keys; without a password."""
    host: str
    """A host name, an address, or the directory of a Unix socket. A kubeconfig and in_cluster say it themselves."""
    port: Port | None = None
    """The protocol's own where it is not given."""
    database: str = ""
    """The database where the user names none, the target's name otherwise; BigQuery: the project that is billed."""
    credential: CredentialSource
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] | None = None
    """As in libpq. Default: verify-full; prefer for loopback addresses and Unix sockets."""
    sslrootcert: Path | None = None
    sslcert: Path | None = None
    sslkey: Path | None = None
    sslnegotiation: Literal["postgres", "direct"] = "postgres"
    channel_binding: Literal["disable", "prefer", "require"] = "prefer"
    hostaddr: str = ""
    """The address of host, where no name is to be resolved; certificates are still checked against host."""
    require_auth: str = ""
    """As in libpq: what the target may ask for, of none, password, md5, scram-sha-256."""
    connect_timeout: Annotated[Duration, Field(gt=0, le=600)] = 15.0
    labels: dict[str, str] = {}
    """Words that rules can speak of: on: {labels: {env: prod}}."""
    sandbox: bool = False
    """Recorded sessions may be run again on it, writes included: gatecast replay SESSION --against this target."""
    recording: Literal["durable", "written", "strict"] = "durable"
    """durable: a command leaves when the disk has it. written: when the operating system has it."""
    encrypt_to: Files = ()
    """Files with public keys (gatecast keys generate): tapes are encrypted, and only their owners can read them."""
    original_to: Files = ()
    """Files with auditors' public keys: what masks changed is kept as it was, too, on a second tape only for them."""
    ssh: TargetSsh | None = None
    """Host keys and other settings of a target of protocol ssh."""
    kubernetes: TargetKubernetes | None = None
    """The authority and other settings of a target of protocol kubernetes."""
    bigquery: TargetBigQuery | None = None
    """Cost limits, accounts and other settings of a target of protocol bigquery."""
    limits: TargetLimits = TargetLimits()

    @model_validator(mode="before")
    @classmethod
    def _read_conninfo(cls, data: Any) -> Any:
        data = filled_bigquery(filled(data))
        return with_conninfo(data) if isinstance(data, dict) and isinstance(data.get("conninfo"), str) else data

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.sslcert is None) != (self.sslkey is None):
            raise ValueError("sslcert and sslkey go together")
        return self


class Tokens(Section):
    """Gateway tokens (gatecast token issue)."""

    max_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """The longest life of a token."""


class Issuer(Section):
    """An OpenID Connect issuer whose JWTs are accepted. A claim is a name, or a path with dots."""

    issuer: str
    audience: Annotated[Words, Field(min_length=1)]
    """What aud must hold: one word or several."""
    trusted_audiences: Words = ()
    """What may stand beside it."""
    jwks_file: Path | None = None
    """The issuer's keys from a file, in place of its discovery document."""
    jwks_uri: str | None = None
    ca_file: Path | None = None
    """The certificate authorities of the issuer's own HTTPS, where it is not a public one."""
    algorithms: list[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
    ] = ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"]
    subject_claim: str = "sub"
    groups_claim: Words = ("groups",)
    agent_claim: Words = ()
    """Claims that name the client as an agent: azp, client_id."""
    people_clients: Words = ()
    """Clients that are programs of people, and no agents."""
    leeway: Annotated[Duration, Field(le=300)] = 60.0
    scope: str = "openid"
    """What an OAUTHBEARER user is told to ask the issuer for."""

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        for url in (self.issuer, self.jwks_uri or self.issuer):
            if not re.match(r"https://|http://(localhost|127\.0\.0\.1|\[::1\])(:|/|$)", url):
                raise ValueError("an issuer is reached by https, or by http on this machine")
        return self


class LocalUser(Section):
    """A user that is defined here, for logins by SCRAM-SHA-256."""

    name: str
    scram_verifier: Annotated[str, Field(pattern=r"^SCRAM-SHA-256\$")] | None = None
    """PostgreSQL's form: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey. It is no password."""
    scram_verifier_file: Path | None = None
    groups: list[str] = []
    agents: list[str] = []

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.scram_verifier is None) == (self.scram_verifier_file is None):
            raise ValueError("give scram_verifier or scram_verifier_file")
        return self


class IdentitySection(Section):
    """Who may connect, and how they prove it."""

    tokens: Tokens = Tokens()
    ssh: IdentitySsh = IdentitySsh()
    oidc: list[Issuer] = []
    users: list[LocalUser] = []
    operators: dict[str, list[str]] = {}
    """The groups of this machine's users on the admin socket, as approvers: {root: [oncall]}."""


def _check_options(options: Mapping[str, object]) -> None:
    for name in options:
        if _SECRET_OPTION.search(name) and not name.endswith(("_env", "_file")):
            raise ValueError(f"options: {name} is a secret; give {name}_env or {name}_file")


class AnchorSection(Section):
    """A second place for the heads of the node's log, about once a minute: where this gateway cannot take them back."""

    url: str
    """file:///directory, or a bucket: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix."""
    options: dict[str, str | bool | int] = {}
    """obstore's options of the store, by name (region, endpoint); a secret as NAME_env or NAME_file only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.match(r"(s3|gs|az)://[^/@?#]+(/[^?#]*)?$|file:///", self.url):
            raise ValueError(f"{self.url}: write s3://bucket/prefix, gs://.., az://.. or file:///directory")
        _check_options(self.options)
        return self


class WitnessSection(Section):
    """Somebody who cosigns the heads of the node's log, if they extend what he has seen (C2SP tlog-witness)."""

    url: str
    """The submission prefix, http or https."""
    key: str
    """The witness's verifier key: name+hash+base64."""


class RecorderSection(Section):
    """Where tapes go."""

    directory: Path = Path("tapes")
    """Relative to the state directory."""
    key_file: Path = Path("seal.key")
    """The Ed25519 key that seals tapes; made on first use, beside its public half. Relative to the state directory."""
    segment: Annotated[Size, Field(ge=1 << 20, le=128 << 20)] = 64 << 20
    """A tape goes on in another file after this much; finished files leave for the vault while the session goes on."""
    reserve: Size = 256 << 20
    """With less room than this on the disk of the tapes, no session begins; those that run go on."""
    anchors: list[AnchorSection] = []
    witnesses: list[WitnessSection] = []
    index: bool = True
    """Keep an index of the tapes for ``gatecast sessions list`` and ``search``, once a minute and out of the way."""


class VaultMatch(Section):
    """Which sessions a term is for; a list means any of it, nothing means all. Patterns have * and ?."""

    protocol: Words = ()
    target: Words = ()
    subject: Words = ()
    verdict: Words = ()
    """A session with a command of this verdict: allow, deny, held, held-allow, held-deny."""
    labels: dict[str, str] = {}
    """Labels of the session's target."""

    @model_validator(mode="after")
    def _check_verdicts(self) -> Self:
        wrong = set(self.verdict) - {"allow", "deny", "held", "held-allow", "held-deny"}
        if wrong:
            raise ValueError(f"{min(wrong)} is no verdict: allow, deny, held, held-allow, held-deny")
        return self


class VaultTerm(Section):
    """How long sessions are kept. Of all terms that match, the longest wins."""

    name: str = ""
    match: VaultMatch = VaultMatch()
    days: Annotated[int, Field(ge=1, le=36_500)]


# Options of obstore that are named so and hold a path themselves.
VAULT_FILE_OPTIONS: Final = frozenset({"container_authorization_token_file", "federated_token_file"})
_SECRET_OPTION: Final = re.compile(
    "secret|token|bearer|sas_|_sas|password|account_key|master_key|customer_key|^(azure_storage_)?access_key$"
)


class VaultSection(Section):
    """Where tapes go when they are finished, and how long they are kept."""

    url: str = ""
    """s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///directory; without it nothing leaves."""
    keys_url: str = ""
    """Another bucket for the keys of encrypted tapes: one without locks and versions, so that they can be erased."""
    options: dict[str, str | bool | int] = {}
    """obstore's options of the store, by name (region, endpoint); a secret as NAME_env or NAME_file only."""
    keep_local_days: Annotated[float, Field(ge=0, le=36_500)] = 90
    """How long the local copy stays after the end of what is in the bucket."""
    retention_days: Annotated[int, Field(ge=1, le=36_500)] = 400
    """How long a session is kept that no term of retention matches."""
    retention: list[VaultTerm] = []
    concurrency: Annotated[int, Field(ge=1, le=16)] = 2
    """How many files are uploaded at once; each is held in memory whole."""
    read_back: bool = False
    """Read every object back, also where the store gives a checksum of its own."""

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        for url in (self.url, self.keys_url):
            if url and not re.match(r"(s3|gs|az)://[^/@?#]+(/[^?#]*)?$|file:///", url):
                raise ValueError(f"{url}: write s3://bucket/prefix, gs://.., az://.. or file:///directory")
        if self.keys_url and not self.url:
            raise ValueError("keys_url goes with url")
        _check_options(self.options)
        return self


class ApprovalsSection(Section):
    """Commands that wait for a human."""

    url: str = ""
    """What a user is shown; {id} stands for the approval's id. Without it, the command to type is shown."""
    timeout: Duration = 600.0
    """How long a hold waits whose rule does not say."""


class Detector(Section):
    """A value detector of your own."""

    name: Name
    regex: str
    """RE2 syntax."""


class MaskingSection(Section):
    """Masks."""

    hash_key_file: Path = Path("mask.key")
    """The key of the action hash; made on first use. Relative to the state directory."""
    detectors: list[Detector] = []


class Limits(Section):
    """Limits of the whole gateway; 0 turns a time off where it says so."""

    max_connections: Annotated[int, Field(ge=1, le=CONNECTIONS_LIMIT)] = 1000
    login_seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    """As PostgreSQL's authentication_timeout."""
    idle_seconds: Annotated[float, Field(ge=0)] = 0.0
    """A session without a command for so long ends; 0 = never."""
    query_bytes: Annotated[Size, Field(ge=1 << 12, le=MESSAGE_LIMIT)] = 16 << 20
    """The longest text of a command, which is held whole to be decided on. Data may be longer: it streams."""
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """How long sessions may go on after SIGTERM before they are ended."""


class Config(Section):
    """gatecast.yaml."""

    node: Node = Node()
    state: Path = Path(".gatecast")
    """The directory for what the gateway keeps: database, socket, keys, tapes."""
    workers: Annotated[int, Field(ge=1, le=WORKERS_LIMIT)] | Literal["auto"] = 1
    """How many processes serve users; one uses one core at most. auto: as many as there are cores."""
    listeners: Annotated[list[Listener], Field(min_length=1)]
    targets: list[Target] = []
    identity: IdentitySection = IdentitySection()
    recorder: RecorderSection = RecorderSection()
    vault: VaultSection | None = None
    """Given, even empty, it turns the vault on: holds, terms and erasure need it."""
    approvals: ApprovalsSection = ApprovalsSection()
    masking: MaskingSection = MaskingSection()
    limits: Limits = Limits()
    timezone: str = "UTC"
    """The time zone of time.* in the conditions of rules that are written here."""
    rules: list[dict[str, Any]] | None = None  # Any: proxy/policy/rule_file.py knows the shape of rules
    """The rules, in order."""
    rules_file: Path | None = None
    """A file with rules: (and timezone:), in place of rules here."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if (self.rules is None) == (self.rules_file is None):
            raise ValueError("give rules or rules_file (rules: [] lets nobody in)")
        if self.rules is None and self.timezone != "UTC":
            raise ValueError("timezone belongs into the rules_file")
        return self
