"""One connection of a user: TLS, then requests one after another; each names its caller and its target itself.

A request is a caller's by the bearer token that it carries, which is checked and goes no further. Its path begins with
/k8s/<target>; what follows is the API server's. exec, attach and port-forward take the connection over (remote.py,
forward.py); all others are exchanges in the session of their caller (exchange.py, sessions.py).

What cannot be served gets a metav1.Status in an HTTP answer, as the API server would give one. Nothing is decided here.

Gate.settings read here: tls, plain_allowed, login_seconds, idle_seconds, refuse, listener.
Source: kubernetes note 2, 6 and 8; RFC 9110 11.6.1, RFC 6750 3.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final
from urllib.parse import unquote

import structlog

from protocols.kubernetes import status
from protocols.kubernetes.commands import token_of
from protocols.kubernetes.exchange import Ended, Exchange
from protocols.kubernetes.handshakes import outcome
from protocols.kubernetes.remote import serve_stream
from protocols.kubernetes.request_info import RequestInfo, read_path
from protocols.kubernetes.sessions import Caller, Shared, sessions_of
from proxy.core.errors import LoginRefused, TapeError, UserPeerError
from proxy.core.gate import Gate
from proxy.core.http.heads import BadRequest, RequestHead
from proxy.core.http.server import UserConnection
from proxy.core.parties import Identity, Target
from proxy.core.peers import peers_of
from proxy.core.stream import Stream

LOGIN_SECONDS: Final = 60.0  # as protocols/postgres/serve.py
KEEP_SECONDS: Final = 120.0  # between two requests; Go's clients keep idle connections for 90 s
QUICK_SECONDS: Final = 0.02  # most requests are over by then: whoever waits longer is looked after
WITHDRAW_SECONDS: Final = 5.0
PREFIX: Final = "/k8s/"
_TARGET: Final = re.compile(r"/k8s/([A-Za-z0-9][A-Za-z0-9._-]{0,252})(/[^?]*)?(\?.*)?")
_RUN: Final = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
INTENT_LIMIT: Final = 4096
NOT_SHOWN: Final = (
    "gatecast: the answer cannot be recorded, so it is not shown; the target has the request, and may have done it"
)

_log = structlog.get_logger(__name__)


async def serve(user: Stream, gate: Gate) -> None:
    """Serve one connection to its end; never raises but CancelledError."""
    log = _log.bind(peer=user.info("peer"))
    try:
        async with asyncio.timeout(float(gate.settings.get("login_seconds", LOGIN_SECONDS))):
            tls = gate.settings.get("tls")
            if tls is None and not gate.settings.get("plain_allowed"):
                raise UserPeerError("this listener has no TLS")
            await user.start(tls, whole=True)
        await _Connection(user, gate, log).run()
    except UserPeerError as error:
        log.info("user broke the protocol or the connection", error=str(error))
    except Ended as ended:
        log.info("an answer was broken off", reason=str(ended))
    except TimeoutError:
        log.warning("login took too long")
    finally:
        await asyncio.shield(user.close())


class _Connection:
    """The requests of one connection."""

    def __init__(self, user: Stream, gate: Gate, log: Any) -> None:
        self._user = user
        self._gate = gate
        self._log = log
        self._http = UserConnection(user)
        self._known: tuple[bytes, Identity] | None = None
        self._waiting: asyncio.Timeout | None = None  # what ends the waiting for a next request
        self._group = asyncio.TaskGroup()  # of who looks after it; requests are served in the connection's own task

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
                    await self._http.linger()
                    return
        except BadRequest as bad:
            self._log.info("bad request", status=bad.status, reason=bad.text)
            await self._say(bad.status, bad.text, close=True)

    async def _next(self) -> RequestHead | None:
        """Wait for a request; when the gateway stops, nobody is waited for."""
        if self._gate.residents.stopping.is_set():
            return None
        try:
            async with asyncio.timeout(KEEP_SECONDS) as self._waiting:
                return await self._http.request()
        except TimeoutError:
            return None
        finally:
            self._waiting = None

    async def _stop_waiting(self) -> None:
        """One task a connection, where one a request would cost as much as the deciding of it."""
        await self._gate.residents.stopping.wait()
        if self._waiting is not None:
            _end_now(self._waiting)

    async def _serve(self, head: RequestHead) -> bool:
        """Serve one request; returns whether another can follow."""
        try:
            if self._gate.settings.get("refuse"):
                raise BadRequest(503, str(self._gate.settings["refuse"]), closing=True)
            identity = await self._identify(head)
            target, rest = self._target(head)
        except LoginRefused as refused:
            self._log.warning("login refused", reason=refused.text)
            return await self._say(401, f"gatecast: {refused.text}. {refused.hint}".strip())
        except BadRequest as bad:
            return await self._say(bad.status, bad.text, close=bad.closing)
        log = self._log.bind(identity=identity.display, target=target.name)
        caller = self._caller(head, identity)
        try:
            info = read_path(rest, head.method)
            async with self._place(target) as free:
                if not free:
                    log.warning("too many connections to the target")
                    raise BadRequest(503, f'gatecast: too many connections to "{target.name}"')
                if head.upgrade:
                    await serve_stream(self._http, self._user, head, info, target, caller, self._gate, log)
                    return False
                return await self._exchange(head, info, target, caller, log)
        except BadRequest as bad:
            log.info("bad request", status=bad.status, reason=bad.text, path=rest[:200])
            return await self._say(bad.status, bad.text, close=bad.closing)
        except TapeError as error:
            log.error("no tape, no answer", error=str(error))
            return await self._say(503, "gatecast: the request cannot be recorded, so it is not served", close=True)

    async def _exchange(self, head: RequestHead, info: RequestInfo, target: Target, caller: Caller, log: Any) -> bool:
        async with sessions_of(self._gate.shared).lease(caller, target, self._gate) as (shared, session):
            log = log.bind(session=session.id)
            shared.intent(session, (head.get("gatecast-intent") or "")[:INTENT_LIMIT])
            exchange = Exchange(self._http, self._user, session, shared.flow(), self._gate, log)
            try:
                return await self._watched(exchange, head, info, shared)
            except TapeError as error:
                shared.end(f"recording failed: {error}", failed=True)
                if exchange.said:
                    raise Ended("recording failed") from error
                if exchange.passed:
                    log.error("recording failed, the answer is kept back", error=str(error))
                    return await self._say(503, NOT_SHOWN, close=True)
                raise

    async def _watched(self, exchange: Exchange, head: RequestHead, info: RequestInfo, shared: Shared) -> bool:
        """Run an exchange; one whose user leaves, or whose session is ended, is over."""
        watch: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(None) as end:
                soon = asyncio.get_running_loop().call_later(
                    QUICK_SECONDS,
                    lambda: watch.append(self._group.create_task(self._look_after(exchange, shared, end))),
                )
                try:
                    return await exchange.run(head, info)
                finally:
                    soon.cancel()
                    for each in watch:
                        each.cancel()
        except TimeoutError:
            if not end.expired():
                raise
        if shared.over.is_set() and not exchange.said:
            await self._say(503, f"gatecast: the session has ended: {shared.reason}", close=True)
        return False

    async def _look_after(self, exchange: Exchange, shared: Shared, end: asyncio.Timeout) -> None:
        """End an exchange when its user leaves, or its session is over."""
        async with asyncio.TaskGroup() as group:
            gone, over = group.create_task(self._http.gone()), group.create_task(shared.over.wait())
            await asyncio.wait({gone, over}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            over.cancel()
        # What is held is taken back: so its end is on the tape, and nobody is asked for nothing.
        if exchange.withdraw():
            await asyncio.sleep(WITHDRAW_SECONDS)
        _end_now(end)

    # -- who and where --------------------------------------------------------------------------------

    async def _identify(self, head: RequestHead) -> Identity:
        """Whose token the request carries. Raises LoginRefused, BadRequest."""
        token = token_of(head)
        if not token:
            raise LoginRefused("a token is needed", "Use a gatecast token or an OIDC token as the user's token.")
        digest = hashlib.sha256(token.encode()).digest()
        if self._known is not None and self._known[0] == digest and self._gate.identities.valid(self._known[1]):
            return self._known[1]
        identity = await self._gate.identities.password("", token)
        self._known = (digest, identity)
        return identity

    def _target(self, head: RequestHead) -> tuple[Target, str]:
        """The target that the path names, and the rest of the path with its query. Raises BadRequest."""
        found = _TARGET.fullmatch(head.target)
        if found is None:
            raise BadRequest(404, f"gatecast: the server's address ends in {PREFIX}<target>")
        target = self._gate.targets.find(unquote(found[1]))
        if target is None or target.protocol != "kubernetes":
            raise BadRequest(404, f'gatecast: there is no target "{found[1]}" here')
        return target, (found[2] or "/") + (found[3] or "")

    def _place(self, target: Target) -> AbstractAsyncContextManager[bool]:
        """One of the places of a target that is limited: for a request, as the next one may name another target."""
        limit = target.settings.get("max_connections")
        if not isinstance(limit, int):
            return nullcontext(True)
        return peers_of(self._gate.shared).place(f"kubernetes/{target.name}", limit)

    def _caller(self, head: RequestHead, identity: Identity) -> Caller:
        run = head.get("gatecast-run") or ""
        if not _RUN.fullmatch(run):
            trace = _TRACEPARENT.fullmatch(head.get("traceparent") or "")
            run = trace[1] if trace is not None else ""
        client = (head.get("user-agent") or "")[:200]
        return Caller(identity, run, str(self._user.info("peer")), client, str(self._gate.settings.get("listener", "")))

    async def _say(self, code: int, text: str, close: bool = False) -> bool:
        """Answer without a session; returns whether another request can follow."""
        fields = [("Content-Type", "application/json")]
        if code == 401:
            fields.append(("WWW-Authenticate", 'Bearer realm="gatecast"'))
        kept = not close and await self._http.drop()
        await self._http.respond(code, tuple(fields), status.failure(code, text), close=not kept)
        return kept


def _end_now(limit: asyncio.Timeout) -> None:
    limit.reschedule(asyncio.get_running_loop().time())
