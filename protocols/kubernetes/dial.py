"""Connect to an API server by TLS, its certificate checked; and the fields that say who asks.

A connection offers ALPN http/1.1 alone (upgrades need it) and shows the client certificate, where the credential has
one. A bearer token is the request's: authorization(). Who the API server is to take the user for is too:
impersonation(). Nothing that is sent here has been read from the user: exchange.py drops what the user said of these.

The certificate's authority, and the client's certificate, are read at each dial, so that rotated files count; contexts
are kept, as making one reads all public authorities. Left out: proxies (HTTP CONNECT, proxy-url), happy eyeballs.
Source: kubernetes note 9; RFC 6750 2.1; Kubernetes' documentation, "User impersonation"; RFC 3986 2.1.
"""

from __future__ import annotations

import fnmatch
from typing import Final
from urllib.parse import quote

import structlog

from protocols.kubernetes.dial_settings import impersonation_of, read_settings
from proxy.core.errors import ConfigError, TargetPeerError
from proxy.core.http.heads import Fields
from proxy.core.parties import Credential, Identity, Target
from proxy.core.stream import Stream
from proxy.http.dialing import Advice, connect

IMPERSONATED_LIMIT: Final = 1024  # characters of a user or group: the head of a request has a limit, too
GROUPS_LIMIT: Final = 200  # as many as Entra ID puts into a token; heads of requests are limited to 64 KiB
_RESERVED: Final = "system:"  # Kubernetes' own users and groups: "Users in Kubernetes", RBAC's default bindings


ADVICE: Final = Advice(
    private="kubernetes.ca_file names another authority",
    public="it has no public one: kubernetes.ca_file names the cluster's own",
    name="kubernetes.server_name says which name it is for",
)

_log = structlog.get_logger(__name__)


async def dial(target: Target, credential: Credential) -> Stream:
    """Return a connection to the target, past TLS. Raises TargetPeerError."""
    try:
        settings = read_settings(target)
    except ConfigError as error:
        _log.error("target settings are wrong", target=target.name, reason=str(error))
        raise TargetPeerError(str(error)) from error
    return await connect(settings, credential, ADVICE)


def impersonation(target: Target, identity: Identity) -> Fields:
    """The fields that make the API server take the gate's account for the user; none where that is not configured.

    Raises TargetPeerError for somebody who cannot be named so: nobody is let through as the gate's own account.
    """
    try:
        settings = impersonation_of(target)
    except ConfigError as error:
        raise TargetPeerError(str(error)) from error
    if settings is None:
        return ()
    full = f"{identity.issuer}#{identity.subject}"
    if not identity.subject or ((settings.user == "issuer-subject" or settings.uid) and not identity.issuer):
        raise TargetPeerError("the target knows users by names that this login does not have")
    user = settings.user_prefix + (identity.subject if settings.user == "subject" else full)
    if not _can_be_said(user) or user.startswith(_RESERVED):
        raise TargetPeerError("the user's name cannot be the name of a user at the target")
    wanted = sorted(
        settings.group_prefix + group
        for group in identity.groups
        if any(fnmatch.fnmatchcase(group, pattern) for pattern in settings.groups)
    )
    # A group less can only take rights away: RBAC has nothing that denies.
    groups = [group for group in wanted if _can_be_said(group) and not group.startswith(_RESERVED)]
    if len(groups) > GROUPS_LIMIT:
        raise TargetPeerError(f"the user has more than {GROUPS_LIMIT} groups; name those that matter in impersonate")
    fields = [("Impersonate-User", user), *(("Impersonate-Group", group) for group in groups)]
    if settings.uid:
        fields.append(("Impersonate-Uid", full))
    if settings.extra:
        values = [("gatecast/agent", agent) for agent in identity.agents] + [("gatecast/issuer", identity.issuer)]
        fields += [(f"Impersonate-Extra-{_key(key)}", value) for key, value in values if _can_be_said(value)]
    # Go's clients send UTF-8, and API servers read it; a head is written as latin-1, which keeps each byte.
    return tuple((name, value.encode().decode("latin-1")) for name, value in fields)


def _can_be_said(text: str) -> bool:
    """Whether a field carries the text as it is: no control characters, and no blanks at its ends, which get lost."""
    return bool(text) and len(text) <= IMPERSONATED_LIMIT and text == text.strip() and text.isprintable()


def _key(key: str) -> str:
    """The key of an extra as part of a field's name: in lower case, and escaped where no token has such characters."""
    return quote(key.lower(), safe="!#$&'*+-.^_`|~")
