"""INTERFACE STUB (replaced by the recorder's author): the writer of one tape, and the Recorder that opens tapes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final, Literal

GATE: Final = 0  # channels
USER: Final = 1
OUT: Final = 2
ERR: Final = 3


class Kind(IntEnum):
    """What a record holds; WIRE's payload is raw bytes, every other kind's is msgpack."""

    WIRE = 1
    COMMAND = 2
    VERDICT = 3
    APPROVAL = 4
    RESULT = 5
    INTENT = 6
    RESIZE = 7
    MARK = 8
    MASKMAP = 9
    CLOSE = 10


class Tape:
    """The tape of one session. After a TapeError every further call raises TapeError."""

    sid: str

    def append(self, channel: int, kind: Kind, payload: bytes) -> int:
        """Queue one record; returns its number. Raises TapeError."""
        raise NotImplementedError

    async def written(self) -> None:
        """Return when the kernel has all that was appended so far. Raises TapeError."""
        raise NotImplementedError

    async def commit(self) -> None:
        """Return when all that was appended so far is durable (mode durable) or with the kernel (mode written)."""
        raise NotImplementedError

    async def close(self, status: Literal["closed", "failed"], reason: str = "") -> None:
        """Append CLOSE, index and seal; commit. Safe to call twice."""
        raise NotImplementedError


class Recorder:
    """Opens tapes."""

    def open(
        self,
        *,
        protocol: str,
        identity: Mapping[str, Any],
        target: str,
        mode: Literal["durable", "written"],
        run: str = "",
        policy_revision: str = "",
        more: Mapping[str, Any] | None = None,
    ) -> Tape:
        """Create a tape exclusively and write its header. Raises TapeError."""
        raise NotImplementedError
