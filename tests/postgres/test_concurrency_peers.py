"""Crowds, storms and sudden deaths against real servers and scripted ones: nothing hangs, nothing is left behind.

gateway() checks at its end that no connection, task or descriptor is left and that every tape verifies; leftovers()
checks that no session, stream or relay is kept in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pwd
import socket
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest

from protocols.postgres import startup, wire
from protocols.postgres.relay import Relay
from proxy.core.events import Command
from proxy.core.parties import Target
from proxy.core.session import Session
from proxy.core.stream import SocketStream
from proxy.core.verdict import Allow, Hold, Verdict
from tests.fakes import TOKEN, FakeApprovals, FakeTargets
from tests.peers.postgres import PostgresServer, postgres_server
from tests.postgres.conformance_adapter import _Worlds
from tests.postgres.gateway import Gateway, gateway
from tests.postgres.scripted import STAGES, Break, babble, close, lie, reset, scripted_target, stall

pytestmark = pytest.mark.peer

WAIT_SECONDS = 20.0
LOGIN_SECONDS = 2.0


class Raw:
    """A user of few words: raw messages over asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.pid = 0
        self.secret = b""

    async def message(self) -> tuple[str, bytes]:
        """Read one message; ("", b"") at the end."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                head = await self.reader.readexactly(5)
                body = await self.reader.readexactly(wire.U32.unpack_from(head, 1)[0] - 4)
        except (asyncio.IncompleteReadError, ConnectionError):
            return "", b""
        return chr(head[0]), body

    async def until_ready(self) -> list[tuple[str, bytes]]:
        """Read to ReadyForQuery, or to the end."""
        found = []
        while True:
            kind, body = await self.message()
            found.append((kind, body))
            if kind in ("Z", ""):
                return found

    async def query(self, text: str) -> list[tuple[str, bytes]]:
        self.writer.write(wire.encode_query(text.encode()))
        return await self.until_ready()

    async def login(self, database: str = "shop") -> list[tuple[str, bytes]]:
        self.writer.write(startup.encode_startup({"user": "agent", "database": database}))
        found = [await self.message()]
        self.writer.write(startup.encode_password(TOKEN.encode()))
        found += await self.until_ready()
        for kind, body in found:
            if kind == "K":
                self.pid, self.secret = startup.parse_backend_key(body)
        return found

    def reset(self) -> None:
        """Vanish without a word of TCP's."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def users(gate: Gateway, count: int, database: str = "shop") -> AsyncIterator[list[Raw]]:
    """Log in so many users, thirty-two at a time."""
    turn = asyncio.Semaphore(32)

    async def one() -> Raw:
        async with turn:
            raw = await connect(gate)
            assert (await raw.login(database))[-1] == ("Z", b"I")
            return raw

    found = await asyncio.gather(*[one() for _ in range(count)])
    try:
        yield list(found)
    finally:
        await asyncio.gather(*[raw.close() for raw in found])


async def connect(gate: Gateway) -> Raw:
    return Raw(*await asyncio.open_connection(gate.host, gate.port, limit=1 << 16))


async def cancel(gate: Gateway, pid: int, secret: bytes) -> None:
    raw = await connect(gate)
    raw.writer.write(startup.encode_cancel(pid, secret))
    assert (await raw.message())[0] == ""
    await raw.close()


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def leftovers() -> dict[str, int]:
    """Objects of sessions that are still in memory."""
    gc.collect()
    counts: dict[str, int] = {}
    for each in gc.get_objects():
        if type(each) in (Session, Relay, SocketStream):
            counts[type(each).__name__] = counts.get(type(each).__name__, 0) + 1
    return counts


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    threads = threading.active_count()
    yield
    assert leftovers() == {}
    assert threading.active_count() <= threads


