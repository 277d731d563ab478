"""The RESULT of a channel: how its program, or the forward, ended, and how much went either way.

Details: flow; exit or signal, where the target told; sent (bytes from the user), bytes (towards the user).
"""

from __future__ import annotations

from protocols.ssh.actions import Action, Ignored, Record
from protocols.ssh.channels import Channel
from proxy.core.events import Result
from proxy.terminal.content import Done, Dropped


def record(channel: Channel, tag: str, out: list[Action], now: float) -> None:
    """Tape the end of what was started on a channel, with what is unfinished within."""
    if channel.content is not None:
        for step in channel.content.ended(now):
            if isinstance(step, Done):
                out.append(Record(step.permit, step.result))
            elif isinstance(step, Dropped) and step.data:
                out.append(Ignored(channel.flow, step.data))
        channel.content = None
    if channel.permit is None:
        return
    details: dict[str, object] = {"flow": channel.flow, "sent": channel.up.sent, "bytes": channel.down.sent}
    error = None
    if channel.signal is not None:
        details["signal"] = channel.signal[0]
        error = {"message": channel.signal[1]} if channel.signal[1] else None
    elif channel.exit is not None:
        details["exit"] = channel.exit
    out.append(Record(channel.permit, Result(tag, size_bytes=channel.down.sent, error=error, details=details)))


def unanswered(channel: Channel, out: list[Action]) -> None:
    """Tape what the target never answered, as its channel is over."""
    while channel.lent:
        out.append(Record(channel.lent.popleft(), Result("closed", details={"flow": channel.flow})))
