"""What is left of errors, notices and notifications under masks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.verdict import Mask
from proxy.masking import Masking
from proxy.masking.remarks import MASKED, MASKED_MESSAGE, MASKED_NOTICE, unquoted

MASKING = Masking(b"k" * 32)
EMAIL = Mask("hide", columns=("public.cust.email",))
FIND = Mask("find", detectors=("email",))
SECRET = "alice@example.com"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f'invalid input syntax for type integer: "{SECRET}"', 'invalid input syntax for type integer: "?"'),
        ('null value in column "a" of relation "b" violates x', 'null value in column "?" violates x'),
        ('bad "a"b" value', 'bad "?" value'),
        ("value too long for type character varying(5)", "value too long for type character varying(?)"),
        ("Wert \u00bbalice\u00ab ist falsch", 'Wert "?" ist falsch'),
        ("valeur \u00ab alice \u00bb incorrecte", 'valeur "?" incorrecte'),
        ("\u5024\u300calice\u300d", '\u5024"?"'),
        ("don't alice", "don'?'"),
        ('invalid byte sequence for encoding "UTF8": 0xe9 0x61', 'invalid byte sequence for encoding "?": ?'),
        (f"operator does not exist: {SECRET}", "operator does not exist: ?"),
        (f'operator does not exist: {SECRET}"x"', "operator does not exist: ?"),
        ("requested character too large for encoding: 4711", "requested character too large for encoding: ?"),
        ("date field value out of range: 4711-13-01", "date field value out of range: ?"),
        ("could not open relation with OID 4711", "could not open relation with OID ?"),
        ("index -4711 out of valid range, 0..7", "index ? out of valid range, ?"),
        ("column c2.x1 does not exist", "column c2.x1 does not exist"),
        ("Failing row contains (4, z, (a))", "Failing row contains (?)"),
        ("division by zero", "division by zero"),
        ("", ""),
    ],
)
def test_quoted_parts_are_replaced_from_the_first_to_the_last(text: str, left: str) -> None:
    assert unquoted(text) == left


@given(st.text("ab\"' (x)\u00bb", max_size=20), st.sampled_from(['"', "'", "(", "\u201c", "`"]))
def test_nothing_inside_of_quotes_is_left(value: str, quote: str) -> None:
    close = {"(": ")", "\u201c": "\u201d"}.get(quote, quote)
    assert unquoted(f"bad value: {quote}SECRET{value}SECRET{close} here").count("SECRET") == 0


def test_an_error_under_a_column_mask() -> None:
    fields = {
        "severity": "ERROR",
        "code": "23505",
        "message": 'duplicate key value violates unique constraint "cust_email_key"',
        "detail": f"Key (email)=({SECRET}) already exists.",
        "hint": f'Perhaps "{SECRET}"',
        "where": f'COPY cust, line 1, column id: "{SECRET}"',
        "schema": "public",
        "table": "cust",
        "constraint": "cust_email_key",
    }
    assert MASKING.remark((EMAIL,), fields) == {
        **fields,
        "message": 'duplicate key value violates unique constraint "?"',
        "detail": "",
        "hint": 'Perhaps "?"',
        "where": "",
    }


@pytest.mark.parametrize(
    ("severity", "code", "left"),
    [
        ("NOTICE", "00000", MASKED_NOTICE),
        ("WARNING", "01000", MASKED_NOTICE),
        ("NOTICE", "42P07", 'relation "?" already exists, skipping'),
        ("INFO", "42P07", 'relation "?" already exists, skipping'),
        ("ERROR", "P0001", MASKED_MESSAGE),
        ("FATAL", "", MASKED_MESSAGE),
        ("FEHLER", "22P02", MASKED_NOTICE),
        ("", "22P02", MASKED_NOTICE),
        ("ERROR", "22P02", 'relation "?" already exists, skipping'),
    ],
)
def test_messages_by_severity_and_code(severity: str, code: str, left: str) -> None:
    fields = {"severity": severity, "code": code, "message": 'relation "cust" already exists, skipping'}
    assert MASKING.remark((EMAIL,), fields)["message"] == left


def test_notifications_and_settings() -> None:
    assert MASKING.remark((EMAIL,), {"payload": SECRET, "channel": "c"}) == {"payload": MASKED, "channel": "c"}
    assert MASKING.remark((EMAIL,), {"name": "x", "value": SECRET}) == {"name": "x", "value": MASKED}


def test_detectors_alone_work_on_each_text() -> None:
    fields = {
        "severity": "ERROR",
        "code": "P0001",
        "message": f"user {SECRET}",
        "detail": f"({SECRET})",
        "table": SECRET,
    }
    assert MASKING.remark((FIND,), fields) == {
        **fields,
        "message": "user [redacted]",
        "detail": "([redacted])",
    }
    for key in ("hint", "where", "payload", "value"):
        assert MASKING.remark((FIND,), {key: SECRET}) == {key: "[redacted]"}


def test_null_in_a_remark_is_the_empty_text() -> None:
    mask = Mask("find", detectors=("email",), action="null")
    assert MASKING.remark((mask,), {"message": f"user {SECRET}"}) == {"message": ""}


def test_both_kinds_of_masks_together() -> None:
    fields = {"severity": "ERROR", "code": "22P02", "message": f'user {SECRET} "x"'}
    assert MASKING.remark((EMAIL, FIND), fields)["message"] == 'user [redacted] "?"'


def test_what_holds_nothing_is_the_same_object() -> None:
    fields = {"severity": "ERROR", "code": "22012", "message": "division by zero"}
    assert MASKING.remark((FIND,), fields) is fields
    assert MASKING.remark((EMAIL,), fields) == fields
    assert MASKING.remark((), fields) is fields
