"""Work of a protocol that outlives the connection that began it: a session that several HTTP requests share.

A resident is a task that is listed, ended by an administrator, drained and cleaned up like a connection, and what tapes
it opens are its own. It looks at ``stopping``: once that is set, it ends as soon as nobody needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from proxy.core.parties import Identity

Work = Callable[[], Coroutine[Any, Any, None]]


class Residents(Protocol):
    """Where such work runs."""

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the gateway stops: what waits for a next request ends now."""

    def start(self, protocol: str, listener: str, identity: Identity, work: Work) -> asyncio.Task[None]:
        """Run work() as a task of the process, on behalf of identity; cancelling it ends it."""


class Nowhere:
    """The Residents of a gate that has none: tests of protocols without them."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()

    def start(self, protocol: str, listener: str, identity: Identity, work: Work) -> asyncio.Task[None]:
        raise RuntimeError("nothing can outlive a connection here")
