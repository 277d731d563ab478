"""What the heir of a MemoryStream has in the place of an event loop's transport; see stream.py.

Bytes reach the heir by callbacks of the loop, never from inside a call of its own, as with a socket.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxy.core.stream import Heir, MemoryStream


class MemoryTransport(asyncio.Transport):
    """What the heir of a MemoryStream writes to. Everything reaches it from the loop, as with a socket."""

    def __init__(self, stream: MemoryStream, heir: Heir, high_water_bytes: int) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._heir = heir
        self._high_water_bytes = high_water_bytes
        self._reading = True
        self._closing = False
        self._congested = False
        self._told_end = False
        self._kicked = False

    def kick(self) -> None:
        """Have pump() called soon: something has changed."""
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Give the heir what has come, and tell it whether it may write."""
        self._kicked = False
        stream = self._stream
        self._tell()
        if self._reading and not self._closing and stream._buffer:
            data = bytes(stream._buffer)
            stream._buffer.clear()
            stream._change()
            self._heir.data_received(data)
        if stream._eof and not stream._buffer and not self._told_end:
            self._told_end = True
            if not self._closing:
                self._heir.eof_received()
            self._heir.connection_lost(None)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._closing and not self._stream.other._eof:
            self._stream.other._buffer += data
            self._stream._change()
            self._stream.other._change()
            self._tell()  # at once, as a socket's transport: a writer who need not wait does not let the loop run

    def _tell(self) -> None:
        """Tell the heir whether it may write, where that has changed."""
        full = len(self._stream.other._buffer) > self._high_water_bytes
        if full != self._congested and not self._closing:
            self._congested = full
            if full:
                self._heir.pause_writing()
            else:
                self._heir.resume_writing()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.kick()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._stream._buffer.clear()
        self._stream.abort()

    def abort(self) -> None:
        self.close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass
