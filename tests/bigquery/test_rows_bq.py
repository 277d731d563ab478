"""Rows of BigQuery under masks: every masked value gone, everything else equal, and nothing unread passes."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.bigquery import rows as rows_module
from protocols.bigquery import schema as schema_module
from protocols.bigquery.rows import FORM_ROWS_LIMIT, mask_rows
from protocols.bigquery.schema import (
    Field,
    Stamps,
    Unreadable,
    columns,
    leaves,
    of_result,
    of_table,
    read_schema,
    select,
    unknown,
)
from proxy.core import warehouse
from proxy.core.events import NULL_CELL, CellMask, Column
from proxy.core.http.heads import BadRequest
from proxy.core.verdict import Mask
from proxy.masking import masker
from proxy.masking.cells import column_mask, detector_mask
from proxy.masking.patterns import BUILT_IN
from proxy.masking.warehouse import PATTERN_LIMIT, FieldPatterns, check_path, compile_path, is_path

KEY = b"k" * 32
TYPES = sorted(set(schema_module._SAME) - {"RECORD", "STRUCT"})


def field(name: str, kind: str = "STRING", mode: str = "NULLABLE", *fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "type": kind, "mode": mode}
    return found | {"fields": list(fields)} if fields else found


def schema(*fields: dict[str, Any]) -> tuple[Field, ...]:
    return read_schema({"fields": list(fields)})


def row(*values: Any) -> dict[str, Any]:
    return {"f": [{"v": value} for value in values]}


def rewritten(
    rows: list[Any], fields: tuple[Field, ...], cells: Sequence[CellMask | None], stamps: Stamps = "float"
) -> Any:
    return json.loads(mask_rows(json.dumps(rows).encode(), fields, cells, stamps))


def chosen(fields: tuple[Field, ...], *masks: Mask, stamps: Stamps = "float") -> list[CellMask | None]:
    """The cell masks that the gate would choose for table p.d.t: by name first, then detectors."""
    compiled = masker.Compiled(tuple(mask for mask in masks if mask.detectors), KEY, BUILT_IN)
    patterns = FieldPatterns(masks)
    found: list[CellMask | None] = []
    for column in columns(fields, of_table("p", "d", "t", fields), stamps):
        mask = patterns.covering(column)
        if mask is not None:
            found.append(column_mask(mask, column, KEY))
        elif compiled.texts is not None:
            found.append(detector_mask(compiled.texts, compiled.numbers, compiled.custom, column))
        else:
            found.append(None)
    return found


def hidden(fields: tuple[Field, ...], values: list[Any], *masks: Mask, stamps: Stamps = "float") -> list[Any]:
    """One row's values as the user sees them."""
    after = rewritten([row(*values)], fields, chosen(fields, *masks, stamps=stamps), stamps)
    return [cell["v"] for cell in after[0]["f"]]


# -- values that still decode -------------------------------------------------------------------------

SAMPLES: dict[str, tuple[str, str]] = {
    "STRING": ("alice@example.org", "[redacted]"),
    "BYTES": ("c2VjcmV0", base64.b64encode(b"[redacted]").decode()),
    "INTEGER": ("42", "0"),
    "INT64": ("-42", "0"),
    "FLOAT": ("1.5E-7", "0.0"),
    "FLOAT64": ("-Infinity", "0.0"),
    "NUMERIC": ("1.23", "0"),
    "DECIMAL": ("1.23", "0"),
    "BIGNUMERIC": ("-99999999999999999999.5", "0"),
    "BIGDECIMAL": ("7", "0"),
    "BOOLEAN": ("true", "false"),
    "BOOL": ("true", "false"),
    "TIMESTAMP": ("1.767323045123456E9", "0"),
    "DATE": ("2026-01-02", "1970-01-01"),
    "TIME": ("10:11:12.5", "00:00:00"),
    "DATETIME": ("2026-01-02T10:11:12", "1970-01-01T00:00:00"),
    "GEOGRAPHY": ("POINT(-122.35 47.62)", "GEOMETRYCOLLECTION EMPTY"),
    "JSON": ('{"a": 1}', '"[redacted]"'),
    "INTERVAL": ("1-2 3 4:5:6", "0-0 0 0:0:0"),
    "RANGE": ("[2026-01-01, UNBOUNDED)", "[UNBOUNDED, UNBOUNDED)"),
}


