"""Receives a user before there is a target: has the connection decided, and turns away who cannot be served.

Nobody is read while a decision comes at once. Where it is held for a human, the lobby hears the user meanwhile, says so
on the user's terminal, and Ctrl-C there takes it back; what was said is kept for the relay.

Source: lobby.py; RFC 4253 11.1.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, Final

from protocols.ssh import wire
from protocols.ssh.lobby import Lobby
from protocols.ssh.relay import Leg, held_text
from proxy.core.errors import PeerError, TapeError
from proxy.core.events import Command, Frame
from proxy.core.gate import Pending
from proxy.core.session import Session
from proxy.core.writers import UserWriter

OPEN_SECONDS: Final = 10.0  # for a user who cannot be served to start something, in whose answer the reason stands
TURN_AWAY_SECONDS: Final = 1.0  # for a client that starts several
BY_APPLICATION: Final = 11  # RFC 4253 11.1


class Reception:
    """One user on the way to one target."""

    def __init__(self, leg: Leg, session: Session, log: Any) -> None:
        self.lobby = Lobby()
        self._leg = leg
        self._session = session
        self._log = log
        self._writer = UserWriter(leg, session)
        self._turn = asyncio.Lock()  # held while what was heard is answered
        self._hearing: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def decide(self, command: Command) -> None:
        """Decide the opening; a user who leaves meanwhile takes back what is held.

        Raises Refused, TapeError, UserPeerError.
        """

        async def watch() -> None:
            await self._leg.gone()
            self._session.withdraw()

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())

            async def on_hold(pending: Pending) -> None:
                self._log.info("session held", approval=pending.id, rule=pending.hold.rule)
                self._say(self.lobby.held(held_text(pending)))
                self._hearing = group.create_task(self._hear())

            try:
                await self._session.decide(command, on_hold)
            except Exception as error:  # out of the group as it is, not in an ExceptionGroup
                self._failure = self._failure or error
            watching.cancel()
            if self._hearing is not None:
                async with self._turn:  # in its wait for the user, so that nothing is heard by half
                    self._hearing.cancel()
        if self._failure is not None:
            raise self._failure
        await self._writer.flush()

    async def turn_away(self, code: int, text: str) -> None:
        """Answer what the user has asked and asks with the reason, for a moment. code: RFC 4254 5.1's."""
        self._ignore(self.lobby.kept)
        self._say(self.lobby.refuse(code, text))
        hurried = False
        with contextlib.suppress(TimeoutError, PeerError):
            async with asyncio.timeout(OPEN_SECONDS) as limit:
                await self._writer.flush()
                while payloads := await self._leg.read():
                    self._ignore(payloads)
                    for payload in payloads:
                        self._say(self.lobby.from_user(payload))
                    await self._writer.flush()
                    if self.lobby.told and not hurried:
                        hurried = True
                        limit.reschedule(asyncio.get_running_loop().time() + TURN_AWAY_SECONDS)
        self._leg.disconnect(BY_APPLICATION, text)

    async def _hear(self) -> None:
        """Take what a user says who waits."""
        try:
            while payloads := await self._leg.read():
                for payload in payloads:
                    self._say(self.lobby.from_user(payload))
                if self.lobby.interrupted:
                    self._session.withdraw()
                async with self._turn:
                    await self._writer.flush()
        except (PeerError, TapeError) as error:  # there is nobody to ask for, or no tape: decide() ends with it
            self._failure = error
            self._session.withdraw()

    def _say(self, frames: Iterable[bytes]) -> None:
        for each in frames:
            self._writer.send(None, Frame(each, by_gate=True))

    def _ignore(self, payloads: Iterable[bytes]) -> None:
        """What nobody will take goes on the tape all the same."""
        for payload in payloads:
            self._session.ignored(wire.frame(payload))
