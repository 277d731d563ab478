"""rows.py: rewriting against an obvious reference, counting, and the display text against the server's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import error as StructError
from struct import pack, unpack_from

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq

from protocols.postgres import rows
from protocols.postgres.display import ARRAY_ITEMS_LIMIT, CELL_DISPLAY_LIMIT, show_cell
from protocols.postgres.rows import count_rows, first_rows, rewrite_rows
from proxy.core.errors import TargetPeerError
from proxy.core.events import NULL_CELL, CellMask
from tests.peers.postgres import PostgresServer

Row = tuple[bytes | None, ...]
Cells = Sequence[CellMask | None]


def encode(table: Sequence[Row]) -> bytes:
    out = b""
    for row in table:
        body = pack(">H", len(row))
        for cell in row:
            body += pack(">i", -1) if cell is None else pack(">i", len(cell)) + cell
        out += b"D" + pack(">I", len(body) + 4) + body
    return out


def reference(table: Sequence[Row], cells: Cells) -> bytes:
    """What rewrite_rows is to do, cell by cell."""

    def masked(cell: bytes | None, mask: CellMask | None) -> bytes | None:
        if cell is None or mask is None:
            return cell
        if isinstance(mask, bytes):
            return mask
        return mask(cell) if callable(mask) else None

    return encode([tuple(masked(cell, mask) for cell, mask in zip(row, cells, strict=True)) for row in table])


@pytest.fixture(params=["loops", "generated"])
def walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both walks must do the same; which one runs is a matter of size."""
    kind: str = request.param
    monkeypatch.setattr(rows, "GENERATE_MINIMUM_BYTES", 0 if kind == "generated" else 1 << 60)
    return kind


def reverse(cell: bytes) -> bytes:
    return cell[::-1]


def identity(cell: bytes) -> bytes:
    return bytes(bytearray(cell))  # equal, but not the same object


def empty_to_null(cell: bytes) -> bytes | None:
    return cell * 2 or None


MASKS: list[CellMask | None] = [None, b"", b"***", b"\x00" * 8, NULL_CELL, reverse, identity, empty_to_null]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Row], list[CellMask | None]]:
    columns = draw(st.integers(1, 9))
    cell = st.none() | st.binary(max_size=9)
    table = draw(st.lists(st.tuples(*[cell] * columns), max_size=6))
    return table, draw(st.lists(st.sampled_from(MASKS), min_size=columns, max_size=columns))


@given(tables())
def test_rewriting_equals_the_reference(case: tuple[list[Row], list[CellMask | None]]) -> None:
    table, cells = case
    wire, expected = encode(table), reference(table, cells)
    for minimum in (0, 1 << 60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "GENERATE_MINIMUM_BYTES", minimum)
            assert rewrite_rows(wire, cells) == expected


@given(tables(), st.data())
def test_garbage_is_a_peer_error_and_nothing_else(
    case: tuple[list[Row], list[CellMask | None]], data: st.DataObject
) -> None:
    table, cells = case
    wire = bytearray(encode(table))
    for _ in range(data.draw(st.integers(1, 3))):
        if wire:
            wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
    cut = bytes(wire[: data.draw(st.integers(0, len(wire)))])
    answers = set()
    for minimum in (0, 1 << 60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "GENERATE_MINIMUM_BYTES", minimum)
            try:
                answers.add(rewrite_rows(cut, cells))
            except TargetPeerError:
                answers.add(b"refused")
    assert len(answers) == 1


def test_no_mask_passes_the_very_same_bytes() -> None:
    wire = encode([(b"1", None)])
    assert rewrite_rows(wire, [None, None]) is wire
    assert rewrite_rows(b"", [b"x", None]) == b""


@pytest.mark.usefixtures("walk")
def test_null_stays_null_and_is_not_asked_about() -> None:
    asked: list[bytes] = []

    def note(cell: bytes) -> bytes:
        asked.append(cell)
        return b"masked"

    table: list[Row] = [(None, b"a"), (b"", b"b"), (b"x", None)]
    assert rewrite_rows(encode(table), [note, None]) == encode([(None, b"a"), (b"masked", b"b"), (b"masked", None)])
    assert asked == [b"", b"x"]
    assert rewrite_rows(encode(table), [None, b"k"]) == encode([(None, b"k"), (b"", b"k"), (b"x", None)])
    assert rewrite_rows(encode(table), [NULL_CELL, None]) == encode([(None, b"a"), (None, b"b"), (None, None)])


@pytest.mark.usefixtures("walk")
def test_cells_come_as_bytes() -> None:
    seen: list[type] = []

    def note(cell: bytes) -> bytes:
        seen.append(type(cell))
        return cell

    rewrite_rows(encode([(b"1", b"2")]), [note, note])
    assert seen == [bytes, bytes]


