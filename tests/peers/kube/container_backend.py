"""Pods in real containers: streams go to the runtime's own streaming server, as kubelet and API server pass them on.

A user's SPDY, and WebSocket before v5, is passed on byte by byte (kube-apiserver's UpgradeAwareHandler); WebSocket v5
becomes SPDY v4 (its StreamTranslatorHandler); a port-forward's tunnel is unwrapped (its TunnelingHandler).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.peers.kube.backend import Place, Told, pod_key
from tests.peers.kube.channels import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Wanted,
    WebSocketChannels,
    negotiated,
    success,
    websocket_channels,
)  # fmt: skip
from tests.peers.kube.cri import CriError, Runtime, Sandbox
from tests.peers.kube.http import ApiError, Connection, Request
from tests.peers.kube.portforward import SPDY, TUNNEL, check_forward
from tests.peers.kube.spdy import SpdyConnection, SpdyStream
from tests.peers.kube.tables import Object
from tests.peers.kube.websocket import accept, tunnel

HEAD_LIMIT: Final = 1 << 20
_OUTPUTS: Final = {STDOUT: "stdout", STDERR: "stderr"}


@dataclass(slots=True)
class Started:
    """A pod that runs, and its containers' ids."""

    sandbox: Sandbox
    containers: dict[str, str] = field(default_factory=dict)


