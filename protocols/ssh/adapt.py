"""asyncssh's connection, made to pass messages: what a Leg (transport.py) stands on. Internals are touched here only.

asyncssh does versions, key exchange, rekeying and login. From the end of the login on, packets are opened here, many
at a time: connection-protocol messages (RFC 4254: numbers from 80 on) go to the inbox, of which asyncssh never hears;
every other one is handed to asyncssh, already open, so that its own checks apply (strict key exchange, sequence
numbers, what is allowed when). While asyncssh is busy (a key exchange, an attempt to log in) nothing is opened.

Sending is the same: while a key exchange runs, frames wait in the outbox in order. The hooks are methods that asyncssh
calls on itself and that are overridden; PINNED names every one of asyncssh's that this relies on, and a test holds
their source to what was read.

What asyncssh does that is undone here: an MSG_IGNORE before each packet (against CBC, which is not offered), logging
of packets, an input buffer that is sliced for each packet (a flood of small ones costs a square), aborting a
connection before its last words are written, no back-pressure. Memory is used again rather than asked for: blocks
of more than 128 KiB come from the kernel page by page, which alone was a fifth of the CPU time of a transfer.

Source: RFC 4253 6, 7, 9, 11; RFC 4254.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, cast

from asyncssh.connection import SSHConnection
from asyncssh.constants import DISC_PROTOCOL_ERROR, MSG_IGNORE
from asyncssh.encryption import GCMEncryption
from asyncssh.misc import ConnectionLost, DisconnectError, ProtocolError
from asyncssh.packet import SSHPacket

from protocols.ssh.records import GcmOpener, GcmSealer, Opener, PlainOpener, payload_of
from proxy.core.stream import Heir

FIRST_RELAYED: Final = 80  # RFC 4254 9: SSH_MSG_GLOBAL_REQUEST is the first of the connection protocol
INBOX_BYTES_LIMIT: Final = 256 * 1024  # one read of the event loop
INBOX_MESSAGES_LIMIT: Final = 1000
# While our KEXINIT is unanswered, what the peer had on its way must be read to get at the answer: two legs that rekey
# at once would else wait for each other. TCP's buffers at both ends (tcp_rmem, tcp_wmem) hold 10 MiB at most on Linux.
REKEY_INBOX_BYTES_LIMIT: Final = 32 * 1024 * 1024
REKEY_INBOX_MESSAGES_LIMIT: Final = 500_000  # as many bytes of the smallest packets
READ_BYTES: Final = 128 * 1024  # of one read: fewer makes more calls, more leaves the processor's caches
BUFFER_BYTES: Final = 256 * 1024 + 64 + READ_BYTES  # a whole packet and a read; only pages that were used take memory
UNREAD_BYTES_LIMIT: Final = 128 * 1024  # while asyncssh is busy
PIECE_BYTES: Final = 4096  # before the login, asyncssh copies what is left of its buffer for each packet
HIGH_WATER_BYTES: Final = 256 * 1024  # one relayed read
CLOSE_SECONDS: Final = 5.0  # for last words to leave, as proxy/core/stream.py


class Adapted(SSHConnection, Heir):
    """One side's connection. Mixed in before SSHServerConnection or SSHClientConnection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ended = self._loop.create_future()
        self.lost = self._loop.create_future()
        self.entered = self._loop.create_future()  # the login is complete, or the connection is over
        self.inbox: list[bytes] = []
        self.inbox_bytes = 0
        self.failure: Exception | None = None
        self.kex_name = ""
        self._buffer = bytearray(BUFFER_BYTES)  # what came and has not been opened: from _start to _end
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._reader: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._outbox: list[bytes] = []
        self._batch: list[bytes] | None = None
        self._writing_paused = False
        self._writers: list[asyncio.Future[None]] = []
        self._last_words: asyncio.TimerHandle | None = None

    # -- receiving ------------------------------------------------------------------------------------

    def get_buffer(self, size_hint: int) -> memoryview:
        """Give uvloop a place to read to (as asyncio.BufferedProtocol): no new memory for each read."""
        self._make_room(READ_BYTES)
        return self._view[self._end : self._end + READ_BYTES]

    def buffer_updated(self, count: int) -> None:
        """Take what uvloop has read."""
        self._end += count
        self._work()

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        """Take what another transport gives."""
        if self._transport is None:
            return
        self._make_room(len(data))
        self._view[self._end : self._end + len(data)] = data
        self._end += len(data)
        self._work()

    def _make_room(self, size: int) -> None:
        """Have so many bytes free behind what is there. What is there is bounded: see _set_reading()."""
        left = self._end - self._start
        if not left:
            self._start = self._end = 0
        if len(self._buffer) - self._end >= size:
            return
        old = self._view[self._start : self._end]
        if len(self._buffer) - left < size:
            self._buffer = bytearray(left + size)
            self._view = memoryview(self._buffer)
        self._view[:left] = bytes(old)
        self._start, self._end = 0, left

    def _work(self) -> None:
        """Handle what has come, as far as asyncssh and the inbox take it."""
        try:
            while self._transport is not None and self._idle():
                if self._auth_complete and self._recv_handler == self._recv_pkthdr:
                    self._keep_rest()
                    if not self._open_packets():
                        break
                elif self._left():
                    self._feed()
                else:
                    break
        except DisconnectError as error:
            self._send_disconnect(error.code, error.reason, error.lang)
            self._force_close(error)
        except Exception as error:  # fails closed: the connection ends with it
            self._force_close(error)
        self._set_reading()

    def _left(self) -> int:
        return self._end - self._start

    def _idle(self) -> bool:
        """Whether asyncssh takes the next packet; while it handles one in a task, its handler is a stand-in."""
        return self._recv_handler in (self._recv_pkthdr, self._recv_packet, self._recv_version)

    def _feed(self) -> None:
        """Up to the end of the login (and of the packet in which it comes), asyncssh reads by itself."""
        piece = bytes(self._view[self._start : min(self._start + PIECE_BYTES, self._end)])
        self._start += len(piece)
        self._inpbuf += piece
        self._recv_data()

    def _keep_rest(self) -> None:
        """What asyncssh has in its buffer at the end of the login is opened here."""
        if self._inpbuf:
            rest = self._inpbuf + bytes(self._view[self._start : self._end])
            self._inpbuf = b""
            self._start = self._end = 0
            self._make_room(len(rest))
            self._end = len(rest)
            self._view[: self._end] = rest

    def _recv_pkthdr(self) -> bool:
        """Keep asyncssh from reading on by itself once the login is complete."""
        opener = self._recv_encryption
        if self._auth_complete and not (isinstance(opener, GcmOpener | PlainOpener) and opener.handed):
            return False
        return super()._recv_pkthdr()

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        """Let asyncssh handle no message of the connection protocol, whatever order a peer sends them in."""
        if pkttype >= FIRST_RELAYED:
            raise ProtocolError("a message of the connection protocol before the end of the login")
        return super().process_packet(pkttype, pktid, packet)

    def _open_packets(self) -> bool:
        """Open packets until they end, the inbox is full, or asyncssh has one to handle; only then return True."""
        opener = self._opener()
        data = self._view[: self._end]
        inbox, size, position = self.inbox, self.inbox_bytes, self._start
        messages_limit, bytes_limit = self._limits()
        room = messages_limit - len(inbox)
        count = received = 0
        seq = self._recv_seq
        packet = None
        while count < room and size < bytes_limit:
            found = opener.open(seq, data, position)
            if found is None:
                break
            packet, end = found
            received += len(packet)
            if packet[1] < FIRST_RELAYED:
                break
            payload = payload_of(packet)
            inbox.append(payload)
            size += len(payload)
            count += 1
            seq = (seq + 1) & 0xFFFFFFFF
            position = end
            packet = None
        self._recv_seq = seq
        self._rekey_bytes_sent += received  # asyncssh counts what it sends; a key is used up by both directions
        self._start = position
        if count:
            self.inbox_bytes = size
            self._auth_final = True  # as asyncssh does at the first message after a login
            self._wake_reader()
            self._rekey_if_due()
        if packet is None:
            return False
        self._start = end
        self._inpbuf = bytes(data[position:end])
        opener.hand(packet)
        self._recv_data()
        return True

    def _opener(self) -> Opener:
        """Return what opens packets now; a key exchange puts asyncssh's own object in its place."""
        current = self._recv_encryption
        if isinstance(current, GcmOpener | PlainOpener):
            return current
        assert current is not None, "a login without encryption"
        opener = (
            GcmOpener(current)
            if type(current) is GCMEncryption
            else PlainOpener(current, self._recv_blocksize, self._recv_macsize)
        )
        self._recv_encryption = opener
        return opener

    def _finish_recv_packet(self, pkttype: int, seq: int, _task: Any = None, is_async: bool = False) -> None:
        """Go on with what came while asyncssh was busy."""
        super()._finish_recv_packet(pkttype, seq, _task, is_async)
        if is_async:
            self._work()

    def _limits(self) -> tuple[int, int]:
        """How many messages, and bytes, the inbox holds."""
        if self._kex_complete:
            return INBOX_MESSAGES_LIMIT, INBOX_BYTES_LIMIT
        return REKEY_INBOX_MESSAGES_LIMIT, REKEY_INBOX_BYTES_LIMIT

    def _set_reading(self) -> None:
        """Read no more than the inbox and asyncssh can take."""
        if self._transport is None:
            return
        messages_limit, bytes_limit = self._limits()
        full = len(self.inbox) >= messages_limit or self.inbox_bytes >= bytes_limit
        if full and not self._kex_complete:
            self.part(DISC_PROTOCOL_ERROR, "no answer to a key exchange")
            self.failure = ProtocolError("no answer to a key exchange")
            return
        full = full or self._left() >= UNREAD_BYTES_LIMIT
        if full != self._reading_paused:
            self._reading_paused = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def take(self) -> list[bytes]:
        """Return the messages of the inbox, once there are any; [] at the end."""
        while not self.inbox:
            if self._transport is None:
                return []
            self._reader = self._loop.create_future()
            await self._reader
        taken = self.inbox
        self.inbox = []
        self.inbox_bytes = 0
        if self._reading_paused or self._left():
            self._work()
        return taken

    # -- sending --------------------------------------------------------------------------------------

    def post(self, frames: bytes) -> None:
        """Send framed messages, or keep them until the running key exchange is over. Raises ConnectionError."""
        if self._transport is None:
            raise ConnectionError("the connection is closed")
        self._rekey_if_due()
        if self._kex_complete and not self._outbox:
            self._seal(frames)
        else:
            self._outbox.append(frames)

    def _rekey_if_due(self) -> None:
        """Begin a key exchange once the key has been used for long, as asyncssh does at its own packets."""
        if self._kex_complete and self._rekey_bytes_sent >= self._rekey_bytes:
            self._send_kexinit()
            self._kexinit_sent = True

    def _send_kexinit(self) -> None:
        """Read on: the answer lies behind what the peer has sent."""
        super()._send_kexinit()
        if self._auth_complete:
            self._loop.call_soon(self._work)

    @property
    def congested(self) -> bool:
        """Whether what was posted is still here."""
        return self._writing_paused or bool(self._outbox) or bool(self._deferred_packets)

    async def drain(self) -> None:
        """Wait until the connection takes more. Raises ConnectionError."""
        while self._transport is not None and self.congested:
            writer = self._loop.create_future()
            self._writers.append(writer)
            await writer
        if self._transport is None:
            raise ConnectionError("the connection was lost")

    def _seal(self, frames: bytes) -> None:
        sealer = self._send_encryption
        if type(sealer) is GCMEncryption:
            sealer = self._send_encryption = GcmSealer(sealer)
        if isinstance(sealer, GcmSealer):
            packets, count = sealer.seal(frames)
            self._send_seq = (self._send_seq + count) & 0xFFFFFFFF
            self._rekey_bytes_sent += len(frames)
            assert self._transport is not None
            if len(packets) == 2:
                self._transport.write(packets[0] + packets[1])
            else:
                self._transport.writelines(packets)
            return
        self._batch = []
        try:
            position = 0
            while position < len(frames):
                start = position + 4
                position = start + int.from_bytes(frames[position:start], "big")
                self.send_packet(frames[start], frames[start + 1 : position])
        finally:
            batch, self._batch = self._batch, None
            if batch and self._transport is not None:
                self._transport.write(b"".join(batch))

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        """Leave out asyncssh's countermeasure against attacks on CBC, a whole packet before each one."""
        if pkttype != MSG_IGNORE:
            super().send_packet(pkttype, *args, handler=handler)

    def _send(self, data: bytes) -> None:
        if self._batch is not None:
            self._batch.append(data)
        elif self._transport is not None:
            self._transport.write(data)

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        """Note the exchange's name, which asyncssh forgets."""
        if self._kex is not None:
            self.kex_name = self._kex.algorithm.decode("ascii", "replace")
        super().send_newkeys(k, h)

    def _send_deferred_packets(self) -> None:
        """A key exchange or the login is over: what waited goes out, asyncssh's own first."""
        super()._send_deferred_packets()
        while self._outbox and self._kex_complete and self._transport is not None:
            waiting, self._outbox = self._outbox, []
            self._seal(b"".join(waiting))
        self._wake_writers()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self._writing_paused = False
        self._wake_writers()

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            if not writer.done():
                writer.set_result(None)

    # -- beginning and end ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=HIGH_WATER_BYTES)
        super().connection_made(transport)

    def part(self, code: int, reason: str) -> None:
        """Say DISCONNECT and end, unless that has happened."""
        if self._transport is not None:
            self._send_disconnect(code, reason, "")
            self._force_close(None)

    @property
    def identifier(self) -> bytes:
        """The session identifier (RFC 4253 7.2), the same at both ends; b'' before the first key exchange."""
        return self._session_id

    def host_key_fingerprint(self) -> str:
        """The fingerprint of the server's key."""
        return ""

    def eof_received(self) -> None:
        """SSH has no half-open connections."""
        self._force_close(ConnectionLost("Connection lost"))

    def connection_lost(self, exc: Exception | None = None) -> None:
        """Only the event loop calls this: none of asyncssh's timers that do is used."""
        if self._last_words is not None:
            self._last_words.cancel()
            self._last_words = None
        if self._transport is not None:
            self._transport = None
            self._loop.call_soon(self._cleanup, exc or ConnectionLost("Connection lost"))
        # Nothing is opened any more. A connection is a cycle of objects that may live for minutes after its end, until
        # the collector looks at the oldest; 400 KB of each would stay until then.
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        if not self.lost.done():
            self.lost.set_result(None)

    def _force_close(self, exc: Exception | None) -> None:
        """End, but let go out what is queued: the reason, most of all. asyncssh would abort."""
        transport = self._transport
        if transport is None:
            return
        self._transport = None
        transport.close()
        self._last_words = self._loop.call_later(CLOSE_SECONDS, transport.abort)
        self._loop.call_soon(self._cleanup, exc)

    def _cleanup(self, exc: Exception | None) -> None:
        """Wake everybody who waits: it is over."""
        if self.failure is None:
            self.failure = exc
        super()._cleanup(exc)
        self._start = self._end = 0
        self._wake_reader()
        self._wake_writers()
        for future in (self.ended, self.entered):
            if not future.done():
                future.set_result(None)

    # -- logging: a call for each packet, about nothing ------------------------------------------------

    def log_received_packet(self, *args: Any, **kwargs: Any) -> None:
        """No log."""

    def log_sent_packet(self, *args: Any, **kwargs: Any) -> None:
        """No log."""
