"""The transport without a network: both of our sides against each other, over memory and over channel pipes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import Any

import asyncssh
import pytest
from asyncssh.encryption import GCMEncryption
from asyncssh.misc import MACError, ProtocolError

from protocols.ssh.dial_settings import pins_of, read_settings
from protocols.ssh.records import PACKET_LIMIT, GcmOpener, GcmSealer, payload_of
from protocols.ssh.target_side import make_connection
from protocols.ssh.transport import ChannelPipe, HostKey, ServerOptions, TargetLeg, UserLeg, open_user
from protocols.ssh.user_side import Guard
from proxy.core.errors import LoginRefused, TargetPeerError
from proxy.core.parties import Secret, Target
from proxy.core.stream import memory_pair
from tests.ssh.legs import Answers, framed

KEY = asyncssh.generate_private_key("ssh-ed25519")
LINE = KEY.export_public_key().decode().strip()
OPTIONS = ServerOptions((HostKey(KEY.export_private_key()),), login_seconds=10)


@pytest.mark.parametrize("user", ["", "root", "root:box"])
def test_a_proof_is_always_asked_for(user: str) -> None:
    assert Guard().begin_auth(user) is True


async def meet(
    here: Any, there: Any, answers: Answers, secret: str, *, rekey_here: int = 1 << 30, **settings: object
) -> tuple[UserLeg, TargetLeg]:
    """Log our client in at our server."""
    place = read_settings(Target("box", "ssh", host="h", settings={"host_keys": (LINE,), **settings}))
    connection = make_connection(place, pins_of(place), "me", [], Secret(secret))
    options = dataclasses.replace(OPTIONS, rekey_bytes=rekey_here)
    opening = asyncio.get_running_loop().create_task(open_user(here, answers, options))
    await there.hand_over(connection)
    await connection.entered
    return await opening, TargetLeg(connection, there)


def pipes() -> tuple[ChannelPipe, ChannelPipe]:
    ends: list[ChannelPipe] = []
    for number in (0, 1):
        ends.append(
            ChannelPipe(
                lambda data, other=1 - number: ends[other].feed(data),  # type: ignore[misc]
                lambda other=1 - number: ends[other].feed_eof(),  # type: ignore[misc]
                lambda count: None,
            )
        )
    return ends[0], ends[1]


@pytest.mark.parametrize("way", ["memory", "pipes"])
def test_messages_pass_whole_and_in_order(way: str) -> None:
    payloads = [bytes([90 + number % 10]) + os.urandom(number * 7 % 30_000) for number in range(1, 400)]

    async def run() -> None:
        here, there = memory_pair() if way == "memory" else pipes()
        answers = Answers()
        user, target = await meet(here, there, answers, answers.token, rekey=1 << 16)
        assert answers.proofs == [("me", "password", None)]

        async def send(leg: Any) -> None:
            for start in range(0, len(payloads), 7):
                await leg.write(b"".join(framed(payload) for payload in payloads[start : start + 7]))

        async def receive(leg: Any) -> list[bytes]:
            got: list[bytes] = []
            while len(got) < len(payloads):
                got += await leg.read()
            return got

        results = await asyncio.gather(send(user), send(target), receive(user), receive(target))
        assert results[2] == payloads and results[3] == payloads
        user.disconnect(2, "enough")
        with pytest.raises(TargetPeerError, match="enough"):
            await target.read()
        await target.gone()
        assert await user.read() == []
        await user.close()
        await target.close()

    asyncio.run(run())


def test_a_reader_that_stops_stops_the_writer() -> None:
    async def run() -> None:
        here, there = memory_pair()
        user, target = await meet(here, there, Answers(), Answers().token)
        written = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await target.write(framed(b"\x5e" + bytes(32768)))
                    written += 32768
        assert written < 2 << 20
        got = 0
        while got < written:
            got += sum(len(payload) - 1 for payload in await user.read())
        await user.close()
        await target.close()

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 9000])
def test_a_key_exchange_ends_although_nobody_reads(size: int) -> None:
    """Two legs that rekey at once, both with a full inbox, waited for each other for ever."""

    async def run() -> None:
        here, there = memory_pair()
        user, target = await meet(here, there, Answers(), Answers().token, rekey=1 << 30, rekey_here=1 << 16)
        frames = framed(b"\x5e" + bytes(size)) * (600_000 // (size + 40))
        async with asyncio.timeout(8):
            async with asyncio.TaskGroup() as group:
                group.create_task(target.write(frames))
                for _ in range(20):
                    await user.write(framed(b"\x5e" + bytes(10_000)))
                    await target.read()
        got = 0
        while got < len(frames):
            got += sum(len(payload) + 4 for payload in await user.read())
        assert got == len(frames)
        await user.close()
        await target.close()

    asyncio.run(run())


def test_a_wrong_token_is_a_refused_login() -> None:
    async def run() -> None:
        here, there = memory_pair()
        with pytest.raises((LoginRefused, EOFError, TargetPeerError)) as caught:
            await asyncio.wait_for(meet(here, there, Answers(), "wrong"), 5)
        assert isinstance(caught.value, LoginRefused)

    asyncio.run(run())


def sealed() -> tuple[GcmSealer, GcmOpener]:
    key, nonce = os.urandom(16), os.urandom(12)
    ends = [GCMEncryption.new("aes128-gcm", key, nonce) for _ in range(2)]
    return GcmSealer(ends[0]), GcmOpener(ends[1])


def test_packets_by_the_byte() -> None:
    sealer, opener = sealed()
    payloads = [bytes([94]) * size for size in (1, 2, 11, 12, 13, 1000)]
    parts, count = sealer.seal(b"".join(framed(payload) for payload in payloads))
    data = b"".join(parts)
    got, position = [], 0
    for end in range(len(data) + 1):
        found = opener.open(0, memoryview(data)[:end], position)
        if found is not None:
            packet, position = found
            got.append(payload_of(packet))
    assert (got, count, position) == (payloads, len(payloads), len(data))


def test_a_changed_packet_and_wrong_lengths() -> None:
    sealer, opener = sealed()
    data = bytearray(b"".join(sealer.seal(framed(b"\x5e" * 40))[0]))
    data[20] ^= 1
    with pytest.raises(MACError):
        opener.open(0, memoryview(data), 0)
    for length in (0, 15, PACKET_LIMIT + 1, 0xFFFFFFFF):
        with pytest.raises(ProtocolError):
            opener.open(0, memoryview(length.to_bytes(4, "big")), 0)
    assert opener.open(0, memoryview(PACKET_LIMIT.to_bytes(4, "big")), 0) is None
    for packet in (b"\x03\x5e" + bytes(14), b"\xff\x5e" + bytes(14), b"\x0f" + bytes(15)):
        with pytest.raises(ProtocolError):
            payload_of(packet)
