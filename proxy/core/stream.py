"""A byte stream to a user or a target: a few methods, with sockets behind them, or memory in tests.

A socket stream has two phases. In the first, read(n) takes at most n bytes out of the kernel, so that bytes
behind a request for TLS stay where the TLS layer will find them (warpgate #1421) and clear text stuffed there
is never read as if it had come encrypted (CVE-2021-23222). start() ends that phase for good: in TLS, or clear.
After it a transport of the event loop moves the bytes, with 64 KiB of buffer each way (a larger one shows in
drivers: postgres note 1.11) and TLS records of at most 8 KiB (libpq's asynchronous API deadlocks on larger
ones: postgres note 1.4).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from proxy.core.errors import PeerError, TargetPeerError, UserPeerError
from proxy.core.memory import MemoryTransport

HIGH_WATER_BYTES: Final = 64 * 1024  # postgres note 1.11
TLS_RECORD_BYTES: Final = 8192  # postgres note 1.4
TLS_HANDSHAKE_SECONDS: Final = 15.0
CLOSE_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 2.0  # how often a connection that is not read from is asked whether it still exists
KEEPALIVE_IDLE_SECONDS: Final = 60  # NATs drop silent connections after 350 s (AWS) or 600 s (GCP)
USER_TIMEOUT_MS: Final = 120_000


class Stream(Protocol):
    """What serve() and dial() are given."""

    async def peek(self, size: int) -> bytes:
        """Return up to size bytes that the next read will return again; b'' at the end. First phase only."""

    async def read(self, size: int) -> bytes:
        """Return 1 to size bytes, or b'' at the end of the stream. Raises PeerError."""

    async def write(self, data: bytes) -> None:
        """Write all of data; returns when no more than HIGH_WATER_BYTES are waiting. Raises PeerError."""

    async def start(self, tls: ssl.SSLContext | None, server_name: str | None = None, whole: bool = False) -> None:
        """End the first phase, with TLS (server_name: as a client that checks it) or without. Raises PeerError.

        whole: writes go to TLS as they are, in records as long as may be; libpq alone needs short ones.
        """

    async def hand_over(self, heir: Heir) -> asyncio.Transport:
        """End the first phase by making heir the protocol of the connection; nobody reads or writes here any more.

        gone(), close() and info() work as before. Raises PeerError.
        """

    async def gone(self) -> None:
        """Return once the other side has ended or lost the connection, read or not. Second phase only."""

    async def close(self) -> None:
        """Write what is queued, close, and wait a bounded time. Never raises."""

    def info(self, key: str) -> Any:
        """Tell "peer" (host:port), "tls", "quiet" (open, nothing to read), "alpn", "version", "certificate" (DER)."""


class Heir(asyncio.Protocol):
    """Who takes a connection over. It says when the other side has ended it, and when the event loop has let it go."""

    ended: asyncio.Future[None]
    lost: asyncio.Future[None]


async def read_exactly(stream: Stream, size: int) -> bytes:
    """Read size bytes, however they come. Raises EOFError (args: the bytes that came) at the end of the stream."""
    parts = bytearray()
    while len(parts) < size:
        data = await stream.read(size - len(parts))
        if not data:
            raise EOFError(bytes(parts))
        parts += data
    return bytes(parts)


class _Transport(asyncio.Protocol):
    """Second phase of a SocketStream: bounded queues between the loop's transport and read()/write()."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop = loop
        self.sock = sock
        self.looking = False
        self.transport: asyncio.Transport | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.eof = False
        self.error: BaseException | None = None
        self.reader: asyncio.Future[None] | None = None
        self.writers: list[asyncio.Future[None]] = []
        self.write_paused = False
        self.read_paused = False
        self.lost = loop.create_future()
        self.ended = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        self.chunks.append(data)
        self.size += len(data)
        if self.size >= HIGH_WATER_BYTES and not self.read_paused and self.transport is not None:
            self.read_paused = True
            self.transport.pause_reading()
            if not self.looking:
                self.looking = True
                self.loop.call_later(LOOK_SECONDS, self._look)
        self._wake_reader()

    def _look(self) -> None:
        """See a reset or an end that the loop does not, as it waits for nothing while reading is paused."""
        self.looking = False
        if not self.read_paused or self.ended.done():
            return
        if _vanished(self.sock):
            self.ended.set_result(None)
        else:
            self.looking = True
            self.loop.call_later(LOOK_SECONDS, self._look)

    def eof_received(self) -> bool:
        self.eof = True
        if not self.ended.done():
            self.ended.set_result(None)
        self._wake_reader()
        # Half-open is kept in the clear only (TLS transports cannot); a session ends on either side's end anyway.
        return self.transport is not None and self.transport.get_extra_info("ssl_object") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof = True
        self.error = exc
        self._wake_reader()
        self.write_paused = False
        for writer in self.writers:
            if not writer.done():
                writer.set_result(None)
        self.writers.clear()
        for future in (self.lost, self.ended):
            if not future.done():
                future.set_result(None)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        for writer in self.writers:
            if not writer.done():
                writer.set_result(None)
        self.writers.clear()

    def _wake_reader(self) -> None:
        reader = self.reader
        if reader is not None:
            self.reader = None
            if not reader.done():
                reader.set_result(None)

    async def read(self, size: int) -> bytes:
        while not self.chunks:
            if self.error is not None:
                raise ConnectionError("the connection was lost") from self.error
            if self.eof:
                return b""
            self.reader = self.loop.create_future()
            await self.reader
        if len(self.chunks) == 1:
            data = self.chunks[0]
            self.chunks.clear()
        else:
            data = b"".join(self.chunks)
            self.chunks.clear()
        if len(data) > size:
            self.chunks.append(data[size:])
            data = data[:size]
        self.size -= len(data)
        if self.read_paused and self.size < HIGH_WATER_BYTES and not self.eof and self.transport is not None:
            self.read_paused = False
            self.transport.resume_reading()
        return data

    async def write(self, data: bytes, record: int) -> None:
        transport = self.transport
        assert transport is not None
        if self.lost.done() or transport.is_closing():
            raise ConnectionError("the connection is closed")
        if record:
            # One write a TLS record; wait between them as the buffer fills, so that it stays small.
            for start in range(0, len(data), record):
                transport.write(data[start : start + record])
                if self.write_paused:
                    await self._drain()
        else:
            transport.write(data)
            if self.write_paused:
                await self._drain()

    async def _drain(self) -> None:
        while self.write_paused:
            writer = self.loop.create_future()
            self.writers.append(writer)
            await writer
        if self.lost.done():
            raise ConnectionError("the connection was lost") from self.error


