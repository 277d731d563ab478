"""The user's side while there is no target: the session is held for a human, or the user is turned away.

A client shows what a program prints, and little else: the text of a refused channel only from LogLevel INFO on. So the
lobby accepts sessions itself, and what it has to say comes on the standard error of whatever is started in them: that
the connection is held, or why there is none (then exit status 255, as ssh has it for errors of its own). Other channels
are refused with the text.

If the connection is allowed after all, what the user has said is said again to the conversation (kept), which takes
the sessions over as guests: they have numbers of the lobby's, and the numbers that the target gives them are put in
their place on the way up. The target is told a window that is shorter by what the lobby has said; the user's window
grows from the lobby's to the target's.

Left out: data of a session before its program runs, but for Ctrl-C on a terminal, which takes back what is held.

Specification: RFC 4254 5, 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.ssh import wire
from protocols.ssh.wire_bodies import Number
from proxy.core.errors import UserPeerError
from proxy.terminal.wording import gate_text

FIRST_NUMBER: Final = 0x67630000  # "gc": far from what a target counts up to, or draws at random among few
SEATS_LIMIT: Final = 64  # sessions of one connection that wait: sshd's MaxSessions is 10
KEPT_LIMIT: Final = 1024  # messages that wait: 128 variables (channels.ENV_LIMIT) for each of several sessions
WINDOW_BYTES: Final = 1024  # of what is typed meanwhile: a line, and Ctrl-C
PACKET_BYTES: Final = 16 * 1024  # the smallest that servers in use take is twice that
FAILED_STATUS: Final = 255
INTERRUPT: Final = b"\x03"
_PROGRAMS: Final = frozenset({"exec", "shell", "subsystem"})
_ANSWERED: Final = frozenset({"pty-req", "env"}) | _PROGRAMS


@dataclass(slots=True)
class Seat:
    """A session that the lobby has accepted. number: the lobby's; theirs: the user's; said_bytes: of its window."""

    number: int
    theirs: int
    window: int
    pty: bool = False
    started: bool = False
    closed: bool = False
    said_bytes: int = 0


class Lobby:
    """See the module. Methods return framed messages for the user."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.seats: dict[int, Seat] = {}
        self.interrupted = False
        self._notice = ""
        self._refusal: tuple[int, str] | None = None
        self._told = False

    @property
    def told(self) -> bool:
        """Whether anything has been answered with why there is no target."""
        return self._told

    def held(self, text: str) -> list[bytes]:
        """The connection waits for a human; text is one line that says so."""
        self._notice = gate_text(text)
        return self._notify()

    def refuse(self, code: int, text: str) -> list[bytes]:
        """There will be no target: answer what was asked, and all that comes. code: RFC 4254 5.1's."""
        self._refusal = (code, gate_text(text))
        kept, self.kept = self.kept, []
        return [each for payload in kept for each in self._answer(wire.decode(payload, UserPeerError))]

    def from_user(self, payload: bytes) -> list[bytes]:
        """Take a message of the user. Raises UserPeerError."""
        message = wire.decode(payload, UserPeerError)
        out = self._note(message)
        if self._refusal is not None:
            return out + self._answer(message)
        if len(self.kept) >= KEPT_LIMIT:
            raise UserPeerError(f"more than {KEPT_LIMIT} messages wait for a decision", str(wire.PROTOCOL_ERROR))
        self.kept.append(payload)
        return out + self._notify()

    def _note(self, message: wire.Message) -> list[bytes]:
        """What a message means to the lobby, decided or not."""
        match message:
            case wire.ChannelOpen(kind="session"):
                if len(self.seats) >= SEATS_LIMIT:
                    raise UserPeerError("too many sessions wait for a decision", str(wire.PROTOCOL_ERROR))
                seat = Seat(FIRST_NUMBER + len(self.seats), message.sender, message.window)
                self.seats[seat.number] = seat
                confirmed = wire.OpenConfirmation(seat.theirs, seat.number, WINDOW_BYTES, PACKET_BYTES)
                return [wire.frame(confirmed.encode())]
            case wire.ChannelRequest():
                seat = self._seat(message.recipient)
                seat.pty = seat.pty or message.name == "pty-req"
                seat.started = seat.started or message.name in _PROGRAMS
            case wire.Data():
                seat = self._seat(message.recipient)
                self.interrupted = self.interrupted or (seat.pty and INTERRUPT in message.data)
            case wire.WindowAdjust():
                seat = self._seat(message.recipient)
                seat.window += message.size
        return []

    def _seat(self, number: int) -> Seat:
        seat = self.seats.get(number)
        if seat is None:
            raise UserPeerError("a message on a channel that is not open", str(wire.PROTOCOL_ERROR))
        return seat

    def _notify(self) -> list[bytes]:
        out: list[bytes] = []
        for seat in self.seats.values():
            if self._notice and seat.started and not seat.said_bytes:
                out += say(seat, self._notice)
        return out

    def _answer(self, message: wire.Message) -> list[bytes]:
        """Answer a message where there is no target."""
        assert self._refusal is not None
        code, text = self._refusal
        match message:
            case wire.ChannelOpen() if message.kind != "session":
                self._told = True
                return [wire.frame(wire.OpenFailure(message.sender, code, text).encode())]
            case wire.GlobalRequest(want_reply=True):
                return [wire.frame(wire.RequestFailure().encode())]
            case wire.ChannelRequest():
                return self._reply(self.seats[message.recipient], message, text)
            case wire.Close():
                return self._end(self._seat(message.recipient), [])
        return []

    def _reply(self, seat: Seat, request: wire.ChannelRequest, text: str) -> list[bytes]:
        if seat.closed:
            return []
        done = wire.ChannelSuccess if request.name in _ANSWERED else wire.ChannelFailure
        out = [wire.frame(done(seat.theirs).encode())] if request.want_reply else []
        if request.name not in _PROGRAMS:
            return out
        status = wire.ChannelRequest(seat.theirs, "exit-status", False, Number(FAILED_STATUS).encode())
        return self._end(seat, [*out, *say(seat, text), wire.frame(status.encode())])

    def _end(self, seat: Seat, out: list[bytes]) -> list[bytes]:
        if seat.closed:
            return out
        seat.closed = self._told = True
        return [*out, wire.frame(wire.Eof(seat.theirs).encode()), wire.frame(wire.Close(seat.theirs).encode())]


