"""The Storage API for users: gRPC over HTTP/2, on connections whose TLS serve.py has ended.

How: gRPC's own server (grpc.aio, C core) listens on a Unix socket in a folder that only this user of the machine may
enter, and a user's decrypted bytes are pumped to it and back, 256 KiB at a time: a user that does not read stops the
pump, that stops the server's writing, and that the reading from the target. Each pump's end has a name of its own in
that folder, by which a call finds its connection again: its listener, its peer. It runs while there are connections.

Every method is bytes for bytes. CreateReadSession, ReadRows and SplitReadStream are served (storage_calls.py). Those of
BigQueryWrite are refused, as nobody here decodes their rows; that is on the caller's tape. All else is UNIMPLEMENTED.
No error leaves that this module has not put into words.

Codes: UNAUTHENTICATED: no good token. NOT_FOUND: no such target; nobody's or another's name. PERMISSION_DENIED: the
policy, a mask. ABORTED: the tape failed, or the session has ended: clients do not repeat that, as they do UNAVAILABLE.

Left out: v1beta1 and v1beta2; RetryInfo and other details of the target's errors beside code and text.
Source: bigquery note 10; gRPC status codes; grpc_types.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final

import grpc  # type: ignore[import-untyped, unused-ignore]

from protocols.bigquery.storage_calls import SERVICE, Call, Failed
from protocols.bigquery.storage_dial import CLOSE_SECONDS, Channels
from protocols.bigquery.tokens import NoTarget, caller_of
from proxy.core.errors import LoginRefused, TapeError
from proxy.core.gate import Gate
from proxy.core.session import Session
from proxy.core.stream import Stream
from proxy.http.answers import outcome
from proxy.http.serving import INTENT_LIMIT, place_of
from proxy.http.serving import caller_of as session_caller
from proxy.http.sessions import Shared, sessions_of

METHODS: Final = ("CreateReadSession", "ReadRows", "SplitReadStream")
NO_WRITES: Final = (
    "gatecast: the Storage Write API is not allowed through this gateway, which cannot read its rows yet; insert by "
    "SQL, by tabledata.insertAll or by a load job"
)
REQUEST_LIMIT: Final = 4 * 1024 * 1024  # gRPC's own default; a row_restriction has 1 MB at most
# gRPC's own default is 8 KiB, of which a token of the exchange may take 6 (sts.TOKEN_LIMIT); OIDC tokens are longer.
METADATA_LIMIT: Final = 64 * 1024
CALLS_LIMIT: Final = 100  # at once on one connection. Source: RFC 9113 6.5.2 asks for no fewer
ALL_CALLS_LIMIT: Final = 2000  # at once in a process; each may hold a message in each direction. Ours
IDLE_MS: Final = 600_000  # a connection without a call; clients make a new one by themselves
TEXT_LIMIT: Final = 4096  # of an error's text: it travels in a header, of which clients take 8 KiB
PIECE_BYTES: Final = 256 * 1024  # what uvloop reads at once
_PLACE: Final = "bigquery/storage"
_WRITE: Final = re.compile(r"/google\.cloud\.bigquery\.storage\.v1(?:beta[12])?\.BigQueryWrite/[A-Za-z]{1,64}")
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", REQUEST_LIMIT), ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", METADATA_LIMIT), ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
    ("grpc.max_concurrent_streams", CALLS_LIMIT), ("grpc.max_connection_idle_ms", IDLE_MS),
    # A held call is silent for minutes, and clients that ping meanwhile are not to be sent away.
    ("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0),
)  # fmt: skip


async def serve_storage(user: Stream, gate: Gate, log: Any) -> None:
    """Serve one connection, past TLS, to its end. Raises UserPeerError."""
    async with _Server.of(gate.shared).connection(_Connection(user, gate, log)) as (reader, writer, connection):
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(outcome(work))
                for work in (_up(user, writer), _down(reader, user), connection.stopped())
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        for task in done:
            error = task.result()
            if error is not None and not isinstance(error, OSError):  # of our own socket: the server has closed it
                raise error


async def _up(user: Stream, writer: asyncio.StreamWriter) -> None:
    while data := await user.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()


async def _down(reader: asyncio.StreamReader, user: Stream) -> None:
    while data := await reader.read(PIECE_BYTES):
        await user.write(data)


class _Connection:
    """One connection of a user, and the calls that run on it."""

    def __init__(self, user: Stream, gate: Gate, log: Any) -> None:
        self.gate = gate
        self.log = log
        self.peer = str(user.info("peer"))
        self._calls = 0
        self.quiet = asyncio.Event()
        self.quiet.set()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """While a call runs."""
        self._calls += 1
        self.quiet.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self.quiet.set()

    async def stopped(self) -> None:
        """Return once the gateway stops and no call runs."""
        await self.gate.residents.stopping.wait()
        await self.quiet.wait()


class _Server:
    """gRPC's server of this process, while there are connections."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._users = 0
        self._count = 0
        self._folder = Path()
        self._server: Any = None
        self._channels = Channels()
        self._connections: dict[str, _Connection] = {}

    @classmethod
    def of(cls, shared: MutableMapping[str, Any]) -> _Server:
        """The one that Gate.shared holds."""
        found: _Server = shared.setdefault(_PLACE, cls())
        return found

    @contextlib.asynccontextmanager
    async def connection(
        self, connection: _Connection
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, _Connection]]:
        """Connect a user to it."""
        self._users += 1
        try:
            await self._start()
            self._count += 1
            name = str(self._folder / f"{self._count}")
            self._connections[f"unix:{name}"] = connection
            try:
                reader, writer = await self._connect(name)
                try:
                    yield reader, writer, connection
                finally:
                    writer.transport.abort()
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(name)  # noqa: PTH108  # a look at the folder's inode, no disk to wait for
                await asyncio.shield(self._drained(f"unix:{name}", connection))
        finally:
            self._users -= 1
            await asyncio.shield(self._stop())

    async def _connect(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server by a socket of that name."""
        ours = socket.socket(socket.AF_UNIX)
        try:
            ours.setblocking(False)
            ours.bind(name)
            await asyncio.get_running_loop().sock_connect(ours, str(self._folder / "server"))
            return await asyncio.open_connection(sock=ours, limit=PIECE_BYTES)
        except BaseException:  # raised again: only the descriptor is given back
            ours.close()
            raise

    async def _drained(self, name: str, connection: _Connection) -> None:
        """Let the calls of a connection say their last word to the tape: gRPC cancels them now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await connection.quiet.wait()
        del self._connections[name]

    async def _start(self) -> None:
        async with self._turn:
            if self._server is not None:
                return
            folder = self._folder = Path(tempfile.mkdtemp(prefix="gc-bq-"))  # of mode 0700
            server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=ALL_CALLS_LIMIT)
            server.add_generic_rpc_handlers((_handler(self._serve, self._refuse),))
            try:
                server.add_insecure_port(f"unix:{folder / 'server'}")
                await server.start()
            except BaseException:  # raised again: only the folder goes
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._server = server

    async def _stop(self) -> None:
        async with self._turn:
            if self._users or self._server is None:
                return
            server, self._server = self._server, None
            await server.stop(None)
            await self._channels.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- calls ------------------------------------------------------------------------------------------

    async def _serve(self, method: str, request: bytes, context: Any) -> None:
        async def work(connection: _Connection, shared: Shared, session: Session, headers: dict[str, str]) -> None:
            log = connection.log.bind(session=session.id, method=method)
            call = Call(context, session, shared.flow(), connection.gate, self._channels, headers, log)
            await call.run(method, request)

        await self._answer(context, work)

    async def _refuse(self, method: str, context: Any) -> None:
        """Answer a call of the Storage Write API."""

        async def work(connection: _Connection, shared: Shared, session: Session, headers: dict[str, str]) -> None:
            connection.log.info("call refused", session=session.id, rule="storage-write", text=method)
            session.mark("refused", f"{method}: {NO_WRITES}")
            await session.written()
            raise Failed(grpc.StatusCode.PERMISSION_DENIED, NO_WRITES)

        await self._answer(context, work)

    async def _answer(self, context: Any, work: Callable[..., Awaitable[None]]) -> None:
        """Run a call; whatever it raises is told in words."""
        connection = self._connections.get(context.peer())
        if connection is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "gatecast: this is no way in")
            return
        with connection.call():
            try:
                await self._identified(connection, context, work)
                return
            except Failed as failed:
                code, text = failed.code, failed.text
            except NoTarget as refused:
                code, text = grpc.StatusCode.NOT_FOUND, f"gatecast: {refused.text}. {refused.hint}".strip()
            except LoginRefused as refused:
                connection.log.warning("login refused", reason=refused.text)
                code, text = grpc.StatusCode.UNAUTHENTICATED, f"gatecast: {refused.text}. {refused.hint}".strip()
            except TapeError as error:
                connection.log.error("no tape, no answer", error=str(error))
                code, text = grpc.StatusCode.ABORTED, "gatecast: the call cannot be recorded, so it is not served"
            except Exception as error:  # fails closed: the user learns that it failed, the log why
                connection.log.error("call broke", error=f"{type(error).__name__}: {error}")
                code, text = grpc.StatusCode.INTERNAL, "gatecast: the call failed; ask the operator to look at the log"
            await context.abort(code, text[:TEXT_LIMIT])

    async def _identified(self, connection: _Connection, context: Any, work: Callable[..., Awaitable[None]]) -> None:
        gate = connection.gate
        headers = _headers(context)
        kind, _, token = headers.get("authorization", "").partition(" ")
        identity, target = await caller_of(gate, token.strip() if kind.lower() == "bearer" else "", None)
        caller = session_caller(gate, identity, connection.peer, headers.get)
        async with place_of(gate, target) as free:
            if not free:
                raise Failed(grpc.StatusCode.UNAVAILABLE, f'gatecast: too many connections to "{target.name}"')
            async with sessions_of(gate.shared).lease(caller, target, gate) as (shared, session):
                shared.intent(session, headers.get("gatecast-intent", "")[:INTENT_LIMIT])
                try:
                    await _watched(work(connection, shared, session, headers), shared)
                except TapeError as error:
                    shared.end(f"recording failed: {error}", failed=True)
                    raise


