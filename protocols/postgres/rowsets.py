"""The rows of one result as a multiset, in memory that does not grow with them.

Each row (a DataRow or a CopyData message, byte for byte) gives a keyed hash of 16 bytes. Their sum modulo 2**128 is
the same in whatever order the rows come, and another one if any row, or how often it is there, is another: the key is
drawn for each run, so that nobody can prepare rows whose sums agree. Beside the sum goes a hash of the order, over
whole rows or over the columns of an ORDER BY. The first rows are kept as they are, to say which ones differ.

Columns that do not count (masked, volatile, identifiers of the database) are NULL before anything is computed or kept.

Left out: what the cells mean; results in different formats (the caller asks both sides for the same one).
Source: Clarke et al., Incremental Multiset Hash Functions (ASIACRYPT 2003), MSet-Add-Hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from protocols.postgres import wire
from protocols.postgres.copy import CopyMask
from protocols.postgres.rows import rewrite_rows
from proxy.core.errors import TargetPeerError
from proxy.core.events import NULL_CELL, CellMask
from proxy.core.statement import Copy

# Kept of one result to tell which rows differ; ours: both sides' together stay well below 100 MB.
KEPT_ROWS_LIMIT: Final = 20_000
KEPT_BYTES_LIMIT: Final = 16 * 1024 * 1024

_HASH_BYTES: Final = 16
_MODULUS: Final = 1 << (8 * _HASH_BYTES)
_COPY_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\x00"
_COPY_HEADER_BYTES: Final = 19


class Room:
    """What may still be kept; shared by all results of a command, which may have thousands."""

    __slots__ = ("rows", "size_bytes")

    def __init__(self) -> None:
        self.rows = KEPT_ROWS_LIMIT
        self.size_bytes = KEPT_BYTES_LIMIT


class RowSet:
    """What is known of a result's rows. wild: columns that do not count. order: None where it does not matter,
    () = of whole rows, else the columns whose sequence counts."""

    def __init__(
        self,
        key: bytes,
        columns: int,
        wild: frozenset[int] = frozenset(),
        order: tuple[int, ...] | None = None,
        room: Room | None = None,
    ) -> None:
        """room: how much may be kept; None: nothing."""
        self.columns = columns
        self.wild = frozenset(index for index in wild if index < columns)
        self.order = order
        self.count = 0
        self.size_bytes = 0
        self.kept: list[bytes] = []
        self._room = room
        self._key = key
        self._sum = 0
        self._sequence = blake2b(key=key, digest_size=_HASH_BYTES)
        self._blanks = _blanks(columns, self.wild) if self.wild else None
        self._others = _blanks(columns, frozenset(range(columns)) - set(order)) if order else None

    @property
    def digest(self) -> tuple[int, int]:
        """Equal for equal multisets of rows."""
        return self.count, self._sum

    @property
    def sequence(self) -> bytes:
        """Equal for equal orders."""
        return self._sequence.digest()

    @property
    def whole(self) -> bool:
        """Whether all rows were kept."""
        return len(self.kept) == self.count

    def add(self, rows: bytes) -> None:
        """Take whole DataRow messages. Raises TargetPeerError where they have another number of columns."""
        self.size_bytes += len(rows)
        if self._blanks is not None:
            rows = rewrite_rows(rows, self._blanks)
        self._walk(rows, None if self._others is None else rewrite_rows(rows, self._others))

    def _walk(self, rows: bytes, keys: bytes | None) -> None:
        at = place = 0
        key, total, sequence = self._key, 0, self._sequence
        head = wire.HEADER.unpack_from
        while at < len(rows):
            end = at + 1 + head(rows, at)[1]
            row = rows[at:end]
            mark = blake2b(row, key=key, digest_size=_HASH_BYTES).digest()
            total += int.from_bytes(mark, "big")
            if keys is not None:
                after = place + 1 + head(keys, place)[1]
                sequence.update(keys[place:after])
                place = after
            elif self.order is not None:
                sequence.update(mark)
            self.count += 1
            if self._room is not None:
                self._keep(row, self._room)
            at = end
        self._sum = (self._sum + total) % _MODULUS

    def _keep(self, row: bytes, room: Room) -> None:
        if room.rows < 1 or room.size_bytes < len(row):
            self._room = None  # the first rows, without a hole
            return
        room.rows -= 1
        room.size_bytes -= len(row)
        self.kept.append(row)


class CopySet(RowSet):
    """The same of COPY TO STDOUT: the server sends a row in each CopyData message."""

    def __init__(
        self,
        key: bytes,
        columns: int,
        copy: Copy | None,
        encoding: str,
        wild: frozenset[int] = frozenset(),
        order: tuple[int, ...] | None = None,
        room: Room | None = None,
    ) -> None:
        """Raises TargetPeerError if columns must be left out of a format in which they cannot be found."""
        super().__init__(key, columns, wild, () if order is not None else None, room)
        self._mask: CopyMask | None = None
        if self.wild:
            if copy is None:
                raise TargetPeerError("the columns of this COPY cannot be told apart")
            self._mask = CopyMask(copy, _blanks(columns, self.wild), columns, encoding)

    def add(self, rows: bytes) -> None:
        """Take whole CopyData messages."""
        self.size_bytes += len(rows)
        if self._mask is not None:
            rows = self._mask.feed_messages(rows)
        if not self.count and rows[5 : 5 + len(_COPY_SIGNATURE)] == _COPY_SIGNATURE:
            rows = _without_header(rows)
        self._walk(rows, None)


def _without_header(rows: bytes) -> bytes:
    """The binary format's header shares a message with whichever row comes first."""
    end = 1 + wire.HEADER.unpack_from(rows)[1]
    rest = rows[5 + _COPY_HEADER_BYTES : end]
    return (wire.message(wire.COPY_DATA, rest) if rest else b"") + rows[end:]


def _blanks(columns: int, wild: frozenset[int]) -> Sequence[CellMask | None]:
    return tuple(NULL_CELL if index in wild else None for index in range(columns))
