"""A connection to a sandbox: sends one message at a time, and waits for the answer to it.

Every message of the extended protocol is followed by a Flush, so that its answer can be compared before the next one is
sent; a Flush ends no transaction, so the server does what it would do in a pipeline. A statement that takes longer than
the time it is given is cancelled; where no answer to that is heard either, the connection is given up.

Left out: several statements at once (that is another program), and what other sessions did at the same time.
Source: PostgreSQL 18 docs 54.2.3, 54.2.7, 54.2.8.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

from protocols.postgres import dial, wire
from protocols.postgres.outcomes import Outcome, Question, RowSets, Side
from protocols.postgres.rowsets import RowSet
from proxy.core.errors import TargetPeerError
from proxy.core.parties import Credential, Target

READ_BYTES: Final = 64 * 1024
HEAR_SECONDS: Final = 10.0  # from a cancel to the answer of what it hit
CLOSE_SECONDS: Final = 5.0
# Text that no PostgreSQL parses: it fails whatever is open, as the recording did.
_FAILING: Final = b"gatecast_reexecution fails here as the recording did"
_OWN_NAME: Final = b"gatecast_reexecution"
_READY_KINDS: Final = frozenset((wire.QUERY, wire.FUNCTION_CALL, wire.SYNC))


class TooLong(Exception):
    """The sandbox took longer than allowed; what ran was cancelled, and the connection is in order."""


class Sandbox(Side):
    """A sandbox that is logged in to. open() makes it; close() must be called."""

    def __init__(self, link: dial.TargetLink, target: Target, credential: Credential, timeout_seconds: float) -> None:
        super().__init__(self._read)
        self._link = link
        self._target = target
        self._credential = credential
        self._timeout_seconds = timeout_seconds
        self._busy = False
        self.parameters.update(link.parameters)

    @classmethod
    async def open(
        cls, target: Target, credential: Credential, parameters: Mapping[str, str], timeout_seconds: float
    ) -> Sandbox:
        """Log in. Raises TargetPeerError."""
        startup = {"user": "", "database": target.database or target.name, **parameters}
        link = await dial.dial(target, credential, startup)
        return cls(link, target, credential, timeout_seconds)

    async def ask(self, kind: int, message: bytes, row_set: RowSets, copy: Iterator[bytes] | None = None) -> Outcome:
        """Send a message and return the answer. copy: the messages to send when the server asks for COPY data.

        Raises TargetPeerError, after which only close() is possible, and TooLong.
        """
        self._busy = True
        async with _Copy(self._link, copy) as copying:
            question = Question(kind, message, row_set, copying.start)
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    tail = b"" if kind in _READY_KINDS else wire.message(wire.FLUSH, b"")
                    await self._link.stream.write(message + tail)
                    outcome = await self.answer(question)
            except TimeoutError:
                await self._cancel(question, copying)
                raise TooLong from None
        self._busy = False
        if outcome.over and not outcome.code:
            raise TargetPeerError("the sandbox closed the connection unexpectedly", "08006")
        return outcome

    async def fail(self, extended: bool) -> Outcome:
        """Make the open transaction, or batch, fail."""
        if extended:
            return await self.ask(wire.PARSE, wire.encode_parse(b"", _FAILING), _no_rows)
        return await self.ask(wire.QUERY, wire.encode_query(_FAILING), _no_rows)

    async def run(self, text: str) -> Outcome:
        """Run a text of our own that gives no rows; it may stand between two messages of a batch in a transaction.

        By names of our own: a Query would drop the unnamed statement, which the recording may go on to use.
        """
        name = _OWN_NAME
        messages = (
            (wire.PARSE, wire.encode_parse(name, text.encode())),
            (wire.BIND, wire.encode_bind(name, name)),
            (wire.EXECUTE, wire.encode_execute(name)),
            (wire.CLOSE, wire.encode_named(wire.CLOSE, ord("P"), name)),
            (wire.CLOSE, wire.encode_named(wire.CLOSE, ord("S"), name)),
        )
        failed: Outcome | None = None
        for kind, message in messages:
            outcome = await self.ask(kind, message, _no_rows)
            if outcome.code:
                failed = outcome
                break
        last = await self.ask(wire.SYNC, wire.message(wire.SYNC, b""), _no_rows)
        return failed or last

    async def close(self) -> None:
        """Cancel what runs, say goodbye, close. Never raises."""
        with contextlib.suppress(TargetPeerError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._busy:
                    await self._send_cancel()
                else:
                    await self._link.stream.write(wire.message(wire.TERMINATE, b""))
        await self._link.stream.close()

    async def _read(self) -> bytes:
        return await self._link.stream.read(READ_BYTES)

    async def _cancel(self, question: Question, copying: _Copy) -> None:
        """Cancel what runs and read its answer. Raises TargetPeerError if there is none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAR_SECONDS):
                await self._send_cancel()
                if not copying.started:
                    await self.answer(question)
                    self._busy = False
                    return
        raise TargetPeerError("the sandbox does not answer, nor does it hear a cancel request; the run ends here")

    async def _send_cancel(self) -> None:
        link = self._link
        if link.secret:
            await dial.cancel(self._target, self._credential, link.pid, link.secret, link.address)


class _Copy:
    """Sends COPY data while answers are read: a server that has notices to say stops reading until they are read."""

    def __init__(self, link: dial.TargetLink, frames: Iterator[bytes] | None) -> None:
        self._link = link
        self._frames = frames
        self._group = asyncio.TaskGroup()
        self._over = False
        self.started = False

    async def __aenter__(self) -> _Copy:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._over = True
        try:
            await self._group.__aexit__(kind, error, None)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def start(self) -> None:
        """The server asks for data."""
        self.started = True
        self._group.create_task(self._send())

    async def _send(self) -> None:
        ended = False
        for frame in self._frames or ():
            if self._over:
                return  # the server has answered with an error: it takes no more
            await self._link.stream.write(frame)
            ended = frame[0] != wire.COPY_DATA
        if not ended and not self._over:
            reason = b"the recording has no more data\0"
            await self._link.stream.write(wire.message(wire.COPY_FAIL, reason))


def _no_rows(number: int, result: object, columns: int, before: object) -> RowSet:
    return RowSet(b"", columns)