def test_every_type_has_a_sample() -> None:
    assert sorted(SAMPLES) == TYPES


@pytest.mark.parametrize("kind", TYPES)
def test_a_redacted_value_decodes_as_its_type(kind: str) -> None:
    value, zero = SAMPLES[kind]
    mask = Mask("hide", columns=("p.d.t.x",))
    text = kind in ("STRING", "BYTES", "JSON")
    assert hidden(schema(field("x", kind)), [value], mask) == [zero if text else None]
    assert hidden(schema(field("x", kind, "REQUIRED")), [value], mask) == [zero]
    assert hidden(schema(field("x", kind, "REPEATED")), [[{"v": value}] * 2], mask) == [[{"v": zero}] * 2]
    assert hidden(schema(field("x", kind)), [None], mask) == [None]


@pytest.mark.parametrize("kind", TYPES)
def test_null_is_null_only_where_it_decodes(kind: str) -> None:
    value, zero = SAMPLES[kind]
    mask = Mask("hide", columns=("p.d.t.x",), action="null")
    empty = {"STRING": "", "BYTES": "", "JSON": "null"}.get(kind, zero)
    assert hidden(schema(field("x", kind)), [value], mask) == [None]
    assert hidden(schema(field("x", kind, "REQUIRED")), [value], mask) == [empty]
    assert hidden(schema(field("x", kind, "REPEATED")), [[{"v": value}] * 2], mask) == [[]]
    # One element alone cannot be NULL.
    gone: list[CellMask | None] = [lambda cell: None]
    after = rewritten([row([{"v": value}])], schema(field("x", kind, "REPEATED")), gone)
    assert after == [row([{"v": empty}])]


@pytest.mark.parametrize(
    ("stamps", "value", "zero"),
    [
        ("float", "1.767323045123456E9", "0"),  # and a reader of microseconds has it right, too
        ("integer", "1767323045123456", "0"),
        ("iso", "2026-01-02T03:04:05.123456789012Z", "1970-01-01T00:00:00Z"),
    ],
)
def test_a_time_keeps_the_form_that_was_asked_for(stamps: Stamps, value: str, zero: str) -> None:
    fields = schema(field("at", "TIMESTAMP", "REQUIRED"), field("id", "STRING"))
    assert hidden(fields, [value, "7"], Mask("h", columns=("t.at",)), stamps=stamps) == [zero, "7"]


def test_actions_work_on_texts_and_on_the_bytes_behind_base64() -> None:
    fields = schema(field("s"), field("b", "BYTES"))
    values = ["4111222233334444", base64.b64encode(b"4111222233334444").decode()]
    last4 = hidden(fields, values, Mask("h", columns=("t.*",), action="partial"))
    assert last4[0] == "************4444"
    assert base64.b64decode(last4[1]) == b"************4444"
    digest = hidden(fields, values, Mask("h", columns=("t.*",), action="hash"))
    assert base64.b64decode(digest[1]).decode() == digest[0] != values[0]


def test_json_stays_json() -> None:
    fields = schema(field("j", "JSON"))
    document = json.dumps({"mail": "alice@example.org", "n": 1})
    whole = hidden(fields, [document], Mask("h", columns=("t.j",), action="constant", text="{}"))
    assert json.loads(whole[0]) == {}
    inside = hidden(fields, [document], Mask("h", detectors=("email",)))
    assert json.loads(inside[0]) == {"mail": "[redacted]", "n": 1}


# -- depth --------------------------------------------------------------------------------------------

NESTED = schema(
    field("id", "INTEGER", "REQUIRED"),
    field("addr", "RECORD", "NULLABLE", field("zip"), field("city")),
    field(
        "orders",
        "STRUCT",
        "REPEATED",
        field("sum", "NUMERIC", "REQUIRED"),
        field("tags", "STRING", "REPEATED"),
        field("to", "RECORD", "NULLABLE", field("zip"), field("lines", "STRING", "REPEATED")),
    ),
)
ROWS = [
    row(
        "1",
        row("10115", "Berlin"),
        [
            {"v": row("9.5", [{"v": "a"}, {"v": "b"}], row("8001", [{"v": "x"}]))},
            {"v": row("0.5", [], None)},
        ],
    ),
    row("2", None, []),
    row("3", row(None, "Rome"), [{"v": row("1", [{"v": "c"}], row(None, []))}]),
]


