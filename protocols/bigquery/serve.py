"""One connection of a user: TLS; then REST over HTTP/1.1, or the Storage API over HTTP/2 (storage.py).

What a connection is asked for, by its path alone: the exchange of a token (/v1/token), the discovery document, and
BigQuery's methods, behind /bq/<target> or where the token names the target. Host names lead here and say nothing: a
universe's bigquery., bigquerystorage. and sts. are all this listener.

What cannot be served gets Google's error document. Nothing is decided here: see exchange.py.

Gate.settings read here: bigquery (tokens.py), and what proxy/http/serving.py reads. Source: bigquery note 2, 3 and 8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote

import structlog

from protocols.bigquery import errors, sts
from protocols.bigquery.dial import fetch
from protocols.bigquery.discovery import DOCUMENT_LIMIT, encoded, is_discovery, rewritten
from protocols.bigquery.exchange import Exchange
from protocols.bigquery.parameters import safe_target
from protocols.bigquery.tokens import HINT, NoTarget, bearer_of, caller_of, door_of, target_of
from proxy.core.errors import LoginRefused, TapeError, TargetPeerError
from proxy.core.gate import Gate
from proxy.core.http.heads import BadRequest, RequestHead
from proxy.core.parties import Target
from proxy.core.session import Session
from proxy.core.stream import Stream
from proxy.http.serving import NOT_SERVED, Running, Serving, serve_connection, start
from proxy.http.sessions import Shared

TOKEN_PATH: Final = "/v1/token"  # noqa: S105  # a path
_TARGET: Final = re.compile(r"/bq/([A-Za-z0-9][A-Za-z0-9._-]{0,252})(/.*)")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(?::[0-9]{1,5})?|\[[0-9a-fA-F:.]{2,45}\](?::[0-9]{1,5})?")
_DISCOVERIES: Final = "bigquery/discoveries"  # in Gate.shared: the target's document, by its place
DISCOVERIES_LIMIT: Final = 16  # targets' documents that are kept, of half a megabyte; ours
_JSON: Final = ("Content-Type", "application/json; charset=UTF-8")
_NO_STORE: Final = ("Cache-Control", "no-store")  # RFC 6749 5.1

_log = structlog.get_logger(__name__)


async def serve(user: Stream, gate: Gate) -> None:
    """Serve one connection to its end; never raises but CancelledError."""
    log = _log.bind(peer=user.info("peer"))

    async def work() -> None:
        await start(user, gate)
        if user.info("alpn") == "h2":
            from protocols.bigquery.storage import serve_storage  # gRPC is not loaded before somebody speaks it

            await serve_storage(user, gate, log)
        else:
            await _Connection(user, gate, log).run()

    await serve_connection(user, log, work())


class _Connection(Serving):
    """The requests of one connection."""

    async def serve(self, head: RequestHead) -> bool:
        """Serve one request; returns whether another can follow."""
        try:
            return await self._routed(head)
        except NoTarget as refused:
            return await self.say(404, f"gatecast: {refused.text}. {refused.hint}".strip())
        except LoginRefused as refused:
            self.log.warning("login refused", reason=refused.text)
            return await self.say(401, f"gatecast: {refused.text}. {refused.hint}".strip())
        except BadRequest as bad:
            self.log.info("bad request", status=bad.status, reason=bad.text, path=safe_target(head.target)[:200])
            return await self.say(bad.status, bad.text, close=bad.closing)
        except TargetPeerError as error:
            self.log.warning("target failed", error=str(error))
            return await self.say(503, f"gatecast: {error}")
        except TapeError as error:
            self.log.error("no tape, no answer", error=str(error))
            return await self.say(503, NOT_SERVED, close=True)

    async def _routed(self, head: RequestHead) -> bool:
        found = _TARGET.fullmatch(head.target)
        prefix, hint, rest = ("", None, head.target) if found is None else (f"/bq/{found[1]}", found[1], found[2])
        hint = None if hint is None else unquote(hint)
        if rest.partition("?")[0] == TOKEN_PATH:
            return await self._exchange_token(head)
        if is_discovery(head.method, rest):
            return await self._discovery(head, prefix, hint)
        identity, target = await caller_of(self.gate, bearer_of(head), hint, self.identify)
        log = self.log.bind(identity=identity.display, target=target.name)
        async with self.place(target) as free:
            if not free:
                log.warning("too many connections to the target")
                raise BadRequest(503, f'gatecast: too many connections to "{target.name}"')
            head = replace(head, target=rest)
            root = self._root(head) + prefix

            def begin(session: Session, shared: Shared, log: Any) -> tuple[Running, Awaitable[bool]]:
                exchange = Exchange(self.http, self.user, session, shared, self.gate, log, root)
                return exchange, exchange.run(head)

            return await self.exchange(head, self.caller(head, identity), target, log, begin)

    def _root(self, head: RequestHead) -> str:
        """The address under which the user reached the gate, for addresses that answers name. Raises BadRequest."""
        host = head.get("host") or ""
        if not _HOST.fullmatch(host):
            raise BadRequest(400, "the request names no host")
        return f"{'https' if self.gate.settings.get('tls') is not None else 'http'}://{host}"

    # -- tokens -----------------------------------------------------------------------------------------

    async def _exchange_token(self, head: RequestHead) -> bool:
        """Exchange a proof for an access token. Nothing of either is on a tape, or in the log."""
        if head.method != "POST":
            raise BadRequest(405, "tokens are exchanged by POST")
        body = await self.http.body(sts.BODY_LIMIT + 1)
        try:
            asked = sts.read_exchange(head.get("content-type") or "", body)
            try:
                identity = await self.gate.identities.password("", asked.proof.reveal())
                target_of(self.gate, asked.target)
            except NoTarget as refused:
                raise sts.no_target() from refused
            except LoginRefused as refused:
                self.log.warning("login refused", reason=refused.text)
                raise sts.refused() from refused
            seal = door_of(self.gate).get("seal")
            if not isinstance(seal, sts.Seal):
                raise BadRequest(404, "gatecast: this listener exchanges no tokens")
            token, seconds = seal.make(identity, asked.target, self.gate.clock())
        except sts.StsError as error:
            code, document = sts.error_answer(error)
            await self.http.respond(code, (_JSON, _NO_STORE), document)
            return True
        self.log.info("token exchanged", identity=identity.display, target=asked.target, seconds=seconds)
        await self.http.respond(200, (_JSON, _NO_STORE), sts.answer(token, seconds))
        return True

    # -- discovery --------------------------------------------------------------------------------------

    async def _discovery(self, head: RequestHead, prefix: str, hint: str | None) -> bool:
        """Answer with the target's own document, made ours. Without a token it is that of the path, or the default."""
        token = bearer_of(head)
        if token:
            _, target = await caller_of(self.gate, token, hint)
        else:
            name = hint or door_of(self.gate).get("target")
            if not isinstance(name, str):
                raise LoginRefused("which target's discovery document is meant is not known without a token", HINT)
            target = target_of(self.gate, name)
        # What bq is told at the root leads to the target, whose path it has dropped.
        named = prefix or (f"/bq/{target.name}" if not sts.looks_like_token(token) else "")
        document = rewritten(await self._document(target), self._root(head) + named)
        await self.http.respond(200, (_JSON,), encoded(document))
        return True

    async def _document(self, target: Target) -> dict[str, Any]:
        kept: dict[tuple[str, int], dict[str, Any]] = self.gate.shared.setdefault(_DISCOVERIES, {})
        place = (target.host, target.port)
        if place not in kept:
            status, body = await fetch(target, "/$discovery/rest?version=v2", DOCUMENT_LIMIT)
            try:
                document = json.loads(body) if status == 200 else None
                if not isinstance(document, dict):
                    raise ValueError("no document")
                rewritten(document, "https://localhost")
            except (ValueError, RecursionError) as error:
                raise TargetPeerError("the target gives no discovery document") from error
            if len(kept) >= DISCOVERIES_LIMIT:
                kept.clear()
            kept[place] = document
        return kept[place]

    async def say(self, code: int, text: str, close: bool = False) -> bool:
        """Answer without a session; returns whether another request can follow."""
        fields: tuple[tuple[str, str], ...] = (_JSON,)
        if code == 401:
            document, field = errors.unauthenticated(text)
            fields = (*fields, field)
        else:
            document = errors.failure(code, text)
        kept = not close and await self.http.drop()
        await self.http.respond(code, fields, document, close=not kept)
        return kept
