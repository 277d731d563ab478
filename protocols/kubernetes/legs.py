"""Which leg speaks which protocol: the ends of exec and attach, by the names of handshakes.

Specification: kubernetes note 3 and 4; streams.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from protocols.kubernetes import remote_spdy, remote_ws
from protocols.kubernetes.streams import Asked, TargetLeg, UserLeg

Kind = Literal["websocket", "spdy"]
# kubectl offers v5 by SPDY as well (from 1.29 on); there it adds nothing, and servers answer v4.
KNOWN: Final[dict[Kind, frozenset[str]]] = {
    "websocket": remote_ws.USER_PROTOCOLS,
    "spdy": frozenset({remote_spdy.V4}),
}


def choose_protocol(kind: Kind, offered: Sequence[str]) -> str | None:
    """Choose the first protocol offered that is known, None if none is. WebSocket without an offer means v1."""
    if kind == "websocket" and not offered:
        return remote_ws.V1
    return next((name for name in offered if name in KNOWN[kind]), None)


def user_leg(kind: Kind, protocol: str, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> UserLeg:
    """Return a server's end for the streams that the user asked for. With a terminal there is no stderr."""
    asked = Asked(stdin, stdout, stderr and not tty, tty)
    if kind == "websocket":
        return remote_ws.WebSocketUserLeg(protocol, asked)
    assert protocol == remote_spdy.V4, protocol
    return remote_spdy.SpdyUserLeg(asked)


def target_leg(kind: Kind, protocol: str, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> TargetLeg:
    """Return a client's end for the same streams."""
    asked = Asked(stdin, stdout, stderr and not tty, tty)
    if kind == "websocket":
        return remote_ws.WebSocketTargetLeg(protocol, asked)
    assert protocol == remote_spdy.V4, protocol
    return remote_spdy.SpdyTargetLeg(asked)
