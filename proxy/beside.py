"""What a process of the gateway does beside its connections, on behalf of the protocols (Protocol.background).

Beside runs the background of each protocol that has a listener, once users can be served: not earlier, as what it takes
over in this process's name must be known to the supervisor by then, so that nothing is lost when the process dies. One
that has returned is run again when another process has died; one that still runs looks for itself, as it must not be
cancelled between taking something over and looking after it. One that fails is tried again after a while.
It also starts a process that reads SQL ahead of the first query (proxy/bigquery_files.Warehouse), where one is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from protocols import Protocol
from proxy.bigquery_files import Warehouse
from proxy.core.gate import Gate
from proxy.logging import describe

RETRY_SECONDS: Final = 30.0  # what failed, a database that is full, is no better off for being asked each second

log = structlog.get_logger(__name__)


class Beside:
    """See the module. listeners: the protocol and gate of each, as of the last good load."""

    def __init__(self, listeners: Callable[[], Iterable[tuple[Protocol, Gate]]], retry: float = RETRY_SECONDS) -> None:
        self._listeners = listeners
        self._retry_seconds = retry
        self._begun = asyncio.Event()
        self._due = asyncio.Event()

    def begin(self) -> None:
        """Users can be served."""
        self._due.set()
        self._begun.set()

    def again(self) -> None:
        """Another process of the gateway has died, and what it left was made anybody's."""
        if self._begun.is_set():
            self._due.set()

    async def run(self, warehouse: Warehouse) -> None:
        """Run until cancelled."""
        await self._begun.wait()
        running: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            group.create_task(_warm(warehouse))
            while True:
                await self._due.wait()
                self._due.clear()
                firsts = {protocol.name: (protocol, gate) for protocol, gate in reversed(list(self._listeners()))}
                for name, (protocol, gate) in firsts.items():
                    if protocol.background is not None and (name not in running or running[name].done()):
                        running[name] = group.create_task(self._one(protocol, gate))

    async def _one(self, protocol: Protocol, gate: Gate) -> None:
        assert protocol.background is not None
        while True:
            try:
                return await protocol.background(gate)
            except Exception as error:  # fails closed: what it would have done is not done, and jobs stay held
                log.error("background-failed", protocol=protocol.name, **describe(error))
            await asyncio.sleep(self._retry_seconds)


async def _warm(warehouse: Warehouse) -> None:
    try:
        await warehouse.warm()
    except OSError as error:  # TimeoutError is one. Fails closed: until one starts, every text is opaque
        log.error("sql-reader-not-started", **describe(error))
