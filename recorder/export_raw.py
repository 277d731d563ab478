"""The bytes on the wire, exactly as they are on the tape (so: as the user saw them, after masking).

    user      what the user sent                        gate     what the gate itself made and sent to the target
    out, err  what the user got, by stream              target   both of them, in their order
    all       everything, framed: for each WIRE record t_ns u64, channel u8 (0 gate, 1 user, 2 out, 3 err), length u32,
              all little-endian, and so many bytes

Of one flow of a session of several streams (format bytes) only its own bytes are written: what a program was sent, or
printed, as its user sent or saw it, without the protocol's framing.

Nothing is added to the bytes of a single direction. Two users' messages that were one record each are simply joined.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from recorder.export_source import Source
from recorder.format import ERR, GATE, OUT, USER, Kind

FRAME: Final = struct.Struct("<QBI")
_CHANNELS: Final = {
    "user": (USER,),
    "gate": (GATE,),
    "out": (OUT,),
    "err": (ERR,),
    "target": (OUT, ERR),
    "all": (GATE, USER, OUT, ERR),
}


def raw_pieces(source: Source) -> Iterator[bytes]:
    """Yield the bytes of the direction that the options name, record by record."""
    direction = source.options.direction
    channels = _CHANNELS[direction]
    for record in source.records():
        if record.kind == Kind.WIRE and record.channel in channels:
            if direction == "all":
                yield FRAME.pack(record.t_ns, record.channel, len(record.payload))
            yield record.payload
