"""Tells what a COMMAND of a session is: a whole command, or one of the three steps in which PostgreSQL takes one.

A command of the extended protocol is on the tape up to three times, as it is prepared, bound and run, for each of
them is decided on. The first byte of the message before it tells which. Pure.

Source: PostgreSQL docs 55.7 (Parse "P", Bind "B", Execute "E").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from recorder.format import PAYLOAD_LIMIT, USER, Record

Phase = Literal["prepare", "bind", "execute", "run"]
_PHASES: Final[Mapping[int, Phase]] = {ord("P"): "prepare", ord("B"): "bind", ord("E"): "execute"}


class Phases:
    """Is shown every WIRE record, and asked at every COMMAND."""

    def __init__(self, protocol: str) -> None:
        self._postgres = protocol == "postgres"
        self._message = 0  # the first byte of the user's message before this record
        self._continued = -1  # the number of the record that would continue that message

    def wire(self, record: Record) -> None:
        """Remember how the user's message begins; a message over the limit goes on in the next record."""
        if record.channel != USER or not record.payload:
            return
        if record.n != self._continued:
            self._message = record.payload[0]
        self._continued = record.n + 1 if len(record.payload) == PAYLOAD_LIMIT else -1

    def command(self) -> tuple[Phase, bool]:
        """What the COMMAND behind those records is, and whether the user sent it as a message of its own."""
        message, self._message = self._message, 0
        return _PHASES.get(message, "run") if self._postgres else "run", message != 0
