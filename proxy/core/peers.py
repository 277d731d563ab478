"""The other processes of this gateway, as a protocol may know them: questions to all, and places that are counted once.

A gateway is one process, or several worker processes on the same addresses (proxy.workers). What one of them keeps
in memory the others cannot see: a cancel key, how many sessions a target has. Peers is the way to ask; it is kept
in Gate.shared (peers_of), so that a protocol needs not know which of the two it runs in. Alone is the gateway of
one process.

Deliberately left out: shared state. Whoever holds a thing answers for it; there is nothing to keep in step.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Answer = Callable[[bytes], Awaitable[bool]]


class Peers(Protocol):
    """The other processes of this gateway."""

    async def ask(self, topic: str, payload: bytes) -> bool:
        """Ask all others; True if one says yes, False if none does in bounded time. Never raises."""

    def tell(self, topic: str, payload: bytes) -> None:
        """Let all others know, without waiting for them."""

    def answer(self, topic: str, handler: Answer) -> None:
        """Answer what others ask or tell under this topic; whoever does not answer says no."""

    def place(self, name: str, limit: int | None) -> contextlib.AbstractAsyncContextManager[bool]:
        """Hold one of limit places of that name, counted over all processes; yields False where none is free."""


class Alone:
    """There are no others."""

    def __init__(self) -> None:
        self._places: Counter[str] = Counter()

    async def ask(self, topic: str, payload: bytes) -> bool:
        """Nobody says yes."""
        return False

    def tell(self, topic: str, payload: bytes) -> None:
        """Nobody listens."""

    def answer(self, topic: str, handler: Answer) -> None:
        """Nobody asks."""

    @contextlib.asynccontextmanager
    async def place(self, name: str, limit: int | None) -> AsyncIterator[bool]:
        """See Peers."""
        if limit is not None and self._places[name] >= limit:
            yield False
            return
        self._places[name] += 1
        try:
            yield True
        finally:
            self._places[name] -= 1
            if not self._places[name]:
                del self._places[name]


def peers_of(shared: MutableMapping[str, Any]) -> Peers:
    """The peers that Gate.shared holds; Alone where nobody put any there."""
    peers: Peers = shared.setdefault("peers", Alone())
    return peers
