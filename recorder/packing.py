"""Packs the records of a tape into blocks: as few as they fit in, each with its commands noted in the index.

The packer and its buffer are shared by all tapes of an event loop's thread; nothing here waits between packing and
writing. A pack that raises empties the buffer: the caller ends the tape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgpack

from recorder.format import BLOCK_TARGET_BYTES, RAW_BELOW_BYTES
from recorder.segment import SegmentWriter

# What a record costs on a tape beside its payload, at most: array, number, time, channel, kind, length, meta.
OVERHEAD_BYTES: Final = 48

_packer = msgpack.Packer(use_bin_type=True, autoreset=False, buf_size=1024 * 1024)

# Number, nanoseconds, channel, kind, payload, meta, and the map that the payload packs, if it was at hand.
Pending = tuple[int, int, int, int, bytes, Mapping[str, int] | None, Mapping[str, Any] | None]


def write_blocks(segment: SegmentWriter, pending: list[Pending], size: int, full: bool, long: dict[int, bytes]) -> int:
    """Write what is too much for one block; as write_block."""
    start = size = batch = 0
    for i, record in enumerate(pending):
        size += len(record[4]) + OVERHEAD_BYTES
        if size >= BLOCK_TARGET_BYTES:
            batch = write_block(segment, pending[start : i + 1], size, full, long)
            start, size = i + 1, 0
    if start < len(pending):
        batch = write_block(segment, pending[start:], size, full, long)
    return batch


def write_block(segment: SegmentWriter, records: list[Pending], size: int, full: bool, long: dict[int, bytes]) -> int:
    """Write one block; size is at least what its records take.

    full: the log gets its content. long: the whole payloads of COMMANDs and VERDICTs that are in parts, by number; they
    are taken out of it. Returns the log's batch (SegmentWriter.data). Raises OSError, TapeError, what packing raises.
    """
    t0 = records[0][1]
    pack = _packer.pack
    try:
        for n, t, channel, kind, payload, meta, entry in records:
            dt = (t - t0) // 1000
            if meta is None:
                pack((n, dt, channel, kind, payload))
            else:
                pack((n, dt, channel, kind, payload, meta))
            if 2 <= kind <= 3 and (meta is None or not meta.get("part")):
                whole = payload if meta is None or "part" not in meta else long.pop(n)
                segment.commands.note(n, t0 + dt * 1000, kind, whole, entry)
        if size < RAW_BELOW_BYTES:
            # Not worth a view that has to be let go of again.
            return segment.data(_packer.bytes(), t0, t0 + dt * 1000, len(records), full)
        with _packer.getbuffer() as raw:
            return segment.data(raw, t0, t0 + dt * 1000, len(records), full)
    finally:
        _packer.reset()
