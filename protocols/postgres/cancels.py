"""Cancel keys: which session a CancelRequest means.

The user gets the target's real pid (LISTEN and pg_terminate_backend go by it) with a secret of our own. A key is
looked up in constant time; a wrong one is answered like a right one, by closing the connection. With 32 bits of
secret (protocol 3.0) guessing is possible in principle, so wrong keys are counted per source and a source with
too many is not listened to for a while. Source: PostgreSQL 18 docs 54.2.8; postgres note 7.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

WRONG_KEYS_LIMIT: Final = 20  # a source; psql's Ctrl-C after a reconnect is the honest way to one
SOURCES_LIMIT: Final = 10_000
FORGIVEN_SECONDS: Final = 60.0
SECRET_BYTES: Final = 4  # protocol 3.0
LONG_SECRET_BYTES: Final = 32  # protocol 3.2: as many as PostgreSQL itself uses

Cancel = Callable[[], Awaitable[None]]


class CancelKeys:
    """The keys of all sessions of this process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
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
        found: Cancel | None = None
        for known, cancel in self._sessions.get(pid, {}).items():
            if hmac.compare_digest(known, secret):
                found = cancel
        if found is None:
            self._wrong[host] = (count + 1, now)
            self._wrong.move_to_end(host)
            if len(self._wrong) > SOURCES_LIMIT:
                self._wrong.popitem(last=False)
            return False
        await found()
        return True
