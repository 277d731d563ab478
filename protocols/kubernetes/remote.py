"""Requests that take their connection over: exec, attach and port-forward. Decide, shake hands on both sides, relay.

Each has a session and a tape of its own. A user of WebSocket is always answered with 101, and what went wrong is said
as the Status at the end of the stream: kubectl takes any other answer for a server without WebSocket, and asks again by
SPDY, so that one refusal would be two. While a human is asked, a user who sees text (a terminal, or no piped input) is
let in and told; one whose input is piped is left waiting at the handshake, as input would fill the connection.

Nothing is decided here. Specification: kubernetes note 1, 3, 4 and 6.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from protocols.kubernetes import status
from protocols.kubernetes.commands import Conversation
from protocols.kubernetes.copies import read_copy
from protocols.kubernetes.documents import rewrite
from protocols.kubernetes.forward import serve_forward
from protocols.kubernetes.handshakes import FLOW, SPDY, Wanted, accepted, ask_target
from protocols.kubernetes.legs import choose_protocol, target_leg, user_leg
from protocols.kubernetes.relay import APART_BYTES, READ_BYTES, WAITING_LIMIT, Ending, Ends, Relay, held_text
from protocols.kubernetes.request_info import RequestInfo
from protocols.kubernetes.retries import recent_refusal, retry_key
from protocols.kubernetes.streams import STDERR, STDOUT, Data, End, Event, Over, Reply, Size, TargetLeg, UserLeg
from proxy.core.errors import PeerError, Refused, TapeError, TargetPeerError, UserPeerError
from proxy.core.events import Chunk, Command, Frame, Result
from proxy.core.gate import Gate, Pending
from proxy.core.http.client import TargetConnection
from proxy.core.http.heads import BadRequest, Fields, RequestHead, encode_response, words
from proxy.core.http.server import UserConnection
from proxy.core.http.websocket import Decoder, handshake_problem
from proxy.core.parties import Target
from proxy.core.session import Permit, Session
from proxy.core.stream import Stream
from proxy.core.verdict import Deny
from proxy.core.writers import TargetWriter, UserWriter
from proxy.http.answers import outcome
from proxy.http.sessions import Caller, identity_map
from proxy.terminal.content import Content, Settings
from proxy.terminal.terminal import terminal_content
from proxy.terminal.wording import gate_text

CLOSE_SECONDS: Final = 10.0
READY_SECONDS: Final = 30.0  # for a user of SPDY to open its streams; note 4
GOODBYE_SECONDS: Final = 5.0  # for a peer's own close; note 3
# Not v4 over WebSocket: it cannot say that stdin has ended; a server that has no v5 speaks SPDY.
WANTED: Final = Wanted(("v5.channel.k8s.io",), ("v4.channel.k8s.io",))
REMOTES: Final = frozenset({"exec", "attach", "portforward"})


async def serve_stream(
    http: UserConnection,
    user: Stream,
    head: RequestHead,
    info: RequestInfo,
    target: Target,
    caller: Caller,
    gate: Gate,
    log: Any,
) -> None:
    """Serve a request that asks for an upgrade, to the end of its connection. Raises BadRequest, TapeError."""
    if info.subresource not in REMOTES or not info.is_resource:
        raise BadRequest(400, "gatecast: nothing can be upgraded here but exec, attach and port-forward", closing=True)
    if head.upgrade not in ("websocket", SPDY):
        raise BadRequest(400, f"gatecast: an upgrade to {head.upgrade[:40]!r} is not known", closing=True)
    if head.upgrade == "websocket" and (problem := handshake_problem(head)):
        raise BadRequest(400, f"gatecast: {problem}", closing=True)
    if info.subresource == "portforward":
        known = recent_refusal(gate, retry_key(caller.identity, target, info))
        if known is not None:
            log.info("port-forward refused", why="as a moment ago: kubectl asks again by SPDY")
            await http.respond(known[0], (("Content-Type", "application/json"),), known[1], close=True)
            return
    if head.length != 0:
        raise BadRequest(400, "gatecast: a body does not belong to a request for an upgrade", closing=True)
    tape = gate.recorder.open(
        protocol="kubernetes",
        identity=identity_map(caller.identity),
        target=target.name,
        mode=target.recording,
        run=caller.run,
        more={"peer": caller.peer, "client": caller.client},
        recipients=target.encrypt_to,
    )
    session = Session(gate, caller.identity, target, tape)
    log = log.bind(session=session.id)
    log.info("session opened", verb=info.subresource)
    intent = head.get("gatecast-intent")
    if intent:
        session.intent(intent)
    if info.subresource == "portforward":
        await _owned(session, http, log, lambda: serve_forward(http, user, head, info, session, gate, log))
    else:
        remote = Remote(http, user, head, info, session, gate, log)
        await _owned(session, http, log, remote.run)


async def _owned(session: Session, http: UserConnection, log: Any, run: Callable[[], Any]) -> None:
    """Run it, and close its session whatever happens."""
    reason, failed = "", True
    try:
        reason = await run()
        failed = False
    except TapeError as error:
        reason = f"recording failed: {error}"
        log.error("recording failed, the session ends", error=str(error))
        if not http.taken:
            text = "gatecast: the session can no longer be recorded, so it ends"
            await http.respond(503, (("Content-Type", "application/json"),), status.failure(503, text), close=True)
    except BadRequest as bad:
        reason = bad.text
        raise
    except PeerError as error:
        reason = f"{'the target' if isinstance(error, TargetPeerError) else 'the user'}: {error}"
        # A user who is simply gone has ended the session: kubectl resets its connection as often as it closes it.
        failed = isinstance(error, TargetPeerError) or not isinstance(error.__cause__, OSError)
        log.info("session ended by a peer", error=str(error))
    except asyncio.CancelledError as cancelled:
        reason, failed = f"terminated: {cancelled.args[0] if cancelled.args else 'by the administrator'}", False
        raise
    except Exception:
        reason = "internal error"
        raise
    finally:
        await asyncio.shield(_close(session, "failed" if failed else "closed", reason, log))


async def _close(session: Session, how: Any, reason: str, log: Any) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await session.close(how, reason)
    except (TapeError, TimeoutError) as error:
        log.error("the tape could not be closed", error=str(error))
    log.info("session closed", reason=reason or "done")


class Remote:
    """One exec or attach of one user."""

    def __init__(
        self,
        http: UserConnection,
        user: Stream,
        head: RequestHead,
        info: RequestInfo,
        session: Session,
        gate: Gate,
        log: Any,
    ) -> None:
        self._http = http
        self._user = user
        self._head = head
        self._info = info
        self._session = session
        self._gate = gate
        self._log = log
        self._conversation = Conversation(session.target, FLOW, gate.shell)
        self._to_user = UserWriter(user, session, apart_bytes=APART_BYTES)
        self._websocket = head.upgrade == "websocket"
        self._leg: UserLeg | None = None  # once the user was let in
        self._rest = b""
        self._stash: list[Event] = []
        self._stashed_bytes = 0
        self._streams = {"stdin": False, "stdout": False, "stderr": False, "tty": False}

    async def run(self) -> str:
        """Serve it; returns why it ended, "" where it ran to its end. Raises BadRequest, TapeError, PeerError."""
        command = self._conversation.from_user(self._head, self._info, b"")
        self._streams = {name: _asked(self._info, name) for name in self._streams}
        if self._streams["tty"]:
            self._streams["stderr"] = False
        protocol = self._protocol()
        try:
            permit = await self._decide(command, protocol)
        except Refused as refused:
            self._log.info("stream refused", rule=refused.deny.rule, text=command.text[:200])
            code, document = self._conversation.refuse(refused)
            await self._fail(code, document, protocol)
            return f"refused by {refused.deny.rule}"
        try:
            return await self._run(permit, protocol)
        except TargetPeerError as error:
            self._log.warning("target failed", error=str(error))
            self._session.mark("target-error", str(error))
            await self._fail(503, status.failure(503, f"gatecast: {error}"), protocol)
            raise

    def _protocol(self) -> str:
        """The subprotocol that is spoken with the user. Raises BadRequest."""
        name = "sec-websocket-protocol" if self._websocket else "x-stream-protocol-version"
        offered = [word for word in words(self._head.fields, name) if not word.startswith("base64url.bearer.")]
        chosen = choose_protocol("websocket" if self._websocket else "spdy", offered)
        if chosen is None:
            raise BadRequest(400 if not offered else 403, "gatecast: none of the stream protocols offered is known")
        return chosen

    # -- deciding -------------------------------------------------------------------------------------

    async def _decide(self, command: Command, protocol: str) -> Permit:
        """Decide; a user who leaves meanwhile takes the question back. Raises Refused, UserPeerError."""
        if self._session.target.settings.get("exec_only") is True and self._interactive(command):
            self._session.mark("refused", f"{command.text}: the target takes single commands only")
            raise Refused(Deny("exec_only", "this target takes single commands only, nothing interactive"))
        told = self._websocket and (self._streams["tty"] or not self._streams["stdin"])
        held: list[Pending] = []

        async def on_hold(pending: Pending) -> None:
            self._log.info("stream held", approval=pending.id, rule=pending.hold.rule)
            held.append(pending)
            if told:
                await self._let_in(protocol)
                await self._tell(gate_text(held_text(pending)))
            waiting.set()

        waiting = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            deciding = group.create_task(outcome(self._session.decide(command, on_hold)))
            hold = group.create_task(waiting.wait())
            await asyncio.wait({deciding, hold}, return_when=asyncio.FIRST_COMPLETED)
            if not deciding.done():
                attending = self._attend(held[0]) if self._leg is not None else self._http.gone()
                left = group.create_task(outcome(attending))
                await asyncio.wait({deciding, left}, return_when=asyncio.FIRST_COMPLETED)
                if not deciding.done():
                    held[0].withdraw()
                    await asyncio.wait({deciding})
                left.cancel()
            hold.cancel()
        found = deciding.result()
        if isinstance(found, Exception):
            raise found
        return found

    def _interactive(self, command: Command) -> bool:
        """Whether what runs is yet to be typed or piped in: a terminal, a shell without a script, an attach."""
        if not self._streams["stdin"] or command.verb in ("copy-in", "copy-out"):
            return False
        return command.verb == "attach" or self._streams["tty"] or command.facts.get("opaque") is True

    async def _attend(self, pending: Pending) -> None:
        """Read what a user who was let in sends while it waits; returns when it has left, or took the question back."""
        leg = self._leg
        assert leg is not None
        while True:
            data = self._rest or await self._user.read(READ_BYTES)
            self._rest = b""
            if not data:
                return
            for event in leg.receive(data):
                match event:
                    case Reply(wire=wire):
                        self._to_user.send(None, Frame(wire, by_gate=True, taped=False))
                    case Over():
                        return
                    case Data(data=keys) if b"\x03" in keys and self._streams["tty"]:
                        self._session.ignored(keys, FLOW)
                        pending.withdraw()
                    case Data() | Size() | End():
                        self._keep(event)
                    case _:
                        raise UserPeerError("the user sent what only a target says")
            await self._to_user.flush()

    def _keep(self, event: Event) -> None:
        if isinstance(event, Data):
            self._stashed_bytes += len(event.data)
        if self._stashed_bytes > WAITING_LIMIT or len(self._stash) > WAITING_LIMIT // 64:
            raise UserPeerError("too much input before the command was approved")
        self._stash.append(event)

    # -- the user's handshake -------------------------------------------------------------------------

    async def _let_in(self, protocol: str) -> UserLeg:
        """Answer 101, and make the user's leg."""
        if self._leg is not None:
            return self._leg
        self._leg = user_leg("websocket" if self._websocket else "spdy", protocol, **self._streams)
        answer = accepted(self._head, protocol)
        self._to_user.send(None, Frame(answer + self._leg.start(), by_gate=True, taped=False))
        await self._to_user.flush()
        self._rest = self._http.take_over()
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not self._leg.ready:
                    await self._receive(self._leg)
        except TimeoutError:
            raise UserPeerError("it did not open its streams in time") from None
        return self._leg

    async def _receive(self, leg: UserLeg) -> None:
        data = self._rest or await self._user.read(READ_BYTES)
        self._rest = b""
        if not data:
            raise UserPeerError("the user left before its streams were open")
        for event in leg.receive(data):
            if isinstance(event, Reply):
                self._to_user.send(None, Frame(event.wire, by_gate=True, taped=False))
            elif isinstance(event, Over):
                raise UserPeerError("the user left before its streams were open")
            else:
                self._keep(event)
        await self._to_user.flush()

    async def _tell(self, text: str) -> None:
        """Say something to a user who was let in: on a terminal's screen, or on stderr."""
        leg = self._leg
        assert leg is not None
        tty = self._streams["tty"]
        data = text.encode("utf-8", "replace") + (b"\r\n" if tty else b"\n")
        stream = STDOUT if tty or not self._streams["stderr"] else STDERR

        def rewrap(data: bytes) -> bytes:
            return leg.data(stream, data)

        name = "err" if stream == STDERR else "out"
        chunk = Chunk(FLOW, "err" if name == "err" else "out", data, rewrap(data), rewrap, masked=False)
        self._to_user.send(None, chunk)
        await self._to_user.flush()

    async def _fail(self, code: int, document: bytes, protocol: str) -> None:
        """Tell the user that nothing runs: as the Status of its streams, or as the answer to its request."""
        if self._websocket or self._leg is not None:
            leg = await self._let_in(protocol)
            await self._finish(leg, document)
            return
        fields: Fields = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(document))),
            ("Connection", "close"),
        )
        answer = encode_response(code, status.reason_phrase(code), fields) + document
        self._to_user.send(None, Chunk(FLOW, "err", document, answer, lambda data: data, masked=False))
        await self._to_user.flush()

    async def _finish(self, leg: UserLeg, document: bytes) -> None:
        """Send the Status and the close, and wait a while for the user's own, so that nothing is cut off."""
        text = status.exit_of(document)[1] if document else ""
        if text:
            self._session.mark("status", text)
        wire = leg.finish(document)
        pieces = [frame.wire for frame in Decoder(masked=False).feed(wire)] if self._websocket else [wire]
        for piece in pieces:
            self._to_user.send(None, Frame(piece, by_gate=True, taped=False))
        await self._to_user.flush()
        with contextlib.suppress(TimeoutError, PeerError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                while data := self._rest or await self._user.read(READ_BYTES):
                    self._rest = b""
                    events = leg.receive(data)
                    if any(isinstance(event, Over) for event in events):
                        return

    # -- running --------------------------------------------------------------------------------------

    async def _run(self, permit: Permit, protocol: str) -> str:
        session = self._session
        granted = await ask_target(self._gate, session, permit, self._conversation, self._info, WANTED, self._head)
        if isinstance(granted, bytes):
            granted = self._shown(permit, granted)
            self._record(permit, granted, 0, 0)
            await self._fail(status.code_of(granted), granted, protocol)
            return "refused by the target"
        try:
            leg = target_leg("websocket" if granted.websocket else "spdy", granted.protocol, **self._streams)
            return await self._relay(permit, protocol, granted.connection, leg)
        finally:
            await asyncio.shield(granted.connection.close())

    async def _relay(self, permit: Permit, protocol: str, connection: TargetConnection, target: TargetLeg) -> str:
        leg = await self._let_in(protocol)
        rest = connection.take_over()
        outputs = frozenset[int]()
        if not target.codec:
            outputs = frozenset(
                number for number, name in ((STDOUT, "stdout"), (STDERR, "stderr")) if self._streams[name]
            )
        ends = Ends(self._user, leg, connection.stream, target, self._rest, rest, tuple(self._stash), outputs=outputs)
        self._rest = b""
        start = target.start()
        if start:
            writer = TargetWriter(connection.stream, self._session)
            writer.send(Frame(start, by_gate=True, taped=False))
            await writer.flush()
        await self._await_target(ends)
        command = permit.command
        copy = read_copy(command.facts.get("argv", ())) if command.verb in ("copy-in", "copy-out") else None
        idle = float(self._gate.settings.get("idle_seconds") or 0)
        relay = Relay(ends, self._session, permit, self._content(), copy, idle, self._log)
        ending = Ending(b"", "the stream failed", failed=True)
        try:
            ending = await relay.run()
            ending = replace(ending, document=self._shown(permit, ending.document))
        except TargetPeerError as error:
            ending = Ending(status.failure_document(gate_text(str(error))), f"the target: {error}", failed=True)
        except asyncio.CancelledError as cancelled:
            why = str(cancelled.args[0]) if cancelled.args else "terminated by the gateway's administrator"
            ending = Ending(status.failure_document(gate_text(why)), why)
            raise
        except TapeError:
            document = status.failure_document(gate_text("the session can no longer be recorded, so it ends"))
            await self._last_word(leg, document)
            raise
        finally:
            with contextlib.suppress(TapeError):
                relay.finish()
                self._record(permit, ending.document, relay.sent, relay.bytes)
            await asyncio.shield(self._say_end(ends, ending))
        if ending.failed:
            raise TargetPeerError(ending.reason)
        return ending.reason

    def _shown(self, permit: Permit, document: bytes) -> bytes:
        """A Status as the user may see it: a target's errors quote what masks hide. Raises TargetPeerError."""
        fields = self._gate.masker.fields(permit.masks, permit.command) if permit.masks else None
        return rewrite(document, fields, self._info.resource_name) if fields is not None and document else document

    async def _await_target(self, ends: Ends) -> None:
        """Wait until the target's streams are open."""
        try:
            await self._target_ready(ends)
        except TimeoutError:
            raise TargetPeerError("it did not open its streams in time") from None

    async def _target_ready(self, ends: Ends) -> None:
        async with asyncio.timeout(READY_SECONDS):
            while not ends.target_leg.ready:
                data = ends.from_target or await ends.target.read(READ_BYTES)
                ends.from_target = b""
                if not data:
                    raise TargetPeerError("the target closed the connection before its streams were open")
                for event in ends.target_leg.receive(data):
                    if isinstance(event, Over) and not ends.target_leg.ready:
                        raise TargetPeerError(f"the target did not open the streams: {event.reason}")
                    ends.said += (event,)  # a quick command's output may come in the read of the last stream's reply

    async def _say_end(self, ends: Ends, ending: Ending) -> None:
        """Tell both sides that it is over."""
        with contextlib.suppress(PeerError, TapeError):
            if ending.document:
                await self._finish(ends.user_leg, ending.document)
        with contextlib.suppress(PeerError, TapeError):
            writer = TargetWriter(ends.target, self._session)
            writer.send(Frame(ends.target_leg.finish(), by_gate=True, taped=False))
            await writer.flush()

    async def _last_word(self, leg: UserLeg, document: bytes) -> None:
        """The tape has failed: only that is still said, and none of it needs a tape."""
        with contextlib.suppress(PeerError):
            await self._user.write(leg.finish(document))

    def _content(self) -> Content | None:
        """What reads the lines of a terminal; None where there is none, or nothing can be typed."""
        if not self._streams["tty"] or not self._streams["stdin"]:
            return None
        target = self._session.target
        settings = Settings(
            flow=FLOW,
            protocol="kubernetes",
            target=target.name,
            hold_when_unsure=target.settings.get("hold_when_unsure") is True,
        )
        return terminal_content(settings, self._gate.shell)

    def _record(self, permit: Permit, document: bytes, sent: int, size: int) -> None:
        """Tape how it ended."""
        code, message = status.exit_of(document) if document else (None, "")
        details: dict[str, Any] = {"flow": FLOW, "sent": sent}
        if code is not None:
            details["exit"] = code
        tag = f"exit {code}" if code is not None else "closed"
        error = {"message": message} if code is None and message else None
        self._session.result(permit, Result(tag, size_bytes=size, error=error, details=details))


def _asked(info: RequestInfo, name: str) -> bool:
    """Whether a stream was asked for: a boolean of the query, by the rules of the API server."""
    values = [value for key, value in info.query if key == name]
    return bool(values) and values[0].lower() not in ("0", "false")
