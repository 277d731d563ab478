"""The short way of data: most of the bytes there are lie in CHANNEL_DATA that nothing holds up, and pass as they came.

Each function checks the message and the windows as the long way does (commands.py), and makes no value more than its
action needs. A Content sees the data on the way; where it wants anything but to let just these bytes go on, its steps
are for the caller to carry out.

Source: RFC 4254 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.ssh import wire
from protocols.ssh.actions import Action, Down, Up
from protocols.ssh.channels import Channel
from protocols.ssh.lanes import Lane, Rewrap
from proxy.core.events import Chunk, Frame
from proxy.core.session import Input
from proxy.terminal.content import Step, ToTarget, ToUser

Passed = tuple[list[Action] | None, Sequence[Step] | None]
_LONG_WAY: Passed = (None, None)


def pass_up(channel: Channel, payload: bytes, now: float) -> Passed:
    """Pass data of the user. Returns (actions, None), ([], steps to carry out), or (None, None) for the long way."""
    lane, permit = channel.up, channel.permit
    size = len(payload) - wire.DATA_HEAD_BYTES
    if permit is None or not _fits(lane, payload, size):
        return _LONG_WAY
    data = payload[wire.DATA_HEAD_BYTES :]
    taped = True
    lane.sender -= size
    if channel.content is not None:
        steps = channel.content.from_user(data, now)
        step = steps[0] if len(steps) == 1 else None
        if type(step) is not ToTarget or step.data is not data or step.by_gate:
            return [], steps
        taped = step.taped
    lane.receiver -= size
    lane.sent += size
    framed = wire.frame(payload)
    return [Up(Input(permit, channel.flow, data, framed) if taped else Frame(framed, False, False))], None


def pass_down(channel: Channel, payload: bytes, now: float) -> Passed:
    """The same for data of the target."""
    lane = channel.down
    size = len(payload) - wire.DATA_HEAD_BYTES
    if not _fits(lane, payload, size):
        return _LONG_WAY
    data = payload[wire.DATA_HEAD_BYTES :]
    taped, masked = True, lane.maskable and not lane.packets
    lane.sender -= size
    if channel.content is not None:
        steps = channel.content.from_target("out", data, now)
        step = steps[0] if len(steps) == 1 else None
        # What a mask may look at takes the long way: nothing may follow it in the same list.
        if type(step) is not ToUser or step.data is not data or step.by_gate or step.stream != "out":
            return [], steps
        if step.masked and lane.may_be_masked(channel.answer):
            return [], steps
        taped, masked = step.taped, step.masked and lane.maskable
    lane.receiver -= size
    lane.sent += size
    rewrap = Rewrap(lane, "out", size)
    chunk = Chunk(channel.flow, "out", data, wire.frame(payload), rewrap, taped=taped, masked=masked)
    return [Down(channel.answer, chunk)], None


def _fits(lane: Lane, payload: bytes, size: int) -> bool:
    """Whether the message is well-formed, and within both windows; the long way says what is wrong, or waits."""
    fits = 0 < size <= lane.receiver and size <= lane.sender and size <= lane.packet
    return fits and int.from_bytes(payload[5:9], "big") == size
