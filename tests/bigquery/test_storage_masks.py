"""Masks over rows of the Storage API: every type, nested and repeated, in Arrow and in Avro, decoded by libraries."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import sys
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as some

from protocols.bigquery.schema import Unreadable, columns, leaves, of_table
from protocols.bigquery.storage_arrow import ArrowRows
from protocols.bigquery.storage_avro import AvroRows
from proxy.core.events import NULL_CELL, CellMask, Command
from proxy.core.verdict import Mask
from proxy.masking.masker import Masking

UTC = datetime.UTC
DAY = datetime.date(2026, 1, 2)
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
ROW: dict[str, Any] = {
    "s": "p1@example.org", "i": 42, "f": 1.5, "b": True, "y": b"ab", "n": decimal.Decimal("1.230000000"),
    "big": decimal.Decimal("1.5" + 37 * "0"), "d": DAY, "t": datetime.time(1, 2, 3),
    "ts": MOMENT, "dt": MOMENT.replace(tzinfo=None), "j": '{"a": 1}', "g": "POINT(1 2)",
    "addr": {"zip": "zip1", "tags": ["x", "y"], "in": [{"k": "k1", "v": 1}]}, "names": ["n1", "n2"], "ids": [1, 2],
    "must": "m1", "must_i": 7,
}  # fmt: skip
EMPTY: dict[str, Any] = {**dict.fromkeys(ROW), "names": [], "ids": [], "must": "m2", "must_i": 8}
EXTENSION = "ARROW:extension:name"


def arrow_schema() -> pa.Schema:
    inner = pa.struct([pa.field("k", pa.string()), pa.field("v", pa.int64())])
    addr = [pa.field("zip", pa.string()), pa.field("tags", pa.list_(pa.string())), pa.field("in", pa.list_(inner))]
    return pa.schema([
        pa.field("s", pa.string()), pa.field("i", pa.int64()), pa.field("f", pa.float64()), pa.field("b", pa.bool_()),
        pa.field("y", pa.binary()), pa.field("n", pa.decimal128(38, 9)), pa.field("big", pa.decimal256(76, 38)),
        pa.field("d", pa.date32()), pa.field("t", pa.time64("us")), pa.field("ts", pa.timestamp("us", "UTC")),
        pa.field("dt", pa.timestamp("us")), pa.field("j", pa.string(), metadata={EXTENSION: "google:sqlType:json"}),
        pa.field("g", pa.string(), metadata={EXTENSION: "google:sqlType:geography"}),
        pa.field("addr", pa.struct(addr)), pa.field("names", pa.list_(pa.string())),
        pa.field("ids", pa.list_(pa.int64())), pa.field("must", pa.string(), nullable=False),
        pa.field("must_i", pa.int64(), nullable=False),
    ])  # fmt: skip


def avro_schema() -> dict[str, Any]:
    def field(name: str, kind: Any, nullable: bool = True) -> dict[str, Any]:
        return {"name": name, "type": ["null", kind] if nullable else kind}

    def number(precision: int, scale: int) -> dict[str, Any]:
        return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}

    inner = {"type": "record", "name": "inner", "fields": [field("k", "string"), field("v", "long")]}
    addr = {"type": "record", "name": "addr", "fields": [
        field("zip", "string"), field("tags", {"type": "array", "items": "string"}, False),
        field("in", {"type": "array", "items": inner}, False),
    ]}  # fmt: skip
    return {"type": "record", "name": "__root__", "fields": [
        field("s", "string"), field("i", "long"), field("f", "double"), field("b", "boolean"), field("y", "bytes"),
        field("n", number(38, 9)), field("big", number(76, 38)), field("d", {"type": "int", "logicalType": "date"}),
        field("t", {"type": "long", "logicalType": "time-micros"}),
        field("ts", {"type": "long", "logicalType": "timestamp-micros"}),
        field("dt", {"type": "string", "sqlType": "DATETIME"}), field("j", {"type": "string", "sqlType": "JSON"}),
        field("g", {"type": "string", "sqlType": "GEOGRAPHY"}), field("addr", addr),
        field("names", {"type": "array", "items": "string"}, False),
        field("ids", {"type": "array", "items": "long"}, False),
        field("must", "string", False), field("must_i", "long", False),
    ]}  # fmt: skip


class Arrow:
    """Rows in Arrow, with pyarrow at both ends."""

    def __init__(self) -> None:
        self.schema = arrow_schema()
        self.reader = ArrowRows(self.schema.serialize().to_pybytes())

    def write(self, rows: list[dict[str, Any]], compression: str | None = None) -> bytes:
        batch = pa.RecordBatch.from_pylist(rows, schema=self.schema)
        options = pa.ipc.IpcWriteOptions(compression=compression)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, self.schema, options=options) as writer:
            writer.write_batch(batch)
        reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
        reader.read_next_message()
        written: bytes = reader.read_next_message().serialize().to_pybytes()
        return written

    def read(self, data: bytes) -> list[dict[str, Any]]:
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), self.schema)
        batch.validate(full=True)
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows


class Avro:
    """Rows in Avro, with fastavro at both ends."""

    def __init__(self) -> None:
        self.schema = fastavro.parse_schema(avro_schema())
        self.reader = AvroRows(json.dumps(avro_schema()))

    def write(self, rows: list[dict[str, Any]]) -> bytes:
        out = io.BytesIO()
        for row in rows:
            fastavro.schemaless_writer(out, self.schema, _for_avro(row))
        return out.getvalue()

    def read(self, data: bytes) -> list[dict[str, Any]]:
        source, rows = io.BytesIO(data), []
        while source.tell() < len(data):
            row = dict(fastavro.schemaless_reader(source, self.schema, None))  # type: ignore[arg-type]
            if row["dt"] is not None:
                row["dt"] = datetime.datetime.fromisoformat(row["dt"])
            rows.append(row)
        return rows


def _for_avro(row: dict[str, Any]) -> dict[str, Any]:
    found = dict(row)
    if found["dt"] is not None:
        found["dt"] = found["dt"].isoformat()
    return found


FORMS: list[Any] = [Arrow, Avro]


def masks(form: Any, chosen: dict[str, CellMask]) -> list[CellMask | None]:
    paths = [".".join(path) for path, _ in leaves(form.reader.schema)]
    assert set(chosen) <= set(paths), paths
    return [chosen.get(path) for path in paths]


@pytest.mark.parametrize("form", FORMS)
def test_types_are_known(form: Any) -> None:
    known = {".".join(path): (field.type, field.mode) for path, field in leaves(form().reader.schema)}
    assert known == {
        "s": ("STRING", "NULLABLE"), "i": ("INTEGER", "NULLABLE"), "f": ("FLOAT", "NULLABLE"),
        "b": ("BOOLEAN", "NULLABLE"), "y": ("BYTES", "NULLABLE"), "n": ("NUMERIC", "NULLABLE"),
        "big": ("BIGNUMERIC", "NULLABLE"), "d": ("DATE", "NULLABLE"), "t": ("TIME", "NULLABLE"),
        "ts": ("TIMESTAMP", "NULLABLE"), "dt": ("DATETIME", "NULLABLE"), "j": ("JSON", "NULLABLE"),
        "g": ("GEOGRAPHY", "NULLABLE"), "addr.zip": ("STRING", "NULLABLE"), "addr.tags": ("STRING", "REPEATED"),
        "addr.in.k": ("STRING", "NULLABLE"), "addr.in.v": ("INTEGER", "NULLABLE"), "names": ("STRING", "REPEATED"),
        "ids": ("INTEGER", "REPEATED"), "must": ("STRING", "REQUIRED"), "must_i": ("INTEGER", "REQUIRED"),
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_column_is_masked_and_decodes(form: Any) -> None:
    """By the real masker: text is replaced, all else is NULL or zero, NULL stays NULL, lists keep their lengths."""
    made = form()
    found = columns(made.reader.schema, of_table("p", "d", "t", made.reader.schema))
    plan = Masking(b"k" * 32).plan((Mask("hide", ("p.d.t.*",)),), Command("bigquery", "read_rows", "read", ""), found)
    assert plan is not None
    before = made.write([ROW, EMPTY])
    after = made.read(made.reader.mask(before, plan.cells))
    nothing = dict.fromkeys(name for name, value in ROW.items() if not isinstance(value, str | bytes | list | dict))
    x = "[redacted]"
    assert after[0] == {
        **nothing, "s": x, "y": x.encode(), "j": f'"{x}"', "g": None, "names": [x, x], "ids": [0, 0], "must": x,
        "must_i": 0, "addr": {"zip": x, "tags": [x, x], "in": [{"k": x, "v": None}]},
    }  # fmt: skip
    assert after[1] == {**EMPTY, "must": x, "must_i": 0, **({"names": [], "ids": []})}
    assert not [
        word for word in (b"p1@", b"zip1", b"n1", b"k1", b"POINT") if word in made.reader.mask(before, plan.cells)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_what_no_mask_speaks_of_stays(form: Any) -> None:
    made = form()
    rows = [ROW, EMPTY, ROW]
    chosen = masks(made, {"s": b"S", "addr.in.k": NULL_CELL, "names": lambda cell: cell.upper()})
    before, after = made.read(made.write(rows)), made.read(made.reader.mask(made.write(rows), chosen))
    for was, row in zip(before, after, strict=True):
        wanted = dict(was)
        wanted["s"] = None if was["s"] is None else "S"
        wanted["names"] = [each.upper() for each in was["names"]]
        if was["addr"] is not None:
            wanted["addr"] = {**was["addr"], "in": [{**each, "k": None} for each in was["addr"]["in"]]}
        assert row == wanted
    assert made.reader.mask(made.write(rows), [None] * len(chosen)) == made.write(rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [".".join(path) for path, _ in leaves(Arrow().reader.schema)])
def test_each_type_alone(form: Any, name: str) -> None:
    """A function that lets go of nothing; one that gives NULL; a constant."""
    made = form()
    data = made.write([ROW, EMPTY])
    plain = made.read(data)
    for mask in (lambda cell: None, NULL_CELL, b"c"):
        after = made.read(made.reader.mask(data, masks(made, {name: mask})))
        top = name.partition(".")[0]
        assert [{**row, top: 0} for row in after] == [{**row, top: 0} for row in plain]
        assert after[0][top] != plain[0][top]
    assert made.read(made.reader.mask(data, masks(made, {name: lambda cell: cell}))) == plain


@given(some.lists(some.tuples(some.none() | some.text(), some.lists(some.text(), max_size=3)), max_size=20))
def test_any_text_is_masked(values: list[tuple[str | None, list[str]]]) -> None:
    for form in (ARROW, AVRO):
        rows = [{**EMPTY, "s": text, "names": names} for text, names in values]
        reverse = masks(form, {"s": lambda cell: b"<" + cell + b">", "names": lambda cell: b"<" + cell + b">"})
        after = form.read(form.reader.mask(form.write(rows), reverse))
        assert [(row["s"], row["names"]) for row in after] == [
            (None if text is None else f"<{text}>", [f"<{each}>" for each in names]) for text, names in values
        ]


ARROW, AVRO = Arrow(), Avro()


@given(some.binary(max_size=200), some.integers(0, 300))
def test_garbage_is_refused(noise: bytes, place: int) -> None:
    for form in (ARROW, AVRO):
        data = form.write([ROW, EMPTY])
        broken = data[:place] + noise + data[place + len(noise) :]
        chosen = masks(form, {"s": b"S", "names": b"N", "addr.zip": b"Z"})
        for each in (noise, broken, data[:-1]):
            try:
                form.reader.mask(each, chosen)
            except Unreadable as error:
                assert "p1@example.org" not in str(error)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_buffers_are_read(compression: str) -> None:
    after = ARROW.read(ARROW.reader.mask(ARROW.write([ROW] * 100, compression), masks(ARROW, {"s": b"S"})))
    assert {row["s"] for row in after} == {"S"}


@pytest.mark.parametrize(
    "kind", [pa.dictionary(pa.int8(), pa.string()), pa.large_string(), pa.map_(pa.string(), pa.string())]
)
def test_types_that_nobody_reads_are_refused_in_arrow(kind: pa.DataType) -> None:
    with pytest.raises(Unreadable, match="type that masks do not read"):
        ArrowRows(pa.schema([pa.field("x", kind)]).serialize().to_pybytes())


@pytest.mark.parametrize(
    "kind", ["x", {"type": "map", "values": "string"}, ["string", "long"], ["null", "string", "long"], {"type": "enum"}]
)
def test_types_that_nobody_reads_are_refused_in_avro(kind: Any) -> None:
    with pytest.raises(Unreadable, match=r"type that masks do not read|union of more"):
        AvroRows(json.dumps({"type": "record", "name": "r", "fields": [{"name": "x", "type": kind}]}))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"type": "record"}', '{"type": "record", "fields": [{}]}', "[" * 9999]
)
def test_broken_schemas_are_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        AvroRows(text)
    with pytest.raises(Unreadable):
        ArrowRows(text.encode())


def test_masks_of_other_columns_are_refused() -> None:
    for form in (ARROW, AVRO):
        with pytest.raises(Unreadable, match="not of these columns"):
            form.reader.mask(form.write([ROW]), [b"x"])


def test_a_gateway_without_pyarrow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unreadable, match="lacks pyarrow"):
        ArrowRows(ARROW.schema.serialize().to_pybytes())


@pytest.mark.parametrize("nullable", [True, False])
def test_intervals_are_masked(nullable: bool) -> None:
    """Avro has them as text; here they are months, days and nanoseconds."""
    schema = pa.schema([pa.field("v", pa.month_day_nano_interval(), nullable=nullable)])
    batch = pa.record_batch([pa.array([(1, 2, 3), (4, 5, 6)], pa.month_day_nano_interval())], schema=schema)
    reader = ArrowRows(schema.serialize().to_pybytes())
    assert reader.schema[0].type == "INTERVAL"
    data = reader.mask(batch.serialize().to_pybytes(), [NULL_CELL])
    made = pa.ipc.read_record_batch(pa.py_buffer(data), schema).column(0).to_pylist()
    assert made == [None if nullable else pa.MonthDayNano([0, 0, 0])] * 2