def test_a_path_names_a_field_at_any_depth() -> None:
    after = rewritten(ROWS, NESTED, chosen(NESTED, Mask("h", columns=("p.d.t.orders.to.zip",))))
    expected = json.loads(json.dumps(ROWS).replace('"8001"', '"[redacted]"'))
    assert after == expected
    after = rewritten(ROWS, NESTED, chosen(NESTED, Mask("h", columns=("p.d.t.orders.tags", "p.d.t.addr.zip"))))
    text = json.dumps(ROWS)
    for value in ("a", "b", "c", "10115"):
        text = text.replace(f'"{value}"', '"[redacted]"')
    assert after == json.loads(text)


def test_a_record_is_masked_with_all_that_lies_below() -> None:
    after = json.dumps(rewritten(ROWS, NESTED, chosen(NESTED, Mask("h", columns=("p.d.t.orders",)))))
    assert not any(f'"{value}"' in after for value in ("9.5", "0.5", "a", "b", "c", "8001", "x"))
    assert all(f'"{value}"' in after for value in ("1", "2", "3", "10115", "Berlin", "Rome"))


def test_detectors_look_at_any_depth() -> None:
    text = json.dumps(ROWS).replace('"x"', '"write to bob@example.org"').replace('"b"', '"eve@example.org"')
    after = json.dumps(rewritten(json.loads(text), NESTED, chosen(NESTED, Mask("h", detectors=("email",)))))
    assert "example.org" not in after
    assert '"write to [redacted]"' in after
    assert after.replace("write to [redacted]", "x").replace("[redacted]", "b") == json.dumps(ROWS)


def test_detectors_look_behind_base64_and_at_numbers() -> None:
    fields = schema(field("b", "BYTES"), field("n", "INT64"), field("q", "INT64", "REQUIRED"), field("s", "TIMESTAMP"))
    card = "4111111111111111"
    values = [base64.b64encode(b"mail bob@example.org").decode(), card, card, card]
    mask = Mask("h", detectors=("email", "card"))
    after = hidden(fields, values, mask, stamps="integer")
    assert base64.b64decode(after[0]) == b"mail [redacted]"
    assert after[1:] == [None, "0", card]  # of a time no digits are a card's


# -- what does not fit its schema ---------------------------------------------------------------------

TWO = schema(field("id", "INTEGER"), field("mail"))
KEEP_MAIL: list[CellMask | None] = [NULL_CELL, None]


@pytest.mark.parametrize(
    "text",
    [
        '[{"f":[{"v":"1"}]}]',
        '[{"f":[{"v":"1"},{"v":"a"},{"v":"b"}]}]',
        '[{"f":[{},{"v":"a"}]}]',
        '[{"f":[{"v":"1","w":"x"},{"v":"a"}]}]',
        '[{"f":[{"v":"1"},{"v":"a"}],"g":1}]',
        '[{"f":[{"v":"1"},{"V":"a"}]}]',
        '[{"f":[{"v":1},{"v":"a"}]}]',
        '[{"f":[{"v":"1"},{"v":["a"]}]}]',
        '[{"f":[{"v":"1"},{"v":{"f":[]}}]}]',
        '[{"f":[{"v":"1"},{"v":{"v":"a"}}]}]',
        '[{"f":{"v":"1"}}]',
        '[{"f":null}]',
        "[{}]",
        "[null]",
        "[[]]",
        "{}",
        "null",
        '"a"',
        "[",
        "",
        '[{"f":[{"v":"1"},{"v":"a"}]}] ,',
        '[{"f":[{"v":"1"},{"v":"\\ud800"}]}]',
        '[{"f":[{"v":"alice"},{"v":"1"}]}]',  # the columns changed places
    ],
)
def test_a_row_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(Unreadable) as caught:
        mask_rows(text.encode(), TWO, KEEP_MAIL)
    assert "alice" not in str(caught.value)


def test_bytes_that_are_no_utf8_are_refused() -> None:
    with pytest.raises(Unreadable):
        mask_rows(b'[{"f":[{"v":"1"},{"v":"\xff"}]}]', TWO, KEEP_MAIL)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_masks_of_another_schema_are_refused(count: int) -> None:
    with pytest.raises(Unreadable, match="another schema"):
        mask_rows(b"[]", TWO, [None] * count)


