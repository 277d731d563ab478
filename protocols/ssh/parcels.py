"""The gate's own messages on a channel, ready to take their place in a lane.

Specification: RFC 4254 5, 6.10.
"""

from __future__ import annotations

from protocols.ssh import wire
from protocols.ssh.actions import Action, Down, Up
from protocols.ssh.channels import USER, Channel, Side
from protocols.ssh.lanes import Parcel, Piece
from protocols.ssh.wire_bodies import Number
from proxy.core.events import Frame


def to_side(side: Side, payload: bytes, by_gate: bool = False) -> Action:
    """Return the action that sends one message to a side as plumbing."""
    framed = Frame(wire.frame(payload), by_gate)
    return Down(None, framed) if side == USER else Up(framed)


def said(channel: Channel, text: str) -> Piece:
    """A line of the gate's for the user: on stderr, on a terminal's screen with CRLF."""
    data = text.encode("utf-8", "replace")
    if channel.pty:
        return Piece(data + b"\r\n", channel.answer, "out", by_gate=True, masked=False)
    return Piece(data + b"\n", channel.answer, "err", by_gate=True, masked=False)


def reply(channel: Channel, side: Side, success: bool, by_gate: bool = True) -> Parcel:
    """CHANNEL_SUCCESS or CHANNEL_FAILURE to a side's request."""
    message = wire.ChannelSuccess(channel.ids[side]) if success else wire.ChannelFailure(channel.ids[side])
    return Parcel(to_side(side, message.encode(), by_gate))


def exit_status(channel: Channel, status: int) -> Parcel:
    """The exit status of what was not started, or was ended."""
    request = wire.ChannelRequest(channel.ids[USER], "exit-status", False, Number(status).encode())
    return Parcel(to_side(USER, request.encode(), by_gate=True))


def eof(channel: Channel, side: Side) -> Parcel:
    """EOF to a side."""
    return Parcel(to_side(side, wire.Eof(channel.ids[side]).encode(), channel.over), last="eof")


def close(channel: Channel, side: Side) -> Parcel:
    """CLOSE to a side."""
    return Parcel(to_side(side, wire.Close(channel.ids[side]).encode(), channel.over), last="close")


def close_now(channel: Channel, side: Side, out: list[Action]) -> None:
    """Send CLOSE to a side ahead of whatever waits for it, unless it is on its way."""
    lane = channel.lane_to(side)
    if not lane.gone:
        lane.end(out)
        out.append(close(channel, side).action)