@pytest.mark.usefixtures("walk")
@pytest.mark.parametrize("position", [0, 1, 4, 5, 6, 30, 63])
@pytest.mark.parametrize("mask", [b"constant", reverse])
def test_wide_rows(position: int, mask: CellMask) -> None:
    table: list[Row] = [
        tuple(b"%d-%d" % (number, column) if column % 7 else None for column in range(64)) for number in range(3)
    ]
    cells: list[CellMask | None] = [None] * 64
    cells[position] = mask
    assert rewrite_rows(encode(table), cells) == reference(table, cells)


@pytest.mark.usefixtures("walk")
def test_more_masks_than_are_generated() -> None:
    columns = rows.GENERATED_MASKS_LIMIT + 1
    for count in (columns - 2, columns - 1, columns):
        table: list[Row] = [tuple(b"%d" % column for column in range(count))] * 2
        cells: list[CellMask | None] = [b"x" if column % 2 else reverse for column in range(count)]
        assert rewrite_rows(encode(table), cells) == reference(table, cells)


ROW = encode([(b"12", b"345")])
MALFORMED = {
    "cut in the cell": ROW[:-1],
    "cut in the length": ROW[:10],
    "cut in the head": ROW[:3],
    "a byte behind": ROW + b"\x00",
    "another message": ROW.replace(b"D", b"C"),
    "one column less": encode([(b"12",)]),
    "one column more": encode([(b"12", b"345", b"6")]),
    "no columns": encode([()]) + ROW,
    "a length below -1": ROW.replace(pack(">i", 2), pack(">i", -2)),
    "a masked length below -1": ROW.replace(pack(">i", 3), pack(">i", -2)),
    "a cell over the end of its row": ROW.replace(pack(">i", 3), pack(">i", 4)) + ROW,
    "a cell that ends before its row": ROW.replace(pack(">i", 3), pack(">i", 2)) + ROW,
    "a cell over the end of everything": ROW.replace(pack(">i", 3), pack(">i", 0x7FFFFFFF)),
    "a message length of 0": b"D" + bytes(4) + ROW[5:],
    "a negative message length": b"D\xff\xff\xff\xf0" + ROW[5:],
    "a message length over the end": b"D" + pack(">I", 99) + ROW[5:],
    "a message length too short": b"D" + pack(">I", 12) + ROW[5:] + ROW,
}


@pytest.mark.usefixtures("walk")
@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("mask", [b"constant", reverse, NULL_CELL], ids=["constant", "function", "null"])
def test_malformed_rows_are_refused(wire: bytes, mask: CellMask) -> None:
    for cells in ([None, mask], [mask, mask]):
        with pytest.raises(TargetPeerError):
            rewrite_rows(wire, cells)
        with pytest.raises(TargetPeerError):
            rewrite_rows(ROW + wire, cells)


@pytest.mark.usefixtures("walk")
def test_no_function_sees_what_is_not_a_cell() -> None:
    seen: list[bytes] = []

    def note(cell: bytes) -> bytes:
        seen.append(cell)
        return cell

    with pytest.raises(TargetPeerError):
        rewrite_rows(MALFORMED["a cell over the end of its row"], [None, note])
    assert seen == []


@pytest.mark.usefixtures("walk")
def test_a_mask_that_raises_is_not_swallowed() -> None:
    def fail(cell: bytes) -> bytes:
        raise ValueError("broken")

    def fail_as_if_at_the_end(cell: bytes) -> bytes:
        raise StructError("broken")

    with pytest.raises(ValueError, match="broken"):
        rewrite_rows(ROW, [None, fail])
    with pytest.raises(TargetPeerError):
        rewrite_rows(ROW, [None, fail_as_if_at_the_end])


# -- counting -------------------------------------------------------------------------------------------


def test_counting_stops_where_rows_end() -> None:
    wire = ROW * 3
    assert count_rows(wire, 0) == (len(wire), 3)
    assert count_rows(memoryview(wire), len(ROW)) == (len(wire), 2)
    assert count_rows(b"", 0) == (0, 0)
    assert count_rows(wire, len(wire)) == (len(wire), 0)
    assert count_rows(wire + b"C\x00\x00\x00\x0dSELECT 3\x00", 0) == (len(wire), 3)
    assert count_rows(b"Z\x00\x00\x00\x05I" + wire, 0) == (0, 0)
    assert count_rows(encode([()]) * 2, 0) == (14, 2)


