"""Both ends over real sockets with TLS: bulk, pipelines, ends noticed, connections that are kept and that are not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from proxy.core.errors import TargetPeerError
from proxy.core.http import server
from proxy.core.http.client import TargetConnection
from proxy.core.http.framing import Framing
from proxy.core.http.heads import BadRequest, ResponseHead, encode_request
from proxy.core.http.pool import Pool
from proxy.core.http.server import UserConnection
from proxy.core.stream import SocketStream
from tests.peers.certificates import Authority

Serve = Callable[[SocketStream], Awaitable[None]]
CHUNKED = ("Transfer-Encoding", "chunked")


class Site:
    """A listener whose connections are given to serve(), and what dials it."""

    def __init__(self, folder: Path, serve: Serve) -> None:
        authority = Authority(folder)
        pair = authority.issue("localhost")
        self._serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._serving.load_cert_chain(pair.certificate_file, pair.key_file)
        self.dialling = ssl.create_default_context(cafile=str(authority.ca_file))
        self._serve = serve
        self.address = ("", 0)

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            self.address = listener.getsockname()
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(self._accept(listener, group))
                yield
                accepting.cancel()

    async def _accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            group.create_task(self._one(sock))

    async def _one(self, sock: socket.socket) -> None:
        stream = SocketStream(sock, "user", server_side=True)
        try:
            await stream.start(self._serving, whole=True)
            await self._serve(stream)
        finally:
            await stream.close()

    async def dial(self) -> SocketStream:
        sock = socket.create_connection(self.address)
        stream = SocketStream(sock, "target", server_side=False)
        await stream.start(self.dialling, "localhost", whole=True)
        return stream


def run(site: Site, test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), site.up():
            await test()

    for loop_factory in (uvloop.new_event_loop, asyncio.new_event_loop):  # the gateway's own, and the stock one
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())


async def echo(stream: SocketStream) -> None:
    """Answer each request with its body, in pieces, as they come."""
    connection = UserConnection(stream)
    while (head := await connection.request(20.0)) is not None:
        response = ResponseHead(200, "OK", (("X-Target", head.target),), length=None)
        framing = Framing(head, response)
        await stream.write(framing.head(response.fields))
        async for piece in connection.pieces():
            await stream.write(framing.data(piece))
        await stream.write(framing.end())
        if not framing.keep_alive or not await connection.drop():
            return


def test_bulk_both_ways_and_kept_connections(tmp_path: Path) -> None:
    site = Site(tmp_path, echo)

    async def test() -> None:
        pool = Pool(asyncio.get_running_loop().time)
        piece = bytes(range(256)) * 256
        count = 160

        async def dial() -> TargetConnection:
            return TargetConnection(await site.dial())

        for round_ in range(2):
            connection = await pool.get("k", dial)
            assert connection.used == round_

            async def send(stream: object = connection.stream) -> None:
                assert isinstance(stream, SocketStream)
                await stream.write(encode_request("POST", "/echo", [("Host", "localhost"), CHUNKED]))
                for _ in range(count):
                    await stream.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await stream.write(b"0\r\n\r\n")

            digest = hashlib.sha256()
            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                head = await connection.response("POST")
                async for got in connection.pieces():
                    digest.update(got)
            assert head.get("x-target") == "/echo"
            assert digest.digest() == hashlib.sha256(piece * count).digest()
            assert connection.reusable
            pool.give_back("k", connection)
        await pool.close_all()

    run(site, test)


def test_a_pipeline_is_answered_in_order(tmp_path: Path) -> None:
    site = Site(tmp_path, echo)

    async def test() -> None:
        stream = await site.dial()
        heads = [encode_request("GET", f"/{number}", [("Host", "localhost")]) for number in range(50)]
        await stream.write(b"".join(heads))
        # The answers that come ahead of their time are an error for TargetConnection: read them by hand.
        data = b""
        while data.count(b"0\r\n\r\n") < 50:
            data += await stream.read(65536)
        places = [data.index(f"X-Target: /{number}\r\n".encode()) for number in range(50)]
        assert places == sorted(places)
        await stream.close()

    run(site, test)


def test_a_target_that_closed_a_kept_connection_is_noticed(tmp_path: Path) -> None:
    async def once(stream: SocketStream) -> None:
        connection = UserConnection(stream)
        if await connection.request() is None:
            return
        await connection.respond(200, (), b"once")

    site = Site(tmp_path, once)

    async def test() -> None:
        pool = Pool(asyncio.get_running_loop().time)

        async def dial() -> TargetConnection:
            return TargetConnection(await site.dial())

        connection = await pool.get("k", dial)
        await connection.stream.write(encode_request("GET", "/", [("Host", "localhost")]))
        await connection.response("GET")
        assert await connection.body(10) == b"once"
        await connection.stream.gone()  # the target closed it, and did not say so in its answer
        pool.give_back("k", connection)
        other = await pool.get("k", dial)
        assert other is not connection
        await other.close()

    run(site, test)


def test_an_answer_that_breaks_off(tmp_path: Path) -> None:
    async def half(stream: SocketStream) -> None:
        connection = UserConnection(stream)
        await connection.request()
        await stream.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")

    site = Site(tmp_path, half)

    async def test() -> None:
        connection = TargetConnection(await site.dial())
        await connection.stream.write(encode_request("GET", "/", [("Host", "localhost")]))
        await connection.response("GET")
        with pytest.raises(TargetPeerError):
            await connection.body(100)
        assert not connection.reusable
        await connection.close()

    run(site, test)


def test_the_user_is_seen_to_leave_with_bytes_unread(tmp_path: Path) -> None:
    left = 0
    held = asyncio.Event()

    async def hold(stream: SocketStream) -> None:
        nonlocal left
        connection = UserConnection(stream)
        await connection.request()
        held.set()
        await connection.gone()
        left += 1

    site = Site(tmp_path, hold)

    async def test() -> None:
        nonlocal held
        held = asyncio.Event()
        stream = await site.dial()
        await stream.write(encode_request("GET", "/", [("Host", "localhost")]) * 3)
        await held.wait()
        await stream.close()  # the listener's group ends when the held request has seen it

    run(site, test)
    assert left == 2


def test_a_refused_upload_hears_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lingering, the reset that unread bytes cause would take the 413 along."""
    monkeypatch.setattr(server, "LINGER_SECONDS", 5.0)

    async def refuse(stream: SocketStream) -> None:
        connection = UserConnection(stream)
        await connection.request()
        try:
            await connection.body(1000)
        except BadRequest as bad:
            await connection.respond(bad.status, (), bad.text.encode(), close=True)

    site = Site(tmp_path, refuse)

    async def test() -> None:
        for _ in range(5):
            connection = TargetConnection(await site.dial())
            fields = [("Host", "localhost"), ("Content-Length", "200000")]
            await connection.stream.write(encode_request("POST", "/", fields) + bytes(200_000))
            head = await connection.response("POST")
            assert (head.status, head.keep_alive) == (413, False)
            assert b"larger than 1000" in await connection.body(1000)
            await connection.close()

    run(site, test)
