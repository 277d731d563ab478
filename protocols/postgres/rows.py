"""DataRow messages in bulk: masked, counted, and the first few decoded for the tape's RESULT record.

Masking is the hot path of the house. A stretch of rows is copied once into a bytearray, in which the new
lengths are written in place; each masked cell is cut out by one slice, and one join puts the new values in. The
walk reads only the lengths of the columns up to the last masked one; the message's own length leads past the
rest. For long stretches the walk of one shape (column count, masked positions, constant or function) is
generated as straight-line Python, which takes half the time of loops over columns and masks (0.45 us a row
instead of 0.93, benchmarks/rows.py); compiling it costs as much as some thousand rows, so that short stretches
go through the loops. Nothing that a peer sent gets into the generated source: it is made of integers.

Left out: the message boundary itself (wire.py hands over whole messages) and any meaning of the cells.

Source: PostgreSQL 18 docs 54.7, DataRow: Byte1('D'), Int32 length with itself, Int16 columns, then for each an
Int32 length (-1 is NULL) and that many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count, repeat
from struct import Struct
from struct import error as StructError
from typing import Final, cast

from protocols.postgres.display import CELL_DISPLAY_LIMIT, show_cell
from proxy.core.errors import TargetPeerError
from proxy.core.events import CellMask

__all__ = ["CELL_DISPLAY_LIMIT", "count_rows", "first_rows", "rewrite_rows"]

# A stretch at least this long is worth a generated walk: at some 60 bytes a row the gain of 0.4 us a row pays
# the 0.5 ms of compiling back within a few such stretches, and a result this long seldom comes alone.
GENERATE_MINIMUM_BYTES: Final = 16 * 1024
# More masked columns than this are walked in loops: the source grows with each, and nobody reads such rows fast.
GENERATED_MASKS_LIMIT: Final = 16
# Shapes whose walk is kept: distinct results under masks that are busy at the same time on one node.
SHAPES_LIMIT: Final = 256
# This many unmasked columns in front of a masked one are skipped by straight-line code, more by a loop.
UNROLL_LIMIT: Final = 4

_DATA_ROW: Final = ord("D")
_NULL: Final = b"\xff\xff\xff\xff"
_head = Struct(">Bi").unpack_from
_row_head = Struct(">BiH").unpack_from
_row_start = Struct(">BiHi").unpack_from
_size = Struct(">i").unpack_from
_put = Struct(">i").pack_into
_pack = Struct(">i").pack

# A function, or a constant's image with its length in front.
_Mask = Callable[[bytes], bytes | None] | bytes
_Walk = Callable[[bytes, Sequence[_Mask]], bytes]


def rewrite_rows(wire: bytes, cells: Sequence[CellMask | None]) -> bytes:
    """Return the same rows with the cells of each masked column replaced; NULL stays NULL without a call.

    wire: whole DataRow messages, nothing else. cells: one entry a column; None leaves the column alone. What a
    function returns unchanged costs nothing more. Raises TargetPeerError if the rows are malformed or have
    another number of columns than cells.
    """
    masks: list[_Mask] = []
    shape: list[int] = []
    for position, mask in enumerate(cells):
        if mask is None:
            continue
        if isinstance(mask, bytes):
            masks.append(_pack(len(mask)) + mask)
            shape.append(~position)
        elif callable(mask):
            masks.append(mask)
            shape.append(position)
        else:
            masks.append(_NULL)  # NULL_CELL
            shape.append(~position)
    if not masks:
        return wire
    if len(wire) >= GENERATE_MINIMUM_BYTES and len(masks) <= GENERATED_MASKS_LIMIT:
        return _generate(len(cells), tuple(shape))(wire, masks)
    return _walk(wire, len(cells), shape, masks)


def _malformed() -> TargetPeerError:
    return TargetPeerError("the target sent a row whose lengths or columns do not fit", "08P01")


def _walk(wire: bytes, columns: int, shape: Sequence[int], masks: Sequence[_Mask]) -> bytes:
    """Rewrite rows by loops over columns and masks; shape has a column's position, inverted for a constant."""
    out = bytearray(wire)
    parts: list[bytes | bytearray] = []
    steps: list[tuple[range, _Mask]] = []
    previous = 0
    for place, mask in zip(shape, masks, strict=True):
        position = place if place >= 0 else ~place
        steps.append((range(previous, position), mask))
        previous = position + 1
    after = 4 * (columns - previous)
    start = mark = 0
    try:
        while start < len(wire):
            letter, length, row_columns = _row_head(wire, start)
            end = start + 1 + length
            at = start + 7
            found: list[tuple[int, int, _Mask]] = []
            for skipped, mask in steps:
                for _ in skipped:
                    (size,) = _size(wire, at)
                    at += 4 + size if size > 0 else _empty(size)
                (size,) = _size(wire, at)
                if size < 0:
                    at += _empty(size)
                else:
                    found.append((at + 4, at + 4 + size, mask))
                    at += 4 + size
            if at > end - after or (not after and at != end) or row_columns != columns or letter != _DATA_ROW:
                raise _malformed()
            cuts: list[tuple[int, int, bytes]] = []
            for first, last, mask in found:
                if isinstance(mask, bytes):
                    cuts.append((first - 4, last, mask))
                    length += len(mask) - 4 - last + first
                elif (new := mask(old := wire[first:last])) != old:
                    _put(out, first - 4, -1 if new is None else len(new))
                    cuts.append((first, last, new or b""))
                    length += len(new or b"") - len(old)
            _put(out, start + 1, length)
            for first, last, new in cuts:
                parts += out[mark:first], new
                mark = last
            start = end
    except StructError as error:  # a length beyond the stretch, or a new value beyond 2 GB
        raise _malformed() from error
    if start != len(wire):
        raise _malformed()
    parts.append(out[mark:])
    return b"".join(parts)


