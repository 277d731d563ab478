"""copy.py: COPY TO STDOUT under masks against an obvious reference, and against what real servers write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from struct import pack, unpack_from

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.postgres import copy as copy_module
from protocols.postgres.copy import CopyMask
from proxy.core.errors import TargetPeerError
from proxy.core.events import NULL_CELL, CellMask
from proxy.core.statement import Copy
from tests.peers.postgres import PostgresServer

Cells = Sequence[CellMask | None]
TEXT = Copy("out", "t", (), "client", "text", "\t", "\\N", False, '"', '"', False, None)
CSV = replace(TEXT, format="csv", delimiter=",", null="")
BINARY = replace(TEXT, format="binary")
HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)


def run(copy: Copy, cells: Cells, data: bytes, step: int = 1 << 20) -> bytes:
    mask = CopyMask(copy, cells, len(cells), "UTF8")
    out = b"".join(mask.feed(data[at : at + step]) for at in range(0, len(data), step))
    return out + mask.finish()


def odd(value: bytes) -> bytes:
    return value + b"\t|,\"'\\\n\r."


def identity(value: bytes) -> bytes:
    return bytes(bytearray(value))


def nothing(value: bytes) -> None:
    return None


# -- the reference: one character after the other -------------------------------------------------------

LETTERS = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v"}


def write_text(copy: Copy, table: Sequence[Sequence[str | None]]) -> bytes:
    """What CopyAttributeOutText writes."""
    out = ""
    for row in table:
        fields = []
        for value in row:
            field = ""
            for c in copy.null if value is None else value:
                if value is None:
                    field += c
                elif c in LETTERS:
                    field += "\\" + LETTERS[c]
                elif c in ("\\", copy.delimiter):
                    field += "\\" + c
                else:
                    field += c
            fields.append(field)
        out += copy.delimiter.join(fields) + "\n"
    return out.encode()


def write_csv(copy: Copy, table: Sequence[Sequence[str | None]]) -> bytes:
    """What CopyAttributeOutCSV writes."""
    out = ""
    for row in table:
        fields = []
        for value in row:
            if value is None:
                fields.append(copy.null)
            elif copy.force_quote or value in (copy.null, "\\.") or set(value) & {copy.quote, copy.delimiter, *"\r\n"}:
                doubled = "".join(copy.escape + c if c in (copy.quote, copy.escape) else c for c in value)
                fields.append(copy.quote + doubled + copy.quote)
            else:
                fields.append(value)
        out += copy.delimiter.join(fields) + "\n"
    return out.encode()


def write_binary(copy: Copy, table: Sequence[Sequence[str | None]]) -> bytes:
    out = HEADER
    for row in table:
        out += pack(">h", len(row))
        for value in row:
            out += pack(">i", -1) if value is None else pack(">i", len(value.encode())) + value.encode()
    return out + pack(">h", -1)


WRITERS: dict[str, Callable[[Copy, Sequence[Sequence[str | None]]], bytes]] = {
    "text": write_text,
    "csv": write_csv,
    "binary": write_binary,
}
DIALECTS = [
    TEXT,
    replace(TEXT, delimiter="|"),
    replace(TEXT, delimiter="\v", null=""),
    replace(TEXT, null="\\|N", delimiter=";"),
    CSV,
    replace(CSV, delimiter="|", null="NULL"),
    replace(CSV, quote="'", escape="\\"),
    replace(CSV, escape="\\", delimiter="\t", null="\\N"),
    replace(CSV, quote="x", delimiter="y", escape="z"),
    replace(CSV, force_quote=True),
    BINARY,
]
MASKS: list[CellMask | None] = [None, b"k", b"", odd(b"k"), NULL_CELL, odd, identity, nothing]

values = st.none() | st.text(st.sampled_from("ab.\\\"'|,;\t\n\r\v\bxyzN€"), max_size=6)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str | None]]:
    columns = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(values, min_size=columns, max_size=columns), max_size=5))


def masked(value: str | None, mask: CellMask | None) -> str | None:
    if value is None or mask is None:
        return value
    if isinstance(mask, bytes):
        return mask.decode()
    if not callable(mask):
        return None
    new = mask(value.encode())
    return None if new is None else new.decode()


@given(st.sampled_from(DIALECTS), tables(), st.data())
def test_masking_equals_the_reference_however_it_is_split(
    copy: Copy, table: list[list[str | None]], data: st.DataObject
) -> None:
    columns = len(table[0]) if table else 2
    cells = data.draw(st.lists(st.sampled_from(MASKS), min_size=columns, max_size=columns))
    write = WRITERS[copy.format]
    if copy.format != "binary" and copy.null == "":
        # An empty text value cannot be told from NULL: both stay what they are. In csv the quotes tell.
        table = [[value or None if copy.format == "text" else value for value in row] for row in table]
    wire = write(copy, table)
    expected = write(copy, [[masked(v, m) for v, m in zip(row, cells, strict=True)] for row in table])
    if copy.force_quote or copy.format != "csv":
        assert run(copy, [identity] * columns, wire) == wire
    assert run(copy, cells, wire) == expected
    assert run(copy, cells, wire, 1) == expected
    assert run(copy, cells, wire, data.draw(st.integers(2, 9))) == expected


@given(st.sampled_from(DIALECTS), st.binary(max_size=80), st.sampled_from([odd, b"k", NULL_CELL]))
def test_garbage_is_a_peer_error_and_nothing_else(copy: Copy, wire: bytes, mask: CellMask) -> None:
    if copy.format == "binary":
        wire = HEADER + wire

    def answer(step: int) -> bytes:
        try:
            return run(copy, [None, mask], wire, step)
        except TargetPeerError:
            return b"refused"

    assert answer(1 << 20) == answer(1)


# -- golden cases ---------------------------------------------------------------------------------------

GOLDEN_TEXT = {
    b"a": b"a",
    rb"\b\f\n\r\t\v": b"\b\f\n\r\t\v",
    rb"\\": b"\\",
    rb"\\N": rb"\N",
    rb"\\n": rb"\n",
    rb"\\\n": b"\\\n",
    "€".encode(): "€".encode(),
    b"": b"",
    b"\x01\x7f": b"\x01\x7f",
}


@pytest.mark.parametrize(("field", "value"), GOLDEN_TEXT.items())
def test_every_escape_of_text(field: bytes, value: bytes) -> None:
    seen: list[bytes] = []

    def note(cell: bytes) -> bytes:
        seen.append(cell)
        return b"seen"

    assert run(TEXT, [None, note, None], b"1\t" + field + b"\t\\N\n") == b"1\tseen\t\\N\n"
    assert seen == [value]
    assert run(TEXT, [None, value, None], b"1\tx\t\\N\n") == b"1\t" + field + b"\t\\N\n"


def test_an_escaped_delimiter_separates_nothing() -> None:
    copy = replace(TEXT, delimiter="|")
    row = rb"a\|b|c\\|d" + b"\n"
    assert run(copy, [odd, None, None], row) == b"a\\|b\\t\\|,\"'\\\\\\n\\r.|c\\\\|d\n"
    assert run(copy, [None, b"k", None], row) == rb"a\|b|k|d" + b"\n"
    assert run(copy, [None, None, b"k"], row) == rb"a\|b|c\\|k" + b"\n"


GOLDEN_CSV = {
    b"a": b"a",
    b"": None,
    b'""': b"",
    b'"a""b"': b'a"b',
    b'"a,b"': b"a,b",
    b'"a\nb\r\n"': b"a\nb\r\n",
    b'"\\."': b"\\.",
    b'""""': b'"',
    b"a\\b": b"a\\b",
}


