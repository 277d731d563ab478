"""Where the stand-in's pods run: what a backend does, and the one without containers (local processes).

LocalBackend runs commands with the rights of the tests themselves, each pod in a folder of its own; it is the second
choice, for machines where containers cannot run (container_backend.py is the first).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from tests.peers.kube.channels import (
    RESIZE,
    STDIN,
    Channels,
    Wanted,
    exit_status,
    failure,
    negotiated,
    spdy_channels,
    websocket_channels,
)  # fmt: skip
from tests.peers.kube.http import ApiError, Connection, Request
from tests.peers.kube.portforward import serve_forward
from tests.peers.kube.processes import Process
from tests.peers.kube.store import now
from tests.peers.kube.tables import Object

Told = dict[str, Any]  # what a finished exec says for the log of requests
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Place:
    """A container of a pod. spec: its specification; environment: its variables, secrets resolved."""

    pod: Object
    spec: Mapping[str, Any]
    environment: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str, str]:
        """Namespace, pod and container."""
        return (*pod_key(self.pod), str(self.spec["name"]))


def pod_key(pod: Object) -> tuple[str, str]:
    """Namespace and name."""
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


class Backend(Protocol):
    """Runs pods and serves their streams; a container starts when it is first asked for."""

    name: str

    async def start(self, place: Place) -> None:
        """Start a container, if it does not run. Raises ApiError."""

    async def stop(self, pod: Object) -> None:
        """Kill a pod."""

    async def close(self) -> None:
        """Kill everything."""

    async def exit_code(self, place: Place) -> int | None:
        """The exit code of a container that has ended by itself."""

    def log_file(self, place: Place) -> Path:
        """Where a container's output is kept, in the runtime's format: time, stream, F, text."""

    async def stream(
        self, connection: Connection, request: Request, place: Place, argv: Sequence[str] | None, newest: str
    ) -> Told:
        """Serve an exec (or attach, without argv) to its end. newest: the WebSocket protocol known at most."""

    async def forward(self, connection: Connection, request: Request, pod: Object, websocket: bool) -> None:
        """Serve a port-forward to its end."""


@dataclass(slots=True, eq=False)
class Running:
    """A container that is a local process: whoever is attached gets its output too."""

    process: Process
    attached: set[Channels] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


class LocalBackend:
    """Pods as local processes. See Backend."""

    name = "local processes"

    def __init__(self, folder: Path, group: asyncio.TaskGroup) -> None:
        self._folder = folder
        self._group = group
        self._running: dict[tuple[str, str, str], Running] = {}
        self._execs: dict[tuple[str, str], set[Process]] = {}
        self._codes: dict[tuple[str, str, str], int] = {}

    async def exit_code(self, place: Place) -> int | None:
        """See Backend."""
        return self._codes.get(place.key)

    def log_file(self, place: Place) -> Path:
        """See Backend."""
        return self._home(place.pod) / f"{place.spec['name']}.log"

    def _home(self, pod: Object) -> Path:
        home = self._folder / "_".join(pod_key(pod))
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _process(self, place: Place, argv: Sequence[str], *, tty: bool, stdin: bool) -> Process:
        environment = {"PATH": _PATH, "HOME": str(self._home(place.pod)), "HOSTNAME": place.key[1], **place.environment}
        if tty:
            environment["TERM"] = "xterm"
        return Process(argv, self._home(place.pod), environment, tty=tty, stdin=stdin)

    async def start(self, place: Place) -> None:
        """See Backend."""
        if place.key in self._running:
            return
        argv = [*(place.spec.get("command") or ()), *(place.spec.get("args") or ())] or ["sleep", "infinity"]
        try:
            process = self._process(place, argv, tty=bool(place.spec.get("tty")), stdin=True)
        except OSError as error:
            raise ApiError(500, "InternalError", f"container does not start: {error}") from error
        running = self._running[place.key] = Running(process)
        running.task = self._group.create_task(self._supervise(place, running))

    async def _supervise(self, place: Place, running: Running) -> None:
        with self.log_file(place).open("ab", buffering=0) as log:

            async def send(channel: int, data: bytes) -> None:
                for line in data.splitlines():
                    log.write(f"{now()} {'stdout' if channel == 1 else 'stderr'} F ".encode() + line + b"\n")
                for each in list(running.attached):
                    try:
                        await each.send(channel, data)
                    except (ConnectionError, KeyError):
                        running.attached.discard(each)

            await running.process.outputs(send)
            self._codes[place.key] = await running.process.wait()
        self._running.pop(place.key, None)

    async def stop(self, pod: Object) -> None:
        """See Backend."""
        key = pod_key(pod)
        for process in list(self._execs.pop(key, ())):
            process.kill()
        for place in [each for each in self._running if each[:2] == key]:
            running = self._running.pop(place)
            running.process.kill()

    async def close(self) -> None:
        """See Backend."""
        for processes in self._execs.values():
            for process in processes:
                process.kill()
        for running in self._running.values():
            running.process.kill()

    async def stream(
        self, connection: Connection, request: Request, place: Place, argv: Sequence[str] | None, newest: str
    ) -> Told:
        """See Backend."""
        wanted = Wanted.of(request)
        await self.start(place)
        if request.upgrade == "websocket":
            async with websocket_channels(connection, request, negotiated(request, newest), wanted) as channels:
                return await self._serve(channels, place, argv, wanted)
        async with spdy_channels(connection, request, wanted) as spdy:
            return await self._serve(spdy, place, argv, wanted)

    async def _serve(self, channels: Channels, place: Place, argv: Sequence[str] | None, wanted: Wanted) -> Told:
        told: Told = {"protocol": channels.protocol, "in": 0, "out": 0, "err": 0, "resizes": [], "eof": False}
        attached: Running | None = None
        if argv is None:
            attached = self._running[place.key]
            process = attached.process
        else:
            try:
                process = self._process(place, argv, tty=wanted.tty, stdin=wanted.stdin)
            except OSError as error:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._feed(channels, None, told))
                    await channels.finish(failure(f'failed to exec in container: exec: "{argv[0]}": {error.strerror}'))
                return told
            self._execs.setdefault(pod_key(place.pod), set()).add(process)
        try:
            async with asyncio.TaskGroup() as group:
                fed = process if wanted.stdin else None
                leaves = attached is not None and not place.spec.get("stdinOnce")
                feeding = group.create_task(self._feed(channels, fed, told, leaves=leaves))
                if attached is not None:
                    attached.attached.add(channels)
                    await asyncio.wait(
                        {feeding, *([attached.task] if attached.task else [])}, return_when="FIRST_COMPLETED"
                    )
                    attached.attached.discard(channels)
                    if told["eof"] or not feeding.done():
                        listening = group.create_task(self._feed(channels, None, told)) if feeding.done() else feeding
                        await channels.finish(exit_status(0))
                        listening.cancel()
                    return told
                told["exit"] = await self._finish(channels, process, told, wanted, feeding)
        finally:
            if argv is not None:
                self._execs.get(pod_key(place.pod), set()).discard(process)
        return told

    async def _finish(
        self, channels: Channels, process: Process, told: Told, wanted: Wanted, feeding: asyncio.Task[None]
    ) -> int:
        async def send(channel: int, data: bytes) -> None:
            if wanted.has(channel):
                told["out" if channel == 1 else "err"] += len(data)
                await channels.send(channel, data)

        try:
            await process.outputs(send)
        except* (ConnectionError, OSError):
            process.kill()
        code = await process.wait()
        with contextlib.suppress(ConnectionError, OSError):
            await channels.finish(exit_status(code))
        feeding.cancel()
        return code

    async def _feed(self, channels: Channels, process: Process | None, told: Told, *, leaves: bool = False) -> None:
        """Give the process what the user says, until the user is gone; then it ends, unless it is only attached to."""
        while (came := await channels.receive()) is not None:
            channel, data = came
            if channel == STDIN and not data:
                told["eof"] = True
                if leaves:
                    return  # containerd lets go of whoever has nothing more to say
            if process is None:
                continue
            if channel == STDIN and data:
                told["in"] += len(data)
                await process.write(data)
            elif channel == STDIN:
                process.end_input()
            elif channel == RESIZE:
                size = json.loads(data)
                told["resizes"].append([size["Width"], size["Height"]])
                process.resize(size["Width"], size["Height"])

    async def forward(self, connection: Connection, request: Request, pod: Object, websocket: bool) -> None:
        """See Backend."""
        await serve_forward(connection, request, websocket)
