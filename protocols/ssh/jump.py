"""``ssh -J gateway target``: the gateway as a jump host that ends the inner connection too.

The outer connection opens nothing but direct-tcpip to the name of a target; each is answered by an SSH server of our
own, which shows a host certificate for that name, and is served like any connection: with its own tape, by the same
rules. The outer login vouches for it. What else the outer connection asks for is refused with a text that says how to
connect; it reaches no target, so it has no tape.

The channel is ours on this side, with a window of its own: it opens as the inner connection takes what came.
Source: RFC 4254 4, 5, 7.2; ssh note 3.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from protocols.ssh import wire
from protocols.ssh.login import UserLogin
from protocols.ssh.pipe import ChannelPipe
from protocols.ssh.relay import Leg
from protocols.ssh.wire_bodies import Tcpip
from proxy.core.errors import LoginRefused, UserPeerError
from proxy.core.gate import Gate
from proxy.core.parties import KeyLogin, Target

WINDOW_BYTES: Final = 2 * 1024 * 1024  # OpenSSH's own: 64 packets of 32 KiB (channels.h)
PACKET_BYTES: Final = 32_768
TUNNELS_LIMIT: Final = 64  # of one outer connection; ansible opens one a host and connection
QUEUE_LIMIT: Final = 4 * 1024 * 1024  # bytes for the user that wait for the outer connection
ANSWERS_LIMIT: Final = 4096  # messages that do: more than a client asks for before it looks at an answer; ours
NAME_LIMIT: Final = 64  # characters of a name that is shown back; targets' names are shorter
HOW: Final = "connect as LOGIN:TARGET, or with ssh -J to a target of the gateway"

ServeInner = Callable[[ChannelPipe, UserLogin, Target, Any], Awaitable[None]]


class JumpLeg(Leg, Protocol):
    """The outer connection."""

    def info(self, key: str) -> Any:
        """Tell "peer"."""


class _Tunnel:
    """One direct-tcpip channel: numbers, windows, and the pipe behind it."""

    def __init__(self, jump: Jump, number: int, opened: wire.ChannelOpen, peer: str) -> None:
        self._jump = jump
        self.number = number  # ours
        self.theirs = opened.sender
        self._packet = max(1, opened.packet)
        self._room = opened.window  # what the user may still be sent
        self._left = WINDOW_BYTES  # what the user may still send
        self._used = 0  # of what it has sent, what may be given back to it
        self._backlog = bytearray()
        self._over = False  # nothing is sent any more
        self.closing = False  # our CLOSE is out
        self.pipe = ChannelPipe(self._send, self._closed, self._consumed, peer)

    def take(self, data: bytes) -> None:
        """Data of the user."""
        self._left -= len(data)
        if self._left < 0 or len(data) > PACKET_BYTES:
            raise UserPeerError("data beyond the window of a channel", str(wire.PROTOCOL_ERROR))
        self.pipe.feed(data)

    def adjust(self, size: int) -> None:
        """The user takes so many bytes more."""
        self._room = min(self._room + size, wire.WINDOW_LIMIT)
        self._pump()

    def _send(self, data: bytes) -> None:
        self._backlog += data
        self._pump()

    def _pump(self) -> None:
        size = min(self._room, len(self._backlog))
        if size:
            self._room -= size
            self._jump.say(wire.data_frames(self.theirs, bytes(self._backlog[:size]), self._packet))
            del self._backlog[:size]
        if self._backlog:
            self.pipe.full()
        elif self._over:
            self._close()
        else:
            self.pipe.free()

    def _consumed(self, size: int) -> None:
        self._used += size
        if self._used >= WINDOW_BYTES // 4 and not self._over:
            self._jump.say(wire.frame(wire.WindowAdjust(self.theirs, self._used).encode()))
            self._left += self._used
            self._used = 0

    def _closed(self) -> None:
        self._over = True
        self._pump()

    def _close(self) -> None:
        if not self.closing:
            self.closing = True
            self._jump.say(wire.frame(wire.Eof(self.theirs).encode()) + wire.frame(wire.Close(self.theirs).encode()))

    def end(self) -> None:
        """The user has closed the channel: answer, and let the inner connection know."""
        self._backlog.clear()
        self._over = True
        self._close()
        self.pipe.break_off()


class Jump:
    """One outer connection."""

    def __init__(
        self, leg: JumpLeg, proof: KeyLogin, gate: Gate, log: Any, serve_inner: ServeInner, named: str = ""
    ) -> None:
        """named: what the user name gave as a target, which is none; '' where it gave nothing."""
        self._leg = leg
        missing = f'there is no target "{named[:NAME_LIMIT]}"' if named else "no target is named here"
        self._missing = f"gatecast: {missing}"
        self._proof = proof
        self._gate = gate
        self._log = log
        self._serve_inner = serve_inner
        self._tunnels: dict[int, _Tunnel] = {}
        self._next = 0
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._said = asyncio.Event()
        self._silent = False  # nothing is written any more
        self._heard = asyncio.Event()  # what was queued is written, or never will be

    async def run(self) -> None:
        """Serve the outer connection to its end, then let the inner ones end."""
        self._log.info("jump opened")
        async with asyncio.TaskGroup() as group:
            speaking = group.create_task(self._speak())
            try:
                await self._listen(group)
            except UserPeerError as error:
                self._log.warning("user broke the protocol or the connection", error=str(error))
                self._leg.disconnect(int(error.code or wire.PROTOCOL_ERROR), str(error))
            finally:
                for tunnel in self._tunnels.values():
                    tunnel.pipe.break_off()
                speaking.cancel()
            # What is left of the group are inner connections, whose users are gone: each ends by itself.
        self._log.info("jump closed")

    def say(self, frames: bytes) -> None:
        """Queue messages for the user."""
        self._queue.append(frames)
        self._queued_bytes += len(frames)
        if self._queued_bytes > QUEUE_LIMIT:
            for tunnel in self._tunnels.values():
                tunnel.pipe.full()
        self._said.set()

    async def _speak(self) -> None:
        with contextlib.suppress(UserPeerError):  # who listens sees the end too
            await self._speak_on()
        self._silent = True
        self._heard.set()

    async def _speak_on(self) -> None:
        while True:
            await self._said.wait()
            self._said.clear()
            congested = self._queued_bytes > QUEUE_LIMIT
            frames, self._queue, self._queued_bytes = b"".join(self._queue), [], 0
            await self._leg.write(frames)
            self._heard.set()
            if congested:
                for tunnel in tuple(self._tunnels.values()):
                    tunnel.adjust(0)

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        while payloads := await self._leg.read():
            for payload in payloads:
                self._take(wire.decode(payload, UserPeerError), group)
            # A user who asks and does not read the answers is not heard until he does.
            while not self._silent and (self._queued_bytes > QUEUE_LIMIT or len(self._queue) > ANSWERS_LIMIT):
                self._heard.clear()
                await self._heard.wait()

    def _take(self, message: wire.Message, group: asyncio.TaskGroup) -> None:
        match message:
            case wire.ChannelOpen():
                self._open(message, group)
            case wire.GlobalRequest(want_reply=True):
                self.say(wire.frame(wire.RequestFailure().encode()))
            case wire.ChannelRequest(want_reply=True):
                self.say(wire.frame(wire.ChannelFailure(self._tunnel(message.recipient).theirs).encode()))
            case wire.Data():
                self._tunnel(message.recipient).take(message.data)
            case wire.WindowAdjust():
                self._tunnel(message.recipient).adjust(message.size)
            case wire.Eof():
                self._tunnel(message.recipient).pipe.feed_eof()
            case wire.Close():
                self._tunnel(message.recipient).end()
                del self._tunnels[message.recipient]
            case _:
                pass  # answers to nothing we asked, and requests that want none

    def _tunnel(self, number: int) -> _Tunnel:
        tunnel = self._tunnels.get(number)
        if tunnel is None:
            raise UserPeerError("a message on a channel that is not open", str(wire.PROTOCOL_ERROR))
        return tunnel

    def _open(self, opened: wire.ChannelOpen, group: asyncio.TaskGroup) -> None:
        if opened.kind != "direct-tcpip":
            self._refuse(opened, f"{self._missing}; {HOW}")
            return
        place = Tcpip.read(opened.body, UserPeerError)
        target = self._gate.targets.find(place.host)
        if target is None or target.protocol != "ssh":
            self._log.warning("unknown target", name=place.host[:NAME_LIMIT])
            self._refuse(opened, f'gatecast has no target "{place.host[:NAME_LIMIT]}"')
        elif "permit-port-forwarding" not in self._proof.permits:
            self._refuse(opened, "gatecast: this certificate permits no forwarding")
        elif len(self._tunnels) >= TUNNELS_LIMIT:
            self._refuse(opened, "gatecast: too many connections over this one")
        else:
            number = self._next
            self._next += 1
            tunnel = _Tunnel(self, number, opened, str(self._leg.info("peer")))
            self._tunnels[number] = tunnel
            confirmed = wire.OpenConfirmation(opened.sender, number, WINDOW_BYTES, PACKET_BYTES)
            self.say(wire.frame(confirmed.encode()))
            group.create_task(self._run_inner(tunnel, target))

    def _refuse(self, opened: wire.ChannelOpen, text: str) -> None:
        failure = wire.OpenFailure(opened.sender, wire.ADMINISTRATIVELY_PROHIBITED, text)
        self.say(wire.frame(failure.encode()))

    async def _run_inner(self, tunnel: _Tunnel, target: Target) -> None:
        log = self._log.bind(target=target.name)
        try:
            await self._serve_inner(tunnel.pipe, UserLogin(self._gate, vouched=self._proof), target, log)
        except (LoginRefused, UserPeerError) as error:
            log.warning("inner login failed", error=str(error))
        except (EOFError, TimeoutError):
            log.info("user went away before logging in")
        finally:
            await asyncio.shield(tunnel.pipe.close())