def say(seat: Seat, text: str) -> list[bytes]:
    """A line on a session's standard error, or on its screen, as far as its window takes it."""
    line = text.encode("utf-8", "replace") + (b"\r\n" if seat.pty else b"\n")
    data = line[: max(0, seat.window - seat.said_bytes)]
    if not data:
        return []
    seat.said_bytes += len(data)
    code = None if seat.pty else wire.STDERR
    return [wire.data_frames(seat.theirs, data, PACKET_BYTES, code)]


@dataclass(slots=True)
class _Guest:
    seat: Seat
    number: int | None = None  # the target's
    gone: bool = False
    late: list[bytes] = field(default_factory=list)


class Guests:
    """The sessions that a conversation has taken over from the lobby."""

    def __init__(self, seats: Sequence[Seat] = ()) -> None:
        self._by_number = {seat.number: _Guest(seat) for seat in seats}
        self._by_user = {guest.seat.theirs: guest for guest in self._by_number.values()}

    def __bool__(self) -> bool:
        return bool(self._by_number)

    def shortened(self, asked: wire.ChannelOpen) -> wire.ChannelOpen:
        """What the target is told of the user's window: without what the lobby has used of it."""
        guest = self._by_user.get(asked.sender)
        if guest is None or guest.number is not None:
            return asked
        window = max(0, asked.window - guest.seat.said_bytes)
        return wire.ChannelOpen(asked.kind, asked.sender, window, asked.packet, asked.body)

    def take(self, payload: bytes) -> bytes | None:
        """Put the target's number in; None: the target has not given it yet, or the session is gone."""
        if not wire.CHANNEL_WINDOW_ADJUST <= payload[0] <= wire.CHANNEL_FAILURE:
            return payload
        guest = self._by_number.get(int.from_bytes(payload[1:5], "big"))
        if guest is None:
            return payload
        if guest.number is None:
            if not guest.gone:
                guest.late.append(payload)
            return None
        if payload[0] == wire.CHANNEL_CLOSE:
            del self._by_number[guest.seat.number]
        return renumbered(payload, guest.number)

    def confirmed(self, user: int, message: wire.OpenConfirmation) -> tuple[int, list[bytes]] | None:
        """The target has accepted a guest: how much the user may send more, and what had waited for the number."""
        guest = self._by_user.pop(user, None)
        if guest is None:
            return None
        guest.number = message.sender
        late, guest.late = guest.late, []
        return max(0, message.window - WINDOW_BYTES), [each for each in map(self.take, late) if each is not None]

    def late(self) -> list[bytes]:
        """What still waits for a number."""
        return [payload for guest in self._by_number.values() for payload in guest.late]

    def failed(self, user: int, text: str) -> list[bytes] | None:
        """The target refuses a guest, who believes that it is in: what the user is told."""
        guest = self._by_user.pop(user, None)
        if guest is None:
            return None
        guest.gone, guest.late = True, []
        status = wire.ChannelRequest(user, "exit-status", False, Number(FAILED_STATUS).encode())
        said = wire.unframe(b"".join(say(guest.seat, gate_text(text))), UserPeerError)
        return [*said, status.encode(), wire.Eof(user).encode(), wire.Close(user).encode()]


def renumbered(payload: bytes, number: int) -> bytes:
    """The same message to another channel."""
    return payload[:1] + number.to_bytes(4, "big") + payload[5:]
