"""What ``gatecast approvals``, ``sessions live|kill``, ``reload`` and ``status`` do, without the parsing of arguments.

Each function returns JSON-able values with times as ISO 8601 text; each render_ function makes text of them.
All raise AdminError.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.admin.client import AdminClient
from proxy.core.text import fields, harmless, iso, labelled, span, table

JsonObject = dict[str, Any]
_TIMES = ("created", "expires", "decided")
_NOTHING = hashlib.sha256(b"").hexdigest()  # of a command whose protocol has no bytes of its own for it


def approvals_list(
    client: AdminClient,
    *,
    state: str | None = "pending",
    subject: str | None = None,
    target: str | None = None,
    limit: int | None = None,
) -> list[JsonObject]:
    """Return the newest approvals; state None means all of them."""
    found = client.call("approvals.list", state=state, subject=subject, target=target, limit=limit)
    return [_dated(entry) for entry in found]


def approvals_show(client: AdminClient, approval: str) -> JsonObject:
    """Return one approval with all of the text that is kept."""
    return _dated(client.call("approvals.show", id=approval))


def approvals_approve(
    client: AdminClient, approval: str, *, reason: str | None = None, token: str | None = None
) -> JsonObject:
    """Approve; token (GATECAST_TOKEN) proves who does, without it the local operator does."""
    return _dated(client.call("approvals.approve", id=approval, reason=reason, token=token))


def approvals_deny(
    client: AdminClient, approval: str, *, reason: str | None = None, token: str | None = None
) -> JsonObject:
    """Deny; token as for approvals_approve."""
    return _dated(client.call("approvals.deny", id=approval, reason=reason, token=token))


def sessions_live(client: AdminClient) -> list[JsonObject]:
    """Return the sessions that are open now."""
    return [_dated(entry, ("started",)) for entry in client.call("sessions.live")]


def sessions_kill(client: AdminClient, session: str) -> JsonObject:
    """End a session."""
    return dict(client.call("sessions.kill", id=session))


def config_reload(client: AdminClient) -> JsonObject:
    """Load the configuration again; a bad one changes nothing and comes back as AdminError."""
    return dict(client.call("config.reload"))


def status(client: AdminClient) -> JsonObject:
    """Return how the gate is."""
    return dict(client.call("status"))


def render_approvals(found: Sequence[Mapping[str, Any]], now: float | None = None) -> str:
    """Return a table of approvals."""
    if not found:
        return "Nothing waits for approval.\n"
    now = time.time() if now is None else now
    rows = [
        (
            entry["id"],
            entry["state"],
            _left(entry, now),
            _who(entry),
            f"{entry['target']}/{entry['database']}" if _login(entry) else entry["target"],
            entry["rule"],
            " ".join(labelled(entry["verb"], entry["text"]).split()),
        )
        for entry in found
    ]
    return table(("ID", "STATE", "LEFT", "FOR", "TARGET", "RULE", "COMMAND"), rows)


def _login(entry: Mapping[str, Any]) -> bool:
    """Whether the entry's database is a login name, and who one is there matters as much as where."""
    return bool(entry["protocol"] == "ssh" and entry["database"])


def render_approval(entry: Mapping[str, Any], now: float | None = None) -> str:
    """Return all of one approval, the command last."""
    now = time.time() if now is None else now
    ended = f"{entry['state']} at {entry['decided']}" + (f" by {entry['decided_by']}" if entry["decided_by"] else "")
    shown = f"{entry['text_bytes']} bytes"
    if len(entry["text"].encode()) != entry["text_bytes"]:
        shown += ", CUT BELOW: read the whole of it on the tape before you decide"
    if not entry["exact"]:
        shown += ", rebuilt from keystrokes"
    head = fields(
        (
            ("approval", entry["id"]),
            ("state", f"pending, {_left(entry, now)} left" if entry["state"] == "pending" else ended),
            ("reason given", entry["decided_why"]),
            ("asked by", _who(entry)),
            ("issuer", entry["issuer"]),
            ("target", f"{entry['target']} ({entry['protocol']})"),
            ("login" if _login(entry) else "database", entry["database"]),
            ("touches", ", ".join(entry["objects"])),
            ("does", f"{entry['kind']} ({entry['verb']})"),
            ("rule", entry["rule"]),
            ("because", entry["reason"]),
            ("approvers", ", ".join(entry["approvers"]) or "nobody"),
            ("session", entry["session"]),
            ("asked at", entry["created"]),
            ("until", entry["expires"]),
            ("text SHA-256", entry["text_sha256"]),
            ("wire SHA-256", entry["wire_sha256"] if entry["wire_sha256"] != _NOTHING else ""),
            ("command", shown),
        )
    )
    body = "".join(f"    {line}\n" for line in harmless(entry["text"], lines=True).splitlines())
    return f"{head}\n{body}"


def render_sessions(found: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of open sessions, with whatever columns the gate tells."""
    if not found:
        return "No session is open.\n"
    names = list(found[0])
    rows = [[_plain(entry.get(name)) for name in names] for entry in found]
    return table([name.upper().replace("_", " ") for name in names], rows)


def render_status(entry: Mapping[str, Any]) -> str:
    """Return one line for each thing the gate tells."""
    return fields([(name.replace("_", " "), _plain(value)) for name, value in entry.items()])


def _dated(entry: Mapping[str, Any], names: Sequence[str] = _TIMES) -> JsonObject:
    times = {name: iso(entry[name]) for name in names if isinstance(entry.get(name), int | float)}
    seconds = {"expires_at": entry["expires"]} if "expires" in times else {}
    return {**entry, **times, **seconds}


def _left(entry: Mapping[str, Any], now: float) -> str:
    return span(entry["expires_at"] - now) if entry["state"] == "pending" else ""


def _who(entry: Mapping[str, Any]) -> str:
    agents = "/".join(entry["agents"])
    return f"{agents} for {entry['subject']}" if agents else str(entry["subject"])


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        if all(isinstance(item, Mapping) for item in value):
            return "; ".join(_plain(item) for item in value)
        return ", ".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return "" if value is None else str(value)