@pytest.mark.parametrize(("field", "value"), GOLDEN_CSV.items())
def test_every_quote_of_csv(field: bytes, value: bytes | None) -> None:
    seen: list[bytes] = []

    def note(cell: bytes) -> bytes:
        seen.append(cell)
        return b"seen"

    out = b"" if value is None else b"seen"
    assert run(CSV, [None, note, None], b"1," + field + b',"x,y"\n') == b"1," + out + b',"x,y"\n'
    assert seen == ([] if value is None else [value])
    if value is not None:
        assert run(CSV, [None, value, None], b"1,x,\n") == b"1," + field + b",\n"


@pytest.mark.parametrize("copy", [TEXT, CSV], ids=["text", "csv"])
def test_the_header_passes(copy: Copy) -> None:
    comma = copy.delimiter.encode()
    data = comma.join([b"id", b"email"]) + b"\n" + comma.join([b"1", b"x"]) + b"\n"
    expected = comma.join([b"id", b"email"]) + b"\n" + comma.join([b"1", b"k"]) + b"\n"
    for step in (1, 5, 100):
        assert run(replace(copy, header=True), [None, b"k"], data, step) == expected
    assert run(copy, [None, b"k"], data).startswith(comma.join([b"id", b"k"]))


def test_a_header_may_hold_a_newline() -> None:
    data = b'"a\nb",c\n1,2\n'
    assert run(replace(CSV, header=True), [b"k", None], data, 1) == b'"a\nb",c\nk,2\n'


