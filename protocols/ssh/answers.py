"""Requests on a channel that need no decision: terminals, sizes, variables, plumbing, and what nobody knows.

They pass, or the gate answers them itself. A terminal whose modes turn what is typed into something else is refused.

RFC 4254 5.4 numbers no replies, so an answer of the gate's own waits until the other side has answered what came before
it (Replies). A request of the user that goes no further is on the tape as Ignored.

Specification: RFC 4254 5.4.
"""

from __future__ import annotations

from typing import Final

from protocols.ssh import parcels, wire
from protocols.ssh.actions import Action, Down, Ignored, Intent, Mark, Up
from protocols.ssh.channels import ERRORS, USER, Channel, Limits, Remarks, Side, shown
from protocols.ssh.lanes import Item, Parcel
from protocols.ssh.requests import PUTTY, Requests, cells
from protocols.ssh.wire_bodies import Env, Pty, WindowChange, terminal_modes
from proxy.core.errors import UserPeerError
from proxy.core.events import Frame, Resize

# Modes of a terminal that make something else of what is typed (RFC 4254 8): of 0x8A a line break, of RM rm.
_CHANGING: Final = {33: "ISTRIP", 37: "IUCLC"}
_SPECIAL_CHARACTERS: Final = range(1, 19)  # VINTR to VDISCARD
_LETTERS: Final = range(0x20, 0x7F)


class Answers:
    """What passes, and what is answered, on the channels of one connection."""

    def __init__(self, requests: Requests, limits: Limits, remarks: Remarks) -> None:
        self._requests = requests
        self._limits = limits
        self._remarks = remarks

    def _pass(self, channel: Channel, side: Side, request: wire.ChannelRequest, out: list[Action]) -> None:
        self._expect(channel, side, request)
        framed = Frame(wire.frame(request.encode()))
        if side == USER:
            channel.up.push(Parcel(Up(framed)), out)
        else:
            channel.down.push(Parcel(Down(None, framed)), out)

    def _expect(self, channel: Channel, side: Side, request: wire.ChannelRequest) -> None:
        if request.want_reply:
            self._check_replies(channel, side)
            channel.replies[side].expect(request.name)

    def _check_replies(self, channel: Channel, side: Side) -> None:
        if len(channel.replies[side]) >= self._limits.waiting:
            raise ERRORS[side](f"more than {self._limits.waiting} requests of a channel wait for their reply")

    def _answer(
        self, channel: Channel, side: Side, request: wire.ChannelRequest, success: bool, out: list[Action]
    ) -> None:
        """Answer a request in the other side's place, in its turn."""
        if request.want_reply:
            self._check_replies(channel, side)
            self._say(channel, side, (parcels.reply(channel, side, success),), out)

    def _keep(self, channel: Channel, request: wire.ChannelRequest, success: bool, out: list[Action]) -> None:
        """Answer a request of the user that nobody decides and that goes no further."""
        out.append(ignored(request))
        self._answer(channel, USER, request, success, out)

    def _say(self, channel: Channel, side: Side, items: tuple[Item, ...], out: list[Action]) -> None:
        for item in channel.replies[side].answer(items):
            channel.lane_to(side).push(item, out)

    def _unknown(self, channel: Channel, side: Side, request: wire.ChannelRequest, out: list[Action]) -> None:
        if request.name not in PUTTY:
            self._remarks.add(out, side, "ssh-unknown", f"request {shown(request.name)} on a {channel.kind} channel")
        if side == USER:
            out.append(ignored(request))
        self._answer(channel, side, request, False, out)

    # -- of the user ----------------------------------------------------------------------------------

    def _pty(self, channel: Channel, request: wire.ChannelRequest, out: list[Action]) -> None:
        if not self._requests.permits("pty"):
            self._remarks.add(out, USER, "ssh-refused", "pty-req: the login permits no terminal")
            self._keep(channel, request, False, out)
            return
        asked = Pty.read(request.body, UserPeerError)
        if channel.pty:  # the first one's terminal would stay, whatever the target answers to a second
            self._remarks.add(out, USER, "ssh-refused", "pty-req: a second terminal on one channel")
            self._keep(channel, request, False, out)
            return
        if odd := _odd_modes(asked.modes):
            self._remarks.add(out, USER, "ssh-refused", f"pty-req: {odd}")
            self._keep(channel, request, False, out)
            return
        channel.pty = True
        channel.columns, channel.rows = cells(asked.columns, asked.rows)
        out.append(Down(None, Resize(channel.columns, channel.rows, channel.flow)))
        self._pass(channel, USER, request, out)

    def _resize(self, channel: Channel, request: wire.ChannelRequest, out: list[Action]) -> None:
        asked = WindowChange.read(request.body, UserPeerError)
        if channel.pty:
            channel.columns, channel.rows = cells(asked.columns, asked.rows)
            out.append(Down(None, Resize(channel.columns, channel.rows, channel.flow)))
            if channel.content is not None:
                channel.content.resized(channel.columns, channel.rows)
        self._pass(channel, USER, request, out)

    def _env(self, channel: Channel, request: wire.ChannelRequest, out: list[Action]) -> None:
        asked = Env.read(request.body, UserPeerError)
        if asked.name == "GATECAST_INTENT":
            out.append(Intent(asked.value))
        elif asked.name == "GATECAST_RUN":
            out.append(Mark("run", asked.value))
        elif self._requests.passes(asked) and (asked.name in channel.env or len(channel.env) < self._limits.env):
            channel.env[asked.name] = asked.value
            self._pass(channel, USER, request, out)
            return
        else:
            self._remarks.add(out, USER, "ssh-refused", f"variable {shown(asked.name)}")
            self._keep(channel, request, False, out)
            return
        self._keep(channel, request, True, out)


def ignored(message: wire.Message) -> Ignored:
    """A message of the user that goes no further, for the tape."""
    return Ignored(None, wire.frame(message.encode()))


def _odd_modes(modes: bytes) -> str:
    """Why nobody could tell what is typed on such a terminal, '' if somebody could. No real terminal is like that."""
    found = terminal_modes(modes, UserPeerError)
    for code, name in _CHANGING.items():
        if found.get(code):
            return f"the mode {name} changes what is typed"
    if any(found.get(code, 0) in _LETTERS for code in _SPECIAL_CHARACTERS):
        return "a special character that is a letter changes what is typed"
    return ""
