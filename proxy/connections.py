"""The users' connections: accepted up to a limit, each in a task of its own, listed, ended, drained.

A connection's failure never ends another: whatever serve() raises ends here, in the log. A connection that is
killed, or drained, has its task cancelled; serve() then tells its user in the protocol's own words, and the tapes
that were opened inside it are sealed here if it did not do so itself.

The tape's id is the session's. Which connection opened a tape is known by a context variable, which the tasks
inside serve() inherit. Deliberately left out: limits per user and source address.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

import structlog

from protocols import Protocol
from proxy.core.errors import GatecastError, PeerError, TapeError
from proxy.core.gate import Gate
from proxy.core.parties import Identity
from proxy.core.residents import Work
from proxy.core.stream import SocketStream
from proxy.logging import describe
from recorder.cipher import Recipient
from recorder.seal import SealKey
from recorder.tape import Mode, Recorder, Tape

SEAL_SECONDS: Final = 10.0  # a tape's last sync takes milliseconds; beyond this the disk is gone
FAREWELL_SECONDS: Final = 10.0  # for serve() to tell its user and close both sides after it was cancelled
NO_DESCRIPTOR_PAUSE_SECONDS: Final = 0.2  # accept would fail again at once; others end meanwhile
REFUSED_LIMIT: Final = 64  # connections above the limit that are told so, at once; further ones are just closed
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger(__name__)


@dataclass(slots=True, weakref_slot=True)
class Connection:
    """One user's connection and what is known of it so far."""

    listener: str
    protocol: str
    peer: str
    since: float
    task: asyncio.Task[Any]  # what it returns does not matter
    session: str = ""
    subject: str = ""
    target: str = ""
    identity: Identity | None = None
    unproved: bool = False  # a proof was asked for, and none has held so far
    tapes: list[Tape] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        """The connection as JSON values."""
        return {
            "id": self.session,
            "identity": self.identity.display if self.identity is not None else "",
            "target": self.target,
            "protocol": self.protocol,
            "started": self.since,
            "listener": self.listener,
            "peer": self.peer,
        }


_current: ContextVar[Connection] = ContextVar("connection")


def current_connection() -> Connection | None:
    """The connection that the running task serves."""
    return _current.get(None)


class SessionRecorder(Recorder):
    """A Recorder that tells the connection which tapes it opened, and each tape under which rules it began."""

    def __init__(self, directory: Path, key: SealKey, revision: Callable[[], str], **more: Any) -> None:
        """more: as Recorder has it."""
        super().__init__(directory, key, **more)
        self._revision = revision
        self._owners: WeakKeyDictionary[Tape, ref[Connection]] = WeakKeyDictionary()

    def open(
        self,
        *,
        protocol: str,
        identity: Mapping[str, Any],
        target: str,
        mode: Mode,
        run: str = "",
        policy_revision: str = "",
        more: Mapping[str, Any] | None = None,
        recipients: Sequence[Recipient] = (),
    ) -> Tape:
        tape = super().open(
            protocol=protocol,
            identity=identity,
            target=target,
            mode=mode,
            run=run,
            policy_revision=policy_revision or self._revision(),
            more=more,
            recipients=recipients,
        )
        connection = _current.get(None)
        if connection is not None:
            connection.tapes.append(tape)
            connection.session = tape.sid
            connection.target = target
            self._owners[tape] = ref(connection)
        return tape

    def open_original(self, tape: Tape, recipients: Sequence[Recipient]) -> Tape:
        original = super().open_original(tape, recipients)
        # Not whoever runs now: a request makes the first masked answer of a session that outlives its connection.
        owner = self._owners.get(tape)
        connection = owner() if owner is not None else None
        if connection is not None:
            connection.tapes.append(original)
        return original


