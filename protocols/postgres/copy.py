"""COPY TO STDOUT under masks: rows cut out of the stream, masked cells written anew, all else byte for byte.

Three formats. text: a raw newline ends a row and a raw delimiter a field, a backslash escapes both; csv: the same
with quotes, in which newlines and delimiters count for nothing; binary: a 19-byte header, then rows of counted
fields, then -1. The stream may be split anywhere, so that up to one row is kept until the rest has come. A mask
is given the value itself, with escapes and quotes undone, and they are redone around what it returns.

What the user chose in the COPY statement must tell nothing of a masked value: a new csv value is quoted for its
own sake only (an old one's quotes would tell whether it held the delimiter of the user's choice), and a NULL
string of the text format that a value might be as well is masked as a value.

Left out: COPY FROM (no mask applies to what a user sends), and text in encodings whose trail bytes look like ASCII
(a backslash in Shift JIS): those are refused, as everything else that cannot be told for certain.

Source: PostgreSQL 18 docs, COPY, File Formats; src/backend/commands/copyto.c (CopyAttributeOutText, -CSV).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final

from proxy.core.errors import TargetPeerError
from proxy.core.events import CellMask
from proxy.core.statement import Copy

# Kept of one row until it is whole. PostgreSQL allows 1 GB; a row of 100 MB must pass (postgres note, section 8),
# and masking takes about three times its size for a moment.
ROW_LIMIT: Final = 128 * 1024 * 1024
# The extension area of a binary header: no version of PostgreSQL has written one; a small one may be skipped.
EXTENSION_LIMIT: Final = 64 * 1024

_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\x00"
_CRITICAL_FLAGS: Final = 0xFFFF0000  # "if a reader finds an unexpected bit set in this range, it should abort"
_COPY_DATA: Final = ord("d")
_HEADER_BYTES: Final = len(_SIGNATURE) + 8
_header = Struct(">II").unpack_from
_count = Struct(">h").unpack_from
_size = Struct(">i").unpack_from
_pack = Struct(">i").pack
_message_head = Struct(">BI")

# Encodings of which a later byte of a character may be an ASCII character (encoding_embeds_ascii in the server).
_EMBEDS_ASCII: Final = frozenset(
    (
        *("SJIS", "SHIFTJIS", "MSKANJI", "WIN932", "WINDOWS932", "SHIFTJIS2004", "BIG5", "WIN950", "WINDOWS950"),
        *("GBK", "WIN936", "WINDOWS936", "UHC", "WIN949", "WINDOWS949", "GB18030", "JOHAB"),
    )
)

_ESCAPES: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_ESCAPED: Final = {value: b"\\" + letter for letter, value in _ESCAPES.items()}
_text_escape = re.compile(rb"\\(.)", re.DOTALL)

_Function = Callable[[bytes], bytes | None]


class CopyMask:
    """The masks of one COPY TO STDOUT, from its CopyOutResponse to its CopyDone.

    copy: the statement as read from its text. cells: one entry a column. columns: the count that CopyOutResponse
    tells. encoding: the session's client_encoding, by PostgreSQL's name; an ENCODING option of the statement goes
    before it. Raises TargetPeerError if it cannot be told for certain where a masked cell begins and ends.
    """

    def __init__(self, copy: Copy, cells: Sequence[CellMask | None], columns: int, encoding: str) -> None:
        if len(cells) != columns:
            raise TargetPeerError(f"COPY sends {columns} columns where {len(cells)} were expected", "08P01")
        self._rows: _LineRows | _BinaryRows | None
        if all(cell is None for cell in cells):
            self._rows = None
        elif copy.format == "binary":
            self._rows = _BinaryRows(cells)
        elif copy.format in ("text", "csv"):
            self._rows = _LineRows(copy, cells, _dialect(copy, copy.encoding or encoding))
        else:
            raise TargetPeerError("the format of this COPY is not known, so it cannot be masked", "0A000")

    def feed(self, data: bytes) -> bytes:
        """Take the payload of CopyData messages as it comes, return what can be sent on: whole rows."""
        if self._rows is None:
            return data
        rows = self._rows.feed(data)
        end = self._rows.end
        return end.join(rows) + end if rows else b""

    def feed_messages(self, wire: bytes) -> bytes:
        """Take whole CopyData messages, return CopyData messages of one row each, as the server makes them.

        psycopg's Copy.rows(), for one, reads each message as one row.
        """
        if self._rows is None:
            return wire
        payloads: list[bytes] = []
        at = 0
        try:
            while at < len(wire):
                letter, length = _message_head.unpack_from(wire, at)
                if letter != _COPY_DATA or length < 4 or at + 1 + length > len(wire):
                    raise _malformed("a message that is no whole CopyData")
                payloads.append(wire[at + 5 : at + 1 + length])
                at += 1 + length
        except StructError as error:
            raise _malformed("a message that is no whole CopyData") from error
        parts: list[bytes] = []
        end = self._rows.end
        head = _message_head.pack
        size = 4 + len(end)
        for row in self._rows.feed(b"".join(payloads)):
            parts += head(_COPY_DATA, len(row) + size), row, end
        return b"".join(parts)

    def finish(self) -> bytes:
        """The stream has ended (CopyDone). Raises TargetPeerError if it did so inside a row."""
        if self._rows is not None:
            self._rows.finish()
        return b""


def _malformed(what: str) -> TargetPeerError:
    return TargetPeerError(f"the target's COPY data cannot be read: {what}", "08P01")


def _compile(cells: Sequence[CellMask | None], dump: Callable[[bytes], bytes], null: bytes) -> list[_Step]:
    """Split the masks into constants, as they go out, and functions."""
    steps: list[_Step] = []
    for position, cell in enumerate(cells):
        if isinstance(cell, bytes):
            steps.append(_Step(position, dump(cell), None))
        elif callable(cell):
            steps.append(_Step(position, b"", cell))
        elif cell is not None:
            steps.append(_Step(position, null, None))  # NULL_CELL
    return steps


@dataclass(frozen=True, slots=True)
class _Step:
    position: int
    constant: bytes
    function: _Function | None


# -- text and csv ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How fields are written. null_kept: a raw field that is NULL for certain (or tells nothing), None if no field is.

    special: where it is not in a raw field, the field is its value. quoting: where the pattern is not in a value,
    dump(value) is the value. quote is b"" in text format; escapes are the two-byte escapes inside quotes, None
    where a quote is doubled.
    """

    delimiter: bytes
    null: bytes
    null_kept: bytes | None
    special: bytes
    quote: bytes
    escapes: re.Pattern[bytes] | None
    field: re.Pattern[bytes]
    load: Callable[[bytes], bytes]
    dump: Callable[[bytes], bytes]


