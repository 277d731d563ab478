"""What of an answer's fields a user gets: nothing that sends it elsewhere, or that stays with it.

client-go puts its token on whatever request follows a redirect: a target that names another host would be given the
user's token. So a Location leads to the target itself, through the gate, or nowhere. Cookies are a host's, whatever its
port: one of a target's would be sent to the gateway's own pages. What speaks to browsers about a whole host, or asks
for other credentials, is the gateway's to say.

Source: RFC 9110 10.2.2 and 11.6, RFC 6265 8.5, client-go/transport/round_trippers.go.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.http.heads import Fields
from proxy.core.parties import Target

_KEPT_BACK: Final = frozenset({
    "alt-svc", "clear-site-data", "content-location", "expect-ct", "link", "nel", "proxy-authenticate",
    "proxy-authentication-info", "public-key-pins", "public-key-pins-report-only", "refresh", "report-to",
    "reporting-endpoints", "service-worker-allowed", "set-cookie", "set-cookie2", "strict-transport-security",
    "www-authenticate",
})  # fmt: skip
_CORS: Final = "access-control-"  # which other sites may read the gateway's answers
_LOCATION: Final = re.compile(r"(?:https?://([A-Za-z0-9.:\[\]_-]+))?(/(?![/\\])[!-\[\]-~]*)")
_DOTS: Final = re.compile(r"/(?:\.|%2[eE]){1,2}(?:[/?#]|$)")  # leads out of the target's part, to another target


def for_user(fields: Fields, target: Target) -> Fields:
    """Return the fields of a target's answer that its user gets."""
    found = []
    for name, value in fields:
        lower = name.lower()
        if lower in _KEPT_BACK or lower.startswith(_CORS):
            continue
        if lower == "location":
            place = location(value, target)
            if place is None:
                continue
            value = place
        found.append((name, value))
    return tuple(found)


def location(value: str, target: Target) -> str | None:
    """Return where a redirect leads as the user has to ask for it; None where that is not the target."""
    found = _LOCATION.fullmatch(value)
    if found is None or _DOTS.search(found[2]):
        return None
    host = f"[{target.host}]" if ":" in target.host else target.host
    own = {host, f"{host}:{target.port or 443}"}
    if found[1] is not None and found[1].lower() not in {each.lower() for each in own}:
        return None
    path, base = found[2], str(target.settings.get("base_path") or "")
    if base and path.startswith(f"{base}/"):
        path = path.removeprefix(base)
    return f"/k8s/{target.name}{path}"
