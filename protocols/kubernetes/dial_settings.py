"""How to reach one API server: its settings, checked.

Target.settings read here (proxy/kube_files.py writes them):

- Whom the server's certificate is from, exactly one of: "ca" ("system": a public authority, as GKE's DNS endpoints
  have), "ca_file" (a file in PEM form, read at each dial, so that a rotated one counts), "ca_data" (its text).
  There is no way to leave the check out.
- "server_name": the name in the certificate, where it is not the target's host. "base_path": what the server's
  address has behind the host: paths of requests begin with it.
- "impersonate": who the API server takes the user for; see Impersonation. Absent: the gate's own account does it all.
- "connect_timeout_seconds": for everything up to the end of the TLS handshake.

"session_idle", "record_contents", "exec_only" and "hold_when_unsure" are checked here and read elsewhere.
Source: Kubernetes' client-go, tools/clientcmd/api/types.go, Cluster; kubernetes note 9.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from proxy.core.errors import ConfigError
from proxy.core.parties import Target

PORT: Final = 443
CONNECT_TIMEOUT_SECONDS: Final = 15.0  # as protocols/postgres/dial_settings.py
CONNECT_TIMEOUT_LIMIT: Final = 600.0
SESSION_IDLE_LIMIT: Final = 86_400.0  # a day: a tape is sealed when its session ends, and only then is it whole
_BASE_PATH: Final = re.compile(r"(/[A-Za-z0-9._~:@!$&'()*+,=-]+)*")  # RFC 3986 3.3, without escapes and ";"
_CA: Final = ("ca", "ca_file", "ca_data")


@dataclass(frozen=True, slots=True)
class Impersonation:
    """Who the API server takes the user for: Impersonate-User, -Group, -Uid and -Extra-*.

    user: "subject", or "issuer-subject": issuer#subject, as API servers call users of an OIDC issuer by default.
    groups: patterns of the identity's groups that go along. extra: the agents and the issuer go along.
    uid: issuer#subject as the uid.
    """

    user: Literal["subject", "issuer-subject"] = "subject"
    user_prefix: str = ""
    groups: tuple[str, ...] = ("*",)
    group_prefix: str = ""
    extra: bool = False
    uid: bool = False


@dataclass(frozen=True, slots=True)
class DialSettings:
    """One target's settings. server_name: what the certificate is checked against. No ca_file, no ca_data: public."""

    host: str
    port: int
    server_name: str
    ca_file: str
    ca_data: str
    base_path: str
    connect_timeout_seconds: float
    impersonate: Impersonation | None


def read_settings(target: Target) -> DialSettings:
    """Read and check the settings of a target. Raises ConfigError."""
    if not target.host:
        raise ConfigError(f"target {target.name}: host is empty")
    given = [key for key in _CA if target.settings.get(key)]
    if len(given) != 1:
        raise ConfigError(f"target {target.name}: one of ca_file and ca: system is needed to know its certificate by")
    if given == ["ca"] and target.settings["ca"] != "system":
        raise ConfigError(f"target {target.name}: ca is system, or left out")
    base_path = _text(target, "base_path").rstrip("/")
    if not _BASE_PATH.fullmatch(base_path) or {".", ".."} & set(base_path.split("/")):
        raise ConfigError(f"target {target.name}: the path of the server's address has characters that it cannot have")
    _number(target, "session_idle", 0.0, SESSION_IDLE_LIMIT, least=0.0)
    for key in ("exec_only", "hold_when_unsure"):
        if not isinstance(target.settings.get(key, False), bool):
            raise ConfigError(f"target {target.name}: {key} is true or false")
    _words(target, target.settings.get("record_contents", ()), "record_contents")
    return DialSettings(
        host=target.host,
        port=target.port or PORT,
        server_name=_text(target, "server_name") or target.host,
        ca_file=_text(target, "ca_file"),
        ca_data=_text(target, "ca_data"),
        base_path=base_path,
        connect_timeout_seconds=_number(
            target, "connect_timeout_seconds", CONNECT_TIMEOUT_SECONDS, CONNECT_TIMEOUT_LIMIT, least=0.1
        ),
        impersonate=impersonation_of(target),
    )


def impersonation_of(target: Target) -> Impersonation | None:
    """Read what the settings say of impersonation. Raises ConfigError."""
    value = target.settings.get("impersonate")
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"target {target.name}: impersonate is a mapping")
    user = value.get("user", "subject")
    if user not in ("subject", "issuer-subject"):
        raise ConfigError(f"target {target.name}: impersonate.user is subject or issuer-subject")
    prefixes = [value.get(key, "") for key in ("user_prefix", "group_prefix")]
    flags = [value.get(key, False) for key in ("extra", "uid")]
    if not all(isinstance(prefix, str) for prefix in prefixes) or not all(isinstance(flag, bool) for flag in flags):
        raise ConfigError(f"target {target.name}: impersonate: prefixes are texts, extra and uid are true or false")
    return Impersonation(
        user=cast('Literal["subject", "issuer-subject"]', user),
        user_prefix=prefixes[0],
        groups=_words(target, value.get("groups", ("*",)), "impersonate.groups"),
        group_prefix=prefixes[1],
        extra=flags[0],
        uid=flags[1],
    )


def _words(target: Target, value: object, setting: str) -> tuple[str, ...]:
    if not isinstance(value, tuple | list) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f"target {target.name}: {setting} is a list of words")
    return tuple(value)


def _text(target: Target, setting: str) -> str:
    value = target.settings.get(setting, "")
    if not isinstance(value, str):
        raise ConfigError(f"target {target.name}: {setting} is a text")
    return value


def _number(target: Target, setting: str, default: float, most: float, *, least: float) -> float:
    value = target.settings.get(setting, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"target {target.name}: {setting} is from {least:g} to {most:g}")
    return float(value)
