"""One connection of a user over HTTP/1.1: TLS, then requests one after another; each names its caller and its target.

What the protocols over HTTP have in common. Each of them says how a request is served (serve) and how a failure is told
(say); exchange() runs one request in the shared session of its caller and looks after it meanwhile: who leaves, or
whose session ends, is not waited for, and what was held for him is taken back.

Gate.settings read here: tls, plain_allowed, login_seconds, refuse, listener.
Source: kubernetes note 2, 6 and 8; RFC 9110 11.6.1, RFC 6750 3; W3C Trace Context, "traceparent".
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, Protocol

from proxy.core.errors import GatecastError, LoginRefused, PeerError, TapeError, UserPeerError
from proxy.core.gate import Gate
from proxy.core.http.heads import BadRequest, RequestHead
from proxy.core.http.server import UserConnection
from proxy.core.parties import Identity, Target
from proxy.core.peers import peers_of
from proxy.core.session import Session
from proxy.core.stream import Stream
from proxy.http.answers import Ended, outcome
from proxy.http.sessions import Caller, Shared, sessions_of

LOGIN_SECONDS: Final = 60.0  # as protocols/postgres/serve.py
KEEP_SECONDS: Final = 120.0  # between two requests; Go's clients keep idle connections for 90 s
QUICK_SECONDS: Final = 0.02  # most requests are over by then: whoever waits longer is looked after
WITHDRAW_SECONDS: Final = 5.0
INTENT_LIMIT: Final = 4096
_RUN: Final = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
NOT_SHOWN: Final = (
    "gatecast: the answer cannot be recorded, so it is not shown; the target has the request, and may have done it"
)
NOT_SERVED: Final = "gatecast: the request cannot be recorded, so it is not served"


class Running(Protocol):
    """An exchange: said: something of its answer is on its way to the user; passed: its request is, to the target."""

    @property
    def said(self) -> bool: ...
    @property
    def passed(self) -> bool: ...

    def withdraw(self) -> bool:
        """Take back what is held for a human; returns whether anything was."""


async def start(user: Stream, gate: Gate) -> None:
    """Begin a connection: TLS where the listener has it. Raises UserPeerError, TimeoutError."""
    async with asyncio.timeout(float(gate.settings.get("login_seconds", LOGIN_SECONDS))):
        tls = gate.settings.get("tls")
        if tls is None and not gate.settings.get("plain_allowed"):
            raise UserPeerError("this listener has no TLS")
        await user.start(tls, whole=True)


async def serve_connection(user: Stream, log: Any, work: Awaitable[None]) -> None:
    """Run the work of one connection to its end; never raises but CancelledError."""
    try:
        await work
    except UserPeerError as error:
        log.info("user broke the protocol or the connection", error=str(error))
    except Ended as ended:
        log.info("an answer was broken off", reason=str(ended))
    except TimeoutError:
        log.warning("login took too long")
    finally:
        await asyncio.shield(user.close())


def place_of(gate: Gate, target: Target) -> AbstractAsyncContextManager[bool]:
    """One of the places of a target that is limited."""
    limit = target.settings.get("max_connections")
    if not isinstance(limit, int):
        return nullcontext(True)
    return peers_of(gate.shared).place(f"{target.protocol}/{target.name}", limit)


def caller_of(gate: Gate, identity: Identity, peer: str, field: Callable[[str], str | None]) -> Caller:
    """Whose session a request belongs to, by its fields (names in lower case)."""
    run = field("gatecast-run") or ""
    if not _RUN.fullmatch(run):
        trace = _TRACEPARENT.fullmatch(field("traceparent") or "")
        run = trace[1] if trace is not None else ""
    client = (field("user-agent") or "")[:200]
    return Caller(identity, run, peer, client, str(gate.settings.get("listener", "")))


class Serving(ABC):
    """The requests of one connection, past TLS."""

    def __init__(self, user: Stream, gate: Gate, log: Any) -> None:
        self.user = user
        self.gate = gate
        self.log = log
        self.http = UserConnection(user)
        self._known: tuple[bytes, Identity] | None = None
        self._waiting: asyncio.Timeout | None = None  # what ends the waiting for a next request
        self._group = asyncio.TaskGroup()  # of who looks after it; requests are served in the connection's own task

    @abstractmethod
    async def serve(self, head: RequestHead) -> bool:
        """Serve one request; returns whether another can follow."""

    @abstractmethod
    async def say(self, code: int, text: str, close: bool = False) -> bool:
        """Answer without a session; returns whether another request can follow."""

    async def run(self) -> None:
        """Serve requests until the connection ends."""
        async with self._group as group:
            stopping = group.create_task(self._stop_waiting())
            result = await outcome(self._requests())
            stopping.cancel()
        if result is not None:
            raise result

    async def _requests(self) -> None:
        try:
            while (head := await self._next()) is not None:
                if not await self._serve(head):
                    await self.http.linger()
                    return
        except BadRequest as bad:
            self.log.info("bad request", status=bad.status, reason=bad.text)
            await self.say(bad.status, bad.text, close=True)

    async def _serve(self, head: RequestHead) -> bool:
        if self.gate.settings.get("refuse"):
            return await self.say(503, str(self.gate.settings["refuse"]), close=True)
        return await self.serve(head)

    async def _next(self) -> RequestHead | None:
        """Wait for a request; when the gateway stops, nobody is waited for."""
        if self.gate.residents.stopping.is_set():
            return None
        try:
            async with asyncio.timeout(KEEP_SECONDS) as self._waiting:
                return await self.http.request()
        except TimeoutError:
            return None
        finally:
            self._waiting = None

    async def _stop_waiting(self) -> None:
        """One task a connection, where one a request would cost as much as the deciding of it."""
        await self.gate.residents.stopping.wait()
        if self._waiting is not None:
            _end_now(self._waiting)

    # -- one request ----------------------------------------------------------------------------------

    async def exchange(
        self,
        head: RequestHead,
        caller: Caller,
        target: Target,
        log: Any,
        begin: Callable[[Session, Shared, Any], tuple[Running, Awaitable[bool]]],
    ) -> bool:
        """Run a request in its caller's session. begin returns the exchange, and its work. Raises TapeError, Ended."""
        async with sessions_of(self.gate.shared).lease(caller, target, self.gate) as (shared, session):
            log = log.bind(session=session.id)
            shared.intent(session, (head.get("gatecast-intent") or "")[:INTENT_LIMIT])
            running, work = begin(session, shared, log)
            try:
                return await self._watched(running, work, shared)
            except TapeError as error:
                shared.end(f"recording failed: {error}", failed=True)
                if running.said:
                    raise Ended("recording failed") from error
                if running.passed:
                    log.error("recording failed, the answer is kept back", error=str(error))
                    return await self.say(503, NOT_SHOWN, close=True)
                raise
            except (BadRequest, LoginRefused, PeerError):
                raise
            except GatecastError as error:  # of a store: who owns what, and what waits, cannot be written down
                if running.said:
                    raise Ended("its end could not be written down") from error
                if running.passed:
                    log.error("recording failed, the answer is kept back", error=str(error))
                    return await self.say(503, NOT_SHOWN, close=True)
                log.error("no tape, no answer", error=str(error))
                return await self.say(503, NOT_SERVED, close=True)

    async def _watched(self, running: Running, work: Awaitable[bool], shared: Shared) -> bool:
        """Run an exchange; one whose user leaves, or whose session is ended, is over."""
        watch: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(None) as end:
                soon = asyncio.get_running_loop().call_later(
                    QUICK_SECONDS,
                    lambda: watch.append(self._group.create_task(self._look_after(running, shared, end))),
                )
                try:
                    return await work
                finally:
                    soon.cancel()
                    for each in watch:
                        each.cancel()
        except TimeoutError:
            if not end.expired():
                raise
        if shared.over.is_set() and not running.said:
            await self.say(503, f"gatecast: the session has ended: {shared.reason}", close=True)
        return False

    async def _look_after(self, running: Running, shared: Shared, end: asyncio.Timeout) -> None:
        """End an exchange when its user leaves, or its session is over."""
        async with asyncio.TaskGroup() as group:
            gone, over = group.create_task(self.http.gone()), group.create_task(shared.over.wait())
            await asyncio.wait({gone, over}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            over.cancel()
        # What is held is taken back: so its end is on the tape, and nobody is asked for nothing.
        if running.withdraw():
            await asyncio.sleep(WITHDRAW_SECONDS)
        _end_now(end)

    # -- who and where --------------------------------------------------------------------------------

    async def identify(self, token: str) -> Identity:
        """Whose token a request carries. Raises LoginRefused."""
        if not token:
            raise LoginRefused("a token is needed", "Use a gatecast token or an OIDC token as the user's token.")
        digest = hashlib.sha256(token.encode()).digest()
        if self._known is not None and self._known[0] == digest and self.gate.identities.valid(self._known[1]):
            return self._known[1]
        identity = await self.gate.identities.password("", token)
        self._known = (digest, identity)
        return identity

    def place(self, target: Target) -> AbstractAsyncContextManager[bool]:
        """One of the places of a target that is limited: for a request, as the next one may name another target."""
        return place_of(self.gate, target)

    def caller(self, head: RequestHead, identity: Identity) -> Caller:
        """Whose session a request belongs to."""
        return caller_of(self.gate, identity, str(self.user.info("peer")), head.get)


def _end_now(limit: asyncio.Timeout) -> None:
    limit.reschedule(asyncio.get_running_loop().time())