def test_quotes_of_a_new_value_tell_nothing_of_the_old_one() -> None:
    data = b'1,"a,b"\n2,ab\n'
    assert run(CSV, [None, b"k"], data) == b"1,k\n2,k\n"
    assert run(replace(CSV, force_quote=True), [None, b"k"], b'"1","a,b"\n') == b'"1","k"\n'


def test_a_null_string_that_may_be_a_value_is_masked() -> None:
    copy = replace(TEXT, null="alice@example.com")
    assert run(copy, [None, b"k"], b"1\talice@example.com\n2\tbob\n") == b"1\tk\n2\tk\n"
    assert run(copy, [None, NULL_CELL], b"1\tx\n") == b"1\talice@example.com\n"
    # csv writes such a value in quotes, so there the unquoted one is NULL
    copy = replace(CSV, null="alice@example.com")
    assert run(copy, [None, b"k"], b'1,alice@example.com\n2,"alice@example.com"\n') == b"1,alice@example.com\n2,k\n"
    assert run(copy, [None, b"alice@example.com"], b"1,x\n") == b'1,"alice@example.com"\n'


def test_a_null_string_beyond_ascii() -> None:
    copy = replace(CSV, null="ø", encoding="LATIN1")
    assert run(copy, [b"k", None], b"\xf8,1\na,2\n") == b"\xf8,1\nk,2\n"
    assert run(replace(copy, encoding=None), [b"k", None], "ø,1\n".encode()) == "ø,1\n".encode()
    with pytest.raises(TargetPeerError):
        run(replace(copy, encoding="MULE_INTERNAL"), [b"k"], b"")


@pytest.mark.parametrize("encoding", ["SJIS", "big5", "GB18030", "win-936", "Shift_JIS_2004", "UHC", "johab"])
@pytest.mark.parametrize("copy", [TEXT, CSV], ids=["text", "csv"])
def test_encodings_that_hide_backslashes_are_refused(encoding: str, copy: Copy) -> None:
    with pytest.raises(TargetPeerError):
        CopyMask(copy, [b"k"], 1, encoding)
    with pytest.raises(TargetPeerError):
        CopyMask(replace(copy, encoding=encoding), [b"k"], 1, "UTF8")
    assert CopyMask(copy, [None], 1, encoding).feed(b"\x8f\x5c") == b"\x8f\x5c"
    CopyMask(replace(BINARY, encoding=encoding), [b"k"], 1, "UTF8")


REFUSED: dict[str, tuple[Copy, Cells, bytes]] = {
    "a column more": (TEXT, [b"k"], b"1\t2\n"),
    "a column less": (TEXT, [b"k", None], b"1\n"),
    "csv with a column more": (CSV, [b"k"], b"1,2\n"),
    "an end in a row": (TEXT, [b"k"], b"1\n2"),
    "an end in quotes": (CSV, [b"k"], b'"1\n'),
    "a quote in a field": (CSV, [odd], b'a"b"\n'),
    "something behind a quote": (CSV, [odd, None], b'"a"b,"c,"\n'),
    "no signature": (BINARY, [b"k"], b"PGCOPX" + bytes(20)),
    "critical flags": (BINARY, [b"k"], HEADER[:11] + b"\x00\x01\x00\x00" + bytes(4) + b"\xff\xff"),
    "a long extension": (BINARY, [b"k"], HEADER[:15] + b"\x00\x01\x00\x01"),
    "another count": (BINARY, [b"k"], HEADER + pack(">hi", 2, -1)),
    "a length below -1": (BINARY, [b"k"], HEADER + pack(">hi", 1, -2)),
    "no trailer": (BINARY, [b"k"], HEADER + pack(">hi", 1, -1)),
    "a trailer too early": (BINARY, [b"k"], HEADER + pack(">hhi", -1, 1, -1)),
    "nothing at all": (BINARY, [b"k"], b""),
    "an unknown format": (replace(TEXT, format="unknown"), [b"k"], b""),
    "a newline as quote": (replace(CSV, quote="\n"), [b"k"], b""),
    "a long delimiter": (replace(TEXT, delimiter="ab"), [b"k"], b""),
    "a backslash as delimiter": (replace(TEXT, delimiter="\\"), [b"k"], b""),
    "a delimiter that escapes": (replace(CSV, escape=","), [b"k"], b""),
}


