"""What masked cells look like: they decode as their column's type, and nothing of the value is left."""

from __future__ import annotations

import json
import struct
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.events import NULL_CELL, CellMask, Column, Command, _NullCell
from proxy.core.verdict import Action, Mask
from proxy.masking import ACTIONS, DETECTORS, Masking, check_mask
from proxy.masking.actions import HASH_CHARS, KEEP_LIMIT, MASK_TEXT_LIMIT, PARTIAL_LIMIT, hashed, partial
from proxy.masking.cells import _numeric
from proxy.masking.names import PATTERN_LIMIT
from proxy.masking.scanner import DETECT_LIMIT

KEY = b"k" * 32
MASKING = Masking(KEY, {"employee": r"EMP-(\d{4})", "digits": r"\d{5}"})
COMMAND = Command("postgres", "SELECT", "read", "select 1", facts={"statements": ()})
EMAIL = b"bob@example.com"
CARD = b"4111111111111111"


def cell_of(mask: Mask, column: Column) -> CellMask | None:
    plan = MASKING.plan((mask,), COMMAND, (column,))
    return None if plan is None else plan.cells[0]


def apply(cell: CellMask | None, value: bytes) -> bytes | None:
    if cell is None:
        return value
    if isinstance(cell, _NullCell):
        return None
    return cell if isinstance(cell, bytes) else cell(value)


def column(kind: str = "text", **more: object) -> Column:
    return Column("c", ("s.t.c",), kind, **more)  # type: ignore[arg-type]


def by_column(action: Action, **more: object) -> Mask:
    return Mask("r", columns=("s.t.c",), action=action, **more)  # type: ignore[arg-type]


def by_detectors(*names: str, action: Action = "redact", **more: object) -> Mask:
    return Mask("r", detectors=names or tuple(sorted(DETECTORS)), action=action, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mask", "column", "value", "expected"),
    [
        (by_column("redact"), column(), EMAIL, b"[redacted]"),
        (by_column("redact", text="x\u00fc"), column(), EMAIL, "x\u00fc".encode()),
        (by_column("constant", text="none"), column(prefix=b"\x01"), b"\x01" + EMAIL, b"\x01none"),
        (by_column("null"), column(), EMAIL, None),
        (by_column("partial"), column(), CARD, b"************1111"),
        (by_column("partial", keep=2), column(), "\u00e4\u00f6\u00fc\u20ac".encode(), "**\u00fc\u20ac".encode()),
        (by_column("partial"), column(), b"1234567", b"*******"),
        (by_column("partial"), column(), b"12345678", b"****5678"),
        (by_column("partial", keep=0), column(), b"12345678", b"********"),
        (by_column("partial"), column(), b"", b""),
        (by_column("partial"), column(prefix=b"\x01"), b"\x0112345678", b"\x01****5678"),
        (by_column("hash"), column(), EMAIL, hashed(EMAIL, KEY)),
        (by_column("redact"), column("json", prefix=b"\x01"), b'\x01{"a":1}', b'\x01"[redacted]"'),
        (by_column("constant", text='{"a": 0}'), column("json"), b"[1]", b'{"a": 0}'),
        (by_column("constant", text='say "x"'), column("json"), b"[1]", b'"say \\"x\\""'),
        (by_column("constant", text="NaN"), column("json"), b"[1]", b'"NaN"'),
        (by_column("partial"), column("json"), b'"12345678"', b'"****5678"'),
        (by_column("partial"), column("json"), b'{"a": "12345678"}', b'"[redacted]"'),
        (by_column("null"), column("json"), b"[]", None),
        (by_column("redact"), column("other", constant=b"0"), b"42", b"0"),
        (by_column("hash"), column("other"), b"42", None),
        (by_column("null"), column("other", constant=b"0"), b"42", None),
        (by_detectors("email"), column(), b"to bob@example.com!", b"to [redacted]!"),
        (by_detectors("email", action="partial"), column(), EMAIL, b"***********.com"),
        (by_detectors("email", action="null"), column(), b"to bob@example.com!", None),
        (by_detectors("employee"), column(), b"is EMP-1234.", b"is EMP-[redacted]."),
        (by_detectors("digits"), column("other", constant=b"0", type_name="int4"), b"12345", b"0"),
        (by_detectors("card"), column("other", constant=b"{}", type_name="_text"), b"{a,4111111111111111}", b"{}"),
        (by_detectors("card"), column("other", type_name="int8"), CARD, None),
        (
            by_detectors("card"),
            column("other", constant=b"0", type_name="int8"),
            b"4111111111111112",
            b"4111111111111112",
        ),
    ],
)
def test_masked_cell(mask: Mask, column: Column, value: bytes, expected: bytes | None) -> None:
    assert apply(cell_of(mask, column), value) == expected