def _empty(size: int) -> int:
    """The bytes that a cell without data takes: its length alone."""
    if size < -1:
        raise _malformed()
    return 4


@lru_cache(SHAPES_LIMIT)
def _generate(columns: int, shape: tuple[int, ...]) -> _Walk:
    """Return the walk of _walk for one shape as straight-line code."""
    names: dict[str, object] = {
        "forever": repeat(None),
        "repeat": repeat,
        "row_start": _row_start,
        "size_at": _size,
        "put": _put,
        "StructError": StructError,
        "malformed": _malformed,
        "NULL": _NULL,
    }
    exec(_source(columns, shape), names)  # noqa: S102  # the source is made of the integers of a shape alone
    return cast("_Walk", names["walk"])


def _source(columns: int, shape: tuple[int, ...]) -> str:
    """Write the walk: read the lengths, check the row, patch the new lengths, cut. One cut a masked cell."""
    positions = [place if place >= 0 else ~place for place in shape]
    sole = len(shape) == 1 and shape[0] < 0  # one constant: it need not even be listed, the join puts it in
    row: list[str] = []
    previous = 0
    for index, position in enumerate(positions):
        row += _skip_source(previous, position)
        if position:
            row += [f"size{index}, = size_at(wire, at)", "at += 4"]
        else:
            row += ["size0 = size", "at = start + 11"]
        row += [
            f"first{index} = at",
            f"if size{index} > 0: at += size{index}",
            f"elif size{index} < -1: raise malformed()",
        ]
        previous = position + 1
    after = columns - previous
    short = f"at > end - {4 * after}" if after else "at != end"
    row.append(f"if {short} or columns != {columns} or letter != {_DATA_ROW}: raise malformed()")
    for index, place in enumerate(shape):
        row += (
            _function_source(index) if place >= 0 else [f"if size{index} >= 0: length += length{index} - size{index}"]
        )
    if len(shape) > 1:
        row.append("put(out, start + 1, length)")
    for index, place in enumerate(shape):
        row.append(f"if size{index} >= 0:" if place < 0 else f"if new{index} is not None:")
        if len(shape) == 1:
            row.append(" put(out, start + 1, length)")
        row.append(f" add(out[mark:first{index}{' - 4' if place < 0 else ''}])")
        if not sole:
            row.append(f" add({'mask' if place < 0 else 'new'}{index})")
        row.append(f" mark = first{index} + size{index}")
    row.append("start = end")
    lines = [
        "def walk(wire, masks):",
        f" {''.join(f'mask{index}, ' for index in range(len(shape)))} = masks",
        *(f" length{index} = len(mask{index}) - 4" for index, place in enumerate(shape) if place < 0),
        " out = bytearray(wire)",
        " parts = []",
        " add = parts.append",
        " start = mark = 0",
        " try:",
        "  for _ in forever:",
        "   letter, length, columns, size = row_start(wire, start)",
        "   end = start + 1 + length",
        *("   " + line for line in row),
        " except StructError:",  # how every walk ends, and how one over a cut-off row does
        "  if start != len(wire): raise malformed()",
        " add(out[mark:])",
        f" return {'mask0' if sole else repr(b'')}.join(parts)",
    ]
    return "\n".join(lines)