class ContainerBackend:
    """Pods as containers of a CRI runtime. See Backend."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self._folder = folder
        self._runtime = Runtime(socket)
        self._pods: dict[tuple[str, str], Started] = {}
        self._lock = asyncio.Lock()
        self.name = f"containers of {self._runtime.version()}"

    def log_file(self, place: Place) -> Path:
        """See Backend."""
        return self._logs(place.pod) / f"{place.spec['name']}.log"

    def _logs(self, pod: Object) -> Path:
        return self._folder / f"{'_'.join(pod_key(pod))}_{pod['metadata']['uid']}"

    async def start(self, place: Place) -> None:
        """See Backend."""
        await self._container(place)

    async def _container(self, place: Place) -> str:
        async with self._lock:
            try:
                pod = await self._pod(place.pod)
                name = str(place.spec["name"])
                if name not in pod.containers:
                    environment = {"HOSTNAME": place.key[1], "HOME": "/root", **place.environment}
                    started = await asyncio.to_thread(self._runtime.run_container, pod.sandbox, place.spec, environment)
                    pod.containers[name] = started
                return pod.containers[name]
            except CriError as error:
                raise ApiError(500, "InternalError", str(error)) from error

    async def _pod(self, pod: Object) -> Started:
        key = pod_key(pod)
        if key not in self._pods:
            namespace, name = key
            logs = self._logs(pod)
            sandbox = await asyncio.to_thread(self._runtime.run_pod, namespace, name, pod["metadata"]["uid"], logs)
            self._pods[key] = Started(sandbox)
        return self._pods[key]

    async def stop(self, pod: Object) -> None:
        """See Backend."""
        async with self._lock:
            if (started := self._pods.pop(pod_key(pod), None)) is not None:
                await asyncio.to_thread(self._runtime.stop, started.sandbox, list(started.containers.values()))

    async def close(self) -> None:
        """See Backend."""
        async with self._lock:
            for started in self._pods.values():
                with contextlib.suppress(CriError):
                    await asyncio.to_thread(self._runtime.stop, started.sandbox, list(started.containers.values()))
            self._runtime.close()

    async def exit_code(self, place: Place) -> int | None:
        """See Backend."""
        started = self._pods.get(pod_key(place.pod))
        container = started.containers.get(str(place.spec["name"])) if started is not None else None
        if container is None:
            return None
        try:
            return await asyncio.to_thread(self._runtime.exit_code, container)
        except CriError:
            return None  # it was removed meanwhile

    # -- exec and attach ------------------------------------------------------------------------------

    async def stream(
        self, connection: Connection, request: Request, place: Place, argv: Sequence[str] | None, newest: str
    ) -> Told:
        """See Backend."""
        wanted = Wanted.of(request)
        protocol = negotiated(request, newest) if request.upgrade == "websocket" else "spdy"
        container = await self._container(place)
        try:
            if argv is None:
                url = await asyncio.to_thread(self._runtime.attach_url, container, wanted.flags)
            else:
                url = await asyncio.to_thread(self._runtime.exec_url, container, argv, wanted.flags)
        except CriError as error:
            raise ApiError(500, "InternalError", str(error)) from error
        if protocol.startswith("v5."):
            async with websocket_channels(connection, request, protocol, wanted) as channels:
                return await _translate(channels, url, wanted)
        await _pass_on(connection, request, url)
        return {"protocol": protocol}

    # -- port-forward ---------------------------------------------------------------------------------

    async def forward(self, connection: Connection, request: Request, pod: Object, websocket: bool) -> None:
        """See Backend."""
        check_forward(request, websocket)
        async with self._lock:
            sandbox = (await self._pod(pod)).sandbox
        url = await asyncio.to_thread(self._runtime.forward_url, sandbox)
        if request.upgrade == "spdy/3.1":
            await _pass_on(connection, request, url)
            return
        async with _dialled(url, "Upgrade: SPDY/3.1", f"X-Stream-Protocol-Version: {SPDY}") as (far, _):
            socket = await accept(connection, request, TUNNEL)
            read, write = tunnel(socket)
            async with asyncio.TaskGroup() as group:
                up = group.create_task(_copy(read, far.write))
                down = group.create_task(_copy(far.read, write))
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                await socket.close()
                far.writer.close()
                up.cancel()
                down.cancel()


@contextlib.asynccontextmanager
async def _dialled(url: str, *fields: str) -> AsyncIterator[tuple[Connection, bytes]]:
    """Ask the runtime's streaming server for an upgrade; its answer's head comes with the connection."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=HEAD_LIMIT)
    try:
        method = "POST" if any("SPDY/3.1" in each for each in fields) else "GET"
        lines = [f"{method} {place.path} HTTP/1.1", f"Host: {place.netloc}", "Connection: Upgrade", *fields]
        writer.write(("\r\n".join(lines) + "\r\nContent-Length: 0\r\n\r\n").encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise ApiError(500, "InternalError", f"the runtime does not upgrade: {head[:200]!r}")
        yield Connection(reader, writer), head
    finally:
        writer.close()


async def _pass_on(connection: Connection, request: Request, url: str) -> None:
    """Let the user speak with the runtime."""
    names = (
        "upgrade",
        "x-stream-protocol-version",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-protocol",
    )
    fields = [f"{name}: {request.headers[name]}" for name in names if name in request.headers]
    if request.upgrade == "websocket":
        fields.append("Origin: http://localhost")  # containerd's WebSocket library insists on one
    async with _dialled(url, *fields) as (far, head):
        await connection.write(head)
        async with asyncio.TaskGroup() as group:
            up = group.create_task(_copy(connection.read, far.write))
            down = group.create_task(_copy(far.read, connection.write))
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            far.writer.close()
            if down.done():
                connection.writer.close()
            up.cancel()
            down.cancel()


async def _copy(read, write) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(ConnectionError, OSError):
        while data := await read():
            await write(data)


async def _translate(channels: WebSocketChannels, url: str, wanted: Wanted) -> Told:
    """Be SPDY's opening end towards the runtime for a user of WebSocket v5."""
    told: Told = {"protocol": channels.protocol, "in": 0, "out": 0, "err": 0, "resizes": [], "eof": False}
    async with _dialled(url, "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io") as (far, _):
        spdy = SpdyConnection(far.read, far.write, opener=True)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(spdy.run())
            streams = {ERROR: await spdy.open({"streamtype": "error"})}
            await streams[ERROR].close()
            kinds = {STDIN: wanted.stdin, STDOUT: wanted.stdout, STDERR: wanted.stderr, RESIZE: wanted.tty}
            names = {STDIN: "stdin", RESIZE: "resize", **_OUTPUTS}
            for number, asked in kinds.items():
                if asked:
                    streams[number] = await spdy.open({"streamtype": names[number]})
            feeding = group.create_task(_feed(channels, streams, far, told))
            try:
                status = await _outputs(channels, streams, told)
                if not spdy.over.is_set() or status:
                    await channels.finish(status or success())
            except* (ConnectionError, OSError):
                pass  # the user is gone
            finally:
                feeding.cancel()
                running.cancel()
    return told


async def _outputs(channels: WebSocketChannels, streams: dict[int, SpdyStream], told: Told) -> bytes:
    """Pass on what the command says; return its Status."""
    status = bytearray()

    async def down(number: int) -> None:
        while data := await streams[number].read():
            told["out" if number == STDOUT else "err"] += len(data)
            await channels.send(number, data)

    async with asyncio.TaskGroup() as group:
        for number in _OUTPUTS:
            if number in streams:
                group.create_task(down(number))
        while data := await streams[ERROR].read():
            status += data
    return bytes(status)


async def _feed(channels: WebSocketChannels, streams: dict[int, SpdyStream], far: Connection, told: Told) -> None:
    with contextlib.suppress(ConnectionError, OSError):
        while (came := await channels.receive()) is not None:
            number, data = came
            if number not in streams:
                continue
            if number == STDIN:
                told["in"] += len(data)
                told["eof"] = told["eof"] or not data
            await (streams[number].write(data) if data else streams[number].close())
        far.writer.close()