def test_constants_and_nulls_need_no_call() -> None:
    assert cell_of(by_column("redact"), column()) == b"[redacted]"
    assert cell_of(by_column("redact"), column("other", constant=b"0")) == b"0"
    assert cell_of(by_column("redact"), column("other")) is NULL_CELL
    assert cell_of(by_column("null"), column()) is NULL_CELL


_IMAGES = {
    "int8": lambda number: struct.pack(">q", number),
    "float8": lambda number: struct.pack(">d", number),
    "numeric": lambda number: struct.pack(">HhHH4H", 4, 3, 0, 0, *(number // 10**at % 10**4 for at in (12, 8, 4, 0))),
    "_text": lambda number: struct.pack(">iiiiii", 1, 0, 25, 1, 1, 16) + b"%d" % number,
    "record": lambda number: struct.pack(">iii", 1, 25, 16) + b"%d" % number,
    "bytea": lambda number: b"\x00%d\xff" % number,
}


@pytest.mark.parametrize("type_name", _IMAGES)
def test_binary_images_of_other_types_are_read(type_name: str) -> None:
    cell = cell_of(by_detectors("card"), column("other", binary=True, type_name=type_name, constant=b"C"))
    assert apply(cell, _IMAGES[type_name](4111111111111111)) == b"C"
    harmless = _IMAGES[type_name](4111111111111112)
    assert apply(cell, harmless) == harmless


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**30), max_value=10**30))
def test_binary_numeric_reads_as_its_digits(value: Decimal) -> None:
    sign, digits, _ = value.as_tuple()
    whole = "".join(map(str, digits)).rjust(5, "0")
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    groups = [int(whole[at : at + 4]) for at in range(0, len(whole), 4)]
    image = struct.pack(f">HhHH{len(groups)}H", len(groups), len(groups) - 2, 0x4000 * sign, 4, *groups)
    assert Decimal(_numeric(image).decode()) == value.copy_abs()


@pytest.mark.parametrize("type_name", ["bool", "int4", "uuid", "timestamptz", "date"])
def test_types_that_no_built_in_detector_can_match_are_not_read(type_name: str) -> None:
    assert cell_of(by_detectors(), column("other", type_name=type_name)) is None
    assert cell_of(by_detectors("digits"), column("other", type_name=type_name)) is not None


def test_numbers_are_not_read_by_detectors_of_texts() -> None:
    assert cell_of(by_detectors("email", "token"), column("other", type_name="int8")) is None


# -- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b'{"mail": "to bob@example.com!"}', b'{"mail": "to [redacted]!"}'),
        (b'{"bob@example.com": 1}', b'{"[redacted]": 1}'),
        (b"[4111111111111111, 1]", b'["[redacted]", 1]'),
        (b'["bob\\u0040example.com", 1.50]', b'["[redacted]", 1.50]'),
        (b'["\\nbob@example.com"]', b'["\\n[redacted]"]'),
        (b'["a\\tb"]', b'["a\\tb"]'),
        (b'{"a" : [1e5, true]}', b'{"a" : [1e5, true]}'),
        (b'{"private_key_id": "' + b"0a" * 20 + b'"}', b'{"private_key_id": "[redacted]"}'),
        (b'"bob@example.com"', b'"[redacted]"'),
        (b'["-----BEGIN PRIVATE KEY-----", "MIIE"]', b'"[redacted]"'),
        (b'["unterminated bob@example.com', b'["[redacted]"'),
    ],
)
def test_detectors_inside_json(document: bytes, expected: bytes) -> None:
    assert apply(cell_of(by_detectors(), column("json")), document) == expected
    assert apply(cell_of(by_detectors(), column("json", prefix=b"\x01")), b"\x01" + document) == b"\x01" + expected


def test_a_replacement_is_escaped_in_json() -> None:
    cell = cell_of(by_detectors("email", text='a "b" \\'), column("json"))
    assert apply(cell, b'["x bob@example.com"]') == b'["x a \\"b\\" \\\\"]'


def test_a_match_in_json_with_null_makes_the_document_null() -> None:
    assert apply(cell_of(by_detectors("email", action="null"), column("json")), b'["a@b.de"]') is None


_texts = st.text(max_size=8) | st.sampled_from(["bob@example.com", "4111 1111 1111 1111", 'x"a@b.de\\', "\nc@d.org\n"])
_documents = st.recursive(
    _texts | st.integers() | st.floats(allow_nan=False) | st.none() | st.just(4111111111111111),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=12,
)


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for key, each in value.items() for text in (*_strings(key), *_strings(each))]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [str(value)]


@given(_documents, st.booleans(), st.sampled_from(["redact", "partial", "hash"]))
def test_masked_json_is_json_and_keeps_no_match(value: object, ascii_only: bool, action: Action) -> None:
    document = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    masked = apply(cell_of(by_detectors("email", "card", action=action), column("json")), document)
    assert masked is not None
    if masked != document:
        decoded = json.loads(masked)
        for secret in ("bob@example.com", "a@b.de", "c@d.org", "4111 1111 1111 1111", "4111111111111111"):
            assert all(secret not in text for text in _strings(decoded))
    else:
        assert not any("@" in text and "." in text.rpartition("@")[2] for text in _strings(value) if "example" in text)


