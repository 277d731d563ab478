"""Which channel opens are refused without asking the policy.

A target may open only what the user asked for and was allowed: a connection to a forward of its own, to its agent, to
its display. Nothing here is a decision: what is not refused here is decided, but for a session, whose programs are.

Specification: RFC 4254 5.1, 6.3.2, 7.2; OpenSSH's PROTOCOL 2.2 (no-more-sessions), 2.4.
"""

from __future__ import annotations

from typing import Final

from protocols.ssh import wire
from protocols.ssh.channels import ERRORS, NAMES, TARGET, USER, Side
from protocols.ssh.forwards import GlobalRequests
from protocols.ssh.programs import Programs
from protocols.ssh.requests import Requests
from protocols.ssh.wire_bodies import OPENS, ForwardedStreamlocal, Origin, Tcpip

_OF_USER: Final = frozenset({"session", "direct-tcpip", "direct-streamlocal@openssh.com", "tun@openssh.com"})
_OF_TARGET: Final = frozenset({
    "forwarded-tcpip", "forwarded-streamlocal@openssh.com", "x11", "auth-agent@openssh.com",
})  # fmt: skip


def unwanted(
    side: Side,
    asked: wire.ChannelOpen,
    requests: Requests,
    programs: Programs,
    global_requests: GlobalRequests,
    full: bool,
) -> tuple[int, str]:
    """Return why a side's channel is refused: (RFC 4254 5.1's code, text), code 0 if it is not. Raises PeerError."""
    kind = asked.kind
    if kind not in OPENS:
        return wire.UNKNOWN_CHANNEL_TYPE, "unknown channel type"
    body = OPENS[kind].read(asked.body, ERRORS[side])
    if full:
        return wire.RESOURCE_SHORTAGE, "too many channels"
    if kind not in (_OF_USER if side == USER else _OF_TARGET):
        text = f"the {NAMES[side]}'s side does not open these"
    elif side == TARGET:
        text = _unasked(kind, body, programs, global_requests)
    elif kind == "session" and global_requests.no_more_sessions:
        text = "the connection takes no more sessions"
    elif not requests.permits(kind.removesuffix("@openssh.com")):
        text = "the login permits no forwarding"
    else:
        text = ""
    return (wire.ADMINISTRATIVELY_PROHIBITED, text) if text else (0, "")


def _unasked(kind: str, body: object, programs: Programs, global_requests: GlobalRequests) -> str:
    match body:
        case Tcpip():
            answered = global_requests.answered_forward("tcp", body.host, body.port)
        case ForwardedStreamlocal():
            answered = global_requests.answered_forward("unix", body.path, 0)
        case Origin():
            return "" if programs.x11 is not None else "X11 forwarding was not allowed"
        case _:
            return "" if programs.agent is not None else "agent forwarding was not allowed"
    return "" if answered else "no such forward was asked for"
