"""A connection to a target: its answers, what cuts them short, and when it may be used again; the pool of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.core.errors import TargetPeerError
from proxy.core.http.client import INTERIM_LIMIT, TargetConnection
from proxy.core.http.pool import Pool
from proxy.core.stream import MemoryStream, memory_pair
from tests.core.http.messages import cuts, response

CHUNKED = "Transfer-Encoding: chunked"
OK = response("HTTP/1.1 200 OK", "Content-Length: 2", body=b"ok")
Test = Callable[[MemoryStream, TargetConnection], Awaitable[None]]


def run(test: Test) -> None:
    async def main() -> None:
        target, stream = memory_pair()
        async with asyncio.timeout(20):
            await test(target, TargetConnection(stream))

    asyncio.run(main())


async def send(target: MemoryStream, pieces: list[bytes], end: bool = False) -> None:
    for piece in pieces:
        await target.write(piece)
        await asyncio.sleep(0)
    if end:
        await target.close()


def test_answers_one_after_another() -> None:
    first = response("HTTP/1.1 100 Continue") + response("HTTP/1.1 103 Early Hints", "Link: x")
    first += response("HTTP/1.1 201 Created", CHUNKED, body=b"3\r\nabc\r\n0\r\nX: y\r\n\r\n")

    async def test(target: MemoryStream, connection: TargetConnection, pieces: list[bytes]) -> None:
        async with asyncio.TaskGroup() as group:
            assert connection.reusable
            group.create_task(send(target, pieces))
            head = await connection.response("POST")
            assert (head.status, await connection.body(3)) == (201, b"abc")
            assert connection.reusable
            group.create_task(send(target, [response("HTTP/1.1 200 OK", "Content-Length: 7")]))
            assert (await connection.response("HEAD")).get("content-length") == "7"
            assert await connection.body(0) == b""
            assert (connection.reusable, connection.used) == (True, 2)

    for pieces in cuts(first):
        run(lambda target, connection, pieces=pieces: test(target, connection, pieces))  # type: ignore[misc]


def test_a_body_up_to_the_end_of_the_connection() -> None:
    async def test(target: MemoryStream, connection: TargetConnection) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(send(target, [response(), b"abc", b"def"], end=True))
            assert (await connection.response("GET")).length is None
            assert [piece async for piece in connection.pieces()] == [b"abc", b"def"]
        assert not connection.reusable

    run(test)


def test_an_answer_that_is_cut_short_is_an_error() -> None:
    whole = response("HTTP/1.1 200 OK", CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n")
    for size in range(len(whole)):

        async def test(target: MemoryStream, connection: TargetConnection) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(send(target, [whole[:size]], end=True))  # noqa: B023
                with pytest.raises(TargetPeerError):
                    await connection.response("GET")
                    await connection.body(10)
            assert connection.silent is (size == 0)  # noqa: B023
            assert not connection.reusable
            with pytest.raises(TargetPeerError):
                await connection.response("GET")

        run(test)


def test_bodies_over_the_limit() -> None:
    for data in (OK, response("HTTP/1.1 200 OK", CHUNKED, body=b"2\r\nok\r\n0\r\n\r\n")):
        for limit, fits in [(3, True), (2, True), (1, False)]:

            async def test(target: MemoryStream, connection: TargetConnection) -> None:
                await target.write(data)  # noqa: B023
                await connection.response("GET")
                if fits:  # noqa: B023
                    assert await connection.body(limit) == b"ok"  # noqa: B023
                else:
                    with pytest.raises(TargetPeerError):
                        await connection.body(limit)  # noqa: B023
                assert connection.reusable is fits  # noqa: B023

            run(test)


def test_when_it_may_not_be_used_again() -> None:
    for data, read in [
        (response("HTTP/1.1 200 OK", "Content-Length: 2", "Connection: close", body=b"ok"), True),
        (response("HTTP/1.0 200 OK", "Content-Length: 2", body=b"ok"), True),
        (OK + b"H", True),  # an answer to what nobody asked
        (OK, False),
    ]:

        async def test(target: MemoryStream, connection: TargetConnection) -> None:
            await target.write(data)  # noqa: B023
            await connection.response("GET")
            assert not connection.reusable
            if read:  # noqa: B023
                assert await connection.body(10) == b"ok"
                assert not connection.reusable
            else:
                with pytest.raises(TargetPeerError):
                    await connection.response("GET")

        run(test)


def test_an_answer_ahead_of_its_question_is_never_taken_for_its_own() -> None:
    async def test(target: MemoryStream, connection: TargetConnection) -> None:
        await target.write(OK + OK)
        await connection.response("GET")
        await connection.body(10)
        assert not connection.reusable
        with pytest.raises(TargetPeerError):
            await connection.response("GET")

    run(test)


def test_interim_answers_are_bounded() -> None:
    for count, fits in [(INTERIM_LIMIT - 1, True), (INTERIM_LIMIT, True), (INTERIM_LIMIT + 1, False)]:

        async def test(target: MemoryStream, connection: TargetConnection) -> None:
            await target.write(response("HTTP/1.1 102 Processing") * count + OK)  # noqa: B023
            if fits:  # noqa: B023
                assert (await connection.response("GET")).status == 200
            else:
                with pytest.raises(TargetPeerError):
                    await connection.response("GET")

        run(test)


def test_a_target_that_switches_protocols() -> None:
    async def test(target: MemoryStream, connection: TargetConnection) -> None:
        fields = ("Upgrade: websocket", "Connection: Upgrade")
        await target.write(response("HTTP/1.1 101 Switching Protocols", *fields) + b"\x82\x01\x01")
        assert (await connection.response("GET")).status == 101
        assert connection.take_over() == b"\x82\x01\x01"
        assert not connection.reusable

    async def other(target: MemoryStream, connection: TargetConnection) -> None:
        await target.write(OK)
        await connection.response("GET")
        with pytest.raises(TargetPeerError):
            connection.take_over()

    run(test)
    run(other)


class Site:
    """Makes connections, and plays their targets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.targets: list[MemoryStream] = []

    async def dial(self) -> TargetConnection:
        target, stream = memory_pair()
        self.targets.append(target)
        return TargetConnection(stream)

    def clock(self) -> float:
        return self.now