@pytest.mark.parametrize("kind", sorted(set(TYPES) - {"STRING", "JSON"}))
def test_a_value_of_another_type_is_refused(kind: str) -> None:
    fields = schema(field("x", kind), field("y"))
    with pytest.raises(Unreadable):
        mask_rows(json.dumps([row("alice@example.org", "y")]).encode(), fields, [None, NULL_CELL])
    with pytest.raises(Unreadable):
        inner = schema(field("r", "RECORD", "REPEATED", field("x", kind, "REPEATED")), field("y"))
        mask_rows(json.dumps([row([{"v": row([{"v": "a@b"}])}], "y")]).encode(), inner, [None, NULL_CELL])


def test_forms_are_held_against_the_first_rows() -> None:
    good, bad = row("1", "a"), row("x", "a")
    for place in (FORM_ROWS_LIMIT - 2, FORM_ROWS_LIMIT - 1):
        with pytest.raises(Unreadable):
            mask_rows(json.dumps([good] * place + [bad]).encode(), TWO, KEEP_MAIL)
    # Behind them a masked value is replaced, whatever it is.
    assert rewritten([good] * FORM_ROWS_LIMIT + [bad], TWO, KEEP_MAIL)[-1] == row(None, "a")


def test_bytes_that_are_no_base64_are_refused_in_every_row() -> None:
    cells: list[CellMask | None] = [lambda cell: cell]
    with pytest.raises(Unreadable, match="base64"):
        rewritten([row("YQ==")] * FORM_ROWS_LIMIT + [row("a@b")], schema(field("b", "BYTES")), cells)


# -- schemas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"fields": None},
        {"fields": {}},
        {"fields": ["a"]},
        {"fields": [{"type": "STRING"}]},
        {"fields": [{"name": "", "type": "STRING"}]},
        {"fields": [{"name": "a.b", "type": "STRING"}]},
        {"fields": [{"name": 1, "type": "STRING"}]},
        {"fields": [{"name": "a"}]},
        {"fields": [{"name": "a", "type": "FOREIGN"}]},
        {"fields": [{"name": "a", "type": "VECTOR"}]},
        {"fields": [{"name": "a", "type": 1}]},
        {"fields": [{"name": "a", "type": "STRING", "mode": "MANY"}]},
        {"fields": [{"name": "a", "type": "STRING", "mode": 1}]},
        {"fields": [{"name": "a", "type": "RECORD"}]},
        {"fields": [{"name": "a", "type": "RECORD", "fields": []}]},
        {"fields": [{"name": "a", "type": "RECORD", "fields": {}}]},
        {"fields": [{"name": "a", "type": "STRING", "fields": [{"name": "b", "type": "STRING"}]}]},
        {"fields": [{"name": "a", "type": "STRING"}, {"name": "A", "type": "STRING"}]},
    ],
)
def test_a_schema_that_is_not_understood_is_refused(value: Any) -> None:
    with pytest.raises(Unreadable):
        read_schema(value)


def test_a_schema_may_be_empty_and_modes_and_types_have_their_defaults() -> None:
    assert read_schema({}) == ()
    assert read_schema({"fields": [{"name": "a", "type": "int64"}]}) == (Field("a", "INTEGER", "NULLABLE"),)
    assert read_schema({"fields": [{"name": "a", "type": "bool", "mode": "required"}]}) == (
        Field("a", "BOOLEAN", "REQUIRED"),
    )


def test_limits_of_a_schema() -> None:
    def deep(levels: int) -> dict[str, Any]:
        return field("a") if levels == 0 else field("a", "RECORD", "NULLABLE", deep(levels - 1))

    assert [path for path, _ in leaves(schema(deep(schema_module.DEPTH_LIMIT)))] == [("a",) * 16]
    with pytest.raises(Unreadable, match="deeper"):
        schema(deep(schema_module.DEPTH_LIMIT + 1))
    assert len(schema(field("a" * 300))) == 1
    with pytest.raises(Unreadable):
        schema(field("a" * 301))


@pytest.mark.parametrize("nested", [False, True])
def test_limit_of_fields(monkeypatch: pytest.MonkeyPatch, nested: bool) -> None:
    monkeypatch.setattr(schema_module, "FIELDS_LIMIT", 5)
    many = [field(f"c{place}") for place in range(6)]
    if nested:
        many = [field("r", "RECORD", "NULLABLE", *many[1:])]  # the record counts as well
        assert len(schema(field("r", "RECORD", "NULLABLE", *many[0]["fields"][1:]))[0].fields) == 4
    else:
        assert len(schema(*many[1:])) == 5
    with pytest.raises(Unreadable, match="more than"):
        schema(*many)


