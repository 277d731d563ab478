"""A client of SSH that says what it is told to, for attacks: any message of RFC 4254, in any order, unread answers too.

It logs in by the transport that the gateway itself uses towards targets; what it sends afterwards is up to the test.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from protocols.ssh import wire
from protocols.ssh.dial import dial
from protocols.ssh.transport import TargetLeg
from protocols.ssh.wire_bodies import Word
from proxy.core.errors import PeerError
from proxy.core.parties import Credential, Secret, Target
from tests.ssh.gateway import GatewayProcess

Until = Callable[[list[wire.Message]], bool]
PATIENCE_SECONDS = 20.0


class Raw:
    """One connection to a gateway."""

    def __init__(self, leg: TargetLeg) -> None:
        self.leg = leg
        self.end = ""  # why there was no more to read

    @classmethod
    async def to(cls, gateway: GatewayProcess, user: str) -> Raw:
        """Log in with ana's token."""
        settings = {"host_keys": (gateway.host_key,)}
        place = Target("gateway", "ssh", host="127.0.0.1", port=gateway.port, settings=settings)
        return cls(await dial(place, Credential(user, secret=Secret(gateway.token)), user))

    async def send(self, *messages: wire.Message | bytes) -> None:
        """Say this."""
        payloads = (each if isinstance(each, bytes) else each.encode() for each in messages)
        await self.leg.write(b"".join(wire.frame(payload) for payload in payloads))

    async def until(self, enough: Until) -> list[wire.Message]:
        """Read until it is enough, or until the end."""
        got: list[wire.Message] = []
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not enough(got):
                    payloads = await self.leg.read()
                    if not payloads:
                        self.end = "eof"
                        break
                    got += [wire.decode(payload, PeerError) for payload in payloads]
        except PeerError as error:
            self.end = str(error)
        return got

    async def session(self, number: int = 0) -> wire.OpenConfirmation | wire.OpenFailure:
        """Open a session."""
        await self.send(wire.ChannelOpen("session", number, 1 << 20, 32_768))
        got = await self.until(
            lambda found: any(isinstance(each, wire.OpenConfirmation | wire.OpenFailure) for each in found)
        )
        (answer,) = (each for each in got if isinstance(each, wire.OpenConfirmation | wire.OpenFailure))
        return answer

    async def start(self, request: str, word: str, number: int = 0) -> int:
        """Open a session and ask for a program; returns the other side's number."""
        opened = await self.session(number)
        assert isinstance(opened, wire.OpenConfirmation), opened
        await self.send(wire.ChannelRequest(opened.sender, request, True, Word(word).encode()))
        return opened.sender

    async def run(self, command: str, number: int = 0) -> bytes:
        """Run a command; returns what it says."""
        there = await self.start("exec", command, number)
        got = await self.until(lambda found: any(isinstance(each, wire.Close) for each in found))
        await self.send(wire.Close(there))
        return b"".join(each.data for each in got if isinstance(each, wire.Data))

    async def flood(self, message: wire.Message, seconds: float) -> int:
        """Say this again and again and read nothing; returns how often it was said."""
        connection = self.leg._connection
        assert connection._transport is not None
        connection._transport.pause_reading()
        connection._set_reading = lambda: None  # type: ignore[method-assign]  # nor reads asyncssh on
        frames, count = wire.frame(message.encode()) * 1000, 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self.leg.write(frames)
                    count += 1000
        except TimeoutError:
            return count
        finally:
            connection.abort()
            await self.leg.close()


class RawSftp:
    """SFTP, packet by packet."""

    def __init__(self, raw: Raw, there: int) -> None:
        self._raw = raw
        self._there = there
        self._left = b""
        self._id = 0

    @classmethod
    async def begin(cls, raw: Raw) -> RawSftp:
        """Start the subsystem."""
        sftp = cls(raw, await raw.start("subsystem", "sftp"))
        await raw.until(lambda found: any(isinstance(each, wire.ChannelSuccess) for each in found))  # and a window
        await sftp._say(1, struct.pack(">I", 3))
        await sftp._hear()
        return sftp

    async def ask(self, code: int, *fields: bytes | int) -> tuple[int, bytes]:
        """Ask for something, strings and numbers; returns the answer's type and what is behind its id."""
        self._id += 1
        body = b"".join(struct.pack(">I", each) if isinstance(each, int) else wire.string(each) for each in fields)
        await self._say(code, struct.pack(">I", self._id) + body)
        answer = await self._hear()
        return answer[0], answer[5:]

    async def _say(self, code: int, body: bytes) -> None:
        await self._raw.send(wire.Data(self._there, struct.pack(">IB", len(body) + 1, code) + body))

    async def _hear(self) -> bytes:
        while len(self._left) < 4 or len(self._left) < 4 + int.from_bytes(self._left[:4], "big"):
            got = await self._raw.until(lambda found: any(isinstance(each, wire.Data) for each in found))
            data = b"".join(each.data for each in got if isinstance(each, wire.Data))
            assert data, (self._raw.end, got)
            self._left += data
        size = 4 + int.from_bytes(self._left[:4], "big")
        packet, self._left = self._left[4:size], self._left[size:]
        return packet