def backends(server: PostgresServer, database: str) -> int:
    return int(str(server.run(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")[0][0]))


def settings(**more: Any) -> dict[str, Any]:
    return {"plain_allowed": True, "tls": None, "login_seconds": LOGIN_SECONDS, **more}


def test_five_hundred_open_and_sixty_four_busy() -> None:
    with (
        postgres_server("18", settings={"max_connections": "560"}) as server,
        gateway(server.port) as gate,
    ):

        async def work(raw: Raw, number: int) -> None:
            for i in range(20):
                rows = (number * 7 + i * 13) % 50
                answer = await raw.query(f"SELECT g, repeat('x', {100 * i}) FROM generate_series(1, {rows}) g")
                assert sum(kind == "D" for kind, _ in answer) == rows
                assert answer[-1] == ("Z", b"I")

        async def crowd() -> None:
            async with users(gate, 500) as all_users:
                assert gate.call(lambda: len(gate.connections)) == 500
                async with asyncio.TaskGroup() as group:
                    for number, raw in enumerate(all_users[::8][:64]):
                        group.create_task(work(raw, number))
                # The silent ones are still there, and are served.
                for raw in all_users[1::50]:
                    assert [kind for kind, _ in await raw.query("SELECT 1")] == ["T", "D", "C", "Z"]

        asyncio.run(crowd())
        until(gate.idle, "sessions are left")
        assert len(gate.tape_files()) == 500


def test_a_storm_of_cancels(postgres18: PostgresServer) -> None:
    with gateway(postgres18.port) as gate:

        async def storm() -> None:
            async with users(gate, 20) as sleepers:
                other = sleepers.pop()
                for raw in sleepers:
                    raw.writer.write(wire.encode_query(b"SELECT pg_sleep(60)"))
                asleep = (
                    "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
                )
                while (await asyncio.to_thread(postgres18.run, asleep))[0][0] != len(sleepers):
                    pass
                async with asyncio.TaskGroup() as group:
                    for raw in sleepers * 15:
                        group.create_task(cancel(gate, raw.pid, raw.secret))
                for raw in sleepers:
                    answer = await raw.until_ready()
                    codes = [startup.error_fields(body)["C"] for kind, body in answer if kind == "E"]
                    assert codes == ["57014"] and answer[-1] == ("Z", b"I")
                # No cancel is under way any more: what runs next is not hit, and idle ones are not cancelled.
                for raw in sleepers:
                    await cancel(gate, raw.pid, raw.secret)
                for raw in [*sleepers, other]:
                    assert [kind for kind, _ in await raw.query("SELECT pg_sleep(0.001)")] == ["T", "D", "C", "Z"]
                # Guessing keys: nobody is hit, and soon nobody listens to this source.
                other.writer.write(wire.encode_query(b"SELECT pg_sleep(0.5)"))
                for i in range(40):
                    await cancel(gate, other.pid, struct.pack(">I", i))
                assert [kind for kind, _ in await other.until_ready()] == ["T", "D", "C", "Z"]

        asyncio.run(storm())


def test_a_flood_of_cancels_is_one_at_a_time_to_the_target() -> None:
    """However many a user sends: the target sees one connection after the other, and few of them."""
    with scripted_target() as target, gateway(target.port, password="scripted") as gate:
        gate.gate.shared["postgres.worlds"] = _Worlds()
        target.stage, target.how = "query", stall

        async def flood() -> None:
            raw = await connect(gate)
            await raw.login()
            raw.writer.write(wire.encode_query(b"SELECT 1"))
            await raw.writer.drain()
            while not target.broken.is_set():
                await asyncio.sleep(0.01)
            async with asyncio.TaskGroup() as group:
                for _ in range(200):
                    group.create_task(cancel(gate, raw.pid, raw.secret))
            await raw.close()

        asyncio.run(flood())
        until(gate.idle, "sessions are left")
        target.end()
        assert 1 <= target.cancels < 100


# -- users that die ---------------------------------------------------------------------------------------------

Stage = Callable[[Raw], Awaitable[None]]


async def nothing(raw: Raw) -> None:
    pass


async def ssl_request(raw: Raw) -> None:
    raw.writer.write(startup.encode_ssl_request())
    assert await raw.reader.readexactly(1) == b"N"


async def half_a_startup(raw: Raw) -> None:
    raw.writer.write(startup.encode_startup({"user": "agent", "database": "shop"})[:11])


async def startup_sent(raw: Raw) -> None:
    raw.writer.write(startup.encode_startup({"user": "agent", "database": "shop"}))
    assert (await raw.message())[0] == "R"


async def half_a_password(raw: Raw) -> None:
    await startup_sent(raw)
    raw.writer.write(startup.encode_password(TOKEN.encode())[:9])


async def password_sent(raw: Raw) -> None:
    await startup_sent(raw)
    raw.writer.write(startup.encode_password(TOKEN.encode()))


async def logged_in(raw: Raw) -> None:
    assert (await raw.login())[-1] == ("Z", b"I")


async def half_a_query(raw: Raw) -> None:
    await logged_in(raw)
    raw.writer.write(wire.encode_query(b"SELECT 1")[:8])


async def query_running(raw: Raw) -> None:
    await logged_in(raw)
    raw.writer.write(wire.encode_query(b"SELECT pg_sleep(60)"))


async def answer_unread(raw: Raw) -> None:
    await logged_in(raw)
    raw.writer.write(wire.encode_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 50000)"))
    await raw.message()


async def in_a_transaction(raw: Raw) -> None:
    await logged_in(raw)
    await raw.query("BEGIN; CREATE TABLE never (a int)")


async def in_a_copy(raw: Raw) -> None:
    await logged_in(raw)
    raw.writer.write(wire.encode_query(b"CREATE TEMP TABLE t (a int); COPY t FROM STDIN"))
    while (await raw.message())[0] != "G":
        pass
    raw.writer.write(wire.message(wire.COPY_DATA, b"1\n") + wire.message(wire.COPY_DATA, b"2\n")[:6])


async def in_a_pipeline(raw: Raw) -> None:
    await logged_in(raw)
    raw.writer.write(
        wire.encode_parse(b"", b"SELECT pg_sleep(60)") + wire.encode_bind(b"", b"") + wire.encode_execute(b"")
    )
    raw.writer.write(wire.message(wire.FLUSH, b""))


async def held(raw: Raw) -> None:
    await logged_in(raw)
    raw.writer.write(wire.encode_query(b"DELETE FROM t"))
    assert (await raw.message())[0] == "N"


LOGIN_STAGES = (nothing, ssl_request, half_a_startup, startup_sent, half_a_password)
USER_STAGES = (*LOGIN_STAGES, password_sent, logged_in, half_a_query, query_running, answer_unread, in_a_transaction,
               in_a_copy, in_a_pipeline, held)  # fmt: skip


def holding(command: Command) -> Verdict:
    return Hold("ask", ("mia@acme.com",), 600.0) if command.verb == "DELETE" else Allow("rest")


@pytest.mark.parametrize("way", ["reset", "close", "half-open"])
def test_users_who_die_at_every_stage(postgres18: PostgresServer, way: str) -> None:
    with (
        postgres18.database("dying") as database,
        gateway(postgres18.port, holding, database=database) as gate,
    ):
        object.__setattr__(gate.gate, "settings", settings())

        async def die(stage: Stage) -> None:
            raw = await connect(gate)
            await stage(raw)
            await raw.writer.drain()
            match way:
                case "reset":
                    raw.reset()
                case "close":
                    raw.writer.close()
                case _ if stage in LOGIN_STAGES:
                    # Silent, but there: the login's time runs out and the gate hangs up.
                    while (await raw.message())[0]:
                        pass
                    await raw.close()
                case _:
                    raw.writer.write_eof()
                    while (await raw.message())[0]:
                        pass
                    await raw.close()

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                for stage in USER_STAGES * 3:
                    group.create_task(die(stage))

        began = time.monotonic()
        asyncio.run(all_of_them())
        until(gate.idle, "sessions are left")
        assert time.monotonic() - began < WAIT_SECONDS
        until(lambda: backends(postgres18, database) <= 1, "backends are left")  # the catalogue's may idle
        assert postgres18.run("SELECT to_regclass('never')", dbname=database) == [(None,)]
        assert all(pending._decision.done() for pending in gate.approvals.pending) and len(gate.approvals.pending) == 3


def test_many_users_vanish_while_held(postgres18: PostgresServer) -> None:
    approvals = FakeApprovals()
    with gateway(postgres18.port, holding, approvals=approvals) as gate:

        async def vanish() -> None:
            async with users(gate, 60) as all_users:
                for raw in all_users:
                    raw.writer.write(wire.encode_query(b"DELETE FROM t"))
                    assert (await raw.message())[0] == "N"
                assert len(approvals.pending) == 60
                for raw in all_users:
                    raw.reset()

        asyncio.run(vanish())
        until(gate.idle, "sessions are left")
        assert [pending._decision.result().outcome for pending in approvals.pending] == ["withdrawn"] * 60


# -- targets that die -------------------------------------------------------------------------------------------


def test_targets_that_break_at_every_stage() -> None:
    """Every stage in every way at once, each on a target of its own: the user reads an error, and it all ends."""
    ways: tuple[Break, ...] = (reset, close, babble, lie, stall)
    with contextlib.ExitStack() as stack:
        targets = {}
        for stage in STAGES:
            for how in ways:
                scripted = stack.enter_context(scripted_target())
                scripted.stage, scripted.how = stage, how
                targets[f"{stage.replace(' ', '-')}-{how.__name__}"] = scripted
        known = FakeTargets(*[
            Target(name, "postgres", host="127.0.0.1", port=scripted.port, database="d", recording="written",
                   settings={"sslmode": "disable", "connect_timeout_seconds": 2})
            for name, scripted in targets.items()
        ])  # fmt: skip
        gate = stack.enter_context(gateway(0, password="scripted", targets=known))
        gate.gate.shared["postgres.worlds"] = _Worlds()

        async def one(name: str, stage: str, how: Break) -> None:
            raw = await connect(gate)
            answer = await raw.login(name)
            in_login = STAGES.index(stage) <= STAGES.index("proved")
            if not in_login and how is stall and stage == "ready":
                assert answer[-1] == ("Z", b"I")
            if answer[-1][0] == "Z":
                raw.writer.write(wire.encode_query(b"SELECT 1"))
                if how is not stall:
                    answer = await raw.until_ready()
                    if answer[-1][0] == "Z":  # it broke behind its answer
                        answer = [await raw.message(), ("", b"")]
                else:
                    await raw.writer.drain()
                    while not targets[name].broken.is_set():
                        await asyncio.sleep(0.01)
                    answer = []
            if how is not stall or in_login:
                errors = [startup.error_fields(body) for kind, body in answer if kind == "E"]
                partial = stage == "half a row"  # an error cannot be put into a row that has begun
                assert errors or partial, (name, answer)
                assert all(error["S"] == "FATAL" and error["C"][:2] in ("08", "57", "54") for error in errors), (
                    name,
                    errors,
                )
            await raw.close()

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                for stage in STAGES:
                    for how in ways:
                        group.create_task(one(f"{stage.replace(' ', '-')}-{how.__name__}", stage, how))

        asyncio.run(all_of_them())
        until(gate.idle, "sessions are left")
        for scripted in targets.values():
            scripted.end()


def test_a_target_that_ignores_the_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminate, then silence on both sides: the session is not kept for ever."""
    monkeypatch.setattr("protocols.postgres.relay.GOODBYE_SECONDS", 0.5)
    with scripted_target() as target, gateway(target.port, password="scripted") as gate:
        gate.gate.shared["postgres.worlds"] = _Worlds()
        target.stage, target.how = "query", stall

        async def leave() -> None:
            raw = await connect(gate)
            await raw.login()
            raw.writer.write(wire.encode_query(b"SELECT 1"))
            await raw.writer.drain()
            while not target.broken.is_set():
                await asyncio.sleep(0.01)
            raw.writer.write(wire.message(wire.TERMINATE, b""))
            await raw.close()

        asyncio.run(leave())
        until(gate.idle, "the session is left")
        target.end()


def test_a_user_who_dies_while_the_target_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way up is stuck in a full socket, so that nobody there reads the end of file."""
    monkeypatch.setattr("protocols.postgres.relay.GOODBYE_SECONDS", 0.5)
    with scripted_target() as target, gateway(target.port, password="scripted") as gate:
        gate.gate.shared["postgres.worlds"] = _Worlds()
        target.stage, target.how = "query", stall

        async def push() -> None:
            raw = await connect(gate)
            await raw.login()
            block = wire.encode_query(b"SELECT '" + b"x" * 100_000 + b"'")
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(1.5):
                    for _ in range(1000):
                        raw.writer.write(block)
                        await raw.writer.drain()
                    raise AssertionError("somebody takes it all")
            raw.reset()

        asyncio.run(push())
        until(gate.idle, "the session is left")
        target.end()


def test_a_server_that_restarts() -> None:
    with postgres_server("15") as server, gateway(server.port) as gate:
        owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None

        def control(*words: str) -> None:
            subprocess.run(
                [str(server.bin / "pg_ctl"), "-D", str(server.folder / "data"), "-m", "fast", "-w", *words],
                check=True, capture_output=True, timeout=60, cwd=server.folder, stdin=subprocess.DEVNULL,
                user=owner.pw_uid if owner else None, group=owner.pw_gid if owner else None,
            )  # fmt: skip

        async def crowd() -> None:
            async with users(gate, 30) as all_users:
                for raw in all_users[:10]:
                    raw.writer.write(wire.encode_query(b"SELECT pg_sleep(60)"))
                await asyncio.to_thread(control, "stop")
                for raw in all_users:
                    codes = [startup.error_fields(body)["C"] for kind, body in await raw.until_ready() if kind == "E"]
                    assert codes and codes[0] == "57P01" and len(codes) == 1, codes
                down = await connect(gate)
                errors = [startup.error_fields(body) for kind, body in await down.login() if kind == "E"]
                assert [error["C"] for error in errors] == ["08001"] and "reach" in errors[0]["M"]
                await down.close()

        asyncio.run(crowd())
        control("-l", str(server.folder / "log2"), "-o", f"-p {server.port}", "start")
        try:
            with psycopg.connect(gate.conninfo()) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            until(gate.idle, "sessions are left")
        finally:
            control("stop")
