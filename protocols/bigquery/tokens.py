"""Whose request it is and for which target: from the bearer token, and the path where one names the target.

A token of the exchange (sts.py) holds identity and target. A user's own proof (a gateway token, an OIDC token) names no
target: the path does (/bq/<target>), or the listener's own default. Where both say, they have to agree.

Gate.settings["bigquery"] read here: seal (sts.Seal), target (the default's name).
Source: bigquery note 2; RFC 6750 2.1.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from protocols.bigquery.sts import Seal, looks_like_token
from proxy.core.errors import LoginRefused
from proxy.core.gate import Gate
from proxy.core.http.heads import BadRequest, RequestHead, values
from proxy.core.parties import Identity, Target

HINT: Final = "Use a gatecast token or an OIDC token, or exchange it at /v1/token."


class NoTarget(LoginRefused):
    """The login is good, and no target of that name is there for it."""


def door_of(gate: Gate) -> Mapping[str, Any]:
    """What the listener's settings say of BigQuery: universe, seal, target."""
    found = gate.settings.get("bigquery")
    return found if isinstance(found, Mapping) else {}


def bearer_of(head: RequestHead) -> str:
    """Return the bearer token of a request, "" where it has none. Raises BadRequest."""
    found = values(head.fields, "authorization")
    if len(found) > 1:
        raise BadRequest(400, "the request has two Authorization fields")
    scheme, _, token = (found[0] if found else "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def caller_of(
    gate: Gate, token: str, hint: str | None, identify: Callable[[str], Awaitable[Identity]] | None = None
) -> tuple[Identity, Target]:
    """Return who calls, and the target that is meant; hint: the target that the path names. Raises LoginRefused.

    identify: of a connection that remembers whose proof it saw last (proxy/http/serving.Serving).
    """
    if not token:
        raise LoginRefused("a token is needed", HINT)
    if looks_like_token(token):
        seal = door_of(gate).get("seal")
        bearer = seal.read(token, gate.clock()) if isinstance(seal, Seal) else None
        if bearer is None or not gate.identities.valid(bearer.identity):
            raise LoginRefused("the access token is not valid, or over", "Exchange your token anew.")
        if hint not in (None, bearer.target):
            raise NoTarget("the access token is for another target")
        return bearer.identity, target_of(gate, bearer.target)
    identity = await (gate.identities.password("", token) if identify is None else identify(token))
    name = hint or door_of(gate).get("target")
    if not isinstance(name, str) or not name:
        raise NoTarget("no target is named", "The address ends in /bq/<target>, or the token is exchanged for one.")
    return identity, target_of(gate, name)


def target_of(gate: Gate, name: str) -> Target:
    """Return a target by its name. Raises NoTarget."""
    target = gate.targets.find(name)
    if target is None or target.protocol != "bigquery":
        raise NoTarget("there is no such target here")
    return target
