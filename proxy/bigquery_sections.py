"""The sections of gatecast.yaml that only BigQuery has, and which keys mean nothing there.

What a target's ``bigquery:`` says reaches protocols/bigquery as Target.settings, under the names that its
dial_settings.py lists, defaults and checks (proxy/bigquery_files.py); what is not given is left out, so that the
defaults stand in one place. ``database:`` is the project that is billed by default, ``host:`` may be left out.

``accounts`` chooses the credential by the caller's groups (proxy/credentials/static.py), so that BigQuery's own policy
tags, row policies and IAM tell people apart. Whoever is in none of the groups gets the target's ``credential``; where
that is left out, nothing: a caller who was forgotten gets no rights rather than the widest.

Left out: impersonation of service accounts by the gateway's own (give each its key, or a token file).
Source: bigquery note 2, 9 (layer 1) and 11.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from proxy.kube_sections import BIGQUERY, GcpSection
from proxy.lines import Place
from proxy.values import BYTES, Duration, Name, Section, Words, parse_address

if TYPE_CHECKING:
    from proxy.sections import Config, Listener, Target

SESSION_IDLE_SECONDS: Final = 300.0  # as proxy/kube_sections.py
SESSION_IDLE_LIMIT_SECONDS: Final = 86_400.0  # as protocols/bigquery/dial_settings.py
BYTES_LIMIT: Final = 2**63 - 1  # maximumBytesBilled is an int64
ACCOUNTS_LIMIT: Final = 100  # each is a service account, of which a project has 100 by default (IAM quotas)
ROUTINES_LIMIT: Final = 1000  # they are sent to the reader with each text
UNIVERSE_LIMIT: Final = 230  # characters: a name has 253 (RFC 1035 2.3.4), and "bigquerystorage." is put before it
UNIVERSE_PATTERN: Final = r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+$"
# Hosts that a universe has at the gateway, on port 443 (note 2).
SERVICES: Final = ("bigquery", "bigquerystorage", "sts")
# A project's id, also of the old form with a domain. Source: Resource Manager, "project ID".
PROJECT_PATTERN: Final = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{1,61}[a-z0-9]")

_BILLED: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": r"^\d+\s*(B|[KMGT]iB|[kMGT]B)$"},
    ]
}


def _bytes(value: object) -> object:
    """A number of bytes with its unit; of warehouses that goes up to TiB, what one pays for."""
    if not isinstance(value, str):
        return value
    units = {**BYTES, "TiB": 1 << 40, "TB": 1 << 40}
    found = re.fullmatch(rf"(\d+)\s*({'|'.join(units)})", value.strip(), re.ASCII)
    if found is None:
        raise ValueError("write a size like 500MiB, 20GiB or 1TiB")
    return int(found[1]) * units[found[2]]


Billed = Annotated[int, BeforeValidator(_bytes), Field(ge=1, le=BYTES_LIMIT), WithJsonSchema(_BILLED)]


class ListenerBigQuery(Section):
    """What only listeners of BigQuery have."""

    universe: Annotated[str, Field(pattern=UNIVERSE_PATTERN, max_length=UNIVERSE_LIMIT)] | None = None
    """The domain of the gateway's own universe: bigquery., bigquerystorage. and sts. are hosts in it, on port 443."""
    target: Name | None = None
    """The target of callers whose token and address name none: bq with a gateway token."""


class AccountCredential(Section):
    """What the gateway shows BigQuery for some of its callers."""

    token_env: str | None = None
    """The environment variable that holds an access token."""
    token_file: Path | None = None
    """The file that holds an access token; mode 0600. A new one counts within a second."""
    gcp: GcpSection | None = None
    """Access tokens of Google Cloud: of a service account's key, or of the machine."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(bool(way) for way in (self.token_env, self.token_file, self.gcp)) != 1:
            raise ValueError(f"give one of {WAYS}")
        return self


class AccountSection(Section):
    """The service account of some groups. The first whose groups the caller has counts."""

    groups: Annotated[Words, Field(min_length=1)]
    """The caller's groups, as patterns."""
    credential: AccountCredential


