"""Residents: work that outlives the connection which began it is listed, ended, drained and sealed like one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest

import protocols
from protocols import Protocol
from proxy.admin.client import AdminClient
from proxy.app import Gateway
from proxy.core.gate import Gate
from proxy.core.parties import Identity
from proxy.core.residents import Nowhere
from proxy.core.stream import Stream
from proxy.identity.commands import token_revoke
from recorder.tape import Kind, Tape
from tests.test_app import CONFIG, events, folder, logs, run, talk, token_of, until, verified

__all__ = ["folder", "logs"]  # fixtures
MORE = CONFIG.replace("drain_seconds: 0", "drain_seconds: 60")

Act = Callable[["House", Gate, Tape], Awaitable[None]]


@dataclass
class House:
    """What a resident of these tests does, and what became of each."""

    act: Act
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    tapes: list[Tape] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    async def serve(self, user: Stream, gate: Gate) -> None:
        """Say the token, get the session of a resident; the connection ends there."""
        await user.start(None)
        token = (await user.read(1000)).decode().split()[0]
        identity = await gate.identities.password("toy", token)
        opened = asyncio.Event()

        async def work() -> None:
            self.tapes.append(
                gate.recorder.open(
                    protocol="toy", identity={"subject": identity.subject}, target="shelf", mode="written"
                )
            )
            opened.set()
            try:
                await self.act(self, gate, self.tapes[-1])
            except asyncio.CancelledError as cancelled:
                self.reasons.append(str(cancelled.args[0]) if cancelled.args else "")
                raise

        self.tasks.append(gate.residents.start("toy", str(gate.settings["listener"]), identity, work))
        await opened.wait()
        await user.write(f"session {self.tapes[-1].sid}\n".encode())


async def until_stopped(house: House, gate: Gate, tape: Tape) -> None:
    await gate.residents.stopping.wait()


async def stubborn(house: House, gate: Gate, tape: Tape) -> None:
    await asyncio.Event().wait()


async def in_order(house: House, gate: Gate, tape: Tape) -> None:
    """As a session that is idle ends: it closes its own tape."""
    await tape.close("closed", "idle")


async def failing(house: House, gate: Gate, tape: Tape) -> None:
    raise RuntimeError("CANARY-text-of-a-frame")


def moved_in(monkeypatch: pytest.MonkeyPatch, act: Act) -> House:
    house = House(act)
    made = {**protocols.load(), "toy": Protocol("toy", frozenset({"LOOK"}), 1, house.serve)}
    monkeypatch.setattr(protocols, "load", lambda: made)
    return house


async def ended(house: House) -> None:
    async with asyncio.timeout(10):
        await asyncio.wait(house.tasks)


async def visited(gateway: Gateway, token: str) -> str:
    """Begin a resident; its session, once the connection itself is over."""
    async with talk(gateway) as user:
        session = (await user.say(f"{token} shelf")).removeprefix("session ")
        assert await user.hear() == ""
    await until(lambda: len(gateway.connections) == 0)
    return session


def test_it_outlives_its_connection_and_an_operator_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = moved_in(monkeypatch, stubborn)

    async def body(gateway: Gateway) -> None:
        session = await visited(gateway, token_of(folder)[0])
        assert len(gateway.connections) == 0  # which is the number of connections, and limited as such
        admin = AdminClient(folder / "state" / "admin.sock")
        (row,) = await asyncio.to_thread(admin.call, "sessions.live")
        assert (row["id"], row["identity"], row["target"], row["protocol"], row["listener"]) == (
            session, "ana@example.com", "shelf", "toy", "toy",
        )  # fmt: skip
        await asyncio.to_thread(lambda: admin.call("sessions.kill", id=session))
        await ended(house)
        assert await asyncio.to_thread(admin.call, "sessions.live") == []

    run(folder, body)
    assert house.reasons == ["killed"]
    assert verified(folder) == "verified"  # sealed, though it did not close its tape


def test_two_of_one_user_are_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = moved_in(monkeypatch, stubborn)

    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        first, second = await visited(gateway, token), await visited(gateway, token)
        assert [row["id"] for row in gateway.connections.live()] == [first, second]
        assert gateway.connections.kill(first, "root")
        async with asyncio.timeout(10):
            await asyncio.wait(house.tasks[:1])
        assert [row["id"] for row in gateway.connections.live()] == [second]
        assert not gateway.connections.kill(first, "root")

    run(folder, body)


def test_a_revoked_token_ends_it_and_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = moved_in(monkeypatch, stubborn)

    async def body(gateway: Gateway) -> None:
        token, number = token_of(folder)
        await visited(gateway, token)
        bystander = await visited(gateway, token_of(folder, "bob@example.com")[0])
        token_revoke(folder / "state" / "gatecast.db", number)
        async with asyncio.timeout(10):
            await asyncio.wait(house.tasks[:1])
        assert house.reasons == ["the login was revoked or has expired"]
        assert [row["id"] for row in gateway.connections.live()] == [bystander]

    run(folder, body)


def test_when_the_gateway_stops_it_ends_as_soon_as_nobody_needs_it(
    folder: Path, logs: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "gatecast.yaml").write_text(MORE)  # run() itself would not wait for so long
    house = moved_in(monkeypatch, until_stopped)

    async def body(gateway: Gateway) -> None:
        await visited(gateway, token_of(folder)[0])
        gateway.stop()
        await ended(house)

    run(folder, body)
    assert house.reasons == []  # nobody ended it
    assert [one for one in events(logs) if one["event"] == "sessions-ended"] == []
    assert verified(folder) == "verified"


def test_one_that_does_not_listen_is_ended_when_the_drain_is_over(
    folder: Path, logs: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = moved_in(monkeypatch, stubborn)

    async def body(gateway: Gateway) -> None:
        await visited(gateway, token_of(folder)[0])

    run(folder, body)
    assert house.reasons == ["the gateway stops"]
    assert [one["count"] for one in events(logs) if one["event"] == "sessions-ended"] == [1]
    assert verified(folder) == "verified"


def test_the_drain_waits_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gatecast.yaml").write_text(MORE)
    let_go = asyncio.Event()

    async def busy(house: House, gate: Gate, tape: Tape) -> None:
        await gate.residents.stopping.wait()
        await let_go.wait()  # somebody needs it still

    house = moved_in(monkeypatch, busy)

    async def body(gateway: Gateway) -> None:
        await visited(gateway, token_of(folder)[0])
        gateway.stop()
        await until(lambda: gateway.connections.stopping.is_set())
        await asyncio.sleep(0)
        assert not house.tasks[0].done()
        assert gateway.connections.live() != []
        let_go.set()
        await ended(house)

    run(folder, body)
    assert house.reasons == []


def test_a_tape_that_it_closed_is_left_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = moved_in(monkeypatch, in_order)

    async def body(gateway: Gateway) -> None:
        await visited(gateway, token_of(folder)[0])
        await ended(house)
        assert gateway.connections.live() == []

    run(folder, body)
    assert verified(folder) == "verified"


def test_one_that_fails_ends_nothing_else(folder: Path, logs: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    house = moved_in(monkeypatch, failing)

    async def body(gateway: Gateway) -> None:
        token, _ = token_of(folder)
        await visited(gateway, token)
        await ended(house)
        assert house.tasks[0].exception() is None  # it ended in the log
        house.act = stubborn
        assert await visited(gateway, token)  # the gateway lives

    run(folder, body)
    failed = [one for one in events(logs) if one["event"] == "connection-failed"]
    assert len(failed) == 1
    assert "CANARY" not in logs.getvalue()
    assert failed[0]["session"] == house.tapes[0].sid
    assert verified(folder) == "verified"


def test_its_tapes_are_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends seals the tapes that it opened, and not those of the resident it began."""
    house = moved_in(monkeypatch, stubborn)

    async def body(gateway: Gateway) -> None:
        session = await visited(gateway, token_of(folder)[0])
        house.tapes[0].append(2, Kind.WIRE, b"still open")
        assert gateway.connections.live()[0]["id"] == session

    run(folder, body)
    assert verified(folder) == "verified"


def test_without_a_place_nothing_outlives_a_connection() -> None:
    async def work() -> None:
        raise AssertionError("it ran")

    with pytest.raises(RuntimeError):
        Nowhere().start("toy", "toy", Identity("ana"), work)
    assert not Nowhere().stopping.is_set()
