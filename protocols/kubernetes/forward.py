"""port-forward: one session, and in it a connection for each local connection of the user, each decided by itself.

Both sides speak SPDY/3.1, raw or inside a WebSocket, and both are terminated here, so that a connection can be held and
refused with a text. A connection is a pair of streams with one requestid: error, then data; both name the port. The
pair is the Command (verb connect), its bytes a flow of the tape. What goes wrong with one is said on its error stream.

The session itself is decided at the handshake, before which the user hears nothing: kubectl waits for it. A refusal is
an HTTP answer, upon which kubectl asks again by SPDY: the same question a moment later gets the same answer, and is
one entry (retries.py).

There is no flow control in this dialect: a connection that is not read stops all of its session, as it does without us.
Specification: kubernetes note 4, 5 and 6.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from protocols.kubernetes import spdy, status
from protocols.kubernetes.commands import Conversation
from protocols.kubernetes.handshakes import Wanted, accepted, ask_target, first
from protocols.kubernetes.request_info import RequestInfo
from protocols.kubernetes.retries import remember, retry_key
from protocols.kubernetes.tunnel import SUBPROTOCOL, Tunnel
from proxy.core.errors import PeerError, Refused, TapeError, TargetPeerError, UserPeerError
from proxy.core.events import Chunk, Command, Frame, Result
from proxy.core.gate import Gate, Pending
from proxy.core.http.client import TargetConnection
from proxy.core.http.heads import BadRequest, Fields, RequestHead, encode_response, words
from proxy.core.http.server import UserConnection
from proxy.core.session import Input, Permit, Session
from proxy.core.stream import Stream
from proxy.core.writers import TargetWriter, UserWriter
from proxy.http.answers import outcome
from proxy.terminal.wording import refusal_text

PORTFORWARD: Final = "portforward.k8s.io"
READ_BYTES: Final = 64 * 1024
PAIRS_LIMIT: Final = 1000  # connections at once of one session; kubectl opens one for each local connection
UNDECIDED_LIMIT: Final = 64 * 1024  # of what a user sends into a connection that nobody has decided on yet
UNDECIDED_SUM_LIMIT: Final = 1024 * 1024  # the same of all connections of a session; sixteen that are full
PING_SECONDS: Final = 20.0  # note 8
WANTED: Final = Wanted((SUBPROTOCOL,), (PORTFORWARD,))
PORT_LIMIT: Final = 65_535
_PORT: Final = re.compile(r"[0-9]{1,5}")  # isdecimal() takes any script's digits, and int() no thousands of them


@dataclass(slots=True)
class Pair:
    """One connection: the user's two streams, and the target's once it is allowed."""

    flow: int
    port: int
    request_id: str
    error: int = 0
    data: int = 0
    permit: Permit | None = None
    target_error: int = 0
    target_data: int = 0
    waiting: bytearray = field(default_factory=bytearray)
    user_ended: bool = False
    target_ended: bool = False
    over: bool = False
    pending: Pending | None = None
    task: asyncio.Task[None] | None = None
    sent: int = 0
    bytes: int = 0


class _Done(Exception):
    """The session is over; args: why."""


async def serve_forward(
    http: UserConnection, user: Stream, head: RequestHead, info: RequestInfo, session: Session, gate: Gate, log: Any
) -> str:
    """Serve one port-forward to its end; returns why it ended. Raises BadRequest, TapeError, PeerError."""
    return await Forward(http, user, head, info, session, gate, log).run()


class Forward:
    """One port-forward session of one user."""

    def __init__(
        self,
        http: UserConnection, user: Stream, head: RequestHead, info: RequestInfo, session: Session, gate: Gate, log: Any
    ) -> None:  # fmt: skip
        self._http = http
        self._user = user
        self._head = head
        self._info = info
        self._session = session
        self._gate = gate
        self._log = log
        self._websocket = head.upgrade == "websocket"
        self._to_user = UserWriter(user, session)
        self._to_target: TargetWriter | None = None
        self._near = spdy.Session(server=True)
        self._far = spdy.Session(server=False)
        self._near_tunnel = Tunnel(self._websocket, user=True)
        self._far_tunnel = Tunnel(True, user=False)
        self._pairs: dict[str, Pair] = {}
        self._by_user: dict[int, Pair] = {}
        self._by_target: dict[int, Pair] = {}
        self._flows = 0
        self._permit: Permit | None = None
        self._group: asyncio.TaskGroup | None = None
        self._active = time.monotonic()

    async def run(self) -> str:
        """See serve_forward."""
        if self._info.get("ports") is not None:
            raise BadRequest(400, "gatecast: port-forward in the form of kubelets (?ports=) is not spoken here")
        name = "sec-websocket-protocol" if self._websocket else "x-stream-protocol-version"
        wanted = (SUBPROTOCOL if self._websocket else PORTFORWARD).lower()
        if wanted not in words(self._head.fields, name):
            raise BadRequest(403 if self._head.get(name) else 400, f"gatecast: only {wanted} is spoken here")
        conversation = Conversation(self._session.target, 0, self._gate.shell)
        command = conversation.from_user(self._head, self._info, b"")
        try:
            self._permit = await self._decide(replace(command, flow=None, data=None))  # it is no stream
        except Refused as refused:
            self._log.info("port-forward refused", rule=refused.deny.rule)
            answer = conversation.refuse(refused)
            remember(self._gate, retry_key(self._session.identity, self._session.target, self._info), answer)
            await self._answer(*answer)
            return f"refused by {refused.deny.rule}"
        try:
            granted = await ask_target(
                self._gate, self._session, self._permit, conversation, self._info, WANTED, self._head
            )
        except TargetPeerError as error:
            await self._answer(503, status.failure(503, f"gatecast: {error}"))
            raise
        if isinstance(granted, bytes):
            await self._answer(status.code_of(granted), granted)
            return "refused by the target"
        self._far_tunnel = Tunnel(granted.websocket, user=False)
        self._to_target = TargetWriter(granted.connection.stream, self._session)
        try:
            return await self._relay(granted.connection)
        finally:
            await asyncio.shield(granted.connection.close())

    # -- handshakes -----------------------------------------------------------------------------------

    async def _decide(self, command: Command) -> Permit:
        """Decide on the session; a user who leaves meanwhile takes the question back."""
        async with asyncio.TaskGroup() as group:
            deciding = group.create_task(outcome(self._session.decide(command, self._on_hold)))
            gone = group.create_task(self._http.gone())
            await asyncio.wait({deciding, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not deciding.done():
                self._session.withdraw()
                await asyncio.wait({deciding})
            gone.cancel()
        found = deciding.result()
        if isinstance(found, Exception):
            raise found
        return found

    async def _on_hold(self, pending: Pending) -> None:
        self._log.info("port-forward held", approval=pending.id, rule=pending.hold.rule)

    async def _answer(self, code: int, document: bytes) -> None:
        """Answer without an upgrade."""
        fields: Fields = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(document))),
            ("Connection", "close"),
        )
        wire = encode_response(code, status.reason_phrase(code), fields) + document
        self._to_user.send(None, Frame(wire, by_gate=True))
        await self._to_user.flush()

    async def _let_in(self) -> None:
        answer = accepted(self._head, SUBPROTOCOL if self._websocket else PORTFORWARD)
        self._to_user.send(None, Frame(answer, by_gate=True, taped=False))
        await self._to_user.flush()

    # -- the relay ------------------------------------------------------------------------------------

    async def _relay(self, connection: TargetConnection) -> str:
        await self._let_in()
        rest, head = self._http.take_over(), connection.take_over()
        reason = "the session failed"
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._up(rest))
                group.create_task(self._down(connection.stream, head))
                group.create_task(self._keep_alive())
        except BaseExceptionGroup as errors:
            error = first(errors)
            if not isinstance(error, _Done):
                reason = str(error)
                raise error from error.__cause__
            reason = str(error)
        finally:
            with contextlib.suppress(TapeError):
                self._record_open()
            await asyncio.shield(self._farewell())
        return reason

    async def _farewell(self) -> None:
        """End both sides in order."""
        with contextlib.suppress(PeerError, TapeError):
            self._say(self._near.goaway())
            self._to_user.send(None, Frame(self._near_tunnel.close(), by_gate=True, taped=False))
            await self._to_user.flush()
        with contextlib.suppress(PeerError, TapeError):
            self._pass(self._far.goaway())
            if self._to_target is not None:
                self._to_target.send(Frame(self._far_tunnel.close(), by_gate=True, taped=False))
                await self._to_target.flush()

    def _say(self, wire: bytes) -> None:
        """SPDY's own words to the user."""
        if wire:
            self._to_user.send(None, Frame(self._near_tunnel.send(wire), by_gate=True, taped=False))

    def _pass(self, wire: bytes) -> None:
        """SPDY's own words to the target."""
        if wire and self._to_target is not None:
            self._to_target.send(Frame(self._far_tunnel.send(wire), by_gate=True, taped=False))

    async def _flush(self) -> None:
        if self._to_target is not None and self._to_target.waiting:
            await self._to_target.flush()
        if self._to_user.waiting:
            await self._to_user.flush()

    async def _up(self, data: bytes) -> None:
        while True:
            if data:
                came = self._near_tunnel.receive(data)
                if came.reply:
                    self._to_user.send(None, Frame(came.reply, by_gate=True, taped=False))
                for event in self._near.receive(came.data):
                    self._from_user(event)
                if came.over:
                    raise _Done("")
            await self._flush()
            await self._make_room()
            data = await self._user.read(READ_BYTES)
            if not data:
                raise _Done("")
            self._active = time.monotonic()

    async def _make_room(self) -> None:
        """Wait while too much is kept for connections that are not decided on: it stops the session, as TCP would.

        Raises UserPeerError where it is kept for one that cannot be decided on, as its other stream is missing.
        """
        while True:
            kept = [each for each in self._pairs.values() if each.waiting]
            full = [each for each in kept if len(each.waiting) > UNDECIDED_LIMIT]
            if sum(len(each.waiting) for each in kept) > UNDECIDED_SUM_LIMIT:
                full = kept
            if any(each.task is None for each in full):
                raise UserPeerError("too much input for a connection whose other stream is missing")
            deciding = {each.task for each in full if each.task is not None and not each.task.done()}
            if not deciding:
                return
            await asyncio.wait(deciding, return_when=asyncio.FIRST_COMPLETED)

    async def _down(self, stream: Stream, data: bytes) -> None:
        while True:
            if data:
                came = self._far_tunnel.receive(data)
                if came.reply and self._to_target is not None:
                    self._to_target.send(Frame(came.reply, by_gate=True, taped=False))
                for event in self._far.receive(came.data):
                    self._from_target(event)
                if came.over:
                    raise _Done("the target ended the session")
            await self._flush()
            data = await stream.read(READ_BYTES)
            if not data:
                raise _Done("the target closed the connection")
            self._active = time.monotonic()

    async def _keep_alive(self) -> None:
        idle = float(self._gate.settings.get("idle_seconds") or 0)
        while True:
            await asyncio.sleep(PING_SECONDS)
            if idle and time.monotonic() - self._active >= idle and not self._session.held:
                raise _Done(f"idle for {idle:.0f} seconds")
            self._say(self._near.ping())
            self._pass(self._far.ping())
            await self._flush()

    # -- from the user --------------------------------------------------------------------------------

    def _from_user(self, event: spdy.SessionEvent) -> None:
        match event:
            case spdy.Opened(stream=stream, headers=headers, fin=fin):
                self._opened(stream, headers, fin)
            case spdy.Received(stream=stream, data=data, fin=fin):
                pair = self._by_user.get(stream)
                if pair is None or pair.over:
                    return  # of a connection that was refused or reset: its end is on its way
                if stream == pair.data:
                    self._input(pair, data, fin)
                elif data:
                    raise UserPeerError("the user sent on an error stream")
            case spdy.Reset(stream=stream):
                pair = self._by_user.get(stream)
                if pair is not None and not pair.over and stream == pair.data:
                    if pair.permit is not None:
                        self._pass(self._far.reset(pair.target_data) + self._far.reset(pair.target_error))
                    self._say(self._near.data(pair.error, b"", True))
                    self._close(pair, "reset")
            case spdy.Reply(wire=wire):
                self._say(wire)
            case spdy.Away():
                raise _Done("")

    def _opened(self, stream: int, headers: Mapping[str, str], fin: bool) -> None:
        kind, name = headers.get("streamtype", ""), headers.get("requestid", "")
        port = headers.get("port", "")
        if kind not in ("error", "data") or not _PORT.fullmatch(port) or not 0 < int(port) <= PORT_LIMIT:
            raise UserPeerError("a stream of port-forward without a type or a port")
        pair = self._pairs.get(name)
        if pair is None:
            if len(self._pairs) >= PAIRS_LIMIT:
                raise UserPeerError(f"more than {PAIRS_LIMIT} connections in one session")
            self._flows += 1
            pair = self._pairs[name] = Pair(self._flows, int(port), name)
        if pair.port != int(port) or (pair.error if kind == "error" else pair.data):
            raise UserPeerError("two streams of port-forward that do not belong together")
        if kind == "error":
            pair.error = stream
        else:
            pair.data = stream
            pair.user_ended = fin
        self._by_user[stream] = pair
        self._say(self._near.reply(stream))
        if pair.error and pair.data:
            assert self._group is not None
            pair.task = self._group.create_task(self._connect(pair))

    def _input(self, pair: Pair, data: bytes, fin: bool) -> None:
        pair.sent += len(data)
        if pair.permit is None:
            pair.waiting += data
            pair.user_ended = pair.user_ended or fin
            return
        self._forward(pair, data, fin)

    def _forward(self, pair: Pair, data: bytes, fin: bool) -> None:
        assert self._to_target is not None and pair.permit is not None
        if data or fin:
            wire = self._far_tunnel.send(self._far.data(pair.target_data, data, fin))
            self._to_target.send(Input(pair.permit, pair.flow, data, wire))
        if fin:
            pair.user_ended = True
            self._settle(pair)

    # -- one connection -------------------------------------------------------------------------------

    async def _connect(self, pair: Pair) -> None:
        """Decide on a connection, and open it at the target."""
        outer = self._permit
        assert outer is not None
        namespace, name = self._info.namespace, self._info.name
        command = Command(
            "kubernetes",
            "connect",
            "transfer",
            f"connect to port {pair.port} of pod {namespace}/{name}",
            objects=outer.command.objects,
            facts={**outer.command.facts, "port": pair.port},
            flow=pair.flow,
        )

        async def on_hold(pending: Pending) -> None:
            pair.pending = pending
            self._log.info("connection held", approval=pending.id, rule=pending.hold.rule, port=pair.port)
            if pair.over:
                pending.withdraw()

        try:
            permit = await self._session.decide(command, on_hold)
        except Refused as refused:
            self._log.info("connection refused", rule=refused.deny.rule, port=pair.port)
            if not pair.over:
                self._refuse(pair, refusal_text(refused))
            await self._flush()
            return
        finally:
            pair.pending = None
        if pair.over:
            return
        assert self._to_target is not None
        pair.permit = permit
        about = {"port": str(pair.port), "requestid": pair.request_id}
        pair.target_error, opening = self._far.open({"streamtype": "error", **about}, fin=True)
        pair.target_data, data = self._far.open({"streamtype": "data", **about})
        self._by_target |= {pair.target_error: pair, pair.target_data: pair}
        self._to_target.send(permit)
        self._to_target.send(Input(permit, pair.flow, b"", self._far_tunnel.send(opening + data)))
        waiting = bytes(pair.waiting)
        pair.waiting.clear()
        self._forward(pair, waiting, pair.user_ended)
        await self._flush()

    def _refuse(self, pair: Pair, text: str) -> None:
        """Say on the error stream why there is no connection, and end it."""
        data = text.encode("utf-8", "replace")
        self._error(pair, data)
        self._say(self._near.data(pair.error, b"", True) + self._near.reset(pair.data))
        self._close(pair, "")

    def _error(self, pair: Pair, data: bytes) -> None:
        def rewrap(data: bytes) -> bytes:
            return self._near_tunnel.send(self._near.data(pair.error, data, False))

        self._to_user.send(pair.permit, Chunk(pair.flow, "err", data, rewrap(data), rewrap, masked=False))

    def _settle(self, pair: Pair) -> None:
        if pair.user_ended and pair.target_ended and not pair.over:
            self._close(pair, "closed")

    def _close(self, pair: Pair, how: str) -> None:
        """It is over: forget it, and tape what went through it."""
        pair.over = True
        if pair.pending is not None:
            pair.pending.withdraw()
        self._pairs.pop(pair.request_id, None)
        for stream in (pair.error, pair.data):  # what still comes on them is of nobody
            self._by_user.pop(stream, None)
        for stream in (pair.target_error, pair.target_data):
            self._by_target.pop(stream, None)
        self._record(pair, how)

    def _record(self, pair: Pair, how: str) -> None:
        if pair.permit is not None and how:
            details = {"flow": pair.flow, "sent": pair.sent}
            self._session.result(pair.permit, Result(how, size_bytes=pair.bytes, details=details))
        self._session.forget_stream(pair.flow)

    def _record_open(self) -> None:
        for pair in list(self._pairs.values()):
            self._close(pair, "closed with the session")
        if self._permit is not None:
            self._session.result(self._permit, Result("closed"))

    # -- from the target ------------------------------------------------------------------------------

    def _from_target(self, event: spdy.SessionEvent) -> None:
        match event:
            case spdy.Received(stream=stream, data=data, fin=fin):
                pair = self._by_target.get(stream)
                if pair is None or pair.over:
                    return
                if stream == pair.target_error:
                    self._target_error(pair, data, fin)
                else:
                    self._output(pair, data, fin)
            case spdy.Reset(stream=stream):
                pair = self._by_target.get(stream)
                if pair is not None and not pair.over:
                    self._say(self._near.reset(pair.data) + self._near.data(pair.error, b"", True))
                    self._pass(self._far.reset(pair.target_error))
                    self._close(pair, "reset")
            case spdy.Reply(wire=wire):
                self._pass(wire)
            case spdy.Away():
                raise _Done("the target ended the session")
            case spdy.Opened():
                raise TargetPeerError("the target opened a stream")

    def _target_error(self, pair: Pair, data: bytes, fin: bool) -> None:
        if data:
            self._error(pair, data)
        if fin:
            self._say(self._near.data(pair.error, b"", True))

    def _output(self, pair: Pair, data: bytes, fin: bool) -> None:
        pair.bytes += len(data)
        if data or fin:

            def rewrap(data: bytes) -> bytes:
                return self._near_tunnel.send(self._near.data(pair.data, data, False))

            if data:
                self._to_user.send(pair.permit, Chunk(pair.flow, "out", data, rewrap(data), rewrap))
            if fin:
                self._say(self._near.data(pair.data, b"", True))
        if fin:
            pair.target_ended = True
            self._settle(pair)
