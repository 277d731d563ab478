"""The index of sessions in a running gateway: once a minute a child process reads what is new.

A process of its own with the lowest priority, because reading and indexing is work for the interpreter that no
session should wait for; it may be killed at any moment, and a gateway works as well without it. One for each gateway
(the supervisor's, where there are workers); that never two are at work is the index's own lock. The child gets no
secrets: its environment is three variables, its arguments a directory. ``python -m proxy.sessions.upkeep DIRECTORY``
is the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from recorder.index import Index, IndexUnavailable
from recorder.index_vault import VaultView

ROUND_SECONDS: Final = 60.0  # ours: list and search read what is newer themselves
NICENESS: Final = 19  # setpriority(2): the last in line
ANSWER_LIMIT: Final = 64 * 1024  # bytes of what the child says; it says one line
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LANG")

log = structlog.get_logger(__name__)


class IndexUpkeep:
    """See the module. sleep and command are for tests."""

    def __init__(
        self,
        tapes: Path,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        command: Sequence[str] = (sys.executable, "-m", "proxy.sessions.upkeep"),
    ) -> None:
        self._tapes = tapes
        self._sleep = sleep
        self._command = command
        self._problem = ""

    async def run(self) -> None:
        """Work for ever; ends when it is cancelled, and the child with it."""
        while True:
            await self._sleep(ROUND_SECONDS)
            problem = await self.round()
            if problem and problem != self._problem:  # said once, not every minute
                log.warning("index-not-updated", problem=problem)
            self._problem = problem

    async def round(self) -> str:
        """Let a child update the index once; return what was wrong, or ''."""
        if not self._tapes.is_dir():
            return ""
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                str(self._tapes),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                limit=ANSWER_LIMIT,
            )
        except OSError as error:
            return f"the process does not start: {error.strerror}"
        assert child.stdout is not None
        try:
            answer = await child.stdout.read(ANSWER_LIMIT)
            code = await child.wait()
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await asyncio.shield(child.wait())
        return _problem(answer, code)


def _problem(answer: bytes, code: int) -> str:
    try:
        said = json.loads(answer)
        problem, repaired = str(said["problem"]), str(said["repaired"])
    except (ValueError, TypeError, KeyError):
        return f"the process ended with {code}"
    if repaired:
        log.warning("index-repaired", problem=repaired, kept="index.db.damaged")
    return problem


def main(arguments: Sequence[str]) -> int:
    """The child: update once, say in one line of JSON how it went."""
    os.nice(NICENESS)
    tapes = Path(arguments[0])
    problem = repaired = ""
    try:
        with VaultView(tapes) as vault:
            repaired = Index.update(tapes, elsewhere=vault).repaired
    except IndexUnavailable as error:
        problem = str(error)
    print(json.dumps({"problem": problem, "repaired": repaired}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
