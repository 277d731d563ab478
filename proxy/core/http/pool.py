"""Connections to targets that wait for their next request.

A connection is handed out to one borrower at a time, the youngest first, and only if it is still quiet: open, and
nothing came that nobody asked for. Stale ones are closed when somebody comes by; there is no task of its own. How many
wait is bounded, in all and for each key, and so is how long: what the bound keeps out is closed at once.

The key says what may be shared: a target and the credential that is shown to it. Source: kubernetes note 8.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final

from proxy.core.http.client import TargetConnection

IDLE_SECONDS: Final = 60.0  # the API server's own idle time is 90 s: apiserver's secure_serving.go
KEY_LIMIT: Final = 32  # waiting connections of one key; more are made, and closed after use
POOL_LIMIT: Final = 256  # waiting connections in all: descriptors

Dial = Callable[[], Awaitable[TargetConnection]]


@dataclass(frozen=True, slots=True)
class _Waiting:
    connection: TargetConnection
    since: float


class Pool:
    """Waiting connections, by key. clock: seconds, as loop.time()."""

    def __init__(
        self,
        clock: Callable[[], float],
        idle_seconds: float = IDLE_SECONDS,
        key_limit: int = KEY_LIMIT,
        pool_limit: int = POOL_LIMIT,
    ) -> None:
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._key_limit = key_limit
        self._pool_limit = pool_limit
        self._waiting: dict[Hashable, list[_Waiting]] = {}  # of each key the oldest first; no empty lists
        self._size = 0
        self._swept = clock()
        self._closed = False

    def __len__(self) -> int:
        return self._size

    async def get(self, key: Hashable, dial: Dial) -> TargetConnection:
        """Return a connection of this key that nobody else has: one that waits, or a new one. Raises as dial does."""
        self.sweep()
        while (waiting := self._pop(key, -1)) is not None:
            if waiting.since > self._clock() - self._idle_seconds and waiting.connection.reusable:
                return waiting.connection
            waiting.connection.discard()
        return await dial()

    def give_back(self, key: Hashable, connection: TargetConnection) -> None:
        """Take a connection back; it is closed if it cannot be used again, or there are enough."""
        self.sweep()
        waiting = self._waiting.get(key, [])
        if self._closed or not connection.reusable or self._key_limit < 1 or self._pool_limit < 1:
            connection.discard()
            return
        if len(waiting) >= self._key_limit:
            self._drop(key)
        elif self._size >= self._pool_limit:
            self._drop(min(self._waiting, key=lambda one: self._waiting[one][0].since))
        self._waiting.setdefault(key, []).append(_Waiting(connection, self._clock()))
        self._size += 1

    def sweep(self) -> None:
        """Close what has waited too long, at most a few times in the idle time. get() and give_back() do so."""
        now = self._clock()
        if now - self._swept < self._idle_seconds / 4:
            return
        self._swept = now
        for key in list(self._waiting):
            while key in self._waiting and self._waiting[key][0].since <= now - self._idle_seconds:
                self._drop(key)

    async def close_all(self) -> None:
        """Close what waits, and from now on what is given back."""
        self._closed = True
        for key in list(self._waiting):
            while key in self._waiting:
                self._drop(key)

    def _drop(self, key: Hashable) -> None:
        """Close the oldest of a key."""
        waiting = self._pop(key, 0)
        if waiting is not None:
            waiting.connection.discard()

    def _pop(self, key: Hashable, place: int) -> _Waiting | None:
        waiting = self._waiting.get(key)
        if not waiting:
            return None
        found = waiting.pop(place)
        self._size -= 1
        if not waiting:
            del self._waiting[key]
        return found