@pytest.mark.parametrize(("copy", "cells", "data"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_told_for_certain_is_refused(copy: Copy, cells: Cells, data: bytes) -> None:
    for step in (1, 1 << 20):
        with pytest.raises(TargetPeerError):
            run(copy, cells, data, step)


def test_another_number_of_columns_than_announced() -> None:
    with pytest.raises(TargetPeerError):
        CopyMask(TEXT, [b"k", None], 3, "UTF8")


def test_bytes_behind_the_trailer() -> None:
    mask = CopyMask(BINARY, [b"k"], 1, "UTF8")
    assert mask.feed(HEADER + b"\xff\xff") == HEADER + b"\xff\xff"
    assert mask.feed(b"") == b""
    with pytest.raises(TargetPeerError):
        mask.feed(b"\x00")


def test_flags_and_an_extension_that_may_be_skipped() -> None:
    header = HEADER[:11] + pack(">II", 1, 3) + b"ext"
    data = header + pack(">hi", 1, 1) + b"x" + b"\xff\xff"
    expected = header + pack(">hi", 1, 2) + b"kk" + b"\xff\xff"
    assert run(BINARY, [b"kk"], data, 1) == run(BINARY, [b"kk"], data) == expected


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("copy", [TEXT, CSV, BINARY], ids=["text", "csv", "binary"])
def test_a_row_is_kept_up_to_the_limit(monkeypatch: pytest.MonkeyPatch, copy: Copy, extra: int) -> None:
    monkeypatch.setattr(copy_module, "ROW_LIMIT", 1000)
    size = 1000 + extra
    mask = CopyMask(copy, [b"k"], 1, "UTF8")
    if copy is BINARY:
        mask.feed(HEADER)
        row = pack(">hi", 1, size - 6) + b"x" * (size - 7)  # one byte is still to come
    else:
        row = (b'"' if copy is CSV else b"x") + b"\n" * (copy is CSV) + b"x" * (size - 1 - (copy is CSV))
    if extra > 0:
        with pytest.raises(TargetPeerError):
            for at in range(0, len(row), 7):
                mask.feed(row[at : at + 7])
    else:
        for at in range(0, len(row), 7):
            assert mask.feed(row[at : at + 7]) == b""


@pytest.mark.parametrize("copy", [TEXT, CSV, BINARY], ids=["text", "csv", "binary"])
def test_a_row_leaves_with_its_last_byte(copy: Copy) -> None:
    mask = CopyMask(copy, [b"k", None], 2, "UTF8")
    first, second = WRITERS[copy.format](copy, [["a", None]] * 2), WRITERS[copy.format](copy, [["a", None]])
    size = len(first) - len(second)
    start = len(HEADER) if copy is BINARY else 0
    assert [bool(mask.feed(first[at : at + 1])) for at in range(start + size)] == [False] * (start + size - 1) + [True]


def test_no_mask_passes_the_very_same_bytes() -> None:
    data = b"anything at all"
    assert run(replace(TEXT, format="unknown"), [None, None], data) == data
    assert run(TEXT, [], b"\n\n") == b"\n\n"


# -- messages -------------------------------------------------------------------------------------------


def message(payload: bytes) -> bytes:
    return b"d" + pack(">I", len(payload) + 4) + payload


def payloads(wire: bytes) -> list[bytes]:
    out = []
    at = 0
    while at < len(wire):
        (length,) = unpack_from(">I", wire, at + 1)
        assert wire[at] == ord("d")
        out.append(wire[at + 5 : at + 1 + length])
        at += 1 + length
    return out


def test_messages_hold_one_row_each() -> None:
    mask = CopyMask(TEXT, [b"k", None], 2, "UTF8")
    wire = message(b"a\t1\n") + message(b"b\t") + message(b"2\nc\t3\nd")
    assert payloads(mask.feed_messages(wire)) == [b"k\t1\n", b"k\t2\n", b"k\t3\n"]
    assert mask.feed_messages(message(b"\t")) == b""
    assert payloads(mask.feed_messages(message(b"4\n"))) == [b"k\t4\n"]
    assert CopyMask(TEXT, [None, None], 2, "UTF8").feed_messages(wire) is wire


def test_a_binary_header_comes_with_the_first_row() -> None:
    row = pack(">hi", 1, 1) + b"x"
    mask = CopyMask(BINARY, [None, b"k"][1:], 1, "UTF8")
    assert mask.feed_messages(message(HEADER)) == b""
    new = pack(">hi", 1, 1) + b"k"
    assert payloads(mask.feed_messages(message(row) + message(row + b"\xff\xff"))) == [HEADER + new, new, b"\xff\xff"]
    empty = CopyMask(BINARY, [b"k"], 1, "UTF8")
    assert payloads(empty.feed_messages(message(HEADER + b"\xff\xff"))) == [HEADER + b"\xff\xff"]


@pytest.mark.parametrize("wire", [b"D\x00\x00\x00\x04", b"d\x00\x00\x00\x03", b"d\x00\x00\x00\x09abc", b"d\x00"])
def test_messages_that_are_none(wire: bytes) -> None:
    with pytest.raises(TargetPeerError):
        CopyMask(TEXT, [b"k"], 1, "UTF8").feed_messages(wire)


# -- real servers ---------------------------------------------------------------------------------------

ODD_VALUES = [
    "",
    "a",
    "\\N",
    "\\.",
    "\\",
    "a\tb",
    "a|b",
    "a\nb",
    "a\r\nb",
    '"',
    "'",
    '""a,""',
    "\b\f\v\x01\x7f",
    "€ü",
    "N",
]
ODD_VALUES += ["NULL", " a ", "x" * 9000, "\\\\", "a\\", "\\n", ",", ";", "''", "\\'", "x\\y"]
OPTIONS: dict[str, Copy] = {
    "format text": TEXT,
    "format text, delimiter '|'": replace(TEXT, delimiter="|"),
    "format text, delimiter ',', null '\\|'": replace(TEXT, delimiter=",", null="\\|"),
    "format text, header": replace(TEXT, header=True),
    "format csv": CSV,
    "format csv, header, delimiter ';', null 'NULL'": replace(CSV, header=True, delimiter=";", null="NULL"),
    "format csv, quote '''', escape '\\'": replace(CSV, quote="'", escape="\\"),
    "format csv, escape '\\', delimiter E'\\t'": replace(CSV, escape="\\", delimiter="\t"),
    "format csv, force_quote *": replace(CSV, force_quote=True),
    "format csv, quote 'a', escape 'b', delimiter 'x'": replace(CSV, quote="a", escape="b", delimiter="x"),
    "format binary": BINARY,
}


@pytest.fixture(scope="module", params=["postgres15", "postgres18"])
def connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    server: PostgresServer = request.getfixturevalue(request.param)
    with server.connect() as connection:
        connection.execute('create temporary table odd (id int, v text, "w\nx" text)')
        with connection.cursor() as cursor:
            pairs = [(None, None), *zip(ODD_VALUES, reversed(ODD_VALUES), strict=True), ("z", None)]
            cursor.executemany("insert into odd values (%s, %s, %s)", [(n, v, w) for n, (v, w) in enumerate(pairs)])
        yield connection


def copy_out(connection: psycopg.Connection[tuple[object, ...]], query: str, options: str) -> list[bytes]:
    with connection.cursor() as cursor, cursor.copy(f"copy ({query}) to stdout ({options})".encode()) as copy:
        return [bytes(data) for data in copy]


@pytest.mark.peer
@pytest.mark.parametrize("options", OPTIONS)
def test_masked_copies_are_what_the_server_would_write(
    connection: psycopg.Connection[tuple[object, ...]], options: str
) -> None:
    """The mask adds odd characters; the server is asked to do the same, and both must give the same bytes."""
    copy = OPTIONS[options]
    sent = copy_out(connection, 'select id, v, "w\nx" from odd order by id', options)
    added = "E'\\t|,\"\\'\\\\\\n\\r.'"
    expected = copy_out(connection, f'select id, v || {added} as v, "w\nx" from odd order by id', options)
    constant = copy_out(
        connection, f'select id, case when v is not null then {added} end as v, "w\nx" from odd order by id', options
    )
    nulls = copy_out(connection, 'select id, null as v, "w\nx" from odd order by id', options)
    whole = b"".join(sent)
    for step in (1, 3, 1000, len(whole)):
        assert run(copy, [None, odd, None], whole, step) == b"".join(expected)
        assert run(copy, [None, odd(b""), None], whole, step) == b"".join(constant)
    assert run(copy, [None, NULL_CELL, None], whole) == b"".join(nulls)
    assert run(copy, [identity, identity, identity], whole) == whole
    mask = CopyMask(copy, [None, odd, None], 3, "UTF8")
    wire = b"".join(message(payload) for payload in sent)
    assert payloads(mask.feed_messages(wire)) == expected


@pytest.mark.peer
def test_a_single_column(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    for options, copy in OPTIONS.items():
        whole = b"".join(copy_out(connection, "select v from odd order by id", options))
        assert run(copy, [identity], whole, 5) == whole
        expected = b"".join(copy_out(connection, "select repeat(v, 2) as v from odd order by id", options))
        assert run(copy, [lambda value: value * 2], whole) == expected


@pytest.mark.peer
def test_a_table_without_rows(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    for options, copy in OPTIONS.items():
        whole = b"".join(copy_out(connection, "select v from odd where false", options))
        assert run(copy, [b"k"], whole) == whole
