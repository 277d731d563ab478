"""Credentials that change while they are used: fetched on a thread, by one at a time, kept as long as they are good.

Requests ask for a credential thousands of times a second; a file, a plugin or a token endpoint is asked now and then.
What was fetched is used as it is until `soft`. From then on until `hard` it is used still, while a fetch runs beside;
if that fails, the log says so and the next one is RETRY_SECONDS later. After `hard` everybody waits for a fetch, and
hears of its failure. A caller that leaves stops no fetch that others wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.core.errors import GatecastError
from proxy.core.parties import Credential

RETRY_SECONDS: Final = 10.0  # a token endpoint that is down is no better off for being asked at each request

log = structlog.get_logger(__name__)


class Unusable(GatecastError):
    """There is no credential. The text is for the operator's log; it names no secret."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A credential; soft and hard are seconds since the epoch."""

    credential: Credential
    soft: float
    hard: float


class Renewed:
    """One target's credential. fetch() blocks, runs on a thread, and raises Unusable."""

    def __init__(self, name: str, fetch: Callable[[], Fetched], clock: Callable[[], float]) -> None:
        self._name = name
        self._fetch = fetch
        self._clock = clock
        self._kept: Fetched | None = None
        self._running: asyncio.Future[Fetched] | None = None
        self._not_before = 0.0  # of the next attempt, while what is there is good

    async def get(self) -> Credential:
        """Return a credential that is good now. Raises Unusable."""
        now, kept = self._clock(), self._kept
        if kept is not None and now < kept.soft:
            return kept.credential
        good = kept is not None and now < kept.hard
        running = self._running
        if running is None and (not good or now >= self._not_before):
            running = self._start()
        if kept is not None and good:
            return kept.credential
        assert running is not None
        return (await asyncio.shield(running)).credential

    def _start(self) -> asyncio.Future[Fetched]:
        running = asyncio.get_running_loop().run_in_executor(None, self._fetch)
        running.add_done_callback(self._done)
        self._running = running
        return running

    def _done(self, running: asyncio.Future[Fetched]) -> None:
        self._running = None
        if running.cancelled():
            return
        error = running.exception()  # which whoever waits for it is given, too
        if error is None:
            self._kept = running.result()
            return
        self._not_before = self._clock() + RETRY_SECONDS
        if self._kept is not None and self._clock() < self._kept.hard:
            why = str(error) if isinstance(error, Unusable) else type(error).__name__
            log.warning("credential-not-renewed", target=self._name, why=why)