def test_selected_fields_keep_the_order_of_the_table() -> None:
    assert select(NESTED, ()) == NESTED
    assert [each.name for each in select(NESTED, ("ID", "orders"))] == ["id", "orders"]
    assert [path for path, _ in leaves(select(NESTED, ["id", "addr.zip", "orders.to.zip"]))] == [
        ("id",),
        ("addr", "zip"),
        ("orders", "to", "zip"),
    ]
    for wrong in (["orders", "id"], ["id", "id"], ["addr", "addr.zip"], ["nope"], ["id.x"], ["addr.nope"], [""],
                  ["addr.city", "addr.zip"], ["addr.zip", "orders", "addr.city"]):  # fmt: skip
        with pytest.raises(BadRequest):
            select(NESTED, wrong)


def test_a_column_of_unknown_origin_says_so() -> None:
    assert {each.origins for each in columns(NESTED, unknown)} == {None}
    origins = [each.origins for each in columns(NESTED, of_table("p", "d", "t$20260101", NESTED))]
    assert origins[:3] == [("p.d.t.id",), ("p.d.t.addr.zip",), ("p.d.t.addr.city",)]


def test_the_lineage_of_a_query_decides_field_by_field() -> None:
    users, view = warehouse.TableName("p", "d", "users"), warehouse.TableName("p", "d", "V")

    def column(bare: bool, table: Any, *path: str, **more: Any) -> Any:
        return warehouse.ResultColumn("x", (warehouse.Origin(table, path),), bare, **more)

    built = warehouse.ResultColumn(
        "made",
        fields=(
            warehouse.ResultColumn("zip", (warehouse.Origin(users, ("id",)),), True),
            warehouse.ResultColumn("city", (warehouse.Origin(users, ("addr", "zip")),)),
        ),
    )
    record = ("RECORD", "NULLABLE", field("zip"), field("city"))
    fields = schema(field("a", *record), field("b"), field("made", *record), *map(field, "vcnz"))
    traced = [
        column(True, users, "addr"),
        column(False, users, "addr"),
        built,
        column(True, view, "nick"),
        warehouse.ResultColumn("c"),
        warehouse.ResultColumn("n", taint="an opaque script"),
    ]
    found = columns(fields, of_result(traced, {"p.d.v": ("p.d.users",)}))
    assert [(each.name, each.origins) for each in found] == [
        ("a.zip", ("p.d.users.addr.zip",)),
        ("a.city", ("p.d.users.addr.city",)),
        ("b", ("p.d.users.addr.*",)),
        ("made.zip", ("p.d.users.id",)),
        ("made.city", ("p.d.users.addr.zip.*",)),
        ("v", ("p.d.V.nick", "p.d.users.*")),
        ("c", ()),
        ("n", None),
        ("z", None),  # more columns than anyone told of
    ]
    patterns = FieldPatterns([Mask("h", columns=("p.d.users.addr.zip",))])
    hit = [each.name for each in found if patterns.covering(each) is not None]
    assert hit == ["a.zip", "b", "made.city", "v", "n", "z"]