@given(st.integers(0, 3), st.integers(0, 3), st.data())
def test_counting_survives_any_cut(before: int, after: int, data: st.DataObject) -> None:
    wire = b"S" * before + ROW * after
    cut = data.draw(st.integers(before, len(wire)))
    whole = (cut - before) // len(ROW)
    assert count_rows(wire[:cut], before) == (before + whole * len(ROW), whole)


@pytest.mark.parametrize("length", [0, 3, 4, 5, -1])
def test_a_length_that_no_row_has(length: int) -> None:
    with pytest.raises(TargetPeerError):
        count_rows(ROW + b"D" + pack(">i", length) + ROW, 0)


# -- display --------------------------------------------------------------------------------------------


def test_first_rows_decode_at_most_so_many() -> None:
    wire = encode([(b"a", None, pack(">i", 7)), ("ü".encode(), b"", pack(">i", -7)), (b"c", b"", b"")])
    columns = [(25, False), (25, False), (23, True)]
    assert first_rows(wire, 2, columns) == (("a", None, "7"), ("ü", "", "-7"))
    assert first_rows(wire, 9, columns)[2] == ("c", "", "\\x")
    assert first_rows(wire, 0, columns) == ()
    assert first_rows(wire, 1, []) == (("a", None, "\x00\x00\x00\x07"),)
    assert first_rows(encode([(b"\xfc",)]), 1, [(25, False)], "latin-1") == (("ü",),)
    assert first_rows(encode([(b"\xfc",)]), 1, [(25, False)]) == (("\ufffd",),)
    assert first_rows(encode([(b"\xfc",)]), 1, [(25, False)], "no such encoding") == (("ü",),)


@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED.keys())
def test_first_rows_never_raise(wire: bytes) -> None:
    shown = first_rows(ROW + wire, 9, [(25, False), (25, False)])
    assert shown[0] == ("12", "345")


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_cell_is_cut_at_the_limit(extra: int) -> None:
    count = CELL_DISPLAY_LIMIT + extra
    cut = "€" * CELL_DISPLAY_LIMIT + ("…" if extra > 0 else "")
    assert show_cell("€".encode() * count, 25, False) == cut[: count + (extra > 0)]
    assert show_cell(b"\x01" + "€".encode() * count, 3802, True) == cut[: count + (extra > 0)]
    items = pack(">iiIii", 1, 0, 23, ARRAY_ITEMS_LIMIT + extra, 1) + pack(">ii", 4, 1) * (ARRAY_ITEMS_LIMIT + extra)
    assert len(show_cell(items, 1007, True)) == CELL_DISPLAY_LIMIT + 1
    assert show_cell(b"\xab" * count, 17, True) == "\\x" + "ab" * 99 + "…"


@given(st.sampled_from(sorted(range(10, 6000))), st.binary(max_size=40))
def test_odd_data_never_raises(type_oid: int, data: bytes) -> None:
    assert isinstance(show_cell(data, type_oid, True), str)


@given(st.sampled_from([16, 20, 650, 869, 1007, 1009, 1082, 1114, 1186, 1266, 1560, 1700, 2950, 3802]), st.data())
def test_odd_binary_data_never_raises(type_oid: int, data: st.DataObject) -> None:
    head = data.draw(
        st.sampled_from([b"", pack(">iiI", 1, 0, 23), pack(">iiI", 2, 0, 1007), pack(">HhHH", 9, 9, 0, 2)])
    )
    shown = show_cell(head + data.draw(st.binary(max_size=60)), type_oid, True)
    assert len(shown) <= CELL_DISPLAY_LIMIT + 1


def test_nested_arrays_do_not_recurse() -> None:
    cell = b""
    for _ in range(5000):
        cell = pack(">iiIiii", 1, 0, 1007, 1, 1, len(cell)) + cell
    assert show_cell(cell, 1007, True).startswith("\\x")


@pytest.fixture(scope="module", params=["postgres15", "postgres18"])
def connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    server: PostgresServer = request.getfixturevalue(request.param)
    with server.connect() as connection:
        connection.execute(b"set timezone to 'UTC'; set datestyle to 'ISO'; set lc_monetary to 'C'")
        yield connection


