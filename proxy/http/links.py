"""Connections to targets that are kept between requests, and those of their own that streams get.

A target that was configured anew gets new connections; what waits of the old ones is closed. The credential is in each
request, so that callers can share a connection, but a client certificate is the connection's: it is part of the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.http.client import TargetConnection
from proxy.core.http.pool import Pool
from proxy.core.parties import Credential, Target
from proxy.core.stream import Stream

_PLACE: Final = "http/links"

Dial = Callable[[Target, Credential], Awaitable[Stream]]


@dataclass(slots=True)
class Link:
    """One connection to a target, for one request."""

    connection: TargetConnection
    target: Target
    credential: Credential
    dial: Dial

    @property
    def kept(self) -> bool:
        """Whether requests went over it before: it may have died unseen."""
        return self.connection.used > 1

    async def anew(self) -> None:
        """Take a fresh connection instead. Raises TargetPeerError."""
        await self.connection.close()
        self.connection = await connect(self.dial, self.target, self.credential)


class Links:
    """All targets' connections of a process."""

    def __init__(self) -> None:
        self._pools: dict[str, tuple[Target, Pool]] = {}

    @classmethod
    def of(cls, shared: MutableMapping[str, Any]) -> Links:
        """The one that Gate.shared holds."""
        found: Links = shared.setdefault(_PLACE, cls())
        return found

    async def _pool(self, target: Target) -> Pool:
        found = self._pools.get(target.name)
        if found is not None and found[0] == target:
            return found[1]
        pool = Pool(clock=time.monotonic)
        self._pools[target.name] = (target, pool)
        if found is not None:
            await found[1].close_all()
        return pool

    @contextlib.asynccontextmanager
    async def link(self, target: Target, credential: Credential, dial: Dial) -> AsyncIterator[Link]:
        """Lend a connection for one request. Raises TargetPeerError."""
        pool = await self._pool(target)
        # Not the bearer token: it is sent with each request.
        key = (credential.user, credential.certificate_file, credential.key_file, credential.certificate)
        link = Link(await pool.get(key, lambda: connect(dial, target, credential)), target, credential, dial)
        try:
            yield link
        except BaseException:
            if not link.connection.reusable:
                link.connection.discard()  # a target that stalls would keep whoever leaves for the seconds of close()
            raise
        finally:
            if link.connection.reusable and self._pools.get(target.name, (None, None))[1] is pool:
                pool.give_back(key, link.connection)
            else:
                await asyncio.shield(link.connection.close())


async def connect(dial: Dial, target: Target, credential: Credential) -> TargetConnection:
    """Dial. Raises TargetPeerError."""
    return TargetConnection(await dial(target, credential))
