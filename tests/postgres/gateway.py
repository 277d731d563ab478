"""A gateway in a thread, for tests with real clients and servers: real reader, recorder and masks, fake people.

The rule under test is a Python function (or a RuleSet's decide); identities and approvals are the fakes of
tests/fakes.py. On leaving, every session must be gone, no task or descriptor left, and every tape must verify.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from psycopg.conninfo import make_conninfo

from protocols.postgres.serve import serve
from proxy.core.gate import Gate
from proxy.core.parties import Credential, Secret, Target
from proxy.core.stream import SocketStream
from proxy.masking.masker import Masking
from proxy.policy.sql import SqlReader
from recorder.seal import SealKey
from recorder.tape import Recorder
from recorder.verify import verify
from tests.fakes import TOKEN, FakeApprovals, FakeCredentials, FakeTargets, Rule, allow_all, fake_gate

STOP_SECONDS = 20.0
TAPES = "gatecast-tapes-"


@dataclass
class Gateway:
    """A running gateway: connect to port with TOKEN as the password."""

    port: int
    tapes: Path
    key: SealKey
    gate: Gate
    loop: asyncio.AbstractEventLoop
    connections: set[asyncio.Task[None]] = field(default_factory=set)
    host: str = "127.0.0.1"

    def conninfo(self, **parameters: str | int) -> str:
        """A libpq connection string for target shop."""
        values: dict[str, str | int] = {
            "host": self.host, "port": self.port, "user": "agent", "password": TOKEN, "dbname": "shop",
        }  # fmt: skip
        return make_conninfo("", **(values | parameters))

    @property
    def environment(self) -> dict[str, str]:
        """The environment for libpq programs."""
        return {
            "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGHOST": self.host, "PGPORT": str(self.port),
            "PGUSER": "agent", "PGPASSWORD": TOKEN, "PGDATABASE": "shop", "HOME": str(self.tapes),
        }  # fmt: skip

    @property
    def approvals(self) -> FakeApprovals:
        approvals = self.gate.approvals
        assert isinstance(approvals, FakeApprovals)
        return approvals

    def call(self, function: Any, *arguments: Any) -> Any:
        """Run a function on the gateway's loop and return what it returns."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(function(*arguments))
            except BaseException as error:
                done.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return done.result(STOP_SECONDS)

    def idle(self) -> bool:
        """Whether no connection is open."""
        return not self.call(lambda: self.connections)

    def tape_files(self) -> list[Path]:
        """All tapes so far."""
        return sorted(self.tapes.rglob("*.gct"))


@contextlib.contextmanager
def gateway(
    port: int,
    rule: Rule = allow_all,
    *,
    target_host: str = "127.0.0.1",
    database: str = "postgres",
    user: str = "postgres",
    password: str | None = None,
    settings: dict[str, object] | None = None,
    tls: ssl.SSLContext | None = None,
    listener_settings: dict[str, Any] | None = None,
    recording: Any = "written",
    verify_tapes: bool = True,
    listen_port: int = 0,
    **services: Any,
) -> Iterator[Gateway]:
    """Run a gateway in front of the PostgreSQL server on a port of 127.0.0.1."""
    with tempfile.TemporaryDirectory(prefix=TAPES) as folder:
        key = SealKey.generate()
        recorder = Recorder(Path(folder), key, node="test", boot="test")
        target = Target(
            "shop", "postgres", host=target_host, port=port, database=database,
            settings={"sslmode": "disable", **(settings or {})}, recording=recording,
        )  # fmt: skip
        credential = Credential(user, Secret(password) if password is not None else None)
        with socket.create_server(("127.0.0.1", listen_port), backlog=600) as listener:
            listener.setblocking(False)
            made: Future[Gateway] = Future()
            stop = threading.Event()

            async def run() -> None:
                listens: dict[str, Any] = {"plain_allowed": True, "tls": tls, **(listener_settings or {})}
                gate = fake_gate(
                    rule,
                    **{
                        "targets": FakeTargets(target),
                        "credentials": FakeCredentials(credential),
                        "reader": SqlReader(),
                        "masker": Masking(b"k" * 32),
                        "recorder": recorder,
                        "settings": listens,
                        **services,
                    },
                )
                loop = asyncio.get_running_loop()
                server = Gateway(listener.getsockname()[1], Path(folder), key, gate, loop)
                loop.call_soon(made.set_result, server)
                await _accept(listener, server, stop)

            def thread() -> None:
                try:
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        runner.run(run())
                except BaseException as error:
                    if not made.done():
                        made.set_exception(error)
                    raise

            worker = threading.Thread(target=thread, name="gateway")
            before = _descriptors()
            worker.start()
            try:
                server = made.result(STOP_SECONDS)
                yield server
            finally:
                stop.set()
                worker.join(STOP_SECONDS)
                assert not worker.is_alive(), "the gateway did not stop"
            assert not server.connections, "connections were left behind"
            recorder.close()
            gc.collect()
            assert not (left := _left_since(before, str(folder))), f"descriptors leaked: {left}"
            if verify_tapes:
                for tape in server.tape_files():
                    report = verify(tape, key.public_keys())
                    assert report.exit_code == 0, report


def _left_since(before: dict[str, str], folder: str) -> dict[str, str]:
    """What is open and was not, but for the recordings of other gateways of this process."""
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        left = {name: place for name, place in _descriptors().items() if before.get(name) != place}
        left = {name: place for name, place in left.items() if TAPES not in place or place.startswith(folder)}
        # libuv keeps one pair of pipe ends for signals, once a process.
        left = {name: place for name, place in left.items() if list(left.values()).count(place) != 2}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
    return found


async def _accept(listener: socket.socket, server: Gateway, stop: threading.Event) -> None:
    loop = asyncio.get_running_loop()

    async def one(stream: SocketStream) -> None:
        task = asyncio.current_task()
        assert task is not None
        server.connections.add(task)
        try:
            await serve(stream, server.gate)
        finally:
            server.connections.discard(task)

    async def wait_for_stop() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.02)
        raise TimeoutError

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(wait_for_stop())
            while True:
                sock, _ = await loop.sock_accept(listener)
                group.create_task(one(SocketStream(sock, "user", server_side=True)))