def _skip_source(first: int, last: int) -> list[str]:
    """Step over the columns first to last - 1; the length of column 0 is read with the row's head."""
    lines: list[str] = []
    if first == 0 < last:
        lines += ["at = start + 11", "if size > 0: at += size", "elif size < -1: raise malformed()"]
        first = 1
    step = ["size, = size_at(wire, at)", "at += 4", "if size > 0: at += size", "elif size < -1: raise malformed()"]
    if last - first <= UNROLL_LIMIT:
        return lines + step * (last - first)
    return [*lines, f"for _ in repeat(None, {last - first}):", *(" " + line for line in step)]


def _function_source(index: int) -> list[str]:
    return [
        f"new{index} = None",
        f"if size{index} >= 0:",
        f" old = wire[first{index}:first{index} + size{index}]",
        f" new{index} = mask{index}(old)",
        f" if new{index} is None:",
        f"  put(out, first{index} - 4, -1)",
        f"  new{index} = {b''!r}",
        f"  length -= size{index}",
        f" elif new{index} == old: new{index} = None",
        " else:",
        f"  put(out, first{index} - 4, len(new{index}))",
        f"  length += len(new{index}) - size{index}",
    ]


def count_rows(buffer: bytes | bytearray | memoryview, start: int) -> tuple[int, int]:
    """Walk the headers of DataRow messages from start: (end of the last complete one, how many).

    Stops at the first other message and at the first incomplete one; start itself where there is none. Raises
    TargetPeerError on a length that no DataRow can have.
    """
    head = _head
    at = start
    length = rows = 0
    try:
        for rows in count():  # noqa: B007  # the cheapest counter that there is
            letter, length = head(buffer, at)
            if letter != _DATA_ROW:
                break
            if length < 6:
                raise _malformed()
            at += length + 1
    except StructError:
        if at > len(buffer) and rows:  # the last one is still to come in full
            return at - length - 1, rows - 1
    return at, rows


def first_rows(
    wire: bytes, limit: int, columns: Sequence[tuple[int, bool]], encoding: str = "utf-8"
) -> tuple[tuple[str | None, ...], ...]:
    """Decode at most limit rows to display text; None is NULL. Never raises: odd rows end the list.

    columns: (type oid, binary) of each column; a column beyond them is shown as if its type were unknown.
    encoding: Python's name of the session's client_encoding.
    """
    rows: list[tuple[str | None, ...]] = []
    start = 0
    try:
        while start < len(wire) and len(rows) < limit:
            letter, length, count_ = _row_head(wire, start)
            if letter != _DATA_ROW or length < 6:
                break
            at = start + 7
            row: list[str | None] = []
            for position in range(count_):
                (size,) = _size(wire, at)
                at += 4
                if size < 0:
                    row.append(None)
                    continue
                type_oid, binary = columns[position] if position < len(columns) else (0, False)
                row.append(show_cell(wire[at : at + size], type_oid, binary, encoding))
                at += size
            start += 1 + length
            if start > len(wire) or at != start:
                break
            rows.append(tuple(row))
    except StructError:
        pass  # a torn row: what came before it is shown
    return tuple(rows)