class SocketStream:
    """A Stream on a connected TCP or Unix socket; side says whose fault a failure is."""

    def __init__(self, sock: socket.socket, side: str, server_side: bool) -> None:
        sock.setblocking(False)
        _tune(sock)
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = sock
        self._error: type[PeerError] = UserPeerError if side == "user" else TargetPeerError
        self._side = side
        self._server_side = server_side
        self._peer = _peer_name(sock)
        self._transport: _Transport | None = None
        self._heir: Heir | None = None
        self._given: asyncio.Transport | None = None  # what the heir has
        self._tls = False
        self._record_bytes = 0
        self._peeked = b""

    async def peek(self, size: int) -> bytes:
        assert self._sock is not None, "peek is for the first phase"
        # The loop has no peek; a zero-byte wait is made of a duplicate descriptor, which the loop may watch.
        while True:
            try:
                return self._sock.recv(size, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                await _readable(self._loop, self._sock)
            except OSError as error:
                raise self._error(f"the {self._side}'s connection failed") from error

    async def read(self, size: int) -> bytes:
        try:
            if self._transport is not None:
                return await self._transport.read(size)
            assert self._sock is not None
            return await self._loop.sock_recv(self._sock, size)
        except (OSError, ssl.SSLError) as error:
            raise self._error(f"the {self._side}'s connection failed") from error

    async def write(self, data: bytes) -> None:
        try:
            if self._transport is not None:
                await self._transport.write(data, self._record_bytes)
            else:
                assert self._sock is not None
                await self._loop.sock_sendall(self._sock, data)
        except (OSError, ssl.SSLError) as error:
            raise self._error(f"the {self._side}'s connection failed") from error

    async def start(self, tls: ssl.SSLContext | None, server_name: str | None = None, whole: bool = False) -> None:
        assert self._transport is None and self._sock is not None, "start() is called once"
        protocol = _Transport(self._loop, self._sock)
        kwargs: dict[str, Any] = {"sock": self._sock}
        if tls is not None:
            kwargs |= {
                "ssl": tls,
                "ssl_handshake_timeout": TLS_HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": CLOSE_SECONDS,
            }
        try:
            if self._server_side:
                await self._loop.connect_accepted_socket(lambda: protocol, **kwargs)
            else:
                if tls is not None:
                    kwargs["server_hostname"] = server_name or ""
                await self._loop.create_connection(lambda: protocol, **kwargs)
        except ssl.SSLCertVerificationError as error:
            raise self._error(f"the {self._side}'s certificate was not accepted: {error.verify_message}") from error
        except (OSError, ssl.SSLError, ConnectionError, TimeoutError) as error:
            raise self._error(f"the TLS handshake with the {self._side} failed") from error
        self._transport = protocol
        self._tls = tls is not None
        self._record_bytes = TLS_RECORD_BYTES if self._tls and not whole else 0

    async def hand_over(self, heir: Heir) -> asyncio.Transport:
        assert self._transport is None and self._sock is not None, "the first phase is over"
        try:
            if self._server_side:
                transport, _ = await self._loop.connect_accepted_socket(lambda: heir, sock=self._sock)
            else:
                transport, _ = await self._loop.create_connection(lambda: heir, sock=self._sock)
        except OSError as error:
            raise self._error(f"the {self._side}'s connection failed") from error
        self._heir = heir
        self._given = transport
        return transport

    async def gone(self) -> None:
        if self._heir is not None:
            await self._heir_ended(self._heir)
            return
        assert self._transport is not None, "gone() is for the second phase"
        await asyncio.shield(self._transport.ended)

    async def _heir_ended(self, heir: Heir) -> None:
        """As _Transport does for itself: a look now and then, in case the heir does not read."""
        while not heir.ended.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await asyncio.shield(heir.ended)
            if not heir.ended.done() and (self._sock is None or _vanished(self._sock)):
                heir.ended.set_result(None)

    async def close(self) -> None:
        with contextlib.suppress(Exception):  # closing: whatever fails, the descriptor is given back
            transport, lost = self._open()
            if transport is not None and lost is not None:
                transport.close()
                try:
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await asyncio.shield(lost)
                except TimeoutError:
                    transport.abort()
            elif self._sock is not None:
                self._sock.close()
        self._sock = None

    def abort(self) -> None:
        """Drop the connection at once."""
        transport, _ = self._open()
        if transport is not None:
            transport.abort()
        elif self._sock is not None:
            self._sock.close()
            self._sock = None

    def _open(self) -> tuple[asyncio.Transport | None, asyncio.Future[None] | None]:
        """The loop's transport of the second phase, whosever it is, and what tells that it is closed."""
        if self._heir is not None:
            return self._given, self._heir.lost
        if self._transport is not None:
            return self._transport.transport, self._transport.lost
        return None, None

    def info(self, key: str) -> Any:
        if key == "peer":
            return self._peer
        if key == "tls":
            return self._tls
        if key == "quiet":
            return (one := self._transport) is not None and not one.chunks and not one.ended.done()
        transport = self._transport.transport if self._transport is not None else None
        tls_object = transport.get_extra_info("ssl_object") if transport is not None else None
        if tls_object is None:
            return None
        match key:
            case "alpn":
                return tls_object.selected_alpn_protocol()
            case "version":
                return tls_object.version()
            case "certificate":
                return tls_object.getpeercert(binary_form=True)
            case _:
                return None


def _tune(sock: socket.socket) -> None:
    """A held session is silent for minutes: keepalives, and no delay for small answers."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # an option that a platform lacks is no reason to refuse a user
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def _vanished(sock: socket.socket) -> bool:
    """Whether the other side of a TCP connection has closed or reset it. Source: Linux tcp(7), TCP_INFO."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _OVER
    except OSError:
        return True


_OVER: Final = (7, 8)  # TCP_CLOSE, TCP_CLOSE_WAIT: include/net/tcp_states.h


def _peer_name(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return "unknown"
    if isinstance(name, tuple):
        host = f"[{name[0]}]" if ":" in str(name[0]) else str(name[0])
        return f"{host}:{name[1]}"
    return "unix"


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    future = loop.create_future()
    descriptor = sock.fileno()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(descriptor, ready)
    try:
        await future
    finally:
        loop.remove_reader(descriptor)


class MemoryStream:
    """One end of memory_pair(): a Stream for tests and for MCP, with the same limits, no TLS."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._eof = False
        self._waiters: list[asyncio.Future[None]] = []
        self._heir: MemoryTransport | None = None
        self.other: MemoryStream = self
        self.closed = False

    async def peek(self, size: int) -> bytes:
        await self._until(lambda: bool(self._buffer) or self._eof)
        return bytes(self._buffer[:size])

    async def read(self, size: int) -> bytes:
        await self._until(lambda: bool(self._buffer) or self._eof)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._change()
        return data

    async def write(self, data: bytes) -> None:
        other = self.other
        if other._eof:
            raise PeerError("the stream is closed")
        other._buffer += data
        other._change()
        await other._until(lambda: len(other._buffer) <= HIGH_WATER_BYTES or other.closed)

    async def start(self, tls: ssl.SSLContext | None, server_name: str | None = None, whole: bool = False) -> None:
        if tls is not None:
            raise PeerError("a memory stream has no TLS")

    async def hand_over(self, heir: Heir) -> asyncio.Transport:
        assert self._heir is None, "hand_over() is called once"
        self._heir = MemoryTransport(self, heir, HIGH_WATER_BYTES)
        heir.connection_made(self._heir)
        self._heir.pump()
        return self._heir

    async def gone(self) -> None:
        await self._until(lambda: self._eof)

    async def close(self) -> None:
        self.abort()

    def info(self, key: str) -> Any:
        return {"peer": "memory", "tls": False, "quiet": not self._buffer and not self._eof}.get(key)

    def abort(self) -> None:
        self.closed = True
        for end in (self, self.other):
            end._eof = True
            end._change()

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _change(self) -> None:
        """What is in the buffer, or what may come into it, has changed."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        for end in (self, self.other):
            if end._heir is not None:
                end._heir.kick()


def memory_pair() -> tuple[MemoryStream, MemoryStream]:
    """Return two connected streams: what is written to one is read from the other."""
    one, two = MemoryStream(), MemoryStream()
    one.other, two.other = two, one
    return one, two