SHOWN: list[tuple[str, list[str]]] = [
    ("bool", ["t", "f"]),
    ("int2", ["-32768", "32767"]),
    ("int4", ["0", "-2147483648"]),
    ("int8", ["9223372036854775807", "-1"]),
    ("oid", ["4294967295"]),
    ("float4", ["0", "-0", "1", "0.1", "1e6", "999999", "1.5e-5", "0.0001", "3.4028235e38", "1e-45", "NaN"]),
    ("float4", ["-Infinity", "16777216", "123456.7", "1234567.8"]),
    ("float8", ["0", "-0", "1", "0.1", "1e15", "1e14", "123456789012345680", "1e-5", "0.0001", "5e-324", "NaN"]),
    ("float8", ["1.7976931348623157e308", "Infinity", "-1234.5678", "100", "1e100"]),
    ("numeric", ["0", "0.00", "-1.50", "12345678901234567890.123456789", "0.0001", "0.00000000012", "10000"]),
    ("numeric", ["100000000", "NaN", "Infinity", "-Infinity", "1e30", "-0.5", "9999.9999", "1.10"]),
    ("text", ["", "ü\n\\"]),
    ("bytea", ["\\x", "\\x00ff41"]),
    ("uuid", ["123e4567-e89b-12d3-a456-426614174000"]),
    ("date", ["2000-01-01", "1999-12-31", "0001-01-01", "9999-12-31", "infinity", "-infinity"]),
    ("time", ["00:00:00", "23:59:59.999999", "24:00:00", "12:00:00.5"]),
    ("timetz", ["12:00:00+00", "12:00:00.25-08", "12:00:00+05:30", "12:00:00+05:30:15"]),
    ("timestamp", ["2024-02-29 12:34:56.789", "1970-01-01 00:00:00", "infinity", "1583-01-01 23:59:59.000001"]),
    ("timestamptz", ["2024-02-29 12:34:56.789+02", "-infinity", "1999-12-31 23:59:59-00"]),
    ("interval", ["0", "1 year 2 mons -3 days 04:05:06.7", "-1 year -2 mons +3 days -04:05:06", "1 mon"]),
    ("interval", ["-1 day", "-00:00:01", "1 day -00:00:01", "-1 mon +1 day", "1 year", "100:00:00"]),
    ("json", ['{"a": [1]}']),
    ("jsonb", ['{"a": [1]}', "null"]),
    ("inet", ["10.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"]),
    ("cidr", ["10.0.0.0/8", "10.0.0.1/32", "::/0"]),
    ("macaddr", ["08:00:2b:01:02:03"]),
    ("macaddr8", ["08:00:2b:01:02:03:04:05"]),
    ("bit(5)", ["10110"]),
    ("varbit", ["", "1", "101100111"]),
    ("pg_lsn", ["16/B374D848", "0/0"]),
    ("tid", ["(4294967295,65535)"]),
    ("xid", ["7"]),
    ("int4[]", ["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={1,2}", "[2:2][3:4]={{5,6}}"]),
    ("text[]", ['{"",a,"b c","q\\"b\\\\s","NULL",NULL,"x,y","{}"}', "{ü}"]),
    ("numeric[]", ["{1.50,NaN}"]),
    ("timestamptz[]", ['{"2024-02-29 12:34:56+00"}']),
    ("bool[]", ["{t,f}"]),
    ("jsonb[]", ['{"{\\"a\\": 1}"}']),
    ("int2vector", ["1 2"]),
]
AS_ARRAY = {"int2vector": "[0:1]={1,2}"}  # shown as the array it is


@pytest.mark.peer
@pytest.mark.parametrize(("type_name", "values"), SHOWN)
def test_binary_cells_are_shown_as_the_server_writes_them(
    connection: psycopg.Connection[tuple[object, ...]], type_name: str, values: list[str]
) -> None:
    for value in values:
        text = f"select $1::text::{type_name}".encode()
        written = connection.pgconn.exec_params(text, [value.encode()], result_format=0)
        assert written.status == pq.ExecStatus.TUPLES_OK, written.error_message.decode()
        sent = connection.pgconn.exec_params(text, [value.encode()], result_format=1)
        image, expected = sent.get_value(0, 0), written.get_value(0, 0)
        assert image is not None
        assert expected is not None
        assert show_cell(image, sent.ftype(0), True) == AS_ARRAY.get(type_name, expected.decode())


@pytest.mark.peer
def test_real_rows_are_rewritten(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """What libpq takes apart again is what was put in: rows as a server sends them, through a real parser."""
    masks: list[tuple[Callable[[bytes], bytes | None], int]] = [(reverse, 1)]
    result = connection.pgconn.exec_params(
        b"select i, 'user' || i || '@example.com', nullif(i % 3, 0), repeat('x', i) from generate_series(1, 500) i", []
    )
    table = [tuple(result.get_value(number, column) for column in range(4)) for number in range(result.ntuples)]
    wire = encode(table)
    for function, position in masks:
        cells: list[CellMask | None] = [None] * 4
        cells[position] = function
        out = rewrite_rows(wire, cells)
        assert out == reference(table, cells)
        assert count_rows(out, 0) == (len(out), 500)
        assert unpack_from(">H", out, 5) == (4,)
