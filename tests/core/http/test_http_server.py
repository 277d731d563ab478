"""A user's connection: one request after another, bodies with back-pressure, what is dropped, who has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.core.errors import UserPeerError
from proxy.core.http import server
from proxy.core.http.heads import BadRequest
from proxy.core.http.server import DROP_LIMIT, UserConnection
from proxy.core.stream import HIGH_WATER_BYTES, MemoryStream, memory_pair
from tests.core.http.messages import cuts, request

CHUNKED = "Transfer-Encoding: chunked"
Test = Callable[[MemoryStream, UserConnection], Awaitable[None]]


def run(test: Test, head_seconds: float = 10.0) -> None:
    async def main() -> None:
        user, stream = memory_pair()
        async with asyncio.timeout(20):
            await test(user, UserConnection(stream, head_seconds))

    asyncio.run(main())


def test_requests_one_after_another() -> None:
    data = (
        request("POST /1 HTTP/1.1", "Content-Length: 5", body=b"hello")
        + request("PUT /2 HTTP/1.1", CHUNKED, body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        + request("GET /3 HTTP/1.1", "Connection: close")
    )

    async def test(user: MemoryStream, connection: UserConnection, pieces: list[bytes]) -> None:
        async def send() -> None:
            for piece in pieces:
                await user.write(piece)
            await user.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            found = []
            while (head := await connection.request(5.0)) is not None:
                found.append((head.method, head.target, await connection.body(10), head.keep_alive))
                assert await connection.drop()
        assert found == [
            ("POST", "/1", b"hello", True), ("PUT", "/2", b"abcde", True), ("GET", "/3", b"", False),
        ]  # fmt: skip

    for pieces in cuts(data):
        run(lambda user, connection, pieces=pieces: test(user, connection, pieces))  # type: ignore[misc]


def test_a_user_that_leaves_between_requests_is_no_error() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request())
        assert await connection.request() is not None
        await user.close()
        assert await connection.request() is None
        assert await connection.request() is None

    run(test)


def test_an_idle_user_is_let_go() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        assert await connection.request(idle_seconds=0.01) is None

    run(test)


def test_a_user_that_leaves_in_the_middle() -> None:
    async def head(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(b"GET / HT")
        await user.close()
        with pytest.raises(UserPeerError):
            await connection.request()
        assert await connection.request() is None

    async def body(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", "Content-Length: 5", body=b"abc"))
        await connection.request()
        await user.close()
        with pytest.raises(UserPeerError):
            await connection.body(10)
        assert not await connection.drop()
        assert await connection.request() is None

    run(head)
    run(body)


def test_a_head_that_does_not_come_in_time() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(b"GET / HTTP/1.1\r\n")
        with pytest.raises(BadRequest) as caught:
            await connection.request()
        assert (caught.value.status, caught.value.closing) == (408, True)

    run(test, head_seconds=0.02)


def test_an_empty_line_alone_is_no_end() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        async with asyncio.TaskGroup() as group:
            coming = group.create_task(connection.request(5.0))
            for piece in (b"\r\n", request("GET /x HTTP/1.1")):
                await user.write(piece)
                await asyncio.sleep(0)
            head = await coming
        assert head is not None
        assert head.target == "/x"

    run(test)


def test_a_body_at_its_limit() -> None:
    for field, body in [("Content-Length: 10", b"0123456789"), (CHUNKED, b"A\r\n0123456789\r\n0\r\n\r\n")]:
        for limit, status in [(11, 0), (10, 0), (9, 413)]:

            async def test(user: MemoryStream, connection: UserConnection) -> None:
                await user.write(request("POST / HTTP/1.1", field, body=body))  # noqa: B023
                await connection.request()
                try:
                    assert await connection.body(limit) == b"0123456789"  # noqa: B023
                    found = 0
                except BadRequest as bad:
                    found = bad.status
                assert found == status  # noqa: B023

            run(test)


def test_a_body_that_stalls_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.01)

    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", "Content-Length: 10", body=b"01234"))
        await connection.request()
        with pytest.raises(BadRequest) as caught:
            await connection.body(100)
        assert caught.value.status == 408
        assert await connection.request() is None

    run(test)


def test_a_broken_body_is_a_bad_request() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n"))
        # What is behind the broken chunk is of no more use; the head is.
        with pytest.raises(BadRequest) as caught:
            await connection.request()
            await connection.body(100)
        assert (caught.value.status, caught.value.closing) == (400, True)
        assert not await connection.drop()

    run(test)


def test_one_that_expects_is_told_to_go_on_when_its_body_is_wanted() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 3"))
        assert await connection.request() is not None
        async with asyncio.TaskGroup() as group:
            body = group.create_task(connection.body(10))
            assert await user.read(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await user.write(b"abc")
        assert body.result() == b"abc"
        assert await connection.drop()

    run(test)


def test_one_that_expects_and_is_refused_cannot_go_on() -> None:
    """It may send its body or not: nobody can tell what the next bytes are."""

    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 3"))
        await connection.request()
        assert not await connection.drop()
        await user.write(request())
        assert await connection.request() is None
        async with asyncio.TaskGroup() as group:
            group.create_task(connection.respond(403))
            assert (await user.read(1000)).startswith(b"HTTP/1.1 403 ")  # and no 100 ahead of it
            await user.close()

    run(test)


def test_one_whose_body_is_here_already_is_not_told_to_go_on() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 6", body=b"abc"))
        await connection.request()
        async with asyncio.TaskGroup() as group:
            body = group.create_task(connection.body(10))
            await asyncio.sleep(0)
            await user.write(b"def")
        assert body.result() == b"abcdef"
        await connection.respond(204, ())
        assert (await user.read(1000)).startswith(b"HTTP/1.1 204 ")

    run(test)


def test_what_nobody_wanted_is_dropped_up_to_a_bound() -> None:
    async def test(user: MemoryStream, connection: UserConnection, size: int, chunked: bool) -> None:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size)) if chunked else bytes(size)
        field = CHUNKED if chunked else f"Content-Length: {size}"

        async def send() -> None:
            await user.write(request("POST / HTTP/1.1", field, body=body) + request("GET /next HTTP/1.1"))

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send())
            await connection.request()
            kept = await connection.drop()
            assert kept is (size <= DROP_LIMIT)
            head = await connection.request()
            assert (head.target if head is not None else None) == ("/next" if kept else None)
            sending.cancel()

    for size in (DROP_LIMIT - 1, DROP_LIMIT, DROP_LIMIT + 1):
        for chunked in (True, False):
            run(lambda user, connection, size=size, chunked=chunked: test(user, connection, size, chunked))  # type: ignore[misc]


def test_a_body_that_nobody_read_is_dropped_by_the_next_request() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        body = request("GET /not-a-request HTTP/1.1")
        await user.write(request("POST / HTTP/1.1", f"Content-Length: {len(body)}", body=body))
        await user.write(request("GET /next HTTP/1.1"))
        await connection.request()
        head = await connection.request()
        assert head is not None
        assert head.target == "/next"

    run(test)


def test_a_body_is_read_no_faster_than_it_is_taken() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        size = 40 * HIGH_WATER_BYTES
        sent = 0

        async def send() -> None:
            nonlocal sent
            await user.write(request("POST / HTTP/1.1", f"Content-Length: {size}"))
            while sent < size:
                await user.write(bytes(HIGH_WATER_BYTES))
                sent += HIGH_WATER_BYTES

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            await connection.request()
            taken = 0
            async for piece in connection.pieces():
                taken += len(piece)
                for _ in range(5):
                    await asyncio.sleep(0)  # the sender may run as far as it can
                assert sent - taken <= 3 * HIGH_WATER_BYTES
            assert taken == size

    run(test)


def test_pieces_may_be_left_in_the_middle() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", CHUNKED, body=b"3\r\nabc\r\n"))
        await connection.request()
        async for piece in connection.pieces():
            assert piece == b"abc"
            break
        await user.write(b"3\r\ndef\r\n0\r\n\r\n" + request("GET /next HTTP/1.1"))
        assert await connection.drop()
        head = await connection.request()
        assert head is not None
        assert head.target == "/next"

    run(test)


def test_gone_notices_the_end_while_nothing_is_read() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request())
        await connection.request()
        async with asyncio.TaskGroup() as group:
            gone = group.create_task(connection.gone())
            await user.write(request("GET /ahead HTTP/1.1"))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not gone.done()
            await user.close()
            await gone

    run(test)


def test_what_was_sent_ahead_is_served_next() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("GET /1 HTTP/1.1") + request("GET /2 HTTP/1.1") + request("GET /3 HTTP/1.1"))
        for path in ("/1", "/2", "/3"):
            head = await connection.request()
            assert head is not None
            assert head.target == path

    run(test)


def test_a_connection_that_is_taken_over() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket") + b"\x82\x80abcd")
        head = await connection.request()
        assert head is not None
        assert head.upgrade == "websocket"
        assert connection.take_over() == b"\x82\x80abcd"
        with pytest.raises(AssertionError):
            await connection.request()

    async def body(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", "Content-Length: 9"))
        await connection.request()
        with pytest.raises(BadRequest):
            connection.take_over()

    run(test)
    run(body)


def test_answers_without_a_session() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        for line, fields, close, connection_field, body in [
            ("GET / HTTP/1.1", (), False, b"", b"no"),
            ("HEAD / HTTP/1.1", (), False, b"", b""),
            ("GET / HTTP/1.0", ("Connection: keep-alive",), False, b"Connection: keep-alive\r\n", b"no"),
            ("GET / HTTP/1.1", ("Connection: close",), False, b"Connection: close\r\n", b"no"),
            ("GET / HTTP/1.1", (), True, b"Connection: close\r\n", b"no"),
        ]:
            await user.write(request(line, *fields))
            await connection.request()
            await connection.respond(401, [("WWW-Authenticate", "Bearer")], b"no", close=close)
            assert await user.read(1000) == (
                b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 2\r\n"
                + connection_field + b"\r\n" + body
            )  # fmt: skip

    run(test)


def test_a_bad_request_behind_a_head_request_gets_a_body() -> None:
    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("HEAD / HTTP/1.1") + b"nonsense\r\n\r\n")
        await connection.request()
        with pytest.raises(BadRequest):
            await connection.request()
        async with asyncio.TaskGroup() as group:
            group.create_task(connection.respond(400, (), b"why"))
            answer = await user.read(1000)
            await user.close()
        assert answer.endswith(b"Connection: close\r\n\r\nwhy")

    run(test)


def test_a_last_answer_waits_for_bytes_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed with bytes unread, a socket sends a reset, and the answer is lost with it."""
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.05)

    async def test(user: MemoryStream, connection: UserConnection) -> None:
        await user.write(request("POST / HTTP/1.1", "Content-Length: 1000000", body=bytes(40_000)))
        await connection.request()
        with pytest.raises(BadRequest):
            await connection.body(10)
        async with asyncio.TaskGroup() as group:
            group.create_task(connection.respond(413, (), b"too much", close=True))
            assert b"413" in await user.read(1000)
            await user.write(bytes(100_000))  # would wait for ever if nobody read it

    run(test)
