"""Streams: any split gives what the whole text gives, and what is held back is bounded."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.events import Column, Command
from proxy.core.verdict import Mask
from proxy.masking import DETECTORS, Masking, StreamMask
from proxy.masking.patterns import PRIVATE_KEY_LIMIT
from proxy.masking.streams import LOOKBACK_LIMIT

MASKING = Masking(b"k" * 32, {"line": "from .* to", "block": "(?s)BEGIN.*?END"})
ALL = Mask("find", detectors=tuple(sorted(DETECTORS)))
PEM = b"-----BEGIN PRIVATE KEY-----\n" + b"MIIEabcd+/\n" * 8 + b"-----END PRIVATE KEY-----"
PIECES = [
    b"bob@example.com",
    b"4111 1111 1111 1111",
    b"DE89 3704 0044 0532 0130 00",
    b"+49 89 1234567",
    PEM,
    b"-----BEGIN PRIVATE KEY-----",
    b"aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    b"\n",
    b"\r\n",
    b"\x1b[0m",
    b" ",
    b"x",
    b"12",
    b"-",
    b"@",
    "\u00e4\u20ac".encode(),
    b"\xff\x00",
]


def stream(mask: Mask = ALL) -> StreamMask:
    made = MASKING.stream((mask,))
    assert made is not None
    return made


def whole(text: bytes, mask: Mask = ALL) -> bytes:
    one = stream(mask)
    return one.feed(text) + one.flush()


def direct(text: bytes) -> bytes:
    """The masked text without any stream: a cell of that text."""
    plan = MASKING.plan((ALL,), Command("p", "X", "read", ""), (Column("c", ()),))
    assert plan is not None
    cell = plan.cells[0]
    assert callable(cell)
    masked = cell(text)
    assert masked is not None
    return masked


@given(st.lists(st.sampled_from(PIECES), max_size=20), st.lists(st.integers(0, 600), max_size=12))
@settings(max_examples=300)
def test_any_split_gives_what_the_whole_text_gives(pieces: list[bytes], cuts: list[int]) -> None:
    text = b"".join(pieces)
    one = stream()
    out = b""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(places):
        out += one.feed(text[start:end])
    out += one.flush()
    assert out == direct(text)


def test_byte_by_byte() -> None:
    text = b"\n".join(PIECES) + b" ".join(PIECES)
    one = stream()
    assert b"".join(one.feed(text[at : at + 1]) for at in range(len(text))) + one.flush() == direct(text)


def test_a_line_is_let_go_at_its_end() -> None:
    one = stream()
    assert one.feed(b"hello bob@exam") == b""
    assert one.feed(b"ple.com\nnext") == b"hello [redacted]\n"
    assert one.held_bytes == 4
    assert one.flush() == b"next"
    assert one.flush() == b""


def test_a_value_split_by_a_flush_is_masked_behind_it() -> None:
    one = stream()
    assert one.feed(b"to bob@exam") == b""
    assert one.flush() == b"to bob@exam"
    assert one.feed(b"ple.com now\n") == b"[redacted] now\n"


def test_a_private_key_is_held_until_its_end() -> None:
    one = stream()
    assert one.feed(b"key:\n" + PEM[:60] + b"\n") == b"key:\n"
    assert one.feed(PEM[60:]) == b""
    assert one.feed(b"\nafter\n") == b"[redacted]\nafter\n"


def test_a_private_key_without_an_end_is_held_up_to_its_limit() -> None:
    one = stream()
    text = b"-----BEGIN PRIVATE KEY-----\n" + b"QUJD\n" * (PRIVATE_KEY_LIMIT // 5) + b"tail\n"
    out = b"".join(one.feed(text[at : at + 100]) for at in range(0, len(text), 100)) + one.flush()
    assert out == b"[redacted]" + text[PRIVATE_KEY_LIMIT:]


@pytest.mark.parametrize("size", [LOOKBACK_LIMIT - 1, LOOKBACK_LIMIT, LOOKBACK_LIMIT + 1, 3 * LOOKBACK_LIMIT])
def test_a_long_line_is_let_go_in_part_and_its_values_are_found(size: int) -> None:
    unit = b'{"mail": "bob@example.com", "n": 12}, '
    text = (unit * (size // len(unit) + 1))[:size]
    one = stream()
    out = b""
    for at in range(0, size, 1000):
        out += one.feed(text[at : at + 1000])
        assert one.held_bytes <= LOOKBACK_LIMIT
    assert (out == b"") == (size <= LOOKBACK_LIMIT)
    assert out + one.flush() == whole(text)
    assert b"bob@example.com" not in out


@pytest.mark.parametrize("size", [LOOKBACK_LIMIT // 2 - 100, LOOKBACK_LIMIT + 100, 3 * LOOKBACK_LIMIT])
def test_a_giant_value_is_replaced_and_its_rest_dropped(size: int) -> None:
    token = b"eyJhbGciOiJub25lIn0.eyJ9." + b"QUJD" * (size // 4)
    one = stream()
    text = b"a " + token + b" b\n"
    out = b"".join(one.feed(text[at : at + 4096]) for at in range(0, len(text), 4096)) + one.flush()
    assert out.startswith(b"a [redacted]")
    assert out.endswith(b" b\n")
    assert b"QUJD" not in out


def test_a_custom_detector_within_lines_and_over_them() -> None:
    mask = Mask("r", detectors=("line", "block"))
    text = b"from a to b\nx BEGIN\nsecret\nEND y\n"
    one = stream(mask)
    out = b"".join(one.feed(text[at : at + 3]) for at in range(0, len(text), 3)) + one.flush()
    assert out.startswith(b"[redacted] b\n")
    assert whole(text, mask) == b"[redacted] b\nx [redacted] y\n"


def test_null_removes_the_value() -> None:
    assert whole(b"a bob@example.com b", Mask("r", detectors=("email",), action="null")) == b"a  b"


def test_no_detectors_no_stream() -> None:
    assert MASKING.stream((Mask("r", columns=("a.b",)),)) is None
    assert MASKING.stream(()) is None