# -- properties of the actions --------------------------------------------------------------------------------------


@given(st.text(max_size=60), st.integers(0, KEEP_LIMIT))
def test_partial_shows_at_most_keep_characters_and_half_of_the_value(text: str, keep: int) -> None:
    masked = partial(text.encode("utf-8", "surrogatepass"), keep).decode("utf-8", "surrogateescape")
    shown = masked.lstrip("*")
    assert len(shown) <= min(keep, len(text) // 2) or "*" in text


@given(st.binary(max_size=60))
def test_partial_takes_any_bytes(value: bytes) -> None:
    assert value.endswith(partial(value, 4).lstrip(b"*"))


@pytest.mark.parametrize("size", [PARTIAL_LIMIT - 1, PARTIAL_LIMIT, PARTIAL_LIMIT + 5, 100 * PARTIAL_LIMIT])
def test_partial_of_a_huge_value_has_a_bounded_length(size: int) -> None:
    masked = partial("\u00e4".encode() * size + b"wxyz", 4)
    assert masked == b"*" * min(size, PARTIAL_LIMIT) + b"wxyz"


def test_hashes_are_equal_for_equal_values_and_keys_alone() -> None:
    assert hashed(EMAIL, KEY) == hashed(EMAIL, KEY)
    assert len({hashed(EMAIL, KEY), hashed(EMAIL, b"x" * 32), hashed(CARD, KEY)}) == 3
    assert len(hashed(EMAIL, KEY)) == HASH_CHARS


@given(st.lists(st.sampled_from([EMAIL, CARD, b" ", b"x", b"12", "\u00e4".encode(), b"\n"]), max_size=12))
def test_masked_text_never_contains_the_match(parts: list[bytes]) -> None:
    text = b" ".join(parts)
    masked = apply(cell_of(by_detectors("email", "card"), column()), text)
    assert masked is not None
    assert EMAIL not in masked
    assert CARD not in masked
    assert (masked == text) == (EMAIL not in text and CARD not in text)


@pytest.mark.parametrize("size", [DETECT_LIMIT - 1, DETECT_LIMIT, DETECT_LIMIT + 1])
@pytest.mark.parametrize("names", [("email",), ("card", "email")])
def test_a_cell_over_the_limit_is_masked_whole(size: int, names: tuple[str, ...]) -> None:
    text = b"x" * size
    for kind, whole in (("text", b"[redacted]"), ("json", b'"[redacted]"'), ("other", b"C")):
        masked = apply(cell_of(by_detectors(*names), column(kind, constant=b"C", type_name="xml")), text)
        assert masked == (text if size <= DETECT_LIMIT else whole)


# -- checks of the configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (Mask("r"), "needs columns or detectors"),
        (Mask("r", columns=("email",)), "has no table"),
        (Mask("r", columns=("a..c.d",)), "a..c.d"),
        (Mask("r", columns=("a..c",)), "is not schema.table.column"),
        (Mask("r", columns=('a."b".c',)), "without quotes"),
        (Mask("r", columns=("a." + "b" * PATTERN_LIMIT,)), "longer than"),
        (Mask("r", detectors=("emial",)), "unknown detector"),
        (Mask("r", detectors=("email",), action="constant"), "needs a text"),
        (Mask("r", detectors=("email",), action="hash", text="x"), "takes no text"),
        (Mask("r", detectors=("email",), text="a\nb"), "control character"),
        (Mask("r", detectors=("email",), text="x" * (MASK_TEXT_LIMIT + 1)), "longer than"),
        (Mask("r", detectors=("email",), action="partial", keep=KEEP_LIMIT + 1), "keep must lie"),
        (Mask("r", detectors=("email",), action="partial", keep=-1), "keep must lie"),
        (Mask("r", detectors=("email",), action="blur"), "unknown action"),  # type: ignore[arg-type]
    ],
)
def test_check_mask_says_what_is_wrong(mask: Mask, problem: str) -> None:
    assert problem in (check_mask(mask, DETECTORS) or "")


@pytest.mark.parametrize(
    "mask",
    [
        Mask("r", columns=("*.cust.*", "cust.email"), detectors=("email",)),
        Mask("r", detectors=("email",), text="x" * MASK_TEXT_LIMIT),
        Mask("r", detectors=("email",), action="partial", keep=KEEP_LIMIT),
    ],
)
def test_check_mask_accepts(mask: Mask) -> None:
    assert check_mask(mask, DETECTORS) is None


def test_actions_are_those_of_the_verdict() -> None:
    assert {"redact", "partial", "hash", "null", "constant"} == ACTIONS
