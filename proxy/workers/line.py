"""The private line between the supervisor and one worker: a socket pair that nobody else can open, JSON lines on it.

    {"id": 7, "method": "admin", "params": {...}}    wants an answer: {"id": 7, "ok": true, "result": ...}, or
                                                     {"id": 7, "ok": false, "error": {"code": ..., "text": ...}}
    {"method": "ended", "params": {}}                wants none

Both ends ask and answer. What is in `at_once` is done in the order of arrival, before the next line is read; what is
in `later` may wait, each in a task of its own. The end of the line is the end of the other process: whoever waits for
an answer gets AdminError("unreachable"), and run() returns.

Deliberately left out: authentication. Both descriptors are inherited; there is no name to connect to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import structlog

from proxy.admin.wire import AdminError, pack, unpack
from proxy.core.errors import GatecastError
from proxy.logging import describe

Params = Mapping[str, Any]  # JSON, as on the admin socket
AtOnce = Callable[[Params], Any]
Later = Callable[[Params], Awaitable[Any]]

# sessions.live with all 100,000 connections that a gateway may have, in one worker: 300 bytes each, twice that.
MESSAGE_LIMIT: Final = 64 * 1024 * 1024
# What may wait for a process that does not read; one that does not read for so long is broken, and its line ends.
UNSENT_LIMIT: Final = 2 * MESSAGE_LIMIT
TASKS_LIMIT: Final = 1024  # one for each session of a worker that asks something at the same moment, and then some

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

log = structlog.get_logger(__name__)


class Line:
    """One end of the line."""

    # The socket is the line's own from here on: its transport closes it.
    def __init__(
        self,
        sock: socket.socket,
        *,
        at_once: Mapping[str, AtOnce] = _NOTHING,
        later: Mapping[str, Later] = _NOTHING,
    ) -> None:
        self._sock = sock
        self._at_once = at_once
        self._later = later
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False

    async def open(self) -> None:
        """Make the line usable; run() is to follow at once."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._sock, limit=MESSAGE_LIMIT)

    async def run(self) -> None:
        """Read until the other end is gone. Never raises because of what the other end does."""
        assert self._reader is not None
        assert self._writer is not None
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    while line := await self._reader.readuntil(b"\n"):
                        self._take(group, unpack(line))
                except (asyncio.IncompleteReadError, OSError):
                    pass  # the other process ended
                except (asyncio.LimitOverrunError, AdminError, KeyError, TypeError) as error:
                    log.error("line-broken", **describe(error))  # a bug of ours; without a line there is no worker
                for task in self._tasks:
                    task.cancel()
        finally:
            self._over = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(_gone())
            await self.close()

    async def close(self) -> None:
        """End the line, sent or not. Safe to call twice."""
        self._over = True
        if self._writer is None:
            self._sock.close()
            return
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(self, method: str, /, *, seconds: float, **params: Any) -> Any:
        """Return the other end's answer. Raises AdminError: its own, "timeout" or "unreachable"."""
        if self._over or self._writer is None:
            raise _gone()
        number = next(self._numbers)
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self._send({"id": number, "method": method, "params": params})
            async with asyncio.timeout(seconds):
                answer = await waiting
        except TimeoutError as error:
            raise AdminError("timeout", f"the process did not answer in {seconds:g} s") from error
        finally:
            del self._waiting[number]
        if answer["ok"]:
            return answer["result"]
        raise AdminError(str(answer["error"]["code"]), str(answer["error"]["text"]))

    def tell(self, method: str, /, **params: Any) -> None:
        """Say something that needs no answer; does nothing once the line is over."""
        if not self._over and self._writer is not None:
            self._send({"method": method, "params": params})

    # -- inside ---------------------------------------------------------------------------------------

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._writer is not None
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNSENT_LIMIT:
            log.error("line-broken", why="the other process does not read")
            transport.abort()
            return
        self._writer.write(pack(message))

    def _take(self, group: asyncio.TaskGroup, message: dict[str, Any]) -> None:
        number = message.get("id")
        if "method" not in message:
            waiting = self._waiting.get(message["id"])
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            return
        method, params = message["method"], message["params"]
        if method in self._at_once:
            try:
                answer = {"ok": True, "result": self._at_once[method](params)}
            except Exception as error:
                answer = _failure(error)
            if number is not None:
                self._send({"id": number, **answer})
        elif method in self._later and len(self._tasks) < TASKS_LIMIT:
            task = group.create_task(self._answer(number, self._later[method], params))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif number is not None:
            code = "busy" if method in self._later else "unknown-method"
            self._send({"id": number, **_failure(AdminError(code, f"the process cannot do {method} now"))})
        else:
            log.error("line-message-dropped", method=method)

    async def _answer(self, number: int | None, handler: Later, params: Params) -> None:
        try:
            answer: dict[str, Any] = {"ok": True, "result": await handler(params)}
        except Exception as error:
            answer = _failure(error)
        if number is not None:
            self._send({"id": number, **answer})


def _failure(error: Exception) -> dict[str, Any]:
    """An error as an answer: our own speak for themselves, any other is a bug and goes to the log as well."""
    if isinstance(error, GatecastError):
        return {"ok": False, "error": {"code": getattr(error, "code", "") or "failed", "text": str(error)}}
    log.error("line-handler-failed", **describe(error))
    return {"ok": False, "error": {"code": "internal", "text": "the gateway failed; its log says how"}}


def _gone() -> AdminError:
    return AdminError("unreachable", "the worker process is gone")