def _dialect(copy: Copy, encoding: str) -> _Dialect:
    name = re.sub(r"[^0-9A-Z]", "", encoding.upper())
    if name in _EMBEDS_ASCII:
        raise TargetPeerError(f"COPY in the encoding {encoding} cannot be masked; use UTF8", "0A000")
    null = _encode(copy.null, name)
    delimiter = _one_byte(copy.delimiter, "delimiter")
    if copy.format == "csv":
        return _csv_dialect(copy, delimiter, null)
    if delimiter == b"\\":
        raise TargetPeerError("a backslash cannot be the delimiter of COPY", "22023")
    escaped = {**_ESCAPED, b"\\": b"\\\\", delimiter: _ESCAPED.get(delimiter, b"\\" + delimiter)}
    raw = re.compile(b"[\b\t\n\v\f\r\\\\" + re.escape(delimiter) + b"]")

    def load(field: bytes) -> bytes:
        return _text_escape.sub(lambda found: _ESCAPES.get(found[1], found[1]), field)

    def dump(value: bytes) -> bytes:
        return value if raw.search(value) is None else raw.sub(lambda found: escaped[found[0]], value)

    # Can a value be written so? Then a field that looks like NULL may be that value, unless it is the empty one.
    certain = not null or dump(load(null)) != null
    field = re.compile(rb"(?:[^\\%b]|\\.)*+" % re.escape(delimiter), re.DOTALL)
    return _Dialect(delimiter, null, null if certain else None, b"\\", b"", None, field, load, dump)


def _csv_dialect(copy: Copy, delimiter: bytes, null: bytes) -> _Dialect:
    quote = _one_byte(copy.quote, "quote")
    escape = _one_byte(copy.escape, "escape")
    if delimiter in (quote, escape):
        raise TargetPeerError("COPY with this quote, escape and delimiter cannot be masked", "0A000")
    q, e = re.escape(quote), re.escape(escape)
    undouble = re.compile(e + b"([" + q + e + b"])")
    redouble = re.compile(b"[" + q + e + b"]")
    unquotable = re.compile(b"[\r\n" + q + re.escape(delimiter) + b"]")

    def load(field: bytes) -> bytes:
        if len(field) < 2 or not field.startswith(quote) or not field.endswith(quote):
            raise _malformed("a quote inside a field")
        return undouble.sub(rb"\1", field[1:-1])

    def dump(value: bytes) -> bytes:
        # "\." alone would end the data for psql before 18; the server quotes it too
        if not copy.force_quote and value not in (null, b"\\.") and unquotable.search(value) is None:
            return value
        return quote + redouble.sub(lambda found: escape + found[0], value) + quote

    inside = b"(?:[^" + q + e + b"]|" + e + b"[" + q + e + b"]" + (b"" if quote == escape else b"|" + e) + b")*+"
    field = re.compile(q + inside + q + b"|[^" + q + re.escape(delimiter) + b"]*+")
    escapes = None if quote == escape else undouble
    return _Dialect(delimiter, null, null, quote, quote, escapes, field, load, dump)