class TargetBigQuery(Section):
    """What only targets of BigQuery have. The endpoints' certificates are always checked."""

    ca_file: Path | None = None
    """The authority of both endpoints' certificates (PEM), where it is not a public one."""
    server_name: str = ""
    """The name in the certificate, where it is not host."""
    storage: str | None = None
    """host:port of the Storage API; bigquerystorage.googleapis.com:443 where it is not given."""
    storage_plain: bool = False
    """The Storage API has no TLS; on this machine only."""
    maximum_bytes_billed: Billed | None = None
    """What one query may bill at most; callers may ask for less. 1 TiB where it is not given."""
    price_per_tib: Annotated[float, Field(ge=0, le=10_000)] | None = None
    """What one TiB costs, for estimates that rules and approvers see; 6.25 where it is not given."""
    dry_run: Literal["always", "never"] = "always"
    """Whether BigQuery is asked what a query would read, before it is decided on."""
    rewrite: Literal["off", "where-exact"] = "off"
    """Whether masks are put into queries where they scan a table, so that filters and copies meet masked values too."""
    trusted_routines: Annotated[Words, Field(max_length=ROUTINES_LIMIT)] = ()
    """Routines (project.dataset.name) that you vouch for: they read and change nothing but what they are given."""
    session_idle: Annotated[Duration, Field(le=SESSION_IDLE_LIMIT_SECONDS)] = SESSION_IDLE_SECONDS
    """Requests of one login share a tape, which is sealed after so long without one."""
    accounts: Annotated[tuple[AccountSection, ...], Field(max_length=ACCOUNTS_LIMIT)] = ()
    """Which groups are which service account, so that BigQuery's own policy tags and IAM tell callers apart."""


WAYS: Final = "token_env, token_file or gcp"
_SQL_KEYS: Final = (
    "conninfo", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation", "channel_binding", "hostaddr",
    "require_auth", "sandbox",
)  # fmt: skip
# ssh_sections.py tells of an SSH key's own keys.
_FOREIGN: Final = ("user", "password_env", "password_file", "kubeconfig", "context", "in_cluster")
_HERE: Final = "means nothing to protocol bigquery"


def filled_bigquery(data: Any) -> Any:
    """A target's keys as they came, with what BigQuery alone may leave out: host, and credential beside accounts."""
    if not isinstance(data, dict) or data.get("protocol") != BIGQUERY:
        return data
    made = {"host": "", **data}
    section = data.get("bigquery")
    if "credential" not in data and isinstance(section, dict) and section.get("accounts"):
        made["credential"] = {}
    if isinstance(made.get("credential"), dict):
        made["credential"] = {"user": "", **made["credential"]}
    return made


def misplaced_bigquery(config: Config) -> list[tuple[Place, str]]:
    """What stands at a listener or target of a protocol to which it means nothing, and what BigQuery misses."""
    found: list[tuple[Place, str]] = []
    for index, listener in enumerate(config.listeners):
        where: Place = ("listeners", index)
        if listener.protocol == BIGQUERY:
            found += _at_listener(where, listener, {each.name for each in config.targets if each.protocol == BIGQUERY})
        elif listener.bigquery is not None:
            found.append(((*where, "bigquery"), f"means nothing to protocol {listener.protocol}"))
    for index, target in enumerate(config.targets):
        where = ("targets", index)
        if target.protocol == BIGQUERY:
            found += _at_target(where, target)
        elif target.bigquery is not None:
            found.append(((*where, "bigquery"), f"means nothing to protocol {target.protocol}"))
    return found


def _at_listener(where: Place, listener: Listener, targets: set[str]) -> list[tuple[Place, str]]:
    found: list[tuple[Place, str]] = []
    if listener.tls is None:
        found.append((where, "needs tls: {cert, key}: Google's libraries send no token without TLS"))
    if isinstance(parse_address(listener.address), Path):
        found.append(((*where, "address"), "is host:port: Google's libraries know no Unix sockets"))
    found += [((*where, key), _HERE) for key in ("plain", "login") if key in listener.model_fields_set]
    default = listener.bigquery.target if listener.bigquery is not None else None
    if default is not None and default not in targets:
        found.append(((*where, "bigquery", "target"), f"there is no target {default} of protocol bigquery"))
    return found


def _at_target(where: Place, target: Target) -> list[tuple[Place, str]]:
    source, section = target.credential, target.bigquery or TargetBigQuery()
    # What conninfo filled in has no line of its own; conninfo itself is told.
    given = target.model_fields_set if target.conninfo is None else {"conninfo"}
    found: list[tuple[Place, str]] = [((*where, key), _HERE) for key in _SQL_KEYS if key in given]
    found += [((*where, "credential", key), _HERE) for key in _FOREIGN if getattr(source, key)]
    ways = sum(bool(way) for way in (source.token_env, source.token_file, source.gcp))
    if ways > 1 or (ways == 0 and not section.accounts):
        found.append(((*where, "credential"), f"give one of {WAYS}"))
    if target.database and not PROJECT_PATTERN.fullmatch(target.database):
        found.append(((*where, "database"), "is the id of a project in Google Cloud"))
    return found
