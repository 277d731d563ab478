"""The vault's background task: one for each gateway, from its start to its end, whatever the store does.

A round: scan the directory of tapes, upload what is finished (a few at a time), remove local copies whose term is over,
delete what two people have decided on. The queue is the directory and vault.db; nothing is kept here that a kill
could lose. A store that fails is tried again after a pause that doubles up to five minutes, with jitter, for ever; an
item that fails alone waits by itself while others go. Nothing here ever waits for a session, or makes one wait.

The log hears of an outage once, loudly, then every ten minutes with the backlog, and of its end. Before the first
upload the store must show that it does not overwrite (recorder.vault.probe); without that nothing leaves the disk.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from recorder.vault import BucketError, Vault, VaultError
from recorder.vault_expiry import Expiry
from recorder.vault_state import Item, State

ROUND_SECONDS: Final = 10.0  # between two scans; a segment of 64 MiB is no more urgent than that
PAUSE_SECONDS: Final = 1.0  # the first pause after a failure
PAUSE_LIMIT_SECONDS: Final = 300.0  # ours: an outage is over for five minutes at most before it is noticed
REMIND_SECONDS: Final = 600.0  # the witness's alarm has the same (recorder note, section 7)
BATCH_LIMIT: Final = 64  # items that are taken from the queue at once
PURGE_LIMIT: Final = 1000  # local copies that are looked up at once

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """What the configuration says, as of now."""

    concurrency: int = 2
    local_days: float = 90.0


class VaultTask:
    """See the module. sleep and jitter are for tests."""

    def __init__(
        self,
        vault: Vault,
        expiry: Expiry,
        pace: Callable[[], Pace] = Pace,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._vault = vault
        self._expiry = expiry
        self._pace = pace
        self._sleep = sleep or self._rest
        self._wake = asyncio.Event()
        self._jitter = jitter
        self._proved = False
        self._failures = 0
        self._down_since: float | None = None
        self._reminded = 0.0
        self._conflicts = 0.0

    def wake(self) -> None:
        """Begin the next round at once: a person waits for it."""
        self._wake.set()

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def run(self) -> None:
        """Work for ever; ends when it is cancelled."""
        while True:
            try:
                await self.round()
            except BucketError as error:
                await self._failed(str(error))
            except Exception as error:  # nothing has left the disk that was not checked; the next round tries again
                log.error("vault-failed", error=str(error) or type(error).__name__)
                await self._failed(str(error) or type(error).__name__, store=False)
            else:
                self._failures = 0
                await self._sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Do all that can be done now. Raises BucketError where the store fails, VaultError, OSError."""
        found = await self._vault.scan()
        for remark in found.remarks:
            log.warning("vault-scan", remark=remark)
        await self._remind_of_conflicts()
        # Whether the store can be reached or not: what has to go from here goes.
        problem: BucketError | None = None
        if self._vault.bucket is not None:
            try:
                if not self._proved:
                    await self._vault.probe()
                    self._proved = True
                await self._upload()
                await self._purge()
            except BucketError as error:
                problem = error
            else:
                await self._recovered()
        await self._expiry.work()
        if problem is not None:
            raise problem

    # -- up and off -----------------------------------------------------------------------------------

    async def _upload(self) -> None:
        """Upload all that is due. Raises the last BucketError of those that failed, once the rest has had its turn."""
        vault, state = self._vault, self._vault.state
        while batch := await vault.do(state.waiting, vault.clock(), BATCH_LIMIT):
            queue = iter(batch)
            trouble: list[BucketError] = []
            moved: list[Item] = []
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._pace().concurrency, len(batch))):
                    group.create_task(self._take(queue, trouble, moved))
            if moved:
                self._failures = 0
            if trouble:
                raise trouble[-1]

    async def _take(self, queue: Any, trouble: list[BucketError], moved: list[Item]) -> None:
        """Upload from the queue until it is empty or the store fails."""
        for item in queue:
            if trouble:
                return
            try:
                now = await self._vault.upload(item)
            except (VaultError, OSError) as error:
                if isinstance(error, BucketError):
                    trouble.append(error)
                await self._later(item, error)
                continue
            moved.append(now)
            if now.state is State.CONFLICT:
                log.error("vault-conflict", file=item.path, why=now.error, kept="the local file stays")
            else:
                log.debug("vault-uploaded", file=item.path, size_bytes=now.size)

    async def _later(self, item: Item, error: Exception) -> None:
        text = str(error) or type(error).__name__
        attempts = item.attempts + 1
        pause = self._pause(attempts)
        if not isinstance(error, BucketError):
            log.error("vault-item-failed", file=item.path, error=text, attempts=attempts)
        until = self._vault.clock() + pause
        await self._vault.do(self._vault.state.note, item.path, attempts=attempts, next_try=until, error=text)

    async def _purge(self) -> None:
        # Each step frees the next segment of a tape, and its keys at last; every one of them leaves its state.
        while batch := await self._vault.purgeable(self._pace().local_days, PURGE_LIMIT):
            for item in batch:
                now = await self._vault.purge(item)
                if now.state is State.LOCAL_PURGED:
                    log.info("vault-local-copy-removed", file=item.path)
                else:
                    why = now.error or "it is not there"
                    log.error("vault-object-wrong", file=item.path, state=str(now.state), why=why)

    # -- pauses and the log ---------------------------------------------------------------------------

    def _pause(self, failures: int) -> float:
        """Half of it is sure, half is chance: many gateways of one store come back at many times."""
        longest = min(PAUSE_LIMIT_SECONDS, PAUSE_SECONDS * 2 ** min(failures, 20))
        return float(longest / 2 + longest / 2 * self._jitter())

    async def _failed(self, error: str, store: bool = True) -> None:
        self._failures += 1
        now = self._vault.clock()
        if store and (self._down_since is None or now - self._reminded >= REMIND_SECONDS):
            backlog = (await self._vault.do(self._vault.state.summary))["backlog"]
            event = "vault-unreachable" if self._down_since is None else "vault-still-unreachable"
            since = self._down_since if self._down_since is not None else now
            log.error(event, error=error, seconds=round(now - since), files=backlog["count"], bytes=backlog["bytes"])
            self._down_since, self._reminded = since, now
        await self._sleep(self._pause(self._failures))

    async def _recovered(self) -> None:
        if self._down_since is not None:
            log.info("vault-reachable", seconds=round(self._vault.clock() - self._down_since))
            self._down_since = None

    async def _remind_of_conflicts(self) -> None:
        now = self._vault.clock()
        if now - self._conflicts >= REMIND_SECONDS:
            self._conflicts = now
            for item in await self._vault.do(self._vault.state.in_state, State.CONFLICT, 10):
                log.error("vault-conflict", file=item.path, why=item.error, kept="the local file stays")
