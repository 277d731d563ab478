"""The two directions of a running session, and what has to be awaited between reading and writing.

Up: user bytes -> Conversation -> Session.decide -> TargetWriter. Down: target bytes -> Conversation ->
UserWriter. Each read is handled and flushed before the next one: no queue grows. The directions are independent,
so that a target that cannot write does not keep us from reading it (odyssey #1475). An error that ends the
session ends both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, assert_never

from protocols.postgres import startup, wire
from protocols.postgres.answers import Ended, Fatal, NeedColumns, NeedCopy, Revealed, Status
from protocols.postgres.commands import Asked, Conversation, Ignored, Piece, Settle, Terminate
from protocols.postgres.dial import TargetLink
from protocols.postgres.tokens import new_token
from protocols.postgres.wording import notice, option_settings
from protocols.postgres.world import World
from proxy.core.errors import Refused, TargetPeerError, UserPeerError
from proxy.core.events import Frame, Output, Result
from proxy.core.gate import Gate, Pending
from proxy.core.session import Session
from proxy.core.stream import Stream
from proxy.core.writers import TargetWriter, UserWriter

READ_BYTES: Final = 64 * 1024
GOODBYE_SECONDS: Final = 15.0  # for a target to end what a user left behind; longer than a cancel may take (dial.py)


class _Over(Exception):
    """The session is over; reason '' for a normal end."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Relay:
    """One running session."""

    def __init__(
        self,
        user: Stream,
        gate: Gate,
        session: Session,
        link: TargetLink,
        world: World,
        parameters: Mapping[str, str],
        replication: bool,
        log: Any,
    ) -> None:
        self._user = user
        self._session = session
        self._link = link
        self._world = world
        self._log = log
        self._to_target = TargetWriter(link.stream, session)
        self._to_user = UserWriter(user, session)
        self._notices: list[bytes] = []
        self._leaving = False
        self._user_gone = False
        self._target_over = False
        self._progress = asyncio.Event()  # the target has answered something, or the user has gone
        self._idle_seconds = float(gate.settings.get("idle_seconds") or 0)
        settings = option_settings(parameters)
        settings.update({name.lower(): value for name, value in parameters.items()})
        self._conversation = Conversation(
            gate.reader,
            world.commands,
            new_token,
            query_limit=int(gate.settings.get("query_limit", wire.QUERY_LIMIT)),
            replication=replication,
            search_path=None if {"search_path", "role"} & settings.keys() else world.search_path,
        )
        for name in ("client_encoding", "standard_conforming_strings"):
            if name in settings:
                self._conversation.setting(name, settings[name])
        for name, value in link.parameters.items():
            if name != "search_path":
                self._conversation.setting(name, value)

    @property
    def busy(self) -> bool:
        """Whether the target owes an answer."""
        return self._conversation.pipeline.peek() is not None

    def withdraw(self) -> bool:
        """Take back a held command, if there is one."""
        return self._session.withdraw()

    @property
    def abandoned(self) -> bool:
        """Whether the session ended under a statement that still runs, without the goodbye that lets it run on.

        COPY FROM STDIN waits for its user, deaf to cancels, and ends with the connection.
        """
        copying = self._conversation.pipeline.copy_in
        return self.busy and not copying and not self._leaving and not self._target_over

    async def run(self, secret: bytes) -> tuple[str, bytes]:
        """Relay until either side ends; secret is the user's cancel key. Returns (reason, last message)."""
        self._to_user.send(None, Output("out", _with_secret(self._link.messages, secret)))
        await self._to_user.flush()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._up())
                group.create_task(self._down())
                group.create_task(self._watch())
        except BaseExceptionGroup as errors:
            # One failure makes the other; the first is the cause.
            error = _first(errors)
            self._target_over = self._target_over or isinstance(error, TargetPeerError)
            if isinstance(error, _Over):
                return error.reason, b""
            raise error from errors
        raise AssertionError("a relay ends by an exception")

    async def _watch(self) -> None:
        """A user who leaves takes back what is held, now or behind it, and a target that stands still ends soon."""
        await self._user.gone()
        self._user_gone = True
        self._progress.set()
        self._session.withdraw()
        await asyncio.sleep(GOODBYE_SECONDS)
        raise _Over("the user left, and the target did not end")

    # -- up ---------------------------------------------------------------------------------------------

    async def _up(self) -> None:
        conversation, session, writer = self._conversation, self._session, self._to_target
        while True:
            data = await (self._user.read(READ_BYTES) if not self._idle_seconds else self._read_unless_idle())
            if not data:
                await self._user_left()
            items = conversation.from_user(data)
            while True:
                if self._world.behind:
                    await self._world.refresh()  # what a command touches is looked up as it is cut out of the bytes
                item = next(items, None)
                match item:
                    case None:
                        break
                    case Asked():
                        await self._decide(item)
                    case Frame():
                        writer.send(item)
                    case Piece():
                        writer.send(conversation.part(item))
                    case Ignored():
                        session.ignored(item.wire)
                    case Settle():
                        await self._settle(item)
                    case Terminate():
                        writer.send(Frame(item.wire))
                        await writer.flush()
                        self._leaving = True
                        return  # the target ends what it still runs, then the connection, as it does directly
                    case _:
                        assert_never(item)
            await writer.flush()

    async def _settle(self, settle: Settle) -> None:
        """Wait for the answers that decide what the user's next message means."""
        self._to_target.send(Frame(wire.message(wire.FLUSH, b""), by_gate=True))
        await self._to_target.flush()
        while not (settle.done() or self._user_gone):
            self._progress.clear()
            await self._progress.wait()

    async def _read_unless_idle(self) -> bytes:
        """Read from the user, who may not be silent for idle_seconds while nothing runs."""
        while True:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    return await self._user.read(READ_BYTES)
            except TimeoutError:
                if not self.busy:
                    raise UserPeerError("terminating connection due to idle-session timeout", "57P05") from None

    async def _decide(self, asked: Asked) -> None:
        conversation = self._conversation
        try:
            permit = await self._session.decide(asked.command, self._on_hold, asked.follows)
        except Refused as refused:
            replacement = conversation.refuse(refused)
            if replacement is not None:
                self._to_target.send(replacement)
            self._log.info("refused", rule=refused.deny.rule, verb=asked.command.verb)
            return
        cargo = conversation.permitted(permit)
        for each in cargo:
            self._to_target.send(each)
        if not cargo:
            self._session.result(permit, Result("SKIPPED"))

    async def _on_hold(self, pending: Pending) -> None:
        if self._user_gone:
            pending.withdraw()
            return
        # What was decided before goes up first: its answers are not to wait for this approval.
        await self._to_target.flush()
        where = f"; approve at {pending.url}" if pending.url else ""
        text = f'held by rule "{pending.hold.rule}": waiting for approval {pending.id}{where}'
        if pending.hold.reason:
            text += f" ({pending.hold.reason})"
        hint = "Ctrl-C withdraws it."
        if self._conversation.pipeline.status == ord("T"):
            hint += " The transaction stays open meanwhile and keeps its locks."
        self._log.info("held", rule=pending.hold.rule, approval=pending.id)
        await self._tell(notice(text, detail=f"gatecast approvals approve {pending.id}", hint=hint))

    async def _tell(self, message: bytes) -> None:
        """Put a notice of ours between two messages of the target."""
        self._notices.append(message)
        if self._conversation.answers.between_messages:
            await self._flush_user()

    async def _user_left(self) -> None:
        """End of file: say goodbye to the target; what still runs is cancelled by whoever called run()."""
        self._to_target.send(Frame(wire.message(wire.TERMINATE, b""), by_gate=True))
        await self._to_target.flush()
        raise _Over("")

    # -- down -------------------------------------------------------------------------------------------

    async def _down(self) -> None:
        while True:
            data = await self._link.stream.read(READ_BYTES)
            if not data:
                if self._leaving:
                    raise _Over("")
                raise TargetPeerError("the target closed the connection unexpectedly", "08006")
            over = False
            for answer in self._conversation.from_target(data):
                match answer:
                    case Revealed():
                        seen = self._to_user.send(answer.permit, answer.event)
                        if answer.reply is not None:
                            self._conversation.answers.show(answer.reply, seen)
                    case Ended():
                        self._session.result(answer.permit, answer.result)
                    case NeedColumns():
                        answer.reply.columns = await self._world.columns(answer.fields, self._conversation.date_style)
                    case NeedCopy():
                        answer.reply.columns = await self._world.copy_columns(
                            answer.copy, answer.statement, answer.count, answer.reply.permit
                        )
                    case Status():
                        self._conversation.setting(answer.name, answer.value)
                    case Fatal():
                        over = True
                    case _:
                        assert_never(answer)
            if self._conversation.pipeline.ddl_done:
                self._conversation.pipeline.ddl_done = False
                self._world.stale()
            self._progress.set()
            await self._flush_user()
            if over:
                self._target_over = True
                raise _Over("ended by the target")

    async def _flush_user(self) -> None:
        if self._notices and self._conversation.answers.between_messages:
            notices, self._notices = self._notices, []
            for message in notices:
                self._to_user.send(None, Frame(message, by_gate=True))
        try:
            await self._to_user.flush()
        except UserPeerError:
            if not self._leaving:
                raise


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _with_secret(messages: bytes, secret: bytes) -> bytes:
    """Put our cancel key in place of the target's; its pid stays (postgres note 1.2)."""
    pos = 0
    while pos < len(messages):
        kind, length = wire.HEADER.unpack_from(messages, pos)
        end = pos + 1 + length
        if kind == ord("K"):
            pid, _ = startup.parse_backend_key(messages[pos + 5 : end])
            return messages[:pos] + startup.encode_backend_key(pid, secret) + messages[end:]
        pos = end
    return messages
