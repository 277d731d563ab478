"""Rows of the table jobs, and the gate's Jobs service over them (proxy.core.jobs).

Every process of a gateway has its own JobStore on the same file. A look-up reads the row in one short transaction;
settled ones are kept in memory for CACHE_SECONDS, unsettled ones never, so a poll in one worker sees what another
has just settled. settle() is a compare-and-set in the database: what two processes end at once ends once.

A restart: start() (before serving, by the process that holds the state directory) and abandon() (when a worker died)
take what dead processes left. What had no permit yet is forgotten, as it cannot have left. What was decided meanwhile
is read from the table approvals; what still waits keeps its request and its deadline, and adopt() gives it to one
process, which asks again. A withdrawn approval does not end a job: only its owner's cancel does, which is settle(..,
"stopped"), made before the approval is withdrawn.

Fails closed: a row that cannot be read is a StoreError, never an entry without masks.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import structlog

from proxy.core.jobs import (
    ENDED,
    ENDED_SECONDS,
    LIFE_SECONDS,
    NEXT,
    UNSETTLED,
    Entry,
    Key,
    Owner,
    State,
)
from proxy.store import job_rows as rows
from proxy.store.database import Database, StoreError
from proxy.store.job_rows import LIST_LIMIT, Names

CACHE_ENTRIES_LIMIT: Final = 10_000
CACHE_BYTES_LIMIT: Final = 32 * 1024 * 1024  # of rows in a process; a wide table's schema has 100 KB
CACHE_SECONDS: Final = 5.0  # how long another process's change of a settled entry (a schema, more masks) may go unseen
# Of one owner, over all targets: a busy pipeline makes some thousand jobs a day. The oldest settled ones go first. Ours
OWNER_LIMIT: Final = 100_000
PRUNE_SECONDS: Final = 600.0
PRUNE_WRITES: Final = 1000  # or after so many new ids
WAIT_LIMIT_SECONDS: Final = 600.0
LOOK_SECONDS: Final = 0.5  # between two looks at what another process may have settled; as identity/service.py
ADD_LIMIT: Final = 1000  # ids that one answer may name: children of a script


log = structlog.get_logger(__name__)


class JobStore:
    """The gate's Jobs (proxy.core.jobs) on a database."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        owner_limit: int = OWNER_LIMIT,
    ) -> None:
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._owner_limit = owner_limit
        self._process = secrets.token_hex(8)
        self._cache: OrderedDict[Names, tuple[Entry, float, int]] = OrderedDict()
        self._cached_bytes = 0
        self._wakes: dict[Names, set[asyncio.Event]] = {}
        self._pruned_at = monotonic()
        self._added = 0

    @property
    def process(self) -> str:
        """How the rows name this process."""
        return self._process

    # -- before serving, and when a process has died --------------------------------------------------

    async def start(self) -> int:
        """Take what earlier processes left unsettled; returns how many. Call once before serving. Raises StoreError.

        In a gateway of several processes the one that holds the state directory calls it, before workers start.
        """
        left = await self._database.run(rows.orphan(None, self._process, self._clock()))
        await self.prune()
        if left:
            log.info("jobs-of-earlier-process", count=left)
        return left

    async def abandon(self, process: str) -> int:
        """Take what another process of this gateway left when it died. Raises StoreError."""
        left = await self._database.run(rows.orphan(process, self._process, self._clock()))
        if left:
            log.warning("jobs-of-dead-process", count=left)
        return left

    async def adopt(self, limit: int) -> list[Entry]:
        """See Jobs. The caller asks again (held), or sends what its digest still fits (approved)."""
        return await self._database.run(rows.adopt(self._process, self._clock(), limit))

    async def prune(self) -> int:
        """Forget what is over, and the oldest of owners who have too many; returns how many."""
        self._pruned_at, self._added = self._monotonic(), 0
        return await self._database.run(rows.prune(self._clock(), self._owner_limit), durable=False)

    # -- the protocol's side ---------------------------------------------------------------------------

    async def claim(self, entry: Entry) -> Entry | None:
        """See Jobs. Not yet flushed: what a power cut takes is nobody's."""
        now = self._clock()
        new = replace(
            entry,
            state="claimed",
            created=now,
            changed=now,
            expires=now + LIFE_SECONDS[entry.key.kind],
            process=self._process,
            mark=entry.mark or secrets.token_hex(16),
        )
        rows.check(new)
        await self._make_room()
        return await self._database.run(rows.claim(new), durable=False)

    async def add(self, entries: Iterable[Entry]) -> None:
        """See Jobs. Their state is "open". Not yet flushed: what a power cut takes is nobody's."""
        now = self._clock()
        new = [
            replace(one, state="open", created=now, changed=now, expires=now + LIFE_SECONDS[one.key.kind])
            for one in entries
        ]
        if len(new) > ADD_LIMIT:
            raise StoreError(f"more than {ADD_LIMIT} ids in one answer")
        for one in new:
            rows.check(one)
        if new:
            await self._make_room(len(new))
            await self._database.run(rows.add(new), durable=False)
            for one in new:
                self._drop(rows.names_of(one.key, one.owner))

    async def find(self, key: Key, owner: Owner) -> Entry | None:
        """See Jobs. Whose an id is tells no clock: another's is looked up as an unknown one, in the same statement."""
        if not key.sane:
            return None
        names = rows.names_of(key, owner)
        cached = self._cache.get(names)
        if cached is not None and self._monotonic() < cached[1]:
            self._cache.move_to_end(names)
            entry: Entry | None = cached[0]
        else:
            self._drop(names)
            entry, size_bytes = await self._database.run(rows.find(names), durable=False)
            if entry is not None and entry.state not in UNSETTLED:
                self._keep(names, entry, size_bytes)
        if entry is None or self._clock() >= entry.expires or not rows.same_place(key.location, entry.key.location):
            return None
        return entry

    async def settle(self, key: Key, owner: Owner, state: State, **changes: Any) -> Entry | None:
        """See Jobs. changes: fields of Entry. The request of what the target has is dropped: it is on the tape.

        "sent" and "open" are not flushed: after a power cut the job counts as not sent, so what the target has of it is
        nobody's, or an approved one is sent again under its id and found by its mark.
        """
        if state in ("held", "sent") and not {"rule", "masks"} <= set(changes):
            raise ValueError(f"a job is not {state} without rule and masks")
        now = self._clock()
        was = [old for old, after in NEXT.items() if state in after]
        if state in ("open", "failed"):
            changes = {"request": b"", **changes}
        if state not in UNSETTLED:
            changes = {"process": "", **changes}
        expires = now + ENDED_SECONDS if state in ENDED else None
        return await self._change(key, owner, state, was, expires, changes, durable=state not in ("sent", "open"))

    async def amend(self, key: Key, owner: Owner, **changes: Any) -> Entry | None:
        """See Jobs."""
        return await self._change(key, owner, None, list(NEXT), None, changes)

    async def _change(
        self,
        key: Key,
        owner: Owner,
        state: State | None,
        was: list[State],
        expires: float | None,
        changes: Mapping[str, Any],
        durable: bool = True,
    ) -> Entry | None:
        columns = {name: rows.written(name, value) for name, value in changes.items()}
        if not key.sane:
            return None
        names = rows.names_of(key, owner)
        entry = await self._database.run(
            rows.update(names, state, was, expires, columns, self._clock()), durable=durable
        )
        self._drop(names)
        for wake in self._wakes.get(names, ()):
            wake.set()
        return entry

    async def forget(self, key: Key, owner: Owner) -> None:
        """See Jobs."""
        names = rows.names_of(key, owner)
        if key.sane:
            await self._database.run(rows.delete(names))
        self._drop(names)
        for wake in self._wakes.get(names, ()):
            wake.set()

    async def wait(self, key: Key, owner: Owner, seconds: float) -> Entry | None:
        """See Jobs. What this process settles is seen at once, what another does within LOOK_SECONDS."""
        clock = asyncio.get_running_loop().time
        end = clock() + min(max(seconds, 0.0), WAIT_LIMIT_SECONDS)
        names, wake = rows.names_of(key, owner), asyncio.Event()
        wakes = self._wakes.setdefault(names, set())
        wakes.add(wake)
        try:
            while True:
                wake.clear()
                entry = await self.find(key, owner)
                left = end - clock()
                if entry is None or entry.state not in UNSETTLED or left <= 0:
                    return entry
                try:
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await wake.wait()
                except TimeoutError:
                    pass
        finally:
            wakes.discard(wake)
            if not wakes and self._wakes.get(names) is wakes:
                del self._wakes[names]

    async def owned(self, owner: Owner, target: str, project: str, ids: Collection[str]) -> dict[str, str]:
        """See Jobs."""
        asked = [name for name in ids if Key(target, "job", project, name).sane]
        if len(asked) > LIST_LIMIT:
            raise StoreError(f"more than {LIST_LIMIT} jobs in one list")
        return await self._database.run(rows.owned(owner, target, project, asked, self._clock()), durable=False)

    async def waiting(self, owner: Owner, target: str, project: str) -> list[Entry]:
        """See Jobs."""
        return await self._database.run(rows.waiting(owner, target, project, self._clock()), durable=False)

    # -- inside ----------------------------------------------------------------------------------------

    async def _make_room(self, new: int = 1) -> None:
        self._added += new
        if self._added >= PRUNE_WRITES or self._monotonic() - self._pruned_at >= PRUNE_SECONDS:
            await self.prune()

    def _keep(self, names: Names, entry: Entry, size_bytes: int) -> None:
        self._drop(names)  # two look-ups of one id may have been under way
        self._cache[names] = (entry, self._monotonic() + CACHE_SECONDS, size_bytes)
        self._cached_bytes += size_bytes
        while len(self._cache) > CACHE_ENTRIES_LIMIT or self._cached_bytes > CACHE_BYTES_LIMIT:
            self._cached_bytes -= self._cache.popitem(last=False)[1][2]

    def _drop(self, names: Names) -> None:
        cached = self._cache.pop(names, None)
        if cached is not None:
            self._cached_bytes -= cached[2]