# -- patterns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "origin", "covered"),
    [
        ("p.d.t.mail", "p.d.t.mail", True),
        ("p.d.t.mail", "p.d.t.MAIL", True),
        ("P.d.t.Mail", "p.D.t.mail", True),
        ("p.d.t.mail", "p.d.t.mail2", False),
        ("p.d.t.mail", "p.d.u.mail", False),
        ("p.d.t.mail", "q.d.t.mail", False),
        ("p.d.t.addr", "p.d.t.addr.zip", True),
        ("p.d.t.addr.zip", "p.d.t.addr.zip", True),
        ("p.d.t.addr.zip", "p.d.t.addr.city", False),
        # A value that is that field has nothing below; one that may hold anything of it has.
        ("p.d.t.addr.zip", "p.d.t.addr", False),
        ("p.d.t.addr.zip", "p.d.t.addr.*", True),
        ("p.d.t.addr.zip", "p.d.t.*", True),
        ("p.d.t.addr.zip", "p.d.t", True),
        ("p.d.t.addr.zip", "p.d", True),
        ("p.d.t.addr.zip", "p.d.u.*", False),
        ("p.d.t.addr.zip", "p.d.t.name.*", False),
        ("*.*.*.*.zip", "p.d.t.id", False),
        ("*.*.*.*.zip", "p.d.t.addr.zip", True),
        ("*.*.*.mail", "p.d.t.mail", True),
        ("*.mail", "p.d.t.mail", True),
        ("t.mail", "p.d.t.mail", True),
        ("d.t.mail", "p.d.t.mail", True),
        ("d.t.mail", "p.e.t.mail", False),
        ("p.d.t_?.m*l", "p.d.t_1.mail", True),
        ("p.d.t.mail", "p.d.t$20260101.mail", True),
        ("p.d.t.mail", "p.d.t@0.mail", True),
        ("p.d.events_2026.mail", "p.d.events_*.mail", True),
        ("p.d.events_*.mail", "p.d.ev*.mail", True),
        ("p.d.*_2026.mail", "p.d.events_*.mail", True),
        ("p.d.users.mail", "p.d.events_*.mail", False),
        ("p.d.t.mail", "..t.mail", True),
        ("example.com:p.d.t.mail", "example.com:p.d.t.mail", True),
        ("*.d.t.mail", "example.com:p.d.t.mail", True),
        ("d.t.mail", "example.com:p.d.t.mail", True),
        ("p.d.t.a:b", "p.d.t.a:b", True),
        ("p.d.t.*", "p.d.t.a:b", True),
        ("p.d.t.a:b", "p.d.t.a:b.x.y", True),
        ("p.d.t.mail", "p.d.t.a:b", False),
    ],
)
def test_patterns(pattern: str, origin: str, covered: bool) -> None:
    assert check_path(pattern) is None
    assert compile_path(pattern).covers(origin) == covered


@pytest.mark.parametrize(
    "pattern", ["mail", "", "p.d..mail", "p.d.t.", ".a.b.c", 'p.d."t".mail', "p.d.`t`.mail", ".".join("a" * 20)]
)
def test_bad_patterns(pattern: str) -> None:
    assert check_path(pattern) is not None


def test_limits_of_patterns() -> None:
    assert check_path("a." * 18 + "a") is None
    for size, fine in ((PATTERN_LIMIT - 1, True), (PATTERN_LIMIT, True), (PATTERN_LIMIT + 1, False)):
        assert (check_path("t." + "a" * (size - 2)) is None) == fine


def test_the_first_mask_covers_what_nobody_knows_the_origin_of() -> None:
    masks = (Mask("a", detectors=("email",)), Mask("b", columns=("t.x",)), Mask("c", columns=("t.y", "t.z")))
    patterns = FieldPatterns(masks)
    assert patterns.covering(Column("x", None)) is masks[1]
    assert patterns.covering(Column("x", ("p.d.t.q", "p.d.t.z"))) is masks[2]
    assert patterns.covering(Column("x", ())) is None
    assert FieldPatterns(masks[:1]).covering(Column("x", None)) is None
    assert [FieldPatterns(some).speaks for some in ((), masks[:1], masks)] == [False, False, True]


def test_what_can_only_be_a_path_of_a_warehouse() -> None:
    assert [is_path(each) for each in ("t.c", "s.t.c", "p.d.t.c", "p.d.t.c.n")] == [False, False, True, True]


# -- properties ---------------------------------------------------------------------------------------

CANARY = "C4n4ry"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES: dict[str, st.SearchStrategy[str]] = {
    "STRING": TEXTS.map(lambda text: f"{CANARY}{text}"),
    "BYTES": st.binary(max_size=6).map(lambda data: base64.b64encode(CANARY.encode() + data).decode()),
    "JSON": TEXTS.map(lambda text: json.dumps([f"{CANARY}{text}"])),
    "INTEGER": st.integers(1, 10**15).map(str),
    "FLOAT": st.integers(1, 10**15).map(lambda number: f"{number}.5"),
    "TIMESTAMP": st.integers(1, 10**15).map(lambda number: f"{number}.5E9"),
    "DATE": st.just("7777-01-02"),
    "BOOLEAN": st.just("true"),
}
MODES = st.sampled_from(["NULLABLE", "REQUIRED", "REPEATED"])