def pooled(test: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test(Site())

    asyncio.run(main())


def test_the_youngest_is_handed_out_and_only_once() -> None:
    async def test(site: Site) -> None:
        pool = Pool(site.clock)
        one, two = await pool.get("a", site.dial), await pool.get("a", site.dial)
        pool.give_back("a", one)
        pool.give_back("a", two)
        assert len(pool) == 2
        assert await pool.get("a", site.dial) is two
        assert await pool.get("b", site.dial) not in (one, two)
        assert await pool.get("a", site.dial) is one
        assert await pool.get("a", site.dial) not in (one, two)
        assert len(site.targets) == 4

    pooled(test)


def test_one_that_ended_or_spoke_while_it_waited_is_not_handed_out() -> None:
    async def test(site: Site) -> None:
        pool = Pool(site.clock)
        for number, ruin in enumerate([lambda target: target.close(), lambda target: target.write(OK)]):
            one = await pool.get("a", site.dial)
            pool.give_back("a", one)
            await ruin(site.targets[-1])
            assert await pool.get("a", site.dial) is not one
            assert len(site.targets) == 2 * (number + 1)
            assert site.targets[-2].closed or site.targets[-2].other.closed
            assert len(pool) == 0

    pooled(test)


def test_one_that_cannot_be_used_again_is_closed() -> None:
    async def test(site: Site) -> None:
        pool = Pool(site.clock)
        one = await pool.get("a", site.dial)
        await site.targets[0].write(OK)
        await one.response("GET")
        pool.give_back("a", one)  # its body was not read
        assert (len(pool), one.stream.info("quiet")) == (0, False)

    pooled(test)


def test_the_idle_time() -> None:
    async def test(site: Site) -> None:
        pool = Pool(site.clock, idle_seconds=60.0)
        for waited, kept in [(59.9, True), (60.0, False), (60.1, False)]:
            one = await pool.get("a", site.dial)
            pool.give_back("a", one)
            site.now += waited
            assert (await pool.get("a", site.dial) is one) is kept
        # Those of a key that nobody asks for are closed when somebody else comes by.
        one = await pool.get("old", site.dial)
        pool.give_back("old", one)
        site.now += 61.0
        pool.give_back("new", await site.dial())
        assert (len(pool), one.stream.info("quiet")) == (1, False)

    pooled(test)


def test_the_limits_of_a_pool() -> None:
    async def test(site: Site) -> None:
        pool = Pool(site.clock, key_limit=2, pool_limit=3)
        connections = {}
        for number, key in enumerate(["a", "a", "a", "b", "c"]):
            site.now += 1
            connections[number] = await site.dial()
            pool.give_back(key, connections[number])
        assert len(pool) == 3
        # The oldest of the key went for the third, and the oldest of all for the last.
        quiet = [number for number, one in connections.items() if one.stream.info("quiet")]
        assert quiet == [2, 3, 4]

    pooled(test)


def test_a_closed_pool_keeps_nothing() -> None:
    async def test(site: Site) -> None:
        pool = Pool(site.clock)
        one, two = await pool.get("a", site.dial), await pool.get("a", site.dial)
        pool.give_back("a", one)
        await pool.close_all()
        pool.give_back("a", two)
        assert (len(pool), one.stream.info("quiet"), two.stream.info("quiet")) == (0, False, False)

    pooled(test)
