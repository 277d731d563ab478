"""The conversation of one SSH connection: the messages of both sides in, actions for the relay out.

Channel numbers and messages pass as they are; this object knows what each belongs to. What is asked for is decided
before it passes: channel opens other than a session's here, what happens on a channel in programs.py, global requests
in forwards.py. What breaks the protocol ends the connection with a Disconnect that blames the right side.

The relay carries a list of actions out in its order, then calls settle() until it gives nothing: only a reveal tells
what a mask has made of a piece, and so what room is left for the next one.

Numbers are freed apart on either side, as the gate may close a channel on one side only (a denied exec). Where one side
uses a number again while the other has not closed the old channel, its open, or its confirmation, waits for that.

Left out: MSG_UNIMPLEMENTED for unknown messages, which needs the transport's sequence number: they are ignored.

Specification: RFC 4254.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count

from protocols.ssh import bulk, parcels, wire
from protocols.ssh.actions import Action, Decide, Disconnect, Down, Forget, Ignored, Record, Up, Withdraw
from protocols.ssh.channels import (
    ERRORS,
    GRACE_PARTS,
    NAMES,
    NEXT,
    TARGET,
    USER,
    Channel,
    Limits,
    Remarks,
    Side,
    shown,
)
from protocols.ssh.forwards import GlobalRequests
from protocols.ssh.lanes import Masked, Parcel, Rewrap
from protocols.ssh.lobby import WINDOW_BYTES, Guests, Seat
from protocols.ssh.opens import unwanted
from protocols.ssh.parcels import to_side
from protocols.ssh.programs import ContentFactory as ContentFactory
from protocols.ssh.programs import Programs
from protocols.ssh.requests import Requests
from protocols.ssh.results import record, unanswered
from protocols.ssh.verbs import VERBS as VERBS
from proxy.core.errors import PeerError, Refused, TargetPeerError
from proxy.core.events import Chunk, Frame, Result
from proxy.core.gate import ShellReader
from proxy.core.parties import Target
from proxy.core.session import Permit
from proxy.terminal.content import Step
from proxy.terminal.wording import gate_text, refusal_text


class Conversation:
    """See the module. now is seconds on a monotonic clock, everywhere."""

    def __init__(
        self,
        target: Target,
        login: str,
        shell: ShellReader,
        contents: ContentFactory,
        permits: frozenset[str],
        force_command: str | None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._masked = Masked()
        self._keys = count(1)
        self._flows = count()
        self._remarks = Remarks(self._limits.remarks)
        self._requests = Requests(target, login, shell, permits, force_command)
        self._programs = Programs(self._requests, contents, self._limits, self._remarks, self._next_key)
        self._globals = GlobalRequests(self._requests, self._limits, self._remarks, self._next_key)
        self._by: tuple[dict[int, Channel], dict[int, Channel]] = ({}, {})  # by the number that a side gave
        self._channels: dict[int, Channel] = {}  # by flow
        self._opening: dict[int, tuple[Channel, wire.ChannelOpen]] = {}  # undecided opens, by key
        self._reopen: dict[tuple[Side, int], wire.ChannelOpen] = {}  # opens that wait for their number
        self._confirmed: dict[tuple[Side, int], Channel] = {}  # confirmations that wait for theirs
        self._guests = Guests()
        self._late: list[bytes] = []  # of guests, that had to wait for their number
        self._over = False

    def adopt(self, seats: Iterable[Seat]) -> None:
        """Take over the sessions that the lobby has accepted; what they said there is to be said again."""
        self._guests = Guests(tuple(seats))

    def _next_key(self) -> int:
        return next(self._keys)

    # -- messages -------------------------------------------------------------------------------------

    def from_user(self, payload: bytes, now: float) -> list[Action]:
        """Take a message of the user."""
        if self._guests:
            taken = self._guests.take(payload)
            if taken is None:
                return []
            payload = taken
        if payload[:1] == b"^" and not self._masked.unsettled:
            channel = self._by[TARGET].get(int.from_bytes(payload[1:5], "big"))
            if channel is not None and channel.plain_up and channel.states[USER] == "open":
                passed, steps = bulk.pass_up(channel, payload, now)
                if passed is not None:
                    return passed if steps is None else self._carry(channel, steps, now)
        return self._take(USER, payload, now)

    def from_target(self, payload: bytes, now: float) -> list[Action]:
        """Take a message of the target."""
        if payload[:1] == b"^" and not self._masked.unsettled:
            channel = self._by[USER].get(int.from_bytes(payload[1:5], "big"))
            if channel is not None and channel.plain_down and channel.states[TARGET] == "open":
                passed, steps = bulk.pass_down(channel, payload, now)
                if passed is not None:
                    return passed if steps is None else self._carry(channel, steps, now)
        return self._take(TARGET, payload, now)

    def _carry(self, channel: Channel, steps: Sequence[Step], now: float) -> list[Action]:
        out: list[Action] = []
        try:
            self._programs.carry(channel, steps, out, now)
            self._programs.resume(channel, out, now)
            self._balance(channel, out)
        except PeerError as error:
            self._end(error, out)
        return out

    def _take(self, side: Side, payload: bytes, now: float) -> list[Action]:
        if self._over:
            return []
        out = self.settle()
        try:
            self._message(side, wire.decode(payload, ERRORS[side]), payload, out, now)
            while self._late:
                out += self._take(USER, self._late.pop(0), now)
        except PeerError as error:
            self._end(error, out)
        return out

    def _message(self, side: Side, message: wire.Message, payload: bytes, out: list[Action], now: float) -> None:
        match message:
            case wire.GlobalRequest():
                self._globals.request(side, message, out)
            case wire.RequestSuccess() | wire.RequestFailure():
                self._globals.reply(side, payload, out)
            case wire.ChannelOpen():
                self._open(side, message, out)
            case wire.OpenConfirmation():
                self._confirm(side, message, payload, out)
            case wire.OpenFailure():
                self._fail(side, message, payload, out)
            case wire.UnknownMessage():
                self._ignore(side, payload, out)
                self._remarks.add(out, side, "ssh-unknown", f"message {message.number}")
            case _:
                self._on_channel(side, message, payload[0], out, now)

    def _on_channel(self, side: Side, message: wire.ChannelMessage, number: int, out: list[Action], now: float) -> None:
        other: Side = TARGET if side == USER else USER
        channel = self._by[other].get(message.recipient)
        if channel is None:
            # As OpenSSH does (channels.c, channel_input_window_adjust): these may come late, and say nothing then.
            if isinstance(message, wire.WindowAdjust | wire.ChannelSuccess | wire.ChannelFailure):
                return
            raise ERRORS[side](f"a message of type {number} for a channel that is not open: {message.recipient}")
        state = NEXT.get((channel.states[side], number))
        if state is None:
            raise ERRORS[side](f"a message of type {number} on a channel that is {channel.states[side]}")
        channel.states[side] = state
        programs = self._programs
        match message:
            case wire.WindowAdjust():
                self._adjust(side, channel, message.size, out)
            case wire.Data():
                self._check_window(side, channel, len(message.data))
                if side == USER:
                    programs.user_data(channel, message.data, out, now)
                else:
                    programs.target_data(channel, "out", message.data, out, now)
            case wire.ExtendedData():
                self._check_window(side, channel, len(message.data))
                if side == TARGET and message.code == wire.STDERR:
                    programs.target_data(channel, "err", message.data, out, now)
                else:
                    self._ignore(side, message.encode(), out)
                    self._remarks.add(out, side, "ssh-unknown", f"extended data of type {message.code}")
            case wire.Eof():
                if side == USER:
                    programs.user_eof(channel, out, now)
                else:
                    programs.target_eof(channel, out, now)
            case wire.Close():
                self._close(side, channel, out, now)
                return
            case wire.ChannelRequest():
                if side == USER:
                    programs.user_request(channel, message, out, now)
                else:
                    programs.target_request(channel, message, out)
            case wire.ChannelSuccess() | wire.ChannelFailure():
                programs.reply(channel, side, isinstance(message, wire.ChannelSuccess), out, now)
        self._balance(channel, out)

    def _ignore(self, side: Side, payload: bytes, out: list[Action]) -> None:
        """A message goes no further; the user's are on the tape all the same."""
        if side == USER:
            out.append(Ignored(None, wire.frame(payload)))

    def _balance(self, channel: Channel, out: list[Action]) -> None:
        if not channel.over:
            self._programs.weigh(channel)
            channel.down.settle(out)
            channel.up.settle(out)

    def _adjust(self, side: Side, channel: Channel, size: int, out: list[Action]) -> None:
        lane = channel.lane_to(side)
        if lane.receiver + size > wire.WINDOW_LIMIT:
            raise ERRORS[side]("a window of more than 2^32-1 bytes")
        lane.granted(size, out)

    def _check_window(self, side: Side, channel: Channel, size: int) -> None:
        lane = channel.lane_to(TARGET if side == USER else USER)
        if size > lane.packet:
            raise ERRORS[side](f"{size} bytes of data in one message; the channel takes {lane.packet}")
        lane.sender -= size
        if lane.sender < -(lane.high // GRACE_PARTS):
            raise ERRORS[side]("more data than the channel's window allows")

    # -- opening --------------------------------------------------------------------------------------

    def _open(self, side: Side, asked: wire.ChannelOpen, out: list[Action]) -> None:
        old = self._by[side].get(asked.sender)
        if old is not None:
            place = (side, asked.sender)
            done = old.states[side] == "closed" and old.lane_to(side).closed and not old.lane_to(side).queue
            if not done or place in self._reopen:
                raise ERRORS[side](f"channel {asked.sender} is open already")
            self._reopen[place] = asked
            return
        asked = self._guests.shortened(asked) if side == USER else asked
        full = len(self._channels) >= self._limits.channels
        code, text = unwanted(side, asked, self._requests, self._programs, self._globals, full)
        if code:
            self._ignore(side, asked.encode(), out)
            kind = shown(asked.kind)
            self._remarks.add(out, side, "ssh-refused", f"channel of type {kind}: {text}")
            out.append(to_side(side, wire.OpenFailure(asked.sender, code, gate_text(text)).encode(), by_gate=True))
            return
        if not asked.packet:
            raise ERRORS[side]("a channel that takes packets of 0 bytes")
        channel = Channel(next(self._flows), asked.kind, side, self._masked)
        channel.number(side, asked.sender)
        channel.lane_to(side).open(asked.window, asked.packet)
        self._by[side][asked.sender] = channel
        self._channels[channel.flow] = channel
        other: Side = TARGET if side == USER else USER
        if asked.kind in ("session", "x11", "auth-agent@openssh.com"):
            if asked.kind == "x11":
                channel.permit = self._programs.x11
            elif asked.kind == "auth-agent@openssh.com":
                channel.permit = self._programs.agent
            self._answered_by(channel, channel.permit)
            out.append(to_side(other, asked.encode()))
            return
        key = self._next_key()
        self._opening[key] = (channel, asked)
        out.append(Decide(key, self._requests.opens(channel.flow, asked, side == USER, ERRORS[side])))

    def _answered_by(self, channel: Channel, permit: Permit | None) -> None:
        channel.answer = permit
        if permit is not None:
            channel.down.answers(permit)

    def _offered(self, side: Side, recipient: int, number: int) -> Channel:
        """Return the channel whose opening a side answers."""
        channel = self._by[TARGET if side == USER else USER].get(recipient)
        undecided = channel is not None and any(each[0] is channel for each in self._opening.values())
        state = None if channel is None or undecided else NEXT.get((channel.states[side], number))
        if channel is None or state is None:
            raise ERRORS[side](f"an answer to a channel open that was not sent: {recipient}")
        channel.states[side] = state
        return channel

    def _confirm(self, side: Side, message: wire.OpenConfirmation, payload: bytes, out: list[Action]) -> None:
        channel = self._offered(side, message.recipient, payload[0])
        opener: Side = channel.opener
        if not message.packet:
            raise ERRORS[side]("a channel that takes packets of 0 bytes")
        channel.number(side, message.sender)
        channel.lane_to(side).open(message.window, message.packet)
        channel.states[opener] = "open"
        place = (side, message.sender)
        old = self._by[side].get(message.sender)
        if old is not None:
            if old.states[side] != "closed" or not old.lane_to(side).closed or place in self._confirmed:
                raise ERRORS[side](f"channel {message.sender} is open already")
            self._confirmed[place] = channel
            channel.lane_to(opener).paused = True
        else:
            self._by[side][message.sender] = channel
        lane = channel.lane_to(opener)
        if channel.permit is not None and not channel.permit.spent and opener == TARGET:
            lane.push(Parcel(Up(channel.permit)), out)
        guest = self._guests.confirmed(channel.ids[USER], message) if opener == USER else None
        if guest is None:
            lane.push(Parcel(to_side(opener, payload)), out)
        else:
            more, self._late = guest
            channel.up.lent(WINDOW_BYTES, more, out)

    def _fail(self, side: Side, message: wire.OpenFailure, payload: bytes, out: list[Action]) -> None:
        channel = self._offered(side, message.recipient, payload[0])
        guest = self._guests.failed(channel.ids[USER], message.text) if channel.opener == USER else None
        out.extend(to_side(channel.opener, each, by_gate=guest is not None) for each in guest or [payload])
        if channel.permit is not None:
            details = {"flow": channel.flow}
            result = Result("failed", error={"message": message.text}, details=details)
            out.append(Record(channel.permit, result))
        self._forget(channel, out)

    def _forget(self, channel: Channel, out: list[Action]) -> None:
        """A channel is over, or was never opened."""
        out.append(Forget(channel.flow))
        self._masked.unsettled.pop(channel.flow, None)
        del self._channels[channel.flow]
        for side in (USER, TARGET):
            if self._by[side].get(channel.ids[side]) is channel:
                self._release(side, channel.ids[side], out)

    def _release(self, side: Side, number: int, out: list[Action]) -> None:
        """Nothing that comes for this number belongs to the old channel any more."""
        del self._by[side][number]
        place = (side, number)
        channel = self._confirmed.pop(place, None)
        if channel is not None:
            self._by[side][number] = channel
            lane = channel.lane_to(channel.opener)
            lane.paused = False
            lane.drain(out)
        asked = self._reopen.pop(place, None)
        if asked is not None:
            self._open(side, asked, out)

    # -- closing --------------------------------------------------------------------------------------

    def _close(self, side: Side, channel: Channel, out: list[Action], now: float) -> None:
        other: Side = TARGET if side == USER else USER
        channel.up.clear(out)
        self._programs.withdraw(channel, out)
        if side == USER:
            # Nobody listens any more: what waits for the user is dropped.
            channel.down.clear(out)
            channel.down.ended = True
            if channel.up.gone:
                self._ignore(side, wire.Close(channel.ids[TARGET]).encode(), out)
            parcels.close_now(channel, TARGET, out)
            if channel.over:
                parcels.close_now(channel, USER, out)
        else:
            channel.up.ended = True
            self._programs.flush(channel, out)
            for item in channel.replies[USER].abandon():
                channel.down.push(item, out)
            channel.down.push(parcels.close(channel, USER), out)
        if channel.states[other] == "closed":
            parcels.close_now(channel, USER, out)
            unanswered(channel, out)
            record(channel, channel.tag, out, now)
            self._forget(channel, out)
        elif self._by[other].get(channel.ids[other]) is channel:
            self._release(other, channel.ids[other], out)

    # -- decisions ------------------------------------------------------------------------------------

    def held(self, key: int, text: str, now: float) -> list[Action]:
        """A command waits for a human; text is one line that says so."""
        out = self.settle()
        try:
            if not self._over:
                self._programs.held(key, text, out, now)
        except PeerError as error:
            self._end(error, out)
        return out

    def allowed(self, key: int, permit: Permit, now: float) -> list[Action]:
        """A command may pass."""
        self._masked.any = self._masked.any or bool(permit.masks)
        return self._decided(key, permit, now)

    def refused(self, key: int, refused: Refused, now: float) -> list[Action]:
        """A command may not pass: the user is told."""
        return self._decided(key, refused, now)

    def _decided(self, key: int, verdict: Permit | Refused, now: float) -> list[Action]:
        if self._over:
            return []
        out = self.settle()
        try:
            if key in self._opening:
                self._opened(key, verdict, out)
            elif self._globals.owns(key):
                if isinstance(verdict, Permit):
                    self._globals.allowed(key, verdict, out)
                else:
                    self._globals.refused(key, out)
            else:
                decide = self._programs.allowed if isinstance(verdict, Permit) else self._programs.refused
                channel = decide(key, verdict, out, now)  # type: ignore[arg-type]  # the two go by the verdict's type
                if channel is not None:
                    self._balance(channel, out)
        except PeerError as error:  # what had waited for the decision broke the protocol
            self._end(error, out)
        return out

    def _opened(self, key: int, verdict: Permit | Refused, out: list[Action]) -> None:
        channel, asked = self._opening.pop(key)
        if isinstance(verdict, Refused):
            text = refusal_text(verdict)
            failure = wire.OpenFailure(asked.sender, wire.ADMINISTRATIVELY_PROHIBITED, text)
            out.append(to_side(channel.opener, failure.encode(), by_gate=True))
            self._forget(channel, out)
            return
        channel.permit = verdict
        self._answered_by(channel, verdict)
        if channel.opener == USER:
            out.append(Up(verdict))
        else:  # for the user; the permit is spent when the user accepts
            out.append(Down(verdict, Frame(wire.frame(asked.encode()))))

    # -- beside the messages --------------------------------------------------------------------------

    def settle(self) -> list[Action]:
        """Go on where masks had a say; call it after every list was carried out, until it gives nothing."""
        out: list[Action] = []
        if self._masked.unsettled and not self._over:
            lanes = list(self._masked.unsettled.values())
            self._masked.unsettled.clear()
            for lane in lanes:
                lane.still = False
                lane.drain(out)
                lane.settle(out)
        return out

    def withheld(self, chunk: Chunk) -> None:
        """A mask keeps all of a chunk for now."""
        if isinstance(chunk.rewrap, Rewrap):
            chunk.rewrap.withheld()

    def tick(self, flow: int, now: float) -> list[Action]:
        """The time of a channel's last Alarm has come."""
        out = self.settle()
        channel = self._channels.get(flow)
        try:
            if channel is not None and not self._over:
                self._programs.tick(channel, out, now)
                self._balance(channel, out)
        except PeerError as error:
            self._end(error, out)
        return out

    def flush(self, flow: int) -> list[Action]:
        """A terminal is silent: let go of what its masks hold back."""
        out = self.settle()
        channel = self._channels.get(flow)
        if channel is not None and not self._over:
            self._programs.flush(channel, out)
        return out

    def gone(self, now: float) -> list[Action]:
        """Either connection has ended: how everything ended that was open."""
        self._over = True
        out: list[Action] = [Withdraw(key) for key in self._opening]
        self._opening.clear()
        self._globals.withdraw_all(out)
        for payload in self._guests.late():
            self._ignore(USER, payload, out)
        for (side, _), asked in self._reopen.items():
            self._ignore(side, asked.encode(), out)
        self._reopen.clear()
        for channel in list(self._channels.values()):
            channel.up.clear(out)
            self._programs.withdraw(channel, out)
            unanswered(channel, out)
            if channel.down.masked and not channel.down.ended:
                for stream in ("out", "err") if channel.err else ("out",):
                    rewrap = Rewrap(channel.down, stream, 0)
                    chunk = Chunk(channel.flow, stream, b"", b"", rewrap, flush=True)
                    out.append(Down(channel.answer, chunk))
            record(channel, channel.tag, out, now)
        self._channels.clear()
        return out

    def _end(self, error: PeerError, out: list[Action]) -> None:
        self._over = True
        side = TARGET if isinstance(error, TargetPeerError) else USER
        out.append(Disconnect(wire.PROTOCOL_ERROR, str(error), NAMES[side]))
