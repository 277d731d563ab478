"""--rollback: a whole session in one transaction that is rolled back at the end, with savepoints as its transactions.

Before each command outside of a recorded transaction a savepoint is made, so that what fails takes nothing else with
it. A recorded BEGIN makes a savepoint, COMMIT releases it (or rolls back to it, where the transaction had failed, as
COMMIT does), ROLLBACK rolls back to it. These are statements of our own: the recorded ones are not sent.

What it cannot do, and says: a text of several statements with transaction control among them; AND CHAIN, prepared
transactions; whatever the server refuses inside a transaction (VACUUM, CREATE DATABASE, CREATE INDEX CONCURRENTLY:
its own error is then the difference). Deferred constraints are not checked, now() stands still, SET outlives a rolled
back savepoint no more than the server lets it; sequences, advisory locks of the session and everything outside of the
database (dblink, files, NOTIFY is dropped) are not undone. Source: PostgreSQL 18 docs, SAVEPOINT, 54.2.2.1.
"""

from __future__ import annotations

from typing import Final

from protocols.postgres import wire
from protocols.postgres.outcomes import FAILED, Outcome, Result
from protocols.postgres.recorded import Ask
from protocols.postgres.sandbox import Sandbox
from proxy.core.errors import TargetPeerError
from proxy.core.gate import Reader

_ONE: Final = "gatecast_one"  # around a command outside of transactions
_BLOCK: Final = "gatecast_block"  # for a recorded transaction
_CONTROL: Final = ("begin", "commit", "rollback")


class Rollback:
    """The state of one run."""

    def __init__(self, sandbox: Sandbox, reader: Reader) -> None:
        self._sandbox = sandbox
        self._reader = reader
        self._in_block = False
        self._guarded = False

    async def begin(self) -> None:
        """Open the transaction. Raises TargetPeerError."""
        await self._must("BEGIN")

    async def end(self) -> None:
        """Undo everything. Raises TargetPeerError."""
        await self._must("ROLLBACK")

    def refuses(self, text: str) -> str:
        """Why a text cannot be run in here, '' if it can."""
        statements = self._reader(text)
        if any(each.control == "prepare_transaction" or each.verb.endswith(" PREPARED") for each in statements):
            return "a prepared transaction cannot be rolled back (--rollback)"
        ends = [each for each in statements if each.control in _CONTROL]
        if ends and (len(statements) > 1 or " chain" in text.lower()):
            return "transaction control among other statements cannot be held in one transaction (--rollback)"
        return ""

    def wants(self, ask: Ask) -> bool:
        """Whether a message is transaction control that is emulated."""
        if ask.command is None or ask.kind not in (wire.QUERY, wire.EXECUTE):
            return False
        statements = self._reader(ask.command.text)
        return len(statements) == 1 and statements[0].control in _CONTROL

    async def control(self, ask: Ask) -> Outcome:
        """Do what stands for it."""
        assert ask.command is not None
        control = self._reader(ask.command.text)[0].control
        failed = self._sandbox.status == FAILED
        if control == "begin":
            if not self._in_block and not failed:
                await self._release()
                await self._must(f"SAVEPOINT {_BLOCK}")
                self._in_block = True
        elif self._in_block:
            if control == "rollback" or failed:
                await self._must(f"ROLLBACK TO SAVEPOINT {_BLOCK}")
            await self._must(f"RELEASE SAVEPOINT {_BLOCK}")
            self._in_block = False
        return Outcome([Result(tag=str(control).upper())], status=self._sandbox.status)

    async def before(self, sandbox: Sandbox) -> None:
        """Guard a command that runs outside of recorded transactions."""
        if not self._in_block and not self._guarded:
            await self._must(f"SAVEPOINT {_ONE}")
            self._guarded = True

    async def after(self, sandbox: Sandbox) -> None:
        """A command, or a batch, is over: keep what it did, or undo it if it failed."""
        await self._release()

    async def _release(self) -> None:
        if self._guarded:
            self._guarded = False
            if self._sandbox.status == FAILED:
                await self._must(f"ROLLBACK TO SAVEPOINT {_ONE}")
            await self._must(f"RELEASE SAVEPOINT {_ONE}")

    async def _must(self, text: str) -> None:
        outcome = await self._sandbox.run(text)
        if outcome.code:
            raise TargetPeerError(f"{text} failed on the sandbox: SQLSTATE {outcome.code}", outcome.code)