def _fields(depth: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    plain = st.tuples(st.sampled_from(sorted(VALUES)), MODES).map(lambda pair: field("", *pair))
    if depth:
        plain |= st.tuples(MODES, _fields(depth - 1)).map(lambda pair: field("", "RECORD", pair[0], *pair[1]))
    return st.lists(plain, min_size=1, max_size=3).map(
        lambda found: [each | {"name": f"n{place}"} for place, each in enumerate(found)]
    )


def _row(draw: st.DrawFn, fields: tuple[Field, ...]) -> dict[str, Any]:
    return row(*(_value(draw, each) for each in fields))


def _value(draw: st.DrawFn, each: Field) -> Any:
    def single() -> Any:
        return draw(VALUES[each.type]) if each.type != "RECORD" else _row(draw, each.fields)

    if each.mode == "REPEATED":
        return [{"v": single()} for _ in range(draw(st.integers(0, 3)))]
    return None if each.mode == "NULLABLE" and draw(st.booleans()) else single()


@st.composite
def _pages(draw: st.DrawFn) -> tuple[tuple[Field, ...], list[Any], list[bool]]:
    fields = schema(*draw(_fields(2)))
    rows = [_row(draw, fields) for _ in range(draw(st.integers(0, 4)))]
    width = len(list(leaves(fields)))
    return fields, rows, draw(st.lists(st.booleans(), min_size=width, max_size=width))


def _leaf_values(value: Any, fields: tuple[Field, ...]) -> list[list[Any]]:
    """For each leaf all its values of one row, in their order; a list of other lengths shows as another structure."""
    found: list[list[Any]] = []
    for cell, each in zip(value["f"], fields, strict=True):
        inner = cell["v"] if each.mode == "REPEATED" else [cell]
        if each.type != "RECORD":
            found.append([element["v"] for element in inner])
            continue
        width = len(list(leaves(each.fields)))
        below: list[list[Any]] = [[] for _ in range(width)]
        for element in inner:
            if element["v"] is not None:
                for place, values in enumerate(_leaf_values(element["v"], each.fields)):
                    below[place].append(values)
        found += below
    return found


def _flat(value: Any) -> list[Any]:
    return [each for inner in value for each in _flat(inner)] if isinstance(value, list) else [value]


@settings(max_examples=150, deadline=None)
@given(_pages(), st.sampled_from(["redact", "partial", "hash", "null"]))
def test_masked_values_are_gone_and_all_else_is_equal(
    page: tuple[tuple[Field, ...], list[Any], list[bool]], action: Any
) -> None:
    fields, rows, wanted = page
    mask = Mask("h", columns=("*.*.*.*",), action=action)
    cells = [
        column_mask(mask, column, KEY) if chosen_here else None
        for column, chosen_here in zip(columns(fields, unknown), wanted, strict=True)
    ]
    after = rewritten(rows, fields, cells)
    assert len(after) == len(rows)
    for old, new in zip(rows, after, strict=True):
        pairs = zip(_leaf_values(old, fields), _leaf_values(new, fields), wanted, leaves(fields), strict=True)
        for before, now, is_masked, (_, leaf) in pairs:
            if not is_masked:
                assert now == before
                continue
            zero = leaf.zero("float")
            for value in _flat(now):
                assert value is None or value == zero or leaf.type in ("STRING", "BYTES", "JSON")
                shown = base64.b64decode(value).decode("utf-8", "replace") if leaf.type == "BYTES" and value else value
                assert value is None or CANARY not in shown
                assert leaf.mode == "NULLABLE" or value is not None
            if action != "null":  # as many elements as before; a list that is NULL is an empty one
                assert len(_flat(now)) == len(_flat(before))


@settings(max_examples=100, deadline=None)
@given(_pages(), st.binary(max_size=40), st.data())
def test_garbage_is_refused_or_read(
    page: tuple[tuple[Field, ...], list[Any], list[bool]], noise: bytes, data: st.DataObject
) -> None:
    fields, rows, _ = page
    text = json.dumps(rows).encode()
    at = data.draw(st.integers(0, len(text)))
    cells: list[CellMask | None] = [NULL_CELL] * len(list(leaves(fields)))
    try:
        after = mask_rows(text[:at] + noise + text[at + len(noise) :], fields, cells)
    except Unreadable:
        return
    assert CANARY.encode() not in after


def test_compiled_schemas_are_kept_and_limited() -> None:
    assert rows_module._compile(TWO, frozenset()) is rows_module._compile(
        schema(field("id", "INTEGER"), field("mail")), frozenset()
    )
    assert rows_module._compile.cache_info().maxsize == rows_module.COMPILED_LIMIT
