"""A transport for an SSH connection inside of another one: bytes of a direct-tcpip channel (``ssh -J``).

Whoever holds the channel gives what the user sent to feed(), and gets what goes to the user by the callback send. Both
ways have back-pressure: consumed(n) says that n fed bytes are used up, so that the channel's window may be opened by
as many; full() and free() say that the channel takes no more, and takes more again.

Nothing is called back from inside a call: bytes move in callbacks of the loop, in order, as with a socket.
Source: RFC 4254 5.2, 7.2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from proxy.core.stream import Heir

HIGH_WATER_BYTES: Final = 64 * 1024  # as proxy/core/stream.py
CLOSE_SECONDS: Final = 5.0  # as proxy/core/stream.py


class ChannelPipe:
    """One inner connection's way to its user; it is handed over to the heir like a stream."""

    def __init__(
        self,
        send: Callable[[bytes], None],
        closed: Callable[[], None],
        consumed: Callable[[int], None],
        peer: str = "",
    ) -> None:
        """send: bytes for the user. closed: after the last of them; the channel may be ended. peer: for info()."""
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._closed = closed
        self._consumed = consumed
        self._peer = peer
        self._heir: Heir | None = None
        self._fed: list[bytes] = []
        self.out: list[bytes] = []
        self._eof = False
        self._broken = False
        self.reading = True
        self.closing = False
        self._full = False
        self._paused_heir = False
        self._over = False
        self._kicked = False
        self._waiting_bytes = 0  # pushed since out was last empty

    # -- for whoever holds the channel ----------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes of the user; the channel's window bounds how many wait here."""
        if self.closing or self._eof:
            self._consumed(len(data))
            return
        self._fed.append(data)
        self.kick()

    def feed_eof(self) -> None:
        """The user will send no more."""
        self._eof = True
        self.kick()

    def break_off(self) -> None:
        """The channel is closed, or the outer connection is: nothing can be sent any more."""
        self._eof = self._broken = True
        self.kick()

    def full(self) -> None:
        """The channel takes no more for now."""
        self._full = True
        self.kick()

    def free(self) -> None:
        """The channel takes more again."""
        self._full = False
        self.kick()

    # -- as a stream ----------------------------------------------------------------------------------

    async def hand_over(self, heir: Heir) -> asyncio.Transport:
        """Make heir the protocol of this transport."""
        assert self._heir is None, "hand_over() is called once"
        self._heir = heir
        transport = _PipeTransport(self)
        heir.connection_made(transport)
        self.kick()
        return transport

    async def gone(self) -> None:
        """Return once the user has ended the channel."""
        assert self._heir is not None, "gone() is for the second phase"
        await asyncio.shield(self._heir.ended)

    async def close(self) -> None:
        """Send what waits, close, and wait a bounded time. Never raises."""
        self.closing = True
        self.kick()
        if self._heir is None:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.shield(self._heir.lost)
        except TimeoutError:
            self.break_off()

    def info(self, key: str) -> Any:
        """Tell "peer" and "tls", as a stream."""
        return {"peer": self._peer, "tls": False}.get(key)

    # -- moving bytes ---------------------------------------------------------------------------------

    def kick(self) -> None:
        """Move bytes soon."""
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._kicked = False
        heir = self._heir
        if heir is None or self._over:
            return
        if self._broken:
            self.out.clear()
        if self.out and not self._full:
            out, self.out = self.out, []
            self._send(b"".join(out))
        self._tell(heir, bool(self.out))
        self._deliver(heir)
        if (self.closing and not self.out) or self._broken:
            self._over = True
            heir.connection_lost(None)
            self._closed()

    def push(self, data: bytes) -> None:
        """Take bytes of the heir; it is told at once to wait, for a writer that never waits never lets the loop run."""
        self.out.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > HIGH_WATER_BYTES and self._heir is not None:
            self._tell(self._heir, True)
        self.kick()

    def _tell(self, heir: Heir, congested: bool) -> None:
        """Tell the heir whether it may write, where that has changed."""
        if not congested:
            self._waiting_bytes = 0
        if congested != self._paused_heir:
            self._paused_heir = congested
            if congested:
                heir.pause_writing()
            else:
                heir.resume_writing()

    def _deliver(self, heir: Heir) -> None:
        while self._fed and (self.reading or self.closing):
            data = self._fed.pop(0)
            if not self.closing:
                heir.data_received(data)
            self._consumed(len(data))
        if self._eof and not self._fed and not self.closing:
            self.closing = True
            heir.eof_received()


class _PipeTransport(asyncio.Transport):
    """The heir's end of a ChannelPipe."""

    def __init__(self, pipe: ChannelPipe) -> None:
        super().__init__()
        self._pipe = pipe

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._pipe.closing:
            self._pipe.push(bytes(data))

    def pause_reading(self) -> None:
        self._pipe.reading = False

    def resume_reading(self) -> None:
        self._pipe.reading = True
        self._pipe.kick()

    def is_closing(self) -> bool:
        return self._pipe.closing

    def close(self) -> None:
        self._pipe.closing = True
        self._pipe.kick()

    def abort(self) -> None:
        self._pipe.out.clear()
        self.close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The channel's window is the limit."""