async def next_connection(listening: socket.socket, listener: str) -> socket.socket:
    """Accept one connection, however often that fails."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock, _ = await loop.sock_accept(listening)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                log.error("accept-failed", listener=listener, error=error.strerror)
                await asyncio.sleep(NO_DESCRIPTOR_PAUSE_SECONDS)
            continue  # the user left before we got to it (ECONNABORTED), or its network failed: accept(2)
        return sock


class Connections:
    """All connections of the process. limit may be changed while it runs."""

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float] = time.time,
        on_end: Callable[[Connection], None] = lambda connection: None,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        """on_end hears of a connection that was served; on_closed of every one that admit() took, last of all."""
        self.limit = limit
        self._on_closed = on_closed
        self._clock = clock
        self._on_end = on_end
        self._open: dict[int, Connection] = {}
        self._count = 0
        self._refused = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._residents: list[Connection] = []  # not counted: they are no connections
        self._group: asyncio.TaskGroup | None = None  # where all of them run
        self.stopping = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def accepted(self) -> int:
        """How many connections there have been."""
        return self._count

    @property
    def refused(self) -> int:
        """How many were refused because there were too many."""
        return self._refused

    def live(self) -> list[dict[str, Any]]:
        """The connections with a session as JSON values, oldest first."""
        return [connection.row() for connection in self._all() if connection.session]

    def kill(self, session: str, by: str) -> bool:
        """End the connection of a session; False if there is none. by is logged by who asks."""
        for connection in self._all():
            if connection.session == session:
                connection.task.cancel("killed")
                return True
        return False

    def end_where(self, over: Callable[[Connection], bool], reason: str) -> int:
        """End all connections of which over() is true; return how many."""
        found = [connection for connection in self._all() if over(connection)]
        for connection in found:
            log.warning("session-ended", session=connection.session, subject=connection.subject, reason=reason)
            connection.task.cancel(reason)
        return len(found)

    async def accept(
        self,
        group: asyncio.TaskGroup,
        listening: socket.socket,
        listener: str,
        protocol: Protocol,
        gate: Callable[[], Gate],
    ) -> None:
        """Accept connections for ever, as tasks of the group; cancelling this leaves them alone.

        gate() is asked for each connection, so that a reload changes the next one.
        """
        while True:
            sock = await next_connection(listening, listener)
            full = len(self._open) >= self.limit
            if full:
                self._refused += 1
                log.warning("too-many-connections", listener=listener, limit=self.limit)
                if len(self._open) >= self.limit + REFUSED_LIMIT:
                    sock.close()
                    continue
            self.admit(group, sock, listener, protocol, gate(), full)

    def admit(
        self, group: asyncio.TaskGroup, sock: socket.socket, listener: str, protocol: Protocol, gate: Gate, full: bool
    ) -> None:
        """Serve an accepted connection, as a task of the group; full: tell it that there are too many."""
        if full:
            # The protocol says it in its own words, and still takes what needs no session (a cancel request).
            gate = replace(gate, settings={**gate.settings, "refuse": "sorry, too many clients already"})
        self._group = group
        self._count += 1
        number = self._count
        task = group.create_task(self._run(number, sock, listener, protocol, gate))
        # Counted before the task runs: a burst of users does not get past the limit.
        self._open[number] = Connection(listener, protocol.name, "", self._clock(), task)
        self._empty.clear()
        task.add_done_callback(partial(self._forget, number, sock))

    def live_in(self, group: asyncio.TaskGroup) -> None:
        """Say where connections and residents run, before the first of them: background work may come before users."""
        self._group = group

    def start(self, protocol: str, listener: str, identity: Identity, work: Work) -> asyncio.Task[None]:
        """Run what outlives a connection; see proxy/core/residents.py. It is listed and ended as connections are."""
        assert self._group is not None, "nothing runs here yet"
        task: asyncio.Task[None] = self._group.create_task(self._reside(work))
        resident = Connection(listener, protocol, "", self._clock(), task, subject=identity.subject, identity=identity)
        self._residents.append(resident)
        self._empty.clear()
        task.add_done_callback(partial(self._moved_out, resident))
        return task

    def _all(self) -> list[Connection]:
        return [*self._open.values(), *self._residents]

    async def drain(self, seconds: float, hurry: asyncio.Event) -> int:
        """Let sessions go on for so long, or until hurry is set, then end them; return how many were ended."""
        self.stopping.set()
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(self._empty.wait()), group.create_task(hurry.wait())]
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        ended = self._all()
        for connection in ended:
            connection.task.cancel("the gateway stops")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS + SEAL_SECONDS):
                await self._empty.wait()
        return len(ended)

    def _forget(self, number: int, sock: socket.socket, _task: asyncio.Task[None]) -> None:
        del self._open[number]
        sock.close()  # a task that was cancelled before its first step never made a stream of it
        if not self._all():
            self._empty.set()
        self._on_closed()

    def _moved_out(self, resident: Connection, _task: asyncio.Task[None]) -> None:
        self._residents.remove(resident)
        if not self._all():
            self._empty.set()

    async def _reside(self, work: Work) -> None:
        connection = next(each for each in self._residents if each.task is asyncio.current_task())
        _current.set(connection)
        account = _Account()
        try:
            with _accounted(connection, account):
                await work()
        finally:
            await asyncio.shield(self._seal(connection, account.status))

    async def _run(self, number: int, sock: socket.socket, listener: str, protocol: Protocol, gate: Gate) -> None:
        connection = self._open[number]
        _current.set(connection)
        stream = SocketStream(sock, "user", server_side=True)
        connection.peer = stream.info("peer")
        account = _Account()
        try:
            with _accounted(connection, account):
                await protocol.serve(stream, gate)
        finally:
            self._on_end(connection)
            await asyncio.shield(self._finish(stream, connection, account.status))

    async def _finish(self, stream: SocketStream, connection: Connection, status: str) -> None:
        """Close the user's side and seal whatever serve() left open, in bounded time."""
        await stream.close()
        await self._seal(connection, status)

    async def _seal(self, connection: Connection, status: str) -> None:
        for tape in connection.tapes:
            try:
                async with asyncio.timeout(SEAL_SECONDS):
                    await tape.close("closed" if status == "ended" else "failed", f"the connection {status}")
            except (TapeError, TimeoutError) as error:
                log.error("tape-not-sealed", session=tape.sid, reason=str(error) or "the disk did not answer")


@dataclass(slots=True)
class _Account:
    """How a connection ended."""

    status: str = "ended"


@contextlib.contextmanager
def _accounted(connection: Connection, account: _Account) -> Iterator[None]:
    """Tell the log how it went. A failure ends here: it never ends another connection."""
    told = log.bind(listener=connection.listener, peer=connection.peer)
    try:
        yield
    except asyncio.CancelledError:
        account.status = "cancelled"
        raise
    except PeerError as error:
        account.status = "peer-error"
        told.info("connection-ended", session=connection.session, reason=str(error))
    except TapeError as error:
        account.status = "tape-error"
        told.error("recording-failed", session=connection.session, reason=str(error))
    except GatecastError as error:
        account.status = "error"
        told.warning("connection-failed", session=connection.session, reason=str(error))
    except Exception as error:  # fails closed: the connection ends, and only it
        account.status = "error"
        told.error("connection-failed", session=connection.session, **describe(error))
