"""What the columns of a table are shown as where it is scanned: by mask, type and mode; as the masks of results do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.bigquery.schema import Schema, read_schema
from proxy.core.verdict import Mask
from proxy.masking.warehouse_scan import FIELDS_LIMIT, WarehouseScans, literal, replacements
from proxy.policy.bigquery import analyse
from proxy.policy.bigquery_lex import string_value, tokens_of
from proxy.policy.bigquery_rewrite import rewrite

TABLE = "p.d.t"


def schema(*fields: dict[str, Any]) -> Schema:
    return read_schema({"fields": list(fields)})


def field(name: str, kind: str = "STRING", mode: str = "NULLABLE", *fields: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "type": kind, "mode": mode, **({"fields": list(fields)} if fields else {})}


def mask(*columns: str, **more: Any) -> Mask:
    return Mask("m", columns=columns or ("*.*.*.c",), **more)


def shown(one: Mask, *fields: dict[str, Any]) -> list[str] | None:
    found = replacements((one,), TABLE, schema(*fields))
    return None if found is None else [each.expression for each in found]


@pytest.mark.parametrize(
    ("kind", "one", "expected"),
    [
        ("STRING", mask(), "'[redacted]'"),
        ("STRING", mask(text="gone"), "'gone'"),
        ("STRING", mask(action="constant", text="it's"), r"'it\'s'"),
        ("STRING", mask(action="null"), "CAST(NULL AS STRING)"),
        ("STRING", mask(action="hash"), None),
        ("STRING", mask(action="partial", keep=0), "REPEAT('*', LEAST(CHAR_LENGTH(gatecast_row.`c`), 4096))"),
        ("STRING", mask(action="partial", keep=2),
         "IF(CHAR_LENGTH(gatecast_row.`c`) >= 4, CONCAT(REPEAT('*', LEAST(CHAR_LENGTH(gatecast_row.`c`) - 2, 4096)), "
         "SUBSTR(gatecast_row.`c`, -2)), REPEAT('*', LEAST(CHAR_LENGTH(gatecast_row.`c`), 4096)))"),
        ("BYTES", mask(), "CAST('[redacted]' AS BYTES)"),
        ("BYTES", mask(action="partial"), None),
        ("BYTES", mask(action="null"), "CAST(NULL AS BYTES)"),
        ("JSON", mask(), "PARSE_JSON('\"[redacted]\"')"),
        ("JSON", mask(action="constant", text='{"a": 1}'), "PARSE_JSON('{\"a\": 1}')"),
        ("JSON", mask(action="constant", text="NaN"), "PARSE_JSON('\"NaN\"')"),
        ("JSON", mask(action="partial"), None),
        ("JSON", mask(action="null"), "CAST(NULL AS JSON)"),
        ("INTEGER", mask(), "CAST(NULL AS INT64)"),
        ("INT64", mask(action="hash"), "CAST(NULL AS INT64)"),
        ("FLOAT", mask(action="partial"), "CAST(NULL AS FLOAT64)"),
        ("BOOLEAN", mask(), "CAST(NULL AS BOOL)"),
        ("NUMERIC", mask(action="constant", text="1"), "CAST(NULL AS NUMERIC)"),
        ("BIGNUMERIC", mask(), "CAST(NULL AS BIGNUMERIC)"),
        ("TIMESTAMP", mask(), "CAST(NULL AS TIMESTAMP)"),
        ("DATE", mask(), "CAST(NULL AS DATE)"),
        ("TIME", mask(), "CAST(NULL AS TIME)"),
        ("DATETIME", mask(), "CAST(NULL AS DATETIME)"),
        ("GEOGRAPHY", mask(), "CAST(NULL AS GEOGRAPHY)"),
        ("INTERVAL", mask(), "CAST(NULL AS INTERVAL)"),
        ("RANGE", mask(), None),
    ],
)  # fmt: skip
def test_a_column_by_its_type(kind: str, one: Mask, expected: str | None) -> None:
    assert shown(one, field("a", "INTEGER"), field("c", kind)) == (None if expected is None else ["", expected])


@pytest.mark.parametrize(
    ("kind", "one", "expected"),
    [
        ("STRING", mask(), "'[redacted]'"),
        ("INTEGER", mask(), "CAST('0' AS INT64)"),
        ("DATE", mask(), "CAST('1970-01-01' AS DATE)"),
        ("BOOLEAN", mask(), "FALSE"),
        ("STRING", mask(action="partial", keep=0), "REPEAT('*', LEAST(CHAR_LENGTH(gatecast_element_1), 4096))"),
    ],
)
def test_an_array_keeps_its_length_and_holds_no_null(kind: str, one: Mask, expected: str) -> None:
    elements = (
        "UNNEST(gatecast_row.`c`) AS gatecast_element_1 WITH OFFSET AS gatecast_place_1 ORDER BY gatecast_place_1"
    )
    assert shown(one, field("c", kind, "REPEATED")) == [f"ARRAY(SELECT {expected} FROM {elements})"]


def test_an_array_that_is_to_be_null_is_empty() -> None:
    assert shown(mask(action="null"), field("c", "INTEGER", "REPEATED")) == ["ARRAY<INT64>[]"]


@pytest.mark.parametrize("action", ["hash"])
def test_an_array_that_cannot_be_said_is_left(action: Any) -> None:
    assert shown(mask(action=action), field("c", "STRING", "REPEATED")) is None


ADDRESS = field("a", "RECORD", "NULLABLE", field("zip"), field("geo", "RECORD", "NULLABLE", field("c"), field("d")))
HOMES = field("h", "RECORD", "REPEATED", field("c"), field("n", "INTEGER"))


def test_a_record_is_built_anew_where_a_field_is_covered() -> None:
    assert shown(mask("*.*.*.a.zip"), field("x"), ADDRESS) == [
        "",
        "(SELECT STRUCT('[redacted]' AS `zip`, gatecast_element_1.`geo` AS `geo`) "
        "FROM UNNEST([gatecast_row.`a`]) AS gatecast_element_1 WHERE gatecast_element_1 IS NOT NULL)",
    ]
    assert shown(mask("*.*.*.a.geo.d"), ADDRESS) == [
        "(SELECT STRUCT(gatecast_element_1.`zip` AS `zip`, (SELECT STRUCT(gatecast_element_2.`c` AS `c`, "
        "'[redacted]' AS `d`) FROM UNNEST([gatecast_element_1.`geo`]) AS gatecast_element_2 "
        "WHERE gatecast_element_2 IS NOT NULL) AS `geo`) "
        "FROM UNNEST([gatecast_row.`a`]) AS gatecast_element_1 WHERE gatecast_element_1 IS NOT NULL)"
    ]
    assert shown(mask("*.*.*.h.n"), HOMES) == [
        "ARRAY(SELECT STRUCT(gatecast_element_1.`c` AS `c`, CAST(NULL AS INT64) AS `n`) FROM UNNEST(gatecast_row.`h`) "
        "AS gatecast_element_1 WITH OFFSET AS gatecast_place_1 ORDER BY gatecast_place_1)"
    ]


def test_the_first_mask_that_covers_a_column_counts() -> None:
    masks = (Mask("a", columns=("x.c",)), mask(text="second"), mask(text="third"))
    found = replacements(masks, TABLE, schema(field("c")))
    assert found is not None
    assert found[0].expression == "'second'"


def test_detectors_and_other_tables_change_nothing() -> None:
    only = (Mask("m", detectors=("email",)), Mask("o", columns=("other.c",)))
    assert replacements(only, TABLE, schema(field("c"))) is None
    assert not WarehouseScans().covers(only, TABLE)
    assert WarehouseScans().covers((*only, mask()), TABLE)
    assert WarehouseScans().covers((mask("t.a.geo.c", "p.d.t.a.geo.c"),), TABLE)
    assert not WarehouseScans().covers((), TABLE)
    assert WarehouseScans().replacements((mask(),), TABLE, schema(field("c"))) is not None


@pytest.mark.parametrize("name", ["a`b", "a\\b", "a\nb", "a\u200b"])
def test_a_name_that_cannot_be_quoted_leaves_the_table(name: str) -> None:
    assert shown(mask(), field("c"), field(name)) is None
    assert shown(mask(), field("c"), field("r", "RECORD", "NULLABLE", field(name))) is None


def test_so_many_fields_and_no_more() -> None:
    fields = [field("c"), *(field(f"f{n}") for n in range(FIELDS_LIMIT))]
    assert shown(mask(), *fields[: FIELDS_LIMIT - 1]) is not None
    assert shown(mask(), *fields[:FIELDS_LIMIT]) is not None
    assert shown(mask(), *fields) is None
    assert replacements((mask(),), TABLE, ()) is None


@given(st.text(st.sampled_from("\\'\"`\n\r\0{}\u2028\U0001f600nux0") | st.characters(exclude_categories=["Cs"])))
@example("\\")
@example("\\' OR 1 = 1 --")
def test_a_literal_says_its_text(text: str) -> None:
    (token,) = tokens_of(literal(text), 10, 10)
    assert token.kind == "string"
    assert token.text.isprintable()
    plain = string_value(token)
    assert plain == text or (plain is None and not text.isprintable())


FIELDS = [field("c"), field("n", "INTEGER"), ADDRESS, HOMES, field("tags", "STRING", "REPEATED"),
          field("numbers", "DATE", "REPEATED"), field("j", "JSON"), field("b", "BYTES")]  # fmt: skip
LEAVES = ["c", "n", "a.zip", "a.geo.c", "a.geo.d", "h.c", "h.n", "tags", "numbers", "j", "b"]


@given(st.sets(st.sampled_from(LEAVES), min_size=1), st.sampled_from(["redact", "null"]))
def test_nothing_that_is_covered_is_left_in_a_whole_row(covered: set[str], action: Any) -> None:
    one = mask(*(f"*.*.*.{each}" for each in sorted(covered)), action=action)
    found = replacements((one,), TABLE, schema(*FIELDS))
    assert found is not None
    done = rewrite("SELECT t FROM d.t", "p", None, {TABLE: found})
    assert (done.tables, done.why) == ((TABLE,), "")
    (statement,) = analyse(done.text, "p", None).statements
    assert statement.outputs is not None
    origins = {".".join(origin.path) for column in statement.outputs.columns for origin in column.origins}
    assert origins or covered == set(LEAVES)
    reached = {leaf for leaf in LEAVES for origin in origins if leaf == origin or leaf.startswith(f"{origin}.")}
    assert reached == set(LEAVES) - covered