async def _watched(work: Awaitable[None], shared: Shared) -> None:
    """Run a call until its session ends."""
    error: Exception | None = None
    async with asyncio.TaskGroup() as group:
        try:
            async with asyncio.timeout(None) as end:
                watch = group.create_task(_end_with(shared, end))
                try:
                    error = await outcome(work)
                finally:
                    watch.cancel()
        except TimeoutError:
            error = Failed(grpc.StatusCode.ABORTED, f"gatecast: the session has ended: {shared.reason}")
    if error is not None:
        raise error


async def _end_with(shared: Shared, end: asyncio.Timeout) -> None:
    await shared.over.wait()
    end.reschedule(asyncio.get_running_loop().time())


def _handler(
    serve: Callable[[str, bytes, Any], Awaitable[None]], refuse: Callable[[str, Any], Awaitable[None]]
) -> grpc.GenericRpcHandler:
    """What gRPC asks for a method's handler: bytes come in, bytes go out."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
        def service(self, details: Any) -> Any:
            method = details.method
            name = method.removeprefix(SERVICE)
            if method.startswith(SERVICE) and name in METHODS:

                async def read(request: bytes, context: Any) -> None:
                    await serve(name, request, context)

                return grpc.unary_stream_rpc_method_handler(read)
            if _WRITE.fullmatch(method):

                async def write(requests: Any, context: Any) -> None:
                    await refuse(method, context)

                return grpc.stream_stream_rpc_method_handler(write)
            return None

    return Handler()


def _headers(context: Any) -> dict[str, str]:
    """The metadata of a call that is text. Raises Failed."""
    found: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            if name == "authorization" and name in found:
                raise Failed(grpc.StatusCode.UNAUTHENTICATED, "gatecast: the call has two authorizations")
            found.setdefault(name, value)
    return found
