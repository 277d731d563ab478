"""What happens on an open channel: its requests, its program, its data, its Content, and how it ends.

The user's messages go in their order. While an exec, a shell, a subsystem or a command within (a Content's Ask) is
undecided, the channel is blocked: what the user sends waits, bounded by the window and by a number of messages; a CLOSE
does not wait, and neither does Ctrl-C on a terminal or a signal: they take back what is held for a human. What the
target sends is never blocked.

A refusal is native: the request succeeds, the reason comes on stderr (on a terminal: on the screen), exit status 126
(130 where the user took it back, as shells have it after an interrupt), EOF, CLOSE. The target's side is closed as
well, and what it still sends is swallowed.

A command within asks in its place among what the user sent (its Decide stands in the lane towards the target), so that
the tape has the user's bytes in their order.

Specification: RFC 4254 5, 6; ssh note 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, assert_never

from protocols.ssh import parcels, wire
from protocols.ssh.actions import Action, Alarm, Decide, Ignored, Record, Up, Withdraw
from protocols.ssh.answers import Answers, ignored
from protocols.ssh.channels import TARGET, USER, Channel, Limits, Remarks, Side, Waiting, shown
from protocols.ssh.contents import ContentFactory as ContentFactory
from protocols.ssh.lanes import Item, Parcel, Piece, Stream
from protocols.ssh.requests import (
    AGENT,
    PLUMBING,
    PLUMBING_ANYWHERE,
    PROGRAMS,
    TARGET_REQUESTS,
    Asked,
    Requests,
    Started,
    taken_back,
)
from protocols.ssh.results import record
from protocols.ssh.wire_bodies import REQUESTS, ExitSignal, Number, Word
from proxy.core.errors import Refused, TargetPeerError, UserPeerError
from proxy.core.events import Command, Result
from proxy.core.session import Permit
from proxy.terminal.content import (
    Ask,
    Broken,
    Done,
    Dropped,
    Step,
    ToTarget,
    ToUser,
    Wake,
    held_bytes,
)
from proxy.terminal.wording import gate_text, refusal_text

HELD_INPUT_BYTES: Final = 1024  # of a terminal whose command is held: a line, and Ctrl-C
DENIED_STATUS: Final = 126  # a shell's status for what it may not run: POSIX XCU 2.8.2
INTERRUPTED_STATUS: Final = 130  # 128 + SIGINT
BROKEN_STATUS: Final = 1
INTERRUPT: Final = b"\x03"
SIGNALS: Final = frozenset({"INT", "QUIT", "TERM", "HUP", "KILL"})  # a held command is taken back by any of these


class Programs(Answers):
    """The open channels' business; Conversation knows which channel a message belongs to."""

    def __init__(
        self,
        requests: Requests,
        contents: ContentFactory,
        limits: Limits,
        remarks: Remarks,
        next_key: Callable[[], int],
    ) -> None:
        super().__init__(requests, limits, remarks)
        self._contents = contents
        self._next_key = next_key
        self.asked: dict[int, Asked] = {}
        self.agent: Permit | None = None  # under which the target may use the user's agent
        self.x11: Permit | None = None

    # -- from the user --------------------------------------------------------------------------------

    def user_data(self, channel: Channel, data: bytes, out: list[Action], now: float) -> None:
        """Data of the user, of which the window was checked."""
        if channel.over:
            out.append(Ignored(channel.flow, data))
        if channel.over or not data:
            return
        if not channel.asks and not channel.waiting:
            self._feed(channel, data, out, now)
            return
        if channel.pty and INTERRUPT in data and self._take_back(channel, out):
            # As a terminal does on an interrupt: what was typed ahead of it is gone.
            end = data.rindex(INTERRUPT) + 1
            out += [Ignored(channel.flow, bytes(item.data)) for item in channel.waiting if item.data is not None]
            out.append(Ignored(channel.flow, data[:end]))
            data = data[end:]
            channel.waiting = type(channel.waiting)(item for item in channel.waiting if item.data is None)
            channel.up.waiting = 0
        if data:
            channel.up.waiting += len(data)
            if channel.waiting and (last := channel.waiting[-1].data) is not None:
                last += data
            else:
                self._wait(channel, Waiting(data=bytearray(data)))

    def user_eof(self, channel: Channel, out: list[Action], now: float) -> None:
        """The user sends no more."""
        if channel.over:
            out.append(ignored(wire.Eof(channel.ids[TARGET])))
        elif channel.asks or channel.waiting or held_bytes(channel.content):
            self._wait(channel, Waiting())
        else:
            self._end_input(channel, out, now)

    def user_request(self, channel: Channel, request: wire.ChannelRequest, out: list[Action], now: float) -> None:
        """A request of the user."""
        if channel.over:
            out.append(ignored(request))
        elif not channel.asks and not channel.waiting:
            self._request(channel, request, out)
        elif request.name == "window-change" and channel.program == "running":
            self._resize(channel, request, out)  # the program has its terminal already
        elif not (request.name == "signal" and self._signalled(channel, request, out)):
            self._wait(channel, Waiting(request=request))

    def _wait(self, channel: Channel, item: Waiting) -> None:
        if len(channel.waiting) >= self._limits.waiting:
            raise UserPeerError(f"more than {self._limits.waiting} messages of a channel wait for a decision")
        channel.waiting.append(item)

    def resume(self, channel: Channel, out: list[Action], now: float) -> None:
        """Take up what waited, as far as nothing of it has to be decided in turn."""
        while channel.waiting and not channel.asks and not channel.over:
            item = channel.waiting.popleft()
            if item.data is not None:
                channel.up.waiting -= len(item.data)
                self._feed(channel, bytes(item.data), out, now)
            elif item.request is not None:
                self._request(channel, item.request, out)
            elif item.told:
                channel.up.push(parcels.eof(channel, TARGET), out)
            elif held_bytes(channel.content):  # the target has to say something first
                channel.waiting.appendleft(item)
                return
            else:
                self._end_input(channel, out, now)

    def _feed(self, channel: Channel, data: bytes, out: list[Action], now: float) -> None:
        if channel.permit is None:
            if channel.program != "failed":
                raise UserPeerError("data on a channel before anything was started on it")
            out.append(Ignored(channel.flow, data))
        elif channel.content is not None:
            self.carry(channel, channel.content.from_user(data, now), out, now)
        else:
            channel.up.push(Piece(data, channel.permit), out)

    def _end_input(self, channel: Channel, out: list[Action], now: float) -> None:
        if channel.content is not None:
            self.carry(channel, channel.content.user_eof(now), out, now)
        if channel.asks:
            channel.waiting.appendleft(Waiting(told=True))
        else:
            channel.up.push(parcels.eof(channel, TARGET), out)

    def _take_back(self, channel: Channel, out: list[Action]) -> bool:
        """Withdraw what is held for a human; returns whether anything was."""
        found = False
        for key in sorted(channel.asks):
            asked = self.asked[key]
            if asked.held:
                found = True
                if not asked.withdrawn:
                    asked.withdrawn = True
                    out.append(Withdraw(key))
        return found

    def _signalled(self, channel: Channel, request: wire.ChannelRequest, out: list[Action]) -> bool:
        return Word.read(request.body, UserPeerError).text in SIGNALS and self._take_back(channel, out)

    # -- the user's requests --------------------------------------------------------------------------

    def _request(self, channel: Channel, request: wire.ChannelRequest, out: list[Action]) -> None:
        name = request.name
        if name in REQUESTS:
            REQUESTS[name].read(request.body, UserPeerError)  # whatever passes is well-formed
        if name in PLUMBING_ANYWHERE or (channel.kind == "session" and name in PLUMBING):
            self._pass(channel, USER, request, out)
        elif channel.kind != "session":
            self._unknown(channel, USER, request, out)
        elif name in PROGRAMS:
            self._start(channel, request, out)
        elif name == "pty-req":
            self._pty(channel, request, out)
        elif name == "window-change":
            self._resize(channel, request, out)
        elif name == "env":
            self._env(channel, request, out)
        elif name in (AGENT, "x11-req"):
            self._lend(channel, request, out)
        else:
            self._unknown(channel, USER, request, out)

    def _start(self, channel: Channel, request: wire.ChannelRequest, out: list[Action]) -> None:
        if channel.program in ("asked", "running"):
            self._remarks.add(out, USER, "ssh-refused", f"a second {request.name} on one channel")
            self._keep(channel, request, False, out)
            return
        started = self._requests.start(channel, request, UserPeerError)
        if isinstance(started, Refused):
            out.append(ignored(request))
            self._remarks.add(out, USER, "ssh-refused", f"{request.name}: {started.deny.reason}")
            self._deny(channel, request, started, out)
            return
        if "original_command" in started.command.facts:  # a certificate's command takes its place
            out.append(ignored(request))
        channel.program = "asked"
        out.append(self._decide(Asked(channel, request=request, started=started), started.command))

    def _lend(self, channel: Channel, request: wire.ChannelRequest, out: list[Action]) -> None:
        """The user offers its agent or its display to the target."""
        verb = "auth-agent" if request.name == AGENT else "x11"
        if not self._requests.permits(verb):
            self._remarks.add(out, USER, "ssh-refused", f"{request.name}: the login does not permit it")
            self._keep(channel, request, False, out)
            return
        if verb == "auth-agent":
            command = self._requests.agent(channel.flow, request)
        else:
            command = self._requests.x11(channel.flow, request, UserPeerError)
        out.append(self._decide(Asked(channel, request=request), command))

    def _decide(self, asked: Asked, command: Command) -> Decide:
        key = self._next_key()
        self.asked[key] = asked
        asked.channel.asks.add(key)
        return Decide(key, command)

    # -- from the target ------------------------------------------------------------------------------

    def target_data(self, channel: Channel, stream: Stream, data: bytes, out: list[Action], now: float) -> None:
        """Data of the target, of which the window was checked."""
        if channel.over or not data:
            return
        if stream == "err":
            channel.err = True
        if channel.content is not None:
            self.carry(channel, channel.content.from_target(stream, data, now), out, now)
            self.resume(channel, out, now)
        elif channel.answer is not None:
            channel.down.push(Piece(data, channel.answer, stream), out)
        else:
            self._remarks.add(out, TARGET, "ssh-unknown", "data on a channel before anything was started on it")

    def target_eof(self, channel: Channel, out: list[Action], now: float) -> None:
        """The target sends no more data."""
        if channel.over or channel.down.ended:
            return
        if channel.content is not None:
            self.carry(channel, channel.content.target_eof(now), out, now)
        self.flush(channel, out)
        channel.down.push(parcels.eof(channel, USER), out)

    def target_request(self, channel: Channel, request: wire.ChannelRequest, out: list[Action]) -> None:
        """A request of the target."""
        if channel.over:
            return
        name = request.name
        if name not in (TARGET_REQUESTS if channel.kind == "session" else PLUMBING_ANYWHERE):
            self._unknown(channel, TARGET, request, out)
            return
        found = REQUESTS[name].read(request.body, TargetPeerError)
        if isinstance(found, ExitSignal):
            channel.signal = (found.name, found.text)
        elif isinstance(found, Number):
            channel.exit = found.value
        self._pass(channel, TARGET, request, out)

    def reply(self, channel: Channel, side: Side, success: bool, out: list[Action], now: float) -> None:
        """A reply of one side to a request of the other."""
        asker: Side = TARGET if side == USER else USER
        what, ready = channel.replies[asker].arrived()
        if what is None:
            self._remarks.add(out, side, "ssh-unknown", "a reply to no request")
            if side == USER:
                number = channel.ids[TARGET]
                out.append(ignored(wire.ChannelSuccess(number) if success else wire.ChannelFailure(number)))
            return
        if asker == USER and what in (AGENT, "x11-req"):
            self._lent(channel, success, out)
        if asker == USER and not success:
            if what == "pty-req":
                channel.pty = False
            elif what in PROGRAMS and not channel.over:
                self._failed(channel, out, now)
        channel.lane_to(asker).push(parcels.reply(channel, asker, success, by_gate=False), out)
        for item in ready:
            channel.lane_to(asker).push(item, out)

    def _lent(self, channel: Channel, success: bool, out: list[Action]) -> None:
        """The target takes what the user lends, or not."""
        permit = channel.lent.popleft()
        if not success:
            self.agent = None if self.agent is permit else self.agent
            self.x11 = None if self.x11 is permit else self.x11
        out.append(Record(permit, Result("ok" if success else "failed", details={"flow": channel.flow})))

    def _failed(self, channel: Channel, out: list[Action], now: float) -> None:
        """The target could not start the program; another one may be asked for (RFC 4254 6.5)."""
        record(channel, "failed", out, now)
        channel.program = "failed"
        channel.permit = channel.answer = channel.content = None

    # -- decisions ------------------------------------------------------------------------------------

    def held(self, key: int, text: str, out: list[Action], now: float) -> None:
        """It waits for a human: say so where the user sees it."""
        asked = self.asked.get(key)
        if asked is None:
            return
        asked.held = True
        if asked.ask is not None and asked.channel.content is not None:
            self.carry(asked.channel, asked.channel.content.waiting(asked.ask, gate_text(text)), out, now)
        elif asked.ask is None:
            asked.channel.down.push(parcels.said(asked.channel, gate_text(text)), out)
            if asked.channel.pty:
                # sshd opens its window once something runs; until then its user could not even send Ctrl-C.
                asked.channel.up.lend(HELD_INPUT_BYTES, out)

    def allowed(self, key: int, permit: Permit, out: list[Action], now: float) -> Channel | None:
        """It may go to the target; returns its channel."""
        asked = self.asked.get(key)
        if asked is None:
            return None
        if asked.withdrawn:
            return self.refused(key, taken_back(permit.rule), out, now)
        del self.asked[key]
        channel = asked.channel
        channel.asks.discard(key)
        if asked.ask is not None:
            self._go_on(channel, asked, permit, out, now)
        else:
            assert asked.request is not None
            channel.up.push(Parcel(Up(permit)), out)
            self._expect(channel, USER, asked.request)
            if asked.started is not None:
                self._run(channel, asked.started, permit)
            else:
                self._lend_by(channel, asked.request, permit)
        self.resume(channel, out, now)
        return channel

    def _lend_by(self, channel: Channel, request: wire.ChannelRequest, permit: Permit) -> None:
        if request.name == AGENT:
            self.agent = permit
        else:
            self.x11 = permit
        if request.want_reply:
            channel.lent.append(permit)

    def _run(self, channel: Channel, started: Started, permit: Permit) -> None:
        channel.program = "running"
        channel.permit = channel.answer = permit
        channel.down.answers(permit)
        settings = self._requests.settings(channel)
        # As it was decided: a terminal that the target has refused by now is one that nobody has looked at otherwise.
        pty = started.command.facts["pty"] is True
        channel.content = self._contents(started.start, started.name, pty, settings)
        # Downloads are refused under masks (proxy/masking/guard.py); an upload's answers would wait in one for ever.
        channel.down.packets = started.command.kind == "transfer" and channel.content is None

    def _go_on(self, channel: Channel, asked: Asked, permit: Permit, out: list[Action], now: float) -> None:
        assert asked.ask is not None
        data = asked.ask.data
        channel.up.push(Parcel(Up(permit), len(data) if asked.inline else 0), out)
        if data and not asked.inline:
            channel.up.push(Piece(data, permit, taped=False), out)  # as it was when it was asked for
        channel.answer = permit
        channel.down.answers(permit)
        if channel.content is not None:
            self.carry(channel, channel.content.allowed(asked.ask, permit, now), out, now)

    def refused(self, key: int, refused: Refused, out: list[Action], now: float) -> Channel | None:
        """It may not; returns its channel."""
        asked = self.asked.pop(key, None)
        if asked is None:
            return None
        channel = asked.channel
        channel.asks.discard(key)
        if asked.ask is not None:
            if channel.content is not None:
                self.carry(channel, channel.content.refused(asked.ask, refused, now), out, now)
        elif asked.request is not None and asked.started is not None:
            self._deny(channel, asked.request, refused, out)
        elif asked.request is not None:
            self._answer(channel, USER, asked.request, False, out)
        self.resume(channel, out, now)
        return channel

    # -- contents -------------------------------------------------------------------------------------

    def carry(self, channel: Channel, steps: Iterable[Step], out: list[Action], now: float) -> None:
        """Carry out what a Content wants done."""
        for step in steps:
            match step:
                case ToTarget():
                    piece = Piece(step.data, channel.permit, by_gate=step.by_gate, taped=step.taped)
                    if step.data:
                        channel.up.push(piece, out)
                case Dropped():
                    if step.data:
                        channel.up.push(Parcel(Ignored(channel.flow, step.data)), out)
                case ToUser():
                    if step.stream == "err":
                        channel.err = True
                    piece = Piece(step.data, channel.answer, step.stream, taped=step.taped, masked=step.masked)
                    if step.data and not channel.over:
                        channel.down.push(piece, out)
                case Ask():
                    self._ask(channel, step, out)
                case Done():
                    out.append(Record(step.permit, step.result))
                case Wake():
                    out.append(Alarm(channel.flow, step.seconds))
                case Broken():
                    self._break(channel, step.text, out)
                    return
                case _:
                    assert_never(step)

    def _ask(self, channel: Channel, ask: Ask, out: list[Action]) -> None:
        # Data that may never fit the target's window at once go as input of the permit instead, in pieces.
        lane, size = channel.up, len(ask.data)
        inline = 0 < size <= min(lane.packet, wire.PIECE_BYTES, lane.high // 2)
        framed = wire.data_frames(lane.recipient, ask.data, lane.packet) if inline else b""
        command = replace(ask.command, wire=framed, flow=channel.flow, data=ask.data)
        lane.push(Parcel(self._decide(Asked(channel, ask=ask, inline=inline), command)), out)

    def weigh(self, channel: Channel) -> None:
        """Tell how much of the user's waits in a Content, and in what it has asked for: no room is granted for that."""
        asks = (self.asked[key].ask for key in channel.asks)
        channel.up.held = held_bytes(channel.content) + sum(len(ask.data) for ask in asks if ask is not None)

    def tick(self, channel: Channel, out: list[Action], now: float) -> None:
        """The time of a Content has come."""
        if channel.content is not None and not channel.over:
            self.carry(channel, channel.content.tick(now), out, now)
            self.resume(channel, out, now)

    # -- ends -----------------------------------------------------------------------------------------

    def _deny(self, channel: Channel, request: wire.ChannelRequest, refused: Refused, out: list[Action]) -> None:
        status = INTERRUPTED_STATUS if refused.withdrawn else DENIED_STATUS
        said = parcels.said(channel, refusal_text(refused))
        first = (parcels.reply(channel, USER, True),) if request.want_reply else ()
        self._end(channel, (*first, said, parcels.exit_status(channel, status)), out)

    def _break(self, channel: Channel, text: str, out: list[Action]) -> None:
        self._remarks.add(out, USER, "ssh-broken", shown(text))
        self.flush(channel, out)
        self._end(channel, (parcels.said(channel, gate_text(text)), parcels.exit_status(channel, BROKEN_STATUS)), out)
        channel.exit = BROKEN_STATUS

    def _end(self, channel: Channel, items: tuple[Item, ...], out: list[Action]) -> None:
        """End a channel on both sides, with a word to the user."""
        channel.up.clear(out)
        self.withdraw(channel, out)
        channel.over = True
        self._say(channel, USER, (*items, parcels.eof(channel, USER), parcels.close(channel, USER)), out)
        channel.up.push(parcels.close(channel, TARGET), out)

    def withdraw(self, channel: Channel, out: list[Action]) -> None:
        """Forget what is undecided, and what waits for it."""
        for key in sorted(channel.asks):
            del self.asked[key]
            out.append(Withdraw(key))
        channel.asks.clear()
        for item in channel.waiting:
            if item.data is not None:
                out.append(Ignored(channel.flow, bytes(item.data)))
            else:
                out.append(ignored(item.request or wire.Eof(channel.ids[TARGET])))
        channel.waiting.clear()
        channel.up.waiting = channel.up.held = 0

    def flush(self, channel: Channel, out: list[Action]) -> None:
        """Let go of what the masks of a channel hold back."""
        if channel.down.masked and channel.answer is not None:
            channel.down.push(Piece(b"", channel.answer, "out", flush=True), out)
            if channel.err:
                channel.down.push(Piece(b"", channel.answer, "err", flush=True), out)
