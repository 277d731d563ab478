"""The tape of a re-execution: what an operator ran on a sandbox is recorded as well, by whom and after which recording.

Every message goes on the tape, with a COMMAND and the VERDICT "allow" of the rule "reexecution", before it leaves; then
how it ended: tag, counts, SQLSTATE. Not on it: what came back (no mask was asked, and a sandbox may hold a copy of
production's data), and COPY data (the recording has it). Nobody decides: it is the operator's own tool, used where
the state directory is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgpack

from protocols.postgres.outcomes import Outcome
from protocols.postgres.recorded import Recorded
from proxy.core.parties import Target
from recorder.cipher import Recipient
from recorder.tape import GATE, USER, Kind, Recorder, Tape, TapeError

RULE: Final = "reexecution"


class Trail:
    """A tape that is being written once open() was called; every method raises TapeError.

    recipients: whose keys it is encrypted to. secret: the recording is encrypted; where this tape is not, it names the
    commands without their text.
    """

    def __init__(
        self, target: Target, sid: str, operator: str, recipients: Sequence[Recipient] = (), secret: bool = False
    ) -> None:
        self._target = target
        self._of = sid
        self._operator = operator
        self._recipients = recipients
        self._hidden = secret and not recipients
        self._opened: Tape | None = None
        self._command: int | None = None

    def open(self, recorder: Recorder) -> None:
        """Begin the tape."""
        target = self._target
        self._opened = recorder.open(
            protocol=target.protocol,
            identity={"subject": self._operator, "agents": [], "groups": [], "issuer": "", "proof": ""},
            target=target.name,
            mode=target.recording,
            more={
                "database": target.database,
                "application_name": "gatecast replay --against",
                "reexecution_of": self._of,
            },
            recipients=self._recipients,
        )
        self._append(GATE, Kind.MARK, {"label": "reexecution", "text": f"reexecution of {self._of}"})

    @property
    def _tape(self) -> Tape:
        if self._opened is None:
            raise TapeError("the tape of the re-execution is not open")
        return self._opened

    @property
    def sid(self) -> str:
        """The id of this tape."""
        return self._tape.sid

    async def sending(self, command: Recorded | None, message: bytes) -> None:
        """Record a message; a command durably, as the target wants it, before it is sent."""
        self._command = None
        if not self._hidden:
            self._tape.append(USER if command is not None else GATE, Kind.WIRE, message)
        if command is not None:
            text = "(of an encrypted recording)" if self._hidden else command.text
            said = {"verb": command.verb, "kind": command.kind, "text": text}
            self._command = self._append(USER, Kind.COMMAND, said)
            self._append(GATE, Kind.VERDICT, {"command": self._command, "verdict": "allow", "rule": RULE})
            await self._tape.commit()

    async def came(self, outcome: Outcome) -> None:
        """Record how it ended."""
        for result in outcome.results if self._command is not None else ():
            said: dict[str, object] = {"command": self._command, "tag": result.tag or ""}
            said["count"] = result.rows.count if result.rows is not None else 0
            said["bytes"] = result.rows.size_bytes if result.rows is not None else 0
            if result.error is not None:
                said["error"] = {"severity": result.error["severity"], "code": result.code, "message": ""}
            self._append(GATE, Kind.RESULT, said)

    async def close(self, failed: str = "") -> None:
        """Seal the tape."""
        await self._tape.close("failed" if failed else "closed", failed)

    def _append(self, channel: int, kind: Kind, said: object) -> int:
        return self._tape.append(channel, kind, msgpack.packb(said, use_bin_type=True, unicode_errors="replace"))
