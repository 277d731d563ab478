"""The admin socket: a Unix socket in the state directory that root and the gate's own user may talk to.

Two locks: the file's mode (0600, set before it listens) and the kernel's word on who is at the other end
(SO_PEERCRED). A lock file beside it makes sure that only one process serves a state directory; a socket that a
killed process left behind is replaced. A handler that fails takes only its own request with it.

Source: unix(7); flock(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.admin.wire import PATH_LIMIT, REQUEST_LIMIT, AdminError, Caller, pack, unpack_request
from proxy.core.errors import ConfigError, GatecastError

Handler = Callable[[Caller, Mapping[str, Any]], Awaitable[Any]]

CONNECTIONS_LIMIT: Final = 32  # people at keyboards
IDLE_LIMIT_SECONDS: Final = 30.0
HANDLER_LIMIT_SECONDS: Final = 30.0
LINGER_LIMIT_SECONDS: Final = 2.0
SOCKET_MODE: Final = 0o600
_PEERCRED: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred

log = structlog.get_logger(__name__)


class AdminServer:
    """Answers requests on the socket at path by calling handlers, which are keyed by method."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self._handlers = dict(handlers)
        self._server: asyncio.Server | None = None
        self._lock: int | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen. Raises ConfigError if another process serves here, or the socket cannot be made."""
        if len(os.fsencode(self.path)) > PATH_LIMIT:
            raise ConfigError(f"{self.path}: the path of a socket has at most {PATH_LIMIT} bytes")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _take_lock(self.path)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=_bind(self.path), limit=REQUEST_LIMIT, backlog=CONNECTIONS_LIMIT
            )
        except OSError as error:
            await self.close()
            raise ConfigError(f"{self.path}: the admin socket cannot be made: {error.strerror}") from error

    async def close(self) -> None:
        """Stop listening, end what runs, remove the socket. Safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self.path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            caller = _caller(writer)
            if caller.uid not in (0, os.geteuid()):
                log.warning("admin-refused", uid=caller.uid, pid=caller.pid)
                await _turn_away(reader, writer, "not-allowed", "only root and the gateway's own user may do this")
            elif len(self._tasks) > CONNECTIONS_LIMIT:
                await _turn_away(reader, writer, "busy", "too many administrators at once; try again")
            else:
                await self._converse(caller, reader, writer)
        except (OSError, TimeoutError):
            pass  # the other end left, or sleeps
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, caller: Caller, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE_LIMIT_SECONDS):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                await _turn_away(reader, writer, "malformed", f"a request has at most {REQUEST_LIMIT} bytes")
                return
            await _answer(writer, await self._handle(caller, line))

    async def _handle(self, caller: Caller, line: bytes) -> bytes:
        """Return the answer's line; whatever goes wrong becomes an answer, too."""
        try:
            method, params = unpack_request(line)
            handler = self._handlers.get(method)
            if handler is None:
                raise AdminError("unknown-method", f"this gateway knows no {method[:100]}")
            async with asyncio.timeout(HANDLER_LIMIT_SECONDS):
                return pack({"ok": True, "result": await handler(caller, params)})
        except TimeoutError:
            return _error("timeout", "the gateway took too long")
        except GatecastError as error:
            return _error(getattr(error, "code", "") or "failed", str(error))
        except Exception:  # a bug of ours: nothing was decided that the answer does not tell; the log has the stack
            log.exception("admin-handler-failed")
            return _error("internal", "the gateway failed; its log says how")


def _error(code: str, text: str) -> bytes:
    return pack({"ok": False, "error": {"code": code, "text": text}})


async def _answer(writer: asyncio.StreamWriter, line: bytes) -> None:
    async with asyncio.timeout(IDLE_LIMIT_SECONDS):
        writer.write(line)
        await writer.drain()


async def _turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, code: str, text: str) -> None:
    """Answer, then read a little of what the other end still sends: closed at once, it would see a broken pipe only."""
    await _answer(writer, _error(code, text))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_LIMIT_SECONDS):
            left = 4 * REQUEST_LIMIT
            while left > 0 and (data := await reader.read(left)):
                left -= len(data)


def _caller(writer: asyncio.StreamWriter) -> Caller:
    connection = writer.get_extra_info("socket")
    pid, uid, _ = _PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return Caller(uid, pid, user)


def _take_lock(path: Path) -> int:
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SOCKET_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(f"{path.parent}: another gatecast serve uses this state directory") from error
    return descriptor


def _bind(path: Path) -> socket.socket:
    """Bind the socket; nobody can connect before it listens, and by then it has its mode."""
    path.unlink(missing_ok=True)  # ours: we hold the lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(SOCKET_MODE)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
