"""What a BigQuery target's settings say, checked: where it is, what a query may cost, how it is looked at beforehand.

Target.settings, all of them optional (proxy/bigquery_sections.py puts them in; defaults are here):

- "ca_file" (str), "server_name" (str), "connect_timeout_seconds" (float): of the REST endpoint; public authorities
  where no ca_file is named. Target.host and port are the endpoint's, bigquery.googleapis.com:443 where host is "".
- "storage" (str, "host:port"): the Storage API; bigquerystorage.googleapis.com:443. "storage_plain" (bool): it has no
  TLS, which only loopback may lack.
- "maximum_bytes_billed" (int): of one query; a caller may ask for less, never for more.
- "price_per_tib" (float): of on-demand queries, for the estimate that rules see; USD as Google lists it.
- "dry_run" ("always" | "never"): whether queries are looked at by the target before they are decided on.
- "rewrite" ("off" | "where-exact"): whether masks are put into queries where tables are scanned (rewriting.py); "off".
- "trusted_routines" (list of "project.dataset.name"): see proxy/core/warehouse.py.
- "session_idle", "max_connections": as for Kubernetes.

Target.database is the project that is billed where the caller names none in its credential file; "" where any may be.
Source: bigquery note 2, 5 and 11; BigQuery pricing ("on-demand compute", 6.25 USD per TiB, US).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy.core.errors import ConfigError
from proxy.core.parties import Target

API_HOST: Final = "bigquery.googleapis.com"
STORAGE: Final = "bigquerystorage.googleapis.com:443"
PORT: Final = 443
CONNECT_TIMEOUT_SECONDS: Final = 10.0  # as protocols/kubernetes/dial_settings.py
CONNECT_TIMEOUT_LIMIT: Final = 600.0
SESSION_IDLE_LIMIT: Final = 86_400.0
MAXIMUM_BYTES_BILLED: Final = 2**40  # one TiB, some six dollars: what nobody means to spend unasked. Ours
BYTES_LIMIT: Final = 2**63 - 1  # maximumBytesBilled is an int64
PRICE_PER_TIB: Final = 6.25
PRICE_LIMIT: Final = 10_000.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Settings:
    """One target's settings; ca_data is always "", as proxy/http/dialing.Place wants one."""

    host: str
    port: int
    server_name: str
    ca_file: str
    connect_timeout_seconds: float
    storage_host: str
    storage_port: int
    storage_plain: bool
    maximum_bytes_billed: int
    price_per_tib: float
    dry_run: bool
    trusted_routines: frozenset[str]
    ca_data: str = ""
    rewrite: bool = False


def read_settings(target: Target) -> Settings:
    """Read and check the settings of a target. Raises ConfigError."""
    host = target.host or API_HOST
    storage_host, _, storage_port = _text(target, "storage", STORAGE).rpartition(":")
    storage_host = storage_host.strip("[]")
    if not storage_host or not storage_port.isdecimal() or not 0 < int(storage_port) < 65_536:
        raise ConfigError(f"target {target.name}: storage is host:port")
    plain = target.settings.get("storage_plain", False)
    if not isinstance(plain, bool) or (plain and storage_host not in _LOOPBACK):
        raise ConfigError(f"target {target.name}: storage_plain is true or false, and true on this machine alone")
    dry_run = _text(target, "dry_run", "always")
    if dry_run not in ("always", "never"):
        raise ConfigError(f"target {target.name}: dry_run is always or never")
    rewrite = _text(target, "rewrite", "off")
    if rewrite not in ("off", "where-exact"):
        raise ConfigError(f"target {target.name}: rewrite is off or where-exact")
    trusted = target.settings.get("trusted_routines", ())
    if not isinstance(trusted, tuple | list) or not all(
        isinstance(each, str) and each.count(".") >= 2 for each in trusted
    ):
        raise ConfigError(f"target {target.name}: trusted_routines are of the form project.dataset.name")
    _number(target, "session_idle", 0.0, SESSION_IDLE_LIMIT, least=0.0)
    return Settings(
        host=host,
        port=target.port or PORT,
        server_name=_text(target, "server_name", "") or host,
        ca_file=_text(target, "ca_file", ""),
        connect_timeout_seconds=_number(
            target, "connect_timeout_seconds", CONNECT_TIMEOUT_SECONDS, CONNECT_TIMEOUT_LIMIT, least=0.1
        ),
        storage_host=storage_host,
        storage_port=int(storage_port),
        storage_plain=plain,
        maximum_bytes_billed=int(_number(target, "maximum_bytes_billed", MAXIMUM_BYTES_BILLED, BYTES_LIMIT, least=1)),
        price_per_tib=float(_number(target, "price_per_tib", PRICE_PER_TIB, PRICE_LIMIT, least=0.0)),
        dry_run=dry_run == "always",
        trusted_routines=frozenset(trusted),
        rewrite=rewrite == "where-exact",
    )


def _text(target: Target, setting: str, default: str) -> str:
    value = target.settings.get(setting, default)
    if not isinstance(value, str):
        raise ConfigError(f"target {target.name}: {setting} is a text")
    return value


def _number(target: Target, setting: str, default: float, most: float, *, least: float) -> float:
    value = target.settings.get(setting, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"target {target.name}: {setting} is from {least:g} to {most:g}")
    return value
