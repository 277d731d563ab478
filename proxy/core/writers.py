"""The two ends of a session: the only way to its target's stream, and the only way to its user's.

They are the waist's other half: what they take can only come out of Session.decide and Session.reveal, and they write
nothing whose record is not where the target's recording mode wants it.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from proxy.core.events import Event, Frame
from proxy.core.session import Input, Part, Permit, Session
from recorder.tape import GATE, USER, Kind

# Messages that wait for an end that does not take them: more than anybody asks for before it reads an answer; ours.
QUEUE_LIMIT: Final = 4096


class Writable(Protocol):
    """The end of a writer: a Stream, or a protocol's own that takes whole messages."""

    async def write(self, data: bytes) -> None: ...


class TargetWriter:
    """The only way to a target's stream. Takes permits, their parts, and frames: bytes are a type error.

    send() queues; flush() commits the tape, then writes. Nothing is written whose record is not where the
    target's recording mode wants it. A permit without bytes (of an answer, not of a message) is on the tape, and not
    written. Several tasks of a session may flush (streams are decided apart): what was queued
    first is written first.
    """

    def __init__(self, stream: Writable, session: Session) -> None:
        self._stream = stream
        self._session = session
        self._queue: list[bytes] = []
        self._gating = False
        self._turn = asyncio.Lock()

    @property
    def waiting(self) -> bool:
        """Whether something is queued."""
        return bool(self._queue)

    @property
    def crowded(self) -> bool:
        """Whether too much is: whoever causes it (a peer that asks and does not read the answers) has to wait."""
        return len(self._queue) > QUEUE_LIMIT

    def send(self, cargo: Permit | Part | Input | Frame) -> None:
        """Queue the bytes of a permit of this session (once), of its part or its stream, or of a frame."""
        match cargo:
            case Permit():
                if cargo._session is not self._session or cargo.spent:
                    raise TypeError("a permit of another session, or a spent one")
                cargo.spent = True
                self._gating = True
                self._queue.append(cargo.command.wire)
            case Part():
                if cargo.permit._session is not self._session or not cargo.permit.spent:
                    raise TypeError("a part of another session, or ahead of its permit")
                self._session.tape.append(USER, Kind.WIRE, cargo.wire)
                self._queue.append(cargo.wire)
            case Input():
                if cargo.permit._session is not self._session or not cargo.permit.spent:
                    raise TypeError("input of another session, or ahead of its permit")
                if cargo.data:  # none: the gate's own words to the target (a head that bears the credential)
                    self._session.tape.append(USER, Kind.WIRE, cargo.data, flow=cargo.flow)
                self._queue.append(cargo.wire)
            case Frame():
                if cargo.taped:
                    self._session.tape.append(GATE if cargo.by_gate else USER, Kind.WIRE, cargo.wire)
                self._queue.append(cargo.wire)
            case _:
                raise TypeError("only a Permit, its Part or Input, or a Frame goes to a target")

    async def flush(self) -> None:
        """Commit the tape, then write what is queued. Raises TapeError (nothing was written), TargetPeerError."""
        if not self._queue:
            return
        async with self._turn:
            if not self._queue:
                return
            data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
            self._queue.clear()
            if self._gating:
                self._gating = False
                await self._session.tape.commit()
            else:
                await self._session.tape.written()
            if data:
                await self._stream.write(data)


class UserWriter:
    """The only way to a user's stream once a session is open: masks, tapes, then writes.

    Both directions of a session flush (a hold is told while an answer comes); a long write waits in its middle, in
    TLS between two records, and the next one must wait for its end.
    """

    def __init__(self, stream: Writable, session: Session, apart_bytes: int = 0) -> None:
        """apart_bytes: of less than that, each piece is written by itself, so that none shares a TLS record.

        There are clients (the Python one of Kubernetes) that wait for their socket, and do not see what TLS has read.
        """
        self._stream = stream
        self._session = session
        self._queue: list[bytes] = []
        self._turn = asyncio.Lock()
        self._apart_bytes = apart_bytes

    @property
    def waiting(self) -> bool:
        """Whether something is queued."""
        return bool(self._queue)

    @property
    def crowded(self) -> bool:
        """Whether too much is: whoever causes it (a peer that asks and does not read the answers) has to wait."""
        return len(self._queue) > QUEUE_LIMIT

    def send(self, permit: Permit | None, event: Event) -> bytes:
        """Reveal the event and queue its bytes; returns them (the user's own view) for decoding Results."""
        data = self._session.reveal(permit, event)
        if data:
            self._queue.append(data)
        return data

    async def flush(self) -> None:
        """Wait until the tape has what is queued, then write it. Raises TapeError, UserPeerError."""
        if not self._queue:
            return
        async with self._turn:
            if not self._queue:
                return
            pieces = tuple(self._queue)
            self._queue.clear()
            if len(pieces) > 1 and sum(map(len, pieces)) >= self._apart_bytes:
                pieces = (b"".join(pieces),)
            await self._session.written()
            for piece in pieces:
                await self._stream.write(piece)
