"""What the vault's own file tells the index: whether a session whose files are gone is in the bucket, and what went.

vault.db is opened read-only for the moment of one update; where there is none, nothing is elsewhere. Its tables are
those of vault_state.py.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from recorder.vault_state import BUSY_SECONDS, STATE_NAME, State

_THERE: Final = (State.UPLOADED, State.LOCAL_PURGED)


class VaultView:
    """An Elsewhere (index_update.py) on the vault of a tapes directory. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._connection: sqlite3.Connection | None = None
        path = directory / STATE_NAME
        if path.exists():
            with suppress(sqlite3.Error):  # then nothing is known to be elsewhere, and a later update looks again
                uri = f"{path.absolute().as_uri()}?mode=ro"
                self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)

    def __enter__(self) -> VaultView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def has(self, sid: str) -> bool:
        """Whether segments of the session's main track are in the bucket. Raises OSError."""
        if self._connection is None:
            return False
        query = "SELECT 1 FROM items WHERE sid = ? AND track = 'main' AND kind = 'segment' AND state IN (?, ?) LIMIT 1"
        return bool(self._rows(query, sid, *_THERE))

    def removals(self) -> int:
        """How many sessions two people have removed; it only grows. Raises OSError."""
        if self._connection is None:
            return 0
        query = "SELECT count(*) FROM removals WHERE what = 'all' AND tombstoned"
        return int(self._rows(query)[0][0])

    def removed(self) -> Iterator[str]:
        """Their ids. Raises OSError."""
        if self._connection is not None:
            query = "SELECT sid FROM removals WHERE what = 'all' AND tombstoned"
            yield from (str(row[0]) for row in self._rows(query))

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """An OSError, so that nobody takes the vault's trouble for the index's."""
        assert self._connection is not None
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise OSError(errno.EIO, f"{STATE_NAME} cannot be read") from error
