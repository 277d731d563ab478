"""A trivial relay for tests of the transport: whatever one leg reads goes to the other, and nothing is decided.

It runs on a uvloop in a thread, so that real clients may be run in the foreground, or as a program of its own
(``python -m tests.ssh.legs``: see run()) where its CPU time is to be measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvloop

from protocols.ssh.dial import dial
from protocols.ssh.transport import HostKey, Leg, ServerOptions, UserLeg, open_user
from proxy.core.errors import GatecastError, LoginRefused
from proxy.core.parties import Credential, Target
from proxy.core.stream import SocketStream
from tests.peers.ssh import KeyPair, SshServer

GLOBAL_REQUEST = 80
REQUEST_FAILURE = 82


@dataclass
class Answers:
    """A Login for tests: keys by blob, one token; it notes what it was asked."""

    blobs: tuple[bytes, ...] = ()
    token: str = "open sesame"
    banner: str = ""
    prompts: bool = True
    refuse: str = ""
    asked: list[tuple[str, ...]] = field(default_factory=list)
    proofs: list[tuple[str, str, bytes | None]] = field(default_factory=list)

    async def key(self, user: str, blob: bytes) -> bool:
        self.asked.append(("key", user))
        return blob in self.blobs

    async def password(self, user: str, secret: str) -> bool:
        self.asked.append(("password", user, secret))
        return secret == (self.token if self.prompts else "")

    async def proved(self, user: str, method: str, blob: bytes | None) -> None:
        self.proofs.append((user, method, blob))
        if self.refuse:
            raise LoginRefused(self.refuse)


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


async def pass_on(source: Leg, sink: Leg, answer_hostkeys: bool) -> None:
    while payloads := await source.read():
        kept = payloads
        if answer_hostkeys:
            kept = [payload for payload in payloads if not _about_host_keys(payload)]
        if kept:
            await sink.write(b"".join(framed(payload) for payload in kept))


def _about_host_keys(payload: bytes) -> bool:
    """The legs have different host keys: dropped, for no answer is wanted."""
    return payload[0] == GLOBAL_REQUEST and payload[5:].startswith(b"hostkeys-00@")


async def relay(user: Leg, target: Leg) -> None:
    """Relay until either side ends."""
    tasks = [
        asyncio.get_running_loop().create_task(pass_on(user, target, False)),
        asyncio.get_running_loop().create_task(pass_on(target, user, True)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class RunningRelay:
    """A relay that listens; what happened in it."""

    port: int
    answers: Answers
    errors: list[str] = field(default_factory=list)
    legs: list[Leg] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    ended: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, true: Callable[[RunningRelay], bool], seconds: float = 20.0) -> None:
        """Wait until something has become true of it."""
        with self.changed:
            assert self.changed.wait_for(lambda: true(self), seconds), self.errors

    def note(self, act: Callable[[], None]) -> None:
        with self.changed:
            act()
            self.changed.notify_all()


def credential_of(server: SshServer) -> Credential:
    return Credential(server.user, key_file=str(server.login.file))


def target_of(server: SshServer, **settings: object) -> Target:
    pinned: dict[str, object] = {"host_keys": (server.host_key.line,)}
    return Target("box", "ssh", host=server.host, port=server.port, settings=settings or pinned)


def info_of(leg: Leg) -> dict[str, Any]:
    keys = ("peer", "username", "client_version", "server_version", "send_cipher", "recv_cipher", "kex", "session_id")
    return {key: leg.info(key) for key in (*keys, "host_key")}


@contextlib.contextmanager
def relaying(
    server: SshServer,
    host_key: KeyPair,
    answers: Answers,
    *,
    rekey_bytes: int = 1 << 30,
    target: Target | None = None,
    **options: Any,
) -> Iterator[RunningRelay]:
    """Run a relay to a server in a thread."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    listening.setblocking(False)
    running = RunningRelay(listening.getsockname()[1], answers)
    place = target or target_of(server, host_keys=(server.host_key.line,), rekey=rekey_bytes)
    given = ServerOptions((HostKey(host_key.file.read_bytes()),), rekey_bytes=rekey_bytes, **options)
    stop = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def one(sock: socket.socket) -> None:
        stream = SocketStream(sock, "user", server_side=True)
        try:
            user: UserLeg = await open_user(stream, answers, given)
            link = await dial(place, credential_of(server), server.user)
            running.note(lambda: (running.legs.extend((user, link)), running.infos.extend(map(info_of, (user, link)))))
            try:
                await relay(user, link)
            finally:
                await link.close()
                await user.close()
        except (GatecastError, EOFError, TimeoutError) as error:
            text = f"{type(error).__name__}: {error}"
            running.note(lambda: running.errors.append(text))
        finally:
            await stream.close()
            running.note(lambda: setattr(running, "ended", running.ended + 1))

    async def accept() -> None:
        loop = asyncio.get_running_loop()
        loops.append(loop)
        async with asyncio.TaskGroup() as group:

            async def take() -> None:
                while True:
                    sock, _ = await loop.sock_accept(listening)
                    group.create_task(one(sock))

            taking = [group.create_task(take())]
            await stop.wait()
            taking[0].cancel()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(accept())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        while not loops and thread.is_alive():
            thread.join(0.01)
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(30)
        listening.close()
        assert not thread.is_alive(), "a connection did not end"
