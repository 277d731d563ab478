"""Cancel keys: which session a CancelRequest means.

The user gets the target's real pid (LISTEN and pg_terminate_backend go by it) with a secret of our own. A key is
looked up in constant time; a wrong one is answered like a right one, by closing the connection. With 32 bits of
secret (protocol 3.0) guessing is possible in principle, so wrong keys are counted per source and a source with
too many is not listened to for a while.

Where the gateway has several worker processes, a CancelRequest may reach another one than its session's: a key that
is unknown here is asked of all others before it counts as wrong. All of a secret is random, none of it names a
worker: 32 bits are few enough. So two sessions of different workers, on backends with the same pid (of different
targets), have the same key with a probability of 2^-32; inside a worker it cannot happen. Wrong keys are counted by
each worker for itself: with N of them a source has N times the guesses, and each guess needs the right pid, too.

Source: PostgreSQL 18 docs 54.2.8; postgres note 7.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from proxy.core.peers import peers_of

WRONG_KEYS_LIMIT: Final = 20  # a source; psql's Ctrl-C after a reconnect is the honest way to one
SOURCES_LIMIT: Final = 10_000
FORGIVEN_SECONDS: Final = 60.0
SECRET_BYTES: Final = 4  # protocol 3.0
LONG_SECRET_BYTES: Final = 32  # protocol 3.2: as many as PostgreSQL itself uses

TOPIC: Final = "postgres.cancel"
_PID: Final = struct.Struct("!i")  # then the secret: the body of a CancelRequest without its code

Cancel = Callable[[], Awaitable[None]]
Elsewhere = Callable[[int, bytes], Awaitable[bool]]


class CancelKeys:
    """The keys of all sessions of this process; elsewhere cancels by those of the gateway's other processes."""

    def __init__(self, clock: Callable[[], float], elsewhere: Elsewhere | None = None) -> None:
        self._clock = clock
        self._elsewhere = elsewhere
        self._sessions: dict[int, dict[bytes, Cancel]] = {}
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def add(self, pid: int, cancel: Cancel, size: int = SECRET_BYTES) -> bytes:
        """Make a secret of size bytes for a session whose target's backend has this pid."""
        keys = self._sessions.setdefault(pid, {})
        while True:
            secret = secrets.token_bytes(size)
            if secret not in keys:
                keys[secret] = cancel
                return secret

    def remove(self, pid: int, secret: bytes) -> None:
        """Forget a session's key."""
        keys = self._sessions.get(pid, {})
        keys.pop(secret, None)
        if not keys:
            self._sessions.pop(pid, None)

    async def cancel(self, pid: int, secret: bytes, source: str) -> bool:
        """Cancel what the session of this key runs; False for an unknown key or a source that guesses."""
        host = source.rpartition(":")[0] or source
        count, since = self._wrong.get(host, (0, 0.0))
        now = self._clock()
        if now - since > FORGIVEN_SECONDS:
            count = 0
        if count >= WRONG_KEYS_LIMIT:
            return False
        if await self.cancel_here(pid, secret):
            return True
        # Counted before others are asked: a burst of guesses must not be faster than the answers.
        self._wrong[host] = (count + 1, now)
        self._wrong.move_to_end(host)
        if len(self._wrong) > SOURCES_LIMIT:
            self._wrong.popitem(last=False)
        if self._elsewhere is None or not await self._elsewhere(pid, secret):
            return False
        if host in self._wrong:
            count, since = self._wrong[host]
            self._wrong[host] = (max(0, count - 1), since)
        return True

    async def cancel_here(self, pid: int, secret: bytes) -> bool:
        """Cancel what the session of this key runs, if it is one of this process; nothing is counted."""
        found: Cancel | None = None
        for known, cancel in self._sessions.get(pid, {}).items():
            if hmac.compare_digest(known, secret):
                found = cancel
        if found is None:
            return False
        await found()
        return True


def cancel_keys(shared: MutableMapping[str, Any], clock: Callable[[], float]) -> CancelKeys:
    """The keys that Gate.shared holds, joined to those of the gateway's other processes; made where there are none."""
    keys: CancelKeys | None = shared.get("postgres.cancels")
    if keys is None:
        peers = peers_of(shared)

        async def elsewhere(pid: int, secret: bytes) -> bool:
            return await peers.ask(TOPIC, _PID.pack(pid) + secret)

        made = CancelKeys(clock, elsewhere)

        async def asked(payload: bytes) -> bool:
            return await made.cancel_here(_PID.unpack_from(payload)[0], payload[_PID.size :])

        peers.answer(TOPIC, asked)
        keys = shared["postgres.cancels"] = made
    return keys
