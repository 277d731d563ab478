"""Which leg speaks what was agreed on with a user, or with a target. Source: kubernetes note 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from protocols.kubernetes.remote_spdy import SpdyTarget, SpdyUser
from protocols.kubernetes.remote_ws import PROTOCOLS, V1, WebSocketTarget, WebSocketUser
from protocols.kubernetes.streams import TargetLeg, UserLeg

Kind = Literal["websocket", "spdy"]
SPDY_PROTOCOLS = ("v4.channel.k8s.io",)


def choose_protocol(kind: Kind, offered: Sequence[str]) -> str | None:
    """Choose the first of the offered subprotocols that is known; no offer of a WebSocket means the oldest."""
    if kind == "websocket" and not offered:
        return V1
    known = PROTOCOLS if kind == "websocket" else SPDY_PROTOCOLS
    return next((each for each in offered if each in known), None)


def user_leg(kind: Kind, protocol: str, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> UserLeg:
    """Make a server's end."""
    if kind == "websocket":
        return WebSocketUser(protocol, stdin, stdout, stderr, tty)
    return SpdyUser(stdin, stdout, stderr, tty)


def target_leg(kind: Kind, protocol: str, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> TargetLeg:
    """Make a client's end."""
    return WebSocketTarget(protocol) if kind == "websocket" else SpdyTarget(stdin, stdout, stderr, tty)
