"""The blocks that a sealed segment's INDEX lists, decoded piece by piece as they are asked for.

A segment of small blocks has 64 Ki of them: decoding all that is 300 ms, of which a seek needs 2. The pieces are one
INDEX block each; each entry has the seq of its block, so the first entry of each piece is all that a look-up by
position needs (format.py, "INDEX payload"). DATA and GAP come first in every segment, COMMANDS after them.

Left out: checking what the INDEX says against the blocks, which is verify.py's work. An INDEX that contradicts itself
is a FormatError.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, overload

import msgpack

from recorder.errors import FormatError
from recorder.format import RAW_LIMIT, BlockType

# Decoded pieces that are kept: a bisection ends in one, playing goes on into the next. 3,700 entries, 1 MB each.
_KEPT_LIMIT: Final = 3
_CONTENT: Final = (int(BlockType.DATA), int(BlockType.GAP))


class Place(NamedTuple):
    """Where a DATA or GAP block is."""

    offset: int
    type: int
    first_record: int
    t0_ns: int
    n_records: int


class Places(Sequence[Place]):
    """The DATA and GAP blocks of a sealed segment, in order. Looking one up may raise FormatError."""

    def __init__(self, pieces: list[bytes]) -> None:
        """pieces: the payloads of the INDEX blocks. Raises FormatError."""
        self._pieces = [piece for piece in pieces if piece]
        self._heads = [_first_entry(piece) for piece in self._pieces]
        self._starts = [head[2] for head in self._heads]
        self._decoded: OrderedDict[int, list[Any]] = OrderedDict()
        if self._starts[:1] not in ([], [0]) or self._starts != sorted(set(self._starts)):
            raise FormatError("INDEX: pieces out of order")
        self.commands: list[int] = []  # the offsets of the COMMANDS blocks
        self._count: int = self._find_end()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Place: ...
    @overload
    def __getitem__(self, at: slice) -> list[Place]: ...
    def __getitem__(self, at: int | slice) -> Place | list[Place]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(self._count))]
        if at < 0:
            at += self._count
        if not 0 <= at < self._count:
            raise IndexError(at)
        offset, kind, _, first, t0, count, _ = self._entry(at)
        return Place(offset, kind, first, t0, count)

    def span(self, column: int, value: int) -> tuple[int, int]:
        """Between which positions a bisection for a value needs to look: within one piece, where there are several."""
        at = bisect_left(self._heads, value, key=lambda head: int(head[column]))
        low = self._starts[at - 1] if at else 0
        above = bisect_right(self._heads, value, key=lambda head: int(head[column]))
        high = self._starts[above] if above < len(self._starts) else self._count
        return min(low, self._count), min(high, self._count)

    def _find_end(self) -> int:
        """Walk back over what is not content; return the number of blocks that are."""
        if not self._pieces:
            return 0
        count: int = self._starts[-1] + len(self._piece(len(self._pieces) - 1))
        while count and (entry := self._entry(count - 1))[1] not in _CONTENT:
            if entry[1] == BlockType.COMMANDS:
                self.commands.insert(0, entry[0])
            count -= 1
        return count

    def _entry(self, seq: int) -> Any:
        at = bisect_right(self._starts, seq) - 1
        piece = self._piece(at)
        if seq - self._starts[at] < len(piece):
            match piece[seq - self._starts[at]]:
                case [int(), int(), int(number), int(), int(), int(), bytes()] as entry if number == seq:
                    return entry
        raise FormatError(f"INDEX: block {seq} is not where it should be")

    def _piece(self, at: int) -> list[Any]:
        found = self._decoded.get(at)
        if found is not None:
            self._decoded.move_to_end(at)
            return found
        entries = self._decoded[at] = decode_entries(self._pieces[at], "INDEX")
        if len(self._decoded) > _KEPT_LIMIT:
            self._decoded.popitem(last=False)
        return entries


def decode_entries(raw: bytes, what: str) -> list[Any]:
    """Decode a payload of msgpack objects, one after the other; their form is not looked at. Raises FormatError."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=RAW_LIMIT)
    try:
        unpacker.feed(raw)
        entries = list(unpacker)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError(f"{what}: not msgpack") from error
    if unpacker.tell() != len(raw):
        raise FormatError(f"{what}: bytes are left over")
    return entries


def last_with_record(places: Sequence[Place], n: int) -> int:
    """The position of the last place whose first record is at most n, -1 if there is none."""
    low, high = places.span(3, n) if isinstance(places, Places) else (0, len(places))
    return bisect_right(places, n, low, high, key=lambda place: place.first_record) - 1


def last_before(places: Sequence[Place], t_ns: int) -> int:
    """The position of the last place that begins before a time, -1 if there is none."""
    low, high = places.span(4, t_ns) if isinstance(places, Places) else (0, len(places))
    return bisect_left(places, t_ns, low, high, key=lambda place: place.t0_ns) - 1


def _first_entry(raw: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=RAW_LIMIT)
    try:
        unpacker.feed(raw[:256])  # an entry takes 90 bytes at most
        entry = unpacker.unpack()
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FormatError("INDEX: not msgpack") from error
    if not isinstance(entry, list) or len(entry) != 7 or not all(isinstance(number, int) for number in entry[:6]):
        raise FormatError("INDEX: an entry of another form")
    return entry
