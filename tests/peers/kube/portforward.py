"""A port-forward that ends here: SPDY, or SPDY in WebSocket; each pair of streams is a connection to a port."""

from __future__ import annotations

import asyncio
import contextlib

from tests.peers.kube.http import ApiError, Connection, Request
from tests.peers.kube.spdy import SpdyConnection, SpdyStream
from tests.peers.kube.websocket import accept, tunnel

TUNNEL = "SPDY/3.1+portforward.k8s.io"
SPDY = "portforward.k8s.io"
READ_BYTES = 65536


def check_forward(request: Request, websocket: bool) -> None:
    """See that the request asks for something that is served. websocket: whether the tunnel is. Raises ApiError."""
    if request.upgrade == "websocket" and websocket:
        if TUNNEL not in request.words("sec-websocket-protocol"):
            raise ApiError(400, "BadRequest", "only SPDY tunnelling is served on a WebSocket port-forward")
    elif request.upgrade == "spdy/3.1":
        if SPDY not in request.words("x-stream-protocol-version"):
            raise ApiError(403, "Forbidden", "unable to upgrade: unable to negotiate protocol")
    else:
        raise ApiError(400, "BadRequest", "Upgrade request required")


async def serve_forward(connection: Connection, request: Request, websocket: bool) -> None:
    """Serve one to its end. Raises ApiError."""
    check_forward(request, websocket)
    if request.upgrade == "websocket":
        spdy = SpdyConnection(*tunnel(await accept(connection, request, TUNNEL)))
    else:
        await connection.switch("Connection: Upgrade", "Upgrade: SPDY/3.1", f"X-Stream-Protocol-Version: {SPDY}")
        spdy = SpdyConnection(connection.read, connection.write)
    pairs: dict[str, dict[str, SpdyStream]] = {}
    async with asyncio.TaskGroup() as group:
        group.create_task(spdy.run())
        forwards: list[asyncio.Task[None]] = []
        while (stream := await spdy.accepted.get()) is not None:
            number = stream.headers["requestid"]
            pair = pairs.setdefault(number, {})
            pair[stream.headers["streamtype"]] = stream
            if len(pair) == 2:
                forwards.append(group.create_task(_forward(pairs.pop(number))))
        for task in forwards:
            task.cancel()


async def _forward(pair: dict[str, SpdyStream]) -> None:
    data, error = pair["data"], pair["error"]
    port = int(data.headers["port"])
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as failed:
        await error.write(f"error forwarding port {port} to pod: {failed.strerror}".encode())
        await error.close()
        await data.reset()
        return

    async def upwards() -> None:
        while piece := await data.read():
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    try:
        async with asyncio.TaskGroup() as group:
            up = group.create_task(upwards())
            while piece := await reader.read(READ_BYTES):
                await data.write(piece)
            await data.close()
            await error.close()
            up.cancel()
    except* (ConnectionError, OSError):
        pass  # one connection; the forward lives on
    finally:
        writer.close()
