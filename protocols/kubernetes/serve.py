"""One connection of a user: TLS, then requests one after another; each names its caller and its target itself.

A request is a caller's by the bearer token that it carries, which is checked and goes no further. Its path begins with
/k8s/<target>; what follows is the API server's. exec, attach and port-forward take the connection over (remote.py,
forward.py); all others are exchanges in the session of their caller (exchange.py, proxy/http/serving.py).

What cannot be served gets a metav1.Status in an HTTP answer, as the API server would give one. Nothing is decided here.

Gate.settings read here: see proxy/http/serving.py. Source: kubernetes note 2, 6 and 8; RFC 9110 11.6.1.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any, Final
from urllib.parse import unquote

import structlog

from protocols.kubernetes import status
from protocols.kubernetes.commands import token_of
from protocols.kubernetes.exchange import Exchange
from protocols.kubernetes.remote import serve_stream
from protocols.kubernetes.request_info import RequestInfo, read_path
from proxy.core.errors import LoginRefused, TapeError
from proxy.core.gate import Gate
from proxy.core.http.heads import BadRequest, RequestHead
from proxy.core.parties import Target
from proxy.core.session import Session
from proxy.core.stream import Stream
from proxy.http.serving import NOT_SERVED, Running, Serving, serve_connection, start
from proxy.http.sessions import Caller, Shared

PREFIX: Final = "/k8s/"
_TARGET: Final = re.compile(r"/k8s/([A-Za-z0-9][A-Za-z0-9._-]{0,252})(/[^?]*)?(\?.*)?")

_log = structlog.get_logger(__name__)


async def serve(user: Stream, gate: Gate) -> None:
    """Serve one connection to its end; never raises but CancelledError."""
    log = _log.bind(peer=user.info("peer"))

    async def work() -> None:
        await start(user, gate)
        await _Connection(user, gate, log).run()

    await serve_connection(user, log, work())


class _Connection(Serving):
    """The requests of one connection."""

    async def serve(self, head: RequestHead) -> bool:
        """Serve one request; returns whether another can follow."""
        try:
            identity = await self.identify(token_of(head) or "")
            target, rest = self._target(head)
        except LoginRefused as refused:
            self.log.warning("login refused", reason=refused.text)
            return await self.say(401, f"gatecast: {refused.text}. {refused.hint}".strip())
        except BadRequest as bad:
            return await self.say(bad.status, bad.text, close=bad.closing)
        log = self.log.bind(identity=identity.display, target=target.name)
        caller = self.caller(head, identity)
        try:
            info = read_path(rest, head.method)
            async with self.place(target) as free:
                if not free:
                    log.warning("too many connections to the target")
                    raise BadRequest(503, f'gatecast: too many connections to "{target.name}"')
                if head.upgrade:
                    await serve_stream(self.http, self.user, head, info, target, caller, self.gate, log)
                    return False
                return await self._plain(head, info, target, caller, log)
        except BadRequest as bad:
            log.info("bad request", status=bad.status, reason=bad.text, path=rest[:200])
            return await self.say(bad.status, bad.text, close=bad.closing)
        except TapeError as error:
            log.error("no tape, no answer", error=str(error))
            return await self.say(503, NOT_SERVED, close=True)

    async def _plain(self, head: RequestHead, info: RequestInfo, target: Target, caller: Caller, log: Any) -> bool:
        def begin(session: Session, shared: Shared, log: Any) -> tuple[Running, Awaitable[bool]]:
            exchange = Exchange(self.http, self.user, session, shared.flow(), self.gate, log)
            return exchange, exchange.run(head, info)

        return await self.exchange(head, caller, target, log, begin)

    def _target(self, head: RequestHead) -> tuple[Target, str]:
        """The target that the path names, and the rest of the path with its query. Raises BadRequest."""
        found = _TARGET.fullmatch(head.target)
        if found is None:
            raise BadRequest(404, f"gatecast: the server's address ends in {PREFIX}<target>")
        target = self.gate.targets.find(unquote(found[1]))
        if target is None or target.protocol != "kubernetes":
            raise BadRequest(404, f'gatecast: there is no target "{found[1]}" here')
        return target, (found[2] or "/") + (found[3] or "")

    async def say(self, code: int, text: str, close: bool = False) -> bool:
        """Answer without a session; returns whether another request can follow."""
        fields = [("Content-Type", "application/json")]
        if code == 401:
            fields.append(("WWW-Authenticate", 'Bearer realm="gatecast"'))
        kept = not close and await self.http.drop()
        await self.http.respond(code, tuple(fields), status.failure(code, text), close=not kept)
        return kept