def _one_byte(text: str, what: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if len(data) != 1 or data in b"\r\n":
        raise TargetPeerError(f"the {what} of this COPY is not a single byte", "22023")
    return data


def _encode(text: str, encoding: str) -> bytes:
    """The NULL string as the target sends it; encoding: PostgreSQL's name without punctuation."""
    if text.isascii():
        return text.encode("ascii")
    name = {"UTF8": "utf-8", "UNICODE": "utf-8", "SQLASCII": "utf-8"}.get(encoding, encoding)
    if name.startswith("WIN"):
        name = "cp" + name.removeprefix("WINDOWS").removeprefix("WIN")
    try:
        return text.encode(codecs.lookup(name.lower()).name)
    except (LookupError, UnicodeEncodeError) as error:
        raise TargetPeerError("the NULL string of this COPY cannot be read", "22021") from error


class _LineRows:
    """Rows that end in a newline: text and csv."""

    end: Final = b"\n"

    def __init__(self, copy: Copy, cells: Sequence[CellMask | None], dialect: _Dialect) -> None:
        self._dialect = dialect
        self._columns = len(cells)
        self._steps = _compile(cells, dialect.dump, dialect.null)
        self._header = copy.header
        self._line: list[bytes] = []  # pieces of a line whose newline is still to come
        self._lines: list[bytes] = []  # lines of a row whose last quote is still to come
        self._kept_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        rows = self._cut(data)
        if self._header and rows:
            self._header = False
            return [rows[0], *self._rewrite(rows[1:])]
        return self._rewrite(rows)

    def finish(self) -> None:
        if self._kept_bytes or self._lines:
            raise _malformed("it ends inside a row")

    def _cut(self, data: bytes) -> list[bytes]:
        """Return the rows that are whole now, without their newlines; keep the rest."""
        last = data.rfind(b"\n")
        if last < 0:
            self._keep(data)
            return []
        self._line.append(data[:last])
        lines = b"".join(self._line).split(b"\n")
        self._line.clear()
        rows = self._balance(lines) if self._dialect.quote else lines
        self._kept_bytes = sum(map(len, self._lines)) if rows else self._kept_bytes + last + 1
        self._keep(data[last + 1 :])
        return rows

    def _balance(self, lines: list[bytes]) -> list[bytes]:
        """Join the lines of each row whose quoted fields hold newlines; keep a row whose last quote is to come."""
        quote = self._dialect.quote
        rows: list[bytes] = []
        for line in lines:
            odd = quote in line and self._quotes(line) % 2 == 1
            if self._lines:
                self._lines.append(line)
                if odd:
                    rows.append(b"\n".join(self._lines))
                    self._lines.clear()
            elif odd:
                self._lines.append(line)
            else:
                rows.append(line)
        return rows

    def _quotes(self, line: bytes) -> int:
        """Count the quotes that open or close; one that is escaped is inside, and doubled ones do not matter."""
        escapes = self._dialect.escapes
        return (line if escapes is None else escapes.sub(b"", line)).count(self._dialect.quote)

    def _keep(self, data: bytes) -> None:
        if data:
            self._line.append(data)
            self._kept_bytes += len(data)
        if self._kept_bytes > ROW_LIMIT:
            raise TargetPeerError(f"a row of COPY is longer than {ROW_LIMIT} bytes and cannot be masked", "54000")

    def _rewrite(self, rows: list[bytes]) -> list[bytes]:
        dialect, columns = self._dialect, self._columns
        delimiter, kept = dialect.delimiter, dialect.null_kept
        out: list[bytes] = []
        add, join = out.append, delimiter.join
        if len(self._steps) == 1 and self._steps[0].function is None:
            position, constant = self._steps[0].position, self._steps[0].constant
            for row in rows:
                fields = row.split(delimiter)
                if len(fields) != columns:
                    fields = self._split(row)
                if fields[position] != kept:
                    fields[position] = constant
                add(join(fields))
            return out
        steps = [(step.position, step.constant, step.function) for step in self._steps]
        special, load, dump = dialect.special, dialect.load, dialect.dump
        for row in rows:
            fields = row.split(delimiter)
            if len(fields) != columns:
                fields = self._split(row)
            for position, constant, function in steps:
                field = fields[position]
                if field == kept:
                    continue
                if function is None:
                    fields[position] = constant
                    continue
                old = load(field) if special in field else field
                new = function(old)
                if new is None:
                    fields[position] = dialect.null
                elif new != old:
                    fields[position] = dump(new)
            add(join(fields))
        return out

    def _split(self, row: bytes) -> list[bytes]:
        """Split a row in which delimiters are escaped or quoted: there are more of them than columns."""
        field = self._dialect.field
        delimiter = self._dialect.delimiter
        fields: list[bytes] = []
        at = -1
        while at < len(row):
            if at >= 0 and row[at : at + 1] != delimiter:
                raise _malformed("a field goes on behind its end")
            found = field.match(row, at + 1)
            assert found is not None, "the pattern matches the empty field"
            fields.append(found[0])
            at = found.end()
        if len(fields) != self._columns:
            raise _malformed(f"a row of {len(fields)} columns where {self._columns} were announced")
        return fields


# -- binary ---------------------------------------------------------------------------------------------


class _BinaryRows:
    """Rows of counted fields between a header and a trailer."""

    end: Final = b""

    def __init__(self, cells: Sequence[CellMask | None]) -> None:
        self._columns = len(cells)
        nothing = _pack(-1)
        self._nothing = nothing
        self._steps: list[_Step | None] = [None] * len(cells)
        for step in _compile(cells, lambda value: _pack(len(value)) + value, nothing):
            self._steps[step.position] = step
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._need_bytes = _HEADER_BYTES
        self._front: bytes | None = None  # the header, until it leaves with the first row; None before it came
        self._begun = False
        self._ended = False

    def feed(self, data: bytes) -> list[bytes]:
        if self._ended and data:
            raise _malformed("bytes behind the trailer")
        self._kept.append(data)
        self._kept_bytes += len(data)
        if self._kept_bytes < self._need_bytes:
            return []
        data = b"".join(self._kept)
        start, rows = 0, []
        if not self._begun:
            start = self._read_header(data)
            if start == 0:
                self._keep(data, 0)
                return []
        while not self._ended:
            row, end = self._row(data, start)
            if row is None:
                break
            if self._front:
                row, self._front = self._front + row, None
            rows.append(row)
            start = end
        if self._ended and start != len(data):
            raise _malformed("bytes behind the trailer")
        self._keep(data, start)
        return rows

    def finish(self) -> None:
        if not self._ended:
            raise _malformed("it ends without a trailer")

    def _keep(self, data: bytes, start: int) -> None:
        self._kept = [data[start:]] if start < len(data) else []
        self._kept_bytes = len(data) - start
        if self._need_bytes > ROW_LIMIT:
            raise TargetPeerError(f"a row of COPY is longer than {ROW_LIMIT} bytes and cannot be masked", "54000")

    def _read_header(self, data: bytes) -> int:
        """Return where the first row begins, 0 if the header is not whole yet."""
        if not data.startswith(_SIGNATURE):
            raise _malformed("the signature of the binary format is missing")
        flags, extension_bytes = _header(data, len(_SIGNATURE))
        if flags & _CRITICAL_FLAGS or extension_bytes > EXTENSION_LIMIT:
            raise _malformed("flags or an extension that nobody knows")
        end = _HEADER_BYTES + int(extension_bytes)
        self._need_bytes = end
        if len(data) < end:
            return 0
        self._begun = True
        self._front = data[:end]
        return end

    def _row(self, data: bytes, start: int) -> tuple[bytes | None, int]:
        """Rewrite the row at start: (row, its end), or (None, start) with the bytes that it needs noted."""
        parts: list[bytes] = []
        mark = start
        at = start + 2
        self._need_bytes = 2
        if at > len(data):
            return None, start
        (count,) = _count(data, start)
        if count == -1:
            self._ended = True
            return data[start:at], at
        if count != self._columns:
            raise _malformed(f"a row of {count} columns where {self._columns} were announced")
        # A row that turns out to be incomplete is walked again: no mask is called before all of it is there.
        fields: list[tuple[int, int, _Step]] = []
        for step in self._steps:
            if at + 4 > len(data):
                self._need_bytes = at + 4 - start
                return None, start
            (size,) = _size(data, at)
            if size < -1:
                raise _malformed("a length below zero")
            at += 4
            if step is not None and size >= 0:
                fields.append((at, at + size, step))
            if size > 0:
                at += size
        if at > len(data):
            self._need_bytes = at - start
            return None, start
        for first, last, step in fields:
            if step.function is None:
                parts += data[mark : first - 4], step.constant
            elif (new := step.function(old := data[first:last])) != old:
                parts += data[mark : first - 4], self._nothing if new is None else _pack(len(new)) + new
            else:
                continue
            mark = last
        parts.append(data[mark:at])
        return b"".join(parts), at
