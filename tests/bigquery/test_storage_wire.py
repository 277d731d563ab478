"""Messages of the Storage Read API: read, written, refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from protocols.bigquery import storage_wire as wire
from protocols.bigquery.storage_wire import Field, Garbage, Shape, decode, encode

WORDS = some.text(max_size=20)
NUMBERS = some.integers(0, 2**64 - 1)


def values_of(shape: Shape) -> some.SearchStrategy[dict[str, Any]]:
    """Any values of a message."""

    def one(field: Field) -> some.SearchStrategy[Any]:
        match field.kind:
            case Shape():
                each = values_of(field.kind)
            case "text":
                each = WORDS
            case "bytes":
                each = some.binary(max_size=20)
            case "number":
                each = NUMBERS
            case _:
                each = some.binary(min_size=8, max_size=8)
        return some.lists(each, min_size=1, max_size=3) if field.repeated else each

    return some.fixed_dictionaries({}, optional={field.name: one(field) for field in shape.fields.values()})


@pytest.mark.parametrize("shape", [wire.CREATE_READ_SESSION, wire.ROWS, wire.READ_ROWS, wire.SPLIT_ANSWER])
def test_what_is_written_is_read(shape: Shape) -> None:
    @given(values_of(shape))
    def holds(values: dict[str, Any]) -> None:
        assert decode(shape, encode(shape, values), strict=True) == values

    holds()


@given(some.binary(max_size=60))
def test_garbage_is_read_or_refused(data: bytes) -> None:
    for strict in (True, False):
        try:
            found = decode(wire.CREATE_READ_SESSION, data, strict=strict)
        except Garbage:
            continue
        assert isinstance(found, dict)
        if strict:  # what was understood is all that was said
            assert decode(wire.CREATE_READ_SESSION, encode(wire.CREATE_READ_SESSION, found), strict=True) == found


def test_what_nobody_knows_is_refused_of_users_and_skipped_of_targets() -> None:
    data = encode(wire.READ_ROWS, {"read_stream": "a"}) + b"\xfa\x01\x02zz"
    with pytest.raises(Garbage, match="not known here"):
        decode(wire.READ_ROWS, data, strict=True)
    assert decode(wire.READ_ROWS, data, strict=False) == {"read_stream": "a"}


def test_a_field_that_comes_twice_is_refused() -> None:
    data = encode(wire.READ_ROWS, {"read_stream": "mine"}) + encode(wire.READ_ROWS, {"read_stream": "theirs"})
    with pytest.raises(Garbage, match="comes twice"):
        decode(wire.READ_ROWS, data, strict=True)
    assert decode(wire.READ_ROWS, data, strict=False) == {"read_stream": "theirs"}


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x0a\x05ab", b"\x0b", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x00"]
)
def test_broken_messages(data: bytes) -> None:
    with pytest.raises(Garbage):
        decode(wire.READ_ROWS, data, strict=False)


def test_fields_are_limited() -> None:
    one = encode(wire.READ_OPTIONS, {"selected_fields": [""]})
    assert len(decode(wire.READ_OPTIONS, one * wire.FIELDS_LIMIT, strict=True)["selected_fields"]) == wire.FIELDS_LIMIT
    with pytest.raises(Garbage, match="more than"):
        decode(wire.READ_OPTIONS, one * (wire.FIELDS_LIMIT + 1), strict=True)


def test_rows_are_counted() -> None:
    assert wire.row_count(encode(wire.ROWS, {"row_count": 7, "arrow_record_batch": {"row_count": 9}})) == 7
    assert wire.row_count(b"") == 0
    assert wire.framed(b"abc") == b"\0\0\0\0\x03abc"
